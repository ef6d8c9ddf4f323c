"""Import and composed config in fresh processes, beside torch alone; and the whole default run.

python -m benchmarks.startup
"""

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.timing import in_turns, machine, seconds, spread

PROCESSES = 7
TORCH = "import torch"
OURS = """
import plastiscope.app, plastiscope.build, plastiscope.experiment
from hydra import compose, initialize_config_module
with initialize_config_module("plastiscope.configs", version_base="1.3"):
    plastiscope.build.build(compose("config"))
"""


def process(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    print(f"Start, seconds in fresh processes: median [quartiles]\n{machine()}")
    sides = [partial(process, sys.executable, "-c", code) for code in ("", TORCH, OURS)]
    empty, torch_alone, ours = in_turns(sides, PROCESSES)
    print(f"python alone                     {spread(empty, 2)}")
    print(f"import torch                     {spread(torch_alone, 2)}")
    print(f"import plastiscope and compose   {spread(ours, 2)}   (wanted: 2 or less; {PROCESSES} processes each)")
    more = [a - b for a, b in zip(ours, torch_alone, strict=True)]
    print(f"more than torch alone, by pairs  {spread(more, 2)}")
    command = Path(sys.executable).with_name("plastiscope")
    with tempfile.TemporaryDirectory() as folder:
        run = seconds(lambda: process(str(command), f"hydra.run.dir={folder}/run"))
    print(f"the default run, start to end    {run:.1f}   (wanted: 60 or less)")


if __name__ == "__main__":
    main()
