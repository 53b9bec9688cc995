"""The options of a training: their defaults, and what is checked before any work is done."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import torch

from ..models.half import positive
from ..svi.backends import backend_for
from ..svi.precision import PRECISIONS
from .optimizers import REMEDY, Maker

__all__ = ["SCHEDULES", "FitOptions", "Schedule", "Speed"]

Schedule = Literal["constant", "cosine"]
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


class Speed(TypedDict, total=False):
    """The options of ``fit`` that concern speed alone.

    Attributes:
        backend: What runs a step, as for ``ppl_vae.svi.SVI``: ``"auto"`` is ``"fx"``, which equals the eager step to
            the last bit; ``"eager"``; ``"inductor"``, which compiles; ``"cudagraph"``. A pair that is not static runs
            eagerly.
        precision: ``"full"``; ``"bf16"``, which runs encoder and decoder in bfloat16, and densities, weights and
            recurrent layers in full precision; or ``"bf16_matmul"``, which runs nothing but the matrix products of the
            CPU in bfloat16.
        channels_last: Whether to hold the kernels of convolutions in the memory layout channels_last while training.
            CPUs are faster with it.
    """

    backend: str
    precision: str
    channels_last: bool


@dataclass(frozen=True)
class FitOptions:
    """The options of a training, with the one set of defaults that ``fit`` and the command line share.

    The arguments are those of ``fit``.

    Raises:
        ValueError: If an option cannot be used.
    """

    epochs: int = 40
    batch_size: int = 64
    lr: float = 2e-3
    schedule: str | Callable[[float], float] = "cosine"
    patience: int | None = None
    seed: int = 0
    device: str = "auto"
    backend: str = "auto"
    precision: str = "full"
    channels_last: bool = False
    optimizer: Maker | None = None

    def __post_init__(self) -> None:
        _check_counts(epochs=self.epochs, batch_size=self.batch_size, patience=self.patience)
        positive("lr", self.lr)
        if not callable(self.schedule) and self.schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise ValueError(f"schedule must be one of {known} or a function of the share, got {self.schedule!r}")
        if self.optimizer is not None and not callable(self.optimizer):
            raise ValueError(f"optimizer must be a callable from parameters, got {self.optimizer!r}: wanted {REMEDY}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.precision == "bf16_matmul" and self.place.type != "cpu":
            kind = self.place.type
            raise ValueError(f"precision 'bf16_matmul' is for the CPU, and the device is {kind}: use bf16")
        backend_for(self.backend)

    @property
    def place(self) -> torch.device:
        """The device that ``device`` names. ``"auto"`` is CUDA if torch sees a CUDA device.

        Raises:
            ValueError: If there is no such device.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            place = torch.device(self.device)
        except RuntimeError:
            raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}") from None
        if place.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {self.device!r} was asked for, but this torch sees no CUDA device: use cpu")
        return place

    @property
    def runs_on(self) -> str:
        """The backend that ``backend`` names."""
        return backend_for(self.backend)

    def rate(self, done: float) -> float:
        """The learning rate after the share ``done`` of the training."""
        factor = self.schedule if callable(self.schedule) else SCHEDULES[self.schedule]
        return self.lr * factor(done)


def _check_counts(**counts: Any) -> None:
    for name, value in counts.items():
        if value is not None and (value != int(value) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
