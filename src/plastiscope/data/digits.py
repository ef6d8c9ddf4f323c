"""scikit-learn's bundled handwritten digits: 1,797 real images, 8x8 grey pixels of 0 to 16; nothing to download."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plastiscope.data.finite_data import FiniteData
from plastiscope.data.normalisation import statistics
from plastiscope.data.raw_data import RawData, array_split
from plastiscope.data.samples import Normalisation, Source
from plastiscope.error import require


@dataclass(kw_only=True)
class Digits(FiniteData):
    """The digits; the last `test_samples` ids are the test split. Published: (x/16 - mean) / (std + 0.01)."""

    test_samples: int = 360
    """So many ids at the end of the file are for testing; 0 = train on all of them, with no test."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.test_samples < 1797, "test_samples", self.test_samples, "must be 0 to 1796")

    def read(self, device: torch.device) -> RawData:
        """The images of the installed scikit-learn."""
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        inputs = pixels.astype(np.float32).reshape(-1, 1, 8, 8)
        cut = len(labels) - self.test_samples
        return RawData(
            train=array_split(inputs[:cut], labels[:cut], device),
            test=array_split(inputs[cut:], labels[cut:], device),
            num_classes=10,
            scale=16.0,
            class_names=tuple("0123456789"),
        )

    def published(self, raw: Source, rows: Tensor, scale: float) -> Normalisation:
        """Mean and sample std per pixel over the training samples; 0.01 keeps pixels that never vary finite."""
        features = (x.flatten(1) for x in raw.stream(rows, 2048))
        mean, std = (s.view(raw.input_shape) for s in statistics(features, scale, correction=1))
        return Normalisation(mean.float(), (std + 0.01).float(), scale)
