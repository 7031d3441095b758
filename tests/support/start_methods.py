"""How this system starts processes: Linux forks them, Windows and macOS start a new Python (spawn)."""

from __future__ import annotations

import multiprocessing

import pytest

FORKS = multiprocessing.get_all_start_methods()[0] == "fork"
# a new Python under pytest does not load the pack, so it cannot receive the pack's objects
needs_fork = pytest.mark.skipif(not FORKS, reason="this system forks no processes")
