"""Packed batches → embeddings: a frozen BERT with adapters, walked through layer by layer.

The same embeddings, and gradients of the adapters, as the library's modules give on padded texts, for less work: every
matrix product sees all tokens of a batch as one row, and the frozen weights are cast to a run's 16 bits once, not at every
step.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import Tensor
from transformers import BertModel

from trainer.attention import attention
from trainer.dropout import MaskRow, active_p, dropout_and_add
from trainer.loss import at_least_float32
from trainer.packing import Group, PackedBatch
from trainer.projection import Projection, Update, low_rank_updates
from trainer.recompute import recomputed

# How long the row of dropout masks is, in masks of the hidden states: 24 of these and 12 of the adapters' lie in it.
MASKS_A_ROW = 4


class PackedEncoder:
    """Embeds packed batches with the modules of a sentence-transformers model (a BERT, mean pooling, L2 norm).

    Under autocast the matrix products are in its number format; sums, norms and the mean are float32.

    Raises:
        ValueError: a model of another build; `can_pack` tells beforehand.
    """

    def __init__(self, model: SentenceTransformer):
        if not can_pack(model):
            raise ValueError("packing needs a BERT encoder with mean pooling over all tokens")
        self._encoder: Any = _plain_encoder(model)
        self._layers = [_Layer(layer) for layer in self._encoder.encoder.layer]

    def __call__(self, batch: PackedBatch) -> Tensor:
        """(S, D) embeddings, float32 (float64 for a float64 model), L2-normalised, in the order the sequences were given."""
        encoder, device = self._encoder, batch.input_ids.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        with torch.autocast(device, enabled=False):
            hidden = encoder.embeddings(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                token_type_ids=torch.zeros_like(batch.input_ids),
            )[0]  # (N, D)
            updates = iter(low_rank_updates([p for layer in self._layers for p in layer.projections], kind))
            drops = device == "cpu" and any(layer.drops for layer in self._layers)
            masks = MaskRow(self._mask_bytes(batch)) if drops else None
            for layer in self._layers:
                own = [next(updates) for _ in layer.projections]
                run = functools.partial(layer, groups=batch.groups, kind=kind, masks=masks)
                if layer.recomputes and torch.is_grad_enabled():
                    hidden = _recomputed(run, layer.drops, hidden, own)
                else:
                    hidden = run(hidden, updates=own)
            # The mean in float32: an fp16 sum over 256 tokens loses what tells two texts apart.
            hidden = at_least_float32(hidden) * batch.real[:, None]
            summed = hidden.new_zeros((len(batch.lengths), hidden.shape[1])).index_add(0, batch.sequence, hidden)
            return F.normalize(summed / batch.lengths[:, None], dim=-1)

    def _mask_bytes(self, batch: PackedBatch) -> int:
        """How long the row of dropout masks is: room for the attention weights of the longest sequence, at the least."""
        config = self._encoder.config
        longest = max(group.length for group in batch.groups)
        hidden = batch.input_ids.numel() * config.hidden_size
        return max(MASKS_A_ROW * hidden, 2 * config.num_attention_heads * longest**2)

    def copies(self) -> list[Tensor]:
        """The frozen weights that are held beside the model's own."""
        return [tensor for layer in self._layers for projection in layer.projections for tensor in projection.copies()]


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


class _Layer:
    """One BertLayer: (N, D) → (N, D)."""

    def __init__(self, layer: Any):
        self._layer = layer
        block = layer.attention.self
        self._attention, self._attention_output, self._output = block, layer.attention.output, layer.output
        self._activation = layer.intermediate.intermediate_act_fn
        self.projections = (
            Projection([block.query, block.key, block.value]),
            Projection([layer.attention.output.dense]),
            Projection([layer.intermediate.dense]),
            Projection([layer.output.dense]),
        )

    @property
    def recomputes(self) -> bool:
        """Whether its activations are computed again in the backward pass."""
        # Asked of the layer: to ask the encoder is a walk through all modules, 1.5 ms a step.
        return self._layer.gradient_checkpointing and self._layer.training

    @property
    def drops(self) -> bool:
        """Whether anything in it drops values now."""
        blocks = (self._attention, self._attention_output, self._output)
        return any(active_p(block.dropout) for block in blocks) or any(projection.drops for projection in self.projections)

    def __call__(
        self,
        hidden: Tensor,
        groups: tuple[Group, ...],
        kind: torch.dtype | None,
        updates: Sequence[Update | None],
        masks: MaskRow | None,
    ) -> Tensor:
        to_qkv, to_attention_output, to_intermediate, to_output = (
            functools.partial(projection, kind=kind, update=update, masks=masks)
            for projection, update in zip(self.projections, updates, strict=True)
        )
        block = self._attention
        heads, scaling = block.num_attention_heads, block.scaling
        attended = attention(to_qkv(hidden), groups, heads, scaling, active_p(block.dropout), masks)
        hidden = _add_and_norm(self._attention_output, to_attention_output(attended), hidden, masks)
        activated = self._activation(to_intermediate(hidden))
        return _add_and_norm(self._output, to_output(activated), hidden, masks)


def _recomputed(layer: Callable[..., Tensor], drops: bool, hidden: Tensor, updates: Sequence[Update | None]) -> Tensor:
    """`layer(hidden, updates=updates)`, its activations not kept."""

    def run(hidden: Tensor, *matrices: Tensor) -> Tensor:
        parts = iter(matrices)
        own = [None if update is None else Update(*itertools.islice(parts, len(update))) for update in updates]
        return layer(hidden, updates=own)

    return recomputed(run, drops, hidden, *(matrix for update in updates if update for matrix in update))


def _add_and_norm(block: Any, projected: Tensor, residual: Tensor, masks: MaskRow | None) -> Tensor:
    """The end of BERT's output block: dropout, residual sum, layer norm."""
    return block.LayerNorm(dropout_and_add(projected, residual, active_p(block.dropout), masks))


def _plain_encoder(model: SentenceTransformer) -> Any:
    """The transformers model inside, below PEFT's wrapper where it has one."""
    encoder: Any = getattr(model[0], "model", None)
    return encoder.get_base_model() if hasattr(encoder, "get_base_model") else encoder
