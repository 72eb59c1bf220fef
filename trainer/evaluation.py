"""Retrieval quality: model + (queries, corpus, relevant documents) → metrics, one value a query and their means.

Rankings and metrics are in ranking.py, intervals in intervals.py, the row without a model in bm25.py, and what is said about
several models side by side in verdict.py.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from trainer.ranking import QUERY_BLOCK, retrieval_metrics

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class EvaluationError(RuntimeError):
    """A model cannot be measured."""


class RetrievalEvaluator:
    """Ranks a corpus for each query by cosine similarity and measures where the relevant documents stand.

    Equal to sentence-transformers' `InformationRetrievalEvaluator` on the same input, ties included, with each distinct text
    encoded once and no Python loop over scores. Texts are raw: the model adds the prompts stored in it, once.

    Args:
        queries: query id → text.
        corpus: document id → text.
        relevant_docs: query id → ids of the documents that answer it.
        name: of the task, in front of every metric ("answers" → "answers_mrr@10").
        batch_size: texts encoded at once; halved, and this is said, where the device has no memory for them.
        max_queries: ask at most this many queries, a sample drawn with `seed`; 0 = all. The corpus stays whole.
        articles: query text → the article it asks about. Intervals then resample articles, not single questions.
        left_out: (document texts, query texts) → for each query the rows of documents that it does not rank.

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
        articles: Mapping[str, Any] | None = None,
        left_out: Callable[[Sequence[str], Sequence[str]], list[np.ndarray]] | None = None,
    ):
        self.name = name
        self.primary_metric = f"{name}_mrr@10"
        self.batch_size = batch_size
        document_ids = sorted(corpus)  # equal scores rank in this order
        position = {document_id: index for index, document_id in enumerate(document_ids)}
        asked = [query_id for query_id in queries if any(d in position for d in relevant_docs.get(query_id, ()))]
        self.queries_available = len(asked)
        if max_queries and len(asked) > max_queries:
            asked = [asked[n] for n in sorted(random.Random(seed).sample(range(len(asked)), max_queries))]
        if not asked:
            raise ValueError(f"{name}: no query has a relevant document in the corpus of {len(corpus):,}")
        self.query_texts = [queries[query_id] for query_id in asked]
        self.document_texts = [corpus[document_id] for document_id in document_ids]
        self.relevant = [
            np.array(sorted(position[d] for d in relevant_docs[query_id] if d in position)) for query_id in asked
        ]
        self.left_out = None if left_out is None else left_out(self.document_texts, self.query_texts)
        self.by_article = articles is not None
        belongs_to = asked if articles is None else [articles[text] for text in self.query_texts]
        number = {group: index for index, group in enumerate(dict.fromkeys(belongs_to))}
        self.groups = np.array([number[group] for group in belongs_to])  # (Q,): what intervals draw together

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """The means of `per_query`, each under "<name>_<metric>". The further arguments are those of
        sentence-transformers' evaluators and have no effect."""
        return {f"{self.name}_{metric}": float(values.mean()) for metric, values in self.per_query(model).items()}

    def per_query(self, model: SentenceTransformer) -> dict[str, np.ndarray]:
        """Metric of `retrieval_metrics` → (Q,) float64: what intervals and paired comparisons are made of.

        Raises:
            EvaluationError: the device is too small for a single text, or an embedding is not finite.
        """
        return measure(model, [self])[self.name]

    def metrics_of(self, queries: Tensor, documents: Tensor) -> dict[str, np.ndarray]:
        """The metrics of embeddings (Q, D) and (N, D), in the order of `query_texts` and `document_texts`."""

        def score(query_block: int) -> dict[str, np.ndarray]:
            return retrieval_metrics(queries, documents, self.relevant, self.left_out, query_block)

        return _with_halved_size(score, QUERY_BLOCK, "queries scored")[0]

    def encode(self, encode: Any, texts: Sequence[str]) -> Tensor:
        """(N, D) float32, L2-normalised, one row a text; equal texts are encoded once. `encode` is the model's method."""
        distinct = list(dict.fromkeys(texts))

        def embed(batch_size: int) -> Tensor:
            return encode(
                distinct,
                batch_size=batch_size,
                convert_to_tensor=True,
                normalize_embeddings=True,
                show_progress_bar=len(distinct) > 20 * batch_size,
            ).float()

        embeddings, self.batch_size = _with_halved_size(embed, self.batch_size, "texts encoded")
        finite = embeddings.isfinite().all(dim=1)
        if not finite.all():
            first = distinct[int((~finite).nonzero()[0])]
            raise EvaluationError(
                f"{self.name}: {int((~finite).sum()):,} of {len(distinct):,} texts have no finite embedding, the first is "
                f"{first[:40]!r}. The model went wrong in training (lower --learning_rate) or overflows (--precision fp32)."
            )
        return embeddings[_places(distinct, texts)]


def measure(model: SentenceTransformer, evaluators: Sequence[RetrievalEvaluator]) -> dict[str, dict[str, np.ndarray]]:
    """Task → metric → (Q,), for each evaluator's task; a question of several tasks is encoded once.

    Raises what `per_query` raises.
    """
    asked = list(dict.fromkeys(text for evaluator in evaluators for text in evaluator.query_texts))
    if not asked:
        return {}
    was_training = model.training
    model.eval()
    try:
        queries = evaluators[0].encode(model.encode_query, asked)
        return {
            evaluator.name: evaluator.metrics_of(
                queries[_places(asked, evaluator.query_texts)],
                evaluator.encode(model.encode_document, evaluator.document_texts),
            )
            for evaluator in evaluators
        }
    finally:
        model.train(was_training)


def _places(distinct: Sequence[str], texts: Sequence[str]) -> list[int]:
    place = {text: index for index, text in enumerate(distinct)}
    return [place[text] for text in texts]


def _with_halved_size(run: Callable[[int], Result], size: int, what: str) -> tuple[Result, int]:
    """`run(size)` and the size at which it fitted: half as much after each time that the device's memory ran out."""
    while True:
        try:
            return run(size), size
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise EvaluationError(
                    f"out of memory with a single text ({error}). Close other programs that use the device, "
                    "lower --max_seq_length, or use --device cpu."
                ) from error
        size //= 2  # outside of the handler, which holds on to the tensors of the failed run
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("Out of memory in the evaluation: from here on at most %d %s at once", size, what)
