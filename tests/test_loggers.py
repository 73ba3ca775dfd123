"""logger=csv, mlflow, wandb, and several at once; debug=lr."""

import contextlib
import http.server
import logging
import os
import re
import shutil
import sqlite3
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import yaml
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from callbacks.lr_range_test import LRRangeTest
from callbacks.plots import Plots
from callbacks.signal_handler import Interrupted
from cli.compose import compose, run_title
from cli.main import check_hydra_settings
from cli.resume import _check_nodes, _check_services, _is_kept, overrides_to_repeat
from cli.validation import check_loggers
from runs.safety import stored_command
from tests.conftest import run
from tests.untrusted import edit_checkpoint, run_sql, write_super_journal

POINTS = ("model=blobs_mlp", "data=blobs", "trainer.accelerator=cpu", "model.steps_per_batch=1", "threads=1")


TRAINING_FIGURES = Plots._training_figures  # other tests draw none


def counted(hook: Callable[..., None], steps: list[int]) -> Callable[..., None]:
    def count(self: LRRangeTest, trainer: pl.Trainer, *arguments: object) -> None:
        steps.append(trainer.global_step)
        hook(self, trainer, *arguments)

    return count


@pytest.fixture
def own_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a directory that no other test has had: MLflow keeps its connection to an address."""
    pytest.importorskip("mlflow")
    (folder := tmp_path / uuid.uuid4().hex).mkdir()
    monkeypatch.chdir(folder)


def query(statement: str, file: str = "outputs/mlflow.db") -> list[tuple]:
    with contextlib.closing(sqlite3.connect(file)) as database:
        return database.execute(statement).fetchall()


def test_resumed_run_continues_its_mlflow_run_and_its_title() -> None:
    pytest.importorskip("mlflow")
    run("run", *POINTS, "logger=[tensorboard,csv,mlflow]", "tags=[a,b]", "trainer.max_epochs=1")
    before = Path("run/mlflow.txt").read_text()
    # MLflow has one connection per address in a process, and would make this one that of all later runs.
    assert before.splitlines()[1] == f"sqlite:///{Path.cwd()}/outputs/mlflow.db"
    assert "MLFLOW_TRACKING_URI" not in os.environ
    with pytest.raises(
        ValueError, match=r"MLflow: 'logger=\[tensorboard,csv,mlflow\]' continues it there, logger=none"
    ):
        run("run", "resume=run", "trainer.max_epochs=2")
    again = run("run", "resume=run", "trainer.max_epochs=2", "logger=[tensorboard,csv,mlflow]")
    assert again["tags"] == ["a", "b"]
    assert Path("run/mlflow.txt").read_text() == before
    assert query("SELECT status FROM runs") == [("FINISHED",)]
    assert query("SELECT step FROM metrics WHERE key = 'train/loss' ORDER BY step") == [(1,), (2,)]
    tags = dict(query("SELECT key, value FROM tags"))
    assert (tags["tags"], tags["trainer.max_epochs"]) == ("a, b", "2")
    assert "max_epochs=2" in Path("run/dashboard.txt").read_text()
    assert Path("run/csv/version_1/metrics.csv").is_file()
    assert Path("run/metrics.csv").read_text().startswith("epoch,step,")


def test_resumed_run_continues_its_wandb_run() -> None:
    pytest.importorskip("wandb")
    run("run", *POINTS, "logger=wandb", "logger.wandb.mode=offline", "trainer.max_epochs=1")
    run_id = Path("run/wandb.txt").read_text().split()[0]
    run("run", "resume=run", "trainer.max_epochs=2", "logger=wandb")
    assert Path("run/wandb.txt").read_text().split()[0] == run_id
    # wandb appends -1 to the name of a directory that is there: a run may be resumed within the same second.
    assert len(list(Path("outputs/wandb").glob(f"offline-run-*-{run_id}*/run-{run_id}.wandb"))) == 2
    assert [path for path in Path("run").rglob("*") if path.is_symlink()] == []


def test_id_of_a_wandb_run_is_hexadecimal() -> None:
    """Whoever knows where a run will be can compute the rest of an id, which becomes part of a directory's name."""
    pytest.importorskip("wandb")
    from loggers.wandb import WandB

    Path("run").mkdir()
    for prefix, is_taken in (("0123abcd", True), ("..%2f..%", False), ("$(touch ", False)):
        run_id = WandB("run", mode="disabled")._id_here(prefix)
        Path("run/wandb.txt").write_text(f"{run_id}\n")
        assert WandB("run", mode="disabled").is_continued == is_taken


def test_mlflow_run_elsewhere_is_not_contacted() -> None:
    """Neither a server nor an SQLite file, which may say that artifacts are anywhere."""
    pytest.importorskip("mlflow")
    run("run", *POINTS, "logger=mlflow", "trainer.max_epochs=1")
    os.renames("outputs/mlflow.db", "given/mlflow.db")
    run_id = Path("run/mlflow.txt").read_text().splitlines()[0]
    for address in ("http://host", "sqlite:///given/mlflow.db"):
        Path("run/mlflow.txt").write_text(f"{run_id}\n{address}\n")
        with pytest.raises(Exception, match="an address that is not taken from a run"):
            run("run", "resume=run", "trainer.max_epochs=2", "logger=mlflow")
    run("run", "resume=run", "trainer.max_epochs=2", "logger.mlflow.tracking_uri=sqlite:///given/mlflow.db")
    assert query("SELECT count(*) FROM runs", "given/mlflow.db") == [(1,)]


@pytest.mark.slow
def test_resumed_run_does_not_continue_that_of_another_directory() -> None:
    """The id of an MLflow run stands in its address, and whoever gives a run away can write it into mlflow.txt."""
    pytest.importorskip("mlflow")
    for name in ("mine", "gift"):
        run(name, *POINTS, "logger=mlflow", "trainer.max_epochs=1")
    stored = Path("mine/mlflow.txt").read_text()
    mine = f"SELECT * FROM runs JOIN metrics USING (run_uuid) WHERE run_uuid = '{stored.split()[0]}'"
    before = query(mine)
    Path("gift/mlflow.txt").write_text(stored)
    run("gift", "resume=gift", "trainer.max_epochs=2", "logger=mlflow")
    assert query(mine) == before != []
    assert query("SELECT count(*) FROM runs") == [(3,)]


@pytest.mark.slow
@pytest.mark.parametrize("typed", [None, "outputs/mlflow.db", "own.db"])
@pytest.mark.parametrize("way", ["app", "outputs/mlruns/%2e%2e/%2e%2e/app"])
def test_mlflow_writes_no_artifacts_where_a_database_says(way: str, typed: str | None, own_address: None) -> None:
    """They go beside the database, which may have come with a run."""
    (here := Path.cwd()).joinpath("app").mkdir()
    settings = ("logger=mlflow", *([f"logger.mlflow.tracking_uri=sqlite:///{typed}"] if typed else []))
    run("run", *POINTS, *settings, "trainer.max_epochs=1")
    for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
        with contextlib.closing(sqlite3.connect(typed or "outputs/mlflow.db")) as database, database:
            database.execute(f"UPDATE {table} SET {column} = ?", (f"{here}/{way}",))
        if table == "runs":
            run("run", "resume=run", "trainer.max_epochs=2", *settings)
    Path("run/mlflow.txt").unlink()
    root = Path(typed or "outputs/mlflow.db").parent.absolute() / "mlruns"
    with pytest.raises(ValueError, match=f"another experiment: lit-classics has its artifacts at {here}/{way}"):
        run("run", "resume=run", "trainer.max_epochs=3", *settings)
    assert list((here / "app").iterdir()) == []
    assert len(list(root.glob("*/artifacts/config.yaml"))) == 2


def test_database_with_some_names_of_mlflow_is_of_another_program(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from loggers.mlflow import check_sqlite_file

    names = ("alembic_version", "experiments", "runs", "metrics")
    run_sql(*(f"CREATE TABLE {name} (version_num)" for name in names))(tmp_path / "lab.db")
    with pytest.raises(ValueError, match="that is a database of another program"):
        check_sqlite_file(tmp_path / "lab.db", "sqlite:///lab.db", is_made=False)


@pytest.mark.parametrize("where", ["outputs/mlflow.db", "gift/mlflow.db"])
def test_journal_beside_a_database_of_mlflow_deletes_no_file(where: str, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    (tmp_path / "mine").write_text("mine\n")
    (file := tmp_path / where).parent.mkdir()
    run_sql("CREATE TABLE runs (run_uuid)")(file)
    write_super_journal(file, str(tmp_path / "mine"))
    with pytest.raises(Exception, match=r"mlflow\.db-journal is refused: it names a file, which SQLite would delete"):
        run("run", *POINTS, "logger=mlflow", f"logger.mlflow.tracking_uri=sqlite:///{where}")
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("directory", "that is no file"),
        ("notes.txt", "that is no SQLite file"),
        ("new/mlflow.db", "there is no directory new"),
        ("mlflow.db?mode=ro", "only the name of a file may follow sqlite:///"),
        (":memory:", "only the name of a file may follow sqlite:///"),
    ],
)
def test_wrong_sqlite_file_is_refused_before_anything_is_made(file: str, reason: str, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    Path("directory").mkdir()
    Path("notes.txt").write_text("mine, and no database\n")
    with pytest.raises(Exception, match=f"{re.escape(file)}: {re.escape(reason)}"):
        run("run", *POINTS, "logger=mlflow", f"logger.mlflow.tracking_uri='sqlite:///{file}'")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["directory", "notes.txt", "run"]


@pytest.mark.parametrize("name", ["why?", "lenet%2Frun1", "a#b"])
def test_mlflow_has_no_database_whose_path_would_be_another_one_in_a_url(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(Exception, match=re.escape(f"{name}/outputs/mlflow.db, because of ?, # or % in the path")):
        run("run", *POINTS, "logger=mlflow")
    assert [path.name for path in tmp_path.rglob("*")] == [name, "run"]


@pytest.mark.slow
def test_mlflow_run_is_as_before_where_another_logger_refuses_to_continue() -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    run("run", *POINTS, "logger=mlflow", "trainer.max_epochs=1")
    before = query("SELECT name, status, end_time FROM runs")
    Path("wandb").mkdir()
    Path("wandb/settings").write_text("[default]\nbase_url = http://127.0.0.1:9\n")
    with pytest.raises(ValueError, match="could send your key elsewhere"):
        run("run", "resume=run", "logger=[mlflow,wandb]", "trainer.max_epochs=2")
    assert query("SELECT name, status, end_time FROM runs") == before


@pytest.mark.slow
def test_loggers_that_began_are_undone_where_another_one_refuses() -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    for number, folder in enumerate(("wandb", ".wandb", "outputs/wandb", "outputs/.wandb"), 1):
        Path(folder).mkdir()
        Path(folder, "settings").write_text("[default]\nbase_url = http://127.0.0.1:9\n")
        with pytest.raises(ValueError, match=f" {folder}/settings in this directory could send your key elsewhere"):
            run("run", *POINTS, "logger=[mlflow,wandb]")
        assert list(Path("run").iterdir()) == []
        assert query("SELECT lifecycle_stage FROM runs") == [("deleted",)] * number
        shutil.rmtree(folder)


def test_no_string_of_a_config_sends_the_key_of_wandb_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb fetches an artifact from the server that its address names, also where it is offline."""
    pytest.importorskip("wandb")
    asked: list[str] = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.headers["Authorization"])
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2 + "01234567")
    run("run", *POINTS, "logger=none", "trainer.max_epochs=1")
    with http.server.HTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"wandb-artifact://http://127.0.0.1:{server.server_port}/_id/QXJ0aWZhY3Q6MQ=="
        file = Path("run/checkpoints/last.ckpt")
        edit_checkpoint(file, "config", "note", value=address)
        edit_checkpoint(file, "config", "other", value={"_type": "artifactVersion", "id": "QXJ0aWZhY3Q6MQ=="})
        run("run", "resume=run", "trainer.max_epochs=2", "logger=wandb", "logger.wandb.mode=offline")
        server.shutdown()
    assert asked == []


def test_wandb_sends_no_values_of_the_working_directory() -> None:
    pytest.importorskip("wandb")
    Path("config-defaults.yaml").symlink_to("private.yaml")
    with pytest.raises(ValueError, match=r"wandb would send the values of config-defaults\.yaml in this directory"):
        run("run", *POINTS, "logger=wandb", "logger.wandb.mode=offline")


def test_refused_wandb_leaves_no_directory() -> None:
    pytest.importorskip("wandb")
    with pytest.raises(ValueError, match="logger=wandb: Invalid project name"):
        run("run", *POINTS, "logger=wandb", "logger.wandb.mode=offline", "logger.wandb.project=a/b")
    assert not Path("outputs").exists()


def test_wandb_runs_no_git_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The .git/config there may have come with a run, and names programs that git starts."""
    pytest.importorskip("wandb")
    (tmp_path / ".git").mkdir()
    (tmp_path / "bin").mkdir()
    git = tmp_path / "bin" / "git"
    git.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/started\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{git.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_SAVE_CODE", "true")
    run("run", *POINTS, "logger=wandb", "logger.wandb.mode=offline", "trainer.max_epochs=1")
    commands = (tmp_path / "started").read_text() if (tmp_path / "started").exists() else ""
    assert "diff" not in commands and "config" not in commands


def test_place_at_wandb_is_not_taken_from_a_run() -> None:
    pytest.importorskip("wandb")
    settings = ("logger.wandb.project=theirs", "logger.wandb.entity=they", "logger.wandb.mode=offline")
    run("run", *POINTS, "logger=wandb", *settings, "trainer.max_epochs=1")
    with pytest.raises(Exception, match=r"in W&B at they, project theirs, an address that is not taken from a run"):
        run("run", "resume=run", "trainer.max_epochs=2", "logger=wandb")
    before = Path("run/wandb.txt").read_text()
    run("run", "resume=run", "trainer.max_epochs=2", *settings)
    assert Path("run/wandb.txt").read_text() == before
    os.rename("run", "moved")
    run("moved", "resume=moved", "trainer.max_epochs=3", *settings)
    assert Path("moved/wandb.txt").read_text() != before


@pytest.mark.parametrize("name", ["logger.csv.name", "logger.tensorboard.title", "logger.mlflow.run_name"])
def test_command_of_a_run_names_no_directory_for_its_loggers(name: str) -> None:
    """Whoever pastes it would write there."""
    for value in ("/elsewhere", "../elsewhere", "'../else where'", "a/../../b", ".hidden", "a/"):
        assert stored_command(["seed=2", f"{name}={value}"]) == "python train.py seed=2"
    for value in ("a", "'a b'", "lenet/lr=0.1"):
        assert name in stored_command(["seed=2", f"{name}={value}"])


def test_command_of_a_run_does_not_say_where_it_is_at_a_service() -> None:
    """Whoever pastes it would send a key there."""
    stored = ["logger=mlflow", "logger.mlflow.tracking_uri=http://host", "+logger.wandb.entity=they", "seed=2"]
    assert stored_command([*stored, "logger.mlflow.run_name=a"]) == (
        "python train.py logger=mlflow seed=2 logger.mlflow.run_name=a"
    )


@pytest.mark.slow
def test_two_processes_make_the_tables_of_one_file() -> None:
    """The second one begins when the file is there, and its tables are not."""
    pytest.importorskip("mlflow")
    from loggers import mlflow

    Path("outputs").mkdir()
    Path("outputs/mlflow.db").touch()
    with mlflow.one_at_a_time(mlflow.DEFAULT_URI), pytest.raises(Timeout):
        FileLock("outputs/.mlflow.db.lock").acquire(timeout=0)


def test_resumed_run_uses_a_service_or_other_machines_only_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    loggers = compose("logger=wandb").logger
    with pytest.raises(ValueError, match="this run is in W&B: logger=wandb continues it there, logger=none"):
        _check_services(loggers, {"seed": "seed=1"})
    with pytest.raises(ValueError, match="this run is in W&B"):
        _check_services(loggers, {"logger.tensorboard.title": "logger.tensorboard.title=mine"})
    with pytest.raises(ValueError, match="this run is in MLflow"):
        _check_services(compose("logger=[mlflow,wandb]").logger, {"logger.wandb.project": "logger.wandb.project=mine"})
    _check_services(loggers, {"logger": "logger=wandb"})
    _check_services(loggers, {"+logger.wandb.notes": "+logger.wandb.notes=mine"})
    _check_services(compose("logger=[tensorboard,csv]").logger, {})
    cfg = compose("trainer.num_nodes=2")
    with pytest.raises(ValueError, match=r"trained on 2 machines: trainer\.num_nodes=2 continues it so"):
        _check_nodes(cfg, compose("trainer=ddp"), {"trainer": "trainer=ddp"})
    for nodes in ("trainer.num_nodes=2", "trainer.num_nodes=1"):
        _check_nodes(cfg, compose(nodes), {"trainer.num_nodes": nodes})
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")  # of torchrun
    _check_nodes(cfg, compose("trainer=ddp"), {"trainer": "trainer=ddp"})


def test_interrupted_run_is_resumed_with_its_service(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    settings = ("logger=mlflow", "logger.mlflow.run_name=a")
    cfg = compose(*POINTS, *settings, "seed=3")
    monkeypatch.setattr("cli.resume.task_overrides", lambda: [*POINTS, *settings, "seed=3", "logger_of_mine=1"])
    assert overrides_to_repeat(cfg) == [*settings]
    error = Interrupted(15, Path("run/checkpoints/last.ckpt"), settings)
    assert error.resume_command == "python train.py resume=run logger=mlflow logger.mlflow.run_name=a"


@pytest.mark.parametrize("file", ["mlflow.db", "mlruns", "wandb", ".wandb"])
def test_link_in_outputs_is_not_written_through(file: str, tmp_path: Path) -> None:
    name = "wandb" if "wandb" in file else "mlflow"
    pytest.importorskip(name)
    (tmp_path / "mine").mkdir()
    if file == "mlflow.db":
        run_sql("CREATE TABLE notes (text)")(tmp_path / "mine/notes.db")
    Path("outputs").mkdir()
    Path("outputs", file).symlink_to("../mine/notes.db" if file == "mlflow.db" else "../mine")
    before = [path.stat().st_size for path in (tmp_path / "mine").iterdir()]
    with pytest.raises(Exception, match=f"outputs/{file} is refused: it is a link"):
        run("run", *POINTS, f"logger={name}")
    assert [path.stat().st_size for path in (tmp_path / "mine").iterdir()] == before
    assert list(Path("run").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "statement"),
    [
        (
            "outputs/mlflow.db",
            "CREATE TRIGGER t AFTER INSERT ON runs BEGIN UPDATE runs SET artifact_uri = 'x'; END",
        ),
        ("outputs/mlflow.db", "CREATE VIEW v AS SELECT 1"),
        ("outputs/mlflow.db", "CREATE TABLE u (x DEFAULT 'x' REFERENCES runs (run_uuid) ON DELETE SET DEFAULT)"),
        ("own.db", "CREATE TABLE notes (text)"),
        ("own.db", "CREATE TABLE diary (text)"),
    ],
)
def test_database_with_triggers_or_of_another_program_is_not_used(
    where: str, statement: str, own_address: None
) -> None:
    settings = ("logger=mlflow", "trainer.max_epochs=1")
    if where.startswith("outputs"):
        run("first", *POINTS, *settings)
    else:
        driver = "+pysqlite" if "diary" in statement else ""
        settings += (f"logger.mlflow.tracking_uri=sqlite{driver}:///{where}",)
    run_sql(statement)(Path(where))
    before = Path(where).read_bytes()
    with pytest.raises(Exception, match="a database of another program, or has triggers or views"):
        run("second", *POINTS, *settings)
    assert Path(where).read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("place", ["{folder}/mine", "http://127.0.0.1:9/mine"])
def test_artifacts_stay_beside_the_database_whatever_it_says_later(
    place: str, own_address: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database may change the place itself, when something else is written."""
    monkeypatch.setattr(Plots, "_training_figures", TRAINING_FIGURES)
    (tmp_path / "mine").mkdir()
    from loggers.mlflow import MLflow

    log_config = MLflow.log_config

    def move_and_log(self: MLflow, *arguments: Any) -> None:
        run_sql(f"UPDATE runs SET artifact_uri = '{place.format(folder=tmp_path)}'")(Path("outputs/mlflow.db"))
        log_config(self, *arguments)

    monkeypatch.setattr(MLflow, "log_config", move_and_log)
    run("run", *POINTS, "logger=mlflow", "trainer.max_epochs=1")
    (artifacts,) = Path("outputs/mlruns").glob("*/artifacts")
    assert {"config.yaml", "result.json", "pictures"} == set(os.listdir(artifacts))
    assert os.listdir(artifacts / "pictures") and os.listdir(tmp_path / "mine") == []


@pytest.mark.slow
def test_artifacts_are_written_through_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setattr(Plots, "_training_figures", TRAINING_FIGURES)
    run("run", *POINTS, "logger=mlflow", "trainer.max_epochs=1")
    (pictures,) = Path("outputs/mlruns").glob("*/artifacts/pictures")
    pictures.rename(tmp_path / "mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    pictures.symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match=r"pictures is refused: it is a link to .*mine"):
        run("run", "resume=run", "trainer.max_epochs=2", "logger=mlflow")
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == before


@pytest.mark.slow
def test_artifacts_at_an_address_that_looks_like_a_directory_are_refused() -> None:
    """As a path ``http://host`` leads through a directory named ``http:``, which may have come with a run."""
    pytest.importorskip("mlflow")
    run("run", *POINTS, "logger=mlflow", "trainer.max_epochs=1")
    Path("http:").symlink_to("outputs/mlruns")
    run_sql("UPDATE experiments SET artifact_location = 'http://host/x'")(Path("outputs/mlflow.db"))
    with pytest.raises(ValueError, match="has its artifacts at http://host/x"):
        run("other", *POINTS, "logger=mlflow", "trainer.max_epochs=1")


def test_csv_files_of_another_run_are_kept() -> None:
    Path("mine").mkdir()
    Path("mine/metrics.csv").write_text("mine\n")
    with pytest.raises(Exception, match="logger=csv: mine has files in it, which would be removed"):
        run("run", *POINTS, "logger=csv", f"logger.csv.name={Path('mine').resolve()}", "+logger.csv.version=.")
    assert [path.name for path in Path("mine").iterdir()] == ["metrics.csv"]


def test_link_that_a_stored_name_of_csv_leads_through_is_refused() -> None:
    run("run", *POINTS, "logger=csv", "logger.csv.name=photos/x", "trainer.max_epochs=1")
    Path("mine").mkdir()
    shutil.copy("run/checkpoints/last.ckpt", "mine/sent.ckpt")
    Path("elsewhere").mkdir()
    Path("mine/photos").symlink_to("../elsewhere")
    with pytest.raises(Exception, match="logger=csv: mine/photos/x/version_0 is a link out of mine"):
        run("mine", "resume=mine/sent.ckpt", "trainer.max_epochs=2")
    assert not any(Path("elsewhere").iterdir())


def test_names_of_classes_in_mlflow() -> None:
    pytest.importorskip("mlflow")
    from mlflow.utils.validation import _validate_metric_name

    from loggers.mlflow import _metric_name

    names = ["猫", "狗", "a b", "a_b", "..", ".", "a/b", "a//b", "a:b", "?", "!", "", "x" * 300, "x" * 301, "_2e_"]
    logged = [_metric_name(f"test/acc/{name}") for name in names]
    for name in logged:
        _validate_metric_name(name)
    assert len(set(logged)) == len(names)
    assert logged[0] == "test/acc/猫"
    assert _metric_name("val/loss") == "val/loss"


@pytest.mark.parametrize(("mode", "kept"), [("online", False), ("offline", True)])
def test_resumed_run_does_not_choose_to_be_online(mode: str, kept: bool) -> None:
    config = OmegaConf.create({"logger": {"wandb": {"mode": None, "entity": None}, "mode": "word"}})
    assert not _is_kept(config, "logger.mode.name", "a")
    assert _is_kept(config, "logger.wandb.mode", mode) == kept
    assert not _is_kept(config, "logger.wandb.entity", "they")


def test_debug_run_has_no_logger_and_a_list_its_names() -> None:
    assert compose("debug=fast").choices.logger == "none"
    run("run", *POINTS, "debug=fast")
    assert not list(Path("run").rglob("*tfevents*")) and not Path("run/lightning_logs").exists()
    assert compose("logger=[csv,mlflow]").choices.logger == ["csv", "mlflow"]
    assert run_title("a", ["model.net.hidden_sizes=[]"], 1) == "a/hidden_sizes=[] seed=1"


@pytest.mark.parametrize("parts", [POINTS, ("experiment=line_slow",), ("model=blobs_mlp", "data=blobs", "threads=1")])
def test_range_test_proposes_a_rate_and_keeps_no_run(
    parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A step of it is one gradient step, also where a model makes many of them."""
    steps = []
    monkeypatch.setattr(LRRangeTest, "on_train_batch_end", counted(LRRangeTest.on_train_batch_end, steps))
    caplog.set_level(logging.INFO)
    run("run", *parts, "debug=lr")
    assert re.search(r"where the loss falls most steeply: optimizer\.lr=\d", caplog.text)
    assert 12 <= steps[-1] == len(steps) <= 100
    assert [str(path) for path in Path("run").rglob("*.*")] == ["run/pictures/learning_rate.png"]


def test_range_test_makes_no_sweep() -> None:
    with pytest.raises(ValueError, match=r"^debug=lr proposes a rate for one run: leave out -m$"):
        check_hydra_settings([*POINTS, "debug=lr", "-m", "seed=1,2"], "train")


def test_range_test_wants_one_optimizer(random_images) -> None:
    random_images(40, 10)
    with pytest.raises(ValueError, match="debug=lr tests the rate of one optimizer, and GAN has 2"):
        run("run", "model=gan", "data=mnist", "data.val_size=10", "trainer.accelerator=cpu", "debug=lr")
    assert list(Path("run").iterdir()) == []


def test_run_with_a_list_of_callbacks_is_resumed_with_them() -> None:
    run("run", *POINTS, "callbacks=[ema,early_stopping]", "callbacks.early_stopping.patience=2", "trainer.max_epochs=1")
    run("run", "resume=run", "trainer.max_epochs=2")
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["choices"]["callbacks"] == ["ema", "early_stopping"]
    assert config["callbacks"]["early_stopping"]["patience"] == 2
    assert config["callbacks"].keys() > {"ema", "progress"}


def test_missing_package_of_a_logger_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose("logger=[csv,wandb]")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^logger=wandb needs a package: pip install wandb$"):
        check_loggers(cfg)
