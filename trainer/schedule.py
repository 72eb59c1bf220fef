"""The learning rate over a run: linear warm-up, linear decay."""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)


def warmup_within(warmup_steps: int, total_steps: int) -> int:
    """The warm-up steps of a run: as asked, but never more than a tenth of it: a longer one leaves no time to learn."""
    longest = total_steps // 10
    if warmup_steps <= longest:
        return warmup_steps
    logger.info("Warm-up shortened from %d to %d steps: a tenth of the %d steps", warmup_steps, longest, total_steps)
    return longest


def linear_warmup_and_decay(warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    """Step (from 0) → factor on the learning rate: linear up to 1 at step `warmup_steps`, then linear towards 0, which it
    would reach one step after the last: neither the first step nor the last is wasted on a rate of 0."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return factor
