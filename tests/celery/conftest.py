"""Applications with a Celery tied to them, and workers for them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery, _state
from celery.app.trace import build_tracer
from celery.backends.base import DisabledBackend
from kombu.transport.memory import Channel

from ..world import Database
from .app import CeleryWorld
from .workers import Worker, broker, clean, new_queue, settings


@pytest.fixture(autouse=True)
def celery_globals() -> Iterator[None]:
    """Forget which Celery application is the default one: each test makes its own."""
    default, finalizers = _state.default_app, set(_state._on_app_finalizers)
    current = _state._tls.current_app
    yield
    _state.set_default_app(default)
    _state._tls.current_app = current
    _state._on_app_finalizers.intersection_update(finalizers)


MakeWorld = Callable[..., CeleryWorld]


@pytest.fixture
def make_world(database: Database) -> Iterator[MakeWorld]:
    """Make an application whose messages stay in this process; what is passed is Celery's."""
    made: list[CeleryWorld] = []

    def make(*, flask: dict[str, Any] | None = None, **celery: Any) -> CeleryWorld:
        config = {
            "broker_url": "memory://",
            "result_backend": "cache+memory://",
            "task_default_queue": new_queue(),
            **celery,
        }
        made.append(CeleryWorld(database, config, **(flask or {})))
        return made[-1]

    yield make
    for world in made:
        world.close()
        world.celery.close()


@pytest.fixture
def world(make_world: MakeWorld) -> CeleryWorld:
    return make_world()


@dataclass
class Message:
    """What a worker would get."""

    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    id: str
    headers: dict[str, Any]
    embed: dict[str, Any]

    def __eq__(self, other: object) -> bool:
        return (self.task, *self.args) == other

    __hash__ = None  # type: ignore[assignment]


def messages(world: CeleryWorld, queue: str | None = None) -> list[Message]:
    """Return what was sent since the last time this was asked, in that order."""
    found = []
    with world.celery.connection_for_read() as connection:
        channel: Channel = connection.default_channel
        name = queue or world.celery.conf.task_default_queue
        channel.queue_declare(name)
        while (raw := channel.basic_get(name, no_ack=True)) is not None:
            args, kwargs, embed = raw.decode()
            headers = raw.headers
            task = headers["task"].removeprefix("world.")
            found.append(Message(task, args, kwargs, headers["id"], headers, embed))
    return found


def work(task: Any, *args: Any, ident: str | None = None, **request: Any) -> tuple[str, Any]:
    """Run a task as a worker does, in this process; return its state and what it returned."""
    app, ident = task.app, ident or uuid.uuid4().hex
    app.finalize()
    told = {"id": ident, "task": task.name, "args": list(args), "kwargs": {}, **request}
    build_tracer(task.name, task, app=app)(ident, args, {}, told)
    if isinstance(app.backend, DisabledBackend):
        return "", None
    result = app.AsyncResult(ident)
    return result.state, result.result


# Real workers

BROKER_KINDS = ["redis", "rabbitmq"]
POOLS = ["prefork", "threads"]


@dataclass
class Site:
    """A broker with a queue of its own, and an application that sends to it."""

    world: CeleryWorld
    url: str
    queue: str
    pool: str
    worker: Any = None

    @property
    def has_redis(self) -> bool:
        return self.url.startswith("redis")

    def new_worker(self, **options: Any) -> Worker:
        uri = self.world.database.uri
        return Worker(self.url, self.pool, 2, uri, self.queue, **options)


def open_site(kind: str, pool: str, database: Database, stack: ExitStack) -> Site:
    """Make a queue and an application; both go when the stack is left."""
    url, queue = broker(kind), new_queue()
    stack.callback(clean, url, queue)
    world = CeleryWorld(database, settings(url, queue))
    stack.callback(_close_celery, world.celery)
    return Site(world, url, queue, pool)


def _close_celery(celery: Celery) -> None:
    consumer = getattr(celery.backend, "result_consumer", None)
    if getattr(consumer, "_connection", None) is not None:
        consumer.stop()  # close() forgets the connection that results come by
    celery.close()


def leave_empty(site: Site) -> None:
    """Make way for the next test: no rows, no connections."""
    site.world.close()
    site.world.database.empty()


@pytest.fixture(scope="session")
def sites(postgresql: Database) -> Iterator[Callable[[str], Site]]:
    """Workers for all tests that leave them as they are, each started when it is first needed."""
    running: dict[str, Site] = {}
    with ExitStack() as stack:

        def site(name: str) -> Site:
            if name not in running:
                kind, pool = name.split("-")
                site = open_site(kind, pool, postgresql, stack)
                site.worker = stack.enter_context(site.new_worker())
                running[name] = site
            return running[name]

        yield site


@pytest.fixture(params=[f"{kind}-{pool}" for kind in BROKER_KINDS for pool in POOLS])
def site(request: pytest.FixtureRequest, sites: Callable[[str], Site]) -> Iterator[Site]:
    """A worker on an empty table, for each broker and pool."""
    site = sites(request.param)
    yield site
    leave_empty(site)


@pytest.fixture(params=BROKER_KINDS)
def prefork(request: pytest.FixtureRequest, sites: Callable[[str], Site]) -> Iterator[Site]:
    """A worker with processes, for each broker."""
    site = sites(f"{request.param}-prefork")
    yield site
    leave_empty(site)


@pytest.fixture(params=BROKER_KINDS)
def quiet(request: pytest.FixtureRequest, postgresql: Database) -> Iterator[Site]:
    """A queue of the test's own, whose workers it starts and ends itself."""
    with ExitStack() as stack:
        site = open_site(request.param, "prefork", postgresql, stack)
        stack.callback(leave_empty, site)
        yield site
