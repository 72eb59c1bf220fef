"""Text files → passages."""

import json
import logging
from pathlib import Path

import pytest

from search.errors import InferenceError
from search.files import Document, read_json_lines, read_passages, read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
def test_passages_one_a_line_in_each_encoding(tmp_path: Path, encoding: str, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "passages.txt"
    file.write_bytes("서울은 수도이다.\r\n\r\n  똠방각하 \r한라산\u3000은\n \t \n끝".encode(encoding))
    with caplog.at_level(logging.INFO, logger="search"):
        assert read_passages(file) == ["서울은 수도이다.", "똠방각하", "한라산\u3000은", "끝"]
    assert ("read as CP949" in caplog.text) == (encoding == "cp949")


def test_separators_of_unicode_do_not_end_a_passage(tmp_path: Path) -> None:
    file = tmp_path / "passages.txt"
    file.write_text("가\u2028나\x85다\x0c라\n마", encoding="utf-8")
    assert read_passages(file) == ["가\u2028나\x85다\x0c라", "마"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ab\ncd\xff\n", r"neither UTF-8 \(byte 0xff at offset 5, line 2\) nor CP949 \(byte 0xff at offset 5, line 2\)"),
        (b"\xef\xbb\xbfab\xff", r"UTF-8 \(byte 0xff at offset 5, line 1\)"),
        ("서울".encode("utf-16"), r"It looks like UTF-16\. Save it as UTF-8"),
        (b"", "holds no passages"),
        (b"\xef\xbb\xbf \n\r\n", "holds no passages"),
    ],
)
def test_passage_files_that_cannot_be_used(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "passages.txt"
    file.write_bytes(data)
    with pytest.raises(InferenceError, match=message) as caught:
        read_passages(file)
    assert str(file) in str(caught.value)


def test_passage_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match=r"none\.txt cannot be read: No such file or directory"):
        read_passages(tmp_path / "none.txt")
    with pytest.raises(InferenceError, match="cannot be read: Is a directory"):
        read_passages(tmp_path)


def test_the_line_is_the_id(tmp_path: Path) -> None:
    file = tmp_path / "passages.txt"
    file.write_text("가\n\n나\n", encoding="utf-8")
    assert read_text(file) == [Document(f"{file}:1", "가", {}), Document(f"{file}:3", "나", {})]


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "passages.jsonl"
    lines = [
        {"passage": "가\n나", "id": "a", "title": "제목", "year": 1443},
        {"text": " 다 "},
        {"passage": "라", "text": "두 번째", "id": 7},
    ]
    file.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    assert read_json_lines(file) == [
        Document("a", "가\n나", {"title": "제목", "year": 1443}),
        Document(f"{file}:3", " 다 ", {}),
        Document("7", "라", {"text": "두 번째"}),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"passage": "가"', r"line 2, column 16: is not JSON"),
        ('"가"', r"line 2: is not an object"),
        ('{"title": "가"}', 'line 2: has no "passage"'),
        ('{"passage": " "}', 'line 2: "passage" is empty'),
        ('{"text": 7}', 'line 2: "text" is not text'),
        ('{"passage": "가", "id": null}', 'line 2: "id" is neither'),
        ('{"passage": "가", "id": true}', 'line 2: "id" is neither'),
        ("[" * 100_000, "line 2: is not usable JSON"),
    ],
)
def test_json_lines_that_cannot_be_used(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "passages.jsonl"
    file.write_text('{"passage": "가"}\n' + line, encoding="utf-8")
    with pytest.raises(InferenceError, match=message) as caught:
        read_json_lines(file)
    assert str(file) in str(caught.value)


def test_json_lines_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InferenceError, match="holds no passages: write one JSON object on each line"):
        read_json_lines(tmp_path / "empty.jsonl")
