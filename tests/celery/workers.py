"""Celery workers as processes of their own, and the brokers that they need.

    with Worker(broker("redis"), "prefork", 2, database.uri, queue) as worker:
        ...  # its processes are up; worker.log is what it has written so far

Whoever makes a queue calls :func:`clean` behind it. What a worker and its clients have to agree on
is in :func:`settings`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import celery.result
import pytest
from kombu import Connection

# Celery's results unsubscribe when they are collected. That may be in the middle of a call that
# holds a lock already, which before redis-py 6 waits for itself, and no time-out reaches it.
celery.result.AsyncResult.__del__ = lambda _: None  # type: ignore[method-assign]

ROOT = Path(__file__).parents[2]
REDIS = os.environ.get("AUTOSESSION_TEST_REDIS", "redis://127.0.0.1:6379/0")
RABBITMQ = os.environ.get("AUTOSESSION_TEST_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672//")
BROKERS = {"redis": REDIS, "rabbitmq": RABBITMQ}
START = {
    "redis": "start it with 'service redis-server start', or name one in AUTOSESSION_TEST_REDIS",
    "rabbitmq": "start it with 'service rabbitmq-server start', or name one in"
    " AUTOSESSION_TEST_RABBITMQ",
}


def broker(kind: str) -> str:
    """Return the URL of a broker, ``redis`` or ``rabbitmq``; skip the test if it is missing."""
    url = BROKERS[kind]
    try:
        with Connection(url, connect_timeout=3) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0.1, timeout=3)
    except Exception as error:
        missing = f"{kind} does not answer at {url}: {START[kind]} ({error})"
        if os.environ.get("AUTOSESSION_REQUIRE_SERVICES") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    return url


def new_queue() -> str:
    """Return a name that no other test has."""
    return f"autosession-test-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def settings(url: str, queue: str) -> dict[str, Any]:
    """Return Celery's configuration for a broker; all that it leaves there begins with the queue.

    Results are kept in Redis if that is the broker, else they are messages themselves.
    """
    config: dict[str, Any] = {
        "broker_url": url,
        "broker_connection_retry_on_startup": True,
        "result_backend": "rpc://",
        "result_expires": 600,
        "task_default_queue": queue,
        "control_exchange": f"{queue}.control",
        "event_exchange": f"{queue}.events",
        "worker_prefetch_multiplier": 1,
        # An idle worker on RabbitMQ looks at what a signal wants of it only when it looks for its
        # heartbeat: once a second here.
        "broker_heartbeat": 20,
        "broker_heartbeat_checkrate": 20,
    }
    if url.startswith("redis"):
        prefix = {"global_keyprefix": f"{queue}."}
        config.update(
            result_backend=url,
            broker_transport_options=dict(prefix),
            result_backend_transport_options=dict(prefix),
        )
    return config


def clean(url: str, queue: str) -> None:
    """Remove from a broker whatever begins with the name of this queue."""
    if url.startswith("redis"):
        import redis

        with redis.Redis.from_url(url) as client:
            for key in client.scan_iter(f"*{queue}*", count=1000):
                client.delete(key)
        return
    with Connection(url) as connection:
        channel = connection.channel()
        channel.queue_delete(queue)
        control = f"{queue}.control.pidbox"
        for exchange in (queue, control, f"reply.{control}", f"{queue}.events"):
            channel.exchange_delete(exchange)


def until(condition: Callable[[], Any], *, seconds: float = 30, what: str = "") -> Any:
    """Wait for a condition, and return what it says; fail if that takes too long."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what or condition}"
        time.sleep(0.02)
    return answer


class Worker:
    """A Celery worker with its child processes, in a process group of its own.

    Leaving the block kills it, which is quicker than :meth:`stop`.

    :param broker: The broker's URL.
    :param pool: ``prefork`` or ``threads``.
    :param concurrency: How many tasks at once.
    :param database: The database's URI.
    :param queue: The only queue that it works off.
    :param app: Where its Celery application is. It is told by ``WORKER_DATABASE``,
        ``WORKER_BROKER`` and ``WORKER_QUEUE`` in the environment what to connect to, and by
        ``WORKER_SETTINGS`` (JSON) what goes above :func:`settings`.
    :param options: What goes above :func:`settings`.
    """

    def __init__(
        self,
        broker: str,
        pool: str = "prefork",
        concurrency: int = 2,
        database: str = "",
        queue: str = "",
        *,
        app: str = "tests.celery.main",
        **options: Any,
    ) -> None:
        self._command = [
            *(sys.executable, "-m", "celery", "-A", app, "worker", f"--pool={pool}"),
            *(f"--concurrency={concurrency}", f"--queues={queue}", "--loglevel=INFO"),
            *(f"--hostname={uuid.uuid4().hex[:8]}@%h", "--without-gossip", "--without-mingle"),
            "--without-heartbeat",
        ]
        self._environment = {
            **os.environ,
            "WORKER_DATABASE": database,
            "WORKER_BROKER": broker,
            "WORKER_QUEUE": queue,
            "WORKER_SETTINGS": json.dumps(options),
        }

    def __enter__(self) -> Self:
        self._output = tempfile.NamedTemporaryFile(prefix="worker-", suffix=".log")
        self.process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            until(lambda: " ready." in self.log or not self.running, seconds=90, what="a worker")
            assert self.running, f"the worker did not start:\n{self.log}"
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            print(self.log)  # pytest shows it with the failed test
        self.kill()
        self._output.close()

    @property
    def log(self) -> str:
        """What the worker and its children have written so far."""
        return Path(self._output.name).read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait_for(self, text: str, *, seconds: float = 30) -> None:
        """Wait until the log has a text."""
        try:
            until(lambda: text in self.log, seconds=seconds, what=f"{text!r} in the log")
        except AssertionError:
            print(self.log)
            raise

    def signal(self, number: int) -> None:
        """Send a signal to the worker, not to its children."""
        self.process.send_signal(number)

    def stop(self, *, seconds: float = 30) -> int:
        """Shut it down warmly, as an operator does: it ends what it has begun. Return its code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(timeout=seconds)

    def kill(self) -> None:
        """Kill it and its children at once, without a chance to tidy up."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(timeout=30)
