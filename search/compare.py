"""The same questions to several models, their answers side by side."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from search.errors import InferenceError


class Engine(Protocol):
    """What answers questions: E5KorQuADInference."""

    def batch_search(self, queries: Sequence[str], passages: Sequence[str], top_k: int) -> list[list[dict[str, Any]]]:
        """The best passages for each query."""
        ...


def compare(
    engines: Mapping[str, Engine], queries: Sequence[str], passages: Sequence[str], top_k: int
) -> list[dict[str, Any]]:
    """`{"query": text, "results": {name of the engine: what its search returns}}` for each query.

    From the second engine on a result has "moved": by how many ranks its passage stands higher than with the first engine,
    None where that did not find it.

    Raises:
        InferenceError: no queries; else as the engines' searches.
    """
    if not queries:
        raise InferenceError("There are no questions to compare the models on: give at least one.")
    found = {name: engine.batch_search(queries, passages, top_k) for name, engine in engines.items()}
    first, *others = engines
    for name in others:
        for before, results in zip(found[first], found[name], strict=True):
            ranks = {result["index"]: result["rank"] for result in before}
            for result in results:
                rank = ranks.get(result["index"])
                result["moved"] = None if rank is None else rank - result["rank"]
    return [
        {"query": query, "results": {name: found[name][number] for name in engines}} for number, query in enumerate(queries)
    ]


def moved_sign(result: Mapping[str, Any]) -> str:
    """ "" for the first engine's results and for one that did not move, else "▲2", "▼1" or "new"."""
    moved = result.get("moved", 0)
    if moved is None:
        return "new"
    return f"{'▲' if moved > 0 else '▼'}{abs(moved)}" if moved else ""


def shown_text(result: Mapping[str, Any]) -> str:
    """The passage on one line; of a long one its best window, with … for what is left out."""
    text = str(result["passage"])
    begin, end = result.get("span", (0, len(text)))
    line = " ".join(text[begin:end].split())
    return f"{'… ' if begin else ''}{line}{' …' if end < len(text) else ''}"


def print_comparison(comparisons: Sequence[Mapping[str, Any]], width: int = 120) -> None:
    """Print a table a question: a column a model, rank, score and the passage's beginning."""
    for number, comparison in enumerate(comparisons):
        columns = comparison["results"]
        cell = max((width - 3 * (len(columns) - 1)) // len(columns), 24)
        print(("\n" if number else "") + comparison["query"])  # noqa: T201
        print(" │ ".join(_fit(name, cell) for name in columns))  # noqa: T201
        print("─┼─".join("─" * cell for _ in columns))  # noqa: T201
        for row in zip(*columns.values(), strict=True):
            print(" │ ".join(_fit(_line(result), cell) for result in row).rstrip())  # noqa: T201


def _line(result: Mapping[str, Any]) -> str:
    return f"{result['rank']:>2} {result['score']:6.3f} {moved_sign(result):>4} {shown_text(result)}"


def _fit(text: str, width: int) -> str:
    """Cut or filled up to so many columns of a terminal, where a Hangul syllable takes two."""
    shown: list[str] = []
    used = 0
    for character in text:
        columns = _columns(character)
        if used + columns > width:
            while used + 1 > width:
                used -= _columns(shown.pop())
            shown.append("…")
            used += 1
            break
        shown.append(character)
        used += columns
    return "".join(shown) + " " * (width - used)


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Mn"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
