"""BEIR's layout: what is read, which judgements, and what is wrong with a file, by line."""

import json
import logging

import pytest

from dataloader.beir import is_beir, load_beir
from dataloader.loader import DatasetError

QUERIES = [{"_id": "q1", "text": "수도는?"}, {"_id": 2, "text": "왕은?", "metadata": {"x": 1}}, {"_id": "q3", "text": "?"}]
CORPUS = [
    {"_id": "d1", "title": "서울", "text": "대한민국의 수도."},
    {"_id": "d2", "title": "", "text": "세종은 왕이다."},
    {"_id": "d3", "text": "아무것도"},
]
QRELS = [
    {"query-id": "q1", "corpus-id": "d1", "score": 2},
    {"query-id": 2, "corpus-id": "d2", "score": 1},
    {"query-id": 2, "corpus-id": "d3", "score": 0},
]
TABLE = "query-id\tcorpus-id\tscore\nq1\td2\t1\n"


def write(folder, **files):
    """`name=content`: a list is written as JSON lines to name.jsonl; text as a table to qrels/name.tsv."""
    for name, content in files.items():
        if isinstance(content, str):
            (folder / "qrels").mkdir(exist_ok=True)
            (folder / "qrels" / f"{name}.tsv").write_text(content, encoding="utf-8")
        else:
            lines = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in content]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_texts_and_judgements(tmp_path, caplog):
    write(tmp_path, queries=QUERIES, corpus=CORPUS, qrels=QRELS)
    assert is_beir(tmp_path) and not is_beir(tmp_path / "corpus.jsonl") and not is_beir(tmp_path / "elsewhere")
    with caplog.at_level(logging.INFO):
        found = load_beir(tmp_path)
    assert found.queries == {"q1": "수도는?", "2": "왕은?"}
    assert found.corpus == {"d1": "서울 대한민국의 수도.", "d2": "세종은 왕이다.", "d3": "아무것도"}
    assert found.relevant_docs == {"q1": {"d1"}, "2": {"d2"}}  # a score of 0 is judged, not relevant
    assert "2 of 3 queries have a relevant document" in caplog.text


def test_the_split_names_the_table(tmp_path):
    write(tmp_path, queries=QUERIES, corpus=CORPUS, test=TABLE, dev="q1\td3\t1\r\n\n")
    assert load_beir(tmp_path).relevant_docs == {"q1": {"d2"}}
    assert load_beir(tmp_path, "dev").relevant_docs == {"q1": {"d3"}}  # no header, Windows lines
    with pytest.raises(DatasetError, match=r"no judgements qrels/train\.tsv; the splits there are: dev, test"):
        load_beir(tmp_path, "train")


def test_which_judgements_without_a_split(tmp_path):
    write(tmp_path, queries=QUERIES, corpus=CORPUS)
    with pytest.raises(DatasetError, match=r"no judgements: looked for qrels\.jsonl and qrels/\*\.tsv"):
        load_beir(tmp_path)
    write(tmp_path, dev=TABLE)
    assert load_beir(tmp_path).relevant_docs == {"q1": {"d2"}}
    write(tmp_path, train=TABLE)
    with pytest.raises(DatasetError, match="qrels/ holds dev, train; say which to use"):
        load_beir(tmp_path)
    write(tmp_path, qrels=QRELS)
    assert load_beir(tmp_path).relevant_docs["q1"] == {"d1"}


def test_what_is_judged_but_not_there_is_counted(tmp_path, caplog):
    more = [{"query-id": "q1", "corpus-id": "d9", "score": 1}, {"query-id": "q9", "corpus-id": "d1", "score": 1}]
    write(tmp_path, queries=QUERIES, corpus=CORPUS, qrels=[*QRELS, *more])
    with caplog.at_level(logging.WARNING):
        assert load_beir(tmp_path).relevant_docs == {"q1": {"d1"}, "2": {"d2"}}
    assert "2 of 4 relevant pairs name a text that is not there: left out" in caplog.text


def test_a_byte_order_mark_and_blank_lines(tmp_path):
    write(tmp_path, queries=["\ufeff" + json.dumps(QUERIES[0]), "", "  "], corpus=CORPUS, qrels=QRELS[:1])
    assert load_beir(tmp_path).queries == {"q1": "수도는?"}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"queries": ["{}"]}, r"queries\.jsonl: line 1: .*`_id`"),
        ({"queries": [QUERIES[0], '{"_id": "q2"}']}, r"queries\.jsonl: line 2: .*`text`"),
        ({"corpus": [CORPUS[0], {"_id": "d2", "text": 5}]}, r"corpus\.jsonl: line 2: Expected `str`, got `int`"),
        ({"corpus": [CORPUS[0], "", "not JSON"]}, r"corpus\.jsonl: line 3: JSON is malformed"),
        ({"corpus": ["[" * 100_000]}, r"corpus\.jsonl: line 1: "),
        ({"corpus": [CORPUS[0], CORPUS[0]]}, r"corpus\.jsonl: line 2: the _id 'd1' is there twice"),
        ({"qrels": [{"query-id": "q1", "corpus-id": "d1", "score": "high"}]}, r"qrels\.jsonl: line 1: .*`\$\.score`"),
        ({"qrels": [{"query-id": "d1", "corpus-id": "q1", "score": 1}]}, "no query .* has a relevant document .*the same"),
    ],
)
def test_what_is_wrong_is_named_by_line(tmp_path, files, said):
    write(tmp_path, **({"queries": QUERIES, "corpus": CORPUS, "qrels": QRELS} | files))
    with pytest.raises(DatasetError, match=said):
        load_beir(tmp_path)


@pytest.mark.parametrize("table", ["q1 d1 1\n", "query-id\tcorpus-id\tscore\nq1\td1\thigh\n", "q1\t0\td1\t1\n"])
def test_a_table_of_another_shape_is_named_by_line(tmp_path, table):
    write(tmp_path, queries=QUERIES, corpus=CORPUS, test=table)
    number = table.count("\n")
    with pytest.raises(DatasetError, match=rf"test\.tsv: line {number}: should be query-id, corpus-id and score"):
        load_beir(tmp_path)


def test_bytes_that_are_no_text(tmp_path):
    write(tmp_path, queries=QUERIES, corpus=CORPUS, test=TABLE)
    (tmp_path / "qrels" / "test.tsv").write_bytes(b"q\xff\td1\t1\n")
    with pytest.raises(DatasetError, match=r"test\.tsv: line 1: should be"):
        load_beir(tmp_path)
    (tmp_path / "corpus.jsonl").write_bytes(b'{"_id": "d1", "text": "\xff"}\n')
    with pytest.raises(DatasetError, match=r"corpus\.jsonl: line 1: "):
        load_beir(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    write(tmp_path, queries=QUERIES, qrels=QRELS)
    assert is_beir(tmp_path)
    with pytest.raises(DatasetError, match=r"corpus\.jsonl: cannot be read: No such file"):
        load_beir(tmp_path)
