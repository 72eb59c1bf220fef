"""Sides of a comparison that take turns, each in a process of its own.

In one process the sides share a heap: the smaller one's steps take up to a quarter longer beside the larger one's memory,
which no user's run has beside it. Turns in one run are kept, since a machine's speed drifts.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from typing import Any


class Side:
    """What `make(*arguments)` returns, in a process of its own; all that goes there and comes back is pickled."""

    def __init__(self, make: Callable[..., Any], *arguments: Any):
        spawn = multiprocessing.get_context("spawn")
        self._end, there = spawn.Pipe()
        spawn.Process(target=_serve, args=(there, make, arguments), daemon=True).start()
        there.close()  # so that a process that fails ends the wait for it, with EOFError
        self._end.recv()  # it is made: the next side's start takes no time from this one's turn

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of it returns; nothing else of this run works meanwhile."""
        self._end.send((method, arguments))
        return self._end.recv()


def _serve(end: Any, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    logging.disable(logging.WARNING)
    made = make(*arguments)
    end.send(None)
    while True:
        try:
            method, arguments = end.recv()
        except EOFError:  # the run is over
            return
        end.send(getattr(made, method)(*arguments))
