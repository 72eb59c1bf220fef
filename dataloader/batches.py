"""Examples to batches for contrastive training.

    loader = build_dataloader(train_examples, config, tokenizer=model.tokenizer)
    for batch in loader:
        batch["tokens"], batch["lengths"]   # (T,) ids of B queries and then of U distinct passages; (B + U,)
        batch["passage_of"]                 # (B,): the passage of each query, 0 to U - 1
        batch["mask"]                       # (B, B): pairs that are no negatives

Texts are tokenised once, ahead of the loop, into compact arrays; a batch is a gather from them. A batch holds passages of
one kind: two passages of one question never oppose each other. torch and numpy are imported where they are needed: the
processes that load files import this package too.
"""

import logging
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dataloader.loader import DatasetError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from sentence_transformers import InputExample
    from torch.utils.data import DataLoader

    from config import TrainingConfig

logger = logging.getLogger(__name__)


def collate_input_examples(batch: list["InputExample"]) -> list["InputExample"]:
    """The batch as it is: a list of B examples, tokenised later by whoever encodes them."""
    return batch


def normalised_answer(text: str) -> str:
    """The answer without what makes no other answer: case, white space, punctuation, compatibility forms."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(char for char in folded if unicodedata.category(char)[0] not in "PZC") or folded


def _numbers(values: Iterable[Hashable]) -> "np.ndarray":
    """(N,) int64: equal values get equal numbers."""
    import numpy as np

    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], dtype=np.int64)


class FalseNegatives:
    """Which passages of a batch may answer a question that they do not stand with: they are no negatives of it.

    Args:
        examples: n pairs. Without `answer` and `article` (see `PairExample`), the passage is the answer and each pair is an
            article of its own.
        rules: of config.FALSE_NEGATIVES. identical: the same passage text, or the same query text. normalised: the same
            `normalised_answer`. contained: of the same article, and the question's answer is inside the passage or, where
            passages are answers, the passage inside the answer. article: of the same article.
    """

    def __init__(self, examples: Sequence["InputExample"], rules: Sequence[str] = ("identical",)):
        # sentence-transformers allows None for texts
        queries, texts = ([example.texts[side] for example in examples] for side in (0, 1))  # type: ignore[index]
        answers = [
            normalised_answer(getattr(example, "answer", text)) for example, text in zip(examples, texts, strict=True)
        ]
        self._same = (
            ("identical", _numbers(texts)),
            ("identical", _numbers(queries)),
            ("normalised", _numbers(answers)),
        )
        self._articles = _numbers(getattr(example, "article", -1 - n) for n, example in enumerate(examples))
        self._rules = rules
        self._answers = answers
        self._passages = [normalised_answer(_without_prefix(text)) for text in texts] if "contained" in rules else []

    def mask(self, pairs: "np.ndarray") -> "np.ndarray":
        """(B, B) bool: True at (i, j), i ≠ j, where passage j is no negative of question i."""
        import numpy as np

        found = np.zeros((len(pairs), len(pairs)), dtype=bool)
        for rule, numbers in self._same:
            if rule in self._rules:
                found |= numbers[pairs][:, None] == numbers[pairs][None, :]
        of_one_article = self._articles[pairs][:, None] == self._articles[pairs][None, :]
        if "article" in self._rules:
            found |= of_one_article
        if "contained" in self._rules:
            for i, j in np.argwhere(of_one_article & ~found):
                found[i, j] = self._contained(pairs[i], pairs[j])
        np.fill_diagonal(found, False)
        return found

    def _contained(self, question: int, other: int) -> bool:
        return self._answers[question] in self._passages[other] or self._passages[other] in self._answers[question]


def _without_prefix(passage: str) -> str:
    from config import PASSAGE_PREFIX

    return passage.removeprefix(PASSAGE_PREFIX)


class TokenisedPairs:
    """Pairs as token ids, one behind the other: 4 bytes a token, no Python object a text.

    An item is its own number; `collate` makes a batch of numbers into arrays.

    Args:
        examples: n pairs of texts, each with its prefix.
        tokenizer: a transformers fast tokenizer; it tokenises with all its threads.
        max_seq_length: tokens of a text, longer ones are truncated.
        false_negatives: which pairs of a batch are no negatives; None: equal passages.
    """

    def __init__(
        self,
        examples: Sequence["InputExample"],
        tokenizer: Any,
        max_seq_length: int,
        false_negatives: FalseNegatives | None = None,
    ):
        import numpy as np

        queries, passages = (list(side) for side in zip(*(example.texts for example in examples), strict=True))
        self._false_negatives = false_negatives or FalseNegatives(examples)
        distinct = list(dict.fromkeys(queries + passages))
        row_of = {text: row for row, text in enumerate(distinct)}
        self._query_rows = np.array([row_of[text] for text in queries])
        self._passage_rows = np.array([row_of[text] for text in passages])
        rows = tokenizer(distinct, truncation=True, max_length=max_seq_length, return_attention_mask=False)["input_ids"]
        self._lengths = np.array([len(row) for row in rows], dtype=np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._tokens = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=self._lengths.sum())

    def __len__(self) -> int:
        return len(self._query_rows)

    def __getitem__(self, index: int) -> int:
        return index

    def fingerprint(self) -> str:
        """SHA-256 of the pairs' token ids, in their order: two runs see the same data where it is equal."""
        import hashlib

        digest = hashlib.sha256()
        for array in (self._query_rows, self._passage_rows, self._lengths, self._tokens):
            digest.update(array.data)
        return digest.hexdigest()

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch of B pairs with U distinct passages; see the module.

        `{"tokens": (T,) int32, "lengths": (B + U,) int64, "passage_of": (B,) int64, "mask": (B, B) bool}`.
        """
        import numpy as np
        import torch

        pairs = np.asarray(indices)
        # Questions that share a paragraph share its embedding: it is computed once.
        passages, passage_of = np.unique(self._passage_rows[pairs], return_inverse=True)
        rows = np.concatenate([self._query_rows[pairs], passages])
        lengths = self._lengths[rows]
        ends = np.cumsum(lengths)
        # Each row's tokens stand from its start on: one gather for all rows.
        places = np.arange(ends[-1]) + np.repeat(self._starts[rows] - (ends - lengths), lengths)
        return {
            "tokens": torch.from_numpy(self._tokens[places]),
            "lengths": torch.from_numpy(lengths),
            "passage_of": torch.from_numpy(passage_of),
            "mask": torch.from_numpy(self._false_negatives.mask(pairs)),
        }


class BatchOrder:
    """The batches of an epoch, as lists of example numbers; a torch sampler of batches.

    Each kind of example gives batches of its own, as many passes over it as its weight says (the part of a pass is drawn
    anew each epoch), and the batches of all kinds are shuffled together. Within a pass, so many questions of one article
    stand together, those of one paragraph side by side, since a batch embeds it once. An incomplete last batch of a pass is
    dropped where it is not the only one: every step then sees equally many negatives, and none a single pair, which has no
    negative at all.

    Args:
        examples: n pairs; without `kind` and `article` all are of one kind, and each an article of its own.
        batch_size: pairs in a batch.
        weights: passes an epoch of each kind; None: one of each.
        groups: of each kind, questions of one article that stand together; None: none do.
        generator: decides the order; None: the order of the examples stays, kind by kind.
    """

    def __init__(
        self,
        examples: Sequence["InputExample"],
        batch_size: int,
        weights: Mapping[str, float] | None = None,
        groups: Mapping[str, int] | None = None,
        generator: "torch.Generator | None" = None,
    ):
        self._batch_size, self._groups, self._generator = batch_size, groups or {}, generator
        self._members: dict[str, list[int]] = {}
        for number, example in enumerate(examples):
            self._members.setdefault(getattr(example, "kind", "answer"), []).append(number)
        self._weights = {kind: (weights or {}).get(kind, 1.0) for kind in self._members}
        self._articles = [getattr(example, "article", -1 - number) for number, example in enumerate(examples)]
        self._passages = _numbers(example.texts[1] for example in examples)  # type: ignore[index]

    def __len__(self) -> int:
        return sum(
            max(1, size // self._batch_size)
            for kind, members in self._members.items()
            for size in self._pass_sizes(kind, len(members))
        )

    def __iter__(self) -> Iterator[list[int]]:
        batches = []
        for kind, members in self._members.items():
            for size in self._pass_sizes(kind, len(members)):
                order = self._one_pass(kind, members)[:size]
                size = len(order) - len(order) % self._batch_size or len(order)
                batches += [order[start : start + self._batch_size] for start in range(0, size, self._batch_size)]
        return iter([batches[number] for number in self._permutation(len(batches))])

    def _pass_sizes(self, kind: str, members: int) -> list[int]:
        """Examples of each pass over a kind in an epoch: a weight of 2.5 is two whole passes and half of one.

        A part that fills no batch is left out, or, where it is all there is of a kind, made one.
        """
        whole, part = int(self._weights[kind]), round(self._weights[kind] % 1 * members)
        least = min(self._batch_size, members)
        if part < least:
            part = 0 if whole else least
        return [members] * whole + [part] * bool(part)

    def _one_pass(self, kind: str, members: list[int]) -> list[int]:
        order = [members[place] for place in self._permutation(len(members))]
        group = self._groups.get(kind, 1)
        if group == 1:
            return order
        by_article: dict[int, list[int]] = {}
        for number in order:
            by_article.setdefault(self._articles[number], []).append(number)
        if kind == "context":  # equal answers side by side would be no negatives of each other, and save nothing
            by_article = {article: self._by_passage(numbers) for article, numbers in by_article.items()}
        groups = [
            numbers[start : start + group] for numbers in by_article.values() for start in range(0, len(numbers), group)
        ]
        return [number for place in self._permutation(len(groups)) for number in groups[place]]

    def _by_passage(self, numbers: list[int]) -> list[int]:
        """The same examples, those with one passage side by side, in the order in which the passages first appear."""
        by_passage: dict[int, list[int]] = {}
        for number in numbers:
            by_passage.setdefault(int(self._passages[number]), []).append(number)
        return [number for same in by_passage.values() for number in same]

    def _permutation(self, n: int) -> list[int]:
        import torch

        return list(range(n)) if self._generator is None else torch.randperm(n, generator=self._generator).tolist()


def build_dataloader(
    examples: Sequence["InputExample"], config: "TrainingConfig", tokenizer: Any = None, shuffle: bool = True
) -> "DataLoader":
    """Batches of `config.batch_size` examples of one kind, in an order that `config.seed` decides; see `BatchOrder`.

    With `tokenizer`, a transformers fast tokenizer, all texts are tokenised here and batches are those of
    `TokenisedPairs.collate`; without, lists of examples. Making a batch is a gather of microseconds, so it needs no worker
    processes. Raises DatasetError where there is no example.
    """
    import torch
    from torch.utils.data import DataLoader

    from config import article_groups, objective_weights

    if not examples:
        raise DatasetError("no examples to batch: the dataset gave no pair for this part of the split")
    _say_what_is_left_out(examples, config.batch_size)
    generator = torch.Generator().manual_seed(config.seed)
    order = BatchOrder(
        examples,
        config.batch_size,
        objective_weights(config.objective),
        article_groups(config.article_group),
        generator if shuffle else None,
    )
    pairs = None
    if tokenizer:
        false_negatives = FalseNegatives(examples, config.false_negatives)
        pairs = TokenisedPairs(examples, tokenizer, config.max_seq_length, false_negatives)
    dataset: Any = pairs or examples
    return DataLoader(
        dataset,
        batch_sampler=order,  # type: ignore[arg-type]  # any iterable of batches with a length
        collate_fn=pairs.collate if pairs else collate_input_examples,
        generator=generator,
    )


def _say_what_is_left_out(examples: Sequence["InputExample"], batch_size: int) -> None:
    for kind, count in Counter(getattr(example, "kind", "answer") for example in examples).items():
        left = count % batch_size
        if count > batch_size and left:
            logger.info("%d of %d pairs fill no batch of %d: left out each epoch (%s)", left, count, batch_size, kind)
        if count == 1 or batch_size == 1:
            logger.warning("batches of one pair (%s) have no negatives: the loss is zero and nothing is learned", kind)
