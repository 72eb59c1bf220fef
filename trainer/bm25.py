"""BM25, the row that needs no model: what word overlap alone finds.

Words are cut into pairs of neighbouring characters (훈민정음을 → 훈민, 민정, 정음, 음을): Korean glues particles to its
nouns, and white space then hides what is equal. Why no morphological analyser: docs/EVALUATION.md has the numbers.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trainer.evaluation import RetrievalEvaluator
from trainer.ranking import DEPTH, best_columns, ranking_metrics, relevant_hits


def _import_bm25s() -> Any:
    """bm25s without JAX: where that is installed, it would be started at once for a choice of the best that is not used
    here, and take three quarters of a GPU's memory."""
    jax = sys.modules.get("jax")
    sys.modules["jax"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("bm25s")
    finally:
        if jax is None:
            del sys.modules["jax"]
        else:
            sys.modules["jax"] = jax


bm25s = _import_bm25s()
logging.getLogger("bm25s").setLevel(logging.WARNING)  # which sets itself to DEBUG
_WORD = re.compile(r"\w+")
_SCORES_HELD = 16_000_000  # at once: 64 MB of float32


def tokenise(text: str) -> list[str]:
    """The character bigrams inside each word, case and width of letters apart; a word of one character is itself."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).lower())
    return [word[i : i + 2] for word in words for i in range(max(1, len(word) - 1))]


def measure_bm25(evaluators: Sequence[RetrievalEvaluator]) -> dict[str, dict[str, np.ndarray]]:
    """Task → metric → (Q,), as `measure` gives for a model, without the cosines.

    A document that shares nothing with the query is not found, at whatever rank the tie would put it.
    """
    return {evaluator.name: _measure(evaluator) for evaluator in evaluators}


def _measure(evaluator: RetrievalEvaluator) -> dict[str, np.ndarray]:
    index = bm25s.BM25()  # Lucene's variant, k1 = 1.5, b = .75 (arXiv:2407.03618)
    # A document without a word still has a token, one that no query has: an index without any cannot be built.
    index.index([tokenise(text) or [""] for text in evaluator.document_texts], show_progress=False)
    queries = [tokenise(text) for text in evaluator.query_texts]
    n_documents = len(evaluator.document_texts)
    step = max(1, _SCORES_HELD // n_documents)
    nothing = np.zeros(n_documents, np.float32)
    ranked = []
    for start in range(0, len(queries), step):
        block = queries[start : start + step]
        scores = torch.from_numpy(np.stack([index.get_scores(tokens) if tokens else nothing for tokens in block]))
        for row, documents in enumerate(evaluator.left_out[start : start + step] if evaluator.left_out else ()):
            scores[row, documents] = 0  # as if it shared nothing with the query
        values, rows = best_columns(scores.masked_fill(scores <= 0, -torch.inf), DEPTH)  # (q, N) -> (q, 100)
        ranked.append(rows.masked_fill(values == -torch.inf, -1).numpy())
    hits = relevant_hits(np.concatenate(ranked), evaluator.relevant, n_documents)
    return ranking_metrics(hits, np.array([len(rows) for rows in evaluator.relevant]))
