"""The states of a unit of work, and what can go on around it."""

from __future__ import annotations

import enum


class State(enum.Enum):
    """The states of a unit of work."""

    IDLE = "idle"
    ACTIVE = "active"
    DOOMED = "doomed"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"

    def __str__(self) -> str:
        return self.value


class Phase(enum.Enum):
    """What is going on in a context, which decides what an explicit commit means there."""

    CONTEXT = "context"
    """A script, a command, a thread: committed when the context is left."""
    REQUEST = "request"
    """Flask dispatches a request; its response decides."""
    UNIT = "unit"
    """Inside ``with auto.unit():``, which ends it itself."""
    MANUAL = "manual"
    """Inside a view that ends its transactions itself."""
    STREAM = "stream"
    """The response says success and its body is being made; how that ends decides."""
    COMMAND = "command"
    """A command in a context that was there before it; its exit code decides."""
    SHELL = "shell"
    """``flask shell``: nothing is kept but what is committed explicitly."""
    DECIDED = "decided"
    """The response has decided; what is written now needs a commit of its own."""
    UNDISPATCHED = "undispatched"
    """A request context that no request was dispatched in has ended: nobody decides."""
    CALLBACK = "callback"
    """An ``on_commit`` or ``on_rollback`` function runs, as a unit of its own."""


# Asked for in each request: to find a member of an enum takes Python 3.11 as long as three calls.
COMMITTED: State = State.COMMITTED
ROLLED_BACK: State = State.ROLLED_BACK
REQUEST: Phase = Phase.REQUEST
MANUAL: Phase = Phase.MANUAL
SHELL: Phase = Phase.SHELL
DECIDED: Phase = Phase.DECIDED
IN_REQUEST: frozenset[Phase] = frozenset({Phase.REQUEST, Phase.STREAM})
"""The phases in which ``AUTOSESSION_EXPLICIT_COMMIT`` says what an explicit commit means."""
