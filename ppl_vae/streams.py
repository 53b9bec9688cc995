"""Random streams: draws of this library are repeatable, and leave the caller's own streams unchanged."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.util import get_rng_state, set_rng_seed, set_rng_state

__all__ = ["chosen", "seeded", "set_stream_states", "stream_seed", "stream_states"]


def stream_states() -> tuple[Any, list[torch.Tensor]]:
    """The state of the streams of torch, NumPy and Python, and of the CUDA devices."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return get_rng_state(), devices


def set_stream_states(state: tuple[Any, list[torch.Tensor]]) -> None:
    """Put the streams back into a state that ``stream_states`` returned."""
    host, devices = state
    set_rng_state(host)
    if devices:
        torch.cuda.set_rng_state_all(devices)


def stream_seed(seed: int, index: int) -> int:
    """The seed of stream number ``index`` among the many streams that belong to ``seed``.

    Seeds that differ by less than 4294 share no stream whose index is below 1,000,003. With ``seed + index`` instead,
    neighbouring seeds would have all streams but one in common.
    """
    return (seed * 1_000_003 + index) % 2**32


def chosen(rows: int, count: int, seed: int) -> torch.Tensor:
    """Indices of ``count`` rows, drawn at random by ``seed``. Where all rows are wanted, they keep their order."""
    if count >= rows:
        return torch.arange(rows)
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:count]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, NumPy and Python inside the block, and restore every stream after it, on CUDA devices too."""
    before = stream_states()
    try:
        set_rng_seed(seed)
        yield
    finally:
        set_stream_states(before)
