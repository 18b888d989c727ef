"""What is current: the app context, the request, the scope that they share.

Flask's proxies look these up anew, through several functions, each time one of their attributes is
asked for. That is nothing for a view, and too much for what happens on every request.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any

from flask import g, has_request_context, request

from .scope import Scope


def _stands_on(proxy: Any) -> ContextVar[Any]:
    # Where nothing is current, a proxy's attribute is its own. This may be imported by a view.
    variable: ContextVar[Any] = Context().run(getattr, proxy, "__wrapped__")
    return variable


app_contexts: ContextVar[Any] = _stands_on(g)
"""Holds the current app context, if there is one.

Its attribute ``autosession`` is its scope. Before there is one it says whether a request is being
dispatched in a context of its own; False when that is decided. An attribute of ``flask.g`` would be
found by functions of Python, and so would cost a request without a database more than all the rest.
"""
current_context: Callable[[], Any] = app_contexts.get
"""Returns the current app context; raises LookupError if there is none."""
request_contexts: ContextVar[Any] = _stands_on(request)
"""Holds that which has the current request; from Flask 3.2 on it is the app context, too."""


def scope_in(context: Any) -> Scope | None:
    """Return the scope of an app context, if it has one already."""
    found = getattr(context, "autosession", None)
    return found if isinstance(found, Scope) else None


def current_scope() -> Scope | None:
    """Return the scope of the current app context, if there are both."""
    return scope_in(app_contexts.get(None))


def current_request() -> Any:
    """Return the current request itself, which the proxy stands for.

    :raises LookupError: If there is none.
    """
    return request_contexts.get().request


def request_name() -> str:
    """Return what the current request is called in the log."""
    return f"{request.method} {request.path}" if has_request_context() else "a request"


def is_dispatched(scope: Scope) -> bool:
    """Whether what a scope is in right now is the dispatch of the current request."""
    frame = scope.frame
    return frame.running and frame.request is request_contexts.get().request


def dispatches_another(found: object) -> bool:
    """Whether an app context is busy with a request that is not the current one.

    A view may push the context of another request, which then shares the view's app context.

    :param found: The attribute ``autosession`` of the app context.
    """
    return isinstance(found, Scope) and found.frame.running and not is_dispatched(found)
