"""Do autoencoders with an explicit penalty and an ex-post density match VAEs?

    python -m ppl_vae.experiments.deterministic --scale reduced --jobs 2

Nine autoencoders have the same networks, the same optimizer and the same number of steps: VAE with a learned noise
level, CV-VAE, two-stage VAE, WAE, a plain autoencoder, and RAE without a penalty on the decoder, with Tikhonov's, with
the gradient penalty and with spectral normalisation. Each is judged by Frechet distances of reconstructions, of samples
with codes from N(0, I), from one Gaussian and from a mixture of 10, and of interpolations, in two feature spaces, and
by the distance of samples to the nearest training datum. These distances are not FIDs: their features are not those of
Inception, and the samples are small. The published FIDs stand in a column of their own.
"""

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.data_set import Data
from ..drawing import COLOURS, panels, plain_ticks, tidy
from ..studies import Cell, Claim, Contestant
from ..studies.evidence import Evidence
from ..studies.experiment import Experiment, Scale, cells_of, main, public_sets
from ..studies.measures import of_samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Z_DIM = 16

CONTESTANTS = {
    "VAE": Contestant("sigma_vae", extra=of_samples),
    "CV-VAE": Contestant("cv_vae", extra=of_samples),
    "2sVAE": Contestant("two_stage_vae", extra=of_samples),
    "WAE": Contestant("wae_mmd", extra=of_samples),
    "AE": Contestant("ae", extra=of_samples),
    "RAE": Contestant("rae", extra=of_samples),
    "RAE-L2": Contestant("rae_l2", extra=of_samples),
    "RAE-GP": Contestant("rae_gp", {"probes": 1}, extra=of_samples),
    "RAE-SN": Contestant("rae_sn", extra=of_samples),
}
ON_CIFAR = ("VAE", "WAE", "AE", "RAE", "RAE-L2")
VAES = ("VAE", "CV-VAE", "2sVAE", "WAE")
RAES = ("RAE", "RAE-L2", "RAE-GP", "RAE-SN")
WITH_MIXTURE = tuple(name for name in CONTESTANTS if name != "2sVAE")

# FIDs of Ghosh et al., 2020, table 1: reconstructions, N (the prior, or one Gaussian on the codes of RAE and AE),
# mixture of 10, interpolations. Their networks, data and features are others than ours.
PUBLISHED = {
    "mnist": {
        "VAE": "FID 18.26, 19.21, 17.66, 18.21",
        "CV-VAE": "FID 15.15, 33.79, 17.87, 25.12",
        "WAE": "FID 10.03, 20.42, 9.39, 14.34",
        "2sVAE": "FID 20.31, 18.81, -, 18.35",
        "RAE-GP": "FID 14.04, 22.21, 11.54, 15.32",
        "RAE-L2": "FID 10.53, 22.22, 8.69, 14.54",
        "RAE-SN": "FID 15.65, 19.67, 11.74, 15.15",
        "RAE": "FID 11.67, 23.92, 9.81, 14.67",
        "AE": "FID 12.95, 58.73, 10.66, 17.12",
    },
    "cifar10": {
        "VAE": "FID 57.94, 106.37, 103.78, 88.62",
        "WAE": "FID 35.97, 117.44, 93.53, 76.89",
        "RAE-L2": "FID 32.24, 80.80, 74.16, 62.54",
        "RAE": "FID 29.05, 83.87, 76.28, 63.27",
        "AE": "FID 30.52, 84.74, 76.47, 61.57",
    },
}
COLUMNS = {
    "frechet_reconstructions": "F rec.",
    "frechet_prior": "F N(0, I)",
    "frechet_one": "F one Gaussian",
    "frechet_ex_post": "F mixture",
    "frechet_interpolations": "F interp.",
    "nearest_ex_post": "near mixture",
}
SPACES = {"": "", "pca_": "50 principal components, "}  # the beginning of a column's name, and of a claim's text
LITTLE = 0.1  # differences of at most this share count as little, and as no worse: written down before the first run


def cells(scale: Scale, data: Data) -> list[Cell]:
    """Every contestant, or five of them on CIFAR-10."""
    chosen = {name: one for name, one in CONTESTANTS.items() if data.name != "cifar10" or name in ON_CIFAR}
    return cells_of(chosen, scale, data, z_dim=Z_DIM)


def claims(evidence: Evidence) -> list[Claim]:
    """The claims on every data set, in both feature spaces. A claim about a contestant that is missing is left out."""
    every = [Statement(evidence, data, space) for data in evidence.sets() for space in SPACES]
    parts = (of_samples_after_fitting, of_densities, of_pictures, of_second_vae)
    return [claim for statement in every for part in parts for claim in part(statement) if claim.differences]


Place = tuple[str, str]  # a contestant and a column


class Statement(NamedTuple):
    """Claims about one data set in one feature space. Each says that the first distance is the larger one."""

    evidence: Evidence
    data: str
    space: str

    def __call__(self, name: str, text: str, larger: Place, smaller: Place, **options: Any) -> Claim:
        more, less = ((one, f"{self.space}{column}") for one, column in (larger, smaller))
        family = f"{name} {self.data}" + (", components" if self.space else "")
        options |= {"unit": "F", "family": family}
        return self.evidence.claim(name, SPACES[self.space] + text, self.data, more, less, **options)


def single(name: str) -> Place:
    """The column N of the paper: samples from the prior of a VAE, and from one Gaussian on the codes of an RAE."""
    return name, "frechet_prior" if name in VAES else "frechet_one"


def mixture(name: str) -> Place:
    """Samples with codes from the mixture. In the two-stage VAE, its second VAE takes the place of the mixture."""
    return name, "frechet_prior" if name == "2sVAE" else "frechet_ex_post"


def of_samples_after_fitting(claim: Statement) -> Iterator[Claim]:
    """RAE.1, RAE.5: RAEs beside VAEs, and RAEs beside each other."""
    for rae, vae in product(RAES, VAES):
        yield claim("RAE.1", f"samples of {rae} are closer than those of {vae}", mixture(vae), mixture(rae))
    for rae in RAES[1:]:
        text = f"{rae} and RAE differ little with the mixture"
        yield claim("RAE.5", text, mixture("RAE"), mixture(rae), share=LITTLE)


def of_densities(claim: Statement) -> Iterator[Claim]:
    """RAE.2 to .4, WAE.1: what the density of the codes does for the samples."""
    for name in WITH_MIXTURE:
        yield claim("RAE.2", f"the mixture improves the samples of {name}", single(name), mixture(name))
    yield claim("RAE.3", "with the mixture, AE is closer than VAE", mixture("VAE"), mixture("AE"))
    for rae in RAES:
        yield claim("RAE.4", f"with one Gaussian, {rae} is closer than AE", single("AE"), single(rae))
    yield claim("WAE.1", "from the prior, samples of WAE are closer than those of VAE", single("VAE"), single("WAE"))


def of_pictures(claim: Statement) -> Iterator[Claim]:
    """RAE.6, .7 and .9: reconstructions and interpolations."""
    for name in WITH_MIXTURE:
        text = f"reconstructions of {name} are closer than its samples with the mixture"
        yield claim("RAE.6", text, mixture(name), (name, "frechet_reconstructions"))
    for rae in RAES:
        text = f"interpolations of {rae} are at most 10 % worse than those of VAE"
        vae, own = ("VAE", "frechet_interpolations"), (rae, "frechet_interpolations")
        yield claim("RAE.7", text, vae, own, factor=1 + LITTLE)
    for worse, better in (("VAE", "CV-VAE"), ("CV-VAE", "RAE")):
        ends = (worse, "frechet_reconstructions"), (better, "frechet_reconstructions")
        yield claim("RAE.9", f"{better} reconstructs better than {worse}", *ends)


def of_second_vae(claim: Statement) -> Iterator[Claim]:
    """TWO.4 and TWO.6: a second VAE on the codes, beside N(0, I), a mixture and one Gaussian."""
    second = single("2sVAE")
    yield claim("TWO.4", "a second VAE on the codes improves samples", single("VAE"), second)
    yield claim("TWO.6", "a mixture is closer than a second VAE", second, ("2sVAE", "frechet_ex_post"))
    yield claim("TWO.6", "a second VAE is closer than one Gaussian", ("2sVAE", "frechet_one"), second)


def figure(evidence: Evidence) -> "Figure":
    """The distances of every contestant, one panel per data set; a dot is a seed."""
    sets = evidence.sets()
    drawing, every = panels(len(sets), len(sets), 4.4, 3.4)
    titles = {name: title for name, title in COLUMNS.items() if name.startswith("frechet")}
    for axes, data in zip(every, sets, strict=True):
        names = [name for name in CONTESTANTS if name in evidence.contestants(data)]
        tidy(axes, data)
        for ink, (column, title) in zip(COLOURS, titles.items(), strict=False):
            every_value = [evidence.values(data, name, column).values() for name in names]
            shown = [(value, place) for place, values in enumerate(every_value) for value in values]
            axes.plot([value for value, _ in shown], [place for _, place in shown], "o", ms=3, color=ink, label=title)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log")
        plain_ticks(axes, "x")
        axes.set_xlabel("Frechet distance to held-out data", fontsize=8)
    every[-1].legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return drawing


EXPERIMENT = Experiment(
    name="deterministic",
    question="Do autoencoders with an explicit penalty and an ex-post density match VAEs?",
    sets=public_sets("mnist", "fashion_mnist", "cifar10"),
    cells=cells,
    claims=claims,
    columns=COLUMNS,
    figure=figure,
    published=PUBLISHED,
)

if __name__ == "__main__":
    main(__spec__.name)
