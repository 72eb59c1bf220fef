"""Passages that a query says itself.

"Whom did Heungseon Daewongun fight?" is not answered by "Heungseon Daewongun", though hardly any passage is more similar:
the embedding of a question is near to the words in it. Where passages are short answers, more right ones are found with
these left out (docs/RESULTS.md has how many).
"""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

_WORD = re.compile(r"\w+")


def stands_in(passage: str, query: str) -> bool:
    """Whether the query says the passage word for word: case, width of letters and punctuation apart.

    Its first word begins where one of the query's does; behind its last anything may follow, as Korean's particles do, but
    no further digit behind a digit. A passage without a letter or digit stands in no query.
    """
    wanted, said = _words(passage), _words(query)
    place = said.find(wanted) if wanted else -1
    while place >= 0:
        if _is_whole(said, place, place + len(wanted)):
            return True
        place = said.find(wanted, place + 1)
    return False


def rows_in_queries(passages: Sequence[str], queries: Iterable[str]) -> list[np.ndarray]:
    """For each query the rows of the passages that stand in it, ascending: as `stands_in` of each with each.

    Looks up the stretches of a query that are as long as some passage, so that the number of passages costs nothing.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, passage in enumerate(passages):
        if words := _words(passage):
            rows[words].append(row)
    lengths = sorted(set(map(len, rows)))
    found = []
    for said in map(_words, queries):
        stretches = {
            said[start : start + length]
            for start in (0, *(match.end() for match in re.finditer(" ", said)))
            for length in lengths[: bisect.bisect(lengths, len(said) - start)]
            if _is_whole(said, start, start + length)
        }
        found.append(np.array(sorted(row for words in stretches for row in rows.get(words, ())), dtype=np.int64))
    return found


def _words(text: str) -> str:
    """The words of a text, one space between two."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def _is_whole(said: str, start: int, end: int) -> bool:
    """Whether a stretch begins with a word, and does not end within a number."""
    begins = start == 0 or said[start - 1] == " "
    return begins and not (said[end - 1].isdigit() and said[end : end + 1].isdigit())
