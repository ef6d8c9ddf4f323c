"""What holds for every analysis there is: it looks and never touches, it survives a stop, its state is plain."""

import io
import shutil
import signal
from pathlib import Path

import pytest
import torch
from analysis_context import MLP, TINY, same, watch

from plans import make_plan
from plastiscope.build import Plan, known_analyses
from plastiscope.event import Callback
from plastiscope.experiment import run
from plastiscope.figure.run import draw_run
from plastiscope.learner.learner import Learner
from plastiscope.run.log import read_rows

NET = (*MLP, "net.norm=batch", "net.dropout=0.3", "learner.lr=0.01")
"""Buffers that training mode would change, and random numbers that a forward would draw."""
THOROUGH = {
    "csl": (
        *("csl.mode=both", "csl.initial=true", "csl.input_gradient=true", "csl.all_outputs=true"),
        *("csl.batch_size=50", "samples.population=run", "samples.validation=true"),
    ),
    "curvature": (
        *("curvature.every=1", "curvature.initial=true", "curvature.parameter_gradient=true", "curvature.legacy=true"),
        *("curvature.noise=true", "curvature.legacy_batch=20", "samples.population=run", "samples.validation=true"),
    ),
    "lla": ("lla.profile=smoke", "lla.when=both", "lla.enable_mode_connectivity=true", "lla.spectrum.backend=retained"),
    "online": ("online.bin_size=7", "online.raw=true"),
    "probe": ("probe.steps=6", "probe.fresh_nets=2", "probe.learner=own", "probe.eval_every=2"),
    "tracking": ("tracking.export_csv=true",),
    "smoothness": (
        *("smoothness.when=both", "smoothness.epochs=2", "smoothness.batch_norm=batch", "smoothness.num_samples=30"),
        *("smoothness.batch_size=20", "smoothness.jacobian_samples=2", "smoothness.patch=4"),
    ),
    "representation": ("representation.when=both", "representation.steps=all", "representation.samples=40"),
}
"""Settings under which an analysis does all it can."""
NOT_EQUAL = {"run.json", "status.json", "timings.jsonl", ".lock"}
CLOCK_VALUES = "*/lla/*_training/summary.json"
"""The only artifact of an analysis that holds seconds."""


def plan_with(name: str) -> Plan:
    return make_plan(*TINY, *NET, f"analysis=[{name}]", *THOROUGH.get(name, ()))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != "checkpoint")
    equal = (path for path in files if path.name not in NOT_EQUAL and not path.match(CLOCK_VALUES))
    return {str(path.relative_to(folder)): path.read_bytes() for path in equal}


def last_state(folder: Path) -> dict:
    path = max((folder / "checkpoint").glob("*.pt"), key=lambda path: path.stat().st_mtime_ns)
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("without") / "run"
    run(make_plan(*TINY, *NET, "analysis=[]"), folder)
    return folder


@pytest.fixture(scope="module", params=known_analyses())
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An analysis and the folder of a run with it that was never stopped."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    run(plan_with(request.param), folder)
    return request.param, folder


def test_training_is_bit_identical_with_it(without, whole):
    _, folder = whole
    with_it, without_it = last_state(folder), last_state(without)
    for key in ("net", "learner", "generators"):
        assert same(with_it[key], without_it[key]), key
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] != "run_begin"]  # of the analysis alone
    for one, other in zip(rows, read_rows(without / "metrics.jsonl"), strict=True):
        assert {key: value for key, value in one.items() if key in other} == other
    for path in (without / "snapshots").iterdir():
        assert (folder / "snapshots" / path.name).read_bytes() == path.read_bytes()


def test_it_gives_numbers_under_its_own_name(without, whole):
    name, folder = whole
    usual = set().union(*(row for row in read_rows(without / "metrics.jsonl")))
    rows = read_rows(folder / "metrics.jsonl")
    own = {key: value for row in rows for key, value in row.items() if key not in usual}
    assert own
    if name == "lla":  # published names
        assert all(key.split("/")[0] in ("pre_training", "post_training") for key in own)
    else:
        assert all(len(parts := key.split("/")) == 4 and parts[0] == name for key in own)
    assert all(isinstance(value, float) for value in own.values())
    assert list(folder.glob(f"task_*/{name}/**/summary.json"))


@pytest.mark.parametrize("name", known_analyses())
def test_no_event_changes_anything(name, tmp_path):
    """Weights, buffers, gradients, modes, hooks and generators are equal before and after each of its events."""
    plan = plan_with(name)
    seen = watch(plan.analyses[0])
    run(plan, tmp_path / "run")
    assert seen


@pytest.mark.parametrize("steps", [2, 9, 16])
def test_stopped_in_the_middle_of_an_epoch_it_goes_on(whole, tmp_path, monkeypatch, steps):
    """In the first epoch of task 0, in the second one, in a later task."""
    name, uninterrupted = whole
    taken, step = 0, Learner.step

    def counted(self, batch):
        nonlocal taken
        taken += 1
        if taken == steps:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", counted)
        with pytest.raises(SystemExit):
            run(plan_with(name), tmp_path / "run")
    run(plan_with(name), tmp_path / "run")
    assert_equal(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("event", ["on_task_begin", "on_epoch_end", "on_task_end"])
def test_stopped_after_it_has_looked_it_looks_again(whole, tmp_path, event):
    """The signal comes when the analysis has taken its numbers and changed its state, but no row is written yet."""
    name, uninterrupted = whole
    plan = plan_with(name)
    call = getattr(plan.analyses[0], event)

    def interrupted(context):
        numbers = call(context)
        if context.task_idx == 1:
            signal.raise_signal(signal.SIGTERM)
        return numbers

    setattr(plan.analyses[0], event, interrupted)
    if getattr(type(plan.analyses[0]), event) is getattr(Callback, event):
        pytest.skip(f"{name} does not listen to {event}")
    with pytest.raises(SystemExit):
        run(plan, tmp_path / "run")
    run(plan_with(name), tmp_path / "run")
    assert_equal(tmp_path / "run", uninterrupted)


def test_its_state_is_plain_and_complete(whole):
    """torch.load without pickled code gives back what was saved, and an analysis that took it has the same state."""
    name, folder = whole
    state = last_state(folder)["runs"][0]["callbacks"][name]
    analysis = plan_with(name).analyses[0]
    analysis.load_state_dict(state)
    buffer = io.BytesIO()
    torch.save(analysis.state_dict(), buffer)
    buffer.seek(0)
    assert same(torch.load(buffer, weights_only=True), state)


def test_its_runs_can_be_drawn(whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "run")
    drawn = draw_run(tmp_path / "run")
    assert tmp_path / "run" / "figures" / "accuracy_per_task.png" in drawn
    assert all(path.exists() for path in drawn)


def assert_equal(folder: Path, other: Path) -> None:
    one, two = contents(folder), contents(other)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
