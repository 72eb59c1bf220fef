"""The real script on a toy model: files, steps, tags and messages; then a search with what it saved."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from inference import E5KorQuADInference

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE = REPOSITORY / "data" / "sample"
RANKING_METRICS = ["mrr@10", "ndcg@10", "recall@1", "recall@10", "recall@100"]
METRICS = [*RANKING_METRICS, "positive_similarity", "negative_similarity"]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Prepared pairs are not kept in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def run_train(*options: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPOSITORY / "train.py"), *options]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def finished(own_cache, toy_model_dir, tmp_path_factory):
    """(folder, process) of a run: 32 pairs in batches of 8 are 4 steps an epoch; two epochs."""
    folder = tmp_path_factory.mktemp("a run")
    process = run_train(
        *["--model_name", str(toy_model_dir), "--dataset_root", str(SAMPLE), "--output_dir", str(folder / "model")],
        *["--log_dir", str(folder / "logs"), "--max_samples", "32", "--batch_size", "8", "--num_epochs", "2"],
        *["--eval_steps", "3", "--eval_samples", "20", "--log_every_n_steps", "2", "--learning_rate", "1e-2"],
        *["--max_seq_length", "64", "--num_workers", "2", "--precision", "fp16"],
    )
    assert process.returncode == 0, process.stderr
    return folder, process


def test_files(finished):
    folder, _ = finished
    files = sorted(str(p.relative_to(folder / "model")) for p in (folder / "model").rglob("*") if p.is_file())
    checkpoints = [name for name in files if name.startswith("checkpoints/")]
    assert {name.split("/")[1] for name in checkpoints} == {".lock", "batch-00000006", "batch-00000008"}
    assert [name for name in files if name not in checkpoints] == [
        "1_Pooling/config.json",
        "2_Normalize/config.json",
        "README.md",
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
    ]
    assert sorted(p.name for p in folder.iterdir()) == ["logs", "model"]


def test_steps_and_tags(finished):
    folder, _ = finished
    (run,) = (folder / "logs").iterdir()
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()
    gradients = [
        f"gradients/encoder.layer.{layer}.attention.self.{target}.lora_{matrix}_weight"
        for layer in (0, 1)
        for target in ("query", "key", "value")
        for matrix in "AB"
    ]
    train_tags = ["loss", "learning_rate", "epoch", "epoch_loss", "grad_norm", "pairs_per_second"]
    assert sorted(tags["scalars"]) == sorted(
        ["eval/score"]
        + [f"eval/{task}_{metric}" for task in ("answers", "paragraphs") for metric in METRICS]
        + [f"train/{name}" for name in train_tags]
        + [f"{name}_norm" for name in gradients]
    )
    assert set(tags["histograms"]) <= set(gradients)
    assert any(".lora_B" in tag for tag in tags["histograms"])
    assert "config/text_summary" in tags["tensors"]

    def steps(tag):
        return [event.step for event in events.Scalars(tag)]

    assert steps("train/loss") == [2, 4, 6, 8]
    assert steps("eval/score") == [0, 3, 4, 6, 8]
    assert steps("train/epoch_loss") == [4, 8]
    assert steps("eval/paragraphs_mrr@10") == [0, 3, 4, 6, 8]
    assert steps(f"{gradients[0]}_norm") == [2, 4, 6, 8]


def test_verdict_names_both_tasks_and_equals_the_saved_numbers(finished):
    folder, process = finished
    metrics = json.loads((folder / "model" / "metrics.json").read_text(encoding="utf-8"))
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert sorted(metrics["held_out"]) == ["answers", "paragraphs"]
    for task, result in metrics["held_out"].items():
        assert {label: list(found) for label, found in result["models"].items()} == {
            "BM25": RANKING_METRICS,
            "base": METRICS,
            "tuned": METRICS,
        }
        base, tuned = (result["models"][label]["mrr@10"] for label in ("base", "tuned"))
        (difference,) = result["differences"]
        assert difference["difference"]["mrr@10"] == pytest.approx(tuned - base)
        assert result["resampled"] == "15 articles"  # a tenth of the sample's 150
        low, high = difference["interval"]["mrr@10"]
        word = "GAIN" if low > 0 else "LOSS" if high < 0 else "NO CLEAR CHANGE"
        said = f"{word} on {task}, tuned against base: MRR@10 {base:.3f} → {tuned:.3f} ({tuned - base:+.3f}"
        assert said in process.stdout and said in card
        assert result["models"]["BM25"]["recall@100"] > 0
    assert metrics["step"] in (3, 4, 6, 8)


def test_output_says_what_was_chosen_and_why(finished):
    folder, process = finished
    assert " * batch_size" in process.stdout and "(default 16)" in process.stdout
    assert "Training on cpu (no GPU), in fp16 (precision=fp16 was asked for)" in process.stderr
    assert "Warm-up shortened from 500 to 0 steps" in process.stderr
    assert "trains" in process.stdout and "parameters" in process.stdout
    assert f"Search with it: python inference.py --model_path '{folder}/model'" in process.stdout
    assert "Traceback" not in process.stderr and "Warning" not in process.stderr


def test_search_with_the_result(finished):
    folder, _ = finished
    model = E5KorQuADInference(folder / "model", device="cpu")
    passages = ["베른은 스위스의 수도이다.", "고래는 포유류이다.", "한라산은 제주도에 있다."]
    results = model.search("스위스의 수도는 어디인가?", passages, top_k=2)
    assert [result["rank"] for result in results] == [1, 2]
    assert all(passages[result["index"]] == result["passage"] for result in results)
    assert results[0]["score"] >= results[1]["score"]


def test_a_finished_model_is_not_overwritten_unasked(finished, toy_model_dir):
    folder, _ = finished
    before = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    options = ["--model_name", str(toy_model_dir), "--dataset_root", str(SAMPLE), "--output_dir", str(folder / "model")]
    assert train.main([*options, "--device", "cpu", "--log_dir", ""]) == 1
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--batch_siz", "8"], 2, "did you mean --batch_size?"),
        (["--learning_rate", "-1", "--train_split", "1"], 2, "--train_split: must be"),
        (["--dataset_root", "no/such/folder"], 1, "Error: --dataset_root no/such/folder does not exist"),
        (["--dataset_root", str(SAMPLE), "--lora_target_modules", "qeury"], 2, "no linear layer 'qeury'"),
        (["--dataset_root", str(SAMPLE), "--model_name", "no/such-model"], 1, "no/such-model"),
        (["--dataset_root", str(SAMPLE), "--train_split", "0.001"], 1, "no training pair"),
    ],
)
def test_what_a_user_can_get_wrong_ends_in_a_message(options, status, said, toy_model_dir, tmp_path, capsys):
    if "--model_name" not in options:
        options = ["--model_name", str(toy_model_dir), *options]
    assert train.main([*options, "--output_dir", str(tmp_path / "model"), "--log_dir", "", "--device", "cpu"]) == status
    assert said in capsys.readouterr().err


def test_a_broken_file_is_named_or_skipped(toy_model_dir, tmp_path, capsys):
    shutil.copytree(SAMPLE / "KorQuAD_2.1_train_00", tmp_path / "set" / "KorQuAD_2.1_train_00")
    broken = tmp_path / "set" / "KorQuAD_2.1_train_01" / "broken.json"
    broken.parent.mkdir()
    broken.write_text('{"version": "x", "data": [{"title": "가"', encoding="utf-8")
    options = ["--model_name", str(toy_model_dir), "--dataset_root", str(tmp_path / "set"), "--device", "cpu"]
    options += ["--output_dir", str(tmp_path / "model"), "--log_dir", "", "--max_samples", "8", "--batch_size", "8"]
    options += ["--num_epochs", "1", "--max_seq_length", "32"]
    assert train.main(options) == 1
    assert "broken.json: line 1" in capsys.readouterr().err
    assert train.main([*options, "--skip_bad_files"]) == 0
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_earlier_users_find_the_data_functions_here():
    from dataloader import clean_html_text, collate_input_examples, prepare_training_data

    assert train.clean_html_text is clean_html_text
    assert train.prepare_training_data is prepare_training_data
    assert train.collate_input_examples is collate_input_examples
