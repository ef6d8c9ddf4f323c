"""The notebook of the landscape suite runs as it stands, and every cell shows what it is there to show."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "experiments" / "lla_demo" / "LLA_demo.ipynb"
PICTURES = {"spectrum": 1, "planes": 8, "sam": 3, "mode": 1}
"""Pictures of each part: one plane each of two eigenvectors, random directions, trajectory and curve, flat and in 3-D;
three robust surfaces."""


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Source and outputs of the code cells, executed in an empty folder."""
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(cells, part):
    """What the cell whose source contains `part` printed."""
    (cell,) = [cell for cell in cells if part in cell.source]
    return "".join(output.get("text", "") for output in cell.outputs if output.get("name") == "stdout")


def number(text, pattern):
    return float(re.search(pattern, text).group(1))


def test_the_fine_tune_ends_in_a_minimum(cells):
    text = said(cells, "def fine_tuned")
    gradients = [float(value) for value in re.findall(r"largest entry of the gradient (\S+)", text)]
    assert len(gradients) == 2 and max(gradients) < 1e-6
    assert number(text, r"test accuracy (\S+)") > 0.85


def test_one_call_gives_numbers_and_leaves_the_network_as_it_was(cells):
    text = said(cells, "enable_mode_connectivity=True")
    assert number(text, r"(\d+) numbers; the network is as it was") > 80
    assert "no eigenvalue is surely negative" in text or "planes/hessian_signed" in text


def test_the_estimates_agree_with_the_whole_hessian(cells):
    estimated, exact = said(cells, "one standard error"), said(cells, "torch.linalg.eigvalsh")
    assert number(exact, r"error of the five eigenvalues (\S+);") < 1e-6
    assert number(exact, r"the trace is (\S+) standard errors off") < 4
    assert number(exact, r"smallest (\S+),") > 0, "a minimum has no negative eigenvalue"
    assert number(estimated, r"smallest: +(\S+)") > 0


@pytest.mark.parametrize("part", PICTURES)
def test_every_part_has_its_pictures(cells, part):
    (cell,) = [cell for cell in cells if f'match("{part}/*.png")' in cell.source]
    shown = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(shown) == PICTURES[part]


def test_the_curve_goes_below_the_straight_line(cells):
    text = said(cells, 'startswith(("plane_hessian_"')
    bezier, linear = (number(text, rf"mode_{kind}_barrier +(\S+)") for kind in ("bezier", "linear"))
    assert 0 <= bezier < linear
    assert number(text, r"plane_hessian_center_is_min +(\S+)") == 1
    assert number(text, r"sam_center_gap +(\S+)") >= 0


def test_pyhessian_agrees(cells):
    text = said(cells, "cross_check=True")
    assert number(text, r"eigenvalues (\S+)") < 1e-3
    assert number(text, r"differ by (\S+) of") < 4


def test_any_loss_and_part_of_the_weights(cells):
    text = said(cells, "def smoothed")
    found = [float(value) for value in re.findall(r"largest eigenvalue (\S+),", text)]
    assert len(found) == 3 and found[0] >= max(found[1:]), "a part of a matrix has no larger eigenvalue than the whole"


def test_the_budget_names_its_cuts(cells):
    cuts = said(cells, "max_seconds=1.0")
    assert "from" in cuts and "to" in cuts
