"""The identity of a model: what its embeddings follow from."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

import msgspec

from config import cache_folder

logger = logging.getLogger(__name__)

# Of the model's own folder. What lies in other folders beside these (an adapter, an export) does not change embeddings.
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_SETTINGS = (
    "modules.json",
    "config.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "*.model",
)
# Which release wrote a file says nothing about what is in it.
_VERSION_KEYS = ("__version__", "transformers_version")
_LARGE = 5_000_000  # bytes
_KNOWN, _KEPT = "fingerprints.json", 100


def model_fingerprint(folder: str | os.PathLike[str]) -> str:
    """64 hex digits: SHA-256 of a model folder's weights, tokenizer, modules, pooling and prompts.

    Two folders with the same content have the same fingerprint, whatever their names and the times of their files.
    Raises OSError where a file cannot be read.
    """
    digest = hashlib.sha256()
    for path, size, changed in model_state(folder):
        digest.update(f"{Path(os.path.relpath(path, folder)).as_posix()}\0{_content_hash(path, size, changed)}\n".encode())
    return digest.hexdigest()


def model_state(folder: str | os.PathLike[str]) -> list[tuple[Path, int, int]]:
    """The files that the fingerprint is made of, each with its size and time: costs nothing, and tells of most changes."""
    files = sorted({path for place in _module_folders(Path(folder)) for path in _files(place)})
    return [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _module_folders(root: Path) -> list[Path]:
    """The model's folder and those of its modules (pooling, normalisation)."""
    try:
        modules = json.loads((root / "modules.json").read_bytes())
        return [root, *(root / module["path"] for module in modules if module["path"])]
    except (OSError, ValueError, TypeError, LookupError):
        return [root]


def _files(folder: Path) -> list[Path]:
    return [path for pattern in (*_WEIGHTS, *_SETTINGS) for path in folder.glob(pattern) if path.is_file()]


@functools.lru_cache(maxsize=256)
def _content_hash(path: Path, size: int, changed: int) -> str:
    """Of a file of this size and time. Half a gigabyte takes .4 s and more: large files' hashes are kept on disk."""
    if size < _LARGE:
        return hashlib.sha256(_without_versions(path)).hexdigest()
    key = f"{path.resolve()} {size} {changed}"
    known = _read_known()
    if key not in known:
        with path.open("rb") as file:
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        _write_known(known)
    return known[key]


def _without_versions(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".json":
        with contextlib.suppress(ValueError, RecursionError):
            settings = json.loads(content)
            if isinstance(settings, dict):
                kept = {key: value for key, value in settings.items() if key not in _VERSION_KEYS}
                return json.dumps(kept, sort_keys=True).encode()
    return content


def _read_known() -> dict[str, str]:
    try:
        return msgspec.json.decode((cache_folder() / _KNOWN).read_bytes(), type=dict[str, str])
    except (OSError, ValueError):
        return {}


def _write_known(known: dict[str, str]) -> None:
    """Keep the latest. Where that cannot be done, the next process reads the file again."""
    latest = dict(list(known.items())[-_KEPT:])
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(msgspec.json.encode(latest))
        os.replace(file.name, folder / _KNOWN)
    except OSError as error:
        logger.debug("%s cannot be kept: %s", _KNOWN, error)
