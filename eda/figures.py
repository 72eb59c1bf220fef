"""The figures of the analysis, as PNG for files and as SVG for the report."""

from __future__ import annotations

import importlib.util
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from eda.collisions import collision_chance
from eda.counted import percentiles
from eda.measure import Measurements

logger = logging.getLogger(__name__)

# How many HTML elements the table and the figure show; the JSON has all.
SHOWN_ELEMENTS = 12

# Fonts with Hangul by their file names, as Linux, Windows and macOS install them.
_FONT_FILES = (
    "NotoSansKR-Regular.otf",
    "NotoSansKR-Regular.ttf",
    "NotoSansCJKkr-Regular.otf",
    "NotoSansCJK-Regular.ttc",
    "NanumGothic.ttf",
    "NanumBarunGothic.ttf",
    "malgun.ttf",
    "AppleGothic.ttf",
    "AppleSDGothicNeo.ttc",
)
# Package → font file in it. The package itself is not imported: it would change matplotlib's settings.
_FONT_PACKAGE = ("koreanize_matplotlib", "fonts/NanumGothic.ttf")

_BAR_COLOUR, _OTHER_COLOUR, _LINE_COLOUR, _TEXT_COLOUR = "#3b6ea5", "#b8c4d0", "#c4452d", "#22303c"


def hangul_font() -> Path | None:
    """The file of a font that shows Hangul: an installed one, else the one that requirements.txt brings, else None."""
    installed = {Path(file).name.lower(): Path(file) for file in sorted(font_manager.findSystemFonts())}
    candidates = [installed[name.lower()] for name in _FONT_FILES if name.lower() in installed]
    package, file = _FONT_PACKAGE
    spec = importlib.util.find_spec(package)
    candidates += [Path(folder) / file for folder in (spec and spec.submodule_search_locations) or ()]
    return next((path for path in candidates if path.is_file() and _shows_hangul(path)), None)


def _shows_hangul(font: Path) -> bool:
    try:
        return font_manager.get_font(str(font)).get_char_index(ord("한")) != 0
    except (OSError, RuntimeError):  # not a font that FreeType reads
        return False


def figure_style(font: Path | None) -> Any:
    """matplotlib's settings for all figures, with this font where there is one."""
    style: dict[str, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": False,
        "axes.titlelocation": "left",
        "axes.titlesize": "medium",
        "svg.fonttype": "path",
        "svg.hashsalt": "korquad",  # the same numbers give the same file
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _TEXT_COLOUR),
    }
    if font is not None:
        font_manager.fontManager.addfont(str(font))
        style["font.family"] = [font_manager.get_font(str(font)).family_name, "DejaVu Sans"]
    return style


def render_figures(analysis: dict[str, Any], found: Measurements) -> dict[str, dict[str, bytes]]:
    """Every figure there are numbers for: name → {"png": bytes, "svg": bytes}.

    Text is drawn as shapes, so a figure shows Hangul wherever it is read. Says in one line if no font here has Hangul.
    """
    font = hangul_font()
    if font is None:
        logger.warning("No font with Hangul: figures show question words in English (pip install koreanize-matplotlib)")
    with matplotlib.rc_context(figure_style(font)):
        figures = {
            "lengths": draw_lengths(found),
            "tokens": draw_tokens(analysis, found),
            "answer_kinds": draw_answer_kinds(analysis),
            "duplicates": draw_duplicates(analysis),
            "collisions": draw_collisions(analysis, found),
            "question_words": draw_question_words(analysis, with_hangul=font is not None),
            "answer_markup": draw_answer_markup(analysis),
        }
        return {name: _render(figure) for name, figure in figures.items() if figure is not None}


def _render(figure: Figure) -> dict[str, bytes]:
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return {"png": png.getvalue(), "svg": svg.getvalue()}


def save_figures(rendered: Mapping[str, Mapping[str, bytes]], output_dir: Path) -> list[Path]:
    """Write each figure as PNG; returns the files."""
    paths = [output_dir / f"{name}.png" for name in rendered]
    for path, figure in zip(paths, rendered.values(), strict=True):
        path.write_bytes(figure["png"])
    return paths


# --- lengths --------------------------------------------------------------------------------------------------


def draw_lengths(found: Measurements) -> Figure:
    """Histograms of the lengths, with median and 95th percentile; a long tail gets a logarithmic axis."""
    names = [name for name in ("questions", "answers", "contexts") if found.lengths[name]]
    figure = _figure(3.4 * max(len(names), 1), 3.3)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(1, len(names), place)
        _draw_histogram(axes, found.lengths[name], f"{found.lengths[name].total():,} {name}", "characters")
    return figure


def draw_tokens(analysis: dict[str, Any], found: Measurements) -> Figure | None:
    """Histograms of the token lengths with `max_seq_length`, beyond which a text is cut; None without a tokenizer."""
    names = [name for name, lengths in found.tokens.items() if lengths]
    if not names:
        return None
    limit, texts = analysis["tokens"]["max_seq_length"], analysis["tokens"]["texts"]
    figure = _figure(max(3.4 * len(names), 5), 3.3)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(1, len(names), place)
        _draw_histogram(
            axes, found.tokens[name], f"{name}: {percent(texts[name]['truncated']['share'])} cut", "tokens", limit
        )
    return figure


def _draw_histogram(axes: Axes, lengths: Mapping[int, int], title: str, unit: str, limit: int | None = None) -> None:
    """Bars of the counted lengths; what is longer than `limit` stands out."""
    longest = max(lengths)
    marks = dict(zip((50, 95), percentiles(lengths, (50, 95)), strict=True))
    logarithmic = longest > 20 * marks[50]
    edges = histogram_edges(longest, logarithmic)
    fits: list[tuple[int, int]] = []
    cut: list[tuple[int, int]] = []
    for length, count in lengths.items():
        (fits if limit is None or length <= limit else cut).append((length, count))
    values, weights = zip(*(tuple(zip(*part, strict=True)) or ((), ()) for part in (fits, cut)), strict=True)
    axes.hist(values, bins=edges.tolist(), weights=weights, color=[_BAR_COLOUR, _LINE_COLOUR], stacked=True)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    if limit is None:
        for mark, label, style in ((50, "median", "-"), (95, "95 %", "--")):
            _mark(axes, marks[mark], f"{label}: {marks[mark]:,.0f}", style)
    else:
        _mark(axes, limit + 0.5, f"max_seq_length: {limit}", "-")
    axes.yaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    thousands = FuncFormatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_major_formatter(thousands)
    axes.yaxis.set_major_formatter(thousands)
    axes.set_title(title, pad=24)
    axes.set_xlabel(unit + (" (logarithmic)" if logarithmic else ""))
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=2, fontsize="small", borderpad=0.2)


def _mark(axes: Axes, value: float, label: str, style: str) -> None:
    axes.axvline(value, color=_LINE_COLOUR, linestyle=style, linewidth=1.2, label=label)


def histogram_edges(longest: int, logarithmic: bool, n_bins: int = 40) -> np.ndarray:
    """Edges halfway between whole numbers, so that each bin holds as many lengths as it is wide; (at most n_bins + 1,).

    On a logarithmic axis the widths grow and never shrink: steps of equal ratio would leave bins without a whole number.
    """
    if not logarithmic:
        width = max(1, -(-longest // n_bins))
        return np.arange(0, longest + width + 1, width) + 0.5
    ratio = max(longest, 2) ** (1 / n_bins)
    edges = [1]
    while edges[-1] <= longest:
        edges.append(max(edges[-1] + 1, round(edges[-1] * ratio)))
    return np.array(edges) - 0.5


# --- bars -----------------------------------------------------------------------------------------------------


def draw_answer_kinds(analysis: dict[str, Any]) -> Figure:
    """Bars: the share of each kind of answer."""
    kinds = analysis["answer_kinds"]
    bars = list(kinds["kinds"].items())
    return _draw_bars(bars, f"Kinds of {kinds['answers']:,} answers", "answers", muted=-1)


def draw_duplicates(analysis: dict[str, Any]) -> Figure:
    """Two panels of bars: the share of questions and answers whose text occurs once, twice, three to five times …"""
    duplicates = analysis["duplicates"]
    figure = _figure(8, 2.9)
    for place, name in enumerate(("questions", "answers"), start=1):
        bars = [(f"{times} ×", n) for times, n in duplicates[name]["by_occurrences"].items()]
        _fill_bars(figure.add_subplot(1, 2, place), bars, f"How often the same {name[:-1]} occurs", name, muted=0)
    return figure


def draw_question_words(analysis: dict[str, Any], with_hangul: bool = True) -> Figure:
    """Bars: the share of questions that use each question word, and of those that use none."""
    found = analysis["question_words"]
    entries = sorted(found["words"].items(), key=lambda item: -item[1]["count"])
    bars = [(f"{word} ({n['meaning']})" if with_hangul else n["meaning"], n) for word, n in entries]
    none = ("none of them" + (" (… 사람은?)" if with_hangul else ""), found["none"])
    return _draw_bars([*bars, none], f"Question words of {found['questions']:,} questions", "questions", muted=len(bars))


def draw_answer_markup(analysis: dict[str, Any]) -> Figure:
    """Bars: the share of answers with any markup, and with each of the most frequent HTML elements."""
    markup = analysis["answer_markup"]
    elements = list(markup["elements"].items())[:SHOWN_ELEMENTS]
    bars = [("any markup", markup), *((f"<{name}>", numbers) for name, numbers in elements)]
    return _draw_bars(bars, f"Markup in {analysis['totals']['qa_pairs']:,} answers", "answers", muted=0)


def _draw_bars(bars: Sequence[tuple[str, dict[str, Any]]], title: str, unit: str, muted: int) -> Figure:
    figure = _figure(8, 1.3 + 0.32 * len(bars))
    _fill_bars(figure.add_subplot(), bars, title, unit, muted)
    return figure


def _fill_bars(axes: Axes, bars: Sequence[tuple[str, dict[str, Any]]], title: str, unit: str, muted: int) -> None:
    """Horizontal bars, the first on top; the one numbered `muted` stands apart from the rest in colour."""
    colours = [_OTHER_COLOUR if i == muted else _BAR_COLOUR for i in range(len(bars))]
    shares = [100 * numbers["share"] for _, numbers in bars]
    drawn = axes.barh(range(len(bars)), shares, color=colours)
    axes.bar_label(drawn, [f" {percent(n['share'])}  ({n['count']:,})" for _, n in bars], fontsize="small")
    axes.set_yticks(range(len(bars)), [label for label, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.0, 1.4 * max(shares)))  # room for the labels; no share is above 100
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= min(100, axes.get_xlim()[1])])
    axes.set_xlabel(f"% of {unit}")
    axes.set_title(title)


# --- collisions -----------------------------------------------------------------------------------------------


def draw_collisions(analysis: dict[str, Any], found: Measurements) -> Figure | None:
    """The chance that a batch holds an answer twice, over the batch's size; None where no pair is to be had twice."""
    occurrences = found.occurrences("answers")
    largest = min(int(occurrences.sum()), 2048)
    if largest < 2:
        return None
    sizes = np.unique(np.geomspace(2, largest, 60).round().astype(int))
    figure = _figure(8, 3)
    axes = figure.add_subplot()
    axes.plot(sizes, [100 * collision_chance(occurrences, int(size)) for size in sizes], color=_BAR_COLOUR, linewidth=2)
    for size, numbers in analysis["collisions"]["batches"].items():
        if numbers["chance"] is not None:
            chance = 100 * numbers["chance"]
            axes.plot(int(size), chance, "o", color=_LINE_COLOUR, clip_on=False)
            below = chance > 85  # beside the curve, not across it
            axes.annotate(
                f"{size}: {percent(numbers['chance'])}",
                (int(size), chance),
                xytext=(7, -12) if below else (-7, 5),
                textcoords="offset points",
                ha="left" if below else "right",
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylim(0, 106)
    axes.set_xlabel("pairs in a batch (logarithmic)")
    axes.set_ylabel("% of batches")
    axes.set_title("Batches that hold an answer twice")
    return figure


def percent(share: float) -> str:
    """Shares near 0 and 1 keep a digit that tells them from 0 and 1."""
    value = 100 * share
    if 0 < value < 0.05 or 99.95 <= value < 100:
        return "< 0.1 %" if value < 50 else "> 99.9 %"
    return f"{value:.1f} %"


def _figure(width: float, height: float) -> Figure:
    """A figure (inches) on the Agg canvas, which needs no display, and outside pyplot, which would keep it in memory."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
