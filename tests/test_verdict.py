"""What is said about models side by side: rows, differences and words worked by hand."""

import json

import numpy as np
import pytest

from trainer.evaluation import RetrievalEvaluator
from trainer.ranking import METRICS, RANKING_METRICS
from trainer.verdict import Verdict, compare


def evaluator(name: str, questions: int, articles: int) -> RetrievalEvaluator:
    queries = {f"q{i}": f"질문 {i}" for i in range(questions)}
    of_article = {text: i % articles for i, text in enumerate(queries.values())}
    return RetrievalEvaluator(queries, {"d": "답"}, {q: {"d"} for q in queries}, name=name, articles=of_article)


def constant(value: float, metrics: tuple[str, ...] = METRICS) -> dict[str, np.ndarray]:
    return {metric: np.full(40, value) for metric in metrics}


@pytest.fixture
def verdict() -> Verdict:
    """Answers rise on every question, paragraphs fall on every one."""
    rows = {
        "BM25": {"answers": constant(0.25, RANKING_METRICS), "paragraphs": constant(1.0, RANKING_METRICS)},
        "base": {"answers": constant(0.5), "paragraphs": constant(0.75)},
        "tuned": {"answers": constant(0.625), "paragraphs": constant(0.5)},
    }
    return compare([evaluator("answers", 40, 8), evaluator("paragraphs", 40, 8)], rows, [("tuned", "base")])


def changed(n_up: int, n_down: int, articles: int = 40) -> Verdict:
    """40 questions, one an article unless said: the first n_up rise by 1, the next n_down fall by 1."""
    tuned = np.concatenate([np.ones(n_up), -np.ones(n_down), np.zeros(40 - n_up - n_down)])
    rows = {"base": {"answers": constant(0.0)}, "tuned": {"answers": dict.fromkeys(METRICS, tuned)}}
    return compare([evaluator("answers", 40, articles)], rows, [("tuned", "base")])


def test_the_table(verdict):
    answers, answer_rows, paragraphs, paragraph_rows, legend = verdict.table().split("\n\n")
    assert answers == "question → answers: 40 questions, 1 documents, 8 articles"
    assert paragraphs == "question → paragraphs: 40 questions, 1 documents, 8 articles"
    header, rule, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in answer_rows.splitlines()]
    headings = ["MRR@10", "NDCG@10", "Recall@1", "Recall@10", "Recall@100", "positives", "best negative"]
    assert header == ["model", *headings]
    assert all(set(cell) == {"-"} for cell in rule) and len(rule) == 8
    assert rows == [
        ["BM25", *["0.250 ±.000"] * 5, "–", "–"],
        ["base", *["0.500 ±.000"] * 7],
        ["tuned", *["0.625 ±.000"] * 7],
        ["tuned − base", *["+0.125 ±.000"] * 7],
    ]
    assert "| tuned − base | -0.250 ±.000" in paragraph_rows
    assert len({len(line) for line in answer_rows.splitlines()}) == 1  # aligned
    assert legend.startswith("±: half the 95% interval, from 10,000 bootstrap resamples of 8 articles; ")


def test_the_sentences_name_a_gain_and_a_loss(verdict):
    assert verdict.sentences() == [
        "GAIN on answers, tuned against base: MRR@10 0.500 → 0.625 (+0.125, 95% interval +0.125 to +0.125)",
        "LOSS on paragraphs, tuned against base: MRR@10 0.750 → 0.500 (-0.250, 95% interval -0.250 to -0.250)",
    ]


@pytest.mark.parametrize(
    ("up", "down", "word"),
    [(20, 0, "GAIN"), (0, 20, "LOSS"), (12, 10, "NO CLEAR CHANGE"), (0, 0, "NO CLEAR CHANGE"), (3, 1, "NO CLEAR CHANGE")],
)
def test_a_change_is_claimed_where_chance_does_not_explain_it(up, down, word):
    (sentence,) = changed(up, down).sentences()
    assert sentence.startswith(f"{word} on answers, tuned against base: MRR@10 0.000 → {(up - down) / 40:.3f}")
    assert "95% interval" in sentence


def test_questions_of_one_article_are_not_evidence_of_their_own():
    """Eight of 40 questions rise: of as many articles, that is a gain; of one or two articles, it may be those articles."""
    first_eight = np.concatenate([np.ones(8), np.zeros(32)])
    queries = [f"질문 {i}" for i in range(40)]
    rows = {"base": {"answers": constant(0.0)}, "tuned": {"answers": dict.fromkeys(METRICS, first_eight)}}

    def word(articles: dict[str, int]) -> str:
        sets = ({f"q{i}": text for i, text in enumerate(queries)}, {"d": "답"}, {f"q{i}": {"d"} for i in range(40)})
        found = compare([RetrievalEvaluator(*sets, articles=articles)], rows, [("tuned", "base")])
        return found.tasks[0].differences[0].word

    assert word({text: i for i, text in enumerate(queries)}) == "GAIN"
    assert word({text: i // 4 for i, text in enumerate(queries)}) == "NO CLEAR CHANGE"  # two of ten


def test_too_few_articles_claim_nothing_and_say_so():
    verdict = changed(40, 0, articles=3)
    assert verdict.sentences() == [
        "NO CLEAR CHANGE on answers, tuned against base: MRR@10 0.000 → 1.000 (+1.000, no interval: only 3 articles)"
    ]
    assert "| tuned        | 1.000  |" in verdict.table()
    assert "no interval where there are fewer than 6 to resample (3 articles)" in verdict.table()
    assert verdict.to_dict()["answers"]["intervals"]["tuned"]["mrr@10"] == [None, None]


def test_a_sample_of_the_questions_is_said():
    queries = {f"q{i}": f"질문 {i}" for i in range(50)}
    sampled = RetrievalEvaluator(queries, {"d": "답"}, {q: {"d"} for q in queries}, max_queries=40)
    verdict = compare([sampled], {"base": {"answers": constant(0.5)}}, [])
    assert verdict.table().startswith("question → answers: 40 questions (a sample of 50), 1 documents, 40 questions\n")


def test_the_verdict_as_data(verdict):
    data = json.loads(json.dumps(verdict.to_dict()))
    assert list(data) == ["answers", "paragraphs"]
    found = data["paragraphs"]
    assert {name: found[name] for name in ("questions", "questions_available", "documents", "resampled")} == {
        "questions": 40,
        "questions_available": 40,
        "documents": 1,
        "resampled": "8 articles",
    }
    assert found["models"] == {
        "BM25": dict.fromkeys(RANKING_METRICS, 1.0),
        "base": dict.fromkeys(METRICS, 0.75),
        "tuned": dict.fromkeys(METRICS, 0.5),
    }
    assert found["intervals"]["base"] == {metric: [0.75, 0.75] for metric in METRICS}
    assert found["differences"] == [
        {
            "model": "tuned",
            "against": "base",
            "word": "LOSS",
            "difference": dict.fromkeys(METRICS, -0.25),
            "interval": {metric: [-0.25, -0.25] for metric in METRICS},
        }
    ]


def test_a_difference_to_a_row_without_cosines_has_none():
    rows = {"BM25": {"answers": constant(0.25, RANKING_METRICS)}, "base": {"answers": constant(0.5)}}
    verdict = compare([evaluator("answers", 40, 8)], rows, [("base", "BM25")])
    assert list(verdict.tasks[0].differences[0].metrics) == list(RANKING_METRICS)
    (line,) = [line for line in verdict.table().splitlines() if line.startswith("| base − BM25")]
    assert [cell.strip() for cell in line.split("|")[2:-1]] == [*["+0.250 ±.000"] * 5, "–", "–"]


def test_nothing_asked_is_said():
    empty = compare([], {"base": {}}, [("tuned", "base")])
    assert empty.table() == "No question was asked: there is nothing to compare."
    assert empty.sentences() == [] and empty.to_dict() == {}
