"""Published memorization scores, and any other score of training samples: joined by id, unknown = NaN.

    Feldman-Zhang npz         tr_mem, tr_labels: official training order
    imagenet_index.npz        tr_filenames, tr_labels, tr_mem: any order, joined by file name
    high_infl_pairs npz, csv  tr_idx, mem: a row a pair, so that a sample may come again with the same score
    npy, torch file           one number a sample: official training order (Kozal et al., `csl_*.npy`)
    sample_class_map.csv      sample_id, class_label, memorization_score; any CSV with ids and one score
    JSON                      {id: score}

A row is an id only where the format says so. Sources: Feldman and Zhang 2020, "What neural networks memorize and why";
Kozal et al. 2025, "What is the role of memorization in continual learning?".
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plastiscope.error import DataError
from plastiscope.formats.content import Kind, check_ids, kind_of, read_content, read_vector

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]

ID_COLUMNS = ("sample_id", "tr_idx", "id", "index")
SCORE_COLUMNS = ("memorization_score", "memo_score", "mem", "memorization", "csl", "score")
LABEL_COLUMNS = ("class_label", "tr_class", "label")


class IdKind(Enum):
    """How the file says which sample a score belongs to."""

    official_order = "official_order"
    """By the row: the position in the official training set."""
    sample_id = "sample_id"
    """By an id of its own."""
    file_name = "file_name"
    """By the name of the image file."""


class Joined(NamedTuple):
    """Scores at the samples asked for, and what matched.

    Attributes:
        scores: float64 [n], NaN where the file has none.
        left: samples that the file does not have.
        right: samples of the file that were not asked for.
        both: samples in both; their score may still be NaN.
    """

    scores: Scores
    left: int
    right: int
    both: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Memorization:
    """Scores by sample id.

    Attributes:
        ids: int64 [n], unique, ascending.
        scores: float64 [n], NaN = unknown.
        labels: int64 [n], the class of each sample by the file, or None.
        id_kind: how the file says which sample is which.
        unmatched: scores of the file whose file name is not among the names given.
        source: the file.
    """

    ids: Ids
    scores: Scores
    labels: Ids | None
    id_kind: IdKind
    unmatched: int
    source: Path

    def join(self, ids: npt.ArrayLike, labels: npt.ArrayLike | None = None) -> Joined:
        """The scores of samples `ids`, in their order.

        Args:
            ids: int [n], unique; negative ones are unknown (they match nothing, and may repeat).
            labels: int [n], the class of each; compared with the file's, where it has labels.

        Raises:
            DataError: an id comes twice, a label differs, or the file is in official order and too short.
        """
        wanted = np.asarray(ids)
        known = wanted >= 0
        asked = check_ids(wanted[known], Path("the samples asked for"))
        if self.id_kind is IdKind.official_order and len(asked) and asked.max() >= len(self.ids):
            raise DataError(
                f"{self.source} holds {len(self.ids)} scores in official order, and there is a sample {asked.max()}: "
                "these are scores of other data."
            )
        place = np.minimum(np.searchsorted(self.ids, wanted), max(len(self.ids) - 1, 0))
        found = known & (self.ids[place] == wanted) if len(self.ids) else np.zeros(len(wanted), np.bool_)
        if labels is not None and self.labels is not None:
            self._check_labels(wanted[found], self.labels[place[found]], np.asarray(labels)[found])
        scores = np.full(len(wanted), np.nan)
        scores[found] = self.scores[place[found]]
        both = int(found.sum())
        return Joined(scores, len(wanted) - both, len(self.ids) - both + self.unmatched, both)

    def _check_labels(self, ids: Ids, theirs: Ids, ours: npt.NDArray[Any]) -> None:
        differ = np.flatnonzero(theirs != ours)
        if len(differ):
            i = differ[0]
            raise DataError(
                f"{self.source} gives {len(differ)} of {len(ids)} samples another class, first sample {ids[i]} class "
                f"{theirs[i]} for {ours[i]}: its rows are not in the order of these data, or it is of other data."
            )


def read_memorization(
    path: Path | str, file_names: Sequence[str] | None = None, labels: npt.ArrayLike | None = None
) -> Memorization:
    """The scores of a file, whatever its suffix; the formats are those of the module's docstring.

    Args:
        path: the file.
        file_names: names of the training images, in the order of their ids; needed where the file goes by file name.
            Folders are left out of the comparison.
        labels: int [n], classes of the rows of a plain vector, for the check when it is joined.

    Raises:
        DataError: missing, damaged, an id that repeats or is no integer, an infinite score, or no such format.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind is not Kind.other or _starts_with(path, b"\x80"):
        content = read_content(path)
        if isinstance(content, dict) and not {"data"} >= set(content):
            return _of_arrays(path, {str(key): np.asarray(value) for key, value in content.items()}, file_names)
        return _of_vector(path, read_vector(path), labels)
    return _of_json(path) if _starts_with(path, b"{") else _of_csv(path)


def _starts_with(path: Path, mark: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(64).lstrip(b" \t\r\n\xef\xbb\xbf").startswith(mark)


def _of_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]], file_names: Sequence[str] | None) -> Memorization:
    if "tr_filenames" in arrays and "tr_mem" in arrays:
        return _of_file_names(path, arrays, file_names)
    if "tr_idx" in arrays and "mem" in arrays:
        return _made(path, arrays["tr_idx"], arrays["mem"], IdKind.sample_id, repeats=True)
    for key in ("tr_mem", "memorization"):
        if key in arrays:
            return _of_vector(path, arrays[key], arrays.get("tr_labels"))
    raise DataError(
        f"{path} holds {', '.join(arrays)}, and no scores: tr_mem, memorization, or tr_idx with mem are needed."
    )


def _of_vector(path: Path, scores: npt.NDArray[Any], labels: npt.ArrayLike | None) -> Memorization:
    return _made(path, np.arange(len(scores)), scores, IdKind.official_order, labels)


def _of_file_names(path: Path, arrays: dict[str, npt.NDArray[Any]], file_names: Sequence[str] | None) -> Memorization:
    """Ids are positions in `file_names`; what is not among them only counts."""
    if file_names is None:
        raise DataError(f"{path} goes by file name, and these data have no file names; take data=image_folder.")
    ours, theirs = ([_last_part(name) for name in names] for names in (file_names, arrays["tr_filenames"].tolist()))
    for names, whose in ((ours, "the data"), (theirs, str(path))):
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"the file name {twice} comes twice in {whose}, so scores cannot be joined by it.")
    position = {name: i for i, name in enumerate(ours)}
    place = np.array([position.get(name, -1) for name in theirs], np.int64)
    here, labels = place >= 0, arrays.get("tr_labels")
    labels = None if labels is None else labels[here]
    unmatched = int((~here).sum())
    return _made(path, place[here], arrays["tr_mem"][here], IdKind.file_name, labels, unmatched=unmatched)


def _last_part(name: str | bytes) -> str:
    return (name.decode() if isinstance(name, bytes) else name).replace("\\", "/").rpartition("/")[2]


def _of_json(path: Path) -> Memorization:
    try:
        pairs = json.loads(path.read_bytes(), object_pairs_hook=lambda pairs: pairs)
        ids = np.array([float(key) for key, _ in pairs])
        scores = np.array([np.nan if value is None else float(value) for _, value in pairs])
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no JSON of scores by sample id ({error}).") from None
    return _made(path, ids, scores, IdKind.sample_id)


def _of_csv(path: Path) -> Memorization:
    import pandas as pd

    try:
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise DataError(f"{path} cannot be read as a table ({error}).") from None
    columns = [str(column) for column in table.columns]
    own_id, label = (next((name for name in names if name in columns), None) for names in (ID_COLUMNS, LABEL_COLUMNS))
    rest = [name for name in columns if name not in (own_id, label)]
    score = next((name for name in SCORE_COLUMNS if name in rest), rest[0] if len(rest) == 1 else None)
    if own_id is None or score is None or table[score].dtype.kind not in "iuf":
        raise DataError(
            f"{path} has the columns {', '.join(columns)}; a column of ids ({', '.join(ID_COLUMNS)}) and one of scores "
            f"({', '.join(SCORE_COLUMNS)}), numbers both, are needed."
        )
    labels = None if label is None or table[label].dtype.kind not in "iu" else table[label].to_numpy()
    ids, scores = table[own_id].to_numpy(), table[score].to_numpy()
    return _made(path, ids, scores, IdKind.sample_id, labels, repeats=own_id == "tr_idx")


def _made(
    path: Path,
    ids: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    id_kind: IdKind,
    labels: npt.ArrayLike | None = None,
    *,
    repeats: bool = False,
    unmatched: int = 0,
) -> Memorization:
    """The scores, checked and sorted by id; with `repeats` an id may come again with the same score."""
    values = np.asarray(scores, np.float64)
    given = None if labels is None else np.asarray(labels)
    if values.ndim != 1 or len(ids) != len(values) or (given is not None and given.shape != values.shape):
        raise DataError(f"{path} has {len(ids)} ids, scores of shape {list(values.shape)} and labels that do not fit.")
    if np.isinf(values).any():
        raise DataError(f"{path} gives sample {ids[np.isinf(values).argmax()]} an infinite score.")
    if repeats:
        kept = _first_of_each(path, ids, values)
        ids, values, given = ids[kept], values[kept], None if given is None else given[kept]
    whole = check_ids(np.asarray(ids), path)
    order = np.argsort(whole, kind="stable")
    return Memorization(
        ids=whole[order],
        scores=values[order],
        labels=None if given is None else given[order].astype(np.int64),
        id_kind=id_kind,
        unmatched=unmatched,
        source=path,
    )


def _first_of_each(path: Path, ids: npt.NDArray[Any], scores: Scores) -> Ids:
    """Rows of the first of each id; DataError where another row of it says something else."""
    unique, first, which = np.unique(ids, return_index=True, return_inverse=True)
    differ = scores != scores[first][which]
    if differ.any():
        raise DataError(f"{path} gives sample {unique[which[differ.argmax()]]} more than one score.")
    return first
