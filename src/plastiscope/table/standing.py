"""How far a run and the analyses beside it have got: what a table may be made of, and whether it is still of all that.

The table keeps this as `standings` in its metadata, so that what is made of it later can tell that there is more now.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plastiscope.build import plain, read_config
from plastiscope.error import RunError
from plastiscope.load import LoadedRun
from plastiscope.run.sample_store import SampleStore
from plastiscope.run.snapshots import Snapshots
from plastiscope.run.status import State, read_status
from plastiscope.run.storage import read_json
from plastiscope.source import listed
from plastiscope.table.file import Table

Standing = dict[str, Any]
"""`state` (null for a folder that is no run), `epochs` with values of samples, and the `last_epoch` of these."""


def standing(folder: Path) -> Standing:
    """Of a run or an analysis."""
    store = SampleStore(folder / "samples")
    blocks = map(store.block, store.tasks())
    rows = [block.epochs(metric)[block.done(metric)] for block in blocks for metric in block.metrics()]
    epochs = np.unique(np.concatenate(rows)) if rows else np.empty(0, np.int32)
    state = str(read_status(folder)["state"]) if (folder / "status.json").exists() else None
    return {"state": state, "epochs": len(epochs), "last_epoch": int(epochs[-1]) if len(epochs) else None}


def standings(run: LoadedRun, beside: Sequence[Path], unfinished: bool) -> tuple[dict[str, Standing], list[str]]:
    """Of the run and of the folders beside it, by folder, and what is to be said of them.

    Args:
        run: the run.
        beside: folders of its analyses; one without a status is as it is.
        unfinished: take what there is.

    Raises:
        RunError: one of them is not done, or an analysis is older than weights of the run; and not `unfinished`.
    """
    found = {str(folder): standing(folder) for folder in (run.folder, *beside)}
    open_ends = {folder: f"is not finished ({of['state']})" for folder, of in found.items() if _is_open(of)}
    notes = [f"{folder} {what}: what there is was read" for folder, what in open_ends.items()]
    for name, what in open_ends.items():
        if not unfinished:
            raise RunError(
                f"{name} {what}: resume it by the command that started it, or take what there is with --unfinished"
            )
    for folder in beside:
        later, left_out = _not_walked(run, folder)
        if later and not unfinished:
            raise RunError(
                f"{folder} does not cover the weights that the run has saved since, after {listed(later)} epochs: give "
                "the same plastiscope-analyze command again (with --out it goes on), or take what there is with "
                "--unfinished"
            )
        if later or left_out:
            lacking = listed(later + left_out)
            notes.append(f"{folder} covers fewer weights than the run has saved; not those after {lacking} epochs")
    return found, notes


def refuse_stale(table: Table) -> None:
    """Refuse a table of a run, or of analyses beside it, that have gone on since.

    A table in the folder tables/ is of the run around it, wherever that lies now.

    Raises:
        RunError: says what has changed, and how the table is made anew.
    """
    then: dict[str, Standing] = table.about.get("standings", {})
    if not then:
        return
    named = list(then)
    around = table.path.resolve().parent.parent
    is_inside = table.path.resolve().parent.name == "tables" and (around / "run.json").exists()
    folders = [around if is_inside else Path(named[0]), *map(Path, named[1:])]
    for name, folder in zip(named, folders, strict=True):
        if not folder.is_dir():
            continue
        now = standing(folder)
        if now != then[name]:
            again = " ".join(["plastiscope-samples", str(folders[0]), *named[1:]])
            raise RunError(
                f"{table.path} was made when {folder} was {_said(then[name])}; now it is {_said(now)}. Make it anew, "
                f"with the options that it had: {again}"
            )


def _is_open(of: Standing) -> bool:
    return of["state"] not in (None, State.done.value)


def _said(of: Standing) -> str:
    values = f"values of {of['epochs']} epochs" + (f" up to {of['last_epoch']}" if of["epochs"] else "")
    return f"{of['state'] or 'there'}, with {values}"


def _not_walked(run: LoadedRun, folder: Path) -> tuple[list[int], list[int]]:
    """Epochs completed of weights that the run has and the analysis has not: those it asks for, and the others."""
    of = (read_json(folder / "run.json") or {}).get("replay_of")
    own = Snapshots(run.folder / "snapshots")
    if of is None or own.folder.resolve() not in [Path(of["folder"]).resolve(), (folder / of["relative"]).resolve()]:
        return [], []
    replay = plain(read_config(folder, trust=True))["replay"]  # read as it stands; nothing that it names is imported
    seen = {*of["epochs_completed"], *of["left_out"]}
    missing = [e for e in own.epochs() if e not in seen]
    start, end = replay["start"] or 0, replay["end"]
    is_asked = [start <= e and (end is None or e <= end) for e in missing]
    pairs = list(zip(missing, is_asked, strict=True))
    return [e for e, asked in pairs if asked], [e for e, asked in pairs if not asked]
