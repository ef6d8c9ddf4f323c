"""Every benchmark, one after the other: python -m benchmarks.all, or make bench."""

from benchmarks import allocator, augmentation, channels_last, checkpoint, startup, step


def main() -> None:
    for program in (startup, step, channels_last, augmentation, checkpoint, allocator):
        program.main()
        print(flush=True)


if __name__ == "__main__":
    main()
