"""Training dynamics in files of other programs: AUM, dataset cartography, forgetting, second-split forgetting.

    AUM          aum_values.csv (sample_id, aum), descending; full_aum_records.csv                     asappresearch/aum
    cartography  dynamics_epoch_{e}.jsonl (guid, logits_epoch_{e}, gold); a table of metrics         allenai/cartography
    forgetting   a pickle id -> [losses, accuracies, margins]; a sorted pickle        mtoneva/example_forgetting
    SSFT         a torch file with acc_mask [epochs, N]                                               pratyushmaini/ssft

Pickles are read by the restricted unpickler only, and written as npz.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from plastiscope.error import DataError
from plastiscope.formats.content import check_ids, read_array, read_content
from plastiscope.formats.csv_columns import read_columns, write_columns
from plastiscope.run.storage import write_atomic, write_by

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

AUM_RECORD = (
    "sample_id",
    "num_measurements",
    "target_logit",
    "target_val",
    "other_logit",
    "other_val",
    "margin",
    "aum",
)
"""Columns of full_aum_records.csv: one row a presentation; target_logit and other_logit are classes."""
CARTOGRAPHY_TABLE = (
    "guid",
    "index",
    "threshold_closeness",
    "confidence",
    "variability",
    "correctness",
    "forgetfulness",
)
NEVER_LEARNED = 1000
"""Forgetfulness of samples that were never classified rightly, as the published table has it."""


def write_aum(path: Path, ids: Ids, aum: npt.ArrayLike) -> None:
    """aum_values.csv, the highest first."""
    values = np.asarray(aum)
    order = np.argsort(-values, kind="stable")
    write_columns(path, {"sample_id": check_ids(ids, path)[order], "aum": values[order]})


def read_aum(path: Path) -> tuple[Ids, Floats]:
    """Ids and AUM of aum_values.csv, as they come; DataError when ids repeat or are no integers."""
    found = read_columns(path, ["sample_id", "aum"])
    return check_ids(found["sample_id"], path), found["aum"]


def write_aum_records(path: Path, records: Mapping[str, npt.ArrayLike]) -> None:
    """full_aum_records.csv from its columns (`AUM_RECORD`)."""
    write_columns(path, {name: records[name] for name in AUM_RECORD})


def read_aum_records(path: Path) -> dict[str, Floats]:
    """The columns of full_aum_records.csv; a sample has several rows."""
    return read_columns(path, AUM_RECORD)


@dataclass(frozen=True, eq=False)
class Cartography:
    """Logits of each sample at each epoch.

    Attributes:
        epochs: ascending.
        ids: int64 [N] ascending, the guids.
        logits: float32 [E, N, K].
        gold: int64 [N].
    """

    epochs: list[int]
    ids: Ids
    logits: npt.NDArray[np.float32]
    gold: Ids


def write_cartography(folder: Path, epoch: int, ids: Ids, logits: npt.ArrayLike, gold: npt.ArrayLike) -> None:
    """dynamics_epoch_{e}.jsonl of one epoch, one line a sample."""
    key = f"logits_epoch_{epoch}"
    rows = zip(ids.tolist(), np.asarray(logits).tolist(), np.asarray(gold).tolist(), strict=True)
    lines = [json.dumps({"guid": guid, key: row, "gold": label}) + "\n" for guid, row, label in rows]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"dynamics_epoch_{epoch}.jsonl", "".join(lines).encode())


def read_cartography(folder: Path) -> Cartography:
    """All dynamics_epoch_{e}.jsonl of a folder; samples may come in any order.

    Raises:
        DataError: none there, an epoch left out, a damaged line, samples or labels that differ between epochs.
    """
    paths: dict[int, Path] = {}
    for path in sorted(folder.glob("dynamics_epoch_*.jsonl")):
        if match := re.fullmatch(r"dynamics_epoch_(\d+)\.jsonl", path.name):
            paths[int(match[1])] = path
    if not paths:
        raise DataError(f"{folder} has no dynamics_epoch_0.jsonl and so on.")
    epochs = sorted(paths)
    gap = next((e for e in range(epochs[0], epochs[-1]) if e not in paths), None)
    if gap is not None:
        raise DataError(f"{folder} has no dynamics_epoch_{gap}.jsonl between epoch {epochs[0]} and {epochs[-1]}.")
    read = [_cartography_epoch(paths[epoch], epoch) for epoch in epochs]
    ids, _, gold = read[0]
    for epoch, (other_ids, _, other_gold) in zip(epochs, read, strict=True):
        if not np.array_equal(other_ids, ids) or not np.array_equal(other_gold, gold):
            raise DataError(f"{paths[epoch]} (epoch {epoch}) has other samples or labels than {paths[epochs[0]].name}.")
    return Cartography(epochs, ids, np.stack([logits for _, logits, _ in read]), gold)


def _cartography_epoch(path: Path, epoch: int) -> tuple[Ids, npt.NDArray[np.float32], Ids]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        ids = check_ids(np.array([int(row["guid"]) for row in rows]), path)
        logits = np.array([row[f"logits_epoch_{epoch}"] for row in rows], np.float32)
        gold = np.array([int(row["gold"]) for row in rows], np.int64)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} (epoch {epoch}) is damaged or no cartography file ({error}).") from None
    if logits.ndim != 2:
        raise DataError(f"{path} (epoch {epoch}) has no logits [N, K].")
    order = np.argsort(ids)
    return ids[order], logits[order], gold[order]


def write_cartography_table(
    path: Path,
    ids: Ids,
    confidence: npt.ArrayLike,
    variability: npt.ArrayLike,
    correct_epochs: npt.ArrayLike,
    forgetting_events: npt.ArrayLike,
) -> None:
    """The table of metrics as JSON lines, as `td_metrics.jsonl` is published.

    Args:
        path: of the file.
        ids: int64 [N].
        confidence: mean probability of the label, [N]; threshold_closeness is confidence (1 - confidence).
        variability: its standard deviation, [N].
        correct_epochs: number of epochs with the right class, [N].
        forgetting_events: transitions from right to wrong, [N]; replaced by 1000 where correct_epochs is 0.
    """
    mean, count = np.asarray(confidence, np.float64), np.asarray(correct_epochs)
    forgetfulness = np.where(count == 0, NEVER_LEARNED, np.asarray(forgetting_events))
    columns = (ids, np.arange(len(ids)), mean * (1 - mean), mean, np.asarray(variability), count, forgetfulness)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    lines = [json.dumps(dict(zip(CARTOGRAPHY_TABLE, row, strict=True))) + "\n" for row in rows]
    write_atomic(path, "".join(lines).encode())


def read_cartography_table(path: Path) -> dict[str, Floats]:
    """The columns of a table of metrics; DataError when it is damaged or ids repeat."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        columns = {name: np.array([float(row[name]) for row in rows]) for name in CARTOGRAPHY_TABLE}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is missing, damaged or no table of cartography metrics ({error}).") from None
    check_ids(columns["guid"], path)
    return columns


@dataclass(frozen=True, eq=False)
class Presentations:
    """Loss, correctness and margin of each sample at each of its presentations.

    Attributes:
        ids: int64 [N] ascending.
        loss: [P, N]; P presentations.
        correct: [P, N], 0 or 1.
        margin: [P, N].
        train: (loss, accuracy) of the training epochs, or None.
        test: the same of the test set.
    """

    ids: Ids
    loss: Floats
    correct: Floats
    margin: Floats
    train: Floats | None = None
    test: Floats | None = None


def read_forgetting(path: Path) -> Presentations:
    """Statistics of example forgetting, from the published pickle or from our npz.

    Raises:
        DataError: the pickle holds code, or anything but [losses, accuracies, margins] of equal length for each sample.
    """
    content = read_content(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; a dict of samples is needed.")
    if {"ids", "loss", "correct", "margin"} <= set(content):
        return Presentations(check_ids(content["ids"], path), *(content[k] for k in ("loss", "correct", "margin")),
                             *(content.get(k) for k in ("train", "test")))  # fmt: skip
    samples = {key: value for key, value in content.items() if not isinstance(key, str)}
    try:
        ids = check_ids(np.array(sorted(samples)), path)
        matrices = np.array([samples[i] for i in ids.tolist()], np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{path}: samples have unequal numbers of presentations, or keys that are no ids.") from None
    if matrices.ndim != 3 or matrices.shape[1] != 3:
        raise DataError(f"{path}: each sample must have three lists, of losses, accuracies and margins.")
    summaries = [np.array(content[k], np.float64) if k in content else None for k in ("train", "test")]
    loss, correct, margin = matrices.transpose(1, 2, 0)
    return Presentations(ids, loss, correct, margin, *summaries)


def write_forgetting(path: Path, found: Presentations) -> None:
    """The content of the published pickle, as npz: ids, loss, correct, margin, and train and test where known."""
    arrays = {name: getattr(found, name) for name in ("ids", "loss", "correct", "margin", "train", "test")}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    write_by(path, lambda file: np.savez_compressed(file, **arrays))


def read_forgetting_counts(path: Path) -> tuple[Ids, Floats]:
    """Ids and forgetting counts of the published sorted pickle {indices, forgetting counts}, or of our npz.

    A sample that was never learned counts as many events as it had presentations.

    Raises:
        DataError: it holds anything else.
    """
    content = read_content(path)
    if not isinstance(content, dict) or not {"indices", "forgetting counts"} <= set(content):
        raise DataError(f"{path} must hold `indices` and `forgetting counts`.")
    ids = check_ids(np.asarray(content["indices"]), path)
    counts = np.asarray(content["forgetting counts"], np.float64)
    if counts.shape != ids.shape:
        raise DataError(f"{path} has {len(ids)} indices and {counts.size} forgetting counts.")
    return ids, counts


def write_forgetting_counts(path: Path, ids: Ids, counts: npt.ArrayLike) -> None:
    """The content of the sorted pickle as npz, the fewest events first."""
    values = np.asarray(counts)
    order = np.argsort(values, kind="stable")
    arrays: dict[str, Any] = {"indices": check_ids(ids, path)[order], "forgetting counts": values[order]}
    write_by(path, lambda file: np.savez(file, **arrays))


def read_accuracy_mask(path: Path) -> npt.NDArray[np.bool_]:
    """acc_mask of second-split forgetting, bool [epochs, N], from a torch file.

    Raises:
        DataError: no such array, or not of zeros and ones.
    """
    mask = read_array(path, key="acc_mask")
    if mask.ndim != 2 or not np.isin(mask, (0, 1)).all():
        raise DataError(f"{path} must hold acc_mask, zeros and ones [epochs, N].")
    return mask.astype(np.bool_)


def write_accuracy_mask(path: Path, correct: npt.ArrayLike) -> None:
    """acc_mask [epochs, N] as a torch file."""
    mask = torch.from_numpy(np.asarray(correct).astype(np.bool_))
    write_by(path, lambda file: torch.save({"acc_mask": mask}, file))
