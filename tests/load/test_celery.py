"""Tasks that fail, are tried again and killed; the database holds what those did that succeeded."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kombu.pools
import pytest

from tests.celery.workers import REDIS, Worker, broker, clean, new_queue, settings, until
from tests.world import Database

from .celery_app import Application, Plan, options
from .client import TAKEN

pytestmark = [pytest.mark.load, pytest.mark.timeout(600)]

TASKS = int(os.environ.get("AUTOSESSION_CELERY_TASKS", "2000"))
CASES = [(pool, kind) for kind in ("redis", "rabbitmq") for pool in ("prefork", "threads")]
CONCURRENCY = 4
KILLS = 2
TOGETHER = 10
"""How many tasks one unit of the sender asks for."""
GHOSTS = 1_000_000
"""From here on are the numbers of tasks whose senders are rolled back."""


class Broker:
    """What a broker still has, besides its messages that a worker is at.

    :param kind: ``redis`` or ``rabbitmq``.
    :param queue: The queue.
    :param application: The sender, for its connections.
    """

    def __init__(self, kind: str, queue: str, application: Application) -> None:
        self.kind = kind
        self.queue = queue
        self.redis = application.diary.redis
        self._waiting, self._taken = f"{queue}.{queue}", f"{queue}.unacked"  # Kombu's names
        self.connection = application.celery.connection_for_write()
        self.channel = self.connection.channel()

    def waiting(self) -> int:
        """How many messages wait for a worker; in Redis also those that one has or had."""
        if self.kind == "rabbitmq":
            return int(self.channel.queue_declare(self.queue, passive=True).message_count)
        # A worker looks for those that were not acknowledged in time too, but not every second.
        self.channel.qos.restore_visible(interval=1)
        return int(self.redis.llen(self._waiting) + self.redis.hlen(self._taken))

    def lacks(self, ids: set[str]) -> set[str]:
        """Which of these messages are in a worker's hands only.

        Kombu pops a message from Redis and writes down that it has it in two steps. A worker that
        is killed in between loses it, whatever the application does.
        """
        if self.kind == "rabbitmq":
            return set()
        self.redis.ping()  # behind which everything is done that was asked for before
        return ids - {message["headers"]["id"] for message in self._messages()}

    def _messages(self) -> list[dict[str, Any]]:
        with self.redis.pipeline() as pipeline:
            waiting, taken = pipeline.lrange(self._waiting, 0, -1).hvals(self._taken).execute()
        return [*map(json.loads, waiting), *(json.loads(message)[0] for message in taken)]

    def close(self) -> None:
        self.connection.release()


@dataclass
class Run:
    """Some tasks, and what came of them with one pool and one broker.

    :param database: The database, seen from outside.
    :param queue: The queue, and what PostgreSQL calls the workers' connections.
    :param numbers: The tasks' numbers.
    """

    application: Application
    broker: Broker
    database: Database
    queue: str
    numbers: range
    sent: dict[str, int] = field(default_factory=dict)
    orders: list[str] = field(default_factory=list)
    cut: list[set[str]] = field(default_factory=list)
    log: str = ""
    reported: dict[int, str] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    seconds: float = 0

    # What is going on

    def notes(self, event: str) -> list[dict[str, Any]]:
        return [note for note in self.application.diary.read() if note["event"] == event]

    def final(self) -> dict[int, set[str]]:
        """The states in which tasks have ended, by their numbers."""
        states: dict[int, set[str]] = defaultdict(set)
        for note in self.notes("end"):
            if note["state"] != "RETRY":
                states[note["number"]].add(note["state"])
        return states

    def ended(self, state: str) -> dict[str, int]:
        """The executions that have ended like this, and the numbers of their tasks."""
        return {n["execution"]: n["number"] for n in self.notes("end") if n["state"] == state}

    def owed(self) -> set[str]:
        """The ids of the messages that have not led to their end yet."""
        final = self.final()
        follow = {
            execution
            for execution, number in self.ended("SUCCESS").items()
            if Plan.of(number).follow is not None
        }
        work = {ident for ident, number in self.sent.items() if number not in final}
        return work | follow - {note["execution"] for note in self.notes("followed")}

    def under_way(self) -> set[str]:
        """The executions that have begun and neither ended nor been cut."""
        ended = {note["execution"] for note in self.notes("end")}
        return {note["execution"] for note in self.notes("start")} - ended.union(*self.cut)

    def activity(self, condition: str) -> int:
        """How many connections of the workers there are of which this is true."""
        [(count,)] = self.database.rows(
            f"SELECT count(*) FROM pg_stat_activity"
            f" WHERE application_name = '{self.queue}' AND {condition}"
        )
        return int(count)

    # What is done

    def send(self) -> None:
        """Send all tasks: some plainly, some from a unit, behind one that is rolled back."""
        for first in self.numbers[::TOGETHER]:
            numbers = range(first, min(first + TOGETHER, self.numbers.stop))
            if first // TOGETHER % 2:
                for number in numbers:
                    self._note(number, self._task(number).delay(number, None))
                continue
            with suppress(ZeroDivisionError), self._order(f"ghost:{first}") as order:
                for number in numbers[:2]:
                    ghost = GHOSTS + number
                    self._task(ghost).delay_on_commit(ghost, order)
                raise ZeroDivisionError
            self.orders.append(f"order:{first}")
            with self._order(self.orders[-1]) as order:
                for number in numbers:
                    self._note(number, self._task(number).delay_on_commit(number, order))

    @contextmanager
    def _order(self, name: str) -> Iterator[str]:
        world = self.application.world
        with world.auto.unit(world.app):
            yield name
            world.Thing(name=name).save()

    def _task(self, number: int) -> Any:
        return self.application.stubborn if Plan.of(number).stubborn else self.application.work

    def _note(self, number: int, result: Any) -> None:
        self.sent[result.id] = number

    def kill(self, worker: Worker) -> None:
        """Kill a worker and its children in the middle of a transaction."""

        def caught() -> bool:
            freeze(worker)
            if self.activity("xact_start IS NOT NULL") and not self.broker.lacks(self.owed()):
                return True
            os.killpg(worker.process.pid, signal.SIGCONT)
            return False

        until(caught, what="a transaction to kill a worker in")
        self.cut.append(self.under_way())
        self.log += worker.log
        worker.kill()

    def wait(self, worker: Worker, share: float) -> None:
        """Wait until this share of the tasks has ended."""

        def done() -> bool:
            assert worker.running, f"the worker has gone:\n{worker.log[-9000:]}"
            if share < 1:
                return len(self.final()) >= share * len(self.numbers)
            # Asked for either way, because it brings back what the killed have held.
            return not self.broker.waiting() and not self.owed()

        seconds = 60 + len(self.numbers) / 10
        with suppress(AssertionError):  # the tests tell better what is missing
            until(done, seconds=seconds)
        assert worker.running

    def stop(self, worker: Worker) -> None:
        """Shut a worker down that has nothing more to do."""
        with suppress(AssertionError):
            until(lambda: not self.activity("xact_start IS NOT NULL"), seconds=10)
        self.left["transactions"] = self.activity("xact_start IS NOT NULL")
        self.exits.append(worker.stop())
        self.log += worker.log
        with suppress(AssertionError):
            until(lambda: not self.activity("true"), seconds=10)
        self.left["connections"] = self.activity("true")
        self.left["messages"] = self.broker.waiting()

    def look(self) -> None:
        """Note what the clients are told and what is durable."""
        result = self.application.celery.AsyncResult
        self.reported = {number: result(ident).state for ident, number in self.sent.items()}
        self.rows = [name for name in self.database.names if name != TAKEN]

    # What came of it

    def written(self) -> dict[str, str]:
        """The executions that are in the database, and their rows."""
        parts: dict[str, str] = defaultdict(str)
        for name in sorted(self.rows):
            if name.startswith("task:"):
                _, _, execution, part = name.split(":")
                parts[execution] += part
        return parts

    def numbers_of(self, executions: Any) -> Counter[int]:
        """How many of these executions each task has."""
        number = {note["execution"]: note["number"] for note in self.notes("start")}
        return Counter(number[execution] for execution in executions)

    def refuse(self, problems: list[str]) -> None:
        """Fail, with the workers' log, if there is a problem."""
        if problems:
            shown = "\n".join(problems[:20])
            pytest.fail(
                f"{len(problems)} problems:\n{shown}\nThe workers' log:\n{self.log[-9000:]}"
            )


def freeze(worker: Worker) -> None:
    """Stop a worker and its children where they are, and wait until they stand still."""
    group = worker.process.pid
    os.killpg(group, signal.SIGSTOP)
    until(lambda: states(group) <= set("TZX"), what="a frozen worker")


def states(group: int) -> set[str]:
    """What all threads of a process group are doing, in the kernel's letters."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if int(_stat(path)[2]) == group:
                found |= {_stat(thread)[0] for thread in path.parent.glob("task/*/stat")}
    return found


def _stat(path: Path) -> list[str]:
    # The name of the program is in front, in brackets, and may hold anything.
    return path.read_text().rpartition(")")[2].split()


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Have a quarter of the tasks done by workers of one kind, two of which are killed."""
    pool, kind = request.param
    url = broker(kind)
    broker("redis")  # for the results
    database = Database("postgresql", request.getfixturevalue("postgresql_uri"))
    database.create()
    queue = new_queue()
    config = options(kind, queue)
    application = Application(database.uri, {**settings(url, queue), **config}, f"{queue}.sender")
    try:
        database.insert(TAKEN)
        share = -(-TASKS // len(CASES))
        first = CASES.index(request.param) * share
        run = Run(
            application,
            Broker(kind, queue, application),
            database,
            queue,
            range(first, first + share),
        )
        carry_out(
            run,
            lambda: Worker(
                url, pool, CONCURRENCY, database.uri, queue, app="tests.load.celery_app", **config
            ),
        )
        yield run
    finally:
        close(application)
        clean(url, queue)
        clean(REDIS, queue)
        database.drop()


def carry_out(run: Run, make_worker: Any) -> None:
    """Send the tasks to a worker, kill it twice on the way, and let the third one end it."""
    begun = time.monotonic()
    for kill in range(KILLS):
        with make_worker() as worker:
            if not kill:
                run.send()
            run.wait(worker, (kill + 1) / (KILLS + 1))
            run.kill(worker)
    for _ in range(3):
        with make_worker() as worker:
            run.wait(worker, 1)
            run.stop(worker)
        if not run.left["messages"]:
            break  # else it has put back what it had just begun to do once more
    run.look()
    run.seconds = time.monotonic() - begun
    run.broker.close()


def close(application: Application) -> None:
    """Close all that the sender has opened."""
    application.world.close()
    application.world.database.engine.dispose()
    application.celery.backend.result_consumer.stop()
    application.celery.backend.client.close()
    application.celery.close()
    kombu.pools.reset()  # which keeps connections beyond the application
    application.diary.redis.close()


def test_every_task_ends_as_it_must(run: Run) -> None:
    """No task is lost, and each is reported as what it was bound to come to, all kills aside."""
    final = run.final()
    problems = []
    for number in run.numbers:
        plan = Plan.of(number)
        if final.get(number) != {plan.final}:
            problems.append(f"{number} {plan} ended as {final.get(number)}")
        told = {plan.final}
        if plan.retries and plan.final == "FAILURE":
            # Celery stores that it will try again when the message for that is under way already,
            # and in a pool of threads may so overwrite what has come of it.
            told.add("RETRY")
        # Celery keeps no result of those that ask it not to.
        if plan.final in ("SUCCESS", "FAILURE") and run.reported[number] not in told:
            problems.append(f"{number} {plan} is reported as {run.reported[number]}")
    run.refuse(problems)


def test_every_execution_is_there_whole_or_not_at_all(run: Run) -> None:
    """Whatever an execution was cut by, the database holds all of its rows or none."""
    number = {note["execution"]: note["number"] for note in run.notes("start")}
    run.refuse(
        [
            f"{number[execution]} {Plan.of(number[execution])}: only {parts!r} of {execution}"
            for execution, parts in run.written().items()
            if parts != Plan.of(number[execution]).parts
        ]
    )


def test_what_has_succeeded_is_there_and_nothing_else(run: Run) -> None:
    """Told success, its rows are there, at least once; told failure, or to try again, none are."""
    written, succeeded = set(run.written()), set(run.ended("SUCCESS"))
    killed = set().union(*run.cut)
    times = run.numbers_of(written)
    run.refuse(
        [
            *(f"{execution} has succeeded and is not there" for execution in succeeded - written),
            # One that was killed may have been behind its COMMIT, and was not told of.
            *(f"{execution} is there" for execution in written - succeeded - killed),
            *(
                f"{number} {Plan.of(number)} is there {times[number]} times"
                for number in run.numbers
                if (times[number] > 0) != (Plan.of(number).final == "SUCCESS")
            ),
        ]
    )


def test_messages_are_sent_behind_the_commit_and_only_then(run: Run) -> None:
    """Units that are rolled back send nothing; what committed ones send sees all of their rows."""
    written = run.written()
    followed = {note["execution"]: note["parts"] for note in run.notes("followed")}
    expected = [
        execution
        for execution, number in run.ended("SUCCESS").items()
        if Plan.of(number).follow is not None
    ]
    ghosts = {note["number"] for note in run.notes("start") if note["number"] >= GHOSTS}
    orders = [name for name in run.rows if not name.startswith("task:")]
    assert orders == run.orders
    run.refuse(
        [
            *(f"{number} was sent by a unit that was rolled back" for number in ghosts),
            *(
                f"what follows {execution} saw {parts!r} of {written.get(execution)!r}"
                for execution, parts in followed.items()
                if parts != written.get(execution)
            ),
            *(f"nothing has followed {e}" for e in expected if e not in followed),
        ]
    )


def test_nothing_is_left_behind(run: Run) -> None:
    """Workers end with 0, and leave no transaction, no connection and no message behind."""
    assert run.left == {"transactions": 0, "connections": 0, "messages": 0}
    assert set(run.exits) == {0}


def test_the_kills_have_hit(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Both workers were killed in the midst of tasks; the figures tell how many were done twice."""
    times = run.numbers_of(run.written())
    with capsys.disabled():
        print(
            f"\n{run.broker.kind}: {len(run.numbers)} tasks in {run.seconds:.1f} s,"
            f" {len(run.notes('start'))} executions,"
            f" {len(run.ended('SUCCESS'))} succeeded, {len(run.ended('FAILURE'))} failed,"
            f" {len(run.ended('RETRY'))} retried,"
            f" {len(run.ended('IGNORED')) + len(run.ended('REJECTED'))} ignored or rejected,"
            f" {'+'.join(str(len(cut)) for cut in run.cut)} killed,"
            f" {len(run.notes('followed'))} followed,"
            f" {sum(count > 1 for count in times.values())} there twice"
        )
    assert len(run.cut) == KILLS
    assert all(run.cut)
