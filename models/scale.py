"""The units of x: training runs on scaled data, every number that a person reads is in the units the data came in."""

import torch
from torch import Tensor, nn

__all__ = ["Scale"]


class Scale(nn.Module):
    """``x = shift + width * y``, coordinate by coordinate: x in the data's units, y in the model's.

    Shapes:
        ``shift`` and ``width`` are buffers of shape ``x_shape``; the identity unless set.

    A density changes by the Jacobian: ``log p(x) = log p(y) - sum(log width)``. A probability mass does not.
    """

    shift: Tensor
    width: Tensor

    def __init__(self, x_shape: tuple[int, ...], shift: Tensor | float = 0.0, width: Tensor | float = 1.0) -> None:
        super().__init__()
        self.register_buffer("shift", torch.as_tensor(shift, dtype=torch.get_default_dtype()).expand(x_shape).clone())
        self.register_buffer("width", torch.as_tensor(width, dtype=torch.get_default_dtype()).expand(x_shape).clone())

    def forward(self, x: Tensor) -> Tensor:
        """From the data's units to the model's."""
        return (x - self.shift) / self.width

    def inverse(self, y: Tensor) -> Tensor:
        """From the model's units to the data's."""
        return self.shift + self.width * y

    def log_jacobian(self) -> Tensor:
        """``-sum(log width)``, nats a datum: added to a log density in the model's units."""
        return -self.width.log().sum()

    @property
    def is_identity(self) -> bool:
        """Whether both units are the same."""
        return bool((self.shift == 0).all() and (self.width == 1).all())

    def __repr__(self) -> str:
        if self.is_identity:
            return "Scale(none)"
        if bool((self.shift == self.shift.flatten()[0]).all() and (self.width == self.width.flatten()[0]).all()):
            return f"Scale(x = {float(self.shift.flatten()[0]):.4g} + {float(self.width.flatten()[0]):.4g} y)"
        return f"Scale(x = shift + width y, width {float(self.width.min()):.4g} to {float(self.width.max()):.4g})"
