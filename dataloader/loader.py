"""KorQuAD files to articles, in parallel worker processes.

    from dataloader import load_entire_dataset
    dataset = load_entire_dataset("data/KorQuAD")          # or one JSON file, KorQuAD 1.0 or 2.1
    dataset["total_articles"], dataset["total_qas"]

Both published shapes become one. An article is

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
import sys
import types
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# Below this many bytes in all, starting worker processes takes longer than reading the files.
SMALL_JOB_BYTES = 20_000_000

_TRAIN_FOLDERS = "KorQuAD_2.1_train_*/*.json"
_DEV_FOLDERS = "KorQuAD_2.1_dev_*/*.json"


class DatasetError(ValueError):
    """Files that cannot be used; the message lists each with the place in it and what is wrong there."""


class WorkerError(RuntimeError):
    """A process that loads files died; the message says what is left and what to do."""


class _Misshapen(ValueError):
    """One place of one file: `$.data[3].qas[0].answer: what is wrong`."""


# --- finding files ------------------------------------------------------------------------------------------


def get_all_json_files(root: str | Path) -> list[Path]:
    """The JSON files of a dataset in natural order (2 before 10).

    `root` is one JSON file, a folder that holds `KorQuAD_2.1_train_*/*.json` (or, where it has none of these,
    `KorQuAD_2.1_dev_*/*.json`), or a folder of `*.json`. Training folders are never mixed with development
    folders.

    Raises FileNotFoundError where `root` does not exist and DatasetError where it holds no JSON file.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(
            f"dataset_root {root} does not exist (looked in {Path.cwd()}). Give the folder that holds"
            f" KorQuAD_2.1_train_00 and its siblings, a folder of *.json, or one KorQuAD JSON file."
        )
    if root.is_file():
        return [root]
    for pattern in (_TRAIN_FOLDERS, _DEV_FOLDERS, "*.json"):
        files = [path for path in root.glob(pattern) if path.is_file() and not path.name.startswith(".")]
        if files:
            if pattern == _TRAIN_FOLDERS and any(root.glob(_DEV_FOLDERS)):
                logger.info("%s: reading its training folders; its development folders are left out", root)
            return sorted(files, key=_natural_order)
    raise DatasetError(
        f"no JSON file in {root}: looked for {_TRAIN_FOLDERS}, {_DEV_FOLDERS} and *.json."
        f" Unpack the archives there, or give the folder that holds the files."
    )


def _natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that compares runs of digits as numbers; the text itself decides between 01 and 1."""
    parts = re.split(r"([0-9]+)", str(path))
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts]


# --- one file -----------------------------------------------------------------------------------------------


def load_json_file(path: str | Path, keep_raw_html: bool = False) -> dict[str, Any]:
    """Read one KorQuAD file: `{"file": str, "version": str, "articles": [...]}` (articles: see the module).

    `raw_html`, KorQuAD 2.1's second copy of each page, is dropped here, in the worker, because nothing reads
    it; `keep_raw_html` keeps it as the article's "raw_html". A UTF-8 byte-order mark is accepted.

    Raises DatasetError naming path and place for what is not UTF-8, not JSON or not KorQuAD's shape, and
    FileNotFoundError where there is no such file.
    """
    path = Path(path)
    try:
        content = _parse(path.read_bytes())
        data = _member(content, "data", list, "$")
        version = content.get("version", "")
        if not isinstance(version, str | int | float):
            raise _Misshapen(f"$.version: is {_kind(version)}, should be text")
        articles = [_article(item, f"$.data[{i}]", keep_raw_html) for i, item in enumerate(data)]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; give a KorQuAD JSON file") from None
    except (_Misshapen, OSError) as error:
        raise DatasetError(f"{path}: {_reason(error)}") from None
    return {"file": str(path), "version": str(version), "articles": articles}


def _reason(error: Exception) -> str:
    return f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)


def _parse(content: bytes) -> Any:
    bom = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
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
) -> list[dict[str, Any]]:
    """Load files in worker processes; the results of `load_json_file` in the order of `files`.

    `num_workers`: None takes the processors there are; 0 or 1 loads in this process, as does one file or less
    than SMALL_JOB_BYTES in all. Workers are spawned, never forked, so this works after CUDA was initialised,
    in a notebook and in a script without a `__main__` guard. `verbose` shows a progress bar.

    Raises DatasetError listing every broken file. With `skip_bad_files` these are logged instead, and each
    stands in the result as `{"file", "version": "", "articles": [], "skipped": reason}`. Raises WorkerError
    where a worker process dies.
    """
    if num_workers is not None and num_workers < 0:
        raise ValueError(f"num_workers is {num_workers}: give 0 or more, or None for all processors")
    paths = [Path(file) for file in files]
    workers = min(_processors() if num_workers is None else num_workers, len(paths))
    if _total_bytes(paths) < SMALL_JOB_BYTES:
        workers = 1
    with _progress(len(paths), verbose) as bar:
        results = _load_in_pool(paths, workers, bar) if workers > 1 else _load_here(paths, bar)
    broken = [result["skipped"] for result in results if "skipped" in result]
    if broken:
        listed = "\n  ".join([f"{len(broken)} of {len(paths)} files cannot be used:", *broken])
        if not skip_bad_files:
            raise DatasetError(f"{listed}\nRepair or remove them, or go on without them: skip_bad_files.")
        logger.warning("%s\nGoing on without them (skip_bad_files).", listed)
    return results


def _load_or_explain(file: Path) -> dict[str, Any]:
    """What a worker runs. A broken file becomes a value, so that one file cannot stop the others."""
    try:
        return load_json_file(file)
    except (DatasetError, FileNotFoundError) as error:
        return {"file": str(file), "version": "", "articles": [], "skipped": str(error)}


def _load_here(files: list[Path], bar: Any) -> list[dict[str, Any]]:
    results = []
    for file in files:
        results.append(_load_or_explain(file))
        bar.update()
    return results


def _load_in_pool(files: list[Path], workers: int, bar: Any) -> list[dict[str, Any]]:
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        with _plain_main_module():
            futures = [pool.submit(_load_or_explain, file) for file in files]
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


def _total_bytes(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.exists())


def _progress(total: int, verbose: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="Loading", unit="file", disable=not verbose or total < 2)


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
) -> dict[str, Any]:
    """Find, load and join all files under `dataset_root`: the dict of `accumulate_all_data`.

    The result is the same whatever the number of workers. `verbose` shows a progress bar and logs the totals.
    Raises what `get_all_json_files` and `load_files_parallel` raise.
    """
    files = get_all_json_files(dataset_root)
    dataset = accumulate_all_data(load_files_parallel(files, num_workers, verbose, skip_bad_files))
    if verbose:
        logger.info(
            "%s: %s files, %s articles, %s question-answer pairs",
            dataset_root,
            *(f"{dataset[name]:,}" for name in ("total_files", "total_articles", "total_qas")),
        )
    return dataset
