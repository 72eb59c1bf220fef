"""What is said about models side by side on the same questions: a table, a JSON-ready dict, one sentence a difference.

rows = {"BM25": measure_bm25(evaluators), "base": measure(base, evaluators), "tuned": measure(tuned, evaluators)}
verdict = compare(evaluators, rows, [("tuned", "base")])
verdict.table(), verdict.sentences()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.evaluation import RetrievalEvaluator
from trainer.intervals import FEWEST_GROUPS, LEVEL, RESAMPLES, Estimate, estimate_means
from trainer.ranking import METRICS, SIMILARITIES

_HEADINGS = ("MRR@10", "NDCG@10", "Recall@1", "Recall@10", "Recall@100", "positives", "best negative")
_WORDS = {1: "GAIN", -1: "LOSS", 0: "NO CLEAR CHANGE"}


@dataclass(frozen=True)
class Difference:
    """`model` minus `against`, question by question: metric → mean and interval."""

    model: str
    against: str
    metrics: dict[str, Estimate]

    @property
    def word(self) -> str:
        """Whether MRR@10 has risen or fallen by more than chance does: where its interval holds 0, nothing is claimed."""
        return _WORDS[self.metrics["mrr@10"].sign]


@dataclass(frozen=True)
class TaskResult:
    """One task: how many questions were asked of how many, in how many documents; each model's metrics; differences.

    `groups` is what intervals resample, such as "38 articles".
    """

    name: str
    questions: int
    available: int
    documents: int
    groups: str
    models: dict[str, dict[str, Estimate]]
    differences: list[Difference]


@dataclass(frozen=True)
class Verdict:
    """The results of all tasks."""

    tasks: list[TaskResult]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: task → sizes, `models` (label → metric → mean), `intervals` (label → metric → [low, high]), and
        `differences`; an interval that cannot be given is [null, null]."""
        return {
            task.name: {
                "questions": task.questions,
                "questions_available": task.available,
                "documents": task.documents,
                "resampled": task.groups,
                "models": {label: _values(metrics) for label, metrics in task.models.items()},
                "intervals": {label: _intervals(metrics) for label, metrics in task.models.items()},
                "differences": [
                    {
                        "model": difference.model,
                        "against": difference.against,
                        "word": difference.word,
                        "difference": _values(difference.metrics),
                        "interval": _intervals(difference.metrics),
                    }
                    for difference in task.differences
                ],
            }
            for task in self.tasks
        }

    def table(self) -> str:
        """A heading and an aligned Markdown table for each task: models, then differences. Ends with how to read them."""
        return "\n\n".join([*(f"{_heading(task)}\n\n{_task_table(task)}" for task in self.tasks), _legend(self.tasks)])

    def sentences(self) -> list[str]:
        """One plain sentence for each difference, a loss named as plainly as a gain."""
        return [_sentence(task, difference) for task in self.tasks for difference in task.differences]


def compare(
    evaluators: Sequence[RetrievalEvaluator],
    rows: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
    differences: Sequence[tuple[str, str]],
) -> Verdict:
    """The verdict over models measured with the same evaluators.

    Args:
        rows: label → task → metric → (Q,), as `measure` and `measure_bm25` give it, in the order of the table.
        differences: pairs of labels: the model, and what it is compared with.
    """
    return Verdict([_task_result(evaluator, rows, differences) for evaluator in evaluators])


def _task_result(
    evaluator: RetrievalEvaluator,
    rows: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
    differences: Sequence[tuple[str, str]],
) -> TaskResult:
    measured = {label: tasks[evaluator.name] for label, tasks in rows.items()}
    columns: dict[tuple[str, ...], np.ndarray] = {
        (label, metric): values for label, metrics in measured.items() for metric, values in metrics.items()
    }
    for model, against in differences:
        shared = [metric for metric in measured[model] if metric in measured[against]]
        columns |= {(model, against, metric): measured[model][metric] - measured[against][metric] for metric in shared}
    found = estimate_means(columns, evaluator.groups)

    def of(*key: str) -> dict[str, Estimate]:
        return {name[-1]: estimate for name, estimate in found.items() if name[:-1] == key}

    n_groups = len(np.unique(evaluator.groups))
    return TaskResult(
        name=evaluator.name,
        questions=len(evaluator.query_texts),
        available=evaluator.queries_available,
        documents=len(evaluator.document_texts),
        groups=f"{n_groups:,} {'articles' if evaluator.by_article else 'questions'}",
        models={label: of(label) for label in rows},
        differences=[Difference(*pair, of(*pair)) for pair in differences],
    )


def _values(metrics: Mapping[str, Estimate]) -> dict[str, float]:
    return {metric: estimate.value for metric, estimate in metrics.items()}


def _intervals(metrics: Mapping[str, Estimate]) -> dict[str, list[float | None]]:
    return {metric: list(estimate.interval) for metric, estimate in metrics.items()}


def _heading(task: TaskResult) -> str:
    sampled = f" (a sample of {task.available:,})" if task.questions < task.available else ""
    return f"question → {task.name}: {task.questions:,} questions{sampled}, {task.documents:,} documents, {task.groups}"


def _task_table(task: TaskResult) -> str:
    with_cosines = any(metric in metrics for metrics in task.models.values() for metric in SIMILARITIES)
    shown = list(zip(METRICS, _HEADINGS, strict=True))[: None if with_cosines else -len(SIMILARITIES)]
    rows = [["model", *(heading for _, heading in shown)]]
    for label, metrics in task.models.items():
        rows.append([label, *(_cell(metrics.get(metric), "") for metric, _ in shown)])
    for change in task.differences:
        label = f"{change.model} − {change.against}"
        rows.append([label, *(_cell(change.metrics.get(metric), "+") for metric, _ in shown)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _cell(estimate: Estimate | None, sign: str) -> str:
    if estimate is None:
        return "–"
    margin = "" if estimate.margin is None else f" ±{estimate.margin:.3f}".replace("0.", ".", 1)
    return f"{estimate.value:{sign}.3f}{margin}"


def _legend(tasks: Sequence[TaskResult]) -> str:
    if not tasks:
        return "No question was asked: there is nothing to compare."
    drawn = " and ".join(dict.fromkeys(task.groups for task in tasks))
    shown = [estimate for task in tasks for metrics in task.models.values() for estimate in metrics.values()]
    margin = f"half the {LEVEL:.0%} interval, from {RESAMPLES:,} bootstrap resamples of {drawn}"
    if any(estimate.margin is None for estimate in shown):
        margin = f"no interval where there are fewer than {FEWEST_GROUPS} to resample ({drawn})"
    cosines = "positives, best negative: mean cosine of the right documents and of the nearest wrong one"
    return f"±: {margin}; {cosines}."


def _sentence(task: TaskResult, difference: Difference) -> str:
    before = task.models[difference.against]["mrr@10"].value
    after = task.models[difference.model]["mrr@10"].value
    change = difference.metrics["mrr@10"]
    low, high = change.interval
    certainty = f"no interval: only {task.groups}"
    if low is not None and high is not None:
        certainty = f"{LEVEL:.0%} interval {low:+.3f} to {high:+.3f}"
    return (
        f"{difference.word} on {task.name}, {difference.model} against {difference.against}: "
        f"MRR@10 {before:.3f} → {after:.3f} ({change.value:+.3f}, {certainty})"
    )
