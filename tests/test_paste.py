"""What is printed can be pasted, and a path is taken as it is typed: through a shell and Hydra's grammar."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException

from callbacks.signal_handler import Interrupted
from cli import overwrite
from cli.errors import format_error
from cli.examples import find_files
from cli.paths import quote_paths
from datamodules.csv_table import CSVTable
from runs.overrides import quote_value, train_command, typed_setting
from tests.conftest import PROJECT

NAMES = [
    *(
        "plain",
        "a/b-c_d.csv",
        "rows (1).csv",
        "a,b",
        "a=b",
        "[a]",
        "x[1].png",
        "{a}",
        "a{b}",
        "#a",
        "a#b",
        "a;b",
        "a&b",
    ),
    *("$HOME", "$(touch PASTED)", "`id`", "it's", 'a "b" c', "a\\", "a\\\\", "a\\'b", "\\'", "'", "'a'", '"', "''"),
    *(
        "$\\{oc.env:HOME\\}",
        "\\{x\\}",
        "a\\,b",
        "~",
        "~/a",
        "a~",
        "用户",
        "Übung 1",
        "größe.csv",
        "数据.csv",
        " a ",
        "a:b",
    ),
    *("null", "NULL", "true", "1", "007", "1e5", "1_000", ".5", "-1", "-a", "nan", "inf", "-inf", "last", "!a", "a|b"),
    *("a*", "a?", "<a>", "%a", "@a", "a@b", "+a", "choice(a,b)", "C:\\a\\", "tab\tx"),
]

OTHERS = ("tests", "docs", "benchmarks", "outputs", "data")  # beside the code


def paste(line: str) -> dict[str, object]:
    """Return the settings of what is pasted into a shell: the value of each key."""
    overrides = OverridesParser.create().parse_overrides([word for word in shlex.split(line) if "=" in word])
    return {override.get_key_element(): override.value() for override in overrides}


@pytest.mark.parametrize("name", NAMES)
def test_printed_setting_is_read_as_its_text(name: str) -> None:
    assert paste(typed_setting("data.path", name)) == {"data.path": name}
    assert paste(typed_setting("data.columns", [name, "b", name])) == {"data.columns": [name, "b", name]}
    assert paste(train_command([f"resume={quote_value(name)}", "seed=1"])) == {"resume": name, "seed": 1}


def test_shell_reads_printed_settings_as_this_test_does(tmp_path: Path) -> None:
    settings = [typed_setting("data.path", name) for name in NAMES]
    answer = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {' '.join(settings)}"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert answer.stdout.split("\0")[:-1] == [shlex.split(one)[0] for one in settings]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_printed_hints_with_names_of_the_user_can_be_pasted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "/" in name:
        pytest.skip("not the name of a file")
    (folder := tmp_path / name / "run/checkpoints").mkdir(parents=True)
    (folder / "last.ckpt").touch()
    command = Interrupted(2, folder / "last.ckpt").resume_command
    assert command and paste(command) == {"resume": str(tmp_path / name / "run")}

    with pytest.raises(ValueError, match="resumes a run") as refused:
        overwrite.check_unused(folder.parent, None)
    hint = str(refused.value).partition("another directory, ")[2].removesuffix(" resumes a run")
    assert paste(hint) == {"resume": str(folder.parent)}

    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="only directories") as missing:
        find_files(name)
    (folder.parent / "a.png").touch()
    hint = str(missing.value).partition("in this one; ")[2].removesuffix(" takes the files in them")
    assert find_files(paste(hint)["images"])[0].name == "a.png"

    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(folder.parent)])
    (folder.parent / "config.yaml").touch()
    error = HydraException("override must be a string or a list")
    error.override = str(folder.parent)  # type: ignore[attr-defined]
    assert paste(format_error(error).partition("did you mean ")[2].removesuffix("?)")) == {"run": str(folder.parent)}


def test_hint_to_leave_a_column_out_can_be_pasted(tmp_path: Path) -> None:
    (file := tmp_path / "rows.csv").write_text(
        '"a, b",$(touch PASTED),größe,null,1,it\'s,mixed,class\n1,2,3,4,5,6,7,x\n2,3,4,5,6,7,oops,y\n'
    )
    with pytest.raises(ValueError, match="leaves the column out") as refused:
        CSVTable(file, "class")
    hint = str(refused.value).rpartition("; ")[2].removesuffix(" leaves the column out")
    assert paste(hint) == {"data.columns": ["a, b", "$(touch PASTED)", "größe", "null", "1", "it's"]}


@pytest.mark.parametrize("name", NAMES)
def test_existing_path_is_taken_as_it_is_typed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in quotes is for Hydra, and null is no path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "HOME")
    if "/" not in name:
        Path(name).touch()
    (argument,) = quote_paths([f"data.path={name}"])
    value = OverridesParser.create().parse_override(argument).value()
    as_hydra_reads = {"null": None, "NULL": None, "'a'": "a", "''": "", "~/a": "HOME/a"}
    assert value == as_hydra_reads.get(name, name)


@pytest.mark.parametrize(
    "key",
    [
        *("data.path", "data.test_path", "data.root", "+data.image_root", "hydra.run.dir", "hydra.sweep.dir", "resume"),
        *("sweep_resume", "run", "images", "csv", "output", "model.teacher", "model.weights", "callbacks.judge.run"),
        "hydra.sweep.subdir",
    ],
)
def test_each_setting_that_is_a_path_is_taken_as_it_is_typed(key: str) -> None:
    for name in ("größe (1).csv", "it's", "a=b", "[1].csv"):
        (argument,) = quote_paths([f"{key}={name}"])
        assert OverridesParser.create().parse_override(argument).value() == name


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("resume=last", "last"),
        ("resume=null", None),
        ("data.test_path=null", None),
        ("resume=${oc.env:RUN}", "${oc.env:RUN}"),
        ("hydra.run.dir=out/${seed} (1)", "out/${seed} (1)"),
        ("hydra.run.dir=a,b", "a,b"),
        ("hydra.run.dir=$\\{oc.env:SECRET\\}/run", "$\\{oc.env:SECRET\\}/run"),
        ("output=[1]", "[1]"),
        ("data.path='rows (1).csv'", "rows (1).csv"),
        ('data.path="größe.csv"', "größe.csv"),
        ("data.path=rows\\ \\(1\\).csv", "rows (1).csv"),
        ("data.path=new (1).csv", "new (1).csv"),
        ("data.path=~/rows.csv", "HOME/rows.csv"),
        ("data.path=~nobody-here/rows.csv", "~nobody-here/rows.csv"),
        ("images=drawn/[ab]*.png", "drawn/[ab]*.png"),
        ("images=[a.png,b.png]", ["a.png", "b.png"]),
        ("images=[a (1).png,größe.png]", ["a (1).png", "größe.png"]),
        ("data.path=2024", "2024"),
        ("data.path=rows(1)", "rows(1)"),
        ("data.path=", ""),
    ],
)
def test_path_that_does_not_exist_is_taken_as_it_is_typed(
    typed: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "HOME")
    (argument,) = quote_paths([typed])
    assert OverridesParser.create().parse_override(argument).value() == value
    assert quote_paths([argument]) == [argument]


@pytest.mark.parametrize("key", ["images", "csv", "data.path", "+data.root", "run", "resume", "hydra.run.dir"])
@pytest.mark.parametrize(
    "value",
    [
        *("in/${oc.env:SECRET}.csv", "'in/${oc.env:SECRET}.csv'", "in/${oc.env:SECRET}.csv/new", "in/${open"),
        *("in/${new_or_resumed_run_dir:null,made/here}.csv", "in/${new_or_resumed_run_dir:null,made/*.png"),
    ],
)
def test_name_of_a_file_is_never_evaluated(
    key: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no name on the disk is an interpolation of the user."""
    monkeypatch.chdir(tmp_path)
    quote_paths([f"{key}={value}"])
    for name in ("${oc.env:SECRET}.csv", "${open", "${new_or_resumed_run_dir:null,made/here}.csv"):
        Path("in", name).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"\$\{.* cannot be used: Hydra would evaluate the name; rename it"):
        quote_paths([f"{key}={value}"])


@pytest.mark.parametrize("typed", ["images=[a.png,${seed}]", "data.path=a.csv,'${seed}'", "data.path=é (1),${seed}"])
def test_name_of_a_file_among_several_is_never_evaluated(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quote_paths(["-m", typed])
    Path("${seed}").touch()
    with pytest.raises(ValueError, match="cannot be used"):
        quote_paths(["-m", typed])


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("data.path=a.csv,b.csv", ["a.csv", "b.csv"]),
        ("data.path=choice(a.csv,b.csv)", ["a.csv", "b.csv"]),
        ("data.path='a (1).csv',b.csv", ["a (1).csv", "b.csv"]),
        ("data.path=größe.csv,b (1).csv", ["größe.csv", "b (1).csv"]),
        ("resume=Übung 1/a,b", ["Übung 1/a", "b"]),
    ],
)
def test_several_paths_are_a_sweep(
    typed: str, values: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argument = quote_paths(["-m", typed])[1]
    override = OverridesParser.create().parse_override(argument)
    assert isinstance(override.value(), ChoiceSweep)
    assert [paste(f"x={shlex.quote(one)}")["x"] for one in override.sweep_string_iterator()] == values
    name = typed.partition("=")[2]
    if "/" not in name:
        Path(name).touch()  # a file of that name
        value = OverridesParser.create().parse_override(quote_paths(["-m", typed])[1]).value()
        assert value == name or name.startswith("'")


def test_other_settings_and_options_stay_as_they_are() -> None:
    arguments = [
        "-m",
        "--cfg",
        "job",
        "optimizer.betas=(0.9,0.99)",
        "data.target=größe",
        "model=mlp,cnn",
        "seed=1",
        "x",
    ]
    arguments += ["~data.path", "~data.path=a (1)", "+data.note=it's"]
    assert quote_paths(arguments) == arguments


@pytest.mark.parametrize(
    ("typed", "hints"),
    [
        ("optimizer.betas=(0.9,0.99)", {"optimizer.betas": "(0.9,0.99)"}),
        ("optimizer.lr=[0.1", {"optimizer.lr": "[0.1"}),
        ("data.target=größe (m)", {"data.target": "größe (m)"}),
        ("+data.note=it's", {"+data.note": "it's"}),
    ],
)
def test_value_that_hydra_cannot_read_is_shown_with_quotes(typed: str, hints: dict[str, str]) -> None:
    with pytest.raises(HydraException) as error:
        OverridesParser.create().parse_overrides([typed])
    line = format_error(error.value)
    assert line.startswith(f"{typed!r} is not NAME=VALUE or GROUP=OPTION")
    shown = re.search(r"; with quotes (.*?) is a text", line)
    assert shown
    (key, value), *_ = hints.items()
    assert paste(shown[1].replace(key, key.lstrip("+"), 1)) == {key.lstrip("+"): value}
    if "betas" in typed:
        assert line.endswith("; 'optimizer.betas=[0.9,0.99]' is a list")


@pytest.mark.slow
def test_commands_work_in_a_directory_with_such_a_name(tmp_path: Path) -> None:
    """So do the project itself, the temporary directory, and two processes."""
    folder = tmp_path / "用户 it's, [1]=(a)#;$x $\\{x\\} ~"

    def unused(directory: str, names: list[str]) -> list[str]:
        return [name for name in names if name[0] == "." or (directory == str(PROJECT) and name in OTHERS)]

    shutil.copytree(PROJECT, folder / "project", ignore=unused)
    (temporary := folder / 'tmp "1"').mkdir()
    (folder / "größe (1).csv").write_text("a,b,class\n" + "".join(f"{n},{n % 7},{n % 2}x\n" for n in range(60)))

    def run(line: str) -> str:
        python = f"{shlex.quote(sys.executable)} {shlex.quote(str(folder / 'project'))}/"
        answer = subprocess.run(
            line.replace("python ", python), shell=True, cwd=folder, capture_output=True, text=True,
            env={**os.environ, "TMPDIR": str(temporary), "DATA_ROOT": "data"},
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    settings = "data=csv data.target=class model=blobs_mlp callbacks.pictures=null logger=none trainer.max_epochs=1"
    settings += " trainer.accelerator=cpu"
    sweep = "hydra.sweep.dir='s, \"1\"' trainer=ddp trainer.devices=2"
    table = run(f"python train.py -m {settings} 'data.path=größe (1).csv' {sweep}")
    best = table.partition("best: ")[2].strip()
    run(f"{best} 'hydra.run.dir=a,b (1)'")
    run("python train.py 'resume=a,b (1)' trainer.max_epochs=2")
    run("python predict.py 'run=a,b (1)' 'csv=größe (1).csv'")
    assert (folder / "a,b (1)/predictions/predictions.csv").is_file()
