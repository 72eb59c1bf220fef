"""What other people's tools ask of an embedding model.

InMemoryVectorStore(model)                                           # LangChain
LangchainEmbedding(model)                                            # LlamaIndex, with llama-index-embeddings-langchain
client.create_collection("passages", embedding_function=model)       # Chroma
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

_loaded: weakref.WeakValueDictionary[str, ToolEmbeddings] = weakref.WeakValueDictionary()  # by model_name


class ToolEmbeddings:
    """The names under which LangChain, LlamaIndex and Chroma call `encode_query`, `encode_queries` and `encode_passages`.

    None of them need be installed: they look for methods, not for a class.
    """

    model_name: str
    encode_query: Callable[[str], np.ndarray]
    encode_queries: Callable[[list[str]], np.ndarray]
    encode_passages: Callable[[list[str]], np.ndarray]

    # LangChain and LlamaIndex; their asynchronous calls too

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Passages → their embeddings. A passage that is too long counts by its beginning, as in `encode_passages`."""
        return self.encode_passages(texts).tolist()

    def embed_query(self, input: str | list[str]) -> Any:
        """A text → its embedding as a list (LangChain); a list of texts → a list of arrays (Chroma)."""
        return self.encode_query(input).tolist() if isinstance(input, str) else list(self.encode_queries(input))

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents` in a thread."""
        return await asyncio.to_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query` in a thread."""
        return await asyncio.to_thread(self.embed_query, text)

    # Chroma: (N) texts → N arrays (D,), and how a collection names and compares them

    def __call__(self, input: list[str]) -> list[np.ndarray]:
        """Passages → their embeddings."""
        return list(self.encode_passages(input))

    @staticmethod
    def name() -> str:
        """What a collection remembers, so that it is not opened with another function by mistake."""
        return "korquad-e5"

    def get_config(self) -> dict[str, Any]:
        """What a collection remembers of the model."""
        _loaded[self.model_name] = self
        return {"model_path": self.model_name}

    @classmethod
    def build_from_config(cls, config: dict[str, Any]) -> ToolEmbeddings:
        """The model that a collection remembers. Chroma asks at many calls: one that is loaded is not loaded again."""
        return _loaded.get(config["model_path"]) or cls(config["model_path"])  # type: ignore[call-arg]

    def default_space(self) -> str:
        """Of the distances that Chroma knows."""
        return "cosine"

    def supported_spaces(self) -> list[str]:
        """All order vectors of length 1 alike."""
        return ["cosine", "l2", "ip"]

    def is_legacy(self) -> bool:
        """A collection can remember this function."""
        return False

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Any folder may be named; loading says what is wrong with it."""

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """A model may move to another folder."""
