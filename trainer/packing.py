"""Texts of many lengths in one row of tokens, without padding to speak of.

A batch's sequences are sorted by length and cut into groups of nearly one length. All groups lie one behind the other as
one row of tokens, so that every matrix product sees only these; attention alone looks at a group at a time, as an ordinary
(sequences, length) batch. (Unpadding as in "MosaicBERT", arXiv:2312.17482, with groups in place of a special kernel,
which Turing and CPUs do not have.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# What one more group costs, counted in tokens of padding: its own attention calls in every layer. Measured on two cores at
# batch 16: 4 and 8 are fastest, 64 a fifth slower.
GROUP_COST = 8
# In 16 bits on a CPU, oneDNN builds each matrix product anew for each number of rows: 30 ms a step, where the products
# themselves take 60. With N a multiple of 32 a run has few numbers of rows.
ROW_MULTIPLE_16_BITS = 32


@dataclass(frozen=True)
class Group:
    """Sequences of nearly one length: tokens `start` to `start + size * length` of the row, as (size, length)."""

    start: int
    size: int
    length: int
    mask: Tensor | None
    """(size, 1, 1, length) bool, True at real tokens; None where all are."""


@dataclass(frozen=True)
class PackedBatch:
    """S sequences as one row of N tokens.

    `input_ids` and `position_ids` are (1, N), `real` is (N,) bool and False at padding, that behind the last group included;
    `sequence` is (N,) and names the sequence, 0 to S - 1 in the order they were given, that a token belongs to; `lengths`
    is (S,).
    """

    input_ids: Tensor
    position_ids: Tensor
    real: Tensor
    sequence: Tensor
    lengths: Tensor
    groups: tuple[Group, ...]


def pack(
    tokens: Tensor,
    lengths: Tensor,
    device: torch.device,
    chosen: np.ndarray | None = None,
    group_cost: int = GROUP_COST,
    row_multiple: int = 1,
) -> PackedBatch:
    """Arrange sequences for `trainer.encoder.PackedEncoder`.

    Args:
        tokens: (T,) the token ids of all sequences, one behind the other, on the CPU.
        lengths: (S,) tokens of each sequence, at least 1, on the CPU; they sum to T.
        device: where the packed batch goes.
        chosen: numbers of the sequences to pack, in the order of the embeddings wanted; None = all.
        group_cost: what one more group costs, counted in tokens of padding.
        row_multiple: the row ends with padding, so that N is a multiple of it.
    """
    sizes = lengths.numpy()
    starts = np.cumsum(sizes) - sizes  # of each sequence in `tokens`
    if chosen is not None:
        sizes, starts = sizes[chosen], starts[chosen]
    order = np.argsort(sizes, kind="stable")
    source, real, sequence, position, groups = [], [], [], [], []
    done = 0
    for first, end in _group_borders(sizes[order], group_cost):
        members = order[first:end]
        length = int(sizes[members[-1]])
        offsets = np.arange(length)
        inside = offsets[None, :] < sizes[members][:, None]  # (size, length)
        source.append(np.where(inside, starts[members][:, None] + offsets, starts[members][:, None]).ravel())
        real.append(inside.ravel())
        sequence.append(np.repeat(members, length))
        position.append(np.tile(offsets, len(members)))
        mask = None if inside.all() else torch.from_numpy(inside)[:, None, None, :].to(device, non_blocking=True)
        groups.append(Group(done, len(members), length, mask))
        done += len(members) * length
    rest = -done % row_multiple
    for parts, value in ((source, 0), (sequence, 0), (position, 0), (real, False)):
        parts.append(np.full(rest, value))
    return PackedBatch(
        input_ids=tokens[torch.from_numpy(np.concatenate(source))][None].long().to(device, non_blocking=True),
        position_ids=torch.from_numpy(np.concatenate(position))[None].to(device, non_blocking=True),
        real=torch.from_numpy(np.concatenate(real)).to(device, non_blocking=True),
        sequence=torch.from_numpy(np.concatenate(sequence)).to(device, non_blocking=True),
        lengths=torch.from_numpy(sizes).to(device, non_blocking=True),
        groups=tuple(groups),
    )


def _group_borders(sorted_lengths: np.ndarray, group_cost: int) -> list[tuple[int, int]]:
    """Where to cut ascending lengths so that padding plus `group_cost` a group is least: [(first, end), …].

    Exact, by dynamic programming over the distinct lengths: a group pads all its sequences to its longest.
    """
    lengths, first = np.unique(sorted_lengths, return_index=True)
    counts_before = np.append(first, len(sorted_lengths))  # sequences shorter than each distinct length, and all
    best = np.zeros(len(lengths) + 1)
    cut = np.zeros(len(lengths) + 1, dtype=np.int64)
    for end in range(1, len(lengths) + 1):
        # The last group spans the distinct lengths begin … end - 1, all padded to the longest.
        costs = best[:end] + (counts_before[end] - counts_before[:end]) * lengths[end - 1] + group_cost
        cut[end] = np.argmin(costs)
        best[end] = costs[cut[end]]
    borders, end = [], len(lengths)
    while end > 0:
        begin = int(cut[end])
        borders.append((int(counts_before[begin]), int(counts_before[end])))
        end = begin
    return borders[::-1]
