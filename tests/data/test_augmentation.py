"""Batched augmentation: pixel for pixel torchvision's, and keyed by sample."""

import pytest
import torch

from plastiscope.data.augmentation import AugmentationKind, CropFlipRotate, Parameters, augment, make_augmentation
from plastiscope.data.vision import vision
from plastiscope.error import ConfigError


def one_by_one(images: torch.Tensor, p: Parameters, padding: int) -> torch.Tensor:
    """The same operations by torchvision, in the published order: flip, crop of the padded image, rotation."""
    F = vision().transforms.functional
    height, width = images.shape[-2:]
    shown = []
    for i, image in enumerate(images):
        image = F.hflip(image) if p.flip[i] else image
        image = F.pad(image, [padding] * 4, padding_mode="reflect")
        image = F.crop(image, int(p.top[i]), int(p.left[i]), height, width)
        shown.append(image if p.angle is None else F.rotate(image, float(p.angle[i])))
    return torch.stack(shown)


def drawn(count: int, generator: torch.Generator, padding: int) -> Parameters:
    return Parameters(
        flip=torch.rand(count, generator=generator) < 0.5,
        top=torch.randint(0, 2 * padding + 1, (count,), generator=generator),
        left=torch.randint(0, 2 * padding + 1, (count,), generator=generator),
        angle=torch.rand(count, generator=generator) * 15,
    )


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 48, 48), (2, 9, 9), (3, 32, 24)])
def test_no_pixel_differs_from_torchvision(shape):
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        images = torch.randn(100, *shape, generator=generator)
        parameters = drawn(100, generator, 4)
        torch.testing.assert_close(
            augment(images, parameters, 4), one_by_one(images, parameters, 4), rtol=0, atol=0
        )  # fmt: skip


def test_special_angles_and_every_corner_of_the_crop_equal_torchvision():
    angles = torch.tensor([0.0, 1e-6, 7.5, 15.0, 30.0, 45.0, 53.130102, 90.0, 180.0])
    offsets = torch.tensor([0.0, 4.0, 8.0])
    angle, top, left = (grid.flatten() for grid in torch.meshgrid(angles, offsets, offsets, indexing="ij"))
    images = torch.randn(len(angle), 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for flip in (False, True):
        p = Parameters(torch.full((len(angle),), flip), top.long(), left.long(), angle)
        torch.testing.assert_close(augment(images, p, 4), one_by_one(images, p, 4), rtol=0, atol=0)


def test_crop_and_flip_alone_equal_torchvision():
    generator = torch.Generator().manual_seed(2)
    images, p = torch.randn(80, 3, 32, 32, generator=generator), drawn(80, generator, 4)
    p = Parameters(p.flip, p.top, p.left, None)
    torch.testing.assert_close(augment(images, p, 4), one_by_one(images, p, 4), rtol=0, atol=0)


def test_centre_crop_without_flip_and_rotation_is_the_image_itself():
    images = torch.randn(5, 3, 32, 32)
    four = torch.full((5,), 4)
    p = Parameters(torch.zeros(5, dtype=torch.bool), four, four, torch.zeros(5))
    assert torch.equal(augment(images, p, 4), images)


def test_draws_belong_to_the_sample_whatever_batch_it_comes_in():
    augmentation = CropFlipRotate(seed=3, split="train", max_angle=15.0)
    images, ids = torch.randn(64, 3, 32, 32), torch.arange(64) * 7 - 5
    whole = augmentation(images, ids, epoch=11)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augmentation(images[order], ids[order], 11), whole[order])
    for size in (1, 7):
        parts = [augmentation(x, i, 11) for x, i in zip(images.split(size), ids.split(size), strict=True)]
        assert torch.equal(torch.cat(parts), whole)


def test_epoch_seed_and_split_each_change_the_draws_and_nothing_else_does():
    ids = torch.arange(1000)
    base = CropFlipRotate(seed=0, split="train", max_angle=15.0).draw(ids, 5)
    before = torch.get_rng_state()
    again = CropFlipRotate(seed=0, split="train", max_angle=15.0).draw(ids, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(base.angle, again.angle) and torch.equal(base.top, again.top)
    for other in (
        CropFlipRotate(seed=0, split="train", max_angle=15.0).draw(ids, 6),
        CropFlipRotate(seed=1, split="train", max_angle=15.0).draw(ids, 5),
        CropFlipRotate(seed=0, split="test", max_angle=15.0).draw(ids, 5),
    ):
        assert (base.angle == other.angle).sum() < 5
        assert 0.4 < (base.flip == other.flip).float().mean() < 0.6
        # no draw of one kind is the draw of another kind at another epoch: 1/9 of the offsets agree by chance
        assert (base.left == other.top).float().mean() < 0.2 and (base.top == other.left).float().mean() < 0.2


def test_draws_are_uniform_and_independent():
    p = CropFlipRotate(seed=0, split="train", max_angle=15.0).draw(torch.arange(90_000), 2)
    # 4 standard errors of the counts and means
    assert abs(p.flip.double().mean() - 0.5) < 4 * 0.5 / 300
    for offset in (p.top, p.left):
        counts = torch.bincount(offset, minlength=9)
        assert len(counts) == 9 and (counts - 10_000).abs().max() < 4 * (90_000 / 9 * 8 / 9) ** 0.5
    assert 0 <= p.angle.min() < 0.01 and 14.99 < p.angle.max() < 15
    table = torch.stack([p.flip.double(), p.top.double(), p.left.double(), p.angle.double()])
    assert (torch.corrcoef(table) - torch.eye(4)).abs().max() < 4 / 300


def test_rotation_uncovers_zeros_and_turns_one_way():
    images = torch.ones(1, 1, 32, 32)
    images[..., 0, 16:] = 2  # right half of the upper row
    four = torch.tensor([4])
    turned = augment(images, Parameters(torch.tensor([False]), four, four, torch.tensor([10.0])), 4)
    assert turned[0, 0, 0, 0] == 0 and turned[0, 0, -1, -1] == 0
    rows = (turned[0, 0] == 2).nonzero()[:, 0].float()
    assert len(rows) > 0 and (turned[0, 0, 0, :20] != 2).any()
    right = (turned[0, 0, :, 28:] == 2).any()
    assert not right  # counter-clockwise: the right end of the upper row leaves the frame


def test_kinds():
    assert make_augmentation(AugmentationKind.none, 0, "train", (64,)) is None
    assert make_augmentation(AugmentationKind.crop_flip, 0, "train", (3, 32, 32)).draw(torch.arange(2), 0).angle is None
    assert make_augmentation(AugmentationKind.incremental_cifar, 0, "train", (3, 32, 32)).max_angle == 15.0
    for shape in ((64,), (3, 4, 4)):
        with pytest.raises(ConfigError, match=r"augmentation=crop_flip: needs images .* data.augmentation=none"):
            make_augmentation(AugmentationKind.crop_flip, 0, "train", shape)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_pixels():
    augmentation = CropFlipRotate(seed=0, split="train", max_angle=15.0)
    images, ids = torch.randn(500, 3, 32, 32), torch.arange(500)
    assert torch.equal(augmentation(images.cuda(), ids.cuda(), 3).cpu(), augmentation(images, ids, 3))
