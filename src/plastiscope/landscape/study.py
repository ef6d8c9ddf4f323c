"""One call that looks at any network, loss and data: `analyse(Landscape(...))`, results in a folder."""

from plastiscope.landscape.connectivity import look_at_connectivity
from plastiscope.landscape.look import Landscape, Numbers, opened
from plastiscope.landscape.planes import look_at_planes
from plastiscope.landscape.robust import look_at_robust
from plastiscope.landscape.settings import described
from plastiscope.landscape.spectrum import look_at_spectrum
from plastiscope.run.storage import write_json


def analyse(landscape: Landscape, *, keep_parts: bool = False) -> Numbers:
    """All that the settings enable, into `landscape.folder`; returns the numbers by key.

    With `keep_parts` the finished parts stay, so that the same call finds them again.
    """
    numbers: Numbers = {}
    with opened(landscape) as look:
        if look.settings.enable_spectrum:
            with look.work.phase("spectrum"):
                numbers |= look_at_spectrum(look)
        if look.settings.enable_planes:
            with look.work.phase("planes"):
                numbers |= look_at_planes(look)
        if look.settings.enable_sam:
            with look.work.phase("sam"):
                numbers |= look_at_robust(look)
        if look.settings.enable_mode_connectivity:
            with look.work.phase("mode"):
                numbers |= look_at_connectivity(look)
        if look.work.processes.is_first:
            landscape.folder.mkdir(parents=True, exist_ok=True)
            summary = {
                "settings": described(look.settings),
                "numbers": numbers,
                "seconds": look.work.seconds,
                **look.facts,
                **look.common(),
                **landscape.about,
            }
            write_json(landscape.folder / "summary.json", summary)
        if not keep_parts:
            look.work.finish()
    return numbers
