"""glibc's allocator, told to keep the pages it has: without this a CPU training step pays for them again and again.

By default glibc serves a large tensor with fresh pages of its own (mmap above a threshold) and gives the top of the
heap back when a step frees it (trim); the next step faults every page in again. docs/benchmarks.md has the figures.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGE = 2**31 - 1


def keep_freed_pages() -> bool:
    """Serve large blocks from the heap and never trim it; whether that took effect.

    Only glibc has this (Linux); elsewhere nothing happens. Peak memory stays about the same, since a step frees and
    takes the same blocks; the process just does not shrink between them.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_M_MMAP_THRESHOLD, _LARGE) == 1, mallopt(_M_TRIM_THRESHOLD, _LARGE) == 1])
