"""Does a learned noise level replace the hand-set weight of the KL?

    python -m ppl_vae.experiments.balance --scale reduced --jobs 2

A Gaussian likelihood with standard deviation sigma weighs half the squared error by 1 / sigma**2 against the KL, so
that the weight beta of the KL beside sigma = 1 is sigma**2. The experiment compares five hand-set weights, an annealed
weight and a mean over pixels with a sigma that is learned by gradient, a sigma in closed form, and a sigma(z) per
pixel, in two stages and in one, and with DIP-VAE and WAE. All have the same networks, optimizer and number of steps.

Samples are judged by Frechet distances, which are not FIDs, with codes from N(0, I) and from a mixture.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..data.data_set import Data
from ..drawing import COLOURS, panels, plain_ticks, tidy
from ..estimate import Number
from ..evaluation.features import Features
from ..studies import Cell, Claim, Contestant, Result
from ..studies.evidence import Evidence
from ..studies.experiment import Experiment, Scale, cells_of, main, public_sets
from ..studies.measures import of_codes, of_history, of_noise, of_samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Z_DIM, WIDE = 10, 64
BETAS = (0.001, 0.01, 0.1, 1.0, 10.0)


def numbers(result: Result, features: Features) -> Mapping[str, Number]:
    """The numbers of samples, codes, sigma and the path of the training."""
    measures = (of_samples, of_codes, of_noise, of_history)
    return {name: number for one in measures for name, number in one(result, features).items()}


def weighted(beta: float) -> str:
    """The name of the contestant with a hand-set weight."""
    return f"beta {beta:g}"


CONTESTANTS = {
    # The weight beta beside sigma = 1 is sigma**2 = beta: the objectives are equal up to the factor beta. Written like
    # this, the best epoch is chosen by the objective that is trained, and not by the bound at sigma = 1.
    **{weighted(beta): Contestant("gaussian_vae", {"sigma": math.sqrt(beta)}) for beta in BETAS},
    "annealed": Contestant("beta_vae", {"beta": 1.0, "anneal": "linear", "sigma": 1.0}),
    "learned": Contestant("sigma_vae"),
    "optimal": Contestant("optimal_sigma_vae"),
    "sigma(z), two stages": Contestant("heteroscedastic_vae", {"stage": 0.5}),
    "sigma(z), at once": Contestant("heteroscedastic_vae", {"stage": 0.0}),
    "DIP-VAE": Contestant("dip_vae"),
    "WAE": Contestant("wae_mmd"),
}
UNIT = weighted(1.0)  # sigma = 1
PIXEL_MEAN = "mean over pixels"
WIDE_CODE = f"learned, z = {WIDE}"

COLUMNS = {
    "bound": "bound",
    "sigma_last": "sigma",
    "kl": "rate (KL)",
    "rmse": "RMSE",
    "active_units": "active",
    "frechet_prior": "F N(0, I)",
    "frechet_ex_post": "F mixture",
    "frechet_interpolations": "F interp.",
    "sigma_rank_correlation": "rank corr.",
}


def cells(scale: Scale, data: Data) -> list[Cell]:
    """Every contestant, the squared error averaged over pixels, and a learned sigma with a wide code."""
    averaged = Contestant("gaussian_vae", {"sigma": math.sqrt(math.prod(data.x_shape) / 2)})
    narrow = {**CONTESTANTS, PIXEL_MEAN: averaged}
    measured = {name: _measured(one) for name, one in narrow.items()}
    wide_code = {WIDE_CODE: _measured(CONTESTANTS["learned"])}
    return [*cells_of(measured, scale, data, z_dim=Z_DIM), *cells_of(wide_code, scale, data, z_dim=WIDE)]


def _measured(one: Contestant) -> Contestant:
    return Contestant(one.build, one.options, extra=numbers)


# The claims.


def claims(evidence: Evidence) -> list[Claim]:
    """The claims on every data set, and those that compare two data sets."""
    parts = (of_bounds, of_samples_claimed, of_sigma_of_z, of_collapse, of_codes_claimed)
    found = [claim for data in evidence.sets() for part in parts for claim in part(evidence, data)]
    return [claim for claim in [*found, *of_two_sets(evidence)] if claim.differences]


def of_bounds(evidence: Evidence, data: str) -> Iterator[Claim]:
    """SIG.1, .2 and .4 on bounds."""
    claim = partial(evidence.claim, data=data, unit="nats")
    learned, optimal = (("learned", "bound"), ("optimal", "bound"))
    best = best_of_sweep(evidence, data, "bound", up=True)
    text = f"the bound of an optimal sigma reaches the best of the weights, {best}"
    yield claim("SIG.1", text, more=optimal, less=(best, "bound"))
    text = "a learned sigma has a better bound than sigma = 1"
    yield claim("SIG.2", text, more=learned, less=(UNIT, "bound"))
    text = "at the end, the bound of an optimal sigma is no worse than that of a learned one"
    yield claim("SIG.4", text, more=optimal, less=learned)
    first, second = (evidence.path(data, name, "held_out_loss") for name in ("learned", "optimal"))
    gains = {seed: _at_a_quarter(first[seed]) - _at_a_quarter(second[seed]) for seed in first if seed in second}
    text = f"{data}: after a quarter of the epochs, an optimal sigma has the better held-out bound than a learned one"
    yield Claim("SIG.4", text, gains, None, "nats", None, f"SIG.4 {data}")


def _at_a_quarter(path: list[float]) -> float:
    """The entry of a history after a quarter of the epochs."""
    return path[math.ceil(len(path) / 4) - 1]


def best_of_sweep(evidence: Evidence, data: str, column: str, *, up: bool) -> str:
    """The hand-set weight with the best mean. It is chosen with the seeds that it is then judged by, to its favour."""
    means = {}
    for beta in BETAS:
        values = evidence.values(data, weighted(beta), column)
        if values:
            means[weighted(beta)] = math.fsum(values.values()) / len(values)
    return (max if up else min)(means, key=lambda name: means[name]) if means else UNIT


def of_samples_claimed(evidence: Evidence, data: str) -> Iterator[Claim]:
    """BAL.1, BAL.4, BAL.6, SIG.1, SIG.2 and TWO.3 on samples."""
    claim = partial(evidence.claim, data=data, unit="F")
    prior, mixture = "frechet_prior", "frechet_ex_post"
    for name in [weighted(beta) for beta in BETAS] + ["DIP-VAE", "WAE"]:
        text = f"with the mixture, samples of a learned sigma are closer than those of {name}"
        yield claim("BAL.1", text, more=(name, mixture), less=("learned", mixture))
    for name in ("learned", "optimal", "sigma(z), two stages"):
        text = f"the mixture improves the samples of {name}"
        yield claim("BAL.4", text, more=(name, prior), less=(name, mixture))
        text = f"the mixture's samples of {name} are nearer to the training data"
        more, less = (name, "nearest_prior"), (name, "nearest_ex_post")
        yield evidence.claim("BAL.4", text, data, more, less, unit="scaled x", family=f"BAL.4 near {data}")
    text = "interpolations of a learned sigma are closer than those of sigma = 1"
    yield claim("BAL.6", text, more=(UNIT, "frechet_interpolations"), less=("learned", "frechet_interpolations"))
    best = best_of_sweep(evidence, data, mixture, up=False)
    text = f"with the mixture, samples of an optimal sigma reach the best of the weights, {best}"
    yield claim("SIG.1", text, more=(best, mixture), less=("optimal", mixture), family=f"SIG.1 samples {data}")
    text = "from N(0, I), samples of a learned sigma are closer than those of sigma = 1"
    yield claim("SIG.2", text, more=(UNIT, prior), less=("learned", prior), family=f"SIG.2 samples {data}")
    text = "from N(0, I), samples of a learned sigma are no closer than those of sigma = 1"
    yield claim("TWO.3", text, more=("learned", prior), less=(UNIT, prior))


def of_sigma_of_z(evidence: Evidence, data: str) -> Iterator[Claim]:
    """BAL.3, SIG.3 and BAL.5: sigma(z)."""
    nats, distances = (partial(evidence.claim, data=data, unit=unit) for unit in ("nats", "F"))
    late, at_once, bound = "sigma(z), two stages", "sigma(z), at once", "bound"
    yield nats("BAL.3", "sigma(z) improves the bound of one sigma", more=(late, bound), less=("learned", bound))
    yield nats("BAL.3", "two stages end with a better bound than one", more=(late, bound), less=(at_once, bound))
    for name, sign in (("BAL.3", "closer"), ("SIG.3", "farther")):
        ends = [("learned", "frechet_ex_post"), (late, "frechet_ex_post")]
        more, less = ends if sign == "closer" else ends[::-1]
        text = f"with the mixture, samples of sigma(z) are {sign} than those of one sigma"
        yield distances(name, text, more=more, less=less, family=f"{name} samples {data}")
    values = evidence.values(data, late, "sigma_rank_correlation")
    error = evidence.error(data, late, "sigma_rank_correlation")
    text = f"{data}: sigma(z) is larger where the squared error is larger (rank correlation above 0)"
    yield Claim("BAL.5", text, values, error, "", None, f"BAL.5 {data}")


def of_collapse(evidence: Evidence, data: str) -> Iterator[Claim]:
    """SIG.6 and TWO.2: units that switch off."""
    active = evidence.values(data, PIXEL_MEAN, "active_units")
    missing = {seed: 0.5 - value for seed, value in active.items()}
    text = f"{data}: the squared error averaged over pixels leaves no active unit"
    yield Claim("SIG.6", text, missing, None, "units below one half", None, f"SIG.6 {data}")
    used = evidence.values(data, WIDE_CODE, "active_units")
    off = {seed: WIDE - 0.5 - value for seed, value in used.items()}
    text = f"{data}: with a learned sigma, some of {WIDE} units switch off"
    yield Claim("TWO.2", text, off, None, "units above one half", None, f"TWO.2 {data}")


def of_codes_claimed(evidence: Evidence, data: str) -> Iterator[Claim]:
    """TWO.1 and SIG.5: the path of sigma, and the knee of KL(q(z) || p(z))."""
    sigma = partial(evidence.claim, data=data, unit="scaled x")
    text = "a learned sigma falls in training"
    yield sigma("TWO.1", text, more=("learned", "sigma_first"), less=("learned", "sigma_last"))
    text = "with a wider code, a learned sigma ends lower"
    yield sigma("TWO.1", text, more=("learned", "sigma_last"), less=(WIDE_CODE, "sigma_last"))
    text = f"{data}: KL(q(z) || p(z)) rises faster below the learned sigma**2 than above it"
    yield Claim("SIG.5", text, knees(evidence, data), None, "nats per factor of e in beta", None, f"SIG.5 {data}")


def knees(evidence: Evidence, data: str) -> dict[int, float]:
    """How much steeper the aggregate KL is below the learned sigma**2 than above it, by seed.

    The slope is that of KL(q(z) || p(z)) against -log beta, between the learned sigma and the next weight on each side.
    """
    found = {}
    sigmas = evidence.values(data, "learned", "sigma_last")
    own = evidence.values(data, "learned", "aggregate_kl")
    for seed, sigma in sigmas.items():
        beta = sigma**2
        below = max((weight for weight in BETAS if weight < beta), default=None)
        above = min((weight for weight in BETAS if weight > beta), default=None)
        if below is None or above is None or seed not in own:
            continue
        low, high = (evidence.values(data, weighted(weight), "aggregate_kl").get(seed) for weight in (below, above))
        if low is not None and high is not None:
            found[seed] = (low - own[seed]) / math.log(beta / below) - (own[seed] - high) / math.log(above / beta)
    return found


def of_two_sets(evidence: Evidence) -> Iterator[Claim]:
    """BAL.2: the gain on Fashion-MNIST beside that on Frey faces."""
    gains = [_gain(evidence, data) for data in ("fashion_mnist", "frey_faces")]
    differences = {seed: gains[0][seed] - gains[1][seed] for seed in gains[0] if seed in gains[1]}
    text = "a learned sigma lowers the distance of sigma = 1 by a larger share on Fashion-MNIST than on Frey faces"
    yield Claim("BAL.2", text, differences, None, "of the distance", None, "BAL.2")


def _gain(evidence: Evidence, data: str) -> dict[int, float]:
    """The share by which a learned sigma lowers the distance of samples of sigma = 1, by seed."""
    unit, learned = (evidence.values(data, name, "frechet_ex_post") for name in (UNIT, "learned"))
    return {seed: 1 - learned[seed] / unit[seed] for seed in unit if seed in learned}


# The picture.

LABELS = {"kl": "KL, nats", "rmse": "RMSE", "frechet_prior": "F, N(0, I)", "frechet_ex_post": "F, mixture"}


def figure(evidence: Evidence) -> "Figure":
    """The rate-distortion plane, the path of sigma, and the distances of samples; one row per data set."""
    sets = evidence.sets()
    drawing, every = panels(3 * len(sets), 3, 4.4, 3.2)
    inks = dict(zip([*CONTESTANTS, PIXEL_MEAN, WIDE_CODE], COLOURS, strict=False))
    for index, data in enumerate(sets):
        plane, path, distances = every[3 * index : 3 * index + 3]
        _scatter(plane, evidence, data, inks, "rate and distortion", "kl", "rmse")
        _scatter(distances, evidence, data, inks, "samples", "frechet_prior", "frechet_ex_post")
        distances.set_xscale("log")
        distances.set_yscale("log")
        plain_ticks(distances, "both")
        tidy(path, f"{data}: sigma against epochs")
        for name in ("learned", "optimal", "sigma(z), two stages", "sigma(z), at once", WIDE_CODE):
            for values in evidence.path(data, name, "sigma").values():
                path.plot(range(1, len(values) + 1), values, lw=0.8, color=inks[name])
        path.set_yscale("log")
        plain_ticks(path, "y")
    every[2].legend(fontsize=6.5, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return drawing


def _scatter(axes: Any, evidence: Evidence, data: str, inks: Mapping[str, str], title: str, x: str, y: str) -> None:
    """A dot per seed at two of its columns, in the colour of its contestant."""
    tidy(axes, f"{data}: {title}")
    for name in evidence.contestants(data):
        here, there = evidence.values(data, name, x), evidence.values(data, name, y)
        seeds = [seed for seed in here if seed in there]
        places = [here[seed] for seed in seeds], [there[seed] for seed in seeds]
        axes.plot(*places, "o", ms=3.5, color=inks[name], label=name)
    axes.set_xlabel(LABELS[x], fontsize=8)
    axes.set_ylabel(LABELS[y], fontsize=8)


EXPERIMENT = Experiment(
    name="balance",
    question="Does a learned noise level replace the hand-set weight of the KL?",
    sets=public_sets("fashion_mnist", "frey_faces"),
    cells=cells,
    claims=claims,
    columns=COLUMNS,
    figure=figure,
)

if __name__ == "__main__":
    main(__spec__.name)
