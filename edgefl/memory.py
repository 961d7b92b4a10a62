"""How much freed memory glibc keeps, on Linux; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h


def keep_freed(*, block_bytes: int, all_bytes: int) -> None:
    """Keep freed blocks smaller than `block_bytes`, up to about `all_bytes` together; give larger ones back at once.

    By default glibc gives every block above 128 KiB back until it was freed once, and then keeps those up to 32 MiB.
    Memory that is given back comes anew page by page: for messages of some 100 KiB that was half of a device's work.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, block_bytes), (M_TRIM_THRESHOLD, all_bytes)):
            mallopt(option, value)


def installed_mb() -> int:
    """The memory of this machine in MiB; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (ValueError, AttributeError, OSError):
        return 0
