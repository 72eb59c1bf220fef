"""What a run leaves on disk: the finished model with its adapter, settings, metrics and card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from config import TrainingConfig
from trainer.lora import merged_copy, peft_model_of
from trainer.verdict import Verdict

ADAPTER_FOLDER = "lora_adapter"
CONFIG_FILE = "training_config.json"
METRICS_FILE = "metrics.json"
CARD_FILE = "README.md"
MODEL_MARKER = "modules.json"  # every sentence-transformers folder has it


class CheckpointError(RuntimeError):
    """A model cannot be saved where it should go."""


def check_output_dir(config: TrainingConfig) -> None:
    """Refuse, before anything is loaded, an output folder that cannot take the model.

    Raises:
        CheckpointError: it holds a finished model and `overwrite` is off, or other files, or cannot be written to.
    """
    output_dir = Path(config.output_dir)
    if (output_dir / MODEL_MARKER).exists() and not config.overwrite:
        raise CheckpointError(
            f"{output_dir} holds a finished model already. Name another folder with --output_dir, "
            "or pass --overwrite to replace it."
        )
    if output_dir.is_dir() and any(output_dir.iterdir()) and not (output_dir / CONFIG_FILE).exists():
        raise CheckpointError(
            f"--output_dir {output_dir} holds files that no run of train.py made. Name an empty or a new folder."
        )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise CheckpointError(
            f"--output_dir {output_dir}: cannot be written to ({error.strerror}). Name another folder."
        ) from error


def save_finished_model(model: SentenceTransformer, config: TrainingConfig, metrics: dict[str, Any]) -> None:
    """Write the model, adapters merged in, to `config.output_dir`, and beside it `lora_adapter/`, settings and metrics.

    The folder loads with `SentenceTransformer(path)` alone. Everything is written to a temporary folder first and then
    moved, so that a failure leaves what was there before. No network is touched.

    Raises:
        CheckpointError: the folder cannot be written (disk full, no permission).
    """
    output_dir = Path(config.output_dir)
    # Inside the folder, which may be a mount of its own or a link to another disk: a rename does not cross file systems.
    staging = output_dir / f".saving-{os.getpid()}"
    try:
        # A card of sentence-transformers' own would ask the hub about the base model.
        merged_copy(model).save_pretrained(str(staging), create_model_card=False)
        # So would PEFT, to learn whether the vocabulary grew; it did not.
        peft_model_of(model).save_pretrained(str(staging / ADAPTER_FOLDER), save_embedding_layers=False)
        (staging / ADAPTER_FOLDER / "README.md").unlink(missing_ok=True)
        config.save(staging / CONFIG_FILE)
        write_metrics(staging, metrics)
        (output_dir / CARD_FILE).unlink(missing_ok=True)  # it speaks of the weights that are replaced
        _move_into(staging, output_dir)
    except OSError as error:
        raise CheckpointError(
            f"the model could not be saved to {output_dir}: {error.strerror or error}. Free some space or name another "
            "folder with --output_dir."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_metrics(folder: str | Path, metrics: dict[str, Any]) -> None:
    """Write `metrics.json`."""
    text = json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"
    (Path(folder) / METRICS_FILE).write_text(text, encoding="utf-8")


def write_model_card(config: TrainingConfig, verdict: Verdict, base_note: str) -> None:
    """Write README.md of the model: what it is, how to use it, and the measured table."""
    settings = "\n".join(f"- {name}: {value}" for name, value in config.to_dict().items())
    card = f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
language: ko
base_model: {config.model_name}
tags: [sentence-transformers, feature-extraction, korquad, lora]
---

# {Path(config.output_dir).name}

{config.model_name}, fine-tuned with LoRA on Korean question → answer pairs. {base_note}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
queries = model.encode_query(["대한민국의 수도는 어디인가?"])  # adds the stored prefix "query: "
passages = model.encode_document(["서울특별시", "부산광역시"])  # adds "passage: "
print(model.similarity(queries, passages))
```

## Measured on held-out articles

{verdict.table()}

{" ".join(sentence + "." for sentence in verdict.sentences())}

`{ADAPTER_FOLDER}/` holds the adapter alone, in PEFT's format, for {config.model_name}.

## Settings

{settings}
"""
    (Path(config.output_dir) / CARD_FILE).write_text(card, encoding="utf-8")


def _move_into(staging: Path, output_dir: Path) -> None:
    for entry in sorted(staging.iterdir()):
        target = output_dir / entry.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        os.replace(entry, target)
