"""Collecting many runs: CPU seconds for 1,000 run folders of 500 rows, against reading their logs line by line.

python -m benchmarks.collect

The folders are written here: a config of 150 settings, run.json, status.json, a log of 500 rows with 20 numbers and one
of clock values with 3, spread over 10 sweeps that differ in learner and step size. The bare cost is `json.loads` of
every line of both logs, nothing kept. Both are measured in this process, in turns, after one round whose files the
system has not seen yet (they were just written, so they are in its cache).
"""

import json
import tempfile
import time
from pathlib import Path

from benchmarks.timing import in_turns, machine, ratios, seconds, spread
from plastiscope.build import compose_plan, to_yaml
from plastiscope.collect.settings import _parsed_block
from plastiscope.collect.table import collect, write

RUNS, ROWS, NUMBERS = 1_000, 500, 20
SEEDS = 100
WANTED = 20.0
ROUNDS = 5


def make_runs(folder: Path, runs: int, rows: int) -> None:
    config = to_yaml(compose_plan("use_wandb=false", "device=cpu").config)
    for i in range(runs):
        place = folder / f"arm_{i // SEEDS}" / "mlp" / "sweep" / f"{i:012d}"
        (place / "snapshots").mkdir(parents=True)
        seed, lr = i % SEEDS, 0.001 * (1 + i // SEEDS)
        (place / "config.yaml").write_text(config.replace("seed: 0", f"seed: {seed}").replace("lr: 0.05", f"lr: {lr}"))
        overrides = [f"seed={seed}", f"learner.lr={lr}"]
        (place / "run.json").write_text(json.dumps({"seed": seed, "overrides": overrides, "versions": {"a": "1"}}))
        (place / "status.json").write_text(json.dumps({"state": "done", "task_idx": 4, "epoch": 99}))
        where = [{"kind": "epoch", "global_epoch": e, "task_idx": e // 100, "epoch": e % 100} for e in range(rows)]
        number = {
            f"representation/current/linear_{j}/effective_rank": 0.1234567890123 * (i + j) for j in range(NUMBERS)
        }
        clock = {f"timing_{j}": 0.123456789 + j for j in range(3)}
        (place / "metrics.jsonl").write_text("".join(json.dumps(row | number) + "\n" for row in where))
        (place / "timings.jsonl").write_text("".join(json.dumps(row | clock) + "\n" for row in where))


def read_lines(folder: Path) -> None:
    for path in folder.rglob("*.jsonl"):
        for line in path.read_bytes().splitlines():
            json.loads(line)


def collect_all(folder: Path, csv: bool) -> None:
    _parsed_block.cache_clear()  # as in a fresh process
    write(collect([folder]), folder / "tables", csv)


def main() -> None:
    print(f"Collecting {RUNS:,} runs of {ROWS} rows, {NUMBERS} numbers and 3 clock values\n{machine()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_runs(folder, RUNS, ROWS)
        print(f"first time, wall clock: {seconds(lambda: collect_all(folder, False)):.1f} s")
        sides = (lambda: read_lines(folder), lambda: collect_all(folder, False), lambda: collect_all(folder, True))
        bare, table, with_csv = in_turns(sides, ROUNDS, warm_up=0, clock=time.process_time)
    print(f"json.loads of every line: {spread(bare, 2)} s CPU")
    print(f"numbers.parquet, runs.csv: {spread(table, 2)} s CPU   (wanted: {WANTED:.0f} or less)")
    print(f"with numbers.csv:          {spread(with_csv, 2)} s CPU")
    print(f"over reading the lines:    {spread(ratios(table, bare), 2)}")


if __name__ == "__main__":
    main()
