"""The application that workers and their clients share: one table, and a task for each ending."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from celery.exceptions import Ignore, Reject
from flask import abort, redirect

from flask_autosession.celery import celery_init_app

from ..world import Database, World, metadata

logger = logging.getLogger(__name__)


def wait_for_file(path: str | None, seconds: float = 60) -> None:
    """Stay inside of a task until the test lets it go; or until something ends it."""
    deadline = time.monotonic() + seconds
    while path is None or not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError("nobody has let the task go")
        time.sleep(0.02)


class CeleryWorld(World):
    """An application with a Celery application tied to it.

    :param database: Its database.
    :param celery: What ``app.config["CELERY"]`` is to be.
    :param config: What else is in ``app.config``.
    """

    def __init__(self, database: Database, celery: dict[str, Any], **config: Any) -> None:
        self.backend = 0
        super().__init__(database, CELERY=celery, **config)
        self.celery = celery_init_app(self.app)
        self.tasks: dict[str, Any] = {}
        _add_tasks(self)

    def task(self, **options: Any) -> Any:
        """Make a task of a function, and keep it under the function's name."""

        def add(function: Any) -> Any:
            name = function.__name__
            self.tasks[name] = self.celery.task(name=f"world.{name}", **options)(function)
            return self.tasks[name]

        return add

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["tasks"][name]
        except KeyError:
            raise AttributeError(name) from None

    def use_connection(self) -> None:
        """Do as a module does that makes its tables and asks them something when imported."""
        with self.app.app_context():
            metadata.create_all(self.db.engine)
            self.backend = self.backend_pid()

    def backend_pid(self) -> int:
        """Return which connection this is, as PostgreSQL counts them."""
        pid: int = self.db.session.scalar(sa.text("SELECT pg_backend_pid()"))
        return pid

    def inside(self, name: str) -> None:
        """Tell the log that a task is in the middle of its work, and when it was rolled back."""
        logger.warning("inside %s", name)
        self.auto.on_rollback(lambda: logger.warning("rolled back %s", name))


def _add_tasks(world: CeleryWorld) -> None:
    Thing, db = world.Thing, world.db

    @world.task()
    def save(name: str) -> str:
        Thing(name=name).save()
        return name

    @world.task()
    def save_as(*names: Any) -> str:
        """Take what a chain or chord hands on."""
        name = "+".join(map(str, names)).replace("', '", "+").strip("[]'")
        Thing(name=name).save()
        return name

    @world.task()
    def find(ident: int) -> str | None:
        found = Thing.get(ident)
        return None if found is None else str(found.name)

    @world.task()
    def fail(name: str) -> None:
        Thing(name=name).save()
        raise ValueError(name)

    @world.task(bind=True, max_retries=2, default_retry_delay=0)
    def retry(self: Any, name: str) -> str:
        Thing(name=f"{name}-{self.request.retries}").save()
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return name

    @world.task(bind=True, max_retries=1)
    def retry_in_vain(self: Any, name: str) -> None:
        Thing(name=f"{name}-{self.request.retries}").save()
        raise self.retry(countdown=0, exc=ValueError(name))

    @world.task(autoretry_for=(sa.exc.IntegrityError,), default_retry_delay=1)
    def autoretry(name: str) -> str:
        """Its row fails at the COMMIT only, as long as the name is taken."""
        db.session.add(Thing(name=name))
        logger.warning("tried %s", name)
        return name

    @world.task()
    def ignore(name: str) -> None:
        Thing(name=name).save()
        world.inside(name)
        raise Ignore

    @world.task(acks_late=True)
    def reject(name: str) -> None:
        Thing(name=name).save()
        world.inside(name)
        raise Reject("no", requeue=False)

    @world.task()
    def leave(name: str) -> None:
        Thing(name=name).save()
        world.inside(name)
        raise SystemExit(0)

    @world.task()
    def turn_away(name: str) -> None:
        Thing(name=name).save()
        abort(redirect("/elsewhere"))

    @world.task()
    def unserialisable(name: str) -> Any:
        return Thing(name=name).save()

    def stay(name: str, path: str | None = None) -> str:
        Thing(name=name).save()
        world.inside(name)
        wait_for_file(path)
        Thing(name=f"{name}-end").save()
        return name

    @world.task()
    def wait(name: str, path: str | None = None) -> str:
        """Save, and stay inside until the file is there."""
        return stay(name, path)

    @world.task(acks_late=True)
    def wait_late(name: str, path: str | None = None) -> str:
        """Do the same, but be acknowledged behind it."""
        return stay(name, path)

    @world.task(acks_late=True)
    def child_of(name: str, parent: int) -> str:
        """Its foreign key is checked by the COMMIT, which waits for a lock on the parent."""
        Thing(name=name, parent=parent).save()
        return name

    @world.task()
    def who(name: str, path: str) -> tuple[int, int, int]:
        """Return the process, its connection, and the connection of the process it is a copy of."""
        Thing(name=name).save()
        world.inside(name)
        wait_for_file(path)
        return os.getpid(), world.backend_pid(), world.backend

    @world.task()
    def hand_on(name: str, succeed: bool = True) -> str:
        """Ask for another task behind the commit, and return its id."""
        Thing(name=name).save()
        sent = save.delay_on_commit(f"{name}-next")
        logger.warning("asked for %s", sent.id)
        if not succeed:
            raise ValueError(name)
        return str(sent.id)
