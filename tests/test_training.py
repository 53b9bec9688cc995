"""fit: what is optimised, what is reported, and what is left alone."""

import copy
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.utils.data import Dataset, TensorDataset

from ppl_vae import VARIANTS, Data, Variant, evaluate, fit, pair, prepare
from ppl_vae.evaluation.lower_bounds import held_out
from ppl_vae.guides import Guide
from ppl_vae.models import Gaussian, Laplace, LearnedSigma, LinearGaussian, OptimalSigma, Scale, StudentT
from ppl_vae.streams import seeded
from ppl_vae.svi.precision import networks_in_bf16
from ppl_vae.training import machine
from ppl_vae.training.batches import Batches
from ppl_vae.training.divergence import Diverged
from ppl_vae.training.fitting import Fit
from ppl_vae.training.options import SCHEDULES
from ppl_vae.variant import evaluating, frozen_parts


def linear(name: str, x_dim: int, z_dim: int, **options: float) -> Variant:
    """A variant whose encoder and decoder are linear, so that every answer is known."""
    return VARIANTS[name]((x_dim,), z_dim, encoder=nn.Identity(), decoder=nn.Linear(z_dim, x_dim), **options)


def quick(variant: Variant, x: Tensor | Data, **settings: object) -> Fit:
    return fit(variant, x, **{"epochs": 2, "progress": False, **settings})  # type: ignore[arg-type]


def state(variant: Variant) -> dict[str, Tensor]:
    return {f"{i}.{name}": t.clone() for i, half in enumerate(variant[:2]) for name, t in half.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["sigma_vae", "optimal_sigma_vae"])
def test_a_linear_vae_reaches_the_closed_form_maximum_likelihood(name: str) -> None:
    """Within .05 nats per datum, and its sigma within 1 %: the mean-field guide costs nothing at the optimum."""
    x, z_dim = torch.as_tensor(load_diabetes(scaled=True).data * math.sqrt(442)), 2
    variant = linear(name, x.shape[1], z_dim)
    quick(variant, x, epochs=300, batch_size=300, lr=2e-2, schedule="cosine", validation=None)

    best = LinearGaussian.maximum_likelihood(x, z_dim)
    decoder, q = variant.model.decoder, variant.guide.posterior(x)
    found = LinearGaussian(decoder.weight.detach(), decoder.bias.detach(), variant.model.likelihood.scale.detach())
    bound = found.bound(x, MultivariateNormal(q.mean.detach(), q.variance.detach().diag_embed())).mean()

    optimum = best.log_evidence(x).mean()
    assert optimum - 0.05 < bound <= optimum
    assert float(found.sigma / best.sigma) == pytest.approx(1, abs=0.01)


def test_multiplying_the_data_by_ten_shifts_the_bound_by_d_log_ten_and_changes_nothing_else() -> None:
    x = torch.randn(120, 5) @ torch.randn(5, 5)
    fits = []
    for factor in (1.0, 10.0):
        torch.manual_seed(0)
        data = prepare(factor * x, scale="standardize")
        fits.append(quick(VARIANTS["sigma_vae"]((5,), 2), data, epochs=3))
    one, ten = (trained.history for trained in fits)
    assert np.allclose(ten["held_out_loss"], one["held_out_loss"] + 5 * math.log(10), rtol=1e-9)
    assert np.allclose(ten["loss"], one["loss"] + 5 * math.log(10), rtol=1e-9)
    assert np.allclose(ten["sigma"], one["sigma"], rtol=1e-9)


@pytest.mark.parametrize("rows", [96, 100, 129])
def test_the_loss_of_an_epoch_weighs_every_row_alike(rows: int) -> None:
    """With a step too small to matter, the epoch's loss is the loss of the whole set, a short last batch or not."""
    x = torch.randn(rows, 5)
    variant = VARIANTS["rae_l2"]((5,), 2)
    whole = variant.loss(variant.model.train(), variant.guide.train())(x).item() / rows
    trained = quick(variant, x, epochs=1, batch_size=32, lr=1e-15, validation=None)
    assert trained.rows[0]["loss"] == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("rows", [64, 70])
def test_an_epoch_of_gradients_is_the_gradient_of_the_whole_set(rows: int) -> None:
    """Each row counts once per epoch, and the weight prior in the same proportion."""
    x, gradients = torch.randn(rows, 5), []
    variant = VARIANTS["rae_l2"]((5,), 2)
    weight = variant.model.decoder[0].weight
    weight.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.clone()))  # type: ignore[union-attr]
    quick(variant, x, epochs=1, batch_size=32, lr=1e-15, validation=None)
    assert len(gradients) == math.ceil(rows / 32)
    total = torch.stack(gradients).sum(0)
    gradients.clear()
    variant.model.zero_grad()
    (variant.loss(variant.model.train(), variant.guide.train())(x) / rows).backward()
    assert torch.allclose(total, gradients[0] * rows / 32, rtol=1e-9)


def test_two_variants_fitted_in_turn_equal_each_fitted_alone() -> None:
    x = torch.randn(60, 5)
    first, second = VARIANTS["sigma_vae"]((5,), 2), VARIANTS["gaussian_vae"]((5,), 2)
    alone = copy.deepcopy(second)
    quick(first, x)
    before = state(first)
    quick(second, x)
    quick(alone, x)
    assert equal(state(second), state(alone))
    assert equal(state(first), before)


def test_fit_leaves_the_callers_streams_store_and_validation_alone() -> None:
    with pyro.get_param_store().scope():
        pyro.param("mine", torch.ones(2))
        variant, x = VARIANTS["sigma_vae"]((5,), 2), torch.randn(40, 5)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
        validated = torch.distributions.Distribution._validate_args
        quick(variant, x)
        assert list(pyro.get_param_store().keys()) == ["mine"]
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002
        assert torch.distributions.Distribution._validate_args == validated


def test_a_seed_repeats_a_fit_and_another_one_does_not() -> None:
    x, states = torch.randn(60, 5), []
    for seed in (3, 3, 4):
        torch.manual_seed(0)
        variant = VARIANTS["sigma_vae"]((5,), 2)
        quick(variant, x, seed=seed)
        states.append(state(variant))
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])


def test_the_weights_kept_are_those_of_the_best_held_out_epoch() -> None:
    x = torch.randn(80, 5)
    variant = VARIANTS["gaussian_vae"]((5,), 2)
    # A step this long overfits, so that the best epoch is not the last one.
    trained = quick(variant, x, epochs=40, batch_size=80, lr=0.05, schedule="constant")
    assert trained.best_epoch == trained.history["held_out_loss"].idxmin() < 40
    short = VARIANTS["gaussian_vae"]((5,), 2)
    short.model.load_state_dict(variant.model.state_dict())
    assert not variant.model.training
    assert not variant.guide.training


def test_patience_stops_a_run_that_no_longer_improves() -> None:
    variant, long = VARIANTS["gaussian_vae"]((5,), 2), {"batch_size": 80, "lr": 0.05, "schedule": "constant"}
    trained = quick(variant, torch.randn(80, 5), epochs=200, patience=3, **long)
    assert len(trained.rows) == trained.best_epoch + 3 < 200


def test_the_kl_weight_follows_its_schedule_and_the_held_out_objective_does_not() -> None:
    x = torch.randn(64, 5)
    variant = VARIANTS["beta_vae"]((5,), 2, beta=4.0, anneal="linear")
    trained = quick(variant, x, epochs=4, batch_size=16, validation=x[:16], lr=1e-15)
    # 16 steps in all, and the ramp ends at half of them: the last step of epochs 1 to 4 is number 3, 7, 11, 15.
    assert trained.history["kl_weight"].tolist() == pytest.approx([4 * 3 / 8, 4 * 7 / 8, 4.0, 4.0])
    assert np.ptp(trained.history["held_out_loss"]) == pytest.approx(0, abs=1e-9)


def test_sigma_of_z_opens_at_its_stage_in_one_call() -> None:
    variant = VARIANTS["heteroscedastic_vae"]((5,), 2, stage=0.5)
    opened = []
    variant.model.likelihood.register_forward_hook(
        lambda part, *_: opened.append(float(part.open.value)) if torch.is_grad_enabled() else None
    )
    quick(variant, torch.randn(64, 5), epochs=4, batch_size=16, validation=None)
    assert opened[-16:] == [0.0] * 8 + [1.0] * 8  # before them, the pass at the door


class Exploding(nn.Module):
    """A Gaussian whose scale turns NaN at a step of our choice."""

    outputs = 1

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        self.register_buffer("calls", torch.zeros(()))
        self.weight = nn.Parameter(torch.zeros(()))

    def observe(self, x: Tensor, loc: Tensor) -> None:
        self.calls += 1

    def forward(self, loc: Tensor) -> torch.distributions.Distribution:
        scale = torch.where(self.calls >= self.at, torch.nan, self.weight.exp())
        return pyro.distributions.Normal(loc, scale, validate_args=False)


def test_a_loss_that_turns_nan_names_step_and_term_and_keeps_the_last_good_weights() -> None:
    x = torch.randn(64, 5)
    variant = pair((5,), 2, likelihood=Exploding(at=6))
    with pytest.raises(Diverged, match=r"step 7 of 16 \(epoch 2\): the loss is nan; log p of site 'x' is nan.*lr"):
        quick(variant, x, epochs=4, batch_size=16, validation=None)
    torch.manual_seed(0)
    assert all(bool(t.isfinite().all()) for t in state(variant).values())
    assert float(variant.model.likelihood.calls) == 5  # what gave the last finite loss


def test_weights_that_overflow_are_caught_before_they_are_kept() -> None:
    variant = VARIANTS["gaussian_vae"]((5,), 2)
    with pytest.raises(Diverged, match="last good weights are kept"):
        quick(variant, torch.randn(64, 5), epochs=3, lr=1e200)
    assert all(bool(t.isfinite().all()) for t in state(variant).values())


def test_weights_that_overflow_after_a_finite_loss_are_caught() -> None:
    """The last step of a training has no loss after it."""
    variant = VARIANTS["gaussian_vae"]((5,), 2)
    for half in variant[:2]:
        half.float()
    with pytest.raises(Diverged, match="last good weights are kept"):
        quick(variant, torch.randn(64, 5).float(), epochs=1, batch_size=64, validation=None, lr=1e200)
    assert all(bool(t.isfinite().all()) for t in state(variant).values())


class Rows(Dataset[tuple[Tensor, int]]):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], 0


def test_a_streamed_dataset_is_trained_on_as_a_resident_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same rows, same weights of rows: with a step too small to matter the losses agree."""
    x, losses = torch.randn(50, 5), []
    for budget in (2**31, 0):
        monkeypatch.setattr("ppl_vae.data.items.RESIDENT", budget)
        torch.manual_seed(0)
        variant = VARIANTS["rae"]((5,), 2)
        losses.append(quick(variant, Rows(x), epochs=1, batch_size=16, lr=1e-15, validation=None).rows[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


BAD = [
    ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
    ({"batch_size": 2.5}, "batch_size must be a whole number of at least 1, got 2.5"),
    ({"lr": math.nan}, "lr must be positive and finite, got nan"),
    ({"lr": -1.0}, "lr must be positive and finite, got -1.0"),
    ({"device": "tpu9"}, "device must be auto, cpu, cuda or cuda:N, got 'tpu9'"),
    ({"schedule": "warm"}, "schedule must be one of constant, cosine"),
    ({"validation": 1.5}, r"validation must be a share of the rows in \(0, 1\), got 1.5"),
    ({"backend": "turbo"}, "backend must be one of auto, eager, fx, inductor, cudagraph, got 'turbo'"),
    ({"precision": "int4"}, "precision must be one of full, bf16, bf16_matmul, got 'int4'"),
    ({"patience": 0}, "patience must be a whole number of at least 1, got 0"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[next(iter(settings)) for settings, _ in BAD])
def test_a_setting_that_cannot_be_used_is_refused_at_the_door(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick(VARIANTS["sigma_vae"]((5,), 2), torch.randn(20, 5), **settings)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sigma_vae", ["a lower bound of log p(x)", "LearnedSigma(scale=", "MeanField", "PathwiseELBO, 1 draw"]),
        ("beta_vae", ["its KL is weighted by 4", "equivalent to sigma 0.2 with weight 1"]),
        (
            "rae_l2",
            ["a MAP objective, log p(x, z)", "not a lower bound", "WeightPrior(scale=0.1, layers=('decoder',))"],
        ),
        ("ae", ["a MAP objective, log p(x | z) without p(z) at a point mass", "none: p(z) is not in"]),
        ("rae", ["no minimiser"]),
        ("wae_mmd", ["MMD(weight=500)", "MAP objective"]),
    ],
)
def test_the_receipt_says_what_was_optimised(name: str, words: list[str]) -> None:
    receipt = quick(VARIANTS[name]((5,), 2), torch.randn(64, 5)).receipt()
    for word in words:
        assert word in receipt


class FixedLaplace(Gaussian):
    """A Laplace likelihood whose scale is stated."""

    def forward(self, loc: Tensor) -> Any:
        return pyro.distributions.Laplace(loc, self.scale)


@pytest.mark.parametrize(
    ("likelihood", "words"),
    [
        (lambda: Gaussian(0.1), "sigma 0.1 with this weight is equivalent to sigma 0.2 with weight 1"),
        (lambda: LearnedSigma(0.1).requires_grad_(requires_grad=False), "equivalent to sigma 0.2 with weight 1"),
        (lambda: FixedLaplace(0.1), "scale 0.1 with this weight is equivalent to scale 0.4 with weight 1"),
        (LearnedSigma, ""),
        (OptimalSigma, ""),
        (Laplace, ""),
        (StudentT, ""),
    ],
)
def test_a_kl_weight_is_equivalent_to_another_scale_where_the_scale_is_fixed(
    likelihood: Callable[[], nn.Module], words: str
) -> None:
    receipt = quick(VARIANTS["beta_vae"]((5,), 2, beta=4.0, likelihood=likelihood()), torch.randn(64, 5)).receipt()

    assert words in receipt
    assert ("is equivalent to" in receipt) == bool(words)


@pytest.mark.parametrize(("family", "power"), [(Gaussian, 0.5), (FixedLaplace, 1.0)])
def test_that_scale_has_the_gradients_of_the_weight(family: Callable[[float], nn.Module], power: float) -> None:
    """The networks' gradients at weight w are w times those at weight 1 under the other scale."""
    x, gradients = torch.randn(16, 5), []
    for weight, scale in ((4.0, 0.3), (1.0, 4.0**power * 0.3)):
        torch.manual_seed(0)
        variant = VARIANTS["beta_vae"]((5,), 2, beta=weight, likelihood=family(scale))
        torch.manual_seed(1)
        (variant.loss(variant.model, variant.guide)(x) / weight).backward()
        gradients.append([p.grad for half in variant[:2] for p in half.parameters()])

    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


def test_a_receipt_leaves_the_random_stream_of_the_caller() -> None:
    trained = quick(VARIANTS["beta_vae"]((5,), 2), torch.randn(64, 5))
    state = torch.get_rng_state()
    trained.receipt()

    assert torch.equal(torch.get_rng_state(), state)


def test_sigma_in_the_history_is_that_of_evaluate() -> None:
    x, other = torch.randn(128, 5), torch.randn(40, 5)
    variant = VARIANTS["heteroscedastic_vae"]((5,), 2, stage=0.0)
    trained = quick(variant, x, epochs=3, validation=other)

    sigma = trained.history["sigma"].iloc[trained.best_epoch - 1]
    assert evaluate(variant, other, 3)["sigma"].value == pytest.approx(sigma, rel=1e-6)
    assert sigma != pytest.approx(variant.model.likelihood.scale.item(), rel=1e-4)  # the factor that all share
    assert quick(VARIANTS["bernoulli_vae"]((5,), 2), (x > 0).double()).rows[-1]["sigma"] is None


def test_progress_and_history_have_losses_alone_which_go_down(capsys: pytest.CaptureFixture[str]) -> None:
    variant, x = VARIANTS["gaussian_vae"]((5,), 2), torch.randn(64, 5)
    row = fit(variant, x, epochs=1, validation=x[:20], progress=True).rows[0]

    assert f"loss {row['loss']:.4g}  held-out loss {row['held_out_loss']:.4g}" in capsys.readouterr().err
    with evaluating(variant), seeded(0):
        assert row["held_out_loss"] == pytest.approx(-held_out(variant, variant.in_model_units(x[:20])).mean().item())


class Codes(Guide):
    """A point mass of one's own: it is no ``PointMass``, and its distribution says what it is."""

    def distribution(self, loc: Tensor) -> Any:
        return pyro.distributions.Delta(loc).to_event(1)


def test_a_guide_of_ones_own_that_returns_delta_has_no_bound() -> None:
    variant = pair((5,), 2, likelihood=Gaussian(0.5), guide=Codes)
    trained = quick(variant, torch.randn(64, 5))

    assert not variant.has_bound
    assert "a MAP objective, log p(x, z) at a point mass: not a lower bound of log p(x)" in trained.receipt()
    found = evaluate(variant, torch.randn(20, 5), 5)
    assert found["bound"].value is None
    assert found["log_joint"].value is not None


@pytest.mark.parametrize("name", ["rae_l2", "sigma_vae"])
def test_the_terms_of_the_receipt_add_up_to_its_loss(name: str) -> None:
    """And the loss is the objective itself, with the same draws, to rounding of the printed digits."""
    x = torch.randn(64, 5)
    data = Data("x", x, x[:0], None, None, Scale((5,), 1.0, 2.0))
    variant = VARIANTS[name]((5,), 2)
    lines = quick(variant, data, validation=None).receipt().splitlines()
    loss = float(next(line for line in lines if line.startswith("loss")).split()[1])
    terms = [float(line.split()[-1]) for line in lines if line.startswith("  ") and line.split()[-1][0] in "+-"]
    y = variant.in_model_units(x)
    with seeded(0):
        objective = variant.loss(variant.model.train(), variant.guide.train())(y).item() / 64 + 5 * math.log(2)
    assert loss == pytest.approx(objective, rel=1e-4)
    assert -sum(terms) == pytest.approx(loss, rel=1e-4)


def test_the_learning_rate_follows_its_schedule() -> None:
    rates = SCHEDULES["cosine"]
    assert [rates(0.0), rates(0.5), rates(1.0)] == pytest.approx([1.0, 0.5, 0.0])


def test_data_outside_the_support_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"outside the support of Bernoulli.*sigma_vae or gaussian_vae fits"):
        quick(VARIANTS["bernoulli_vae"]((5,), 2), torch.randn(20, 5))
    with pytest.raises(ValueError, match=r"a datum has shape \[4\], the model wants \[5\]"):
        quick(pair((5,), 2, likelihood=Gaussian()), torch.randn(20, 4))


def test_a_batch_below_a_grain_of_work_is_trained_by_one_thread_and_the_rest_is_left_alone() -> None:
    before, seen = torch.get_num_threads(), set()
    for batch_size in (32, 2 * machine.GRAIN // 5):
        with machine.threads_for(batch_size * 5):
            seen.add((batch_size, torch.get_num_threads()))
    assert seen == {(32, 1), (2 * machine.GRAIN // 5, before)}
    assert torch.get_num_threads() == before


TRAINED = {"optimal_sigma_vae": {}, "beta_vae": {"anneal": "linear"}, "rae_sn": {}}


@pytest.mark.parametrize("name", TRAINED)
def test_a_fit_from_a_graph_is_the_eager_fit_to_the_last_bit(name: str) -> None:
    """Weights, buffers and history, over short batches, schedules and a restart from a held-out best epoch."""
    x, found = torch.randn(70, 5), []
    for backend in ("fx", "eager"):
        torch.manual_seed(0)
        variant = VARIANTS[name]((5,), 2, **TRAINED[name])
        trained = quick(variant, x, epochs=3, batch_size=16, schedule="cosine", backend=backend)
        found.append((state(variant), trained.history.drop(columns="seconds")))
        assert trained.settings["backend"] == {"fx": "fx", "eager": "eager: the eager backend was chosen"}[backend]
    assert equal(found[0][0], found[1][0])
    assert found[0][1].equals(found[1][1])


def test_a_pair_that_is_not_static_is_trained_eagerly_and_the_settings_say_so() -> None:
    class Reading(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z) * (1.0 if z.sum() > 0 else 0.5)

    trained = quick(VARIANTS["sigma_vae"]((5,), 2, decoder=Reading(2, 5)), torch.randn(64, 5), batch_size=16)
    assert trained.settings["backend"].startswith("eager: aten._local_scalar_dense.default makes a Python value")


@pytest.mark.parametrize(
    ("precision", "channels_last"), [("full", True), ("bf16", False), ("bf16", True), ("bf16_matmul", False)]
)
def test_every_weight_moves_in_any_precision_and_layout(precision: str, channels_last: bool) -> None:
    """The same parameter objects, contiguous again when training is done; the loss is that in full, nearly."""
    variant = VARIANTS["sigma_vae"]((1, 8, 8), 2)
    for half in variant[:2]:
        half.float()
    before, objects = state(variant), [parameter for half in variant[:2] for parameter in half.parameters()]
    options = {"precision": precision, "channels_last": channels_last}
    trained = quick(variant, torch.randn(40, 1, 8, 8), batch_size=16, validation=None, **options)
    after = state(variant)
    names = [f"{i}.{name}" for i, half in enumerate(variant[:2]) for name, _ in half.named_parameters()]
    assert [name for name in names if torch.equal(before[name], after[name])] == []
    assert all(a is b for a, b in zip(objects, [p for half in variant[:2] for p in half.parameters()], strict=True))
    assert all(parameter.is_contiguous() for parameter in objects)
    assert trained.settings["backend"] == "fx"
    assert ("precision_error" in trained.settings) == (precision != "full")
    assert trained.settings.get("precision_error", 0.0) < 0.01 * abs(trained.rows[0]["loss"])


# What is frozen.


def normed(*last: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(0.5), *last)


@pytest.mark.parametrize(("training", "backend"), [(True, "fx"), (False, "eager")])
def test_a_frozen_part_stays_as_it_is(training: bool, backend: str) -> None:
    """Weights and statistics, in whatever mode it came; it runs in eval mode, so that its dropout does not act."""
    encoder = normed(nn.Linear(7, 4)).requires_grad_(requires_grad=False).train(training)
    variant = VARIANTS["sigma_vae"]((5,), 2, encoder=encoder)
    before, x = copy.deepcopy(encoder.state_dict()), 9 * torch.randn(60, 5) + 4
    seen: list[bool] = []
    encoder[2].register_forward_pre_hook(lambda module, _: seen.append(module.training))
    trained = quick(variant, x, backend=backend)

    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert seen
    assert not any(seen)
    assert "frozen                guide.encoder: in eval mode" in trained.receipt()


def test_what_is_not_frozen_trains_beside_what_is() -> None:
    """One layer of a network is frozen: the norm behind it goes on, and so does a norm without parameters."""
    encoder = normed(nn.BatchNorm1d(7, affine=False))
    encoder[0].requires_grad_(requires_grad=False)
    before = copy.deepcopy(encoder.state_dict())
    variant = VARIANTS["sigma_vae"]((5,), 2, encoder=encoder)
    quick(variant, torch.randn(60, 5))
    moved = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}

    assert moved == before.keys() - {"0.weight", "0.bias"}
    assert list(frozen_parts(variant)) == ["guide.encoder.0"]


def test_the_scale_of_a_frozen_model_stays_and_its_kl_weight_acts() -> None:
    """The model itself is in training mode, in which the weight acts on both halves; its parts are not."""
    variant = VARIANTS["beta_vae"]((5,), 2, beta=3.0, likelihood=OptimalSigma(0.5), anneal="linear")
    variant.model.requires_grad_(requires_grad=False)
    quick(variant, torch.randn(60, 5), validation=None, batch_size=20)

    assert float(variant.model.likelihood.scale) == 0.5
    assert variant.kl_weight == pytest.approx(3.0)


def test_a_wholly_frozen_pair_is_refused_in_words() -> None:
    variant = VARIANTS["sigma_vae"]((5,), 2)
    for half in variant[:2]:
        half.requires_grad_(requires_grad=False)
    with pytest.raises(ValueError, match=r"^parameters: no parameter is left to train: all are frozen"):
        quick(variant, torch.randn(60, 5))


# Batches of one row.


@pytest.mark.parametrize("streamed", [False, True])
def test_a_lone_last_row_joins_the_batch_before_under_batch_norm(streamed: bool) -> None:
    x = torch.arange(33.0).reshape(33, 1).expand(33, 5)
    plain, with_norm = VARIANTS["sigma_vae"]((5,), 2), VARIANTS["sigma_vae"]((5,), 2, encoder=normed())
    sizes = {}
    for name, variant in (("plain", plain), ("norm", with_norm)):
        batches = Batches(variant, TensorDataset(x) if streamed else x, 8)
        found = list(batches)
        sizes[name] = [len(batch) for batch in found]
        assert len(batches) == len(found)
        assert torch.equal(torch.cat(found)[:, 0].sort().values, x[:, 0])

    assert sizes == {"plain": [8, 8, 8, 8, 1], "norm": [8, 8, 8, 9]}
    state_before = state(with_norm)
    assert equal(state(with_norm), state_before)
    quick(with_norm, x, batch_size=8, validation=None)


def test_a_norm_over_pixels_trains_on_one_image_as_it_did() -> None:
    encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))

    assert len(Batches(VARIANTS["sigma_vae"]((1, 8, 8), 2, encoder=encoder), torch.rand(9, 1, 8, 8), 4)) == 3


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 8), (9, 1)])
def test_batches_that_are_all_of_one_row_are_refused_under_batch_norm(rows: int, batch_size: int) -> None:
    x = torch.randn(rows, 5)
    message = rf"BatchNorm1d .*{rows} training rows in batches of {batch_size}: use 2 or more"
    with pytest.raises(ValueError, match=message):
        quick(VARIANTS["sigma_vae"]((5,), 2, encoder=normed()), x, validation=None, batch_size=batch_size)

    quick(VARIANTS["sigma_vae"]((5,), 2), x, validation=None, batch_size=batch_size)


# Recurrent layers.


class Last(nn.Module):
    """The last state of a recurrent layer, or of a cell."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(3, 4), layer

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.GRUCell):
            return self.layer(x[:, 0], self.first(x[:, 0]))
        state = self.layer(x)[1]
        return (state[0] if isinstance(state, tuple) else state)[-1]


RECURRENT = {
    "lstm": lambda: nn.LSTM(3, 4, batch_first=True),
    "gru": lambda: nn.GRU(3, 4, batch_first=True),
    "cell": lambda: nn.GRUCell(3, 4),
}


def test_a_network_in_bf16_returns_the_type_that_it_was_given() -> None:
    network, x = nn.Linear(3, 4).float(), torch.randn(6, 3).float()
    full = network(x)
    with networks_in_bf16([network]):
        low = network(x)

    assert low.dtype == torch.float32
    assert 0 < float((low - full).detach().abs().max()) < 0.05


@pytest.mark.parametrize("layer", RECURRENT.values(), ids=RECURRENT)
def test_recurrent_layers_stay_in_full_precision(layer: Callable[[], nn.Module]) -> None:
    network, x = Last(layer()).float(), torch.randn(6, 5, 3).float()
    inputs: list[Tensor] = []
    network.layer.register_forward_pre_hook(lambda _, args: inputs.extend(args))
    full = network(x)
    with networks_in_bf16([network]):
        low = network(x)

    rounded = 2**-8 if isinstance(network.layer, nn.GRUCell) else 0.0  # the state that the cell is given is rounded
    assert low.dtype == torch.float32
    assert float((low - full).detach().abs().max()) <= rounded
    assert "forward" not in vars(network)
    assert "forward" not in vars(network.layer)


# Messages that lead on.


def test_a_number_that_is_not_finite_in_a_streamed_dataset_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has seen these rows before: otherwise the training would diverge, and blame the learning rate."""
    x = torch.randn(60, 5)
    x[59, 3] = math.nan
    monkeypatch.setattr("ppl_vae.data.items.RESIDENT", 1)

    with pytest.raises(ValueError, match=r"a batch of the Dataset .*nan") as caught:
        quick(VARIANTS["sigma_vae"]((5,), 2), TensorDataset(x), validation=None)
    assert not isinstance(caught.value, ArithmeticError)


def test_data_of_a_mass_are_never_advised_to_be_scaled() -> None:
    x = torch.bernoulli(torch.full((60, 5), 0.5))

    with pytest.raises(Diverged) as caught:
        quick(VARIANTS["bernoulli_vae"]((5,), 2), x, lr=1e300)
    assert "Try a smaller lr" in str(caught.value)
    assert "standardize" not in str(caught.value)


@pytest.mark.parametrize("path", ["table.csv", Path("table.csv")])
def test_a_path_in_the_place_of_data_is_told_how_to_be_read(path: Any) -> None:
    with pytest.raises(ValueError, match=r"a path or a name, 'table\.csv', wanted data: pass prepare\('table\.csv'\)"):
        quick(VARIANTS["sigma_vae"]((5,), 2), path)
