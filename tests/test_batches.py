"""Batches: the mask by hand, token shapes, order, what is left out."""

import logging
from collections import Counter

import numpy as np
import pytest
import torch
from sentence_transformers import InputExample
from transformers import AutoTokenizer

from config import TrainingConfig
from dataloader import build_dataloader, collate_input_examples
from dataloader.batches import FalseNegatives, TokenisedPairs, normalised_answer
from dataloader.examples import PairExample


def config(**changes) -> TrainingConfig:
    return TrainingConfig(**({"batch_size": 2, "num_workers": 0, "seed": 1, "max_seq_length": 12} | changes))


def examples(*passages: str) -> list[InputExample]:
    return [InputExample(texts=[f"query: {n}", f"passage: {text}"]) for n, text in enumerate(passages)]


def queries(loader) -> list[list[str]]:
    return [[example.texts[0] for example in batch] for batch in loader]


@pytest.fixture(scope="module")
def tokenizer(toy_model_dir):
    return AutoTokenizer.from_pretrained(str(toy_model_dir), local_files_only=True)


def pair(question: str, passage: str, answer: str, article: int, kind: str = "answer") -> PairExample:
    return PairExample("", [f"query: {question}", f"passage: {passage}"], kind, answer, article)


def mask(data, *rules: str) -> list[list[int]]:
    found = FalseNegatives(data, rules).mask(np.arange(len(data)))
    assert found.dtype == bool
    return found.astype(int).tolist()


def test_identical_passages_are_no_negatives():
    data = examples("세종", "1443년", "세종", "세종 ")
    assert mask(data, "identical") == [[0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert not np.any(mask(data, "none"))
    assert np.sum(mask(examples("가", "가", "가"), "identical")) == 6


def test_each_rule_masks_what_it_names_by_hand():
    data = [
        pair("누가?", "세종", "세종", 0),
        pair("무슨 왕?", "세종 대왕", "세종 대왕", 0),  # holds the first one's answer
        pair("언제?", "1443년", "1443년", 0),
        pair("왕?", "세종대왕.", "세종대왕.", 1),  # the second one's answer but for a space and a full stop, another article
    ]
    assert not np.any(mask(data, "identical"))
    assert mask(data, "normalised") == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert mask(data, "contained") == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert mask(data, "article") == [[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert mask(data, "normalised", "contained") == [[0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_a_passage_that_holds_the_answer_is_no_negative_the_other_way_round_it_is():
    first = pair("누가 만들었나?", "세종이 한글을 만들었다.", "세종", 0, "sentence")
    second = pair("언제 만들었나?", "세종은 1443년에 만들었다.", "1443년", 0, "sentence")
    assert mask([first, second], "contained") == [[0, 1], [0, 0]]
    elsewhere = pair("언제 만들었나?", "세종은 1443년에 만들었다.", "1443년", 1, "sentence")
    assert mask([first, elsewhere], "contained") == [[0, 0], [0, 0]]


def test_rules_follow_the_batch_not_the_dataset():
    data = examples("가", "나", "가")
    assert FalseNegatives(data).mask(np.array([1, 2])).sum() == 0
    assert FalseNegatives(data).mask(np.array([2, 1, 0])).astype(int).tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_normalised_answers():
    assert normalised_answer(" 세종 (世宗), １４４３년 ") == normalised_answer("세종世宗1443년")
    assert normalised_answer("a-b") == normalised_answer("AB") != normalised_answer("AC")
    assert normalised_answer("?") == "?"  # nothing else is left: the mark itself


def test_a_batch_holds_one_kind_and_weights_are_passes():
    data = [pair(str(n), f"{kind}{n}", "", n, kind) for n in range(9) for kind in ("answer", "context")]
    loader = build_dataloader(data, config(objective="answer=2,context=0.5", batch_size=2))
    batches = list(loader)
    assert len(loader) == len(batches) == 2 * 4 + 2
    found = Counter(example.kind for batch in batches for example in batch)
    assert found == {"answer": 16, "context": 4}
    assert all(len({example.kind for example in batch}) == 1 for batch in batches)
    first_kinds = {tuple(batch[0].kind for batch in loader) for _ in range(8)}
    assert len(first_kinds) > 1  # the kinds are mixed, anew each epoch
    halves = {frozenset(e.guid + e.texts[0] for b in loader for e in b if e.kind == "context") for _ in range(8)}
    assert len(halves) > 1  # as is the half that is taken


@pytest.mark.parametrize(
    ("weight", "sizes"),
    [(0.01, [4]), (0.3, [4]), (0.5, [4]), (1.0, [4, 4]), (1.2, [4, 4]), (1.5, [4, 4, 4])],
    ids=["a part of a batch", "little", "half", "all", "all and no batch more", "all and half"],
)
def test_a_part_of_a_pass_is_at_least_a_batch(weight, sizes):
    data = [pair(str(n), f"p{n}", "", n, "context") for n in range(8)]
    loader = build_dataloader(data, config(objective=f"context={weight}", batch_size=4))
    assert [len(batch) for batch in loader] == sizes and len(loader) == len(sizes)


def test_questions_of_one_article_stand_together():
    data = [pair(str(n), str(n), "", n % 4) for n in range(32)]
    grouped = build_dataloader(data, config(article_group="4", batch_size=8))
    for batch in grouped:
        articles = [example.article for example in batch]
        assert len(set(articles[:4])) == len(set(articles[4:])) == 1
    assert sorted(e.texts[0] for b in grouped for e in b) == sorted(e.texts[0] for e in data)
    alone = build_dataloader(data, config(batch_size=8))
    assert any(len({e.article for e in batch[:4]}) > 1 for batch in alone)


def test_questions_of_one_paragraph_are_side_by_side():
    data = [pair(str(n), f"paragraph {n % 3}", "", n % 2, "context") for n in range(24)]  # 2 articles x 3 paragraphs x 4
    batches = list(build_dataloader(data, config(objective="context", article_group="12", batch_size=12)))
    for batch in batches:
        passages = [example.texts[1] for example in batch]
        assert [passages[start] for start in (0, 4, 8)] == list(dict.fromkeys(passages))
        assert all(len(set(passages[start : start + 4])) == 1 for start in (0, 4, 8))
    answers = [pair(str(n), f"answer {n % 3}", "", n % 2) for n in range(24)]
    mixed = list(build_dataloader(answers, config(article_group="12", batch_size=12)))
    assert any(len({e.texts[1] for e in batch[:4]}) > 1 for batch in mixed)  # answers are not sorted


def test_collate_input_examples_returns_the_batch_itself():
    batch = examples("가", "나")
    assert collate_input_examples(batch) is batch


def rows_of(batch) -> list[list[int]]:
    return [row.tolist() for row in batch["tokens"].split(batch["lengths"].tolist())]


def test_a_batch_is_queries_then_passages_one_behind_the_other(tokenizer):
    # One token a character, with [CLS] and [SEP]: "query: 0" is 10, "passage: 세종" would be 13 and is cut to 12.
    data = examples("세종", "왕", "세종", "남음")
    batch = TokenisedPairs(data, tokenizer, 12).collate([2, 0, 1])
    assert set(batch) == {"tokens", "lengths", "passage_of", "mask"}
    assert batch["tokens"].dtype == torch.int32 and batch["mask"].dtype == torch.bool
    # "passage: 세종" stands once, for the first query and the second.
    assert batch["lengths"].tolist() == [10, 10, 10, 12, 12]
    assert batch["passage_of"].tolist() == [0, 0, 1]
    texts = [data[2].texts[0], data[0].texts[0], data[1].texts[0], data[0].texts[1], data[1].texts[1]]
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
        queries, passages = ([example.texts[side] for example in texts] for side in (0, 1))
        rows = rows_of(batch)
        found = rows[: len(texts)] + [rows[len(texts) + place] for place in batch["passage_of"].tolist()]
        assert found == tokenizer(queries + passages, truncation=True, max_length=12)["input_ids"]
