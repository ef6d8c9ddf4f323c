"""The codes of a table: which columns they are of, and that every row gets its own."""

import numpy as np
import pytest

from plastiscope.error import ConfigError
from plastiscope.measure.classification import Rule, RuleKind
from plastiscope.table.codes import CodeRules, axis_columns, classified, said_of, with_codes


def test_the_first_column_there_is_stands_for_an_axis():
    columns = ["sample_id", "legacy_curv_mean", "csl_mean", "persample_rate_mean", "input_curv_norm_mean"]
    assert axis_columns(columns) == {
        "csl": "csl_mean",
        "curvature": "input_curv_norm_mean",
        "dormant": "persample_rate_mean",
    }
    assert axis_columns(columns, CodeRules(axes={"memorization": "csl_mean"}))["memorization"] == "csl_mean"
    assert axis_columns(["memo_proxy"]) == {}  # a proxy of the same run is no memorization


def test_rules_for_what_is_not_there_are_refused():
    with pytest.raises(ConfigError, match="axis csl=csl_sum: the table has no such column"):
        axis_columns(["csl_mean"], CodeRules(axes={"csl": "csl_sum"}))
    with pytest.raises(ConfigError, match="rule memorization: nothing of the run is measured"):
        axis_columns(["csl_mean"], CodeRules(rules={"memorization": Rule()}))


def test_rows_of_all_slices_get_their_own_code():
    values = np.arange(7.0)
    found = classified(
        {"csl_mean": values, "m": np.ma.MaskedArray(values, values > 5)},
        {"csl": "csl_mean", "memorization": "m"},
        CodeRules(),
    )
    slices = ({"sample_id": np.arange(7)[cut]} for cut in (slice(0, 2), slice(2, 3), slice(3, 7)))
    coded = list(with_codes(slices, found))
    codes = [code for rows in coded for code in rows["code"].tolist()]
    assert codes == ["L--L", "L--H", "L--H", "H--H", "H--H", "H--H", "H--?"]
    assert next(with_codes(iter([{"sample_id": np.arange(2)}]), None)).keys() == {"sample_id"}


def test_what_is_said_of_codes():
    rules = CodeRules(rules={"csl": Rule(kind=RuleKind.absolute, level=2.5)})
    found = classified({"csl_mean": np.arange(7.0)}, {"csl": "csl_mean"}, rules)
    said = said_of(found, {"csl": "csl_mean"}, rules)
    assert said["axes"] == {"csl": "csl_mean"} and said["thresholds"] == {"csl": 2.5}
    assert said["rules"] == {"csl": {"kind": "absolute", "level": 2.5}}
    groups = CodeRules(by="label")
    found = classified({"csl_mean": np.arange(4.0), "label": np.array([3, 3, 8, 8])}, {"csl": "csl_mean"}, groups)
    assert said_of(found, {"csl": "csl_mean"}, groups)["thresholds"] == {"csl": {3: 0.5, 8: 2.5}}
    assert classified({}, {}, CodeRules()) is None


def test_thresholds_come_from_the_splits_that_are_asked_for():
    """Every sample has a code; a group without a sample of these splits has no threshold."""
    columns = {
        "csl_mean": np.array([1.0, 2.0, 3.0, 9.0, 9.0, 4.0]),
        "split": np.array(["train", "train", "train", "validation", "validation", "validation"]),
        "label": np.array([0, 0, 0, 0, 0, 1]),
    }
    axes = {"csl": "csl_mean"}
    assert classified(columns, axes, CodeRules()).thresholds == {"csl": {-1: 2.0}}
    assert classified(columns, axes, CodeRules(splits=("train", "validation"))).thresholds == {"csl": {-1: 3.5}}
    grouped = classified(columns, axes, CodeRules(by="label"))
    assert grouped.codes.tolist() == ["L---", "H---", "H---", "H---", "H---", "?---"]
