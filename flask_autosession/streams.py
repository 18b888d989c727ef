"""Streams: what is written while a response's body is made, behind the response.

Flask 3.0 and 3.2 keep the context until the body is made. Flask 3.1 tears it down before the body
is made, pushes it again, and tears it down once more.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from flask import Response, has_request_context, request

from .body import Body, Progress
from .callsite import raised_at
from .current import current_request
from .phases import Phase
from .scope import Scope
from .state import Frame

STREAM: str = "flask_autosession.stream"


def follow(frame: Frame, response: Response, *, success: bool) -> None:
    """Follow how a response's body is made, if that is done behind the response.

    :param frame: The frame of the request.
    :param response: Its response.
    :param success: Whether the unit of work goes on in the stream.
    """
    if response.is_streamed and not response.direct_passthrough:
        frame.body = Progress()
        response.response = Body(response.response, frame.body)
        frame.behind = Phase.STREAM if success else Phase.DECIDED


def refuse(scope: Scope, response: Response, error: Exception) -> None:
    """Roll back because the work of a response could not be kept, and drop that response.

    :param scope: The scope of the request's app context.
    :param response: Its response.
    :param error: What the database, or a listener, has refused to flush or commit.
    """
    scope.frame.refused = error
    scope.raised(error)
    with suppress(Exception):
        response.close()  # as a server does with what it does not send


def end_dispatch(frame: Frame) -> None:
    """Note that Flask dispatches the request no more; its body may still have to be made."""
    frame.running, frame.refused = False, None
    if frame.body is not None:
        frame.phase = frame.behind


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
    environ = current_request().environ
    paused_in, frame = environ.get(STREAM, (None, None))
    if paused_in is scope:
        del environ[STREAM]
        frame.body.release = None
        frame.phase, frame.request = frame.behind, current_request()
        frame.outer, scope.frame = scope.frame, frame


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


def read_here(body: Any, is_shared: Callable[[], bool]) -> Any:
    """Read a stream before its context is left, if it needs one.

    :param body: The body of a response.
    :param is_shared: Tells whether the current request uses an app context that was there before.
    """
    # Flask 3.0 keeps a request's context until its stream is read: here, or in another app context.
    if not has_request_context() or not is_shared():
        return body
    try:
        return list(body)
    finally:
        body.close()
