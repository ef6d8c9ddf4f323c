"""What a run knows of the code that it was started with, and says when it goes on with other code."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from plans import make_plan
from plastiscope.error import RunError
from plastiscope.experiment import run
from plastiscope.run import code
from plastiscope.run.code import code_in_use, freeze
from plastiscope.run.start import kept_code, last_start, other_code
from plastiscope.run.storage import read_json, write_json
from plastiscope.settings import OtherCode

TINY = ("num_tasks=1", "epochs=1", "threads=1", "selection=last", "analysis=[]", "data.samples_per_class=2")


@pytest.fixture
def begun(tmp_path):
    """A run of one task; more can be asked for."""
    run(make_plan(*TINY), tmp_path / "run")
    return tmp_path / "run"


def change(folder: Path, **facts: object) -> None:
    """Let the last start in run.json have been another one."""
    about = read_json(folder / "run.json")
    about["starts"][-1] |= facts
    write_json(folder / "run.json", about)


def starts(folder: Path) -> list[dict]:
    return read_json(folder / "run.json")["starts"]


def test_each_start_is_kept_and_the_same_code_is_not_worth_a_word(begun, capsys):
    capsys.readouterr()
    run(make_plan(*TINY, "num_tasks=2"), begun)
    first, second = starts(begun)
    assert first["time"] < second["time"]
    assert {key: first[key] for key in ("code", "versions", "hardware")} == {
        key: second[key] for key in ("code", "versions", "hardware")
    }
    assert capsys.readouterr().err == ""
    run(make_plan(*TINY, "num_tasks=2"), begun)  # done: no start
    assert len(starts(begun)) == 2


def test_other_code_is_told_and_refused_where_that_is_wanted(begun, capsys):
    known = starts(begun)[0]
    versions = {**known["versions"], "torch": "1.0", "wandb": "0.1"}
    change(begun, versions=versions, code={**known["code"], "sha256": "ab" * 32, "revision": "12345678" * 5})
    with pytest.raises(RunError, match=r"plastiscope \(revision 12345678.*torch \(1.0, now .*resume_other_code=warn"):
        run(make_plan(*TINY, "num_tasks=2", "resume_other_code=refuse"), begun)
    assert len(starts(begun)) == 1
    assert len((begun / "metrics.jsonl").read_text().splitlines()) == 2
    capsys.readouterr()
    run(make_plan(*TINY, "num_tasks=2"), begun)
    said = capsys.readouterr().err
    assert "torch (1.0, now " in said
    assert "wandb" not in said
    assert "resume_other_code=refuse" in said
    assert len(said.splitlines()) == 2
    assert [start["versions"]["torch"] for start in starts(begun)] == ["1.0", known["versions"]["torch"]]


def test_other_hardware_is_told_never_refused(begun, capsys):
    change(begun, hardware="cpu ABACUS")
    run(make_plan(*TINY, "num_tasks=2", "resume_other_code=refuse"), begun)
    assert "hardware (cpu ABACUS, now cpu " in capsys.readouterr().err
    assert len(starts(begun)) == 2


def test_runs_that_advance_together_keep_their_starts(tmp_path, capsys):
    plan = make_plan(*TINY, "replicas=2", "device=cpu")
    for num_tasks in (1, 2):
        settings = replace(plan.settings, num_tasks=num_tasks)
        run(replace(plan, settings=settings, config={**plan.config, "num_tasks": num_tasks}), tmp_path / "group")
    assert [len(starts(path.parent)) for path in sorted(tmp_path.rglob("run.json"))] == [2, 2, 2]


def test_a_run_of_before_is_compared_by_its_revision():
    now = {"code": {"revision": "b" * 40, "dirty": False, "sha256": "0"}, "versions": {}, "hardware": "cpu"}
    now["versions"] = dict.fromkeys(("python", "torch", "torchvision", "numpy"), "2")
    old = last_start({"revision": "a" * 40, "versions": {"torch": "1"}})
    assert other_code(old, now) == [
        "plastiscope (revision aaaaaaaa, now revision bbbbbbbb)",
        "torch (1, now 2)",
    ]
    assert other_code(last_start({"revision": None}), now) == []


def test_the_hash_is_that_of_the_python_files():
    found = hashlib.sha256()
    for path in sorted(code.PACKAGE.rglob("*.py")):
        content = path.read_bytes()
        found.update(f"{path.relative_to(code.PACKAGE)}\n{len(content)}\n".encode() + content)
    assert code_in_use()["sha256"] == found.hexdigest()


def test_a_copy_is_imported_knows_its_revision_and_has_the_yaml_files(tmp_path):
    frozen = freeze(tmp_path)
    assert freeze(tmp_path) == frozen  # it is made once
    assert [path.name for path in tmp_path.iterdir()] == [frozen.name]
    program = (
        "import json, plastiscope.configs; from pathlib import Path; from plastiscope.run.code import code_in_use;"
        "print(json.dumps([code_in_use(), str(Path(plastiscope.configs.__file__).parent)]))"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(frozen)}, capture_output=True, text=True, check=True
    )
    copied, configs = json.loads(said.stdout)
    assert copied == {**code_in_use(), "folder": str(frozen / "plastiscope")}
    assert configs == str(frozen / "plastiscope" / "configs")
    assert (frozen / "plastiscope" / "configs" / "config.yaml").exists()


def test_what_to_import_to_go_on_with_the_former_code(tmp_path):
    folder = tmp_path / ".submitit" / "code" / "0123"
    start = {"code": {"folder": str(folder / "plastiscope")}}
    assert kept_code(start) == ""  # it has gone
    folder.mkdir(parents=True)
    assert kept_code(start) == str(folder)
    assert kept_code({"code": {"folder": str(tmp_path)}}) == ""


def test_an_enclosing_checkout_is_not_taken_for_ours(tmp_path, monkeypatch):
    """An installed package often lies below somebody's checkout."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "__init__.py").touch()
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "site")
    assert code._revision() == (None, None)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(tmp_path), "add", "."], check=True)
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-q", "-m", "one"], check=True)
    revision, edited = code._revision()
    assert len(revision) == 40 and edited is False
    (tmp_path / "site" / "__init__.py").write_text("1")
    assert code._revision() == (revision, True)


def test_the_setting_is_a_choice_of_two():
    assert {choice.value for choice in OtherCode} == {"warn", "refuse"}
