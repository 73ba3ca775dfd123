"""Who may import whom. The rules keep every room of the house usable without the ones above it."""

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

COMMANDS = ("train", "evaluate", "predict", "export")
# Each room with those it may import. What is not here imports nothing of ours.
MAY_IMPORT = {
    "runs": set(),
    "lit_models": {"runs"},
    "datamodules": {"runs"},
    "loggers": {"runs"},
    "plots": {"runs"},
    "sweeps": {"plots", "runs"},
    "hydra_plugins": {"sweeps", "runs"},
    "callbacks": {"loggers", "plots", "runs", "sweeps"},
    "cli": {"runs", "sweeps"},
}
READ_CONFIGS = {"cli", "sweeps", "hydra_plugins"}


def modules(room: str) -> list[Path]:
    files = sorted((PROJECT / room).rglob("*.py"))
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


def test_every_room_is_on_the_plan() -> None:
    rooms = {path.parent.name for path in PROJECT.glob("*/*.py")} - {"tests", "benchmarks"}
    assert rooms == set(MAY_IMPORT)
    assert {path.stem for path in PROJECT.glob("*.py")} == set(COMMANDS)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_downward(room: str) -> None:
    ours = {*MAY_IMPORT, *COMMANDS, "benchmarks", "tests"}
    for path in modules(room):
        for name in imported(path):
            package = name.partition(".")[0]
            assert package not in ours or package == room or package in MAY_IMPORT[room], f"{path} imports {name}"


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_no_circle_within_a_room(room: str) -> None:
    files = {".".join(path.relative_to(PROJECT).with_suffix("").parts): path for path in modules(room)}
    needs = {
        module: {other for other in files if other != module and any(f"{n}.".startswith(f"{other}.") for n in names)}
        for module, names in ((module, imported(path)) for module, path in files.items())
    }
    while free := [module for module, others in needs.items() if not others & set(needs)]:
        for module in free:
            del needs[module]
    assert not needs, f"these import each other: {', '.join(needs)}"


@pytest.mark.parametrize("room", sorted(set(MAY_IMPORT) - READ_CONFIGS))
def test_only_the_command_line_and_sweeps_read_configs(room: str) -> None:
    for path in modules(room):
        assert not {"hydra", "omegaconf"} & {name.partition(".")[0] for name in imported(path)}, path


def test_nets_need_nothing_but_torch() -> None:
    for path in modules("lit_models/nets"):
        packages = {name.partition(".")[0] for name in imported(path) if not name.startswith("lit_models.nets")}
        assert packages <= {"torch", "torchvision", *sys.stdlib_module_names}, path


@pytest.mark.parametrize(("room", "kinds"), [("callbacks", (pl.Callback,)), ("loggers", (Logger, Profiler))])
def test_a_room_holds_what_its_name_says(room: str, kinds: tuple[type, ...]) -> None:
    for path in modules(room):
        if path.name == "__init__.py":
            continue
        module = importlib.import_module(f"{room}.{path.stem}")
        own = [item for item in vars(module).values() if inspect.isclass(item) and item.__module__ == module.__name__]
        found = [item for item in own if issubclass(item, kinds)]
        assert found, path
        if room == "callbacks":
            assert len(found) == 1, path
            name = "".join(word.capitalize() for word in path.stem.split("_"))
            assert found[0].__name__.lower() == name.lower() or found[0].__name__.lower().endswith(name.lower()), path


def test_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, train; print(*{'torch', 'lightning', 'numpy', 'matplotlib'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""
