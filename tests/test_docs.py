"""The documentation is true: its examples run, its commands compose and build, its links lead somewhere.

A file that a page wants to exist is a code block with the file's name in the paragraph before it.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from plastiscope import app
from plastiscope.build import build
from plastiscope.run.status import read_status
from plastiscope.settings import RESUMABLE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY = ("use_wandb=false", "device=cpu", "threads=1", "num_tasks=1", "epochs=1")
IN_FULL = 7
"""Commands of extending.md that are run, all but a download: one for each kind of component, two for arrays."""

BLOCK = re.compile(r"^(?:`([^`\n]+\.\w+)`:?\n\n)?```(\w*)[^\n]*\n(.*?)^```", re.S | re.M)
COMMAND = re.compile(r"^(?:\$ )?(?:\w+=\S+ )*(?:\S*/)?(plastiscope(?:-resume|-status)?)(?: (.*))?$")
INLINE = re.compile(r"`(plastiscope(?:-resume|-status)? [^`]+)`")
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


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """The console command in this process."""
    monkeypatch.setattr(sys, "argv", ["plastiscope", *arguments])
    GlobalHydra.instance().clear()
    try:
        app.main()
    finally:
        GlobalHydra.instance().clear()


def test_pages_have_commands():
    assert {c.page for c in COMMANDS} >= {"overview.md", "extending.md", "data.md"}
    assert len(EXAMPLES) == IN_FULL


@pytest.mark.parametrize("command", EXAMPLES, ids=str)
def test_examples_of_extending_run(command, in_project, tmp_path, monkeypatch):
    if not Path("images.npz").exists():
        exec(compile(Path("make_images.py").read_text(), "make_images.py", "exec"), {})
    few = [] if "data=tumours" in command.arguments else ["data.samples_per_class=10", "data.test_samples_per_class=5"]
    call(monkeypatch, *command.arguments, *TINY, *few, "batch_size=20", f"hydra.run.dir={tmp_path}")
    assert read_status(tmp_path)["state"] == "done"
    assert (tmp_path / "metrics.jsonl").stat().st_size > 0


def jobs(command: Command) -> list[list[str]]:
    """Overrides of the first and the last job of a command."""
    given = get_args_parser().parse_args(list(command.arguments))
    overrides = [o for o in given.overrides if not o.startswith(("launcher=", "hydra/launcher="))]
    if not given.multirun:
        return [overrides]
    (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), max_batch_size=None)
    return [batch[0], batch[-1]]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.program == "plastiscope"], ids=str)
def test_commands_compose_and_build(command, in_project):
    for overrides in jobs(command):
        with initialize_config_module("plastiscope.configs", version_base="1.3"):
            build(compose("config", [f"hydra.searchpath=[file://{in_project}/my_configs]", *overrides]))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.program == "plastiscope-resume"], ids=str)
def test_changes_on_a_resume_are_allowed(command):
    _folder, *changes = [a for a in command.arguments if a != "--trust"]
    assert {change.split("=")[0].split(".")[0] for change in changes} <= set(RESUMABLE)


def test_reading_a_run_as_overview_says(tmp_path, monkeypatch):
    blocks = BLOCK.findall((ROOT / "docs" / "overview.md").read_text())
    (block,) = [body for _, language, body in blocks if language == "python"]
    monkeypatch.chdir(tmp_path)
    call(monkeypatch, *TINY, "num_tasks=2", "hydra.run.dir=my_run")
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
