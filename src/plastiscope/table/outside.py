"""Scores from elsewhere: published memorization, and files of one's own with a column sample_id."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plastiscope.error import DataError
from plastiscope.formats.content import check_ids, read_content
from plastiscope.formats.memorization import IdKind, read_memorization
from plastiscope.table.source import ID, Column, Rows, Source, source_of
from plastiscope.table.store import Identities

if TYPE_CHECKING:
    import pandas as pd

MEMORIZATION = Column("memorization score of the sample; NaN = unknown, which is not 0", "share of models")
EPOCHS = ("epochs_completed", "epoch", "epoch_num")
"""Columns by which a file has several rows a sample."""
LABELS = {"label": "labels", "label_trained": "labels_trained"}
"""Columns of a file that must agree with what the run says."""


def memorization_source(
    path: Path, samples: Identities, file_names: Sequence[str] | None = None, rows: int | None = None
) -> Source:
    """Memorization scores of the run's samples; samples that only the file has are counted and left out.

    Args:
        path: any format of `read_memorization`.
        samples: of the run; their labels before noise are compared with those of the file.
        file_names: of the training images by id, for files that go by file name.
        rows: size of the training file, where its rows are the ids; a file in official order must have as many.

    Raises:
        DataError: the file cannot be read, or it is of other data.
    """
    scores = read_memorization(path, file_names)
    if scores.id_kind is IdKind.official_order and rows is not None and len(scores.ids) != rows:
        raise DataError(
            f"{path} holds {len(scores.ids)} scores in official order, and the training file of the data {rows} "
            "samples: they are of other data; if the data are a part of theirs, say which by data.ids_file"
        )
    joined = scores.join(samples.ids, samples.labels)
    known = np.isin(samples.ids, scores.ids)
    columns = {ID: samples.ids[known], "memorization": joined.scores[known]}
    column = Column(f"{MEMORIZATION.definition} (from {path.name})", MEMORIZATION.unit)
    return source_of(str(path), columns, {"memorization": column}, adds_rows=False, extra=joined.right)


def file_source(path: Path, samples: Identities) -> Source:
    """Columns of a CSV, Parquet or npz file that has a column sample_id.

    A file with a column epochs_completed, epoch or epoch_num has several rows a sample: of each other column of
    numbers the mean over the epochs and the value at the last one are kept. Columns label and label_trained are
    compared with the run's and left out.

    Raises:
        DataError: no column sample_id, an id that is no integer or that repeats, or labels of other data.
    """
    table = _read(path)
    if ID not in table:
        raise DataError(f"{path} has no column sample_id ({', '.join(map(str, table))}); a row's place is no id")
    epoch = next((name for name in EPOCHS if name in table), None)
    if epoch is not None:
        table = _aggregated(table, epoch, path)
    table[ID] = check_ids(table[ID].to_numpy(), path)
    rows: Rows = {str(name): table[name].to_numpy() for name in table}
    for name in LABELS:
        if name in rows:
            _check_labels(name, rows, samples, path)
            del rows[name]
    return source_of(str(path), rows, {name: Column(_said(name, path), "as given") for name in rows if name != ID})


def _said(name: str, path: Path) -> str:
    return f"{name}, from {path.name}"


def _read(path: Path) -> "pd.DataFrame":
    import pandas as pd

    if not path.exists():
        raise DataError(f"there is no file {path}")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix == ".npz":
            return pd.DataFrame(read_content(path))
        return pd.read_csv(path)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table ({str(error).splitlines()[0]})") from None


def _aggregated(table: "pd.DataFrame", epoch: str, path: Path) -> "pd.DataFrame":
    """One row a sample: <column>_mean over the epochs, and <column>_final at the last one."""
    twice = table.duplicated([ID, epoch])
    if twice.any():
        sample, at = (table[name][twice].iloc[0] for name in (ID, epoch))
        raise DataError(f"{path} has sample {sample} twice in {epoch} {at}; keep one row of each")
    kept = [name for name in table if name in LABELS]
    numbers = [name for name in table.columns if table[name].dtype.kind in "iufb" and name not in (ID, epoch, *kept)]
    ordered = table.sort_values([ID, epoch], kind="stable")
    groups = ordered.groupby(ID, sort=True)
    mean, final = groups[numbers].mean().add_suffix("_mean"), groups[numbers].nth(-1).add_suffix("_final")
    final.index = mean.index
    return groups[kept].first().join([mean, final]).reset_index()


def _check_labels(name: str, rows: Rows, samples: Identities, path: Path) -> None:
    """Compare labels that are known on both sides."""
    _, ours, theirs = np.intersect1d(samples.ids, rows[ID], assume_unique=True, return_indices=True)
    known, given = getattr(samples, LABELS[name])[ours], rows[name][theirs]
    differ = np.flatnonzero((known != given) & (given == given))
    if len(differ):
        i = differ[0]
        raise DataError(
            f"{path} gives {len(differ)} of {len(ours)} samples another {name}, first sample {samples.ids[ours[i]]} "
            f"{given[i]} for {known[i]}: it is of other data, or its ids are positions"
        )
