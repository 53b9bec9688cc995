"""Feature spaces for the Frechet distance: a small classifier, principal components, a user's network, Inception."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..blocks import rows_at_once
from ..guides import encoder
from ..streams import seeded

__all__ = ["Features", "classifier", "features_for", "from_file", "inception", "principal_components"]


class Features(NamedTuple):
    """A map from data [rows, *x_shape] in the model's units to features [rows, d], with its name."""

    name: str
    apply: Callable[[Tensor], Tensor]

    @property
    def distance(self) -> str:
        """The name of a Frechet distance in this space."""
        return "FID" if self.name.startswith("Inception") else "Frechet distance"


def principal_components(train: Tensor, count: int = 50) -> Features:
    """The first ``count`` principal components of the training data [rows, *x_shape]."""
    from sklearn.decomposition import PCA

    rows = train.flatten(1).cpu()
    pca = PCA(min(count, *rows.shape), random_state=0).fit(rows.numpy())

    def apply(x: Tensor) -> Tensor:
        return torch.as_tensor(pca.transform(x.flatten(1).cpu().numpy()))

    return Features(f"{pca.n_components_} principal components", apply)


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
    shift, spread, some = train.mean(), train.std().clamp_min(1e-12), rows_at_once(train.shape[1:])
    x = ((train - shift) / spread).float()
    with seeded(seed):
        body = nn.Sequential(encoder(tuple(train.shape[1:])), nn.LazyLinear(width), nn.Tanh()).float()
        body(x[:1])
        network = nn.Sequential(body, nn.Linear(width, len(classes), dtype=torch.float32))
        optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(128):
                optimizer.zero_grad(set_to_none=True)
                nn.functional.cross_entropy(network(x[rows]), targets[rows]).backward()
                optimizer.step()

    @torch.no_grad()
    def apply(x: Tensor) -> Tensor:
        return torch.cat([body(((rows.cpu() - shift) / spread).float()) for rows in x.split(some)])

    with torch.no_grad():
        right = torch.cat([network(rows).argmax(-1) for rows in x.split(some)]).eq(targets).double().mean()
    return Features(f"{width} features of a classifier ({right:.1%} of the training labels right)", apply)


def from_file(path: str | Path) -> Features:
    """A user's network in ONNX, with one input [rows, *x_shape] in the model's units and one output [rows, ...].

    ONNX is a graph of named operations. Nothing in the file is executed as code.

    Raises:
        ValueError: If the file is missing or is not an ONNX network, or ``onnxruntime`` is not installed.
    """
    if not Path(path).is_file() or Path(path).suffix != ".onnx":
        raise ValueError(f"--features wants an existing .onnx file, got {str(path)!r}: torch.onnx.export writes one")
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ValueError("a features file needs onnxruntime: pip install 'ppl_vae[onnx]'") from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime raises bare exceptions of its own making
        raise ValueError(f"{path} is not an ONNX network: {str(error).splitlines()[0]}") from None
    name = session.get_inputs()[0].name

    def apply(x: Tensor) -> Tensor:
        some = x.split(min(500, rows_at_once(x.shape[1:])))
        chunks = [session.run(None, {name: rows.float().cpu().numpy()})[0] for rows in some]
        return torch.cat([torch.as_tensor(chunk).flatten(1) for chunk in chunks])

    return Features(f"the network {Path(path).name}", apply)


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

    @torch.no_grad()
    def apply(x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"Inception wants images [rows, 1 or 3, height, width], got {list(x.shape)}")
        grey = x.expand(-1, 3, -1, -1).mul(255).clamp(0, 255).round().to(torch.uint8)
        return torch.cat([network(rows)[0] for rows in grey.split(100)])

    return Features("Inception's 2048 pool features", apply)


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
