"""What the optimiser's steps of two recipes cost, whole runs of the same data, alternating in one process.

    python benchmarks/recipe_cost.py --data KorQuAD_v1.0_dev.json

A step of one recipe and a step of the other take turns, each with a batch drawn from its own run; seconds a token times the
tokens of the whole run, for each kind of batch, give the seconds of the run. One JSON line; `ratio` is the second recipe's
seconds over the first one's. Evaluation and loading are not in it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
        # Long passages cost more a token than short ones: each kind of batch is counted for itself.
        self.batches: dict[str, list[Any]] = defaultdict(list)
        for batch in batches:
            self.batches["long" if batch["lengths"].max() > 64 else "short"].append(batch)
        self.seconds: dict[str, float] = defaultdict(float)
        self.tokens: dict[str, int] = defaultdict(int)

    def step(self, kind: str, number: int, counts: bool) -> None:
        batch = self.batches[kind][number % len(self.batches[kind])]
        began = time.perf_counter()
        self.trainer._training_step(batch, None, self.optimizer, self.scaler)
        if counts:
            self.seconds[kind] += time.perf_counter() - began
            self.tokens[kind] += len(batch["tokens"])

    def total_seconds(self) -> float:
        return self.config.num_epochs * sum(
            self.seconds[kind] / self.tokens[kind] * sum(len(batch["tokens"]) for batch in batches)
            for kind, batches in self.batches.items()
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a KorQuAD file or folder")
    parser.add_argument("--recipes", nargs=2, default=["recipes/baseline.yaml", "recipes/recommended.yaml"])
    parser.add_argument("--rounds", type=int, default=6, help="timed steps of each kind")
    parser.add_argument("--train_split", type=float, default=0.75)
    parser.add_argument("--split_seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    runs = [Run(recipe, options.data, options.train_split, options.split_seed) for recipe in options.recipes]
    for number in range(options.rounds + 1):  # the first round warms up
        for run in runs:
            for kind in run.batches:
                run.step(kind, number, counts=number > 0)
    seconds = [round(run.total_seconds(), 1) for run in runs]
    tokens = [run.config.num_epochs * sum(len(b["tokens"]) for kind in run.batches.values() for b in kind) for run in runs]
    found = {"recipes": options.recipes, "seconds": seconds, "tokens": tokens, "ratio": round(seconds[1] / seconds[0], 3)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
