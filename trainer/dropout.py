"""Dropout that is cheap on a CPU, where drawing masks is otherwise a fifth of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 256  # of a random byte


def fast_dropout(source: Tensor, p: float) -> Tensor:
    """Inverted dropout of `source`, any shape; a new mask at each call.

    On a CPU the mask comes from random bytes, eight to a draw of torch's generator: `p` is rounded to a multiple of 1/256
    (.1 becomes .1016) and what is kept is divided by exactly its share. Elsewhere torch's own kernel is the fast one.
    """
    if source.device.type != "cpu":
        return F.dropout(source, p)
    return _ByteDropout.apply(source, drop_threshold(p))


def drop_threshold(p: float) -> int:
    """Random bytes below it drop: so many of 256; 0 only where p is."""
    return max(1, round(p * _LEVELS)) if p else 0


def kept_factor(threshold: int) -> float:
    """What is kept is multiplied by it, so that the mean stays."""
    return _LEVELS / (_LEVELS - threshold)


def random_bytes(shape: Sequence[int]) -> Tensor:
    """uint8 of any shape on the CPU, eight to a draw of torch's generator."""
    count = math.prod(shape)
    words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.uint8)[:count].view(*shape)


class _ByteDropout(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, source: Tensor, threshold: int) -> Tensor:
        mask = random_bytes(source.shape) >= threshold
        context.save_for_backward(mask)
        context.factor = kept_factor(threshold)
        return (source * mask).mul_(context.factor)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = context.saved_tensors
        return (gradients[0] * mask).mul_(context.factor), None


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
