"""Which package may import which. Each package stays usable without those above it in CONTRIBUTING.md's diagram."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler

from tests.conftest import PROJECT

COMMANDS = ("train", "evaluate", "predict", "export", "demo")
# Each package of this project with those that it may import.
MAY_IMPORT = {
    "runs": set(),
    "lit_models": {"runs"},
    "datamodules": {"runs"},
    "loggers": {"runs"},
    "plots": {"runs"},
    "sweeps": {"plots", "runs"},
    "hydra_plugins": {"sweeps", "runs"},
    "callbacks": {"loggers", "plots", "runs", "sweeps"},
    "cli": {"plots", "runs", "sweeps"},
}
READ_CONFIGS = {"cli", "sweeps", "hydra_plugins"}


def modules(package: str) -> list[Path]:
    files = sorted((PROJECT / package).rglob("*.py"))
    assert files
    return files


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_package_is_in_the_diagram() -> None:
    packages = {path.parent.name for path in PROJECT.glob("*/*.py")} - {"tests", "benchmarks", "docs"}
    assert packages == set(MAY_IMPORT)
    assert {path.stem for path in PROJECT.glob("*.py")} == set(COMMANDS)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_packages_below_them(package: str) -> None:
    ours = {*MAY_IMPORT, *COMMANDS, "benchmarks", "tests"}
    for path in modules(package):
        for name in imported(path):
            other = name.partition(".")[0]
            assert other not in ours or other == package or other in MAY_IMPORT[package], f"{path} imports {name}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_modules_of_a_package_have_no_import_cycle(package: str) -> None:
    files = {".".join(path.relative_to(PROJECT).with_suffix("").parts): path for path in modules(package)}
    needs = {
        module: {other for other in files if other != module and any(f"{n}.".startswith(f"{other}.") for n in names)}
        for module, names in ((module, imported(path)) for module, path in files.items())
    }
    while free := [module for module, others in needs.items() if not others & set(needs)]:
        for module in free:
            del needs[module]
    assert not needs, f"these import each other: {', '.join(needs)}"


@pytest.mark.parametrize("package", sorted(set(MAY_IMPORT) - READ_CONFIGS))
def test_only_cli_and_sweeps_import_hydra(package: str) -> None:
    for path in modules(package):
        assert not {"hydra", "omegaconf"} & {name.partition(".")[0] for name in imported(path)}, path


def test_nets_import_only_torch_and_torchvision() -> None:
    for path in modules("lit_models/nets"):
        roots = {name.partition(".")[0] for name in imported(path) if not name.startswith("lit_models.nets")}
        assert roots <= {"torch", "torchvision", *sys.stdlib_module_names}, path


@pytest.mark.parametrize(("package", "kinds"), [("callbacks", (pl.Callback,)), ("loggers", (Logger, Profiler))])
def test_callbacks_and_loggers_define_what_their_file_is_named_after(package: str, kinds: tuple[type, ...]) -> None:
    for path in modules(package):
        if path.name == "__init__.py":
            continue
        module = importlib.import_module(f"{package}.{path.stem}")
        own = [item for item in vars(module).values() if inspect.isclass(item) and item.__module__ == module.__name__]
        found = [item for item in own if issubclass(item, kinds)]
        assert found, path
        assert len(found) == 1 or package == "loggers", path  # a file of profilers has several
        assert all(item.__name__.lower().endswith(path.stem.replace("_", "")) for item in found), path


def test_only_internals_touches_private_attributes_of_libraries() -> None:
    files = [path for package in MAY_IMPORT for path in modules(package)] + [PROJECT / f"{c}.py" for c in COMMANDS]
    found = {file: names for file in files if (names := foreign_private_attributes(file))}
    assert found.pop(PROJECT / "runs/internals.py")
    assert not found


def foreign_private_attributes(file: Path) -> set[str]:
    """Return the attributes that begin with one underscore, except those that the file itself defines."""
    attributes = {part for name in imported(file) for part in name.split(".")}
    own = {"_exit", "_replace", "_asdict", "_fields"}  # public names of os and of named tuples
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            (own if of_self else attributes).add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    # Names that end with an underscore are those of Hydra's settings, such as _target_.
    return {name for name in attributes - own if name[0] == "_" and not name.endswith("_")}


def test_importing_train_does_not_import_torch() -> None:
    code = "import sys, train; print(*{'torch', 'lightning', 'numpy', 'matplotlib'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""
