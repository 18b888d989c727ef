"""Where an app context was made: for a request, by a command, or inside of another context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import click

from .cli import Entered, current_command, entered, watch_exit
from .current import app_contexts, current_request
from .phases import Phase
from .scope import Scope

LEFTOVERS: Mapping[Phase, str] = {
    Phase.DECIDED: "it was written after the response was decided",
    Phase.UNDISPATCHED: (
        "no request was dispatched in this request context; wrap the code in 'with auto.unit():'"
    ),
    Phase.UNIT: "the context was left before the block of auto.unit()",
}
"""Why nobody commits what is left, by what went on in a context that ends."""
_OUTER = "flask_autosession.outer"

serving: list[int | None] = [None]
"""The thread that is about to make the context of a request which a server has sent. Its response
will decide, whatever else goes on; and to ask click costs more than all the rest. Where several
threads are, the last one to come is: the others ask click for nothing."""


@dataclass(frozen=True, eq=False)
class Origin:
    """What went on while a context was made."""

    entered: Entered
    command: click.Context | None
    """The command line that was running."""
    nested: bool
    """Whether the context was made inside of another one of that command, or of a request that it
    serves."""


_NOTHING = Entered(None, None, exiting=False)
_UNKNOWN = Origin(_NOTHING, None, nested=False)
_SERVED = Origin(_NOTHING, None, nested=False)


def remember(context: Any) -> None:
    """Remember what goes on while a context is made, and is no failure of its own."""
    if serving[0] == get_ident():
        serving[0], context.autosession_origin = None, _SERVED
        return
    command, outer = current_command(), _origin_of(app_contexts.get(None))
    # `flask test` is a command too, and makes contexts that are those of tests; `flask run` serves.
    nested = command is not None and (outer.command is command or outer is _SERVED)
    context.autosession_origin = Origin(entered(), command, nested)
    if command is not None:
        watch_exit()


def _origin_of(context: Any) -> Origin:
    origin: Origin = getattr(context, "autosession_origin", _UNKNOWN)
    return origin


def what_was_entered() -> Entered:
    """Return what was going on when the current app context was made."""
    return _origin_of(app_contexts.get()).entered


def is_made_by(command: click.Context) -> bool:
    """Whether the current app context was made while a command line was running.

    :param command: The outermost context of the command line.
    """
    return _origin_of(app_contexts.get()).command is command


def is_of_command() -> bool:
    """Whether the current context is that of a command, as opposed to one made inside of it."""
    origin = _origin_of(app_contexts.get())
    return origin.command is not None and not origin.nested


def is_served() -> bool:
    """Whether the current app context was made for a request which a server has sent."""
    return _origin_of(app_contexts.get()) in (_SERVED, _UNKNOWN)


def stands_alone(scope: Scope) -> bool:
    """Whether the current context was there before a request or a command begins inside of it.

    What such a context has done, in a test for example, is committed then. What a request, a
    command or a unit has done by the time it starts another one is not.

    :param scope: The scope of the current app context.
    """
    return scope.frame.phase is Phase.CONTEXT and not scope.unit.level and not is_of_command()


def note_outer(environ: dict[str, Any], outer: Any) -> None:
    """Remember the app context that a request may share, and then must leave alone."""
    environ[_OUTER] = outer


def is_shared() -> bool:
    """Whether the current request uses an app context that was there before it."""
    outer = current_request().environ.get(_OUTER)
    return outer is not None and outer is app_contexts.get()


def exception_of(args: tuple[Any, ...]) -> BaseException | None:
    """Return the exception among the arguments that Flask has passed."""
    return next((arg for arg in args if isinstance(arg, BaseException)), None)
