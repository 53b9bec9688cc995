"""Does an estimator pass? Its value and its gradient are compared with the truth.

``verify`` does this on a linear-Gaussian pair, and ``hold_against_truth`` on a pair and data of your choice.
"""

from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO
from torch import Tensor

from ..elbo import estimator as estimator_of
from ..estimate import standard_error
from ..models import LinearGaussian
from ..streams import seeded, stream_seed
from ..variant import Variant
from .exact_pair import linear_pair
from .repeated_draws import Replicate, frozen, replicates, spans
from .targets import Truth, estimand_of, truth

__all__ = ["LIMIT", "Verdict", "hold_against_truth", "largest_z_score", "verify"]

LIMIT = 5.0  # an estimator fails above this |z|, which a normal error exceeds once in two million
FEWEST = 100  # the fewest draws of a verdict
PART = 5  # the plate's scale is tried on 1 / PART of a data set, with 1 / PART of the draws
ROUNDING = 1e-12  # relative error of sums in double precision, which matters if an estimator has no variance


class Verdict(NamedTuple):
    """The result of ``verify``.

    Attributes:
        z: The z-score of the value, and the largest z-score of the gradient of each group of parameters, by name. Each
            is given twice: for the whole data set, and for a part of a data set that the plate scales up.
        draws: Replicates of the estimator.
    """

    z: dict[str, float]
    draws: int

    @property
    def passed(self) -> bool:
        """Whether every |z| is below 5."""
        return all(abs(z) < LIMIT for z in self.z.values())

    def __str__(self) -> str:
        lines = [f"{'passed' if self.passed else 'FAILED'}: {self.draws} draws, |z| below {LIMIT:g} wanted"]
        lines += [f"{name:<44}{z:+12.3g}{'' if abs(z) < LIMIT else '   FAILED'}" for name, z in self.z.items()]
        return "\n".join(lines)


def verify(estimator: ELBO | str, *, target: str | None = None, draws: int = 600, seed: int = 0) -> Verdict:
    """Compare an estimator's value and gradient with the truth on a linear-Gaussian pair.

    With the default number of draws, an error of 5 % in the value, in its KL alone or in the gradient exceeds 5
    standard errors, so it is detected. A plate's scale inside the importance weights is detected too.

    Args:
        estimator: Any ``pyro.infer.ELBO`` with ``loss_and_grads``, or the name of an estimator as in ``pair``.
        target: Name in ``TARGETS`` of the bound that the estimator estimates. By default it is the estimator's
            attribute ``target``, Renyi's bound for Pyro's ``RenyiELBO``, and the ELBO for an estimator that names no
            target.
        draws: Replicates of the estimator.
        seed: Seed of the pair, the data and all draws.

    Returns:
        The z-scores, and whether all of them pass; see ``Verdict``.

    Raises:
        ValueError: If the estimator is not an ELBO, the target is unknown, the estimator lacks an option of the
            target, or ``draws`` is below 100.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> verify(Trace_ELBO(), draws=100).passed
        True
    """
    with seeded(seed):
        model = LinearGaussian(torch.randn(5, 2).double(), torch.randn(5).double(), torch.tensor(0.6).double())
        y = 2 * torch.randn(100, 5).double()
        variant = linear_pair(model, shift=0.3, stretch=1.3)
    return hold_against_truth(variant, y, estimator, target=target, draws=draws, seed=seed)


def hold_against_truth(
    variant: Variant, y: Tensor, estimator: ELBO | str, *, target: str | None = None, draws: int = 600, seed: int = 0
) -> Verdict:
    """Compare an estimator with the truth on a pair and data y [rows, *x_shape], given in the model's units.

    The other arguments and the errors are those of ``verify``.
    """
    estimator = _instance(estimator)
    if draws < FEWEST:
        raise ValueError(f"draws must be at least {FEWEST}, because fewer draws detect too little, got {draws!r}")
    estimand = estimand_of(estimator, target)
    variant = frozen(variant)
    # Each verdict has three seeds of its own, so that the verdicts of neighbouring seeds share no draws.
    whole_seed, part_seed, truth_seed = (3 * seed + number for number in (1, 2, 3))
    z: dict[str, float] = {}
    for label, part, draws_seed in (("", 1, whole_seed), (f", 1 / {PART} of the data", PART, part_seed)):
        size = part * len(y)
        found = list(replicates(variant, estimator, (y, size), draws // part, draws_seed))
        expected = truth(variant, y, size, estimand, seed=stream_seed(truth_seed, 0))
        scores = _z_scores(found, expected, spans(variant))
        z |= {f"{name}{label}": score for name, score in scores.items()}
    return Verdict(z, draws)


def _instance(estimator: ELBO | str) -> ELBO:
    found: Any = estimator_of(estimator) if isinstance(estimator, str) else estimator
    if not isinstance(found, ELBO) or not hasattr(found, "loss_and_grads"):
        name = found.__name__ if isinstance(found, type) else type(found).__name__
        raise ValueError(
            "verify takes the name of an estimator, or an instance of pyro.infer.ELBO that has loss_and_grads, "
            f"got {name}"
        )
    return found


def _z_scores(found: list[Replicate], expected: Truth, groups: dict[str, slice]) -> dict[str, float]:
    """The z-score of the value, and the largest z-score of each group of parameters."""
    values = torch.tensor([[replicate.value] for replicate in found]).double()
    gradients = torch.stack([replicate.gradient for replicate in found])
    value = torch.tensor([expected.value]).double()
    value_error = torch.tensor([expected.value_error]).double()
    z = {"value": largest_z_score(values, value, value_error)}
    for name, span in groups.items():
        gradient, error = expected.gradient[span], expected.gradient_error[span]
        z[f"gradient, {name}"] = largest_z_score(gradients[:, span], gradient, error, abs(expected.value))
    return z


def largest_z_score(samples: Tensor, expected: Tensor, expected_error: Tensor, size: float = 0.0) -> float:
    """The largest z-score of the mean of samples [draws, n] against the expected mean [n].

    There is one z-score per coordinate, and one for the component of the mean along ``expected``. The samples' error is
    estimated, so that a score follows Student's distribution. It is transformed to the score that has the same tail
    probability under a normal distribution.

    Args:
        samples: Independent samples [draws, n].
        expected: The expected mean, [n].
        expected_error: Standard error of ``expected``, [n].
        size: Magnitude of the numbers from whose differences the samples were computed. It sets the rounding error if
            it is larger than the norm of ``expected``.

    References:
        Wallace, Bounds on Normal Approximations to Student's and the Chi-Square Distributions, 1959.
    """
    tiny = torch.finfo(expected.dtype).tiny
    direction = expected / expected.norm().clamp_min(tiny)
    samples = torch.cat([samples, (samples @ direction)[:, None]], 1)
    expected_error = torch.cat([expected_error, (expected_error * direction).norm()[None]])
    expected = torch.cat([expected, (expected @ direction)[None]])

    rounding = ROUNDING * expected.norm().clamp_min(size)
    error = torch.hypot(standard_error(samples), expected_error) + rounding
    score = (samples.mean(0) - expected) / error.clamp_min(tiny)
    largest = score[score.abs().argmax()]
    return float(largest.sign() * _normal_score(largest.abs(), len(samples) - 1))


def _normal_score(t: Tensor, freedom: int) -> Tensor:
    """The normal score with the tail probability of ``t`` under Student's law with ``freedom`` degrees of freedom."""
    correction = (8 * freedom + 1) / (8 * freedom + 3)
    return (freedom * (t.square() / freedom).log1p()).sqrt() * correction
