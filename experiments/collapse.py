"""Does a latent unit of a linear VAE collapse because of sigma, or because of the bound?

    python -m ppl_vae.experiments.collapse

A linear Gaussian VAE with 12 latent dimensions is trained on digits of 64 pixels, each scaled to [0, 1], once for
each of several fixed values of sigma. According to Lucas et al. (Don't Blame the ELBO!, 2019), the optimum has one
active unit for each eigenvalue of the data's covariance that exceeds sigma**2, and the bound at the optimum has a
closed form. The table compares training with this closed form. It is written to results/collapse.csv.

A unit counts as active if the variance of its posterior mean over the data exceeds 0.01. In the closed form this
variance is 1 - sigma**2 / eigenvalue, so the unit is active if eigenvalue > sigma**2 / 0.99.
"""

import csv
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from .. import VARIANTS, bounds, encode, fit, prepare
from ..evaluation.kl_terms import ACTIVE
from ..models import LinearGaussian

Z_DIM = 12
SIGMAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def closed_form(x: Tensor, sigma: float) -> tuple[int, float]:
    """The number of active units and the bound, in nats per datum, at the optimum of a linear Gaussian VAE.

    References:
        Tipping and Bishop, Probabilistic Principal Component Analysis, 1999, equation 7, gives the loading.
    """
    loc = x.mean(0)
    covariance = (x - loc).mT @ (x - loc) / len(x)
    eigenvalues, vectors = torch.linalg.eigh(covariance)  # in ascending order
    largest, directions = eigenvalues.flip(0)[:Z_DIM], vectors.flip(1)[:, :Z_DIM]
    loading = directions * (largest - sigma**2).clamp_min(0).sqrt()
    model = LinearGaussian(loading, loc, torch.tensor(sigma).to(x))
    posterior: MultivariateNormal = model.posterior(x)
    active = largest * (1 - ACTIVE) > sigma**2
    return int(active.sum()), float(model.bound(x, posterior).mean())


def trained(x: Tensor, sigma: float) -> tuple[int, float]:
    """The number of active units and the bound, in nats per datum and from 100 draws, of a trained VAE."""
    torch.manual_seed(0)
    parts = {"encoder": nn.Identity(), "decoder": nn.Linear(Z_DIM, x.shape[1])}
    variant = VARIANTS["gaussian_vae"]((x.shape[1],), Z_DIM, sigma=sigma, **parts)
    fit(variant, x, epochs=2000, batch_size=500, lr=2e-2, schedule="cosine", validation=None, progress=False)
    active = encode(variant, x).var(0) > ACTIVE
    return int(active.sum()), float(bounds(variant, x, 100).elbo.mean())


def main() -> None:
    """Print the table and write it."""
    x = prepare("digits", scale="unit").resident.flatten(1) / 16
    rows = []
    for sigma in SIGMAS:
        (exact, best), (units, bound) = closed_form(x, sigma), trained(x, sigma)
        rows.append({"sigma": sigma, "units": units, "exact_units": exact, "bound": bound, "exact_bound": best})
        print(f"sigma {sigma:.1f}: trained, {units} units and {bound:.3f} nats per datum; ", end="")
        print(f"at the optimum, {exact} units and {best:.3f} nats per datum", flush=True)
    path = Path(__file__).parent / "results" / "collapse.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
