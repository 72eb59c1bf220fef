"""Exact search in unit vectors: int8 codes rule out most rows, float32 gives the scores of the others.

A vector x is kept twice: as float32, and as int8 codes c with one scale s, x ≈ s · c. A search reads all codes, a quarter
of the bytes, in blocks; NumKong multiplies them (NumPy has no fast product of int8; `docs/SEARCH.md` compares others). It is
known how far off such a score can be: a row that cannot be among the best is not looked at again, all others are scored in
float32. So the answer is that of float32 alone, also among rows whose cosines are closer to each other than int8 can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numkong
import numpy as np

# Among so many vectors for k results no codes are read.
_FEW_PER_RESULT = 4
_FEW = 128
_MANY_PER_RESULT = 50  # rows for k results that are worth scoring k of them first, to rule out some of the others
_WIDER = 1.001  # what rounding adds to the bounds: to half a scale a number, and to the length of 1
_QUERIES_AT_ONCE = 64  # at most 256: their numbers are kept in a byte
_BLOCK_SCORES = 1 << 19  # scores held at once: they stay in the processor's cache
_WAITING = 1 << 17  # pairs of query and row that wait to be scored in float32
_ROWS_AT_ONCE = 1 << 16  # rows that are converted, gathered or copied at once
_LOWEST = np.finfo(np.float32).min  # above -inf, the score of what is left out
_LEVELS = 127  # int8 codes from -127 to 127


class Part(NamedTuple):
    """m vectors that were added together; arrays in memory or mapped from disk."""

    exact: np.ndarray  # (m, D) float32
    codes: np.ndarray  # (m, D) int8
    scales: np.ndarray  # (m,) float32


class Grown:
    """An array that rows are added to, few at a time and often: it lies in a larger one, which is doubled when it is full.

    So a row is copied about once more, however many come after it. An array that was handed out before stays as it is.
    """

    def __init__(self, rows: np.ndarray):
        self.rows = rows  # (m, ...)
        self._room = rows

    def add(self, rows: np.ndarray) -> None:
        """Put (n, ...) rows behind the others."""
        if not len(rows):
            return
        before, after = len(self.rows), len(self.rows) + len(rows)
        if after > len(self._room):
            self._room = np.empty((max(after, 2 * before), *self.rows.shape[1:]), self.rows.dtype)
            self._room[:before] = self.rows
        self._room[before:after] = rows
        self.rows = self._room[:after]


class Vectors:
    """M vectors of length 1 and D numbers, in the order in which they came."""

    def __init__(self, parts: list[Part] | None = None):
        self.parts = parts or []
        self._growing: list[Grown] | None = None  # the last part's arrays, where it was added here

    def __len__(self) -> int:
        return sum(len(part.scales) for part in self.parts)

    @property
    def dimension(self) -> int:
        """D; 0 before the first vector."""
        return self.parts[0].exact.shape[1] if self.parts else 0

    def append(self, vectors: np.ndarray) -> None:
        """Add (m, D) float32 rows."""
        new = quantize(vectors)
        # Small additions grow together, so that a thousand of them are not a thousand parts.
        if self._growing and len(self.parts[-1].scales) < _ROWS_AT_ONCE:
            for grown, rows in zip(self._growing, new, strict=True):
                grown.add(rows)
            self.parts[-1] = Part(*(grown.rows for grown in self._growing))
        else:
            self._growing = [Grown(array) for array in new]
            self.parts.append(new)

    def top(self, queries: np.ndarray, k: int, keep: np.ndarray | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
        """The k best rows of each query and their cosines, best first; equal ones in their order.

        Args:
            queries: (Q, D) float32, of length 1.
            k: how many, at least 1; fewer where there are fewer.
            keep: (M,) bool, False where a row is left out. None keeps all.

        Returns:
            Q times (k,) int64 and (k,) float32.
        """
        search = self._scan if len(self) > max(_FEW_PER_RESULT * k, _FEW) else self._without_codes
        found = []
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            found += search(queries[start : start + _QUERIES_AT_ONCE], k, keep)
        return found

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """(r, D) float32 of (r,) row numbers."""
        if len(self.parts) == 1:  # one gathering the less, the usual case
            return self.parts[0].exact[rows]
        found = np.empty((len(rows), self.dimension), np.float32)
        first = 0
        for part in self.parts:
            inside = np.flatnonzero((rows >= first) & (rows < first + len(part.scales)))
            found[inside] = part.exact[rows[inside] - first]
            first += len(part.scales)
        return found

    def blocks(self) -> Iterator[Part]:
        """All rows, some at a time."""
        for part in self.parts:
            for start in range(0, len(part.scales), _ROWS_AT_ONCE):
                yield Part(*(array[start : start + _ROWS_AT_ONCE] for array in part))

    def _without_codes(self, queries: np.ndarray, k: int, keep: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray]]:
        """`top` where there are few rows."""
        rows = np.arange(len(self)) if keep is None else np.flatnonzero(keep)
        return [_first(rows, self._exact_scores(query, rows), k) for query in queries]

    def _scan(self, queries: np.ndarray, k: int, keep: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray]]:
        """`top` of at most `_QUERIES_AT_ONCE` queries, by way of the codes."""
        asked = quantize(queries)
        best = _Best(asked, k, self._exact_scores)
        for first, scores, scales in self._int8_scores(asked.codes):
            if keep is not None:
                scores[~keep[first : first + len(scores)]] = -np.inf
            best.offer(first, scores, scales)
        return best.found()

    def _int8_scores(self, queries: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Scores of (Q, D) int8 codes, each query's on a scale of its own.

        Block by block: its first row, (b, Q) float32 scores, (b,) float32 scales of the rows.
        """
        packed = numkong.dots_pack(queries, dtype="int8")
        size = max(_BLOCK_SCORES // len(queries), 1)
        first = 0
        for part in self.parts:
            for start in range(0, len(part.codes), size):
                dots = np.asarray(numkong.dots_packed(part.codes[start : start + size], packed))  # (b, D) @ (D, Q) -> (b, Q)
                scales = part.scales[start : start + size]
                yield first + start, np.multiply(dots, scales[:, None], dtype=np.float32, casting="same_kind"), scales
            first += len(part.codes)

    def _exact_scores(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Cosines of one query and some rows, (r,) float32."""
        scores = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            # Row by row and not by a matrix product, whose rounding depends on where in the matrix a row stands: equal
            # vectors must have equal scores.
            some = slice(start, start + _ROWS_AT_ONCE)
            scores[some] = np.einsum("rd,d->r", self.rows(rows[some]), query)
        return np.clip(scores, -1, 1)


class _Best:
    """The k best of the rows offered so far, for each of Q queries.

    v ≈ s·c and q ≈ z·d, codes c and d. Each number of v is off by s/2 at most, the product of the codes thus by sum|d| / 2,
    and with v of length 1

        q·v ≤ z·s·(c·d + sum|d| / 2) + |q - z·d|.

    Where that is less than the k-th best score so far, the row is not among the best. All others are scored in float32.
    """

    def __init__(self, queries: Part, k: int, exact_scores: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        self._queries, self._k, self._exact_scores = queries, k, exact_scores
        count, dimension = queries.exact.shape
        self._half = _WIDER / 2 * np.abs(queries.codes).sum(axis=1, dtype=np.float32)
        off = np.linalg.norm(queries.exact - queries.scales[:, None] * queries.codes, axis=1)
        # The last term: what rounding in float32 does to a sum of D products, and to the handful of steps beside it.
        self._off = _WIDER * off + (dimension + 8) * np.finfo(np.float32).eps
        self._needed = np.full(count, _LOWEST, np.float32)  # s·(c·d + sum|d| / 2) of a row that can be among the best
        self._found = [(np.empty(0, np.int64), np.empty(0, np.float32))] * count
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # query, row, and what compares to `needed`
        self._waiting_count = 0

    def offer(self, first: int, scores: np.ndarray, scales: np.ndarray) -> None:
        """s·c·d, (b, Q), of the rows from `first` on, and s, (b,). A score of -inf is never among the best."""
        hits = self._hits(scores, scales)
        if np.count_nonzero(hits) > hits.size // 8 and len(scores) > self._k:
            self._expect(first, scores)
            hits = self._hits(scores, scales)
        query, row = _places(hits)
        most = scores[row, query] + scales[row] * self._half[query]
        kept = most >= self._needed[query]
        self._waiting.append((query[kept], first + row[kept], most[kept]))
        self._waiting_count += len(self._waiting[-1][0])
        if self._waiting_count > max(_WAITING, _FEW_PER_RESULT * self._k * len(self._found)):
            self._settle()

    def found(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Q times (k,) rows and float32 scores, best first; equal ones in their order."""
        self._settle()
        return self._found

    def _hits(self, scores: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """(b, Q) bool: True where a row can be among the best, and for some more, as if all had the largest scale."""
        return scores >= self._needed - scales.max() * self._half

    def _expect(self, first: int, scores: np.ndarray) -> None:
        """Raise what is needed by the best rows of a block, so that not all of it waits."""
        split = len(scores) - self._k
        least = np.partition(np.ascontiguousarray(scores.T), split)[:, split]
        query, row = _places(scores >= np.maximum(least, _LOWEST))
        for number, some in enumerate(_by_query(query, len(self._found))):
            self._need(number, self._scores(number, first + row[some[: self._k]]))

    def _need(self, number: int, scores: np.ndarray) -> None:
        """Raise what a query needs to the k-th best of some float32 scores, where these are so many."""
        if len(scores) >= self._k:
            least = float(np.partition(scores, -self._k)[-self._k])
            needed = (least - self._off[number]) / self._queries.scales[number]
            self._needed[number] = max(self._needed[number], needed)

    def _settle(self) -> None:
        """Score what waits."""
        if not self._waiting:
            return
        query, row, most = (np.concatenate(column) for column in zip(*self._waiting, strict=True))
        for number, some in enumerate(_by_query(query, len(self._found))):
            self._take(number, row[some], most[some])
        self._waiting, self._waiting_count = [], 0

    def _take(self, number: int, rows: np.ndarray, most: np.ndarray) -> None:
        """Put those of a query's rows that are among the best where they belong."""
        if len(rows) > _MANY_PER_RESULT * self._k:
            promising = np.argpartition(most, -self._k)[-self._k :]
            self._need(number, self._scores(number, rows[promising]))
        rows = rows[most >= self._needed[number]]
        before, scores = self._found[number]
        scores = np.concatenate([scores, self._scores(number, rows)])
        self._found[number] = _first(np.concatenate([before, rows]), scores, self._k)
        self._need(number, self._found[number][1])

    def _scores(self, number: int, rows: np.ndarray) -> np.ndarray:
        return self._exact_scores(self._queries.exact[number], rows)


def _places(hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Queries, uint8, and rows, int64, where (b, Q) bool is True; by rows."""
    places = np.flatnonzero(hits)
    row = places // hits.shape[1]
    return (places - row * hits.shape[1]).astype(np.uint8), row  # bytes: a stable sort of them is quick


def _by_query(query: np.ndarray, queries: int) -> list[np.ndarray]:
    """For each query its places in (n,) uint8, ascending."""
    order = np.argsort(query, kind="stable")
    return np.split(order, np.cumsum(np.bincount(query, minlength=queries))[:-1])


def _first(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of some rows and their scores, best first; equal ones in the order of their rows."""
    best = np.lexsort((rows, -scores))[:k]
    return rows[best], scores[best]


def quantize(vectors: np.ndarray) -> Part:
    """(m, D) float32 -> the same with int8 codes and scales: x ≈ scale · code, off by at most half a scale a number."""
    exact = np.ascontiguousarray(vectors, np.float32)
    codes = np.empty(exact.shape, np.int8)
    scales = np.empty(len(exact), np.float32)
    for start in range(0, len(exact), _ROWS_AT_ONCE):
        some = exact[start : start + _ROWS_AT_ONCE]
        largest = np.abs(some).max(axis=1, initial=0)
        scale = np.where(largest > 0, largest, 1) / np.float32(_LEVELS)
        codes[start : start + len(some)] = np.rint(some / scale[:, None])
        scales[start : start + len(some)] = scale
    return Part(exact, codes, scales)
