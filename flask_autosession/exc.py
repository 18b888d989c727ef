"""Every exception of Flask-AutoSession. All of them derive from :class:`AutoSessionError`."""

from __future__ import annotations

from sqlalchemy.exc import PendingRollbackError


class AutoSessionError(Exception):
    """The base of every error that Flask-AutoSession raises on its own account.

    Errors of the database and of SQLAlchemy are passed on as they are.

    .. versionadded:: 0.1.0
    """

    _text: str | None = None

    def _say(self, text: str, *args: str | None) -> None:
        # With args from which it can be made again, it passes through task queues unharmed.
        self._text = text
        self.args = args

    def __str__(self) -> str:
        return super().__str__() if self._text is None else self._text

    def __reduce__(self) -> tuple[type[AutoSessionError], tuple[str | None, ...]]:
        return type(self), self.args


class ConfigError(AutoSessionError):
    """A configuration key is unknown or has a value it cannot take, or the set-up is wrong.

    Raised while the application starts, by ``AutoSession(app)`` or ``init_app(app)``.

    .. versionadded:: 0.1.0
    """


class DoomedError(AutoSessionError, PendingRollbackError):
    """The unit of work can only be rolled back, and something tried to write or commit in it.

    :param first_failure: The exception that doomed the unit, or None if ``auto.doom()`` did. Behind
        a task queue it is not there any more, and its name is given instead.
    :param where: The place in the application's code where that happened, as ``file:line``.

    It is a :exc:`sqlalchemy.exc.PendingRollbackError` too, so that code that already
    deals with SQLAlchemy's own error for this state keeps working.

    .. versionadded:: 0.1.0
    """

    def __init__(self, first_failure: BaseException | str | None, where: str) -> None:
        self.first_failure: BaseException | None = None
        if isinstance(first_failure, BaseException):
            self.first_failure = first_failure
            name: str | None = type(first_failure).__name__
        else:
            name = first_failure
        self.where = where
        # The class alone: a database's message quotes the row's values, and this
        # sentence ends up in logs. The whole error is the ``__cause__``.
        cause = "auto.doom() was called" if name is None else f"{name} was raised"
        advice = (
            "auto.commit() contradicts that: take one of the two out."
            if name is None
            else "Let that exception leave the view, call db.session.rollback() to start"
            " over, or guard the write that may fail with 'with auto.savepoint():'."
        )
        text = f"This unit of work can only be rolled back: {cause} at {where}. {advice}"
        self._say(text, name, where)
        self.__cause__: BaseException | None = self.first_failure


class ExplicitCommitError(AutoSessionError):
    """``db.session.commit()`` was called in a request while that is forbidden.

    :param where: The place of the call, as ``file:line``.

    .. versionadded:: 0.1.0
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._say(
            f"db.session.commit() was called at {where}, but"
            " AUTOSESSION_EXPLICIT_COMMIT is 'forbid': the request is committed at its"
            " end. Remove the call, use auto.commit() where a commit in between is"
            " meant, or mark the view with @auto.manual.",
            where,
        )


class NoUnitError(AutoSessionError):
    """A function that belongs to a unit of work was called where there is none.

    :param name: The function's name, as written by the caller.

    .. versionadded:: 0.1.0
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._say(
            f"{name} was called outside of a unit of work. Call it inside a request, a"
            " command, 'with app.app_context():' or 'with auto.unit():' of an"
            " application that AutoSession was initialised for (and that does not set"
            " AUTOSESSION_ENABLED to False).",
            name,
        )


class SharedConnectionError(AutoSessionError):
    """Two contexts wrote at the same time through the one connection of an in-memory SQLite.

    Raised instead of mixing their transactions: with one connection, the commit of
    either would commit both, and the rollback of either undo both.

    .. versionadded:: 0.1.0
    """

    def __init__(self) -> None:
        self._say(
            "Another context has not yet ended its unit of work on this in-memory"
            " SQLite database, and all contexts share its one connection: only one can"
            " write at a time. End the other one first, or use a database file"
            " (sqlite:///app.db) where contexts write side by side."
        )


class IsolationError(AutoSessionError):
    """A test did what cannot be undone at its end, or left something behind.

    Raised by :mod:`flask_autosession.testing`, at the place itself or at the test's end.

    :param sentences: What happened, where, and what to do.

    .. versionadded:: 0.1.0
    """

    def __init__(self, *sentences: str) -> None:
        self._say(" ".join(sentences), *sentences)
