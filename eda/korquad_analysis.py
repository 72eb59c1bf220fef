"""Statistics of a whole KorQuAD dataset: a table on the terminal, the numbers as JSON, figures as PNG.

    python eda/korquad_analysis.py                                          # ./data/KorQuAD, else the embedded sample
    python eda/korquad_analysis.py --dataset_root KorQuAD_v1.0_dev.json     # one file
    python eda/korquad_analysis.py --workers 8 --output_dir reports

It counts files, articles and question-answer pairs, and measures the length of questions, answers and contexts, which
question words the questions use, and how many answers carry markup. Every length is kept, so a median or percentile is
that of the whole dataset however many files and processes it came from.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import multiprocessing
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

if not __package__:  # run as a script: the repository root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import DEFAULT_DATASET_ROOT, SAMPLE_DATASET_ROOT
from dataloader import DatasetError, clean_html_text, load_entire_dataset

logger = logging.getLogger(__name__)

PERCENTILES = (25, 75, 90, 95, 99)

# Below this many characters of contexts, starting worker processes takes longer than measuring.
SMALL_JOB_CHARACTERS = 20_000_000
ARTICLES_PER_TASK = 50


# --- question words -------------------------------------------------------------------------------------------


class QuestionWord(NamedTuple):
    """A question word and how it is found: one of `forms`, then what `rest` (a regular expression) allows.

    A form counts at the beginning of a word only, so particles and endings may follow it (무엇을, 몇년도에, 누구인가?) and
    syllables inside other words do not count (스튜어느).
    """

    word: str
    meaning: str
    forms: tuple[str, ...]
    rest: str = ""

    def pattern(self) -> re.Pattern[str]:
        return re.compile(rf"(?<![^\W_])(?:{'|'.join(self.forms)}){self.rest}")


# With these endings the word asks nothing: 언제나 "always", 누구도 "nobody", 어디에도 "nowhere", 무엇이든 "anything".
_NOT_INDEFINITE = r"(?!(?:이|에|에게|에서|서)?(?:나|도|든지?|라도)(?!\w))"
# 왜 also begins 왜곡 "distortion" and 왜구 "pirates": it counts alone or with an ending of the verb "to be".
_ALONE_OR_COPULA = r"(?:(?:인가|인지|일까|이었|였|요|죠)\w*)?(?!\w)"

QUESTION_WORDS = (
    QuestionWord("무엇", "what", ("무엇", "무슨", "무얼", "뭐", "뭘", "뭔"), _NOT_INDEFINITE),
    QuestionWord("몇", "how many", ("몇", "며칠"), "(?!몇)"),  # 몇몇 "several"
    QuestionWord("언제", "when", ("언제",), _NOT_INDEFINITE),
    QuestionWord("누구", "who", ("누구", "누가", "누군", "누굴"), "(?!복음)" + _NOT_INDEFINITE),  # 누가복음 "Gospel of Luke"
    QuestionWord("어디", "where", ("어디", "어딜", "어딘", "어딨"), _NOT_INDEFINITE),
    QuestionWord("왜", "why", ("왜",), _ALONE_OR_COPULA),
    QuestionWord("어떻게", "how", ("어떻게", "어찌", "어떡")),
    QuestionWord("어느", "which", ("어느",), "(?![덧새])"),  # 어느덧, 어느새 "before one knows"
    QuestionWord("어떤", "what kind", ("어떤", "어떠", "어때", "어땠", "어떨")),
    QuestionWord("얼마", "how much", ("얼마", "얼만")),
)
_QUESTION_PATTERNS = {entry.word: entry.pattern() for entry in QUESTION_WORDS}


def find_question_words(question: str) -> set[str]:
    """The entries of QUESTION_WORDS that a question uses, by their `word`; none for "… 사람은?"."""
    question = unicodedata.normalize("NFC", question)
    return {word for word, pattern in _QUESTION_PATTERNS.items() if pattern.search(question)}


# --- measuring ------------------------------------------------------------------------------------------------

# A start or end tag; the possessive quantifiers keep the search linear on any input.
_TAG = re.compile(r"</?([a-zA-Z][a-zA-Z0-9]*+)[^<>]*+>")


@dataclass
class Measurements:
    """What was counted in some articles; `add` joins those of others, in any order, to the same statistics."""

    # Characters of each text that is not empty; "contexts_source" is the context as the file has it, with its markup.
    lengths: dict[str, list[int]] = field(
        default_factory=lambda: {"questions": [], "answers": [], "contexts": [], "contexts_source": []}
    )
    empty: Counter[str] = field(default_factory=Counter)  # texts without a visible character, by the same names
    articles: int = 0
    qa_pairs: int = 0
    question_words: Counter[str] = field(default_factory=Counter)  # questions that use the word
    without_question_word: int = 0
    answers_with_markup: int = 0
    elements: Counter[str] = field(default_factory=Counter)  # answers that hold the HTML element

    def add(self, other: Measurements) -> None:
        """Join what was counted in other articles."""
        for name, lengths in other.lengths.items():
            self.lengths[name] += lengths
        self.empty += other.empty
        self.articles += other.articles
        self.qa_pairs += other.qa_pairs
        self.question_words += other.question_words
        self.without_question_word += other.without_question_word
        self.answers_with_markup += other.answers_with_markup
        self.elements += other.elements

    def _length(self, name: str, text: str) -> None:
        if text:
            self.lengths[name].append(len(text))
        else:
            self.empty[name] += 1


def measure(articles: Iterable[dict[str, Any]]) -> Measurements:
    """Count and measure the articles of a loaded dataset; texts are cleaned as for training."""
    found = Measurements()
    for article in articles:
        found.articles += 1
        for context in article["paragraphs"]:
            found._length("contexts", clean_html_text(context))
            found._length("contexts_source", context)
        for qa in article["qas"]:
            found.qa_pairs += 1
            _measure_question(found, clean_html_text(qa["question"]))
            _measure_answer(found, qa["answer"])
    return found


def _measure_question(found: Measurements, question: str) -> None:
    found._length("questions", question)
    words = find_question_words(question)
    found.question_words.update(words)
    found.without_question_word += bool(question and not words)


def _measure_answer(found: Measurements, answer: dict[str, Any] | list[Any] | str) -> None:
    """Of several answers the first that has text counts, the one that training takes."""
    several = answer if isinstance(answer, list) else [answer]
    sources = [one if isinstance(one, str) else one["text"] for one in several]
    texts = [clean_html_text(source) for source in sources]
    chosen = next((i for i, text in enumerate(texts) if text), 0)
    found._length("answers", texts[chosen] if texts else "")
    elements = {tag.lower() for tag in _TAG.findall(sources[chosen])} if sources else set()
    found.answers_with_markup += bool(elements)
    found.elements.update(elements)


def measure_dataset(
    articles: Sequence[dict[str, Any]], num_workers: int | None = None, verbose: bool = True
) -> Measurements:
    """`measure` with a progress bar, in worker processes where there is much to clean.

    The statistics are the same whatever `num_workers` is: None takes the processors there are, 0 and 1 stay in this
    process. Raises RuntimeError where a worker process dies.
    """
    chunks = [articles[i : i + ARTICLES_PER_TASK] for i in range(0, len(articles), ARTICLES_PER_TASK)]
    workers = min(multiprocessing.cpu_count() if num_workers is None else num_workers, len(chunks))
    characters = sum(len(context) for article in articles for context in article["paragraphs"])
    in_process = workers <= 1 or characters < SMALL_JOB_CHARACTERS
    total = Measurements()
    for part in _progress(map(measure, chunks) if in_process else _in_pool(chunks, workers), len(chunks), verbose):
        total.add(part)
    return total


def _in_pool(chunks: list[Sequence[dict[str, Any]]], workers: int) -> Iterator[Measurements]:
    """`measure` of each chunk, in order. Workers are spawned: forking a process that has threads is not safe."""
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(measure, chunks)
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process ended before its work was done, most often because memory ran out: use fewer --workers"
        ) from None


def _progress(parts: Iterable[Measurements], n_parts: int, verbose: bool) -> Iterable[Measurements]:
    from tqdm.auto import tqdm

    return tqdm(parts, desc="Measuring", total=n_parts, unit="chunk", disable=not verbose or n_parts < 20)


# --- statistics -----------------------------------------------------------------------------------------------


def length_statistics(lengths: Sequence[int]) -> dict[str, int | float | None]:
    """Count, mean, median, min, max and PERCENTILES (between two lengths: interpolated), in characters.

    Of no lengths, the count is 0 and all else None.
    """
    names = ("mean", "median", "min", "max", *(f"p{percent}" for percent in PERCENTILES))
    if not lengths:
        return {"count": 0, **dict.fromkeys(names)}
    values = np.asarray(lengths)
    mean, median = round(float(values.mean()), 2), round(float(np.median(values)), 2)
    percentiles = (round(float(value), 2) for value in np.percentile(values, PERCENTILES))
    return {
        "count": len(lengths),
        **dict(zip(names, (mean, median, int(values.min()), int(values.max()), *percentiles), strict=True)),
    }


def analyse(dataset: dict[str, Any], found: Measurements) -> dict[str, Any]:
    """All numbers of the report, JSON-ready: `dataset`, `totals`, `lengths`, `question_words`, `answer_markup`.

    Shares are of the questions that have text, and of all answers. Raises DatasetError where there is no question.
    """
    if not found.qa_pairs:
        raise DatasetError(
            f"nothing to analyse: {found.articles} articles in {dataset['total_files']} files hold no question."
            " Give a KorQuAD file or folder with --dataset_root."
        )
    questions = len(found.lengths["questions"])
    return {
        "dataset": {
            "files": dataset["files"],
            "versions": sorted(set(dataset["versions"])),
            "skipped": dataset.get("skipped", []),
        },
        "totals": {
            "files": dataset["total_files"],
            "articles": found.articles,
            "contexts": len(found.lengths["contexts"]),
            "qa_pairs": found.qa_pairs,
            "empty": {name: found.empty[name] for name in ("questions", "answers", "contexts")},
        },
        "lengths": {name: length_statistics(lengths) for name, lengths in found.lengths.items()},
        "question_words": {
            "questions": questions,
            "words": {
                entry.word: {
                    "meaning": entry.meaning,
                    "forms": list(entry.forms),
                    **_counted(found.question_words[entry.word], questions),
                }
                for entry in QUESTION_WORDS
            },
            "none": _counted(found.without_question_word, questions),
        },
        "answer_markup": {
            **_counted(found.answers_with_markup, found.qa_pairs),
            "elements": {name: _counted(n, found.qa_pairs) for name, n in _most_common(found.elements)},
        },
    }


def _counted(count: int, of: int) -> dict[str, int | float]:
    return {"count": count, "share": round(count / of, 6) if of else 0.0}


def _most_common(counts: Counter[str]) -> list[tuple[str, int]]:
    """Most frequent first; equal counts in alphabetical order, so that reports can be compared."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


# --- tables ---------------------------------------------------------------------------------------------------

# How many HTML elements the table and the figure show; the JSON has all.
SHOWN_ELEMENTS = 12
_LENGTH_LABELS = {
    "questions": "questions",
    "answers": "answers",
    "contexts": "contexts",
    "contexts_source": "contexts with markup",
}


def print_analysis(analysis: dict[str, Any]) -> None:
    """Print all tables."""
    print_totals(analysis)
    print_lengths(analysis)
    print_question_words(analysis)
    print_answer_markup(analysis)


def print_totals(analysis: dict[str, Any]) -> None:
    """Print how much there is, and what has no text or was left out."""
    totals = analysis["totals"]
    rows = [[name.replace("_", " "), f"{totals[name]:,}"] for name in ("files", "articles", "contexts", "qa_pairs")]
    rows += [[f"{name} without text", f"{count:,}"] for name, count in totals["empty"].items() if count]
    print_table(f"Dataset (version {', '.join(analysis['dataset']['versions']) or 'not given'})", ["", "count"], rows)
    for reason in analysis["dataset"]["skipped"]:
        print(f"left out: {reason}")


def print_lengths(analysis: dict[str, Any]) -> None:
    """Print one row of length statistics for each kind of text."""
    columns = ("mean", "median", "min", "max", *(f"p{percent}" for percent in PERCENTILES))
    rows = [
        [_LENGTH_LABELS[name], f"{numbers['count']:,}", *(_number(numbers[column]) for column in columns)]
        for name, numbers in analysis["lengths"].items()
    ]
    print_table("Length in characters (markup stripped, but for the last row)", ["", "count", *columns], rows)


def print_question_words(analysis: dict[str, Any]) -> None:
    """Print how many questions use each question word, and the forms that count as it."""
    found = analysis["question_words"]
    rows = [
        [f"{word} ({entry['meaning']})", f"{entry['count']:,}", _percent(entry["share"]), " ".join(entry["forms"])]
        for word, entry in found["words"].items()
    ]
    rows.append(["none of them", f"{found['none']['count']:,}", _percent(found["none"]["share"]), "… 사람은? … 것은?"])
    print_table("Question words", ["", "questions", "share", "forms"], rows, left=(0, 3))
    print("Counted at the beginning of a word, any ending after it; indefinites (언제나, 누구도, 몇몇) are not counted.")
    print("A question with two of them counts for both.")


def print_answer_markup(analysis: dict[str, Any]) -> None:
    """Print the share of answers with markup, and which HTML elements these hold."""
    markup = analysis["answer_markup"]
    elements = list(markup["elements"].items())
    rows = [["any markup", f"{markup['count']:,}", _percent(markup["share"])]]
    rows += [[f"<{name}>", f"{n['count']:,}", _percent(n["share"])] for name, n in elements[:SHOWN_ELEMENTS]]
    print_table("Answers with markup", ["", "answers", "share"], rows)
    if len(elements) > SHOWN_ELEMENTS:
        print(f"and {len(elements) - SHOWN_ELEMENTS} rarer elements")


def print_table(title: str, header: list[str], rows: list[list[str]], left: Sequence[int] = (0,)) -> None:
    """Print rows in columns, right-aligned but for those in `left`; Hangul takes two terminal cells."""
    widths = [max(map(_cells, column)) for column in zip(header, *rows, strict=True)]
    print(f"\n{title}")
    for row in (header, ["─" * width for width in widths], *rows):
        cells = (
            text + _padding(text, width) if i in left else _padding(text, width) + text
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


def _cells(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _padding(text: str, width: int) -> str:
    return " " * (width - _cells(text))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if isinstance(value, float) and not value.is_integer() else f"{value:,.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# --- figures --------------------------------------------------------------------------------------------------

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

_BAR_COLOUR, _OTHER_COLOUR, _LINE_COLOUR = "#3b6ea5", "#b8c4d0", "#c4452d"


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


def save_figures(analysis: dict[str, Any], found: Measurements, output_dir: Path) -> list[Path]:
    """Draw each figure and write it as PNG; returns the files. Says in one line if no font shows Hangul."""
    font = hangul_font()
    style: Any = {"axes.spines.top": False, "axes.spines.right": False, "axes.unicode_minus": False}
    if font is None:
        logger.warning("No font with Hangul: figures show question words in English (pip install koreanize-matplotlib)")
    else:
        font_manager.fontManager.addfont(str(font))
        name = font_manager.get_font(str(font)).family_name
        style["font.family"] = [name, "DejaVu Sans"]
    with matplotlib.rc_context(style):
        figures = {
            "lengths": draw_lengths(found),
            "question_words": draw_question_words(analysis, with_hangul=font is not None),
            "answer_markup": draw_answer_markup(analysis),
        }
        paths = []
        for name, figure in figures.items():
            paths.append(output_dir / f"{name}.png")
            figure.savefig(paths[-1], dpi=150)
    return paths


def draw_lengths(found: Measurements) -> Figure:
    """Histograms of the lengths, with median and 95th percentile; a long tail gets a logarithmic axis."""
    names = [name for name in ("questions", "answers", "contexts") if found.lengths[name]]
    figure = _figure(4.6 * max(len(names), 1), 3.8)
    for place, name in enumerate(names, start=1):
        _draw_histogram(figure.add_subplot(1, len(names), place), found.lengths[name], name)
    return figure


def _draw_histogram(axes: Axes, lengths: Sequence[int], name: str) -> None:
    logarithmic = max(lengths) > 20 * float(np.median(lengths))
    edges = histogram_edges(max(lengths), logarithmic)
    axes.hist(lengths, bins=edges.tolist(), color=_BAR_COLOUR)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    for percent, label, style in ((50, "median", "-"), (95, "95th percentile", "--")):
        value = float(np.percentile(lengths, percent))
        axes.axvline(value, color=_LINE_COLOUR, linestyle=style, linewidth=1.2, label=f"{label}: {value:,.0f}")
    thousands = FuncFormatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_major_formatter(thousands)
    axes.yaxis.set_major_formatter(thousands)
    axes.set_title(f"{len(lengths):,} {name}", pad=26)
    axes.set_xlabel("characters" + (" (logarithmic)" if logarithmic else ""))
    axes.set_ylabel(name)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize="small")


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


def _draw_bars(bars: list[tuple[str, dict[str, Any]]], title: str, unit: str, muted: int) -> Figure:
    """Horizontal bars, the first on top; the one numbered `muted` stands apart from the rest in colour."""
    figure = _figure(8, 1.6 + 0.34 * len(bars))
    axes = figure.add_subplot()
    colours = [_OTHER_COLOUR if i == muted else _BAR_COLOUR for i in range(len(bars))]
    shares = [100 * numbers["share"] for _, numbers in bars]
    drawn = axes.barh(range(len(bars)), shares, color=colours)
    axes.bar_label(drawn, [f" {_percent(n['share'])}  ({n['count']:,})" for _, n in bars])
    axes.set_yticks(range(len(bars)), [label for label, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.0, 1.25 * max(shares)))
    axes.set_xlabel(f"% of {unit}")
    axes.set_title(title)
    return figure


def _figure(width: float, height: float) -> Figure:
    """A figure (inches) on the Agg canvas, which needs no display, and outside pyplot, which would keep it in memory."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


# --- command line ---------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns the exit status: 0, 1 for what went wrong, 130 for Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    options = _parse_options(argv)
    try:
        analysis, paths = run(options)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except (DatasetError, OSError, RuntimeError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print_analysis(analysis)
    print("\nWritten: " + ", ".join(map(str, paths)))
    return 0


def run(options: argparse.Namespace) -> tuple[dict[str, Any], list[Path]]:
    """Load, measure, analyse, write. Returns the numbers and the files written.

    Raises DatasetError for what cannot be used, OSError for what cannot be read or written, RuntimeError where a worker
    process dies.
    """
    output_dir = Path(options.output_dir)
    if output_dir.is_file():
        raise FileExistsError(f"--output_dir {output_dir} is a file: name a folder")
    output_dir.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is known before the work
    root = options.dataset_root or _default_root()
    try:
        dataset = load_entire_dataset(root, options.workers, skip_bad_files=options.skip_bad_files)
    except ValueError as error:  # every ValueError of the loader is about the files
        raise DatasetError(error) from None
    found = measure_dataset(dataset["articles"], options.workers)
    analysis = analyse(dataset, found)
    report = output_dir / "korquad_analysis.json"
    report.write_text(json.dumps(analysis, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return analysis, [report, *save_figures(analysis, found, output_dir)]


def _default_root() -> str:
    if Path(DEFAULT_DATASET_ROOT).exists():
        return DEFAULT_DATASET_ROOT
    logger.info("No KorQuAD at %s: using the embedded sample, %s", DEFAULT_DATASET_ROOT, SAMPLE_DATASET_ROOT)
    return str(SAMPLE_DATASET_ROOT)


def _parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Statistics of a whole KorQuAD dataset.", allow_abbrev=False)
    parser.add_argument(
        "--dataset_root",
        help=f"folder with KorQuAD_2.1_train_*/*.json, or one KorQuAD file; default {DEFAULT_DATASET_ROOT}, else the sample",
    )
    parser.add_argument("--workers", type=int, help="processes that load and measure; default: one a processor")
    parser.add_argument("--output_dir", default="reports", help="folder for the JSON and the figures; default %(default)s")
    parser.add_argument("--skip_bad_files", action="store_true", help="go on without files that cannot be read")
    options = parser.parse_args(argv)
    if options.workers is not None and options.workers < 0:
        parser.error(f"--workers {options.workers}: give 0 or more")
    return options


if __name__ == "__main__":
    sys.exit(main())
