"""EmbeddingTrainer: the loop that trains a LoRA embedding model with in-batch negatives.

`python train.py` runs it; in a notebook: `EmbeddingTrainer(model, config).train(dataloader, evaluator=evaluator)`.
"""

from __future__ import annotations

import functools
import logging
import math
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from tqdm.auto import tqdm

from config import TrainingConfig, differing_settings
from trainer.attention import without_cudnn_attention
from trainer.checkpoint import CheckpointError, check_output_dir, claimed, save_finished_model
from trainer.device import choose_device, choose_precision
from trainer.encoder import PackedEncoder, can_pack
from trainer.evaluation import EvaluationError, RetrievalEvaluator
from trainer.grad_cache import cached_backward, cut_micro_batches, deal_micro_batches
from trainer.heap import kept_heap
from trainer.lora import (
    adapter_matrices,
    adapter_state,
    base_fingerprint,
    enable_checkpointing,
    load_adapter_state,
    peft_model_of,
    scaled_adapter,
)
from trainer.loss import at_least_float32, contrastive_loss
from trainer.memory import GIGABYTE, StepMemory, available_bytes, measure_step_memory
from trainer.monitor import GradientRecorder, LossMean, Monitor, NullMonitor, TensorBoardMonitor
from trainer.packing import pack, row_form, row_length
from trainer.recompute import random_state, set_random_state
from trainer.resume import BatchStream, Checkpoint, data_fingerprint, find_checkpoint, how_to_resume, write_checkpoint
from trainer.schedule import linear_warmup_and_decay, warmup_within
from trainer.selection import selection_score
from trainer.signals import StopRequest, TrainingStopped

logger = logging.getLogger(__name__)

AUTOCAST_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Where a batch is cut at all: pieces that take memory which the system has to find anew each time are a fifth slower.
PIECE_TOKENS_ON_A_CPU = 8192
MOST_SKIPPED_STEPS = 100  # in a row
# Below it gradients of an ordinary size are lost in float16: the run would go on and learn nothing.
LEAST_LOSS_SCALE = 2.0**-10


class TrainingError(RuntimeError):
    """Training cannot go on."""


class EmbeddingTrainer:
    """Trains the adapters of a model; see `setup_lora_model`.

    Args:
        model: with adapters attached. It is moved to the device that the settings choose.
        config: the settings.

    Attributes:
        global_step: optimiser steps done.
        best_score, best_step, best_metrics: of the best evaluation so far, whose adapter is kept (-inf, 0, {} before the
            first). `adapter_scale` stands among the metrics where one was chosen.
        metrics: of the latest evaluation, by name.
        optimiser_seconds: spent in steps, without evaluations, logs and checkpoints.
        log_failure: why the logs are incomplete; "" while they are not.

    Raises:
        DeviceError: the device or number format cannot be used.
    """

    def __init__(self, model: SentenceTransformer, config: TrainingConfig):
        self.model = model
        self.config = config
        self.device, device_reason = choose_device(config.device)
        self.precision, precision_reason = choose_precision(config.precision, self.device)
        logger.info("Training on %s (%s), in %s (%s)", self.device, device_reason, self.precision, precision_reason)
        self._row_form = row_form(self.precision != "fp32", self.device)
        self.model.to(self.device)
        self.global_step = 0
        self.best_score, self.best_step = -math.inf, 0
        self.metrics: dict[str, float] = {}
        self.optimiser_seconds = 0.0
        self._start_metrics: dict[str, float] = {}  # of the untouched base model
        self.best_metrics: dict[str, float] = {}
        self._best_adapter: dict[str, Tensor] = {}
        self._packed_encoder = PackedEncoder(model) if can_pack(model) else None
        # Tokens held at once; `_setup_memory` decides it anew when training starts.
        self._max_tokens = self._full_length_tokens()
        self._tokens_tried = 0
        self._monitor: Monitor = NullMonitor()
        self._gradients: GradientRecorder | None = None
        self._stop = StopRequest()
        self._skipped_in_a_row = 0
        self._optimizer_stepped = False
        self._grad_norm = 0.0
        self._window = LossMean(self.device)
        self._epoch_window = LossMean(self.device)

    def train(
        self,
        train_dataloader: Iterable[Any],
        train_loss: Any = None,
        evaluator: Any = None,
    ) -> float:
        """Run all epochs; the model with the best score is in `config.output_dir` then, and checkpoints beside it.

        With `config.resume` the run goes on from its checkpoint: what follows is bitwise what would have followed without
        the interruption (float32 on a CPU with a fixed number of threads). SIGINT and SIGTERM end it after the step.

        Args:
            train_dataloader: has a length; yields lists of InputExample or the tokenised batches of
                `dataloader.build_dataloader`.
            train_loss: None for the in-batch contrastive loss of the settings, a callable
                (query_embeddings, passage_embeddings) → scalar, or a sentence-transformers loss with
                `compute_loss_from_embeddings`. The last two get float32 embeddings and no mask: identical passages of
                a batch count as each other's negatives there.
            evaluator: None, or one evaluator or a list of them; the first one's primary metric is the score.

        Returns:
            The best score; -inf without an evaluator (the last state is saved then).

        Raises:
            TrainingError: no batches; a hundred steps in a row without finite gradients; or fp16 whose loss scale leaves no
                gradient. The best model is saved.
            TrainingStopped: a signal came. The best model is saved, and a checkpoint.
            CheckpointError: the model or a checkpoint could not be saved; output_dir holds another model, or another run
                trains into it; there is no checkpoint to resume from, or it is one of another run.
            LogError: the log folder cannot be made.
        """
        if len(train_dataloader) == 0:  # type: ignore[arg-type]
            raise TrainingError("there are no batches to train on: fewer pairs than one batch needs")
        with claimed(self.config.output_dir), self._stop, kept_heap(self.device):
            check_output_dir(self.config)
            self._setup_memory()  # first: where nothing fits, no log folder is left behind
            goes_on = self._begin(train_dataloader)
            self._setup_gradient_logging()
            try:
                if not goes_on:
                    self._measure_and_keep_the_start(evaluator)
                steps, done = self._batches.total, self._batches.batches
                with tqdm(total=steps, initial=done, desc="Training", unit="step", dynamic_ncols=True) as progress:
                    self._train_steps(train_loss, evaluator, progress)
                if not self.best_metrics and evaluator is not None:
                    logger.warning("No evaluation gave a score: the last state is saved")
                if self.best_metrics and self.config.adapter_scales != [1.0]:
                    self._choose_adapter_scale(evaluator)
                self._save_best()
            except (TrainingError, EvaluationError, KeyboardInterrupt):
                if self.best_metrics:
                    self._save_best()
                raise
            finally:
                self._monitor.close()
                if self._gradients is not None:
                    self._gradients.remove()
                    if self._gradients.non_finite:
                        logger.warning("%d gradients were not logged: not finite", self._gradients.non_finite)
            if self._stop.received is not None:  # after the last step: what is left is the caller's work
                raise self._stopped(self._stop.received)
        return self.best_score

    @property
    def log_failure(self) -> str:
        return self._monitor.failure

    def evaluate(self, evaluator: Any) -> float:
        """The (first) evaluator's primary metric, of the model as it is. All metrics are in `self.metrics` then."""
        evaluators: Sequence[Callable[..., Any]] = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
        self.metrics, primaries = {}, []
        with torch.no_grad(), self._autocast():
            for one in evaluators:
                result = one(self.model)
                # sentence-transformers' evaluators return a dict with a primary metric, older ones a number.
                named = result if isinstance(result, dict) else {"score": float(result)}
                primary = getattr(one, "primary_metric", None) or next(iter(named))
                primaries.append(float(named[primary]))
                self.metrics |= {name: float(value) for name, value in named.items()}
        return primaries[0]

    def create_evaluator(
        self,
        queries: Mapping[str, str],
        corpus: Mapping[str, str],
        relevant_docs: Mapping[str, set[str]],
        name: str = "answers",
    ) -> RetrievalEvaluator:
        """A retrieval evaluator over raw texts (without prefixes), asking at most `config.eval_samples` of the queries."""
        return RetrievalEvaluator(
            queries, corpus, relevant_docs, name=name, max_queries=self.config.eval_samples, seed=self.config.split_seed
        )

    _create_evaluator = create_evaluator

    def _train_steps(self, train_loss: Any, evaluator: Any, progress: tqdm) -> None:
        config, batches = self.config, self._batches
        self.model.train()
        window_start, window_pairs = time.perf_counter(), 0
        for batch in batches:
            due = (self.global_step + 1) % config.log_every_n_steps == 0
            if due and self._gradients is not None:
                self._gradients.start()

            # ----------------------------------------------------------------------------------------------------
            began = time.perf_counter()
            learning_rate = self._scheduler.get_last_lr()[0]
            loss = self._training_step(batch, train_loss, self._optimizer, self._scaler)
            if self._optimizer_stepped:
                self._scheduler.step()
                self.global_step += 1
            self.optimiser_seconds += time.perf_counter() - began
            # ----------------------------------------------------------------------------------------------------

            self._window.add(loss)
            self._epoch_window.add(loss)
            window_pairs += _batch_length(batch)
            progress.update()
            stopping = self._stop.received  # a signal during what follows is for the next step
            if due and self._optimizer_stepped:
                seconds = time.perf_counter() - window_start
                measured: dict[str, float] = {
                    "train/loss": self._window.mean(),
                    "train/learning_rate": float(learning_rate),
                    "train/epoch": batches.epochs_done,
                    "train/grad_norm": self._grad_norm,
                    "train/pairs_per_second": window_pairs / seconds,
                }
                self._log_metrics(measured)
                if self._gradients is not None:
                    self._monitor.log_gradients(self._last_gradients, self.global_step)
                progress.set_postfix(loss=f"{measured['train/loss']:.3f}", lr=f"{learning_rate:.1e}")
                window_start, window_pairs = time.perf_counter(), 0
            if batches.at_epoch_end:
                self._log_metrics({"train/epoch_loss": self._epoch_window.mean()})
            if evaluator is not None and (batches.at_epoch_end or self._is_due(config.eval_steps)):
                before = time.perf_counter()
                self._evaluate_and_save(evaluator)
                window_start += time.perf_counter() - before  # the rate is that of training alone
            elif batches.at_epoch_end or stopping or self._is_due(config.checkpoint_steps):
                self._save_checkpoint()
            if stopping:
                raise self._stopped(stopping)

    def _stopped(self, signum: int) -> TrainingStopped:
        return TrainingStopped(signum, f"Stopped after step {self.global_step}. Go on with: {how_to_resume(self.config)}")

    def _is_due(self, every: int) -> bool:
        """Whether a chore that comes after each `every` steps is to be done now; a skipped step counts for none."""
        return self._optimizer_stepped and self.global_step % every == 0

    def _training_step(
        self, batch: Any, train_loss: Any, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> Tensor:
        """One batch: embeddings → loss → gradients → clipped optimiser step. Returns the loss, detached, on the device.

        A step whose gradients are not finite is skipped; `self._optimizer_stepped` tells. To ask for that is all that waits
        for the device.
        """
        features = self._tokenised(batch)
        loss = self._backward(features, train_loss, optimizer, scaler)
        scaler.unscale_(optimizer)
        self._last_gradients = self._gradients.fetch() if self._gradients is not None else {}
        trainable = [p for group in optimizer.param_groups for p in group["params"]]
        self._grad_norm = torch.nn.utils.clip_grad_norm_(trainable, self.config.max_grad_norm).item()
        # Not by `scaler.step`: with a fused optimizer it leaves the question to the kernel, which does not tell the answer.
        self._optimizer_stepped = math.isfinite(self._grad_norm)
        if self._optimizer_stepped:
            optimizer.step()
        scaler.update()
        self._watch_skips(loss, scaler)
        return loss

    def _compute_contrastive_loss(
        self, query_embeddings: Tensor, passage_embeddings: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The in-batch contrastive loss with the settings' scale: (B, D), (B, D) → scalar; see `contrastive_loss`."""
        return contrastive_loss(query_embeddings, passage_embeddings, self.config.scale, mask)

    def _loss(self, train_loss: Any, queries: Tensor, passages: Tensor, mask: Tensor) -> Tensor:
        if train_loss is None:
            return self._compute_contrastive_loss(queries, passages, mask)
        if hasattr(train_loss, "compute_loss_from_embeddings"):
            labels = torch.arange(len(queries), device=self.device)
            return train_loss.compute_loss_from_embeddings([queries, passages], labels)
        return train_loss(queries, passages)

    def _backward(
        self,
        features: Mapping[str, Tensor],
        train_loss: Any,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> Tensor:
        """Fresh gradients of one contrastive batch, scaled; returns its loss. Micro-batches are halved until they fit."""
        while True:
            optimizer.zero_grad(set_to_none=True)
            state = random_state(self.device)
            try:
                with without_cudnn_attention():
                    return self._backward_in_pieces(features, train_loss, scaler)
            except torch.OutOfMemoryError as error:
                self._halve_micro_batches(int(features["lengths"].max()), error)
                set_random_state(state, self.device)

    def _backward_in_pieces(self, features: Mapping[str, Tensor], train_loss: Any, scaler: torch.amp.GradScaler) -> Tensor:
        pieces = self._micro_batches(features["lengths"])
        in_order = torch.from_numpy(np.argsort(np.concatenate(pieces)))
        pairs = len(features["mask"])

        def embed(piece: np.ndarray) -> Tensor:
            return self._embed(features["tokens"], features["lengths"], piece)

        def loss_of(embeddings: Tensor) -> Tensor:
            ordered = embeddings[in_order.to(embeddings.device)]
            queries, passages = ordered[:pairs], ordered[pairs:]  # (B, D) and the distinct ones, (U, D)
            return self._loss(train_loss, queries, passages[features["passage_of"].to(ordered.device)], features["mask"])

        def backward(loss: Tensor) -> None:
            scaler.scale(loss).backward()

        if len(pieces) > 1:
            return cached_backward(embed, pieces, loss_of, backward, self.device)
        loss = loss_of(embed(pieces[0]))
        backward(loss)
        return loss.detach()

    def _micro_batches(self, lengths: Tensor) -> list[np.ndarray]:
        """The numbers of the sequences that are embedded together; one micro-batch where all fit."""

        def cut(max_tokens: int) -> list[np.ndarray]:
            if self._packed_encoder is None:
                return cut_micro_batches(lengths, max_tokens)
            return deal_micro_batches(lengths, max_tokens, functools.partial(row_length, form=self._row_form))

        pieces = cut(self._max_tokens)
        if len(pieces) > 1 and self.device.type == "cpu":
            pieces = cut(min(self._max_tokens, PIECE_TOKENS_ON_A_CPU))
        return pieces

    def _halve_micro_batches(self, longest: int, error: Exception) -> None:
        if self._max_tokens <= longest:
            raise TrainingError(
                f"out of memory with a single text of {longest} tokens ({error}). Close other programs that use the "
                "device, lower --max_seq_length, or use --gradient_checkpointing true."
            ) from error
        self._max_tokens = max(longest, min(self._max_tokens, self._tokens_tried) // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning(
            "Out of memory: from here on at most %d tokens are held at once; the batch stays %d pairs",
            self._max_tokens,
            self.config.batch_size,
        )

    def _embed(self, tokens: Tensor, lengths: Tensor, chosen: np.ndarray) -> Tensor:
        """Embeddings (n, D) of the chosen sequences of the batch."""
        with self._autocast():
            if self._packed_encoder is not None:
                batch = pack(tokens, lengths, self.device, chosen, self._row_form)
                self._tokens_tried = batch.input_ids.shape[1]
                return at_least_float32(self._packed_encoder(batch))
            rows = tokens.long().split(lengths.tolist())
            padded = nn.utils.rnn.pad_sequence([rows[i] for i in chosen], True, self.model.tokenizer.pad_token_id)
            self._tokens_tried = padded.numel()
            real = torch.arange(padded.shape[1]) < lengths[torch.from_numpy(chosen)][:, None]
            features = {"input_ids": padded.to(self.device), "attention_mask": real.long().to(self.device)}
            return at_least_float32(self.model(features)["sentence_embedding"])

    def _tokenised(self, batch: Any) -> Mapping[str, Tensor]:
        """The batch as token ids; lists of InputExample are tokenised here, other batches were ahead of the loop."""
        if not isinstance(batch, list):
            return batch
        queries, passages = ([example.texts[side] for example in batch] for side in (0, 1))
        same = _equal(queries) | _equal(passages)
        rows = self.model.tokenizer(queries + passages, truncation=True, max_length=self.model.max_seq_length)["input_ids"]
        return {
            "tokens": torch.tensor([token for row in rows for token in row], dtype=torch.int32),
            "lengths": torch.tensor([len(row) for row in rows]),
            "passage_of": torch.arange(len(batch)),
            "mask": same & ~torch.eye(len(batch), dtype=torch.bool),
        }

    def _setup_memory(self) -> None:
        """Decide how many tokens a micro-batch may hold.

        `micro_batch_size` means the memory of that many pairs of full length; shorter texts share it.
        """
        config = self.config
        if config.micro_batch_size or self._packed_encoder is None:  # not packed: in one piece, until memory runs out
            self._max_tokens = self._full_length_tokens()
            return
        memory = self.step_memory()
        self._max_tokens = memory.most_tokens(available_bytes(config.memory_gb, self.device), config.batch_size)
        need = sum(memory.categories(config.max_seq_length, config.batch_size).values()) / GIGABYTE
        if self._max_tokens < config.max_seq_length:
            raise TrainingError(
                f"a step needs at least {need:.1f} GB, more than there is (memory_gb {config.memory_gb:g}). "
                "Close other programs that use the device, raise --memory_gb or lower --batch_size."
            )
        held = min(self._max_tokens, 2 * config.batch_size * config.max_seq_length)
        total = sum(memory.categories(held, config.batch_size).values()) / GIGABYTE
        logger.info(
            "Memory: at most %.1f GB predicted for a batch of %d pairs in full length, %s (memory_gb %g)",
            total,
            config.batch_size,
            "in one piece" if held < self._max_tokens else f"{held:,} tokens held at once",
            config.memory_gb,
        )

    def _full_length_tokens(self) -> int:
        """Tokens of a micro-batch's pairs, or else the batch's, in full length."""
        return 2 * (self.config.micro_batch_size or self.config.batch_size) * self.config.max_seq_length

    def step_memory(self) -> StepMemory:
        """What a step of this run needs, measured on two small batches; see `StepMemory`."""
        encoder: Any = peft_model_of(self.model).get_base_model()
        vocabulary = len(self.model.tokenizer)

        def embed(sequences: int, length: int) -> Tensor:
            tokens = torch.arange(sequences * length, dtype=torch.int32) % vocabulary
            return self._embed(tokens, torch.full((sequences,), length), np.arange(sequences))

        was_checkpointing = encoder.is_activation_checkpointing
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), without_cudnn_attention():
            self.model.train()
            encoder.activation_checkpointing_disable()
            try:
                copies = self._packed_encoder.copies if self._packed_encoder is not None else list
                length = self.config.max_seq_length
                in_a_tile = max(1, self._row_form.tiles[-1] // length)
                return measure_step_memory(encoder, embed, length, was_checkpointing, copies, in_a_tile)
            finally:
                if was_checkpointing:
                    enable_checkpointing(encoder)

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST_TYPES.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _setup_tensorboard(self, earlier_run_dir: str = "") -> None:
        """Logs in a folder of their own, or, of a run that goes on, in the same one from the next step on."""
        if not self.config.log_dir:
            return
        run_dir = Path(earlier_run_dir)
        if earlier_run_dir and run_dir.is_dir() and run_dir.parent == Path(self.config.log_dir):
            self._monitor = TensorBoardMonitor(self.config.log_dir, run_dir, purge_step=self.global_step + 1)
        else:
            self._monitor = TensorBoardMonitor(self.config.log_dir)
            self._monitor.log_config(self.config.to_dict())
        by_default = Path(self.config.log_dir) == Path(TrainingConfig.log_dir)
        place = "" if by_default else f"LOG_DIR={shlex.quote(self.config.log_dir)} "
        logger.info("TensorBoard logs go to %s (%s./run_tensorboard.sh shows them)", self._monitor.run_dir, place)

    def _setup_gradient_logging(self) -> None:
        if self.config.log_dir and self.config.log_gradients:
            self._gradients = GradientRecorder(adapter_matrices(self.model))

    def _setup_optimizer_and_scheduler(
        self, total_steps: int, steps_done: int = 0
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, torch.amp.GradScaler]:
        """AdamW over the adapters, linear warm-up and decay to 0, and the scaler of fp16.

        In the other formats the scaler does nothing.
        """
        config = self.config
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        # On a CPU one call for all matrices takes a third of one call for each; a GPU has torch's choice.
        fused = True if self.device.type == "cpu" else None
        optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)
        optimizer.param_groups[0]["initial_lr"] = config.learning_rate  # what a scheduler that goes on starts from
        warmup = warmup_within(config.warmup_steps, total_steps)
        factor = linear_warmup_and_decay(warmup, total_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor, last_epoch=steps_done - 1)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        return optimizer, scheduler, scaler

    def _watch_skips(self, loss: Tensor, scaler: torch.amp.GradScaler) -> None:
        if self._optimizer_stepped:
            self._skipped_in_a_row = 0
            return
        self._skipped_in_a_row += 1
        value, scale = loss.item(), scaler.get_scale()
        # fp16 begins with a scale that is too high on purpose and finds its own within a few skipped steps.
        finds_its_scale = self.precision == "fp16" and math.isfinite(value) and scale >= 1
        level = logging.INFO if finds_its_scale else logging.WARNING
        logger.log(
            level,
            "Step %d skipped: gradients not finite (loss %g, loss scale now %g)",
            self.global_step + 1,
            value,
            scale,
        )
        if self.precision == "fp16" and scale < LEAST_LOSS_SCALE:
            raise TrainingError(
                f"fp16 does not work here: gradients overflow at any loss scale, {scale:g} now, at step "
                f"{self.global_step + 1} (last loss {value:g}). Train with --precision bf16 where the GPU has it, else fp32."
            )
        if self._skipped_in_a_row >= MOST_SKIPPED_STEPS:
            raise TrainingError(
                f"{MOST_SKIPPED_STEPS} steps in a row without finite gradients, from step {self.global_step + 1} on "
                f"(last loss {value:g}). Lower --learning_rate, or train with --precision fp32."
            )

    def _log_metrics(self, metrics: Mapping[str, float]) -> None:
        self._monitor.log_metrics(metrics, self.global_step)

    def _scores(self, evaluator: Any, is_start: bool = False) -> dict[str, float]:
        """Evaluate; the score by which checkpoints are chosen, and all metrics, as they are logged."""
        primary = self.evaluate(evaluator)
        if is_start:
            self._start_metrics = dict(self.metrics)
        score = selection_score(self.metrics, self._start_metrics, self.config.selection, primary)
        return {"eval/score": score, **{f"eval/{name}": value for name, value in self.metrics.items()}}

    def _measure_and_keep_the_start(self, evaluator: Any) -> None:
        if evaluator is not None:
            # Step 0: the base model, since fresh adapters change nothing.
            self._log_metrics(self._scores(evaluator, is_start=True))
        self._save_checkpoint()

    def _evaluate_and_save(self, evaluator: Any) -> None:
        """Evaluate, log, keep the adapter where it is the best so far, and a checkpoint."""
        scores = self._scores(evaluator)
        self._log_metrics(scores)
        self.model.train()
        score = scores["eval/score"]
        better = score > self.best_score
        logger.info("Step %d: score %.4f%s", self.global_step, score, " (best so far)" if better else "")
        if better:
            self.best_score, self.best_step, self.best_metrics = score, self.global_step, dict(self.metrics)
            self._best_adapter = adapter_state(self.model)
        self._save_checkpoint()

    def _choose_adapter_scale(self, evaluator: Any) -> None:
        """Keep the best strength of the best adapter, or of the last one."""
        found: dict[tuple[int, float], tuple[float, dict[str, float], dict[str, Tensor]]] = {}
        last = adapter_state(self.model)
        for step, adapter in {self.global_step: last, self.best_step: self._best_adapter}.items():
            for scale in self.config.adapter_scales:
                load_adapter_state(self.model, scaled_adapter(adapter, scale))
                score = self._scores(evaluator)["eval/score"]
                logger.info("Step %d, adapter times %g: score %.4f", step, scale, score)
                if not math.isnan(score):
                    found[step, scale] = score, dict(self.metrics), adapter_state(self.model)
        load_adapter_state(self.model, last)
        if not found:  # an evaluator of one's own may give no number; the best checkpoint stays then, as trained
            return
        (step, scale), (score, metrics, adapter) = max(found.items(), key=lambda item: item[1][0])
        self.best_score, self.best_step = score, step
        self.best_metrics, self._best_adapter = metrics | {"adapter_scale": scale}, adapter

    def _save_best(self) -> None:
        """The finished model: the best adapter merged in, or without one the present adapter at the strength that is set."""
        if self.best_metrics:
            self._save(self._best_adapter, {"step": self.best_step, "validation": self.best_metrics})
        elif (scale := self._unmeasured_scale()) != 1:
            self._save(scaled_adapter(adapter_state(self.model), scale), {"step": self.global_step})
        else:
            save_finished_model(self.model, self.config, {"step": self.global_step})

    def _save(self, adapter: dict[str, Tensor], record: dict[str, Any]) -> None:
        """The model with another adapter than the present one."""
        present = adapter_state(self.model)
        load_adapter_state(self.model, adapter)
        save_finished_model(self.model, self.config, record)
        load_adapter_state(self.model, present)

    def _unmeasured_scale(self) -> float:
        scales = self.config.adapter_scales
        if len(scales) == 1:
            return scales[0]
        logger.warning("No evaluation gave a score to choose one of the adapter_scales by: the update is kept as trained")
        return 1.0

    # --- going on ---------------------------------------------------------------------------------------------------

    def _begin(self, train_dataloader: Any) -> bool:
        """Everything that a run carries along: anew, or as its checkpoint has it. Returns whether there was one."""
        config = self.config
        checkpoint = find_checkpoint(config) if config.resume else None
        self._identity = {
            "device": self.device.type,
            "precision": self.precision,
            "training data": data_fingerprint(train_dataloader),
            "base model": base_fingerprint(self.model),
        }
        self._batches = BatchStream(train_dataloader, config.num_epochs, self.device)
        if checkpoint is None:
            self._optimizer, self._scheduler, self._scaler = self._setup_optimizer_and_scheduler(self._batches.total)
            self._setup_tensorboard()
            return False
        try:
            different = self._differences(checkpoint)
            if not different or config.resume_force:
                self._restore(checkpoint)
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint {checkpoint.path} cannot be resumed: {error}") from error
        if different and not config.resume_force:
            raise CheckpointError(
                "\n".join([f"{checkpoint.path} is of a run that differs from this one:", *different])
                + "\nResume it as it was, or pass --resume_force, which goes on to another result."
            )
        logger.info("Going on after step %d (%s)", self.global_step, checkpoint.path)
        self._setup_tensorboard(checkpoint.state["log_dir"])
        return True

    def _differences(self, checkpoint: Checkpoint) -> list[str]:
        """What would make the run end in another model than the one whose checkpoint this is."""
        before = checkpoint.state["identity"]
        return differing_settings(checkpoint.settings, self.config) + [
            f"{name}: the run that is resumed had {before[name][:12]}, not {now[:12]}"
            for name, now in self._identity.items()
            if before[name] != now
        ]

    def _save_checkpoint(self) -> None:
        """All that `_restore` takes back; the logs up to here are on the disk before it."""
        self._monitor.flush()
        place, random_states = self._batches.state()
        state = {
            "global_step": self.global_step,
            "skipped_in_a_row": self._skipped_in_a_row,
            "max_tokens": self._max_tokens,
            "loss_sum": self._window.state(),
            "epoch_loss_sum": self._epoch_window.state(),
            "metrics": self.metrics,
            "optimiser_seconds": self.optimiser_seconds,
            "start_metrics": self._start_metrics,
            "best": {
                "score": self.best_score if self.best_metrics else None,
                "step": self.best_step,
                "metrics": self.best_metrics,
            },
            "scheduler": {"last_epoch": self._scheduler.last_epoch},
            "scaler": self._scaler.state_dict(),
            "place": place,
            "identity": self._identity,
            "log_dir": str(self._monitor.run_dir or ""),
        }
        moments = {
            f"{number}.{name}": value.cpu()
            for number, parameter_state in self._optimizer.state_dict()["state"].items()
            for name, value in parameter_state.items()
        }
        tensors = {
            "adapter": adapter_state(self.model),
            "best_adapter": self._best_adapter,
            "optimizer": moments,
            "random": random_states,
        }
        write_checkpoint(self.config, self._batches.batches, state, tensors)

    def _restore(self, checkpoint: Checkpoint) -> None:
        state, tensors = checkpoint.state, checkpoint.tensors
        load_adapter_state(self.model, tensors["adapter"])
        self._best_adapter = tensors["best_adapter"]
        best = state["best"]
        self.best_score = -math.inf if best["score"] is None else best["score"]
        self.best_step, self.best_metrics = best["step"], best["metrics"]
        self.metrics, self._start_metrics = state["metrics"], state["start_metrics"]
        self.global_step, self._skipped_in_a_row = state["global_step"], state["skipped_in_a_row"]
        self.optimiser_seconds = state["optimiser_seconds"]
        self._max_tokens = min(self._max_tokens, state["max_tokens"])
        self._window.restore(state["loss_sum"])
        self._epoch_window.restore(state["epoch_loss_sum"])
        self._optimizer, self._scheduler, self._scaler = self._setup_optimizer_and_scheduler(
            self._batches.total, state["scheduler"]["last_epoch"]
        )
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors["optimizer"].items():
            number, name = key.split(".", 1)
            moments.setdefault(int(number), {})[name] = value
        # The groups are those of the settings: what was saved is what the steps have made.
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": moments})
        if state["identity"]["precision"] == self.precision:
            self._scaler.load_state_dict(state["scaler"])
        self._batches.restore(state["place"], tensors["random"])


def _equal(texts: Sequence[str]) -> Tensor:
    """(B, B) bool: which of the texts are equal."""
    seen: dict[str, int] = {}
    numbers = torch.tensor([seen.setdefault(text, len(seen)) for text in texts])
    return numbers[:, None] == numbers[None, :]


def _batch_length(batch: Any) -> int:
    return len(batch) if isinstance(batch, list) else len(batch["mask"])
