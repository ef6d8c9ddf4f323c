"""Tables on the disk: row groups, null and NaN, metadata, groups of samples."""

import math

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from plastiscope.error import DataError
from plastiscope.table.file import Table, TableWriter
from plastiscope.table.groups import group_statistics, group_table

NAN = float("nan")
ROWS = {
    "sample_id": np.array([1, 2, 3]),
    "x": np.array([0.5, NAN, 2.0], np.float32),
    "n": np.ma.MaskedArray([7, 0, 9], [False, True, False]),
    "flag": np.ma.MaskedArray([True, False, False], [False, False, True]),
    "name": np.ma.MaskedArray(["a", "", "c"], [False, True, False]),
}


def written(path, groups: int = 2) -> Table:
    with TableWriter(path, {"said": {"x": 1}}) as writer:
        for k in range(groups):
            writer.write({name: values + 3 * k if name == "sample_id" else values for name, values in ROWS.items()})
    return Table(path)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_columns_come_back(tmp_path, suffix):
    table = written(tmp_path / f"t{suffix}")
    assert table.names == list(ROWS) and table.about == {"said": {"x": 1}}
    assert table.numbers == ["sample_id", "x", "n", "flag"]
    assert table.column("sample_id").tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(table.column("x"), np.array([0.5, NAN, 2, 0.5, NAN, 2]))
    np.testing.assert_array_equal(table.column("n"), np.array([7, NAN, 9, 7, NAN, 9]))
    there = ["t.csv", "t.json"] if suffix == ".csv" else ["t.parquet"]
    assert sorted(path.name for path in tmp_path.iterdir()) == there


def test_a_row_group_for_each_slice(tmp_path):
    table = written(tmp_path / "t.parquet", 3)
    assert pq.ParquetFile(table.path).num_row_groups == 3
    assert pd.read_parquet(table.path).x.isna().sum() == 3
    assert pq.read_table(table.path).column("x").null_count == 0  # an unknown number is NaN
    parts = list(table.slices())
    assert [part["sample_id"].tolist() for part in parts] == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    for name in ("n", "flag", "name"):
        assert parts[1][name].tolist() == ROWS[name].tolist()


def test_what_fails_leaves_no_file(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"the one before")
    with pytest.raises(RuntimeError, match="stop"), TableWriter(tmp_path / "t.parquet", {}) as writer:
        writer.write(ROWS)
        raise RuntimeError("stop")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the one before"]
    with pytest.raises(DataError, match="cannot be read as a table"):
        Table(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="cannot be read as a table"):
        Table(tmp_path / "none.parquet")


def test_statistics_of_groups_by_hand():
    values = np.array([1.0, 3.0, NAN, 5.0, 10.0])
    n, mean, std = group_statistics(values, np.array([0, 0, 0, 1, -1]), 3)
    assert n.tolist() == [2, 1, 0]
    np.testing.assert_array_equal(mean, [2, 5, NAN])
    np.testing.assert_array_equal(std, [math.sqrt(2), NAN, NAN])
    far = 1e8 + np.array([1.0, 2.0, 3.0])
    assert group_statistics(far, np.zeros(3, np.int64), 1)[2].tolist() == [1.0]


def test_group_tables_leave_out_who_has_no_group(tmp_path):
    pd.DataFrame({"sample_id": [1, 2, 3], "label": [2.0, NAN, 2.0], "v": [1.0, 9.0, 3.0]}).to_parquet(
        tmp_path / "t.parquet"
    )
    found = group_table(Table(tmp_path / "t.parquet"), "label")
    assert found.to_dict("records") == [{"label": 2, "quantity": "v", "n": 2, "mean": 2.0, "std": math.sqrt(2)}]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_samples_of_some_splits(tmp_path, suffix):
    split = np.ma.MaskedArray(["train", "validation", ""], [False, False, True])
    with TableWriter(tmp_path / f"t{suffix}", {}) as writer:
        writer.write({"sample_id": np.array([1, 2, 3]), "split": split})
    table = Table(tmp_path / f"t{suffix}")
    assert table.only(["train"]).column("sample_id").tolist() == [1]
    assert table.only(["train", "validation"]).column("sample_id").tolist() == [1, 2]
    assert table.column("sample_id").tolist() == [1, 2, 3]
    with pytest.raises(DataError, match=r"no samples of split test \(there are: train, validation\); give --splits"):
        table.only(["test"])
    assert written(tmp_path / f"u{suffix}").only(["test"]).column("sample_id").tolist() == [1, 2, 3, 4, 5, 6]
