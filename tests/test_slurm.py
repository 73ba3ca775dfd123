"""A real SLURM on this machine: a sweep, two tasks as one run, a requeued job, and a sweep with a canceled job.

slurmctld and slurmd run on the loopback interface, with two CPUs. Everything they write is in a temporary directory.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from tests.conftest import PROJECT, run
from tests.kill_and_resume import differences, final_state
from tests.test_processes import RUN, TWO, assert_same_figures, free_port, read_figures

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
MISSING = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs slurm-wlm and munge: there is no {', '.join(MISSING)}"),
    pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="slurmd needs root"),
]

POINTS = ("model=blobs_mlp", "data=blobs", "callbacks.pictures=null", "logger=none", "trainer.accelerator=cpu")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes={host} Default=YES State=UP GraceTime=60
PartitionName=urgent Nodes={host} State=UP PriorityTier=2
"""
# SLURM's sacct reads a database server. This one has the controller's answer, in the format that submitit asks for.
SACCT = r"""#!/bin/sh
echo 'JobID|State|NodeList'
for job in $(echo "$*" | grep -o -- '-j [0-9]*' | cut -c4-); do
    scontrol --oneliner show job "$job" |
        sed -nE 's/.*ArrayJobId=([0-9]*) ArrayTaskId=([0-9]*) .*JobState=([A-Z]*) .* NodeList=([^ ]*).*/\1_\2|\3|\4/p'
done
"""


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> Any:
    """Return the value of a condition as soon as it is true. SLURM looks at time limits once or twice a minute."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start SLURM, and yield the environment of its users."""
    root, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().partition(".")[0]
    for name in ("state", "spool", "bin"):
        (root / name).mkdir()
    (root / "munge.key").write_bytes(os.urandom(1024))
    (root / "munge.key").chmod(0o400)
    (root / "slurm.conf").write_text(CONFIG.format(root=root, host=host, ports=[free_port(), free_port()]))
    (root / "bin/sacct").write_text(SACCT)
    (root / "bin/sacct").chmod(0o755)
    path = os.pathsep.join([str(root / "bin"), str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
    environment = {**os.environ, "PATH": path, "SLURM_CONF": str(root / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    # It prefers a directory that only root can write to, and a temporary one is not.
    files = [f"--{name}={root}/munged.{name}" for name in ("pid-file", "log-file", "seed-file")]
    munge = ["munged", "--foreground", "--force", f"--socket={root}/munge.socket", f"--key-file={root}/munge.key"]
    daemons: list[subprocess.Popen] = []
    try:
        with open(root / "daemons.log", "w") as log:
            for command in ([*munge, *files], ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-c"]):
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
                wait_for((root / "munge.socket").exists)
        sinfo = ["sinfo", "--noheader", "--format=%T"]
        wait_for(lambda: subprocess.run(sinfo, env=environment, capture_output=True).stdout == b"idle\n")
        yield environment
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True)
        wait_for(lambda: not subprocess.run(["squeue", "-h"], env=environment, capture_output=True).stdout)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


@pytest.fixture
def slurm(cluster: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs a command of a user of SLURM, and returns its output."""

    def execute(*command: str) -> str:
        answer = subprocess.run(command, cwd=tmp_path, env=cluster, capture_output=True, text=True, timeout=300)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    return execute


def statuses(folder: Path) -> list[str]:
    return [json.loads(path.read_text())["status"] for path in sorted(folder.glob("outputs/sweep/*/*/result.json"))]


def test_tasks_of_srun_train_like_one_process(slurm: Callable[..., str], tmp_path: Path) -> None:
    train = ("python", str(PROJECT / "train.py"), *RUN)
    printed = slurm("srun", "--nodes=1", "--ntasks-per-node=2", *train, *TWO, "hydra.run.dir=two")
    assert printed.count("test accuracy") == 1
    run("one", *RUN, "trainer.accelerator=cpu", "data.batch_size=64")
    assert_same_figures(read_figures(tmp_path / "two"), read_figures(tmp_path / "one"))


class Hold(pl.Callback):
    """Waits for a signal at step 150 of a new job, and at steps 250 and 350 of one that was requeued once and twice."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == {0: 150, 1: 250, 2: 350}.get(int(os.environ.get("SLURM_RESTART_COUNT", 0))):
            print("holding", flush=True)
            signal.pause()


def test_requeued_job_ends_with_the_bits_of_an_undisturbed_one(slurm: Callable[..., str], tmp_path: Path) -> None:
    """SLURM sends SIGUSR1 ahead of the time limit, and SIGTERM when it preempts or requeues the job."""
    readme = (PROJECT / "README.md").read_text()
    (script,) = re.findall(r"<!-- file: train.sh -->\n```bash\n(.*?)```", readme, re.DOTALL)
    Path("train.sh").write_text(script)
    Path("train.py").symlink_to(PROJECT / "train.py")
    settings = (*POINTS, "trainer.max_epochs=40", "data.batch_size=20", "model.steps_per_batch=1")
    limits = ("--time=1", "--signal=USR1@15")
    hold = f"+callbacks.hold._target_={__name__}.Hold"
    job = re.findall(r"\d+", slurm("sbatch", *limits, "train.sh", *settings, hold))[0]
    log = Path(f"slurm-{job}.out")

    def start_again(words: str, then: str) -> None:
        """SLURM itself would wait two minutes before it starts the job again. In the second of the requeue it fails."""
        wait_for(lambda: slurm("squeue", f"--job={job}", "--noheader", "--format=%T %r") == "PENDING BeginTime\n")
        slurm("scontrol", "update", f"JobId={job}", "TimeLimit=10", "StartTime=now+2")
        wait_for(lambda: words in log.read_text() and then in log.read_text().rpartition(words)[2])

    start_again("interrupted by SIGUSR1; saved in ", "holding")
    slurm("sbatch", "--partition=urgent", "--exclusive", "--output=urgent", "--wrap=true")
    start_again("interrupted by SIGTERM; saved in ", "holding")
    slurm("scontrol", "requeue", job)
    start_again("interrupted by SIGTERM; saved in ", "test accuracy")
    wait_for(lambda: not slurm("squeue", "--noheader"))
    run("whole", *settings)
    assert json.loads(Path(f"outputs/{job}/result.json").read_text())["status"] == "finished"
    assert not differences(final_state(Path("whole")), final_state(Path(f"outputs/{job}")))


class HoldOnce(pl.Callback):
    """Waits for a signal at step 5, in a job with seed 2 of the first sweep."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        with contextlib.suppress(FileExistsError):
            if trainer.global_step == 5 and trainer.default_root_dir.rpartition("/")[2].startswith("1-"):
                Path("held").touch(exist_ok=False)
                signal.pause()


def test_sweep_with_a_canceled_job_is_resumed(slurm: Callable[..., str], cluster: dict, tmp_path: Path) -> None:
    command = ["python", str(PROJECT / "train.py"), "-m", *POINTS, "seed=1,2,3,4", "trainer.max_epochs=2"]
    command += ["hydra/launcher=submitit_slurm", f"+callbacks.hold._target_={__name__}.HoldOnce"]
    command += ["data.batch_size=20", "model.steps_per_batch=1"]
    process = subprocess.Popen(command, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(Path("held").exists)
    jobs = slurm("squeue", "--noheader", "--array", "--format=%i").split()
    slurm("scancel", next(job for job in jobs if job.endswith("_1")))
    _, errors = process.communicate(timeout=100)
    print(errors)
    wait_for(lambda: not slurm("squeue", "--noheader"))
    assert process.returncode == 1
    assert "Traceback" not in errors
    resume = errors.splitlines()[-1]
    assert resume.startswith("resume with: python train.py -m")
    slurm(*command, "sweep_resume=last")
    assert statuses(tmp_path) == ["finished"] * 4
