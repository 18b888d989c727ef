"""Units of work of app contexts: whose a context is, and what follows when it is left."""

from __future__ import annotations

from typing import Any

import click
from flask import Flask, current_app, has_app_context, has_request_context

from .cli import adopt, begin, current_command, leave_shell, leaving
from .config import Settings
from .current import (
    app_contexts,
    current_context,
    current_request,
    current_scope,
    request_contexts,
    request_name,
    scope_in,
)
from .origins import (
    LEFTOVERS,
    exception_of,
    is_made_by,
    is_of_command,
    is_served,
    is_shared,
    note_outer,
    remember,
    stands_alone,
    what_was_entered,
)
from .phases import DECIDED, REQUEST, Phase
from .scope import Scope
from .state import Frame, app_context
from .streams import end_stream, pause_stream, resume_stream
from .wrapping import Wrapped, Wrapping


class ContextHooks(Wrapping):
    """What one application's contexts do when they are entered and left.

    :param owner: Its AutoSession.
    :param app: The application.
    :param settings: Its configuration.
    """

    def __init__(self, owner: object, app: Flask, settings: Settings) -> None:
        super().__init__(app)
        self._owner = owner
        self.settings: Settings = settings
        self._warned: set[str] = set()

    def scope(self) -> Scope:
        """Return the scope of the current app context; make it if there is none."""
        return current_scope() or self._make_scope()

    def _make_scope(self) -> Scope:
        # Most requests get one when they first touch the session, and many never do.
        context = app_contexts.get()
        running: bool | None = getattr(context, "autosession", None)
        if running is None:
            frame = Frame(app_context, Phase.CONTEXT)
        else:
            request = getattr(request_contexts.get(None), "request", None)
            frame = Frame(request_name, REQUEST if running else DECIDED, request)
            frame.running = running
        scope = context.autosession = Scope(self.app, self.settings, self._warned, frame)
        scope.owner, scope.of_request = self._owner, running is not None
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
        if is_made_by(root):
            adopt(scope, root)
        elif stands_alone(scope) and not is_served():
            begin(scope, root)

    def app_context(self, original: Wrapped) -> Wrapped:
        """Remember where the context was made."""

        def app_context(*args: Any) -> Any:
            context = original(*args)
            remember(context)
            return context

        return app_context

    def request_context(self, original: Wrapped) -> Wrapped:
        """Remember the app context that a request may share, and then must leave alone."""

        def request_context(*args: Any) -> Any:
            outer = app_contexts.get(None)
            if outer is not None:
                note_outer(args[0], outer)
                if outer.app == self.app:
                    self.scope()  # which makes that context look different from a request's own
            return original(*args)

        both = self.app_context(request_context)  # from Flask 3.2 on it is an app context, too
        return both if app_contexts is request_contexts else request_context

    def invoke_command(self, original: Any, command: click.Context) -> Any:
        """Run a command of ``app.cli`` in an app context, as the ``flask`` command does."""
        root = command.find_root()
        if has_app_context() and current_app == self.app:
            scope = self.scope()
            self.arrive(scope)
            inside = is_made_by(root) or scope.frame.request is root
        else:
            inside = False
        if not inside:
            command.with_resource(self.app.app_context())
        return original(command)

    def do_teardown_request(self, original: Wrapped) -> Wrapped:
        """Note that the request's fate is decided, before the teardown functions run."""

        def do_teardown_request(*args: Any) -> None:
            context = current_context()
            if getattr(context, "autosession", None) is not False:
                self._tear_down_request(context, original, args)
                return
            try:
                original(*args)
            finally:
                if context.autosession is not False:  # a teardown function has touched the session
                    self._tear_down_request(context, _nothing, args)

        return do_teardown_request

    def _tear_down_request(self, context: Any, original: Wrapped, args: tuple[Any, ...]) -> None:
        scope = scope_in(context) or self.scope()
        frame = scope.frame
        own = frame.request is not None and frame.outer is None and not frame.running
        if own and frame.phase is DECIDED and frame.body is None:
            # That of most requests: the context is their own, and nothing is made behind them.
            try:
                original(*args)
            finally:
                scope.leftovers("it was written after the response was decided")
        else:
            self._tear_down_any(scope, original, args)

    def _tear_down_any(self, scope: Scope, original: Wrapped, args: tuple[Any, ...]) -> None:
        shared = is_shared()
        resume_stream(scope)
        frame = scope.frame
        dispatched = frame.request is current_request()
        if dispatched and frame.running:
            # The end of a copy, made by copy_current_request_context, in the same app context.
            original(*args)
            return
        scope.of_request = scope.of_request or not shared
        if not dispatched:
            if not shared and frame.phase is Phase.CONTEXT:
                frame.phase = Phase.UNDISPATCHED
            original(*args)
            return
        error = exception_of(args)
        try:
            end_stream(scope, error, last=not shared)
        finally:
            scope.frame.phase = DECIDED
            try:
                original(*args)
            finally:
                scope.leftovers("it was written after the response was decided", last=not shared)
                scope.leave(frame)
                gone = isinstance(error, GeneratorExit)
                if frame.body is not None and not frame.body.started and not gone:
                    pause_stream(scope, frame, shared=shared)
                if not shared:
                    scope.frame.phase = DECIDED

    def do_teardown_appcontext(self, original: Wrapped) -> Wrapped:
        """End the context's unit of work, and remove its session whatever else fails."""

        def do_teardown_appcontext(*args: Any) -> None:
            context = current_context()
            if getattr(context, "autosession", None) is not False:
                self._tear_down_appcontext(context, original, args)
                return
            try:
                original(*args)
            finally:
                if context.autosession is not False:  # a teardown function has touched the session
                    _remove(context, scope_in(context))

        return do_teardown_appcontext

    def _tear_down_appcontext(self, context: Any, original: Wrapped, args: tuple[Any, ...]) -> None:
        scope = scope_in(context)
        try:
            if scope is not None:
                self._end_context(scope, args)
        finally:
            try:
                original(*args)
            finally:
                _remove(context, scope or scope_in(context))

    def _end_context(self, scope: Scope, args: tuple[Any, ...]) -> None:
        phase, scope.frame.phase = scope.frame.phase, DECIDED
        if phase is DECIDED or phase in LEFTOVERS:
            scope.leftovers(LEFTOVERS[phase])
        elif phase is Phase.SHELL:
            leave_shell(scope, last=True)
        else:
            error = leaving(exception_of(args), what_was_entered())
            if error is not None:
                scope.raised(error)
            elif self.settings.commit_contexts or is_of_command():
                scope.end_cleanly("the context was left", last=True)
            else:
                scope.rollback("AUTOSESSION_COMMIT_CONTEXTS is False", last=True)


def _remove(context: Any, scope: Scope | None) -> None:
    if scope is None:
        return
    # The view's objects stay attached for its stream, as they do where the context stays.
    paused, scope.paused = scope.paused, False
    try:
        scope.leftovers("it was written while the context was torn down", last=not paused)
    finally:
        if not paused:
            scope.remove()
        if not scope.of_request:
            del context.autosession  # the same context may be pushed again


def _nothing(*_: Any) -> None:
    pass
