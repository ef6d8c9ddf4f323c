"""plastiscope-analyze: a run is looked at again, beside its folder, alone or by several processes."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import plastiscope
from plans import make_plan
from plastiscope import app
from plastiscope.analyze import analyze
from plastiscope.build import build
from plastiscope.error import PlastiscopeError, RunError
from plastiscope.experiment import run
from plastiscope.make import load_tasks, make_context, make_learner
from plastiscope.replay import goes_on
from plastiscope.run import processes as sharing
from plastiscope.run.log import read_rows
from plastiscope.run.processes import Processes
from plastiscope.run.sample_store import SampleStore
from plastiscope.run.status import State, read_status, write_status
from plastiscope.source import open_source
from plastiscope.walk import Share, Walk

TINY = ("data.samples_per_class=12", "num_tasks=2", "epochs=2", "threads=1", "net.widths=[12,8]", "net.norm=batch")
ASKED = ("analysis=[csl,dormant,continual]", "csl.input_gradient=true", "csl.batch_size=5", "dormant.batch_size=7")
ASKED += ("dormant.relative=true", "csl.initial=true")
NOT_EQUAL = {"run.json", "status.json", "timings.jsonl", "config.yaml", ".lock"}


def contents(folder: Path) -> dict[str, bytes]:
    """All files that equal analyses have equal; config.yaml and run.json say where they lie."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in NOT_EQUAL)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if path.parent.name != "checkpoint"}


def assert_equal(folder: Path, other: Path) -> None:
    one, two = contents(folder), contents(other)
    assert one.keys() == two.keys()
    for ours, theirs in zip(read_rows(folder / "metrics.jsonl"), read_rows(other / "metrics.jsonl"), strict=True):
        assert repr(ours) == repr(theirs)
    assert [name for name in one if one[name] != two[name]] == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """101 samples to train on in the end, so that no number of processes divides them."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(make_plan(*TINY, "selection=last", "snapshots.every=1", "analysis=[csl]", "csl.input_gradient=true"), folder)
    return folder


@pytest.fixture(scope="module")
def alone(trained: Path) -> Path:
    """Analysed by one process."""
    return analyze(trained, [*ASKED])


@pytest.fixture
def command(capsys, monkeypatch):
    """The console entry, called here; gives (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["plastiscope-analyze", *arguments])
        code = 0
        try:
            app.analyze()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_it_writes_beside_the_run_and_gives_the_numbers_of_training(trained, tmp_path, command):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in trained.rglob("*") if path.is_file()}
    code, out, _ = command(str(trained), "analysis=[csl]", "csl.input_gradient=true")
    assert code == 0
    folder = Path(re.search(r"done: (.*)", out).group(1))
    assert folder.parent == trained.parent / "run_analyses"
    assert {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in trained.rglob("*") if path.is_file()
    } == before
    one, other = plastiscope.load_run(trained), plastiscope.load_run(folder)
    for metric in ("loss", "correct", "margin", "grad_input_l2"):
        np.testing.assert_array_equal(other.samples(metric).values[-4:], one.samples(metric).values)
    for ours, theirs in zip(read_rows(trained / "metrics.jsonl"), read_rows(folder / "metrics.jsonl"), strict=True):
        assert {key: ours[key] for key in theirs} == theirs
    assert other.config["analysis" if "analysis" in other.config else "csl"]["input_gradient"] is True
    assert all(torch.equal(v, one.net(task=1).state_dict()[k]) for k, v in other.net(task=1).state_dict().items())


def test_the_same_command_again_has_nothing_to_do(trained, alone, command):
    code, out, _ = command(str(trained), *ASKED)
    assert code == 0
    assert f"{alone} is done already (2 tasks); nothing to do." in out


def test_both_folders_moved_together_still_open(trained, alone, tmp_path):
    shutil.copytree(trained, tmp_path / trained.name)
    shutil.copytree(alone, tmp_path / alone.parent.name / alone.name)
    config = tmp_path / alone.parent.name / alone.name / "config.yaml"
    config.write_text(config.read_text().replace(str(trained.resolve()), "/no/longer/there"))
    loaded = plastiscope.load_run(config.parent)
    assert loaded.snapshots.path(4).resolve() == tmp_path / "run" / "snapshots" / "epoch_000004.pt"


def test_out_names_the_folder(trained, alone, tmp_path, command):
    assert command(str(trained), *ASKED, "--out", str(tmp_path / "mine"))[0] == 0
    assert_equal(tmp_path / "mine", alone)


MISTAKES = [
    ([], "say what to look for: plastiscope-analyze FOLDER analysis=[csl,representation]"),
    (["analysis=[]"], "say what to look for: plastiscope-analyze FOLDER analysis=[csl,representation]"),
    (["analysis=[csl]", "learner.lr=0.1"], "learner.lr: belongs to the training, which is over"),
    (["analysis=[csl]", "data.label_noise=0.1"], "data.label_noise: belongs to the training"),
    (["analysis=[csl]", "net=convnet"], "net: belongs to the training"),
    (["analysis=[csl]", "num_tasks=3"], "num_tasks: belongs to the training"),
    (["analysis=[csl]", "replay.folder=elsewhere"], "replay.folder: belongs to the training"),
    (["analysis=[csl]", "csl.evry=2"], "csl.evry: there is no such setting; did you mean csl.every?"),
    (["analysis=[csll]"], "analysis=[csll]: there is no such analysis; did you mean csl?"),
    (["analysis=[csl]", "dormant.theta=0.1"], "select it with analysis=[csl,dormant]"),
    (["analysis=[csl]", "csl.mode=online"], "nothing is trained: csl with mode=online takes values from the training"),
    (["analysis=[tracking]"], "nothing is trained: tracking "),
    (["analysis=[csl]", "replay.start=9"], "no checkpoint is in replay.start .. replay.end"),
]


@pytest.mark.parametrize(("mistake", "text"), MISTAKES, ids=[" ".join(mistake) for mistake, _ in MISTAKES])
def test_mistakes(trained, command, mistake, text):
    before = sorted(trained.parent.rglob("*"))
    code, _, err = command(str(trained), *mistake)
    assert code == 2
    assert text in err
    assert "Traceback" not in err
    assert sorted(trained.parent.rglob("*")) == before


def test_folders_that_cannot_be(trained, tmp_path, command):
    code, _, err = command(str(trained), "analysis=[csl]", "--out", str(trained / "again"))
    assert (code, "lies in the run's own folder" in err) == (2, True)
    assert not (trained / "again").exists()
    code, _, err = command(str(tmp_path), "analysis=[csl]")
    assert (code, "is not a run folder" in err) == (2, True)


def test_config_of_a_stranger_runs_nothing(trained, tmp_path, command):
    shutil.copytree(trained, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("plastiscope.net.mlp.Mlp", "antigravity.geohash"))
    code, _, err = command(str(tmp_path / "run"), "analysis=[csl]")
    assert (code, "wants to run antigravity.geohash" in err, "--trust" in err) == (2, True, True)


def test_a_run_that_goes_on_is_said_to(trained, tmp_path, command):
    """What it has saved so far is looked at; more of it later goes into a folder of its own."""
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "snapshots" / "epoch_000004.pt").rename(tmp_path / "later.pt")
    write_status(tmp_path / "run", State.preempted)
    code, out, _ = command(str(tmp_path / "run"), "analysis=[csl]")
    assert code == 0
    assert "is not finished (preempted); the weights that it has saved so far are looked at" in out
    (tmp_path / "later.pt").rename(tmp_path / "run" / "snapshots" / "epoch_000004.pt")
    assert command(str(tmp_path / "run"), "analysis=[csl]")[0] == 0
    folders = sorted((tmp_path / "run_analyses").iterdir())
    shapes = sorted(plastiscope.load_run(folder).samples("loss").shape[0] for folder in folders)
    assert shapes == [4 - 1, 4]


def hidden(run: Path, *epochs: int) -> Callable[[], None]:
    """Take snapshots away, as if the run had not got so far; gives what puts them back and finishes the run."""
    paths = [run / "snapshots" / f"epoch_{e:06d}.pt" for e in epochs]
    kept = {path: path.read_bytes() for path in paths}
    for path in paths:
        path.unlink()
    write_status(run, State.preempted)

    def finish() -> None:
        for path, content in kept.items():
            path.write_bytes(content)
        write_status(run, State.done)

    return finish


LATER = [*ASKED, "analysis=[csl,dormant,continual,curvature]", "curvature.directions=1"]


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run, analysed at once."""
    return analyze(trained, LATER, tmp_path_factory.mktemp("whole") / "out")


@pytest.mark.parametrize(("last", "state"), [(1, State.done), (2, State.preempted)])
def test_an_analysis_of_an_unfinished_run_is_extended(trained, whole, tmp_path, last, state):
    """Within the first task and at its end; then it is what it would have been at once."""
    shutil.copytree(trained, tmp_path / "run")
    finish, out = hidden(tmp_path / "run", *range(last + 1, 5)), tmp_path / "out"
    analyze(tmp_path / "run", LATER, out)
    assert read_status(out)["state"] == "done" and max(walked(out)) == last
    write_status(out, state)
    finish()
    analyze(tmp_path / "run", LATER, out)
    assert walked(out) == [0, 1, 2, 3, 4]
    assert_equal(out, whole)


def walked(out: Path) -> list[int]:
    return json.loads((out / "run.json").read_text())["replay_of"]["epochs_completed"]


def test_two_processes_extend_an_analysis(trained, whole, tmp_path):
    """Within the second task: what its last look leaves (silent units, curvature at epoch 3) is made anew."""
    shutil.copytree(trained, tmp_path / "run")
    finish, out = hidden(tmp_path / "run", 4), tmp_path / "out"
    analyze(tmp_path / "run", LATER, out)
    assert plastiscope.load_run(out).samples("input_curv_norm").epochs_completed.tolist() == [2, 3]
    finish()
    assert in_processes(2, tmp_path / "run", out, *LATER) == [0, 0]
    assert_equal(out, whole)
    (tmp_path / "run" / "snapshots" / "epoch_000001.pt").unlink()
    with pytest.raises(RunError, match="holds a walk over other checkpoints: the one after 1 epochs is gone"):
        analyze(tmp_path / "run", LATER, out)


def test_which_walks_go_on(tmp_path):
    assert goes_on([0, 2], [0, 2, 4], tmp_path) and goes_on([], [0], tmp_path)
    assert not goes_on([0, 2], [0, 2], tmp_path)
    for now, odd in (([0, 1, 2, 3], "1 epochs was not there then"), ([0, 4], "2 epochs is gone"), ([0], "2 epochs is")):
        with pytest.raises(RunError, match=odd):
            goes_on([0, 2], now, tmp_path)


def test_a_snapshot_that_is_missing_is_refused(trained, tmp_path, command):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "snapshots" / "epoch_000003.pt").unlink()
    code, _, err = command(str(tmp_path / "run"), "analysis=[continual]")
    assert (code, "snapshots/epoch_000003.pt is missing, the weights after 3 epochs" in err) == (2, True)
    assert not (tmp_path / "run_analyses").exists()
    assert command(str(tmp_path / "run"), "analysis=[continual]", "replay.end=2")[0] == 0
    assert command(str(tmp_path / "run"), "analysis=[continual]", "replay.start=4")[0] == 0


@dataclass(frozen=True)
class OneOfTwo(Processes):
    """The second of two processes, of which the first never comes."""

    def barrier(self) -> None:
        """Stop where the other one is waited for."""
        if not self.is_ahead:
            raise InterruptedError


def test_a_share_of_the_checkpoints_is_scored_before_anyone_is_waited_for(trained, alone, tmp_path):
    """The second of two leaves all parts of its own checkpoints, the second and fourth of 0 .. 4, and no other."""
    plan = build(OmegaConf.load(alone / "config.yaml"))
    data, shift = load_tasks(plan, torch.device("cpu"))
    learner = make_learner(plan, shift, data, torch.device("cpu"))
    source = open_source(plan, data, learner.units.head)
    context = make_context(plan, shift, learner, source.checkpoints, SampleStore(tmp_path / "samples"), tmp_path)
    context.checkpoints, context.processes = source.walked, OneOfTwo(1, 2)
    walk = Walk(
        learner=learner,
        context=context,
        callbacks=plan.analyses,
        checkpoints=source.checkpoints,
        share=Share.checkpoints,
    )
    with pytest.raises(InterruptedError):
        walk.follow()
    folders = sorted((tmp_path / "parts").iterdir())
    found = [re.match(r"(csl|dormant)\w*_epoch_0*(\d+)_", folder.name).groups() for folder in folders]
    assert set(found) == {(name, epochs) for name in ("csl", "dormant") for epochs in ("1", "3")}
    for folder in folders:
        parts = sorted(path.name for path in folder.iterdir())
        assert len(parts) > 1
        assert parts == [f"part_{i:05d}_of_{len(parts):05d}.npz" for i in range(len(parts))]


def test_a_signal_in_the_middle_of_a_part_and_then_it_goes_on(trained, alone, tmp_path, monkeypatch):
    """The parts that were done stay done."""
    with monkeypatch.context() as patch:
        patch.setattr(sharing, "write_by", stop_at(12, signal.SIGTERM))
        with pytest.raises(SystemExit):
            analyze(trained, [*ASKED], tmp_path / "out")
    assert read_status(tmp_path / "out")["state"] == "preempted"
    assert list((tmp_path / "out" / "parts").rglob("part_*.npz"))
    analyze(trained, [*ASKED], tmp_path / "out")
    assert_equal(tmp_path / "out", alone)


def in_processes(world: int, folder: Path, out: Path, *overrides: str, killed: int | None = None) -> list[int | None]:
    """As many processes as torchrun would start, with its environment; exit codes. One of them kills itself."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    there = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    forks = multiprocessing.get_context("fork")
    arguments = [(rank, there, folder, out, overrides, killed == rank) for rank in range(world)]
    running = [forks.Process(target=one_of_them, args=given) for given in arguments]
    for process in running:
        process.start()
    for process in running:
        process.join(300)
    return [process.exitcode for process in running]


def one_of_them(
    rank: int, there: dict[str, str], folder: Path, out: Path, overrides: tuple[str, ...], dies: bool
) -> None:
    """What one process does."""
    os.environ.update(there, RANK=str(rank))
    if dies:
        sharing.write_by = stop_at(9, signal.SIGKILL)
    try:
        analyze(folder, list(overrides), out)
    except PlastiscopeError as error:
        print(error)
        sys.exit(2)


def stop_at(n: int, signum: int) -> Callable[[Path, Any], bytes]:
    """`write_by` that sends a signal to its own process instead of writing its nth file."""
    real, written = sharing.write_by, 0

    def stopped(path: Path, save: Any) -> bytes:
        nonlocal written
        written += 1
        if written == n:
            signal.raise_signal(signum)
        return real(path, save)

    return stopped


@pytest.mark.parametrize("share", ["samples", "checkpoints"])
def test_two_processes_write_the_bytes_of_one(trained, alone, tmp_path, share):
    assert in_processes(2, trained, tmp_path / "out", *ASKED, f"replay.share={share}") == [0, 0]
    assert_equal(tmp_path / "out", alone)


def test_three_share_the_checkpoints_one_is_killed_and_one_alone_goes_on(trained, alone, tmp_path, monkeypatch):
    codes = in_processes(3, trained, tmp_path / "out", *ASKED, "replay.share=checkpoints", killed=1)
    assert codes == [2, -9, 2]
    assert read_status(tmp_path / "out")["state"] in ("failed", "preempted")  # it waited, or was told in the middle
    left = set((tmp_path / "out" / "parts").rglob("part_*.npz"))
    assert left
    written: list[Path] = []
    real = sharing.write_by
    monkeypatch.setattr(sharing, "write_by", lambda path, save: (written.append(path), real(path, save)))
    analyze(trained, [*ASKED], tmp_path / "out")
    assert written
    assert not left & set(written)
    assert_equal(tmp_path / "out", alone)


def test_parts_of_other_weights_are_not_taken(trained, alone, tmp_path, monkeypatch):
    """A part is named after the weights too: the same file names with other weights in them are scored anew."""
    shutil.copytree(trained, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(sharing, "write_by", stop_at(3, signal.SIGTERM))
        with pytest.raises(SystemExit):
            analyze(tmp_path / "run", ["analysis=[csl]", "csl.batch_size=5"], tmp_path / "out")
    shutil.copy(tmp_path / "run/snapshots/epoch_000004.pt", tmp_path / "run/snapshots/epoch_000001.pt")
    analyze(tmp_path / "run", ["analysis=[csl]", "csl.batch_size=5"], tmp_path / "out")
    values = plastiscope.load_run(tmp_path / "out").samples("loss")
    analyze(tmp_path / "run", ["analysis=[csl]", "csl.batch_size=5"], tmp_path / "fresh")
    np.testing.assert_array_equal(values.values, plastiscope.load_run(tmp_path / "fresh").samples("loss").values)
