"""Data at the door: whatever comes in, the same rows go on, or a message says what came and what to do."""

import dataclasses
import gc
import gzip
import io
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import scipy.sparse
import sklearn.datasets
import sklearn.preprocessing
import torch
from hypothesis import assume, given, settings
from hypothesis.extra import numpy as arrays
from hypothesis.strategies import data as drawn, floats, integers, sampled_from
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from ppl_vae import (
    VARIANTS,
    Data,
    Variant,
    annealed,
    bounds,
    check,
    collapse,
    encode,
    evaluate,
    fit,
    gaps,
    load,
    pair,
    prepare,
    reconstruct,
    sample,
    save,
    to_inferencedata,
)
from ppl_vae.blocks import rows_at_once
from ppl_vae.contracts import check_support
from ppl_vae.data.data_set import tensor_of
from ppl_vae.data.units import check_spacing
from ppl_vae.diagnosis import noise_calibration, prior_predictive
from ppl_vae.evaluation.lower_bounds import held_out
from ppl_vae.models import DiscretizedNormal, Gaussian
from ppl_vae.training.batches import Batches

few = settings(deadline=None, max_examples=40, derandomize=True)


@pytest.fixture(autouse=True)
def every_warning() -> Iterator[None]:
    """Torch says some things once a process: here each time, so that no test hides behind an earlier one."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


class Items(Dataset[Any]):
    """A map-style Dataset of what it is given."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Endless(IterableDataset[Tensor]):
    """A Dataset without a length."""

    def __iter__(self) -> Iterator[Tensor]:
        yield torch.zeros(3)


def numbered(rows: int, *x_shape: int) -> Tensor:
    """Data of which every number is another, row by row: 0, 1, 2, ..."""
    return torch.arange(rows * int(np.prod(x_shape)), dtype=torch.float64).reshape(rows, *x_shape)


def in_order(*parts: Any) -> Tensor:
    """Rows of all parts, sorted by their first number."""
    x = torch.cat([part.flatten(1) for part in parts])
    return x[x[:, 0].argsort()]


def assert_same(data: Data, other: Data) -> None:
    assert isinstance(data.train, Tensor)
    assert isinstance(other.train, Tensor)
    assert torch.equal(data.train, other.train)
    assert torch.equal(data.test, other.test)


# Scales.


def numpy_unit(x: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
    low, high = x.min(axes, keepdims=True), x.max(axes, keepdims=True)
    return low, high - low


def numpy_standard(x: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
    return x.mean(axes, keepdims=True), x.std(axes, keepdims=True)


@pytest.mark.parametrize(
    ("x_shape", "how", "law", "axes"),
    [
        pytest.param((4,), "unit", numpy_unit, (0,), id="unit-by-column"),
        pytest.param((2, 5, 6), "unit", numpy_unit, (0, 1, 2, 3), id="unit-over-all-of-images"),
        pytest.param((4,), "standardize", numpy_standard, (0,), id="standardize-by-column"),
        pytest.param((2, 5, 6), "standardize", numpy_standard, (0, 2, 3), id="standardize-by-channel"),
        pytest.param((4,), "auto", numpy_standard, (0,), id="auto-of-a-table"),
        pytest.param((2, 5, 6), "auto", numpy_unit, (0, 1, 2, 3), id="auto-of-images"),
    ],
)
def test_scales_are_those_of_numpy_on_the_training_rows(
    x_shape: tuple[int, ...], how: str, law: Callable[..., tuple[Any, Any]], axes: tuple[int, ...]
) -> None:
    x = torch.randn(50, *x_shape) * torch.arange(1.0, x_shape[0] + 1).reshape(-1, *[1] * (len(x_shape) - 1)) + 3
    data = prepare(x, scale=how)
    shift, width = law(data.resident.numpy(), axes)

    expected = (data.test.numpy() - shift) / width
    np.testing.assert_allclose(data.scale(data.test).numpy(), expected, rtol=1e-10, atol=1e-12)  # float64 rounding


def test_standardize_is_that_of_scikit_learn() -> None:
    data = prepare(torch.randn(60, 3) * 5 + 2, scale="standardize")
    oracle = sklearn.preprocessing.StandardScaler().fit(data.resident.numpy())

    np.testing.assert_allclose(data.scale(data.test).numpy(), oracle.transform(data.test.numpy()), rtol=1e-10)


def test_no_scale_is_the_identity() -> None:
    data = prepare(torch.randn(9, 3))

    assert torch.equal(data.scale(data.test), data.test)
    assert float(data.scale.log_jacobian()) == 0.0


@pytest.mark.parametrize("how", ["unit", "standardize"])
@pytest.mark.parametrize("x_shape", [(3,), (2, 4, 4)], ids=["table", "images"])
def test_held_out_rows_have_no_say_in_the_scale(x_shape: tuple[int, ...], how: str) -> None:
    x = torch.randn(30, *x_shape)
    before = prepare(x, scale=how)
    held_out = (x.flatten(1)[:, None] == before.test.flatten(1)[None]).all(-1).any(-1)
    after = prepare(torch.where(held_out.reshape(-1, *[1] * len(x_shape)), 100 * x, x), scale=how)

    assert int(held_out.sum()) == len(before.test)
    assert torch.equal(after.test.abs().amax(), 100 * before.test.abs().amax())
    assert torch.equal(after.scale.shift, before.scale.shift)
    assert torch.equal(after.scale.width, before.scale.width)


@few
@given(drawn(), sampled_from(["none", "unit", "standardize"]))
def test_a_scale_and_its_inverse_give_x_back(draw: Any, how: str) -> None:
    """Up to the rounding of the four operations."""
    shape = draw.draw(arrays.array_shapes(min_dims=2, max_dims=4, min_side=2, max_side=5))
    x = torch.as_tensor(draw.draw(arrays.arrays(np.float64, shape, elements=floats(-1e6, 1e6))))
    try:
        scale = prepare(x, scale=how).scale
    except ValueError as error:
        assume("constant" not in str(error))
        raise

    error = (scale.inverse(scale(x)) - x).abs()

    info = torch.finfo(x.dtype)
    assert bool((error <= 4 * info.eps * (x.abs() + scale.shift.abs()) + info.tiny).all())  # tiny: it may underflow


@pytest.mark.parametrize("how", ["none", "unit", "standardize"])
@pytest.mark.parametrize("x_shape", [(3,), (2, 2, 3)], ids=["table", "images"])
def test_the_log_jacobian_is_the_log_determinant(x_shape: tuple[int, ...], how: str) -> None:
    scale = prepare(torch.randn(20, *x_shape) * 3 + 1, scale=how).scale
    jacobian: Any = torch.autograd.functional.jacobian(scale, torch.randn(x_shape))
    side = int(np.prod(x_shape))

    expected = torch.linalg.slogdet(jacobian.reshape(side, side)).logabsdet

    assert float(scale.log_jacobian()) == pytest.approx(float(expected), rel=1e-12, abs=1e-12)


# Splits and limits.


@pytest.mark.parametrize("rows", [2, 3, 10, 101])
@pytest.mark.parametrize("x_shape", [(2,), (1, 2, 3)], ids=["table", "images"])
def test_training_and_held_out_rows_are_disjoint_and_together_all(rows: int, x_shape: tuple[int, ...]) -> None:
    x = numbered(rows, *x_shape)
    data = prepare(x)

    assert len(data.test) == max(1, round(rows / 5))
    assert torch.equal(in_order(data.train, data.test), x.flatten(1))


def test_the_seed_alone_decides_the_split() -> None:
    x = numbered(40, 2)
    state = torch.get_rng_state()
    first = prepare(x, seed=1)
    torch.manual_seed(99)
    again, other = prepare(x, seed=1), prepare(x, seed=2)

    assert_same(again, first)
    assert not torch.equal(other.test, first.test)
    torch.set_rng_state(state)
    prepare(x, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("limit", "train", "test"), [(40, 40, 10), (2, 2, 1), (79, 79, 20), (80, 80, 20), (1000, 80, 20)]
)
def test_a_limit_cuts_the_held_out_rows_in_proportion(limit: int, train: int, test: int) -> None:
    whole, data = prepare(numbered(100, 2)), prepare(numbered(100, 2), limit=limit)

    for some, all_rows, count in ((data.resident, whole.resident, train), (data.test, whole.test, test)):
        assert len(some.unique(dim=0)) == len(some) == count
        assert bool(torch.isin(some[:, 0], all_rows[:, 0]).all())


@pytest.mark.parametrize("limit", [None, 6])
def test_labels_go_with_their_rows(tmp_path: Path, limit: int | None) -> None:
    x = numbered(20, 2)
    np.savez(tmp_path / "labelled.npz", x=x.numpy(), y=np.arange(20))
    data = prepare(tmp_path / "labelled.npz", limit=limit)

    assert data.labels is not None
    assert data.test_labels is not None
    assert torch.equal(data.resident, x[data.labels])
    assert torch.equal(data.test, x[data.test_labels])


def test_a_source_with_its_own_test_set_keeps_it(tmp_path: Path) -> None:
    x, other = numbered(12, 3), -numbered(4, 3)
    np.savez(tmp_path / "two.npz", x_train=x, x_test=other, y_train=np.arange(12), y_test=np.arange(4))
    whole, data = prepare(tmp_path / "two.npz"), prepare(tmp_path / "two.npz", limit=6)

    assert torch.equal(whole.resident, x)
    assert torch.equal(whole.test, other)
    assert data.labels is not None
    assert data.test_labels is not None
    assert (len(data.labels.unique()), len(data.test_labels.unique())) == (6, 2)
    assert torch.equal(data.resident, x[data.labels])
    assert torch.equal(data.test, other[data.test_labels])


# Binary data.


def grey() -> Tensor:
    """Probabilities, each row another first one: a draw of 0 or 1 is certain, the rest is not."""
    x = torch.rand(200, 1, 3, 4)
    x[:, 0, 1], x[:, 0, 2] = 0.0, 1.0
    return x


def test_a_threshold_is_at_one_half() -> None:
    x = grey()
    plain, data = prepare(x), prepare(x, binarize="threshold")

    assert torch.equal(data.resident, plain.resident.gt(0.5).double())
    assert torch.equal(data.test, plain.test.gt(0.5).double())


@pytest.mark.parametrize("how", ["static", "dynamic", "threshold"])
def test_binary_data_keep_their_probabilities_and_say_how_they_were_made(tmp_path: Path, how: str) -> None:
    np.save(tmp_path / "grey.npy", grey().numpy())
    plain, data = prepare(tmp_path / "grey.npy"), prepare(tmp_path / "grey.npy", binarize=how)

    assert data.pictures is not None
    assert torch.equal(data.pictures, plain.test)
    assert set(data.test.unique().tolist()) == {0.0, 1.0}
    assert repr(data.scale) == "Scale(none)"
    assert data.note.startswith("binarized: ")
    assert data.origin == {**(plain.origin or {}), "binarize": how}
    assert data.binarize == ("dynamic" if how == "dynamic" else None)


def test_a_static_draw_is_a_bernoulli_draw_by_seed() -> None:
    x = grey()
    plain, data = prepare(x), prepare(x, binarize="static")
    p, draw = plain.resident, data.resident
    error = (p * (1 - p)).sum().sqrt()  # of the sum of independent draws

    assert torch.equal(draw[:, :, 1:], p[:, :, 1:])  # 0 and 1 are certain
    assert abs(float((draw - p).sum() / error)) < 4
    assert float(((draw - p) * (p - 0.5)).sum().abs() / ((p - 0.5).square() * p * (1 - p)).sum().sqrt()) < 4
    assert_same(prepare(x, binarize="static"), data)
    other = plain.binarized("static", seed=1)
    assert not torch.equal(other.resident, draw)


def test_a_dynamic_draw_is_another_in_each_epoch() -> None:
    plain = prepare(grey())
    data = plain.binarized("dynamic")
    batches = Batches(VARIANTS["bernoulli_vae"](data.x_shape, 2), data.train, 32, draw=True)
    first, second = torch.cat(list(batches)), torch.cat(list(batches))

    assert torch.equal(data.resident, plain.resident)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first.sum(0), second.sum(0))


@pytest.mark.parametrize("how", ["static", "dynamic", "threshold"])
def test_a_draw_leaves_the_random_stream_of_the_caller(how: str) -> None:
    data = prepare(grey())
    state = torch.get_rng_state()
    data.binarized(how, seed=5)

    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("x_shape", [(3,), (1, 3, 3)], ids=["table", "images"])
def test_what_is_to_be_binary_is_put_on_the_unit_scale(x_shape: tuple[int, ...]) -> None:
    """Whatever the range of the held-out rows: the smallest and largest number may be among them."""
    data = prepare(torch.randn(40, *x_shape), scale="auto", binarize="threshold")

    assert set(data.resident.unique().tolist()) == {0.0, 1.0}


def test_held_out_rows_in_other_units_are_not_bent_into_0_and_1(tmp_path: Path) -> None:
    """Only a range that was fitted on training rows may be passed by others."""
    np.savez(tmp_path / "units.npz", x_train=grey().numpy(), x_test=255 * grey().numpy())

    with pytest.raises(ValueError, match=r"wants values in \[0, 1\], got 0 to 255"):
        prepare(tmp_path / "units.npz", binarize="threshold")


# Where data come from.


@pytest.mark.parametrize("source", ["digits", Path("digits")], ids=["text", "path"])
def test_the_digits_are_those_of_scikit_learn(source: str | Path) -> None:
    raw, data = sklearn.datasets.load_digits(), prepare(source, scale="unit")
    order = torch.randperm(len(raw.images), generator=torch.Generator().manual_seed(0))

    assert data.labels is not None
    assert data.test_labels is not None
    assert data.name == "digits"
    assert (len(data.resident), len(data.test), data.x_shape) == (1438, 359, (1, 8, 8))
    both = torch.cat([data.test, data.resident])[:, 0].numpy()
    assert np.array_equal(both, raw.images[order])
    assert np.array_equal(torch.cat([data.test_labels, data.labels]).numpy(), raw.target[order])
    assert np.array_equal(data.scale(data.test).numpy(), data.test.numpy() / 16)  # by the span, not by what occurs


def write_idx(path: Path, array: Any) -> None:
    """MNIST's own format: two zeros, the type 8 for bytes, the number of axes, their lengths, the bytes."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(head + array.tobytes())
    path.with_suffix(path.suffix + ".gz").write_bytes(gzip.compress(head + array.tobytes()))


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_image_sets_are_read_from_the_folder_that_is_named(tmp_path: Path, name: str, folder: str) -> None:
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    pixels = {"train": numbered(3, 28, 28).remainder(256), "t10k": numbered(2, 28, 28).add(7).remainder(256)}
    for part, x in pixels.items():
        write_idx(raw / f"{part}-images-idx3-ubyte", x.to(torch.uint8).numpy())
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(len(x), dtype=np.uint8))
    data = prepare(name, scale="auto", root=tmp_path)

    assert torch.equal(data.resident, pixels["train"].unsqueeze(1))
    assert torch.equal(data.test, pixels["t10k"].unsqueeze(1))
    assert torch.equal(data.scale(data.test), data.test / 255)
    assert data.labels is not None
    assert data.test_labels is not None
    assert (data.labels.tolist(), data.test_labels.tolist()) == ([0, 1, 2], [0, 1])


def test_colours_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Colours:
        def __init__(self, root: Path, *, train: bool, download: bool) -> None:
            self.data = np.arange(5 * 4 * 6 * 3, dtype=np.uint8).reshape(5, 4, 6, 3)[: 5 if train else 2]
            self.targets = list(range(len(self.data)))

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Colours)
    data = prepare("cifar10", root=tmp_path)

    assert data.x_shape == (3, 4, 6)
    assert np.array_equal(data.test[:, 1].numpy(), Colours(tmp_path, train=False, download=False).data[..., 1])


def test_faces_are_streamed_at_64_pixels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Faces:
        def __init__(self, root: Path, *, split: str, transform: Callable[[Any], Tensor], download: bool) -> None:
            self.rows, self.transform = {"train": 3, "test": 2000}[split], transform

        def __len__(self) -> int:
            return self.rows

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return self.transform(Image.new("RGB", (178, 218), (index % 256, 20, 30))), 0

    monkeypatch.setattr("torchvision.datasets.CelebA", Faces)
    data = prepare("celeba", scale="auto", root=tmp_path)

    assert not isinstance(data.train, Tensor)
    assert (len(data.resident), data.test.shape) == (3, (2000, 3, 64, 64))
    assert torch.equal(data.test[:, 0, 0, 0], torch.arange(2000.0).remainder(256))
    assert torch.equal(data.scale(data.test[0])[1], torch.full((64, 64), 20.0) / 255)


@pytest.mark.parametrize(("name", "printed"), [("mnist", "MNIST"), ("cifar10", "CIFAR10"), ("celeba", "CelebA")])
def test_a_set_that_cannot_be_had_says_so(tmp_path: Path, name: str, printed: str) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(OSError, match=rf"{printed} is not under .*file.below.*name another --data-root"):
        prepare(name, root=tmp_path / "file" / "below")


X = np.random.default_rng(0).normal(size=(20, 3))
COLUMNS = ["first", "second", "third"]


def write_csv(path: Path) -> None:
    pd.DataFrame(X, columns=COLUMNS).to_csv(path, index=False)


def write_rows(path: Path) -> None:
    np.savetxt(path, X, delimiter=",", fmt="%.17g")


FILES: dict[str, Callable[[Path], Any]] = {
    "x.npy": lambda path: np.save(path, X),
    "one.npz": lambda path: np.savez(path, anything=X),
    "beside.npz": lambda path: np.savez(path, x=X, other=X[:4]),
    "packed.npz": lambda path: np.savez_compressed(path, x=X),
    "header.csv": write_csv,
    "rows.csv": write_rows,
    "rows.CSV": write_rows,
    "x.parquet": lambda path: pd.DataFrame(X, columns=COLUMNS).to_parquet(path),
    "index.parquet": lambda path: pd.DataFrame(X, columns=COLUMNS, index=[f"r{i}" for i in range(20)]).to_parquet(path),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", [str, Path], ids=["text", "path"])
def test_a_file_gives_the_data_of_the_tensor_in_it(tmp_path: Path, name: str, kind: type) -> None:
    FILES[name](tmp_path / name)
    data = prepare(kind(tmp_path / name))

    assert_same(data, prepare(torch.as_tensor(X)))
    assert data.name == Path(name).stem


@pytest.mark.parametrize("first", ["1,2", "1,1", "0.5,0.5", "1e5,1e5", "-0.25,-0.25"])
def test_a_first_row_of_numbers_is_no_header(tmp_path: Path, first: str) -> None:
    (tmp_path / "rows.csv").write_text(f"{first}\n1,2\n3,4\n5,6\n7,8\n")
    data = prepare(tmp_path / "rows.csv")

    assert len(data.resident) + len(data.test) == 5


@pytest.mark.parametrize("first", ["nan,2", "2,inf", ",2"])
def test_a_first_row_with_a_gap_is_no_header_either(tmp_path: Path, first: str) -> None:
    (tmp_path / "rows.csv").write_text(f"{first}\n1,2\n3,4\n5,6\n7,8\n")

    with pytest.raises(ValueError, match=r"column '[01]' holds (nan|inf) in data row 1"):
        prepare(tmp_path / "rows.csv")


@pytest.mark.parametrize("how", [None, "static"])
@pytest.mark.parametrize("name", ["digits", "x.npy"])
def test_what_was_read_is_read_again_from_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str | None
) -> None:
    """Also from another folder: a file goes by its whole path."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(1).random((30, 1, 8, 8)))
    data = prepare(name, scale="unit" if name == "digits" else "none", binarize=how, limit=10, seed=3)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert data.origin is not None
    again = prepare(data.origin["source"], **{key: value for key, value in data.origin.items() if key != "source"})

    assert_same(again, data)
    assert again.origin == data.origin
    assert torch.equal(again.scale.width, data.scale.width)


PIXELS = np.random.default_rng(0).integers(0, 200, (20, 6, 7, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        pytest.param(PIXELS, PIXELS.transpose(0, 3, 1, 2), id="colours-last"),
        pytest.param(PIXELS.transpose(0, 3, 1, 2), PIXELS.transpose(0, 3, 1, 2), id="colours-first"),
        pytest.param(
            PIXELS.transpose(0, 3, 1, 2)[..., :3], PIXELS.transpose(0, 3, 1, 2)[..., :3], id="three-pixels-wide"
        ),
        pytest.param(PIXELS[..., :1], PIXELS[:, None, ..., 0], id="grey-last"),
        pytest.param(PIXELS[..., 0], PIXELS[:, None, ..., 0], id="no-channel-axis"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_bytes_are_images_of_known_span_with_channels_first(
    tmp_path: Path, array: Any, expected: Any, suffix: str
) -> None:
    path = tmp_path / f"images{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, x=array)
    data = prepare(path, scale="auto")

    assert_same(data, prepare(expected))
    assert torch.equal(data.scale(data.test), data.test / 255)  # though no pixel is above 199


# What is in memory already.


@pytest.mark.parametrize(
    "same",
    [
        pytest.param(X.tolist(), id="lists"),
        pytest.param(np.asfortranarray(X), id="columns-first-in-memory"),
        pytest.param(X[::-1].copy()[::-1], id="backwards-in-memory"),
        pytest.param(X.astype(">f8"), id="other-byte-order"),
        pytest.param(X.astype(np.longdouble), id="long-double"),
        pytest.param(np.broadcast_to(X, X.shape), id="read-only"),
        pytest.param(torch.as_tensor(X).requires_grad_(), id="with-a-gradient"),
        pytest.param(pd.DataFrame(X), id="data-frame"),
        pytest.param(pd.DataFrame(X, columns=COLUMNS, index=[f"r{i}" for i in range(20)]), id="named-data-frame"),
        pytest.param(TensorDataset(torch.as_tensor(X)), id="tensor-dataset"),
        pytest.param(Items(list(torch.as_tensor(X))), id="items-x"),
        pytest.param(Items(list(X)), id="items-of-numpy"),
        pytest.param(Items([(row, 1) for row in torch.as_tensor(X)]), id="items-x-y"),
        pytest.param(Items([[row, 1] for row in X.tolist()]), id="items-of-lists"),
        pytest.param(Items([{"data": row, "label": 1} for row in torch.as_tensor(X)]), id="items-data"),
        pytest.param(Items([{"x": row, "y": 1} for row in torch.as_tensor(X)]), id="items-dict-x"),
    ],
)
@pytest.mark.parametrize("limit", [None, 5])
def test_every_container_gives_the_data_of_the_tensor(same: Any, limit: int | None) -> None:
    data = prepare(same, scale="standardize", limit=limit)
    expected = prepare(torch.as_tensor(X), scale="standardize", limit=limit)

    assert_same(data, expected)
    assert torch.equal(data.scale.width, expected.scale.width)
    assert not data.resident.requires_grad


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(np.arange(12).reshape(6, 2), id="integers"),
        pytest.param(np.arange(12, dtype=np.uint16).reshape(6, 2), id="unsigned"),
        pytest.param(pd.DataFrame({"a": np.arange(0, 12, 2), "b": np.arange(1.0, 13, 2)}), id="mixed-columns"),
        pytest.param(
            pd.DataFrame({"a": pd.array(range(0, 12, 2), dtype="Int64"), "b": range(1, 13, 2)}), id="nullable-columns"
        ),
    ],
)
def test_whole_numbers_become_floats(numbers: Any) -> None:
    data = prepare(numbers)

    assert data.resident.dtype == torch.get_default_dtype()
    assert torch.equal(in_order(data.train, data.test), numbered(6, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_keep_their_precision(dtype: torch.dtype) -> None:
    assert prepare(torch.randn(9, 2, dtype=dtype)).resident.dtype == dtype


def test_the_data_of_the_caller_are_left_as_they_were() -> None:
    x = torch.randn(12, 1, 4, 4)
    before = x.clone()
    data = prepare(x, scale="unit")
    data.resident.zero_()
    data.test.zero_()

    assert torch.equal(x, before)


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> Items:
    monkeypatch.setattr("ppl_vae.data.items.RESIDENT", 11 * 3 * 4 - 1)  # a byte less than the 11 rows need
    return Items([(row, 0) for row in numbered(11, 3)])


@pytest.mark.parametrize("held", [True, False], ids=["in-memory", "streamed"])
def test_an_epoch_goes_once_through_all_rows_in_another_order(
    streamed: Items, monkeypatch: pytest.MonkeyPatch, *, held: bool
) -> None:
    if held:
        monkeypatch.undo()
    data = prepare(streamed)
    batches = Batches(VARIANTS["sigma_vae"]((3,), 2), data.train, 4)
    first, second = list(batches), list(batches)

    assert isinstance(data.train, Tensor) == held
    assert [len(batch) for batch in first] == [4, 4, 1]
    assert (len(batches), batches.rows) == (3, 9)
    assert torch.equal(in_order(*first, data.test), numbered(11, 3))
    assert torch.equal(in_order(*second), in_order(*first))
    assert not torch.equal(torch.cat(second), torch.cat(first))
    assert torch.equal(in_order(data.resident), in_order(*first))


def test_a_streamed_split_is_that_of_the_tensor(streamed: Items) -> None:
    data, expected = prepare(streamed, seed=4), prepare(numbered(11, 3), seed=4)

    assert torch.equal(data.resident, expected.resident)
    assert torch.equal(data.test, expected.test)
    assert torch.equal(prepare(streamed, seed=4, limit=5).resident, prepare(numbered(11, 3), seed=4, limit=5).resident)


def test_a_streamed_dataset_trains(streamed: Items) -> None:
    variant = VARIANTS["sigma_vae"]((3,), 2)
    trained = fit(variant, prepare(streamed), epochs=2, batch_size=4, validation=0.3, progress=False)

    assert trained.settings["rows"] == 6  # 11, less 2 held out, less 3 for the choice of the epoch
    assert trained.settings["steps"] == 4
    assert trained.history["loss"].notna().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "unit"}, "scale='unit' needs all data at once.*scale its items"),
        ({"scale": "standardize"}, "scale='standardize' needs all data at once.*scale its items"),
        ({"binarize": "static"}, "streamed Dataset cannot be binarized.*binarize its items"),
    ],
    ids=["unit", "standardize", "binarize"],
)
def test_what_needs_all_data_at_once_is_refused_of_a_stream(
    streamed: Items, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(streamed, **arguments)


# What is refused.


def broken(value: float) -> Any:
    x = X.copy()
    x[2, 1] = value
    return x


FLAT = np.column_stack([X[:, 0], np.full(20, 7.0), X[:, 1], np.zeros(20)])
BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "nan": (broken(np.nan), {}, r"x holds nan in row 2, place \[1\].*drop or fill"),
    "infinity": (broken(np.inf), {}, r"holds inf in row 2, place \[1\].*drop or fill"),
    "minus-infinity": (broken(-np.inf), {}, r"holds -inf in row 2, place \[1\]"),
    "nan-in-an-image": (np.pad(broken(np.nan)[:, None, None], ((0, 0), (0, 0), (1, 0), (0, 0))), {}, "holds nan"),
    "overflow": ([[1e400, 1.0], [2.0, 3.0]], {}, "holds inf in row 0, place"),
    "missing-in-a-frame": (
        pd.DataFrame({"a": pd.array([1, 2, None], dtype="Int64")}),
        {},
        "column 'a' holds nan in data row 3",
    ),
    "masked": (np.ma.masked_greater(X, 1.0), {}, "mask|nan"),
    "complex": (X + 1j, {}, "complex128: wanted real numbers"),
    "complex-tensor": (torch.as_tensor(X) + 1j, {}, "complex numbers: wanted real ones"),
    "strings": ([["a", "b"], ["c", "d"]], {}, "type <U1: wanted real numbers"),
    "objects": (np.array([[None, 1], [2, 3]]), {}, "type object: wanted real numbers"),
    "nothing": (None, {}, "wanted real numbers"),
    "dates": (np.array([["2020-01-01"]] * 3, dtype="datetime64[D]"), {}, r"datetime64\[D\]: wanted real numbers"),
    "ragged-lists": ([[1.0, 2.0], [3.0]], {}, "rows of equal length"),
    "empty-list": ([], {}, r"shape \[0\]: wanted \[rows"),
    "no-rows": (np.zeros((0, 3)), {}, r"shape \[0, 3\]: wanted \[rows.*at least one row"),
    "no-rows-of-whole-numbers": (np.zeros((0, 3), dtype=int), {}, r"shape \[0, 3\]: wanted \[rows"),
    "no-columns": (np.zeros((3, 0)), {}, r"shape \[3, 0\]: wanted \[rows.*one column"),
    "one-axis": (np.arange(5.0), {}, r"shape \[5\]: wanted \[rows"),
    "a-number": (3.0, {}, r"shape \[\]: wanted \[rows"),
    "series": (pd.Series([1.0, 2.0, 3.0]), {}, r"shape \[3\]: wanted \[rows"),
    "one-row": (X[:1], {}, "have 1 row: wanted at least 2"),
    "constant-columns": (FLAT, {"scale": "standardize"}, r"columns \[1, 3\] are constant.*drop them"),
    "constant-columns-unit": (FLAT, {"scale": "unit"}, r"columns \[1, 3\] are constant.*drop them"),
    "constant-columns-auto": (FLAT, {"scale": "auto"}, r"columns \[1, 3\] are constant.*'standardize'"),
    "constant-images": (np.ones((9, 1, 4, 4)), {"scale": "unit"}, "constant.*divide by 0"),
    "text-column": (pd.DataFrame({"a": [1, 2], "name": ["x", "y"]}), {}, "columns name are not real numbers"),
    "date-column": (pd.DataFrame({"a": [1, 2], "day": pd.to_datetime(["2020", "2021"])}), {}, "columns day are not"),
    "complex-column": (pd.DataFrame({"a": [1, 2], "wave": [1j, 2j]}), {}, "columns wave are not real numbers"),
    "empty-dataset": (Items([]), {}, "Dataset has 0 items: wanted at least 2"),
    "one-item": (Items([torch.zeros(3)]), {}, "Dataset has 1 items: wanted at least 2"),
    "nan-item": (Items(list(torch.as_tensor(broken(np.nan)))), {}, "Items holds nan in row 2"),
    "ragged-items": (Items([torch.zeros(3), torch.zeros(2)]), {}, r"item.*\[2\].*\[3\]|item.*\[3\].*\[2\]"),
    "other-keys": (Items([{"image": torch.zeros(3)}] * 3), {}, "'data' or 'x'|`data` or `x`"),
    "text-items": (Items(["a", "b", "c"]), {}, "wanted real numbers"),
    "no-length": (Endless(), {}, "map-style"),
    "unknown-scale": (X, {"scale": "log"}, "none, unit, standardize, auto, got 'log'"),
    "unknown-binarize": (X, {"binarize": "round"}, "dynamic, static, threshold, got 'round'"),
    "limit": (X, {"limit": 1}, "limit must be at least 2 rows, got 1"),
    "binarize-out-of-range": (X, {"binarize": "static"}, r"values in \[0, 1\], got -.* to .*: use scale='unit'"),
    "unknown-data": ("mnisst", {}, "unknown data 'mnisst': wanted digits, mnist, fashion_mnist, cifar10, celeba, or"),
    "unknown-suffix": ("x.xlsx", {}, r"'x.xlsx': wanted .*\.npy, \.npz, \.csv, \.parquet"),
}


@pytest.mark.parametrize(("source", "arguments", "message"), BAD.values(), ids=BAD)
def test_data_that_cannot_be_used_are_refused_with_a_reason(
    source: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(source, **arguments)


@few
@given(drawn(), sampled_from([np.float32, np.float64]), sampled_from([np.nan, np.inf, -np.inf]))
def test_no_number_that_is_not_finite_gets_in(draw: Any, dtype: Any, value: float) -> None:
    shape = draw.draw(arrays.array_shapes(min_dims=2, max_dims=4, max_side=4).filter(lambda sides: sides[0] > 1))
    x = draw.draw(arrays.arrays(dtype, shape, elements=floats(-1e3, 1e3, width=32)))
    place = tuple(draw.draw(integers(0, side - 1)) for side in shape)
    x[place] = value

    with pytest.raises(ValueError, match=rf"holds {value} in row \d+, place \[.*\]: wanted finite numbers"):
        prepare(x)


def archive(**parts: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **parts)
    return buffer.getvalue()


def array_file(x: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, x)
    return buffer.getvalue()


def zip_of_text() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("readme.txt", "no arrays here")
    return buffer.getvalue()


def parquet_file() -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame(X, columns=COLUMNS).to_parquet(buffer)
    return buffer.getvalue()


NOISE = b"\xfe\xff\x00" + np.random.default_rng(5).bytes(300)
SUFFIXES = (".npy", ".npz", ".csv", ".parquet")
BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    **{f"noise{suffix}": (f"noise{suffix}", NOISE, f"noise{suffix}") for suffix in SUFFIXES},
    **{f"empty{suffix}": (f"empty{suffix}", b"", f"empty{suffix}") for suffix in SUFFIXES},
    "cut.npy": ("cut.npy", array_file(X)[:200], r"cannot read .*cut\.npy"),
    "cut-head.npy": ("cut.npy", array_file(X)[:20], r"cannot read .*cut\.npy"),
    "broken-head.npy": ("head.npy", array_file(X)[:10] + b"(" * 118, r"head\.npy"),
    "cut.parquet": ("cut.parquet", parquet_file()[:200], r"cut\.parquet"),
    "broken.parquet": ("bad.parquet", parquet_file()[:4] + bytes(300) + parquet_file()[304:], r"bad\.parquet"),
    "zip-of-text.npz": ("text.npz", zip_of_text(), r"text\.npz"),
    "two-arrays.npz": ("two.npz", archive(a=X, b=X), r"two\.npz holds a, b: wanted one array of numbers, or 'x'"),
    "no-arrays.npz": ("none.npz", archive(), r"none\.npz holds nothing: wanted one array"),
    "text.npz": ("text.npz", archive(x=np.array([["a"], ["b"]])), r"text\.npz holds values of type <U1"),
    "number.npz": ("number.npz", archive(x=np.array(5.0)), r"wanted \[rows"),
    "one-axis.npy": ("axis.npy", array_file(X[:, 0]), r"axis.*has shape \[\d+\]: wanted \[rows"),
    "complex.npy": ("complex.npy", array_file(X + 1j), r"complex\.npy holds values of type complex128"),
    "nan.npy": ("nan.npy", array_file(broken(np.nan)), r"nan holds nan in row 2, place \[1\]"),
    "test-of-other-shape.npz": ("shapes.npz", archive(x_train=X, x_test=X[:, :2]), r"\[2\].*\[3\]|\[3\].*\[2\]"),
    "test-with-nan.npz": ("test.npz", archive(x_train=X, x_test=broken(np.nan)), "holds nan in row 2"),
    "test-without-rows.npz": ("test.npz", archive(x_train=X, x_test=X[:0]), "at least one row"),
    "labels-of-other-length.npz": ("y.npz", archive(x_train=X, x_test=X[:4], y_test=np.arange(7)), "y_test"),
    "ragged.csv": ("ragged.csv", b"a,b\n1,2\n3,4,5\n6\n", r"cannot read .*ragged\.csv: .*line 3"),
    "short-row.csv": ("short.csv", b"a,b\n1,2\n3\n5,6\n", r"short\.csv: column 'b' holds nan in data row 2"),
    "short-header.csv": ("columns.csv", b"a,b\n1,2,3\n4,5,6\n7,8,9\n", "header"),
    "text-column.csv": ("text.csv", b"a,name\n1,x\n3,y\n", r"text\.csv: columns name are not real numbers: drop"),
    "missing-value.csv": ("gap.csv", b"a,b\n1,\n2,4\n3,5\n", r"gap\.csv: column 'b' holds nan in data row 1"),
    "semicolons.csv": ("semi.csv", b"a;b\n1;2\n3;4\n", "looks separated by ';'"),
    "index.csv": ("index.csv", b",a\n0,1.5\n1,2.5\n2,1\n", "a column without a name"),
    "header-only.csv": ("head.csv", b"a,b\n", r"head.*(no rows|at least one row)"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_cannot_be_used_is_refused_with_a_reason(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ValueError, match=message) as caught:
        prepare(tmp_path / name)

    assert "\n" not in str(caught.value)
    assert "allow_pickle" not in str(caught.value)  # no advice to run what is in a file


def test_a_cut_archive_is_refused_and_closed(tmp_path: Path) -> None:
    (tmp_path / "cut.npz").write_bytes(archive(x=X)[:200])

    with pytest.raises(ValueError, match=r"cannot read .*cut\.npz"):
        prepare(tmp_path / "cut.npz")

    gc.collect()  # a file left open warns here, and a warning is an error


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name in ("missing.csv", "folder.csv"):
        with pytest.raises(OSError, match=rf"there is no file .*{name}"):
            prepare(tmp_path / name)


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["objects.npy", "objects.npz", "pickle.npy", "pickle.npz"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, name: str) -> None:
    path, trace = tmp_path / name, tmp_path / "executed"
    objects = np.array([[Touch(trace)], [Touch(trace)]], dtype=object)
    if name.startswith("pickle"):
        path.write_bytes(pickle.dumps(Touch(trace)))
    elif name.endswith(".npy"):
        np.save(path, objects, allow_pickle=True)
    else:
        np.savez(path, x=objects)

    with pytest.raises(ValueError, match=rf"cannot read .*{name}"):
        prepare(path)

    assert not trace.exists()
    loaded = np.load(path, allow_pickle=True)  # the charge is live
    if name == "objects.npz":
        loaded["x"]
        loaded.close()
    assert trace.exists()


# What a likelihood gives a density.


class Positive(nn.Module):
    """A likelihood of positive numbers."""

    outputs = 1

    def forward(self, loc: Tensor) -> dist.LogNormal:
        return dist.LogNormal(loc, 1.0)


BINARY, GREY, REAL = torch.eye(4)[:3], torch.rand(6, 4, generator=torch.Generator().manual_seed(0)), 3 * torch.eye(4)
OUTSIDE: dict[str, tuple[Any, Tensor, str]] = {
    "grey-for-bernoulli": (VARIANTS["bernoulli_vae"], GREY, r"outside the support of Bernoulli.*x lies in \[0, 1\]"),
    "real-for-bernoulli": (VARIANTS["bernoulli_vae"], REAL, "x holds 3 .*outside the support of Bernoulli.*x is real"),
    "signed-for-bernoulli": (VARIANTS["bernoulli_vae"], -GREY, r"x holds -0\..*support of Bernoulli.*x is real"),
    "signed-for-grey": (VARIANTS["continuous_bernoulli_vae"], -GREY, "support of ContinuousBernoulli.*x is real"),
    "real-for-grey": (VARIANTS["continuous_bernoulli_vae"], REAL, "support of ContinuousBernoulli.*x is real"),
    "grey-for-levels": (DiscretizedNormal(4), GREY, "DiscretizedNormal, multiples of 1/3 from 0 to 1; x lies in"),
    "real-for-levels": (DiscretizedNormal(4), REAL, "DiscretizedNormal.*x is real"),
    "binary-for-positive": (Positive(), BINARY, "x holds 0 .*support of Positive.*x is binary"),
}


@pytest.mark.parametrize(("made", "y", "message"), OUTSIDE.values(), ids=OUTSIDE)
def test_data_outside_the_support_are_refused_and_the_likelihood_that_is_named_takes_them(
    made: Any, y: Tensor, message: str
) -> None:
    y = y.double()
    variant = pair((4,), 2, likelihood=made) if isinstance(made, nn.Module) else made((4,), 2)
    with pytest.raises(ValueError, match=message) as caught:
        check_support(variant, y)

    named = re.findall(r"\w+_vae", str(caught.value))
    assert named
    for name in named:
        check_support(VARIANTS[name]((4,), 2), y)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("y", [BINARY, GREY, REAL], ids=["binary", "grey", "real"])
def test_data_are_refused_if_and_only_if_they_have_no_density(name: str, y: Tensor) -> None:
    """By the density itself: a Bernoulli's formula needs 0 or 1, its continuous sister [0, 1], a Normal a number."""
    variant, y = VARIANTS[name]((4,), 2), y.double()
    binary, unit = bool(((y == 0) | (y == 1)).all()), bool(((y >= 0) & (y <= 1)).all())
    fits = {"bernoulli_vae": binary, "continuous_bernoulli_vae": unit}.get(name, True)
    if fits:
        check_support(variant, y)
    else:
        with pytest.raises(ValueError, match="outside the support"):
            check_support(variant, y)


def test_one_value_in_many_rows_is_found() -> None:
    y = torch.zeros(10_000, 2)
    y[9_999, 1] = 0.5

    with pytest.raises(ValueError, match=r"x holds 0\.5 "):
        check_support(VARIANTS["bernoulli_vae"]((2,), 2), y)


# Digits: shift and division are in float64, whatever the dtype of the model.


@pytest.fixture
def single() -> Iterator[None]:
    """Models are in single precision, as they are unless somebody changes the default."""
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float64)


OFFSET = 1.7e9  # unix seconds: floats of single precision are 128 apart there
DIGITS = np.random.default_rng(0).integers(-4000, 4000, (300, 3)).astype(np.float64)  # exact with OFFSET, in float64
FAR: dict[str, Callable[[Any], Any]] = {
    "array": lambda x: x,
    "tensor": torch.as_tensor,
    "frame": pd.DataFrame,
    "whole": lambda x: x.astype(np.int64),
    "whole-tensor": lambda x: torch.as_tensor(x).to(torch.int32),
    "whole-frame": lambda x: pd.DataFrame(x.astype(np.int64)),
    "lists": lambda x: x.tolist(),
    "dataset": lambda x: Items(list(x)),
}


@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("kind", FAR)
def test_a_shift_of_the_data_changes_no_bound(kind: str) -> None:
    """Of the same weights: cast before the shift, 8000 values would become 63."""
    vae = VARIANTS["sigma_vae"]((3,), 1)
    found = []
    for offset in (0.0, OFFSET):
        data = prepare(FAR[kind](DIGITS + offset), scale="standardize")
        vae.model.scale = data.scale
        found.append((vae.in_model_units(data.test), bounds(vae, data, 4).elbo))
    (y, elbo), (far_y, far_elbo) = found

    assert y.dtype == torch.float32
    assert len(far_y.unique()) == len(y.unique()) > 100
    torch.testing.assert_close(far_y, y, rtol=1e-6, atol=1e-6)  # roundings of single precision
    torch.testing.assert_close(far_elbo, elbo, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("single")
def test_what_comes_back_has_the_digits_of_the_data(tmp_path: Path) -> None:
    """In a checkpoint too, and whatever dtype the model is cast to in between."""
    data = prepare(DIGITS + OFFSET, scale="standardize")
    vae = VARIANTS["sigma_vae"]((3,), 1)
    vae.model.scale = data.scale
    vae.model.half().float()
    again = load(save(tmp_path / "run", vae))
    again.model.to(torch.float32)

    assert next(again.model.parameters()).dtype == torch.float32
    for scale in (vae.model.scale, again.model.scale):
        assert (scale.shift.dtype, scale.width.dtype) == (torch.float64, torch.float64)
        back = scale.inverse(vae.in_model_units(data.test))
        assert float((back - data.test).abs().max()) < 1e-6 * float(scale.width.max()) * 4  # 4 widths out at the most
    assert float((sample(again, 50, seed=1) - sample(vae, 50, seed=1)).abs().max()) == 0.0
    assert len(sample(vae, 50)[:, 0].unique()) == 50
    assert len(reconstruct(vae, data)[:, 0].unique()) > 50


@pytest.mark.usefixtures("single")
def test_samples_keep_the_dtype_of_the_model_where_that_has_the_digits() -> None:
    data = prepare(DIGITS + 10_000, scale="standardize")  # 4 widths from 0
    vae = VARIANTS["sigma_vae"]((3,), 1)
    vae.model.scale = data.scale

    assert sample(vae, 2).dtype == torch.float32


NEAR = np.random.default_rng(0).normal(size=(50, 2))
SPACED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "single": (
        np.c_[NEAR[:, 0], NEAR[:, 1] + 4.5e6].astype(np.float32),
        {"scale": "standardize"},
        r"column 1 of ndarray lies near 4\.5e\+06 with a standard deviation of \d.*, and float32 has one number in "
        r"0\.5 there: subtract an offset first, pass float64",
    ),
    "double": (np.c_[NEAR[:, 0], 1e9 + 1e-7 * NEAR[:, 1]], {"scale": "unit"}, "column 1 .*float64 has one number in"),
    "beyond-2**53": (
        1_700_000_000_000_000_000 + np.arange(100)[:, None],
        {},
        "column 0 of x holds whole numbers from 1700000000000000000 to 1700000000000000099, where float64 has one "
        "number in 256",
    ),
    "beyond-2**53-by-name": (
        pd.DataFrame({"when": 1_700_000_000_000_000_000 + np.arange(100), "b": 0.5 * np.arange(100)}),
        {},
        "column 'when' holds whole numbers from",
    ),
    "constant-by-name": (
        pd.DataFrame({"a": NEAR[:, 0], "b": 7.0, "c": 0.0}),
        {"scale": "standardize"},
        r"columns \['b', 'c'\] are constant",
    ),
}


@pytest.mark.parametrize(("source", "arguments", "message"), SPACED.values(), ids=SPACED)
def test_a_column_without_its_digits_is_named(source: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(source, **arguments)


@pytest.mark.usefixtures("single")
def test_without_a_scale_the_digits_have_to_be_in_the_dtype_of_the_model() -> None:
    frame = pd.DataFrame({"a": NEAR[:, 0], "b": NEAR[:, 1] + 4.5e6})
    message = r"column 'b' of DataFrame lies near 4\.5e\+06 .*float32 has one number in 0\.5 there"

    for source in (frame, prepare(frame)):
        with pytest.raises(ValueError, match=message):
            fit(VARIANTS["sigma_vae"]((2,), 1), source, epochs=1, progress=False)
    in_double = VARIANTS["sigma_vae"]((2,), 1)
    in_double.model.double()
    in_double.guide.double()
    check_spacing(prepare(frame).resident, torch.float64)  # it has them


@pytest.mark.parametrize(
    ("x", "width"),
    [
        (NEAR * 1e-12, 1e-12),
        (NEAR * 1e-250, 1e-250),
        (NEAR * 1e-3 + 1e9, 1e-3),
        (1.7e18 + (NEAR * 1e14).astype(np.int64), 1e14),
    ],
    ids=["picometres", "tiny", "far", "nanoseconds"],
)
def test_what_varies_is_data_in_any_unit(x: Any, width: float) -> None:
    """A threshold of absolute size would call the first constant, one of relative size the third."""
    data = prepare(x, scale="standardize")
    expected = (data.resident.numpy() - data.resident.numpy().mean(0)) / width

    np.testing.assert_allclose(data.scale.width.numpy() / width, expected.std(0), rtol=1e-3)


# A part of the data is a sample of them.


def sorted_set(path: Path) -> Path:
    """Training and test data stored class by class: the number of the class, and noise."""
    r = np.random.default_rng(0)
    train, test = (np.c_[np.repeat(np.arange(10.0), rows), r.normal(size=10 * rows)] for rows in (200, 400))
    np.savez(path / "sorted.npz", x_train=train, x_test=test)
    return path / "sorted.npz"


def test_a_limit_is_a_sample_by_seed_of_both_parts(tmp_path: Path) -> None:
    """The mean of a draw without replacement, within 4 standard errors: of the first rows it would be below 1."""
    path = sorted_set(tmp_path)
    data, again, other = (prepare(path, limit=200, seed=seed) for seed in (1, 1, 2))
    error = math.sqrt(8.25 / 200)  # the variance of 0, ..., 9

    assert (len(data.resident), len(data.test)) == (200, 400)
    assert abs(float(data.resident[:, 0].mean()) - 4.5) < 4 * error
    assert abs(float(data.test[:, 0].mean()) - 4.5) < 4 * error / math.sqrt(2)
    assert_same(data, again)
    assert not torch.equal(data.resident, other.resident)
    assert not torch.equal(data.test, other.test)


@pytest.mark.parametrize("limit", [None, 20])
def test_a_tail_holds_out_the_last_rows(tmp_path: Path, limit: int | None) -> None:
    x = numbered(100, 2)
    np.savez(tmp_path / "x.npz", x=x.numpy(), y=np.arange(100))
    data = prepare(tmp_path / "x.npz", split="tail", limit=limit)
    assert data.origin is not None
    again = prepare(data.origin["source"], **{key: value for key, value in data.origin.items() if key != "source"})

    assert data.labels is not None
    assert data.test_labels is not None
    assert torch.equal(data.resident, x[data.labels])
    assert torch.equal(data.test, x[data.test_labels])
    assert (int(data.labels.max()) < 80, int(data.test_labels.min()) >= 80) == (True, True)
    assert bool((data.labels.diff() > 0).all() and (data.test_labels.diff() > 0).all())  # in their order
    assert (len(data.labels), len(data.test_labels)) == ((80, 20) if limit is None else (20, 5))
    assert_same(again, data)


@pytest.mark.parametrize("streams", [False, True], ids=["in-memory", "streamed"])
def test_validation_takes_the_tail_too(monkeypatch: pytest.MonkeyPatch, *, streams: bool) -> None:
    """Rows 80 to 99 are for the test, and of the 80 before them the last 20 for the choice of the epoch."""
    if streams:
        monkeypatch.setattr("ppl_vae.data.items.RESIDENT", 1)
    x, seen = numbered(100, 2), []
    monkeypatch.setattr("ppl_vae.training.loop.held_out", lambda variant, y: seen.append(y) or held_out(variant, y))
    data = prepare(Items(list(x)), split="tail")
    fit(VARIANTS["sigma_vae"]((2,), 1), data, epochs=1, validation=0.25, progress=False)

    assert torch.equal(data.test, x[80:])
    assert torch.equal(seen[0], x[60:80])


def test_a_split_is_at_random_or_the_tail() -> None:
    with pytest.raises(ValueError, match="split must be one of random, tail, got 'head'"):
        prepare(X, split="head")


# One door.

SPARSE = scipy.sparse.random(20, 3, 0.5, format="csr")
DOOR: dict[str, tuple[Callable[[], Any], str]] = {
    "loader": (lambda: DataLoader(TensorDataset(torch.as_tensor(X))), "x is a DataLoader: pass loader.dataset"),
    "sparse": (lambda: SPARSE, r"x is a sparse matrix, csr_matrix: pass x\.toarray\(\)"),
    "sparse-tensor": (lambda: torch.eye(3).to_sparse(), r"x is a sparse tensor, .*: pass x\.to_dense\(\)"),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged),
        "nested tensor: wanted",
    ),
    "meta": (lambda: torch.empty(4, 3, device="meta"), "x is on the device 'meta', where tensors hold no numbers"),
    "dates": (
        lambda: np.array([["2020"]] * 3, dtype="datetime64[s]"),
        r"pass seconds, \(x - x.min\(\)\) / np.timedelta64",
    ),
    "date-column": (lambda: pd.DataFrame({"day": pd.to_datetime(["2020", "2021"])}), "for dates pass seconds"),
    "ragged-tensors": (lambda: [torch.zeros(2), torch.zeros(3)], "x is ragged: wanted rows of equal length"),
    "no-items": (lambda: Items([]), "the Dataset has 0 items"),
    "nan": (lambda: broken(np.nan), r"x holds nan in row 2, place \[1\]"),
}


@pytest.mark.parametrize(("make", "message"), DOOR.values(), ids=DOOR)
def test_what_holds_no_rows_of_numbers_is_refused_at_every_door(make: Callable[[], Any], message: str) -> None:
    vae = VARIANTS["sigma_vae"]((3,), 1)
    for take in (prepare, partial(encode, vae), partial(fit, vae, progress=False)):
        with pytest.raises(ValueError, match=message):
            take(make())


HELD: dict[str, Callable[[], Any]] = {
    "array": lambda: X,
    "lists": X.tolist,
    "tensors": lambda: list(torch.as_tensor(X)),
    "frame": lambda: pd.DataFrame(X),
    "dataset": lambda: TensorDataset(torch.as_tensor(X)),
    "data": lambda: dataclasses.replace(prepare(-X), test=torch.as_tensor(X)),
}
TAKERS: dict[str, Callable[[Variant, Any], Any]] = {
    "encode": encode,
    "reconstruct": reconstruct,
    "bounds": lambda vae, x: bounds(vae, x, 3).elbo,
    "annealed": lambda vae, x: annealed(vae, x, chains=2, temperatures=2, leapfrogs=1).bound,
    "gaps": lambda vae, x: gaps(vae, x, 3, log_evidence=np.zeros(20), steps=1).refined,
    "collapse": lambda vae, x: torch.tensor(collapse(vae, x).variance),
    "noise_calibration": lambda vae, x: torch.tensor(noise_calibration(vae, x, num_particles=2).pit),
    "prior_predictive": lambda vae, x: torch.tensor([row.observed for row in prior_predictive(vae, x, replicates=2)]),
    "evaluate": lambda vae, x: torch.tensor(evaluate(vae, x, 3).bound_per_datum),
    "to_inferencedata": lambda vae, x: torch.tensor(to_inferencedata(vae, x, 3)["observed_data"]["x"].values),
    "check": lambda vae, x: torch.tensor(len(check(vae, x))),
}


@pytest.mark.parametrize("taker", TAKERS)
def test_whatever_holds_rows_is_taken_at_every_door(taker: str) -> None:
    vae = VARIANTS["sigma_vae"]((3,), 1)
    expected = TAKERS[taker](vae, torch.as_tensor(X))
    for make in HELD.values():
        assert torch.equal(TAKERS[taker](vae, make()), expected)


# Streamed data.


def test_codes_of_streamed_data_are_of_all_rows(streamed: Items, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = VARIANTS["sigma_vae"]((3,), 1)
    monkeypatch.setattr("ppl_vae.blocks.ROWS", 4)

    torch.testing.assert_close(encode(vae, streamed), encode(vae, numbered(11, 3)))


def test_a_part_of_streamed_data_is_a_sample_by_seed(streamed: Items, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.data.items.PART_NUMBERS", 6 * 3)
    part = tensor_of(streamed, part=True)

    assert len(part.unique(dim=0)) == 6
    assert bool(torch.isin(part[:, 0], numbered(11, 3)[:, 0]).all())
    assert not torch.equal(part, numbered(11, 3)[:6])


def test_what_needs_streamed_data_whole_names_the_remedy(streamed: Items) -> None:
    vae = VARIANTS["sigma_vae"]((3,), 1)
    for take in (reconstruct, bounds, evaluate, annealed, collapse):
        with pytest.raises(ValueError, match=r"x is a Dataset of 11 items, too large to hold: pass .*data\.resident"):
            take(vae, streamed)


# Rows at once.


class Counting(nn.Flatten):
    """Notes the rows of each batch that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize("taker", ["encode", "reconstruct", "bounds", "annealed", "gaps", "evaluate"])
def test_networks_see_few_rows_of_large_data(taker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.blocks.NUMBERS", 4 * 3)
    into, out = Counting(), Counting()
    decoder = nn.Sequential(out, nn.Linear(1, 3))
    vae = pair((3,), 1, likelihood=Gaussian(), encoder=nn.Sequential(into, nn.Linear(3, 4)), decoder=decoder)
    into.seen.clear()
    out.seen.clear()
    TAKERS[taker](vae, X)

    assert max(into.seen) <= 4
    assert max(out.seen, default=0) <= (10 if taker == "gaps" else 4)  # it refines with 10 draws per datum


def test_rows_of_ordinary_data_are_as_many_as_they_were() -> None:
    """Random streams are cut there: figures of such data would move."""
    assert {rows_at_once(shape) for shape in [(5,), (1, 8, 8), (1, 28, 28), (3, 32, 32)]} == {1000}
    assert rows_at_once((3, 256, 256)) == 21
    assert rows_at_once((3, 10_000, 10_000)) == 1


# Remedies.


class Counts(nn.Module):
    outputs = 1

    def forward(self, a: Tensor) -> dist.Poisson:
        return dist.Poisson(a.exp())


class Shares(nn.Module):
    outputs = 2

    def forward(self, a: Tensor, b: Tensor) -> dist.Beta:
        return dist.Beta(a.exp(), b.exp())


@pytest.mark.parametrize("likelihood", [Counts, Positive])
def test_data_that_a_scale_moved_out_of_the_support_are_told_of_the_scale(likelihood: type[nn.Module]) -> None:
    x = torch.poisson(torch.full((60, 3), 9.0)) + 1
    with pytest.raises(ValueError, match="x itself, in its own units, lies in the support: use scale='none'"):
        fit(pair((3,), 1, likelihood=likelihood()), prepare(x, scale="auto"), progress=False)
    fit(pair((3,), 1, likelihood=likelihood()), prepare(x), epochs=1, progress=False)


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_a_datum_on_the_edge_of_the_support_is_named(edge: float) -> None:
    x = torch.rand(60, 3).clamp(0.01, 0.99)
    fit(pair((3,), 1, likelihood=Shares()), x, epochs=1, progress=False)
    x[50, 1] = edge
    message = rf"x holds {edge:g} .*on the edge of the support of Shares, where log p\(x \| z\) is -?inf: move"
    with pytest.raises(ValueError, match=message):
        fit(pair((3,), 1, likelihood=Shares()), x, epochs=1, progress=False)
