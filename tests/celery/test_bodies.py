"""Rows 27 and 28 without a worker: called directly, eagerly, and by what a worker runs."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Task, shared_task
from celery.exceptions import Ignore, Reject, Retry
from click.exceptions import Exit
from flask import abort, current_app, g, redirect
from kombu.exceptions import EncodeError

from flask_autosession import DoomedError, SharedConnectionError, unit_committed, unit_rolled_back

from ..world import Database, metadata, thing
from .app import CeleryWorld
from .conftest import MakeWorld, messages, work

CALLS: dict[str, Callable[..., Any]] = {
    "direct": lambda task, *args: task(*args),
    "apply": lambda task, *args: task.apply(args),
    "worker": work,
}


@pytest.fixture(params=list(CALLS))
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A way to run a task's body."""
    return CALLS[request.param]


def quietly(call: Callable[..., Any], *args: Any) -> None:
    """Run a task that fails. What is raised depends on the way it is called, and is Celery's."""
    try:
        call(*args)
    except (Exception, SystemExit):
        pass


def test_row_27_success_is_committed(world: CeleryWorld, call: Callable[..., Any]) -> None:
    """What a task has done is durable when it returns, changes never saved included."""

    @world.task()
    def rename() -> None:
        one = world.Thing(name="first").save()
        one.name = "renamed"
        world.db.session.add(world.Thing(name="pending"))

    call(rename)
    assert world.database.names == ["renamed", "pending"]


def test_row_27_delay_of_an_eager_application(make_world: MakeWorld) -> None:
    """Under task_always_eager, delay() runs the body as a unit."""
    world = make_world(task_always_eager=True)
    assert world.save.delay("kept").get() == "kept"
    assert world.fail.delay("gone").state == "FAILURE"
    assert world.database.names == ["kept"]


def test_row_27_durable_before_success_is_told(world: CeleryWorld) -> None:
    """Where Celery calls a task succeeded, its rows can be seen from another connection."""
    seen: list[tuple[str, list[str]]] = []

    class Watched(world.celery.Task):  # type: ignore[name-defined,misc]
        def on_success(self, *args: Any) -> None:
            seen.append(("success", world.database.names))

        def after_return(self, *args: Any) -> None:
            seen.append(("returned", world.database.names))

    @world.task(base=Watched)
    def watched() -> None:
        world.Thing(name="kept").save()
        seen.append(("body", world.database.names))

    assert work(watched) == ("SUCCESS", None)
    assert seen == [("body", []), ("success", ["kept"]), ("returned", ["kept"])]


def _retry(task: Any) -> None:
    raise task.retry(countdown=0)


def _raise(error: BaseException) -> Callable[[Any], None]:
    def end(_: Any) -> None:
        raise error

    return end


ENDINGS: dict[str, Callable[[Any], Any]] = {
    "exception": _raise(ValueError("no")),
    "Retry": _raise(Retry("later")),
    "retry()": _retry,
    "Ignore": _raise(Ignore()),
    "Reject": _raise(Reject("no", requeue=False)),
    "SystemExit(0)": _raise(SystemExit(0)),
    "SystemExit(3)": _raise(SystemExit(3)),
    "Exit(0)": _raise(Exit(0)),
    "abort(404)": lambda _: abort(404),
    "redirect": lambda _: abort(redirect("/elsewhere")),
}


@pytest.mark.parametrize("ending", list(ENDINGS))
def test_row_28_any_exception_rolls_back(world: CeleryWorld, ending: str) -> None:
    """Whatever leaves a task's body as an exception, nothing of it is kept."""

    @world.task(bind=True)
    def body(self: Any) -> None:
        world.Thing(name="gone").save()
        ENDINGS[ending](self)

    for call in CALLS.values():
        quietly(call, body)
        assert world.database.names == []
    world.save("kept")  # and the next one is not harmed
    assert world.database.names == ["kept"]


def test_row_28_a_direct_call_passes_its_exception_on(world: CeleryWorld) -> None:
    """Whoever calls a task like a function gets what its body raises, itself."""
    with pytest.raises(ValueError, match="gone"):
        world.fail("gone")
    with pytest.raises(SystemExit):
        world.leave("gone")


def test_row_28_a_swallowed_error_fails_the_task(
    world: CeleryWorld, call: Callable[..., Any]
) -> None:
    """A task that goes on after a failed flush is no success: it would have kept half."""

    @world.task()
    def half() -> None:
        world.Thing(name="first").save()
        with pytest.raises(sa.exc.IntegrityError):
            world.Thing(name=None).save()

    with pytest.raises(DoomedError):
        half()
    quietly(call, half)
    assert world.database.names == []
    assert work(half)[0] == "FAILURE"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_doomed_task_says_so(world: CeleryWorld) -> None:
    """The failure that Celery reports is the error itself, with what it knows."""

    @world.task()
    def half() -> None:
        with pytest.raises(sa.exc.IntegrityError):
            world.Thing(name=None).save()

    error = half.apply().result
    assert isinstance(error, DoomedError)
    assert "test_bodies.py" in error.where


def test_row_12_a_doomed_task_keeps_nothing_and_succeeds(world: CeleryWorld) -> None:
    """auto.doom() is a decision, not a failure."""

    @world.task()
    def preview() -> int:
        world.auto.doom()
        world.Thing(name="gone").save()
        return int(world.Thing.query.count())

    assert work(preview) == ("SUCCESS", 1)
    assert world.database.names == []


# The body's own context


def test_each_body_has_a_context_of_its_own(world: CeleryWorld, call: Callable[..., Any]) -> None:
    """A task sees neither the caller's g nor its session, and leaves the caller's as they were."""
    history: list[Any] = []

    @world.task()
    def body() -> None:
        history.append(("note" in g, current_app.name, world.db.session()))
        g.note = "task"

    call(body)
    with world.app.app_context():
        g.note = "caller"
        outside = world.db.session()
        call(body)
        assert (g.note, world.db.session()) == ("caller", outside)
    assert [entry[:2] for entry in history] == [(False, "world"), (False, "world")]
    assert history[1][2] is not outside


def test_an_eager_task_has_a_unit_of_its_own(world: CeleryWorld, call: Callable[..., Any]) -> None:
    """A task run inside of a unit is committed though the unit fails, and the other way round."""
    if world.database.kind == "sqlite":
        pytest.skip("SQLite lets one write at a time; see the next tests")
    with pytest.raises(ZeroDivisionError), world.auto.unit(world.app):
        world.Thing(name="outer gone").save()
        call(world.save, "task kept")
        assert world.database.names == ["task kept"]
        raise ZeroDivisionError
    with world.auto.unit(world.app):
        world.Thing(name="outer kept").save()
        quietly(call, world.fail, "task gone")
    assert sorted(world.database.names) == ["outer kept", "task kept"]


def test_an_eager_task_inside_a_unit_that_reads(
    world: CeleryWorld, call: Callable[..., Any]
) -> None:
    """A unit that has only read before lets the task write, on SQLite too."""
    with pytest.raises(ZeroDivisionError), world.auto.unit(world.app):
        assert world.Thing.query.count() == 0
        call(world.save, "kept")
        raise ZeroDivisionError
    assert world.database.names == ["kept"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_row_34_an_eager_task_in_memory(database: Database) -> None:
    """In memory, a task that writes inside a unit that has written fails with a clear error."""
    memory = CeleryWorld(Database("sqlite", "sqlite://"), {"broker_url": "memory://"})

    def names() -> list[str]:
        with memory.app.app_context():
            return list(memory.db.session.scalars(sa.select(thing.c.name)))

    with memory.app.app_context():
        metadata.create_all(memory.db.engine)
    with memory.app.app_context():
        memory.Thing(name="outer").save()
        with pytest.raises(SharedConnectionError, match="in-memory"):
            memory.save("task")
        assert memory.save.apply(["task"]).state == "FAILURE"
    assert names() == ["outer"]
    with memory.app.app_context():
        assert memory.save.apply(["task"]).result == "task"
    assert names() == ["outer", "task"]
    memory.close()
    memory.celery.close()


def test_a_task_called_by_a_task_is_a_unit_of_its_own(world: CeleryWorld) -> None:
    """One task calls another like a function: that one's failure is not the caller's."""

    @world.task()
    def outer() -> None:
        quietly_inside(lambda: world.fail("inner gone"))
        world.Thing(name="outer kept").save()

    def quietly_inside(function: Callable[[], Any]) -> None:
        with pytest.raises(ValueError, match="inner gone"):
            function()

    assert work(outer) == ("SUCCESS", None)
    assert world.database.names == ["outer kept"]


def test_callbacks_of_a_task(world: CeleryWorld, call: Callable[..., Any]) -> None:
    """on_commit and on_rollback follow the end of the task's unit; so do the signals."""
    history: list[str] = []

    @unit_committed.connect_via(world.app)
    def committed(_: Any) -> None:
        history.append("committed")

    @unit_rolled_back.connect_via(world.app)
    def rolled_back(_: Any, reason: str) -> None:
        history.append("rolled back")

    @world.task()
    def body(succeed: bool) -> None:
        world.Thing(name="work").save()
        world.auto.on_commit(lambda: history.append(f"on_commit {world.database.names}"))
        world.auto.on_rollback(lambda: world.Thing(name="audit").save() and None)
        if not succeed:
            raise ValueError("no")

    quietly(call, body, False)
    assert (history[0], world.database.names) == ("rolled back", ["audit"])
    history.clear()
    call(body, True)
    assert history[:2] == ["committed", "on_commit ['audit', 'work']"]


def test_row_15_explicit_commits_commit_in_a_task(
    world: CeleryWorld, call: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever commits in a task means it, and is not warned."""

    @world.task()
    def batches() -> None:
        world.Thing(name="one").save()
        world.db.session.commit()
        world.Thing(name="two").save()
        world.auto.commit()
        world.Thing(name="three").save()
        raise ValueError("no")

    with caplog.at_level(logging.WARNING, "flask_autosession"):
        quietly(call, batches)
    assert world.database.names == ["one", "two"]
    assert [record.name for record in caplog.records if record.name == "flask_autosession"] == []


def test_without_units(make_world: MakeWorld, call: Callable[..., Any]) -> None:
    """AUTOSESSION_ENABLED=False leaves a task its app context, and the commits to the task."""
    world = make_world(flask={"AUTOSESSION_ENABLED": False})

    @world.task()
    def body(commit: bool) -> None:
        world.db.session.add(world.Thing(name=f"commit={commit}"))
        if commit:
            world.db.session.commit()

    call(body, False)
    call(body, True)
    assert world.database.names == ["commit=True"]


def test_without_units_a_task_may_raise(make_world: MakeWorld, call: Callable[..., Any]) -> None:
    """AUTOSESSION_ENABLED=False: an exception goes its way, and no context is left behind."""
    world = make_world(flask={"AUTOSESSION_ENABLED": False})

    @world.task()
    def body() -> None:
        raise ValueError(current_app.name)

    quietly(call, body)
    assert isinstance(body.apply().result, ValueError)


# Kinds of tasks


def test_a_bound_task_knows_itself(world: CeleryWorld, call: Callable[..., Any]) -> None:
    """bind=True passes the task, whose request says what it says elsewhere."""

    @world.task(bind=True)
    def body(self: Any, name: str) -> None:
        world.Thing(name=f"{self.name} {name} {self.request.retries}").save()

    call(body, "argument")
    assert world.database.names == ["world.body argument 0"]


def test_a_task_looks_like_its_function(world: CeleryWorld) -> None:
    """Documentation, name and module are those of the function."""

    @world.task()
    def body(one: int, *, two: int = 2) -> None:
        """What it does."""

    assert (body.__doc__, body.__name__) == ("What it does.", "body")
    assert (body.run.__doc__, body.run.__name__) == ("What it does.", "body")


@pytest.fixture
def by_class(world: CeleryWorld) -> Any:
    """A task that is a class, which calls the one it inherits from."""

    class Parent(world.celery.Task):  # type: ignore[name-defined,misc]
        name = "world.parent"

        def run(self, name: str, succeed: bool = True) -> str:
            world.Thing(name=name).save()
            return name

    class Child(Parent):
        name = "world.child"

        def run(self, name: str, succeed: bool = True) -> str:
            result = super().run(f"{name} by the parent")
            world.Thing(name=name).save()
            if not succeed:
                raise ValueError(name)
            return result

    return world.celery.register_task(Child())


def test_row_27_a_task_that_is_a_class(
    world: CeleryWorld, by_class: Any, call: Callable[..., Any]
) -> None:
    """run() of a class is a unit, and super().run() is a part of it."""
    call(by_class, "kept")
    assert world.database.names == ["kept by the parent", "kept"]


def test_row_28_a_task_that_is_a_class(
    world: CeleryWorld, by_class: Any, call: Callable[..., Any]
) -> None:
    """What super().run() has done is rolled back with the rest."""
    quietly(call, by_class, "gone", False)
    assert world.database.names == []


def test_a_base_class_of_the_applications_own(world: CeleryWorld, call: Callable[..., Any]) -> None:
    """base=Class, derived from celery.Task of the application, is a unit and keeps its methods."""

    class Base(world.celery.Task):  # type: ignore[name-defined,misc]
        abstract = True
        greeting = "hello"

        def greet(self) -> str:
            return self.greeting

    @world.task(base=Base, bind=True)
    def body(self: Any, succeed: bool) -> None:
        world.Thing(name=self.greet()).save()
        if not succeed:
            raise ValueError("no")

    quietly(call, body, False)
    assert world.database.names == []
    call(body, True)
    assert world.database.names == ["hello"]


@pytest.fixture
def by_plain_base(world: CeleryWorld) -> Iterator[Any]:
    """A task whose base class is derived from celery.Task, as Celery's documentation does it."""

    class Plain(Task):  # type: ignore[type-arg]
        abstract = True

        def __init__(self) -> None:
            self.calls = 0

    @world.task(base=Plain, bind=True)
    def body(self: Any, succeed: bool) -> None:
        self.calls += 1
        world.Thing(name=f"call {self.calls}").save()
        if not succeed:
            raise ValueError("no")

    return body


def test_a_base_class_made_without_the_application(
    world: CeleryWorld, by_plain_base: Any, call: Callable[..., Any]
) -> None:
    """base=Class, derived from celery.Task itself, is a unit too."""
    quietly(call, by_plain_base, False)
    assert world.database.names == []
    call(by_plain_base, True)
    assert world.database.names == ["call 2"]


def test_a_class_with_an_init_of_its_own(world: CeleryWorld, call: Callable[..., Any]) -> None:
    """A task class that keeps something on itself, and does not call super().__init__()."""

    class Counting(world.celery.Task):  # type: ignore[name-defined,misc]
        name = "world.counting"

        def __init__(self) -> None:
            self.calls = 0

        def run(self) -> None:
            self.calls += 1
            world.Thing(name=f"call {self.calls}").save()

    call(world.celery.register_task(Counting()))
    assert world.database.names == ["call 1"]


def test_a_shared_task(world: CeleryWorld, call: Callable[..., Any]) -> None:
    """@shared_task, for modules that know no application, is a unit of the one that is tied."""

    # Celery gives it to every application that is alive, those of other tests too.
    @shared_task(name=f"world.shared-{uuid.uuid4()}")  # type: ignore[untyped-decorator,unused-ignore]
    def shared(name: str | None) -> None:
        db = current_app.extensions["sqlalchemy"]
        db.session.execute(sa.insert(thing).values(name=name))

    quietly(call, shared, None)
    call(shared, "kept")
    assert world.database.names == ["kept"]


@pytest.mark.parametrize("enabled", [True, False])
def test_a_task_that_another_one_replaces(make_world: MakeWorld, enabled: bool) -> None:
    """self.replace() commits what was done so far, and the other task has the same id."""
    world = make_world(flask={"AUTOSESSION_ENABLED": enabled})

    @world.task(bind=True)
    def body(self: Any) -> None:
        world.db.session.add(world.Thing(name="before"))
        self.replace(world.save.s("after"))

    work(body, ident="an-id")
    (message,) = messages(world)
    assert (message.id, message.args) == ("an-id", ["after"])
    assert world.database.names == (["before"] if enabled else [])


# A commit that fails


@pytest.mark.parametrize("how", ["pending", "deferred"])
def test_a_failing_commit_is_the_tasks_failure(world: CeleryWorld, how: str) -> None:
    """autoretry_for and on_failure see what only the COMMIT has found."""
    if how == "deferred" and world.database.kind == "mariadb":
        pytest.skip("MariaDB has no deferred constraints")
    history: list[str] = []

    class Told(world.celery.Task):  # type: ignore[name-defined,misc]
        def on_retry(self, error: Any, *args: Any) -> None:
            history.append(f"on_retry {type(error).__name__}")

        def on_failure(self, error: Any, *args: Any) -> None:
            history.append(f"on_failure {type(error).__name__}")

        def on_success(self, *args: Any) -> None:
            history.append("on_success")

    @world.task(
        base=Told, autoretry_for=(sa.exc.IntegrityError,), max_retries=1, retry_backoff=False
    )
    def body() -> None:
        world.Thing(name="gone").save()
        if how == "deferred":
            world.Thing(name="orphan", parent=999).save()
        else:
            world.db.session.add(world.Thing(name=None))
        history.append("returned")

    if world.database.kind == "sqlite":
        with world.app.app_context():
            sa.event.listen(world.db.engine, "connect", _check_foreign_keys)
    state, error = work(body)
    assert (state, history) == ("RETRY", ["returned", "on_retry IntegrityError"])
    history.clear()
    state, error = work(body, retries=1)
    assert (state, history) == ("FAILURE", ["returned", "on_failure IntegrityError"])
    assert world.database.names == []


def _check_foreign_keys(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA foreign_keys = ON")


def test_autoretry_after_a_failing_commit_can_succeed(world: CeleryWorld) -> None:
    """A row that stood in the way is gone at the second try, which is committed."""
    world.database.insert("name")
    tries: list[int] = []

    @world.task(bind=True, autoretry_for=(sa.exc.IntegrityError,), retry_backoff=False)
    def body(self: Any) -> str:
        if self.request.retries:
            world.db.session.execute(sa.delete(thing).where(thing.c.name == "name"))
        world.db.session.add(world.Thing(name="name", parent=None))
        tries.append(self.request.retries)
        return "done"

    assert body.apply().get() == "done"
    assert tries == [0, 1]
    assert world.database.names == ["name"]


# What comes behind the commit: the result


@pytest.mark.parametrize("follows", ["", "callbacks", "chain"])
def test_a_result_that_cannot_be_encoded_is_a_failure(world: CeleryWorld, follows: str) -> None:
    """Celery will call the task failed, so nothing of it is kept; the next one's argument too."""
    request: dict[str, Any] = {}
    if follows:
        following = world.save_as.s()
        following.freeze()
        request = {"ignore_result": True, follows: [dict(following)]}
    with suppress(EncodeError):
        work(world.unserialisable, "gone", **request)
    assert world.database.names == []
    assert messages(world) == []


@pytest.mark.parametrize("why", ["ignored by the task", "ignored by the caller", "no backend"])
def test_a_result_that_nobody_wants_is_not_encoded(make_world: MakeWorld, why: str) -> None:
    """Where Celery drops the result, it may be anything."""
    world = make_world(**({"result_backend": "disabled"} if why == "no backend" else {}))
    world.unserialisable.ignore_result = why == "ignored by the task"
    request = {"ignore_result": True} if why == "ignored by the caller" else {}
    work(world.unserialisable, "kept", **request)
    assert world.database.names == ["kept"]


def test_a_direct_call_may_return_anything(world: CeleryWorld) -> None:
    """The object is returned as it is, and what was loaded of it can be read."""
    assert world.unserialisable("kept").name == "kept"
    assert world.unserialisable.apply(["too"]).get().name == "too"
    assert world.database.names == ["kept", "too"]
