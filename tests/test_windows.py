"""Windows: each is read whole, together they leave nothing out, and an edge of one is the inside of another."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search import windows
from search.windows import split_into_windows


def characters(texts: list[str]) -> list[list[tuple[int, int]]]:
    """A token a character, and two special ones."""
    return [[(0, 0), *((place, place + 1) for place in range(len(text))), (0, 0)] for text in texts]


def words(texts: list[str]) -> list[list[tuple[int, int]]]:
    """A token for each two letters of a word; none for white space."""
    return [[(0, 0), *(match.span() for match in re.finditer(r"\S\S?", text)), (0, 0)] for text in texts]


def test_by_hand() -> None:
    # 2 special tokens and 2 of the prompt leave 8 of 12; a quarter of these, 2, is shared.
    assert split_into_windows(["abcdefgh", "abcdefghi", ""], characters, "p:", 12) == [
        [(0, 8)],
        [(0, 8), (6, 9)],
        [(0, 0)],
    ]
    text = "x" * 20
    assert split_into_windows([text], characters, "p:", 12) == [[(0, 8), (6, 14), (12, 20)]]
    assert split_into_windows([text], characters, "p:", None) == [[(0, 20)]]


def test_edges_stand_between_words_where_words_are_short() -> None:
    text = " ".join(f"낱말{number}" for number in range(100))
    (found,) = split_into_windows([text], characters, "", 42)
    assert len(found) > 10
    for begin, end in found:
        assert begin == 0 or text[begin - 1] == " "
        assert end == len(text) or text[end - 1] == " "


@given(
    st.text(alphabet="가나 \n다a1", max_size=400),
    st.integers(12, 60),
    st.sampled_from([characters, words]),
    st.sampled_from([10, 50, 1000]),
)
@settings(max_examples=150, deadline=None)
def test_windows_fit_and_cover(text: str, limit: int, token_spans: windows.TokenSpans, stretch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "_STRETCH", stretch)
        (found,) = split_into_windows([text], token_spans, "p: ", limit)
    assert found[0][0] == 0 and found[-1][1] == len(text)
    for (begin, end), (following, last) in pairwise(found):
        assert begin < following <= end < last
    counts = [len(token_spans(["p: " + text[begin:end]])[0]) for begin, end in found]
    assert max(counts) <= limit
    if len(found) == 1:
        return
    assert len(token_spans(["p: " + text])[0]) > limit or len(text) > stretch
    # They share a quarter of the room, or a token less where the cut goes through one.
    room = limit - len(token_spans(["p: "])[0])
    for (_, end), (following, _) in pairwise(found):
        assert len(token_spans([text[following:end]])[0]) - 2 >= room // 4 - 1


def test_a_window_that_has_more_tokens_by_itself_is_made_shorter() -> None:
    def greedy(texts: list[str]) -> list[list[tuple[int, int]]]:
        """Pairs of letters, and six more tokens wherever a text begins with b: as if cut out of a word."""
        return [
            [(0, 0)] * (8 if text.startswith("b") else 2) + [(p, min(p + 2, len(text))) for p in range(0, len(text), 2)]
            for text in texts
        ]

    text = "b" * 100
    (found,) = split_into_windows([text], greedy, "", 24)
    assert max(len(greedy([text[begin:end]])[0]) for begin, end in found) <= 24
    assert found[0][0] == 0 and found[-1][1] == 100


def test_long_text_without_a_space_takes_no_quadratic_time() -> None:
    asked: list[int] = []

    def counting(texts: list[str]) -> list[list[tuple[int, int]]]:
        asked.extend(len(text) for text in texts)
        return characters(texts)

    text = "가" * 300_000
    (found,) = split_into_windows([text], counting, "passage: ", 512)
    assert found[-1][1] == len(text) and len(found) > 600
    assert max(asked) <= 20_000
    assert sum(asked) < 3 * len(text)
