"""The report: its tables, groups, plots and pictures show what was found."""

import io
import math
from pathlib import Path
from typing import Any

import matplotlib.image
import pyro
import pytest
import torch
from matplotlib.colors import to_hex
from torch.distributions import kl_divergence

from ppl_vae import VARIANTS, Contestant, Fit, Study, compare, encode, evaluate, pair, prepare, reconstruct
from ppl_vae.data.data_set import Data
from ppl_vae.estimate import Number
from ppl_vae.evaluation.evaluation import Evaluation
from ppl_vae.evaluation.metrics import COLUMNS
from ppl_vae.files import whole_file
from ppl_vae.models import Mixture
from ppl_vae.report import pictures, plots
from ppl_vae.report.colours import colours_of
from ppl_vae.report.contestants import contestants_of
from ppl_vae.report.document import comparison_page
from ppl_vae.report.table import Cell, groups_of, printed
from ppl_vae.studies import Cell as Fitted, Result
from ppl_vae.studies.table import Row


@pytest.fixture(scope="module")
def images() -> Data:
    return prepare("digits", scale="unit", limit=80)


def result_of(name: str, data: Data, **found: Any) -> Result:
    """A result of an untrained variant, with the numbers and fields of the evaluation that are given."""
    fields = {key: found.pop(key) for key in ("kl_per_dim", "active_per_dim") if key in found}
    numbers = {column: found.get(column, Number(None, reason="not asked")) for column in COLUMNS}
    torch.manual_seed(0)
    variant = VARIANTS[name](data.x_shape, 3)
    variant.model.scale.load_state_dict(data.scale.state_dict())
    fit = Fit(variant, data, [], 1, {})
    mixture = Mixture.of(torch.ones(1), torch.zeros(1, 3), torch.eye(3)[None])
    return Result(name, fit, mixture, Evaluation(numbers, 5, len(data.test), "nothing", **fields))


def row_of(name: str, data: Data, seed: int = 0, **numbers: Number) -> Row:
    """A row of a study with the numbers that are given. Its measure is that of the variant."""
    result = result_of(name, data)
    found = {column: numbers.get(column, Number(None, reason="not asked")) for column in COLUMNS}
    evaluation = {"numbers": found, "bound_per_datum": [], "notes": []}
    if numbers.get("bound"):  # half of the data one error above the mean and half below, so that pairs have this error
        value, error = numbers["bound"].value, numbers["bound"].error or 0.0
        evaluation["bound_per_datum"] = [value + error, value - error]  # type: ignore[operator]
    record = {"status": "done", "reason": "", "measure": result.measure, "has_bound": result.has_bound}
    record |= {"note": data.note, "best_epoch": 1, "evaluation": evaluation, "extra": {}, "history": [], "receipt": []}
    return Row(Fitted(name, Contestant(name), data, seed), record, Path())


def refused(name: str, data: Data, reason: str) -> Row:
    """A row without numbers."""
    return Row(Fitted(name, Contestant(name), data, 0), {"status": "refused", "reason": reason}, Path())


@pytest.mark.parametrize(
    ("number", "cell"),
    [
        (Number(12.3456, 0.0789), Cell("12.346", "0.079")),
        (Number(-0.5, 0.04), Cell("\N{MINUS SIGN}0.500", "0.040")),
        (Number(1234.6, 123.0), Cell("1235", "123")),
        (Number(2.0, 1e-12), Cell("2")),
        (Number(-123456.0), Cell("\N{MINUS SIGN}1.235e+05")),
        (Number(1.5, math.inf), Cell("1.5")),
        (Number(None, reason="MAP"), Cell("", reason="MAP")),
    ],
)
def test_a_number_is_printed_to_two_digits_of_its_error(number: Number, cell: Cell) -> None:
    assert printed(number) == cell


def test_rows_stand_in_groups_whose_bounds_compare(images: Data) -> None:
    drawn = images.binarized("dynamic")
    rows = [
        row_of("rae", images),
        row_of("sigma_vae", images),
        refused("l2_vae", images, "diverged at step 3"),
        row_of("bernoulli_vae", drawn),
        row_of("iwae", images),
    ]

    groups = groups_of(Study(Path(), rows))

    assert [(group.title, [line.name for line in group.lines]) for group in groups] == [
        ("Bounds of the log density", ["sigma_vae", "iwae"]),
        ("Bounds of the log mass of binarized x", ["bernoulli_vae"]),
        ("MAP objectives (no bounds)", ["rae"]),
        ("Refused or diverged", ["l2_vae"]),
    ]
    assert [group.text for group in groups] == ["", drawn.note, "", "no numbers"]
    assert groups[-1].lines[0].reason == "diverged at step 3"


def bold(study: Study) -> dict[str, list[str]]:
    """The columns in which each contestant of the only group is printed in bold."""
    [group] = groups_of(study)
    return {
        line.name: [column for column, cell in zip(COLUMNS, line.cells, strict=True) if cell.best]
        for line in group.lines
    }


def test_the_best_of_a_column_is_marked_where_there_is_a_best(images: Data) -> None:
    """It is the larger bound or the smaller error. A single number or a column without a direction has no best."""
    one = {"bound": -3.0, "rmse": 0.3, "active_units": 2.0, "log_joint": -9.0}
    other = {"bound": -2.0, "rmse": 0.2, "active_units": 3.0, "log_joint": -8.0, "kl": 1.0, "frechet_prior": 4.0}
    rows = [
        row_of(name, images, **{column: Number(value, 0.01) for column, value in found.items()})
        for name, found in (("sigma_vae", other), ("iwae", one))
    ]

    assert bold(Study(Path(), rows)) == {"sigma_vae": ["bound", "rmse"], "iwae": []}


@pytest.mark.parametrize(("error", "is_bold"), [(0.03, True), (0.04, False), (None, False)])
def test_with_one_seed_the_best_is_marked_beyond_two_errors_over_data(
    images: Data, error: float | None, *, is_bold: bool
) -> None:
    """The errors of a column other than the bound count as independent: 0.1 is beyond 2 * sqrt(2) * 0.03."""
    rows = [row_of(name, images, rmse=Number(value, error)) for name, value in (("iwae", 0.2), ("sigma_vae", 0.3))]

    assert bold(Study(Path(), rows))["iwae"] == ["rmse"] * is_bold


@pytest.mark.parametrize(("third", "is_bold"), [(0.21, True), (0.35, False)])
def test_with_several_seeds_the_best_is_marked_where_it_is_decided_over_seeds(
    images: Data, third: float, *, is_bold: bool
) -> None:
    """The error over data is small in both cases. In the second, one of three seeds goes against the order."""
    values = {"iwae": (0.2, 0.21, third), "sigma_vae": (0.3, 0.315, 0.31)}
    rows = [
        row_of(name, images, seed, rmse=Number(value, 1e-6))
        for name, some in values.items()
        for seed, value in enumerate(some)
    ]

    [group] = groups_of(Study(Path(), rows))

    assert bold(Study(Path(), rows))["iwae"] == ["rmse"] * is_bold
    cell = group.lines[0].cells[list(COLUMNS).index("rmse")]
    mean = sum(values["iwae"]) / 3
    over_seeds = math.sqrt(sum((value - mean) ** 2 for value in values["iwae"]) / 2 / 3)
    assert (float(cell.value), float(cell.error)) == pytest.approx((mean, over_seeds), rel=0.05)


def test_a_ranking_says_who_is_not_told_apart(images: Data) -> None:
    """First and second differ by 0.01 in the mean of three seeds, with an error of 0.1. The third is far off."""
    values = {"sigma_vae": (-9.0, -9.02, -9.01), "iwae": (-1.1, -0.9, -1.03), "dreg_vae": (-1.0, -1.0, -1.0)}
    rows = [
        row_of(name, images, seed, bound=Number(value, 0.01))
        for name, some in values.items()
        for seed, value in enumerate(some)
    ]

    [group] = groups_of(Study(Path(), rows))

    assert [(place.number, place.name, place.open, place.seeds) for place in group.places] == [
        (1, "dreg_vae", [2], 3),
        (2, "iwae", [1], 3),
        (3, "sigma_vae", [], 3),
    ]


def test_a_line_says_how_many_seeds_it_is_about(images: Data) -> None:
    rows = [row_of("iwae", images, seed, rmse=Number(0.2)) for seed in (0, 1)]

    [group, _] = groups_of(Study(Path(), [*rows, refused("rae", images, "diverged")]))
    [single, _] = groups_of(Study(Path(), [*rows[1:], refused("rae", images, "diverged")]))

    assert (group.lines[0].seeds, single.lines[0].seeds) == ("", "1 of 2 seeds")


# Contestants.


def test_every_contestant_has_a_colour_of_its_own() -> None:
    """Those of the catalogue have the same colour in every report."""
    names = [*list(VARIANTS)[:10], "ab", "ba", "mine", "yours"]  # ab and ba have the same letters
    inks = colours_of(names)

    assert len(set(inks.values())) == len(names)
    assert {name: inks[name] for name in names[:10]} == {name: colours_of([name])[name] for name in names[:10]}
    assert len(set(colours_of(list(VARIANTS)).values())) == len(VARIANTS)


def test_an_option_for_one_counts_more_than_its_own_and_that_more_than_one_for_all() -> None:
    given = {"plain": "beta_vae", "own": Contestant("beta_vae", {"beta": 3}), "named": "beta_vae", "rae": "rae"}
    options = {"sigma": 0.5, "beta": 1, "beta_vae.beta": 2, "named.beta": 4}

    found = {name: one.options for name, one in contestants_of(given, options).items()}

    assert found == {
        "plain": {"sigma": 0.5, "beta": 2},
        "own": {"sigma": 0.5, "beta": 3},
        "named": {"sigma": 0.5, "beta": 4},
        "rae": {"sigma": 0.5},
    }


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (["rae", "ae"], {"gamma": 1}, "'gamma' is not an option of rae, ae: wanted sigma"),
        (["rae", "beta_vae"], {"rae.beta": 1}, "'beta' is not an option of rae: wanted sigma"),
        (["rae"], {"iwae.sigma": 1}, "'iwae.sigma' is for no contestant: wanted NAME.sigma for a NAME among rae"),
        (["rae", "rae"], {}, "two contestants are called rae"),
        (["gamma_vae"], {}, "unknown variant 'gamma_vae': wanted one of"),
        ([], {}, "no contestant to compare"),
    ],
)
def test_what_cannot_be_compared_is_refused(given: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contestants_of(given, options)


def test_an_estimator_is_refused_where_a_builder_takes_none() -> None:
    with pytest.raises(ValueError, match="the builder of mine has no argument loss"):
        contestants_of({"mine": pair_of_my_own}, estimator="iwae")

    assert contestants_of({"rae": "iwae"}, estimator="dreg")["rae"].options == {"loss": "dreg"}


class Noise(torch.nn.Module):
    """A likelihood of a user, which no checkpoint can build."""

    outputs = 1

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, loc: torch.Tensor) -> Any:
        return pyro.distributions.Normal(loc, self.log_scale.exp())


def pair_of_my_own(x_shape: tuple[int, ...], z_dim: int, width: int = 8) -> Any:
    """The builder of a user, with an option."""
    return pair(x_shape, z_dim, likelihood=Noise(), width=width)


def test_a_pair_of_my_own_competes(tmp_path: Path) -> None:
    """The page is made from its checkpoint, whose parts the builder makes again."""
    data = prepare(torch.randn(60, 3))
    given = {"mine": Contestant(pair_of_my_own, {"width": 4}), "rae": "rae"}
    asked = {"z_dim": 2, "components": 2, "num_particles": 5, "epochs": 2, "progress": False}

    found = compare(given, data, tmp_path, seeds=[3, 4], **asked)

    assert [(row.cell.name, row.cell.seed, row.reason) for row in found.rows] == [
        ("mine", 3, ""),
        ("rae", 3, ""),
        ("mine", 4, ""),
        ("rae", 4, ""),
    ]
    assert {row.cell.judging.seed for row in found.rows} == {3}
    page = (tmp_path / "report.html").read_text()
    assert f"mine is {pair_of_my_own.__module__}:pair_of_my_own with width = 4." in page
    assert 'alt="samples of mine"' in page
    assert "No pictures" not in page


def test_a_value_that_no_builder_takes_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine cannot be built"):
        compare({"mine": "rae"}, prepare(torch.randn(20, 3)), tmp_path / "out", options={"sigma": []})
    with pytest.raises(ValueError, match=r"compare takes seeds, not seed=3"):
        compare(["rae"], prepare(torch.randn(20, 3)), tmp_path / "out", seed=3)

    assert not (tmp_path / "out").exists()


# Plots and pages.


def test_an_objective_has_one_thin_line_per_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "embedded", lambda figure: figure)
    history = [{"held_out_loss": 3.0}, {"held_out_loss": "inf"}, {"held_out_loss": 1.0}]  # JSON has no infinity
    first, second = plots.series(history, "held_out_loss"), plots.series(history[:1] * 3, "held_out_loss")
    inks = colours_of(["iwae", "rae"])

    [axes] = plots.objectives({"bounds": {"iwae": [first, second], "rae": [first]}}, inks).axes[:1]

    assert [line.get_ydata().tolist() for line in axes.lines] == [
        [-3.0, -math.inf, -1.0],
        [-3.0, -3.0, -3.0],
        [-3.0, -math.inf, -1.0],
    ]
    assert [line.get_color() for line in axes.lines] == [inks["iwae"], inks["iwae"], inks["rae"]]
    assert [line.get_linewidth() < 1 for line in axes.lines] == [True, True, False]


def test_units_are_drawn_as_the_evaluation_has_them(images: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "embedded", lambda figure: figure)
    result = result_of("iwae", images, kl_per_dim=[3.0, 2.0, 0.5], active_per_dim=[True, False, True])

    inks = colours_of(["iwae"])
    bars = plots.kl_per_unit([result], inks).axes[0].patches

    assert [bar.get_height() for bar in bars] == [3.0, 2.0, 0.5]
    assert [to_hex(bar.get_facecolor()) for bar in bars] == [inks["iwae"], "#ffffff", inks["iwae"]]


def test_an_evaluation_says_which_units_are_active_in_the_order_of_their_kl() -> None:
    torch.manual_seed(10)
    vae, x = VARIANTS["sigma_vae"]((4,), 6), torch.randn(50, 4)

    found = evaluate(vae, x, 2)

    with torch.no_grad():
        q = vae.guide.posterior(x).base_dist
        kl = kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).mean(0).tolist()
    variances = encode(vae, x).var(0).tolist()
    ordered = sorted(zip(kl, variances, strict=True), reverse=True)
    active = [variance > 0.01 for _, variance in ordered]
    assert found.kl_per_dim == pytest.approx([each for each, _ in ordered], rel=1e-5)
    assert found.active_per_dim == active
    assert active not in (sorted(active), sorted(active, reverse=True))  # in another order, the test would fail


def test_pictures_show_data_beside_what_is_made_of_them(images: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row of data has its reconstructions below it. Each interpolation goes from one datum to another."""
    monkeypatch.setattr(pictures, "uri", lambda png: matplotlib.image.imread(io.BytesIO(png))[..., 0])
    result = result_of("iwae", images)
    x, side = images.test, math.isqrt(len(images.test))
    half = len(x) // 2

    [(_, (_, _, reconstructions, interpolations))] = pictures.pictures_of([result], images).rows

    tiles, steps = (
        torch.tensor(grid)
        .reshape(side, grid.shape[0] // side, side, grid.shape[1] // side)
        .transpose(1, 2)[:, :, 1:-1, 1:-1][..., ::3, ::3]  # without the gap; each pixel is drawn as 3 by 3
        for grid in (reconstructions, interpolations)
    )
    y, made = (images.scale(part)[:, 0].float().clamp(0, 1) for part in (x, reconstruct(result.variant, x)))
    byte = {"rtol": 0, "atol": 1 / 255}
    torch.testing.assert_close(tiles[0::2].flatten(0, 1), y[: side * (side // 2)], **byte)
    torch.testing.assert_close(tiles[1::2].flatten(0, 1), made[: side * (side // 2)], **byte)
    torch.testing.assert_close(steps[:, 0], made[:side], **byte)
    torch.testing.assert_close(steps[:, -1], made[half : half + side], **byte)


def test_a_page_without_any_result_gives_the_reasons(images: Data) -> None:
    study = Study(Path(), [refused("rae", images, "diverged at step 3")])
    page = comparison_page(study, images, {"features": "nothing"})

    assert "1 contestant on digits with 1 seed: 1 refused or diverged." in page
    assert "diverged at step 3" in page
    assert "<img" not in page


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with whole_file(path) as part:
        part.write_text("first")
        assert (part.parent, part.suffix, path.exists()) == (tmp_path, ".csv", False)

    with pytest.raises(OSError, match="no more space"), whole_file(path) as part:
        _fill(part)

    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def _fill(path: Path) -> None:
    path.write_text("sec")
    raise OSError("no more space")
