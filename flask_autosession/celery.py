"""Ties Celery to Flask: tasks are units of work, and messages can wait for the commit.

Needs the extra ``celery``: ``pip install Flask-AutoSession[celery]``. No other module imports it.
"""

from __future__ import annotations

import functools
from typing import Any, cast
from weakref import WeakSet

from celery import Celery
from celery.signals import worker_process_init
from flask import Flask
from kombu.utils import symbol_by_name

from .exc import ConfigError
from .tasks import UnitTask, apply_async_on_commit, delay_on_commit, make_unit

__all__ = ["UnitTask", "apply_async_on_commit", "celery_init_app", "delay_on_commit"]

_tied: WeakSet[Flask] = WeakSet()


def celery_init_app(app: Flask, celery: Celery | None = None) -> Celery:
    """Tie a Celery application to a Flask application: each task is a unit of work.

    The name and the shape are those of the recipe in Flask's own documentation.

    :param app: The Flask application, after ``auto.init_app(app)``.
    :param celery: The Celery application. Without it one is made, configured from
        ``app.config["CELERY"]`` and made the default one, for ``@shared_task``.
    :return: The Celery application, which is ``app.extensions["celery"]`` from now on.
    :raises ConfigError: If the Flask application has no AutoSession yet, or the Celery
        application is tied already.

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
    _tie(app, celery)
    app.extensions["celery"] = celery
    _tied.add(app)
    return celery


def _tie(app: Flask, celery: Any) -> None:
    if hasattr(celery, "flask_app"):
        raise ConfigError(
            f"The Celery application {celery.main!r} is tied to the Flask application"
            f" {celery.flask_app.name!r} already. Call celery_init_app() once for it."
        )
    celery.flask_app = app
    base = symbol_by_name(celery.task_cls)
    celery.task_cls = type("UnitTask", (UnitTask, base), {"abstract": True})
    if "Task" in vars(celery):
        del celery.Task  # made from the class before, because somebody has asked for it
    # A task may come from a class that knows nothing of this, or have been made before.
    for name in ("register_task", "_task_from_fun"):
        setattr(celery, name, functools.partial(_made, getattr(celery, name)))
    if celery.finalized:
        _convert_all(celery)
    else:
        celery.on_after_finalize.connect(_convert_all, weak=False)


def _made(make: Any, *args: Any, **kwargs: Any) -> Any:
    return _convert(make(*args, **kwargs))


def _convert_all(sender: Any, **_: Any) -> None:
    for task in list(sender.tasks.values()):
        _convert(task)


def _convert(task: Any) -> Any:
    if not isinstance(task, UnitTask) and not task.name.startswith("celery."):
        cls = task.__class__
        task.__class__ = type(cls.__name__, (UnitTask, cls), {"__module__": cls.__module__})
        # Inside of what autoretry_for has put around it.
        make_unit(task, "_orig_run" if hasattr(task, "_orig_run") else "run")
    return task


@worker_process_init.connect
def _forget_connections(**_: Any) -> None:
    # A worker process is a copy of its parent, and must not talk through its parent's connections.
    for app in _tied:
        with app.app_context():
            for engine in app.extensions["sqlalchemy"].engines.values():
                engine.dispose(close=False)
