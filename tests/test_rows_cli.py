"""The contract, rows 24 to 26, and 31 for commands: what a command line does is one unit."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from flask import Blueprint
from flask.cli import AppGroup, FlaskGroup, ScriptInfo, with_appcontext
from flask.ctx import AppContext
from sqlalchemy.exc import DBAPIError, IntegrityError

from flask_autosession import DoomedError

from .cli_app import ENDINGS, SWALLOWED_EXIT, handled
from .test_rows_contexts import break_commit, enforce_foreign_keys, visible
from .world import Database, World

LOGGER = "flask_autosession"
ROOT = Path(__file__).parent.parent

ALL = dict(ENDINGS)
ALL.update({f"handled {name}": (handled(end), code) for name, (end, code) in ENDINGS.items()})
"""Every way to end, as a command's own and while another exception is being handled."""


@pytest.fixture(autouse=True)
def surroundings(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Hear everything; keep a FlaskGroup, a shell and click from changing this process."""
    caplog.set_level(logging.DEBUG, logger=LOGGER)
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "false")
    monkeypatch.setenv("FLASK_SKIP_DOTENV", "1")
    monkeypatch.delenv("PYTHONSTARTUP", raising=False)
    monkeypatch.delattr(sys, "__interactivehook__", raising=False)  # it sets up a history file
    yield
    while click.get_current_context(silent=True) is not None:
        click.globals.pop_context()  # click forgets to if closing a context raises


def told(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """The messages of our logger at a level and above."""
    return [r.getMessage() for r in caplog.records if r.name == LOGGER and r.levelno >= level]


def flask(world: World, *args: str, **kwargs: Any) -> Result:
    """Run a command line of the application's, as ``flask ...`` would."""
    return world.app.test_cli_runner().invoke(args=list(args), **kwargs)


def invoke(world: World, one: click.Command, by_args: bool, *args: str) -> Result:
    """Run a command of the application's, by its name or as an object."""
    if by_args:
        return flask(world, str(one.name), *args)
    return world.app.test_cli_runner().invoke(one, list(args))


# How a command is reached, and what is around it ------------------------------------------------


def command(world: World, name: str = "do") -> click.Command:
    """A command that writes a row called as it is told, and then ends as it is told."""

    @click.command(name)
    @click.argument("ending")
    @click.pass_context
    def do(context: click.Context, ending: str) -> None:
        world.Thing(name=ending).save()
        ALL[ending][0](context)

    return do


def with_context(one: click.Command) -> click.Command:
    """What ``@with_appcontext`` makes of a command."""
    one.callback = with_appcontext(one.callback)
    return one


Run = Callable[[str], Result]


def by_app(world: World) -> Run:
    world.app.cli.add_command(with_context(command(world)))
    return lambda ending: flask(world, "do", ending)


def bare(world: World) -> Run:
    """Without ``@with_appcontext``: ``flask`` itself has the context around it."""
    world.app.cli.add_command(command(world))
    return lambda ending: flask(world, "do", ending)


def by_blueprint(world: World) -> Run:
    blueprint = Blueprint("things", __name__)
    blueprint.cli.add_command(with_context(command(world)))
    world.app.register_blueprint(blueprint)
    return lambda ending: flask(world, "things", "do", ending)


def by_nested_groups(world: World) -> Run:
    inner, outer = AppGroup("inner"), AppGroup("outer")
    inner.add_command(with_context(command(world)))
    outer.add_command(inner)
    world.app.cli.add_command(outer)
    return lambda ending: flask(world, "outer", "inner", "do", ending)


def by_plain_group(world: World) -> Run:
    plain = click.Group("plain")
    plain.add_command(with_context(command(world)))
    world.app.cli.add_command(plain)
    return lambda ending: flask(world, "plain", "do", ending)


def by_chain(world: World) -> Run:
    chain = click.Group("chain", chain=True)
    chain.add_command(with_context(command(world)))
    world.app.cli.add_command(chain)
    return lambda ending: flask(world, "chain", "do", ending)


def by_own_flask_group(world: World) -> Run:
    group = FlaskGroup("manage", create_app=lambda: world.app)
    group.add_command(with_context(command(world)))
    return lambda ending: CliRunner().invoke(group, ["do", ending])


def by_command_object(world: World) -> Run:
    one = with_context(command(world))
    return lambda ending: world.app.test_cli_runner().invoke(one, [ending])


def by_group_object(world: World) -> Run:
    plain = click.Group("plain")
    plain.add_command(with_context(command(world)))
    info = ScriptInfo(create_app=lambda: world.app)
    return lambda ending: CliRunner().invoke(plain, ["do", ending], obj=info)


def by_own_context(world: World) -> Run:
    """A click command that opens the app context by itself, as a script does."""

    @click.command
    @click.argument("ending")
    @click.pass_context
    def do(context: click.Context, ending: str) -> None:
        with world.app.app_context():
            world.Thing(name=ending).save()
            ALL[ending][0](context)

    return lambda ending: CliRunner().invoke(do, [ending])


def by_unit(world: World) -> Run:
    """The same with a unit, whose block alone decides."""

    @click.command
    @click.argument("ending")
    @click.pass_context
    def do(context: click.Context, ending: str) -> None:
        with world.auto.unit():
            world.Thing(name=ending).save()
            ALL[ending][0](context)

    return lambda ending: CliRunner().invoke(do, [ending])


COMMAND_LINES = [by_app, bare, by_blueprint, by_nested_groups, by_plain_group, by_chain]
OTHERS = [by_own_flask_group, by_command_object, by_group_object, by_own_context, by_unit]


@contextmanager
def alone(world: World) -> Iterator[None]:
    yield


@contextmanager
def in_context(world: World) -> Iterator[None]:
    with world.app.app_context():
        yield


@contextmanager
def in_used_context(world: World) -> Iterator[None]:
    with world.app.app_context():
        assert world.Thing.query.count() == 0
        yield


@contextmanager
def in_request_context(world: World) -> Iterator[None]:
    """As pytest-flask has around every test."""
    with world.app.test_request_context():
        yield


@contextmanager
def in_except_block(world: World) -> Iterator[None]:
    try:
        raise LookupError
    except LookupError:
        yield


@contextmanager
def in_context_in_except_block(world: World) -> Iterator[None]:
    try:
        raise LookupError
    except LookupError:
        with world.app.app_context():
            yield


AROUND = [
    in_context,
    in_used_context,
    in_request_context,
    in_except_block,
    in_context_in_except_block,
]


def check(world: World, run: Run, endings: list[str]) -> None:
    """Run a command once for each ending; compare all exit codes, and all that is durable."""
    codes = {ending: run(ending).exit_code for ending in endings}
    assert codes == {ending: ALL[ending][1] for ending in endings}
    assert world.database.names == [ending for ending in endings if not ALL[ending][1]]


@pytest.mark.parametrize("way", COMMAND_LINES + OTHERS)
def test_rows_24_and_25_every_ending(world: World, way: Callable[[World], Run]) -> None:
    """However a command is reached and ends: what it did is kept if and only if it exits with 0."""
    check(world, way(world), list(ALL))


@pytest.mark.parametrize("way", [by_app, by_command_object, by_own_context])
@pytest.mark.parametrize("around", AROUND)
def test_row_31_every_ending_inside_of_something(
    world: World, around: Callable[..., Any], way: Callable[[World], Run]
) -> None:
    """The same where a context, a request context or an except block is around it, as in tests."""
    run = way(world)
    with around(world):
        check(world, run, list(ALL))


@pytest.mark.parametrize("way", [bare, by_nested_groups, by_chain, by_own_flask_group])
def test_row_31_every_way_inside_of_a_context(world: World, way: Callable[[World], Run]) -> None:
    """However a command is reached, an outer context around it changes nothing."""
    run = way(world)
    with world.app.app_context():
        check(world, run, list(ENDINGS))


@pytest.mark.parametrize("way", COMMAND_LINES)
@pytest.mark.parametrize("around", [alone, in_context])
def test_row_24_an_exit_that_was_swallowed_does_not_count(
    world: World, around: Callable[..., Any], way: Callable[[World], Run]
) -> None:
    """``ctx.exit(3)`` that the command catches itself does not decide: its exit code is 0."""
    run = way(world)
    ALL["swallowed exit"] = SWALLOWED_EXIT
    try:
        with around(world):
            check(world, run, ["swallowed exit"])
    finally:
        del ALL["swallowed exit"]


# What only begins, or comes up again, while an exception is being handled -----------------------


def swallow(world: World) -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        world.Thing(name="swallow").save()


def raise_again(world: World) -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        world.Thing(name="raise again").save()
        raise


def raise_later(world: World) -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as error:
        kept = error
        world.Thing(name="raise later").save()
    raise kept


def raise_other(world: World) -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as error:
        world.Thing(name="raise other").save()
        raise LookupError from error


def write_in_finally(world: World) -> None:
    try:
        raise ZeroDivisionError
    finally:
        world.Thing(name="finally").save()


def write_then_raise_what_was_around(world: World) -> None:
    world.Thing(name="around").save()
    raise sys.exception() or LookupError


@pytest.mark.parametrize("by_args", [True, False], ids=["args", "object"])
@pytest.mark.parametrize("around", [alone, *AROUND])
def test_rows_24_and_25_work_in_an_except_block(
    world: World, around: Callable[..., Any], by_args: bool
) -> None:
    """Where the session is first used while an exception is handled, the exit code decides too."""
    bodies = [
        swallow,
        raise_again,
        raise_later,
        raise_other,
        write_in_finally,
        write_then_raise_what_was_around,
    ]

    @world.app.cli.command("late")
    @click.argument("number", type=int)
    def late(number: int) -> None:
        bodies[number](world)

    with around(world):
        codes = [invoke(world, late, by_args, str(number)) for number in range(len(bodies))]
    assert [result.exit_code for result in codes] == [0, 1, 1, 1, 1, 1]
    assert world.database.names == ["swallow"]


# Failures of the database -----------------------------------------------------------------------


SUCCEEDING = [ending for ending, (_, code) in ENDINGS.items() if code == 0]


@pytest.mark.parametrize("by_args", [True, False], ids=["args", "object"])
@pytest.mark.parametrize("around", [alone, in_context, in_except_block])
def test_row_25_a_commit_that_fails_is_a_failing_command(
    world: World, around: Callable[..., Any], by_args: bool
) -> None:
    """A command whose COMMIT fails exits with 1 and its error, whatever code it asked for."""
    enforce_foreign_keys(world)
    history: list[Any] = []

    @world.app.cli.command("work")
    @click.argument("ending")
    @click.pass_context
    def work(context: click.Context, ending: str) -> None:
        world.Thing(name="gone").save()
        world.auto.on_commit(lambda: history.append("committed"))
        world.auto.on_rollback(lambda: history.append("rolled back"))
        break_commit(world, world.db.session.connection())
        ENDINGS[ending][0](context)

    with around(world):
        for ending in SUCCEEDING:
            result = invoke(world, work, by_args, ending)
            failed = isinstance(result.exception, DBAPIError)
            history.append((ending, result.exit_code, failed))
    told = [["rolled back", (ending, 1, True)] for ending in SUCCEEDING]
    assert history == [step for steps in told for step in steps]
    assert world.database.names == []


@pytest.mark.parametrize("around", [alone, in_context])
def test_row_25_a_pending_change_that_fails_is_a_failing_command(
    world: World, around: Callable[..., Any]
) -> None:
    """What was only added is flushed at the end, and a failure there is the command's."""
    world.database.insert("same")

    @world.app.cli.command("work")
    def work() -> None:
        world.Thing(name="gone").save()
        world.db.session.add(world.Thing(name="same"))

    with around(world):
        result = flask(world, "work")
    assert (result.exit_code, type(result.exception)) == (1, IntegrityError)
    assert world.database.names == ["same"]


@pytest.mark.parametrize("by_args", [True, False], ids=["args", "object"])
@pytest.mark.parametrize("around", [alone, in_context, in_except_block])
def test_row_25_a_swallowed_failure_is_a_failing_command(
    world: World, around: Callable[..., Any], by_args: bool
) -> None:
    """A command that swallows a failed save cannot exit with 0: it is told what failed first."""
    told: list[Any] = []

    @world.app.cli.command("work")
    @click.argument("ending")
    @click.pass_context
    def work(context: click.Context, ending: str) -> None:
        world.Thing(name="same").save()
        with suppress(IntegrityError):
            world.Thing(name="same").save()
        ENDINGS[ending][0](context)

    with around(world):
        for ending in SUCCEEDING:
            result = invoke(world, work, by_args, ending)
            first = getattr(result.exception, "first_failure", None)
            told.append((ending, result.exit_code, type(result.exception), type(first)))
    assert told == [(ending, 1, DoomedError, IntegrityError) for ending in SUCCEEDING]
    assert world.database.names == []


@pytest.mark.parametrize("around", [alone, in_context])
def test_row_25_a_failing_command_with_a_swallowed_failure_keeps_its_code(
    world: World, around: Callable[..., Any]
) -> None:
    """A command that swallows a failed save and exits with 3 exits with 3."""

    @world.app.cli.command("work")
    @click.pass_context
    def work(context: click.Context) -> None:
        world.Thing(name="same").save()
        with suppress(IntegrityError):
            world.Thing(name="same").save()
        context.exit(3)

    with around(world):
        assert flask(world, "work").exit_code == 3
    assert world.database.names == []


@pytest.mark.parametrize("around", [alone, in_context])
def test_row_24_a_savepoint_saves_the_command(world: World, around: Callable[..., Any]) -> None:
    """A failure that is guarded by a savepoint costs just that, and the command succeeds."""

    @world.app.cli.command("work")
    def work() -> None:
        world.Thing(name="same").save()
        with suppress(IntegrityError), world.auto.savepoint():
            world.Thing(name="same").save()
        world.Thing(name="other").save()

    with around(world):
        assert flask(world, "work").exit_code == 0
    assert world.database.names == ["same", "other"]


@pytest.mark.parametrize("ending", ["return", "ctx.exit(0)", "ctx.exit(3)"])
@pytest.mark.parametrize("around", [alone, in_context])
def test_row_25_doom_rolls_back_and_leaves_the_code(
    world: World, around: Callable[..., Any], ending: str
) -> None:
    """auto.doom() in a command is a dry run: all is rolled back, and the exit code stays."""

    @world.app.cli.command("dry")
    @click.pass_context
    def dry(context: click.Context) -> None:
        world.auto.doom()
        world.Thing(name="dry").save()
        world.db.session.commit()
        ENDINGS[ending][0](context)

    @world.app.cli.command("wet")
    def wet() -> None:
        world.Thing(name="wet").save()

    with around(world):
        assert flask(world, "dry").exit_code == ENDINGS[ending][1]
        assert flask(world, "wet").exit_code == 0
    assert world.database.names == ["wet"]


# One command line is one unit -------------------------------------------------------------------


def chained(world: World) -> click.Group:
    """A group whose commands can be chained, all of which write; its own function does too."""

    @world.app.cli.group("chain", chain=True)
    def chain() -> None:
        world.Thing(name="group").save()

    @chain.command("write")
    @click.argument("name")
    def write(name: str) -> str:
        world.Thing(name=name).save()
        return name

    @chain.command("end")
    @click.argument("ending")
    @click.pass_context
    def end(context: click.Context, ending: str) -> None:
        ENDINGS[ending][0](context)

    return chain


@pytest.mark.parametrize("around", [alone, in_context, in_request_context, in_except_block])
def test_row_24_chained_commands_are_one_unit(world: World, around: Callable[..., Any]) -> None:
    """A chain that succeeds is kept as a whole, and nothing of it before its end."""
    chain = chained(world)
    seen: list[Any] = []

    @chain.result_callback()
    def processed(results: list[Any]) -> None:
        seen.extend([results, world.database.names])
        world.Thing(name="result").save()

    with around(world):
        result = flask(world, "chain", "write", "a", "write", "b")
    assert result.exit_code == 0
    assert seen == [["a", "b"], []]
    assert world.database.names == ["group", "a", "b", "result"]


@pytest.mark.parametrize("around", [alone, in_context, in_request_context, in_except_block])
def test_row_25_chained_commands_fail_as_one_unit(world: World, around: Callable[..., Any]) -> None:
    """However one command of a chain fails, nothing of the others is kept."""
    chained(world)
    failing = [name for name, (_, code) in ENDINGS.items() if code]
    with around(world):
        codes = [
            flask(world, "chain", "write", "a", "end", name, "write", "b").exit_code
            for name in failing
        ]
    assert codes == [ENDINGS[name][1] for name in failing]
    assert world.database.names == []


@pytest.mark.parametrize("around", [alone, in_context])
@pytest.mark.parametrize("ending", ["raise an exception", "ctx.exit(3)", "sys.exit(3)"])
def test_row_25_a_result_callback_that_fails(
    world: World, around: Callable[..., Any], ending: str
) -> None:
    """A chain whose result cannot be processed is rolled back, though its commands succeeded."""
    chain = chained(world)

    @chain.result_callback()
    @click.pass_context
    def processed(context: click.Context, results: list[Any]) -> None:
        ENDINGS[ending][0](context)

    with around(world):
        assert flask(world, "chain", "write", "a").exit_code == ENDINGS[ending][1]
    assert world.database.names == []


@pytest.mark.parametrize("around", [alone, in_context])
def test_row_25_a_group_that_writes_and_a_command_that_fails(
    world: World, around: Callable[..., Any]
) -> None:
    """What a group's own function does belongs to the command's unit; a usage error fails it."""

    @world.app.cli.group("group")
    def group() -> None:
        world.Thing(name="group").save()

    @group.command("work")
    @click.option("--number", type=int)
    def work(number: int) -> None:
        world.Thing(name="work").save()

    with around(world):
        codes = [
            flask(world, "group", "work", "--number", number).exit_code for number in ("x", "1")
        ]
        codes.append(flask(world, "group", "nothing").exit_code)
    assert codes == [2, 0, 2]
    assert world.database.names == ["group", "work"]


@pytest.mark.parametrize("around", [alone, in_context])
@pytest.mark.parametrize("by_args", [True, False], ids=["args", "object"])
@pytest.mark.parametrize("ending", ["return", "raise an exception", "sys.exit(3)", "ctx.exit(3)"])
def test_row_24_a_command_that_invokes_another(
    world: World, around: Callable[..., Any], by_args: bool, ending: str
) -> None:
    """A command called by ctx.invoke() is a part of the caller's unit."""

    @world.app.cli.command("inner")
    @click.pass_context
    def inner(context: click.Context) -> None:
        world.Thing(name="inner").save()
        assert world.database.names == []
        ENDINGS[ending][0](context)

    @world.app.cli.command("outer")
    @click.pass_context
    def outer(context: click.Context) -> None:
        world.Thing(name="before").save()
        context.invoke(inner)
        assert world.database.names == []
        world.Thing(name="after").save()

    with around(world):
        result = invoke(world, outer, by_args)
    assert result.exit_code == ENDINGS[ending][1]
    assert world.database.names == ([] if result.exit_code else ["before", "inner", "after"])


@pytest.mark.parametrize("around", [alone, in_context])
@pytest.mark.parametrize("by_args", [True, False], ids=["args", "object"])
def test_row_24_an_invoked_command_whose_failure_is_caught(
    world: World, around: Callable[..., Any], by_args: bool
) -> None:
    """The invoked command's failure is the caller's to judge: what it caught does not count."""

    @world.app.cli.command("inner")
    def inner() -> None:
        world.Thing(name="inner").save()
        raise click.ClickException("not so bad")

    @world.app.cli.command("outer")
    @click.pass_context
    def outer(context: click.Context) -> None:
        with suppress(click.ClickException):
            context.invoke(inner)
        world.Thing(name="outer").save()

    with around(world):
        result = invoke(world, outer, by_args)
    assert result.exit_code == 0
    assert world.database.names == ["inner", "outer"]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("around", [alone, in_context])
def test_row_24_a_command_line_run_inside_a_command(
    world: World, around: Callable[..., Any], fails: bool
) -> None:
    """A whole command line run by another one, not standalone, has its own unit of work."""

    @world.app.cli.command("inner")
    def inner() -> None:
        world.Thing(name="inner").save()
        if fails:
            raise ZeroDivisionError

    @world.app.cli.command("outer")
    def outer() -> None:
        world.Thing(name="before").save()
        world.auto.commit()
        info = ScriptInfo(create_app=lambda: world.app)
        with suppress(ZeroDivisionError):
            world.app.cli.main(["inner"], standalone_mode=False, obj=info)
        assert world.database.names == ["before", *([] if fails else ["inner"])]
        world.Thing(name="after").save()

    with around(world):
        assert flask(world, "outer").exit_code == 0
    assert world.database.names == ["before", *([] if fails else ["inner"]), "after"]


@pytest.mark.parametrize("around", [alone, in_context])
def test_rows_24_and_25_not_standalone(world: World, around: Callable[..., Any]) -> None:
    """A command line that is called by a program returns its code, or raises, and is judged so."""
    world.app.cli.add_command(command(world))
    history: list[Any] = []
    with around(world):
        for ending in ("return", "ctx.exit(3)", "raise Exit(0)", "ctx.fail()", "sys.exit(0)"):
            info = ScriptInfo(create_app=lambda: world.app)
            try:
                told = world.app.cli.main(["do", ending], standalone_mode=False, obj=info)
            except (click.UsageError, SystemExit) as error:
                told = type(error)
            history.append(told)
    assert history == [None, 3, 0, click.UsageError, SystemExit]
    assert world.database.names == ["return", "raise Exit(0)", "sys.exit(0)"]


# Inside an outer context that has done something ------------------------------------------------


@pytest.mark.parametrize("by_args", [True, False], ids=["args", "object"])
@pytest.mark.parametrize("around", [in_context, in_request_context])
def test_row_31_the_outer_work_is_committed_and_seen(
    world: World,
    caplog: pytest.LogCaptureFixture,
    around: Callable[..., Any],
    by_args: bool,
) -> None:
    """A command sees what the outer context did, which is committed first, and that is logged."""
    seen: list[Any] = []

    @world.app.cli.command("look")
    def look() -> None:
        seen.append([one.name for one in world.Thing.query.order_by(world.Thing.id)])
        seen.append(world.database.names)

    with around(world):
        world.Thing(name="saved").save()
        world.db.session.add(world.Thing(name="added"))
        result = invoke(world, look, by_args)
        assert result.exit_code == 0
    assert sorted(seen[0]) == sorted(seen[1]) == ["added", "saved"]
    assert "app context: committed (a command begins inside of this context)" in told(
        caplog, logging.DEBUG
    )
    assert told(caplog) == []


@pytest.mark.parametrize("by_args", [True, False], ids=["args", "object"])
@pytest.mark.parametrize("around", [in_context, in_request_context])
def test_row_31_a_failing_command_takes_back_its_own_work_only(
    world: World, around: Callable[..., Any], by_args: bool
) -> None:
    """Every ending again, each after outer work that was not committed yet: that is always kept."""
    one = with_context(command(world))
    world.app.cli.add_command(one)
    expected: list[str] = []
    with around(world):
        for ending, (_, code) in ENDINGS.items():
            outer = world.Thing(name=f"before {ending}").save()
            result = invoke(world, one, by_args, ending)
            assert (ending, result.exit_code) == (ending, code)
            expected += [f"before {ending}"] + [ending] * (not code)
            assert world.database.names == expected
            assert outer in world.db.session
            assert outer.name == f"before {ending}"


def test_row_31_two_commands_in_a_row(world: World) -> None:
    """Commands in one outer context are units of their own, and the context goes on after them."""
    world.app.cli.add_command(with_context(command(world)))
    steps: list[list[str]] = []
    with world.app.app_context():
        first = world.Thing(name="first").save()
        flask(world, "do", "raise an exception")
        first.update(name="renamed")
        steps.append(world.database.names)
        flask(world, "do", "return")
        steps.append(world.database.names)
        flask(world, "do", "ctx.exit(3)")
        world.Thing(name="last").save()
        steps.append(world.database.names)
    assert steps == [["first"], ["renamed", "return"], ["renamed", "return"]]
    assert world.database.names == ["renamed", "return", "last"]


def test_row_31_an_exception_in_the_outer_context_keeps_the_commands(world: World) -> None:
    """What a command was told done for stays, however the outer context ends."""
    world.app.cli.add_command(with_context(command(world)))
    with pytest.raises(ZeroDivisionError), world.app.app_context():
        world.Thing(name="before").save()
        assert flask(world, "do", "return").exit_code == 0
        world.Thing(name="after").save()
        raise ZeroDivisionError
    assert world.database.names == ["before", "return"]


def test_row_31_outer_work_that_cannot_be_committed(world: World) -> None:
    """Outer work that fails is told by the command line, which then does nothing."""
    world.database.insert("same")
    ran: list[str] = []

    @world.app.cli.command("work")
    def work() -> None:
        ran.append("work")

    with suppress(DoomedError), world.app.app_context():
        world.db.session.add(world.Thing(name="same"))
        result = flask(world, "work")
        assert (result.exit_code, type(result.exception)) == (1, IntegrityError)
        world.db.session.rollback()
    assert ran == []
    assert world.database.names == ["same"]


def test_row_31_outer_callbacks_run_with_the_outer_work(world: World) -> None:
    """What the outer context has registered runs before the command, and not with its fate."""
    history: list[str] = []

    @world.app.cli.command("work")
    def work() -> None:
        history.append("work")
        world.auto.on_commit(lambda: history.append("inner committed"))
        world.auto.on_rollback(lambda: history.append("inner rolled back"))
        raise ZeroDivisionError

    with world.app.app_context():
        world.auto.on_commit(lambda: history.append("outer committed"))
        flask(world, "work")
    assert history == ["outer committed", "work", "inner rolled back"]


def test_row_31_a_context_of_another_app_is_left_alone(database: Database) -> None:
    """A command of one app inside a context of another has nothing to do with that one's work."""
    world, other = World(database), World(database)
    world.app.cli.add_command(with_context(command(world)))
    with pytest.raises(ZeroDivisionError), other.app.app_context():
        other.db.session.add(other.Thing(name="other"))
        assert flask(world, "do", "return").exit_code == 0
        assert flask(world, "do", "ctx.exit(3)").exit_code == 3
        raise ZeroDivisionError
    assert world.database.names == ["return"]
    world.close()
    other.close()


# Units, contexts and requests inside a command --------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("inner", ["unit", "app_context"])
@pytest.mark.parametrize("around", [alone, in_context])
def test_row_23_a_unit_inside_a_command_is_its_own(
    world: World, around: Callable[..., Any], inner: str, fails: bool
) -> None:
    """A unit or an app context inside a command has its own fate, whatever the command's is."""
    block = world.auto.unit if inner == "unit" else world.app.app_context

    @world.app.cli.command("work")
    @click.pass_context
    def work(context: click.Context) -> None:
        with pytest.raises(ZeroDivisionError), block():
            world.Thing(name="inner lost").save()
            raise ZeroDivisionError
        with block():
            world.Thing(name="inner").save()
        assert world.database.names == ["inner"]
        world.Thing(name="command").save()
        context.exit(3 if fails else 0)

    with around(world):
        assert flask(world, "work").exit_code == (3 if fails else 0)
    assert world.database.names == (["inner"] if fails else ["inner", "command"])


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("around", [alone, in_context])
def test_row_31_a_command_that_makes_requests(
    world: World, around: Callable[..., Any], fails: bool
) -> None:
    """A request made by a command is judged by its own status, and commits nothing of its."""

    @world.app.get("/count")
    def count() -> str:
        return str(world.Thing.query.count())

    @world.app.get("/<name>/<int:status>")
    def view(name: str, status: int) -> tuple[str, int]:
        world.Thing(name=name).save()
        return "", status

    @world.app.cli.command("work")
    def work() -> None:
        world.Thing(name="before").save()
        world.auto.commit()
        client = world.app.test_client()
        assert client.get("/good/200").status_code == 200
        assert client.get("/bad/400").status_code == 400
        world.Thing(name="after").save()
        assert client.get("/count").text == "2"
        if fails:
            raise ZeroDivisionError

    with around(world):
        assert flask(world, "work").exit_code == int(fails)
    assert world.database.names == ["before", "good"] + ["after"] * (not fails)


def test_row_31_tests_that_a_command_runs(world: World) -> None:
    """``flask test``: a context that a command makes inside of its own is like one in a script."""

    @world.app.get("/<int:status>")
    def view(status: int) -> tuple[str, int]:
        found = [one.name for one in world.Thing.query]
        world.Thing(name=f"view {status}").save()
        return ",".join(found), status

    @world.app.cli.command("inner")
    def inner() -> None:
        world.Thing(name="inner").save()
        sys.exit(3)

    @world.app.cli.command("test")
    def run_tests() -> None:
        with world.app.app_context():
            world.Thing(name="set up").save()
            client = world.app.test_client()
            assert client.get("/200").text == "set up"
            assert client.get("/400").text == "set up,view 200"
            assert flask(world, "inner").exit_code == 3
            assert visible(world) == ["set up", "view 200"]
            world.Thing(name="test").save()

    assert flask(world, "test").exit_code == 0
    assert world.database.names == ["set up", "view 200", "test"]


@pytest.mark.parametrize("fails", [False, True])
def test_row_24_a_command_run_by_a_view(world: World, fails: bool) -> None:
    """A command that a view runs has nothing to do with the view's own unit."""

    @world.app.cli.command("work")
    def work() -> None:
        world.Thing(name="command").save()
        if fails:
            raise ZeroDivisionError

    @world.app.get("/")
    def view() -> tuple[str, int]:
        assert world.Thing.query.count() == 0
        world.db.session.add(world.Thing(name="view"))
        result = flask(world, "work")
        assert world.database.names == ([] if fails else ["command"])
        return "", 200 if result.exit_code else 400

    assert world.app.test_client().get("/").status_code == (200 if fails else 400)
    assert world.database.names == (["view"] if fails else ["command"])


# Callbacks and commits --------------------------------------------------------------------------


@pytest.mark.parametrize("by_args", [True, False], ids=["args", "object"])
@pytest.mark.parametrize("around", [alone, in_context])
def test_row_19_callbacks_of_a_command(
    world: World, around: Callable[..., Any], by_args: bool
) -> None:
    """They run after the command's unit and before its exit code is told; what they do is kept."""
    history: list[str] = []

    @world.app.cli.command("work")
    @click.argument("ending")
    @click.pass_context
    def work(context: click.Context, ending: str) -> None:
        @world.auto.on_commit
        def committed() -> None:
            history.append(f"committed {ending in world.database.names}")
            world.Thing(name=f"on_commit {ending}").save()

        @world.auto.on_rollback
        def rolled_back() -> None:
            history.append(f"rolled back {ending in world.database.names}")
            world.Thing(name=f"on_rollback {ending}").save()

        world.Thing(name=ending).save()
        ENDINGS[ending][0](context)

    expected: list[str] = []
    durable: list[str] = []
    with around(world):
        for ending, (_, code) in ENDINGS.items():
            history.append(f"{ending}: {invoke(world, work, by_args, ending).exit_code}")
            expected.append("rolled back False" if code else "committed True")
            expected.append(f"{ending}: {code}")
            durable += [f"on_rollback {ending}"] if code else [ending, f"on_commit {ending}"]
            assert world.database.names == durable
    assert history == expected


@pytest.mark.parametrize("around", [alone, in_context])
def test_row_19_a_failing_callback_leaves_the_exit_code(
    world: World, caplog: pytest.LogCaptureFixture, around: Callable[..., Any]
) -> None:
    """A callback that fails is logged, and the command stays committed and succeeds."""

    @world.app.cli.command("work")
    def work() -> None:
        world.Thing(name="command").save()

        @world.auto.on_commit
        def fail() -> None:
            world.Thing(name="callback").save()
            raise ZeroDivisionError

    with around(world):
        assert flask(world, "work").exit_code == 0
    (message,) = told(caplog, logging.ERROR)
    assert "fail failed" in message
    assert world.database.names == ["command"]


@pytest.mark.parametrize("how", ["auto.commit()", "db.session.commit()"])
@pytest.mark.parametrize("ending", ["return", "raise an exception", "ctx.exit(3)"])
@pytest.mark.parametrize("around", [alone, in_context])
def test_rows_15_and_25_a_long_import_in_batches(
    world: World, around: Callable[..., Any], how: str, ending: str
) -> None:
    """A commit keeps the batches so far; a failure loses only what came after the last one."""
    commit = world.auto.commit if how == "auto.commit()" else world.db.session.commit
    durable: list[int] = []

    @world.app.cli.command("import")
    @click.pass_context
    def import_things(context: click.Context) -> None:
        for number in range(1, 9):
            world.Thing(name=str(number)).save()
            if number % 3 == 0:
                commit()
                durable.append(len(world.database.names))
        ENDINGS[ending][0](context)

    with around(world):
        assert flask(world, "import").exit_code == ENDINGS[ending][1]
    kept = 6 if ENDINGS[ending][1] else 8
    assert durable == [3, 6]
    assert world.database.names == [str(number) for number in range(1, kept + 1)]


@pytest.mark.parametrize("value", [True, False])
def test_row_24_commands_with_commit_contexts_off(database: Database, value: bool) -> None:
    """AUTOSESSION_COMMIT_CONTEXTS speaks of bare contexts: a command's exit code decides alone."""
    world = World(database, AUTOSESSION_COMMIT_CONTEXTS=value)

    @world.app.cli.command("work")
    def work() -> None:
        world.Thing(name="committed").save()
        world.db.session.commit()
        world.Thing(name="left").save()

    assert flask(world, "work").exit_code == 0
    assert world.database.names == ["committed", "left"]
    world.close()


def test_row_13_a_command_that_does_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A command that never uses the session opens no connection; built-in commands work."""
    statements: list[str] = []
    connected: list[Any] = []

    @world.app.cli.command("work")
    def work() -> None:
        pass

    with world.app.app_context():
        engine = world.db.engine
        sa.event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
        sa.event.listen(engine, "connect", lambda *args: connected.append(args))
    for args in (["work"], ["--help"], ["work", "--help"]):
        for around in (alone, in_context):
            with around(world):
                assert flask(world, *args).exit_code == 0
    assert CliRunner().invoke(shell_group(world), ["routes"]).exit_code == 0
    assert statements == []
    assert connected == []
    assert told(caplog) == []


# Row 26: the shell ------------------------------------------------------------------------------


def shell_group(world: World) -> FlaskGroup:
    """What ``flask`` is: a group with the built-in commands, and those of the application."""
    return FlaskGroup("flask", create_app=lambda: world.app)


def shell(world: World, *lines: str, **kwargs: Any) -> Result:
    """Type lines into ``flask shell``; the last is followed by the end of input."""
    world.app.shell_context_processor(lambda: {"Thing": world.Thing, "world": world})
    return CliRunner().invoke(
        shell_group(world), ["shell"], input="\n".join(lines) + "\n", **kwargs
    )


def dropped(output: str) -> list[str]:
    """How much was dropped, each time that this was said."""
    return re.findall(r"(\d+ objects?|Changes) dropped: not committed", output)


SHELLS: list[tuple[list[str], list[str]]] = [
    ([], []),
    (["Thing.query.all()"], []),
    (["Thing(name='a').save()"], ["1 object"]),
    (["db.session.add(Thing(name='a'))"], ["1 object"]),
    (["a = Thing(name='a').save()", "a.update(name='b')", "a.update(name='c')"], ["1 object"]),
    (["Thing(name='a').save()", "db.session.add(Thing(name='b'))"], ["2 objects"]),
    (["Thing.query.filter_by(name='old').one().update(name='new')"], ["1 object"]),
    (["Thing.query.filter_by(name='old').one().delete()"], ["1 object"]),
    (["Thing.query.filter_by(name='old').one().name = 'pending'"], ["1 object"]),
    (["db.session.delete(Thing.query.filter_by(name='old').one())"], ["1 object"]),
    (["db.session.execute(db.insert(Thing).values(name='core'))"], ["Changes"]),
    (["Thing(name='a').save()", "db.session.rollback()"], []),
    (["Thing(name='a').save()", "raise ValueError"], ["1 object"]),
    (["Thing(name='a').save()", "exit()"], ["1 object"]),
    (["Thing(name='a').save()", "import sys; sys.exit(0)"], ["1 object"]),
]


@pytest.mark.parametrize("around", [alone, in_context])
def test_row_26_leaving_drops_and_says_how_much(world: World, around: Callable[..., Any]) -> None:
    """Leaving the shell rolls back what was not committed, and says how many objects that is."""
    world.database.insert("old")
    with around(world):
        results = [(lines, shell(world, *lines)) for lines, _ in SHELLS]
    assert [(lines, dropped(result.output)) for lines, result in results] == SHELLS
    for lines, result in results:
        assert (lines, result.exit_code) == (lines, 0)
        assert ("auto.commit() keeps" in result.output) == bool(dropped(result.output))
    assert world.database.names == ["old"]


def test_row_26_an_attribute_set_to_what_it_was_is_no_change(world: World) -> None:
    """Nothing is said where nothing was to be written."""
    world.database.insert("old")
    result = shell(world, "Thing.query.one().name = 'old'")
    assert (result.exit_code, dropped(result.output)) == (0, [])


@pytest.mark.parametrize("end", [[], ["exit()"], ["import sys; sys.exit(3)"]])
@pytest.mark.parametrize("how", ["auto.commit()", "db.session.commit()"])
@pytest.mark.parametrize("around", [alone, in_context])
def test_row_26_a_commit_keeps(
    world: World, around: Callable[..., Any], how: str, end: list[str]
) -> None:
    """What was committed explicitly is durable at once; only what comes after it is dropped."""
    with around(world):
        result = shell(
            world,
            "Thing(name='a').save()",
            "Thing(name='b').save()",
            how,
            "print('durable:', world.database.names)",
            "Thing(name='c').save()",
            *end,
        )
    assert result.exit_code == (3 if "sys.exit(3)" in str(end) else 0)
    assert "durable: ['a', 'b']" in result.output
    assert dropped(result.output) == ["1 object"]
    assert world.database.names == ["a", "b"]


def test_row_26_nothing_is_said_when_all_was_committed(world: World) -> None:
    """A shell whose last line commits is left without a word."""
    result = shell(world, "Thing(name='a').save()", "auto.commit()", "exit()")
    assert (result.exit_code, dropped(result.output)) == (0, [])
    assert world.database.names == ["a"]


def test_row_26_a_failed_save_dooms_nothing_beyond_the_next_rollback(world: World) -> None:
    """After a failed save further writes are refused, until rollback() starts over."""
    world.database.insert("same")
    result = shell(
        world,
        "Thing(name='first').save()",
        "Thing(name='same').save()",
        "Thing(name='refused').save()",
        "Thing.query.count()",
        "db.session.rollback()",
        "Thing(name='second').save()",
        "auto.commit()",
        "Thing(name='third').save()",
    )
    assert result.exit_code == 0
    assert "IntegrityError: " in result.output
    assert "DoomedError: " in result.output
    assert ">>> 1\n" in result.output
    assert dropped(result.output) == ["1 object"]
    assert world.database.names == ["same", "second"]


def test_row_26_leaving_after_a_failed_save(world: World) -> None:
    """A shell that is left right after a failed save is left without an error."""
    world.database.insert("same")
    result = shell(world, "Thing(name='first').save()", "Thing(name='same').save()")
    assert result.exit_code == 0
    assert world.database.names == ["same"]


def test_row_26_a_savepoint_that_was_rolled_back_is_not_counted(world: World) -> None:
    """Objects whose INSERT a savepoint has taken back already are not dropped by leaving."""
    result = shell(
        world,
        "Thing(name='a').save()",
        "with auto.savepoint():",
        "    Thing(name='b').save()",
        "    raise ValueError",
        "",
        "with auto.savepoint():",
        "    Thing(name='c').save()",
        "",
    )
    assert "ValueError" in result.output
    assert dropped(result.output) == ["2 objects"]
    assert world.database.names == []


def test_row_26_doom_and_callbacks_in_a_shell(world: World) -> None:
    """auto.commit() runs on_commit functions; leaving runs on_rollback functions, which keep."""
    result = shell(
        world,
        "Thing(name='a').save()",
        "auto.on_commit(lambda: print('told: committed'))",
        "auto.commit()",
        "Thing(name='b').save()",
        "auto.on_rollback(lambda: Thing(name='c').save())",
    )
    assert "told: committed" in result.output
    assert world.database.names == ["a", "c"]


def test_row_26_auto_and_db_are_at_hand(world: World) -> None:
    """The shell context offers ``auto`` and ``db``."""
    result = shell(world, "print(auto is world.auto, db is world.db)")
    assert "True True" in result.output


def test_row_26_a_processor_of_the_application_wins(world: World) -> None:
    """An application that calls something else ``auto`` or ``db`` has its own way."""
    world.app.shell_context_processor(lambda: {"auto": "my own", "db": "mine too"})
    result = shell(world, "print(auto, db)", "Thing(name='a').save()")
    assert "my own mine too" in result.output
    assert dropped(result.output) == ["1 object"]
    assert world.database.names == []


def test_row_26_outer_work_around_a_shell(world: World) -> None:
    """Inside an outer context the shell drops its own work only, and the context goes on."""
    with world.app.app_context():
        before = world.Thing(name="before").save()
        result = shell(world, "print('sees', Thing.query.count())", "Thing(name='a').save()")
        assert "sees 1" in result.output
        assert dropped(result.output) == ["1 object"]
        assert before.name == "before"
        world.Thing(name="after").save()
    assert world.database.names == ["before", "after"]


@pytest.mark.parametrize("fails", [False, True])
def test_row_26_a_unit_in_a_shell_is_its_own(world: World, fails: bool) -> None:
    """A unit that is opened in a shell keeps its work by itself."""
    result = shell(
        world,
        "with auto.unit():",
        "    Thing(name='unit').save()",
        "    raise ValueError" if fails else "    pass",
        "",
        "print('durable:', world.database.names)",
    )
    assert f"durable: {[] if fails else ['unit']}" in result.output
    assert dropped(result.output) == []
    assert world.database.names == ([] if fails else ["unit"])


def test_row_26_a_shell_context_alone_makes_no_shell(world: World) -> None:
    """app.make_shell_context() outside of a command changes nothing: the script is committed."""
    with world.app.app_context():
        assert world.app.make_shell_context()["auto"] is world.auto
        world.Thing(name="script").save()

    @world.app.get("/")
    def view() -> str:
        world.app.make_shell_context()
        world.Thing(name="view").save()
        return ""

    assert world.app.test_client().get("/").status_code == 200
    assert world.database.names == ["script", "view"]


# In processes of their own ----------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database for the processes that a test starts."""
    if request.param == "sqlite":
        database = Database("sqlite", f"sqlite:///{tmp_path / 'process.db'}")
        database.create()
    else:
        database = request.getfixturevalue("postgresql")
    yield database
    if request.param == "postgresql":
        database.empty()


def environment(database: Database, home: Path) -> dict[str, str]:
    """Return an environment in which no FLASK_ variable but those of the tests is set."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FLASK_") and name != "PYTHONSTARTUP"
    }
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if inherited.pop("PYTHONDONTWRITEBYTECODE", None):
        # Or every process would compile all of Flask and SQLAlchemy again.
        inherited["PYTHONPYCACHEPREFIX"] = str(home.parent / "pycache")
    return {
        **inherited,
        "PYTHONPATH": path,
        "HOME": str(home),  # where a shell keeps its history
        "FLASK_APP": "tests.cli_app:create_app",
        "FLASK_SKIP_DOTENV": "1",
        "CLI_APP_DATABASE_URI": database.uri,
    }


def run(database: Database, home: Path, *args: str, lines: str = "") -> Any:
    return subprocess.run(
        [sys.executable, "-m", *args],
        env=environment(database, home),
        cwd=home,
        input=lines,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_rows_24_and_25_endings_in_a_process(served: Database, tmp_path: Path) -> None:
    """The real ``flask`` command keeps a command's work if and only if the process exits with 0."""
    endings = ["return", "raise an exception", "raise UsageError", "raise KeyboardInterrupt"]
    endings += ["sys.exit()", "sys.exit(3)", "sys.exit(text)", "ctx.exit(0)", "ctx.exit(3)"]
    endings += ["handled return", "handled sys.exit(3)", "handled ctx.exit(0)"]
    done = run(served, tmp_path, "tests.cli_app", *endings)
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout)
    assert codes == {ending: ALL[ending][1] for ending in endings}
    assert served.names == [ending for ending in endings if not ALL[ending][1]]


def test_rows_24_and_25_command_lines_in_a_process(served: Database, tmp_path: Path) -> None:
    """``python -m flask`` with a chain, a failing commit, a swallowed failure and callbacks."""
    lines = ["chain a b", "chain c bad d", "commit", "swallow", "callbacks return"]
    lines += ["callbacks ctx.exit(3)", "shop sell e", "plain f"]
    done = run(served, tmp_path, "tests.cli_app", "--lines", *lines)
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout)
    assert codes == dict(zip(lines, [0, 4, 1, 1, 0, 3, 0, 0], strict=True))
    assert served.names == ["a", "b", "callbacks return", "on_commit", "on_rollback", "e", "f"]


def test_row_24_a_plain_process(served: Database, tmp_path: Path) -> None:
    """``python -m flask do``, with nothing of the tests' own around it."""
    assert run(served, tmp_path, "flask", "do", "return").returncode == 0
    assert run(served, tmp_path, "flask", "do", "ctx.exit(3)").returncode == 3
    assert served.names == ["return"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_row_25_a_signal(
    served: Database, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """A command that is interrupted or terminated in the middle leaves nothing behind, no lock."""
    with subprocess.Popen(
        [sys.executable, "-m", "flask", "wait"],
        env=environment(served, tmp_path),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "written\n"
            process.send_signal(number)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == code
    assert ("Aborted!" in errors) == (number == signal.SIGINT)
    assert served.names == []
    served.insert("wait")  # which waits for whatever still holds that name
    assert served.names == ["wait"]


@pytest.mark.parametrize("end", ["", "exit()\n"])
def test_row_26_a_shell_in_a_process(served: Database, tmp_path: Path, end: str) -> None:
    """``python -m flask shell``, left by the end of input and by exit()."""
    typed = "Thing(name='a').save()\nauto.commit()\nThing(name='b').save()\n"
    typed += "db.session.add(Thing(name='c'))\n"
    done = run(served, tmp_path, "flask", "shell", lines=typed + end)
    assert done.returncode == 0, done.stderr
    assert dropped(done.stderr) == ["2 objects"]
    assert served.names == ["a"]


@pytest.mark.parametrize("fails", [False, True])
def test_rows_24_and_25_a_context_that_is_never_popped(world: World, fails: bool) -> None:
    """A context that a module pushes when a command imports it ends with the command."""
    contexts: list[AppContext] = []

    @click.command()
    def work() -> None:
        contexts.append(world.app.app_context())
        contexts[0].push()
        world.Thing(name="work").save()
        if fails:
            sys.exit(3)

    assert CliRunner().invoke(work).exit_code == (3 if fails else 0)
    kept = world.database.names
    contexts[0].pop()
    assert kept == world.database.names == ([] if fails else ["work"])


def test_row_24_a_plain_group_with_commit_contexts_off(database: Database) -> None:
    """AUTOSESSION_COMMIT_CONTEXTS does not speak of with_appcontext either."""
    world = World(database, AUTOSESSION_COMMIT_CONTEXTS=False)
    group = click.Group("group")

    @group.command("work")
    @with_appcontext
    def work() -> None:
        world.Thing(name="work").save()

    assert world.app.test_cli_runner().invoke(group, ["work"]).exit_code == 0
    assert database.names == ["work"]
    world.close()


@pytest.mark.parametrize("value", [True, False])
def test_row_22_a_bare_context_in_a_view_that_a_command_serves(
    database: Database, value: bool
) -> None:
    """In ``flask run --without-threads`` it is as bare as behind any other server."""
    world = World(database, AUTOSESSION_COMMIT_CONTEXTS=value)

    @world.app.get("/")
    def view() -> str:
        world.Thing(name="request").save()
        world.auto.commit()
        with world.app.app_context():
            world.Thing(name="bare").save()
        return "done"

    @click.command()
    def run() -> None:
        assert world.app.test_client().get("/").status_code == 200

    assert CliRunner().invoke(run).exit_code == 0
    assert database.names == ["request", *(["bare"] if value else [])]
    world.close()


def test_row_21_a_context_made_while_a_command_exits(world: World) -> None:
    """What a callback of ``ctx.exit(3)`` does in a context of its own is not the command's."""

    def audit() -> None:
        with world.app.app_context():
            world.Thing(name="audit").save()

    @world.app.cli.command("work")
    @click.pass_context
    def work(context: click.Context) -> None:
        context.call_on_close(audit)
        context.exit(3)

    assert world.app.test_cli_runner().invoke(work).exit_code == 3
    assert world.database.names == ["audit"]


def test_row_26_a_rollback_lifts_a_doom(world: World) -> None:
    """A shell has no end before which ``auto.doom()`` could be lifted: ``rollback()`` does it."""
    lines = ["auto.doom()", "db.session.rollback()", "Thing(name='kept').save()", "auto.commit()"]
    assert shell(world, *lines).exit_code == 0
    assert world.database.names == ["kept"]
