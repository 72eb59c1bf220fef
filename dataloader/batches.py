"""Examples to batches for contrastive training.

    loader = build_dataloader(train_examples, config, tokenizer=model.tokenizer)
    for batch in loader:
        batch["tokens"], batch["lengths"]   # (T,) ids of all 2B texts, B queries and then B passages; (2B,)
        batch["mask"]                       # (B, B): pairs that are no negatives

Texts are tokenised once, ahead of the loop, into compact arrays; a batch is a gather from them. torch and numpy are imported
where they are needed: the processes that load files import this package too.
"""

import logging
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
    return _same_off_diagonal(_text_numbers(texts))


def _text_numbers(texts: Sequence[str]) -> "np.ndarray":
    """(N,) int64: equal texts get equal numbers."""
    import numpy as np

    seen: dict[str, int] = {}
    return np.array([seen.setdefault(text, len(seen)) for text in texts], dtype=np.int64)


def _same_off_diagonal(numbers: "np.ndarray") -> "np.ndarray":
    import numpy as np

    same = numbers[:, None] == numbers[None, :]
    np.fill_diagonal(same, False)
    return same


class TokenisedPairs:
    """Pairs as token ids, one behind the other: 4 bytes a token, no Python object a text.

    An item is its own number; `collate` makes a batch of numbers into arrays.

    Args:
        examples: n pairs of texts, each with its prefix.
        tokenizer: a transformers fast tokenizer; it tokenises with all its threads.
        max_seq_length: tokens of a text, longer ones are truncated.
    """

    def __init__(self, examples: Sequence["InputExample"], tokenizer: Any, max_seq_length: int):
        import numpy as np

        queries, passages = (list(side) for side in zip(*(example.texts for example in examples), strict=True))
        self._count = len(queries)
        rows = _token_ids(queries + passages, tokenizer, max_seq_length)
        self._lengths = np.array([len(row) for row in rows], dtype=np.int64)  # n queries and then n passages
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._tokens = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=self._lengths.sum())
        self._passage_numbers = _text_numbers(passages)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """`{"tokens": (T,) int32, "lengths": (2B,) int64, "mask": (B, B) bool}` of B pairs; see the module."""
        import numpy as np
        import torch

        pairs = np.asarray(indices)
        rows = np.concatenate([pairs, pairs + self._count])
        lengths = self._lengths[rows]
        ends = np.cumsum(lengths)
        # Each row's tokens stand from its start on: one gather for all rows.
        places = np.arange(ends[-1]) + np.repeat(self._starts[rows] - (ends - lengths), lengths)
        return {
            "tokens": torch.from_numpy(self._tokens[places]),
            "lengths": torch.from_numpy(lengths),
            "mask": torch.from_numpy(_same_off_diagonal(self._passage_numbers[pairs])),
        }


def build_dataloader(
    examples: Sequence["InputExample"], config: "TrainingConfig", tokenizer: Any = None, shuffle: bool = True
) -> "DataLoader":
    """Batches of `config.batch_size` examples, in an order that `config.seed` decides.

    With `tokenizer`, a transformers fast tokenizer, all texts are tokenised here and batches are those of
    `TokenisedPairs.collate`; without, lists of examples. Making a batch is a gather of microseconds, so it needs no worker
    processes. An incomplete last batch is dropped where it is not the only one: every step then sees equally many
    negatives, and none a single pair, which has no negative at all. Shuffling leaves out other pairs in each epoch.
    Raises DatasetError where there is no example.
    """
    import torch
    from torch.utils.data import DataLoader

    if not examples:
        raise DatasetError("no examples to batch: the dataset gave no pair for this part of the split")
    _say_what_is_left_out(len(examples), config.batch_size)
    pairs = TokenisedPairs(examples, tokenizer, config.max_seq_length) if tokenizer else None
    dataset: Any = pairs or examples
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        shuffle=shuffle,
        drop_last=len(examples) > config.batch_size,
        collate_fn=pairs.collate if pairs else collate_input_examples,
        generator=torch.Generator().manual_seed(config.seed),
    )


def _token_ids(texts: Sequence[str], tokenizer: Any, max_seq_length: int) -> list[list[int]]:
    """Token ids of each text. Distinct texts are tokenised once: answers repeat."""
    distinct = list(dict.fromkeys(texts))
    rows = tokenizer(distinct, truncation=True, max_length=max_seq_length, return_attention_mask=False)["input_ids"]
    row_of = dict(zip(distinct, rows, strict=True))
    return [row_of[text] for text in texts]


def _say_what_is_left_out(n_examples: int, batch_size: int) -> None:
    left = n_examples % batch_size
    if n_examples > batch_size and left:
        logger.info("%d of %d pairs fill no batch of %d: left out each epoch", left, n_examples, batch_size)
    if n_examples == 1 or batch_size == 1:
        logger.warning("batches of one pair have no negatives: the loss is zero and nothing is learned")
