"""Settings of a look at a landscape, `lla.*`; what is null follows the profile."""

from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from typing import Any

from plastiscope.error import ConfigError, require
from plastiscope.measure.landscape.direction import Normalise
from plastiscope.measure.landscape.eigenpairs import Order


class Profile(Enum):
    """How much is computed; each is a table of sizes."""

    smoke = "smoke"
    """Seconds: does it work?"""
    quick = "quick"
    """Seconds on an mlp, minutes on a small ResNet."""
    standard = "standard"
    """Minutes on an mlp, hours of one core on a small ResNet."""
    paper = "paper"
    """Figures for print."""


class Split(Enum):
    """Samples of the current task that the loss is taken over."""

    train = "train"
    val = "val"
    test = "test"


class Engine(Enum):
    """Who computes top eigenvalues and trace."""

    native = "native"
    pyhessian = "pyhessian"


class BackendChoice(Enum):
    """Route to products with the Hessian; `auto` times them."""

    auto = "auto"
    retained = "retained"
    rebuilt = "rebuilt"
    jvp = "jvp"
    vmap_jvp = "vmap_jvp"
    linearised = "linearised"


class BatchNormPolicy(Enum):
    """Statistics of batch normalisations away from the weights that were trained."""

    stored = "stored"
    recompute = "recompute"


class Scale(Enum):
    """Lengths of the two axes of a plane along eigenvectors."""

    unit = "unit"
    curvature = "curvature"
    """Equal predicted rise of the loss on both axes."""


class Endpoints(Enum):
    """Where the curve of mode connectivity begins; it ends at the weights that are looked at."""

    previous_task = "previous_task"
    run = "run"
    """The weights of another run after as many epochs, `mode_connectivity.run`."""


@dataclass(kw_only=True)
class EvaluationSettings:
    """The frozen set."""

    num_samples: int | None = None
    """N; fewer where the split has fewer."""
    eval_batch_size: int = 128
    """Samples in a forward at most; the last bits of a number depend on it."""
    fixed_eval_seed: int = 42
    split: Split = Split.train

    def __post_init__(self) -> None:
        """Check the ranges."""
        _options(self)
        _positive(self, "num_samples", "eval_batch_size")
        require(self.fixed_eval_seed >= 0, "fixed_eval_seed", self.fixed_eval_seed, "must be 0 or more")


@dataclass(kw_only=True)
class LossSettings:
    """What the loss is."""

    include_weight_decay: bool = False
    """Add (lambda/2)||theta||^2 with the learner's weight decay."""


@dataclass(kw_only=True)
class BatchNormSettings:
    """Batch normalisations in planes."""

    policy: BatchNormPolicy = BatchNormPolicy.stored

    def __post_init__(self) -> None:
        """Check the option."""
        _options(self)


@dataclass(kw_only=True)
class DirectionSettings:
    """What random directions leave out."""

    exclude_bn_and_bias: bool = True
    """Zero the entries of tensors with one dimension."""


@dataclass(kw_only=True)
class PlaneSettings:
    """Planes through the weights."""

    grid_resolution: int | None = None
    """Cells along each axis, odd."""
    span: Any = field(default_factory=lambda: [-0.5, 0.5])
    """[-s, s], or s."""
    normalization: Normalise = Normalise.filter
    bn: DirectionSettings = field(default_factory=DirectionSettings)
    include_hessian: bool = True
    include_hessian_signed: bool = False
    include_random: bool = True
    include_trajectory: bool = True
    num_random: int | None = None
    """Random planes."""
    orthogonalize: bool = False
    """Also make the two random directions of a plane orthogonal, which breaks the filter norms of the second."""
    hessian_scale: Scale = Scale.unit
    max_checkpoints: int = 10
    """Points of the trajectory kept per task."""
    plot_3d: bool = True
    log_color: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        _options(self)
        _positive(self, "num_random", "max_checkpoints")
        n = self.grid_resolution
        require(n is None or (n >= 3 and n % 2 == 1), "grid_resolution", n, "must be odd and 3 or more")
        self.half_span  # noqa: B018  # refuses a span that is none

    @property
    def half_span(self) -> float:
        """Half the span: s of [-s, s].

        Raises:
            ConfigError: the span is one-sided, empty or no pair.
        """
        pair = [-self.span, self.span] if isinstance(self.span, int | float) else list(self.span or ())
        is_pair = len(pair) == 2 and all(isinstance(end, int | float) for end in pair)
        if not is_pair or not 0 < pair[1] < float("inf") or pair[0] != -pair[1]:
            raise ConfigError(
                f"span={self.span}: must be [-s, s] or s with s > 0, so that the weights lie in the middle"
            )
        return float(pair[1])


@dataclass(kw_only=True)
class DensitySettings:
    """Stochastic Lanczos quadrature."""

    num_probes: int | None = None
    lanczos_steps: int | None = None
    bins: int = 200
    n_kh: float = 0.5
    """Power of K_hn."""
    zero_tol: float = 1e-5
    """Half width of the band around zero, relative to the largest magnitude."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _positive(self, "num_probes", "lanczos_steps", "bins", "n_kh")
        require(self.zero_tol >= 0, "zero_tol", self.zero_tol, "must be 0 or more")


@dataclass(kw_only=True)
class SpectrumSettings:
    """Spectrum of the Hessian."""

    engine: Engine = Engine.native
    backend: BackendChoice = BackendChoice.auto
    top_k: int | None = None
    bottom_k: int = 2
    tol: float = 1e-3
    order: Order = Order.algebraic
    max_steps: int | None = None
    """Lanczos steps of the search for eigenpairs at most; null = 10 for each pair that is wanted, and 20."""
    power_iters: int | None = None
    """Of PyHessian's power iteration (100 where it is null); an error with the native engine."""
    hutchinson_probes: int | None = None
    """In all, the starts of the density included."""
    esd: DensitySettings = field(default_factory=DensitySettings)
    cross_check: bool = False
    """Run both engines and log how far they differ."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _options(self)
        _positive(self, "top_k", "tol", "max_steps", "power_iters", "hutchinson_probes")
        require(self.bottom_k >= 0, "bottom_k", self.bottom_k, "must be 0 or more")
        if self.power_iters is not None and self.engine is Engine.native and not self.cross_check:
            raise ConfigError(
                f"power_iters={self.power_iters}: is PyHessian's; set spectrum.engine=pyhessian too, or leave it out"
            )


@dataclass(kw_only=True)
class RobustSettings:
    """Robust (SAM) surface."""

    rho: float = 0.05
    subsample_stride: int | None = None
    adaptive: bool = False
    steps: int = 1
    starts: int = 1
    """Ascents in each cell, of which the worst counts; all but the first begin at random points."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(0 <= self.rho < float("inf"), "rho", self.rho, "must be 0 or more and finite")
        _positive(self, "subsample_stride", "steps", "starts")


@dataclass(kw_only=True)
class ConnectivitySettings:
    """Curves between two minima."""

    curve_points: int | None = None
    """Points t on a curve, odd."""
    opt_steps: int = 80
    lr: float = 0.05
    endpoints: Endpoints = Endpoints.previous_task
    run: str | None = None
    """Folder of the other run, for endpoints=run."""
    bn_samples: int = 2048

    def __post_init__(self) -> None:
        """Check the ranges."""
        _options(self)
        n = self.curve_points
        require(n is None or (n >= 3 and n % 2 == 1), "curve_points", n, "must be odd and 3 or more")
        _positive(self, "opt_steps", "lr", "bn_samples")
        if (self.run is not None) != (self.endpoints is Endpoints.run):
            raise ConfigError(
                f"endpoints={self.endpoints.value}, run={self.run}: endpoints=run and run=<folder> go together"
            )


@dataclass(kw_only=True)
class BudgetSettings:
    """Limits of one look."""

    max_seconds: float | None = None
    """Scale probes, steps, grid, samples and eigenpairs down until the forecast fits."""
    abort_if_estimated_hours_over: float | None = None
    """Refuse to begin above this forecast."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _positive(self, "max_seconds", "abort_if_estimated_hours_over")


@dataclass(kw_only=True)
class LandscapeSettings:
    """All that a look at a landscape can be told."""

    enable_planes: bool = True
    enable_spectrum: bool = True
    enable_sam: bool = True
    enable_mode_connectivity: bool = False
    profile: Profile = Profile.standard
    params: Any = "all"
    """Chosen parameters: all, no_bias_bn, or names (regular expressions) such as [fc, layer4]."""
    dtype: str = "float32"
    """float32, float64."""
    shard_data: str = "auto"
    """auto, true, false: of several processes each holds a slice of the samples, and they look together."""
    evaluation_data: EvaluationSettings = field(default_factory=EvaluationSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    bn: BatchNormSettings = field(default_factory=BatchNormSettings)
    planes: PlaneSettings = field(default_factory=PlaneSettings)
    spectrum: SpectrumSettings = field(default_factory=SpectrumSettings)
    sam: RobustSettings = field(default_factory=RobustSettings)
    mode_connectivity: ConnectivitySettings = field(default_factory=ConnectivitySettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)

    def __post_init__(self) -> None:
        """Check what is no range of a block."""
        _options(self)
        said = str(self.shard_data).lower()  # of YAML's true, false, on, off, bare or in quotes
        self.shard_data = {"on": "true", "off": "false"}.get(said, said)
        known = ("auto", "true", "false")
        require(self.shard_data in known, "shard_data", said, f"must be one of {', '.join(known)}")
        require(self.dtype in ("float32", "float64"), "dtype", self.dtype, "must be float32 or float64")
        if self.enable_sam and not (self.enable_planes or self.enable_spectrum or self.enable_mode_connectivity):
            raise ConfigError("enable_sam=true: works on planes; set enable_planes=true too, or enable_sam=false")

    @property
    def enables_something(self) -> bool:
        """Whether there is anything to compute."""
        return self.enable_planes or self.enable_spectrum or self.enable_sam or self.enable_mode_connectivity


SIZES: dict[Profile, dict[str, int]] = {
    Profile.smoke: {
        "evaluation_data.num_samples": 64,
        "planes.grid_resolution": 5,
        "planes.num_random": 1,
        "spectrum.top_k": 2,
        "spectrum.hutchinson_probes": 4,
        "spectrum.esd.num_probes": 2,
        "spectrum.esd.lanczos_steps": 10,
        "sam.subsample_stride": 2,
        "mode_connectivity.curve_points": 5,
    },
    Profile.quick: {
        "evaluation_data.num_samples": 256,
        "planes.grid_resolution": 21,
        "planes.num_random": 1,
        "spectrum.top_k": 5,
        "spectrum.hutchinson_probes": 16,
        "spectrum.esd.num_probes": 4,
        "spectrum.esd.lanczos_steps": 30,
        "sam.subsample_stride": 2,
        "mode_connectivity.curve_points": 11,
    },
    Profile.standard: {
        "evaluation_data.num_samples": 2048,
        "planes.grid_resolution": 41,
        "planes.num_random": 3,
        "spectrum.top_k": 5,
        "spectrum.hutchinson_probes": 32,
        "spectrum.esd.num_probes": 8,
        "spectrum.esd.lanczos_steps": 80,
        "sam.subsample_stride": 2,
        "mode_connectivity.curve_points": 21,
    },
    Profile.paper: {
        "evaluation_data.num_samples": 2048,
        "planes.grid_resolution": 101,
        "planes.num_random": 3,
        "spectrum.top_k": 10,
        "spectrum.hutchinson_probes": 64,
        "spectrum.esd.num_probes": 20,
        "spectrum.esd.lanczos_steps": 100,
        "sam.subsample_stride": 1,
        "mode_connectivity.curve_points": 61,
    },
}
"""What null stands for in each profile."""


def filled(settings: LandscapeSettings) -> LandscapeSettings:
    """The settings with every null that the profile decides filled in."""
    found = settings
    for key, value in SIZES[settings.profile].items():
        found = with_value(found, key, value) if value_at(found, key) is None else found
    return found


def value_at(settings: Any, key: str) -> Any:
    """The setting at a dotted key."""
    for name in key.split("."):
        settings = getattr(settings, name)
    return settings


def with_value(settings: Any, key: str, value: Any) -> Any:
    """A copy with another value at a dotted key."""
    name, _, rest = key.partition(".")
    return replace(settings, **{name: with_value(getattr(settings, name), rest, value) if rest else value})


def described(settings: Any) -> dict[str, Any]:
    """The settings as plain containers, for records."""
    found: dict[str, Any] = {}
    for part in fields(settings):
        value = getattr(settings, part.name)
        nested = is_dataclass(value) and not isinstance(value, type)
        found[part.name] = described(value) if nested else value.value if isinstance(value, Enum) else value
    return found


def _options(settings: Any) -> None:
    """Take options by their names too, as in a config."""
    for part in fields(settings):
        value, kind = getattr(settings, part.name), type(part.default)
        if issubclass(kind, Enum) and not isinstance(value, kind):
            known = [option.value for option in kind]
            require(value in known, part.name, value, f"must be one of {', '.join(known)}")
            setattr(settings, part.name, kind(value))


def _positive(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        require(value is None or value > 0, name, value, "must be more than 0")
