"""How much memory a training step takes, predicted without running it at size, and what therefore fits.

Everything a packed step holds grows with its tokens alone, since attention looks at one sequence at a time. Two small
forward passes tell the bytes a token: what autograd keeps for the backward pass is counted by its own hooks
(`torch.autograd.graph.saved_tensors_hooks`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GIGABYTE = 1024**3
# Outside torch's own count on a GPU: the CUDA context and the libraries' code. 0.73 GB were measured on an H100.
DEVICE_ALLOWANCE = GIGABYTE * 3 // 4
# Of the memory that there is, the share that predictions may fill: they are a few percent high, heaps have holes.
MARGIN = 0.9
# The backward pass of a block holds, beside what was saved, about four arrays of its widest intermediate result at once.
BACKWARD_ARRAYS = 4
# Scores, their softmax, its gradient and one temporary: (B, B) float32 each.
LOSS_MATRICES = 4
# The embeddings, their normalised copies, and the gradients of both: (2B, D) float32 each.
EMBEDDING_COPIES = 4


@dataclass(frozen=True)
class StepMemory:
    """What one step needs, in bytes, as a function of the tokens held at once and of the contrastive batch.

    weights: the model, and copies of its frozen weights in 16 bits. optimizer: gradients and AdamW's two moments of what is
    trained. saved_fixed: what autograd keeps whatever the batch (weights with the adapters' updates added).
    saved_per_token, workspace_per_token: what it keeps, and what the backward pass holds on top, for each token.
    dimension: D of the embeddings.
    """

    weights: int
    optimizer: int
    saved_fixed: float
    saved_per_token: float
    workspace_per_token: float
    dimension: int

    def categories(self, tokens: int, batch_size: int) -> dict[str, int]:
        """Bytes by category for `tokens` held at once and a contrastive batch of `batch_size` pairs."""
        return {
            "weights": self.weights,
            "gradients and optimizer": self.optimizer,
            "activations": int(self.saved_fixed + self.saved_per_token * tokens),
            "backward workspace": int(self.workspace_per_token * tokens),
            "embeddings": EMBEDDING_COPIES * 2 * batch_size * self.dimension * 4,
            "loss": LOSS_MATRICES * batch_size * batch_size * 4,
            "device allowance": DEVICE_ALLOWANCE,
        }

    def most_tokens(self, budget: float, batch_size: int) -> int:
        """The most tokens that can be held at once within `budget` bytes; below 1 where nothing fits."""
        fixed = sum(self.categories(0, batch_size).values())
        return int((budget - fixed) / (self.saved_per_token + self.workspace_per_token))


def measure_step_memory(
    encoder: Any,
    embed: Callable[[int, int], Tensor],
    length: int,
    checkpointing: bool,
    copies: Callable[[], Sequence[Tensor]] = list,
    sequences: int = 1,
) -> StepMemory:
    """Measure what a step of this encoder keeps.

    Args:
        encoder: the transformer, with `config.num_hidden_layers`, `hidden_size` and `intermediate_size`.
        embed: (sequences, tokens of each) → their embeddings with a graph, without checkpointing, in the run's precision.
        length: tokens of a sequence to measure with.
        checkpointing: whether the run recomputes activations: then each layer keeps its input only, and the backward pass
            holds one layer's activations at a time.
        copies: → the frozen weights that are held beside the encoder's own, once it has embedded.
        sequences: to measure with; short ones share a tile, and what a tile takes is known from full ones only.
    """
    embed(1, length)
    held = copies()
    weights = [*encoder.parameters(), *held]
    small, large = (_saved_bytes(weights, functools.partial(embed, count, length)) for count in (sequences, 3 * sequences))
    tokens = sequences * length
    per_token = (large - small) / (2 * tokens)
    layers, width = encoder.config.num_hidden_layers, encoder.config.hidden_size
    fixed = small - per_token * tokens
    workspace = BACKWARD_ARRAYS * encoder.config.intermediate_size * 4
    if checkpointing:
        workspace += per_token / layers
        per_token = layers * width * 4
        fixed /= layers
    return StepMemory(
        weights=sum(tensor.nbytes for tensor in weights),
        optimizer=sum(3 * p.numel() * 4 for p in encoder.parameters() if p.requires_grad),
        saved_fixed=fixed,
        saved_per_token=per_token,
        workspace_per_token=workspace,
        dimension=width,
    )


def available_bytes(memory_gb: float, device: torch.device) -> float:
    """The budget of a run: `memory_gb`, or what the GPU has (free, or held by this process) where that is less."""
    budget = MARGIN * memory_gb * GIGABYTE
    if device.type != "cuda":
        return budget
    free, _ = torch.cuda.mem_get_info(device)
    return min(budget, MARGIN * free + torch.cuda.memory_reserved(device) + DEVICE_ALLOWANCE)


def _saved_bytes(weights: Sequence[Tensor], forward: Callable[[], Tensor]) -> int:
    """Bytes of the distinct storages that a forward pass keeps for its backward pass, the weights themselves apart."""
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, int] = {}
    holding: list[Tensor] = []  # a freed address could come back as another tensor's

    def note(tensor: Tensor) -> Tensor:
        # Without its history: a graph that holds one of its own results would be a cycle that nothing ever frees.
        tensor = tensor.detach()
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and storage.data_ptr() not in kept:
            kept[storage.data_ptr()] = storage.nbytes()
            holding.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward()
    return sum(kept.values())
