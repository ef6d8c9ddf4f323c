"""The loss on planes through the weights: along eigenvectors, at random, and where the path of the training lies."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plastiscope.landscape.batch_norm import cell_statistics, recomputes, statistics_batches
from plastiscope.landscape.look import Look, Numbers
from plastiscope.landscape.settings import Scale
from plastiscope.landscape.trajectory import path_of
from plastiscope.measure.landscape.direction import cosine, orthogonal, random_direction
from plastiscope.measure.landscape.operator import NonFiniteProduct
from plastiscope.measure.landscape.plane import Plane, Shape, offsets, shape_of
from plastiscope.run.processes import Part

Array = npt.NDArray[np.float64]
ORTHONORMAL_ABOVE = 0.05
"""|cos| of the directions from which a plane is drawn in orthonormal coordinates."""
REPORTED = ("center_loss", "center_stderr", "min_loss", "center_is_min", "quad_ratio", "cos", "nonfinite_fraction")


@dataclass(frozen=True, eq=False)
class Case:
    """One plane that is to be computed.

    Attributes:
        name: of its files.
        kind: hessian, hessian_signed, random, trajectory, three_point.
        plane: the plane.
        piece: names its parts.
        bend: second derivatives of the loss at the centre along both directions, from the Hessian; None = unknown.
        facts: what only this kind reports.
        arrays: what only this kind stores.
    """

    name: str
    kind: str
    plane: Plane
    piece: str
    bend: Callable[[], Sequence[float]] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)


def look_at_planes(look: Look) -> Numbers:
    """Every plane that is asked for into planes/<name>.npz and .json.

    The keys of a kind are `plane_<kind>_<quantity>`; those of random planes are means over them, with the standard
    deviation beside as `..._spread`. Why a plane is absent goes into `look.facts["absent"]`.
    """
    numbers: Numbers = {}
    random: list[dict[str, Any]] = []
    surfaces: list[Array] = []
    for case in cases(look):
        losses = surface(look, case)
        record = save_plane(look, case, losses)
        if case.kind == "random":
            random.append(record)
            surfaces.append(losses)
        else:
            numbers |= numbers_of(case.kind, record)
        if case.kind == "trajectory":
            numbers["plane_trajectory_explained_variance"] = sum(record["explained_variance"])
    if random:
        numbers |= _over_planes(random)
        numbers |= _spread_of(look, surfaces) if len(surfaces) > 1 else {}
    return numbers


def cases(look: Look) -> Iterator[Case]:
    """The planes that are asked for, one at a time; notes why others are absent."""
    settings = look.settings.planes
    assert settings.num_random is not None
    makers: list[tuple[bool, str, Callable[[], Case | str]]] = [
        (settings.include_hessian, "hessian", lambda: _hessian(look)),
        (settings.include_hessian_signed, "hessian_signed", lambda: _hessian(look, is_signed=True)),
        *((settings.include_random, f"random_{k}", lambda k=k: _random(look, k)) for k in range(settings.num_random)),
        (settings.include_trajectory, "trajectory", lambda: _trajectory(look)),
    ]
    for is_wanted, name, make in makers:
        found = make() if is_wanted else None
        if isinstance(found, str):
            look.facts.setdefault("absent", {})[f"planes/{name}"] = found
        elif found is not None:
            yield found


def surface(look: Look, case: Case, batches: list[Tensor] | None = None) -> Array:
    """Loss at every cell, float64 [rows, columns]; a row is a part.

    Args:
        look: the look.
        case: the plane.
        batches: inputs from which statistics of normalisations are estimated in every cell; by the policy of the
            settings where it is None.
    """
    loss = cell_loss(look, case.plane, batches)
    rows = look.work.shared(case.piece, len(case.plane.a), lambda i: {"losses": case.plane.row(i, loss).cpu().numpy()})
    return np.stack([row["losses"] for row in rows])


def cell_loss(look: Look, plane: Plane, batches: list[Tensor] | None = None) -> Callable[[], Tensor]:
    """What gives the loss in a cell, with the statistics of normalisations that count there (see `surface`)."""
    if batches is None and recomputes(look):
        batches = statistics_batches(look)

    def loss() -> Tensor:
        with cell_statistics(look, batches):
            return plane.frozen.value()

    return loss


def save_plane(look: Look, case: Case, losses: Array) -> dict[str, Any]:
    """Write a plane's files; returns its record."""
    record = {**look.common(), **_record(look, case, losses), **case.facts}
    plane = case.plane
    arrays = {"losses": losses, "a": plane.a.numpy(), "b": plane.b.numpy(), "norms": np.array(record["norms"])}
    look.work.save("planes", case.name, {**arrays, **case.arrays}, record)
    return record


def numbers_of(kind: str, record: Mapping[str, Any]) -> Numbers:
    """The numbers of a plane by key; what is unknown has none."""
    found = {f"plane_{kind}_{key}": float(record[key]) for key in REPORTED if record[key] is not None}
    return {key: abs(value) if key.endswith("_cos") else value for key, value in found.items() if math.isfinite(value)}


def _record(look: Look, case: Case, losses: Array) -> dict[str, Any]:
    """What every plane reports."""
    plane, settings = case.plane, look.settings.planes
    shape = shape_of(torch.from_numpy(losses), plane.a, plane.b)
    bend = case.bend() if case.bend is not None else None
    return {
        "kind": case.kind,
        "grid": list(losses.shape),
        **geometry(plane),
        "center_loss": shape.centre,
        "center_stderr": _centre_error(look) if case.kind != "three_point" else None,
        "min_loss": shape.minimum,
        "min_cell": list(shape.cell),
        "center_is_min": shape.centre_is_minimum,
        "nonfinite_fraction": shape.nonfinite,
        **_quadratic(shape, bend),
        "micro_batch": plane.frozen.micro_batch,
        "statistics_anew": recomputes(look) or case.kind == "three_point",
        "cost": {"forwards": losses.size, "products": 2 if case.kind in ("random", "trajectory") else 0},
        "picture": {"log_color": settings.log_color, "plot_3d": settings.plot_3d},
    }


def geometry(plane: Plane) -> dict[str, Any]:
    """How a plane lies: half spans, lengths of the directions and their cosine, and whether it is drawn sheared."""
    cos = cosine(plane.first, plane.second)
    return {
        "span": [plane.a[-1].item(), plane.b[-1].item()],
        "norms": [plane.first.double().norm().item(), plane.second.double().norm().item()],
        "cos": cos,
        "drawn_orthonormal": abs(cos) > ORTHONORMAL_ABOVE,
    }


def _quadratic(shape: Shape, bend: Sequence[float] | None) -> dict[str, Any]:
    """The quadratic through the inner 3 x 3 cells against d^T H d.

    `quad_ratio` is the slope of the least-squares line through the origin of both fitted second derivatives against
    both expected ones: 1 where the loss is quadratic as far as the inner cells reach.
    """
    found: dict[str, Any] = {"curvatures": list(shape.curvatures), "quad_r2": shape.r2, "quad_ratio": None}
    if bend is None:
        return found
    found |= {"expected_curvatures": list(bend)}
    found["quad_ratios"] = [fit / d if d else math.nan for fit, d in zip(shape.curvatures, bend, strict=True)]
    size = sum(d * d for d in bend)
    if size > 0:
        found["quad_ratio"] = sum(fit * d for fit, d in zip(shape.curvatures, bend, strict=True)) / size
    return found


def _centre_error(look: Look) -> float:
    """Standard error of the loss at the weights, from the spread over samples."""

    def compute() -> Part:
        return {"error": np.array(look.frozen.with_micro_batch(look.micro_batch).measure().standard_error)}

    return float(look.work.once("centre", compute)["error"])


def _case(look: Look, kind: str, first: Tensor, second: Tensor, **options: Any) -> Case:
    """A plane through the weights with the span of the settings."""
    settings = look.settings.planes
    assert settings.grid_resolution is not None
    span_a, span_b = options.pop("spans", (settings.half_span, settings.half_span))
    name = options.pop("name", kind)
    n, dtype = settings.grid_resolution, look.weights.dtype
    frozen = look.frozen.with_micro_batch(look.micro_batch)
    plane = Plane(frozen, first.to(dtype), second.to(dtype), offsets(span_a, n), offsets(span_b, n))
    options = {"piece": f"plane_{name}"} | options
    if recomputes(look):  # the Hessian is that of the loss with stored statistics
        options["bend"] = None
    return Case(name, kind, plane, **options)


def _hessian(look: Look, is_signed: bool = False) -> Case | str:
    """The first two eigenvectors, or the most positive and the most negative one."""
    try:
        pairs = look.eigenpairs
    except NonFiniteProduct as error:
        return str(error)
    if len(pairs.values) < 2:
        return "there is one weight: a plane has two directions"
    values, residuals = pairs.values.tolist(), pairs.residuals.tolist()
    chosen = [int(pairs.values.argmax()), int(pairs.values.argmin())] if is_signed else [0, 1]
    last = chosen[1]
    if is_signed and not values[last] < -residuals[last]:
        return f"no eigenvalue is surely negative: the smallest is {values[last]:.3g} +- {residuals[last]:.3g}"
    bends = [values[i] for i in chosen]
    scales, told = _lengths(look, bends)
    is_unique = bool(pairs.is_distinct[chosen].all())
    facts = {
        "eigenvalues": bends,
        "residuals": [residuals[i] for i in chosen],
        "gaps": pairs.gaps[chosen].tolist(),
        "is_unique": is_unique,
        "scale": told,
    }
    if not is_unique:
        facts["warning"] = "an eigenvalue is not told apart from its neighbour: this plane is one of many"
    first, second = (pairs.vectors[i] * scale for i, scale in zip(chosen, scales, strict=True))
    kind = "hessian_signed" if is_signed else "hessian"
    return _case(
        look, kind, first, second, bend=lambda: [v * s * s for v, s in zip(bends, scales, strict=True)], facts=facts
    )


def _lengths(look: Look, values: Sequence[float]) -> tuple[list[float], str]:
    """Lengths of both axes, and in words."""
    is_curved = look.settings.planes.hessian_scale is Scale.curvature
    if is_curved and all(values):
        return [1.0, math.sqrt(abs(values[0] / values[1]))], Scale.curvature.value
    return [1.0, 1.0], Scale.unit.value


def _random(look: Look, k: int) -> Case | str:
    """Random plane k; its directions are those with numbers 2k and 2k + 1."""
    settings, space = look.settings.planes, look.frozen.space
    first, second = (
        random_direction(
            space,
            look.weights,
            seed=look.seed,
            k=2 * k + i,
            normalise=settings.normalization,
            exclude_vectors=settings.bn.exclude_bn_and_bias,
        )
        for i in (0, 1)
    )
    if not first.any() or not second.any():
        return "random directions are zero: all chosen parameters have one dimension, and exclude_bn_and_bias is true"
    if settings.orthogonalize:
        second = orthogonal(second, first)
    facts = {
        "directions": [2 * k, 2 * k + 1],
        "normalization": settings.normalization.value,
        "exclude_bn_and_bias": settings.bn.exclude_bn_and_bias,
        "orthogonalize": settings.orthogonalize,
    }
    name = f"random_{k}"
    return _case(look, "random", first, second, name=name, bend=lambda: _bends(look, name, first, second), facts=facts)


def _bends(look: Look, name: str, first: Tensor, second: Tensor) -> list[float]:
    """d^T H d of both directions."""

    def compute() -> Part:
        directions = torch.stack([first, second])
        try:
            products = look.operator.products(directions)
        except NonFiniteProduct:
            return {"bends": np.full(2, math.nan)}
        return {"bends": (products.double() * directions.double()).sum(1).cpu().numpy()}

    look.products += 2
    return [float(bend) for bend in look.work.once(f"plane_{name}_bends", compute)["bends"]]


def _trajectory(look: Look) -> Case | str:
    """The plane through the weights in which the path varies most."""
    found = path_of(look)
    if isinstance(found, str):
        return found
    first, second = found.directions
    name, mark = "trajectory", found.mark
    case = _case(
        look, name, first, second, spans=found.spans, piece=f"plane_{name}_{mark}",
        bend=lambda: _bends(look, f"{name}_{mark}", first, second),
    )  # fmt: skip
    loss = cell_loss(look, case.plane)

    def on_plane(i: int) -> Part:
        a, b = found.path[i].tolist()
        return {"loss": case.plane.point(a, b, loss).cpu().numpy()}

    losses = look.work.shared(f"plane_losses_{mark}", len(found.path), on_plane)
    facts = {
        "points": list(found.names),
        "here": found.here,
        "explained_variance": found.explained.tolist(),
        "second_axis": "random, orthogonal to the first: the points lie on a line" if found.is_second_random else "PCA",
        "units": "distance in weight space",
    }
    arrays = {
        "path": found.path,
        "residuals": found.residuals,
        "true_losses": found.true[:, 0],
        "true_stderr": found.true[:, 1],
        "true_accuracy": found.true[:, 2],
        "plane_losses": np.array([float(part["loss"]) for part in losses]),
    }
    return Case(name, name, case.plane, case.piece, case.bend, facts, arrays)


def _over_planes(records: Sequence[Mapping[str, Any]]) -> Numbers:
    """Means over the random planes, and their standard deviations where there are several."""
    each = [numbers_of("random", record) for record in records]
    found: Numbers = {}
    for key in each[0]:
        values = [numbers[key] for numbers in each if key in numbers]
        found[key] = float(np.mean(values))
        if len(values) > 1 and "center_" not in key:
            found[f"{key}_spread"] = float(np.std(values, ddof=1))
    return found


def _spread_of(look: Look, surfaces: Sequence[Array]) -> Numbers:
    """Mean and standard deviation of every cell over the random planes, into planes/random_spread.npz and .json."""
    mean, spread = np.mean(surfaces, axis=0), np.std(surfaces, axis=0, ddof=1)
    known = spread[np.isfinite(spread)]
    found = {"plane_random_loss_spread": float(known.mean())} if known.size else {}
    facts = {**look.common(), "planes": len(surfaces), **found}
    look.work.save("planes", "random_spread", {"mean": mean, "spread": spread}, facts)
    return found
