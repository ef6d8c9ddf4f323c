"""Orders of presentation and weights of losses, by score: made by hand, and as a run uses them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from plans import make_plan
from plastiscope.data.arrays import Arrays
from plastiscope.data.order import LossWeighting, Order, WeightedBy, score_order
from plastiscope.error import ConfigError, DataError
from plastiscope.experiment import run
from plastiscope.formats.memorization import read_memorization
from plastiscope.learner.learner import Learner
from plastiscope.make import load_tasks, make_net
from plastiscope.presentation import epoch_order
from plastiscope.run.log import read_rows

NAN = float("nan")
FIXED = [order for order in Order if order is not Order.random]


def ordered(order: Order, scores: list[float], ids: list[int] | None = None) -> list[int]:
    """Ids in the order of presentation."""
    names = torch.arange(len(scores)) if ids is None else torch.tensor(ids)
    return names[score_order(order, torch.tensor(scores, dtype=torch.float64), names)].tolist()


@pytest.mark.parametrize(
    ("order", "odd", "even"),
    [
        ("low_to_high", [10, 11, 12, 13, 14], [10, 11, 12, 13]),
        ("high_to_low", [14, 13, 12, 11, 10], [13, 12, 11, 10]),
        ("alternating_hardest_easiest", [14, 10, 13, 11, 12], [13, 10, 12, 11]),
        ("middle_out", [12, 13, 11, 14, 10], [11, 12, 10, 13]),
        ("middle_out_published", [11, 10, 14, 12, 13], [11, 10, 13, 12]),
    ],
)
def test_orders_of_distinct_scores(order, odd, even):
    """Scores .1 .4 .7 .8 .9 of the ids 10 to 14, which come shuffled; 11 is nearest to .5."""
    scores = {10: 0.1, 11: 0.4, 12: 0.7, 13: 0.8, 14: 0.9}
    for ids in ([12, 10, 14, 11, 13], [14, 13, 12, 11, 10]):
        assert ordered(Order(order), [scores[i] for i in ids], ids) == odd
    assert ordered(Order(order), [0.7, 0.1, 0.8, 0.4], [12, 10, 13, 11]) == even


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("low_to_high", [3, 5, 2, 4, 6, 1, 7]),
        ("high_to_low", [2, 4, 6, 3, 5, 1, 7]),
        ("alternating_hardest_easiest", [6, 3, 4, 5, 2, 1, 7]),
        ("middle_out", [2, 4, 5, 6, 3, 1, 7]),
        ("middle_out_published", [3, 5, 6, 2, 4, 1, 7]),
    ],
)
def test_ties_go_by_id_and_unknown_scores_come_last_by_id(order, expected):
    """3 and 5 have .5, 2, 4 and 6 have .75, 1 and 7 have no score."""
    assert ordered(Order(order), [NAN, 0.75, 0.5, 0.75, 0.5, NAN, 0.75], [7, 4, 5, 6, 3, 1, 2]) == expected


@pytest.mark.parametrize("order", FIXED)
@pytest.mark.parametrize("n", range(5))
def test_each_is_a_permutation_of_few_samples_too(order, n):
    assert sorted(ordered(order, [0.3] * n)) == list(range(n))
    assert ordered(order, [NAN] * n) == list(range(n))


def test_middle_out_goes_outwards_and_the_published_one_inwards():
    """Distances from the middle rank never fall in one, and never rise after the first sample in the other."""
    ranks = [abs(i - 50) for i in ordered(Order.middle_out, list(np.linspace(0, 1, 101)))]
    assert all(one <= other for one, other in pairwise(ranks))
    ranks = [abs(i - 50) for i in ordered(Order.middle_out_published, list(np.linspace(0, 1, 101)))]
    assert ranks[0] == 0
    assert all(one >= other for one, other in pairwise(ranks[1:]))


def test_weights_by_hand():
    scores = torch.tensor([0.24, 0.25, 0.9, NAN, -0.5], dtype=torch.float64)
    assert LossWeighting(by=WeightedBy.threshold).weights(scores).tolist() == [1, 3, 3, 1, 1]
    weights = LossWeighting(by=WeightedBy.threshold, memo_threshold=0.5, high_memo_weight=0.25).weights(scores)
    assert weights.tolist() == [1, 1, 0.25, 1, 1]
    weights = LossWeighting(by=WeightedBy.score, weight_dramaticity=2.0).weights(scores)
    torch.testing.assert_close(weights, torch.tensor([1.48, 1.5, 2.8, 1.0, 0.0]))
    with pytest.raises(ConfigError, match=r"weight_dramaticity=3.0 gives a sample with score -0.5 a negative weight"):
        LossWeighting(by=WeightedBy.score, weight_dramaticity=3.0).weights(scores)


@pytest.fixture
def scores(tmp_path) -> str:
    """A file of scores of the digits, by id; every seventh is unknown."""
    values = np.random.default_rng(0).random(1437)
    values[::7] = np.nan
    np.save(tmp_path / "scores.npy", values)
    return str(tmp_path / "scores.npy")


SMALL = ("num_tasks=2", "epochs=2", "threads=1", "analysis=[]", "data.samples_per_class=20", "selection=last")


def test_settings_reach_every_task(scores):
    plan = make_plan(*SMALL, "data.order=low_to_high", f"data.scores_file={scores}", "data.loss_weighting.by=threshold")
    data, shift = load_tasks(plan, torch.device("cpu"))
    values = np.load(scores)
    for k in range(2):
        samples = shift.task(k).train
        order = samples.fixed_order()
        in_order = values[samples.ids[order]]
        known = in_order[~np.isnan(in_order)]
        assert len(known) < len(in_order)
        np.testing.assert_array_equal(
            in_order[: len(known)], np.sort(values[samples.ids][~np.isnan(values[samples.ids])])
        )
        weights = torch.cat([batch.weights for batch in samples.batches(7, order)])
        np.testing.assert_array_equal(weights, np.where(in_order >= 0.25, 3.0, 1.0))
        assert torch.equal(samples.select(order[:5]).fixed_order(), torch.arange(5))
    assert data.validation.fixed_order() is None
    assert next(data.test.batches(5)).weights is None
    assert data.description["scores_known"] == 1437 - 206
    assert len(data.description["scores_hash"]) == 64


def test_random_order_is_what_it_was_and_says_nothing_in_the_description():
    data, shift = load_tasks(make_plan(*SMALL), torch.device("cpu"))
    assert shift.task(1).train.fixed_order() is None
    assert next(data.train.batches(5)).weights is None
    assert not any("score" in key for key in data.description)


@pytest.mark.parametrize("by", ["threshold", "score"])
def test_a_run_takes_the_order_and_the_weighted_gradient(scores, tmp_path, by):
    """A plain loop over the ordered samples; the logged losses are the unweighted ones."""
    given = ("data.order=high_to_low", f"data.scores_file={scores}", f"data.loss_weighting.by={by}")
    plan = make_plan(*SMALL, *given, "data.loss_weighting.weight_dramaticity=4", "batch_size=16", "learner.momentum=0")
    run(plan, tmp_path / "run")
    data, shift = load_tasks(plan, torch.device("cpu"))
    net = make_net(plan, data.input_shape, shift.outputs)
    values = np.nan_to_num(np.load(scores), nan=-1)
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "epoch"]
    for k in range(2):
        train = shift.task(k).train
        ids = train.ids.numpy()
        order = torch.from_numpy(np.lexsort((ids, -values[ids])))
        for epoch in range(2):
            total = 0.0
            for some in order.split(16):
                batch = train.gather(some)
                losses = F.cross_entropy(net(batch.inputs)[:, : 2 * (k + 1)], batch.targets, reduction="none")
                score = torch.from_numpy(values[ids[some]])
                weights = 1 + 4 * score.clamp(min=0) if by == "score" else torch.where(score >= 0.25, 3.0, 1.0)
                net.zero_grad()
                (weights.float() * losses).mean().backward()
                with torch.no_grad():
                    for p in net.parameters():
                        p -= 0.05 * p.grad
                total += losses.sum().item()
            assert rows[2 * k + epoch]["epoch_loss"] == pytest.approx(total / len(train), rel=1e-4)
    stored = torch.load(tmp_path / "run" / "snapshots" / "epoch_000004.pt", weights_only=True)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(stored[name], value, rtol=1e-3, atol=1e-5)


def test_weights_of_one_leave_the_numbers_as_they_are(scores, tmp_path, monkeypatch):
    seen = []
    step = Learner.step

    def watched(self, batch):
        seen.append(batch.ids)
        return step(self, batch)

    monkeypatch.setattr(Learner, "step", watched)
    given = (f"data.scores_file={scores}", "data.loss_weighting.by=score", "data.loss_weighting.weight_dramaticity=0")
    run(make_plan(*SMALL, *given), tmp_path / "weighted")
    train = load_tasks(make_plan(*SMALL), torch.device("cpu"))[1].task(0).train
    first = torch.cat(seen)[: len(train)]
    assert torch.equal(first, train.ids[epoch_order(0, 0, 0, len(train))])
    run(make_plan(*SMALL), tmp_path / "plain")
    one, other = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("weighted", "plain"))
    assert one == other


def test_settings_that_cannot_be(scores):
    message = r"data.scores_file=None: must name a file of scores for order=middle_out and loss_weighting.by=nothing"
    with pytest.raises(ConfigError, match=message):
        make_plan("data.order=middle_out")
    with pytest.raises(ConfigError, match=r"must name a file of scores for order=random and loss_weighting.by=score"):
        make_plan("data.loss_weighting.by=score")
    with pytest.raises(
        ConfigError, match=r"is of no use with order=random and loss_weighting.by=nothing; leave it out"
    ):
        make_plan(f"data.scores_file={scores}")
    with pytest.raises(ConfigError, match=r"data.loss_weighting.high_memo_weight=-1.0: must be 0 or more"):
        make_plan("data.loss_weighting.high_memo_weight=-1")
    with pytest.raises(ConfigError, match=r"data.order"):
        make_plan("data.order=upwards")


def test_scores_of_other_data_are_refused(tmp_path, cpu):
    labels = np.arange(12) % 3
    inputs = np.random.default_rng(0).random((12, 4), dtype=np.float32)
    np.savez(tmp_path / "data.npz", x_train=inputs, y_train=labels, x_test=inputs, y_test=labels)
    settings = {"file": str(tmp_path / "data.npz"), "order": Order.low_to_high, "validation_share": 0.0}
    settings["scores_file"] = str(tmp_path / "scores.npz")
    np.savez(tmp_path / "scores.npz", tr_mem=np.linspace(1, 0, 12), tr_labels=labels)
    order = Arrays(**settings).load(0, cpu).train.fixed_order()
    assert order.tolist() == list(range(11, -1, -1))
    np.savez(tmp_path / "scores.npz", tr_mem=np.linspace(1, 0, 12), tr_labels=(labels + 1) % 3)
    with pytest.raises(DataError, match="gives 12 of 12 samples another class"):
        Arrays(**settings).load(0, cpu)
    np.savez(tmp_path / "scores.npz", tr_idx=np.array([40]), mem=np.array([0.5]))
    with pytest.raises(DataError, match="has no score of any training sample"):
        Arrays(**settings).load(0, cpu)


@pytest.mark.parametrize("n", [11, 13])
def test_scores_by_position_must_be_as_many_as_the_rows(tmp_path, cpu, n):
    """Unless the ids of the rows are given: here those of the last 12 of n samples, or of all 11 and an unknown one."""
    labels, ids = np.arange(12) % 3, np.arange(12) + n - 12
    inputs = np.random.default_rng(0).random((12, 4), dtype=np.float32)
    np.savez(tmp_path / "data.npz", x_train=inputs, y_train=labels, x_test=inputs, y_test=labels)
    np.save(tmp_path / "scores.npy", np.linspace(1, 0, n))
    settings = {"file": str(tmp_path / "data.npz"), "order": Order.low_to_high, "validation_share": 0.0}
    settings["scores_file"] = str(tmp_path / "scores.npy")
    with pytest.raises(DataError, match=rf"holds {n} scores by position, and these data have 12 .*data.ids_file"):
        Arrays(**settings).load(0, cpu)
    np.save(tmp_path / "ids.npy", ids)
    train = Arrays(**settings, ids_file=str(tmp_path / "ids.npy")).load(0, cpu).train
    assert train.ids[train.fixed_order()].tolist() == ids[::-1].tolist()


def test_ids_not_rows_carry_the_scores(tmp_path, cpu):
    """Rows of a subset with known and unknown official ids."""
    inputs, labels = np.random.default_rng(0).random((4, 3), dtype=np.float32), np.arange(4) % 2
    np.savez(tmp_path / "data.npz", x_train=inputs, y_train=labels, x_test=inputs, y_test=labels)
    np.save(tmp_path / "ids.npy", np.array([30, -1, 10, 20]))
    np.save(tmp_path / "scores.npy", np.linspace(0, 1, 40))
    files = {"ids_file": str(tmp_path / "ids.npy"), "scores_file": str(tmp_path / "scores.npy")}
    settings = {"file": str(tmp_path / "data.npz"), "order": Order.low_to_high, "validation_share": 0.0, **files}
    train = Arrays(**settings).load(0, cpu).train
    assert train.ids[train.fixed_order()].tolist() == [10, 20, 30, -2]


def test_images_in_folders_are_ordered_by_scores_of_their_file_names(tmp_path):
    from PIL import Image

    names = [("a", "n1_4.png"), ("a", "n1_7.png"), ("b", "n2_1.png"), ("b", "n2_2.png")]
    for split in ("train", "test"):
        for folder, name in names:
            (tmp_path / split / folder).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(tmp_path / split / folder / name)
    files = np.array([b"n2_2.png", b"n1_4.png", b"other.png", b"n2_1.png"])
    np.savez(tmp_path / "index.npz", tr_filenames=files, tr_mem=np.array([0.1, 0.9, 0.5, 0.2]), tr_labels=np.arange(4))
    given = (f"data.folder={tmp_path}", "data.size=4", "data.validation_share=0", "selection=last", "data.workers=0")
    scored = ("data.order=low_to_high", f"data.scores_file={tmp_path / 'index.npz'}")
    plan = make_plan("data=image_folder", "task_shift_mode=none", *given, *scored)
    train = load_tasks(plan, torch.device("cpu"))[1].task(0).train
    assert [names[i][1] for i in train.ids[train.fixed_order()]] == ["n2_2.png", "n2_1.png", "n1_4.png", "n1_7.png"]


def test_real_scores_order_the_images_that_are_known(real_data, tmp_path):
    (tmp_path / "cifar-100-python").symlink_to(real_data / "cifar-100-python-mini")
    positions = real_data / "cifar-100-python-mini" / "orig_train_index.npy"
    path = real_data / "memorization" / "cifar100_mem_kozal.npy"
    files = (f"data.folder={tmp_path}", f"data.ids_file={positions}", f"data.scores_file={path}")
    plan = make_plan("data=cifar100", "net=resnet18", "data.order=high_to_low", *files)
    data, _ = load_tasks(plan, torch.device("cpu"))
    ids = data.train.ids[data.train.fixed_order()].numpy()
    known = read_memorization(path).join(ids).scores
    count = int((ids >= 0).sum())
    assert data.description["scores_known"] == 2_500
    assert 2_000 < count < 2_500  # the others are for validation
    assert (np.diff(known[:count]) <= 0).all()
    assert (ids[count:] < 0).all()
