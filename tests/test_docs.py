"""The documentation is true: its examples run, its commands compose and build, its links lead somewhere.

A file that a page wants to exist is a code block with the file's name in the paragraph before it.
"""

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from plastiscope import app, samples
from plastiscope.build import build, compose_plan, with_analyses
from plastiscope.load import load_run
from plastiscope.run.status import read_status
from plastiscope.settings import RESUMABLE

ROOT = Path(__file__).parents[1]
STUDIES = sorted((ROOT / "experiments").rglob("README.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *STUDIES]
TINY = ("use_wandb=false", "figures=false", "device=cpu", "threads=1", "num_tasks=1", "epochs=1")
IN_FULL = 8
"""Commands of extending.md that are run, all but a download: one for each kind of component, two for analyses, two for
arrays."""

BLOCK = re.compile(r"^(?:`([^`\n]+\.\w+)`:?\n\n)?```(\w*)[^\n]*\n(.*?)^```", re.S | re.M)
PROGRAM = r"plastiscope(?:-resume|-status|-analyze|-samples)?"
STARTED_BY = r"(?:\$ )?(?:\w+=\S+ )*(?:(?:torchrun|srun) (?:-\S+(?: \d+)? )*)?(?:\S*/)?"
COMMAND = re.compile(rf"^{STARTED_BY}({PROGRAM})(?: (.*))?$")
INLINE = re.compile(rf"`({PROGRAM} [^`]+)`")
SCRIPT = re.compile(r"(?:-m (experiments(?:\.\w+)+)|(experiments/\w+/\w+\.py))([^`|\n]*)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.M)


@dataclass(frozen=True)
class Command:
    """A command of a page: the console script and its arguments."""

    page: str
    program: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {self.program} {shlex.join(self.arguments)}"


def lines_of_commands(text: str) -> Iterator[str]:
    for _, language, body in BLOCK.findall(text):
        if language in ("", "sh", "bash", "console"):
            yield from body.replace("\\\n", " ").splitlines()
    for inline in INLINE.findall(BLOCK.sub("", text)):
        if not any(placeholder in inline for placeholder in ("...", "…", "<", "[overrides]")):
            yield inline.replace("\\|", "|")


def commands(page: Path) -> list[Command]:
    """All plastiscope commands of a page, without what a shell does to them."""
    found = []
    for line in lines_of_commands(page.read_text()):
        for part in re.split(r"&&|\||;|>", line):
            match = COMMAND.match(part.strip())
            if match is not None:
                arguments = shlex.split(match[2] or "", comments=True)
                found.append(Command(page.name, match[1], tuple(a for a in arguments if a != "&")))
    return found


COMMANDS = [command for page in PAGES if page.exists() for command in commands(page)]
QUICK_TEST = "two"
"""Run folder by which the quick test of analyses.md begins."""
EXTENDING = [c for c in COMMANDS if (c.page, c.program) == ("extending.md", "plastiscope")]
EXAMPLES = [c for c in EXTENDING if "data=cifar10" not in c.arguments]


def files_of(page: Path) -> dict[str, str]:
    """Contents by name of the files that a page wants to exist."""
    return {name: body for name, _, body in BLOCK.findall(page.read_text()) if name}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of someone who has followed docs/extending.md."""
    folder = tmp_path_factory.mktemp("my_project")
    for name, content in files_of(ROOT / "docs" / "extending.md").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be there, with its modules importable."""
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(str(project))
    return project


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str, program: str = "plastiscope") -> None:
    """The console command in this process."""
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    GlobalHydra.instance().clear()
    try:
        {"plastiscope": app.main, "plastiscope-analyze": app.analyze}[program]()
    finally:
        GlobalHydra.instance().clear()


def test_pages_have_commands():
    assert {c.page for c in COMMANDS} >= {"overview.md", "extending.md", "data.md", "analyses.md", "README.md"}
    assert {c.program for c in COMMANDS if c.page == "analyses.md"} == {
        *("plastiscope", "plastiscope-analyze", "plastiscope-samples")
    }
    assert len(EXAMPLES) == IN_FULL


@pytest.mark.parametrize("command", EXAMPLES, ids=str)
def test_examples_of_extending_run(command, in_project, tmp_path, monkeypatch):
    if not Path("images.npz").exists():
        exec(compile(Path("make_images.py").read_text(), "make_images.py", "exec"), {})
    given = [] if any(a.startswith("analysis=") for a in command.arguments) else ["analysis=[representation,continual]"]
    few = [] if "data=tumours" in command.arguments else ["data.samples_per_class=10", "data.test_samples_per_class=5"]
    call(monkeypatch, *command.arguments, *TINY, *given, *few, "batch_size=20", f"hydra.run.dir={tmp_path}")
    assert read_status(tmp_path)["state"] == "done"
    assert (tmp_path / "metrics.jsonl").stat().st_size > 0
    if any("el2n" in argument for argument in command.arguments):
        check_own_values(tmp_path)


def check_own_values(folder: Path) -> None:
    """What docs/extending.md says of reading the metric of one's own analysis."""
    values = load_run(folder, trust=True).samples("el2n").values
    assert ((values >= 0) & (values <= 2**0.5)).all()
    samples.main([str(folder), "--trust", "--no-data"])
    table = pd.read_parquet(folder / "tables" / "per_sample.parquet")
    assert table.el2n_mean.to_numpy() == pytest.approx(values.mean(0))


def jobs(command: Command) -> list[list[str]]:
    """Overrides of the first and the last job of a command."""
    given = get_args_parser().parse_args(list(command.arguments))
    overrides = [o for o in given.overrides if not o.startswith(("launcher=", "hydra/launcher="))]
    if not given.multirun and len(overrides) == len(given.overrides):  # a launcher means a sweep
        return [overrides]
    (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), max_batch_size=None)
    return [batch[0], batch[-1]]


COMPOSED = [c for c in COMMANDS if c.program == "plastiscope" and c not in EXAMPLES]


@pytest.mark.parametrize("command", COMPOSED, ids=str)
def test_commands_compose_and_build(command, in_project):
    for overrides in jobs(command):
        with initialize_config_module("plastiscope.configs", version_base="1.3"):
            build(compose("config", [f"hydra.searchpath=[file://{in_project}/my_configs]", *overrides]))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.program == "plastiscope-resume"], ids=str)
def test_changes_on_a_resume_are_allowed(command):
    _folder, *changes = [a for a in command.arguments if a != "--trust"]
    assert {change.split("=")[0].split(".")[0] for change in changes} <= set(RESUMABLE)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.program == "plastiscope-analyze"], ids=str)
def test_commands_of_analyze_compose(command):
    arguments = list(command.arguments)
    if "--out" in arguments:
        at = arguments.index("--out")
        del arguments[at : at + 2]
    _folder, *overrides = arguments
    build(with_analyses(OmegaConf.create(compose_plan().config), overrides))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.program == "plastiscope-samples"], ids=str)
def test_commands_of_samples_are_understood(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where there is no run
    with pytest.raises(SystemExit):
        samples.main(command.arguments)
    said = capsys.readouterr().err
    assert said.startswith("plastiscope-samples: ") and "usage:" not in said


def test_two_checkpoints_as_analyses_says(tmp_path, monkeypatch):
    blocks = BLOCK.findall((ROOT / "docs" / "analyses.md").read_text())
    (quick_test,) = [
        body for _, language, body in blocks if language == "sh" and f"hydra.run.dir={QUICK_TEST} " in body
    ]
    monkeypatch.chdir(tmp_path)
    for line in quick_test.splitlines():
        program, *arguments = shlex.split(line)
        if program.startswith("plastiscope"):
            call(monkeypatch, *arguments, *(["threads=1"] if "-" not in program else []), program=program)
        else:
            subprocess.run([program, *arguments], check=True)
    for _, language, body in blocks:
        if language == "python" and f'"{QUICK_TEST}_csl"' in body:
            exec(compile(body, "analyses.md", "exec"), {})


def scripts() -> dict[str, set[str]]:
    """Options that pages give, by module or path of a study's script."""
    found: dict[str, set[str]] = {}
    for page in PAGES:
        for module, path, rest in SCRIPT.findall(page.read_text().replace("\\\n", " ")):
            found.setdefault(module or path, set()).update(re.findall(r"(?<!\S)--[\w-]+", rest))
    return found


@pytest.mark.parametrize(("script", "options"), sorted(scripts().items()), ids=lambda value: str(value)[:60])
def test_scripts_of_studies_know_their_options(script, options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        if script.endswith(".py"):
            monkeypatch.syspath_prepend(str((ROOT / script).parent))
            runpy.run_path(str(ROOT / script), run_name="__main__")
        else:
            import_module(script).main()
    assert ended.value.code == 0
    assert options <= set(re.findall(r"--[\w-]+", capsys.readouterr().out))


@pytest.mark.parametrize(
    "folder", sorted(p.parent for p in (ROOT / "experiments").glob("*/README.md")), ids=lambda p: p.name
)
def test_every_study_is_listed(folder):
    assert f"]({folder.name}/README.md)" in (ROOT / "experiments" / "README.md").read_text()


def test_reading_a_run_as_overview_says(tmp_path, monkeypatch):
    blocks = BLOCK.findall((ROOT / "docs" / "overview.md").read_text())
    (block,) = [body for _, language, body in blocks if language == "python"]
    monkeypatch.chdir(tmp_path)
    call(monkeypatch, *TINY, "analysis=[representation]", "num_tasks=2", "hydra.run.dir=my_run")
    exec(compile(block, "overview.md", "exec"), {})


def anchor(heading: str) -> str:
    """The anchor of a heading, as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(BLOCK.sub("", page.read_text())):
        if re.match(r"\w+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if fragment:
            assert fragment in map(anchor, HEADING.findall(BLOCK.sub("", target.read_text()))), link
