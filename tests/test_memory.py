"""Predicted memory: bytes counted by hand on small graphs, linear in tokens, and what fits a budget."""

import functools
import gc
import weakref

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from trainer import EmbeddingTrainer, setup_lora_model
from trainer.memory import DEVICE_ALLOWANCE, GIGABYTE, StepMemory, _saved_bytes, available_bytes
from trainer.trainer import TrainingError


def test_saved_bytes_by_hand():
    layer = nn.Linear(4, 8)

    def forward(rows):
        hidden = layer(torch.ones(rows, 4, requires_grad=True))  # keeps its (rows, 4) input; the weight is a parameter
        return (hidden.exp() * 2).sum()  # exp keeps its (rows, 8) result; a product with a number keeps nothing

    assert _saved_bytes(list(layer.parameters()), functools.partial(forward, 3)) == 3 * 4 * 4 + 3 * 8 * 4


def test_a_storage_kept_twice_counts_once():
    x = torch.ones(10, requires_grad=True)
    assert _saved_bytes([], lambda: (x * x).sum() + (x * x).sum()) == 10 * 4


def test_counting_leaves_nothing_in_memory():
    class Exp(torch.autograd.Function):
        """Keeps its own result, as many operations do."""

        @staticmethod
        def forward(context, x):
            context.held = held[0]
            result = x.exp()
            context.save_for_backward(result)
            return result

        @staticmethod
        def backward(context, gradient):
            return gradient * context.saved_tensors[0]

    class Held:
        pass

    held = [Held()]
    seen = weakref.ref(held[0])
    assert _saved_bytes([], lambda: Exp.apply(torch.ones(10, requires_grad=True))) == 10 * 4
    held.clear()
    gc.collect()
    assert seen() is None


@pytest.fixture
def make_trainer(toy_model_dir, toy_config):
    def make(**changes) -> EmbeddingTrainer:
        config = toy_config(log_dir="", max_seq_length=32, **changes)
        return EmbeddingTrainer(setup_lora_model(SentenceTransformer(str(toy_model_dir), device="cpu"), config), config)

    return make


def test_the_probe_predicts_what_a_larger_step_keeps(make_trainer):
    trainer = make_trainer(gradient_checkpointing=False)
    memory = trainer.step_memory()
    lengths = torch.full((24,), 32)
    tokens = torch.ones(24 * 32, dtype=torch.int32)
    trainer.model.train()
    weights = [*trainer.model.parameters(), *trainer._packed_encoder.copies()]
    kept = _saved_bytes(weights, lambda: trainer._embed(tokens, lengths, torch.arange(24).numpy()))
    assert memory.categories(24 * 32, 12)["activations"] == pytest.approx(kept, rel=0.02)


def test_the_probe_leaves_no_trace(make_trainer):
    trainer = make_trainer(gradient_checkpointing=True)
    state = torch.get_rng_state()
    trainer.step_memory()
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.model[0].model.get_base_model().is_activation_checkpointing
    assert all(p.grad is None for p in trainer.model.parameters())


def test_half_precision_and_checkpointing_keep_less(make_trainer):
    plain = make_trainer(gradient_checkpointing=False).step_memory()
    half = make_trainer(gradient_checkpointing=False, precision="bf16").step_memory()
    recomputed = make_trainer(gradient_checkpointing=True).step_memory()
    assert half.saved_per_token < plain.saved_per_token
    assert recomputed.saved_per_token == 2 * 32 * 4  # each of the two layers keeps its input, 32 float32 a token
    assert recomputed.saved_per_token < 0.2 * plain.saved_per_token


def test_most_tokens_fill_the_budget():
    memory = StepMemory(weights=100, optimizer=10, saved_fixed=0, saved_per_token=6, workspace_per_token=4, dimension=2)
    # 100 + 10, 4 copies of (2·3, 2) float32 = 192, 4 matrices of (3, 3) float32 = 144, and the allowance.
    budget = 446 + DEVICE_ALLOWANCE
    assert memory.most_tokens(budget + 100, 3) == 10
    assert sum(memory.categories(10, 3).values()) == budget + 100
    assert memory.most_tokens(budget - 1, 3) < 1


def test_the_budget_on_a_cpu_is_the_setting():
    assert available_bytes(4, torch.device("cpu")) == pytest.approx(3.6 * GIGABYTE)  # a tenth stays free


def test_a_small_budget_cuts_the_batch_and_one_too_small_is_an_error(make_trainer, caplog):
    allowance = DEVICE_ALLOWANCE / GIGABYTE
    trainer = make_trainer(batch_size=64, memory_gb=(allowance + 0.01) / 0.9)
    with caplog.at_level("INFO"):
        trainer._setup_memory()
    assert 32 <= trainer._max_tokens < 2 * 64 * 32
    assert "tokens held at once" in caplog.text
    with pytest.raises(TrainingError, match=r"a step needs at least .* raise --memory_gb"):
        make_trainer(batch_size=64, memory_gb=allowance)._setup_memory()


def test_micro_batch_size_is_taken_as_the_memory_of_full_length_pairs(make_trainer):
    trainer = make_trainer(micro_batch_size=3)
    trainer._setup_memory()
    assert trainer._max_tokens == 2 * 3 * 32
