"""What must be equal in equal runs: every file, but for what tells of times, places and starts."""

from pathlib import Path

NOT_EQUAL = {"run.json", "status.json", "summary.json", "timings.jsonl", "config.yaml", ".lock"}


def contents(folder: Path) -> dict[str, bytes]:
    """The files to compare by name; without checkpoints, in which two slots alternate, and the marks of the gates."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in NOT_EQUAL)
    kept = (path for path in found if path.parent.name != "checkpoint" and not path.name.startswith("gate_"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def assert_equal(ours: Path, theirs: Path) -> None:
    """The same files with the same bytes."""
    one, other = contents(ours), contents(theirs)
    assert one.keys() == other.keys()
    assert [name for name in other if one[name] != other[name]] == []
