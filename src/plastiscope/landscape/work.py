"""The work of one look: pieces that processes share out and a resume finds again, files, progress, seconds."""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plastiscope.run.processes import Part, Processes, share_out
from plastiscope.run.storage import plain, write_by, write_json

QUIET_SECONDS = 30.0
"""Where there is no terminal, a piece says how far it is only after so many seconds, and then as often."""


class Work:
    """Where a look computes and writes.

    Pieces are cut into parts by the work alone, so results are equal for any number of processes. Finished parts stay
    in `folder`/parts/<digest> until the look is done; the digest names weights, data and settings, so parts of another
    look are never taken for them.

    Attributes:
        folder: for results.
        processes: who shares the work.
        seconds: taken so far by each phase.
        is_together: each part is computed by all processes at once, because each holds only a slice of the samples.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], processes: Processes) -> None:
        """Nothing is written yet; `identity` is all that the results depend on."""
        digest = hashlib.sha256(json.dumps(plain(dict(identity)), sort_keys=True).encode()).hexdigest()
        self.folder, self.processes = folder, processes
        self.seconds: dict[str, float] = {}
        self.is_together = False
        self._parts = folder / "parts" / digest[:16]

    def shared(self, name: str, parts: int, compute: Callable[[int], Part]) -> list[Part]:
        """All parts of the piece `name` in order; each is `compute(i)`, called once over all starts.

        It is called by one process, or, if they are together, by all.
        """
        with _watched(name, parts, self.processes.is_first) as done:

            def counted(i: int) -> Part:
                part = compute(i)
                done(i + 1)
                return part

            place = self._parts / name
            return share_out(place, parts, counted, self.processes, keep=True, together=self.is_together)

    def once(self, name: str, compute: Callable[[], Part]) -> Part:
        """A piece that cannot be cut."""
        return self.shared(name, 1, lambda _: compute())[0]

    @contextmanager
    def steps(self, name: str, most: int) -> Iterator[Callable[[int], None]]:
        """What is to be called with the number of each step of one long piece, of `most` at most."""
        with _watched(name, most, self.processes.is_first) as done:
            yield done

    def facts(self, name: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What one process finds out for all, and for a resume; as JSON keeps it."""
        part = self.once(name, lambda: {"json": np.array(json.dumps(plain(find())))})
        return json.loads(part["json"].item())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Around a phase: its seconds are noted."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def save(self, part: str, name: str, arrays: Mapping[str, Tensor | npt.NDArray], facts: Mapping[str, Any]) -> None:
        """Write `part`/`name`.npz and .json; only the first process does."""
        if not self.processes.is_first:
            return
        place = self.folder / part
        place.mkdir(parents=True, exist_ok=True)
        plain_arrays = {key: _array(value) for key, value in arrays.items()}
        write_by(place / f"{name}.npz", lambda file: np.savez_compressed(file, **plain_arrays))  # type: ignore[arg-type]
        write_json(place / f"{name}.json", facts)

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        if self.processes.is_first:
            _print(text)

    def finish(self) -> None:
        """The look is done: its parts go."""
        self.processes.barrier()
        if self.processes.is_first:
            shutil.rmtree(self._parts, ignore_errors=True)
            parts = self._parts.parent
            if parts.exists() and not any(parts.iterdir()):
                parts.rmdir()


@contextmanager
def _watched(name: str, parts: int, speaks: bool) -> Iterator[Callable[[int], None]]:
    """What is to be called with the number of each finished part; shows a bar on a terminal, lines elsewhere."""
    if not speaks or parts < 2:
        yield lambda number: None
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=parts, desc=name, leave=False, dynamic_ncols=True) as bar:
            yield lambda number: bar.update(number - bar.n)
    else:
        last = time.monotonic()

        def line(number: int) -> None:
            nonlocal last
            if time.monotonic() - last > QUIET_SECONDS:
                last = time.monotonic()
                _print(f"landscape: {name}, {number} of {parts}")

        yield line


def _print(text: str) -> None:
    if sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(text)
    else:
        print(text, flush=True)


def _array(values: Tensor | npt.NDArray) -> npt.NDArray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
