"""Serves one application on this machine alone, and ends it whatever happens."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

Address = tuple[str, int]
ROOT = Path(__file__).parents[2]
PATIENCE = 30.0
"""How long, in seconds, a server may take to begin, and to end."""


@contextmanager
def serve(threads: int, environment: dict[str, str]) -> Iterator[Address]:
    """Run gunicorn with one worker of so many threads, on a free port of 127.0.0.1."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with socket.create_server(("127.0.0.1", 0)) as listener, log.open("wb") as output:
            address = listener.getsockname()
            process = _start(listener.fileno(), threads, environment, folder, output)
        try:
            _wait_for(process, address)
            yield address
        except BaseException:
            print(f"The server's log:\n{log.read_text()[-4000:]}", file=sys.stderr)
            raise
        finally:
            _end(process)


def _start(
    fileno: int, threads: int, environment: dict[str, str], folder: str, output: object
) -> subprocess.Popen[bytes]:
    command = [
        *(sys.executable, "-m", "gunicorn", "benchmarks.load.app:create_app()"),
        *(f"--bind=fd://{fileno}", "--worker-class=gthread", "--workers=1"),
        *(f"--threads={threads}", "--keep-alive=60", "--graceful-timeout=1"),
    ]
    # Newer releases of gunicorn put a socket for its control into XDG_RUNTIME_DIR.
    own = {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": folder}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | own | environment,
        pass_fds=[fileno],
        stdin=subprocess.DEVNULL,
        stdout=output,  # type: ignore[call-overload]
        stderr=output,
        start_new_session=True,
    )


def _wait_for(process: subprocess.Popen[bytes], address: Address) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with closing(http.client.HTTPConnection(*address, timeout=PATIENCE)) as connection:
                connection.request("GET", "/held")
                connection.getresponse().read()
                return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server does not answer") from error
            time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server, and every process that it has started."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)
