"""What a person sees of a run: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

ACCURACIES = {
    "epoch_loss": "loss",
    "epoch_accuracy": "train",
    "validation_accuracy": "val",
    "test_accuracy": "test",
}
LOSSES = {"epoch_loss": "loss", "validation_loss": "val", "test_loss": "test"}
"""Numbers of an epoch's row that are shown, and their short names: in classification, in regression."""


class Progress:
    """Progress over all epochs of a run."""

    def __init__(self, total: int, done: int, verbose: bool = False) -> None:
        """Show `total` epochs, of which `done` are behind us; `verbose` adds the seconds of each."""
        self._bar: Any = None
        self._verbose, self._last = verbose, time.perf_counter()
        if sys.stderr.isatty():
            from tqdm import tqdm

            shape = "{desc} |{bar:12}| {n_fmt}/{total_fmt} {remaining}{postfix}"  # fits into 80 columns
            self._bar = tqdm(total=total, initial=done, bar_format=shape, dynamic_ncols=True)

    def epoch(self, task_idx: int, epoch: int, row: dict[str, float]) -> None:
        """An epoch is done."""
        shown = ACCURACIES if any(key in row for key in ACCURACIES if key.endswith("accuracy")) else LOSSES
        numbers = " ".join(f"{short}={row[key]:.3g}" for key, short in shown.items() if key in row)
        now = time.perf_counter()
        if self._verbose:
            numbers += f" seconds={now - self._last:.2f}"
        self._last = now
        if self._bar is not None:
            self._bar.set_description(f"task {task_idx}", refresh=False)
            self._bar.set_postfix_str(numbers, refresh=False)
            self._bar.update()
        else:
            print(f"task {task_idx} epoch {epoch} {numbers}", flush=True)

    def say(self, text: str) -> None:
        """A line beside the bar."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
