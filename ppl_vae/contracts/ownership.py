"""Contracts on the owner of each tensor of a training pass: training moves only parameters of the pair."""

from typing import Any

from torch import Tensor

from ..models import SecondStage, SecondStageBound
from .registry import Contract, contract
from .training_pass import RUNS, Pass, one_pass

__all__ = ["OWNERSHIP"]

OWNERSHIP: list[Contract] = []


@contract(OWNERSHIP, "store", remedy=RUNS)
def store(run: Pass) -> str | None:
    """No parameter of the pair depends on a name in Pyro's global store."""
    for name, tensor in run.stored.items():
        if id(tensor) in run.owned:
            return (
                f"the parameter {name!r} is kept by this name in Pyro's global store, so that one of two pairs with "
                "that name is never trained (no PyroModule, pyro.module or pyro.param in a part: use nn.Parameter in a "
                "plain nn.Module)"
            )
    return None


@contract(OWNERSHIP, "parameters", remedy="hold learned numbers as nn.Parameter")
def parameters(run: Pass) -> str | None:
    """Every tensor that the loss could move is a parameter of the model or of the guide, and there is at least one."""
    for name, tensor in run.stored.items():
        if id(tensor) not in run.owned:
            return (
                f"pyro.param {name!r} is not a parameter of the model or of the guide, and training moves only those "
                "(hold it as an nn.Parameter of the part)"
            )
    if not any(parameter.requires_grad for half in run.variant[:2] for parameter in half.parameters()):
        return (
            "no parameter is left to train: all are frozen (call requires_grad_(True) on the parts that are to learn)"
        )
    unowned = _unowned_leaves(run)
    if not unowned:
        return None
    return (
        f"the loss depends on a tensor {list(unowned[0].shape)} that is not a parameter of the model or of the guide, "
        "so it is never trained (hold networks as attributes or in nn.ModuleList; call requires_grad_(False) if it "
        "is to stay as it is)"
    )


@contract(OWNERSHIP, "second stage", remedy="give SecondStage and SecondStageBound together")
def second_stage(run: Pass) -> str | None:
    """A second VAE that is the prior, and that is not frozen, has its objective among the penalties."""
    prior, penalties = run.variant.model.prior, run.variant.model.penalties
    if not isinstance(prior, SecondStage) or not prior.training:
        return None
    if any(isinstance(penalty, SecondStageBound) for penalty in penalties):
        return None
    return (
        "the prior SecondStage is trained by a penalty that is missing (add SecondStageBound() to penalties, or freeze "
        "a trained prior with requires_grad_(False))"
    )


def _unowned_leaves(run: Pass) -> list[Tensor]:
    """The leaves of the loss that are not parameters of the pair and that a second pass uses again.

    A penalty may make a new leaf in each pass. A new leaf is not meant to be trained, so it is left out.
    """
    unowned = [leaf for leaf in _leaves(run) if id(leaf) not in run.owned]
    if not unowned:
        return []
    used_again = {id(leaf) for leaf in _leaves(one_pass(run.variant, run.y))}
    return [leaf for leaf in unowned if id(leaf) in used_again]


def _leaves(run: Pass) -> list[Tensor]:
    """The leaf tensors in the graph of the log densities, which a gradient could move."""
    loss: Any = run.traces["guide"].log_prob_sum() - run.traces["model"].log_prob_sum()
    waiting = [getattr(loss, "grad_fn", None)]
    seen, leaves = set(), []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":  # torch's node for a leaf
            leaves.append(node.variable)
        waiting += [before for before, _ in node.next_functions]
    return leaves
