"""What a look will cost, before it starts; and the same look cut down until it fits into a budget."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from plastiscope.error import ConfigError
from plastiscope.landscape.eigenvectors import most_steps, wanted
from plastiscope.landscape.routes import Routes
from plastiscope.landscape.settings import Engine, LandscapeSettings, value_at, with_value

CUTS = (
    ("spectrum.esd.num_probes", 2, 1),
    ("spectrum.esd.lanczos_steps", 10, 1),
    ("spectrum.max_steps", 20, 1),
    ("planes.grid_resolution", 5, 2),
    ("evaluation_data.num_samples", 32, 1),
    ("spectrum.hutchinson_probes", 4, 1),
    ("spectrum.top_k", 2, 1),
)
"""What a budget cuts, in this order: key, smallest value, step."""


@dataclass(frozen=True)
class Scene:
    """What a look has to do with, beside its settings.

    Attributes:
        samples: N, at most.
        dimension: D.
        itemsize: bytes of a weight.
        path: whether there is a path for a trajectory plane.
        start: whether there is another end for curves.
        processes: that share the work.
    """

    samples: int
    dimension: int
    itemsize: int
    path: bool
    start: bool
    processes: int = 1


@dataclass(frozen=True)
class Forecast:
    """Evaluations over the whole set, at most; seconds, by what they took when they were timed; bytes of vectors.

    Attributes:
        products: with the Hessian.
        forwards: losses.
        gradients: gradients.
        seconds: of all of them, shared by the processes.
        memory: of the vectors of Lanczos processes, of directions and of weights, without graphs.
        phases: seconds of each phase.
    """

    products: int
    forwards: int
    gradients: int
    seconds: float
    memory: int
    phases: dict[str, float]

    @property
    def facts(self) -> dict[str, Any]:
        """As plain containers."""
        return asdict(self)

    def told(self) -> str:
        """In a line."""
        return (
            f"at most {self.products} products with the Hessian, {self.forwards} losses and {self.gradients} gradients "
            f"over the set: about {_duration(self.seconds)}, {self.memory / 1e9:.2g} GB of vectors"
        )


def forecast(settings: LandscapeSettings, routes: Routes, scene: Scene) -> Forecast:
    """The cost of a look under filled-in settings."""
    samples = min(settings.evaluation_data.num_samples or scene.samples, scene.samples)
    share = samples / routes.samples / scene.processes
    cells, robust, planes = _cells(settings, scene)
    products = {"eigenpairs": planned_pairs(settings, scene.dimension), "spectrum": planned_probes(settings, scene)}
    products["planes"] = 2 * planes
    sam = settings.sam
    forwards = {"planes": cells, "sam": robust * sam.starts, "mode": 0}
    gradients = {"sam": robust * (sam.steps + sam.starts - 1), "mode": 0}
    if settings.enable_mode_connectivity and scene.start:
        assert settings.mode_connectivity.curve_points is not None
        forwards["mode"] = 2 * 5 * settings.mode_connectivity.curve_points
        gradients["mode"] = 2 * settings.mode_connectivity.opt_steps
    phases = {name: count * routes.product * share for name, count in products.items()}
    for counts, cost in ((forwards, routes.forward), (gradients, routes.gradient)):
        for name, count in counts.items():
            phases[name] = phases.get(name, 0.0) + count * cost * share
    for name, rows in _kept_rows(settings, scene).items():
        phases[name] += rows * routes.row
    return Forecast(
        products=sum(products.values()),
        forwards=sum(forwards.values()),
        gradients=sum(gradients.values()),
        seconds=sum(phases.values()) + routes.build * share,
        memory=_memory(settings, scene),
        phases=phases,
    )


def planned_pairs(settings: LandscapeSettings, dimension: int) -> int:
    """Products of the search for eigenpairs, at most."""
    return min(most_steps(settings), dimension) + sum(wanted(settings))


def planned_probes(settings: LandscapeSettings, scene: Scene) -> int:
    """Products of density and trace."""
    spectrum = settings.spectrum
    if not settings.enable_spectrum:
        return 0
    assert spectrum.esd.num_probes and spectrum.esd.lanczos_steps and spectrum.hutchinson_probes and spectrum.top_k
    runs = spectrum.esd.num_probes * min(spectrum.esd.lanczos_steps, scene.dimension)
    if spectrum.engine is Engine.pyhessian or spectrum.cross_check:
        runs += spectrum.top_k * (spectrum.power_iters or 100) + spectrum.hutchinson_probes
    return runs + max(spectrum.hutchinson_probes - spectrum.esd.num_probes, 0)


def fitted(settings: LandscapeSettings, routes: Routes, scene: Scene) -> tuple[LandscapeSettings, list[dict[str, Any]]]:
    """The settings cut down until the forecast is within `budget.max_seconds`, and what was cut.

    Each key of CUTS goes down only as far as is needed, the next one only when that is not enough. What saves nothing
    is left alone. Where all cuts are not enough, the look goes on with all of them.
    """
    most, cuts = settings.budget.max_seconds, []
    if most is not None and most_steps(settings):
        settings = with_value(settings, "spectrum.max_steps", most_steps(settings))
    for key, smallest, step in CUTS if most is not None else ():
        assert most is not None
        here = value_at(settings, key)
        here = min(here, scene.samples) if key == "evaluation_data.num_samples" else here

        def seconds(value: int, settings: LandscapeSettings = settings, key: str = key) -> float:
            return forecast(with_value(settings, key, value), routes, scene).seconds

        if seconds(here) <= most or here <= smallest or seconds(smallest) >= seconds(here):
            continue
        value = _largest(range(smallest, here, step), seconds, most)
        cuts.append({"key": key, "from": here, "to": value})
        settings = with_value(settings, key, value)
    return settings, cuts


def with_steps(
    settings: LandscapeSettings, vectors: int, scene: Scene
) -> tuple[LandscapeSettings, list[dict[str, Any]]]:
    """The settings with no more Lanczos steps of the density than `vectors` that memory holds, and what was cut.

    A density cannot be restarted as a search for eigenpairs can, and a run that has trained for days must not end for
    lack of memory in a look.
    """
    key = "spectrum.esd.lanczos_steps"
    asked = value_at(settings, key)
    if not settings.enable_spectrum or min(asked, scene.dimension) <= vectors:
        return settings, []
    most = max(vectors, 1)
    return with_value(settings, key, most), [{"key": key, "from": asked, "to": most, "reason": "memory"}]


def refuse_too_long(settings: LandscapeSettings, expected: Forecast) -> None:
    """Stop before a look that would take longer than `budget.abort_if_estimated_hours_over`.

    Raises:
        ConfigError: says how long, and what to do.
    """
    most = settings.budget.abort_if_estimated_hours_over
    if most is not None and expected.seconds > 3600 * most:
        raise ConfigError(
            f"budget.abort_if_estimated_hours_over={most}: this look would take about {_duration(expected.seconds)} "
            f"({expected.told()}); set budget.max_seconds, a smaller profile, or a higher limit"
        )


def _cells(settings: LandscapeSettings, scene: Scene) -> tuple[int, int, int]:
    """Cells of all planes, those of robust surfaces, and planes whose curvature costs products."""
    planes = settings.planes
    if not settings.enable_planes:
        return 0, 0, 0
    assert planes.grid_resolution is not None and planes.num_random is not None
    assert settings.sam.subsample_stride is not None
    by_products = planes.num_random * planes.include_random + (planes.include_trajectory and scene.path)
    count = by_products + planes.include_hessian + planes.include_hessian_signed
    strided = 2 * (((planes.grid_resolution - 1) // 2) // settings.sam.subsample_stride) + 1
    robust = count * strided**2 if settings.enable_sam else 0
    count += settings.enable_mode_connectivity and scene.start
    return count * planes.grid_resolution**2, robust, by_products


def _kept_rows(settings: LandscapeSettings, scene: Scene) -> dict[str, float]:
    """Vectors that the steps of all Lanczos processes are freed from, at most, in the time of one process.

    One process alone searches for eigenpairs, each run of the density is one's own; m steps are freed from 1, 2, ...,
    m vectors.
    """

    def rows(steps: int) -> float:
        m = min(steps, scene.dimension)
        return m * (m + 1) / 2

    esd, found = settings.spectrum.esd, {"eigenpairs": rows(most_steps(settings)), "spectrum": 0.0}
    if settings.enable_spectrum:
        assert esd.num_probes is not None and esd.lanczos_steps is not None
        found["spectrum"] = esd.num_probes * rows(esd.lanczos_steps) / scene.processes
    return found


def _memory(settings: LandscapeSettings, scene: Scene) -> int:
    pairs = sum(wanted(settings))
    vectors = 8 + 2 * pairs  # weights, base, directions; the pairs and their images
    basis = min(most_steps(settings), scene.dimension)
    if settings.enable_spectrum:
        assert settings.spectrum.esd.lanczos_steps is not None
        basis = max(basis, min(settings.spectrum.esd.lanczos_steps, scene.dimension))
    return (vectors + basis) * scene.dimension * scene.itemsize


def _largest(values: range, seconds: Callable[[int], float], most: float) -> int:
    """The largest of ascending values that costs no more than `most`; the first if none does."""
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if seconds(values[middle]) <= most else (low, middle - 1)
    return values[low]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
