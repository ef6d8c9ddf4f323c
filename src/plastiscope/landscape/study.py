"""One call that looks at any network, loss and data: `analyse(Landscape(...))`, results in a folder."""

from collections.abc import Callable
from pathlib import Path

from plastiscope.landscape.connectivity import look_at_connectivity
from plastiscope.landscape.look import Landscape, Look, Numbers, opened
from plastiscope.landscape.planes import look_at_planes
from plastiscope.landscape.robust import look_at_robust
from plastiscope.landscape.settings import described
from plastiscope.landscape.slices import taken
from plastiscope.landscape.spectrum import look_at_spectrum
from plastiscope.run.storage import write_json

PHASES: dict[str, tuple[str, Callable[[Look], Numbers]]] = {
    "spectrum": ("enable_spectrum", look_at_spectrum),
    "planes": ("enable_planes", look_at_planes),
    "sam": ("enable_sam", look_at_robust),
    "mode": ("enable_mode_connectivity", look_at_connectivity),
}
"""Parts of a look in their order: the folder, the setting that enables it, what does it."""


def analyse(landscape: Landscape) -> Numbers:
    """All that the settings enable, into `landscape.folder`, with pictures; returns the numbers by key.

    Killed and called again, it goes on where it was. Where nothing is enabled, nothing is done.

    Raises:
        ConfigError: settings that do not fit, or a forecast above the budget.
    """
    if not landscape.settings.enables_something:
        return {}
    with opened(landscape) as look:
        numbers = everything(look)
        look.work.finish()
    if landscape.processes.is_first:
        draw(landscape.folder)
    return numbers


def everything(look: Look) -> Numbers:
    """All that the settings enable, into files; the numbers by key. The finished parts stay."""
    landscape = look.landscape
    numbers: Numbers = {}
    for name, (toggle, look_at) in PHASES.items():
        if getattr(look.settings, toggle):
            with look.work.phase(name):
                numbers |= look_at(look)
    if look.products:
        numbers["lla_hvp_count"] = float(look.products)
    look.warn(*look.frozen.adaptation.notes)
    if not look.facts.get("absent"):
        look.facts.pop("absent", None)
    if landscape.ids is not None:
        ids = landscape.ids[taken(len(landscape.ids), look.frozen.total_samples)]
        look.work.save("", "evaluation_set", {"ids": ids}, {"samples": len(ids), "sha256": look.frozen.fingerprint})
    if look.work.processes.is_first:
        landscape.folder.mkdir(parents=True, exist_ok=True)
        summary = {
            **look.common(),
            **landscape.about,
            "numbers": numbers,
            "seconds": look.work.seconds,
            **look.facts,
            "settings": described(look.settings),
        }
        write_json(landscape.folder / "summary.json", summary)
    return numbers


def draw(folder: Path) -> list[Path]:
    """Pictures of what a look has written into `folder`, beside it."""
    from plastiscope.figure.landscape import draw as draw_surfaces
    from plastiscope.figure.landscape_spectrum import draw as draw_spectrum

    return draw_surfaces(folder) + draw_spectrum(folder)
