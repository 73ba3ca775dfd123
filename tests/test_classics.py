"""Siamese nets, forward-forward nets and distillation: what they learn, that it is exact, and what they refuse."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

import evaluate
import predict
from cli.build import build, load_run
from cli.compose import compose
from cli.errors import format_error
from datamodules import MNISTPairs
from datamodules.pairs import draw_partners
from lit_models import Distillation, ForwardForward, Siamese, nets
from runs.protocols import Classifies, Compares, MeasuresGoodness
from tests.conftest import count_parameters, run
from tests.kill_and_resume import differences, final_state

GRAY, COLOR, PAIR = (1, 28, 28), (3, 32, 32), (2, 28, 28)
RUN = ("trainer.accelerator=cpu", "threads=1", "logger=none", "data.batch_size=16", "data.val_size=20")
QUICK = ("callbacks.pictures=null",)
SIAMESE = ("model=siamese", "data=mnist_pairs", "optimizer=adadelta", "scheduler=step", *RUN)
LAYERS = ("model=forward_forward", "model.net.hidden_sizes=[12,10]", "data=mnist", *RUN)
TEACHER = ("model=deep_cnn", "model.net.groups=[[6],[4]]", "model.net.hidden_size=8", "data=mnist", *RUN)
STUDENT = ("model=distilled_cnn", "model.net.groups=[[2],[2]]", "model.net.hidden_size=8", "data=mnist", *RUN)
STUDENT += ("model.teacher=teacher",)
SETTINGS = {"siamese": SIAMESE, "forward_forward": LAYERS, "distilled_cnn": STUDENT}


@pytest.fixture
def tiny(random_images: Callable[[int, int], None]) -> None:
    random_images(84, 40)


@pytest.fixture
def teacher(tiny: None) -> None:
    run("teacher", *TEACHER, *QUICK, "trainer.max_epochs=1")


class SmallTrunk(nn.Module):
    """What a siamese net needs of a ResNet, without its 11 million weights."""

    def __init__(self, *_: Any) -> None:
        super().__init__()
        self.conv1, self.norm, self.fc = nn.Conv2d(3, 64, 7), nn.BatchNorm2d(64), nn.Linear(64, 1000)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        return self.fc(self.norm(self.conv1(images)).relu().mean((2, 3)))


@pytest.fixture
def small_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_models.nets.siamese.ResNet", SmallTrunk)


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (nets.SiameseNet(PAIR), 11_689_512 - 513_000 - 2 * 64 * 49 + 1024 * 256 + 256 + 256 + 1),
        (nets.ForwardForwardNet(GRAY, 10), 643_000),
        (nets.StackedCNN(COLOR, 10, [[128, 64], [64, 32]], 512), 1_186_986),  # as the tutorial prints it
        (nets.StackedCNN(COLOR, 10), 267_738),
    ],
)
def test_number_of_parameters(net: nn.Module, count: int) -> None:
    assert count_parameters(net) == count


# --- pairs ----------------------------------------------------------------------------------------------------------


def test_every_second_pair_is_of_one_class_and_none_of_one_image() -> None:
    classes = torch.randint(10, (1000,), generator=torch.Generator().manual_seed(1))
    partners = draw_partners(classes, torch.Generator().manual_seed(2))
    equal = classes == classes[partners]
    assert equal.tolist() == [True, False] * 500
    assert not (partners == torch.arange(1000)).any()
    pairs = torch.bincount(10 * classes[~equal] + classes[partners[~equal]], minlength=100).view(10, 10)
    assert (pairs + torch.eye(10) > 0).all()  # any two digits meet
    for rare in ([3], [0, 0, 0], [4, 1, 1]):  # an image is its own partner where there is no other
        examples = torch.tensor(rare)
        partner = draw_partners(examples, torch.Generator().manual_seed(2))
        assert examples[partner][0] == examples[0]


def test_all_partners_are_equally_likely() -> None:
    classes = torch.tensor([0, 0, 0, 1, 1, 1])
    found = torch.stack([draw_partners(classes, torch.Generator().manual_seed(seed)) for seed in range(600)])
    for position, possible in enumerate(([1, 2], [3, 4, 5], [0, 1], [0, 1, 2], [3, 5], [0, 1, 2])):
        counts = torch.bincount(found[:, position], minlength=6)
        assert counts[possible].min() > 0.75 * 600 / len(possible)
        assert counts.sum() == counts[possible].sum()


def pairs_of(split: str, epoch: int = 0, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    data = MNISTPairs(root=".", mean=[0, 0], std=[1 / 255] * 2, val_size=20, **settings)
    data.setup()
    loader = getattr(data, f"{split}_dataloader")()
    loader.set_epoch(epoch)
    inputs, targets = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_pairs_are_drawn_anew_in_every_epoch_of_training_and_fixed_in_a_test(tiny: None) -> None:
    inputs, targets = pairs_of("train")
    assert inputs.shape == (64, *PAIR) and targets.sum() == 32
    for other in (pairs_of("train", seed=2), pairs_of("train", epoch=1)):
        assert not torch.equal(inputs, other[0])
    assert torch.equal(inputs, pairs_of("train")[0])
    for split in ("val", "test"):
        inputs, targets = pairs_of(split)
        for other in (pairs_of(split, epoch=1, seed=2), pairs_of(split, eval_batch_size=7)):
            assert torch.equal(inputs, other[0]) and torch.equal(targets, other[1])


def test_pairs_show_what_their_labels_say_and_only_images_of_their_split(tiny: None) -> None:
    data = MNISTPairs(root=".", mean=[0, 0], std=[1 / 255] * 2, val_size=20)
    data.setup()
    images, labels = data._parts[0]
    place = {tuple(image.flatten()[:9].tolist()): number for number, image in enumerate(images)}
    for loader, indices in (
        (data.train_dataloader(), data.train_indices),
        (data.val_dataloader(), data.val_indices),
    ):
        for inputs, targets in loader:
            bytes_ = inputs.round().to(torch.uint8)
            first, second = ([place[tuple(one.flatten()[:9].tolist())] for one in half] for half in bytes_.unbind(1))
            assert ((labels[first] == labels[second]).long() == targets).all()
            assert {*first, *second} <= {*indices.tolist()}


def test_images_of_a_pair_are_shifted_each_by_itself(tiny: None) -> None:
    plain, _ = pairs_of("train")
    for kind in ("crop", "flip_crop", "alternate"):
        shifted, _ = pairs_of("train", augment=kind)
        assert shifted.shape == plain.shape
        same = (shifted == plain).flatten(2).all(2)  # (B, 2)
        assert not same.all()
        assert (same[:, 0] != same[:, 1]).any() or not same.any()


def test_a_pair_is_looked_at_side_by_side(tiny: None) -> None:
    data = MNISTPairs(root=".", mean=[0.1, 0.1], std=[0.3, 0.3])
    pairs = torch.randint(256, (3, *PAIR), dtype=torch.uint8)
    shown = data.to_uint8(data.normalize(pairs))
    assert shown.shape == (3, 1, 28, 57)
    assert torch.equal(shown[:, 0, :, :28], pairs[:, 0]) and torch.equal(shown[:, 0, :, 29:], pairs[:, 1])


# --- what a step is -------------------------------------------------------------------------------------------------


def test_a_siamese_net_looks_at_both_images_with_the_same_weights(tiny: None) -> None:
    _, model = build(compose(*SIAMESE))
    assert isinstance(model, Siamese) and isinstance(model, Compares)
    model.eval()
    first, second = torch.randn(2, 3, *GRAY)
    probabilities = model.compare(first, second)
    features = [model.net.trunk(images) for images in (first, second)]
    expected = model.net.head(torch.cat(features, 1)).sigmoid()[:, 0]
    torch.testing.assert_close(probabilities, expected)
    same = torch.tensor([1, 0, 1])
    loss = model.model_step((torch.cat([first, second], 1), same), "val")[0]
    torch.testing.assert_close(loss, F.binary_cross_entropy(expected, same.float()))


def test_batch_norm_of_a_siamese_net_sees_the_first_images_and_then_the_second() -> None:
    net, reference = nets.SiameseNet(PAIR), nets.SiameseNet(PAIR)
    reference.load_state_dict(net.state_dict())
    pairs = torch.randn(4, *PAIR)
    net(pairs)
    for images in (pairs[:, :1], pairs[:, 1:]):
        reference.trunk(images)
    torch.testing.assert_close(net.state_dict(), reference.state_dict())


def test_layers_learn_one_after_the_other_as_in_the_example(tiny: None) -> None:
    """The example's layers in plain torch: an Adam for each, all images at once, and wrong labels that are kept."""
    how = ("data.batch_size=null", "data.shuffle=false", "optimizer=adam", "optimizer.lr=0.01", "scheduler=none")
    overrides = (*LAYERS, *how, "model.epochs_per_layer=2", "model.steps_per_batch=3", "trainer.max_epochs=4")
    datamodule, model = build(compose(*overrides))
    datamodule.setup()
    ((images, labels),) = datamodule.train_dataloader()
    flat = images.flatten(1)
    wrong = model.wrong_labels(labels)
    assert (wrong != labels).all() and wrong.max() == 9 and len(wrong.unique()) == 10

    def overlaid(labels):
        x = flat.clone()
        x[:, :10] = 0
        x[torch.arange(len(x)), labels] = flat.amax(1)
        return x

    right, wrong = overlaid(labels), overlaid(wrong)
    for layer in model.net.layers:
        adam = torch.optim.Adam(layer.parameters(), lr=0.01)

        def output(x, layer=layer):
            return F.relu(layer(x / (x.norm(2, 1, keepdim=True) + 1e-4)))

        for _ in range(6):
            good, bad = output(right).pow(2).mean(1), output(wrong).pow(2).mean(1)
            loss = torch.log1p(torch.exp(torch.cat([2 - good, bad - 2]))).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        right, wrong = output(right).detach(), output(wrong).detach()
    result = run("run", *overrides, *QUICK)
    assert result["steps"] == 12
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-4)


def test_layers_that_learn_at_once_do_not_learn_from_each_other(tiny: None) -> None:
    datamodule, model = build(compose(*LAYERS))
    datamodule.setup()
    batch = next(iter(datamodule.train_dataloader()))
    model.training_step(batch, 0).backward()
    together = [parameter.grad.clone() for parameter in model.parameters()]
    assert all(gradient.any() for gradient in together)
    model.learning_layers = lambda: range(0, 1)  # the first one alone
    model.zero_grad()
    model.training_step(batch, 0).backward()
    first, second = model.net.layers
    assert second.weight.grad is None
    assert torch.equal(first.weight.grad, together[0])


def test_the_label_with_the_most_goodness_is_predicted(tiny: None) -> None:
    _, model = build(compose(*LAYERS))
    assert isinstance(model, ForwardForward) and isinstance(model, Classifies) and isinstance(model, MeasuresGoodness)
    images = torch.randn(5, *GRAY)
    goodness = model.goodness(images)
    assert goodness.shape == (5, 2, 10)
    for label in (0, 9):
        hidden = model.net.run_layer(0, model.net.with_labels(images, torch.full((5,), label)))
        torch.testing.assert_close(goodness[:, 0, label], hidden.square().mean(1))
        torch.testing.assert_close(goodness[:, 1, label], model.net.run_layer(1, hidden).square().mean(1))
    outputs = model(images)
    assert torch.equal(model.classes(outputs), goodness.sum(1).argmax(1))
    torch.testing.assert_close(model.probabilities(outputs).sum(1), torch.ones(5))
    changed = images.clone()
    changed[0] *= 3
    torch.testing.assert_close(model(changed)[1:], outputs[1:])  # no image depends on the others


def test_the_loss_of_a_student_is_that_of_the_tutorial(teacher: None) -> None:
    _, model = build(compose(*STUDENT, "model.temperature=3"))
    assert isinstance(model, Distillation)
    images, targets = torch.randn(6, *GRAY), torch.arange(6)
    torch.manual_seed(1)
    loss = model.training_step((images, targets), 0)
    torch.manual_seed(1)
    student, taught = model.net(images), model.teacher.eval()(images)
    soft = -(F.softmax(taught / 3, 1) * F.log_softmax(student / 3, 1)).sum() / 6 * 9
    torch.testing.assert_close(loss, 0.25 * soft + 0.75 * F.cross_entropy(student, targets))
    means = {name: mean.item() for name, mean in model.means("train").items()}
    assert means["train/soft_loss"] == pytest.approx(soft.item(), rel=1e-5)
    assert means["train/loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_a_teacher_teaches_and_does_not_learn(teacher: None) -> None:
    result = run("student", *STUDENT, *QUICK, "trainer.max_epochs=2")
    assert result["params"] == count_parameters(nets.StackedCNN(GRAY, 10, [[2], [2]], 8))  # without the teacher
    checkpoint = torch.load("student/checkpoints/last.ckpt", weights_only=True)
    trained = torch.load("teacher/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    names = [name for name in trained if name.startswith("net.")]
    assert names
    for name in names:
        assert torch.equal(checkpoint["state_dict"][name.replace("net.", "teacher.", 1)], trained[name])
    assert len(checkpoint["optimizer_states"][0]["state"]) == 8  # the student's weights and biases
    run("untaught", *STUDENT, *QUICK, "trainer.max_epochs=2", "model.soft_weight=0")
    untaught = torch.load("untaught/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert differences(untaught, checkpoint["state_dict"])


def test_a_student_begins_with_the_same_weights_as_without_a_teacher(teacher: None) -> None:
    _, student = build(compose(*STUDENT))
    _, alone = build(compose("model=light_cnn", *STUDENT[1:-1]))
    assert differences(student.net.state_dict(), alone.net.state_dict()) == []


def test_a_students_run_needs_no_file_of_its_teacher(teacher: None) -> None:
    metrics = run("student", *STUDENT, *QUICK, "trainer.max_epochs=1", "data.validate_on=test")["metrics"]
    shutil.rmtree("teacher")
    asked = {"run": "student", "checkpoint": "last", "split": "test", "trainer": {"accelerator": "cpu", "devices": 1}}
    evaluated = evaluate.evaluate_config(OmegaConf.create(asked), Path("student"))["metrics"]
    assert evaluated["test/loss"] == metrics["test/loss"]
    result = run("student", "resume=student", "trainer.max_epochs=2", "logger=none")
    assert result["epochs"] == 2


def test_a_stored_config_that_names_a_run_as_its_teacher_reads_none(teacher: None) -> None:
    run("student", *STUDENT, *QUICK, "trainer.max_epochs=1")
    file = Path("student/checkpoints/last.ckpt")
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["config"]["model"]["teacher"] = "teacher"
    torch.save(checkpoint, file)
    asked = {"run": "student", "checkpoint": "last", "split": "test", "trainer": {"accelerator": "cpu", "devices": 1}}
    with pytest.raises(ValueError, match="learns from a teacher"):
        evaluate.evaluate_config(OmegaConf.create(asked), Path("student"))


# --- exact ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a run as abruptly as a test in one process can."""


@pytest.mark.parametrize("batches", [3, 5])
@pytest.mark.parametrize("model", SETTINGS)
def test_a_killed_run_goes_on_to_the_same_end(model: str, batches: int, teacher: None, small_trunk: None) -> None:
    overrides = (*SETTINGS[model], *QUICK, "trainer.max_epochs=2", "checkpoint.every_n_steps=2")
    overrides += ("model.epochs_per_layer=1",) if model == "forward_forward" else ()
    run("whole", *overrides)
    cls, count = {"siamese": Siamese, "forward_forward": ForwardForward, "distilled_cnn": Distillation}[model], [0]
    original = cls.training_step

    def patched(self, batch, batch_idx):
        count[0] += 1
        if count[0] > batches:
            raise Killed
        return original(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(cls, "training_step", patched)
        run("parts", *overrides)
    step = torch.load("parts/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert batches - 2 < step <= batches
    shutil.rmtree("teacher")
    run("parts", "resume=parts", "logger=none")
    assert differences(final_state(Path("whole")), final_state(Path("parts"))) == []
    whole, parts = (json.loads(Path(folder, "result.json").read_text())["metrics"] for folder in ("whole", "parts"))
    assert whole == parts


# --- what they refuse -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            "model=siamese data=mnist",
            "takes pairs of images (2 x channels, height, width), equal or different, not",
        ),
        ("model=siamese data=blobs", "of shape (2,) and 2 classes; data=mnist_pairs gives such pairs"),
        (
            "model=forward_forward data=blobs",
            "takes inputs of more than 2 numbers, because a label replaces",
        ),
        ("model=forward_forward data=doubles", "a forward-forward net "),
        ("model=forward_forward data=one_digit", "learns labels, and the targets of the data are numbers"),
        ("model=forward_forward model.net.hidden_sizes=[]", "model.net.hidden_sizes=[] must have at least one layer"),
        (
            "model=forward_forward model.epochs_per_layer=0",
            "model.epochs_per_layer=0 must be a whole number",
        ),
        ("model=distilled_cnn", "this model learns from a teacher: model.teacher=RUN names a run of a classifier"),
        ("model=distilled_cnn model.teacher=nowhere", "nowhere is neither a run directory nor a checkpoint"),
        ("model=distilled_cnn model.teacher=numbers", "model.teacher=numbers is not the run of a classifier"),
        ("model=distilled_cnn model.teacher=teacher data=cifar10", "learned from other data: its data set is MNIST"),
        ("model=distilled_cnn model.teacher=teacher data.mean=[0.5]", "its mean is (0.1307,), here it is (0.5,)"),
        ("model=distilled_cnn model.teacher=teacher model.temperature=0", "model.temperature=0 must be above 0"),
        ("model=distilled_cnn model.teacher=teacher model.soft_weight=2", "model.soft_weight=2 must be from 0 to 1"),
        ("model=deep_cnn data=blobs", "takes images (channels, height, width), not inputs of shape (2,)"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(overrides: str, line: str, tiny: None) -> None:
    short = ("logger=none", "trainer.max_epochs=1", "trainer.accelerator=cpu", *QUICK)
    if "teacher=teacher" in overrides:
        run("teacher", *TEACHER, *QUICK, "trainer.max_epochs=1")
    if "teacher=numbers" in overrides:
        run("numbers", "model=line", "data=doubles", *short)
    with pytest.raises(Exception) as raised:
        run("run", "data=mnist", "data.val_size=0", *short, *overrides.split())
    assert line in format_error(raised.value)
    assert "\n" not in format_error(raised.value)
    assert [*Path("run").iterdir()] == []


# --- pictures and predictions ---------------------------------------------------------------------------------------


def test_pictures_of_pairs_and_of_goodness(tiny: None, small_trunk: None) -> None:
    run("siamese", *SIAMESE, "trainer.max_epochs=1", "trainer.limit_train_batches=2")
    run("layers", *LAYERS, "trainer.max_epochs=2")
    both = {"loss", "accuracy", "confusion", "classes", "samples", "predictions", "mistakes"}
    assert {path.stem for path in Path("siamese/pictures").glob("*.png")} == both
    assert {path.stem for path in Path("layers/pictures").glob("*.png")} == both | {"goodness"}
    image = matplotlib.image.imread("siamese/pictures/samples.png")
    assert image.shape[1] / image.shape[0] > 2  # three pairs in a row, two rows
    assert matplotlib.image.imread("layers/pictures/goodness.png")[..., :3].std() > 0.1


def test_predictions_of_pairs(tiny: None, small_trunk: None) -> None:
    run("siamese", *SIAMESE, *QUICK, "trainer.max_epochs=1", "trainer.limit_train_batches=2")
    asked = {"run": "siamese", "checkpoint": "last", "output": "predictions", "limit": 10, "csv": None, "samples": None}
    table = predict.predict_config(OmegaConf.create(asked | {"split": "test", "images": None}), Path("siamese"))
    with open(table, newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["truth"] for row in rows] == ["equal", "different"] * 5
    assert table.with_suffix(".png").stat().st_size > 5000
    with pytest.raises(ValueError, match="samples= is for a model that generates"):
        predict.predict_config(OmegaConf.create(asked | {"split": None, "images": None, "samples": 2}), Path("siamese"))


def test_two_image_files_are_compared(tiny: None, small_trunk: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run("siamese", *SIAMESE, *QUICK, "trainer.max_epochs=1", "trainer.limit_train_batches=2")
    Path("pair").mkdir()
    images = torch.randint(256, (2, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name, image in zip("ab", images, strict=True):
        image[0], image[-1] = 0, 0  # a dark border: not inverted
        image[:, 0], image[:, -1] = 0, 0
        Image.fromarray(image.numpy()).save(f"pair/{name}.png")
    _, data, model = load_run("siamese", "last")
    asked = {"run": "siamese", "checkpoint": "last", "output": "predictions", "limit": 6, "csv": None, "samples": None}
    asked["split"] = None
    for files, order in ((["pair/b.png", "pair/a.png"], [1, 0]), ("pair", [0, 1]), (["pair/a.png"] * 2, [0, 0])):
        caplog.clear()
        table = predict.predict_config(OmegaConf.create(asked | {"images": files}), Path("siamese"))
        first, second = data.normalize(images[order][None]).chunk(2, 1)
        with torch.inference_mode():
            equal = model.compare(first, second).item()
        verdict, probability = ("equal", equal) if equal > 0.5 else ("different", 1 - equal)
        with open(table, newline="") as lines:
            (row,) = csv.DictReader(lines)
        assert row["input"] == " and ".join(f"pair/{'ab'[number]}.png" for number in order)
        assert (row["label"], float(row["probability"])) == (verdict, pytest.approx(probability, abs=1e-5))
        assert f"{row['input']}  {verdict} {100 * probability:.1f} %" in caplog.text
    assert matplotlib.image.imread("siamese/predictions/predictions.png").shape[0] > 100
    Path("pair/c.txt").write_text("no image")
    written = Path("siamese/predictions/predictions.csv").read_bytes()
    for files, line in (
        ("pair/a.png", r"compares two images, and images= names 1 file: images='\[first\.png,second\.png\]'"),
        ("pair", r"compares two images, and images= names 3 files"),
        (["pair/a.png", "pair/c.txt"], r"there are not two images to compare: pair/c\.txt is none"),
    ):
        with pytest.raises(ValueError, match=line):
            predict.predict_config(OmegaConf.create(asked | {"images": files}), Path("siamese"))
    assert Path("siamese/predictions/predictions.csv").read_bytes() == written
