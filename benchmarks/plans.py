"""Plans of runs on the CPU with one thread, composed as the command line composes them, and data to run them on."""

from pathlib import Path
from typing import Any

import numpy as np

from plastiscope.build import Plan, compose_plan

QUIET = ["task_shift_mode=none", "analysis=[]", "use_wandb=false", "device=cpu", "threads=1"]


def make_plan(*overrides: str) -> Plan:
    """The plan of `plastiscope <overrides>`, by default the same task again and again and no analyses."""
    return compose_plan(*QUIET, *overrides)


def random_images(folder: Path, images: int, classes: int) -> list[str]:
    """Overrides for so many random 3x32x32 images to train on, in `classes`, and a fifth as many for the test."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, n in (("train", images), ("test", images // 5)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(n) % classes
    np.savez(folder / "images.npz", **arrays)
    return ["data=arrays", f"data.file={folder / 'images.npz'}"]
