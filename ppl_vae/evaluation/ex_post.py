"""The ex-post density: a mixture fitted on samples of the guide, to be used as the prior."""

import numbers
from typing import Any

import torch
from torch import Tensor

from ..data.data_set import chunks_of, tensor_of
from ..models import Mixture
from ..streams import seeded
from ..variant import Variant, evaluating

__all__ = ["codes", "fit"]

CANDIDATES = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50)  # the numbers of components from which a rule chooses
RULES = ("held_out", "bic")  # the rules that choose the number of components
STARTS = 3  # starts of k-means, of which the best counts: the likelihood of a mixture has poor local optima


def codes(variant: Variant, x: Any, seed: int = 0) -> Tensor:
    """One draw from q(z | x) per datum, [rows, z_dim]. For a point mass it is the code itself.

    These are draws and not means, because the covariance of the means lacks the spread of q: samples from a mixture
    that is fitted on means would vary too little.
    """
    with evaluating(variant), seeded(seed):
        chunks = (variant.in_model_units(rows) for rows in chunks_of(x))
        return torch.cat([variant.guide.posterior(y).sample() for y in chunks])


def fit(variant: Variant, x: Any, components: int | str = 10, seed: int = 0) -> Mixture:
    """Fit scikit-learn's GaussianMixture, with full covariances, on the codes of training data.

    Codes are standardised first, because scikit-learn's regularisation is absolute. The mixture is then converted back.

    Args:
        variant: A trained pair, with any guide.
        x: Training data [rows, *x_shape], in the data's units: an array, a tensor, a data frame or a Dataset. ``Data``
            stands for its training part. If a Dataset is too large for memory, 10,000 of its rows are drawn at random.
        components: The number of components, or a rule that chooses it among ``CANDIDATES``: ``"held_out"`` by the log
            density of a fifth of the codes, ``"bic"`` by the Bayesian information criterion.
        seed: Seed of the draws and of k-means.

    Returns:
        A prior. ``sample(variant, n, prior=...)`` draws from it, and ``bounds(with_prior(variant, ...), x)`` use it.

    Raises:
        ValueError: If there are fewer data than ``components`` full covariances need, or ``components`` is unknown.

    References:
        Ghosh et al., From Variational to Deterministic Autoencoders, 2020, section 4. Lin et al., 2019, section 4.
    """
    is_number = isinstance(components, numbers.Integral)
    if not is_number and components not in RULES:
        raise ValueError(f"components must be a whole number, 'held_out' or 'bic', got {components!r}")
    z = codes(variant, tensor_of(x, part=True), seed).double().cpu()
    shift, width = z.mean(0), z.std(0, correction=0)
    width = torch.where(width > 1e-9 * width.max(), width, width.max().clamp_min(1e-9))  # a constant unit
    standard = (z - shift) / width
    with seeded(seed):
        count = int(components) if is_number else _choose(standard, str(components), seed)
        mixture = _gaussian_mixture(standard, count, seed)
        loc = torch.as_tensor(mixture.means_) * width + shift
        covariance = torch.as_tensor(mixture.covariances_) * width[:, None] * width
        fitted = Mixture.of(torch.as_tensor(mixture.weights_), loc, covariance)
    return fitted.to(next(variant.model.parameters()))


def _gaussian_mixture(z: Tensor, components: int, seed: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """Fit a mixture with full covariances to z [rows, z_dim].

    Raises:
        ValueError: If there are too few rows, or ``components`` is below 1.
    """
    from sklearn.mixture import GaussianMixture

    needed = components * (z.shape[1] + 1)
    if components < 1 or len(z) < needed:
        raise ValueError(
            f"{components} full components of {z.shape[1]} dimensions need at least {max(needed, 1)} data and one "
            f"component, got {len(z)} data: fewer components, or components='held_out'"
        )
    return GaussianMixture(components, random_state=seed, max_iter=2000, n_init=STARTS).fit(z.numpy())


def _choose(z: Tensor, by: str, seed: int) -> int:
    """The number of components in ``CANDIDATES`` with the best score on the codes z [rows, z_dim] by a rule."""
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    held_out, kept = z[order[: len(z) // 5]], z[order[len(z) // 5 :]]
    scores: dict[int, float] = {}
    for count in CANDIDATES:
        if count == 1 or len(kept) >= count * (z.shape[1] + 1):
            if by == "bic":
                scores[count] = -float(_gaussian_mixture(z, count, seed).bic(z.numpy()))
            else:
                scores[count] = float(_gaussian_mixture(kept, count, seed).score(held_out.numpy()))
    return max(scores, key=lambda count: scores[count])
