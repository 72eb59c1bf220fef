"""The export: true to the model, smaller, written whole or not at all, made again when the model changes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import nn
from transformers import BertModel, PreTrainedTokenizerFast

from inference import E5KorQuADInference
from search import export
from search.encoder import OnnxEncoder
from search.errors import InferenceError
from search.export import export_folder, export_model, is_current
from tests.test_vocabulary import unigram

REPOSITORY = Path(export.__file__).parent.parent
TEXTS = ["산은 어디에 있나?", "한라산은 제주도에 있다. " * 4, "A1!", "나" * 100]


def load(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True).eval()


@pytest.fixture
def folder(toy_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the toy model to export beside."""
    return Path(shutil.copytree(toy_model_dir, tmp_path / "model"))


@pytest.fixture(scope="module")
def exported(toy_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with its int8 export. To be looked at only."""
    copy = Path(shutil.copytree(toy_model_dir, tmp_path_factory.mktemp("exported") / "model"))
    export_model(load(copy), copy, "int8", "full")
    return copy


def least_cosine(model: SentenceTransformer, encoder: OnnxEncoder, texts: list[str] = TEXTS) -> float:
    return float((model.encode_query(texts, normalize_embeddings=True) * encoder.encode(texts, "query")).sum(1).min())


# -----------------------------------------------------------------------------------------------------------
# What is in it


def test_int8_is_close_and_a_fraction_of_the_size(exported: Path) -> None:
    made = export_folder(exported, "int8", "full")
    assert sorted(file.name for file in made.iterdir()) == ["export.json", "model.onnx", "tokenizer.json"]
    assert 0.99 < least_cosine(load(exported), OnnxEncoder(made)) < 1 - 1e-6
    (weights,) = exported.rglob("model.safetensors")
    assert (made / "model.onnx").stat().st_size < 0.65 * weights.stat().st_size


def test_inputs_far_larger_than_the_rest_do_not_take_its_range(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folder)
    # How near int8 comes is the processor's own: .9977 with AVX2, above .998 where it multiplies int8 itself.
    without = least_cosine(model, OnnxEncoder(export_model(model, folder, "int8", "full")))
    with torch.no_grad():
        for layer in model[0].auto_model.encoder.layer:
            layer.intermediate.dense.bias[5] = 200.0  # the others are within 2
            layer.output.dense.weight[:, 5] *= 0.003
    split = least_cosine(model, OnnxEncoder(export_model(model, folder, "int8", "full")))
    assert split > min(0.998, without)
    monkeypatch.setattr(export, "_split_outliers", lambda *_: None)
    monkeypatch.setattr(export, "_FAITHFUL", {"int8": 0.0})
    assert least_cosine(model, OnnxEncoder(export_model(model, folder, "int8", "full"))) < 0.99


def test_a_split_layer_is_the_same_layer() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2, 5, 12)
    for layer in (nn.Linear(12, 4), nn.Linear(12, 4, bias=False)):
        split: Any = export._split_linear(layer, torch.tensor([3, 10]))
        with torch.no_grad():
            torch.testing.assert_close(split(inputs), layer(inputs))
            assert (split.weight[[3, 10]] == 0).all() and split.outlier_weight.shape == (2, 4)


def test_feed_forward_layers_are_split_at_their_largest_inputs(folder: Path) -> None:
    model = load(folder)
    bert: Any = model[0].auto_model
    with torch.no_grad():
        for layer in bert.encoder.layer:
            layer.attention.output.LayerNorm.bias[7] = 100.0
        export._split_outliers(model, bert)
    for layer in bert.encoder.layer:
        assert layer.intermediate.dense.outliers.tolist()[:2].count(7) == 1 and len(layer.intermediate.dense.outliers) == 2
        assert len(layer.output.dense.outliers) == 3  # 64 / 24, rounded up
        assert isinstance(layer.attention.self.query, nn.Linear)


def test_table_of_embeddings_in_int8_is_off_by_half_a_step_at_most() -> None:
    model = BertModel.config_class(vocab_size=50, hidden_size=8, num_hidden_layers=0, num_attention_heads=1)
    bert = BertModel(model)
    weight = bert.get_input_embeddings().weight.detach().clone()
    weight[3] *= 1000  # one row's scale is not the others'
    bert.get_input_embeddings().weight.data.copy_(weight)
    kept = list(range(0, 50, 3))
    export._replace_embeddings(bert, kept, "int8")
    rows = bert.get_input_embeddings()(torch.arange(len(kept)))
    step = weight[kept].abs().amax(1, keepdim=True) / 127
    assert ((rows - weight[kept]).abs() <= step / 2 + 1e-6).all()


def test_a_trimmed_vocabulary_changes_no_korean_embedding(toy_model_dir: Path, tmp_path: Path) -> None:
    words = ["▁", *"가나다라산은는이.?", "한라", "▁제주도", "漢", "é", "я"]
    pieces = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces += [(word, -2.0 - number) for number, word in enumerate(words)] + [("<mask>", 0.0)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=unigram(pieces), unk_token="<unk>", pad_token="<pad>", model_max_length=64
    )
    tokenizer.save_pretrained(str(tmp_path / "bert"))
    bert: Any = load(toy_model_dir)[0].auto_model
    bert.save_pretrained(str(tmp_path / "bert"))
    plain = SentenceTransformer(modules=[Transformer(str(tmp_path / "bert")), Pooling(32, "mean")], device="cpu")
    plain.prompts = {"query": "", "document": ""}
    plain.save(str(tmp_path / "model"), create_model_card=False)

    encoder = OnnxEncoder(export_model(plain, tmp_path / "model", "float32", "korean"))
    assert encoder.tokenizer.get_vocab_size() == len(pieces) - 2  # without 漢 and é; я is the rarest
    assert least_cosine(plain, encoder, ["한라산은?", "가나다라 제주도.", "한라산이X"]) > 0.9999
    assert least_cosine(plain, encoder, ["漢漢漢"]) < 0.999


def test_vocabulary_that_cannot_be_trimmed_is_kept_and_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="search")
    assert OnnxEncoder(export_model(load(folder), folder, "float32", "korean")).vocabulary == "full"
    assert "its whole vocabulary stays" in caplog.text


# -----------------------------------------------------------------------------------------------------------
# When it is made


def test_an_export_is_current_until_the_model_changes(exported: Path, tmp_path: Path) -> None:
    made = export_folder(exported, "int8", "full")
    assert is_current(made, exported)
    copy = Path(shutil.copytree(exported, tmp_path / "copy", copy_function=shutil.copyfile))  # other times, same content
    made = export_folder(copy, "int8", "full")
    assert is_current(made, copy)
    assert not is_current(export_folder(copy, "float32", "full"), copy)

    settings = copy / "config_sentence_transformers.json"
    content = json.loads(settings.read_text())
    settings.write_text(json.dumps({**content, "prompts": {"query": "Q: ", "document": "D: "}}))
    assert not is_current(made, copy)
    settings.write_text(json.dumps(content))
    assert is_current(made, copy)


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.onnx", "half"), ("tokenizer.json", ""), ("export.json", "{"), ("export.json", "[]"), ("export.json", "{}")],
)
def test_an_export_that_is_not_whole_is_not_current(name: str, content: str, exported: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    (export_folder(copy, "int8", "full") / name).write_text(content)
    assert not is_current(export_folder(copy, "int8", "full"), copy)


def test_an_export_of_another_format_is_not_current(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_FORMAT", export._FORMAT + 1)
    assert not is_current(export_folder(exported, "int8", "full"), exported)


def test_a_changed_model_is_exported_again(folder: Path, tmp_path: Path) -> None:
    options = {"backend": "onnx", "precision": "float32"}
    before = E5KorQuADInference(folder, **options).encode_query("산은?")
    made = export_folder(folder, "float32", "korean") / "model.onnx"
    first = made.stat().st_mtime_ns
    np.testing.assert_array_equal(E5KorQuADInference(folder, **options).encode_query("산은?"), before)
    assert made.stat().st_mtime_ns == first

    model = load(folder)
    with torch.no_grad():
        model[0].auto_model.encoder.layer[0].output.dense.weight.mul_(-1)
    model.save(str(folder), create_model_card=False)
    after = E5KorQuADInference(folder, **options).encode_query("산은?")
    np.testing.assert_allclose(after, E5KorQuADInference(folder, device="cpu").encode_query("산은?"), atol=1e-5)
    assert np.abs(after - before).max() > 1e-3


def test_a_failed_export_leaves_the_one_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folder)
    made = export_model(model, folder, "float32", "full")
    content = (made / "model.onnx").read_bytes()

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_check_faithful", full_disk)
    with pytest.raises(InferenceError, match=r"cannot be written to .*float32-full: .*No space left.*Free 1 GB"):
        export_model(model, folder, "float32", "full")
    assert (made / "model.onnx").read_bytes() == content and is_current(made, folder)
    assert [file.name for file in made.parent.iterdir()] == ["float32-full"]


def test_an_export_that_embeds_otherwise_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = export._replace_embeddings

    def damage(encoder: Any, *arguments: Any) -> None:
        plain(encoder, *arguments)
        encoder.encoder.layer[0].output.dense.weight.data.mul_(-1)

    monkeypatch.setattr(export, "_replace_embeddings", damage)
    with pytest.raises(InferenceError, match=r"float32 changes the embeddings \(cosine 0\.\d+\): use the backend torch"):
        export_model(load(folder), folder, "float32", "full")
    assert not export_folder(folder, "float32", "full").exists()


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx"])
def test_without_its_packages_the_torch_backend_works(missing: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InferenceError, match=f"{missing}.*pip install -r requirements-search.txt"):
        E5KorQuADInference(folder, backend="onnx")
    assert E5KorQuADInference(folder, device="cpu").encode_query("산은?").shape == (32,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorflow"}, "backend must be torch or onnx, not 'tensorflow'"),
        ({"backend": "onnx", "precision": "int4"}, "precision must be one of int8, float32, not 'int4'"),
        ({"backend": "onnx", "vocabulary": "latin"}, "vocabulary must be one of full, korean, compact, not 'latin'"),
        ({"backend": "onnx", "device": "cuda"}, "runs on the CPU, not on 'cuda'"),
    ],
)
def test_options_that_there_are_not(options: dict[str, str], message: str, toy_model_dir: Path) -> None:
    with pytest.raises(InferenceError, match=message):
        E5KorQuADInference(toy_model_dir, **options)  # type: ignore[arg-type]


def test_a_search_by_the_export_loads_no_torch(exported: Path) -> None:
    program = (
        "import sys, inference\n"
        "model = inference.E5KorQuADInference(sys.argv[1], backend='onnx', vocabulary='full')\n"
        "model.build_index(['한라산은 제주도에 있다.', '김치는 발효 음식이다.'])\n"
        "print(len(model.search('산은?')), model.model)\n"
        "print([name for name in ('torch', 'transformers', 'sentence_transformers', 'onnx') if name in sys.modules])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(exported)], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["2 None", "[]"]
