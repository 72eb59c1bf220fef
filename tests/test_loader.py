"""Finding and loading files: order, both shapes, broken files, worker processes."""

import json
import logging
import os
import signal
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataloader import (
    DatasetError,
    accumulate_all_data,
    get_all_json_files,
    load_entire_dataset,
    load_files_parallel,
    load_json_file,
    loader,
)
from dataloader.prepare import prepare_article

ROOT = Path(__file__).resolve().parent.parent

V1 = {
    "version": "KorQuAD_v1.0_dev",
    "data": [
        {
            "title": "서울",
            "paragraphs": [
                {
                    "context": "서울은 수도이다.",
                    "qas": [
                        {"id": "1", "question": "수도는?", "answers": [{"text": "서울", "answer_start": 0}]},
                        {"id": 2, "question": "서울은?", "answers": [{"text": "수도", "answer_start": 4}]},
                    ],
                },
                {"context": "한강이 흐른다.", "qas": []},
            ],
        }
    ],
}
V2 = {
    "version": "KorQuAD_2.1",
    "data": [
        {
            "title": "부산",
            "url": "https://example.org/부산",
            "context": "<p>부산은 항구이다.</p>",
            "raw_html": "<html><p class='x'>부산은 항구이다.</p></html>",
            "qas": [{"id": 7, "question": "항구는?", "answer": {"text": "부산", "answer_start": 3, "extra": None}}],
        }
    ],
}


def write(path: Path, content: Any) -> Path:
    """Write bytes as they are, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def one_article(number: int) -> dict:
    qa = {"id": number, "question": f"질문 {number}?", "answer": {"text": f"답 {number}"}}
    return {"version": "2.1", "data": [{"title": str(number), "context": f"답 {number}", "qas": [qa]}]}


# --- finding files ---


def test_training_folders_are_read_in_natural_order(tmp_path):
    for folder in ("KorQuAD_2.1_train_10", "KorQuAD_2.1_train_02", "KorQuAD_2.1_train_1"):
        for name in ("b10.json", "b9.json"):
            write(tmp_path / folder / name, V2)
    write(tmp_path / "KorQuAD_2.1_dev_00" / "dev.json", V2)
    write(tmp_path / "KorQuAD_2.1_train_1" / "._b9.json", b"a leftover of macOS")
    write(tmp_path / "notes.json", V2)
    found = [str(path.relative_to(tmp_path)) for path in get_all_json_files(tmp_path)]
    assert found == [f"KorQuAD_2.1_train_{n}/{name}" for n in ("1", "02", "10") for name in ("b9.json", "b10.json")]


def test_development_folders_are_read_where_there_are_no_training_folders(tmp_path):
    write(tmp_path / "KorQuAD_2.1_dev_00" / "dev.json", V2)
    write(tmp_path / "other.json", V2)
    assert get_all_json_files(tmp_path) == [tmp_path / "KorQuAD_2.1_dev_00" / "dev.json"]


def test_a_plain_folder_and_a_single_file(tmp_path):
    files = [write(tmp_path / name, V1) for name in ("a2.json", "a10.json")]
    assert get_all_json_files(tmp_path) == files
    assert get_all_json_files(str(files[1])) == [files[1]]


def test_a_missing_root_and_an_empty_one_say_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist.*KorQuAD_2\.1_train_00"):
        get_all_json_files(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"no JSON file in .*KorQuAD_2\.1_train_\*/\*\.json"):
        get_all_json_files(tmp_path)


# --- one file ---


def test_korquad_1_keeps_each_question_with_its_paragraph(tmp_path):
    result = load_json_file(write(tmp_path / "v1.json", V1))
    assert (result["file"], result["version"]) == (str(tmp_path / "v1.json"), "KorQuAD_v1.0_dev")
    (article,) = result["articles"]
    assert (article["title"], article["url"], article["context"]) == ("서울", "", "")
    assert article["paragraphs"] == ["서울은 수도이다.", "한강이 흐른다."]
    first, second = article["qas"]
    assert first == {
        "id": "1",
        "question": "수도는?",
        "answer": [{"text": "서울", "answer_start": 0}],
        "answer_start": 0,
        "context": "서울은 수도이다.",
    }
    assert (second["id"], second["answer_start"]) == ("2", 4)
    assert first["context"] is second["context"] is article["paragraphs"][0]


def test_korquad_2_shares_the_page_and_drops_the_raw_one(tmp_path):
    path = write(tmp_path / "v2.json", V2)
    (article,) = load_json_file(path)["articles"]
    assert article == {
        "title": "부산",
        "url": "https://example.org/부산",
        "context": "<p>부산은 항구이다.</p>",
        "paragraphs": ["<p>부산은 항구이다.</p>"],
        "qas": [
            {
                "id": "7",
                "question": "항구는?",
                "answer": {"text": "부산", "answer_start": 3, "extra": None},
                "answer_start": 3,
                "context": "<p>부산은 항구이다.</p>",
            }
        ],
    }
    assert article["qas"][0]["context"] is article["context"]
    assert load_json_file(path, keep_raw_html=True)["articles"][0]["raw_html"].startswith("<html>")


@pytest.mark.parametrize("answer", ["부산", ["부산", {"text": "항구"}], []])
def test_answers_stay_as_the_file_has_them(tmp_path, answer):
    content = {"data": [{"qas": [{"question": "?", "answer": answer}]}]}
    (qa,) = load_json_file(write(tmp_path / "x.json", content))["articles"][0]["qas"]
    assert (qa["answer"], qa["answer_start"], qa["id"], qa["context"]) == (answer, None, "", "")


def test_a_byte_order_mark_is_fine(tmp_path):
    path = write(tmp_path / "bom.json", b"\xef\xbb\xbf" + json.dumps(V1).encode())
    assert len(load_json_file(path)["articles"]) == 1


def qa_file(**qa: Any) -> dict:
    return {"data": [{"qas": []}, {"qas": [{"question": "?", "answer": "x"} | qa]}]}


BROKEN = [
    (b"", r"\$: the file is empty"),
    (b'{"data": [\n  1,,]}', "line 2, column 5: is not JSON"),
    (b'{"data": [' + b"[" * 200_000, "nested too deeply"),
    (b'{"data": ' + b"9" * 5000 + b"}", r"\$: is not usable JSON"),
    (b'{"data": "\xff"}', "byte 10: is not UTF-8"),
    (b'\xef\xbb\xbf{"data": "\xff"}', "byte 13: is not UTF-8"),
    ("가".encode("utf-16"), "is not UTF-8"),
    ([], r"\$: is a list, should be an object with 'data'"),
    ({"version": "1"}, r"\$\.data: is missing"),
    ({"data": {}}, r"\$\.data: is an object, should be a list"),
    ({"data": [], "version": []}, r"\$\.version: is a list"),
    ({"data": [None]}, r"\$\.data\[0\]: is null"),
    ({"data": [{"title": "x"}]}, r"\$\.data\[0\]\.qas: is missing"),
    ({"data": [{"title": 3, "qas": []}]}, r"\$\.data\[0\]\.title: is a number, should be text"),
    ({"data": [{"paragraphs": [{"context": "x"}]}]}, r"\$\.data\[0\]\.paragraphs\[0\]\.qas: is missing"),
    ({"data": [{"paragraphs": ["x"]}]}, r"\$\.data\[0\]\.paragraphs\[0\]: is text"),
    ({"data": [{"qas": [[]]}]}, r"\$\.data\[0\]\.qas\[0\]: is a list"),
    ({"data": [{"qas": [{"answer": "x"}]}]}, r"\$\.data\[0\]\.qas\[0\]\.question: is missing"),
    ({"data": [{"qas": [{"question": "x"}]}]}, r"\$\.data\[0\]\.qas\[0\]\.answer: is missing"),
    (qa_file(answer=None), r"\$\.data\[1\]\.qas\[0\]\.answer: is null"),
    (qa_file(answer={}), r"\$\.data\[1\]\.qas\[0\]\.answer\.text: is missing"),
    (qa_file(answer=["x", 3]), r"\$\.data\[1\]\.qas\[0\]\.answer\[1\]: is a number"),
    (qa_file(answer={"text": "x", "answer_start": "0"}), r"answer\.answer_start: is text, should be a whole number"),
    (qa_file(id=[]), r"\$\.data\[1\]\.qas\[0\]\.id: is a list"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN)
def test_a_broken_file_is_named_with_the_place_in_it(tmp_path, content, message):
    path = write(tmp_path / "broken.json", content)
    with pytest.raises(DatasetError, match=message) as error:
        load_json_file(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_missing_file_and_a_folder_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.json: no such file"):
        load_json_file(tmp_path / "gone.json")
    with pytest.raises(DatasetError, match="cannot be read"):
        load_json_file(tmp_path)


KEYS = ["data", "paragraphs", "qas", "question", "answer", "answers", "text", "id", "context", "answer_start"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=JSON | st.fixed_dictionaries({"data": st.lists(JSON, max_size=2)}))
def test_any_json_gives_articles_or_an_error_that_names_file_and_place(tmp_path, content):
    path = write(tmp_path / "any.json", content)
    try:
        articles = load_json_file(path)["articles"]
    except DatasetError as error:
        assert str(error).startswith(f"{path}: $")
    else:
        assert all(isinstance(qa["question"], str) for article in articles for qa in article["qas"])


# --- many files ---


@pytest.fixture
def ten_files(tmp_path) -> list[Path]:
    return [write(tmp_path / f"part_{number}.json", one_article(number)) for number in range(10)]


def test_every_number_of_workers_gives_the_same_dataset(ten_files, monkeypatch):
    alone = load_entire_dataset(ten_files[0].parent, num_workers=1, verbose=False)
    monkeypatch.setattr(loader, "SMALL_JOB_BYTES", 0)
    together = load_entire_dataset(ten_files[0].parent, num_workers=2, verbose=False)
    assert together == alone
    assert [article["title"] for article in alone["articles"]] == [str(number) for number in range(10)]
    assert alone["files"] == [str(path) for path in ten_files]
    assert alone["versions"] == ["2.1"] * 10
    assert (alone["total_files"], alone["total_articles"], alone["total_qas"]) == (10, 10, 10)
    assert alone["skipped"] == []


def test_strings_stay_shared_on_the_way_from_a_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "SMALL_JOB_BYTES", 0)
    paths = [write(tmp_path / name, V1) for name in ("a.json", "b.json")]
    for result in load_files_parallel(paths, num_workers=2, verbose=False):
        (article,) = result["articles"]
        assert article["qas"][0]["context"] is article["qas"][1]["context"] is article["paragraphs"][0]


def test_a_small_job_starts_no_process(ten_files, monkeypatch):
    monkeypatch.setattr(loader, "_load_in_pool", lambda *_: pytest.fail("started processes"))
    assert len(load_files_parallel(ten_files, num_workers=4, verbose=False)) == 10
    monkeypatch.setattr(loader, "SMALL_JOB_BYTES", 0)
    assert len(load_files_parallel(ten_files[:1], num_workers=4, verbose=False)) == 1
    assert len(load_files_parallel(ten_files, num_workers=0, verbose=False)) == 10
    assert load_files_parallel([], verbose=False) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_all_broken_files_are_listed_or_left_out_aloud(ten_files, monkeypatch, caplog, workers):
    monkeypatch.setattr(loader, "SMALL_JOB_BYTES", 0)
    write(ten_files[3], b"{")
    write(ten_files[8], {"data": 1})
    reasons = [f"{ten_files[3]}: line 1, column 2: is not JSON", f"{ten_files[8]}: $.data: is a number"]

    with pytest.raises(DatasetError, match="2 of 10 files cannot be used") as error:
        load_entire_dataset(ten_files[0].parent, workers, verbose=False)
    assert all(reason in str(error.value) for reason in reasons)
    assert str(error.value).endswith("or go on without them: --skip_bad_files.")

    with caplog.at_level(logging.WARNING):
        dataset = load_entire_dataset(ten_files[0].parent, workers, verbose=False, skip_bad_files=True)
    assert all(reason in caplog.text for reason in reasons)
    assert dataset["total_files"] == dataset["total_articles"] == len(dataset["files"]) == 8
    assert len(dataset["skipped"]) == 2
    assert all(skipped.startswith(reason) for skipped, reason in zip(dataset["skipped"], reasons, strict=True))


@pytest.mark.parametrize("skip_bad_files", [False, True])
def test_where_no_file_is_left_none_is_skipped(tmp_path, skip_bad_files):
    paths = [write(tmp_path / f"{name}.json", b"{") for name in "ab"]
    with pytest.raises(DatasetError, match=r"2 of 2 files cannot be used:\n(.*\n)+Nothing could be read") as error:
        load_files_parallel(paths, verbose=False, skip_bad_files=skip_bad_files)
    assert "skip_bad_files" not in str(error.value)


def test_a_negative_number_of_workers_is_refused(ten_files):
    with pytest.raises(ValueError, match="num_workers is -1"):
        load_files_parallel(ten_files, num_workers=-1)


def test_totals_are_logged(ten_files, caplog):
    with caplog.at_level(logging.INFO):
        load_entire_dataset(ten_files[0].parent)
    assert "10 files, 10 articles, 10 question-answer pairs" in caplog.text


def test_accumulate_keeps_the_order_of_its_results():
    results = [{"file": name, "version": name, "articles": [{"qas": [1, 2]}]} for name in "ba"]
    dataset = accumulate_all_data(results)
    assert (dataset["files"], dataset["versions"], dataset["total_qas"]) == (["b", "a"], ["b", "a"], 4)


def die(file: Path) -> None:
    """Stands in for the worker's function: what the kernel does to a process when memory runs out."""
    os._exit(9)


def test_a_worker_that_dies_is_a_clear_error(ten_files, monkeypatch):
    monkeypatch.setattr(loader, "SMALL_JOB_BYTES", 0)
    monkeypatch.setattr(loader, "_load_or_explain", die)
    with pytest.raises(loader.WorkerError, match=r"memory ran out; 10 of 10 files.*smaller num_workers"):
        load_files_parallel(ten_files, num_workers=2, verbose=False)


# --- processes of their own ---


def run_python(script: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_import_and_load_without_torch(tmp_path, ten_files):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "sys.modules['torch'] = sys.modules['sentence_transformers'] = sys.modules['transformers'] = None\n"
        "import dataloader\n"
        "from dataloader import *\n"
        f"print(load_entire_dataset({str(tmp_path)!r}, verbose=False)['total_qas'])\n"
        "print(clean_html_text('<p>a</p>'))\n"
    )
    done = run_python(script)
    assert (done.stdout, done.stderr) == ("10\na\n", "")


def test_workers_do_not_run_the_calling_script_again(tmp_path, ten_files):
    script = tmp_path / "script.py"  # without a __main__ guard
    script.write_text(
        "from dataloader import load_entire_dataset, loader\n"
        "loader.SMALL_JOB_BYTES = 0\n"
        f"print(load_entire_dataset({str(tmp_path)!r}, num_workers=2, verbose=False)['total_qas'])\n"
    )
    done = run_python(script)
    assert (done.stdout, done.stderr) == ("10\n", "")


# --- what is asked for ---


@pytest.mark.parametrize("fields", ["pairs", "windows", "lengths"])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=JSON | st.fixed_dictionaries({"data": st.lists(JSON, max_size=2)}))
def test_decoding_narrowly_gives_what_decoding_everything_gives(tmp_path, content, fields):
    path = write(tmp_path / "any.json", content)
    try:
        whole = load_json_file(path)["articles"]
    except DatasetError as error:
        whole = error
    try:
        narrow = load_json_file(path, fields=fields)["articles"]
    except DatasetError as error:
        assert str(error) == str(whole)  # the place and the reason are the same
    else:  # what is not read is not checked either
        assert isinstance(whole, DatasetError) or narrow == [prepare_article(article, fields) for article in whole]


@pytest.mark.parametrize("content", [V1, V2, qa_file(answer=["부산", {"text": "항구"}]), qa_file(id=7, extra={"a": [1]})])
def test_other_shapes_are_prepared_alike(tmp_path, content):
    path = write(tmp_path / "x.json", content)
    for fields in ("pairs", "windows", "lengths"):
        whole = load_json_file(path)["articles"]
        assert load_json_file(path, fields=fields)["articles"] == [prepare_article(article, fields) for article in whole]


def test_the_dataset_says_what_it_holds(tmp_path):
    write(tmp_path / "a.json", V2)
    dataset = load_entire_dataset(tmp_path, verbose=False, fields="windows", window=10)
    assert (dataset["fields"], dataset["window"], dataset["total_qas"]) == ("windows", 10, 1)
    assert dataset["articles"][0]["windows"] == ["부산은 항구이다."]
    assert "fields" not in load_entire_dataset(tmp_path, verbose=False)
    with pytest.raises(ValueError, match="fields is 'pair': give one of all, pairs, windows, lengths"):
        load_entire_dataset(tmp_path, fields="pair")
    with pytest.raises(ValueError, match="window is 0"):
        load_entire_dataset(tmp_path, fields="windows", window=0)


def test_numbers_and_escapes_that_the_fast_decoder_refuses_are_read(tmp_path):
    path = write(tmp_path / "x.json", b'{"x": NaN, "data": [{"qas": [{"question": "\\ud800?", "answer": "x"}]}]}')
    for fields in ("all", "pairs"):
        (article,) = load_json_file(path, fields=fields)["articles"]
        wanted = {"all": chr(0xD800), "pairs": chr(0xFFFD)}[fields]
        assert article["qas"][0]["question"] == wanted + "?"


# --- archives ---


def archive(path: Path, **members: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content if isinstance(content, bytes) else json.dumps(content))
    return path


def without_paths(dataset: dict) -> dict:
    return {name: value for name, value in dataset.items() if name != "files"}


@pytest.fixture
def folder_and_zips(tmp_path) -> tuple[Path, Path]:
    """Six files in three folders, and the same in three archives: with and without a folder inside."""
    for number in (2, 10, 1):
        name = f"KorQuAD_2.1_train_{number}"
        members = {f"{part}.json": one_article(100 * number + part) for part in (10, 9)}
        for member, content in members.items():
            write(tmp_path / "folder" / name / member, content)
        inside = f"{name}/" if number == 2 else ""
        archive(tmp_path / "zips" / f"{name}.zip", **{inside + member: content for member, content in members.items()})
    return tmp_path / "folder", tmp_path / "zips"


@pytest.mark.parametrize("fields", ["all", "pairs", "windows", "lengths"])
def test_folders_and_archives_one_worker_and_many_give_one_dataset(folder_and_zips, monkeypatch, fields):
    monkeypatch.setattr(loader, "SMALL_JOB_BYTES", 0)
    workers = (1, 3) if fields in ("all", "windows") else (1,)
    folder, *others = [
        load_entire_dataset(root, n, verbose=False, fields=fields) for root in folder_and_zips for n in workers
    ]
    assert folder["total_files"] == 6
    assert [article["title"] for article in folder["articles"]] == ["109", "110", "209", "210", "1009", "1010"]
    assert all(without_paths(other) == without_paths(folder) for other in others)


def test_an_archive_and_what_was_unpacked_from_it_count_once(folder_and_zips):
    folder, zips = folder_and_zips
    everything = load_entire_dataset(folder, verbose=False)
    for path in zips.iterdir():
        path.rename(folder / path.name)
    assert load_entire_dataset(folder, verbose=False) == everything
    (folder / "KorQuAD_2.1_train_2" / "9.json").unlink()  # unpacked in part
    again = load_entire_dataset(folder, verbose=False)
    assert without_paths(again) == without_paths(everything)
    assert str(folder / "KorQuAD_2.1_train_2.zip" / "KorQuAD_2.1_train_2" / "9.json") in again["files"]


def test_an_archive_unpacked_where_it_lies(tmp_path):
    archive(tmp_path / "some.zip", **{"a.json": one_article(1), "b.json": one_article(2)})
    write(tmp_path / "a.json", one_article(1))
    assert [str(path.relative_to(tmp_path)) for path in get_all_json_files(tmp_path)] == ["a.json", "some.zip/b.json"]


def test_an_archive_alone_and_a_file_in_it(tmp_path):
    members = {"b.json": V1, "a/c.JSON": V2, "__MACOSX/b.json": b"x", "a/._c.json": b"x", "readme.txt": b"x"}
    path = archive(tmp_path / "x.zip", **members)
    assert get_all_json_files(path) == [path / "a" / "c.JSON", path / "b.json"]
    result = load_json_file(path / "b.json")
    assert (result["file"], len(result["articles"])) == (str(path / "b.json"), 1)
    with pytest.raises(FileNotFoundError, match=r"gone\.json: no such file"):
        load_json_file(path / "gone.json")


def test_archives_of_training_and_development_are_never_mixed(tmp_path):
    archive(tmp_path / "KorQuAD_2.1_dev_00.zip", **{"dev.json": one_article(1)})
    assert len(get_all_json_files(tmp_path)) == 1
    archive(tmp_path / "KorQuAD_2.1_train_00.zip", **{"train.json": one_article(2)})
    assert [path.name for path in get_all_json_files(tmp_path)] == ["train.json"]


@pytest.mark.parametrize(("place", "value"), [(6, 99), (46, 0xFF)])  # a version and a name that cannot be
def test_an_archive_whose_list_of_files_is_damaged_is_named(tmp_path, place, value):
    path = archive(tmp_path / "1.zip", **{"가.json": one_article(1)})
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"PK\x01\x02") + place] = value
    path.write_bytes(damaged)
    archive(tmp_path / "2.zip", **{"good.json": one_article(2)})
    with pytest.raises(DatasetError, match=r"1\.zip: the archive cannot be read"):
        load_entire_dataset(tmp_path, verbose=False)
    dataset = load_entire_dataset(tmp_path, verbose=False, skip_bad_files=True)
    assert len(dataset["articles"]) == 1 and len(dataset["skipped"]) == 1


def test_broken_archives_are_named_and_can_be_skipped(tmp_path, monkeypatch):
    good = archive(tmp_path / "1.zip", **{"good.json": one_article(1)})
    (tmp_path / "2.zip").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "3.zip").write_bytes(good.read_bytes()[:-30])
    damaged = bytearray(archive(tmp_path / "4.zip", **{"damaged.json": {"data": [str(n) for n in range(500)]}}).read_bytes())
    damaged[200] ^= 0xFF
    (tmp_path / "4.zip").write_bytes(damaged)
    archive(tmp_path / "5.zip", **{"bomb.json": b" " * 3_000_000})
    archive(tmp_path / "6.zip", **{"readme.txt": b""})
    monkeypatch.setattr(loader, "_SUSPECT_BYTES", 1_000_000)
    with pytest.raises(DatasetError) as error:
        load_entire_dataset(tmp_path, verbose=False)
    for said in (
        "4 of 5 files",
        "2.zip: is a Git LFS pointer",
        "3.zip: the archive cannot be read",
        "damaged.json: the archive",
        "would grow",
    ):
        assert said in str(error.value)
    dataset = load_entire_dataset(tmp_path, verbose=False, skip_bad_files=True)
    assert (dataset["total_files"], len(dataset["skipped"])) == (1, 4)


# --- faults ---


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("fields", ["all", "pairs", "windows"])
def test_a_file_cut_off_in_the_middle_is_named(tmp_path, share, fields):
    whole = json.dumps({"data": [one_article(n)["data"][0] for n in range(50)]}).encode()
    path = write(tmp_path / "cut.json", whole[: int(len(whole) * share)])
    with pytest.raises(DatasetError, match=r"cut\.json: line 1, column \d+: is not JSON"):
        load_json_file(path, fields=fields)


def test_a_root_whose_hangul_is_written_otherwise_is_found(tmp_path):
    write(tmp_path / unicodedata.normalize("NFD", "한국어") / "a.json", V1)
    assert len(get_all_json_files(tmp_path / "한국어")) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can drop its rights")
def test_folders_and_files_that_may_not_be_read_are_said(tmp_path):
    """In a child that is no longer root, whom permissions do not bind."""
    write(tmp_path / "set" / "a.json", V1).chmod(0)
    write(tmp_path / "closed" / "a.json", V1).parent.chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/") and folder.is_relative_to("/tmp/pytest-of-root"):
            folder.chmod(0o755)
    script = (
        "import os\n"
        "from dataloader import load_entire_dataset\n"
        "os.setgid(65534); os.setuid(65534)\n"
        f"for root in ({str(tmp_path / 'set')!r}, {str(tmp_path / 'closed')!r}):\n"
        "    try:\n"
        "        load_entire_dataset(root, verbose=False)\n"
        "    except (ValueError, OSError) as error:\n"
        "        print(type(error).__name__, str(error).splitlines()[0 if 'closed' in root else 1].strip())\n"
    )
    done = run_python(write(tmp_path / "script.py", script.encode()))
    set_error, closed_error = done.stdout.splitlines()
    assert set_error == f"DatasetError {tmp_path}/set/a.json: cannot be read: Permission denied"
    assert closed_error == f"DatasetError {tmp_path}/closed: cannot be read: Permission denied"


def test_a_killed_worker_is_a_clear_error(ten_files, monkeypatch):
    monkeypatch.setattr(loader, "SMALL_JOB_BYTES", 0)
    monkeypatch.setattr(loader, "_load_or_explain", kill_this_process)
    with pytest.raises(loader.WorkerError, match="ended abruptly"):
        load_files_parallel(ten_files, num_workers=2, verbose=False, fields="pairs")


def kill_this_process(file: Path, **asked: Any) -> None:
    """What the kernel does to a worker when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_ctrl_c_is_left_to_the_process_that_asks(ten_files, monkeypatch):
    monkeypatch.setattr(loader, "SMALL_JOB_BYTES", 0)
    monkeypatch.setattr(loader, "_load_or_explain", interrupt_this_process)
    results = load_files_parallel(ten_files, num_workers=2, verbose=False, fields="pairs")
    assert [result["file"] for result in results] == [str(path) for path in ten_files]


def interrupt_this_process(file: Path, **asked: Any) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGINT)
    return {"file": str(file), "version": "", "articles": []}


# --- the real file ---


def test_the_real_korquad_1_file():
    path = os.environ.get("KORQUAD_V1_JSON")
    if not path:
        pytest.skip("KORQUAD_V1_JSON does not name a copy of KorQuAD_v1.0_dev.json")
    dataset = load_entire_dataset(path, verbose=False)
    assert (dataset["total_articles"], dataset["total_qas"]) == (140, 5774)
    assert len({text for article in dataset["articles"] for text in article["paragraphs"]}) == 961
