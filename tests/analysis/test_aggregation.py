"""One row per sample from the store: equal to the measures of whole matrices, in little memory, of whole runs only."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import aggregation as benchmark
from plans import make_plan
from plastiscope.analysis.aggregation import Aggregation, aggregate, csl_and_learning_time, table
from plastiscope.error import ConfigError, RunError
from plastiscope.experiment import run
from plastiscope.load import load_run
from plastiscope.measure import dynamics, learning_time
from plastiscope.run import sample_view
from plastiscope.run.sample_store import SPLITS, SampleLabels, SampleStore

E = 6
"""Epochs of a task."""
IDS = ([8, -1, 5, 30], [8, -1, 5, 30, 2, 9], [2, 7, 5])
"""A task that grows, then one that loses samples."""
NAN = np.nan


def labels(task: int, ids: list[int], split: int = 0) -> SampleLabels:
    given = np.array(ids, np.int64)
    entry = np.array([next(k for k, own in enumerate(IDS) if i in own) if split == 0 else task for i in ids], np.int16)
    return SampleLabels(
        ids=given,
        labels=given % 5,
        labels_trained=given % 4,
        split=np.full(len(ids), split, np.uint8),
        entry_task=entry,
    )


def measured(metric: str, epoch: int, n: int) -> np.ndarray:
    rng = np.random.default_rng([len(metric), epoch])
    values = rng.gamma(1.0, 1.0, n) if "correct" not in metric else rng.integers(0, 2, n)
    return (values - 0.7 if "margin" in metric else values).astype(np.float32)


METRICS = ("loss", "correct", "margin", "grad_input_l2", "online_loss", "online_correct", "loss_all")


def make_store(folder: Path, leave_out: tuple[tuple[str, int], ...] = ()) -> SampleStore:
    """Three tasks, all metrics; the gradient in every second epoch only."""
    store = SampleStore(folder)
    for task, ids in enumerate(IDS):
        axis = range(task * E + 1, (task + 1) * E + 1)
        block = store.open(task, labels(task, ids), axis)
        for metric in METRICS:
            own = axis[1::2] if metric == "grad_input_l2" else axis
            for epoch in own:
                if (metric, epoch) not in leave_out:
                    block.write(metric, epoch, measured(metric, epoch, len(ids)), own)
    store.close()
    return SampleStore(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    """The store of a run that is done, to read."""
    return make_store(tmp_path_factory.mktemp("whole"))


def matrix(metric: str, tasks: tuple[int, ...] = (0, 1, 2), epochs: range = range(1, 3 * E + 1)) -> np.ndarray:
    """What the view is: float32 [epochs, ids ascending]."""
    ids = sorted({i for k in tasks for i in IDS[k]})
    rows = []
    for task in tasks:
        axis = range(task * E + 1, (task + 1) * E + 1)
        for epoch in axis[1::2] if metric == "grad_input_l2" else axis:
            row = dict(zip(IDS[task], measured(metric, epoch, len(IDS[task])), strict=True))
            if epoch in epochs:
                rows.append([row.get(i, NAN) for i in ids])
    return np.array(rows, np.float32)


def expected(tasks: tuple[int, ...] = (0, 1, 2), epochs: range = range(1, 3 * E + 1)) -> dict[str, np.ndarray]:
    losses, correct, margins, norms, every = (
        matrix(m, tasks, epochs) for m in ("loss", "correct", "margin", "grad_input_l2", "loss_all")
    )
    kept = [e for k in tasks for e in range(k * E + 1, (k + 1) * E + 1) if e in epochs]
    of_losses = {name: getattr(dynamics, name)(losses) for name in ("csl_sum", "csl_mean", "csl_active_sum",
                 "csl_active_mean", "n_active", "loss_final", "confidence", "variability")}  # fmt: skip
    of_correct = {name: getattr(dynamics, name)(correct) for name in ("first_learn", "learn_forever", "cum_error",
                  "correctness", "forgetting_events", "never_learned")}  # fmt: skip
    return of_losses | of_correct | {
        "csl_trapz": dynamics.csl_trapz(losses, kept),
        "csl_first_4": dynamics.csl_first(losses, 4),
        "aum": dynamics.aum(margins),
        "csl_all": dynamics.csl_all(every),
        "csg": dynamics.csg(norms),
        "lt_frac": learning_time.lt_frac(norms),
        "lt_frac_norm2": learning_time.lt_frac(norms, squared=True),
        "lt_first": learning_time.lt_first(norms),
        "lt_censored": learning_time.lt_censored(norms),
    }  # fmt: skip


def assert_columns(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-7, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("at_once", [1, 9, 1 << 19])
def test_equals_the_measures_of_whole_matrices(whole, monkeypatch, size, at_once):
    monkeypatch.setattr(sample_view, "VALUES_AT_ONCE", at_once)
    found = table(whole, first_epochs=4, size=size)
    assert found["sample_id"].tolist() == [-1, 2, 5, 7, 8, 9, 30]
    assert_columns(found, expected())
    known = {
        "sample_id",
        "label",
        "label_trained",
        "split",
        "entry_task",
        "n_presentations",
        "first_epoch",
        "last_epoch",
    }
    assert set(found) == set(expected()) | known
    parts = list(aggregate(whole, first_epochs=4, size=size))
    assert [len(part["csl_sum"]) for part in parts] == [min(size, 7 - i) for i in range(0, 7, size)]
    assert_columns({name: np.concatenate([part[name] for part in parts]) for name in found}, found)


def test_types_are_small(whole):
    types = {name: values.dtype for name, values in table(whole).items()}
    assert types["sample_id"] == np.int64 and types["csl_sum"] == types["lt_frac"] == np.float32
    assert types["never_learned"] == types["lt_censored"] == np.bool_ and types["n_active"] == np.int32


def test_who_the_samples_are(whole):
    found = table(whole)
    ids = found["sample_id"]
    np.testing.assert_array_equal(found["label"], ids % 5)
    np.testing.assert_array_equal(found["label_trained"], ids % 4)
    assert found["entry_task"].tolist() == [0, 1, 0, 2, 0, 1, 0]
    assert found["n_presentations"].tolist() == [2 * E, 2 * E, 3 * E, E, 2 * E, E, 2 * E]
    assert found["first_epoch"].tolist() == [1, E + 1, 1, 2 * E + 1, 1, E + 1, 1]
    assert found["last_epoch"].tolist() == [2 * E, 3 * E, 3 * E, 3 * E, 2 * E, 2 * E, 2 * E]


def test_samples_that_are_scored_before_they_enter_are_not_yet_presented(tmp_path):
    store = SampleStore(tmp_path)
    for task in range(2):
        about = SampleLabels(
            ids=np.array([4, 6]), labels=np.array([0, 1]), labels_trained=np.array([0, 1]),
            split=np.zeros(2, np.uint8), entry_task=np.array([0, 1], np.int16),
        )  # fmt: skip
        axis = [2 * task + 1, 2 * task + 2]
        block = store.open(task, about, axis if task else [0, *axis])
        for epoch in axis if task else [0, *axis]:
            block.write("loss", epoch, np.array([1, NAN if task == 0 else 1], np.float32))
    store.close()
    found = table(store)
    assert found["n_presentations"].tolist() == [4, 2] and found["n_active"].tolist() == [5, 2]
    assert found["first_epoch"].tolist() == [1, 3] and found["last_epoch"].tolist() == [4, 4]
    np.testing.assert_array_equal(found["csl_sum"], [5, NAN])


def test_tasks_one_by_one(whole):
    found = table(whole, per_task=True, size=2)
    tasks_of_norms = np.repeat([0, 1, 2], E // 2)
    for k in range(3):
        sums = dynamics.csl_task(matrix("loss"), np.repeat([0, 1, 2], E))[k]
        np.testing.assert_allclose(found[f"csl_task_{k}"], sums, rtol=2e-7)
        fractions = learning_time.lt_task(matrix("grad_input_l2"), tasks_of_norms)[k]
        np.testing.assert_allclose(found[f"lt_frac_task_{k}"], fractions, rtol=2e-7)
    some = table(whole, tasks=[2, 1], first_epochs=4)
    assert some["sample_id"].tolist() == [-1, 2, 5, 7, 8, 9, 30]
    assert_columns(some, expected((1, 2)))


def test_epochs_that_are_named(whole):
    kept = range(4, 12)
    found = table(whole, epochs=kept, tasks=[0, 1], first_epochs=4)
    assert_columns(found, expected((0, 1), kept))
    by_hand = {-1: 11, 2: 5, 5: 11, 8: 11, 9: 5, 30: 11}  # up to epoch 11; two of them entered after epoch 6
    assert dict(zip(found["sample_id"].tolist(), found["n_presentations"].tolist(), strict=True)) == by_hand
    assert Aggregation(whole, epochs=kept).kept_epochs("norms").tolist() == [4, 6, 8, 10]


def test_online_values_are_columns_of_their_own(whole):
    found = table(whole, online=True)
    np.testing.assert_allclose(found["csl_active_sum"], dynamics.csl_active_sum(matrix("online_loss")), rtol=2e-7)
    np.testing.assert_array_equal(found["forgetting_events"], dynamics.forgetting_events(matrix("online_correct")))
    assert not {"lt_frac", "aum", "csl_all"} & set(found)


@pytest.mark.parametrize("options", [{"tau": 0.8}, {"tau_norm2": 0.4}, {"window": 3}, {"tolerance": 0.1}])
def test_options_of_learning_time(whole, options):
    found = table(whole, size=3, **options)
    norms = matrix("grad_input_l2")
    shared = {name: value for name, value in options.items() if name in ("window", "tolerance")}
    norm = learning_time.learning_time(norms, options.get("tau"), False, **shared)
    norm2 = learning_time.learning_time(norms, options.get("tau_norm2"), True, **shared)
    plain = table(whole)
    np.testing.assert_allclose(found["lt_frac"], norm.fraction, rtol=2e-7)
    np.testing.assert_allclose(found["lt_frac_norm2"], norm2.fraction, rtol=2e-7)
    np.testing.assert_array_equal(found["lt_first"], norm2.first)
    assert any(not np.array_equal(found[name], plain[name], True) for name in ("lt_frac", "lt_frac_norm2"))


def test_the_lean_pass_is_the_same(whole):
    lean, full = csl_and_learning_time(whole, size=2), table(whole)
    assert list(lean) == ["sample_id", "n_active", "csl_sum", "csl_active_mean", "lt_frac"]
    for name, values in lean.items():
        np.testing.assert_array_equal(values, full[name])


def test_validation_samples_only_when_they_are_asked_for(tmp_path):
    store = SampleStore(tmp_path)
    train, others = labels(0, [8, 5]), labels(0, [50, 40], split=1)
    both = {name: np.concatenate([getattr(train, name), getattr(others, name)]) for name in vars(train)}
    store.open(0, SampleLabels(**both), [1]).write("loss", 1, np.array([8, 5, 50, 40], np.float32))
    store.close()
    assert table(store)["sample_id"].tolist() == [5, 8]
    only = table(store, splits=["validation"])
    assert only["csl_sum"].tolist() == [40, 50] and only["n_presentations"].tolist() == [0, 0]
    assert only["first_epoch"].tolist() == only["last_epoch"].tolist() == [-1, -1]
    assert table(store, splits=SPLITS)["split"].tolist() == [0, 0, 1, 1]
    with pytest.raises(ConfigError, match="splits"):
        table(store, splits=["valid"])


def test_without_classes_there_is_no_probability(tmp_path):
    store, nothing = SampleStore(tmp_path), np.full(2, -1)
    about = SampleLabels(
        ids=np.arange(2), labels=nothing, labels_trained=nothing, split=nothing * 0, entry_task=nothing * 0
    )
    store.open(0, about, [1]).write("loss", 1, np.array([3, 4], np.float32))
    store.close()
    found = table(store)
    assert found["csl_sum"].tolist() == [3, 4] and np.isnan(found["confidence"]).all()


def test_first_and_last_epoch_are_those_of_training_however_seldom_it_is_scored(tmp_path):
    """Scored after epochs 2, 4 of a task of 4, and 6 of one of 3: trained on after 1 to 4 and 5 to 7."""
    store = SampleStore(tmp_path)
    for task, ids, axis, own in ((0, [8, 5], [1, 2, 3, 4], [2, 4]), (1, [2, 5], [5, 6, 7], [6])):
        block = store.open(task, labels(task, ids), axis)
        for epoch in own:
            block.write("loss", epoch, np.ones(2, np.float32), own)
    store.close()
    found = table(store)
    assert found["sample_id"].tolist() == [2, 5, 8]
    assert found["first_epoch"].tolist() == [5, 1, 1] and found["last_epoch"].tolist() == [6, 6, 4]
    assert found["n_presentations"].tolist() == [2, 6, 4], "up to the last epoch that counts"


def test_the_loss_of_a_regression_on_classes_is_no_probability(tmp_path):
    """Drifting values of digits: labels there are, and the squared error of a number."""
    run(
        make_plan(
            "task_shift_mode=drifting_values", "net=mlp", "net.widths=[8]", "num_tasks=2", "epochs=2", "threads=1",
            "data.samples_per_class=6", "analysis=[csl]", "csl.mode=both",
        ),
        tmp_path / "run",
    )  # fmt: skip
    store = load_run(tmp_path / "run").sample_store
    for online in (False, True):
        found = table(store, online=online)
        assert (found["label"] >= 0).all() and np.isfinite(found["csl_active_mean"]).all()
        assert np.isnan(found["confidence"]).all() and np.isnan(found["variability"]).all()


@pytest.mark.parametrize("metric", ["loss", "correct", "margin", "grad_input_l2", "online_loss"])
@pytest.mark.parametrize("left", [("npy", "epochs.npy"), ("epochs.npy",), ()])
def test_a_block_without_marks_of_a_metric_that_others_have_is_refused(tmp_path, metric, left):
    make_store(tmp_path)
    for ending in {"done", "npy", "epochs.npy"} - set(left):
        (tmp_path / f"task_0001/{metric}.{ending}").unlink(missing_ok=True)
    online, store = metric.startswith("online"), SampleStore(tmp_path)
    first = E + 2 if metric == "grad_input_l2" else E + 1
    with pytest.raises(
        RunError, match=rf"task_0001/{metric}.done is not there: task 1 lacks {metric} of epoch {first} "
    ):
        table(store, online=online)
    others = [e for e in range(1, 3 * E + 1) if not E < e <= 2 * E]
    assert len(table(store, online=online, epochs=others)["sample_id"]) == 7
    assert "csl_sum" in table(store, online=not online), "the other kind of values has its own metrics"


def test_the_only_block_without_marks_is_refused(tmp_path):
    make_store(tmp_path)
    (tmp_path / "task_0001/loss.done").unlink()
    with pytest.raises(RunError, match=r"task_0001/loss.done is not there"):
        table(SampleStore(tmp_path), tasks=[1])


def test_a_metric_that_was_not_due_in_a_task_is_not_missing(tmp_path):
    """Tasks of 2 epochs, the loss after every third: task 0 has another metric only; in task 2 it was due."""
    store = SampleStore(tmp_path)
    for task, own in ((0, []), (1, [3]), (2, [6])):
        axis = [2 * task + 1, 2 * task + 2]
        block = store.open(task, labels(0, [8, 5]), axis)
        block.write("persample_strict", axis[1], np.zeros(2, np.float32), axis[1:])
        for epoch in own:
            block.write("loss", epoch, np.ones(2, np.float32), own)
    store.close()
    assert table(store)["csl_sum"].tolist() == [2, 2]
    for path in (tmp_path / "task_0002").glob("loss.*"):
        path.unlink()
    with pytest.raises(RunError, match="task 2 lacks loss of epoch 6 "):
        table(SampleStore(tmp_path))


@pytest.mark.parametrize("missing", [("loss", 9), ("margin", 9), ("loss", 3 * E), ("grad_input_l2", 2)])
def test_an_incomplete_grid_is_refused_by_file_and_epoch(tmp_path, missing):
    store = make_store(tmp_path, leave_out=(missing,))
    metric, epoch = missing
    said = rf"task_000{(epoch - 1) // E}/{metric}.npy lacks the row of epoch {epoch} \(1 missing in all\)"
    for call in (table, csl_and_learning_time):
        if call is table or metric != "margin":
            with pytest.raises(RunError, match=said):
                call(store)
    others = [e for e in range(1, 3 * E + 1) if e != epoch]
    assert_columns(table(store, epochs=others, first_epochs=4), expected(epochs=others))
    with pytest.raises(RunError, match=said):
        table(store, epochs=[epoch])


def test_a_run_that_was_killed_is_not_read_as_whole(tmp_path):
    store = SampleStore(tmp_path)
    block = store.open(0, labels(0, [8, 5]), [1, 2, 3])
    for epoch in (1, 2, 3):
        block.write("loss", epoch, np.ones(2, np.float32))
        if epoch == 2:
            store.sync()
    with pytest.raises(RunError, match="lacks the row of epoch 3"):
        table(SampleStore(tmp_path))
    assert table(SampleStore(tmp_path), epochs=[1, 2])["csl_sum"].tolist() == [2, 2]
    store.close()


def test_what_is_damaged_or_not_there_is_refused(tmp_path):
    store = make_store(tmp_path)
    with pytest.raises(RunError, match="no row of epoch 99"):
        table(store, epochs=[1, 99])
    with pytest.raises(RunError, match="no per-sample values of task 7"):
        table(store, tasks=[7])
    os.truncate(tmp_path / "task_0001/loss.npy", 200)
    with pytest.raises(RunError, match=r"loss.npy is cut short: the row of epoch 10"):
        table(store)
    np.save(tmp_path / "task_0002/labels.npy", np.array([2, 2, 4]))
    with pytest.raises(RunError, match=r"task_0002/labels.npy gives 1 samples other classes"):
        table(store, tasks=[0, 2])
    with pytest.raises(RunError, match="has none of the metrics loss, correct"):
        table(SampleStore(tmp_path / "empty"))


@pytest.mark.parametrize("wrong", [{"size": 0}, {"first_epochs": 0}])
def test_options_that_cannot_be_are_refused(whole, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        table(whole, **wrong)


def test_a_large_run_takes_little_more_memory_than_its_result(tmp_path):
    benchmark.make_one_task(tmp_path / "samples", 300_000, 10)
    found = benchmark.fresh_process("aggregation", "lean", str(tmp_path / "samples"))
    assert found["result_mb"] == pytest.approx(0.3 * (8 + 4 + 3 * 4))
    assert found["peak_mb"] < found["result_mb"] + 40


def test_blocks_of_many_tasks_take_little_more_than_their_values(tmp_path):
    benchmark.make_tasks(tmp_path / "samples", 3, 250, 1_200, 5_000)
    useful = 3 * 4 * 250 * 1_200
    assert useful < benchmark.size_of_files(tmp_path / "samples") <= benchmark.bytes_on_disk(tmp_path / "samples")
    assert benchmark.bytes_on_disk(tmp_path / "samples") <= 1.05 * useful


def test_reading_needs_no_torch():
    code = "import sys, plastiscope.analysis.aggregation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
