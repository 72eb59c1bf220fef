"""A model's fingerprint: what changes embeddings changes it, and nothing else does."""

import json
import os
import shutil
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from search import fingerprint
from search.fingerprint import model_fingerprint, model_state


@pytest.fixture
def copy(toy_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_model_dir, tmp_path / "copy"))


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_copy_and_a_saved_again_model_have_the_same(toy_model_dir: Path, copy: Path, tmp_path: Path) -> None:
    original = model_fingerprint(toy_model_dir)
    assert len(original) == 64 and original == model_fingerprint(copy) == model_fingerprint(str(copy))
    os.utime(copy / "model.safetensors", (0, 0))
    (copy / "README.md").write_text("a model card")
    (copy / "metrics.json").write_text("{}")
    (copy / "onnx").mkdir()
    (copy / "onnx" / "model.onnx").write_bytes(b"an export")
    (copy / "lora_adapter").mkdir()
    (copy / "lora_adapter" / "adapter_model.safetensors").write_bytes(b"an adapter")
    change_json(copy / "config.json", transformers_version="9.9")
    assert model_fingerprint(copy) == original
    model = SentenceTransformer(str(copy), device="cpu", local_files_only=True)
    model.save(str(tmp_path / "again"), create_model_card=False)
    (tmp_path / "third").mkdir()
    model.save(str(tmp_path / "third"), create_model_card=False)
    assert model_fingerprint(tmp_path / "again") == model_fingerprint(tmp_path / "third")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "1_Pooling/config.json", "prompts", "length"])
def test_what_changes_embeddings_changes_it(copy: Path, name: str) -> None:
    original, state = model_fingerprint(copy), model_state(copy)
    if name == "prompts":
        change_json(copy / "config_sentence_transformers.json", prompts={"query": "Q: "})
    elif name == "length":
        change_json(copy / "sentence_bert_config.json", max_seq_length=64)
    else:
        content = bytearray((copy / name).read_bytes())
        content[-2] ^= 1
        (copy / name).write_bytes(content)
    assert model_fingerprint(copy) != original
    assert model_state(copy) != state


def test_weights_are_read_once_by_many_processes(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "_LARGE", 100_000)
    forget = fingerprint._content_hash.cache_clear  # as a new process begins
    forget()
    first = model_fingerprint(copy)
    forget()
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint.hashlib, "file_digest", None)
        assert model_fingerprint(copy) == first
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-2] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    assert model_fingerprint(copy) != first
    (known,) = (tmp_path / "cache").rglob("fingerprints.json")
    assert list(known.parent.iterdir()) == [known]
    for damage in (b"", b"[1]", b'{"a": 1}'):
        known.write_bytes(damage)
        forget()
        assert model_fingerprint(copy) != first


def test_a_cache_that_cannot_be_written_does_no_harm(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = model_fingerprint(copy)
    fingerprint._content_hash.cache_clear()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(fingerprint, "_LARGE", 100_000)
    assert model_fingerprint(copy) == first


def test_a_folder_without_modules(copy: Path) -> None:
    for content in (None, "{", "[1]", '[{"path": 7}]'):
        (copy / "modules.json").unlink(missing_ok=True)
        if content is not None:
            (copy / "modules.json").write_text(content)
        assert len(model_fingerprint(copy)) == 64
