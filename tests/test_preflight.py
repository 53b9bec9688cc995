"""What is wrong before training: each way to break a pair is named by one line, and what is right passes in silence."""

import contextlib
import copy
import itertools
import math
import random
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae import VARIANTS, Variant, check, pair
from ppl_vae.contracts import preflight
from ppl_vae.elbo import IWAE, DReG
from ppl_vae.guides import FullRank, Guide, MeanField, PointMass
from ppl_vae.models import (
    MMD,
    Gaussian,
    Heteroscedastic,
    JacobianNorm,
    KLWeight,
    LatentVariableModel,
    LearnedSigma,
    Masked,
    Mixture,
    OptimalSigma,
    StudentT,
    WeightPrior,
    constant,
    linear,
)
from ppl_vae.models.likelihoods import scale_of_law
from ppl_vae.noise import at_floor

X_DIM, Z_DIM, ROWS = 5, 3, 8


def built(model: type[LatentVariableModel] = LatentVariableModel, **parts: Any) -> Variant:
    """A pair of given parts; with a class of model of one's own."""
    variant = pair((X_DIM,), Z_DIM, **{"likelihood": LearnedSigma(), **parts})
    old = variant.model
    new = model(old.prior, old.decoder, old.likelihood, (X_DIM,), old.penalties)
    new.kl_weight = old.kl_weight
    return variant._replace(model=new)


def data(*, far: float = 0.0) -> Tensor:
    return far + torch.randn(ROWS, X_DIM)


# The KL weight.


class Unweighted(MeanField):
    def forward(self, x: Tensor, size: int | None = None) -> Any:
        with pyro.plate("data", len(x) if size is None else size, subsample=x):
            return pyro.sample("z", self.posterior(x))


class ScaledByHand(MeanField):
    def forward(self, x: Tensor, size: int | None = None) -> Any:
        with poutine.scale(scale=2.0):
            return super().forward(x, size)


class DatumScaledByHand(LatentVariableModel):
    """A weight of the reconstruction instead of one of the KL."""

    def forward(self, x: Tensor | None, size: int | None = None) -> Tensor:
        with pyro.plate("data", len(x) if size is None else size, subsample=x):
            with self.weighted():
                z = pyro.sample("z", self.prior())
            law = self.x_given_z(z)
            with poutine.scale(scale=2.0):
                pyro.sample("x", law, obs=x)
        return law.mean


class Both(LatentVariableModel):
    """The weight of z in a context of its own, as ``ScaledByHand``."""

    def weighted(self) -> Any:
        return poutine.scale(scale=2.0)


class BothGuide(MeanField):
    def weighted(self) -> Any:
        return poutine.scale(scale=2.0)


class UnweightedModel(LatentVariableModel):
    def weighted(self) -> Any:
        return nullcontext()


def held(weight: nn.Module, *, model: bool = True, guide: bool = True) -> Variant:
    variant = built(kl_weight=weight)
    variant.model.kl_weight = weight if model else None
    variant.guide.kl_weight = weight if guide else None
    return variant


def two_weights() -> Variant:
    variant = built(kl_weight=KLWeight(linear()))
    variant.guide.kl_weight = KLWeight(linear())
    return variant


# The plate.


class IgnoresSize(MeanField):
    def forward(self, x: Tensor, size: int | None = None) -> Any:
        return super().forward(x)


class OtherSize(MeanField):
    def forward(self, x: Tensor, size: int | None = None) -> Any:
        return super().forward(x, 1000)


class ModelIgnoresSize(LatentVariableModel):
    def forward(self, x: Tensor | None, size: int | None = None) -> Tensor:
        return super().forward(x)


class OtherName(MeanField):
    def forward(self, x: Tensor, size: int | None = None) -> Any:
        with pyro.plate("batch", len(x) if size is None else size, subsample=x), self.weighted():
            return pyro.sample("z", self.posterior(x))


class WithoutSubsample(MeanField):
    def forward(self, x: Tensor, size: int | None = None) -> Any:
        with pyro.plate("data", len(x) if size is None else size), self.weighted():
            return pyro.sample("z", self.posterior(x))


class OtherSite(MeanField):
    def forward(self, x: Tensor, size: int | None = None) -> Any:
        with pyro.plate("data", len(x) if size is None else size, subsample=x), self.weighted():
            return pyro.sample("code", self.posterior(x))


# A latent for all data.


class GlobalModel(LatentVariableModel):
    def forward(self, x: Tensor | None, size: int | None = None) -> Tensor:
        pyro.sample("offset", dist.Normal(torch.zeros(()), 1.0))
        return super().forward(x, size)


class GlobalGuide(MeanField):
    def forward(self, x: Tensor, size: int | None = None) -> Any:
        pyro.sample("offset", dist.Normal(torch.zeros(()), 0.1))
        return super().forward(x, size)


# Pyro's global store.


class StoredPrior(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.width = PyroParam(torch.ones(Z_DIM), constraints.positive)

    def forward(self) -> Any:
        return dist.Normal(torch.zeros(Z_DIM), self.width).to_event(1)


class StoredLikelihood(PyroModule):
    outputs = 1

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, loc: Tensor) -> Any:
        return dist.Normal(loc, self.log_scale.exp())


class StoredDecoder(LatentVariableModel):
    def forward(self, x: Tensor | None, size: int | None = None) -> Tensor:
        pyro.module("decoder", self.decoder)
        return super().forward(x, size)


# What training would not find.


class Listed(nn.Module):
    """A network in a list, which torch does not look into."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(Z_DIM, X_DIM)]
        self.out = nn.Linear(X_DIM, X_DIM)

    def forward(self, z: Tensor) -> Tensor:
        return self.out(self.layers[0](z))


class Closed(nn.Module):
    """A network in a closure."""

    def __init__(self, *, frozen: bool = False) -> None:
        super().__init__()
        network = nn.Linear(Z_DIM, X_DIM).requires_grad_(not frozen)
        self.inner = lambda z: network(z)
        self.out = nn.Linear(X_DIM, X_DIM)

    def forward(self, z: Tensor) -> Tensor:
        return self.out(self.inner(z))


class ParamInForward(Gaussian):
    def forward(self, loc: Tensor) -> Any:
        return dist.Normal(loc, pyro.param("width", torch.ones(()), constraint=constraints.positive))


class OwnCall(MeanField):
    """Stock SVI finds parameters in the call of a half."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return nn.Module.__call__(self, *args, **kwargs)


# Supports.


class Positive(nn.Module):
    def forward(self) -> Any:
        return dist.Exponential(torch.ones(Z_DIM)).to_event(1)


class FarFromZero(MeanField):
    """Five hundred standard deviations above zero, where no draw shows that it is on the reals."""

    def distribution(self, loc: Tensor, log_scale: Tensor) -> Any:
        return dist.Normal(5 + 0.01 * loc, 0.01 * (0.1 * log_scale).exp()).to_event(1)


class PositiveGuide(MeanField):
    def distribution(self, loc: Tensor, log_scale: Tensor) -> Any:
        return dist.LogNormal(loc, log_scale.exp()).to_event(1)


class PositiveCode(PointMass):
    def distribution(self, loc: Tensor) -> Any:
        return super().distribution(loc.exp())


# An axis too many.


class Column(nn.Module):
    """One nat a number, in a shape of choice."""

    def __init__(self, *shape: int, per_datum: bool = True) -> None:
        super().__init__()
        self.shape, self.per_datum = shape, per_datum

    def forward(self, model: nn.Module, x: Tensor, z: Tensor) -> Tensor:
        return -torch.ones(self.shape)


class WideDensity(dist.Normal):
    """As many rows of log densities as there are data."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return super().expand(batch_shape, self._get_checked_instance(WideDensity, _instance))

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value).unsqueeze(0).expand(len(value), *value.shape)


class WideLikelihood(Gaussian):
    def forward(self, loc: Tensor) -> Any:
        return WideDensity(loc, self.scale)


class LoneAxis(LatentVariableModel):
    """loc [rows, 1, x_dim] observed at x [rows, x_dim]."""

    def forward(self, x: Tensor | None, size: int | None = None) -> Tensor:
        with pyro.plate("data", len(x) if size is None else size, subsample=x):
            with self.weighted():
                z = pyro.sample("z", self.prior())
            law = self.likelihood(self.outputs(z)[0].unsqueeze(-2)).to_event(1)
            pyro.sample("x", law, obs=x)
        return law.mean


class PriorPerRow(nn.Module):
    def forward(self) -> Any:
        return dist.Normal(torch.zeros(ROWS, 1, Z_DIM), 1.0).to_event(1)


# Scales.


class Clamped(Gaussian):
    def __init__(self, log_scale: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(log_scale))

    def forward(self, loc: Tensor) -> Any:
        return dist.Normal(loc, self.log_scale.clamp(min=-4.0).exp())


class ClampedHead(Gaussian):
    outputs = 2

    def forward(self, loc: Tensor, log_scale: Tensor) -> Any:
        return dist.Normal(loc, (log_scale - 50).clamp(min=-4.0).exp())


class Contrasts(Gaussian):
    """Widths whose logarithms sum to zero: their mean does not move, they do."""

    def __init__(self) -> None:
        super().__init__()
        self.log_width = nn.Parameter(torch.randn(X_DIM))

    def forward(self, loc: Tensor) -> Any:
        return dist.Normal(loc, (self.log_width - self.log_width.mean()).exp())


def fallen() -> LearnedSigma:
    likelihood = LearnedSigma()
    nn.init.constant_(likelihood.raw, -4.0)  # log scale 1e-6 above its floor
    return likelihood


class Measured(Gaussian):
    """``scale`` of the likelihood is a unit, and so is that of its distribution; a floor is given, but of no scale."""

    lowest = 1.0

    def forward(self, loc: Tensor) -> Any:
        law = dist.Delta(loc)
        law.scale = torch.ones(())  # type: ignore[attr-defined]
        return law


def single(variant: Variant) -> Variant:
    """The same in float32."""
    variant.model.float()
    variant.guide.float()
    return variant


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(Z_DIM, X_DIM), nn.BatchNorm1d(X_DIM))


class EncoderInAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(X_DIM, 4)]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


def with_prior_a_row() -> Variant:
    variant = built()
    variant.model.prior = PriorPerRow()
    return variant


FIVE = KLWeight(constant(5.0))
BROKEN: dict[str, tuple[Callable[[], Variant], str]] = {
    # The KL weight.
    "kl_weight_on_the_model_alone": (
        lambda: held(FIVE, guide=False),
        "kl weight: .*on the model alone.*one kl_weight object",
    ),
    "kl_weight_on_the_guide_alone": (
        lambda: held(FIVE, model=False),
        "kl weight: .*on the guide alone.*one kl_weight object",
    ),
    "mask_on_the_model_alone": (lambda: held(Masked(), guide=False), "kl weight: .*on the model alone"),
    "mask_on_the_guide_alone": (lambda: held(Masked(), model=False), "kl weight: .*on the guide alone"),
    "two_kl_weights": (two_weights, "kl weight: .*on the model and on the guide separately.*one kl_weight object"),
    "guide_leaves_a_weight_out_that_ends_at_1": (
        lambda: built(guide=Unweighted, kl_weight=KLWeight(linear())),
        r"kl weight: .*on the model alone.*self\.weighted\(\)",
    ),
    "guide_scaled_by_hand": (lambda: built(guide=ScaledByHand), "kl weight: .*on the guide alone"),
    "both_halves_scaled_by_hand": (lambda: built(Both, guide=BothGuide), r"kl weight: site 'z' .*2 times, wanted 1"),
    "both_halves_leave_the_weight_out": (
        lambda: built(UnweightedModel, guide=Unweighted, kl_weight=FIVE),
        "kl weight: .*on neither the model nor the guide",
    ),
    "datum_scaled_by_hand": (lambda: built(DatumScaledByHand), r"kl weight: site 'x' of the model .*2 times, wanted 1"),
    # The plate.
    "guide_ignores_size": (lambda: built(guide=IgnoresSize), "plate: in the guide, .*'z' counts 1 times, wanted 10"),
    "guide_has_another_size": (lambda: built(guide=OtherSize), "plate: in the guide, .* counts 125 times, wanted 10"),
    "model_ignores_size": (lambda: built(ModelIgnoresSize), "plate: in the model, .* counts 1 times, wanted 10"),
    "plate_of_another_name": (lambda: built(guide=OtherName), "plate: site 'z' of the guide stands outside the plate"),
    "plate_without_subsample": (lambda: built(guide=WithoutSubsample), "sites: .*subsample=x"),
    "guide_without_z": (lambda: built(guide=OtherSite), r"sites: the guide samples no site 'z'; .*\['code'\]"),
    # Pyro's store.
    "pyro_param_of_a_pyro_module": (
        lambda: built(prior=StoredPrior()),
        "store: the parameter 'width' is kept by this name in",
    ),
    "parameter_of_a_pyro_module": (
        lambda: built(likelihood=StoredLikelihood()),
        "store: the parameter 'log_scale' .*PyroModule",
    ),
    "pyro_module": (lambda: built(StoredDecoder), r"store: the parameter 'decoder\$\$\$0\.weight' .*pyro\.module"),
    # Parameters.
    "network_in_a_list": (lambda: built(decoder=Listed()), r"parameters: .* \[5, 3\] .*nn\.ModuleList"),
    "network_in_a_closure": (lambda: built(decoder=Closed()), r"parameters: .* \[5, 3\] .*requires_grad_"),
    "encoder_in_a_list": (lambda: built(encoder=EncoderInAList()), r"parameters: .* \[4, 5\] .*nn\.ModuleList"),
    "pyro_param_in_forward": (
        lambda: built(likelihood=ParamInForward()),
        r"parameters: pyro\.param 'width' .*nn\.Parameter",
    ),
    "guide_overrides_call": (lambda: built(guide=OwnCall), "stock svi: .*guide .*do not override __call__"),
    # Supports.
    "guide_on_the_reals": (lambda: built(prior=Positive()), "support: .*beyond the support of p.z.*transform"),
    "guide_far_inside": (lambda: built(prior=Positive(), guide=FarFromZero), "support: .*beyond the support of p.z"),
    "code_on_the_reals": (lambda: built(prior=Positive(), guide=PointMass), "support: .*beyond the support of p.z"),
    # Axes.
    "penalty_in_a_column": (
        lambda: built(penalties=[Column(ROWS, 1)]),
        r"axes: site 'penalty_0' .*\[8, 8\], wanted \[8\], so that each would count 8 times .*drop the axis",
    ),
    "penalty_of_pairs": (lambda: built(penalties=[Column(ROWS, ROWS)]), r"axes: .*\[8, 8\], wanted \[8\]"),
    "penalty_a_datum_outside": (
        lambda: built(penalties=[Column(ROWS, per_datum=False)]),
        r"axes: site 'penalty_0' of the model .*\[8\], wanted \[\] .*per_datum",
    ),
    "density_of_pairs": (lambda: built(likelihood=WideLikelihood()), r"axes: site 'x' .*\[8, 8\], wanted \[8\]"),
    "loc_with_an_axis": (lambda: built(LoneAxis), r"axes: site 'x' .*\[8, 8\], wanted \[8\]"),
    "prior_a_row": (lambda: with_prior_a_row(), r"shapes: p\(z\) has batch shape \[8, 1\]"),
    # Scales.
    "clamped_scale": (lambda: built(likelihood=Clamped(-9.0)), "sigma: the learned scale, 0.01832, stands at a floor"),
    "clamped_head": (lambda: built(likelihood=ClampedHead()), "sigma: the learned scale, 0.01832, stands at a floor"),
    "scale_at_its_soft_floor": (lambda: built(likelihood=fallen()), "sigma: .* 0.002479, .*start from a larger"),
    "scale_below_rounding": (
        lambda: single(built(likelihood=Gaussian(1e-8))),
        "sigma: the scale, 1e-08, is within the rounding of float32 for data such as",
    ),
    "floor_above_the_spread": (
        lambda: built(likelihood=LearnedSigma(floor=2.5, scale=20.0)),
        r"sigma: the floor of sigma, 12, is \d+\.?\d* times the spread of x in all .*, so that no code helps",
    ),
    "scale_above_the_spread": (
        lambda: built(likelihood=Gaussian(100.0)),
        r"sigma: sigma, 1e\+02, is \d+\.?\d* times the spread of x .*scale='standardize'",
    ),
    # Importance weights.
    "weights_of_a_point_mass": (lambda: built(guide=PointMass, loss=IWAE(4)), "importance weights: .*point mass"),
    "weights_and_a_global_latent": (
        lambda: built(GlobalModel, guide=GlobalGuide, loss=IWAE(4)),
        "importance weights: site 'offset' stands outside the plate",
    ),
    "weights_and_a_kl_weight": (
        lambda: built(kl_weight=KLWeight(constant(4.0)), loss=IWAE(4)),
        "importance weights: .*counts 4 times.*KL weight at 1",
    ),
    "weights_and_a_kl_weight_that_ends_at_1": (
        lambda: built(kl_weight=KLWeight(linear()), loss=DReG(4)),
        "importance weights: .*KL weight at 1",
    ),
    "weights_and_masked_codes": (lambda: built(kl_weight=Masked(), loss=IWAE(4)), "importance weights: .*masked"),
    "weights_and_batch_norm_in_the_model": (
        lambda: built(decoder=batch_norm(), loss=IWAE(4)),
        "importance weights: .*BatchNorm1d in training mode",
    ),
    "weights_and_batch_norm_in_the_guide": (
        lambda: built(encoder=nn.BatchNorm1d(X_DIM), loss=IWAE(4)),
        "importance weights: .*BatchNorm1d in training mode",
    ),
}


@pytest.mark.parametrize(("build", "line"), BROKEN.values(), ids=BROKEN)
def test_each_way_to_break_a_pair_has_one_line(build: Callable[[], Variant], line: str) -> None:
    with pyro.get_param_store().scope():
        failures = check(build(), data())

    assert len(failures) == 1, failures
    assert re.match(line, failures[0]), failures


SAID_BY_CHECK_ALONE = ("sigma", "sites: .*subsample", "stock svi", "shapes")


@pytest.mark.parametrize(
    ("build", "line"),
    [case for case in BROKEN.values() if not case[1].startswith(SAID_BY_CHECK_ALONE)],
    ids=[name for name, (_, line) in BROKEN.items() if not line.startswith(SAID_BY_CHECK_ALONE)],
)
def test_the_door_says_the_same_line(build: Callable[[], Variant], line: str) -> None:
    with pyro.get_param_store().scope(), pytest.raises(ValueError, match=f"^{line}"):
        preflight(build(), data())


def test_the_door_sees_a_prior_of_too_many_axes_in_its_density() -> None:
    with pytest.raises(ValueError, match=r"^axes: site 'z' of the model .*\[8, 8\], wanted \[8\]"):
        preflight(with_prior_a_row(), data())


class Refusing(Trace_ELBO):
    """A loss with a reason not to take a pair, on more than one line."""

    def differentiable_loss(self, *_: Any, **__: Any) -> Any:
        raise ValueError("not this pair, because (do that)\nand more")


class RefusingWeights(Refusing):
    weighs_draws = True


@pytest.mark.parametrize(
    ("loss", "line"),
    [
        (RefusingWeights(), r"importance weights: not this pair, because \(do that\)$"),
        (Refusing(), r"loss: ValueError: not this pair, because \(do that\) \("),
        (RenyiELBO(num_particles=2), r"loss: AttributeError: .*\(.*ppl_vae\.elbo\.IWAE has\)"),
    ],
)
def test_the_reason_of_a_loss_is_told_once(loss: Any, line: str) -> None:
    failures = check(built(loss=loss), data())

    assert len(failures) == 1
    assert re.match(line, failures[0]), failures


@pytest.mark.parametrize(("times", "said"), [(1.01, False), (0.99, True)])
def test_a_scale_is_too_wide_above_the_root_of_the_total_variance(times: float, said: bool) -> None:
    """There the largest eigenvalue of the covariance of x, which is at most its trace, lies below ``sigma**2``."""
    x = data()
    total = float(torch.linalg.eigvalsh(x.mT.cov(correction=0)).sum())
    failures = check(built(likelihood=Gaussian(math.sqrt(total) / times)), x)

    assert [failure.partition(":")[0] for failure in failures] == ["sigma"] * said


def at(likelihood: Any, scale: float) -> Any:
    likelihood.set_scale(scale)
    return likelihood


@pytest.mark.parametrize(
    ("likelihood", "width", "line"),
    [
        (
            lambda: at(LearnedSigma(), 0.0032),
            1.0,
            r"floor 0\.0025, 0\.00\d+ times the spread of x: use LearnedSigma\(floor=-9\)",
        ),
        (lambda: at(StudentT(), 0.0032), 1e-5, r"floor 0\.0025, \d+ times the spread of x: use scale='standardize'"),
        (lambda: OptimalSigma(1e-6), 1.0, r"floor 1e-06, 1\.?\d*e-06 times .*: use a smaller z_dim, because x .*"),
        (lambda: at(LearnedSigma(), 0.005), 1.0, None),
        (lambda: Gaussian(1e-9), 1.0, None),
        (lambda: Measured(), 1.0, None),
    ],
)
def test_a_scale_at_its_floor_is_said_with_what_is_right_for_these_data(
    likelihood: Callable[[], Any], width: float, line: str | None
) -> None:
    """Twice the floor, .00496, is the border: above it, more than half of the scale is what was learned."""
    said = at_floor(built(likelihood=likelihood()), width * data())

    if line is None:
        assert said is None
    else:
        assert re.match(f"sigma stands at its {line}$", said or ""), said


def test_the_share_of_the_coordinates_at_their_floor_is_said() -> None:
    variant = built(likelihood=Heteroscedastic(stage=0.0))
    with torch.no_grad():
        for parameter in variant.model.decoder.parameters():
            parameter.zero_()
        variant.model.decoder[-1].bias[X_DIM:] = torch.tensor([-99.0, -99.0, 0.0, 0.0, 0.0])  # type: ignore[index]

    assert (at_floor(variant, data()) or "").startswith("sigma stands at its floor 0.0025 for 40 % of the coordinates")


def test_a_scale_at_its_floor_passes_the_door() -> None:
    """A fit may go on where another has ended."""
    preflight(built(likelihood=fallen()), data())


def test_a_decoder_that_cannot_reach_all_of_x_passes_the_door() -> None:
    """That may be meant."""
    preflight(built(decoder=nn.Sequential(nn.Linear(Z_DIM, X_DIM), nn.Sigmoid())), data())


@pytest.mark.parametrize("far", [0.0, 1e7])
def test_the_rounding_of_the_data_counts_by_their_size(far: float) -> None:
    """A tenth is fine beside 1, and nothing beside ten million, where float32 counts in ones."""
    failures = check(single(built(likelihood=Gaussian(0.1))), data(far=far).float())

    assert [failure.partition(":")[0] for failure in failures] == ["sigma"] * (far > 0)


@pytest.mark.parametrize(
    ("law", "scale"),
    [
        (dist.Normal(torch.zeros(3), 2.0).to_event(1), 2.0),
        (dist.Laplace(torch.zeros(3), 2.0), 2.0),
        (dist.StudentT(3.0, torch.zeros(3), 2.0).to_event(1), 2.0),
        (dist.Gumbel(torch.zeros(3), 2.0).to_event(1), 2.0),
        (dist.LogNormal(torch.zeros(3), 2.0).to_event(1), None),
        (dist.Poisson(torch.ones(3)).to_event(1), None),
        (Measured()(torch.zeros(3)), None),
    ],
    ids=lambda law: type(getattr(law, "base_dist", law)).__name__,
)
def test_a_scale_is_a_parameter_of_a_distribution_in_the_units_of_x(law: Any, scale: float | None) -> None:
    found = scale_of_law(law)

    assert (None if found is None else float(found.mean())) == scale


def test_a_second_pair_of_the_same_names_is_the_one_that_never_trains() -> None:
    """What the line on the store is about: the second prior becomes the first."""
    with pyro.get_param_store().scope():
        first, second = StoredPrior(), StoredPrior()
        second.width = torch.full((Z_DIM,), 7.0)
        first()

        assert torch.equal(second().base_dist.scale, torch.ones(Z_DIM))
        assert [line.partition(":")[0] for line in check(built(prior=second), data())] == ["store"]


def test_an_axis_too_many_multiplies_the_loss_by_the_batch() -> None:
    """What the line on axes is about: with room for another plate, Pyro says nothing."""
    x, silent = data(), Trace_ELBO(max_plate_nesting=1)
    plain, right, wrong = (
        built(guide=PointMass, penalties=penalties) for penalties in ([], [Column(ROWS)], [Column(ROWS, 1)])
    )

    def added(variant: Variant) -> float:
        variant.model.decoder, variant.guide.encoder, variant.guide.heads = (
            plain.model.decoder,
            plain.guide.encoder,
            plain.guide.heads,
        )
        return float(silent.loss(variant.model, variant.guide, x) - silent.loss(plain.model, plain.guide, x))

    assert added(right) == pytest.approx(ROWS)
    assert added(wrong) == pytest.approx(ROWS * ROWS)


# What is right passes.


class Gumbel(nn.Module):
    outputs = 1

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, loc: Tensor) -> Any:
        return dist.Gumbel(loc, self.log_scale.exp())


class LaplacePrior(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(Z_DIM))

    def forward(self) -> Any:
        return dist.Laplace(0.0, self.log_scale.exp()).to_event(1)


class LaplaceGuide(Guide):
    outputs = 2

    def distribution(self, loc: Tensor, log_scale: Tensor) -> Any:
        return dist.Laplace(loc, log_scale.exp()).to_event(1)


class HeavyPrior(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(Z_DIM))

    def forward(self) -> Any:
        return dist.StudentT(3.0, torch.zeros(Z_DIM), self.log_scale.exp()).to_event(1)


class Slope(nn.Module):
    """A penalty that makes a leaf of its own: the code, cut from its graph."""

    per_datum = True

    def forward(self, model: Any, x: Tensor, z: Tensor) -> Tensor:
        with torch.enable_grad():
            code = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(model.decoder(code).square().sum(), code, create_graph=True)
        return -slope.square().sum(-1)


class TwoGroups(nn.Module):
    """p(z) on the positives in a mixture, whose support torch cannot walk."""

    def forward(self) -> Any:
        parts = dist.LogNormal(torch.zeros(2, Z_DIM), 1.0).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(2)), parts)


RIGHT: dict[str, Callable[[], Variant]] = {
    "readme": lambda: built(likelihood=Gumbel(), prior=LaplacePrior(), guide=LaplaceGuide),
    "gumbel": lambda: built(likelihood=Gumbel()),
    "laplace_prior_full_rank": lambda: built(prior=LaplacePrior(), guide=FullRank),
    "student_prior": lambda: built(prior=HeavyPrior()),
    "learned_mixture": lambda: built(prior=Mixture(Z_DIM, 4)),
    "learned_mixture_and_weights": lambda: built(prior=Mixture(Z_DIM, 4), loss=IWAE(4)),
    "student_likelihood": lambda: built(likelihood=StudentT()),
    "heteroscedastic": lambda: built(likelihood=Heteroscedastic()),
    "optimal_sigma": lambda: built(likelihood=OptimalSigma()),
    "contrasting_widths": lambda: built(likelihood=Contrasts()),
    "clamp_that_does_not_bind": lambda: built(likelihood=Clamped(-3.0)),
    "batch_norm": lambda: built(decoder=batch_norm(), encoder=nn.BatchNorm1d(X_DIM)),
    "frozen_closure": lambda: built(decoder=Closed(frozen=True)),
    "frozen_encoder": lambda: built(encoder=nn.Linear(X_DIM, 4).requires_grad_(False)),
    "positive_on_both_sides": lambda: built(prior=Positive(), guide=PositiveGuide),
    "positive_code": lambda: built(prior=Positive(), guide=PositiveCode),
    "positive_mixture": lambda: built(prior=TwoGroups(), guide=PositiveGuide),
    "positive_guide_under_a_normal": lambda: built(guide=PositiveGuide),
    "annealed": lambda: built(kl_weight=KLWeight(linear())),
    "masked": lambda: built(guide=PointMass, kl_weight=Masked(), penalties=[MMD()]),
    "weights_of_1": lambda: built(kl_weight=KLWeight(constant(1.0)), loss=IWAE(4)),
    "factor_outside_and_weights": lambda: built(penalties=[WeightPrior()], loss=DReG(4)),
    "penalties": lambda: built(penalties=[JacobianNorm(), JacobianNorm(probes=2), MMD(), WeightPrior(), Slope()]),
    "one_number_for_all": lambda: built(penalties=[Column(), Column(1), Column(1, per_datum=False)]),
    "many_at_once": lambda: built(
        guide=FullRank,
        prior=Mixture(Z_DIM),
        likelihood=Heteroscedastic(),
        kl_weight=KLWeight(constant(2.0)),
        penalties=[WeightPrior(), MMD()],
        decoder=nn.Sequential(nn.Linear(Z_DIM, 9), nn.BatchNorm1d(9), nn.Linear(9, 2 * X_DIM)),
    ),
}


@pytest.mark.parametrize(
    ("build", "dtype"),
    list(zip(RIGHT.values(), itertools.cycle([torch.float32, torch.float64]), strict=False)),
    ids=RIGHT,
)
def test_what_is_right_passes(build: Callable[[], Variant], dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    x = data()

    assert check(build(), x) == []
    preflight(build(), x)


@pytest.mark.parametrize(("name", "rows"), list(zip(VARIANTS, itertools.cycle([2, 300]), strict=False)))
def test_the_catalogue_passes_the_door(name: str, rows: int) -> None:
    preflight(VARIANTS[name]((1, 8, 9), Z_DIM), torch.randint(2, (rows, 1, 8, 9)).to(torch.get_default_dtype()))


# What comes is left as it was.


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["right", "broken"])
def test_the_door_leaves_everything_as_it_was(name: str, training: bool) -> None:
    """Weights, statistics, schedules, modes, gradients, random streams and Pyro's store."""
    variant = built(
        likelihood=OptimalSigma(),
        decoder=batch_norm(),
        kl_weight=KLWeight(linear()),
        guide=MeanField if name == "right" else IgnoresSize,
    )
    variant.model.train(training)
    variant.guide.train(not training)
    before = [copy.deepcopy(half.state_dict()) for half in variant[:2]]
    x = data()
    streams = torch.get_rng_state(), random.getstate()

    with contextlib.suppress(ValueError):
        preflight(variant, x)

    assert torch.equal(torch.get_rng_state(), streams[0])
    assert random.getstate() == streams[1]
    for half, state, mode in zip(variant[:2], before, (training, not training), strict=True):
        assert all(torch.equal(value, state[key]) for key, value in half.state_dict().items())
        assert all(module.training is mode for module in half.modules() if module is not variant.model.kl_weight)
        assert all(parameter.grad is None for parameter in half.parameters())


def test_check_leaves_a_network_in_a_closure_without_gradients() -> None:
    """A copy of a function is the function: what it closes over is the caller's own."""
    network = nn.Linear(Z_DIM, X_DIM)
    decoder = Closed()
    decoder.inner = lambda z: network(z)

    check(built(decoder=decoder), data())

    assert network.weight.grad is None
