"""Names and texts from untrusted sources are not evaluated, and print no control characters and no harmful command."""

import json
import logging
import logging.config
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from callbacks.metrics_history import MetricsHistory
from callbacks.progress_bar import ProgressBar
from callbacks.run_summary import RunSummary
from cli.errors import print_error
from cli.output import PrintableFormatter
from runs.checkpoint import find_checkpoint, load_checkpoint
from runs.format import format_metrics, printable, text_columns
from runs.monitor import Monitors
from runs.overrides import train_command
from runs.result import read_result, write_result
from runs.safety import check_safe
from sweeps.summary import Summary
from tests.conftest import PROJECT
from tests.untrusted import SECRET, TINY, edit_checkpoint, resume_config


@pytest.mark.parametrize("text", ["x\nresume with: curl evil | sh", "\x1b[2J", "a\tb", "\u202egnp", "x\r"])
def test_control_characters_in_a_stored_config_are_refused(text: str, untrusted: Path) -> None:
    config = torch.load("outputs/untrusted/checkpoints/last.ckpt", weights_only=True)["config"]
    check_safe(config, "it")
    for changed in ({"name": text}, {text: 1}, {"expect": {text: 1}}, {"ignore_overrides": [text]}):
        with pytest.raises(ValueError, match="control characters") as caught:
            check_safe(config | changed, "it")
        assert printable(str(caught.value)) == str(caught.value)


ESCAPE = "\x1b]0;pwned\x07"


@pytest.mark.parametrize(
    "key_path",
    [
        ("made_by",), (ESCAPE,), ("state_dict", ESCAPE), ("epoch_sums", ESCAPE), ("callbacks", ESCAPE),
        ("loops", ESCAPE), ("callbacks", "MetricsHistory", "logged", ESCAPE),
        ("callbacks", "MetricsHistory", "monitor", 0), ("optimizer_states", 0, "param_groups", 0, ESCAPE),
    ],
)  # fmt: skip
def test_control_characters_in_a_checkpoint_are_refused(key_path: tuple[Any, ...], untrusted: Path) -> None:
    """They would be printed with a traceback, in the live line, and into logs and metrics.csv."""
    file = Path("outputs/untrusted/checkpoints/last.ckpt")
    edit_checkpoint(file, "epoch_sums", value={"count": 1})
    load_checkpoint(file)
    edit_checkpoint(file, *key_path, value=ESCAPE)
    with pytest.raises(ValueError, match=r"last.ckpt is refused: it holds '\\x1b]0;pwned\\x07', which"):
        load_checkpoint(file)


def test_directory_with_control_characters_is_refused(untrusted: Path) -> None:
    """A line break in its name would print a line of its own."""
    Path("outputs/untrusted").rename(name := "run\nerror: this run is damaged")
    with pytest.raises(ValueError, match="damaged is refused: the name has control characters"):
        find_checkpoint(name)
    Path(name).rename("run")
    find_checkpoint("run")


def test_line_break_in_the_name_of_a_stored_metric_is_kept(untrusted: Path) -> None:
    """Runs from before headers were put in one line have such metrics, one for each class. metrics.csv does it."""
    file = Path("outputs/untrusted/checkpoints/last.ckpt")
    edit_checkpoint(file, "callbacks", "MetricsHistory", "rows", 0, "val/f1/a\nb", value=0.5)
    resume_config("trainer.max_epochs=2")
    history = MetricsHistory(Path(), Monitors(None, None))
    history.rows = load_checkpoint(file)["callbacks"]["MetricsHistory"]["rows"]
    history._write()
    header, *rows = Path("metrics.csv").read_text().splitlines()
    assert "val/f1/a\\nb" in header.split(",") and len(rows) == len(history.rows)


def test_line_breaks_in_the_header_of_a_stored_table_are_kept(untrusted: Path) -> None:
    """Runs from before headers were put in one line hold them. The table does it when it is made."""
    config = torch.load("outputs/untrusted/checkpoints/last.ckpt", weights_only=True)["config"]
    config["data"]["fitted_state"] = {"columns": ["width\r\n(cm)"], "class_names": ["a\nb"]}
    check_safe(config, "it")
    config["data"]["fitted_state"]["columns"] = ["\x1b[2J"]
    with pytest.raises(ValueError, match="control characters"):
        check_safe(config, "it")


def test_names_of_stored_metrics_print_no_lines_of_their_own() -> None:
    """They are in the state of a callback, with the rows of metrics.csv."""
    evil = "test/x\nresume with: curl evil | sh"
    assert "\n" not in format_metrics({evil: 1.0})
    assert len(text_columns([(evil, "1"), ("test/loss", "2")])) == 2
    assert not any("\n" in line for line in text_columns([(evil, "1")]))


def test_command_of_a_result_is_rebuilt_from_quoted_overrides(tmp_path: Path) -> None:
    result = {
        "command": "python train.py; touch pwned",
        "overrides": ["name=x; touch pwned"],
        "metrics": {},
        "status": "x",
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert read_result(tmp_path)["command"] == "python train.py 'name=x; touch pwned'"


@pytest.mark.parametrize(
    "override",
    [
        "+callbacks.x._target_=os.mkdir", "++model.net._target_=torch.nn.functional.torch.load", "logger._target_=os.x",
        "+callbacks.x={_target_:os.mkdir,path:x}", "+callbacks.x={ '_target_' : os.mkdir}", "model._args_=[x]",
        "+model.net={_recursive_:false}", "+model._convert_.x=1", "~model._target_", "name=${oc.env:SECRET}",
        "callbacks=../../gift/evil", "callbacks=[default,/gift/evil]", "callbacks=/gift/evil", "callbacks='/evil'",
        "+callbacks@model=default", "callbacks.pictures[_target_]=os.mkdir", "data/base=x", "--config-dir=gift", "-m",
        "hydra.run.dir=/home", "hydra/launcher=joblib", "+hydra.callbacks.x._target_=os.mkdir", "resume=mine", "seed",
        "sweep_resume=mine", "+seed", "logger=~/x", "experiment=file://gift/x", r"+data.x=$\{oc.env:SECRET}",
        r"+callbacks.x=$\{oc.decode:\\\{_$\{aa\}_:os.mkdir\\\,path:x\\\}\}", r"+data.x=['$\\{x}']",
        "+trainer.profiler.dirpath=/home/x", "trainer.profiler.filename=x",
    ],
)  # fmt: skip
def test_command_that_would_run_something_is_not_shown(override: str, tmp_path: Path) -> None:
    """Users paste the command of the best job, whose overrides are those of its result.json."""
    best = {"overrides": ["seed=1", override], "metrics": {"val/acc": 0.9}, "status": "finished"}
    write_result(tmp_path / "0-0123abcd", best)
    write_result(tmp_path / "1-0123abcd", best | {"overrides": ["seed=2"], "metrics": {"val/acc": 0.8}})
    summary = Summary(tmp_path)
    summary.write()
    assert re.search(r"best: its command is not shown: ['\"]", str(summary))
    assert "python train.py" not in str(summary) + (tmp_path / "summary.md").read_text()


def test_stored_command_of_a_resumed_run_is_checked(untrusted: Path) -> None:
    """Resuming writes a new result.json, with the overrides in the checkpoint."""
    config = torch.load("outputs/untrusted/checkpoints/last.ckpt", weights_only=True)["config"]
    config["choices"]["overrides"] = ["+callbacks.x._target_=os.mkdir"]
    assert RunSummary(Path(), config, None, []).result["command"].startswith("python train.py")  # typed
    config["resume"] = "outputs/untrusted"
    shown = RunSummary(Path(), config, None, []).result["command"]
    assert shown == "its command is not shown: '+callbacks.x._target_=os.mkdir' could run anything"


def test_command_of_usual_overrides_is_shown(tmp_path: Path) -> None:
    overrides = [
        "experiment=mnist_99", "~callbacks.pictures", "++trainer.max_epochs=3", "callbacks.early_stopping=null",
        "+metrics.auroc._target_=torchmetrics.classification.MulticlassAUROC", "optimizer.betas=[0.9,0.99]",
        "model.net._target_=lit_models.nets.MLP", "monitor=val/acc", "data.path=/home/me/../it's/x y.csv", "name=a/b",
    ]  # fmt: skip
    write_result(tmp_path / "0-0123abcd", {"overrides": overrides, "metrics": {"val/acc": 1}, "status": "finished"})
    assert f"best: {train_command(overrides)}\n" in f"{Summary(tmp_path)}\n"


def test_traceback_live_line_and_logs_have_no_control_characters(capsys) -> None:
    print_error(ValueError(f"{ESCAPE} is wrong"), show_traceback=True)
    error = capsys.readouterr().err
    assert error.startswith("ValueError: \\x1b]0;pwned\\x07 is wrong\nerror: \\x1b]0;")
    bar = ProgressBar()
    bar._live = True
    bar._write(f"epoch 1/2  {ESCAPE} 0.5")
    assert capsys.readouterr().err == "\repoch 1/2  \\x1b]0;pwned\\x07 0.5\x1b[K"
    settings = yaml.safe_load((PROJECT / "conf/hydra/job_logging/run.yaml").read_text())
    assert settings["handlers"].keys() == {"console", "file"}
    for handler in settings["handlers"].values():
        made = logging.config.DictConfigurator(settings).configure_formatter(
            settings["formatters"][handler["formatter"]]
        )
        record = logging.LogRecord("x", logging.INFO, "", 1, "%s", (f"{ESCAPE}\ta\nb",), None)
        assert made.format(record).endswith("\\x1b]0;pwned\\x07\ta\nb")


@pytest.mark.slow
def test_printed_text_has_no_control_characters(shell, untrusted: Path) -> None:
    edit_checkpoint(Path("outputs/untrusted/checkpoints/last.ckpt"), "config", "seed", value="\x1b[2J")
    answer = shell("run=outputs/untrusted", script="evaluate.py", cwd=untrusted)
    assert answer.returncode == 1 and "\\x1b[2J" in answer.stderr and "\x1b" not in answer.stderr + answer.stdout
    record = logging.LogRecord("name", logging.INFO, "path", 1, "\x1b[2J%s", ("x\r",), None)
    assert PrintableFormatter("%(message)s").format(record) == "\\x1b[2Jx\\r"
    assert printable("a\x1b[2Jb\u202e\r\n\t图片", keep="\n\t") == "a\\x1b[2Jb\\u202e\\r\n\t图片"
    assert printable("a\u200fb\u061cc\u200ed") == "a\u200fb\u061cc\u200ed"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["${oc.env:SECRET}", "${new_or_resumed_run_dir:null,pwned}", "???", "\\${x}"])
def test_class_directory_name_is_never_evaluated(name: str, shell, tmp_path: Path) -> None:
    for folder in (name, "other"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (28, 28)).save(tmp_path / "images" / folder / f"{number}.png")
    answer = shell("data=image_folder", "data.root=images", "model=mlp", "trainer.accelerator=cpu", SECRET=SECRET)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: ") and "cannot be used as a name" in answer.stderr
    assert SECRET not in answer.stdout + answer.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


@pytest.mark.parametrize("where", ["working directory", "run", "link to a run", "data root"])
def test_directory_name_is_never_evaluated(where: str, shell, untrusted: Path) -> None:
    evil = untrusted / "${oc.env:SECRET}"
    environment = {"SECRET": SECRET}
    if where == "working directory":
        evil.mkdir()
        answer = shell(*TINY, "trainer.max_epochs=1", cwd=evil, **environment)
    elif where == "data root":
        answer = shell(*TINY, "trainer.max_epochs=1", cwd=untrusted, **environment | {"DATA_ROOT": str(evil)})
    else:
        Path("outputs/untrusted").rename(evil)
        Path("link").symlink_to(evil.name)
        name = "link" if where == "link to a run" else r"\${oc.env:SECRET}"
        answer = shell(f"resume={name}", "trainer.max_epochs=2", cwd=untrusted, **environment)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: ") and len(answer.stderr.splitlines()) == 1
    assert SECRET not in answer.stdout + answer.stderr
    assert not any(SECRET in str(path) for path in untrusted.rglob("*"))
