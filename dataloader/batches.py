"""Examples to batches for contrastive training.

    loader = build_dataloader(train_examples, config, tokenizer=model.tokenizer)
    for batch in loader:
        batch["query"]["input_ids"], batch["passage"]["input_ids"]   # (B, Lq), (B, Lp)
        batch["mask"]                                                # (B, B): pairs that are no negatives

torch and numpy are imported where they are needed: the processes that load files import this package too.
"""

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dataloader.loader import DatasetError

if TYPE_CHECKING:
    import numpy as np
    from sentence_transformers import InputExample
    from torch.utils.data import DataLoader

    from config import TrainingConfig

logger = logging.getLogger(__name__)


def collate_input_examples(batch: list["InputExample"]) -> list["InputExample"]:
    """The batch as it is: a list of B examples, tokenised later by whoever encodes them."""
    return batch


def identical_passages(texts: Sequence[str]) -> "np.ndarray":
    """(B, B) bool: True for i ≠ j with one text in both places: not negatives of each other."""
    import numpy as np

    seen: dict[str, int] = {}
    number = np.array([seen.setdefault(text, len(seen)) for text in texts], dtype=np.int64)
    same = number[:, None] == number[None, :]
    np.fill_diagonal(same, False)
    return same


class TokenizingCollator:
    """Tokenises a batch, in the data worker; a class at top level so that it can be sent to a worker.

    Returns `{"query": tokens, "passage": tokens, "mask": (B, B) bool}`: tokens are `input_ids` and
    `attention_mask`, (B, L) int64 each, padded to the longest of the batch and truncated to `max_seq_length`
    tokens; the mask is that of `identical_passages`.
    """

    def __init__(self, tokenizer: Any, max_seq_length: int):
        self.tokenizer = tokenizer
        self.max_seq_length = max_seq_length

    def __call__(self, batch: Sequence["InputExample"]) -> dict[str, Any]:
        import torch

        queries, passages = zip(*(example.texts for example in batch), strict=True)
        return {
            "query": self._tokens(queries),
            "passage": self._tokens(passages),
            "mask": torch.from_numpy(identical_passages(passages)),
        }

    def _tokens(self, texts: Sequence[str]) -> dict[str, Any]:
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_seq_length, return_tensors="pt"
        )
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def build_dataloader(
    examples: Sequence["InputExample"], config: "TrainingConfig", tokenizer: Any = None, shuffle: bool = True
) -> "DataLoader":
    """Batches of `config.batch_size` examples, in an order that `config.seed` decides.

    With `tokenizer`, a transformers fast tokenizer, batches are those of TokenizingCollator, made in at most
    `config.num_workers` worker processes; without, lists of examples. An incomplete last batch is dropped
    where it is not the only one: every step then sees equally many negatives, and none a single pair, which
    has no negative at all. Shuffling leaves out other pairs in each epoch. Raises DatasetError where there is
    no example.
    """
    import torch
    from torch.utils.data import DataLoader

    if not examples:
        raise DatasetError("no examples to batch: give those that prepare_training_data returns")
    collate = TokenizingCollator(tokenizer, config.max_seq_length) if tokenizer else collate_input_examples
    drop_last = len(examples) > config.batch_size
    _say_what_is_left_out(len(examples), config.batch_size)
    n_batches = max(len(examples) // config.batch_size, 1)
    num_workers = min(config.num_workers, os.cpu_count() or 1, n_batches)
    return DataLoader(
        examples,  # type: ignore[arg-type]  # any sequence will do
        batch_size=config.batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(config.seed),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=_one_thread_each,
        pin_memory=torch.cuda.is_available(),
    )


def _say_what_is_left_out(n_examples: int, batch_size: int) -> None:
    left = n_examples % batch_size
    if n_examples > batch_size and left:
        logger.info("%d of %d pairs fill no batch of %d: left out each epoch", left, n_examples, batch_size)
    if n_examples == 1 or batch_size == 1:
        logger.warning("batches of one pair have no negatives: the loss is zero and nothing is learned")


def _one_thread_each(worker: int) -> None:
    """Workers are the parallelism: the tokenizers library's own threads would fight over the processors."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
