"""data=csv: training on a table, what the checkpoint stores of it, and errors in one line."""

import csv
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from cli.build import load_run
from cli.compose import compose
from cli.errors import format_error
from cli.predictions import Numbers
from cli.resume import merge_resume_config
from datamodules import CSVTable
from datamodules.csv_file import in_one_line
from tests.conftest import Killed, kill_at
from tests.kill_and_resume import differences, final_state
from tests.test_scripts import evaluate_run, export_run, predict_rows, trained_net

HEADER = ("age", "name", "height", "kind", "price")


def make_table(path: str = "table.csv", size: int = 200, seed: int = 0) -> np.ndarray:
    """Write a table whose kind (a class) and price depend on age and height, two columns of very different scale.

    The column ``name`` holds text that is not used. Return age and height, (size, 2).
    """
    generator = np.random.default_rng(seed)
    age, height = generator.normal(40, 10, size), generator.normal(0.002, 0.001, size)
    kind = np.where((age - 40) / 10 + (height - 0.002) / 0.001 > 0, "tall and old", "small")
    price = 5000 * (age - 40) - 3e7 * (height - 0.002) + 250_000
    with open(path, "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(HEADER)
        writer.writerows(zip(age, [f"n{row}" for row in range(size)], height, kind, price, strict=True))
    return np.stack([age, height], 1)


RUN = ("data=csv", "data.path=table.csv", "trainer.accelerator=cpu", "threads=1", "logger=none", "data.batch_size=16")
KIND = (*RUN, "data.target=kind", "data.columns=[age,height]", "model=mlp", "model.net.hidden_sizes=[16]")
PRICE = (*RUN, "data.target=price", "model=mlp_regression")


def run(folder: str, *overrides: str) -> dict[str, Any]:
    Path(folder).mkdir(exist_ok=True)
    return train.train_config(compose(*overrides), Path(folder))


def error_line(*overrides: str) -> str:
    """Return the error line of a training that is refused."""
    with pytest.raises(Exception) as error:
        run("refused", *RUN, *overrides)
    assert list(Path("refused").iterdir()) == []
    return format_error(error.value)


# --- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["logistic", "deep_logistic", "blobs_mlp", "mlp"])
def test_classifiers_learn_a_text_column(model: str) -> None:
    make_table()
    settings = ("data.target=kind", "data.columns=[age,height]", "trainer.max_epochs=20", "optimizer.lr=0.02")
    result = run("run", *RUN, f"model={model}", *settings)
    assert result["metrics"]["test/acc"] >= 0.9
    assert {"test/acc/small", "test/acc/tall and old"} < result["metrics"].keys()


def test_regression_predicts_in_the_unit_of_the_target() -> None:
    """The inputs are all numeric columns. Always predicting the mean would give a loss of 1."""
    table = make_table()
    assert run("run", *PRICE, "trainer.max_epochs=30")["metrics"]["test/loss"] < 0.02
    with open("rows.csv", "w", newline="") as out:
        csv.writer(out).writerows(table[:5])
    prices = 5000 * (table[:5, 0] - 40) - 3e7 * (table[:5, 1] - 0.002) + 250_000
    predicted = np.array([row["prediction"] for row in predict_rows(Path("run"), csv="rows.csv")])
    assert np.abs(predicted - prices).max() < 0.3 * 58_000  # 58,000 is their standard deviation
    targets = [row["truth"] for row in predict_rows(Path("run"), split="test", limit=3)]
    with open("table.csv", newline="") as lines:
        prices = [float(row["price"]) for row in csv.DictReader(lines)]
    assert all(min(abs(truth / price - 1) for price in prices) < 1e-5 for truth in targets)


def test_line_learns_one_column_without_standardization() -> None:
    x = np.linspace(-1, 1, 50)
    Path("table.csv").write_text("x,y\n" + "".join(f"{number},{3 * number + 2}\n" for number in x))
    settings = ("model=line", "data.target=y", "data.standardize=false", "optimizer=sgd", "optimizer.lr=0.2")
    settings += ("optimizer.momentum=0",)
    metrics = run("run", *RUN, *settings, "scheduler=none", "trainer.max_epochs=40")["metrics"]
    assert (metrics["w"], metrics["b"]) == pytest.approx((3, 2), abs=0.01)


def test_classes_true_reads_a_numeric_target_as_classes() -> None:
    Path("table.csv").write_text("x,y\n" + "".join(f"{row},{row % 11}\n" for row in range(44)))
    assert CSVTable("table.csv", "y").class_names == ()
    table = CSVTable("table.csv", "y", classes=True)
    assert table.class_names == tuple(map(str, range(11)))  # 10 after 9
    inputs, targets = table.load()[0]
    assert torch.equal(targets, inputs[:, 0].long() % 11)


# --- splits and normalization ------------------------------------------------------------------------------------


def split_rows(table: CSVTable, part: str) -> set[tuple[float, ...]]:
    train, test = table.load()
    rows = {"train": train[0][table.train_indices], "val": train[0][table.val_indices], "test": test[0]}[part]
    assert len(train[0]) == len(table.train_indices) + len(table.val_indices)
    return set(map(tuple, rows.tolist()))


def test_splits_are_disjoint_and_do_not_depend_on_the_seed() -> None:
    make_table()
    table, again = (CSVTable("table.csv", "kind", ["age", "height"], val_size=0.25, seed=seed) for seed in (1, 2))
    parts = [split_rows(table, part) for part in ("train", "val", "test")]
    assert list(map(len, parts)) == [120, 40, 40]
    assert len(set.union(*parts)) == 200
    assert parts == [split_rows(again, part) for part in ("train", "val", "test")]


def test_folds_cover_all_rows_but_the_test_set() -> None:
    make_table()
    folds = [CSVTable("table.csv", "kind", ["age", "height"], folds=3, fold=fold) for fold in range(3)]
    assert len(set.union(*(split_rows(table, "val") for table in folds))) == 160
    assert len({tuple(table.fitted_state["mean"]) for table in folds}) == 3


def test_normalization_uses_the_statistics_of_the_training_rows() -> None:
    make_table()
    table = CSVTable("table.csv", "price", val_size=0.25)
    assert table.columns == ("age", "height")  # text columns are left out
    (inputs, targets), (others, _) = table.load()
    seen = table.normalize(inputs[table.train_indices])
    torch.testing.assert_close(seen.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(2))
    torch.testing.assert_close(targets[table.train_indices].std(0, correction=0), torch.ones(1))
    assert table.normalize(others).mean(0).abs().max() > 1e-3


def test_held_out_rows_do_not_affect_the_statistics() -> None:
    """The values of the held-out rows do not change what the training sees."""
    rows = [f"{row},{row % 2}" for row in range(40)]
    Path("table.csv").write_text("\n".join(["x,y", *rows]))
    table = CSVTable("table.csv", "y", val_size=0.25)
    held_out = {int(row[0]) for part in ("val", "test") for row in split_rows(table, part)}
    assert len(held_out) == 16
    Path("other.csv").write_text("\n".join(["x,y", *("1e6,9" if row in held_out else rows[row] for row in range(40))]))
    known = CSVTable("other.csv", "y", val_size=0.25).fitted_state
    assert {**known, "md5": ""} == {**table.fitted_state, "md5": ""}


def test_test_path_and_a_constant_column() -> None:
    Path("table.csv").write_text("\ufeffone;x; y\n0.1;1;a\n0.1;2;b\n\n0.1;3;a\n;;\n", encoding="utf-8")
    Path("test.csv").write_text("y,x,one,more\nb,5,0.1,text\n")
    table = CSVTable("table.csv", "y", test_path="test.csv", val_size=0)
    (inputs, targets), (test_inputs, test_targets) = table.load()
    assert inputs.tolist() == [[pytest.approx(0.1), number] for number in (1, 2, 3)]
    assert (targets.tolist(), test_inputs[0, 1], test_targets.tolist()) == ([0, 1, 0], 5, [1])
    assert table.normalize(inputs)[:, 0].tolist() == pytest.approx([0, 0, 0], abs=1e-6)


# --- finished runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [KIND, PRICE])
def test_resume_in_mid_epoch_is_exact(settings: Sequence[str]) -> None:
    make_table()
    settings = (*settings, "trainer.max_epochs=2", "checkpoint.every_n_steps=1")
    run("whole", *settings)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 13)  # in the second epoch of nine steps
        run("parts", *settings)
    run("parts", "resume=parts")
    assert differences(final_state(Path("whole")), final_state(Path("parts"))) == []


def test_predict_takes_raw_rows_after_the_table_is_deleted() -> None:
    table = make_table()
    run("run", *KIND, "trainer.max_epochs=3")
    stored = torch.load("run/checkpoints/last.ckpt", weights_only=True)["config"]["data"]
    assert stored["fitted_state"]["class_names"] == ["small", "tall and old"]
    assert stored["path"] == str(Path("table.csv").resolve())
    Path("table.csv").unlink()

    rows = table[:8].astype(np.float32)
    with open("bare.csv", "w", newline="") as out:
        csv.writer(out).writerows(rows)
    with open("named.csv", "w", newline="") as out:
        csv.writer(out).writerows([("kind", "height", "age"), *(("?", height, age) for age, height in rows)])
    net = trained_net(Path("run"), load_run("run", "last")[2].net)
    standardized = (rows - np.float32(stored["fitted_state"]["mean"])) / np.float32(stored["fitted_state"]["std"])
    with torch.inference_mode():
        probs = net(torch.from_numpy(standardized)).softmax(1)
    for name in ("bare", "named"):
        predictions = predict_rows(Path("run"), csv=f"{name}.csv")
        assert [row["label"] for row in predictions] == [
            stored["fitted_state"]["class_names"][k] for k in probs.argmax(1)
        ]
        assert [row["probability"] for row in predictions] == pytest.approx(probs.amax(1).tolist(), abs=2e-6)
    assert predictions[0]["input"] == ",".join(["?", str(rows[0, 1]), str(rows[0, 0])])


def test_path_with_an_interpolation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run stores the absolute path, which contains the name of the directory."""
    Path("${oc.env:HOME}").mkdir()
    monkeypatch.chdir("${oc.env:HOME}")
    make_table()
    assert "/${oc.env:HOME}/table.csv' cannot be used as a name: a config would evaluate it" in error_line(*KIND)


def test_line_breaks_in_names_become_spaces() -> None:
    """Spreadsheets write line breaks in long headers."""
    lines = "".join(f'{row},"cl{row % 2}\n a"\n' for row in range(40))
    Path("table.csv").write_text(f'"height\r\n(cm)","y\t"\n{lines}')
    run("run", *RUN, "data.target=y", "model=mlp", "trainer.max_epochs=1")
    assert load_run("run", "last")[1].columns == ("height (cm)",)
    Path("rows.csv").write_text('"height\n(cm)"\n1\n')
    assert predict_rows(Path("run"), csv="rows.csv")[0]["label"] in ("cl0 a", "cl1 a")


@pytest.mark.parametrize(
    ("cell", "line"),
    [
        (" a\t", "a"),
        ("a  b", "a  b"),
        ("a \n\n b  c\r\nd", "a b  c d"),
        (f"a{' ' * 10**6}b\n", f"a{' ' * 10**6}b"),  # takes no time that grows with its square
    ],
)
def test_cell_becomes_one_line(cell: str, line: str) -> None:
    assert in_one_line(cell) == line


def test_evaluation_repeats_the_metrics_and_refuses_a_changed_table() -> None:
    make_table()
    metrics = run("run", *PRICE, "trainer.max_epochs=2")["metrics"]
    tested = {name: metrics[name] for name in ("test/loss", "test/rmse", "test/r2")}
    assert evaluate_run("run")["metrics"] == tested
    held_out = {name: metrics[name] for name in ("val/loss", "val/rmse", "val/r2")}
    assert evaluate_run("run", split="val")["metrics"] == held_out
    with open("table.csv", "a") as out:
        out.write("1,n,1,small,1\n")
    with pytest.raises(ValueError, match="has changed since the run began"):
        evaluate_run("run")
    Path("table.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"table\.csv: there is no such file"):
        evaluate_run("run")


def test_exported_program_maps_raw_rows_to_the_unit_of_the_target() -> None:
    table = make_table()
    run("run", *PRICE, "trainer.max_epochs=1")
    program = torch.export.load(export_run(Path("run"), "model.pt2")).module()
    predictions = predict_rows(Path("run"), split="test", limit=4)
    inputs = CSVTable("table.csv", "price").load()[1][0][:4]
    assert inputs.shape[1] == table.shape[1]
    assert program(inputs)[:, 0].tolist() == pytest.approx([row["prediction"] for row in predictions])
    assert min(abs(row["prediction"]) for row in predictions) > 10_000


def test_resume_refuses_another_target() -> None:
    make_table()
    run("run", *PRICE, "trainer.max_epochs=1")
    with pytest.raises(ValueError, match=r"resume: data\.target is fixed by the checkpoint"):
        patched = compose("resume=run", "data=csv", "data.path=x", "data.target=age")
        patched.choices.overrides = ["resume=run", "data.target=age"]

        merge_resume_config(patched, Path("run/checkpoints/last.ckpt"))


# --- errors in one line ------------------------------------------------------------------------------------------

SMALL = "x,z,y\n1,5,a\n2,6,b\n3,7,a\n"


@pytest.mark.parametrize(
    ("content", "settings", "line"),
    [
        (None, "", "table.csv: there is no such file"),
        ("", "", "table.csv is empty"),
        ("x,z,y\n", "", "table.csv has no rows, only one line, which names the columns"),
        ("1,2,3\n4,5,6\n", "", "table.csv has no header: its first line has to name the columns"),
        (SMALL, "data.target=yy", "table.csv has no column yy (did you mean y?); it has x, z, y"),
        (SMALL, "data.columns=[x,zz]", "table.csv has no column zz (did you mean z?); it has x, z, y"),
        (SMALL, "data.columns=[x,y]", "data.columns contains the target y; it lists the input columns"),
        (SMALL, "data.columns=[]", "data.columns is empty; it lists the input columns"),
        ("y,w\na,b\nb,c\n", "", "table.csv has no column of numbers to learn y from"),
        (
            "x,z,y\n1,5,a\n\n2,six,b\n",
            "",
            "table.csv, line 4, column z: 'six' is not a number; 'data.columns=[x]' leaves the column out",
        ),
        ("x,z,y\n1,5,a\n2,six,b\n", "data.columns=[z]", "table.csv, line 3, column z: 'six' is not a number"),
        (
            "x,z,y\n1,5,a\n2,,b\n",
            "",
            "table.csv, line 3, column z: the cell is empty; 'data.columns=[x]' leaves the column out",
        ),
        ("x,y\n1,a\nnan,b\n", "", "table.csv, line 3, column x: 'nan' is not a number"),
        ("x,y\n1,a\n1e39,b\n", "", "table.csv, line 3, column x: '1e39' is not a number"),
        ("x,y\n1,a\n2,\n", "", "table.csv, line 3, column y: the cell is empty"),
        (
            "x,y\n1,5\n2,many\n",
            "",
            "table.csv, line 3, column y: 'many' is not a number; data.classes=true reads the column as classes",
        ),
        ("x,y\n1,a\n2,a\n", "", "table.csv, column y: all rows are 'a', so there is nothing to learn"),
        ("x,y\n1,a\n2,b,c\n", "", "table.csv, line 3: 3 cells for 2 columns"),
        ("x,x,y\n1,2,a\n", "", "table.csv has more than one column x"),
        ('x,y\n1,"a\n2,b\n', "", "table.csv is not a CSV file in UTF-8: unexpected end of data"),
        ("x,y\n1,a\n2,${seed}\n", "", "table.csv: '${seed}' cannot be used as a name: a config would evaluate it"),
        ("x,y\n1,a\n2,???\n", "", "table.csv: '???' cannot be used as a name: a config would evaluate it"),
        ("${oc.env:HOME},y\n1,a\n2,b\n", "", "table.csv: '${oc.env:HOME}' cannot be used as a name"),
        ("x,y\n1,a\n2,\x1b[31mb\n", "", r"table.csv: '\x1b[31mb' cannot be used as a name: it has control characters"),
        (SMALL, "data.val_size=1.0", "data.val_size=1.0 must be a fraction of the examples: at least 0 and below 1"),
        (
            SMALL,
            "data.test_size=-0.1",
            "data.test_size=-0.1 must be a fraction of the examples: at least 0 and below 1",
        ),
        (SMALL, "data.val_size=0.9", "table.csv has too few rows (3) to hold any out"),
        (SMALL, "data.test_path=test.csv", "test.csv, line 2, column y: 'c' is not one of the classes a, b"),
        (SMALL, "model=cnn", "images (channels, height, width), not inputs of shape (2,); model=mlp takes any inputs"),
        (SMALL, "model=line", "not from shape (2,) to 2; model=mlp_regression takes more numbers and model=mlp learns"),
        (SMALL, "model=mlp_regression", "the targets of the data are classes; model=mlp learns classes"),
        (
            SMALL,
            "data.target=x data.columns=[z]",
            "the data are numbers; model=mlp_regression learns numbers; data.classes=true reads them as classes",
        ),
        (SMALL.replace("7,a", "7,c"), "model=logistic", "two classes, not 3; model=mlp learns more classes"),
    ],
)
def test_bad_table_or_settings_give_one_line(content: str | None, settings: str, line: str) -> None:
    if content is not None:
        Path("table.csv").write_text(content)
    Path("test.csv").write_text("x,z,y\n1,2,c\n")
    assert line in error_line("model=mlp", "data.target=y", *settings.split())


DRESSED = ("$1.00", "-$5", "($5.00)", "12 €", "EUR 3", "5%", ".5 %", "0,5", "+3,5", "1,234", "1,234.50", "1.234,50")
DRESSED += ("1 234,5", "1\u00a0234", "1'000", "$1,234,567.89")


@pytest.mark.parametrize("cell", DRESSED)
@pytest.mark.parametrize("column", ["price", "y"])
def test_numbers_as_people_write_them_are_named(cell: str, column: str) -> None:
    """Neither is the column left out as text, nor is each price a class."""
    other = "y" if column == "price" else "price"
    Path("table.csv").write_text(f"x\t{column}\t{other}\n" + f"1\t{cell}\t3\n" * 20, encoding="utf-8")
    hint = "'data.columns=[x]' leaves the column out" if column == "price" else "data.classes=true reads the column as"
    line = f"table.csv, line 2, column {column}: {cell!r} is not a number: write plain digits with a decimal point; "
    with pytest.raises(ValueError, match=f"^{re.escape(line + hint)}"):
        CSVTable("table.csv", "y")
    if column == "y":
        Path("table.csv").write_text(f"x\ty\n1\t{cell}\n2\tother\n", encoding="utf-8")
        assert CSVTable("table.csv", "y", classes=True, test_size=0, val_size=0).class_names == (cell, "other")


@pytest.mark.parametrize("cell", ["5 kg", "2024-01-01", "01.02.2024", "12:30", "192.168.0.1", "3rd", "1,2,3", "-", "$"])
def test_other_text_with_digits_is_left_out(cell: str) -> None:
    Path("table.csv").write_text("x\ttext\ty\n" + f"1\t{cell}\t3\n2\t{cell}\t4\n" * 9)
    assert CSVTable("table.csv", "y").columns == ("x",)


def test_text_that_is_different_in_most_rows_is_no_class() -> None:
    lines = "".join(f"{row},name {row % 21}\n" for row in range(40))
    Path("table.csv").write_text(f"x,y\n{lines}")
    line = "table.csv, column y: 21 different texts in 40 rows are hardly classes; data.classes=true learns them anyway"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        CSVTable("table.csv", "y")
    assert CSVTable("table.csv", "y", classes=True).num_classes == 21
    Path("table.csv").write_text(f"x,y\n{lines}{lines}")
    assert CSVTable("table.csv", "y").num_classes == 21


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("age,hight\n1,2\n", "rows.csv has no column height (did you mean hight?); it has age, hight"),
        ("1,2,3\n", "rows.csv, line 1: 3 cells for 2 columns"),
        ("1,2\n3,tall\n", "rows.csv, line 2, column height: 'tall' is not a number"),
        ("", "rows.csv is empty"),
    ],
)
def test_predict_refuses_bad_rows_with_one_line(content: str, line: str) -> None:
    make_table()
    run("run", *KIND, "trainer.max_epochs=1")
    Path("rows.csv").write_text(content)
    with pytest.raises(ValueError) as error:
        predict_rows(Path("run"), csv="rows.csv")
    assert format_error(error.value) == line
    assert not Path("answers").exists()


def test_path_that_is_not_a_regular_file_is_refused() -> None:
    os.mkfifo("pipe")
    for path in ("pipe", "/dev/zero"):
        assert error_line(f"data.path={path}", "data.target=price", "model=mlp") == f"{path} is not a regular file"


@pytest.mark.slow
@pytest.mark.parametrize("output", ["mine", "mine/deep", "../run/mine"])
def test_predictions_follow_no_link_out_of_the_run(output: str) -> None:
    make_table()
    run("run", *KIND, "trainer.max_epochs=1")
    Path("rows.csv").write_text("40,0.002\n")
    Path("elsewhere").mkdir()
    Path("run/mine").symlink_to("../elsewhere")
    with pytest.raises(ValueError, match=f"output={output} is refused: it leads through a link out of run"):
        predict_rows(Path("run"), csv="rows.csv", output=output)
    assert list(Path("elsewhere").iterdir()) == []


def test_large_predictions_are_printed_without_an_exponent() -> None:
    numbers = Numbers(None, None)
    shown = [numbers.format({"input": "a", "prediction": one}) for one in (79990.4, 0.123456, -1234567.0, [2e4, 1.5])]
    assert shown == ["a  79,990", "a  0.1235", "a  -1,234,567", "a  20,000 1.5"]


def test_predictions_do_not_overwrite_their_input() -> None:
    make_table()
    run("run", *KIND, "trainer.max_epochs=1")
    rows = Path("run/predictions/predictions.csv")
    rows.parent.mkdir()
    rows.write_text("40,0.002\n")
    with pytest.raises(ValueError, match=r"would overwrite .* which is to be read"):
        predict_rows(Path("run"), csv=str(rows), output="predictions")
    assert rows.read_text() == "40,0.002\n"


# --- command line ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_command_line_trains_and_reports_mistakes(shell, tmp_path: Path) -> None:
    make_table()
    overrides = ("data=csv", "data.path=table.csv", "data.target=price", "model=mlp_regression", "trainer.max_epochs=2")
    answer = shell(*overrides, "trainer.accelerator=cpu", "callbacks.pictures=null", "logger=none")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "not used as inputs, because they hold no numbers: name, kind" in answer.stdout
    assert json.loads(Path("outputs/last/result.json").read_text())["status"] == "finished"
    for wrong, line in (
        ("data=csv model=mlp data.path=table.csv", "data.target=… is required"),
        ("data=csv model=mlp data.path=table.csv data.target=kid", "has no column kid (did you mean kind?)"),
    ):
        answer = shell(*wrong.split())
        assert (answer.returncode, answer.stdout, len(answer.stderr.splitlines())) == (1, "", 1)
        assert line in answer.stderr
