"""HTML to plain text: what a reader sees, one block element per line.

    from dataloader import clean_html_text
    clean_html_text("<p>A &amp; <a>B</a></p>")   # "A & B"

The markup is read by turbohtml's tokenizer (the WHATWG algorithm in C), not by a tree builder: text needs no
tree, and the tree rules of HTML take quadratic time or deep recursion on hostile input, the tokenizer
neither.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import partial

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
_UNSEEN = frozenset({"script", "style", "title", "iframe", "noembed", "noframes", "noscript"})
# What may stand in a head; any other tag ends it, as in a browser.
_HEAD_PARTS = frozenset({"base", "link", "meta", "noscript", "script", "style", "template", "title"})

# Looked up once: an enum's members are slow to reach, and a page has thousands of tokens.
_TEXT, _START, _END = TokenType.TEXT, TokenType.START_TAG, TokenType.END_TAG

_TAG = re.compile(r"<[a-zA-Z/!?]")
_REFERENCE = re.compile(r"&#?[0-9a-zA-Z]*;?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_RARE = re.compile("[\u1100-\u11ff\ud800-\udfff]")  # what makes a text need more than white space put in order
# Hangul as letters (U+1100 ...), with the syllable before them that they may complete. No other script is recomposed:
# sorting its combining marks, as normalisation does, takes quadratic time on a long run of them; letters are not sorted.
_HANGUL_LETTERS = re.compile("[\uac00-\ud7a3]?[\u1100-\u11ff]+")
_HANGUL = re.compile("[\uac00-\ud7a3\u1100-\u11ff]+")


def clean_html_text(text: str) -> str:
    """The visible text of an HTML document or fragment, or of plain text.

    Block elements (p, div, br, li, tr, headings ...) separate lines, table cells are separated by a space,
    inline tags join words exactly as in the source. DOCTYPE, head, script, noscript, style, title and comments go with
    their content; entities are decoded. Runs of white space become one space, blank lines vanish, the ends
    are stripped. In a text with markup a line break of the source is white space, as HTML has it; a text
    without any keeps its lines. Hangul written as letters (NFD, as macOS has it) becomes syllables (NFC). NUL
    characters are removed and lone surrogates become U+FFFD, so the result can always be encoded. Time is
    linear in the length of any input.

    The result is text, not HTML: no tag of the source is in it, and what looks like one was written with
    entities (`&lt;b&gt;` shows `<b>`) or put together from pieces of broken markup. As text it is final:
    escaped, it cleans to itself, `clean_html_text(html.escape(result)) == result`. Unescaped it does too,
    `clean_html_text(result) == result`, unless it holds what looks like a tag or an entity: clean only once.
    """
    return _tidy(_visible_text(text))


def clean_html_with_spans(
    html: str, spans: Sequence[tuple[int, int]], has_markup: bool | None = None
) -> tuple[str, list[tuple[int, int] | None]]:
    """Clean `html` and say where given character spans of it lie in the result.

    Returns `(clean_html_text(html), places)`: one `(start, end)` for each span of the source, in characters
    of the cleaned text, without white space at its ends; None where nothing of the span is left or where it
    begins or ends in content that is dropped. A boundary inside a tag counts as before that tag.

    `has_markup`: whether `html` is part of a text with markup, whose line breaks are white space; None looks
    at `html` alone.
    """
    # A mark goes through the tokenizer as text: a character that the source lacks around the boundary's number.
    mark = next(char for char in map(chr, range(0xE000, 0x110000)) if char not in html)
    boundaries = [_outside_markup(html, place) for span in spans for place in span]
    parts = _visible_text(_with_marks(html, boundaries, mark), has_markup).split(mark)
    raw = "".join(parts[::2])
    text = _tidy(raw)
    # A mark that is lost stood in dropped content and may have spoiled its end, such as the "-->" of a comment.
    if len(parts) < 2 * len(boundaries) + 1 and text != (unmarked := _tidy(_visible_text(html, has_markup))):
        return unmarked, [None] * len(spans)

    # Tidying moves white space and joins letters of Hangul: the n-th other character of the raw text is the n-th of the
    # cleaned one, counting letters where there are any.
    letters = bool(_HANGUL_LETTERS.search(raw))
    counted = 0
    count_at: dict[int, int] = {}
    for piece, number in zip(parts[::2], parts[1::2], strict=False):
        counted += _count_characters(_as_letters(piece) if letters else piece)
        count_at[int(number)] = counted
    locate: Callable[[int], int] = _locate_letters(text) if letters else partial(_locate, text)
    places: list[tuple[int, int] | None] = []
    for index in range(len(spans)):
        first, last = count_at.get(2 * index, 0), count_at.get(2 * index + 1, 0)
        found = 2 * index in count_at and first < last
        places.append((locate(first), locate(last - 1) + 1) if found else None)
    return text, places


def has_markup(text: str) -> bool:
    """Whether a text holds what a browser reads as a tag, a comment or a declaration."""
    return bool(_TAG.search(text))


def compose_hangul(text: str) -> str:
    """The text with Hangul letters (NFD) joined to syllables (NFC); everything else stays as it is."""
    if text.isascii():
        return text
    return _HANGUL_LETTERS.sub(lambda letters: unicodedata.normalize("NFC", letters.group()), text)


def _as_letters(text: str) -> str:
    return _HANGUL.sub(lambda syllables: unicodedata.normalize("NFD", syllables.group()), text)


def _visible_text(text: str, has_markup: bool | None = None) -> str:
    """Text with a line break for each block boundary and a space for each cell's, not yet tidy."""
    if "<" not in text and "&" not in text:
        return text.replace("\n", " ") if has_markup else text
    keep_lines = not (_TAG.search(text) if has_markup is None else has_markup)
    return "".join(_visible_pieces(text, keep_lines))


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
    text = text.replace("\0", "")
    if not text.isascii() and _RARE.search(text):
        text = compose_hangul(_SURROGATE.sub("\ufffd", text))
    if "\n" not in text:
        return " ".join(text.split())
    return "\n".join([" ".join(words) for words in map(str.split, text.split("\n")) if words])


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


def _locate(text: str, number: int) -> int:
    """Where the n-th character that is not white space stands in a tidy text."""
    counted, place = 0, number
    while counted < place:  # each step counts the white space that the last one moved over
        moved = text.count(" ", counted, place) + text.count("\n", counted, place)
        counted, place = place, place + moved
    return place if not text[place].isspace() else place + 1


def _locate_letters(text: str) -> Callable[[int], int]:
    """As `_locate` in `text`, each syllable of Hangul counted as its two or three letters."""
    owners = [i for i, character in enumerate(text) if not character.isspace() for _ in _as_letters(character)]
    return owners.__getitem__
