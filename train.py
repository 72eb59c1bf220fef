"""Fine-tune multilingual-e5-small with LoRA on KorQuAD question → answer pairs.

From the repository's folder:

    python train.py                                        # KorQuAD 2.1 at ./data/KorQuAD, else the embedded sample
    python train.py --dataset_root KorQuAD_v1.0_dev.json --num_epochs 1
    python train.py --help                                 # every setting
"""

from __future__ import annotations

import logging
import signal
import sys
import warnings

from config import ConfigError, TrainingConfig, config_from_command_line
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


def train(config: TrainingConfig) -> None:
    """The main job, from files to a verdict on held-out articles. Raises the errors that `main` turns into messages."""
    # torch and its friends take seconds to import: a wrong option or a missing folder is reported before that.
    dataset = load_cached_dataset(
        config.dataset_root, config.num_workers, skip_bad_files=config.skip_bad_files, window=window_size(config)
    )

    from sentence_transformers import SentenceTransformer
    from tqdm.contrib.logging import logging_redirect_tqdm
    from transformers import set_seed
    from transformers.utils import logging as transformers_logging

    from trainer import EmbeddingTrainer, print_lora_info, setup_lora_model
    from trainer.base_model import load_base_model, resolve_base_model
    from trainer.bm25 import measure_bm25
    from trainer.checkpoint import check_output_dir, write_metrics, write_model_card
    from trainer.device import choose_device
    from trainer.evaluation import RetrievalEvaluator, measure
    from trainer.verdict import compare

    transformers_logging.disable_progress_bar()  # loading and writing 0.5 GB takes a second
    check_output_dir(config)
    device, _ = choose_device(config.device)

    # 1. Articles → pairs to train on, and questions with their answers and paragraphs to evaluate on
    train_examples, _ = prepare_training_data(dataset, config)
    validation = prepare_retrieval_sets(dataset, config, "validation")
    held_out = prepare_retrieval_sets(dataset, config, "held_out")
    articles = question_articles(dataset, config, "held_out")
    del dataset

    # 2. What there is without training, measured first: BM25 and the untouched base model
    source = resolve_base_model(config.model_name, max_seq_length=config.max_seq_length)
    model = load_base_model(source, config.max_seq_length, device=str(device))
    held_out_evaluators = [RetrievalEvaluator(*texts, name=task, articles=articles) for task, texts in held_out.items()]
    logger.info("Measuring BM25 and the untouched base model on the held-out articles")
    rows = {"BM25": measure_bm25(held_out_evaluators), "base": measure(model, held_out_evaluators)}

    # 3. Adapters
    set_seed(config.seed)
    model = setup_lora_model(model, config)
    print_lora_info(model)

    # 4. Train; the best checkpoint is in output_dir afterwards
    batches = build_dataloader(train_examples, config, tokenizer=model.tokenizer)
    trainer = EmbeddingTrainer(model, config)
    validation_evaluators = [trainer.create_evaluator(*texts, name=task) for task, texts in validation.items()]
    with logging_redirect_tqdm():
        trainer.train(batches, evaluator=validation_evaluators or None)

    # 5. The verdict, on what was saved
    tuned_model = SentenceTransformer(config.output_dir, device=str(device))
    rows["tuned"] = measure(tuned_model, held_out_evaluators)
    verdict = compare(held_out_evaluators, rows, [("tuned", "base")])
    record = {
        "base_model": {"name": config.model_name, "source": source.kind, "note": source.note},
        "step": trainer.best_step or trainer.global_step,
        "held_out": verdict.to_dict(),
    }
    write_metrics(config.output_dir, record)
    write_model_card(config, verdict, source.note)
    print_verdict(config, verdict)


def print_verdict(config: TrainingConfig, verdict) -> None:
    """Print the table, one sentence a task, and what to do next."""
    print("\nHeld-out articles: BM25, the untouched base model and the tuned one\n")
    print(verdict.table())
    print()
    for sentence in verdict.sentences():
        print(sentence)
    print(f"\nModel: {config.output_dir}   Search with it: python inference.py --model_path {config.output_dir}")


def main(argv: list[str] | None = None) -> int:
    """Run from the command line. Returns the exit status: 0, 1 for what went wrong, 2 for wrong settings, 130 for Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "sentence_transformers", "transformers", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # PEFT asks transformers for a property under its old name.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    try:
        config = config_from_command_line(argv)
    except ConfigError as error:
        print(f"Wrong settings:\n{error}", file=sys.stderr)
        return 2
    config.print_summary()
    try:
        train(config)
    except KeyboardInterrupt:
        print(f"\nStopped. {config.output_dir} holds the best checkpoint, if one was reached.", file=sys.stderr)
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
    """Whether the message was written for the user: our own error classes, and files that are missing or forbidden.

    Anything else is a defect of the program, and its traceback is what helps to find it.
    """
    return type(error).__module__.split(".")[0] in ("config", "dataloader", "trainer") or isinstance(error, OSError)


if __name__ == "__main__":
    sys.exit(main())
