"""Pictures of smoothness: what is in the files is what is drawn."""

import numpy as np
import pytest

from plastiscope.figure.smoothness import draw_smoothness, read_looks, smoothness, spread

LAYERS = ("linear_1", "outputs")


def write_look(folder, task: int, phase: str, epochs: int, **arrays) -> None:
    path = folder / f"task_{task:04d}_mlp" / "smoothness"
    path.mkdir(parents=True, exist_ok=True)
    np.savez(path / f"{phase}.npz", epochs_completed=np.array(epochs), **arrays)


def all_arrays(value: float) -> dict[str, np.ndarray]:
    ranks = {f"jacobian/ranks/{layer}": np.array([4.0, 6.0]) - i for i, layer in enumerate(LAYERS)}
    steps = {"etas": np.array([1e-3, 1e-2]), "grad_predictiveness/total": value * np.array([1.0, 10.0])}
    rest = {"losses": value - np.array([0.0, 0.1, 0.3]), "effective_beta": np.array(value)}
    return ranks | steps | rest | {"jacobian/pixels": np.array(9), "ids": np.arange(3)}


@pytest.fixture
def folder(tmp_path):
    for task in range(4):
        write_look(tmp_path, task, "post_training", 3 * task + 3, **all_arrays(2.0 + task))
        write_look(tmp_path, task, "epoch_000002", 3 * task + 2, **all_arrays(1.0))
        write_look(tmp_path, task, "pre_training", 3 * task, **all_arrays(1.0 + task))
    return tmp_path


def test_looks_are_in_the_order_of_time(folder):
    looks = read_looks(folder)
    assert [(look.task, look.phase, look.epochs) for look in looks[:4]] == [
        (0, "pre_training", 0),
        (0, "epoch_000002", 2),
        (0, "post_training", 3),
        (1, "pre_training", 3),
    ]
    assert list(looks[0].ranks) == list(LAYERS) and looks[0].pixels == 9


def test_curves_hold_the_numbers_of_the_files(folder):
    figure = smoothness(read_looks(folder))
    ranks, changes, beta, losses = figure.axes
    assert [line.get_ydata().tolist() for line in ranks.get_lines()[:1]] == [[5.0, 4.0]]
    assert changes.get_lines()[0].get_ydata().tolist() == [1.0, 10.0]
    np.testing.assert_allclose(losses.get_lines()[0].get_ydata(), [-0.1, -0.3])
    by_label = {line.get_label(): line for line in beta.get_lines()}
    assert by_label["after training"].get_xdata().tolist() == [3, 6, 9, 12]
    assert by_label["after training"].get_ydata().tolist() == [2.0, 3.0, 4.0, 5.0]
    assert by_label["within tasks"].get_xdata().tolist() == [2, 5, 8, 11]


def test_of_many_looks_some_at_tasks_ends_are_shown(folder):
    shown = spread(read_looks(folder))
    assert len(shown) == 6 and (shown[0].task, shown[-1].task) == (0, 3)
    assert {look.phase for look in shown} == {"pre_training", "post_training"}


def test_what_was_not_measured_has_no_panel(tmp_path):
    ranks = {key: value for key, value in all_arrays(1.0).items() if key.startswith("jacobian")}
    write_look(tmp_path, 0, "post_training", 3, **ranks)
    assert [axes.get_ylabel() for axes in smoothness(read_looks(tmp_path)).axes] == ["partial Jacobian rank"]
    assert draw_smoothness(tmp_path) == [tmp_path / "figures" / "smoothness.png"]


def test_a_run_without_looks_has_no_picture(tmp_path):
    assert draw_smoothness(tmp_path) == []
