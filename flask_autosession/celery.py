"""Celery tasks as units of work, and messages that are sent behind the commit.

Needs the extra ``celery``: ``pip install Flask-AutoSession[celery]``. No other module imports it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, cast
from weakref import WeakSet

from celery import Celery, Task, uuid
from celery.backends.base import DisabledBackend
from celery.canvas import Signature
from celery.result import AsyncResult, ResultBase
from celery.signals import worker_process_init
from celery.utils.saferepr import saferepr
from flask import Flask, current_app, has_app_context
from kombu.serialization import dumps
from kombu.utils import symbol_by_name

from .config import read_settings
from .exc import ConfigError, NoUnitError
from .extension import AutoSession

if TYPE_CHECKING:
    _Task = Task[..., Any]
else:
    _Task = Task

logger: logging.Logger = logging.getLogger("flask_autosession")

_tied: WeakSet[Flask] = WeakSet()


def celery_init_app(app: Flask, celery: Celery | None = None) -> Celery:
    """Tie a Celery application to a Flask application: each task is a unit of work.

    The name and the shape are those of the recipe in Flask's own documentation.

    :param app: The Flask application, after ``auto.init_app(app)``.
    :param celery: The Celery application. Without it one is made, configured from
        ``app.config["CELERY"]`` and made the default one, for ``@shared_task``.
    :return: The Celery application, which is ``app.extensions["celery"]`` from now on.
    :raises ConfigError: If the Flask application has no AutoSession yet, or the tasks of the
        Celery application have been made already.

    .. versionadded:: 0.1.0
    """
    if "autosession" not in app.extensions:
        raise ConfigError(
            f"The application {app.name!r} has no AutoSession yet. Call auto.init_app(app) before"
            " celery_init_app(app)."
        )
    if celery is None:
        celery = Celery(app.name)
        celery.config_from_object(cast(Any, app.config).get("CELERY", {}))
        celery.set_default()
    _give_tasks_units(app, celery)
    app.extensions["celery"] = celery
    _tied.add(app)
    return celery


def _give_tasks_units(app: Flask, celery: Any) -> None:
    base = symbol_by_name(celery.task_cls)
    if celery.finalized or issubclass(base, UnitTask):
        raise ConfigError(
            f"The Celery application {celery.main!r} has its tasks already, or another Flask"
            " application. Call celery_init_app() once for it, where it is made."
        )
    celery.task_cls = type("UnitTask", (UnitTask, base), {"abstract": True, "flask_app": app})
    if "Task" in vars(celery):
        del celery.Task  # made from the class before, because somebody has asked for it


class UnitTask(_Task):
    """What the tasks of a Celery application inherit from once it is tied to Flask.

    The body of each runs in an app context and a unit of work of its own, inside of
    ``autoretry_for``: a commit that fails is a failure of the task.
    """

    abstract = True
    flask_app: ClassVar[Flask]

    def __init__(self) -> None:
        # On the instance: super().run() in a task's class stays in the unit that is there.
        cast(Any, self).run = _as_unit(self, self.run)

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

        :param args: The task's positional arguments.
        :param kwargs: Its keyword arguments.
        :param options: What ``apply_async()`` takes beside them.
        :return: The result to be, its id known already.
        :raises TypeError: At once, if the task does not take these arguments.
        :raises kombu.exceptions.EncodeError: At once, if they cannot be serialized.
        """
        options.setdefault("task_id", uuid())
        self._check(args or (), kwargs or {}, options.get("serializer"))
        send = functools.partial(self.apply_async, args, kwargs, **options)
        told = options.get("argsrepr") or saferepr(args or ())
        told_named = options.get("kwargsrepr") or saferepr(kwargs or {})
        _after_commit(send, f"{self.name}[{options['task_id']}] args={told} kwargs={told_named}")
        return self.AsyncResult(options["task_id"])

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any], kind: str | None) -> None:
        # Behind the commit it would be too late to tell the caller.
        header = getattr(self, "__header__", None)  # which a task that is a class does not have
        if self.typing and header is not None:
            header(*args, **kwargs)
        # Celery itself makes what it can send of models of pydantic.
        plain = [arg for arg in (*args, *kwargs.values()) if not hasattr(arg, "model_dump")]
        dumps(plain, kind or self.serializer or self.app.conf.task_serializer)


def _as_unit(task: UnitTask, run: Callable[..., Any]) -> Callable[..., Any]:
    app = task.flask_app
    auto: AutoSession = app.extensions["autosession"]
    if not read_settings(app.config).enabled:
        return functools.wraps(run)(_in_context(app, run))

    @functools.wraps(run)
    def run_as_unit(*args: Any, **kwargs: Any) -> Any:
        with auto.unit(app):
            try:
                result = run(*args, **kwargs)
                _check_result(task, result)
            except BaseException:
                # A redirect, SystemExit(0): whatever is raised, Celery calls it no success.
                auto.doom()
                raise
        return result

    return run_as_unit


def _in_context(app: Flask, run: Callable[..., Any]) -> Callable[..., Any]:
    def run_in_context(*args: Any, **kwargs: Any) -> Any:
        with app.app_context():
            return run(*args, **kwargs)

    return run_in_context


def _check_result(task: UnitTask, result: Any) -> None:
    # Celery encodes it behind the commit, and calls the task failed if it cannot.
    request, backend = cast(Any, task.request), cast(Any, task.backend)
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

    :param signature: The signature, which is copied.
    :param args: Arguments in front of those that it has.
    :param kwargs: Keyword arguments beside those that it has.
    :param options: What its ``apply_async()`` takes beside them.
    :return: The result to be, its id known already: an ``AsyncResult``, of a group a
        ``GroupResult``.
    :raises kombu.exceptions.EncodeError: At once, if its arguments cannot be serialized.
    """
    frozen = cast(Any, signature).clone(args, kwargs, **options)
    dumps(frozen, frozen.app.conf.task_serializer)
    result = frozen.freeze()
    _after_commit(frozen.apply_async, f"{frozen!r}[{result.id}]")
    return cast(ResultBase, result)


def delay_on_commit(signature: Signature[Any], *args: Any, **kwargs: Any) -> ResultBase:
    """Send a signature, chain, group or chord once the current unit of work is committed.

    :return: The result to be, its id known already. See :func:`apply_async_on_commit`.
    """
    return apply_async_on_commit(signature, args, kwargs)


def _after_commit(send: Callable[[], Any], message: str) -> None:
    auto = current_app.extensions.get("autosession") if has_app_context() else None
    try:
        if auto is not None:
            auto.on_commit(functools.partial(_send, send, message))
            return
    except NoUnitError:
        pass
    send()


def _send(send: Callable[[], Any], message: str) -> None:
    try:
        send()
    except Exception:
        logger.exception(
            "A message could not be sent. The commit before it stands, so send it again: %s",
            message,
        )


@worker_process_init.connect
def _forget_connections(**_: Any) -> None:
    # A worker process is a copy of its parent, and must not talk through its parent's connections.
    for app in _tied:
        with app.app_context():
            for engine in app.extensions["sqlalchemy"].engines.values():
                engine.dispose(close=False)
