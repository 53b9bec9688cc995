"""The architecture: which module imports which, what an import does, and what an installation provides."""

import ast
import graphlib
import importlib
import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import ppl_vae

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("models", "guides", "ppl_vae", "experiments")  # in order: each may import those to its left
LINKED = ("models", "guides", "experiments")  # links inside ppl_vae, which are therefore its subpackages
HEAVY = ("arviz", "jinja2", "matplotlib", "onnxruntime", "pandas", "sklearn", "torchvision")


def found() -> dict[str, Path]:
    """Every module of ours by its full name, found in the folders at the root."""
    modules = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT)
            if folder == "ppl_vae" and inside.parts[1] in LINKED:
                continue
            parts = ("ppl_vae",) * (folder != "ppl_vae") + inside.with_suffix("").parts
            modules[".".join(parts).removesuffix(".__init__")] = path
    return modules


MODULES = found()


class Import(NamedTuple):
    """An imported module, and whether the import runs when the importing module is imported."""

    name: str
    at_once: bool


def imports(module: str, path: Path, tree: ast.AST) -> Iterator[Import]:
    """Yield the imports of a module, with full names."""
    later = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, id(node) not in later) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(inner if inner in MODULES else base, id(node) not in later)


IMPORTS = {name: list(imports(name, path, ast.parse(path.read_text()))) for name, path in MODULES.items()}


def folder_of(name: str) -> str:
    """The folder at the root in which a module of ours is."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LINKED else parts[0]


def ours(name: str) -> bool:
    return name.split(".")[0] in ("ppl_vae", *LINKED)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("from ..models.half import Half", ("ppl_vae.models.half", True)),
        ("from .guide import Guide", ("ppl_vae.guides.guide", True)),
        ("from .. import models", ("ppl_vae.models", True)),
        ("from . import guide", ("ppl_vae.guides.guide", True)),
        ("from .. import data", ("ppl_vae.data", True)),
        ("import ppl_vae.data", ("ppl_vae.data", True)),
        ("from models import Half", ("models", True)),
        ("def f():\n    from ..training import fit", ("ppl_vae.training", False)),
        ("if TYPE_CHECKING:\n    import pandas as pd", ("pandas", False)),
    ],
)
def test_imports_are_resolved_to_full_names(code: str, expected: tuple[str, bool]) -> None:
    assert list(imports("ppl_vae.guides.mean_field", Path("mean_field.py"), ast.parse(code))) == [expected]


def test_every_folder_is_walked() -> None:
    assert {"ppl_vae", "ppl_vae.models.half", "ppl_vae.guides.guide", "ppl_vae.elbo.pathwise"} <= MODULES.keys()
    assert {folder_of(name) for name in MODULES} == set(FOLDERS)
    assert sum(map(len, IMPORTS.values())) > 3 * len(MODULES)


def where(wrong: Callable[[str, str], bool]) -> list[tuple[str, str]]:
    """The imports for which ``wrong`` is true, as pairs of the importing and the imported module."""
    return [(module, name) for module, found in IMPORTS.items() for name, _ in found if wrong(module, name)]


def test_imports_follow_the_arrow() -> None:
    """All imports of a file follow experiments -> ppl_vae -> guides -> models, and go through ppl_vae."""

    def leaves(module: str, name: str) -> bool:
        return ours(name) and FOLDERS.index(folder_of(name)) > FOLDERS.index(folder_of(module))

    assert where(leaves) == []
    assert where(lambda module, name: name.split(".")[0] in LINKED) == []


def test_models_and_guides_need_pyro_and_torch_alone() -> None:
    allowed = {"pyro", "torch", *sys.stdlib_module_names}

    def needs_more(module: str, name: str) -> bool:
        return folder_of(module) in ("models", "guides") and not ours(name) and name.split(".")[0] not in allowed

    assert where(needs_more) == []


def test_nothing_imports_an_experiment() -> None:
    assert where(lambda module, name: folder_of(module) != "experiments" and "experiments" in name.split(".")) == []


def test_no_experiment_imports_another() -> None:
    experiments = [name for name in MODULES if folder_of(name) == "experiments"]

    assert [name for module in experiments for name, _ in IMPORTS[module] if ours(name) and name in experiments] == []


# The rooms, from the ground up. Each room answers one question and imports only from the rooms below it.
GROUND = ("blocks", "digests", "drawing", "estimate", "files", "progress", "streams")
PAIR = (
    "assembly",
    "catalogue",
    "checkpoint",
    "coding",
    "conversion",
    "description",
    "noise",
    "recipes",
    "snapshot",
    "variant",
)
ROOMS = (
    "ground",
    "models",
    "guides",
    "data",
    "elbo",
    "svi",
    "pair",
    "contracts",
    "evaluation",
    "training",
    "verification",
    "studies",
    "report",
    "diagnosis",
    "front door",
    "cli",
    "experiments",
)


def room_of(name: str) -> str:
    """The room in which a module of ours is."""
    parts = name.split(".")
    if len(parts) == 1:
        return "front door"
    if parts[1] in GROUND:
        return "ground"
    return "pair" if parts[1] in PAIR else parts[1].replace("__main__", "cli")


def test_every_module_stands_in_a_room() -> None:
    assert {room_of(name) for name in MODULES} == set(ROOMS)


def test_a_room_imports_from_those_below_it_alone() -> None:
    """This holds for all imports of a file, also for those inside functions and those only for types."""

    def goes_up(module: str, name: str) -> bool:
        return ours(name) and ROOMS.index(room_of(name)) > ROOMS.index(room_of(module))

    assert where(goes_up) == []


def test_no_module_has_the_name_of_a_public_function() -> None:
    """Otherwise one would hide the other: ``import ppl_vae.bounds as b`` would give a function."""
    functions = {
        name
        for module in LIBRARY
        for name in exported(ast.parse(MODULES[module].read_text())) or []
        if inspect.isfunction(getattr(importlib.import_module(module), name))
    }
    modules = {name.rpartition(".")[2] for name in LIBRARY}

    assert {"bounds", "check", "fit", "verify"} <= functions
    assert modules & functions == set()


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {
        module: {name for name, at_once in found if at_once and name in MODULES and name != module}
        for module, found in IMPORTS.items()
    }

    order = list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the cycle

    assert order[-1] == "ppl_vae" or order.index("ppl_vae") > order.index("ppl_vae.training.fitting")
    assert order.index("ppl_vae.models.half") < order.index("ppl_vae.guides.guide")


def test_a_folder_at_the_root_is_linked_into_the_package() -> None:
    links = {folder: ROOT / "ppl_vae" / folder for folder in LINKED}

    # The links are relative, so that the checkout can be moved.
    assert {folder: os.readlink(link) for folder, link in links.items()} == {name: f"../{name}" for name in LINKED}
    assert {folder: link.resolve() for folder, link in links.items()} == {name: ROOT / name for name in LINKED}


# What an import does.

STATE = """
import json, logging, os, random, signal, sys, warnings
import numpy, torch, pyro

def state():
    loggers = {"": logging.root} | logging.Logger.manager.loggerDict
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "torch stream": torch.get_rng_state().tolist(),
        "numpy stream": str(numpy.random.get_state()),
        "python stream": str(random.getstate()),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "torch checks": torch.distributions.Distribution._validate_args,
        "pyro checks": [pyro.infer.util.is_validation_enabled(), pyro.poutine.util.is_validation_enabled()],
        "parameters": sorted(pyro.get_param_store().keys()),
        "warnings": [str(entry) for entry in warnings.filters],
        "handlers": {name: str(getattr(logger, "handlers", [])) for name, logger in loggers.items()
                     if getattr(logger, "handlers", [])},
        "levels": {name: logger.level for name, logger in loggers.items() if getattr(logger, "level", 0)},
        "numpy errors": str(numpy.geterr()),
        "printing": [str(numpy.get_printoptions()), str(vars(torch._tensor_str.PRINT_OPTS))],
        "environment": dict(os.environ),
        "hooks": [str(sys.excepthook), str(signal.getsignal(signal.SIGINT))],
        "path": list(sys.path),
    }

before, modules = state(), set(sys.modules)
import ppl_vae
after = state()
print(json.dumps({
    "changed": [name for name in before if before[name] != after[name]],
    "compared": len(before),
    "new": sorted({name.split(".")[0] for name in set(sys.modules) - modules}),
    "loaded": sorted({name.split(".")[0] for name in sys.modules}),
}))
"""


def test_importing_the_library_changes_nothing_and_loads_no_heavy_package() -> None:
    """The test runs in a new interpreter."""
    ran = subprocess.run([sys.executable, "-c", STATE], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stderr
    fresh = json.loads(ran.stdout)

    assert fresh["changed"] == []
    assert {"ppl_vae", "torch", "pyro"} <= set(fresh["loaded"])
    assert set(HEAVY) & set(fresh["loaded"]) == set()


# Names.


def exported(tree: ast.Module) -> list[str] | None:
    """The literal ``__all__`` of a module, or None if it has none."""
    for node in tree.body:
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        if [getattr(target, "id", "") for target in targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    return None


def in_order(name: str) -> tuple[bool, bool, str]:
    """The sort key: constants, then classes, then functions, each in alphabetical order."""
    return not name.isupper(), not name[0].isupper(), name


LIBRARY = [name for name in MODULES if folder_of(name) != "experiments" and not name.endswith("__main__")]


def test_a_module_lists_its_names_in_order() -> None:
    names = {module: exported(ast.parse(MODULES[module].read_text())) for module in LIBRARY}

    assert [module for module, found in names.items() if found is None] == []
    listed = {module: found for module, found in names.items() if found is not None}
    assert listed == {module: sorted(set(found), key=in_order) for module, found in listed.items()}
    absent = [
        (module, name)
        for module, found in listed.items()
        for name in found
        if not hasattr(importlib.import_module(module), name)
    ]
    assert absent == []


def test_the_front_door_lists_all_that_it_imports() -> None:
    tree = ast.parse(MODULES["ppl_vae"].read_text())
    imported = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }

    assert set(ppl_vae.__all__) == imported
    assert {type(node) for node in tree.body} == {ast.Expr, ast.ImportFrom, ast.Assign}  # no logic


# What an installation provides.


PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_what_is_imported_is_declared() -> None:
    """Each import belongs to a declared distribution. An extra that is not installed has the name of its package."""
    project = PYPROJECT["project"]
    declared = {
        re.split(r"[\[<>=]", requirement)[0].lower()
        for part in (project["dependencies"], *project["optional-dependencies"].values())
        for requirement in part
    }
    owners = importlib.metadata.packages_distributions()
    tops = {name.split(".")[0] for found in IMPORTS.values() for name, _ in found if not ours(name)}

    undeclared = {
        top
        for top in tops - set(sys.stdlib_module_names)
        if not declared & {owner.lower() for owner in owners.get(top, [top.replace("_", "-")])}
    }

    assert undeclared == set()


def test_every_folder_of_code_is_packaged() -> None:
    packages = PYPROJECT["tool"]["setuptools"]["packages"]

    assert sorted(packages) == sorted(name for name, path in MODULES.items() if path.name == "__init__.py")


def test_everything_beside_the_code_is_packaged() -> None:
    data = PYPROJECT["tool"]["setuptools"]["package-data"]
    packaged = {path for name, patterns in data.items() for pattern in patterns for path in folder(name).glob(pattern)}
    others = {path for path in (ROOT / "ppl_vae").rglob("*") if path.suffix in (".jinja", ".typed")}

    assert len(others) == 5
    assert others == packaged


def folder(package: str) -> Path:
    """The folder of a package."""
    return MODULES[package].parent


def test_an_installation_provides_one_name() -> None:
    provided = [name for name, owners in importlib.metadata.packages_distributions().items() if "ppl_vae" in owners]

    assert [name for name in provided if not name.startswith("__editable__")] == ["ppl_vae"]


def test_an_installation_provides_one_command() -> None:
    commands = importlib.metadata.distribution("ppl_vae").entry_points.select(group="console_scripts")

    assert [(command.name, command.value) for command in commands] == [("ppl-vae", "ppl_vae.cli:main")]


# Checks that ``python -O`` would leave out.


def test_no_check_vanishes_under_optimisation() -> None:
    vanishing = [
        (module, node.lineno)
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert) or (isinstance(node, ast.Name) and node.id == "__debug__")
    ]

    assert vanishing == []
