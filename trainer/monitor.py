"""What a run writes for TensorBoard: metrics, settings, and the gradients of the adapters.

`NullMonitor` has the same methods and writes nothing, so that the loop never asks whether logging is on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

logger = logging.getLogger(__name__)

# Below this spread a histogram has nothing to show, and TensorBoard's bins collapse.
SMALLEST_SPREAD = 1e-10


class TensorBoardMonitor:
    """Writes one run into its own timestamped folder under `log_dir`."""

    def __init__(self, log_dir: str | Path):
        self.run_dir = _new_run_dir(Path(log_dir))
        self._writer = SummaryWriter(str(self.run_dir))

    def log_config(self, settings: Mapping[str, Any]) -> None:
        """Keep the whole configuration as text, and as hparams in this same run (lists become strings)."""
        text = json.dumps(settings, indent=2, ensure_ascii=False)
        self._writer.add_text("config", f"```json\n{text}\n```")
        flat = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in settings.items()}
        # SummaryWriter.add_hparams would open a second run; the three records belong in this one.
        file_writer: Any = self._writer.file_writer
        for record in hparams(flat, {"eval/score": 0.0}):
            file_writer.add_summary(record)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write each metric under its tag at this step."""
        for tag, value in metrics.items():
            self._writer.add_scalar(tag, value, step)

    def log_gradients(self, gradients: Mapping[str, np.ndarray], step: int) -> None:
        """Write `gradients/<name>_weight_norm` and, where there is a spread, the histogram `gradients/<name>_weight`."""
        for name, gradient in gradients.items():
            self._writer.add_scalar(f"gradients/{name}_weight_norm", float(np.linalg.norm(gradient)), step)
            if gradient.std() > SMALLEST_SPREAD:
                self._writer.add_histogram(f"gradients/{name}_weight", gradient, step)

    def flush(self) -> None:
        """Bring what was written to the disk, for a TensorBoard that watches."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class NullMonitor:
    """The twin that writes nothing."""

    run_dir: Path | None = None

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
