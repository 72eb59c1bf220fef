"""What only a GPU can show: its number formats beside float32 on the CPU, memory that runs out, runs that end and go on.

Skipped where there is none.
"""

import logging

import numpy as np
import pytest
import torch
from sentence_transformers import InputExample, SentenceTransformer
from test_grad_cache import one_graph_and_micro_batches

from dataloader import build_dataloader
from trainer import EmbeddingTrainer
from trainer.attention import attention, without_cudnn_attention
from trainer.lora import adapter_matrices, adapter_state
from trainer.packing import RowForm, pack

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")

SYLLABLES = list("가나다라마바사아자차카타파하거너더러머버서어저처커터퍼허")
WITHOUT_DROPOUT = {"lora_dropout": 0, "encoder_dropout": 0}


def pairs(count: int, longest: int = 110) -> list[InputExample]:
    """Texts of 1 to `longest` characters: some share a tile in 16 bits, some are longer than one."""
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(SYLLABLES, size)) for size in random.integers(1, longest, 2 * count)]
    return [InputExample(texts=["query: " + q, "passage: " + p]) for q, p in zip(texts[::2], texts[1::2], strict=True)]


@pytest.fixture
def make_trainer(trainer_with_adapters, toy_config):
    def make(**changes) -> EmbeddingTrainer:
        settings = {"device": "cuda", "log_dir": "", "max_seq_length": 128, "lora_dropout": 0.3, "encoder_dropout": 0.2}
        return trainer_with_adapters(toy_config(**settings | changes))

    return make


def gradients(trainer: EmbeddingTrainer) -> dict[str, torch.Tensor]:
    return {name: matrix.grad.double().cpu() for name, matrix in adapter_matrices(trainer.model)}


def in_one_row(named: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in named.values()])


def scaler(scale: float = 1.0) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cuda", init_scale=scale)


@pytest.mark.parametrize(
    ("precision", "scale", "cosine", "size"),
    [("fp32", 1.0, 1 - 1e-6, 1e-3), ("fp16", 1024.0, 0.999, 0.02), ("bf16", 1.0, 0.99, 0.05)],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_float32_on_the_cpu(make_trainer, precision, scale, cosine, size, checkpointing):
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("no bf16 on this GPU")
    on_cpu = make_trainer(device="cpu", **WITHOUT_DROPOUT)
    on_gpu = make_trainer(precision=precision, gradient_checkpointing=checkpointing, scale=100, **WITHOUT_DROPOUT)
    on_cpu.config.scale = 100
    losses = []
    for trainer, times in ((on_cpu, 1.0), (on_gpu, scale)):
        device = trainer.device.type
        one = torch.amp.GradScaler(device, init_scale=times)
        losses.append(trainer._backward_in_pieces(trainer._tokenised(pairs(24)), None, one).item())
    expected, found = in_one_row(gradients(on_cpu)), in_one_row(gradients(on_gpu)) / scale
    assert losses[1] == pytest.approx(losses[0], rel=size)
    assert torch.nn.functional.cosine_similarity(expected, found, dim=0) > cosine
    assert found.norm() / expected.norm() == pytest.approx(1, abs=size)


@pytest.mark.parametrize(("kind", "error"), [(torch.float16, 0.02), (torch.bfloat16, 0.1), (torch.float32, 1e-4)])
def test_gradients_of_masked_rows_of_64_tokens_are_finite_where_all_scores_are_low(kind, error):
    """As in some layers of E5; cuDNN's kernel gives none there, on an H100."""
    torch.manual_seed(0)
    lengths = torch.tensor([20, 30, 14, 25, 33, 40, 24])
    packed = pack(torch.zeros(int(lengths.sum()), dtype=torch.int32), lengths, torch.device("cuda"), form=RowForm((64,)))
    assert [group.length for group in packed.groups] == [64] and packed.groups[0].mask is not None
    query, key, value = torch.randn(3, packed.input_ids.shape[1], 4, 32).cuda() * 0.1
    query[..., 0], key[..., 0] = 10.0, -20.0  # scores of about -200 / sqrt(32) = -35
    qkv = torch.cat([part.flatten(1) for part in (query, key, value)], dim=1)
    of_output = torch.randn(len(qkv), 128).cuda()
    found = []
    for given in (kind, torch.float64):
        source = qkv.to(given).clone().requires_grad_()
        with without_cudnn_attention():
            attention(source, packed.groups, 4, 32**-0.5).backward(of_output.to(given))
        found.append(source.grad.double())
    assert torch.isfinite(found[0]).all()
    assert (found[0] - found[1]).norm() < error * found[1].norm()


@pytest.mark.parametrize("micro_batch_size", [16, 1])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_micro_batches_draw_the_same_masks_again(make_trainer, micro_batch_size, checkpointing):
    trainer = make_trainer(micro_batch_size=micro_batch_size, gradient_checkpointing=checkpointing)
    (expected_loss, expected), (loss, found) = one_graph_and_micro_batches(trainer, pairs(64))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-9, atol=0)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-7, atol=1e-10)


def test_memory_that_runs_out_halves_the_micro_batch_and_the_gradient_stays(make_trainer, caplog):
    data = pairs(512)
    free, tight = (make_trainer(batch_size=512, gradient_checkpointing=False, **WITHOUT_DROPOUT) for _ in range(2))
    free._backward(free._tokenised(data), None, free._setup_optimizer_and_scheduler(1)[0], scaler())
    expected = gradients(free)
    del free
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + 100 * 2**20
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        with caplog.at_level(logging.WARNING):
            tight._backward(tight._tokenised(data), None, tight._setup_optimizer_and_scheduler(1)[0], scaler())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "Out of memory: from here on at most" in caplog.text and "the batch stays 512 pairs" in caplog.text
    torch.testing.assert_close(in_one_row(gradients(tight)), in_one_row(expected), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp16", "auto"])
def test_a_run_learns_and_what_it_saves_is_the_same_on_the_cpu(make_trainer, precision, tmp_path):
    settings = {"batch_size": 16, "num_epochs": 30, "learning_rate": 1e-2, "warmup_steps": 5}
    trainer = make_trainer(precision=precision, **settings | WITHOUT_DROPOUT)
    examples = pairs(64, longest=20)
    loader = build_dataloader(examples, trainer.config, tokenizer=trainer.model.tokenizer)
    queries, passages = (
        dict(enumerate(text.split(": ")[1] for text in side)) for side in zip(*(e.texts for e in examples), strict=True)
    )
    texts = [{str(key): text for key, text in side.items()} for side in (queries, passages)]
    evaluator = trainer.create_evaluator(*texts, {key: {key} for key in texts[0]})
    before = trainer.evaluate(evaluator)
    after = trainer.train(loader, evaluator=evaluator)
    assert after > before + 0.1
    # The scheduler moved with the steps that were taken, the skipped ones of a scale too high apart.
    assert 0 < trainer.global_step <= 30 * len(loader)
    assert trainer._scheduler.last_epoch == trainer.global_step
    saved = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    on_gpu = SentenceTransformer(str(tmp_path / "model"), device="cuda")
    some = list(texts[1].values())[:8]
    np.testing.assert_allclose(on_gpu.encode_document(some), saved.encode_document(some), atol=1e-3)


def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not(make_trainer, tmp_path, monkeypatch):
    settings = {"batch_size": 8, "num_epochs": 2, "learning_rate": 1e-3, "checkpoint_steps": 2}
    examples = pairs(64, longest=30)

    def run(name: str, **changes) -> EmbeddingTrainer:
        trainer = make_trainer(**settings, output_dir=str(tmp_path / name), **changes)
        loader = build_dataloader(examples, trainer.config, tokenizer=trainer.model.tokenizer)
        trainer.train(loader)
        return trainer

    whole = run("whole")
    step = EmbeddingTrainer._training_step

    def cut_off(self, *arguments):
        if self.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(EmbeddingTrainer, "_training_step", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run("cut")
    monkeypatch.undo()
    # Not bit for bit: sums on a GPU come in any order.
    found = in_one_row(adapter_state(run("cut", resume="newest").model))
    torch.testing.assert_close(found, in_one_row(adapter_state(whole.model)), rtol=1e-2, atol=1e-4)
