"""Every data set's YAML names its class and holds every field with its default."""

import dataclasses
import importlib
from pathlib import Path

import pytest
from omegaconf import OmegaConf

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "data").glob("*.yaml"))
KINDS = ("arrays", "cifar10", "cifar100", "digits", "image_folder", "imagenet32", "mnist")


def test_each_data_set_has_one():
    assert [path.stem for path in CONFIGS if path.stem in KINDS] == sorted(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_yaml_and_dataclass_agree(name):
    config = OmegaConf.load(next(path for path in CONFIGS if path.stem == name))
    module, _, kind = config.pop("_target_").rpartition(".")
    assert module == f"plastiscope.data.{name}"
    cls = getattr(importlib.import_module(module), kind)
    assert set(config) == {field.name for field in dataclasses.fields(cls)}
    assert OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), config)) == cls()
