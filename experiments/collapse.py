"""When does a unit of a linear VAE collapse: because of its sigma, or because of the bound?

    python -m ppl_vae.experiments.collapse

On digits, 64 pixels on the unit scale, a linear Gaussian VAE of 12 codes is trained at stated sigmas. By Lucas et al.
(Don't Blame the ELBO!, 2019) a unit lives exactly where an eigenvalue of the data's covariance exceeds sigma**2, and
the bound at the optimum is that of the closed form. The table has both for each sigma; results/collapse.csv keeps it.
A unit counts as active where its mean varies by more than .01, in the closed form too: eigenvalue > sigma**2 / .99.
"""

import csv
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from ppl_vae import VARIANTS, bounds, encode, fit, prepare

from ..evaluation.kl_terms import ACTIVE
from ..models import LinearGaussian

Z_DIM = 12
SIGMAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def closed_form(x: Tensor, sigma: float) -> tuple[int, float]:
    """Units that live, and the best bound, nats per datum, of a linear Gaussian VAE of Z_DIM codes at ``sigma``."""
    loc = x.mean(0)
    eigenvalues, vectors = torch.linalg.eigh((x - loc).mT @ (x - loc) / len(x))
    largest, directions = eigenvalues.flip(0)[:Z_DIM], vectors.flip(1)[:, :Z_DIM]
    loading = directions * (largest - sigma**2).clamp_min(0).sqrt()
    model = LinearGaussian(loading, loc, torch.tensor(sigma).to(x))
    posterior: MultivariateNormal = model.posterior(x)
    return int((largest * (1 - ACTIVE) > sigma**2).sum()), float(model.bound(x, posterior).mean())


def trained(x: Tensor, sigma: float) -> tuple[int, float]:
    """The same by training: units whose posterior mean varies, and the bound by 100 draws."""
    torch.manual_seed(0)
    parts = {"encoder": nn.Identity(), "decoder": nn.Linear(Z_DIM, x.shape[1])}
    variant = VARIANTS["gaussian_vae"]((x.shape[1],), Z_DIM, sigma=sigma, **parts)
    fit(variant, x, epochs=2000, batch_size=500, lr=2e-2, schedule="cosine", validation=None, progress=False)
    units = int((encode(variant, x).var(0) > ACTIVE).sum())
    return units, float(bounds(variant, x, 100).elbo.mean())


def main() -> None:
    """Print the table and write it."""
    x = prepare("digits", scale="unit").resident.flatten(1) / 16
    rows = []
    for sigma in SIGMAS:
        (exact, best), (units, bound) = closed_form(x, sigma), trained(x, sigma)
        rows.append({"sigma": sigma, "units": units, "exact_units": exact, "bound": bound, "exact_bound": best})
        print(
            f"sigma {sigma:.1f}: {units} units, exactly {exact}; bound {bound:.3f} nats, at best {best:.3f}", flush=True
        )
    path = Path(__file__).parent / "results" / "collapse.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
