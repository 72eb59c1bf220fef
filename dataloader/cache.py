"""Prepared datasets kept on disk: a second run on unchanged files has its pairs in under a second.

    dataset = load_cached_dataset("data/KorQuAD", fields="windows", window=384)

One file for each root and kind of dataset, under `XDG_CACHE_HOME`. Its header names all that the content follows from: the
path, size and time of every file, the settings, and the code that reads and cleans. Where any of these differs, or the file
is torn or not ours, the dataset is loaded anew and the file replaced, in one step: two runs at once each find a whole file
or none. The content is MessagePack, checked against its hash and its types: data only.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import turbohtml

from dataloader import cleaning, loader, prepare
from dataloader.loader import get_all_json_files, load_entire_dataset
from dataloader.prepare import DEFAULT_WINDOW, PreparedArticle

logger = logging.getLogger(__name__)

MAGIC = b"KORQUAD-PREPARED-1\n"


class _Content(TypedDict):
    """The dict of `load_entire_dataset` with prepared articles."""

    files: list[str]
    versions: list[str]
    articles: list[PreparedArticle]
    total_files: int
    total_articles: int
    total_qas: int
    skipped: list[str]


def load_cached_dataset(
    dataset_root: str | Path,
    num_workers: int | None = None,
    verbose: bool = True,
    skip_bad_files: bool = False,
    fields: str = "windows",
    window: int = DEFAULT_WINDOW,
) -> dict[str, Any]:
    """`load_entire_dataset` of prepared articles ("pairs", "windows" or "lengths"), from the cache where it is there.

    A cache that cannot be written is logged and does no harm. Raises what `load_entire_dataset` raises, and ValueError
    for other `fields`.
    """
    if fields not in prepare.PREPARED_FIELDS:
        raise ValueError(f"fields is {fields!r}: what is cached is one of {', '.join(prepare.PREPARED_FIELDS)}")
    settings = {"fields": fields, "window": window if fields == "windows" else None, "skip_bad_files": skip_bad_files}
    key = _key(dataset_root, settings)
    place = cache_file(dataset_root, fields, window)
    content = _read(place, key)
    if content is not None:
        _say_what_was_found(dataset_root, content, place, verbose)
    else:
        content = load_entire_dataset(dataset_root, num_workers, verbose, skip_bad_files, fields, window)
        if _key(dataset_root, settings) == key:  # else a file changed while it was read
            _write(place, key, {name: content[name] for name in _Content.__annotations__})
    content["fields"] = fields
    if fields == "windows":
        content["window"] = window
    return content


def cache_file(dataset_root: str | Path, fields: str, window: int = DEFAULT_WINDOW) -> Path:
    """Where the dataset of this root and kind is kept, whether it is there or not."""
    from config import cache_folder  # here for the same reason as in `_sha256`

    kind = fields if fields != "windows" else f"windows-{window}"
    root = _sha256(os.fsencode(Path(dataset_root).absolute())).hex()[:16]
    return cache_folder() / f"pairs-{root}-{kind}.msgpack"


def _key(dataset_root: str | Path, settings: dict[str, Any]) -> bytes:
    """All that the content follows from, as one line of JSON."""
    files = [[str(path.absolute()), *_state(path)] for path in get_all_json_files(dataset_root)]
    code = _sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in (loader, cleaning, prepare)))
    versions = {"turbohtml": turbohtml.__version__, "msgspec": msgspec.__version__}
    key = {"root": str(dataset_root), "settings": settings, "files": files, "code": code.hex(), "versions": versions}
    return json.dumps(key, sort_keys=True).encode() + b"\n"


def _sha256(content: bytes | memoryview) -> bytes:
    # Imported here, as tempfile is below: each process that loads files imports this package, and never comes here.
    import hashlib

    return hashlib.sha256(content).digest()


def _state(path: Path) -> tuple[int, int]:
    """Size and time of change of a file, or of the archive that it is in."""
    status = (loader.archive_of(path) or path).stat()
    return status.st_size, status.st_mtime_ns


def _say_what_was_found(dataset_root: str | Path, content: dict[str, Any], place: Path, verbose: bool) -> None:
    if content["skipped"]:
        listed = "\n  ".join(content["skipped"])
        logger.warning("left out, as when %s was written (--skip_bad_files):\n  %s", place, listed)
    if verbose:
        loader.log_totals(f"{dataset_root} (prepared earlier: {place})", content)


def _read(place: Path, key: bytes) -> dict[str, Any] | None:
    """The content, or None where it is not there, not ours, torn, or of other files, settings or code."""
    try:
        found = memoryview(place.read_bytes())
    except OSError:
        return None
    header = MAGIC + _sha256(key)
    if found[: len(header)] != header:
        return None
    content = found[len(header) + 32 :]
    if found[len(header) : len(header) + 32] != _sha256(content):
        logger.warning("%s is damaged: preparing the dataset again", place)
        return None
    try:
        return dict(msgspec.msgpack.decode(content, type=_Content))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        logger.warning("%s holds something else: preparing the dataset again", place)
        return None


def _write(place: Path, key: bytes, content: dict[str, Any]) -> None:
    """Write beside the place and rename, so that whoever reads finds a whole file or none."""
    import tempfile

    scratch = None
    try:
        packed = msgspec.msgpack.encode(content)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=f".{place.name}-", delete=False) as file:
            scratch = Path(file.name)
            for part in (MAGIC, _sha256(key), _sha256(packed), packed):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(place)
    except (OSError, UnicodeEncodeError) as error:  # an id or a path may hold what UTF-8 cannot
        logger.warning("the prepared pairs are not kept: %s cannot be written (%s)", place, error)
        if scratch:
            scratch.unlink(missing_ok=True)
