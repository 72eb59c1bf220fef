"""Search with the finished model: a Korean question → the passages that answer it.

On the command line, three examples, or a file of passages; and in Python:

    python inference.py
    python inference.py --query "한글은 누가 만들었는가?" --passages FILE --top_k 5
    python inference.py --help        # the commands: index, search, compare, serve

    from inference import E5KorQuADInference
    model = E5KorQuADInference()
    model.search("한글은 누가 만들었는가?", ["세종대왕이 창제했다.", "서울은 수도이다."], top_k=1)
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from config import PASSAGE_PREFIX, QUERY_PREFIX, SAMPLE_RECIPE, TrainingConfig, print_any_text, read_recipe
from search import storage
from search.compare import Comparison, print_comparison
from search.encoder import OnnxEncoder, TorchEncoder
from search.errors import InferenceError
from search.export import PRECISIONS, check_packages, export_folder, export_model, is_current
from search.files import Document, read_json_lines, read_passages, read_text
from search.fingerprint import model_state
from search.in_query import stands_in
from search.index import SearchIndex, check_ids
from search.tools import ToolEmbeddings
from search.vocabulary import VOCABULARIES
from search.windows import Span, split_into_windows

if TYPE_CHECKING:  # torch and its friends take seconds to import: --help and a wrong path answer before that
    from sentence_transformers import SentenceTransformer

    from search.chroma import ChromaIndex

__all__ = ["DEFAULT_MODEL_PATH", "E5KorQuADInference", "InferenceError", "main", "read_passages"]

logger = logging.getLogger("inference")

DEFAULT_MODEL_PATH = TrainingConfig.output_dir
_PROGRAM = "inference.py"
_REMEDY = "Train one with `python train.py` (or `make train`)"
_REMEMBERED_LISTS = 8  # of passages given to `search`,
_REMEMBERED_WINDOWS = 200_000  # and no more than this of them in all: 0.4 GB
_QUIET_BATCHES = 4  # longer work shows a progress bar
_SHOWN_CHARACTERS = 300  # of a passage in the command line's answer
_FILES_HELP = ".jsonl: one object a line; .json: KorQuAD; else text, one passage a line (UTF-8 or CP949)"


class E5KorQuADInference(ToolEmbeddings):
    """The saved model as a search engine.

    Texts are given raw: E5's prefixes, stored in the model as prompts, are added here, once. A text that already starts
    with the prefix of its own side ("query: " for a query, "passage: " for a passage) means the same as without it, so
    that callers who add prefixes themselves get the same embeddings. The other side's prefix is ordinary text.

    Embeddings are float32 and of length 1, so that their dot product is the cosine similarity. A search splits a passage of
    more tokens than the model reads into overlapping windows and finds it by the best of them. The `encode_` methods give
    one embedding a text, of its beginning where it is too long; how many are cut is logged as a warning.

    Passages can be given with each search, or once: `build_index`, `add`, `remove`, `save`, `load`.

    Args:
        model_path: a sentence-transformers (or transformers) folder. None: DEFAULT_MODEL_PATH, or, where no finished
            model lies there, what `make train` makes of the embedded sample.
        device: as in torch ("cpu", "cuda", "cuda:1"). None or "auto": a GPU where a usable one is, else the CPU.
        backend: "torch", or "onnx": an export, several times faster on a CPU and in loading. It is made at the first use,
            kept beside the model, and made again when the model changes.
        precision: of the export: "int8" or "float32".
        vocabulary: of the export: "korean" leaves out what Korean, English, digits and punctuation do not need; "compact"
            most English words, too; "full" nothing (`search/vocabulary.py` says more).

    Attributes:
        model: the sentence-transformers model; None with the backend "onnx".
        model_path: the folder it came from.
        model_name: its full path, by which an index or another tool knows the model.
        dimension: D, numbers in an embedding: 384 for multilingual-e5-small.
        index: the passages that a search without passages looks through; None before there are any.

    Raises:
        InferenceError: no model there, an incomplete or broken one, or a device that cannot be used.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str] | None = None,
        device: str | None = None,
        backend: str = "torch",
        precision: str = "int8",
        vocabulary: str = "korean",
    ):
        self.model_path = _find_model(model_path)
        self._model_state = model_state(self.model_path)
        self._encoder = _load_encoder(self.model_path, device, backend, precision, vocabulary)
        self.model = self._encoder.model
        self.dimension = self._encoder.dimension
        self.model_name = str(self.model_path.resolve())
        self.index: SearchIndex | ChromaIndex | None = None
        self._remembered: list[tuple[list[str], SearchIndex]] = []  # passages of earlier searches, the latest last
        logger.info("Model: %s on %s", self.model_path, self._encoder.place)

    # -------------------------------------------------------------------------------------------------------
    # Text → embeddings

    def encode_query(self, query: str) -> np.ndarray:
        """(D,) float32. Raises InferenceError (empty, not text)."""
        return self._encode(self._bare([query], "query"), "query")[0]

    def encode_queries(self, queries: Iterable[str], batch_size: int = 32, show_progress: bool | None = None) -> np.ndarray:
        """(N, D) float32, in the order of `queries`; (0, D) for none.

        Args:
            show_progress: None shows a progress bar on long work only.

        Raises:
            InferenceError: one is empty or not text; the message gives its position.
        """
        return self._encode(self._bare(queries, "query", "queries"), "query", batch_size, show_progress)

    def encode_passage(self, passage: str) -> np.ndarray:
        """(D,) float32. Raises InferenceError (empty, not text)."""
        return self._encode(self._bare([passage], "passage"), "document")[0]

    def encode_passages(
        self, passages: Iterable[str], batch_size: int = 32, show_progress: bool | None = None
    ) -> np.ndarray:
        """(N, D) float32, in the order of `passages`; arguments and errors as in `encode_queries`.

        An empty passage is an error and not a low score: E5 puts even the bare prefix closer to a question than many a
        real passage, and leaving it out unasked would shift the positions of the others.
        """
        return self._encode(self._bare(passages, "passage", "passages"), "document", batch_size, show_progress)

    # -------------------------------------------------------------------------------------------------------
    # Similarity and search

    def compute_similarity(self, a: Any, b: Any) -> float | np.ndarray:
        """Cosine similarity, from -1 to 1, of queries `a` and passages `b`.

        Args:
            a: a query text, a list of them, or embeddings: (D,) or (N, D), of any length.
            b: a passage text, a list of them, or embeddings: (D,) or (M, D).

        Returns:
            A float for one against one; else float32, (N,) or (M,) where one side is single, (N, M) where none is.

        Raises:
            InferenceError: texts as in `encode_query`; embeddings of another shape, or not finite, or all zeros.
        """
        left = self._as_embeddings(a, "a", self.encode_query, self.encode_queries)
        right = self._as_embeddings(b, "b", self.encode_passage, self.encode_passages)
        if left.shape[-1] != right.shape[-1]:
            raise InferenceError(f"Embeddings of {left.shape[-1]} and of {right.shape[-1]} numbers cannot be compared.")
        similarity = np.clip(left @ right.T, -1, 1)  # (N, D) @ (D, M) -> (N, M)
        return similarity if similarity.ndim else float(similarity)

    def search(
        self, query: str, passages: Iterable[str] | None = None, top_k: int = 5, skip_in_query: bool = False
    ) -> list[dict[str, Any]]:
        """The passages most similar to the query, best first.

        Args:
            passages: where to look. The same list again, or one of the same content, is not encoded again. None: the index.
            top_k: how many; all of them where there are fewer.
            skip_in_query: leave out passages that stand word for word in the query (`search/in_query.py`). For short
                answers: what a question says itself is near to it, and seldom its answer.

        Returns:
            `{"rank": 1, "passage": text as given, "score": cosine similarity, "index": position in passages}` each, with
            Python numbers; from the index also "id" and "metadata". Where a passage is longer than the model reads, "span"
            is the place of its best window: `passage[span[0]:span[1]]`. Equal scores keep the order of the passages.

        Raises:
            InferenceError: no passages, an empty text, one that is not text (with its position), or top_k below 1.
        """
        bare_query = self._bare([query], "query")
        return self._search(bare_query, passages, top_k, skip_in_query)[0]

    def batch_search(
        self,
        queries: Iterable[str],
        passages: Iterable[str] | None = None,
        top_k: int = 5,
        skip_in_query: bool = False,
    ) -> list[list[dict[str, Any]]]:
        """`search` for all queries at once, which costs less each. Same results and errors; [] for no queries."""
        bare_queries = self._bare(queries, "query", "queries")
        return self._search(bare_queries, passages, top_k, skip_in_query)

    def _search(
        self, bare_queries: list[str], passages: Iterable[str] | None, top_k: int, skip_in_query: bool
    ) -> list[list[dict[str, Any]]]:
        if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 1:
            raise InferenceError(f"top_k must be a whole number of at least 1, not {top_k!r}.")
        skips = [functools.partial(self._stands_in, query) for query in bare_queries] if skip_in_query else None
        if passages is None:
            return self._filled_index().search(self._encode(bare_queries, "query"), int(top_k), skips)
        given = _as_list(passages, "passages")
        bare = self._bare(given, "passage", "passages")
        if not bare:
            raise InferenceError("There are no passages to search in: give at least one.")
        found = self._remember(bare).search(self._encode(bare_queries, "query"), int(top_k), skips)
        return [[_of_given(result, given) for result in results] for results in found]

    def _stands_in(self, bare_query: str, passage: str) -> bool:
        return stands_in(passage.removeprefix(self._encoder.prompts["document"]), bare_query)

    def _remember(self, bare: list[str]) -> SearchIndex:
        """The index of these passages, of an earlier search if there was one."""
        index = next((index for texts, index in self._remembered if texts == bare), None)
        if index is None:
            index = SearchIndex()
            self._add(index, bare, bare, None, None)
        kept = [entry for entry in self._remembered if entry[1] is not index][1 - _REMEMBERED_LISTS :]
        while kept and len(index.windows) + sum(len(other.windows) for _, other in kept) > _REMEMBERED_WINDOWS:
            del kept[0]
        self._remembered = [*kept, (bare, index)]  # replaced and not changed: searches may run in several threads
        return index

    # -------------------------------------------------------------------------------------------------------
    # The index: passages encoded once and kept

    def build_index(
        self,
        passages: Iterable[str],
        ids: Iterable[str] | None = None,
        metadata: Iterable[Mapping[str, Any] | None] | None = None,
        batch_size: int = 32,
        show_progress: bool | None = None,
    ) -> None:
        """Make these passages the ones that `search` without passages looks through; replaces what was there.

        Args:
            ids: one text for each passage, all different. None numbers them: "0", "1", …
            metadata: a dict of what JSON can hold, or None, for each passage. Searches give it back.
            batch_size, show_progress: as in `encode_passages`.

        Raises:
            InferenceError: texts as in `encode_passages`; ids or metadata that cannot be used. The index is as before.
        """
        index = SearchIndex()
        given = _as_list(passages, "passages")
        self._add(index, given, self._bare(given, "passage", "passages"), ids, metadata, batch_size, show_progress)
        self.index = index

    def add(
        self,
        passages: Iterable[str],
        ids: Iterable[str] | None = None,
        metadata: Iterable[Mapping[str, Any] | None] | None = None,
        batch_size: int = 32,
        show_progress: bool | None = None,
    ) -> None:
        """Add passages to the index; arguments and errors as in `build_index`."""
        given = _as_list(passages, "passages")
        bare = self._bare(given, "passage", "passages")
        index = SearchIndex() if self.index is None else self.index
        self._add(index, given, bare, ids, metadata, batch_size, show_progress)
        self.index = index

    def remove(self, ids: Iterable[str]) -> None:
        """Take passages out of the index. Raises InferenceError where an id is not there, and then takes none out."""
        self._filled_index().remove(ids)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to a folder (`search/storage.py` describes it). An index there is replaced once this is complete.

        Raises:
            InferenceError: no index; the folder holds something else, is being written by another process, or cannot be
                written; or its index was changed since this one was loaded from it.
        """
        index = self._filled_index()
        if not isinstance(index, SearchIndex):
            raise InferenceError("Chroma keeps this index: there is nothing to save.")
        storage.save(index, path, self._identity())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Search from now on in an index that was saved. It stays on disk; of it only what is needed is read.

        Raises:
            InferenceError: no index there, a damaged one, or one that was made with another model.
        """
        self.index = storage.load(path, self._identity())

    def use_chroma(
        self,
        path: str | os.PathLike[str] = "chroma",
        host: str | None = None,
        port: int = 8000,
        collection: str = "passages",
    ) -> None:
        """Hand over to Chroma: its collection is the index from now on. Passages of the index so far are copied there.

        Args:
            path: the folder of an embedded database.
            host, port: a server instead of a folder.
            collection: its name; made where it is not there.

        Raises:
            InferenceError: Chroma is not installed or does not answer; the collection is of another model, or holds
                one of the passages already.
        """
        from search.chroma import ChromaIndex

        chroma = ChromaIndex.open(os.fspath(path), host, port, collection, self._identity())
        if isinstance(self.index, SearchIndex):
            chroma.check_new(len(self.index), self.index.ids(), None)
            for batch in self.index.batches():
                chroma.add(*batch)
        self.index = chroma

    def _identity(self) -> storage.Model:
        if model_state(self.model_path) != self._model_state:
            raise InferenceError(
                f"The model at {self.model_path} was changed since it was loaded: start again with the new one."
            )
        return storage.Model(self.model_name, self._encoder.fingerprint)

    def _filled_index(self) -> SearchIndex | ChromaIndex:
        if self.index is None or self.index.empty():
            raise InferenceError(
                "There is no index to search in: build_index(passages) or load(path) first, or give passages."
            )
        return self.index

    def _add(
        self,
        index: SearchIndex | ChromaIndex,
        given: list[str],
        bare: list[str],
        ids: Iterable[str] | None,
        metadata: Iterable[Mapping[str, Any] | None] | None,
        batch_size: int = 32,
        show_progress: bool | None = None,
    ) -> None:
        """Split, encode and add; whatever goes wrong does so before the index is touched."""
        records = index.check_new(len(given), ids, metadata)
        windows = split_into_windows(
            bare, self._encoder.token_spans, self._encoder.prompts["document"], self._encoder.max_seq_length
        )
        texts = [text[begin:end] for text, spans in zip(bare, windows, strict=True) for begin, end in spans]
        # Equal texts share one embedding and one score: rounding must not break their tie.
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        distinct = self._encode(list(rows), "document", batch_size, show_progress)
        for record, text in zip(records, given, strict=True):
            record["passage"] = text
        placed = [_in_given(spans, len(text) - len(own)) for spans, text, own in zip(windows, given, bare, strict=True)]
        index.add(records, placed, distinct[[rows[text] for text in texts]])

    # -------------------------------------------------------------------------------------------------------

    def _encode(self, bare: list[str], side: str, batch_size: int = 32, show_progress: bool | None = None) -> np.ndarray:
        """(N, D) float32 of texts without prefix; `side` is the prompt's name: "query" or "document"."""
        if not bare:
            return np.empty((0, self.dimension), np.float32)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InferenceError(f"batch_size must be a whole number of at least 1, not {batch_size!r}.")
        self._report_cut(bare, side)
        show = len(bare) > _QUIET_BATCHES * batch_size if show_progress is None else show_progress
        embeddings = self._encoder.encode(bare, side, batch_size, show)
        if not np.isfinite(embeddings).all():
            raise InferenceError(f"The model at {self.model_path} gives numbers that are not finite: train it again.")
        return embeddings

    def _report_cut(self, bare: list[str], side: str) -> None:
        """Warn of texts with more tokens than the model reads. A token is, nearly always, at least one character."""
        prompt, limit = self._encoder.prompts[side], self._encoder.max_seq_length or sys.maxsize
        long = [prompt + text for text in bare if len(prompt + text) + 2 > limit]
        if not long:
            return
        cut = sum(len(tokens) > limit for tokens in self._encoder.token_spans(long))
        if cut:
            what = "queries" if side == "query" else "passages"
            logger.warning(
                "%s of %s %s exceed the %d tokens that the model reads: only their beginnings count.",
                f"{cut:,}", f"{len(bare):,}", what, limit,
            )  # fmt: skip

    def _bare(self, texts: Iterable[str], singular: str, plural: str | None = None) -> list[str]:
        """The texts without the prefix of their side. Raises InferenceError (not text, empty, not valid Unicode)."""
        prefix = self._encoder.prompts["query" if singular == "query" else "document"]
        bare = []
        for position, text in enumerate(_as_list(texts, plural or singular)):
            name = f"{plural}[{position}]" if plural else f"The {singular}"
            if not isinstance(text, str):
                raise InferenceError(f"{name} must be text, not {type(text).__name__}: {text!r:.60}.")
            content = str(text).removeprefix(prefix)
            if not content.strip():
                remedy = "ask a question" if singular == "query" else "leave it out, or give it a text"
                raise InferenceError(f"{name} is empty: {remedy}.")
            try:
                content.encode("utf-8")
            except UnicodeEncodeError as error:
                raise InferenceError(
                    f"{name} is not valid Unicode: half a surrogate pair at character {error.start}. "
                    "Decode the text again from its source."
                ) from None
            bare.append(content)
        return bare

    @staticmethod
    def _as_embeddings(value: Any, name: str, encode_one: Any, encode_many: Any) -> np.ndarray:
        """(D,) or (N, D) float32 of length 1, from texts or numbers."""
        if isinstance(value, str):
            return encode_one(value)
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return encode_many(value)
        try:
            with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused below
                array = np.asarray(value, np.float32)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise InferenceError(f"{name} must be a text, a list of texts or embeddings: {error}.") from None
        if array.ndim not in (1, 2) or not array.shape[-1]:
            raise InferenceError(f"{name} must be of shape (D,) or (N, D), not {array.shape}.")
        norms = np.linalg.norm(array, axis=-1, keepdims=True)
        if not np.isfinite(norms).all() or not norms.all():
            raise InferenceError(f"{name} has an embedding that is all zeros, not finite or too long to measure.")
        return array / norms


def _in_given(spans: list[Span], prefix: int) -> list[Span]:
    """Windows of a text without its prefix as places in the text as given; the first holds the prefix, too."""
    return [(begin + prefix if begin else 0, end + prefix) for begin, end in spans]


def _of_given(result: dict[str, Any], given: list[str]) -> dict[str, Any]:
    """A result of passages that were given with the search: they have no ids, and are shown as given."""
    text, own = given[result["index"]], result["passage"]
    shown = {"rank": result["rank"], "passage": text, "score": result["score"], "index": result["index"]}
    if "span" in result:
        shown["span"] = _in_given([result["span"]], len(text) - len(own))[0]
    return shown


def _as_list(texts: Iterable[str], name: str) -> list[str]:
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        raise InferenceError(f"{name} must be a list of texts, not {type(texts).__name__}: put a single text in a list.")
    return list(texts)


# -----------------------------------------------------------------------------------------------------------
# Finding and loading the model


def _find_model(model_path: str | os.PathLike[str] | None) -> Path:
    """The model's folder; raises InferenceError where there is none."""
    if model_path is not None:
        folder = Path(model_path).expanduser()
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise InferenceError(f"No model: {folder} {what}. {_REMEDY}, or name another folder.")
        return folder
    default = Path(DEFAULT_MODEL_PATH)
    sample = Path(read_recipe(SAMPLE_RECIPE)["output_dir"])
    if _looks_finished(default):
        return default
    if _looks_finished(sample):
        logger.info("No model at %s: using %s, trained on the embedded sample", default, sample)
        return sample
    raise InferenceError(f"No model at {default} nor at {sample}. {_REMEDY}.")


def _looks_finished(folder: Path) -> bool:
    # A run that was stopped before its first checkpoint leaves the folder without these.
    return (folder / "modules.json").is_file() or (folder / "config.json").is_file()


def _load_encoder(
    folder: Path, device: str | None, backend: str, precision: str, vocabulary: str
) -> TorchEncoder | OnnxEncoder:
    """The model behind one of the backends. Raises InferenceError (no such backend, and as the loaders below)."""
    if backend == "torch":
        return TorchEncoder(_load_model(folder, _choose_device(device)), folder)
    if backend != "onnx":
        raise InferenceError(f"backend must be torch or onnx, not {backend!r}.")
    if device not in (None, "auto", "cpu"):
        raise InferenceError(f"The backend onnx runs on the CPU, not on {device!r}: leave the device out, or use torch.")
    export = export_folder(folder, precision, vocabulary)
    if not is_current(export, folder):
        check_packages()
        export_model(_load_model(folder, "cpu"), folder, precision, vocabulary)
    return OnnxEncoder(export)


def _load_model(folder: Path, device: str) -> SentenceTransformer:
    """The model, in float32, its prompts settled. Raises InferenceError (incomplete, broken)."""
    from sentence_transformers import SentenceTransformer

    from trainer.base_model import BaseModelError, missing_model_files

    try:
        missing = missing_model_files(folder)
    except (BaseModelError, OSError, LookupError, TypeError) as error:
        raise InferenceError(f"{folder} is not a model that can be read: {error}. {_REMEDY}.") from error
    if missing:
        raise InferenceError(f"{folder} is not a complete model: {', '.join(missing)} missing. {_REMEDY}.")
    try:
        with _no_progress_bar():  # of loading weights, which takes a second
            model = SentenceTransformer(str(folder), device=device, local_files_only=True, model_kwargs={"dtype": "float32"})
    except Exception as error:  # a damaged file can raise anything, down to the tokenizer's bare Exception
        raise InferenceError(
            f"The model at {folder} cannot be loaded: {error}. If it is damaged, train it again."
        ) from error
    _settle_prompts(model, folder)
    return model.eval()


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _settle_prompts(model: SentenceTransformer, folder: Path) -> None:
    """Leave exactly the prompts "query" and "document" in the model, its own or else E5's."""
    # sentence-transformers holds "" under both names where a folder stores none, and prefers that to a stored "passage".
    stored = {name: prompt for name, prompt in model.prompts.items() if prompt}
    document = next((stored[name] for name in ("document", "passage", "corpus") if name in stored), None)
    if "query" not in stored or document is None:
        logger.info("%s stores no prompts: using %r and %r", folder, QUERY_PREFIX, PASSAGE_PREFIX)
    model.prompts = {"query": stored.get("query", QUERY_PREFIX), "document": document or PASSAGE_PREFIX}
    model.default_prompt_name = None


def _choose_device(wanted: str | None) -> str:
    """The device's name. Raises InferenceError where one that was asked for cannot be used."""
    import torch

    from trainer.device import DeviceError, choose_device

    if wanted in (None, "auto"):
        try:
            return str(choose_device("auto")[0])
        except DeviceError as error:  # unlike training, a search is over soon on a CPU too
            logger.warning("%s Searching on the CPU.", error)
            return "cpu"
    try:
        (torch.ones(2, device=wanted) + 1).sum().item()  # a GPU too old for this build fails only at the sum
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InferenceError(f"The device {wanted!r} cannot be used: {reason}. Use cpu, or leave it out.") from None
    return str(wanted)


# -----------------------------------------------------------------------------------------------------------
# Command line


EXAMPLE_PASSAGES = (
    "한글은 조선의 세종대왕이 1443년에 만들어 1446년에 훈민정음이라는 이름으로 반포하였다.",
    "한라산은 제주도 한가운데에 솟은 화산으로, 높이는 해발 1,947미터이다.",
    "경복궁은 1395년에 지어진 조선의 으뜸 궁궐로, 서울 종로구에 있다.",
    "김치는 배추나 무를 소금에 절인 뒤 고춧가루, 마늘, 젓갈 등으로 버무려 발효시킨 음식이다.",
    "낙동강은 강원도 태백에서 발원하여 남해로 흘러드는, 남한에서 가장 긴 강이다.",
    "빛은 진공에서 1초에 약 30만 킬로미터를 나아간다.",
)
EXAMPLE_QUERIES = ("제주도에 있는 산의 높이는?", "남한에서 가장 긴 강은 무엇인가?", "김치는 어떻게 담그는가?")


def print_examples(engine: E5KorQuADInference, top_k: int) -> None:
    """Print three examples: one query, a batch of queries, and similarities without a search."""
    print("\n1. One query: search(query, passages)\n")
    query = "한글을 만든 사람은 누구인가?"
    print_results(query, engine.search(query, EXAMPLE_PASSAGES, top_k))

    print("\n2. A batch: batch_search(queries, passages), the best passage of each\n")
    answers = engine.batch_search(EXAMPLE_QUERIES, EXAMPLE_PASSAGES, top_k=1)
    for question, results in zip(EXAMPLE_QUERIES, answers, strict=True):
        print_results(question, results)

    print("\n3. Direct similarity: compute_similarity(query, passage)\n")
    query = "빛은 얼마나 빠른가?"
    print(f"  {query}")
    for passage in (EXAMPLE_PASSAGES[5], EXAMPLE_PASSAGES[3]):
        print(f"     {engine.compute_similarity(query, passage):6.3f}  {passage}")


def print_results(query: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Print the query, and under it rank, score and passage (its best window) of each result. What is hidden is said."""
    print(f"  {query}")
    if not results:
        print("     nothing but what the question says itself")
    for result in results:
        text = str(result["passage"])
        begin, end = result.get("span", (0, len(text)))
        shown = f"{'…' if begin else ''}{text[begin : min(end, begin + _SHOWN_CHARACTERS)]}"
        hidden = len(text) - min(end - begin, _SHOWN_CHARACTERS)
        more = f"… ({hidden:,} more characters)" if hidden else ""
        source = f"  [{result['id']}]" if "id" in result else ""
        print(f"  {result['rank']:>2} {result['score']:6.3f}  {shown}{more}{source}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns the exit status: 0, 1 for what went wrong, 130 for Ctrl-C.

    Wrong options end the program with status 2, as argparse does.
    """
    print_any_text()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "sentence_transformers", "torch", "transformers"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    options = _parse_options(argv)
    try:
        options.run(options)
    except InferenceError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read the answers has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _run_examples(options: argparse.Namespace) -> None:
    """Without a command: one question and a file of passages, or three examples."""
    documents = _read_all([options.passages]) if options.passages is not None else []
    engine = _load_engine(options)
    if documents:
        passages = [document.passage for document in documents]
        print_results(options.query, engine.search(options.query, passages, options.top_k, options.skip_in_query))
    else:
        print_examples(engine, options.top_k)


def _run_index(options: argparse.Namespace) -> None:
    documents = _read_all(options.files)
    with storage.writing(options.out):  # from before the long work on: a second writer hears of it at once
        engine = _load_engine(options)
        _index_documents(engine, documents)
        engine.save(options.out)
    ask = f'python inference.py search {shlex.quote(options.out)} "질문"'
    print(f"{options.out}: {len(documents):,} passages. Ask: {ask}")


def _read_all(files: Sequence[str]) -> list[Document]:
    documents = [document for file in files for document in read_documents(file)]
    check_ids([document.id for document in documents])
    return documents


def _index_documents(engine: E5KorQuADInference, documents: Sequence[Document]) -> None:
    engine.build_index(
        [document.passage for document in documents],
        ids=[document.id for document in documents],
        metadata=[document.metadata for document in documents],
    )


def read_documents(path: str) -> list[Document]:
    """The passages of a file, by the end of its name: .jsonl, .json (KorQuAD: its paragraphs or pages), else text.

    Raises InferenceError where it cannot be read or used.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".json":
        return _read_korquad(path)
    return read_json_lines(path) if suffix in (".jsonl", ".ndjson") else read_text(path)


def _read_korquad(path: str) -> list[Document]:
    from dataloader import DatasetError, clean_html_text, load_json_file

    try:
        articles = load_json_file(path)["articles"]
    except (DatasetError, OSError) as error:
        raise InferenceError(f"{error}.") from None
    texts = [(article["title"], clean_html_text(text)) for article in articles for text in article["paragraphs"]]
    documents = [
        Document(f"{path}:{number}", text, {"title": title}) for number, (title, text) in enumerate(texts, 1) if text.strip()
    ]
    if not documents:
        raise InferenceError(f"{path} holds no paragraphs.")
    return documents


def _run_search(options: argparse.Namespace) -> None:
    made_with = storage.read_manifest(options.index).model
    if options.model_path is None and Path(made_with).is_dir():
        options.model_path = made_with
    engine = _load_engine(options)
    engine.load(options.index)
    failed = 0
    for query in [options.query] if options.query is not None else _asked_questions():
        try:
            results = engine.search(query, top_k=options.top_k, skip_in_query=options.skip_in_query)
        except InferenceError as error:
            if options.query is not None:
                raise
            failed += 1
            print(f"Error: {error}", file=sys.stderr)
            continue
        if options.json:
            print(json.dumps({"query": query, "results": results}, ensure_ascii=False), flush=True)
        else:
            print_results(query, results)
    if failed:
        raise InferenceError(f"{failed:,} questions could not be searched for.")


def _run_compare(options: argparse.Namespace) -> None:
    comparison = _load_comparison(options)
    columns = shutil.get_terminal_size(fallback=(120, 24)).columns
    for number, query in enumerate(options.query or EXAMPLE_QUERIES):
        answer = comparison.ask(query, options.top_k)
        if options.json:
            print(json.dumps(answer, ensure_ascii=False), flush=True)
        else:
            if number:
                print()
            print_comparison(answer, columns)


def _run_serve(options: argparse.Namespace) -> None:
    from search.serve import SearchServer

    with SearchServer(options.host, options.port) as server:  # first: a port in use is said before the models load
        comparison = _load_comparison(options)
        print(f"{server.url} (Ctrl-C ends)", flush=True)
        server.serve(comparison.ask)


def _load_comparison(options: argparse.Namespace) -> Comparison:
    """Base and tuned model, each with an index of the same passages: the files', or else the examples'."""
    documents = _read_all(options.passages or [])
    if not documents:
        documents = [Document(str(number), text, {}) for number, text in enumerate(EXAMPLE_PASSAGES)]
    tuned_path = _find_model(options.model_path)
    base_path = _find_base(options.base, tuned_path)
    engines = []
    for path in (base_path, tuned_path):
        engines.append(E5KorQuADInference(path, options.device, options.backend, options.precision, options.vocabulary))
        _index_documents(engines[-1], documents)
    return Comparison(*engines)


def _find_base(name: str, tuned_path: Path) -> Path:
    """The folder of the base model; "base" is what the tuned model was trained from."""
    if name == "base":
        name = _trained_from(tuned_path)
    if Path(name).expanduser().is_dir():
        return _find_model(name)
    import huggingface_hub

    from trainer.base_model import BaseModelError, resolve_base_model

    try:
        source = resolve_base_model(name)
        return source.path or Path(huggingface_hub.snapshot_download(name, ignore_patterns=["onnx/*", "openvino/*"]))
    except BaseModelError as error:
        raise InferenceError(f"No base model: {error}".replace("--model_name", "--base")) from error
    except OSError as error:
        raise InferenceError(f"The base model {name} cannot be downloaded: {error}. Give --base a folder.") from error


def _trained_from(model_path: Path) -> str:
    try:
        return str(json.loads((model_path / "training_config.json").read_text(encoding="utf-8"))["model_name"])
    except (OSError, ValueError, KeyError, TypeError):
        logger.info("%s does not say what it was trained from: the base is %s", model_path, TrainingConfig.model_name)
        return TrainingConfig.model_name


def _asked_questions() -> Iterator[str]:
    """Questions as they are typed, until the end of input (Ctrl-D); blank lines are passed over."""
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # bytes that are no text: said by the search
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # arrow keys in the prompt
        print("Type a question; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            line = input("\n> ") if sys.stdin.isatty() else input()
        except EOFError:
            return
        if line.strip():
            yield line.strip()


def _load_engine(options: argparse.Namespace) -> E5KorQuADInference:
    """The model that the options name; a wrong path is said before torch is imported."""
    return E5KorQuADInference(
        _find_model(options.model_path), options.device, options.backend, options.precision, options.vocabulary
    )


def _parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in _COMMANDS:
        name = arguments.pop(0)
        what, add_options, run = _COMMANDS[name]
        parser = argparse.ArgumentParser(f"{_PROGRAM} {name}", description=what, allow_abbrev=False)
        add_options(parser)
        _add_model_options(parser)
        options = parser.parse_args(arguments)
        _refuse_empty_questions(parser, getattr(options, "query", None))
        return argparse.Namespace(**vars(options), run=run)
    parser = argparse.ArgumentParser(
        _PROGRAM,
        description="Search passages with the finished model. Without --query: three examples.",
        epilog="\n".join(
            ["commands (each has its --help):", *(f"  {name:9} {what}" for name, (what, *_) in _COMMANDS.items())]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--query", metavar="TEXT", help="the question; needs --passages")
    parser.add_argument("--passages", metavar="FILE", help=f"where to look. {_FILES_HELP}")
    _add_top_k(parser)
    _add_skip(parser)
    _add_model_options(parser)
    options = parser.parse_args(arguments)
    if (options.query is None) != (options.passages is None):
        parser.error("--query TEXT and --passages FILE go together")
    if options.skip_in_query and options.query is None:
        parser.error("--skip_in_query goes with --query TEXT: the examples leave nothing out")
    if options.query is not None and not options.query.strip():
        parser.error("--query is empty: ask a question")
    return argparse.Namespace(**vars(options), run=_run_examples)


def _refuse_empty_questions(parser: argparse.ArgumentParser, asked: str | list[str] | None) -> None:
    """End the program before any model is loaded. `asked`: of `search` one question or none, of `compare` several."""
    if isinstance(asked, str) and not asked.strip():
        parser.error("QUESTION is empty: ask a question")
    for number, question in enumerate(asked if isinstance(asked, list) else [], 1):
        if not question.strip():
            parser.error(f"question {number} of --query is empty: ask a question")


def _add_index_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help=_FILES_HELP)
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write the index to")


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="DIR", help="a folder that `index` wrote")
    parser.add_argument("query", nargs="?", metavar="QUESTION", help="without it: a prompt, or standard input line by line")
    parser.add_argument("--json", action="store_true", help="one JSON object a question, for programs")
    _add_top_k(parser)
    _add_skip(parser)


def _add_compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--query", nargs="+", metavar="QUESTION", help="one or more (default: three examples)")
    parser.add_argument("--json", action="store_true", help="one JSON object a question, for programs")
    _add_top_k(parser)
    _add_comparison_options(parser)


def _add_serve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="0.0.0.0: reached from other machines, too")
    parser.add_argument("--port", metavar="INT", type=_port, default=8000, help="0 takes a free one (default: 8000)")
    _add_comparison_options(parser)


def _add_comparison_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--passages", nargs="+", metavar="FILE", help="where to look: files as for `index` (default: six examples)"
    )
    parser.add_argument(
        "--base", metavar="DIR", default="base", help="the base model: a folder or hub id (default: what was trained)"
    )


def _add_top_k(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--top_k", metavar="INT", type=_count, default=5, help="passages to show (default: 5)")


def _add_skip(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--skip_in_query",
        action="store_true",
        help="leave out passages that stand word for word in the question: for short answers",
    )


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model_path", metavar="DIR", help=f"the model's folder (default: {DEFAULT_MODEL_PATH})")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, … (default: a GPU where there is one)")
    parser.add_argument(
        "--backend", choices=("torch", "onnx"), default="torch", help="onnx: an export, fast on a CPU (default: torch)"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="int8", help="of the export (default: int8)")
    parser.add_argument("--vocabulary", choices=VOCABULARIES, default="korean", help="of the export (default: korean)")


# Name → (what it does, adds its own options to a parser, does it).
_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]] = {
    "index": ("encode passages once and keep them in a folder", _add_index_options, _run_index),
    "search": ("ask an index: one question, or one after another", _add_search_options, _run_search),
    "compare": ("base and tuned model side by side on the same questions", _add_compare_options, _run_compare),
    "serve": ("the same as a small web page on this machine", _add_serve_options, _run_serve),
}


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return number


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
