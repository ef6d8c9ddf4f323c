"""What is said of the columns: units of curvature, and pictures of scores that do not vary."""

import numpy as np
import pytest

from plastiscope.figure.samples import pairs
from plastiscope.table.definitions import definition
from plastiscope.table.file import Table, TableWriter
from plastiscope.table.pictures import axis_label, draw_table
from plastiscope.table.store import metric_sources
from table.stores import labels_of, write_block

SQUARED, LINEAR = "loss per squared unit of the normalised input", "loss per unit of the normalised input"


@pytest.mark.parametrize(
    ("metric", "unit", "in_pixels"),
    [
        ("input_curv_norm", SQUARED, True),
        ("input_curv_noise", SQUARED, True),
        ("legacy_curv", LINEAR, True),
        ("legacy_directional_eig", "loss", True),
        ("grad_input_l2", LINEAR, False),
    ],
)
def test_units_of_curvature(tmp_path, metric, unit, in_pixels):
    store = write_block(tmp_path, 0, labels_of([1, 2]), [1], {metric: [[0.5, 0.25]]})
    (source,) = metric_sources(store, "run")
    assert {column.unit for column in source.columns.values()} == {unit}
    assert all(("pixel_std" in column.definition) == in_pixels for column in source.columns.values())


def test_learning_epochs_are_numbers_of_epochs_before():
    assert definition("first_learn").definition.startswith("number of active epochs before the first in which")
    assert definition("online_learn_forever").definition.startswith("number of active epochs before the sample is")


def test_a_constant_score_is_said_to_be(tmp_path):
    same, varied = np.full(40, 0.5), np.arange(40.0)
    titles = [axes.get_title() for axes in pairs({"a": same, "b": varied, "c": varied**2}).axes]
    assert titles[0] == "constant, n = 40" and titles[1] == titles[3] == "one score constant, n = 40"
    assert titles[4] == "Spearman 1.00, n = 40"
    columns = {"sample_id": np.arange(40), "csl_mean": varied, "persample_rate_mean": same, "memorization": same}
    with TableWriter(tmp_path / "t.parquet", {}) as writer:
        writer.write(columns)
    drawn = draw_table(Table(tmp_path / "t.parquet"))
    assert [path.name for path in drawn.files] == ["samples_pairs.png"]  # no trend over a constant score, nor of one


def test_axes_have_the_units_of_their_columns(tmp_path):
    units = {"csl_mean": "nats", "input_curv_norm_mean": SQUARED, "aum": "1"}
    about = {"columns": {name: {"definition": "...", "unit": unit} for name, unit in units.items()}}
    with TableWriter(tmp_path / "t.parquet", about) as writer:
        writer.write({"sample_id": np.arange(4)})
    labels = [axis_label(Table(tmp_path / "t.parquet"), name) for name in (*units, "elsewhere")]
    curvature = "input_curv_norm_mean\n(loss per squared unit of the\nnormalised input)"
    assert labels == ["csl_mean (nats)", curvature, "aum", "elsewhere"]
    store = write_block(tmp_path, 0, labels_of([1, 2]), [1], {"persample_redo_module_output": [[0.5, 0.25]]})
    assert {column.unit for column in metric_sources(store, "run")[0].columns.values()} == {"share of units"}
