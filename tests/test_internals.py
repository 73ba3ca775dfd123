"""The private attributes of Lightning and torch that runs/internals.py uses exist and work as expected."""

import importlib
import inspect
import signal
import struct
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies.launchers import subprocess_script

from runs import internals
from sweeps import parallel


@pytest.fixture
def trainer() -> pl.Trainer:
    return pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)


def missing_message(library: str, name: str) -> str:
    return f"this version of {library} has no {name} any more: see {Path(internals.__file__).name}"


def test_launcher_of_joblib_has_the_function_that_runs_a_job() -> None:
    assert hasattr(importlib.import_module(parallel.LAUNCHER), "execute_job"), "see sweeps/parallel.py"


def test_tensors_are_treated_in_one_call() -> None:
    ones, twos = [torch.ones(2), torch.ones(3)], [torch.full((2,), 2.0), torch.full((3,), 2.0)]
    sums = internals.foreach_add(ones, twos, alpha=2)
    assert [tensor.tolist() for tensor in sums] == [[5.0] * 2, [5.0] * 3], missing_message("torch", "_foreach_add")
    assert [norm.item() for norm in internals.foreach_norm(twos)] == pytest.approx([8**0.5, 12**0.5])


def test_automatic_and_manual_optimization_share_the_step_counter(trainer: pl.Trainer) -> None:
    loop = trainer.fit_loop.epoch_loop
    for place in ("manual_optimization.optim_step_progress", "automatic_optimization.optim_progress.optimizer.step"):
        node = loop
        for name in place.split("."):
            assert hasattr(node, name), missing_message("Lightning", f"fit_loop.epoch_loop.{place}")
            node = getattr(node, name)
    internals.share_step_counter(trainer)
    internals.count_steps(trainer, 3)
    assert loop.automatic_optimization.optim_progress.optimizer_steps == 3, missing_message(
        "Lightning", "one counter of steps"
    )
    model = pl.LightningModule()
    model.automatic_optimization = False
    trainer.strategy.connect(model)
    assert trainer.global_step == 3, missing_message("Lightning", "global_step of that counter")


def test_total_batch_idx_is_readable(trainer: pl.Trainer) -> None:
    assert internals.total_batch_idx(trainer) == -1, missing_message("Lightning", "fit_loop.epoch_loop.total_batch_idx")


def test_training_dataloader_can_be_reset(trainer: pl.Trainer) -> None:
    assert hasattr(trainer.fit_loop, "_combined_loader"), missing_message("Lightning", "fit_loop._combined_loader")
    source = inspect.getsource(type(trainer.fit_loop).setup_data)
    assert "self._combined_loader is not None" in source, missing_message(
        "Lightning", "test for fit_loop._combined_loader"
    )


def test_fit_loop_has_the_attributes_to_start_the_next_epoch(trainer: pl.Trainer) -> None:
    for name in ("restarted_on_epoch_end", "reset_restart_stage", "epoch_progress"):
        assert hasattr(trainer.fit_loop, name), missing_message("Lightning", f"fit_loop.{name}")
    assert hasattr(trainer.fit_loop.epoch_loop, "restarting"), missing_message(
        "Lightning", "fit_loop.epoch_loop.restarting"
    )


def test_state_of_a_fresh_fit_loop_needs_no_trainer(trainer: pl.Trainer) -> None:
    assert internals.fit_loop_state() == trainer.fit_loop.state_dict(), missing_message("Lightning", "_FitLoop(None)")


def test_functions_that_restore_a_training_exist(trainer: pl.Trainer) -> None:
    for name in internals.RESTORING:
        assert hasattr(trainer._checkpoint_connector, name), missing_message("Lightning", f"CheckpointConnector.{name}")


def test_reopen_epoch_lowers_the_processed_count(trainer: pl.Trainer) -> None:
    progress = trainer.fit_loop.state_dict().get("epoch_progress", {})
    counters = {"ready", "started", "processed", "completed"}
    assert {name: set(counts) for name, counts in progress.items()} == {"total": counters, "current": counters}, (
        missing_message("Lightning", "epoch_progress in the state of fit_loop")
    )
    counts = {"ready": 3, "started": 3, "processed": 3, "completed": 2}
    checkpoint = {"loops": {"fit_loop": {"epoch_progress": {"current": counts}}}}
    internals.reopen_epoch(checkpoint)
    assert counts == {"ready": 3, "started": 3, "processed": 2, "completed": 2}


def test_schedule_length_keys_exist_in_scheduler_states() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10, cycle_momentum=False)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    names = {*one_cycle.state_dict(), *cosine.state_dict()}
    for name in internals.SCHEDULE_LENGTH_KEYS:
        assert name in names, missing_message("torch", f"{name} in the state of a scheduler")
    other = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20, cycle_momentum=False)
    changed = {key for key, value in one_cycle.state_dict().items() if value != other.state_dict()[key]}
    assert changed <= {*internals.SCHEDULE_LENGTH_KEYS}, missing_message("torch", f"schedule that depends on {changed}")


def test_signal_handlers_of_lightning_can_be_disabled() -> None:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    connector = getattr(trainer, "_signal_connector", None)
    assert hasattr(connector, "register_signal_handlers"), missing_message(
        "Lightning", "Trainer._signal_connector.register_signal_handlers"
    )
    before = signal.getsignal(signal.SIGTERM)
    internals.disable_lightning_signal_handlers(trainer)
    trainer._signal_connector.register_signal_handlers()
    assert signal.getsignal(signal.SIGTERM) is before


def test_child_processes_can_be_taken_from_the_launcher() -> None:
    launcher = subprocess_script._SubprocessScriptLauncher(SimpleNamespace(), num_processes=2, num_nodes=1)
    assert getattr(launcher, "procs", None) == [], missing_message("Lightning", "_SubprocessScriptLauncher.procs")
    process = object()
    watched = launcher.procs
    watched.append(process)
    assert internals.take_child_processes(SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))) == [process]
    assert watched == []


def test_single_process_run_has_no_child_processes() -> None:
    assert internals.take_child_processes(SimpleNamespace(strategy=SimpleNamespace(launcher=None))) == []


def test_logged_metrics_are_readable_by_stage(trainer: pl.Trainer) -> None:
    assert hasattr(trainer, "_results"), missing_message("Lightning", "Trainer._results")
    results = trainer.fit_loop.epoch_loop._results
    parameters = {"on_step", "on_epoch", "prog_bar", "logger"}
    assert parameters <= set(inspect.signature(results.log).parameters), missing_message(
        "Lightning", "_ResultCollection.log"
    )
    results.log("training_step", "both", torch.tensor(1.0), on_step=True, on_epoch=True, batch_size=1)
    results.log("training_step", "step", torch.tensor(2.0), on_step=True, on_epoch=False, batch_size=1)
    results.log("training_step", "step_step", torch.tensor(3.0), on_step=True, on_epoch=False, batch_size=1)
    trainer.state.fn, trainer.training = pl.trainer.states.TrainerFn.FITTING, True
    values, sent = internals.epoch_results(trainer)
    assert (values, sent) == ({"both": torch.tensor(1.0)}, {"both_epoch"}), missing_message(
        "Lightning", "values over an epoch"
    )
    assert internals.step_results(trainer) == {"step": torch.tensor(2.0), "step_step": torch.tensor(3.0)}, (
        missing_message("Lightning", "values of a step")
    )


def test_resumed_epoch_can_end_as_any_other(trainer: pl.Trainer) -> None:
    for name in ("restarted_on_epoch_end", "resumed_on_epoch_end", "restarted_mid_epoch", "_restarting"):
        assert hasattr(trainer.fit_loop, name), missing_message("Lightning", f"fit_loop.{name}")
    progress = getattr(trainer.fit_loop.epoch_loop, "scheduler_progress", None)
    assert progress and progress.increment_ready, missing_message("Lightning", "epoch_loop.scheduler_progress")
    source = inspect.getsource(type(trainer.fit_loop).on_advance_end)
    assert "if not self.restarting and" in source, missing_message(
        "Lightning", "exception for resumed epochs in fit_loop"
    )


def test_strategies_that_copy_this_process_are_known() -> None:
    started = [
        internals.starts_copies(pl.Trainer(strategy=strategy, devices=2, accelerator="cpu", logger=False))
        for strategy in ("ddp", "ddp_spawn", "ddp_fork")
    ]
    assert started == [False, True, True], missing_message("Lightning", "cluster_environment of launchers")


def test_state_dict_has_the_versions_of_its_layers() -> None:
    weights = torch.nn.BatchNorm1d(2).state_dict()
    weights._metadata |= {"": {"version": 2, "assign_to_params_buffers": True}, "a": 3, "b": {"version": [1]}}
    internals.copy_layer_versions(weights, copy := type(weights)())
    assert copy._metadata == {"": {"version": 2}}, missing_message("torch", "_metadata of a state dict")


def test_position_of_the_generator_of_torch_is_where_it_is_read() -> None:
    """After every draw it is one that is accepted, and the state is as long as the 624 numbers and what is read."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for count in (0, 1, 622, 1, 1, 700, 3):
            torch.rand(count)
            internals.check_mersenne_twister(torch.get_rng_state())
            left, position = struct.unpack_from("=i4xQ", torch.get_rng_state().numpy().tobytes(), 8)
        assert (left, position) == (625 - 80, 80)  # of 1,328 draws in all
