"""PyHessian in a look: in place of our own top eigenvalues and trace, or beside them as a cross-check."""

from typing import Any

import numpy as np
import torch

from plastiscope.landscape.look import Look, Numbers
from plastiscope.measure.landscape.pyhessian_engine import (
    EIGENVALUE_GATE,
    POWER_ITERATIONS,
    TRACE_GATE,
    SecondOpinion,
    cross_check,
    second_opinion,
)
from plastiscope.measure.landscape.trace import Estimate
from plastiscope.run.processes import Part


def opinion(look: Look) -> SecondOpinion:
    """PyHessian's eigenvalues and trace; one process asks, all know. Its vectors are not kept."""
    settings = look.settings.spectrum
    assert settings.top_k is not None and settings.hutchinson_probes is not None
    top, probes = settings.top_k, settings.hutchinson_probes
    power_iters = settings.power_iters or POWER_ITERATIONS

    def ask() -> Part:
        found = second_opinion(look.frozen, top=top, probes=probes, seed=look.seed, power_iters=power_iters)
        return {name: getattr(found, name).numpy() for name in ("values", "residuals", "samples")}

    look.operator.release()
    part = {name: torch.from_numpy(array) for name, array in look.work.once("pyhessian", ask).items()}
    look.products += len(part["values"])  # those of the residuals; PyHessian does not count its own
    return SecondOpinion(
        **part, vectors=torch.empty(0, look.frozen.space.dimension), trace=Estimate.of(part["samples"])
    )


def numbers_of(look: Look, found: SecondOpinion) -> Numbers:
    """Top eigenvalues and trace under the keys of our own."""
    largest = found.values.abs().max().item() if len(found.values) else 0.0
    converged = (found.residuals <= look.settings.spectrum.tol * largest).all()
    numbers = {"hessian_eig_converged": float(converged)}
    for i, (value, residual) in enumerate(zip(found.values.tolist(), found.residuals.tolist(), strict=True)):
        numbers |= {f"hessian_top_eig_{i + 1}": value, f"hessian_top_eig_{i + 1}_residual": residual}
    trace, top = found.trace, found.values.sum().item()
    numbers |= {
        "hessian_trace_estimate": trace.value,
        "hessian_trace_stderr": trace.standard_error,
        "hessian_trace_probes": float(trace.n),
        "hessian_partial_topk_sum": top,
    }
    if abs(trace.value) >= 2 * trace.standard_error:
        numbers["hessian_trace_fraction_topk"] = top / trace.value
    return numbers


def compare(look: Look, found: SecondOpinion, trace: Estimate) -> Numbers:
    """How far PyHessian is from our own eigenvalues and `trace`; a warning where it is outside the gates."""
    crossed = cross_check(look.eigenpairs, trace, found)
    if not crossed.agrees:
        look.warn(
            f"PyHessian and we do not agree: eigenvalues differ by {crossed.eigenvalue:.1e} "
            f"(gate {EIGENVALUE_GATE:g}), traces by {crossed.trace_z:.1f} standard errors (gate {TRACE_GATE:g})"
        )
    look.facts["cross_check"] = {"agrees": crossed.agrees, "compared_eigenvalues": crossed.compared}
    return {"hessian_crosscheck_eig_rel": crossed.eigenvalue, "hessian_crosscheck_trace_z": crossed.trace_z}


def save(look: Look, found: SecondOpinion, about: dict[str, Any]) -> None:
    """Write spectrum/pyhessian.npz and .json."""
    settings = look.settings.spectrum
    facts = about | {
        "power_iters": settings.power_iters or POWER_ITERATIONS,
        "eigenvalues": [
            {"values": value, "residuals": residual}
            for value, residual in zip(found.values.tolist(), found.residuals.tolist(), strict=True)
        ],
        "trace": {"value": found.trace.value, "standard_error": found.trace.standard_error, "n": found.trace.n},
        "order": "magnitude",
        "not_offered": "the density: PyHessian's fails on a current torch, so it is always our own",
    }
    arrays = {"values": found.values, "residuals": found.residuals, "samples": found.samples}
    look.work.save("spectrum", "pyhessian", {name: np.asarray(array) for name, array in arrays.items()}, facts)
