"""What a question is trained to find: its answer, or text around it.

    passage_for("sentence", qa, windows)   # "세종대왕이 1443년에 창제했다."

The kinds are config.OBJECTIVES:

answer     the answer itself (the baseline)
sentence   the sentences that hold the answer
window     these and one sentence on either side
context    the whole paragraph (KorQuAD 1.0), or the text around the answer that the model reads whole (2.1)

Answers alone teach a model to look for things that look like answers, and it forgets how to find the paragraphs that hold
them; text around the answer keeps that (docs/RESULTS.md). Imports without torch.
"""

import re
from collections.abc import Sequence

from dataloader.prepare import PreparedQuestion

# The end of a sentence: its mark, what closes after it, and white space. A digit before a full stop is a list's number or a
# date ("1. ", "1919. 3. 1. "), not an end.
_SENTENCE_END = re.compile(r"(?:(?<![0-9])[.]|[!?。])[\"'”’」』)\]]*\s+|\n+")


def passage_for(kind: str, qa: PreparedQuestion, windows: Sequence[str]) -> str | None:
    """The cleaned passage of one kind for a question of an article with these windows; None where there is none."""
    if kind == "answer":
        return qa["answers"][0] if qa["answers"] else None
    if not qa.get("windows"):
        return None
    text, span = windows[qa["windows"][0]], qa["spans"][0]
    if kind == "context":
        return text
    if span is None:
        return None
    start, end = sentences_around(text, *span, neighbours=1 if kind == "window" else 0)
    return text[start:end]


def sentences_around(text: str, start: int, end: int, neighbours: int = 0) -> tuple[int, int]:
    """The characters of the sentences that hold `start:end`, and of so many sentences more on either side."""
    edges = [0, *(match.end() for match in _SENTENCE_END.finditer(text) if match.end() < len(text)), len(text)]
    first = max(index for index, edge in enumerate(edges[:-1]) if edge <= start)
    last = next(index for index, edge in enumerate(edges) if edge >= end)
    first, last = max(first - neighbours, 0), min(last + neighbours, len(edges) - 1)
    return edges[first], edges[first] + len(text[edges[first] : edges[last]].rstrip())
