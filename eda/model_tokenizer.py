"""The model's tokenizer without the model: texts to numbers of tokens.

source = find_tokenizer("intfloat/multilingual-e5-small")   # source.file, or why there is none: source.note
token_lengths(load_tokenizer(source.file), ["query: 수도는?"])
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
TEXTS_PER_BATCH = 1000


class TokenizerSource(NamedTuple):
    """Where the tokenizer of `model` is read from; `file` is None where none can be had, and `note` says why."""

    model: str
    file: str | None
    note: str


def find_tokenizer(model_name: str) -> TokenizerSource:
    """The tokenizer that training with `model_name` would use.

    Finding a model imports torch, and a tokenizer of 250,000 tokens is large: both happen in a process of its own, which
    ends with its answer, so that this one stays small.
    """
    context = multiprocessing.get_context("spawn")
    ignore_interrupt = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends this process, which ends the other
    try:
        with ProcessPoolExecutor(1, context, initializer=signal.signal, initargs=ignore_interrupt) as pool:
            return pool.submit(locate_tokenizer, model_name).result()
    except BrokenProcessPool:
        return TokenizerSource(model_name, None, "the process that looked for the model ended abruptly")


def locate_tokenizer(model_name: str) -> TokenizerSource:
    """`find_tokenizer` in this process: look where training looks (folder, hub cache, hub, 4-bit copy), and try it."""
    folder = Path(model_name).expanduser()
    try:
        source = (
            _in_folder(model_name, folder, "local folder") if (folder / TOKENIZER_FILE).is_file() else _by_name(model_name)
        )
    except (RuntimeError, OSError) as error:  # BaseModelError is the first, the hub's own errors are the second
        return TokenizerSource(model_name, None, " ".join(str(error).split()))
    if source.file is not None:
        try:
            load_tokenizer(source.file)
        except Exception as error:  # the library raises nothing narrower
            return TokenizerSource(model_name, None, f"{source.file} cannot be read: {error}")
    return source


def _by_name(model_name: str) -> TokenizerSource:
    from huggingface_hub import hf_hub_download

    from trainer.base_model import resolve_base_model

    found = resolve_base_model(model_name)
    if found.path is None:
        return TokenizerSource(model_name, hf_hub_download(model_name, TOKENIZER_FILE), "hub")
    return _in_folder(model_name, found.path, found.kind)


def _in_folder(model_name: str, folder: Path, kind: str) -> TokenizerSource:
    files = sorted(folder.rglob(TOKENIZER_FILE), key=lambda file: len(file.parts))  # in the first module's folder
    if not files:
        return TokenizerSource(model_name, None, f"{folder} has no {TOKENIZER_FILE}")
    return TokenizerSource(model_name, str(files[0]), kind if kind == "local folder" else f"{kind}: {folder}")


@lru_cache(maxsize=1)
def load_tokenizer(file: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json, set to cut and pad nothing; read once a process."""
    tokenizer = Tokenizer.from_file(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_lengths(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[int]:
    """Tokens of each text with the special ones around it, as the model would read it uncut."""
    for start in range(0, len(texts), TEXTS_PER_BATCH):
        for encoding in tokenizer.encode_batch_fast(texts[start : start + TEXTS_PER_BATCH]):
            yield len(encoding.ids)
