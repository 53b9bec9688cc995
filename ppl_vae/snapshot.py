"""The state of a pair at one moment of training, which can be restored."""

import copy

import torch
from torch import Tensor

from .streams import set_stream_states, stream_states
from .variant import Variant

__all__ = ["Snapshot"]


class Snapshot:
    """The weights, buffers, optimizer state and random streams of a pair at one moment of training."""

    def __init__(self, variant: Variant, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.states = [_copied(half.state_dict()) for half in variant[:2]]
        self.optimizer = None if optimizer is None else copy.deepcopy(optimizer.state_dict())
        self.streams = stream_states()

    def restore(self, variant: Variant, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Put weights and buffers back. With an optimizer, its state and the random streams are put back too."""
        for half, state in zip(variant[:2], self.states, strict=True):
            half.load_state_dict(state)
        if optimizer is not None and self.optimizer is not None:
            optimizer.load_state_dict(self.optimizer)
            set_stream_states(self.streams)


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a state, which later steps do not change."""
    return {name: tensor.clone() for name, tensor in state.items()}
