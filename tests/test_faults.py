"""What a machine and its user do to a run: a message, nothing lost, an exit status that tells. Each fault is caused."""

import json
import logging
import os
import resource
import shutil
import signal
import tempfile
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from test_loader import kill_this_process

import dataloader.loader as loader
import train
from config import SAMPLE_DATASET_ROOT
from trainer import EmbeddingTrainer
from trainer import trainer as trainer_module
from trainer.resume import read_checkpoint

STEPS = 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """A KorQuAD 1.0 file: 24 articles of two questions, 16 of them to train on."""
    names = "가나다라마바사아자차카타파하거너더러머버서어저처"
    articles = []
    for number, name in enumerate(names):
        context = f"{name}{number}산은 {number * 37 + 100}미터이다. 그 곁의 강은 {name}{name}강이다."
        qas = [
            {
                "id": f"{number}-{place}",
                "question": question,
                "answers": [{"text": text, "answer_start": context.index(text)}],
            }
            for place, (question, text) in enumerate(
                [
                    (f"{name}{number}산의 높이는?", f"{number * 37 + 100}미터"),
                    (f"{name}{number}산 곁의 강은?", f"{name}{name}강"),
                ]
            )
        ]
        articles.append({"title": name, "paragraphs": [{"context": context, "qas": qas}]})
    path = tmp_path_factory.mktemp("data") / "small.json"
    path.write_text(json.dumps({"version": "KorQuAD_v1.0_small", "data": articles}, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def options(dataset, toy_model_dir, tmp_path, monkeypatch) -> list[str]:
    """Command line of a run of 8 steps, with evaluations after 3, 4, 6 and 8 and checkpoints after every second."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given = {
        **{
            "model_name": toy_model_dir,
            "dataset_root": dataset,
            "output_dir": tmp_path / "model",
            "log_dir": tmp_path / "logs",
        },
        **{"device": "cpu", "num_workers": 0, "batch_size": 8, "num_epochs": 2, "max_samples": 32, "max_seq_length": 48},
        **{"train_split": 0.8, "val_split": 0.1, "eval_steps": 3, "checkpoint_steps": 2, "log_every_n_steps": 1},
        **{"learning_rate": 1e-3, "warmup_steps": 0, "log_gradients": "false", "eval_samples": 20},
    }
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


@pytest.fixture
def run(options, in_child, capfd):
    """Further options, and what happens to the process → (exit status, what it said), of train.py in a child."""

    def train_in_child(*more: str, fault=lambda: None, start=options) -> tuple[int, str]:
        def main():
            logging.getLogger().handlers.clear()  # pytest's own: the script is to say what it says
            fault()
            return train.main([*start, *more])

        capfd.readouterr()
        status = in_child(main)
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err, captured.err
        return status, captured.out + captured.err

    return train_in_child


def at_step(number: int, do) -> None:
    """Do something before the step that comes after `number` steps."""
    step = EmbeddingTrainer._training_step

    def with_fault(self, *arguments):
        if self.global_step == number:
            do()
        return step(self, *arguments)

    EmbeddingTrainer._training_step = with_fault


def no_file_above(size: int) -> None:
    """Files cannot grow beyond this many bytes: what a full disk does, to one file after the other."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def goes_on_to_the_end(run, tmp_path) -> None:
    status, said = run("--resume", start=["--output_dir", str(tmp_path / "model")])
    assert status == 0, said
    assert read_checkpoint(tmp_path / "model" / "checkpoints" / f"batch-{STEPS:08d}").state["global_step"] == STEPS
    SentenceTransformer(str(tmp_path / "model"), device="cpu")


# ------------------------------------------------------------------------------------------------------------
# The disk


def test_a_disk_that_is_full_at_a_checkpoint(run, tmp_path):
    status, said = run("--log_dir", "", fault=lambda: at_step(5, lambda: no_file_above(5_000)))
    assert status == 1
    assert f"the checkpoint {tmp_path}/model/checkpoints/batch-00000006 could not be written: File too large. Free" in said
    assert f"go on from batch-00000004: python train.py --resume --output_dir {tmp_path}/model" in said
    assert sorted(path.name for path in (tmp_path / "model" / "checkpoints").iterdir())[1:] == [
        "batch-00000003",
        "batch-00000004",
    ]
    goes_on_to_the_end(run, tmp_path)


@pytest.mark.long
def test_a_disk_that_is_full_at_the_last_save(run, tmp_path):
    def fault():
        save = trainer_module.save_finished_model

        def on_a_full_disk(*arguments):
            no_file_above(100_000)
            save(*arguments)

        trainer_module.save_finished_model = on_a_full_disk

    status, said = run(fault=fault)
    assert status == 1 and f"the model could not be saved to {tmp_path}/model: " in said and "Free some space" in said
    assert not (tmp_path / "model" / "modules.json").exists()
    goes_on_to_the_end(run, tmp_path)


def test_a_disk_that_is_full_for_the_logs_costs_the_logs_alone(run, tmp_path):
    def fault():
        size = 60_000  # above a checkpoint's files, below eight steps of histograms
        at_step(1, lambda: no_file_above(size))
        save = trainer_module.save_finished_model

        def with_space(*arguments):
            no_file_above(resource.RLIM_INFINITY)
            save(*arguments)

        trainer_module.save_finished_model = with_space

    status, said = run("--log_gradients", fault=fault)
    assert status == 1
    assert said.count("Training goes on without them") == 1
    assert said.rstrip().splitlines()[-1].startswith("Error: the model is finished, but the logs in ")
    assert said.rstrip().endswith("are incomplete: File too large")
    assert "Held-out articles" in said  # the verdict came all the same
    SentenceTransformer(str(tmp_path / "model"), device="cpu")


@pytest.mark.long
def test_a_disk_that_is_full_in_earnest(run, tmp_path):
    """A file system of its own, where this machine lets one be mounted."""
    with tempfile.TemporaryDirectory() as folder:
        if os.geteuid() or os.system(f"mount -t tmpfs -o size=400k tmpfs {folder} 2>/dev/null"):
            pytest.skip("this machine lets no file system be mounted")
        try:
            status, said = run("--output_dir", folder)
            assert status == 1 and "No space left on device. Free some space" in said
            assert list(Path(folder, "checkpoints").glob("batch-*"))
            os.system(f"mount -o remount,size=100m {folder}")
            assert run("--resume", start=["--output_dir", folder])[0] == 0
            SentenceTransformer(folder, device="cpu")
        finally:
            os.system(f"umount -l {folder}")  # the model that was loaded still holds its file


def test_a_log_folder_that_is_removed_costs_the_logs_alone(run, tmp_path):
    status, said = run(fault=lambda: at_step(3, lambda: shutil.rmtree(tmp_path / "logs")))
    assert status == 1
    assert f"Error: the model is finished, but the logs in {tmp_path}/logs/" in said and "No such file or directory" in said
    SentenceTransformer(str(tmp_path / "model"), device="cpu")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not write")
@pytest.mark.parametrize("option", ["--output_dir", "--log_dir"])
def test_a_folder_that_may_not_be_written_to(run, dataset, option):
    with tempfile.TemporaryDirectory() as folder:  # the test's own folder is closed to others
        os.chmod(folder, 0o755)
        shutil.copy(dataset, folder)
        os.mkdir(f"{folder}/open", 0o777)
        os.chmod(f"{folder}/open", 0o777)
        places = ["--output_dir", f"{folder}/open/model", "--log_dir", f"{folder}/open/logs", option, f"{folder}/closed"]
        start = ["--dataset_root", f"{folder}/small.json", "--device", "cpu", "--num_workers", "0", *places]

        def nobody():
            os.environ["XDG_CACHE_HOME"] = f"{folder}/no-cache"
            os.setgid(65534)
            os.setuid(65534)

        status, said = run(start=start, fault=nobody)
        assert status == 1
        assert f"Error: {option} {folder}/closed: cannot be written to (Permission denied). Name another folder" in said
        assert "the prepared pairs are not kept" in said  # which is no reason to stop


# ------------------------------------------------------------------------------------------------------------
# Numbers, processes, models


def test_a_loss_that_stays_nan_ends_the_run_with_the_best_model_saved(run, tmp_path):
    def fault():
        trainer_module.MOST_SKIPPED_STEPS = 3
        loss = EmbeddingTrainer._compute_contrastive_loss

        def nan_later(self, *arguments):
            return loss(self, *arguments) * (float("nan") if self.global_step >= 4 else 1.0)

        EmbeddingTrainer._compute_contrastive_loss = nan_later

    status, said = run(fault=fault)
    assert status == 1 and "3 steps in a row without finite gradients, from step 5 on" in said
    assert "Lower --learning_rate" in said
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert torch.isfinite(model.encode("가", convert_to_tensor=True)).all()


@pytest.mark.long
def test_out_of_memory_in_a_step_is_survived_and_remembered(run, tmp_path):
    def fault():
        embed = EmbeddingTrainer._embed
        calls = []

        def with_little_memory(self, tokens, lengths, chosen):
            if self.global_step >= 2 and len(chosen) > 6 and torch.is_grad_enabled():
                calls.append(1)
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
            return embed(self, tokens, lengths, chosen)

        EmbeddingTrainer._embed = with_little_memory

    status, said = run(fault=fault)
    assert status == 0 and "Out of memory: from here on at most" in said
    states = [read_checkpoint(path).state for path in sorted((tmp_path / "model" / "checkpoints").glob("batch-*"))]
    assert states[-1]["max_tokens"] < 2 * 8 * 48


def test_a_killed_data_worker(run):
    def fault():
        loader.SMALL_JOB_BYTES = 0
        loader._load_or_explain = kill_this_process

    status, said = run("--dataset_root", str(SAMPLE_DATASET_ROOT), "--num_workers", "2", fault=fault)
    assert status == 1 and "Error: a process that loads files ended abruptly" in said and "smaller num_workers" in said


def test_a_model_without_tokenizer(run, toy_model_dir, tmp_path):
    shutil.copytree(toy_model_dir, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "vocab*"))
    status, said = run("--model_name", str(tmp_path / "bare"))
    assert status == 1 and "is not a complete model: tokenizer.json" in said and "Name a folder saved by" in said


@pytest.mark.long
def test_an_adapter_of_another_base_model(run, toy_model_dir, tmp_path):
    assert run("--num_epochs", "1")[0] == 0
    shutil.copytree(toy_model_dir, tmp_path / "other")
    model = SentenceTransformer(str(toy_model_dir), device="cpu")
    with torch.no_grad():
        model[0].model.embeddings.word_embeddings.weight[7] += 1
    model.save(str(tmp_path / "other"), create_model_card=False)
    resumed = ["--resume", "--output_dir", str(tmp_path / "model"), "--model_name", str(tmp_path / "other")]
    status, said = run(start=resumed)
    assert status == 2 and "--model_name: the run that is resumed has" in said
    for path in (tmp_path / "model" / "checkpoints").glob("batch-*"):  # the run's own name now leads to another model
        rewrite_checksummed(path / "training_config.json", lambda saved: saved.update(model_name=str(tmp_path / "other")))
    status, said = run("--resume", start=["--output_dir", str(tmp_path / "model")])
    assert status == 1 and "base model: the run that is resumed had" in said


def rewrite_checksummed(path: Path, change) -> None:
    """Change a JSON file of a checkpoint together with its checksum."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    checksums = path.with_name("checksums.json")
    checksums.write_text(json.dumps(json.loads(checksums.read_text()) | {path.name: sha256(path.read_bytes()).hexdigest()}))


# ------------------------------------------------------------------------------------------------------------
# Signals


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_training_says_how_to_go_on(run, tmp_path, signum, status):
    found, said = run(fault=lambda: at_step(4, lambda: os.kill(os.getpid(), signum)))
    assert found == status
    assert "Stopping after this step" in said
    last = said.rstrip().splitlines()[-1]
    assert last == f"Stopped after step 5. Go on with: python train.py --resume --output_dir {tmp_path}/model"
    assert (tmp_path / "model" / "modules.json").exists()  # the best so far


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_training_is_one_line(run, signum, status):
    def fault():
        real = train.load_cached_dataset

        def interrupted(*arguments, **more):
            os.kill(os.getpid(), signum)
            return real(*arguments, **more)

        train.load_cached_dataset = interrupted

    found, said = run(fault=fault)
    assert found == status and said.rstrip().splitlines()[-1] == "Stopped."


def test_a_signal_that_a_library_swallows_or_turns_into_an_error_still_stops(run):
    def fault():
        def turns_into_another(*arguments, **more):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except KeyboardInterrupt:
                raise ImportError("numpy could not be imported") from None

        train.load_cached_dataset = turns_into_another

    assert run(fault=fault)[0] == 143


def test_a_defect_keeps_its_traceback(options, monkeypatch):
    def defect(*arguments, **more):
        raise ZeroDivisionError

    monkeypatch.setattr(train, "load_cached_dataset", defect)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError):
        train.main(options)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.long
def test_a_second_run_on_one_folder(run, options, tmp_path):
    def start_second():
        second = os.fork()
        if second == 0:
            os._exit(train.main(options))
        assert os.waitstatus_to_exitcode(os.waitpid(second, 0)[1]) == 1

    status, said = run(fault=lambda: at_step(2, start_second))
    assert status == 0
    assert f"Error: another run is training into {tmp_path}/model. Wait for it, or name another folder" in said
