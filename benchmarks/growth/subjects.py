"""Who is measured: an application with our units of work, and one with its commits by hand.

Other than the contenders of the cost of a request, they can be looked into from inside of a
context, and they answer requests that go wrong in several ways.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from flask import Flask, abort, redirect
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.exc import IntegrityError

from benchmarks.contenders.flask_common import finish, make_model
from benchmarks.workloads import ROWS, Workload
from flask_autosession import AutoSession

OURS, BY_HAND = "ours", "by hand"
WHO = (BY_HAND, OURS)
TAKEN = 1
"""The primary key of a row that is there from the beginning."""
KINDS = {
    kind.name: kind
    for kind in (
        Workload("ok", "no database", "GET", 200, 0, 1),
        Workload("read", "one row by primary key", "GET", 200, 0, 1),
        Workload("write", "one row is changed", "POST", 200, 0, 1),
        Workload("savepoint", "one row is changed in a savepoint", "POST", 200, 0, 1),
        Workload("refused", "one row is changed, then 409", "POST", 409, 0, 1),
        Workload("aborted", "one row is changed, then abort(409)", "POST", 409, 0, 1),
        Workload("taken", "the key is taken, the view answers 409", "POST", 409, 0, 1),
        Workload("late", "the key is taken, the commit finds out", "POST", 409, 0, 1),
        Workload("core", "as taken, in a statement of Core", "POST", 409, 0, 1),
        Workload("mended", "the key is taken, in a savepoint", "POST", 200, 0, 1),
        Workload("redirected", "one row is changed, then abort(redirect())", "POST", 302, 0, 1),
        Workload("raised", "one row is changed, then an exception", "POST", 500, 0, 1),
    )
}


class PlannedError(Exception):
    """Raised by a view on purpose."""


class Subject:
    """One application on an SQLite database in memory.

    :param who: ``ours`` or ``by hand``.
    :param rows: How many rows its table has.
    """

    def __init__(self, who: str, rows: int = ROWS) -> None:
        self.app = Flask(who)
        self.db = SQLAlchemy()
        self.app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        self.app.logger.disabled = True  # of the exceptions that are raised on purpose
        if who == OURS:
            self.auto: AutoSession | None = AutoSession(self.app, db=self.db)
        else:
            self.auto = None
            self.db.init_app(self.app)
        self.item: Any = make_model(self.db)
        self.rows = max(rows, ROWS)
        _add_views(self)
        contender = finish(self.app, self.db, self.item, begin=self.auto is None)
        self.count, self.close = contender.count, contender.close
        self._fill(self.rows - ROWS)

    def _fill(self, count: int) -> None:
        with self.app.app_context(), self.db.engine.begin() as connection:
            rows = [{"name": "more"} for _ in range(count)]
            if rows:
                connection.execute(sa.insert(self.item.__table__), rows)

    def empty(self) -> None:
        """Remove the rows that came after the first ones."""
        table = self.item.__table__
        with self.app.app_context(), self.db.engine.begin() as connection:
            connection.execute(sa.delete(table).where(table.c.id > self.rows))

    def commit(self) -> None:
        """End the work of a view; what ends by itself is left to do so."""
        if self.auto is None:
            self.db.session.commit()

    def rollback(self) -> None:
        """Drop the work of a view whose status says failure."""
        if self.auto is None:
            self.db.session.rollback()

    def savepoint(self) -> Any:
        """Return the block of a savepoint."""
        return self.db.session.begin_nested() if self.auto is None else self.auto.savepoint()

    def change(self) -> None:
        """Change a row, and flush that."""
        item = self.db.session.get_one(self.item, TAKEN)
        item.name = "odd" if item.name == "even" else "even"
        self.db.session.flush()


def _add_views(subject: Subject) -> None:
    app, session = subject.app, subject.db.session
    _add_refusals(subject)
    _add_failures(subject)
    _add_late(subject)

    @app.get("/ok")
    def ok() -> str:
        return ""

    @app.get("/read")
    def read() -> str:
        name: str = session.get_one(subject.item, TAKEN).name
        return name

    @app.post("/write")
    def write() -> str:
        subject.change()
        subject.commit()
        return ""

    @app.post("/savepoint")
    def savepoint() -> str:
        with subject.savepoint():
            subject.change()
        subject.commit()
        return ""


def _add_refusals(subject: Subject) -> None:
    app = subject.app

    @app.post("/refused")
    def refused() -> Any:
        subject.change()
        subject.rollback()
        return "", 409

    @app.post("/aborted")
    def aborted() -> Any:
        subject.change()
        subject.rollback()
        abort(409)

    @app.post("/redirected")
    def redirected() -> Any:
        subject.change()
        subject.commit()
        abort(redirect("/ok"))

    @app.post("/raised")
    def raised() -> Any:
        subject.change()
        raise PlannedError


def _add_failures(subject: Subject) -> None:
    app, session = subject.app, subject.db.session

    @app.post("/taken")
    def taken() -> Any:
        session.add(subject.item(id=TAKEN, name=""))
        try:
            session.flush()
        except IntegrityError:
            subject.rollback()
        return "", 409

    @app.post("/core")
    def core() -> Any:
        try:
            session.execute(sa.insert(subject.item.__table__).values(id=TAKEN, name=""))
        except IntegrityError:
            subject.rollback()
        return "", 409

    @app.post("/mended")
    def mended() -> Any:
        try:
            with subject.savepoint():
                session.add(subject.item(id=TAKEN, name=""))
                session.flush()
        except IntegrityError:
            subject.change()
        subject.commit()
        return ""


def _add_late(subject: Subject) -> None:
    app, session = subject.app, subject.db.session

    @app.errorhandler(IntegrityError)
    def conflict(error: IntegrityError) -> Any:
        subject.rollback()
        return "", 409

    @app.post("/late")
    def late() -> Any:
        session.add(subject.item(id=TAKEN, name=""))
        subject.commit()
        return "", 200
