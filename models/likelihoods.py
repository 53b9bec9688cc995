"""Likelihoods p(x | z): each is a small module from the decoder's outputs to a distribution of each coordinate.

``models.outputs`` has the contract between a decoder and a likelihood. A likelihood may also have
``encoder_input(x_shape)``, which returns a layer for x and the shape [...] that the layer gives to a datum. The default
encoder then begins with this layer.
"""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Independent, LogNormal
from torch.nn.functional import softplus

from . import distributions
from .half import in_range, positive, whole
from .networks import OneHot, is_image
from .schedules import Schedule, switch
from .steps import first_of_step

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedNormal",
    "Gaussian",
    "Heteroscedastic",
    "Laplace",
    "LearnedSigma",
    "OptimalSigma",
    "StudentT",
    "is_nominal",
    "mean_or_mode",
    "moment",
    "of_coordinate",
    "scale_of_law",
]


def of_coordinate(law: Any) -> Any:
    """The distribution of each coordinate, of batch shape [..., *x_shape]: p(x | z) without its ``to_event``."""
    return law.base_dist if isinstance(law, Independent) else law


def scale_of_law(law: Any) -> Tensor | None:
    """The scale of p(x | z), in the units of x, or None where the distribution has no scale.

    An attribute ``scale`` counts only where the distribution declares it as a parameter in ``arg_constraints``. On
    other classes it may have any meaning. The scale of ``LogNormal`` does not count, because it is a scale of log x.

    Args:
        law: A distribution, with or without ``to_event``.
    """
    law = of_coordinate(law)
    scale = getattr(law, "scale", None) if "scale" in law.arg_constraints else None
    return scale if isinstance(scale, Tensor) and not isinstance(law, LogNormal) else None


def moment(law: Any, name: str, like: Tensor) -> Tensor:
    """The mean or variance of a distribution, [*batch_shape, *event_shape], or NaN where it does not exist.

    Where a moment does not exist, some classes of torch return NaN, for example ``Categorical``. Others raise
    NotImplementedError, which is turned into NaN here.

    Args:
        law: The distribution.
        name: ``"mean"`` or ``"variance"``.
        like: A tensor whose dtype and device the NaN gets.
    """
    try:
        found: Tensor = getattr(law, name)
    except NotImplementedError:
        return like.new_full(law.batch_shape + law.event_shape, math.nan)
    return found


def is_nominal(law: Any) -> bool:
    """Whether the values of a distribution are names of categories: a ``Categorical``, with or without ``to_event``.

    The codes of categories have no order and no distances. They have a mode, but no mean and no variance. Another class
    with such values declares ``is_nominal = True``.
    """
    law = of_coordinate(law)
    return isinstance(law, torch.distributions.Categorical) or bool(getattr(law, "is_nominal", False))


def mean_or_mode(law: Any, like: Tensor) -> Tensor:
    """The mean of p(x | z), or its mode where x is nominal. It is NaN where there is neither.

    Args:
        law: The distribution.
        like: A tensor whose dtype and device the result gets.
    """
    return law.mode.to(like) if is_nominal(law) else moment(law, "mean", like)


class Bernoulli(nn.Module):
    """Binary observations: ``log p(x | z) = sum(x t - softplus(t))``, t = logits(z), x in {0, 1}."""

    outputs = 1
    formula = "Bernoulli(logits(z)), x in {0, 1}"

    def forward(self, logits: Tensor) -> dist.Bernoulli:
        return dist.Bernoulli(logits=logits)


class Categorical(nn.Module):
    """Nominal observations: ``log p(x | z) = sum_t log softmax(logits_t)[x_t]``, x_t a code in {0, ..., levels - 1}.

    The decoder gives the logits with the classes first, like channels: [rows, levels, *x_shape]. The numbers of the
    codes mean nothing to the model, so ``pair`` puts a ``OneHot`` before its default encoder. Before an encoder of
    your own, put it yourself: ``encoder=nn.Sequential(OneHot(levels), network)``. Pass the codes as they are, with
    ``scale="none"``.

    Args:
        levels: The number of categories.

    Raises:
        ValueError: If ``levels`` is not a whole number of at least 2.

    Example:
        >>> import torch
        >>> x_given_z = Categorical(levels=3)(*torch.zeros(3, 4, 6))
        >>> x_given_z.log_prob(torch.zeros(4, 6)).shape
        torch.Size([4, 6])
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = whole("levels", levels, least=2)

    @property
    def outputs(self) -> int:
        """One logit for each category."""
        return self.levels

    @property
    def formula(self) -> str:
        return f"Categorical(logits(z)), x in {{0, ..., {self.levels - 1}}}"

    def encoder_input(self, x_shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
        """The layer before the default encoder, and the shape that it gives to a datum.

        In an image the categories of each channel become channels, [channels * levels, height, width], so that the
        encoder can convolve. Otherwise the shape is [levels, *x_shape].
        """
        one_hot = OneHot(self.levels)
        if is_image(x_shape):
            return nn.Sequential(one_hot, nn.Flatten(1, 2)), (self.levels * x_shape[0], *x_shape[1:])
        return one_hot, (self.levels, *x_shape)

    def forward(self, *logits: Tensor) -> dist.Categorical:
        return dist.Categorical(logits=torch.stack(logits, -1))

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


class ContinuousBernoulli(nn.Module):
    """Observations in [0, 1]: the formula of ``Bernoulli`` plus ``log C(t)``, which makes it a density.

    See ``models.distributions.ContinuousBernoulli`` for ``log C`` and the source.
    """

    outputs = 1
    formula = "ContinuousBernoulli(logits(z)), x in [0, 1]"

    def forward(self, logits: Tensor) -> distributions.ContinuousBernoulli:
        return distributions.ContinuousBernoulli(logits)


class Gaussian(nn.Module):
    """Real observations with one standard deviation, which is given and not learned.

    For a datum of D coordinates, ``-log p(x | z) = |x - loc|**2 / (2 scale**2) + D log(scale) + D/2 log(2 pi)`` nats.

    Args:
        scale: The standard deviation, in the model's units.

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
        self.register_buffer("scale", torch.tensor(positive("scale", scale)))

    def forward(self, loc: Tensor) -> dist.Normal:
        return dist.Normal(loc, self.scale)

    @property
    def formula(self) -> str:
        return f"Normal(loc(z), sigma), sigma = {float(self.scale):.4g}"

    def extra_repr(self) -> str:
        return f"scale={float(self.scale):.4g}"


SPEED = 5.0  # under Adam at rate 1e-3, a scale falls from 1 to 0.1 in 460 steps, and not in 2300 as with SPEED = 1


class _LearnedScale(nn.Module):
    """The base of likelihoods with one learned scale, which has a soft lower bound.

    ``log scale = floor + softplus(SPEED raw - floor)``, where ``raw`` is learned. The floor keeps the density finite
    when the scale tends to zero. Far above the floor, ``log scale`` is close to ``SPEED raw``.

    Args:
        scale: The initial scale. It is set exactly.
        floor: The lower bound of the log scale.

    Raises:
        ValueError: If ``scale`` is not finite or not above ``exp(floor)``.
    """

    outputs = 1

    def __init__(self, scale: float = 1.0, floor: float = -6.0) -> None:
        super().__init__()
        if not -math.inf < floor < math.log(positive("scale", scale)):
            raise ValueError(f"scale must lie above its floor exp({floor}) = {math.exp(floor):.4g}, got {scale!r}")
        self.floor = floor
        self.raw = nn.Parameter(torch.zeros(()))
        self.set_scale(scale)

    def set_scale(self, scale: float) -> None:
        """Set the scale to exactly the given value."""
        with torch.no_grad():
            self.raw.fill_((self.floor + math.log(math.expm1(math.log(scale) - self.floor))) / SPEED)

    def scale_with(self, log_factor: Tensor | float = 0.0) -> Tensor:
        """The scale times ``exp(log_factor)``, in the model's units. The soft lower bound holds for the product."""
        return (self.floor + softplus(SPEED * self.raw + log_factor - self.floor)).exp()

    @property
    def scale(self) -> Tensor:
        """The scale, shape [], in the model's units."""
        return self.scale_with()

    @property
    def lowest(self) -> float:
        """The lower bound of the scale itself, ``exp(floor)``, in the model's units."""
        return math.exp(self.floor)

    def extra_repr(self) -> str:
        return f"scale={float(self.scale.detach()):.4g}, floor={self.lowest:.4g}"


class LearnedSigma(_LearnedScale):
    """Gaussian observations with one standard deviation for all coordinates, learned by gradient.

    ``-log p(x | z)`` is that of ``Gaussian``. Its derivative in ``log scale`` is ``D - |x - loc|**2 / scale**2``, so
    the optimal scale is the root mean squared error under q. The weight between reconstruction and KL is therefore
    learned and not chosen.

    References:
        Rybkin, Daniilidis and Levine, Simple and Effective VAE Training with Calibrated Decoders, 2021, section 3.
        https://arxiv.org/abs/2006.13202
    """

    formula = "Normal(loc(z), sigma), sigma learned"

    def forward(self, loc: Tensor) -> dist.Normal:
        return dist.Normal(loc, self.scale)


class Laplace(_LearnedScale):
    """``x | z ~ Laplace(loc(z), scale)`` with a learned scale: ``-log p = |x - loc|_1 / scale + D log(2 scale)``."""

    formula = "Laplace(loc(z), scale), scale learned"

    def forward(self, loc: Tensor) -> dist.Laplace:
        return dist.Laplace(loc, self.scale)


class StudentT(_LearnedScale):
    """``x | z ~ StudentT(df, loc(z), scale)`` with a learned scale.

    The loss of an outlier grows with the logarithm of its distance, and not with the square as for a Gaussian.

    Args:
        df: Degrees of freedom, above 1, so that the mean exists. The mean is the reconstruction.
        scale: The initial scale.
        floor: The soft lower bound of the log scale.

    Raises:
        ValueError: If ``df`` or ``scale`` is out of its range.
    """

    def __init__(self, df: float = 4.0, scale: float = 1.0, floor: float = -6.0) -> None:
        super().__init__(scale, floor)
        if not 1.0 < df < math.inf:
            raise ValueError(f"df must be finite and above 1, otherwise there is no mean, got {df!r}")
        self.df = df

    @property
    def formula(self) -> str:
        return f"StudentT({self.df:.4g}, loc(z), scale), scale learned"

    def forward(self, loc: Tensor) -> dist.StudentT:
        return dist.StudentT(self.df, loc, self.scale)


class OptimalSigma(Gaussian):
    """Gaussian observations with the scale that maximises the bound, in closed form.

    ``scale**2 = E_x E_q |x - loc(z)|**2 / D``, where z is a draw from the guide and not its mean. The scale is updated
    in alternation with the weights: a batch is scored with the current scale, and then enters the running average. The
    scale moves in training mode only, like the statistics of a batch norm, so a held-out datum has no influence on its
    own likelihood.

    Every row has the same weight, also in a short batch. The scale moves once per training step. All draws of a step
    are scored with the same scale. The mean of their squared errors enters the average, whether an estimator takes the
    draws in one pass or in a loop. See ``models.steps.one_step`` for the definition of a step.

    Args:
        scale: The scale before the first batch.
        momentum: The share that a new batch of full size has in the running average of the variance. The full size is
            that of the largest batch so far, and a smaller batch has a proportionally smaller share. During the first
            ``1 / momentum`` batches the average is the mean over all rows.

    Attributes:
        rows: The number of rows that the average remembers, shape [].
        largest: The number of rows of the largest batch so far, shape [].

    Raises:
        ValueError: If ``scale`` or ``momentum`` is out of its range.

    References:
        Rybkin, Daniilidis and Levine, 2021, eq. 6. Lin et al., Balancing Reconstruction Quality and Regularisation in
        the ELBO for VAEs, 2019. https://arxiv.org/abs/1909.03765
    """

    rows: Tensor
    largest: Tensor
    start: Tensor  # the scale at the start of the step
    draws: Tensor  # the number of passes in this step so far
    variance: Tensor  # the mean squared error over these passes
    lowest = 1e-6  # the lower bound of the scale, in the model's units
    formula = "Normal(loc(z), sigma), sigma in closed form"

    def __init__(self, scale: float = 1.0, momentum: float = 0.02) -> None:
        super().__init__(scale)
        if not 0.0 < momentum <= 1.0:
            raise ValueError(f"momentum is a share in (0, 1], got {momentum!r}")
        self.momentum = momentum
        for name in ("rows", "largest"):
            self.register_buffer(name, torch.zeros(()))
        for name in ("start", "draws", "variance"):  # set again in every step
            self.register_buffer(name, torch.zeros(()), persistent=False)

    def forward(self, loc: Tensor) -> dist.Normal:
        scored = self.scale if not self.training or first_of_step(self) else self.start
        return dist.Normal(loc, scored.clone())  # a copy, because ``observe`` moves the scale before x is scored

    @torch.no_grad()
    def observe(self, x: Tensor, loc: Tensor) -> None:
        """Update the scale by a training batch: x [batch, *x_shape], loc [..., batch, *x_shape]."""
        if first_of_step(self, enter=True):
            self.start.copy_(self.scale)
            self.draws.zero_()
            self.variance.zero_()  # a step that diverged may have left a NaN
            self.largest.clamp_(min=float(len(x)))
            self.rows.copy_((self.rows + len(x)).minimum(self.largest / self.momentum))
        self.draws += 1
        self.variance.lerp_((x - loc).square().mean(), 1 / self.draws)
        variance = self.start.square().lerp(self.variance, len(x) / self.rows)
        self.scale.copy_(variance.sqrt().clamp_min(self.lowest))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load a state. The average of an older state, which counted batches, starts again with the next batch."""
        if state_dict.pop(f"{prefix}batches", None) is not None:
            state_dict |= {f"{prefix}rows": torch.zeros(()), f"{prefix}largest": torch.zeros(())}
        super()._load_from_state_dict(state_dict, prefix, *args)


class Heteroscedastic(_LearnedScale):
    """``x | z ~ Normal(loc(z), scale * exp(head(z)))``: one standard deviation per coordinate and per code.

    Training has two stages. In the first, ``head`` is multiplied by 0 and one global scale is learned. In the second,
    ``head`` acts. If it acted from the start, badly fitted coordinates would get a large standard deviation and stop
    learning. In eval mode ``head`` is kept in a finite range (see ``in_range``), so that data far from the training
    data have a finite density.

    Args:
        scale: The initial global scale.
        floor: The soft lower bound of the log scale, for the global scale and for the product.
        stage: The share of training after which ``head`` acts. With 0 it acts from the start.

    Raises:
        ValueError: If ``scale`` or ``stage`` is out of its range.

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
    """A normal distribution with a learned scale, gathered on the grey values ``0, 1/(levels-1), ..., 1``.

    It is a probability mass and not a density, so the bound can be given in bits per dimension.

    Args:
        levels: The number of grey values.
        scale: The initial scale, for x in [0, 1].
        floor: The soft lower bound of the log scale.

    Raises:
        ValueError: If ``levels`` or ``scale`` is out of its range.
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
    """``DiscretizedNormal`` with a logistic distribution in place of the normal (Salimans et al., 2017, eq. 2)."""

    family = distributions.DiscretizedLogistic
