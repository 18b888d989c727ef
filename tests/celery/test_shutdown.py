"""Workers that are shut down, or killed, in the middle of a task."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from .conftest import Site
from .workers import until

BLOCKED = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query = 'COMMIT'"


def hand_back(site: Site) -> dict[str, Any]:
    """Options for a worker that takes over what a dead one has not acknowledged.

    RabbitMQ sees the connection go. With Redis it is a matter of time.
    """
    if not site.has_redis:
        return {}
    options = dict(site.world.celery.conf.broker_transport_options)
    return {"broker_transport_options": {**options, "visibility_timeout": 1}}


def test_row_28_cold_then_warm(quiet: Site, tmp_path: Path) -> None:
    """A cold shutdown rolls back and hands the message back; a warm one lets the task end."""
    world, go = quiet.world, tmp_path / "go"
    # Before 5.5, Celery could take the end of its own processes for the task's failure.
    with quiet.new_worker(task_reject_on_worker_lost=True) as worker:
        result = world.wait_late.delay("work", str(go))
        worker.wait_for("inside work")
        worker.signal(signal.SIGQUIT)
        worker.process.wait(timeout=30)
    assert world.database.names == []

    with quiet.new_worker(**hand_back(quiet)) as worker:
        worker.wait_for("inside work")
        worker.signal(signal.SIGTERM)
        worker.wait_for("Warm shutdown")
        assert (world.database.names, worker.running) == ([], True)
        go.touch()
        assert worker.process.wait(timeout=30) == 0
    assert world.database.names == ["work", "work-end"]
    assert result.get(timeout=10) == "work"


def test_row_27_acknowledged_behind_the_commit(quiet: Site) -> None:
    """A worker killed in the COMMIT has not acknowledged: the next one gets the message again."""
    world = quiet.world
    world.database.insert("parent")
    with quiet.new_worker() as worker, world.database.engine.connect() as connection:
        ((ident,),) = world.database.rows("SELECT id FROM thing")
        connection.execute(sa.text("SELECT id FROM thing FOR UPDATE"))
        result = world.child_of.delay("child", ident)
        until(lambda: world.database.rows(BLOCKED), what="a COMMIT that waits for the lock")
        assert result.state != "SUCCESS"
        worker.kill()
        # The server would go on with the COMMIT: it does not see yet that its client is dead.
        connection.execute(sa.text(f"SELECT pg_terminate_backend(pid) FROM ({BLOCKED}) AS b"))
        until(lambda: not world.database.rows(BLOCKED))
        connection.rollback()
    assert world.database.names == ["parent"]

    with quiet.new_worker(**hand_back(quiet)):
        until(lambda: len(world.database.names) == 2, what="the second delivery")
        assert result.get(timeout=30) == "child"
    assert world.database.names == ["parent", "child"]
