"""Dropout that is cheap on a CPU, where drawing masks is otherwise a fifth of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 256  # of a random byte


class MaskRow:
    """The dropout masks of one forward pass on a CPU: stretches, at random places, of one row of random bytes.

    To draw a byte for each value that is dropped or kept is a twentieth of a step in bf16. Within a mask values are
    independent, as ever; masks that overlap have bytes in common, at other values of theirs.

    Args:
        count: bytes to draw. At least twice a mask's values, else the mask is drawn for itself.
    """

    def __init__(self, count: int):
        # At once, not when first asked: a layer that is computed again must find it drawn, or would draw otherwise.
        self._bytes = _random_bytes(count)
        self._masks: dict[int, Tensor] = {}

    @property
    def longest(self) -> int:
        """The most values that a stretch may have."""
        return len(self._bytes) // 2

    def stretch(self, shape: Sequence[int], threshold: int) -> Tensor | None:
        """A mask as that of `keep_mask`, not to be written to; None where the row is too short."""
        count = math.prod(shape)
        if count > self.longest:
            return None
        places = len(self._bytes) - count
        if threshold not in self._masks:
            self._masks[threshold] = _kept(self._bytes.clone(), threshold)
        start = int(torch.randint(places + 1, ()))
        return self._masks[threshold][start : start + count].view(*shape)


def fast_dropout(source: Tensor, p: float) -> Tensor:
    """Inverted dropout of `source`, any shape; a new mask at each call.

    On a CPU the mask comes from random bytes, eight to a draw of torch's generator: `p` is rounded to a multiple of 1/256
    (.1 becomes .1016) and what is kept is divided by exactly its share. Elsewhere torch's own kernel is the fast one.
    """
    if source.device.type != "cpu":
        return F.dropout(source, p)
    return _ByteDropout.apply(source, drop_threshold(p))


def dropout_and_add(source: Tensor, residual: Tensor, p: float, masks: MaskRow | None = None) -> Tensor:
    """`fast_dropout(source, p) + residual`, of one shape, in the number format of `residual`; p may be 0."""
    if p and source.device.type == "cpu":
        return _ByteDropoutAndAdd.apply(source, residual, drop_threshold(p), masks)
    return F.dropout(source, p).to(residual.dtype) + residual


def active_p(dropout: nn.Module) -> float:
    """What a dropout module drops now: nothing in evaluation, nor where PEFT has put an Identity in its place."""
    return getattr(dropout, "p", 0.0) if dropout.training else 0.0


def drop_threshold(p: float) -> int:
    """Random bytes below it drop: so many of 256; 0 only where p is, and never all."""
    return min(max(1, round(p * _LEVELS)), _LEVELS - 1) if p else 0


def kept_factor(threshold: int) -> float:
    """What is kept is multiplied by it, so that the mean stays."""
    return _LEVELS / (_LEVELS - threshold)


def keep_mask(shape: Sequence[int], threshold: int, masks: MaskRow | None = None) -> Tensor:
    """uint8 of any shape on the CPU: 1 to keep, 0 to drop, a stretch of `masks` or of random bytes drawn for it."""
    stretch = None if masks is None else masks.stretch(shape, threshold)
    return _kept(_random_bytes(math.prod(shape)), threshold).view(*shape) if stretch is None else stretch


def _random_bytes(count: int) -> Tensor:
    """(count,) uint8, eight to a draw of torch's generator."""
    words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.uint8)[:count]


def _kept(drawn: Tensor, threshold: int) -> Tensor:
    """In place: 1 where a byte is at least the threshold, else 0."""
    # Not by a comparison: torch's take several times as long on a CPU.
    return drawn.clamp_(threshold - 1, threshold).sub_(threshold - 1)


def dropped(source: Tensor, kept: Tensor) -> Tensor:
    """A copy of `source` with zeros where `kept`, of its shape, is 0."""
    # Cast first: a product of two number formats takes several times as long.
    return kept.to(source.dtype).mul_(source)


class _ByteDropout(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, source: Tensor, threshold: int) -> Tensor:
        kept = keep_mask(source.shape, threshold)
        context.save_for_backward(kept)
        context.factor = kept_factor(threshold)
        return dropped(source, kept).mul_(context.factor)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kept,) = context.saved_tensors
        return dropped(gradients[0], kept).mul_(context.factor), None


class _ByteDropoutAndAdd(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, source: Tensor, residual: Tensor, threshold: int, masks: MaskRow | None) -> Tensor:
        kept = keep_mask(source.shape, threshold, masks)
        context.save_for_backward(kept)
        context.kind, context.factor = source.dtype, kept_factor(threshold)
        return torch.add(residual, dropped(source.to(residual.dtype), kept), alpha=context.factor)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (kept,) = context.saved_tensors
        (gradient,) = gradients
        return dropped(gradient, kept).mul_(context.factor).to(context.kind), gradient, None, None


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
