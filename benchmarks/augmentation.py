"""Batched augmentation against torchvision's transforms, image by image: the published incremental-CIFAR operations.

python -m benchmarks.augmentation

Batches of 90 images of 3x32x32 on one CPU thread; the two take turns and the medians of the pairs are compared. Both
draw their own random parameters; reading and normalising are not part of it.
"""

import statistics

import torch

from benchmarks.timing import in_turns, machine
from plastiscope.data.augmentation import CropFlipRotate
from plastiscope.data.vision import vision

BATCH, PAIRS = 90, 50


def measure(pairs: int = PAIRS) -> dict[str, float]:
    """Images per second of both, and the ratio."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        images, ids = torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH)
        batched = CropFlipRotate(seed=0, split="train", max_angle=15.0)
        transforms = vision().transforms
        one_by_one = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
                transforms.RandomRotation((0, 15)),
            ]
        )
        sides = (lambda: batched(images, ids, 0), lambda: torch.stack([one_by_one(image) for image in images]))
        ours, theirs = in_turns(sides, pairs)
    finally:
        torch.set_num_threads(threads)
    fast, slow = statistics.median(ours), statistics.median(theirs)
    return {"batched": BATCH / fast, "torchvision": BATCH / slow, "ratio": slow / fast}


def main() -> None:
    found = measure()
    print(f"Augmentation of batches of {BATCH}, medians of {PAIRS} pairs, one thread\n{machine()}")
    print(f"batched      {found['batched']:10.0f} images/s")
    print(f"torchvision  {found['torchvision']:10.0f} images/s")
    print(f"ratio        {found['ratio']:10.1f}   (wanted: 12 or more)")


if __name__ == "__main__":
    main()
