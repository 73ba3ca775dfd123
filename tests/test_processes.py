"""Several processes or hosts train one run as one process would, write one run directory, and stop together."""

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from tests.conftest import PROJECT

pytestmark = pytest.mark.slow

# 897 training examples: 14 global batches of 64, and a last one of a single example for two processes.
DATA = ("model=deep_logistic", "data=tabular", "data.size=1003", "data.val_size=106", "logger=none")
RUN = (*DATA, "trainer.max_epochs=3", "optimizer=sgd", "optimizer.lr=0.1", "optimizer.momentum=0.9", "scheduler=none")
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "data.batch_size=32")
ONE = ("trainer.accelerator=cpu", "data.batch_size=64")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(folder: Path, *command: str, **environment: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "MASTER_PORT")}
    return subprocess.Popen(
        [sys.executable, "-u", *command],
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextlib.contextmanager
def kill_at_exit(*processes: subprocess.Popen) -> Iterator[None]:
    """Kill the process groups at the end of the block, whatever happens."""
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_for_group(group: int, seconds: float = 30) -> None:
    """Wait until no process of a group is left."""
    end = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.05)
        raise AssertionError(f"a process of group {group} is left after {seconds} s")


def wait_all(*processes: subprocess.Popen) -> list[tuple[str, str]]:
    """Wait until all processes have ended with exit code 0. Return the stdout and stderr of each."""
    with kill_at_exit(*processes):
        outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs


def read_figures(folder: Path) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Return the rows of metrics.csv, without seconds, and the final metrics of a finished run."""
    with open(folder / "metrics.csv", newline="") as lines:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)]
    for row in rows:
        row.pop("seconds", None)
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished"
    return rows, result["metrics"]


def assert_same_figures(ours: tuple, theirs: tuple) -> None:
    assert len(ours[0]) == len(theirs[0]) == 3
    for row, other in zip(ours[0], theirs[0], strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-4)


@pytest.fixture(scope="module")
def single_process(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Return the figures of one process whose batch is that of two processes together."""
    folder = tmp_path_factory.mktemp("single")
    wait_all(start(folder, str(PROJECT / "train.py"), *RUN, *ONE))
    return read_figures(folder / "outputs/last")


def only_run_dir(folder: Path) -> Path:
    """Return the only run directory below ``folder``."""
    (run,) = folder.glob("outputs/deep_logistic_on_tabular/*")
    assert sorted(path.name for path in run.iterdir()) == [
        ".lock", "checkpoints", "config.yaml", "metrics.csv", "pictures", "result.json", "train.log"
    ]  # fmt: skip
    assert (folder / "outputs/last").resolve() == run.resolve()
    assert sorted(path.name for path in folder.iterdir()) == ["outputs"]
    return run


def test_two_processes_train_like_one(single_process: tuple, tmp_path: Path) -> None:
    ((printed, errors),) = wait_all(start(tmp_path, str(PROJECT / "train.py"), *RUN, *TWO, "trainer.devices=2"))
    assert errors == ""
    assert "897 examples in 15 batches; validated on 106 held out; 2 processes on cpu" in printed
    assert printed.count("test accuracy") == 1
    assert_same_figures(read_figures(only_run_dir(tmp_path)), single_process)


def test_torchrun_trains_like_one_process(single_process: tuple, tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    ((printed, _),) = wait_all(start(tmp_path, *torchrun, str(PROJECT / "train.py"), *RUN, *TWO))
    assert printed.count("test accuracy") == 1
    assert_same_figures(read_figures(only_run_dir(tmp_path)), single_process)


def test_torchrun_resumes_by_the_same_command(single_process: tuple, tmp_path: Path) -> None:
    """Each process finds the checkpoint in the directory that was typed."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    command = (*torchrun, str(PROJECT / "train.py"), *RUN, *TWO, "hydra.run.dir=run", "resume=auto")
    wait_all(start(tmp_path, *command, "trainer.max_epochs=2"))
    ((printed, _),) = wait_all(start(tmp_path, *command))
    assert "since it was resumed" in printed
    assert_same_figures(read_figures(tmp_path / "run"), single_process)


def start_two_hosts(folder: Path, *overrides: str) -> list[subprocess.Popen]:
    """Start two torchrun agents that share no directory and connect through a socket."""
    meet = ("--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={free_port()}")
    return [
        start(
            folder / f"host{number}",
            *("-m", "torch.distributed.run", f"--node_rank={number}", f"--local_addr=127.0.0.{number + 1}", *meet),
            *(str(PROJECT / "train.py"), *RUN, *TWO, *overrides),
        )
        for number in range(2)
    ]


def test_two_hosts_train_like_one_process(single_process: tuple, tmp_path: Path) -> None:
    """The first host writes the run directory."""
    wait_all(*start_two_hosts(tmp_path))
    assert_same_figures(read_figures(only_run_dir(tmp_path / "host0")), single_process)
    assert list((tmp_path / "host1").iterdir()) == []


def test_host_that_does_not_see_the_checkpoint_ends_the_run(tmp_path: Path) -> None:
    """It would begin anew, and wait for the other one for ever."""
    overrides = ("hydra.run.dir=run", "resume=auto")
    wait_all(*start_two_hosts(tmp_path, *overrides, "trainer.max_epochs=1"))
    agents = start_two_hosts(tmp_path, *overrides)
    with kill_at_exit(*agents):
        errors = [agent.communicate(timeout=100)[1] for agent in agents]
    assert all(agent.returncode for agent in agents)
    assert (
        "error: the processes would begin at different steps: 15, 0; each of them must see the checkpoint" in errors[0]
    )


def test_slurm_tasks_train_like_one_process(single_process: tuple, tmp_path: Path) -> None:
    """Two tasks with the environment variables that srun sets."""
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    job |= {"SLURM_NNODES": "1", "SLURM_NODELIST": "127.0.0.1", "SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1"}
    job |= {"MASTER_PORT": str(free_port())}
    tasks = [
        start(tmp_path, str(PROJECT / "train.py"), *RUN, *TWO, **job, SLURM_PROCID=rank, SLURM_LOCALID=rank)
        for rank in ("0", "1")
    ]
    wait_all(*tasks)
    assert_same_figures(read_figures(only_run_dir(tmp_path)), single_process)


def test_sweep_jobs_with_two_processes_train_like_one(single_process: tuple, tmp_path: Path) -> None:
    ((_, errors),) = wait_all(
        start(tmp_path, str(PROJECT / "train.py"), "-m", *RUN, *TWO, "trainer.devices=2", "seed=2,1")
    )
    assert errors == ""
    jobs = sorted(tmp_path.glob("outputs/sweep/*/*/result.json"))
    assert [json.loads(job.read_text())["seed"] for job in jobs] == [2, 1]
    assert_same_figures(read_figures(jobs[1].parent), single_process)
    assert len(list(tmp_path.glob("outputs/*"))) == 3  # sweep, last, last_sweep


def test_search_trains_and_prunes_with_two_processes(single_process: tuple, tmp_path: Path) -> None:
    """The first trial has the settings of the other tests, and the second one a hopeless weight decay."""
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.weight_decay=choice(0.0,6.0,7.0,8.0,9.0)")
    pruned_early = ("_target_=callbacks.pruning.OptunaPruning", "trial=${hydra:job.num}", "startup_trials=1")
    pruned_early = [f"+callbacks.pruning.{setting}" for setting in (*pruned_early, "warmup_epochs=0")]
    program = str(PROJECT / "train.py")
    ((_, errors),) = wait_all(start(tmp_path, program, "-m", *RUN, *TWO, "trainer.devices=2", *search, *pruned_early))
    assert errors == ""
    first, second = sorted(path.parent for path in tmp_path.glob("outputs/sweep/*/*/result.json"))
    assert_same_figures(read_figures(first), single_process)
    pruned = json.loads((second / "result.json").read_text())
    assert pruned["status"] == "pruned"
    assert pruned["epochs"] < 3


def test_one_process_resumes_a_run_of_two(single_process: tuple, tmp_path: Path) -> None:
    program = str(PROJECT / "train.py")
    wait_all(start(tmp_path, program, *RUN, *TWO, "trainer.devices=2", "trainer.max_epochs=2"))
    again = (program, "resume=last", "trainer.devices=1", "trainer.max_epochs=3")
    other = start(tmp_path, *again)
    with kill_at_exit(other):
        _, errors = other.communicate(timeout=60)
    assert other.returncode == 1
    words = "examples in a batch (data.batch_size, times the processes): 64 in this run, and now 32"
    assert errors.startswith(f"error: resume: {words}")
    wait_all(start(tmp_path, *again, "data.batch_size=64"))
    assert_same_figures(read_figures(only_run_dir(tmp_path)), single_process)


# Long enough to be interrupted in mid-epoch.
LONG = (
    *RUN,
    "trainer.max_epochs=2",
    "data.size=8106",
    "data.batch_size=8",
    "trainer.log_every_n_steps=100",
    "record.every_n_batches=100",
)


def signal_after_line(folder: Path, *command: str, number: int, after: str, **environment: str) -> tuple[int, str]:
    """Send a signal to the first process once it prints a line that begins with ``after``.

    Return its exit code and stderr.
    """
    process = start(folder, *command, **environment)
    with kill_at_exit(process):
        for line in process.stdout:
            if line.startswith(after):
                break
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        wait_for_group(process.pid)
    return process.returncode, errors


def test_sigterm_stops_all_processes_and_resume_is_exact(tmp_path: Path) -> None:
    command = (str(PROJECT / "train.py"), *LONG, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    wait_all(start(tmp_path / "whole", *command))
    code, errors = signal_after_line(tmp_path, *command, number=signal.SIGTERM, after="[1,   300]")
    assert code == 143
    assert errors.splitlines()[0] == "stopping after this step; a second signal stops at once"
    assert errors.splitlines()[1].startswith("error: interrupted by SIGTERM; saved in ")
    assert len(errors.splitlines()) == 3
    checkpoint = torch.load(tmp_path / "outputs/last/checkpoints/last.ckpt", weights_only=True)
    assert 300 <= checkpoint["global_step"] < 1000
    wait_all(start(tmp_path, str(PROJECT / "train.py"), "resume=last"))
    whole = torch.load(tmp_path / "whole/outputs/last/checkpoints/last.ckpt", weights_only=True)
    again = torch.load(tmp_path / "outputs/last/checkpoints/last.ckpt", weights_only=True)
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, again["state_dict"][name])
    ours, theirs = (read_figures(folder / "outputs/last") for folder in (tmp_path, tmp_path / "whole"))
    assert ours[1] == theirs[1]
    for row, other in zip(ours[0], theirs[0], strict=True):
        assert row == pytest.approx(other, rel=1e-6)  # stored partial sums of the curve are rounded


def child_pids(process: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def kill_second_process(folder: Path, *overrides: str) -> tuple[int, str]:
    """Kill the second of two processes in the first epoch. Return the exit code and stderr of the first."""
    command = (*overrides, *LONG, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    process = start(folder, str(PROJECT / "train.py"), *command)
    with kill_at_exit(process):
        for line in process.stdout:
            if "[1,   300]" in line:
                break
        os.kill(child_pids(process.pid)[-1], signal.SIGKILL)
        _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def test_killed_process_ends_the_run_with_one_line(tmp_path: Path) -> None:
    code, errors = kill_second_process(tmp_path)
    assert code == 1, errors
    assert errors.startswith("error: another process of this run has ended; its own error line says why")
    assert len(errors.splitlines()) == 1
    assert json.loads((tmp_path / "outputs/last/result.json").read_text())["status"] == "failed"


def test_killed_process_ends_only_its_sweep_job(tmp_path: Path) -> None:
    """Lightning checks on the processes of the first job while the second job is still running."""
    code, errors = kill_second_process(tmp_path, "-m", "seed=1,2")
    assert code == 1
    assert errors.startswith("[0] error: another process of this run has ended")
    first, second = sorted(tmp_path.glob("outputs/sweep/*/*/result.json"))
    assert json.loads(first.read_text())["status"] == "failed"
    assert json.loads(second.read_text())["status"] == "finished"


# Rank zero has started another process, which fails. Rank zero waits for it, in Python or in C as NCCL may do.
WAITING_PROCESS = """
import ctypes, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
from callbacks.signal_handler import SignalHandler

SignalHandler.grace_period = 0.1
started = [subprocess.Popen([sys.executable, "-c", "exit(1)"])]
strategy = SimpleNamespace(launcher=SimpleNamespace(procs=started))
with SignalHandler(Path("last.ckpt")) as interrupts:
    interrupts.setup(SimpleNamespace(strategy=strategy, _signal_connector=SimpleNamespace()), None, "fit")
    assert not started  # Lightning does not watch it any more
    while sys.argv[1] == "python":
        time.sleep(0.01)
    while True:
        ctypes.CDLL(None).sleep(60)
"""


@pytest.mark.parametrize("waits_in", ["python", "c"])
def test_process_does_not_wait_forever_for_a_failed_peer(waits_in: str) -> None:
    command = [sys.executable, "-c", WAITING_PROCESS, waits_in]
    answer = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=50)
    assert answer.returncode == 1
    if waits_in == "c":
        assert answer.stderr == "error: another process of this run has ended; its own error line says why\n"
    else:
        assert answer.stderr.splitlines()[-1] == "ConnectionError: connection closed by peer"


def test_sigterm_after_training_stops_all_processes(tmp_path: Path) -> None:
    """The signal arrives while rank zero draws plots."""
    settings = ("trainer.devices=2", "data.size=20_000", "data.val_size=19_000", "data.eval_batch_size=1")
    process = start(tmp_path, str(PROJECT / "train.py"), *RUN, *TWO, *settings, "data.validate_on=train")
    with kill_at_exit(process):
        while not list(tmp_path.glob("outputs/deep_logistic_on_tabular/*/pictures/*.png")):  # drawn after the training
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        wait_for_group(process.pid)
    assert process.returncode == 143
    assert errors.startswith("error: interrupted by SIGTERM; saved in ")


def ignores_signal(process: int, number: signal.Signals) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, IndexError):  # the process may have ended
        status = Path(f"/proc/{process}/status").read_text()
        return bool(int(status.partition("SigIgn:")[2].split()[0], 16) >> (number - 1) & 1)
    return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_to_all_processes_during_startup(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """As by Ctrl-C in a terminal. The second process has not loaded torch yet, and the first waits for it."""
    process = start(tmp_path, str(PROJECT / "train.py"), *RUN, *TWO, "trainer.devices=2")
    with kill_at_exit(process):
        while process.poll() is None:
            if any(ignores_signal(other, number) for other in child_pids(process.pid)):
                break
            time.sleep(0.01)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
        wait_for_group(process.pid)
    assert process.returncode == code
    assert errors == f"error: interrupted by {number.name}; there was nothing to save yet\n"


class PrintTesting(pl.Callback):
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            print("testing")


def test_sigterm_at_the_start_of_the_test_stops_all_processes(tmp_path: Path) -> None:
    """The ranks are at different points then, and take minutes to their next collective operation."""
    settings = ("trainer.devices=2", "data.size=600_000", "data.val_size=599_000", "data.validate_on=train")
    print_testing = "+callbacks.says._target_=tests.test_processes.PrintTesting"
    process = start(tmp_path, str(PROJECT / "train.py"), *RUN, *TWO, *settings, "data.eval_batch_size=1", print_testing)
    with kill_at_exit(process):
        assert any(line == "testing\n" for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        wait_for_group(process.pid)
    assert process.returncode == 143
    assert "error: interrupted by SIGTERM; saved in " in errors  # Python may add a message about a finalizer


def test_nonfinite_loss_stops_all_processes(tmp_path: Path) -> None:
    process = start(tmp_path, str(PROJECT / "train.py"), *RUN, *TWO, "trainer.devices=2", "optimizer.lr=1e38")
    with kill_at_exit(process):
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 4
    assert errors.startswith("error: the training loss is ")
    assert json.loads((tmp_path / "outputs/last/result.json").read_text())["status"] == "diverged"


def test_sweep_under_torchrun_is_refused(shell) -> None:
    answer = shell("-m", "seed=1,2", WORLD_SIZE="2", RANK="0", LOCAL_RANK="0")
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: a sweep starts the processes of its jobs itself")
