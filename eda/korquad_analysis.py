"""Statistics of a whole KorQuAD dataset: tables on the terminal, an HTML report, the numbers as JSON, figures as PNG.

    python eda/korquad_analysis.py                                          # ./data/KorQuAD, else the embedded sample
    python eda/korquad_analysis.py --dataset_root KorQuAD_v1.0_dev.json     # one file
    python eda/korquad_analysis.py --workers 8 --output_dir reports

It counts files, articles and question-answer pairs, and measures the length of questions, answers and contexts in
characters and in the model's tokens, the kinds of answers, what occurs twice, how often a random batch holds an answer
twice, which question words the questions use, and how many answers carry markup. Every number is exact and of the whole
dataset; memory does not grow with its texts (eda/measure.py says why).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the repository root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import DEFAULT_DATASET_ROOT, SAMPLE_DATASET_ROOT, ConfigError, TrainingConfig, print_any_text
from dataloader import DatasetError, get_all_json_files
from eda.collisions import collision_chance, row_collision_share, same_answer_chance
from eda.counted import counted, length_statistics, occurrence_statistics, truncation
from eda.figures import render_figures, save_figures
from eda.measure import ANSWER_KINDS, HASHED, QUESTION_WORDS, Measurements, measure_files
from eda.model_tokenizer import TokenizerSource, find_tokenizer
from eda.report import build_report
from eda.tables import print_analysis

logger = logging.getLogger(__name__)

BATCH_SIZES = (16, 64, 256, 1024)


# --- numbers --------------------------------------------------------------------------------------------------


def analyse(
    dataset: dict[str, Any], found: Measurements, tokenizer: TokenizerSource | None = None, max_seq_length: int = 256
) -> dict[str, Any]:
    """All numbers of the report, JSON-ready, by part.

    Shares are of the questions that have text, of all answers (markup) or those that have text (kinds); duplicates and
    collisions are of the pairs that have both texts. Raises DatasetError where there is no question.
    """
    if not found.qa_pairs:
        raise DatasetError(
            f"nothing to analyse: {found.articles} articles in {dataset['total_files']} files hold no question."
            " Give a KorQuAD file or folder with --dataset_root."
        )
    questions, answers = found.lengths["questions"].total(), found.lengths["answers"].total()
    return {
        "dataset": {
            "files": dataset["files"],
            "versions": sorted(set(dataset["versions"])),
            "skipped": dataset.get("skipped", []),
        },
        "totals": {
            "files": dataset["total_files"],
            "articles": found.articles,
            "contexts": found.lengths["contexts"].total(),
            "qa_pairs": found.qa_pairs,
            "empty": {name: found.empty[name] for name in ("questions", "answers", "contexts")},
        },
        "lengths": {name: length_statistics(lengths) for name, lengths in found.lengths.items()},
        "tokens": _token_numbers(found, tokenizer, max_seq_length),
        "answer_kinds": {
            "answers": answers,
            "kinds": {
                kind: {"rule": rule, **counted(found.answer_kinds[kind], answers)} for kind, rule in ANSWER_KINDS.items()
            },
        },
        "duplicates": {name: occurrence_statistics(found.occurrences(name)) for name in HASHED},
        "collisions": _collision_numbers(found),
        "question_words": {
            "questions": questions,
            "words": {
                entry.word: {
                    "meaning": entry.meaning,
                    "forms": list(entry.forms),
                    **counted(found.question_words[entry.word], questions),
                }
                for entry in QUESTION_WORDS
            },
            "none": counted(found.without_question_word, questions),
        },
        "answer_markup": {
            **counted(found.answers_with_markup, found.qa_pairs),
            "elements": {name: counted(n, found.qa_pairs) for name, n in _most_common(found.elements)},
        },
    }


def _token_numbers(found: Measurements, tokenizer: TokenizerSource | None, max_seq_length: int) -> dict[str, Any]:
    if tokenizer is None or tokenizer.file is None:
        return {"left_out": tokenizer.note if tokenizer else "none was asked for"}
    return {
        "model": tokenizer.model,
        "source": tokenizer.note,
        "max_seq_length": max_seq_length,
        "texts": {
            name: {**length_statistics(lengths), "truncated": truncation(lengths, max_seq_length)}
            for name, lengths in found.tokens.items()
        },
    }


def _collision_numbers(found: Measurements) -> dict[str, Any]:
    """Expectations for random batches; None at sizes for which there are too few pairs."""
    occurrences = found.occurrences("answers")
    pairs, same = int(occurrences.sum()), same_answer_chance(occurrences)
    to_the_letter = same_answer_chance(found.occurrences("answers_as_written"))
    batches: dict[str, dict[str, float | None]] = {}
    for size in BATCH_SIZES:
        fits = size <= pairs
        batches[str(size)] = {
            "chance": collision_chance(occurrences, size) if fits else None,
            "same_answer_pairs": size * (size - 1) / 2 * same if fits else None,
            "rows_hit_share": row_collision_share(occurrences, size) if fits else None,
        }
    return {
        "pairs": pairs,
        "same_answer_chance": same,
        "same_to_the_letter": round(to_the_letter / same, 6) if same else 0.0,
        "batches": batches,
    }


def _most_common(counts: Counter[str]) -> list[tuple[str, int]]:
    """Most frequent first; equal counts in alphabetical order, so that reports can be compared."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


# --- command line ---------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns the exit status: 0, 1 for what went wrong, 130 for Ctrl-C."""
    print_any_text()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    options = _parse_options(argv)
    try:
        analysis, paths = run(options)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except (DatasetError, OSError, RuntimeError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print_analysis(analysis)
    print("\nWritten: " + ", ".join(map(str, paths)))
    return 0


def run(options: argparse.Namespace) -> tuple[dict[str, Any], list[Path]]:
    """Measure, analyse, write. Returns the numbers and the files written.

    Raises DatasetError for what cannot be used, OSError for what cannot be read or written, RuntimeError where a worker
    process dies.
    """
    output_dir = Path(options.output_dir)
    if output_dir.is_file():
        raise FileExistsError(f"--output_dir {output_dir} is a file: name a folder")
    try:  # before the work
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise OSError(f"--output_dir {output_dir}: cannot be written to ({error.strerror}). Name another folder.") from error
    files = get_all_json_files(options.dataset_root or _default_root())
    tokenizer = find_tokenizer(options.model_name)
    if tokenizer.file is None:
        logger.warning("No tokenizer of %s, lengths in tokens are left out: %s", options.model_name, tokenizer.note)
    dataset, found = measure_files(files, options.workers, tokenizer.file, options.skip_bad_files)
    analysis = analyse(dataset, found, tokenizer, options.max_seq_length)
    rendered = render_figures(analysis, found)
    report, numbers = output_dir / "korquad_analysis.html", output_dir / "korquad_analysis.json"
    report.write_text(build_report(analysis, rendered), encoding="utf-8")
    numbers.write_text(json.dumps(analysis, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return analysis, [report, numbers, *save_figures(rendered, output_dir)]


def _default_root() -> str:
    if Path(DEFAULT_DATASET_ROOT).exists():
        return DEFAULT_DATASET_ROOT
    logger.info("No KorQuAD at %s: using the embedded sample, %s", DEFAULT_DATASET_ROOT, SAMPLE_DATASET_ROOT)
    return str(SAMPLE_DATASET_ROOT)


def _parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    defaults = TrainingConfig()
    parser = argparse.ArgumentParser(description="Statistics of a whole KorQuAD dataset.", allow_abbrev=False)
    parser.add_argument(
        "--dataset_root",
        help=f"folder with KorQuAD_2.1_train_*/*.json, or one KorQuAD file; default {DEFAULT_DATASET_ROOT}, else the sample",
    )
    parser.add_argument("--workers", type=int, help="processes that load and measure; default: one a processor")
    parser.add_argument("--output_dir", default="reports", help="folder for report, JSON and figures; default %(default)s")
    parser.add_argument("--model_name", default=defaults.model_name, help="whose tokenizer counts; default %(default)s")
    parser.add_argument(
        "--max_seq_length",
        type=int,
        default=defaults.max_seq_length,
        help="tokens that the model reads; default %(default)s",
    )
    parser.add_argument("--skip_bad_files", action="store_true", help="go on without files that cannot be read")
    options = parser.parse_args(argv)
    if options.workers is not None and options.workers < 0:
        parser.error(f"--workers {options.workers}: give 0 or more")
    try:
        TrainingConfig(model_name=options.model_name, max_seq_length=options.max_seq_length)
    except ConfigError as error:
        parser.error(str(error))
    return options


if __name__ == "__main__":
    sys.exit(main())
