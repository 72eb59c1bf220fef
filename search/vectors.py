"""Exact search in unit vectors: int8 codes find the candidates, float32 gives their scores.

A vector x is kept twice: as float32, and as int8 codes c with one scale s, x ≈ s · c. A search reads all codes, a quarter
of the bytes, in blocks; NumKong multiplies them (NumPy has no fast product of int8; `docs/SEARCH.md` compares others). Of a
block's scores only those above the best so far are looked at: nothing is sorted whole. The few candidates are scored again
in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numkong
import numpy as np

# Candidates for k results: the int8 score is off by .0004 (one standard deviation, E5 small on KorQuAD).
_CANDIDATES_PER_RESULT = 4
_LEAST_CANDIDATES = 128
_QUERIES_AT_ONCE = 64
_BLOCK_SCORES = 1 << 19  # scores held at once: they stay in the processor's cache
_ROWS_AT_ONCE = 1 << 16  # rows that are converted, gathered or copied at once
_LEVELS = 127  # int8 codes from -127 to 127


class Part(NamedTuple):
    """m vectors that were added together; arrays in memory or mapped from disk."""

    exact: np.ndarray  # (m, D) float32
    codes: np.ndarray  # (m, D) int8
    scales: np.ndarray  # (m,) float32


class Vectors:
    """M vectors of length 1 and D numbers, in the order in which they came."""

    def __init__(self, parts: list[Part] | None = None):
        self.parts = parts or []

    def __len__(self) -> int:
        return sum(len(part.scales) for part in self.parts)

    @property
    def dimension(self) -> int:
        """D; 0 before the first vector."""
        return self.parts[0].exact.shape[1] if self.parts else 0

    def append(self, vectors: np.ndarray) -> None:
        """Add (m, D) float32 rows."""
        new = quantize(vectors)
        last = self.parts[-1] if self.parts else None
        # Small additions grow together, so that a thousand of them are not a thousand parts.
        if last and len(last.scales) < _ROWS_AT_ONCE and not isinstance(last.exact, np.memmap):
            self.parts[-1] = Part(*(np.concatenate(pair) for pair in zip(last, new, strict=True)))
        else:
            self.parts.append(new)

    def top(self, queries: np.ndarray, k: int, keep: np.ndarray | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
        """The k best rows of each query and their cosines, best first; equal ones in their order.

        Args:
            queries: (Q, D) float32, of length 1.
            k: how many; fewer where there are fewer.
            keep: (M,) bool, False where a row is left out. None keeps all.

        Returns:
            Q times (k,) int64 and (k,) float32.
        """
        found = []
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            block = queries[start : start + _QUERIES_AT_ONCE]
            for query, rows in zip(block, self._candidates(block, k, keep), strict=True):
                scores = self._exact_scores(query, rows)
                best = np.lexsort((rows, -scores))[:k]
                found.append((rows[best], scores[best]))
        return found

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """(r, D) float32 of (r,) row numbers."""
        found = np.empty((len(rows), self.dimension), np.float32)
        first = 0
        for part in self.parts:
            inside = (rows >= first) & (rows < first + len(part.scales))
            found[inside] = part.exact[rows[inside] - first]
            first += len(part.scales)
        return found

    def blocks(self) -> Iterator[Part]:
        """All rows, some at a time."""
        for part in self.parts:
            for start in range(0, len(part.scales), _ROWS_AT_ONCE):
                yield Part(*(array[start : start + _ROWS_AT_ONCE] for array in part))

    def _candidates(self, queries: np.ndarray, k: int, keep: np.ndarray | None) -> list[np.ndarray]:
        """For each query the rows whose int8 score is among the best; all rows where these are few."""
        count = max(_CANDIDATES_PER_RESULT * k, _LEAST_CANDIDATES)
        if count >= len(self):
            rows = np.arange(len(self)) if keep is None else np.flatnonzero(keep)
            return [rows] * len(queries)
        best = _Best(len(queries), count)
        for first, scores in self._int8_scores(queries):
            if keep is not None:
                scores[~keep[first : first + len(scores)]] = -np.inf
            best.offer(first, scores)
        return best.rows()

    def _int8_scores(self, queries: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Block by block: its first row, and (b, Q) float32 approximate scores, each query's on a scale of its own."""
        packed = numkong.dots_pack(quantize(queries).codes, dtype="int8")
        size = max(_BLOCK_SCORES // len(queries), 1)
        first = 0
        for part in self.parts:
            for start in range(0, len(part.codes), size):
                dots = np.asarray(numkong.dots_packed(part.codes[start : start + size], packed))  # (b, D) @ (D, Q) -> (b, Q)
                scales = part.scales[start : start + size, None]
                yield first + start, np.multiply(dots, scales, dtype=np.float32, casting="same_kind")
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
    """The `count` best scores of each of Q queries seen so far, and the rows they belong to."""

    def __init__(self, queries: int, count: int):
        self._queries, self._count = queries, count
        self._threshold = np.full(queries, -np.inf, np.float32)  # only what reaches it can be among the best
        self._found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]  # query, row, score
        self._pending = 0

    def offer(self, first: int, scores: np.ndarray) -> None:
        """Scores (b, Q) of the rows from `first` on. -inf is never among the best."""
        hits = scores >= self._threshold
        if np.count_nonzero(hits) > self._queries * self._count and len(scores) > self._count:
            split = len(scores) - self._count
            self._threshold = np.maximum(self._threshold, np.partition(scores, split, axis=0)[split])
            hits = scores >= self._threshold
        places = np.flatnonzero(hits)
        self._found.append((places % self._queries, first + places // self._queries, scores.ravel()[places]))
        self._pending += len(places)
        if self._pending > 4 * self._queries * self._count:
            self._settle()

    def rows(self) -> list[np.ndarray]:
        """The best rows of each query, ascending."""
        self._settle()
        query, row, _ = self._found[0]
        return [np.sort(row[query == number]) for number in range(self._queries)]

    def _settle(self) -> None:
        """Drop what is no longer among the best; of equal scores the first rows stay."""
        query, row, score = (np.concatenate(column) for column in zip(*self._found, strict=True))
        real = np.isfinite(score)
        query, row, score = query[real], row[real], score[real]
        order = np.lexsort((row, -score, query))
        query, row, score = query[order], row[order], score[order]
        rank = np.arange(len(query)) - np.searchsorted(query, query)
        kept = rank < self._count
        last = rank == self._count - 1
        self._threshold[query[last]] = score[last]
        self._found = [(query[kept], row[kept], score[kept])]
        self._pending = 0


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
