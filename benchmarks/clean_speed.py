"""Cleaning real-shaped fragments: `clean_html_text` against BeautifulSoup and against regular expressions; hostile growth.

    python benchmarks/clean_speed.py
    python benchmarks/clean_speed.py --fragments fragments.json     # a JSON object or list of HTML texts

Fragments are the answers and pages of the embedded sample where none are given. Ways alternate in one run on the same
fragments, best of `--rounds`. BeautifulSoup runs on html.parser, script, style and head removed, text joined by spaces; the
regular expressions are those one would write first. Hostile input grows from 10 KB to 10 MB; `growth` is the time at the
largest size over that at a hundredth of it, 100 for linear time. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from config import SAMPLE_DATASET_ROOT
from dataloader import clean_html_text, load_entire_dataset

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
HOSTILE = {
    "<": "<",
    "<script": "<script",
    "<script>": "<script>",
    "nested div": "<div>",
    "unclosed a": "<a>글",
    "<!--": "<!--",
    "unclosed attribute": "<a b='",
    "&": "&",
    "NUL": "\0<p>",
    "lone surrogates": "\ud800<b>",
    "combining marks": "\u0315\u0300",
}

_HEAD = re.compile(r"<(head|script|style)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_BLOCK = re.compile(r"</?(?:p|div|br|li|tr|h[1-6]|table|ul|ol)\b[^>]*>", re.IGNORECASE)
_TAG = re.compile(r"<[^>]+>")
_SPACES, _LINES = re.compile(r"[^\S\n]+"), re.compile(r"\s*\n\s*")


def with_regular_expressions(text: str) -> str:
    """The usual way without a parser."""
    text = _TAG.sub(" ", _BLOCK.sub("\n", _HEAD.sub("", text)))
    return _LINES.sub("\n", _SPACES.sub(" ", html.unescape(text))).strip()


def with_beautiful_soup(text: str) -> str:
    """The usual way with a parser."""
    soup = BeautifulSoup(text, "html.parser")
    for tag in soup(["head", "script", "style"]):
        tag.decompose()
    return _SPACES.sub(" ", soup.get_text(" ", strip=True))


WAYS: dict[str, Callable[[str], str]] = {
    "clean_html_text": clean_html_text,
    "beautiful_soup": with_beautiful_soup,
    "regular_expressions": with_regular_expressions,
}


def read_fragments(path: Path | None) -> list[str]:
    """HTML texts of a JSON file, or the sample's answers and pages."""
    if path:
        content = json.loads(path.read_text(encoding="utf-8"))
        return list(content.values() if isinstance(content, dict) else content)
    articles = load_entire_dataset(SAMPLE_DATASET_ROOT, verbose=False)["articles"]
    answers = [qa["answer"]["text"] for article in articles for qa in article["qas"]]
    return answers + [article["context"] for article in articles]


def compare(fragments: list[str], rounds: int) -> dict[str, Any]:
    """Seconds of each way for all fragments, the best of `rounds`, and how many times faster ours is."""
    best = dict.fromkeys(WAYS, float("inf"))
    for _ in range(rounds):
        for name, clean in WAYS.items():
            best[name] = min(best[name], _seconds(clean, fragments))
    characters = sum(map(len, fragments))
    result: dict[str, Any] = {"fragments": len(fragments), "characters": characters}
    result |= {f"{name}_seconds": round(seconds, 4) for name, seconds in best.items()}
    result["million_characters_per_s"] = round(characters / best["clean_html_text"] / 1e6, 1)
    for name in ("beautiful_soup", "regular_expressions"):
        result[f"times_faster_than_{name}"] = round(best[name] / best["clean_html_text"], 2)
    return result


def _seconds(clean: Callable[[str], str], texts: list[str]) -> float:
    started = time.perf_counter()
    for text in texts:
        clean(text)
    return time.perf_counter() - started


def grow() -> dict[str, dict[str, Any]]:
    """Seconds for each hostile input at each size in characters, and the growth over the last two powers of ten."""
    rows = {}
    for name, unit in HOSTILE.items():
        seconds = [_seconds(clean_html_text, [unit * (size // len(unit))]) for size in SIZES]
        rows[name] = {"seconds": [round(value, 4) for value in seconds], "growth": round(seconds[-1] / seconds[-3])}
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Speed of cleaning HTML.", allow_abbrev=False)
    parser.add_argument("--fragments", type=Path, help="JSON object or list of HTML texts (default: those of the sample)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    fragments = read_fragments(options.fragments)
    marked = [text for text in fragments if "<" in text or "&" in text]
    plain = [text for text in fragments if not ("<" in text or "&" in text)]
    result = {"all": compare(fragments, options.rounds), "with_markup": compare(marked, options.rounds)}
    if plain:
        result["plain"] = compare(plain, options.rounds)
    print(json.dumps(result | {"sizes": SIZES, "hostile": grow()}, ensure_ascii=False))


if __name__ == "__main__":
    main()
