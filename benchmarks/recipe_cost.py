"""What the optimiser's steps of two recipes cost, whole runs of the same data, taking turns.

    python benchmarks/recipe_cost.py --data KorQuAD_v1.0_dev.json

Every batch of a pass of either recipe, each in a process of its own, a tenth of the one and then of the other; a pass times
the recipe's epochs are the run's seconds. Minutes: a sample of the batches would leave out what the largest cost, and in one
process the steps of the smaller recipe took a fifth to a quarter longer, beside the larger one's memory.
One JSON line; `ratio` is the second recipe's seconds over the first one's. Evaluation and loading are not in it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from turns import Side

from config import TrainingConfig, read_recipe
from dataloader import build_dataloader, load_cached_dataset, prepare_training_data, window_size

REPOSITORY = Path(__file__).resolve().parent.parent
TURNS = 10


class Run:
    """A recipe's model, its batches of one epoch, and what its steps took."""

    def __init__(self, recipe: str, data: str, train_split: float, split_seed: int):
        from trainer import EmbeddingTrainer, setup_lora_model
        from trainer.base_model import load_base_model, resolve_base_model
        from trainer.heap import kept_heap

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
        self.heap = contextlib.ExitStack()
        self.heap.enter_context(kept_heap(self.trainer.device))  # as in a run
        self.step(batches[0])  # builds kernels: once a run, not once an epoch

    def about(self) -> dict[str, Any]:
        """What the result says of it beside its seconds."""
        steps = self.config.num_epochs * len(self.batches)
        return {"precision": self.trainer.precision, "steps": steps, "tokens": self.tokens}

    def turn(self, number: int) -> float:
        """The seconds, in the whole run, of one of `TURNS` parts of the batches."""
        first, last = (len(self.batches) * place // TURNS for place in (number, number + 1))
        return sum(self.step(batch) for batch in self.batches[first:last])

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
    sides = [Side(Run, recipe, options.data, options.train_split, options.split_seed) for recipe in options.recipes]
    about = [side.ask("about") for side in sides]
    seconds = [0.0, 0.0]
    for number in range(TURNS):
        for place, side in enumerate(sides):
            seconds[place] += side.ask("turn", number)
    found = {"recipes": options.recipes, "threads": torch.get_num_threads()}
    found |= {name: [values[name] for values in about] for name in about[0]}
    found |= {"seconds": [round(value, 1) for value in seconds], "ratio": round(seconds[1] / seconds[0], 3)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
