"""Single gradients of the estimators on linear-Gaussian models, where the truth is known. Part of ``elbo_estimators``.

Two models are used. The columns of their loadings are orthogonal, so that a mean-field guide can be the posterior.

* The model of Rainforth et al.: 20 units, ``z ~ N(0, I)``, ``x ~ N(z, I)``, and a guide with variance 2/3 where the
  posterior has 1/2. Both biases are moved a little, so that their mean gradients are not 0.
* A model with 5 coordinates and 2 units, whose guide is at the posterior, near it, or far from it.

The signal-to-noise ratio of a gradient g is ``|E g| / sqrt(tr Cov g)`` over repeated draws. The mean gradient of DReG
is taken as the signal of IWAE too: their expectations are equal, and the mean of IWAE is mostly noise.
"""

import copy
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer import RenyiELBO
from torch import Tensor

from ..drawing import COLOURS, tidy
from ..elbo import (
    CIWAE,
    IWAE,
    MIWAE,
    PIWAE,
    DReG,
    MeanFieldELBO,
    PathwiseELBO,
    PerDatumELBO,
    Renyi,
    StickingTheLanding,
)
from ..elbo.importance import grouped, log_mean
from ..elbo.path import Weights
from ..elbo.reading import Reading
from ..estimate import exponent
from ..evaluation.lower_bounds import draws
from ..models import LinearGaussian
from ..streams import seeded, stream_seed
from ..variant import Variant
from ..verification.exact_pair import linear_pair
from ..verification.repeated_draws import frozen, replicates, spans
from ..verification.verdict import LIMIT, hold_against_truth
from .claims import Claim
from .evidence import Evidence
from .experiment import Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "LADDER",
    "SETS",
    "SMALL",
    "TOY",
    "PathOnly",
    "claims_of",
    "draw",
    "ratio",
    "rescaled",
    "rows",
    "small",
    "tightness",
]

Row = dict[str, Any]

TOY, SMALL = "linear model, 20 units", "linear model, 2 units"
SETS = (TOY, SMALL)
# By name: the shift of the guide's mean, and the factor on its standard deviations.
DISTANCES = {"at the posterior": (0.0, 1.0), "near": (0.1, 1.1), "far": (0.5, 1.5)}
LADDER = (4, 16, 64, 256)  # numbers of draws K for the slopes; at K = 1 the power law does not hold yet
BOUNDS = (1, 4, 16)  # numbers M of bounds of 8 draws each
LEAST = 1e-6  # a ratio below it, where the mean is not above its own noise, counts as this number
TOLERANCE = 0.1  # of a slope; chosen before the run


class Inflated(IWAE):
    """IWAE with a deliberate error of 5 % in the value, and therefore in the gradient."""

    def objective(self, reading: Reading) -> Tensor:
        return 1.05 * super().objective(reading)


class PathOnly(DReG):
    """IWAE without the score of the guide, and without the square of DReG. For K > 1 its gradient is biased."""

    def weights(self, log_weight: Tensor) -> Weights:
        v = log_weight.softmax(0)
        return Weights(v, v)


def estimators() -> dict[str, PerDatumELBO | PathwiseELBO]:
    """Every unbiased estimator, with 8 draws."""
    return {
        "ELBO": PathwiseELBO(8, 1, vectorize_particles=True),
        "ELBO, KL in closed form": MeanFieldELBO(8),
        "STL": StickingTheLanding(8),
        "IWAE": IWAE(8),
        "DReG": DReG(8),
        "MIWAE": MIWAE(8, 4),
        "PIWAE": PIWAE(8, 4),
        "CIWAE": CIWAE(0.5, 8),
        "Renyi": Renyi(0.5, 8),
    }


# The two models.


def toy(seed: int) -> tuple[Variant, Tensor]:
    """The pair of Rainforth et al. with moved biases, and 32 data, in double precision."""
    exact = LinearGaussian(torch.eye(20).double(), torch.zeros(20).double(), torch.ones(()).double())
    with seeded(stream_seed(seed, 1)):
        y = math.sqrt(2.0) * torch.randn(32, 20).double()
        variant = linear_pair(exact, shift=0.0, stretch=math.sqrt(4 / 3))
        with torch.no_grad():
            for parameter in (variant.model.decoder.bias, variant.guide.heads[0].bias):
                parameter.add_(0.1 * torch.randn_like(parameter))  # type: ignore[arg-type,operator]
    return frozen(variant), y


def small(distance: str, seed: int) -> tuple[LinearGaussian, Variant, Tensor]:
    """The model with 2 units, its pair at a distance from the posterior, and 50 data, in double precision."""
    with seeded(stream_seed(seed, 2)):
        loading = torch.linalg.qr(torch.randn(5, 2).double())[0] * torch.tensor([2.0, 1.0]).double()
        exact = LinearGaussian(loading, torch.zeros(5).double(), torch.tensor(0.55).double())
        y = torch.randn(50, 2).double() @ loading.mT + exact.sigma * torch.randn(50, 5).double()
        shift, stretch = DISTANCES[distance]
        return exact, frozen(linear_pair(exact, shift=shift, stretch=stretch)), y


# Rows: a model, an estimator, a seed, and its numbers.


def rows(scale: Scale) -> list[Row]:
    """All numbers, a row per model, estimator and seed. The smoke scale has few draws, estimators and distances."""
    is_small = scale.name == "smoke"
    repeats, steps = (8, 10) if is_small else (100, 100)
    named, places = list(estimators())[: 3 if is_small else None], list(DISTANCES)[2 if is_small else 1 :]
    parts: list[Callable[[int], Iterator[Row]]] = [
        lambda seed: slopes(seed, repeats),
        lambda seed: many_bounds(seed, repeats),
        lambda seed: variances(seed, repeats),
        lambda seed: bias(seed, repeats),
        lambda seed: tightness(seed),
        lambda seed: rescaled(seed, steps),
        lambda seed: subsampled(seed, repeats),
        lambda seed: against_truth(seed, named, places),
    ]
    found = [row for seed in range(scale.seeds) for part in parts for row in part(seed)]
    merged: dict[tuple[str, str, int], Row] = {}
    for row in found:
        merged.setdefault((row["data"], row["variant"], row["seed"]), {}).update(row)
    return list(merged.values())


def _row(data: str, name: str, seed: int, **numbers: float) -> Row:
    return {"data": data, "variant": name, "seed": seed, **numbers}


def gradients(variant: Variant, y: Tensor, loss: Any, repeats: int, seed: int, part: str = "encoder") -> Tensor:
    """The gradients of the guide's or the decoder's parameters in repeated draws, [repeats, parameters]."""
    drawn = replicates(variant, loss, (y, len(y)), repeats, seed)
    return torch.stack([one.gradient for one in drawn])[:, spans(variant)[part]]


def ratio(gradients: Tensor, signal: Tensor | None = None) -> float:
    """``|E g| / sqrt(tr Cov g)`` of repeated draws g [draws, parameters].

    Args:
        gradients: The draws.
        signal: Draws of another gradient with the same expectation and less noise. By default they are ``gradients``.
    """
    signal = gradients if signal is None else signal
    noise_of_mean = signal.var(0).sum() / len(signal)
    square = (signal.mean(0).square().sum() - noise_of_mean) / gradients.var(0).sum()
    return float(square.clamp_min(LEAST**2).sqrt())


def slopes(seed: int, repeats: int) -> Iterator[Row]:
    """TB.1, TB.2, EST.3: the ratios of IWAE and DReG at each K of the ladder, and their slopes against K."""
    yield from _slopes(TOY, *toy(seed), seed, repeats)
    yield from _slopes(SMALL, *small("near", seed)[1:], seed, repeats)


def _slopes(model: str, variant: Variant, y: Tensor, seed: int, repeats: int) -> Iterator[Row]:
    found: dict[str, list[float]] = {"IWAE": [], "DReG": [], "model": []}
    for count in LADDER:
        drawn = {loss.__name__: gradients(variant, y, loss(count), repeats, seed) for loss in (IWAE, DReG)}
        for name, some in drawn.items():
            found[name].append(ratio(some, drawn["DReG"]))
        found["model"].append(ratio(gradients(variant, y, IWAE(count), repeats, seed, "decoder")))
    for name in ("IWAE", "DReG"):
        at = {f"snr_guide_{count}": value for count, value in zip(LADDER, found[name], strict=True)}
        yield _row(model, name, seed, slope_guide=exponent(found[name], LADDER), **at)
    at = {f"snr_model_{count}": value for count, value in zip(LADDER, found["model"], strict=True)}
    yield _row(model, "IWAE", seed, slope_model=exponent(found["model"], LADDER), **at)


def many_bounds(seed: int, repeats: int) -> Iterator[Row]:
    """TB.3: the slopes of the ratios of MIWAE against the number M of bounds of 8 draws each."""
    variant, y = toy(seed)
    signal = gradients(variant, y, DReG(8), 4 * repeats, seed)
    losses = [MIWAE(8 * count, count) for count in BOUNDS]
    guide = [ratio(gradients(variant, y, loss, repeats, seed), signal) for loss in losses]
    model = [ratio(gradients(variant, y, loss, repeats, seed, "decoder")) for loss in losses]
    yield _row(TOY, "MIWAE", seed, slope_guide_m=exponent(guide, BOUNDS), slope_model_m=exponent(model, BOUNDS))


def variances(seed: int, repeats: int) -> Iterator[Row]:
    """EST.1, EST.4: the variance of the gradient of the guide, at the posterior and at two distances from it."""
    for distance in DISTANCES:
        _, variant, y = small(distance, seed)
        column = f"variance, {distance}"
        for name, loss in (
            ("ELBO, 1 draw", PathwiseELBO()),
            ("ELBO, KL in closed form, 1 draw", MeanFieldELBO()),
            ("STL, 1 draw", StickingTheLanding()),
            ("IWAE", IWAE(8)),
            ("DReG", DReG(8)),
        ):
            found = float(gradients(variant, y, loss, repeats, seed).var(0).sum())
            yield {**_row(SMALL, name, seed), column: found}


def bias(seed: int, repeats: int) -> Iterator[Row]:
    """EST.2: the share of the true gradient of the guide that the mean of an estimator has too much, at K = 16."""
    _, variant, y = small("near", seed)
    true = gradients(variant, y, DReG(16), 4 * repeats, stream_seed(seed, 3)).mean(0)
    for name, loss in (("DReG", DReG(16)), ("path only", PathOnly(16))):
        mean = gradients(variant, y, loss, 4 * repeats, stream_seed(seed, 4)).mean(0)
        yield _row(SMALL, name, seed, bias=float(mean @ true / (true @ true)) - 1)


def tightness(seed: int) -> Iterator[Row]:
    """IW.1: the mean importance-weighted bounds of K = 1 to 64 draws, from the same draws, and log p(x)."""
    exact, variant, y = small("far", seed)
    log_weight = draws(variant, y, 64, seed=seed).log_weight
    for count in (1, 2, 4, 8, 16, 32, 64):
        value = float(log_mean(grouped(log_weight, 64 // count)).mean())
        yield {**_row(SMALL, "bound", seed), f"L_{count}": value}
    yield _row(SMALL, "bound", seed, log_evidence=float(exact.log_evidence(y).mean()))


def rescaled(seed: int, steps: int) -> Iterator[Row]:
    """EST.6: how far apart some steps end if every gradient is multiplied by 50, as a share of the way."""
    _, start, y = small("near", seed)
    for name, maker in (("Adam", torch.optim.Adam), ("SGD", torch.optim.SGD)):
        ends = [_after_steps(start, y, maker, factor, seed, steps) for factor in (1.0, 50.0)]
        first = torch.nn.utils.parameters_to_vector(start.guide.parameters()).detach()
        apart = float((ends[1] - ends[0]).norm() / (ends[0] - first).norm())
        yield _row(SMALL, name, seed, apart=apart)


def _after_steps(start: Variant, y: Tensor, maker: Any, factor: float, seed: int, steps: int) -> Tensor:
    """The parameters of the guide after some steps with DReG. Every gradient is multiplied by ``factor``."""
    variant = copy.deepcopy(start)
    parameters = list(variant.guide.parameters())
    optimizer = maker(parameters, lr=1e-3)
    for step in range(steps):
        (drawn,) = gradients(variant, y, DReG(8), 1, stream_seed(seed, step))
        torch.nn.utils.vector_to_parameters(factor * drawn / len(y), grads := [torch.empty_like(p) for p in parameters])
        for parameter, gradient in zip(parameters, grads, strict=True):
            parameter.grad = gradient
        optimizer.step()
    return torch.nn.utils.parameters_to_vector(parameters).detach()


def subsampled(seed: int, repeats: int) -> Iterator[Row]:
    """Bounds of a fifth of the data, scaled up to all data: their mean, minus log p(X)."""
    exact, variant, y = small("far", seed)
    evidence = float(exact.log_evidence(y).sum())
    pyros = RenyiELBO(alpha=0.0, num_particles=8, max_plate_nesting=1, vectorize_particles=True)
    for name, loss in (("IWAE", IWAE(8)), ("RenyiELBO of Pyro, alpha = 0", pyros)):
        fifths = y.split(len(y) // 5)
        values = [-one.value for part in fifths for one in replicates(variant, loss, (part, len(y)), repeats, seed)]
        yield _row(SMALL, name, seed, subsampled_minus_evidence=math.fsum(values) / len(values) - evidence)


def against_truth(seed: int, names: list[str], distances: list[str]) -> Iterator[Row]:
    """The largest z-score of value and gradients against the truth, for each distance, and for a wrong estimator."""
    for distance in distances:
        _, variant, y = small(distance, seed)
        for name, loss in [(name, estimators()[name]) for name in names] + [("wrong by 5 %", Inflated(8))]:
            verdict = hold_against_truth(variant, y, loss, draws=100, seed=seed)
            yield {**_row(SMALL, name, seed), f"largest |z|, {distance}": max(map(abs, verdict.z.values()))}


# The claims.


def claims_of(evidence: Evidence) -> list[Claim]:
    """The claims of the literature on single gradients. EST.0 and IW.0 are this project's own."""
    return [*of_slopes(evidence), *of_variances(evidence), *of_values(evidence), *of_truth(evidence)]


def of_slopes(evidence: Evidence) -> Iterator[Claim]:
    """TB.1 to .3 and EST.3: slopes of log SNR, which equal the claimed ones within ``TOLERANCE``."""
    for name, model, estimator, column, wanted, text in (
        ("TB.1", TOY, "IWAE", "slope_guide", -0.5, "SNR of the guide's gradient of IWAE falls as 1 / sqrt(K)"),
        ("TB.2", TOY, "IWAE", "slope_model", 0.5, "SNR of the model's gradient of IWAE grows as sqrt(K)"),
        ("TB.3", TOY, "MIWAE", "slope_guide_m", 0.5, "SNR of the guide's gradient of MIWAE grows as sqrt(M)"),
        ("TB.3", TOY, "MIWAE", "slope_model_m", 0.5, "SNR of the model's gradient of MIWAE grows as sqrt(M)"),
        ("EST.3", SMALL, "IWAE", "slope_guide", -0.5, "SNR of the guide's gradient of IWAE falls as 1 / sqrt(K)"),
        ("EST.3", SMALL, "DReG", "slope_guide", 0.5, "SNR of the guide's gradient of DReG grows as sqrt(K)"),
    ):
        found = evidence.values(model, estimator, column)
        said = f"{model}: {text} (slope minus {wanted:+g})"
        away = {seed: value - wanted for seed, value in found.items()}
        yield Claim(name, said, away, None, "", TOLERANCE, f"{name} exact")
    grows = evidence.values(TOY, "DReG", "slope_guide")
    text = f"{TOY}: SNR of the guide's gradient of DReG does not fall with K (slope above 0)"
    yield Claim("EST.3", text, grows, None, "", None, "EST.3 exact")


def of_variances(evidence: Evidence) -> Iterator[Claim]:
    """EST.1 and EST.4: variances at the posterior."""
    for name, better, others in (
        ("EST.1", "STL, 1 draw", ("ELBO, 1 draw", "ELBO, KL in closed form, 1 draw")),
        ("EST.4", "DReG", ("IWAE",)),
    ):
        column = "variance, at the posterior"
        zero = evidence.values(SMALL, better, column)
        none = {seed: ZERO - value for seed, value in zero.items()}
        text = f"{SMALL}: at the posterior, the variance of the guide's gradient of {better} is below {ZERO:g}"
        yield Claim(name, text, none, None, f"nats**2 below {ZERO:g}", None, f"{name} exact")
        for other in others:
            text = f"at the posterior, the variance of {other} is above that of {better}"
            ends = (other, column), (better, column)
            yield evidence.claim(name, text, SMALL, *ends, unit="nats**2", family=f"{name} exact")


ZERO = 1e-20  # a variance of rounding errors is below this number


def of_values(evidence: Evidence) -> Iterator[Claim]:
    """IW.1, EST.2 and EST.6, and bounds of a part of the data."""
    for count in (1, 2, 4, 8, 16, 32):
        text = f"the bound of {2 * count} draws is above that of {count}"
        ends = ("bound", f"L_{2 * count}"), ("bound", f"L_{count}")
        yield evidence.claim("IW.1", text, SMALL, *ends, unit="nats", family="IW.1 exact")
    ends = ("bound", "log_evidence"), ("bound", "L_64")
    yield evidence.claim(
        "IW.1", "log p(x) is above the bound of 64 draws", SMALL, *ends, unit="nats", family="IW.1 exact"
    )
    for name, limit, side in (("DReG", 0.05, "below"), ("path only", 0.5, "above")):
        found = evidence.values(SMALL, name, "bias")
        over = {seed: abs(value) - limit for seed, value in found.items()}
        away = {seed: value if side == "above" else -value for seed, value in over.items()}
        text = f"{SMALL}: the bias of the guide's gradient of {name}, K = 16, is {side} {limit:.0%} of the gradient"
        yield Claim("EST.2", text, away, None, f"of the gradient {side} {limit}", None, "EST.2 exact")
    apart = {seed: 0.01 - value for seed, value in evidence.values(SMALL, "Adam", "apart").items()}
    text = f"{SMALL}: after 100 steps of Adam, gradients that are 50 times larger change the way by less than 1 %"
    yield Claim("EST.6", text, apart, None, "of the way below 0.01", None, "EST.6 exact")
    for name, side in (("IWAE", "below"), ("RenyiELBO of Pyro, alpha = 0", "above")):
        over = evidence.values(SMALL, name, "subsampled_minus_evidence")
        text = f"{SMALL}: the mean of bounds of a fifth of the data, {name}, is {side} log p(X)"
        away = {seed: value if side == "above" else -value for seed, value in over.items()}
        yield Claim("IW.0", text, away, None, "nats", None, f"IW.0 {name}")


def of_truth(evidence: Evidence) -> Iterator[Claim]:
    """All estimators are unbiased for their targets, and a wrong one is caught."""
    for distance in DISTANCES:
        column = f"largest |z|, {distance}"
        every = [evidence.values(SMALL, name, column) for name in estimators()]
        seeds = every[0] if every else {}
        margins = {seed: LIMIT - max(some[seed] for some in every if seed in some) for seed in seeds}
        text = f"{SMALL}, {distance}: the largest |z| of all unbiased estimators is below {LIMIT:g}"
        yield Claim("EST.0", text, margins, None, f"below {LIMIT:g}", None, "EST.0")
        caught = {seed: z - LIMIT for seed, z in evidence.values(SMALL, "wrong by 5 %", column).items()}
        text = f"{SMALL}, {distance}: an error of 5 % is caught, |z| above {LIMIT:g}"
        yield Claim("EST.0", text, caught, None, f"above {LIMIT:g}", None, "EST.0")


def draw(axes: "Axes", evidence: Evidence) -> None:
    """Draw the signal-to-noise ratios of the guide's gradient against K, with a line per seed."""
    tidy(axes, f"{TOY}: SNR of the gradient of the guide")
    for ink, name in zip(COLOURS, ("IWAE", "DReG"), strict=False):
        for index, seed in enumerate(evidence.values(TOY, name, "slope_guide")):
            found = [evidence.values(TOY, name, f"snr_guide_{count}")[seed] for count in LADDER]
            axes.loglog(LADDER, found, "o-", ms=3, lw=0.8, color=ink, label="" if index else name)
    axes.set_xlabel("draws K", fontsize=8)
    axes.legend(fontsize=8, frameon=False)
