"""Two analyses that measure the same quantity of the same samples keep one matrix of it."""

import numpy as np
import pytest
from analysis_context import MLP, TINY

from plans import make_plan
from plastiscope.analysis.aggregation import table
from plastiscope.experiment import run
from plastiscope.load import load_run


@pytest.mark.parametrize("order", ["csl,curvature", "curvature,csl"])
@pytest.mark.parametrize(("every", "curvature_every"), [(1, 2), (2, 1), (1, 10)])
def test_the_input_gradient_is_kept_at_the_epochs_of_csl(tmp_path, order, every, curvature_every):
    settings = (f"csl.every={every}", f"curvature.every={curvature_every}", "curvature.initial=true")
    run(make_plan(*TINY, *MLP, f"analysis=[{order}]", *settings, "epochs=4", "num_tasks=2"), tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    expected = [e for e in range(1, 9) if e % every == 0]
    assert loaded.samples("grad_input_l2").epochs_completed.tolist() == expected
    assert np.isfinite(table(loaded.sample_store)["lt_frac"]).all()


def test_curvature_alone_keeps_it_at_its_own_epochs(tmp_path):
    settings = ("analysis=[curvature]", "curvature.every=3", "epochs=5", "num_tasks=1")
    run(make_plan(*TINY, *MLP, *settings), tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    assert loaded.samples("grad_input_l2").epochs_completed.tolist() == [3, 5]
    assert loaded.samples("input_curv_norm").epochs_completed.tolist() == [3, 5]
    assert np.isfinite(table(loaded.sample_store)["csg"]).all()


@pytest.mark.parametrize("order", ["csl,dormant", "dormant,csl"])
def test_the_loss_is_kept_at_the_epochs_of_csl(tmp_path, order):
    settings = (f"analysis=[{order}]", "csl.every=2", "dormant.loss=true", "dormant.every=1", "epochs=4", "num_tasks=2")
    run(make_plan(*TINY, *MLP, *settings), tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    assert loaded.samples("loss").epochs_completed.tolist() == [2, 4, 6, 8]
    assert np.isfinite(table(loaded.sample_store)["csl_active_mean"]).all()


def test_dormant_alone_keeps_the_loss_at_its_own_epochs(tmp_path):
    settings = ("analysis=[dormant]", "dormant.loss=true", "dormant.every=2", "epochs=4", "num_tasks=1")
    run(make_plan(*TINY, *MLP, *settings), tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    assert loaded.samples("loss").epochs_completed.tolist() == [2, 4]
    assert np.isfinite(table(loaded.sample_store)["csl_sum"]).all()
