"""Retrieval quality: model + (queries, corpus, relevant documents) → metrics, and the verdict over base and tuned model."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

METRICS = ("mrr@10", "ndcg@10", "recall@1", "recall@10")
_DEPTH = 10  # the deepest k of METRICS
_QUERY_BLOCK = 256  # rows of the score matrix held at once
_DOCUMENT_BLOCK = 65_536  # its columns: 256 × 65,536 float32 are 64 MB


class RetrievalEvaluator:
    """Ranks a corpus for each query by cosine similarity and measures where the relevant documents stand.

    Equal to sentence-transformers' `InformationRetrievalEvaluator` on the same input, with each distinct text encoded once
    and no Python loop over scores. Texts are raw: the model adds the prompts stored in it, once.

    Args:
        queries: query id → text.
        corpus: document id → text.
        relevant_docs: query id → ids of the documents that answer it.
        name: of the task, in front of every metric ("answers" → "answers_mrr@10").
        batch_size: texts encoded at once.
        max_queries: ask at most this many queries, a sample drawn with `seed`; 0 = all. The corpus stays whole.

    Raises:
        ValueError: no query with a relevant document in the corpus.
    """

    def __init__(
        self,
        queries: Mapping[str, str],
        corpus: Mapping[str, str],
        relevant_docs: Mapping[str, set[str]],
        name: str = "answers",
        batch_size: int = 64,
        max_queries: int = 0,
        seed: int = 0,
    ):
        self.name = name
        self.primary_metric = f"{name}_mrr@10"
        self.batch_size = batch_size
        position = {document_id: index for index, document_id in enumerate(corpus)}
        asked = [query_id for query_id in queries if any(d in position for d in relevant_docs.get(query_id, ()))]
        if max_queries and len(asked) > max_queries:
            asked = sorted(random.Random(seed).sample(asked, max_queries), key=list(queries).index)
        if not asked:
            raise ValueError(f"{name}: no query has a relevant document in the corpus of {len(corpus):,}")
        self.query_texts = [queries[query_id] for query_id in asked]
        self.document_texts = list(corpus.values())
        self.relevant = [
            np.array(sorted(position[d] for d in relevant_docs[query_id] if d in position)) for query_id in asked
        ]

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Metrics of the model, each under "<name>_<metric>" and in 0–1. The further arguments are those of
        sentence-transformers' evaluators and have no effect."""
        return {f"{self.name}_{metric}": float(values.mean()) for metric, values in self.per_query(model).items()}

    def per_query(self, model: SentenceTransformer) -> dict[str, np.ndarray]:
        """Metric → (Q,) float64, one value a query: what confidence intervals and paired comparisons are made of."""
        was_training = model.training
        model.eval()
        queries = self._encode(model.encode_query, self.query_texts)
        documents = self._encode(model.encode_document, self.document_texts)
        model.train(was_training)
        return ranking_metrics(top_documents(queries, documents, _DEPTH), self.relevant, len(self.document_texts))

    def _encode(self, encode: Any, texts: Sequence[str]) -> Tensor:
        """(N, D), L2-normalised, one row a text; equal texts are encoded once."""
        distinct = list(dict.fromkeys(texts))
        embeddings = encode(
            distinct,
            batch_size=self.batch_size,
            convert_to_tensor=True,
            normalize_embeddings=True,
            show_progress_bar=len(distinct) > 20 * self.batch_size,
        )
        row = {text: index for index, text in enumerate(distinct)}
        return embeddings.float()[[row[text] for text in texts]]


def top_documents(queries: Tensor, documents: Tensor, k: int) -> np.ndarray:
    """The k best documents of each query, best first, without a sort of all scores.

    Args:
        queries: (Q, D), L2-normalised.
        documents: (N, D), L2-normalised, on the same device.

    Returns:
        (Q, min(k, N)) int64, row numbers of `documents`.
    """
    rows = []
    for query_block in queries.split(_QUERY_BLOCK):
        best_scores = queries.new_empty((len(query_block), 0))
        best_rows = torch.empty((len(query_block), 0), dtype=torch.long, device=queries.device)
        for start in range(0, len(documents), _DOCUMENT_BLOCK):
            with torch.autocast(queries.device.type, enabled=False):  # half-precision scores would tie near neighbours
                scores = query_block @ documents[start : start + _DOCUMENT_BLOCK].T  # (q, D) @ (D, n) -> (q, n)
            block_scores, block_rows = scores.topk(min(k, scores.shape[1]))
            candidates = torch.cat([best_scores, block_scores], dim=1)
            candidate_rows = torch.cat([best_rows, block_rows + start], dim=1)
            best_scores, chosen = candidates.topk(min(k, candidates.shape[1]))
            best_rows = candidate_rows.gather(1, chosen)
        rows.append(best_rows.cpu())
    return torch.cat(rows).numpy()


def ranking_metrics(ranked: np.ndarray, relevant: Sequence[np.ndarray], corpus_size: int) -> dict[str, np.ndarray]:
    """Per-query metrics of a ranking.

    Args:
        ranked: (Q, k) document rows, best first.
        relevant: for each query the rows of its relevant documents, at least one.
        corpus_size: number of documents N.

    Returns:
        Metric → (Q,): `mrr@10` the reciprocal rank of the first relevant document (0 below rank 10), `ndcg@10` with binary
        gains, `recall@1` and `recall@10` the found share of the relevant documents.
    """
    counts = np.array([len(rows) for rows in relevant])
    owners = np.repeat(np.arange(len(relevant)), counts)
    relevant_keys = owners * corpus_size + np.concatenate(relevant)
    keys = np.arange(len(relevant))[:, None] * corpus_size + ranked
    hits = np.isin(keys, relevant_keys)[:, :_DEPTH]  # (Q, <=10)
    positions = np.arange(hits.shape[1])
    discounts = 1 / np.log2(positions + 2)
    ideal = np.cumsum(1 / np.log2(np.arange(_DEPTH) + 2))[np.minimum(counts, _DEPTH) - 1]
    return {
        "mrr@10": np.where(hits.any(axis=1), 1 / (hits.argmax(axis=1) + 1), 0.0),
        "ndcg@10": (hits * discounts).sum(axis=1) / ideal,
        "recall@1": hits[:, :1].sum(axis=1) / counts,
        "recall@10": hits.sum(axis=1) / counts,
    }


@dataclass(frozen=True)
class Verdict:
    """Held-out metrics of the untouched base model and of the tuned one: task → metric → value in 0–1.

    `sizes` holds for each task its number of questions and of documents.
    """

    base: dict[str, dict[str, float]]
    tuned: dict[str, dict[str, float]]
    sizes: dict[str, tuple[int, int]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            task: {
                "questions": questions,
                "documents": documents,
                "base": self.base[task],
                "tuned": self.tuned[task],
                "difference": {m: self.tuned[task][m] - self.base[task][m] for m in METRICS},
            }
            for task, (questions, documents) in self.sizes.items()
        }

    def table(self) -> str:
        """An aligned Markdown table: base, tuned and difference of each task."""
        rows = [["task", "model", "MRR@10", "NDCG@10", "Recall@1", "Recall@10"]]
        for task, result in self.to_dict().items():
            what = f"question → {task} ({result['questions']:,} in {result['documents']:,})"
            rows.append([what, "base, untouched", *(f"{result['base'][m]:.3f}" for m in METRICS)])
            rows.append(["", "tuned", *(f"{result['tuned'][m]:.3f}" for m in METRICS)])
            rows.append(["", "difference", *(f"{result['difference'][m]:+.3f}" for m in METRICS)])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
        ]
        return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])

    def sentences(self) -> list[str]:
        """One plain sentence a task, a loss named as plainly as a gain."""
        said = []
        for task in self.sizes:
            before, after = self.base[task]["mrr@10"], self.tuned[task]["mrr@10"]
            difference = round(after - before, 3)
            word = "GAIN" if difference > 0 else "LOSS" if difference < 0 else "NO CHANGE"
            said.append(f"{word} on {task}: MRR@10 {before:.3f} → {after:.3f} ({difference:+.3f})")
        return said


def measure(model: SentenceTransformer, evaluators: Sequence[RetrievalEvaluator]) -> dict[str, dict[str, float]]:
    """Task → metric → value, for each evaluator's task."""
    return {
        evaluator.name: {name.removeprefix(f"{evaluator.name}_"): v for name, v in evaluator(model).items()}
        for evaluator in evaluators
    }
