"""One suite over every config file: it lists every setting of its class, it builds, and it trains for one epoch."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from plans import make_plan
from plastiscope.build import locate
from plastiscope.experiment import run
from plastiscope.run.status import read_status
from plastiscope.settings import Settings

CONFIGS = Path(__file__).parents[1] / "configs"
GROUPS = ("data", "net", "learner", "task_shift_mode", "analysis")
COMPONENTS = [path for group in GROUPS for path in sorted((CONFIGS / group).glob("*.yaml")) if path.stem != "foreign"]
EXPERIMENTS = sorted(
    str(path.relative_to(CONFIGS / "experiment").with_suffix("")) for path in (CONFIGS / "experiment").rglob("*.yaml")
)
TINY = ("num_tasks=2", "epochs=1", "batch_size=20", "threads=1", "representation.samples=20")
USUAL = "analysis=[representation,continual]"


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def fields(cls: type) -> dict[str, object]:
    defaults = OmegaConf.to_container(OmegaConf.structured(cls), enum_to_str=True)
    assert isinstance(defaults, dict)
    return {str(key): value for key, value in defaults.items()}


@pytest.mark.parametrize("path", COMPONENTS, ids=name_of)
def test_every_setting_is_listed_with_its_default(path):
    listed = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(listed, dict)
    target = locate(listed.pop("_target_"), path.parent.name)
    assert dataclasses.is_dataclass(target)
    assert listed == fields(target)
    assert Path(target.__module__.replace(".", "/")).name == path.stem
    assert target.__module__.split(".")[1] == path.parent.name


def test_top_level_lists_every_setting_with_its_default():
    listed = OmegaConf.to_container(OmegaConf.load(CONFIGS / "config.yaml"))
    assert isinstance(listed, dict)
    assert {key: value for key, value in listed.items() if key not in ("defaults", "hydra")} == fields(Settings)


def test_each_component_has_its_config():
    for group in GROUPS:
        assert any(path.parent.name == group for path in COMPONENTS), group


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_compose(experiment):
    assert make_plan(f"experiment={experiment}").settings.name == experiment.replace("/", "_")


NETS = {
    "mlp": [],
    "deep_linear": [],
    "convnet": ["data.resize=32"],
    "convnet2": ["data.resize=32"],
    "vgg16": ["data.resize=32", "net.width=2"],
    "resnet18": ["net.width=4"],
    "resnet18_shortcut": ["net.width=4"],
    "vit": ["net.depth=1", "net.width=16"],
    "foreign": [
        "data.resize=32",
        "net._target_=torchvision.models.squeezenet1_1",
        "+net.num_classes=10",
    ],
}


@pytest.fixture
def images(tmp_path) -> str:
    """A user's own file of small colour images in ten classes."""
    generator = np.random.default_rng(0)
    labels = np.arange(100) % 10
    arrays = {"x_train": generator.integers(0, 256, (100, 3, 16, 16), dtype=np.uint8), "y_train": labels}
    arrays |= {"x_test": arrays["x_train"][:40], "y_test": labels[:40]}
    np.savez(tmp_path / "images.npz", **arrays)
    return str(tmp_path / "images.npz")


@pytest.mark.parametrize("net", sorted(path.stem for path in (CONFIGS / "net").glob("*.yaml")))
def test_every_net_trains(net, images, tmp_path):
    data = ("data=arrays", f"data.file={images}", "data.normalisation=auto")
    run(make_plan(*TINY, USUAL, f"net={net}", *data, *NETS[net]), tmp_path / "run")
    assert read_status(tmp_path / "run")["state"] == "done"


OTHER_DATA = {"bit_flipping": ["data=bit_flipping", "selection=last"]}
"""Of shifts that need data of their own."""


@pytest.mark.parametrize("shift", sorted(path.stem for path in (CONFIGS / "task_shift_mode").glob("*.yaml")))
def test_every_task_shift_trains(shift, tmp_path):
    few = ("data.samples_per_class=10", "data.test_samples_per_class=5")
    run(
        make_plan(*TINY, USUAL, f"task_shift_mode={shift}", *OTHER_DATA.get(shift, few), "figures=true"),
        tmp_path / "run",
    )
    assert (tmp_path / "run" / "figures" / "accuracy_per_task.png").exists()
    assert read_status(tmp_path / "run")["state"] == "done"


SHIFTED = (
    *("data.folder={mnist}", "data.samples_per_class=4", "data.test_samples_per_class=5", "lla.profile=smoke"),
    *("net.channels=[4,5,6]", "net.widths=[8]", "lla.every=2", "lla.when=post", "lla.enable_sam=false"),
    *("lla.planes.include_random=false", "lla.evaluation_data.num_samples=20"),
    "lla.planes.grid_resolution=3",
)
REAL = {
    "digits": ["lla.profile=smoke", "lla.planes.grid_resolution=3"],
    "incremental_cifar": [
        *("data.folder={cifar}", "data.test_samples_per_class=5", "data.samples_per_class=12", "net.width=4"),
    ],
    "continual_imagenet": ["data.folder={imagenet}", "data.samples_per_class=20"],
    "loss_landscape_taskshift": SHIFTED,
    "task_shift_study": SHIFTED,
    "slowly_changing_regression": ["task_shift_mode.examples_per_task=60"],
    "permuted_mnist": ["data.folder={mnist}", "data.samples_per_class=4"],
    "permuted_mnist_epochs": ["data.folder={mnist}", "data.samples_per_class=4", "data.test_samples_per_class=5"],
}
"""Small, by study; the arms of a study and what is as published take the same."""


def small(experiment: str, places: dict[str, Path]) -> list[str]:
    """Overrides that make an experiment short."""
    study = experiment.split("/")[0].removesuffix("_as_published")
    overrides = [override.format(**places) for override in REAL[study]]
    if study == "permuted_mnist":
        overrides.append("net.widths=[20,20]")
    if "every_" in experiment and study == "permuted_mnist":
        overrides.append("task_shift_mode.examples_per_task=60")
    tiny = [f for f in TINY if not (f.startswith("representation") and experiment.endswith("/linear"))]
    if "_as_published/" in experiment:  # what they look at is what the arm looks at
        tiny, overrides = [*TINY[:-1], "analysis=[]"], [o for o in overrides if not o.startswith("lla")]
    return [f"experiment={experiment}", *tiny, *overrides]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_trains_on_real_data(experiment, real_data, tmp_path):
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "cifar-100-python").symlink_to(real_data / "cifar-100-python-mini")
    places = {"cifar": tmp_path / "cifar", "imagenet": real_data / "imagenet32-mini", "mnist": real_data}
    is_drawn = "/" not in experiment  # arms have the figures of their study
    run(make_plan(*small(experiment, places), f"figures={is_drawn}".lower()), tmp_path / "run")
    assert read_status(tmp_path / "run")["state"] == "done"
    assert (tmp_path / "run" / "figures" / "accuracy_per_task.png").exists() == is_drawn
