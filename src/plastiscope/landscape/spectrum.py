"""Spectrum of the Hessian at the weights: extreme eigenpairs, trace, density."""

from plastiscope.landscape.look import Look, Numbers
from plastiscope.measure.landscape.eigenpairs import extreme_eigenpairs
from plastiscope.run.processes import Part


def look_at_spectrum(look: Look) -> Numbers:
    """Top eigenvalues into spectrum/eigenvalues.npz and .json."""
    settings = look.settings.spectrum
    assert settings.top_k is not None
    top = settings.top_k

    def compute() -> Part:
        pairs = extreme_eigenpairs(
            look.operator, top, settings.bottom_k, seed=look.seed, tol=settings.tol, order=settings.order
        )
        return {"values": pairs.values.numpy(), "residuals": pairs.residuals.numpy()}

    found = look.work.once("eigenpairs", compute)
    look.work.save("spectrum", "eigenvalues", found, look.common())
    return {f"hessian_top_eig_{i + 1}": float(found["values"][i]) for i in range(settings.top_k)}
