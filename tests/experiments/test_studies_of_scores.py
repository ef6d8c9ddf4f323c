"""The protocols of the studies on digits at the size of a test: their gates hold, and so do the negative controls."""

import numpy as np
import pytest

from experiments.class_incremental_csl import run as class_incremental_csl
from experiments.memorization import run as memorization
from experiments.noisy_labels import run as noisy_labels
from plastiscope.build import compose_plan
from plastiscope.experiment import run
from plastiscope.make import choose_device, load_tasks
from plastiscope.measure.comparison import auroc, pearson


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Columns of one seed with 10 % wrong labels."""
    return noisy_labels.columns(noisy_labels.train(0, 0.1, tmp_path_factory.mktemp("noisy_labels")))


def test_wrong_labels_are_found(scored):
    """The gates of a single seed; the figures beside them are those of five seeds."""
    assert scored["noisy"].sum() == 180 and len(scored["sample_id"]) == 1797
    found = noisy_labels.aurocs(scored)
    assert found["CSL, after each epoch"] >= 0.985  # .998, at least .994
    assert abs(found["CSL, online"] - found["CSL, after each epoch"]) <= 0.01
    assert found["-AUM"] >= 0.97  # .992
    assert found["learning time, squared norm"] >= 0.96  # .987
    assert found["curvature, mean over epochs"] >= 0.90  # .950
    assert found["curvature, mean over epochs"] > found["curvature, last epoch"]
    assert 0.75 <= found["forgetting events"] <= 0.95  # .868
    assert found["curvature, mean over epochs"] > found["forgetting events"]
    assert found["1 - argmax (wrong on purpose)"] < 0.1  # .017


def test_a_score_in_a_random_order_finds_nothing(scored):
    shuffled = np.random.RandomState(0).permutation(scored["csl_sum"])
    assert abs(auroc(shuffled, scored["noisy"]).value - 0.5) < 0.08  # 4 s.e. of 180 positives
    assert abs(pearson(shuffled, scored["csl_sum"]).value) < 0.1


def test_a_network_of_a_subset_was_trained_on_that_subset():
    """Wrong labels are learnt where they were seen and hardly anywhere else; 3 networks of 150."""
    plan = compose_plan(*memorization.PROTOCOL, "seed=0", memorization.NOISE)
    seen, unseen, subsets = [], [], []
    train = load_tasks(plan, choose_device("cpu"))[1].task(0).train
    noisy = (train.labels != train.clean_labels).numpy()
    for r in range(3):
        is_in, right = memorization.train_on_subset(plan, r)
        assert is_in.sum() == 1257
        subsets.append(is_in)
        seen.append(right[noisy & is_in].mean())
        unseen.append(right[noisy & ~is_in].mean())
    assert np.mean(seen) > 0.9 and np.mean(unseen) < 0.1
    assert not np.array_equal(subsets[0], subsets[1])


def test_a_sum_over_all_epochs_measures_the_entry_of_the_class(tmp_path):
    run(compose_plan(*class_incremental_csl.PROTOCOL), tmp_path / "run")
    numbers = class_incremental_csl.measure(tmp_path / "run")
    assert class_incremental_csl.check(numbers) == []
    assert numbers["csl_all"]["between"] > 0.5 > 0.1 > numbers["csl_active_mean"]["between"]
