"""Seconds until ours finds the held-out answers as well as sentence-transformers' own trainer does at the end of its run.

    python benchmarks/time_to_quality.py --dataset_root KorQuAD_v1.0_dev.json

One epoch each, from the same base model on the same pairs: the library's trainer with MultipleNegativesRankingLoss; ours
under the same settings (batch, rate and its schedule, scale, adapter, dropout, checkpointing, precision); and `own`, ours
under the settings of recipes/sample.yaml, which are other ones. Each has a process of its own. The three take turns, so that
a machine whose speed drifts slows all, and each clock runs during its own steps only: start-up and evaluation are outside of
all three. The adapters as they were after each part of the epoch are measured at the end, in float32, up to the first that
finds answers at least as well as the library's last ones: `seconds_to_reach`, null where none does. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from sentence_transformers import InputExample
from train_speed import Ours, Peer, add_device_options, clock, device_name, make_side, use_device_options
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging
from turns import Side

from config import SAMPLE_DATASET_ROOT, SAMPLE_RECIPE, TrainingConfig
from dataloader import load_entire_dataset, prepare_retrieval_sets, prepare_training_data
from trainer.evaluation import RetrievalEvaluator
from trainer.lora import adapter_state, load_adapter_state
from trainer.schedule import warmup_within

COMPARED = ("batch_size", "learning_rate", "scale", "encoder_dropout", "precision")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_root", default=str(SAMPLE_DATASET_ROOT))
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the peer and of ours")
    parser.add_argument("--turns", type=int, default=10, help="parts of the epoch; ours is measured after each")
    parser.add_argument("--max_samples", type=int, default=0, help="train on at most this many pairs; 0 = all")
    parser.add_argument("--eval_samples", type=int, default=1000, help="held-out questions asked; 0 = all")
    parser.add_argument("--model_name", default=TrainingConfig.model_name)
    add_device_options(parser)
    options = parser.parse_args()
    use_device_options(options)
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()

    shared = {
        "dataset_root": options.dataset_root,
        "model_name": options.model_name,
        "train_split": 0.75,
        "split_seed": 0,
        "max_samples": options.max_samples,
        "gradient_checkpointing": False,
        "log_dir": "",
        "device": options.device,
        "overwrite": True,
    }
    same = TrainingConfig(**shared, batch_size=options.batch_size, precision=options.precision)
    own = TrainingConfig(**TrainingConfig.load(SAMPLE_RECIPE).to_dict() | shared)
    dataset = load_entire_dataset(same.dataset_root, verbose=False)
    examples, _ = prepare_training_data(dataset, same)
    own_examples, _ = prepare_training_data(dataset, own)
    texts = prepare_retrieval_sets(dataset, same, "held_out")["answers"]
    evaluator = RetrievalEvaluator(*texts, max_queries=options.eval_samples)

    sides = {
        "ours": Side(make_side, Parts, options, examples, same),
        "own": Side(make_side, Parts, options, own_examples, own),
    }
    peer = Peer(examples, same)  # in this process, which holds nothing else of size
    base = score(peer.model, evaluator)
    peer_seconds = train_in_turns(peer, same, list(sides.values()), options.turns)
    target = score(peer.model, evaluator)
    result: dict[str, Any] = {
        "benchmark": "time_to_quality",
        "device": device_name(options.device),
        "threads": torch.get_num_threads(),
        "pairs": len(examples),
        "held_out_questions": len(evaluator.query_texts),
        "base_mrr": round(base, 4),
        "peer": {"seconds": round(peer_seconds, 1), "mrr": round(target, 4)} | settings(same, options.precision),
    }
    for name, side in sides.items():
        curve = side.ask("curve_up_to", target, evaluator)
        seconds, own_settings = side.ask("run")
        reached = next((seconds for seconds, mrr in curve if mrr >= target), None)
        result[name] = {
            "seconds_to_reach": reached and round(reached, 1),
            "share_of_peer": reached and round(reached / peer_seconds, 3),
            "seconds": round(seconds, 1),
            "curve": [[round(seconds, 1), round(mrr, 4)] for seconds, mrr in curve],
        } | own_settings
    print(json.dumps(result))


def settings(config: TrainingConfig, precision: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in COMPARED} | {"precision": precision}


def score(model: Any, evaluator: RetrievalEvaluator) -> float:
    """MRR@10, in float32 on every side."""
    return evaluator(model)[evaluator.primary_metric]


def train_in_turns(peer: Peer, config: TrainingConfig, others: list[Side], turns: int) -> float:
    """One epoch of each; the peer's seconds."""
    total = len(peer.data) // config.batch_size
    turn_taking = TurnTaking({round(turn * total / turns): turn / turns for turn in range(1, turns + 1)}, others)
    peer.train(turn_taking, dataloader_drop_last=True, warmup_steps=warmup_within(config.warmup_steps, total))
    return turn_taking.seconds


class Parts(Ours):
    """Ours over one epoch, a part at a time."""

    def __init__(self, examples: list[InputExample], config: TrainingConfig):
        super().__init__(examples, config)
        self._batches = list(self.loader)
        self._done, self._seconds = 0, 0.0
        self._adapters: list[tuple[float, dict[str, torch.Tensor]]] = []  # seconds, and the adapter then
        self.set_epochs(1)

    def advance(self, share: float) -> None:
        """Train up to this share of the epoch."""
        end = round(share * len(self._batches))
        self._seconds += self.steps(self._batches[self._done : end])
        self._done = end
        self._adapters.append((self._seconds, adapter_state(self.model)))

    def run(self) -> tuple[float, dict[str, Any]]:
        """Seconds of the epoch, and its settings."""
        return self._seconds, settings(self.trainer.config, self.trainer.precision)

    def curve_up_to(self, target: float, evaluator: RetrievalEvaluator) -> list[tuple[float, float]]:
        """(seconds, MRR@10) after each part, until the target is reached."""
        curve: list[tuple[float, float]] = []
        for seconds, adapter in self._adapters:
            load_adapter_state(self.model, adapter)
            curve.append((seconds, score(self.model, evaluator)))
            if curve[-1][1] >= target:
                break
        return curve


class TurnTaking(TrainerCallback):
    """Stops the peer's clock after each part of its epoch and lets the others train up to the same share of theirs."""

    def __init__(self, turns: dict[int, float], others: list[Side]):
        self._turns, self._others = turns, others  # step → share of the epoch
        self.seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._start = clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        share = self._turns.get(state.global_step)
        if share is None:
            return
        self.seconds += clock() - self._start
        for other in self._others:
            other.ask("advance", share)
        self._start = clock()


if __name__ == "__main__":
    main()
