"""Rankings and metrics: worked by hand, equal to full sorts across blocks, ties in the order of the documents."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from trainer import ranking
from trainer.ranking import METRICS, best_columns, ranking_metrics, relevant_hits, retrieval_metrics, top_documents


def metrics_of(ranked: list[list[int]], relevant: list[list[int]], corpus_size: int) -> dict[str, list[float]]:
    rows = [np.array(each) for each in relevant]
    hits = relevant_hits(np.array(ranked), rows, corpus_size)
    found = ranking_metrics(hits, np.array([len(each) for each in relevant]))
    return {metric: values.tolist() for metric, values in found.items()}


# ------------------------------------------------------------------------------------------------------------
# Metrics by hand


def test_metrics_by_hand():
    found = metrics_of(
        [list(range(12)), [5, 7, 0, 1, 2, 3, 4, 6, 8, 9, 10, 11], [11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]],
        [[0], [0, 7], [0]],
        corpus_size=12,
    )
    assert found["mrr@10"] == [1, 1 / 2, 0]  # rank 12 is past the tenth
    gain = (1 / math.log2(3) + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    assert found["ndcg@10"] == pytest.approx([1, gain, 0])
    assert found["recall@1"] == [1, 0, 0]
    assert found["recall@10"] == [1, 1, 0]
    assert found["recall@100"] == [1, 1, 1]


def test_more_relevant_documents_than_ranks():
    found = metrics_of([list(range(15))], [list(range(15))], corpus_size=15)
    assert found["ndcg@10"] == pytest.approx([1])
    assert (found["recall@1"], found["recall@10"], found["recall@100"]) == ([1 / 15], [10 / 15], [1])


def test_a_corpus_smaller_than_ten():
    found = metrics_of([[1, 0]], [[0]], corpus_size=2)
    assert [found[metric][0] for metric in ("mrr@10", "recall@1", "recall@10", "recall@100")] == [0.5, 0, 1, 1]


def test_the_same_row_is_relevant_to_its_own_query_only():
    assert metrics_of([[0, 1], [0, 1]], [[0], [1]], corpus_size=2)["mrr@10"] == [1, 0.5]


def test_what_was_not_found_is_no_hit_of_the_query_before():
    """-1 next to row 0 of the second query would be the last row of the first."""
    assert metrics_of([[1, -1], [-1, -1]], [[1], [1]], corpus_size=2)["recall@10"] == [1, 0]


def test_recall_beyond_the_first_page():
    found = metrics_of([list(range(150))], [[5, 99, 100]], corpus_size=150)
    assert found["recall@10"] == [1 / 3] and found["recall@100"] == [2 / 3]


# ------------------------------------------------------------------------------------------------------------
# Cosines by hand


def test_similarities_by_hand():
    """Documents at 0, 60, 90 and 180 degrees; the queries at 0 and 90."""
    angles = torch.tensor([0.0, 60, 90, 180]).deg2rad()
    documents = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = retrieval_metrics(documents[[0, 2]], documents, [np.array([0, 1]), np.array([3])])
    assert found["positive_similarity"].tolist() == pytest.approx([(1 + 0.5) / 2, 0], abs=1e-6)
    assert found["negative_similarity"].tolist() == pytest.approx([0, 1], abs=1e-6)
    assert list(found) == list(METRICS)


def test_the_best_negative_behind_more_relevant_documents_than_any_metric_looks_at():
    angles = torch.linspace(0, 1, 151)
    documents = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = retrieval_metrics(documents[:1], documents, [np.arange(150)])
    assert found["negative_similarity"].tolist() == pytest.approx([math.cos(1)])
    assert found["negative_similarity"].dtype == np.float64


def test_where_every_document_is_relevant_there_is_no_negative():
    documents = normalize(torch.randn(3, 4), dim=1)
    found = retrieval_metrics(documents[:2], documents, [np.arange(3), np.arange(1)])
    assert list(found) == [metric for metric in METRICS if metric != "negative_similarity"]


def test_similarities_do_not_depend_on_the_blocks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, documents = (normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (7, 40))
    relevant = [np.arange(i, 40, 7) for i in range(7)]
    whole = retrieval_metrics(queries, documents, relevant)
    monkeypatch.setattr(ranking, "_PAIR_BLOCK", 3)
    monkeypatch.setattr(ranking, "_DOCUMENT_BLOCK", 11)
    pieces = retrieval_metrics(queries, documents, relevant, query_block=2)
    for metric in METRICS:
        np.testing.assert_allclose(pieces[metric], whole[metric], atol=1e-6, err_msg=metric)


# ------------------------------------------------------------------------------------------------------------
# The best documents without a sort of all scores


@given(st.integers(1, 9), st.integers(1, 30), st.integers(1, 12), st.integers(1, 5), st.integers(1, 11), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_top_documents_across_blocks_equals_a_full_sort(n_queries, n_documents, k, query_block, document_block, seed):
    """Small whole numbers: scores are exact, and many are equal."""
    generator = torch.Generator().manual_seed(seed)
    queries, documents = (torch.randint(-2, 3, (n, 3), generator=generator).float() for n in (n_queries, n_documents))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_DOCUMENT_BLOCK", document_block)
        rows, scores = top_documents(queries, documents, k, query_block)
    expected = (queries @ documents.T).sort(dim=1, descending=True, stable=True)
    assert rows.tolist() == expected.indices[:, :k].tolist()
    assert scores.tolist() == expected.values[:, :k].tolist()


def test_what_cannot_be_found_comes_last():
    values, columns = best_columns(torch.tensor([[0.0, -torch.inf, 2, -torch.inf, 2]]), 4)
    assert values.tolist() == [[2, 2, 0, -torch.inf]] and columns[0, :3].tolist() == [2, 4, 0]


# ------------------------------------------------------------------------------------------------------------
# Documents that a query does not rank


def test_documents_left_out_by_hand():
    """Of cosines 1, .8, .6, 0 a query leaves out the best; the next one is first, and is the best that is not relevant."""
    documents = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    queries = torch.tensor([[1.0, 0.0]] * 3)
    relevant = [np.array([2])] * 3
    left_out = [np.array([], dtype=np.int64), np.array([0]), np.array([0, 2])]
    found = retrieval_metrics(queries, documents, relevant, left_out=left_out)
    assert found["mrr@10"].tolist() == [1 / 3, 1 / 2, 0]
    assert found["recall@100"].tolist() == [1, 1, 0]  # a right one that is left out is not found
    np.testing.assert_allclose(found["negative_similarity"], [1, 0.8, 0.8], atol=1e-6)
    np.testing.assert_allclose(found["positive_similarity"], [0.6] * 3, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_leaving_out_is_a_corpus_without_them(seed):
    draw = np.random.default_rng(seed)
    documents = normalize(torch.randn(150, 8, generator=torch.Generator().manual_seed(seed)), dim=1)
    query = documents[:1]
    relevant, out = np.array([5, 7]), np.setdiff1d(draw.choice(150, 60, replace=False), [5, 7])
    kept = np.setdiff1d(np.arange(150), out)
    expected = retrieval_metrics(query, documents[kept], [np.searchsorted(kept, relevant)])
    found = retrieval_metrics(query, documents, [relevant], left_out=[out])
    assert found.keys() == expected.keys()
    for metric in found:
        np.testing.assert_allclose(found[metric], expected[metric], atol=1e-6, err_msg=metric)


def test_there_is_no_best_negative_where_all_are_left_out():
    documents = torch.eye(3)
    found = retrieval_metrics(documents[:1], documents, [np.array([0])], left_out=[np.array([1, 2])])
    assert "negative_similarity" not in found and found["mrr@10"].tolist() == [1]
