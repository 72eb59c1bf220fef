"""The rule that picks a checkpoint, by hand; strengths of the adapters against merged weights worked out apart."""

import pytest
import torch

from trainer.lora import adapter_state, load_adapter_state, merged_copy, scaled_adapter, setup_lora_model
from trainer.selection import selection_score

BASE = {"answers_mrr@10": 0.1, "paragraphs_mrr@10": 0.8}


def metrics(answers: float, paragraphs: float) -> dict[str, float]:
    return {"answers_mrr@10": answers, "paragraphs_mrr@10": paragraphs}


def score(found: dict[str, float], rule: str) -> float:
    return selection_score(found, BASE, rule, found["answers_mrr@10"])


def test_answers_alone():
    assert score(metrics(0.3, 0.1), "answers") == 0.3


def test_most_answers_among_those_that_keep_the_paragraphs():
    candidates = [metrics(0.3, 0.79), metrics(0.2, 0.8), metrics(0.15, 0.9), metrics(0.1, 0.8)]
    best = max(candidates, key=lambda found: score(found, "both"))
    assert best == metrics(0.2, 0.8)


def test_where_none_keeps_them_the_smallest_loss_wins():
    candidates = [metrics(0.3, 0.7), metrics(0.05, 0.78), metrics(0.2, 0.75)]
    scores = [score(found, "both") for found in candidates]
    assert scores == pytest.approx([-0.1, -0.02, -0.05])


def test_data_without_paragraphs_is_judged_by_the_first_metric():
    assert selection_score({"answers_mrr@10": 0.3}, {"answers_mrr@10": 0.1}, "both", 0.3) == 0.3
    assert selection_score({"sts_spearman": 0.7}, {"sts_spearman": 0.6}, "both", 0.7) == 0.7


def test_half_the_strength_is_halfway_between_the_base_and_the_tuned_weights(toy_model, toy_config):
    model = setup_lora_model(toy_model, toy_config())
    with torch.no_grad():
        for name, matrix in model.named_parameters():
            if "lora_B" in name:
                matrix.normal_()
    trained = adapter_state(model)
    full = merged_copy(model)[0].model.state_dict()
    base = {name: value for name, value in model[0].model.get_base_model().state_dict().items() if "base_layer" in name}
    load_adapter_state(model, scaled_adapter(trained, 0.5))
    half = merged_copy(model)[0].model.state_dict()
    assert base
    for name, value in base.items():
        merged = name.replace(".base_layer", "")
        torch.testing.assert_close(half[merged], (value + full[merged]) / 2)
