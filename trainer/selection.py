"""Which checkpoint, and which strength of its adapters, is the best: the rule, in one place.

It looks at the validation articles only; the held-out ones are for the verdict. Of the strengths in `adapter_scales` the one
with the highest score is kept: weights between the base's and the tuned ones, and beyond, trade what was learned against
what the base knew (WiSE-FT, arXiv:2109.01903).
"""

from __future__ import annotations

from collections.abc import Mapping

_PARAGRAPHS = "paragraphs_mrr@10"


def selection_score(metrics: Mapping[str, float], base: Mapping[str, float], rule: str, primary: float) -> float:
    """One number for a model's validation metrics; the highest is the best.

    Args:
        metrics: of the model, as `EmbeddingTrainer.metrics` has them.
        base: of the untouched base model.
        rule: "answers": `primary` alone. "both": the same among models whose MRR@10 of paragraphs is not below the base's;
            a model below it gets what it lost, a negative number, and so comes after all of those. Without paragraphs
            "both" is "answers".
        primary: the first evaluator's primary metric: MRR@10 of the answers in train.py.
    """
    if rule == "both" and _PARAGRAPHS in metrics and metrics[_PARAGRAPHS] < base[_PARAGRAPHS]:
        return metrics[_PARAGRAPHS] - base[_PARAGRAPHS]
    return primary
