"""What one pass over a few data shows before training: whether the loss would be the one that was meant."""

import math
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.func import functional_call

from ..elbo.reading import plate_scale, traces
from ..models.half import is_point_mass
from ..models.likelihoods import moment, of_coordinate, scale_of_law
from ..models.schedules import Schedule
from ..noise import STANDARD, spread
from ..snapshot import Snapshot
from ..streams import seeded
from ..variant import Variant, evaluating, in_mode, set_mode

__all__ = ["READINGS", "Pass", "one_pass", "preflight"]
ROWS = 8  # data that the pass at the door sees
SIZE = 10  # what the whole set holds for each datum of the pass
PROBE = 3.0  # the KL weight of the pass: a weight that happens to be 1 would not show where it acts
ALIVE = 0.01  # change of a log scale as its parameters move by their own size, or by 1: below, a floor holds it
TRIALS, CODES = 2, 16  # sets of random weights in a trial of the decoder, and codes from all over the prior for each
LARGE = 30.0  # size of the weights in that trial: beyond it a sigmoid is 0 or 1
UNBOUNDED = (-math.inf, math.inf)
EDGE = 0.05  # share of its range by which a bounded decoder may miss the data, as noise does
FEW = 0.01  # share of the data that may lie beyond, as outliers do
DIGITS = 8.0  # spacings of floats that a scale has to span, for an error of its size to be seen


class Pass(NamedTuple):
    """A training pass on ``y`` [rows, *x_shape], in the model's units, out of ``size`` data; schedules at their end.

    Attributes:
        variant: The pair, in training mode.
        y: The batch.
        size: Data in the whole set.
        traces: Of ``"guide"``, and of ``"model"`` at the guide's z.
        stored: What the pair put into Pyro's parameter store, empty before, by its name.
    """

    variant: Variant
    y: Tensor
    size: int
    traces: dict[str, Any]
    stored: dict[str, Tensor]

    @property
    def owned(self) -> set[int]:
        """The identities of the tensors that either half calls its parameters."""
        return {id(parameter) for half in self.variant[:2] for parameter in half.parameters()}

    @property
    def law(self) -> Any:
        """p(x | z) of each coordinate, of batch shape [rows, *x_shape]."""
        return of_coordinate(self.site("model", "x")["fn"])

    def site(self, half: str, name: str) -> Any:
        """What Pyro notes of a site: its law ``fn``, its value, its scale."""
        return self.traces[half].nodes[name]

    def sites(self) -> Iterator[tuple[str, str, Any]]:
        """Whatever either half samples, observes or adds: the half, the name, the site."""
        for half, trace in self.traces.items():
            for name, site in trace.nodes.items():
                if site["type"] == "sample":
                    yield half, name, site


def one_pass(variant: Variant, y: Tensor) -> Pass:
    """Run both halves as a training step would, Pyro's own checks off: these name the remedy. It moves statistics."""
    size = SIZE * len(y)
    set_mode(variant, training=True)
    variant.model.advance(1, 1)
    if isinstance(variant.model.kl_weight, Schedule):
        variant.model.kl_weight.value.fill_(PROBE)
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        guide, model = traces(variant.model, variant.guide, y, size)
        stored: dict[str, Tensor] = dict(pyro.get_param_store().get_state()["params"])
    return Pass(variant, y, size, {"guide": guide, "model": model}, stored)


def preflight(variant: Variant, y: Tensor) -> None:
    """Refuse a pair whose loss would not be what it says, in milliseconds, and leave it as it was.

    Args:
        variant: The pair.
        y: Training data [rows, *x_shape] in the model's units; the first few are used.

    Raises:
        ValueError: With the first line that ``check`` would say. A scale at its floor is let through, since an earlier
            training may have ended there, and so is a decoder whose range x exceeds, since that may be meant.
    """
    before = Snapshot(variant)
    try:
        with in_mode(variant, training=True), torch.enable_grad(), seeded(0):
            run = one_pass(variant, y[:ROWS])
            for name, (reading, _) in READINGS.items():
                line = None if name in LET_THROUGH else reading(run)
                if line is not None:
                    raise ValueError(f"{name}: {line}")
    finally:
        before.restore(variant)


# The plate.
def _sites(run: Pass) -> str | None:
    """The guide samples z, the model samples z and observes x."""
    found = {(half, name): bool(site["is_observed"]) for half, name, site in run.sites()}
    for half, name, observed in (("guide", "z", False), ("model", "z", False), ("model", "x", True)):
        if found.get((half, name)) is not observed:
            verb, theirs = "observes" if observed else "samples", [site for at, site in found if at == half]
            return f"the {half} {verb} no site {name!r}, its sites are {theirs} (the code is 'z', the datum is 'x')"
    return None


def _plate(run: Pass) -> str | None:
    """Z and x stand in the plate of the data, which has the batch and the size that it was given, on both sides."""
    for half, name, site in run.sites():
        frame = next((frame for frame in site["cond_indep_stack"] if frame.name == "data"), None)
        if frame is None and name in ("z", "x"):
            return f"site {name!r} of the {half} stands outside the plate (open it: {PLATE})"
        if frame is not None and plate_scale(frame) != SIZE:
            counts = (
                f"a datum at site {name!r} counts {plate_scale(frame):g} times, wanted {SIZE}, the size over the batch"
            )
            return f"in the {half} {counts} (give the plate the size that forward is given: {PLATE})"
    return None


def _weights(run: Pass) -> str | None:
    """The KL weight acts on z in both halves, as one number; nothing else is weighted."""
    acts: dict[str, tuple[float, bool]] = {}
    for half, name, site in run.sites():
        weight = float(site["scale"]) / math.prod(map(plate_scale, site["cond_indep_stack"]))
        act = round(weight, 4), site["mask"] is not None
        if name == "z":
            acts[half] = act
        elif act != UNWEIGHTED:
            return f"site {name!r} of the {half} is masked or counts {weight:.4g} times, wanted 1 ({NO_SCALE})"
    acting = [half for half, act in acts.items() if act != UNWEIGHTED]
    halves = {"model": run.variant.model, "guide": run.variant.guide}
    weights = {half: getattr(part, "kl_weight", None) for half, part in halves.items()}
    held = [half for half, weight in weights.items() if weight is not None]
    shared = weights["model"] is weights["guide"]
    if not shared or acts["model"] != acts["guide"]:
        sides = acting if shared else held
        where = f"on the {sides[0]} alone" if len(sides) == 1 else "on each half by itself"
        return f"the KL weight acts {where}: that is another model, not another weight ({BOTH})"
    if held and not acting:
        return f"the KL weight acts on neither half ({BOTH})"
    if acting and not held:
        return f"site 'z' is masked or counts {acts['model'][0]:.4g} times, wanted 1 ({NO_SCALE})"
    return None


def _axes(run: Pass) -> str | None:
    """A site in the plate has one log density per datum; a factor outside it is one number."""
    for half, name, site in run.sites():
        wanted: dict[int, int] = {-frame.dim: frame.size for frame in site["cond_indep_stack"] if frame.dim is not None}
        sizes = [wanted.get(axis, 1) for axis in range(max(wanted, default=0), 0, -1)]
        got = list(site["unscaled_log_prob"].shape)
        if not wanted and name in ("z", "x"):
            continue  # outside the plate, which has a line of its own
        if any(a != b for a, b in zip_longest(reversed(got), reversed(sizes), fillvalue=1)):
            times = math.prod(got) // math.prod(sizes)
            excess = f", and each would count {times} times" if sizes and times > 1 else ""
            kind = "penalty" if isinstance(site["fn"], dist.Unit) else name
            where = f"site {name!r} of the {half} has log densities of shape {got}, wanted {sizes}{excess}"
            return f"{where} ({AXES.get(kind, AXES['z'])})"
    return None


def _density(run: Pass) -> str | None:
    """The guide declares a density if, and only if, q(z | x) has one."""
    declared: bool | None = getattr(run.variant.guide, "has_density", None)
    q = run.site("guide", "z")["fn"]
    if declared is None or declared != is_point_mass(q):
        return None
    name = type(run.variant.guide).__name__
    found = "a point mass, which has no density" if declared else f"{type(q).__name__}, which has a density"
    return f"{name} declares has_density = {declared}, and q(z | x) is {found} (declare has_density = {not declared})"


def _support(run: Pass) -> str | None:
    """Q(z | x) draws nothing to which p(z) gives no density."""
    q, prior = run.site("guide", "z")["fn"], run.site("model", "z")["fn"]
    try:
        support: Any = prior.support
        inside = bool(support.check(_points(q, run.site("guide", "z")["value"])).all())
    except (NotImplementedError, ValueError):  # a law that does not say where it lies
        return None
    remedy = "give the guide the prior's support, by a transform of its distribution, or choose another prior"
    return None if inside else f"q(z | x) reaches beyond the support of p(z), {_name(support)} ({remedy})"


def _points(q: Any, z: Tensor) -> Tensor:
    """Draws, and points from all over the support, [count, rows, z_dim]: a few draws may miss what is rare."""
    z = z.detach()
    if is_point_mass(q):
        return z.unsqueeze(0)  # its support is called the reals, whatever network made the code
    try:
        return torch.cat([z.unsqueeze(0), transform_to(q.support)(3 * torch.randn(16, *z.shape).to(z)).detach()])
    except NotImplementedError:
        return z.unsqueeze(0)


def _name(support: Any) -> str:
    return str(getattr(support, "base_constraint", support))


# Who owns the tensors.
def _store(run: Pass) -> str | None:
    """No parameter of the pair goes by a name of Pyro's global store."""
    for name, tensor in run.stored.items():
        if id(tensor) in run.owned:
            return (
                f"{name!r} goes by its name through Pyro's global store: of two pairs with that name one is never "
                "trained (no PyroModule, pyro.module or pyro.param in a part: nn.Parameter in a plain nn.Module)"
            )
    return None


def _parameters(run: Pass) -> str | None:
    """Whatever the loss could move is a parameter of either half, and there is something to move."""
    for name, tensor in run.stored.items():
        if id(tensor) not in run.owned:
            return (
                f"pyro.param {name!r} is in the parameters() of neither half: training moves those alone "
                "(hold it as an nn.Parameter of the part)"
            )
    if not any(parameter.requires_grad for half in run.variant[:2] for parameter in half.parameters()):
        return "no parameter is left to train: all are frozen (requires_grad_(True) on the parts that are to learn)"
    strange = [leaf for leaf in _leaves(run) if id(leaf) not in run.owned]
    if not strange:
        return None
    again = one_pass(run.variant, run.y)  # a leaf that a penalty makes afresh in each pass is no parameter
    kept = {id(leaf) for leaf in _leaves(again)}
    for leaf in strange:
        if id(leaf) in kept:
            return (
                f"the loss rests on a tensor {list(leaf.shape)} in the parameters() of neither half, never trained "
                "(hold networks as attributes or in nn.ModuleList; requires_grad_(False) if it is to stand still)"
            )
    return None


def _leaves(run: Pass) -> list[Tensor]:
    """The tensors at the far end of the graph of the log densities."""
    total: Any = run.traces["guide"].log_prob_sum() - run.traces["model"].log_prob_sum()
    seen, todo, found = set(), [getattr(total, "grad_fn", None)], []
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            found.append(node.variable)
        todo += [before for before, _ in node.next_functions]
    return found


# Numbers.
def _sigma(run: Pass) -> str | None:
    """The scale of p(x | z) can move, is wider than the rounding of the data, and is not wider than all of x."""
    scale = scale_of_law(run.law)
    if scale is None:
        return None
    smallest = float(scale.detach().min())
    if scale.requires_grad and _slope(run.variant, scale) < ALIVE:
        return f"the learned scale, {smallest:.4g}, stands at a floor where it has no gradient ({LARGER})"
    if run.law.support is not constraints.real:
        return None
    if bool((scale.detach() < DIGITS * torch.finfo(scale.dtype).eps * run.y.abs()).any()):
        kind = str(scale.dtype).removeprefix("torch.")
        return f"the scale, {smallest:.4g}, is within the rounding of {kind} at data like {_largest(run.y)} ({LARGER})"
    return _too_wide(run, scale)


def _too_wide(run: Pass, scale: Tensor) -> str | None:
    """A scale whose square exceeds the variance of all coordinates of x together leaves nothing for a code to say.

    No direction of x has then a variance above ``scale**2``, and the best loading of a linear model is zero (Tipping
    and Bishop, 1999, eq. 7).
    """
    lowest = getattr(run.variant.model.likelihood, "lowest", None)
    if lowest is None and scale.requires_grad:
        return None  # it is learned, and its floor is not known
    least = float(scale.detach().max()) if lowest is None else lowest
    width = spread(run.y)
    if not 0.0 < width * math.sqrt(run.y[0].numel()) < least:
        return None
    kind = "sigma" if lowest is None else "the floor of sigma"
    return f"{kind}, {least:.2g}, is {least / width:.3g} times the spread of x, so that no code is of use ({STANDARD})"


# What a decoder can reach.
def _logits(run: Pass) -> str | None:
    """Probabilities come from logits that no layer of the decoder has squashed before."""
    law = run.law
    if not _takes_logits(law):
        return None
    low, high = _reach(run, lambda law: law.probs if hasattr(law, "probs") else law.mean)
    if low < EDGE and high > 1 - EDGE:
        return None
    ends = _reach(run, None)
    if ends == UNBOUNDED:
        return None  # it is the likelihood itself that bounds them
    return (
        f"the decoder's outputs lie in {_interval(ends)}, where {type(law).__name__} takes logits, any real number: "
        f"{'its probabilities stay' if hasattr(law, 'probs') else 'its mean stays'} in {_interval((low, high))} "
        f"({_drop(run)})"
    )


def _range(run: Pass) -> str | None:
    """The mean of p(x | z) can reach the data."""
    if _takes_logits(run.law):
        return None  # the line above says it
    low, high = _reach(run, lambda law: moment(law, "mean", run.y))
    margin = EDGE * float(run.y.max() - run.y.min())
    beyond = float(((run.y < low - margin) | (run.y > high + margin)).double().mean())
    if beyond <= FEW:
        return None
    theirs = f"{type(run.variant.model.likelihood).__name__} bounds it: take the bound away"
    remedy = theirs if _reach(run, None) == UNBOUNDED else _drop(run)
    return (
        f"the mean of p(x | z) stays in {_interval((low, high))} whatever the decoder's weights are, and {beyond:.0%} "
        f"of x, from {float(run.y.min()):.3g} to {float(run.y.max()):.3g}, lies beyond ({remedy}, or scale x into it)"
    )


def _takes_logits(law: Any) -> bool:
    return "logits" in getattr(law, "arg_constraints", {})


def _reach(run: Pass, what: Callable[[Any], Tensor] | None) -> tuple[float, float]:
    """Bounds that no weights of the decoder move: of its outputs, or of ``what`` the law of a coordinate says.

    Codes from all over the prior are decoded with random weights, of some size and of ten times that size. What is
    squashed ends where it ended before, what is not grows; an end that grows, or is not finite, is given as infinite.
    """
    with torch.no_grad(), evaluating(run.variant), pyro.validation_enabled(False):
        try:
            low, high = _ends(run.variant.model, what, LARGE)
            lower, higher = _ends(run.variant.model, what, 10 * LARGE)
        except (NotImplementedError, RuntimeError, ValueError):  # a network for which not all weights do
            return UNBOUNDED
    if not lower < higher:
        return UNBOUNDED  # it is the same whatever the decoder says
    close = 0.01 * (higher - lower) if math.isfinite(higher - lower) else 0.0
    return (
        lower if abs(lower - low) <= close else -math.inf,
        higher if abs(higher - high) <= close else math.inf,
    )


def _ends(model: Any, what: Callable[[Any], Tensor] | None, size: float) -> tuple[float, float]:
    """The least and the largest number that is found with random weights that multiply their input by ``size``."""
    decoder = model.decoder
    parameters = {name: value for name, value in decoder.named_parameters() if value.is_floating_point()}
    if not parameters:
        return UNBOUNDED
    gain = math.sqrt(2) * size ** (1 / max(1, sum(value.ndim > 1 for value in parameters.values())))
    found = []
    for _ in range(TRIALS):
        z = model.prior().sample((CODES,))
        scales = {n: gain / math.sqrt(v[0].numel()) if v.ndim > 1 else size for n, v in parameters.items()}
        wild = {name: scales[name] * torch.randn_like(value) for name, value in parameters.items()}
        for sign in (1, -1):  # a last bias is the same for all codes: both of its signs are tried
            signed = {name: sign * value for name, value in wild.items()}
            outputs = model.outputs(z, lambda rows, signed=signed: functional_call(decoder, signed, (rows,)))
            law = torch.stack(outputs) if what is None else model.likelihood(*outputs)
            found.append((law if what is None else what(law)).aminmax())
    return min(float(least) for least, _ in found), max(float(largest) for _, largest in found)


def _interval(ends: tuple[float, float]) -> str:
    return f"[{round(ends[0], 3):g}, {round(ends[1], 3):g}]"


def _drop(run: Pass) -> str:
    """The remedy, by the name of the layer at the decoder's end where that is one of torch's activations."""
    shaping = nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout
    layers = [layer for layer in run.variant.model.decoder.modules() if not isinstance(layer, shaping)]
    last = type(layers[-1]) if layers else nn.Module
    return (
        f"drop the {last.__name__} at its end"
        if last.__module__ == nn.ReLU.__module__
        else "let it end in a linear layer"
    )


def _largest(y: Tensor) -> str:
    return f"{float(y.flatten()[y.abs().argmax()]):.4g}"


def _slope(variant: Variant, scale: Tensor) -> float:
    """How far the log scale moves, at most, as each parameter moves by its own size, or by 1."""
    parameters = [parameter for parameter in variant.model.parameters() if parameter.requires_grad]
    weights = torch.rand_like(scale) * (2 / scale.numel())  # a plain mean would miss what moves scales apart
    slopes: tuple[Tensor | None, ...] = torch.autograd.grad(
        scale.log(), parameters, weights, retain_graph=True, allow_unused=True
    )
    pairs = [(slope, at.detach()) for slope, at in zip(slopes, parameters, strict=True) if slope is not None]
    return sum(float((slope * at.abs().clamp_min(1.0)).abs().sum()) for slope, at in pairs) if pairs else math.inf


def _importance_weights(run: Pass) -> str | None:
    """A loss that weighs draws takes this pair, wherever its schedules stand."""
    variant = run.variant
    if not getattr(variant.loss, "weighs_draws", False):
        return None
    for step in (0, 1, 2) if variant.model.kl_weight is not None else (2,):
        variant.model.advance(step, 2)
        try:
            with pyro.validation_enabled(True), pyro.get_param_store().scope():
                variant.loss(variant.model, variant.guide)(run.y, run.size)
        except ValueError as error:  # the loss knows why, and says it
            return str(error).partition("\n")[0]
    return None


LET_THROUGH = ("sigma", "range")
UNWEIGHTED = (1.0, False)
PLATE = "pyro.plate('data', len(x) if size is None else size, subsample=x)"
NO_SCALE = "a pair has one weight, kl_weight=KLWeight(...): no poutine.scale or poutine.mask of one's own"
BOTH = "hand both halves one object, and sample z under self.weighted() in each"
LARGER = "start from a larger scale, lower the floor, or bring the data to " + STANDARD
AXES = {
    "x": "a likelihood returns [..., *x_shape], and its log_prob as many numbers; then .to_event over all of x_shape",
    "z": "a prior has batch shape [], q(z | x) has [rows]; coordinates are an event, .to_event(1)",
    "penalty": "a penalty gives [rows] with per_datum, or one number; without, one number: drop the axis, or .sum()",
}
RUNS = f"forward(x, size) has to run in training mode, z and x in {PLATE}"
READINGS: dict[str, tuple[Callable[[Pass], str | None], str]] = {
    "sites": (_sites, RUNS),
    "plate": (_plate, PLATE),
    "kl weight": (_weights, BOTH),
    "axes": (_axes, RUNS),
    "density": (_density, "guide.posterior returns a distribution"),
    "support": (_support, "laws of z have a support"),
    "store": (_store, RUNS),
    "parameters": (_parameters, "hold what is learned as nn.Parameter"),
    "logits": (_logits, "the decoder takes codes from all over the prior"),
    "range": (_range, "the decoder takes codes from all over the prior"),
    "sigma": (_sigma, "the scale of p(x | z) is positive"),
    "importance weights": (_importance_weights, "the loss has to be computable in training mode"),
}
