"""Embeddings → rankings → metrics, one value a query. Arrays alone: no model, no text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

RANKING_METRICS = ("mrr@10", "ndcg@10", "recall@1", "recall@10", "recall@100")
SIMILARITIES = ("positive_similarity", "negative_similarity")
METRICS = (*RANKING_METRICS, *SIMILARITIES)

_FIRST_PAGE = 10  # the k of MRR and NDCG
DEPTH = 100  # the deepest k of RANKING_METRICS
QUERY_BLOCK = 512  # rows of the score matrix held at once
_DOCUMENT_BLOCK = 32_768  # its columns: 512 × 32,768 float32 are 64 MB
_PAIR_BLOCK = 65_536  # pairs whose embeddings are gathered at once: 100 MB a side at D = 384


def retrieval_metrics(
    queries: Tensor,
    documents: Tensor,
    relevant: Sequence[np.ndarray],
    left_out: Sequence[np.ndarray] | None = None,
    query_block: int = QUERY_BLOCK,
) -> dict[str, np.ndarray]:
    """All METRICS of one retrieval task.

    Args:
        queries: (Q, D), L2-normalised.
        documents: (N, D), L2-normalised, on the same device.
        relevant: for each query the rows of its relevant documents, at least one.
        left_out: for each query the rows of documents that it does not rank; relevant ones among them are not found.

    Returns:
        Metric → (Q,) float64: those of `ranking_metrics`, and two mean cosines: `positive_similarity`, of the relevant
        documents, and `negative_similarity`, of the best document that is not relevant; it is left out where some query
        ranks no such document.
    """
    most_relevant, most_left_out = (max(map(len, rows), default=0) for rows in (relevant, left_out or ()))
    depth = max(DEPTH, 1 + most_relevant)  # deep enough to hold a document that is not relevant
    ranked, scores = top_documents(queries, documents, depth + most_left_out, query_block)
    if left_out is not None:
        ranked, scores = _without(ranked, scores, left_out, len(documents))
    hits = relevant_hits(ranked, relevant, len(documents))
    metrics = ranking_metrics(hits, np.array([len(rows) for rows in relevant]))
    metrics["positive_similarity"] = _mean_similarity(queries, documents, relevant)
    if most_relevant + most_left_out < len(documents):
        metrics["negative_similarity"] = np.where(hits, -1.0, scores).max(axis=1).astype(np.float64)
    return metrics


def top_documents(
    queries: Tensor, documents: Tensor, k: int, query_block: int = QUERY_BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The k best documents of each query, best first, without a sort of all scores; of equal ones the first in order.

    Args:
        queries: (Q, D), L2-normalised.
        documents: (N, D), L2-normalised, on the same device.

    Returns:
        (Q, min(k, N)) row numbers of `documents`, and their cosines.
    """
    blocks = []
    for block in queries.split(query_block):
        scores = block.new_empty((len(block), 0))
        rows = torch.empty((len(block), 0), dtype=torch.long, device=block.device)
        for start in range(0, len(documents), _DOCUMENT_BLOCK):
            with torch.autocast(block.device.type, enabled=False):  # half-precision scores would tie near neighbours
                all_scores = block @ documents[start : start + _DOCUMENT_BLOCK].T  # (q, D) @ (D, n) -> (q, n)
            new_scores, new_rows = best_columns(all_scores, k)
            # Earlier documents stand first, so that a tie across blocks goes to them, as it does within one.
            scores, chosen = best_columns(torch.cat([scores, new_scores], dim=1), k)
            rows = torch.cat([rows, new_rows + start], dim=1).gather(1, chosen)
        blocks.append((rows.cpu(), scores.cpu()))
    all_rows, all_best = (torch.cat(parts).numpy() for parts in zip(*blocks, strict=True))
    return all_rows, all_best


def best_columns(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(Q, N) scores → the min(k, N) highest of each row and their columns, best first, equal ones in the columns' order.

    `topk` alone takes any of equal scores. sentence-transformers' evaluator takes them in the order of their ids; so, with
    documents in that order, does this.
    """
    n = scores.shape[1]
    k = min(k, n)
    values, columns = scores.topk(min(k + 1, n), dim=1)
    least, columns = values[:, k - 1 : k], columns[:, :k]
    if n > k and (tied := (values[:, k] == least[:, 0]) & (least[:, 0] > -torch.inf)).any():
        # What is above the least score comes before what equals it, each in its order; then the rest.
        order = torch.arange(n, device=scores.device) + n * torch.sign(least[tied] - scores[tied]).long()
        columns[tied] = order.topk(k, dim=1, largest=False).indices
    columns = columns.sort(dim=1).values
    values, best_first = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, best_first)


def relevant_hits(ranked: np.ndarray, relevant: Sequence[np.ndarray], corpus_size: int) -> np.ndarray:
    """(Q, k) document rows, -1 for none → (Q, k) bool: which of them are relevant to their query."""
    owners = np.repeat(np.arange(len(relevant)), [len(rows) for rows in relevant])
    keys = np.arange(len(relevant))[:, None] * corpus_size + ranked
    return np.isin(keys, owners * corpus_size + np.concatenate(relevant)) & (ranked >= 0)


def _without(
    ranked: np.ndarray, scores: np.ndarray, left_out: Sequence[np.ndarray], corpus_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """(Q, k) rows and cosines without those that a query leaves out: behind the others, and -1."""
    out = relevant_hits(ranked, left_out, corpus_size)
    order = np.argsort(out, axis=1, kind="stable")
    shortened = (np.where(out, values.dtype.type(-1), values) for values in (ranked, scores))
    rows, cosines = (np.take_along_axis(values, order, axis=1) for values in shortened)
    return rows, cosines


def ranking_metrics(hits: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Per-query metrics of a ranking.

    Args:
        hits: (Q, k) bool, best first: whether the document at that rank is relevant.
        counts: (Q,) number of relevant documents, at least one.

    Returns:
        Metric → (Q,): `mrr@10` the reciprocal rank of the first relevant document (0 below rank 10), `ndcg@10` with binary
        gains, `recall@k` the share of the relevant documents found within the first k.
    """
    first_page = hits[:, :_FIRST_PAGE]
    discounts = 1 / np.log2(np.arange(_FIRST_PAGE) + 2)
    ideal = np.cumsum(discounts)[np.minimum(counts, _FIRST_PAGE) - 1]
    return {
        "mrr@10": np.where(first_page.any(axis=1), 1 / (first_page.argmax(axis=1) + 1), 0.0),
        "ndcg@10": first_page @ discounts[: first_page.shape[1]] / ideal,
        **{f"recall@{k}": hits[:, :k].sum(axis=1) / counts for k in (1, 10, 100)},
    }


def _mean_similarity(queries: Tensor, documents: Tensor, relevant: Sequence[np.ndarray]) -> np.ndarray:
    """(Q,) float64: the mean cosine of each query with its relevant documents."""
    counts = np.array([len(rows) for rows in relevant])
    owners = torch.from_numpy(np.repeat(np.arange(len(relevant)), counts)).to(queries.device)
    rows = torch.from_numpy(np.concatenate(relevant)).to(queries.device)
    pairs = zip(owners.split(_PAIR_BLOCK), rows.split(_PAIR_BLOCK), strict=True)
    cosines = torch.cat([(queries[owner] * documents[row]).sum(dim=1) for owner, row in pairs])
    return np.bincount(owners.cpu().numpy(), weights=cosines.double().cpu().numpy()) / counts
