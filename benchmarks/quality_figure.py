"""The trade-off of docs/RESULTS.md as a figure: answers against paragraphs, a line for each row's strengths.

python benchmarks/quality_figure.py docs/results.jsonl docs/images/tradeoff.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="lines of row, scale, answers, paragraphs")
    parser.add_argument("figure", type=Path)
    parser.add_argument("--leave_out", nargs="*", default=["cross-batch memory"], help="rows far away from the others")
    options = parser.parse_args()
    rows = defaultdict(list)
    for line in options.results.read_text(encoding="utf-8").splitlines():
        result = json.loads(line)
        if result["row"] not in options.leave_out:
            rows[result["row"]].append(result)
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    for name, results in rows.items():
        answers, paragraphs = ([result[task] for result in results] for task in ("answers", "paragraphs"))
        axes.plot(answers, paragraphs, marker="o", label=name)
        for result in results:
            if len(results) > 1:
                axes.annotate(f"×{result['scale']:g}", (result["answers"], result["paragraphs"]), fontsize=8)
    (base,) = rows["base"]
    axes.axhline(base["paragraphs"], color="grey", linewidth=0.8, linestyle="--")
    axes.set(
        xlabel="answers, MRR@10", ylabel="paragraphs, MRR@10", title="Validation articles; above the line nothing is lost"
    )
    axes.legend(fontsize=8)
    figure.savefig(options.figure, dpi=120)


if __name__ == "__main__":
    main()
