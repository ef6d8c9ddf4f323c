"""Spectrum of the Hessian at the weights: extreme eigenpairs, trace, density."""

from plastiscope.landscape.look import Look, Numbers


def look_at_spectrum(look: Look) -> Numbers:
    """Top eigenvalues into spectrum/eigenvalues.npz and .json."""
    settings = look.settings.spectrum
    assert settings.top_k is not None
    top = settings.top_k

    pairs = look.eigenpairs
    found = {"values": pairs.values.numpy(), "residuals": pairs.residuals.numpy()}
    look.work.save("spectrum", "eigenvalues", found, look.common())
    return {f"hessian_top_eig_{i + 1}": float(found["values"][i]) for i in range(min(top, pairs.num_top))}
