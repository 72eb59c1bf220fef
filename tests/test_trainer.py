"""The loop: steps, scaler, scheduler, logs, evaluation, and which checkpoint is kept."""

import inspect
import logging
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import InputExample, SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

import trainer as trainer_package
from dataloader import build_dataloader
from trainer import EmbeddingTrainer, print_lora_info, setup_lora_model
from trainer import trainer as trainer_module
from trainer.lora import adapter_matrices, adapter_state
from trainer.loss import contrastive_loss
from trainer.monitor import NullMonitor
from trainer.trainer import TrainingError, linear_warmup_and_decay, warmup_within

FACTS = [
    ("대한민국의 수도는?", "서울특별시"),
    ("한글을 만든 사람은?", "세종대왕"),
    ("물의 화학식은?", "H2O"),
    ("가장 높은 산은?", "에베레스트"),
    ("광복절은 언제인가?", "1945년 8월 15일"),
    ("제주도에 있는 산은?", "한라산"),
    ("거북선을 만든 장군은?", "이순신"),
    ("고려의 수도는?", "개경"),
]
EXAMPLES = [InputExample(texts=[f"query: {question}", f"passage: {answer}"]) for question, answer in FACTS]
QUERIES = {f"q{i}": question for i, (question, _) in enumerate(FACTS)}
CORPUS = {f"d{i}": answer for i, (_, answer) in enumerate(FACTS)}
RELEVANT = {f"q{i}": {f"d{i}"} for i in range(len(FACTS))}
MATRICES = [
    f"gradients/encoder.layer.{layer}.attention.self.{target}.lora_{matrix}_weight"
    for layer in (0, 1)
    for target in ("query", "key", "value")
    for matrix in "AB"
]


def batches(count: int, size: int = 4) -> list[list[InputExample]]:
    """`count` lists of examples, going round the facts."""
    return [[EXAMPLES[(start * size + i) % len(EXAMPLES)] for i in range(size)] for start in range(count)]


@pytest.fixture
def make_trainer(toy_model_dir, toy_config):
    """Settings → a trainer of a fresh toy model, seeded, without warm-up and with a rate that moves something."""

    def make(**changes) -> EmbeddingTrainer:
        defaults = {"learning_rate": 1e-2, "warmup_steps": 0, "num_epochs": 1, "log_every_n_steps": 1, "overwrite": True}
        config = toy_config(**defaults | changes)
        torch.manual_seed(config.seed)
        model = SentenceTransformer(str(toy_model_dir), device="cpu", local_files_only=True)
        return EmbeddingTrainer(setup_lora_model(model, config), config)

    return make


@pytest.fixture
def scalars(toy_config, read_events):
    """Tag → [(step, value), …] of the one run."""

    def read() -> dict[str, list[tuple[int, float]]]:
        events = read_events(toy_config().log_dir)
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    return read


class Script:
    """An evaluator whose scores are given; it notes what the model was like at each call."""

    primary_metric = "answers_mrr@10"

    def __init__(self, *scores: float):
        self.scores = list(scores)
        self.calls = 0
        self.embeddings: list[np.ndarray] = []

    def __call__(self, model: SentenceTransformer) -> dict[str, float]:
        self.embeddings.append(model.encode_query(list(QUERIES.values())))
        score = self.scores[min(self.calls, len(self.scores) - 1)]
        self.calls += 1
        return {"answers_ndcg@10": 0.5, "answers_mrr@10": score}


LONG = {"num_epochs": 25, "log_every_n_steps": 50}  # with two batches an epoch: enough for the toy to learn the facts


def assert_learned(scalars: dict[str, list[tuple[int, float]]]) -> None:
    """The loss of the last five epochs lies clearly below that of the first."""
    losses = [value for _, value in scalars["train/epoch_loss"]]
    assert len(losses) == 25 and np.mean(losses[-5:]) < 0.7 * losses[0]


def skips_said(caplog) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.message.startswith("Step ") and " skipped: " in record.message]


def broken_gradient(trainer: EmbeddingTrainer, step: int, value: float = math.inf) -> None:
    """Multiply one adapter matrix's gradient of this step (from 1) by an infinity."""
    matrix = next(parameter for name, parameter in adapter_matrices(trainer.model) if name.endswith("value.lora_B"))
    calls = 0

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        # Queries and passages send their gradients together: one call a step.
        return gradient * value if calls == step else gradient

    matrix.register_hook(hook)


# ------------------------------------------------------------------------------------------------------------
# Training


def test_training_learns_and_saves(make_trainer, scalars):
    trainer = make_trainer(**LONG)
    assert trainer.train(batches(2)) == -math.inf  # no evaluator, no score
    assert trainer.global_step == 50
    assert_learned(scalars())
    saved = SentenceTransformer(trainer.config.output_dir, device="cpu")
    np.testing.assert_allclose(saved.encode_query(["가"]), trainer.model.encode_query(["가"]), atol=1e-5)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains_the_adapters_and_nothing_else(make_trainer, scalars, precision, checkpointing):
    trainer = make_trainer(precision=precision, gradient_checkpointing=checkpointing, **LONG)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train(batches(2))
    assert_learned(scalars())
    for name, parameter in trainer.model.named_parameters():
        assert parameter.dtype == torch.float32 and torch.isfinite(parameter).all()
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_the_score_and_the_best_checkpoint_are_those_of_the_best_step(make_trainer):
    trainer = make_trainer(num_epochs=4)
    script = Script(0.9, 0.2, 0.7, 0.3, 0.7)  # the base model, then each epoch's end; the first of two equals is kept
    assert trainer.train(batches(2), evaluator=script) == 0.7
    assert (trainer.best_score, trainer.best_step, script.calls) == (0.7, 4, 5)
    saved = SentenceTransformer(trainer.config.output_dir, device="cpu").encode_query(list(QUERIES.values()))
    distances = [abs(saved - embeddings).max() for embeddings in script.embeddings]
    assert distances[2] < 1e-5
    assert all(distance > 1e-3 for index, distance in enumerate(distances) if index != 2)
    metrics = (Path(trainer.config.output_dir) / "metrics.json").read_text()
    assert '"step": 4' in metrics and '"answers_mrr@10": 0.7' in metrics


def test_the_best_strength_of_the_best_and_of_the_last_adapter_is_saved(make_trainer):
    trainer = make_trainer(num_epochs=2, adapter_scales=[0.5, 1.5])
    # The base model, two epochs of which the first is the best, then both strengths of the last adapter and of the best.
    script = Script(0.1, 0.6, 0.5, 0.2, 0.7, 0.3, 0.65)
    assert trainer.train(batches(2), evaluator=script) == 0.7
    assert (trainer.best_step, trainer.best_metrics["adapter_scale"], script.calls) == (4, 1.5, 7)
    saved = SentenceTransformer(trainer.config.output_dir, device="cpu").encode_query(list(QUERIES.values()))
    distances = [abs(saved - embeddings).max() for embeddings in script.embeddings]
    assert distances[4] < 1e-5 and all(d > 1e-3 for i, d in enumerate(distances) if i != 4)
    assert '"adapter_scale": 1.5' in (Path(trainer.config.output_dir) / "metrics.json").read_text()


def test_both_keeps_the_checkpoint_that_does_not_lose_paragraphs(make_trainer):
    found = iter([(0.1, 0.8), (0.5, 0.7), (0.3, 0.8), (0.4, 0.79)])

    def evaluator(model):
        answers, paragraphs = next(found)
        return {"answers_mrr@10": answers, "paragraphs_mrr@10": paragraphs}

    trainer = make_trainer(num_epochs=3, selection="both")
    assert trainer.train(batches(2), evaluator=evaluator) == 0.3
    assert trainer.best_step == 4


def test_what_was_evaluated_before_the_training_is_no_base_of_the_choice(make_trainer):
    trainer = make_trainer(selection="both")
    assert trainer.evaluate(lambda model: {"answers_mrr@10": 0.9, "paragraphs_mrr@10": 0.9}) == 0.9
    found = iter([(0.1, 0.5), (0.3, 0.6)])
    assert trainer.train(batches(2), evaluator=lambda model: both_tasks(*next(found))) == 0.3
    assert trainer.evaluate(lambda model: both_tasks(0.2, 0.1)) == 0.2  # and afterwards the metric, not the choice's score


def both_tasks(answers: float, paragraphs: float) -> dict[str, float]:
    return {"answers_mrr@10": answers, "paragraphs_mrr@10": paragraphs}


def test_the_best_is_kept_where_an_epoch_without_a_step_was_the_best(make_trainer):
    trainer = make_trainer(num_epochs=3)
    broken_gradient(trainer, 1)
    assert trainer.train(batches(1), evaluator=Script(0.1, 0.5, 0.4, 0.3)) == 0.5
    assert (trainer.best_step, trainer.best_metrics["answers_mrr@10"]) == (0, 0.5)
    assert '"answers_mrr@10": 0.5' in (Path(trainer.config.output_dir) / "metrics.json").read_text()


def test_a_strength_without_a_score_is_not_chosen(make_trainer):
    trainer = make_trainer(adapter_scales=[0.5, 1.5])
    # The base model and one epoch; then both strengths of its adapter.
    assert trainer.train(batches(2), evaluator=Script(0.1, 0.2, math.nan, 0.7)) == 0.7
    trainer = make_trainer(adapter_scales=[0.5, 1.5])
    assert trainer.train(batches(2), evaluator=Script(0.1, 0.2, math.nan)) == 0.2


def test_without_an_evaluation_the_strength_is_the_one_that_is_set(make_trainer, caplog):
    for scales, kept in (([0.5], 0.5), ([0.5, 1.5], 1.0)):
        trainer = make_trainer(adapter_scales=scales)
        trainer.train(batches(2))
        ups = {name: matrix for name, matrix in adapter_state(trainer.model).items() if "lora_B" in name}
        saved = load_file(Path(trainer.config.output_dir) / "lora_adapter" / "adapter_model.safetensors")
        for name, matrix in ups.items():
            found = saved["base_model.model." + name.split("base_model.model.")[-1].replace(".default", "") + ".weight"]
            assert torch.equal(found, matrix * kept)
    assert "choose one of the adapter_scales by" in caplog.text


def test_the_adapter_that_was_trained_last_is_there_after_a_strength_was_chosen(make_trainer):
    trainer, seen = make_trainer(num_epochs=2, adapter_scales=[0.5]), []

    def evaluator(model):
        seen.append(adapter_state(model))
        return {"score": 1 / len(seen) if len(seen) > 1 else 0.0}

    trainer.train(batches(2), evaluator=evaluator)
    present = adapter_state(trainer.model)
    assert all(torch.equal(present[name], matrix) for name, matrix in seen[2].items())
    assert any(not torch.equal(present[name], matrix) for name, matrix in seen[1].items())


def test_evaluation_comes_after_eval_steps_and_at_each_epoch_s_end_but_once(make_trainer, scalars):
    trainer = make_trainer(num_epochs=2, eval_steps=3)
    trainer.train(batches(5), evaluator=Script(0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
    assert [step for step, _ in scalars()["eval/score"]] == [0, 3, 5, 6, 9, 10]


def test_the_rate_is_that_of_training_alone(make_trainer, scalars, monkeypatch):
    seconds = [0]

    def clock() -> int:
        seconds[0] += 1
        return seconds[0]

    def evaluator(model):
        seconds[0] += 10_000
        return 0.5

    monkeypatch.setattr(trainer_module.time, "perf_counter", clock)
    make_trainer(eval_steps=1).train(batches(4), evaluator=evaluator)
    rates = [rate for _, rate in scalars()["train/pairs_per_second"]]
    assert len(rates) == 4 and min(rates) > 4 / 1000


def test_an_evaluation_where_both_meet_is_done_once(make_trainer):
    script = Script(0.1)
    make_trainer(num_epochs=2, eval_steps=2).train(batches(4), evaluator=script)
    assert script.calls == 1 + 4


def test_the_model_trains_on_after_an_evaluation(make_trainer):
    modes = []
    trainer = make_trainer(num_epochs=2, eval_steps=1)
    (dropout,) = (m for name, m in trainer.model.named_modules() if name.endswith("embeddings.dropout"))
    dropout.register_forward_pre_hook(lambda module, _: modes.append(module.training) if torch.is_grad_enabled() else None)
    trainer.train(batches(2), evaluator=[Script(0.1), trainer.create_evaluator(QUERIES, CORPUS, RELEVANT)])
    assert len(modes) >= 4 and all(modes)  # four steps


def test_the_same_seed_gives_the_same_run(make_trainer, tmp_path):
    results = []
    for run in ("one", "two"):
        trainer = make_trainer(num_epochs=2, log_dir="", output_dir=str(tmp_path / run))
        trainer.train(batches(2))
        results.append([parameter.detach().clone() for _, parameter in adapter_matrices(trainer.model)])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_no_batches_are_an_error(make_trainer):
    with pytest.raises(TrainingError, match="no batches"):
        make_trainer().train([])


def test_an_interrupt_keeps_the_checkpoint_and_closes_the_logs(make_trainer, scalars):
    trainer = make_trainer(num_epochs=3)

    def stop_at_second_epoch(model):
        if trainer.global_step == 4:
            raise KeyboardInterrupt
        return {"score": 0.5}

    with pytest.raises(KeyboardInterrupt):
        trainer.train(batches(2), evaluator=stop_at_second_epoch)
    SentenceTransformer(trainer.config.output_dir, device="cpu")
    assert [step for step, _ in scalars()["train/loss"]] == [1, 2, 3, 4]


# ------------------------------------------------------------------------------------------------------------
# What the batches are


def test_prefixes_are_in_the_pairs_and_none_is_added(make_trainer, read_texts):
    listed, tokenised = make_trainer(micro_batch_size=16), make_trainer(micro_batch_size=16)  # else memory is probed
    expected = sorted(text for example in EXAMPLES for text in example.texts)
    for trainer, loader in (
        (listed, batches(2)),
        (tokenised, build_dataloader(EXAMPLES, tokenised.config, tokenizer=tokenised.model.tokenizer)),
    ):
        seen = read_texts(trainer.model)
        trainer.train(loader)
        assert sorted(seen) == expected


def test_lists_and_tokenised_batches_give_the_same_loss(make_trainer):
    # One passage stands twice, so that the mask matters.
    examples = [*EXAMPLES[:3], InputExample(texts=["query: 조선의 도읍은?", EXAMPLES[0].texts[1]])]
    trainer = make_trainer(batch_size=4)
    tokenizer = trainer.model.tokenizer
    (listed,) = build_dataloader(examples, trainer.config, shuffle=False)
    (tokenised,) = build_dataloader(examples, trainer.config, tokenizer=tokenizer, shuffle=False)
    assert isinstance(listed, list) and not isinstance(tokenised, list)

    still = torch.optim.SGD([p for p in trainer.model.parameters() if p.requires_grad], lr=0.0)
    trainer.model.eval()  # without dropout
    losses = [
        trainer._training_step(batch, None, still, torch.amp.GradScaler("cpu", init_scale=1.0)).item()
        for batch in (listed, tokenised)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    by_hand = [torch.from_numpy(trainer.model.encode([e.texts[side] for e in examples])) for side in (0, 1)]
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, 3] = mask[3, 0] = True
    assert losses[0] == pytest.approx(contrastive_loss(*by_hand, mask=mask).item(), abs=1e-5)
    assert losses[0] < contrastive_loss(*by_hand).item() - 1e-3


def test_packed_and_padded_batches_give_the_same_loss_and_gradients(make_trainer):
    packed, padded = make_trainer(), make_trainer()
    assert packed._packed_encoder is not None
    padded._packed_encoder = None
    (loss, gradients, _), (wanted, wanted_gradients, _) = one_step(packed), one_step(padded)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in wanted_gradients.items():
        np.testing.assert_allclose(gradients[name], gradient, rtol=1e-3, atol=1e-6, err_msg=name)


def test_tokenised_batches_train(make_trainer, scalars):
    trainer = make_trainer(batch_size=4, **LONG)
    trainer.train(build_dataloader(EXAMPLES, trainer.config, tokenizer=trainer.model.tokenizer))
    assert trainer.global_step == 50
    assert_learned(scalars())


# ------------------------------------------------------------------------------------------------------------
# The loss


def losses_with(make_trainer, scalars_of, train_loss, tmp_path, name) -> list[float]:
    trainer = make_trainer(log_dir=str(tmp_path / name), num_epochs=2)
    loss = train_loss(trainer.model) if train_loss is not None else None
    trainer.train(batches(2), train_loss=loss)
    return [event.value for event in scalars_of(tmp_path / name).Scalars("train/loss")]


def test_a_callable_and_a_loss_object_of_sentence_transformers_are_taken(make_trainer, read_events, tmp_path):
    own = losses_with(make_trainer, read_events, None, tmp_path, "own")
    for name, loss in {
        "object": lambda model: MultipleNegativesRankingLoss(model, scale=20.0),
        "callable": lambda model: lambda queries, passages: contrastive_loss(queries, passages, 20.0),
    }.items():
        assert losses_with(make_trainer, read_events, loss, tmp_path, name) == pytest.approx(own, rel=1e-4)
    half = losses_with(make_trainer, read_events, lambda model: lambda q, p: contrastive_loss(q, p) / 2, tmp_path, "half")
    assert half[0] == pytest.approx(own[0] / 2, rel=1e-5)


def test_the_scale_of_the_settings_is_used(make_trainer):
    queries, passages = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    loss = make_trainer(scale=50)._compute_contrastive_loss(queries, passages)
    assert loss == contrastive_loss(queries, passages, 50.0) != contrastive_loss(queries, passages, 20.0)


# ------------------------------------------------------------------------------------------------------------
# fp16


def one_step(trainer: EmbeddingTrainer):
    optimizer, _, scaler = trainer._setup_optimizer_and_scheduler(10)
    trainer._setup_gradient_logging()
    trainer._gradients.start()
    trainer.model.eval()  # without dropout, so that two trainers see the same
    for _, matrix in adapter_matrices(trainer.model):
        torch.nn.init.normal_(matrix, std=0.1, generator=torch.Generator().manual_seed(1))
    loss = trainer._training_step(batches(1)[0], None, optimizer, scaler)
    return loss, trainer._last_gradients, scaler


def test_fp16_gradients_are_unscaled_before_they_are_logged_and_clipped(make_trainer):
    reference, half = make_trainer(precision="fp32"), make_trainer(precision="fp16")
    loss, expected, _ = one_step(reference)
    half_loss, found, scaler = one_step(half)
    assert scaler.get_scale() > 1000 and half._optimizer_stepped
    assert half_loss.item() == pytest.approx(loss.item(), rel=0.02)
    for name, gradient in expected.items():
        assert np.linalg.norm(found[name] - gradient) < 0.1 * np.linalg.norm(gradient), name
    assert half._grad_norm == pytest.approx(reference._grad_norm, rel=0.05)
    assert half._grad_norm == pytest.approx(math.sqrt(sum((g**2).sum() for g in found.values())), rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_clipped_to_the_norm(make_trainer, precision):
    trainer = make_trainer(precision=precision, max_grad_norm=0.01)
    one_step(trainer)
    clipped = math.sqrt(sum(parameter.grad.pow(2).sum().item() for _, parameter in adapter_matrices(trainer.model)))
    assert trainer._grad_norm > 0.02  # as it was
    assert clipped == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(("precision", "scales"), [("fp16", True), ("fp32", False), ("bf16", False)])
def test_only_fp16_scales_the_loss(make_trainer, precision, scales):
    _, _, scaler = make_trainer(precision=precision)._setup_optimizer_and_scheduler(10)
    assert (scaler.get_scale() > 1) is scales and scaler.is_enabled() is scales


# ------------------------------------------------------------------------------------------------------------
# Steps that fail


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_skipped_step_moves_neither_weights_nor_scheduler_nor_the_count(make_trainer, scalars, caplog, precision, value):
    trainer = make_trainer(precision=precision)
    broken_gradient(trainer, step=3, value=value)
    with caplog.at_level(logging.INFO):
        trainer.train(batches(6))
    assert trainer.global_step == 5
    seen = scalars()
    assert [step for step, _ in seen["train/loss"]] == [1, 2, 3, 4, 5]
    rates = [rate for _, rate in seen["train/learning_rate"]]
    assert rates == pytest.approx([1e-2 * (6 - step) / 6 for step in range(5)])
    (said,) = skips_said(caplog)
    assert said.message.startswith("Step 3 skipped: gradients not finite")
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


def test_a_skipped_step_leaves_the_weights_alone(make_trainer):
    trainer = make_trainer()
    optimizer, _, scaler = trainer._setup_optimizer_and_scheduler(10)
    before = [parameter.detach().clone() for _, parameter in adapter_matrices(trainer.model)]
    broken_gradient(trainer, step=1)
    trainer._training_step(batches(1)[0], None, optimizer, scaler)
    assert not trainer._optimizer_stepped
    assert scaler.get_scale() == 1.0  # halving is for fp16, which finds its scale again; here it would only ever shrink
    assert all(torch.equal(p, old) for (_, p), old in zip(adapter_matrices(trainer.model), before, strict=True))
    trainer._training_step(batches(1)[0], None, optimizer, scaler)
    assert trainer._optimizer_stepped
    assert not all(torch.equal(p, old) for (_, p), old in zip(adapter_matrices(trainer.model), before, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_one_loss_that_is_nan_is_survived_said_and_left_out_of_the_mean(make_trainer, scalars, caplog, precision):
    values = []

    def loss_with_one_nan(queries, passages):
        loss = contrastive_loss(queries, passages) * (math.nan if len(values) == 1 else 1.0)
        values.append(loss.item())
        return loss

    trainer = make_trainer(precision=precision)
    with caplog.at_level(logging.INFO):
        trainer.train(batches(4), train_loss=loss_with_one_nan)
    assert trainer.global_step == 3 and len(values) == 4
    (record,) = skips_said(caplog)
    assert "loss nan" in record.message and record.levelno == logging.WARNING
    ((step, mean),) = scalars()["train/epoch_loss"]
    assert step == 3 and mean == pytest.approx(sum(v for v in values if math.isfinite(v)) / 3, rel=1e-5)
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


def test_a_loss_that_stays_nan_ends_the_training(make_trainer, monkeypatch, scalars):
    monkeypatch.setattr(trainer_module, "MOST_SKIPPED_STEPS", 3)
    calls = []

    def nan_from_the_third_step(queries, passages):
        calls.append(1)
        return contrastive_loss(queries, passages) * (math.nan if len(calls) > 2 else 1.0)

    trainer = make_trainer()
    with pytest.raises(TrainingError, match=r"3 steps in a row .* from step 3 on \(last loss nan\).*--learning_rate"):
        trainer.train(batches(20), train_loss=nan_from_the_third_step)
    assert (len(calls), trainer.global_step) == (5, 2)
    assert [step for step, _ in scalars()["train/loss"]] == [1, 2]
    assert not any(p._post_accumulate_grad_hooks for _, p in adapter_matrices(trainer.model))


def test_fp16_that_overflows_at_any_loss_scale_ends_the_training(make_trainer, caplog):
    """A loss scale of nearly 0 would let the run go on, and learn nothing."""

    class Overflowing(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * math.inf

    def loss(queries, passages):
        return contrastive_loss(Overflowing.apply(queries), passages)

    trainer = make_trainer(precision="fp16", num_epochs=2)
    with caplog.at_level(logging.INFO), pytest.raises(TrainingError, match=r"fp16 does not work here.*--precision bf16"):
        trainer.train(batches(40), train_loss=loss)
    said = skips_said(caplog)
    assert len(said) == 27 and trainer.global_step == 0  # from 2**16 to 2**-11
    # A scale of 1 is still ordinary.
    assert [record.levelno for record in said] == [logging.INFO] * 16 + [logging.WARNING] * 11


def test_cudnns_attention_is_off_in_a_step_and_as_it_was_after_it(make_trainer, monkeypatch):
    seen, enabled = [], [True]
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: enabled[-1])
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", enabled.append)

    def loss(queries, passages):
        queries.register_hook(lambda _: seen.append(enabled[-1]))
        seen.append(enabled[-1])
        return contrastive_loss(queries, passages)

    make_trainer(gradient_checkpointing=True).train(batches(1), train_loss=loss)
    assert seen == [False, False] and enabled[-1] is True


def test_skips_with_good_steps_between_them_do_not_add_up(make_trainer, monkeypatch):
    monkeypatch.setattr(trainer_module, "MOST_SKIPPED_STEPS", 2)
    calls = []

    def every_other(queries, passages):
        calls.append(1)
        return contrastive_loss(queries, passages) * (math.nan if len(calls) % 2 else 1.0)

    trainer = make_trainer()
    trainer.train(batches(8), train_loss=every_other)
    assert trainer.global_step == 4


# ------------------------------------------------------------------------------------------------------------
# The schedule


def test_the_schedule_by_hand():
    factor = linear_warmup_and_decay(warmup_steps=3, total_steps=8)
    assert [factor(step) for step in range(10)] == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5, 0, 0])
    flat = linear_warmup_and_decay(0, 4)
    assert [flat(step) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]


def test_the_rates_of_a_run(make_trainer, scalars):
    make_trainer(warmup_steps=1, learning_rate=1e-3, num_epochs=2).train(batches(5))
    wanted = [0.5e-3, *(1e-3 * (10 - step) / 9 for step in range(1, 10))]
    assert [rate for _, rate in scalars()["train/learning_rate"]] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("asked", "total", "taken"), [(500, 5000, 500), (500, 4990, 499), (500, 60, 6), (1, 9, 0), (0, 9, 0)]
)
def test_the_warm_up_is_never_more_than_a_tenth_of_the_run(caplog, asked, total, taken):
    with caplog.at_level(logging.INFO):
        assert warmup_within(asked, total) == taken
    said = [f"Warm-up shortened from {asked} to {taken} steps: a tenth of the {total} steps"] if taken < asked else []
    assert [record.message for record in caplog.records] == said


# ------------------------------------------------------------------------------------------------------------
# TensorBoard


def test_tags_and_steps_are_exactly_these(make_trainer, scalars, read_events, toy_config):
    trainer = make_trainer(num_epochs=2, log_every_n_steps=2, eval_steps=4)
    evaluators = [trainer.create_evaluator(QUERIES, CORPUS, RELEVANT, name=task) for task in ("answers", "paragraphs")]
    trainer.train(batches(3), evaluator=evaluators)
    seen = {tag: [step for step, _ in values] for tag, values in scalars().items()}
    logged, evaluated = [2, 4, 6], [0, 3, 4, 6]
    metrics = ("mrr@10", "ndcg@10", "recall@1", "recall@10", "recall@100", "positive_similarity", "negative_similarity")
    assert seen == {
        **{f"train/{name}": logged for name in ("loss", "learning_rate", "epoch", "grad_norm", "pairs_per_second")},
        "train/epoch_loss": [3, 6],
        "eval/score": evaluated,
        **{f"eval/{task}_{metric}": evaluated for task in ("answers", "paragraphs") for metric in metrics},
        **{f"{name}_norm": logged for name in MATRICES},
    }
    events = read_events(toy_config().log_dir)
    assert set(events.Tags()["histograms"]) == set(MATRICES)
    assert events.Tags()["tensors"] == ["config/text_summary"]
    assert [path.is_dir() for path in Path(toy_config().log_dir).iterdir()] == [True]  # one run, and no sub-run
    assert [path.is_file() for path in next(Path(toy_config().log_dir).iterdir()).iterdir()] == [True]


def test_the_values_are_those_of_the_run(make_trainer, scalars):
    trainer = make_trainer(num_epochs=2, log_every_n_steps=2)
    evaluator = trainer.create_evaluator(QUERIES, CORPUS, RELEVANT)
    base = evaluator(trainer.model)
    losses = []

    def noted(queries, passages):
        loss = contrastive_loss(queries, passages)
        losses.append(loss.item())
        return loss

    best = trainer.train(batches(3), train_loss=noted, evaluator=evaluator)
    seen = scalars()
    assert seen["eval/score"][0] == (0, pytest.approx(base["answers_mrr@10"]))
    assert best == pytest.approx(max(value for step, value in seen["eval/score"] if step > 0))
    assert seen["eval/answers_recall@1"][0][1] == pytest.approx(base["answers_recall@1"])
    means = [sum(losses[start : start + 2]) / 2 for start in (0, 2, 4)]  # of the steps since the last entry
    assert [value for _, value in seen["train/loss"]] == pytest.approx(means, rel=1e-5)
    assert [v for _, v in seen["train/epoch_loss"]] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3], rel=1e-5)
    assert dict(seen["train/epoch"]) == pytest.approx({2: 2 / 3, 4: 4 / 3, 6: 2})
    assert all(value > 0 for _, value in seen["train/pairs_per_second"])


def test_the_norm_of_all_gradients_is_that_of_their_parts(make_trainer, scalars):
    make_trainer(precision="fp16").train(batches(3))
    seen = scalars()
    for index, (step, total) in enumerate(seen["train/grad_norm"]):
        parts = [seen[f"{name}_norm"][index] for name in MATRICES]
        assert {part_step for part_step, _ in parts} == {step}
        assert total == pytest.approx(math.sqrt(sum(value**2 for _, value in parts)), rel=1e-3)


def test_an_empty_log_dir_writes_no_logs(make_trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(log_dir="")
    trainer.train(batches(2), evaluator=Script(0.5))
    assert isinstance(trainer._monitor, NullMonitor) and trainer.global_step == 2
    assert not list(tmp_path.rglob("events*")) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("log_dir", "command"),
    [
        ("./logs/tensorboard", "./run_tensorboard.sh"),
        ("logs/tensorboard/", "./run_tensorboard.sh"),
        ("my logs", "LOG_DIR='my logs' ./run_tensorboard.sh"),
    ],
)
def test_how_the_logs_are_shown_is_said(make_trainer, tmp_path, monkeypatch, caplog, log_dir, command):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        make_trainer(log_dir=log_dir)._setup_tensorboard()
    assert f" ({command} shows them)" in caplog.text


def test_gradients_can_be_left_out(make_trainer, scalars):
    make_trainer(log_gradients=False).train(batches(2))
    seen = scalars()
    assert "train/grad_norm" in seen and not [tag for tag in seen if tag.startswith("gradients/")]


def test_a_step_waits_for_the_device_once(make_trainer, monkeypatch):
    waits = []
    for method in ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__"):
        original = getattr(torch.Tensor, method)

        def counted(self, *args, _original=original, _method=method, **kwargs):
            code = sys._getframe(1).f_code
            caller = Path(code.co_filename)
            # Two work on the lengths of the tokenised texts, which never were on the device; the place of a mask in its row
            # is asked for on a CPU only.
            apart = caller.name in ("packing.py", "grad_cache.py") or code.co_qualname == "MaskRow.stretch"
            if caller.parent == Path(trainer_module.__file__).parent and not apart:
                waits.append(f"{caller.name} {_method}")
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, method, counted)
    trainer = make_trainer(log_every_n_steps=5)
    monkeypatch.setattr(trainer_module, "save_finished_model", lambda *_: None)
    monkeypatch.setattr(trainer, "_save_checkpoint", lambda: None)
    monkeypatch.setattr(trainer_module, "base_fingerprint", lambda _: "")
    trainer.train(batches(9))
    assert sorted(waits) == [
        "monitor.py cpu",  # of the fifth step: all gradients at once,
        "monitor.py numpy",  # which are on the host by then,
        "monitor.py tolist",  # the losses;
        "monitor.py tolist",  # the losses of the epoch,
        *["trainer.py item"] * 9,  # and the norm of each step
    ]


# ------------------------------------------------------------------------------------------------------------
# Evaluation


def test_evaluate_gives_the_first_evaluator_s_score_and_all_metrics(make_trainer):
    trainer = make_trainer(eval_samples=0)
    answers = trainer.create_evaluator(QUERIES, CORPUS, RELEVANT)
    backwards = {f"q{i}": {f"d{len(FACTS) - 1 - i}"} for i in range(len(FACTS))}
    paragraphs = trainer.create_evaluator(QUERIES, CORPUS, backwards, name="paragraphs")
    expected = answers(trainer.model) | paragraphs(trainer.model)
    assert expected["answers_mrr@10"] != expected["paragraphs_mrr@10"]
    assert trainer.evaluate([answers, paragraphs]) == expected["answers_mrr@10"]
    assert trainer.metrics == expected and len(expected) == 14
    assert trainer.evaluate((paragraphs, answers)) == expected["paragraphs_mrr@10"]
    assert trainer.evaluate(answers) == expected["answers_mrr@10"]


def test_evaluators_of_sentence_transformers_are_taken(make_trainer):
    trainer = make_trainer()
    theirs = InformationRetrievalEvaluator(
        QUERIES, CORPUS, RELEVANT, name="reference", ndcg_at_k=[10], main_score_function="cosine"
    )
    assert trainer.evaluate(theirs) == theirs(trainer.model)["reference_cosine_ndcg@10"]
    assert trainer.evaluate(lambda model: 0.25) == 0.25


def test_the_evaluator_asks_a_seeded_sample_of_raw_texts(make_trainer):
    trainer = make_trainer(eval_samples=3, split_seed=7)
    evaluator = trainer.create_evaluator(QUERIES, CORPUS, RELEVANT)
    assert len(evaluator.query_texts) == 3 and evaluator.document_texts == list(CORPUS.values())
    assert evaluator.query_texts == trainer._create_evaluator(QUERIES, CORPUS, RELEVANT).query_texts
    assert evaluator.name == "answers" and evaluator.primary_metric == "answers_mrr@10"


def test_an_evaluation_in_fp16_ranks_in_float32(make_trainer, monkeypatch):
    dtypes = []
    original = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda self, *a, **k: (dtypes.append(self.dtype), original(self, *a, **k))[1])
    trainer = make_trainer(precision="fp16")
    trainer.evaluate(trainer.create_evaluator(QUERIES, CORPUS, RELEVANT))
    assert set(dtypes) == {torch.float32}


# ------------------------------------------------------------------------------------------------------------
# Names that others rely on


def test_the_package_exports_what_it_promises():
    assert trainer_package.__all__ == ["EmbeddingTrainer", "print_lora_info", "setup_lora_model"]
    assert (trainer_package.setup_lora_model, trainer_package.print_lora_info) == (setup_lora_model, print_lora_info)


@pytest.mark.parametrize(
    ("name", "first_parameters"),
    [
        ("__init__", ["model", "config"]),
        ("train", ["train_dataloader", "train_loss", "evaluator"]),
        ("evaluate", ["evaluator"]),
        ("create_evaluator", ["queries", "corpus", "relevant_docs", "name"]),
        ("_create_evaluator", ["queries", "corpus", "relevant_docs", "name"]),
        ("_setup_tensorboard", []),
        ("_setup_gradient_logging", []),
        ("_setup_optimizer_and_scheduler", []),
        ("_training_step", ["batch", "train_loss", "optimizer", "scaler"]),
        ("_compute_contrastive_loss", ["query_embeddings", "passage_embeddings"]),
        ("_log_metrics", []),
        ("_evaluate_and_save", []),
    ],
)
def test_the_steps_have_these_names_and_parameters(name, first_parameters):
    _, *parameters = inspect.signature(getattr(EmbeddingTrainer, name)).parameters
    assert parameters[: len(first_parameters)] == first_parameters


def test_train_needs_the_batches_alone():
    parameters = inspect.signature(EmbeddingTrainer.train).parameters
    assert (parameters["train_loss"].default, parameters["evaluator"].default) == (None, None)
