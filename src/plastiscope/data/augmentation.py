"""Random flips, crops and rotations of a whole batch: one index map and one gather.

Every operation here moves pixels and computes none, so their composition is a map from each output pixel to the input
pixel it shows (or to the fill). The map is computed for the batch at once and applied by one gather. The arithmetic of
the rotation follows torchvision's `rotate` on tensors (nearest neighbour) operation by operation in float32, so that at
equal parameters no pixel differs from it.
"""

import math
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from plastiscope.error import ConfigError
from plastiscope.measure.keyed import keyed_uniform


class AugmentationKind(Enum):
    """What happens to training images, after normalisation."""

    none = "none"
    crop_flip = "crop_flip"
    """Horizontal flip with probability 1/2, then a random crop of the image padded by 4 reflected pixels."""
    incremental_cifar = "incremental_cifar"
    """As published for incremental CIFAR-100: crop_flip, then a rotation by 0 to 15 degrees, counter-clockwise only."""


@dataclass(frozen=True, eq=False)
class Parameters:
    """What was drawn for each image of a batch.

    Attributes:
        flip: bool [b].
        top, left: int64 [b], first row and column of the crop in the padded image, 0 .. 2 * padding.
        angle: float32 [b] in degrees, counter-clockwise; None = no rotation.
    """

    flip: Tensor
    top: Tensor
    left: Tensor
    angle: Tensor | None


def _centred(size: int, device: torch.device) -> Tensor:
    """Pixel centres, float32 [size], with the image's centre as 0."""
    return torch.arange(size, dtype=torch.float32, device=device) - (size - 1) / 2


def _rotated(angle: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Column and row, float32 [b, h, w] with integer values, of the pixel that a rotated image shows at each place."""
    radians = angle.to(torch.float64) * (math.pi / 180)
    cos, sin = radians.cos().to(torch.float32)[:, None], radians.sin().to(torch.float32)[:, None]
    x, y = _centred(width, angle.device), _centred(height, angle.device)
    # normalised coordinates, as torchvision hands them to grid_sample
    columns = (x * (cos / (0.5 * width)))[:, None, :] + (y * (-sin / (0.5 * width)))[:, :, None]
    rows = (x * (sin / (0.5 * height)))[:, None, :] + (y * (cos / (0.5 * height)))[:, :, None]
    # and back to pixels, as grid_sample does it (align_corners=False); halves go to the even pixel
    columns.add_(1).mul_(width / 2).sub_(0.5).round_()
    rows.add_(1).mul_(height / 2).sub_(0.5).round_()
    return columns, rows


def _reflected(position: Tensor, size: int) -> Tensor:
    """In place: positions -size < p < 2 * size - 1 mirrored at the first and the last pixel."""
    return position.abs_().sub_(size - 1).abs_().neg_().add_(size - 1)


def index_map(parameters: Parameters, height: int, width: int, padding: int) -> Tensor:
    """The input pixel that each output pixel shows: int64 [b, h * w], row * width + column; h * w stands for the fill.

    Built from the last operation to the first: rotation, crop of the padded image, flip.
    """
    flip, top, left = (p.to(torch.float32)[:, None, None] for p in (parameters.flip, parameters.top, parameters.left))
    outside = None
    if parameters.angle is None:
        columns = torch.arange(width, dtype=torch.float32, device=flip.device).expand(len(flip), 1, width).clone()
        rows = torch.arange(height, dtype=torch.float32, device=flip.device)[:, None].expand(len(flip), -1, 1).clone()
    else:
        columns, rows = _rotated(parameters.angle, height, width)
        outside = (columns - (width - 1) / 2).abs_() > width / 2
        outside |= (rows - (height - 1) / 2).abs_() > height / 2
    columns = _reflected(columns.add_(left - padding), width)
    columns.mul_(1 - 2 * flip).add_((width - 1) * flip)
    index = _reflected(rows.add_(top - padding), height).mul_(width) + columns
    if outside is not None:
        index.masked_fill_(outside, height * width)
    return index.flatten(1).to(torch.int64)


def augment(inputs: Tensor, parameters: Parameters, padding: int) -> Tensor:
    """Images [b, c, h, w] flipped, cropped and rotated by `parameters`; what a rotation uncovers is 0."""
    batch, channels, height, width = inputs.shape
    index = index_map(parameters, height, width, padding)[:, None, :].expand(-1, channels, -1)
    pixels = inputs.reshape(batch, channels, height * width)
    if parameters.angle is not None:
        pixels = F.pad(pixels, (0, 1))
    return pixels.gather(2, index).view(batch, channels, height, width)


@dataclass(frozen=True)
class CropFlipRotate:
    """A batch augmentation (see `samples.Augmentation`) whose draws are keyed by (seed, split, id, epoch).

    Attributes:
        seed: of the run.
        split: "train" or "test"; ids are unique within a split only.
        max_angle: rotations are uniform in [0, max_angle) degrees, counter-clockwise; 0 = no rotation.
        padding: reflected pixels on each side before the crop.
    """

    seed: int
    split: str
    max_angle: float = 0.0
    padding: int = 4

    def draw(self, ids: Tensor, epoch: int) -> Parameters:
        """The parameters of samples `ids` int64 [b] in epoch `epoch`."""
        counter = 4 * epoch + torch.arange(4, device=ids.device)[:, None]
        uniform = keyed_uniform(self.seed, f"augmentation/{self.split}", ids, counter)
        top, left = (uniform[1:3].to(torch.float64) * (2 * self.padding + 1)).to(torch.int64)
        return Parameters(uniform[0] < 0.5, top, left, uniform[3] * self.max_angle if self.max_angle else None)

    def __call__(self, inputs: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """Augmented inputs [b, c, h, w]."""
        return augment(inputs, self.draw(ids, epoch), self.padding)


def make_augmentation(
    kind: AugmentationKind, seed: int, split: str, input_shape: tuple[int, ...]
) -> CropFlipRotate | None:
    """The augmentation of that kind for inputs of that shape.

    Raises:
        ConfigError: the inputs are no images, or too small to reflect 4 pixels.
    """
    if kind is AugmentationKind.none:
        return None
    augmentation = CropFlipRotate(seed, split, 15.0 if kind is AugmentationKind.incremental_cifar else 0.0)
    if len(input_shape) != 3 or min(input_shape[1:]) <= augmentation.padding:
        raise ConfigError(
            f"augmentation={kind.name}: needs images of more than {augmentation.padding} pixels a side, "
            f"and one input here has shape {input_shape}; set data.augmentation=none."
        )
    return augmentation
