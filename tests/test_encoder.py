"""The two backends: the same embeddings from both, in order, cut alike; batches without padding to speak of."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from search import encoder
from search.encoder import OnnxEncoder, TorchEncoder, _batches
from search.errors import InferenceError
from search.export import export_model

TEXTS = ["산", "한라산은 제주도에 있다.", "가" * 60, "A1!", "나" * 117, "수도는 서울이다. " * 6]


@pytest.fixture(scope="module")
def torch_encoder(toy_model_dir: Path) -> TorchEncoder:
    model = SentenceTransformer(str(toy_model_dir), device="cpu", local_files_only=True)
    return TorchEncoder(model.eval(), toy_model_dir)


@pytest.fixture(scope="module")
def model_folder(toy_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(toy_model_dir, tmp_path_factory.mktemp("copies") / "model"))


@pytest.fixture(scope="module")
def exported(torch_encoder: TorchEncoder, model_folder: Path) -> Path:
    return export_model(torch_encoder.model, model_folder, "float32", "full")


@pytest.fixture(scope="module")
def onnx_encoder(exported: Path) -> OnnxEncoder:
    return OnnxEncoder(exported)


@pytest.mark.parametrize("prompt", ["query", "document"])
def test_both_backends_give_the_same_embeddings(prompt: str, torch_encoder: TorchEncoder, onnx_encoder: OnnxEncoder) -> None:
    ours, theirs = onnx_encoder.encode(TEXTS, prompt), torch_encoder.encode(TEXTS, prompt)
    assert ours.dtype == theirs.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    assert np.abs(onnx_encoder.encode(TEXTS, "query") - onnx_encoder.encode(TEXTS, "document")).max() > 1e-3


def test_both_know_the_same_of_the_model(torch_encoder: TorchEncoder, onnx_encoder: OnnxEncoder) -> None:
    for name in ("prompts", "dimension", "max_seq_length", "fingerprint"):
        assert getattr(onnx_encoder, name) == getattr(torch_encoder, name), name
    assert onnx_encoder.token_spans(TEXTS) == torch_encoder.token_spans(TEXTS)
    assert len(onnx_encoder.token_spans(["가" * 5000])[0]) == 5002


def test_a_long_text_is_cut_alike_by_both(torch_encoder: TorchEncoder, onnx_encoder: OnnxEncoder) -> None:
    # 128 tokens: the beginning and end marks, 9 of "passage: ", 117 characters.
    texts = ["가" * 117 + "나" * 50, "가" * 117, "가" * 116 + "나"]
    ours = onnx_encoder.encode(texts, "document")
    np.testing.assert_allclose(ours, torch_encoder.encode(texts, "document"), atol=1e-5)
    np.testing.assert_allclose(ours[0], ours[1], atol=1e-5)
    assert np.abs(ours[1] - ours[2]).max() > 1e-4


@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_order_is_kept_on_any_number_of_cores(
    cores: int, batch_size: int, onnx_encoder: OnnxEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "_cores", lambda: cores)
    monkeypatch.setattr(encoder, "_TEXTS_AT_ONCE", 16)
    texts = [f"{number}번 " + "가" * (number * 7 % 50) for number in range(40)]
    one_by_one = np.concatenate([onnx_encoder.encode([text], "document") for text in texts])
    np.testing.assert_allclose(onnx_encoder.encode(texts, "document", batch_size), one_by_one, atol=1e-5)


def test_no_texts_no_embeddings(onnx_encoder: OnnxEncoder) -> None:
    assert onnx_encoder.encode([], "query").shape == (0, 32)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=200), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_batches_hold_each_text_once_and_little_padding(lengths: list[int], batch_size: int) -> None:
    batches = _batches(lengths, batch_size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    sizes = [[lengths[row] for row in batch] for batch in batches]
    for inside in sizes:
        assert inside == sorted(inside) and len(inside) <= batch_size
        padded = inside[-1] * len(inside)
        assert len(inside) == 1 or padded <= 512
        assert (padded - sum(inside)) * 8 <= padded
    assert sizes == sorted(sizes, key=lambda inside: -inside[-1])


def test_equal_lengths_share_a_batch() -> None:
    assert [len(batch) for batch in _batches([20] * 60, 32)] == [25, 25, 10]
    assert [len(batch) for batch in _batches([20] * 60, 16)] == [16, 16, 16, 12]


def test_characters_without_a_piece_are_said(onnx_encoder: OnnxEncoder, caplog: pytest.LogCaptureFixture) -> None:
    onnx_encoder.encode(["漢字", "한자"], "document")
    assert not caplog.records  # nothing is left out of a full vocabulary
    onnx_encoder.vocabulary = "korean"
    try:
        onnx_encoder.encode(["漢字", "한자", "서울(漢城)", "학교"], "document")
        onnx_encoder.encode(["한자"], "query")
    finally:
        onnx_encoder.vocabulary = "full"
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 4 texts hold characters that the vocabulary 'korean' has no piece for: these count as unknown."
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_progress_counts_texts(onnx_encoder: OnnxEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    onnx_encoder.encode(TEXTS, "document", batch_size=2, show_progress=True)
    assert "6/6" in capsys.readouterr().err
    onnx_encoder.encode(TEXTS, "document")
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_damaged_export_is_said(name: str, exported: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(exported, tmp_path / "damaged"))
    (damaged / name).write_bytes(b"half")
    with pytest.raises(InferenceError, match=r"damaged cannot be loaded: .*Delete it"):
        OnnxEncoder(damaged)
