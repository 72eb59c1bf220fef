"""The numbers of the analysis as tables: for the terminal here, for the report in eda/report.py."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from eda.counted import PERCENTILES
from eda.figures import SHOWN_ELEMENTS, percent

_LENGTH_LABELS = {
    "questions": "questions",
    "answers": "answers",
    "contexts": "contexts",
    "contexts_source": "contexts with markup",
}
_HASH_LABELS = {
    "questions": "questions",
    "answers": "answers",
    "answers_as_written": "answers, to the letter",
    "pairs": "question and answer",
}


class Table(NamedTuple):
    """Rows of cells under a header; columns are right-aligned but for those in `left`."""

    title: str
    header: list[str]
    rows: list[list[str]]
    left: Sequence[int] = (0,)
    notes: Sequence[str] = ()


def make_tables(analysis: dict[str, Any]) -> dict[str, Table]:
    """Every table, by the name of its part of the analysis, in the order in which they are read."""
    return {
        "totals": totals_table(analysis),
        "lengths": lengths_table(analysis),
        "tokens": tokens_table(analysis),
        "answer_kinds": answer_kinds_table(analysis),
        "duplicates": duplicates_table(analysis),
        "collisions": collisions_table(analysis),
        "question_words": question_words_table(analysis),
        "answer_markup": answer_markup_table(analysis),
    }


def totals_table(analysis: dict[str, Any]) -> Table:
    """How much there is, and what has no text or was left out."""
    totals = analysis["totals"]
    rows = [[name.replace("_", " "), f"{totals[name]:,}"] for name in ("files", "articles", "contexts", "qa_pairs")]
    rows += [[f"{name} without text", f"{count:,}"] for name, count in totals["empty"].items() if count]
    title = f"Dataset (version {shown_versions(analysis)})"
    notes = [f"left out: {reason}" for reason in analysis["dataset"]["skipped"]]
    return Table(title, ["", "count"], rows, notes=notes)


def shown_versions(analysis: dict[str, Any]) -> str:
    """The versions that the files give; of 38 different ones, the first and the last."""
    names = analysis["dataset"]["versions"]
    return (", ".join(names) if len(names) <= 2 else f"{names[0]} … {names[-1]}") or "not given"


def lengths_table(analysis: dict[str, Any]) -> Table:
    """One row of length statistics for each kind of text."""
    rows = [_statistics_row(_LENGTH_LABELS[name], numbers) for name, numbers in analysis["lengths"].items()]
    return Table("Length in characters (markup stripped, but for the last row)", _STATISTICS_HEADER, rows)


_STATISTICS = ("mean", "median", "min", "max", *(f"p{percent}" for percent in PERCENTILES))
_STATISTICS_HEADER = ["", "count", *_STATISTICS]


def _statistics_row(label: str, numbers: dict[str, Any]) -> list[str]:
    return [label, f"{numbers['count']:,}", *(_number(numbers[column]) for column in _STATISTICS)]


def tokens_table(analysis: dict[str, Any]) -> Table:
    """Length statistics in tokens and what max_seq_length cuts off, or why there are none."""
    tokens = analysis["tokens"]
    if "left_out" in tokens:
        return Table("Length in tokens", ["", ""], [], notes=[f"left out, no tokenizer: {tokens['left_out']}"])
    limit = tokens["max_seq_length"]
    rows = [
        [
            *_statistics_row(name, numbers),
            f"{numbers['truncated']['count']:,}",
            percent(numbers["truncated"]["share"]),
            percent(numbers["truncated"]["tokens_cut_share"]),
        ]
        for name, numbers in tokens["texts"].items()
        if numbers["count"]
    ]
    header = [*_STATISTICS_HEADER, f"> {limit}", "share", "tokens cut"]
    notes = [
        f"Tokenizer of {tokens['model']} ({tokens['source']}). Prefix and special tokens are counted.",
        f'Texts of more than {limit} tokens (max_seq_length) are cut: "share" of the texts, "tokens cut" of all tokens.',
    ]
    if not tokens["texts"]["paragraphs"]["count"]:
        notes.append("Pages of KorQuAD 2.1 are far longer than any limit: the model reads windows of them, cut to fit.")
    return Table("Length in tokens", header, rows, notes=notes)


def answer_kinds_table(analysis: dict[str, Any]) -> Table:
    """How many answers are of each kind, and how it is told apart."""
    kinds = analysis["answer_kinds"]["kinds"]
    rows = [[name, f"{n['count']:,}", percent(n["share"]), n["rule"]] for name, n in kinds.items()]
    notes = [
        "The first element with a structure decides. A lone cell or item (<td>332cm</td>) has none: its text decides.",
        "Without such an element a text that ends in 다 without being a sentence (a title, say) may be taken for one.",
    ]
    return Table("Kinds of answers", ["", "answers", "share", "told apart by"], rows, left=(0, 3), notes=notes)


def duplicates_table(analysis: dict[str, Any]) -> Table:
    """What occurs more than once among the pairs that have both texts."""
    rows = [
        [
            _HASH_LABELS[name],
            f"{numbers['texts']:,}",
            f"{numbers['distinct']:,}",
            f"{numbers['repeated']['count']:,}",
            percent(numbers["repeated"]["share"]),
            f"{numbers['most_frequent']:,}",
        ]
        for name, numbers in analysis["duplicates"].items()
    ]
    notes = [
        "Of pairs with both texts. The same: but for case, spaces, punctuation and Unicode form (NFD equals NFC).",
        '"repeated": texts that are not the only one of their kind; "most": how often the most frequent one occurs.',
    ]
    return Table("Duplicates", ["", "texts", "distinct", "repeated", "share", "most"], rows, notes=notes)


def collisions_table(analysis: dict[str, Any]) -> Table:
    """How often a random batch holds an answer twice, at some batch sizes."""
    collisions = analysis["collisions"]
    rows = [
        [size, *(["-", "-", "-"] if n["chance"] is None else _collision_cells(n))]
        for size, n in collisions["batches"].items()
    ]
    notes = [f"Exact for batches of distinct pairs drawn at random from {collisions['pairs']:,}."]
    if collisions["same_answer_chance"]:
        notes += [
            f"One in {1 / collisions['same_answer_chance']:,.0f} couples of pairs has the same answer,"
            f" {percent(collisions['same_to_the_letter'])} of them to the letter: these the loss masks.",
            'Same-answer pairs: how many such couples a batch holds. "rows hit": its pairs that have a double in it.',
        ]
    header = ["batch size", "holds an answer twice", "same-answer pairs", "rows hit"]
    return Table("In-batch collisions", header, rows, notes=notes)


def _collision_cells(numbers: dict[str, Any]) -> list[str]:
    pairs = numbers["same_answer_pairs"]
    return [
        percent(numbers["chance"]),
        f"{pairs:,.0f}" if pairs >= 10 else f"{pairs:.2g}",
        percent(numbers["rows_hit_share"]),
    ]


def question_words_table(analysis: dict[str, Any]) -> Table:
    """How many questions use each question word, and the forms that count as it."""
    found = analysis["question_words"]
    rows = [
        [f"{word} ({entry['meaning']})", f"{entry['count']:,}", percent(entry["share"]), " ".join(entry["forms"])]
        for word, entry in found["words"].items()
    ]
    rows.append(["none of them", f"{found['none']['count']:,}", percent(found["none"]["share"]), "… 사람은? … 것은?"])
    notes = [
        "Counted at the beginning of a word, any ending after it; indefinites (언제나, 누구도, 몇몇) are not counted.",
        "A question with two of them counts for both.",
    ]
    return Table("Question words", ["", "questions", "share", "forms"], rows, left=(0, 3), notes=notes)


def answer_markup_table(analysis: dict[str, Any]) -> Table:
    """The share of answers with markup, and which HTML elements these hold."""
    markup = analysis["answer_markup"]
    elements = list(markup["elements"].items())
    rows = [["any markup", f"{markup['count']:,}", percent(markup["share"])]]
    rows += [[f"<{name}>", f"{n['count']:,}", percent(n["share"])] for name, n in elements[:SHOWN_ELEMENTS]]
    rarer = len(elements) - SHOWN_ELEMENTS
    return Table(
        "Answers with markup", ["", "answers", "share"], rows, notes=[f"and {rarer} rarer elements"] if rarer > 0 else []
    )


# --- terminal -------------------------------------------------------------------------------------------------


def print_analysis(analysis: dict[str, Any]) -> None:
    """Print all tables."""
    for table in make_tables(analysis).values():
        print_table(table.title, table.header, table.rows, table.left)
        for note in table.notes:
            print(note)


def print_table(title: str, header: list[str], rows: list[list[str]], left: Sequence[int] = (0,)) -> None:
    """Print rows in columns, right-aligned but for those in `left`; Hangul takes two terminal cells."""
    print(f"\n{title}")
    if not rows:
        return
    widths = [max(map(_cells, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, ["─" * width for width in widths], *rows):
        cells = (
            text + _padding(text, width) if i in left else _padding(text, width) + text
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


def _cells(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _padding(text: str, width: int) -> str:
    return " " * (width - _cells(text))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if isinstance(value, float) and not value.is_integer() else f"{value:,.0f}"
