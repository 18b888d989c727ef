"""What Celery tasks become: units of work, with messages that can wait for the commit."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from celery import Task, uuid
from celery.backends.base import DisabledBackend
from celery.canvas import Signature
from celery.result import AsyncResult, ResultBase
from celery.utils.saferepr import saferepr
from flask import Flask, current_app, has_app_context
from kombu.serialization import dumps, loads

from .extension import AutoSession

if TYPE_CHECKING:
    _Task = Task[..., Any]
else:
    _Task = Task

logger: logging.Logger = logging.getLogger("flask_autosession")


class UnitTask(_Task):
    """What the tasks of a Celery application inherit from once it is tied to Flask.

    The body of each runs in an app context and a unit of work of its own, inside of
    ``autoretry_for``: a commit that fails is a failure of the task.

    .. versionadded:: 0.1.0
    """

    abstract = True

    def __new__(cls, *args: Any, **kwargs: Any) -> UnitTask:
        # On the instance, so that super().run() in a task's class stays in the unit that is there.
        # Not in __init__(): Celery's own class has none, so a task's class need not call it.
        task = super().__new__(cls)
        make_unit(task, "run")
        return task

    def replace(self, sig: Any) -> Any:
        """Commit what the task has done so far, and let another task go on in its place.

        :param sig: The signature of that task.
        :raises celery.exceptions.Ignore: Always in a worker: that is how Celery ends this one.
        """
        auto = _current_unit()
        if auto is not None:
            auto.commit()
        return super().replace(sig)

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> AsyncResult[Any]:
        """Send the task as ``delay()`` does, once the current unit of work is committed.

        :return: The result to be, its id known already. See :meth:`apply_async_on_commit`.
        """
        return self.apply_async_on_commit(args, kwargs)

    def apply_async_on_commit(
        self,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Send the task as ``apply_async()`` does, once the current unit of work is committed.

        A unit that is rolled back sends nothing. Where there is no unit, it is sent at once. If
        the broker is down after the commit, that is logged, and the commit stands. The idea is
        that of Celery's support for Django.

        :param args: The task's positional arguments, as they are now.
        :param kwargs: Its keyword arguments, as they are now.
        :param options: What ``apply_async()`` takes beside them.
        :return: The result to be, its id known already.
        :raises TypeError: At once, if the task does not take these arguments.
        :raises kombu.exceptions.EncodeError: At once, if they cannot be serialized.
        """
        options.setdefault("task_id", uuid())
        args, kwargs = self._freeze(args or (), kwargs or {}, options)
        send = functools.partial(self.apply_async, args, kwargs, **options)
        told = options.get("argsrepr") or saferepr(args)
        told_named = options.get("kwargsrepr") or saferepr(kwargs)
        _after_commit(send, f"{self.name}[{options['task_id']}] args={told} kwargs={told_named}")
        return self.AsyncResult(options["task_id"])

    def _freeze(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Behind the commit it would be too late to tell the caller what is wrong.
        header = getattr(self, "__header__", None)  # which a task that is a class does not have
        if self.typing and header is not None:
            header(*args, **kwargs)
        serializer = options.get("serializer") or self.serializer
        _copy((options.get("link"), options.get("link_error")), serializer)
        if any(hasattr(arg, "model_dump") for arg in (*args, *kwargs.values())):
            return args, kwargs  # Celery itself turns models of pydantic into what it can send
        args, kwargs = _copy((args, kwargs), serializer)
        return tuple(args), kwargs


def make_unit(task: Any, name: str) -> None:
    """Have a function of a task run as a unit of work.

    :param task: The task, which finds its Flask application through its Celery application.
    :param name: The name of the function.
    """
    run = getattr(task, name)

    @functools.wraps(run)
    def run_as_unit(*args: Any, **kwargs: Any) -> Any:
        app: Flask = task.app.flask_app
        auto: AutoSession = app.extensions["autosession"]
        if not auto.is_enabled(app):
            with app.app_context():
                return run(*args, **kwargs)
        with auto.unit(app):
            try:
                result = run(*args, **kwargs)
                _check_result(task, result)
            except BaseException:
                # A redirect, SystemExit(0): whatever is raised, Celery calls it no success.
                auto.doom()
                raise
        return result

    setattr(task, name, run_as_unit)


def _check_result(task: Any, result: Any) -> None:
    # Celery encodes it behind the commit, and calls the task failed if it cannot.
    request, backend = task.request, task.backend
    if request.called_directly or request.is_eager or isinstance(backend, DisabledBackend):
        return
    if request.callbacks or request.chain or not (request.ignore_result or task.ignore_result):
        backend.encode(backend.prepare_value(result))


def apply_async_on_commit(
    signature: Signature[Any],
    args: tuple[Any, ...] | None = None,
    kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> ResultBase:
    """Send a signature, chain, group or chord once the current unit of work is committed.

    Like :meth:`UnitTask.apply_async_on_commit`, for what ``task.s()``, ``task.si()`` and the
    primitives of Celery's canvas return.

    :param signature: The signature, which is copied as it is now.
    :param args: Arguments in front of those that it has.
    :param kwargs: Keyword arguments beside those that it has.
    :param options: What its ``apply_async()`` takes beside them.
    :return: The result to be, its id known already: an ``AsyncResult``, of a group a
        ``GroupResult``.
    :raises kombu.exceptions.EncodeError: At once, if its arguments cannot be serialized.

    .. versionadded:: 0.1.0
    """
    app = cast(Any, signature).app
    clone = cast(Any, signature).clone(args, kwargs, **options)
    frozen = cast(Any, Signature).from_dict(_copy(clone, app.conf.task_serializer), app=app)
    result = frozen.freeze()
    _after_commit(frozen.apply_async, f"{frozen!r}[{result.id}]")
    return cast(ResultBase, result)


def delay_on_commit(signature: Signature[Any], *args: Any, **kwargs: Any) -> ResultBase:
    """Send a signature, chain, group or chord once the current unit of work is committed.

    :return: The result to be, its id known already. See :func:`apply_async_on_commit`.

    .. versionadded:: 0.1.0
    """
    return apply_async_on_commit(signature, args, kwargs)


def _copy(value: Any, serializer: str | None) -> Any:
    content_type, encoding, data = dumps(value, serializer)
    return loads(data, content_type, encoding, accept=[content_type])


def _current_unit() -> AutoSession | None:
    if not has_app_context():
        return None
    auto: AutoSession | None = current_app.extensions.get("autosession")
    app = cast(Any, current_app)._get_current_object()
    return auto if auto is not None and auto.is_enabled(app) else None


def _after_commit(send: Callable[[], Any], message: str) -> None:
    auto = _current_unit()
    if auto is None:
        send()
    else:
        auto.on_commit(functools.partial(_send, send, message))


def _send(send: Callable[[], Any], message: str) -> None:
    try:
        send()
    except Exception:
        logger.exception(
            "A message could not be sent. The commit before it stands, so send it again: %s",
            message,
        )
