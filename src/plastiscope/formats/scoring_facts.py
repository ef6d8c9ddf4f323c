"""What stands beside per-sample files that were scored here: of which run they are, and what the numbers mean.

The published names carry neither, so the losses of one run were summed with those of another that lay in the same
folder. One JSON beside the files says it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from plastiscope.error import RunError
from plastiscope.run.storage import read_json, write_json

_SCORED = "scored"
"""Key of the epochs that are complete."""


def facts_path(folder: Path, dataset: str, run_idx: int | None = None, noise_level: float | None = None) -> Path:
    """Where the facts about one run's files stand: scoring_{dataset}[_run{r}_noise_{z}].json."""
    run = "" if run_idx is None else f"_run{run_idx}_noise_{float(noise_level or 0.0)!r}"
    return folder / f"scoring_{dataset}{run}.json"


def read_facts(path: Path) -> dict[str, Any]:
    """The facts; empty where there are none, as beside other people's files."""
    facts = read_json(path)
    return facts if isinstance(facts, dict) else {}


def claim(path: Path, facts: dict[str, Any], origin: Sequence[str], outputs: Iterable[Path]) -> None:
    """Say what is about to be written, unless it would replace files of another run.

    Args:
        path: of the facts; its folder is made if missing.
        facts: such as grad_kind, contains_l2, logit_scope, split, and where the weights are from.
        origin: the facts that tell one run, and one way of scoring it, from another.
        outputs: what will be written.

    Raises:
        RunError: the folder has files of another run under these names, or of an unknown one.
    """
    before = read_facts(path)
    there = next((output for output in [*outputs, *_scored_files(path, before)] if output.exists()), None)
    if there is not None and not before:
        raise RunError(
            f"{there} is there and no {path.name} says of which run; it is not overwritten: move it, or "
            "write elsewhere."
        )
    for key in origin if there is not None else ():
        if before.get(key) != facts.get(key):
            raise RunError(
                f"{there} is of another run ({key} {before.get(key)}, now {facts.get(key)}) and is not overwritten; "
                "move it, or write elsewhere."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, facts | {_SCORED: before.get(_SCORED, {}) if there is not None else {}})


def note_scored(path: Path, epoch: int, checkpoint: Path, main_file: Path) -> None:
    """Say that an epoch is complete: all its files are written, from the checkpoint as it is now."""
    facts = read_facts(path)
    entry = {"checkpoint": _stamp(checkpoint), "file": str(main_file.relative_to(path.parent))}
    scored = facts.get(_SCORED, {}) | {str(epoch): entry}
    write_json(path, facts | {_SCORED: scored})


def is_scored(path: Path, epoch: int, checkpoint: Path) -> bool:
    """Whether an epoch is complete and its checkpoint has not changed since; call after `claim`."""
    entry = read_facts(path).get(_SCORED, {}).get(str(epoch))
    return entry is not None and entry["checkpoint"] == _stamp(checkpoint) and (path.parent / entry["file"]).exists()


def _scored_files(path: Path, facts: dict[str, Any]) -> list[Path]:
    return [path.parent / entry["file"] for entry in facts.get(_SCORED, {}).values()]


def _stamp(checkpoint: Path) -> list[int]:
    """Size and time of a file: they change when it is written anew."""
    stat = checkpoint.stat()
    return [stat.st_size, stat.st_mtime_ns]
