"""Statistics of counted lengths: {length: how many texts have it}, exact without listing the texts one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

PERCENTILES = (25, 75, 90, 95, 99)


def length_statistics(lengths: Mapping[int, int]) -> dict[str, int | float | None]:
    """Count, mean, median, min, max and PERCENTILES (between two lengths: interpolated).

    Of no lengths, the count is 0 and all else None.
    """
    names = ("mean", "median", "min", "max", *(f"p{percent}" for percent in PERCENTILES))
    if not lengths:
        return {"count": 0, **dict.fromkeys(names)}
    total = sum(lengths.values())
    mean = sum(length * count for length, count in lengths.items()) / total
    median, *others = percentiles(lengths, (50, *PERCENTILES))
    values = (round(mean, 2), round(median, 2), min(lengths), max(lengths), *(round(value, 2) for value in others))
    return {"count": total, **dict(zip(names, values, strict=True))}


def percentiles(lengths: Mapping[int, int], percents: Sequence[float]) -> list[float]:
    """The values that np.percentile would give for the lengths listed one by one."""
    values = np.array(sorted(lengths))
    last_rank = np.cumsum([lengths[int(value)] for value in values]) - 1  # of the last text with each length
    ranks = last_rank[-1] * np.asarray(percents) / 100
    below, above = (values[np.searchsorted(last_rank, rounded)] for rounded in (np.floor(ranks), np.ceil(ranks)))
    return (below + (above - below) * (ranks - np.floor(ranks))).tolist()


def truncation(lengths: Mapping[int, int], limit: int) -> dict[str, int | float]:
    """How many texts are longer than `limit` tokens, their share, and the share of all tokens that is cut off."""
    texts, tokens = sum(lengths.values()), sum(length * count for length, count in lengths.items())
    longer = {length: count for length, count in lengths.items() if length > limit}
    cut = sum((length - limit) * count for length, count in longer.items())
    return {**counted(sum(longer.values()), texts), "tokens_cut_share": round(cut / tokens, 6) if tokens else 0.0}


def occurrence_statistics(occurrences: np.ndarray) -> dict[str, int | float | dict]:
    """What repeats among texts, from how often each distinct one occurs, (distinct,)."""
    texts = int(occurrences.sum())
    steps = {"1": (1, 1), "2": (2, 2), "3–5": (3, 5), "6–20": (6, 20), "more than 20": (21, None)}
    held = {
        label: int(occurrences[(occurrences >= low) & (occurrences <= (high or texts))].sum())
        for label, (low, high) in steps.items()
    }
    return {
        "texts": texts,
        "distinct": len(occurrences),
        "repeated": counted(texts - held["1"], texts),
        "most_frequent": int(occurrences.max(initial=0)),
        "by_occurrences": {label: counted(count, texts) for label, count in held.items()},
    }


def counted(count: int, of: int) -> dict[str, int | float]:
    """A count and its share of `of`."""
    return {"count": count, "share": round(count / of, 6) if of else 0.0}
