"""HTML to plain text: what a reader sees, one block element per line.

    from dataloader import clean_html_text
    clean_html_text("<p>A &amp; <a>B</a></p>")   # "A & B"

The markup is read by turbohtml's tokenizer (the WHATWG algorithm in C), not by a tree builder: text needs no
tree, and the tree rules of HTML take quadratic time or deep recursion on hostile input, the tokenizer
neither.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from turbohtml import TokenType, tokenize

# Elements that begin and end a line. Cells of a row stay on its line, a space between them.
_BLOCK_NAMES = """
    address article aside blockquote body br caption center colgroup dd details dialog dir div dl dt
    fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu
    nav ol optgroup option p pre search section summary table tbody tfoot thead tr ul
"""
_BLOCKS = frozenset(_BLOCK_NAMES.split())
_CELLS = frozenset({"td", "th"})
# Raw text that no browser shows. The tokenizer gives all of it as one text token before the end tag.
_UNSEEN = frozenset({"script", "style", "title", "iframe", "noembed", "noframes"})
# What may stand in a head; any other tag ends it, as in a browser.
_HEAD_PARTS = frozenset({"base", "link", "meta", "noscript", "script", "style", "template", "title"})

# Looked up once: an enum's members are slow to reach, and a page has thousands of tokens.
_TEXT, _START, _END = TokenType.TEXT, TokenType.START_TAG, TokenType.END_TAG

_TAG = re.compile(r"<[a-zA-Z/!?]")
_REFERENCE = re.compile(r"&#?[0-9a-zA-Z]*;?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORD = re.compile(r"\S+")


def clean_html_text(text: str) -> str:
    """The visible text of an HTML document or fragment, or of plain text.

    Block elements (p, div, br, li, tr, headings ...) separate lines, table cells are separated by a space,
    inline tags join words exactly as in the source. DOCTYPE, head, script, style, title and comments go with
    their content; entities are decoded. Runs of white space become one space, blank lines vanish, the ends
    are stripped. In a text with markup a line break of the source is white space, as HTML has it; a text
    without any keeps its lines, so the result is a fixed point unless entities decoded to markup. NUL
    characters are removed and lone surrogates become U+FFFD, so the result can always be encoded. Time is
    linear in the length of any input.
    """
    return _tidy(_visible_text(text))


def clean_html_with_spans(html: str, spans: Sequence[tuple[int, int]]) -> tuple[str, list[tuple[int, int] | None]]:
    """Clean `html` and say where given character spans of it lie in the result.

    Returns `(clean_html_text(html), places)`: one `(start, end)` for each span of the source, in characters
    of the cleaned text, without white space at its ends; None where nothing of the span is left or where it
    begins or ends in content that is dropped. A boundary inside a tag counts as before that tag.
    """
    # A mark goes through the tokenizer as text: a character that the source lacks around the boundary's number.
    mark = next(char for char in map(chr, range(0xE000, 0x110000)) if char not in html)
    boundaries = [_outside_markup(html, place) for span in spans for place in span]
    parts = _visible_text(_with_marks(html, boundaries, mark)).split(mark)
    text = _tidy("".join(parts[::2]))
    # A mark that is lost stood in dropped content and may have spoiled its end, such as the "-->" of a comment.
    if len(parts) < 2 * len(boundaries) + 1 and text != (unmarked := clean_html_text(html)):
        return unmarked, [None] * len(spans)

    # Tidying moves white space alone: the n-th other character of the raw text is the n-th of the cleaned one.
    counted = 0
    count_at: dict[int, int] = {}
    for piece, number in zip(parts[::2], parts[1::2], strict=False):
        counted += _count_characters(piece)
        count_at[int(number)] = counted
    locate = _Locator(text)
    places: list[tuple[int, int] | None] = []
    for index in range(len(spans)):
        first, last = count_at.get(2 * index, 0), count_at.get(2 * index + 1, 0)
        found = 2 * index in count_at and first < last
        places.append((locate(first), locate(last - 1) + 1) if found else None)
    return text, places


def _visible_text(text: str) -> str:
    """Text with a line break for each block boundary and a space for each cell's, not yet tidy."""
    if "<" not in text and "&" not in text:
        return text
    return "".join(_visible_pieces(text, keep_lines=not _TAG.search(text)))


def _visible_pieces(text: str, keep_lines: bool) -> Iterator[str]:
    unseen, in_head = "", False
    for token in tokenize(text, capture_attributes=False):
        kind = token.type
        if kind is _TEXT:
            if not unseen and not in_head:
                data = token.data or ""
                yield data if keep_lines else data.replace("\n", " ")
        elif kind is _START or kind is _END:
            tag, starts = token.tag or "", kind is _START
            if tag in _UNSEEN:
                unseen = tag if starts else ""
            in_head = (starts and tag == "head") or (in_head and tag in _HEAD_PARTS)
            if tag in _BLOCKS:
                yield "\n"
            elif tag in _CELLS:
                yield " "


def _tidy(text: str) -> str:
    text = _SURROGATE.sub("\ufffd", text.replace("\0", ""))
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def _count_characters(piece: str) -> int:
    """Characters of a raw piece that tidying keeps as they are, one for one."""
    return len("".join(piece.replace("\0", "").split()))


def _outside_markup(html: str, place: int) -> int:
    """`place`, or the beginning of the tag or entity that it would cut in two."""
    place = min(max(place, 0), len(html))
    opening = html.rfind("<", 0, place)
    if opening > html.rfind(">", 0, place) and _TAG.match(html, opening):
        return opening
    reference = _REFERENCE.match(html, max(html.rfind("&", 0, place), 0))
    if reference and reference.end() > place and _visible_text(reference.group()) != reference.group():
        return reference.start()
    return place


def _with_marks(html: str, boundaries: list[int], mark: str) -> str:
    pieces, done = [], 0
    for number, place in sorted(enumerate(boundaries), key=lambda item: item[1]):
        pieces += [html[done:place], mark, str(number), mark]
        done = place
    return "".join([*pieces, html[done:]])


class _Locator:
    """Where the n-th character that is not white space stands in a text."""

    def __init__(self, text: str):
        self._starts: list[int] = []
        self._counts: list[int] = []  # such characters before each word
        count = 0
        for word in _WORD.finditer(text):
            self._starts.append(word.start())
            self._counts.append(count)
            count += len(word.group())

    def __call__(self, number: int) -> int:
        word = bisect_right(self._counts, number) - 1
        return self._starts[word] + number - self._counts[word]
