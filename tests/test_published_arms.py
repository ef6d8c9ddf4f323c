"""The arms of the published studies: the settings that each changes, and those of its as-published twin."""

from pathlib import Path

import pytest

from plans import make_plan
from plastiscope.error import DataError
from plastiscope.experiment import run

EXPERIMENTS = Path(__file__).parents[1] / "configs" / "experiment"


def flat(node, prefix=""):
    found = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def changes(experiment, base):
    """Settings of an experiment that its base has otherwise, or not; targets and names apart."""
    ours, theirs = (flat(make_plan(f"experiment={name}").config) for name in (experiment, base))
    changed = {key: value for key, value in ours.items() if key not in theirs or theirs[key] != value}
    return {key: value for key, value in changed.items() if key != "name" and not key.endswith("_target_")}


def plain_defaults(learner):
    """Settings of a learner that backprop has not, at their default."""
    ours, theirs = (flat(make_plan(f"learner={name}").config["learner"]) for name in (learner, "backprop"))
    return {f"learner.{key}": value for key, value in ours.items() if key not in theirs}


CBP = {"learner.maturity_threshold": 100, "learner.decay_rate": 0.99, "learner.util_type": "adaptable_contribution"}
ARMS = {
    "incremental_cifar/shrink_and_perturb": ("shrink_and_perturb", {"learner.noise_std": 1e-5, "learner.scope": "all"}),
    "incremental_cifar/continual_backprop": (
        "continual_backprop",
        {
            "learner.replacement_rate": 1e-5,
            "learner.maturity_threshold": 1000,
            "learner.decay_rate": 0.99,
            "learner.util_type": "contribution",
            "learner.init": "normal",
        },
    ),
    "incremental_cifar/head_reset": ("head_reset", {"learner.reset": "head"}),
    "incremental_cifar/retrained": ("retrained", {"learner.reset": "network"}),
    "continual_imagenet/l2": ("l2", {"num_tasks": 5000, "learner.lr": 0.03, "learner.weight_decay": 3e-6}),
    "continual_imagenet/shrink_and_perturb": (
        "shrink_and_perturb",
        {"num_tasks": 5000, "learner.weight_decay": 1e-5, "learner.noise_std": 1e-5},
    ),
    "continual_imagenet/continual_backprop": (
        "continual_backprop",
        {"num_tasks": 5000, "learner.replacement_rate": 3e-4, "learner.init": "default", **CBP},
    ),
    "permuted_mnist/adam": ("backprop", {"learner.optimizer": "adam", "learner.lr": 1e-4}),
    "permuted_mnist/l2": ("l2", {"learner.weight_decay": 1e-4}),
    "permuted_mnist/shrink_and_perturb": (
        "shrink_and_perturb",
        {"learner.weight_decay": 1e-4, "learner.noise_std": 1e-5},
    ),
    "permuted_mnist/continual_backprop": (
        "continual_backprop",
        {"learner.replacement_rate": 1e-6, "learner.init": "kaiming", **CBP},
    ),
    **{
        f"permuted_mnist/width_{width}": ("backprop", {"num_tasks": 150, "net.widths": [width] * 3})
        for width in (100, 1000, 10000)
    },
    **{
        f"permuted_mnist/every_{examples}": (
            "backprop",
            {
                "num_tasks": tasks,
                "task_shift_mode.examples_per_task": examples,
                "representation.every": every,
                "online.bin_size": bin_size,
            },
        )
        for examples, tasks, every, bin_size in (
            (10_000, 4800, 60, 60_000),
            (100_000, 480, 6, 100_000),
            (1_000_000, 48, 1, 1_000_000),
        )
    },
    "slowly_changing_regression/adam": ("backprop", {"learner.optimizer": "adam"}),
    "slowly_changing_regression/l2": ("l2", {"learner.weight_decay": 1e-3}),
    "slowly_changing_regression/shrink_and_perturb": (
        "shrink_and_perturb",
        {"learner.weight_decay": 1e-2, "learner.noise_std": 1e-3},
    ),
    "slowly_changing_regression/continual_backprop": (
        "continual_backprop",
        {"learner.replacement_rate": 1e-3, "learner.init": "kaiming", **CBP},
    ),
    "slowly_changing_regression/linear": ("backprop", {"net.widths": []}),
}
"""Learner of an arm, and what it changes in its study; other settings of the learner stand at their default."""


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_changes_what_is_published_of_it(arm):
    learner, published = ARMS[arm]
    study = arm.split("/")[0]
    expected = plain_defaults(learner) | published
    theirs = flat(make_plan(f"experiment={study}").config)
    expected = {key: value for key, value in expected.items() if key not in theirs or theirs[key] != value}
    assert changes(arm, study) == expected


DEVIATIONS = {
    "incremental_cifar": {"data.augment_test": True},
    "continual_imagenet": {"task_shift_mode.pairs": "tiled"},
    "permuted_mnist": {"task_shift_mode.compose": True},
    "slowly_changing_regression": {
        "data.threshold_form": "as_published",
        "task_shift_mode.flip": "all",
        "task_shift_mode.exact_test": False,
    },
    "task_shift_study": {
        "data.augment_test": True,
        "task_shift_mode.bounds": None,
        "task_shift_mode.sinusoid": "shared",
    },
}
"""What the published code does otherwise in all arms of a study."""

OF_ARMS = {
    "incremental_cifar/continual_backprop": {
        "learner.feature_magnitude": "cumulative",
        "learner.count": "all",
        "learner.residual_mode": "legacy",
        "learner.compensate": False,
        "learner.reset_optimizer_state": False,
    },
    "incremental_cifar/head_reset": {"learner.keep_optimizer_state": True},
    "incremental_cifar/retrained": {"learner.keep_optimizer_state": True, "learner.keep_buffers": True},
    "continual_imagenet/continual_backprop": {
        "learner.count": "all",
        "learner.compensate": False,
        "learner.reset_optimizer_state": False,
    },
    "permuted_mnist/continual_backprop": {"learner.compensate": False},
    "slowly_changing_regression/continual_backprop": {
        "learner.maturity_threshold": 10,
        "learner.accumulate": False,
        "learner.compensate": False,
    },
    **{
        f"task_shift_study/{shift}continual_backprop": {"learner.accumulate": False, "learner.compensate": False}
        for shift in ("", "drifting_values_")
    },
    **{
        f"task_shift_study/{shift}rank_restoring_cbp": {
            "learner.accumulate": False,
            "learner.compensate": False,
            "learner.scale": "energy",
            "learner.activation_energy": "as_published",
        }
        for shift in ("", "drifting_values_")
    },
}
"""And in single arms."""

STUDIES_AND_ARMS = sorted(
    str(path.relative_to(EXPERIMENTS).with_suffix(""))
    for study in DEVIATIONS
    for path in [EXPERIMENTS / f"{study}.yaml", *(EXPERIMENTS / study).glob("*.yaml")]
)


@pytest.mark.parametrize("experiment", STUDIES_AND_ARMS)
def test_as_published_turns_on_what_the_published_code_does_otherwise(experiment):
    study, _, arm = experiment.partition("/")
    twin = f"{study}_as_published/{arm}".rstrip("/")
    of_study = {"data.augment_test": True} if "drifting_values" in arm else DEVIATIONS[study]
    assert changes(twin, experiment) == of_study | OF_ARMS.get(experiment, {})


def test_drifting_values_are_the_other_shift_of_the_study():
    for arm in ("", "_continual_backprop", "_rank_restoring_cbp"):
        drifting = make_plan(f"experiment=task_shift_study/drifting_values{arm}").config
        moving = make_plan(f"experiment=task_shift_study{arm.replace('_', '/', 1)}").config
        assert drifting["learner"] == moving["learner"] and drifting["net"] == moving["net"]
        assert drifting["task_shift_mode"]["_target_"].endswith("DriftingValues")
        assert drifting["wandb"]["project"] == "loss_landscape_taskshift_drifting_values"


def test_the_task_shift_study_is_the_published_one():
    config = make_plan("experiment=task_shift_study").config
    assert (config["num_tasks"], config["epochs"], config["batch_size"]) == (500, 50, 8192)
    assert config["data"]["_target_"].endswith("Mnist") and config["data"]["augmentation"] == "none"
    assert config["net"]["_target_"].endswith("ConvNet") and config["net"]["activation"] == "leaky_relu"
    published = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.01, "clip_norm": 1.0}
    assert {key: config["learner"][key] for key in published} == published
    published = {"drift": "linear", "max_drift": 0.5, "std": 0.1, "amplitude": 5.0, "frequency": 0.1}
    assert {key: config["task_shift_mode"][key] for key in published} == published
    drifting = make_plan("experiment=task_shift_study/drifting_values").config["task_shift_mode"]
    published = {"std": 0.05, "repulsion": 0.05, "min_gap": 0.2, "lower": -20.0, "upper": 20.0}
    assert {key: drifting[key] for key in published} == published
    published = {"replacement_rate": 1e-3, "maturity_threshold": 100, "decay_rate": 0.9, "util_type": "contribution"}
    for learner in ("continual_backprop", "rank_restoring_cbp"):
        settings = make_plan(f"experiment=task_shift_study/{learner}").config["learner"]
        assert {key: settings[key] for key in published} == published


def test_numbers_of_every_epoch():
    assert changes("continual_imagenet/every_epoch", "continual_imagenet") == {
        "representation.when": "both",
        "representation.every": 1,
        "representation.subsets": ["current"],
        "curvature.every": 1,
    }


@pytest.mark.parametrize(
    ("experiment", "said"),
    [
        ("incremental_cifar/retrained", "No CIFAR100 in .*nowhere. Put train, test, meta"),
        ("continual_imagenet/l2", "No class arrays in .*nowhere/classes"),
        ("permuted_mnist_as_published/adam", "No MNIST in .*nowhere. Put train-images"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_data_that_are_not_there_are_named(experiment, said, dry_run, tmp_path):
    download = [] if "imagenet" in experiment else ["data.download=false"]
    overrides = [f"experiment={experiment}", f"data.folder={tmp_path}/nowhere", f"dry_run={dry_run}".lower(), *download]
    with pytest.raises(DataError, match=said):
        run(make_plan(*overrides), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
