"""Runs with replicas and without autograd, through the trainer: gain over the bare loop of one run with autograd.

python -m benchmarks.replica_runs [case ...]

As benchmarks.learner, which see: whole epochs of an experiment as the command line runs it, beside the bare PyTorch
loop on the same samples. Given is how many run-steps are made in the time of one bare step, all included that the
trainer does: gathering samples, losses and hits of each presentation, events.
"""

import sys
from dataclasses import replace

from benchmarks.learner import ADAPTABLE, PROBLEMS, Case, measure
from benchmarks.timing import machine, ratios, spread

BY_HAND = "learner.autograd=false"
CBP = [*ADAPTABLE, "learner.replacement_rate=1e-3"]
ROUNDS = 20
CASES = {
    f"{problem}_{name}_{replicas}": (Case(name, problem, wanted, [*overrides, f"replicas={replicas}"]), replicas)
    for problem, name, replicas, wanted, overrides in (
        ("regression", "backprop_by_hand", 1, 3.0, [BY_HAND]),
        ("mnist100", "backprop_by_hand", 1, 2.0, [BY_HAND]),
        ("mnist2000", "backprop_by_hand", 1, 1.5, [BY_HAND]),
        ("regression", "backprop", 100, 60.0, []),
        ("regression", "backprop_by_hand", 100, 150.0, [BY_HAND]),
        ("regression", "cbp", 100, 40.0, CBP),
        ("regression", "cbp_by_hand", 100, 80.0, [*CBP, BY_HAND]),
        ("mnist100", "backprop", 30, 2.0, []),
        ("mnist100", "backprop_by_hand", 30, 6.0, [BY_HAND]),
    )
}


def main() -> None:
    """Time the cases that are named, or all."""
    print(f"Run-steps in the time of one step of the bare loop, one thread, CPU time\n{machine()}")
    print(f"{'':60}{'wanted':>8}  gain")
    for key in sys.argv[1:] or CASES:
        case, replicas = CASES[key]
        PROBLEMS[case.problem] = replace(PROBLEMS[case.problem], rounds=ROUNDS)
        times = measure(replace(case, overrides=[*case.overrides, "analysis=[]"]))
        gains = [replicas * ratio for ratio in ratios(times["bare"], times["trainer"])]
        name = f"{case.name}, {PROBLEMS[case.problem].name}, {replicas} runs"
        print(f"{name:60}{case.wanted:8.1f}  {spread(gains, 1)}", flush=True)


if __name__ == "__main__":
    main()
