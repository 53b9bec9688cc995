"""The state of a pair at one moment, to go back to."""

import copy

import torch

from .streams import set_streams, streams
from .variant import Variant

__all__ = ["Snapshot"]


class Snapshot:
    """Weights, buffers, optimizer and random streams at one moment of training."""

    def __init__(self, variant: Variant, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.halves = [{name: t.clone() for name, t in half.state_dict().items()} for half in variant[:2]]
        self.optimizer = None if optimizer is None else copy.deepcopy(optimizer.state_dict())
        self.streams = streams()

    def restore(self, variant: Variant, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Put weights and buffers back; with an optimizer, its state and the random streams too."""
        for half, state in zip(variant[:2], self.halves, strict=True):
            half.load_state_dict(state)
        if optimizer is not None and self.optimizer is not None:
            optimizer.load_state_dict(self.optimizer)
            set_streams(self.streams)
