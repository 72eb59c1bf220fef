"""Text files → passages."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from search.errors import InferenceError

logger = logging.getLogger(__name__)

_TEXT_KEYS = ("passage", "text")


class Document(NamedTuple):
    """A passage of a file."""

    id: str
    passage: str
    metadata: dict[str, Any]


def read_passages(path: str | os.PathLike[str]) -> list[str]:
    """The passages of a text file: one a line, stripped, blank lines skipped. UTF-8 (with or without BOM), else CP949.

    Raises:
        InferenceError: the file cannot be read, is in another encoding (with the offending byte), or holds no passage.
    """
    return [document.passage for document in read_text(path)]


def read_text(path: str | os.PathLike[str]) -> list[Document]:
    """`read_passages` with the file and line as ids."""
    documents = [Document(f"{path}:{number}", line, {}) for number, line in _lines(path)]
    if not documents:
        raise InferenceError(f"{path} holds no passages: write one on each line.")
    return documents


def read_json_lines(path: str | os.PathLike[str]) -> list[Document]:
    """One JSON object a line: "passage" (or "text"), an "id" if there is one, else file and line; the rest is metadata.

    Raises:
        InferenceError: as `read_passages`; or a line that is not such an object, by its number.
    """
    documents = [_document(line, f"{path}, line {number}", f"{path}:{number}") for number, line in _lines(path)]
    if not documents:
        raise InferenceError(f"{path} holds no passages: write one JSON object on each line.")
    return documents


def _document(line: str, place: str, default_id: str) -> Document:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise InferenceError(f"{place}, column {error.colno}: is not JSON ({error.msg}).") from None
    except (RecursionError, ValueError) as error:
        raise InferenceError(f"{place}: is not usable JSON ({error}).") from None
    if not isinstance(content, dict):
        raise InferenceError(f'{place}: is not an object. Write {{"passage": "…"}} on each line.')
    key = next((key for key in _TEXT_KEYS if key in content), None)
    if key is None:
        raise InferenceError(f'{place}: has no "passage".')
    passage, passage_id = content.pop(key), content.pop("id", default_id)
    if not isinstance(passage, str) or not passage.strip():
        raise InferenceError(f'{place}: "{key}" is {"empty" if isinstance(passage, str) else "not text"}.')
    if isinstance(passage_id, bool) or not isinstance(passage_id, str | int):
        raise InferenceError(f'{place}: "id" is neither text nor a whole number.')
    return Document(str(passage_id), passage, content)


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Number and content of each line that is not blank, stripped."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InferenceError(f"{path} cannot be read: {error.strerror}.") from None
    text = _decode(data, str(path)).replace("\r\n", "\n").replace("\r", "\n")
    return ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        not_utf8 = f"UTF-8 ({_place(error)})"
    try:
        text = data.decode("cp949")
    except UnicodeDecodeError as error:
        looks = " It looks like UTF-16." if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise InferenceError(f"{name} is neither {not_utf8} nor CP949 ({_place(error)}).{looks} Save it as UTF-8.") from None
    logger.info("%s is not %s: read as CP949", name, not_utf8)
    return text


def _place(error: UnicodeDecodeError) -> str:
    line = error.object.count(b"\n", 0, error.start) + 1
    return f"byte 0x{error.object[error.start]:02x} at offset {error.start}, line {line}"
