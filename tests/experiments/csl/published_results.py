"""Small results in the published layouts, and what is expected of each image alone."""

import importlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from plastiscope.data.restricted_pickle import load_restricted
from plastiscope.net.resnet18 import ResNet18

FOLDER = Path(__file__).parents[3] / "experiments" / "csl"

CLASSES = [3, 7, 11, 19, 23, 31, 42, 57, 66, 71]
"""Of the real images: the first five are in training from the start, the others after 200 epochs."""

ORDER = CLASSES + [c for c in range(100) if c not in CLASSES]

PER_CLASS = 2

MEAN, STD = (torch.tensor(v)[:, None, None] for v in ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)))

EPOCHS = [0, 200, 201, 600]

FLOAT32 = {"rtol": 1e-4, "atol": 5e-6}
"""Outputs of 10 to 50 are rounded by some 1e-6 in float32, so are their losses."""


def call(command, *arguments):
    importlib.import_module(command).main([str(argument) for argument in arguments])


def read_images(folder):
    """Raw images [n, 3, 32, 32] in [0, 1] and labels [n]."""
    entry = load_restricted(folder / "train", encoding="latin1")
    return torch.from_numpy(entry["data"].reshape(-1, 3, 32, 32)) / 255, torch.tensor(entry["fine_labels"])


def images_of(images, classes):
    """Positions in the file of the images of these classes."""
    _, labels = read_images(images)
    return [i for i, label in enumerate(labels.tolist()) if label in classes]


def random_net(seed, kind=ResNet18, width=2):
    torch.manual_seed(seed)
    net = kind(width=width).make((3, 32, 32), 100)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


def expected_incremental(images, epoch):
    """Loss and input-gradient norm of each image, one at a time in float64; NaN for classes not in training."""
    net = random_net(epoch).double()
    raw, labels = read_images(images)
    seen = ORDER[: 5 if epoch <= 200 else 10 if epoch <= 400 else 15]
    rows = []
    for image, label in zip(raw, labels.tolist(), strict=True):
        if label not in seen:
            rows.append((np.nan, np.nan))
            continue
        x = ((image - MEAN) / STD).double()[None].requires_grad_()
        loss = F.cross_entropy(net(x)[:, seen], torch.tensor([seen.index(label)]))
        (gradient,) = torch.autograd.grad(loss, x)
        rows.append((loss.item(), gradient.norm().item()))
    return np.array(rows).T
