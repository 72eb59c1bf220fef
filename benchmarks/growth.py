"""Time per pair against the size of the batch and of the data: flat is the aim.

    python benchmarks/growth.py --dataset_root KorQuAD_v1.0_dev.json

Prints one JSON line. `batch`: milliseconds of training per pair, blocks of `--block` pairs alternating in one run; "in
pieces" is the last batch with GradCache, at most 16 pairs of full length held at once. `pairs`: for KorQuAD 1.0 files of so
many questions, made from the dataset's own by numbering what is repeated, the microseconds per pair to read and prepare
them (no cache), to tokenise them, and to make an epoch's batches; and the milliseconds per pair of `--steps` steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from train_speed import Ours, add_device_options, clock, device_name, use_device_options
from transformers.utils import logging as transformers_logging

from config import SAMPLE_DATASET_ROOT, TrainingConfig
from dataloader import build_dataloader, load_entire_dataset, prepare_retrieval_sets, prepare_training_data, window_size
from trainer.base_model import load_base_model

QUESTIONS_A_PARAGRAPH = 5
PARAGRAPHS_AN_ARTICLE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_root", default=str(SAMPLE_DATASET_ROOT))
    parser.add_argument("--batch_sizes", type=int, nargs="*", default=[16, 64, 256, 1024])
    parser.add_argument("--pairs", type=int, nargs="*", default=[5, 500, 5_000, 20_000, 80_000])
    parser.add_argument("--block", type=int, default=1024, help="pairs of a block; at least the largest batch")
    parser.add_argument("--rounds", type=int, default=2, help="blocks of each batch size, after one that warms up")
    parser.add_argument("--steps", type=int, default=12, help="steps of 16 pairs in each size of data")
    parser.add_argument("--model_name", default=TrainingConfig.model_name)
    add_device_options(parser)
    options = parser.parse_args()
    use_device_options(options)
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()

    settings = {"model_name": options.model_name, "gradient_checkpointing": False, "log_dir": "", "num_workers": 0}
    config = TrainingConfig(dataset_root=options.dataset_root, device=options.device, **settings)
    window = window_size(config)
    dataset = load_entire_dataset(config.dataset_root, num_workers=0, verbose=False, fields="windows", window=window)
    print(
        json.dumps(
            {
                "benchmark": "growth",
                "device": device_name(options.device),
                "threads": torch.get_num_threads(),
                "batch": by_batch_size(dataset, config, options.batch_sizes, options.block, options.rounds),
                "pairs": {str(count): with_pairs(dataset, config, count, options.steps) for count in options.pairs},
            }
        )
    )


def by_batch_size(
    dataset: dict[str, Any], config: TrainingConfig, batch_sizes: list[int], block: int, rounds: int
) -> dict[str, float]:
    """Name of a batch → milliseconds of training per pair, the median over the rounds."""
    examples, _ = prepare_training_data(dataset, config)
    examples = list(itertools.islice(itertools.cycle(examples), block))
    wanted = {str(size): {"batch_size": size} for size in batch_sizes}
    if batch_sizes:
        wanted[f"{max(batch_sizes)} in pieces"] = {"batch_size": max(batch_sizes), "micro_batch_size": 16}
    sides = {name: Ours(examples, TrainingConfig(**config.to_dict() | changed)) for name, changed in wanted.items()}
    for name, changed in wanted.items():
        if "micro_batch_size" not in changed:
            sides[name].trainer._setup_memory()  # what the run itself would decide
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(rounds + 1):
        for name, side in sides.items():
            elapsed = side.block()
            if round_number:
                seconds[name].append(elapsed)
    return {name: round(1000 * statistics.median(values) / block, 2) for name, values in seconds.items()}


def with_pairs(source: dict[str, Any], config: TrainingConfig, count: int, steps: int) -> dict[str, float]:
    """Phase → time per pair, with a file of `count` questions; medians of three, but for the steps."""
    tokenizer = load_base_model(config.model_name, config.max_seq_length).tokenizer
    times: dict[str, list[float]] = {"prepare_us": [], "tokenise_us": [], "batches_us": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "synthetic.json")
        file.write_text(json.dumps({"version": "synthetic", "data": articles(source, count)}, ensure_ascii=False), "utf-8")
        for _ in range(3):
            marks = [clock()]
            dataset = load_entire_dataset(file, 0, verbose=False, fields="windows", window=window_size(config))
            examples, _ = prepare_training_data(dataset, config)
            for part in ("validation", "held_out"):
                prepare_retrieval_sets(dataset, config, part)
            marks.append(clock())
            loader = build_dataloader(examples, config, tokenizer=tokenizer)
            marks.append(clock())
            for _batch in loader:
                pass
            marks.append(clock())
            for phase, (start, end) in zip(times, itertools.pairwise(marks), strict=True):
                pairs = count if phase == "prepare_us" else len(examples)
                times[phase].append(1e6 * (end - start) / pairs)
    result = {phase: round(statistics.median(values), 1) for phase, values in times.items()}
    few = list(itertools.islice(itertools.cycle(examples), steps * config.batch_size))
    side = Ours(few if len(examples) >= config.batch_size else examples, config)
    side.block()
    trained = len(side.loader) * min(config.batch_size, len(examples))
    return result | {"steps_ms": round(1000 * side.block() / trained, 2), "training_pairs": len(examples)}


def articles(source: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """KorQuAD 1.0 articles, at least five, with `count` questions; every question and every answer is a text of its own."""
    questions = itertools.islice(numbered_questions(source), count)
    paragraphs: list[dict[str, Any]] = []
    while taken := list(itertools.islice(questions, min(QUESTIONS_A_PARAGRAPH, max(1, count // 5)))):
        context, qas = "", []
        for number, (question, answer, _) in enumerate(taken):
            found = {"text": answer, "answer_start": len(context)}
            qas.append({"id": f"{len(paragraphs)}-{number}", "question": question, "answers": [found]})
            context += answer + ". "
        paragraphs.append({"context": context + taken[0][2], "qas": qas})
    size = min(PARAGRAPHS_AN_ARTICLE, max(1, len(paragraphs) // 5))
    groups = [paragraphs[start : start + size] for start in range(0, len(paragraphs), size)]
    return [{"title": f"{number}", "paragraphs": group} for number, group in enumerate(groups)]


def numbered_questions(source: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(question, answer, text around it), again and again, with the number of the repetition."""
    for repetition in itertools.count():
        for article in source["articles"]:
            for qa in article["qas"]:
                if qa["question"] and qa["answers"] and qa["windows"]:
                    text = article["windows"][qa["windows"][0]]
                    yield f"{qa['question']} {repetition}", f"{qa['answers'][0]} {repetition}", text


if __name__ == "__main__":
    main()
