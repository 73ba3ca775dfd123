"""experiment=sines_lstm: its data, its net, L-BFGS, continuing series, and what is refused."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

import evaluate
import predict
import train
from callbacks.plots import Plots
from cli.build import build, load_run
from cli.compose import compose
from cli.errors import format_error
from datamodules import Sines
from lit_models import Forecaster, nets
from tests.conftest import Killed, read_predictions
from tests.kill_and_resume import differences, final_state

SMALL = ("data.size=8", "data.length=40", "model.net.hidden_size=6", "trainer.accelerator=cpu", "threads=1")
SINES = ("experiment=sines_lstm", *SMALL, "logger=none", "trainer.max_epochs=3")
FEW = ("optimizer.max_iter=5", "callbacks.pictures=null")


def run(folder: str, *overrides: str) -> dict[str, Any]:
    path = Path(folder)
    path.mkdir(exist_ok=True)
    return train.train_config(compose(*overrides), path)


def rows(folder: str) -> list[dict[str, str]]:
    with open(f"{folder}/metrics.csv", newline="") as lines:
        return list(csv.DictReader(lines))


# --- data and net -----------------------------------------------------------------------------------------------------


def test_waves_are_those_of_the_example() -> None:
    data = build(compose("experiment=sines_lstm"))[0]
    (inputs, targets), (test_inputs, test_targets) = data.load()
    assert (inputs.shape, test_inputs.shape) == ((97, 999), (3, 999))
    assert inputs.dtype == torch.float32  # float64 where the Trainer's precision is
    np.random.seed(2)  # as in the example
    shifts = np.random.randint(-80, 80, 100)
    assert len(set(shifts)) > 60
    for index, (wave, following) in enumerate([(test_inputs[2], test_targets[2]), (inputs[96], targets[96])]):
        steps = np.arange(1000) + shifts[[2, 99][index]]
        np.testing.assert_allclose(wave, np.sin(steps[:-1] / 20), atol=1e-7)
        assert torch.equal(wave[1:], following[:-1])
        assert following[-1].item() == pytest.approx(math.sin(steps[-1] / 20), abs=1e-7)


class Cells(nn.Module):
    """The net as the example describes it, step by step."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.LSTMCell(1, hidden), nn.LSTMCell(hidden, hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, series: torch.Tensor, future: int = 0) -> torch.Tensor:
        a = b = None
        predictions = []
        for number in range(series.shape[1] + future):
            x = series[:, number : number + 1] if number < series.shape[1] else predictions[-1]
            a = self.first(x, a)
            b = self.second(a[0], b)
            predictions.append(self.out(b[0]))
        return torch.cat(predictions, 1)


def test_net_has_the_weights_and_the_figures_of_two_cells() -> None:
    _, model = build(compose("experiment=sines_lstm"))
    torch.manual_seed(0)
    cells = Cells(51)
    assert sum(parameter.numel() for parameter in model.parameters()) == 32_284
    for ours, theirs in zip(model.parameters(), cells.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    series = torch.randn(2, 30, dtype=torch.float64)
    model.double()
    with torch.no_grad():
        expected = cells.double()(series, future=20)
        torch.testing.assert_close(model(series), expected[:, :30], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(model.continue_series(series, 21), expected[:, 29:], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(model.continue_series(series, 1), expected[:, 29:30], rtol=1e-12, atol=1e-14)


# --- L-BFGS -----------------------------------------------------------------------------------------------------------


def example_losses(steps: int, hidden: int, size: int, length: int) -> list[tuple[float, float]]:
    """The loss of the first evaluation of each step, and the test loss after it, as the example computes them."""
    torch.manual_seed(0)
    cells = Cells(hidden).double()
    shifts = np.random.RandomState(2).randint(-80, 80, size)
    waves = torch.from_numpy(np.sin((np.arange(length) + shifts[:, None]) / 20))
    optimizer = torch.optim.LBFGS(cells.parameters(), lr=0.8)
    found = []
    for _ in range(steps):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(cells(waves[3:, :-1]), waves[3:, 1:])
            loss.backward()
            return loss

        first = optimizer.step(closure)
        with torch.no_grad():
            found.append((first.item(), nn.functional.mse_loss(cells(waves[:3, :-1]), waves[:3, 1:]).item()))
    return found


def test_losses_are_those_of_the_example() -> None:
    result = run("run", *SINES, "callbacks.pictures=null")
    found = [(float(row["train/loss"]), float(row["val/loss"])) for row in rows("run")]
    for ours, theirs in zip(found, example_losses(3, 6, 8, 40), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert [int(row["step"]) for row in rows("run")] == [1, 2, 3]
    assert (result["steps"], result["epochs"]) == (3, 3)


def test_resume_after_an_epoch_is_exact_with_the_history_of_the_optimizer() -> None:
    run("whole", *SINES, *FEW)
    run("resumed", *SINES, *FEW, "trainer.max_epochs=1")
    run("resumed", "resume=resumed", "trainer.max_epochs=3", "logger=none", "trainer.accelerator=cpu")
    assert not differences(final_state(Path("whole")), final_state(Path("resumed")))
    (state,) = final_state(Path("whole"))[0]["optimizer_states"]
    assert state["state"][0]["n_iter"] == 15
    assert state["state"][0]["d"].dtype == torch.float64


def test_evaluation_of_a_run_in_double_precision_gives_the_same_bits() -> None:
    result = run("run", *SINES, *FEW)
    given = {"run": "run", "checkpoint": "last", "split": "test", "trainer": {"accelerator": "cpu", "devices": 1}}
    found = evaluate.evaluate_config(OmegaConf.create(given), Path("run"))["metrics"]
    assert found["test/loss"] == result["metrics"]["test/loss"] == float(rows("run")[-1]["val/loss"])


def test_loss_that_explodes_within_a_step_ends_the_run_before_it_is_saved() -> None:
    overrides = [*SINES, *FEW, "optimizer.lr=1e80", "optimizer.max_iter=20"]
    with pytest.raises(FloatingPointError, match=r"the training loss is (nan|inf) after step \d.*=strong_wolfe$"):
        run("run", *overrides)
    assert '"status": "diverged"' in Path("run/result.json").read_text()
    last = Path("run/checkpoints/last.ckpt")
    assert not last.exists()


@pytest.mark.parametrize("epochs", [1, 2])
def test_loss_that_explodes_by_the_last_update_of_a_step_is_reported(epochs: int) -> None:
    """With one iteration the update is not followed by an evaluation, nor the last step by another."""
    explosion = [*SINES, *FEW, "optimizer.lr=1e200", "optimizer.max_iter=1", f"trainer.max_epochs={epochs}"]
    with pytest.raises(FloatingPointError, match=r"the training loss is (nan|inf) after step 0"):
        run("run", *explosion)
    assert '"status": "diverged"' in Path("run/result.json").read_text()
    assert not Path("run/checkpoints/last.ckpt").exists()


def test_resume_within_an_epoch_is_exact_with_the_history_of_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = (*SINES, *FEW, "data.size=20", "data.batch_size=4", "checkpoint.every_n_steps=2", "optimizer.lr=0.1")
    run("whole", *overrides)
    step, calls = Forecaster.gradient_step, iter(range(7))  # of five batches in an epoch

    def die(self: Any, *arguments: Any) -> torch.Tensor:
        if next(calls, None) is None:
            raise Killed
        return step(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Forecaster, "gradient_step", die)
        run("parts", *overrides)
    assert torch.load("parts/checkpoints/last.ckpt")["global_step"] == 6
    run("parts", "resume=parts", "logger=none", "trainer.accelerator=cpu")
    assert not differences(final_state(Path("whole")), final_state(Path("parts")))


def test_loss_that_explodes_and_stays_finite_is_reported_as_diverged() -> None:
    result = run("run", *SINES, *FEW, "optimizer.lr=20")
    assert result["status"] == "diverged"
    assert float(rows("run")[-1]["train/loss"]) > 10 * float(rows("run")[0]["train/loss"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lbfgs_trains_a_classifier_and_counts_accuracy_once(precision: str) -> None:
    settings = [
        "model=logistic",
        "data=separable",
        "optimizer=lbfgs",
        "scheduler=none",
        "trainer.max_epochs=2",
        "model.steps_per_batch=1",
    ]
    options = [
        "trainer.accelerator=cpu",
        "trainer.max_epochs=2",
        "logger=none",
        "callbacks.pictures=null",
        f"trainer.precision={precision}",
    ]
    result = run("run", *settings, *options)
    assert [float(row["train/acc"]) <= 1 for row in rows("run")] == [True, True]
    assert result["metrics"]["test/acc"] > 0.95
    assert result["steps"] == 2
    assert float(rows("run")[1]["train/loss"]) < float(rows("run")[0]["train/loss"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.gradient_clip_val=1"], "L-BFGS evaluates the loss several times in a step and cannot be combined"),
        (["trainer.accumulate_grad_batches=2"], "cannot be combined with trainer.gradient_clip_val and trainer"),
        (
            ["model=line_by_hand", "data=readings"],
            "LineByHand makes its own gradient steps and cannot be",
        ),
        (["data.size=3"], "data.test_size=3 must be below data.size=3"),
        (["data.length=2"], "data.length=2 must be at least 3"),
        (["data.scale=0"], "data.scale=0 must be a whole number of at least 1"),
        (["data=readings"], "this model takes series of numbers, with the next number after each one as its target"),
        (["data=blobs"], "such as data=sines; the data gives classes of (2,) inputs"),
    ],
)
def test_wrong_settings_give_one_line(overrides: list[str], message: str) -> None:
    data = [] if any("data=" in one for one in overrides) else ["data.length=40"]
    base = ["experiment=sines_lstm", "trainer.max_epochs=1", "logger=none", "trainer.accelerator=cpu"]
    if any("data=" in one for one in overrides):
        base = ["model=lstm", "optimizer=lbfgs", *base[1:]]
    with pytest.raises(Exception) as error:
        run("run", *base, *data, *overrides)
    assert message in format_error(error.value)
    assert "\n" not in format_error(error.value)
    assert [*Path("run").iterdir()] == []


# --- continuing series ------------------------------------------------------------------------------------------------


def test_continuation_of_the_test_waves_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: dict[str, Any] = {}
    folder = Path.cwd()
    monkeypatch.undo()  # conftest draws nothing
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Plots, "_draw", lambda self, trainer, drawn: figures.update(drawn))
    run("run", *SINES, "optimizer.max_iter=2")
    panels = figures["continuation"].axes
    assert len(panels) == 3
    _, data, model = load_run("run", "last", keep_float64=True)
    waves = data.load()[1][0].double()
    expected = model.continue_series(waves, 39).detach().numpy()
    for panel, wave, continued in zip(panels, waves.numpy(), expected, strict=True):
        given, after = panel.lines[:2]
        np.testing.assert_allclose(given.get_ydata(), wave, atol=1e-6)
        assert list(after.get_xdata()) == list(range(39, 79))
        np.testing.assert_allclose(after.get_ydata()[1:], continued, atol=1e-4)


@pytest.fixture
def trained() -> Path:
    run("run", *SINES, *FEW, "trainer.max_epochs=1")
    return Path("run")


def predicted(folder: Path, **settings: Any) -> list[dict[str, Any]]:
    given = {"run": str(folder), "checkpoint": "last", "images": None, "csv": None, "split": None, "samples": None}
    cfg = OmegaConf.create({**given, "limit": 2, "output": str(Path("answers").resolve()), **settings})
    return read_predictions(predict.predict_config(cfg, folder))


@pytest.mark.parametrize("header", ["", "a,b,c,d,e\n"])
def test_each_row_of_a_file_is_continued_by_as_many_numbers(trained: Path, header: str) -> None:
    Path("series.csv").write_text(f"{header}0,0.1,0.2,0.3,0.4\n-1,-0.9,-0.8,-0.7,-0.6\n")
    found = predicted(trained, csv="series.csv")
    _, _, model = load_run("run", "last")
    series = torch.tensor([[0, 0.1, 0.2, 0.3, 0.4], [-1, -0.9, -0.8, -0.7, -0.6]])
    assert [row["input"] for row in found] == ["0,0.1,0.2,0.3,0.4", "-1,-0.9,-0.8,-0.7,-0.6"]
    for row, expected in zip(found, model.continue_series(series, 5).tolist(), strict=True):
        assert row["prediction"] == pytest.approx(expected, rel=1e-5)
    with Image.open("answers/predictions.png") as picture:
        assert min(picture.size) > 300


def test_test_waves_are_continued(trained: Path) -> None:
    found = predicted(trained, split="test")
    assert [(row["input"], len(row["prediction"])) for row in found] == [("test[0]", 39), ("test[1]", 39)]
    assert "truth" not in found[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [("1,2\n3\n", "line 2: 1 cell for 2 columns"), ("1,2\n3,x\n", "line 2, column x2: 'x' is not a number")],
)
def test_bad_series_are_refused(trained: Path, content: str, message: str) -> None:
    Path("series.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        predicted(trained, csv="series.csv")
    assert not Path("answers").exists()


def test_a_net_of_other_layers_reads_and_continues() -> None:
    data = Sines(size=5, test_size=1, length=20, scale=3)
    model = Forecaster(net=nets.SeriesLSTM(4, 3), loss=nn.MSELoss(), optimizer=torch.optim.SGD)
    (inputs, targets), _ = data.load()
    assert model(inputs).shape == targets.shape == (4, 19)
    assert model.continue_series(inputs, 7).shape == (4, 7)


def test_lbfgs_trains_a_convolutional_net(random_images: Any, tmp_path: Path) -> None:
    """Its gradients are channels-last, and L-BFGS takes views of them."""
    random_images(40, 20)
    settings = ("model=cnn", "data=mnist", "data.val_size=0", "data.batch_size=null", "optimizer=lbfgs")
    brief = (
        "scheduler=none",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        "logger=none",
        "callbacks.pictures=null",
    )
    result = train.train_config(compose(*settings, *brief), tmp_path)
    assert result["metrics"]["train/loss"] < 2.2  # ln(10) is 2.3
