"""The one model: z ~ prior, x ~ likelihood(decoder(z)), one code per datum."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.func import jvp, vmap

from .half import Half, of_pyro
from .likelihoods import moment
from .networks import one_tensor
from .scale import Scale

__all__ = ["LatentVariableModel"]

STACKED = "several outputs for each coordinate come in one tensor, outputs first: torch.stack([loc, log_scale], 1)"


class LatentVariableModel(Half):
    """``z ~ prior`` [batch, z_dim], then ``x ~ likelihood(decoder(z))`` [batch, *x_shape].

    In training mode the pair with a guide is the objective: penalties and the KL weight act, and closed-form
    statistics move. In eval mode the same model is the density p(x, z) and nothing else.

    Args:
        prior: Module without inputs that returns p(z), of event shape [z_dim].
        decoder: Module from [rows, z_dim] to ``likelihood.outputs * x_dim`` numbers per row, outputs first.
        likelihood: Module from ``outputs`` tensors [..., *x_shape] to p(x | z), of batch shape [..., *x_shape].
        x_shape: Shape of one datum.
        penalties: Modules called in training as ``penalty(model, x, z)``; see ``models.penalties``.
    """

    recipe: dict[str, Any] | None = None  # how the catalogue built it

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
        """What the likelihood is given: z [..., z_dim] to ``likelihood.outputs`` tensors [..., *x_shape].

        Args:
            z: Codes.
            decoder: What runs in the place of the model's own decoder, for a trial of it.

        Raises:
            ValueError: If the decoder returns anything else than one tensor of so many numbers.
        """
        rows = z.reshape(-1, z.shape[-1])
        outputs: int = self.likelihood.outputs  # type: ignore[assignment]
        wanted = (len(rows), outputs, *self.x_shape)
        decoded = one_tensor("decoder", (decoder or self.decoder)(rows), str(list(wanted)), STACKED)
        if decoded.numel() != math.prod(wanted):
            raise ValueError(
                f"the decoder turned z {list(rows.shape)} into {list(decoded.shape)}; "
                f"{type(self.likelihood).__name__} wants {list(wanted)}, or as many numbers in that order"
            )
        return decoded.reshape(*z.shape[:-1], *wanted[1:]).unbind(-1 - len(self.x_shape))

    def x_given_z(self, z: Tensor) -> TorchDistributionMixin:
        """p(x | z) for z [..., z_dim]: batch shape [...], event shape ``x_shape``."""
        return self.law(*self.outputs(z))

    def law(self, *outputs: Tensor) -> TorchDistributionMixin:
        """p(x | z) from what the decoder made of z, as ``outputs`` gives it.

        Raises:
            ValueError: If the likelihood returns anything else than a distribution of Pyro's.
        """
        return of_pyro("the likelihood", self.likelihood(*outputs)).to_event(len(self.x_shape))

    def jacobian(self, z: Tensor, directions: Tensor | None = None) -> Tensor:
        """Columns of the Jacobian of the mean of p(x | z), by forward products at z [..., z_dim].

        Args:
            z: Where.
            directions: [count, ..., z_dim], the product with each; every coordinate of z unless given.

        Returns:
            [count, ..., *x_shape].
        """
        z = z.contiguous()  # an expanded code, one for many draws, takes no tangent
        if directions is None:
            each = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
            directions = each.reshape(-1, *[1] * (z.ndim - 1), z.shape[-1]).expand(-1, *z.shape)

        def mean(z: Tensor) -> Tensor:
            return self.likelihood(*self.outputs(z)).mean

        return vmap(lambda direction: jvp(mean, (z,), (direction,))[1])(directions)

    def forward(self, x: Tensor | None, size: int | None = None) -> Tensor:
        """Run the generative process, observing ``x`` [batch, *x_shape]; ``None`` draws ``size`` data instead.

        Args:
            x: The batch, in the model's units.
            size: Data in the whole set; each datum counts ``size / batch`` times. The batch itself unless given.

        Returns:
            The mean of p(x | z), [..., batch, *x_shape]; NaN where the distribution has no mean.
        """
        once: list[tuple[str, nn.Module]] = []
        per_datum: list[tuple[str, nn.Module]] = []
        for index, penalty in enumerate(self.penalties if self.training else ()):
            (per_datum if penalty.per_datum else once).append((f"penalty_{index}", penalty))

        with pyro.plate("data", len(x) if size is None and x is not None else size, subsample=x):
            with self.weighted():
                z = pyro.sample("z", self.prior())
            outputs = self.outputs(z)
            x_given_z = self.law(*outputs)
            pyro.sample("x", x_given_z, obs=x)
            for name, penalty in per_datum:
                pyro.factor(name, penalty(self, x, z))
        for name, penalty in once:  # outside the plate: counted once per data set, whatever the batch
            pyro.factor(name, penalty(self, x, z))
        observe = getattr(self.likelihood, "observe", None)
        moves = self.training and self.likelihood.training  # in a frozen model the likelihood stays in eval mode
        if moves and x is not None and observe is not None:
            observe(x, *outputs)
        return moment(x_given_z, "mean", z)
