"""The benchmarks run, and what they write is what they say."""

import importlib
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import InputExample

from dataloader import load_entire_dataset
from trainer import EmbeddingTrainer

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample"


def run(script: str, *options: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_a_written_set_has_the_size_and_true_offsets_and_the_same_as_archives(tmp_path):
    run("make_korquad21.py", str(tmp_path / "a"), "--files", "2", "--megabytes", "3")
    run("make_korquad21.py", str(tmp_path / "b"), "--files", "2", "--megabytes", "3", "--zip")
    files = sorted((tmp_path / "a").glob("KorQuAD_2.1_train_*/*.json"))
    assert [3_000_000 <= file.stat().st_size < 4_000_000 for file in files] == [True, True]
    dataset = load_entire_dataset(tmp_path / "a", verbose=False)
    assert dataset["articles"] == load_entire_dataset(tmp_path / "b", verbose=False)["articles"]
    assert 1.8 < dataset["total_qas"] / dataset["total_articles"] < 2.6
    for article in dataset["articles"]:
        for qa in article["qas"]:
            assert article["context"].startswith(qa["answer"]["text"], qa["answer"]["answer_start"])
    raw = json.loads(files[0].read_text(encoding="utf-8"))["data"][5]
    answer = raw["qas"][0]["answer"]
    assert raw["raw_html"].startswith(answer["html_answer_text"], answer["html_answer_start"])
    assert len(raw["raw_html"]) > len(raw["context"])


def test_loading_is_compared(tmp_path):
    run("make_korquad21.py", str(tmp_path), "--files", "2", "--megabytes", "1")
    result = json.loads(run("load_speed.py", str(tmp_path), "--rounds", "1"))
    assert result["files"] == 2
    assert all(
        result[way]["seconds"] >= 0 and result[way]["parent_mb"] > 5 for way in ("read", "plain", "pairs", "windows")
    ), result
    assert result["pairs_times_faster"] > 0


def test_search_is_measured(tmp_path):
    options = ("--folder", str(tmp_path), "--passages", "3000", "--rounds", "1")
    result = json.loads(run("search_speed.py", "--part", "index", *options))
    assert result["passages"] == 3000 and result["recall_at_10"] >= 0.99
    assert all(result[name] > 0 for name in ("query_ms", "query_of_64_ms", "start_up_s", "start_up_with_imports_s"))
    kernels = json.loads(run("search_speed.py", "--part", "kernels", *options))["kernels"]
    assert {"numkong int8", "numpy float32", "torch int8"} <= kernels.keys()
    assert all(times["ms"] > 0 and times["of_64_ms"] > 0 for times in kernels.values())


# ------------------------------------------------------------------------------------------------------------
# Of training, on a toy model


@pytest.fixture
def benchmark(monkeypatch, capsys, toy_model_dir):
    """Name and options → the JSON lines that it prints, run in this process."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(logging, "disable", lambda level: None)  # it would last beyond this test

    def run(name: str, *options: str) -> list[dict]:
        monkeypatch.setattr(sys, "argv", [name, "--model_name", str(toy_model_dir), *options])
        importlib.import_module(name).main()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]

    return run


def test_training_beside_the_library(benchmark):
    (result,) = benchmark("train_speed", "--batch_sizes", "4", "--steps", "2", "--rounds", "1")
    found = result["batch_size"]["4"]
    assert 4 * 8 < found["real_tokens"] < found["padded_tokens"]
    assert found["ratio"] == pytest.approx(found["ours_pairs_per_second"] / found["peer_pairs_per_second"], rel=0.05)
    assert found["floor_seconds"] * found["floor_share"] == pytest.approx(4 / found["ours_pairs_per_second"], rel=0.2)
    assert found["ratio_interval"] == [found["ratio"]] * 2  # one round
    assert found["gflops"] > 0


def test_a_ratio_is_that_within_a_round(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    ratio = importlib.import_module("train_speed").ratio
    # The machine slows down tenfold after the third round, for both sides.
    assert ratio("r", [2, 2.2, 1.8, 20, 22], [1, 1, 1, 10, 10]) == {"r": 2.0, "r_interval": [1.8, 2.2]}


def test_a_side_that_fails_ends_the_wait_for_it(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    turns = importlib.import_module("turns")
    side = turns.Side(list, (3, 1, 2))
    assert side.ask("index", 2) == 2 and side.ask("sort") is None and side.ask("index", 2) == 1
    with pytest.raises(EOFError):
        side.ask("index", 9)
    with pytest.raises(EOFError):
        turns.Side(int, "no number")


def test_time_to_quality(benchmark):
    (result,) = benchmark("time_to_quality", "--max_samples", "64", "--turns", "2", "--eval_samples", "100")
    assert (result["pairs"], result["held_out_questions"]) == (64, 100)
    assert result["peer"]["seconds"] > 0 and result["peer"]["batch_size"] == result["ours"]["batch_size"] == 16
    assert result["own"]["batch_size"] == 32 and result["own"]["learning_rate"] == 2e-4
    for side in (result["ours"], result["own"]):
        reached = [mrr >= result["peer"]["mrr"] for _, mrr in side["curve"]]
        assert not any(reached[:-1]) and (reached[-1] or len(reached) == 2)
        last = side["curve"][-1][0]
        assert 0 <= last <= side["seconds"]
        assert side["seconds_to_reach"] == (last if reached[-1] else None)


def test_growth(benchmark):
    options = ["--batch_sizes", "4", "8", "--block", "8", "--rounds", "1", "--pairs", "5", "60", "--steps", "1"]
    (result,) = benchmark("growth", *options)
    assert list(result["batch"]) == ["4", "8", "8 in pieces"] and min(result["batch"].values()) > 0
    # Five articles of one question: four to train on, of which one validates. Six articles of ten: five, and of these one.
    assert [found["training_pairs"] for found in result["pairs"].values()] == [3, 40]
    assert all(value > 0 for found in result["pairs"].values() for value in found.values())


def test_layouts_and_kinds_of_dropout(benchmark):
    (result,) = benchmark("step_forms", "--batch_sizes", "4", "--pairs", "8", "--rounds", "1")
    seconds = result["seconds_a_step"]["4"]
    assert len(seconds) == 10 and min(seconds.values()) > 0


@pytest.mark.parametrize("layout", ["padded", "one_group", "four_sorted"])
def test_every_layout_embeds_alike(layout, monkeypatch, toy_model_dir, toy_config):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    step_forms = importlib.import_module("step_forms")
    config = toy_config(model_name=str(toy_model_dir), batch_size=4, log_dir="")
    texts = [f"글 {'가' * length}" for length in (1, 9, 4, 2, 7, 3, 12, 5)]
    examples = [InputExample(texts=[a, b]) for a, b in zip(texts[:4], texts[4:], strict=True)]
    form = step_forms.Form(examples, config, getattr(step_forms, layout))
    form.model.eval()
    (batch,) = form.loader
    chosen = np.array([2, 0, 1, 3, 7, 5, 4, 6])
    with torch.no_grad():
        wanted = EmbeddingTrainer._embed(form.trainer, batch["tokens"], batch["lengths"], chosen)
        found = form.trainer._embed(batch["tokens"], batch["lengths"], chosen)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.long
def test_dropout_quality(benchmark):
    *runs, means = benchmark("dropout_quality", "--max_samples", "32", "--num_epochs", "1", "--seeds", "0", "1")
    assert len(runs) == 8 and list(means["mrr@10"]) == [run["kind"] for run in runs[:4]]
    of_none = [run["answers"] for run in runs if run["kind"] == "none"]
    assert math.isclose(means["mrr@10"]["none"]["answers"], sum(of_none) / 2, abs_tol=1e-4)


@pytest.mark.long
def test_startup_counts_every_second_once(toy_model_dir, tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "startup.py"), "--model_name", str(toy_model_dir)]
    command += ["--dataset_root", str(SAMPLE), "--max_samples", "16", "--eval_samples", "20"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert sum(result["wall"].values()) == pytest.approx(result["seconds"], abs=0.2)
    assert {"imports", "base model", "step 0 on validation", "first step", "the rest"} <= set(result["wall"])
    assert list(result["cpu"]) == list(result["wall"]) and min(result["cpu"].values()) >= 0


def test_help_pages_become_a_retrieval_set(tmp_path, monkeypatch, capsys):
    from dataloader.beir import load_beir

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    korean, other = "표의 셀을 나누거나 합치는 방법을 설명합니다. " * 4, "English text that nobody translated yet. " * 4
    untranslated = f"<h2>표 서식 지정</h2><p>{other}</p><h2>빈 절 제목</h2>"
    pages = {
        "a.html": f"<title>도움말</title><h1>셀 나누기와 합치기</h1><p>{korean}</p><h2>짧다</h2><p>{korean}1</p>",
        "sub/b.html": f"<h1>셀 <b>나누기</b>와 합치기</h1><p>{korean}2</p>{untranslated}",
    }
    for name, page in pages.items():
        (tmp_path / "pages" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pages" / name).write_text(page, "utf-8")
    out = tmp_path / "set"
    monkeypatch.setattr(sys, "argv", ["help_pages", str(tmp_path / "pages"), "--out", str(out), "--characters", "120"])
    importlib.import_module("help_pages").main()
    assert json.loads(capsys.readouterr().out) == {"queries": 1, "documents": 2, "relevant": 2}
    found = load_beir(out)
    assert list(found.queries.values()) == [
        "셀 나누기와 합치기"
    ]  # one heading twice; the others too short, not Korean, empty
    assert {len(text) for text in found.corpus.values()} == {len(korean.strip()), len(korean.strip()) + 2}
    assert found.relevant_docs == {"q0": {"d0", "d1"}}
