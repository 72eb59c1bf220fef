"""Long passages → overlapping windows that the model reads whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# The tokens' places in each text, as (first character, one behind the last); special tokens are counted, too, at (0, 0).
TokenSpans = Callable[[list[str]], Sequence[Sequence[tuple[int, int]]]]
Span = tuple[int, int]

_OVERLAP = 4  # windows share one in so many tokens: what one window's edge cuts in two is whole in the next
_WORD = 8  # an edge moves by at most one in so many tokens to stand between words
_STRETCH = 20_000  # characters tokenised at once
_TEXTS_AT_ONCE = 256


def split_into_windows(texts: Sequence[str], token_spans: TokenSpans, prompt: str, limit: int | None) -> list[list[Span]]:
    """For each text the windows to encode, as character spans that together cover it; one where the model reads it whole.

    Args:
        token_spans: tokenizes without cutting anything off.
        prompt: what stands before each window when it is encoded.
        limit: tokens that the model reads, the prompt's and the special ones included. None: any number.
    """
    windows: list[list[Span]] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[start : start + _TEXTS_AT_ONCE]
        short = [prompt + text for text in some if len(text) <= _STRETCH]
        counts = iter([len(tokens) for tokens in token_spans(short)] if limit and short else [])
        for text in some:
            fits = limit is None or (len(text) <= _STRETCH and next(counts) <= limit)
            windows.append([(0, len(text))] if fits else _windows(text, token_spans, prompt, limit or 0))
    return windows


def _windows(text: str, token_spans: TokenSpans, prompt: str, limit: int) -> list[Span]:
    starts = _token_starts(text, token_spans)
    room = max(limit - len(token_spans([prompt])[0]), 1)
    places = [*starts, len(text)]  # a window of tokens i to j-1 is text[places[i]:places[j]]
    windows: list[Span] = []
    i = end = 0
    while end < len(starts):
        end = min(i + room, len(starts))
        if end < len(starts):
            end = _between_words(text, places, end, max(end - room // _WORD, i + 1))
        # Cut out of its text, a window may have more tokens than it had there.
        while (excess := len(token_spans([prompt + text[places[i] : places[end]]])[0]) - limit) > 0 and end > i + 1:
            end = max(end - excess, i + 1)
        windows.append((places[i] if windows else 0, places[end]))
        behind = max(end - room // _OVERLAP, i + 1)
        i = _between_words(text, places, behind, max(behind - room // _WORD, i + 1))
    return windows or [(0, len(text))]


def _between_words(text: str, places: list[int], token: int, least: int) -> int:
    """The last token from `least` to `token` that begins a word; `token` where none does."""
    for candidate in range(token, least - 1, -1):
        if text[places[candidate] - 1 : places[candidate]].isspace():
            return candidate
    return token


def _token_starts(text: str, token_spans: TokenSpans) -> list[int]:
    """Where each token begins, tokenised stretch by stretch: time and memory stay in proportion to the text's length."""
    starts: list[int] = []
    begin = 0
    while begin < len(text):
        end = min(begin + _STRETCH, len(text))
        if end < len(text):
            space = max(text.rfind(space, begin + _STRETCH // 2, end) for space in " \n")
            end = space + 1 if space > 0 else end
        starts += [begin + first for first, last in token_spans([text[begin:end]])[0] if last > first]
        begin = end
    return starts
