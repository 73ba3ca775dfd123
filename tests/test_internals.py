"""Private entries of libraries that runs/internals.py uses. A new version may lack one: its name is in the failure."""

import signal
from types import SimpleNamespace

import lightning.pytorch as pl
from lightning.pytorch.strategies.launchers import subprocess_script

from runs.internals import disable_lightning_signal_handlers, take_child_processes

VERSION = f"Lightning {pl.__version__}"


def test_lightning_installs_its_signal_handlers_through_this_connector() -> None:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    connector = getattr(trainer, "_signal_connector", None)
    assert hasattr(connector, "register_signal_handlers"), (
        f"{VERSION} has no Trainer._signal_connector.register_signal_handlers: see disable_lightning_signal_handlers"
    )
    before = signal.getsignal(signal.SIGTERM)
    disable_lightning_signal_handlers(trainer)
    trainer._signal_connector.register_signal_handlers()
    assert signal.getsignal(signal.SIGTERM) is before


def test_lightning_watches_the_processes_in_this_list() -> None:
    launcher = subprocess_script._SubprocessScriptLauncher(SimpleNamespace(), num_processes=2, num_nodes=1)
    assert getattr(launcher, "procs", None) == [], (
        f"{VERSION} has no list _SubprocessScriptLauncher.procs: see take_child_processes"
    )
    process = object()
    watched = launcher.procs
    watched.append(process)
    assert take_child_processes(SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))) == [process]
    assert watched == []


def test_a_run_of_one_process_has_no_launcher() -> None:
    assert take_child_processes(SimpleNamespace(strategy=SimpleNamespace(launcher=None))) == []
