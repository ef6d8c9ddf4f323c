"""Which code of plastiscope is imported: revision, hash of its files; and copies of it for jobs that wait."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plastiscope.run.storage import read_json, write_json

PACKAGE = Path(__file__).parents[1]
"""The folder from which plastiscope is imported."""
ABOUT = "frozen.json"
"""Beside the package in a copy: the revision that it is a copy of."""


@cache
def code_in_use() -> dict[str, Any]:
    """The code that this process imports.

    Returns:
        revision: of git, None where the package is not under git; dirty: whether something in the checkout was
        edited since; sha256: of the package's Python files, with their names; folder: where it is imported from.
    """
    revision, dirty = _revision()
    digest = _hash(PACKAGE, [path for path in _copied(PACKAGE) if path.relative_to(PACKAGE).parts[0] != "configs"])
    return {"revision": revision, "dirty": dirty, "sha256": digest, "folder": str(PACKAGE)}


def freeze(store: Path) -> Path:
    """Copy the package and its YAML files into a folder of `store`, named by their hash, if it is not there.

    Returns:
        What to put into PYTHONPATH, so that the copy is imported.

    Raises:
        OSError: it cannot be written.
    """
    configs = find_spec("plastiscope.configs")
    assert configs is not None and configs.submodule_search_locations
    sources = {"plastiscope": PACKAGE, "plastiscope/configs": Path(configs.submodule_search_locations[0])}
    digests = [_hash(folder, _copied(folder)) for folder in sources.values()]
    frozen = store / hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
    if frozen.exists():
        return frozen
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store) as unfinished:
        for place, folder in sources.items():
            for path in _copied(folder):
                copy = Path(unfinished, "code", place, path.relative_to(folder))
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy)
        write_json(Path(unfinished, "code", ABOUT), code_in_use())
        try:
            os.rename(Path(unfinished, "code"), frozen)
        except OSError:
            if not frozen.exists():  # else somebody else has just made it
                raise
    return frozen


def _copied(folder: Path) -> list[Path]:
    return sorted([*folder.rglob("*.py"), *folder.rglob("*.yaml")])


def _hash(folder: Path, paths: list[Path]) -> str:
    found = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        found.update(f"{path.relative_to(folder)}\n{len(content)}\n".encode() + content)
    return found.hexdigest()


def _revision() -> tuple[str | None, bool | None]:
    """Revision, and whether the checkout was edited since; of a copy, those that it was made of."""
    frozen = read_json(PACKAGE.parent / ABOUT)
    if frozen is not None:
        return frozen["revision"], frozen["dirty"]
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")  # an installed package may lie in somebody's checkout
        revision, _, edited = _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").partition("-")
    except (OSError, subprocess.SubprocessError):
        return None, None
    return revision, bool(edited)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PACKAGE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
