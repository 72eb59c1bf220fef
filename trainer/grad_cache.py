"""Any contrastive batch in a fixed memory: GradCache (Gao et al., arXiv:2101.06983).

The loss needs all embeddings of a batch at once, but not their graphs. So: embed all without a graph; take the loss and its
gradient on the embeddings; then embed each micro-batch again, with the same dropout masks, and hand it its part of that
gradient. The parameters' gradients are those of the batch in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from trainer.recompute import random_state, set_random_state

MicroBatch = TypeVar("MicroBatch")


def cached_backward(
    embed: Callable[[MicroBatch], Tensor],
    micro_batches: Sequence[MicroBatch],
    loss_of: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor], None],
    device: torch.device,
) -> Tensor:
    """Accumulate the gradients of `loss_of(all embeddings)` in the parameters, one micro-batch's graph at a time.

    Args:
        embed: micro-batch → (n, D), float32.
        loss_of: (N, D), the embeddings of all micro-batches in their order → scalar.
        backward: called once with the loss; calls its `backward`, scaled where a gradient scaler wants it.
        device: whose random numbers, beside the CPU's, decide the dropout masks.

    Returns:
        The loss, detached.
    """
    states, pieces = [], []
    with torch.no_grad():
        for micro_batch in micro_batches:
            states.append(random_state(device))
            pieces.append(embed(micro_batch))
    embeddings = torch.cat(pieces).requires_grad_()
    loss = loss_of(embeddings)
    backward(loss)
    assert embeddings.grad is not None
    gradients = embeddings.grad.split([len(piece) for piece in pieces])
    for micro_batch, state, gradient in zip(micro_batches, states, gradients, strict=True):
        set_random_state(state, device)
        embed(micro_batch).backward(gradient)
    return loss.detach()


def cut_micro_batches(lengths: Tensor, max_tokens: int) -> list[np.ndarray]:
    """Cut sequences, sorted by length, into micro-batches that take at most `max_tokens` when each is padded to its longest.

    Args:
        lengths: (S,) tokens of each sequence, on the CPU.

    Returns:
        For each micro-batch the numbers of its sequences; a sequence longer than `max_tokens` is alone in its own.
    """
    sizes = lengths.numpy()
    order = np.argsort(sizes, kind="stable")
    pieces, first = [], 0
    for end, size in enumerate(sizes[order]):
        # In ascending order the last sequence is the longest.
        if end > first and (end + 1 - first) * size > max_tokens:
            pieces.append(order[first:end])
            first = end
    return [*pieces, order[first:]]


def deal_micro_batches(lengths: Tensor, max_tokens: int, row_length: Callable[[np.ndarray], int]) -> list[np.ndarray]:
    """Deal sequences out to micro-batches whose packed rows are at most `max_tokens` long, or as the longest sequence.

    Each gets short and long ones, as a dealer gives cards: of nearly equal lengths few would share a tile.

    Args:
        lengths: (S,) tokens of each sequence, on the CPU.
        row_length: lengths → tokens of the row that they are packed into.

    Returns:
        For each micro-batch the numbers of its sequences.
    """
    sizes = lengths.numpy()
    order = np.argsort(sizes, kind="stable")
    limit = max(max_tokens, int(sizes.max()))
    count = -(-int(sizes.sum()) // limit)
    while True:
        pieces = [order[first::count] for first in range(count)]
        if count >= len(order) or max(row_length(sizes[piece]) for piece in pieces) <= limit:
            return pieces
        count = min(len(order), count + 1 + count // 8)
