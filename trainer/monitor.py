"""What a run writes for TensorBoard: metrics, settings, and the gradients of the adapters.

`NullMonitor` has the same methods and writes nothing, so that the loop never asks whether logging is on.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

logger = logging.getLogger(__name__)

# Below this spread a histogram has nothing to show, and TensorBoard's bins collapse.
SMALLEST_SPREAD = 1e-10


class LogError(RuntimeError):
    """Logs cannot be written where they should go."""


class TensorBoardMonitor:
    """Writes one run into its own timestamped folder under `log_dir`.

    Logs are worth less than the training they tell of: where writing fails later on (disk full, the folder gone), this is
    logged as an error, nothing more is written, and `failure` says what happened.

    Args:
        run_dir: the folder of a run that goes on; TensorBoard then drops what it had written from `purge_step` on.

    Attributes:
        failure: why the logs are incomplete; "" while they are not.

    Raises:
        LogError: the folder cannot be made.
    """

    def __init__(self, log_dir: str | Path, run_dir: str | Path | None = None, purge_step: int | None = None):
        self.failure = ""
        _silence_writer_threads()
        try:
            self.run_dir = Path(run_dir) if run_dir else _new_run_dir(Path(log_dir))
            self._writer = SummaryWriter(str(self.run_dir), purge_step=purge_step)
        except OSError as error:
            raise _not_writable(log_dir, error) from error

    def log_config(self, settings: Mapping[str, Any]) -> None:
        """Keep the whole configuration as text, and as hparams in this same run (lists become strings)."""
        text = json.dumps(settings, indent=2, ensure_ascii=False)
        flat = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in settings.items()}

        def write() -> None:
            self._writer.add_text("config", f"```json\n{text}\n```")
            # SummaryWriter.add_hparams would open a second run; the three records belong in this one.
            file_writer: Any = self._writer.file_writer
            for record in hparams(flat, {"eval/score": 0.0}):
                file_writer.add_summary(record)

        self._guarded(write)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write each metric under its tag at this step."""

        def write() -> None:
            for tag, value in metrics.items():
                self._writer.add_scalar(tag, value, step)

        self._guarded(write)

    def log_gradients(self, gradients: Mapping[str, np.ndarray], step: int) -> None:
        """Write `gradients/<name>_weight_norm` and, where there is a spread, the histogram `gradients/<name>_weight`."""

        def write() -> None:
            for name, gradient in gradients.items():
                self._writer.add_scalar(f"gradients/{name}_weight_norm", float(np.linalg.norm(gradient)), step)
                if gradient.std() > SMALLEST_SPREAD:
                    self._writer.add_histogram(f"gradients/{name}_weight", gradient, step)

        self._guarded(write)

    def flush(self) -> None:
        """Bring what was written to the disk, for a TensorBoard that watches."""
        self._guarded(self._writer.flush)

    def close(self) -> None:
        self._guarded(self._writer.close)

    def _guarded(self, write: Callable[[], None]) -> None:
        if self.failure:
            return
        try:
            write()
        except OSError as error:
            self.failure = f"the logs in {self.run_dir} are incomplete: {error.strerror or error}"
            logger.error("%s. Training goes on without them.", self.failure.capitalize())


class NullMonitor:
    """The twin that writes nothing."""

    run_dir: Path | None = None
    failure = ""

    def log_config(self, settings: Mapping[str, Any]) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_gradients(self, gradients: Mapping[str, np.ndarray], step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


Monitor = TensorBoardMonitor | NullMonitor


class GradientRecorder:
    """Hooks on named parameters that keep their gradients of a step, and hand them over in one transfer.

    The frozen weights of a LoRA model have no gradient, so the parameters to name are the adapter matrices. A hook keeps a
    reference to the gradient itself: after the scaler has divided by its scale in place, what is read is unscaled.

    Attributes:
        non_finite: how many gradients were left out so far because they held an infinity or NaN.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]):
        self.non_finite = 0
        self._recording = False
        self._gradients: dict[str, torch.Tensor] = {}
        self._handles = [p.register_post_accumulate_grad_hook(self._hook(name)) for name, p in parameters]

    def start(self) -> None:
        """Keep the gradients of the coming backward pass."""
        self._gradients.clear()
        self._recording = True

    def fetch(self) -> dict[str, np.ndarray]:
        """The gradients since `start`, by name, float32 in their shapes; empty and non-finite ones are left out."""
        self._recording = False
        kept = {name: gradient for name, gradient in self._gradients.items() if gradient.numel()}
        self._gradients = {}
        if not kept:
            return {}
        flat = torch.cat([gradient.detach().float().flatten() for gradient in kept.values()]).cpu().numpy()
        ends = np.cumsum([gradient.numel() for gradient in kept.values()])
        parts = np.split(flat, ends[:-1])
        finite = {
            name: part.reshape(tuple(gradient.shape))
            for (name, gradient), part in zip(kept.items(), parts, strict=True)
            if np.isfinite(part).all()
        }
        self.non_finite += len(kept) - len(finite)
        return finite

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, name: str) -> Any:
        def keep(parameter: torch.Tensor) -> None:
            if self._recording and parameter.grad is not None:
                self._gradients[name] = parameter.grad

        return keep


class LossMean:
    """Mean of the finite losses since it was last asked for, summed on the device so that adding does not wait for it."""

    def __init__(self, device: torch.device):
        self._sums = torch.zeros(2, device=device)

    def add(self, loss: torch.Tensor) -> None:
        finite = torch.isfinite(loss)
        self._sums += torch.stack([torch.where(finite, loss, 0.0).float(), finite.float()])

    def mean(self) -> float:
        """NaN where no finite loss was added."""
        total, count = self._sums.tolist()
        self._sums.zero_()
        return total / count if count else math.nan

    def state(self) -> list[float]:
        """The sum so far and of how many; `restore` takes them back exactly."""
        return self._sums.tolist()

    def restore(self, state: list[float]) -> None:
        self._sums.copy_(torch.tensor(state))


def check_log_dir(log_dir: str | Path) -> None:
    """Refuse a log folder that cannot be written to; "" is none. Raises LogError."""
    if not log_dir:
        return
    try:
        Path(log_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=log_dir):
            pass
    except OSError as error:
        raise _not_writable(log_dir, error) from error


def _not_writable(log_dir: str | Path, error: OSError) -> LogError:
    return LogError(
        f"--log_dir {log_dir}: cannot be written to ({error.strerror or error}). "
        "Name another folder, or train without logs: --log_dir ''"
    )


def _silence_writer_threads() -> None:
    """TensorBoard writes in a thread, and an error there comes to its caller: a traceback of the thread adds nothing."""
    before = threading.excepthook

    def said(arguments: Any) -> None:
        if type(arguments.thread).__module__ != EventFileWriter.__module__:
            before(arguments)

    if before.__module__ != __name__:
        threading.excepthook = said


def _new_run_dir(log_dir: Path) -> Path:
    """A folder of its own for each run, also for two that start in one second."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ["", *(f"-{number}" for number in range(2, 1000))]:
        run_dir = log_dir / f"{stamp}{suffix}"
        try:
            run_dir.mkdir(parents=True)
        except FileExistsError:
            continue
        return run_dir
    raise OSError(f"no free folder name under {log_dir} for {stamp}")
