"""Training speed beside sentence-transformers' own trainer, on the same work in one run.

    python benchmarks/train_speed.py --dataset_root KorQuAD_v1.0_dev.json --batch_sizes 16 64
    python benchmarks/train_speed.py --device cuda --precision fp16 --turing_attention    # as on an RTX 2080

Model, adapter, pairs, batches, threads, precision, dropout and checkpointing are the same on both sides. Each side has a
process of its own, as each would in use, and blocks of steps alternate, in one order and then in the other, so that a
machine whose speed drifts slows both. Prints one JSON line: pairs a second of each side, their ratio by batch size, real and
padded tokens of a step, and how near ours comes to the time of the bare matrix products, in float32 on a CPU and in the
precision's own format on a GPU (`floor_share` is our time over the floor's). Ratios and shares are medians of those within a
round, each with its 95 % interval from a bootstrap over rounds: short blocks in many rounds say most where other work shares
the machine. `no_encoder_dropout` is ours with the encoder's own dropout off, against the peer with it on. With one thread
(OMP_NUM_THREADS=1) seconds are those of the process's CPU, here and in the benchmarks that stand on this one.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from datasets import Dataset
from sentence_transformers import InputExample, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import nn
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging
from turns import Side

from config import SAMPLE_DATASET_ROOT, TrainingConfig
from dataloader import build_dataloader, load_entire_dataset, prepare_training_data
from trainer import EmbeddingTrainer, setup_lora_model
from trainer.base_model import load_base_model
from trainer.dropout import FastDropout, SharedDropout
from trainer.trainer import AUTOCAST_TYPES

ENCODER_PARAMETERS = 12 * (4 * 384 * 384 + 2 * 384 * 1536)  # of the matrices that every token passes: 21.2 million


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_root", default=str(SAMPLE_DATASET_ROOT))
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--steps", type=int, default=8, help="steps of a block")
    parser.add_argument("--rounds", type=int, default=3, help="blocks of each side")
    parser.add_argument("--encoder_dropout", type=float, default=0.1)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of both sides")
    parser.add_argument("--checkpointing", action="store_true", help="on both sides")
    add_device_options(parser)
    parser.add_argument("--model_name", default=TrainingConfig.model_name)
    options = parser.parse_args()
    logging.disable(logging.WARNING)

    config = TrainingConfig(
        dataset_root=options.dataset_root,
        gradient_checkpointing=options.checkpointing,
        encoder_dropout=options.encoder_dropout,
        precision=options.precision,
        device=options.device,
        model_name=options.model_name,
        log_dir="",
        num_workers=0,
    )
    examples, _ = prepare_training_data(load_entire_dataset(config.dataset_root, verbose=False), config)
    results = {str(size): compare(examples, config, size, options) for size in options.batch_sizes}
    print(
        json.dumps(
            {
                "benchmark": "train_speed",
                "device": device_name(options.device),
                "threads": torch.get_num_threads(),
                "precision": config.precision,
                "checkpointing": config.gradient_checkpointing,
                "batch_size": results,
            }
        )
    )


def compare(
    examples: list[InputExample], config: TrainingConfig, batch_size: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Alternate blocks of steps of both trainers."""
    config = TrainingConfig(**config.to_dict() | {"batch_size": batch_size})
    # As in training, a batch is of any articles: the first questions alone are of one or two, and of nearly one length.
    repeated = examples * (options.steps * batch_size // len(examples) + 1)
    examples = random.Random(config.seed).sample(repeated, options.steps * batch_size)
    sides = {
        "ours": Side(make_side, Ours, options, examples, config),
        "peer": Side(make_side, Peer, options, examples, config),
        "no_encoder_dropout": Side(make_side, Ours, options, examples, config, 0.0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    rates = []
    for round_number in range(options.rounds + 1):
        for name in list(sides)[:: 1 if round_number % 2 else -1]:
            elapsed = sides[name].ask("block") / options.steps
            if round_number:  # the first warms up
                seconds[name].append(elapsed)
        if round_number:
            rates.append(sides["ours"].ask("matrix_rate"))
    real_tokens, padded_tokens = sides["ours"].ask("tokens")
    floors = [4 * ENCODER_PARAMETERS * real_tokens / rate for rate in rates]
    ours, peer, no_dropout = seconds.values()
    return {
        "ours_pairs_per_second": round(batch_size / statistics.median(ours), 2),
        "peer_pairs_per_second": round(batch_size / statistics.median(peer), 2),
        **ratio("ratio", peer, ours),
        **ratio("no_encoder_dropout_ratio", peer, no_dropout),
        "real_tokens": real_tokens,
        "padded_tokens": padded_tokens,
        "gflops": round(statistics.median(rates) / 1e9),
        "floor_seconds": round(statistics.median(floors), 4),
        **ratio("floor_share", ours, floors),
        **ratio("no_encoder_dropout_floor_share", no_dropout, floors),
    }


def ratio(name: str, above: list[float], below: list[float]) -> dict[str, Any]:
    """The median of the rounds' ratios, and the ends of its 95 % interval from a bootstrap over rounds."""
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    draw = random.Random(0)
    medians = [statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(2000)]
    low, *_, high = statistics.quantiles(medians, n=40)
    return {name: round(statistics.median(ratios), 2), f"{name}_interval": [round(low, 2), round(high, 2)]}


def make_side(make: Callable[..., Any], options: argparse.Namespace, *arguments: Any) -> Any:
    """In its process: with the device options of the run."""
    use_device_options(options)
    transformers_logging.disable_progress_bar()
    return make(*arguments)


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """--device, and --turing_attention for a newer GPU that is to take the kernels of an older one."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--turing_attention", action="store_true", help="no attention kernels that an RTX 2080 does not have"
    )


def use_device_options(options: argparse.Namespace) -> None:
    if options.turing_attention:
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def clock() -> float:
    """Seconds: the wall's, or, with one thread, those of this process's CPU, which other work on the machine slows less.

    On a GPU the wall's, when all that was asked of it is done.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Ours:
    """EmbeddingTrainer's own step over one epoch of the examples."""

    def __init__(self, examples: list[InputExample], config: TrainingConfig, dropout: float | None = None):
        if dropout is not None:
            config = TrainingConfig(**config.to_dict() | {"encoder_dropout": dropout})
        set_seed(config.seed)
        model = setup_lora_model(load_base_model(config.model_name, config.max_seq_length), config)
        self.model = model
        self.trainer = EmbeddingTrainer(model, config)
        self.loader = build_dataloader(examples, config, tokenizer=model.tokenizer)
        self.set_epochs(1000)
        self.real_tokens = round(statistics.mean(int(batch["lengths"].sum()) for batch in self.loader))
        self.padded_tokens = round(statistics.mean(padded_tokens(batch) for batch in self.loader))

    def set_epochs(self, epochs: int) -> None:
        """Begin a run of so many blocks: the rate's schedule."""
        steps = epochs * len(self.loader)
        self._optimizer, self._scheduler, self._scaler = self.trainer._setup_optimizer_and_scheduler(steps)

    def block(self) -> float:
        """Seconds of one pass over the examples."""
        return self.steps(self.loader)

    def tokens(self) -> tuple[int, int]:
        """Of a step: real ones, and those that padding as the library does would make of them."""
        return self.real_tokens, self.padded_tokens

    def matrix_rate(self) -> float:
        """`matrix_rate` at the step's own number of tokens."""
        return matrix_rate(self.real_tokens, self.trainer.config)

    def steps(self, batches: Iterable[Any]) -> float:
        """Seconds of a step for each of the batches."""
        self.model.train()
        start = clock()
        for batch in batches:
            self.trainer._training_step(batch, None, self._optimizer, self._scaler)
            self._scheduler.step()
        return clock() - start


def padded_tokens(batch: dict[str, torch.Tensor]) -> int:
    """Tokens of the questions and of the passages, each padded to their longest."""
    pairs = len(batch["mask"])
    return pairs * int(batch["lengths"][:pairs].max() + batch["lengths"][pairs:].max())


class Peer:
    """SentenceTransformerTrainer with MultipleNegativesRankingLoss on the same adapter, as its documentation has it."""

    def __init__(self, examples: list[InputExample], config: TrainingConfig):
        self._config = config
        set_seed(config.seed)
        self.model = setup_lora_model(load_base_model(config.model_name, config.max_seq_length), config)
        use_plain_dropout(self.model)
        queries, passages = zip(*(example.texts for example in examples), strict=True)
        self.data = Dataset.from_dict({"anchor": list(queries), "positive": list(passages)})

    def block(self) -> float:
        """Seconds of one pass over the examples."""
        clock = Clock()
        self.train(clock)
        return clock.seconds

    def train(self, callback: TrainerCallback, **more_arguments: Any) -> None:
        """One epoch of the library's trainer."""
        with tempfile.TemporaryDirectory() as folder:
            arguments = SentenceTransformerTrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=self._config.batch_size,
                learning_rate=self._config.learning_rate,
                weight_decay=self._config.weight_decay,
                max_grad_norm=self._config.max_grad_norm,
                bf16=self._config.precision == "bf16",
                fp16=self._config.precision == "fp16",
                seed=self._config.seed,
                use_cpu=self._config.device == "cpu",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
                **more_arguments,
            )
            trainer = SentenceTransformerTrainer(
                model=self.model,
                args=arguments,
                train_dataset=self.data,
                loss=MultipleNegativesRankingLoss(self.model, scale=self._config.scale),
                callbacks=[callback],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()


class Clock(TrainerCallback):
    """Seconds from the first step's beginning to the last one's end: the trainer's own start-up is not counted."""

    seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._start = clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds = clock() - self._start


def use_plain_dropout(model: Any) -> None:
    """Give the encoder torch's dropout, and each adapter one of its own, as transformers and PEFT make them."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FastDropout | SharedDropout):
                parent.add_module(name, nn.Dropout(child.p))


def matrix_rate(tokens: int, config: TrainingConfig, repeats: int = 12) -> float:
    """Floating point operations a second of the encoder's own matrix products on `tokens` rows: in float32 on a CPU, in the
    run's own format on a GPU."""
    on_gpu = config.device == "cuda"
    device, dtype = config.device, AUTOCAST_TYPES.get(config.precision) if on_gpu else None
    square, wide, narrow = (
        torch.randn(*shape, device=device, dtype=dtype) for shape in ((384, 384), (1536, 384), (384, 1536))
    )
    rows, wide_rows = (torch.randn(tokens, width, device=device, dtype=dtype) for width in (384, 1536))
    products = [*[(rows, square)] * 4, (rows, wide), (wide_rows, narrow)]
    results = [torch.empty(tokens, len(weight), device=device, dtype=dtype) for _, weight in products]  # no time for memory
    with torch.no_grad():
        start = clock()
        for _ in range(repeats):
            for (source, weight), result in zip(products, results, strict=True):
                torch.mm(source, weight.T, out=result)
        elapsed = clock() - start
    return repeats * 2 * tokens * ENCODER_PARAMETERS / 12 / elapsed


if __name__ == "__main__":
    main()
