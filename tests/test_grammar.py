"""Grammars and sequences of production rules, beside a list of all derivations up to some number of rules."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_vae import check, fit, load, pair, reconstruct, sample, save
from ppl_vae.models import Grammar, GrammarRules
from ppl_vae.models.derivations import Derivation, Tables
from ppl_vae.models.likelihoods import is_nominal
from ppl_vae.variant import evaluating

EXPRESSIONS = "S -> S + T | S * T | S / T | T ; T -> ( S ) | sin ( S ) | exp ( S ) | x | 1 | 2 | 3"
LISTS = "L -> [ ] | [ I ] ; I -> I , V | V ; V -> L | 'A'"
AMBIGUOUS = "E -> E + E | E E | a | b"
MIDDLE = "S -> a S b S c | T d | d ; T -> x T | x"
GRAMMARS = {  # a text, a start symbol, and a number of rules that gives hundreds of sequences
    "expressions": (EXPRESSIONS, None, 4),
    "expressions from T": (EXPRESSIONS, "T", 4),
    "lists": (LISTS, None, 9),
    "lists from I": (LISTS, "I", 8),
    "ambiguous": (AMBIGUOUS, None, 5),
    "two inside": (MIDDLE, None, 6),
}
every_grammar = pytest.mark.parametrize(("text", "start", "length"), GRAMMARS.values(), ids=GRAMMARS)


def walk(grammar: Grammar, length: int) -> Iterator[tuple[tuple[int, ...], str | None]]:
    """All sequences of ``length`` codes with their texts, None where one is unfinished. The stack is a list of symbols.

    It is the definition of a left-most derivation, written without the tables and the chart of the library.
    """

    def go(codes: tuple[int, ...], symbols: list[str]) -> Iterator[tuple[tuple[int, ...], str | None]]:
        places = [place for place, symbol in enumerate(symbols) if symbol in grammar.nonterminals]
        if len(codes) == length:
            yield codes, None if places else "".join(symbols)
        elif not places:
            yield from go((*codes, len(grammar.rules)), symbols)
        else:
            for code, (left, right) in enumerate(grammar.rules):
                if left == symbols[places[0]]:
                    yield from go((*codes, code), [*symbols[: places[0]], *right, *symbols[places[0] + 1 :]])

    yield from go((), [grammar.start])


def finished(grammar: Grammar, length: int) -> dict[tuple[int, ...], str]:
    """The texts of all derivations of at most ``length`` rules, without padding."""
    found = {codes: text for codes, text in walk(grammar, length) if text is not None}
    return {tuple(code for code in codes if code != grammar.padding): text for codes, text in found.items()}


def law_of(grammar: Grammar, length: int, seed: int = 0) -> Derivation:
    """The distribution with random logits [length, rules]."""
    logits = torch.randn(length, len(grammar.rules) + 1, generator=torch.Generator().manual_seed(seed))
    return Derivation(2 * logits.double(), Tables.of(grammar))


# A grammar in Python.


@every_grammar
def test_every_derivation_is_parsed_from_its_text(text: str, start: str | None, length: int) -> None:
    """A text with several derivations gives the first of them."""
    grammar = Grammar(text, start)
    every = finished(grammar, length + 1)
    first: dict[str, tuple[int, ...]] = {}
    for codes, made in sorted(every.items()):
        assert grammar.derive(codes) == made
        first.setdefault(made, codes)

    assert len(every) > 20
    assert {made: grammar.parse(made) for made in first} == first
    assert (len(first) < len(every)) == (text == AMBIGUOUS)


@every_grammar
def test_texts_are_valid_if_and_only_if_they_are_derived(text: str, start: str | None, length: int) -> None:
    """All short texts over the letters of the grammar are tried. Each rule of two adds a letter to its text."""
    grammar = Grammar(text, start)
    terminals = {one for rule in grammar.rules for one in rule.right if one not in grammar.nonterminals}
    letters = sorted({letter for terminal in terminals for letter in terminal})
    longest = 3 if len(letters) > 6 else 4
    derived = {made for made in finished(grammar, 2 * longest).values() if len(made) <= longest}

    texts = ["".join(one) for size in range(longest + 1) for one in itertools.product(letters, repeat=size)]
    assert {one for one in texts if grammar.is_valid(one)} == derived != set()
    assert {one for one in texts if grammar.parse(one) is not None} == derived


@pytest.mark.parametrize("text", ["", "y", "x+", "x+y", "x +1", "sin", "sin(x", "(x))", "X", "x+1\n", "s", "∞"])
def test_other_texts_and_letters_are_not_of_the_grammar(text: str) -> None:
    grammar = Grammar(EXPRESSIONS)

    assert grammar.parse(text) is None
    assert not grammar.is_valid(text)


def test_a_long_left_recursion_is_parsed_without_recursion_in_python() -> None:
    grammar = Grammar(EXPRESSIONS)
    codes = (0,) * 2000 + (3,) + (7,) * 2001

    assert grammar.derive(codes) == "+".join("x" * 2001)
    assert grammar.is_valid("+".join("x" * 2001))
    assert grammar.parse("+".join("x" * 301)) == (0,) * 300 + (3,) + (7,) * 301


def test_another_start_symbol_derives_other_texts() -> None:
    sums, terms = Grammar(EXPRESSIONS), Grammar(EXPRESSIONS, "T")

    assert sums.is_valid("x+1")
    assert not terms.is_valid("x+1")
    assert terms.parse("(x+1)") == (4, 0, 3, 7, 8)
    assert sums.parse("(x+1)") == (3, 4, 0, 3, 7, 8)


def test_quotes_make_terminals() -> None:
    grammar = Grammar("S -> 'C' S\nS -> '|' | ';' | 'C'\n\n")

    assert [rule.right for rule in grammar.rules] == [("C", "S"), ("|",), (";",), ("C",)]
    assert [grammar.parse(text) for text in ("CC|", ";", "CC", "S")] == [(0, 0, 1), (2,), (0, 3), None]


def test_an_unfinished_derivation_has_no_text_and_a_wrong_code_is_named() -> None:
    grammar = Grammar(EXPRESSIONS)

    assert grammar.derive(torch.tensor([0.0, 3.0, 7.0])) is None
    assert grammar.derive([3, 7, 11, 11]) == "x"
    for codes, message in {
        (7,): "code 7 at place 0 does not fit: wanted a rule for S",
        (3, 11): "code 11 at place 1 does not fit: wanted a rule for T",
        (3, 7, 3): "code 3 at place 2 does not fit: wanted padding",
        (3, 7, 12): "code 12 at place 2",
        (3, -1): "code -1 at place 1",
    }.items():
        with pytest.raises(ValueError, match=message):
            grammar.derive(codes)


def test_codes_are_padded_and_too_long_ones_are_refused() -> None:
    grammar = Grammar(EXPRESSIONS)
    codes = grammar.codes([(3, 7), (0, 3, 7, 8)], 4)

    assert codes.tolist() == [[3, 7, 11, 11], [0, 3, 7, 8]]
    assert codes.dtype == torch.get_default_dtype()
    assert grammar.codes([], 4).shape == (0, 4)
    with pytest.raises(ValueError, match="derivation 1 has 4 rules, more than length=3"):
        grammar.codes([(3, 7), (0, 3, 7, 8)], 3)
    with pytest.raises(ValueError, match="derivation 0 is None"):
        grammar.codes([grammar.parse("y")], 3)


BROKEN = {
    "": "needs a rule",
    "S -> a ; b": "a rule is written",
    "S->a": "a rule is written",
    "S -> a -> b": "a rule is written",
    "S -> a |": "a right side of S is empty",
    "S ->": "a right side of S is empty",
    "S -> U | a": "U in S -> U has no rule",
    "S -> T | a ; T -> U | b ; U -> S | c": "S -> T -> U -> S is a cycle",
    "S -> S | a": "S -> S is a cycle",
    "S -> a ; T -> b": "T is not reached from S",
    "S -> a T | b ; T -> c T": "T derives no text",
    "S -> a S": "S derives no text",
    "S -> a | b | a": "S -> a occurs twice",
    "S -> a 'S' | b": "'S' is a terminal and has the name of a left side",
}


@pytest.mark.parametrize(("text", "message"), BROKEN.items(), ids=BROKEN)
def test_a_grammar_with_no_or_infinitely_many_derivations_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        Grammar(text)

    assert "\n" not in str(raised.value)


def test_an_unknown_start_symbol_is_refused() -> None:
    with pytest.raises(ValueError, match="start must be one of the left sides S, T, got 'U'"):
        Grammar(EXPRESSIONS, "U")


def test_from_a_start_symbol_that_is_given_some_rules_may_be_out_of_reach() -> None:
    grammar = Grammar("S -> T b | b ; T -> a T | a", "T")

    assert grammar.parse("aa") == (2, 3)
    assert grammar.parse("ab") is None
    assert {code for derivation in grammar.sample(50, 6) for code in derivation} == {2, 3}


# Random derivations.


@every_grammar
def test_draws_have_the_probabilities_of_uniform_rules_given_their_length(
    text: str, start: str | None, length: int
) -> None:
    grammar, count = Grammar(text, start), 4000
    uniform = Derivation(torch.zeros(length, len(grammar.rules) + 1).double(), Tables.of(grammar))
    every = finished(grammar, length)
    weights = uniform.log_prob(grammar.codes(every, length)).sum(-1).exp()

    drawn = grammar.sample(count, length, seed=3)

    assert set(drawn) <= every.keys()
    shares = torch.tensor([Counter(drawn)[codes] / count for codes in every]).double()
    expected = weights / weights.sum()
    assert bool(((shares - expected).abs() <= 4 * (expected * (1 - expected) / count).sqrt() + 1 / count).all())
    assert drawn == grammar.sample(count, length, seed=3) != grammar.sample(count, length, seed=4)


def test_distinct_draws_are_distinct_and_exhaust_all_derivations() -> None:
    grammar = Grammar(LISTS)
    every = finished(grammar, 5)

    drawn = grammar.sample(len(every), 5, distinct=True)

    assert len(set(drawn)) == len(drawn)
    assert set(drawn) == every.keys()
    with pytest.raises(ValueError, match=f"gave {len(every)} distinct derivations of at most 5 rules"):
        grammar.sample(len(every) + 1, 5, distinct=True)
    with pytest.raises(ValueError, match="no derivation of this grammar has at most 1 rules"):
        Grammar(EXPRESSIONS).sample(1, 1)


# The likelihood.


@every_grammar
def test_the_probabilities_of_all_sequences_sum_to_one(text: str, start: str | None, length: int) -> None:
    """The finished sequences and the unfinished ones are all. The mass of the unfinished ones is the rest."""
    grammar = Grammar(text, start)
    law, every = law_of(grammar, length), list(walk(grammar, length))
    p = law.log_prob(torch.tensor([codes for codes, _ in every]).double()).sum(-1).exp()
    is_finished = torch.tensor([made is not None for _, made in every])

    assert len(every) > 50
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-10)
    assert float(p[~is_finished].sum()) == pytest.approx(1.0 - float(p[is_finished].sum()), abs=1e-10)
    assert 0.0 < float(p[~is_finished].sum()) < 1.0


@pytest.mark.parametrize("wrong", ["no mask", "the mask of the place before", "a mask without padding"])
def test_with_a_wrong_mask_the_sum_is_not_one(wrong: str) -> None:
    """The test above would notice these masks."""
    grammar = Grammar(EXPRESSIONS)
    law, every = law_of(grammar, 4), torch.tensor([codes for codes, _ in walk(grammar, 4)])
    left, masks = law.tables.left[every], law.tables.masks.clone()
    if wrong == "no mask":
        masks[:] = True
    elif wrong == "a mask without padding":
        masks[-1] = True
    else:
        left = torch.cat([left[:, :1], left[:, :-1]], 1)
    log_p = law.logits.masked_fill(~masks[left], -math.inf).log_softmax(-1)
    total = float(log_p.gather(-1, every.unsqueeze(-1)).sum((1, 2)).exp().sum())

    assert abs(total - 1.0) > 0.1


def test_the_log_density_is_a_product_by_hand() -> None:
    """x+1: the rules 0 and 3 are two of four for S, 7 and 8 are two of seven for T, and padding is certain."""
    grammar = Grammar(EXPRESSIONS)
    law = law_of(grammar, 6)
    weights = law.logits.exp()
    by_hand = [
        weights[0, 0] / weights[0, :4].sum(),
        weights[1, 3] / weights[1, :4].sum(),
        weights[2, 7] / weights[2, 4:11].sum(),
        weights[3, 8] / weights[3, 4:11].sum(),
        *torch.ones(2, dtype=torch.float64),
    ]

    found = law.log_prob(grammar.codes([grammar.parse("x+1")], 6))

    assert torch.allclose(found, torch.stack(by_hand).log(), rtol=0, atol=1e-12)


@every_grammar
def test_draws_are_sequences_with_their_probabilities(text: str, start: str | None, length: int) -> None:
    """The share of draws that are no text is the mass of the unfinished derivations, the only invalid ones."""
    grammar, count = Grammar(text, start), 5000
    law, every = law_of(grammar, length, seed=1), dict(walk(grammar, length))
    p = law.log_prob(torch.tensor(list(every)).double()).sum(-1).exp()
    torch.manual_seed(0)

    drawn = [tuple(row) for row in law.sample((count,)).long().tolist()]

    assert set(drawn) <= every.keys()
    counts = Counter(drawn)
    shares = torch.tensor([counts[codes] / count for codes in every]).double()
    assert bool(((shares - p).abs() <= 4 * (p * (1 - p) / count).sqrt() + 1 / count).all())
    unfinished = float(p[torch.tensor([made is None for made in every.values()])].sum())
    texts = [grammar.derive(codes) for codes in drawn]
    invalid = sum(made is None or not grammar.is_valid(made) for made in texts) / count
    assert abs(invalid - unfinished) < 4 * math.sqrt(unfinished * (1 - unfinished) / count)
    assert invalid == sum(every[codes] is None for codes in drawn) / count


@every_grammar
def test_the_mode_is_greedy(text: str, start: str | None, length: int) -> None:
    """At each place, the most probable code among the sequences that begin with the codes before it."""
    grammar = Grammar(text, start)
    logits = torch.stack([law_of(grammar, length, seed).logits for seed in range(20)])
    every = [codes for codes, _ in walk(grammar, length)]

    modes = Derivation(logits, Tables.of(grammar)).mode.long().tolist()

    for seed, mode in enumerate(modes):
        for place in range(length):
            following = {codes[place] for codes in every if list(codes[:place]) == mode[:place]}
            assert mode[place] == max(following, key=lambda code: float(logits[seed, place, code]))


def test_the_support_is_the_set_of_derivations() -> None:
    """All sequences of four codes: one is inside up to the place where no derivation goes on with its code."""
    grammar = Grammar("S -> S T | ( S ) | T ; T -> a", None)
    support = law_of(grammar, 4).support
    beginnings = {codes[:place] for codes, _ in walk(grammar, 4) for place in range(1, 5)}
    every = list(itertools.product(range(5), repeat=4))

    found = support.check(torch.tensor(every).double().reshape(25, 25, 4)).reshape(-1, 4)

    assert found.tolist() == [[codes[: place + 1] in beginnings for place in range(4)] for codes in every]
    outside = torch.tensor([[2.5, 3, 4, 4], [2, math.nan, 4, 4], [2, 3, 5, 4], [-1, 3, 4, 4], [2, 3, 4, math.inf]])
    assert support.check(outside).sum(-1).tolist() == [0, 1, 2, 0, 3]


def test_many_draws_are_scored_as_each_alone() -> None:
    grammar = Grammar(LISTS)
    logits = torch.randn(3, 1, 6, len(grammar.rules) + 1)
    x = grammar.codes(grammar.sample(5, 6), 6)
    tables = Tables.of(grammar)

    found = Derivation(logits, tables).log_prob(x)

    alone = [[Derivation(logits[i, 0], tables).log_prob(row) for row in x] for i in range(3)]
    assert torch.equal(found, torch.stack([torch.stack(rows) for rows in alone]))


def test_gradients_reach_the_allowed_rules_alone() -> None:
    grammar = Grammar(EXPRESSIONS)
    logits = torch.randn(4, len(grammar.rules) + 1, requires_grad=True)
    Derivation(logits, Tables.of(grammar)).log_prob(grammar.codes([(3, 7)], 4)[0]).sum().backward()

    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [
        [True] * 4 + [False] * 8,
        [False] * 4 + [True] * 7 + [False],
        *[[False] * 12] * 2,
    ]


# A pair.


def codes_of(count: int) -> Tensor:
    grammar = Grammar(EXPRESSIONS)
    return grammar.codes(grammar.sample(count, 8, distinct=True), 8)


def test_a_pair_of_rules_fulfils_the_contracts() -> None:
    assert check(pair((8,), 2, likelihood=GrammarRules(EXPRESSIONS), width=8), codes_of(20)) == []


def test_a_pair_is_trained_from_a_graph_drawn_from_and_kept(tmp_path: Path) -> None:
    x, grammar = codes_of(120), Grammar(EXPRESSIONS)
    variant = pair((8,), 2, likelihood=GrammarRules(EXPRESSIONS), width=16)

    trained = fit(variant, x, epochs=4, batch_size=20, progress=False)
    drawn = sample(trained.variant, 200)
    again = load(save(tmp_path / "kept", trained.variant))

    assert trained.settings["backend"] == "fx"
    with evaluating(variant):
        law: Any = variant.noise
    assert is_nominal(law)
    assert bool(law.support.check(drawn).all())
    assert any(grammar.derive(row) is not None for row in drawn)
    assert [repr(grammar.derive(row)) for row in reconstruct(again, x)] == [
        repr(grammar.derive(row)) for row in reconstruct(trained.variant, x)
    ]


def test_codes_outside_the_grammar_are_refused_with_the_remedy() -> None:
    variant = pair((8,), 2, likelihood=GrammarRules(EXPRESSIONS, start="T"), width=8)

    with pytest.raises(ValueError, match=r"outside the support of GrammarRules.*Grammar\.codes"):
        fit(variant, codes_of(20), epochs=1, progress=False)
