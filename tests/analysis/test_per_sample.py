"""The base of per-sample analyses: rows, parts, means by subset; what several processes share is what one computes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_context import make_context, move_to

from plastiscope.analysis.per_sample import SampleAnalysis, mean
from plastiscope.error import RunError
from plastiscope.event import Context
from plastiscope.run.processes import Processes, share_out

WIDE = ("analysis=[]", "samples.population=run", "samples.validation=true", "task_shift_mode=class_incremental")


@pytest.fixture
def context_at(tmp_path: Path) -> Iterator[Callable[..., Context]]:
    """Makes contexts whose stores are closed at the end."""
    made: list[Context] = []

    def at(name: str = "run", *overrides: str, task: int = 0) -> Context:
        made.append(make_context(tmp_path / name, *WIDE, *overrides, task=task))
        return made[-1]

    yield at
    for context in made:
        context.sample_store.close()


@dataclass(kw_only=True)
class Ids(SampleAnalysis):
    """Gives each sample its id and half of it."""

    name = "ids"

    def score(self, context, task):
        return lambda batch: {"number": batch.ids.float(), "half.first_layer": batch.ids.float() / 2}


def test_rows_are_in_the_order_of_the_columns(context_at):
    context, analysis = context_at(task=1), Ids(batch_size=7)
    analysis.look(context)
    context.sample_store.sync()
    block = context.sample_store.block(1)
    assert block.metrics() == ["half.first_layer", "number"]
    (row,) = block.rows("number").values()
    np.testing.assert_array_equal(row, block.ids)
    np.testing.assert_array_equal(block.rows("half.first_layer")[4], block.ids / 2)


def test_means_are_told_by_subset_and_layer(context_at):
    context, analysis = context_at(), Ids()
    task, shift = context.current_task, context.shift
    numbers = analysis.look(context)
    later = torch.cat([shift.task(k).new_train.ids for k in (1, 2)]).double().mean().item()
    means = {"train": task.train.ids.double().mean().item(), "later": later}
    means["validation"] = task.validation.ids.double().mean().item()
    assert numbers == pytest.approx(
        {f"ids/{subset}/total/number": value for subset, value in means.items()}
        | {f"ids/{subset}/first_layer/half": value / 2 for subset, value in means.items()}
    )


def test_numbers_of_the_untrained_network_have_names_of_their_own(context_at):
    context, analysis = context_at(), Ids(initial=True)
    context.epochs_completed = 0
    names = {key.split("/")[1] for key in analysis.on_task_begin(context)}
    assert names == {"initial", "initial_validation", "initial_later"}
    assert Ids(initial=False).on_task_begin(context) == {}
    context.epochs_completed = 2
    assert analysis.on_task_begin(context) == {}


def test_samples_without_a_value_are_not_part_of_a_mean(context_at):
    context, analysis = context_at(), Ids()
    n = len(analysis.samples(context))
    values = np.full(n, np.nan, np.float32)
    values[:2] = 1, 4
    assert analysis.record(context, {"number": values}) == {"ids/train/total/number": 2.5}
    assert mean(np.array([], np.float32)) != mean(np.array([], np.float32))


def test_means_of_many_large_values_keep_their_digits():
    values = np.full(100_000, 16_777_216.0, np.float32)
    values[0] += 2**24
    assert mean(values) == 2.0**24 + 2**24 / 100_000


def test_only_due_epochs_have_a_row_and_they_are_the_axis(context_at):
    context, analysis = context_at("run", "epochs=4"), Ids(every=3)
    move_to(context, 1)
    seen = []
    for context.epochs_completed in (5, 6, 7, 8):
        seen.append(bool(analysis.on_epoch_end(context)))
    assert seen == [False, True, False, False]
    assert context.sample_store.block(1).epochs("number").tolist() == [6]
    move_to(context, 0)
    assert analysis.epochs(context) == [3] and Ids(every=3, initial=True).epochs(context) == [0, 3]


def test_an_analysis_that_goes_on_to_another_run_looks_at_its_samples(context_at):
    analysis = Ids()
    one = context_at("one")
    other = context_at("other", "data.samples_per_class=5")
    assert len(analysis.samples(one)) > len(analysis.samples(other))
    assert analysis.samples(other) is analysis.samples(other)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_replay_shares_the_parts_out_and_merges_the_same_bytes(context_at, world):
    """Each process in turn computes its own parts; the last one finds all of them and gives the row."""
    context, analysis = context_at(), Ids(batch_size=5)
    alone = analysis.score_all(context, analysis.score(context, context.current_task))
    context.checkpoints = (2,)
    for rank in range(1, world):
        with pytest.raises(RunError, match="cannot be read"):  # what the first one computes is not there yet
            context.processes = Alone(rank, world)
            analysis.score_all(context, analysis.score(context, context.current_task))
    context.processes = Alone(0, world)
    shared = analysis.score_all(context, analysis.score(context, context.current_task))
    assert {name: values.tobytes() for name, values in shared.items()} == {
        name: values.tobytes() for name, values in alone.items()
    }
    assert not analysis.parts_folder(context).exists()


class Alone(Processes):
    """One of several processes that does not wait for the others."""

    def barrier(self) -> None:
        return None


def test_only_the_first_process_writes(context_at):
    context, analysis = context_at(), Ids()
    context.processes = Alone(1, 2)
    values = np.zeros(len(analysis.samples(context)), np.float32)
    assert analysis.record(context, {"number": values})
    assert context.sample_store.tasks() == []


def test_parts_of_other_samples_are_refused(context_at, tmp_path):
    context, analysis = context_at(), Ids(batch_size=500)
    context.checkpoints = (2,)
    folder: Path = analysis.parts_folder(context)
    folder.mkdir(parents=True)
    parts = len(analysis.samples(context).chunks(500))
    np.savez(folder / f"part_00000_of_{parts:05d}.npz", ids=np.zeros(3, np.int64), number=np.zeros(3, np.float32))
    with pytest.raises(RunError, match=r"the parts hold \d+ samples .* of another run"):
        analysis.score_all(context, lambda batch: {"number": batch.ids.float()})
    assert share_out(tmp_path / "parts", 0, lambda i: {}, Processes()) == []
