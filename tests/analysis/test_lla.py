"""The landscape of a run's tasks: when it is looked at, over which samples, along which path, after which stops."""

import multiprocessing
import os
import signal
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_context import TINY, make_context

from forks import killed
from plans import make_plan
from plastiscope.analysis.frozen_set import frozen_set
from plastiscope.analysis.lla import Lla, When, placed, spread
from plastiscope.analyze import analyze
from plastiscope.error import ConfigError
from plastiscope.event import Callback, Context
from plastiscope.experiment import run
from plastiscope.landscape import work
from plastiscope.landscape.look import Here, SavedPoint
from plastiscope.landscape.settings import (
    BackendChoice,
    BatchNormPolicy,
    BatchNormSettings,
    ConnectivitySettings,
    Endpoints,
    EvaluationSettings,
    LossSettings,
    Profile,
    SpectrumSettings,
    Split,
)
from plastiscope.learner.learner import Reset
from plastiscope.measure.evaluation import score
from plastiscope.run.log import read_rows
from plastiscope.run.storage import read_json

SMALL = ("net=mlp", "net.widths=[8]", "selection=last", "analysis=[lla]", "lla.profile=smoke")
FIXED = ("lla.spectrum.backend=retained", "lla.planes.grid_resolution=3")
NOT_EQUAL = {"run.json", "status.json", "timings.jsonl", ".lock", "summary.json"}


def plan(*overrides: str):
    return make_plan(*TINY, *SMALL, *FIXED, *overrides)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "checkpoint")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name not in NOT_EQUAL}


def small(**options) -> Lla:
    route = SpectrumSettings(backend=BackendChoice.retained)
    analysis = Lla(**{"profile": Profile.smoke, "enable_sam": False, "spectrum": route} | options)
    return analysis


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of three tasks with looks before and after each, and curves."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(plan("lla.when=both", "lla.enable_mode_connectivity=true", "snapshots.every=1"), folder)
    return folder


def test_numbers_of_both_ends_are_in_the_row_of_the_end_and_at_once_in_files(whole):
    for row in read_rows(whole / "metrics.jsonl"):
        looks = {key.split("/")[0] for key in row if "_training/" in key}
        assert looks == ({"pre_training", "post_training"} if row["kind"] == "task_end" else set())
        for phase in looks:
            own = {k.removeprefix(f"{phase}/"): v for k, v in row.items() if k.startswith(phase)}
            stored = read_json(whole / f"task_{row['task_idx']:04d}_mlp" / "lla" / phase / "summary.json")
            assert stored["numbers"] == own
            assert {"spectrum", "planes", "sam", "mode"} <= stored["seconds"].keys()
    pre, post = (read_json(whole / "task_0001_mlp" / "lla" / f"{p}_training" / "summary.json") for p in ("pre", "post"))
    assert (pre["epochs_completed"], post["epochs_completed"], post["task_idx"]) == (2, 4, 1)
    assert pre["evaluation_set"] == post["evaluation_set"]  # one frozen set a task
    assert pre["numbers"]["plane_hessian_center_loss"] > post["numbers"]["plane_hessian_center_loss"]


def test_seconds_of_a_tasks_looks_are_in_the_row_of_its_end(whole):
    """By phase, of both looks together, and in all; in timings.jsonl alone."""
    ends = [row for row in read_rows(whole / "timings.jsonl") if "lla_runtime_sec" in row]
    assert [(row["kind"], row["task_idx"]) for row in ends] == [("task_end", k) for k in range(3)]
    for row in ends:
        place = whole / f"task_{row['task_idx']:04d}_mlp" / "lla"
        looks = [read_json(place / f"{phase}_training" / "summary.json")["seconds"] for phase in ("pre", "post")]
        phases = {key.removeprefix("lla_runtime_sec/"): row[key] for key in row if key.startswith("lla_runtime_sec/")}
        assert phases == {key: sum(look[key] for look in looks) for key in looks[0]}
        assert row["lla_runtime_sec"] == pytest.approx(sum(phases.values()))
    assert not [key for row in read_rows(whole / "metrics.jsonl") for key in row if "runtime" in key]


def test_the_path_of_a_training(whole):
    """Its epochs, without the last, whose weights are looked at; scratch is gone when the run is."""
    record = read_json(whole / "task_0001_mlp" / "lla" / "post_training" / "planes" / "trajectory.json")
    assert record["points"] == ["epoch 2", "epoch 3", "the weights"]
    assert "absent" not in read_json(whole / "task_0001_mlp" / "lla" / "post_training" / "summary.json")
    assert not list(whole.rglob("trajectory")) + list(whole.rglob("parts"))
    before = read_json(whole / "task_0001_mlp" / "lla" / "pre_training" / "summary.json")
    assert "planes/trajectory" in before["absent"]


SELECTS = ("selection=val_best", "epochs=5", "num_tasks=1", "lla.planes.max_checkpoints=2", "lla.enable_sam=false")


def test_the_path_of_a_training_that_selects(tmp_path):
    """The best epoch in its place, the way beyond it, and the weights after the last epoch; against the snapshots."""
    folder = tmp_path / "run"
    run(plan(*SELECTS, "learner.lr=1.5", "lla.enable_spectrum=false", "snapshots.every=1"), folder)
    scores = [row["validation_accuracy"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "epoch"]
    best = 1 + int(np.argmax(scores))
    assert 0 < best < 5  # else this shows nothing
    record = read_json(folder / "task_0000_mlp/lla/post_training/planes/trajectory.json")
    others = [f"epoch {e}" for e in (0, 2, 5) if e != best]
    assert record["points"] == sorted([*others, f"epoch {best}, selected"])
    assert record["points"][record["here"]] == f"epoch {best}, selected"
    with np.load(folder / "task_0000_mlp/lla/post_training/planes/trajectory.npz") as stored:
        path, distances = stored["path"], np.hypot(np.linalg.norm(stored["path"], axis=1), stored["residuals"])
    assert path[record["here"]].tolist() == [0, 0]
    initial, end = (torch.load(folder / f"snapshots/epoch_00000{e}.pt", weights_only=True) for e in (0, 5))
    squares = sum((initial[name] - end[name]).double().square().sum().item() for name in end)  # end: the selected ones
    assert distances[0] == pytest.approx(squares**0.5, rel=1e-6)
    assert distances[-1] > 0.01  # the last epoch's weights, which no snapshot has
    again = analyze(folder, [*SMALL[3:], *FIXED, "lla.enable_sam=false", "figures=false"], tmp_path / "again")
    replayed = read_json(again / "task_0000_mlp/lla/post_training/planes/trajectory.json")
    assert replayed["points"] == [f"epoch {e}" + ", selected" * (e == best) for e in range(5)]
    assert replayed["here"] == best


@pytest.mark.parametrize(
    ("here", "others", "said"),
    [
        (6, ["epoch 0", "epoch 2", "epoch 4"], Here("the weights", 3)),
        (2, ["epoch 0", "epoch 4", "epoch 6"], Here("epoch 2, selected", 1)),
        (3, ["epoch 0", "epoch 2", "epoch 4", "epoch 6"], Here("epoch 3, selected", 2)),
        (None, ["epoch 0", "epoch 2", "epoch 4", "epoch 6"], Here("the weights, selected", None, False)),
    ],
)
def test_where_the_weights_lie_on_their_path(here, others, said):
    points, found = placed({e: SavedPoint(f"epoch {e}", dict) for e in (0, 2, 4, 6)}, here, 6)
    assert [point.name for point in points] == others
    assert found == said


def test_curves_begin_at_the_end_of_the_task_before(whole):
    first = read_json(whole / "task_0000_mlp" / "lla" / "post_training" / "summary.json")
    assert first["absent"]["mode"] == "the first task has no task before it"
    numbers = read_json(whole / "task_0001_mlp" / "lla" / "post_training" / "summary.json")["numbers"]
    assert {"mode_linear_barrier", "mode_bezier_barrier"} <= numbers.keys()


def test_a_replay_of_the_snapshots_sees_the_same_landscape(whole, tmp_path):
    """The same weights, samples, path and other end: the same files of the looks after training, bit for bit."""
    overrides = [*SMALL[3:], *FIXED, "lla.enable_mode_connectivity=true", "figures=false"]
    folder = analyze(whole, overrides, tmp_path / "again")
    for task in range(3):
        place = f"task_{task:04d}_mlp/lla/post_training"
        assert contents(folder / place) == contents(whole / place)


def test_a_replay_may_have_another_grid_and_fewer_points(whole, tmp_path):
    other = ["lla.planes.grid_resolution=5", "lla.planes.max_checkpoints=1", "replay.start=1", "replay.end=2"]
    off = ["figures=false", "lla.enable_sam=false", "lla.enable_spectrum=false"]
    folder = analyze(whole, [*SMALL[3:], FIXED[0], *other, *off], tmp_path / "finer")
    place = folder / "task_0000_mlp/lla/post_training/planes"
    with np.load(place / "hessian.npz") as plane:
        assert plane["losses"].shape == (5, 5)
    assert read_json(place / "trajectory.json")["points"] == ["epoch 1", "the weights"]


def test_ids_are_the_stratified_sample_and_the_centre_is_its_loss(whole):
    """Recorded ids against the sample drawn anew; centre loss against an evaluation of the saved weights."""
    with np.load(whole / "task_0002_mlp/lla/post_training/evaluation_set.npz") as stored:
        ids = stored["ids"]
    context = make_context(whole.parent / "context", *SMALL[:2], net=(), task=2)
    found = frozen_set(context, num_samples=64, seed=42, split="train")
    assert ids.tolist() == found.ids.tolist()
    context.net.load_state_dict(torch.load(whole / "snapshots" / "epoch_000006.pt", weights_only=True))
    expected = score(context.net.eval(), [(found.inputs, found.targets)], found.loss, found.active_outputs)
    numbers = read_json(whole / "task_0002_mlp/lla/post_training/summary.json")["numbers"]
    assert numbers["plane_hessian_center_loss"] == pytest.approx(expected.loss, rel=1e-6)


def die_within_a_look(folder: Path, parts: int) -> None:
    """What a process does that is killed when it has written so many parts of a look; in a fork of this one."""
    share_out, written = work.share_out, 0

    def counted(folder, count, compute, processes, **options):
        def computed(i):
            nonlocal written
            written += 1
            if written > parts:
                os.kill(os.getpid(), signal.SIGKILL)
            return compute(i)

        return share_out(folder, count, computed, processes, **options)

    work.share_out = counted
    run(plan("num_tasks=2"), folder)


@pytest.mark.parametrize("parts", [2, 9, 25])
def test_killed_within_a_look_it_goes_on_with_what_is_finished(whole_of_two, tmp_path, parts):
    """In the spectrum of the first look, in its planes, in the second look: the same bytes in the end."""
    process = multiprocessing.get_context("fork").Process(target=die_within_a_look, args=(tmp_path / "run", parts))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    left = len(list((tmp_path / "run").rglob("parts/**/*.npz")))
    assert left > 0
    run(plan("num_tasks=2"), tmp_path / "run")
    assert contents(tmp_path / "run") == contents(whole_of_two)


@dataclass(kw_only=True)
class Death(Callback):
    """Ends the process in the steps of the last epoch of task 1; the first one is in a checkpoint."""

    name = "death"

    def on_batch_end(self, context: Context) -> None:
        if (context.task_idx, context.epoch, context.batch_index) == (1, 1, 1):
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("learner", ["backprop", "continual_backprop"])
def test_killed_in_mid_training_it_ends_with_the_bytes_of_one_never_stopped(tmp_path, learner):
    """Artifacts, snapshots and numbers, with a curve between the ends of tasks and a path through epochs."""
    changes = (f"learner={learner}", "lla.enable_mode_connectivity=true", "snapshots.every=1", "checkpoint_every_s=0")
    dying = plan(*changes, "num_tasks=2")
    dying.analyses.append(Death())
    assert killed(lambda: run(dying, tmp_path / "stopped"))
    assert read_json(tmp_path / "stopped" / "status.json")["state"] == "running"
    for name in ("stopped", "whole"):
        run(plan(*changes, "num_tasks=2"), tmp_path / name)
    found = contents(tmp_path / "stopped")
    assert found == contents(tmp_path / "whole")
    assert {"metrics.jsonl", "snapshots/epoch_000004.pt"} <= found.keys()
    assert any("/lla/post_training/" in name and name.endswith(".npz") for name in found)


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "run"
    run(plan("num_tasks=2"), folder)
    return folder


def look(folder: Path, analysis: Lla, *overrides: str, task: int = 0) -> dict[str, float]:
    """Numbers of a look at the end of a task, nothing trained."""
    context = make_context(folder, *SMALL[:2], *overrides, net=(), task=task)
    return analysis.on_task_end(context)


@pytest.mark.parametrize(
    ("off", "part", "prefix"),
    [
        ("enable_spectrum", "spectrum", "hess"),
        ("enable_planes", "planes", "plane"),
        ("enable_sam", "sam", "sam"),
        ("enable_mode_connectivity", "mode", "mode"),
    ],
)
def test_what_is_off_leaves_no_file_and_no_key(tmp_path, off, part, prefix):
    on = {"enable_sam": True, "enable_mode_connectivity": True}
    numbers = look(tmp_path / "run", small(**on | {off: False}), task=1)
    assert not list((tmp_path / "run").rglob(part))
    assert not [key for key in numbers if key.startswith(f"post_training/{prefix}")]
    others = {"spectrum", "planes", "sam", "mode"} - {part} - ({"sam"} if off == "enable_planes" else set())
    assert {path.name for path in (tmp_path / "run").glob("*/lla/post_training/*/")} == others | {"parts"}


def test_all_off_is_legal_and_does_nothing(tmp_path):
    nothing = small(enable_spectrum=False, enable_planes=False)
    assert look(tmp_path / "run", nothing) == {}
    assert not list((tmp_path / "run").rglob("lla"))


def test_when_and_every(tmp_path):
    context = make_context(tmp_path / "run", *SMALL[:2], net=(), task=1)
    few = {"enable_planes": False}
    assert small(when=When.pre, **few).on_task_begin(context).keys() >= {"pre_training/hessian_top_eig_1"}
    assert small(when=When.pre, **few).on_task_end(context) == {}
    assert small(when=When.post, **few).on_task_begin(context) == {}
    assert small(every=3, **few).on_task_end(context) == {}


@pytest.mark.parametrize(
    ("n", "most", "chosen"),
    [(4, 10, [0, 1, 2, 3]), (12, 4, [0, 3, 6, 9]), (10, 3, [0, 3, 6]), (5, 1, [0]), (0, 3, [])],
)
def test_points_of_the_path_are_spread_over_the_epochs(n, most, chosen):
    assert spread(range(n), most) == chosen


def test_no_other_end(tmp_path):
    """A head that was made anew, another run without such weights; and one with them."""
    context = make_context(tmp_path / "run", *SMALL[:2], net=(), task=1)
    curves = small(enable_mode_connectivity=True)
    assert curves._start(context)[0] is not None
    context.learner_resets_head = True
    assert curves._start(context)[0] is None
    assert "head was made anew" in curves._start(context)[1]
    other = make_context(tmp_path / "other", *SMALL[:2], net=(), task=1)
    settings = ConnectivitySettings(endpoints=Endpoints.run, run=str(other.run_folder))
    elsewhere = small(enable_mode_connectivity=True, mode_connectivity=settings)
    assert elsewhere._start(context) == (
        None,
        f"{other.snapshots.folder} has no weights after 4 epochs; there are: 0, 2",
    )
    other.snapshots.save(4, other.net.state_dict())
    point, why = elsewhere._start(context)
    assert why == ""
    assert point.load().keys() == other.net.state_dict().keys()


def test_statistics_of_planes_are_of_the_training_set_with_curves_or_without(tmp_path):
    """Estimated anew from samples of the training, of which the frozen set holds a part."""
    drawn = []
    for connected in (False, True):
        anew = BatchNormSettings(policy=BatchNormPolicy.recompute)
        options = {"bn": anew, "evaluation_data": EvaluationSettings(num_samples=10), "enable_spectrum": False}
        analysis = small(enable_mode_connectivity=connected, **options)
        folder = tmp_path / str(connected)
        look(folder, analysis, "net.norm=batch")
        with np.load(next(folder.rglob("planes/random_0.npz"))) as stored:
            drawn.append(stored["losses"])
    assert np.array_equal(*drawn)


def test_regression(tmp_path):
    """Loss and targets are those that are trained."""
    numbers = look(tmp_path / "run", small(), "task_shift_mode=drifting_values")
    context = make_context(tmp_path / "again", *SMALL[:2], "task_shift_mode=drifting_values", net=())
    found = frozen_set(context, num_samples=64, seed=42)
    outputs = context.net(found.inputs)[:, : found.active_outputs]
    expected = (outputs - found.targets.view_as(outputs)).square().mean().item()
    assert numbers["post_training/plane_hessian_center_loss"] == pytest.approx(expected, rel=1e-6)


def test_another_split_and_fewer_samples_than_asked(tmp_path):
    looks = {}
    for split in (Split.train, Split.test):
        data = EvaluationSettings(split=split, num_samples=500)
        numbers = look(tmp_path / split.value, small(evaluation_data=data, enable_planes=False))
        summary = read_json(next((tmp_path / split.value).rglob("summary.json")))
        assert summary["split"] == split.value
        assert "500 samples were asked for" in summary["notes"][0]
        looks[split] = numbers["post_training/hessian_top_eig_1"]
    assert looks[Split.train] != looks[Split.test]


def test_another_seed_draws_other_samples(tmp_path):
    drawn = []
    for seed in (1, 2):
        data = EvaluationSettings(fixed_eval_seed=seed, num_samples=10)
        look(tmp_path / str(seed), small(evaluation_data=data, enable_planes=False))
        with np.load(next((tmp_path / str(seed)).rglob("evaluation_set.npz"))) as stored:
            drawn.append(stored["ids"].tolist())
    assert [len(ids) for ids in drawn] == [10, 10]
    assert drawn[0] != drawn[1]


def test_weight_decay_is_the_learners(tmp_path):
    with_penalty = small(loss=LossSettings(include_weight_decay=True), enable_planes=False)
    values = {}
    for decay in (0.0, 0.5):
        found = look(tmp_path / str(decay), with_penalty, f"learner.weight_decay={decay}")
        values[decay] = found["post_training/hessian_top_eig_1"]
    assert values[0.5] - values[0.0] == pytest.approx(0.5, abs=1e-5)


def test_routes_are_kept_with_the_run(tmp_path):
    """Chosen at the first look, by timing; later looks and a resume have the same."""
    analysis = small(enable_planes=False, spectrum=SpectrumSettings())
    look(tmp_path / "run", analysis)
    kept = analysis.state_dict()
    assert kept["routes"]["is_timed"] is True
    later = small(enable_planes=False, spectrum=SpectrumSettings())
    later.load_state_dict(kept)
    look(tmp_path / "later", later, task=1)
    assert read_json(next((tmp_path / "later").rglob("summary.json")))["routes"] == kept["routes"]


def test_reset_networks_are_told_apart_by_the_plan(tmp_path):
    context = make_context(tmp_path / "run", *SMALL[:2], f"learner.reset={Reset.network.value}", net=(), task=1)
    assert small(enable_mode_connectivity=True)._start(context)[0] is None


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("lla.planes.grid_resolution=4", "lla.planes.grid_resolution=4: must be odd"),
        ("lla.planes.span=[0.1,0.1]", "lla.planes.span=[0.1, 0.1]: must be [-s, s]"),
        ("lla.planes.span=[-0.5,0.1]", "must be [-s, s]"),
        ("lla.spectrum.power_iters=5", "is PyHessian's"),
        ("+lla.spectrum.esd.chunk_size=3", "there is no such setting"),
        ("lla.when=sometimes", "lla.when"),
        ("lla.mode_connectivity.endpoints=run", "run=<folder> go together"),
        ("lla.params=[nothing]", "lla.params=['nothing']: chooses no parameter"),
        ("lla.budget.abort_if_estimated_hours_over=1e-9", "lla.budget.abort_if_estimated_hours_over=1e-09: this look"),
        ("lla.budget.abort_if_estimated_hours_over=1e-9", "set lla.budget.max_seconds, a smaller profile, or"),
        (
            "lla.enable_planes=false lla.enable_spectrum=false",
            "lla.enable_sam=true: works on planes; set lla.enable_planes=true too, or lla.enable_",
        ),
        ("lla.shard_data=sometimes", "lla.shard_data=sometimes: must be one of auto, true, false"),
    ],
)
def test_mistakes(tmp_path, wrong, text):
    with pytest.raises(ConfigError) as told:
        run(plan(*wrong.split(" "), "num_tasks=1", "epochs=1"), tmp_path / "run")
    assert text in str(told.value)
    assert not list(tmp_path.rglob("metrics.jsonl")) or not read_rows(tmp_path / "run" / "metrics.jsonl")


def test_fields_are_the_settings_and_when_and_every():
    assert {field.name for field in fields(Lla)} - {field.name for field in fields(Lla.__mro__[1])} == {"when", "every"}
