"""Spectrum of the Hessian at the weights: extreme eigenpairs, trace, density."""

import math
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plastiscope.landscape import second_engine
from plastiscope.landscape.look import Look, Numbers
from plastiscope.landscape.settings import Engine
from plastiscope.measure.landscape.density import Quadrature, mean_and_error, scalars, smoothed
from plastiscope.measure.landscape.krylov import krylov, random_signs
from plastiscope.measure.landscape.trace import PURPOSE, Deflation, Estimate, Probe, Trace, draw, probe_of, trace_of
from plastiscope.run.processes import Part

PART = "spectrum"


def look_at_spectrum(look: Look) -> Numbers:
    """Eigenvalues, trace and density into spectrum/{eigenvalues,trace,density}.npz and .json.

    With engine=pyhessian eigenvalues and trace are PyHessian's, in spectrum/pyhessian.*; the density is always ours.
    What is not known (an error of one probe) has no number, and why there is none at all goes into `look.facts`.
    """
    if look.checked["fault"]:
        look.facts.setdefault("absent", {})[PART] = look.checked["fault"]
        return {}
    settings, deflation = look.settings.spectrum, None
    numbers = {"param_norm": look.weights.double().norm().item()}
    is_ours = settings.engine is Engine.native or settings.cross_check
    if is_ours:
        numbers |= _eigenvalues(look)
        pairs = look.eigenpairs
        deflation = Deflation(pairs.vectors, pairs.images)
    runs, probes, orthogonality_error = _density_runs(look, deflation)
    if is_ours:
        probes += _further_probes(look, deflation, len(probes))
        trace = trace_of(probes, deflation)
        numbers |= _trace(look, trace, probes)
    if not is_ours or settings.cross_check:
        found = second_engine.opinion(look)
        second_engine.save(look, found, record(look, len(found.values), Engine.pyhessian))
        numbers |= second_engine.compare(look, found, trace.trace) if is_ours else {}
        numbers |= second_engine.numbers_of(look, found) if settings.engine is Engine.pyhessian else {}
    numbers |= _density(look, runs, orthogonality_error)
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


def record(look: Look, products: int, engine: Engine = Engine.native) -> dict[str, Any]:
    """What the record of a spectrum carries beside what all records do."""
    operator = look.operator
    about = {"engine": engine.value, "backend": operator.backend.value, "micro_batch": operator.frozen.micro_batch}
    return {**look.common(), **about, "products": products, "param_norm": look.weights.double().norm().item()}


def _eigenvalues(look: Look) -> Numbers:
    """The pairs that were asked for; planes may have needed more."""
    settings, pairs = look.settings.spectrum, look.eigenpairs
    assert settings.top_k is not None
    top, bottom = min(settings.top_k, pairs.num_top), min(settings.bottom_k, len(pairs.values) - pairs.num_top)
    chosen = [*range(top), *range(len(pairs.values) - bottom, len(pairs.values))]
    names = ("values", "residuals", "gaps", "converged", "is_distinct")
    arrays = {name: getattr(pairs, name)[chosen].numpy() for name in names}
    lines = [
        {"end": "top" if i < top else "bottom", **{name: array[i].item() for name, array in arrays.items()}}
        for i in range(len(chosen))
    ]
    facts = record(look, pairs.products) | {
        "order": settings.order.value,
        "tol": settings.tol,
        "eigenpairs": lines,
        "steps": pairs.steps,
        "orthogonality_error": pairs.orthogonality_error,
        "is_plane_unique": pairs.is_plane_unique,
        "guarantee": "an exact eigenvalue lies within the residual of each value",
    }
    look.work.save(PART, "eigenvalues", {**arrays, "num_top": np.array(top)}, facts)
    numbers = {"hessian_eig_converged": float(arrays["converged"].all())}
    for i in range(top):
        numbers[f"hessian_top_eig_{i + 1}"] = float(arrays["values"][i])
        numbers[f"hessian_top_eig_{i + 1}_residual"] = float(arrays["residuals"][i])
    for i, value in enumerate(arrays["values"][top:][::-1]):
        numbers[f"hessian_bottom_eig_{i + 1}"] = float(value)
    return numbers


def _density_runs(look: Look, deflation: Deflation | None) -> tuple[list[Quadrature], list[Probe], float]:
    """Runs of the density, whose starts are probes of the trace; and the largest orthogonality error."""
    esd, operator = look.settings.spectrum.esd, look.operator
    assert esd.num_probes is not None and esd.lanczos_steps is not None
    steps = esd.lanczos_steps

    def run(k: int) -> Part:
        start = random_signs(look.seed, PURPOSE, k, operator)
        process = krylov(operator, start, steps, look.room())
        quadrature = Quadrature.of(process)
        found = {"nodes": quadrature.nodes.numpy(), "weights": quadrature.weights.numpy()}
        error = np.array(process.orthogonality_error())
        return found | _packed(probe_of(process, start, deflation)) | {"orthogonality_error": error}

    parts = look.work.shared("density", esd.num_probes, run)
    operator.release()
    look.products += sum(len(part["nodes"]) for part in parts)
    worst = max(float(part["orthogonality_error"]) for part in parts)
    runs = [Quadrature(torch.from_numpy(part["nodes"]), torch.from_numpy(part["weights"])) for part in parts]
    return runs, [_unpacked(part) for part in parts], worst


def _further_probes(look: Look, deflation: Deflation | None, known: int) -> list[Probe]:
    """Probes of the trace beyond those of the density."""
    count = look.settings.spectrum.hutchinson_probes
    assert count is not None

    def probe(i: int) -> Part:
        return _packed(draw(look.operator, look.seed, known + i, deflation))

    parts = look.work.shared("probes", max(count - known, 0), probe)
    look.products += len(parts)
    return [_unpacked(part) for part in parts]


def _trace(look: Look, found: Trace, probes: list[Probe]) -> Numbers:
    """The trace with its uncertainty, and what follows from it and the top eigenvalues."""
    settings = look.settings.spectrum
    assert settings.top_k is not None
    layers = dict(zip(look.frozen.space.names, found.layers, strict=True))
    facts = record(look, len(probes)) | {
        "trace": _told(found.trace),
        "trace_without_deflation": _told(found.plain),
        "deflated_eigenpairs": len(look.eigenpairs.values),
        "layers": {name: _told(estimate) for name, estimate in layers.items()},
        "frobenius2": _told(found.frobenius2),
        "effective_rank": _told(found.effective_rank),
    }
    arrays = {name: np.array([getattr(probe, name) for probe in probes]) for name in ("plain", "deflated", "norm2")}
    look.work.save(PART, "trace", {**arrays, "blocks": torch.stack([p.blocks for p in probes])}, facts)
    trace, top = found.trace, look.eigenpairs.top[: settings.top_k].sum().item()
    numbers = {
        "hessian_trace_estimate": trace.value,
        "hessian_trace_stderr": trace.standard_error,
        "hessian_trace_probes": float(trace.n),
        "hessian_partial_topk_sum": top,
        "hessian_fro2": found.frobenius2.value,
        "hessian_fro2_stderr": found.frobenius2.standard_error,
    }
    if found.is_known:
        numbers["hessian_trace_fraction_topk"] = top / trace.value
        numbers["hessian_effective_rank"] = found.effective_rank.value
        numbers["hessian_effective_rank_stderr"] = found.effective_rank.standard_error
    return numbers


def _density(look: Look, runs: list[Quadrature], orthogonality_error: float) -> Numbers:
    """Nodes, a smoothed density for pictures, and the published scalars."""
    esd = look.settings.spectrum.esd
    density = smoothed(runs, esd.bins)
    numbers = scalars(runs, density, esd.zero_tol, esd.n_kh)
    eps = esd.zero_tol * max(run.nodes.abs().max().item() for run in runs)
    facts = record(look, sum(len(run.nodes) for run in runs), Engine.native) | {
        "num_probes": len(runs),
        "lanczos_steps": [len(run.nodes) for run in runs],
        "orthogonality_error": orthogonality_error,
        "sigma": density.sigma,
        "grid_mass": density.mass,
        "zero_band": eps,
        "moments": [_pair(*mean_and_error(runs, partial(Quadrature.moment, k=k))) for k in range(1, 5)],
        "near_zero": _pair(*mean_and_error(runs, lambda run: run.weights[run.nodes.abs() <= eps].sum().item())),
        "negative_mass": _pair(*mean_and_error(runs, lambda run: run.weights[run.nodes < -eps].sum().item())),
        "scalars": numbers,
        "smoothing": "Gaussian, a choice of the picture; counts and K_hn depend on lanczos_steps",
    }
    arrays: dict[str, Tensor] = {name: getattr(density, name) for name in ("grid", "values", "cumulative", "band")}
    arrays |= {name: torch.cat([getattr(run, name) for run in runs]) for name in ("nodes", "weights")}
    arrays["run"] = torch.cat([torch.full((len(run.nodes),), k) for k, run in enumerate(runs)])
    look.work.save(PART, "density", arrays, facts)
    return numbers


def _told(estimate: Estimate) -> dict[str, Any]:
    return {**asdict(estimate), "interval_95": list(estimate.interval())}


def _pair(value: float, error: float) -> dict[str, float]:
    return {"value": value, "standard_error": error}


def _packed(probe: Probe) -> Part:
    return {"blocks": probe.blocks.numpy(), "probe": np.array([probe.plain, probe.deflated, probe.norm2])}


def _unpacked(part: Part) -> Probe:
    plain, deflated, norm2 = part["probe"].tolist()
    return Probe(plain, deflated, norm2, torch.from_numpy(part["blocks"]))
