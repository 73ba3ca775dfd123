"""Architectures: published parameter counts, shapes, and independence of the examples of a batch."""

import pytest
import torch
from torch import nn

from lit_models import nets

GRAY, COLOR = (1, 28, 28), (3, 32, 32)
IMAGE_NETS = [nets.MLP, nets.CNN, nets.ResidualCNN, nets.DropoutCNN, nets.QuickCNN, nets.LeNet, nets.CifarNet]


def count_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (nets.MLP(GRAY, 10), 575_050),
        (nets.MLP((2,), 2, hidden_sizes=[5, 5], activation="Sigmoid"), 57),
        (nets.BinaryMLP((8,), 2, hidden_sizes=[6, 4]), 87),
        (nets.Line((1,), 1), 2),
        (nets.CNN(GRAY, 10), 8_490),
        (nets.ResNet18((3, 64, 64), 1000), 11_689_512),
        (nets.ResNet18(COLOR, 10, cifar_stem=True), 11_173_962),
        (nets.CifarNet(COLOR, 10), 1_972_792),
        (nets.DropoutCNN(GRAY, 10), 21_840),
        (nets.LeNet(GRAY, 10), 61_706),
        (nets.LeNet(COLOR, 10), 62_006),
        (nets.QuickCNN(GRAY, 10), 400 + 32 + 4_608 + 64 + 36_992 + 1_290),
        (nets.ResidualCNN(GRAY, 10), 416 + 2 * 2_320 + 12_832 + 2 * 9_248 + 5_130),
    ],
)
def test_parameter_count_is_the_published_one(net: nn.Module, count: int) -> None:
    assert count_parameters(net) == count


def test_lenet_has_ten_parameter_tensors() -> None:
    shapes = [tuple(parameter.shape) for parameter in nets.LeNet((1, 32, 32), 10).parameters()]
    assert len(shapes) == 10
    assert shapes[0] == (6, 1, 5, 5)


@pytest.mark.parametrize("shape", [GRAY, COLOR, (1, 32, 32), (3, 28, 28)])
@pytest.mark.parametrize("net", IMAGE_NETS)
def test_image_nets_take_gray_and_color_images(net: type[nn.Module], shape: tuple[int, ...]) -> None:
    assert net(shape, 7)(torch.randn(3, *shape)).shape == (3, 7)


@pytest.mark.parametrize("net", IMAGE_NETS)
def test_logits_of_an_example_depend_on_that_example_only(net: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, inputs = net(GRAY, 10).eval(), torch.randn(4, *GRAY, requires_grad=True)
    model(inputs)[2].sum().backward()
    touched = inputs.grad.abs().sum((1, 2, 3)) > 0
    assert touched.tolist() == [False, False, True, False]


def test_lenet_pads_28_to_32() -> None:
    torch.manual_seed(0)
    small, large = nets.LeNet(GRAY, 10), nets.LeNet((1, 32, 32), 10)
    large.load_state_dict(small.state_dict())
    image = torch.randn(2, *GRAY)
    torch.testing.assert_close(small(image), large(nn.functional.pad(image, (2, 2, 2, 2))))


@pytest.mark.parametrize("net", [*IMAGE_NETS[1:], nets.ResNet18])
def test_image_nets_refuse_points(net: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="takes images"):
        net((2,), 2)
