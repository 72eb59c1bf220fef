"""What a question is trained to find: sentences by hand, kinds of passages, examples of a mixture."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import OBJECTIVES, ConfigError, TrainingConfig, article_groups, objective_weights
from dataloader import prepare_training_data
from dataloader.objectives import sentences_around, training_pair
from dataloader.prepare import prepare_article

TEXT = "한글은 문자이다. 세종이 1443년에 만들었다! 반포는 1446. 10. 9. 이었다. 끝."


def around(answer: str, neighbours: int = 0) -> str:
    start = TEXT.index(answer)
    first, last = sentences_around(TEXT, start, start + len(answer), neighbours)
    return TEXT[first:last]


def test_sentences_by_hand():
    assert around("세종") == "세종이 1443년에 만들었다!"
    assert around("문자이다. 세종") == "한글은 문자이다. 세종이 1443년에 만들었다!"
    assert around("10. 9.") == "반포는 1446. 10. 9. 이었다."  # a date is not three sentences
    assert around("끝.") == "끝."
    assert around("한글") == "한글은 문자이다."
    assert around("세종", neighbours=1) == "한글은 문자이다. 세종이 1443년에 만들었다! 반포는 1446. 10. 9. 이었다."
    assert around("세종", neighbours=9) == TEXT


def test_closing_quotes_belong_to_the_sentence_and_line_breaks_end_one():
    text = '그는 "간다." 말했다.\n표 제목\n값'
    assert [text[a:b] for a, b in (sentences_around(text, i, i + 1) for i in (0, 9, 14, 19))] == [
        '그는 "간다."',
        "말했다.",
        "표 제목",
        "값",
    ]


@given(st.text(alphabet='가. !\n"1', min_size=1), st.data())
def test_the_sentences_always_hold_the_answer(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    if not text[start:end].strip() or text[start:end] != text[start:end].strip():
        return
    first, last = sentences_around(text, start, end)
    wider = sentences_around(text, start, end, 1)
    assert first <= start < end <= last
    assert wider[0] <= first and last <= wider[1]


def article(*qas, context: str = "") -> dict:
    """Of KorQuAD 1.0's kind with one paragraph, or, with `context`, of 2.1's."""
    questions = [
        {
            "id": q,
            "question": q,
            "answer": {"text": a, "answer_start": s},
            "answer_start": s,
            "context": "" if context else TEXT,
        }
        for q, a, s in qas
    ]
    return {"title": "", "url": "", "context": context, "paragraphs": [context or TEXT], "qas": questions}


def passages(prepared, number: int = 0) -> dict[str, str | None]:
    kinds = ("answer", "sentence", "window", "context")
    qa = prepared["qas"][number]
    pairs = {kind: training_pair(kind, qa, prepared["windows"]) for kind in kinds}
    assert {pair[0] for pair in pairs.values() if pair} == {qa["question"]}
    return {kind: pair and pair[1] for kind, pair in pairs.items()}


def test_the_passages_of_a_question_by_hand():
    prepared = prepare_article(article(("누가?", "세종", 10), ("언제?", "1443년", None)), "windows", 99)
    assert prepared["qas"][0]["spans"] == [(10, 12)]
    assert passages(prepared) == {
        "answer": "세종",
        "sentence": "세종이 1443년에 만들었다!",
        "window": "한글은 문자이다. 세종이 1443년에 만들었다! 반포는 1446. 10. 9. 이었다.",
        "context": TEXT,
    }
    assert passages(prepared, 1)["sentence"] == "세종이 1443년에 만들었다!"


def test_the_place_that_the_file_names_decides_where_an_answer_occurs_twice():
    text = "왕은 세종이다. 한글은 세종이 만들었다."
    data = {"title": "", "url": "", "context": "", "paragraphs": [text], "qas": []}
    qa = {"id": "", "question": "누가?", "answer_start": 13, "context": text}
    for start, expected in ((13, "한글은 세종이 만들었다."), (3, "왕은 세종이다."), (5, "왕은 세종이다.")):
        answer = {"text": "세종", "answer_start": start}
        prepared = prepare_article(data | {"qas": [qa | {"answer": answer}]}, "windows", 99)
        assert passages(prepared)["sentence"] == expected


def test_pages_have_sentences_too():
    page = "<p>" + "가나 다라. " * 40 + "</p><p>답은 <b>여기</b> 있다. 다음.</p><p>" + "마바 사아. " * 40 + "</p>"
    prepared = prepare_article(article(("?", "<b>여기</b>", page.index("<b>")), context=page), "windows", 60)
    found = passages(prepared)
    assert found["sentence"] == "답은 여기 있다."
    assert "여기" in found["context"] and len(found["context"]) <= 60
    assert found["sentence"] in found["window"]


def test_an_answer_without_a_place_has_only_itself():
    prepared = prepare_article(article(("?", "없음", None)), "windows", 99)
    assert passages(prepared) == {"answer": "없음", "sentence": None, "window": None, "context": TEXT}


def test_a_mixture_has_an_example_of_each_kind(caplog):
    places = article(("누가?", "세종", 10), ("무엇?", "없음", None))
    config = TrainingConfig(objective="answer=1,sentence=0.5", train_split=0.99, val_split=0, max_samples=2)
    with caplog.at_level(logging.WARNING):
        examples, _ = prepare_training_data({"articles": [places, places]}, config)
    assert [(e.kind, e.texts[1], e.answer, e.article) for e in examples] == [
        ("answer", "passage: 세종", "세종", examples[0].article),
        ("sentence", "passage: 세종이 1443년에 만들었다!", "세종", examples[0].article),
        ("answer", "passage: 없음", "없음", examples[0].article),
    ]
    assert "1 answers give no pair of the kind sentence: its place in the page is not known" in caplog.text


def test_a_keyword_asks_for_its_sentence():
    prepared = prepare_article(article(("누가?", "세종", 10), ("무엇?", "없음", None)), "windows", 99)
    found = [training_pair("keyword", qa, prepared["windows"]) for qa in prepared["qas"]]
    assert found == [("세종", "세종이 1443년에 만들었다!"), None]


def test_a_sentence_asks_for_those_beside_it():
    prepared = prepare_article(article(("누가?", "세종", 10)), "windows", 99)
    assert training_pair("inverse_cloze", prepared["qas"][0], prepared["windows"]) in [
        ("세종이 1443년에 만들었다!", "한글은 문자이다. 반포는 1446. 10. 9. 이었다."),
        ("반포는 1446. 10. 9. 이었다.", "세종이 1443년에 만들었다! 끝."),
    ]
    found = {
        training_pair("inverse_cloze", {**prepared["qas"][0], "id": str(number)}, prepared["windows"])
        for number in range(20)
    }
    assert len(found) == 2  # not the first sentence, of 8 characters, nor the last


@pytest.mark.parametrize("text", ["짧다. 또 짧다.", "한 문장뿐인 글이며 그것이 전부이다.", "가" * 200 + ". 짧다."])
def test_a_paragraph_without_a_sentence_to_ask_with_gives_no_pair(text):
    qa = {"id": "1", "question": "?", "answers": ["가"], "windows": [0], "spans": [None]}
    assert training_pair("inverse_cloze", qa, [text]) is None


def test_objectives_are_read():
    assert objective_weights("answer") == {"answer": 1}
    assert objective_weights(" sentence = .5 , context=2") == {"sentence": 0.5, "context": 2}


@pytest.mark.parametrize(
    "text", ["", "answers", "answer=0", "answer=-1", "answer=nan", "answer=x", "answer,answer=2", "answer=101"]
)
def test_objectives_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match="--objective"):
        TrainingConfig(objective=text)


@pytest.mark.parametrize("names", [["same"], ["none", "identical"]])
def test_false_negatives_that_cannot_be_are_refused(names):
    with pytest.raises(ConfigError, match="--false_negatives"):
        TrainingConfig(false_negatives=names)


def test_article_groups_are_read():
    assert set(article_groups("4").values()) == {4}
    named = {"answer": 2, "context": 16}
    assert article_groups("context=16, answer=2") == {kind: named.get(kind, 1) for kind in OBJECTIVES}


@pytest.mark.parametrize(
    "text", ["0", "-1", "x", "1.5", "page=2", "context=", "context=2,context=3", "context=0", "4,context=2"]
)
def test_article_groups_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match="--article_group"):
        TrainingConfig(article_group=text)
