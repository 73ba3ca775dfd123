"""--help and --cfg: they are quick, and print the comments of conf/."""

from pathlib import Path

import pytest

from cli import GROUPS
from cli.help import annotate_config, default_settings, list_options, prints_config
from tests.conftest import PROJECT


def test_cfg_prints_the_comments_of_conf(shell) -> None:
    answer = shell("experiment=mnist_99", "optimizer.lr=0.5", "--cfg", "job")
    assert answer.returncode == 0
    lines = answer.stdout.splitlines()
    assert "  lr: 0.5" in lines
    assert "  crop: 4 # pixels that are cut off at each side" in [line[2:] for line in lines]
    assert "  accelerator: auto # cpu, gpu, mps …" in lines
    assert "  val_size: 0 # one epoch, one test" in lines  # the comment of the experiment file
    above = lines[lines.index("seed: 1") - 2 : lines.index("seed: 1")]
    assert any("Seed of everything random" in line for line in above)


def test_cfg_prints_the_comments_of_base_files(shell) -> None:
    lines = shell("data=blobs", "--cfg", "job").stdout.splitlines()
    assert "  fold: 0 # number of the part, from 0" in lines  # from conf/data/base/default.yaml
    assert "  batch_size: null # all at once" in lines  # from base/generated.yaml, which overrides the comment
    assert "  data_seed: 2 # with this seed no point lies in the other cloud" in lines  # from blobs.yaml
    assert "  validate_on: val # or test, as in tutorials that hold nothing out, or train" in lines
    assert not any("Gaussian clouds" in line for line in lines)


def test_base_files_are_not_listed_as_options(shell) -> None:
    assert "base" not in shell("data=mnits").stderr
    assert "base" not in shell("--help").stdout


def test_cfg_prints_valid_yaml_and_refuses_wrong_overrides(shell) -> None:
    import yaml

    command = ("experiment=mnist_cnn", "data.batch_size=7", "--cfg", "job")
    answer = shell(*command)
    assert yaml.safe_load(answer.stdout)["data"]["batch_size"] == 7
    assert shell(*command, "--package", "trainer").stdout.startswith("# @package trainer\n")
    wrong = shell("--cfg", "job", "model=lenett")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "did you mean lenet?" in wrong.stderr


@pytest.mark.parametrize("script", ["evaluate.py", "predict.py", "export.py", "demo.py"])
@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("--cfg", "job")])
def test_help_and_cfg_print_the_comments_of_a_command_config(script: str, arguments: tuple[str, ...], shell) -> None:
    answer = shell(*arguments, script=script)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "run: last # or the directory of a run, or a checkpoint file\n" in answer.stdout
    own = {
        "evaluate.py": "split: test # or val, or train",
        "predict.py": "limit: 6 # how many examples of the split",
        "export.py": "output: ??? # model.onnx or model.pt2",
        "demo.py": "port: 8000 # on this machine only; 0 takes a free one",
    }
    assert own[script] in answer.stdout
    assert ("python evaluate.py run=last\n" in answer.stdout) == (script == "evaluate.py" and "--cfg" not in arguments)


@pytest.mark.parametrize("argument", ["--cfg=job", "--cfg", "-c"])
def test_config_is_asked_for_in_several_ways(argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", argument])
    assert prints_config("config")
    monkeypatch.setattr("sys.argv", ["train.py", "name=--cfg"])
    assert not prints_config("config")


def test_comment_of_a_base_file_is_the_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "config.yaml": "# All.\ndefaults:\n  - data: mine\n",
        "data/mine.yaml": "# Mine.\ndefaults:\n  - base/images@_here_\n  - _self_\nmean: 1 # mine\n",
        "data/base/images.yaml": "# Images.\ndefaults:\n  - ../deep/all@_here_\nsize: 1 # of an image\nmean: 0 # b\n",
        "data/deep/all.yaml": "# All.\n# Above.\nroot: x\n\n# Of the disk.\npath: y\nsize: 0 # of all\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("cli.help.CONF", tmp_path)
    text = "data:\n  root: x\n  path: y\n  size: 1\n  mean: 1\n"
    printed = annotate_config(text, "config", {"data": "mine"})
    assert printed == "data:\n  root: x\n  # Of the disk.\n  path: y\n  size: 1 # of an image\n  mean: 1 # mine\n"
    assert default_settings() == ["data.root", "data.path", "data.size", "data.mean"]


@pytest.mark.parametrize("script", ["train.py", "predict.py"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--nonsense",), "unrecognized arguments: --nonsense"),
        (("-m", "--cfg"), "argument --cfg/-c: expected one argument"),
        (("--cfg", "foo"), "argument --cfg/-c: invalid choice: 'foo'"),
        (("--info", "x"), "argument --info/-i: invalid choice: 'x'"),
    ],
)
def test_wrong_hydra_option_gives_one_line_and_exit_code_2(
    script: str, arguments: tuple[str, ...], words: str, shell
) -> None:
    if script != "train.py":
        arguments = tuple(word for word in arguments if word != "-m")  # sweeps are of trainings
    answer = shell(*arguments, script=script)
    assert (answer.returncode, answer.stdout) == (2, "")
    (line,) = answer.stderr.splitlines()
    assert line.startswith(f"error: {words}")


def test_options_may_stand_between_settings(shell) -> None:
    answer = shell("model=line", "data=doubles", "--cfg", "job", "--package", "optimizer", "optimizer.lr=0.25")
    assert answer.returncode == 0, answer.stderr
    assert "lr: 0.25" in answer.stdout


@pytest.mark.parametrize("arguments", [("--help",), ("--cfg", "job")])
def test_help_and_cfg_do_not_import_torch(arguments: tuple[str, ...], shell, tmp_path: Path) -> None:
    for name in ("torch", "lightning", "numpy", "matplotlib"):
        (tmp_path / f"{name}.py").write_text(f"raise AssertionError('{name} was imported')\n")
    answer = shell(*arguments, PYTHONPATH=str(tmp_path))
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout


def test_help_lists_every_option(shell) -> None:
    answer = shell("--help")
    for group in GROUPS:
        assert f"  {group}=\n" in answer.stdout
        for file in (PROJECT / "conf" / group).glob("*.yaml"):
            assert f"\n    {file.stem} " in answer.stdout
    assert answer.stdout.count("\n  python train.py") >= 5
    assert list_options() in answer.stdout


@pytest.mark.parametrize("option", [["--config-dir=my own"], ["--config-dir", "my own"]])
def test_cfg_finds_the_configs_of_another_directory(option: list[str], shell) -> None:
    Path("my own/experiment").mkdir(parents=True)
    Path("my own/experiment/mine.yaml").write_text("# @package _global_\nseed: 7\n")
    answer = shell(*option, "experiment=mine", "--cfg", "job")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "seed: 7" in answer.stdout
