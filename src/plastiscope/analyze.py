"""plastiscope-analyze: the weights that a run has saved are looked at again, in a folder beside the run's."""

from pathlib import Path

from plastiscope.advice import selected
from plastiscope.build import Plan, build, config_hash, plain, read_config, with_analyses
from plastiscope.error import ConfigError
from plastiscope.experiment import run
from plastiscope.identity import identity_hash
from plastiscope.run.processes import is_first_process
from plastiscope.run.status import State, read_status


def analyze(folder: Path, overrides: list[str], out: Path | None = None, trust: bool = False) -> Path:
    """Walk the snapshots of the run in `folder` with other analyses; killed and started again it goes on.

    Args:
        folder: of the run; nothing is written into it.
        overrides: `analysis=[...]`, settings of these analyses, device, threads, samples.*, replay.start, ...
        out: folder to write into; by default `<folder>_analyses/<hash of what is asked>`.
        trust: let the run's config.yaml name classes of other packages.

    Returns:
        The folder written; `load_run` opens it.

    Raises:
        ConfigError: no analysis is named, a setting that would change what was trained, `out` inside the run folder.
        RunError: the run has no snapshots, or damaged ones.
    """
    nothing = ConfigError("say what to look for: plastiscope-analyze FOLDER analysis=[csl,representation]")
    if not any(override.lstrip("+~").startswith("analysis=") for override in overrides):
        raise nothing
    config = with_analyses(read_config(folder, trust), overrides)
    if not selected(plain(config)):
        raise nothing
    if config["replay"]["folder"] is None:  # else the run is itself a replay, and what it walked is walked again
        config["replay"]["folder"], config["replay"]["layout"] = str(folder.resolve()), "run"
    plan = build(config)
    out = out or folder.resolve().with_name(f"{folder.resolve().name}_analyses") / _hash(plan)
    if out.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"--out {out} lies in the run's own folder, which stays as it is; choose one beside it")
    state = read_status(folder).get("state")
    if state != State.done.value and is_first_process():
        print(f"the run in {folder} is not finished ({state}); the weights that it has saved so far are looked at")
    run(plan, out, overrides)
    return out


def _hash(plan: Plan) -> str:
    """Of all that decides the numbers, the checkpoints that are there included."""
    return config_hash({"run": identity_hash(plan), "checkpoints": plan.settings.replay.open().epochs()})[:12]
