"""Jobs that run side by side on a machine with several GPUs have GPUs of their own. The GPUs are pretended."""

import contextlib
import logging
import multiprocessing
import os
from multiprocessing.queues import Queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from cli import process
from runs import gpus
from sweeps.jobs import check_gpus


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setattr(gpus, "POLL", 0.01)
    monkeypatch.setattr(gpus, "_held", held := [])
    yield
    while held:
        held.pop().release()


def as_job(number: int, answers: "Queue[list[str]]", end: Any) -> None:
    gpus._held.clear()  # inherited by the fork
    answers.put(gpus.take_gpus(number, gpus.visible_gpus(8)))
    end.wait()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_jobs_hold_different_cards_and_wait_for_free_ones() -> None:
    context = multiprocessing.get_context("fork")
    answers, first, others = context.Queue(), context.Event(), context.Event()
    jobs = [context.Process(target=as_job, args=(2, answers, first))]
    jobs[0].start()
    assert answers.get(timeout=30) == ["0", "1"]
    jobs += [context.Process(target=as_job, args=(1, answers, others)) for _ in range(2)]
    for job in jobs[1:]:
        job.start()
    assert answers.get(timeout=30) == ["2"]
    assert answers.empty()
    first.set()
    assert answers.get(timeout=30) == ["0"]
    others.set()
    for job in jobs:
        job.join()
        assert job.exitcode == 0


def test_process_keeps_its_cards_for_the_next_job() -> None:
    assert gpus.take_gpus(1, ["5", "6"]) == ["5"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    assert gpus.take_gpus(1, ["5"]) == ["5"]
    with pytest.raises(ValueError, match=r"trainer\.devices=2: the process of this job has taken 1 before"):
        gpus.take_gpus(2, ["5"])


def test_card_that_is_named_twice_is_shared() -> None:
    assert gpus.take_gpus(2, ["GPU-ab/1", "GPU-ab/1"]) == ["GPU-ab/1", "GPU-ab/1"]


@pytest.mark.parametrize(
    ("given", "names"), [(None, ["0", "1"]), ("", []), ("-1", []), ("3", ["3"]), (" 1, GPU-ab ", ["1", "GPU-ab"])]
)
def test_visible_cards(given: str | None, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert gpus.visible_gpus(2) == names


def as_launched(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hydra_cfg = SimpleNamespace(runtime=SimpleNamespace(choices={"hydra/launcher": launcher}))
    monkeypatch.setattr(process.HydraConfig, "get", lambda: hydra_cfg)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_log_shows_the_cards_of_a_job(
    launcher: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    as_launched(launcher, monkeypatch)
    with caplog.at_level(logging.INFO):
        process.take_job_gpus({"accelerator": "gpu", "devices": 2})
    assert "GPUs 0,1 of 0,1,2" in caplog.text


@pytest.mark.parametrize(("launcher", "accelerator"), [("basic", "gpu"), ("submitit_slurm", "gpu"), ("joblib", "cpu")])
def test_other_jobs_take_no_cards(launcher: str, accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_launched(launcher, monkeypatch)
    process.take_job_gpus({"accelerator": accelerator, "devices": 1})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"


@pytest.mark.parametrize("devices", [0, -1, 4, True, "auto", "1,2", [0], None, 1.5, "x"])
def test_wrong_number_of_devices_is_refused(devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    as_launched("joblib", monkeypatch)
    with pytest.raises(
        ValueError, match=r"trainer\.devices=.*: a job beside others takes a number of GPUs, here 1 to 3"
    ):
        process.take_job_gpus({"accelerator": "gpu", "devices": devices})


@pytest.mark.parametrize(
    ("launcher", "n_jobs", "jobs", "devices", "message"),
    [
        ("joblib", 4, 9, 1, r"4 jobs .* trainer\.devices=1 need 4 GPUs, and there are 3: hydra\.launcher\.n_jobs=3"),
        ("joblib", 2, 9, 2, r"2 jobs .* trainer\.devices=2 need 4 GPUs, and there are 3: hydra\.launcher\.n_jobs=1"),
        ("joblib", 4, 3, 1, None),
        ("joblib", 3, 9, 1, None),
        ("submitit_local", 4, 9, 1, None),
    ],
)
def test_processes_that_would_wait_for_cards_of_each_other_are_refused(
    launcher: str, n_jobs: int, jobs: int, devices: int, message: str | None
) -> None:
    hydra_cfg = {"runtime": {"choices": {"hydra/launcher": launcher}}, "launcher": {"n_jobs": n_jobs}}
    config = OmegaConf.create({"trainer": {"accelerator": "gpu", "devices": devices}, "hydra": hydra_cfg})
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        check_gpus(config, jobs)
