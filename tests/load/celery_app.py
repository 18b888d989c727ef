"""The tasks that the Celery load test sends, what each of them promises, and a diary of them.

A worker imports this as its application, told by its environment what to connect to; see
``tests/celery/workers.py``. The sender makes the same application by itself.
"""

from __future__ import annotations

import json
import os
import random
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis
from celery import Celery
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.signals import task_postrun
from sqlalchemy.exc import IntegrityError

from flask_autosession.celery import celery_init_app
from tests.celery.workers import REDIS, settings
from tests.world import Database, World

from .client import TAKEN

MOST_RETRIES = 3
VISIBILITY = 4
"""How many seconds Redis waits for an acknowledgement; a task takes some hundredths of one."""


class Planned(Exception):
    """Raised by tasks on purpose."""


FINAL = {
    None: "SUCCESS",
    "raised": "FAILURE",
    "limit": "FAILURE",
    "swallowed": "FAILURE",
    "orphan": "FAILURE",
    "ignored": "IGNORED",
    "rejected": "REJECTED",
    "retried": "SUCCESS",
    "exhausted": "FAILURE",
    "orphan_retried": "SUCCESS",
    "orphan_exhausted": "FAILURE",
}
"""How a task ends at last that meets this trouble, or none."""
TROUBLES = [trouble for trouble in FINAL if trouble is not None]


@dataclass(frozen=True)
class Plan:
    """What one task does; its number decides about it.

    :param parts: The rows that it writes, each with a flush.
    :param trouble: What comes between, for every third task.
    :param place: In front of which row that happens; behind the last one, if it is their number.
    :param retries: How often it is tried again, if it is.
    :param follow: In front of which row it asks for a task that follows it, if at all.
    """

    parts: str
    trouble: str | None
    place: int
    retries: int
    follow: int | None

    @classmethod
    def of(cls, number: int) -> Plan:
        choice = random.Random(number)
        parts = choice.choice(["ab", "abc"])
        return cls(
            parts,
            TROUBLES[number // 3 % len(TROUBLES)] if number % 3 == 0 else None,
            choice.randint(0, len(parts)),
            choice.randint(1, MOST_RETRIES),
            choice.randint(0, len(parts)) if choice.random() < 0.25 else None,
        )

    @property
    def final(self) -> str:
        """The state that it ends in at last."""
        return FINAL[self.trouble]

    @property
    def stubborn(self) -> bool:
        """Whether Celery is to try it again when its commit fails."""
        return self.trouble in ("orphan_retried", "orphan_exhausted")

    def orphan(self, place: int, retries: int) -> bool:
        """Whether the row at this place makes the COMMIT fail, this time."""
        doomed = self.trouble in ("orphan", "orphan_exhausted") or (
            self.trouble == "orphan_retried" and retries < self.retries
        )
        return doomed and place == min(self.place, len(self.parts) - 1)


class Diary:
    """Notes of what tasks have done, which no rollback takes back.

    :param url: Redis.
    :param queue: The tasks' queue.
    """

    def __init__(self, url: str, queue: str) -> None:
        self.redis = redis.Redis.from_url(url)
        self.key = f"{queue}.diary"
        self.notes: list[dict[str, Any]] = []

    def write(self, **note: Any) -> None:
        self.redis.rpush(self.key, json.dumps(note))

    def read(self) -> list[dict[str, Any]]:
        """Return all notes, in the order in which they were written."""
        new = self.redis.lrange(self.key, len(self.notes), -1)
        self.notes.extend(json.loads(note) for note in new)
        return self.notes


class Application:
    """The Flask application, the Celery application that is tied to it, and its tasks.

    :param database: The database's URI.
    :param config: Celery's configuration.
    :param name: What PostgreSQL shows its connections as.
    """

    def __init__(self, database: str, config: dict[str, Any], name: str) -> None:
        self.world = World(
            Database("postgresql", database),
            SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"application_name": name}},
        )
        self.celery = Celery("load", set_as_current=False)
        self.celery.conf.update(config)
        celery_init_app(self.world.app, self.celery)
        self.diary = Diary(REDIS, config["task_default_queue"])

        @self.celery.task(name="work", bind=True)
        def work(task: Any, number: int, order: str | None) -> None:
            self._work(task, number, order)

        @self.celery.task(
            name="stubborn",
            bind=True,
            autoretry_for=(IntegrityError,),
            retry_backoff=False,
            retry_kwargs={"countdown": 0, "max_retries": MOST_RETRIES},
        )
        def stubborn(task: Any, number: int, order: str | None) -> None:
            self._work(task, number, order)

        @self.celery.task(name="follow")
        def follow(number: int, execution: str) -> None:
            self._follow(number, execution)

        self.work, self.stubborn, self.follow = work, stubborn, follow

    def _work(self, task: Any, number: int, order: str | None) -> None:
        plan, retries = Plan.of(number), task.request.retries
        execution = task.request.execution = uuid.uuid4().hex[:12]
        self.diary.write(event="start", number=number, execution=execution)
        if order is not None:
            self.world.Thing.query.filter_by(name=order).one()  # whose unit has sent this task
        for place, part in enumerate([*plan.parts, None]):
            if place == plan.follow:
                self.follow.apply_async_on_commit((number, execution), task_id=execution)
            if place == plan.place:
                self._meet(task, plan, retries)
            if part is not None:
                parent = -1 if plan.orphan(place, retries) else None
                name = f"task:{number}:{execution}:{part}"
                self.world.Thing(name=name, parent=parent).save()
                time.sleep(0.003)  # lets the others in between, the one that kills as well

    def _meet(self, task: Any, plan: Plan, retries: int) -> None:
        match plan.trouble:
            case "raised":
                raise Planned
            case "limit":
                raise SoftTimeLimitExceeded
            case "swallowed":
                with suppress(IntegrityError):
                    self.world.Thing(name=TAKEN).save()
            case "ignored":
                raise Ignore
            case "rejected":
                raise Reject("on purpose", requeue=False)
            case "retried" if retries < plan.retries:
                raise task.retry(countdown=0, max_retries=plan.retries)
            case "exhausted":
                raise task.retry(countdown=0, max_retries=plan.retries, exc=Planned())

    def _follow(self, number: int, execution: str) -> None:
        found = self.world.Thing.query.filter(
            self.world.Thing.name.startswith(f"task:{number}:{execution}:")
        )
        parts = "".join(sorted(thing.name[-1] for thing in found))
        self.diary.write(event="followed", number=number, execution=execution, parts=parts)

    def note_the_end(self, task: Any, state: str, **_: Any) -> None:
        """Write down the state in which a task has left the worker, and that it has."""
        if task.name != "follow":
            number, execution = task.request.args[0], task.request.execution
            self.diary.write(event="end", number=number, execution=execution, state=state)


def options(kind: str, queue: str) -> dict[str, Any]:
    """Return what this test wants of Celery, above :func:`settings`.

    :param kind: ``redis`` or ``rabbitmq``.
    :param queue: The tasks' queue.
    """
    prefix = {"global_keyprefix": f"{queue}."}
    transport = {
        "redis": {
            **prefix,
            "visibility_timeout": VISIBILITY,
            # The lock of the one who looks for messages that nobody has acknowledged must not
            # outlive a worker that was killed with it.
            "unacked_mutex_expire": 2,
            # Celery 5.4 with threads asks for the next message only when its loop wakes up, which
            # it does for this check; else every ten seconds.
            "health_check_interval": 0.1,
        },
        # So that a retry is with the broker before the message that it stands for is acknowledged.
        "rabbitmq": {"confirm_publish": True},
    }
    return {
        "broker_transport_options": transport[kind],
        "result_backend": REDIS,
        "result_backend_transport_options": prefix,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_enable_remote_control": False,
    }


if "WORKER_DATABASE" in os.environ:
    queue = os.environ["WORKER_QUEUE"]
    application = Application(
        os.environ["WORKER_DATABASE"],
        {
            **settings(os.environ["WORKER_BROKER"], queue),
            **json.loads(os.environ["WORKER_SETTINGS"]),
        },
        queue,
    )
    task_postrun.connect(application.note_the_end, weak=False)
    celery = application.celery
