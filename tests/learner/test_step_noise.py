"""Noise of a step: a function of seed, purpose and step, of each run as alone."""

import pytest
import torch

from plastiscope.learner.step_noise import BLOCK, StepNoise

SHAPES = [(4, 3), (4,), ()]


def parameters(*lead: int, shapes: list[tuple[int, ...]] = SHAPES) -> list[torch.Tensor]:
    return [torch.zeros((*lead, *shape), dtype=torch.float64) for shape in shapes]


def test_a_step_has_its_numbers_in_whatever_order_steps_are_asked():
    forward, back = StepNoise(parameters(), 3, "a"), StepNoise(parameters(), 3, "a")
    steps = [0, 1, 255, 256, 600]
    found = {step: [one.clone() for one in forward.at(step)] for step in steps}
    for step in reversed(steps):
        for one, other, shape in zip(found[step], back.at(step), SHAPES, strict=True):
            assert torch.equal(one, other) and one.shape == shape
    assert len({one[0].sum().item() for one in found.values()}) == len(steps)


@pytest.mark.parametrize("other", [(4, "a"), (3, "b")])
def test_seeds_and_purposes_are_unrelated(other):
    one = StepNoise(parameters(shapes=[(20_000,)]), 3, "a").at(0)[0]
    two = StepNoise(parameters(shapes=[(20_000,)]), *other).at(0)[0]
    assert abs((one * two).mean()) < 5 / 20_000**0.5


def test_numbers_are_standard_normal_and_differ_from_step_to_step():
    noise = StepNoise(parameters(shapes=[(BLOCK + 1,)]), 0, "a")
    assert noise.steps == 1
    first, second = noise.at(0)[0].clone(), noise.at(1)[0]
    n = len(first)
    for one in (first, second):
        assert abs(one.mean()) < 5 / n**0.5 and abs(one.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((first * second).mean()) < 5 / n**0.5


def test_runs_that_advance_together_have_the_numbers_of_each_alone():
    together = StepNoise(parameters(3), [5, 7, 6], "a", lead=1)
    for r, seed in enumerate([5, 7, 6]):
        alone = StepNoise(parameters(), seed, "a")
        for step in (0, 1, 300):
            for one, other in zip(together.at(step), alone.at(step), strict=True):
                assert torch.equal(one[r], other)


def test_blocks_of_a_run_never_have_the_same_seed():
    """Of a seed torch's CPU generator takes the lower 32 bits; those of 3 million hashes would repeat."""
    noise, seeds = StepNoise(parameters(shapes=[(BLOCK,)]), 0, "a"), []
    manual_seed = noise._generator.manual_seed
    noise._generator = type("Noted", (), {"manual_seed": lambda _, seed: seeds.append(seed) or manual_seed(seed)})()
    for step in (0, 1, 2, 1_500_000, 3_000_000):
        noise.at(step)
    low = [seed % 2**32 for seed in seeds]
    assert [(seed - low[0]) % 2**32 for seed in low] == [0, 1, 2, 1_500_000, 3_000_000]
