"""A checkpoint gives back what was saved, bit by bit, or says why not; and nothing in it is ever executed."""

import ast
import copy
import json
import os
import pickle
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from covering import covering
from pyro.infer import Trace_ELBO
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ppl_vae
from ppl_vae import VARIANTS, Variant, convert, elbo, guides, load, models, pair, recipes, reconstruct, save, with_prior
from ppl_vae.checkpoint import notes_of
from ppl_vae.elbo import DReG, PathwiseELBO
from ppl_vae.guides import ConstantVariance, FullRank, MeanField, PointMass
from ppl_vae.models import (
    MMD,
    Bernoulli,
    DiscretizedLogistic,
    DiscretizedNormal,
    Gaussian,
    Heteroscedastic,
    JacobianNorm,
    KLWeight,
    Laplace,
    LearnedSigma,
    Masked,
    Mixture,
    OptimalSigma,
    StandardNormal,
    StudentT,
    WeightPrior,
    cyclical,
    linear,
    schedules,
)
from ppl_vae.streams import seeded

FILES = ["variant.json", "variant.safetensors"]
SHAPES = {"vector": (5,), "image": (1, 8, 8)}


def state(variant: Variant) -> dict[str, Tensor]:
    """Every number of a pair, under its name."""
    halves = {"model": variant.model, "guide": variant.guide}
    return {f"{half}.{name}": value for half, module in halves.items() for name, value in module.state_dict().items()}


def moved(variant: Variant) -> Variant:
    """The pair with every parameter and buffer, those of its scale too, moved away from what a builder gives."""
    for value in state(variant).values():
        value += 0.01 * torch.rand_like(value)
    return variant


def assert_equal(one: Variant, other: Variant) -> None:
    mine, theirs = state(one), state(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert theirs[name].dtype == value.dtype, name
        assert torch.equal(theirs[name], value), name


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, Variant]:
    """A checkpoint of a pair with an option of its own."""
    variant = moved(VARIANTS["beta_vae"]((5,), 2, beta=2.5, anneal="linear"))
    return save(tmp_path / "runs" / "kept", variant, {"seed": 7}), variant


# What comes back.


@pytest.mark.parametrize(("name", "shape", "dtype"), covering(VARIANTS, SHAPES, [torch.float32, torch.float64]))
def test_every_variant_comes_back_bit_by_bit(tmp_path: Path, name: str, shape: str, dtype: torch.dtype) -> None:
    x_shape = SHAPES[shape]
    variant = VARIANTS[name](x_shape, 3)
    variant.model.to(dtype)
    variant.guide.to(dtype)
    moved(variant)
    x = torch.rand(4, *x_shape, dtype=dtype)
    loaded = load(save(tmp_path / name, variant))

    assert_equal(loaded, variant)
    assert torch.equal(reconstruct(loaded, x), reconstruct(variant, x))
    assert torch.equal(loaded.model.scale.inverse(x), variant.model.scale.inverse(x))
    assert float(loaded.model.scale.log_jacobian()) != 0.0
    assert loaded.name == name
    assert not any(module.training for half in loaded[:2] for module in half.modules())


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("beta_vae", {"beta": 2.5}),
    ("beta_vae", {"anneal": "linear"}),
    ("beta_vae", {"anneal": "cyclical", "beta": 0.5}),
    ("heteroscedastic_vae", {"stage": 0.1}),
    ("rae_l2", {"tau": 0.3}),
    ("rae_gp", {"kappa": 0.7}),
    ("rae_gp", {"probes": 1}),
    ("wae_mmd", {"weight": 3.0}),
    ("l2_vae", {"tau": 0.3}),
    ("l2_vae", {"layers": ("decoder.0",)}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=[f"{name}-{'-'.join(made)}" for name, made in OPTIONS])
def test_options_that_are_no_tensors_are_built_again(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """The training objective half way is that of the pair that was saved; that of the default options is another."""
    path = save(tmp_path / name, moved(VARIANTS[name]((5,), 2, **options)))
    x = torch.rand(8, 5)

    def objective(variant: Variant) -> float:
        variant.model.train()
        variant.guide.train()
        variant.model.advance(3, 10)
        with seeded(0):
            return variant.loss.loss(variant.model, variant.guide, x, 80)

    original = load(path, into=VARIANTS[name]((5,), 2, **options))
    default = load(path, into=VARIANTS[name]((5,), 2))
    assert objective(load(path)) == objective(original)
    assert objective(default) != objective(original)


def test_a_loaded_pair_can_be_saved_again(kept: tuple[Path, Variant], tmp_path: Path) -> None:
    path, variant = kept
    again = save(tmp_path / "again", load(path), notes_of(path))

    assert_equal(load(again), variant)
    assert notes_of(again) == {"seed": 7}
    assert (again / "variant.json").read_text() == (path / "variant.json").read_text()


def test_neither_saving_nor_loading_moves_a_random_stream(kept: tuple[Path, Variant], tmp_path: Path) -> None:
    path, variant = kept
    before = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002 - the global stream
    load(path)
    load(path, into=copy.deepcopy(variant))
    save(tmp_path / "other", variant)

    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


# Parts of the library.

LIKELIHOODS: dict[str, Callable[[], nn.Module]] = {
    "bernoulli": Bernoulli,
    "student": lambda: StudentT(2.5, floor=-3.0),
    "laplace": lambda: Laplace(0.3),
    "gaussian": lambda: Gaussian(0.7),
    "learned-above-one": lambda: LearnedSigma(5.0, floor=1.0),
    "optimal": lambda: OptimalSigma(momentum=0.5),
    "heteroscedastic": lambda: Heteroscedastic(stage=0.2),
    "normal-masses": lambda: DiscretizedNormal(levels=17),
    "logistic-masses": lambda: DiscretizedLogistic(levels=3, scale=0.2),
}
LIBRARY: dict[str, Callable[[], Variant]] = {
    **{name: lambda part=part: pair((5,), 2, likelihood=part()) for name, part in LIKELIHOODS.items()},
    "catalogue": lambda: VARIANTS["rae_l2"]((5,), 2, tau=0.3, likelihood=StudentT(4.0)),
    "standard-normal": lambda: pair((5,), 2, likelihood=Gaussian(), prior=StandardNormal(2, scale=3.0)),
    "mixture": lambda: pair((5,), 2, likelihood=Gaussian(), prior=Mixture(2, 3)),
    "mixture-ex-post": lambda: with_prior(VARIANTS["sigma_vae"]((5,), 2), Mixture(2, 3)),
    "full-rank": lambda: pair((5,), 3, likelihood=Gaussian(), guide=FullRank),
    "constant-variance": lambda: pair((5,), 2, likelihood=Gaussian(), guide=partial(ConstantVariance, scale=0.3)),
    "curve": lambda: VARIANTS["beta_vae"]((5,), 2, anneal=cyclical(3, 0.2, 2.0)),
    "kl-weight": lambda: pair((5,), 2, likelihood=Gaussian(), kl_weight=KLWeight(linear(0.3))),
    "masked": lambda: pair((5,), 2, likelihood=Gaussian(), guide=PointMass, kl_weight=Masked()),
    "penalties": lambda: pair(
        (5,), 2, likelihood=Gaussian(), penalties=[WeightPrior(0.2, ("decoder.0",)), JacobianNorm(2.0, 3), MMD(7.0)]
    ),
    "estimator": lambda: pair((5,), 2, likelihood=Gaussian(), loss=DReG(4)),
    "estimator-of-pairs": lambda: pair((5,), 2, likelihood=Gaussian(), loss=PathwiseELBO()),
    "estimator-by-name": lambda: pair((5,), 2, likelihood=Gaussian(), loss="renyi:alpha=0.3"),
    "width": lambda: VARIANTS["sigma_vae"]((5,), 2, width=32),
    "width-of-images": lambda: pair((1, 8, 8), 2, likelihood=Gaussian(), width=32),
}


@pytest.mark.parametrize("build", LIBRARY.values(), ids=LIBRARY)
def test_parts_of_the_library_come_back_by_name(tmp_path: Path, build: Callable[[], Variant]) -> None:
    """The numbers, and the training objective half way, are those of the pair that was saved."""
    variant = moved(build())
    loaded = load(save(tmp_path / "ours", variant))
    x = torch.randint(2, (8, *variant.model.x_shape)).double()

    def objective(pair: Variant) -> float:
        for half in (pair.model.train(), pair.guide.train()):
            half.advance(1, 2)
        with seeded(0):
            return float(pair.loss(pair.model, pair.guide)(x, 80).detach())

    def rounded(recipe: Any) -> Any:
        """A scale is the exponential of a logarithm."""
        return json.loads(json.dumps(recipe), parse_float=lambda text: round(float(text), 9))

    assert_equal(loaded, variant)
    assert loaded.name == variant.name
    assert objective(loaded) == objective(variant)
    assert rounded(loaded.model.recipe) == rounded(variant.model.recipe)  # no argument falls back to its default


def test_the_tables_of_recipes_hold_every_part_of_the_library() -> None:
    """Parts that other parts build, a grammar, and the Laplace proposal of a trained pair, apart."""
    apart = {"Grammar", "Half", "LatentVariableModel", "LinearGaussian", "Scale", "Schedule", "Guide", "PerDatumELBO"}
    parts = {name for space in (models, elbo) for name in space.__all__ if isinstance(getattr(space, name), type)}

    assert set(recipes.PARTS) == parts - apart
    assert set(recipes.FAMILIES) == set(guides.__all__) - apart - {"Laplace", "OneHot", "encoder", "sequence_encoder"}
    assert set(recipes.CURVES) == {name for name in models.__all__ if name in vars(schedules) and name.islower()}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"part": "os.system", "arguments": {}}, "unknown part 'os.system'"),
        ({"part": "StudentT", "arguments": {"df": 0.5}}, "df must be finite and above 1"),
        ({"part": "StudentT", "arguments": {"shell": "true"}}, "'shell'"),
        ({"part": "StudentT", "arguments": "all"}, "arguments of a part must be a table or a list, got 'all'"),
        ({"part": ["StudentT"], "arguments": {}}, "unknown part"),
        ({"class": "StudentT"}, r"by one of the keys part, family, curve, got \[\'class\'\]"),
    ],
)
def test_a_part_that_no_table_holds_is_refused(kept: tuple[Path, Variant], option: Any, message: str) -> None:
    path, _ = kept
    config = json.loads((path / FILES[0]).read_text())
    config["recipe"]["options"]["likelihood"] = option
    (path / FILES[0]).write_text(json.dumps(config))

    with pytest.raises(ValueError, match=f"does not build a beta_vae: .*{message}"):
        load(path)


def test_a_checkpoint_of_an_earlier_version_is_read(kept: tuple[Path, Variant]) -> None:
    """Options were plain JSON then, and every part was one's own."""
    path, variant = kept
    config = json.loads((path / FILES[0]).read_text())
    options = {"beta": 2.5, "anneal": "linear"}
    assert config["recipe"] == {"variant": "beta_vae", "x_shape": [5], "z_dim": 2, "options": options, "parts": []}

    config["recipe"] = {**config["recipe"], "parts": ["likelihood"]}
    (path / FILES[0]).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"parts of your own \(likelihood\)"):
        load(path)
    assert_equal(load(path, into=VARIANTS["beta_vae"]((5,), 2, likelihood=Gaussian())), variant)


# Parts of one's own.


class OwnLikelihood(Gaussian):
    """A class of one's own, whatever it derives from."""


class OwnPrior(StandardNormal):
    def __init__(self) -> None:
        super().__init__(2)


class OwnGuide(MeanField):
    pass


class OwnPenalty(MMD):
    pass


OWN: dict[str, tuple[Callable[[], Variant], str]] = {
    "decoder": (lambda: VARIANTS["sigma_vae"]((5,), 2, decoder=nn.Linear(2, 5)), "decoder"),
    "two": (lambda: VARIANTS["sigma_vae"]((5,), 2, prior=OwnPrior(), likelihood=OwnLikelihood()), "prior, likelihood"),
    "one-of-two": (
        lambda: VARIANTS["sigma_vae"]((5,), 2, prior=Mixture(2, 3), likelihood=OwnLikelihood()),
        "likelihood",
    ),
    "guide": (lambda: pair((5,), 2, likelihood=Gaussian(), guide=OwnGuide), "guide"),
    "heads": (
        lambda: pair((5,), 2, likelihood=Gaussian(), guide=partial(PointMass, heads=[nn.Linear(256, 2)])),
        "guide",
    ),
    "penalty": (lambda: pair((5,), 2, likelihood=Gaussian(), penalties=[MMD(), OwnPenalty()]), "penalties"),
    "pyros-loss": (lambda: pair((5,), 2, likelihood=Gaussian(), loss=Trace_ELBO()), "loss"),
    "curve": (lambda: VARIANTS["beta_vae"]((5,), 2, anneal=lambda step, total: 1.0), "anneal"),
    "pair": (lambda: pair((5,), 2, likelihood=OwnLikelihood()), "likelihood"),
    "converted": (lambda: convert(VARIANTS["rae_sn"]((5,), 2)), "all"),  # its decoder was changed after it was built
    "with-prior": (lambda: with_prior(VARIANTS["sigma_vae"]((5,), 2), OwnPrior()), "prior"),
}


@pytest.mark.parametrize(("build", "listed"), OWN.values(), ids=OWN)
def test_parts_of_ones_own_are_asked_for_by_name_and_filled(
    tmp_path: Path, build: Callable[[], Variant], listed: str
) -> None:
    variant = moved(build())
    path = save(tmp_path / "own", variant)

    with pytest.raises(ValueError, match=rf"own was built with parts of your own \(({listed})\): .* pass it as into="):
        load(path)

    into = build()
    assert load(path, into=into) is into
    assert_equal(into, variant)


def test_other_parts_are_refused_by_the_names_of_their_tensors(tmp_path: Path) -> None:
    path = save(tmp_path / "own", VARIANTS["sigma_vae"]((5,), 2, decoder=nn.Linear(2, 5)))

    with pytest.raises(ValueError, match=r"the model: missing \['decoder\.0.*not expected \['decoder\.bias'"):
        load(path, into=VARIANTS["sigma_vae"]((5,), 2))


# What is damaged.


def _without(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name != "model.decoder.0.weight"}


TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "missing": (_without, r"the model: missing \['decoder\.0\.weight'\], not expected \[\]"),
    "extra": (
        lambda found: {**found, "guide.more": torch.ones(2)},
        r"the guide: missing \[\], not expected \['more'\]",
    ),
    "of-neither-half": (lambda found: {**found, "more": torch.ones(2)}, r"neither the model nor the guide: \['more'\]"),
    "other-shape": (
        lambda found: {**found, "guide.heads.0.bias": torch.ones(3)},
        r"the guide: heads\.0\.bias has shape \[3\], wanted \[2\]",
    ),
    "transposed": (
        lambda found: {**found, "model.decoder.0.weight": found["model.decoder.0.weight"].T.contiguous()},
        r"the model: decoder\.0\.weight has shape \[2, 256\], wanted \[256, 2\]",
    ),
    "none": (lambda found: {}, r"the model: missing \["),
}


@pytest.mark.parametrize(("change", "message"), TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize("given", [False, True], ids=["built", "into"])
def test_tensors_that_do_not_match_are_named(
    kept: tuple[Path, Variant], change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, *, given: bool
) -> None:
    path, _ = kept
    save_file(change(load_file(path / FILES[1])), path / FILES[1])
    into = VARIANTS["beta_vae"]((5,), 2)
    before = copy.deepcopy(into)

    with pytest.raises(ValueError, match=message):
        load(path, into=into if given else None)

    assert_equal(into, before)


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


WEIGHTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut-head": lambda content: content[:6],
    "cut-half": lambda content: content[: len(content) // 2],
    "cut-byte": lambda content: content[:-1],
    "noise": lambda content: np.random.default_rng(0).bytes(300),
    "pickle": lambda content: pickle.dumps(Touch(Path("executed"))),
}


@pytest.mark.parametrize("damage", WEIGHTS.values(), ids=WEIGHTS)
def test_damaged_weights_are_refused_unexecuted(
    kept: tuple[Path, Variant], damage: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, _ = kept
    monkeypatch.chdir(tmp_path)
    (path / FILES[1]).write_bytes(damage((path / FILES[1]).read_bytes()))

    with pytest.raises(ValueError, match=r"variant\.safetensors cannot be read: "):
        load(path)

    assert not Path("executed").exists()


def _recipe(**changes: Any) -> Callable[[dict[str, Any]], str]:
    return lambda config: json.dumps({**config, "recipe": {**config["recipe"], **changes}})


CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "cut": (lambda config: json.dumps(config)[:40], "is no checkpoint: wanted a folder with a readable variant.json"),
    "empty": (lambda config: "", "is no checkpoint"),
    "deep": (lambda config: "[" * 100_000, "is no checkpoint"),
    "list": (lambda config: "[1]", "is not of format 1"),
    "other-format": (lambda config: json.dumps({**config, "format": 2}), "is not of format 1.*another version"),
    "no-format": (lambda config: json.dumps({"recipe": config["recipe"]}), "is not of format 1"),
    "recipe-of-another-kind": (lambda config: json.dumps({**config, "recipe": ["beta_vae"]}), r"kept"),
    "unknown-variant": (_recipe(variant="gamma_vae"), "unknown variant 'gamma_vae'"),
    "no-name": (_recipe(variant=["beta_vae"]), "unknown variant"),
    "no-shape": (_recipe(x_shape=None), "does not build a beta_vae"),
    "shape-of-text": (_recipe(x_shape=["a"]), "does not build a beta_vae"),
    "no-codes": (_recipe(z_dim=0), "does not build a beta_vae: x_shape and z_dim must be positive"),
    "unknown-option": (_recipe(options={"gamma": 1}), "does not build a beta_vae: .*'gamma'"),
    "option-out-of-range": (_recipe(options={"beta": -1}), "does not build a beta_vae: a KL weight"),
    "option-of-another-kind": (_recipe(options={"likelihood": "Gaussian"}), "does not build a beta_vae"),
    "other-size": (_recipe(z_dim=3), r"does not fit the model: .*has shape \[2\], wanted \[3\]"),
}


@pytest.mark.parametrize(("damage", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_damaged_recipe_is_refused_with_a_reason(
    kept: tuple[Path, Variant], damage: Callable[[dict[str, Any]], str], message: str
) -> None:
    path, _ = kept
    (path / FILES[0]).write_text(damage(json.loads((path / FILES[0]).read_text())))

    with pytest.raises(ValueError, match=message) as caught:
        load(path)

    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_are_no_checkpoint(kept: tuple[Path, Variant]) -> None:
    path, _ = kept
    (path / FILES[0]).write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ValueError, match="is no checkpoint"):
        load(path)


@pytest.mark.parametrize("missing", FILES)
def test_half_a_checkpoint_is_refused(kept: tuple[Path, Variant], missing: str) -> None:
    path, _ = kept
    (path / missing).unlink()

    with pytest.raises(ValueError, match=missing):
        load(path)


def test_what_is_no_checkpoint_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file", tmp_path / "nowhere"):
        for read in (load, notes_of):
            with pytest.raises(ValueError, match=f"{path} is no checkpoint"):
                read(path)


# What is on the disk.


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_or_file_that_is_no_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    (tmp_path / "notes").write_text("more of it")
    before = files(tmp_path)
    for name in ("thesis", "notes"):
        with pytest.raises(ValueError, match=f"{name} exists and is no checkpoint: it is not replaced"):
            save(tmp_path / name, VARIANTS["sigma_vae"]((5,), 2))

    assert files(tmp_path) == before


def test_a_checkpoint_is_replaced_as_a_whole(kept: tuple[Path, Variant]) -> None:
    path, _ = kept
    (path / "history.csv").write_text("of the earlier run")
    other = moved(VARIANTS["rae"]((5,), 2))
    save(path, other)

    assert sorted(files(path)) == FILES
    assert_equal(load(path), other)
    assert os.listdir(path.parent) == ["kept"]


def _full(*_: Any, **__: Any) -> None:
    raise OSError("no space left on device")


def _cut(tensors: Any, path: Path, **_: Any) -> None:
    path.write_bytes(b"half a file")
    raise OSError("no space left on device")


@pytest.mark.parametrize("earlier", [True, False], ids=["over-an-earlier-one", "for-the-first-time"])
@pytest.mark.parametrize("failure", ["weights", "cut-weights", "recipe", "notes", "replacement"])
def test_a_failed_save_leaves_what_was_there(
    kept: tuple[Path, Variant], monkeypatch: pytest.MonkeyPatch, failure: str, *, earlier: bool
) -> None:
    path, _ = kept
    target, notes, replace = path if earlier else path.with_name("first"), {}, os.replace
    before = files(path.parent)

    def replace_all_but_the_target(source: Any, place: Any, **_: Any) -> None:
        """Once: what an earlier version is kept under can be moved back."""
        if Path(place) == target:
            monkeypatch.setattr(os, "replace", replace)
            _full()
        replace(source, place)

    if failure in ("weights", "cut-weights"):
        monkeypatch.setattr("ppl_vae.checkpoint.save_file", _full if failure == "weights" else _cut)
    elif failure == "recipe":
        monkeypatch.setattr(Path, "write_text", _full)
    elif failure == "notes":
        notes = {"an object": object()}
    else:
        monkeypatch.setattr(os, "replace", replace_all_but_the_target)
    with pytest.raises((OSError, TypeError, ValueError), match=r"no space left|not JSON serializable"):
        save(target, VARIANTS["rae"]((5,), 2), notes)
    monkeypatch.undo()

    assert files(path.parent) == before
    assert os.listdir(path.parent) == ["kept"]


@pytest.mark.parametrize("earlier", [True, False], ids=["over-an-earlier-one", "for-the-first-time"])
def test_what_a_killed_save_left_behind_is_cleared_away(
    kept: tuple[Path, Variant], monkeypatch: pytest.MonkeyPatch, *, earlier: bool
) -> None:
    """A process that is killed cleans nothing up: whatever stands in its way, the next save comes through."""
    path, variant = kept
    target, seen = path if earlier else path.with_name("first"), set[Path]()

    def note(source: Any, place: Any) -> None:
        seen.update({Path(source), Path(place)})
        replace(source, place)

    replace = os.replace
    monkeypatch.setattr(os, "replace", note)
    save(target, variant)
    for left in seen - {target}:
        left.mkdir()
        (left / FILES[0]).write_text("half a file")
    save(target, variant)

    assert len(seen) > 1
    assert_equal(load(target), variant)
    assert sorted(os.listdir(path.parent)) == sorted({"kept", target.name})


def test_a_checkpoint_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(OSError, match="file"):
        save(tmp_path / "file" / "kept", VARIANTS["sigma_vae"]((5,), 2))


def test_a_checkpoint_is_json_and_plain_tensors(kept: tuple[Path, Variant]) -> None:
    path, variant = kept
    content = (path / FILES[1]).read_bytes()
    length = int.from_bytes(content[:8], "little")  # safetensors: the length of a JSON head, the head, the numbers
    head = json.loads(content[8 : 8 + length])
    config = json.loads((path / FILES[0]).read_text(), parse_constant=pytest.fail)

    assert sorted(files(path)) == FILES
    assert head.keys() - {"__metadata__"} == state(variant).keys()
    assert {entry["dtype"] for name, entry in head.items() if name != "__metadata__"} == {"F64"}
    assert len(content) == 8 + length + sum(value.numel() * 8 for value in state(variant).values())
    assert config.keys() == {"format", "recipe", "notes"}


def test_loading_works_where_nothing_can_be_unpickled(
    kept: tuple[Path, Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, variant = kept
    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load", "numpy.load"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("something was unpickled"))

    assert_equal(load(path), variant)


EXECUTES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "eval", "exec", "compile", "__import__"}


def _executed(tree: ast.AST) -> set[str]:
    """Names of a module by which data could become code."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                found |= {alias.name.split(".")[0] for alias in node.names} & EXECUTES
            case ast.ImportFrom():
                found |= {(node.module or "").split(".")[0]} & EXECUTES
            case ast.Name(id=name):
                found |= {name} & EXECUTES
            case ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save" as name):
                found.add(f"torch.{name}")
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                found.add("allow_pickle=True")
    return found


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("torch.load(path)", "torch.load"),
        ("np.load(path, allow_pickle=True)", "allow_pickle=True"),
        ("eval(text)", "eval"),
    ],
)
def test_code_that_could_execute_data_is_recognised(code: str, name: str) -> None:
    assert _executed(ast.parse(code)) == {name}


def test_no_module_can_turn_data_into_code() -> None:
    folder = Path(ppl_vae.__file__).parent
    paths = [path for top in (folder, folder / "models", folder / "guides") for path in sorted(top.glob("**/*.py"))]

    assert {"checkpoint.py", "sources.py", "likelihoods.py", "mean_field.py"} <= {path.name for path in paths}
    assert {str(path): _executed(ast.parse(path.read_text())) for path in paths} == {str(path): set() for path in paths}
