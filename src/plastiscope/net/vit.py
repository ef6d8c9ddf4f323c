"""A small vision transformer."""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from plastiscope.error import ConfigError, require
from plastiscope.net.pixels import image_shape
from plastiscope.net.units import Layer, Site, UnitDescription, Wire, columns, rows, width_of


class Pooling(Enum):
    """What the head reads."""

    token = "token"
    """A learned class token."""
    mean = "mean"
    """The mean over the patches."""


@dataclass(kw_only=True)
class Vit:
    """A pre-norm transformer over square patches: attention, then an MLP with GELU, in each block."""

    depth: int = 4
    """Blocks."""
    width: int = 128
    """Embedding dimensions."""
    heads: int = 4
    """Of the attention."""
    hidden: int = 256
    """Units of each block's MLP."""
    patch: int = 4
    """Pixels a side."""
    pooling: Pooling = Pooling.token
    """What the head reads: token, mean."""
    dropout: float = 0.0
    """Probability, after each block's activation and on what a block adds to the residual stream."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("depth", "heads", "hidden", "patch"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be 1 or more")
        divisible = self.width > 0 and self.width % self.heads == 0
        require(divisible, "width", self.width, f"must be a multiple of heads={self.heads}")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "must be in [0, 1)")

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """A freshly initialised network; raises ConfigError when the patches do not fill the image."""
        channels, height, width = image_shape(input_shape, "vit", self.patch)
        if height % self.patch or width % self.patch:
            raise ConfigError(
                f"net=vit cuts images into patches of {self.patch} x {self.patch} pixels, but these have "
                f"{height} x {width}; set data.resize to a multiple of {self.patch}, or change net.patch."
            )
        return VisionTransformer(self, channels, (height // self.patch) * (width // self.patch), outputs)


class Attention(nn.Module):
    """Self-attention over tokens, written out: unlike the fused kernels it can be differentiated twice."""

    def __init__(self, width: int, heads: int) -> None:
        """Attention of `heads` heads over embeddings of `width` dimensions."""
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[b, tokens, width] -> the same shape; heads are softmax(q k^T / sqrt(head width)) v."""
        parts = self.qkv(x).unflatten(-1, (3, self.heads, self.head_width)).permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]
        weights = (q @ k.transpose(-2, -1) * self.head_width**-0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention and MLP, each on the normalised residual stream and added to it."""

    def __init__(self, config: Vit) -> None:
        """A block of the widths in `config`."""
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.linear1 = nn.Linear(config.width, config.hidden)
        self.gelu = nn.GELU()
        self.linear2 = nn.Linear(config.hidden, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[b, tokens, width] -> the same shape."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.linear2(self.dropout(self.gelu(self.linear1(self.norm2(x))))))


class VisionTransformer(nn.Module):
    """Patch embedding, learned positions, blocks, norm, head."""

    def __init__(self, config: Vit, channels: int, patches: int, outputs: int) -> None:
        """Make the network; positions and class token start normal with deviation 0.02, the rest as torch does."""
        super().__init__()
        self.embed = nn.Conv2d(channels, config.width, config.patch, stride=config.patch)
        has_token = config.pooling is Pooling.token
        self.token = nn.Parameter(torch.empty(1, 1, config.width).normal_(std=0.02)) if has_token else None
        self.positions = nn.Parameter(torch.empty(1, patches + has_token, config.width).normal_(std=0.02))
        self.blocks = nn.Sequential(*(TransformerBlock(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[b, channels, h, w] -> [b, outputs]."""
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        tokens = self.norm(self.blocks(tokens + self.positions))
        return self.head(tokens.mean(1) if self.token is None else tokens[:, 0])

    def unit_description(self) -> UnitDescription:
        """Hidden layers are the blocks' MLP units; attention and norm outputs are sites per embedding dimension."""
        blocks = [f"blocks.{i}" for i in range(len(self.blocks))]
        norms = [*(f"{block}.{name}" for block in blocks for name in ("norm1", "norm2")), "norm"]
        return UnitDescription(
            tuple(self._hidden(block) for block in blocks),
            head="head",
            attention_outputs=tuple(
                self._embedding(f"{block}.attention", rows(self, f"{block}.attention.proj")) for block in blocks
            ),
            norm_outputs=tuple(self._embedding(norm, ()) for norm in norms),
        )

    def _hidden(self, block: str) -> Layer:
        return Layer(
            name=f"{block}.linear1",
            width=width_of(self, f"{block}.linear1"),
            site=Site(f"{block}.gelu"),
            incoming=rows(self, f"{block}.linear1"),
            consumers=(columns(f"{block}.linear2"),),
            unit_axis=2,
            activation="gelu",
        )

    def _embedding(self, module: str, incoming: tuple[Wire, ...]) -> Layer:
        return Layer(
            name=module,
            width=width_of(self, "embed"),
            site=Site(module),
            incoming=incoming,
            replaceable=False,
            reason="its dimensions are those of the residual stream",
            unit_axis=2,
        )
