"""celery_init_app(): which applications it takes, and what it makes of them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from celery import Celery, Task, current_app, shared_task
from celery.signals import worker_process_init
from flask import Flask

from flask_autosession import ConfigError
from flask_autosession.celery import celery_init_app

from ..world import Database, World
from .app import CeleryWorld
from .conftest import MakeWorld

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def flask_app(database: Database) -> Any:
    world = World(database)
    yield world
    world.close()


def test_an_application_without_autosession_is_refused(database: Database) -> None:
    """The order is auto.init_app(app), celery_init_app(app); the message says so."""
    app = Flask("early")
    with pytest.raises(ConfigError, match=r"'early' has no AutoSession yet. Call auto.init_app"):
        celery_init_app(app)
    assert "celery" not in app.extensions


def test_what_is_made_without_a_celery(flask_app: World) -> None:
    """It is named after the application, configured by CELERY, and the default one."""
    flask_app.app.config["CELERY"] = {"task_default_queue": "mine", "task_ignore_result": True}
    celery = celery_init_app(flask_app.app)
    assert celery.main == "world"
    assert (celery.conf.task_default_queue, celery.conf.task_ignore_result) == ("mine", True)
    assert flask_app.app.extensions["celery"] is celery
    assert current_app._get_current_object() is celery

    @shared_task(name="world.mine")  # type: ignore[untyped-decorator,unused-ignore]
    def mine() -> None: ...

    assert mine.app is celery


def test_without_configuration(flask_app: World) -> None:
    """An application without CELERY in its configuration gets Celery's defaults."""
    assert celery_init_app(flask_app.app).conf.task_default_queue == "celery"


def test_a_celery_of_the_applications_own(flask_app: World) -> None:
    """It keeps its configuration, and is not made the default one."""
    before = current_app._get_current_object()
    celery = Celery("own", set_as_current=False)
    celery.conf.task_default_queue = "own"
    flask_app.app.config["CELERY"] = {"task_default_queue": "not this"}
    assert celery_init_app(flask_app.app, celery) is celery
    assert flask_app.app.extensions["celery"] is celery
    assert celery.conf.task_default_queue == "own"
    assert current_app._get_current_object() is before


class Greeting(Task):  # type: ignore[type-arg]
    abstract = True
    greeting = "hello"


@pytest.mark.parametrize("as_name", [False, True])
def test_a_celery_with_a_task_class_of_its_own(flask_app: World, as_name: bool) -> None:
    """task_cls, as a class or by its name, is what the tasks still inherit from."""
    task_cls = f"{__name__}:Greeting" if as_name else Greeting
    celery = Celery("own", task_cls=task_cls, set_as_current=False)
    celery_init_app(flask_app.app, celery)

    @celery.task(bind=True)
    def body(self: Any) -> None:
        flask_app.Thing(name=self.greeting).save()

    body()
    assert isinstance(body._get_current_object(), Greeting)
    assert flask_app.database.names == ["hello"]


def test_task_was_asked_for_before(flask_app: World) -> None:
    """Somebody has looked at celery.Task already, without making any task."""
    celery = Celery("own", set_as_current=False)
    before = celery.Task
    celery_init_app(flask_app.app, celery)
    assert celery.Task is not before

    @celery.task
    def body() -> None:
        flask_app.Thing(name="kept").save()

    body()
    assert flask_app.database.names == ["kept"]


def test_tasks_declared_before(flask_app: World) -> None:
    """A task that is declared before its Celery is tied, but made later, is a unit as well."""
    celery = Celery("own", set_as_current=False)

    @celery.task
    def body() -> None:
        flask_app.Thing(name="kept").save()

    celery_init_app(flask_app.app, celery)
    body()
    assert flask_app.database.names == ["kept"]


def test_tasks_made_before(flask_app: World) -> None:
    """A Celery whose tasks are made already is tied all the same: they are units from then on."""
    celery = Celery("late", set_as_current=False)

    @celery.task(autoretry_for=(ValueError,), max_retries=0)
    def body(name: str, succeed: bool = True) -> None:
        flask_app.Thing(name=name).save()
        if not succeed:
            raise ValueError(name)

    celery.finalize()
    celery_init_app(flask_app.app, celery)
    body("kept")
    assert body.apply(["gone", False]).state == "FAILURE"
    assert flask_app.database.names == ["kept"]


@pytest.mark.parametrize("autoretry", [{}, {"autoretry_for": (ValueError,), "max_retries": 0}])
def test_a_registered_task_of_a_plain_class(flask_app: World, autoretry: Any) -> None:
    """register_task() of a class that is derived from celery.Task itself."""

    class Body(Task):  # type: ignore[type-arg]
        name = "world.plain"

        def run(self, name: str, succeed: bool = True) -> None:
            flask_app.Thing(name=name).save()
            if not succeed:
                raise ValueError(name)

    celery = celery_init_app(flask_app.app, Celery("own", set_as_current=False))
    body = celery.register_task(Body(), **autoretry)
    body("kept")
    assert body.apply(["gone", False]).state == "FAILURE"
    body.apply(["applied"]).get()
    assert flask_app.database.names == ["kept", "applied"]


def test_a_celery_is_tied_once(flask_app: World, make_world: MakeWorld) -> None:
    """A second Flask application for the same Celery is refused, and so is the same one again."""
    celery = Celery("own", set_as_current=False)
    celery_init_app(flask_app.app, celery)
    other = make_world()
    for app in (flask_app.app, other.app):
        with pytest.raises(ConfigError, match="tied to the Flask application 'world' already"):
            celery_init_app(app, celery)
    assert other.app.extensions["celery"] is other.celery


def test_two_applications_do_not_meet(make_world: MakeWorld) -> None:
    """Each Celery runs its tasks in the context of its own Flask application."""
    one, two = make_world(), make_world()
    two.app.config["MARK"] = True

    def body() -> bool:
        from flask import current_app

        return "MARK" in current_app.config

    body_one = one.celery.task(name="body")(body)
    body_two = two.celery.task(name="body")(body)
    assert (body_one(), body_two()) == (False, True)


def test_a_forked_process_leaves_its_parents_connections(make_world: MakeWorld) -> None:
    """What a worker process has copied from its parent is forgotten, and not closed."""
    world: CeleryWorld = make_world()
    with world.app.app_context():
        world.Thing.query.count()
        parents = world.db.session.connection().connection.dbapi_connection
        worker_process_init.send(sender=None)
    with world.app.app_context():
        assert world.db.session.connection().connection.dbapi_connection is not parents
    parents.execute("SELECT 1")
    parents.close()


def test_nothing_else_imports_celery(database: Database) -> None:
    """The package works where Celery is not installed: only flask_autosession.celery needs it."""
    code = (
        "import sys; sys.modules['celery'] = None; from flask_autosession import *\n"
        "try: import flask_autosession.celery\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "celery" in done.stdout
