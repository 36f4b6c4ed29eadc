"""How this process's memory is kept: pages that pictures were in are used again for the next.

The C library gives large freed blocks back to the system, and takes pages anew for the next
message: for five pictures of 640x360 that is hundreds of page faults a message, each as long as
copying several pages.
"""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

# <malloc.h>: what mallopt(3) calls them.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # bytes: glibc takes no more
_KEPT = 64 << 20
"""Bytes of free memory at the end of each heap that are kept: one message of the largest size."""


def keep_freed_memory() -> bool:
    """Have freed memory used again rather than given back; whether this system can (glibc can).

    The process goes on holding as much memory as it once needed. For programs that are handed
    large messages all the time; to be called before the first one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    thresholds = {_M_MMAP_THRESHOLD: _LARGEST_MMAP_THRESHOLD, _M_TRIM_THRESHOLD: _KEPT}
    return all(mallopt(name, value) == 1 for name, value in thresholds.items())
