"""The evaluator: equal to sentence-transformers' own, ties included; each prefix once; short of memory it goes on."""

import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import cos_sim

from trainer import evaluation
from trainer.evaluation import EvaluationError, RetrievalEvaluator, measure
from trainer.ranking import METRICS, RANKING_METRICS

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


def reference_metrics(model, queries, corpus, relevant, chunk: int = 50_000) -> dict[str, float]:
    evaluator = InformationRetrievalEvaluator(
        queries,
        corpus,
        relevant,
        corpus_chunk_size=chunk,
        name="answers",
        mrr_at_k=[10],
        ndcg_at_k=[10],
        accuracy_at_k=[1],
        precision_recall_at_k=[1, 10, 100],
        map_at_k=[10],
    )
    found = evaluator(model)
    return {f"answers_{metric}": found[f"answers_cosine_{metric}"] for metric in RANKING_METRICS}


def ranking_part(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.removeprefix("answers_") in RANKING_METRICS}


def test_equal_to_information_retrieval_evaluator(toy_model):
    expected = reference_metrics(toy_model, QUERIES, CORPUS, RELEVANT)
    found = RetrievalEvaluator(QUERIES, CORPUS, RELEVANT)(toy_model)
    assert ranking_part(found) == pytest.approx(expected, abs=1e-6)
    assert 0 < found["answers_mrr@10"] < 1  # a ranking with right and wrong places, or equality says little


@given(
    n_queries=st.integers(1, 12),
    n_documents=st.integers(1, 130),
    most_relevant=st.integers(1, 15),
    blocks=st.tuples(st.integers(1, 5), st.integers(1, 40)),
    chunk=st.integers(1, 140),
    seed=st.integers(0, 999),
)
@settings(max_examples=80, deadline=None)
def test_equal_to_information_retrieval_evaluator_with_ties(n_queries, n_documents, most_relevant, blocks, chunk, seed):
    """Embeddings of four ±.5: cosines are exact and take five values, so nearly all ranks are decided by the tie rule.

    Ids are not in the order of the corpus; fewer documents than the deepest k, or more; several relevant to a query.
    """
    random = np.random.default_rng(seed)
    vectors = torch.from_numpy(random.choice([-0.5, 0.5], size=(n_queries + n_documents, 4)).astype(np.float32))
    queries = {f"q{i}": str(i) for i in range(n_queries)}
    names = [f"d{i}" for i in random.permutation(n_documents)]
    corpus = {name: str(n_queries + i) for i, name in enumerate(names)}
    relevant = {q: set(random.choice(names, size=random.integers(1, most_relevant + 1)).tolist()) for q in queries}
    model = _Vectors(vectors)
    expected = reference_metrics(model, queries, corpus, relevant, chunk)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.evaluation.QUERY_BLOCK", blocks[0])
        patch.setattr("trainer.ranking._DOCUMENT_BLOCK", blocks[1])
        found = RetrievalEvaluator(queries, corpus, relevant)(model)
    assert ranking_part(found) == pytest.approx(expected, abs=1e-6)


class _Vectors:
    """Stands for a model: the text "7" has the embedding in row 7."""

    training = False
    similarity_fn_name = "cosine"
    similarity = staticmethod(cos_sim)

    def __init__(self, vectors: torch.Tensor):
        self.vectors = vectors
        self.model_card_data = self

    def set_evaluation_metrics(self, *_, **__):
        pass

    def eval(self):
        pass

    def train(self, mode):
        pass

    def encode_query(self, texts, **_):
        return self.vectors[[int(text) for text in texts]]

    encode_document = encode_query


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
    angles = torch.tensor([1.0, 2, 2.01, 1.01, 3])
    model = _Vectors(torch.stack([angles.cos(), angles.sin()], dim=1))
    evaluator = RetrievalEvaluator({"a": "0", "b": "1"}, {"x": "2", "y": "3", "z": "4"}, {"a": {"y"}, "b": {"x"}})
    found = evaluator(model)
    assert ranking_part(found) == {f"answers_{metric}": 1.0 for metric in RANKING_METRICS}
    assert found["answers_positive_similarity"] == pytest.approx(math.cos(0.01))
    assert found["answers_negative_similarity"] == pytest.approx((math.cos(1.01) + math.cos(0.99)) / 2)


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
    assert [[evaluator.document_texts[row] for row in rows] for rows in evaluator.relevant] == [
        [CORPUS["d1"]],
        [CORPUS["d4"]],
    ]


def test_no_query_at_all_is_an_error():
    with pytest.raises(ValueError, match="paragraphs: no query has a relevant document in the corpus of 15"):
        RetrievalEvaluator(QUERIES, CORPUS, {"q0": {"elsewhere"}}, name="paragraphs")


def test_the_sample_of_queries_is_seeded_and_keeps_the_corpus_whole():
    queries = {f"q{index}": f"질문 {index}" for index in range(50)}
    relevant = {query: {"d0"} for query in queries}

    def asked(**options):
        return RetrievalEvaluator(queries, CORPUS, relevant, **options)

    sample = asked(max_queries=10, seed=3)
    assert sample.document_texts == [CORPUS[name] for name in sorted(CORPUS)]
    assert len(sample.query_texts) == len(sample.relevant) == 10
    assert sample.query_texts == asked(max_queries=10, seed=3).query_texts != asked(max_queries=10, seed=4).query_texts
    order = list(queries.values())
    assert sample.query_texts == sorted(sample.query_texts, key=order.index)
    assert asked(max_queries=0).query_texts == asked(max_queries=50).query_texts == order


# ------------------------------------------------------------------------------------------------------------
# What is drawn together


def test_questions_of_one_article_are_one_group():
    articles = {text: 7 if query in ("q0", "q3") else query for query, text in QUERIES.items()}
    evaluator = RetrievalEvaluator(QUERIES, CORPUS, RELEVANT, articles=articles)
    assert evaluator.groups.tolist() == [0, 1, 2, 0, 3] and evaluator.by_article
    alone = RetrievalEvaluator(QUERIES, CORPUS, RELEVANT)
    assert alone.groups.tolist() == [0, 1, 2, 3, 4] and not alone.by_article


# ------------------------------------------------------------------------------------------------------------
# Short of memory, or broken


@pytest.fixture
def small_memory(toy_model, monkeypatch):
    """The toy model on a device that holds three texts at once; the batch sizes that were tried."""
    tried = []
    encode = {side: getattr(toy_model, f"encode_{side}") for side in ("query", "document")}

    def limited(side):
        def run(texts, batch_size, **options):
            tried.append(batch_size)
            if batch_size > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return encode[side](texts, batch_size=batch_size, **options)

        return run

    for side in encode:
        monkeypatch.setattr(toy_model, f"encode_{side}", limited(side))
    return toy_model, tried


def test_out_of_memory_halves_the_batch_says_so_and_goes_on(toy_model_dir, small_memory, caplog):
    model, tried = small_memory
    evaluator = RetrievalEvaluator(QUERIES, CORPUS, RELEVANT, batch_size=16)
    with caplog.at_level(logging.WARNING):
        found = evaluator(model)
    assert tried == [16, 8, 4, 2, 2]  # queries; the documents begin where these fitted
    assert [record.getMessage() for record in caplog.records] == [
        f"Out of memory in the evaluation: from here on at most {size} texts encoded at once" for size in (8, 4, 2)
    ]
    whole = RetrievalEvaluator(QUERIES, CORPUS, RELEVANT)(type(model)(str(toy_model_dir), device="cpu"))
    assert found == pytest.approx(whole, abs=1e-6)
    tried.clear()
    evaluator(model)
    assert tried == [2, 2]


def test_no_memory_for_a_single_text_is_an_error(toy_model, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(toy_model, "encode_query", full)
    toy_model.train()
    with pytest.raises(EvaluationError, match=r"single text \(CUDA out of memory\)\. Close other programs"):
        RetrievalEvaluator(QUERIES, CORPUS, RELEVANT)(toy_model)
    assert toy_model.training  # as it was


def test_out_of_memory_while_scoring_halves_the_queries_scored_at_once(toy_model, monkeypatch):
    expected = RetrievalEvaluator(QUERIES, CORPUS, RELEVANT)(toy_model)
    tried = []
    score = evaluation.retrieval_metrics

    def limited(*arguments):
        tried.append(arguments[-1])
        if arguments[-1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score(*arguments)

    monkeypatch.setattr(evaluation, "retrieval_metrics", limited)
    assert RetrievalEvaluator(QUERIES, CORPUS, RELEVANT)(toy_model) == pytest.approx(expected)
    assert tried == [512, 256, 128, 64]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_an_embedding_that_is_not_finite_is_an_error_not_a_rank(broken):
    vectors = torch.eye(4)
    vectors[3, 0] = broken
    evaluator = RetrievalEvaluator({"a": "0"}, {"x": "1", "y": "3"}, {"a": {"y"}})
    with pytest.raises(EvaluationError, match="answers: 1 of 2 texts have no finite embedding, the first is '3'"):
        evaluator(_Vectors(vectors))


# ------------------------------------------------------------------------------------------------------------
# Several tasks


def test_measure_gives_each_task_its_metrics_and_encodes_its_questions_once(toy_model, read_texts):
    backwards = {f"q{i}": {f"d{14 - i}"} for i in range(3)}
    evaluators = [RetrievalEvaluator(QUERIES, CORPUS, RELEVANT), RetrievalEvaluator(QUERIES, CORPUS, backwards, name="b")]
    expected = {evaluator.name: evaluator.per_query(toy_model) for evaluator in evaluators}
    seen = read_texts(toy_model)
    measured = measure(toy_model, evaluators)
    assert sorted(text for text in seen if text.startswith("query: ")) == sorted(
        f"query: {text}" for name, text in QUERIES.items() if name != "q5"
    )
    assert {task: list(found) for task, found in measured.items()} == {"answers": list(METRICS), "b": list(METRICS)}
    for task, found in measured.items():
        for metric, values in found.items():
            np.testing.assert_allclose(values, expected[task][metric], atol=1e-6)
