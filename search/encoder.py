"""Texts → embeddings, by one of two backends with the same methods.

TorchEncoder runs the sentence-transformers model. OnnxEncoder runs its export (search/export.py) on the CPU and needs of all
packages only numpy, tokenizers, tqdm and onnxruntime, which load in a fraction of the time.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from search.errors import InferenceError
from search.fingerprint import model_fingerprint

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

# Tokens in a batch. Little more than one passage: what the layers pass on then stays in the processor's caches. Measured
# on passages of 300 tokens, single-threaded: 11.3 a second at 512, 10.1 at 1024, 5.2 at 8192.
_BATCH_TOKENS = 512
_PADDING = 8  # a batch may be padded by one token in so many
_TEXTS_AT_ONCE = 4096  # tokenised and sorted by length together


class TorchEncoder:
    """A sentence-transformers model, its prompts "query" and "document" settled, as an encoder."""

    def __init__(self, model: SentenceTransformer, model_path: Path):
        self.model = model
        self.model_path = model_path
        self.prompts = {name: prompt or "" for name, prompt in model.prompts.items()}
        self.dimension = int(model.get_embedding_dimension() or 0)
        self.place = str(model.device)

    @property
    def fingerprint(self) -> str:
        """The identity of the model's weights, tokenizer and settings."""
        return model_fingerprint(self.model_path)

    @property
    def max_seq_length(self) -> int | None:
        """Tokens that the model reads of a text, the prompt's and the special ones included."""
        return self.model.max_seq_length

    def token_spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Where the tokens of each text stand, special ones at (0, 0); nothing is cut off."""
        tokens = self.model.tokenizer(list(texts), return_offsets_mapping=True, truncation=False, verbose=False)
        return tokens["offset_mapping"]

    def encode(self, texts: Sequence[str], prompt: str, batch_size: int = 32, show_progress: bool = False) -> np.ndarray:
        """(N, D) float32, L2-normalised, of texts without prefix; `prompt` is "query" or "document".

        Raises:
            InferenceError: the device's memory is full.
        """
        import torch

        encode = self.model.encode_query if prompt == "query" else self.model.encode_document
        try:
            embeddings = encode(
                list(texts), batch_size=batch_size, show_progress_bar=show_progress, normalize_embeddings=True
            )
        except torch.OutOfMemoryError as error:
            raise InferenceError(
                f"The memory of {self.model.device} is full. Free it, use a smaller batch_size, or the device cpu."
            ) from error
        return np.asarray(embeddings, np.float32)


class OnnxEncoder:
    """An export of the model as an encoder.

    In int8 the rounding depends on what else is in a batch: the same text can differ by a cosine of 1e-4 from call to call.

    Args:
        folder: what `search.export.export_model` wrote.
        settings: the content of its export.json, where that is not written yet.

    Raises:
        InferenceError: onnxruntime is missing or cannot load the graph.
    """

    def __init__(self, folder: Path, settings: dict[str, Any] | None = None):
        _import_onnxruntime()
        from tokenizers import Tokenizer

        settings = settings or json.loads((folder / "export.json").read_text(encoding="utf-8"))
        self.prompts: dict[str, str] = settings["prompts"]
        self.model = None
        self.dimension: int = settings["dimension"]
        self.max_seq_length: int | None = settings["max_seq_length"]
        self.fingerprint: str = settings.get("fingerprint", "")
        self.vocabulary: str = settings["vocabulary"]
        self.place = f"cpu, onnx in {settings['precision']}, vocabulary {self.vocabulary}"
        self._pad_id, self._unknown_id = settings["pad_id"], settings["unknown_id"]
        self._graph = folder / "model.onnx"
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises nothing more special
            raise InferenceError(f"{folder} cannot be loaded: {error}. Delete it: it is made again.") from error
        # Special tokens at the end, which stay where a text is cut.
        self._tail = int(np.argmin(self.tokenizer.encode("a").special_tokens_mask[::-1]))
        self._session = self._start_session(_cores())

    @cached_property
    def _one_core_session(self) -> Any:
        """For many batches: each core runs whole batches, which loses less than to share each product."""
        return self._start_session(1)

    def _start_session(self, threads: int) -> Any:
        onnxruntime = _import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        try:
            return onnxruntime.InferenceSession(
                self._graph,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["SkipLayerNormFusion"],  # slower than its parts, by a tenth of a query's time
            )
        except Exception as error:  # of onnxruntime's own kinds, which share no base
            raise InferenceError(f"{self._graph.parent} cannot be loaded: {error}. Delete it: it is made again.") from error

    def token_spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Where the tokens of each text stand, special ones at (0, 0); nothing is cut off."""
        return [encoding.offsets for encoding in self.tokenizer.encode_batch(list(texts))]

    def encode(self, texts: Sequence[str], prompt: str, batch_size: int = 32, show_progress: bool = False) -> np.ndarray:
        """(N, D) float32, L2-normalised, of texts without prefix; `prompt` is "query" or "document".

        Characters that the vocabulary has no piece for count as unknown; how many texts have such is logged as a warning.

        Args:
            batch_size: texts in a batch at most; there are fewer where they are long.
        """
        from tqdm import tqdm

        embeddings = np.empty((len(texts), self.dimension), np.float32)
        unknown = 0
        with tqdm(total=len(texts), desc="Texts", disable=not show_progress) as progress:
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                tokens = self._tokenize([self.prompts[prompt] + text for text in texts[start : start + _TEXTS_AT_ONCE]])
                unknown += sum(self._unknown_id in ids for ids in tokens)
                for rows, part in self._run(tokens, _batches([len(ids) for ids in tokens], batch_size)):
                    embeddings[start + rows] = part
                    progress.update(len(rows))
        if unknown and self.vocabulary != "full":
            logger.warning(
                "%s of %s texts hold characters that the vocabulary %r has no piece for: these count as unknown.",
                f"{unknown:,}", f"{len(texts):,}", self.vocabulary,
            )  # fmt: skip
        return embeddings

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, cut to what the model reads."""
        limit = self.max_seq_length
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        if limit is None:
            return tokens
        return [ids if len(ids) <= limit else ids[: limit - self._tail] + ids[len(ids) - self._tail :] for ids in tokens]

    def _run(self, tokens: list[list[int]], batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The texts' numbers and embeddings of each batch."""

        def run(session: Any, rows: np.ndarray) -> np.ndarray:
            longest = len(tokens[rows[-1]])
            ids = np.full((len(rows), longest), self._pad_id, np.int64)
            mask = np.zeros((len(rows), longest), np.int64)
            for place, row in enumerate(rows):
                ids[place, : len(tokens[row])] = tokens[row]
                mask[place, : len(tokens[row])] = 1
            return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]  # (batch, D)

        if len(batches) <= 1 or _cores() == 1:
            for rows in batches:
                yield rows, run(self._session, rows)
            return
        session = self._one_core_session
        pool = ThreadPoolExecutor(_cores())
        try:
            yield from zip(batches, pool.map(lambda rows: run(session, rows), batches), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)  # what is left after Ctrl-C


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise InferenceError(
            f"The backend onnx cannot be used: {error}. Install it: pip install -r requirements-search.txt"
        ) from None
    return onnxruntime


def _batches(lengths: Sequence[int], batch_size: int) -> list[np.ndarray]:
    """Numbers of texts of nearly one length, the longest last; batches of long texts first, so that cores end together."""
    batches: list[list[int]] = []
    padding = 0
    for row in np.argsort(lengths, kind="stable")[::-1].tolist():
        batch = batches[-1] if batches else []
        if batch:
            longest = lengths[batch[0]]
            padding += longest - lengths[row]
            tokens = longest * (len(batch) + 1)
        if not batch or len(batch) == batch_size or tokens > _BATCH_TOKENS or padding * _PADDING > tokens:
            batches.append([row])
            padding = 0
        else:
            batch.append(row)
    return [np.array(batch[::-1]) for batch in batches]


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
