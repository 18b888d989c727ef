"""Ties units of work to the life of requests and app contexts.

Flask offers no signal or function that stands where a unit must end (see docs/lifecycle), so the
methods that it calls are wrapped. Flask 3.2 passes them the context in front: arguments are handed
through as they come.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from threading import get_ident
from typing import Any, cast
from weakref import WeakKeyDictionary

from flask import Flask, Response, current_app, request_finished
from werkzeug.exceptions import InternalServerError

from .config import Settings
from .contexts import ContextHooks
from .current import (
    app_contexts,
    current_context,
    current_request,
    dispatches_another,
    is_dispatched,
    request_name,
    scope_in,
)
from .origins import is_shared, serving, stands_alone
from .phases import DECIDED, REQUEST
from .scope import Scope
from .state import Frame
from .streams import end_dispatch, follow, read_here, refuse
from .wrapping import Wrapped, overrides, watched

logger: logging.Logger = logging.getLogger("flask_autosession")
Rule = Callable[[Response], bool]
lifecycles: WeakKeyDictionary[Flask, Lifecycle] = WeakKeyDictionary()
"""What ties each application that has one; for :mod:`flask_autosession.testing`."""


class Lifecycle(ContextHooks):
    """One application's requests and contexts; ``success`` tells which responses say success."""

    def __init__(self, owner: object, app: Flask, settings: Settings, success: Rule) -> None:
        super().__init__(owner, app, settings)
        self._success = success

    def install(self) -> None:
        """Wrap the application's methods."""
        lifecycles[self.app] = self
        answers_itself = overrides(self.app, "full_dispatch_request")
        view = (self.preprocess_request, self.dispatch_request) if answers_itself else ()
        begin = (self.wsgi_app, self.app_context, self.request_context, self.full_dispatch_request)
        answer = (self.process_response, self.handle_user_exception, self.handle_exception)
        end = (self.do_teardown_request, self.do_teardown_appcontext)
        for wrapper in (*view, *begin, *answer, *end):
            self.wrap(wrapper)
        commands = cast(Any, self.app.cli)
        commands.invoke = functools.partial(self.invoke_command, commands.invoke)

    def wsgi_app(self, original: Wrapped) -> Wrapped:
        """Commit what an outer app context has done, so that the request sees it."""

        def wsgi_app(*args: Any) -> Any:
            if app_contexts.get(None) is not None:
                return self._serve_inside(original, args)
            serving[0] = get_ident()
            try:
                return original(*args)
            except BaseException:
                serving[0] = None  # there may have been no context
                raise

        return wsgi_app

    def _serve_inside(self, original: Wrapped, args: tuple[Any, ...]) -> Any:
        outer = self.scope() if current_app == self.app else None
        if outer is not None and not stands_alone(outer):
            # A request made by a view, whose own unit is not over: neither may end the other's.
            with self.app.app_context():
                return read_here(original(*args), is_shared)
        if outer is not None:
            outer.end_cleanly("a request begins inside of this context")
        return original(*args)

    def full_dispatch_request(self, original: Wrapped) -> Wrapped:
        """Dispatch the request, and end its unit of work when all but the sending is done."""

        methods, front = vars(self.app), [original]

        def full_dispatch_request(*args: Any) -> Response:
            if methods["handle_user_exception"] is not front[0]:
                # Flask-RESTX, for one, puts its own in front, and answers without asking the rest.
                self.put_in_front(self.handle_user_exception, self.handle_exception)
                front[0] = methods["handle_user_exception"]
            context = current_context()
            found = getattr(context, "autosession", None)
            if found is None:
                context.autosession = True
            elif dispatches_another(found):
                with self.app.app_context():
                    return full_dispatch_request(*args)
            else:
                self._enter(current_request())
            try:
                response: Response = original(*args)
                if context.autosession is not True or type(response.response) is not list:
                    return self._decide(scope_in(context) or self.scope(), response)
            except BaseException as error:
                scope = self.scope()
                if error is not scope.frame.refused:
                    scope.raised(error)
                    end_dispatch(scope.frame)
                    raise
                # As if the view had raised it: first the handlers of the application are asked.
                return self._answer(scope, self._ask_handlers, *args, error)
            # Nothing is to be ended, and nothing will be made behind the response.
            context.autosession = False
            return response

        return full_dispatch_request

    def _decide(self, scope: Scope, response: Response) -> Response:
        if scope.frame.errored:
            response = self._concluded(scope, response)
        else:
            self._conclude(scope, response)
        end_dispatch(scope.frame)
        return response

    def _ask_handlers(self, *args: Any) -> Any:
        app = cast(Any, self.app)
        return app.finalize_request(*args[:-1], app.handle_user_exception(*args))

    def _answer(self, scope: Scope, handler: Wrapped, *args: Any) -> Response:
        try:
            return self._concluded(scope, handler(*args))
        except BaseException as error:
            scope.raised(error)
            raise
        finally:
            end_dispatch(scope.frame)

    def _enter(self, current: object) -> Scope:
        scope = self.scope()
        if scope.frame.request is not current:
            scope.frame = Frame(request_name, REQUEST, current, outer=scope.frame)
        frame = scope.frame
        frame.phase, frame.status, frame.running = REQUEST, None, True
        frame.body, frame.shared = None, is_shared()
        return scope

    def process_response(self, original: Wrapped) -> Wrapped:
        """Run the after_request functions between a flush and, if it comes to that, the rollback.

        The flush is the end of dispatch: what fails in it is the view's own doing, and a
        flask.session that is saved in the same database must not trip over it. A failure is
        rolled back at once, so that no receiver of request_finished can commit it; success has to
        wait for those, because one of them may still raise.
        """

        def process_response(*args: Any) -> Response:
            context = current_context()
            if getattr(context, "autosession", None) is not True:
                scope = scope_in(context)
                if scope is not None and is_dispatched(scope) and not scope.frame.errored:
                    self._flush(scope, args[-1])
                response: Response = original(*args)
                self._roll_back_failure(scope or scope_in(context), response)
                return response
            response = original(*args)
            if context.autosession is not True:  # a function has touched the session
                self._roll_back_failure(scope_in(context), response)
            elif request_finished.receivers and not self._success(response):
                self._conclude(self.scope(), response)  # before one of them does
            return response

        return process_response

    def _flush(self, scope: Scope, response: Response) -> None:
        if self._success(response):
            try:
                scope.flush()
            except Exception as error:
                refuse(scope, response, error)
                raise

    def _conclude(self, scope: Scope, response: Response) -> None:
        frame, success = scope.frame, self._success(response)
        frame.status = response.status_code
        phase, streamed = frame.phase, type(response.response) is not list
        try:
            # A stream that goes on with the objects must not write what they were before.
            stale = success and streamed and scope.unit.bypassed
            scope.conclude(success, last=not (frame.shared or stale))
        except Exception as error:
            refuse(scope, response, error)
            raise
        if phase is not DECIDED and streamed:
            follow(frame, response, success=success and phase is REQUEST)

    def _concluded(self, scope: Scope, response: Response) -> Response:
        try:
            self._conclude(scope, response)
        except Exception:
            # The handlers were asked once. Nobody is asked again, or it might go on for ever.
            logger.exception("%s: the work of an error handler failed", str(scope.frame))
            return self.app.make_response(InternalServerError().get_response())
        return response

    def _roll_back_failure(self, scope: Scope | None, response: Response) -> None:
        if scope is not None and is_dispatched(scope) and not self._success(response):
            self._conclude(scope, response)

    def handle_user_exception(self, original: Wrapped) -> Wrapped:
        """Roll back at once what has raised, before any error handler runs."""

        def handle_user_exception(*args: Any) -> Any:
            self._roll_back(*args)
            return original(*args)

        return handle_user_exception

    def preprocess_request(self, original: Wrapped) -> Wrapped:
        """Roll back at once what a function that comes before the view has raised."""
        return watched(original, self._roll_back)

    def dispatch_request(self, original: Wrapped) -> Wrapped:
        """Roll back at once what the view has raised."""
        return watched(original, self._roll_back)

    def handle_exception(self, original: Wrapped) -> Wrapped:
        """Let the handler for 500 answer; its own work is a unit of work as well."""

        def handle_exception(*args: Any) -> Response:
            scope = self._enter(current_request())
            self._roll_back(*args)
            return self._answer(scope, original, *args)

        return handle_exception

    def _roll_back(self, *args: Any) -> None:
        scope, error = self.scope(), next(arg for arg in args if isinstance(arg, BaseException))
        if not scope.settings.is_control_flow(error):
            scope.raised(error)
