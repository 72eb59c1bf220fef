"""Dropout that is cheap on a CPU, where drawing masks is otherwise a fifth of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 256  # of a random byte
_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # whole numbers by their bytes


def fast_dropout(source: Tensor, p: float) -> Tensor:
    """Inverted dropout of `source`, any shape; a new mask at each call.

    On a CPU the mask comes from random bytes, eight to a draw of torch's generator: `p` is rounded to a multiple of 1/256
    (.1 becomes .1016) and what is kept is divided by exactly its share. Elsewhere torch's own kernel is the fast one.
    """
    if source.device.type != "cpu":
        return F.dropout(source, p)
    return _ByteDropout.apply(source, drop_threshold(p))


def drop_threshold(p: float) -> int:
    """Random bytes below it drop: so many of 256; 0 only where p is, and never all."""
    return min(max(1, round(p * _LEVELS)), _LEVELS - 1) if p else 0


def kept_factor(threshold: int) -> float:
    """What is kept is multiplied by it, so that the mean stays."""
    return _LEVELS / (_LEVELS - threshold)


def random_bytes(shape: Sequence[int]) -> Tensor:
    """uint8 of any shape on the CPU, eight to a draw of torch's generator."""
    count = math.prod(shape)
    words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.uint8)[:count].view(*shape)


def dropped(source: Tensor, drawn: Tensor, threshold: int) -> Tensor:
    """A copy of `source` with zeros where the bytes `drawn`, of its shape, are below the threshold.

    By a mask of bits: torch's comparisons, and products with their results, take several times as long on a CPU.
    """
    whole = _WHOLE[source.element_size()]
    # A byte below the threshold gives a number that is not negative, whose sign bit, spread over all its bits, is 0.
    mask = drawn.to(whole).neg_().add_(threshold - 1).bitwise_right_shift_(8 * source.element_size() - 1)
    return mask.bitwise_and_(source.view(whole)).view(source.dtype)


class _ByteDropout(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, source: Tensor, threshold: int) -> Tensor:
        drawn = random_bytes(source.shape)
        context.save_for_backward(drawn)
        context.threshold = threshold
        return dropped(source, drawn, threshold).mul_(kept_factor(threshold))

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (drawn,) = context.saved_tensors
        return dropped(gradients[0], drawn, context.threshold).mul_(kept_factor(context.threshold)), None


class FastDropout(nn.Dropout):
    """`nn.Dropout` by `fast_dropout`."""

    def forward(self, source: Tensor) -> Tensor:
        return fast_dropout(source, self.p) if self.training and self.p > 0 else source


class SharedDropout(nn.Module):
    """Dropout whose callers, the `sharers` adapters of one attention block, get one mask for their one input.

    PEFT draws a mask for each of query, key and value.
    """

    def __init__(self, p: float, sharers: int):
        super().__init__()
        self.p = p
        self._sharers = sharers
        self._source: Tensor | None = None
        self._dropped: Tensor | None = None
        self._uses = 0

    def forward(self, source: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return source
        if self._source is not source:
            self._source, self._dropped, self._uses = source, fast_dropout(source, self.p), 0
        dropped = self._dropped
        self._uses += 1
        if self._uses == self._sharers:  # the last one: hold no activations between steps
            self._source = self._dropped = None
        assert dropped is not None
        return dropped
