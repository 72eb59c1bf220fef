"""Train rows of docs/RESULTS.md again and measure them on the held-out articles.

    python benchmarks/quality.py --data KorQuAD_v1.0_dev.json --rows baseline recommended --seeds 0 1 2

    python benchmarks/quality.py --data KorQuAD_v1.0_dev.json --rows answers --val_split 0.25     # on validation articles

A row is a name and settings in benchmarks/quality_rows.yaml. Each run is `python train.py` with these (of a row with a
variant, `python benchmarks/variants.py VARIANT`), in a process and an output folder of its own; it prints one JSON line, and
at the end come the rows of the table, means over the seeds. Seconds are those of the optimiser's steps, without loading and
evaluation; those of two rows compare only where nothing else ran.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
ROWS_FILE = Path(__file__).with_name("quality_rows.yaml")
TASKS = ("answers", "paragraphs")


def run(name: str, settings: dict[str, Any], data: str, split: list[str], seed: int, keep: str = "") -> dict[str, Any]:
    """One training run; its held-out means and intervals and its seconds. The model stays in `keep`/name-seed, if given."""
    with contextlib.nullcontext(f"{keep}/{name}-{seed}") if keep else tempfile.TemporaryDirectory() as folder:
        places = [f"--dataset_root={data}", f"--output_dir={folder}/model", "--log_dir="]
        command = [*command_of(settings), *split, f"--seed={seed}"]
        subprocess.run([sys.executable, *command, *places], cwd=REPOSITORY, check=True, stdout=sys.stderr)
        metrics = json.loads(Path(folder, "model", "metrics.json").read_text(encoding="utf-8"))
    result: dict[str, Any] = {"row": name, "seed": seed, "commit": _commit(), "command": " ".join(command)}
    result["seconds"] = metrics["optimiser_seconds"]
    result["validation"] = {task: metrics["validation"].get(f"{task}_mrr@10") for task in TASKS}
    result["adapter_scale"] = metrics["validation"].get("adapter_scale", 1.0)
    for task in TASKS:
        found = metrics["held_out"][task]
        for label in ("BM25", "base", "tuned"):
            result[f"{task}_{label}"] = found["models"][label]["mrr@10"]
        result[f"{task}_interval"] = found["intervals"]["tuned"]["mrr@10"]
    return result


def command_of(settings: dict[str, Any]) -> list[str]:
    """The script that trains a row, and the row's settings as its options."""
    variant = settings.get("variant")
    options = [f"--{key}={_text(value)}" for key, value in settings.items() if key != "variant"]
    return [*(["benchmarks/variants.py", variant] if variant else ["train.py"]), *options]


def table_row(runs: list[dict[str, Any]]) -> str:
    """A line of the table: means over the seeds, the range of the seeds' answers and paragraphs, seconds."""
    cells = [runs[0]["row"], str(len(runs))]
    for task in TASKS:
        values = [run[f"{task}_tuned"] for run in runs]
        low, high = (mean(run[f"{task}_interval"][side] for run in runs) for side in (0, 1))
        cells.append(f"{mean(values):.3f} [{low:.3f}, {high:.3f}]; seeds {min(values):.3f}–{max(values):.3f}")
    cells.append(f"{mean(run['seconds'] for run in runs):.0f}")
    return "| " + " | ".join(cells) + " |"


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    return found.stdout.strip()


def main() -> None:
    rows = yaml.safe_load(ROWS_FILE.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a KorQuAD file or folder")
    parser.add_argument("--rows", nargs="+", default=["baseline", "recommended"], choices=list(rows), metavar="ROW")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--train_split", default="0.75")
    parser.add_argument("--split_seed", default="0")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--val_split", help="share of the training side that validates; default: the row's own")
    parser.add_argument("--keep", default="", help="folder to keep the models in")
    options = parser.parse_args()
    split = [
        f"--train_split={options.train_split}",
        f"--split_seed={options.split_seed}",
        f"--precision={options.precision}",
    ]
    if options.val_split:
        split.append(f"--val_split={options.val_split}")
    lines = []
    for name in options.rows:
        runs = []
        for seed in options.seeds:
            runs.append(run(name, rows[name], options.data, split, seed, options.keep))
            print(json.dumps(runs[-1], ensure_ascii=False), flush=True)
        lines.append(table_row(runs))
    print("\n".join(["| row | seeds | answers MRR@10 | paragraphs MRR@10 | seconds |", "|---|---|---|---|---|", *lines]))


if __name__ == "__main__":
    main()
