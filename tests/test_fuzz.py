"""Any input at all: it is taken, or refused in a sentence. `make fuzz` tries FUZZ examples of each property."""

import contextlib
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

import train
from config import ConfigError, TrainingConfig, config_from_command_line, read_recipe
from dataloader import DatasetError, build_dataloader, load_entire_dataset, prepare_retrieval_sets, prepare_training_data
from inference import E5KorQuADInference, InferenceError
from trainer import EmbeddingTrainer, setup_lora_model
from trainer.checkpoint import CheckpointError
from trainer.resume import read_checkpoint, write_checkpoint

pytestmark = pytest.mark.fuzz

FUZZ = int(os.environ.get("FUZZ", "0"))


def examples(few: int) -> settings:
    """`few` examples in the ordinary tests; FUZZ, where it is set."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=FUZZ or few, deadline=None, suppress_health_check=checks)


NASTY = [
    "",
    " ",
    "😀",
    "\x00\x01\x1f",
    "\u202e\u200f",
    "\ud800",
    "a\udfffb",
    "\ufeff",
    "e\u0301" * 9,
    "<b>",
    "&#xD800;",
    "가",
]
any_text = st.one_of(
    st.sampled_from(NASTY), st.text(max_size=20), st.text(st.characters(categories=["Cs", "Cc", "Cf", "Lo"]), max_size=9)
)
any_value = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), any_text, st.binary(max_size=5)),
        st.sampled_from([10**400, "9" * 400, math.nan, -math.inf, Path("x"), "1e999", "nan", "0x10", "1_000"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=2),
    max_leaves=4,
)
DEFAULTS = TrainingConfig().to_dict()


# ------------------------------------------------------------------------------------------------------------
# Settings


@given(st.dictionaries(st.sampled_from(sorted(DEFAULTS)), any_value, max_size=4))
@examples(30)
def test_settings_of_any_value(tmp_path, values):
    try:
        config = TrainingConfig(**values)
    except ConfigError as error:
        assert error.problems and all(problem.split(":")[0][2:] in values for problem in error.problems)
        return
    for name, value in config.to_dict().items():
        assert type(value) is type(DEFAULTS[name]) and value == value, name
    config.save(tmp_path / "saved.json")
    assert TrainingConfig.load(tmp_path / "saved.json") == config


@pytest.mark.parametrize("name", sorted(DEFAULTS))
@given(value=any_value)
@examples(8)
def test_each_setting_of_any_value(name, value):
    with contextlib.suppress(ConfigError):
        assert type(getattr(TrainingConfig(**{name: value}), name)) is type(DEFAULTS[name])


@given(st.lists(st.sampled_from([f"--{name}" for name in DEFAULTS if name != "resume"]) | any_text, max_size=6))
@examples(50)
def test_any_command_line(argv):
    with contextlib.suppress(ConfigError, SystemExit):
        assert isinstance(config_from_command_line(["--dataset_root", "x", *argv]), TrainingConfig)


@given(st.binary(max_size=60) | any_text.map(lambda text: f"seed: {text}".encode("utf-8", "replace")))
@examples(50)
def test_any_recipe(tmp_path, content):
    (tmp_path / "recipe.yaml").write_bytes(content)
    with contextlib.suppress(ConfigError):
        assert set(read_recipe(tmp_path / "recipe.yaml")) <= DEFAULTS.keys()


# ------------------------------------------------------------------------------------------------------------
# Data


@pytest.fixture(scope="module")
def toy_trainer(toy_model_dir, tmp_path_factory) -> EmbeddingTrainer:
    folder = tmp_path_factory.mktemp("fuzz")
    config = TrainingConfig(output_dir=str(folder / "model"), log_dir="", device="cpu", max_seq_length=32, batch_size=4)
    model = SentenceTransformer(str(toy_model_dir), device="cpu", local_files_only=True)
    model.max_seq_length = 32
    return EmbeddingTrainer(setup_lora_model(model, config), config)


def write_dataset(folder: Path, articles: list[list[tuple[str, str]]]) -> Path:
    """A KorQuAD 1.0 file of these (question, answer) pairs, each article with one paragraph that holds its answers."""
    made = []
    for number, pairs in enumerate(articles):
        context, qas = "", []
        for place, (question, answer) in enumerate(pairs):
            answers = [{"text": answer, "answer_start": len(context)}]
            qas.append({"id": f"{number}-{place}", "question": question, "answers": answers})
            context += answer + " "
        made.append({"title": str(number), "paragraphs": [{"context": context, "qas": qas}]})
    path = folder / "set.json"
    path.write_text(json.dumps({"version": "KorQuAD_v1.0", "data": made}), encoding="utf-8")
    return path


def learn(trainer: EmbeddingTrainer, path: Path, **changes) -> list[float]:
    """Read, split, batch, and take the loss and gradients of each batch, as a run would."""
    config = TrainingConfig(**trainer.config.to_dict() | {"dataset_root": str(path)} | changes)
    dataset = load_entire_dataset(path, 0, verbose=False, fields="windows", window=48)
    training, _ = prepare_training_data(dataset, config)
    for part in ("validation", "held_out"):
        for task in prepare_retrieval_sets(dataset, config, part).values():
            assert all(text.strip() for text in [*task.queries.values(), *task.corpus.values()])
    optimizer, _, scaler = trainer._setup_optimizer_and_scheduler(100)
    losses = []
    for batch in build_dataloader(training, config, tokenizer=trainer.model.tokenizer):
        losses.append(trainer._backward(batch, None, optimizer, scaler).item())
        assert all(parameter.grad.isfinite().all() for parameter in trainer.model.parameters() if parameter.requires_grad)
    return losses


@given(st.lists(st.lists(st.tuples(any_text, any_text), max_size=3), max_size=8), st.integers(2, 9))
@examples(15)
def test_any_questions_and_answers(toy_trainer, tmp_path, articles, batch_size):
    path = write_dataset(tmp_path, articles)
    with contextlib.suppress(DatasetError):
        losses = learn(toy_trainer, path, batch_size=batch_size)
        assert losses and all(math.isfinite(loss) and loss >= 0 for loss in losses)


@pytest.mark.long
@pytest.mark.parametrize("text", ["가" * 350_000, "<td>" * 250_000, "\u0301" * 500_000], ids=["syllables", "tags", "marks"])
def test_a_text_of_a_megabyte(toy_trainer, tmp_path, text):
    assert len(text.encode()) >= 1_000_000
    path = write_dataset(
        tmp_path, [[(f"물음{number}{text}", f"답{number}"), ("물음?", f"{text}답{number}")] for number in range(4)]
    )
    assert all(math.isfinite(loss) for loss in learn(toy_trainer, path))


def test_identical_answers_teach_nothing_and_break_nothing(toy_trainer, tmp_path):
    path = write_dataset(tmp_path, [[(f"물음 {number}?", "하나뿐인 답")] for number in range(12)])
    assert learn(toy_trainer, path) == pytest.approx([0, 0], abs=1e-6)  # no passage is a negative of another question


@pytest.mark.parametrize("count", [0, 1])
def test_too_little_to_split_is_said(toy_trainer, tmp_path, count):
    path = write_dataset(tmp_path, [[("물음?", "답")]] * count)
    with pytest.raises(DatasetError, match=r"no training pair: .* articles|no article|holds no"):
        learn(toy_trainer, path)


SMALL = {
    "two pairs": [[("물음 하나?", "답 하나")], [("물음 둘?", "답 둘")]],
    "a batch larger than the set": [[(f"물음 {number}?", f"답 {number}")] for number in range(5)],
    "one answer everywhere": [[(f"물음 {number}?", "답")] for number in range(9)],
    "one article with questions": [[("물음?", "답"), ("둘?", "다른 답")], *[[]] * 6],
}


@pytest.mark.parametrize("name", SMALL)
def test_the_script_on_little_data(name, toy_model_dir, tmp_path, in_child, capfd, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_dataset(tmp_path, SMALL[name])
    options = ["--dataset_root", str(path), "--model_name", str(toy_model_dir), "--device", "cpu", "--num_epochs", "1"]
    options += ["--output_dir", str(tmp_path / "model"), "--log_dir", "", "--max_seq_length", "32"]
    status = in_child(lambda: train.main(options))
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert status in (0, 1) and (status == 0 or "Error: " in said)
    assert (tmp_path / "model" / "modules.json").exists() == (status == 0)


# ------------------------------------------------------------------------------------------------------------
# Search


@pytest.fixture(scope="module")
def engine(toy_model_dir) -> E5KorQuADInference:
    return E5KorQuADInference(toy_model_dir, device="cpu")


@given(any_text, st.lists(any_text, max_size=4), st.integers(-1, 9) | any_value)
@examples(40)
def test_any_search(engine, query, passages, top_k):
    try:
        found = engine.search(query, passages, top_k)
    except InferenceError as error:
        assert str(error)
        return
    assert len(found) == min(top_k, len(passages))
    assert [result["rank"] for result in found] == list(range(1, len(found) + 1))
    assert all(-1 <= result["score"] <= 1 and passages[result["index"]] == result["passage"] for result in found)
    scores = [result["score"] for result in found]
    assert scores == sorted(scores, reverse=True)
    assert engine.batch_search([query], passages, top_k) == [found]


@given(any_value, any_value)
@examples(40)
def test_any_similarity(engine, a, b):
    with contextlib.suppress(InferenceError):
        found = engine.compute_similarity(a, b)
        assert np.isfinite(found).all() and np.abs(found).max(initial=0) <= 1


@pytest.mark.long
@pytest.mark.parametrize("text", ["가" * 350_000, "😀" * 250_000], ids=["syllables", "emoji"])
def test_a_search_with_a_megabyte(engine, text):
    (found,) = engine.search(text, [text, "서울"], 1)
    assert found["index"] in (0, 1)


@given(
    st.sampled_from(["config.json", "modules.json", "tokenizer.json", "sentence_bert_config.json", "model.safetensors"]),
    st.data(),
)
@examples(15)
def test_a_model_folder_with_one_other_file(toy_model_dir, tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(toy_model_dir, folder)
    content = (folder / name).read_bytes()
    cut = data.draw(st.integers(0, min(len(content), 400)))
    other = data.draw(st.sampled_from([b"", b"null", b"[]", b"{}", b"[1]", b'[{"path": "", "type": 3}]', content[:cut]]))
    (folder / name).write_bytes(other)
    try:
        with contextlib.suppress(InferenceError):
            assert E5KorQuADInference(folder, device="cpu").encode_query("가").shape == (32,)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "x/../../elsewhere"])
@pytest.mark.parametrize("kind", ["sentence_transformers.models.Transformer", "subprocess.Popen"])
def test_a_model_s_files_do_not_lead_out_of_its_folder_nor_name_other_code(toy_model_dir, tmp_path, path, kind):
    shutil.copytree(toy_model_dir, tmp_path / "model")
    shutil.copytree(toy_model_dir, tmp_path / "elsewhere")
    modules = json.loads((tmp_path / "model" / "modules.json").read_text())
    modules[0] |= {"path": path, "type": kind} if kind.startswith("sentence") else {"type": kind}
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    said = "leads out of the folder" if kind.startswith("sentence") else "is no class of sentence-transformers"
    with pytest.raises(InferenceError, match=said):
        E5KorQuADInference(tmp_path / "model", device="cpu")


# ------------------------------------------------------------------------------------------------------------
# Checkpoints


@given(st.data())
@examples(25)
def test_a_checkpoint_with_any_damage_is_whole_or_refused(tmp_path_factory, data):
    config = TrainingConfig(output_dir=str(tmp_path_factory.mktemp("damage")))
    tensors = {"adapter": {"a": torch.arange(3.0)}, "optimizer": {"0.step": torch.tensor(2.0)}, "random": {}}
    folder = write_checkpoint(config, 3, {"global_step": 3}, tensors)
    name = data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    content = bytearray((folder / name).read_bytes())
    place = data.draw(st.integers(0, 10**6)) % len(content)  # whose length follows the path in it
    damage = data.draw(st.sampled_from(["flip", "cut", "add", "other"]))
    if damage == "flip":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif damage == "cut":
        del content[place:]
    elif damage == "add":
        content += b"x"
    else:
        content = bytearray(data.draw(st.sampled_from([b"", b"null", b"[]", b"{}", b"3", b"[" * 100_000])))
    (folder / name).write_bytes(content)
    try:
        found = read_checkpoint(folder)
    except CheckpointError:
        return
    assert name == "checksums.json"  # what else is damaged differs from its checksum
    assert found.state["global_step"] == 3 and torch.equal(found.tensors["adapter"]["a"], torch.arange(3.0))
