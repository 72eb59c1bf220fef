"""A layer computed again in the backward pass instead of kept, and the random numbers that make it the same again.

Gradient checkpointing (Chen et al., arXiv:1604.06174) by one autograd function. torch's `checkpoint` without re-entry
records a graph in both passes and calls Python for each tensor that autograd would keep: 4 to 7 % of a step of 16 pairs on
a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

RandomState = tuple[Tensor, Tensor | None]


def random_state(device: torch.device) -> RandomState:
    """The state of the generators that decide dropout masks: the CPU's, and the GPU's where `device` is one."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: RandomState, device: torch.device) -> None:
    """Go back to a state of `random_state`."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def recomputed(run: Callable[..., Tensor], draws: bool, *inputs: Tensor) -> Tensor:
    """`run(*inputs)`, of which nothing but the inputs is kept; the backward pass runs it again.

    Gradients go to the inputs and to the parameters that `run` uses by itself.

    Args:
        run: tensors → tensor; the second time outside of autocast.
        draws: whether it draws random numbers, which are then the same again.
    """
    # Without an input that learns autograd would pass by, though `run` may hold parameters that do.
    anchor = torch.empty(0, requires_grad=True)
    return _Recomputed.apply(run, draws, anchor, *inputs)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, run: Callable[..., Tensor], draws: bool, anchor: Tensor, *inputs: Tensor) -> Tensor:
        context.run = run
        context.state = random_state(inputs[0].device) if draws else None
        context.save_for_backward(*inputs)
        return run(*inputs)  # autograd functions run without a graph

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved, learns = context.saved_tensors, context.needs_input_grad[3:]
        device = saved[0].device
        inputs = [tensor.detach().requires_grad_(wanted) for tensor, wanted in zip(saved, learns, strict=True)]
        devices, draws = [device] if device.type == "cuda" else [], context.state is not None
        with torch.random.fork_rng(devices, draws), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            if draws:
                set_random_state(context.state, device)
            output = context.run(*inputs)
        torch.autograd.backward(output, gradients[0])
        return None, None, None, *(tensor.grad for tensor in inputs)
