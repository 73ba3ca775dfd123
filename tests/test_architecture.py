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
        if package == "callbacks":
            assert len(found) == 1, path
            name = "".join(word.capitalize() for word in path.stem.split("_"))
            assert found[0].__name__.lower() == name.lower() or found[0].__name__.lower().endswith(name.lower()), path


def test_importing_train_does_not_import_torch() -> None:
    code = "import sys, train; print(*{'torch', 'lightning', 'numpy', 'matplotlib'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""
