"""Runs that advance together: each is as alone, survives signals and the failure of its neighbours."""

import json
import math
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from plans import make_plan
from plastiscope.analyze import analyze
from plastiscope.data.samples import Batch, side_by_side
from plastiscope.error import ConfigError, RunError
from plastiscope.event import Callback, Context
from plastiscope.experiment import resume, run
from plastiscope.learner.learner import Learner
from plastiscope.load import load_run
from plastiscope.make import load_tasks, make_net
from plastiscope.replicas import memory_of_a_run
from plastiscope.run.status import read_status
from plastiscope.task_shift_mode import task as tasks_module

SMALL = (
    *("num_tasks=2", "epochs=2", "batch_size=16", "threads=1", "analysis=[]", "net.widths=[16,12]"),
    *("data.samples_per_class=20", "task_shift_mode=permuted_input"),
)
SEEDS = (2, 3, 4)
TOGETHER = ("seed=2", "replicas=3")
CBP = ("learner=continual_backprop", "learner.replacement_rate=0.02", "learner.maturity_threshold=5")
CASES = {
    "momentum": ("selection=val_best", "net.norm=batch"),
    "adam": ("learner.optimizer=adam", "learner.lr=0.003", "learner.clip_norm=0.5"),
    "head": ("learner.reset=head", "data.label_noise=0.2"),
    "network": ("learner.reset=network", "task_shift_mode=permuted_output"),
    "continual_backprop": (*CBP, "analysis=[representation,tracking]"),
    "continual_backprop adam": (*CBP, "learner.optimizer=adam", "learner.lr=0.003", "batch_size=1"),
    "continual_backprop, drawn": (*CBP, "learner.accumulate=false"),
    "redo": (
        "learner=redo",
        "learner.reset_period=7",
        "learner.tau=0.5",
        "task_shift_mode=drifting_values",
        "learner.lr=0.001",
    ),
    "listened": ("analysis=[csl,representation]", "csl.mode=online", "representation.steps=all"),
}


def folder_of(group: Path, seed: int) -> Path:
    return group / f"seed_{seed:04d}"


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def files_of(folder: Path) -> set[str]:
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {path for path in paths if not path.startswith("checkpoint/")}


def assert_near(one: Path, other: Path, tolerance: float = 1e-4) -> None:
    """Equal up to rounding: files, keys, numbers, weights."""
    assert files_of(one) == files_of(other)
    for ours, theirs in zip(rows_of(one), rows_of(other), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            if isinstance(value, float) and "weight" not in key and "dormant" not in key and "rank" not in key:
                assert theirs[key] == pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True), key
    for path in sorted((one / "snapshots").iterdir()):
        theirs = torch.load(other / "snapshots" / path.name, weights_only=True)
        for name, value in torch.load(path, weights_only=True).items():
            torch.testing.assert_close(theirs[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_each_run_is_as_alone(overrides, tmp_path):
    run(make_plan(*SMALL, *overrides, *TOGETHER), tmp_path / "group")
    for seed in SEEDS:
        alone = tmp_path / f"alone_{seed}"
        run(make_plan(*SMALL, *overrides, f"seed={seed}"), alone)
        assert_near(alone, folder_of(tmp_path / "group", seed))
        config, theirs = (
            (folder / "config.yaml").read_text() for folder in (alone, folder_of(tmp_path / "group", seed))
        )
        assert config == theirs
    first = [next(row for row in rows_of(folder_of(tmp_path / "group", s)) if row["kind"] == "epoch") for s in SEEDS]
    losses = [row["epoch_loss"] for row in first]
    assert len(set(losses)) == len(SEEDS)
    assert read_status(tmp_path / "group")["state"] == "done"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A group with unit replacement that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "group"
    run(make_plan(*SMALL, *CBP, *TOGETHER), folder)
    return folder


def assert_same_bytes(one: Path, other: Path) -> None:
    for seed in SEEDS:
        ours, theirs = folder_of(one, seed), folder_of(other, seed)
        assert (ours / "metrics.jsonl").read_bytes() == (theirs / "metrics.jsonl").read_bytes()
        for path in sorted((ours / "snapshots").iterdir()):
            assert path.read_bytes() == (theirs / "snapshots" / path.name).read_bytes()


@pytest.mark.parametrize("steps", [3, 20])
def test_a_signal_in_the_middle_of_an_epoch(whole, tmp_path, monkeypatch, steps):
    made, step = 0, Learner.step

    def counted(self, batch):
        nonlocal made
        made += 1
        if made == steps:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", counted)
        with pytest.raises(SystemExit) as stopped:
            run(make_plan(*SMALL, *CBP, *TOGETHER), tmp_path / "group")
    assert stopped.value.code == 128 + signal.SIGTERM
    for folder in (tmp_path / "group", folder_of(tmp_path / "group", 3)):
        assert read_status(folder)["state"] == "preempted"
    resume(tmp_path / "group", [])
    assert_same_bytes(whole, tmp_path / "group")


@pytest.mark.parametrize("calls", [4, 9, 15])
def test_a_signal_while_one_of_them_is_evaluated(whole, tmp_path, monkeypatch, calls):
    """Those that have had their row do not get it again."""
    seen, score = 0, tasks_module.score

    def counted(*arguments):
        nonlocal seen
        seen += 1
        if seen == calls:
            signal.raise_signal(signal.SIGTERM)
        return score(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tasks_module, "score", counted)
        with pytest.raises(SystemExit):
            run(make_plan(*SMALL, *CBP, *TOGETHER), tmp_path / "group")
    run(make_plan(*SMALL, *CBP, *TOGETHER), tmp_path / "group")
    assert_same_bytes(whole, tmp_path / "group")


def test_more_tasks_extend_all_of_them(whole, tmp_path):
    run(make_plan(*SMALL, *CBP, *TOGETHER, "num_tasks=1"), tmp_path / "group")
    run(make_plan(*SMALL, *CBP, *TOGETHER), tmp_path / "group")
    assert_same_bytes(whole, tmp_path / "group")


def test_a_finished_group_is_left_alone(whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    run(make_plan(*SMALL, *CBP, *TOGETHER), whole)
    assert "done already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


@dataclass(kw_only=True)
class Poison(Callback):
    """Makes a weight of one run infinite in the first step of its second epoch."""

    name = "poison"
    seed: int = 3

    def on_update(self, context: Context) -> None:
        if context.seed == self.seed and context.epochs_completed == 1 and context.batch_index == 0:
            with torch.no_grad():
                next(context.net.parameters())[0, 0] = math.inf


def poisoned(*overrides: str):
    plan = make_plan(*SMALL, *TOGETHER, *overrides)
    plan.analyses.append(Poison())
    return plan


def test_one_that_fails_leaves_the_others_as_they_are(tmp_path, capsys):
    run(poisoned(), tmp_path / "group")
    run(make_plan(*SMALL, *TOGETHER), tmp_path / "healthy")
    for seed in (2, 4):
        assert_near(folder_of(tmp_path / "healthy", seed), folder_of(tmp_path / "group", seed), 1e-6)
        assert read_status(folder_of(tmp_path / "group", seed))["state"] == "done"
    failed = folder_of(tmp_path / "group", 3)
    status = read_status(failed)
    assert status["state"] == "failed"
    assert "NaN or infinite at step 1 of epoch 1 of task 0" in status["error"]
    assert [row["kind"] for row in rows_of(failed)] == ["epoch"]
    assert "failed: seed_0003" in capsys.readouterr().err
    assert read_status(tmp_path / "group")["state"] == "done"


def test_one_that_failed_stays_so_over_a_resume(tmp_path):
    plan = poisoned("num_tasks=1")
    run(plan, tmp_path / "group")
    run(poisoned(), tmp_path / "group")
    assert read_status(folder_of(tmp_path / "group", 3))["state"] == "failed"
    assert len(rows_of(folder_of(tmp_path / "group", 4))) == 6


def test_all_that_fail_stop_the_group(tmp_path):
    with pytest.raises(RunError, match="NaN or infinite"):
        run(make_plan(*SMALL, *TOGETHER, "learner.lr=1e30"), tmp_path / "group")
    for folder in (tmp_path / "group", folder_of(tmp_path / "group", 2), folder_of(tmp_path / "group", 4)):
        assert read_status(folder)["state"] == "failed"


REFUSED = {
    "convolutions": (("net=convnet", "data.resize=32"), "slower together than one after another on a CPU"),
    "dropout": (("net.dropout=0.1",), "dropout_1.*draws from the generator"),
    "memory": (("replicas=100000000",), r"GB are free; replicas=\d+ would fit"),
    "sizes": (
        ("task_shift_mode=class_incremental", "data.samples_per_class=null"),
        "other numbers of training samples",
    ),
    "fractions": (("learner=rank_restoring_cbp", "learner.accumulate=false"), "accumulate=false cannot be stacked"),
    "replay": (("replay.folder=somewhere",), "replicas.*folder of one run"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_advance_together_is_refused(overrides, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run(make_plan(*SMALL, *TOGETHER, *overrides), tmp_path / "group")
    assert not (tmp_path / "group" / "run.json").exists()


def test_data_that_are_read_by_processes_are_refused(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    data = ("data=image_folder", f"data.folder={tmp_path / 'images'}", "data.size=8", "data.validation_share=0")
    plan = make_plan(*SMALL[:6], *TOGETHER, *data, "selection=last", "task_shift_mode=none")
    with pytest.raises(ConfigError, match=r"by 2 processes, and 3 runs would start 6"):
        run(plan, tmp_path / "group")


def test_one_of_them_is_not_resumed_alone(whole):
    with pytest.raises(RunError, match=r"advance together; go on with all of them, in .*group"):
        resume(folder_of(whole, 3), ["num_tasks=5"])


def test_one_of_them_is_a_run_for_all_who_read(whole, tmp_path):
    loaded = load_run(folder_of(whole, 3))
    assert loaded.config["seed"] == 3
    assert loaded.config["replicas"] == 1
    stored = torch.load(folder_of(whole, 3) / "snapshots" / "epoch_000004.pt", weights_only=True)
    for name, value in loaded.net(task=1).state_dict().items():
        assert torch.equal(value, stored[name])
    out = analyze(folder_of(whole, 3), ["analysis=[representation]", "use_wandb=false"], tmp_path / "out")
    rows = [row for row in rows_of(out) if row["kind"] == "task_end"]
    theirs = [row for row in rows_of(folder_of(whole, 3)) if row["kind"] == "task_end"]
    assert [row["task_test_accuracy"] for row in rows] == [row["task_test_accuracy"] for row in theirs]


def test_more_runs_than_memory_are_refused_by_what_a_run_takes():
    """Of a small network the objects of a run count most: a run of these takes more than a megabyte."""
    plan = make_plan(*SMALL, "net.widths=[4]")
    data, shift = load_tasks(plan, torch.device("cpu"))
    net = make_net(plan, data.input_shape, shift.outputs)
    each = memory_of_a_run(plan, net, net.unit_description(), data.input_shape)
    assert 2**20 < each < 2**21
    wide = make_plan(*SMALL, "net.widths=[1000]", "selection=last", "learner.momentum=0")
    net = make_net(wide, data.input_shape, shift.outputs)
    parameters = 64 * 1000 + 1000 + 1000 * 10 + 10
    assert memory_of_a_run(wide, net, net.unit_description(), data.input_shape) - 2**20 == pytest.approx(
        12 * parameters + 12 * 16 * (64 + 2000)
    )


def test_one_with_an_infinite_weight_stops_no_decomposition(tmp_path):
    """Spectral regularisation decomposes the weights of all runs at once."""
    run(poisoned("learner=spectral_regularization", "learner.exact=true"), tmp_path / "group")
    states = [read_status(folder_of(tmp_path / "group", seed))["state"] for seed in SEEDS]
    assert states == ["done", "failed", "done"]


def test_the_group_itself_is_not_loaded(whole):
    with pytest.raises(RunError, match=r"load one of them, such as .*seed_0002"):
        load_run(whole)


def test_the_group_itself_is_not_analysed(whole):
    with pytest.raises(ConfigError, match="folder of one run, such as seed_0000"):
        analyze(whole, ["analysis=[representation]"])


def test_each_has_its_own_wandb_run(tmp_path):
    run(make_plan(*SMALL, *TOGETHER, "num_tasks=1", "use_wandb=true", "wandb.mode=offline"), tmp_path / "group")
    for seed in SEEDS:
        (offline,) = (folder_of(tmp_path / "group", seed) / "wandb").glob("offline-run-*")
        assert list(offline.glob("run-*.wandb"))


@pytest.mark.parametrize("start", [0, 1, 4, 5, 6])
@pytest.mark.parametrize("n", [20, 22])
def test_blocks_are_the_batches(n, start):
    data, _ = load_tasks(make_plan("data.label_noise=0.1"), torch.device("cpu"))
    samples, order = data.train.select(torch.arange(n)), torch.randperm(n)
    batches = list(samples.batches(4, order, start=start))
    steps = [batch for block in samples.blocks(4, 3, order, start=start) for batch in block.steps()]
    assert len(batches) == len(steps) == max(-(-n // 4) - start, 0)
    for batch, step in zip(batches, steps, strict=True):
        assert torch.equal(batch.inputs, step.inputs)
        assert torch.equal(batch.targets, step.targets)
        assert torch.equal(batch.ids, step.ids)


def test_weights_of_samples_go_with_them():
    batches = [Batch(torch.randn(2, 3), torch.arange(2), torch.arange(2), torch.rand(2)) for _ in range(4)]
    both = side_by_side(batches, 0)
    for batch, step in zip(batches, both.steps(), strict=True):
        assert torch.equal(step.weights, batch.weights)
    assert torch.equal(side_by_side(batches, 1).weights[:, 2], batches[2].weights)
