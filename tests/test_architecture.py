"""Imports go only downwards, and heavy or optional packages are imported only where the design says."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "plastiscope"

LAYERS = [
    {"app", "samples", "launch", "sweep"},
    {"table", "collect"},
    {"experiment", "make", "analyze", "build", "load", "identity", "settings", "source", "replicas", "desk", "__init__"}
    | {"branch", "rehearsal", "trial"},
    {"trainer", "trained_run", "listening", "presentation", "walk", "replay", "loop", "follow", "analysis"},
    {"learner"},
    {"task_shift_mode", "data", "net", "event", "formats", "landscape"},
    {"measure", "run", "figure", "selection"},
    {"error", "advice", "allocator"},
]
"""A room may import from its own row and from the rows below."""

ONLY_IN = {
    "hydra": {"app.py", "build.py", "launch.py", "sweep.py"},
    "omegaconf": {"app.py", "build.py", "launch.py", "sweep.py"},
    "wandb": {"run/wandb_sink.py"},
    "torchvision": {"data/vision.py"},
}
AT_USE = {"wandb", "pandas", "pyarrow", "sklearn", "matplotlib", "pyhessian", "torchvision", "tqdm"}

FILES = sorted(PACKAGE.rglob("*.py"))


def level(room: str) -> int:
    (found,) = (i for i, rooms in enumerate(LAYERS) if room in rooms)
    return found


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += names if node.module == "plastiscope" else [node.module or ""]
    return found


def names_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=names_of)
def test_imports_go_downwards(path):
    tree = ast.parse(path.read_text())
    own = level(room_of(path))
    for name in imports(tree):
        if name.startswith("plastiscope."):
            assert level(name.split(".")[1]) >= own, f"{names_of(path)} imports {name} from above"


@pytest.mark.parametrize("path", FILES, ids=names_of)
def test_packages_are_imported_where_they_belong(path):
    tree = ast.parse(path.read_text())
    for name in imports(tree):
        root = name.split(".")[0]
        assert names_of(path) in ONLY_IN.get(root, {names_of(path)}), f"{names_of(path)} imports {root}"
    top = {
        name.split(".")[0]
        for node in tree.body
        for name in imports(node)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not top & AT_USE, f"{names_of(path)} imports {top & AT_USE} at import time"


def test_the_rooms_are_all_known():
    assert {room_of(path) for path in FILES} <= set().union(*LAYERS)
