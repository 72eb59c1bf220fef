"""The benchmarks run, and what they write is what they say."""

import json
import subprocess
import sys
from pathlib import Path

from dataloader import load_entire_dataset

ROOT = Path(__file__).resolve().parent.parent


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
