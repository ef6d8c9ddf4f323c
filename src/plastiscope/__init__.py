"""plastiscope: an instrument for watching a network lose, or keep, its ability to learn."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plastiscope.load import LoadedRun, load_run

__all__ = ["LoadedRun", "load_run"]


def __getattr__(name: str) -> Any:
    """Load what reads run folders only when it is asked for: importing plastiscope itself costs nothing."""
    if name in __all__:
        from plastiscope import load

        return getattr(load, name)
    raise AttributeError(f"module 'plastiscope' has no attribute '{name}'")
