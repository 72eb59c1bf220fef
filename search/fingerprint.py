"""The identity of a model: what its embeddings follow from."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path

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
    """Of a file of this size and time: a process that asks again does not read half a gigabyte again."""
    if path.suffix != ".json":
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    content = path.read_bytes()
    try:
        settings = json.loads(content)
    except ValueError:
        settings = None
    if isinstance(settings, dict) and path.name != "tokenizer.json":
        kept = {key: value for key, value in settings.items() if key not in _VERSION_KEYS}
        content = json.dumps(kept, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()
