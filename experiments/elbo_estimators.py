"""Which estimator of the bound trains best?

    python -m ppl_vae.experiments.elbo_estimators --scale reduced --jobs 2

The network is that of Burda et al., 784-200-200-50 with tanh and a mirrored decoder, on the fixed binarized MNIST. The
contestants differ in the estimator that trains it, with K = 1, 5 or 50 draws per datum. All are judged by the same
importance-weighted bound of 5000 draws. The published bounds are those of the whole training set and 3,280 epochs.

* MIWAE needs two bounds of K = 5 draws each to differ from the ELBO and from IWAE: it has 10 draws per datum. PIWAE has
  5 draws: the model is trained on one bound of five, and the guide on five bounds of one.
* K = 50 has three seeds, all else has five.
* The last weights are judged, not those of the best epoch: the ELBO, by which ``fit`` would choose it, favours some.
* ``MNIST, one draw`` and ``MNIST, fresh draws`` have the same images, binarized once or anew in each batch.
* KW.1, on wake-sleep, is not judged: the library does not have that algorithm.

Claims on single gradients are judged on linear-Gaussian models, where the truth is known. See
``studies.single_gradients``.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import Variant, fit, pair
from ..data.data_set import Data
from ..data.public import public_set
from ..drawing import COLOURS, panels, tidy
from ..elbo import estimator
from ..estimate import Number
from ..evaluation.features import Features
from ..evaluation.lower_bounds import bounds
from ..models import Bernoulli
from ..streams import chosen, seeded
from ..studies import Cell, Claim, Contestant, Judging, Result, single_gradients as exact
from ..studies.evidence import Evidence
from ..studies.experiment import Experiment, Scale, cells_of, main, public_sets
from ..training.fitting import Fit
from ..training.options import SCHEDULES
from ..verification.repeated_draws import frozen, replicates, spans

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, Z_DIM = 200, 50
COSINE = SCHEDULES["cosine"]  # the factor on the learning rate after a share of the training
SCALES = {
    scale.name: scale
    for scale in (
        Scale("smoke", 120, 40, 1, 32, 2, 4, Judging(1, 20, "pca"), training={"backend": "eager"}),
        Scale("reduced", 5000, 500, 20, 50, 5, 200, Judging(1, 5000)),
        Scale("full", 50_000, 500, 500, 100, 5, 200, Judging(1, 5000)),
    )
}


# How a contestant is built and trained.


def burda(x_shape: tuple[int, ...], z_dim: int, *, loss: str, seed: int) -> Variant:
    """The network of Burda et al. with one stochastic layer: tanh, two hidden layers of 200 units, Glorot's weights."""
    with seeded(seed):
        x_dim = math.prod(x_shape)
        encoder = nn.Sequential(nn.Flatten(), *_layers(x_dim, WIDTH), *_layers(WIDTH, WIDTH))
        decoder = nn.Sequential(*_layers(z_dim, WIDTH), *_layers(WIDTH, WIDTH), nn.Linear(WIDTH, x_dim))
        variant = pair(x_shape, z_dim, likelihood=Bernoulli(), encoder=encoder, decoder=decoder, loss=loss)
        for layer in [*variant.guide.modules(), *variant.model.modules()]:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
    return variant


def _layers(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, outputs), nn.Tanh()


def trained(variant: Variant, data: Data, *, epochs: int, share: float = 1.0, **training: Any) -> Fit:
    """Start the output bias at the logit of the training mean, and train for a share of the epochs.

    The signal-to-noise ratios of the gradients are measured before, in the middle of and after the training.
    """
    _start_at_the_mean(variant, data)
    watch = Watch(variant)
    found = fit(variant, data, epochs=max(1, round(share * epochs)), validation=None, schedule=watch, **training)
    watch.keep()
    return replace(found, settings={**found.settings, **_ratios(watch, data)})


def swapped(variant: Variant, data: Data, *, epochs: int, then: str, **training: Any) -> Fit:
    """Train with the loss of the pair for half of the epochs, and with another one for the other half.

    The learning rate goes on where it was. Adam starts anew.
    """
    _start_at_the_mean(variant, data)
    half, shared = max(1, epochs // 2), {"validation": None, **training}
    fit(variant, data, epochs=half, schedule=lambda share: COSINE(share / 2), **shared)
    second = variant._replace(loss=estimator(then))
    return fit(second, data, epochs=half, schedule=lambda share: COSINE(0.5 + share / 2), **shared)


def _start_at_the_mean(variant: Variant, data: Data) -> None:
    mean = variant.in_model_units(data.resident).mean(0).clamp(0.001, 0.999)
    with torch.no_grad():
        variant.model.decoder[-1].bias.copy_(mean.logit().flatten())  # type: ignore[index]


# The noise of a gradient along the training.

MOMENTS = {"start": 0.0, "half": 0.5, "end": 1.0}
BATCH, DRAWS = 100, 40  # data of the gradient, and repeated draws of it


class Watch:
    """A schedule of the learning rate that keeps a copy of the pair at some moments of the training."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.kept: list[Variant] = []

    def __call__(self, share: float) -> float:
        if len(self.kept) < len(MOMENTS) - 1 and share >= list(MOMENTS.values())[len(self.kept)]:
            self.keep()
        return COSINE(share)

    def keep(self) -> None:
        """Keep a copy of the pair as it is now."""
        self.kept.append(frozen(self.variant))


def _ratios(watch: Watch, data: Data) -> dict[str, float]:
    """The signal-to-noise ratios of the gradients of the guide and of the model at each moment."""
    y = watch.variant.in_model_units(data.resident[:BATCH])
    if data.binarize is not None:
        with seeded(0):
            y = torch.bernoulli(y)
    found = {}
    for moment, variant in zip(MOMENTS, watch.kept, strict=True):
        drawn = replicates(variant, variant.loss, (y, len(y)), DRAWS, 0)
        gradients = torch.stack([one.gradient for one in drawn])
        for name, part in (("guide", "encoder"), ("model", "decoder")):
            found[f"snr_{name}_{moment}"] = exact.ratio(gradients[:, spans(variant)[part]])
    return found


def numbers(result: Result, features: Features) -> Mapping[str, Number]:
    """The gap of the guide, L_5000 minus the ELBO, and the ratios of the training, where it measured them."""
    weighted, elbo = (result.evaluation[name].value for name in ("importance_weighted", "bound"))
    gap = Number(None, reason="none") if weighted is None or elbo is None else Number(weighted - elbo)
    ratios = {name: Number(value) for name, value in result.fit.settings.items() if name.startswith("snr_")}
    return {"gap": gap, **ratios}


SEEN, FEW = 500, 100  # training data whose bound is computed, and the draws K of it


def with_train_bound(result: Result, features: Features) -> Mapping[str, Number]:
    """Those of ``numbers``, and importance-weighted bounds with K = 100 of training and of held-out data."""
    train = result.data.resident
    seen = train[chosen(len(train), SEEN, 0)]
    seen = torch.bernoulli(seen) if result.data.binarize else seen
    parts = {"weighted_train": seen, "weighted_test": result.data.test}
    found = {name: bounds(result.variant, x, FEW).importance_weighted.mean() for name, x in parts.items()}
    return {**numbers(result, features), **{name: Number(float(value)) for name, value in found.items()}}


# The contestants.


def with_loss(loss: str, **training: Any) -> Contestant:
    """The network, trained with the named estimator."""
    return Contestant(burda, {"loss": loss}, train=trained, training=training, extra=numbers)


FIVE = "num_particles=5"
ELBO_5 = f"trace:{FIVE},max_plate_nesting=1,vectorize_particles=true"
CONTESTANTS = {
    "ELBO, 1": with_loss("trace"),
    "STL, 1": with_loss("stl"),
    "ELBO, 5": with_loss(ELBO_5),
    "STL, 5": with_loss(f"stl:{FIVE}"),
    "IWAE, 5": with_loss(f"iwae:{FIVE}"),
    "DReG, 5": with_loss(f"dreg:{FIVE}"),
    "CIWAE, 5": with_loss(f"ciwae:beta=0.5,{FIVE}"),
    "Renyi, 5": with_loss(f"renyi:alpha=0.5,{FIVE}"),
    "PIWAE, 5 x 1": with_loss(f"piwae:{FIVE},groups=5"),
    "MIWAE, 2 x 5": with_loss("miwae:num_particles=10,groups=2"),
}
MANY = {  # three seeds, because they take ten times as long
    "IWAE, 50": with_loss("iwae:num_particles=50"),
    "DReG, 50": with_loss("dreg:num_particles=50"),
}
FEWER_STEPS = "ELBO, 5, fewer steps"  # a fifth of the steps of "ELBO, 1", with as many codes decoded
SWAPPED = {
    "ELBO, then IWAE, 5": Contestant(
        burda, {"loss": ELBO_5}, train=swapped, training={"then": f"iwae:{FIVE}"}, extra=numbers
    ),
    "IWAE, then ELBO, 5": Contestant(
        burda, {"loss": f"iwae:{FIVE}"}, train=swapped, training={"then": ELBO_5}, extra=numbers
    ),
}
NARROW, BROAD = "ELBO, 1, z = 5", "ELBO, 1, z = 200"
SIZES = {NARROW: 5, BROAD: 200}
PUBLISHED = {
    "ELBO, 1": "-88.71",
    "ELBO, 5": "-88.83",
    "IWAE, 5": "-87.63",
    "IWAE, 50": "-87.10",
}  # Burda et al., 2016, table 1 and appendix, fixed binarization
ONE_DRAW, FRESH_DRAWS = "MNIST, one draw", "MNIST, fresh draws"
FIXED = "binarized_mnist"


def sets(scale: Scale, root: Path | None) -> list[Data]:
    """The fixed binarized MNIST, and the images of MNIST with one draw and with fresh draws. Digits without copies."""
    grey = public_set("mnist", root, rows=scale.rows, test_rows=scale.test_rows)
    fixed = public_set(FIXED, root, rows=scale.rows, test_rows=scale.test_rows)
    if scale.name == "smoke" or grey is None or fixed is None:
        (digits,) = public_sets()(scale, root)
        fixed, grey = replace(digits.binarized("static"), name="digits"), digits
    ways = {ONE_DRAW: "static", FRESH_DRAWS: "dynamic"}
    return [fixed, *(replace(grey.binarized(how), name=name, origin=None) for name, how in ways.items())]


def cells(scale: Scale, data: Data) -> list[Cell]:
    """All contestants on the fixed draw, and the ELBO on the two others."""
    if data.name in (ONE_DRAW, FRESH_DRAWS):
        elbo = replace(CONTESTANTS["ELBO, 1"], extra=with_train_bound)
        return cells_of({"ELBO, 1": elbo}, scale, data, z_dim=Z_DIM)
    fewer = {FEWER_STEPS: with_loss(ELBO_5, share=0.2)}
    found = cells_of({**CONTESTANTS, **SWAPPED, **fewer}, scale, data, z_dim=Z_DIM)
    found += cells_of(MANY, replace(scale, seeds=min(3, scale.seeds)), data, z_dim=Z_DIM)
    for name, size in SIZES.items():
        found += cells_of({name: CONTESTANTS["ELBO, 1"]}, scale, data, z_dim=size)
    return found


# The claims.

BOUND, GAP, ACTIVE = "importance_weighted", "gap", "active_units"
SAME = 0.5  # nats: bounds that differ by less count as equal; chosen before the run, for nbip's effect of DReG


def claims(evidence: Evidence) -> list[Claim]:
    """The claims on trained networks, and those on single gradients."""
    parts = (of_bounds, of_guides, of_noise, of_units, of_draws)
    mains = [data for data in evidence.sets() if data not in (ONE_DRAW, FRESH_DRAWS, *exact.SETS)]
    found = [claim for data in mains for part in parts for claim in part(evidence, data)]
    found += [*of_binarization(evidence), *exact.claims_of(evidence)]
    return [claim for claim in found if claim.differences]


def of_bounds(evidence: Evidence, data: str) -> Iterator[Claim]:
    """IW.2, IW.3, EST.5, EST.7 and TB.5: which estimator reaches the best bound of 5000 draws."""
    nats = partial(_beside, evidence, data, BOUND)
    yield nats("IW.2", "IWAE, 5", "ELBO, 5")
    yield nats("IW.2", "IWAE, 50", "IWAE, 5")
    equal = nats("IW.3", "ELBO, 5", "ELBO, 1", text="ELBO, 5 and ELBO, 1 reach the same bound")
    yield equal._replace(margin=SAME)
    for count in (5, 50):
        yield nats("EST.5", f"DReG, {count}", f"IWAE, {count}")
    few, many = (evidence.claim("", "", data, (f"DReG, {n}", BOUND), (f"IWAE, {n}", BOUND)) for n in (5, 50))
    gains = {seed: gain - few.differences[seed] for seed, gain in many.differences.items()}
    text = f"{data}: the gain of DReG over IWAE is larger with 50 draws than with 5"
    yield Claim("EST.5", text, gains, None, "nats", None, f"EST.5 {data}")
    yield nats("EST.7", "ELBO, 1", "STL, 1")
    yield nats("EST.7", "ELBO, 5", "STL, 5")
    text = f"{data}: the bound of PIWAE, 5 x 1 is at most {SAME} nats below that of IWAE, 5"
    yield _no_worse(nats("TB.5", "PIWAE, 5 x 1", "IWAE, 5"), text)._replace(family=f"TB.5 no worse {data}")


def _no_worse(claim: Claim, text: str) -> Claim:
    """The claim that a bound is at most ``SAME`` below another one, from the claim that it is above."""
    differences = {seed: value + SAME for seed, value in claim.differences.items()}
    return claim._replace(text=text, differences=differences, unit=f"nats above a loss of {SAME}")


def of_guides(evidence: Evidence, data: str) -> Iterator[Claim]:
    """TB.4 to .6: the gap of the guide, L_5000 minus the ELBO, which is nearly KL(q(z | x) || p(z | x))."""
    gap = partial(_beside, evidence, data, GAP)
    for count in (5, 50):
        yield gap("TB.4", f"IWAE, {count}", "ELBO, 5")
    for name in ("PIWAE, 5 x 1", "MIWAE, 2 x 5", "CIWAE, 5"):
        yield gap("TB.5", "IWAE, 5", name)
    for count in (5, 50):
        yield gap("TB.6", f"IWAE, {count}", f"DReG, {count}")


def of_noise(evidence: Evidence, data: str) -> Iterator[Claim]:
    """TB.1, TB.2 and EST.3 along the training: the signal-to-noise ratios of gradients."""
    for moment in ("half", "end"):
        guide, model = (f"snr_{part}_{moment}" for part in ("guide", "model"))
        when = "at the end" if moment == "end" else "in the middle"
        ratio = partial(_beside, evidence, data, unit="", text=when)
        yield ratio(guide, "TB.1", "IWAE, 5", "IWAE, 50")
        yield ratio(model, "TB.2", "IWAE, 50", "IWAE, 5")
        for count in (5, 50):
            yield ratio(guide, "EST.3", f"DReG, {count}", f"IWAE, {count}")


def of_units(evidence: Evidence, data: str) -> Iterator[Claim]:
    """IW.4 and IW.5: active units, and whether they follow the objective or the initial weights."""
    units = partial(_beside, evidence, data, ACTIVE, unit="units")
    for count in (5, 50):
        yield units("IW.4", f"IWAE, {count}", "ELBO, 5")
    first, last = "ELBO, then IWAE, 5", "IWAE, then ELBO, 5"
    yield units("IW.5", first, last)._replace(family=f"IW.5 units {data}")
    for better, worse in ((first, last), (first, "ELBO, 5"), ("IWAE, 5", last)):
        yield _beside(evidence, data, BOUND, "IW.5", better, worse)


def of_draws(evidence: Evidence, data: str) -> Iterator[Claim]:
    """KW.2 and KW.3: superfluous units, and draws beside steps."""
    nats = partial(_beside, evidence, data, BOUND)
    text = f"{data}: with {SIZES[BROAD]} units the bound is at most {SAME} nats below that with {Z_DIM}"
    yield _no_worse(nats("KW.2", BROAD, "ELBO, 1"), text)
    yield nats("KW.2", "ELBO, 1", NARROW)
    yield nats("KW.3", "ELBO, 1", FEWER_STEPS)


def of_binarization(evidence: Evidence) -> Iterator[Claim]:
    """IW.6: one draw of the training images overfits, beside fresh draws."""
    seen, unseen = (
        {data: evidence.values(data, "ELBO, 1", f"weighted_{part}") for data in (ONE_DRAW, FRESH_DRAWS)}
        for part in ("train", "test")
    )
    seeds = [seed for seed in unseen[ONE_DRAW] if seed in unseen[FRESH_DRAWS]]
    gaps = {data: {seed: seen[data][seed] - unseen[data][seed] for seed in seeds} for data in seen}
    wider = {seed: gaps[ONE_DRAW][seed] - gaps[FRESH_DRAWS][seed] for seed in seeds}
    better = {seed: unseen[FRESH_DRAWS][seed] - unseen[ONE_DRAW][seed] for seed in seeds}
    text = (
        "MNIST: the bound of training data is farther above that of held-out data with one draw than with fresh draws"
    )
    yield Claim("IW.6", text, wider, None, "nats", None, "IW.6")
    yield Claim("IW.6", "MNIST: fresh draws give the better held-out bound", better, None, "nats", None, "IW.6")


WORDS = {BOUND: "the bound", GAP: "the gap of the guide", ACTIVE: "the number of active units"}


def _words(column: str) -> str:
    return WORDS[column] if column in WORDS else f"the SNR of the gradient of the {column.split('_')[1]}"


def _beside(
    evidence: Evidence, data: str, column: str, name: str, more: str, less: str, *, text: str = "", unit: str = "nats"
) -> Claim:
    """The claim that a contestant has more of a column than another one."""
    said = text if text and column in WORDS else f"{_words(column)} of {more} is above that of {less} {text}".strip()
    family = f"{name} {column} {data}"
    return evidence.claim(name, said, data, (more, column), (less, column), unit=unit, family=family)


# The picture.


def figure(evidence: Evidence) -> "Figure":
    """Bounds and gaps of every contestant, the SNR along the training, and slopes on the linear-Gaussian model."""
    data = next(name for name in evidence.sets() if name not in (ONE_DRAW, FRESH_DRAWS, *exact.SETS))
    drawing, (bound, gap, ratio, ladder) = panels(4, 2, 5.2, 3.6)
    names = [
        name for name in [*CONTESTANTS, *MANY, *SWAPPED, FEWER_STEPS, *SIZES] if name in evidence.contestants(data)
    ]
    for axes, column, title in ((bound, BOUND, "bound of 5000 draws, nats"), (gap, GAP, "gap of the guide, nats")):
        tidy(axes, f"{data}: {title}")
        for place, name in enumerate(names):
            values = list(evidence.values(data, name, column).values())
            axes.plot(values, [place] * len(values), "o", ms=3, color=COLOURS[0])
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.invert_yaxis()
    _draw_ratios(ratio, evidence, data)
    ladder.set_visible(exact.TOY in evidence.sets())
    if ladder.get_visible():
        exact.draw(ladder, evidence)
    return drawing


def _draw_ratios(axes: Any, evidence: Evidence, data: str) -> None:
    tidy(axes, f"{data}: SNR of the gradient of the guide")
    for ink, name in zip(COLOURS, ("ELBO, 1", "STL, 1", "IWAE, 5", "DReG, 5", "IWAE, 50", "DReG, 50"), strict=False):
        paths = [evidence.values(data, name, f"snr_guide_{moment}") for moment in MOMENTS]
        means = [math.fsum(path.values()) / len(path) for path in paths if path]
        if means:
            axes.plot(range(len(means)), means, "o-", ms=3, lw=1, color=ink, label=name)
    axes.set_xticks(range(len(MOMENTS)), MOMENTS, fontsize=8)
    axes.set_yscale("log")
    axes.legend(fontsize=6.5, frameon=False)


COLUMNS = {
    BOUND: "bound, 5000 draws",
    "bound": "ELBO",
    GAP: "gap",
    ACTIVE: "active",
    "snr_guide_end": "SNR, guide",
    "snr_model_end": "SNR, model",
}

EXPERIMENT = Experiment(
    name="elbo_estimators",
    question="Which estimator of the bound trains best?",
    sets=sets,
    cells=cells,
    claims=claims,
    columns=COLUMNS,
    figure=figure,
    published={FIXED: PUBLISHED},
    scales=SCALES,
    exact=exact.rows,
)

if __name__ == "__main__":
    main(__spec__.name)
