"""Code that commits explicitly, and leaves nothing uncommitted, behaves as before it was wrapped.

One application in the style of plain Flask-SQLAlchemy is driven through the same requests twice,
without AutoSession and with it; the two histories of responses and durable rows are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from click.testing import Result
from flask import Flask, abort, render_template_string, request, session, stream_with_context
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.exc import IntegrityError, InvalidRequestError

from flask_autosession import AutoSession
from tests.world import Database, metadata, thing

FORM = "<form>{{ message }}: {{ names|join(', ') }}</form>"


class App:
    """The application, plain or wrapped; its code knows nothing of the difference."""

    def __init__(self, database: Database, wrapped: bool, mode: str) -> None:
        self.database = database
        self.app = Flask("plain", static_folder=None)
        self.app.config.update(SQLALCHEMY_DATABASE_URI=database.uri, SECRET_KEY="of the tests")
        self.db = SQLAlchemy()

        class Thing(self.db.Model):  # type: ignore[name-defined,misc]
            __table__ = thing

        self.Thing = Thing
        self.db.init_app(self.app)
        if wrapped:
            self.app.config["AUTOSESSION_EXPLICIT_COMMIT"] = mode
            AutoSession(self.app, db=self.db)
        add_views(self)

    def close(self) -> None:
        with self.app.app_context():
            for engine in self.db.engines.values():
                engine.dispose()


def add_views(site: App) -> None:
    app, db, Thing = site.app, site.db, site.Thing

    def names() -> list[str]:
        return list(db.session.scalars(db.select(Thing.name).order_by(Thing.id)))

    @app.post("/create/<name>")
    def create(name: str) -> Any:
        made = Thing(name=name)
        db.session.add(made)
        db.session.commit()
        return {"id": made.id, "name": made.name}, 201

    @app.post("/create-or-form/<name>")
    def create_or_form(name: str) -> str:
        db.session.add(Thing(name=name))
        try:
            db.session.commit()
        except IntegrityError:
            db.session.rollback()
            return render_template_string(FORM, message="taken", names=names())
        return "made"

    @app.post("/flush-or-form/<name>")
    def flush_or_form(name: str) -> Any:
        db.session.add(Thing(name=name))
        try:
            db.session.flush()
        except IntegrityError:
            db.session.rollback()
            return render_template_string(FORM, message="taken", names=names()), 409
        db.session.commit()
        return "made"

    @app.post("/form-without-rollback/<name>")
    def form_without_rollback(name: str) -> str:
        db.session.add(Thing(name=name))
        try:
            db.session.commit()
        except IntegrityError:
            return "taken"
        return "made"

    @app.post("/second-choice/<name>")
    def second_choice(name: str) -> str:
        for choice in (name, name + "-2"):
            db.session.add(Thing(name=choice))
            try:
                db.session.commit()
            except IntegrityError:
                db.session.rollback()
            else:
                break
        return choice

    @app.post("/rename/<name>/<new>")
    def rename(name: str, new: str) -> Any:
        found = Thing.query.filter_by(name=name).first_or_404()
        found.name = new
        db.session.commit()
        db.session.refresh(found)
        return {"id": found.id, "name": found.name}

    @app.post("/delete/<name>")
    def delete(name: str) -> str:
        db.session.delete(Thing.query.filter_by(name=name).one_or_404())
        db.session.commit()
        return str(Thing.query.filter_by(name=name).count())

    @app.post("/loop/<name>")
    def loop(name: str) -> str:
        for number in range(3):
            made = Thing(name=f"{name}{number}")
            db.session.add(made)
            db.session.commit()
            made.name += "!"
            db.session.commit()
        return ", ".join(names())

    @app.post("/loop-that-breaks/<name>")
    def loop_that_breaks(name: str) -> str:
        for number in range(3):
            db.session.add(Thing(name=f"{name}{number}"))
            if number == 1:
                raise LookupError(name)
            db.session.commit()
        return "all"

    @app.post("/bulk/<name>")
    def bulk(name: str) -> Any:
        rows = [{"name": f"{name}{number}"} for number in range(3)]
        db.session.execute(sa.insert(Thing), rows)
        db.session.bulk_insert_mappings(Thing, [{"name": name}])
        db.session.bulk_save_objects([Thing(name=name + "-saved")])
        db.session.commit()
        changed = Thing.query.filter_by(name=name).update({"name": name + "-changed"})
        gone = Thing.query.filter_by(name=name + "0").delete()
        db.session.commit()
        return {"changed": changed, "gone": gone}

    @app.post("/bulk-taken/<name>")
    def bulk_taken(name: str) -> str:
        try:
            db.session.execute(sa.insert(Thing), [{"name": name + "-new"}, {"name": name}])
            db.session.commit()
        except IntegrityError:
            db.session.rollback()
            return "taken"
        return "made"

    @app.post("/sql/<name>")
    def sql(name: str) -> str:
        db.session.execute(sa.text("INSERT INTO thing (name) VALUES (:name)"), {"name": name})
        db.session.commit()
        return ", ".join(names())

    @app.post("/nested/<name>/<other>")
    def nested(name: str, other: str) -> str:
        outcome = []
        for choice in (name, other):
            try:
                with db.session.begin_nested():
                    db.session.add(Thing(name=choice))
                outcome.append("made")
            except IntegrityError:
                outcome.append("taken")
        db.session.commit()
        return ", ".join(outcome)

    @app.post("/nested-by-hand/<name>")
    def nested_by_hand(name: str) -> str:
        savepoint = db.session.begin_nested()
        db.session.add(Thing(name=name + "-dropped"))
        db.session.flush()
        savepoint.rollback()
        savepoint = db.session.begin_nested()
        db.session.add(Thing(name=name))
        savepoint.commit()
        db.session.commit()
        return ", ".join(names())

    @app.post("/begin/<name>")
    def begin(name: str) -> str:
        with db.session.begin():
            db.session.add(Thing(name=name))
        with db.session.begin():
            db.session.add(Thing(name=name + "-again"))
        return ", ".join(names())

    @app.post("/begin-taken/<name>")
    def begin_taken(name: str) -> str:
        try:
            with db.session.begin():
                db.session.add(Thing(name=name + "-new"))
                db.session.flush()
                db.session.add(Thing(name=name))
        except IntegrityError:
            return "taken: " + ", ".join(names())
        return "made"

    @app.post("/begin-late/<name>")
    def begin_late(name: str) -> str:
        names()
        try:
            with db.session.begin():
                db.session.add(Thing(name=name))
        except InvalidRequestError:
            return "begun already"
        return "made"

    @app.post("/preview/<name>")
    def preview(name: str) -> str:
        db.session.add(Thing(name=name))
        shown = names()
        db.session.rollback()
        return ", ".join(shown) + " then " + ", ".join(names())

    @app.post("/expired/<name>")
    def expired(name: str) -> str:
        made = Thing(name=name)
        db.session.add(made)
        db.session.commit()
        after_commit = sa.inspect(made).expired
        made.name = "changed"
        db.session.rollback()
        return f"{after_commit} {made.name} {made in db.session}"

    @app.post("/removed/<name>")
    def removed(name: str) -> str:
        made = Thing(name=name)
        db.session.add(made)
        db.session.commit()
        ident = made.id
        db.session.remove()
        detached = sa.inspect(made).detached
        return f"{detached} {db.session.get(Thing, ident).name}"

    @app.post("/merge/<name>/<new>")
    def merge(name: str, new: str) -> str:
        found = Thing.query.filter_by(name=name).one_or_404()
        db.session.expunge(found)
        found.name = new
        merged = db.session.merge(found)
        db.session.commit()
        return f"{found in db.session} {merged.name}"

    @app.post("/commit-then/<name>/<how>")
    def commit_then(name: str, how: str) -> Any:
        db.session.add(Thing(name=name))
        db.session.commit()
        if how == "raise":
            raise LookupError(name)
        if how == "abort":
            abort(418)
        if how == "refuse":
            return "refused", 400
        return None

    @app.post("/cookie/<name>")
    def cookie(name: str) -> str:
        made = Thing(name=name)
        db.session.add(made)
        db.session.commit()
        session["last"] = made.id
        return str(session["last"])

    @app.post("/stream/<name>")
    def stream(name: str) -> Any:
        def lines() -> Iterator[str]:
            for number in range(2):
                db.session.add(Thing(name=f"{name}{number}"))
                db.session.commit()
                yield ", ".join(names()) + "\n"

        return app.response_class(stream_with_context(lines()))

    @app.get("/list")
    def listing() -> Any:
        page = db.paginate(db.select(Thing).order_by(Thing.name), page=1, per_page=4)
        return {"total": page.total, "names": [item.name for item in page.items]}

    @app.errorhandler(LookupError)
    def handled(error: LookupError) -> tuple[str, int]:
        db.session.rollback()
        db.session.add(Thing(name=f"log of {request.path}"))
        db.session.commit()
        return "handled", 500

    @app.after_request
    def log_late(response: Any) -> Any:
        if "log" in request.args:
            db.session.add(Thing(name=f"after {request.path}"))
            db.session.commit()
        return response

    @app.teardown_request
    def log_last(error: BaseException | None) -> None:
        if "log" in request.args:
            db.session.add(Thing(name=f"teardown {request.path}"))
            db.session.commit()

    @app.cli.command("add")
    def add() -> None:
        for name in ("from-cli", "a"):
            db.session.add(Thing(name=name))
            try:
                db.session.commit()
            except IntegrityError:
                db.session.rollback()
                print(f"{name} is taken")


# In this order, on one database: "a" is made first, so that later requests find it taken.
REQUESTS = [
    "/create/a",
    "/create/a",
    "/create-or-form/a",
    "/create-or-form/b",
    "/flush-or-form/a",
    "/flush-or-form/c",
    "/form-without-rollback/a",
    "/form-without-rollback/d",
    "/second-choice/a",
    "/rename/d/e",
    "/rename/nobody/e",
    "/rename/e/a",
    "/delete/e",
    "/delete/e",
    "/loop/f",
    "/loop-that-breaks/g",
    "/bulk/h",
    "/bulk-taken/a",
    "/sql/i",
    "/nested/a/j",
    "/nested/k/a",
    "/nested-by-hand/l",
    "/begin/m",
    "/begin-taken/a",
    "/begin-late/n",
    "/preview/o",
    "/expired/p",
    "/removed/q",
    "/merge/q/r",
    "/commit-then/s/raise",
    "/commit-then/t/abort",
    "/commit-then/u/refuse",
    "/commit-then/v/none",
    "/cookie/w",
    "/stream/x",
    "/create/y?log=1",
    "/create-or-form/y?log=2",
]


def history(database: Database, wrapped: bool, mode: str = "warn") -> list[tuple[Any, ...]]:
    """What a client is told by each request, and what a second connection sees after it."""
    metadata.drop_all(database.engine)
    metadata.create_all(database.engine)
    site = App(database, wrapped, mode)
    client = site.app.test_client()
    told: list[tuple[Any, ...]] = []
    for path in REQUESTS:
        response = client.post(path)
        told.append((path, response.status_code, response.text, database.names))
    result: Result = site.app.test_cli_runner().invoke(args=["add"])
    told.append(("add", result.exit_code, result.output, database.names))
    with site.app.app_context():
        site.db.session.add(site.Thing(name="script"))
        site.db.session.commit()
    told.append(("script", database.names))
    told.append(("/list", client.get("/list").json))
    site.close()
    return told


def test_code_that_commits_explicitly_behaves_as_before(database: Database) -> None:
    """Wrapping an application that commits by itself changes no response and no durable row."""
    plain = history(database, wrapped=False)
    assert len(plain) == len(REQUESTS) + 3
    for mode in ("warn", "allow"):
        wrapped = history(database, wrapped=True, mode=mode)
        differences = [pair for pair in zip(plain, wrapped, strict=True) if pair[0] != pair[1]]
        assert differences == []


def test_the_plain_application_does_what_its_steps_are_for(database: Database) -> None:
    """The history that is compared has successes and failures, or it would compare nothing."""
    told = history(database, wrapped=False)
    statuses = [status for _, status, *_ in told if isinstance(status, int)]
    assert {200, 201, 400, 404, 409, 418, 500} <= set(statuses)
    assert len(told[-2][-1]) > 30
