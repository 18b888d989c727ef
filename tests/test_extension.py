"""Setting an AutoSession up: orders, several applications, and mistakes."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase

from flask_autosession import ActiveRecord, AutoSession, ConfigError, NoUnitError


def make_app(path: Path, name: str = "app", **config: Any) -> Flask:
    app = Flask(name)
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{path / name}.db"
    app.config.update(config)
    return app


def make_model(db: Any) -> Any:
    class Note(db.Model):
        id = sa.Column(sa.Integer, primary_key=True)
        text = sa.Column(sa.String)

    return Note


def serve(app: Flask, auto: AutoSession, model: Any) -> list[str]:
    """Save a note in one request, and return what another connection sees of it."""
    with app.app_context():
        auto.db.create_all()
    app.add_url_rule("/", view_func=lambda: str(model(text=app.name).save().id))
    assert app.test_client().get("/").status_code == 200
    engine = sa.create_engine(app.config["SQLALCHEMY_DATABASE_URI"], poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        found = list(connection.execute(sa.text("SELECT text FROM note")).scalars())
    with app.app_context():
        for engine in auto.db.engines.values():
            engine.dispose()
    return found


def _direct(app: Flask) -> tuple[AutoSession, Any]:
    auto = AutoSession(app)
    return auto, make_model(auto.db)


def _direct_with_db(app: Flask) -> tuple[AutoSession, Any]:
    db = SQLAlchemy()
    return AutoSession(app, db=db), make_model(db)


def _factory(app: Flask) -> tuple[AutoSession, Any]:
    db = SQLAlchemy()
    auto = AutoSession(db=db)
    model = make_model(db)
    auto.init_app(app)
    return auto, model


def _db_first(app: Flask) -> tuple[AutoSession, Any]:
    db = SQLAlchemy()
    model = make_model(db)
    db.init_app(app)
    auto = AutoSession(db=db)
    auto.init_app(app)
    return auto, model


def _db_last(app: Flask) -> tuple[AutoSession, Any]:
    db = SQLAlchemy()
    auto = AutoSession(db=db)
    auto.init_app(app)
    db.init_app(app)
    return auto, make_model(db)


def _the_apps_own(app: Flask) -> tuple[AutoSession, Any]:
    db = SQLAlchemy(app)
    model = make_model(db)
    auto = AutoSession(app)
    assert auto.db is db
    return auto, model


def _bare(app: Flask) -> tuple[AutoSession, Any]:
    auto = AutoSession()
    auto.init_app(app)
    return auto, make_model(auto)


ORDERS = [_direct, _direct_with_db, _factory, _db_first, _db_last, _the_apps_own, _bare]


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_setting_up_works(tmp_path: Path, order: Any) -> None:
    """Whichever comes first, the db, its init_app(), the models or the AutoSession."""
    app = make_app(tmp_path)
    auto, model = order(app)
    assert serve(app, auto, model) == ["app"]


def test_one_auto_session_serves_several_applications(tmp_path: Path) -> None:
    """Each application has its own database and configuration."""
    db = SQLAlchemy()
    auto = AutoSession(db=db)
    model = make_model(db)
    one, two = make_app(tmp_path, "one"), make_app(tmp_path, "two", AUTOSESSION_ENABLED=True)
    auto.init_app(one)
    auto.init_app(two)
    assert serve(one, auto, model) == ["one"]
    assert serve(two, auto, model) == ["two"]


def test_an_application_without_it_keeps_plain_flask_sqlalchemy(tmp_path: Path) -> None:
    """A db that is wrapped for one application behaves as ever in another."""
    db = SQLAlchemy()
    auto = AutoSession(db=db)
    model = make_model(db)
    plain = make_app(tmp_path, "plain")
    db.init_app(plain)
    assert serve(plain, auto, model) == []
    with plain.app_context():
        assert not db.session.registry.has()
        db.session.add(model(text="explicit"))
        db.session.commit()
        assert db.session.scalar(sa.select(sa.func.count(model.id))) == 1
        db.session.registry.set(db.session())
        db.session.remove()
        db.engine.dispose()


def test_init_app_twice_on_one_application_is_a_clear_error(tmp_path: Path) -> None:
    """One AutoSession for one application."""
    app = make_app(tmp_path)
    auto = AutoSession(app)
    with pytest.raises(ConfigError, match="'app' has an AutoSession already"):
        auto.init_app(app)


def test_wrapping_one_db_twice_is_a_clear_error() -> None:
    """One AutoSession for one db."""
    db = SQLAlchemy()
    AutoSession(db=db)
    with pytest.raises(ConfigError, match="SQLAlchemy object has an AutoSession already"):
        AutoSession(db=db)


def test_an_application_with_another_db_is_a_clear_error(tmp_path: Path) -> None:
    """The db that the AutoSession wraps has to be the application's."""
    app = make_app(tmp_path)
    SQLAlchemy(app)
    with pytest.raises(ConfigError, match="another SQLAlchemy object"):
        AutoSession(app, db=SQLAlchemy())


def test_a_scopefunc_of_the_applications_own_is_a_clear_error() -> None:
    """A unit of work needs the session to belong to the app context."""
    with pytest.raises(ConfigError, match="scopefunc"):
        AutoSession(db=SQLAlchemy(session_options={"scopefunc": lambda: 1}))


def test_db_init_app_twice_is_still_flask_sqlalchemys_error(tmp_path: Path) -> None:
    """Only the one call that auto.init_app() has made already is passed over."""
    app = make_app(tmp_path)
    auto = AutoSession(app)
    auto.db.init_app(app)
    with pytest.raises(RuntimeError, match="already been registered"):
        auto.db.init_app(app)


def test_there_is_no_db_before_init_app() -> None:
    """The error says what to call."""
    with pytest.raises(ConfigError, match=r"before init_app\(app\)"):
        _ = AutoSession().db


def test_session_and_model_are_those_of_the_db() -> None:
    """auto.session, auto.Model and auto.db are shortcuts."""
    db = SQLAlchemy()
    auto = AutoSession(db=db)
    assert auto.session is db.session
    assert auto.Model is db.Model
    assert auto.db is db


@pytest.mark.parametrize("name", ["commit", "doom", "on_commit", "on_rollback", "savepoint"])
def test_outside_of_a_context_every_verb_explains(name: str) -> None:
    """At module level there is no unit of work, and the error says where there is one."""
    auto = AutoSession(db=SQLAlchemy())
    calls: dict[str, Any] = {
        "on_commit": lambda: auto.on_commit(print),
        "on_rollback": lambda: auto.on_rollback(print),
        "savepoint": lambda: auto.savepoint().__enter__(),
    }
    with pytest.raises(NoUnitError, match=rf"auto\.{name}\(\) was called outside"):
        calls.get(name, getattr(auto, name))()


def test_a_callback_must_be_callable(tmp_path: Path) -> None:
    """on_commit(f()) instead of on_commit(f) is told at once, not after the commit."""
    app = make_app(tmp_path)
    auto = AutoSession(app)
    with app.app_context(), pytest.raises(TypeError, match="A function is needed"):
        auto.on_commit("not a function")  # type: ignore[type-var]


def test_there_is_one_rule(tmp_path: Path) -> None:
    """A second commit_when would silently replace the first."""
    auto = AutoSession(make_app(tmp_path))
    auto.commit_when(lambda response: True)
    with pytest.raises(ConfigError, match="commit_when"):
        auto.commit_when(lambda response: False)


@pytest.mark.parametrize(("header", "durable"), [("yes", ["kept"]), ("no", [])])
def test_commit_when_decides_in_place_of_the_status(
    tmp_path: Path, header: str, durable: list[str]
) -> None:
    """The application's own rule may commit a 409 and roll a 200 back."""
    app = make_app(tmp_path)
    auto = AutoSession(app)
    note = make_model(auto)

    @auto.commit_when
    def rule(response: Any) -> bool:
        return response.headers["Commit"] == "yes"

    @app.get("/rule")
    def view() -> Any:
        note(text="kept").save()
        return "", 409 if header == "yes" else 200, {"Commit": header}

    with app.app_context():
        auto.db.create_all()
    app.test_client().get("/rule")
    with app.app_context():
        assert [found.text for found in note.query] == durable
        auto.db.engine.dispose()


def test_a_typed_base_needs_no_swap(tmp_path: Path) -> None:
    """class Base(ActiveRecord, DeclarativeBase) keeps the methods it has."""

    class Base(ActiveRecord, DeclarativeBase):
        pass

    db = SQLAlchemy(model_class=Base)
    app = make_app(tmp_path)
    auto = AutoSession(app, db=db)
    assert serve(app, auto, make_model(db)) == ["app"]
    assert issubclass(db.Model, ActiveRecord)


def test_applications_can_be_forgotten(tmp_path: Path) -> None:
    """An AutoSession that outlives an application does not keep it alive."""
    db = SQLAlchemy()
    auto = AutoSession(db=db)
    model = make_model(db)
    app = make_app(tmp_path)
    auto.init_app(app)
    serve(app, auto, model)
    seen = weakref.ref(app)
    del app
    gc.collect()
    assert seen() is None


def test_requests_leave_nothing_in_memory(tmp_path: Path) -> None:
    """The scopes and sessions of finished requests are freed at once, without the collector."""
    app = make_app(tmp_path)
    auto = AutoSession(app)
    note = make_model(auto)
    with app.app_context():
        auto.db.create_all()
    seen: list[weakref.ref[Any]] = []

    @app.get("/<int:status>")
    def view(status: int) -> Any:
        note(text="x").save()
        session = auto.session()
        seen.extend((weakref.ref(session), weakref.ref(session.scope)))
        return "", status

    client = app.test_client()
    for status in (200, 404, 200):
        client.get(f"/{status}")
    with app.app_context():
        auto.db.engine.dispose()
    gc.collect()
    assert [ref() for ref in seen] == [None] * 6


def test_unit_without_a_context_needs_exactly_one_application(tmp_path: Path) -> None:
    """With two applications auto.unit() has to be told which."""
    db = SQLAlchemy()
    auto = AutoSession(db=db)
    one, two = make_app(tmp_path, "one"), make_app(tmp_path, "two")
    with pytest.raises(NoUnitError), auto.unit():
        pass
    auto.init_app(one)
    with auto.unit():
        assert auto.db.engine.url.database == str(tmp_path / "one.db")
    auto.init_app(two)
    with pytest.raises(NoUnitError, match="not exactly one"), auto.unit():
        pass
    with auto.unit(two):
        assert auto.db.engine.url.database == str(tmp_path / "two.db")
