"""Context-free grammars: texts as production rules, texts that are parsed back, and random derivations."""

import graphlib
import itertools
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .half import whole

__all__ = ["Grammar", "Rule"]

SYMBOLS = re.compile(r"'[^'\n]+'|[|;\n]|[^\s;|]+")
TRIES = 100  # draws for each derivation that is wanted, before a sample of distinct ones is given up
Span = tuple[str, int, int]  # a nonterminal, and the places in a text where it begins and ends


class Rule(NamedTuple):
    """A production rule: ``left`` is replaced by the symbols of ``right``, each a nonterminal or a terminal."""

    left: str
    right: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.left} -> {' '.join(self.right)}"


class Grammar:
    """A context-free grammar, in which a text is the sequence of the rules of its left-most derivation.

    A derivation begins with the start symbol. Each rule replaces the left-most nonterminal. The derivation is finished
    when no nonterminal is left, and the terminals are then the text. The code of a rule is its place in ``rules``. One
    more code, ``padding``, fills a finished derivation up to a fixed length.

    Args:
        text: The rules, separated by semicolons or line breaks, such as ``"S -> S + T | T ; T -> x | 1"``. Spaces
            separate symbols. Left sides are nonterminals, all other symbols are terminals. Put a terminal in single
            quotes if it begins with a capital letter or is one of ``; |``.
        start: The start symbol. By default it is the first left side.

    Attributes:
        rules: The rules, in the order of the text.
        nonterminals: The left sides, in the order of the text.
        padding: The code of the padding rule, ``len(rules)``.

    Raises:
        ValueError: If a text would have infinitely many derivations or none (an empty right side, or nonterminals that
            derive each other alone), a nonterminal has no rule or derives no text, or a rule occurs twice. Without
            ``start``, also if a nonterminal is not reached from the first one. From a start symbol that is given, the
            rules that are not reached are never used.

    References:
        Kusner, Paige and Hernandez-Lobato, Grammar Variational Autoencoder, 2017. https://arxiv.org/abs/1703.01925

    Example:
        >>> grammar = Grammar("S -> S + T | T ; T -> x | 1")
        >>> grammar.parse("x+1")
        (0, 1, 2, 3)
        >>> grammar.derive((0, 1, 2, 3))
        'x+1'
        >>> grammar.codes([grammar.parse("x+1"), grammar.parse("x")], length=5)
        tensor([[0., 1., 2., 3., 4.],
                [1., 2., 4., 4., 4.]])
    """

    def __init__(self, text: str, start: str | None = None) -> None:
        self.text = text
        found = list(_rules_in(text))
        _check_symbols(found)
        self.rules = tuple(Rule(left, tuple(symbol.strip("'") for symbol in right)) for left, right in found)
        self.nonterminals = tuple(dict.fromkeys(rule.left for rule in self.rules))
        self.start = self.nonterminals[0] if start is None else start
        self.padding = len(self.rules)
        self.of_left = {left: [code for code, rule in enumerate(self.rules) if rule.left == left] for left in self}
        _check_use(self, every=start is None)
        self.order = _units_first(self)  # a nonterminal comes after those that it derives alone

    def __iter__(self) -> Iterator[str]:
        """Yield the nonterminals."""
        return iter(self.nonterminals)

    def __repr__(self) -> str:
        return f"Grammar of {len(self.rules)} rules from {self.start}"

    # Derivations and texts.

    def derive(self, codes: Iterable[float]) -> str | None:
        """The text of a derivation, or None if the derivation is unfinished.

        Args:
            codes: Its codes, with or without padding, as numbers or a tensor [length].

        Raises:
            ValueError: If a code is not that of a rule for the left-most nonterminal. After a finished derivation, only
                padding is possible.
        """
        text: list[str] = []
        stack = [self.start]
        for place, code in enumerate(map(int, codes)):
            self._move_terminals(stack, text)
            left = self.rules[code].left if 0 <= code < self.padding else None
            wanted = stack.pop() if stack else None
            if left != wanted or not 0 <= code <= self.padding:
                named = "padding" if wanted is None else f"a rule for {wanted}"
                raise ValueError(f"code {code} at place {place} does not fit: wanted {named}, as in codes and parse")
            stack += reversed(self.rules[code].right if code < self.padding else ())
        self._move_terminals(stack, text)
        return None if stack else "".join(text)

    def _move_terminals(self, stack: list[str], text: list[str]) -> None:
        """Move terminals from the top of the stack to the text."""
        while stack and stack[-1] not in self.of_left:
            text.append(stack.pop())

    def codes(self, derivations: Iterable[Sequence[int] | None], length: int) -> Tensor:
        """The codes of derivations, padded to a fixed length: [rows, length], whole numbers in the default float dtype.

        Raises:
            ValueError: If a derivation is None, as of a text that has none, or has more rules than ``length``.
        """
        rows = []
        for row, rules in enumerate(derivations):
            if rules is None:
                raise ValueError(f"derivation {row} is None, so its text is not of this grammar: leave it out")
            if len(rules) > length:
                raise ValueError(f"derivation {row} has {len(rules)} rules, more than length={length}: raise length")
            rows.append([*rules, *[self.padding] * (length - len(rules))])
        return torch.tensor(rows, dtype=torch.get_default_dtype()).reshape(-1, length)

    # From a text to its derivation.

    def is_valid(self, text: str) -> bool:
        """Whether the grammar derives a text."""
        return (self.start, 0, len(text)) in self._spans(text)

    def parse(self, text: str) -> tuple[int, ...] | None:
        """The codes of the left-most derivation of a text, or None if the grammar does not derive it.

        If the text has several derivations, it is the first one in the order of their codes: they are compared at the
        first code that differs.
        """
        spans = self._spans(text)
        whole_text = (self.start, 0, len(text))
        if whole_text not in spans:
            return None
        ends: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        for left, begin, end in spans:
            ends[left, begin].append(end)
        first: dict[Span, tuple[int, ...]] = {}
        inner_first = sorted(spans, key=lambda span: (span[2], -span[1], self.order[span[0]]))
        for left, begin, end in inner_first:
            found = (
                (code, self._first(self.rules[code].right, begin, end, text, ends, first))
                for code in self.of_left[left]
            )
            first[left, begin, end] = next((code, *inside) for code, inside in found if inside is not None)
        return first[whole_text]

    def _first(
        self,
        symbols: Sequence[str],
        begin: int,
        end: int,
        text: str,
        ends: dict[tuple[str, int], list[int]],
        first: dict[Span, tuple[int, ...]],
    ) -> tuple[int, ...] | None:
        """The first derivation of a part of the text from symbols, given those of all shorter parts."""
        if not symbols:
            return () if begin == end else None
        head, rest = symbols[0], symbols[1:]
        if head not in self.of_left:
            there = text.startswith(head, begin, end)
            return self._first(rest, begin + len(head), end, text, ends, first) if there else None
        found = []
        for middle in ends.get((head, begin), ()):
            if (head, begin, middle) in first and middle <= end:
                after = self._first(rest, middle, end, text, ends, first)
                found += [] if after is None else [first[head, begin, middle] + after]
        return min(found, default=None)

    def _spans(self, text: str) -> dict[Span, None]:
        """The parts of a text that a nonterminal derives, by the algorithm of Earley, which allows left recursion.

        Only those parts are found that fit to the text before them. An item (code, dot, begin) is a rule whose first
        ``dot`` symbols derive the text from ``begin`` to the place of its column.
        """
        columns: list[dict[tuple[int, int, int], None]] = [{} for _ in range(len(text) + 1)]
        waiting: list[defaultdict[str, list[tuple[int, int, int]]]] = [defaultdict(list) for _ in columns]
        columns[0] = dict.fromkeys((code, 0, 0) for code in self.of_left[self.start])
        spans: dict[Span, None] = {}
        for place, column in enumerate(columns):
            agenda = list(column)
            for code, dot, begin in agenda:  # grows inside the loop
                left, right = self.rules[code]
                new: list[tuple[int, int, int]] = []
                if dot == len(right):
                    spans[left, begin, place] = None
                    new = [(outer, at + 1, start) for outer, at, start in waiting[begin][left]]
                elif right[dot] in self.of_left:
                    waiting[place][right[dot]].append((code, dot, begin))
                    new = [(inner, 0, place) for inner in self.of_left[right[dot]]]
                elif text.startswith(right[dot], place):
                    columns[place + len(right[dot])][code, dot + 1, begin] = None
                for item in new:
                    if item not in column:
                        column[item] = None
                        agenda.append(item)
        return spans

    # Random derivations.

    def sample(self, count: int, length: int, seed: int = 0, *, distinct: bool = False) -> list[tuple[int, ...]]:
        """Draw derivations that are finished within ``length`` rules.

        Each rule is drawn with the same probability among the rules of the left-most nonterminal. The draw is from this
        distribution given that the derivation is finished within ``length`` rules. It is exact, and no draw is thrown
        away.

        Args:
            count: The number of derivations.
            length: The largest number of rules.
            seed: Seed of the draws.
            distinct: Whether a derivation that was drawn before is drawn again. The k-th derivation then has the same
                distribution, given that it differs from those before it.

        Raises:
            ValueError: If no derivation is so short, or there are too few distinct ones.
        """
        whole("count", count), whole("length", length)
        chances = self._chances(length)
        if not any(chances[(self.start,)]):
            raise ValueError(f"no derivation of this grammar has at most {length} rules: raise length")
        generator = random.Random(seed)
        if not distinct:
            return [self._draw(chances, generator) for _ in range(count)]
        found: dict[tuple[int, ...], None] = {}
        for _ in range(TRIES * count):
            found[self._draw(chances, generator)] = None
            if len(found) == count:
                return list(found)
        raise ValueError(
            f"{TRIES * count} draws gave {len(found)} distinct derivations of at most {length} rules, not {count}: "
            "raise length or lower count"
        )

    def _inside(self, code: int) -> tuple[str, ...]:
        """The nonterminals on the right side of a rule."""
        return tuple(symbol for symbol in self.rules[code].right if symbol in self.of_left)

    def _chances(self, length: int) -> dict[tuple[str, ...], list[float]]:
        """The probability that nonterminals need exactly 0, 1, ..., ``length`` rules, for all ends of right sides."""
        every: dict[tuple[str, ...], None] = {(): None} | {(left,): None for left in self}
        for code in range(self.padding):
            every |= {self._inside(code)[place:]: None for place in range(len(self._inside(code)))}
        chances = {symbols: [0.0] * (length + 1) for symbols in sorted(every, key=len)}
        chances[()][0] = 1.0
        for total in range(1, length + 1):
            for symbols, chance in chances.items():  # a single symbol before two, which need it
                if len(symbols) == 1:
                    codes = self.of_left[symbols[0]]
                    chance[total] = sum(chances[self._inside(code)][total - 1] for code in codes) / len(codes)
                elif symbols:
                    chance[total] = sum(self._splits(chances, symbols, total))
        return chances

    def _splits(self, chances: dict[tuple[str, ...], list[float]], symbols: tuple[str, ...], total: int) -> list[float]:
        """The probability that the first symbol needs 0, 1, ..., ``total`` rules, and the others what is left."""
        head, rest = chances[symbols[:1]], chances[symbols[1:]]
        return [head[size] * rest[total - size] for size in range(total + 1)]

    def _draw(self, chances: dict[tuple[str, ...], list[float]], generator: random.Random) -> tuple[int, ...]:
        """Draw the number of rules first, then the rules from the left, each with the number of rules inside it."""
        start: tuple[str, ...] = (self.start,)
        drawn: list[int] = []
        stack = [(start, _one_of(chances[start], generator))]
        while stack:
            symbols, total = stack.pop()
            if not symbols:
                continue
            size = _one_of(self._splits(chances, symbols, total), generator)
            codes = self.of_left[symbols[0]]
            code = codes[_one_of([chances[self._inside(code)][size - 1] for code in codes], generator)]
            drawn.append(code)
            stack += [(symbols[1:], total - size), (self._inside(code), size - 1)]
        return tuple(drawn)


def _one_of(weights: Sequence[float], generator: random.Random) -> int:
    """Draw a place with a probability proportional to its weight."""
    return generator.choices(range(len(weights)), weights)[0]


# What a grammar has to fulfil.


def _rules_in(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the left side and the right side of each rule of a text. Terminals keep their quotes."""
    separated = itertools.groupby(SYMBOLS.findall(text), key=lambda symbol: symbol in (";", "\n"))
    for symbols in (list(group) for is_separator, group in separated if not is_separator):
        if len(symbols) < 2 or symbols[1] != "->" or "->" in symbols[2:]:
            raise ValueError(
                f"a rule is written S -> a S | b, with spaces between the symbols, got {' '.join(symbols)}"
            )
        right: list[str] = []
        for symbol in [*symbols[2:], "|"]:
            if symbol != "|":
                right.append(symbol)
                continue
            if not right:
                raise ValueError(
                    f"a right side of {symbols[0]} is empty, so a text could have infinitely many derivations: write "
                    "each rule with and without the symbol that may be missing"
                )
            yield symbols[0], tuple(right)
            right = []


def _check_symbols(rules: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    """Check the symbols of rules whose terminals have their quotes."""
    if not rules:
        raise ValueError("a grammar needs a rule, such as S -> a S | b, got an empty text")
    lefts = {left for left, _ in rules}
    for left, right in rules:
        for symbol in right:
            if symbol[0].isupper() and symbol not in lefts:
                raise ValueError(f"{symbol} in {Rule(left, right)} has no rule: add one, or put a terminal in quotes")
            if symbol[0] == "'" and symbol.strip("'") in lefts:
                raise ValueError(f"{symbol} is a terminal and has the name of a left side: rename the left side")
        if rules.count((left, right)) > 1:
            raise ValueError(f"{Rule(left, right)} occurs twice, so texts have several derivations: write it once")


def _check_use(grammar: Grammar, *, every: bool) -> None:
    """Check that all nonterminals derive a text, and with ``every``, that the start symbol reaches each of them."""
    if grammar.start not in grammar.of_left:
        raise ValueError(f"start must be one of the left sides {', '.join(grammar)}, got {grammar.start!r}")
    reached, derives = {grammar.start}, set[str]()
    for _ in grammar:  # each pass finds a further one, unless all are found
        reached |= {symbol for rule in grammar.rules if rule.left in reached for symbol in rule.right}
        derives |= {
            rule.left
            for rule in grammar.rules
            if all(one in derives or one not in grammar.of_left for one in rule.right)
        }
    for left in grammar:
        if every and left not in reached:
            raise ValueError(f"{left} is not reached from {grammar.start}: remove its rules or choose another start")
        if left not in derives:
            raise ValueError(f"{left} derives no text, because its rules never end: add a rule with terminals alone")


def _units_first(grammar: Grammar) -> dict[str, int]:
    """A place for each nonterminal, after those that it derives alone (as S derives T in ``S -> T``)."""
    alone = {
        left: {grammar.rules[code].right[0] for code in grammar.of_left[left] if len(grammar.rules[code].right) == 1}
        for left in grammar
    }
    try:
        order = list(graphlib.TopologicalSorter(alone).static_order())
    except graphlib.CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        raise ValueError(
            f"{cycle} is a cycle, so a text has infinitely many derivations: remove one of its rules"
        ) from None
    return {symbol: place for place, symbol in enumerate(order)}
