"""Units of work of app contexts: whose a context is, and what follows when it is left."""

from __future__ import annotations

import sys
import weakref
from typing import Any, cast

from flask import Flask, g, has_app_context, has_request_context, request

from .config import Settings
from .scope import Scope
from .state import Phase

SCOPE: str = "_autosession"
IN_FLIGHT: str = "_autosession_in_flight"
OUTER: str = "flask_autosession.outer"


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


def is_clean(error: BaseException) -> bool:
    """Whether an exception that is about while a context is left is none of its own."""
    return error is getattr(g, IN_FLIGHT, None) or exits_cleanly(error)


def exits_cleanly(error: BaseException) -> bool:
    """Whether an exception is sys.exit() with a code that says success."""
    return isinstance(error, SystemExit) and error.code in (None, 0)


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

    def app_context(self, original: Any, *args: Any) -> Any:
        """Remember what is being handled right now: it is not an error of the new context."""
        context = original(*args)
        in_flight = sys.exception()
        if in_flight is not None:
            setattr(context.g, IN_FLIGHT, in_flight)
        return context

    def request_context(self, original: Any, environ: Any, *args: Any) -> Any:
        """Remember the app context that a request may share, and then must leave alone."""
        if has_app_context():
            environ[OUTER] = g._get_current_object()
        return original(environ, *args)

    def do_teardown_request(self, original: Any, *args: Any) -> None:
        """Note that the request's fate is decided, before the teardown functions run."""
        scope, shared = self.scope(), is_shared()
        dispatched = scope.frame.request is current_request()
        if dispatched and scope.frame.running:
            # The end of a copy, made by copy_current_request_context, in the same app context.
            original(*args)
            return
        scope.of_request = scope.of_request or not shared
        if dispatched:
            scope.frame.phase = Phase.DECIDED
        elif not shared and scope.frame.phase is Phase.CONTEXT:
            scope.frame.phase = Phase.UNDISPATCHED
        try:
            original(*args)
        finally:
            if dispatched:
                scope.leftovers("it was written after the response was decided", last=not shared)
                scope.frames.pop()
                if not shared:
                    scope.frame.phase = Phase.DECIDED

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
        # An older click leaves the context while its exception is handled, but does not pass it.
        error = next((arg for arg in args if isinstance(arg, BaseException)), sys.exception())
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
        elif error is not None and not is_clean(error):
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
