"""DIP: the covariance of the codes by loops, by NumPy and by draws, its gradient by differences, and refusals."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import VARIANTS, Variant, fit, pair
from ppl_vae.elbo import DIP, PathwiseELBO
from ppl_vae.elbo.dip import covariance_of_codes
from ppl_vae.guides import ConstantVariance, FullRank, Guide, MeanField, PointMass
from ppl_vae.models import Gaussian, Masked
from ppl_vae.streams import seeded
from ppl_vae.verification.verdict import verify

X_DIM, Z_DIM, ROWS = 5, 3, 7
GUIDES = {"mean_field": MeanField, "full_rank": FullRank, "constant": ConstantVariance}
every_guide = pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)


def built(guide: Any = MeanField, **parts: Any) -> tuple[Variant, Tensor]:
    """A pair with curved networks, and a batch whose codes are far from uncorrelated."""
    parts = {"encoder": nn.Sequential(nn.Linear(X_DIM, 4), nn.Tanh()), "decoder": nn.Linear(Z_DIM, X_DIM)} | parts
    return pair((X_DIM,), Z_DIM, likelihood=Gaussian(0.5), guide=guide, **parts), 2 * torch.randn(ROWS, X_DIM)


def mean_and_covariance(q: Any) -> tuple[Tensor, Tensor]:
    """Of each datum, [rows, z_dim] and [rows, z_dim, z_dim]."""
    full = q.covariance_matrix if isinstance(q, dist.MultivariateNormal) else q.stddev.square().diag_embed()
    return q.mean.detach(), full.detach()


def by_loops(q: Any, kind: int) -> Tensor:
    """C_ij, one pair of coordinates and one datum at a time."""
    mean, own = mean_and_covariance(q)
    found = torch.zeros(Z_DIM, Z_DIM)
    for i in range(Z_DIM):
        for j in range(Z_DIM):
            centre = [sum(float(mean[n, k]) for n in range(ROWS)) / ROWS for k in (i, j)]
            for n in range(ROWS):
                between = (float(mean[n, i]) - centre[0]) * (float(mean[n, j]) - centre[1])
                found[i, j] += (between + (float(own[n, i, j]) if kind == 2 else 0.0)) / ROWS
    return found


@every_guide
@pytest.mark.parametrize("kind", [1, 2])
def test_the_covariance_is_that_of_a_double_loop_and_of_numpy(guide: Any, kind: int) -> None:
    variant, x = built(guide)
    q = variant.guide.posterior(x)

    found = covariance_of_codes(q, kind).detach()

    mean, own = mean_and_covariance(q)
    by_numpy = np.cov(mean.numpy(), rowvar=False, bias=True) + (own.numpy().mean(0) if kind == 2 else 0)
    assert torch.allclose(found, by_loops(q, kind), rtol=1e-12, atol=1e-14)
    assert np.allclose(found.numpy(), by_numpy, rtol=1e-12, atol=1e-14)


@every_guide
def test_the_second_kind_is_the_covariance_of_draws_from_all_guides_together(guide: Any) -> None:
    """The law of total covariance: each entry within 4 standard errors of the covariance of 200 000 draws."""
    variant, x = built(guide)
    with torch.no_grad():
        q = variant.guide.posterior(x)
        draws = q.sample((200_000 // ROWS,)).flatten(0, 1)
        products = torch.einsum("ni,nj->nij", *[draws - draws.mean(0)] * 2)

    found, first = (covariance_of_codes(q, kind).detach() for kind in (2, 1))

    error = products.std(0) / math.sqrt(len(draws))
    assert ((products.mean(0) - found).abs() < 4 * error).all()
    assert ((products.mean(0) - first).abs() > 4 * error).diagonal().all()  # the first lacks the variance of q


def draws_of(variant: Variant, x: Tensor, loss: Any, size: int | None = None) -> Tensor:
    """The loss of the same draws."""
    with seeded(3):
        return loss.differentiable_loss(variant.model, variant.guide, x, size)


@every_guide
@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("kind", [1, 2])
def test_the_loss_is_minus_the_bound_plus_the_penalty_of_each_datum(guide: Any, kind: int, num_particles: int) -> None:
    """Several draws share one q, and a larger data set counts each datum more often."""
    variant, x = built(guide)
    covariance = by_loops(variant.guide.posterior(x), kind)
    weights = 0.7 + 2.3 * torch.eye(Z_DIM)  # 3 on the diagonal
    squares = (weights * (covariance - torch.eye(Z_DIM)) ** 2).tolist()

    found = draws_of(variant, x, DIP(kind, 0.7, 3.0, num_particles), 10 * ROWS)

    bound = draws_of(variant, x, PathwiseELBO(num_particles, 1, vectorize_particles=True), 10 * ROWS)
    assert math.isclose(float((found - bound).detach()), 10 * ROWS * sum(map(sum, squares)), rel_tol=1e-10)


@pytest.mark.parametrize("kind", [1, 2])
def test_without_weights_it_is_the_bound_in_value_and_gradient(kind: int) -> None:
    variant, x = built()
    parameters = [*variant.model.parameters(), *variant.guide.parameters()]

    ours, theirs = (draws_of(variant, x, loss) for loss in (DIP(kind, 0.0), PathwiseELBO()))

    assert torch.allclose(ours, theirs, rtol=1e-12, atol=0)
    for one, other in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


@every_guide
@pytest.mark.parametrize("kind", [1, 2])
def test_the_gradient_is_that_of_finite_differences(guide: Any, kind: int) -> None:
    variant, x = built(guide)
    loss, parameters = DIP(kind, 0.7), list(variant.guide.parameters())
    slopes = torch.autograd.grad(draws_of(variant, x, loss), parameters)
    step = 1e-5

    for parameter, slope in zip(parameters, slopes, strict=True):
        for index in range(min(3, parameter.numel())):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[index] += sign * step
                    values.append(float(draws_of(variant, x, loss)))
                    parameter.view(-1)[index] -= sign * step
            difference = (values[0] - values[1]) / (2 * step)
            assert math.isclose(float(slope.flatten()[index]), difference, rel_tol=1e-5, abs_tol=1e-5)


def test_the_covariance_is_the_same_for_shifted_data_and_any_order() -> None:
    loc, scale = torch.randn(ROWS, Z_DIM), torch.rand(ROWS, Z_DIM) + 0.1
    order = torch.randperm(ROWS)

    found, shifted, reordered = (
        covariance_of_codes(dist.Normal(*parts).to_event(1), 2)
        for parts in ((loc, scale), (loc + 100, scale), (loc[order], scale[order]))
    )

    assert torch.allclose(found, shifted, rtol=1e-10, atol=1e-12)
    assert torch.allclose(found, reordered, rtol=1e-10, atol=1e-12)


def test_one_datum_has_no_covariance_between_data() -> None:
    q = dist.Normal(torch.randn(1, Z_DIM), 0.5).to_event(1)

    assert torch.equal(covariance_of_codes(q, 1), torch.zeros(Z_DIM, Z_DIM))
    assert torch.allclose(covariance_of_codes(q, 2), 0.25 * torch.eye(Z_DIM))


def test_the_default_of_the_diagonal_is_ten_times_or_once_the_other_weight() -> None:
    """As in disentanglement_lib: lambda_d is 10 lambda_od for the first kind, and lambda_od for the second."""
    assert [DIP(kind, 5.0).diagonal for kind in (1, 2)] == [50.0, 5.0]
    assert [DIP(kind, 5.0, 7.0).diagonal for kind in (1, 2)] == [7.0, 7.0]
    assert [VARIANTS["dip_vae"]((4,), 2, kind=kind).loss.diagonal for kind in (1, 2)] == [100.0, 10.0]


# verify: it passes for both kinds, and fails for what other libraries compute instead.


class OverUnits(DIP):
    """Centred over the coordinates of a code instead of over the data."""

    def covariance(self, q: Any) -> Tensor:
        centred = q.mean - q.mean.mean(-1, keepdim=True)
        return centred.mT @ centred / len(q.mean) + q.variance.mean(0).diag()


class Summed(DIP):
    """The covariance of the means is not divided by the number of data."""

    def covariance(self, q: Any) -> Tensor:
        return covariance_of_codes(q, 1) * len(q.mean) + q.variance.mean(0).diag()


class SquaredTwice(DIP):
    """The variance of q is squared once more."""

    def covariance(self, q: Any) -> Tensor:
        return covariance_of_codes(q, 1) + q.variance.square().mean(0).diag()


class Unbiased(DIP):
    """Divided by B - 1."""

    def covariance(self, q: Any) -> Tensor:
        return covariance_of_codes(q, 1) * len(q.mean) / (len(q.mean) - 1) + q.variance.mean(0).diag()


MUTANTS = [OverUnits, Summed, SquaredTwice, Unbiased]


@pytest.mark.parametrize("kind", [1, 2])
def test_both_kinds_have_the_value_and_the_gradient_of_their_target(kind: int) -> None:
    verdict = verify(DIP(kind, 5.0), draws=200)
    assert verdict.passed, verdict


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_covariance_is_seen(mutant: type[DIP], monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = mutant(2, 20.0)
    monkeypatch.setattr("ppl_vae.elbo.dip.covariance_of_codes", lambda q, kind: wrong.covariance(q))

    verdict = verify(wrong, draws=200)

    assert not verdict.passed, verdict


# In training.


def test_training_moves_the_covariance_of_the_codes_towards_the_identity() -> None:
    x = torch.randn(400, 2) @ torch.randn(2, 6) + 0.1 * torch.randn(400, 6)
    distances = []
    for name, options in (("sigma_vae", {}), ("dip_vae", {"kind": 2})):
        with seeded(0):
            variant = VARIANTS[name]((6,), 3, width=32, **options)
        fit(variant, x, epochs=15, batch_size=50, lr=3e-3, validation=None, progress=False)
        with torch.no_grad():
            covariance = covariance_of_codes(variant.guide.posterior(variant.admit(x)), 2)
        distances.append(float((covariance - torch.eye(3)).square().sum()))
    assert distances[1] < 0.5 * distances[0]


# Refusals.


class Cauchy(Guide):
    """A guide without a mean."""

    outputs = 2

    def distribution(self, loc: Tensor, log_scale: Tensor) -> Any:
        return _Heavy(loc, log_scale.exp()).to_event(1)


class _Heavy(dist.Cauchy):
    @property
    def mean(self) -> Tensor:
        raise NotImplementedError


REFUSED: dict[str, tuple[Callable[[], Variant], str]] = {
    "point mass": (lambda: built(PointMass)[0], r"point mass, which has no variance and no bound \(use a guide"),
    "masked": (lambda: built(kl_weight=Masked())[0], r"'z' is masked.*\(take the mask away\)"),
    "no mean": (lambda: built(Cauchy)[0], r"has no mean or no variance \(use a guide"),
}


@pytest.mark.parametrize(("build", "said"), REFUSED.values(), ids=REFUSED)
def test_codes_without_a_covariance_are_refused(build: Callable[[], Variant], said: str) -> None:
    variant = build()
    with pytest.raises(ValueError, match=said) as raised:
        DIP().differentiable_loss(variant.model, variant.guide, torch.randn(ROWS, X_DIM))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": 3}, r"kind must be 1 \(DIP-VAE-I\) or 2 \(DIP-VAE-II\), got 3"),
        ({"kind": "i"}, "got 'i'"),
        ({"off_diagonal": -1.0}, "off_diagonal must be finite and not negative, got -1.0"),
        ({"diagonal": math.inf}, "diagonal must be finite and not negative, got inf"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DIP(**options)
