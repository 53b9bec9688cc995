"""Feature spaces for the Frechet distance: a small classifier, principal components, a user's network, Inception."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..blocks import rows_at_once
from ..files import whole_file
from ..guides import encoder
from ..guides.networks import width_of
from ..streams import seeded

__all__ = [
    "Classifier",
    "Features",
    "classifier",
    "features_for",
    "from_file",
    "inception",
    "principal_components",
    "read_classifier",
    "write_classifier",
]


class Features(NamedTuple):
    """A map from data [rows, *x_shape] in the model's units to features [rows, d], with its name."""

    name: str
    apply: Callable[[Tensor], Tensor]

    @property
    def distance(self) -> str:
        """The name of a Frechet distance in this space."""
        return "FID" if self.name.startswith("Inception") else "Frechet distance"


class _Projection:
    """The coordinates of data on principal components."""

    def __init__(self, pca: Any) -> None:
        self.pca = pca

    def __call__(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.pca.transform(x.flatten(1).cpu().numpy()))


def principal_components(train: Tensor, count: int = 50) -> Features:
    """The first ``count`` principal components of the training data [rows, *x_shape]."""
    from sklearn.decomposition import PCA

    rows = train.flatten(1).cpu()
    pca = PCA(min(count, *rows.shape), random_state=0).fit(rows.numpy())
    return Features(f"{pca.n_components_} principal components", _Projection(pca))


class Classifier(nn.Module):
    """A small classifier in single precision, whose last hidden layer gives the features [rows, width].

    Args:
        x_shape: Shape of one datum.
        width: The number of features.
        classes: The number of classes.

    Attributes:
        shift, spread: The mean and the standard deviation of all numbers of the training data, [].
        right: The share of the training labels that it predicts, [].
    """

    shift: Tensor
    spread: Tensor
    right: Tensor

    def __init__(self, x_shape: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        network = encoder(x_shape)
        self.body = nn.Sequential(network, nn.Linear(width_of(network, x_shape), width), nn.Tanh()).float()
        self.head = nn.Linear(width, classes, dtype=torch.float32)
        for name in ("shift", "spread", "right"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    def scaled(self, x: Tensor) -> Tensor:
        """Data [rows, *x_shape] in the model's units, with the mean 0 and the standard deviation 1."""
        return ((x.cpu() - self.shift) / self.spread).float()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """The features of data [rows, *x_shape] in the model's units."""
        return torch.cat([self.body(self.scaled(rows)) for rows in x.split(rows_at_once(x.shape[1:]))])

    @property
    def named(self) -> Features:
        """The features, with their name."""
        right = f"{float(self.right):.1%} of the training labels right"
        return Features(f"{self.head.in_features} features of a classifier ({right})", self)


def classifier(train: Tensor, labels: Tensor, *, width: int = 32, epochs: int = 10, seed: int = 0) -> Features:
    """The last hidden layer of a small classifier that is trained on labels.

    Args:
        train: Training data [rows, *x_shape], in the model's units.
        labels: The labels of ``train``, [rows], whole numbers.
        width: The number d of features.
        epochs: The number of passes over the data.
        seed: Seed of the initial weights and the order of the data. The same seed gives the same features.
    """
    classes, targets = labels.unique(return_inverse=True)
    with seeded(seed):
        network = Classifier(tuple(train.shape[1:]), width, len(classes))
        network.shift.copy_(train.mean())
        network.spread.copy_(train.std().clamp_min(1e-12))
        x = network.scaled(train)
        optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(128):
                optimizer.zero_grad(set_to_none=True)
                nn.functional.cross_entropy(network.head(network.body(x[rows])), targets[rows]).backward()
                optimizer.step()
    with torch.no_grad():
        network.right.copy_(network.head(network(train)).argmax(-1).eq(targets).double().mean())
    return network.requires_grad_(requires_grad=False).named


def write_classifier(path: Path, features: Features) -> None:
    """Write the classifier of a feature space to a file of tensors.

    Raises:
        ValueError: If the features are not those of a ``Classifier``.
    """
    if not isinstance(features.apply, Classifier):
        raise ValueError(f"only a classifier is written to a file, got {features.name}")
    with whole_file(path) as part:
        save_file(features.apply.state_dict(), part)


def read_classifier(path: Path, x_shape: tuple[int, ...]) -> Features:
    """Read the classifier that ``write_classifier`` wrote, for data of the given shape.

    Raises:
        ValueError: If the file is damaged or does not suit the data.
    """
    try:
        state = load_file(path)
        classes, width = state["head.weight"].shape
        network = Classifier(x_shape, width, classes)
        network.load_state_dict(state)
    except (SafetensorError, OSError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} holds no classifier for these data: {str(error).splitlines()[0]}") from None
    return network.requires_grad_(requires_grad=False).named


class _Session:
    """A network in ONNX. It is opened where it is first used, so that another process opens the file again."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.session: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "session": None}

    def open(self) -> None:
        """Open the file.

        Raises:
            ValueError: If it is not an ONNX network, or ``onnxruntime`` is not installed.
        """
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise ValueError("a features file needs onnxruntime: pip install 'ppl_vae[onnx]'") from None
        try:
            self.session = onnxruntime.InferenceSession(self.path, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - onnxruntime raises bare exceptions of its own making
            raise ValueError(f"{self.path} is not an ONNX network: {str(error).splitlines()[0]}") from None

    def __call__(self, x: Tensor) -> Tensor:
        if self.session is None:
            self.open()
        name = self.session.get_inputs()[0].name
        some = x.split(min(500, rows_at_once(x.shape[1:])))
        chunks = [self.session.run(None, {name: rows.float().cpu().numpy()})[0] for rows in some]
        return torch.cat([torch.as_tensor(chunk).flatten(1) for chunk in chunks])


def from_file(path: str | Path) -> Features:
    """A user's network in ONNX, with one input [rows, *x_shape] in the model's units and one output [rows, ...].

    ONNX is a graph of named operations. Nothing in the file is executed as code.

    Raises:
        ValueError: If the file is missing or is not an ONNX network, or ``onnxruntime`` is not installed.
    """
    if not Path(path).is_file() or Path(path).suffix != ".onnx":
        raise ValueError(f"--features wants an existing .onnx file, got {str(path)!r}: torch.onnx.export writes one")
    session = _Session(path)
    session.open()
    return Features(f"the network {Path(path).name}", session)


class _Pool:
    """Inception's pool features."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"Inception wants images [rows, 1 or 3, height, width], got {list(x.shape)}")
        grey = x.expand(-1, 3, -1, -1).mul(255).clamp(0, 255).round().to(torch.uint8)
        return torch.cat([self.network(rows)[0] for rows in grey.split(100)])


def inception(weights: str | None = None) -> Features:
    """Inception's 2048 pool features by torch-fidelity, for images in [0, 1]. The distance is then called FID.

    Args:
        weights: The path of torch-fidelity's weights file. By default torch-fidelity downloads it.

    Raises:
        ValueError: If ``torch-fidelity`` is not installed.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError:
        raise ValueError("FID needs torch-fidelity: pip install 'ppl_vae[fid]'") from None
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=weights)
    return Features("Inception's 2048 pool features", _Pool(network))


def features_for(train: Tensor, labels: Tensor | None, choice: str | None = None, seed: int = 0) -> Features:
    """The feature space of an evaluation: ``"pca"``, ``"classifier"``, ``"inception"`` or an ONNX file.

    By default it is the classifier where there are at least two classes of labels, and principal components otherwise.

    Args:
        train: Training data [rows, *x_shape], in the model's units.
        labels: The labels of ``train``, [rows], or None.
        choice: The name of the feature space, or the path of an ONNX file.
        seed: Seed of the classifier.

    Raises:
        ValueError: If the classifier is chosen without labels, or a file or package is missing.
    """
    if choice == "inception":
        return inception()
    if choice not in (None, "pca", "classifier"):
        return from_file(choice)
    if choice == "classifier" and labels is None:
        raise ValueError("features='classifier' needs labels, and these data have none: use 'pca'")
    if choice == "pca" or labels is None or len(labels.unique()) < 2:
        return principal_components(train)
    return classifier(train, labels, seed=seed)
