"""Articles to (question, passage) examples, the split by article, and the retrieval sets for evaluation.

    train_examples, val_examples = prepare_training_data(dataset, config)
    sets = prepare_retrieval_sets(dataset, config, "held_out")   # {"answers": ..., "paragraphs": ...}

Nothing is dropped in silence: what is empty after cleaning, or has no place in its page, is counted and logged.
"""

import logging
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dataloader.loader import DatasetError
from dataloader.objectives import training_pair
from dataloader.prepare import PreparedArticle, is_prepared, prepare_article

if TYPE_CHECKING:
    from sentence_transformers import InputExample

    from config import TrainingConfig

logger = logging.getLogger(__name__)

# How long a window of text is for each token that the model reads. Korean Wikipedia text takes 1.77 characters for a
# token of XLM-R's vocabulary, so at 2 nearly every window would be cut off (96 % of them at 256 tokens, prefix
# included), now and then with the answer in the part cut off; at 1.5 it is one in seventy.
CHARACTERS_PER_TOKEN = 1.5


class Pair(NamedTuple):
    """A query and a passage of `kind` (config.OBJECTIVES) that it should find, cleaned, not empty.

    `id` and `answer` are those of the question that it was made from, and `article` the article's index in loading order.
    """

    id: str
    query: str
    passage: str
    kind: str
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


def extract_pairs(
    articles: Sequence[Any], indices: Sequence[int], limit: int = 0, kinds: Sequence[str] = ("answer",), window: int = 0
) -> tuple[list[Pair], PairCounts]:
    """The cleaned pairs of the articles at `indices`, in that order, of the first `limit` questions that have one (0 = all).

    A question with several answers is paired with the first that is not empty. What is empty after cleaning
    gives no pair, and where the answer has no place in its page, or no sentence fits, there is none of some kinds: both
    are counted, and logged as a warning. `window` is the size of the windows, for articles that were loaded whole.
    """
    pairs: list[Pair] = []
    incomplete: Counter[str] = Counter()  # by kind, questions that give no pair of it
    questions = empty_question = empty_answer = paired = 0
    fields = "pairs" if set(kinds) == {"answer"} else "windows"
    for index, article in zip(indices, _prepared(articles, indices, fields, window), strict=True):
        for qa in article["qas"]:
            if limit and paired == limit:
                break
            questions += 1
            if not qa["question"] or not qa["answers"]:
                empty_question += not qa["question"]
                empty_answer += bool(qa["question"])
                continue
            found = {kind: training_pair(kind, qa, article.get("windows", ())) for kind in kinds}
            pairs += [Pair(qa["id"], *texts, kind, qa["answers"][0], index) for kind, texts in found.items() if texts]
            paired += any(found.values())
            incomplete.update(kind for kind, texts in found.items() if not texts)
        if limit and paired == limit:
            break
    if empty_question or empty_answer:
        logger.warning(
            "of %d questions, %d have no text after cleaning and %d have no answer text: left out",
            *(questions, empty_question, empty_answer),
        )
    for kind, count in incomplete.items():
        reason = (
            "no sentence around it can be asked with" if kind == "inverse_cloze" else "its place in the page is not known"
        )
        logger.warning("%d answers give no pair of the kind %s: %s", count, kind, reason)
    return pairs, PairCounts(questions, empty_question, empty_answer)


def prepare_training_data(
    dataset: dict[str, Any], config: "TrainingConfig"
) -> tuple[list["InputExample"], list["InputExample"]]:
    """Training and validation examples: `InputExample(texts=["query: <question>", "passage: <answer>"])`.

    Articles are split by `split_articles`. With another `objective` than answers the passage is text around the answer,
    and with several kinds a question has an example of each. `max_samples` (0 = all) keeps so many questions: the first
    ones in the shuffled order of articles, so a smaller sample is always a prefix of a larger one. Validation examples
    are questions and answers, and not limited. Raises DatasetError where no training pair is left.
    """
    from config import objective_weights

    articles = dataset["articles"]
    train, val, held_out = split_articles(len(articles), config)
    pairs, counts = extract_pairs(
        articles, train, config.max_samples, tuple(objective_weights(config.objective)), window_size(config)
    )
    if not pairs:
        remedy = "Give more articles or a larger train_split."
        if len(articles) < 2:  # of which no train_split leaves one to train on
            held = "hold one article" if articles else "hold none"
            remedy = f"The files {held}: at least two are needed, one to train on and one to hold out."
        raise DatasetError(
            f"no training pair: {len(articles)} articles with train_split {config.train_split} and val_split"
            f" {config.val_split} leave {len(train)} to train on, with {counts.questions} questions that gave"
            f" no pair. {remedy}"
        )
    val_pairs, _ = extract_pairs(articles, val)
    logger.info(
        "%d training pairs and %d validation pairs from %d and %d articles; %d articles held out",
        *(len(pairs), len(val_pairs), len(train), len(val), len(held_out)),
    )
    return _examples(pairs), _examples(val_pairs)


def _examples(pairs: Sequence[Pair]) -> list["InputExample"]:
    from config import PASSAGE_PREFIX, QUERY_PREFIX
    from dataloader.examples import PairExample

    return [
        PairExample(
            pair.id, [QUERY_PREFIX + pair.query, PASSAGE_PREFIX + pair.passage], pair.kind, pair.answer, pair.article
        )
        for pair in pairs
    ]


def _prepared(articles: Sequence[Any], indices: Sequence[int], fields: str, window: int = 0) -> Iterator[PreparedArticle]:
    """The articles at `indices`; those that were loaded whole are prepared here."""
    for index in indices:
        article = articles[index]
        yield article if is_prepared(article) else prepare_article(article, fields, window)


# --- retrieval sets -----------------------------------------------------------------------------------------


def window_size(config: "TrainingConfig") -> int:
    """Characters of a window of text that the model reads nearly always whole."""
    return int(CHARACTERS_PER_TOKEN * config.max_seq_length)


def prepare_retrieval_sets(dataset: dict[str, Any], config: "TrainingConfig", part: str) -> dict[str, RetrievalSet]:
    """What the questions of one part of the split should find: `{"answers": ..., "paragraphs": ...}`.

    `part` is one of `articles_of_part`. Texts are cleaned and bare: the model adds its stored prompts
    itself. Equal questions are one query, relevant to the answers of all; every distinct text is one
    document.

    answers: the distinct answers, each relevant to all its questions; of a question with several answers, all
    count. paragraphs: for KorQuAD 1.0 the distinct paragraphs of these articles; for 2.1, whose page is far
    longer than what the model reads, a window of CHARACTERS_PER_TOKEN * max_seq_length characters of cleaned
    text centred on each answer. Questions without a place for the answer have no paragraph: they are counted and
    logged. A task without any query, such as those of an empty part, is left out, and this is logged.

    `dataset` was loaded whole, or with fields="windows" and window=window_size(config). Raises DatasetError where
    it holds no windows or windows of another size, ValueError for another `part`.
    """
    articles, indices = dataset["articles"], articles_of_part(dataset, config, part)
    window = window_size(config)
    if dataset.get("window", window) != window:
        raise DatasetError(
            f"the dataset was loaded with windows of {dataset['window']} characters, but max_seq_length"
            f" {config.max_seq_length} asks for {window}: load_entire_dataset(..., window=window_size(config))"
        )
    tasks = {
        "answers": _answer_set(articles, indices),
        "paragraphs": _paragraph_set(articles, indices, window),
    }
    for task, found in tasks.items():
        logger.info("%s, %s: %d queries, %d documents", part, task, len(found.queries), len(found.corpus))
    empty = [task for task, found in tasks.items() if not found.queries]
    if empty:
        which = "articles" if part == "all" else f"{part} articles"
        logger.warning("the %s hold no question for: %s", which, ", ".join(empty))
    return {task: found for task, found in tasks.items() if found.queries}


def articles_of_part(dataset: dict[str, Any], config: "TrainingConfig", part: str) -> list[int]:
    """Indices of the articles of "training", "validation", "held_out" or "all". Raises ValueError for another `part`."""
    train, val, held_out = split_articles(len(dataset["articles"]), config)
    parts = {"training": train, "validation": val, "held_out": held_out, "all": [*train, *val, *held_out]}
    if part not in parts:
        raise ValueError(f"part is {part!r}: give one of {', '.join(parts)}")
    return parts[part]


def question_articles(dataset: dict[str, Any], config: "TrainingConfig", part: str) -> dict[str, int]:
    """Question, cleaned → index of the article that asks it, the first in the order of the part where several do.

    What is asked of one article is not independent: confidence intervals draw articles.
    """
    indices = articles_of_part(dataset, config, part)
    articles = zip(indices, _prepared(dataset["articles"], indices, "pairs"), strict=True)
    found: dict[str, int] = {}
    for index, article in articles:
        for qa in article["qas"]:
            found.setdefault(qa["question"], index)
    return found


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


def _answer_set(articles: Sequence[Any], indices: Sequence[int]) -> RetrievalSet:
    builder = _SetBuilder()
    unanswered = 0
    for article in _prepared(articles, indices, "pairs"):
        for qa in article["qas"]:
            for answer in qa["answers"] if qa["question"] else []:
                builder.relate(qa["question"], answer)
            unanswered += bool(qa["question"] and not qa["answers"])
    if unanswered:
        logger.warning("%d questions are left out of the answer task: no text of an answer", unanswered)
    return builder.build()


def _paragraph_set(articles: Sequence[Any], indices: Sequence[int], window: int) -> RetrievalSet:
    builder = _SetBuilder()
    unplaced = 0
    for article in _prepared(articles, indices, "windows", window):
        if "windows" not in article:
            raise DatasetError(
                "the dataset was loaded without the text around the answers, which the paragraph task needs:"
                ' load_entire_dataset(..., fields="windows", window=window_size(config))'
            )
        for text in article["windows"]:
            builder.document(text)
        for qa in article["qas"]:
            for number in qa["windows"]:
                builder.relate(qa["question"], article["windows"][number])
            unplaced += bool(qa["question"] and not qa["windows"])
    if unplaced:
        logger.warning("%d questions are left out of the paragraph task: no place of their answer", unplaced)
    return builder.build()
