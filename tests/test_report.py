"""The report: its tables, groups, plots and pictures show what was found."""

import io
import math
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from matplotlib.colors import to_hex
from ppl_vae.report.results import colour
from torch.distributions import kl_divergence

from ppl_vae import VARIANTS, Fit, encode, evaluate, prepare, reconstruct
from ppl_vae.data.data_set import Data
from ppl_vae.estimate import Number
from ppl_vae.evaluation.evaluation import Evaluation
from ppl_vae.evaluation.metrics import COLUMNS
from ppl_vae.files import whole_file
from ppl_vae.models import Mixture
from ppl_vae.report import Refused, Result, pictures, plots
from ppl_vae.report.document import comparison_page
from ppl_vae.report.table import Cell, groups_of, printed


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
    results = [
        result_of("rae", images),
        result_of("sigma_vae", images),
        Refused("laplace_vae", images, "diverged at step 3"),
        result_of("bernoulli_vae", drawn),
        result_of("iwae", images),
    ]

    groups = groups_of(results)

    assert [(group.title, [row.name for row in group.rows]) for group in groups] == [
        ("Bounds of the log density", ["sigma_vae", "iwae"]),
        ("Bounds of the log mass of binarized x", ["bernoulli_vae"]),
        ("MAP objectives (no bounds)", ["rae"]),
        ("Refused or diverged", ["laplace_vae"]),
    ]
    assert [group.text for group in groups] == ["", drawn.note, "", "no numbers"]
    assert groups[-1].rows[0].reason == "diverged at step 3"


def test_the_best_of_a_column_is_marked_where_there_is_a_best(images: Data) -> None:
    """It is the larger bound or the smaller error. A single number or a column without a direction has no best."""
    one = {"bound": -3.0, "rmse": 0.3, "active_units": 2.0, "log_joint": -9.0}
    other = {"bound": -2.0, "rmse": 0.2, "active_units": 3.0, "log_joint": -8.0, "kl": 1.0, "frechet_prior": 4.0}
    results = [
        result_of(name, images, **{column: Number(value) for column, value in found.items()})
        for name, found in (("sigma_vae", other), ("iwae", one))
    ]

    [group] = groups_of(results)

    best = [[column for column, cell in zip(COLUMNS, row.cells, strict=True) if cell.best] for row in group.rows]
    assert best == [["bound", "rmse"], []]


def test_units_are_drawn_as_the_evaluation_has_them(images: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "embedded", lambda figure: figure)
    result = result_of("iwae", images, kl_per_dim=[3.0, 2.0, 0.5], active_per_dim=[True, False, True])

    bars = plots.kl_per_unit([result]).axes[0].patches

    assert [bar.get_height() for bar in bars] == [3.0, 2.0, 0.5]
    assert [to_hex(bar.get_facecolor()) for bar in bars] == [colour("iwae"), "#ffffff", colour("iwae")]


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

    [(_, _, (_, _, reconstructions, interpolations))] = pictures.pictures_of([result], images).rows

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
    page = comparison_page([Refused("rae", images, "diverged at step 3")], images, {"features": "nothing"})

    assert "1 variant was compared on digits: 1 refused or diverged." in page
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
