"""HTML to text: what is kept, what goes, where lines break, hostile input, spans."""

import html
import re
import time
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataloader.cleaning import clean_html_text, clean_html_with_spans

CASES = {
    "plain": ("  서울은\t 수도 이다. ", "서울은 수도 이다."),
    "plain lines stay": ("첫 줄\r\n\n  둘째 줄 \n", "첫 줄\n둘째 줄"),
    "empty": ("", ""),
    "only tags": ("<p><br></p>", ""),
    "inline tags join as in the source": ("<p><a>1926년</a>에 <b>태어</b>났다</p>", "1926년에 태어났다"),
    "sup stays": ("표명<sup><a>[6]</a></sup><sup>[7]</sup> 하였다", "표명[6][7] 하였다"),
    "ruby": ("<ruby><rb>漢</rb><rp>(</rp><rt>한</rt><rp>)</rp></ruby>", "漢(한)"),
    "a line break in markup is a space": ("<p>하나\n둘</p>\n<p>셋</p>", "하나 둘\n셋"),
    "blocks separate": ("<h1>제목</h1><p>하나<p>둘<div>셋</div>넷<br>다섯<br/>여섯", "제목\n하나\n둘\n셋\n넷\n다섯\n여섯"),
    "list": ("<ul><li>하나</li><li>둘<ul><li>셋</li></ul></li></ul>", "하나\n둘\n셋"),
    "definition list": ("<dl><dt>말</dt><dd>뜻</dd></dl>", "말\n뜻"),
    "table": (
        "<table><caption>표</caption><tbody><tr>\n<th>이름\n</th>\n<th>값</th></tr>\n<tr><td>가</td><td>1</td></tr></tbody></table>",
        "표\n이름 값\n가 1",
    ),
    "cells without a table": ("<td>8</td><td>9</td>", "8 9"),
    "rows without a table": ("<tr><td>1</td></tr><tr><td>2</td></tr>", "1\n2"),
    "text astray in a table keeps its place": ("<table>가<tr><td>나</table>다", "가\n나\n다"),
    "entities": ("a&nbsp;&lt;b&gt; &amp;amp; &#44032; &hellip;", "a <b> &amp; 가 …"),
    "entities without markup keep lines": ("A &amp; B\nC", "A & B\nC"),
    "an ampersand alone": ("R&B, AT&T & Co", "R&B, AT&T & Co"),
    "less-than is no tag": ("1 < 2 <- <3 <가나>", "1 < 2 <- <3 <가나>"),
    "a fragment cut inside the next tag": ("<p>글</p><", "글\n<"),
    "attributes": ("""<a title="x > y" href='<b>'>글</a>""", "글"),
    "doctype, head, comment": (
        "<!DOCTYPE html><html><head><meta charset=x><title>제목</title>말</head><body>글<!-- <p>말</p> --></body></html>",
        "글",
    ),
    "a head that is not closed": ("<head><title>제목</title><p>글", "글"),
    "script and style": ("하나<script>if (a < b) x = '<p>말</p>'</script>둘<STYLE>p {}</STYLE >셋", "하나둘셋"),
    "script unclosed": ("글<script>x = 1", "글"),
    "title astray": ("글<title>말</title>글", "글글"),
    "iframe": ("글<iframe><p>말</iframe>", "글"),
    "noscript": ("글<noscript><img src=x><p>말</noscript>", "글"),
    "white space of every kind": ("가\u00a0\u3000\u2003나<i>\t다</i>", "가 나 다"),
    "NUL": ("가\0나<p>\0</p>", "가나"),
    "Hangul as letters": ("\u1112\u1161\0\u11ab\u1100\u1173\u11af 가\u11a8 <b>\u1100</b>\u1161", "한글 각 가"),
    "other combining marks stay": ("e\u0301\u0323", "e\u0301\u0323"),
    "lone surrogates": ("가\ud800<b>나\udfff</b>😀", "가\ufffd나\ufffd😀"),
}


@pytest.mark.parametrize(("source", "expected"), CASES.values(), ids=CASES)
def test_cases(source, expected):
    assert clean_html_text(source) == expected


# --- any text at all ---

TAG_NAMES = "p a b span div td tr table li ul br script style title head html svg select template x"
TAG = st.builds(str.format, st.sampled_from(["<{}>", "</{}>", "<{} a='>'", "<{}/>"]), st.sampled_from(TAG_NAMES.split()))
PIECES = (
    TAG
    | st.sampled_from(["<!--", "-->", "<!DOCTYPE html>", "&amp;", "&lt", "&#", "<", ">", "&", "\n", " ", "\0", "\ud800"])
    | st.text(max_size=5)
)
HTML = st.lists(PIECES, max_size=25).map("".join)


@settings(max_examples=300, deadline=None)
@given(HTML)
def test_any_text_gives_tidy_lines_that_can_be_encoded(source):
    text = clean_html_text(source)
    text.encode("utf-8")
    assert "\0" not in text
    assert all(line == " ".join(line.split()) != "" for line in text.split("\n")) or text == ""


@settings(max_examples=200, deadline=None)
@given(st.lists(TAG | st.text("가나a >=/'\n", max_size=5), max_size=25).map("".join))
def test_no_markup_comes_out(source):
    assert "<" not in clean_html_text(source)


@settings(max_examples=200, deadline=None)
@given(HTML)
def test_the_result_is_a_fixed_point(source):
    text = clean_html_text(source)
    if not re.search("<[a-zA-Z/!?]|&", text):  # what entities decode to may look like markup
        assert clean_html_text(text) == text


@settings(max_examples=300, deadline=None)
@given(HTML)
def test_the_result_is_text_whose_html_cleans_to_it_again(source):
    text = clean_html_text(source)
    assert clean_html_text(html.escape(text, quote=False)) == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=8) | TAG.filter(lambda tag: not re.search("script|style|title|head", tag)), max_size=12))
def test_what_the_page_shows_comes_out_whatever_the_tags_around_it(pieces):
    source = "<i>" + "".join(piece if TAG_LIKE.fullmatch(piece) else html.escape(piece) for piece in pieces)
    shown = "".join(piece for piece in pieces if not TAG_LIKE.fullmatch(piece))
    wanted = "".join(clean_html_text(html.escape(shown)).split())
    assert "".join(clean_html_text(source).split()) == wanted


TAG_LIKE = re.compile("</?[a-z]+( a='>'|/)?>")


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="한글 각\u1100\u1161\u11a8<b>\n", max_size=30))
def test_hangul_as_letters_and_as_syllables_give_one_text(source):
    letters, syllables = (unicodedata.normalize(form, source) for form in ("NFD", "NFC"))
    assert clean_html_text(letters) == clean_html_text(syllables)


# --- hostile input ---

HOSTILE = {
    "<script": "<script",
    "<script>": "<script>",
    "<a>": "<a>",
    "<div>x": "<div>x",
    "<table><tr><td>": "<table><tr><td>",
    "<": "<",
    "<!--": "<!--",
    "</p>": "</p>",
    "&": "&",
    "&#9": "&#9",
    "<a b='": "<a b='",
    "NUL": "\0<p>",
    "surrogates": "\udc00<b>",
    "letters of Hangul": "\u1100\u1161",
    "combining marks": "\u0315\u0300",
}


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_a_megabyte_of_one_thing_takes_a_moment(unit):
    source = unit * (1_000_000 // len(unit))
    started = time.process_time()
    clean_html_text(source)
    assert time.process_time() - started < 4  # about .3 s; quadratic time would take minutes


def test_ten_megabytes_of_less_than():
    started = time.process_time()
    assert clean_html_text("<" * 10_000_000).strip("<") == ""
    assert time.process_time() - started < 20  # about 3 s


def test_deep_nests_and_many_names_take_a_moment():
    nests = "<span>" * 50_000 + "<p>" * 50_000 + "글" + "</div>" * 50_000
    names = "".join(f"<x{number} a{number}>" for number in range(50_000)) + "글"
    started = time.process_time()
    assert clean_html_text(nests) == clean_html_text(names) == "글"
    assert time.process_time() - started < 8


def test_script_repeated_20000_times():
    assert clean_html_text("글" + "<script" * 20_000) == "글"


# --- spans ---


def places(source: str, *wanted: str) -> list[str | None]:
    """The cleaned text at the spans where `wanted` stand in the source."""
    spans = [(source.index(text), source.index(text) + len(text)) for text in wanted]
    text, found = clean_html_with_spans(source, spans)
    assert text == clean_html_text(source)
    return [text[slice(*span)] if span else None for span in found]


def test_spans_are_found_in_the_cleaned_text():
    source = "<p>서울은 <a>대한민국</a>의\n 수도이다.</p><ul><li>하나 &amp; 둘</li></ul>"
    wanted = ("서울", "<a>대한민국</a>의\n 수도", "<li>하나 &amp; 둘</li>", "</p><ul>")
    assert places(source, *wanted) == ["서울", "대한민국의 수도", "하나 & 둘", None]
    assert clean_html_with_spans(source, []) == (clean_html_text(source), [])


def test_spans_may_overlap_and_come_in_any_order():
    text, found = clean_html_with_spans("<b>가나다</b>라", [(4, 8), (3, 5), (3, 3), (0, 99), (-5, 4)])
    assert text == "가나다라"
    assert found == [(1, 3), (0, 2), None, (0, 4), (0, 1)]


def test_the_right_one_of_equal_texts_is_found():
    source = "<td>1</td><td>1</td>"
    assert clean_html_with_spans(source, [(14, 15)]) == ("1 1", [(2, 3)])


def test_a_span_that_ends_inside_the_next_tag_ends_before_it():
    source = "<p>글</p><p>말</p>"
    assert places(source, "<p>글</p><", "글</") == ["글", "글"]


def test_spans_in_dropped_content_vanish():
    source = "글<script>var x</script><!-- a > b --><img alt='말 > 글'>끝"
    assert places(source, "var", "b --", "말", "끝") == [None, None, None, None]
    assert places(source, "var", "b", "말", "끝") == [None, None, None, "끝"]


def test_an_ampersand_does_not_shift_a_span():
    assert places("AT&T와 R&B", "AT&T", "R&B") == ["AT&T", "R&B"]
    assert clean_html_with_spans("가 &lt;나", [(0, 4)]) == ("가 <나", [(0, 1)])


def test_private_use_characters_of_the_source_stay():
    assert clean_html_with_spans("\ue000가<b>\ue001</b>", [(1, 2)]) == ("\ue000가\ue001", [(1, 2)])


def test_spans_of_hangul_as_letters_are_found():
    source = unicodedata.normalize("NFD", "<p>한글은 <a>각</a>자 쓴다</p>")
    wanted = unicodedata.normalize("NFD", "<a>각</a>자")
    assert places(source, wanted) == ["각자"]


@settings(max_examples=300, deadline=None)
@given(HTML, st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=4))
@example("<!-- a > b -->글", [(12, 13)])
@example("a&#00000000000000000000000000000000000000038;b", [(10, 46)])
def test_spans_never_change_the_text(source, spans):
    text, found = clean_html_with_spans(source, spans)
    assert text == clean_html_text(source)
    assert len(found) == len(spans)
    for place in filter(None, found):
        inside = text[slice(*place)]
        assert inside == inside.strip() != ""


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="가나 \n\t", max_size=30), st.integers(0, 30), st.integers(0, 30))
def test_a_span_of_plain_text_holds_the_same_characters(source, start, end):
    text, (place,) = clean_html_with_spans(source, [(start, end)])
    wanted = "".join(source[start:end].split())
    assert ("".join(text[slice(*place)].split()) if place else "") == wanted
