"""What a run leaves on disk: the finished model with its adapter, settings, metrics and card.

What it leaves to go on from is in trainer/resume.py.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer

from config import CHECKPOINTS_FOLDER, NEWEST, SETTINGS_FILE, TrainingConfig, checkpoint_folders
from trainer.durable import flush, flush_tree, write_whole
from trainer.lora import merged_copy, peft_model_of
from trainer.verdict import Verdict

ADAPTER_FOLDER = "lora_adapter"
CONFIG_FILE = SETTINGS_FILE
METRICS_FILE = "metrics.json"
CARD_FILE = "README.md"
MODEL_MARKER = "modules.json"  # every sentence-transformers folder has it
LOCK_FILE = f"{CHECKPOINTS_FOLDER}/.lock"
READY_FOLDER = ".ready"  # a model written to the end, on its way to its place


class CheckpointError(RuntimeError):
    """A model cannot be saved where it should go."""


@contextmanager
def claimed(output_dir: str | Path) -> Iterator[None]:
    """While entered, no other run writes to `output_dir`. The system itself ends the claim of a process that is killed.

    One process may claim a folder several times over.

    Raises:
        CheckpointError: another run has claimed it, or it cannot be written to.
    """
    folder = Path(output_dir)
    file = (folder / LOCK_FILE).resolve()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(file), timeout=0, is_singleton=True)
        lock.acquire()
    except Timeout:
        raise CheckpointError(
            f"another run is training into {folder}. Wait for it, or name another folder with --output_dir."
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"--output_dir {folder}: cannot be written to ({error.strerror}). Name another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


def check_output_dir(config: TrainingConfig) -> None:
    """Refuse, before anything is loaded, an output folder that cannot take the model. A save that was cut off is finished.

    Raises:
        CheckpointError: it holds a finished model or an unfinished run and `overwrite` is off, or other files, or cannot
            be written to.
    """
    output_dir = Path(config.output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
        _finish_interrupted_save(output_dir)
        found = {path.name for path in output_dir.iterdir()} - {CHECKPOINTS_FOLDER}
    except OSError as error:
        raise CheckpointError(
            f"--output_dir {output_dir}: cannot be written to ({error.strerror}). Name another folder."
        ) from error
    resumes, unfinished = _resumes_here(config), checkpoint_folders(output_dir)
    is_a_run = CONFIG_FILE in found or (resumes and unfinished)
    foreign = sorted(name for name in found if not _is_nobodys(output_dir / name, config))
    if foreign and not is_a_run:
        some = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise CheckpointError(
            f"--output_dir {output_dir} holds files that no run of train.py made ({some}). Name an empty or a new folder."
        )
    if config.overwrite or resumes:
        return
    if MODEL_MARKER in found:
        raise CheckpointError(
            f"{output_dir} holds a finished model already. Name another folder with --output_dir, "
            "or pass --overwrite to replace it."
        )
    if unfinished:
        raise CheckpointError(
            f"{output_dir} holds a run that was not finished ({unfinished[0].name}). Go on with it with --resume, name "
            "another folder with --output_dir, or pass --overwrite to start anew."
        )


def _is_nobodys(path: Path, config: TrainingConfig) -> bool:
    """Whether a file or folder is the system's, or the run's own logs: no work of somebody else's."""
    logs = Path(config.log_dir).resolve() if config.log_dir else None
    holds_logs = logs is not None and path.resolve() in (logs, *logs.parents)
    return path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini") or holds_logs


def _resumes_here(config: TrainingConfig) -> bool:
    """Whether the run that goes on is the one of this output_dir: what it holds is then the run's own."""
    if config.resume in ("", NEWEST):
        return bool(config.resume)
    place, output_dir = Path(config.resume).resolve(), Path(config.output_dir).resolve()
    return place == output_dir or output_dir in place.parents


def save_finished_model(model: SentenceTransformer, config: TrainingConfig, metrics: dict[str, Any]) -> None:
    """Write the model, adapters merged in, to `config.output_dir`, and beside it `lora_adapter/`, settings and metrics.

    The folder loads with `SentenceTransformer(path)` alone. Everything is written to a folder aside first and brought to
    the disk; then each file takes its place by a rename. All that tells two models of one base apart is in one of these
    files, so a kill at any moment leaves the earlier model or this one, loadable; `check_output_dir` moves the rest at the
    next start. No network is touched.

    Raises:
        CheckpointError: the folder cannot be written (disk full, no permission); what was there is untouched.
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
        flush_tree(staging)
        staging.rename(output_dir / READY_FOLDER)
        _finish_interrupted_save(output_dir)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(
            f"the model could not be saved to {output_dir}: {reason}. Free some space or name another "
            "folder with --output_dir."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _finish_interrupted_save(output_dir: Path) -> None:
    """Move a model that was written to the end into its place; delete what one that was not has left."""
    for path in output_dir.glob(".saving-*"):
        shutil.rmtree(path, ignore_errors=True)
    ready = output_dir / READY_FOLDER
    if not ready.is_dir():
        return
    (output_dir / CARD_FILE).unlink(missing_ok=True)  # it speaks of the weights that are replaced
    # Without these two no program takes the folder for a model: they come last, and where they change, go first.
    entrances = [Path("config.json"), Path(MODEL_MARKER)]
    for name in entrances:
        if (ready / name).exists() and _content(ready / name) != _content(output_dir / name):
            (output_dir / name).unlink(missing_ok=True)
    files = [path.relative_to(ready) for path in sorted(ready.rglob("*")) if path.is_file()]
    for name in sorted(files, key=lambda name: name in entrances):
        (output_dir / name).parent.mkdir(exist_ok=True)
        os.replace(ready / name, output_dir / name)
    flush(output_dir)
    shutil.rmtree(ready)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def write_metrics(folder: str | Path, metrics: dict[str, Any]) -> None:
    """Write `metrics.json`."""
    text = json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"
    write_whole(Path(folder) / METRICS_FILE, text.encode("utf-8"))


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
    write_whole(Path(config.output_dir) / CARD_FILE, card.encode("utf-8"))
