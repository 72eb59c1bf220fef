"""A tokenizer with fewer pieces: four fifths of E5's parameters are rows for pieces, most of them of other scripts.

    "full"     every piece
    "korean"   every piece of ASCII, Hangul, punctuation and symbols only: 89,873 of 250,002. Text of these characters is
               split as before, piece by piece, since no piece of another character could be in it.
    "compact"  of these every piece with Hangul in it, every single character, and the most frequent others up to 24,000.
               Korean is split as before, English words into more pieces. The pieces of the model's prompts stay as well:
               "passage: " stands before every document, and split otherwise it would change them all.

A character that no piece is left for is unknown to the model.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

VOCABULARIES = ("full", "korean", "compact")
COMPACT_PIECES = 24_000


def trim_tokenizer(
    tokenizer: dict[str, Any], vocabulary: str, of_prompts: Collection[int] = ()
) -> tuple[dict[str, Any], list[int] | None]:
    """The content of a tokenizer.json with fewer pieces, and the old numbers of those that stay, in their new order.

    Only a Unigram tokenizer (as E5's) can lose pieces; of any other all stay, and the numbers are None. `of_prompts` are the
    numbers of pieces that stay whatever they are.
    """
    model = tokenizer["model"]
    if vocabulary == "full" or model["type"] != "Unigram":
        return tokenizer, None
    special = {token["id"] for token in tokenizer["added_tokens"]} | {model["unk_id"]}
    kept = _kept_pieces(model["vocab"], special | set(of_prompts), vocabulary)
    new = {old: number for number, old in enumerate(kept)}
    return {
        **tokenizer,
        "model": {**model, "vocab": [model["vocab"][old] for old in kept], "unk_id": new[model["unk_id"]]},
        "added_tokens": [{**token, "id": new[token["id"]]} for token in tokenizer["added_tokens"]],
        "post_processor": _renumbered(tokenizer["post_processor"], new),
    }, kept


def _kept_pieces(pieces: Sequence[tuple[str, float]], special: set[int], vocabulary: str) -> list[int]:
    """Numbers of the pieces that stay, ascending."""
    ordinary = [number for number in range(len(pieces)) if number not in special]
    # An unknown character costs a fixed amount more than the rarest piece: without that, text around one could split anew.
    always = {*special, min(ordinary, key=lambda number: pieces[number][1])}
    kept = {number for number in ordinary if all(_is_kept(character) for character in pieces[number][0])}
    if vocabulary == "compact":
        needed = always | {n for n in kept if len(pieces[n][0]) == 1 or any(map(_is_hangul, pieces[n][0]))}
        # A score is the logarithm of the piece's frequency.
        others = sorted(kept - needed, key=lambda number: (-pieces[number][1], number))
        kept = needed | set(others[: max(COMPACT_PIECES - len(needed), 0)])
    return sorted(kept | always)


@functools.cache
def _is_kept(character: str) -> bool:
    """ASCII, Hangul, punctuation or symbol; the mark of a space, U+2581, is a symbol."""
    return character.isascii() or _is_hangul(character) or unicodedata.category(character)[0] in "PS"


@functools.cache
def _is_hangul(character: str) -> bool:
    return unicodedata.name(character, "").startswith("HANGUL")


def _renumbered(processor: dict[str, Any] | None, new: dict[int, int]) -> dict[str, Any] | None:
    """A template post-processor names the special tokens that it adds by their numbers, too."""
    if not processor or "special_tokens" not in processor:
        return processor
    tokens = {
        name: {**token, "ids": [new[old] for old in token["ids"]]} for name, token in processor["special_tokens"].items()
    }
    return {**processor, "special_tokens": tokens}
