"""What the optimiser's steps of two recipes cost, whole runs of the same data, taking turns.

    python benchmarks/recipe_cost.py --data KorQuAD_v1.0_dev.json

Every batch of a pass of either recipe, each in a process of its own, a tenth of the one and then of the other; a pass times
the recipe's epochs are the run's seconds. Minutes: a sample of the batches would leave out what the largest cost, and in one
process the steps of the smaller recipe took a fifth to a quarter longer, beside the larger one's memory.
One JSON line; `ratio` is the second recipe's seconds over the first one's. Evaluation and loading are not in it.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from config import TrainingConfig, read_recipe
from dataloader import build_dataloader, load_cached_dataset, prepare_training_data, window_size

REPOSITORY = Path(__file__).resolve().parent.parent
TURNS = 10


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

    def step(self, batch: Any) -> float:
        """Its seconds in the whole run."""
        began = time.perf_counter()
        self.trainer._training_step(batch, None, self.optimizer, self.scaler)
        return self.config.num_epochs * (time.perf_counter() - began)


def take_turns(end: Any, recipe: str, options: argparse.Namespace) -> None:
    """In a process of its own: numbers of turns → the seconds of their batches in the whole run."""
    logging.disable(logging.INFO)
    run = Run(recipe, options.data, options.train_split, options.split_seed)
    steps = run.config.num_epochs * len(run.batches)
    end.send({"precision": run.trainer.precision, "steps": steps, "tokens": run.tokens})
    for turn in (end.recv() for _ in range(TURNS)):
        first, last = (len(run.batches) * place // TURNS for place in (turn, turn + 1))
        end.send(sum(run.step(batch) for batch in run.batches[first:last]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a KorQuAD file or folder")
    parser.add_argument("--recipes", nargs=2, default=["recipes/baseline.yaml", "recipes/recommended.yaml"])
    parser.add_argument("--train_split", type=float, default=0.75)
    parser.add_argument("--split_seed", type=int, default=0)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    ends = []
    for recipe in options.recipes:
        here, there = spawn.Pipe()
        spawn.Process(target=take_turns, args=(there, recipe, options), daemon=True).start()
        there.close()  # so that a process that fails ends the wait for it
        ends.append((here, here.recv()))  # what it says of itself, once it is ready
    seconds = [0.0, 0.0]
    for turn in range(TURNS):
        for number, (here, _) in enumerate(ends):
            here.send(turn)
            seconds[number] += here.recv()
    found = {"recipes": options.recipes, "threads": torch.get_num_threads()}
    found |= {name: [about[name] for _, about in ends] for name in ("precision", "steps", "tokens")}
    found |= {"seconds": [round(value, 1) for value in seconds], "ratio": round(seconds[1] / seconds[0], 3)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
