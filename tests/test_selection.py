"""The rule that picks a checkpoint, by hand; strengths of the adapters against merged weights worked out apart."""

import pytest
import torch

from trainer.lora import merged_copy, setup_lora_model, up_matrices
from trainer.selection import choose_adapter_scale, selection_score

BASE = {"answers_mrr@10": 0.1, "paragraphs_mrr@10": 0.8}


def metrics(answers: float, paragraphs: float) -> dict[str, float]:
    return {"answers_mrr@10": answers, "paragraphs_mrr@10": paragraphs}


def test_answers_alone():
    assert selection_score(metrics(0.3, 0.1), BASE, "answers") == 0.3


def test_most_answers_among_those_that_keep_the_paragraphs():
    candidates = [metrics(0.3, 0.79), metrics(0.2, 0.8), metrics(0.15, 0.9), metrics(0.1, 0.8)]
    best = max(candidates, key=lambda found: selection_score(found, BASE, "both"))
    assert best == metrics(0.2, 0.8)


def test_where_none_keeps_them_the_smallest_loss_wins():
    candidates = [metrics(0.3, 0.7), metrics(0.05, 0.78), metrics(0.2, 0.75)]
    scores = [selection_score(found, BASE, "both") for found in candidates]
    assert scores == pytest.approx([-0.1, -0.02, -0.05])


def test_data_without_paragraphs_is_judged_by_its_answers():
    assert selection_score({"answers_mrr@10": 0.3}, {"answers_mrr@10": 0.1}, "both") == 0.3


def test_the_best_strength_is_kept_and_scales_the_update(toy_model, toy_config):
    model = setup_lora_model(toy_model, toy_config())
    with torch.no_grad():
        for matrix in up_matrices(model):
            matrix.normal_()
    trained = [matrix.detach().clone() for matrix in up_matrices(model)]
    full = merged_copy(model)[0].model.state_dict()
    base = {name: value for name, value in model[0].model.get_base_model().state_dict().items() if "base_layer" in name}
    seen = []

    def score() -> float:
        strength = (up_matrices(model)[0] / trained[0]).mean().item()
        seen.append(round(strength, 3))
        return -abs(strength - 0.5)

    best, scores = choose_adapter_scale(model, [0.25, 0.5, 1.0], score)
    assert best == 0.5 and seen == [0.25, 0.5, 1.0] == list(scores)
    half = merged_copy(model)[0].model.state_dict()
    assert base
    for name, value in base.items():
        merged = name.replace(".base_layer", "")
        torch.testing.assert_close(half[merged], (value + full[merged]) / 2)
