"""What is trained to find what: a question its answer, or text around it; and queries that are no questions.

    training_pair("sentence", qa, windows)   # ("한글은 누가 만들었는가?", "세종대왕이 1443년에 창제했다.")

The kinds are config.OBJECTIVES. What a question should find:

answer         the answer itself (the baseline)
sentence       the sentences that hold the answer
window         these and one sentence on either side
context        the whole paragraph (KorQuAD 1.0), or the text around the answer that the model reads whole (2.1)

Answers alone teach a model to look for things that look like answers, and it forgets how to find the paragraphs that hold
them; text around the answer keeps that. What is asked otherwise than in a question is forgotten all the same, and kept by:

keyword        the answer, as a query → the sentences that hold it
inverse_cloze  a sentence of the context → the ones before and after it (arXiv:1906.00300: → all the others)

What each is worth is in docs/RESULTS.md. Imports without torch.
"""

import itertools
import random
import re
from collections.abc import Sequence

from dataloader.prepare import PreparedQuestion

# The end of a sentence: its mark, what closes after it, and white space. A digit before a full stop is a list's number or a
# date ("1. ", "1919. 3. 1. "), not an end.
_SENTENCE_END = re.compile(r"(?:(?<![0-9])[.]|[!?。])[\"'”’」』)\]]*\s+|\n+")


# Characters of a sentence that is asked with: not a heading or the rest of a list, nor half a paragraph.
_SHORTEST_QUERY, _LONGEST_QUERY = 15, 120
# Sentences on either side that it finds: all of a paragraph's are two and a half times the tokens and taught no more.
_NEIGHBOURS = 1


def training_pair(kind: str, qa: PreparedQuestion, windows: Sequence[str]) -> tuple[str, str] | None:
    """The cleaned (query, passage) of one kind for a question of an article with these windows; None where there is none."""
    if not qa["answers"]:
        return None
    question, answer = qa["question"], qa["answers"][0]
    if kind == "answer":
        return question, answer
    if not qa.get("windows"):
        return None
    # Of several answers' windows, the one around the answer that is taken; without its place, any.
    place = next((place for place, span in enumerate(qa["spans"]) if span), 0)
    text, span = windows[qa["windows"][place]], qa["spans"][place]
    if kind == "context":
        return question, text
    if kind == "inverse_cloze":
        return _sentence_and_neighbours(text, seed=qa["id"])
    if span is None:
        return None
    start, end = sentences_around(text, *span, neighbours=1 if kind == "window" else 0)
    return answer if kind == "keyword" else question, text[start:end]


def _sentence_and_neighbours(text: str, seed: str) -> tuple[str, str] | None:
    """One sentence, which the seed chooses, and those on either side; None where no sentence fits or none is beside it."""
    edges = _sentence_edges(text)
    fitting = [
        number
        for number, (start, end) in enumerate(itertools.pairwise(edges))
        if _SHORTEST_QUERY <= end - start <= _LONGEST_QUERY and end - start < len(text)
    ]
    if not fitting:
        return None
    number = random.Random(seed).choice(fitting)
    start, end = edges[number : number + 2]
    first, last = edges[max(number - _NEIGHBOURS, 0)], edges[min(number + 1 + _NEIGHBOURS, len(edges) - 1)]
    return text[start:end].strip(), f"{text[first:start].strip()} {text[end:last].strip()}".strip()


def sentences_around(text: str, start: int, end: int, neighbours: int = 0) -> tuple[int, int]:
    """The characters of the sentences that hold `start:end`, and of so many sentences more on either side."""
    edges = _sentence_edges(text)
    first = max(index for index, edge in enumerate(edges[:-1]) if edge <= start)
    last = next(index for index, edge in enumerate(edges) if edge >= end)
    first, last = max(first - neighbours, 0), min(last + neighbours, len(edges) - 1)
    return edges[first], edges[first] + len(text[edges[first] : edges[last]].rstrip())


def _sentence_edges(text: str) -> list[int]:
    """Where sentences begin, the first at 0, and the end of the text."""
    return [0, *(match.end() for match in _SENTENCE_END.finditer(text) if match.end() < len(text)), len(text)]
