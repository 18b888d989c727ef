"""Commands: what one command line does is one unit of work, and its exit code decides."""

from __future__ import annotations

import functools
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, cast

import click
from click.exceptions import Exit
from sqlalchemy import inspect

from .scope import Scope
from .state import SCRIPTS, Frame, Phase

EXIT: str = "flask_autosession.exit"


def current_command() -> click.Context | None:
    """Return the outermost context of the command line that runs in this thread, if one does."""
    command = click.get_current_context(silent=True)
    return None if command is None else command.find_root()


def exits_cleanly(error: BaseException) -> bool:
    """Whether an exception stands for an exit code that says success."""
    if isinstance(error, Exit):
        return error.exit_code == 0
    return isinstance(error, SystemExit) and error.code in (None, 0)


InFlight = tuple[BaseException | None, TracebackType | None]


def in_flight() -> InFlight:
    """Return the exception that is being handled right now, and how far it has come by now."""
    error = sys.exception()
    return error, None if error is None else error.__traceback__


def leaving(error: BaseException | None, entered: InFlight) -> BaseException | None:
    """Return the failure that something is left with right now.

    :param error: What the leaving itself was told, if anything. Before 8.3 click tells nothing,
        but leaves its contexts while it handles the exception.
    :param entered: What was being handled when it was entered, which is no failure of its own
        unless it has come further since.
    :return: The exception; None if it is left cleanly.
    """
    command = click.get_current_context(silent=True)
    code = None if command is None else command.meta.get(EXIT)
    if code is not None:
        return Exit(code) if code else None
    error = error or sys.exception()
    if error is None or exits_cleanly(error) or (error, error.__traceback__) == entered:
        return None
    return error


def watch_exit() -> None:
    """Have ``ctx.exit()`` note its code: from click 8.2 on, it leaves contexts before it raises."""
    command = click.get_current_context(silent=True)
    while command is not None and "exit" not in vars(command):
        cast(Any, command).exit = functools.partial(_exit, command, command.exit)
        command = command.parent


def _exit(command: click.Context, leave: Any, code: int = 0) -> None:
    command.meta[EXIT] = code
    try:
        leave(code)
    finally:
        del command.meta[EXIT]


def begin(scope: Scope, root: click.Context) -> None:
    """Begin a command in an app context that was there before it.

    What the context did before is committed, so that the command sees it, and a failing command
    takes back its own work only.

    :param scope: The scope of the app context.
    :param root: The outermost context of the command line.
    """
    if scope.frame.phase in SCRIPTS and scope.frame.request is not root:
        watch_exit()
        root.with_resource(_command(scope, root))


@contextmanager
def _command(scope: Scope, root: click.Context) -> Generator[None]:
    entered = in_flight()
    scope.end_cleanly("a command begins inside of this context")
    frame = Frame(lambda: f"command {root.info_name}", Phase.COMMAND, request=root)
    scope.frames.append(frame)
    told = None
    try:
        yield
    except BaseException as error:
        told = error
        raise
    finally:
        # Flask 3.0 leaves the frame of a stream that nobody has read to its end.
        del scope.frames[scope.frames.index(frame) + 1 :]
        try:
            _end(scope, leaving(told, entered))
        finally:
            scope.frames.pop()


def _end(scope: Scope, error: BaseException | None) -> None:
    if scope.frame.phase is Phase.SHELL:
        leave_shell(scope)
    elif error is None:
        scope.end_cleanly("the command succeeded")
    else:
        scope.raised(error)


def enter_shell(scope: Scope) -> None:
    """Note that a shell runs in this context, whose leaving keeps nothing."""
    scope.frame.phase = Phase.SHELL


def leave_shell(scope: Scope, *, last: bool = False) -> None:
    """Drop what was not committed in a shell, and say how much that is.

    :param scope: The scope of the shell's app context.
    :param last: Whether the session is removed next.
    """
    if scope.unsaved:
        count = _unsaved_objects(scope)
        what = "Changes" if not count else "1 object" if count == 1 else f"{count} objects"
        click.echo(f"{what} dropped: not committed. auto.commit() keeps what was done.", err=True)
    scope.rollback("the shell was left", last=last)


def _unsaved_objects(scope: Scope) -> int:
    objects = {
        key: instance
        for key, instance in scope.unit.flushed.items()
        if not inspect(instance).transient  # its INSERT was taken back with a savepoint
    }
    session = scope.session
    if session is not None:
        changed = filter(session.is_modified, session.dirty)
        objects.update((id(one), one) for one in (*session.new, *changed, *session.deleted))
    return len(objects)
