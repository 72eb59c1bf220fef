"""What each kind of dropout buys: held-out MRR@10 after the same training.

    python benchmarks/dropout_quality.py --seeds 0 1                # the embedded sample, with its recipe
    python benchmarks/dropout_quality.py --dataset_root KorQuAD_v1.0_dev.json --num_epochs 1

Prints one JSON line for each run, then one with the means over the seeds. What a kind costs is in step_forms.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from step_forms import TorchsDropout
from train_speed import Ours
from transformers.utils import logging as transformers_logging

from config import SAMPLE_DATASET_ROOT, SAMPLE_RECIPE, TrainingConfig
from dataloader import load_entire_dataset, prepare_retrieval_sets, prepare_training_data
from trainer.evaluation import RetrievalEvaluator

KINDS: dict[str, tuple[type[Ours], dict[str, float]]] = {
    "none": (Ours, {"encoder_dropout": 0.0, "lora_dropout": 0.0}),
    "bytes, in the adapters only": (Ours, {"encoder_dropout": 0.0, "lora_dropout": 0.1}),
    "bytes": (Ours, {"encoder_dropout": 0.1, "lora_dropout": 0.1}),
    "torch's": (TorchsDropout, {"encoder_dropout": 0.1, "lora_dropout": 0.1}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_root", default=str(SAMPLE_DATASET_ROOT))
    parser.add_argument("--num_epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--max_samples", type=int, default=0, help="train on at most this many pairs; 0 = all")
    parser.add_argument("--model_name", default=TrainingConfig.model_name)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()

    config = TrainingConfig.load(SAMPLE_RECIPE)
    config = TrainingConfig(
        **config.to_dict()
        | {name: getattr(options, name) for name in ("dataset_root", "num_epochs", "precision", "max_samples", "model_name")}
        | {"log_dir": "", "device": "cpu"}
    )
    dataset = load_entire_dataset(config.dataset_root, num_workers=0, verbose=False)
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for seed in options.seeds:
        for kind in KINDS:
            scores = train_and_measure(dataset, config, kind, seed)
            found[kind].append(scores)
            print(json.dumps({"kind": kind, "seed": seed} | scores), flush=True)
    means = {kind: {task: round(mean(run[task] for run in runs), 4) for task in runs[0]} for kind, runs in found.items()}
    print(json.dumps({"benchmark": "dropout_quality", "seeds": options.seeds, "mrr@10": means}))


def train_and_measure(dataset: dict[str, Any], config: TrainingConfig, kind: str, seed: int) -> dict[str, float]:
    """Task → held-out MRR@10 after the last step."""
    make, dropout = KINDS[kind]
    config = TrainingConfig(**config.to_dict() | dropout | {"seed": seed})
    examples, _ = prepare_training_data(dataset, config)
    run = make(examples, config)
    run.set_epochs(config.num_epochs)
    for _ in range(config.num_epochs):
        run.block()
    tasks = prepare_retrieval_sets(dataset, config, "held_out")
    evaluators = [RetrievalEvaluator(*texts, name=task) for task, texts in tasks.items()]
    return {one.name: round(one(run.model)[one.primary_metric], 4) for one in evaluators}


if __name__ == "__main__":
    main()
