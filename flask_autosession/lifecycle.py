"""Ties units of work to the life of requests and app contexts.

Flask offers no signal or function that stands where a unit must end (see docs/lifecycle), so the
methods that Flask itself calls are wrapped, on the application object and by their public names.
Flask 3.2 passes the context to them as an argument in front, Flask 3.1 does not: arguments are
handed through as they come.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, cast
from weakref import WeakKeyDictionary

from flask import Flask, Response, current_app, has_app_context, has_request_context
from werkzeug.exceptions import InternalServerError

from .body import Body, Progress
from .config import Settings
from .contexts import (
    ContextHooks,
    is_shared,
    request_name,
    scope_of_context,
    stands_alone,
)
from .scope import Scope
from .state import Frame, Phase
from .streams import current_request

logger: logging.Logger = logging.getLogger("flask_autosession")


lifecycles: WeakKeyDictionary[Flask, Lifecycle] = WeakKeyDictionary()
"""What ties each application that has an AutoSession; for :mod:`flask_autosession.testing`."""


class Lifecycle(ContextHooks):
    """One application's requests and contexts.

    :param app: The application.
    :param settings: Its configuration.
    :param success: Tells whether a response says success.
    """

    def __init__(self, app: Flask, settings: Settings, success: Callable[[Response], bool]) -> None:
        super().__init__(app, settings)
        self._success = success

    def install(self) -> None:
        """Wrap the application's methods."""
        lifecycles[self.app] = self
        for wrapper in (
            self.wsgi_app,
            self.app_context,
            self.request_context,
            self.full_dispatch_request,
            self.preprocess_request,
            self.dispatch_request,
            self.process_response,
            self.handle_user_exception,
            self.handle_exception,
            self.do_teardown_request,
            self.do_teardown_appcontext,
        ):
            self._wrap(wrapper)
        commands = cast(Any, self.app.cli)
        commands.invoke = functools.partial(self.invoke_command, commands.invoke)

    def _wrap(self, wrapper: Callable[..., Any]) -> None:
        name = wrapper.__name__
        original = getattr(self.app, name)
        wrapped = functools.update_wrapper(functools.partial(wrapper, original), original)
        setattr(self.app, name, wrapped)

    def _outer(self) -> Scope | None:
        return scope_of_context() if has_app_context() and current_app == self.app else None

    # Entering

    def wsgi_app(self, original: Any, *args: Any) -> Any:
        """Commit what an outer app context has done, so that the request sees it."""
        if getattr(self.app.handle_exception, "func", None) != self.handle_exception:
            # Flask-RESTX, for one, puts its own in front and answers without asking the rest.
            self._wrap(self.handle_exception)
        outer = self._outer()
        if outer is not None and not stands_alone(outer):
            # A request made by a view, whose own unit is not over: neither may end the other's.
            with self.app.app_context():
                return _read_here(original(*args))
        if outer is not None:
            outer.end_cleanly("a request begins inside of this context")
        return original(*args)

    # The request

    def full_dispatch_request(self, original: Any, *args: Any) -> Response:
        """Dispatch the request, and end its unit of work when all but the sending is done."""
        app = cast(Any, self.app)
        with self._running() as scope:
            try:
                response: Response = original(*args)
                if not scope.frame.errored:
                    self._conclude(scope, response)
            except Exception as error:
                if error is not scope.frame.refused:
                    raise
                # As if the view had raised it: first the handlers of the application are asked.
                answer = app.handle_user_exception(*args, error)
                response = app.finalize_request(*args, answer)
            return self._concluded(scope, response)

    @contextmanager
    def _running(self) -> Generator[Scope]:
        scope, current = self.scope(), current_request()
        if scope.frame.request is not current:
            scope.frames.append(Frame(request_name, Phase.REQUEST, request=current))
        frame = scope.frame
        frame.phase, frame.status, frame.running = Phase.REQUEST, None, True
        scope.frame.body = None
        try:
            yield scope
        except BaseException as error:
            scope.raised(error)
            raise
        finally:
            frame.running = False
            if frame.body is not None:
                frame.phase = frame.behind

    def preprocess_request(self, original: Any, *args: Any) -> Any:
        """Run the functions that come before the view; one of them may answer in its place."""
        return self._dispatched(original, *args)

    def dispatch_request(self, original: Any, *args: Any) -> Any:
        """Run the view."""
        return self._dispatched(original, *args)

    def _dispatched(self, original: Any, *args: Any) -> Any:
        try:
            return original(*args)
        except BaseException as error:
            self._roll_back(error)
            raise

    def process_response(self, original: Any, *args: Any) -> Response:
        """Run the after_request functions between a flush and, if it comes to that, the rollback.

        The flush is the end of dispatch: what fails in it is the view's own doing, and a
        flask.session that is saved in the same database must not trip over it. A failure is
        rolled back at once, so that nothing that receives request_finished can commit it; success
        has to wait for those receivers, because one of them may still raise.
        """
        scope, before = self.scope(), next(arg for arg in args if isinstance(arg, Response))
        dispatched = scope.frame.running and scope.frame.request is current_request()
        if dispatched and not scope.frame.errored and self._success(before):
            with self._refusing(scope, before):
                scope.flush()
        response: Response = original(*args)
        if dispatched and not self._success(response):
            self._conclude(scope, response)
        return response

    @contextmanager
    def _refusing(self, scope: Scope, response: Response) -> Generator[None]:
        try:
            yield
        except Exception as error:
            scope.frame.refused = error
            scope.raised(error)
            with suppress(Exception):
                response.close()  # as a server does with what it does not send
            raise

    def _conclude(self, scope: Scope, response: Response) -> None:
        frame, success = scope.frame, self._success(response)
        frame.status = response.status_code
        phase = frame.phase
        with self._refusing(scope, response):
            scope.conclude(success, last=not is_shared())
        if phase is not Phase.DECIDED and response.is_streamed and not response.direct_passthrough:
            frame.body = Progress()
            response.response = Body(response.response, frame.body)
            frame.behind = Phase.STREAM if success and phase is Phase.REQUEST else Phase.DECIDED

    def _concluded(self, scope: Scope, response: Response) -> Response:
        try:
            self._conclude(scope, response)
        except Exception:
            # The handlers were asked once. Nobody is asked again, or it might go on for ever.
            logger.exception("%s: the work of an error handler failed", str(scope.frame))
            return self.app.make_response(InternalServerError().get_response())
        return response

    def handle_user_exception(self, original: Any, *args: Any) -> Any:
        """Roll back what was raised past the view, by a receiver of request_started for example."""
        self._roll_back(*args)
        return original(*args)

    def handle_exception(self, original: Any, *args: Any) -> Response:
        """Let the handler for 500 answer; its own work is a unit of work as well."""
        with self._running() as scope:
            self._roll_back(*args)
            return self._concluded(scope, original(*args))

    def _roll_back(self, *args: Any) -> None:
        scope, error = self.scope(), next(arg for arg in args if isinstance(arg, BaseException))
        if not scope.is_control_flow(error):
            scope.raised(error)


def _read_here(body: Any) -> Any:
    # Flask 3.0 keeps a request's context until its stream is read: here, or in another app context.
    if not has_request_context() or not is_shared():
        return body
    try:
        return list(body)
    finally:
        body.close()
