"""Going on with a run: killed at any moment, it ends as if nothing had happened; and what is refused."""

import json
import logging
import os
import random
import shutil
import signal
import time
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import InputExample, SentenceTransformer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from torch.utils.data import DataLoader

from config import ConfigError, TrainingConfig, checkpoint_folders, config_from_command_line
from dataloader import build_dataloader
from trainer import EmbeddingTrainer, checkpoint, resume, setup_lora_model
from trainer.checkpoint import CheckpointError, check_output_dir, claimed
from trainer.lora import adapter_state
from trainer.resume import BatchStream, find_checkpoint, read_checkpoint
from trainer.signals import TrainingStopped

SYLLABLES = "가나다라마바사아자차카타파하거너더러머버"
EXAMPLES = [
    InputExample(texts=[f"query: {first}{second}는?", f"passage: {second}{first}" + first * (index % 7)])
    for index, (first, second) in enumerate(zip(SYLLABLES, SYLLABLES[3:], strict=False))
]  # 17 of them: with batches of 4, shuffling leaves out another one in each epoch
QUERIES = {f"q{i}": example.texts[0].removeprefix("query: ") for i, example in enumerate(EXAMPLES)}
CORPUS = {f"d{i}": example.texts[1].removeprefix("passage: ") for i, example in enumerate(EXAMPLES)}
RELEVANT = {f"q{i}": {f"d{i}"} for i in range(len(EXAMPLES))}
STEPS = 8  # 4 in each of 2 epochs


@pytest.fixture
def run_settings(toy_config, tmp_path):
    """Name, changes → the settings of a run of 8 steps, evaluated at 3, 4, 6 and 8, with dropout."""

    def make(name: str, **changes) -> TrainingConfig:
        settings = {"batch_size": 4, "num_epochs": 2, "learning_rate": 1e-2, "warmup_steps": 2, "max_seq_length": 32}
        settings |= {"eval_steps": 3, "checkpoint_steps": 2, "log_every_n_steps": 1, "log_gradients": False}
        places = {"output_dir": str(tmp_path / name / "model"), "log_dir": str(tmp_path / name / "logs")}
        return toy_config(**settings | places | changes)

    return make


@pytest.fixture
def train_toy(toy_model_dir):
    """Settings → the toy model trained with them."""

    def train(config: TrainingConfig, evaluate=None, examples=EXAMPLES, model_dir=toy_model_dir) -> EmbeddingTrainer:
        torch.manual_seed(config.seed)
        random.seed(config.seed)
        model = SentenceTransformer(str(model_dir), device="cpu", local_files_only=True)
        model.max_seq_length = config.max_seq_length
        trainer = EmbeddingTrainer(setup_lora_model(model, config), config)
        evaluator = trainer.create_evaluator(QUERIES, CORPUS, RELEVANT)
        wrapped = evaluator if evaluate is None else lambda model: evaluate(evaluator, model)
        trainer.train(build_dataloader(examples, config, tokenizer=model.tokenizer), evaluator=wrapped)
        return trainer

    return train


def curves(config: TrainingConfig) -> dict[str, list[tuple[int, float]]]:
    """Tag → (step, value) of the one run, as TensorBoard shows it; but for the speed."""
    (run_dir,) = Path(config.log_dir).iterdir()
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    tags = set(events.Tags()["scalars"]) - {"train/pairs_per_second"}
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in sorted(tags)}


def kept(config: TrainingConfig) -> list[str]:
    return sorted(path.name for path in (Path(config.output_dir) / "checkpoints").iterdir())


def weights(config: TrainingConfig) -> dict[str, bytes]:
    return {name: (Path(config.output_dir) / name).read_bytes() for name in ("model.safetensors", ADAPTER)}


ADAPTER = "lora_adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def reference():
    """Curves, weights and last checkpoint of the run that nobody interrupts; made by the first test that needs it."""
    return {}


@pytest.fixture
def uninterrupted(reference, run_settings, train_toy, in_child):
    if "curves" not in reference:
        config = run_settings("reference")
        assert in_child(lambda: train_toy(config) and None) == 0
        last = read_checkpoint(Path(config.output_dir) / "checkpoints" / f"batch-{STEPS:08d}")
        reference.update(curves=curves(config), weights=weights(config), last=last)
    return reference


# ------------------------------------------------------------------------------------------------------------
# Killed


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_in_a_step(number: int) -> None:
    """In the middle of the step that is the `number`th of this process, its gradients just made."""
    backward, calls = EmbeddingTrainer._backward, []

    def counted(self, *arguments):
        loss = backward(self, *arguments)
        calls.append(1)
        if len(calls) == number:
            kill()
        return loss

    EmbeddingTrainer._backward = counted


def killed_in_a_checkpoint(number: int) -> None:
    """At the `number`th time that a checkpoint's file is written (half of it), flushed or its folder renamed."""
    calls = []

    def counted(function, half=None):
        def call(path, *arguments):
            calls.append(1)
            if len(calls) == number:
                if half:
                    half(path, *arguments)
                kill()
            return function(path, *arguments)

        return call

    write, rename = Path.write_bytes, Path.rename
    Path.write_bytes = counted(write, lambda path, content: write(path, content[: len(content) // 2]))
    Path.rename = counted(rename)
    resume.flush = counted(resume.flush)


def killed_in_the_last_save(number: int) -> None:
    """Before the `number`th file of the finished model takes its place."""
    replace, calls = os.replace, []

    def counted(source, target):
        calls.append(1)
        if len(calls) == number:
            kill()
        replace(source, target)

    checkpoint.os = types.SimpleNamespace(**{**vars(os), "replace": counted})


def go_on_until_done(config: TrainingConfig, train_toy, in_child, plans, at_most: int = 99) -> list[int]:
    """Run in one process after the other, each killed as its plan says, until one ends by itself."""
    statuses: list[int] = []
    for number, (where, when) in enumerate([*plans, (None, 0)][:at_most]):
        started = bool(checkpoint_folders(config.output_dir))
        if not started:  # killed before its first checkpoint: a run that never was
            shutil.rmtree(config.log_dir, ignore_errors=True)
        now = TrainingConfig(**config.to_dict() | {"resume": "newest" if started else ""})

        def evaluate(evaluator, model, where=where, when=when, calls=[]):  # noqa: B006
            scores = evaluator(model)
            calls.append(1)
            if where == "evaluation" and len(calls) == when:
                kill()
            return scores

        def run(where=where, when=when, now=now, number=number, evaluate=evaluate):
            # Event files sort by their second; these processes take less.
            event_file_writer.time = types.SimpleNamespace(time=lambda: time.time() + 2 * number)
            places = {"step": killed_in_a_step, "checkpoint": killed_in_a_checkpoint, "save": killed_in_the_last_save}
            if where in places:
                places[where](when)
            train_toy(now, evaluate)

        meanwhile = None
        if where == "any time":

            def meanwhile(child, when=when):
                time.sleep(when)
                os.kill(child, signal.SIGKILL)

        statuses.append(in_child(run, meanwhile))
        if statuses[-1] == 0:
            break
    return statuses


def assert_as_if_nothing_had_happened(config: TrainingConfig, uninterrupted) -> None:
    seen = curves(config)
    assert [step for step, _ in seen["train/loss"]] == list(range(1, STEPS + 1))
    assert seen == uninterrupted["curves"]
    assert weights(config) == uninterrupted["weights"]
    last = read_checkpoint(Path(config.output_dir) / "checkpoints" / f"batch-{STEPS:08d}")
    for group, tensors in uninterrupted["last"].tensors.items():
        assert tensors.keys() == last.tensors[group].keys()
        assert all(torch.equal(tensor, last.tensors[group][name]) for name, tensor in tensors.items()), group
    same = ("global_step", "best", "metrics", "scheduler", "scaler", "place")
    assert {name: last.state[name] for name in same} == {name: uninterrupted["last"].state[name] for name in same}


def test_the_run_to_compare_with_learns(uninterrupted):
    losses = [value for _, value in uninterrupted["curves"]["train/loss"]]
    assert len(set(losses)) == STEPS and losses[-1] < losses[0]
    assert [step for step, _ in uninterrupted["curves"]["eval/score"]] == [0, 3, 4, 6, 8]
    assert len({score for _, score in uninterrupted["curves"]["eval/score"]}) > 1  # else equal scores would say nothing


def test_killed_in_a_step_an_evaluation_a_checkpoint_and_the_last_save(run_settings, train_toy, in_child, uninterrupted):
    config = run_settings("killed")
    plans = [("checkpoint", 14), ("step", 3), ("evaluation", 1), ("step", 4), ("save", 6)]
    statuses = go_on_until_done(config, train_toy, in_child, plans)
    assert statuses == [-signal.SIGKILL] * 5 + [0]
    assert_as_if_nothing_had_happened(config, uninterrupted)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_killed_ten_times_over_at_random(run_settings, train_toy, in_child, uninterrupted, seed):
    chance = random.Random(seed)
    config = run_settings("killed")
    plans = []
    for where in ["step", "checkpoint", "evaluation", "save", "any time"] * 2:
        latest = {"step": 5, "checkpoint": 40, "evaluation": 3, "save": 13, "any time": 0}[where]
        plans.append((where, chance.randint(1, latest) if latest else chance.uniform(0, 1.5)))
    chance.shuffle(plans)
    statuses = go_on_until_done(config, train_toy, in_child, plans)
    # Where a plan never comes to pass, the run has ended by itself; then it is killed while it is done once more.
    while len(statuses) < len(plans):
        statuses += go_on_until_done(config, train_toy, in_child, plans[len(statuses) :])
    assert set(statuses) <= {-signal.SIGKILL, 0}
    if statuses[-1] != 0:
        assert go_on_until_done(config, train_toy, in_child, [])[-1] == 0
    assert_as_if_nothing_had_happened(config, uninterrupted)


# ------------------------------------------------------------------------------------------------------------
# What is kept


def test_a_checkpoint_is_data_only_and_the_newest_two_are_kept(run_settings, train_toy):
    config = run_settings("kept")
    train_toy(config)
    assert kept(config) == [".lock", "batch-00000006", "batch-00000008"]
    folder = Path(config.output_dir) / "checkpoints" / "batch-00000008"
    names = [f"{group}.safetensors" for group in ("adapter", "best_adapter", "optimizer", "random")]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*names, "state.json", "training_config.json", "checksums.json"]
    )
    assert {name.split(".")[1] for name in load_file(folder / "random.safetensors")} == {"torch", "loader"}
    assert json.loads((folder / "state.json").read_text())["best"]["step"] in (3, 4, 6, 8)


def test_how_many_are_kept_and_how_often_is_a_setting(run_settings, train_toy):
    config = run_settings("kept", keep_checkpoints=4, checkpoint_steps=1, eval_steps=100)
    train_toy(config)
    assert kept(config) == [".lock", *(f"batch-{step:08d}" for step in (5, 6, 7, 8))]


def test_the_best_adapter_is_in_every_later_checkpoint(run_settings, train_toy):
    config, adapters = run_settings("best"), []

    def best_is_the_first(evaluator, model):
        adapters.append(adapter_state(model))
        return {"answers_mrr@10": 1 / len(adapters) if len(adapters) > 1 else 0.0}

    trainer = train_toy(config, best_is_the_first)
    assert trainer.best_step == 3
    found = find_checkpoint(TrainingConfig(**config.to_dict() | {"resume": "newest"}))
    assert all(torch.equal(found.tensors["best_adapter"][name], matrix) for name, matrix in adapters[1].items())
    saved = load_file(Path(config.output_dir) / ADAPTER)
    assert all(any(torch.equal(matrix, other) for other in saved.values()) for matrix in adapters[1].values())


def test_what_a_run_has_found_out_comes_back(run_settings, train_toy, monkeypatch):
    config = run_settings("found", precision="fp16", selection="both", micro_batch_size=4)
    trainer = train_toy(config, lambda evaluator, model: {"answers_mrr@10": 0.1, "paragraphs_mrr@10": 0.5})
    trainer._max_tokens = 99  # as after memory ran out
    trainer._scaler.update(2.0**7)
    trainer._save_checkpoint()
    restored = []

    def stop_there(self, *_):
        restored.append(self)
        raise TrainingStopped(signal.SIGINT, "")

    monkeypatch.setattr(EmbeddingTrainer, "_train_steps", stop_there)
    with pytest.raises(TrainingStopped):
        train_toy(TrainingConfig(**config.to_dict() | {"resume": "newest"}))
    (again,) = restored
    assert again._max_tokens == 99
    assert again._start_metrics == trainer._start_metrics == {"answers_mrr@10": 0.1, "paragraphs_mrr@10": 0.5}
    assert again._scaler.state_dict() == trainer._scaler.state_dict()
    assert again._scaler.get_scale() == 2.0**7


# ------------------------------------------------------------------------------------------------------------
# Damaged


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.fixture
def half_done(reference, run_settings, train_toy, in_child, tmp_path):
    """Settings that go on with a run that was killed at the evaluation of step 8: it has checkpoints of 4 and 6."""
    if "killed" not in reference:
        config = run_settings("killed")
        assert go_on_until_done(config, train_toy, in_child, [("evaluation", 5)], at_most=1) == [-signal.SIGKILL]
        reference["killed"] = Path(config.output_dir)
    config = run_settings("half", resume="newest")
    shutil.copytree(reference["killed"], config.output_dir)
    assert kept(config) == [".lock", "batch-00000004", "batch-00000006"]
    return config


@pytest.mark.parametrize(
    ("name", "how"),
    [("adapter.safetensors", "flipped"), ("state.json", "truncated"), ("checksums.json", "gone")],
)
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_used(half_done, train_toy, uninterrupted, caplog, name, how):
    damage(Path(half_done.output_dir) / "checkpoints" / "batch-00000006" / name, how)
    with caplog.at_level(logging.INFO):
        train_toy(half_done)
    assert any("batch-00000006 is damaged" in said and "the one before" in said for said in caplog.messages)
    assert any(said.startswith("Going on after step 4") for said in caplog.messages)
    assert weights(half_done) == uninterrupted["weights"]
    assert kept(half_done) == [".lock", "batch-00000006", "batch-00000008"]


def test_nothing_but_damaged_checkpoints_is_an_error(half_done, train_toy):
    for name in ("batch-00000004", "batch-00000006"):
        damage(Path(half_done.output_dir) / "checkpoints" / name / "random.safetensors", "flipped")
    with pytest.raises(CheckpointError, match="no whole checkpoint to go on from"):
        train_toy(half_done)
    assert kept(half_done) == [".lock", "batch-00000004", "batch-00000006"]


def rewrite_state(folder: Path, change) -> None:
    """Change state.json and its checksum, as a program of evil or of another version would."""
    state = json.loads((folder / "state.json").read_text())
    change(state)
    (folder / "state.json").write_text(json.dumps(state))
    checksums = json.loads((folder / "checksums.json").read_text())
    checksums["state.json"] = resume._sha256((folder / "state.json").read_bytes())
    (folder / "checksums.json").write_text(json.dumps(checksums))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(format=2),
        lambda state: state.pop("place"),
        lambda state: state.update(best=[1, 2]),
        lambda state: state.update(global_step=None, scheduler={"last_epoch": "x"}),
        lambda state: state["place"].update(index="many"),
        lambda state: state["place"]["now"].update(python=[3, [1, 2], None]),
        lambda state: state.update(identity=None),
        lambda state: state.clear(),
    ],
)
def test_a_checkpoint_of_another_make_is_an_error_and_no_traceback(half_done, train_toy, change):
    for name in ("batch-00000004", "batch-00000006"):
        rewrite_state(Path(half_done.output_dir) / "checkpoints" / name, change)
    with pytest.raises(CheckpointError, match="checkpoint"):
        train_toy(half_done)


def test_names_in_a_checkpoint_lead_nowhere(half_done, tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    folder = Path(half_done.output_dir) / "checkpoints" / "batch-00000006"
    checksums = json.loads((folder / "checksums.json").read_text()) | {"../../../../secret": "00"}
    (folder / "checksums.json").write_text(json.dumps(checksums))
    with pytest.raises(CheckpointError, match="secret differ from the checksums"):
        read_checkpoint(folder)


# ------------------------------------------------------------------------------------------------------------
# The same run?


def test_settings_that_change_the_result_are_refused_with_the_list(half_done, train_toy, uninterrupted):
    other = TrainingConfig(
        **half_done.to_dict() | {"learning_rate": 1e-3, "seed": 1, "log_every_n_steps": 2, "num_workers": 3}
    )
    with pytest.raises(CheckpointError) as caught:
        train_toy(other)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines[1:-1]] == ["--learning_rate", "--seed"]
    assert "has 0.01, not 0.001" in str(caught.value) and "--resume_force" in lines[-1]
    train_toy(TrainingConfig(**other.to_dict() | {"resume_force": True}))
    assert dict(curves(other)["train/learning_rate"])[8] == pytest.approx(1e-3 / 8)  # no warm-up, the last of 8 steps
    last = read_checkpoint(Path(other.output_dir) / "checkpoints" / "batch-00000008").tensors["adapter"]
    assert not all(torch.equal(matrix, last[name]) for name, matrix in uninterrupted["last"].tensors["adapter"].items())


def test_other_data_and_another_base_model_are_refused(half_done, train_toy, toy_model_dir, tmp_path):
    with pytest.raises(CheckpointError, match="training data: the run that is resumed had"):
        train_toy(half_done, examples=[*EXAMPLES[1:], EXAMPLES[0]])
    shutil.copytree(toy_model_dir, tmp_path / "other")
    model = SentenceTransformer(str(toy_model_dir), device="cpu")
    with torch.no_grad():
        model[0].model.encoder.layer[0].output.dense.weight[0, 0] += 1
    model.save(str(tmp_path / "other"), create_model_card=False)
    with pytest.raises(CheckpointError, match="base model: the run that is resumed had"):
        train_toy(half_done, model_dir=tmp_path / "other")


def test_an_adapter_of_another_shape_is_refused_even_by_force(half_done, train_toy):
    with pytest.raises(CheckpointError, match="cannot be resumed: its adapter is not one of this model"):
        train_toy(TrainingConfig(**half_done.to_dict() | {"lora_r": 2, "resume_force": True}))


def test_a_run_is_resumed_with_its_own_settings(half_done, monkeypatch, tmp_path):
    for argv in (
        ["--resume", "--output_dir", half_done.output_dir],
        ["--resume", half_done.output_dir],
        ["--resume", f"{half_done.output_dir}/checkpoints/batch-00000004"],
    ):
        config = config_from_command_line([*argv, "--log_every_n_steps", "7"])
        named = {"log_every_n_steps": 7, "resume": config.resume, "log_dir": config.log_dir}
        assert config.to_dict() == half_done.to_dict() | named
    assert config.resume.endswith("batch-00000004")


def test_a_command_line_that_would_change_the_result_is_refused_before_anything_loads(half_done):
    argv = ["--resume", "--output_dir", half_done.output_dir, "--learning_rate", "1", "--scale", "3"]
    with pytest.raises(ConfigError) as caught:
        config_from_command_line(argv)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["--learning_rate", "--scale"]
    assert config_from_command_line([*argv, "--resume_force"]).learning_rate == 1


def test_what_was_forced_once_is_not_forced_for_good(half_done):
    argv = ["--resume", "--output_dir", half_done.output_dir]
    settings = checkpoint_folders(half_done.output_dir)[0] / "training_config.json"
    settings.write_text(json.dumps(half_done.to_dict() | {"resume_force": True}))
    assert not config_from_command_line(argv).resume_force
    with pytest.raises(ConfigError, match="--learning_rate"):
        config_from_command_line([*argv, "--learning_rate", "1"])


def test_a_run_whose_folder_is_named_like_a_checkpoint(run_settings, train_toy):
    config = run_settings("x", keep_checkpoints=1)
    for name in ("batch-64", "batch-00000064"):
        config = TrainingConfig(**config.to_dict() | {"output_dir": str(Path(config.output_dir).with_name(name))})
        assert checkpoint_folders(config.output_dir) == []
        train_toy(config)
        assert [path.name for path in checkpoint_folders(config.output_dir)] == ["batch-00000008"]
        assert config_from_command_line(["--resume", "--output_dir", config.output_dir]).output_dir == config.output_dir


def test_a_checkpoint_that_a_process_of_the_same_number_left_unwritten(run_settings, train_toy):
    config = run_settings("x")
    left = Path(config.output_dir) / "checkpoints" / f".batch-00000002-{os.getpid()}"
    left.mkdir(parents=True)
    (left / "state.json").write_text("half")
    train_toy(config)
    assert [path.name for path in checkpoint_folders(config.output_dir)] == ["batch-00000008", "batch-00000006"]


@pytest.mark.parametrize("place", ["nowhere", "nowhere/checkpoints/batch-00000001"])
def test_resuming_what_is_not_there_is_an_error(tmp_path, place):
    with pytest.raises(ConfigError, match=r"--resume: .*nowhere.* holds no checkpoint to go on from"):
        config_from_command_line(["--resume", str(tmp_path / place)])
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        config_from_command_line(["--resume", "--output_dir", str(tmp_path / place)])


def test_going_back_to_an_earlier_checkpoint_gives_the_later_ones_up(half_done, train_toy, uninterrupted, caplog):
    place = f"{half_done.output_dir}/checkpoints/batch-00000004"
    with caplog.at_level(logging.INFO):
        train_toy(TrainingConfig(**half_done.to_dict() | {"resume": place}))
    assert any(said.startswith("Going on after step 4") for said in caplog.messages)
    assert weights(half_done) == uninterrupted["weights"]


def test_a_run_can_go_on_in_another_folder(half_done, train_toy, uninterrupted, tmp_path):
    elsewhere = {"resume": half_done.output_dir, "output_dir": str(tmp_path / "elsewhere" / "model")}
    config = TrainingConfig(**half_done.to_dict() | elsewhere)
    train_toy(config)
    assert weights(config) == uninterrupted["weights"]


# ------------------------------------------------------------------------------------------------------------
# One run in a folder


def test_an_unfinished_run_is_not_overwritten_unasked(half_done):
    again = TrainingConfig(**half_done.to_dict() | {"resume": ""})
    assert not (Path(again.output_dir) / "modules.json").exists()
    with pytest.raises(CheckpointError, match=r"not finished \(batch-00000006\).*--resume.*--overwrite"):
        check_output_dir(again)
    check_output_dir(TrainingConfig(**again.to_dict() | {"overwrite": True}))


def test_a_new_run_over_an_old_one_drops_its_checkpoints(half_done, train_toy):
    config = TrainingConfig(**half_done.to_dict() | {"resume": "", "overwrite": True, "num_epochs": 1, "log_dir": ""})
    train_toy(config)
    assert kept(config) == [".lock", "batch-00000003", "batch-00000004"]
    assert read_checkpoint(Path(config.output_dir) / "checkpoints" / "batch-00000004").settings.num_epochs == 1


def test_a_second_run_on_one_folder_says_so_and_stops(run_settings, train_toy, in_child):
    config = run_settings("claimed")

    def second():
        with pytest.raises(CheckpointError, match=r"another run is training into .*claimed/model"):
            train_toy(config)

    with claimed(config.output_dir), claimed(config.output_dir):  # its own claims do not stand in its way
        assert in_child(second) == 0
    train_toy(config)


def test_a_killed_run_no_longer_claims_its_folder(run_settings, in_child):
    config = run_settings("claimed")

    def claim_and_die():
        with claimed(config.output_dir):
            kill()

    assert in_child(claim_and_die) == -signal.SIGKILL
    with claimed(config.output_dir):
        pass


# ------------------------------------------------------------------------------------------------------------
# The place in the data


@pytest.mark.parametrize("own_generator", [True, False])
def test_the_stream_goes_on_at_any_place(own_generator):
    def loader():
        generator = torch.Generator().manual_seed(3) if own_generator else None
        return DataLoader(range(10), batch_size=3, shuffle=True, generator=generator)

    cpu = torch.device("cpu")

    def drawn(stream):
        return [(batch.tolist(), random.random(), torch.rand(1).item()) for batch in stream]

    torch.manual_seed(1)
    random.seed(1)
    whole = drawn(BatchStream(loader(), 3, cpu))
    assert len(whole) == 12 and sorted(item for batch, *_ in whole[4:8] for item in batch) == list(range(10))
    for place in range(13):
        torch.manual_seed(1)
        random.seed(1)
        first = BatchStream(loader(), 3, cpu)
        begun = []
        if place:
            for batch in first:
                begun.append((batch.tolist(), random.random(), torch.rand(1).item()))
                if len(begun) == place:
                    break
        state, tensors = first.state()
        state = json.loads(json.dumps(state))
        torch.manual_seed(99)
        random.seed(99)
        second = BatchStream(loader(), 3, cpu)
        second.restore(state, tensors)
        assert second.batches == place
        assert begun + drawn(second) == whole, place


# ------------------------------------------------------------------------------------------------------------
# Signals


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_after_the_step_and_the_run_goes_on_from_there(
    run_settings, train_toy, uninterrupted, monkeypatch, signum
):
    config = run_settings("was stopped", checkpoint_steps=100)
    before = signal.getsignal(signum)
    step = EmbeddingTrainer._training_step

    def signalled(self, *arguments):
        if self.global_step == 4:
            os.kill(os.getpid(), signum)
        return step(self, *arguments)

    monkeypatch.setattr(EmbeddingTrainer, "_training_step", signalled)
    with pytest.raises(
        TrainingStopped, match=f"after step 5. Go on with: .*--resume --output_dir '{config.output_dir}'"
    ) as caught:
        train_toy(config)
    assert caught.value.signum == signum and signal.getsignal(signum) == before
    assert kept(config)[-1] == "batch-00000005"
    SentenceTransformer(config.output_dir, device="cpu")  # the best so far
    monkeypatch.undo()
    train_toy(TrainingConfig(**config.to_dict() | {"resume": "newest"}))
    assert weights(config) == uninterrupted["weights"] and curves(config) == uninterrupted["curves"]


def test_a_signal_during_the_last_evaluation_is_not_lost(run_settings, train_toy):
    config = run_settings("stopped", num_epochs=1, eval_steps=100)

    def signalled(evaluator, model):
        if kept(config)[-1] == "batch-00000002":
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluator(model)

    with pytest.raises(TrainingStopped, match="after step 4"):
        train_toy(config, signalled)
    assert kept(config)[-1] == "batch-00000004"
    SentenceTransformer(config.output_dir, device="cpu")


def test_a_second_signal_ends_it_at_once(run_settings, train_toy, in_child):
    config = run_settings("stopped")

    def run():
        def twice(evaluator, model):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

        train_toy(config, twice)

    assert in_child(run) == 130
