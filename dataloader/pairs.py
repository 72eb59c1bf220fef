"""Articles to (question, passage) examples, the split by article, and the retrieval sets for evaluation.

    train_examples, val_examples = prepare_training_data(dataset, config)
    sets = prepare_retrieval_sets(dataset, config, "held_out")   # {"answers": ..., "paragraphs": ...}

Nothing is dropped in silence: what is empty after cleaning, or has no place in its page, is counted and logged.
"""

import logging
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from config import PASSAGE_PREFIX, QUERY_PREFIX
from dataloader.cleaning import clean_html_text, clean_html_with_spans
from dataloader.loader import DatasetError

if TYPE_CHECKING:
    from sentence_transformers import InputExample

    from config import TrainingConfig

logger = logging.getLogger(__name__)

# How long a window of text is for each token that the model reads. Korean Wikipedia text takes 1.77 characters for a
# token of XLM-R's vocabulary, so at 2 nearly every window would be cut off (96 % of them at 256 tokens, prefix
# included), now and then with the answer in the part cut off; at 1.5 it is one in seventy.
CHARACTERS_PER_TOKEN = 1.5


class Pair(NamedTuple):
    """A question and its answer, cleaned, not empty; `article` is the article's index in loading order."""

    id: str
    question: str
    answer: str
    article: int


class PairCounts(NamedTuple):
    """Of the `questions` that `extract_pairs` read, those without a pair: a text is empty when cleaned."""

    questions: int
    empty_question: int
    empty_answer: int


class RetrievalSet(NamedTuple):
    """A retrieval task as sentence-transformers' evaluators take it: ids to raw texts, without prefixes."""

    queries: dict[str, str]
    corpus: dict[str, str]
    relevant_docs: dict[str, set[str]]


# --- the split ----------------------------------------------------------------------------------------------


def split_articles(n_articles: int, config: "TrainingConfig") -> tuple[list[int], list[int], list[int]]:
    """Indices of the articles for training, validation and the held-out verdict: disjoint, together all.

    Loading order shuffled with `random.Random(split_seed)`; the first `int(n * train_split)` are the training
    side, the rest is held out. The last `int(side * val_split)` of the training side, but at least one where
    it has two articles and val_split > 0, validate. Each list keeps the shuffled order.
    """
    order = list(range(n_articles))
    random.Random(config.split_seed).shuffle(order)
    n_training = int(n_articles * config.train_split)
    side, held_out = order[:n_training], order[n_training:]
    n_val = int(len(side) * config.val_split)
    if config.val_split > 0 and len(side) >= 2:
        n_val = max(n_val, 1)
    return side[: len(side) - n_val], side[len(side) - n_val :], held_out


# --- training pairs -----------------------------------------------------------------------------------------


def extract_pairs(articles: Sequence[dict], indices: Sequence[int], limit: int = 0) -> tuple[list[Pair], PairCounts]:
    """The cleaned pairs of the articles at `indices`, in that order; at most the first `limit` (0 = all).

    A question with several answers is paired with the first that is not empty. What is empty after cleaning
    gives no pair: it is counted, and logged as a warning.
    """
    pairs: list[Pair] = []
    questions = empty_question = empty_answer = 0
    for index, qa in _questions(articles, indices):
        if limit and len(pairs) == limit:
            break
        questions += 1
        question = clean_html_text(qa["question"])
        answer = next(iter(_clean_answers(qa)), "")
        if question and answer:
            pairs.append(Pair(qa["id"], question, answer, index))
        elif not question:
            empty_question += 1
        else:
            empty_answer += 1
    if empty_question or empty_answer:
        logger.warning(
            "of %d questions, %d have no text after cleaning and %d have no answer text: left out",
            *(questions, empty_question, empty_answer),
        )
    return pairs, PairCounts(questions, empty_question, empty_answer)


def prepare_training_data(
    dataset: dict[str, Any], config: "TrainingConfig"
) -> tuple[list["InputExample"], list["InputExample"]]:
    """Training and validation examples: `InputExample(texts=["query: <question>", "passage: <answer>"])`.

    Articles are split by `split_articles`. `max_samples` (0 = all) keeps that many training pairs: the first
    ones in the shuffled order of articles, so a smaller sample is always a prefix of a larger one. Validation
    pairs are not limited. Raises DatasetError where no training pair is left.
    """
    articles = dataset["articles"]
    train, val, held_out = split_articles(len(articles), config)
    pairs, counts = extract_pairs(articles, train, config.max_samples)
    if not pairs:
        raise DatasetError(
            f"no training pair: {len(articles)} articles with train_split {config.train_split} and val_split"
            f" {config.val_split} leave {len(train)} to train on, with {counts.questions} questions that gave"
            f" no pair. Give more articles or a larger train_split."
        )
    val_pairs, _ = extract_pairs(articles, val)
    logger.info(
        "%d training pairs and %d validation pairs from %d and %d articles; %d articles held out",
        *(len(pairs), len(val_pairs), len(train), len(val), len(held_out)),
    )
    return _examples(pairs), _examples(val_pairs)


def _examples(pairs: Sequence[Pair]) -> list["InputExample"]:
    from sentence_transformers import InputExample

    return [InputExample(texts=[QUERY_PREFIX + pair.question, PASSAGE_PREFIX + pair.answer]) for pair in pairs]


def _questions(articles: Sequence[dict], indices: Sequence[int]) -> Iterator[tuple[int, dict]]:
    for index in indices:
        for qa in articles[index]["qas"]:
            yield index, qa


def _answers(qa: dict) -> list[dict | str]:
    return qa["answer"] if isinstance(qa["answer"], list) else [qa["answer"]]


def _source_text(answer: dict | str) -> str:
    return answer if isinstance(answer, str) else answer["text"]


def _clean_answers(qa: dict) -> Iterator[str]:
    """The question's answers that have text, cleaned, one at a time."""
    cleaned = (clean_html_text(_source_text(answer)) for answer in _answers(qa))
    return (text for text in cleaned if text)


# --- retrieval sets -----------------------------------------------------------------------------------------


def prepare_retrieval_sets(dataset: dict[str, Any], config: "TrainingConfig", part: str) -> dict[str, RetrievalSet]:
    """What the questions of one part of the split should find: `{"answers": ..., "paragraphs": ...}`.

    `part` is "validation" or "held_out". Texts are cleaned and bare: the model adds its stored prompts
    itself. Equal questions are one query, relevant to the answers of all; every distinct text is one
    document.

    answers: the distinct answers, each relevant to all its questions; of a question with several answers, all
    count. paragraphs: for KorQuAD 1.0 the distinct paragraphs of these articles; for 2.1, whose page is far
    longer than what the model reads, a window of CHARACTERS_PER_TOKEN * max_seq_length characters of cleaned
    text centred on each answer. Questions without a place for the answer have no paragraph: they are counted and
    logged. A task without any query, such as those of an empty part, is left out, and this is logged.

    Raises ValueError for another `part`.
    """
    _, val, held_out = split_articles(len(dataset["articles"]), config)
    parts = {"validation": val, "held_out": held_out}
    if part not in parts:
        raise ValueError(f"part is {part!r}: give one of {', '.join(parts)}")
    articles = dataset["articles"]
    window = int(CHARACTERS_PER_TOKEN * config.max_seq_length)
    tasks = {
        "answers": _answer_set(articles, parts[part]),
        "paragraphs": _paragraph_set(articles, parts[part], window),
    }
    for task, found in tasks.items():
        logger.info("%s, %s: %d queries, %d documents", part, task, len(found.queries), len(found.corpus))
    empty = [task for task, found in tasks.items() if not found.queries]
    if empty:
        logger.warning("the %s articles hold no question for: %s", part, ", ".join(empty))
    return {task: found for task, found in tasks.items() if found.queries}


class _SetBuilder:
    """Gives each distinct text an id, in order of appearance; joins what is relevant to equal questions."""

    def __init__(self) -> None:
        self._queries: dict[str, str] = {}  # text → id
        self._documents: dict[str, str] = {}
        self._relevant: dict[str, set[str]] = {}

    def document(self, text: str) -> str:
        return self._documents.setdefault(text, f"d{len(self._documents)}")

    def relate(self, question: str, text: str) -> None:
        query = self._queries.setdefault(question, f"q{len(self._queries)}")
        self._relevant.setdefault(query, set()).add(self.document(text))

    def build(self) -> RetrievalSet:
        queries = {name: text for text, name in self._queries.items()}
        return RetrievalSet(queries, {name: text for text, name in self._documents.items()}, self._relevant)


def _answer_set(articles: Sequence[dict], indices: Sequence[int]) -> RetrievalSet:
    builder = _SetBuilder()
    for _, qa in _questions(articles, indices):
        question = clean_html_text(qa["question"])
        for answer in _clean_answers(qa):
            if question:
                builder.relate(question, answer)
    return builder.build()


def _paragraph_set(articles: Sequence[dict], indices: Sequence[int], window: int) -> RetrievalSet:
    builder = _SetBuilder()
    unplaced = 0
    for article in (articles[index] for index in indices):
        is_page = bool(article["context"])  # KorQuAD 1.0 has paragraphs instead
        unplaced += _add_windows(builder, article, window) if is_page else _add_paragraphs(builder, article)
    if unplaced:
        logger.warning("%d questions are left out of the paragraph task: no place of their answer", unplaced)
    return builder.build()


def _add_paragraphs(builder: _SetBuilder, article: dict) -> int:
    """KorQuAD 1.0: every paragraph is a document. Returns how many questions have none."""
    cleaned = {paragraph: clean_html_text(paragraph) for paragraph in article["paragraphs"]}
    for text in cleaned.values():
        if text:
            builder.document(text)
    unplaced = 0
    for qa in article["qas"]:
        question, text = clean_html_text(qa["question"]), cleaned[qa["context"]]
        if question and text:
            builder.relate(question, text)
        unplaced += bool(question and not text)
    return unplaced


def _add_windows(builder: _SetBuilder, article: dict, window: int) -> int:
    """KorQuAD 2.1: a window of the page around each answer. Returns how many questions have none.

    An answer that lies wholly inside a window already cut from the page shares it: two windows that differ by
    a few words would be two right answers, of which only one counts.
    """
    places = [
        (number, place)
        for number, qa in enumerate(article["qas"])
        for place in (_find(answer, article["context"]) for answer in _answers(qa))
        if place
    ]
    text, spans = clean_html_with_spans(article["context"], [place for _, place in places])
    windows: list[tuple[int, int]] = []
    placed = set()
    for (number, _), span in zip(places, spans, strict=True):
        question = clean_html_text(article["qas"][number]["question"])
        if span is None or not question:
            continue
        shared = [(start, end) for start, end in windows if start <= span[0] and span[1] <= end]
        if not shared:
            windows.append(_window(text, *span, size=window))
        start, end = (shared or windows[-1:])[0]
        builder.relate(question, text[start:end])
        placed.add(number)
    return sum(1 for n, qa in enumerate(article["qas"]) if n not in placed and clean_html_text(qa["question"]))


def _find(answer: dict | str, context: str) -> tuple[int, int] | None:
    """Where the answer is in its context: at answer_start if that is right, else where it first occurs."""
    text = _source_text(answer)
    start = answer.get("answer_start") if isinstance(answer, dict) else None
    if start is None or start < 0 or not context.startswith(text, start):
        start = context.find(text)
    return (start, start + len(text)) if text.strip() and start >= 0 else None


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
