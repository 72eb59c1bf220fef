"""The trade-off of docs/RESULTS.md as a figure: answers against paragraphs, a line for each row's strengths.

python benchmarks/quality_figure.py docs/results.jsonl docs/images/tradeoff.png
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LEFT_OUT = ["cross-batch memory", "the same, answers together", "answers, articles together", "titles too"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="lines of row, scale, answers, paragraphs")
    parser.add_argument("figure", type=Path)
    parser.add_argument("--leave_out", nargs="*", default=LEFT_OUT, help="rows far away from the others")
    options = parser.parse_args()
    rows = defaultdict(list)
    for line in options.results.read_text(encoding="utf-8").splitlines():
        result = json.loads(line)
        if result["row"] not in options.leave_out:
            rows[result["row"]].append(result)
    figure, panels = plt.subplots(1, 2, figsize=(13, 6), layout="constrained")
    (base,) = rows["base"]
    for axes in panels:
        colours = itertools.cycle(plt.get_cmap("tab20").colors)
        for name, results in rows.items():
            answers, paragraphs = ([result[task] for result in results] for task in ("answers", "paragraphs"))
            sizes = [40 * result["scale"] if result["scale"] else 40 for result in results]
            colour = next(colours)
            axes.plot(answers, paragraphs, color=colour, linewidth=1)
            axes.scatter(answers, paragraphs, s=sizes, color=colour, label=name)
        axes.axhline(base["paragraphs"], color="grey", linewidth=0.8, linestyle="--")
        axes.set(xlabel="answers, MRR@10")
    panels[0].set(ylabel="paragraphs, MRR@10", title="Validation articles; above the line nothing is lost")
    panels[0].legend(fontsize=8, loc="lower left")
    near = [result for results in rows.values() for result in results if result["answers"] > 0.21]
    bottom, top = base["paragraphs"] - 0.008, max(result["paragraphs"] for result in near) + 0.002
    panels[1].set(xlim=(0.21, None), ylim=(bottom, top), title="Nearer; a larger dot is a stronger update (.75, 1, 1.25)")
    figure.savefig(options.figure, dpi=120)


if __name__ == "__main__":
    main()
