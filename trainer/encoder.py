"""Packed batches → embeddings: a frozen BERT with adapters, walked through layer by layer.

The same embeddings, and gradients of the adapters, as the library's modules give on padded texts, for less work: every
matrix product sees all tokens of a batch as one row; query, key and value are one product; an adapter is a part of its
layer's product; and the frozen weights are cast to a run's 16 bits once, not at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertModel

from trainer.attention import attention
from trainer.dropout import fast_dropout
from trainer.loss import at_least_float32
from trainer.packing import Group, PackedBatch


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
        recompute = encoder.is_activation_checkpointing and encoder.training and torch.is_grad_enabled()
        with torch.autocast(device, enabled=False):
            hidden = encoder.embeddings(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                token_type_ids=torch.zeros_like(batch.input_ids),
            )[0]  # (N, D)
            for layer in self._layers:
                if recompute:
                    hidden = checkpoint(layer, hidden, batch.groups, kind, use_reentrant=False)
                else:
                    hidden = layer(hidden, batch.groups, kind)
            # The mean in float32: an fp16 sum over 256 tokens loses what tells two texts apart.
            hidden = at_least_float32(hidden) * batch.real[:, None]
            summed = hidden.new_zeros((len(batch.lengths), hidden.shape[1])).index_add(0, batch.sequence, hidden)
            return F.normalize(summed / batch.lengths[:, None], dim=-1)

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
        block = layer.attention.self
        self._attention, self._attention_output, self._output = block, layer.attention.output, layer.output
        self._activation = layer.intermediate.intermediate_act_fn
        self.projections = (
            Projection([block.query, block.key, block.value]),
            Projection([layer.attention.output.dense]),
            Projection([layer.intermediate.dense]),
            Projection([layer.output.dense]),
        )

    def __call__(self, hidden: Tensor, groups: tuple[Group, ...], kind: torch.dtype | None) -> Tensor:
        to_qkv, to_attention_output, to_intermediate, to_output = self.projections
        block = self._attention
        dropout_p = block.dropout.p if block.training else 0.0
        attended = attention(to_qkv(hidden, kind), groups, block.num_attention_heads, block.scaling, dropout_p)
        hidden = _add_and_norm(self._attention_output, to_attention_output(attended, kind), hidden)
        activated = self._activation(to_intermediate(hidden, kind))
        return _add_and_norm(self._output, to_output(activated, kind), hidden)


def _add_and_norm(block: Any, projected: Tensor, residual: Tensor) -> Tensor:
    """The end of BERT's output block: dropout, residual sum, layer norm."""
    return block.LayerNorm(block.dropout(projected).to(residual.dtype) + residual)


class Projection:
    """Linear layers that read one input, as one product, their LoRA adapters' update added in it: (N, in) → (N, sum of out).

    The adapters too are one pair of products: their A side by side, their B on a diagonal. They share a dropout mask.
    """

    def __init__(self, modules: Sequence[Any]):
        self._modules = modules
        self._adapters: list[Any] = [module for module in modules if isinstance(module, LoraLinear)]
        self._layers: list[Any] = [
            module.get_base_layer() if isinstance(module, LoraLinear) else module for module in modules
        ]
        self._frozen: tuple[Any, Tensor, Tensor] | None = None

    def __call__(self, source: Tensor, kind: torch.dtype | None) -> Tensor:
        """The product in the number format `kind`; None: in the weights' own."""
        if not all(map(_is_plain, self._modules)):  # adapters of another kind: as PEFT computes them
            with torch.autocast(source.device.type, dtype=kind, enabled=kind is not None):
                return torch.cat([module(source) for module in self._modules], dim=-1)
        adapters = self._adapters
        if not adapters or adapters[0].merged or adapters[0].disable_adapters:
            weight, bias = self._base(kind)
            return F.linear(source.to(weight.dtype), weight, bias)
        # Not through a shared module: its one caller is this one.
        dropout = adapters[0].lora_dropout["default"]
        p = getattr(dropout, "p", 0.0) if dropout.training else 0.0  # or an Identity
        down = torch.cat([adapter.lora_A["default"].weight for adapter in adapters])  # (sum of r, in)
        if not p:
            weight, bias = self._base(None)
            return _AdaptedLinear.apply(source.to(kind or weight.dtype), weight, bias, down, self._up())
        weight, bias = self._base(kind)
        source = source.to(weight.dtype)
        low_rank = F.linear(fast_dropout(source, p), down.to(weight.dtype))  # (N, sum of r)
        return torch.addmm(F.linear(source, weight, bias), low_rank, self._up().T.to(weight.dtype))

    def _up(self) -> Tensor:
        """(sum of out, sum of r): alpha / r · B of each adapter, on a diagonal; no columns where there is none."""
        blocks = [
            module.lora_B["default"].weight * module.scaling["default"]
            if isinstance(module, LoraLinear)
            else module.weight.new_empty((module.out_features, 0))
            for module in self._modules
        ]
        return blocks[0] if len(blocks) == 1 else torch.block_diag(*blocks)

    def _base(self, kind: torch.dtype | None) -> tuple[Tensor, Tensor]:
        """Weight (sum of out, in) and bias (sum of out,) of the frozen layers, joined and cast once."""
        layers = self._layers
        kind = kind or layers[0].weight.dtype
        if len(layers) == 1 and layers[0].weight.dtype == kind:
            return layers[0].weight, layers[0].bias
        state = kind, *((tensor.data_ptr(), tensor._version) for layer in layers for tensor in (layer.weight, layer.bias))
        if self._frozen is None or self._frozen[0] != state:
            weight = torch.cat([layer.weight.detach() for layer in layers]).to(kind)
            self._frozen = state, weight, torch.cat([layer.bias.detach() for layer in layers]).to(kind)
        return self._frozen[1:]

    def copies(self) -> list[Tensor]:
        """The frozen weights that are held beside the modules' own."""
        return list(self._frozen[1:]) if self._frozen else []


class _AdaptedLinear(torch.autograd.Function):
    """source @ (weight + up @ down).T + bias: (N, in) → (N, out), with gradients for source, down and up.

    The sum of the weights costs as much as so many tokens as the adapter has ranks; every token saves the adapter's own two
    products in both directions, and the passes over its wide results.
    """

    @staticmethod
    def forward(context: Any, source: Tensor, weight: Tensor, bias: Tensor, down: Tensor, up: Tensor) -> Tensor:
        adapted = torch.addmm(weight, up, down).to(source.dtype)  # summed in float32: an update may be below 16 bits
        context.save_for_backward(source, adapted, down, up)
        return F.linear(source, adapted, bias.to(source.dtype))

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        source, adapted, down, up = context.saved_tensors
        (gradient,) = gradients  # (N, out)
        of_source = gradient @ adapted if context.needs_input_grad[0] else None
        of_up = gradient.T @ F.linear(source, down.to(source.dtype))  # (out, N) @ (N, r)
        of_down = (gradient @ up.to(source.dtype)).T @ source  # (r, N) @ (N, in)
        return of_source, None, None, of_down.to(down.dtype), of_up.to(up.dtype)


def _is_plain(module: Any) -> bool:
    """Whether the module is a linear layer that gets no gradient, or one with a plain LoRA adapter."""
    if not isinstance(module, LoraLinear):
        return type(module) is nn.Linear and not _learns(module)
    return module.active_adapters == ["default"] and not module.lora_variant and not _learns(module.get_base_layer())


def _learns(layer: nn.Module) -> bool:
    return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in layer.parameters())


def _plain_encoder(model: SentenceTransformer) -> Any:
    """The transformers model inside, below PEFT's wrapper where it has one."""
    encoder: Any = getattr(model[0], "model", None)
    return encoder.get_base_model() if hasattr(encoder, "get_base_model") else encoder
