"""What the optimiser's steps of two recipes cost, whole runs of the same data, alternating in one process.

    python benchmarks/recipe_cost.py --data KorQuAD_v1.0_dev.json

Every batch of a pass of either recipe, one step of the one and then of the other, as far through its pass; a pass times the
recipe's epochs are the run's seconds. Minutes: a sample of the batches would leave out what the largest cost, and weigh too
much that memory is slow when it is first used. One JSON line; `ratio` is the second recipe's seconds over the first one's.
Evaluation and loading are not in it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from config import TrainingConfig, read_recipe
from dataloader import build_dataloader, load_cached_dataset, prepare_training_data, window_size

REPOSITORY = Path(__file__).resolve().parent.parent


class Run:
    """A recipe's model, its batches of one epoch, and what its steps took."""

    def __init__(self, recipe: str, data: str, train_split: float, split_seed: int):
        from trainer import EmbeddingTrainer, setup_lora_model
        from trainer.base_model import load_base_model, resolve_base_model

        settings = read_recipe(REPOSITORY / recipe) | {"dataset_root": data, "log_dir": "", "output_dir": "unused"}
        self.config = TrainingConfig(**settings | {"train_split": train_split, "split_seed": split_seed})
        dataset = load_cached_dataset(data, self.config.num_workers, verbose=False, window=window_size(self.config))
        examples, _ = prepare_training_data(dataset, self.config)
        source = resolve_base_model(self.config.model_name, max_seq_length=self.config.max_seq_length)
        model = setup_lora_model(load_base_model(source, self.config.max_seq_length, device="cpu"), self.config)
        self.trainer = EmbeddingTrainer(model, self.config)
        self.trainer._setup_memory()
        model.train()
        batches = list(build_dataloader(examples, self.config, tokenizer=model.tokenizer))
        self.optimizer, _, self.scaler = self.trainer._setup_optimizer_and_scheduler(len(batches) * self.config.num_epochs)
        self.batches = batches
        self.tokens = self.config.num_epochs * sum(len(batch["tokens"]) for batch in batches)
        self.step(batches[0])  # builds kernels: once a run, not once an epoch
        self.seconds = 0.0

    def step(self, batch: Any) -> float:
        """Its seconds in the whole run."""
        began = time.perf_counter()
        self.trainer._training_step(batch, None, self.optimizer, self.scaler)
        return self.config.num_epochs * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a KorQuAD file or folder")
    parser.add_argument("--recipes", nargs=2, default=["recipes/baseline.yaml", "recipes/recommended.yaml"])
    parser.add_argument("--train_split", type=float, default=0.75)
    parser.add_argument("--split_seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    runs = [Run(recipe, options.data, options.train_split, options.split_seed) for recipe in options.recipes]
    turns = [(place / len(run.batches), run, batch) for run in runs for place, batch in enumerate(run.batches)]
    for _, run, batch in sorted(turns, key=lambda turn: turn[0]):
        run.seconds += run.step(batch)
    seconds = [round(run.seconds, 1) for run in runs]
    found = {
        "recipes": options.recipes,
        "threads": torch.get_num_threads(),
        "precision": [run.trainer.precision for run in runs],
        "steps": [run.config.num_epochs * len(run.batches) for run in runs],
        "seconds": seconds,
        "tokens": [run.tokens for run in runs],
        "ratio": round(runs[1].seconds / runs[0].seconds, 3),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
