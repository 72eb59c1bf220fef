"""How far a mean over questions can be trusted: bootstrap intervals, of whole articles where these are known.

The questions of one article are about the same text: where a model reads that text well, it answers many of them. Drawing
questions one by one takes them for independent and gives intervals that are too narrow. What is drawn with replacement is
therefore the article with all of its questions (the cluster bootstrap; Davison and Hinkley, Bootstrap Methods and their
Application, 1997, section 3.8), and the interval says what other articles of this kind would give. The corpus stays whole
and as it is: what a larger one would do is not in the interval. Two models are compared by the differences on each question,
drawn together (the paired bootstrap), so that what is hard for both drops out.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
# Five articles that all agree are no evidence at this level yet: in a sign test p = 2 · .5⁵ = .06.
FEWEST_GROUPS = 6
_BLOCK = 4_000_000  # draws held at once

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its interval; no interval, (None, None), where there are fewer than FEWEST_GROUPS groups."""

    value: float
    interval: tuple[float, float] | tuple[None, None]

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies above or below zero, else 0."""
        low, high = self.interval
        if low is None or high is None:
            return 0
        return 1 if low > 0 else -1 if high < 0 else 0

    @property
    def margin(self) -> float | None:
        """Half the width of the interval."""
        low, high = self.interval
        return None if low is None or high is None else (high - low) / 2


def estimate_means(columns: Mapping[Key, np.ndarray], groups: np.ndarray, seed: int = 0) -> dict[Key, Estimate]:
    """The mean of each column (Q,) with its bootstrap interval; `groups` (Q,) tells which values are drawn together."""
    if not columns:
        return {}
    values = np.column_stack(list(columns.values()))
    intervals: list[tuple[float, float] | tuple[None, None]] = [(None, None)] * len(columns)
    if len(np.unique(groups)) >= FEWEST_GROUPS:
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(resampled_means(values, groups, seed), [tail, 1 - tail], axis=0)
        intervals = list(zip(low.tolist(), high.tolist(), strict=True))
    return {
        key: Estimate(*both)
        for key, both in zip(columns, zip(values.mean(axis=0).tolist(), intervals, strict=True), strict=True)
    }


def resampled_means(values: np.ndarray, groups: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """(R, M): the means of (Q, M) `values` in resamples of the groups, as many as there are, drawn with replacement.

    All columns see the same draws. A resample's mean is over its questions: a group counts by its size.
    """
    _, numbers = np.unique(groups, return_inverse=True)
    n_groups = int(numbers.max()) + 1
    totals = np.zeros((n_groups, values.shape[1] + 1))  # of each group: sums of the columns, number of values
    np.add.at(totals, numbers, np.column_stack([values, np.ones(len(values))]))
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, step := max(1, _BLOCK // n_groups)):
        rows = min(step, resamples - start)
        drawn = generator.integers(n_groups, size=(rows, n_groups)) + n_groups * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * n_groups).reshape(rows, n_groups)
        sums = times.astype(float) @ totals  # (r, G) @ (G, M + 1)
        means.append(sums[:, :-1] / sums[:, -1:])
    return np.concatenate(means)
