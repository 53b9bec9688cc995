"""The units of x: training runs on scaled data, every number that a person reads is in the units the data came in."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["Scale"]

FAR = 100.0  # widths from 0 at which a shift costs a number two digits


class Scale(nn.Module):
    """``x = shift + width * y``, coordinate by coordinate: x in the data's units, y in the model's.

    Both directions are computed in float64, whatever the dtype of the model: at unix seconds, 1.7e9, neighbours in
    float32 are 128 seconds apart. The buffers stay in float64 when the module is cast to another dtype.

    Shapes:
        ``shift`` and ``width`` are buffers of shape ``x_shape``; the identity unless set.

    A density changes by the Jacobian: ``log p(x) = log p(y) - sum(log width)``. A probability mass does not.
    """

    shift: Tensor
    width: Tensor

    def __init__(self, x_shape: tuple[int, ...], shift: Tensor | float = 0.0, width: Tensor | float = 1.0) -> None:
        super().__init__()
        self.register_buffer("shift", torch.as_tensor(shift, dtype=torch.float64).expand(x_shape).clone())
        self.register_buffer("width", torch.as_tensor(width, dtype=torch.float64).expand(x_shape).clone())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Scale":
        """Follow the module to another device, but not to another dtype: the digits would be lost for good."""
        before = self.shift, self.width
        super()._apply(fn, recurse)
        self.shift, self.width = (
            after if after.dtype == kept.dtype else kept.to(after.device)
            for kept, after in zip(before, (self.shift, self.width), strict=True)
        )
        return self

    def forward(self, x: Tensor) -> Tensor:
        """From the data's units to the model's, in the dtype of ``x`` where it is a floating one, else in float64."""
        y = (x.to(self.shift) - self.shift) / self.width
        return y.to(x.dtype) if x.is_floating_point() else y

    def inverse(self, y: Tensor) -> Tensor:
        """From the model's units to the data's.

        In the dtype of ``y``; in float64 where some shift is more than 100 widths, so that no digit is lost.
        """
        x = self.shift + self.width * y.to(self.shift)
        return x if bool((self.shift.abs() > FAR * self.width).any()) else x.to(y.dtype)

    def log_jacobian(self) -> Tensor:
        """``-sum(log width)``, nats per datum: added to a log density in the model's units."""
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
