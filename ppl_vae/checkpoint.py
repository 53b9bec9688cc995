"""Checkpoints: a folder with tensors in safetensors and a recipe in JSON, neither of which can be executed."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .assembly import pair
from .catalogue import VARIANTS
from .files import whole_folder
from .recipes import PAIR, built
from .variant import Variant

__all__ = ["load", "notes_of", "recipe_of", "refuse_other", "save"]

FORMAT = 1
TENSORS, CONFIG = "variant.safetensors", "variant.json"


def save(path: str | Path, variant: Variant, notes: dict[str, Any] | None = None) -> Path:
    """Write a variant: its weights, its buffers, the scale of the data, and the recipe that builds it again.

    Args:
        path: The folder. It is created, or replaced as a whole. An earlier checkpoint stays until the new one is
            complete.
        variant: The variant to save.
        notes: Further values, which are written beside the recipe as JSON.

    Returns:
        The folder.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If the folder exists and is not a checkpoint.
    """
    path = Path(path)
    refuse_other(path)
    tensors = {
        f"{half}.{name}": tensor.detach().cpu().clone().contiguous()
        for half, module in (("model", variant.model), ("guide", variant.guide))
        for name, tensor in module.state_dict().items()
    }
    config = {"format": FORMAT, "recipe": variant.model.recipe, "notes": notes or {}}
    with whole_folder(path) as fresh:
        save_file(tensors, fresh / TENSORS)
        (fresh / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        shutil.copymode(fresh / CONFIG, fresh / TENSORS)  # otherwise only the owner could read the tensors
    return path


def refuse_other(path: Path) -> None:
    """Refuse a path that exists and is not an earlier checkpoint.

    Raises:
        ValueError: If writing there would replace something else.
    """
    if path.exists() and not (path / CONFIG).is_file():
        raise ValueError(f"{path} exists and is no checkpoint: it is not replaced, choose another folder")


def load(path: str | Path, into: Variant | None = None) -> Variant:
    """Read a variant, in eval mode, on the CPU.

    Args:
        path: A folder that ``save`` wrote.
        into: A pair with the same parts, to be filled in place. It is needed if the builder was given parts of your
            own, networks included, because a file holds no code. Parts of this library are found by name: likelihoods,
            priors, guides, penalties, schedules and estimators. The ``width`` of the networks is kept as a number.

    Returns:
        The variant. It is ``into`` itself where that is given.

    Raises:
        ValueError: If the folder is not a checkpoint, is damaged, or does not fit the pair.
    """
    path = Path(path)
    config = _config(path)
    variant = _build(path, config) if into is None else into
    try:
        with safe_open(path / TENSORS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path / TENSORS} cannot be read: {str(error).splitlines()[0]}") from None
    halves = {"model": variant.model, "guide": variant.guide}
    found = {half: _part(tensors, half) for half in halves}
    for half, module in halves.items():
        _check_tensors(path, half, module.state_dict(), found[half])
    strange = sorted(name for name in tensors if name.partition(".")[0] not in halves)
    if strange:
        raise ValueError(f"{path} holds tensors of neither the model nor the guide: {strange[:3]}")
    for half, module in halves.items():
        dtype = next((found[half][name].dtype for name, _ in module.named_parameters()), None)
        module.to(dtype)
        module.load_state_dict(found[half])
        module.eval()
    return variant


def _part(tensors: dict[str, Tensor], half: str) -> dict[str, Tensor]:
    """The tensors of the model or of the guide, by their names in its state."""
    return {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.partition(".")[0] == half}


def notes_of(path: str | Path) -> dict[str, Any]:
    """The notes that ``save`` wrote beside the recipe."""
    return dict(_config(Path(path)).get("notes", {}))


def recipe_of(path: str | Path) -> dict[str, Any]:
    """The recipe that ``save`` wrote, or an empty one if the pair had none."""
    return dict(_config(Path(path)).get("recipe") or {})


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG).read_text())
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"{path} is no checkpoint: wanted a folder with a readable {CONFIG} and {TENSORS}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{path / CONFIG} is not of format {FORMAT}: another version may have written it")
    return config


def _build(path: Path, config: dict[str, Any]) -> Variant:
    recipe = config.get("recipe") or {}
    if not isinstance(recipe, dict):
        raise ValueError(f"{path / CONFIG} is damaged: its recipe is not a table")
    name = str(recipe.get("variant"))
    parts = recipe.get("parts", ["all"])
    build = pair if name == PAIR else VARIANTS.get(name)
    if parts or build is None:
        listed = ", ".join(map(str, parts)) if parts else f"unknown variant {name!r}"
        raise ValueError(
            f"{path} was built with parts of your own ({listed}): build the same pair and pass it as into="
        )
    try:
        with torch.random.fork_rng(devices=[]):
            options = {name: built(option) for name, option in recipe["options"].items()}
            return build(tuple(recipe["x_shape"]), recipe["z_dim"], **options)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path / CONFIG} does not build a {name}: {error}") from None


def _check_tensors(path: Path, half: str, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or extra:
        raise ValueError(f"{path} does not fit the {half}: missing {missing[:3]}, not expected {extra[:3]}")
    for name, tensor in wanted.items():
        got, shape = list(found[name].shape), list(tensor.shape)
        if got != shape:
            raise ValueError(f"{path} does not fit the {half}: {name} has shape {got}, wanted {shape}")
