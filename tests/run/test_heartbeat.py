"""Signs of life: what makes a run on another machine look lost, and that a run gives them until it ends."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from plans import make_plan
from plastiscope.event import Callback, Context
from plastiscope.experiment import run
from plastiscope.run import heartbeat
from plastiscope.run.status import read_status, table
from plastiscope.run.storage import write_json

TINY = ("num_tasks=1", "epochs=1", "threads=1", "selection=last", "analysis=[]", "data.samples_per_class=2")


def wait_until(is_so: Callable[[], bool]) -> bool:
    """Whether it comes to be so, within a time that no beat takes."""
    return any(is_so() or threading.Event().wait(0.01) for _ in range(3_000))


@pytest.mark.parametrize(
    ("state", "beat_s_ago", "written_s_ago", "said"),
    [
        ("running", 30, 7_200, "running"),  # in a long analysis
        ("running", 7_200, 7_200, "lost?"),
        ("running", 7_200, 30, "running"),  # of a version that did not beat
        ("running", None, 7_200, "lost?"),
        ("preempted", 7_200, 7_200, "preempted"),
    ],
)
def test_what_is_said_of_a_run_elsewhere(tmp_path, state, beat_s_ago, written_s_ago, said):
    now = time.time()
    write_json(tmp_path / "status.json", {"state": state, "host": "elsewhere", "updated": now - written_s_ago})
    if beat_s_ago is not None:
        (tmp_path / ".lock").touch()
        os.utime(tmp_path / ".lock", (now - beat_s_ago, now - beat_s_ago))
    assert read_status(tmp_path)["state"] == said
    assert table([tmp_path]).splitlines()[1].split()[0] == said


@dataclass(kw_only=True)
class Long(Callback):
    """An analysis that ends when the lock files of all folders have been touched."""

    name: str = "long"
    group: Path
    folders: int

    def on_task_end(self, context: Context) -> None:
        left = set(self.group.rglob(".lock"))
        assert len(left) == self.folders
        for path in left:
            os.utime(path, (0, 0))
        assert wait_until(lambda: all(path.stat().st_mtime > 0 for path in left))


@pytest.mark.parametrize(("replicas", "folders"), [(1, 1), (2, 3)])
def test_a_run_beats_in_a_long_analysis_and_no_more_when_it_is_over(tmp_path, monkeypatch, replicas, folders):
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.01)
    before = threading.active_count()
    plan = make_plan(*TINY, f"replicas={replicas}")
    plan.analyses.append(Long(group=tmp_path, folders=folders))
    run(plan, tmp_path / "run")
    assert threading.active_count() == before
    assert read_status(tmp_path / "run")["state"] == "done"


def test_a_folder_that_goes_does_not_end_the_beating(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.001)
    (tmp_path / ".lock").touch()
    os.utime(tmp_path / ".lock", (0, 0))
    beating = heartbeat.Heartbeat([tmp_path / "gone", tmp_path])
    assert wait_until(lambda: (tmp_path / ".lock").stat().st_mtime > 0)
    beating.stop()
