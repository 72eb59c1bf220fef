"""Seconds from `python train.py` to the end of the first step, by phase.

    python benchmarks/startup.py --dataset_root KorQuAD_v1.0_dev.json --num_epochs 1

All options are those of train.py. The run is a process of its own, ended after its first step, twice: the first warms the
caches. Prints one JSON line, of the second: of each phase, without the phases inside it, the seconds of the wall and of the
process's CPU.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
CHILD = "STARTUP_BEGAN"


def main() -> None:
    if CHILD in os.environ:
        run_until_first_step(float(os.environ[CHILD]))
        return
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            options = [*sys.argv[1:], "--output_dir", f"{folder}/model", "--log_dir", f"{folder}/logs"]
            environment = os.environ | {CHILD: str(time.time())}
            command = [sys.executable, __file__, *options]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit("the run ended before its first step; what it said is above")
    print(done.stdout.splitlines()[-1])


class FirstStepDone(BaseException):
    """Ends the run."""


def now() -> np.ndarray:
    """(2,): seconds of the wall and of this process's CPU."""
    return np.array([time.time(), time.process_time()])


class Phases:
    """Phase → its own seconds, as in `now`."""

    def __init__(self) -> None:
        self.seconds: dict[str, np.ndarray] = {}
        self._inside = [np.zeros(2)]  # seconds of the phases inside each that is open

    def add(self, phase: str, seconds: np.ndarray) -> None:
        self.seconds[phase] = self.seconds.get(phase, np.zeros(2)) + seconds

    def timed(self, phase: str, function: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(np.zeros(2))
            start = now()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = now() - start
                self.add(phase, elapsed - self._inside.pop())
                self._inside[-1] += elapsed

        return run


def run_until_first_step(began: float) -> None:
    """The child: train.py's own `main`, its phases timed, ended after one step."""
    phases = Phases()
    import train

    beginning = np.array([began, 0.0])
    phases.add("Python, settings", now() - beginning)
    train.prepare_training_data = phases.timed("examples", train.prepare_training_data)
    train.prepare_retrieval_sets = phases.timed("examples", train.prepare_retrieval_sets)
    train.build_dataloader = phases.timed("tokens", train.build_dataloader)
    load = phases.timed("pairs from the cache", train.load_cached_dataset)

    def load_then_import(*args: Any, **kwargs: Any) -> Any:
        dataset = load(*args, **kwargs)
        phases.timed("imports", import_everything)()
        time_the_trainer(phases)
        return dataset

    train.load_cached_dataset = load_then_import
    try:
        status = train.main(sys.argv[1:])
    except FirstStepDone:
        total = now() - beginning
        phases.add("the rest", total - sum(phases.seconds.values()))
        wall, cpu = ({phase: round(both[side], 2) for phase, both in phases.seconds.items()} for side in (0, 1))
        print("\n" + json.dumps({"benchmark": "startup", "seconds": round(total[0], 2), "wall": wall, "cpu": cpu}))
        logging.shutdown()
        return
    sys.exit(status or "the run ended without a step")


def import_everything() -> None:
    """What train_and_judge imports, and what its first step does."""
    import sentence_transformers  # noqa: F401

    import trainer  # noqa: F401
    from trainer import base_model, bm25, verdict  # noqa: F401


def time_the_trainer(phases: Phases) -> None:
    from trainer import EmbeddingTrainer, base_model, trainer

    base_model.resolve_base_model = phases.timed("where the base model is", base_model.resolve_base_model)
    base_model.load_base_model = phases.timed("base model", base_model.load_base_model)
    trainer.base_fingerprint = phases.timed("its fingerprint", trainer.base_fingerprint)
    parts = {
        "_setup_memory": "memory of a step",
        "_scores": "step 0 on validation",
        "_save_checkpoint": "first checkpoint",
        "_setup_tensorboard": "logs",
    }
    for name, phase in parts.items():
        setattr(EmbeddingTrainer, name, phases.timed(phase, getattr(EmbeddingTrainer, name)))
    step = phases.timed("first step", EmbeddingTrainer._training_step)

    def only_step(*args: Any) -> None:
        step(*args)
        raise FirstStepDone

    EmbeddingTrainer._training_step = only_step  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    main()
