"""Tests that need no commit: what a test does to the database is undone at its end.

With pytest the plugin does all of it; with unittest, :func:`isolate` does.
"""

from flask_autosession.exc import IsolationError

from .isolation import isolate
from .units import EndedUnit, capture_on_commit_callbacks, record_units

__all__ = [
    "EndedUnit",
    "IsolationError",
    "capture_on_commit_callbacks",
    "isolate",
    "record_units",
]
