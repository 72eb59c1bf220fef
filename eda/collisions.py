"""How often a random batch holds one answer twice, exactly, from how often each answer occurs.

    occurrences = [3, 1, 1]                      # three pairs have one answer, two have answers of their own
    collision_chance(occurrences, batch_size=2)  # 3 of the 10 possible batches: .3

In a batch of B pairs every other pair's passage is taken for a wrong answer; where it is the same answer, it is not.
docs/ADVANCED.md, section 4, has the short formula 1 - exp(-B (B - 1) / 2 · c); here nothing is approximated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def same_answer_chance(occurrences: Sequence[int] | np.ndarray) -> float:
    """c: the chance that two different random pairs have one answer; 0 where there are no two pairs.

    `occurrences`: how many pairs have each distinct answer, (answers,).
    """
    counts = np.asarray(occurrences, dtype=np.float64)
    pairs = counts.sum()
    return float((counts * (counts - 1)).sum() / (pairs * (pairs - 1))) if pairs > 1 else 0.0


def collision_chance(occurrences: Sequence[int] | np.ndarray, batch_size: int) -> float:
    """The chance that `batch_size` distinct random pairs hold at least two with one answer.

    Batches without a collision take pairs of different answers: there are e_B(n) of them, the B-th elementary symmetric
    polynomial of the occurrences n, among C(N, B). It is the coefficient of x^B in Π (1 + n_a x), found here as the
    chance that independent draws of each answer, made with odds n_a · tilt, come to B: no term is negative, so nothing
    cancels, and with a tilt that makes B their mean nothing underflows. Accurate to about 1e-9.

    Raises ValueError where there are fewer pairs than the batch takes.
    """
    counts = np.asarray(occurrences)
    pairs = int(counts.sum())
    _check_batch(pairs, batch_size)
    if batch_size > len(counts):
        return 1.0
    n, answers = np.unique(counts, return_counts=True)
    tilt = _tilt(n, answers, batch_size)
    drawn = np.ones(1)  # chance of 0, 1, … answers so far, up to B
    for odds, number in zip(n * tilt, answers, strict=True):
        drawn = np.convolve(drawn, _binomial(int(number), odds, batch_size))[: batch_size + 1]
    log_batches = math.log(drawn[batch_size]) + float(answers @ np.log1p(n * tilt)) - batch_size * math.log(tilt)
    return -math.expm1(min(log_batches - _log_choose(pairs, batch_size), 0.0))


def row_collision_share(occurrences: Sequence[int] | np.ndarray, batch_size: int) -> float:
    """The expected share of a random batch's pairs whose answer another pair of the batch has too.

    A pair whose answer occurs n times meets none of the other n - 1 with chance C(N - n, B - 1) / C(N - 1, B - 1).
    Raises ValueError where there are fewer pairs than the batch takes.
    """
    counts = np.asarray(occurrences)
    pairs = int(counts.sum())
    _check_batch(pairs, batch_size)
    share = 0.0
    for n, answers in zip(*np.unique(counts, return_counts=True), strict=True):
        others = pairs - int(n)
        log_none = _log_choose(others, batch_size - 1) - _log_choose(pairs - 1, batch_size - 1)
        meets = -math.expm1(log_none) if others >= batch_size - 1 else 1.0
        share += float(n * answers) / pairs * meets
    return max(share, 0.0)


def _check_batch(pairs: int, batch_size: int) -> None:
    if not 1 <= batch_size <= pairs:
        raise ValueError(f"batch_size is {batch_size}: give 1 to {pairs}, the number of pairs")


def _tilt(n: np.ndarray, answers: np.ndarray, mean: int) -> float:
    """The factor of the odds at which `mean` answers are drawn on average; by bisection of its logarithm."""
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        odds = n * math.exp(middle)
        low, high = (middle, high) if answers @ (odds / (1 + odds)) < mean else (low, middle)
    return math.exp(low)


def _binomial(draws: int, odds: float, most: int) -> np.ndarray:
    """Chances of 0, 1, … successes in `draws`, up to `most`."""
    successes = np.arange(min(draws, most) + 1)
    log_ways = np.array([_log_choose(draws, int(k)) for k in successes])
    return np.exp(log_ways + successes * math.log(odds) - draws * math.log1p(odds))


def _log_choose(n: int, k: int) -> float:
    """log C(n, k) for 0 ≤ k ≤ n; -inf where k > n."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) if k <= n else -math.inf
