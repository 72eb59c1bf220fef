"""Fine-tune multilingual-e5-small with LoRA on KorQuAD question → answer pairs.

From the repository's folder:

    python train.py                                        # KorQuAD 2.1 at ./data/KorQuAD, else the embedded sample
    python train.py --dataset_root KorQuAD_v1.0_dev.json --num_epochs 1
    python train.py --resume --output_dir FOLDER           # go on with a run that was interrupted
    python train.py --help                                 # every setting
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import warnings
from types import FrameType
from typing import Any

from config import ConfigError, TrainingConfig, config_from_command_line, print_any_text
from dataloader import (
    build_dataloader,
    clean_html_text,
    collate_input_examples,
    load_cached_dataset,
    prepare_retrieval_sets,
    prepare_training_data,
    question_articles,
    window_size,
)

__all__ = ["clean_html_text", "collate_input_examples", "main", "prepare_training_data", "train"]

logger = logging.getLogger("train")


def train(config: TrainingConfig) -> str:
    """From files to a verdict on held-out articles. Raises the errors that `main` turns into messages.

    Returns what did not work though the model is finished; "" where all did.
    """
    # torch and its friends take seconds to import: a wrong option or a missing folder is reported before that.
    dataset = load_cached_dataset(
        config.dataset_root, config.num_workers, skip_bad_files=config.skip_bad_files, window=window_size(config)
    )

    from trainer.checkpoint import check_output_dir, claimed
    from trainer.monitor import check_log_dir

    with claimed(config.output_dir):
        check_output_dir(config)
        check_log_dir(config.log_dir)
        return train_and_judge(config, dataset)


def train_and_judge(config: TrainingConfig, dataset: dict[str, Any]) -> str:
    """The main job as a table of contents; see `train`."""
    from sentence_transformers import SentenceTransformer
    from tqdm.contrib.logging import logging_redirect_tqdm
    from transformers import set_seed
    from transformers.utils import logging as transformers_logging

    from trainer import EmbeddingTrainer, print_lora_info, setup_lora_model
    from trainer.base_model import load_base_model, resolve_base_model
    from trainer.bm25 import measure_bm25
    from trainer.checkpoint import write_metrics, write_model_card
    from trainer.device import choose_device
    from trainer.evaluation import RetrievalEvaluator, measure
    from trainer.lora import adapters_off
    from trainer.verdict import compare

    transformers_logging.disable_progress_bar()  # loading and writing 0.5 GB takes a second
    device, _ = choose_device(config.device)

    # 1. Articles → pairs to train on, and questions with their answers and paragraphs to evaluate on
    train_examples, _ = prepare_training_data(dataset, config)
    validation = prepare_retrieval_sets(dataset, config, "validation")
    held_out = prepare_retrieval_sets(dataset, config, "held_out")
    articles = question_articles(dataset, config, "held_out")
    del dataset

    # 2. The base model
    source = resolve_base_model(config.model_name, max_seq_length=config.max_seq_length)
    model = load_base_model(source, config.max_seq_length, device=str(device))

    # 3. Adapters
    set_seed(config.seed)
    model = setup_lora_model(model, config)
    print_lora_info(model)

    # 4. Train, or go on with it; the best model is in output_dir afterwards
    batches = build_dataloader(train_examples, config, tokenizer=model.tokenizer)
    trainer = EmbeddingTrainer(model, config)
    validation_evaluators = [trainer.create_evaluator(*texts, name=task) for task, texts in validation.items()]
    with logging_redirect_tqdm():
        trainer.train(batches, evaluator=validation_evaluators or None)

    # 5. The verdict: BM25, the untouched base model, and what was saved. The first two need no training, but are measured
    #    here all the same: the first step has not to wait for them.
    logger.info("Measuring BM25, the untouched base model and the tuned one on the held-out articles")
    held_out_evaluators = [RetrievalEvaluator(*texts, name=task, articles=articles) for task, texts in held_out.items()]
    rows = {"BM25": measure_bm25(held_out_evaluators)}
    with adapters_off(model):
        rows["base"] = measure(model, held_out_evaluators)
    tuned_model = SentenceTransformer(config.output_dir, device=str(device))
    rows["tuned"] = measure(tuned_model, held_out_evaluators)
    verdict = compare(held_out_evaluators, rows, [("tuned", "base")])
    record = {
        "base_model": {"name": config.model_name, "source": source.kind, "note": source.note},
        "step": trainer.best_step if trainer.best_metrics else trainer.global_step,
        "validation": trainer.best_metrics,
        "optimiser_seconds": round(trainer.optimiser_seconds, 1),
        "held_out": verdict.to_dict(),
    }
    write_metrics(config.output_dir, record)
    write_model_card(config, verdict, source.note)
    print_verdict(config, verdict)
    return trainer.log_failure


def print_verdict(config: TrainingConfig, verdict) -> None:
    """Print the table, one sentence a task, and what to do next."""
    print("\nHeld-out articles: BM25, the untouched base model and the tuned one\n")
    print(verdict.table())
    print()
    for sentence in verdict.sentences():
        print(sentence)
    search = f"python inference.py --model_path {shlex.quote(config.output_dir)}"
    print(f"\nModel: {config.output_dir}   Search with it: {search}")


def main(argv: list[str] | None = None) -> int:
    """Run from the command line. Returns the exit status: 0, 1 for what went wrong, 2 for wrong settings, 128 and the
    signal's number for SIGINT (130) and SIGTERM (143)."""
    print_any_text()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "sentence_transformers", "transformers", "absl", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # PEFT asks transformers for a property under its old name.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    try:
        config = config_from_command_line(argv)
    except ConfigError as error:
        print(f"Wrong settings:\n{error}", file=sys.stderr)
        return 2
    config.print_summary()
    stopped = _StopAtOnce()
    try:
        with stopped:
            failure = train(config)
    except BaseException as error:
        return _explained(error, stopped.received)
    if failure:
        print(f"\nError: the model is finished, but {failure}", file=sys.stderr)
    return 1 if failure else 0


def _explained(error: BaseException, signum: int | None) -> int:
    """Say what ended the run and return the exit status; what is a defect of the program is raised again."""
    signum = getattr(error, "signum", signum)  # of the training, which finishes its step and says how to go on
    if isinstance(error, KeyboardInterrupt) or signum is not None:
        said = str(error) if hasattr(error, "signum") else "Stopped."
        print(f"\n{said}", file=sys.stderr)
        return 128 + (signum or signal.SIGINT)
    if isinstance(error, ConfigError):
        print(f"Wrong settings:\n{error}", file=sys.stderr)
        return 2
    if not _is_ours(error):
        raise error
    print(f"\nError: {error}", file=sys.stderr)
    return 1


class _StopAtOnce:
    """While entered, the first SIGINT or SIGTERM raises KeyboardInterrupt, a second one ends the process.

    While it trains, the trainer takes the signals instead.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        self._before = {signum: signal.signal(signum, self._stop) for signum in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        if self.received:
            os._exit(128 + signum)
        self.received = signum
        raise KeyboardInterrupt


def _is_ours(error: BaseException) -> bool:
    """Whether the message was written for the user: our own error classes, and files that are missing or forbidden.

    Anything else is a defect of the program, and its traceback is what helps to find it.
    """
    return type(error).__module__.split(".")[0] in ("config", "dataloader", "trainer") or isinstance(error, OSError)


if __name__ == "__main__":
    sys.exit(main())
