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
from peft.tuners.lora import Linear as LoraLinear
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import BertModel

from trainer.dropout import SharedDropout, fast_dropout
from trainer.loss import at_least_float32

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

    It walks through the encoder's layers itself; only the attention differs from transformers' own way.

    Raises:
        ValueError: a model of another build; `can_pack` tells beforehand.
    """

    def __init__(self, model: SentenceTransformer):
        if not can_pack(model):
            raise ValueError("packing needs a BERT encoder with mean pooling over all tokens")
        self._encoder: Any = _plain_encoder(model)
        self._projections = [QueryKeyValue(layer.attention.self) for layer in self._encoder.encoder.layer]

    def __call__(self, batch: PackedBatch) -> Tensor:
        """(S, D) embeddings, float32 (float64 for a float64 model), L2-normalised, in the order the sequences were given."""
        encoder = self._encoder
        hidden = encoder.embeddings(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            token_type_ids=torch.zeros_like(batch.input_ids),
        )[0]  # (N, D)
        recompute = encoder.is_activation_checkpointing and encoder.training and torch.is_grad_enabled()
        for layer, projection in zip(encoder.encoder.layer, self._projections, strict=True):
            if recompute:
                hidden = checkpoint(_layer, layer, projection, hidden, batch.groups, use_reentrant=False)
            else:
                hidden = _layer(layer, projection, hidden, batch.groups)
        # The mean in float32: an fp16 sum over 256 tokens loses what tells two texts apart.
        hidden = at_least_float32(hidden) * batch.real[:, None]
        summed = hidden.new_zeros((len(batch.lengths), hidden.shape[1])).index_add(0, batch.sequence, hidden)
        return F.normalize(summed / batch.lengths[:, None], dim=-1)


def can_pack(model: SentenceTransformer) -> bool:
    """Whether the model is a BERT with mean pooling over all tokens and then, if anything, a norm."""
    encoder = _plain_encoder(model)
    pooling = model[1] if len(model) > 1 else None
    return (
        isinstance(encoder, BertModel)
        and not encoder.config.is_decoder
        and isinstance(pooling, Pooling)
        and pooling.pooling_mode in ("mean", ("mean",), ["mean"])
        and pooling.include_prompt
        and all(isinstance(module, Normalize) for module in list(model)[2:])
    )


class QueryKeyValue:
    """The three projections of an attention block as one product: (N, D) → (N, 3D).

    Where all three carry a LoRA adapter of one shape, these too are one pair of products: the three A side by side, and the
    three B on the diagonal. Otherwise each module is called by itself.
    """

    def __init__(self, attention: Any):
        self._modules = (attention.query, attention.key, attention.value)
        self._fused = _are_alike(self._modules) and isinstance(attention.query.lora_dropout["default"], SharedDropout)
        self._frozen: tuple[Tensor, Tensor] | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        if not self._fused:
            return torch.cat([module(hidden) for module in self._modules], dim=-1)
        adapters: Any = self._modules
        # Not through the shared module: its one caller is this one.
        dropout = adapters[0].lora_dropout["default"]
        dropped = fast_dropout(hidden, dropout.p) if dropout.training and dropout.p > 0 else hidden
        down = torch.cat([adapter.lora_A["default"].weight for adapter in adapters])  # (3r, D)
        up = torch.block_diag(*(adapter.lora_B["default"].weight for adapter in adapters))  # (3D, 3r)
        low_rank = dropped.to(down.dtype) @ down.T * adapters[0].scaling["default"]  # (N, 3r)
        return torch.addmm(F.linear(hidden, *self._base(hidden)), low_rank, up.T)

    def _base(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (3D, D) and bias (3D,) of the frozen projections, joined once for each number format and device."""
        layers = [module.get_base_layer() for module in self._modules]
        wanted = layers[0].weight
        if self._frozen is None or (self._frozen[0].dtype, self._frozen[0].device) != (wanted.dtype, wanted.device):
            self._frozen = (
                torch.cat([layer.weight.detach() for layer in layers]),
                torch.cat([layer.bias.detach() for layer in layers]),
            )
        return self._frozen


def _are_alike(modules: Any) -> bool:
    """Whether the modules are frozen linear layers with plain LoRA adapters of one rank, scaling and dropout."""
    if not all(isinstance(module, LoraLinear) and module.active_adapters == ["default"] for module in modules):
        return False
    first = modules[0]
    return all(
        module.r == first.r
        and module.scaling == first.scaling
        and module.lora_dropout["default"] is first.lora_dropout["default"]
        and not module.merged
        and not module.lora_variant
        and not any(p.requires_grad for p in module.get_base_layer().parameters())
        for module in modules
    )


def _layer(layer: Any, projection: QueryKeyValue, hidden: Tensor, groups: tuple[Group, ...]) -> Tensor:
    """One BertLayer: (N, D) → (N, D)."""
    attended = _attention(layer.attention.self, projection(hidden), groups)
    hidden = _add_and_norm(layer.attention.output, attended, hidden)
    activated = layer.intermediate.intermediate_act_fn(_linear(layer.intermediate.dense, hidden))
    return _add_and_norm(layer.output, activated, hidden)


def _add_and_norm(block: Any, source: Tensor, residual: Tensor) -> Tensor:
    """BERT's output block: projection, dropout, residual sum, layer norm."""
    return block.LayerNorm(block.dropout(_linear(block.dense, source)) + residual)


def _linear(module: Any, source: Tensor) -> Tensor:
    """A linear layer, its adapter's update added in the same product: (N, in) → (N, out)."""
    if not _are_alike([module]):
        return module(source)
    dropped = module.lora_dropout["default"](source)
    down, up = module.lora_A["default"].weight, module.lora_B["default"].weight  # (r, in), (out, r)
    low_rank = dropped.to(down.dtype) @ down.T * module.scaling["default"]  # (N, r)
    return torch.addmm(module.get_base_layer()(source), low_rank, up.T)


def _attention(attention: Any, qkv: Tensor, groups: tuple[Group, ...]) -> Tensor:
    """Attention inside each sequence of a packed row: (N, 3D) → (N, D)."""
    if qkv.device.type == "cpu" and qkv.dtype in (torch.bfloat16, torch.float16):
        # torch's attention on a CPU is slower in 16 bits than in 32, its backward pass most of all.
        with torch.autocast("cpu", enabled=False):
            return _attention(attention, qkv.float(), groups)
    heads, width = attention.num_attention_heads, attention.attention_head_size
    dropout_p = attention.dropout.p if attention.training else 0.0
    outputs = []
    # One split, not a slice a group: the gradient of a slice is a row of zeros as long as the whole.
    for group, part in zip(groups, qkv.split([group.size * group.length for group in groups]), strict=True):
        # (n·l, 3·H·d) -> three of (n, H, l, d)
        query, key, value = part.view(group.size, group.length, 3, heads, width).permute(2, 0, 3, 1, 4)
        if dropout_p and qkv.device.type == "cpu":
            mixed = _attention_with_dropout(query, key, value, group.mask, attention.scaling, dropout_p)
        else:
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=group.mask, dropout_p=dropout_p, scale=attention.scaling
            )
        outputs.append(mixed.transpose(1, 2).reshape(-1, heads * width))  # (n·l, D)
    return torch.cat(outputs)


def _attention_with_dropout(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, dropout_p: float
) -> Tensor:
    """(n, H, l, d) each → (n, H, l, d). Written out, since torch's CPU kernel with dropout draws its masks slowly."""
    scores = query @ key.transpose(-1, -2) * scaling  # (n, H, l, l)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return fast_dropout(scores.softmax(dim=-1), dropout_p).to(value.dtype) @ value


def _plain_encoder(model: SentenceTransformer) -> Any:
    """The transformers model inside, below PEFT's wrapper where it has one."""
    encoder: Any = getattr(model[0], "model", None)
    return encoder.get_base_model() if hasattr(encoder, "get_base_model") else encoder
