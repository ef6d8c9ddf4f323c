"""Pictures of the loss's smoothness along its gradient, and of the ranks of Jacobians over depth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from plastiscope.figure.style import BLUE, GREY, ORANGE, depth_colours, new_figure, plain_frame, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray

MOST_LOOKS = 6
"""Looks whose curves are shown; of more, as many spread over all of them."""
MOST_NAMED = 10
"""Layers up to which the axis names each; of more, every n-th."""
PHASES = {"pre_training": "before training", "post_training": "after training"}
"""Looks at a task's ends; the others are within it."""


@dataclass(frozen=True, eq=False)
class Look:
    """What one look left.

    Attributes:
        task: index of the task.
        phase: pre_training, post_training, or epoch_<epochs completed>.
        epochs: completed by then.
        etas: step sizes [e]; empty if no step was measured.
        changes: grad_predictiveness [e] of all weights; empty if not measured.
        losses: at the weights and along the step, [1 + e]; empty if not measured.
        beta: effective_beta; NaN if not measured.
        ranks: of the Jacobians of single samples [n], by layer in order from the input; empty if not measured.
        pixels: by which was differentiated.
    """

    task: int
    phase: str
    epochs: int
    etas: Array
    changes: Array
    losses: Array
    beta: float
    ranks: dict[str, Array]
    pixels: int

    @property
    def label(self) -> str:
        """For a legend."""
        return f"task {self.task}, {PHASES.get(self.phase, f'epoch {self.epochs}')}"


def draw_smoothness(folder: Path) -> list[Path]:
    """Draw what `smoothness` has left in a run folder into <folder>/figures/smoothness.png; nothing if there is none.

    Args:
        folder: of the run.
    """
    looks = read_looks(folder)
    return [save(smoothness(looks), folder / "figures" / "smoothness.png")] if looks else []


def read_looks(folder: Path) -> list[Look]:
    """The looks of a run, in the order of time."""
    order = {"pre_training": 0, "post_training": 2}
    looks = [_read(path) for path in folder.glob("task_*/smoothness/*.npz")]
    return sorted(looks, key=lambda look: (look.task, look.epochs, order.get(look.phase, 1)))


def smoothness(looks: Sequence[Look]) -> "Figure":
    """Up to four panels: ranks over depth, gradient predictiveness and loss over step sizes, effective beta in time."""
    panels: list[tuple[Callable[[Axes, Sequence[Look]], None], list[Look]]] = [
        (ranks_over_depth, [look for look in looks if look.ranks]),
        (_changes_over_step, [look for look in looks if len(look.changes)]),
        (_beta_over_time, [look for look in looks if look.beta == look.beta]),
        (_losses_over_step, [look for look in looks if len(look.losses)]),
    ]
    shown = [(draw, some) for draw, some in panels if some]
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    figure = new_figure(4.8 * columns, 3.4 * rows + 0.4)
    for place, (draw, some) in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, columns, place)
        draw(axes, some if draw is _beta_over_time else spread(some))
        plain_frame(axes)
    curves = [axes for axes in figure.axes if axes.get_legend() is None]
    if curves:
        handles, labels = curves[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3), frameon=False, fontsize=8)
    return figure


def spread(looks: Sequence[Look]) -> list[Look]:
    """At most `MOST_LOOKS` looks, from the first to the last; only those at tasks' ends, if there are any."""
    looks = [look for look in looks if look.phase in PHASES] or looks
    if len(looks) <= MOST_LOOKS:
        return list(looks)
    return [looks[round(i * (len(looks) - 1) / (MOST_LOOKS - 1))] for i in range(MOST_LOOKS)]


def curve_style(look: Look, colour: Any) -> dict[str, Any]:
    """How the curve of a look is drawn, in each panel."""
    return {"color": colour, "linewidth": 1.3, "marker": "o", "markersize": 3, "label": look.label}


def ranks_over_depth(axes: "Axes", looks: Sequence[Look]) -> None:
    """Mean rank of each layer's Jacobian with its standard error over samples, a curve for each look."""
    layers = list(looks[0].ranks)
    for look, colour in zip(looks, depth_colours(len(looks)), strict=True):
        values = np.stack([look.ranks[layer] for layer in layers])
        n = values.shape[1]
        errors = values.std(1, ddof=1) / np.sqrt(n) if n > 1 else np.zeros(len(values))
        style = curve_style(look, colour)
        axes.errorbar(np.arange(len(layers)), values.mean(1), yerr=errors, **style)
    step = -(-len(layers) // MOST_NAMED)
    axes.set_xticks(np.arange(len(layers))[::step], layers[::step], rotation=35, ha="right", fontsize=7)
    axes.axhline(looks[0].pixels, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("partial Jacobian rank")
    axes.set_title(f"over depth (dotted: {looks[0].pixels} inputs moved)", fontsize=10)


def _changes_over_step(axes: "Axes", looks: Sequence[Look]) -> None:
    for look, colour in zip(looks, depth_colours(len(looks)), strict=True):
        style = curve_style(look, colour)
        axes.plot(look.etas, look.changes, **style)
    axes.set(xscale="log", yscale="log", xlabel="step size (gradients)", ylabel="change of the gradient (norm)")
    axes.set_title("gradient predictiveness", fontsize=10)


def _losses_over_step(axes: "Axes", looks: Sequence[Look]) -> None:
    for look, colour in zip(looks, depth_colours(len(looks)), strict=True):
        style = curve_style(look, colour)
        axes.plot(look.etas, look.losses[1:] - look.losses[0], **style)
    axes.set(xscale="log", xlabel="step size (gradients)", ylabel="loss less that at the weights")
    axes.set_title("loss along the step", fontsize=10)


def _beta_over_time(axes: "Axes", looks: Sequence[Look]) -> None:
    named = {"epoch": ("within tasks", GREY, "."), "pre_training": ("before training", ORANGE, "s")}
    named["post_training"] = ("after training", BLUE, "o")
    for name, (label, colour, marker) in named.items():
        some = [look for look in looks if look.phase.startswith(name)]
        times, betas = [look.epochs for look in some], [look.beta for look in some]
        if some:
            axes.plot(times, betas, color=colour, linewidth=1.2, marker=marker, markersize=4, label=label)
    axes.set(xlabel="epochs completed", ylabel="effective beta")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title("effective beta", fontsize=10)


def _read(path: Path) -> Look:
    with np.load(path, allow_pickle=False) as stored:
        nothing = np.empty(0)
        prefix = "jacobian/ranks/"
        return Look(
            task=int(path.parts[-3].split("_")[1]),
            phase=path.stem,
            epochs=int(stored["epochs_completed"]),
            etas=stored.get("etas", nothing),
            changes=stored.get("grad_predictiveness/total", nothing),
            losses=stored.get("losses", nothing),
            beta=float(stored.get("effective_beta", np.nan)),
            ranks={name.removeprefix(prefix): stored[name] for name in stored.files if name.startswith(prefix)},
            pixels=int(stored.get("jacobian/pixels", 0)),
        )
