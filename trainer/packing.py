"""Embed texts of many lengths without padding to speak of: the same embeddings, and gradients, as the padded way.

A batch's sequences are sorted by length and cut into groups of nearly one length. All groups lie one behind the other as
one row of tokens, so that every matrix product sees only these; attention alone looks at a group at a time, as an ordinary
(sequences, length) batch. (Unpadding as in "MosaicBERT", arXiv:2312.17482, with groups in place of a special kernel,
which Turing and CPUs do not have.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainer.loss import at_least_float32

ATTENTION_NAME = "grouped_sdpa"
# What one more group costs, counted in tokens of padding: its own attention calls in every layer. Measured on two cores at
# batch 16: 4 and 8 are fastest, 64 a fifth slower.
GROUP_COST = 8


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

    `input_ids` and `position_ids` are (1, N), `real` is (N,) bool and False at padding, `sequence` is (N,) and names the
    sequence, 0 to S - 1 in the order they were given, that a token belongs to; `lengths` is (S,).
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
) -> PackedBatch:
    """Arrange sequences for `PackedEncoder`.

    Args:
        tokens: (T,) the token ids of all sequences, one behind the other, on the CPU.
        lengths: (S,) tokens of each sequence, at least 1, on the CPU; they sum to T.
        device: where the packed batch goes.
        chosen: numbers of the sequences to pack, in the order of the embeddings wanted; None = all.
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


class PackedEncoder:
    """Embeds packed batches with the modules of a sentence-transformers model (a BERT, mean pooling, L2 norm).

    Raises:
        ValueError: a model of another build; `can_pack` tells beforehand.
    """

    def __init__(self, model: SentenceTransformer):
        if not can_pack(model):
            raise ValueError("packing needs a BERT encoder with mean pooling over all tokens")
        self._model = model
        self._encoder: Any = _plain_encoder(model)
        # Calls without groups, such as the model's own `encode`, go to the ordinary kernel.
        self._encoder.set_attn_implementation(ATTENTION_NAME)

    def __call__(self, batch: PackedBatch) -> Tensor:
        """(S, D) embeddings, float32 (float64 for a float64 model), L2-normalised, in the order the sequences were given."""
        hidden = self._encoder(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            token_type_ids=torch.zeros_like(batch.input_ids),
            groups=batch.groups,
        ).last_hidden_state[0]  # (N, D)
        # The mean in float32: an fp16 sum over 256 tokens loses what tells two texts apart.
        hidden = at_least_float32(hidden) * batch.real[:, None]
        summed = hidden.new_zeros((len(batch.lengths), hidden.shape[1])).index_add(0, batch.sequence, hidden)
        return F.normalize(summed / batch.lengths[:, None], dim=-1)


def can_pack(model: SentenceTransformer) -> bool:
    """Whether the model is a BERT with mean pooling and then, if anything, a norm, on the scaled-dot-product kernel."""
    encoder = _plain_encoder(model)
    pooling = model[1] if len(model) > 1 else None
    return (
        getattr(getattr(encoder, "config", None), "model_type", "") == "bert"
        and encoder.config._attn_implementation in ("sdpa", ATTENTION_NAME)
        and isinstance(pooling, Pooling)
        and pooling.pooling_mode in ("mean", ("mean",), ["mean"])
        and pooling.include_prompt
        and all(isinstance(module, Normalize) for module in list(model)[2:])
    )


def _plain_encoder(model: SentenceTransformer) -> Any:
    """The transformers model inside, below PEFT's wrapper where it has one."""
    encoder: Any = getattr(model[0], "model", None)
    return encoder.get_base_model() if hasattr(encoder, "get_base_model") else encoder


def _grouped_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    groups: tuple[Group, ...] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention inside each sequence of a packed row: q, k, v (1, H, N, d) → (1, N, H, d)."""
    if groups is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    heads, width = query.shape[1], query.shape[3]
    outputs = []
    sizes = [group.size * group.length for group in groups]
    # One split, not a slice a group: the gradient of a slice is a row of zeros as long as the whole.
    parts = zip(*(tensor[0].split(sizes, dim=1) for tensor in (query, key, value)), strict=True)
    for group, qkv in zip(groups, parts, strict=True):
        # (H, n·l, d) -> (n, H, l, d)
        q, k, v = (tensor.reshape(heads, group.size, group.length, width).transpose(0, 1) for tensor in qkv)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask, dropout_p=dropout, scale=scaling)
        outputs.append(mixed.transpose(1, 2).reshape(-1, heads, width))  # (n·l, H, d)
    return torch.cat(outputs)[None], None


AttentionInterface.register(ATTENTION_NAME, _grouped_sdpa)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
