"""p(x | z), a small module each: ``outputs`` decoder outputs per coordinate in, one distribution out."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Independent, LogNormal
from torch.nn.functional import softplus

from . import distributions
from .half import in_range
from .schedules import Schedule, switch
from .steps import first_of_step

__all__ = [
    "Bernoulli",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedNormal",
    "Gaussian",
    "Heteroscedastic",
    "Laplace",
    "LearnedSigma",
    "OptimalSigma",
    "StudentT",
    "moment",
    "of_coordinate",
    "scale_of_law",
]


def of_coordinate(law: Any) -> Any:
    """p(x | z) of one coordinate, of batch shape [..., *x_shape]: the distribution without ``to_event``."""
    return law.base_dist if isinstance(law, Independent) else law


def scale_of_law(law: Any) -> Tensor | None:
    """The scale of p(x | z), in the units of x; None where the distribution has none.

    An attribute called ``scale`` counts where the distribution lists it among its parameters, ``arg_constraints``: on
    another class it may be anything. That of ``LogNormal`` is a scale of log x.

    Args:
        law: A distribution, with or without its coordinates made an event by ``to_event``.
    """
    law = of_coordinate(law)
    scale = getattr(law, "scale", None) if "scale" in law.arg_constraints else None
    return scale if isinstance(scale, Tensor) and not isinstance(law, LogNormal) else None


def moment(law: Any, name: str, like: Tensor) -> Tensor:
    """A moment of a distribution, [*batch_shape, *event_shape]; NaN where it has none, as torch's ``Categorical`` says.

    Where there is no moment, some of torch's classes return NaN and others raise NotImplementedError.

    Args:
        law: The distribution.
        name: "mean" or "variance".
        like: A tensor of the dtype and on the device that NaN is wanted in.
    """
    try:
        found: Tensor = getattr(law, name)
    except NotImplementedError:
        return like.new_full(law.batch_shape + law.event_shape, math.nan)
    return found


def _positive(name: str, value: float) -> float:
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return value


class Bernoulli(nn.Module):
    """Binary observations: ``log p(x | z) = sum(x t - softplus(t))``, t = logits(z), x in {0, 1}."""

    outputs = 1
    formula = "Bernoulli(logits(z)), x in {0, 1}"

    def forward(self, logits: Tensor) -> dist.Bernoulli:
        return dist.Bernoulli(logits=logits)


class ContinuousBernoulli(nn.Module):
    """Observations in [0, 1]: a Bernoulli formula made a density by ``log C``; see ``models.distributions``."""

    outputs = 1
    formula = "ContinuousBernoulli(logits(z)), x in [0, 1]"

    def forward(self, logits: Tensor) -> distributions.ContinuousBernoulli:
        return distributions.ContinuousBernoulli(logits)


class Gaussian(nn.Module):
    """Real observations with one standard deviation that is stated, not learned.

    In nats per datum of D coordinates, ``-log p(x | z) = |x - loc|**2 / (2 scale**2) + D log(scale) + D/2 log(2 pi)``.

    Args:
        scale: Standard deviation, in the model's units.

    Raises:
        ValueError: If ``scale`` is not a positive, finite number.

    Example:
        >>> import torch
        >>> x_given_z = Gaussian(scale=0.5)(torch.zeros(4, 3))
        >>> x_given_z.log_prob(torch.zeros(4, 3)).shape
        torch.Size([4, 3])
    """

    outputs = 1
    scale: Tensor

    def __init__(self, scale: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(_positive("scale", scale)))

    def forward(self, loc: Tensor) -> dist.Normal:
        return dist.Normal(loc, self.scale)

    @property
    def formula(self) -> str:
        return f"Normal(loc(z), sigma), sigma = {float(self.scale):.4g}"

    def extra_repr(self) -> str:
        return f"scale={float(self.scale):.4g}"


SPEED = 5.0  # how much faster than a weight a log scale moves under Adam: from 1 to .1 in 460 steps, not 2300


class _LearnedScale(nn.Module):
    """One learned scale, softly bounded from below.

    ``log scale = floor + softplus(SPEED raw - floor)``: a scale that heads for zero meets a floor, not an overflow, and
    far above the floor the slope is that of ``log scale`` itself.

    Args:
        scale: Initial value, exact.
        floor: The bound, on the log scale.

    Raises:
        ValueError: If ``scale`` is not finite or not above ``exp(floor)``.
    """

    outputs = 1

    def __init__(self, scale: float = 1.0, floor: float = -6.0) -> None:
        super().__init__()
        if not -math.inf < floor < math.log(_positive("scale", scale)):
            raise ValueError(f"scale must lie above its floor exp({floor}) = {math.exp(floor):.4g}, got {scale!r}")
        self.floor = floor
        self.raw = nn.Parameter(torch.zeros(()))
        self.set_scale(scale)

    def set_scale(self, scale: float) -> None:
        """Put the scale where it is wanted, exactly."""
        with torch.no_grad():
            self.raw.fill_((self.floor + math.log(math.expm1(math.log(scale) - self.floor))) / SPEED)

    def scale_with(self, log_factor: Tensor | float = 0.0) -> Tensor:
        """The scale times ``exp(log_factor)``, in the model's units, softly bounded as a whole."""
        return (self.floor + softplus(SPEED * self.raw + log_factor - self.floor)).exp()

    @property
    def scale(self) -> Tensor:
        """The scale, shape [], in the model's units."""
        return self.scale_with()

    @property
    def lowest(self) -> float:
        """The floor of the scale itself, in the model's units."""
        return math.exp(self.floor)

    def extra_repr(self) -> str:
        return f"scale={float(self.scale.detach()):.4g}, floor={self.lowest:.4g}"


class LearnedSigma(_LearnedScale):
    """Gaussian observations, one standard deviation for all, learned by gradient.

    ``-log p(x | z)`` is that of ``Gaussian``; its derivative in ``log scale`` is ``D - |x - loc|**2 / scale**2``, so
    that the optimum is the root mean squared error under q: the weight between reconstruction and KL is not chosen.

    References:
        Rybkin, Daniilidis and Levine, Simple and Effective VAE Training with Calibrated Decoders, 2021, section 3.
        https://arxiv.org/abs/2006.13202
    """

    formula = "Normal(loc(z), sigma), sigma learned"

    def forward(self, loc: Tensor) -> dist.Normal:
        return dist.Normal(loc, self.scale)


class Laplace(_LearnedScale):
    """``x | z ~ Laplace(loc(z), scale)``, the scale learned: ``-log p = |x - loc|_1 / scale + D log(2 scale)``."""

    formula = "Laplace(loc(z), scale), scale learned"

    def forward(self, loc: Tensor) -> dist.Laplace:
        return dist.Laplace(loc, self.scale)


class StudentT(_LearnedScale):
    """``x | z ~ StudentT(df, loc(z), scale)``, the scale learned: outliers are paid by a logarithm, not by a square.

    Args:
        df: Degrees of freedom, above 1 so that the mean, the reconstruction, exists.
        scale: Initial scale.
        floor: Soft bound of the log scale.
    """

    def __init__(self, df: float = 4.0, scale: float = 1.0, floor: float = -6.0) -> None:
        super().__init__(scale, floor)
        if not 1.0 < df < math.inf:
            raise ValueError(f"df must be finite and above 1, for else there is no mean, got {df!r}")
        self.df = df

    @property
    def formula(self) -> str:
        return f"StudentT({self.df:.4g}, loc(z), scale), scale learned"

    def forward(self, loc: Tensor) -> dist.StudentT:
        return dist.StudentT(self.df, loc, self.scale)


class OptimalSigma(Gaussian):
    """Gaussian observations with the scale that maximises the bound, in closed form.

    ``scale**2 = E_x E_q |x - loc(z)|**2 / D``, z a draw from the guide, never its mean. It moves in alternation with
    the weights: a batch is scored with the scale so far, then joins the running average. As the statistics of a batch
    norm, it moves in training mode alone, so that no held-out datum has a say in its own likelihood.

    Every row counts alike, in a short batch too. The scale moves once per training step: the draws of a step are scored
    with one scale, and their mean joins the average, whether an estimator takes them in one pass or in a loop. See
    ``models.steps.one_step`` for what a step is.

    Args:
        scale: The value before the first batch has been seen.
        momentum: Share of a new batch of the usual size, the largest one so far, in the running average of the
            variance; a smaller batch has its part of that. Until ``1 / momentum`` batches have been seen, all rows
            count alike.

    Attributes:
        rows: Number of rows that the average remembers, shape [].
        largest: Number of rows of the largest batch so far, shape [].

    References:
        Rybkin, Daniilidis and Levine, 2021, eq. 6. Lin et al., Balancing Reconstruction Quality and Regularisation in
        the ELBO for VAEs, 2019. https://arxiv.org/abs/1909.03765
    """

    rows: Tensor
    largest: Tensor
    start: Tensor  # the scale at the start of the step
    draws: Tensor  # passes in this step so far
    variance: Tensor  # mean squared error over these draws
    lowest = 1e-6  # the floor of the scale, in the model's units
    formula = "Normal(loc(z), sigma), sigma in closed form"

    def __init__(self, scale: float = 1.0, momentum: float = 0.02) -> None:
        super().__init__(scale)
        if not 0.0 < momentum <= 1.0:
            raise ValueError(f"momentum is a share in (0, 1], got {momentum!r}")
        self.momentum = momentum
        for name in ("rows", "largest"):
            self.register_buffer(name, torch.zeros(()))
        for name in ("start", "draws", "variance"):  # set anew in every step
            self.register_buffer(name, torch.zeros(()), persistent=False)

    def forward(self, loc: Tensor) -> dist.Normal:
        scored = self.scale if not self.training or first_of_step(self) else self.start
        return dist.Normal(loc, scored.clone())  # the scale so far, which ``observe`` moves before it is scored

    @torch.no_grad()
    def observe(self, x: Tensor, loc: Tensor) -> None:
        """Let a training batch move the scale: x [batch, *x_shape], loc [..., batch, *x_shape]."""
        if first_of_step(self, enter=True):
            self.start.copy_(self.scale)
            self.draws.zero_()
            self.variance.zero_()  # a loss that diverged may have left a NaN
            self.largest.clamp_(min=float(len(x)))
            self.rows.copy_((self.rows + len(x)).minimum(self.largest / self.momentum))
        self.draws += 1
        self.variance.lerp_((x - loc).square().mean(), 1 / self.draws)
        variance = self.start.square().lerp(self.variance, len(x) / self.rows)
        self.scale.copy_(variance.sqrt().clamp_min(self.lowest))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load a state from before rows were counted too: its average starts anew from the next batch."""
        if state_dict.pop(f"{prefix}batches", None) is not None:
            state_dict |= {f"{prefix}rows": torch.zeros(()), f"{prefix}largest": torch.zeros(())}
        super()._load_from_state_dict(state_dict, prefix, *args)


class Heteroscedastic(_LearnedScale):
    """``x | z ~ Normal(loc(z), scale * exp(head(z)))``: a standard deviation for each coordinate and each code.

    Trained in two stages: one global scale first, with the head shut, then the head from log 1. Opened at once, badly
    fitted coordinates are declared noise and stop learning. In eval mode the head is kept in a finite range (see
    ``in_range``), so that data far out have a finite density.

    Args:
        scale: Initial global scale.
        floor: Soft bound of the log scale, global and total.
        stage: The share of training after which the head opens; 0 for open from the start.

    References:
        Lin et al., 2019, section 3 (global sigma, then sigma(z)). Rybkin et al., 2021, on its instability.
    """

    outputs = 2

    def __init__(self, scale: float = 1.0, floor: float = -6.0, stage: float = 0.5) -> None:
        super().__init__(scale, floor)
        if not 0.0 <= stage < 1.0:
            raise ValueError(f"stage is a share of training in [0, 1), got {stage!r}")
        self.stage, self.open = stage, Schedule(switch(stage))

    @property
    def formula(self) -> str:
        return f"Normal(loc(z), sigma(z)), one sigma for the first {100 * self.stage:.4g} % of training"

    def forward(self, loc: Tensor, head: Tensor) -> dist.Normal:
        log_factor = self.open.value * head
        return dist.Normal(loc, self.scale_with(log_factor if self.training else in_range(log_factor)))


class DiscretizedNormal(_LearnedScale):
    """A learned normal gathered on grey values ``0, 1/(levels-1), ..., 1``: a mass, so that bits a dimension exist.

    Args:
        levels: Number of grey values.
        scale: Initial scale, on the unit scale of x.
        floor: Soft bound of the log scale.
    """

    family: type[distributions._Discretized] = distributions.DiscretizedNormal

    def __init__(self, levels: int = 256, scale: float = 0.1, floor: float = -8.0) -> None:
        super().__init__(scale, floor)
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels!r}")
        self.levels = levels

    @property
    def formula(self) -> str:
        return f"{self.family.__name__}(loc(z), scale) on {self.levels} levels, scale learned"

    def forward(self, loc: Tensor) -> distributions._Discretized:
        return self.family(loc, self.scale, self.levels)


class DiscretizedLogistic(DiscretizedNormal):
    """As ``DiscretizedNormal``, with the logistic distribution (Salimans et al., PixelCNN++, 2017, eq. 2)."""

    family = distributions.DiscretizedLogistic
