"""What a training step costs in other forms: how a batch lies in memory, what kind of dropout, which number format.

    python benchmarks/step_forms.py --dataset_root KorQuAD_v1.0_dev.json --batch_sizes 16 64

Blocks of steps alternate in one run. Prints one JSON line: median seconds a step by form and batch size. The layouts all go
through the same encoder, with the encoder's dropout: `packed` is what training uses; `sorted` cuts the sequences, in order
of length, into four micro-batches, each padded to its longest; `padded` pads the questions and the passages, as the
library does; `one_group` pads all to the longest of all. The kinds of dropout are packed.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers import InputExample
from torch import Tensor
from train_speed import Ours, use_plain_dropout
from transformers.utils import logging as transformers_logging

from config import SAMPLE_DATASET_ROOT, TrainingConfig
from dataloader import load_entire_dataset, prepare_training_data
from trainer import encoder, projection
from trainer.attention import attention_by_kernel
from trainer.encoder import PackedEncoder
from trainer.packing import RowForm, pack

CPU = torch.device("cpu")
ONE_GROUP = RowForm(tiles=(0,), group_cost=10**9)  # no tiles, and a group costs more than any padding: one holds all
Layout = Callable[[np.ndarray, int], list[np.ndarray]]  # lengths (S,), pairs → places that are embedded together


def padded(lengths: np.ndarray, pairs: int) -> list[np.ndarray]:
    return [np.arange(pairs), np.arange(pairs, len(lengths))]


def one_group(lengths: np.ndarray, pairs: int) -> list[np.ndarray]:
    return [np.arange(len(lengths))]


def four_sorted(lengths: np.ndarray, pairs: int) -> list[np.ndarray]:
    return np.array_split(np.argsort(lengths, kind="stable"), 4)


class Form(Ours):
    """Ours with another layout of its batches."""

    def __init__(self, examples: list[InputExample], config: TrainingConfig, layout: Layout | None = None):
        super().__init__(examples, config)
        if layout is not None:
            self._layout = layout
            self.trainer._embed = self._embed  # type: ignore[method-assign]

    def _embed(self, tokens: Tensor, lengths: Tensor, chosen: np.ndarray) -> Tensor:
        pieces = self._layout(lengths.numpy(), self.trainer.config.batch_size)
        embed = self.trainer._packed_encoder
        assert embed is not None
        embedded = torch.cat([embed(pack(tokens, lengths, CPU, piece, ONE_GROUP)) for piece in pieces])
        places = np.argsort(np.concatenate(pieces))  # of each sequence in `embedded`
        return embedded[torch.from_numpy(places[chosen])]


class TorchsDropout(Ours):
    """Ours with torch's dropout everywhere: a mask for each adapter, and attention's own inside its kernel."""

    def __init__(self, examples: list[InputExample], config: TrainingConfig):
        super().__init__(examples, config)
        use_plain_dropout(self.trainer.model)
        self.trainer._packed_encoder = PackedEncoder(self.trainer.model)

    def block(self) -> float:
        with (
            mock.patch.object(encoder, "attention", lambda *arguments: attention_by_kernel(*arguments[:-1])),
            mock.patch.object(encoder, "dropout_and_add", lambda source, residual, p, _: F.dropout(source, p) + residual),
            mock.patch.object(projection, "keep_mask", drawn_by_torch),
            mock.patch.object(encoder, "MaskRow", lambda count: None),
        ):
            return super().block()


def drawn_by_torch(shape: torch.Size, threshold: int, _: object) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8).bernoulli_(1 - threshold / 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_root", default=str(SAMPLE_DATASET_ROOT))
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--pairs", type=int, default=128, help="pairs of a block")
    parser.add_argument("--rounds", type=int, default=3, help="blocks of each form, after one that warms up")
    parser.add_argument("--model_name", default=TrainingConfig.model_name)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()

    settings = {"model_name": options.model_name, "gradient_checkpointing": False, "log_dir": "", "precision": "fp32"}
    config = TrainingConfig(dataset_root=options.dataset_root, device="cpu", **settings)
    examples, _ = prepare_training_data(load_entire_dataset(config.dataset_root, num_workers=0, verbose=False), config)
    results = {}
    for size in options.batch_sizes:
        steps = max(1, options.pairs // size)
        results[str(size)] = measure(
            (examples * (steps * size // len(examples) + 1))[: steps * size], config, size, steps, options.rounds
        )
    print(json.dumps({"benchmark": "step_forms", "threads": torch.get_num_threads(), "seconds_a_step": results}))


def measure(
    examples: list[InputExample], config: TrainingConfig, batch_size: int, steps: int, rounds: int
) -> dict[str, float]:
    """Form → median seconds a step."""

    def settings(**changed: object) -> TrainingConfig:
        return TrainingConfig(**config.to_dict() | {"batch_size": batch_size} | changed)

    no_encoder_dropout = settings(encoder_dropout=0.0)
    forms = {
        "packed": Ours(examples, settings()),
        "sorted": Form(examples, settings(), four_sorted),
        "padded": Form(examples, settings(), padded),
        "one_group": Form(examples, settings(), one_group),
        "dropout: torch's": TorchsDropout(examples, settings()),
        "dropout: torch's, in the adapters only": TorchsDropout(examples, no_encoder_dropout),
        "dropout: bytes, in the adapters only": Ours(examples, no_encoder_dropout),
        "dropout: none": Ours(examples, settings(encoder_dropout=0.0, lora_dropout=0.0)),
        "bf16": Ours(examples, settings(precision="bf16")),
        "bf16, dropout in the adapters only": Ours(examples, settings(precision="bf16", encoder_dropout=0.0)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for round_number in range(rounds + 1):
        for name, form in forms.items():
            elapsed = form.block() / steps
            if round_number:
                seconds[name].append(elapsed)
    return {name: round(statistics.median(values), 4) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
