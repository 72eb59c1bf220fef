"""What a run leaves on disk: it loads alone, gives the same embeddings, and never half replaces a finished model."""

import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import types
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from sentence_transformers import SentenceTransformer

from config import TrainingConfig
from trainer import checkpoint, setup_lora_model
from trainer.checkpoint import (
    CheckpointError,
    check_output_dir,
    save_finished_model,
    write_metrics,
    write_model_card,
)
from trainer.intervals import Estimate
from trainer.lora import adapter_matrices
from trainer.ranking import METRICS
from trainer.verdict import Difference, TaskResult, Verdict

TEXTS = ["대한민국의 수도는?", "한글을 만든 사람은 세종대왕이다.", "H2O", "가" * 300]


@pytest.fixture
def config(toy_config) -> TrainingConfig:
    return toy_config(lora_target_modules=["query", "key", "value", "dense"])


@pytest.fixture
def trained(toy_model, config):
    """The toy model whose adapters are far from zero, as after a long training."""
    model = setup_lora_model(toy_model, config)
    change_adapters(model, seed=0)
    return model


def change_adapters(model: SentenceTransformer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, matrix in adapter_matrices(model):
            matrix.normal_(std=0.2, generator=generator)


def both_sides(model: SentenceTransformer) -> np.ndarray:
    return np.stack([model.encode_query(TEXTS), model.encode_document(TEXTS)])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------------------
# Saved and loaded again


def test_the_folder_alone_gives_the_embeddings_of_the_trained_model(trained, config, toy_model_dir):
    wanted = both_sides(trained)
    base = both_sides(SentenceTransformer(str(toy_model_dir), device="cpu"))
    save_finished_model(trained, config, {"step": 3})
    loaded = SentenceTransformer(config.output_dir, device="cpu", local_files_only=True)
    assert abs(both_sides(loaded) - wanted).max() < 1e-5
    assert abs(base - wanted).max() > 0.01  # training has moved the embeddings, or the line above says nothing
    assert loaded.prompts == {"query": "query: ", "document": "passage: "}
    assert loaded.max_seq_length == trained.max_seq_length
    assert [type(module).__name__ for module in loaded] == ["Transformer", "Pooling", "Normalize"]


def test_the_adapter_on_the_base_model_gives_the_same_embeddings(trained, config, toy_model_dir):
    wanted = both_sides(trained)
    save_finished_model(trained, config, {})
    model = SentenceTransformer(str(toy_model_dir), device="cpu")
    model[0].model = PeftModel.from_pretrained(model[0].model, str(Path(config.output_dir) / "lora_adapter"))
    assert abs(both_sides(model) - wanted).max() < 1e-5


def test_the_files_are_exactly_these(trained, config):
    save_finished_model(trained, config, {"step": 7})
    output_dir = Path(config.output_dir)
    assert contents(output_dir).keys() == {
        "1_Pooling/config.json",
        "2_Normalize/config.json",
        "config.json",
        "config_sentence_transformers.json",
        "lora_adapter/adapter_config.json",
        "lora_adapter/adapter_model.safetensors",
        "metrics.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_config.json",
    }
    assert TrainingConfig.load(output_dir / "training_config.json") == config
    assert json.loads((output_dir / "metrics.json").read_text()) == {"step": 7}
    adapter = json.loads((output_dir / "lora_adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "intfloat/multilingual-e5-small"
    assert [path.name for path in output_dir.parent.iterdir() if path.name != "logs"] == ["model"]


def test_training_goes_on_after_a_save(trained, config):
    before = {name: parameter.clone() for name, parameter in trained.named_parameters()}
    trained.train()
    save_finished_model(trained, config, {})
    assert trained.training
    for name, parameter in trained.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.requires_grad == ("lora" in name), name


def test_saving_touches_no_network(trained, config, monkeypatch):
    touched = []

    def refuse(*arguments, **_):
        touched.append(arguments)
        raise OSError("no network in this test")

    # Offline mode would hide a question to the hub: it must not be asked at all.
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    save_finished_model(trained, config, {})
    assert touched == []
    SentenceTransformer(config.output_dir, device="cpu")
    assert touched == []


def test_nothing_of_this_machine_is_in_the_saved_settings(trained, config, toy_model_dir):
    save_finished_model(trained, config, {})
    for name, content in contents(Path(config.output_dir)).items():
        if name != "training_config.json":
            assert str(toy_model_dir).encode() not in content, name


# ------------------------------------------------------------------------------------------------------------
# Over a finished model


def test_an_output_folder_with_a_finished_model_is_refused(trained, config):
    check_output_dir(config)
    save_finished_model(trained, config, {})
    with pytest.raises(CheckpointError, match=r"holds a finished model already.*--output_dir.*--overwrite"):
        check_output_dir(config)
    check_output_dir(TrainingConfig(**config.to_dict() | {"overwrite": True}))


def test_an_output_folder_that_cannot_be_one_is_refused(toy_config, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/model"):
        with pytest.raises(CheckpointError, match=f"--output_dir .*{name}: cannot be written to"):
            check_output_dir(toy_config(output_dir=str(tmp_path / name)))


def test_an_output_folder_with_other_files_is_refused_even_with_overwrite(toy_config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("notes")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match=r"mine holds files that no run of train\.py made"):
            check_output_dir(toy_config(output_dir=str(tmp_path / "mine"), overwrite=overwrite))


def test_what_the_system_or_the_run_itself_leaves_is_nobodys(toy_config, tmp_path):
    mine = tmp_path / "mine"
    (mine / "runs" / "logs").mkdir(parents=True)
    for name in (".DS_Store", "Thumbs.db"):
        (mine / name).write_text("")
    check_output_dir(toy_config(output_dir=str(mine), log_dir=str(mine / "runs" / "logs")))
    with pytest.raises(CheckpointError, match=r"that no run of train\.py made \(runs\)"):
        check_output_dir(toy_config(output_dir=str(mine), log_dir=str(tmp_path)))


def test_the_check_makes_the_folder_and_leaves_nothing_in_it(config):
    check_output_dir(config)
    assert list(Path(config.output_dir).iterdir()) == []


def test_a_later_save_replaces_the_earlier_model(trained, config):
    save_finished_model(trained, config, {"step": 1})
    (Path(config.output_dir) / "notes.txt").write_text("of the user")
    change_adapters(trained, seed=1)
    wanted = both_sides(trained)
    save_finished_model(trained, config, {"step": 2})
    assert abs(both_sides(SentenceTransformer(config.output_dir, device="cpu")) - wanted).max() < 1e-5
    assert json.loads((Path(config.output_dir) / "metrics.json").read_text()) == {"step": 2}
    assert (Path(config.output_dir) / "notes.txt").read_text() == "of the user"


@pytest.mark.parametrize("place", ["model", "adapter", "settings", "metrics"])
def test_a_failure_while_saving_leaves_the_earlier_model_whole(trained, config, monkeypatch, place):
    save_finished_model(trained, config, {"step": 1})
    before = contents(Path(config.output_dir))
    change_adapters(trained, seed=1)

    def disk_full(*_, **__):
        raise OSError(28, "No space left on device")

    owner, name = {
        "model": (SentenceTransformer, "save_pretrained"),
        "adapter": (PeftModel, "save_pretrained"),
        "settings": (TrainingConfig, "save"),
        "metrics": (checkpoint, "write_metrics"),
    }[place]
    monkeypatch.setattr(owner, name, disk_full)
    with pytest.raises(CheckpointError, match=r"could not be saved to .*model: No space left on device\. Free some space"):
        save_finished_model(trained, config, {"step": 2})
    assert contents(Path(config.output_dir)) == before
    assert [path.name for path in Path(config.output_dir).parent.iterdir() if path.name != "logs"] == ["model"]


@pytest.mark.parametrize(("another_base", "number"), [(False, 1), (False, 7), (False, 13), (True, 4), (True, 12)])
def test_a_kill_while_files_take_their_place_leaves_a_model_and_the_next_start_finishes(
    trained, config, in_child, another_base, number
):
    output_dir = Path(config.output_dir)
    save_finished_model(trained, config, {"step": 1})
    if another_base:
        settings = output_dir / "config.json"
        settings.write_text(settings.read_text().replace('"layer_norm_eps"', '"noted": 1, "layer_norm_eps"'))
    earlier, files = both_sides(trained), contents(output_dir).keys()
    change_adapters(trained, seed=1)
    later = both_sides(trained)
    moved = []

    def killed(source, target):
        moved.append(target)
        if len(moved) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        os.replace(source, target)

    def save():
        checkpoint.os = types.SimpleNamespace(**{**vars(os), "replace": killed})
        save_finished_model(trained, config, {"step": 2})

    assert in_child(save) == -signal.SIGKILL
    if another_base:  # rather no model than one base's weights under another's settings
        with pytest.raises((OSError, ValueError)):
            SentenceTransformer(config.output_dir, device="cpu", local_files_only=True)
    else:
        found = both_sides(SentenceTransformer(config.output_dir, device="cpu", local_files_only=True))
        assert min(abs(found - earlier).max(), abs(found - later).max()) < 1e-5
    with pytest.raises(CheckpointError, match="holds a finished model already"):
        check_output_dir(config)
    assert abs(both_sides(SentenceTransformer(config.output_dir, device="cpu")) - later).max() < 1e-5
    assert contents(output_dir).keys() == files and len(files) == 13
    assert json.loads((output_dir / "metrics.json").read_text()) == {"step": 2}


def test_an_interrupt_while_saving_leaves_no_temporary_folder(trained, config, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(PeftModel, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_finished_model(trained, config, {})
    assert contents(Path(config.output_dir).parent) == {}


def test_an_output_folder_on_another_file_system_works(trained, toy_config, tmp_path):
    """A mounted volume or a link to another disk: a rename into it from outside would fail."""
    if not Path("/dev/shm").is_dir() or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("this machine has no second file system to write to")
    other = tempfile.mkdtemp(dir="/dev/shm")
    try:
        (tmp_path / "linked").symlink_to(other)
        config = toy_config(output_dir=str(tmp_path / "linked"))
        save_finished_model(trained, config, {})
        assert (Path(other) / "model.safetensors").is_file()
        assert not [path.name for path in Path(other).iterdir() if path.name.startswith(".")]
    finally:
        shutil.rmtree(other)


# ------------------------------------------------------------------------------------------------------------
# The card


def test_the_card_holds_the_measured_table_and_readable_metadata(config):
    half, more = (dict.fromkeys(METRICS, Estimate(value, (value - 0.1, value + 0.1))) for value in (0.5, 0.75))
    models, differences = {"base": half, "tuned": more}, [Difference("tuned", "base", half)]
    verdict = Verdict([TaskResult("answers", 1234, 1234, 567, "89 articles", models, differences)])
    Path(config.output_dir).mkdir(parents=True)
    write_model_card(config, verdict, "This is a 4-bit copy.")
    card = (Path(config.output_dir) / "README.md").read_text(encoding="utf-8")
    _, metadata, text = card.split("---\n", 2)
    assert yaml.safe_load(metadata)["base_model"] == "intfloat/multilingual-e5-small"
    for part in (verdict.table(), *verdict.sentences(), "This is a 4-bit copy.", "- learning_rate: 2e-05", "lora_adapter/"):
        assert part in text


def test_metrics_are_json_with_korean_as_it_is(tmp_path):
    write_metrics(tmp_path, {"note": "한국어", "step": 3})
    text = (tmp_path / "metrics.json").read_text(encoding="utf-8")
    assert "한국어" in text and json.loads(text) == {"note": "한국어", "step": 3}


def test_the_card_of_the_library_asks_nothing_and_says_nothing(trained, config, caplog):
    with caplog.at_level(logging.WARNING):
        save_finished_model(trained, config, {})
    assert caplog.records == []
