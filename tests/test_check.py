"""check: silent for what is right, and one line with the remedy for each contract that a part breaks."""

import copy
import math
import random
import re
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae import VARIANTS, Variant, bounds, check, evaluate, fit, load, pair, save
from ppl_vae.guides import ConstantVariance, FullRank, Guide, MeanField, PointMass
from ppl_vae.models import (
    MMD,
    Bernoulli,
    ContinuousBernoulli,
    Gaussian,
    Half,
    JacobianNorm,
    KLWeight,
    LatentVariableModel,
    LearnedSigma,
    OptimalSigma,
    Scale,
    StandardNormal,
    WeightPrior,
    constant,
)

X_DIM, Z_DIM, ROWS = 5, 3, 8
SHAPES = {"vector": (X_DIM,), "image": (1, 9, 8)}


def binary(*shape: int) -> Tensor:
    """Data that every likelihood here supports."""
    return torch.randint(2, (ROWS, *shape)).double()


# What is right passes.


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    list(zip(VARIANTS, cycle(["vector", "image"]), cycle([torch.float32, torch.float64, torch.float64]), strict=False)),
)
def test_every_variant_of_the_catalogue_passes(name: str, shape: str, dtype: torch.dtype) -> None:
    """In float32 too, whose rounding is no failure."""
    torch.set_default_dtype(dtype)

    assert check(VARIANTS[name](SHAPES[shape], Z_DIM), binary(*SHAPES[shape])) == []


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=str)
def test_a_pair_may_have_another_dtype_than_the_default(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    mine, default = dtypes
    torch.set_default_dtype(default)
    variant = VARIANTS["sigma_vae"]((X_DIM,), Z_DIM)
    variant.model.to(mine)
    variant.guide.to(mine)

    assert check(variant, binary(X_DIM)) == []


class Counts(nn.Module):
    """A user's likelihood: ``x ~ Poisson(exp(log_rate(z)))``."""

    outputs = 1

    def forward(self, log_rate: Tensor) -> dist.Poisson:
        return dist.Poisson(log_rate.exp())


class Skewed(nn.Module):
    """A user's likelihood with two outputs per coordinate: ``x ~ Gumbel(loc(z), scale(z))``."""

    outputs = 2

    def forward(self, loc: Tensor, log_scale: Tensor) -> dist.Gumbel:
        return dist.Gumbel(loc, log_scale.exp())


class OneScale(nn.Module):
    """A user's flat likelihood: ``x ~ Normal(loc(z), scale(z))`` with one scale for all coordinates of a datum."""

    is_flat = True

    def __init__(self, *x_shape: int) -> None:
        super().__init__()
        self.x_shape, self.outputs = x_shape, math.prod(x_shape) + 1

    def forward(self, h: Tensor) -> dist.Normal:
        loc, log_scale = h[..., :-1].unflatten(-1, self.x_shape), h[..., -1:]
        return dist.Normal(loc, log_scale.exp().unflatten(-1, [1] * len(self.x_shape)))


class Stretched(nn.Module):
    """A user's prior: independent Laplace, the widths learned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(Z_DIM))

    def forward(self) -> Any:
        return dist.Laplace(torch.zeros_like(self.log_scale), self.log_scale.exp()).to_event(1)


class LaplaceGuide(Guide):
    """A user's guide, one method: independent Laplace."""

    outputs = 2

    def distribution(self, loc: Tensor, log_scale: Tensor) -> Any:
        return dist.Laplace(loc, log_scale.exp()).to_event(1)


class OwnGuide(Half):
    """A user's guide from nothing but ``Half``: networks, plate and site of its own."""

    def __init__(self, encoder: nn.Module, x_shape: tuple[int, ...], z_dim: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(x_shape), 2 * z_dim))

    def posterior(self, x: Tensor) -> Any:
        loc, log_scale = self.network(x).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def forward(self, x: Tensor, size: int | None = None) -> Any:
        with pyro.plate("data", len(x) if size is None else size, subsample=x), self.weighted():
            return pyro.sample("z", self.posterior(x))


OWN: dict[str, Callable[[], dict[str, Any]]] = {
    "likelihood": lambda: {"likelihood": Counts()},
    "two_outputs": lambda: {"likelihood": Skewed()},
    "prior": lambda: {"prior": Stretched()},
    "guide": lambda: {"guide": LaplaceGuide},
    "guide_from_half": lambda: {"guide": OwnGuide},
    "counts_full_rank": lambda: {"likelihood": Counts(), "prior": Stretched(), "guide": FullRank},
    "all": lambda: {"likelihood": Skewed(), "prior": Stretched(), "guide": LaplaceGuide},
    "all_from_half_and_weighted": lambda: {
        "likelihood": Counts(),
        "prior": Stretched(),
        "guide": OwnGuide,
        "kl_weight": KLWeight(constant(3.0)),
        "penalties": [WeightPrior(), MMD()],
    },
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("parts", OWN.values(), ids=OWN)
def test_parts_of_ones_own_pass(parts: Callable[[], dict[str, Any]], shape: tuple[int, ...]) -> None:
    variant = pair(shape, Z_DIM, **{"likelihood": LearnedSigma(), **parts()})

    assert check(variant, binary(*shape)) == []


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("loss", ["stl", "dreg:num_particles=3"])
def test_a_flat_likelihood_of_ones_own_passes(shape: tuple[int, ...], loss: str) -> None:
    variant = pair(shape, Z_DIM, likelihood=OneScale(*shape), loss=loss)

    assert check(variant, binary(*shape)) == []


def test_a_flat_likelihood_gets_one_tensor_and_splits_it() -> None:
    """The density is that of the parts by hand, for several draws, and the Jacobian is that of ``loc`` alone."""
    decoder = nn.Linear(Z_DIM, X_DIM + 1)
    variant = pair((X_DIM,), Z_DIM, likelihood=OneScale(X_DIM), decoder=decoder)
    z, x = torch.randn(4, ROWS, Z_DIM), torch.randn(ROWS, X_DIM)

    (h,) = variant.model.outputs(z)
    found = variant.model.x_given_z(z)

    by_hand = dist.Normal(h[..., :X_DIM], h[..., X_DIM:].exp()).log_prob(x).sum(-1)
    assert torch.allclose(h, decoder(z), rtol=0, atol=1e-12)
    assert torch.allclose(found.log_prob(x), by_hand, rtol=0, atol=1e-12)
    jacobian = variant.model.jacobian(z)
    assert torch.allclose(jacobian, decoder.weight[:X_DIM].T[:, None, None].expand_as(jacobian), rtol=0, atol=1e-12)


def test_a_flat_likelihood_is_trained_judged_and_kept(tmp_path: Path) -> None:
    x = torch.randn(120, X_DIM) * (1 + torch.arange(120.0) % 3)[:, None]
    built = [
        pair((X_DIM,), Z_DIM, likelihood=OneScale(X_DIM), penalties=[JacobianNorm(0.1)], width=8) for _ in range(2)
    ]

    trained = fit(built[0], x, epochs=4, batch_size=30, progress=False)
    found = evaluate(trained.variant, x, 10, train=x)
    again = load(save(tmp_path / "flat", trained.variant), into=built[1])

    assert trained.settings["backend"] == "fx"
    assert math.isfinite(found["bound"].value or math.nan)
    assert math.isfinite(found["rmse"].value or math.nan)
    assert torch.equal(bounds(again, x, 3).elbo, bounds(trained.variant, x, 3).elbo)


def test_a_flat_likelihood_with_the_wrong_shapes_is_named() -> None:
    image = pair((1, 9, 8), Z_DIM, likelihood=OneScale(72))
    remedy = r"returned a distribution of batch shape \[1, 72\], wanted \[\.\.\., 1, 9, 8\]: reshape the outputs"

    (line,) = check(image, torch.randn(ROWS, 1, 9, 8))
    assert re.search(remedy, line)
    with pytest.raises(ValueError, match=r"turned z \[2, 3\] into \[2, 5\]; OneScale wants \[2, 6\]"):
        pair((X_DIM,), Z_DIM, likelihood=OneScale(X_DIM), decoder=nn.Linear(Z_DIM, X_DIM)).model.outputs(
            torch.zeros(2, Z_DIM)
        )


NETWORKS: dict[str, Callable[[], dict[str, nn.Module]]] = {
    "batch_norm_in_the_decoder": lambda: {"decoder": nn.Sequential(nn.Linear(Z_DIM, X_DIM), nn.BatchNorm1d(X_DIM))},
    "batch_norm_in_the_encoder": lambda: {"encoder": nn.BatchNorm1d(X_DIM)},
    "dropout": lambda: {"decoder": nn.Sequential(nn.Linear(Z_DIM, X_DIM), nn.Dropout(0.3))},
    "layer_norm": lambda: {"decoder": nn.Sequential(nn.Linear(Z_DIM, X_DIM), nn.LayerNorm(X_DIM))},
}


@pytest.mark.parametrize("networks", NETWORKS.values(), ids=NETWORKS)
def test_layers_that_act_in_training_alone_pass(networks: Callable[[], dict[str, nn.Module]]) -> None:
    """Statistics of a batch are fine in training, under no_grad or not: the contract is on eval mode."""
    assert check(pair((X_DIM,), Z_DIM, likelihood=Gaussian(), **networks()), torch.randn(ROWS, X_DIM)) == []


# What is broken is named, with the remedy.


def broken(**parts: Any) -> Variant:
    return pair((X_DIM,), Z_DIM, **{"likelihood": Gaussian(), **parts})


def with_model(family: type[LatentVariableModel]) -> Variant:
    old = broken()
    return old._replace(model=family(old.model.prior, old.model.decoder, old.model.likelihood, (X_DIM,)))


class FlatPrior(nn.Module):
    def forward(self) -> Any:
        return dist.Normal(torch.zeros(Z_DIM), 1.0)


def with_flat_prior() -> Variant:
    """Put in place by hand, for ``pair`` refuses it."""
    variant = broken()
    variant.model.prior = FlatPrior()
    return variant


class EventLikelihood(Gaussian):
    def forward(self, loc: Tensor) -> Any:
        return super().forward(loc).to_event(1)


class ReducedLikelihood(Gaussian):
    def forward(self, loc: Tensor) -> Any:
        return super().forward(loc.mean(-1))


class FlatGuide(MeanField):
    def distribution(self, loc: Tensor, log_scale: Tensor) -> Any:
        return dist.Normal(loc, log_scale.exp())


class OutsideThePlate(MeanField):
    def forward(self, x: Tensor, size: int | None = None) -> Any:
        return pyro.sample("z", self.posterior(x))


class WithoutMean(MeanField):
    """A flow: torch gives a transformed distribution no mean, and ``encode`` needs one."""

    def distribution(self, loc: Tensor, log_scale: Tensor) -> Any:
        normal = dist.Normal(loc, log_scale.exp())
        return dist.TransformedDistribution(normal, [dist.transforms.TanhTransform()]).to_event(1)


class Spare(Gaussian):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.zeros(2))


class NaNGradient(Gaussian):
    """The slope of a root at 0 is infinite, times 0."""

    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.zeros(()))

    def forward(self, loc: Tensor) -> Any:
        return dist.Normal(loc, 1 + self.width.square().sqrt())


class NaNLoss(Gaussian):
    def forward(self, loc: Tensor) -> Any:
        return dist.Normal(loc * math.nan, self.scale, validate_args=False)


class InfiniteLoss(Gaussian):
    """The square of 1e200 is infinite."""

    def forward(self, loc: Tensor) -> Any:
        return dist.Normal(1e200 + loc, self.scale)


class Centred(nn.Module):
    """Rows less their mean over the batch, in eval mode too."""

    def forward(self, h: Tensor) -> Tensor:
        return h - h.mean(0)


class PerRow(nn.Module):
    """A parameter for each row of the batch: nothing but a batch of this size fits."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(ROWS, X_DIM))

    def forward(self, h: Tensor) -> Tensor:
        return h if len(h) <= 2 else h + self.rows


class SumOverAxisOne(Gaussian):
    """Axis 1 holds coordinates as long as there is one draw per datum; with more, it holds the data."""

    def forward(self, loc: Tensor) -> Any:
        return super().forward(loc - loc.mean(1, keepdim=True))


class PenaltyAlways(LatentVariableModel):
    def forward(self, x: Tensor | None, size: int | None = None) -> Tensor:
        mean = super().forward(x, size)
        pyro.factor("penalty_0", -sum(weight.square().sum() for weight in self.decoder.parameters()))
        return mean


class Counting(Gaussian):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, loc: Tensor) -> Any:
        self.calls += 1
        return super().forward(loc)


class NoHalf(nn.Module):
    """All of a guide but its declaration: stock SVI never sees its parameters."""

    kl_weight = None

    def __init__(self, encoder: nn.Module, x_shape: tuple[int, ...], z_dim: int) -> None:
        super().__init__()
        self.network = nn.Linear(math.prod(x_shape), 2 * z_dim)

    def posterior(self, x: Tensor) -> Any:
        loc, log_scale = self.network(x).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def forward(self, x: Tensor, size: int | None = None) -> Any:
        with pyro.plate("data", len(x) if size is None else size, subsample=x):
            return pyro.sample("z", self.posterior(x))


class TensorAttribute(Gaussian):
    """A random offset that a checkpoint does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.randn(X_DIM)

    def forward(self, loc: Tensor) -> Any:
        return super().forward(loc + self.offset)


class RunningNumber(Gaussian):
    """A scale that moves in training, kept as a float."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 1.0

    def observe(self, x: Tensor, loc: Tensor) -> None:
        self.width = 0.5 * self.width + 0.5 * float((x - loc.detach()).square().mean().sqrt())

    def forward(self, loc: Tensor) -> Any:
        return dist.Normal(loc, self.width)


class RunningBuffer(RunningNumber):
    """The same in a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        del self.width
        self.register_buffer("width", torch.ones(()), persistent=False)


class Tokens(nn.Module):
    """Categories, whose mean torch gives as NaN."""

    outputs = 4

    def forward(self, *logits: Tensor) -> Any:
        return dist.Categorical(logits=torch.stack(logits, -1))


class Cauchy(Gaussian):
    def forward(self, loc: Tensor) -> Any:
        return dist.Cauchy(loc, self.scale)


class WithoutVariance(dist.Normal):
    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return super().expand(batch_shape, self._get_checked_instance(type(self), _instance))

    @property
    def variance(self) -> Tensor:
        raise NotImplementedError


class Estimated(WithoutVariance):
    """A mean of a thousand draws; with a seed of its own, the same ones in each call."""

    seed: int | None = None

    @property
    def mean(self) -> Tensor:
        with torch.random.fork_rng(enabled=self.seed is not None):
            if self.seed is not None:
                torch.manual_seed(self.seed)
            return self.sample((1000,)).mean(0)


class EstimatedBySeed(Estimated):
    seed = 7


def law_of(family: type) -> nn.Module:
    """A likelihood of unit scale."""

    class Likelihood(Gaussian):
        def forward(self, loc: Tensor) -> Any:
            return family(loc, 1.0)

    return Likelihood()


class EstimatedGuide(MeanField):
    family: Any = Estimated

    def distribution(self, loc: Tensor, log_scale: Tensor) -> Any:
        return self.family(loc, log_scale.exp()).to_event(1)


class EstimatedBySeedGuide(EstimatedGuide):
    family = EstimatedBySeed


class AlwaysDropped(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.dropout(h, 0.5)


class Several(nn.Module):
    """A decoder of Pyro's examples: loc and scale."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Linear(Z_DIM, X_DIM), nn.Linear(Z_DIM, X_DIM)

    def forward(self, z: Tensor) -> Any:
        return self.loc(z), self.log_scale(z)


def squared(loc: Tensor, scale: float) -> Any:
    return dist.Normal(loc.square(), scale)


def of_ten(loc: Tensor, scale: float) -> Any:
    return dist.Binomial(10, logits=loc)


class Flat(Gaussian):
    def forward(self, loc: Tensor) -> Any:
        return dist.Uniform(-9 - 0 * loc, 9 + 0 * loc)


def frozen(variant: Variant, *halves: str) -> Variant:
    for half in halves:
        getattr(variant, half).requires_grad_(requires_grad=False)
    return variant


def decoder_with(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(Z_DIM, X_DIM), module)


BROKEN: dict[str, tuple[Callable[[], Variant], str]] = {
    "prior_without_to_event": (with_flat_prior, r"p\(z\) has .*prior\.forward.*\.to_event\(1\)"),
    "guide_without_to_event": (lambda: broken(guide=FlatGuide), r"q\(z \| x\) has .*guide\.posterior.*\.to_event\(1\)"),
    "guide_without_mean": (lambda: broken(guide=WithoutMean), r"q\(z \| x\).* mean"),
    "likelihood_with_to_event": (lambda: broken(likelihood=EventLikelihood()), r"p\(x \| z\) has .*no to_event"),
    "likelihood_of_fewer_coordinates": (lambda: broken(likelihood=ReducedLikelihood()), r"p\(x \| z\).*\*x_shape"),
    "guide_outside_the_plate": (
        lambda: broken(guide=OutsideThePlate),
        r"plate: site 'z' of the guide stands outside .*pyro",
    ),
    "unused_parameter": (lambda: broken(likelihood=Spare()), r"likelihood\.spare gets no gradient .*use it, or delete"),
    "nan_gradient": (lambda: broken(likelihood=NaNGradient()), r"likelihood\.width gets .*not finite .*bound"),
    "infinite_loss": (lambda: broken(likelihood=InfiniteLoss()), r"the loss is inf, wanted one finite .*log_prob"),
    "nan_loss": (lambda: broken(likelihood=NaNLoss()), r"the loss is nan, wanted one finite .*log_prob"),
    "decoder_mixes_rows": (lambda: broken(decoder=decoder_with(Centred())), r"depends on the rows beside it .*eval"),
    "batch_norm_without_running_statistics": (
        lambda: broken(decoder=decoder_with(nn.BatchNorm1d(X_DIM, track_running_stats=False))),
        r"depends on the rows beside it .*eval mode",
    ),
    "encoder_mixes_rows": (lambda: broken(encoder=Centred()), r"depends on the rows beside it .*eval mode"),
    "penalty_in_eval_mode": (lambda: with_model(PenaltyAlways), r"log p\(x, z\) is .*only in training mode"),
    "buffer_moves_in_eval_mode": (lambda: broken(likelihood=Counting()), r"calls moves in eval mode .*self\.training"),
    "network_of_one_batch_size": (lambda: broken(decoder=decoder_with(PerRow())), r"particles: .*fold leading axes"),
    "likelihood_counts_axes_from_the_left": (lambda: broken(likelihood=SumOverAxisOne()), r"particles: .*fold leading"),
    "guide_is_no_half": (lambda: broken(guide=NoHalf), r"stock svi: .*guide.*from Half"),
    "state_in_a_tensor_attribute": (lambda: broken(likelihood=TensorAttribute()), r"parameters or buffers"),
    "state_in_a_number": (lambda: broken(likelihood=RunningNumber()), r"save and load: .*parameters or buffers"),
    "state_in_a_buffer_not_saved": (lambda: broken(likelihood=RunningBuffer()), r"save and load: .* buffers"),
    "cauchy": (lambda: broken(likelihood=Cauchy()), r"moments: p\(x \| z\), a Cauchy, has no mean: reconstruct"),
    "no_variance": (
        lambda: broken(likelihood=law_of(WithoutVariance)),
        r"moments: .* has no variance: guides\.Laplace",
    ),
    "mean_of_draws": (lambda: broken(likelihood=law_of(Estimated)), r"repeats: the mean of p\(x \| z\) is random"),
    "code_of_draws": (lambda: broken(guide=EstimatedGuide), r"repeats: the mean of q\(z \| x\) is random.*closed form"),
    "code_of_the_same_draws": (lambda: broken(guide=EstimatedBySeedGuide), r"rows: the mean of .* is an estimate"),
    "decoder_draws_in_eval_mode": (
        lambda: broken(decoder=decoder_with(AlwaysDropped())),
        r"repeats: p\(x \| z\) is random in eval mode.*self\.training",
    ),
    "encoder_draws_in_eval_mode": (lambda: broken(encoder=AlwaysDropped()), r"repeats: q\(z \| x\) is random in eval"),
    "law_of_torch": (
        lambda: broken(likelihood=law_of(torch.distributions.Normal)),
        r"data: the likelihood returned a torch\..*use pyro\.distributions\.Normal",
    ),
    "decoder_of_two_outputs": (
        lambda: broken(likelihood=Skewed(), decoder=Several()),
        r"data: the decoder returned a tuple of 2, wanted one tensor .*torch\.stack",
    ),
    "flat_density": (lambda: broken(likelihood=Flat()), r"stock svi: .* the model \(its gradients are all zero"),
    "nothing_to_train": (lambda: frozen(broken(), "model", "guide"), "parameters: no parameter is left to train"),
    "sigmoid_under_a_normal": (
        lambda: broken(decoder=decoder_with(nn.Sigmoid())),
        r"range: the mean of p\(x \| z\) stays in \[0, 1\] .*drop the Sigmoid at its end, or scale x",
    ),
    "relu_under_a_normal": (
        lambda: broken(decoder=decoder_with(nn.ReLU())),
        r"range: .* stays in \[0, inf\] .*the ReLU",
    ),
    "law_that_bounds_its_mean": (lambda: broken(likelihood=law_of(squared)), r"range: .*Likelihood bounds it"),
    "wrong_data_shape": (
        lambda: pair((4,), Z_DIM, likelihood=Gaussian()),
        r"data: .*a datum has shape \[5\], the model wants \[4\] \(give x as \[rows, \*x_shape\]",
    ),
    "nothing_that_has_a_dtype": (
        lambda: pair((X_DIM,), X_DIM, likelihood=Gaussian(), decoder=nn.Identity()),
        "data: StopIteration: .*to a model with at least one parameter",
    ),
    "wrong_support": (lambda: broken(likelihood=Bernoulli()), r"data: .*outside the support of Bernoulli.*sigma_vae"),
    "too_few_outputs": (
        lambda: broken(likelihood=Skewed(), decoder=nn.Linear(Z_DIM, X_DIM)),
        r"the decoder turned z .* into .*; Skewed wants",
    ),
}


@pytest.mark.parametrize(("build", "line"), BROKEN.values(), ids=BROKEN)
def test_a_broken_part_is_named_with_the_remedy(build: Callable[[], Variant], line: str) -> None:
    failures = check(build(), torch.randn(ROWS, X_DIM))

    assert len(failures) == 1, failures  # what else holds is not blamed
    assert re.search(line, failures[0]), failures


class Code(Guide):
    """A guide of one's own that is a point mass: its class says nothing of a density."""

    def distribution(self, loc: Tensor) -> Any:
        return dist.Delta(loc, event_dim=1)


def test_a_point_mass_of_ones_own_is_called_a_map_objective() -> None:
    """By the receipt, by the table and by the bound's columns."""
    x = torch.randn(40, 5)
    trained = fit(pair((5,), 2, likelihood=LearnedSigma(), guide=Code), x, epochs=1, progress=False)
    found = evaluate(trained.variant, x)

    assert not trained.variant.has_bound
    assert "a MAP objective, log p(x, z) at a point mass: not a lower bound" in trained.receipt()
    assert found["bound"].value is None
    assert found["log_joint"].value is not None
    assert check(trained.variant, x) == []


@pytest.mark.parametrize(("family", "declared"), [(Code, True), (MeanField, False)])
def test_a_guide_is_held_to_what_it_declares(family: type[Guide], declared: bool) -> None:
    """A wrong declaration would make a receipt call a MAP objective a bound."""
    own = type("Own", (family,), {"has_density": declared})
    line = f"Own declares has_density = {declared}, and q(z | x) is"
    variant = pair((5,), 2, likelihood=LearnedSigma(), guide=own)

    assert any(failure.startswith(f"density: {line}") for failure in check(variant, torch.randn(8, 5)))
    with pytest.raises(ValueError, match=re.escape(line)):
        fit(variant, torch.randn(40, 5), epochs=1, progress=False)


def test_two_broken_parts_have_two_lines() -> None:
    failures = check(broken(likelihood=Spare(), decoder=decoder_with(Centred())), torch.randn(ROWS, X_DIM))

    assert [failure.partition(":")[0] for failure in failures] == ["gradients", "rows"]


def test_data_that_a_scale_moves_out_of_the_support_are_told_to_stay_in_their_own_units() -> None:
    variant = broken(likelihood=Bernoulli())
    variant.model.scale = Scale((X_DIM,), shift=0.5)

    (failure,) = check(variant, binary(X_DIM))

    assert re.match(r"data: x holds -?0\.5 .*outside the support of Bernoulli.*use scale='none'$", failure), failure


def test_fewer_than_four_data_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 data to split, got 3"):
        check(broken(), torch.randn(3, X_DIM))


class Squeezed(nn.Module):
    """A sigmoid that no class name shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(Z_DIM, X_DIM)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.layer(z))


SQUASHED: dict[str, tuple[Callable[[], Variant], str]] = {
    "sigmoid": (
        lambda: broken(likelihood=Bernoulli(), decoder=decoder_with(nn.Sigmoid())),
        r"outputs lie in \[0, 1\], but Bernoulli takes logits.* stay in \[0\.5, 0\.731\] \(drop the Sigmoid",
    ),
    "tanh": (
        lambda: broken(
            likelihood=Bernoulli(), decoder=nn.Sequential(decoder_with(nn.Tanh()), nn.Unflatten(1, (X_DIM,)))
        ),
        r"outputs lie in \[-1, 1\].*drop the Tanh",
    ),
    "relu": (
        lambda: broken(likelihood=Bernoulli(), decoder=decoder_with(nn.ReLU())),
        r"stay in \[0\.5, 1\] .*the ReLU",
    ),
    "function": (lambda: broken(likelihood=Bernoulli(), decoder=Squeezed()), r"in \[0, 1\].*end in a linear layer"),
    "continuous": (
        lambda: broken(likelihood=ContinuousBernoulli(), decoder=decoder_with(nn.Sigmoid())),
        r"its mean stays in \[0\.5, 0\.582\]",
    ),
    "softmax": (
        lambda: broken(
            likelihood=Tokens(),
            decoder=nn.Sequential(nn.Linear(Z_DIM, 4 * X_DIM), nn.Unflatten(1, (4, X_DIM)), nn.Softmax(1)),
        ),
        r"Categorical takes logits.* stay in \[0\.175, 0\.475\] \(drop the Softmax",
    ),
}


@pytest.mark.parametrize(("build", "line"), SQUASHED.values(), ids=SQUASHED)
def test_a_decoder_that_squashes_logits_is_named(build: Callable[[], Variant], line: str) -> None:
    """1 / (1 + e) = .731 is the largest probability of a squashed logit; e / (e + 3) = .475 of four."""
    x = torch.randint(2, (ROWS, X_DIM)).double()
    logits = [failure for failure in check(build(), x) if failure.startswith("logits")]

    assert len(logits) == 1
    assert re.search(line, logits[0]), logits
    with pytest.raises(ValueError, match=r"^logits: "):
        fit(build(), x, validation=None, progress=False)


@pytest.mark.parametrize("wide", [1.0, 3.0])
def test_a_decoder_of_one_number_is_seen_at_both_of_its_ends(wide: float) -> None:
    """A last bias is the same for all codes; uniform data stay in the range of a sigmoid, or reach beyond it."""
    decoder = nn.Sequential(nn.Linear(Z_DIM, 1), nn.Sigmoid())
    failures = check(pair((1,), Z_DIM, likelihood=LearnedSigma(), decoder=decoder), wide * torch.rand(40, 1))

    assert [failure.partition(" what")[0] for failure in failures] == [
        "range: the mean of p(x | z) stays in [0, 1]"
    ] * (wide > 1)


class MixtureOfTwo(nn.Module):
    """Two normals for each coordinate, weighed alike in all data."""

    outputs = 2

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.logits, self.log_scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        self.shared = shared

    def forward(self, *locs: Tensor) -> Any:
        logits = self.logits if self.shared else self.logits.expand(*locs[0].shape, 2)
        parts = dist.Normal(torch.stack(locs, -1), self.log_scale.exp())
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)


class Flow(nn.Module):
    """A prior that is a distribution through networks of Pyro's, held as a part."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = dist.transforms.affine_autoregressive(Z_DIM)

    def forward(self) -> Any:
        base = dist.Normal(torch.zeros(Z_DIM), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [self.transform])


class Measured(dist.Normal):
    """A distribution on which ``scale`` means something else: a function of one's own."""

    arg_constraints: ClassVar = {"loc": constraints.real, "noise": constraints.positive}

    def __init__(self, loc: Tensor, noise: Any, validate_args: Any = None) -> None:
        self.loc, self.noise = torch.broadcast_tensors(loc, torch.as_tensor(noise, dtype=loc.dtype))
        dist.TorchDistribution.__init__(self, self.loc.shape, validate_args=validate_args)

    def scale(self) -> str:
        return "kilometres"

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return Measured(self.loc.expand(batch_shape), self.noise.expand(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return dist.Normal(self.loc, self.noise).log_prob(value)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return dist.Normal(self.loc, self.noise).rsample(sample_shape)

    @property
    def variance(self) -> Tensor:
        return self.noise.square()


def hidden(activation: nn.Module, *last: nn.Module, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(Z_DIM, 9), activation, nn.Linear(9, X_DIM, bias=bias), *last)


RIGHT: dict[str, Callable[[], tuple[Variant, Tensor]]] = {
    "mixture": lambda: (broken(likelihood=MixtureOfTwo(shared=False)), torch.randn(ROWS, X_DIM)),
    "mixture_of_shared_weights": lambda: (broken(likelihood=MixtureOfTwo(shared=True)), 9 * torch.randn(ROWS, X_DIM)),
    "counts_of_ten": lambda: (broken(likelihood=law_of(of_ten)), torch.randint(11, (ROWS, X_DIM)).double()),
    "flow": lambda: (broken(prior=Flow()), torch.randn(ROWS, X_DIM)),
    "scale_of_another_meaning": lambda: (broken(likelihood=law_of(Measured)), torch.randn(ROWS, X_DIM)),
    "scale_of_log_x": lambda: (broken(likelihood=law_of(dist.LogNormal)), torch.rand(ROWS, X_DIM)),
    "sigmoid_on_the_unit_scale": lambda: (broken(decoder=hidden(nn.ReLU(), nn.Sigmoid())), torch.rand(ROWS, X_DIM)),
    "tanh_inside": lambda: (broken(decoder=hidden(nn.Tanh())), 9 * torch.randn(ROWS, X_DIM)),
    "tanh_inside_without_a_bias": lambda: (broken(decoder=hidden(nn.Tanh(), bias=False)), 9 * torch.randn(ROWS, X_DIM)),
    "norm_inside": lambda: (broken(decoder=hidden(nn.LayerNorm(9))), 9 * torch.randn(ROWS, X_DIM)),
    "spectral": lambda: (VARIANTS["rae_sn"]((X_DIM,), Z_DIM), 9 * torch.randn(ROWS, X_DIM)),
    "frozen_model": lambda: (frozen(broken(), "model"), torch.randn(ROWS, X_DIM)),
    "frozen_guide": lambda: (frozen(broken(), "guide"), torch.randn(ROWS, X_DIM)),
}


@pytest.mark.parametrize("build", RIGHT.values(), ids=RIGHT)
def test_what_only_looks_wrong_passes(build: Callable[[], tuple[Variant, Tensor]]) -> None:
    variant, x = build()

    assert check(variant, x) == []


# What comes is left as it was.


def state(variant: Variant) -> dict[str, Any]:
    """Tensors, gradients and training modes, by name."""
    found: dict[str, Any] = {}
    for side, half in zip("pq", variant[:2], strict=True):
        found |= {f"{side}.{name}": copy.deepcopy(value) for name, value in half.named_parameters()}
        found |= {f"{side}.{name}": value.clone() for name, value in half.named_buffers()}
        found |= {f"{side}.{name}.grad": copy.deepcopy(value.grad) for name, value in half.named_parameters()}
        found |= {f"{side}.{name}.training": module.training for name, module in half.named_modules()}
    return found


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) if isinstance(a[name], Tensor) else a[name] == b[name] for name in a
    )


def stream_states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global stream is what may not move
    return torch.get_rng_state().tolist(), random.getstate(), kind, keys.tolist(), *rest


KEPT: dict[str, Callable[[], Variant]] = {
    "moving_statistics": lambda: broken(likelihood=OptimalSigma(), kl_weight=KLWeight(constant(2.0))),
    "spectral_norm": lambda: VARIANTS["rae_sn"]((X_DIM,), Z_DIM),
    "dropout": lambda: broken(decoder=decoder_with(nn.Dropout(0.5))),
    "broken": lambda: broken(guide=OutsideThePlate, prior=StandardNormal(Z_DIM)),
    "constant_variance": lambda: broken(guide=ConstantVariance),
    "point_mass": lambda: broken(guide=PointMass),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("build", KEPT.values(), ids=KEPT)
def test_the_variant_and_the_random_streams_are_left_bit_for_bit(build: Callable[[], Variant], training: bool) -> None:
    variant = build()
    variant.model.train(training)
    variant.guide.train(not training)  # a mixed state, so that setting one mode for all would show
    x = torch.randn(ROWS, X_DIM)
    before, drawn = state(variant), stream_states()

    check(variant, x)

    assert stream_states() == drawn
    assert same(state(variant), before)
