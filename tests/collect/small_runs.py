"""Run folders with given numbers, for tests of what is made of many runs."""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Rows = Sequence[Mapping[str, Any]]


def write_run(
    folder: Path,
    rows: Rows,
    state: str = "done",
    timings: Rows = (),
    about: Mapping[str, Any] | None = None,
    **blocks: Any,
) -> Path:
    """A run folder; `blocks` are top-level settings, components as (target, settings)."""
    folder.mkdir(parents=True)
    config = {"seed": 0, "epochs": 2, "num_tasks": 3, **blocks}
    for key, value in config.items():
        if isinstance(value, tuple):
            config[key] = {"_target_": value[0], **value[1]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "run.json").write_text(json.dumps({"overrides": [], **(about or {})}))
    (folder / "status.json").write_text(json.dumps({"state": state}))
    for name, some in (("metrics", rows), ("timings", timings)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


def learner(name: str, **settings: Any) -> tuple[str, dict[str, Any]]:
    """The block of a learner of ours."""
    return f"plastiscope.learner.{name}.{name.title().replace('_', '')}", settings


def analysis(name: str, **settings: Any) -> tuple[str, dict[str, Any]]:
    """The block of an analysis of ours."""
    return f"plastiscope.analysis.{name}.{name.title()}", {"every": 1, **settings}


def epochs(epochs_per_task: int, **numbers: Sequence[float]) -> list[dict[str, Any]]:
    """Rows of epochs; each number has a value an epoch."""
    n = len(next(iter(numbers.values())))
    return [
        {"kind": "epoch", "global_epoch": e, "task_idx": e // epochs_per_task, "epoch": e % epochs_per_task}
        | {name: values[e] for name, values in numbers.items()}
        for e in range(n)
    ]


def ends(epochs_per_task: int, numbers: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Rows of task ends; each number has a value a task."""
    n = len(next(iter(numbers.values())))
    return [
        {"kind": "task_end", "global_epoch": (k + 1) * epochs_per_task - 1, "task_idx": k}
        | {name: values[k] for name, values in numbers.items()}
        for k in range(n)
    ]


def write_bins(folder: Path, task: int, presentations: Sequence[int], **values: Sequence[float]) -> None:
    """What analysis=online leaves of a task."""
    place = folder / f"task_{task:04d}_mlp" / "online"
    place.mkdir(parents=True)
    arrays = {name: np.array(row, np.float64) for name, row in values.items()}
    np.savez(place / "bins.npz", presentations=np.array(presentations, np.int64), **arrays)


def write_results(
    root: Path, data_dir: str, setting: int, run: int, content: Any, cfg: Mapping[str, Any] | None = None,
    protocol: int = 4,
) -> Path:  # fmt: skip
    """A file as the published programs leave it, and their file of parameters."""
    path = root / data_dir / str(setting) / str(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
    if cfg is not None:
        (root / "cfg").mkdir(exist_ok=True)
        (root / "cfg" / f"{data_dir.replace('/', '_')}.json").write_text(
            json.dumps({"data_dir": f"{data_dir}/", **cfg})
        )
    return path
