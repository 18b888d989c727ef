"""The AUTOSESSION_ keys: what they take, and what an application is told otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_autosession import AutoSession, ConfigError
from flask_autosession.config import KEYS, Settings, read_settings


def test_without_any_key_the_defaults_hold() -> None:
    """An application that configures nothing gets the documented defaults."""
    assert read_settings({}) == Settings(
        enabled=True,
        rollback_from_status=400,
        explicit_commit="warn",
        commit_contexts=True,
        sqlite_begin="on_write",
    )


@pytest.mark.parametrize("value", [True, 1, "1", "true", "True", "yes", "YES", "on"])
def test_truth_is_spelt_in_many_ways(value: Any) -> None:
    """Every usual spelling of a truth value counts alike."""
    assert read_settings({"AUTOSESSION_COMMIT_CONTEXTS": value}).commit_contexts is True


@pytest.mark.parametrize("value", [False, 0, "0", "false", "False", "no", "off"])
def test_so_is_falsehood(value: Any) -> None:
    """Every usual spelling of the opposite counts alike."""
    assert read_settings({"AUTOSESSION_ENABLED": value}).enabled is False


@pytest.mark.parametrize(
    ("key", "value", "takes"),
    [
        ("AUTOSESSION_ENABLED", "perhaps", "True or False"),
        ("AUTOSESSION_ENABLED", None, "True or False"),
        ("AUTOSESSION_ROLLBACK_FROM_STATUS", "many", "a status code from 100 to 600"),
        ("AUTOSESSION_ROLLBACK_FROM_STATUS", 4000, "a status code from 100 to 600"),
        ("AUTOSESSION_EXPLICIT_COMMIT", "never", "'warn', 'allow', 'flush', 'forbid'"),
        ("AUTOSESSION_SQLITE_BEGIN", True, "'on_write', 'deferred', 'immediate', 'off'"),
    ],
)
def test_a_wrong_value_names_key_value_and_what_is_taken(key: str, value: Any, takes: str) -> None:
    """The error shows the key, the value it has, and the values it may have."""
    with pytest.raises(ConfigError) as caught:
        read_settings({key: value})
    assert key in str(caught.value)
    assert repr(value) in str(caught.value)
    assert takes in str(caught.value)


def test_an_unknown_key_names_the_nearest_that_exists() -> None:
    """A misspelt key does not pass in silence."""
    with pytest.raises(ConfigError, match="Did you mean 'AUTOSESSION_EXPLICIT_COMMIT'"):
        read_settings({"AUTOSESSION_EXPLICIT_COMIT": "flush"})


def test_other_peoples_keys_are_left_alone() -> None:
    """Only keys with the prefix are looked at."""
    assert read_settings({"SECRET_KEY": "x", "AUTO": 1}) == Settings()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("AUTOSESSION_ENABLED", "no", False),
        ("AUTOSESSION_ROLLBACK_FROM_STATUS", "500", 500),
        ("AUTOSESSION_EXPLICIT_COMMIT", "flush", "flush"),
        ("AUTOSESSION_COMMIT_CONTEXTS", "0", False),
        ("AUTOSESSION_SQLITE_BEGIN", "off", "off"),
    ],
)
def test_every_key_works_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, key: str, text: str, value: Any
) -> None:
    """app.config.from_prefixed_env() is enough."""
    monkeypatch.setenv(f"FLASK_{key}", text)
    app = Flask("env")
    app.config.from_prefixed_env()
    assert getattr(read_settings(app.config), KEYS[key]) == value


def test_a_wrong_key_stops_the_application_at_start_up() -> None:
    """init_app() raises, and leaves the application without an AutoSession."""
    app = Flask("wrong")
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", AUTOSESSION_ENABLE=True)
    with pytest.raises(ConfigError, match="AUTOSESSION_ENABLED"):
        AutoSession(app)
    assert "autosession" not in app.extensions
    assert "sqlalchemy" not in app.extensions


@pytest.mark.parametrize(
    "config",
    [
        {"SQLALCHEMY_ENGINE_OPTIONS": {"isolation_level": "AUTOCOMMIT"}},
        {
            "SQLALCHEMY_ENGINE_OPTIONS": {
                "execution_options": {"isolation_level": "autocommit"},
            }
        },
        {"SQLALCHEMY_BINDS": {"x": {"url": "sqlite://", "isolation_level": "AUTOCOMMIT"}}},
    ],
)
def test_an_engine_at_autocommit_is_refused_at_start_up(config: dict[str, Any]) -> None:
    """An engine that commits every statement by itself could not keep the promise."""
    app = Flask("autocommit")
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", **config)
    with pytest.raises(ConfigError, match="AUTOCOMMIT"):
        AutoSession(app)


def test_binds_may_be_plain_urls() -> None:
    """Binds that are given as strings have no options to refuse."""
    app = Flask("binds")
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", SQLALCHEMY_BINDS={"other": "sqlite://"})
    AutoSession(app)
    assert "autosession" in app.extensions


def test_autocommit_that_no_configuration_shows_is_found_on_first_use(
    database: Any,
) -> None:
    """SQLAlchemy(engine_options=...) is seen by its effect, before anything is written."""
    if database.kind == "sqlite":
        pytest.skip("SQLite gets real transactions at that level too")
    db = SQLAlchemy(engine_options={"isolation_level": "AUTOCOMMIT"})
    app = Flask("hidden")
    app.config["SQLALCHEMY_DATABASE_URI"] = database.uri
    AutoSession(app, db=db)
    with app.app_context():
        with pytest.raises(ConfigError, match="AUTOCOMMIT"):
            db.session.execute(db.text("INSERT INTO thing (name) VALUES ('x')"))
        db.session.rollback()
        db.engine.dispose()
    assert database.names == []


def test_disabled_leaves_flask_sqlalchemy_as_it_is(database: Any) -> None:
    """With AUTOSESSION_ENABLED False nothing is committed by itself, and commit() commits."""
    db = SQLAlchemy()
    app = Flask("disabled")
    app.config.update(SQLALCHEMY_DATABASE_URI=database.uri, AUTOSESSION_ENABLED=False)
    AutoSession(app, db=db)

    @app.post("/<name>")
    def view(name: str) -> str:
        db.session.execute(db.text("INSERT INTO thing (name) VALUES (:name)"), {"name": name})
        if name == "explicit":
            db.session.commit()
        return "done"

    for name in ("implicit", "explicit"):
        assert app.test_client().post(f"/{name}").status_code == 200
    with app.app_context():
        db.engine.dispose()
    assert database.names == ["explicit"]


@pytest.mark.parametrize(("status", "durable"), [(499, ["kept"]), (500, [])])
def test_the_status_to_roll_back_from_can_be_moved(
    database: Any, status: int, durable: list[str]
) -> None:
    """AUTOSESSION_ROLLBACK_FROM_STATUS takes the place of 400."""
    from .world import World

    world = World(database, AUTOSESSION_ROLLBACK_FROM_STATUS=500)

    @world.app.post("/")
    def view() -> Any:
        world.Thing(name="kept").save()
        return "", status

    world.app.test_client().post("/")
    world.close()
    assert database.names == durable
