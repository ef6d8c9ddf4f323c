"""Who is scored at a task, in which columns, and what is known of them."""

import dataclasses
import gc
import weakref

import numpy as np
import pytest
import torch
from analysis_context import make_context, move_to

from plastiscope.analysis.population import Entries, _entries_of, population
from plastiscope.error import ConfigError

INCREMENTAL = ("analysis=[]", "task_shift_mode=class_incremental", "data.label_noise=0.25", "data.samples_per_class=8")


@pytest.mark.parametrize("cumulative", [True, False])
@pytest.mark.parametrize("who", ["task", "run"])
def test_columns_are_training_then_validation_then_later_samples(tmp_path, who, cumulative):
    overrides = (f"samples.population={who}", "samples.validation=true", f"task_shift_mode.cumulative={cumulative}")
    context = make_context(tmp_path / "run", *INCREMENTAL, *overrides, task=1)
    task, shift = context.current_task, context.shift
    found = population(context, "csl")
    later = shift.task(2).new_train.ids.tolist() if who == "run" else []
    assert found.about.ids.tolist() == [*task.train.ids.tolist(), *task.validation.ids.tolist(), *later]
    n, m = len(task.train), len(task.train) + len(task.validation)
    expected = {"train": slice(0, n), "validation": slice(n, m), "later": slice(m, m + len(later))}
    assert found.subsets == {name: columns for name, columns in expected.items() if columns.start < columns.stop}
    assert found.later_ids.tolist() == later
    assert found.about.split.tolist() == [0] * n + [1] * len(task.validation) + [0] * len(later)
    entry = dict.fromkeys(shift.task(2).new_train.ids.tolist(), 2)
    entry |= dict.fromkeys(shift.task(1).new_train.ids.tolist(), 1)
    entry |= dict.fromkeys(shift.task(0).new_train.ids.tolist(), 0)
    known = np.r_[0:n, m : len(found)]
    assert found.about.entry_task[known].tolist() == [entry[i] for i in found.about.ids[known].tolist()]


def test_labels_before_and_after_noise_belong_to_their_ids(tmp_path):
    context = make_context(tmp_path / "run", *INCREMENTAL, "samples.population=run", "samples.validation=true")
    about = population(context, "csl").about
    everything = context.shift.data.train
    clean = dict(zip(everything.ids.tolist(), everything.clean_labels.tolist(), strict=True))
    told = dict(zip(everything.ids.tolist(), everything.labels.tolist(), strict=True))
    train = about.split == 0
    ids = about.ids[train].tolist()
    assert about.labels[train].tolist() == [clean[i] for i in ids]
    assert about.labels_trained[train].tolist() == [told[i] for i in ids]
    assert clean != told
    np.testing.assert_array_equal(about.labels[~train], about.labels_trained[~train])


def test_validation_samples_enter_with_their_class(tmp_path):
    context = make_context(tmp_path / "run", *INCREMENTAL, "data.label_noise=0.0", "samples.validation=true", task=2)
    about = population(context, "csl").about
    classes = context.current_task.classes
    of_validation = about.split == 1
    expected = [classes.index(label) // 2 for label in about.labels[of_validation].tolist()]
    assert about.entry_task[of_validation].tolist() == expected and set(expected) == {0, 1, 2}


def test_a_class_enters_with_the_first_of_its_samples(tmp_path):
    """Its validation samples too, when others of its training samples come with a later task."""
    overrides = ("data.label_noise=0.0", "samples.validation=true")
    context = make_context(tmp_path / "run", *INCREMENTAL, *overrides, task=1)
    task = context.current_task
    entries = _entries_of(context.shift)
    entries.of(context.shift, 1, task.train.ids.numpy())
    of_class = task.train.ids[task.train.labels == task.classes[0]].numpy()
    entries.tasks[np.isin(entries.ids, of_class[1:])] = 1
    about = population(context, "csl").about
    trained = (about.labels == task.classes[0]) & (about.split == 0)
    assert sorted(about.entry_task[trained].tolist()) == [0] + [1] * (len(of_class) - 1) and len(of_class) > 1
    validated = (about.labels == task.classes[0]) & (about.split == 1)
    assert validated.any() and (about.entry_task[validated] == 0).all()


def test_batches_and_chunks_hold_each_sample_once_in_the_order_of_the_columns(tmp_path):
    context = make_context(tmp_path / "run", *INCREMENTAL, "samples.population=run", "samples.validation=true")
    found = population(context, "csl")
    whole = torch.cat([batch.ids for batch in found.batches(7)])
    assert whole.tolist() == found.about.ids.tolist()
    dealt = [batch for chunk in found.chunks(7) for batch in chunk.batches(7)]
    assert max(len(batch.ids) for batch in dealt) == 7
    for one, other in zip(found.batches(7), dealt, strict=True):
        assert torch.equal(one.inputs, other.inputs) and torch.equal(one.ids, other.ids)
        assert torch.equal(one.targets, other.targets)


def test_a_sample_that_comes_again_entered_the_first_time(tmp_path):
    """Pairs of classes, all used again after five tasks: with task 6 nobody is new."""
    overrides = ("task_shift_mode=binary_pairs", "task_shift_mode.pairs=tiled", "num_tasks=7", "samples.population=run")
    context = make_context(tmp_path / "run", "analysis=[]", *overrides, task=1)
    found = population(context, "csl")
    entered_before = set(context.shift.task(0).new_train.ids.tolist())
    assert entered_before and not entered_before & set(found.about.ids.tolist())
    assert len(np.unique(found.about.ids)) == len(found)
    move_to(context, 6)
    assert population(context, "csl").about.entry_task.max() < 5


def test_a_stream_is_refused_by_name(tmp_path):
    class Stream:
        is_stream = True

        def __init__(self, source):
            self.source = source

        def __getattr__(self, name):
            return getattr(self.source, name)

        def __len__(self):
            return len(self.source)

    context = make_context(tmp_path / "run", "analysis=[]")
    train = context.current_task.train
    stream = dataclasses.replace(train, source=Stream(train.source))
    context.task = dataclasses.replace(context.current_task, train=stream)
    with pytest.raises(ConfigError, match="csl: needs a finite set of samples, and these data are a stream"):
        population(context, "csl")


def test_what_is_known_of_a_shift_goes_with_it(tmp_path):
    context = make_context(tmp_path / "run", *INCREMENTAL, "samples.population=run")
    population(context, "csl")
    shift = weakref.ref(context.shift)
    del context
    gc.collect()
    assert shift() is None


def test_entries_are_found_whatever_is_asked_first(tmp_path):
    context = make_context(tmp_path / "run", *INCREMENTAL)
    ids = context.shift.task(2).train.ids.numpy()
    late, step_by_step = Entries(), Entries()
    for k in range(3):
        some = context.shift.task(k).train.ids.numpy()
        found = step_by_step.of(context.shift, k, some)
    np.testing.assert_array_equal(late.of(context.shift, 2, ids), found)
    assert np.bincount(found).tolist() == [len(context.shift.task(k).new_train) for k in range(3)]
    assert len(late.brought_by(context.shift, 1)) == len(context.shift.task(1).new_train)
