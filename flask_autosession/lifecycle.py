"""Ties units of work to the life of requests and app contexts.

Flask offers no signal or function that stands where a unit must end (see docs/lifecycle), so the
methods that Flask itself calls are wrapped, on the application object and by their public names.
Flask 3.2 passes the context to them as an argument in front, Flask 3.1 does not: arguments are
handed through as they come.
"""

from __future__ import annotations

import functools
import logging
import sys
import weakref
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, current_app, g, has_app_context, has_request_context, request
from werkzeug.exceptions import HTTPException, InternalServerError

from .config import Settings
from .state import Frame, Phase
from .unit import Scope

logger = logging.getLogger("flask_autosession")

_SCOPE = "_autosession"
_IN_FLIGHT = "_autosession_in_flight"
_OUTER = "flask_autosession.outer"


class Lifecycle:
    """One application's requests and contexts.

    :param app: The application.
    :param settings: Its configuration.
    :param success: Tells whether a response says success.
    """

    def __init__(
        self, app: Flask, settings: Settings, success: Callable[[Response], bool]
    ) -> None:
        self._app = weakref.ref(app)
        self.settings = settings
        self._success = success
        self._warned: set[str] = set()

    @property
    def app(self) -> Flask:
        """The application; held weakly, so that it can go when nobody else needs it."""
        app = self._app()
        assert app is not None
        return app

    def install(self) -> None:
        """Wrap the application's methods."""
        for wrapper in (
            self.wsgi_app,
            self.app_context,
            self.request_context,
            self.full_dispatch_request,
            self.preprocess_request,
            self.dispatch_request,
            self.handle_exception,
            self.do_teardown_request,
            self.do_teardown_appcontext,
        ):
            name = wrapper.__name__
            original = getattr(self.app, name)
            wrapped = functools.update_wrapper(functools.partial(wrapper, original), original)
            setattr(self.app, name, wrapped)

    def scope(self) -> Scope:
        """Return the scope of the current app context; make it if there is none."""
        scope = scope_of_context()
        if scope is None:
            scope = Scope(self.app, self.settings, self._warned)
            setattr(g, _SCOPE, scope)
        return scope

    def _outer(self) -> Scope | None:
        return scope_of_context() if has_app_context() and current_app == self.app else None

    # Entering

    def wsgi_app(self, original: Any, *args: Any) -> Any:
        """Commit what an outer app context has done, so that the request sees it."""
        outer = self._outer()
        if outer is not None and outer.frame.phase is not Phase.MANUAL:
            outer.end_cleanly("a request begins inside of this context")
        return original(*args)

    def app_context(self, original: Any, *args: Any) -> Any:
        """Remember what is being handled right now: it is not an error of the new context."""
        context = original(*args)
        in_flight = sys.exception()
        if in_flight is not None:
            setattr(context.g, _IN_FLIGHT, in_flight)
        return context

    def request_context(self, original: Any, environ: Any, *args: Any) -> Any:
        """Remember the app context that a request may share, and then must leave alone."""
        if has_app_context():
            environ[_OUTER] = g._get_current_object()
        return original(environ, *args)

    # The request

    def full_dispatch_request(self, original: Any, *args: Any) -> Response:
        """Dispatch the request, and end its unit of work when all but the sending is done."""
        scope = self._open_frame()
        try:
            response: Response = original(*args)
            try:
                self._conclude(scope, response)
            except Exception as error:
                # As if the view had raised it: first the handlers of the application are asked.
                answer = self.app.handle_user_exception(*args, error)
                response = self.app.finalize_request(*args, answer)
                self._conclude(scope, response)
        except BaseException as error:
            scope.raised(error)
            raise
        return response

    def _open_frame(self) -> Scope:
        scope, current = self.scope(), request._get_current_object()  # type: ignore[attr-defined]
        if scope.frame.request is not current:
            scope.frames.append(Frame(_request_name, Phase.REQUEST, request=current))
        return scope

    def preprocess_request(self, original: Any, *args: Any) -> Any:
        """Run the functions that come before the view; one of them may answer in its place."""
        return self._dispatched(original, *args)

    def dispatch_request(self, original: Any, *args: Any) -> Any:
        """Run the view."""
        return self._dispatched(original, *args)

    def _dispatched(self, original: Any, *args: Any) -> Any:
        scope = self.scope()
        try:
            answer = original(*args)
            return answer if answer is None else self._flushed(scope, answer)
        except BaseException as error:
            if not self._control_flow(error):
                scope.raised(error)
            raise

    def _flushed(self, scope: Scope, answer: Any) -> Any:
        # What fails in the flush is the view's own doing and goes to its error handlers; and a
        # session that saves itself in the same database must not trip over it later.
        if scope.session is None or not scope.unsaved or scope.failure is not None:
            return answer
        try:
            response = self.app.make_response(answer)
        except Exception:
            return answer  # Flask will fail the same way, in the place it has for it.
        if self._success(response):
            scope.session.flush()
        return response

    def _control_flow(self, error: BaseException) -> bool:
        if not isinstance(error, HTTPException):
            return False
        status = error.code if error.response is None else error.response.status_code
        return status is not None and status < self.settings.rollback_from_status

    def _conclude(self, scope: Scope, response: Response) -> None:
        scope.conclude(self._success(response), last=not _is_shared())

    def handle_exception(self, original: Any, *args: Any) -> Response:
        """Let the handler for 500 answer; its own work is a unit of work as well."""
        scope = self._open_frame()
        try:
            response: Response = original(*args)
        except BaseException as error:
            scope.raised(error)
            raise
        try:
            self._conclude(scope, response)
        except Exception as error:
            scope.raised(error)
            logger.exception("%s: the work of the error handler failed", scope.frame.name())
            response = self.app.make_response(InternalServerError().get_response())
        return response

    # Leaving

    def do_teardown_request(self, original: Any, *args: Any) -> None:
        """Note that the request's fate is decided, before the teardown functions run."""
        scope, shared = self.scope(), _is_shared()
        current = request._get_current_object()  # type: ignore[attr-defined]
        dispatched = scope.frame.request is current
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
        error = next((arg for arg in args if isinstance(arg, BaseException)), None)
        phase, scope.frame.phase = scope.frame.phase, Phase.DECIDED
        if phase is Phase.UNDISPATCHED:
            scope.leftovers(
                "no request was dispatched in this request context; wrap the code in"
                " 'with auto.unit():'"
            )
        elif phase is Phase.DECIDED:
            scope.leftovers("it was written after the response was decided")
        elif error is not None and not _is_clean(error):
            scope.raised(error)
        elif self.settings.commit_contexts:
            scope.end_cleanly("the context was left", last=True)
        else:
            scope.rollback("AUTOSESSION_COMMIT_CONTEXTS is False", last=True)

    def _remove(self) -> None:
        scope = scope_of_context()
        if scope is not None:
            scope.leftovers("it was written while the context was torn down")
            scope.remove()
            if not has_request_context():
                delattr(g, _SCOPE)  # the same context may be pushed again


def scope_of_context() -> Scope | None:
    """Return the scope of the current app context, if it has one already."""
    scope: Scope | None = getattr(g, _SCOPE, None)
    return scope


def _request_name() -> str:
    return f"{request.method} {request.path}" if has_request_context() else "a request"


def _is_shared() -> bool:
    """Whether the current request uses an app context that was there before it."""
    outer = request.environ.get(_OUTER)
    return outer is not None and outer is g._get_current_object()


def _is_clean(error: BaseException) -> bool:
    if error is getattr(g, _IN_FLIGHT, None):
        return True
    return isinstance(error, SystemExit) and error.code in (None, 0)
