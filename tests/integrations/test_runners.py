"""RQ, Dramatiq, Huey, APScheduler: a job that runs in an app context is a unit of work."""

from __future__ import annotations

import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from ..celery.workers import REDIS, broker
from ..world import World

ERRORS = {"raise": LookupError, "commit": IntegrityError}

# A worker imports the job by its name, so it finds its application here.
worlds: dict[str, World] = {}
tries: Counter[str] = Counter()


def job(key: str, how: str) -> str:
    """Write a row, and end as asked."""
    world = worlds[key]
    tries[how] += 1
    with world.app.app_context():
        world.Thing(name=f"{how} {tries[how]}").save()
        if how == "raise" or (how == "retry" and tries[how] == 1):
            raise LookupError("no")
        if how == "commit":
            world.db.session.add(world.Thing(name="taken"))
    return "told"


@pytest.fixture
def key(world: World) -> Iterator[str]:
    """The name under which the job finds the world, in which a name is taken already."""
    name = uuid.uuid4().hex
    worlds[name] = world
    tries.clear()
    world.database.insert("taken")
    yield name
    del worlds[name]


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "this did not come true within 30 seconds"
        time.sleep(0.01)


@pytest.fixture
def queue() -> Iterator[Any]:
    """A queue of RQ's, of which nothing is left behind."""
    rq = pytest.importorskip("rq", reason="rq: in the dependency group 'integrations'")
    from redis import Redis

    broker("redis")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with Redis.from_url(REDIS) as redis:
        queue = rq.Queue(f"autosession-test-{uuid.uuid4().hex}", connection=redis)
        yield queue
        for registry in (queue.failed_job_registry, queue.finished_job_registry):
            for ident in registry.get_job_ids():
                registry.remove(ident, delete_job=True)
        queue.delete()
        redis.connection_pool.disconnect()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_rq(world: World, key: str, queue: Any) -> None:
    """RQ calls a job finished when it is committed, failed when it is rolled back."""
    from rq import Retry, SimpleWorker

    jobs = {how: queue.enqueue(job, key, how) for how in ("ok", "raise", "commit")}
    jobs["retry"] = queue.enqueue(job, key, "retry", retry=Retry(max=1))
    SimpleWorker([queue], connection=queue.connection).work(burst=True)

    assert world.database.names == ["taken", "ok 1", "retry 2"]
    assert {how: one.get_status() for how, one in jobs.items()} == {
        "ok": "finished",
        "raise": "failed",
        "commit": "failed",
        "retry": "finished",
    }
    assert jobs["ok"].return_value() == "told"
    for how, error in ERRORS.items():
        assert error.__name__ in jobs[how].latest_result().exc_string
        assert jobs[how].id in queue.failed_job_registry


def test_dramatiq(world: World, key: str) -> None:
    """Dramatiq acknowledges a message when it is committed, retries when it is rolled back."""
    dramatiq = pytest.importorskip(
        "dramatiq", reason="dramatiq: in the dependency group 'integrations'"
    )
    from dramatiq.brokers.stub import StubBroker

    stub = StubBroker()
    actor = dramatiq.actor(job, broker=stub, max_retries=1, min_backoff=1, max_backoff=1)
    worker = dramatiq.Worker(stub, worker_timeout=10, worker_threads=1)
    worker.start()
    try:
        for how in ("ok", "raise", "commit", "retry"):
            actor.send(key, how)
        stub.join(actor.queue_name, fail_fast=False, timeout=30_000)
        worker.join()
    finally:
        worker.stop()
        stub.close()

    assert world.database.names == ["taken", "ok 1", "retry 2"]
    assert tries == {"ok": 1, "raise": 2, "commit": 2, "retry": 2}
    assert sorted(message.args[1] for message in stub.dead_letters) == ["commit", "raise"]


@pytest.mark.parametrize("immediate", [False, True], ids=["worker", "immediate"])
def test_huey(world: World, key: str, immediate: bool) -> None:
    """Huey hands out a result when it is committed, the error when it is rolled back."""
    pytest.importorskip("huey", reason="huey: in the dependency group 'integrations'")
    from huey import MemoryHuey
    from huey.exceptions import TaskException

    huey = MemoryHuey(immediate=immediate)
    task, again = huey.task()(job), huey.task(retries=1, name="again")(job)
    results = {how: task(key, how) for how in ("ok", "raise", "commit")}
    results["retry"] = again(key, "retry")
    while message := huey.dequeue():
        huey.execute(message)

    assert world.database.names == ["taken", "ok 1", "retry 2"]
    assert [results[how]() for how in ("ok", "retry")] == ["told", "told"]
    for how, error in ERRORS.items():
        with pytest.raises(TaskException, match=error.__name__):
            results[how]()


def test_apscheduler(world: World, key: str, caplog: pytest.LogCaptureFixture) -> None:
    """APScheduler tells its listeners and the log of a job that is rolled back, and goes on."""
    pytest.importorskip("apscheduler", reason="apscheduler: in the dependency group 'integrations'")
    from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED
    from apscheduler.schedulers.background import BackgroundScheduler

    told: dict[str, list[type]] = {"ok": [], "raise": [], "commit": [], "retry": []}
    scheduler = BackgroundScheduler(job_defaults={"misfire_grace_time": None})
    scheduler.add_listener(
        lambda event: told[event.job_id].append(type(event.exception)),
        EVENT_JOB_EXECUTED | EVENT_JOB_ERROR,
    )
    scheduler.start()
    try:
        for how in ("ok", "raise", "commit"):
            scheduler.add_job(job, args=[key, how], id=how)
        wait_for(lambda: all(told[how] for how in ("ok", "raise", "commit")))
        again = scheduler.add_job(job, "interval", args=[key, "retry"], id="retry", seconds=0.05)
        wait_for(lambda: len(told["retry"]) > 1)
        again.remove()
    finally:
        scheduler.shutdown()

    assert told["ok"] == [type(None)]
    assert told["raise"] == [LookupError]
    assert told["commit"] == [IntegrityError]
    assert told["retry"][:2] == [LookupError, type(None)]
    assert world.database.names[:1] == ["taken"]
    assert {"ok 1", "retry 2"} <= set(world.database.names)
    assert not {"raise 1", "commit 1", "retry 1"} & set(world.database.names)
    logged = [record for record in caplog.records if record.name.startswith("apscheduler")]
    assert len([record for record in logged if record.levelname == "ERROR"]) == 3
