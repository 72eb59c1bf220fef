"""Speed of the evaluation's scoring beside sentence-transformers' InformationRetrievalEvaluator, on the same embeddings.

    python benchmarks/evaluation_speed.py                                    # 10,000 queries × 80,000 documents

Random embeddings of 384 numbers stand for a model, since encoding is the same work on both sides; each query lies near one
document and nearer to some others, so that ranks vary. Both evaluators answer the same call, rounds alternate in one run.
Prints one JSON line: the median seconds of each side, how many times faster ours is, the seconds of the bare matrix product
(the floor that nobody goes below), and the largest difference between the metrics that both give.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import cos_sim
from torch.nn.functional import normalize

from trainer.evaluation import RetrievalEvaluator
from trainer.ranking import RANKING_METRICS

DIMENSION = 384
NOISE = (
    5.0  # length of what is added to a document's unit embedding to make its query: the right one is first, or some way down
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--documents", type=int, default=80_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps(compare(options.queries, options.documents, options.rounds)))


def compare(n_queries: int, n_documents: int, rounds: int) -> dict[str, Any]:
    """Both evaluators on one random world, alternating."""
    generator = torch.Generator().manual_seed(0)
    documents = normalize(torch.randn(n_documents, DIMENSION, generator=generator), dim=1)
    near = torch.randint(n_documents, (n_queries,), generator=generator)
    noise = normalize(torch.randn(n_queries, DIMENSION, generator=generator), dim=1)
    model: Any = Embeddings(normalize(documents[near] + NOISE * noise, dim=1), documents)
    queries: dict[str, Any] = {f"q{i}": str(i) for i in range(n_queries)}
    corpus: dict[str, Any] = {f"d{i}": str(i) for i in range(n_documents)}
    also = torch.randint(n_documents, (n_queries,), generator=generator).tolist()  # a second relevant one for every third
    relevant = {
        f"q{i}": {f"d{first}", f"d{second}"} if i % 3 == 0 else {f"d{first}"}
        for i, (first, second) in enumerate(zip(near.tolist(), also, strict=True))
    }
    ours = RetrievalEvaluator(queries, corpus, relevant, name="both")
    theirs = InformationRetrievalEvaluator(
        queries,
        corpus,
        relevant,
        name="both",
        mrr_at_k=[10],
        ndcg_at_k=[10],
        accuracy_at_k=[1],
        precision_recall_at_k=[1, 10, 100],
        map_at_k=[10],
    )
    seconds: dict[str, list[float]] = {"ours": [], "peer": [], "matrix_product": []}
    for _ in range(rounds):
        found = timed(lambda: ours(model), seconds["ours"])
        expected = timed(lambda: theirs(model), seconds["peer"])
        timed(lambda: [block @ documents.T for block in model.queries.split(512)], seconds["matrix_product"])
    step = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "queries": n_queries,
        "documents": n_documents,
        "threads": torch.get_num_threads(),
        **{f"{name}_seconds": round(value, 2) for name, value in step.items()},
        "times_faster": round(step["peer"] / step["ours"], 2),
        "times_faster_by_round": [round(b / a, 2) for a, b in zip(seconds["ours"], seconds["peer"], strict=True)],
        "largest_difference": max(abs(found[f"both_{m}"] - expected[f"both_cosine_{m}"]) for m in RANKING_METRICS),
        "mrr@10": round(found["both_mrr@10"], 4),
    }


def timed(run: Callable[[], Any], seconds: list[float]) -> Any:
    start = time.perf_counter()
    result = run()
    seconds.append(time.perf_counter() - start)
    return result


class Embeddings:
    """Stands for a model whose embeddings are there already: the text "7" has the one in row 7."""

    training = False
    similarity_fn_name = "cosine"
    similarity = staticmethod(cos_sim)

    def __init__(self, queries: torch.Tensor, documents: torch.Tensor):
        self.queries, self.documents = queries, documents
        self.model_card_data = self

    def set_evaluation_metrics(self, *_: Any, **__: Any) -> None:
        """The peer notes its results in a model card; there is none."""

    def eval(self) -> None:
        """Nothing to switch."""

    def train(self, mode: bool) -> None:
        """Nothing to switch."""

    def encode_query(self, texts: list[str], **_: Any) -> torch.Tensor:
        return self.queries[[int(text) for text in texts]]

    def encode_document(self, texts: list[str], **_: Any) -> torch.Tensor:
        return self.documents[[int(text) for text in texts]]


if __name__ == "__main__":
    main()
