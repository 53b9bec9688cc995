"""Random streams: what we draw is repeatable, and the caller's own stream goes on as if we had drawn nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pyro.util import get_rng_state, set_rng_seed, set_rng_state

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, NumPy and Python inside the block; restore every stream after it, on the devices too."""
    host, devices = get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        set_rng_seed(seed)
        yield
    finally:
        set_rng_state(host)
        if devices:
            torch.cuda.set_rng_state_all(devices)
