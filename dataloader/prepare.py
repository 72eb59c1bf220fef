"""Articles as files have them to what training and evaluation read of them: cleaned, narrow, ready to store.

    prepare_article(article, "windows", window=384)
    # {"title": ..., "windows": ["... the answer ...", ...],
    #  "qas": [{"id", "question", "answers", "windows": [0], "spans": [(4, 10)]}, ...]}

Loading does this in its worker processes, so that pages never travel. Three kinds of `fields`:

pairs     questions and answers, cleaned
windows   these, and cleaned text around each answer: for KorQuAD 2.1 windows cut from the page, for 1.0 the paragraphs;
          and where the answer is in it
lengths   the pairs, and what describes the rest: lengths of the contexts, HTML elements of the answers
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple, NotRequired, TypedDict

from dataloader.cleaning import clean_html_text, clean_html_with_spans, compose_hangul, has_markup

PREPARED_FIELDS = ("pairs", "windows", "lengths")
DEFAULT_WINDOW = 384


class PreparedQuestion(TypedDict):
    """A question as training and evaluation read it. `question` is "" and `answers` [] where cleaning leaves nothing."""

    id: str
    question: str
    answers: list[str]
    windows: NotRequired[list[int]]  # places in the article's `windows`, one for each answer that has a place
    # For each of them the answer's characters in it, where they are known and the answer is the one that training takes.
    spans: NotRequired[list[tuple[int, int] | None]]
    elements: NotRequired[list[str]]  # HTML elements in the source of the first answer, in alphabetical order


class PreparedArticle(TypedDict):
    """An article as training and evaluation read it; what is not asked for has no key."""

    title: str
    qas: list[PreparedQuestion]
    windows: NotRequired[list[str]]
    contexts: NotRequired[list[tuple[int, int]]]  # of page or paragraphs: characters when cleaned, and in the source


def is_prepared(article: Any) -> bool:
    """Whether an article is a PreparedArticle, not one with its whole text."""
    return "paragraphs" not in article


def prepare_article(article: dict[str, Any], fields: str, window: int = DEFAULT_WINDOW) -> PreparedArticle:
    """What `fields` names of an article of `load_json_file`; a window has at most `window` characters."""
    qas: list[PreparedQuestion] = [
        {"id": qa["id"], "question": clean_html_text(qa["question"]), "answers": list(_clean_answers(qa))}
        for qa in article["qas"]
    ]
    prepared: PreparedArticle = {"title": article["title"], "qas": qas}
    if fields == "windows":
        is_page = bool(article["context"])  # KorQuAD 1.0 has paragraphs instead
        prepared["windows"] = _cut_windows(article, qas, window) if is_page else _take_paragraphs(article, qas)
    if fields == "lengths":
        prepared["contexts"] = [(len(clean_html_text(text)), len(text)) for text in article["paragraphs"]]
        for qa, source in zip(qas, article["qas"], strict=True):
            qa["elements"] = _elements(source)
    return prepared


def answers_of(qa: dict[str, Any]) -> list[dict | str]:
    """The answers of a question as the file has them, always as a list."""
    return qa["answer"] if isinstance(qa["answer"], list) else [qa["answer"]]


def source_text(answer: dict | str) -> str:
    """The text of an answer as the file has it."""
    return answer if isinstance(answer, str) else answer["text"]


def _taken_answer(qa: dict[str, Any]) -> dict | str | None:
    """The answer that training takes: the first with text, if there are several."""
    answers = answers_of(qa)
    if len(answers) == 1:  # nearly always, and cleaning it again takes time
        return answers[0]
    return next((answer for answer in answers if clean_html_text(source_text(answer))), None)


def _clean_answers(qa: dict[str, Any]) -> Iterator[str]:
    """The question's answers that have text, cleaned."""
    cleaned = (clean_html_text(source_text(answer)) for answer in answers_of(qa))
    return (text for text in cleaned if text)


# A start or end tag; the possessive quantifiers keep the search linear on any input.
_TAG_NAME = re.compile(r"</?([a-zA-Z][a-zA-Z0-9]*+)[^<>]*+>")


def _elements(qa: dict[str, Any]) -> list[str]:
    """HTML elements of the answer that training takes; where none has text, of the first."""
    taken = _taken_answer(qa) or next(iter(answers_of(qa)), "")
    return sorted({name.lower() for name in _TAG_NAME.findall(source_text(taken))})


# --- paragraphs (KorQuAD 1.0) -------------------------------------------------------------------------------


def _take_paragraphs(article: dict[str, Any], qas: list[PreparedQuestion]) -> list[str]:
    """Every paragraph with text is a window, asked about or not; each question gets its own."""
    numbers: dict[str, int] = {}
    asked: dict[str, list[int]] = {}
    for number, source in enumerate(article["qas"]):
        asked.setdefault(source["context"], []).append(number)
        qas[number]["windows"], qas[number]["spans"] = [], []
    for paragraph in dict.fromkeys(article["paragraphs"]):
        places = {number: _place_of_answer(article["qas"][number], paragraph) for number in asked.get(paragraph, [])}
        text, spans = clean_html_with_spans(paragraph, [place for place in places.values() if place])
        if not text:
            continue
        window = numbers.setdefault(text, len(numbers))
        span_of = dict(zip((number for number, place in places.items() if place), spans, strict=True))
        for number in places:
            if qas[number]["question"]:
                qas[number]["windows"], qas[number]["spans"] = [window], [span_of.get(number)]
    return list(numbers)


def _place_of_answer(qa: dict[str, Any], paragraph: str) -> tuple[int, int] | None:
    """Where in its paragraph the answer is that training takes."""
    taken = _taken_answer(qa)
    return _find(taken, paragraph) if taken is not None else None


# --- windows (KorQuAD 2.1) ----------------------------------------------------------------------------------

# Windows are cut from stretches of the page around the answers, each cleaned alone: a fraction of the work of cleaning
# the page. A stretch holds this many times the window's size of source on each side, more where that is mostly markup.
_REACH, _REACH_FURTHER = 2, 3
# Cleaned characters at the edge of a stretch that may differ from those of the page: half an entity, half a word.
_FRINGE = 64


class _Stretch(NamedTuple):
    """A part of a page, where it lies in it, and the places in the page, by their number, that it holds."""

    start: int
    end: int
    places: dict[int, tuple[int, int]]


class _Cleaned(NamedTuple):
    """The text of a stretch and where its places are in it; None where nothing of a place can be seen."""

    text: str
    spans: dict[int, tuple[int, int] | None]


def _cut_windows(article: dict[str, Any], qas: list[PreparedQuestion], size: int) -> list[str]:
    """A window of the page around each answer.

    An answer that lies wholly inside a window already cut from the page shares it: two windows that differ by
    a few words would be two right answers, of which only one counts.
    """
    page = article["context"]
    found = [
        (number, place, answer is taken)
        for number, qa in enumerate(article["qas"])
        if qas[number]["question"]
        for taken in [_taken_answer(qa)]
        for answer in answers_of(qa)
        if (place := _find(answer, page))
    ]
    for qa in qas:
        qa["windows"], qa["spans"] = [], []
    windows: list[str] = []
    cut: list[tuple[int, int, int]] = []  # of each window: the stretch, the start and the end in it
    cleaned = _clean_around(page, [place for _, place, _ in found], size)
    stretch_of = {index: number for number, stretch in enumerate(cleaned) for index in stretch.spans}
    for index, (number, _, is_taken) in enumerate(found):
        where = stretch_of[index]
        text, spans = cleaned[where]
        if (span := spans[index]) is None:
            continue
        shared = [i for i, (other, start, end) in enumerate(cut) if other == where and start <= span[0] and span[1] <= end]
        if not shared:
            start, end = _window(text, *span, size=size)
            shared = [len(windows)]
            windows.append(text[start:end])
            cut.append((where, start, end))
        _, start, end = cut[shared[0]]
        qas[number]["windows"].append(shared[0])
        qas[number]["spans"].append((span[0] - start, min(span[1], end) - start) if is_taken else None)
    return windows


def _find(answer: dict | str, page: str) -> tuple[int, int] | None:
    """Where the answer is in its page: at answer_start if that is right, else where it first occurs."""
    text = source_text(answer)
    if not text.strip():
        return None
    start = answer.get("answer_start") if isinstance(answer, dict) else None
    if start is None or start < 0 or not page.startswith(text, start):
        start = page.find(text)
    return (start, start + len(text)) if start >= 0 else _find_composed(compose_hangul(text), page)


def _find_composed(text: str, page: str) -> tuple[int, int] | None:
    """Where an answer is whose Hangul is written as letters in the page and as syllables in the answer, or reversed."""
    start = compose_hangul(page).find(text)
    if start < 0:
        return None

    def in_source(place: int) -> int:
        """The end of the source characters that make the first `place` composed ones."""
        return bisect_right(range(len(page) + 1), place, key=lambda end: len(compose_hangul(page[:end]))) - 1

    return in_source(start), in_source(start + len(text))


def _window(text: str, start: int, end: int, size: int) -> tuple[int, int]:
    """At most `size` characters of the text centred on `start:end`, cut between words.

    Near an end of the text the window reaches further on the other side. An answer longer than the window
    gives the answer's beginning.
    """
    first = start if end - start >= size else max(0, min(start - (size - (end - start)) // 2, len(text) - size))
    last = min(first + size, len(text))
    if first > 0 and not text[first - 1].isspace():
        first = next((i + 1 for i in range(first, start) if text[i].isspace()), start)
    if last < len(text) and not text[last].isspace():
        floor = end if end <= last else first + 1
        last = next((i for i in range(last - 1, floor - 1, -1) if text[i].isspace()), last)
    return first, last


# --- cleaning no more of a page than its windows need -------------------------------------------------------


def _clean_around(page: str, places: list[tuple[int, int]], size: int) -> list[_Cleaned]:
    """The cleaned text around the places of a page, enough for windows of `size`: stretches, or the whole page.

    Windows cut from stretches are those of the whole page: a stretch begins where the page's parser is between tags and
    outside of comments, scripts and the head. Where that cannot be told from a glance, the whole page is cleaned.
    """
    hidden = _hidden_ranges(page) if places else None
    reach = _REACH * size
    while hidden is not None:
        stretches = _stretches(page, places, reach, hidden)
        if 2 * sum(stretch.end - stretch.start for stretch in stretches) > len(page):
            break
        cleaned = [_clean_stretch(page, stretch) for stretch in stretches]
        if all(_is_enough(*both, size, len(page)) for both in zip(stretches, cleaned, strict=True)):
            return cleaned
        reach *= _REACH_FURTHER
    text, spans = clean_html_with_spans(page, places)
    return [_Cleaned(text, dict(enumerate(spans)))]


def _stretches(page: str, places: list[tuple[int, int]], reach: int, hidden: list[tuple[int, int]]) -> list[_Stretch]:
    """What lies within `reach` characters of a place; what overlaps is one."""
    stretches: list[_Stretch] = []
    for number, (start, end) in sorted(enumerate(places), key=lambda item: item[1]):
        first, last = _safe_start(page, max(start - reach, 0), hidden), min(end + reach, len(page))
        if stretches and first <= stretches[-1].end:
            before = stretches.pop()
            first, last = before.start, max(before.end, last)
            stretches.append(_Stretch(first, last, before.places | {number: (start, end)}))
        else:
            stretches.append(_Stretch(first, last, {number: (start, end)}))
    return stretches


def _clean_stretch(page: str, stretch: _Stretch) -> _Cleaned:
    places = [(start - stretch.start, end - stretch.start) for start, end in stretch.places.values()]
    text, spans = clean_html_with_spans(page[stretch.start : stretch.end], places, has_markup=True)
    return _Cleaned(text, dict(zip(stretch.places, spans, strict=True)))


def _is_enough(stretch: _Stretch, cleaned: _Cleaned, size: int, page_length: int) -> bool:
    """Whether windows of `size` end well inside the stretch, or at an end of the page."""
    spans = [span for span in cleaned.spans.values() if span]
    needed = size // 2 + 1 + _FRINGE  # a window is centred; one that begins with a long answer needs less
    left = stretch.start == 0 or all(start >= needed for start, _ in spans)
    return left and (stretch.end == page_length or all(len(cleaned.text) - end >= needed for _, end in spans))


# What changes how the text after it is read, up to an end of its own. Found in two steps: most tags of a page are none of
# these, and two characters tell so several times faster than the alternatives do.
_SUSPECT = re.compile(r"<[!hHsStTiInNxXpP][-\[eEcCtTiIfFoOmMlL]")
_STATEFUL = re.compile(
    r"<(!--|!\[|(?:head|script|style|title|iframe|noembed|noframes|noscript|textarea|xmp|plaintext)(?=[\s/>]))",
    re.IGNORECASE,
)
_QUOTED_VALUE = re.compile(r"""=\s*["']""")


def _hidden_ranges(page: str) -> list[tuple[int, int]] | None:
    """Where comments, scripts, styles and the head lie in a page; None where a parser is needed to tell.

    The page must be as KorQuAD 2.1 has it: tags without quoted attributes (so that each ends at the next ">"), one
    head, and nothing that looks like the beginning of another such range inside one.
    """
    if not has_markup(page):
        return None
    hidden: list[tuple[int, int]] = []
    head, done = None, 0
    for suspect in _SUSPECT.finditer(page):
        tag = _STATEFUL.match(page, suspect.start())
        if not tag:
            continue
        name = tag[1].lower()
        if tag.start() < done or name in ("![", "textarea", "xmp", "plaintext") or (name == "head" and head):
            return None
        if name == "head":
            head = tag
            continue
        done = _end_of_comment(page, tag.end()) if name == "!--" else _end_of_element(page, tag.end(), name)
        if not done:
            return None
        hidden.append((tag.start(), done))
    if head:
        end = _end_of_element(page, head.end(), "head")
        if not end or any(start < end < last for start, last in hidden):
            return None
        before, after = (bisect_right(hidden, (place, 0)) for place in (head.start(), end))
        hidden[before:after] = [(head.start(), end)]
    edges = [0, *(edge for both in hidden for edge in both), len(page)]
    seen = zip(edges[::2], edges[1::2], strict=True)
    return None if any(_QUOTED_VALUE.search(page, start, end) for start, end in seen) else hidden


def _end_of_comment(page: str, at: int) -> int:
    """Where a comment whose text begins at `at` ends, 0 where it has no plain end."""
    end = page.find("-->", at)
    early = page.startswith((">", "->"), at) or page.find("--!>", at, end) >= 0
    return 0 if end < 0 or early else end + len("-->")


def _end_of_element(page: str, at: int, name: str) -> int:
    """Where the end tag of an element begins, 0 where there is none."""
    end = _END_TAGS[name].search(page, at)
    return end.start() if end else 0


_END_TAGS = {
    name: re.compile("</" + "".join(f"[{c}{c.upper()}]" for c in name) + r"(?=[\s/>])")
    for name in ("head", "script", "style", "title", "iframe", "noembed", "noframes", "noscript")
}


def _safe_start(page: str, place: int, hidden: list[tuple[int, int]]) -> int:
    """The last tag that begins at `place` or before it and is not hidden; 0 where there is none."""
    while (place := page.rfind("<", 0, place + 1)) >= 0:
        range_before = bisect_right(hidden, (place, len(page))) - 1
        if range_before >= 0 and place < hidden[range_before][1]:
            return hidden[range_before][0]
        if has_markup(page[place : place + 2]):
            return place
        place -= 1
        if place < 0:
            break
    return 0
