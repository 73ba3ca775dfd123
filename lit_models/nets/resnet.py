"""torchvision's ResNet-18."""

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from lit_models.nets.errors import unsupported_inputs


class ResNet18(ResNet):  # type: ignore[misc]  # torchvision has no types
    """ResNet-18 for images of any size (He et al. 2015, arXiv:1512.03385, table 1); 11,689,512 parameters with 1000
    classes. Returns logits. Its weights have torchvision's names; ``head`` names the last layer.

    Args:
        input_shape: ``(1, H, W)`` or ``(3, H, W)``; a gray image is repeated on the three input channels.
        num_classes: number of logits.
        cifar_stem: begin with a 3 x 3 convolution on every pixel and without pooling, for images as small as those
            of CIFAR-10 (11,173,962 parameters with 10 classes).
    """

    head = "fc"

    def __init__(self, input_shape: Sequence[int], num_classes: int, cifar_stem: bool = False) -> None:
        if len(input_shape) != 3 or input_shape[0] not in (1, 3):
            raise unsupported_inputs("ResNet18 takes images, gray or in color", input_shape)
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes)
        if cifar_stem:
            self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # (B, 1 or 3, H, W)
        return super().forward(x.expand(-1, 3, -1, -1))  # (B, num_classes)
