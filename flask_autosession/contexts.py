"""Units of work of app contexts: whose a context is, and what follows when it is left."""

from __future__ import annotations

import weakref
from typing import Any, cast

import click
from flask import Flask, current_app, g, has_app_context, has_request_context, request

from .callsite import raised_at
from .cli import begin, current_command, in_flight, leave_shell, leaving, watch_exit
from .config import Settings
from .scope import Scope
from .state import SCRIPTS, Frame, Phase

SCOPE: str = "_autosession"
IN_FLIGHT: str = "_autosession_in_flight"
OUTER: str = "flask_autosession.outer"
COMMAND: str = "_autosession_command"
STREAM: str = "flask_autosession.stream"


def scope_of_context() -> Scope | None:
    """Return the scope of the current app context, if it has one already."""
    scope: Scope | None = getattr(g, SCOPE, None)
    return scope


def current_request() -> object:
    """Return the current request itself, which the proxy stands for."""
    return cast(Any, request)._get_current_object()


def request_name() -> str:
    return f"{request.method} {request.path}" if has_request_context() else "a request"


def is_shared() -> bool:
    """Whether the current request uses an app context that was there before it."""
    outer = request.environ.get(OUTER)
    return outer is not None and outer is g._get_current_object()


def exception_of(args: tuple[Any, ...]) -> BaseException | None:
    """Return the exception among the arguments that Flask has passed."""
    return next((arg for arg in args if isinstance(arg, BaseException)), None)


def _remember(namespace: Any) -> None:
    # What is being handled right now is no error of the new context's own, and a command that
    # runs right now has this context inside of it.
    setattr(namespace, IN_FLIGHT, in_flight())
    command = current_command()
    if command is not None:
        setattr(namespace, COMMAND, command)
        watch_exit()


class ContextHooks:
    """What one application's contexts do when they are entered and left.

    :param app: The application.
    :param settings: Its configuration.
    """

    def __init__(self, app: Flask, settings: Settings) -> None:
        self._app = weakref.ref(app)
        self.settings: Settings = settings
        self._warned: set[str] = set()

    @property
    def app(self) -> Flask:
        """The application; held weakly, so that it can go when nobody else needs it."""
        app = self._app()
        assert app is not None
        return app

    def scope(self) -> Scope:
        """Return the scope of the current app context; make it if there is none."""
        scope = scope_of_context()
        if scope is None:
            scope = Scope(self.app, self.settings, self._warned)
            setattr(g, SCOPE, scope)
        return scope

    def arrive(self, scope: Scope) -> None:
        """Begin a stream or a command that works in an app context which was there before it.

        Neither Flask nor click tells when that happens, so it is asked for whenever something
        reaches for the session while no request is being dispatched.

        :param scope: The scope of the current app context.
        """
        if has_request_context():
            self._resume_stream(scope)
        root = current_command()
        if root is not None and getattr(g, COMMAND, None) is not root:
            begin(scope, root)

    def app_context(self, original: Any, *args: Any) -> Any:
        """Remember where the context was made."""
        context = original(*args)
        _remember(context.g)
        return context

    def request_context(self, original: Any, environ: Any, *args: Any) -> Any:
        """Remember the app context that a request may share, and then must leave alone."""
        if has_app_context():
            environ[OUTER] = g._get_current_object()
        context = original(environ, *args)
        if hasattr(context, "g"):  # from Flask 3.2 on it is an app context as well
            _remember(context.g)
        return context

    def invoke_command(self, original: Any, command: click.Context) -> Any:
        """Run a command of ``app.cli`` in an app context, as the ``flask`` command does."""
        inside = has_app_context() and current_app == self.app
        if inside and self.scope().frame.phase in SCRIPTS:
            self.arrive(self.scope())
        else:
            command.with_resource(self.app.app_context())
        return original(command)

    def do_teardown_request(self, original: Any, *args: Any) -> None:
        """Note that the request's fate is decided, before the teardown functions run."""
        scope, shared = self.scope(), is_shared()
        self._resume_stream(scope)
        dispatched = scope.frame.request is current_request()
        if dispatched and scope.frame.running:
            # The end of a copy, made by copy_current_request_context, in the same app context.
            original(*args)
            return
        scope.of_request = scope.of_request or not shared
        if not dispatched:
            if not shared and scope.frame.phase is Phase.CONTEXT:
                scope.frame.phase = Phase.UNDISPATCHED
            original(*args)
            return
        try:
            self._end_stream(scope, exception_of(args), last=not shared)
        finally:
            scope.frame.phase = Phase.DECIDED
            try:
                original(*args)
            finally:
                scope.leftovers("it was written after the response was decided", last=not shared)
                self._pause_stream(scope, scope.frames.pop())
                if not shared:
                    scope.frame.phase = Phase.DECIDED

    # Streams. Flask 3.0 keeps the context until the body is made, Flask 3.1 tears it down before
    # and once more behind it.

    def _pause_stream(self, scope: Scope, frame: Frame) -> None:
        if frame.stream is not None:
            frame.request = None  # which holds what this is about to be put into
            request.environ[STREAM] = scope, frame

    def _resume_stream(self, scope: Scope) -> None:
        paused_in, frame = request.environ.get(STREAM, (None, None))
        if paused_in is scope:
            del request.environ[STREAM]
            frame.phase, frame.request = frame.stream, current_request()
            scope.frames.append(frame)

    def _end_stream(self, scope: Scope, error: BaseException | None, *, last: bool) -> None:
        if scope.frame.phase is not Phase.STREAM:
            return
        if error is None:
            scope.end_cleanly("the stream was read to its end", last=last)
        elif isinstance(error, GeneratorExit):
            scope.leftovers("the client went away before the end of the stream", last=last)
        else:
            what = f"{type(error).__name__} at {raised_at(error)}"
            scope.leftovers(f"the stream was cut by {what}", last=last)

    def do_teardown_appcontext(self, original: Any, *args: Any) -> None:
        """End the context's unit of work, and remove its session whatever else fails."""
        try:
            scope = scope_of_context()
            if scope is not None:
                self._end_context(scope, args)
        finally:
            try:
                original(*args)
            finally:
                self._remove()

    def _end_context(self, scope: Scope, args: tuple[Any, ...]) -> None:
        error = leaving(exception_of(args), getattr(g, IN_FLIGHT, (None, None)))
        phase, scope.frame.phase = scope.frame.phase, Phase.DECIDED
        if phase is Phase.UNDISPATCHED:
            scope.leftovers(
                "no request was dispatched in this request context; wrap the code in"
                " 'with auto.unit():'"
            )
        elif phase is Phase.DECIDED:
            scope.leftovers("it was written after the response was decided")
        elif phase is Phase.UNIT:
            scope.leftovers("the context was left before the block of auto.unit()")
        elif phase is Phase.SHELL:
            leave_shell(scope, last=True)
        elif error is not None:
            scope.raised(error)
        elif self.settings.commit_contexts:
            scope.end_cleanly("the context was left", last=True)
        else:
            scope.rollback("AUTOSESSION_COMMIT_CONTEXTS is False", last=True)

    def _remove(self) -> None:
        scope = scope_of_context()
        if scope is not None:
            try:
                scope.leftovers("it was written while the context was torn down")
            finally:
                scope.remove()
                if not scope.of_request:
                    delattr(g, SCOPE)  # the same context may be pushed again
