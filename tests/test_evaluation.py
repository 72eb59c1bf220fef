"""Retrieval metrics: worked by hand, equal to sentence-transformers' evaluator, each prefix exactly once."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from trainer import evaluation
from trainer.evaluation import METRICS, RetrievalEvaluator, Verdict, measure, ranking_metrics, top_documents

ANSWERS = [
    *("서울특별시", "세종대왕", "산소와 수소", "에베레스트", "1945년 8월 15일", "부산광역시", "이순신 장군", "태백산맥"),
    *("한강", "훈민정음 해례본", "조선 시대", "고려청자", "대한민국 헌법", "제주도의 한라산", "백두산 천지"),
]
CORPUS = {f"d{index}": answer for index, answer in enumerate(ANSWERS)}
QUERIES = {
    "q0": "대한민국의 수도는?",
    "q1": "한글을 만든 사람은?",
    "q2": "물은 무엇으로 되어 있나?",
    "q3": "높은 산을 둘만 말하면?",
    "q4": "광복절은 언제인가?",
    "q5": "아무도 답하지 않은 질문",
}
RELEVANT = {
    "q0": {"d0"},
    "q1": {"d1", "d9"},
    "q2": {"d2"},
    "q3": {"d3", "d13", "d14"},
    "q4": {"d4"},
    "q5": set(),
}


# ------------------------------------------------------------------------------------------------------------
# Against the reference


def test_equal_to_information_retrieval_evaluator(toy_model):
    reference = InformationRetrievalEvaluator(
        QUERIES,
        CORPUS,
        RELEVANT,
        name="answers",
        mrr_at_k=[10],
        ndcg_at_k=[10],
        accuracy_at_k=[1],
        precision_recall_at_k=[1, 10],
        map_at_k=[10],
        show_progress_bar=False,
    )
    expected = reference(toy_model)
    found = RetrievalEvaluator(QUERIES, CORPUS, RELEVANT)(toy_model)
    assert found == {f"answers_{m}": pytest.approx(expected[f"answers_cosine_{m}"], abs=1e-6) for m in METRICS}
    assert 0 < found["answers_mrr@10"] < 1  # a ranking with right and wrong places, or equality says little


def test_one_value_a_query(toy_model):
    evaluator = RetrievalEvaluator(QUERIES, CORPUS, RELEVANT)
    values = evaluator.per_query(toy_model)
    means = {f"answers_{metric}": numbers.mean() for metric, numbers in values.items()}
    assert {metric: numbers.shape for metric, numbers in values.items()} == dict.fromkeys(METRICS, (5,))
    assert means == evaluator(toy_model)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_is_without_dropout_and_leaves_the_mode_as_it_was(toy_model, training):
    evaluator = RetrievalEvaluator(QUERIES, CORPUS, RELEVANT)
    toy_model.eval()
    expected = evaluator(toy_model)
    toy_model.train(training)
    assert evaluator(toy_model) == expected
    assert toy_model.training is training


def test_a_model_that_puts_the_answer_next_to_its_question_scores_one():
    evaluator = RetrievalEvaluator({"a": "1", "b": "2"}, {"x": "2", "y": "1", "z": "3"}, {"a": {"y"}, "b": {"x"}})
    assert evaluator(_Numbers()) == {f"answers_{metric}": 1.0 for metric in METRICS}


class _Numbers:
    """Stands for a model: the text "n" becomes the direction of the angle n."""

    training = False

    def eval(self):
        pass

    def train(self, mode):
        pass

    def encode_query(self, texts, **_):
        return torch.tensor([[math.cos(float(text)), math.sin(float(text))] for text in texts])

    encode_document = encode_query


# ------------------------------------------------------------------------------------------------------------
# Prefixes


def test_each_text_is_encoded_once_with_its_prefix_exactly_once(toy_model, read_texts):
    seen = read_texts(toy_model)
    corpus = CORPUS | {"again": CORPUS["d0"]}
    RetrievalEvaluator(QUERIES | {"q6": QUERIES["q0"]}, corpus, RELEVANT | {"q6": {"again"}})(toy_model)
    asked = [f"query: {text}" for name, text in QUERIES.items() if name != "q5"]
    assert sorted(seen) == sorted(asked + [f"passage: {text}" for text in CORPUS.values()])


def test_embeddings_are_those_of_the_prefixed_texts_in_training(toy_model):
    """What training reads, prefix in the text, and what evaluation encodes, raw text and stored prompt, are one."""
    raw, prefixed = "대한민국의 수도는?", "query: 대한민국의 수도는?"
    toy_model.eval()
    with torch.no_grad():
        in_training = toy_model(toy_model.preprocess([prefixed]))["sentence_embedding"]
    torch.testing.assert_close(toy_model.encode_query([raw], convert_to_tensor=True), in_training)


# ------------------------------------------------------------------------------------------------------------
# What is asked


def test_queries_without_a_document_in_the_corpus_are_not_asked():
    relevant = {"q0": {"elsewhere"}, "q1": {"d1", "elsewhere"}, "q4": {"d4"}}
    evaluator = RetrievalEvaluator(QUERIES, CORPUS, relevant)
    assert evaluator.query_texts == [QUERIES["q1"], QUERIES["q4"]]
    assert [rows.tolist() for rows in evaluator.relevant] == [[1], [4]]


def test_no_query_at_all_is_an_error():
    with pytest.raises(ValueError, match="paragraphs: no query has a relevant document in the corpus of 15"):
        RetrievalEvaluator(QUERIES, CORPUS, {"q0": {"elsewhere"}}, name="paragraphs")


def test_the_sample_of_queries_is_seeded_and_keeps_the_corpus_whole():
    queries = {f"q{index}": f"질문 {index}" for index in range(50)}
    relevant = {query: {"d0"} for query in queries}

    def asked(**options):
        return RetrievalEvaluator(queries, CORPUS, relevant, **options)

    sample = asked(max_queries=10, seed=3)
    assert sample.document_texts == list(CORPUS.values())
    assert len(sample.query_texts) == len(sample.relevant) == 10
    assert sample.query_texts == asked(max_queries=10, seed=3).query_texts != asked(max_queries=10, seed=4).query_texts
    order = list(queries.values())
    assert sample.query_texts == sorted(sample.query_texts, key=order.index)
    assert asked(max_queries=0).query_texts == asked(max_queries=50).query_texts == order


# ------------------------------------------------------------------------------------------------------------
# The numbers


def test_metrics_by_hand():
    ranked = np.array([[4, 0, 1, 2, 3], [2, 1, 0, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]])
    relevant = [np.array([4]), np.array([0, 1]), np.array([3, 4, 5, 6]), np.array([6])]
    metrics = ranking_metrics(ranked, relevant, corpus_size=7)
    gain = [1 / math.log2(rank + 1) for rank in range(1, 11)]  # of a hit at rank 1, 2, …
    np.testing.assert_allclose(metrics["mrr@10"], [1, 1 / 2, 1 / 4, 0])
    np.testing.assert_allclose(metrics["recall@1"], [1, 0, 0, 0])
    np.testing.assert_allclose(metrics["recall@10"], [1, 1, 2 / 4, 0])
    np.testing.assert_allclose(
        metrics["ndcg@10"],
        [1, (gain[1] + gain[2]) / (gain[0] + gain[1]), (gain[3] + gain[4]) / sum(gain[:4]), 0],
    )


def test_only_ten_ranks_count():
    ranked = np.arange(12)[None, :]
    metrics = ranking_metrics(np.concatenate([ranked, ranked, ranked]), [np.array([9]), np.array([10]), np.arange(12)], 12)
    np.testing.assert_allclose(metrics["mrr@10"], [1 / 10, 0, 1])
    np.testing.assert_allclose(metrics["recall@10"], [1, 0, 10 / 12])
    np.testing.assert_allclose(metrics["ndcg@10"], [1 / math.log2(11), 0, 1])  # ten hits are the most that ten ranks hold


def test_the_same_document_number_of_another_query_is_no_hit():
    metrics = ranking_metrics(np.array([[0, 1], [0, 1]]), [np.array([0]), np.array([1])], 2)
    np.testing.assert_allclose(metrics["recall@1"], [1, 0])


# ------------------------------------------------------------------------------------------------------------
# The best documents without a sort of all scores


@given(st.integers(1, 9), st.integers(1, 30), st.integers(1, 12), st.integers(1, 5), st.integers(1, 11), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_top_documents_across_blocks_equals_a_full_sort(n_queries, n_documents, k, query_block, document_block, seed):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.nn.functional.normalize(torch.randn(n_queries, 8, generator=generator, dtype=torch.float64), dim=1)
    documents = torch.nn.functional.normalize(torch.randn(n_documents, 8, generator=generator, dtype=torch.float64), dim=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "_QUERY_BLOCK", query_block)
        patch.setattr(evaluation, "_DOCUMENT_BLOCK", document_block)
        found = top_documents(queries, documents, k)
    expected = (queries @ documents.T).argsort(dim=1, descending=True)[:, :k]
    assert found.tolist() == expected.tolist()


# ------------------------------------------------------------------------------------------------------------
# The verdict


@pytest.fixture
def verdict() -> Verdict:
    base = {"answers": dict.fromkeys(METRICS, 0.5), "paragraphs": dict.fromkeys(METRICS, 0.75)}
    tuned = {"answers": dict.fromkeys(METRICS, 0.625), "paragraphs": dict.fromkeys(METRICS, 0.5)}
    return Verdict(base, tuned, {"answers": (1234, 567), "paragraphs": (1234, 89)})


def test_the_table_shows_both_tasks_and_the_difference(verdict):
    header, rule, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in verdict.table().splitlines()]
    assert header == ["task", "model", "MRR@10", "NDCG@10", "Recall@1", "Recall@10"]
    assert all(set(cell) <= set("-:") and "-" in cell for cell in rule) and len(rule) == 6
    assert rows == [
        ["question → answers (1,234 in 567)", "base, untouched", *["0.500"] * 4],
        ["", "tuned", *["0.625"] * 4],
        ["", "difference", *["+0.125"] * 4],
        ["question → paragraphs (1,234 in 89)", "base, untouched", *["0.750"] * 4],
        ["", "tuned", *["0.500"] * 4],
        ["", "difference", *["-0.250"] * 4],
    ]


def test_the_sentences_name_a_gain_and_a_loss(verdict):
    assert verdict.sentences() == [
        "GAIN on answers: MRR@10 0.500 → 0.625 (+0.125)",
        "LOSS on paragraphs: MRR@10 0.750 → 0.500 (-0.250)",
    ]
    same = Verdict(verdict.base, verdict.base, {"answers": (1, 1)})
    assert same.sentences() == ["NO CHANGE on answers: MRR@10 0.500 → 0.500 (+0.000)"]


def test_the_verdict_as_data(verdict):
    assert verdict.to_dict()["paragraphs"] == {
        "questions": 1234,
        "documents": 89,
        "base": dict.fromkeys(METRICS, 0.75),
        "tuned": dict.fromkeys(METRICS, 0.5),
        "difference": dict.fromkeys(METRICS, -0.25),
    }


def test_measure_gives_each_task_its_metrics(toy_model):
    evaluators = [RetrievalEvaluator(QUERIES, CORPUS, RELEVANT, name=name) for name in ("answers", "paragraphs")]
    measured = measure(toy_model, evaluators)
    assert list(measured) == ["answers", "paragraphs"]
    assert set(measured["answers"]) == set(METRICS) and measured["answers"] == measured["paragraphs"]
