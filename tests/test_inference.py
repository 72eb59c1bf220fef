"""Search: embeddings and prefixes, ranking, bad input, finding the model, and the command line."""

import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import inference
from config import SAMPLE_RECIPE, TrainingConfig, read_recipe
from inference import DEFAULT_MODEL_PATH, E5KorQuADInference, InferenceError, main
from search import vectors

REPOSITORY = Path(inference.__file__).parent
PASSAGES = ["서울은 수도이다.", "한라산은 제주도에 있다.", "김치는 발효 음식이다.", "빛은 빠르다."]


@pytest.fixture(scope="module")
def engine(toy_model_dir: Path) -> E5KorQuADInference:
    return E5KorQuADInference(toy_model_dir, device="cpu")


@pytest.fixture
def copied_model(toy_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the toy model to damage."""
    return Path(shutil.copytree(toy_model_dir, tmp_path / "copied model"))


@pytest.fixture
def fixed_scores(engine: E5KorQuADInference, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], None]:
    """Let a passage's similarity to every query be the number given for its text."""

    def fix(cosines: dict[str, float]) -> None:
        def encode(texts: list[str], side: str, *_: Any) -> np.ndarray:
            if side == "query":
                return np.array([[1.0, 0.0]] * len(texts), np.float32)
            return np.array([[cosines[text], (1 - cosines[text] ** 2) ** 0.5] for text in texts], np.float32)

        monkeypatch.setattr(engine, "_encode", encode)

    return fix


# -----------------------------------------------------------------------------------------------------------
# Embeddings


def test_shapes_types_and_length(engine: E5KorQuADInference) -> None:
    for one in (engine.encode_query("수도는?"), engine.encode_passage("서울")):
        assert one.shape == (32,) and one.dtype == np.float32
        assert np.linalg.norm(one) == pytest.approx(1, abs=1e-6)
    for several in (engine.encode_queries(PASSAGES), engine.encode_passages(PASSAGES, batch_size=3)):
        assert several.shape == (4, 32) and several.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(several, axis=1), 1, atol=1e-6)
    for none in (engine.encode_queries([]), engine.encode_passages([])):
        assert none.shape == (0, 32) and none.dtype == np.float32


def test_prefixes_are_added_once(engine: E5KorQuADInference, toy_model: SentenceTransformer) -> None:
    def plain(text: str) -> np.ndarray:
        return toy_model.encode(text, prompt="", normalize_embeddings=True)

    np.testing.assert_allclose(engine.encode_query("수도는?"), plain("query: 수도는?"), atol=1e-6)
    np.testing.assert_allclose(engine.encode_passages(["서울"])[0], plain("passage: 서울"), atol=1e-6)
    assert np.abs(engine.encode_query("수도는?") - plain("query: query: 수도는?")).max() > 1e-3


def test_a_prefix_in_the_text_is_not_doubled(engine: E5KorQuADInference) -> None:
    np.testing.assert_array_equal(engine.encode_query("query: 수도는?"), engine.encode_query("수도는?"))
    np.testing.assert_array_equal(engine.encode_passage("passage: 서울"), engine.encode_passage("서울"))
    prefixed = [f"passage: {text}" for text in PASSAGES]
    with_prefix, without = engine.search("query: 산?", prefixed), engine.search("산?", PASSAGES)
    assert [r["index"] for r in with_prefix] == [r["index"] for r in without]
    assert [r["score"] for r in with_prefix] == pytest.approx([r["score"] for r in without], abs=1e-6)
    assert with_prefix[0]["passage"] == f"passage: {without[0]['passage']}"  # as given
    # Only its own side's prefix, and only one.
    assert np.abs(engine.encode_query("passage: 서울") - engine.encode_query("서울")).max() > 1e-3
    assert np.abs(engine.encode_query("query: query: 서울") - engine.encode_query("서울")).max() > 1e-3


@pytest.mark.parametrize(
    ("stored", "said"),
    [({}, True), ({"query": "query: "}, True), ({"query": "query: ", "passage": "passage: "}, False)],
)
def test_prompts_that_a_folder_does_not_store(
    stored: dict[str, str],
    said: bool,
    engine: E5KorQuADInference,
    copied_model: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings_file = copied_model / "config_sentence_transformers.json"
    content = json.loads(settings_file.read_text())
    settings_file.write_text(json.dumps({**content, "prompts": stored}))
    with caplog.at_level(logging.INFO, logger="inference"):
        other = E5KorQuADInference(copied_model, device="cpu")
    np.testing.assert_allclose(other.encode_query("수도는?"), engine.encode_query("수도는?"), atol=1e-6)
    np.testing.assert_allclose(other.encode_passage("서울"), engine.encode_passage("서울"), atol=1e-6)
    assert ("stores no prompts" in caplog.text) == said


def test_plain_transformers_folder_is_normalised_and_prefixed(copied_model: Path, engine: E5KorQuADInference) -> None:
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (copied_model / name).unlink()
    plain = E5KorQuADInference(copied_model, device="cpu")
    assert len(plain.model) == 2  # no Normalize among its modules
    np.testing.assert_allclose(plain.encode_query("수도는?"), engine.encode_query("수도는?"), atol=1e-6)


def test_a_model_saved_in_half_precision_computes_in_float32(copied_model: Path, tmp_path: Path) -> None:
    SentenceTransformer(str(copied_model), device="cpu").half().save(str(tmp_path / "half"), create_model_card=False)
    half = E5KorQuADInference(tmp_path / "half", device="cpu")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}


def test_order_is_kept_whatever_the_batches(engine: E5KorQuADInference) -> None:
    texts = [f"{number}번 " + "가" * (number * 7 % 50) for number in range(1, 40)]
    one_by_one = np.stack([engine.encode_passage(text) for text in texts])
    np.testing.assert_allclose(engine.encode_passages(texts, batch_size=4), one_by_one, atol=1e-5)


def test_texts_longer_than_the_model_reads_are_reported(
    engine: E5KorQuADInference, caplog: pytest.LogCaptureFixture
) -> None:
    # One token a character; 128 are read: "passage: " is 9, and there is one token at each end.
    fits, too_long = "가" * 117, "가" * 118
    engine.encode_passages([fits, "짧다"])
    assert not caplog.records
    engine.encode_passages([fits, too_long, "짧다", "나" * 5000])
    assert [r.getMessage() for r in caplog.records] == [
        "2 of 4 passages exceed the 128 tokens that the model reads: only their beginnings count."
    ]


def test_progress_bar_on_long_work_only(engine: E5KorQuADInference, capsys: pytest.CaptureFixture[str]) -> None:
    engine.encode_passages(["가"] * 4, batch_size=1)
    assert "Batches" not in capsys.readouterr().err
    engine.encode_passages(["가"] * 5, batch_size=1)
    assert "Batches" in capsys.readouterr().err
    engine.encode_passages(["가"] * 5, batch_size=1, show_progress=False)
    assert "Batches" not in capsys.readouterr().err
    engine.encode_queries(["가"], show_progress=True)
    assert "Batches" in capsys.readouterr().err


# -----------------------------------------------------------------------------------------------------------
# Similarity


def test_similarity_of_texts_equals_that_of_their_embeddings(engine: E5KorQuADInference) -> None:
    query, passage = engine.encode_query("수도는?"), engine.encode_passages(PASSAGES)
    one = engine.compute_similarity("수도는?", PASSAGES[0])
    assert type(one) is float
    assert one == pytest.approx(float(query @ passage[0]), abs=1e-6)
    np.testing.assert_allclose(engine.compute_similarity("수도는?", PASSAGES), passage @ query, atol=1e-6)
    assert np.shape(engine.compute_similarity(["수도는?", "산은?"], PASSAGES)) == (2, 4)
    assert np.shape(engine.compute_similarity(["수도는?", "산은?"], PASSAGES[0])) == (2,)
    assert engine.compute_similarity("수도는?", passage[0]) == pytest.approx(one, abs=1e-6)


def test_similarity_of_embeddings_by_hand(engine: E5KorQuADInference) -> None:
    # (3, 4) has length 5: cosines with (1, 0) and (0, -2) are .6 and -.8.
    assert engine.compute_similarity([3, 4], np.array([1.0, 0.0])) == pytest.approx(0.6)
    np.testing.assert_allclose(engine.compute_similarity([3, 4], [[1, 0], [0, -2]]), [0.6, -0.8], atol=1e-6)
    matrix = engine.compute_similarity(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), [[1, 0], [0, -2], [3, 4]])
    np.testing.assert_allclose(matrix, [[0.6, -0.8, 1.0], [1.0, 0.0, 0.6]], atol=1e-6)


def test_rounding_takes_no_similarity_beyond_one(engine: E5KorQuADInference) -> None:
    vectors = np.random.default_rng(0).normal(size=(100, 32)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (unit @ unit.T).max() > 1
    assert np.max(engine.compute_similarity(vectors, vectors)) == 1


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 2], [1, 2, 3], "2 and of 3 numbers"),
        ([0, 0], [1, 2], "a has an embedding that is all zeros"),
        ([1, 2], [[1, 2], [float("nan"), 1]], "b has an embedding that is all zeros, not finite"),
        (np.ones((1, 1, 2)), [1, 2], r"a must be of shape \(D,\) or \(N, D\), not \(1, 1, 2\)"),
        (1.5, [1, 2], r"a must be of shape \(D,\)"),
        (["수도는?", 3], "서울", "a must be a text, a list of texts or embeddings"),
        ([10**400, 1], "서울", "a must be a text, a list of texts or embeddings: int too large"),
        (None, "서울", "a must be"),
        ("수도는?", "  ", "The passage is empty"),
        (["수도는?", ""], "서울", r"queries\[1\] is empty"),
    ],
)
def test_similarity_of_nonsense(engine: E5KorQuADInference, a: Any, b: Any, message: str) -> None:
    with pytest.raises(InferenceError, match=message):
        engine.compute_similarity(a, b)


# -----------------------------------------------------------------------------------------------------------
# Search


def test_search_by_hand(engine: E5KorQuADInference, fixed_scores: Callable[..., None]) -> None:
    fixed_scores({"a": 0.5, "b": 0.75, "c": -0.25})
    results = engine.search("q", ["a", "b", "c"], top_k=2)
    assert results == [
        {"rank": 1, "passage": "b", "score": 0.75, "index": 1},
        {"rank": 2, "passage": "a", "score": 0.5, "index": 0},
    ]
    assert [type(value) for value in results[0].values()] == [int, str, float, int]
    json.dumps(results)


def test_ties_keep_the_order_of_the_passages(engine: E5KorQuADInference, fixed_scores: Callable[..., None]) -> None:
    fixed_scores({"low": 0.25, "same": 0.5, "as good": 0.5, "best": 0.75})
    passages = ["low", "same", "as good", "same", "best", "low"]
    assert [r["index"] for r in engine.search("q", passages, top_k=100)] == [4, 1, 2, 3, 0, 5]
    assert [r["index"] for r in engine.search("q", passages, top_k=3)] == [4, 1, 2]


def test_what_the_query_says_itself_can_be_left_out(
    engine: E5KorQuADInference, indexed: E5KorQuADInference, fixed_scores: Callable[..., None]
) -> None:
    fixed_scores({"산": 0.75, "한라산": 0.5, "한라": 0.25})
    passages = ["한라", "passage: 산", "한라산"]
    query = "query: 제주도의 산은 무엇인가?"
    assert [r["index"] for r in engine.search(query, passages)] == [1, 2, 0]
    assert [r["index"] for r in engine.search(query, passages, skip_in_query=True)] == [2, 0]
    results = engine.batch_search([query, "한라산은?"], passages, skip_in_query=True)
    assert [[r["index"] for r in each] for each in results] == [[2, 0], [1]]
    indexed.build_index(passages)
    assert {r["passage"] for r in indexed.search(query, skip_in_query=True)} == {"한라", "한라산"}


def test_equal_passages_have_equal_scores(engine: E5KorQuADInference) -> None:
    passages = [
        "서울은 수도이다.",
        *["가나다라마바사" * n for n in range(1, 30)],
        "passage: 서울은 수도이다.",
        "서울은 수도이다.",
    ]
    found = [r for r in engine.search("수도는?", passages, top_k=99) if "서울은" in r["passage"]]
    assert [r["index"] for r in found] == [0, 30, 31]
    assert len({r["score"] for r in found}) == 1


def test_batch_search_is_search_of_each_query(engine: E5KorQuADInference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_QUERIES_AT_ONCE", 2)
    queries = ["수도는?", "산은?", "음식은?", "빛은?", "query: 수도는?"]
    batched = engine.batch_search(queries, PASSAGES, top_k=2)
    assert [[r["index"] for r in results] for results in batched] == [
        [r["index"] for r in engine.search(query, PASSAGES, top_k=2)] for query in queries
    ]
    assert batched[0] == batched[4]
    assert engine.batch_search([], PASSAGES) == []


def test_passages_are_any_iterable(engine: E5KorQuADInference) -> None:
    expected = engine.search("산?", PASSAGES)
    assert engine.search("산?", iter(PASSAGES)) == expected
    assert engine.search("산?", np.array(PASSAGES)) == expected


@pytest.mark.parametrize(
    ("query", "passages", "top_k", "message"),
    [
        ("", PASSAGES, 1, "The query is empty"),
        (" \n\t", PASSAGES, 1, "The query is empty"),
        ("query: ", PASSAGES, 1, "The query is empty"),
        (None, PASSAGES, 1, "The query must be text, not NoneType"),
        (["수도는?"], PASSAGES, 1, "The query must be text, not list"),
        ("수도는?\ud800", PASSAGES, 1, "not valid Unicode: half a surrogate pair at character 4"),
        ("수도는?", [], 1, "no passages"),
        ("수도는?", "서울", 1, "passages must be a list of texts, not str"),
        ("수도는?", {"서울": 1}, 1, "passages must be a list of texts, not dict"),
        ("수도는?", 7, 1, "passages must be a list of texts, not int"),
        ("수도는?", ["서울", None], 1, r"passages\[1\] must be text, not NoneType"),
        ("수도는?", ["서울", "부산", b"x"], 1, r"passages\[2\] must be text, not bytes"),
        ("수도는?", ["서울", " "], 1, r"passages\[1\] is empty"),
        ("수도는?", ["passage: "], 1, r"passages\[0\] is empty"),
        ("수도는?", PASSAGES, 0, "top_k must be a whole number of at least 1, not 0"),
        ("수도는?", PASSAGES, -3, "top_k must be .* not -3"),
        ("수도는?", PASSAGES, 1.0, "top_k must be .* not 1.0"),
        ("수도는?", PASSAGES, True, "top_k must be .* not True"),
        ("수도는?", PASSAGES, "5", "top_k must be .* not '5'"),
    ],
)
def test_bad_input(engine: E5KorQuADInference, query: Any, passages: Any, top_k: Any, message: str) -> None:
    with pytest.raises(InferenceError, match=message):
        engine.search(query, passages, top_k)
    if query == "수도는?":
        with pytest.raises(InferenceError, match=message):
            engine.batch_search([query], passages, top_k)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True])
def test_bad_batch_size(engine: E5KorQuADInference, batch_size: Any) -> None:
    with pytest.raises(InferenceError, match="batch_size must be a whole number of at least 1"):
        engine.encode_passages(["서울"], batch_size=batch_size)


def test_errors_are_value_errors() -> None:
    assert issubclass(InferenceError, ValueError)


def test_a_full_gpu_is_said(engine: E5KorQuADInference, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine.model, "encode_document", full)
    with pytest.raises(InferenceError, match="memory of cpu is full"):
        engine.encode_passages(PASSAGES)


# -----------------------------------------------------------------------------------------------------------
# Long passages, and passages that were given before


@pytest.fixture
def encoded(engine: E5KorQuADInference, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every passage (or window of one) that is encoded from now on."""
    texts: list[str] = []
    encode = engine._encode

    def note(bare: list[str], side: str, *rest: Any) -> np.ndarray:
        texts.extend(bare if side == "document" else [])
        return encode(bare, side, *rest)

    monkeypatch.setattr(engine, "_encode", note)
    monkeypatch.setattr(engine, "_remembered", [])
    return texts


def test_a_long_passage_is_found_by_its_best_window(
    engine: E5KorQuADInference, encoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    long = " ".join(f"{number}번째낱말" for number in range(60)) + " 한라산은 제주도에 있다. " + "카타파하 " * 30
    results = engine.search("산은?", ["passage: " + long, *PASSAGES], top_k=9)
    windows = encoded[:-4]  # the other passages came behind
    assert len(results) == 5 and len(windows) > 4 and max(map(len, encoded)) <= 117
    (result,) = (result for result in results if result["index"] == 0)
    assert result["passage"] == "passage: " + long
    begin, end = result["span"]
    scores = engine.compute_similarity("산은?", windows)
    assert result["passage"][begin:end] in ("passage: " + windows[0], windows[int(np.argmax(scores))])
    assert result["score"] == pytest.approx(max(scores), abs=1e-6)
    assert result["score"] > engine.compute_similarity("산은?", long[:117]) + 1e-4  # found by more than its beginning
    assert all(word in "".join(encoded) for word in long.split())
    assert not any("passages exceed" in record.getMessage() for record in caplog.records)


def test_a_passage_that_is_read_whole_has_no_span(engine: E5KorQuADInference, encoded: list[str]) -> None:
    fits, too_long = "가" * 117, "가" * 118
    spans = {result["passage"]: result.get("span") for result in engine.search("가", [fits, "passage: " + fits, too_long])}
    assert spans[fits] is None and spans["passage: " + fits] is None and spans[too_long] is not None
    assert encoded.count(fits) == 1


def test_a_list_is_encoded_once(engine: E5KorQuADInference, encoded: list[str]) -> None:
    first = engine.search("산은?", PASSAGES)
    assert sorted(encoded) == sorted(PASSAGES)
    others = ["다른 글이다.", "passage: 또 다른 글이다."]
    engine.search("산은?", others)
    assert engine.search("산은?", tuple(PASSAGES)) == first
    assert engine.batch_search(["산은?"], iter(PASSAGES))[0] == first
    # The same content with a prefix is the same content, and is shown as given.
    assert engine.search("글?", ["passage: 다른 글이다.", "또 다른 글이다."], 1)[0]["passage"] in (
        "passage: 다른 글이다.", "또 다른 글이다.",
    )  # fmt: skip
    assert len(encoded) == 6
    engine.search("산은?", PASSAGES[::-1])
    assert len(encoded) == 10


def test_a_list_that_was_changed_is_encoded_anew(engine: E5KorQuADInference, encoded: list[str]) -> None:
    passages = list(PASSAGES)
    engine.search("산은?", passages)
    passages[0] = "부산은 항구이다."
    assert {result["passage"] for result in engine.search("산은?", passages)} == set(passages)
    assert "부산은 항구이다." in encoded


def test_not_more_is_remembered_than_fits(
    engine: E5KorQuADInference, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "_REMEMBERED_LISTS", 2)
    for passages in (["가"], ["나"], ["가"], ["다"]):  # "나" is the one not asked for the longest
        engine.search("?", passages)
    assert encoded == ["가", "나", "다"]
    engine.search("?", ["가"])
    engine.search("?", ["나"])
    assert encoded == ["가", "나", "다", "나"]
    monkeypatch.setattr(inference, "_REMEMBERED_WINDOWS", 3)
    engine.search("?", ["라", "마", "바", "사"])  # more than fits by itself: kept alone
    engine.search("?", ["라", "마", "바", "사"])
    assert [len(index) for _, index in engine._remembered] == [4] and len(encoded) == 8


# -----------------------------------------------------------------------------------------------------------
# The index


@pytest.fixture
def indexed(toy_model_dir: Path) -> E5KorQuADInference:
    model = E5KorQuADInference(toy_model_dir, device="cpu")
    model.build_index(PASSAGES, ids=["서울", "산", "김치", "빛"], metadata=[{"n": n} for n in range(4)])
    return model


def test_the_index_finds_what_a_search_with_passages_finds(indexed: E5KorQuADInference) -> None:
    queries = ["수도는?", "산은?", "음식은?"]
    for query, results in zip(queries, indexed.batch_search(queries, top_k=3), strict=True):
        given = indexed.search(query, PASSAGES, top_k=3)
        for result, same in zip(results, given, strict=True):  # of another batch: the score's last digits may differ
            assert {key: result[key] for key in same} == {**same, "score": pytest.approx(same["score"], abs=1e-6)}
        assert [result["metadata"] for result in results] == [{"n": result["index"]} for result in results]
        assert [result["id"] for result in indexed.search(query, top_k=3)] == [result["id"] for result in results]
        json.dumps(results)
    assert indexed.batch_search([]) == []


def test_passages_come_and_go(indexed: E5KorQuADInference) -> None:
    indexed.add(["passage: 부산은 항구이다.", "가나다 " * 60])
    results = {result["id"]: result for result in indexed.search("부산은 항구이다.", top_k=9)}
    assert len(results) == 6 and results["4"]["passage"] == "passage: 부산은 항구이다." and "span" in results["5"]
    indexed.remove(["서울", "4"])
    assert {result["id"] for result in indexed.search("부산은?", top_k=9)} == {"산", "김치", "빛", "5"}
    indexed.build_index(["새 글이다."])
    assert [result["id"] for result in indexed.search("글은?")] == ["0"]


def test_an_index_begins_with_add(toy_model_dir: Path) -> None:
    model = E5KorQuADInference(toy_model_dir, device="cpu")
    for ask in (lambda: model.search("산은?"), lambda: model.save("x"), lambda: model.remove(["0"])):
        with pytest.raises(
            InferenceError, match=r"There is no index to search in: build_index\(passages\) or load\(path\) first"
        ):
            ask()
    model.add(PASSAGES)
    assert len(model.search("산은?", top_k=9)) == 4
    model.remove(["0", "1", "2", "3"])
    with pytest.raises(InferenceError, match="There is no index to search in"):
        model.search("산은?")


@pytest.mark.parametrize(
    ("passages", "arguments", "message"),
    [
        (["새 글", ""], {}, r"passages\[1\] is empty"),
        (["새 글", None], {}, r"passages\[1\] must be text"),
        ("새 글", {}, "passages must be a list of texts, not str"),
        (["새 글", "또"], {"ids": ["a", "a"]}, r"ids\[1\] is 'a' for the second time"),
        (["새 글"], {"ids": ["산"]}, "'산' is in the index already"),
        (["새 글"], {"ids": ["a", "b"]}, "1 passages and 2 ids"),
        (["새 글"], {"metadata": [{"a": object()}]}, r"metadata\[0\] holds what JSON cannot"),
        (["새 글"], {"batch_size": 0}, "batch_size must be a whole number"),
    ],
)
def test_bad_input_loses_nothing(
    indexed: E5KorQuADInference, monkeypatch: pytest.MonkeyPatch, passages: Any, arguments: dict[str, Any], message: str
) -> None:
    before = indexed.search("산은?", top_k=9)
    if "batch_size" not in arguments:  # said before the work of encoding
        monkeypatch.setattr(indexed.model, "encode_document", None)
    with pytest.raises(InferenceError, match=message):
        indexed.add(passages, **arguments)
    if arguments != {"ids": ["산"]}:
        with pytest.raises(InferenceError, match=message):
            indexed.build_index(passages, **arguments)
    assert indexed.search("산은?", top_k=9) == before


@pytest.mark.long
def test_a_passage_of_ten_megabytes(engine: E5KorQuADInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is found, before and after saving. Vectors are made up: one axis a digit of the number in the window."""

    def encode(texts: list[str], *_: Any) -> np.ndarray:
        numbers = [re.search(r"둘(\d{6})", text) for text in texts]
        vectors = np.zeros((len(texts), 60), np.float32)
        for row, number in enumerate(numbers):
            for place, digit in enumerate(number[1] if number else ""):
                vectors[row, 10 * place + int(digit)] = 6**-0.5
        return vectors

    passage = " ".join(f"{'가나다라마바사아자차' * 8}둘{number:06}" for number in range(41_000))
    assert len(passage.encode()) > 10_000_000
    monkeypatch.setattr(engine, "_encode", encode)
    monkeypatch.setattr(engine, "index", None)
    engine.build_index(["짧은 글", passage], ids=["짧은", "긴"])
    engine.save(tmp_path)
    for _ in ("built", "loaded"):
        for number in (0, 12_345, 40_999):
            result = engine.search(f"둘{number:06}", top_k=1)[0]
            begin, end = result["span"]
            assert result["id"] == "긴" and f"둘{number:06}" in passage[begin:end] and end - begin <= 117
        assert result["passage"] == passage
        engine.load(tmp_path)


def test_a_stop_while_encoding_loses_nothing(indexed: E5KorQuADInference, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(indexed.model, "encode_document", stop)
        for change in (indexed.add, indexed.build_index):
            with pytest.raises(KeyboardInterrupt):
                change(["새 글"])
    assert len(indexed.search("산은?", top_k=9)) == 4
    indexed.add(["새 글"], ids=["새"])
    assert len(indexed.search("산은?", top_k=9)) == 5


def test_saved_and_loaded(indexed: E5KorQuADInference, engine: E5KorQuADInference, tmp_path: Path) -> None:
    expected = indexed.search("산은?", top_k=9)
    indexed.save(tmp_path / "index")
    other = E5KorQuADInference(engine.model_path, device="cpu")
    other.load(str(tmp_path / "index"))
    assert other.search("산은?", top_k=9) == expected
    other.add(["새 글"])
    other.remove(["산"])
    other.save(tmp_path / "index")
    indexed.load(tmp_path / "index")
    assert {result["id"] for result in indexed.search("산은?", top_k=9)} == {"서울", "김치", "빛", "4"}


def test_an_index_of_another_model_is_refused(indexed: E5KorQuADInference, copied_model: Path, tmp_path: Path) -> None:
    indexed.save(tmp_path / "index")
    E5KorQuADInference(copied_model, device="cpu").load(tmp_path / "index")  # the same model elsewhere
    other = SentenceTransformer(str(copied_model), device="cpu")
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    other.save(str(tmp_path / "other"), create_model_card=False)
    model = E5KorQuADInference(tmp_path / "other", device="cpu")
    model.build_index(["그대로"])
    with pytest.raises(InferenceError, match="was made with the model") as caught:
        model.load(tmp_path / "index")
    assert str(indexed.model_path.resolve()) in str(caught.value) and str(tmp_path / "other") in str(caught.value)
    assert len(model.search("산은?")) == 1


def test_a_model_that_changed_on_disk_signs_nothing(copied_model: Path, tmp_path: Path) -> None:
    model = E5KorQuADInference(copied_model, device="cpu")
    model.build_index(PASSAGES)
    os.utime(copied_model / "model.safetensors", (0, 0))
    with pytest.raises(InferenceError, match="was changed since it was loaded"):
        model.save(tmp_path / "index")


# -----------------------------------------------------------------------------------------------------------
# Finding and loading the model


def test_default_path_is_where_training_writes() -> None:
    assert TrainingConfig().output_dir == DEFAULT_MODEL_PATH


def test_without_any_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InferenceError, match=r"No model at models/finetuned.* nor at models/sample.*python train.py.*make train"
    ):
        E5KorQuADInference()
    with pytest.raises(InferenceError, match=r"No model: elsewhere does not exist\. .*python train.py"):
        E5KorQuADInference("elsewhere")
    Path("file").touch()
    with pytest.raises(InferenceError, match="No model: file is not a folder"):
        E5KorQuADInference("file")


def test_model_of_the_sample_stands_in_for_the_default_only(
    toy_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, logger="inference")
    sample = Path(read_recipe(SAMPLE_RECIPE)["output_dir"])
    shutil.copytree(toy_model_dir, sample)
    Path(DEFAULT_MODEL_PATH).mkdir(parents=True)  # as a run leaves it that was stopped before its first checkpoint
    assert E5KorQuADInference().model_path == sample
    said = [r.getMessage() for r in caplog.records if "embedded sample" in r.getMessage()]
    assert said == [f"No model at {Path(DEFAULT_MODEL_PATH)}: using {sample}, trained on the embedded sample"]

    with pytest.raises(InferenceError, match=r"is not a complete model: config\.json"):
        E5KorQuADInference(DEFAULT_MODEL_PATH)

    caplog.clear()
    shutil.copytree(toy_model_dir, DEFAULT_MODEL_PATH, dirs_exist_ok=True)
    assert E5KorQuADInference().model_path == Path(DEFAULT_MODEL_PATH)
    assert "embedded sample" not in caplog.text


def test_folders_that_are_no_models(copied_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match=r"not a complete model: config\.json, model\.safetensors .*missing"):
        E5KorQuADInference(tmp_path)
    weights = copied_model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InferenceError, match=r"copied model cannot be loaded: .*train it again"):
        E5KorQuADInference(copied_model, device="cpu")
    weights.unlink()
    with pytest.raises(InferenceError, match=r"not a complete model: model\.safetensors"):
        E5KorQuADInference(copied_model, device="cpu")
    weights.write_bytes(whole)
    (copied_model / "tokenizer.json").write_text("{}")
    with pytest.raises(InferenceError, match="copied model cannot be loaded"):
        E5KorQuADInference(copied_model, device="cpu")
    for content in ("{", "[1]", "[{}]", '{"a": 1}'):
        (copied_model / "modules.json").write_text(content)
        with pytest.raises(InferenceError, match="copied model is not a model that can be read"):
            E5KorQuADInference(copied_model, device="cpu")


def test_broken_weights_are_not_searched_with(toy_model_dir: Path) -> None:
    broken = E5KorQuADInference(toy_model_dir, device="cpu")
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    with pytest.raises(InferenceError, match="not finite: train it again"):
        broken.encode_query("수도는?")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps" if not torch.backends.mps.is_available() else "cuda:98"])
def test_device_that_cannot_be_used(toy_model_dir: Path, device: str) -> None:
    with pytest.raises(InferenceError, match=rf"The device '{device}' cannot be used: .+\. Use cpu"):
        E5KorQuADInference(toy_model_dir, device=device)


def test_an_unusable_gpu_is_said_and_the_cpu_used(
    toy_model_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from trainer import device

    def refuse(wanted: str) -> None:
        raise device.DeviceError("The GPU cannot be used: too old.")

    monkeypatch.setattr(device, "choose_device", refuse)
    assert E5KorQuADInference(toy_model_dir).model.device.type == "cpu"
    assert "too old. Searching on the CPU" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_gpu_where_there_is_one(toy_model_dir: Path, engine: E5KorQuADInference) -> None:
    on_gpu = E5KorQuADInference(toy_model_dir)
    assert on_gpu.model.device.type == "cuda"
    np.testing.assert_allclose(on_gpu.encode_passages(PASSAGES), engine.encode_passages(PASSAGES), atol=1e-3)


# -----------------------------------------------------------------------------------------------------------
# Command line


@pytest.fixture
def passages_file(tmp_path: Path) -> Path:
    file = tmp_path / "passages.txt"
    file.write_text("\n".join(PASSAGES), encoding="utf-8")
    return file


def test_three_examples(toy_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model_path", str(toy_model_dir), "--device", "cpu", "--top_k", "2"]) == 0
    output = capsys.readouterr()
    titles = [line for line in output.out.splitlines() if line[:1].isdigit()]
    assert [title[:2] for title in titles] == ["1.", "2.", "3."]
    for method in ("search(", "batch_search(", "compute_similarity("):
        assert method in output.out
    assert output.out.count("\n   1 ") == 4 and output.out.count("\n   2 ") == 1
    assert "Loading weights" not in output.err


def test_search_of_a_file(
    engine: E5KorQuADInference, toy_model_dir: Path, passages_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--query", "산은?", "--passages", str(passages_file), "--top_k", "3"]
    assert main([*arguments, "--model_path", str(toy_model_dir)]) == 0
    expected = [f"  {r['rank']:>2} {r['score']:6.3f}  {r['passage']}" for r in engine.search("산은?", PASSAGES, 3)]
    assert capsys.readouterr().out.splitlines() == ["  산은?", *expected]
    passages_file.write_text("산\n", encoding="utf-8")
    assert main([*arguments, "--skip_in_query", "--model_path", str(toy_model_dir)]) == 0
    assert capsys.readouterr().out.splitlines() == ["  산은?", "     nothing but what the question says itself"]


def test_search_of_a_file_that_is_not_plain_text(
    toy_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is read as `index` and `compare` read it."""
    article = {"title": "제목", "paragraphs": [{"context": text, "qas": []} for text in PASSAGES]}
    lines = [json.dumps({"passage": text, "title": "제목"}) for text in PASSAGES]
    for name, content in (("a.json", json.dumps({"data": [article]})), ("a.jsonl", "\n".join(lines))):
        (tmp_path / name).write_text(content)
        arguments = ["--query", "산은?", "--passages", str(tmp_path / name), "--model_path", str(toy_model_dir)]
        assert main(arguments) == 0
        shown = {line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()[1:]}
        assert shown == set(PASSAGES)
    (tmp_path / "a.jsonl").write_text("{")
    assert main(arguments) == 1
    assert "a.jsonl, line 1, column 2: is not JSON" in capsys.readouterr().err


def test_a_long_passage_is_shown_by_its_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    inference.print_results("q", [{"rank": 1, "score": 0.5, "passage": "가" * 1500, "index": 0}])
    assert capsys.readouterr().out.splitlines()[1] == f"   1  0.500  {'가' * 300}… (1,200 more characters)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--query", "산은?"], "--query TEXT and --passages FILE go together"),
        (["--passages", "FILE"], "--query TEXT and --passages FILE go together"),
        (["--query", " ", "--passages", "FILE"], "--query is empty"),
        (["--skip_in_query"], "--skip_in_query goes with --query TEXT"),
        (["--top_k", "0"], "must be a whole number of at least 1, not '0'"),
        (["--top_k", "1.5"], "must be a whole number of at least 1, not '1.5'"),
        (["--top", "3"], "unrecognized arguments"),
        (["stray"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments_end_with_status_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_what_goes_wrong_ends_with_status_1(
    toy_model_dir: Path, passages_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = ["--query", "산은?", "--passages"]
    assert main([*search, str(tmp_path / "none.txt"), "--model_path", str(toy_model_dir)]) == 1
    assert "Error: " in (said := capsys.readouterr().err) and "none.txt cannot be read" in said
    assert main([*search, "", "--model_path", str(toy_model_dir)]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert main([*search, str(passages_file), "--model_path", str(tmp_path / "nowhere")]) == 1
    assert "python train.py" in capsys.readouterr().err
    assert main([*search, str(passages_file), "--model_path", str(toy_model_dir), "--device", "gpu"]) == 1
    assert "The device 'gpu' cannot be used" in capsys.readouterr().err


def test_ctrl_c_ends_with_status_130(
    toy_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "print_examples", interrupt)
    assert main(["--model_path", str(toy_model_dir)]) == 130
    assert capsys.readouterr().err.endswith("\nStopped.\n")


# -----------------------------------------------------------------------------------------------------------
# The commands index and search


@pytest.fixture
def made(toy_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """An index of a text file and a file of JSON lines."""
    (tmp_path / "a.txt").write_text("\n".join(PASSAGES), encoding="utf-8")
    lines = [{"passage": "부산은 항구이다.", "id": "부산", "title": "부산"}, {"text": "가나다 " * 60}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    out = tmp_path / "made here"
    assert main(["index", *files, "--out", str(out), "--model_path", str(toy_model_dir)]) == 0
    assert f"{out}: 6 passages. Ask: python inference.py search '{out}' \"질문\"" in capsys.readouterr().out
    return out


def ask(*arguments: str | Path) -> int:
    return main(["search", *map(str, arguments)])


def test_search_of_an_index(made: Path, engine: E5KorQuADInference, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(made, "부산은 항구이다.", "--top_k", "2") == 0  # with the model that made it
    first, *results = capsys.readouterr().out.splitlines()
    assert first == "  부산은 항구이다." and len(results) == 2
    assert ask(made, "부산은 항구이다.", "--top_k", "9", "--json") == 0
    (answer,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert answer["query"] == "부산은 항구이다." and len(answer["results"]) == 6
    by_id = {result["id"]: result for result in answer["results"]}
    assert by_id["부산"]["metadata"] == {"title": "부산"}
    assert by_id[f"{made.parent / 'a.txt'}:2"]["passage"] == PASSAGES[1]
    assert by_id[f"{made.parent / 'b.jsonl'}:2"]["passage"] == "가나다 " * 60
    assert ask(made, "부산은 항구이다.", "--top_k", "9", "--json", "--skip_in_query") == 0
    (left,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert {result["id"] for result in answer["results"]} - {result["id"] for result in left["results"]} == {"부산"}
    best = answer["results"][0]
    assert results[0].startswith(f"   1 {best['score']:6.3f}  ") and results[0].endswith(f"  [{best['id']}]")
    assert best["score"] == pytest.approx(engine.compute_similarity("부산은 항구이다.", best["passage"]), abs=1e-6)


def test_questions_one_after_another(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def type_in(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))

    type_in("산은?\n\n \n빛은?".encode())
    assert ask(made, "--json", "--top_k", "1") == 0
    assert [json.loads(line)["query"] for line in capsys.readouterr().out.splitlines()] == ["산은?", "빛은?"]
    type_in("산은?\n".encode() + b"\xff\xfe\n" + "빛은?\n".encode())  # one of them is no text
    assert ask(made, "--json", "--top_k", "1") == 1
    said = capsys.readouterr()
    assert [json.loads(line)["query"] for line in said.out.splitlines()] == ["산은?", "빛은?"]
    assert "not valid Unicode" in said.err and "1 questions could not be searched for" in said.err


def test_the_prompt(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    typed = iter(["산은?", "", " 빛은? "])

    def type_in(prompt: str) -> str:
        assert prompt == "\n> "
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    terminal = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("builtins.input", type_in)
    assert ask(made, "--top_k", "1") == 0
    said = capsys.readouterr()
    assert "Type a question; Ctrl-D ends." in said.err
    assert [line for line in said.out.splitlines() if "?" in line] == ["  산은?", "  빛은?"]


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_the_prompt_in_a_terminal(made: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, str(REPOSITORY / "inference.py"), "search", str(made), "--top_k", "1"]
    process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY)
    os.write(ours, "산은?\n".encode() + b"\x04")  # Ctrl-D
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    assert "Type a question; Ctrl-D ends." in err.decode()
    assert "  산은?\n   1 " in out.decode() and out.decode().count("\n   1 ") == 1


@pytest.mark.long
def test_a_reader_that_goes_away_is_no_error(made: Path) -> None:
    command = f"{sys.executable} {REPOSITORY / 'inference.py'} search '{made}' --json < {made.parent / 'many.txt'} | head -1"
    (made.parent / "many.txt").write_text("산은?\n" * 100, encoding="utf-8")
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and result.stdout.count("\n") == 1
    assert "Traceback" not in result.stderr and "BrokenPipe" not in result.stderr


def test_index_of_korquad_files(toy_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    qa = {"id": "1", "question": "?", "answers": [{"text": "글", "answer_start": 0}]}
    first = {"data": [{"title": "제목", "paragraphs": [{"context": "글이다.", "qas": [qa]}, {"context": " ", "qas": []}]}]}
    page = "<html><body><h1>한라산</h1><p>제주도의 <b>산</b>이다.</p></body></html>"
    second = {"data": [{"title": "한라산", "url": "", "context": page, "qas": []}]}
    for name, content in (("one.json", first), ("two.json", second)):
        (tmp_path / name).write_text(json.dumps(content))
    files = [str(tmp_path / "one.json"), str(tmp_path / "two.json")]
    assert main(["index", *files, "--out", str(tmp_path / "i"), "--model_path", str(toy_model_dir)]) == 0
    assert ask(tmp_path / "i", "산은?", "--json") == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    found = {result["metadata"]["title"]: result["passage"] for result in results}
    assert found["제목"] == "글이다." and "제주도의 산이다." in found["한라산"] and "<" not in found["한라산"]
    assert len(results) == 2
    (tmp_path / "three.json").write_text('{"data": [{"title": "", "context": " ", "qas": []}]}')
    assert main(["index", str(tmp_path / "three.json"), "--out", str(tmp_path / "j")]) == 1
    assert "three.json holds no paragraphs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "a.txt", "holds no passages"),
        (b"{", "a.jsonl", "a.jsonl, line 1, column 2: is not JSON"),
        (b'{"a": 1}', "a.json", r"a\.json: \$\.data: is missing"),
        (b"[", "a.json", r"a\.json: line 1, column 2"),
        (None, "a.json", r"a\.json: no such file"),
        (None, "a.txt", r"a\.txt cannot be read"),
        (b'{"text": "\xea\xb0\x80", "id": "a"}\n{"text": "\xea\xb0\x80", "id": "a"}', "a.jsonl", "'a' for the second time"),
    ],
)
def test_files_that_cannot_be_indexed(
    toy_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, name: str, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    arguments = ["index", str(tmp_path / name), "--out", str(tmp_path / "i"), "--model_path", str(toy_model_dir)]
    assert main(arguments) == 1
    assert re.search(message, said := capsys.readouterr().err), said
    assert not (tmp_path / "i").exists()


def test_index_where_something_else_is(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = made.parent / "other"
    other.mkdir()
    (other / "thesis.txt").touch()
    for out, message in ((other, "holds something else"), (made.parent / "a.txt", "is not a folder")):
        assert main(["index", str(made.parent / "a.txt"), "--out", str(out), "--model_path", "nowhere"]) == 1
        assert message in capsys.readouterr().err  # before the model is looked for
    assert ask(other, "?") == 1
    assert "holds no index" in capsys.readouterr().err
    assert ask(made, "query: ") == 1
    assert "The query is empty" in capsys.readouterr().err


def test_two_writers_of_one_folder(made: Path, toy_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import sys, time; from search import storage\n"
        "with storage.writing(sys.argv[1]): print('writing', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([sys.executable, "-c", program, str(made)], env=environment, stdout=subprocess.PIPE) as writer:
        assert writer.stdout and writer.stdout.readline() == b"writing\n"
        again = ["index", str(made.parent / "a.txt"), "--out", str(made), "--model_path", str(toy_model_dir)]
        assert main(again) == 1
        assert "is being written by another process" in capsys.readouterr().err
        assert ask(made, "산은?") == 0
        writer.kill()
    assert main(again) == 0
    assert "4 passages" in capsys.readouterr().out


def test_compare_asks_both_models(
    made: Path, toy_model_dir: Path, copied_model: Path, engine: E5KorQuADInference, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied_model / "training_config.json").write_text(json.dumps({"model_name": str(toy_model_dir)}))
    _make_another(copied_model)
    other = E5KorQuADInference(copied_model, device="cpu")
    command = ["compare", "--model_path", str(copied_model), "--top_k", "2"]
    assert main([*command, "--json", "--query", "산은?", "빛은?", "--passages", str(made.parent / "a.txt")]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["query"] for answer in answers] == ["산은?", "빛은?"]
    for answer in answers:
        for side, model in (("base", engine), ("tuned", other)):  # the base is what the tuned model was trained from
            expected = model.search(answer["query"], PASSAGES, 2)
            assert [r["passage"] for r in answer[side]] == [r["passage"] for r in expected]
            assert [r["score"] for r in answer[side]] == pytest.approx([r["score"] for r in expected], abs=1e-6)
        assert answer["base"][0]["score"] != pytest.approx(answer["tuned"][0]["score"], abs=1e-4)
        assert answer["base"][0]["id"].startswith(f"{made.parent / 'a.txt'}:")
    assert main([*command, "--base", str(copied_model)]) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if "?" in line] == list(inference.EXAMPLE_QUERIES)
    for line in (line for line in said.splitlines() if "│" in line and not line.startswith("base")):
        left, right = line.split("│")
        assert left.strip() == right.strip()  # the same model on both sides


def _make_another(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    (file,) = folder.glob("*.safetensors")
    save_file({name: weight + 0.1 * weight.flip(0) for name, weight in load_file(file).items()}, file, {"format": "pt"})


def test_the_base_model_that_compare_takes(
    toy_model_dir: Path,
    tmp_path: Path,
    copied_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from trainer import base_model

    def found(name: str) -> base_model.BaseModelSource:
        asked.append(name)
        return base_model.BaseModelSource(name, toy_model_dir, "hub cache", "")

    asked: list[str] = []
    monkeypatch.setattr(base_model, "resolve_base_model", found)
    assert inference._find_base("base", toy_model_dir) == toy_model_dir  # which does not say what it was trained from
    (copied_model / "training_config.json").write_text('{"model_name": "someone/model"}')
    assert inference._find_base("base", copied_model) == toy_model_dir
    assert asked == [TrainingConfig.model_name, "someone/model"]
    assert inference._find_base(str(toy_model_dir), copied_model) == toy_model_dir

    monkeypatch.undo()
    assert main(["compare", "--model_path", str(toy_model_dir), "--base", str(tmp_path / "none")]) == 1
    assert re.search("No base model: .*none' is neither a folder .* Correct the name", capsys.readouterr().err)
    assert main(["compare", "--model_path", str(tmp_path / "none")]) == 1
    assert "No model: " in capsys.readouterr().err
    assert main(["compare", "--passages", str(tmp_path / "none")]) == 1
    assert "none cannot be read" in capsys.readouterr().err


def test_serve_says_that_its_port_is_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    from search.serve import SearchServer

    with SearchServer("127.0.0.1", 0) as server:
        port = str(server.server_address[1])
        assert main(["serve", "--port", port, "--model_path", "nowhere"]) == 1  # before the model is looked for
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"Error: Cannot listen on 127.0.0.1, port {port}: Address already in use." in said


def test_serve_loads_both_models_and_serves_them(
    toy_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from search import serve

    def answer_one(self: serve.SearchServer, ask: serve.Ask) -> None:
        answers.append(ask("산은?", 6))
        raise KeyboardInterrupt

    answers: list[Any] = []
    monkeypatch.setattr(serve.SearchServer, "serve", answer_one)
    model = str(toy_model_dir)
    assert main(["serve", "--port", "0", "--model_path", model, "--base", model]) == 130
    assert re.match(r"http://127\.0\.0\.1:[1-9]\d*/ \(Ctrl-C ends\)\n", capsys.readouterr().out)
    assert sorted(result["passage"] for result in answers[0]["tuned"]) == sorted(inference.EXAMPLE_PASSAGES)
    assert answers[0]["base"] == answers[0]["tuned"]


def test_wrong_arguments_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["index"], "required: FILE, --out"),
        (["index", "a.txt"], "required: --out"),
        (["search"], "required: DIR"),
        (["search", "i", "q", "--top_k", "0"], "at least 1"),
        (["search", "i", "--query", "q"], "unrecognized arguments"),
        (["search", "i", ""], "QUESTION is empty: ask a question"),
        (["compare", "--top_k", "0"], "at least 1"),
        (["compare", "--query", ""], "question 1 of --query is empty: ask a question"),
        (["compare", "--query", "산은?", " ", "빛은?"], "question 2 of --query is empty: ask a question"),
        (["serve", "--port", "65536"], "from 0 to 65535, not '65536'"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2 and message in capsys.readouterr().err
    for command in ([], ["index"], ["serve"], ["compare"], ["search"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--help"])
        assert ended.value.code == 0
        said = capsys.readouterr().out
    assert "--json" in said


def test_help_and_errors_answer_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys, inference\n"
        "for arguments in (\n"
        "    ['--help'], ['index', '--help'], ['compare', '--model_path', 'nowhere'],\n"
        "    ['search', 'nowhere'], ['--top_k', '0'], ['--model_path', 'nowhere'], []\n"
        "):\n"
        "    try:\n"
        "        print(inference.main(arguments))\n"
        "    except SystemExit as ended:\n"
        "        print(ended.code)\n"
        "print([name for name in ('torch', 'transformers', 'sentence_transformers') if name in sys.modules])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-6:] == ["1", "1", "2", "1", "1", "[]"]
    assert "Traceback" not in result.stderr
