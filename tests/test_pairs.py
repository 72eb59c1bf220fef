"""The split by article, training pairs, retrieval sets: worlds small enough to work out by hand."""

import logging
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import TrainingConfig
from dataloader import (
    RetrievalSet,
    load_entire_dataset,
    prepare_retrieval_sets,
    prepare_training_data,
    question_articles,
)
from dataloader.pairs import CHARACTERS_PER_TOKEN, Pair, articles_of_part, extract_pairs, split_articles
from dataloader.prepare import _window


def config(**changes) -> TrainingConfig:
    return TrainingConfig(**({"train_split": 0.5, "val_split": 0.25, "split_seed": 0} | changes))


def qa(question: str, answer, context: str = "", **more) -> dict:
    return {"id": question, "question": question, "answer": answer, "answer_start": None, "context": context} | more


def page(context: str, *qas: dict) -> dict:
    """An article of KorQuAD 2.1's kind."""
    return {"title": "", "url": "", "context": context, "paragraphs": [context], "qas": list(qas)}


def paragraphs(**texts: list[dict]) -> dict:
    """An article of KorQuAD 1.0's kind: paragraph text = its questions."""
    qas = [qa | {"context": text} for text, questions in texts.items() for qa in questions]
    return {"title": "", "url": "", "context": "", "paragraphs": list(texts), "qas": qas}


def dataset(*articles: dict) -> dict:
    return {"articles": list(articles)}


def held_out(*articles: dict, **changes) -> dict[str, RetrievalSet]:
    """The retrieval sets where all articles are held out; an article without questions stands for the others."""
    settings = config(train_split=0.5, **changes)
    order = list(range(2 * len(articles)))
    random.Random(settings.split_seed).shuffle(order)
    places: list[dict] = [page("")] * len(order)
    for article, index in zip(articles, order[len(articles) :], strict=True):
        places[index] = article
    return prepare_retrieval_sets(dataset(*places), settings, "held_out")


def relevant_texts(found: RetrievalSet) -> dict[str, set[str]]:
    return {found.queries[q]: {found.corpus[d] for d in docs} for q, docs in found.relevant_docs.items()}


# --- the split ---


def test_the_split_is_the_shuffled_order_cut_in_three():
    order = list(range(16))
    random.Random(0).shuffle(order)
    assert split_articles(16, config()) == (order[:6], order[6:8], order[8:])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 200), st.floats(0.01, 0.99), st.floats(0, 0.5), st.integers(0, 5))
def test_the_parts_are_disjoint_and_together_all(n, train_split, val_split, seed):
    train, val, rest = split_articles(n, config(train_split=train_split, val_split=val_split, split_seed=seed))
    assert sorted(train + val + rest) == list(range(n))
    assert len(train) + len(val) == int(n * train_split)
    if val_split == 0:
        assert val == []
    elif len(train) + len(val) >= 2:
        assert len(val) >= 1


def test_one_article_of_the_training_side_validates_at_least():
    assert [len(part) for part in split_articles(4, config(val_split=0.01))] == [1, 1, 2]
    assert [len(part) for part in split_articles(2, config(val_split=0.5))] == [1, 0, 1]


# --- training pairs ---


def test_extract_pairs_cleans_takes_the_first_answer_and_counts_the_empty(caplog):
    articles = [
        page("", qa("하나&nbsp;?", {"text": "<b>일</b>"}), qa("<br>", "답"), qa("셋?", "<br>")),
        page("", qa("넷?", ["", {"text": "<p>사</p>"}, "오"]), qa("다섯?", [])),
    ]
    with caplog.at_level(logging.WARNING):
        pairs, counts = extract_pairs(articles, [1, 0])
    assert pairs == [
        Pair("넷?", "넷?", "사", "answer", "사", 1),
        Pair("하나&nbsp;?", "하나 ?", "일", "answer", "일", 0),
    ]
    assert counts == (5, 1, 2)
    assert "of 5 questions, 1 have no text after cleaning and 2 have no answer text" in caplog.text


def eight_articles() -> dict:
    return dataset(*(page("", qa(f"질문 {n}a?", f"답 {n}a"), qa(f"질문 {n}b?", f"답 {n}b")) for n in range(8)))


def test_training_data_is_prefixed_once_and_follows_the_split():
    train, val, _ = split_articles(8, config())
    train_examples, val_examples = prepare_training_data(eight_articles(), config())
    expected = [[f"query: 질문 {n}{x}?", f"passage: 답 {n}{x}"] for n in train for x in "ab"]
    assert [example.texts for example in train_examples] == expected
    assert [example.texts[1] for example in val_examples] == [f"passage: 답 {n}{x}" for n in val for x in "ab"]


def test_max_samples_keeps_a_prefix_and_all_of_validation():
    everything, val = prepare_training_data(eight_articles(), config())
    three, val_of_three = prepare_training_data(eight_articles(), config(max_samples=3))
    assert len(everything) == 6
    assert [example.texts for example in three] == [example.texts for example in everything[:3]]
    assert len(val_of_three) == len(val) == 2


def test_no_training_pair_is_an_error_with_the_numbers():
    with pytest.raises(ValueError, match=r"no training pair: 1 articles with train_split 0\.5.*leave 0"):
        prepare_training_data(dataset(page("", qa("?", "답"))), config())
    with pytest.raises(ValueError, match=r"leave 1 to train on, with 1 questions.*Give more articles or a larger"):
        prepare_training_data(dataset(*[page("", qa("질문?", "<br>"))] * 2), config())


@pytest.mark.parametrize(("count", "said"), [(0, "hold none"), (1, "hold one article")])
def test_what_no_split_can_mend_is_not_advised(count, said):
    with pytest.raises(ValueError, match=rf"The files {said}: at least two are needed") as error:
        prepare_training_data(dataset(*[page("", qa("질문?", "답"))] * count), config(train_split=0.99))
    assert "larger train_split" not in str(error.value)


# --- retrieval: answers ---


def test_questions_without_an_answer_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        found = held_out(page("", qa("가?", "나"), qa("다?", ""), qa("라?", "<b></b>")))
    assert relevant_texts(found["answers"]) == {"가?": {"나"}}
    assert "2 questions are left out of the answer task" in caplog.text


def test_every_distinct_answer_is_one_document():
    sets = held_out(
        page("", qa("누구?", "<b>세종</b>"), qa("왕?", {"text": "세종"}), qa("언제?", ["1443년", "1443"])),
        page("", qa("누구?", "이순신"), qa("", "답"), qa("무엇?", "<br>")),
    )
    found = sets["answers"]
    assert list(found.corpus.values()) == ["세종", "1443년", "1443", "이순신"]
    assert relevant_texts(found) == {
        "누구?": {"세종", "이순신"},
        "왕?": {"세종"},
        "언제?": {"1443년", "1443"},
    }
    assert not any(text.startswith(("query:", "passage:")) for text in [*found.queries.values(), *found.corpus.values()])


def test_each_part_asks_about_its_own_articles():
    _, val, rest = split_articles(8, config())
    train, *_ = split_articles(8, config())
    parts = {"training": train, "validation": val, "held_out": rest, "all": [*train, *val, *rest]}
    for part, indices in parts.items():
        found = prepare_retrieval_sets(eight_articles(), config(), part)["answers"]
        assert list(found.corpus.values()) == [f"답 {n}{x}" for n in indices for x in "ab"]


def test_each_question_has_its_article():
    held_out = articles_of_part(eight_articles(), config(), "held_out")
    found = question_articles(eight_articles(), config(), "held_out")
    queries = prepare_retrieval_sets(eight_articles(), config(), "held_out")["answers"].queries
    assert set(queries.values()) <= set(found) and list(dict.fromkeys(found.values())) == held_out
    assert all(f" {found[text]}" in text for text in queries.values())


def test_a_question_of_two_articles_belongs_to_the_first():
    twice = dataset(page("", qa("<b>누구?</b>", "세종")), page("", qa("누구?", "이순신")))
    assert question_articles(twice, config(), "all") == {"누구?": articles_of_part(twice, config(), "all")[0]}


def test_an_unknown_part_is_refused_and_an_empty_one_said(caplog):
    with pytest.raises(ValueError, match="part is 'test': give one of training, validation, held_out, all"):
        prepare_retrieval_sets(eight_articles(), config(), "test")
    with caplog.at_level(logging.WARNING):
        assert prepare_retrieval_sets(eight_articles(), config(val_split=0), "validation") == {}
        assert prepare_retrieval_sets(dataset(), config(), "all") == {}
    assert "the validation articles hold no question for: answers, paragraphs" in caplog.text
    assert "the articles hold no question for: answers, paragraphs" in caplog.text


# --- retrieval: paragraphs ---


def test_korquad_1_every_distinct_paragraph_is_a_document():
    texts = {"세종은  왕이다.": [qa("누구?", "세종"), qa("무엇?", "왕")], "아무도 묻지 않는다.": []}
    found = held_out(paragraphs(**texts), paragraphs(**{"세종은 왕이다.": [qa("왕?", "세종")]}))["paragraphs"]
    assert list(found.corpus.values()) == ["세종은 왕이다.", "아무도 묻지 않는다."]
    assert relevant_texts(found) == {q: {"세종은 왕이다."} for q in ("누구?", "무엇?", "왕?")}


WORDS = " ".join(f"낱말{n:03}" for n in range(100))  # each word and its space: 6 characters


def test_korquad_2_cuts_a_window_of_cleaned_text_around_the_answer():
    source = f"<p>{WORDS}</p>"
    answer = {"text": "낱말050", "answer_start": source.index("낱말050")}
    found = held_out(page(source, qa("50?", answer)), max_seq_length=20)["paragraphs"]
    size = int(20 * CHARACTERS_PER_TOKEN)
    assert size == 30
    # 5 characters of answer, 25 around it: the window is 288..318 and the words wholly in it are 048 to 052.
    assert relevant_texts(found) == {"50?": {"낱말048 낱말049 낱말050 낱말051 낱말052"}}


def test_an_answer_inside_a_window_shares_it():
    near = [qa(f"{n}?", f"낱말{n:03}") for n in (50, 51, 60)]
    found = held_out(page(f"<p>{WORDS}</p>", *near), max_seq_length=20)["paragraphs"]
    assert len(found.corpus) == 2
    texts = relevant_texts(found)
    assert texts["50?"] == texts["51?"] != texts["60?"]


def test_a_wrong_place_is_looked_for_and_a_missing_answer_is_counted(caplog):
    article = page(
        "<p>세종은 왕이다.</p><script>숨은 말</script>",
        qa("왕?", {"text": "세종", "answer_start": 99}),
        qa("틀림?", {"text": "왕", "answer_start": 0}),
        qa("없음?", {"text": "영조", "answer_start": 3}),
        qa("숨음?", "숨은 말"),
        qa("빈 답?", "  "),
        qa("", "세종"),
    )
    with caplog.at_level(logging.WARNING):
        found = held_out(article)["paragraphs"]
    assert relevant_texts(found) == {"왕?": {"세종은 왕이다."}, "틀림?": {"세종은 왕이다."}}
    assert "3 questions are left out of the paragraph task" in caplog.text


def test_an_answer_longer_than_the_window_gives_its_beginning():
    answer = WORDS[60:360]  # words 010 to 059
    found = held_out(page(f"<p>{WORDS}</p>", qa("길다?", answer)), max_seq_length=20)["paragraphs"]
    assert relevant_texts(found) == {"길다?": {"낱말010 낱말011 낱말012 낱말013 낱말014"}}


@settings(max_examples=300, deadline=None)
@given(st.text("가나 \n", max_size=80), st.data())
def test_a_window_holds_the_answer_and_cuts_between_words(text, data):
    start = data.draw(st.integers(0, max(len(text) - 1, 0)))
    end = data.draw(st.integers(start, len(text)))
    size = data.draw(st.integers(1, 40))
    first, last = _window(text, start, end, size)
    assert 0 <= first <= start
    assert last - first <= size
    assert last == len(text) or text[last].isspace() or not any(map(str.isspace, text[min(end, last) : last]))
    if end - start <= size:
        assert last >= end
        assert first == 0 or text[first - 1].isspace() or not any(map(str.isspace, text[first:start]))
    else:
        assert first == start


# --- the real file ---


def test_the_real_korquad_1_file():
    path = os.environ.get("KORQUAD_V1_JSON")
    if not path:
        pytest.skip("KORQUAD_V1_JSON does not name a copy of KorQuAD_v1.0_dev.json")
    data = load_entire_dataset(path, verbose=False)
    settings = config(train_split=0.75, val_split=0.05, split_seed=0)
    train, val, rest = split_articles(140, settings)
    assert (len(train), len(val), len(rest)) == (100, 5, 35)
    assert len(extract_pairs(data["articles"], train + val)[0]) == 4197
    assert len(extract_pairs(data["articles"], rest)[0]) == 1577
    sets = prepare_retrieval_sets(data, settings, "held_out")
    assert len(sets["answers"].corpus) == 1149
    assert len(sets["paragraphs"].corpus) == 295
    assert len(sets["paragraphs"].queries) == len(sets["answers"].queries) == 1575  # two are asked twice
