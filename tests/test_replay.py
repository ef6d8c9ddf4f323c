"""Saved weights are walked: a run's own give its own numbers, others' are scored in the order of their classes."""

import shutil
import signal
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import plastiscope
from plans import make_plan
from plastiscope.build import Plan
from plastiscope.error import ConfigError, RunError
from plastiscope.event import Callback, Context
from plastiscope.experiment import run
from plastiscope.formats.checkpoints import find_checkpoints
from plastiscope.make import load_tasks, make_net
from plastiscope.run.log import read_rows
from plastiscope.run.status import read_status
from plastiscope.run.storage import read_json
from plastiscope.source import saved_epochs
from plastiscope.walk import Stop, own_task, stops

TINY = ("data.samples_per_class=12", "num_tasks=3", "epochs=2", "threads=1", "net.widths=[12,8]", "net.norm=batch")
LAST = ("selection=last", "snapshots.every=1", "learner.reset=head", "learner.milestones=[1]")
LOOKS = (
    "analysis=[continual,representation,csl,curvature,dormant]",
    "representation.when=both",
    "csl.input_gradient=true",
    "csl.initial=true",
    "csl.batch_size=7",
    "dormant.batch_size=7",
    "curvature.batch_size=7",
    "curvature.directions=2",
    "curvature.every=1",
)
ONLY_TRAINED = ("epoch_loss", "epoch_accuracy", "task_last_epoch_loss", "task_last_epoch_accuracy")
"""Numbers of the training pass itself."""


def rows_of(folder: Path) -> list[dict]:
    return read_rows(folder / "metrics.jsonl")


def without_steps(row: dict) -> dict:
    return {k: v for k, v in row.items() if k not in ONLY_TRAINED and not k.startswith("representation/steps/")}


def files(folder: Path, *patterns: str) -> dict[str, bytes]:
    found = (path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(make_plan(*TINY, *LAST, *LOOKS), folder)
    return folder


@pytest.fixture(scope="module")
def replayed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replayed") / "run"
    run(make_plan(*TINY, *LAST, *LOOKS, f"replay.folder={trained}", "figures=true"), folder)
    return folder


def test_rows_are_those_of_training_bit_for_bit(trained, replayed):
    for one, other in zip(rows_of(trained), rows_of(replayed), strict=True):
        assert repr(without_steps(one)) == repr(without_steps(other))  # NaN equals NaN
    assert any(key.startswith("curvature/") for row in rows_of(replayed) for key in row)


def test_per_sample_rows_and_artifacts_are_those_of_training(trained, replayed):
    """Of values after the epochs; the row axis of a block has epoch 0 too, as the weights of it are there."""
    one, other = plastiscope.load_run(trained), plastiscope.load_run(replayed)
    metrics = one.sample_store.metrics()
    assert {"loss", "correct", "margin", "grad_input_l2"} < set(metrics) == set(other.sample_store.metrics())
    for metric in metrics:
        ours, theirs = one.samples(metric), other.samples(metric)
        assert ours.epochs_completed.tolist() == theirs.epochs_completed.tolist()
        np.testing.assert_array_equal(ours.values, theirs.values)
    assert one.samples("loss").epochs_completed.tolist() == [0, 1, 2, 3, 4, 5, 6]
    arrays = ("task_*/continual/*.npy", "task_*/representation/*.npz", "task_*/csl/*.npy")
    assert files(trained, *arrays) == files(replayed, *arrays)
    assert not (replayed / "parts").exists()


def test_a_replay_selects_nothing_and_needs_no_validation_samples(tmp_path):
    """The default selection=val_best is refused for a training without them alone."""
    settings = (*TINY, "data.validation_share=0", "num_tasks=1", "epochs=1", "analysis=[]")
    with pytest.raises(ConfigError, match="selection=val_best needs validation samples"):
        run(make_plan(*settings, "selection=val_best"), tmp_path / "refused")
    run(make_plan(*settings, "selection=last"), tmp_path / "run")
    replay = (f"replay.folder={tmp_path / 'run'}", "selection=val_best")
    run(make_plan(*settings, *replay), tmp_path / "replayed")
    assert len(rows_of(tmp_path / "replayed")) == 2


def test_the_folder_of_a_replay_opens(trained, replayed):
    loaded = plastiscope.load_run(replayed)
    assert loaded.status["state"] == "done"
    assert loaded.snapshots.epochs() == [0, 1, 2, 3, 4, 5, 6]
    expected = plastiscope.load_run(trained).net(task=1).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.net(task=1).state_dict().items())
    assert (replayed / "figures" / "accuracy_per_task.png").exists()


@dataclass(kw_only=True)
class Witness(Callback):
    """Writes down the events, and whether the network is a frozen one."""

    seen: list[str] = field(default_factory=list)

    def note(self, event: str, context: Context) -> dict[str, float]:
        assert not context.net.training
        assert not any(p.requires_grad for p in context.net.parameters())
        assert context.order is None and context.record is None
        rate = context.optimizer.param_groups[0]["lr"]
        self.seen.append(f"{event} {context.task_idx} {context.epoch} {context.epochs_completed} {rate:g}")
        return {f"witness/{event}": 1.0}

    def on_run_begin(self, context):
        self.note("run_begin", context)

    def on_task_begin(self, context):
        return self.note("task_begin", context)

    def on_batch_end(self, context):
        raise AssertionError("nothing is trained")

    def on_epoch_end(self, context):
        return self.note("epoch_end", context)

    def on_task_end(self, context):
        return self.note("task_end", context)

    def on_run_end(self, context):
        self.note("run_end", context)


def walked_by_witness(folder: Path, source: Path, *overrides: str) -> Witness:
    plan = make_plan(*TINY, *LAST, "analysis=[]", f"replay.folder={source}", *overrides)
    witness = Witness()
    witness.name = "witness"
    plan.analyses.append(witness)
    run(plan, folder)
    return witness


def test_events_and_the_step_size_at_each(trained, tmp_path):
    """Step size 0.05, from the second epoch of a task 0.01."""
    expected = ["run_begin 0 0 0 0.05", "task_begin 0 0 0 0.05"]
    expected += ["epoch_end 0 0 1 0.05", "epoch_end 0 1 2 0.01", "task_end 0 1 2 0.01"]
    expected += ["task_begin 1 0 2 0.01", "epoch_end 1 0 3 0.05", "epoch_end 1 1 4 0.01", "task_end 1 1 4 0.01"]
    expected += ["task_begin 2 0 4 0.01", "epoch_end 2 0 5 0.05", "epoch_end 2 1 6 0.01", "task_end 2 1 6 0.01"]
    assert walked_by_witness(tmp_path / "out", trained).seen == [*expected, "run_end 2 1 6 0.01"]
    ends = [row for row in rows_of(tmp_path / "out") if row["kind"] == "task_end"]
    assert [row["witness/task_begin"] for row in ends] == [1.0] * 3
    assert [row["global_epoch"] for row in ends] == [1, 3, 5]


def test_events_where_weights_are_missing(trained, tmp_path):
    """After 1, 3 and 6 epochs, nothing else: no task begins in sight, and only the last one ends."""
    (tmp_path / "some").mkdir()
    for epochs in (1, 3, 6):
        shutil.copy(trained / "snapshots" / f"epoch_{epochs:06d}.pt", tmp_path / "some")
    seen = walked_by_witness(tmp_path / "out", tmp_path / "some").seen
    assert seen == [
        "run_begin 0 0 1 0.05",
        "epoch_end 0 0 1 0.05",
        "epoch_end 1 0 3 0.05",
        "epoch_end 2 1 6 0.01",
        "task_end 2 1 6 0.01",
        "run_end 2 1 6 0.01",
    ]
    assert [row["global_epoch"] for row in rows_of(tmp_path / "out")] == [0, 2, 5, 5]


def test_start_and_end(trained, tmp_path):
    seen = walked_by_witness(tmp_path / "out", trained, "replay.start=3", "replay.end=4").seen
    assert seen == [
        "run_begin 0 0 2 0.05",
        "task_begin 1 0 2 0.01",
        "epoch_end 1 0 3 0.05",
        "epoch_end 1 1 4 0.01",
        "task_end 1 1 4 0.01",
        "run_end 1 1 4 0.01",
    ]


def test_the_walk():
    assert [own_task(e, 4) for e in (0, 1, 4, 5, 8, 9)] == [0, 0, 0, 1, 1, 2]
    begin, epoch, end = (lambda e, k, event=event: Stop(event, e, k) for event in ("begin", "epoch", "end"))
    expected = [begin(0, 0), epoch(4, 0), end(4, 0), begin(8, 2), epoch(9, 2)]
    assert stops([0, 4, 9], 4) == expected


def test_analyses_bear_missing_weights(trained, tmp_path):
    """No drift from weights that were not kept, no learning curve of a part of it, a matrix with its rows in place."""
    (tmp_path / "some").mkdir()
    for epochs in (1, 4, 6):
        shutil.copy(trained / "snapshots" / f"epoch_{epochs:06d}.pt", tmp_path / "some")
    run(make_plan(*TINY, *LAST, *LOOKS, f"replay.folder={tmp_path / 'some'}"), tmp_path / "out")
    whole, some = (
        {row["global_epoch"]: row for row in rows_of(f) if row["kind"] == "task_end"}
        for f in (trained, tmp_path / "out")
    )
    assert set(some) == {3, 5}
    missing = {key for key in whole[5] if key not in some[5] and key not in ONLY_TRAINED}
    assert {key.rpartition("/")[2] for key in missing} <= {
        *("dist_init", "dist_init_rel", "cka_init"),
        *("learning_curve_auc", "epochs_to_threshold", "threshold_reached"),
        *("dist_task", "loss", "correct", "margin", "grad_input_l2"),
    }
    assert some[5]["representation/weights/total/dist_task"] == whole[5]["representation/weights/total/dist_task"]
    assert "representation/weights/total/dist_task" not in some[3]
    assert some[5]["representation/current/total/dormant_rate"] == whole[5]["representation/current/total/dormant_rate"]
    ours, theirs = (np.load(f / "task_0002_mlp/continual/accuracy_matrix.npy") for f in (trained, tmp_path / "out"))
    assert np.isnan(theirs[0]).all()
    np.testing.assert_array_equal(theirs[1:], ours[1:])
    values = plastiscope.load_run(tmp_path / "out").samples("loss")
    assert values.epochs_completed.tolist() == [1, 4, 6]
    np.testing.assert_array_equal(values.values, plastiscope.load_run(trained).samples("loss").values[[1, 4, 6]])


def test_a_task_with_selected_weights_ends_with_them(tmp_path):
    """selection=val_best: a task's last row is that of the selected weights, as its task_end row is in training."""
    settings = (*TINY, "epochs=4", "snapshots.every=1", "analysis=[]", "selection=val_best", "learner.lr=0.5")
    run(make_plan(*settings), tmp_path / "run")
    run(make_plan(*settings, f"replay.folder={tmp_path / 'run'}"), tmp_path / "out")
    ends = [row for row in rows_of(tmp_path / "run") if row["kind"] == "task_end"]
    for end, row in zip(ends, [r for r in rows_of(tmp_path / "out") if r.get("epoch") == 3], strict=True):
        assert row["test_loss"] == end["task_test_loss"]
    last = [row for row in rows_of(tmp_path / "run") if row.get("epoch") == 3]
    assert any(row["test_loss"] != end["task_test_loss"] for row, end in zip(last, ends, strict=True))


def test_which_weights_stand_at_task_ends_is_said(tmp_path, capsys):
    settings = (*TINY, "epochs=1", "num_tasks=1", "analysis=[csl]")
    for selection, said in (("val_best", "selected by val_best"), ("last", "last step")):
        run(make_plan(*settings, f"selection={selection}"), tmp_path / selection)
        assert "hold the weights" not in capsys.readouterr().err
        folder = tmp_path / f"{selection}_again"
        run(make_plan(*settings, f"selection={selection}", f"replay.folder={tmp_path / selection}"), folder)
        sentence = (
            "snapshots at task ends hold the weights selected by val_best, not those of the last step; "
            "their rows are of the selected weights\n"
        )
        assert capsys.readouterr().err.count(sentence) == (selection == "val_best")
        assert read_json(folder / "run.json")["replay_of"]["task_end_weights"] == said
        (facts,) = folder.glob("task_*/csl/metrics_*.json")
        assert read_json(facts)["task_end_weights"] == said
        (facts,) = (tmp_path / selection).glob("task_*/csl/metrics_*.json")
        assert "task_end_weights" not in read_json(facts)


@pytest.mark.parametrize(
    ("there", "snapshots", "done", "expected"),
    [
        ([0, 4, 8], {}, True, [0, 4, 8]),
        ([0, 8], {"every": 3, "keep": None}, True, [0, 4, 8, 3, 6]),
        ([0, 4, 8], {"every": 1, "keep": 2}, True, [0, 4, 8, 6, 7]),
        ([0, 4, 8], {"every": 1, "keep": 0}, True, [0, 4, 8]),
        ([0, 4, 7], {"every": 1, "keep": 3}, False, [0, 4, 7]),
        ([0, 4, 5, 7], {"every": 1, "keep": 3}, False, [0, 4, 5, 6, 7]),
        ([0, 3], {"every": 1, "keep": None}, False, [0, 1, 2, 3]),
    ],
)
def test_what_a_run_has_saved(there, snapshots, done, expected):
    """Two tasks of four epochs."""
    assert saved_epochs(there, 8 if done else there[-1], 4, snapshots, done) == expected


@pytest.mark.parametrize(("keep", "done"), [("null", True), ("2", True), ("0", True), ("2", False)])
def test_what_a_run_has_saved_is_complete(tmp_path, keep, done):
    settings = (*TINY, "num_tasks=2", "epochs=4", "selection=last", "snapshots.every=1", f"snapshots.keep={keep}")
    run(make_plan(*settings, "analysis=[]"), tmp_path / "run")
    there = find_checkpoints(tmp_path / "run").epochs()
    assert sorted(saved_epochs(there, 8, 4, {"every": 1, "keep": None if keep == "null" else int(keep)}, done)) == there


def test_a_gap_between_published_checkpoints_is_said(published, tmp_path, capsys):
    folder, _ = published
    given = (*PUBLISHED[:-2], "analysis=[]", f"replay.folder={folder}")
    run(make_plan(*given), tmp_path / "whole")
    assert "apart" not in capsys.readouterr().err
    (folder / "model_parameters" / "index-0_epoch-4.pt").rename(folder / "model_parameters" / "index-0_epoch-3.pt")
    shutil.copy(folder / "model_parameters/index-0_epoch-0.pt", folder / "model_parameters/index-0_epoch-1.pt")
    run(make_plan(*given), tmp_path / "out")
    assert "mostly 1 epochs apart, not so: 3 to 6; those that are there" in capsys.readouterr().err
    run(make_plan(*given, "replay.end=3"), tmp_path / "part")
    assert "apart" not in capsys.readouterr().err


NOISY = "cifar100_resnet18_noisy_idx_7_epoch_1_noise_{}.ckpt"


@pytest.mark.parametrize(
    ("noise", "drawn", "source"), [("0.10", 0.0, "clean"), ("0", 0.0, "trained"), ("0.1", 0.2, "data.label_noise")]
)
def test_whose_labels_of_noisy_checkpoints_are_scored_is_said(tmp_path, capsys, noise, drawn, source):
    plan = ("data.samples_per_class=12", "data.validation_share=0", "task_shift_mode=none", "num_tasks=1", "epochs=2")
    plan += ("selection=last", "net.widths=[12,8]", "threads=1", "analysis=[csl]", f"data.label_noise={drawn}")
    (tmp_path / "noisy").mkdir()
    torch.save(make_net(make_plan(*plan), (1, 8, 8), 10).state_dict(), tmp_path / "noisy" / NOISY.format(noise))
    run(make_plan(*plan, f"replay.folder={tmp_path / 'noisy'}"), tmp_path / "out")
    z = float(noise)
    facts = read_json(tmp_path / "out" / "task_0000_mlp" / "csl" / f"metrics_digits_run7_noise_{z}.json")
    assert (facts["run_idx"], facts["noise_level"], facts["label_source"]) == (7, z, source)
    assert (tmp_path / "out" / "task_0000_mlp" / "csl" / f"csl_digits_run7_noise_{z}.npy").exists()
    err = capsys.readouterr().err
    assert ("the labels scored are the clean ones, not those of the training" in err) == (source == "clean")
    assert ("the labels scored are" in err) == (source != "trained")


def by_class(net: torch.nn.Module, order: list[int]) -> dict[str, torch.Tensor]:
    """The state dict as the published program would have it: output c stands for class c."""
    state, place = net.state_dict(), torch.argsort(torch.tensor(order))
    return {key: tensor[place] if key.startswith("head.") else tensor for key, tensor in state.items()}


PUBLISHED = (*TINY, "data.validation_share=0", "selection=last", "analysis=[csl]", "csl.initial=true")


@cache
def published_plan() -> Plan:
    """Data and network of the published results below."""
    return make_plan(*PUBLISHED)


@pytest.fixture
def published(tmp_path) -> tuple[Path, list[int]]:
    """Results of the published layout, weights drawn anew at 0, 2, 4 and 6 epochs, and the order of their classes."""
    order = np.random.default_rng(1).permutation(10).tolist()
    folder = tmp_path / "results"
    (folder / "model_parameters").mkdir(parents=True)
    (folder / "class_order").mkdir()
    np.save(folder / "class_order" / "index-0.npy", np.array(order))
    for k, epochs in enumerate((0, 2, 4, 6)):
        net = make_net(published_plan(), (1, 8, 8), 10, k)
        state = {f"module.{key}": tensor for key, tensor in by_class(net, order).items()}
        torch.save(state, folder / "model_parameters" / f"index-0_epoch-{epochs}.pt")
    return folder, order


def test_published_weights_are_scored_in_the_order_of_their_classes(published, tmp_path):
    """The loss over the outputs of the classes presented so far, by hand, from the files as they are."""
    folder, order = published
    run(make_plan(*PUBLISHED, f"replay.folder={folder}"), tmp_path / "out")
    loaded = plastiscope.load_run(tmp_path / "out")
    view = loaded.samples("loss")
    assert view.epochs_completed.tolist() == [0, 2, 4, 6]
    data, _ = load_tasks(published_plan(), torch.device("cpu"))
    everything = data.train.gather(torch.arange(len(data.train)))
    for row, epochs, active in zip(view.values, (0, 2, 4, 6), (2, 2, 4, 6), strict=True):
        net = make_net(published_plan(), (1, 8, 8), 10)
        state = torch.load(folder / "model_parameters" / f"index-0_epoch-{epochs}.pt", weights_only=True)
        net.load_state_dict({key.removeprefix("module."): tensor for key, tensor in state.items()})
        with torch.no_grad():
            outputs = net.eval()(everything.inputs)[:, order[:active]]
        for value, sample, label in zip(
            row, view.ids, data.train.labels[torch.isin(data.train.ids, torch.tensor(view.ids))], strict=True
        ):
            if int(label) not in order[:active]:
                assert np.isnan(value)
                continue
            place = (everything.ids == int(sample)).nonzero().item()
            loss = F.cross_entropy(outputs[place], torch.tensor(order.index(int(label))))
            assert value == pytest.approx(loss.item(), rel=1e-5)
    with torch.no_grad():
        inputs = everything.inputs[:5]
        assert torch.equal(loaded.net(task=1)(inputs), loaded.net(epochs_completed=4)(inputs))
    assert loaded.task(1).classes == tuple(order[:4])


def test_the_order_of_classes_must_be_known(published, tmp_path):
    folder, order = published
    moved = (folder / "class_order" / "index-0.npy").rename(tmp_path / "order.npy")
    with pytest.raises(ConfigError, match=r"is not beside .*give replay.class_order=FILE.npy"):
        run(make_plan(*PUBLISHED, f"replay.folder={folder}"), tmp_path / "out")
    other = f"task_shift_mode.class_order={order[::-1]}"
    with pytest.raises(ConfigError, match=r"is not the order in .*order.npy; leave one of the two out"):
        run(make_plan(*PUBLISHED, f"replay.folder={folder}", f"replay.class_order={moved}", other), tmp_path / "out")
    run(make_plan(*PUBLISHED, f"replay.folder={folder}", f"replay.class_order={moved}"), tmp_path / "out")
    same = f"task_shift_mode.class_order={order}"
    run(make_plan(*PUBLISHED, f"replay.folder={folder}", same), tmp_path / "given")
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == (tmp_path / "given" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("content", [np.array([1.5, 2]), np.array([1, 1]), np.array([], np.int64)])
def test_a_file_that_is_no_order_of_classes(published, tmp_path, content):
    folder, _ = published
    np.save(folder / "class_order" / "index-0.npy", content)
    with pytest.raises(RunError, match="is no order of classes"):
        run(make_plan(*PUBLISHED, f"replay.folder={folder}"), tmp_path / "out")


def test_a_schedule_that_cannot_be_is_refused(published, tmp_path):
    folder, _ = published
    with pytest.raises(RunError, match=r"index-0_epoch-6.pt is beyond the schedule: 2 tasks of 2 epochs end after 4"):
        run(make_plan(*PUBLISHED, f"replay.folder={folder}", "num_tasks=2"), tmp_path / "out")
    with pytest.raises(
        RunError, match=r"no checkpoint is in replay.start .. replay.end; there are those after 0, 2, 4"
    ):
        run(make_plan(*PUBLISHED, f"replay.folder={folder}", "replay.start=5", "replay.end=5"), tmp_path / "out")
    with pytest.raises(
        RunError,
        match=r"is of another network than the config: its first difference is linear_2.weight of shape \(8, 12\)",
    ):
        run(make_plan(*PUBLISHED, f"replay.folder={folder}", "net.widths=[12,9,8]"), tmp_path / "out")


def test_a_task_in_the_name_must_be_that_of_the_schedule(published, tmp_path, capsys):
    """The published program counts a task's end one epoch early: `task-1_epoch-2` is left out, and said."""
    folder, order = published
    (tmp_path / "ordered").mkdir()
    for name, epochs in (("task-0_epoch-0", 0), ("task-1_epoch-2", 2), ("task-1_epoch-4", 4), ("task-2_epoch-6", 6)):
        source = folder / "model_parameters" / f"index-0_epoch-{epochs}.pt"
        shutil.copy(source, tmp_path / "ordered" / f"checkpoint_low_to_high_{name}.pt")
    given = (
        *PUBLISHED[:-1],
        f"replay.folder={tmp_path / 'ordered'}",
        f"task_shift_mode.class_order={order}",
        "analysis=[]",
    )
    run(make_plan(*given), tmp_path / "out")
    assert "left out: checkpoint_low_to_high_task-1_epoch-2.pt" in capsys.readouterr().err
    assert {row["global_epoch"] for row in rows_of(tmp_path / "out")} == {3, 5}
    with pytest.raises(RunError, match="is named after another task than the schedule of 3 epochs a task gives it"):
        run(make_plan(*given, "epochs=3"), tmp_path / "other")


def test_noisy_label_checkpoints_of_the_other_family(tmp_path):
    """Zero-based epochs, `.ckpt` with the keys of the other ResNet, one task: classes are outputs."""
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 8, 8), dtype=np.uint8)
    np.savez(
        tmp_path / "images.npz", x_train=images, y_train=np.arange(30) % 3, x_test=images, y_test=np.arange(30) % 3
    )
    plan = ("data=arrays", f"data.file={tmp_path / 'images.npz'}", "data.validation_share=0", "task_shift_mode=none")
    plan += ("num_tasks=1", "epochs=5", "selection=last", "net=resnet18_shortcut", "net.width=4", "threads=1")
    (tmp_path / "noisy").mkdir()
    for epoch in (0, 4):
        net = make_net(make_plan(*plan), (3, 8, 8), 3, epoch)
        torch.save(
            {"net": net.state_dict()},
            tmp_path / "noisy" / f"cifar100_resnet18_noisy_idx_1_epoch_{epoch}_noise_0.10.ckpt",
        )
    source = (f"replay.folder={tmp_path / 'noisy'}", "replay.noise=1e-1", "analysis=[csl]")
    run(make_plan(*plan, *source), tmp_path / "out")
    (facts,) = (tmp_path / "out").glob("task_*/csl/metrics_arrays_run1_noise_0.1.json")
    assert read_json(facts)["label_source"] == "data.file"
    loaded = plastiscope.load_run(tmp_path / "out")
    view = loaded.samples("loss")
    assert view.epochs_completed.tolist() == [1, 5]
    batch = loaded.task(0).train.gather(torch.arange(30))
    with torch.no_grad():
        losses = F.cross_entropy(loaded.net(epochs_completed=5)(batch.inputs), batch.targets, reduction="none")
    np.testing.assert_allclose(view.values[1], losses.numpy(), rtol=1e-5)
    with pytest.raises(RunError, match="these are the names of net=resnet18_shortcut"):
        run(make_plan(*plan, *source, "net=resnet18"), tmp_path / "other")


def test_weights_of_a_run_with_other_settings_are_refused(trained, tmp_path):
    for change in ("seed=1", "net.widths=[12,9]", "learner.lr=0.2", "task_shift_mode.classes_per_task=3"):
        with pytest.raises(RunError, match=f"was trained under other settings: {change.partition('=')[0]}"):
            run(make_plan(*TINY, *LAST, f"replay.folder={trained}", change), tmp_path / "out")


@pytest.mark.parametrize(
    "override", ["analysis=[tracking]", "analysis=[csl] csl.mode=online", "analysis=[csl] csl.mode=both"]
)
def test_what_needs_training_refuses_by_name(trained, tmp_path, override):
    with pytest.raises(ConfigError, match=r"nothing is trained: (tracking|csl) "):
        run(make_plan(*TINY, *LAST, f"replay.folder={trained}", *override.split()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@dataclass(kw_only=True)
class Stopper(Callback):
    """Sends SIGTERM in the middle of an event, once."""

    event: str
    epochs_completed: int
    name = "stopper"
    sent: ClassVar[list[str]] = []

    def stop(self, event: str, context: Context) -> None:
        if (event, context.epochs_completed) == (self.event, self.epochs_completed) and not self.sent:
            self.sent.append(event)
            signal.raise_signal(signal.SIGTERM)

    def on_task_begin(self, context):
        self.stop("begin", context)

    def on_epoch_end(self, context):
        self.stop("epoch", context)

    def on_task_end(self, context):
        self.stop("end", context)


@pytest.mark.parametrize(("event", "epochs"), [("begin", 0), ("epoch", 4), ("end", 2)])
def test_stopped_at_any_event_it_goes_on(trained, replayed, tmp_path, event, epochs):
    plan = make_plan(*TINY, *LAST, *LOOKS, f"replay.folder={trained}")
    stopper = Stopper(event=event, epochs_completed=epochs)
    stopper.sent.clear()
    plan.analyses.append(stopper)
    with pytest.raises(SystemExit):
        run(plan, tmp_path / "out")
    assert read_status(tmp_path / "out")["state"] == "preempted"
    run(plan, tmp_path / "out")
    patterns = ("metrics.jsonl", "samples/*/*", "task_*/*/*")
    ours, theirs = files(tmp_path / "out", *patterns), files(replayed, *patterns)
    assert {name for name in theirs if ours.get(name) != theirs[name]} == set()
