"""Batches: the mask by hand, token shapes, order, what is left out."""

import logging

import numpy as np
import pytest
import torch
from sentence_transformers import InputExample
from transformers import AutoTokenizer

from config import TrainingConfig
from dataloader import build_dataloader, collate_input_examples
from dataloader.batches import TokenisedPairs, identical_passages


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


def rows_of(batch) -> list[list[int]]:
    return [row.tolist() for row in batch["tokens"].split(batch["lengths"].tolist())]


def test_a_batch_is_queries_then_passages_one_behind_the_other(tokenizer):
    # One token a character, with [CLS] and [SEP]: "query: 0" is 10, "passage: 세종" would be 13 and is cut to 12.
    data = examples("세종", "왕", "세종", "남음")
    batch = TokenisedPairs(data, tokenizer, 12).collate([2, 0, 1])
    assert set(batch) == {"tokens", "lengths", "mask"}
    assert batch["tokens"].dtype == torch.int32 and batch["mask"].dtype == torch.bool
    assert batch["lengths"].tolist() == [10, 10, 10, 12, 12, 12]
    texts = [data[i].texts[side] for side in (0, 1) for i in (2, 0, 1)]
    assert rows_of(batch) == tokenizer(texts, truncation=True, max_length=12)["input_ids"]
    assert batch["mask"].tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    assert rows_of(batch)[3][-1] == tokenizer.sep_token_id
    assert tokenizer.decode(rows_of(batch)[3], skip_special_tokens=True).replace(" ", "") == "passage:세"


def test_equal_passages_are_known_by_their_whole_text_not_by_what_is_left_of_it(tokenizer):
    pairs = TokenisedPairs(examples("세종대왕", "세종로"), tokenizer, 12)
    assert not pairs.collate([0, 1])["mask"].any()


def test_each_distinct_text_is_tokenised_once(tokenizer):
    seen = []

    def counting(texts, **options):
        seen.extend(texts)
        return tokenizer(texts, **options)

    TokenisedPairs(examples("세종", "세종", "왕"), counting, 12)
    assert sorted(seen) == ["passage: 세종", "passage: 왕", "query: 0", "query: 1", "query: 2"]


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


def test_tokenised_batches_hold_the_same_examples_in_the_same_order(tokenizer):
    data = examples(*"가나다라마바")
    listed = list(build_dataloader(data, config()))
    tokenised = list(build_dataloader(data, config(), tokenizer))
    assert len(listed) == len(tokenised) == 3
    for texts, batch in zip(listed, tokenised, strict=True):
        flat = [example.texts[side] for side in (0, 1) for example in texts]
        assert rows_of(batch) == tokenizer(flat, truncation=True, max_length=12)["input_ids"]
