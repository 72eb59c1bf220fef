"""Saved indexes: the same results after loading; a save that fails loses nothing; what is not ours is left alone."""

import json
import logging
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search import storage
from search.errors import InferenceError
from search.index import SearchIndex
from search.storage import Model
from tests.test_index import QUERY, at, put

MODEL = Model("/models/tuned", "f" * 64)


def an_index() -> SearchIndex:
    index = SearchIndex()
    put(index, ["가", "나\n나", "다"], [0.5, 0.75, -0.25], metadata=[{"title": "제목"}, None, None])
    records = [dict(record, passage="라" * 9) for record in index.check_new(1, ["긴 글"], None)]
    index.add(records, [[(0, 6), (3, 9)]], at(0.1, 0.6))
    return index


def names(folder: Path) -> list[str]:
    """What a folder holds beside the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != "writer.lock")


def data(folder: Path) -> Path:
    return folder / json.loads((folder / "index.json").read_text())["data"]


def test_loaded_is_what_was_saved(tmp_path: Path) -> None:
    index = an_index()
    storage.save(index, tmp_path / "new" / "index", MODEL)
    loaded = storage.load(tmp_path / "new" / "index", MODEL)
    assert loaded.search(QUERY, 10) == index.search(QUERY, 10)
    assert loaded.search(QUERY, 10)[0][1] == {
        "rank": 2, "passage": "라" * 9, "score": pytest.approx(0.6), "index": 3, "id": "긴 글", "metadata": {},
        "span": (3, 9),
    }  # fmt: skip
    assert isinstance(loaded.vectors.parts[0].exact, np.memmap) and isinstance(loaded.vectors.parts[0].codes, np.memmap)
    # Data only: nothing in it is a pickle.
    assert {path.suffix for path in data(tmp_path / "new" / "index").iterdir()} == {".npy", ".jsonl"}
    for path in data(tmp_path / "new" / "index").glob("*.npy"):
        np.load(path, allow_pickle=False)


def test_what_was_removed_is_not_saved_and_numbering_goes_on(tmp_path: Path) -> None:
    index = an_index()
    index.remove(["0", "2"])
    storage.save(index, tmp_path / "i", MODEL)
    loaded = storage.load(tmp_path / "i", MODEL)
    assert loaded.search(QUERY, 10) == index.search(QUERY, 10)
    assert (data(tmp_path / "i") / "passages.jsonl").read_text(encoding="utf-8").count("\n") == 2
    put(loaded, ["마"], [0.9])
    assert loaded.ids() == ["1", "긴 글", "4"]
    loaded.remove(["1"])
    storage.save(loaded, tmp_path / "i", MODEL)  # onto the very files that it has mapped
    again = storage.load(tmp_path / "i", MODEL)
    assert again.search(QUERY, 10) == loaded.search(QUERY, 10)
    assert [result["id"] for result in again.search(QUERY, 10)[0]] == ["4", "긴 글"]
    assert names(tmp_path / "i") == sorted(["index.json", data(tmp_path / "i").name])


def test_many_parts_and_blocks_are_saved_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.vectors._ROWS_AT_ONCE", 4)
    index = SearchIndex()
    for start in range(0, 30, 3):
        put(index, [str(start + k) for k in range(3)], [(start + k) / 40 for k in range(3)])
    index.remove(["0", "7", "29"])
    storage.save(index, tmp_path, MODEL)
    loaded = storage.load(tmp_path, MODEL)
    assert [r["passage"] for r in loaded.search(QUERY, 40)[0]] == [str(n) for n in range(28, 0, -1) if n != 7]
    assert loaded.search(QUERY, 40) == index.search(QUERY, 40)


def test_an_empty_index(tmp_path: Path) -> None:
    storage.save(SearchIndex(), tmp_path, MODEL)
    loaded = storage.load(tmp_path, MODEL)
    assert loaded.empty() and loaded.search(QUERY, 3) == [[]]
    put(loaded, ["가"], [0.5])
    assert len(loaded.search(QUERY, 3)[0]) == 1


def test_another_model_is_refused_with_both_names(tmp_path: Path) -> None:
    storage.save(an_index(), tmp_path, MODEL)
    with pytest.raises(
        InferenceError, match=r"made with the model /models/tuned \(ffffffffffff\), not with /models/base \(0000"
    ):
        storage.load(tmp_path, Model("/models/base", "0" * 64))
    storage.load(tmp_path, Model("/moved/elsewhere", "f" * 64))  # the content decides, not the folder


# -----------------------------------------------------------------------------------------------------------
# Saves that fail


def test_files_are_flushed_by_a_handle_that_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows flushes no other."""
    opened, real = [], os.open

    def noted(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        opened.append((Path(path).is_dir(), flags & (os.O_RDWR | os.O_WRONLY)))
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(storage.os, "open", noted)
    storage.save(an_index(), tmp_path, MODEL)
    assert any(not folder for folder, _ in opened) and all(folder or writes for folder, writes in opened)


@pytest.mark.parametrize("step", ["_write_vectors", "_write_passages", "_flush", "_replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_torn_save_leaves_the_good_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    storage.save(an_index(), tmp_path, MODEL)
    before = names(tmp_path)
    index = storage.load(tmp_path, MODEL)
    put(index, ["새"], [0.99])

    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(storage, step, fail)
        full_disk = isinstance(error, OSError)
        message = "No space left on device; the index there is as before" if full_disk else None
        with pytest.raises(InferenceError if full_disk else KeyboardInterrupt, match=message):
            storage.save(index, tmp_path, MODEL)
    assert names(tmp_path) == before
    assert len(storage.load(tmp_path, MODEL)) == 4
    storage.save(index, tmp_path, MODEL)  # the lock is free, and nothing of the index is lost
    assert len(storage.load(tmp_path, MODEL)) == 5


def _save_and_die(folder: Path, step: str) -> None:
    index = storage.load(folder, MODEL)
    put(index, ["새"], [0.99])
    setattr(storage, step, lambda *_: os._exit(9))
    storage.save(index, folder, MODEL)


@pytest.mark.parametrize("step", ["_write_passages", "_replace"])
def test_a_process_killed_while_it_saves_leaves_the_good_index(tmp_path: Path, step: str) -> None:
    storage.save(an_index(), tmp_path, MODEL)
    process = multiprocessing.get_context("fork").Process(target=_save_and_die, args=(tmp_path, step))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert len(names(tmp_path)) == 3  # its half lies there
    index = storage.load(tmp_path, MODEL)
    assert len(index) == 4
    storage.save(index, tmp_path, MODEL)  # and the next save clears it away
    assert names(tmp_path) == sorted(["index.json", data(tmp_path).name])


def _hold(folder: Path, ready: Any, done: Any) -> None:
    with storage.writing(folder):
        ready.set()
        done.wait(60)


def test_a_second_writer_says_so_and_stops(tmp_path: Path) -> None:
    storage.save(an_index(), tmp_path, MODEL)
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready, done))
    process.start()
    try:
        assert ready.wait(60)
        with pytest.raises(InferenceError, match="is being written by another process"):
            storage.save(an_index(), tmp_path, MODEL)
        assert len(storage.load(tmp_path, MODEL)) == 4  # readers are not kept out
    finally:
        done.set()
        process.join(60)
    storage.save(an_index(), tmp_path, MODEL)


def test_one_process_may_hold_the_folder_and_save(tmp_path: Path) -> None:
    with storage.writing(tmp_path):
        storage.save(an_index(), tmp_path, MODEL)
    assert len(storage.load(tmp_path, MODEL)) == 4


def test_changes_of_another_are_not_overwritten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage.save(an_index(), tmp_path, MODEL)
    mine, others = storage.load(tmp_path, MODEL), storage.load(tmp_path, MODEL)
    put(others, ["남의 것"], [0.9])
    storage.save(others, tmp_path, MODEL)
    put(mine, ["내 것"], [0.8])
    with pytest.raises(InferenceError, match="changed by another process since this index was loaded"):
        storage.save(mine, tmp_path, MODEL)
    assert [r["passage"] for r in storage.load(tmp_path, MODEL).search(QUERY, 1)[0]] == ["남의 것"]
    storage.save(mine, tmp_path / "elsewhere", MODEL)
    storage.save(others, tmp_path, MODEL)  # its own last save is no change of another
    with caplog.at_level(logging.INFO, logger="search"):
        storage.save(an_index(), tmp_path, MODEL)  # built anew: replaces
    assert "replacing the index of 5 passages" in caplog.text


def test_a_reader_meets_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's data is replaced between the reading of index.json and of the data."""
    storage.save(an_index(), tmp_path, MODEL)
    read, times = storage._read, []

    def read_late(folder: Path, manifest: Any) -> SearchIndex:
        times.append(folder)
        if len(times) == 1:
            storage.save(an_index(), tmp_path, MODEL)
        return read(folder, manifest)

    monkeypatch.setattr(storage, "_read", read_late)
    assert len(storage.load(tmp_path, MODEL)) == 4
    assert len(set(times)) == 2


# -----------------------------------------------------------------------------------------------------------
# Folders that are something else, and damage


def test_folders_that_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("내 논문")
    for action in (lambda: storage.save(an_index(), tmp_path, MODEL), lambda: storage.writing(tmp_path).__enter__()):
        with pytest.raises(InferenceError, match=r"holds something else \(thesis\.txt, …\): name an empty or a new folder"):
            action()
    with pytest.raises(InferenceError, match=r"holds no index: there is no index\.json"):
        storage.load(tmp_path, MODEL)
    assert names(tmp_path) == ["thesis.txt"]
    for content in ("{}", "[1]", '{"format": "docs", "version": 1}'):
        (tmp_path / "index.json").write_text(content)
        for action in (lambda: storage.save(an_index(), tmp_path, MODEL), lambda: storage.load(tmp_path, MODEL)):
            with pytest.raises(InferenceError, match=r"holds something else: its index\.json is not of a search index"):
                action()
        assert (tmp_path / "index.json").read_text() == content
    with pytest.raises(InferenceError, match=r"thesis\.txt is not a folder"):
        storage.save(an_index(), tmp_path / "thesis.txt", MODEL)
    with pytest.raises(InferenceError, match=r"No index: .*thesis\.txt is not a folder"):
        storage.load(tmp_path / "thesis.txt", MODEL)
    with pytest.raises(InferenceError, match=r"No index: .*nowhere does not exist"):
        storage.load(tmp_path / "nowhere", MODEL)
    with pytest.raises(InferenceError, match=r"index FILE --out '.*no where'`"):
        storage.load(tmp_path / "no where", MODEL)
    with pytest.raises(InferenceError, match="cannot be written"):
        storage.save(an_index(), tmp_path / "thesis.txt" / "below", MODEL)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["exact.npy", "codes.npy", "scales.npy", "windows.npy", "offsets.npy", "passages.jsonl"])
@pytest.mark.parametrize("damage", [_cut, Path.unlink, lambda path: path.write_bytes(b"")])
def test_damage_is_said(tmp_path: Path, name: str, damage: Any) -> None:
    storage.save(an_index(), tmp_path, MODEL)
    damage(data(tmp_path) / name)
    with pytest.raises(InferenceError, match=r"is damaged: .*Index the texts again"):
        storage.load(tmp_path, MODEL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "is an index of version 2; this program reads 1"),
        ({"passages": "4"}, "cannot be read: Expected `int`, got `str`"),
        ({"windows": 4}, "is damaged: exact.npy holds"),
        ({"passages": 3}, "is damaged"),
        ({"dimension": 3}, "is damaged: exact.npy holds"),
        ({"data": "../../elsewhere"}, "is damaged: data is '../../elsewhere'"),
    ],
)
def test_a_manifest_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    storage.save(an_index(), tmp_path, MODEL)
    path = tmp_path / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InferenceError, match=message):
        storage.load(tmp_path, MODEL)


def test_a_manifest_that_is_torn(tmp_path: Path) -> None:
    storage.save(an_index(), tmp_path, MODEL)
    _cut(tmp_path / "index.json")
    (tmp_path / "index.json").write_bytes(b"{")
    with pytest.raises(InferenceError, match=r"index\.json cannot be read"):
        storage.load(tmp_path, MODEL)


def test_windows_of_passages_that_are_not_there(tmp_path: Path) -> None:
    storage.save(an_index(), tmp_path, MODEL)
    path = data(tmp_path) / "windows.npy"
    windows = np.load(path)
    windows[0, 0] = 99
    np.save(path, windows)
    with pytest.raises(InferenceError, match="names passages that are not there"):
        storage.load(tmp_path, MODEL)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InferenceError, match="cannot be written: Permission denied"):
        storage.save(an_index(), tmp_path / "i", MODEL)


def test_a_copied_index_is_an_index(tmp_path: Path) -> None:
    storage.save(an_index(), tmp_path / "a", MODEL)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert len(storage.load(tmp_path / "b", MODEL)) == 4
