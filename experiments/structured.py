"""Do deterministic autoencoders help for structured data?

    python -m ppl_vae.experiments.structured --scale reduced --jobs 2

The data are arithmetic expressions, drawn from a grammar, and molecules as SMILES texts. The same expressions stand in
two data sets: as the production rules of their derivations, with the softmax over the rules that the grammar allows
(Kusner et al., 2017), and as characters. The molecules are characters, and are left out without a copy of ZINC.

A VAE, a plain autoencoder, two RAEs and the Grammar VAE as it was released have the same networks, the same optimizer
and the same number of steps. Each is judged by the share of held-out texts that greedy decoding gives back without an
error, and by the share of valid texts among 1,000 draws, with codes from the prior and from a mixture of 10 that is
fitted to the codes of the training data. An expression is valid if the grammar derives it. A molecule is valid if RDKit
reads it. Where RDKit is not installed, only the syntax is checked, and the column ``by_rdkit`` is 0. The published
shares are of the texts that a Bayesian optimisation proposed, and of larger networks and data. They stand in a column
of their own.

The last weights are judged. The best epoch would be chosen by a bound with the full weight of the KL, which is not what
the released Grammar VAE is trained on. The RAEs have its weight of log p(z), so that RAE differs from it by the noise
alone. With the full weight, the codes of RAE-L2 collapsed in a first trial.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer
from torch import Tensor, nn

from ..assembly import pair
from ..catalogue import VARIANTS
from ..coding import decode, encode, reconstruct, sample
from ..data.characters import Characters
from ..data.data_set import Data
from ..data.public import TEXTS, found_at
from ..data.smiles import has_rdkit, has_smiles_syntax, is_molecule
from ..drawing import COLOURS, panels, tidy
from ..estimate import Number, share_over_data
from ..evaluation.features import Features
from ..guides import ConstantVariance, sequence_encoder
from ..models import Categorical, Grammar, GrammarRules, KLWeight, Scale as Units, constant, sequence_decoder
from ..streams import chosen
from ..studies import Cell, Claim, Contestant, Judging, Result
from ..studies.evidence import Evidence
from ..studies.experiment import SCALES, Experiment, Scale, cells_of, main
from ..studies.table import Study
from ..variant import Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRAMMAR = "S -> S + T | S * T | S / T | T ; T -> ( S ) | sin ( S ) | exp ( S ) | x | 1 | 2 | 3"
MOST_RULES = 15
LETTERS = "()*+/123einpsx"  # the characters of the expressions
SMILES = "#()+-/1234567=@BCFHINOPS[\\]clnors"  # the characters of ZINC
LONGEST = 36  # characters: longer molecules are left out, so that a fit takes less than a minute
RULES, EXPRESSIONS, MOLECULES = "expressions, rules", "expressions, characters", "zinc, characters"
Z_DIM = {RULES: 25, EXPRESSIONS: 25, MOLECULES: 56}  # as in the code of the Grammar VAE
WIDTH = 64
DRAWS = 1000
NOISE = 0.01
TAU = 0.31  # the standard deviation of a prior on the decoder's weights that has the size of the RAE paper's penalty

SCALES_HERE = {
    "smoke": SCALES["smoke"],
    "reduced": Scale("reduced", 3000, 600, 15, 64, 5, 56, Judging(10, 10), training={"lr": 5e-3}),
    "full": Scale("full", 20_000, 5000, 50, 64, 5, 56, Judging(10, 100), training={"lr": 5e-3}),
}

# Shares of valid texts that a search proposed, by Ghosh et al., 2020 (GrammarRAE, five trials), and after a semicolon
# by Kusner et al., 2017, with its valid draws from the prior and its exact reconstructions.
PUBLISHED = {
    RULES: {"RAE-L2": "GRAE: valid 1.00 ± .00", "VAE as released": "GVAE: valid .99 ± .01; .99 ± .01"},
    EXPRESSIONS: {"VAE as released": "CVAE: valid .82 ± .07; .86 ± .06"},
    MOLECULES: {
        "VAE as released": "CVAE: valid .16 ± .04; .17 ± .05, prior .007, exact .446",
        "RAE-L2": "GRAE, by rules: valid .72 ± .09 (GVAE .28 ± .04; .31 ± .07, prior .072, exact .537)",
    },
}
COLUMNS = {
    "exact": "exact",
    "right_codes": "right codes",
    "valid_prior": "valid, N(0, I)",
    "valid_ex_post": "valid, mixture",
    "novel_prior": "novel, N(0, I)",
    "novel_ex_post": "novel, mixture",
    "unfinished_prior": "unfin., N(0, I)",
    "unfinished_ex_post": "unfin., mixture",
}
SOURCES = {"prior": "with codes from N(0, I)", "ex_post": "with codes from the mixture"}
RAES = ("RAE", "RAE-L2")
VAES = ("VAE", "VAE as released")
HALF_A_DRAW = 0.5  # a smaller difference between two counts is none


# The contestants.


def built(x_shape: tuple[int, ...], z_dim: int, *, likelihood: nn.Module, variant: str = "", **parts: Any) -> Variant:
    """A variant of the catalogue, or a pair of parts, with a recurrent decoder and the likelihood of the data."""
    outputs: Any = likelihood.outputs
    networks: dict[str, Any] = {
        "likelihood": likelihood,
        "encoder": sequence_encoder(outputs, x_shape[0], WIDTH),
        "decoder": sequence_decoder(z_dim, x_shape[0], outputs, WIDTH),
    }
    build = VARIANTS[variant] if variant else pair
    return build(x_shape, z_dim, **networks, **parts)


def as_released(x_shape: tuple[int, ...], z_dim: int, *, likelihood: nn.Module) -> Variant:
    """The Grammar VAE as released: the noise of q(z | x) is 0.01, and its KL is averaged over the latents, not summed.

    The released guide learns a scale, which its KL takes for the standard deviation. The noise is a hundredth of it, so
    the scale hardly acts on the reconstruction, and the KL sets it to 1. Here the noise is 0.01 itself. The KL of both
    then moves the means and the decoder in the same way.
    """
    guide, weight = partial(ConstantVariance, scale=NOISE), KLWeight(constant(1 / z_dim))
    return built(x_shape, z_dim, likelihood=likelihood, guide=guide, kl_weight=weight)


def regularised(x_shape: tuple[int, ...], z_dim: int, **options: Any) -> Variant:
    """An RAE of the catalogue, with the weight of log p(z) that the released Grammar VAE has."""
    return built(x_shape, z_dim, kl_weight=KLWeight(constant(1 / z_dim)), **options)


def contestants(likelihood: nn.Module) -> dict[str, Contestant]:
    """All contestants with the likelihood of a data set."""
    own = {"likelihood": likelihood}
    return {
        "VAE": Contestant(built, own, extra=numbers),
        "VAE as released": Contestant(as_released, own, extra=numbers),
        "AE": Contestant(built, {**own, "variant": "ae"}, extra=numbers),
        "RAE": Contestant(regularised, {**own, "variant": "rae"}, extra=numbers),
        "RAE-L2": Contestant(regularised, {**own, "variant": "rae_l2", "tau": TAU}, extra=numbers),
    }


# The data.


def sets(scale: Scale, root: Path | None) -> list[Data]:
    """The expressions as rules and as characters, and the molecules if a copy is at hand."""
    found = expressions(scale)
    if scale.name != "smoke":
        found += molecules(scale, root)
    return found


def expressions(scale: Scale) -> list[Data]:
    """The same expressions in two codings. They are distinct, drawn by ``Grammar.sample``."""
    grammar = Grammar(GRAMMAR)
    derivations = grammar.sample(scale.rows + scale.test_rows, MOST_RULES, distinct=True)
    texts = [grammar.derive(derivation) or "" for derivation in derivations]
    characters = Characters(LETTERS, max(map(len, texts)))
    codings = {RULES: grammar.codes(derivations, MOST_RULES), EXPRESSIONS: characters.codes(texts)}
    return [_data(name, codes, scale.test_rows) for name, codes in codings.items()]


def molecules(scale: Scale, root: Path | None) -> list[Data]:
    """Molecules of at most ``LONGEST`` characters, drawn at random, or an empty list without a copy of ZINC."""
    path = found_at(TEXTS, root)
    if path is None:
        typer.echo(f"no copy of {TEXTS} is at hand (name --data-root or set PPL_VAE_DATA): the molecules are left out")
        return []
    characters = Characters(SMILES, LONGEST)
    every = [text for text in dict.fromkeys(Path(path).read_text().split()) if characters.fits(text)]
    rows = chosen(len(every), scale.rows + scale.test_rows, 0).tolist()
    return [_data(MOLECULES, characters.codes(every[row] for row in rows), min(scale.test_rows, len(rows) // 5))]


def _data(name: str, codes: Tensor, test_rows: int) -> Data:
    return Data(name, codes[test_rows:], codes[:test_rows], None, None, Units(tuple(codes.shape[1:])))


def coding_of(data: Data) -> Grammar | Characters:
    """What turns the codes of a data set into texts."""
    if data.name == RULES:
        return Grammar(GRAMMAR)
    return Characters(LETTERS if data.name == EXPRESSIONS else SMILES, data.x_shape[0])


def texts_of(coding: Grammar | Characters, x: Tensor) -> list[str | None]:
    """The texts of codes x [rows, length]. An unfinished derivation is None."""
    to_text = coding.derive if isinstance(coding, Grammar) else coding.text
    return [to_text(row) for row in x.tolist()]


def cells(scale: Scale, data: Data) -> list[Cell]:
    """Every contestant, with three seeds on molecules, which take longer."""
    coding = coding_of(data)
    likelihood = GrammarRules(GRAMMAR) if isinstance(coding, Grammar) else Categorical(coding.levels)
    seeds = min(3, scale.seeds) if data.name == MOLECULES else scale.seeds
    every = contestants(likelihood)
    return cells_of(every, replace(scale, seeds=seeds), data, z_dim=Z_DIM[data.name], validation=None)


# The numbers.


def numbers(result: Result, features: Features) -> Mapping[str, Number]:
    """What the fit does with held-out texts and with draws.

    * ``exact`` is the share of held-out texts that greedy decoding of the mean code gives back, and ``right_codes`` the
      mean share of their codes.
    * ``valid_*`` is the share of valid texts among draws of p(x | z), with codes from ``prior`` or the mixture,
      ``ex_post``.
    * ``novel_*`` is the share of texts that do not stand among the training data, among the valid ones.
    * ``unfinished_*`` is the share of derivations that are unfinished. Characters have none.
    * ``by_rdkit`` is 1 if RDKit judged the molecules, and 0 if their syntax was checked.
    """
    variant, data, coding = result.variant, result.data, coding_of(result.data)
    is_right = (reconstruct(variant, data) == data.test).double()
    found = {"exact": share_over_data(is_right.amin(1)), "right_codes": share_over_data(is_right.mean(1))}
    known, is_text = {*texts_of(coding, data.resident)}, validity_of(data.name)
    for source, prior in {"prior": None, "ex_post": result.mixture}.items():
        texts = texts_of(coding, sample(variant, DRAWS, prior=prior))
        is_valid = [text is not None and is_text(text) for text in texts]
        valid = [text for text, holds in zip(texts, is_valid, strict=True) if holds]
        found[f"valid_{source}"] = _share(is_valid)
        found[f"novel_{source}"] = _share([text not in known for text in valid], "none is valid")
        unfinished = [text is None for text in texts] if isinstance(coding, Grammar) else []
        found[f"unfinished_{source}"] = _share(unfinished, "characters")
    if data.name == MOLECULES:
        found["by_rdkit"] = Number(float(has_rdkit()))
    return found


def validity_of(name: str) -> Callable[[str], bool]:
    """Whether a text of a data set is valid, as a function of the text."""
    if name == MOLECULES:
        return is_molecule if has_rdkit() else has_smiles_syntax
    return Grammar(GRAMMAR).is_valid


def _share(values: list[bool], reason: str = "") -> Number:
    """The share of values that are True, with its binomial error, or the reason why there are none."""
    return share_over_data(torch.tensor(values).double()) if values else Number(None, reason=reason)


def interpolated(variant: Variant, data: Data, one: int, other: int, steps: int = 5) -> list[str | None]:
    """Texts between two held-out texts: greedy decoding of codes on the line between their mean codes, both included.

    Args:
        variant: A trained pair.
        data: Its data.
        one, other: The rows of the two texts.
        steps: The number of codes.
    """
    ends = encode(variant, data.test[[one, other]])
    codes = torch.stack([ends[0].lerp(ends[1], share / (steps - 1)) for share in range(steps)])
    return texts_of(coding_of(data), decode(variant, codes))


def interpolations(study: Study) -> list[str]:
    """How molecules were judged, and texts between two held-out ones, by contestant, with the first seed."""
    judge = "RDKit" if has_rdkit() else "their syntax alone"
    lines = [f"Molecules are judged by {judge}.", "Texts between two held-out ones:"]
    for result in study.results(seed=0):
        if isinstance(result, Result):
            ends = texts_of(coding_of(result.data), result.data.test[:2])
            between = interpolated(result.variant, result.data, 0, 1)
            lines.append(f"{result.data.name}, {result.name}, {ends[0]} to {ends[1]}: {'   '.join(map(str, between))}")
    return lines


# The claims.


def claims(evidence: Evidence) -> list[Claim]:
    """The claims on every data set. A claim about a contestant that is missing is left out."""
    found = [*of_masks(evidence)]
    for data in evidence.sets():
        found += [*of_autoencoders(evidence, data), *of_noise(evidence, data)]
    return [claim for claim in found if claim.differences]


def of_autoencoders(evidence: Evidence, data: str) -> Iterator[Claim]:
    """RAE.8: RAEs with the mixture beside VAEs, with codes from the prior and from the mixture."""
    for rae, vae, (source, text) in product(RAES, VAES, SOURCES.items()):
        words = f"draws of {rae} with codes from the mixture are valid more often than those of {vae} {text}"
        yield evidence.claim("RAE.8", words, data, (rae, "valid_ex_post"), (vae, f"valid_{source}"))


def of_masks(evidence: Evidence) -> Iterator[Claim]:
    """GR.1, .3: rules beside characters, and invalid draws beside unfinished derivations."""
    for name, (source, text) in product(evidence.contestants(RULES), SOURCES.items()):
        sides = {data: evidence.values(data, name, f"valid_{source}") for data in (RULES, EXPRESSIONS)}
        differences = {seed: share - sides[EXPRESSIONS][seed] for seed, share in sides[RULES].items()}
        errors = [evidence.error(data, name, f"valid_{source}") or 0.0 for data in (RULES, EXPRESSIONS)]
        words = f"draws of {name} {text} are valid more often by rules than by characters"
        yield Claim("GR.1", words, differences, math.hypot(*errors))
    for name, (source, text) in product(evidence.contestants(RULES), SOURCES.items()):
        valid, unfinished = (evidence.values(RULES, name, f"{what}_{source}") for what in ("valid", "unfinished"))
        differences = {seed: float(round(DRAWS * (1 - share - unfinished[seed]))) for seed, share in valid.items()}
        words = f"{RULES}: as many draws of {name} {text} are invalid as are unfinished"
        yield Claim("GR.3", words, differences, unit=f"of {DRAWS} draws", margin=HALF_A_DRAW)


def of_noise(evidence: Evidence, data: str) -> Iterator[Claim]:
    """GR.4: what noise and a summed KL do to reconstructions and to draws from the prior."""
    less, more = VAES
    words = f"{more} gives back more texts than VAE"
    yield evidence.claim("GR.4", words, data, (more, "exact"), (less, "exact"))
    words = f"draws of VAE from the prior are valid more often than those of {more}"
    yield evidence.claim("GR.4", words, data, (less, "valid_prior"), (more, "valid_prior"))


# The picture.


def figure(evidence: Evidence) -> "Figure":
    """Reconstructions and draws of every contestant, one panel per data set; a dot is a seed."""
    every = evidence.sets()
    drawing, axes_of = panels(len(every), len(every), 4.2, 2.6, sharex=True)
    shown = {name: COLUMNS[name] for name in ("exact", "valid_prior", "valid_ex_post")}
    for axes, data in zip(axes_of, every, strict=True):
        names = evidence.contestants(data)
        tidy(axes, data)
        for ink, (column, title) in zip(COLOURS, shown.items(), strict=False):
            values = [evidence.values(data, name, column).values() for name in names]
            dots = [(value, place) for place, seeds in enumerate(values) for value in seeds]
            axes.plot([value for value, _ in dots], [place for _, place in dots], "o", ms=3, color=ink, label=title)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("share of held-out texts, or of draws", fontsize=8)
    axes_of[-1].legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return drawing


EXPERIMENT = Experiment(
    name="structured",
    question="Do deterministic autoencoders help for structured data?",
    sets=sets,
    cells=cells,
    claims=claims,
    columns=COLUMNS,
    figure=figure,
    published=PUBLISHED,
    scales=SCALES_HERE,
    texts=interpolations,
)

if __name__ == "__main__":
    main(__spec__.name)
