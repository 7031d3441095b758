"""Real hosts beside each other, each with folders of its own and one torch thread."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from troupe_tools.engine.comfyui import Host
from troupe_tools.engine.host_server import HostServer


def server_in(host: Path, base: Path) -> HostServer:
    """A server that is not started yet, with its folders in `base`."""
    return HostServer(Host(host, sys.executable, gpu=False), base, {}, lambda text: None)


@contextmanager
def started_together(servers: Sequence[HostServer]) -> Iterator[list[HostServer]]:
    """The servers while they run; they start at the same time."""
    with ThreadPoolExecutor(len(servers)) as pool:
        started = [pool.submit(server.__enter__) for server in servers]
    try:
        yield [future.result() for future in started]
    finally:
        for server, future in zip(servers, started, strict=True):
            if future.exception() is None:
                server.__exit__()
