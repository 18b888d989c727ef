"""Commands: what one command line does is one unit of work, and its exit code decides."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple, cast
from weakref import WeakSet

import click
from click.exceptions import Exit
from sqlalchemy import inspect
from sqlalchemy.orm import Session

from .phases import Phase
from .scope import Scope
from .state import Frame

EXIT: str = "flask_autosession.exit"
CLOSED: str = "flask_autosession.closed"
SCOPES: str = "flask_autosession.scopes"


def current_command() -> click.Context | None:
    """Return the outermost context of the command line that runs in this thread, if one does."""
    command = click.get_current_context(silent=True)
    # Where something fails while click closes a context, that one stays current, for ever.
    root = None if command is None else command.find_root()
    return None if root is None or CLOSED in root.meta else root


def exits_cleanly(error: BaseException) -> bool:
    """Whether an exception stands for an exit code that says success."""
    if isinstance(error, Exit):
        return error.exit_code == 0
    return isinstance(error, SystemExit) and error.code in (None, 0)


class Entered(NamedTuple):
    """What was going on when a context was entered, and is no failure of its own."""

    error: BaseException | None
    traceback: TracebackType | None
    """How far that error had come by then."""
    exiting: bool


def entered() -> Entered:
    """Return what is going on right now."""
    error = sys.exception()
    return Entered(error, None if error is None else error.__traceback__, _exit_code() is not None)


def leaving(error: BaseException | None, before: Entered) -> BaseException | None:
    """Return the failure that something is left with right now.

    :param error: What the leaving itself was told, if anything. Before 8.3 click tells nothing,
        but leaves its contexts while it handles the exception.
    :param before: What was going on when it was entered.
    :return: The exception; None if it is left cleanly.
    """
    code = _exit_code()
    if code is not None and not before.exiting:
        return Exit(code) if code else None
    if error is None and current_command() is not None:
        error = sys.exception()
    if error is None or exits_cleanly(error) or (error, error.__traceback__) == before[:2]:
        return None
    return error


def _exit_code() -> int | None:
    command = click.get_current_context(silent=True)
    code: int | None = None if command is None else command.meta.get(EXIT)
    return code


def watch_exit() -> None:
    """Have click's contexts note the code of ``ctx.exit()``, and that they are closed.

    From click 8.2 on, ``ctx.exit()`` leaves contexts before it raises.
    """
    command = click.get_current_context(silent=True)
    if command is not None and "exit" not in vars(command.find_root()):
        root = command.find_root()
        root.call_on_close(functools.partial(root.meta.setdefault, CLOSED, True))
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
    scope.end_cleanly("a command begins inside of this context")
    frame = Frame(lambda: f"command {root.info_name}", Phase.COMMAND, root, scope.frame)
    scope.frame = frame
    root.with_resource(_until_closed(functools.partial(_end_command, scope, frame)))


def _end_command(scope: Scope, frame: Frame, error: BaseException | None) -> None:
    # Flask 3.0 leaves the frame of a stream that nobody has read to its end.
    scope.frame = frame
    try:
        _end(scope, error, last=False)
    finally:
        scope.leave(frame)


def adopt(scope: Scope, root: click.Context) -> None:
    """Have the command end the unit of an app context of its own, if nothing did so before.

    A context that a module pushes when it is imported is never left.

    :param scope: The scope of the app context.
    :param root: The outermost context of the command line.
    """
    if SCOPES not in root.meta:
        scopes: WeakSet[Scope] = WeakSet()
        root.meta[SCOPES] = scopes
        root.with_resource(_until_closed(functools.partial(_end_contexts, scopes)))
    root.meta[SCOPES].add(scope)


def _end_contexts(scopes: WeakSet[Scope], error: BaseException | None) -> None:
    for scope in list(scopes):
        if scope.frame.phase in (Phase.CONTEXT, Phase.SHELL):
            _end(scope, error, last=True)


@contextmanager
def _until_closed(end: Callable[[BaseException | None], None]) -> Generator[None]:
    watch_exit()
    before, told = entered(), None
    try:
        yield
    except BaseException as error:
        told = error
        raise
    finally:
        end(leaving(told, before))


def _end(scope: Scope, error: BaseException | None, *, last: bool) -> None:
    if scope.frame.phase is Phase.SHELL:
        leave_shell(scope, last=last)
    elif error is None:
        scope.end_cleanly("the command succeeded", last=last)
    else:
        scope.raised(error)


def enter_shell(scope: Scope) -> None:
    """Note that a shell runs in this context, whose leaving keeps nothing."""
    scope.frame.phase = Phase.SHELL


def leave_shell(scope: Scope, *, last: bool) -> None:
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
    session = cast(Session, scope.session)
    changed = filter(session.is_modified, session.dirty)
    objects.update((id(one), one) for one in (*session.new, *changed, *session.deleted))
    return len(objects)
