"""Memory of large arrays that is kept for the next step, not found anew.

glibc takes what no free piece of its heap can hold, and is larger than 32 MB, from the kernel, and gives it back when it is
freed; so it does with the top of its heap. Every page is then cleared and mapped again at its next use. On a CPU a step
whose arrays are that large (in float32 from some 5,500 tokens on) takes up to a third longer for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Any

import torch

# Of mallopt, malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = -1
_MEGABYTE = 1024**2


@contextlib.contextmanager
def kept_heap(device: torch.device) -> Iterator[None]:
    """While entered, the process keeps what it frees, for training on a CPU; afterwards it is given back.

    That is for all of the process; afterwards the limits are those that glibc comes to by itself. Elsewhere than on a CPU,
    and with another C library than glibc, nothing changes.
    """
    libc = _glibc() if device.type == "cpu" else None
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, 65536)
        libc.mallopt(_MMAP_THRESHOLD, 32 * _MEGABYTE)
        libc.mallopt(_TRIM_THRESHOLD, 64 * _MEGABYTE)
        libc.malloc_trim(0)


def _glibc() -> Any:
    """None where the C library is another one."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
