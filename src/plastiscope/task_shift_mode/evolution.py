"""States that evolve from task to task."""

from collections.abc import Callable
from typing import Generic, TypeVar

State = TypeVar("State")


class Evolution(Generic[State]):
    """state(0) = first, state(n) = step(state(n - 1), n): a pure function of n.

    The last state is kept, so that ascending n cost one step each; a smaller n starts again from the first. States
    are values: `step` returns a new one and draws only from a generator named by n.
    """

    def __init__(self, first: State, step: Callable[[State, int], State]) -> None:
        """Begin with state(0) = `first`; `step(state(n - 1), n)` gives state(n)."""
        self._first, self._step = first, step
        self._last = (0, first)

    def __call__(self, n: int) -> State:
        """state(n)."""
        reached, state = self._last if n >= self._last[0] else (0, self._first)
        for i in range(reached + 1, n + 1):
            state = self._step(state, i)
        self._last = (n, state)
        return state
