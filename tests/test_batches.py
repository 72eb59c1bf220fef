"""Batches: the mask by hand, token shapes, order, what is left out."""

import logging
import os

import numpy as np
import pytest
import torch
from sentence_transformers import InputExample
from transformers import AutoTokenizer

from config import TrainingConfig
from dataloader import build_dataloader, collate_input_examples
from dataloader.batches import TokenizingCollator, identical_passages


def config(**changes) -> TrainingConfig:
    return TrainingConfig(**({"batch_size": 2, "num_workers": 0, "seed": 1, "max_seq_length": 12} | changes))


def examples(*passages: str) -> list[InputExample]:
    return [InputExample(texts=[f"query: {n}", f"passage: {text}"]) for n, text in enumerate(passages)]


def queries(loader) -> list[list[str]]:
    return [[example.texts[0] for example in batch] for batch in loader]


@pytest.fixture(scope="module")
def tokenizer(toy_model_dir):
    return AutoTokenizer.from_pretrained(str(toy_model_dir), local_files_only=True)


def test_identical_passages_by_hand():
    expected = np.array(
        [
            [0, 0, 1, 0],
            [0, 0, 0, 0],
            [1, 0, 0, 0],
            [0, 0, 0, 0],
        ],
        dtype=bool,
    )
    mask = identical_passages(["세종", "1443년", "세종", "세종 "])
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, expected)
    assert identical_passages([]).shape == (0, 0)
    assert identical_passages(["가"] * 3).sum() == 6


def test_collate_input_examples_returns_the_batch_itself():
    batch = examples("가", "나")
    assert collate_input_examples(batch) is batch


def test_the_collator_tokenises_both_sides_and_masks(tokenizer):
    # One token a character, with [CLS] and [SEP]: "query: 0" is 10, "passage: 세종" would be 13 and is cut to 12.
    batch = TokenizingCollator(tokenizer, 12)(examples("세종", "왕", "세종"))
    assert set(batch) == {"query", "passage", "mask"}
    assert batch["query"]["input_ids"].shape == batch["query"]["attention_mask"].shape == (3, 10)
    assert batch["passage"]["input_ids"].shape == (3, 12)
    assert set(batch["passage"]) == {"input_ids", "attention_mask"}
    assert batch["mask"].dtype == torch.bool
    assert batch["mask"].tolist() == [[False, False, True], [False, False, False], [True, False, False]]
    cut = batch["passage"]["input_ids"][0]
    assert cut[-1] == tokenizer.sep_token_id
    assert tokenizer.decode(cut, skip_special_tokens=True).replace(" ", "") == "passage:세"


def test_each_side_is_padded_to_its_own_longest(tokenizer):
    batch = TokenizingCollator(tokenizer, 64)(examples("가", "가나다라"))
    assert batch["passage"]["attention_mask"].sum(dim=1).tolist() == [12, 15]
    assert batch["passage"]["input_ids"].shape == (2, 15)
    assert (batch["passage"]["input_ids"][0, 12:] == tokenizer.pad_token_id).all()


def test_equal_passages_are_known_by_their_whole_text_not_by_what_is_left_of_it(tokenizer):
    batch = TokenizingCollator(tokenizer, 12)(examples("세종대왕", "세종로"))
    assert not batch["mask"].any()


def test_the_seed_decides_the_order_and_epochs_differ():
    data = examples(*"가나다라마바사아")
    first, again = (build_dataloader(data, config()) for _ in range(2))
    epoch = queries(first)
    assert epoch == queries(again)
    assert queries(first) != epoch
    assert queries(build_dataloader(data, config(seed=2))) != epoch
    assert sorted(query for batch in epoch for query in batch) == [f"query: {n}" for n in range(8)]


def test_without_shuffling_the_order_stays():
    loader = build_dataloader(examples("가", "나", "다", "라"), config(), shuffle=False)
    assert queries(loader) == [["query: 0", "query: 1"], ["query: 2", "query: 3"]]


def test_an_incomplete_last_batch_is_left_out_aloud(caplog):
    with caplog.at_level(logging.INFO):
        loader = build_dataloader(examples(*"가나다라마"), config())
    assert len(loader) == len(queries(loader)) == 2
    assert "1 of 5 pairs fill no batch of 2" in caplog.text


def test_fewer_pairs_than_a_batch_make_one_batch():
    loader = build_dataloader(examples("가", "나", "다"), config(batch_size=16))
    assert [len(batch) for batch in loader] == [3]


def test_a_single_pair_is_said_and_none_is_refused(caplog):
    with caplog.at_level(logging.WARNING):
        assert [len(batch) for batch in build_dataloader(examples("가"), config())] == [1]
    assert "no negatives" in caplog.text
    with pytest.raises(ValueError, match="no examples to batch"):
        build_dataloader([], config())


def test_workers_give_the_same_batches(tokenizer):
    data = examples(*"가나다라마바")
    alone = list(build_dataloader(data, config(), tokenizer))
    loader = build_dataloader(data, config(num_workers=2), tokenizer)
    assert loader.num_workers == min(2, os.cpu_count() or 1)
    assert loader.persistent_workers
    together = list(loader)
    assert len(alone) == len(together) == 3
    for here, there in zip(alone, together, strict=True):
        assert torch.equal(here["query"]["input_ids"], there["query"]["input_ids"])
        assert torch.equal(here["mask"], there["mask"])


def test_no_more_workers_than_batches():
    assert build_dataloader(examples("가", "나"), config(num_workers=4)).num_workers == 1


class ThreadSetting:
    """Stands in for a tokenizer and reports the environment that it runs in."""

    def __call__(self, texts, **_):
        quiet = os.environ["TOKENIZERS_PARALLELISM"] == "false"
        ids = torch.full((len(texts), 1), int(quiet))
        return {"input_ids": ids, "attention_mask": ids}


def test_the_tokenizer_has_one_thread_in_a_worker(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    (batch,) = build_dataloader(examples("가", "나"), config(num_workers=1), ThreadSetting())
    assert batch["query"]["input_ids"].tolist() == [[1], [1]]
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
