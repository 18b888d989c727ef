"""Streams: what is written while a response's body is made, behind the response.

Flask 3.0 and 3.2 keep the context until the body is made. Flask 3.1 tears it down before the body
is made, pushes it again, and tears it down once more.
"""

from __future__ import annotations

from typing import Any, cast

from flask import request

from .callsite import raised_at
from .scope import Scope
from .state import Frame, Phase

STREAM: str = "flask_autosession.stream"


def current_request() -> object:
    """Return the current request itself, which the proxy stands for."""
    return cast(Any, request)._get_current_object()


def pause_stream(scope: Scope, frame: Frame, *, shared: bool) -> None:
    """Keep the frame of a request for its stream, whose context is torn down before it begins.

    :param scope: The scope of the request's app context.
    :param frame: The frame, which has left the scope.
    :param shared: Whether that context was there before the request.
    """
    scope.paused = not shared and frame.behind is Phase.STREAM
    if scope.paused and frame.body is not None:
        frame.body.release = scope.remove
    frame.request = None  # which holds what this is about to be put into
    request.environ[STREAM] = scope, frame


def resume_stream(scope: Scope) -> None:
    """Take the frame up again, if this is the context of a request that was paused.

    :param scope: The scope of the current app context.
    """
    paused_in, frame = request.environ.get(STREAM, (None, None))
    if paused_in is scope:
        del request.environ[STREAM]
        frame.body.release = None
        frame.phase, frame.request = frame.behind, current_request()
        scope.frames.append(frame)


def end_stream(scope: Scope, error: BaseException | None, *, last: bool) -> None:
    """Commit what a stream has done if it was read to its end, else roll it back.

    :param scope: The scope of the request's app context.
    :param error: What its context is left by, if anything.
    :param last: Whether the session is removed next.
    :raises Exception: What prevented the commit.
    """
    body = scope.frame.body
    if body is None or scope.frame.phase is not Phase.STREAM:
        return
    error, doom = error or body.cut, scope.frame.doom
    if error is None and doom is not None:
        scope.leftovers(f"doomed: {doom}", last=last)
    elif error is None:
        scope.end_cleanly("the stream was read to its end", last=last)
    elif isinstance(error, GeneratorExit):
        scope.leftovers("the client went away before the end of the stream", last=last)
    else:
        what = f"{type(error).__name__} at {raised_at(error)}"
        scope.leftovers(f"the stream was cut by {what}", last=last)
