"""Architectures: published parameter counts, shapes, and independence of the examples of a batch."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lit_models import nets

GRAY, COLOR = (1, 28, 28), (3, 32, 32)
IMAGE_NETS = [nets.MLP, nets.CNN, nets.ResidualCNN, nets.DropoutCNN, nets.QuickCNN, nets.LeNet, nets.CifarNet]
IMAGE_NETS += [nets.ExampleCNN, nets.RowLSTM, nets.SpatialTransformer, nets.ViT]


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
        (nets.LeNet(GRAY, 10, pad=False), 156 + 2_416 + 30_840 + 10_164 + 850),
        (nets.ExampleCNN(GRAY, 10), 320 + 18_496 + 1_179_776 + 1_290),
        (nets.RowLSTM(GRAY, 10), 4 * 64 * (28 + 64 + 2) + 128 + 2_080 + 330),
        (nets.SpatialTransformer(GRAY, 10), 400 + 2_010 + 2_912 + 198 + 21_840),
        (nets.ViT(COLOR, 10), 49 * 256 + 66 * 256 + 6 * 527_104 + 512 + 2_570),
        (nets.MLP(GRAY, 10, hidden_sizes=[64, 64], dropout=0.1), 55_050),
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


def test_spatial_transformer_begins_with_the_identity() -> None:
    images = torch.rand(2, *COLOR)
    net = nets.SpatialTransformer(COLOR, 10)
    assert torch.allclose(net.transform(images), images, atol=1e-5)
    net.localization[-1].bias.data = torch.tensor([-1.0, 0, 0, 0, 1, 0])  # mirrored
    assert torch.allclose(net.transform(images), images.flip(3), atol=1e-5)


def test_vit_patches_are_squares_of_the_image() -> None:
    """Of an embedding that sums a patch, the first token after the class token is the sum of the top left square."""
    net = nets.ViT((1, 8, 8), 2, embed_dim=8, num_layers=1)
    nn.init.ones_(net.embedding.weight)
    nn.init.zeros_(net.embedding.bias)
    image, seen = torch.arange(64.0).view(1, 1, 8, 8), []
    net.embedding.register_forward_hook(lambda layer, inputs, outputs: seen.append(outputs[0, :, 0]))
    net(image)
    squares = [image[0, 0, top : top + 4, left : left + 4].sum() for top in (0, 4) for left in (0, 4)]
    assert seen[0].tolist() == squares


def test_mlp_drops_hidden_units_only() -> None:
    names = [type(layer).__name__ for layer in nets.MLP((4,), 2, hidden_sizes=[3, 3], dropout=0.1)]
    hidden = ["Linear", "ReLU", "Dropout"]
    assert names == ["Flatten", *hidden, *hidden, "Linear"]


def test_kaiming_initialization_keeps_the_variance_of_the_activations() -> None:
    torch.manual_seed(0)
    net = nets.MLP((784,), 10, hidden_sizes=[512, 256, 256, 128], initialization="kaiming")
    x, stds = torch.randn(2000, 784), []
    for layer in net:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            stds.append(x.std().item())
            assert not layer.bias.any()
    assert min(stds) > 0.7 and max(stds) < 1.4, stds


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nets.MLP((4,), 2, initialization="xavier"), "model.net.initialization=xavier must be default or kaim"),
        (lambda: nets.ViT((3, 30, 30), 2), "multiples of 4 pixels, not inputs of shape"),
        (lambda: nets.ViT((2,), 2), "takes images"),
        (lambda: nets.ViT((3, 32, 32), 2, num_heads=7), "model.net.embed_dim=256 must be a multiple of"),
        (lambda: nets.SpatialTransformer((1, 27, 27), 2), "at least 28 x 28 pixels"),
        (lambda: nets.RowLSTM((8,), 2), "takes images"),
        (lambda: nets.ExampleCNN((8,), 2), "takes images"),
    ],
)
def test_nets_refuse_what_they_cannot_take(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
