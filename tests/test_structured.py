"""Texts as data: their coding, the syntax of molecules, networks for sequences, and the experiment on them."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_vae import fit, pair, reconstruct
from ppl_vae.data.characters import Characters
from ppl_vae.data.data_set import Data
from ppl_vae.data.smiles import has_rdkit, has_smiles_syntax, is_molecule
from ppl_vae.experiments import structured
from ppl_vae.guides import sequence_encoder
from ppl_vae.models import Categorical, Grammar, sequence_decoder
from ppl_vae.studies.evidence import Evidence
from ppl_vae.studies.experiment import _run, verdicts_of
from ppl_vae.studies.work import built

# Characters.


def test_characters_are_coded_and_read_back() -> None:
    coding, texts = Characters("ab(", 4), ["", "a", "b(ab", "((("]
    codes = coding.codes(texts)

    assert codes.tolist() == [[3, 3, 3, 3], [0, 3, 3, 3], [1, 2, 0, 1], [2, 2, 2, 3]]
    assert [coding.text(row) for row in codes] == texts
    assert coding.text([0, 3, 1, 2]) == "a"
    assert (coding.levels, coding.codes([]).shape) == (4, (0, 4))


def test_texts_that_do_not_fit_are_refused() -> None:
    coding = Characters("ab", 2)

    assert [coding.fits(text) for text in ("ab", "aba", "ac")] == [True, False, False]
    with pytest.raises(ValueError, match="'aba' cannot be coded: wanted at most 2 of the characters ab"):
        coding.codes(["a", "aba"])
    for letters in ("", "aba"):
        with pytest.raises(ValueError, match="letters must be different characters"):
            Characters(letters, 2)


# Molecules.

RIGHT = (
    *("C", "CCO", "C=C", "C#N", "c1ccccc1", "C1CC1", "CC(C)(C)C", "CC(=O)Oc1ccccc1C(=O)O", "ClCBr", "[NH4+]", "[O-]"),
    *("C[C@H](N)C(=O)O", "C[C@@]1(O)CC1", "F/C=C/F", "F\\C=C/F", "C%12CCC%12", "C12CC1C2", "C=1CCCCC=1"),
    *("[13CH4]", "[nH]1cccc1", "C(=O)C", "C[S@](=O)C", "c1cc(C)c2[nH]ccc2c1", "C1CC1.C1CC1", "[H]C"),
)
WRONG = (
    *("", "C(", "C)", "C()", "(C)", "CC(C", "C(C))", "((C))", "C((C))", "C1CC", "C11", "1CC1", "C%1CC%1", "=C", "CC="),
    *(
        "C==C",
        "C(=)C",
        "C=(C)C",
        "[C",
        "C]",
        "[]",
        "[Xx]",
        "[[C]]",
        "Cx",
        "C C",
        "C..C",
        ".C",
        "C.",
        "C(C)1CC1",
        "A",
        "rC",
    ),
)
UNKNOWN = ("[Na]C.C", "[Fe++]")  # right, but metals are not among the known atoms


@pytest.mark.parametrize("text", RIGHT)
def test_the_syntax_of_a_molecule_is_right(text: str) -> None:
    assert has_smiles_syntax(text)


@pytest.mark.parametrize("text", [*WRONG, *UNKNOWN])
def test_the_syntax_of_other_texts_is_wrong(text: str) -> None:
    assert not has_smiles_syntax(text)


def test_the_syntax_check_does_not_look_at_valences() -> None:
    assert has_smiles_syntax("FC(F)(F)(F)(F)F")
    assert has_smiles_syntax("c1ccc1c")


def test_rdkit_judges_molecules_or_is_asked_for() -> None:
    """The environment of the tests need not have RDKit. With it, chemistry counts too."""
    if not has_rdkit():
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'ppl_vae\[chem\]'"):
            is_molecule("C")
    else:
        assert [is_molecule(text) for text in ("C", "c1ccccc1", "", "C C", "FC(F)(F)(F)(F)F")] == [1, 1, 0, 0, 0]


# Networks.


def test_the_decoder_of_a_sequence_gives_classes_first_and_each_row_alone() -> None:
    decoder, z = sequence_decoder(3, length=5, outputs=4, width=8), torch.randn(6, 3)

    assert decoder(z).shape == (6, 4, 5)
    assert torch.allclose(decoder(z)[2], decoder(z[2:3])[0], rtol=0, atol=1e-12)


def test_a_place_of_the_decoder_depends_on_the_inputs_before_it_alone() -> None:
    decoder = sequence_decoder(2, length=5, outputs=3, width=4)
    inputs = torch.randn(1, 5, 4, requires_grad=True)
    decoder.inputs = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Unflatten(-1, (5, 4)))

    (gradient,) = torch.autograd.grad(decoder(inputs)[0, :, 2].sum(), inputs)

    assert (gradient[0] != 0).any(-1).tolist() == [True, True, True, False, False]


def test_the_encoder_of_a_sequence_does_not_depend_on_the_numbers_of_the_codes() -> None:
    encoder, x = sequence_encoder(4, length=7, width=8), torch.randint(4, (5, 7)).double()
    order = torch.tensor([2, 0, 3, 1])
    found = encoder(x)
    with torch.no_grad():
        encoder[1].weight.copy_(encoder[1].weight[:, order.argsort()])

    assert found.shape == (5, 8)
    assert torch.allclose(encoder(order.double()[x.long()]), found, rtol=0, atol=1e-12)


def test_networks_of_sequences_are_trained_from_a_graph() -> None:
    x = torch.randint(4, (60, 5)).double()
    networks = {"encoder": sequence_encoder(4, 5, 8), "decoder": sequence_decoder(2, 5, 4, 8)}
    variant = pair((5,), 2, likelihood=Categorical(4), **networks)

    assert fit(variant, x, epochs=4, batch_size=20, progress=False).settings["backend"] == "fx"


# The experiment.


def test_the_expressions_are_the_same_in_both_codings() -> None:
    rules, characters = structured.expressions(structured.SCALES_HERE["smoke"])
    texts = [
        [structured.texts_of(structured.coding_of(data), part) for part in (data.resident, data.test)]
        for data in (rules, characters)
    ]

    assert (rules.name, characters.name) == (structured.RULES, structured.EXPRESSIONS)
    assert texts[0] == texts[1]
    train, test = texts[0]
    assert (len(set(train)), len(set(test)), set(train) & set(test)) == (120, 60, set())
    assert all(text is not None and Grammar(structured.GRAMMAR).is_valid(text) for text in [*train, *test])


def test_a_copy_of_zinc_is_read_and_long_molecules_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"C{'C' * size}O" for size in range(30)]
    (tmp_path / "zinc.txt").write_text("\n".join([*texts, texts[0], "C" * 37, "CX"]))

    (data,) = structured.molecules(structured.SCALES_HERE["smoke"], tmp_path)

    found = structured.texts_of(structured.coding_of(data), torch.cat([data.resident, data.test]))
    assert sorted(map(str, found)) == sorted(texts)
    assert (len(data.resident), len(data.test)) == (24, 6)
    assert structured.molecules(structured.SCALES_HERE["smoke"], tmp_path / "nowhere") == []
    assert "the molecules are left out" in capsys.readouterr().out


def test_an_experiment_on_structured_data_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The smoke scale has every contestant, here with one seed. Its verdicts follow from the rows of its file."""
    scale = replace(structured.SCALES_HERE["smoke"], seeds=1)
    _run(structured.EXPERIMENT, scale, 1, None, tmp_path / "study", tmp_path, quiet=True)
    found = json.loads((tmp_path / "structured.json").read_text())

    assert [row.get("reason") for row in found["rows"] if row.get("reason")] == []
    assert {row["data"] for row in found["rows"]} == {structured.RULES, structured.EXPRESSIONS}
    assert (tmp_path / "structured.png").read_bytes().startswith(b"\x89PNG")
    verdicts = [verdict.verdict for verdict in verdicts_of(tmp_path / "structured.json")]
    assert verdicts == [verdict["verdict"] for verdict in found["verdicts"]] != []
    first = next(text for text in found["texts"] if text.startswith(f"{structured.EXPRESSIONS}, AE, "))
    data = structured.expressions(scale)[1]
    ends = structured.texts_of(structured.coding_of(data), data.test[:2])
    assert f" {ends[0]} to {ends[1]}: " in first
    assert len(found["texts"]) == 2 + 2 * 5
    for row in found["rows"]:
        if row["data"] == structured.RULES:
            assert row["valid_prior"] + row["unfinished_prior"] == pytest.approx(1.0, abs=1e-12)
    assert "1 seed" in capsys.readouterr().out


def cell_of(data: Data, name: str) -> Any:
    cells = structured.cells(structured.SCALES_HERE["smoke"], data)
    return next(cell for cell in cells if cell.name == name)


def test_all_contestants_share_networks_and_steps() -> None:
    data = structured.expressions(structured.SCALES_HERE["smoke"])[0]
    cells = [cell for cell in structured.cells(structured.SCALES_HERE["smoke"], data) if cell.seed == 1]
    states = [built(cell).model.decoder.state_dict() for cell in cells]

    assert len({json.dumps(dict(cell.training)) for cell in cells}) == 1
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in states[0])


def test_the_released_grammar_vae_has_noise_of_a_hundredth_and_an_averaged_kl() -> None:
    data = structured.expressions(structured.SCALES_HERE["smoke"])[0]
    variant = built(cell_of(data, "VAE as released"))

    posterior: Any = variant.guide.posterior(data.test)
    assert bool((posterior.base_dist.scale == structured.NOISE).all())
    weights = {name: built(cell_of(data, name)).kl_weight for name in ("VAE as released", "RAE", "RAE-L2", "VAE", "AE")}
    averaged = 1 / variant.z_dim
    assert weights == {"VAE as released": averaged, "RAE": averaged, "RAE-L2": averaged, "VAE": 1.0, "AE": 0.0}


def test_an_interpolation_begins_and_ends_with_the_reconstructions() -> None:
    data = structured.expressions(structured.SCALES_HERE["smoke"])[1]
    variant = built(cell_of(data, "AE"))
    texts = structured.interpolated(variant, data, 2, 5, steps=4)

    ends = structured.texts_of(structured.coding_of(data), reconstruct(variant, data.test[[2, 5]]))
    assert (len(texts), [texts[0], texts[-1]]) == (4, ends)


def row(data: str, name: str, seed: int, **numbers: float) -> dict[str, Any]:
    return {"data": data, "variant": name, "seed": seed, **numbers}


def test_claims_follow_from_rows() -> None:
    """Two seeds of a VAE, the released one and RAE, by rules and by characters, with shares of 1,000 draws."""
    shares = {"VAE": (0.9, 0.1), "VAE as released": (0.8, 0.6), "RAE": (0.7, 0.5)}
    rows = [
        row(
            *(data, name, seed),
            exact=exact,
            valid_prior=valid - less - 0.01 * seed,
            valid_ex_post=valid - less,
            unfinished_prior=1 - (valid - less - 0.01 * seed),
            unfinished_ex_post=1 - (valid - less) - 0.002 * seed,
            valid_prior_error=0.03,
        )
        for data, less in {structured.RULES: 0.0, structured.EXPRESSIONS: 0.4}.items()
        for name, (valid, exact) in shares.items()
        for seed in (0, 1)
    ]
    claims = structured.claims(Evidence(rows))
    by_text = {claim.text: claim for claim in claims}

    def found(name: str, *words: str) -> list[float]:
        (claim,) = [claim for claim in claims if claim.name == name and all(one in claim.text for one in words)]
        return [round(value, 12) for value in claim.differences.values()]

    prior, mixture = structured.SOURCES.values()
    assert len(by_text) == len(claims)
    assert found("GR.1", "draws of RAE", prior) == [0.4, 0.4]
    assert found("GR.3", "draws of RAE", prior) == [0.0, 0.0]
    assert found("GR.3", "draws of RAE", mixture) == [0.0, 2.0]
    assert found("GR.4", structured.RULES, "gives back") == [0.5, 0.5]
    assert found("GR.4", structured.RULES, "from the prior") == [0.1, 0.1]
    assert found("RAE.8", structured.RULES, f"those of VAE {prior}") == [-0.2, -0.19]
    assert found("RAE.8", structured.RULES, f"those of VAE as released {mixture}") == [-0.1, -0.1]
    error = next(claim for claim in claims if claim.name == "GR.1").error_over_data
    assert error is not None
    assert math.isclose(error, math.hypot(0.03, 0.03))
