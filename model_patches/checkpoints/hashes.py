"""Hashes of files, of which many are large and asked for often."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache


def sha256_of(path: str | os.PathLike) -> str:
    """Return a file's sha256 as 64 hex digits; it is read once for each state, which is its size and its time."""
    state = os.stat(path)
    return _sha256_of(os.path.abspath(path), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256_of(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while part := file.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()
