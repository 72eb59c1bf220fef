"""Which checkpoint, and which strength of its adapters, is the best: the rule, in one place.

It looks at the validation articles only; the held-out ones are for the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from sentence_transformers import SentenceTransformer

from trainer.lora import up_matrices

_ANSWERS, _PARAGRAPHS = "answers_mrr@10", "paragraphs_mrr@10"


def selection_score(metrics: Mapping[str, float], base: Mapping[str, float], rule: str) -> float:
    """One number for a model's validation metrics; the highest is the best.

    Args:
        metrics: of the model, as `EmbeddingTrainer.metrics` has them.
        base: of the untouched base model.
        rule: "answers": MRR@10 of the answers alone. "both": the same among models that find paragraphs no worse than the
            base does; one that finds them worse gets what it lost, a negative number, and so comes after all of those.

    Raises:
        KeyError: metrics without answers. Without paragraphs "both" is "answers".
    """
    if rule == "both" and _PARAGRAPHS in metrics:
        gained = metrics[_PARAGRAPHS] - base[_PARAGRAPHS]
        if gained < 0:
            return gained
    return metrics[_ANSWERS]


def choose_adapter_scale(
    model: SentenceTransformer, scales: Sequence[float], score: Callable[[], float]
) -> tuple[float, dict[float, float]]:
    """Try the trained update at several strengths; the model keeps the best.

    Weights between the base's and the tuned ones, and beyond, trade what was learned against what the base knew
    (WiSE-FT, arXiv:2109.01903).

    Args:
        scales: factors on the update: 1 as trained, .5 halfway from the base.
        score: of the model as it is.

    Returns:
        The best factor, the first of equals, and every factor's score.
    """
    matrices = up_matrices(model)
    trained = [matrix.detach().clone() for matrix in matrices]

    def apply(scale: float) -> None:
        with torch.no_grad():
            for matrix, value in zip(matrices, trained, strict=True):
                matrix.copy_(value * scale)

    scores = {}
    for scale in scales:
        apply(scale)
        scores[scale] = score()
    best = max(scores, key=scores.__getitem__)
    apply(best)
    return best, scores
