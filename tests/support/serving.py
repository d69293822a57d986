"""Servers of the project as processes, started and waited for."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from paths import ROOT


def start(arguments: Sequence[str], port: int, module: str = "jakiro_serve.cli", **environment: str) -> subprocess.Popen[bytes]:
    """A server that listens at a port of this machine. Raises RuntimeError where it ends first or is silent."""
    path = os.pathsep.join([str(ROOT / "runtime"), str(ROOT)])
    command = [sys.executable, "-m", module, *arguments, "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path, **environment})
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return server
        if server.poll() is not None:
            raise RuntimeError(f"{' '.join(command)} ended with {server.returncode}")
        time.sleep(0.1)
    stop(server)
    raise RuntimeError(f"{' '.join(command)} does not listen")


def stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    server.wait(60)


@contextlib.contextmanager
def serving(arguments: Sequence[str], **environment: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`jakiro-serve` at a free port: its URL, and the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start(arguments, port, **environment)
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        stop(server)
