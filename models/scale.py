"""The units of x: training runs on scaled data, and results are reported in the units of the data."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["Scale"]

FAR = 100.0  # at a shift of this many widths, a number in single precision loses two digits


class Scale(nn.Module):
    """``x = shift + width * y`` for each coordinate: x is in the units of the data, and y in the units of the model.

    Both directions are computed in float64 for any dtype of the model. The reason is data such as unix seconds: at
    1.7e9, neighbouring numbers in float32 are 128 seconds apart. The buffers stay in float64 when the module is cast
    to another dtype.

    A density changes by the Jacobian, ``log p(x) = log p(y) - sum(log width)``. A probability mass does not change.

    Args:
        x_shape: Shape of one datum.
        shift: The shift, of a shape that broadcasts to ``x_shape``. It is kept as a buffer of shape ``x_shape``.
        width: The width, with the same shapes. The default scale is the identity.
    """

    shift: Tensor
    width: Tensor

    def __init__(self, x_shape: tuple[int, ...], shift: Tensor | float = 0.0, width: Tensor | float = 1.0) -> None:
        super().__init__()
        self.register_buffer("shift", torch.as_tensor(shift, dtype=torch.float64).expand(x_shape).clone())
        self.register_buffer("width", torch.as_tensor(width, dtype=torch.float64).expand(x_shape).clone())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Scale":
        """Follow the module to another device, but not to another dtype, because digits would be lost."""
        before = self.shift, self.width
        super()._apply(fn, recurse)
        self.shift, self.width = (
            after if after.dtype == kept.dtype else kept.to(after.device)
            for kept, after in zip(before, (self.shift, self.width), strict=True)
        )
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Convert x from the data's units to the model's. A floating dtype is kept, else it is float64."""
        y = (x.to(self.shift) - self.shift) / self.width
        return y.to(x.dtype) if x.is_floating_point() else y

    def inverse(self, y: Tensor) -> Tensor:
        """Convert y from the model's units to the data's.

        The dtype is that of ``y``. It is float64 where some shift is larger than 100 widths, so that no digit is lost.
        """
        x = self.shift + self.width * y.to(self.shift)
        return x if bool((self.shift.abs() > FAR * self.width).any()) else x.to(y.dtype)

    def log_jacobian(self) -> Tensor:
        """``-sum(log width)``, in nats per datum. A log density of y plus this number is the log density of x."""
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
