"""An application for processes of their own, and the many ways in which a command can end.

``python -m tests.cli_app ENDING...`` runs ``flask do ENDING`` for each in a process of its own,
forked when everything is imported, and prints their exit codes. ``--lines`` takes whole command
lines instead.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click
from click.exceptions import Exit
from flask import Blueprint, Flask
from flask.cli import with_appcontext
from sqlalchemy.exc import IntegrityError

from .test_rows_contexts import enforce_foreign_keys
from .world import Database, World

End = Callable[[click.Context], Any]


def throw(error: BaseException | type[BaseException]) -> Any:
    raise error


def swallow_exit(context: click.Context) -> None:
    with suppress(Exit):
        context.exit(3)


ENDINGS: dict[str, tuple[End, int]] = {
    "return": (lambda context: None, 0),
    "raise an exception": (lambda context: throw(ValueError), 1),
    "raise an OSError": (lambda context: throw(OSError), 1),
    "raise EOFError": (lambda context: throw(EOFError), 1),
    "raise ClickException": (lambda context: throw(click.ClickException("no")), 1),
    "raise UsageError": (lambda context: throw(click.UsageError("no")), 2),
    "ctx.fail()": (lambda context: context.fail("no"), 2),
    "ctx.abort()": (lambda context: context.abort(), 1),
    "raise Abort": (lambda context: throw(click.Abort), 1),
    "raise KeyboardInterrupt": (lambda context: throw(KeyboardInterrupt), 1),
    "sys.exit()": (lambda context: sys.exit(), 0),
    "sys.exit(0)": (lambda context: sys.exit(0), 0),
    "sys.exit(3)": (lambda context: sys.exit(3), 3),
    "sys.exit(text)": (lambda context: sys.exit("no"), 1),
    "ctx.exit()": (lambda context: context.exit(), 0),
    "ctx.exit(0)": (lambda context: context.exit(0), 0),
    "ctx.exit(3)": (lambda context: context.exit(3), 3),
    "root.exit(0)": (lambda context: context.find_root().exit(0), 0),
    "root.exit(3)": (lambda context: context.find_root().exit(3), 3),
    "raise Exit(0)": (lambda context: throw(Exit(0)), 0),
    "raise Exit(3)": (lambda context: throw(Exit(3)), 3),
}
"""How a command can end, and the exit code that follows."""

SWALLOWED_EXIT: tuple[End, int] = (swallow_exit, 0)


def handled(end: End) -> End:
    """The same end, while another exception is being handled."""

    def run(context: click.Context) -> None:
        try:
            raise LookupError
        except LookupError:
            end(context)

    return run


def create_app() -> Flask:
    """Make the application that ``flask`` asks for."""
    uri = os.environ["CLI_APP_DATABASE_URI"]
    world = World(Database(uri.partition(":")[0].partition("+")[0], uri))
    app, Thing = world.app, world.Thing
    enforce_foreign_keys(world)
    app.shell_context_processor(lambda: {"Thing": Thing})

    @app.cli.command("do")
    @click.argument("ending")
    @click.pass_context
    def do(context: click.Context, ending: str) -> None:
        Thing(name=ending).save()
        end = ENDINGS[ending.removeprefix("handled ")][0]
        (handled(end) if ending.startswith("handled ") else end)(context)

    @app.cli.command("wait")
    def wait() -> None:
        # A shell that has put the tests into the background lets them ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        Thing(name="wait").save()
        print("written", flush=True)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(0.05)

    @app.cli.command("commit")
    def commit() -> None:
        Thing(name="commit").save()
        Thing(name="orphan", parent=901).save()

    @app.cli.command("swallow")
    def swallow() -> None:
        Thing(name="same").save()
        with suppress(IntegrityError):
            Thing(name="same").save()

    @app.cli.command("callbacks")
    @click.argument("ending")
    @click.pass_context
    def callbacks(context: click.Context, ending: str) -> None:
        world.auto.on_commit(lambda: Thing(name="on_commit").save())
        world.auto.on_rollback(lambda: Thing(name="on_rollback").save())
        Thing(name=f"callbacks {ending}").save()
        ENDINGS[ending][0](context)

    add_groups(world)
    return app


def add_groups(world: World) -> None:
    """Add a chain, a blueprint's command and one of a plain group."""

    @world.app.cli.group("chain", chain=True)
    def chain() -> None:
        pass

    def write(name: str) -> Callable[[], None]:
        return lambda: world.Thing(name=name).save() and None

    for name in "abcd":
        chain.command(name)(write(name))
    chain.command("bad")(click.pass_context(lambda context: context.exit(4)))

    blueprint = Blueprint("shop", __name__)
    blueprint.cli.command("sell")(click.argument("name")(lambda name: write(name)()))
    world.app.register_blueprint(blueprint)

    plain = click.Group("plain")
    plain.command("f")(with_appcontext(write("f")))
    world.app.cli.add_command(plain)


def fork(args: list[str]) -> int | None:
    """Return the exit code of a child; None in the child, which is to become ``flask``."""
    child = os.fork()
    if child == 0:
        sys.argv[1:] = args
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        return None
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    args = sys.argv[1:]
    whole_lines = args[:1] == ["--lines"]
    codes: dict[str, int] = {}
    create_app()  # so that the database's driver is imported too
    for one in args[whole_lines:]:
        code = fork(one.split(" ") if whole_lines else ["do", one])
        if code is None:
            runpy.run_module("flask", run_name="__main__", alter_sys=True)
            return
        codes[one] = code
    print(json.dumps(codes))


if __name__ == "__main__":
    main()
