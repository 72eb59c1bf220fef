"""Search: texts → windows → vectors → an index on disk. Never imports trainer or dataloader."""

from search.errors import InferenceError

__all__ = ["InferenceError"]
