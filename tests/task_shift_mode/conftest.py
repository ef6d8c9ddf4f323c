from collections.abc import Callable

import pytest
import torch

from plastiscope.data.samples import ArraySource, DataSet, Samples


def split(name: str, labels: torch.Tensor, inputs: torch.Tensor) -> Samples:
    source = ArraySource(inputs, torch.arange(len(inputs)) + 100)
    return Samples(
        source=source, split=name, rows=torch.arange(len(inputs)), labels=labels, clean_labels=labels, targets=labels
    )


def tiny_data(
    num_classes: int = 6,
    train: int = 4,
    test: int = 2,
    validation: int = 1,
    shape: tuple[int, ...] = (2, 4, 5),
) -> DataSet:
    """So many samples of each class, classes mixed, inputs standard normal; no validation when 0."""
    generator = torch.Generator().manual_seed(0)

    def mixed(name: str, per_class: int) -> Samples:
        labels = torch.arange(num_classes).repeat_interleave(per_class)
        labels = labels[torch.randperm(len(labels), generator=generator)]
        return split(name, labels, torch.randn(len(labels), *shape, generator=generator))

    return DataSet(
        train=mixed("train", train),
        validation=mixed("validation", validation) if validation else None,
        test=mixed("test", test),
        num_classes=num_classes,
        description={},
    )


@pytest.fixture
def make_data() -> Callable[..., DataSet]:
    return tiny_data
