"""Attention inside each sequence of a packed row, forward and backward: (N, 3D) → (N, D)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.dropout import MaskRow, drop_threshold, dropped, keep_mask, kept_factor
from trainer.packing import Group

# Scores computed at once on a CPU. Measured in steps of the recommended recipe in bf16: 2**20 takes 9 % longer on paragraphs
# and 6 % longer on short texts, 2**23 3 % less and 1 % less; in float32 all are within noise of each other.
_SCORES_AT_ONCE = 1 << 22
# From this length on, products in bf16 gain more than the casts cost. Measured: at 30 tokens a fifth slower, at 64 two
# fifths faster than float32.
_LONG = 64


def attention(
    qkv: Tensor,
    groups: tuple[Group, ...],
    heads: int,
    scaling: float,
    dropout_p: float = 0.0,
    masks: MaskRow | None = None,
) -> Tensor:
    """Scaled dot-product attention of each sequence with itself.

    Args:
        qkv: (N, 3D) query, key and value of each token, in the order of `groups`.
        groups: of `pack`; what stands behind the last one is padding, and its output zero.
        heads: H; D is a multiple of it.
        scaling: of the scores, 1 / sqrt(D / H).
        dropout_p: of the attention weights.
        masks: for that on a CPU.

    Returns:
        (N, D) in the number format of `qkv`.
    """
    if qkv.device.type == "cpu":
        return _CpuAttention.apply(qkv, groups, heads, scaling, drop_threshold(dropout_p), masks, qkv.requires_grad)
    return attention_by_kernel(qkv, groups, heads, scaling, dropout_p)


def attention_by_kernel(qkv: Tensor, groups: tuple[Group, ...], heads: int, scaling: float, dropout_p: float) -> Tensor:
    """`attention` by torch's own kernel, a group at a time: on a GPU, and what the benchmarks compare with on a CPU."""
    outputs = []
    sizes = [group.size * group.length for group in groups]
    rest = len(qkv) - sum(sizes)
    # One split, not a slice a group: the gradient of a slice is a row of zeros as long as the whole.
    for group, part in zip(groups, qkv.split([*sizes, rest])[:-1], strict=True):
        query, key, value = part.view(group.size, group.length, 3, heads, -1).permute(2, 0, 3, 1, 4)  # (n, H, l, d) each
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=group.mask, dropout_p=dropout_p, scale=scaling)
        outputs.append(mixed.transpose(1, 2).flatten(0, 1).flatten(1))  # (n·l, D)
    return torch.cat([*outputs, qkv.new_zeros((rest, qkv.shape[1] // 3))])


@contextlib.contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """While entered torch chooses none of cuDNN's attention kernels: for a forward and a recomputing backward pass.

    On an H100 their gradients are not finite for masked rows of 64 tokens (issue 196678 of pytorch/pytorch): the half of a
    block that is not there counts as scores of 0, and exp(0 - logsumexp) is beyond float16 where all scores are low, as in
    three layers of E5.
    """
    was_enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_enabled)


class _CpuAttention(torch.autograd.Function):
    """All groups in one call, without a copy that is not needed; torch's own kernel for the CPU takes a third longer on a
    batch of questions and answers, draws dropout masks slowly, and is slowest of all in 16 bits.

    16-bit inputs are computed in float32 where sequences are short, else in bf16: its products run in the matrix units.
    """

    @staticmethod
    def forward(
        context: Any,
        qkv: Tensor,
        groups: tuple[Group, ...],
        heads: int,
        scaling: float,
        threshold: int,
        masks: MaskRow | None,
        keeps: bool,
    ) -> Tensor:
        output = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        output[_end(groups) :] = 0
        # No more at once than the row of masks has a mask for: one drawn beside it is kept for the backward pass.
        at_once = min(_SCORES_AT_ONCE, masks.longest) if threshold and masks is not None else _SCORES_AT_ONCE
        kept: list[Tensor] = []
        for group in groups:
            parts = _split_heads(qkv, group, heads, 3, _product_type(qkv.dtype, group.length))  # (3, n·H, l, d)
            mixed = torch.empty_like(parts[0])
            weights, drawn = [], []
            unseen = None if group.mask is None else group.unseen.to(parts.dtype)
            for rows, sequences in _chunks(group, heads, at_once):
                scores = _product(parts[0, rows], parts[1, rows].transpose(1, 2), scaling)  # (c·H, l, l)
                if unseen is not None:
                    scores.view(-1, heads, *scores.shape[1:]).add_(unseen[sequences])
                softmax = torch.softmax(scores, dim=-1)  # in place it takes twice as long where l is no multiple of 16
                if keeps:
                    weights.append(softmax)
                if threshold:
                    drawn.append(keep_mask(softmax.shape, threshold, masks))
                    softmax = dropped(softmax, drawn[-1])
                _product(softmax, parts[2, rows], kept_factor(threshold), out=mixed[rows])
            _merge_heads(output, mixed, group, heads, 1)
            if keeps:
                kept += [parts, *weights, *drawn]
        context.save_for_backward(*kept)
        context.shared = (groups, heads, scaling, threshold, at_once)
        return output

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        groups, heads, scaling, threshold, at_once = context.shared
        kept = iter(context.saved_tensors)
        (gradient,) = gradients
        found = gradient.new_empty(len(gradient), 3 * gradient.shape[1])
        found[_end(groups) :] = 0
        factor = kept_factor(threshold)
        for group in groups:
            chunks = list(_chunks(group, heads, at_once))
            parts = next(kept)
            weights = [next(kept) for _ in chunks]
            masks = [next(kept) if threshold else None for _ in chunks]
            of_output = _split_heads(gradient, group, heads, 1, parts.dtype)[0]
            of_parts = torch.empty_like(parts)
            for (rows, _), softmax, mask in zip(chunks, weights, masks, strict=True):
                query, key, value = parts[:, rows]
                used = softmax if mask is None else dropped(softmax, mask)
                _product(used.transpose(1, 2), of_output[rows], factor, out=of_parts[2, rows])
                of_weights = _product(of_output[rows], value.transpose(1, 2), factor)  # (c·H, l, l)
                if mask is not None:
                    of_weights = dropped(of_weights, mask)
                of_scores = torch._softmax_backward_data(of_weights, softmax, -1, softmax.dtype)
                _product(of_scores, key, scaling, out=of_parts[0, rows])
                _product(of_scores.transpose(1, 2), query, scaling, out=of_parts[1, rows])
            _merge_heads(found, of_parts, group, heads, 3)
        return found, None, None, None, None, None, None


def _split_heads(source: Tensor, group: Group, heads: int, parts: int, kind: torch.dtype) -> Tensor:
    """The group's tokens of a row (N, parts·H·d) → (parts, n·H, l, d), contiguous."""
    split = source.new_empty((parts, group.size, heads, group.length, source.shape[1] // parts // heads), dtype=kind)
    return split.copy_(_by_heads(source, group, heads, parts)).flatten(1, 2)


def _merge_heads(target: Tensor, split: Tensor, group: Group, heads: int, parts: int) -> None:
    """The reverse of `_split_heads`, into the row."""
    _by_heads(target, group, heads, parts).copy_(split.view(parts, group.size, heads, *split.shape[-2:]))


def _by_heads(row: Tensor, group: Group, heads: int, parts: int) -> Tensor:
    """A view of the group's tokens: (parts, n, H, l, d)."""
    tokens = row[group.start : group.start + group.size * group.length]
    return tokens.view(group.size, group.length, parts, heads, -1).permute(2, 0, 3, 1, 4)


def _end(groups: tuple[Group, ...]) -> int:
    """Tokens of all groups."""
    return groups[-1].start + groups[-1].size * groups[-1].length


def _chunks(group: Group, heads: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Slices of the group's n·H matrices, of at most so many scores, and of the n sequences that these are of."""
    step = max(1, at_once // (heads * group.length**2))
    for first in range(0, group.size, step):
        end = min(first + step, group.size)
        yield slice(first * heads, end * heads), slice(first, end)


def _product(left: Tensor, right: Tensor, factor: float, out: Tensor | None = None) -> Tensor:
    """(b, m, k) @ (b, k, n) * factor -> (b, m, n)."""
    return torch.baddbmm(_unread(left.dtype), left, right, beta=0, alpha=factor, out=out)


@functools.lru_cache(maxsize=8)
def _unread(kind: torch.dtype) -> Tensor:
    """What a product is added to, times 0."""
    return torch.empty((1, 1, 1), dtype=kind)


def _product_type(given: torch.dtype, length: int) -> torch.dtype:
    """The number format of a group's products."""
    if given == torch.bfloat16 and length >= _LONG:
        return given
    return torch.float32 if given in (torch.bfloat16, torch.float16) else given
