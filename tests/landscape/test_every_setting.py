"""Each setting of a look is read by somebody: with another value of it, the files differ, and not only in the settings.

What says which samples, points and ends there are (fixed_eval_seed, split, max_checkpoints, endpoints, run) belongs to
the runs' analysis and is tested with it, the budget with the forecast, shard_data with two processes.
"""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from landscape.look_cases import looked, normed
from plastiscope.landscape.look import Landscape
from plastiscope.landscape.settings import (
    BackendChoice,
    BatchNormPolicy,
    Engine,
    LandscapeSettings,
    Profile,
    Scale,
    with_value,
)
from plastiscope.measure.landscape.direction import Normalise
from plastiscope.measure.landscape.eigenpairs import Order

ELSEWHERE = {
    *("evaluation_data.fixed_eval_seed", "evaluation_data.split", "planes.max_checkpoints"),
    *("mode_connectivity.endpoints", "mode_connectivity.run", "budget.max_seconds", "shard_data"),
    "budget.abort_if_estimated_hours_over",
}
SPECTRUM, PLANES, SAM, MODE = ("enable_spectrum", "enable_planes", "enable_sam", "enable_mode_connectivity")
OTHERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    SPECTRUM: (False, (SPECTRUM, PLANES)),
    PLANES: (False, (SPECTRUM, PLANES)),
    SAM: (False, (PLANES, SAM)),
    MODE: (False, (PLANES, MODE)),
    "profile": (Profile.quick, (SPECTRUM,)),
    "params": ("no_bias_bn", (SPECTRUM,)),
    "dtype": ("float32", (SPECTRUM,)),
    "evaluation_data.num_samples": (30, (PLANES,)),
    "evaluation_data.eval_batch_size": (8, (PLANES,)),
    "loss.include_weight_decay": (True, (PLANES,)),
    "bn.policy": (BatchNormPolicy.recompute, (PLANES,)),
    "planes.grid_resolution": (5, (PLANES,)),
    "planes.span": (0.25, (PLANES,)),
    "planes.normalization": (Normalise.layer, (PLANES,)),
    "planes.bn.exclude_bn_and_bias": (False, (PLANES,)),
    "planes.include_hessian": (False, (PLANES,)),
    "planes.include_hessian_signed": (True, (PLANES,)),
    "planes.include_random": (False, (PLANES,)),
    "planes.include_trajectory": (False, (PLANES,)),
    "planes.num_random": (2, (PLANES,)),
    "planes.orthogonalize": (True, (PLANES,)),
    "planes.hessian_scale": (Scale.curvature, (PLANES,)),
    "planes.plot_3d": (False, (PLANES,)),
    "planes.log_color": (True, (PLANES,)),
    "spectrum.engine": (Engine.pyhessian, (SPECTRUM,)),
    "spectrum.backend": (BackendChoice.retained, (SPECTRUM,)),
    "spectrum.top_k": (3, (SPECTRUM,)),
    "spectrum.bottom_k": (1, (SPECTRUM,)),
    "spectrum.tol": (0.3, (SPECTRUM,)),
    "spectrum.order": (Order.magnitude, (SPECTRUM,)),
    "spectrum.max_steps": (7, (SPECTRUM,)),
    "spectrum.power_iters": (2, (SPECTRUM, "spectrum.cross_check")),
    "spectrum.hutchinson_probes": (6, (SPECTRUM,)),
    "spectrum.esd.num_probes": (3, (SPECTRUM,)),
    "spectrum.esd.lanczos_steps": (8, (SPECTRUM,)),
    "spectrum.esd.bins": (50, (SPECTRUM,)),
    "spectrum.esd.n_kh": (1.0, (SPECTRUM,)),
    "spectrum.esd.zero_tol": (0.1, (SPECTRUM,)),
    "spectrum.cross_check": (True, (SPECTRUM,)),
    "sam.rho": (0.1, (PLANES, SAM)),
    "sam.subsample_stride": (1, (PLANES, SAM)),
    "sam.adaptive": (True, (PLANES, SAM)),
    "sam.steps": (2, (PLANES, SAM)),
    "sam.starts": (2, (PLANES, SAM)),
    "mode_connectivity.curve_points": (5, (MODE,)),
    "mode_connectivity.opt_steps": (4, (MODE,)),
    "mode_connectivity.lr": (0.01, (MODE,)),
    "mode_connectivity.bn_samples": (22, (MODE,)),
}
"""By key: another value, and what is on."""


def keys(settings: Any, prefix: str = "") -> list[str]:
    found = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        found += keys(value, f"{prefix}{field.name}.") if is_dataclass(value) else [f"{prefix}{field.name}"]
    return found


def base(on: tuple[str, ...]) -> LandscapeSettings:
    settings = LandscapeSettings(profile=Profile.smoke, dtype="float64")
    for key in (MODE, SAM, SPECTRUM, PLANES, "spectrum.cross_check"):
        settings = with_value(settings, key, key in on)
    small = {"planes.grid_resolution": 3, "mode_connectivity.curve_points": 3, "mode_connectivity.opt_steps": 2}
    for key, value in {**small, "spectrum.backend": BackendChoice.rebuilt}.items():
        settings = with_value(settings, key, value)
    return settings


def look(folder: Path, settings: LandscapeSettings) -> tuple[dict[str, bytes], dict[str, float]]:
    """Files and numbers."""
    landscape: Landscape = normed(folder, settings=settings, weight_decay=0.1)
    assert landscape.start is not None
    numbers = looked(replace(landscape, path=[landscape.start]))
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*") if p.name != "summary.json"}
    return files, numbers


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[tuple[str, ...], tuple[dict[str, bytes], dict[str, float]]]:
    """Looks with the settings that the others differ from, by what is on."""
    return {on: look(tmp_path_factory.mktemp("base") / "look", base(on)) for on in {on for _, on in OTHERS.values()}}


def test_every_setting_is_here_or_elsewhere():
    assert set(keys(LandscapeSettings())) == OTHERS.keys() | ELSEWHERE


def test_equal_settings_give_equal_files(bases, tmp_path):
    for on in ((PLANES, SAM), (MODE,), (SPECTRUM,)):
        assert look(tmp_path / "-".join(on), base(on)) == bases[on]


@pytest.mark.parametrize("key", OTHERS)
def test_another_value_gives_other_files(bases, tmp_path, key):
    value, on = OTHERS[key]
    files, _ = look(tmp_path / "look", with_value(base(on), key, value))
    assert files != bases[on][0]
