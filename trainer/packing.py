"""Texts of many lengths in one row of tokens, without padding to speak of.

Short sequences are laid side by side into tiles of one length; longer ones are sorted by length and cut into groups of
nearly one length, each sequence a tile of its own. All lie one behind the other as one row of tokens, so that every matrix
product sees only these; attention alone looks at a group at a time, as an ordinary (tiles, length) batch. (Unpadding as in
"MosaicBERT", arXiv:2312.17482, with groups in place of a special kernel, which Turing and CPUs do not have.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# What one more group costs, counted in tokens of padding: its own attention calls in every layer. Measured on two cores at
# batch 16, without tiles: 4 and 8 are fastest, 64 a fifth slower.
GROUP_COST = 8
# In 16 bits on a CPU, oneDNN builds each matrix product anew for each number of rows: 30 ms a step, where the products
# themselves take 60. With N a multiple of 32 a run has few numbers of rows.
ROW_MULTIPLE_16_BITS = 32
# Attention's share of a layout's cost: so many scores count as one token in all else. Measured in float32 on two cores: 760
# with dropout, 2,000 without.
SCORES_A_TOKEN = 1000
# A layout is taken where no other could be less work than by this share of its own.
ENOUGH = 1.002
LANES = 8  # floats that a CPU with AVX2 computes at once


@dataclass(frozen=True)
class RowForm:
    """How sequences are laid out in a row.

    tiles: tile lengths to choose from. Sequences of at most so many tokens share tiles of this length, or one shorter tile
    where all fit into it; 0: none do. row_multiple: the row ends with padding, so that N is a multiple of it. group_cost:
    what one more group costs, counted in tokens of padding.
    """

    tiles: tuple[int, ...] = tuple(range(24, 57))
    row_multiple: int = 1
    group_cost: int = GROUP_COST


def row_form(in_16_bits: bool, device: torch.device) -> RowForm:
    """The form that is fastest there.

    In float32 on a CPU a batch of 16 questions and answers is 1 or 2 groups with 1 % of padding; a tile length of 32 for all
    leaves 6 %. In 16 bits attention is fast in tiles of 64 tokens, and a GPU waits for the host in short steps: both keep
    one length.
    """
    if in_16_bits:
        return RowForm((64,), ROW_MULTIPLE_16_BITS)
    return RowForm() if device.type == "cpu" else RowForm((32,))


@dataclass(frozen=True)
class Group:
    """Tiles of one length: tokens `start` to `start + size * length` of the row, as (size, length)."""

    start: int
    size: int
    length: int
    mask: Tensor | None
    """True where a token is looked at, bool: (size, 1, 1, length) where each tile is one sequence, else
    (size, 1, length, length), by the token that looks, so that sequences in one tile do not see each other. None:
    everywhere.
    """

    @functools.cached_property
    def unseen(self) -> Tensor:
        """-inf where a token is not looked at, else 0, float32: added to scores, a tenth of what filling them through the
        mask costs on a CPU. Once for all layers."""
        assert self.mask is not None
        return torch.zeros_like(self.mask, dtype=torch.float32).masked_fill_(~self.mask, float("-inf"))


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
    form: RowForm = RowForm(),
) -> PackedBatch:
    """Arrange sequences for `trainer.encoder.PackedEncoder`.

    Args:
        tokens: (T,) the token ids of all sequences, one behind the other, on the CPU.
        lengths: (S,) tokens of each sequence, at least 1, on the CPU; they sum to T.
        device: where the packed batch goes.
        chosen: numbers of the sequences to pack, in the order of the embeddings wanted; None = all.
        form: of the row.
    """
    sizes = lengths.numpy()
    starts = np.cumsum(sizes) - sizes  # of each sequence in `tokens`
    if chosen is not None:
        sizes, starts = sizes[chosen], starts[chosen]
    source, real, sequence, position, groups = [], [], [], [], []
    done = 0
    for members, length in _layout(tuple(sizes.tolist()), form):
        owner, place = _laid_out(members, sizes, length)  # the sequence that each token is of, and its place in it
        inside = owner >= 0
        source.append(np.where(inside, starts[owner] + place, 0).ravel())
        real.append(inside.ravel())
        sequence.append(np.where(inside, owner, 0).ravel())
        position.append(place.ravel())
        groups.append(Group(done, len(members), length, _mask(owner, device)))
        done += owner.size
    rest = -done % form.row_multiple
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


def row_length(lengths: np.ndarray, form: RowForm) -> int:
    """Tokens of the row that `pack` makes of sequences of these (S,) lengths, but for what fills it up to `row_multiple`."""
    return _tokens(_layout(tuple(lengths.tolist()), form))


Tiles = list[list[int]]  # of each tile, the numbers of the sequences that lie in it side by side
Layout = list[tuple[Tiles, int]]  # groups of tiles of one length
Counts = dict[int, int]  # of the sequences of each length
Borders = list[tuple[int, int]]  # of each group of sequences in order of length, the first and the end


class Split(NamedTuple):
    """Sequences in order of length: the first `short` share tiles of `length` tokens, between `borders` lie the groups of
    the others."""

    short: int
    length: int
    borders: Borders


@functools.lru_cache(maxsize=64)  # a micro-batch is laid out when it is dealt, and once or twice when it is embedded
def _layout(lengths: tuple[int, ...], form: RowForm) -> Layout:
    """The groups that are the least work, of those that each tile length gives."""
    sizes = np.array(lengths)
    order = np.argsort(sizes, kind="stable")
    ascending = sizes[order]
    borders = functools.cache(lambda short: _group_borders(ascending[short:], form.group_cost))
    splits = {tile: _split(ascending, tile, borders) for tile in form.tiles}
    best: tuple[float, Layout] = math.inf, []
    for bound, tile in sorted((_cost(_least_shapes(ascending, split), form), tile) for tile, split in splits.items()):
        if bound * ENOUGH >= best[0]:  # nor can those after it be so much less work
            break
        groups = _groups(order.tolist(), sizes, splits[tile])
        cost = _cost([(len(tiles), length) for tiles, length in groups], form)
        best = min(best, (cost, groups), key=lambda found: found[0])
    return best[1]


def _split(ascending: np.ndarray, tile: int, borders: Callable[[int], Borders]) -> Split:
    """Which sequences share tiles of at most `tile` tokens, and how the longer ones are cut into groups."""
    short = int(np.searchsorted(ascending, tile, side="right"))
    return Split(short, min(tile, int(ascending[:short].sum())), borders(short))


def _least_shapes(ascending: np.ndarray, split: Split) -> list[tuple[int, int]]:
    """Tiles and length of each group, if tiles could be filled without a gap."""
    short, length, borders = split
    tiled = [(math.ceil(int(ascending[:short].sum()) / length), length)] if short else []
    return [*tiled, *((end - first, int(ascending[short + end - 1])) for first, end in borders)]


def _groups(order: list[int], sizes: np.ndarray, split: Split) -> Layout:
    """Groups of tiles of one length, short ones first, that hold all sequences; `order` is that of their lengths."""
    short, length, borders = split
    groups = [(_fill_tiles(order[:short], sizes, length), length)] if short else []
    long = order[short:]
    return [*groups, *(([[number] for number in long[first:end]], int(sizes[long[end - 1]])) for first, end in borders)]


def _cost(shapes: list[tuple[int, int]], form: RowForm) -> float:
    """Of groups of so many tiles of one length, counted in tokens."""
    row = sum(tiles * length for tiles, length in shapes)
    scores = sum(tiles * length * _columns(length) for tiles, length in shapes)
    return row + -row % form.row_multiple + form.group_cost * len(shapes) + scores / SCORES_A_TOKEN


def _columns(length: int) -> int:
    """How long a row of so many scores is in the time that it takes: measured, 38 take as long as 48, and longer than 40."""
    full, rest = divmod(length, LANES)
    return LANES * (full + 2 * bool(rest))


def _tokens(groups: Layout) -> int:
    return sum(len(members) * length for members, length in groups)


def _fill_tiles(order: list[int], sizes: np.ndarray, length: int) -> Tiles:
    """Tiles that hold the sequences, given in ascending order: in the way of two that needs fewer.

    What fills a tile best may leave sequences that fit nowhere together: questions alone, most of them nearly half a tile
    long, are better off with the longest that fit.
    """
    best = _filled_tiles(order, sizes, length, _best_fill)
    if len(best) * length < int(sizes[order].sum()) + length:  # no fewer could hold them
        return best
    return min(best, _filled_tiles(order, sizes, length, _longest_fill), key=len)


def _filled_tiles(order: list[int], sizes: np.ndarray, length: int, fill: Callable[[int, Counts], list[int]]) -> Tiles:
    """Each tile takes the longest sequence that is left, and those that `fill` chooses for the room beside it."""
    waiting: dict[int, list[int]] = {}  # numbers of the sequences, by their length, the longest first
    for number in reversed(order):
        waiting.setdefault(int(sizes[number]), []).append(number)
    tiles: Tiles = []
    while waiting:
        longest = next(iter(waiting))
        counts = {size: len(numbers) - (size == longest) for size, numbers in waiting.items()}
        chosen = [longest, *fill(length - longest, counts)]
        tiles.append([waiting[size].pop() for size in chosen])
        waiting = {size: numbers for size, numbers in waiting.items() if numbers}
    return tiles


def _longest_fill(room: int, counts: Counts) -> list[int]:
    """Of so many sequences of each length, long ones first, the longest that fits, again and again: their lengths."""
    chosen = []
    for size, count in counts.items():
        taken = min(count, room // size)
        chosen += taken * [size]
        room -= taken * size
    return chosen


def _best_fill(room: int, counts: Counts) -> list[int]:
    """Of so many sequences of each length, long ones first, those that leave the least room: their lengths."""
    within = (1 << (room + 1)) - 1
    reached, added = [1], list[int]()  # bit n of reached[i]: the first i of `added` have a choice of n tokens together
    for size, count in counts.items():
        for _ in range(min(count, room // size)):
            if reached[-1] >> room:
                break
            reached.append((reached[-1] | reached[-1] << size) & within)
            added.append(size)
    filled, chosen = reached[-1].bit_length() - 1, []
    for before, size in zip(reversed(reached[:-1]), reversed(added), strict=True):
        if not before >> filled & 1:  # not without it; short ones are left for later tiles where it can be
            chosen.append(size)
            filled -= size
    return chosen


def _laid_out(tiles: Tiles, sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(tiles, length) each: the sequence that a token is of, -1 at padding, and its place in it."""
    owner = np.full((len(tiles), length), -1)
    place = np.zeros((len(tiles), length), dtype=np.int64)
    for row, members in enumerate(tiles):
        lengths = sizes[members]
        end = lengths.sum()
        owner[row, :end] = np.repeat(members, lengths)
        place[row, :end] = np.arange(end) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return owner, place


def _mask(owner: np.ndarray, device: torch.device) -> Tensor | None:
    """The mask of `Group`, for the sequences that a group's tokens are of."""
    if (owner == owner[:, :1]).all():
        return None
    is_shared = ((owner != owner[:, :1]) & (owner >= 0)).any()
    # Padding sees padding in a shared tile: with nothing to look at its output would be no number.
    seen = owner[:, :, None] == owner[:, None, :] if is_shared else owner[:, None, :] >= 0
    return torch.from_numpy(seen)[:, None].to(device, non_blocking=True)


def _group_borders(sorted_lengths: np.ndarray, group_cost: int) -> Borders:
    """Where to cut ascending lengths so that padding plus `group_cost` a group is least: [(first, end), …].

    No lengths, no groups. Exact, by dynamic programming over the distinct lengths: a group pads all its sequences to its
    longest.
    """
    if not len(sorted_lengths):
        return []
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
