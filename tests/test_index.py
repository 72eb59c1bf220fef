"""The index: what is added, removed, found; ids and metadata; what cannot be used changes nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from search import index as index_module
from search import vectors
from search.errors import InferenceError
from search.index import SearchIndex


def at(*cosines: float) -> np.ndarray:
    """Vectors at these cosines to QUERY."""
    return np.array([[cosine, (1 - cosine**2) ** 0.5] for cosine in cosines], np.float32)


QUERY = np.array([[1.0, 0.0]], np.float32)


def put(
    index: SearchIndex, passages: Sequence[str], cosines: Sequence[float], ids: Any = None, metadata: Any = None
) -> None:
    """Passages of one window each."""
    records = index.check_new(len(passages), ids, metadata)
    for record, passage in zip(records, passages, strict=True):
        record["passage"] = passage
    index.add(records, [[(0, len(passage))] for passage in passages], at(*cosines))


def found(index: SearchIndex, top_k: int = 10) -> list[tuple[str, float]]:
    return [(result["id"], result["score"]) for result in index.search(QUERY, top_k)[0]]


@pytest.fixture
def three() -> SearchIndex:
    index = SearchIndex()
    put(index, ["가", "나", "다"], [0.5, 0.75, -0.25], metadata=[{"title": "제목"}, None, {}])
    return index


def test_results_by_hand(three: SearchIndex) -> None:
    assert three.search(QUERY, 2) == [
        [
            {"rank": 1, "passage": "나", "score": 0.75, "index": 1, "id": "1", "metadata": {}},
            {"rank": 2, "passage": "가", "score": 0.5, "index": 0, "id": "0", "metadata": {"title": "제목"}},
        ]
    ]
    assert three.search(np.empty((0, 2), np.float32), 2) == []
    assert len(three) == 3 and "2" in three and "3" not in three and not three.empty()


def test_add_and_remove(three: SearchIndex) -> None:
    put(three, ["라"], [0.9], ids=["새"])
    assert found(three) == [("새", pytest.approx(0.9)), ("1", 0.75), ("0", 0.5), ("2", -0.25)]
    three.remove(["1", "2"])
    assert [(r["id"], r["rank"], r["index"]) for r in three.search(QUERY, 10)[0]] == [("새", 1, 1), ("0", 2, 0)]
    put(three, ["마", "바"], [0.25, 0.6])  # numbered on: an id is never given again by itself
    assert found(three) == [("새", pytest.approx(0.9)), ("5", pytest.approx(0.6)), ("0", 0.5), ("4", 0.25)]
    put(three, ["다시"], [-0.75], ids=["1"])  # one that was removed is free
    assert found(three)[-1] == ("1", -0.75) and len(three) == 5
    assert three.ids() == ["0", "새", "4", "5", "1"]
    three.remove(three.ids())
    assert three.empty() and three.search(QUERY, 3) == [[]]


def test_numbers_that_are_ones_own_ids_are_left_out() -> None:
    index = SearchIndex()
    put(index, ["가", "나"], [0.1, 0.2], ids=["3", "2"])
    put(index, ["다", "라"], [0.3, 0.4])
    assert index.ids() == ["3", "2", "4", "5"]
    index.remove(["5"])
    put(index, ["마"], [0.5])
    assert index.ids()[-1] == "6"


def test_a_long_passage_is_found_once_by_its_best_window() -> None:
    index = SearchIndex()
    records = index.check_new(3, ["long", "short", "other"], None)
    for record, passage in zip(records, ["가나다라마바사", "아", "자차카타"], strict=True):
        record["passage"] = passage
    index.add(records, [[(0, 3), (2, 5), (4, 7)], [(0, 1)], [(0, 2), (1, 4)]], at(0.1, 0.9, 0.9, 0.5, 0.3, 0.2))
    results = index.search(QUERY, 3)[0]
    assert [(r["id"], r.get("span")) for r in results] == [("long", (2, 5)), ("short", None), ("other", (0, 2))]
    assert [r["rank"] for r in results] == [1, 2, 3]


def test_windows_of_one_passage_do_not_crowd_out_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_FEW", 1)
    monkeypatch.setattr(vectors, "_FEW_PER_RESULT", 1)
    index = SearchIndex()
    records = [dict(record, passage="글" * 300) for record in index.check_new(3, None, None)]
    spans = [(place, place + 1) for place in range(300)]
    index.add(records, [spans, spans[:1], spans[:1]], at(*np.linspace(0.99, 0.9, 300), 0.5, 0.6))
    assert [r["id"] for r in index.search(np.repeat(QUERY, 2, axis=0), 3)[1]] == ["0", "2", "1"]


@pytest.mark.parametrize("top_k", [1, 2, 9])
def test_passages_are_skipped_query_by_query(three: SearchIndex, top_k: int) -> None:
    """The first query skips its best passage, the second none, the third all."""
    skips = [lambda passage: passage == "나", lambda passage: False, lambda passage: True]
    found = three.search(np.repeat(QUERY, 3, axis=0), top_k, skips)
    texts = [[result["passage"] for result in results] for results in found]
    assert texts == [["가", "다"][:top_k], ["나", "가", "다"][:top_k], []]
    assert [result["rank"] for result in found[0]] == [1, 2][:top_k] and found[0][0]["score"] == 0.5


def test_single_additions_leave_what_is_there_where_it_is(three: SearchIndex) -> None:
    three.remove(["0"])  # from now on it is kept which windows count
    moved = 0
    for number in range(500):
        windows, kept = three.windows, three.kept_windows
        put(three, ["글"], [number / 1000])
        moved += not np.shares_memory(windows, three.windows) or not np.shares_memory(kept, three.kept_windows)
    assert moved < 20
    assert len(three) == 502 and len(three.windows) == 503 and three.kept_windows.tolist() == [False] + [True] * 502
    assert [passage_id for passage_id, _ in found(three, 3)] == ["1", "502", "501"]


def test_ties_keep_the_order_in_which_they_were_added() -> None:
    index = SearchIndex()
    put(index, list("가나다"), [0.5, 0.5, 0.25])
    put(index, list("라마"), [0.5, 0.75])
    assert [passage_id for passage_id, _ in found(index)] == ["4", "0", "1", "3", "2"]


@pytest.mark.parametrize(
    ("ids", "metadata", "message"),
    [
        (["a"], None, "2 passages and 1 ids"),
        ("ab", None, "ids must be a list with one entry for each passage, not str"),
        (["a", 7], None, r"ids\[1\] must be text, not int: 7"),
        (["a", " "], None, r"ids\[1\] is empty"),
        (["a", "a"], None, r"ids\[1\] is 'a' for the second time"),
        (["a", "\ud800"], None, r"ids\[1\] is not valid Unicode"),
        (["a", "1"], None, "'1' is in the index already"),
        (["2", "1"], None, "'2', '1' are in the index already"),
        (None, [{}], "2 passages and 1 metadata"),
        (None, {"a": 1}, "metadata must be a list .*not dict"),
        (None, [None, "x"], r"metadata\[1\] must be a dict, not str"),
        (None, [{"a": {1, 2}}, None], r"metadata\[0\] holds what JSON cannot"),
        (None, [{"a": float("nan")}, None], r"metadata\[0\] holds what JSON cannot"),
        (None, [{"a": "\ud800"}, None], r"metadata\[0\] is not valid Unicode"),
    ],
)
def test_what_cannot_be_used_changes_nothing(three: SearchIndex, ids: Any, metadata: Any, message: str) -> None:
    before = found(three)
    with pytest.raises(InferenceError, match=message):
        three.check_new(2, ids, metadata)
    assert found(three) == before and three.next_id == 3


def test_metadata_is_what_json_makes_of_it() -> None:
    index = SearchIndex()
    given = {"pages": (1, 2), 3: None}
    put(index, ["가"], [0.5], metadata=[given])
    given["later"] = True  # the caller's dict is not the index's
    assert index.search(QUERY, 1)[0][0]["metadata"] == {"pages": [1, 2], "3": None}


def test_remove_of_what_is_not_there_removes_nothing(three: SearchIndex) -> None:
    with pytest.raises(InferenceError, match="'x' is not in the index: nothing was removed"):
        three.remove(["1", "x"])
    with pytest.raises(InferenceError, match="'a', 'b', 'c' and 2 more are not in the index"):
        three.remove(list("abcde"))
    with pytest.raises(InferenceError, match="ids must be a list of ids, not str"):
        three.remove("1")
    assert len(three) == 3
    three.remove(["1", "1"])
    assert len(three) == 2


def test_batches_are_what_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_PASSAGES_AT_ONCE", 2)
    index = SearchIndex()
    records = [dict(record, passage="글글글") for record in index.check_new(5, None, None)]
    spans = [[(0, 2), (1, 3)], [(0, 3)], [(0, 3)], [(0, 2), (1, 3)], [(0, 3)]]
    cosines = np.linspace(-0.9, 0.9, 7)
    index.add(records, spans, at(*cosines))
    index.remove(["1", "3"])
    batches = list(index.batches())
    assert [[record["id"] for record in records] for records, _, _ in batches] == [["0", "2"], ["4"]]
    assert [windows for _, windows, _ in batches] == [[spans[0], spans[2]], [spans[4]]]
    np.testing.assert_array_equal(np.concatenate([rows for *_, rows in batches]), at(*cosines[[0, 1, 3, 6]]))
