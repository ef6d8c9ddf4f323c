"""Codes of samples that were constructed for them."""

import math
from itertools import product

import numpy as np
import pytest

from plastiscope.measure.classification import AXES, EVERYONE, RULES, Rule, RuleKind, classify, name_of

NAN = float("nan")


def test_sixteen_constructed_samples_give_sixteen_codes():
    corners = np.array(list(product([0.0, 1.0], repeat=4)))
    found = classify(dict(zip(AXES, corners.T, strict=True)))
    assert found.codes.tolist() == ["".join("LH"[int(v)] for v in corner) for corner in corners]
    assert len(set(found.codes)) == 16
    assert found.thresholds == {axis: {EVERYONE: 0.25 if axis == "memorization" else 0.5} for axis in AXES}


def test_names():
    names = {code: name_of(code) for code in map("".join, product("HL", repeat=4))}
    assert {code: name for code, name in names.items() if name != code} == {
        "HHHH": "most problematic",
        "HLLH": "difficult but stable",
        "LHHL": "easy but plasticity-impaired",
        "LLLL": "ideal for training",
    }
    assert name_of("LH-L") == "easy but potentially disruptive"
    assert name_of("?HHH") == "?HHH"


def test_ties_are_high_and_unknown_values_a_question_mark():
    found = classify({"csl": np.array([1.0, 2.0, 3.0, NAN]), "memorization": np.array([0.25, 0.2499, 0.0, NAN])})
    assert found.codes.tolist() == ["L--H", "H--L", "H--L", "?--?"]
    assert found.thresholds == {"csl": {EVERYONE: 2.0}, "memorization": {EVERYONE: 0.25}}


def test_memorization_of_unknown_samples_is_not_low():
    assert classify({"memorization": np.array([NAN, 0.0])}).codes.tolist() == ["---?", "---L"]


def test_quantiles_are_those_of_the_finite_values():
    values = np.array([0.0, 1.0, 2.0, 3.0, NAN])
    found = classify({"csl": values}, {"csl": Rule(level=0.9)})
    assert found.thresholds["csl"][EVERYONE] == pytest.approx(2.7)
    assert found.codes.tolist() == ["L---", "L---", "L---", "H---", "?---"]
    assert math.isnan(Rule().threshold(np.array([NAN])))
    assert classify({"csl": np.array([NAN])}).codes.tolist() == ["?---"]


def test_a_threshold_of_each_group():
    values, groups = np.array([1.0, 2.0, 3.0, 10.0, 20.0, 30.0]), np.array([7, 7, 7, 2, 2, 2])
    together, apart = classify({"dormant": values}), classify({"dormant": values}, groups=groups)
    assert [code[2] for code in together.codes] == ["L", "L", "L", "H", "H", "H"]
    assert [code[2] for code in apart.codes] == ["L", "H", "H", "L", "H", "H"]
    assert apart.thresholds == {"dormant": {7: 2.0, 2: 20.0}}


def test_absolute_thresholds():
    rules = {**RULES, "csl": Rule(kind=RuleKind.absolute, level=1.5)}
    found = classify({"csl": np.array([1.5, 1.0, 9.0])}, rules)
    assert found.codes.tolist() == ["H---", "L---", "H---"]


def test_values_of_float32_meet_their_own_quantile():
    values = np.array([0.1, 0.1, 0.7], np.float32)
    assert classify({"curvature": values}).codes.tolist() == ["-H--", "-H--", "-H--"]


@pytest.mark.parametrize("axes", [{}, {"loss": np.ones(2)}, {"csl": np.ones(2), "dormant": np.ones(3)}])
def test_axes_that_cannot_be(axes):
    with pytest.raises(ValueError, match="axes"):
        classify(axes)
