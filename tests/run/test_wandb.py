"""The W&B mirror, read back from its offline file: numbers only, at the steps of the step rule, complete."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb

from plans import make_plan
from plastiscope.experiment import run
from plastiscope.run.log import read_rows
from plastiscope.run.wandb_sink import Mode, WandbSettings, WandbSink

SMALL = ("num_tasks=2", "epochs=2", "threads=1", "selection=last", "analysis=[]")
SMALL += ("use_wandb=true", "wandb.mode=offline")
BLOCK = 32768


def records(path: Path) -> Iterator[Any]:
    """Records of an offline file: a 7-byte header, then blocks of 32 KiB that hold parts of protobuf records."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    position, parts = 7, []
    while position + 7 <= len(content):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        if kind == 0 and length == 0:
            position += BLOCK - position % BLOCK
            continue
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def history(folder: Path) -> list[dict[str, Any]]:
    """Rows that would be sent, of the one offline run in the folder."""
    wandb.teardown()  # W&B's own process may still be writing; this waits for it
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    found = [r.history for r in records(path) if r.WhichOneof("record_type") == "history"]
    rows = [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in h.item} for h in found]
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def test_rows_are_numbers_at_the_right_steps(tmp_path):
    run(make_plan(*SMALL), tmp_path / "run")
    rows = history(tmp_path / "run")
    assert [row["global_epoch"] for row in rows] == [0, 1, 2, 3]
    assert all(isinstance(value, int | float) for row in rows for value in row.values())
    assert all("epoch_loss" in row and "epoch_runtime" in row for row in rows)
    assert ["task_test_accuracy" in row for row in rows] == [False, True, False, True]
    stored = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "epoch"]
    assert [row["epoch_loss"] for row in rows] == [row["epoch_loss"] for row in stored]


def test_resumed_run_is_one_complete_offline_run(tmp_path):
    run(make_plan(*SMALL, "num_tasks=1"), tmp_path / "run")
    run(make_plan(*SMALL), tmp_path / "run")
    assert [row["global_epoch"] for row in history(tmp_path / "run")] == [0, 1, 2, 3]


def test_without_key_it_is_offline(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    sink = WandbSink(tmp_path, WandbSettings(), {}, [])
    sink.close()
    assert sink.mode is Mode.offline


def test_disabled_writes_nothing(tmp_path):
    run(make_plan(*SMALL, "wandb.mode=disabled"), tmp_path / "run")
    assert list(tmp_path.glob("run/wandb/*run*")) == []
