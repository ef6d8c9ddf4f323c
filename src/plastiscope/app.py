"""The console commands, thin: config in, run out.

- `plastiscope [overrides]`: train; -m sweeps, launcher=slurm submits
- `plastiscope-resume FOLDER`: go on with a run without retyping its command
- `plastiscope-status FOLDER ...`: runs below the folders, with state, progress, last numbers
- `plastiscope-analyze FOLDER analysis=[...]`: look at the weights that a run has saved, beside its folder
- `plastiscope-collect FOLDER ...`: many runs as one table
- `plastiscope-plot FOLDER ... y=KEY`: curves over seeds, and the published figures
"""

import argparse
import contextlib
import difflib
import hashlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from plastiscope.advice import known_analyses, launchers, nearest, no_option, not_selected, selected
from plastiscope.error import ConfigError, PlastiscopeError, RunError, of_the_disk

T = TypeVar("T")

OmegaConf.register_new_resolver("short_hash", lambda text: hashlib.sha256(text.encode()).hexdigest()[:12], replace=True)


@hydra.main(config_path="pkg://plastiscope.configs", config_name="config", version_base="1.3")
def job(config: DictConfig) -> None:
    """One job: a single run, or one of a sweep."""
    from plastiscope.build import build
    from plastiscope.experiment import note_failure, run

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    try:
        overrides = list(hydra_config.overrides.task)
        run(build(config, overrides), folder, overrides)
    except Exception as error:
        if hydra_config.mode == RunMode.MULTIRUN:  # the launcher goes on with the other jobs
            print(f"failed: {folder}: {error}", file=sys.stderr)
            note_failure(folder, error)
        elif isinstance(error, PlastiscopeError):
            _exit(error)
        raise
    finally:
        with contextlib.suppress(OSError):  # Hydra made the folder; if nothing was begun in it, it goes
            folder.rmdir()
            if config.get("dry_run") is True and hydra_config.mode == RunMode.RUN:
                _remove_empty_parents(folder)


def _remove_empty_parents(folder: Path) -> None:
    """Those that Hydra made with it, within the folder in which we were started."""
    for parent in folder.parents:
        if not parent.is_relative_to(Path.cwd()) or parent == Path.cwd():
            return
        parent.rmdir()


def main() -> None:
    """`plastiscope`: train, with Hydra's errors and ours in one or two sentences."""
    _exit_on_error(_run_hydra)


def resume() -> None:
    """`plastiscope-resume FOLDER [num_tasks=...] [--trust]`."""
    parser = argparse.ArgumentParser(prog="plastiscope-resume", description="Go on with a run.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("changes", nargs="*", metavar="key=value", help="num_tasks, verbose, use_wandb, wandb.*, ...")
    parser.add_argument("--trust", action="store_true", help="let config.yaml name classes of other packages")
    arguments = parser.parse_args()

    def go_on() -> None:
        from plastiscope.experiment import resume as resume_run

        resume_run(arguments.folder, arguments.changes, arguments.trust)

    _exit_on_error(go_on)


def status() -> None:
    """`plastiscope-status FOLDER ...`."""
    parser = argparse.ArgumentParser(prog="plastiscope-status", description="State of all runs below some folders.")
    parser.add_argument("folders", type=Path, nargs="*", default=[Path("outputs")])
    arguments = parser.parse_args()

    def show() -> None:
        from plastiscope.run.status import table

        print(table(arguments.folders))

    _exit_on_error(show)


def analyze() -> None:
    """`plastiscope-analyze FOLDER analysis=[...] [key=value ...] [--out FOLDER] [--trust]`."""
    parser = argparse.ArgumentParser(
        prog="plastiscope-analyze", description="Analyse the weights that a run has saved; writes beside the run."
    )
    parser.add_argument("folder", type=Path, help="of the run")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="analysis=[csl], csl.every=2, device=cpu, ..."
    )
    parser.add_argument("--out", type=Path, help="folder to write into; default <folder>_analyses/<hash>")
    parser.add_argument("--trust", action="store_true", help="let config.yaml name classes of other packages")
    arguments = parser.parse_args()

    def look() -> None:
        from plastiscope.analyze import analyze as analyze_run

        analyze_run(arguments.folder, arguments.overrides, arguments.out, arguments.trust)

    _exit_on_error(lambda: _with_advice(look, arguments.overrides))


def collect() -> None:
    """`plastiscope-collect FOLDER ...`."""
    from plastiscope.collect.command import collect_command

    _exit_on_error(collect_command)


def plot() -> None:
    """`plastiscope-plot FOLDER ... y=KEY`."""
    from plastiscope.collect.command import plot_command

    _exit_on_error(lambda: plot_command(sys.argv[1:]))


def _run_hydra() -> None:
    from plastiscope.sweep import spelled_out

    words = sys.argv[1:]
    try:
        sys.argv[1:] = spelled_out(words, _with_advice)
        _with_advice(job, words)
    except Exception as error:
        from plastiscope.launch import mishap

        if isinstance(error, PlastiscopeError) or os.environ.get("HYDRA_FULL_ERROR") or not (told := mishap(error)):
            raise
        raise RunError(told) from None


def _with_advice(command: Callable[[], T], overrides: list[str]) -> T:
    """Call what composes a config out of `overrides`, with our advice in place of Hydra's."""
    asked = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on instead of printing its own advice
    try:
        return command()
    except (HydraException, OmegaConfBaseException) as error:
        if asked:
            raise
        raise ConfigError(_advice(str(error), overrides)) from None
    except ValueError as error:
        if asked or not str(error).startswith("Config group override"):
            raise
        raise ConfigError(f"{error}; give an option, or a list such as analysis=[]") from None
    finally:
        os.environ.pop("HYDRA_FULL_ERROR") if asked is None else os.environ.update(HYDRA_FULL_ERROR=asked)


def _exit_on_error(command: Callable[[], None]) -> None:
    try:
        command()
    except PlastiscopeError as error:
        _exit(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # whoever read our output has gone, as in `plastiscope --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        told = of_the_disk(error)
        if told is None or os.environ.get("HYDRA_FULL_ERROR"):
            raise
        _exit(told)


def _exit(error: PlastiscopeError) -> NoReturn:
    print(f"plastiscope: {error}", file=sys.stderr)
    raise SystemExit(2) from None


def _advice(text: str, arguments: list[str]) -> str:
    """What to say instead of Hydra's message, which advises `+key=value` for every unknown key."""
    found = re.search(r"Could not (?:override|append to config) '([^']+)'|Key '([^']+)' is not in struct", text)
    if "hydra/launcher/submitit" in text:
        return "this launcher needs submitit: pip install 'plastiscope[slurm]'"
    if missing := re.search(r"Could not load 'analysis/([^']+)'", text):
        return f"analysis=[{missing.group(1)}]: there is no such analysis{nearest(missing.group(1), known_analyses())}"
    if missing := re.search(
        r"Could not find '(\w+)/(\S+)'\s+Available options in '\1':\s+([^:]+?)\s*(?:Config|$)", text
    ):
        return no_option(missing.group(1), missing.group(2), missing.group(3).split())
    if "Ambiguous value" in text and (wrong := _no_launcher(arguments)):
        return wrong
    if found is None or "Could not override" not in text:
        return re.sub(r"\s*\n\s*", "\n  ", text.split("Config search path:")[0].strip())
    key = found.group(1) or found.group(2)
    keys, chosen = _keys(arguments, key)
    root = key.split(".")[0].split("@")[0]
    meant = difflib.get_close_matches(root, known_analyses(), n=1, cutoff=0.8)
    if meant and meant[0] not in chosen:
        return not_selected(meant[0], chosen)
    parent = key.rpartition(".")[0]
    siblings = [k for k in keys if k.rpartition(".")[0] == parent] or [k for k in keys if "." not in k]
    return f"{key}: there is no such setting{nearest(key, keys, siblings)}"


def _no_launcher(arguments: list[str]) -> str:
    """What to say where a sweep was not taken for one because its launcher is not there; else ""."""
    named = [argument.removeprefix("launcher=") for argument in arguments if argument.startswith("launcher=")]
    ours = launchers()
    if not named or named[-1] in ours:
        return ""
    return f"{no_option('launcher', named[-1], ours)}; a site file of your own is found with --config-dir FOLDER"


def _keys(arguments: list[str], wrong: str) -> tuple[list[str], list[str]]:
    """Dotted keys of the config without the overrides that name `wrong`, and the selected analyses."""
    from hydra import compose, initialize_config_module

    overrides = [a for a in arguments if "=" in a and not a.startswith(("-", "hydra", wrong))]
    with initialize_config_module("plastiscope.configs", version_base="1.3"):
        try:
            config = compose("config", overrides)
        except (HydraException, OmegaConfBaseException):
            config = compose("config")
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return _dotted(plain, ""), selected(plain)  # type: ignore[arg-type]


def _dotted(node: dict[Any, Any], prefix: str) -> list[str]:
    keys = []
    for key, value in node.items():
        keys += _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return [key for key in keys if "_target_" not in key]


if __name__ == "__main__":
    main()
