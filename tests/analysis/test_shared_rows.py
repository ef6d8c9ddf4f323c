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


def test_what_csl_sums_up_does_not_depend_on_the_others(tmp_path):
    """Tasks without a due epoch of csl have no loss and no input gradient, though others measure both there."""
    settings = ("csl.every=3", "epochs=2", "num_tasks=4", "task_shift_mode.cumulative=false", "data.label_noise=0.2")
    beside = ("dormant.loss=true", "dormant.every=2", "curvature.every=2", "curvature.directions=1")
    run(make_plan(*TINY, *MLP, "analysis=[csl]", *settings), tmp_path / "alone")
    run(make_plan(*TINY, *MLP, "analysis=[csl,dormant,curvature]", *settings, *beside), tmp_path / "together")
    alone, together = load_run(tmp_path / "alone"), load_run(tmp_path / "together")
    for metric in ("loss", "grad_input_l2", "correct", "margin"):
        one, other = alone.samples(metric), together.samples(metric)
        assert other.epochs_completed.tolist() == [3, 6]
        columns = np.searchsorted(other.ids, one.ids)
        np.testing.assert_array_equal(other.values[:, columns], one.values)
    wanted, found = table(alone.sample_store), table(together.sample_store)
    assert wanted.keys() == found.keys()
    for name in wanted.keys() - {"n_presentations", "first_epoch", "last_epoch"}:  # of all blocks that there are
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    for k in (1, 2):
        files = [
            folder / f"task_{k:04d}_mlp" / "csl" / "csl_digits_run0_noise_0.2.npy" for folder in tmp_path.iterdir()
        ]
        one, other = map(np.load, files)
        np.testing.assert_array_equal(one, other)
    ends = [loaded.metrics[loaded.metrics["kind"] == "task_end"].filter(like="csl/") for loaded in (alone, together)]
    assert len(ends[0].columns) > 4 and ends[0].equals(ends[1])
