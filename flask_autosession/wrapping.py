"""Methods of an application, wrapped on that application object and by their public names."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from flask import Flask

Wrapped = Callable[..., Any]
Wrapper = Callable[[Wrapped], Wrapped]


class Wrapping:
    """One application whose methods are wrapped by methods of the same names.

    :param app: The application.
    """

    def __init__(self, app: Flask) -> None:
        self._app = weakref.ref(app)
        self._wrapped: dict[str, weakref.ref[Wrapped]] = {}

    @property
    def app(self) -> Flask:
        """The application; held weakly, so that it can go when nobody else needs it."""
        app = self._app()
        assert app is not None
        return app

    def wrap(self, wrapper: Wrapper) -> None:
        """Wrap the method that has the name of a function.

        :param wrapper: Takes the method as it was, and returns what takes its place.
        """
        name = wrapper.__name__
        original = getattr(self.app, name)
        wrapped = functools.update_wrapper(wrapper(original), original)
        setattr(self.app, name, wrapped)
        self._wrapped[name] = weakref.ref(wrapped)  # which knows the application

    def put_in_front(self, *wrappers: Wrapper) -> None:
        """Wrap methods again that others have wrapped since.

        :param wrappers: What was given to :meth:`wrap` before.
        """
        for wrapper in wrappers:
            name = wrapper.__name__
            if vars(self.app)[name] is not self._wrapped[name]():
                self.wrap(wrapper)


def overrides(app: Flask, name: str) -> bool:
    """Tell whether an application has a method of its own in place of Flask's.

    :param app: The application, before that method is wrapped.
    :param name: The method's name.
    """
    return getattr(getattr(app, name), "__func__", None) is not getattr(Flask, name)


def watched(original: Wrapped, failed: Callable[[BaseException], None]) -> Wrapped:
    """Return a function that tells of what another one raises, before it goes on.

    :param original: The other function.
    :param failed: Is told.
    """

    def call(*args: Any) -> Any:
        try:
            return original(*args)
        except BaseException as error:
            failed(error)
            raise

    return call
