"""The cache of prepared pairs: what finds it again, what makes it anew, and what it survives."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dataloader import DatasetError, cache, load_cached_dataset, load_entire_dataset

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(3):
        write(folder / f"{number}.json", number)
    return folder


def write(path: Path, number: int) -> None:
    answer = {"text": f"답 {number}", "answer_start": 3}
    qas = [{"id": number, "question": f"질문 {number}?", "answer": answer}]
    content = {"version": "2.1", "data": [{"title": "글", "context": f"<p>답 {number} 은 여기</p>", "qas": qas}]}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def loads(monkeypatch) -> list:
    """Grows with every real load."""
    counted: list = []

    def load(*args):
        counted.append(args)
        return load_entire_dataset(*args)

    monkeypatch.setattr(cache, "load_entire_dataset", load)
    return counted


@pytest.mark.parametrize("fields", ["pairs", "windows", "lengths"])
def test_a_second_run_finds_the_same_and_loads_nothing(root, loads, fields):
    first = load_cached_dataset(root, fields=fields)
    second = load_cached_dataset(root, fields=fields)
    assert first == second == load_entire_dataset(root, fields=fields)
    assert len(loads) == 1
    assert cache.cache_file(root, fields).exists()


def test_a_changed_added_or_touched_file_is_loaded_anew(root, loads):
    load_cached_dataset(root)
    write(root / "1.json", 77)
    assert load_cached_dataset(root)["articles"][1]["qas"][0]["answers"] == ["답 77"]
    write(root / "3.json", 3)
    assert load_cached_dataset(root)["total_files"] == 4
    os.utime(root / "3.json", ns=(1, 1))
    load_cached_dataset(root)
    (root / "0.json").unlink()
    assert load_cached_dataset(root)["total_files"] == 3
    assert len(loads) == 5
    assert len(list(cache.cache_file(root, "windows").parent.iterdir())) == 1


def test_another_setting_is_another_cache(root, loads):
    for _ in range(2):
        load_cached_dataset(root, window=20)
        load_cached_dataset(root, window=5)
        load_cached_dataset(root, fields="pairs")
    assert len(loads) == 3
    with pytest.raises(ValueError, match="fields is 'all'"):
        load_cached_dataset(root, fields="all")


def test_changed_code_makes_it_anew(root, loads, monkeypatch, tmp_path):
    load_cached_dataset(root)
    changed = tmp_path / "cleaning.py"
    changed.write_text("# other rules")
    monkeypatch.setattr(cache.cleaning, "__file__", str(changed))
    load_cached_dataset(root)
    assert len(loads) == 2


@pytest.mark.parametrize("keep", [0, 10, 60, 200, -1])
def test_a_torn_cache_is_replaced(root, loads, keep):
    expected = load_cached_dataset(root)
    place = cache.cache_file(root, "windows")
    place.write_bytes(place.read_bytes()[:keep])
    assert load_cached_dataset(root) == load_cached_dataset(root) == expected
    assert len(loads) == 2


def test_every_flipped_byte_is_noticed(root, loads):
    expected = load_cached_dataset(root)
    place = cache.cache_file(root, "windows")
    whole = place.read_bytes()
    for at in range(0, len(whole), 37):
        place.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert load_cached_dataset(root) == expected


def test_something_else_in_its_place_is_replaced(root, loads):
    expected = load_cached_dataset(root)
    place = cache.cache_file(root, "windows")
    for foreign in (b"\x80\x04N.", b"x" * 1000, cache.MAGIC + bytes(64)):
        place.write_bytes(foreign)
        assert load_cached_dataset(root) == expected
    key = cache._key(root, {"fields": "windows", "window": 384, "skip_bad_files": False})
    cache._write(place, key, {"articles": 3})  # whole, with our header, and yet not a dataset
    assert load_cached_dataset(root) == expected
    assert len(loads) == 5


def test_a_folder_that_cannot_be_written_is_said(root, loads, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert load_cached_dataset(root)["total_qas"] == 3
    assert "the prepared pairs are not kept" in caplog.text


def test_broken_files_are_said_each_time_and_never_hidden(root, caplog):
    (root / "1.json").write_text("{")
    with pytest.raises(DatasetError, match=r"1\.json"):
        load_cached_dataset(root)
    for _ in range(2):
        caplog.clear()
        assert load_cached_dataset(root, skip_bad_files=True)["total_files"] == 2
        assert "1.json: line 1, column 2" in caplog.text and "(--skip_bad_files)" in caplog.text
    with pytest.raises(DatasetError, match=r"1\.json"):
        load_cached_dataset(root)


def test_an_id_that_utf8_cannot_write_does_no_harm(root, caplog):
    (root / "1.json").write_text('{"data": [{"qas": [{"id": "\\ud800", "question": "?", "answer": "x"}]}]}')
    assert load_cached_dataset(root) == load_cached_dataset(root)


def test_many_at_once_find_a_whole_one_or_none(root):
    expected = load_cached_dataset(root)
    place = cache.cache_file(root, "windows")
    stop = time.monotonic() + 1
    results: list = []

    def run():
        while time.monotonic() < stop:
            place.unlink(missing_ok=True)
            results.append(load_cached_dataset(root) == expected)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results
    assert all(results)
    assert len(list(place.parent.iterdir())) <= 1  # and no scratch file is left


def test_two_processes_at_once(root, tmp_path):
    script = f"from dataloader import load_cached_dataset as load; print(load({str(root)!r}, verbose=False)['total_qas'])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in running] == ["3\n", "3\n"]
