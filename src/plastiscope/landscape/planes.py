"""The loss on planes through the weights."""

import numpy as np

from plastiscope.landscape.look import Look, Numbers
from plastiscope.measure.landscape.direction import random_direction
from plastiscope.measure.landscape.plane import Plane, offsets, shape_of
from plastiscope.run.processes import Part


def look_at_planes(look: Look) -> Numbers:
    """Random planes into planes/random_<k>.npz and .json."""
    settings = look.settings.planes
    assert settings.grid_resolution is not None and settings.num_random is not None
    grid = offsets(settings.half_span, settings.grid_resolution)
    numbers: Numbers = {}
    for k in range(settings.num_random):
        first, second = (random_direction(look.frozen.space, look.weights, seed=look.seed, k=2 * k + i) for i in (0, 1))
        plane = Plane(look.frozen.with_micro_batch(look.micro_batch), first, second, grid, grid)

        def row(i: int, plane: Plane = plane) -> Part:
            return {"losses": plane.row(i).cpu().numpy()}

        rows = look.work.shared(f"plane_random_{k}", len(grid), row)
        losses = np.stack([part["losses"] for part in rows])
        look.work.save("planes", f"random_{k}", {"losses": losses, "a": grid, "b": grid}, look.common())
        shape = shape_of(look.weights.new_tensor(losses).double().cpu(), grid, grid)
        numbers[f"plane_random_{k}_center_loss"] = shape.centre
    return numbers
