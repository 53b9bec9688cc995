"""Can a trained autoencoder become a VAE with the same inputs and outputs?

    python -m ppl_vae.experiments.conversion --scale reduced --jobs 2

An autoencoder is trained, converted by ``convert``, which adds a head for the scale of q(z | x) and nothing else, and
trained on as a VAE. The VAE from scratch has the same networks and is trained for as many epochs as both phases
together. The autoencoder's p(x | z) has a learned sigma too, so that after the conversion both are the same model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..coding import mean_codes, mean_data
from ..conversion import convert
from ..data.data_set import Data
from ..drawing import COLOURS, panels, tidy
from ..estimate import Number
from ..evaluation.features import Features
from ..models import LearnedSigma
from ..studies import Cell, Claim, Contestant, Result
from ..studies.evidence import Evidence
from ..studies.experiment import Experiment, Scale, cells_of, main, public_sets
from ..training import Fit, fit
from ..variant import Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Z_DIM = 16
SHARES = (0.25, 0.5, 0.75)  # the shares of all epochs that the autoencoder gets
SAME_PLACE = 10.0  # nats per datum, 0.013 per pixel of MNIST: written down before the first run
SCRATCH = "VAE from scratch"
COLUMNS = {
    "bound": "bound",
    "rmse_before": "RMSE before",
    "rmse": "RMSE after",
    "frechet_reconstructions": "F rec.",
    "frechet_ex_post": "F mixture",
    "active_units": "active",
    "kl": "KL",
}


def converted(share: float) -> str:
    """The name of the contestant whose autoencoder gets a share of the epochs."""
    return f"AE for {100 * share:.0f} %, then VAE"


def autoencoder_then_vae(variant: Variant, data: Data, *, share: float, epochs: int, seed: int, **training: Any) -> Fit:
    """Train an autoencoder for a share of the epochs, convert it, and train it as a VAE for the rest.

    Each phase has its own schedule of the learning rate. The history has the rows of both phases. In the settings,
    ``first`` is the number of epochs of the autoencoder, and ``rmse_before`` the root mean squared error of its
    reconstructions of held-out data, in the model's units.
    """
    first = max(1, round(share * epochs))
    before = fit(variant, data, epochs=first, seed=seed, **training)
    y = variant.in_model_units(data.test)
    error = float((mean_data(variant, mean_codes(variant, y)) - y).square().mean().sqrt())
    after = fit(convert(variant), data, epochs=max(1, epochs - first), seed=seed, **training)
    rows = [{**row, "epoch": first + row["epoch"]} for row in after.rows]
    settings = {**after.settings, "epochs": first + after.settings["epochs"], "first": first, "rmse_before": error}
    return Fit(after.variant, data, [*before.rows, *rows], first + after.best_epoch, settings)


def numbers(result: Result, features: Features) -> Mapping[str, Number]:
    """The reconstruction error before the conversion, and the number of epochs before it."""
    settings, names = result.fit.settings, ("rmse_before", "first")
    return {name: Number(settings.get(name), reason="" if name in settings else "none") for name in names}


def cells(scale: Scale, data: Data) -> list[Cell]:
    """The autoencoders that are converted after a share of the epochs, and the VAE from scratch."""
    # A learned sigma in the autoencoder too: only the guide changes in the conversion.
    autoencoder = Contestant("ae", {"likelihood": LearnedSigma()}, train=autoencoder_then_vae, extra=numbers)
    phases = {converted(share): replace(autoencoder, training={"share": share}) for share in SHARES}
    return cells_of({SCRATCH: Contestant("sigma_vae", extra=numbers), **phases}, scale, data, z_dim=Z_DIM)


def claims(evidence: Evidence) -> list[Claim]:
    """AE.1: fewer epochs to a given bound, and the same place in the end."""
    return [claim for data in evidence.sets() for claim in _claims(evidence, data) if claim.differences]


def _claims(evidence: Evidence, data: str) -> Iterator[Claim]:
    scratch = evidence.path(data, SCRATCH, "held_out_loss")
    targets = {seed: path[-1] + SAME_PLACE for seed, path in scratch.items()}
    needed = {seed: epochs_to(targets[seed], path) for seed, path in scratch.items()}
    for share in SHARES:
        name = converted(share)
        firsts = evidence.values(data, name, "first")
        paths = evidence.path(data, name, "held_out_loss")
        of_vae = {seed: epochs_to(targets[seed], path[int(firsts[seed]) :]) for seed, path in paths.items()}
        saved = {seed: float(needed[seed] - own) for seed, own in of_vae.items()}
        text = f"{data}: {name} needs fewer epochs as a VAE to come within {SAME_PLACE:g} nats of the VAE's last bound"
        yield Claim("AE.1", text, saved, None, "epochs", None, f"AE.1 epochs {data}")
        total = {seed: value - firsts[seed] for seed, value in saved.items()}
        text = f"{data}: {name} needs fewer epochs in all, those of the autoencoder included"
        yield Claim("AE.1", text, total, None, "epochs", None, f"AE.1 all epochs {data}")
        same = evidence.claim("AE.1", f"{name} ends in the same place", data, (name, "bound"), (SCRATCH, "bound"))
        yield same._replace(unit="nats", margin=SAME_PLACE, family=f"AE.1 place {data}")


def epochs_to(target: float, losses: list[float]) -> int:
    """The number of epochs until a held-out loss is at most the target; one more than there are if it never is."""
    reached = [epoch for epoch, loss in enumerate(losses, 1) if loss <= target]
    return reached[0] if reached else len(losses) + 1


def figure(evidence: Evidence) -> "Figure":
    """Held-out bounds against epochs, a thin line per seed, one panel per data set."""
    sets = evidence.sets()
    drawing, every = panels(len(sets), len(sets), 5.6, 3.4)
    names = [SCRATCH, *map(converted, SHARES)]
    for axes, data in zip(every, sets, strict=True):
        tidy(axes, f"{data}: held-out objective, nats per datum")
        lasts: list[float] = []
        for ink, name in zip(COLOURS, names, strict=False):
            firsts = evidence.values(data, name, "first")
            for index, (seed, losses) in enumerate(evidence.path(data, name, "held_out_loss").items()):
                first, values, label = int(firsts.get(seed, 0)), [-loss for loss in losses], "" if index else name
                lasts.append(values[-1])
                axes.plot(range(first + 1, len(values) + 1), values[first:], lw=0.8, color=ink, label=label)
                axes.plot(range(1, first + 1), values[:first], lw=0.5, ls=":", color=ink)
        low, high = min(lasts), max(lasts)
        axes.set_ylim(low - 0.15 * (high - low + 1), high + 0.2 * (high - low + 1))
        axes.set_xlabel("epoch (dotted: the autoencoder's MAP objective, which is no bound)", fontsize=8)
        axes.legend(fontsize=7, frameon=False, loc="center right")
    return drawing


EXPERIMENT = Experiment(
    name="conversion",
    question="Can a trained autoencoder become a VAE with the same inputs and outputs?",
    sets=public_sets("mnist"),
    cells=cells,
    claims=claims,
    columns=COLUMNS,
    figure=figure,
)

if __name__ == "__main__":
    main(__spec__.name)
