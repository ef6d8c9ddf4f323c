"""Slowly changing regression: some bits of the input are random at each step, the others change with the task alone.

Published: the bit-flipping problem of Dohare et al. 2024, "Loss of plasticity in deep continual learning". A stream:
task k shows samples k T .. (k + 1) T - 1, each once, in their order; the id of a sample is k T + position.
"""

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plastiscope.data.bit_flipping import BitData, of_bits, random_bits
from plastiscope.data.samples import ArraySource, DataSet, Samples
from plastiscope.data.stream import AsTheyCome, StreamSource
from plastiscope.error import ConfigError, require
from plastiscope.measure.keyed import named_seed
from plastiscope.measure.loss import Loss
from plastiscope.task_shift_mode.evolution import Evolution
from plastiscope.task_shift_mode.task import Task, TaskShift

MOST_TEST_BITS = 12
"""Random bits of which all patterns are few enough to test on."""

Bits = npt.NDArray[np.int64]


class Flip(Enum):
    """What changes when a task begins."""

    one = "one"
    """One of the slow bits, drawn at random, is flipped."""
    all = "all"
    """All slow bits are drawn anew."""


@dataclass(kw_only=True)
class BitFlippingShift:
    """The first bits are slow: they are constant within a task; the others are drawn for each sample."""

    flip: Flip = Flip.one
    """one: a task flips one of the slow bits (as the publication defines it); all: it draws all of them anew (as its
    shipped configuration does)."""
    slow_bits: int = 15
    """f, bits that are constant within a task."""
    examples_per_task: int = 10_000
    """T, samples of a task, each presented once."""
    exact_test: bool = True
    """Test on all inputs that the task can show, 2^(random bits) of them, so the test loss is the task's expected
    error; false = no test (published)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.slow_bits >= 1, "slow_bits", self.slow_bits, "must be 1 or more")
        require(self.examples_per_task >= 1, "examples_per_task", self.examples_per_task, "must be 1 or more")

    def make(self, data: DataSet, seed: int) -> TaskShift:
        """The tasks of these data.

        Raises:
            ConfigError: data without a target network, more slow bits than bits, too many random bits to test on all.
        """
        if not isinstance(data, BitData):
            raise ConfigError("task_shift_mode=bit_flipping needs the bits and the target network of data=bit_flipping")
        (inputs,) = data.input_shape
        if self.slow_bits > inputs:
            raise ConfigError(
                f"task_shift_mode.slow_bits={self.slow_bits}: an input has {inputs} bits; lower it or raise data.inputs"
            )
        if self.exact_test and inputs - self.slow_bits > MOST_TEST_BITS:
            raise ConfigError(
                f"task_shift_mode.exact_test=true tests on all patterns of the {inputs - self.slow_bits} random bits, "
                f"which is for {MOST_TEST_BITS} or fewer; set it false, or raise task_shift_mode.slow_bits"
            )
        return BitFlippingTasks(data, self, seed)


class BitFlippingTasks(TaskShift):
    """Any number of stretches of the stream."""

    outputs = 1
    num_tasks_possible = None

    def __init__(self, data: BitData, config: BitFlippingShift, seed: int) -> None:
        """Tasks of `data`."""
        self.data, self.config, self.seed = data, config, seed
        self.random_bits = data.input_shape[0] - config.slow_bits
        first = self._rng(0).integers(0, 2, config.slow_bits)
        self._slow = Evolution((first, first), self._next)

    def slow_bits(self, k: int) -> Bits:
        """The constant bits of task k, int64 [f] of zeros and ones."""
        return self._slow(k)[1]

    def task(self, k: int) -> Task:
        """Task k; its number is how many slow bits are other ones than in the task before."""
        train, test = self._train(k), self._test(k)
        before, now = self._slow(k)
        return Task(
            index=k,
            train=train,
            validation=None,
            test=test,
            new_train=train,
            new_test=test,
            classes=(),
            active_outputs=self.outputs,
            loss=Loss.mse,
            numbers={"bits_flipped": float((before != now).sum())},
        )

    def _train(self, k: int) -> Samples:
        size = self.config.examples_per_task
        ids = torch.arange(k * size, (k + 1) * size, device=self.data.train.source.device)
        drawn = random_bits(self.data.seed, "bit_flipping/stream", ids, self.random_bits)
        source, targets = StreamSource(self._beside_slow(k, drawn), ids), None
        if 2**self.random_bits <= size:  # many samples are alike
            powers = 2.0 ** torch.arange(self.random_bits - 1, -1, -1, device=ids.device)
            targets = self.data.target(self._every_input(k))[(drawn @ powers).long()]
        samples = of_bits(source, "train", self.data.target, targets)
        return replace(samples, presentation=AsTheyCome())

    def _test(self, k: int) -> Samples:
        """All inputs of the task, or none; an id is k 2^r + pattern."""
        exact, source = self.config.exact_test, self.data.train.source
        inputs = self._every_input(k) if exact else torch.empty(0, *source.input_shape, device=source.device)
        ids = torch.arange(len(inputs), device=inputs.device) + k * len(inputs)
        return of_bits(ArraySource(inputs, ids), "test", self.data.target)

    def _every_input(self, k: int) -> Tensor:
        """Each pattern of the random bits, in the order of the numbers that they write, beside the slow ones."""
        patterns = torch.arange(2**self.random_bits, device=self.data.train.source.device)
        places = torch.arange(self.random_bits - 1, -1, -1, device=patterns.device)
        return self._beside_slow(k, (patterns.unsqueeze(1) >> places & 1).to(torch.float32))

    def _beside_slow(self, k: int, drawn: Tensor) -> Tensor:
        """Inputs float32 [n, m]: the slow bits of task k, then the random ones."""
        slow = torch.from_numpy(self.slow_bits(k)).to(drawn.device, torch.float32)
        return torch.cat([slow.expand(len(drawn), -1), drawn], dim=1)

    def _next(self, bits: tuple[Bits, Bits], k: int) -> tuple[Bits, Bits]:
        return bits[1], self._changed(bits[1], k)

    def _changed(self, bits: Bits, k: int) -> Bits:
        rng = self._rng(k)
        if self.config.flip is Flip.all:
            return rng.integers(0, 2, len(bits))
        flipped = bits.copy()
        flipped[rng.integers(len(bits))] ^= 1
        return flipped

    def _rng(self, k: int) -> np.random.Generator:
        return np.random.default_rng(named_seed(self.seed, "bit_flipping", k))
