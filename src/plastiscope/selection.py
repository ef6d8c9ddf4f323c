"""Which of a task's weights go on into its snapshot, its analyses and the next task."""

from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn


class Selection(Enum):
    """By what a task's weights are selected."""

    val_best = "val_best"
    """Those of the epoch with the best validation accuracy (least validation loss in regression), the first such."""
    last = "last"
    """Those of the last epoch."""
    test_oracle = "test_oracle"
    """Those of the epoch with the best test accuracy: looks at the test set, as published figures did."""


class BestWeights:
    """The best weights of the task so far; a copy is held only while `selection` needs one."""

    def __init__(self, selection: Selection) -> None:
        """Nothing seen yet."""
        self.selection = selection
        self.forget()

    def forget(self) -> None:
        """A new task: nothing seen yet, so that any score is better."""
        self.score = float("-inf")
        self.weights: dict[str, Tensor] | None = None

    def offer(self, row: dict[str, float], net: nn.Module) -> None:
        """Keep the weights if the epoch's row is strictly better; epochs without evaluation are passed over."""
        if self.selection is Selection.last:
            return
        split = "validation" if self.selection is Selection.val_best else "test"
        score = row.get(f"{split}_accuracy", -row.get(f"{split}_loss", float("nan")))
        if score > self.score:
            self.score = score
            self.weights = {key: tensor.clone() for key, tensor in net.state_dict().items()}

    def restore(self, net: nn.Module) -> None:
        """Load the best weights; the current ones stay where none were kept."""
        if self.weights is not None:
            net.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Score and weights."""
        return {"score": self.score, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take back what `state_dict` gave."""
        self.score, weights = state["score"], state["weights"]
        self.weights = None if weights is None else {key: tensor.to(device) for key, tensor in weights.items()}
