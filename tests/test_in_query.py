"""What a query says itself: worked by hand, and the look-up equal to asking each passage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.in_query import rows_in_queries, stands_in

QUERY = "1989년 2월, 흥선대원군(Daewongun)과 대립한 명성 황후의 본관은?"


@pytest.mark.parametrize(
    ("passage", "stands"),
    [
        ("흥선대원군", True),
        ("DAEWONGUN", True),
        ("Ｄａｅｗｏｎｇｕｎ", True),  # of full width
        ("흥선대원군 Daewongun", True),  # punctuation apart
        ("명성 황후", True),  # before a particle
        ("'명성' 황후.", True),
        ("명성황후", False),  # two words of the query are no one word
        ("대원군", False),  # not at the beginning of a word
        ("1989년 2월", True),
        ("2월", True),
        ("1989", True),  # the whole number
        ("198", False),  # the beginning of one
        ("2", True),
        ("9년", False),
        ("본관은 여흥", False),
        ("여흥", False),
        ("?", False),  # without a letter or digit
        (" ", False),
    ],
)
def test_by_hand(passage, stands):
    assert stands_in(passage, QUERY) == stands
    (rows,) = rows_in_queries([passage], [QUERY])
    assert rows.tolist() == [0] * stands


def test_a_number_is_found_behind_one_that_begins_like_it():
    assert stands_in("19", "1989년의 19명") and not stands_in("19", "1989년")


PIECES = st.lists(st.sampled_from(["가", "나", "1", "12", " ", ", ", "A", "ａ"]), max_size=9).map("".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=6), st.lists(PIECES, max_size=4))
def test_the_look_up_is_each_passage_asked(passages, queries):
    found = rows_in_queries(passages, queries)
    expected = [[row for row, passage in enumerate(passages) if stands_in(passage, query)] for query in queries]
    assert [rows.tolist() for rows in found] == expected
    assert all(rows.dtype == np.int64 for rows in found)


def test_long_texts():
    words = [f"낱말{number}" for number in range(20_000)]
    assert stands_in(" ".join(words[5_000:15_000]), " ".join(words))
    assert [rows.tolist() for rows in rows_in_queries(words, [" ".join(words[:30])] * 2)] == [list(range(30))] * 2
