"""An installation that is not editable, in an environment of its own, runs the command with its own configs."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_wheel_runs_in_a_fresh_environment(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", source / "src", ignore=ignore)
    shutil.copytree(ROOT / "configs", source / "configs", ignore=ignore)
    fresh = tmp_path / "fresh"
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # which names the checkout
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", fresh], check=True)
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], env=plain, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "--python", fresh / "bin" / "python", "install", "--no-deps", wheel], env=plain, check=True)
    packages = next((fresh / "lib").glob("python*")) / "site-packages"
    # the dependencies are those of this environment; path files of a folder named here are not read, so the
    # editable installation stays out of it
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    where = [fresh / "bin" / "python", "-c", "import plastiscope.configs as c, sys; print(c.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=plain, capture_output=True, text=True, check=True).stdout
    assert str(packages) in found
    command = [fresh / "bin" / "plastiscope", "num_tasks=1", "epochs=1", "use_wandb=false", "hydra.run.dir=run"]
    command += ["lla.profile=smoke", "lla.planes.grid_resolution=3"]
    done = subprocess.run(command, cwd=tmp_path, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.jsonl").exists()
