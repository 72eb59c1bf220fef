"""Memory of a training step, predicted without a GPU, and the prediction beside what a CPU run really takes.

    python benchmarks/train_memory.py --batch_sizes 16 256 1024 4096

Prints one JSON line: for each contrastive batch, all texts max_seq_length tokens long, the tokens held at once and the bytes
by category (in MB of 1024² bytes) for fp16 with the baseline's settings within --memory_gb; and, for a float32 step of
`--check` pairs that is really run here in a process of its own, the predicted and the measured growth of its peak memory.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers.utils import logging as transformers_logging

from config import TrainingConfig
from trainer import EmbeddingTrainer, setup_lora_model
from trainer.base_model import load_base_model
from trainer.memory import DEVICE_ALLOWANCE, available_bytes

MEGABYTE = 1024**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[16, 256, 1024, 4096])
    parser.add_argument("--memory_gb", type=float, default=8.0)
    parser.add_argument("--check", type=int, default=8, help="pairs of the step that is really run; 0 = none")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--run_step", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    if options.run_step:
        print(json.dumps(run_step(options.check, options.checkpointing)))
        return
    result: dict[str, Any] = {
        "benchmark": "train_memory",
        "precision": "fp16",
        "checkpointing": options.checkpointing,
        "predicted_mb": predict(options.batch_sizes, options.memory_gb, options.checkpointing),
    }
    if options.check:
        result["check"] = {str(on): check(options.check, on) for on in (False, True)}
    print(json.dumps(result))


def make_trainer(batch_size: int, precision: str, checkpointing: bool) -> EmbeddingTrainer:
    config = TrainingConfig(
        batch_size=batch_size,
        precision=precision,
        gradient_checkpointing=checkpointing,
        device="cpu",
        log_dir="",
        num_workers=0,
    )
    return EmbeddingTrainer(setup_lora_model(load_base_model(config.model_name, config.max_seq_length), config), config)


def predict(batch_sizes: list[int], memory_gb: float, checkpointing: bool) -> dict[str, dict[str, int]]:
    """Batch size → category → MB; in one piece where that fits, else with as many tokens at once as do."""
    trainer = make_trainer(16, "fp16", checkpointing)
    memory, length = trainer.step_memory(), trainer.config.max_seq_length
    rows = {}
    for batch_size in batch_sizes:
        tokens = min(
            2 * batch_size * length, memory.most_tokens(available_bytes(memory_gb, torch.device("cpu")), batch_size)
        )
        row = memory.categories(tokens, batch_size)
        rows[str(batch_size)] = {"tokens at once": tokens} | {name: round(v / MEGABYTE) for name, v in row.items()}
        rows[str(batch_size)]["total"] = round(sum(row.values()) / MEGABYTE)
    return rows


def check(pairs: int, checkpointing: bool) -> dict[str, float]:
    """Run a step in a fresh process, so that the peak is its own."""
    flag = "--checkpointing" if checkpointing else "--no-checkpointing"
    command = [sys.executable, __file__, "--run_step", "--check", str(pairs), flag]
    # Every tensor mapped by itself and given back at once: resident memory is that of live tensors, not of a heap's holes.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def run_step(pairs: int, checkpointing: bool) -> dict[str, float]:
    """Growth of peak resident memory over one float32 step of `pairs` pairs in full length, after a step of one pair."""
    trainer = make_trainer(pairs, "fp32", checkpointing)
    memory, length = trainer.step_memory(), trainer.config.max_seq_length
    optimizer, _, scaler = trainer._setup_optimizer_and_scheduler(10)
    trainer.model.train()

    def batch(count: int) -> dict[str, torch.Tensor]:
        return {
            "tokens": torch.randint(10, 1000, (2 * count * length,), dtype=torch.int32),
            "lengths": torch.full((2 * count,), length),
            "passage_of": torch.arange(count),
            "mask": torch.zeros(count, count, dtype=torch.bool),
        }

    trainer._max_tokens = 2 * pairs * length
    trainer._training_step(batch(1), None, optimizer, scaler)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    trainer._training_step(batch(pairs), None, optimizer, scaler)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    parts = [memory.categories(2 * count * length, count) for count in (1, pairs)]
    predicted = [sum(part.values()) - DEVICE_ALLOWANCE for part in parts]
    return {
        "pairs": pairs,
        "predicted_growth_mb": round((predicted[1] - predicted[0]) / MEGABYTE),
        "measured_growth_mb": round(grown / MEGABYTE),
        "predicted_over_measured": round((predicted[1] - predicted[0]) / grown, 2),
    }


if __name__ == "__main__":
    main()
