"""The application that the load test serves, in its users' style, and what it knows of itself.

Nothing here commits but where the name of the view says so.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
from flask import Flask, Response, abort, g, redirect, request
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError

from flask_autosession.session import UnitSession
from tests.world import Database, World, thing

from .client import KINDS, TAKEN

Answer = tuple[str, int]
DATABASE = "AUTOSESSION_LOAD_DATABASE"


class Planned(Exception):
    """Raised by views on purpose, with no handler."""


class Rendered(Exception):
    """Raised by views on purpose, and turned into a page by a handler."""


class Views:
    """One method for each kind of request. Rows are named ``marker:part``."""

    def __init__(self, world: World) -> None:
        self.auto = world.auto
        self.session = world.db.session
        self.Thing = world.Thing

    def row(self, marker: str, part: str, **columns: Any) -> Any:
        return self.Thing(name=f"{marker}:{part}", **columns)

    def save(self, marker: str, parts: str) -> None:
        for part in parts:
            self.row(marker, part).save()

    def duplicate(self) -> None:
        self.Thing(name=TAKEN).save()

    # Committed

    def saved(self, marker: str) -> Answer:
        self.save(marker, "a")
        return "", 201

    def several(self, marker: str) -> Answer:
        for part in "abc":
            self.save(marker, part)
            # Lets the other threads and greenlets in between.
            self.Thing.query.filter_by(name=f"{marker}:{part}").one()
        return "", 201

    def pending(self, marker: str) -> Answer:
        self.session.add_all([self.row(marker, part) for part in "ab"])
        return "", 201

    def core(self, marker: str) -> Answer:
        rows = [{"name": f"{marker}:{part}"} for part in "ab"]
        self.session.execute(sa.insert(thing), rows)
        return "", 201

    def changed(self, marker: str) -> Answer:
        self.row(marker, "a").save().update(name=f"{marker}:b")
        self.row(marker, "c").save().delete()
        return "", 200

    def family(self, marker: str) -> Answer:
        parent = self.row(marker, "a").save()
        self.row(marker, "b", parent=parent.id).save()
        return "", 201

    def redirected(self, marker: str) -> Answer:
        self.save(marker, "a")
        abort(redirect("/elsewhere"))

    def before(self, marker: str) -> Answer:
        """A before_request function has saved "a" already."""
        self.save(marker, "b")
        return "", 201

    def looked_back(self, marker: str) -> Answer:
        """A teardown function looks at the database once more."""
        g.look_back = True
        self.save(marker, "a")
        return "", 201

    # Rolled back

    def refused(self, marker: str) -> Answer:
        self.save(marker, "abc")
        return "", 422

    def aborted(self, marker: str) -> Answer:
        self.save(marker, "a")
        self.session.add(self.row(marker, "b"))
        abort(409)

    def raised(self, marker: str) -> Answer:
        self.save(marker, "ab")
        raise Planned

    def before_refused(self, marker: str) -> Answer:
        """A before_request function has saved "a" already."""
        self.save(marker, "b")
        return "", 400

    def vetoed(self, marker: str) -> Answer:
        """An after_request function makes it a failure."""
        self.save(marker, "a")
        return "", 201

    def rejected(self, marker: str) -> Answer:
        self.save(marker, "a")
        self.duplicate()
        return "", 201

    def late(self, marker: str) -> Answer:
        """The last flush fails."""
        self.session.add_all([self.row(marker, "a"), self.Thing(name=TAKEN)])
        return "", 201

    def orphan(self, marker: str) -> Answer:
        """The COMMIT fails: the database looks at foreign keys no earlier."""
        self.save(marker, "a")
        self.row(marker, "b", parent=-1).save()
        return "", 201

    # Thrown away though the response says success

    def rendered(self, marker: str) -> Answer:
        self.save(marker, "ab")
        raise Rendered(marker)

    def swallowed(self, marker: str) -> Answer:
        self.save(marker, "a")
        with suppress(IntegrityError):
            self.duplicate()
        return "", 200

    def swallowed_core(self, marker: str) -> Answer:
        self.save(marker, "a")
        with suppress(IntegrityError):
            self.session.execute(sa.insert(thing).values(name=TAKEN))
        return "", 200

    def doomed(self, marker: str) -> Answer:
        self.save(marker, "ab")
        self.auto.doom()
        return "", 200

    def undone(self, marker: str) -> Answer:
        self.save(marker, "a")
        self.session.rollback()
        self.save(marker, "b")
        return "", 200

    # Savepoints

    def savepoint(self, marker: str) -> Answer:
        self.save(marker, "a")
        try:
            with self.auto.savepoint():
                self.save(marker, "b")
                self.save(marker, "a")
        except IntegrityError:
            self.save(marker, "c")
        return "", 201

    def savepoint_refused(self, marker: str) -> Answer:
        with self.auto.savepoint():
            self.save(marker, "a")
        self.save(marker, "b")
        return "", 400

    # Explicit ends, units of their own

    def explicit(self, marker: str) -> Answer:
        self.save(marker, "a")
        self.session.commit()
        self.save(marker, "b")
        return "", 201

    def explicit_refused(self, marker: str) -> Answer:
        self.save(marker, "a")
        self.auto.commit()
        self.save(marker, "b")
        return "", 400

    def own_unit(self, marker: str) -> Answer:
        with self.auto.unit():
            self.save(marker, "a")
        self.save(marker, "b")
        return "", 400

    # Callbacks

    def audited(self, marker: str) -> Answer:
        self.auto.on_commit(lambda: self.save(marker, "b"))
        self.auto.on_rollback(lambda: self.save(marker, "c"))
        self.save(marker, "a")
        return "", 201

    def audited_refused(self, marker: str) -> Answer:
        self.auto.on_commit(lambda: self.save(marker, "b"))
        self.auto.on_rollback(lambda: self.save(marker, "c"))
        self.save(marker, "a")
        return "", 403

    def audited_raised(self, marker: str) -> Answer:
        self.auto.on_rollback(lambda: self.save(marker, "c"))
        self.save(marker, "a")
        raise Planned

    # Nothing written

    def read(self, marker: str) -> Answer:
        assert self.Thing.query.filter_by(name=TAKEN).one().id
        return "", 200

    def unused(self, marker: str) -> Answer:
        return "", 204


class Watch:
    """Counts requests, and connections that a request has not given back when it ends.

    :param engine: The application's engine.
    :param wsgi_app: The application.
    """

    def __init__(self, engine: Engine, wsgi_app: Callable[..., Iterable[bytes]]) -> None:
        self.engine = engine
        self.wsgi_app = wsgi_app
        self.served = self.in_flight = 0
        self.kept: list[str] = []
        self._lock = threading.Lock()
        self._holders: dict[int, int] = {}
        event.listen(engine, "checkout", self._checkout)
        event.listen(engine, "checkin", self._checkin)

    def _checkout(self, dbapi_connection: Any, record: Any, proxy: Any) -> None:
        self._holders[id(record)] = threading.get_ident()

    def _checkin(self, dbapi_connection: Any, record: Any) -> None:
        self._holders.pop(id(record), None)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/state":
            return self.wsgi_app(environ, start_response)
        with self._lock:
            self.in_flight += 1
        try:
            return self.wsgi_app(environ, start_response)
        finally:
            with self._lock:
                # At once, because the garbage collector would give a forgotten one back in time.
                if threading.get_ident() in list(self._holders.values()):
                    self.kept.append(environ["PATH_INFO"])
                self.in_flight -= 1
                self.served += 1

    def state(self) -> dict[str, Any]:
        """What this process holds, told without a look at the database."""
        return {
            "pid": os.getpid(),
            "served": self.served,
            "in_flight": self.in_flight,
            "kept": self.kept[:10],
            "sessions": sum(map(_is_alive, gc.get_objects())),
            "checked_out": self.engine.pool.checkedout(),  # type: ignore[attr-defined]
        }


def _is_alive(found: object) -> bool:
    # By its real type: there are proxies about that raise when they are asked for their class.
    if not issubclass(type(found), UnitSession):
        return False
    assert isinstance(found, UnitSession)
    bound = found.scope is not None and found.scope.session is found
    return bound or found.in_transaction()


def create_app() -> Flask:
    """Make the application for the database that the environment names."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    # With a patience that lets SQLite's one writer at a time serve two processes.
    patience = {"timeout": 60} if os.environ[DATABASE].startswith("sqlite") else {}
    world = World(
        Database("served", os.environ[DATABASE]),
        SQLALCHEMY_ENGINE_OPTIONS={"connect_args": patience},
    )
    app = world.app
    app.logger.addFilter(lambda record: not (record.exc_info and record.exc_info[0] is Planned))
    _add_views(app, Views(world))
    with app.app_context():
        engine = world.db.engine
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _check_foreign_keys)
    watch = Watch(engine, app.wsgi_app)
    app.wsgi_app = watch  # type: ignore[method-assign]
    app.add_url_rule("/state", view_func=watch.state)
    return app


def _check_foreign_keys(dbapi_connection: Any, record: Any) -> None:
    dbapi_connection.execute("PRAGMA foreign_keys = ON")


def _add_views(app: Flask, views: Views) -> None:
    @app.before_request
    def before() -> None:
        if (request.endpoint or "").startswith("before"):
            assert request.view_args is not None
            views.save(request.view_args["marker"], "a")

    @app.after_request
    def veto(response: Response) -> Response:
        if request.endpoint == "vetoed":
            response.status_code = 503
        return response

    @app.errorhandler(IntegrityError)
    def conflict(error: IntegrityError) -> Answer:
        return "", 409

    @app.errorhandler(Rendered)
    def render(error: Rendered) -> Answer:
        views.save(str(error), "c")
        return "", 200

    def look_back(error: BaseException | None) -> None:
        if "look_back" in g:
            views.read("")

    # In front, so that it is called last, when Flask-SQLAlchemy has removed the session already.
    app.teardown_appcontext_funcs.insert(0, look_back)
    for name in KINDS:
        app.add_url_rule(f"/{name}/<marker>", name, getattr(views, name), methods=["POST"])
