"""A small vision transformer."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_models.nets.errors import unsupported_inputs


class ViT(nn.Module):
    """A transformer over the patches of an image (Dosovitskiy et al. 2020, arXiv:2010.11929, figure 1).

    As in the UvA deep learning course, tutorial 15: normalization before each layer, and a random start for the class
    token and the positions. With the defaults on CIFAR-10: 3,195,146 parameters. Returns logits.

    Args:
        input_shape: ``(C, H, W)``; height and width are multiples of the patch.
        num_classes: number of logits.
        patch_size: pixels along the side of a patch.
        embed_dim: numbers that a patch is turned into.
        hidden_dim: units between the two linear layers of a block.
        num_heads: of the attention.
        num_layers: blocks of attention and two linear layers.
        dropout: probability of the linear layers' outputs, and of the inputs of the first block, to be left out.

    Raises:
        ValueError: the inputs are not images, or have another size.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        patch_size: int = 4,
        embed_dim: int = 256,
        hidden_dim: int = 512,
        num_heads: int = 8,
        num_layers: int = 6,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or input_shape[1] % patch_size or input_shape[2] % patch_size:
            takes = f"a vision transformer takes images whose height and width are multiples of {patch_size} pixels"
            raise unsupported_inputs(takes, input_shape)
        if embed_dim % num_heads:
            raise ValueError(f"model.net.embed_dim={embed_dim} must be a multiple of model.net.num_heads={num_heads}")
        channels, height, width = input_shape
        self.patch_size = patch_size
        self.embedding = nn.Linear(channels * patch_size**2, embed_dim)
        self.class_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.positions = nn.Parameter(torch.randn(1, 1 + height * width // patch_size**2, embed_dim))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(embed_dim, hidden_dim, num_heads, dropout) for _ in range(num_layers)))
        self.head = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, num_classes))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        patches = F.unfold(x, self.patch_size, stride=self.patch_size).mT  # (B, patches, C * patch_size^2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), self.embedding(patches)], 1)
        tokens = self.blocks(self.dropout(tokens + self.positions))  # (B, 1 + patches, embed_dim)
        return self.head(tokens[:, 0])  # (B, num_classes)


class Block(nn.Module):
    """Attention and two linear layers, each on normalized inputs and added to them."""

    def __init__(self, embed_dim: int, hidden_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.attention = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, embed_dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, T, embed_dim)
        normalized = self.norm1(x)
        x = x + self.attention(normalized, normalized, normalized, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))
