"""The training step made fast: recorded as a graph of torch operations, proved, and run from it."""

from .adam import Adam
from .backends import BACKENDS
from .capture import NotStatic
from .step import Stale, Step
from .svi import SVI

__all__ = ["BACKENDS", "SVI", "Adam", "NotStatic", "Stale", "Step"]
