"""The outer join by id: exact values, ragged sources, counts, and what is refused."""

import numpy as np
import pytest

from plastiscope.error import DataError
from plastiscope.table.merge import merge
from plastiscope.table.source import ID, Column, Source, Stream, source_of
from plastiscope.table.store import identities, metric_sources
from table.stores import labels_of, write_block

NAN = float("nan")


def source(name: str, ids: list[int], column: str, values: list, **options) -> Source:
    return source_of(name, {ID: np.array(ids), column: np.array(values)}, {column: Column("as given")}, **options)


def joined(merged, size: int = 1000) -> dict[str, list]:
    """All rows, masked values as None."""
    slices = list(merged.slices(size))
    return {name: [value for part in slices for value in part[name].tolist()] for name in slices[0]}


def test_values_stand_at_their_ids_whatever_the_order():
    base = np.array([3, 5, 8])
    merged = merge(base, [source("a", [8, 3, 5], "x", [80.0, 30.0, 50.0]), source("b", [5, 8, 3], "y", [5, 8, 3])])
    assert joined(merged) == {ID: [3, 5, 8], "x": [30, 50, 80], "y": [3, 5, 8]}
    assert [count[1:4] for count in merged.counts] == [(0, 0, 3), (0, 0, 3)]


def test_a_ragged_source_leaves_gaps_and_no_row_is_lost():
    base = np.array([3, 5, 8, 9])
    merged = merge(base, [source("dormancy", [9, 5], "share", [0.9, 0.5]), source("counts", [3], "n", [7])])
    found = joined(merged)
    np.testing.assert_array_equal(found["share"], [NAN, 0.5, NAN, 0.9])
    assert found["n"] == [7, None, None, None]  # a whole number has no NaN
    assert (merged.counts[0].left, merged.counts[0].right, merged.counts[0].both) == (2, 0, 2)
    assert len(merged.ids) == 4


def test_samples_that_only_a_source_has_become_rows_or_only_count():
    base = np.array([3, 5])
    outer = merge(base, [source("a", [3, 5], "x", [1.0, 2.0]), source("b", [4, 5, 7], "y", [4.0, 5.0, 7.0])])
    np.testing.assert_array_equal(outer.ids, [3, 4, 5, 7])
    np.testing.assert_array_equal(joined(outer)["x"], [1, NAN, 2, NAN])
    np.testing.assert_array_equal(joined(outer)["y"], [NAN, 4, 5, 7])
    assert outer.counts[1][1:] == (1, 2, 1, True)
    left = merge(base, [source("b", [4, 5, 7], "y", [4.0, 5.0, 7.0], adds_rows=False, extra=10)])
    np.testing.assert_array_equal(left.ids, base)
    np.testing.assert_array_equal(joined(left)["y"], [NAN, 5])
    assert left.counts[0][1:] == (1, 12, 1, False)
    assert str(left.counts[0]) == "b: 1 samples in both, 1 only in the run, 12 only here, left out"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_slices_do_not_change_the_table(size):
    random = np.random.default_rng(size)
    base = np.unique(random.integers(0, 60, 30))
    sources = [
        source(name, ids.tolist(), name, (ids * 10.0).tolist())
        for name in ("a", "b", "c")
        for ids in [random.permutation(np.unique(random.integers(0, 80, 25)))]
    ]
    merged = merge(base, sources)
    found = joined(merged, size)
    assert found[ID] == sorted({*base.tolist(), *(i for s in sources for i in s.ids.tolist())})
    for s in sources:
        wanted = [10.0 * i if i in s.ids else NAN for i in found[ID]]
        np.testing.assert_array_equal(found[s.name], wanted)


def test_a_stream_gives_each_row_once():
    rows = [{ID: np.array(ids), "x": np.array(ids) * 2} for ids in ([1, 2, 5], [6, 9], [12])]
    stream = Stream(
        Source(name="s", ids=np.array([1, 2, 5, 6, 9, 12]), columns={"x": Column("")}, slices=lambda: iter(rows))
    )
    assert [stream.until(last).get(ID, np.empty(0)).tolist() for last in (0, 5, 5, 6, 10, 12, 99)] == [
        [], [1, 2, 5], [], [6], [9], [12], []
    ]  # fmt: skip


def test_a_duplicate_id_is_named():
    with pytest.raises(DataError, match="b has sample 5 more than once"):
        merge(np.array([5]), [source("b", [4, 5, 5], "y", [1.0, 2.0, 3.0])])


def test_two_sources_of_one_column_are_refused():
    with pytest.raises(DataError, match="b has a column x"):
        merge(np.array([5]), [source("a", [5], "x", [1.0]), source("b", [5], "x", [1.0])])


def test_samples_of_all_blocks_are_known_once(tmp_path):
    write_block(tmp_path, 0, labels_of([7, 3]), [1], {"m": [[1, 2]]})
    store = write_block(tmp_path, 1, labels_of([3, 9, 1], entry_task=[1, 1, 1]), [2], {"m": [[1, 2, 3]]})
    found = identities([store])
    assert found.ids.tolist() == [1, 3, 7, 9]
    assert found.entry_task.tolist() == [1, 0, 0, 1]  # the first task that names it
    assert found.labels.tolist() == [1, 0, 1, 0]


def test_labels_that_differ_between_blocks_are_refused(tmp_path):
    store = write_block(tmp_path / "a", 0, labels_of([7, 3]), [1], {"m": [[1, 2]]})
    other = write_block(tmp_path / "b", 0, labels_of([3, 4], labels=[2, 1]), [1], {"m": [[1, 2]]})
    with pytest.raises(DataError, match=r"gives 1 of 1 samples other labels, first sample 3 2 for 0"):
        identities([store, other])
    changed = write_block(tmp_path / "c", 0, labels_of([3, 4], trained=[0, 2]), [1], {"m": [[1, 2]]})
    assert identities([store, changed]).labels_trained.tolist() == [0, 2, 1]


def test_metrics_are_summed_up_over_the_epochs_in_which_they_were_measured(tmp_path):
    write_block(tmp_path, 0, labels_of([7, 3]), [1, 2], {"m": [[1, 2], [3, NAN]], "loss": [[1, 1], [1, 1]]})
    store = write_block(tmp_path, 1, labels_of([3, 9]), [3, 4], {"m": [[10, NAN], [20, NAN]]})
    (found,) = metric_sources(store, "run/samples")
    assert found.name == "run/samples/m"
    rows = joined(merge(np.array([3, 7, 9]), [found]))
    np.testing.assert_array_equal(rows["m_mean"], [np.float32(32 / 3), 2, NAN])
    np.testing.assert_array_equal(rows["m_final"], [20, 3, NAN])
    assert found.columns["m_mean"].definition.startswith("mean of m over the epochs in which")


def test_ragged_dormancy_joins_with_nan(tmp_path):
    """Dormancy of some samples only, in a folder of its own."""
    base = write_block(tmp_path / "run", 0, labels_of([1, 2, 3, 4]), [1], {"input_trace": [[1, 2, 3, 4]]})
    other = write_block(tmp_path / "late", 0, labels_of([4, 2]), [5], {"persample_strict": [[0.4, 0.2]]})
    samples = identities([base, other])
    merged = merge(samples.ids, [*metric_sources(base, "run"), *metric_sources(other, "late")])
    rows = joined(merged)
    assert rows["input_trace_mean"] == [1, 2, 3, 4]
    np.testing.assert_array_equal(rows["persample_strict_final"], np.array([NAN, 0.2, NAN, 0.4], np.float32))
    assert [count[1:4] for count in merged.counts] == [(0, 0, 4), (2, 0, 2)]
