"""Prepared articles: pairs, windows cut from stretches of a page, paragraphs, lengths."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloader import prepare
from dataloader.objectives import training_pair
from dataloader.prepare import prepare_article


def qa(question: str, answer, context: str = "") -> dict:
    return {"id": question, "question": question, "answer": answer, "answer_start": None, "context": context}


def page(context: str, *qas: dict) -> dict:
    return {"title": "제목", "url": "", "context": context, "paragraphs": [context], "qas": list(qas)}


def test_pairs_are_clean_and_have_nothing_else():
    article = page("<p>글</p>", qa("무엇&nbsp;?", {"text": "<b>일</b>", "html_answer_text": "x"}), qa("", ["", "이"]))
    assert prepare_article(article, "pairs") == {
        "title": "제목",
        "qas": [
            {"id": "무엇&nbsp;?", "question": "무엇 ?", "answers": ["일"]},
            {"id": "", "question": "", "answers": ["이"]},
        ],
    }


def test_windows_are_shared_and_numbered():
    found = prepare_article(page("<p>하나 둘 셋</p>", qa("1?", "하나"), qa("2?", "둘"), qa("3?", "없음")), "windows", 20)
    assert found["windows"] == ["하나 둘 셋"]
    assert [q["windows"] for q in found["qas"]] == [[0], [0], []]


@pytest.mark.parametrize(
    ("answers", "pair"),
    [
        (["부산", "서울"], None),  # the one that is taken is not in the page
        (["서울", "수도"], ("서울", "서울은 수도이다.")),
        (["<br>", "서울"], ("서울", "서울은 수도이다.")),  # the first has a place, and no text
    ],
)
def test_a_sentence_is_around_the_answer_that_is_taken(answers, pair):
    found = prepare_article(page("<p>글이다.<br> 서울은 수도이다. 끝이다.</p>", qa("무엇?", answers)), "windows", 99)
    assert training_pair("keyword", found["qas"][0], found["windows"]) == pair
    assert training_pair("context", found["qas"][0], found["windows"])


def test_paragraphs_are_windows():
    questions = [qa("1?", "가", "<b>가</b>나"), qa("2?", "다", " ")]
    article = {"title": "", "url": "", "context": "", "paragraphs": [" ", "<b>가</b>나", "라"], "qas": questions}
    found = prepare_article(article, "windows", 20)
    assert found["windows"] == ["가나", "라"]
    assert [q["windows"] for q in found["qas"]] == [[0], []]


def test_lengths_describe_contexts_and_answers():
    found = prepare_article(page("<p>하나 둘</p>", qa("1?", ["<br>", "<TD><b>하나</b></TD>"]), qa("2?", [])), "lengths")
    assert found["contexts"] == [(4, 11)]
    assert [q["elements"] for q in found["qas"]] == [["b", "td"], []]


@pytest.mark.parametrize("of_page", ["NFC", "NFD"])
@pytest.mark.parametrize("of_answer", ["NFC", "NFD"])
def test_an_answer_is_found_whatever_the_form_of_its_hangul(of_page, of_answer):
    context = unicodedata.normalize(of_page, "<p>앞말 <a>한글</a>은 쉽다 뒷말</p>")
    answer = {"text": unicodedata.normalize(of_answer, "한글</a>은"), "answer_start": 3}
    found = prepare_article(page(context, qa("무엇?", answer)), "windows", 4)
    assert found["windows"] == ["한글은"]
    assert found["qas"][0]["answers"] == ["한글은"]


# --- stretches against the whole page ---

WORDS = st.integers(0, 999).map(lambda n: f"낱말{n:03} ")
RUN = st.builds(lambda word, n: word * n, WORDS, st.integers(1, 40))
PIECES = (
    "<p>|</p>|<a>|</a>|<br>|<td>|&amp;|&nbsp;|<!-- 말 -->|<!-- <b> -->|<script>if (a<b) x</script>|<STYLE>p {}</STYLE >|\n|<"
    "|<head>|</head>|<title>말</title>|<title>|</title>|<!--|-->|<script>|</script>|<a b='>'>|<a b=\"|<x =|<!x>|<p "
    "|<textarea>|</textarea>|<header>|<noscript>|<svg>|<iframe>|</iframe>"
)
MARKUP = st.sampled_from(PIECES.split("|"))
PAGE = st.lists(RUN | RUN | MARKUP, min_size=1, max_size=25).map("".join)


@settings(max_examples=400, deadline=None)
@given(PAGE, st.data(), st.integers(5, 30))
def test_windows_cut_from_stretches_are_those_of_the_whole_page(context, data, size):
    place = data.draw(st.integers(0, max(len(context) - 6, 0)))
    answers = [{"text": context[at : at + 6], "answer_start": at} for at in {place, place // 2, len(context) // 2}]
    article = page(context, *(qa(f"{n}?", answer) for n, answer in enumerate(answers)))
    cut = prepare_article(article, "windows", size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_hidden_ranges", lambda _: None)
        assert cut == prepare_article(article, "windows", size)


def test_a_long_page_is_not_cleaned_whole(monkeypatch):
    cleaned = []
    whole = prepare.clean_html_with_spans
    monkeypatch.setattr(
        prepare, "clean_html_with_spans", lambda *args, **more: cleaned.append(len(args[0])) or whole(*args, **more)
    )
    head = '<html><head><script>a="<b>"</script></head><body>'
    context = head + "<p>낱말 <a>낱말</a></p>" * 5000 + "<p>답은 여기</p>" + "<p>낱말</p>" * 5000
    found = prepare_article(page(context, qa("?", "여기")), "windows", 20)
    assert "답은 여기" in found["windows"][0].replace("\n", " ")
    assert sum(cleaned) < 2000
