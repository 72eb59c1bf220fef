"""Checkpoints: all that a run needs to go on, bit for bit, as if it had never been interrupted.

    output_dir/checkpoints/batch-00000500/     after 500 batches
        adapter.safetensors        the adapter; best_adapter.safetensors: the best so far, once there was an evaluation
        optimizer.safetensors      AdamW's moments
        random.safetensors         torch's and CUDA's random states, now and where the epoch began
        state.json                 counters, place in the data, best score, scheduler, scaler, the other random states
        training_config.json       the settings
        checksums.json             SHA-256 of each of these

Only JSON and safetensors are read: data, never code. A checkpoint is written aside, flushed to the disk and renamed, and
older ones are deleted after that: at every instant there is a whole one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from config import CHECKPOINT_PREFIX, CHECKPOINTS_FOLDER, NEWEST, SETTINGS_FILE, TrainingConfig, checkpoint_folders
from trainer.checkpoint import CheckpointError
from trainer.durable import flush, flush_tree
from trainer.recompute import random_state, set_random_state

logger = logging.getLogger(__name__)

STATE_FILE = "state.json"
CHECKSUMS_FILE = "checksums.json"
TENSOR_GROUPS = ("adapter", "best_adapter", "optimizer", "random")
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: `state` is JSON, `tensors` are its groups (see TENSOR_GROUPS) of tensors by name."""

    path: Path
    settings: TrainingConfig
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


# ------------------------------------------------------------------------------------------------------------
# On disk


def write_checkpoint(
    config: TrainingConfig, batch: int, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> Path:
    """Write the checkpoint after `batch` batches and delete all but the newest `config.keep_checkpoints`.

    Args:
        state: JSON-ready.
        tensors: group → name → tensor on the CPU; an empty group gets no file.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: it cannot be written (disk full, no permission); those before it are untouched.
    """
    folder = Path(config.output_dir) / CHECKPOINTS_FOLDER
    target = folder / f"{CHECKPOINT_PREFIX}{batch:08d}"
    aside = folder / f".{target.name}-{os.getpid()}"
    files = {f"{group}.safetensors": safetensors.torch.save(dict(named)) for group, named in tensors.items() if named}
    files[STATE_FILE] = _as_json({"format": FORMAT, **state})
    files[SETTINGS_FILE] = _as_json(config.to_dict())
    files[CHECKSUMS_FILE] = _as_json({name: _sha256(content) for name, content in files.items()})
    try:
        shutil.rmtree(aside, ignore_errors=True)  # of a killed process with the same number, as in a container
        aside.mkdir(parents=True)
        for name, content in files.items():
            (aside / name).write_bytes(content)
        flush_tree(aside)
        if target.exists():  # damaged, or of a run that this one replaces
            shutil.rmtree(target)
        aside.rename(target)
        flush(folder)
    except OSError as error:
        kept = next(iter(checkpoint_folders(config.output_dir)), None)
        raise CheckpointError(
            f"the checkpoint {target} could not be written: {error.strerror or error}. Free some space or mend the folder"
            + (f", then go on from {kept.name}: {how_to_resume(config)}" if kept else ".")
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _delete_all_but(config, target)
    return target


def find_checkpoint(config: TrainingConfig) -> Checkpoint:
    """The newest whole checkpoint of what `config.resume` names. Damaged ones are logged and passed over.

    Raises:
        CheckpointError: there is none.
    """
    place = Path(config.output_dir if config.resume == NEWEST else config.resume)
    for folder in checkpoint_folders(place):
        try:
            return read_checkpoint(folder)
        except CheckpointError as error:
            logger.warning("%s: looking for the one before it", error)
    raise CheckpointError(f"{place} holds no whole checkpoint to go on from. Name another, or train without --resume.")


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint and check it against its checksums. Raises CheckpointError (damaged, of another version)."""
    try:
        checksums = json.loads((folder / CHECKSUMS_FILE).read_text(encoding="utf-8"))
        # The files are those that are known: a name that is read from a file could lead anywhere.
        names = [f"{group}.safetensors" for group in TENSOR_GROUPS] + [STATE_FILE, SETTINGS_FILE]
        files = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
        damaged = [
            name
            for name in sorted(files.keys() | checksums.keys())
            if name not in files or _sha256(files[name]) != checksums.get(name)
        ]
        if damaged:
            raise CheckpointError(f"the checkpoint {folder} is damaged: {', '.join(damaged)} differ from the checksums")
        state = json.loads(files[STATE_FILE])
        if state["format"] != FORMAT:
            raise CheckpointError(f"the checkpoint {folder} is of format {state['format']}; this program reads {FORMAT}")
        tensors = {
            group: safetensors.torch.load(files[name]) if (name := f"{group}.safetensors") in files else {}
            for group in TENSOR_GROUPS
        }
        return Checkpoint(folder, TrainingConfig.load(folder / SETTINGS_FILE), state, tensors)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        what = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"the checkpoint {folder} is damaged or not one ({what})") from error


def how_to_resume(config: TrainingConfig) -> str:
    """The command that goes on with a run."""
    return f"python train.py --resume --output_dir {shlex.quote(config.output_dir)}"


def _delete_all_but(config: TrainingConfig, newest: Path) -> None:
    """Keep the newest and those before it. What is later belongs to a run that was given up, or to a damaged one."""
    found = checkpoint_folders(config.output_dir)
    kept = [path for path in found if path.name <= newest.name][: config.keep_checkpoints]
    for path in found:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
    for path in newest.parent.glob(f".{CHECKPOINT_PREFIX}*"):  # of a process that was killed while it wrote
        shutil.rmtree(path, ignore_errors=True)


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ------------------------------------------------------------------------------------------------------------
# The place in the data


class BatchStream:
    """The batches of all epochs, one behind the other; its place can be kept and taken up again.

    The order of an epoch follows from the random states at its beginning. To take up a place, the epoch is begun again
    from these and its first batches are passed over: of `TokenisedPairs` that is a gather each.

    Attributes:
        epoch: from 0. index: batches of it that were given out.
    """

    def __init__(self, loader: Any, epochs: int, device: torch.device):
        self._loader, self._epochs, self._device = loader, epochs, device
        self.steps_per_epoch = len(loader)
        self.epoch = self.index = 0
        self._at_epoch_start: RandomStates | None = None
        self._now: RandomStates | None = None

    @property
    def batches(self) -> int:
        """Batches given out in all."""
        return self.epoch * self.steps_per_epoch + self.index

    @property
    def total(self) -> int:
        return self._epochs * self.steps_per_epoch

    @property
    def epochs_done(self) -> float:
        return self.epoch + self.index / self.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        return self.index == self.steps_per_epoch

    def __iter__(self) -> Iterator[Any]:
        while self.epoch < self._epochs:
            for batch in self._rest_of_epoch():
                self.index += 1
                yield batch
            self.epoch, self.index, self._at_epoch_start = self.epoch + 1, 0, None

    def _rest_of_epoch(self) -> Iterator[Any]:
        if self._at_epoch_start is None:
            self._at_epoch_start = RandomStates.of(self._loader, self._device)
            return iter(self._loader)
        self._at_epoch_start.restore(self._loader, self._device)
        batches = iter(self._loader)
        for _ in range(self.index):
            next(batches, None)
        if self.index and self._now is not None:  # where the epoch is still to begin, beginning it is what comes next
            self._now.restore(self._loader, self._device, with_loader=False)
        return batches

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The place, and the random states there and at the epoch's beginning: JSON-ready, and tensors."""
        place: dict[str, Any] = {"epoch": self.epoch, "index": self.index}
        tensors: dict[str, Tensor] = {}
        states = {"now": RandomStates.of(self._loader, self._device), "epoch_start": self._at_epoch_start}
        for name, states_there in states.items():
            if states_there is not None:
                place[name] = states_there.numbers
                tensors |= {f"{name}.{kind}": state for kind, state in states_there.tensors.items()}
        return place, tensors

    def restore(self, place: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go to the place of `state`; the random states there are in force once the next batch is asked for."""

        def states_at(name: str) -> RandomStates:
            of_name = {key.removeprefix(f"{name}."): state for key, state in tensors.items() if key.startswith(f"{name}.")}
            return RandomStates(place[name], of_name)

        self.epoch, self.index = int(place["epoch"]), int(place["index"])
        self._now = states_at("now")
        self._at_epoch_start = states_at("epoch_start") if "epoch_start" in place else self._now
        for states in (self._at_epoch_start, self._now):  # what is wrong with them shows here, not in the middle
            states.restore(self._loader, self._device)


@dataclass(frozen=True)
class RandomStates:
    """The states of all generators of random numbers: Python's and NumPy's as JSON-ready numbers, torch's as tensors."""

    numbers: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, loader: Any, device: torch.device) -> RandomStates:
        """As they are now, that of the loader's own generator included where it has one."""
        numpy_state: Any = np.random.get_state(legacy=False)
        numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
        on_cpu, on_gpu = random_state(device)
        generator = getattr(loader, "generator", None)
        tensors = {"torch": on_cpu, "cuda": on_gpu, "loader": generator.get_state() if generator is not None else None}
        numbers = {"python": random.getstate(), "numpy": numpy_state}
        return cls(numbers, {kind: state for kind, state in tensors.items() if state is not None})

    def restore(self, loader: Any, device: torch.device, with_loader: bool = True) -> None:
        version, internal, gauss = self.numbers["python"]
        random.setstate((version, tuple(internal), gauss))
        numpy_state = self.numbers["numpy"]
        key = np.array(numpy_state["state"]["key"], dtype=np.uint32)
        np.random.set_state(numpy_state | {"state": numpy_state["state"] | {"key": key}})
        set_random_state((self.tensors["torch"], self.tensors.get("cuda")), device)
        if with_loader and "loader" in self.tensors:
            loader.generator.set_state(self.tensors["loader"])


def data_fingerprint(loader: Any) -> str:
    """What tells one training set from another: the SHA-256 of its token ids, or, of other loaders, their length."""
    dataset: Any = getattr(loader, "dataset", None)
    return dataset.fingerprint() if hasattr(dataset, "fingerprint") else f"{len(loader)} batches"
