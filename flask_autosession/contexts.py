"""Units of work of app contexts: whose a context is, and what follows when it is left."""

from __future__ import annotations

import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import click
from flask import Flask, current_app, g, has_app_context, has_request_context, request

from .cli import Entered, adopt, begin, current_command, entered, leave_shell, leaving, watch_exit
from .config import Settings
from .scope import Scope
from .state import Phase
from .streams import current_request, end_stream, pause_stream, resume_stream

SCOPE: str = "_autosession"
ENTERED: str = "_autosession_entered"
OUTER: str = "flask_autosession.outer"
COMMAND: str = "_autosession_command"
NESTED: str = "_autosession_nested"


def scope_of_context() -> Scope | None:
    """Return the scope of the current app context, if it has one already."""
    scope: Scope | None = getattr(g, SCOPE, None)
    return scope


def request_name() -> str:
    return f"{request.method} {request.path}" if has_request_context() else "a request"


def is_shared() -> bool:
    """Whether the current request uses an app context that was there before it."""
    outer = request.environ.get(OUTER)
    return outer is not None and outer is g._get_current_object()


def exception_of(args: tuple[Any, ...]) -> BaseException | None:
    """Return the exception among the arguments that Flask has passed."""
    return next((arg for arg in args if isinstance(arg, BaseException)), None)


_NOTHING = Entered(None, None, exiting=False)


def stands_alone(scope: Scope) -> bool:
    """Whether the current context was there before a request or a command begins inside of it.

    What such a context has done, in a test for example, is committed then. What a request, a
    command or a unit has done by the time it starts another one is not.

    :param scope: The scope of the current app context.
    """
    return scope.frame.phase is Phase.CONTEXT and not scope.unit.level and not is_of_command()


def is_of_command() -> bool:
    """Whether the current context is that of a command, as opposed to one made inside of it."""
    return hasattr(g, COMMAND) and not getattr(g, NESTED)


def _remember(namespace: Any) -> None:
    # What is being handled right now is no error of the new context's own, and a command that
    # runs right now has this context inside of it.
    setattr(namespace, ENTERED, entered())
    command = current_command()
    if command is not None:
        # `flask test` is a command too, and makes contexts that are those of tests.
        nested = has_app_context() and getattr(g, COMMAND, None) is command
        setattr(namespace, COMMAND, command)
        setattr(namespace, NESTED, nested)
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
            resume_stream(scope)
        root = current_command()
        if root is None:
            return
        own: bool = getattr(g, COMMAND, None) is root
        if own:
            adopt(scope, root)
        elif stands_alone(scope):
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
        root = command.find_root()
        if has_app_context() and current_app == self.app:
            scope = self.scope()
            self.arrive(scope)
            inside = getattr(g, COMMAND, None) is root or scope.frame.request is root
        else:
            inside = False
        if not inside:
            command.with_resource(self.app.app_context())
        return original(command)

    def do_teardown_request(self, original: Any, *args: Any) -> None:
        """Note that the request's fate is decided, before the teardown functions run."""
        scope, shared = self.scope(), is_shared()
        resume_stream(scope)
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
        frame, error = scope.frame, exception_of(args)
        try:
            end_stream(scope, error, last=not shared)
        finally:
            scope.frame.phase = Phase.DECIDED
            try:
                original(*args)
            finally:
                scope.leftovers("it was written after the response was decided", last=not shared)
                scope.frames.pop()
                gone = isinstance(error, GeneratorExit)
                if frame.body is not None and not frame.body.started and not gone:
                    pause_stream(scope, frame, shared=shared)
                if not shared:
                    scope.frame.phase = Phase.DECIDED

    def do_teardown_appcontext(self, original: Any, *args: Any) -> None:
        """End the context's unit of work, and remove its session whatever else fails."""
        try:
            scope = scope_of_context()
            if scope is not None:
                self._end_context(scope, args)
        finally:
            with self._kept_for_stream():
                try:
                    original(*args)
                finally:
                    self._remove()

    @contextmanager
    def _kept_for_stream(self) -> Generator[None]:
        scope, session = scope_of_context(), None
        if scope is not None and scope.paused:
            # The view's objects stay attached, as they do where the context stays.
            session, scope.session, scope.paused = scope.session, None, False
        yield
        if scope is not None and session is not None:
            scope.session = session

    def _end_context(self, scope: Scope, args: tuple[Any, ...]) -> None:
        error = leaving(exception_of(args), getattr(g, ENTERED, _NOTHING))
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
        elif self.settings.commit_contexts or is_of_command():
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
