"""What csl leaves at a task's end: one row per sample of the run so far, and the files under their published names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plastiscope.analysis.aggregation import Aggregation, Columns
from plastiscope.analysis.per_sample import mean
from plastiscope.event import Context, Numbers
from plastiscope.formats.csl_files import file_stem, write_csl
from plastiscope.measure.comparison import auroc
from plastiscope.run.storage import write_by

ONLINE = "online_"
"""Before the names of columns and numbers that come from the training steps."""
IDENTITY = ("sample_id", "label", "label_trained", "split", "entry_task", "n_presentations")
"""Columns that do not depend on where the values come from."""
LOGGED = ("csl_active_mean", "forgetting_events", "never_learned", "first_learn", "aum", "lt_frac")
"""Columns whose means over the training samples are logged at a task's end."""


@dataclass(frozen=True)
class SampleTable:
    """Columns [n] of the training samples by ascending id, and what they were made of.

    Attributes:
        columns: as `Aggregation` names them; those of online values begin with "online_".
        sources: aggregation by prefix of its columns, "" or "online_"; the first one gives the published files.
    """

    columns: Columns
    sources: dict[str, Aggregation]

    def numbers(self) -> Numbers:
        """Means for the log, and where labels were changed how well CSL ranks them first (AUROC)."""
        numbers: Numbers = {}
        is_changed = self.columns["label"] != self.columns["label_trained"]
        for prefix in self.sources:
            there = [prefix + name for name in LOGGED if prefix + name in self.columns]
            numbers |= {name: mean(self.columns[name].astype(np.float32)) for name in there}
            if is_changed.any() and prefix + "csl_active_mean" in self.columns:
                numbers[f"{prefix}auroc_noisy"] = auroc(self.columns[f"{prefix}csl_active_mean"], is_changed).value
        return {name: value for name, value in numbers.items() if np.isfinite(value)}


def sample_table(context: Context, prefixes: Sequence[str], **options: Any) -> SampleTable:
    """One row per training sample.

    Args:
        context: whose store has a loss of each kind that is asked for.
        prefixes: "" for values from after the epochs, "online_" for those of the training steps.
        options: of `Aggregation`.
    """
    sources = {prefix: Aggregation(context.sample_store, online=prefix == ONLINE, **options) for prefix in prefixes}
    columns: Columns = {}
    for prefix, source in sources.items():
        found = source.table()
        columns |= {name if name in IDENTITY else prefix + name: values for name, values in found.items()}
    return SampleTable(columns, sources)


def definition(context: Context) -> str:
    """Which CSL the published files hold: where samples come and go with the tasks, the mean over their own epochs."""
    if context.num_tasks == 1:
        return "csl_sum"
    first, second = (context.shift.task(k).train.ids.sort().values for k in (0, 1))
    return "csl_sum" if first.equal(second) else "csl_active_mean"


def write_tables(context: Context, folder: Path, table: SampleTable) -> None:
    """Write per_sample.npz, and csl_*.npy, lt_*.npy and metrics_*.json of the first kind of values.

    Row i of the arrays is the sample with id i if the ids are 0 .. n-1; otherwise ids_*.npy says whose it is. The
    arrays of an earlier attempt at the same task are replaced. Of a replay the JSON also says which weights stand at
    task ends; noisy-label checkpoints have the run and noise of their own names, and say whose labels were scored.
    """
    prefix, source = next(iter(table.sources.items()))
    told: dict[str, Any] = {"label_source": "trained", "run_idx": context.seed, "noise_level": context.label_noise}
    told |= context.replay_facts
    run_idx, noise = told.pop("run_idx"), told.pop("noise_level")
    stem = file_stem(context.data_name, run_idx, noise)
    for old in folder.glob(f"*_{stem}.*"):
        old.unlink()
    ids, which = table.columns["sample_id"], definition(context)
    lt = table.columns.get(f"{prefix}lt_frac")
    facts = _facts(source, which, lt) | told | {"mode": "online" if prefix else "posthoc", "ids_path": None}
    if not np.array_equal(ids, np.arange(len(ids))):
        facts["ids_path"] = f"ids_{stem}.npy"
        write_by(folder / f"ids_{stem}.npy", lambda file: np.save(file, ids))
    csl = table.columns[prefix + which]
    write_csl(folder, context.data_name, run_idx, noise, csl, lt, facts)
    write_by(folder / "per_sample.npz", lambda file: np.savez(file, **table.columns))  # type: ignore[arg-type]


def _facts(source: Aggregation, which: str, lt: npt.NDArray | None) -> dict[str, Any]:
    """What metrics_*.json says of the values."""
    facts: dict[str, Any] = {
        "kept_epochs": source.kept_epochs("loss").tolist(),
        "filled_epochs": [],
        "contains_l2": False,
        "logit_scope": "active",
        "split": "train",
        "csl_definition": which,
        "id_kind": "sample_id",
    }
    if lt is not None:
        facts |= {"tau": source.tau_of(squared=False), "grad_kind": "input", "lt_definition": "lt_frac"}
        facts["loss_grads_shape"] = [len(source.kept_epochs("norms")), len(lt)]
    return facts
