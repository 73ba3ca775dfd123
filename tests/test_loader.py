"""BatchLoader and in-memory datamodules: every example once, an order that depends on (seed, epoch), exact resume."""

from types import SimpleNamespace

import pytest
import torch

from cli.errors import format_error
from datamodules import CIFAR10, MNIST, BatchLoader, Blobs
from tests.conftest import run


def make_loader(size: int = 10, batch_size: int = 4, **settings) -> BatchLoader:
    numbers = torch.arange(size)
    return BatchLoader(numbers, numbers * 2, numbers, batch_size, **settings)


def served_order(batches: BatchLoader) -> list[int]:
    return torch.cat([inputs for inputs, _ in batches]).tolist()


def test_each_example_is_served_once_and_the_last_batch_is_smaller() -> None:
    batches = make_loader(seed=1)
    assert [len(inputs) for inputs, _ in batches] == [4, 4, 2]
    assert len(batches) == 3
    assert sorted(served_order(batches)) == list(range(10))


def test_inputs_and_targets_stay_together() -> None:
    for inputs, targets in make_loader(seed=1):
        assert torch.equal(targets, inputs * 2)


def test_order_depends_on_seed_and_epoch_only() -> None:
    batches, orders = make_loader(100, seed=1), {}
    for epoch in (0, 1, 2, 1, 0):
        batches.set_epoch(epoch)
        assert orders.setdefault(epoch, served_order(batches)) == served_order(batches)
    assert len({tuple(indices) for indices in orders.values()}) == 3
    assert served_order(make_loader(100, seed=2)) != served_order(make_loader(100, seed=1)) == orders[0]


def test_without_a_seed_the_order_is_that_of_the_data() -> None:
    assert served_order(make_loader()) == list(range(10))


@pytest.mark.parametrize("served", [0, 1, 2, 3])
def test_state_dict_resumes_in_mid_epoch(served: int) -> None:
    old, new = make_loader(seed=3), make_loader(seed=3)
    whole = served_order(make_loader(seed=3, size=10))
    iterator = iter(old)
    seen = [number for _ in range(served) for number in next(iterator)[0].tolist()]
    new.load_state_dict(old.state_dict())
    if served == 3:  # after the end of an epoch, the next one starts from its first batch
        new.set_epoch(1)
        assert len(served_order(new)) == 10
    else:
        assert seen + served_order(new) == whole


@pytest.mark.parametrize(("size", "world_size"), [(10, 2), (17, 2), (30, 3), (31, 4)])
def test_ranks_split_each_global_batch(size: int, world_size: int) -> None:
    shares = [list(make_loader(size, 4, seed=1, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    everything = torch.cat([inputs for share in shares for inputs, _ in share])
    assert sorted(everything.tolist()) == list(range(size))
    alone = list(make_loader(size, 4 * world_size, seed=1))
    for number, (inputs, _) in enumerate(alone):
        assert torch.equal(torch.cat([share[number][0] for share in shares]), inputs)


@pytest.mark.parametrize(
    ("size", "world_size", "sizes"),
    [
        (9, 1, [4, 4]),
        (10, 1, [4, 4, 2]),
        (8, 1, [4, 4]),
        (1, 1, [1]),
        (18, 2, [4, 4]),
        (19, 2, [4, 4]),
        (20, 2, [4, 4, 2]),
    ],
)
def test_last_batch_may_have_a_smallest_size(size: int, world_size: int, sizes: list[int]) -> None:
    """In every process, with the same batches as otherwise, also after a resume in the middle of an epoch."""
    for rank in range(world_size):
        settings = {"seed": 1, "rank": rank, "world_size": world_size}
        batches = make_loader(size, smallest=2, **settings)
        assert [len(inputs) for inputs, _ in batches] == sizes
        assert len(batches) == len(sizes)
        assert served_order(batches) == served_order(make_loader(size, **settings))[: sum(sizes)]
        for served in range(1, len(sizes)):
            resumed = make_loader(size, smallest=2, **settings)
            resumed.load_state_dict({"epoch": 0, "batch": served})
            assert served_order(resumed) == served_order(batches)[sum(sizes[:served]) :]
    assert batches.left_out == size - world_size * sum(sizes)


@pytest.mark.parametrize(("model", "steps"), [("gan", 4), ("mlp", 3)])
def test_batch_of_one_is_left_out_where_the_net_has_batch_norm(
    model: str, steps: int, random_images, caplog: pytest.LogCaptureFixture
) -> None:
    """The two optimizers of a GAN make two steps on a batch."""
    caplog.set_level("INFO")
    random_images(9, 3)
    settings = ("data.val_size=0", "data.batch_size=4", "trainer.max_epochs=1", "trainer.accelerator=cpu", "threads=1")
    result = run("run", f"model={model}", *settings, "logger=none")
    assert (result["status"], result["steps"]) == ("finished", steps)
    line = "left out: the last 1 example of each epoch, because batch norm cannot normalize a batch of one; another "
    line += "data.batch_size uses all"
    assert caplog.messages.count(line) == (model == "gan")


def test_batches_of_one_with_batch_norm_are_refused_in_one_line(random_images) -> None:
    random_images(4, 2)
    settings = ("data.val_size=0", "data.batch_size=1", "trainer.accelerator=cpu", "threads=1", "logger=none")
    with pytest.raises(ValueError) as error:
        run("run", "model=gan", *settings)
    line = format_error(error.value)
    assert line.startswith("batch norm cannot normalize one example; data.batch_size=2 is the least (Expected more")


@pytest.fixture
def small_mnist(monkeypatch: pytest.MonkeyPatch) -> MNIST:
    """MNIST with a few random images in place of its files."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (120, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (120,), generator=generator)
    parts = (images[:100], labels[:100]), (images[100:], labels[100:])
    monkeypatch.setattr(MNIST, "load", lambda self: parts)
    return MNIST(root="unused", mean=[0.1307], std=[0.3081], batch_size=32, val_size=30, seed=1)


def test_validation_split_is_independent_of_the_seed_and_the_test_set_complete(small_mnist: MNIST) -> None:
    small_mnist.setup()
    train, val = set(small_mnist.train_indices.tolist()), set(small_mnist.val_indices.tolist())
    assert len(val) == 30
    assert not train & val
    assert train | val == set(range(100))
    other = MNIST(root="unused", mean=[0.1307], std=[0.3081], val_size=30, seed=2)
    other.setup()
    assert torch.equal(other.val_indices, small_mnist.val_indices)
    assert sum(len(targets) for _, targets in small_mnist.test_dataloader()) == 20


def test_validate_on_test_serves_the_test_set(small_mnist: MNIST) -> None:
    small_mnist.validate_on = "test"
    small_mnist.setup()
    (val, _), (test, _) = next(iter(small_mnist.val_dataloader())), next(iter(small_mnist.test_dataloader()))
    assert torch.equal(val, test)


def test_normalization_equals_torchvision_to_the_bit(small_mnist: MNIST) -> None:
    from torchvision.transforms import Compose, Normalize, ToTensor

    images = small_mnist.load()[0][0]
    theirs = Compose([ToTensor(), Normalize((0.1307,), (0.3081,))])
    assert torch.equal(small_mnist.normalize(images), torch.stack([theirs(image[0].numpy()) for image in images]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size=0"),
        ({"batch_size": 1.5}, r"data\.batch_size=1\.5"),
        ({"eval_batch_size": -1}, r"data\.eval_batch_size=-1"),
        ({"validate_on": "tset"}, r"data\.validate_on=tset"),
        ({"val_size": 200}, r"data\.val_size=200"),
        ({"val_size": -1}, r"data\.val_size=-1"),
        ({"size": 1}, r"data\.size=1"),
    ],
)
def test_invalid_sizes_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Blobs(**{"size": 200} | settings).setup()


def test_mean_and_std_need_one_value_per_channel() -> None:
    with pytest.raises(ValueError, match="3 channels"):
        CIFAR10(root="unused", mean=[0.5], std=[0.5])


def test_blobs_are_two_reproducible_clouds() -> None:
    (train, labels), (test, _) = Blobs(size=200).load()
    assert torch.equal(train, Blobs(size=200).load()[0][0])
    assert not torch.equal(train, test)
    centers = torch.stack([train[labels == label].mean(0) for label in (0, 1)])
    torch.testing.assert_close(centers, torch.tensor([[2.0, 2.0], [-2.0, -2.0]]), atol=0.4, rtol=0)
    assert labels.bincount().tolist() == [100, 100]


def test_full_batch_size_is_the_size_of_the_training_set() -> None:
    """So a full-batch run may resume with any number of processes."""
    places = []
    for processes in (1, 2):
        blobs = Blobs(size=200, batch_size=None)
        blobs.trainer = SimpleNamespace(world_size=processes, accumulate_grad_batches=1)
        blobs.setup()
        places.append(blobs.state_dict())
    assert places[0] == places[1] == {"batch": 200, "batches": 1, "examples": 200}


def test_iteration_that_was_left_unfinished_is_not_continued() -> None:
    """The sanity check of Lightning is such a one: the validation after it is of all examples."""
    numbers = torch.arange(10)
    loader = BatchLoader(numbers, numbers, numbers, batch_size=2)
    next(iter(loader))
    position = loader.state_dict()
    assert len(list(loader)) == 5
    loader.load_state_dict(position)  # that is the way to continue
    assert [len(list(loader)) for _ in range(2)] == [4, 5]
