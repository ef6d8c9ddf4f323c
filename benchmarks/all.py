"""Every benchmark, one after the other: python -m benchmarks.all, or make bench."""

from benchmarks import (
    aggregation,
    allocator,
    augmentation,
    channels_last,
    checkpoint,
    collect,
    csl_online,
    dormant,
    hessian,
    input_curvature,
    launcher,
    learner,
    net,
    plane,
    replica_runs,
    replicas,
    sample_gradient,
    startup,
    step,
)


def main() -> None:
    of_runs = (startup, step, channels_last, augmentation, checkpoint, allocator, collect, launcher)
    of_samples = (csl_online, sample_gradient, input_curvature, dormant, aggregation)
    of_landscapes, of_learners = (hessian, plane), (learner, replicas, replica_runs, net)
    for program in (*of_runs, *of_samples, *of_landscapes, *of_learners):
        program.main()
        print(flush=True)


if __name__ == "__main__":
    main()
