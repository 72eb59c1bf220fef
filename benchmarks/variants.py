"""What was tried and not kept: rows of quality_rows.yaml that are no settings of train.py.

    python benchmarks/quality.py --data KorQuAD_v1.0_dev.json --rows "both directions"
    python benchmarks/variants.py both_directions --recipe recipes/recommended.yaml …       # train.py's options

A variant changes the training examples, the loss or the optimiser, and then runs `train.py` as it is.
"""

from __future__ import annotations

import copy
import functools
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import numpy as np
import torch
import torch.nn.functional as F

import train
from config import PASSAGE_PREFIX, QUERY_PREFIX, TrainingConfig
from dataloader import load_cached_dataset, prepare_training_data, window_size
from dataloader.batches import TokenisedPairs, normalised_answer
from dataloader.examples import PairExample
from dataloader.objectives import sentences_around
from trainer import EmbeddingTrainer
from trainer.base_model import load_base_model, resolve_base_model
from trainer.lora import adapters_off
from trainer.loss import contrastive_loss

Examples = list[PairExample]
PENALTY = 0.3  # weight of the divergence from the base's similarities
GROUP = 8  # a question and its hard negatives
LEFT_OUT = 0.15  # of a question's words
# Particles at the end of a word, and words that ask: what follows or holds them is no name.
_PARTICLE = re.compile(
    "(?:에서는|에서의|에게서|에서|에게|으로부터|으로|이라는|라는|까지|부터|처럼|보다|이나|은|는|이|가|을|를|의|에|와|과|도|만|로)$"
)
_ASKS = re.compile("무엇|누구|어디|언제|어떤|어느|무슨|몇|얼마|왜|어떻게|[?]")
_MARKS = " .,'\"‘’“”《》〈〉()"


# --- the loss -----------------------------------------------------------------------------------------------


def both_directions() -> None:
    """The mean of question → passage and passage → question."""

    def loss(self: Any, queries: torch.Tensor, passages: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        back = contrastive_loss(passages, queries, self.config.scale, None if mask is None else mask.T)
        return (contrastive_loss(queries, passages, self.config.scale, mask) + back) / 2

    EmbeddingTrainer._compute_contrastive_loss = loss  # type: ignore[method-assign, assignment]


def penalty() -> None:
    """PENALTY times the divergence (KL) of a batch's similarities from those of the base."""
    backward = EmbeddingTrainer._backward_in_pieces

    def backward_with_base(self: Any, features: Any, *more: Any) -> torch.Tensor:
        with torch.no_grad(), adapters_off(self.model):
            embeddings = self._embed(features["tokens"], features["lengths"], np.arange(len(features["lengths"])))
        pairs = len(features["mask"])
        self._base_scores = embeddings[:pairs] @ embeddings[pairs:][features["passage_of"]].T * self.config.scale
        return backward(self, features, *more)

    def loss(self: Any, queries: torch.Tensor, passages: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        scores = F.normalize(queries, dim=-1) @ F.normalize(passages, dim=-1).T * self.config.scale
        base = self._base_scores.log_softmax(1)
        divergence = F.kl_div(scores.log_softmax(1), base, log_target=True, reduction="batchmean")
        return contrastive_loss(queries, passages, self.config.scale, mask) + PENALTY * divergence

    EmbeddingTrainer._backward_in_pieces = backward_with_base  # type: ignore[method-assign, assignment]
    EmbeddingTrainer._compute_contrastive_loss = loss  # type: ignore[method-assign, assignment]


def question_words(own_only: bool = False) -> None:
    """One to three words of each question, which are not its answer, as a further negative of all questions of a batch.

    own_only: of that question alone.
    """
    prepare, collate, draw = TokenisedPairs.__init__, TokenisedPairs.collate, random.Random(0)

    def prepare_words(self: Any, examples: Examples, tokenizer: Any, *more: Any) -> None:
        prepare(self, examples, tokenizer, *more)
        self.tokenizer = tokenizer
        self.answers = [normalised_answer(example.answer) for example in examples]
        self.words = [_words_of(example) if example.kind == "answer" else [] for example in examples]

    def collate_words(self: Any, pairs: Any) -> dict[str, Any]:
        batch = collate(self, pairs)
        asked = [pair for pair in pairs if self.words[pair]]
        if not asked:
            return batch
        drawn = [draw.choice(self.words[pair]) for pair in asked]
        keys = [normalised_answer(words) for words in drawn]
        ids = self.tokenizer([PASSAGE_PREFIX + words for words in drawn])["input_ids"]
        hidden = [
            [self.answers[pair] == key or (own_only and pair != other) for key, other in zip(keys, asked, strict=True)]
            for pair in pairs
        ]
        known = len(batch["lengths"]) - len(pairs)
        more = {
            "tokens": torch.tensor([token for row in ids for token in row], dtype=torch.int32),
            "lengths": torch.tensor([len(row) for row in ids]),
            "passage_of": known + torch.arange(len(ids)),
        }
        batch["mask"] = torch.cat([batch["mask"], torch.tensor(hidden)], dim=1)  # (B, B + words)
        return batch | {name: torch.cat([batch[name], more[name]]) for name in more}

    def loss(self: Any, queries: torch.Tensor, passages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = F.normalize(queries, dim=-1) @ F.normalize(passages, dim=-1).T * self.config.scale
        return F.cross_entropy(scores.masked_fill(mask, -torch.inf), torch.arange(len(queries)))

    TokenisedPairs.__init__, TokenisedPairs.collate = prepare_words, collate_words  # type: ignore[method-assign, assignment]
    EmbeddingTrainer._compute_contrastive_loss = loss  # type: ignore[method-assign, assignment]


def _words_of(example: PairExample) -> list[str]:
    """One to three words of the question, without the last one's particle; none that holds the answer or is a part of it."""
    words, answer, found = example.texts[0].removeprefix(QUERY_PREFIX).split(), normalised_answer(example.answer), []
    for first in range(len(words)):
        for part in (words[first : first + count] for count in (1, 2, 3) if first + count <= len(words)):
            if any(map(_ASKS.search, part)):
                continue
            last = part[-1].strip(_MARKS)
            bare = _PARTICLE.sub("", last)
            text = " ".join([*part[:-1], bare if len(bare) > 1 else last]).strip(_MARKS)
            key = normalised_answer(text)
            if len(key) > 1 and key not in answer and answer not in key:
                found.append(text)
    return found


def faster_b(times: int = 4) -> None:
    """LoRA+ (arXiv:2402.12354): B learns so many times as fast as A."""
    setup = EmbeddingTrainer._setup_optimizer_and_scheduler

    def setup_faster_b(self: Any, *steps: int) -> Any:
        optimizer, scheduler, scaler = setup(self, *steps)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        (group,) = optimizer.param_groups
        group["params"], of_b = (
            [p for p in group["params"] if ("lora_B" in names[id(p)]) == is_b] for is_b in (False, True)
        )
        rate = self.config.learning_rate * times
        optimizer.add_param_group({"params": of_b, "lr": scheduler.get_last_lr()[0] * times, "initial_lr": rate})
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        scheduler.base_lrs.append(rate)
        scheduler.lr_lambdas.append(scheduler.lr_lambdas[0])
        return optimizer, scheduler, scaler

    EmbeddingTrainer._setup_optimizer_and_scheduler = setup_faster_b  # type: ignore[method-assign, assignment]


# --- the examples -------------------------------------------------------------------------------------------


def gaps(examples: Examples, *_: Any) -> Examples:
    """The sentence around an answer, without the answer, as a query → the answer (in place of the kind sentence)."""
    kept = []
    for example in examples:
        if example.kind == "sentence":
            sentence = example.texts[1].removeprefix(PASSAGE_PREFIX).replace(example.answer, " ", 1)
            if len(sentence.strip()) < 10:
                continue
            example.texts = [QUERY_PREFIX + " ".join(sentence.split()), PASSAGE_PREFIX + example.answer]
        kept.append(example)
    return kept


def titles(examples: Examples, dataset: dict[str, Any], _: TrainingConfig) -> Examples:
    """A question → the title of its article (in place of the kind sentence)."""
    for example in examples:
        if example.kind == "sentence":
            title = dataset["articles"][example.article]["title"].replace("_", " ")
            example.texts = [example.texts[0], PASSAGE_PREFIX + title]
    return examples


def keyword_windows(examples: Examples, *_: Any) -> Examples:
    """An answer → the window around it (in place of the kind window)."""
    for example in examples:
        if example.kind == "window":
            example.texts = [QUERY_PREFIX + example.answer, example.texts[1]]
    return examples


def neighbours(examples: Examples, *_: Any, count: int = 2) -> Examples:
    """A sentence → so many on either side of it (in place of the kind inverse_cloze, which takes one)."""
    contexts = {example.guid: example.texts[1] for example in examples if example.kind == "context"}
    for example in examples:
        if example.kind == "inverse_cloze":
            sentence = example.texts[0].removeprefix(QUERY_PREFIX)
            text = contexts[example.guid].removeprefix(PASSAGE_PREFIX)
            start = text.index(sentence)
            first, last = sentences_around(text, start, start + len(sentence), neighbours=count)
            example.texts = [example.texts[0], PASSAGE_PREFIX + text[first:last].replace(sentence, "", 1).strip()]
    return examples


def words_left_out(examples: Examples, *_: Any) -> Examples:
    """Four copies of each question → answer, each word of the question left out with probability LEFT_OUT."""
    draw = random.Random(0)
    changed = []
    for example in examples:
        for _copy in range(4 if example.kind == "answer" else 1):
            other = copy.copy(example)
            if example.kind == "answer":
                words = example.texts[0].removeprefix(QUERY_PREFIX).split()
                kept = [word for word in words if draw.random() > LEFT_OUT] or words
                other.texts = [QUERY_PREFIX + " ".join(kept), example.texts[1]]
            changed.append(other)
    return changed


def sample_too(examples: Examples, dataset: dict[str, Any], config: TrainingConfig) -> Examples:
    """The questions of the embedded sample beside the dataset's."""
    settings = {"dataset_root": str(REPOSITORY / "data" / "sample"), "train_split": 0.999, "val_split": 0}
    other = TrainingConfig(**config.to_dict() | settings)
    sample = load_cached_dataset(other.dataset_root, other.num_workers, verbose=False, window=window_size(other))
    more: Any = prepare_training_data(sample, other)[0]
    for example in more:
        example.article += len(dataset["articles"])
    return [*examples, *more]


def hard_negatives(examples: Examples, _: dict[str, Any], config: TrainingConfig) -> Examples:
    """Groups of a question and those whose answers the base finds likeliest for it, none above the right one.

    They become articles of their own, which `article_group` then keeps together.
    """
    source = resolve_base_model(config.model_name, max_seq_length=config.max_seq_length)
    base = load_base_model(source, config.max_seq_length, device="cpu")
    chosen = [example for example in examples if example.kind == "answer"]
    queries, passages = (
        base.encode([example.texts[side] for example in chosen], convert_to_tensor=True, normalize_embeddings=True)
        for side in (0, 1)
    )
    scores = queries @ passages.T
    free = torch.ones(len(chosen), dtype=torch.bool)
    for group, number in enumerate(torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0)).tolist()):
        if not free[number]:
            continue
        likely = scores[number].masked_fill(~free | (scores[number] > scores[number, number]), -torch.inf)
        likely[number] = torch.inf
        members = [place for place in likely.topk(min(GROUP, len(chosen))).indices.tolist() if likely[place] > -torch.inf]
        for place in members:
            chosen[place].article = -1 - group
        free[members] = False
    return examples


LOSSES: dict[str, Callable[[], None]] = {
    "both_directions": both_directions,
    "penalty": penalty,
    "question_words": question_words,
    "own_words": functools.partial(question_words, own_only=True),
    "faster_b": faster_b,
    "much_faster_b": functools.partial(faster_b, times=16),
}
EXAMPLES: dict[str, Callable[..., Examples]] = {
    change.__name__: change
    for change in (gaps, titles, keyword_windows, neighbours, words_left_out, sample_too, hard_negatives)
} | {"rest_of_paragraph": functools.partial(neighbours, count=sys.maxsize)}


def main() -> int:
    names = [*LOSSES, *EXAMPLES]
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        print(f"usage: python benchmarks/variants.py {{{','.join(names)}}} [options of train.py]", file=sys.stderr)
        return 2
    name = sys.argv[1]
    if name in LOSSES:
        LOSSES[name]()
    else:

        def prepare(dataset: dict[str, Any], config: TrainingConfig) -> tuple[Any, Any]:
            examples, validation = prepare_training_data(dataset, config)
            return EXAMPLES[name](examples, dataset, config), validation

        train.prepare_training_data = prepare  # type: ignore[assignment]
    return train.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
