"""fit: train a variant by stochastic variational inference on the loss of its traces."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Unpack

import torch

from ..contracts import preflight
from ..data.data_set import Data, tensor_of
from ..data.prepared import unsplit
from ..progress import Progress
from ..streams import chosen, seeded
from ..variant import Variant
from .batches import Batches
from .loop import Loop
from .machine import kernels_last, threads_for
from .optimizers import Maker, name_of
from .options import FitOptions, Speed
from .receipts import receipt
from .validation import hold_out

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Fit", "fit"]


@dataclass(frozen=True)
class Fit:
    """A trained pair, with the history and the numbers of its training. ``fit`` returns it.

    Attributes:
        variant: The trained pair, in eval mode, with the weights of ``best_epoch``.
        data: The data that it was trained on.
        rows: The history, a dictionary per epoch.
        best_epoch: The epoch of the best held-out objective, or the last epoch if nothing was held out.
        settings: The numbers of the run: epochs, steps, batch_size, lr, seed and rows, the number of training data;
            ``optimizer``, its name with its settings; ``backend``, with the reason if it is eager; and ``precision``.
            If the precision is lowered, ``precision_error`` is the absolute change of the first loss, in nats per
            datum, with the same noise.
    """

    variant: Variant
    data: Data
    rows: list[dict[str, Any]]
    best_epoch: int
    settings: dict[str, Any]

    @property
    def history(self) -> "pd.DataFrame":
        """A table with a row per epoch.

        Both losses are in nats per datum, in the data's units, and go down. The columns are:

        * ``loss``, the loss that was optimised, averaged over the steps of the epoch;
        * ``held_out_loss``, minus the bound of the held-out data, or minus the MAP objective if the guide is a point
          mass. It contains no weight on the KL and no penalty;
        * ``held_out_error``, its standard error over data;
        * ``kl_weight``, the weight of the KL;
        * ``sigma``, the root mean square of the scale of p(x | z), in the model's units, as in ``evaluate``. The mean
          is over the held-out data, or over the last batch if nothing is held out;
        * ``seconds``, the time since the start.
        """
        import pandas as pd

        return pd.DataFrame(self.rows).set_index("epoch")

    def receipt(self) -> str:
        """The objective that was optimised, with its numbers."""
        train = self.data.resident
        rows = train[chosen(len(train), self.variant.at_once, int(self.settings["seed"]))]
        y = self.variant.in_model_units(tensor_of(rows))
        if self.data.binarize:
            with seeded(0):
                y = torch.bernoulli(y)
        return receipt(self.variant, y, self.settings)


def fit(
    variant: Variant,
    data: Any,
    *,
    epochs: int = FitOptions.epochs,
    batch_size: int = FitOptions.batch_size,
    lr: float = FitOptions.lr,
    schedule: str | Callable[[float], float] = FitOptions.schedule,
    patience: int | None = FitOptions.patience,
    validation: Any = 0.1,
    seed: int = FitOptions.seed,
    device: str = FitOptions.device,
    optimizer: Maker | None = FitOptions.optimizer,
    progress: bool | str = True,
    **speed: Unpack[Speed],
) -> Fit:
    """Train a variant, in place, with one optimizer on the loss of its traces.

    Pyro's global parameter store and the caller's random streams are left alone.

    A module inside the model or the guide is frozen if all of its parameters have ``requires_grad=False``. It stays as
    it is. It always runs in eval mode, so that its running statistics do not move and its dropout does not act. The
    receipt names the frozen modules.

    Args:
        variant: A pair from a builder of ``VARIANTS``, or any ``Variant(model, guide, loss)``.
        data: The ``Data`` that ``prepare`` returns; or an array, tensor, data frame or Dataset in the data's units,
            which the scale of the variant converts.
        epochs: The number of passes over the data.
        batch_size: The number of rows per step. The weight of a short last batch is proportional to its rows. A last
            batch of one row joins the batch before it if a batch norm could not train on it.
        lr: The learning rate.
        schedule: ``"cosine"``, ``"constant"``, or a function from the share of the training that is done, in [0, 1), to
            a factor on ``lr``.
        patience: Stop after this number of epochs without a better held-out objective. None never stops early.
        validation: The share of the training rows to hold out, or the data to hold out, or None to hold out nothing.
            Rows are held out at random, or from the end if ``prepare`` split the data by ``"tail"``.
        seed: Seed of the order of the data, of the noise and of the split.
        device: ``"auto"`` (CUDA if there is a CUDA device, else the CPU), ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        optimizer: A callable from a list of parameters to an optimizer of torch, for example
            ``functools.partial(torch.optim.AdamW, weight_decay=1e-2)``. None is a fused Adam without weight decay. In
            each step ``fit`` sets the learning rate of every parameter group to ``lr`` times the schedule. The
            ``weight_decay`` of ``torch.optim.Adam`` adds ``weight_decay * w`` to the gradient of the loss per datum,
            also for biases, for the encoder and for the scale of the likelihood, and that of ``AdamW`` shrinks them
            apart from the gradient. A prior on the weights of the model is a penalty, ``models.WeightPrior``.
        progress: Whether to show the loss and the time left. A string is used as the label.
        speed: The options that concern speed alone, ``backend``, ``precision`` and ``channels_last``; see ``Speed``.

    Returns:
        The trained pair with its history and its receipt; see ``Fit``.

    Raises:
        TypeError: If a keyword in ``speed`` is unknown.
        ValueError: If the data, an argument or the pair cannot be used. The message says what came and what was wanted.
        Diverged: If the loss is no longer finite. The message names the step and the term, and the last good weights
            are in place.

    Example:
        >>> import torch
        >>> from ppl_vae import VARIANTS, fit
        >>> variant = VARIANTS["sigma_vae"](x_shape=(6,), z_dim=2)
        >>> trained = fit(variant, torch.randn(200, 6), epochs=2, progress=False)
        >>> list(trained.history.columns)
        ['loss', 'held_out_loss', 'held_out_error', 'kl_weight', 'sigma', 'seconds']
    """
    unknown = speed.keys() - Speed.__annotations__
    if unknown:
        raise TypeError(f"fit() got an unexpected keyword argument {min(unknown)!r}")
    options = FitOptions(epochs, batch_size, lr, schedule, patience, seed, device, optimizer=optimizer, **speed)
    variant.model.to(options.place)
    variant.guide.to(options.place)
    data = data if isinstance(data, Data) else replace(unsplit(data), scale=variant.model.scale)
    variant.model.scale.load_state_dict(data.scale.state_dict())
    label = progress if isinstance(progress, str) else variant.name
    bar = Progress(label, epochs, shown=bool(progress))  # before the seed: its import draws from Python's stream
    with seeded(seed):
        train, held_back = hold_out(variant, data, validation)
        batches = Batches(variant, train, batch_size, draw=data.binarize is not None)
        preflight(variant, batches.first())
        loop = Loop(variant, batches, held_back, options)
        elements = batch_size * math.prod(data.x_shape)
        with bar, threads_for(elements), kernels_last(variant, on=options.channels_last):
            while loop.goes_on:
                bar.update(loop.run_epoch())
        loop.finish()
    return Fit(variant, data, loop.rows, loop.best_epoch, _settings(loop))


def _settings(loop: Loop) -> dict[str, Any]:
    """The numbers of a run, as ``Fit.settings`` has them."""
    options, reason = loop.options, loop.descend.reason
    settings = {
        "epochs": loop.epoch,
        "steps": loop.step,
        "batch_size": options.batch_size,
        "lr": options.lr,
        "optimizer": name_of(loop.optimizer),
        "seed": options.seed,
        "rows": loop.batches.rows,
        "backend": f"eager: {reason}" if reason else options.runs_on,
        "precision": options.precision,
    }
    if loop.precision_error is not None:
        settings["precision_error"] = loop.precision_error
    return settings
