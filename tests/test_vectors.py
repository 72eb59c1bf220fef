"""The search in vectors: against brute force in float32, against a stable sort, and what rounding must not do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search import vectors
from search.vectors import Grown, Part, Vectors, quantize


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def like_e5(count: int, dimension: int = 48, seed: int = 0) -> np.ndarray:
    """Unit vectors in clusters around one common direction: cosines from .6 to 1."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(50, dimension)) * 0.5 + 1
    return unit(centres[random.integers(0, 50, count)] + 0.3 * random.normal(size=(count, dimension)))


def brute_force(stored: np.ndarray, query: np.ndarray, k: int, keep: np.ndarray | None = None) -> list[int]:
    scores = stored.astype(np.float64) @ query.astype(np.float64)
    rows = np.arange(len(stored)) if keep is None else np.flatnonzero(keep)
    return rows[np.argsort(-scores[rows], kind="stable")][:k].tolist()


def float32_alone(stored: np.ndarray, query: np.ndarray, k: int) -> tuple[list[int], list[float]]:
    """What a search promises to the last bit: rows and scores, one row at a time."""
    scores = np.clip(np.einsum("rd,d->r", stored, query), -1, 1)
    rows = np.argsort(-scores, kind="stable")[:k]
    return rows.tolist(), scores[rows].tolist()


def near_duplicates(count: int, spread: float, dimension: int = 384, seed: int = 0) -> np.ndarray:
    """Unit vectors around one; the cosines to a query are `spread` apart (one standard deviation, or a little less)."""
    random = np.random.default_rng(seed)
    centre = unit(np.random.default_rng(7).normal(size=(1, dimension)))
    return unit(centre + spread * random.normal(size=(count, dimension)))


@pytest.fixture
def scored_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were scored in float32, call by call."""
    counts: list[int] = []
    scores = Vectors._exact_scores

    def counting(self: Vectors, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        counts.append(len(rows))
        return scores(self, query, rows)

    monkeypatch.setattr(Vectors, "_exact_scores", counting)
    return counts


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan of many blocks in little data, with little that waits."""
    monkeypatch.setattr(vectors, "_BLOCK_SCORES", 700)
    monkeypatch.setattr(vectors, "_FEW", 20)
    monkeypatch.setattr(vectors, "_WAITING", 300)
    monkeypatch.setattr(vectors, "_MANY_PER_RESULT", 2)


def test_codes_by_hand() -> None:
    part = quantize(np.array([[1.0, -0.5, 0.0], [0.0, 0.0, 0.0], [-0.2, 0.1, 0.05]], np.float32))
    assert part.codes.tolist() == [[127, -64, 0], [0, 0, 0], [-127, 64, 32]]
    np.testing.assert_allclose(part.scales, [1 / 127, 1 / 127, 0.2 / 127], rtol=1e-6)
    assert part.codes.dtype == np.int8 and part.scales.dtype == np.float32


def test_codes_are_off_by_half_a_scale_at_most() -> None:
    exact = like_e5(500)
    part = quantize(exact)
    error = np.abs(part.scales[:, None] * part.codes - exact)
    assert (error <= part.scales[:, None] * 0.5001).all()


@pytest.mark.parametrize("dimension", [1, 33, 200])
@pytest.mark.parametrize("queries", [1, 70])
def test_equals_brute_force(small_blocks: None, dimension: int, queries: int) -> None:
    stored, asked = like_e5(1500, dimension), like_e5(queries, dimension, seed=1)
    index = Vectors()
    for piece in np.array_split(stored, 3):
        index.append(piece)
    found = index.top(asked, 5)
    assert len(found) == queries
    for query, (rows, scores) in zip(asked, found, strict=True):
        assert rows.dtype == np.int64 and scores.dtype == np.float32
        exact = stored.astype(np.float64) @ query
        np.testing.assert_allclose(scores, np.sort(exact)[::-1][:5], atol=2e-6)
        np.testing.assert_allclose(scores, exact[rows], atol=2e-6)


@pytest.mark.parametrize("spread", [0.0, 1e-4, 3e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("queries", [1, 70])
def test_near_duplicates_are_told_apart_as_by_float32(spread: float, queries: int) -> None:
    stored = near_duplicates(4000, spread)
    asked = unit(near_duplicates(queries, 0.02, seed=1))
    index = Vectors()
    for piece in np.array_split(stored, 3):
        index.append(piece)
    for query, (rows, scores) in zip(asked, index.top(asked, 5), strict=True):
        assert (rows.tolist(), scores.tolist()) == float32_alone(stored, query, 5)


def test_near_duplicates_in_small_blocks_with_rows_left_out(small_blocks: None) -> None:
    stored, asked = near_duplicates(1500, 3e-4), near_duplicates(3, 0.02, seed=1)
    keep = np.random.default_rng(2).random(1500) < 0.5
    index = Vectors()
    index.append(stored)
    for query, (rows, scores) in zip(asked, index.top(asked, 5, keep), strict=True):
        expected, best = float32_alone(stored[keep], query, 5)
        assert (rows.tolist(), scores.tolist()) == (np.flatnonzero(keep)[expected].tolist(), best)


def test_the_worst_that_rounding_can_do() -> None:
    """All numbers of the best lose nearly half a code, as do the query's where it counts most; its rivals lose nothing.

    In codes, before all are divided by one length; the last two numbers and the zeros are there for scales and lengths. One
    row has another scale.
    """
    sign = np.where(np.arange(300) % 2, 1.0, -1.0)
    query = np.concatenate([20 + 0.49 * sign, np.zeros(300), [0, 127]])
    best = np.concatenate([126 * sign + 0.49, np.zeros(300), [127, 0]])
    near = np.where(np.arange(300) < 172, 4.0, 3.0)
    rest = np.sqrt((best @ best - near @ near - 127**2) / 300)
    rival = np.concatenate([near, np.full(300, rest), [127, 0]])
    stored = unit(np.stack([rival] * 200 + [best] + [rival] * 200 + [np.full(602, -1.0)]))
    products = quantize(stored).codes.astype(int) @ quantize(unit(query[None])).codes[0].astype(int)
    assert products[200] == 0 and products[0] == 20 * near.sum() and 0.998 < rival @ query / (best @ query) < 1
    index = Vectors()
    index.append(stored)
    assert index.top(unit(query[None]), 1)[0][0].tolist() == [200]


@pytest.mark.parametrize("queries", [1, 64])
def test_ordinary_vectors_are_scored_by_codes(scored_rows: list[int], queries: int) -> None:
    stored, asked = like_e5(20_000, 384), like_e5(queries, 384, seed=1)
    index = Vectors()
    index.append(stored)
    for query, (rows, scores) in zip(asked, index.top(asked, 5), strict=True):
        assert (rows.tolist(), scores.tolist()) == float32_alone(stored, query, 5)
    assert sum(scored_rows) < 0.02 * queries * len(stored)


def test_rows_that_are_left_out(small_blocks: None) -> None:
    stored, asked = like_e5(1000), like_e5(4, seed=1)
    keep = np.random.default_rng(2).random(1000) < 0.3
    index = Vectors()
    index.append(stored)
    for query, (rows, _) in zip(asked, index.top(asked, 5, keep), strict=True):
        assert rows.tolist() == brute_force(stored, query, 5, keep)
    few = np.arange(1000) < 3
    assert sorted(index.top(asked, 5, few)[0][0].tolist()) == [0, 1, 2]
    assert index.top(asked, 5, np.zeros(1000, bool))[0][0].tolist() == []


@given(
    st.lists(st.sampled_from([-0.5, 0.0, 0.25, 0.5]), min_size=1, max_size=120),
    st.integers(1, 130),
    st.integers(1, 40),
    st.data(),
)
@settings(max_examples=80, deadline=None)
def test_is_a_stable_sort_cut_off(values: list[float], k: int, candidates: int, data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, 4))
    block = data.draw(st.integers(1, 50))
    stored = np.array([[value, (1 - value**2) ** 0.5] for value in values], np.float32)
    index = Vectors([quantize(piece) for piece in np.array_split(stored, parts)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "_FEW", candidates)
        patch.setattr(vectors, "_BLOCK_SCORES", block)
        patch.setattr(vectors, "_WAITING", block)
        patch.setattr(vectors, "_ROWS_AT_ONCE", 7)
        rows, scores = index.top(np.array([[1.0, 0.0]], np.float32), k)[0]
    expected = sorted(range(len(values)), key=lambda position: -values[position])[:k]
    assert rows.tolist() == expected
    assert scores.tolist() == [values[position] for position in expected]


def test_equal_vectors_have_equal_scores_wherever_they_stand(small_blocks: None) -> None:
    stored = like_e5(600, 37)
    stored[[0, 77, 311, 599]] = stored[5]
    index = Vectors()
    index.append(stored[:300])
    index.append(stored[300:])
    rows, scores = index.top(stored[5:6], 5)[0]
    assert rows.tolist() == [0, 5, 77, 311, 599]
    assert len(set(scores.tolist())) == 1


def test_no_score_is_beyond_one() -> None:
    stored = like_e5(300)
    index = Vectors()
    index.append(stored)
    assert max(float(scores[0]) for _, scores in index.top(stored, 1)) == 1


def test_small_additions_grow_together_and_large_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_ROWS_AT_ONCE", 10)
    index = Vectors()
    for row in like_e5(25):
        index.append(row[None])
    assert [len(part.scales) for part in index.parts] == [10, 10, 5]
    assert len(index) == 25 and index.dimension == 48
    np.testing.assert_array_equal(index.rows(np.array([0, 24, 11])), like_e5(25)[[0, 24, 11]])
    assert [len(block.scales) for block in index.blocks()] == [10, 10, 5]


def test_single_additions_copy_a_row_about_once() -> None:
    index, copied = Vectors(), 0
    stored = like_e5(1000)
    for number, row in enumerate(stored):
        before = index.parts[-1] if index.parts else None
        index.append(row[None])
        if before and not all(map(np.shares_memory, before, index.parts[-1])):
            copied += number
    assert copied < 2 * len(stored)
    assert len(index.parts) == 1
    for array, whole in zip(index.parts[0], quantize(stored), strict=True):
        np.testing.assert_array_equal(array, whole)


def test_what_was_handed_out_stays_as_it_is() -> None:
    mapped = np.arange(6, dtype=np.uint32).reshape(2, 3)
    mapped.flags.writeable = False  # as an array mapped from disk
    grown, seen = Grown(mapped), []
    for number in range(20):
        grown.add(np.full((number % 3, 3), number, np.uint32))
        seen.append((grown.rows, grown.rows.tolist()))
    assert all(rows.tolist() == before for rows, before in seen)
    assert grown.rows.dtype == np.uint32 and grown.rows[:2].tolist() == mapped.tolist()
    assert grown.rows[2:].tolist() == [[number] * 3 for number in range(20) for _ in range(number % 3)]


def test_nothing_in_it() -> None:
    assert len(Vectors()) == Vectors().dimension == 0
    assert Vectors().top(np.empty((0, 4), np.float32), 3) == []
    assert isinstance(quantize(np.empty((0, 4), np.float32)), Part)
