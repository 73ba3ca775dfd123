"""Sweeps from untrusted sources: their study and other files in them."""

import itertools
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from cli.run_dir import RecordDirs
from hydra_plugins.optuna_sweeper import OptunaSweeper
from runs.result import write_result
from sweeps.callback import SweepSummary
from sweeps.jobs import check_sweep_dir
from sweeps.study import open_study, open_trial
from tests.untrusted import TINY, relative_paths, run_sql, write_super_journal


def test_journal_that_names_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine\n")
    open_study(tmp_path)
    write_super_journal(tmp_path / "study.db", str(tmp_path / "mine"))
    for refuse in (open_study, check_sweep_dir):
        with pytest.raises(
            ValueError, match=r"study\.db-journal is refused: it names a file, which SQLite would delete"
        ):
            refuse(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine\n"
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("SELECT * FROM studies")
    assert not (tmp_path / "mine").exists()  # the journal is one that SQLite obeys


def test_mistyped_sweep_deletes_no_file(shell, tmp_path: Path) -> None:
    """The summary of a sweep reads the study, whatever its jobs are."""
    (tmp_path / "gift").mkdir()
    (tmp_path / "mine").write_text("mine\n")
    open_study(tmp_path / "gift")
    write_super_journal(tmp_path / "gift/study.db", "mine")
    before = relative_paths(tmp_path)
    answer = shell("-m", "seed=abc", "sweep_resume=gift")
    assert (answer.returncode, answer.stderr) == (
        1, "error: gift/study.db-journal is refused: it names a file, which SQLite would delete\n"
    )  # fmt: skip
    assert relative_paths(tmp_path) == before


def test_journal_of_a_killed_search_is_rolled_back(tmp_path: Path) -> None:
    study = open_study(tmp_path, direction="maximize")
    study.ask({"optimizer.lr": FloatDistribution(0.1, 1)})
    killed = """if True:
        import os, sqlite3, sys
        database = sqlite3.connect(sys.argv[1])
        database.execute("PRAGMA cache_size = 1")  # so that changed pages are written before the commit
        database.execute("UPDATE trials SET state = 'FAIL'")
        database.executemany("INSERT INTO trial_user_attributes (key) VALUES (?)", [["x" * 100]] * 2000)
        os._exit(9)
    """
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "study.db")], check=False)
    assert (tmp_path / "study.db-journal").stat().st_size > 0
    (trial,) = open_study(tmp_path).trials
    assert (trial.state, trial.user_attrs) == (TrialState.RUNNING, {})
    assert not (tmp_path / "study.db-journal").exists()


STRANGE = ["link", "dangling link", "fifo", "directory"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product(["study.db", "study.db-journal", "study.db-wal", "study.db-shm"], STRANGE),
        *itertools.product(["study.db-wal", "study.db-shm"], ["file"]),  # a search has none
    ],
)
def test_strange_file_beside_a_study_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "mine").write_text("mine\n")
    if name != "study.db":
        open_study(tmp_path / "sweep")
    path = tmp_path / "sweep" / name
    if kind.endswith("link"):
        path.symlink_to("../mine" if kind == "link" else "../new")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.touch()
    for refuse in (open_study, check_sweep_dir):
        with pytest.raises(ValueError, match=f"{name} is refused: it is "):
            refuse(tmp_path / "sweep")
    assert (tmp_path / "mine").read_text() == "mine\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "sweep"]


@pytest.mark.parametrize(
    "name", ["..%2Fhome%2Fmine?", "a?b=c", "a%20b#c", "{SCHEMA_VERSION}", "{", 'a\'b "c" d;e', "file:x?mode=memory"]
)
def test_study_lies_in_its_sweep_whatever_the_name_of_the_directory(name: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "sweep" / name).mkdir(parents=True)
    before = relative_paths(tmp_path)
    study = open_study(Path("sweep", name), direction="minimize")
    study.ask()
    open_trial(study, Path("sweep", name), 0).set_user_attr("worker", "a")
    assert open_study(Path("sweep", name)).trials[0].user_attrs == {"worker": "a"}
    assert relative_paths(tmp_path) - before == {f"sweep/{name}/study.db"}


def foreign_study(file: Path) -> None:
    """A study of the user's that has the name of ours, with a trial that is running."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(storage=f"sqlite:///{file}", study_name="search")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    study.ask()


FOREIGN: dict[str, Callable[[Path], None]] = {
    "a table": run_sql("CREATE TABLE notes (text)", "INSERT INTO notes VALUES ('mine')"),
    "an odd table": run_sql('CREATE TABLE "a""b; --" (text)', 'INSERT INTO "a""b; --" VALUES (\'mine\')'),
    "another study": foreign_study,
    "a view": run_sql("CREATE VIEW studies AS SELECT 1"),
    "a trigger": run_sql("CREATE TABLE t (x)", "CREATE TRIGGER u AFTER INSERT ON t BEGIN DELETE FROM t; END"),
    "a trigger as MLflow has": run_sql(
        "CREATE TABLE t (x)", "CREATE TRIGGER u BEFORE UPDATE ON t WHEN OLD.x BEGIN SELECT RAISE(ABORT, 'no'); END"
    ),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_study_of_the_user_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(file := tmp_path / "study.db")
    before = file.read_bytes()
    for refuse in (open_study, check_sweep_dir):
        with pytest.raises(ValueError, match=r"study\.db is refused: it is not the study of a search of this project"):
            refuse(tmp_path)
    assert file.read_bytes() == before
    assert relative_paths(tmp_path) == {"study.db"}


FILLED = ("studies", "study_directions", "study_user_attributes")  # the tables with rows of a study without trials


@pytest.mark.parametrize("make", [Path.touch, lambda file: optuna.storages.RDBStorage(f"sqlite:///{file}")])
def test_database_without_a_study_does_not_make_a_directory_that_of_a_search(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    """The summary is the user's."""
    make(tmp_path / "study.db")
    check_sweep_dir(tmp_path)
    (tmp_path / "summary.csv").write_text("mine\n")
    with pytest.raises(ValueError, match=r"has summary\.csv in it, which this sweep would overwrite"):
        check_sweep_dir(tmp_path)
    open_study(tmp_path, direction="maximize")
    check_sweep_dir(tmp_path)


def test_own_study_is_opened_again(tmp_path: Path) -> None:
    """After a kill while it was created too, and from an earlier version, which did not mark it."""
    for number, statement in enumerate(("DELETE FROM trials", "DELETE FROM study_user_attributes")):
        (folder := tmp_path / str(number)).mkdir()
        trial = open_study(folder, direction="maximize").ask()
        trial.set_user_attr("worker", ".worker-0123456789ab.lock")
        run_sql(statement)(folder / "study.db")
        assert open_study(folder).direction.name == "MAXIMIZE"
    for number, statements in enumerate(
        [(), ("DROP TABLE trial_params", *(f"DELETE FROM {name}" for name in FILLED))], 2
    ):
        (folder := tmp_path / str(number)).mkdir()
        if statements:
            open_study(folder, direction="maximize")
        run_sql(*statements)(folder / "study.db")
        check_sweep_dir(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "statements",
    [
        ("ALTER TABLE trial_user_attributes ADD COLUMN param_name TEXT DEFAULT 'optimizer.lr'",),
        ("CREATE UNIQUE INDEX i ON trial_params (param_value)",),
        ("CREATE VIRTUAL TABLE notes USING fts5(text)",),
        (  # a write to one table is then one to the other
            "PRAGMA writable_schema = ON",
            "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = 'trial_params')"
            " WHERE name = 'trial_values'",
        ),
    ],
)
def test_study_with_other_tables_than_those_of_optuna_is_refused(statements: tuple[str, ...], tmp_path: Path) -> None:
    """What Optuna writes would become something else: a setting of a job, which was not checked."""
    open_study(tmp_path, direction="maximize").ask({"optimizer.lr": FloatDistribution(0, 1)})
    check_sweep_dir(tmp_path)
    run_sql(*statements)(tmp_path / "study.db")
    with pytest.raises(ValueError, match=r"study\.db is refused: it is not the study of a search of this project"):
        open_study(tmp_path)


def test_job_has_no_setting_that_its_search_does_not_hold() -> None:
    sweeper = OptunaSweeper({}, None, None, n_trials=3, startup_trials=1, seed=1)
    sweeper.space, sweeper.fixed = {"optimizer.lr": FloatDistribution(0, 1)}, ["seed=1"]
    trial = create_trial(params={"optimizer.lr": 0.5}, distributions=sweeper.space, value=1.0)
    assert sweeper._overrides(trial) == ["seed=1", "optimizer.lr=0.5"]
    evil = CategoricalDistribution(["${oc.env:SECRET}"])
    trial = create_trial(params={"optimizer.lr": "${oc.env:SECRET}"}, distributions={"optimizer.lr": evil}, value=1.0)
    with pytest.raises(ValueError, match=r"has settings that this search does not hold"):
        sweeper._overrides(trial)


def test_name_of_a_parameter_is_printed_without_control_characters(tmp_path: Path, capsys) -> None:
    (folder := tmp_path / "a\x1b[31mred").mkdir()
    study = open_study(folder, direction="maximize")
    evil, distribution = "\x1b]0;pwned\x07\nresume with: x", FloatDistribution(0, 1)
    for number in range(8):
        params = {evil: number / 10, "b": number * 7 % 10 / 10}
        distributions = dict.fromkeys(params, distribution)
        study.add_trial(create_trial(params=params, distributions=distributions, value=number / 10))
    write_result(folder / "0-0123abcd", {"overrides": ["seed=1"], "metrics": {"val/acc": 0.5}, "status": "finished"})
    cfg = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
    SweepSummary().on_multirun_end(cfg)
    printed = capsys.readouterr()
    assert "\\x1b]0;pwned\\x07\\nresume with: x" in printed.out and "a\\x1b[31mred" in printed.out
    assert "\x1b" not in printed.out + printed.err + (folder / "summary.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("search", [[], ["hydra/sweeper=optuna", "optimizer.lr=choice(0.1,0.2)"]])
def test_submitit_makes_no_directory_that_was_not_named(search: list[str], shell: Callable, tmp_path: Path) -> None:
    """It replaces %j in the whole path by the number of the job."""
    (tmp_path / "a%jb").mkdir()
    answer = shell(
        "-m", "model=blobs_mlp", "data=blobs", *search, "hydra/launcher=submitit_local", cwd=tmp_path / "a%jb"
    )
    assert answer.returncode == 1
    assert re.fullmatch(r"error: hydra/launcher=submitit_… replaces % in .+: choose a path without it\n", answer.stderr)
    assert [path.name for path in tmp_path.rglob("*")] == ["a%jb"]


def test_each_command_has_a_submitit_folder_of_its_own(tmp_path: Path) -> None:
    """Submitit unpickles the results that it finds in its folder."""
    folders = set()
    for given in ("${hydra.sweep.dir}/.submitit/%j", "${hydra.sweep.dir}/.submitit/%j", "mine/%j"):
        hydra = {"sweep": {"dir": "sweep"}, "launcher": {"submitit_folder": given}}
        cfg = OmegaConf.create({"hydra": hydra})
        OmegaConf.set_readonly(cfg.hydra, True)
        RecordDirs().on_multirun_start(cfg)
        folders.add(cfg.hydra.launcher.submitit_folder)
    assert len(folders) == 3 and "mine/%j" in folders
    assert all(re.fullmatch(r"sweep/\.submitit/[0-9a-f]{16}/%j", folder) for folder in folders - {"mine/%j"})


@pytest.mark.slow
@pytest.mark.parametrize(("package", "launcher"), [("joblib", "joblib"), ("submitit", "submitit_local")])
def test_package_in_a_sweep_is_not_imported(package: str, launcher: str, shell, tmp_path: Path) -> None:
    (tmp_path / "gift" / package).mkdir(parents=True)
    (tmp_path / "gift" / package / "__init__.py").write_text("open('pwned', 'w')")
    (tmp_path / "gift/multirun.yaml").write_text("hydra: {}\nsweep_resume: null\n")
    sweep = ("-m", *TINY, "trainer.max_epochs=1", "logger=none", "seed=1,2")
    answer = shell(*sweep, f"hydra/launcher={launcher}", "sweep_resume=.", cwd=tmp_path / "gift")
    assert answer.returncode == 0, answer.stderr
    assert not list(tmp_path.rglob("pwned"))
    if package == "submitit":
        (folder,) = (tmp_path / "gift/.submitit").iterdir()
        assert re.fullmatch(r"[0-9a-f]{16}", folder.name)
