"""Random streams: what we draw is repeatable, and the caller's own stream goes on as if we had drawn nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.util import get_rng_state, set_rng_seed, set_rng_state

__all__ = ["chosen", "seeded", "set_streams", "stream_seed", "streams"]


def streams() -> tuple[Any, list[torch.Tensor]]:
    """Where the streams of torch, NumPy and Python stand, on the devices too."""
    return get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def set_streams(state: tuple[Any, list[torch.Tensor]]) -> None:
    """Put the streams where ``streams`` found them."""
    host, devices = state
    set_rng_state(host)
    if devices:
        torch.cuda.set_rng_state_all(devices)


def stream_seed(seed: int, index: int) -> int:
    """The seed of stream ``index`` of the many that belong to ``seed``.

    Seeds that differ by less than 4294 share no stream whose index is below 1,000,003. Counting ``seed + index``
    instead would give neighbouring seeds all streams but one in common.
    """
    return (seed * 1_000_003 + index) % 2**32


def chosen(rows: int, count: int, seed: int) -> torch.Tensor:
    """Indices of ``count`` of so many rows, drawn at random by ``seed``; all of them in their order if that is all."""
    if count >= rows:
        return torch.arange(rows)
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:count]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, NumPy and Python inside the block; restore every stream after it, on the devices too."""
    before = streams()
    try:
        set_rng_seed(seed)
        yield
    finally:
        set_streams(before)
