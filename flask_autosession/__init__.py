"""One request, one unit of work: session handling for Flask and SQLAlchemy that disappears."""

from .exc import (
    AutoSessionError,
    ConfigError,
    DoomedError,
    ExplicitCommitError,
    NoUnitError,
    SharedConnectionError,
)
from .extension import AutoSession
from .model import ActiveRecord
from .signals import unit_committed, unit_rolled_back

__all__ = [
    "ActiveRecord",
    "AutoSession",
    "AutoSessionError",
    "ConfigError",
    "DoomedError",
    "ExplicitCommitError",
    "NoUnitError",
    "SharedConnectionError",
    "unit_committed",
    "unit_rolled_back",
]
