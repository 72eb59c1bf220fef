"""The trade-offs of docs/RESULTS.md as a figure: answers against paragraphs and other text, a line for a row's strengths.

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

# Rows with a colour; the others are grey.
SHOWN = ["answers", "query, key, value", "adapters inside the weights", "sentences as queries", "both", "recommended"]
PANELS = {"paragraphs": "paragraphs, MRR@10", "help_ndcg@10": "help pages, NDCG@10"}
LEAST = {"paragraphs": 0.86, "help_ndcg@10": 0.55}  # what is below it is not in the figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="lines of row, scale, answers, paragraphs, help_ndcg@10 where measured")
    parser.add_argument("figure", type=Path)
    parser.add_argument("--shown", nargs="*", default=SHOWN, help="rows with a colour")
    options = parser.parse_args()
    rows = defaultdict(list)
    for line in options.results.read_text(encoding="utf-8").splitlines():
        result = json.loads(line)
        rows[result["row"], result.get("seed")].append(result)  # a line for each seed
    ((base,),) = [rows.pop(key) for key in list(rows) if key[0] == "base"]
    figure, panels = plt.subplots(1, 2, figsize=(13, 6), layout="constrained")
    for axes, (measure, label) in zip(panels, PANELS.items(), strict=True):
        for name, seed in sorted(rows, key=lambda key: options.shown.index(key[0]) if key[0] in options.shown else -1):
            results = sorted(
                (result for result in rows[name, seed] if measure in result), key=lambda result: result["scale"]
            )
            style = {"color": "#cccccc", "linewidth": 0.8}
            if name in options.shown:
                style = {"color": f"C{options.shown.index(name)}", "linewidth": 1.8, "label": name}
            (line,) = axes.plot(*([result[task] for result in results] for task in ("answers", measure)), **style)
            sizes = [45 * result["scale"] for result in results]
            axes.scatter(line.get_xdata(), line.get_ydata(), s=sizes, color=line.get_color(), zorder=line.get_zorder())
        axes.scatter([base["answers"]], [base[measure]], marker="*", s=120, color="black", label="base")
        axes.axhline(base[measure], color="grey", linewidth=0.8, linestyle="--")
        axes.set(xlabel="answers, MRR@10", ylabel=label, ylim=(LEAST[measure], None))
    panels[0].set(title="Validation articles; above the line nothing is lost")
    panels[1].set(title="Other text; a larger dot is a stronger update (.25 to 1.25)")
    handles, labels = panels[0].get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))  # each row once, whatever its seeds
    panels[0].legend(named.values(), named.keys(), fontsize=9, loc="lower left")
    figure.savefig(options.figure, dpi=120)


if __name__ == "__main__":
    main()
