"""Rows 27 and 28 in real workers: processes and threads, on Redis and on RabbitMQ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from celery import chain, chord, group
from celery.exceptions import (
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
)

from flask_autosession.celery import delay_on_commit

from ..world import thing
from .conftest import Site
from .workers import until

WAIT = 30


def goes_on(site: Site) -> None:
    """Whatever has happened to it, the worker does its next task."""
    assert site.world.save.delay("next").get(timeout=WAIT) == "next"
    assert site.world.database.names == ["next"]


def test_row_27_durable_when_success_is_told(site: Site) -> None:
    """As soon as the result says SUCCESS, the row can be seen from another connection."""
    for number in range(20):
        name = f"number {number}"
        assert site.world.save.delay(name).get(timeout=WAIT) == name
        assert site.world.database.names[-1] == name


def test_row_28_an_exception(site: Site) -> None:
    """A task that has failed has left nothing."""
    with pytest.raises(ValueError, match="gone"):
        site.world.fail.delay("gone").get(timeout=WAIT)
    goes_on(site)


def test_row_28_a_redirect(site: Site) -> None:
    """abort(redirect()) says success to a client. A task has none, and Celery calls it failed."""
    result = site.world.turn_away.delay("gone")
    result.get(timeout=WAIT, propagate=False)
    assert result.state == "FAILURE"
    goes_on(site)


def test_row_28_a_retry(site: Site) -> None:
    """Of three tries, the work of the last one is kept."""
    assert site.world.retry.delay("try").get(timeout=WAIT) == "try"
    assert site.world.database.names == ["try-2"]


def test_row_28_retries_in_vain(site: Site) -> None:
    """Where every try fails, nothing is kept."""
    with pytest.raises(ValueError, match="try"):
        site.world.retry_in_vain.delay("try").get(timeout=WAIT)
    goes_on(site)


def test_a_failing_commit_is_tried_again(site: Site) -> None:
    """autoretry_for sees what only the COMMIT has found, and a later try can succeed."""
    site.world.database.insert("taken")
    result = site.world.autoretry.delay("taken")
    site.worker.wait_for("tried taken")
    with site.world.database.engine.begin() as connection:
        connection.execute(sa.delete(thing))
    assert result.get(timeout=WAIT) == "taken"
    assert site.world.database.names == ["taken"]


@pytest.mark.parametrize("task", ["ignore", "reject", "leave"])
def test_row_28_endings_without_a_result(site: Site, task: str) -> None:
    """Ignore, Reject and SystemExit(0) leave no row, and a worker that goes on."""
    site.world.tasks[task].delay(f"{task} gone")
    site.worker.wait_for(f"rolled back {task} gone")
    goes_on(site)


def test_a_result_that_cannot_be_encoded(site: Site) -> None:
    """The task is told as failed, so it has left nothing."""
    result = site.world.unserialisable.delay("gone")
    result.get(timeout=WAIT, propagate=False)
    assert result.state == "FAILURE"
    goes_on(site)


def test_messages_of_a_request(site: Site) -> None:
    """Message, link, chain and group, asked for in a unit, are worked off with the ids told."""
    world = site.world
    with world.app.app_context():
        one = world.save.apply_async_on_commit(["one"], link=world.save_as.s("linked"))
        last = delay_on_commit(chain(world.save.s("a"), world.save_as.s("b"), world.save.si("c")))
        many: Any = delay_on_commit(group(world.save.s(name) for name in "xyz"))
    assert (one.get(timeout=WAIT), last.get(timeout=WAIT)) == ("one", "c")
    assert [result.get(timeout=WAIT) for result in many.results] == ["x", "y", "z"]
    until(lambda: "one+linked" in world.database.names)
    assert sorted(world.database.names) == ["a", "a+b", "c", "one", "one+linked", "x", "y", "z"]
    assert f"world.save[{one.id}] received" in site.worker.log
    assert f"world.save[{last.id}] received" in site.worker.log


def test_a_chord_of_a_request(site: Site) -> None:
    """The body of a chord follows its header, and has the id told."""
    if not site.has_redis:
        pytest.skip("results that are messages know no chords; Redis does")
    with site.world.app.app_context():
        header = [site.world.save.s(name) for name in "ab"]
        result = delay_on_commit(chord(header, site.world.save_as.s()))
    assert result.get(timeout=WAIT) in ("a+b", "b+a")
    assert len(site.world.database.names) == 3


def test_a_task_asks_for_another(site: Site) -> None:
    """What a task asks for behind its commit finds the task's row, and is done."""
    ident = site.world.hand_on.delay("first").get(timeout=WAIT)
    assert until(lambda: len(site.world.database.names) == 2)
    assert site.world.database.names == ["first", "first-next"]
    assert f"world.save[{ident}] received" in site.worker.log


def test_a_task_that_fails_asks_for_nothing(site: Site) -> None:
    """Its message is dropped with its row: the worker never gets it."""
    with pytest.raises(ValueError, match="gone"):
        site.world.hand_on.delay("gone", succeed=False).get(timeout=WAIT)
    goes_on(site)
    ident = site.worker.log.rsplit("asked for ", 1)[1].split()[0]
    assert ident not in site.worker.log.rsplit("asked for ", 1)[1].split(maxsplit=1)[1]


# Processes


def test_children_do_not_share_the_parents_connection(prefork: Site, tmp_path: Path) -> None:
    """The parent used its connection before it forked; each child has one of its own."""
    go = tmp_path / "go"
    results = [prefork.world.who.delay(name, str(go)) for name in ("one", "two")]
    for name in ("one", "two"):
        prefork.worker.wait_for(f"inside {name}")
    go.touch()
    (pid_1, connection_1, parents_1), (pid_2, connection_2, parents_2) = [
        result.get(timeout=WAIT) for result in results
    ]
    assert pid_1 != pid_2
    assert parents_1 == parents_2 != 0
    assert len({connection_1, connection_2, parents_1}) == 3
    assert sorted(prefork.world.database.names) == ["one", "two"]


@pytest.mark.parametrize(
    ("limit", "error"),
    [("soft_time_limit", SoftTimeLimitExceeded), ("time_limit", TimeLimitExceeded)],
)
def test_row_28_time_limits(prefork: Site, limit: str, error: type[Exception]) -> None:
    """A task that takes too long has left nothing: told by an exception, or killed."""
    # Not less: it has to connect before it can say that it waits, on a machine that is busy.
    result = prefork.world.wait.apply_async([limit], **{limit: 3})
    prefork.worker.wait_for(f"inside {limit}")
    with pytest.raises(error):
        result.get(timeout=WAIT)
    goes_on(prefork)


def test_row_28_revoked_while_it_runs(prefork: Site) -> None:
    """revoke(terminate=True) kills the task's process, and with it what it has done."""
    result = prefork.world.wait.delay("revoked")
    prefork.worker.wait_for("inside revoked")
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=WAIT)
    goes_on(prefork)
