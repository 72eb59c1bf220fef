"""BM25: the tokens, scores by hand, and what is not found at all."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainer import bm25
from trainer.bm25 import measure_bm25, tokenise
from trainer.evaluation import RetrievalEvaluator
from trainer.ranking import RANKING_METRICS


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("훈민정음을 반포한 왕은?", ["훈민", "민정", "정음", "음을", "반포", "포한", "왕은"]),
        ("BTS의 ＲＭ, 1994년", ["bt", "ts", "s의", "rm", "19", "99", "94", "4년"]),
        ("물", ["물"]),
        ("\u1112\u1161\u11ab\u1100\u1173\u11af", ["한글"]),  # decomposed, as macOS writes file names
        ("!?", []),
        ("", []),
    ],
)
def test_tokens(text, tokens):
    assert tokenise(text) == tokens


def measured(queries: list[str], corpus: list[str], relevant: list[set[int]]) -> dict[str, list[float]]:
    evaluator = RetrievalEvaluator(
        {f"q{i}": text for i, text in enumerate(queries)},
        {f"d{i:03}": text for i, text in enumerate(corpus)},
        {f"q{i}": {f"d{d:03}" for d in rows} for i, rows in enumerate(relevant)},
        name="answers",
    )
    (found,) = measure_bm25([evaluator]).values()
    return {metric: values.tolist() for metric, values in found.items()}


def test_the_shorter_of_two_documents_with_the_word_and_then_the_one_with_more_of_it():
    corpus = ["서울 부산 대구 광주 인천", "서울 부산", "서울 서울 서울", "제주"]
    assert measured(["서울"] * 3, corpus, [{0}, {1}, {2}])["mrr@10"] == [1 / 3, 1 / 2, 1]


def test_scores_are_those_of_the_formula():
    """Lucene's: idf · tf / (tf + k1 · (1 - b + b · length / mean length))."""
    corpus = ["서울 서울 부산", "부산 대구", "제주"]
    index = bm25.bm25s.BM25()
    index.index([tokenise(text) for text in corpus], show_progress=False)
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    expected = [idf / (1 + 1.5 * (0.25 + 0.75 * length / 2)) for length in (3, 2)]
    np.testing.assert_allclose(index.get_scores(tokenise("부산")), [*expected, 0], rtol=1e-5)


def test_what_shares_nothing_with_the_question_is_not_found():
    """All of the corpus ties at zero for the first question, nothing can be looked up for the second."""
    found = measured(["없는말", "?!", "제주"], ["서울", "부산", "제주"], [{0}, {1}, {2}])
    assert found == {metric: [0, 0, 1] for metric in RANKING_METRICS}


def test_a_corpus_without_a_single_word():
    assert measured(["서울"], ["?", "!"], [{0}])["recall@100"] == [0]


def test_blocks_do_not_matter(monkeypatch):
    words = [a + b for a in "가나다라마" for b in "바사아자차"]
    corpus = [f"{a} {b}" for a in words for b in words]
    asked = [corpus[i] for i in range(0, 625, 13)]
    relevant = [{i} for i in range(0, 625, 13)]
    whole = measured(asked, corpus, relevant)
    monkeypatch.setattr(bm25, "_SCORES_HELD", 2000)  # three queries at a time
    assert measured(asked, corpus, relevant) == whole
    assert 0 < np.mean(whole["recall@1"]) <= 1


def test_each_task_has_its_row():
    evaluators = [RetrievalEvaluator({"q": "서울"}, {"d": "서울시"}, {"q": {"d"}}, name=name) for name in ("a", "b")]
    assert {task: list(found) for task, found in measure_bm25(evaluators).items()} == {
        "a": list(RANKING_METRICS),
        "b": list(RANKING_METRICS),
    }


def test_jax_is_not_started_where_it_is_installed(tmp_path):
    """It takes three quarters of a GPU's memory at its first use."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("started = True")
    (tmp_path / "jax" / "lax.py").write_text("raise SystemExit('JAX was started')")
    code = "import sys; from trainer import bm25; assert 'jax' not in sys.modules; import jax; assert jax.started"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    repository = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
