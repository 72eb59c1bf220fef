"""Two models on the same passages: the untouched base beside the one that was tuned."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

SIDES = ("base", "tuned")

_LINES = 3  # of a passage in the table
_RULE = " │ "
_LEAD = 11  # columns of a result before its passage: rank and score


class Searcher(Protocol):
    """A model with its index built."""

    def search(self, query: str, *, top_k: int) -> list[dict[str, Any]]: ...


class Comparison:
    """Asks both models, one question at a time: the tokenizers are not made for several threads.

    Args:
        base, tuned: each with an index of the same passages under the same ids.
    """

    def __init__(self, base: Searcher, tuned: Searcher):
        self._searchers = dict(zip(SIDES, (base, tuned), strict=True))
        self._one_at_a_time = threading.Lock()

    def ask(self, query: str, top_k: int) -> dict[str, Any]:
        """`{"query": …, "base": results, "tuned": results}`, the results those of `search`. Raises what `search` raises."""
        with self._one_at_a_time:
            return {"query": query} | {side: model.search(query, top_k=top_k) for side, model in self._searchers.items()}


def best_window(result: Mapping[str, Any]) -> str:
    """The part of a result's passage that it was found by: all of it, or a window between ellipses."""
    text = str(result["passage"])
    begin, end = result.get("span", (0, len(text)))
    return f"{'…' if begin else ''}{text[begin:end]}{'…' if end < len(text) else ''}"


def print_comparison(answer: Mapping[str, Any], columns: int) -> None:
    """Print a question and both models' results beside each other; a passage of more than three lines ends in "…".

    Args:
        answer: of `Comparison.ask`.
        columns: of the terminal. A Hangul syllable takes two.
    """
    width = max((columns - len(_RULE)) // 2, 2 * _LEAD)
    sides = [[_pad(side, width), *_lines(answer[side], width)] for side in SIDES]
    height = max(map(len, sides))
    rows = zip(*(lines + [" " * width] * (height - len(lines)) for lines in sides), strict=True)
    print(answer["query"])  # noqa: T201
    for row in rows:
        print(_RULE.join(row).rstrip())  # noqa: T201


def _lines(results: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    lines = []
    for result in results:
        first, *others = _wrap(unicodedata.normalize("NFC", " ".join(best_window(result).split())), width - _LEAD)
        lines.append(_pad(f"{result['rank']:>2} {result['score']:6.3f}  {first}", width))
        lines.extend(_pad(" " * _LEAD + line, width) for line in others)
    return lines


def _wrap(text: str, width: int) -> list[str]:
    """The first lines of the text, none wider than `width` columns; broken anywhere, as Korean is where space is short."""
    lines, used = [""], 0
    for character in text:
        taken = _columns(character)
        if used + taken > width:
            if len(lines) == _LINES:
                while _columns(lines[-1]) > width - 1:
                    lines[-1] = lines[-1][:-1]
                lines[-1] += "…"
                break
            lines.append("")
            used = 0
        lines[-1] += character
        used += taken
    return lines


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _columns(text))


def _columns(text: str) -> int:
    """How many columns of a terminal the text takes (Unicode Standard Annex 11)."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )
