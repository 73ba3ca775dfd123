"""torchvision's ResNet-18."""

from collections.abc import Sequence

from torch import Tensor
from torchvision.models.resnet import BasicBlock, ResNet


class ResNet18(ResNet):
    """ResNet-18 for images of any size (He et al. 2015, arXiv:1512.03385, table 1); 11,689,512 parameters with 1000
    classes. Returns logits. Its weights have torchvision's names; ``head`` names the last layer.

    Args:
        shape: ``(1, H, W)`` or ``(3, H, W)``; a grey image is repeated on the three input channels.
        num_classes: number of logits.
    """

    head = "fc"

    def __init__(self, shape: Sequence[int], num_classes: int) -> None:
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(
                f"ResNet18 takes images, grey or in colour, not inputs of shape {tuple(shape)}; "
                "model=mlp takes any inputs"
            )
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (B, 1 or 3, H, W)
        return super().forward(x.expand(-1, 3, -1, -1))  # (B, num_classes)
