"""delay_on_commit() and apply_async_on_commit(): a message is sent behind the commit or never."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group
from flask import Flask, Response
from kombu.exceptions import EncodeError

from flask_autosession.celery import apply_async_on_commit, delay_on_commit

from .app import CeleryWorld
from .conftest import MakeWorld, messages, work

# The databases make no difference to messages.
pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

DOWN = "redis://127.0.0.1:1/0"  # nobody listens there


def view(world: CeleryWorld, function: Callable[[], Any]) -> Response:
    """Have a function asked as a view; return the response."""
    world.app.add_url_rule("/", view_func=function)
    return world.app.test_client().get("/")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the extension has logged as warning or worse."""
    return [
        f"{record.levelname} {record.getMessage()}"
        for record in caplog.records
        if record.name == "flask_autosession" and record.levelno >= logging.WARNING
    ]


# When


def test_row_19_sent_after_the_commit(world: CeleryWorld) -> None:
    """When the message leaves, the row that it speaks of can be seen from elsewhere."""
    history: list[Any] = []
    real = world.save.apply_async

    def apply_async(*args: Any, **options: Any) -> Any:
        history.append(("sent", world.database.names))
        return real(*args, **options)

    world.save.apply_async = apply_async

    def order() -> str:
        world.Thing(name="order").save()
        history.append(("asked", world.save.delay_on_commit("next").id))
        history.append(("messages", messages(world)))
        return "done"

    assert view(world, order).status_code == 200
    (message,) = messages(world)
    assert history == [("asked", message.id), ("messages", []), ("sent", ["order"])]
    assert message == ("save", "next")


def test_sent_in_the_order_of_asking(world: CeleryWorld) -> None:
    """Messages and other on_commit functions keep their order."""
    history: list[str] = []
    with world.app.app_context():
        world.save.delay_on_commit("one")
        world.auto.on_commit(lambda: history.append(str(len(messages(world)))))
        world.find.delay_on_commit(2)
        delay_on_commit(world.save.si("three"))
    assert history == ["1"]
    assert messages(world) == [("find", 2), ("save", "three")]


def _doom(world: CeleryWorld) -> str:
    world.auto.doom()
    return "done"


def _fail(world: CeleryWorld) -> str:
    raise ValueError("no")


def _rollback(world: CeleryWorld) -> str:
    world.db.session.rollback()
    return "done"


LOSING: dict[str, Callable[[CeleryWorld], Any]] = {
    "400": lambda world: ("no", 400),
    "exception": _fail,
    "doom": _doom,
    "rollback()": _rollback,
    "failing commit": lambda world: world.db.session.add(world.Thing(name=None)) or "done",
}


@pytest.mark.parametrize("how", list(LOSING))
def test_never_sent_after_a_rollback(world: CeleryWorld, how: str) -> None:
    """Whatever rolls the request back takes its messages with it, whichever way they were asked."""

    def order() -> Any:
        world.Thing(name="gone").save()
        world.save.delay_on_commit("one")
        world.save.apply_async_on_commit(["two"])
        delay_on_commit(world.save.si("three"))
        apply_async_on_commit(group(world.save.s("four")))
        return LOSING[how](world)

    view(world, order)
    assert world.database.names == []
    assert messages(world) == []


def test_a_savepoint_takes_its_messages_along(world: CeleryWorld) -> None:
    """What was asked for inside a savepoint that is rolled back is not sent; the rest is."""
    with world.app.app_context():
        world.save.delay_on_commit("before")
        with pytest.raises(ZeroDivisionError), world.auto.savepoint():
            world.save.delay_on_commit("gone")
            raise ZeroDivisionError
        with world.auto.savepoint():
            world.save.delay_on_commit("inside")
    assert messages(world) == [("save", "before"), ("save", "inside")]


def test_a_request_that_writes_nothing_sends(world: CeleryWorld) -> None:
    """Row 13: the session is never used, the message follows the status all the same."""

    def order() -> str:
        world.save.delay_on_commit("next")
        return "done"

    view(world, order)
    assert messages(world) == [("save", "next")]


def test_at_once_outside_of_a_context(world: CeleryWorld) -> None:
    """Where there is no unit, there is no commit to wait for."""
    result = world.save.delay_on_commit("one")
    assert [message.id for message in messages(world)] == [result.id]
    world.save.apply_async_on_commit(("two",))
    delay_on_commit(world.save.si("three"))
    assert messages(world) == [("save", "two"), ("save", "three")]


def test_at_once_where_there_are_no_units(make_world: MakeWorld) -> None:
    """AUTOSESSION_ENABLED=False, and the context of an application without AutoSession."""
    world = make_world(flask={"AUTOSESSION_ENABLED": False})
    for app in (world.app, Flask("other")):
        with app.app_context():
            world.save.delay_on_commit("now")
            assert messages(world) == [("save", "now")]
        assert messages(world) == []


def test_a_broker_that_is_down_without_a_unit(make_world: MakeWorld) -> None:
    """Sent at once, it fails at once, as delay() does."""
    world = make_world(
        broker_url=DOWN, task_publish_retry=False, broker_transport_options={"max_retries": 0}
    )
    with pytest.raises(world.save.OperationalError):
        world.save.delay_on_commit("now")


@pytest.mark.parametrize("succeed", [True, False])
def test_inside_of_a_task(world: CeleryWorld, succeed: bool) -> None:
    """A task's messages follow the task's own unit."""
    state, result = work(world.hand_on, "kept", ignore_result=False) if succeed else ("", None)
    if succeed:
        (message,) = messages(world)
        assert (state, result) == ("SUCCESS", message.id)
        assert message == ("save", "kept-next")
    else:
        with pytest.raises(ValueError, match="gone"):
            world.hand_on("gone", succeed=False)
        assert messages(world) == []


def test_inside_of_callbacks(world: CeleryWorld) -> None:
    """An on_commit or on_rollback function is a unit; what it asks for follows it."""

    def follow(succeed: bool) -> None:
        world.save.delay_on_commit(f"from a callback {succeed}")
        if not succeed:
            raise ValueError("no")

    with world.app.app_context():
        world.auto.on_commit(lambda: follow(True))
        world.auto.on_commit(lambda: follow(False))
    assert messages(world) == [("save", "from a callback True")]
    with pytest.raises(ZeroDivisionError), world.app.app_context():
        world.auto.on_rollback(lambda: follow(True))
        raise ZeroDivisionError
    assert messages(world) == [("save", "from a callback True")]


def test_row_20_in_a_teardown_function(
    world: CeleryWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """After the decision nothing is committed, so the message is dropped, with a WARNING."""

    @world.app.teardown_request
    def late(_: Any) -> None:
        world.save.delay_on_commit("late")

    assert view(world, lambda: "done").status_code == 200
    assert messages(world) == []
    (warning,) = told(caplog)
    assert warning.startswith("WARNING")
    assert "dropped" in warning


def test_an_explicit_commit_sends(world: CeleryWorld) -> None:
    """auto.commit() ends the unit so far: its messages leave, those after it wait."""
    with pytest.raises(ZeroDivisionError), world.app.app_context():
        world.save.delay_on_commit("kept")
        world.auto.commit()
        assert messages(world) == [("save", "kept")]
        world.save.delay_on_commit("gone")
        raise ZeroDivisionError
    assert messages(world) == []


def test_an_eager_application(make_world: MakeWorld) -> None:
    """Under task_always_eager the body runs behind the commit, as a unit of its own."""
    world = make_world(task_always_eager=True)
    with world.app.app_context():
        world.Thing(name="order").save()
        world.save.delay_on_commit("next")
        world.fail.delay_on_commit("gone")
        assert world.database.names == []
    assert world.database.names == ["order", "next"]


# What is sent


def test_the_options_are_those_of_apply_async(world: CeleryWorld) -> None:
    """countdown, queue, task_id, link and headers arrive with the message."""
    with world.app.app_context():
        result = world.save.apply_async_on_commit(
            kwargs={"name": "next"},
            countdown=60,
            queue=f"{world.celery.conf.task_default_queue}-other",
            task_id="an-id-of-mine",
            link=world.save_as.s(),
            headers={"mark": "here"},
        )
        assert result.id == "an-id-of-mine"
    assert messages(world) == []
    (message,) = messages(world, f"{world.celery.conf.task_default_queue}-other")
    assert (message.id, message.kwargs) == ("an-id-of-mine", {"name": "next"})
    assert message.headers["eta"] is not None
    assert message.headers["mark"] == "here"


def test_a_bound_task_and_its_result(world: CeleryWorld) -> None:
    """The result is of the task's own kind and backend; self is not an argument."""
    with world.app.app_context():
        result = world.retry.delay_on_commit("name")
        assert (type(result), result.state) == (world.celery.AsyncResult, "PENDING")
    assert messages(world) == [("retry", "name")]


@pytest.mark.parametrize("arguments", [{}, {"args": ["one", "two"]}, {"kwargs": {"nome": "one"}}])
def test_wrong_arguments_raise_at_once(world: CeleryWorld, arguments: Any) -> None:
    """The caller learns it where it can be mended, and nothing was promised."""
    with world.app.app_context():
        with pytest.raises(TypeError):
            world.save.apply_async_on_commit(**arguments)
        world.Thing(name="kept").save()
    assert messages(world) == []
    assert world.database.names == ["kept"]


def test_arguments_that_cannot_be_sent_raise_at_once(world: CeleryWorld) -> None:
    """EncodeError in the unit; also for a signature, a keyword, and deep inside."""
    asks: list[Callable[[], Any]] = [
        lambda: world.save.delay_on_commit(object()),
        lambda: world.save.delay_on_commit(name={"deep": [object()]}),
        lambda: world.save.apply_async_on_commit(("fine",), link=world.save.si(object())),
        lambda: delay_on_commit(world.save.si(object())),
        lambda: delay_on_commit(world.save.s(), object()),
        lambda: delay_on_commit(chain(world.save.s("fine"), world.save_as.s(object()))),
    ]
    with world.app.app_context():
        for ask in asks:
            with pytest.raises(EncodeError):
                ask()
    assert messages(world) == []


def test_the_serializer_that_will_be_used_is_asked(make_world: MakeWorld) -> None:
    """pickle takes what JSON does not: by option, by the task's own setting, by configuration."""
    world = make_world(accept_content=["json", "pickle"])
    value = {"set", "of"}
    with world.app.app_context():
        world.save.apply_async_on_commit([value], serializer="pickle")
        world.find.serializer = "pickle"
        world.find.delay_on_commit(value)
    world.celery.conf.task_serializer = "pickle"
    with world.app.app_context():
        delay_on_commit(world.find.si(value))

    with world.celery.connection_for_read() as connection:
        channel = connection.default_channel
        queue = world.celery.conf.task_default_queue
        sent = [channel.basic_get(queue, no_ack=True) for _ in range(3)]
    assert [message.content_type for message in sent] == ["application/x-python-serialize"] * 3


def test_a_task_that_checks_no_arguments(world: CeleryWorld) -> None:
    """typing=False leaves the check to the worker, as delay() does."""
    world.save.typing = False
    with world.app.app_context():
        world.save.delay_on_commit("too", "many")
    assert messages(world) == [("save", "too", "many")]


def test_a_task_that_is_a_class(world: CeleryWorld) -> None:
    """A class has no header to check the arguments by, and is sent."""

    class Body(world.celery.Task):  # type: ignore[name-defined,misc]
        name = "world.body"

        def run(self, name: str) -> None: ...

    body = world.celery.register_task(Body())
    with world.app.app_context():
        body.delay_on_commit("next")
    assert messages(world) == [("body", "next")]


class Model:
    """What pydantic's models look like; Celery makes a dictionary of it where the task says so."""

    def model_dump(self, **_: Any) -> dict[str, str]:
        return {"name": "model"}


def test_a_model_of_pydantic_is_left_to_celery(world: CeleryWorld) -> None:
    """It does not raise in the unit: only Celery knows whether the task takes it."""
    sent: list[Any] = []
    world.save.apply_async = lambda args, *_, **__: sent.append(args[0].model_dump())
    with world.app.app_context():
        world.save.delay_on_commit(Model())
        assert sent == []
    assert sent == [{"name": "model"}]


# Canvas


def ids(result: Any) -> list[str]:
    """The ids of a result and of what comes before it, first to last."""
    found = []
    while result is not None:
        found.insert(0, result.id)
        result = result.parent
    return found


def run_all(world: CeleryWorld) -> list[str]:
    """Work off all messages, as a worker does; return the ids of the tasks in order."""
    done = []
    while batch := messages(world):
        for message in batch:
            task = world.celery.tasks[message.headers["task"]]
            assert not message.kwargs
            request = {key: message.headers.get(key) for key in ("group", "root_id", "parent_id")}
            embedded = message.embed
            request.update({key: embedded.get(key) for key in ("callbacks", "chain", "chord")})
            work(task, *message.args, ident=message.id, **request)
            done.append(message.id)
    return done


def test_a_signature(world: CeleryWorld) -> None:
    """.s() with its own and further arguments, .si() with its own only; the original stays."""
    signature, immutable = world.save_as.s("b"), world.save.si("c")
    with world.app.app_context():
        one = delay_on_commit(signature, "a")
        two = apply_async_on_commit(immutable, countdown=60)
        assert messages(world) == []
    first, second = messages(world)
    assert (first.args, first.id) == (["a", "b"], one.id)
    assert (second.args, second.id) == (["c"], two.id)
    assert second.headers["eta"] is not None
    assert (signature.args, signature.options, immutable.options) == (("b",), {}, {})


def test_a_chain(world: CeleryWorld) -> None:
    """The ids of all links are known before, and are those executed, each a unit of its own."""
    with world.app.app_context():
        result = delay_on_commit(chain(world.save.s("a"), world.save_as.s("b"), world.save.si("c")))
    assert run_all(world) == ids(result)
    assert len(ids(result)) == 3
    assert world.database.names == ["a", "a+b", "c"]


def test_a_group(world: CeleryWorld) -> None:
    """A group's result knows each of its tasks."""
    with world.app.app_context():
        result: Any = delay_on_commit(group(world.save.s(name) for name in "abc"))
        known = [child.id for child in result.results]
    assert run_all(world) == known
    assert [child.get() for child in result.results] == ["a", "b", "c"]
    assert world.database.names == ["a", "b", "c"]


def test_a_chord(world: CeleryWorld) -> None:
    """The header's tasks and the body have the ids that were told."""
    with world.app.app_context():
        header = [world.save.s(name) for name in "ab"]
        result: Any = apply_async_on_commit(chord(header, world.save_as.s()))
        known = [child.id for child in result.parent.results]
    sent = messages(world)
    assert [message.id for message in sent if message.task == "save"] == known
    assert {message.headers["group"] for message in sent if message.task == "save"} == {
        result.parent.id
    }


def test_no_primitive_is_sent_after_a_rollback(world: CeleryWorld) -> None:
    """Neither chain, group nor chord leaves anything behind."""
    with pytest.raises(ZeroDivisionError), world.app.app_context():
        delay_on_commit(chain(world.save.s("a"), world.save_as.s("b")))
        delay_on_commit(group(world.save.s(name) for name in "abc"))
        delay_on_commit(chord([world.save.s("a"), world.save.s("b")], world.save_as.s()))
        raise ZeroDivisionError
    assert messages(world) == []


# The broker is down


@pytest.fixture
def broken(make_world: MakeWorld) -> CeleryWorld:
    """An application whose broker does not answer, with Celery's own settings for that."""
    return make_world(broker_url=DOWN, result_backend="disabled")


def test_a_broker_that_is_down(broken: CeleryWorld, caplog: pytest.LogCaptureFixture) -> None:
    """The client is told done, soon; the log says what was not sent."""
    asked: list[str] = []

    def order() -> str:
        broken.Thing(name="order").save()
        asked.append(broken.save.delay_on_commit("next").id)
        asked.append(broken.save.apply_async_on_commit(kwargs={"name": "named"}).id)
        asked.append(str(delay_on_commit(broken.save.si("signed")).id))
        return "done"

    begun = time.monotonic()
    assert view(broken, order).status_code == 200
    assert time.monotonic() - begun < 40  # Celery tries each three times more
    assert broken.database.names == ["order"]
    errors = told(caplog)
    assert len(errors) == 3
    for error, ident, words in zip(
        errors,
        asked,
        (["world.save", "'next'"], ["world.save", "{'name': 'named'}"], ["world.save", "'signed'"]),
        strict=True,
    ):
        assert error.startswith("ERROR A message could not be sent. The commit before it stands")
        assert ident in error
        assert all(word in error for word in words), error
    assert all(record.exc_info for record in caplog.records if record.levelname == "ERROR")


def test_other_callbacks_run_though_the_broker_is_down(
    broken: CeleryWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that could not be sent stops nothing that was asked for behind it."""
    with broken.app.app_context():
        broken.save.delay_on_commit("next")
        broken.auto.on_commit(lambda: broken.Thing(name="callback").save() and None)
    assert broken.database.names == ["callback"]
    assert len(told(caplog)) == 1


def test_secrets_stay_out_of_the_log(broken: CeleryWorld, caplog: pytest.LogCaptureFixture) -> None:
    """argsrepr and kwargsrepr, Celery's options for this, are what the log shows."""
    with broken.app.app_context():
        broken.save.apply_async_on_commit(["secret"], argsrepr="('<hidden>',)")
        broken.save.apply_async_on_commit(kwargs={"name": "secret"}, kwargsrepr="{'name': <too>}")
    assert "<hidden>" in told(caplog)[0]
    assert "<too>" in told(caplog)[1]
    assert "secret" not in "".join(told(caplog))


def test_what_is_no_error_of_the_broker(
    world: CeleryWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever prevents the sending behind the commit, the commit stands and the log tells."""

    def refuse(*args: Any, **options: Any) -> None:
        raise ValueError("not today")

    world.save.apply_async = refuse
    with world.app.app_context():
        world.Thing(name="kept").save()
        world.save.delay_on_commit("next")
    assert world.database.names == ["kept"]
    assert len(told(caplog)) == 1
