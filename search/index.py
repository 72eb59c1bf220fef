"""Passages that can be searched: their texts, ids and metadata beside the vectors of their windows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from search.errors import InferenceError
from search.vectors import Grown, Vectors
from search.windows import Span

# {"id": str, "passage": str}, and "metadata": dict where there is any
Record = dict[str, Any]
Skip = Callable[[str], bool]  # a passage's text → whether to leave it out of a query's results

_MORE_WINDOWS = 4  # times as many are asked for, where many windows of one passage crowd out other passages
_SHOWN_IDS = 3  # in a message
_PASSAGES_AT_ONCE = 1000  # copied at once


class Records(Protocol):
    """Records by position: a list, or lines of a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, position: int, /) -> Record: ...


class SearchIndex:
    """Passages in the order in which they were added; searched by their windows, each passage found by its best.

    Knows no model: it is given vectors and asked with vectors.
    """

    def __init__(
        self,
        records: Records | None = None,
        windows: np.ndarray | None = None,
        vectors: Vectors | None = None,
        next_id: int = 0,
    ):
        self.vectors = vectors or Vectors()
        self._windows = Grown(np.empty((0, 3), np.uint32) if windows is None else windows)
        self.saved_as: tuple[str, str] | None = None  # the folder it was loaded from or saved to, and the state of that
        self._saved: Records = records if records is not None else []
        self._added: list[Record] = []
        self._kept_windows: Grown | None = None
        self._removed = Grown(np.zeros(len(self._saved), bool))
        self._positions: dict[str, int] | None = None
        self.next_id = next_id  # the id of the next passage that is given none

    @property
    def windows(self) -> np.ndarray:
        """(M, 3) uint32: record, first character, the one behind the last."""
        return self._windows.rows

    @property
    def kept_windows(self) -> np.ndarray | None:
        """(M,) bool, False for those of removed passages. None: all are kept."""
        return None if self._kept_windows is None else self._kept_windows.rows

    def __len__(self) -> int:
        return len(self._removed.rows) - int(np.count_nonzero(self._removed.rows))

    def __contains__(self, passage_id: object) -> bool:
        return passage_id in self._by_id()

    def empty(self) -> bool:
        """Whether no passage is there."""
        return not len(self)

    def check_new(self, count: int, ids: Iterable[str] | None, metadata: Iterable[Mapping | None] | None) -> list[Record]:
        """Records without texts for `count` new passages, before the work of encoding them. Changes nothing.

        Raises InferenceError: not one for each passage, ids that are not text or not unique, metadata JSON cannot hold.
        """
        known = self._by_id()
        if ids is None:  # numbers that are free: one's own ids may be numbers too
            free = (str(number) for number in itertools.count(self.next_id) if str(number) not in known)
            new_ids = list(itertools.islice(free, count))
        else:
            new_ids = one_each(ids, count, "ids")
        check_ids(new_ids)
        double = [new_id for new_id in new_ids if new_id in known]
        if double:
            raise InferenceError(f"{listed(double)} in the index already: remove the old passage first, or use another id.")
        return check_metadata([{"id": new_id} for new_id in new_ids], metadata)

    def add(self, records: Sequence[Record], windows: Sequence[Sequence[Span]], vectors: np.ndarray) -> None:
        """Add passages that `check_new` let pass: their windows, and (M, D) float32 vectors of all of these in order."""
        if not records:
            return
        first = len(self._removed.rows)
        rows = [(first + number, *span) for number, spans in enumerate(windows) for span in spans]
        self._windows.add(np.array(rows, np.uint32))
        self.vectors.append(vectors)
        self._added += records
        self._removed.add(np.zeros(len(records), bool))
        if self._kept_windows is not None:
            self._kept_windows.add(np.ones(len(rows), bool))
        self._by_id().update({record["id"]: first + number for number, record in enumerate(records)})
        self.next_id += len(records)
        while str(self.next_id) in self._by_id():  # beyond those given, which may have left out one's own numbers
            self.next_id += 1

    def remove(self, ids: Iterable[str]) -> None:
        """Take passages out. Raises InferenceError where one is not there, and then takes none out."""
        given = ids_of(ids)
        known = self._by_id()
        unknown = [passage_id for passage_id in given if passage_id not in known]
        if unknown:
            raise InferenceError(f"{listed(unknown)} not in the index: nothing was removed.")
        for passage_id in dict.fromkeys(given):
            self._removed.rows[known.pop(passage_id)] = True
        self._kept_windows = Grown(~self._removed.rows[self.windows[:, 0]])

    def search(self, queries: np.ndarray, top_k: int, skips: Sequence[Skip] | None = None) -> list[list[dict[str, Any]]]:
        """For each of (Q, D) queries the best passages; `skips`: for each query, whether to leave a passage out.

        Each is `{"rank", "passage", "score", "index", "id", "metadata"}`; index: its position among the passages. Where
        the passage has several windows, "span" is the best one's first character and the one behind its last.
        """
        wanted, windows = min(top_k, len(self)), min(top_k, len(self.vectors))
        answers: list[list[dict[str, Any]]] = [[] for _ in queries]
        open_queries = list(range(len(queries)))
        while open_queries:
            top = self.vectors.top(queries[open_queries], windows, self.kept_windows)
            for number, (rows, scores) in zip(open_queries, top, strict=True):
                answers[number] = self._results(rows, scores, wanted, skips[number] if skips else None)
            if windows == len(self.vectors):  # that was all
                break
            open_queries = [number for number in open_queries if len(answers[number]) < wanted]
            windows = min(windows * _MORE_WINDOWS, len(self.vectors))
        return answers

    def ids(self) -> list[str]:
        """Of all passages, in order."""
        return list(self._by_id())

    def record(self, number: int) -> Record:
        """The record at a place, removed ones counted."""
        saved = len(self._saved)
        return self._saved[number] if number < saved else self._added[number - saved]

    def kept(self) -> np.ndarray:
        """(N,) places of the records that were not removed, ascending."""
        return np.flatnonzero(~self._removed.rows)

    def batches(self) -> Iterator[tuple[list[Record], list[list[Span]], np.ndarray]]:
        """All that is in the index, as `add` takes it, some passages at a time."""
        kept = self.kept()
        for start in range(0, len(kept), _PASSAGES_AT_ONCE):
            some = kept[start : start + _PASSAGES_AT_ONCE]
            rows = np.arange(*np.searchsorted(self.windows[:, 0], [some[0], some[-1] + 1]))
            rows = rows if self.kept_windows is None else rows[self.kept_windows[rows]]
            spans: dict[int, list[Span]] = {number: [] for number in some.tolist()}
            for number, begin, end in self.windows[rows].tolist():
                spans[number].append((begin, end))
            yield [self.record(number) for number in spans], list(spans.values()), self.vectors.rows(rows)

    def _results(self, rows: np.ndarray, scores: np.ndarray, wanted: int, skip: Skip | None) -> list[dict[str, Any]]:
        best: dict[int, dict[str, Any]] = {}
        for (number, begin, end), score in zip(self.windows[rows].tolist(), scores.tolist(), strict=True):
            if len(best) == wanted:
                break
            if number in best:
                continue
            record = self.record(number)
            if skip is not None and skip(record["passage"]):
                continue
            best[number] = {
                "rank": len(best) + 1,
                "passage": record["passage"],
                "score": score,
                "index": number - int(np.count_nonzero(self._removed.rows[:number])),
                "id": record["id"],
                "metadata": record.get("metadata", {}),
            }
            if (begin, end) != (0, len(record["passage"])):
                best[number]["span"] = (begin, end)
        return list(best.values())

    def _by_id(self) -> dict[str, int]:
        """Id → place. Made when first asked for: a search of a saved index does without."""
        if self._positions is None:
            self._positions = {self.record(number)["id"]: number for number in self.kept().tolist()}
        return self._positions


def check_ids(ids: Sequence[str]) -> None:
    """Raises InferenceError: not text, empty, not valid Unicode, or one of them twice."""
    seen: set[str] = set()
    for position, new_id in enumerate(ids):
        if not isinstance(new_id, str):
            raise InferenceError(f"ids[{position}] must be text, not {type(new_id).__name__}: {new_id!r:.60}.")
        if not new_id.strip():
            raise InferenceError(f"ids[{position}] is empty: give each passage an id, or none to all.")
        if new_id in seen:
            raise InferenceError(f"ids[{position}] is {new_id!r:.60} for the second time: an id stands for one passage.")
        if not _is_unicode(new_id):
            raise InferenceError(f"ids[{position}] is not valid Unicode: {new_id!r:.60}.")
        seen.add(new_id)


def check_metadata(records: list[Record], metadata: Iterable[Mapping | None] | None) -> list[Record]:
    """The records with their metadata. Raises InferenceError: not one for each, not a dict, or what JSON cannot hold."""
    if metadata is not None:
        for position, (record, data) in enumerate(zip(records, one_each(metadata, len(records), "metadata"), strict=True)):
            if data is not None and data != {}:
                record["metadata"] = _plain(data, f"metadata[{position}]")
    return records


def ids_of(ids: Iterable[str]) -> list[str]:
    """A list of ids. Raises InferenceError for a single one."""
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
        raise InferenceError(f"ids must be a list of ids, not {type(ids).__name__}: put a single one in a list.")
    return list(ids)


def one_each(values: Iterable[Any], count: int, name: str) -> list[Any]:
    """A list of one value for each passage. Raises InferenceError where it is none."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InferenceError(f"{name} must be a list with one entry for each passage, not {type(values).__name__}.")
    listed = list(values)
    if len(listed) != count:
        raise InferenceError(f"{count:,} passages and {len(listed):,} {name}: give one for each passage.")
    return listed


def _plain(data: Any, name: str) -> dict[str, Any]:
    """What JSON makes of metadata: what is saved, and what a search gives back before and after."""
    if not isinstance(data, Mapping):
        raise InferenceError(f"{name} must be a dict, not {type(data).__name__}: {data!r:.60}.")
    try:
        text = json.dumps(dict(data), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InferenceError(f"{name} holds what JSON cannot: {error}.") from None
    if not _is_unicode(text):
        raise InferenceError(f"{name} is not valid Unicode.")
    return json.loads(text)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def listed(ids: Sequence[str]) -> str:
    """Some ids as the subject of a sentence: `'a', 'b' are`."""
    shown = ", ".join(f"{passage_id!r:.60}" for passage_id in ids[:_SHOWN_IDS])
    more = f" and {len(ids) - _SHOWN_IDS:,} more" if len(ids) > _SHOWN_IDS else ""
    return f"{shown}{more} {'is' if len(ids) == 1 else 'are'}"
