"""Settings of runs of the published studies, as ours are called.

The published code has them in `cfg/*.json` beside the results: lists are what is varied, all combinations in order, and
`<data_dir>/<n>` is the n-th one. Without these files the names of folders say what they can.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

FIXED: Mapping[str, Mapping[str, Any]] = {
    "continual_imagenet": {"data": "imagenet32", "task_shift_mode": "binary_pairs"},
    "permuted_mnist": {"data": "mnist", "task_shift_mode": "permuted_input"},
    "slowly_changing_regression": {"data": "bit_flipping", "task_shift_mode": "bit_flipping"},
}
"""What all runs of a study share."""
ARMS: Mapping[str, Mapping[str, Any]] = {
    "bp": {"learner": "backprop"},
    "adam": {"learner": "backprop", "learner.optimizer": "adam"},
    "l2": {"learner": "l2"},
    "snp": {"learner": "shrink_and_perturb"},
    "cbp": {"learner": "continual_backprop"},
    "cbp2": {"learner": "continual_backprop"},
    "linear": {"learner": "backprop", "net.widths": "[]"},
}
"""What published names of folders say."""
NAMES = {"step_size": "lr", "opt": "optimizer", "weight_decay": "weight_decay", "momentum": "momentum"}
"""Of the learner, in the published files and here; `cbp` has the next one, too, and what is perturbed the last one."""
FLIP_AFTER = 10_000
"""Steps of a task of regression, unless the files say it."""
LEVELS = 8
"""Folders above the results in which `cfg` is looked for."""


@dataclass(frozen=True)
class Published:
    """What is known of a run.

    Attributes:
        settings: by our dotted keys.
        steps_a_task: of regression, and of online MNIST where it is not one pass (else 0).
        batch_size: of online MNIST.
        notes: what is to be said.
    """

    settings: Mapping[str, Any]
    steps_a_task: int = 0
    batch_size: int = 1
    notes: tuple[str, ...] = ()


def settings_of(path: Path, study: str) -> Published:
    """What is known of the run whose results are in `<data_dir>/<setting>/<run>`."""
    flip = FLIP_AFTER if study == "slowly_changing_regression" else 0
    given = _given(path)
    try:
        return _known(given, study, flip)
    except (TypeError, ValueError, KeyError):  # there is no such file, or it is none of these studies'
        names = [*reversed(path.resolve().parent.parts[-4:])]
        arm = next((ARMS[name] for name in names if name in ARMS), {"learner": path.parent.name})
        place = "/".join(path.resolve().parent.parts[-3:])
        note = f"{path.parent.parent}: no cfg/*.json says with which settings; names of folders stand for them"
        return Published({**FIXED[study], **arm, "published_results": place}, flip, 1, (note,))


def _known(given: Mapping[str, Any] | None, study: str, flip: int) -> Published:
    """What parameters say; errors of Python's where they are not what they should be."""
    if given is None:
        raise KeyError("no parameters")
    settings = {**FIXED[study], **_learner(given, study), **_network(given, study)}
    if study == "slowly_changing_regression":
        settings["task_shift_mode.flip"] = "one" if given.get("flip_one") else "all"
        return Published(settings, int(given.get("flip_after", flip)))
    if study != "permuted_mnist":
        return Published(settings)
    examples, size = int(given.get("change_after", 60_000)), int(given.get("mini_batch_size", 1))
    settings |= {"batch_size": size, "task_shift_mode.examples_per_task": None if examples == 60_000 else examples}
    return Published(settings, examples // size, size)


def _learner(given: Mapping[str, Any], study: str) -> dict[str, Any]:
    is_perturbed = bool(given.get("perturb_scale")) and bool(given.get("to_perturb", study != "permuted_mnist"))
    if given.get("agent") == "cbp":
        found: dict[str, Any] = {"learner": "continual_backprop"}
        found["learner.replacement_rate"] = given.get("replacement_rate", 1e-4)
    elif is_perturbed:
        found = {"learner": "shrink_and_perturb", "learner.noise_std": given["perturb_scale"]}
    else:
        found = {"learner": "l2" if given.get("weight_decay") else "backprop"}
    return found | {f"learner.{ours}": given[theirs] for theirs, ours in NAMES.items() if theirs in given}


def _network(given: Mapping[str, Any], study: str) -> dict[str, Any]:
    if given.get("agent") == "linear":
        return {"net": "mlp", "net.widths": "[]"}
    if study == "continual_imagenet":
        return {"net": "convnet2" if given.get("net_type") == 2 else "convnet"}
    layers = int(given.get("num_hidden_layers", 1))
    widths = [int(given["num_features"])] * layers if "num_features" in given else None
    activation = str(given.get("hidden_activation", "relu")).lower()
    found = {"net": "mlp", "net.activation": "silu" if activation == "swish" else activation}
    return found | ({} if widths is None else {"net.widths": json.dumps(widths)})


def _given(path: Path) -> dict[str, Any] | None:
    """The parameters of a run as the one file of them says that is meant; None if there is no such file, or several."""
    place, setting = path.resolve().parents[1], path.resolve().parent.name
    if not setting.isdigit():
        return None
    for above in list(place.parents)[:LEVELS]:
        meant = [cfg for cfg in _files(above / "cfg") if above / str(cfg["data_dir"]).strip("/") == place]
        if meant:
            return _combination(meant[0], int(setting)) if len(meant) == 1 else None
    return None


@lru_cache(maxsize=256)
def _files(folder: Path) -> tuple[dict[str, Any], ...]:
    """Files of parameters that name a folder of results; others are passed over."""
    found = []
    for path in sorted(folder.rglob("*.json")) if folder.is_dir() else []:
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and isinstance(content.get("data_dir"), str):
            found.append(content)
    return tuple(found)


def _combination(cfg: Mapping[str, Any], setting: int) -> dict[str, Any] | None:
    """The n-th combination of what is varied, the last list fastest; None if there are fewer."""
    varied = [key for key, value in cfg.items() if isinstance(value, list)]
    combinations = list(itertools.product(*(cfg[key] for key in varied)))
    if setting >= len(combinations):
        return None
    return dict(cfg) | dict(zip(varied, combinations[setting], strict=True))
