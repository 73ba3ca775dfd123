"""Settings of Hydra that would get round a check are refused, and the others are taken."""

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cli.compose import data_root
from cli.main import _rewrite_argv, check_hydra_settings
from cli.paths import quote_paths
from cli.resumed_run import resolve_auto
from cli.run_dir import new_or_resumed_sweep_dir


@pytest.mark.parametrize("given", ["./???", "link", "???"])
def test_directory_named_like_a_missing_value_keeps_its_name(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("???").mkdir()
    Path("link").symlink_to("???")
    monkeypatch.setenv("DATA_ROOT", "???")
    cfg = OmegaConf.create({"sweep": new_or_resumed_sweep_dir(given, "unused"), "root": data_root()})
    assert (cfg.sweep, cfg.root) == ("./???", "./???")


@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
@pytest.mark.parametrize("override", ["hydra.run.dir=b", "+hydra.sweep.dir=b", "hydra.sweep.subdir=b"])
def test_only_a_training_takes_a_directory(override: str, command: str) -> None:
    """The others would write into it as if it were that of their run."""
    check_hydra_settings([override], "train")
    with pytest.raises(ValueError, match=f"is refused: {command} chooses its directory itself"):
        check_hydra_settings([override], command)


@pytest.mark.parametrize("command", ["train", "predict"])
@pytest.mark.parametrize(
    "override",
    [
        *("hydra={output_subdir:.}", "++hydra={run:{dir:b}}", "hydra.run={dir:b}", "+hydra.run={dir:b}", "~hydra.run"),
        *("hydra.sweep={subdir:a/b}", "hydra.job={name:../x}", "hydra.sweeper={params:{}}", "hydra.run=${x}"),
        *("hydra.callbacks=null", "hydra.job_logging={handlers:{}}", "~hydra", "hydra.run= {dir:b}"),
        *("hydra.sweep={dir:a},{dir:b}", "++hydra.runtime={output_dir:b}"),
        *("trainer={max_epochs:-5}", "+data={root:x}", "logger={wandb:{api_key:x}}", "model={net:{a:1}},{net:{a:2}}"),
        "callbacks@callbacks={judge:null}",
    ],
)
def test_settings_of_a_group_are_typed_one_by_one(override: str, command: str) -> None:
    """Among several in braces none would be checked."""
    with pytest.raises(ValueError, match=r"is refused: .* typed one by one, \w.*\.NAME=VALUE") as refused:
        check_hydra_settings(["-m", override], command)
    assert str(refused.value).startswith(f"{override} is refused: ")


@pytest.mark.parametrize("name", ["hydra.output_subdir", "hydra.job.chdir", "++hydra.run.dir"])
@pytest.mark.parametrize("override", ["+hydra.sweeper.params.{}=x", "++hydra.sweeper.params={{{}:x}}"])
def test_jobs_of_a_sweep_take_no_settings_of_hydra(override: str, name: str) -> None:
    with pytest.raises(ValueError, match="is refused: the settings of Hydra are those of the whole sweep"):
        check_hydra_settings(["-m", override.format(name)], "train")


@pytest.mark.parametrize(
    "override",
    [
        *("hydra/job_logging=default", "+hydra/job_logging@hydra.job_logging=[default]", "hydra/job_logging=colorlog"),
        "hydra/hydra_logging=hydra_debug",
    ],
)
def test_no_log_is_opened_before_anything_is_checked(override: str) -> None:
    with pytest.raises(ValueError, match=r"is refused: it writes a log before anything is checked"):
        check_hydra_settings([override], "train")


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"])
def test_directory_whose_name_no_file_could_hold_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="cannot be used: the name of the directory is not UTF-8"):
        check_hydra_settings([f"{key}=a/\udcff"], "train")


@pytest.mark.parametrize(
    "override",
    [
        "hydra.job_logging.handlers.file.filename=notes.txt",
        "++hydra.hydra_logging.handlers.x={class:logging.FileHandler}",
    ],
)
def test_log_is_that_of_the_run(override: str) -> None:
    with pytest.raises(ValueError, match=r"is refused: a log is that of its run"):
        check_hydra_settings([override], "train")


@pytest.mark.parametrize("sweep", [["-m"], ["--multirun"], ["hydra.mode=MULTIRUN"]])
def test_sweep_is_asked_for_in_three_ways(sweep: list[str]) -> None:
    with pytest.raises(ValueError, match="debug=lr proposes a rate for one run"):
        check_hydra_settings(["model=cnn", *sweep, "debug=lr"], "train")
    with pytest.raises(ValueError, match="resume=auto is for a run"):
        resolve_auto(["resume=auto", *sweep, "hydra.run.dir=run"])
    check_hydra_settings(["hydra.mode=RUN", "debug=lr"], "train")


@pytest.mark.parametrize(
    "override",
    [
        *("hydra/job_logging=none", "hydra/job_logging=stdout", "hydra/job_logging=disabled", "hydra/job_logging=run"),
        *("hydra.verbose=true", "hydra.mode=MULTIRUN", "hydra.searchpath=[file:///x]", "hydra.launcher.n_jobs=2"),
        *("hydra.job.env_set={A:b}", "hydra.sweeper.params={optimizer.lr:'0.1,0.2'}", "+hydra.sweeper.params.seed=1,2"),
        *("hydra.callbacks.mine={_target_:mine.Mine}", "hydra/launcher=joblib", "hydra.job_logging.root.level=DEBUG"),
        *("model=${oc.env:MODEL}", "metrics.f1={_target_:x.F1}", "logger=[csv,mlflow]", "expect={a:{}}", ""),
    ],
)
def test_other_settings_of_hydra_are_taken(override: str) -> None:
    check_hydra_settings(["-m", override, "--cfg", "hydra", "--package", "hydra.run"], "train")


@pytest.mark.parametrize("override", ["hydra.run.dir= ", "hydra.sweep.dir=' '"])
def test_directory_without_a_name_is_refused(override: str) -> None:
    with pytest.raises(ValueError, match="names no directory"):
        check_hydra_settings([override], "train")


@pytest.mark.parametrize("override", ["hydra.run.dir=???", "++hydra.sweep.dir='???'", 'hydra.run.dir="???"'])
def test_missing_directory_of_a_run_is_refused(override: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Hydra would use a directory named None."""
    monkeypatch.setattr(sys, "argv", ["train.py", override])
    with pytest.raises(SystemExit):
        _rewrite_argv("train")
    assert capsys.readouterr().err == f"error: {override} is refused: ??? is no value, and ./??? a directory\n"


@pytest.mark.parametrize(
    "override", ["hydra.run.dir=file:///x", "++hydra.sweep.dir='s3://x'", "hydra.sweep.subdir=a://b"]
)
def test_directory_of_a_run_that_is_a_url_is_refused(override: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Hydra would make a directory named ``file:``."""
    monkeypatch.setattr(sys, "argv", ["train.py", override])
    with pytest.raises(SystemExit):
        _rewrite_argv("train")
    assert capsys.readouterr().err == f"error: {override} is refused: it is not a directory on this machine\n"


@pytest.mark.parametrize("option", ["--experimental-rerun", "--experimental-rerun=x.pickle", "--exp"])
def test_no_pickle_is_run_again(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} is refused: it unpickles a file"):
        check_hydra_settings([option, "x.pickle"], "train")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "a\u202eb"])
def test_directory_with_control_characters_is_refused(name: str) -> None:
    """No checkpoint in it could be resumed."""
    with pytest.raises(ValueError, match="is refused: the name has control characters"):
        check_hydra_settings([f"hydra.run.dir='{name}'"], "train")
    for key in ("hydra.run.dir", "output", "run", "sweep_resume", "data.root", "model.teacher", "callbacks.judge.run"):
        with pytest.raises(ValueError, match=f"(?s){key}: .* cannot be used: the name has control characters"):
            quote_paths([f"{key}=x/{name}"])
    assert quote_paths([f"images={name}"])


@pytest.mark.parametrize("command", ["evaluate", "predict", "export", "demo"])
@pytest.mark.parametrize("option", ["-m", "--multirun", "--mu", "hydra.mode=MULTIRUN"])
def test_only_training_has_sweeps(option: str, command: str) -> None:
    with pytest.raises(ValueError, match=f"^-m is for train.py: {command}.py takes one run$"):
        check_hydra_settings([option, "run=a,b"], command)
