"""How does one model real-valued x, which does not lie in [0, 1]?

    python -m ppl_vae.experiments.unrestricted --scale reduced --jobs 2

A common answer trains ``mean(error**2) + 1e-4 KL``, or squashes the decoder's mean by a sigmoid. The answer here is a
Gaussian p(x | z) with loc(z) and a learned standard deviation. The KL is a number of the latent space, so the range of
x does not enter it. A hand-set weight w of the KL beside a mean over D coordinates is a fixed ``sigma = sqrt(w D / 2)``
in the units of the network's data: 0.198 at D = 784, and 0.016 at D = 5.

Tables and images are standardised. One table is multiplied by 1, 10 and 1000. With ``scale="standardize"`` nothing but
the Jacobian may change, ``-D log s``. As it is, the same w is another sigma relative to the data, and a learned sigma
has to find its new size with the same optimizer and the same number of steps. Times 1000, the encoder's first outputs
are so large that the scale of q(z | x) underflows in the first steps: ``fit`` refuses, and the table says so.

A density needs data without atoms. A column is left out if one value fills more than a fifth of its rows, for example
the quality of wine. To all other numbers, uniform noise is added that is as wide as their grid. On a grid of width d
this gives a bound of a mass, ``log P(x) >= E log p(x + d u) + log d`` with u uniform on [-1/2, 1/2], so that densities
of dequantised images can be compared with discretised likelihoods of the grey values themselves. A grey value is the
unit there, so that log d = 0. The density is trained on one draw of the noise. Held-out data have one draw of their own
per number, which gives an unbiased estimate of the right side. Discretised likelihoods are left out for tables, because
those of the library have the same grid on [0, 1] in all columns.

References:
    Theis, van den Oord and Bethge, A note on the evaluation of generative models, 2016, section 3.1.
    Ho et al., Flow++, 2019, section 3.1 (uniform dequantisation).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..catalogue import VARIANTS
from ..data.data_set import Data
from ..data.sources import Raw
from ..data.units import fit_scale
from ..diagnosis.residuals import noise_calibration
from ..drawing import COLOURS, LIGHT, panels, tidy
from ..estimate import Number
from ..evaluation.features import Features
from ..models import (
    DiscretizedLogistic,
    DiscretizedNormal,
    Gaussian,
    Heteroscedastic,
    LearnedSigma,
    Scale as Units,
    StudentT,
    decoder,
)
from ..streams import seeded
from ..studies import Cell, Claim, Contestant, Judging, Result
from ..studies.evidence import Evidence
from ..studies.experiment import SCALES, Experiment, Scale, cells_of, main, public_sets
from ..variant import Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLES = ("power_plant", "concrete", "protein", "wine_white")
HEAVY = ("protein", "wine_white")  # they have columns with an excess kurtosis above 30
IMAGES = "frey_faces"
CODE_OF_TABLE, CODE_OF_IMAGE = 3, 10  # sizes of a code, below the number of columns of every table
MOST_COLUMNS = 20  # data with more coordinates count as images
ATOM = 0.2  # a column is left out if one value has a larger share of its rows
WEIGHTS = (1e-4, 1e-2, 1.0)  # of the KL beside a squared error that is averaged over coordinates
FACTORS = (1, 10, 1000)
# What multiplication may change by rounding. The margins were written down before the first run.
SAME_NATS, SAME_RMSE = 0.01, 0.001

# What a data set is for stands in its name, after a comma. All contestants meet on a set without a comma.
STANDARDISED, AS_IT_IS, GRID, DEQUANTISED = "standardised", "as it is", "grid", "dequantised"
ONE_SIGMA, SIGMA_OF_Z, STUDENT, SIGMOID = "one sigma", "sigma(z)", "Student-t", "sigmoid"
NORMAL_MASS, LOGISTIC_MASS = "discretised normal", "discretised logistic"

COLUMNS = {
    "bound": "bound",
    "importance_weighted": "IW bound",
    "kl": "KL",
    "rmse": "RMSE",
    "active_units": "active",
    "sigma": "sigma",
    "sigma_smallest": "sigma, least of x",
    "sigma_largest": "sigma, most of x",
    "weight": "w of sigma",
    "within_90": "within 90 %",
    "rmse_outside": "outside [0, 1]",
}


# The data.


def sets(scale: Scale, root: Path | None) -> list[Data]:
    """The standardised sets, one table that is multiplied in two ways, and images on their grid and dequantised."""
    found = public_sets(*TABLES, IMAGES)(scale, root)
    tables = [data for data in found if len(data.x_shape) == 1] or [diabetes(scale)]
    images = [flat(data) for data in found if len(data.x_shape) > 1]
    plain = [standardised(dequantised(without_atoms(data))) for data in tables]
    pictures = [dequantised(data) for data in images]  # in grey levels, with the scale to [0, 1]
    multiplied = [multiple(plain[0], factor, is_scaled=is_scaled) for factor in FACTORS for is_scaled in (True, False)]
    gridded = [replace(data, name=f"{data.name}, {GRID}") for data in images]
    on_cells = [replace(data, name=f"{data.name}, {DEQUANTISED}") for data in pictures]
    centred = [replace(data, scale=with_one_width(data)) for data in pictures]
    return [*plain, *centred, *multiplied, *gridded, *on_cells]


def diabetes(scale: Scale) -> Data:
    """The diabetes table of scikit-learn, in its own units, which takes the place of the tables without a copy."""
    from sklearn.datasets import load_diabetes  # type: ignore[import-untyped,unused-ignore]

    x = torch.as_tensor(load_diabetes(scaled=False).data)
    with seeded(0):
        x = x[torch.randperm(len(x))]
    rows = min(scale.rows, 4 * len(x) // 5)
    train, test = x[:rows], x[rows:][: scale.test_rows]
    return Data("diabetes", train, test, None, None, Units((x.shape[1],)))


def flat(data: Data) -> Data:
    """Images as vectors without labels, so that a cell has perceptrons, as on tables, and costs seconds."""
    train, test = data.resident.flatten(1), data.test.flatten(1)
    scale = Units((train.shape[1],), data.scale.shift.flatten(), data.scale.width.flatten())
    return replace(data, train=train, test=test, labels=None, test_labels=None, scale=scale)


def without_atoms(data: Data) -> Data:
    """A table without the columns in which one value has more than a fifth of the rows."""
    every = torch.cat([data.resident, data.test])
    shares = [float(column.unique(return_counts=True)[1].max()) / len(every) for column in every.T]
    kept = [place for place, share in enumerate(shares) if share <= ATOM]
    columns = None if data.columns is None else tuple(data.columns[place] for place in kept)
    train, test = data.resident[:, kept], data.test[:, kept]
    return replace(data, train=train, test=test, columns=columns, scale=Units((len(kept),)))


def dequantised(data: Data, seed: int = 0) -> Data:
    """The data plus uniform noise, in float64. The noise is as wide as the grid, and symmetric about 0.

    The grid of a column of a table has the width of the smallest difference of two of its numbers. All pixels of images
    share one grid.
    """
    every = torch.cat([data.resident, data.test]).double()
    columns = every.reshape(1, -1) if is_image(data) else every.T
    width = torch.stack([column.unique().diff().min() for column in columns])
    with seeded(seed):
        noisy = every + width * (torch.rand_like(every) - 0.5)
    rows = len(data.resident)
    return replace(data, train=noisy[:rows], test=noisy[rows:], note="dequantised: plus uniform noise")


def standardised(data: Data) -> Data:
    """The data with a scale to mean 0 and standard deviation 1 per column, as ``prepare`` fits it."""
    return replace(data, scale=fit_scale("standardize", Raw(data.resident), data.x_shape, is_binary=False))


def with_one_width(data: Data) -> Units:
    """The scale of grey images to mean 0 and standard deviation 1 over all pixels of all training images."""
    return Units(data.x_shape, data.resident.mean(), data.resident.std(correction=0))


def is_image(data: Data) -> bool:
    """Whether data are flattened images, and not a table."""
    return data.x_shape[0] > MOST_COLUMNS


def multiple(data: Data, factor: float, *, is_scaled: bool) -> Data:
    """A standardised table times a factor, with its scale fitted again, or with no scale.

    The numbers have mean 0 and a standard deviation of ``factor`` in every column, so that one unit is meant in all.
    """
    train, test = (factor * data.scale(part) for part in (data.resident, data.test))
    name = multiplied_name(data.name, factor, is_scaled=is_scaled)
    bare = replace(data, name=name, train=train, test=test, scale=Units(data.x_shape))
    return standardised(bare) if is_scaled else bare


def multiplied_name(table: str, factor: float, *, is_scaled: bool) -> str:
    """The name of a table times a factor."""
    return f"{table} * {factor:g}, {STANDARDISED if is_scaled else AS_IT_IS}"


# The contestants.


def implied_sigma(weight: float, dimensions: int) -> float:
    """The sigma of ``mean(error**2) + weight KL``, where the mean is over the coordinates of x: sqrt(weight D / 2).

    The loss is ``weight (SSE / (2 sigma**2) + KL)``, the negative bound of a Gaussian p(x | z) but for a factor and a
    constant.
    """
    return math.sqrt(weight * dimensions / 2)


def weighted(weight: float) -> str:
    """The name of the contestant with a hand-set weight."""
    return f"MSE + {weight:g} KL"


def squashed(x_shape: tuple[int, ...], z_dim: int) -> Variant:
    """One learned sigma, and a mean of p(x | z) that a sigmoid squashes into (0, 1)."""
    return VARIANTS["sigma_vae"](x_shape, z_dim, decoder=nn.Sequential(decoder(z_dim, x_shape), nn.Sigmoid()))


def numbers(result: Result, features: Features) -> Mapping[str, Number]:
    """Further numbers of a fit.

    * ``sigma_smallest``, ``sigma_largest``: the scale of p(x | z) in the units of the data, for the coordinate of x
      with the smallest and the largest unit.
    * ``weight``: the weight w that is the same as one Gaussian sigma, ``2 sigma**2 / D``.
    * ``within_90``: the share of held-out numbers in the central 90 % of p(x | z), z from q(z | x).
    * ``rmse_outside``: the root mean squared distance of held-out data from [0, 1], in the model's units. No decoder
      with a sigmoid has a smaller RMSE.
    * ``dimensions``: the number D of coordinates of x.
    """
    variant, data = result.variant, result.data
    sigma, width = result.evaluation["sigma"].value, variant.model.scale.width
    y = variant.in_model_units(data.test)
    noise = noise_calibration(variant, data, num_particles=1)
    found = {
        "within_90": noise.coverage[1] if noise.coverage else Number(None, reason="a mass"),
        "rmse_outside": Number(float((y - y.clamp(0, 1)).square().mean().sqrt())),
        "dimensions": Number(float(y[0].numel())),
        "weight": Number(None, reason="no single Gaussian sigma"),
    }
    if sigma is None:
        return found
    if isinstance(variant.model.likelihood, Gaussian | LearnedSigma):
        found["weight"] = Number(2 * sigma**2 / y[0].numel())
    ends = {"sigma_smallest": width.min(), "sigma_largest": width.max()}
    return found | {name: Number(sigma * float(end)) for name, end in ends.items()}


START = {"scale": 0.1, "floor": -8.0}  # of all likelihoods on grey values in [0, 1]
DENSITIES = {ONE_SIGMA: LearnedSigma(**START), STUDENT: StudentT(**START), SIGMA_OF_Z: Heteroscedastic(**START)}
MASSES = {NORMAL_MASS: DiscretizedNormal, LOGISTIC_MASS: DiscretizedLogistic}


def contestants(data: Data) -> dict[str, Contestant]:
    """The contestants on a data set, by what it is for."""
    purpose = data.name.partition(", ")[2]
    if purpose == GRID:
        levels = 1 + round(float(data.scale.width.max()))  # a grey value is 1 in the units of the data
        return {name: _with(make(levels, **START)) for name, make in MASSES.items()}
    if purpose == DEQUANTISED:
        return {name: _with(likelihood) for name, likelihood in DENSITIES.items()}
    hand_set = {weighted(weight): _hand_set(weight, data) for weight in WEIGHTS}
    learned = {ONE_SIGMA: Contestant("sigma_vae", extra=numbers)}
    if purpose:  # a table times a factor
        return learned | {weighted(WEIGHTS[0]): hand_set[weighted(WEIGHTS[0])]}
    others = {
        SIGMA_OF_Z: Contestant("heteroscedastic_vae", extra=numbers),
        STUDENT: _with(StudentT()),
        SIGMOID: Contestant(squashed, extra=numbers),
    }
    return learned | others | hand_set


def _with(likelihood: nn.Module) -> Contestant:
    return Contestant("sigma_vae", {"likelihood": likelihood}, extra=numbers)


def _hand_set(weight: float, data: Data) -> Contestant:
    sigma = implied_sigma(weight, math.prod(data.x_shape))
    return Contestant("gaussian_vae", {"sigma": sigma}, extra=numbers)


def cells(scale: Scale, data: Data) -> list[Cell]:
    """The contestants of a data set, with a smaller code for tables than for images."""
    z_dim = CODE_OF_IMAGE if is_image(data) else CODE_OF_TABLE
    return cells_of(contestants(data), scale, data, z_dim=z_dim)


# The claims. All of them are our own.


def claims(evidence: Evidence) -> list[Claim]:
    """The claims UNR.1 to UNR.7. A claim about rows that are missing is left out."""
    plain = [data for data in evidence.sets() if "," not in data]
    parts = (of_likelihoods, of_multiplication, of_own_units, of_masses, of_two_scales)
    return [claim for data in plain for part in parts for claim in part(evidence, data) if claim.differences]


def of_likelihoods(evidence: Evidence, data: str) -> Iterator[Claim]:
    """UNR.1 to .3 and .6 on a standardised set."""
    bound, rmse = "bound", "rmse"
    for place, weight in enumerate(WEIGHTS):
        text = f"one learned sigma has a higher bound than {weighted(weight)}"
        ends = (ONE_SIGMA, bound), (weighted(weight), bound)
        yield evidence.claim(
            "UNR.1", text, data, *ends, unit="nats", family="UNR.1, other weights" if place else "UNR.1"
        )
    text = "sigma(z) has a higher bound than one sigma"
    yield evidence.claim("UNR.2", text, data, (SIGMA_OF_Z, bound), (ONE_SIGMA, bound), unit="nats", family="UNR.2")
    if data in HEAVY:
        text = "with heavy tails, Student's t has a higher bound than a Gaussian"
        yield evidence.claim("UNR.3", text, data, (STUDENT, bound), (ONE_SIGMA, bound), unit="nats", family="UNR.3")
    text = "a mean that a sigmoid squashes has the larger RMSE"
    yield evidence.claim("UNR.6", text, data, (SIGMOID, rmse), (ONE_SIGMA, rmse), unit="scaled x", family="UNR.6")


Differences = dict[int, float]


def of_multiplication(evidence: Evidence, data: str) -> Iterator[Claim]:
    """UNR.4: a standardised table times s has the same KL and RMSE, and its bound changes by -D log s."""
    for name in (ONE_SIGMA, weighted(WEIGHTS[0])):
        for factor in FACTORS[1:]:
            sets_of = [multiplied_name(data, one, is_scaled=True) for one in (1, factor)]
            text = f"{data}: standardised, {name} has the same {{}} when x is multiplied by {factor}"
            family = f"UNR.4 standardised {data}"
            for column, unit, margin in (("kl", "nats", SAME_NATS), ("rmse", "scaled x", SAME_RMSE)):
                differences = between(evidence, (sets_of[1], name, column), (sets_of[0], name, column))
                yield Claim("UNR.4", text.format(column.upper()), differences, None, unit, margin, family)
            sizes = evidence.values(sets_of[1], name, "dimensions")
            moved = between(evidence, (sets_of[1], name, "bound"), (sets_of[0], name, "bound"))
            left = {seed: moved[seed] + sizes[seed] * math.log(factor) for seed in moved if seed in sizes}
            yield Claim("UNR.4", text.format("bound + D log s"), left, None, "nats", SAME_NATS, family)


def of_own_units(evidence: Evidence, data: str) -> Iterator[Claim]:
    """UNR.4: without a scale, the KL beside a hand-set weight grows with s, by more than beside a learned sigma."""
    family = f"UNR.4 {AS_IT_IS} {data}"
    for factor in FACTORS[1:]:
        once, times = (multiplied_name(data, one, is_scaled=False) for one in (1, factor))
        by_hand, learned = (
            between(evidence, (times, name, "kl"), (once, name, "kl")) for name in (weighted(WEIGHTS[0]), ONE_SIGMA)
        )
        text = f"{data}: as it is, the KL of {weighted(WEIGHTS[0])} grows when x is multiplied by {factor}"
        yield Claim("UNR.4", text, by_hand, None, "nats", None, family)
        more = {seed: abs(by_hand[seed]) - abs(learned[seed]) for seed in by_hand if seed in learned}
        text = f"{data}: as it is, times {factor}, the KL of one learned sigma changes by less"
        yield Claim("UNR.4", text, more, None, "nats", None, family)


def of_masses(evidence: Evidence, data: str) -> Iterator[Claim]:
    """UNR.5: a discretised normal on grey values beside densities of the dequantised ones, which bound a mass too."""
    for name in DENSITIES:
        ends = (f"{data}, {GRID}", NORMAL_MASS, "bound"), (f"{data}, {DEQUANTISED}", name, "bound")
        text = f"{data}: a discretised normal has a higher bound of log P(x) than {name} on dequantised data"
        yield Claim("UNR.5", text, between(evidence, *ends), None, "nats", None, f"UNR.5 {data}")


def of_two_scales(evidence: Evidence, data: str) -> Iterator[Claim]:
    """UNR.7: the scale of images matters to the optimizer. This claim was written after a look at one of the seeds."""
    ends = (data, ONE_SIGMA, "bound"), (f"{data}, {DEQUANTISED}", ONE_SIGMA, "bound")
    text = f"{data}: after the same steps, one sigma has a higher bound on standardised data than on [0, 1]"
    yield Claim("UNR.7", text, between(evidence, *ends), None, "nats", None, f"UNR.7 {data}")


Place = tuple[str, str, str]  # a data set, a contestant and a column


def between(evidence: Evidence, more: Place, less: Place) -> Differences:
    """The first number minus the second one, by seed."""
    high, low = evidence.values(*more), evidence.values(*less)
    return {seed: high[seed] - low[seed] for seed in high if seed in low}


# The picture.


def figure(evidence: Evidence) -> "Figure":
    """Bounds per dimension beside that of one sigma, a panel per data set, and the KL against the factor on x."""
    names = [data for data in evidence.sets() if "," not in data]
    drawing, every = panels(len(names) + 1, 3, 4.6, 3.0)
    for axes, data in zip(every, names, strict=False):
        _draw_bounds(axes, evidence, data)
    _draw_kl(every[-1], evidence, names[0])
    return drawing


def _draw_bounds(axes: Any, evidence: Evidence, data: str) -> None:
    """Bounds less that of one sigma with the same seed, which are free of the units of x."""
    arms = evidence.contestants(data)
    tidy(axes, f"{data}: bound above that of one sigma")
    sizes = evidence.values(data, ONE_SIGMA, "dimensions")
    for place, name in enumerate(arms):
        gains = between(evidence, (data, name, "bound"), (data, ONE_SIGMA, "bound"))
        values = [gain / sizes[seed] for seed, gain in gains.items()]
        axes.plot(values, [place] * len(values), "o", ms=3.5, color=COLOURS[place])
    axes.axvline(0.0, lw=0.6, color=LIGHT)
    axes.set_yticks(range(len(arms)), arms, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xlabel("held-out nats per dimension", fontsize=8)


def _draw_kl(axes: Any, evidence: Evidence, table: str) -> None:
    tidy(axes, f"{table} times s: KL, nats")
    arms = [(name, is_scaled) for name in (ONE_SIGMA, weighted(WEIGHTS[0])) for is_scaled in (True, False)]
    for ink, (name, is_scaled) in zip(COLOURS, arms, strict=False):
        found = [
            (factor, value)
            for factor in FACTORS
            for value in evidence.values(multiplied_name(table, factor, is_scaled=is_scaled), name, "kl").values()
        ]
        label = f"{name}, {STANDARDISED if is_scaled else AS_IT_IS}"
        places = [factor for factor, _ in found], [value for _, value in found]
        axes.plot(*places, "o" if is_scaled else "x", ms=4, color=ink, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("s", fontsize=8)
    axes.legend(fontsize=7, frameon=False)


EXPERIMENT = Experiment(
    name="unrestricted",
    question="How does one model real-valued x, which does not lie in [0, 1]?",
    sets=sets,
    cells=cells,
    claims=claims,
    columns=COLUMNS,
    figure=figure,
    scales={
        "smoke": SCALES["smoke"],
        "reduced": replace(SCALES["reduced"], rows=1500, test_rows=750, judging=Judging(10, 100)),
        "full": replace(SCALES["full"], is_wide=False),  # the wide networks are for images
    },
)

if __name__ == "__main__":
    main(__spec__.name)
