"""The in-batch contrastive loss: (B, D), (B, D) → scalar. A pure function of embeddings; no model, tokenizer or device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(
    query_embeddings: Tensor, passage_embeddings: Tensor, scale: float = 20.0, mask: Tensor | None = None
) -> Tensor:
    """Cross-entropy of each query's own passage against the other passages of the batch (InfoNCE, arXiv:1807.03748).

    Args:
        query_embeddings: (B, D), any float type; row i belongs to row i of `passage_embeddings`.
        passage_embeddings: (B, D).
        scale: factor on the cosine similarities, 1 / temperature (20 = temperature .05; E5's own is 100 = .01).
        mask: (B, B) bool; True at (i, j) takes passage j out of query i's negatives (a false negative, such as the same
            answer text under another question). The diagonal is never taken out.

    Returns:
        Scalar, float32: the mean over the B queries.

    Raises:
        ValueError: shapes that do not fit.
    """
    if query_embeddings.dim() != 2 or query_embeddings.shape != passage_embeddings.shape:
        raise ValueError(
            f"expected two (B, D) tensors of one shape, got {tuple(query_embeddings.shape)} "
            f"and {tuple(passage_embeddings.shape)}"
        )
    batch_size = len(query_embeddings)
    # Half-precision similarities times a scale of 100 differ by less than half precision resolves: float32 from here on,
    # also inside an autocast region.
    with torch.autocast(query_embeddings.device.type, enabled=False):
        queries = F.normalize(at_least_float32(query_embeddings), dim=-1)
        passages = F.normalize(at_least_float32(passage_embeddings), dim=-1)
        scores = queries @ passages.T * scale  # (B, D) @ (D, B) -> (B, B)
        if mask is not None:
            if mask.shape != scores.shape:
                raise ValueError(f"expected a mask of shape {tuple(scores.shape)}, got {tuple(mask.shape)}")
            own = torch.eye(batch_size, dtype=torch.bool, device=scores.device)
            scores = scores.masked_fill(mask.to(scores.device) & ~own, float("-inf"))
        return F.cross_entropy(scores, torch.arange(batch_size, device=scores.device))


def at_least_float32(embeddings: Tensor) -> Tensor:
    """The tensor in float32, or as it is in float64."""
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()
