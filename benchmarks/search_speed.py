"""Search of a million passages: time a query, alone and in a batch, start-up from disk, recall; the kernels side by side.

    python benchmarks/search_speed.py --part index --folder /tmp/million
    python benchmarks/search_speed.py --part kernels --folder /tmp/million
    python benchmarks/search_speed.py --part encoder --model models/sample --data data/sample

The vectors stand in for E5's: clusters around one common direction, with the spread measured on sentences of KorQuAD and the
base model (length of the mean .89; 98 in 100 cosines of two sentences from .74 to .85; of a question and the best of 1,500
sentences .80 to .96). They are made once and kept in --folder: the index (2.7 GB for a million, texts included), and the
vectors as float32 and float16 for comparison. Recall is of the 10 best against brute force in float32. Times are the least
of --rounds, with the pages in memory. Prints one JSON line.

The encoder's part holds the exports beside `SentenceTransformer.encode` on the same CPU: a question alone (median), passages
a second, the time of a new process until its first embedding (median), all taking turns; the least cosine of an export to
the model; and MRR@10 on the articles of --data that the model did not train on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from search import storage
from search.index import SearchIndex

DIMENSION = 384
MODEL = storage.Model("made by benchmarks/search_speed.py", "0" * 64)
_AT_ONCE = 50_000


def unit(rows: np.ndarray) -> np.ndarray:
    """(N, D) -> float32 rows of length 1."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class Generator:
    """Vectors like E5's. `COMMON`, `CLUSTER` and `OWN` are lengths, squares adding up to 1."""

    COMMON, CLUSTER, OWN = 0.89, 0.32, 0.32
    SLOPE = -0.39  # of the standard deviations of the principal axes, on logarithmic scales

    def __init__(self, clusters: int = 20_000):
        random = np.random.default_rng(0)
        self._axes = np.linalg.qr(random.normal(size=(DIMENSION, DIMENSION)))[0]
        self._spread = np.arange(1, DIMENSION + 1) ** self.SLOPE
        self._common = self._axes[:, -1]
        self._centres = self._directions(random, clusters)

    def _directions(self, random: np.random.Generator, count: int) -> np.ndarray:
        return unit((random.normal(size=(count, DIMENSION)) * self._spread) @ self._axes.T)

    def passages(self, seed: int, count: int) -> np.ndarray:
        """(count, D) float32."""
        random = np.random.default_rng([1, seed])
        centres = self._centres[random.integers(0, len(self._centres), count)]
        return unit(self.COMMON * self._common + self.CLUSTER * centres + self.OWN * self._directions(random, count))

    def queries(self, count: int) -> np.ndarray:
        """(count, D) float32: as far from the passages as a question is from its answer."""
        return self.passages(-1 % 2**32, count)


def prepare(folder: Path, count: int) -> Path:
    """The index and its vectors as float32 and float16, made where they are not there."""
    place = folder / f"{count}"
    if (place / "index" / "index.json").exists():
        return place
    place.mkdir(parents=True, exist_ok=True)
    generator, index = Generator(), SearchIndex()
    exact = np.lib.format.open_memmap(place / "float32.npy", "w+", np.float32, (count, DIMENSION))
    half = np.lib.format.open_memmap(place / "float16.npy", "w+", np.float16, (count, DIMENSION))
    for start in range(0, count, _AT_ONCE):
        rows = generator.passages(start, min(_AT_ONCE, count - start))
        exact[start : start + len(rows)] = half[start : start + len(rows)] = rows
        records = index.check_new(len(rows), None, None)
        for number, record in enumerate(records, start):
            record["passage"] = f"{number}번째 문단. " + "한국어 위키백과의 한 문단쯤 되는 길이의 글이다. " * 10
        index.add(records, [[(0, len(record["passage"]))] for record in records], rows)
    storage.save(index, place / "index", MODEL)
    return place


def seconds(action: Callable[[], Any], rounds: int) -> float:
    """Least time of an action, after one that does not count: what others on the machine take is not in it."""
    action()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_index(options: argparse.Namespace) -> dict[str, Any]:
    """Time a query, alone and of 64, and of start-up; recall@10."""
    folder, count, rounds = options.folder, options.passages, options.rounds
    place = prepare(folder, count)
    index = storage.load(place / "index", MODEL)
    queries = Generator().queries(256)
    for array in index.vectors.parts[0]:  # into the page cache
        array.sum()
    alone = seconds(lambda: index.search(queries[:1], 10), rounds)
    together = seconds(lambda: index.search(queries[:64], 10), rounds) / 64
    found = [[result["index"] for result in results] for results in index.search(queries, 10)]
    truth = brute_force(np.load(place / "float32.npy", mmap_mode="r"), queries, 10)
    recall = np.mean([len(set(ours) & set(right)) / 10 for ours, right in zip(found, truth, strict=True)])
    starts = [start_up(place / "index") for _ in range(rounds)]
    return {
        "part": "index",
        "passages": count,
        "dimension": DIMENSION,
        "threads": os.cpu_count(),
        "query_ms": round(1000 * alone, 3),
        "query_of_64_ms": round(1000 * together, 4),
        "times_cheaper_of_64": round(alone / together, 2),
        "recall_at_10": round(float(recall), 4),
        "start_up_s": round(min(start["load_s"] for start in starts), 3),
        "start_up_and_first_query_s": round(min(start["first_query_s"] for start in starts), 3),
        "start_up_with_imports_s": round(min(start["process_s"] for start in starts), 3),
        "index_mb": round(sum(file.stat().st_size for file in (place / "index").rglob("*")) / 1e6),
    }


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int) -> list[list[int]]:
    """The k best rows of each query, in float32."""
    scores = np.concatenate([vectors[i : i + _AT_ONCE] @ queries.T for i in range(0, len(vectors), _AT_ONCE)])
    return np.argpartition(-scores, k, axis=0)[:k].T.tolist()


def start_up(folder: Path) -> dict[str, float]:
    """In a new process: seconds to load the index, to have its first answer, and with Python's own start and imports."""
    program = (
        "import sys, time, json; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np\n"
        "from search import storage\n"
        "start = time.perf_counter()\n"
        "index = storage.load(sys.argv[2], storage.Model('', '0' * 64))\n"
        "loaded = time.perf_counter()\n"
        "index.search(np.full((1, index.vectors.dimension), index.vectors.dimension ** -.5, np.float32), 10)\n"
        "print(json.dumps({'load_s': loaded - start, 'first_query_s': time.perf_counter() - start}))\n"
    )
    start = time.perf_counter()
    command = [sys.executable, "-c", program, str(REPOSITORY), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout) | {"process_s": time.perf_counter() - start}


# -----------------------------------------------------------------------------------------------------------
# Kernels: the scores of all rows, without looking for the best, but for those that can only search


def measure_kernels(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a query, alone and of 64, for each of the kernels that is installed."""
    folder, count, rounds = options.folder, options.passages, options.rounds
    place = prepare(folder, count)
    index = storage.load(place / "index", MODEL)
    codes = np.array(index.vectors.parts[0].codes)
    queries = Generator().queries(64)
    scales = np.abs(queries).max(axis=1, keepdims=True) / 127
    arrays = {
        "int8": (codes, np.rint(queries / scales).astype(np.int8)),
        "float16": (np.array(np.load(place / "float16.npy", mmap_mode="r")), queries.astype(np.float16)),
        "float32": (np.load(place / "float32.npy", mmap_mode="r"), queries),
    }
    times: dict[str, dict[str, float]] = {}
    for name in options.kernels:
        kind, make = KERNELS[name]
        try:
            action = make(*arrays[kind])
        except ImportError as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
            continue
        times[name] = {
            "ms": round(1000 * seconds(partial(action, 1), rounds), 3),
            "of_64_ms": round(1000 * seconds(partial(action, 64), rounds) / 64, 4),
        }
    return {"part": "kernels", "rows": count, "dimension": DIMENSION, "threads": os.cpu_count(), "kernels": times}


def _numkong(codes: np.ndarray, queries: np.ndarray) -> Callable[[int], Any]:
    import numkong

    def run(n: int) -> None:
        packed, size = numkong.dots_pack(queries[:n], dtype="int8"), (1 << 19) // n
        for start in range(0, len(codes), size):
            numkong.dots_packed(codes[start : start + size], packed)

    return run


def _torch_int8(codes: np.ndarray, queries: np.ndarray) -> Callable[[int], Any]:
    import torch

    left, right = torch.from_numpy(codes), torch.from_numpy(queries)

    def run(n: int) -> None:
        for start in range(0, len(left), 1 << 16):
            torch._int_mm(left[start : start + (1 << 16)], right[:n].T)

    return run


def _torch(vectors: np.ndarray, queries: np.ndarray) -> Callable[[int], Any]:
    import torch

    left, right = torch.from_numpy(vectors), torch.from_numpy(queries)

    def run(n: int) -> None:
        for start in range(0, len(left), 1 << 16):
            left[start : start + (1 << 16)] @ right[:n].T

    return run


def _numpy(vectors: np.ndarray, queries: np.ndarray) -> Callable[[int], Any]:
    def run(n: int) -> None:
        for start in range(0, len(vectors), 1 << 16):
            vectors[start : start + (1 << 16)].astype(np.float32, copy=False) @ queries[:n].astype(np.float32).T

    return run


def _faiss(kind: str) -> Callable[[np.ndarray, np.ndarray], Callable[[int], Any]]:
    def make(vectors: np.ndarray, queries: np.ndarray) -> Callable[[int], Any]:
        import faiss

        faiss.omp_set_num_threads(os.cpu_count())
        index = faiss.IndexScalarQuantizer(DIMENSION, getattr(faiss.ScalarQuantizer, kind), faiss.METRIC_INNER_PRODUCT)
        for start in range(0, len(vectors), _AT_ONCE):
            index.add(vectors[start : start + _AT_ONCE].astype(np.float32))
        return lambda n: index.search(queries[:n].astype(np.float32), 128)

    return make


def _usearch(vectors: np.ndarray, queries: np.ndarray) -> Callable[[int], Any]:
    from usearch.index import MetricKind, search

    return lambda n: search(vectors, queries[:n], 128, MetricKind.IP, exact=True, threads=os.cpu_count())


KERNELS: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], Callable[[int], Any]]]] = {
    "numkong int8": ("int8", _numkong),
    "torch int8": ("int8", _torch_int8),
    "faiss int8, 128 best": ("int8", _faiss("QT_8bit_direct_signed")),
    "usearch int8, 128 best": ("int8", _usearch),
    "numpy int8 as float32": ("int8", _numpy),
    "torch float16": ("float16", _torch),
    "faiss float16, 128 best": ("float16", _faiss("QT_fp16")),
    "usearch float16, 128 best": ("float16", _usearch),
    "numpy float32": ("float32", _numpy),
}

# -----------------------------------------------------------------------------------------------------------
# The encoder: exports beside sentence-transformers on the same CPU

EXPORTS = {
    "float32": {"precision": "float32", "vocabulary": "full"},
    "int8": {"precision": "int8", "vocabulary": "korean"},
    "int8, compact": {"precision": "int8", "vocabulary": "compact"},
}


def measure_encoder(options: argparse.Namespace) -> dict[str, Any]:
    """Latency, bulk rate, load time, agreement and MRR@10 of each export beside sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    from inference import E5KorQuADInference

    evaluators = _held_out(options.model, options.data)
    engines = {name: E5KorQuADInference(options.model, backend="onnx", **kind) for name, kind in EXPORTS.items()}
    peer = SentenceTransformer(options.model, device="cpu")
    queries = evaluators["answers"].query_texts[: options.queries]
    passages = evaluators["paragraphs"].document_texts[: options.bulk]
    alone = {"sentence-transformers": peer.encode_query} | {name: one.encode_query for name, one in engines.items()}
    bulk = {"sentence-transformers": peer.encode_document} | {name: one.encode_passages for name, one in engines.items()}
    truth = peer.encode_document(passages, normalize_embeddings=True)
    return {
        "part": "encoder",
        "model": options.model,
        "threads": os.cpu_count(),
        "query_ms": _medians(alone, queries, 1000),
        "passages_a_second": {
            name: round(len(passages) / seconds, 1)
            for name, seconds in _medians(
                {n: _always(run, passages) for n, run in bulk.items()}, range(options.rounds)
            ).items()
        },
        "load_s": _medians({name: _always(load, name, options.model) for name in alone}, range(options.rounds)),
        "least_cosine": {
            name: round(float((engine.encode_passages(passages) * truth).sum(axis=1).min()), 5)
            for name, engine in engines.items()
        },
        "mrr@10": {
            "sentence-transformers": _mrr(evaluators, peer.encode_query, peer.encode_document),
            **{name: _mrr(evaluators, one.encode_queries, one.encode_passages) for name, one in engines.items()},
        },
    }


def _always(run: Callable[..., Any], *arguments: Any) -> Callable[[Any], Any]:
    """One of `_medians`'s sides that does the same whatever the input."""
    return lambda _: run(*arguments)


def _medians(sides: Mapping[str, Callable[[Any], Any]], inputs: Any, factor: float = 1) -> dict[str, float]:
    """Median seconds, times a factor, of each side over the inputs; the sides take turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run(inputs[0])  # warms up
    for one in inputs:
        for name, run in sides.items():
            start = time.perf_counter()
            run(one)
            times[name].append(time.perf_counter() - start)
    return {name: round(factor * float(np.median(values)), 3) for name, values in times.items()}


def load(name: str, model: str) -> None:
    """A new process, until its first embedding."""
    program = "import sys; sys.path.insert(0, sys.argv[1])\n" + (
        "from sentence_transformers import SentenceTransformer\n"
        "SentenceTransformer(sys.argv[2], device='cpu').encode_query('한글은 누가 만들었나?')\n"
        if name not in EXPORTS
        else "from inference import E5KorQuADInference\n"
        f"E5KorQuADInference(sys.argv[2], backend='onnx', **{EXPORTS[name]}).encode_query('한글은 누가 만들었나?')\n"
    )
    subprocess.run([sys.executable, "-c", program, str(REPOSITORY), model], capture_output=True, check=True)


def _held_out(model: str, data: str) -> dict[str, Any]:
    """Task → evaluator on the articles that the model's training held out."""
    from config import TrainingConfig
    from dataloader import load_cached_dataset, prepare_retrieval_sets, window_size
    from trainer.evaluation import RetrievalEvaluator

    config = TrainingConfig.load(Path(model, "training_config.json"))
    dataset = load_cached_dataset(data, 2, verbose=False, window=window_size(config))
    sets = prepare_retrieval_sets(dataset, config, "held_out")
    return {task: RetrievalEvaluator(*texts, name=task) for task, texts in sets.items()}


def _mrr(evaluators: dict[str, Any], encode_queries: Any, encode_documents: Any) -> dict[str, float]:
    """Task → MRR@10."""
    import torch

    found = {}
    for task, evaluator in evaluators.items():
        queries, documents = encode_queries(evaluator.query_texts), encode_documents(evaluator.document_texts)
        metrics = evaluator.metrics_of(torch.from_numpy(queries), torch.from_numpy(documents))
        found[task] = round(float(metrics["mrr@10"].mean()), 4)
    return found


PARTS = {"index": measure_index, "kernels": measure_kernels, "encoder": measure_encoder}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Speed of the search.", allow_abbrev=False)
    parser.add_argument("--part", choices=PARTS, default="index", help="what to measure")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/search_speed"), help="where the vectors are kept")
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS), metavar="NAME", help="of this part")
    parser.add_argument("--model", default="models/sample", help="a trained model (encoder)")
    parser.add_argument("--data", default="data/sample", help="KorQuAD file or folder that it was trained on (encoder)")
    parser.add_argument("--queries", type=int, default=200, help="questions timed alone (encoder)")
    parser.add_argument("--bulk", type=int, default=200, help="passages timed together (encoder)")
    options = parser.parse_args()
    print(json.dumps(PARTS[options.part](options), ensure_ascii=False))


if __name__ == "__main__":
    main()
