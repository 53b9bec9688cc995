"""The optimizer of fit: it is the user's own, with the noise and the batches of fit, and a study knows it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppl_vae import VARIANTS, Variant, fit
from ppl_vae.contracts import preflight
from ppl_vae.data.prepared import prepare, unsplit
from ppl_vae.streams import seeded
from ppl_vae.studies import Contestant
from ppl_vae.studies.cells import grid
from ppl_vae.training import Fit
from ppl_vae.training.batches import Batches
from ppl_vae.training.optimizers import name_of, optimizer_of
from ppl_vae.training.validation import hold_out

DECAY, LR = 0.3, 1e-2
ADAMW: Callable[..., torch.optim.Optimizer] = partial(torch.optim.AdamW, weight_decay=DECAY)


def small() -> Variant:
    return VARIANTS["sigma_vae"]((5,), 2, width=4, seed=3)


def data() -> Tensor:
    with seeded(1):
        return torch.randn(30, 5)


def trained(**options: Any) -> Fit:
    settings = {"epochs": 3, "batch_size": 8, "lr": LR, "schedule": "constant", "validation": None, "seed": 5}
    return fit(small(), data(), progress=False, **{**settings, **options})


def weights(variant: Variant) -> list[Tensor]:
    return [parameter.detach() for half in variant[:2] for parameter in half.parameters()]


def by_hand(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], epochs: int = 3) -> Variant:
    """The training of ``trained``, as a loop."""
    variant, prepared = small(), unsplit(data())
    with seeded(5):
        train, _ = hold_out(variant, prepared, None)
        batches = Batches(variant, train, 8)
        preflight(variant, batches.first())
        loss = variant.loss(variant.model, variant.guide)
        optimizer = make(list(loss.parameters()))
        for _ in range(epochs):
            for y in batches:
                optimizer.zero_grad()
                (loss(y, 30) / 30 * len(y) / 8).backward()
                optimizer.step()
    return variant


def furthest(one: Variant, other: Variant) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(weights(one), weights(other), strict=True))


@pytest.mark.parametrize("backend", ["eager", "fx"])
def test_a_fit_with_adamw_is_a_loop_with_adamw(backend: str) -> None:
    found = trained(optimizer=ADAMW, backend=backend)

    assert furthest(found.variant, by_hand(partial(torch.optim.AdamW, lr=LR, weight_decay=DECAY))) < 1e-10
    assert furthest(found.variant, by_hand(partial(torch.optim.AdamW, lr=LR, weight_decay=0.0))) > 1e-4
    assert found.settings["backend"] == ("fx" if backend == "fx" else "eager: the eager backend was chosen")


class Decayed(torch.optim.Adam):
    """Adam without weight decay, on gradients to which ``DECAY * w`` was added by hand."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = parameter.grad + DECAY * parameter.detach()
        return super().step(closure)


def test_the_weight_decay_of_adam_is_added_to_the_gradient_of_the_loss_per_datum() -> None:
    found = trained(optimizer=partial(torch.optim.Adam, weight_decay=DECAY))

    assert furthest(found.variant, by_hand(partial(Decayed, lr=LR))) < 1e-10


def test_decoupled_decay_multiplies_every_weight_before_the_step_of_adam() -> None:
    """One step: AdamW's weights are those of Adam's step, with ``(1 - lr * decay)`` times the initial weights."""
    once = {"epochs": 1, "batch_size": 30}
    coupled, decoupled = (trained(**once, optimizer=made).variant for made in (torch.optim.Adam, ADAMW))

    for start, plain, shrunk in zip(weights(small()), weights(coupled), weights(decoupled), strict=True):
        step = plain - start
        assert torch.allclose(shrunk, (1 - LR * DECAY) * start + step, rtol=0, atol=1e-12)


def test_every_group_gets_the_learning_rate_of_the_schedule() -> None:
    groups: list[dict[str, Any]] = []

    def two_groups(parameters: list[Tensor]) -> torch.optim.Optimizer:
        parts = [{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:]}]
        made = torch.optim.SGD(parts, lr=7.0)
        groups.extend(made.param_groups)
        return made

    found = trained(optimizer=two_groups, lr=1e-4, schedule=lambda done: 1 - done)

    last = 1e-4 * (1 - (found.settings["steps"] - 1) / found.settings["steps"])
    assert [group["lr"] for group in groups] == [pytest.approx(last)] * 2
    assert found.settings["optimizer"] == "SGD(weight_decay=0.1; )"


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (None, "Adam"),
        (torch.optim.Adam, "Adam"),
        (partial(torch.optim.AdamW, weight_decay=0.01), "AdamW(weight_decay=0.01)"),
        (partial(torch.optim.Adam, betas=(0.5, 0.9), amsgrad=True), "Adam(betas=(0.5, 0.9), amsgrad=True)"),
        (partial(torch.optim.SGD, momentum=0.9), "SGD(momentum=0.9)"),
    ],
)
def test_an_optimizer_is_named_with_its_settings(made: Any, name: str) -> None:
    assert name_of(optimizer_of(made, [nn.Parameter(torch.zeros(2))], 1e-3)) == name


def test_the_receipt_and_the_settings_name_the_optimizer() -> None:
    found = trained(epochs=1, optimizer=ADAMW)

    assert found.settings["optimizer"] == "AdamW(weight_decay=0.3)"
    assert "optimizer             AdamW(weight_decay=0.3)" in found.receipt().splitlines()
    assert trained(epochs=1).settings["optimizer"] == "Adam"


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("adamw", "optimizer must be a callable from parameters, got 'adamw'"),
        (lambda parameters: 3, "optimizer must return a torch.optim.Optimizer, got 3"),
        (torch.optim.LBFGS, "LBFGS evaluates the loss several times in a step through a closure"),
    ],
    ids=["a name", "no optimizer", "a closure"],
)
def test_what_is_no_optimizer_of_a_fit_is_refused(made: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trained(optimizer=made)


def test_a_study_knows_the_optimizer_of_a_cell() -> None:
    """Equal makers have equal keys, and another weight decay is another cell."""
    prepared = prepare(data())
    makers = [None, torch.optim.AdamW, ADAMW, partial(torch.optim.AdamW, weight_decay=DECAY)]
    made = [Contestant("sigma_vae", training={} if one is None else {"optimizer": one}) for one in makers]

    keys = [grid({"it": one}, prepared, 1)[0].key for one in made]

    assert keys[2] == keys[3]
    assert len(set(keys)) == 3
