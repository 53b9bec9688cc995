"""Does L2 on the weights make sense on top of the KL?

    python -m ppl_vae.experiments.weight_decay --scale reduced --jobs 2

The KL regularises the codes, and an L2 term regularises the weights. Read as log densities, the KL is paid once per
datum and a Gaussian prior on the weights once per data set, so that the prior should matter for few data alone. The
experiment trains a VAE with a learned sigma on 250, 1,000 and 4,000 images with and without a Gaussian prior on the
weights of the decoder, of the heads of the guide, and of both, in three sizes; and with the weight decay of Adam and of
AdamW. Two of the arms are also trained on 16,000 images. A term on the heads is a penalty on the inference network and
no prior, because the guide is no part of p(x, z).

All arms have the same networks, the same number of steps and the same held-out images. Small sets are therefore seen
more often, 128 times with 250 images and twice with 16,000, and the VAE without L2 overfits them. Nothing is held out
of the training and no best epoch is chosen, which would hide the overfitting: all numbers are those of the last
weights.

The last question of the Q&A is answered exactly: what the variance of the gradient is if one noise vector is shared by
all data of a batch.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..coding import mean_codes
from ..data.data_set import Data
from ..drawing import COLOURS, GREY, panels, plain_ticks, tidy
from ..estimate import Number, exponent, mean_over_data
from ..evaluation.features import Features
from ..evaluation.lower_bounds import held_out
from ..models import LinearGaussian
from ..models.penalties import matrices
from ..streams import seeded
from ..studies import Cell, Claim, Contestant, Judging, Result
from ..studies.evidence import Evidence
from ..studies.experiment import Experiment, Scale, cells_of, main, public_sets
from ..variant import evaluating

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Z_DIM, WIDTH = 16, 64
NONE = "no L2"
PLACES = {"heads": ("guide.heads",), "decoder": ("decoder",), "both": ("decoder", "guide.heads")}
# Standard deviations of the prior, written down before the first run. The weights start with standard deviations from
# 0.04 to 0.14. The last one is that of RAE-L2's penalty, read as a prior with sigma**2 = 1/2 and 50,000 data.
MIDDLE, PUBLISHED = 0.1, 0.31
SIZES_OF_PRIOR = (0.03, MIDDLE, PUBLISHED)
DECAYED = {"Adam, weight_decay": torch.optim.Adam, "AdamW": torch.optim.AdamW}
LITTLE = 0.1  # Frechet distances that differ by at most this share differ little: written down before the first run
SAME = 2.0  # nats per datum, below which bounds count as the same: written down before the first run


def prior_on(place: str, size: float) -> str:
    """The name of the arm with a prior of a size on a place."""
    return f"{place}, sd {size:g}"


PRIORS = {prior_on(place, size): (place, size) for place in PLACES for size in SIZES_OF_PRIOR}
ARMS = (NONE, *PRIORS, *DECAYED)
ON_ALL_SIZES = (NONE, prior_on("decoder", MIDDLE))

# The sizes of the data sets. The largest one has only the arms in ``ON_ALL_SIZES``. A batch divides every size, so that
# all sizes have the same number of steps: ``epochs`` on the largest one, and more on the others.
SIZES = {"smoke": (25, 50), "reduced": (250, 1000, 4000, 16_000), "full": (250, 1000, 4000, 16_000)}
SCALES = {
    "smoke": Scale("smoke", 50, 50, 1, 25, 1, 4, Judging(1, 5, "pca"), training={"backend": "eager"}),
    "reduced": Scale("reduced", 16_000, 500, 2, 25, 5, Z_DIM, Judging(1, 10, "pca")),
    "full": Scale("full", 16_000, 10_000, 20, 25, 5, Z_DIM, Judging(1, 100, "pca")),
}
COLUMNS = {
    "bound": "held-out bound",
    "train_bound": "train bound",
    "gap": "gap",
    "kl": "KL",
    "active_units": "active",
    "code_size": "size of codes",
    "head_norm": "|heads|",
    "decoder_norm": "|decoder|",
    "frechet_prior": "F N(0, I)",
}


def numbers(result: Result, features: Features) -> Mapping[str, Number]:
    """The bound of training data, the size of the codes, and the norms of weights.

    * ``train_bound`` is the bound of as many training data as are held out, or of all if there are fewer, with the same
      number of draws as the held-out bound; ``gap`` is that bound minus the held-out one, nats per datum.
    * ``code_size`` is the root mean square of the means of q(z | x) of held-out data, over data and coordinates.
    * ``head_norm`` and ``decoder_norm`` are the norms of all weight matrices and kernels of these parts.
    """
    variant, data = result.variant, result.data
    seen = variant.in_model_units(data.resident[: len(data.test)])
    with evaluating(variant), seeded(0):
        train = mean_over_data(held_out(variant, seen, result.evaluation.num_particles))
        codes = mean_codes(variant, variant.in_model_units(data.test))
    own = result.evaluation["bound"]
    return {
        "train_bound": train,
        "gap": Number((train.value or 0.0) - (own.value or 0.0), math.hypot(train.error or 0.0, own.error or 0.0)),
        "code_size": Number(float(codes.square().mean().sqrt())),
        "head_norm": _norm(matrices(variant.guide.heads)),
        "decoder_norm": _norm(matrices(variant.model.decoder)),
    }


def _norm(weights: list[Tensor]) -> Number:
    return Number(math.sqrt(sum(float(weight.detach().square().sum()) for weight in weights)))


def sets(scale: Scale, root: Path | None) -> list[Data]:
    """The data in several sizes. A smaller set is the beginning of a larger one, with the same held-out rows."""
    (data,) = public_sets("mnist")(scale, root)
    return [
        replace(
            data,
            name=f"{data.name} {size}",
            train=data.resident[:size],
            labels=None if data.labels is None else data.labels[:size],
        )
        for size in SIZES[scale.name]
    ]


def contestants(rows: int) -> dict[str, Contestant]:
    """All arms for a number of training data.

    The weight decay is that whose gradient in a loss per datum is the one of a prior of the middle size on all
    weights, ``1 / (rows MIDDLE**2)``. Adam adds it to the gradient, and divides it by the root of the mean squared
    gradient with the rest. AdamW multiplies the weights by ``1 - lr weight_decay`` instead.
    """
    decay = 1 / (rows * MIDDLE**2)
    priors = {name: {"tau": size, "layers": PLACES[place], "width": WIDTH} for name, (place, size) in PRIORS.items()}
    trained = {name: {"optimizer": partial(optimizer, weight_decay=decay)} for name, optimizer in DECAYED.items()}
    return {
        NONE: Contestant("sigma_vae", {"width": WIDTH}, extra=numbers),
        **{name: Contestant("l2_vae", options, extra=numbers) for name, options in priors.items()},
        **{
            name: Contestant("sigma_vae", {"width": WIDTH}, training=own, extra=numbers)
            for name, own in trained.items()
        },
    }


def cells(scale: Scale, data: Data) -> list[Cell]:
    """Every arm, or two of them on the largest set, with the same number of steps on every set."""
    rows = len(data.resident)
    every = contestants(rows)
    names = ON_ALL_SIZES if rows == scale.rows else ARMS
    epochs = scale.epochs * scale.rows // rows
    return cells_of({name: every[name] for name in names}, scale, data, z_dim=Z_DIM, epochs=epochs, validation=None)


# One noise vector for a batch, exactly.

SHARED_NOISE = "shared noise"  # the name of the exact rows in the place of a data set
BATCHES = tuple(2**power for power in range(9))
LARGE = 64  # the batch size whose variance is shown


def noise_variances(model: LinearGaussian, x: Tensor) -> tuple[Tensor, Tensor]:
    """Two variances that give that of the gradient for every batch size, with own and with shared noise.

    The gradient of the mean of log p(x | z) over a batch of size B, for the loading W, has the variance ``apart / B``
    if each datum has its own noise, and ``common + (apart - common) / B`` if all data share one noise vector. Variances
    are over the noise, averaged over batches drawn from x with replacement, and summed over the entries of W. The mean
    over the noise is the same in both cases.

    With ``z = m + s e``, an entry of the gradient of a datum is a polynomial of degree two in e. Its linear part
    ``(x - b - W m)_i s_k e_k - m_k sum_l W_il s_l e_l`` depends on the datum, and its quadratic part
    ``-sum_l W_il s_l s_k e_l e_k`` does not.

    Args:
        model: The model, whose best guide with independent coordinates draws z.
        x: Data [rows, x_dim].

    Returns:
        ``apart``, the variance for one datum, and ``common``, the variance of the gradient that is averaged over all
        data with the same noise; both [].
    """
    q = model.mean_field_posterior(x)
    spread = q.variance[0].sqrt()
    scaled = model.loading * spread
    residual = x - model.loc - q.loc @ model.loading.mT
    linear = torch.einsum("ni,kl->nikl", residual, spread.diag()) - torch.einsum("nk,il->nikl", q.loc, scaled)
    quadratic = (spread**2 * (scaled.square().sum(1, keepdim=True) + scaled.square())).sum()
    apart = linear.square().sum((1, 2, 3)).mean() + quadratic
    common = linear.mean(0).square().sum() + quadratic
    return apart / model.sigma**4, common / model.sigma**4


def exact(scale: Scale) -> list[dict[str, Any]]:
    """The slope of the log variance of the gradient against log B, and the variance at B = 64, by seed.

    The model is the maximum likelihood fit of a linear VAE with codes of size 2 to 512 data of size 8 from such a model
    with a random loading and sigma = 1.
    """
    rows = []
    for seed in range(scale.seeds):
        with seeded(seed):
            loading = torch.randn(8, 2, dtype=torch.float64)
            x = torch.randn(512, 2, dtype=torch.float64) @ loading.mT + torch.randn(512, 8, dtype=torch.float64)
        apart, common = map(float, noise_variances(LinearGaussian.maximum_likelihood(x, 2), x))
        own = {batch: apart / batch for batch in BATCHES}
        shared = {batch: common + (apart - common) / batch for batch in BATCHES}
        for name, variances in (("own", own), ("shared", shared)):
            found = {"slope": exponent(variances.values(), variances), "variance": variances[LARGE]}
            rows.append({"data": SHARED_NOISE, "variant": name, "seed": seed, **found})
    return rows


# The claims.


def claims(evidence: Evidence) -> list[Claim]:
    """The claims on every data set, between the sizes, and on shared noise."""
    every = sorted((data for data in evidence.sets() if data != SHARED_NOISE), key=rows_of)
    found = [claim for data in every for part in (of_samples, of_codes) for claim in part(evidence, data)]
    if every:
        small, *larger = every
        found += of_few_data(evidence, small)
        found += [claim for data in larger for claim in of_more_data(evidence, data)]
        found += [claim for data in larger for claim in of_size(evidence, small, data)]
        found += [claim for data in every for claim in of_optimizers(evidence, data)]
    return [claim for claim in [*found, *of_shared_noise(evidence)] if claim.differences]


def rows_of(data: str) -> int:
    """The number of training data in the name of a data set."""
    return int(data.rpartition(" ")[2])


def of_samples(evidence: Evidence, data: str) -> Iterator[Claim]:
    """L2.1: a prior of the published size on the decoder changes samples little."""
    text = f"a prior of sd {PUBLISHED:g} on the decoder changes the distance of samples by at most 10 %"
    plain, own = (NONE, "frechet_prior"), (prior_on("decoder", PUBLISHED), "frechet_prior")
    yield evidence.claim("L2.1", text, data, plain, own, share=LITTLE, unit="F")


def of_codes(evidence: Evidence, data: str) -> Iterator[Claim]:
    """L2.2: L2 on the heads shrinks codes and switches units off, and L2 on the decoder makes codes larger."""
    claim = partial(evidence.claim, "L2.2", data=data)
    for size in SIZES_OF_PRIOR:
        heads, decoder = prior_on("heads", size), prior_on("decoder", size)
        text = f"L2 on the heads, sd {size:g}, makes the means of the codes smaller"
        yield claim(text, more=(NONE, "code_size"), less=(heads, "code_size"), family=f"L2.2 heads {data}")
        text = f"L2 on the heads, sd {size:g}, lowers the number of active units"
        yield claim(text, more=(NONE, "active_units"), less=(heads, "active_units"), family=f"L2.2 units {data}")
        text = f"L2 on the decoder, sd {size:g}, makes the means of the codes larger"
        yield claim(text, more=(decoder, "code_size"), less=(NONE, "code_size"), family=f"L2.2 decoder {data}")


def of_few_data(evidence: Evidence, data: str) -> Iterator[Claim]:
    """L2.4, ours: with few data, L2 improves the held-out bound and narrows the gap to the training data."""
    claim = partial(evidence.claim, "L2.4", data=data, unit="nats")
    for arm in ARMS[1:]:
        yield claim(f"{arm} improves the held-out bound", more=(arm, "bound"), less=(NONE, "bound"))
        text = f"{arm} narrows the gap between training and held-out data"
        yield claim(text, more=(NONE, "gap"), less=(arm, "gap"), family=f"L2.4 gap {data}")


def of_more_data(evidence: Evidence, data: str) -> Iterator[Claim]:
    """L2.5, ours: with more data, L2 improves the held-out bound by less than the margin."""
    for arm in ARMS[1:]:
        claim = evidence.claim("L2.5", f"{arm} gains less than {SAME:g} nats", data, (NONE, "bound"), (arm, "bound"))
        left = {seed: SAME + loss for seed, loss in claim.differences.items()}
        yield claim._replace(differences=left, unit=f"nats below a gain of {SAME:g}")


def of_size(evidence: Evidence, small: str, large: str) -> Iterator[Claim]:
    """L2.6, ours: what L2 gains falls with the number of data."""
    for arm in ARMS[1:]:
        here, there = gains(evidence, small, arm), gains(evidence, large, arm)
        differences = {seed: here[seed] - there[seed] for seed in here if seed in there}
        text = f"{arm} gains more in the held-out bound on {small} than on {large}"
        yield Claim("L2.6", text, differences, None, "nats", None, f"L2.6 {large}")


def gains(evidence: Evidence, data: str, arm: str) -> dict[int, float]:
    """The held-out bound of an arm minus that without L2, nats per datum, by seed."""
    own, plain = (evidence.values(data, name, "bound") for name in (arm, NONE))
    return {seed: own[seed] - plain[seed] for seed in own if seed in plain}


def of_optimizers(evidence: Evidence, data: str) -> Iterator[Claim]:
    """L2.7, ours: the weight decay of Adam and of AdamW does as much as the prior of the same size."""
    ends = [prior_on("both", MIDDLE), *DECAYED]
    for index, one in enumerate(ends):
        for other in ends[index + 1 :]:
            text = f"{one} and {other} end with the same held-out bound"
            claim = evidence.claim("L2.7", text, data, (one, "bound"), (other, "bound"), unit="nats")
            yield claim._replace(margin=SAME)


def of_shared_noise(evidence: Evidence) -> Iterator[Claim]:
    """L2.3: with one noise vector for a batch, the variance of the gradient no longer falls as 1/B."""
    claim = partial(evidence.claim, "L2.3", data=SHARED_NOISE)
    text = f"up to B = {BATCHES[-1]}, the variance with shared noise falls by a smaller power of B than with own noise"
    yield claim(text, more=("shared", "slope"), less=("own", "slope"), unit="power of B")
    text = f"at B = {LARGE}, the variance with shared noise is more than twice that with own noise"
    more, less = ("shared", "variance"), ("own", "variance")
    yield claim(text, more=more, less=less, factor=0.5, unit="nats**2 per unit of W**2", family="L2.3 variance")


# The picture.

STYLES = dict(zip(SIZES_OF_PRIOR, ("-", "--", ":"), strict=True))


def figure(evidence: Evidence) -> "Figure":
    """What L2 gains in the held-out bound, and the active units, against the number of data.

    A line is the mean over seeds, and a dot is a seed.
    """
    every = sorted((data for data in evidence.sets() if data != SHARED_NOISE), key=rows_of)
    drawing, (gained, active) = panels(2, 2, 5.2, 4.0)
    tidy(gained, "held-out bound minus that without L2, nats per datum")
    tidy(active, "active units")
    for arm in ARMS:
        units = {rows_of(data): evidence.values(data, arm, "active_units") for data in every}
        _line(active, units, arm)
        if arm != NONE:
            _line(gained, {rows_of(data): gains(evidence, data, arm) for data in every}, arm)
    gained.axhline(0.0, lw=0.6, color=GREY)
    gained.set_yscale("symlog", linthresh=10.0)
    gained.yaxis.set_major_formatter("{x:g}")
    for axes in (gained, active):
        axes.set_xscale("log")
        plain_ticks(axes, "x")
        axes.set_xlabel("number of training data, with equal numbers of steps", fontsize=8)
    active.legend(fontsize=6.5, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return drawing


def _line(axes: Any, values: Mapping[int, Mapping[int, float]], arm: str) -> None:
    """The mean over seeds as a line, and a dot per seed, in the colour of the place and the style of the size."""
    place, size = PRIORS.get(arm, (arm, SIZES_OF_PRIOR[0]))
    ink = dict(zip([*PLACES, *DECAYED, NONE], COLOURS, strict=False))[place]
    shown = {rows: list(of_seeds.values()) for rows, of_seeds in values.items() if of_seeds}
    means = [math.fsum(seeds) / len(seeds) for seeds in shown.values()]
    axes.plot(list(shown), means, lw=1.0, ls=STYLES[size], color=ink, label=arm)
    dots = [(rows, value) for rows, seeds in shown.items() for value in seeds]
    axes.plot([rows for rows, _ in dots], [value for _, value in dots], "o", ms=1.6, color=ink)


EXPERIMENT = Experiment(
    name="weight_decay",
    question="Does L2 on the weights make sense on top of the KL?",
    sets=sets,
    cells=cells,
    claims=claims,
    columns=COLUMNS,
    figure=figure,
    scales=SCALES,
    exact=exact,
)

if __name__ == "__main__":
    main(__spec__.name)
