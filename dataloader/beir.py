"""Retrieval sets in BEIR's layout: a folder of queries.jsonl, corpus.jsonl and relevance judgements.

    found = load_beir("data/some_set")              # the judgements of qrels.jsonl, or else of qrels/test.tsv
    found = load_beir("data/some_set", "dev")       # of qrels/dev.tsv

One JSON object a line: `{"_id": "q1", "text": "..."}` for queries, `{"_id": "d1", "title": "...", "text": "..."}` for the
corpus (the title stands in front of the text, as in BEIR's own evaluation), `{"query-id": "q1", "corpus-id": "d1",
"score": 1}` for judgements, which may also be a table of these three columns. A score above 0 is relevant
(arXiv:2104.08663, https://github.com/beir-cellar/beir).
"""

import codecs
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from dataloader.loader import DatasetError
from dataloader.pairs import RetrievalSet

logger = logging.getLogger(__name__)

_QUERIES, _CORPUS, _QRELS = "queries.jsonl", "corpus.jsonl", "qrels.jsonl"


class _Text(msgspec.Struct):
    id: str | int = msgspec.field(name="_id")
    text: str
    title: str | None = None


class _Judgement(msgspec.Struct):
    query: str | int = msgspec.field(name="query-id")
    document: str | int = msgspec.field(name="corpus-id")
    score: float


def is_beir(folder: str | Path) -> bool:
    """Whether this is a folder with queries or a corpus in BEIR's layout."""
    return any((Path(folder) / name).is_file() for name in (_QUERIES, _CORPUS))


def load_beir(folder: str | Path, split: str | None = None) -> RetrievalSet:
    """Read a folder. `split` names a file of `qrels/`; without it qrels.jsonl, qrels/test.tsv or the only file there is.

    What is judged but not there, and queries without a relevant document, are counted and logged.

    Raises DatasetError naming file and line: a file is missing or cannot be read, a line is not what it should be, an id is
    there twice, nothing relevant is left.
    """
    folder = Path(folder)
    judgements = _judgements_file(folder, split)
    queries = {name: text for name, _, text in _texts(folder / _QUERIES)}
    corpus = {name: f"{title} {text}" if title else text for name, title, text in _texts(folder / _CORPUS)}
    relevant: dict[str, set[str]] = {}
    judged = lost = 0
    for query, document in _relevant_pairs(judgements):
        judged += 1
        if query in queries and document in corpus:
            relevant.setdefault(query, set()).add(document)
        else:
            lost += 1
    if lost:
        logger.warning("%s: %d of %d relevant pairs name a text that is not there: left out", judgements, lost, judged)
    if not relevant:
        raise DatasetError(
            f"{judgements}: no query of {_QUERIES} has a relevant document in {_CORPUS}; are the ids the same?"
        )
    if len(relevant) < len(queries):
        logger.info("%s: %d of %d queries have a relevant document; these are asked", folder, len(relevant), len(queries))
    return RetrievalSet({name: text for name, text in queries.items() if name in relevant}, corpus, relevant)


def _judgements_file(folder: Path, split: str | None) -> Path:
    tables = {path.stem: path for path in sorted((folder / "qrels").glob("*.tsv"))}
    if split is not None:
        if split not in tables:
            there = ", ".join(tables) or "none"
            raise DatasetError(f"{folder}: there are no judgements qrels/{split}.tsv; the splits there are: {there}")
        return tables[split]
    if (folder / _QRELS).is_file():
        return folder / _QRELS
    if "test" in tables or len(tables) == 1:
        return tables.get("test") or next(iter(tables.values()))
    if tables:
        raise DatasetError(f"{folder}: qrels/ holds {', '.join(tables)}; say which to use")
    raise DatasetError(f"{folder}: no judgements: looked for {_QRELS} and qrels/*.tsv")


def _texts(file: Path) -> Iterator[tuple[str, str, str]]:
    """(id, title, text) of each line."""
    decode = msgspec.json.Decoder(_Text).decode
    seen = set()
    for number, line in _lines(file):
        found: _Text = _decoded(decode, line, file, number)
        if (name := str(found.id)) in seen:
            raise DatasetError(f"{file}: line {number}: the _id {name!r} is there twice")
        seen.add(name)
        yield name, found.title or "", found.text


def _relevant_pairs(file: Path) -> Iterator[tuple[str, str]]:
    """(query id, document id) of each judgement above 0."""
    decode = msgspec.json.Decoder(_Judgement).decode
    for number, line in _lines(file):
        if file.suffix == ".tsv":
            try:
                query, document, score = line.decode().rstrip("\r\n").split("\t")
                if number == 1 and score == "score":
                    continue
                relevance = float(score)
            except ValueError:  # UnicodeDecodeError is one
                raise DatasetError(
                    f"{file}: line {number}: should be query-id, corpus-id and score, with a tab between each"
                ) from None
        else:
            found: _Judgement = _decoded(decode, line, file, number)
            query, document, relevance = str(found.query), str(found.document), found.score
        if relevance > 0:
            yield query, document


def _decoded(decode: Any, line: bytes, file: Path, number: int) -> Any:
    try:
        return decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: line {number}: {error}") from None


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Number and content of each line that is not blank, without a byte-order mark."""
    try:
        with file.open("rb") as opened:
            for number, line in enumerate(opened, start=1):
                content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if content.strip():
                    yield number, content
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror or error}") from None
