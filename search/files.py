"""Text files → passages."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from search.errors import InferenceError

logger = logging.getLogger(__name__)


def read_passages(path: str | os.PathLike[str]) -> list[str]:
    """The passages of a text file: one a line, stripped, blank lines skipped. UTF-8 (with or without BOM), else CP949.

    Raises:
        InferenceError: the file cannot be read, is in another encoding (with the offending byte), or holds no passage.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InferenceError(f"{path} cannot be read: {error.strerror}.") from None
    text = _decode(data, str(path)).replace("\r\n", "\n").replace("\r", "\n")
    passages = [line.strip() for line in text.split("\n") if line.strip()]
    if not passages:
        raise InferenceError(f"{path} holds no passages: write one on each line.")
    return passages


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
