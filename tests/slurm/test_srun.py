"""plastiscope-analyze under srun, on a real SLURM of one node."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import slurm, why_not

from plans import make_plan
from plastiscope.analyze import analyze
from plastiscope.experiment import run

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(why_not()), reason=f"no SLURM here: {why_not()}"),
]
NOT_EQUAL = {"run.json", "status.json", "timings.jsonl", "config.yaml", ".lock"}


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in NOT_EQUAL)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if path.parent.name != "checkpoint"}


def test_two_tasks_of_srun_share_the_samples(tmp_path):
    """The same bytes as one process, and both tasks end well."""
    settings = ("data.samples_per_class=12", "num_tasks=2", "epochs=1", "threads=1", "net.widths=[8]", "analysis=[]")
    run(make_plan(*settings, "selection=last"), tmp_path / "run")
    asked = ["analysis=[csl]", "csl.batch_size=5"]
    analyze(tmp_path / "run", asked, tmp_path / "alone")
    (tmp_path / "slurm").mkdir()
    with slurm(tmp_path / "slurm") as environment:
        program = [sys.executable, "-c", "from plastiscope.app import analyze; analyze()"]
        command = ["srun", "-n", "2", "--overcommit", *program, str(tmp_path / "run"), *asked]
        command += ["--out", str(tmp_path / "out")]
        done = subprocess.run(
            command,
            env={**environment, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("done: ") == 1
    ours, theirs = contents(tmp_path / "out"), contents(tmp_path / "alone")
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    assert not (tmp_path / "out" / "parts").exists()
    assert "SLURM_CONF" not in os.environ
