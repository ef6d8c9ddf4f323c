"""Published values: their numbers, and the runs that they belong to."""

import numpy as np
import pytest

from plans import make_plan
from plastiscope.build import to_yaml
from plastiscope.collect.curves import Group, SeedCurve
from plastiscope.collect.published_figures import FIGURES
from plastiscope.collect.reference_marks import marks_of
from plastiscope.collect.settings import read_settings

CIFAR, PAIRS, ONLINE, REGRESSION = (
    f"experiment={study}_as_published"
    for study in ("incremental_cifar", "continual_imagenet", "permuted_mnist", "slowly_changing_regression")
)
HEAD, NOISE, CBP, RETRAINED = "/head_reset", "/shrink_and_perturb", "/continual_backprop", "/retrained"
LINEAR, LEARNER = {77.1: "published, linear network"}, {0.88: "published, linear learner"}
ZERO = {0.0: "retrained network"}
K = 1000
PUBLISHED = [
    *(
        ("best_test_accuracy", CIFAR + arm, {5: first, 50: middle, 100: last}, {}, {})
        for arm, first, middle, last in (
            ("", 89.4, 80.9, 71.1), (HEAD, 89.9, 80.9, 73.7), (NOISE, 89.3, 80.9, 74.5), (CBP, 89.0, 81.5, 76.1),
            (RETRAINED, 89.6, 81.2, 76.1),
        )
    ),
    *(
        ("relative_accuracy", CIFAR + arm, {15: peak, 100: last}, {}, ZERO)
        for arm, peak, last in (("", 2.4, -5.0), (HEAD, 2.3, -2.4), (NOISE, 2.2, -1.5), (CBP, 2.4, 0.1))
    ),
    *(
        ("next_task_dormant_units", CIFAR + arm, {20: share}, {}, {})
        for arm, share in (("", 56), (HEAD, 41), (NOISE, 7.5), (CBP, 1.5))
    ),
    ("stable_rank", CIFAR, {1: 95.6, 20: 75.3}, {}, {}),
    *(
        ("stable_rank", CIFAR + arm, {20: share}, {}, {})
        for arm, share in ((HEAD, 89.6), (NOISE, 89.4), (CBP, 92.7))
    ),
    (
        "binned_accuracy", PAIRS, {1: 89.4, 50: 84.3, 2000: 74}, {},
        {**LINEAR, 85.3: "published, highest bin of lr 0.01"},
    ),
    ("binned_accuracy", f"{PAIRS} learner.lr=0.001", {50: 83.3, 2000: 78.7}, {}, LINEAR),
    ("binned_accuracy", f"{PAIRS} learner.lr=0.0001", {2000: 78.3}, {50: 70}, LINEAR),
    ("binned_accuracy", PAIRS + CBP, {50: 84.4, 5000: 90.5}, {}, LINEAR),
    ("binned_accuracy", f"{PAIRS}/l2", {50: 85.2, 5000: 89.2}, {}, LINEAR),
    ("binned_accuracy", PAIRS + NOISE, {50: 84.3, 5000: 89.2}, {}, LINEAR),
    ("online_accuracy", ONLINE, {60 * K: 95.2, 48000 * K: 93.7}, {}, {}),
    ("online_accuracy", f"{ONLINE} learner.lr=0.001", {60 * K: 94.8, 48000 * K: 94.0}, {}, {}),
    ("online_accuracy", f"{ONLINE} learner.lr=0.01", {60 * K: 94.7, 48000 * K: 90.2}, {}, {}),
    ("online_accuracy", f"{ONLINE}/width_10000", {9000 * K: 95.8}, {}, {}),
    ("online_accuracy", f"{ONLINE}/width_1000", {9000 * K: 93.7}, {}, {}),
    ("online_accuracy", f"{ONLINE}/width_100", {60 * K: 93.3}, {9000 * K: 88}, {}),
    ("online_accuracy", f"{ONLINE}/every_1000000", {1000 * K: 99.2, 48000 * K: 98.8}, {}, {}),
    ("online_accuracy", f"{ONLINE}/every_100000", {100 * K: 95.9, 48000 * K: 92.9}, {}, {}),
    ("online_accuracy", f"{ONLINE}/every_10000", {60 * K: 88.7}, {10000 * K: 85}, {}),
    *(
        ("binned_error", f"{REGRESSION} net.activation={kind} learner.lr={lr}", {20 * K: a, 1000 * K: b}, {}, lines)
        for kind, lr, a, b, lines in (
            ("relu", 0.01, 0.62, 1.25, LEARNER), ("relu", 0.003, 0.71, 1.08, LEARNER),
            ("relu", 0.001, 0.84, 0.87, {**LEARNER, 0.72: "published, lowest bin of relu, lr 0.001"}),
            ("tanh", 0.01, 0.43, 0.89, LEARNER), ("tanh", 0.003, 0.60, 0.92, LEARNER),
            ("tanh", 0.001, 0.80, 0.84, LEARNER),
        )
    ),
]  # fmt: skip
"""Figure, command, values at their places, values that it lies below, lines; as read off the published figures."""


@pytest.fixture
def curve(tmp_path):
    """A curve of the run of a command, as far as the published ones."""

    def made(command: str) -> SeedCurve:
        folder = tmp_path / command.replace("/", "_")
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(to_yaml(make_plan(*command.split()).config))
        return SeedCurve(Group("", read_settings(folder), {}), np.array([48e6]), np.zeros((1, 1)))

    return made


def drawn(name, curves, **more):
    return marks_of(curves, FIGURES[name].values, FIGURES[name].depends_on, **more)


@pytest.mark.parametrize(("name", "command", "points", "bounds", "lines"), PUBLISHED, ids=lambda part: str(part)[:60])
def test_every_published_value_stands_on_its_own_protocol(curve, name, command, points, bounds, lines):
    marks, notes = drawn(name, [curve(command)])
    placed = [mark for mark in marks if mark.x is not None]
    assert {mark.x: mark.y for mark in placed if not mark.is_bound} == points
    assert {mark.x: mark.y for mark in placed if mark.is_bound} == bounds
    assert {mark.y: mark.label for mark in marks if mark.x is None} == lines
    assert notes == [] and not any(mark.is_other for mark in marks) and {mark.of for mark in placed} <= {0}


def test_no_published_value_is_left_over():
    """Each one is in the table above: places, bounds and lines of curves, and the three lines of whole pictures."""
    ours = sum(
        len(arm.points) + len(arm.bounds) + len(arm.lines) for figure in FIGURES.values() for arm in figure.values
    )
    theirs = [len(points) + len(bounds) for _, _, points, bounds, _ in PUBLISHED]
    assert ours == sum(theirs) + len({(name, y) for name, *_, lines in PUBLISHED for y in lines})


OTHERS = [
    ("best_test_accuracy", f"{CIFAR} net.width=2", "net.width=2, published 64"),
    ("best_test_accuracy", f"{CIFAR} epochs=2", "epochs=2, published 200"),
    ("best_test_accuracy", f"{CIFAR} data.samples_per_class=20", "data.samples_per_class=20, published null"),
    ("best_test_accuracy", f"{CIFAR} net=mlp learner.lr=5", "net=mlp, published resnet18; learner.lr=5, published 0.1"),
    ("best_test_accuracy", f"{CIFAR} batch_size=9", "batch_size=9, published 90"),
    ("best_test_accuracy", f"{CIFAR} eval_every=10", "eval_every=10, published 1"),
    ("best_test_accuracy", f"{CIFAR} selection=last", "selection=last, published val_best"),
    ("best_test_accuracy", "experiment=incremental_cifar", "data.augment_test=false, published true"),
    ("best_test_accuracy", f"{CIFAR}{CBP} learner.replacement_rate=1e-4", "replacement_rate=0.0001, published 1e-05"),
    ("stable_rank", f"{CIFAR} task_shift_mode.initial_classes=50", "initial_classes=50, published null"),
    ("next_task_dormant_units", f"{CIFAR} representation.theta=0.1", "representation.theta=0.1, published 0.01"),
    ("binned_accuracy", f"{PAIRS}/l2 learner.lr=0.01", "learner.lr=0.01, published 0.03"),
    ("binned_accuracy", f"{PAIRS}{NOISE} learner.noise_std=1", "learner.noise_std=1, published 1e-05"),
    ("binned_accuracy", f"{PAIRS} learner.lr=0.02", "learner.lr=0.02, published 0.01"),
    ("binned_accuracy", "experiment=continual_imagenet", "task_shift_mode.pairs=fresh, published tiled"),
    ("online_accuracy", f"{ONLINE} net.widths=[50]", "net.widths=[50], published [2000, 2000, 2000]"),
    ("online_accuracy", f"{ONLINE} learner.optimizer=adam", "learner.optimizer=adam, published sgd"),
    ("online_accuracy", f"{ONLINE} online.bin_size=10", "online.bin_size=10, published 60000"),
    ("online_accuracy", f"{ONLINE}/every_10000 batch_size=8", "batch_size=8, published 1"),
    ("binned_error", f"{REGRESSION} data.threshold_form=counted", "threshold_form=counted, published as_published"),
    ("binned_error", f"{REGRESSION} task_shift_mode.flip=one", "task_shift_mode.flip=one, published all"),
    ("binned_error", f"{REGRESSION} learner.lr=0.1", "learner.lr=0.1, published 0.01"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "command", "words"), OTHERS, ids=lambda part: str(part)[:60])
def test_runs_of_another_protocol_get_no_star_unless_asked(curve, name, command, words):
    found = curve(command)
    marks, (note,) = drawn(name, [found])
    assert [mark for mark in marks if mark.of is not None] == [] and words in note and "reference=all" in note
    marks, notes = drawn(name, [found], reference="all")
    hollow = [mark for mark in marks if mark.of == 0]
    assert hollow and all(mark.is_other for mark in hollow) and notes == []
    assert drawn(name, [found], reference="none") == ([], [])


def test_without_the_published_target_the_linear_learner_is_no_line(curve):
    found = curve(f"{REGRESSION} data.threshold_form=counted")
    assert drawn("binned_error", [found])[0] == []
    lines = [mark for mark in drawn("binned_error", [found], reference="all")[0] if mark.of is None]
    assert [(line.y, line.is_other) for line in lines] == [(0.88, True)]


SAME = [
    ("best_test_accuracy", f"{CIFAR} selection=val_best", 89.4),
    ("best_test_accuracy", f"{CIFAR} task_shift_mode.initial_classes=5 num_tasks=3 seed=4 precision=tf32", 89.4),
    ("online_accuracy", "experiment=permuted_mnist", 95.2),
    ("binned_error", f"{REGRESSION} learner.autograd=false replicas=30", 0.62),
]


@pytest.mark.parametrize(("name", "command", "first"), SAME, ids=lambda part: str(part)[:60])
def test_what_changes_no_figure_keeps_the_star(curve, name, command, first):
    marks, notes = drawn(name, [curve(command)])
    assert min((mark for mark in marks if mark.x), key=lambda mark: mark.x).y == first and notes == []


@pytest.mark.parametrize("command", [f"{CIFAR} learner=redo", f"{CIFAR} data=digits", f"{ONLINE}/l2"])
def test_other_learners_and_data_have_no_published_values(curve, command):
    name = "online_accuracy" if command.startswith(ONLINE) else "best_test_accuracy"
    assert drawn(name, [curve(command)], reference="all") == ([], [])


def test_values_beyond_the_runs_are_left_out(curve):
    found = curve(PAIRS)
    short = SeedCurve(found.group, np.array([50.0, 1960.0]), np.zeros((1, 2)))  # 2000 is 1.02 times as far
    assert {mark.x for mark in drawn("binned_accuracy", [short])[0]} == {None, 1, 50}
    assert 2000 in {
        m.x for m in drawn("binned_accuracy", [SeedCurve(found.group, np.array([1961.0]), short.values)])[0]
    }


def test_the_note_names_a_few_settings(curve):
    command = f"{CIFAR} epochs=2 batch_size=9 net.width=2 learner.lr=5 learner.momentum=0"
    _, (note,) = drawn("best_test_accuracy", [curve(command)])
    assert (
        note.startswith("these runs: no published values") and note.count(", published") == 4 and "; and 1 more" in note
    )
