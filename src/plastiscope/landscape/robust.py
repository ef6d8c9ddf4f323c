"""The robust (SAM) surface: the worst loss in a small ball around some cells of every plane that was computed."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plastiscope.landscape.batch_norm import cell_statistics, recomputes, statistics_batches
from plastiscope.landscape.look import Look, Numbers
from plastiscope.landscape.planes import Array, Case, cases, geometry, surface
from plastiscope.measure.landscape.plane import Ascent, robust_loss, strided
from plastiscope.run.processes import Part


def look_at_robust(look: Look) -> Numbers:
    """The robust loss at the chosen cells of each plane, into sam/<name>.npz and .json.

    `sam_center_*` are of the weights, which every plane has; `sam_mean_gap` and `sam_max_gap` are over the finite
    cells of all planes, and `sam_<kind>_...` over those of one kind.
    """
    if not look.settings.enable_planes:
        look.facts.setdefault("absent", {})["sam"] = "the robust surface is of planes: set enable_planes=true too"
        return {}
    gaps: dict[str, list[Array]] = {}
    numbers: Numbers = {}
    for case in cases(look):
        arrays = _surface(look, case)
        record = _record(look, case, arrays)
        look.work.save("sam", case.name, arrays, {**look.common(), **record})
        gaps.setdefault(case.kind, []).append(arrays["gap"])
        numbers |= {"sam_center_gap": record["center_gap"], "sam_center_grad_norm": record["center_grad_norm"]}
    for kind, found in gaps.items():
        numbers |= _over_cells(f"sam_{kind}", found)
    numbers |= _over_cells("sam", [gap for found in gaps.values() for gap in found])
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


def _surface(look: Look, case: Case) -> dict[str, Array]:
    """L_rho, L, ||g||, gap and stationary cells; a row of the chosen cells is a part.

    L is the plane's own, which is the same bits.
    """
    settings, plane = look.settings.sam, case.plane
    assert settings.subsample_stride is not None
    rows, columns = (strided(len(axis), settings.subsample_stride) for axis in (plane.a, plane.b))
    plain = torch.from_numpy(surface(look, case))
    batches = statistics_batches(look) if recomputes(look) else None
    kind = Ascent.adaptive if settings.adaptive else Ascent.plain

    def row(k: int) -> Part:
        known = iter(plain[rows[k]][columns].to(look.weights.device))

        def at() -> Tensor:
            with cell_statistics(look, batches):
                return robust_loss(
                    plane.frozen, settings.rho, kind, settings.steps, next(known), settings.starts, look.seed
                )

        return {"found": plane.row(rows[k], at, columns).cpu().numpy()}

    parts = look.work.shared(f"sam_{case.piece}", len(rows), row)
    worst, here, norms = np.moveaxis(np.stack([part["found"] for part in parts]), -1, 0)
    with np.errstate(invalid="ignore"):  # infinite minus infinite
        gap = worst - here
    return {
        "worst": worst,
        "losses": here,
        "gap": gap,
        "gradient_norms": norms,
        "stationary": norms == 0,
        "a": plane.a[rows].numpy(),
        "b": plane.b[columns].numpy(),
        "norms": np.array([direction.double().norm().item() for direction in (plane.first, plane.second)]),
    }


def _record(look: Look, case: Case, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """What is said of one surface."""
    settings, (n, m) = look.settings.sam, arrays["gap"].shape
    centre = n // 2, m // 2
    return {
        "kind": case.kind,
        "rho": settings.rho,
        "adaptive": settings.adaptive,
        "steps": settings.steps,
        "starts": settings.starts,
        "subsample_stride": settings.subsample_stride,
        "grid": [n, m],
        **geometry(case.plane),
        "center_gap": float(arrays["gap"][centre]),
        "center_grad_norm": float(arrays["gradient_norms"][centre]),
        "center_loss": float(arrays["losses"][centre]),
        "stationary_cells": int(arrays["stationary"].sum()),
        "nonfinite_fraction": float((~np.isfinite(arrays["worst"])).mean()),
        "micro_batch": case.plane.frozen.micro_batch,
        "bound": "a lower bound of the maximum in the ball, by gradient ascent",
        "cost": {"gradients": n * m * (settings.steps + settings.starts - 1), "forwards": n * m * settings.starts},
        "picture": {"log_color": look.settings.planes.log_color, "plot_3d": look.settings.planes.plot_3d},
        **case.facts,
    }


def _over_cells(prefix: str, gaps: list[Array]) -> Numbers:
    """Mean and maximum over the finite cells."""
    known = np.concatenate([gap[np.isfinite(gap)] for gap in gaps]) if gaps else np.empty(0)
    return {f"{prefix}_mean_gap": float(known.mean()), f"{prefix}_max_gap": float(known.max())} if known.size else {}
