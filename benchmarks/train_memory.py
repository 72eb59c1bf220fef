"""Memory of a training step, predicted without a GPU, and the prediction beside what a CPU run really takes.

    python benchmarks/train_memory.py --batch_sizes 16 256 1024 4096
    python benchmarks/train_memory.py --device cuda --turing_attention      # and what a GPU really takes

Prints one JSON line: for each contrastive batch, all texts max_seq_length tokens long, the tokens held at once and the bytes
by category (in MB of 1024² bytes) for fp16 with the baseline's settings within --memory_gb; and, for a float32 step of
`--check` pairs that is really run here in a process of its own, the predicted and the measured growth of its peak memory.
With `--device cuda`, instead: each batch's step really run in fp16 on the GPU, of whose memory no more than --memory_gb is
given out, and the peak of what torch's tensors took, of what torch reserved, and of the device as a whole.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from train_speed import add_device_options, clock, device_name, use_device_options
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
    add_device_options(parser)
    options = parser.parse_args()
    use_device_options(options)
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    if options.run_step:
        print(json.dumps(run_step(options.check, options.checkpointing)))
        return
    result: dict[str, Any] = {"benchmark": "train_memory", "precision": "fp16", "checkpointing": options.checkpointing}
    if options.check and options.device == "cpu":
        result["check"] = {str(on): check(options.check, on) for on in (False, True)}
    result["predicted_mb"] = predict(options.batch_sizes, options.memory_gb, options.checkpointing)
    if options.device == "cuda":
        result["device"] = device_name(options.device)
        result["on_device_mb"] = on_device(options.batch_sizes, options.memory_gb, options.checkpointing)
    print(json.dumps(result))


def make_trainer(
    batch_size: int, precision: str, checkpointing: bool, device: str = "cpu", memory_gb: float = 8.0
) -> EmbeddingTrainer:
    config = TrainingConfig(
        batch_size=batch_size,
        precision=precision,
        gradient_checkpointing=checkpointing,
        device=device,
        memory_gb=memory_gb,
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
    trainer._max_tokens = 2 * pairs * length
    peaks = []
    for count in (1, 1, pairs):  # the first warms up
        reset_peak()
        trainer._training_step(full_length_batch(count, length), None, optimizer, scaler)
        peaks.append(peak())
    grown = peaks[-1] - peaks[-2]
    parts = [memory.categories(2 * count * length, count) for count in (1, pairs)]
    predicted = [sum(part.values()) - DEVICE_ALLOWANCE for part in parts]
    return {
        "pairs": pairs,
        "predicted_growth_mb": round((predicted[1] - predicted[0]) / MEGABYTE),
        "measured_growth_mb": round(grown / MEGABYTE),
        "predicted_over_measured": round((predicted[1] - predicted[0]) / grown, 2),
    }


def reset_peak() -> None:
    """Let `peak` begin anew, where Linux can: the base model's loading took more than a small step does."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most resident memory of this process since `reset_peak`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def full_length_batch(pairs: int, length: int) -> dict[str, torch.Tensor]:
    """What the dataloader would give for so many pairs of texts that are all `length` tokens long."""
    return {
        "tokens": torch.randint(10, 1000, (2 * pairs * length,), dtype=torch.int32),
        "lengths": torch.full((2 * pairs,), length),
        "passage_of": torch.arange(pairs),
        "mask": torch.zeros(pairs, pairs, dtype=torch.bool),
    }


def on_device(batch_sizes: list[int], memory_gb: float, checkpointing: bool) -> dict[str, dict[str, float]]:
    """Batch size → what was predicted and what two steps took at most, in MB, and the second one's seconds."""
    device = torch.device("cuda")
    torch.zeros(1, device=device)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gb * 1024**3 / total))
    taken_by_others = total - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved()  # this process's context too
    rows = {}
    for batch_size in batch_sizes:
        trainer = make_trainer(batch_size, "fp16", checkpointing, "cuda", memory_gb)
        trainer._setup_memory()
        chosen = trainer._max_tokens
        memory, length = trainer.step_memory(), trainer.config.max_seq_length
        optimizer, _, scaler = trainer._setup_optimizer_and_scheduler(10)
        trainer.model.train()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):  # the first warms up
            started = clock()
            trainer._training_step(full_length_batch(batch_size, length), None, optimizer, scaler)
            seconds = clock() - started
        held = min(chosen, 2 * batch_size * length)
        predicted = memory.categories(held, batch_size)
        rows[str(batch_size)] = {
            "tokens at once": held,
            "out of memory": trainer._max_tokens < chosen,
            "predicted": round(sum(predicted.values()) / MEGABYTE),
            "predicted, without the allowance": round((sum(predicted.values()) - DEVICE_ALLOWANCE) / MEGABYTE),
            "tensors": round(torch.cuda.max_memory_allocated() / MEGABYTE),
            "reserved": round(torch.cuda.max_memory_reserved() / MEGABYTE),
            "outside torch": round((total - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved()) / MEGABYTE),
            "outside torch at the start": round(taken_by_others / MEGABYTE),
            "seconds a step": round(seconds, 3),
        }
        del trainer, optimizer, scaler  # which hold each other
        gc.collect()
    return rows


if __name__ == "__main__":
    main()
