"""Files → measurements: what can be known of a KorQuAD dataset of any size without holding its texts.

    files = get_all_json_files("data/KorQuAD")
    dataset, found = measure_files(files, num_workers=4)

Worker processes take one file each and send back counted lengths and 8-byte hashes, never a text. So the process that
asks stays small however large the set is, and the workers hold one file each. Lengths are counted and not binned: every
median and percentile is that of the whole dataset, however many files and processes it came from.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import signal
import unicodedata
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from config import PASSAGE_PREFIX, QUERY_PREFIX
from dataloader import DatasetError, clean_html_text, load_json_file
from dataloader.loader import report_broken, total_bytes
from eda.model_tokenizer import load_tokenizer, token_lengths

# Below this many bytes in all, starting worker processes takes longer than measuring.
SMALL_JOB_BYTES = 20_000_000


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


# --- kinds of answers -----------------------------------------------------------------------------------------

# A start or end tag; the possessive quantifiers keep the search linear on any input.
_TAG = re.compile(r"</?([a-zA-Z][a-zA-Z0-9]*+)[^<>]*+>")
# The elements that give a structure; cells and items do where there are two of them.
_STRUCTURES = {"table": "table", "tbody": "table", "tr": "table", "ul": "list", "ol": "list", "dl": "list", "p": "paragraph"}
_STRUCTURES |= {f"h{level}": "paragraph" for level in range(1, 7)}
_PARTS = {"td": "table", "th": "table", "li": "list", "dt": "list", "dd": "list"}
# A mark after Hangul or a bracket and then another word: not "1. " nor "U.S. ".
_TWO_SENTENCES = re.compile(r"[가-힣)\]][.!?。]+[\"'”’)\]]*\s+\w")
_SENTENCE_END = re.compile(r"(?:[^\W\d][\"'”’)\]]*[.!?。…]+|다)[\"'”’)\]]*$")
_WORDS_OF_A_SENTENCE = 3

ANSWER_KINDS = {
    "word": "a word or a phrase: none of the others",
    "sentence": f"at least {_WORDS_OF_A_SENTENCE} words that end in . ! ? or in 다",
    "paragraph": "begins with a paragraph or heading (<p>, <h2> …), or holds two sentences",
    "table": "begins with a table or row (<table>, <tr>), or holds two cells",
    "list": "begins with a list (<ul>, <ol>, <dl>), or holds two items",
}


def answer_kind(source: str, text: str) -> str:
    """Which of ANSWER_KINDS an answer is: `source` as the file has it, `text` cleaned.

    The first element that gives a structure decides: a table with lists in its cells is a table, a paragraph with a list
    after it a paragraph. A lone cell or item (`<td>332cm</td>`) gives none: its text decides.
    """
    opened = [tag[1].lower() for tag in _TAG.finditer(source) if not tag[0].startswith("</")]
    parts = Counter(_PARTS[name] for name in opened if name in _PARTS)
    for name in opened:
        if name in _STRUCTURES:
            return _STRUCTURES[name]
        if name in _PARTS and parts[_PARTS[name]] > 1:
            return _PARTS[name]
    text = unicodedata.normalize("NFC", text)
    if _TWO_SENTENCES.search(text):
        return "paragraph"
    return "sentence" if len(text.split()) >= _WORDS_OF_A_SENTENCE and _SENTENCE_END.search(text) else "word"


# --- what makes two texts the same ----------------------------------------------------------------------------


def text_key(text: str) -> str:
    """What makes two texts the same: compatible characters unified, case, space and punctuation gone."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text)).lower() or text


def text_hash(text: str) -> int:
    """8 bytes for a text: of a million different ones, two share a hash with a chance of 3 in 100 million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


# --- measuring ------------------------------------------------------------------------------------------------

# What is hashed of each pair that training can use: both texts as keys, the answer as it is written, the pair.
HASHED = ("questions", "answers", "answers_as_written", "pairs")


@dataclass
class Measurements:
    """What was counted in some articles; `add` joins those of others, in any order, to the same statistics."""

    # Length → how many texts that are not empty have it, in characters; "contexts_source" is the context as the file has
    # it, with its markup.
    lengths: dict[str, Counter[int]] = field(
        default_factory=lambda: {name: Counter() for name in ("questions", "answers", "contexts", "contexts_source")}
    )
    # The same in tokens, prefix and special tokens included; "paragraphs" are the contexts of KorQuAD 1.0.
    tokens: dict[str, Counter[int]] = field(
        default_factory=lambda: {name: Counter() for name in ("questions", "answers", "paragraphs")}
    )
    empty: Counter[str] = field(default_factory=Counter)  # texts without a visible character, by the same names
    articles: int = 0
    qa_pairs: int = 0
    question_words: Counter[str] = field(default_factory=Counter)  # questions that use the word
    without_question_word: int = 0
    answer_kinds: Counter[str] = field(default_factory=Counter)  # answers that have text
    answers_with_markup: int = 0
    elements: Counter[str] = field(default_factory=Counter)  # answers that hold the HTML element
    hashes: dict[str, array[int]] = field(default_factory=lambda: {name: array("Q") for name in HASHED})  # 8 bytes a pair

    def add(self, other: Measurements) -> None:
        """Join what was counted in other articles."""
        for mine, theirs in ((self.lengths, other.lengths), (self.tokens, other.tokens)):
            for name, lengths in theirs.items():
                mine[name].update(lengths)
        for name, hashes in other.hashes.items():
            self.hashes[name].extend(hashes)
        self.empty += other.empty
        self.articles += other.articles
        self.qa_pairs += other.qa_pairs
        self.question_words += other.question_words
        self.without_question_word += other.without_question_word
        self.answer_kinds += other.answer_kinds
        self.answers_with_markup += other.answers_with_markup
        self.elements += other.elements

    def occurrences(self, name: str) -> np.ndarray:
        """How often each distinct text of `hashes[name]` occurs, (distinct,), in no particular order."""
        return np.unique(np.frombuffer(self.hashes[name], dtype=np.uint64), return_counts=True)[1]

    def _length(self, name: str, text: str) -> None:
        if text:
            self.lengths[name][len(text)] += 1
        else:
            self.empty[name] += 1


def measure(articles: Iterable[dict[str, Any]], tokenizer: Tokenizer | None = None) -> Measurements:
    """Count and measure loaded articles; texts are cleaned as for training. Without a tokenizer, no tokens."""
    found = Measurements()
    texts: dict[str, list[str]] = {name: [] for name in found.tokens}
    for article in articles:
        found.articles += 1
        is_page = bool(article.get("context"))  # KorQuAD 1.0 has paragraphs instead
        for context in article["paragraphs"]:
            text = clean_html_text(context)
            found._length("contexts", text)
            found._length("contexts_source", context)
            if text and not is_page:
                texts["paragraphs"].append(PASSAGE_PREFIX + text)
        for qa in article["qas"]:
            found.qa_pairs += 1
            question, answer = _measure_question(found, qa["question"]), _measure_answer(found, qa["answer"])
            if question:
                texts["questions"].append(QUERY_PREFIX + question)
            if answer:
                texts["answers"].append(PASSAGE_PREFIX + answer)
            if question and answer:
                _hash_pair(found, question, answer)
    if tokenizer is not None:
        for name, listed in texts.items():
            found.tokens[name].update(token_lengths(tokenizer, listed))
    return found


def _measure_question(found: Measurements, source: str) -> str:
    question = clean_html_text(source)
    found._length("questions", question)
    words = find_question_words(question)
    found.question_words.update(words)
    found.without_question_word += bool(question and not words)
    return question


def _measure_answer(found: Measurements, answer: dict[str, Any] | list[Any] | str) -> str:
    """Of several answers the first that has text counts, the one that training takes."""
    several = answer if isinstance(answer, list) else [answer]
    sources = [one if isinstance(one, str) else one["text"] for one in several] or [""]
    texts = [clean_html_text(source) for source in sources]
    source, text = next((pair for pair in zip(sources, texts, strict=True) if pair[1]), (sources[0], texts[0]))
    found._length("answers", text)
    if text:
        found.answer_kinds[answer_kind(source, text)] += 1
    elements = {tag.lower() for tag in _TAG.findall(source)}
    found.answers_with_markup += bool(elements)
    found.elements.update(elements)
    return text


def _hash_pair(found: Measurements, question: str, answer: str) -> None:
    keys = {"questions": text_key(question), "answers": text_key(answer), "answers_as_written": answer}
    keys["pairs"] = f"{keys['questions']}\0{keys['answers']}"  # cleaned texts hold no NUL
    for name, key in keys.items():
        found.hashes[name].append(text_hash(key))


# --- many files -----------------------------------------------------------------------------------------------


class FileMeasurements(NamedTuple):
    """One file's measurements; `found` is None where it cannot be used, and `reason` says why."""

    file: str
    version: str
    found: Measurements | None
    reason: str = ""


def measure_file(file: str | Path, tokenizer_file: str | None = None) -> FileMeasurements:
    """Load one KorQuAD file and measure it. A broken file becomes a value, so that one cannot stop the others."""
    tokenizer = load_tokenizer(tokenizer_file) if tokenizer_file else None
    try:
        loaded = load_json_file(file)
    except (DatasetError, FileNotFoundError) as error:
        return FileMeasurements(str(file), "", None, str(error))
    return FileMeasurements(str(file), loaded["version"], measure(loaded["articles"], tokenizer))


def measure_files(
    files: Sequence[Path],
    num_workers: int | None = None,
    tokenizer_file: str | None = None,
    skip_bad_files: bool = False,
    verbose: bool = True,
) -> tuple[dict[str, Any], Measurements]:
    """Measure files in worker processes: what was read, and the sum of what was found in it.

    The first result has `files`, `versions`, `total_files` and `skipped`, as a loaded dataset has. Both results are the
    same whatever `num_workers` is: None takes the processors there are, 0 and 1 stay in this process, as do files that
    are small together. `verbose` shows a progress bar.

    Raises DatasetError listing every broken file (with `skip_bad_files` they are logged instead, unless no other is left),
    RuntimeError where a worker process dies.
    """
    workers = min(_processors() if num_workers is None else num_workers, len(files))
    in_process = workers <= 1 or total_bytes(files) < SMALL_JOB_BYTES
    here = (measure_file(file, tokenizer_file) for file in files)
    parts = here if in_process else _in_pool(files, tokenizer_file, workers)
    read: dict[str, Any] = {"files": [], "versions": [], "skipped": []}
    total = Measurements()
    for part in _progress(parts, len(files), verbose):
        if part.found is None:
            read["skipped"].append(part.reason)
            continue
        read["files"].append(part.file)
        read["versions"].append(part.version)
        total.add(part.found)
    if read["skipped"]:
        report_broken(read["skipped"], len(files), skip_bad_files)
    return {**read, "total_files": len(read["files"])}, total


def _in_pool(files: Sequence[Path], tokenizer_file: str | None, workers: int) -> Iterator[FileMeasurements]:
    """`measure_file` of each file, in order. Workers are spawned: forking a process that has threads is not safe."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
        waiting = deque((file, pool.submit(measure_file, file, tokenizer_file)) for file in files)
        try:
            while waiting:
                file, future = waiting.popleft()  # a result that was added up is let go
                yield future.result()
        except BrokenProcessPool:
            raise RuntimeError(
                f"a process that measures files ended abruptly at {file} or beside it, most often because memory ran out;"
                f" {len(waiting) + 1} of {len(files)} files were left. Use fewer --workers (1 measures in this process)."
            ) from None
        except BaseException:  # Ctrl-C: do not read the files still waiting
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # workers are the parallelism: more threads would fight over processors
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the one that asks ends the others


def _processors() -> int:
    """Processors this process may use, which a container limits below what the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _progress(parts: Iterable[FileMeasurements], n_files: int, verbose: bool) -> Iterable[FileMeasurements]:
    from tqdm.auto import tqdm

    return tqdm(parts, desc="Measuring", total=n_files, unit="file", disable=not verbose or n_files < 2)
