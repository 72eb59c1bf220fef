"""Saved models side by side on any data, beside BM25 and the untouched base model.

    python evaluate.py models/sample --data data/sample
    python evaluate.py models/a models/b --data KorQuAD_v1.0_dev.json --json result.json --figure result.png
    python evaluate.py base --data my_beir_set --split dev
    python evaluate.py models/recommended --data KorQuAD_v1.0_dev.json --skip_in_query    # as a search can leave it out

`--data` is what train.py takes as --dataset_root, or a folder in BEIR's layout (queries.jsonl, corpus.jsonl, judgements).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from config import ConfigError, TrainingConfig, objective_weights, print_any_text
from dataloader import (
    DatasetError,
    RetrievalSet,
    load_cached_dataset,
    prepare_retrieval_sets,
    question_articles,
    window_size,
)
from dataloader.beir import is_beir, load_beir
from dataloader.loader import WorkerError
from dataloader.pairs import articles_of_part, extract_pairs

logger = logging.getLogger("evaluate")

BASE = "base"
PARTS = ("held_out", "validation", "all")
SPLIT_SETTINGS = ("train_split", "val_split", "split_seed")


class EvaluateError(ValueError):
    """What was asked for cannot be done; the message says what to do instead."""


class Model(NamedTuple):
    """A model by the name under which it stands in the table; `config` is of its training, where its folder holds it."""

    name: str
    config: TrainingConfig | None


class Asked(NamedTuple):
    """What the models are asked: retrieval sets by task, and what they are a part of.

    `articles`: question → its article, None where the data has none; `titles`: article → its title.
    """

    sets: dict[str, RetrievalSet]
    part: str
    articles: dict[str, int] | None
    titles: dict[int, str]

    @property
    def questions(self) -> set[str]:
        return {text for found in self.sets.values() for text in found.queries.values()}


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """The job, from names to results, JSON-ready. Raises the errors that `main` turns into messages."""
    # 1. What is asked, of which models
    models = [Model(name, _training_config(name)) for name in _names(options)]
    settings = _settings(options, models)
    models = [model for model in models if model.name not in (BASE, settings.model_name)]  # it has its row anyway
    asked = _read_beir(options) if is_beir(options.data) else _read_korquad(options, settings, models)

    # torch and its friends take seconds to import: a wrong option or a missing folder is reported before that.
    from transformers.utils import logging as transformers_logging

    from search.in_query import rows_in_queries
    from trainer.base_model import load_base_model, load_saved_model, resolve_base_model
    from trainer.bm25 import measure_bm25
    from trainer.device import choose_device
    from trainer.evaluation import RetrievalEvaluator, measure
    from trainer.verdict import compare

    transformers_logging.disable_progress_bar()  # loading 0.5 GB takes a second
    device = str(choose_device(options.device)[0])
    base = resolve_base_model(settings.model_name, max_seq_length=settings.max_seq_length)
    sources = {model.name: resolve_base_model(model.name) for model in models}

    # 2. A row for each
    shared = {
        "max_queries": options.max_queries,
        "seed": settings.split_seed,
        "articles": asked.articles,
        "left_out": rows_in_queries if options.skip_in_query else None,
    }
    evaluators = [RetrievalEvaluator(*asked.sets[task], name=task, **shared) for task in asked.sets]
    rows = {"BM25": measure_bm25(evaluators)}
    rows[BASE] = measure(load_base_model(base, settings.max_seq_length, device), evaluators)
    for name, source in sources.items():
        logger.info("Measuring %s", name)
        rows[name] = measure(load_saved_model(source, device), evaluators)

    # 3. What is certain about their differences, and what spoils the comparison
    names = list(sources)
    verdict = compare(evaluators, rows, [(name, BASE) for name in names] + [(name, names[0]) for name in names[1:]])
    seen = {model.name: _seen_in_training(model, asked) for model in models}
    left_out = {evaluator.name: _left_out(evaluator) for evaluator in evaluators if evaluator.left_out is not None}
    notes = [found["note"] for found in (*left_out.values(), *seen.values())]
    print_verdict(f"{options.data}, {asked.part}; base: {settings.model_name}", verdict, notes)
    split = {name: getattr(settings, name) for name in SPLIT_SETTINGS} if asked.articles is not None else {}
    return {
        "data": str(options.data),
        "part": asked.part,
        **split,
        "base_model": {"name": settings.model_name, "source": base.kind, "note": base.note},
        "tasks": verdict.to_dict(),
        **({"left_out": left_out} if left_out else {}),
        "seen_in_training": seen,
    }


def print_verdict(title: str, verdict: Any, notes: Sequence[str]) -> None:
    """Print the table, one sentence a difference, and what else is to be known of the comparison."""
    print(f"\n{title}\n\n{verdict.table()}\n")
    for sentence in (*verdict.sentences(), *notes):
        print(sentence)


def _left_out(evaluator: Any) -> dict[str, Any]:
    """How many documents stand in a question, which does not rank them, and how many of these are right ones."""
    found = sum(map(len, evaluator.left_out))
    right = sum(len(set(rows) & set(out)) for rows, out in zip(evaluator.relevant, evaluator.left_out, strict=True))
    note = f"LEFT OUT of {evaluator.name}: {found:,} documents that stand in a question, {right:,} of them its right ones."
    return {"documents": found, "right": right, "note": note}


# --- models ---------------------------------------------------------------------------------------------------


def _names(options: argparse.Namespace) -> list[str]:
    names = [name.rstrip("/") or name for name in options.models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise EvaluateError(f"{', '.join(twice)} is named twice")
    if "BM25" in names:
        raise EvaluateError("BM25 has its row anyway; if you mean a folder of this name: ./BM25")
    return names


def _training_config(name: str) -> TrainingConfig | None:
    file = Path(name) / "training_config.json"
    return TrainingConfig.load(file) if file.is_file() else None


def _settings(options: argparse.Namespace, models: Sequence[Model]) -> TrainingConfig:
    """The split, the base model and its length, and how data is loaded: the command line's, else those of a model trained on
    this data; base model and length, which go with any data, else those of the first model that train.py made."""
    made = [model.config for model in models if model.config]
    here = _trained_here(options, models)
    chosen: dict[str, Any] = {}
    if here or made:
        kept = ("model_name", "max_seq_length", *(SPLIT_SETTINGS if here else ()))
        chosen = {name: getattr(here or made[0], name) for name in kept}
    given = {name: getattr(options, name) for name in SPLIT_SETTINGS if getattr(options, name) is not None}
    if options.base:
        chosen["model_name"] = options.base
    return TrainingConfig(**chosen | given)


def _trained_here(options: argparse.Namespace, models: Sequence[Model]) -> TrainingConfig | None:
    """The settings of the first model trained on the data that is asked about."""
    data = options.data.resolve()
    return next(
        (model.config for model in models if model.config and Path(model.config.dataset_root).resolve() == data), None
    )


def _seen_in_training(model: Model, asked: Asked) -> dict[str, Any]:
    """How much of what is asked trained a model or chose its checkpoint, by title of the articles and by question.

    `articles` and `questions` are None where that cannot be told; `note` says it in a sentence.
    """
    unknown = {"articles": None, "questions": None}
    config = model.config
    if config is None:
        return unknown | {"note": f"{model.name}: what it was trained on is not known (it has no training_config.json)."}
    try:
        dataset = load_cached_dataset(
            config.dataset_root,
            config.num_workers,
            verbose=False,
            skip_bad_files=config.skip_bad_files,
            window=window_size(config),
        )
    except (DatasetError, OSError):
        gone = f"its training data, {config.dataset_root}, cannot be read here"
        return unknown | {"note": f"{model.name}: whether it has seen this in training is not known ({gone})."}
    logger.info("Preparing the training pairs of %s again, to tell what it has seen", model.name)
    titles, questions = _titles_and_questions(dataset, config)
    n_articles, n_questions = sum(title in titles for title in asked.titles.values()), len(asked.questions & questions)
    seen = f"{n_questions:,} of the {len(asked.questions):,} questions"
    if asked.titles:
        seen = f"{n_articles:,} of the {len(asked.titles):,} articles (by title) and {seen}"
    note = f"{model.name} has seen {seen} in training."
    if n_articles or n_questions:
        note = f"NO FAIR TEST: {note}"
    return {"articles": n_articles, "questions": n_questions, "note": note}


def _titles_and_questions(dataset: dict[str, Any], config: TrainingConfig) -> tuple[set[str], set[str]]:
    """Titles and questions, cleaned, of what was trained on, by `max_samples` and `objective`, and of what validated."""
    articles, training = dataset["articles"], articles_of_part(dataset, config, "training")
    pairs, _ = extract_pairs(articles, training, config.max_samples, tuple(objective_weights(config.objective)))
    seen: dict[int, list[Any]] = {index: articles[index]["qas"] for index in articles_of_part(dataset, config, "validation")}
    trained_on = {(pair.article, pair.id, pair.answer) for pair in pairs}  # a file may give all questions one id
    for index in training:
        for qa in articles[index]["qas"]:
            if (index, qa["id"], *qa["answers"][:1]) in trained_on:
                seen.setdefault(index, []).append(qa)
    return {articles[index]["title"] for index in seen} - {""}, {qa["question"] for qas in seen.values() for qa in qas}


# --- data -----------------------------------------------------------------------------------------------------


def _read_korquad(options: argparse.Namespace, settings: TrainingConfig, models: Sequence[Model]) -> Asked:
    """The held-out articles where there is a split to hold them out by: one asked for, or that of a model; else all."""
    split_is_given = any(getattr(options, name) is not None for name in SPLIT_SETTINGS)
    part = options.split or ("held_out" if split_is_given or _trained_here(options, models) else "all")
    if part not in PARTS:
        raise EvaluateError(f"--split is {part!r}: give one of {', '.join(PARTS)}")
    try:
        dataset = load_cached_dataset(
            options.data, settings.num_workers, skip_bad_files=options.skip_bad_files, window=window_size(settings)
        )
    except FileNotFoundError as error:
        raise EvaluateError(str(error).replace("--dataset_root", "--data", 1)) from None
    sets = prepare_retrieval_sets(dataset, settings, part)
    if not sets:
        if part == "all":
            raise EvaluateError(f"{options.data} holds no question with an answer. Give other --data.")
        raise EvaluateError(f"{options.data}: no question in its {part} articles. Give another --split, such as all.")
    titles = {index: dataset["articles"][index]["title"] for index in articles_of_part(dataset, settings, part)}
    described = f"all {len(titles):,} articles"
    if part != "all":
        split = ", ".join(f"{name} {getattr(settings, name):g}" for name in SPLIT_SETTINGS)
        described = f"the {len(titles):,} {part} articles of {dataset['total_articles']:,} ({split})"
    return Asked(sets, described, question_articles(dataset, settings, part), titles)


def _read_beir(options: argparse.Namespace) -> Asked:
    if given := [f"--{name}" for name in SPLIT_SETTINGS if getattr(options, name) is not None]:
        raise EvaluateError(f"{options.data} is in BEIR's layout, without articles to split: leave out {', '.join(given)}")
    judgements = f"judgements {options.split}" if options.split else "its judgements"
    return Asked({"documents": load_beir(options.data, options.split)}, judgements, None, {})


# --- command line ---------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns the exit status: 0, 1 for what went wrong, 2 for wrong settings, 130 for Ctrl-C.

    Wrong options end the program with status 2, as argparse does.
    """
    print_any_text()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "sentence_transformers", "transformers"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    options = _parse_options(argv)
    try:
        result = evaluate(options)
        if options.json:
            options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if options.figure:
            from eda.model_figure import render_models

            options.figure.write_bytes(render_models(result["tasks"]))
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 128 + signal.SIGINT
    except ConfigError as error:
        print(f"Wrong settings:\n{error}", file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError) as error:
        if not _is_ours(error):
            raise
        print(f"\nError: {error}", file=sys.stderr)
        return 1
    return 0


def _is_ours(error: Exception) -> bool:
    """Whether the message was written for the user, as in train.py; anything else is a defect, and keeps its traceback."""
    written = isinstance(error, EvaluateError | DatasetError | WorkerError | OSError)
    return written or type(error).__module__.split(".")[0] == "trainer"


def _parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Saved models side by side on any data, beside BM25 and the untouched base model.", allow_abbrev=False
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a saved model's folder, a model id of the hub, or base")
    parser.add_argument("--data", required=True, type=Path, help="KorQuAD file or folder, or a folder in BEIR's layout")
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="held_out, validation or all (default: held_out on the data that a model was trained on, else all); "
        "for BEIR's layout a file of qrels/ (default: qrels.jsonl, else test)",
    )
    for name, kind in zip(SPLIT_SETTINGS, ("FLOAT", "FLOAT", "INT"), strict=True):
        parser.add_argument(f"--{name}", metavar=kind, help="as in train.py (default: the model's, on its own data)")
    parser.add_argument(
        "--skip_bad_files", action="store_true", help="go on without KorQuAD files that cannot be read (they are listed)"
    )
    parser.add_argument(
        "--max_queries", metavar="INT", type=_count, default=0, help="ask a seeded sample; 0 = all (default)"
    )
    parser.add_argument(
        "--skip_in_query", action="store_true", help="leave out what stands in the question, as inference.py's option does"
    )
    parser.add_argument("--base", metavar="MODEL", help="the base row's model (default: the one that was fine-tuned)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto = a GPU where there is one")
    parser.add_argument("--json", metavar="FILE", type=_new_file, help="write all numbers here")
    parser.add_argument("--figure", metavar="FILE", type=_new_file, help="draw the models side by side here (PNG)")
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, not {text!r}")
    return int(text)


def _new_file(text: str) -> Path:
    """A file that can be written, as far as can be told before hours of measuring."""
    path = Path(text)
    try:
        if path.is_dir() or not path.parent.is_dir():
            raise argparse.ArgumentTypeError(f"{text} cannot be written: give a file in a folder that is there")
        if not path.exists():
            with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
                pass
        elif not os.access(path, os.W_OK):  # not opened: who reads from a pipe would take its end for the answer
            raise argparse.ArgumentTypeError(f"{text} may not be written to: give another file")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be written ({error.strerror}): give another file") from None
    return path


if __name__ == "__main__":
    sys.exit(main())
