"""An index kept by Chroma: for more passages than one process should scan, or for several processes at once.

    model.use_chroma("my_chroma")                          # embedded: a folder
    model.use_chroma(host="127.0.0.1", port=8000)          # a server: `chroma run --path my_chroma`

Chroma's search is approximate (HNSW). Each window is one record of the collection: its text as the document, its place and
the passage's metadata (as JSON) beside it. What a collection remembers of the model keeps others out.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from search.errors import InferenceError
from search.index import Record, Skip, check_ids, check_metadata, ids_of, listed, one_each
from search.storage import Model
from search.windows import Span

_VERSION = 1
_AT_ONCE = 1000  # records sent or asked for in one call
_MORE_WINDOWS = 4


class ChromaIndex:
    """The methods of SearchIndex on a Chroma collection. Results have no "index": a collection keeps no order."""

    def __init__(self, collection: Any):
        self._collection = collection

    @classmethod
    def open(cls, path: str | None, host: str | None, port: int, name: str, model: Model) -> ChromaIndex:
        """The collection of this name, made where it is not there.

        Raises:
            InferenceError: chromadb is not installed, there is no server, or another model made the collection.
        """
        try:
            import chromadb
            from chromadb.config import Settings
        except ImportError:
            raise InferenceError("Chroma is not installed: pip install -r requirements-search.txt") from None
        settings = Settings(anonymized_telemetry=False)
        with _explained("Chroma cannot be opened"):
            if host is not None:
                client = chromadb.HttpClient(host=host, port=port, settings=settings)
            else:
                client = chromadb.PersistentClient(str(path), settings=settings)
            collection = client.get_or_create_collection(
                name,
                embedding_function=None,
                configuration={"hnsw": {"space": "cosine"}},
                metadata={"model": model.name, "fingerprint": model.fingerprint, "version": _VERSION},
            )
        found = collection.metadata or {}
        if found.get("version") != _VERSION:
            raise InferenceError(f"The Chroma collection {name!r} holds something else: name another one.")
        if found["fingerprint"] != model.fingerprint:
            raise InferenceError(
                f"The Chroma collection {name!r} was made with the model {found['model']} ({found['fingerprint'][:12]}), "
                f"not with {model.name} ({model.fingerprint[:12]}): name another collection, or use that model."
            )
        return cls(collection)

    def empty(self) -> bool:
        """Whether no passage is there."""
        return not self._count()

    def check_new(self, count: int, ids: Iterable[str] | None, metadata: Iterable[Mapping | None] | None) -> list[Record]:
        """As SearchIndex.check_new; passages that are given no id get a random one, since other processes add, too."""
        new_ids = one_each(ids, count, "ids") if ids is not None else [uuid.uuid4().hex for _ in range(count)]
        check_ids(new_ids)
        double = [new_id for new_id, number in zip(new_ids, self._window_counts(new_ids), strict=True) if number]
        if double:
            raise InferenceError(f"{listed(double)} in the collection already: remove the old passage first.")
        return check_metadata([{"id": new_id} for new_id in new_ids], metadata)

    def add(self, records: Sequence[Record], windows: Sequence[Sequence[Span]], vectors: np.ndarray) -> None:
        """As SearchIndex.add."""
        rows: list[tuple[str, str, dict[str, Any], int]] = []
        row = 0
        for record, spans in zip(records, windows, strict=True):
            shared = {
                "passage_id": record["id"],
                "windows": len(spans),
                "metadata": json.dumps(record.get("metadata", {}), ensure_ascii=False),
            }
            own = [
                (
                    f"{record['id']}#{number}",
                    record["passage"][begin:end],
                    {**shared, "begin": begin, "end": end},
                    row + number,
                )
                for number, (begin, end) in enumerate(spans)
            ]
            rows += reversed(own)  # the first window last: with it the passage counts as there
            row += len(spans)
        with _explained("Chroma cannot add the passages"):
            for start in range(0, len(rows), _AT_ONCE):
                window_ids, texts, metadatas, places = zip(*rows[start : start + _AT_ONCE], strict=True)
                self._collection.upsert(
                    ids=list(window_ids),
                    documents=list(texts),
                    metadatas=list(metadatas),
                    embeddings=np.ascontiguousarray(vectors[list(places)]),
                )

    def remove(self, ids: Iterable[str]) -> None:
        """As SearchIndex.remove."""
        given = list(dict.fromkeys(ids_of(ids)))
        counts = self._window_counts(given)
        unknown = [passage_id for passage_id, count in zip(given, counts, strict=True) if not count]
        if unknown:
            raise InferenceError(f"{listed(unknown)} not in the collection: nothing was removed.")
        names = [f"{passage_id}#{n}" for passage_id, count in zip(given, counts, strict=True) for n in range(count)]
        with _explained("Chroma cannot remove the passages"):
            for start in range(0, len(names), _AT_ONCE):
                self._collection.delete(ids=names[start : start + _AT_ONCE])

    def search(self, queries: np.ndarray, top_k: int, skips: Sequence[Skip] | None = None) -> list[list[dict[str, Any]]]:
        """As SearchIndex.search; a passage of several windows is never left out."""
        total = self._count()
        each = skips or itertools.repeat(None, len(queries))
        return [self._search_one(query, top_k, total, skip) for query, skip in zip(queries, each, strict=True)]

    def _search_one(self, query: np.ndarray, top_k: int, total: int, skip: Skip | None) -> list[dict[str, Any]]:
        asked = min(_MORE_WINDOWS * top_k, total)
        while True:
            with _explained("Chroma cannot search"):
                found = self._collection.query(
                    query_embeddings=query[None], n_results=asked, include=["documents", "metadatas", "distances"]
                )
            best: dict[str, tuple[dict[str, Any], str, float]] = {}
            for place, text, distance in zip(
                found["metadatas"][0], found["documents"][0], found["distances"][0], strict=True
            ):
                if skip is not None and place["windows"] == 1 and skip(text):
                    continue
                best.setdefault(place["passage_id"], (place, text, min(1 - distance, 1.0)))
            if len(best) >= top_k or asked == total:
                break
            asked = min(asked * _MORE_WINDOWS, total)
        results: list[dict[str, Any]] = []
        for place, text, score in list(best.values())[:top_k]:
            passage = self._whole_text(place, text)
            if passage is not None:
                results.append(_result(len(results) + 1, place, passage, score))
        return results

    def _whole_text(self, place: dict[str, Any], text: str) -> str | None:
        """The passage that a window is of; None where an interrupted `add` left it incomplete."""
        if place["windows"] == 1:
            return text
        names = [f"{place['passage_id']}#{number}" for number in range(place["windows"])]
        with _explained("Chroma cannot read a passage"):
            parts = [
                self._collection.get(ids=names[start : start + _AT_ONCE], include=["documents", "metadatas"])
                for start in range(0, len(names), _AT_ONCE)
            ]
        windows = sorted(
            (metadata["begin"], document)
            for part in parts
            for metadata, document in zip(part["metadatas"], part["documents"], strict=True)
        )
        if len(windows) < len(names):
            return None
        ends = [begin for begin, _ in windows[1:]] + [windows[-1][0] + len(windows[-1][1])]
        return "".join(document[: end - begin] for (begin, document), end in zip(windows, ends, strict=True))

    def _window_counts(self, ids: Sequence[str]) -> list[int]:
        """How many windows each of these passages has; 0 where it is not there."""
        counts: dict[str, int] = {}
        with _explained("Chroma cannot look up ids"):
            for start in range(0, len(ids), _AT_ONCE):
                names = [f"{passage_id}#0" for passage_id in ids[start : start + _AT_ONCE]]
                found = self._collection.get(ids=names, include=["metadatas"])
                counts.update((place["passage_id"], place["windows"]) for place in found["metadatas"])
        return [counts.get(passage_id, 0) for passage_id in ids]

    def _count(self) -> int:
        with _explained("Chroma does not answer"):
            return self._collection.count()


def _result(rank: int, place: dict[str, Any], passage: str, score: float) -> dict[str, Any]:
    metadata = json.loads(place["metadata"])
    result = {"rank": rank, "passage": passage, "score": score, "id": place["passage_id"], "metadata": metadata}
    return result | ({"span": (place["begin"], place["end"])} if place["windows"] > 1 else {})


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what Chroma raises, of whatever class, into a message."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise InferenceError(f"{what}: {reason}.") from error
