"""The embedded sample: KorQuAD 2.1's layout, true offsets, and the script that builds it."""

import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
import yaml

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample"
FILES = [SAMPLE / f"KorQuAD_2.1_train_{n}" / f"korquad2.1_train_{n}.json" for n in ("00", "01")]
CONTENTS = [json.loads(file.read_text(encoding="utf-8")) for file in FILES]
ARTICLES = [article for content in CONTENTS for article in content["data"]]
ANSWERS = [(article, qa) for article in ARTICLES for qa in article["qas"]]


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_sample", SAMPLE / "build_sample.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_layout_is_korquad_2_1s():
    assert [set(content) for content in CONTENTS] == [{"version", "data"}] * 2
    assert [content["version"] for content in CONTENTS] == ["KorQuAD_2.1_train_00", "KorQuAD_2.1_train_01"]
    for article in ARTICLES:
        assert set(article) == {"title", "url", "context", "raw_html", "qas"}
        assert article["url"].startswith("https://example.org/wiki/")
    for _, qa in ANSWERS:
        assert set(qa) == {"id", "question", "answer"}
        assert set(qa["answer"]) == {"text", "answer_start", "html_answer_text", "html_answer_start"}


def test_size_and_uniqueness():
    assert sum(file.stat().st_size for file in FILES) < 3_000_000
    assert len(ARTICLES) >= 120
    assert len(ANSWERS) >= 600
    assert abs(len(CONTENTS[0]["data"]) - len(CONTENTS[1]["data"])) <= 1
    assert len({article["title"] for article in ARTICLES}) == len(ARTICLES)
    assert len({qa["id"] for _, qa in ANSWERS}) == len(ANSWERS)
    assert len({qa["question"] for _, qa in ANSWERS}) == len(ANSWERS)


def test_every_offset_is_true_in_both_versions():
    for article, qa in ANSWERS:
        answer = qa["answer"]
        for page, text, start in (
            ("context", "text", "answer_start"),
            ("raw_html", "html_answer_text", "html_answer_start"),
        ):
            assert answer[text], qa["id"]
            assert article[page][answer[start] :].startswith(answer[text]), (qa["id"], page)


def test_context_is_the_raw_page_without_attributes():
    for article in ARTICLES:
        body = re.sub(r"<([a-z][a-z0-9]*) [^>]*>", r"<\1>", article["raw_html"])
        assert body == article["context"], article["title"]
    for _, qa in ANSWERS:
        assert re.sub(r"<([a-z][a-z0-9]*) [^>]*>", r"<\1>", qa["answer"]["html_answer_text"]) == qa["answer"]["text"]


class TagBalance(HTMLParser):
    """Collects tags that do not pair up."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_pages_and_answers_are_balanced_html():
    texts = [article["raw_html"] for article in ARTICLES] + [qa["answer"]["text"] for _, qa in ANSWERS]
    for text in texts:
        balance = TagBalance()
        balance.feed(text)
        assert (balance.open, balance.wrong) == ([], []), text[:80]


def test_pages_have_what_cleaning_must_cope_with():
    for article in ARTICLES:
        for part in (
            "<!DOCTYPE html>",
            "<head>",
            "<script>",
            "<style>",
            "<!--",
            "&amp;",
            '<table class="infobox"',
            "<th",
            "<td>",
        ):
            assert part in article["raw_html"], (article["title"], part)
    everything = "".join(article["context"] for article in ARTICLES)
    for part in ("&nbsp;", "&lt;", "&gt;", "<ul><li>", "<a>"):
        assert part in everything
    assert any("&nbsp;" in qa["answer"]["text"] for _, qa in ANSWERS)
    assert any("<a>" in qa["answer"]["text"] for _, qa in ANSWERS)


def test_all_kinds_of_answers_are_there():
    texts = [qa["answer"]["text"] for _, qa in ANSWERS]
    tables = [t for t in texts if t.startswith("<table><tbody>") and t.endswith("</tbody></table>")]
    lists = [t for t in texts if t.startswith("<ul><li>") and t.endswith("</li></ul>")]
    sentences = [t for t in texts if t.endswith(".") and len(t) > 25]
    short = len(texts) - len(tables) - len(lists) - len(sentences)
    for kind in (tables, lists):
        assert len(kind) > 0.04 * len(texts)
    assert len(sentences) > 0.15 * len(texts)
    assert short > 0.5 * len(texts)


def test_answers_are_the_ones_the_articles_give(builder: ModuleType):
    built = {qa["question"]: qa["answer"]["text"] for _, qa in ANSWERS}
    given = [question for _, article in builder.load_articles() for question in article["questions"]]
    assert len(given) == len(built)
    for question in given:
        if "answer" in question:
            text = re.sub("<[^>]+>", "", built[question["question"]])
            assert builder.html.unescape(text).replace("\xa0", " ") == question["answer"]


def test_building_again_gives_the_committed_bytes(builder: ModuleType, tmp_path: Path):
    for built, committed in zip(builder.build(tmp_path), FILES, strict=True):
        assert built.read_bytes() == committed.read_bytes(), (
            f"{committed} is not what the articles give: run `python data/sample/build_sample.py`"
        )


# One article by hand: links, an entity, a hard space, a list.
ARTICLE = yaml.safe_load("""
title: 갑
infobox: {넓이: 약 3 km²}
sections:
  - heading: 개요
    text: |
      [[을]]과 [[병 정]]은 a < b이다. 끝이다.
  - heading: 목록
    text: 본문이다.
    list: [하나, "[[둘]]"]
questions: []
""")


@pytest.mark.parametrize(
    ("question", "context", "raw"),
    [
        ({"answer": "3 km²", "in": "인포박스"}, "3&nbsp;km²", "3&nbsp;km²"),
        ({"answer": "을", "in": "개요"}, "<a>을</a>", '<a href="/wiki/%EC%9D%84" title="을">을</a>'),
        ({"answer": "정", "in": "개요"}, "정", "정"),
        (
            {"answer": "과 병 정은 a < b", "in": "개요"},
            "과 <a>병 정</a>은 a &lt; b",
            '과 <a href="/wiki/%EB%B3%91_%EC%A0%95" title="병 정">병 정</a>은 a &lt; b',
        ),
        ({"answer": "끝이다.", "in": "개요"}, "끝이다.", "끝이다."),
        ({"kind": "list", "in": "목록"}, "<ul><li>하나</li><li><a>둘</a></li></ul>", None),
        (
            {"kind": "table"},
            "<table><tbody><tr><th>갑</th></tr>\n<tr><th>넓이</th><td>약 3&nbsp;km²</td></tr>\n</tbody></table>",
            None,
        ),
    ],
)
def test_an_answer_by_hand(builder: ModuleType, question: dict[str, str], context: str, raw: str | None):
    entry = builder.build_entry({**ARTICLE, "questions": [{"question": "?", "kind": "short", **question}]}, iter([7]))
    answer = entry["qas"][0]["answer"]
    assert entry["qas"][0]["id"] == "s00007"
    assert answer["text"] == context
    assert entry["context"][answer["answer_start"] :].startswith(context)
    assert raw is None or answer["html_answer_text"] == raw


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"answer": "없다", "in": "개요"}, "갑: '어디\\?': the answer '없다' is not in the section '개요'"),
        ({"answer": "을", "in": "없는 절"}, "not in the section '없는 절'"),
        ({"answer": "정은", "in": "개요"}, r"cuts through the link \[\[병 정\]\]"),
        ({"kind": "list", "in": "개요"}, "the section '개요' has no list"),
        ({"answer": "을"}, "the key 'in' is missing"),
    ],
)
def test_an_answer_that_is_not_there_is_named(builder: ModuleType, question: dict[str, str], message: str):
    article = {**ARTICLE, "questions": [{"question": "어디?", "kind": "short", **question}]}
    with pytest.raises(builder.ArticleError, match=message):
        builder.build_entry(article, iter([1]))
