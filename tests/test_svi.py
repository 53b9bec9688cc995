"""SVI: a step that runs from a graph equals Pyro's step to the last bit, and any other step is refused."""

import copy
import functools
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_vae import VARIANTS, Variant
from ppl_vae.elbo import PathwiseELBO, estimator
from ppl_vae.guides import FullRank
from ppl_vae.svi import SVI, Adam, Stale, Step, backends, shortening
from ppl_vae.svi.capture import record
from ppl_vae.svi.movers import Mover
from ppl_vae.svi.proof import prove
from ppl_vae.svi.step import APART, Graph

X_DIM, Z_DIM, SIZE = 6, 2, 40
SIZES = (8, 8, 8, 3, 8, 3, 3, 8, 3, 8)  # the last batch of an epoch is short


def net(*widths: int, between: Callable[[int], nn.Module] = lambda width: nn.Tanh()) -> nn.Sequential:
    layers: list[nn.Module] = []
    for here, there in pairwise(widths):
        layers += [nn.Linear(here, there), between(there)]
    return nn.Sequential(*layers[:-1])


def small(name: str, between: Callable[[int], nn.Module] = lambda width: nn.Tanh(), **options: Any) -> Variant:
    outputs = 2 if name == "heteroscedastic_vae" else 1
    parts = {"encoder": net(X_DIM, 7, 5, between=between), "decoder": net(Z_DIM, 7, outputs * X_DIM, between=between)}
    return VARIANTS[name]((X_DIM,), Z_DIM, **{**parts, **options})


def batches(sizes: Sequence[int] = SIZES, x_shape: tuple[int, ...] = (X_DIM,)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(size, *x_shape, generator=generator).bernoulli(generator=generator) for size in sizes]


def state(variant: Variant) -> list[Tensor]:
    return [t.clone() for half in variant[:2] for t in half.state_dict().values()]


def eval_at(step: int) -> bool:
    return step in (3, 4, 5, 6)


def by_hand(variant: Variant, data: list[Tensor], mode: Callable[[int], bool] = lambda step: False) -> list[Tensor]:
    """Train as torch and Pyro do. Returns the weights, the buffers and the random stream."""
    pyro.set_rng_seed(7)
    objective = variant.loss(variant.model, variant.guide)
    optimizer = torch.optim.Adam(objective.parameters(), 1e-2, fused=True)
    for step, y in enumerate(data):
        objective.train(not mode(step))
        variant.model.advance(step, len(data))
        optimizer.zero_grad()
        objective(y, SIZE).backward()
        optimizer.step()
    return [*state(variant), torch.get_rng_state()]


def by_svi(
    variant: Variant,
    data: list[Tensor],
    mode: Callable[[int], bool] = lambda step: False,
    backend: str = "fx",
    reason: str | None = None,
) -> list[Tensor]:
    """Train with our SVI, which runs from a graph unless ``reason`` is given."""
    pyro.set_rng_seed(7)
    with pyro.get_param_store().scope():
        fast = SVI(optim=pyro.optim.Adam({"lr": 1e-2}), backend=backend, **variant._asdict())
        for step, y in enumerate(data):
            for half in variant[:2]:
                half.train(not mode(step))
            variant.model.advance(step, len(data))
            fast.step(y, SIZE)
    assert fast.reason == reason
    assert reason is not None or graphs(fast)
    return [*state(variant), torch.get_rng_state()]


def graphs(fast: SVI) -> list[Graph]:
    """The proved graphs of an SVI."""
    return [graph for graph in fast._step.runs.values() if isinstance(graph, Graph)]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# Variants whose step has an operation or a statistic that no other one has.
DISTINCT = ["bernoulli_vae", "optimal_sigma_vae", "heteroscedastic_vae", "rae_gp", "rae_sn", "wae_mmd"]
CASES: dict[str, Callable[[], Variant]] = {
    **{name: lambda name=name: small(name) for name in DISTINCT},
    "linear KL weight": lambda: small("beta_vae", anneal="linear"),
    "random probes": lambda: small("rae_gp", probes=2),
    "batch norm": lambda: small("sigma_vae", between=nn.BatchNorm1d),
    "dropout": lambda: small("sigma_vae", between=lambda width: nn.Dropout(0.3)),
    "looped particles": lambda: small("sigma_vae", loss=PathwiseELBO(num_particles=3)),
    "vectorised particles": lambda: small(
        "optimal_sigma_vae", loss=PathwiseELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    ),
    "Trace_ELBO, particles": lambda: small("sigma_vae", loss=Trace_ELBO(num_particles=2)),
    "TraceMeanField_ELBO": lambda: small("sigma_vae", loss=TraceMeanField_ELBO()),
    "entries of a matrix": lambda: small("sigma_vae", guide=FullRank),
}


CASES |= {
    name: lambda name=name: small("sigma_vae", loss=estimator(f"{name}:num_particles=4"))
    for name in ("piwae", "free_bits", "renyi")
}


def test_the_same_parameters_in_a_new_list_are_moved_by_the_same_adam() -> None:
    """Another object would be another kind of step each time, and its averages would start anew."""
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    mover = Mover(pyro.optim.Adam({"lr": 0.1}))
    first = mover.fused(parameters)

    assert first is not None
    assert mover.fused(list(parameters)) is first
    assert mover.fused(parameters[::-1]) is not first


@pytest.mark.parametrize("case", CASES)
def test_training_from_a_graph_is_training_by_hand_to_the_last_bit(case: str) -> None:
    """Weights, buffers and the random stream are equal, with short batches and schedules."""
    variant = CASES[case]()
    assert same(by_svi(copy.deepcopy(variant), batches()), by_hand(variant, batches()))


@pytest.mark.parametrize("case", ["batch norm", "dropout", "rae_sn", "optimal_sigma_vae", "rae_gp"])
def test_each_mode_has_its_own_graph(case: str) -> None:
    variant, data = CASES[case](), batches([8] * 11)
    assert same(by_svi(copy.deepcopy(variant), data, eval_at), by_hand(variant, data, eval_at))


def test_images_are_trained_as_vectors_are() -> None:
    variant, data = VARIANTS["bernoulli_vae"]((1, 8, 8), Z_DIM), batches((4, 4, 4, 4, 4), (1, 8, 8))
    assert same(by_svi(copy.deepcopy(variant), data), by_hand(variant, data))


class Doubling(Trace_ELBO):
    """An estimator that changes the gradient of each draw by a hook on an intermediate tensor."""

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        ((model_trace, guide_trace),) = self._get_traces(model, guide, args, kwargs)
        z = guide_trace.nodes["z"]["value"]
        weight = z.detach().square().sum(-1, keepdim=True)
        z.register_hook(lambda gradient: gradient * weight)
        return guide_trace.log_prob_sum() - model_trace.log_prob_sum()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


def test_a_hook_on_an_intermediate_tensor_is_part_of_the_graph() -> None:
    variant = small("sigma_vae", loss=Doubling())
    plain = variant._replace(loss=PathwiseELBO())
    found = by_svi(copy.deepcopy(variant), batches())
    assert same(found, by_hand(copy.deepcopy(variant), batches()))
    assert not same(found, by_hand(plain, batches()))


# Pairs of plain functions, beside stock SVI.

NET = {"encoder": (X_DIM, 5, 2 * Z_DIM), "decoder": (Z_DIM, 5, X_DIM)}


def functions() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A pair with a plate that subsamples, with modules, and with a constrained parameter in the store."""
    torch.manual_seed(3)
    encoder, decoder = (net(*widths) for widths in NET.values())

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), subsample_size=3) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(Z_DIM), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x[index])

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), subsample_size=3) as index:
            loc, log_scale = encoder(x[index]).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def discrete() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A latent variable that cannot be reparameterised, for which Pyro takes the score function estimator."""
    weight = torch.linspace(-1.0, 1.0, X_DIM)

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(X_DIM))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(loc + z.unsqueeze(-1) * weight, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(X_DIM))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=x @ logits))

    return model, guide


def stored() -> list[Tensor]:
    return [pyro.param(name).detach().clone() for name in pyro.get_param_store()]


def run(
    library: Any, pair: Callable[[], Any], loss: Any, data: list[Tensor], **options: Any
) -> tuple[Any, list[Tensor]]:
    """Train with ``pyro.infer.SVI`` or ours. Returns the parameters in the store and the random stream."""
    with pyro.get_param_store().scope():
        model, guide = pair()
        pyro.set_rng_seed(7)
        random.seed(7)
        inference = library(model, guide, pyro.optim.Adam({"lr": 1e-2, "fused": True}), loss)
        for x in data:
            inference.step(x)
        return inference, [*stored(), torch.get_rng_state()]


def automatic() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A pair with a guide of Pyro's that makes its parameters in its first call."""

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(X_DIM), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", SIZE, subsample=x):
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    return model, AutoDiagonalNormal(model)


@pytest.mark.parametrize(
    ("pair", "loss"),
    [
        (functions, Trace_ELBO),
        (functions, TraceMeanField_ELBO),
        (discrete, Trace_ELBO),
        (automatic, Trace_ELBO),
        (automatic, TraceMeanField_ELBO),
    ],
)
def test_a_foreign_pair_trains_as_under_stock_svi(pair: Callable[[], Any], loss: Any) -> None:
    _, theirs = run(pyro.infer.SVI, pair, loss(), batches())
    fast, ours = run(without_fused(SVI), pair, loss(), batches())
    assert same(ours, theirs)
    assert fast.reason is None
    assert len(graphs(fast)) == 2


def without_fused(library: Any) -> Any:
    """Drop the option ``fused``, because our Adam is always fused."""
    return lambda model, guide, optim, loss: library(
        model, guide, pyro.optim.Adam({"lr": optim.pt_optim_args["lr"]}), loss
    )


def test_a_step_from_a_graph_reads_nothing_back() -> None:
    class Blind(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert torch.Tag.data_dependent_output not in func.tags
            return func(*args, **(kwargs or {}))

    variant, y = small("bernoulli_vae"), batches()[0]
    with pyro.get_param_store().scope():
        fast = SVI(optim=pyro.optim.Adam({"lr": 1e-2}), **variant._asdict())
        for _ in range(4):
            fast.step(y)
        with Blind():
            loss = fast.step(y)
    assert loss.shape == ()
    assert not loss.requires_grad


@pytest.mark.parametrize("make", [torch.optim.SGD, lambda p: torch.optim.RMSprop(p, 1e-2)], ids=["SGD", "RMSprop"])
def test_any_optimizer_of_torch_will_do(make: Any) -> None:
    states = []
    for backend in ("fx", "eager"):
        with pyro.get_param_store().scope():
            pyro.set_rng_seed(0)
            variant = small("sigma_vae")
            fast = SVI(variant.model, variant.guide, make, variant.loss, backend=backend)
            for y in batches():
                fast.step(y)
            states.append(state(variant))
    assert same(*states)


def test_our_adam_is_that_of_torch_and_loads_its_state() -> None:
    """A parameter that sometimes has no gradient has its own counter of steps, and a loaded state continues."""
    start = [torch.randn(3, 2), torch.randn(2), torch.randn(4, dtype=torch.float32)]
    ends = []
    for make in (Adam, lambda p, **options: torch.optim.Adam(p, fused=True, **options)):
        parameters = [t.clone().requires_grad_() for t in start]
        optimizer: Any = make(parameters, lr=0.1, weight_decay=0.01)
        for step in range(6):
            for place, parameter in enumerate(parameters):
                parameter.grad = None if place == 1 and step in (0, 3) else torch.full_like(parameter, step - 1.5)
            optimizer.step()
            if step == 4:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        ends.append([t.detach() for t in parameters])
    assert same(*ends)


# What is refused.


class Net(nn.Module):
    """A decoder that does to its code what a test asks for."""

    def __init__(self, deed: Callable[["Net", Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.deed, self.calls = nn.Linear(Z_DIM, X_DIM), deed, 0
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z) * self.deed(self, z)


GENERATOR = np.random.default_rng(7)


def counted(net: Net, z: Tensor) -> float:
    net.calls += 1
    return 1.0 + 0.1 * net.calls


def rebound(net: Net, z: Tensor) -> Tensor:
    net.mean = 0.9 * net.mean + 0.1 * z.detach().mean()
    return 1 + net.mean


def moved_then_read(net: Net, z: Tensor) -> float:
    net.mean += 1
    return 1 / net.mean.item()


REFUSED = {
    "item": (lambda net, z: z.detach().abs().mean().item(), "_local_scalar_dense"),
    "a buffer moved, then read": (moved_then_read, "_local_scalar_dense"),
    "a list of values": (lambda net, z: sum(z[0].tolist()), "Tensor.tolist"),
    "a weight by way of NumPy": (lambda net, z: float(net.linear.bias.detach().numpy().sum()), "Tensor.numpy"),
    "values by way of NumPy": (lambda net, z: float(np.asarray(z.detach()).mean()), "Tensor.__array__"),
    "control flow": (lambda net, z: 2.0 if z.sum() > 0 else 0.5, "_local_scalar_dense"),
    "a shape from values": (lambda net, z: 1.0 + z[z > 0].sum(), "aten.index.Tensor"),
    "NumPy randomness": (lambda net, z: np.random.rand(), "NumPy's random stream"),  # noqa: NPY002
    "NumPy randomness in a tensor": (lambda net, z: torch.from_numpy(np.random.rand(X_DIM)), "NumPy's"),  # noqa: NPY002
    "a generator of NumPy": (lambda net, z: 1 + GENERATOR.random(), "two recorded steps differ"),
    "a generator of torch": (lambda net, z: 1 + torch.rand((), generator=torch.Generator()), "torch.Generator"),
    "Python randomness": (lambda net, z: random.random(), "Python's random stream"),
    "one Python draw in two": (lambda net, z: 2.0 if random.random() < 0.5 else 1.0, ""),
    "a counter": (counted, "the attribute 'calls' of Net is changed by the step itself"),
    "a buffer bound anew": (rebound, "the attribute 'mean' of Net is changed by the step itself"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_static_is_refused_with_its_reason_and_trained_eagerly(case: str) -> None:
    deed, reason = REFUSED[case]
    states = []
    for backend in ("eager", "fx"):
        pyro.set_rng_seed(7)
        GENERATOR.bit_generator.state = np.random.default_rng(7).bit_generator.state
        variant = small("sigma_vae", decoder=Net(deed))
        with pyro.get_param_store().scope():
            fast = SVI(optim=pyro.optim.Adam({"lr": 1e-2}), backend=backend, **variant._asdict())
            losses = [fast.step(y) for y in batches()]
        states.append([*state(variant), *losses, torch.get_rng_state(), torch.tensor(variant.model.decoder.calls)])
    assert reason in fast.reason
    assert same(*states)


def test_a_number_that_changes_is_refused_and_a_tensor_that_changes_is_not() -> None:
    def model(x: Tensor, weight: Any) -> None:
        loc = pyro.param("loc", torch.zeros(X_DIM))
        with pyro.poutine.scale(scale=weight), pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x: Tensor, weight: Any) -> None:
        pass

    x, found = batches()[0], {}
    for kind in (float, torch.tensor):
        with pyro.get_param_store().scope():
            fast = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
            for step in range(40):
                fast.step(x, weight=kind(1.0 + step))
            found[kind] = fast.reason, *stored()
    assert "a number that changes has to be a tensor" in found[float][0]
    assert found[torch.tensor][0] is None
    assert torch.equal(found[float][1], found[torch.tensor][1])


def test_zero_gradients_and_lists_and_other_estimators_are_refused() -> None:
    x = batches()[0]

    def model(x: Any) -> None:
        loc = pyro.param("loc", torch.zeros(X_DIM))
        x = x[0] if isinstance(x, list) else x
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0 * loc, 1.0).to_event(1), obs=x)

    for argument, loss, reason in (
        (x, Trace_ELBO(), "every gradient is zero"),
        ([x], Trace_ELBO(), "an argument of type list can change without notice"),
        (x, RenyiELBO(num_particles=2, vectorize_particles=False), "RenyiELBO has no differentiable_loss"),
    ):
        with pyro.get_param_store().scope():
            fast = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 1e-2}), loss)
            for _ in range(3):
                fast.step(argument)
        assert reason in str(fast.reason)


def test_renyi_trains_as_under_stock_svi() -> None:
    loss = RenyiELBO(alpha=0.5, num_particles=3)
    _, theirs = run(pyro.infer.SVI, discrete, loss, batches())
    _, ours = run(without_fused(SVI), discrete, loss, batches())
    assert same(ours, theirs)


def test_an_error_of_the_pair_is_raised_as_it_is_and_nothing_moves_twice() -> None:
    """A step that fails while it is recorded fails again eagerly, from the same start."""

    class Failing(Net):
        def forward(self, z: Tensor) -> Tensor:
            self.mean += 1
            if self.calls:
                raise KeyError("the pair's own")
            return self.linear(z)

    variant, y = small("sigma_vae", decoder=Failing(lambda net, z: 1.0)), batches()[0]
    with pyro.get_param_store().scope():
        fast = SVI(optim=pyro.optim.Adam({"lr": 1e-2}), **variant._asdict())
        fast.step(y)
        variant.model.decoder.calls = 1
        with pytest.raises(KeyError, match="the pair's own"):
            fast.step(y)
    assert float(variant.model.decoder.mean) == 2


BAD = [
    ({"backend": "turbo"}, "backend must be one of auto, eager, fx, inductor, cudagraph, got 'turbo'"),
    ({"optim": 3}, r"optim has to be pyro.optim.Adam\({...}\) or a function of the parameters.*got int"),
    *([] if torch.cuda.is_available() else [({"backend": "cudagraph"}, "needs a CUDA device, and torch sees none")]),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_what_svi_cannot_use_is_refused_at_the_door(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SVI(**{"optim": torch.optim.SGD, **small("sigma_vae")._asdict(), **settings})


def test_without_a_compiler_inductor_is_fx_with_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backends.shutil, "which", lambda name: None)
    assert backends.backend_for("inductor") == "fx"
    assert [entry.getMessage() for entry in caplog.records] == [
        "backend 'inductor' needs a C++ compiler and finds none: backend 'fx' is used instead"
    ]


def test_a_launch_reads_inputs_and_learning_rate_where_they_are_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a device: replaying is played by calling the captured step again on the tensors that it held."""
    optimizer, held = Adam([torch.zeros(1, requires_grad=True)], lr=0.5), []

    def step(x: Tensor) -> Tensor:
        held.append(optimizer.param_groups[0]["lr"])
        return (x * held[0]).sum()

    played = SimpleNamespace(replay=lambda: launch.loss.copy_(step(*launch.inputs)))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: played)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())
    launch = backends.CudaGraph(step, [torch.ones(3)], optimizer)
    first = launch(torch.full((3,), 2.0))
    optimizer.param_groups[0]["lr"] = 0.25
    second = launch(torch.full((3,), 4.0))
    assert [float(first), float(second)] == [3.0, 3.0]
    optimizer.param_groups[0]["lr"] = 1.0
    assert float(launch(torch.ones(3))) == 3.0
    assert float(first) == 3.0


# The graph itself.


def graph_of(function: Any, *inputs: Tensor) -> tuple[Any, Any]:
    """A proved function that repeats a function of tensors, and the operations that are left in its graph."""
    recordings = [record(lambda *tensors: [function(*tensors)], inputs) for _ in range(3)]
    run = prove(*recordings[:2], backends.fx)
    _, graph = shortening.shorten(recordings[2])
    return run, [node.name for node in graph.nodes if node.op.startswith("call")]


def through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    before = y[0] + 1
    y.view(-1)[0] = 5.0
    return before + (y[0] + 1)


def repeated_around_a_write(x: Tensor) -> Tensor:
    y = x * 2
    row = y[0]
    first = row * 3
    y.add_(1)
    return first + row * 3


def constants(x: Tensor) -> Tensor:
    return x * torch.ones_like(x) + torch.zeros(3).exp().sum() * torch.tensor(2.0)


def accumulated(x: Tensor) -> Tensor:
    total = torch.tensor(0.0)
    total += x.sum()
    return total


def indexed(x: Tensor) -> Tensor:
    y = x * 2
    y[..., [0, 2]] = x[:, 1:]
    return y


@pytest.mark.parametrize("function", [through_a_view, repeated_around_a_write, constants, accumulated, indexed])
def test_a_shortened_graph_computes_what_the_function_does(function: Callable[[Tensor], Tensor]) -> None:
    run, _ = graph_of(function, torch.randn(4, 3))
    for _ in range(3):
        x = torch.randn(4, 3)
        assert torch.equal(run(x)[0], function(x))


def test_what_is_known_repeated_or_unread_is_left_out() -> None:
    def wordy(x: Tensor) -> Tensor:
        x.exp()
        return (x.sin() * torch.ones_like(x) + x.sin().detach() / 1).view(4, 3)

    _, left = graph_of(wordy, torch.randn(4, 3))
    assert left == ["sin_default", "add_tensor"]


def test_a_draw_that_nobody_reads_still_moves_the_stream() -> None:
    def wasteful(x: Tensor) -> Tensor:
        torch.randn(5)
        return x * 2

    run, left = graph_of(wasteful, torch.randn(3))
    assert len(left) == 2
    torch.manual_seed(0)
    run(torch.randn(3))
    ours = torch.randn(2)
    torch.manual_seed(0)
    wasteful(torch.randn(3))
    assert torch.equal(ours, torch.randn(2))


def test_a_wrong_rewriting_is_seen_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the rewriting takes 2 x for x, the pair runs eagerly."""
    monkeypatch.setitem(shortening.NEUTRAL, torch.ops.aten.mul.Tensor, 2)
    variant, reason = small("gaussian_vae"), "the graph does not repeat the recorded step"
    assert same(by_svi(copy.deepcopy(variant), batches(), reason=reason), by_hand(variant, batches()))


def test_the_compiled_step_has_the_gradients_of_the_eager_one() -> None:
    """The relative error is below 1e-5 in the norm; noise and running statistics are the same."""

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            seen.append([p.grad.clone() for group in self.param_groups for p in group["params"]])

    runs = []
    for backend in ("eager", "inductor"):
        pyro.set_rng_seed(7)
        seen: list[list[Tensor]] = []
        variant = small("bernoulli_vae", between=nn.BatchNorm1d)
        for half in variant[:2]:
            half.float()
        with pyro.get_param_store().scope():
            fast = SVI(variant.model, variant.guide, Spy, variant.loss, backend=backend)
            for y in batches([8] * 5):
                fast.step(y.float())
        runs.append(
            [
                *(torch.cat([g.flatten() for g in step]) for step in seen),
                torch.cat([t.flatten() for t in state(variant)]),
            ]
        )
    assert fast.reason is None
    for eager, compiled in zip(*runs, strict=True):
        assert float((eager - compiled).norm() / eager.norm()) < 1e-5


# A drop-in for pyro.infer.SVI.


class Owner:
    """An object that owns a model and a guide, with numbers that its training loop may change."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.encoder, self.decoder = net(X_DIM, 5, 2 * Z_DIM), net(Z_DIM, 5, X_DIM)
        self.beta = 1.0
        self.settings = {"sigma": 0.5}

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            with pyro.poutine.scale(scale=self.beta):
                z = pyro.sample("z", dist.Normal(torch.zeros(Z_DIM), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.settings["sigma"]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=self.beta):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def trained(
    library: Any, optim: Callable[[], Any], act: Callable[[int, Owner, Any], Any] = lambda step, owner, svi: None
) -> tuple[Any, list[Tensor]]:
    """Take sixteen steps of an ``Owner``. Returns the parameters in the store and the losses."""
    with pyro.get_param_store().scope():
        owner = Owner()
        svi = library(owner.model, owner.guide, optim(), Trace_ELBO())
        pyro.set_rng_seed(7)
        losses, x = [], batches()[0]
        for step in range(16):
            context = act(step, owner, svi) or nullcontext()
            with context:
                losses.append(torch.as_tensor(svi.step(x)).double())
        return svi, [*stored(), *losses]


def fused_adam(**settings: Any) -> Callable[[], Any]:
    return lambda: pyro.optim.Adam({"lr": 1e-2, "fused": True, **settings})


def frozen_decoder(step: int, owner: Owner, svi: Any) -> None:
    if step in (6, 12):
        owner.decoder.requires_grad_(step == 12)


def another_layer(step: int, owner: Owner, svi: Any) -> None:
    if step == 8:
        torch.manual_seed(step)
        owner.decoder[0].weight = nn.Parameter(torch.randn_like(owner.decoder[0].weight))
        pyro.get_param_store().clear()
        pyro.set_rng_seed(step)


def annealed(step: int, owner: Owner, svi: Any) -> None:
    owner.beta = min(1.0, 0.1 + 0.1 * (step // 5))


def a_setting(step: int, owner: Owner, svi: Any) -> None:
    owner.settings["sigma"] = 0.5 if step < 9 else 0.6


def another_optimizer(step: int, owner: Owner, svi: Any) -> None:
    if step == 7:
        svi.optim = pyro.optim.SGD({"lr": 1e-3})


def set_in_the_store(step: int, owner: Owner, svi: Any) -> None:
    if step == 8:
        store = pyro.get_param_store()
        store["encoder$$$0.bias"] = torch.full_like(store["encoder$$$0.bias"], 0.3)


def a_hook(step: int, owner: Owner, svi: Any) -> None:
    if step == 6:
        owner.decoder[0].weight.register_hook(lambda gradient: 0.5 * gradient)


def a_module_hook(step: int, owner: Owner, svi: Any) -> None:
    if step == 6:
        owner.handle = owner.decoder[0].register_forward_hook(lambda module, inputs, output: 0.9 * output)
    if step == 12:
        owner.handle.remove()


def halve(optimizer: Any, *_: Any) -> None:
    optimizer.param_groups[0]["params"][0].grad.mul_(0.5)


def an_optimizer_hook(step: int, owner: Owner, svi: Any) -> None:
    if step == 6:
        for optimizer in svi.optim.optim_objs.values():
            optimizer.register_step_pre_hook(halve)


def without_gradients(step: int, owner: Owner, svi: Any) -> Any:
    return torch.no_grad() if step in (2, 9) else None


def a_handler(step: int, owner: Owner, svi: Any) -> Any:
    return pyro.poutine.scale(scale=0.3) if 5 <= step < 10 else None


def a_gradient_that_waits(step: int, owner: Owner, svi: Any) -> None:
    if step == 9:
        svi.loss_and_grads(owner.model, owner.guide, batches()[1])


def a_rate_set_by_hand(step: int, owner: Owner, svi: Any) -> None:
    if step == 7:
        for optimizer in svi.optim.optim_objs.values():
            optimizer.param_groups[0]["lr"] = 5e-2


@functools.cache
def undisturbed() -> list[Tensor]:
    """What is left where nothing happens between steps."""
    return trained(SVI, fused_adam())[1]


EVENTS = [
    frozen_decoder,
    another_layer,
    annealed,
    a_setting,
    another_optimizer,
    set_in_the_store,
    a_hook,
    a_module_hook,
    an_optimizer_hook,
    without_gradients,
    a_handler,
    a_gradient_that_waits,
    a_rate_set_by_hand,
]


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")  # Pyro's, of a frozen decoder
@pytest.mark.parametrize("event", EVENTS)
def test_what_happens_between_steps_happens_as_under_pyro(event: Callable[[int, Owner, Any], Any]) -> None:
    """A change that Python can see chooses a graph or makes the step eager; the result is equal to the last bit."""
    _, theirs = trained(pyro.infer.SVI, fused_adam(), event)
    _, ours = trained(SVI, fused_adam(), event)
    assert same(ours, theirs)
    assert not same(ours, undisturbed())


def scheduler() -> Any:
    settings = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-2, "fused": True}, "gamma": 0.8}
    return pyro.optim.ExponentialLR(settings)


def moved_on(step: int, owner: Owner, svi: Any) -> None:
    if step % 5 == 4:
        svi.optim.step()


OPTIMIZERS: dict[str, tuple[Callable[[], Any], Callable[[int, Owner, Any], Any] | None]] = {
    "Adam": (fused_adam(), None),
    "arguments per parameter": (
        lambda: pyro.optim.Adam(lambda name: {"lr": 1e-2 if "encoder" in name else 3e-3, "fused": True}),
        None,
    ),
    "clipping": (lambda: pyro.optim.Adam({"lr": 1e-2, "fused": True}, {"clip_norm": 0.5}), None),
    "ClippedAdam": (lambda: pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.99, "clip_norm": 1.0}), None),
    "AMSGrad": (fused_adam(amsgrad=True), None),
    "SGD": (lambda: pyro.optim.SGD({"lr": 1e-3, "momentum": 0.9}), None),
    "a schedule": (scheduler, moved_on),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_pyro_moves_as_under_pyro_and_is_saved_and_resumed(name: str) -> None:
    """Sixteen steps equal eight steps, a saved state and eight more. Without the state they differ."""
    optim, act = OPTIMIZERS[name]
    act = act or (lambda step, owner, svi: None)
    fast, ours = trained(SVI, optim, act)
    assert same(ours, trained(pyro.infer.SVI, optim, act)[1])
    assert fast.reason is None
    assert graphs(fast)

    def resumed(kept: bool) -> list[Tensor]:
        def act_and_resume(step: int, owner: Owner, svi: Any) -> None:
            act(step, owner, svi)
            if step == 8:
                state = copy.deepcopy(svi.state_dict())
                svi.__init__(owner.model, owner.guide, optim(), Trace_ELBO())
                if kept:
                    svi.load_state_dict(state)

        return trained(SVI, optim, act_and_resume)[1]

    assert same(resumed(kept=True), ours)
    assert not same(resumed(kept=False), ours)


def test_losses_that_come_as_a_list_are_those_of_pyro() -> None:
    """Reweighted wake-sleep has one loss for the model, one for the guide, and its own gradients."""
    ends = []
    for library in (pyro.infer.SVI, SVI):
        with pyro.get_param_store().scope():
            owner = Owner()
            svi = library(owner.model, owner.guide, fused_adam()(), ReweightedWakeSleep(num_particles=3))
            pyro.set_rng_seed(7)
            losses = [svi.step(batches()[0]) for _ in range(5)]
            ends.append((losses, stored()))
    (theirs, their_store), (ours, our_store) = ends
    assert ours == theirs
    assert same(our_store, their_store)
    assert svi.reason == "ReweightedWakeSleep has no differentiable_loss"


class Doubled(Trace_ELBO):
    """An estimator whose gradients are not those of its ``differentiable_loss``."""

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        loss = 2 * self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


@pytest.mark.parametrize("name", ["loss_and_grads of an estimator", "loss_and_grads of one's own", "a function"])
def test_gradients_are_those_that_pyro_would_take(name: str) -> None:
    doubled = Doubled()
    arguments: dict[str, Any] = {
        "loss_and_grads of an estimator": {"loss": doubled},
        "loss_and_grads of one's own": {"loss": doubled.loss, "loss_and_grads": doubled.loss_and_grads},
        "a function": {"loss": lambda *args: 3 * Trace_ELBO().differentiable_loss(*args)},
    }[name]
    ends = []
    for library in (pyro.infer.SVI, SVI):
        with pyro.get_param_store().scope():
            owner = Owner()
            pyro.set_rng_seed(7)
            svi = library(owner.model, owner.guide, pyro.optim.SGD({"lr": 1e-3}), **arguments)
            for x in batches():
                svi.step(x)
            ends.append(stored())
    assert same(*ends)


def test_a_model_that_holds_its_argument_reads_both() -> None:
    """An argument that is also an attribute of the pair may be another tensor in the next step."""

    class Centred(Owner):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(pyro.param("loc", torch.ones(X_DIM)) + self.x, 1.0).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            pass

    ends = []
    for library in (pyro.infer.SVI, SVI):
        with pyro.get_param_store().scope():
            owner = Centred()
            owner.x = batches()[0]
            svi = library(owner.model, owner.guide, fused_adam()(), Trace_ELBO())
            ends.append([torch.as_tensor(svi.step(x)) for x in [owner.x] * 6 + batches()[1:3]])
    assert same([end.double() for end in ends[0]], [end.double() for end in ends[1]])
    assert svi.reason is None


# What Python cannot see is found by proving again.


@pytest.mark.parametrize("place", ["a list", "a file"])
def test_a_graph_that_has_become_stale_raises_at_the_next_proof_and_names_the_last(place: str, tmp_path: Any) -> None:
    """The calls 4, 8 and 16 prove. A change after call 9 is found at call 16, before a parameter is moved by it."""
    settings, file = [0.5], tmp_path / "scale"
    file.write_text("0.5")

    def model(x: Tensor) -> None:
        scale = settings[0] if place == "a list" else float(file.read_text())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.zeros(X_DIM)), scale).to_event(1), obs=x)

    with pyro.get_param_store().scope():
        fast, x = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()), batches()[0]
        for _ in range(9):
            fast.step(x)
        settings[0] = 0.4
        file.write_text("0.4")
        for _ in range(6):
            fast.step(x)
        before = stored()
        with pytest.raises(Stale, match=r"step 16: .* Both last agreed at step 8"):
            fast.step(x)
        assert same(before, stored())
        fast.step(x)
        assert fast.reason == "the graph was found to be stale"


def test_a_proof_leaves_no_trace() -> None:
    """Buffers, streams and the lists of a closure are as if the eager pass had not run."""
    log: list[int] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(X_DIM, 5), nn.BatchNorm1d(5)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            log.append(len(x))
            self.seen += 1
            return self.norm(self.linear(x))

    torch.manual_seed(0)
    variant, x = small("sigma_vae", encoder=Counting()), batches()[0]
    objective = variant.loss(variant.model, variant.guide)
    step = Step(objective, Adam(objective.parameters(), 1e-2), objective.modules(), elbo=variant.loss)
    step.surroundings.add(Counting.forward)
    variant.guide.encoder.seen.zero_()
    log.clear()
    for _ in range(8):
        step(x)
    assert step.reason is None
    assert len(log) == 3
    assert float(variant.guide.encoder.seen) == 8
    assert int(variant.guide.encoder.norm.num_batches_tracked) == 8


def test_proofs_come_at_growing_intervals_and_no_further_apart_than_500_calls() -> None:
    x, at = batches()[0], []

    class Watched(Step):
        def _prove_again(self, graph: Any, *rest: Any) -> Any:
            at.append(graph.calls)
            return super()._prove_again(graph, *rest)

    weight = nn.Parameter(torch.zeros(X_DIM))
    step = Watched(lambda x: (x - weight).square().sum(), Adam([weight], 1e-3))
    for _ in range(1700):
        step(x)
    assert at == [4, 8, 16, 32, 64, 128, 256, 512, 1012, 1512]
    assert max(later - sooner for sooner, later in pairwise(at)) == APART


def test_autocast_and_eval_mode_choose_a_graph() -> None:
    """A step in bfloat16 and one in full precision are two graphs, and each equals the eager step."""
    ends = []
    for backend in ("eager", "fx"):
        pyro.set_rng_seed(7)
        variant = small("sigma_vae")
        for half in variant[:2]:
            half.float()
        with pyro.get_param_store().scope():
            fast = SVI(optim=pyro.optim.Adam({"lr": 1e-2}), backend=backend, **variant._asdict())
            for place, y in enumerate(batches([8] * 12)):
                with torch.autocast("cpu", torch.bfloat16, enabled=place % 2 == 0):
                    fast.step(y.float())
        ends.append(state(variant))
    assert same(*ends)
    assert len(graphs(fast)) == 2


def test_a_recurrent_encoder_says_in_words_why_it_runs_eagerly() -> None:
    class Last(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer(1, 5, batch_first=True).float()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.float().unsqueeze(-1))[0][:, -1].to(x)

    reasons = []
    for layer in (nn.LSTM, nn.GRU):
        with pyro.get_param_store().scope():
            fast = SVI(optim=pyro.optim.Adam({"lr": 1e-2}), **small("sigma_vae", encoder=Last(layer))._asdict())
            for y in batches([8] * 4):
                fast.step(y)
        reasons.append(fast.reason)
    assert reasons == ["the CPU kernel of nn.LSTM cannot be recorded (the kernel of nn.GRU can)", None]


def test_two_that_share_an_optimizer_move_as_under_pyro() -> None:
    """Pyro moves a parameter by its momentum even if the second loss gives it no gradient."""

    def model() -> None:
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(3.0)), 1.0), obs=torch.tensor(0.0))

    ends = []
    for library in (pyro.infer.SVI, SVI):
        with pyro.get_param_store().scope():
            optim = fused_adam()()
            one = library(model, lambda: None, optim, Trace_ELBO())
            two = library(lambda: pyro.param("loc"), lambda: None, optim, Trace_ELBO())
            for _ in range(6):
                one.step()
                two.step()
            ends.append(stored())
    assert same(*ends)
    assert two.reason == "the loss has no gradient"


@pytest.mark.parametrize("automatic", [AutoNormal, AutoDelta])
def test_a_guide_that_makes_its_plates_anew_runs_from_a_graph(automatic: Any) -> None:
    """The plates are in a dictionary of the guide. The order of sums depends on validation in this model."""
    torch.manual_seed(0)
    classes = dist.OneHotCategorical(torch.tensor([0.15, 0.6, 0.25])).sample(torch.Size([10_000])).float()

    def model(x: Tensor) -> None:
        probs = pyro.sample("probs", dist.Dirichlet(torch.ones(3).float()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.OneHotCategorical(probs), obs=x)

    with pyro.get_param_store().scope():
        fast = SVI(model, automatic(model), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        for _ in range(9):
            fast.step(classes)
    assert fast.reason is None
    assert graphs(fast)


def test_a_torch_optimizer_takes_parameters_that_come_later() -> None:
    """One Adam holds all parameters; the second kind of batch brings a parameter that the first does not have."""
    ends = []
    for backend in ("eager", "fx"):
        with pyro.get_param_store().scope():

            def model(x: Tensor) -> None:
                loc = pyro.param("loc", torch.zeros(X_DIM))
                if len(x) == 3:
                    loc = loc + pyro.param("shift", torch.ones(X_DIM))
                with pyro.plate("data", len(x)):
                    pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

            fast = SVI(model, lambda x: None, lambda p: Adam(p, 1e-2), Trace_ELBO(), backend=backend)
            for x in batches():
                fast.step(x)
            ends.append(stored())
    assert same(*ends)
    assert fast.reason is None


def test_states_of_a_step_that_runs_eagerly_are_not_kept() -> None:
    """A hook makes each step but the first eager, and the loop changes a number. Of 16 states two are kept."""

    def counted(step: int, owner: Owner, svi: Any) -> None:
        if step == 0:
            owner.handle = owner.decoder[0].register_forward_hook(lambda module, inputs, output: None)
        owner.beta = 1.0 + step

    fast, _ = trained(SVI, fused_adam(), counted)
    assert "a hook on a module" in fast.reason
    assert len(fast._step.surroundings.known) == 2


def test_what_a_proof_put_into_lists_is_taken_out_again_though_tensors_do_not_compare() -> None:
    log: list[tuple[Tensor, Tensor]] = [(torch.ones(2), torch.ones(2))]
    weight = nn.Parameter(torch.zeros(X_DIM))

    def objective(x: Tensor) -> Tensor:
        log[:] = [(torch.ones(2), log[0][1])]
        return (x - weight).square().sum()

    step = Step(objective, Adam([weight], 1e-3))
    step.surroundings.add(objective)
    for _ in range(3):
        step(batches()[0])
    kept = log[0]
    step(batches()[0])
    assert step.reason is None
    assert log[0] is kept
