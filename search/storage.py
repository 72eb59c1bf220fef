"""An index on disk: data only, memory-mapped, replaced whole or not at all.

    DIR/index.json       what it is: version, model, sizes, and which folder holds the data
    DIR/data-…/          exact.npy (M, D) float32, codes.npy (M, D) int8, scales.npy (M,) float32,
                         windows.npy (M, 3) uint32: passage, first character, one behind the last,
                         passages.jsonl, one passage a line, offsets.npy (N + 1,) uint64: where each line begins

A save writes a new data folder and then replaces index.json, in one step: whoever reads finds the old index or the new one.
Loading maps the arrays: what is not searched for is not read.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import filelock
import msgspec
import numpy as np

from search.errors import InferenceError
from search.index import Record, SearchIndex
from search.vectors import Part, Vectors

logger = logging.getLogger(__name__)

FORMAT, VERSION = "korquad-e5-index", 1
_MANIFEST, _TEMPORARY, _LOCK = "index.json", "index.tmp", "writer.lock"
_DATA_FOLDER = re.compile("data-[0-9a-f]{16}")


class Model(NamedTuple):
    """Which model made the vectors."""

    name: str  # for people: where it lay
    fingerprint: str


class _Manifest(msgspec.Struct):
    format: str
    version: int
    model: str
    fingerprint: str
    dimension: int
    passages: int
    windows: int
    next_id: int
    data: str


class SavedRecords:
    """The lines of a passages.jsonl, read when asked for."""

    def __init__(self, folder: Path, count: int):
        self._offsets = _array(folder / "offsets.npy", (count + 1,), np.uint64)
        with (folder / "passages.jsonl").open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if int(self._offsets[-1]) != size:
                raise ValueError(f"passages.jsonl has {size:,} bytes and should have {int(self._offsets[-1]):,}")
            self._bytes: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, position: int) -> Record:
        return json.loads(self._bytes[int(self._offsets[position]) : int(self._offsets[position + 1])])


@contextmanager
def writing(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Hold a folder for writing an index; it is made where it is not there.

    Raises:
        InferenceError: another process writes there, it holds something else, or it cannot be written.
    """
    root = Path(folder).expanduser()
    try:
        _refuse_other_content(root)
        root.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(root / _LOCK, is_singleton=True)  # one object a folder: this process may hold it twice
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InferenceError(f"{root} is being written by another process: wait until it is done.") from None
    except OSError as error:
        raise InferenceError(f"{root} cannot be written: {error.strerror or error}.") from None
    try:
        yield root
    finally:
        lock.release()


def save(index: SearchIndex, folder: str | os.PathLike[str], model: Model) -> None:
    """Write the index; one that is there already is replaced once the new one is complete.

    Raises:
        InferenceError: as `writing`; or the index there was changed since this one was loaded from it.
    """
    with writing(folder) as root:
        found = _manifest(root) if (root / _MANIFEST).exists() else None
        _refuse_lost_changes(index, root, found)
        data = root / f"data-{secrets.token_hex(8)}"
        try:
            _remove_data_folders(root, but=found)
            manifest = _write(index, data, model)
            _replace(root / _MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        except BaseException as error:
            shutil.rmtree(data, ignore_errors=True)
            if isinstance(error, OSError):
                before = "; the index there is as before" if found else ""
                raise InferenceError(f"{root} cannot be written: {error.strerror or error}{before}.") from None
            raise
        index.saved_as = (str(root.resolve()), data.name)
        _remove_data_folders(root, but=manifest)  # readers that have the old one mapped keep it


def _refuse_lost_changes(index: SearchIndex, root: Path, found: _Manifest | None) -> None:
    if found is None:
        return
    folder, data = index.saved_as or (None, None)
    if folder != str(root.resolve()):
        logger.info("%s: replacing the index of %s passages that is there", root, f"{found.passages:,}")
    elif data != found.data:
        raise InferenceError(
            f"{root} was changed by another process since this index was loaded: load it again and repeat the changes, "
            "or save to another folder."
        )


def load(folder: str | os.PathLike[str], model: Model) -> SearchIndex:
    """The index saved in a folder.

    Raises:
        InferenceError: there is none, it is damaged or of a newer version, or another model made it.
    """
    root = Path(folder).expanduser()
    manifest = read_manifest(root)
    if manifest.fingerprint != model.fingerprint:
        raise InferenceError(
            f"{root} was made with the model {manifest.model} ({manifest.fingerprint[:12]}), not with {model.name} "
            f"({model.fingerprint[:12]}): their vectors cannot be compared. "
            "Load it with that model, or index the texts again."
        )
    try:
        index = _read(root / manifest.data, manifest)
    except FileNotFoundError:
        again = read_manifest(root)
        if again.data != manifest.data:  # replaced between the two reads
            return load(folder, model)
        raise InferenceError(f"{root} is damaged: {manifest.data} is not complete. Index the texts again.") from None
    except (OSError, ValueError, EOFError) as error:
        raise InferenceError(f"{root} is damaged: {error}. Index the texts again.") from None
    index.saved_as = (str(root.resolve()), manifest.data)
    return index


def read_manifest(folder: str | os.PathLike[str]) -> _Manifest:
    """What an index says of itself. Raises InferenceError where there is none that can be read."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        make = f"python inference.py index FILE --out {shlex.quote(str(root))}"
        raise InferenceError(f"No index: {root} {what}. Make one with `{make}`.")
    if not (root / _MANIFEST).exists():
        raise InferenceError(f"{root} holds no index: there is no {_MANIFEST} in it. Name the folder that `index` wrote.")
    return _manifest(root)


def _manifest(root: Path) -> _Manifest:
    path = root / _MANIFEST
    try:
        content = path.read_bytes()
        kind = msgspec.json.decode(content)
        if not isinstance(kind, dict) or kind.get("format") != FORMAT:
            raise InferenceError(f"{root} holds something else: its {_MANIFEST} is not of a search index.")
        if kind.get("version") != VERSION:
            raise InferenceError(f"{root} is an index of version {kind.get('version')}; this program reads {VERSION}.")
        manifest = msgspec.convert(kind, _Manifest)
    except (OSError, ValueError) as error:
        if isinstance(error, InferenceError):
            raise
        raise InferenceError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not _DATA_FOLDER.fullmatch(manifest.data):
        raise InferenceError(f"{path} is damaged: data is {manifest.data!r:.60}.")
    return manifest


def _remove_data_folders(root: Path, but: _Manifest | None) -> None:
    for path in _data_folders(root):
        if but is None or path.name != but.data:
            shutil.rmtree(path, ignore_errors=True)


def _data_folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if _DATA_FOLDER.fullmatch(path.name) and path.is_dir()]


def _refuse_other_content(root: Path) -> None:
    """Raises InferenceError where a folder holds what is not of an index: nothing of anybody else is ever overwritten."""
    if not root.exists():
        return
    if not root.is_dir():
        raise InferenceError(f"{root} is not a folder: name another one for the index.")
    if (root / _MANIFEST).exists():
        _manifest(root)
        return
    own = {_LOCK, _TEMPORARY, *(path.name for path in _data_folders(root))}
    other = sorted(path.name for path in root.iterdir() if path.name not in own)
    if other:
        raise InferenceError(f"{root} holds something else ({other[0]}, …): name an empty or a new folder for the index.")


# -----------------------------------------------------------------------------------------------------------
# Writing


def _write(index: SearchIndex, data: Path, model: Model) -> _Manifest:
    data.mkdir()
    kept = index.kept()
    renumbered = np.zeros(int(kept[-1]) + 1 if len(kept) else 0, np.uint32)
    renumbered[kept] = np.arange(len(kept), dtype=np.uint32)
    rows = slice(None) if index.kept_windows is None else index.kept_windows
    windows = index.windows[rows].copy()
    windows[:, 0] = renumbered[windows[:, 0]]
    np.save(data / "windows.npy", windows)
    _write_vectors(index, data, len(windows))
    _write_passages(index, data, kept.tolist())
    for path in [*data.iterdir(), data]:
        _flush(path)
    return _Manifest(FORMAT, VERSION, *model, index.vectors.dimension, len(kept), len(windows), index.next_id, data.name)


def _write_vectors(index: SearchIndex, data: Path, count: int) -> None:
    shapes = {"exact": (count, index.vectors.dimension), "codes": (count, index.vectors.dimension), "scales": (count,)}
    types = {"exact": np.float32, "codes": np.int8, "scales": np.float32}
    files = {name: (data / f"{name}.npy").open("wb") for name in shapes}
    try:
        for name, file in files.items():
            header = {"descr": np.dtype(types[name]).str, "fortran_order": False, "shape": shapes[name]}
            np.lib.format.write_array_header_1_0(file, header)
        first = 0
        for block in index.vectors.blocks():
            end = first + len(block.scales)
            rows = slice(None) if index.kept_windows is None else index.kept_windows[first:end]
            for file, array in zip(files.values(), block, strict=True):
                file.write(np.ascontiguousarray(array[rows]).data)
            first = end
    finally:
        for file in files.values():
            file.close()


def _write_passages(index: SearchIndex, data: Path, kept: list[int]) -> None:
    offsets = np.zeros(len(kept) + 1, np.uint64)
    with (data / "passages.jsonl").open("wb") as file:
        for line, number in enumerate(kept):
            file.write(json.dumps(index.record(number), ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
            offsets[line + 1] = file.tell()
    np.save(data / "offsets.npy", offsets)


def _replace(path: Path, content: bytes) -> None:
    """A file's content, changed in one step that a crash or power cut comes before or after."""
    temporary = path.with_name(_TEMPORARY)
    temporary.write_bytes(content)
    _flush(temporary)
    os.replace(temporary, path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Have a file or folder on the disk and not in a buffer only."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folder
    # A file that is open for reading only can be flushed everywhere but on Windows.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -----------------------------------------------------------------------------------------------------------
# Reading


def _read(data: Path, manifest: _Manifest) -> SearchIndex:
    count, dimension = manifest.windows, manifest.dimension
    part = Part(
        _array(data / "exact.npy", (count, dimension), np.float32),
        _array(data / "codes.npy", (count, dimension), np.int8),
        _array(data / "scales.npy", (count,), np.float32),
    )
    windows = _array(data / "windows.npy", (count, 3), np.uint32)
    if count and int(windows[:, 0].max()) >= manifest.passages:
        raise ValueError("windows.npy names passages that are not there")
    records = SavedRecords(data, manifest.passages)
    return SearchIndex(records, windows, Vectors([part] if count else []), manifest.next_id)


def _array(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array mapped from disk. Raises ValueError where it has another shape or type, or the file is too short."""
    array = np.load(path, mmap_mode="r" if shape[0] else None, allow_pickle=False)
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{path.name} holds {array.shape} of {array.dtype}, not {shape} of {np.dtype(dtype)}")
    return array
