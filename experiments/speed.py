"""How fast is a training step, compared with hand-written PyTorch, Pyro's own SVI and other libraries?

    python -m ppl_vae.experiments.speed [--device cuda] [--quick]

All contestants run in one process, on the same data, with Adam (fused if the library allows it) and from the same
initial weights. They take turns: in each round every contestant runs for one burst of steps, and every other round
goes in reverse order. The time of a contestant is the median of its burst means. Its ratio to hand-written eager
PyTorch is computed per round; the table shows the median ratio and the 10 % and 90 % quantiles. Before anything is
timed, the first losses have to agree, and the loss has to fall.

Denormal numbers are set to zero for all contestants, as XLA does for NumPyro. Without this, they fill Adam's averages
after a few thousand steps on twenty batches, and a step takes 1.5 times as long. The peak of memory is that of the
whole process, which holds all contestants. On CUDA it is the peak of the device. The limit of the machine is the time
of the step's matrix products and convolutions if each of them runs alone.

NumPyro and pythae take part if they are installed: pip install "ppl_vae[bench]".
"""

import argparse
import copy
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from .. import VARIANTS, Variant
from ..svi import SVI, Adam, Step
from ..svi.capture import record
from ..svi.precision import TOLERANCES, networks_in_bf16, products_in_bf16
from ..training.machine import threads_for

LR = 1e-3
BATCHES = 20
HAND = "hand-written, eager"  # the contestant that all others are compared with
Run = Callable[[int], Any]  # takes a number of steps and returns the last loss
Build = Callable[[Variant, list[Tensor]], Run]  # from a model, a guide and batches


class Net(NamedTuple):
    """An architecture and its data.

    Attributes:
        x_shape: The shape of a datum.
        z_dim: The number of latent dimensions.
        rows: The size of a batch.
        width: The width of the hidden layer of a perceptron.
        channels: The channels of a convolutional network. If there are none, it is a perceptron.
    """

    x_shape: tuple[int, ...]
    z_dim: int
    rows: int
    width: int = 0
    channels: tuple[int, ...] = ()

    def encoder(self) -> nn.Sequential:
        """The network from x to features."""
        if not self.channels:
            return nn.Sequential(nn.Flatten(), nn.Linear(self.x_shape[0], self.width), nn.ReLU())
        layers: list[nn.Module] = []
        for here, there in pairwise((self.x_shape[0], *self.channels)):
            layers += [nn.Conv2d(here, there, 4, 2, 1), nn.BatchNorm2d(there), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten())

    def decoder(self) -> nn.Sequential:
        """The network from z to logits."""
        if not self.channels:
            return nn.Sequential(nn.Linear(self.z_dim, self.width), nn.ReLU(), nn.Linear(self.width, self.x_shape[0]))
        side, back = self.x_shape[1] >> len(self.channels), self.channels[::-1]
        layers: list[nn.Module] = [nn.Linear(self.z_dim, back[0] * side**2), nn.Unflatten(1, (back[0], side, side))]
        for here, there in pairwise(back):
            layers += [nn.ConvTranspose2d(here, there, 4, 2, 1), nn.BatchNorm2d(there), nn.ReLU()]
        return nn.Sequential(*layers, nn.ConvTranspose2d(back[-1], self.x_shape[0], 4, 2, 1))


NETS = {
    "MLP, batch 128": Net((784,), 16, 128, 400),
    "MLP, batch 512": Net((784,), 16, 512, 400),
    "conv, batch 128": Net((1, 32, 32), 16, 128, channels=(32, 64, 128, 256)),
    "tiny, batch 32": Net((8,), 2, 32, 16),
}
# By precision and contestant: the largest ratio of our best time to the time of the contestant that is accepted, for
# each of NETS.
TARGETS = {
    ("full", HAND): (0.80, 0.90, 0.90, 0.25),
    ("full", "hand-written, torch.compile"): (0.82, 0.92, 1.0, 0.25),
    ("full", "Pyro SVI"): (0.35, 0.60, 0.82, 0.05),
    ("full", "pythae"): (0.50, 0.65, 0.90, 0.15),
    ("full", "NumPyro, donated"): (0.85, 0.87, None, 0.65),
    ("full", "NumPyro, scan"): (1.0, 0.90, None, 1.0),
    ("bf16", HAND): (0.55, 0.45, 0.50, None),
    ("bf16", "hand-written, bf16"): (0.60, 0.75, 0.95, None),
}


# The contestants: functions that build a ``Run`` from a variant and its batches.


def hand_loss(variant: Variant, x: Tensor) -> Tensor:
    """The negative bound in nats, written by hand, with the KL divergence in closed form."""
    h = variant.guide.encoder(x).flatten(1)
    loc, log_scale = (head(h) for head in variant.guide.heads)
    z = loc + log_scale.exp() * torch.randn_like(loc)
    kl = 0.5 * ((2 * log_scale).exp() + loc.square() - 1) - log_scale
    logits = variant.model.decoder(z).reshape(x.shape)
    return binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl.sum()


def laid_out(variant: Variant, batches: list[Tensor]) -> list[Tensor]:
    """Convert model and guide to the layout channels_last, and return the batches in it."""
    for half in variant[:2]:
        half.to(memory_format=torch.channels_last)
    return [x.contiguous(memory_format=torch.channels_last) for x in batches]


def hand(
    variant: Variant,
    batches: list[Tensor],
    *,
    compiled: bool = False,
    channels_last: bool = False,
    bf16: bool = False,
) -> Run:
    """Hand-written PyTorch, with torch's fused Adam."""
    if channels_last:
        batches = laid_out(variant, batches)
    networks = nn.ModuleList([*variant.guide.children(), variant.model.decoder])
    optimizer = torch.optim.Adam(networks.parameters(), LR, fused=True)
    loss_of = torch.compile(partial(hand_loss, variant)) if compiled else partial(hand_loss, variant)

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(x)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return stepping(step, batches)


def pyro_adam() -> Any:
    """The Adam that a user of Pyro writes."""
    return pyro.optim.Adam({"lr": LR})  # type: ignore[attr-defined]


def stock(variant: Variant, batches: list[Tensor], *, validation: bool) -> Run:
    """``pyro.infer.SVI``, whose step waits for the value of its loss."""
    svi = pyro.infer.SVI(optim=pyro_adam(), **variant._asdict())

    def step(x: Tensor) -> Any:
        with pyro.validation_enabled(validation):
            return svi.step(x)

    return in_own_store(stepping(step, batches))


def ours(
    variant: Variant, batches: list[Tensor], *, backend: str, precision: str = "full", channels_last: bool = False
) -> Run:
    """The step of this library, in the precisions and layouts of ``fit``."""
    if precision == "full" and not channels_last:  # the other steps avoid Pyro's store, which would copy the kernels
        svi = SVI(optim=pyro_adam(), backend=backend, **variant._asdict())
        return proved(in_own_store(stepping(svi.step, batches)), svi)
    objective = variant.loss(variant.model, variant.guide)
    batches = laid_out(variant, batches) if channels_last else batches
    networks = [variant.guide.encoder, *variant.guide.heads, variant.model.decoder] if precision == "bf16" else []

    def lowered(x: Tensor) -> Tensor:
        with networks_in_bf16(networks):
            return objective(x)

    optimizer = Adam(objective.parameters(), LR)
    step = Step(lowered, optimizer, objective.modules(), backend, variant.loss, tolerance=TOLERANCES[precision])

    def run(x: Tensor) -> Tensor:
        with products_in_bf16() if precision == "bf16_matmul" else nullcontext():
            return step(x)

    return proved(stepping(run, batches), step)


def proved(run: Run, step: SVI | Step) -> Run:
    """The same run. It raises if its steps run eagerly, so that they are not timed as steps from a graph."""

    def checked(steps: int) -> Any:
        loss = run(steps)
        if step.reason is not None:
            raise RuntimeError(f"the step runs eagerly: {step.reason}")
        return loss

    return checked


def in_own_store(run: Run) -> Run:
    """The same run with its own parameter store, because all contestants use the same names of parameters."""
    state: Any = {"params": {}, "constraints": {}}

    def alone(steps: int) -> Any:
        with pyro.get_param_store().scope(state):
            return run(steps)

    return alone


def stepping(step: Callable[[Tensor], Any], batches: list[Tensor]) -> Run:
    """A run that steps over the batches in turn."""

    def run(steps: int) -> Any:
        loss = None
        for index in range(steps):
            loss = step(batches[index % len(batches)])
        return loss

    return run


def by_pythae(variant: Variant, batches: list[Tensor]) -> Run:
    """The model and loss of pythae, with torch's default Adam, which pythae's trainer uses."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            BaseEncoder.__init__(self)
            self.network, self.heads = variant.guide.encoder, variant.guide.heads

        def forward(self, x: Tensor) -> Any:
            loc, log_scale = (head(self.network(x)) for head in self.heads)
            return ModelOutput(embedding=loc, log_covariance=2 * log_scale)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            BaseDecoder.__init__(self)
            self.network = variant.model.decoder

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.network(z).sigmoid())

    config = VAEConfig(input_dim=tuple(batches[0].shape[1:]), latent_dim=variant.z_dim, reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(), decoder=Decoder()).to(batches[0].device)
    optimizer = torch.optim.Adam(model.parameters(), LR)

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model({"data": x}).loss
        loss.backward()
        optimizer.step()
        return loss.detach() * len(x)

    return stepping(step, batches)


def numpyro_pair(variant: Variant) -> tuple[Any, Any]:
    """A model and a guide of NumPyro, with the perceptrons of a variant and their initial weights."""
    import jax
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp

    encoder, heads, decoder = variant.guide.encoder, list(variant.guide.heads), variant.model.decoder

    def dense(name: str, layer: Any, x: Any) -> Any:
        weight, bias = (jnp.asarray(p.detach().cpu().numpy()) for p in (layer.weight.T, layer.bias))
        return x @ numpyro.param(f"{name}.weight", weight) + numpyro.param(f"{name}.bias", bias)

    def model(x: Any) -> None:
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(variant.z_dim), 1.0).to_event(1))
            h = jax.nn.relu(dense("decoder.0", decoder.get_submodule("0"), z))
            logits = dense("decoder.2", decoder.get_submodule("2"), h)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Any) -> None:
        h = jax.nn.relu(dense("encoder", encoder.get_submodule("1"), x))
        loc, log_scale = (dense(f"head.{index}", head, h) for index, head in enumerate(heads))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    return model, guide


def by_numpyro(variant: Variant, batches: list[Tensor], *, how: str) -> Run:
    """NumPyro's SVI.

    Args:
        variant: The model and the guide, both of perceptrons.
        batches: The batches.
        how: "jit" compiles ``update``, "donated" lets it overwrite its state, and "scan" compiles a loop of steps.
    """
    import jax
    import numpyro
    from jax import numpy as jnp

    loss = numpyro.infer.TraceMeanField_ELBO()
    svi = numpyro.infer.SVI(*numpyro_pair(variant), numpyro.optim.Adam(LR), loss)
    data = jnp.stack([jnp.asarray(x.cpu().numpy()) for x in batches])
    state = svi.init(jax.random.PRNGKey(0), data[0])
    update = jax.jit(svi.update, donate_argnums=(0,) if how == "donated" else ())
    sweep = jax.jit(lambda state, data: jax.lax.scan(svi.update, state, data))

    def one_by_one(steps: int) -> float:
        nonlocal state
        for index in range(steps):
            state, loss = update(state, data[index % len(data)])
        return float(loss)

    def in_a_scan(steps: int) -> float:
        nonlocal state
        for _ in range(steps // len(data)):
            state, losses = sweep(state, data)
        if steps % len(data):
            state, losses = sweep(state, data[: steps % len(data)])
        return float(losses[0 if steps % len(data) == 1 else -1])

    return in_a_scan if how == "scan" else one_by_one


def contestants(net: Net, device: str) -> dict[str, Build]:
    """All contestants that can run on this machine, by name."""
    field: dict[str, Any] = {
        HAND: hand,
        "hand-written, torch.compile": partial(hand, compiled=True),
        "hand-written, bf16": partial(hand, bf16=True),
        "Pyro SVI": partial(stock, validation=True),
        "Pyro SVI, validation off": partial(stock, validation=False),
        "ours, fx": partial(ours, backend="fx"),
        "ours, inductor": partial(ours, backend="inductor"),
        "ours, fx, bf16": partial(ours, backend="fx", precision="bf16"),
        "ours, inductor, bf16": partial(ours, backend="inductor", precision="bf16"),
        "ours, inductor, bf16 products": partial(ours, backend="inductor", precision="bf16_matmul"),
    }
    if device == "cuda":
        field["ours, cudagraph"] = partial(ours, backend="cudagraph")
    if net.channels:
        field["hand-written, channels_last"] = partial(hand, channels_last=True)
        field["hand-written, torch.compile, channels_last"] = partial(hand, compiled=True, channels_last=True)
        for backend in ("fx", "inductor"):
            field[f"ours, {backend}, channels_last"] = partial(ours, backend=backend, channels_last=True)
        field["ours, inductor, bf16, channels_last"] = partial(
            ours, backend="inductor", precision="bf16", channels_last=True
        )
    if find_spec("pythae"):
        field["pythae"] = by_pythae
    if find_spec("numpyro") and not net.channels:
        field |= {f"NumPyro, {how}": partial(by_numpyro, how=how) for how in ("jit", "donated", "scan")}
    return field


# The measurement.


class Entrant(NamedTuple):
    """A contestant that is ready to run.

    Attributes:
        run: A function that takes a given number of steps.
        start: The seconds that the first three steps took, compilation included.
        loss: The loss of the first step.
    """

    run: Run
    start: float
    loss: float


def enter(build: Build, variant: Variant, batches: list[Tensor]) -> Entrant:
    """Set up a contestant on a copy of the variant, and take its first three steps."""
    variant = copy.deepcopy(variant)
    torch.manual_seed(1)
    started = time.perf_counter()
    run = build(variant, batches)
    loss = float(run(1))
    float(run(2))
    return Entrant(run, time.perf_counter() - started, loss)


def agree(name: str, entrant: Entrant, reference: Entrant) -> None:
    """Raise unless the first loss agrees with the reference, and the loss of the same batch is lower 40 steps later."""
    other_draws = any(word in name for word in ("NumPyro", "pythae", "bf16", "compile"))
    tolerance = 0.02 if other_draws else 1e-4
    if abs(entrant.loss / reference.loss - 1) > tolerance:
        raise RuntimeError(f"the first loss is {entrant.loss:.6g}, and that of {HAND} is {reference.loss:.6g}")
    last = float(entrant.run(2 * BATCHES + 1))
    if not last < entrant.loss:
        raise RuntimeError(f"the loss does not fall: it went from {entrant.loss:.6g} to {last:.6g}")


def synchronise(device: str) -> None:
    """Wait until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()


def burst(run: Run, steps: int, device: str) -> float:
    """The mean time of a step in seconds."""
    synchronise(device)
    started = time.perf_counter()
    run(steps)
    synchronise(device)
    return (time.perf_counter() - started) / steps


def forget_peak(device: str) -> None:
    """Reset the peak of memory, if the system keeps a record of it."""
    record_of_process = Path("/proc/self/clear_refs")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif record_of_process.exists():
        record_of_process.write_text("5")


def peak(device: str) -> float:
    """The peak of memory since the last reset, in MiB. NaN if the system keeps no record."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM")), math.nan)


class Effort(NamedTuple):
    """How long to measure.

    Attributes:
        rounds: The number of bursts per contestant.
        seconds: The length of a burst.
        repeats: How often each matrix product or convolution runs alone.
    """

    rounds: int
    seconds: float
    repeats: int


FULL = Effort(rounds=21, seconds=0.3, repeats=30)
SHORT = Effort(rounds=3, seconds=0.02, repeats=3)


def timed(field: dict[str, Entrant], device: str, effort: Effort) -> dict[str, dict[str, Any]]:
    """Run the bursts in turn, every other round in reverse order. Returns one row of the table per contestant."""
    steps, peaks = {}, {}
    for name, entrant in field.items():
        forget_peak(device)
        steps[name] = max(2, round(effort.seconds / burst(entrant.run, 5, device)))
        peaks[name] = peak(device)
        if "scan" in name:
            steps[name] += -steps[name] % BATCHES  # a scan takes whole sweeps over the batches
    means: dict[str, list[float]] = {name: [] for name in field}
    for index in range(effort.rounds):
        for name in reversed(field) if index % 2 else field:
            means[name].append(burst(field[name].run, steps[name], device))
    table = {}
    for name, entrant in field.items():
        ratios = [ours / theirs for ours, theirs in zip(means[name], means[HAND], strict=True)]
        low, *_, high = statistics.quantiles(ratios, n=10, method="inclusive")
        table[name] = {
            "ms": 1e3 * statistics.median(means[name]),
            "ratio": statistics.median(ratios),
            "q10": low,
            "q90": high,
            "first_three_steps_s": entrant.start,
            "peak_MiB": peaks[name],
        }
    return table


def products_alone(variant: Variant, x: Tensor, device: str, repeats: int) -> tuple[float, float]:
    """The time in seconds of a step's matrix products and convolutions, each run alone, and their operations.

    Each product runs ``repeats`` times, and its median counts.
    """
    from torch.fx import GraphModule, Interpreter
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    variant, seconds = copy.deepcopy(variant), 0.0
    networks = nn.ModuleList([*variant.guide.children(), variant.model.decoder])
    parameters = list(networks.parameters())
    recording = record(lambda x: list(torch.autograd.grad(hand_loss(variant, x), parameters)), [x])

    class Alone(Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            nonlocal seconds
            if getattr(target, "overloadpacket", None) in flop_registry:
                runs = [burst(lambda _: target(*args, **kwargs), 1, device) for _ in range(repeats)]
                seconds += statistics.median(runs)
            return super().call_function(target, args, kwargs)

    with torch.no_grad():
        Alone(GraphModule(recording.constants, recording.graph)).run(x, *recording.held)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(hand_loss(variant, x), parameters)
    return seconds, float(counter.get_total_flops())


def race(net: Net, device: str, effort: Effort) -> dict[str, Any]:
    """Time all contestants on one architecture. A contestant that fails is listed as absent, with its error."""
    torch.manual_seed(0)
    parts = {"encoder": net.encoder(), "decoder": net.decoder()}
    variant = VARIANTS["bernoulli_vae"](net.x_shape, net.z_dim, **parts, loss=TraceMeanField_ELBO())
    for half in variant[:2]:
        half.to(device).train()
    means = torch.rand(net.x_shape, device=device)
    batches = [torch.bernoulli(means.expand(net.rows, *net.x_shape)) for _ in range(BATCHES)]
    field: dict[str, Entrant] = {}
    absent: dict[str, str] = {}
    for name, build in contestants(net, device).items():
        try:
            entrant = enter(build, variant, batches)
            field.setdefault(HAND, entrant)
            agree(name, entrant, field[HAND])
            field[name] = entrant
        except Exception as error:  # noqa: BLE001  the race goes on without it
            absent[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    absent |= {name: "not installed" for name in ("numpyro", "pythae") if find_spec(name) is None}
    table = timed(field, device, effort)
    seconds, flops = products_alone(variant, batches[0], device, effort.repeats)
    for row in table.values():
        row |= {"GFLOP/s": flops / row["ms"] / 1e6, "share_of_limit": 1e3 * seconds / row["ms"]}
    limit = {"ms": 1e3 * seconds, "GFLOP": flops / 1e9}
    return {"table": table, "absent": absent, "products_alone": limit, "threads": torch.get_num_threads()}


# The report.


def verdicts(results: dict[str, Any]) -> list[str]:
    """One line per target, which says whether our fastest backend in that precision reaches it."""
    lines = []
    for (precision, name), bounds in TARGETS.items():
        for net, bound in zip(NETS, bounds, strict=True):
            table = results.get(net, {}).get("table", {})
            ours = [key for key in table if "ours" in key and ("bf16" in key) == (precision == "bf16")]
            if bound is None or not ours or name not in table:
                continue
            best = min(table[key]["ms"] for key in ours)
            ratio = best / table[name]["ms"]
            word = "reached" if ratio <= bound else "missed"
            lines.append(f"{net}: ours, {precision} / {name} = {ratio:.2f}, wanted at most {bound:.2f}: {word}")
    return lines


def show(net: str, result: dict[str, Any]) -> None:
    """Print the table of one architecture."""
    limit = result["products_alone"]
    print(f"\n{net}: {limit['GFLOP']:.3g} GFLOP per step, whose products alone take {limit['ms']:.3g} ms")
    titles = {"ms": 9, "ratio": 7, "q10": 7, "q90": 7, "start s": 9, "MiB": 7, "GFLOP/s": 9, "limit": 7}
    print(" " * 44 + "".join(f"{title:>{width}}" for title, width in titles.items()))
    for name, row in sorted(result["table"].items(), key=lambda item: item[1]["ms"]):
        print(
            f"{name:44}{row['ms']:9.3f}{row['ratio']:7.2f}{row['q10']:7.2f}{row['q90']:7.2f}"
            f"{row['first_three_steps_s']:9.2f}{row['peak_MiB']:7.0f}{row['GFLOP/s']:9.1f}{row['share_of_limit']:7.0%}"
        )
    for name, reason in result["absent"].items():
        print(f"{name:44}absent: {reason}")


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw the ratios to hand-written eager PyTorch with their quantiles, one panel per architecture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3 * len(results)), layout="constrained")
    for axes, (net, result) in zip(figure.subplots(len(results), squeeze=False)[:, 0], results.items(), strict=True):
        rows = sorted(result["table"].items(), key=lambda item: -item[1]["ratio"])
        ratios = [row["ratio"] for _, row in rows]
        ends = [(row["ratio"] - row["q10"], row["q90"] - row["ratio"]) for _, row in rows]
        spread = [[max(0.0, end) for end in side] for side in zip(*ends, strict=True)]
        colours = ["#2a6f97" if name.startswith("ours") else "#adb5bd" for name, _ in rows]
        axes.barh([name for name, _ in rows], ratios, xerr=spread, color=colours, error_kw={"lw": 1})
        axes.axvline(1.0, color="black", lw=0.8)
        axes.set_title(f"{net}: time per step relative to {HAND}", fontsize=10)
        axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=110)


def processor() -> str:
    """The name of the processor that the system gives."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine(device: str) -> dict[str, Any]:
    """The machine and the versions that the numbers were measured with."""
    versions = {}
    for package in ("torch", "pyro-ppl", "ppl_vae", "numpyro", "jax", "pythae"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {"processor": name, "python": platform.python_version(), "versions": versions}


def main() -> None:
    """Run the races, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    nets_help = "Architectures to time (default: all)."
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="Device (default: %(default)s).")
    parser.add_argument("--quick", action="store_true", help="Run three short rounds, to see that everything works.")
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS), help=nets_help)
    chosen = parser.parse_args()
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # a pool of compilers would slow every step
    torch.set_flush_denormal(True)  # before there are threads, which inherit the setting
    torch.optim.Adam([torch.zeros(1)])  # the first optimizer of a process spends a second on imports
    results = {}
    for net in chosen.nets:
        with threads_for(NETS[net].rows * math.prod(NETS[net].x_shape)):  # as many threads as ``fit`` would use
            results[net] = race(NETS[net], chosen.device, SHORT if chosen.quick else FULL)
        show(net, results[net])
    lines = verdicts(results)
    print("", *lines, sep="\n")
    stem = "speed" + ("-cuda" if chosen.device == "cuda" else "") + ("-quick" if chosen.quick else "")
    path = Path(__file__).parent / "results" / f"{stem}.json"
    path.parent.mkdir(exist_ok=True)
    command = " ".join(["python -m ppl_vae.experiments.speed", *sys.argv[1:]])
    written = {"command": command, **machine(chosen.device), "targets": lines, "results": results}
    path.write_text(json.dumps(written, indent=2) + "\n")
    plot(results, path.with_suffix(".png"))
    print(f"wrote {path} and its .png", file=sys.stderr)


if __name__ == "__main__":
    main()
