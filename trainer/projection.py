"""Frozen linear layers and their LoRA adapters in few operations: (N, in) → (N, sum of out).

Layers that read one input are one product, and their adapters' update is a part of it. The adapters' small matrices are
brought into shape for all layers of an encoder at once: a GPU would otherwise wait for the hundreds of small operations of a
step rather than compute.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from trainer.dropout import MaskRow, active_p, drop_threshold, dropped, keep_mask, kept_factor


class Update(NamedTuple):
    """What the adapters of one projection add to its weight: up @ down, (sum of out, in).

    down: (sum of r, in), the adapters' A one below the other. up: (b, sum of out / b, sum of r / b), alpha / r · B of each.
    In float32 on a CPU b is the number of layers, each with its own block: a third of the work for query, key and value.
    Elsewhere it is 1, one matrix with these on its diagonal, and rows of zeros where a layer has none. down_cast, up_cast:
    the same in the run's number format.
    """

    down: Tensor
    up: Tensor
    down_cast: Tensor
    up_cast: Tensor


class Projection:
    """Linear layers that read one input, as one product. Their adapters share a dropout mask."""

    def __init__(self, modules: Sequence[Any]):
        self._modules = modules
        self.adapters: list[Any] = [module for module in modules if isinstance(module, LoraLinear)]
        self._layers: list[Any] = [
            module.get_base_layer() if isinstance(module, LoraLinear) else module for module in modules
        ]
        self._frozen: dict[str, tuple[Any, Tensor]] = {}

    def __call__(
        self, source: Tensor, kind: torch.dtype | None, update: Update | None, masks: MaskRow | None = None
    ) -> Tensor:
        """The product in the number format `kind`; None: in the weights' own.

        update: of `low_rank_updates`, for the same number format. masks: for the adapters' dropout on a CPU.
        """
        if update is None:
            # Adapters of another kind, or merged into the weights, which then are not those that were joined: as PEFT does.
            if not all(map(_is_off, self.adapters)) or not all(map(_is_plain, self._modules)):
                with torch.autocast(source.device.type, dtype=kind, enabled=kind is not None):
                    return torch.cat([module(source) for module in self._modules], dim=-1)
            weight = self._joined("weight", kind)
            return F.linear(source.to(weight.dtype), weight, self._joined("bias", kind))
        # Not through a shared module: its one caller is this one.
        p = active_p(self.adapters[0].lora_dropout["default"])
        bias = self._joined("bias", kind)
        source = source.to(bias.dtype)
        matrices = (update.down, update.up, update.down_cast.detach(), update.up_cast.detach())
        if not p:
            return _AdaptedLinear.apply(source, self._joined("weight", None), bias, *matrices)
        weight = self._joined("weight", kind)
        if source.device.type == "cpu":
            return _AdapterBeside.apply(source, weight, bias, *matrices, drop_threshold(p), masks)
        low_rank = F.linear(F.dropout(source, p), update.down_cast)  # (N, sum of r)
        return F.linear(source, weight, bias).addmm_(low_rank, update.up_cast[0].T)

    @property
    def drops(self) -> bool:
        """Whether an adapter drops values of its input now."""
        return any(active_p(dropout) for adapter in self.adapters for dropout in adapter.lora_dropout.values())

    def scaling(self) -> tuple[tuple[float, ...], ...]:
        """alpha / r by layer and adapter: of the layer's own adapter, 0 for the others."""
        own = ((a.scaling["default"] if a is module else 0.0 for a in self.adapters) for module in self._modules)
        return tuple(map(tuple, own))

    def form(self) -> str | None:
        """Equal for projections whose updates can be made together; None where there is no update of this kind to add."""
        adapters = self.adapters
        if not adapters or not all(map(_is_on, adapters)) or not all(map(_is_plain, self._modules)):
            return None
        shapes = {(a.lora_A["default"].weight.shape, a.lora_B["default"].weight.shape) for a in adapters}
        return str((*shapes, self.scaling())) if len(shapes) == 1 else None

    def _joined(self, name: str, kind: torch.dtype | None) -> Tensor:
        """Weight (sum of out, in) or bias (sum of out,) of the frozen layers, joined and cast once."""
        tensors = [getattr(layer, name) for layer in self._layers]
        kind = kind or tensors[0].dtype
        if len(tensors) == 1 and tensors[0].dtype == kind:
            return tensors[0]
        state = kind, *((tensor.data_ptr(), tensor._version) for tensor in tensors)
        kept = self._frozen.get(name)
        if kept is None or kept[0] != state:
            with torch.inference_mode(False):  # kept, and so not one that only inference may use
                kept = self._frozen[name] = state, torch.cat([tensor.detach() for tensor in tensors]).to(kind)
        return kept[1]

    def copies(self) -> list[Tensor]:
        """The frozen weights that are held beside the modules' own."""
        return [tensor for _, tensor in self._frozen.values()]


def low_rank_updates(projections: Sequence[Projection], kind: torch.dtype | None) -> list[Update | None]:
    """The update of each projection; None where it has none to add, or one of another kind than plain LoRA."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, projection in enumerate(projections):
        if (form := projection.form()) is not None:
            groups[form].append(number)
    updates: list[Update | None] = [None] * len(projections)
    for numbers in groups.values():
        for number, update in zip(numbers, _made_together([projections[n] for n in numbers], kind), strict=True):
            updates[number] = update
    return updates


def _made_together(projections: Sequence[Projection], kind: torch.dtype | None) -> list[Update]:
    """The updates of P projections of one form, with m layers and k adapters of rank r each."""
    adapters = [adapter for projection in projections for adapter in projection.adapters]
    down = torch.stack([adapter.lora_A["default"].weight for adapter in adapters])  # (P·k, r, in)
    down = down.view(len(projections), -1, down.shape[-1])
    up = torch.stack([adapter.lora_B["default"].weight for adapter in adapters])  # (P·k, out, r)
    in_blocks = kind is None and up.device.type == "cpu"
    up = _scaled(up.view(len(projections), -1, *up.shape[1:]), projections[0].scaling(), in_blocks)
    casts = (down, up) if kind is None else (down.to(kind), up.to(kind))
    return [Update(*parts) for parts in zip(*(tensor.unbind() for tensor in (down, up, *casts)), strict=True)]


def _scaled(up: Tensor, scaling: tuple[tuple[float, ...], ...], in_blocks: bool) -> Tensor:
    """`Update.up` of P projections, (P, b, m·out / b, k·r / b), of B (P, k, out, r)."""
    layers = len(scaling)
    if layers == 1 or (in_blocks and up.shape[1] == layers):
        own = tuple((row[number],) for number, row in enumerate(scaling))
        return up if own == layers * ((1.0,),) else up * _tensor(own, up.dtype, up.device)[..., None]
    on_diagonal = _tensor(scaling, up.dtype, up.device)[:, :, None, None]  # (m, k, 1, 1)
    placed = up[:, None] * on_diagonal  # (P, m, k, out, r)
    return placed.transpose(2, 3).flatten(3).flatten(1, 2)[:, None]


@functools.lru_cache(maxsize=16)
def _tensor(numbers: tuple[tuple[float, ...], ...], kind: torch.dtype, device: torch.device) -> Tensor:
    """Sent to the device once; kept, and so not one that only inference may use."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=kind, device=device)


class _AdaptedLinear(torch.autograd.Function):
    """source @ (weight + up @ down).T + bias: (N, in) → (N, out), with gradients for source, down and up.

    The sum of the weights costs as much as so many tokens as the adapter has ranks; every token saves the adapter's own two
    products in both directions, and the passes over its wide results.
    """

    @staticmethod
    def forward(
        context: Any,
        source: Tensor,
        weight: Tensor,
        bias: Tensor,
        down: Tensor,
        up: Tensor,
        down_cast: Tensor,
        up_cast: Tensor,
    ) -> Tensor:
        b, out, r = up.shape
        adapted = torch.baddbmm(weight.view(b, out, -1), up, down.view(b, r, -1)).view_as(weight)
        adapted = adapted.to(source.dtype)  # summed in float32: an update may be below 16 bits
        context.save_for_backward(source, adapted, down_cast, up_cast)
        context.kind = down.dtype
        return F.linear(source, adapted, bias)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        source, adapted, down, up = context.saved_tensors
        (gradient,) = gradients  # (N, out)
        of_source = gradient @ adapted if context.needs_input_grad[0] else None
        of_up = _of_up(gradient, F.linear(source, down), up)
        of_down = _of_low_rank(gradient, up).T @ source  # (r, N) @ (N, in)
        return of_source, None, None, of_down.to(context.kind), of_up.to(context.kind), None, None


class _AdapterBeside(torch.autograd.Function):
    """source @ weight.T + bias + dropout(source) @ down.T @ up.T on a CPU: as autograd would have it, in fewer passes."""

    @staticmethod
    def forward(
        context: Any,
        source: Tensor,
        weight: Tensor,
        bias: Tensor,
        down: Tensor,
        up: Tensor,
        down_cast: Tensor,
        up_cast: Tensor,
        threshold: int,
        masks: MaskRow | None,
    ) -> Tensor:
        kept, factor = keep_mask(source.shape, threshold, masks), kept_factor(threshold)
        thinned = dropped(source, kept)
        low_rank = F.linear(thinned, down_cast).mul_(factor)  # (N, r)
        context.save_for_backward(kept, thinned, low_rank, weight, down_cast, up_cast)
        context.kind, context.factor = down.dtype, factor
        output = F.linear(source, weight, bias)
        if len(up) == 1:
            return output.addmm_(low_rank, up_cast[0].T)
        _blocks(output, len(up)).baddbmm_(_blocks(low_rank, len(up)), up_cast.transpose(1, 2))
        return output

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kept, thinned, low_rank, weight, down, up = context.saved_tensors
        (gradient,) = gradients  # (N, out)
        of_low_rank = _of_low_rank(gradient, up).mul_(context.factor)
        of_source = None
        if context.needs_input_grad[0]:
            of_source = (gradient @ weight).addcmul_(of_low_rank @ down, kept.to(gradient.dtype))
        of_down = of_low_rank.T @ thinned  # (r, N) @ (N, in)
        of_up = _of_up(gradient, low_rank, up)
        return of_source, None, None, of_down.to(context.kind), of_up.to(context.kind), None, None, None, None


def _of_low_rank(gradient: Tensor, up: Tensor) -> Tensor:
    """(N, sum of out) by `up` → (N, sum of r)."""
    if len(up) == 1:
        return gradient @ up[0]
    # The other way round, block by block, it takes three times as long.
    return torch.bmm(up.transpose(1, 2), _blocks(gradient, len(up)).transpose(1, 2)).flatten(0, 1).T


def _of_up(gradient: Tensor, low_rank: Tensor, up: Tensor) -> Tensor:
    """The gradient of `up`, of its shape, for a gradient (N, sum of out) of what it made of (N, sum of r)."""
    if len(up) == 1:
        return (low_rank.T @ gradient).T[None]  # (r, N) @ (N, out): up to twice as fast as the other way round
    return torch.bmm(_blocks(low_rank, len(up)).transpose(1, 2), _blocks(gradient, len(up))).transpose(1, 2)


def _blocks(source: Tensor, count: int) -> Tensor:
    """(N, count·w) → (count, N, w), a view."""
    return source.view(len(source), count, -1).transpose(0, 1)


def _is_on(adapter: Any) -> bool:
    return not (adapter.merged or adapter.disable_adapters)


def _is_off(adapter: Any) -> bool:
    return adapter.disable_adapters and not adapter.merged


def _is_plain(module: Any) -> bool:
    """Whether the module is a linear layer that gets no gradient, or one with a plain LoRA adapter."""
    if not isinstance(module, LoraLinear):
        return type(module) is nn.Linear and not _learns(module)
    return module.active_adapters == ["default"] and not module.lora_variant and not _learns(module.get_base_layer())


def _learns(layer: Any) -> bool:
    return torch.is_grad_enabled() and (layer.weight.requires_grad or (layer.bias is not None and layer.bias.requires_grad))
