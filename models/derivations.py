"""The likelihood of production rules, whose softmax is over the rules that a grammar allows at each place."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from .distributions import SCALAR
from .grammar import Grammar
from .networks import OneHot

__all__ = ["Derivation", "GrammarRules", "Tables"]


class Tables(NamedTuple):
    """A grammar as tensors. The padding rule is its last rule, and its left side is the mark of the empty stack.

    Attributes:
        left: The left side of each rule, [rules].
        masks: Which rules have which left side, [nonterminals, rules]. The last row is the mark of the empty stack.
        pushed: The nonterminals on the right side of each rule, from the last one, [rules, most]. The rest is filled.
        sizes: Their number, [rules]. The padding rule puts back the mark, so that the stack never becomes empty.
        start: The start symbol, shape [].
    """

    left: Tensor
    masks: Tensor
    pushed: Tensor
    sizes: Tensor
    start: Tensor

    @classmethod
    def of(cls, grammar: Grammar) -> "Tables":
        """The tables of a grammar."""
        mark = len(grammar.nonterminals)
        place = {symbol: index for index, symbol in enumerate(grammar.nonterminals)}
        inside = [[place[one] for one in reversed(rule.right) if one in place] for rule in grammar.rules] + [[mark]]
        most = max(map(len, inside))
        left = torch.tensor([*(place[rule.left] for rule in grammar.rules), mark])
        pushed = torch.tensor([[*symbols, *[mark] * (most - len(symbols))] for symbols in inside])
        sizes, start = torch.tensor([len(symbols) for symbols in inside]), torch.tensor(place[grammar.start])
        return cls(left, left == torch.arange(mark + 1).unsqueeze(1), pushed, sizes, start)

    def walk(self, choose: Callable[[int, Tensor], Tensor], rows: int, length: int) -> Tensor:
        """Walk through derivations side by side, one stack of nonterminals for each row.

        Args:
            choose: A function from a place and the left-most nonterminal of each row [rows] to the next rules [rows].
                Each rule has to have this left side.
            rows: The number of derivations.
            length: The number of rules of each.

        Returns:
            The rules, [rows, length].
        """
        most, mark = self.pushed.shape[1], self.masks.shape[0] - 1
        stack = torch.full((rows, 2 + length * (most - 1) + most), mark, device=self.left.device)
        stack[:, 1] = self.start
        top = torch.ones(rows, 1, dtype=torch.long, device=self.left.device)  # the place of the left-most nonterminal
        above = torch.arange(most, device=self.left.device)
        chosen = []
        for place in range(length):
            rules = choose(place, stack.gather(1, top).squeeze(1))
            # Entries above the new top are rests, which later steps write over. Nothing is written in place, so that a
            # recorded step drops the walk of a mode that nobody reads.
            stack = stack.scatter(1, top + above, self.pushed[rules])
            top = top + self.sizes[rules].unsqueeze(1) - 1
            chosen.append(rules)
        return torch.stack(chosen, 1)


class derivations(constraints.Constraint):
    """The codes of derivations [..., length]. A code is inside if the codes before it are, and its rule can follow."""

    is_discrete = True
    remedy = "pass the codes that Grammar.codes gives for derivations of this grammar, with scale='none'"

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        tables, padding = self.tables, len(self.tables.left) - 1
        if value.numel() == 0:
            return torch.ones_like(value, dtype=torch.bool)
        codes = value.reshape(-1, value.shape[-1])
        rules = codes.nan_to_num(-1.0).clamp(0, padding).long()
        is_inside = [torch.ones(len(codes), dtype=torch.bool, device=value.device)]

        def follow(place: int, left: Tensor) -> Tensor:
            fits = (tables.left[rules[:, place]] == left) & (rules[:, place] == codes[:, place])
            is_inside.append(is_inside[-1] & fits)
            # The stack of a row that is outside goes on with any rule that fits, so that it stays a stack.
            return torch.where(is_inside[-1], rules[:, place], tables.masks[left].to(torch.uint8).argmax(1))

        tables.walk(follow, len(codes), codes.shape[1])
        return torch.stack(is_inside[1:], 1).reshape(value.shape)

    def __repr__(self) -> str:
        return "derivations of the grammar"


class Derivation(TorchDistribution):
    """The rules of a left-most derivation: ``log p(x_t | x_1, ..., x_(t-1))`` for each place t, batch shape [..., T].

    It is a softmax of ``logits_t`` over the rules whose left side is the left-most nonterminal after x_1, ..., x_(t-1).
    When the derivation is finished, padding has the probability 1. The places are not independent. The sum over t is
    the log probability of the sequence, by the chain rule. Inside the support, the left side of x_t is the left-most
    nonterminal, so ``log_prob`` does not walk through the derivation. Outside the support it has no meaning, and raises
    an error where Pyro validates values.

    A derivation may be unfinished after T rules. Such sequences have the rest of the probability, so that the sum over
    all sequences is 1.

    Args:
        logits: The logits of all rules, padding last, [..., T, rules].
        tables: The grammar.

    Attributes:
        mode: Greedy decoding: from left to right, the most probable rule given those before it. The most probable
            sequence may be another one.
    """

    arg_constraints: ClassVar = {"logits": constraints.real_vector}
    is_nominal = True

    def __init__(self, logits: Tensor, tables: Tables, *, validate_args: bool | None = None) -> None:
        self.logits, self.tables = logits, tables
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> derivations:
        return derivations(self.tables)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Derivation":
        logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        return Derivation(logits, self.tables, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        rules = value.long()
        log_p = self._allowed(self.logits, self.tables.left[rules]).log_softmax(-1)
        return log_p.gather(-1, rules.expand(log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1)

    def _allowed(self, logits: Tensor, left: Tensor) -> Tensor:
        """The logits of the rules with the given left sides, and minus infinity for all others."""
        return logits.masked_fill(~self.tables.masks[left], -math.inf)

    @property
    def mode(self) -> Tensor:
        return self._walk(self.logits, lambda allowed: allowed.argmax(-1))

    def sample(self, sample_shape: Any = SCALAR) -> Tensor:
        logits = self.logits.expand(*self._extended_shape(sample_shape), self.logits.shape[-1])
        with torch.no_grad():
            return self._walk(logits, lambda allowed: allowed.softmax(-1).multinomial(1).squeeze(-1))

    def _walk(self, logits: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Choose rules from left to right, for logits [..., T, rules]. The codes [..., T] have the dtype of the logits.

        Args:
            logits: The logits.
            choose: A function from the logits of the allowed rules [rows, rules] to the chosen rules [rows].
        """
        rows = logits.detach().reshape(-1, *logits.shape[-2:])
        found = self.tables.walk(lambda place, left: choose(self._allowed(rows[:, place], left)), *rows.shape[:2])
        return found.to(logits.dtype).reshape(logits.shape[:-1])


class GrammarRules(nn.Module):
    """Sequences of production rules: ``log p(x | z) = sum_t log softmax(logits_t over allowed rules)[x_t]``.

    A datum x [T] holds the codes of a left-most derivation, as ``Grammar.codes`` gives them. The allowed rules are
    those of the left-most nonterminal, so that each finished draw is a text of the grammar. A draw may be unfinished
    after T rules. It is then no text, and ``Grammar.derive`` gives None. The decoder gives the logits with the rules
    first, like channels: [rows, rules, T]. Padding is the last rule. As before ``Categorical``, ``pair`` puts a
    ``OneHot`` before its default encoder. Pass the codes with ``scale="none"``.

    Args:
        rules: The rules of the grammar, a text as in ``Grammar``.
        start: Its start symbol, by default the first left side.

    Raises:
        ValueError: If ``Grammar`` refuses the rules.

    References:
        Kusner, Paige and Hernandez-Lobato, Grammar Variational Autoencoder, 2017, sections 3.2 and 3.3.
        https://arxiv.org/abs/1703.01925

    Example:
        >>> import torch
        >>> likelihood = GrammarRules("S -> S + T | T ; T -> x | 1")
        >>> x = likelihood.grammar.codes([(0, 1, 2, 3)], length=6)
        >>> log_p = likelihood(*torch.zeros(likelihood.outputs, 1, 6)).log_prob(x)  # a choice of two, four times
        >>> (log_p / torch.tensor(0.5).log()).tolist()
        [[1.0, 1.0, 1.0, 1.0, -0.0, -0.0]]
    """

    def __init__(self, rules: str, start: str | None = None) -> None:
        super().__init__()
        self.rules, self.start = rules, start
        self.grammar = Grammar(rules, start)
        for name, table in Tables.of(self.grammar)._asdict().items():
            self.register_buffer(f"table_{name}", table, persistent=False)

    @property
    def outputs(self) -> int:
        """One logit for each rule, and one for padding."""
        return len(self.grammar.rules) + 1

    @property
    def formula(self) -> str:
        return f"rules of a grammar by logits(z), {self.outputs - 1} rules and padding"

    @property
    def tables(self) -> Tables:
        """The grammar as tensors, on the device of the model."""
        return Tables(*(self.get_buffer(f"table_{name}") for name in Tables._fields))

    def encoder_input(self, x_shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
        """The layer before the default encoder, and the shape that it gives to a datum."""
        return OneHot(self.outputs), (self.outputs, *x_shape)

    def forward(self, *logits: Tensor) -> Derivation:
        return Derivation(torch.stack(logits, -1), self.tables)

    def extra_repr(self) -> str:
        return f"{len(self.grammar.rules)} rules, start={self.grammar.start}"
