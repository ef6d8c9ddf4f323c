"""What a run would do and cost, for people: lines of text."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What an analysis costs.

    Attributes:
        looks: how often it does the larger part of its work, in one run.
        seconds: of all of it, of one run; None where it could not be told.
        size: bytes that it writes, of one run; 0 where `seconds` is None.
        state: bytes of its state in a checkpoint.
        note: why there are no seconds.
    """

    looks: int
    seconds: float | None
    size: float = 0.0
    state: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Forecast:
    """What a run would do and cost.

    Attributes:
        facts: lines about it, by their first words.
        steps: of the optimiser.
        presentations: of samples, of one run.
        training, evaluation: seconds of all runs that advance together.
        analyses: by name, of one run.
        sizes: bytes written by all runs, by what they are, without those of the analyses.
        runs: that advance together.
        left: the same from where the run stands, if it has begun.
    """

    facts: Mapping[str, str]
    steps: int
    presentations: int
    training: float
    evaluation: float
    analyses: Mapping[str, Cost]
    sizes: Mapping[str, float]
    runs: int = 1
    left: "Forecast | None" = None

    @property
    def seconds(self) -> float:
        """Of all that could be told."""
        return self.training + self.evaluation + self.runs * sum(cost.seconds or 0.0 for cost in self.analyses.values())

    @property
    def written(self) -> dict[str, float]:
        """Bytes by what they are."""
        return {**self.sizes, "analyses": self.runs * sum(cost.size for cost in self.analyses.values())}

    @property
    def size(self) -> float:
        """All bytes."""
        return sum(self.written.values())

    @property
    def to_come(self) -> "Forecast":
        """What is left, or all of a run that has not begun."""
        return self.left or self

    def line(self) -> str:
        """What is to come, in a line."""
        runs = f" of {self.runs} runs" if self.runs > 1 else ""
        begun = f"; has begun, {self.steps:,} steps in all" if self.left else ""
        time = f"about {duration(self.to_come.seconds)}{self._left_out()}"
        return f"{time}, {self.to_come.steps:,} steps{runs}, {amount(self.to_come.size)}{begun}"

    def text(self) -> str:
        """Lines for people."""
        lines = {"dry run": "nothing is trained, nothing is kept", **self.facts}
        lines["training"] = f"{duration(self.training)}, {1e3 * self.training / max(self.steps, 1):.3g} ms a step"
        lines["evaluation"] = duration(self.evaluation)
        for name, cost in self.analyses.items():
            said = cost.note if cost.seconds is None else duration(self.runs * cost.seconds)
            lines[name] = f"{said}, {cost.looks:,} looks" + (" a run" if self.runs > 1 else "")
        lines["in all"] = f"about {duration(self.seconds)}{self._left_out()}"
        each = ", ".join(f"{what} {amount(size)}" for what, size in self.written.items())
        lines["disk"] = f"about {amount(self.size)}: {each}"
        if self.left is not None:
            lines["left of it"] = f"{self.left.steps:,} steps, about {duration(self.left.seconds)}{self._left_out()}"
        return "\n".join(f"{name:<16}{said}" for name, said in lines.items())

    def _left_out(self) -> str:
        unknown = [name for name, cost in self.analyses.items() if cost.seconds is None]
        return f", without {', '.join(unknown)}" if unknown else ""


def duration(seconds: float) -> str:
    """Seconds in the unit that people would take."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def amount(size: float) -> str:
    """Bytes in the unit that people would take."""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= length:
            return f"{size / length:.3g} {unit}"
    return f"{size:.0f} bytes"
