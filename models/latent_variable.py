"""The latent variable model p(x, z) of every variant: z ~ prior, x ~ likelihood(decoder(z)), one z per datum."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from .half import Half, of_pyro
from .likelihoods import is_nominal, mean_or_mode
from .networks import one_tensor
from .outputs import inputs_of, outputs_shape
from .scale import Scale

__all__ = ["LatentVariableModel", "running_statistics"]

STACKED = "stack several outputs per coordinate into one tensor, outputs first: torch.stack([loc, log_scale], 1)"


class LatentVariableModel(Half):
    """The model ``z ~ prior`` [batch, z_dim], ``x ~ likelihood(decoder(z))`` [batch, *x_shape].

    In training mode the model and its guide define the training objective: penalties and the KL weight act, and
    statistics in closed form move. In eval mode the model is the density p(x, z) and nothing else.

    Args:
        prior: A module without inputs that returns p(z), of event shape [z_dim].
        decoder: A module from [rows, z_dim] to ``likelihood.outputs * x_dim`` numbers per row, outputs first. For a
            flat likelihood it gives ``likelihood.outputs`` numbers per row. See ``models.outputs``.
        likelihood: A module from ``outputs`` tensors [..., *x_shape] to p(x | z), of batch shape [..., *x_shape]. A
            flat likelihood takes one tensor [..., outputs].
        x_shape: Shape of one datum.
        penalties: Modules that are called in training as ``penalty(model, x, z)``. See ``models.penalties``.
    """

    recipe: dict[str, Any] | None = None  # the parts and options that it was built from, for checkpoints

    def __init__(
        self,
        prior: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        x_shape: Iterable[int],
        penalties: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.prior, self.decoder, self.likelihood = prior, decoder, likelihood
        self.x_shape = tuple(x_shape)
        self.penalties = nn.ModuleList(penalties)
        self.scale = Scale(self.x_shape)

    def outputs(self, z: Tensor, decoder: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, ...]:
        """Decode z [..., z_dim] into the inputs of the likelihood, ``likelihood.outputs`` tensors [..., *x_shape].

        A flat likelihood has one input, [..., likelihood.outputs].

        Args:
            z: Codes.
            decoder: A function that runs in place of the model's own decoder.

        Raises:
            ValueError: If the decoder does not return one tensor with as many elements per row as the likelihood wants.
        """
        rows = z.reshape(-1, z.shape[-1])
        wanted = (len(rows), *outputs_shape(self.likelihood, self.x_shape))
        decoded = one_tensor("decoder", (decoder or self.decoder)(rows), str(list(wanted)), STACKED)
        if decoded.numel() != math.prod(wanted):
            raise ValueError(
                f"the decoder turned z {list(rows.shape)} into {list(decoded.shape)}; "
                f"{type(self.likelihood).__name__} wants {list(wanted)}, or a shape that can be reshaped to it"
            )
        return inputs_of(self.likelihood, decoded.reshape(*z.shape[:-1], *wanted[1:]), self.x_shape)

    def x_given_z(self, z: Tensor) -> TorchDistributionMixin:
        """p(x | z) for z [..., z_dim]: batch shape [...], event shape ``x_shape``."""
        return self.law(*self.outputs(z))

    def law(self, *outputs: Tensor) -> TorchDistributionMixin:
        """p(x | z) from the decoder outputs, the tensors that ``outputs`` returns.

        Raises:
            ValueError: If the likelihood does not return a Pyro distribution, or its batch shape has too few axes.
        """
        law = of_pyro("the likelihood", self.likelihood(*outputs))
        if len(law.batch_shape) < len(self.x_shape):
            wanted = ", ".join(["...", *map(str, self.x_shape)])
            raise ValueError(
                f"{type(self.likelihood).__name__} returned a distribution of batch shape {list(law.batch_shape)}, "
                f"wanted [{wanted}]: reshape the outputs to the shape of x in its forward"
            )
        return law.to_event(len(self.x_shape))

    def jacobian(self, z: Tensor, directions: Tensor | None = None) -> Tensor:
        """Compute products of the Jacobian of the mean of p(x | z) with directions, in forward mode.

        The Jacobian is that of each datum alone. Batch norms therefore use their running statistics here, in training
        too, because statistics of the batch would make the mean of one datum depend on the codes of the others.

        Args:
            z: The codes [..., z_dim] at which the Jacobian is taken.
            directions: The directions [count, ..., z_dim]. By default these are the coordinates of z, which gives the
                columns of the Jacobian.

        Returns:
            One product per direction, [count, ..., *x_shape].

        Raises:
            ValueError: If p(x | z) is a distribution of categories, which have no mean.
        """
        z = z.contiguous()  # forward mode rejects an expanded tensor
        if directions is None:
            each = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
            directions = each.reshape(-1, *[1] * (z.ndim - 1), z.shape[-1]).expand(-1, *z.shape)

        def mean(z: Tensor) -> Tensor:
            law: Any = self.likelihood(*self.outputs(z))
            if is_nominal(law):
                raise ValueError(
                    "the Jacobian is that of the mean of p(x | z), and categories have no mean: use no JacobianNorm "
                    f"beside {type(self.likelihood).__name__}"
                )
            found: Tensor = law.mean
            return found

        with running_statistics(self.decoder):
            return vmap(lambda direction: jvp(mean, (z,), (direction,))[1])(directions)

    def forward(self, x: Tensor | None, size: int | None = None) -> Tensor:
        """Run the generative process as a Pyro program.

        Args:
            x: The observed batch [batch, *x_shape], in the model's units. With ``None``, ``size`` data are drawn.
            size: The number of data in the whole set. Each datum of the batch counts ``size / batch`` times. By default
                the batch is the whole set.

        Returns:
            The mean of p(x | z), [..., batch, *x_shape], or its mode where x is nominal. It is NaN where the
            distribution has no mean.
        """
        named = [(f"penalty_{index}", penalty) for index, penalty in enumerate(self.penalties) if self.training]
        per_datum = [(name, penalty) for name, penalty in named if penalty.per_datum]
        once = [(name, penalty) for name, penalty in named if not penalty.per_datum]
        if size is None and x is not None:
            size = len(x)

        with pyro.plate("data", size, subsample=x):
            with self.weighted():
                z = pyro.sample("z", self.prior())
            outputs = self.outputs(z)
            x_given_z = self.law(*outputs)
            pyro.sample("x", x_given_z, obs=x)
            for name, penalty in per_datum:
                pyro.factor(name, penalty(self, x, z))
        for name, penalty in once:  # outside the plate, a penalty counts once per data set for any batch size
            pyro.factor(name, penalty(self, x, z))

        observe = getattr(self.likelihood, "observe", None)
        learns = self.training and self.likelihood.training  # in a frozen model the likelihood stays in eval mode
        if learns and x is not None and observe is not None:
            observe(x, *outputs)
        return mean_or_mode(x_given_z, z)


@contextmanager
def running_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norms of a network use their running statistics inside the block, and do not move them."""
    moving = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    try:
        for module in moving:
            module.training = False
        yield
    finally:
        for module in moving:
            module.training = True
