"""Who may know whom. The rules keep every part usable without the others."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT

OURS = {path.stem for path in PROJECT.glob("*.py")} | {"lit_models", "datamodules", "callbacks"}
OURS |= {"benchmarks", "hydra_plugins", "tests"}
MAY_IMPORT = {  # folder -> which of our own parts it may import, and which other packages where that is limited
    "lit_models/nets": ({"lit_models.nets"}, {"torch", "torchvision", *sys.stdlib_module_names}),
    "lit_models": ({"lit_models"}, None),
    "datamodules": ({"datamodules"}, None),
    "callbacks": ({"callbacks", "lit_models"}, None),
    "hydra_plugins": ({"callbacks"}, None),
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_parts_import_only_what_they_may(folder: str) -> None:
    ours, others = MAY_IMPORT[folder]
    files = list((PROJECT / folder).glob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            package = name.partition(".")[0]
            if package in OURS:
                assert any(f"{name}.".startswith(f"{allowed}.") for allowed in ours), f"{path} imports {name}"
            elif others is not None:
                assert package in others, f"{path} imports {name}"


@pytest.mark.parametrize("folder", [folder for folder in MAY_IMPORT if folder != "hydra_plugins"])
def test_only_the_scripts_know_the_config(folder: str) -> None:
    for path in (PROJECT / folder).glob("*.py"):
        if path.name == "sweep.py":  # the one callback that is Hydra's own
            continue
        assert not {"hydra", "omegaconf"} & {name.partition(".")[0] for name in imported(path)}, path


def test_train_is_wiring_only() -> None:
    assert len((PROJECT / "train.py").read_text().splitlines()) <= 100


def test_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, train; print(*{'torch', 'lightning', 'numpy', 'matplotlib'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""
