"""KorQuAD files to articles, in parallel worker processes.

    from dataloader import load_entire_dataset
    dataset = load_entire_dataset("data/KorQuAD")          # or one JSON file or archive, KorQuAD 1.0 or 2.1
    dataset["total_articles"], dataset["total_qas"]
    load_entire_dataset("data/KorQuAD", fields="windows")  # what training reads: a fraction of the time and memory

Published archives are read as they are; a file in one has the path `KorQuAD_2.1_train_00.zip/korquad2.1_train_00.json`.
With `fields`, workers decode no more than is asked for and return PreparedArticles (dataloader/prepare.py). Without, both
published shapes become one. An article is

    {"title": str, "url": str,
     "context": str,            # KorQuAD 2.1: the page (HTML); 1.0: "" (its paragraphs stand in "paragraphs")
     "paragraphs": [str, ...],  # 1.0: each paragraph's text; 2.1: the page alone
     "qas": [{"id": str, "question": str,
              "answer": dict | list | str,   # as the file has it
              "answer_start": int | None,    # of the (first) answer, in characters of this context
              "context": str}, ...]}         # the very string of "paragraphs", not a copy
"""

import codecs
import json
import logging
import multiprocessing
import os
import re
import signal
import sys
import types
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypedDict

import msgspec

from dataloader.prepare import DEFAULT_WINDOW, prepare_article

logger = logging.getLogger(__name__)

# Below this many bytes in all, starting worker processes takes longer than reading the files.
SMALL_JOB_BYTES = 20_000_000

# Everything that a file holds, but for the second copy of each page.
WHOLE = "all"

# Folders of JSON files and the archives beside them, in the order in which they are looked for.
_TRAIN, _DEV = "KorQuAD_2.1_train_*", "KorQuAD_2.1_dev_*"
# A member of an archive is refused where it is larger than this and would grow by more than that on reading: KorQuAD's
# grow by ten, a bomb by a thousand.
_SUSPECT_BYTES, _SUSPECT_RATIO = 200_000_000, 200


class DatasetError(ValueError):
    """Files that cannot be used; the message lists each with the place in it and what is wrong there."""


class WorkerError(RuntimeError):
    """A process that loads files died; the message says what is left and what to do."""


class _Misshapen(ValueError):
    """One place of one file: `$.data[3].qas[0].answer: what is wrong`."""


# --- finding files ------------------------------------------------------------------------------------------


def get_all_json_files(root: str | Path) -> list[Path]:
    """The JSON files of a dataset, in folders and in archives, in natural order (2 before 10).

    `root` is one JSON file or .zip archive, a folder that holds `KorQuAD_2.1_train_*/*.json` or
    `KorQuAD_2.1_train_*.zip` (or, where it has none of these, the same with `dev`), or a folder of `*.json` and
    `*.zip`. Training files are never mixed with development files. Of an archive and what was unpacked from it
    beside it, each member counts once: the unpacked file. Inside an archive, a path continues: `a.zip/b.json`.

    Raises FileNotFoundError where `root` does not exist and DatasetError where it holds no JSON file.
    """
    root = _existing(Path(root))
    if root.is_file():
        return sorted(_members(root), key=_natural_order) if _is_archive(root) else [root]
    for names in (_TRAIN, _DEV, "*"):
        folders = [root] if names == "*" else _named(root, names)
        files = [file for folder in folders for file in _visible(_named(folder, "*.json"))]
        archived = [member for archive in _visible(_named(root, f"{names}.zip")) for member in _members(archive)]
        unpacked = set(files)
        files += [member for member in archived if unpacked.isdisjoint(_unpacked_places(member))]
        if files:
            if names == _TRAIN and _named(root, _DEV):
                logger.info("%s: reading its training files; its development files are left out", root)
            return sorted(files, key=_natural_order)
    raise DatasetError(
        f"no JSON file in {root}: looked for {_TRAIN}/*.json, {_DEV}/*.json, *.json and archives (.zip) of them."
        f" Put the published archives there, or give the folder that holds the files."
    )


def _existing(root: Path) -> Path:
    """`root`, or the path on disk that differs from it in the writing of Hangul alone (macOS writes NFD)."""
    for path in (root, *(Path(unicodedata.normalize(form, str(root))) for form in ("NFC", "NFD"))):
        if path.exists():
            return path
    raise FileNotFoundError(
        f"--dataset_root {root} does not exist (looked in {Path.cwd()}). Give the folder that holds"
        f" KorQuAD_2.1_train_00 and its siblings or their archives, a folder of *.json, or one KorQuAD JSON file."
    )


def _named(folder: Path, pattern: str) -> list[Path]:
    """What a folder holds by such a name; an ordinary file holds nothing. A folder that may not be read is an error."""
    try:
        return [folder / name for name in os.listdir(folder) if fnmatchcase(name, pattern)]
    except NotADirectoryError:
        return []
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read: {error.strerror}") from None


def _visible(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.is_file() and not path.name.startswith(".")]


def _natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that compares runs of digits as numbers; the text itself decides between 01 and 1.

    A file in an archive sorts as if unpacked to the archive's folder of the same name.
    """
    parts = re.split(r"([0-9]+)", str(_unpacked_places(path)[0]))
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts]


# --- archives -----------------------------------------------------------------------------------------------


# What zipfile raises where the list of files is damaged: a version or a flag that it does not know, a name that is no text.
DAMAGED_ARCHIVE = (zipfile.BadZipFile, RuntimeError, ValueError)


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


def archive_of(path: Path) -> Path | None:
    """The archive that a path leads into, or None for an ordinary path."""
    return next((parent for parent in path.parents if _is_archive(parent)), None)


def _members(archive: Path) -> list[Path]:
    """The JSON files in an archive; the archive itself where it cannot be read, so that loading it says why."""
    try:
        infos = _infos(archive)
    except (OSError, *DAMAGED_ARCHIVE):
        return [archive]
    members = [path for path in infos if path.suffix.lower() == ".json" and not path.name.startswith(".")]
    members = [path for path in members if "__MACOSX" not in path.parts]
    if not members:
        logger.warning("%s holds no JSON file: left out", archive)
    return members


def _infos(archive: Path) -> dict[Path, zipfile.ZipInfo]:
    with zipfile.ZipFile(archive) as opened:
        return {Path(f"{archive}/{info.filename}"): info for info in opened.infolist() if not info.is_dir()}


def _unpacked_places(path: Path) -> list[Path]:
    """Where the file at a path in an archive lies once unpacked beside it; for an ordinary path, the path."""
    archive = archive_of(path)
    if archive is None:
        return [path]
    name, folder = path.relative_to(archive), archive.with_suffix("")
    own = name.relative_to(folder.name) if name.parts[0] == folder.name and len(name.parts) > 1 else name
    return [folder / own, folder / name, archive.parent / name]


def _size(path: Path) -> int:
    """Bytes of a file, also of one in an archive; 0 where that cannot be told."""
    try:
        archive = archive_of(path)
        return path.stat().st_size if archive is None else _infos(archive)[path].file_size
    except (OSError, KeyError, *DAMAGED_ARCHIVE):
        return 0


# In a worker process: what its last file was read into. The memory of 134 MB takes longer to get than to fill.
_buffer: bytearray | None = None


def _begin_worker() -> None:
    global _buffer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the one that asks ends the others
    _buffer = bytearray()


def _read_again(path: Path, buffer: bytearray) -> memoryview:
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if len(buffer) < size:
            buffer.extend(bytes(size - len(buffer)))
        view, filled = memoryview(buffer)[:size], 0
        while filled < size and (count := file.readinto(view[filled:])):
            filled += count
    return view[:filled]


def _read(path: Path) -> bytes | memoryview:
    """The content of a file, also of one in an archive."""
    archive = archive_of(path)
    if archive is None and not _is_archive(path):
        return path.read_bytes() if _buffer is None else _read_again(path, _buffer)
    try:
        return _read_member(archive or path, path)
    except (*DAMAGED_ARCHIVE, zlib.error, EOFError) as error:
        with (archive or path).open("rb") as file:
            _refuse_pointer(file.read(len(_LFS_POINTER)))
        raise _Misshapen(f"the archive cannot be read ({error}); fetch it again") from None


_LFS_POINTER = b"version https://git-lfs"


def _refuse_pointer(content: bytes) -> None:
    if content.startswith(_LFS_POINTER):
        raise _Misshapen("is a Git LFS pointer, not the file itself; fetch it with `python -m dataloader.download`")


def _read_member(archive: Path, path: Path) -> bytes:
    with zipfile.ZipFile(archive) as opened:
        info = _infos(archive).get(path)
        if info is None:
            raise FileNotFoundError(path)
        if info.file_size > max(_SUSPECT_BYTES, _SUSPECT_RATIO * info.compress_size):
            raise _Misshapen(f"would grow from {info.compress_size:,} to {info.file_size:,} bytes: no KorQuAD file")
        return opened.read(info)


# --- one file -----------------------------------------------------------------------------------------------


def load_json_file(
    path: str | Path, keep_raw_html: bool = False, fields: str = WHOLE, window: int = DEFAULT_WINDOW
) -> dict[str, Any]:
    """Read one KorQuAD file: `{"file": str, "version": str, "articles": [...]}` (articles: see the module).

    `fields` names what the articles hold: "all", or the PreparedArticles of "pairs", "windows" (of `window`
    characters) or "lengths"; what these do not need is skipped unread, whatever it is. `raw_html`, KorQuAD
    2.1's second copy of each page, is skipped because nothing reads it; `keep_raw_html` keeps it as the whole
    article's "raw_html". A UTF-8 byte-order mark is accepted.

    Raises DatasetError naming path and place for what is not UTF-8, not JSON or not KorQuAD's shape,
    FileNotFoundError where there is no such file, and ValueError for other `fields`.
    """
    _check_fields(fields, window)
    path = Path(path)
    shape = _RawFile if keep_raw_html else _SHAPES[fields]
    try:
        content = _parse(_read(path), shape)
        data = _member(content, "data", list, "$")
        version = content.get("version", "")
        if not isinstance(version, str | int | float):
            raise _Misshapen(f"$.version: is {_kind(version)}, should be text")
        articles: list[Any] = [_article(item, f"$.data[{i}]", keep_raw_html) for i, item in enumerate(data)]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; give a KorQuAD JSON file") from None
    except (_Misshapen, OSError) as error:
        raise DatasetError(f"{path}: {_reason(error)}") from None
    if fields != WHOLE:
        articles = [prepare_article(article, fields, window) for article in articles]
    return {"file": str(path), "version": str(version), "articles": articles}


def _check_fields(fields: str, window: int) -> None:
    if fields not in _SHAPES:
        raise ValueError(f"fields is {fields!r}: give one of {', '.join(_SHAPES)}")
    if window < 1:
        raise ValueError(f"window is {window}: give 1 character or more")


def _reason(error: Exception) -> str:
    return f"cannot be read: {error.strerror or error}" if isinstance(error, OSError) else str(error)


# What is decoded, for each of `fields`: msgspec skips the keys that a shape does not name. `Any` is looked at by
# `_article`, which knows how to say what is wrong.


class _Answer(TypedDict, total=False):
    text: Any
    answer_start: Any


_Answers = _Answer | list[_Answer | str] | str


class _Question(TypedDict, total=False):
    id: Any
    question: Any
    answer: _Answers
    answers: _Answers


class _PairsParagraph(TypedDict, total=False):
    qas: list[_Question]


class _Paragraph(_PairsParagraph, total=False):
    context: Any


class _PairsArticle(TypedDict, total=False):
    title: Any
    qas: list[_Question]
    paragraphs: list[_PairsParagraph]


class _PageArticle(TypedDict, total=False):
    title: Any
    context: Any
    qas: list[_Question]
    paragraphs: list[_Paragraph]


class _WholeArticle(TypedDict, total=False):
    title: Any
    url: Any
    context: Any
    qas: Any
    paragraphs: Any


class _RawArticle(_WholeArticle, total=False):
    raw_html: Any


class _PairsFile(TypedDict, total=False):
    version: Any
    data: list[_PairsArticle]


class _PageFile(TypedDict, total=False):
    version: Any
    data: list[_PageArticle]


class _WholeFile(TypedDict, total=False):
    version: Any
    data: list[_WholeArticle]


class _RawFile(TypedDict, total=False):
    version: Any
    data: list[_RawArticle]


_SHAPES: dict[str, Any] = {WHOLE: _WholeFile, "pairs": _PairsFile, "windows": _PageFile, "lengths": _PageFile}


def _parse(content: bytes | memoryview, shape: Any) -> Any:
    """Decode what `shape` names. What the fast decoder refuses, Python's own takes or names line and column."""
    bom = len(codecs.BOM_UTF8) if content[:3] == codecs.BOM_UTF8 else 0
    try:
        return msgspec.json.decode(memoryview(content)[bom:], type=shape)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _parse_with_reasons(bytes(content), bom)


def _parse_with_reasons(content: bytes, bom: int) -> Any:
    _refuse_pointer(content)
    try:
        text = content[bom:].decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte {error.start + bom}"
        raise _Misshapen(f"{place}: is not UTF-8 ({error.reason}); save the file as UTF-8") from None
    if not text.strip():
        raise _Misshapen("$: the file is empty")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _Misshapen(f"line {error.lineno}, column {error.colno}: is not JSON ({error.msg})") from None
    except RecursionError:
        raise _Misshapen("$: is nested too deeply to be a KorQuAD file") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise _Misshapen(f"$: is not usable JSON ({error})") from None


def _article(item: Any, place: str, keep_raw_html: bool) -> dict[str, Any]:
    """One element of `data` in the common shape; `paragraphs` marks KorQuAD 1.0, `qas` 2.1."""
    if isinstance(item, dict) and "paragraphs" in item:
        sources = _numbered(_member(item, "paragraphs", list, place), f"{place}.paragraphs")
        page = ""
    else:
        _member(item, "qas", list, place)
        sources = [(item, place)]
        page = _text(item, "context", place)
    title, url = _text(item, "title", place), _text(item, "url", place)
    article: dict[str, Any] = {"title": title, "url": url, "context": page, "paragraphs": [], "qas": []}
    for source, source_place in sources:
        qas = _member(source, "qas", list, source_place)
        paragraph = _text(source, "context", source_place)
        article["paragraphs"].append(paragraph)
        article["qas"] += [_qa(qa, where, paragraph) for qa, where in _numbered(qas, f"{source_place}.qas")]
    if keep_raw_html:
        article["raw_html"] = _text(item, "raw_html", place)
    return article


def _qa(qa: Any, place: str, context: str) -> dict[str, Any]:
    question = _member(qa, "question", str, place)
    name = "answers" if "answers" in qa and "answer" not in qa else "answer"
    answer = _member(qa, name, (dict, list, str), place)
    starts = [_answer_start(one, where) for one, where in _each_answer(answer, f"{place}.{name}")]
    return {
        "id": _identifier(qa, place),
        "question": question,
        "answer": answer,
        "answer_start": starts[0] if starts else None,
        "context": context,
    }


def _each_answer(answer: dict | list | str, place: str) -> list[tuple[Any, str]]:
    return _numbered(answer, place) if isinstance(answer, list) else [(answer, place)]


def _answer_start(answer: Any, place: str) -> int | None:
    """Check one answer's shape; its place in the context where the file gives one."""
    if isinstance(answer, str):
        return None
    _member(answer, "text", str, place)
    start = answer.get("answer_start")
    if start is not None and (isinstance(start, bool) or not isinstance(start, int)):
        raise _Misshapen(f"{place}.answer_start: is {_kind(start)}, should be a whole number")
    return start


def _identifier(qa: dict, place: str) -> str:
    value = qa.get("id", "")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _Misshapen(f"{place}.id: is {_kind(value)}, should be text or a number")
    return str(value)


def _numbered(items: list, place: str) -> list[tuple[Any, str]]:
    return [(item, f"{place}[{i}]") for i, item in enumerate(items)]


def _text(item: dict, name: str, place: str) -> str:
    """An optional text: "" where it is missing or null."""
    return "" if item.get(name) is None else _member(item, name, str, place)


def _member(item: Any, name: str, wanted: type | tuple[type, ...], place: str) -> Any:
    """`item[name]`, checked to be there and of the type."""
    if not isinstance(item, dict):
        raise _Misshapen(f"{place}: is {_kind(item)}, should be an object with {name!r}")
    if name not in item:
        raise _Misshapen(f"{place}.{name}: is missing")
    if not isinstance(item[name], wanted):
        kinds = wanted if isinstance(wanted, tuple) else (wanted,)
        should = " or ".join(_KINDS[kind] for kind in kinds)
        raise _Misshapen(f"{place}.{name}: is {_kind(item[name])}, should be {should}")
    return item[name]


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true/false",
    int: "a number",
    float: "a number",
}


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS[type(value)]


# --- many files ---------------------------------------------------------------------------------------------


def load_files_parallel(
    files: Sequence[str | Path],
    num_workers: int | None = None,
    verbose: bool = True,
    skip_bad_files: bool = False,
    fields: str = WHOLE,
    window: int = DEFAULT_WINDOW,
) -> list[dict[str, Any]]:
    """Load files in worker processes; the results of `load_json_file` in the order of `files`.

    `num_workers`: None takes the processors there are; 0 or 1 loads in this process, as does one file or less
    than SMALL_JOB_BYTES in all. Workers are spawned, never forked, so this works after CUDA was initialised,
    in a notebook and in a script without a `__main__` guard. `verbose` shows a progress bar.

    Raises DatasetError listing every broken file. With `skip_bad_files` these are logged instead, unless no
    other file is left, and each stands in the result as `{"file", "version": "", "articles": [], "skipped":
    reason}`. Raises WorkerError where a worker process dies.
    """
    if num_workers is not None and num_workers < 0:
        raise ValueError(f"num_workers is {num_workers}: give 0 or more, or None for all processors")
    _check_fields(fields, window)
    paths = [Path(file) for file in files]
    workers = min(_processors() if num_workers is None else num_workers, len(paths))
    if total_bytes(paths) < SMALL_JOB_BYTES:
        workers = 1
    asked = {} if fields == WHOLE else {"fields": fields, "window": window}
    with _progress(len(paths), verbose) as bar:
        results = _load_in_pool(paths, asked, workers, bar) if workers > 1 else _load_here(paths, asked, bar)
    broken = [result["skipped"] for result in results if "skipped" in result]
    if broken:
        report_broken(broken, len(paths), skip_bad_files)
    return results


def report_broken(reasons: Sequence[str], n_files: int, skip_bad_files: bool) -> None:
    """Log the files that are left out. Raises DatasetError where they are not to be, or where no other file is left."""
    listed = "\n  ".join([f"{len(reasons)} of {n_files} files cannot be used:", *reasons])
    if len(reasons) == n_files:
        raise DatasetError(f"{listed}\nNothing could be read: repair the files, or name others.")
    if not skip_bad_files:
        raise DatasetError(f"{listed}\nRepair or remove them, or go on without them: --skip_bad_files.")
    logger.warning("%s\nGoing on without them (--skip_bad_files).", listed)


def _load_or_explain(file: Path, **asked: Any) -> dict[str, Any]:
    """What a worker runs. A broken file becomes a value, so that one file cannot stop the others."""
    try:
        return load_json_file(file, **asked)
    except (DatasetError, FileNotFoundError) as error:
        return {"file": str(file), "version": "", "articles": [], "skipped": str(error)}


def _load_here(files: list[Path], asked: dict[str, Any], bar: Any) -> list[dict[str, Any]]:
    results = []
    for file in files:
        results.append(_load_or_explain(file, **asked))
        bar.update()
    return results


def _load_in_pool(files: list[Path], asked: dict[str, Any], workers: int, bar: Any) -> list[dict[str, Any]]:
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker) as pool:
        with _plain_main_module():
            futures = [pool.submit(_load_or_explain, file, **asked) for file in files]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        except BrokenProcessPool:
            raise WorkerError(_unfinished(files, futures)) from None
        except BaseException:  # Ctrl-C: do not read the files still waiting
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _unfinished(files: list[Path], futures: list[Future]) -> str:
    left = [str(file) for file, future in zip(files, futures, strict=True) if future.exception() is not None]
    return (
        f"a process that loads files ended abruptly, most often because memory ran out; {len(left)} of"
        f" {len(files)} files were not loaded, the first is {left[0]}. Try again with a smaller num_workers"
        f" (1 loads in this process), or fewer files."
    )


@contextmanager
def _plain_main_module() -> Iterator[None]:
    """Hide the running script from processes spawned meanwhile.

    A spawned process otherwise imports the script again, which costs seconds where that imports torch and
    starts the work anew where it has no `__main__` guard. The workers need this module alone.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _processors() -> int:
    """Processors this process may use, which a container limits below what the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_bytes(files: Sequence[Path]) -> int:
    """Bytes of the files once unpacked, members of archives included."""
    return sum(_size(file) for file in files)


def _progress(total: int, verbose: bool) -> Any:
    if not verbose or total < 2:
        return _NoProgress()
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="Loading", unit="file")


class _NoProgress(nullcontext):
    """In place of a progress bar, whose import takes a tenth of a second."""

    def __enter__(self) -> "_NoProgress":
        return self

    def update(self) -> None:
        """Nothing to show."""


# --- the whole dataset --------------------------------------------------------------------------------------


def accumulate_all_data(file_results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the results of `load_files_parallel` into one dataset, in their order.

    Returns `files` and `versions` (one entry for each file loaded), `articles`, `total_files`,
    `total_articles`, `total_qas`, and `skipped`: the reasons why files were left out.
    """
    loaded = [result for result in file_results if "skipped" not in result]
    articles = [article for result in loaded for article in result["articles"]]
    return {
        "files": [result["file"] for result in loaded],
        "versions": [result["version"] for result in loaded],
        "articles": articles,
        "total_files": len(loaded),
        "total_articles": len(articles),
        "total_qas": sum(len(article["qas"]) for article in articles),
        "skipped": [result["skipped"] for result in file_results if "skipped" in result],
    }


def load_entire_dataset(
    dataset_root: str | Path,
    num_workers: int | None = None,
    verbose: bool = True,
    skip_bad_files: bool = False,
    fields: str = WHOLE,
    window: int = DEFAULT_WINDOW,
) -> dict[str, Any]:
    """Find, load and join all files under `dataset_root`: the dict of `accumulate_all_data`.

    `fields` says what the caller needs of each article: "all" (the default), or what dataloader/prepare.py
    prepares in the workers: "pairs", "windows" (of at most `window` characters) or "lengths"; the dict then
    has `fields`, and `window` for windows. dataloader/cache.py keeps such a dataset on disk.

    The result is the same whatever the number of workers, from folders or from archives. `verbose` shows a
    progress bar and logs the totals. Raises what `get_all_json_files` and `load_files_parallel` raise.
    """
    files = get_all_json_files(dataset_root)
    results = load_files_parallel(files, num_workers, verbose, skip_bad_files, fields, window)
    dataset = accumulate_all_data(results)
    if fields != WHOLE:
        dataset["fields"] = fields
    if fields == "windows":
        dataset["window"] = window
    if verbose:
        log_totals(dataset_root, dataset)
    return dataset


def log_totals(dataset_root: str | Path, dataset: dict[str, Any]) -> None:
    """Log how many files, articles and pairs a dataset has."""
    totals = (f"{dataset[name]:,}" for name in ("total_files", "total_articles", "total_qas"))
    logger.info("%s: %s files, %s articles, %s question-answer pairs", dataset_root, *totals)
