"""Learning curves of rows of quality_rows.yaml: both tasks on the validation articles against the steps.

    python benchmarks/learning_curves.py --data KorQuAD_v1.0_dev.json --out docs/images/curves.png

Each run is that of quality.py with an evaluation every `--every` of it; the curves are what it wrote for TensorBoard.
Prints one JSON line a row: [step, answers MRR@10, paragraphs MRR@10] of each evaluation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import yaml
from quality import REPOSITORY, ROWS_FILE, TASKS, command_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def curve(settings: dict, every: int, options: argparse.Namespace) -> list[tuple[int, float, float]]:
    """Train a row; (step, answers, paragraphs) of each evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        split = [f"--train_split={options.train_split}", f"--split_seed={options.split_seed}"]
        split += [f"--val_split={options.val_split}", f"--eval_steps={every}", f"--dataset_root={options.data}"]
        places = [f"--output_dir={folder}/model", f"--log_dir={folder}/logs", "--log_gradients=false"]
        command = [sys.executable, *command_of(settings), *split, *places, "--eval_samples=0"]
        subprocess.run(command, cwd=REPOSITORY, check=True, stdout=sys.stderr)
        (run,) = Path(folder, "logs").iterdir()
        events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
        found = {task: {e.step: e.value for e in events.Scalars(f"eval/{task}_mrr@10")} for task in TASKS}
    return [(step, round(found["answers"][step], 4), round(found["paragraphs"][step], 4)) for step in found["answers"]]


def draw(curves: dict[str, list[tuple[int, float, float]]], file: str) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, task in enumerate(TASKS):
        for name, points in curves.items():
            steps = [100 * point[0] / points[-1][0] for point in points]
            axes[number].plot(steps, [point[1 + number] for point in points], marker=".", label=name)
        axes[number].set(xlabel="share of the run, %", ylabel="MRR@10", title=f"{task}, validation articles")
        axes[number].grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(file, dpi=110)


def main() -> None:
    rows = yaml.safe_load(ROWS_FILE.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a KorQuAD file or folder")
    parser.add_argument("--rows", nargs="+", default=["baseline", "recommended"], choices=list(rows), metavar="ROW")
    parser.add_argument("--every", type=int, nargs="+", default=[80, 20], help="steps between evaluations, of each row")
    parser.add_argument("--train_split", default="0.75")
    parser.add_argument("--split_seed", default="0")
    parser.add_argument("--val_split", default="0.25")
    parser.add_argument("--out", required=True, help="the figure, .png")
    options = parser.parse_args()
    if len(options.every) != len(options.rows):
        parser.error("--every takes a number for each row")
    curves = {}
    for name, every in zip(options.rows, options.every, strict=True):
        curves[name] = curve(rows[name], every, options)
        print(json.dumps({"row": name, "curve": curves[name]}, ensure_ascii=False), flush=True)
    draw(curves, options.out)


if __name__ == "__main__":
    main()
