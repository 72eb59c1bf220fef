"""The figure of evaluate.py: models side by side on each task, with their intervals."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eda.figures import figure_style, hangul_font

_MODEL_COLOUR, _REFERENCE_COLOUR = "#3b6ea5", "#8a98a6"
_REFERENCES = ("BM25", "base")  # what there is without training


def render_models(tasks: Mapping[str, Mapping[str, Any]]) -> bytes:
    """PNG: for each task of a verdict's `to_dict` a panel with every model's MRR@10 and its interval."""
    with matplotlib.rc_context(figure_style(hangul_font())):
        rows = max(len(task["models"]) for task in tasks.values())
        figure = Figure(figsize=(5.2 * len(tasks), 1.4 + 0.4 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        for place, (name, task) in enumerate(tasks.items(), start=1):
            _draw_task(figure.add_subplot(1, len(tasks), place), name, task)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=150)
    return png.getvalue()


def _draw_task(axes: Axes, name: str, task: Mapping[str, Any]) -> None:
    labels = list(task["models"])
    for row, label in enumerate(labels):
        value = task["models"][label]["mrr@10"]
        low, high = task["intervals"][label]["mrr@10"]
        colour = _REFERENCE_COLOUR if label in _REFERENCES else _MODEL_COLOUR
        if low is not None:
            axes.plot([low, high], [row, row], color=colour, linewidth=2)
        axes.plot(value, row, "o", color=colour)
        axes.annotate(f"{value:.3f}", (value, row), xytext=(0, 6), textcoords="offset points", ha="center", fontsize="small")
    if "base" in task["models"]:
        axes.axvline(task["models"]["base"]["mrr@10"], color=_REFERENCE_COLOUR, linestyle=":", linewidth=1, zorder=0)
    axes.set_yticks(range(len(labels)), [label.replace("$", r"\$") for label in labels])  # a path is no formula
    axes.set_ylim(len(labels) - 0.5, -0.7)  # the first on top, with room for its number
    axes.margins(x=0.08)
    axes.set_xlabel("MRR@10, 95 % interval")
    axes.set_title(f"question → {name}: {task['questions']:,} in {task['documents']:,}")
