"""Bits, and a fixed network of threshold units that says the target: a regression that no small network can learn.

With task_shift_mode=bit_flipping this is the slowly changing regression (bit flipping) of Dohare et al. 2024, "Loss of
plasticity in deep continual learning": a stream in which some bits stay for many steps. With other shifts it is a
finite set of inputs of random bits.
"""

import hashlib
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from plastiscope.data.samples import ArraySource, DataSet, Samples
from plastiscope.error import require
from plastiscope.measure.keyed import keyed_bits, named_seed
from plastiscope.measure.loss import Loss

MOST_BITS = 64
"""Random bits that one number of the hash holds."""
ROWS_AT_ONCE = 16_384
"""Inputs of a pass through the target network, so that its memory does not grow with the stream."""


class ThresholdForm(Enum):
    """What S_i of a unit's threshold is, with w_i its m weights and b_i its bias, all -1 or +1."""

    counted = "counted"
    """The number of -1 among weights and bias, (m + 1 - sum_j w_ij - b_i) / 2: unit i is 1 where more than the share
    beta of its m + 1 inputs (the bias is one, always on) agree with the sign of their weight."""
    as_published = "as_published"
    """(m - sum_j w_ij + b_i) / 2, as the published code computes it; larger by b_i - 1/2."""


@dataclass(frozen=True, eq=False)
class TargetNetwork:
    """One hidden layer of linear threshold units; all weights and biases are -1 or +1.

    Unit i is 1 where sum_j w_ij x_j + b_i > tau_i = beta (m + 1) - S_i, else 0; the target is sum_i v_i unit_i + c.

    Attributes:
        weights: float64 [units, m].
        biases: float64 [units].
        outgoing: float64 [units].
        outgoing_bias: c.
        beta: share of inputs that must agree.
        form: what S_i is.
    """

    weights: Tensor
    biases: Tensor
    outgoing: Tensor
    outgoing_bias: float
    beta: float
    form: ThresholdForm = ThresholdForm.counted

    @classmethod
    def drawn(cls, inputs: int, units: int, beta: float, form: ThresholdForm, seed: int) -> "TargetNetwork":
        """Signs drawn from the seed, each -1 or +1 with equal probability, on the CPU."""
        rng = np.random.default_rng(named_seed(seed, "bit_flipping", "target"))
        signs = [2.0 * rng.integers(0, 2, size) - 1.0 for size in ((units, inputs), units, units, 1)]
        weights, biases, outgoing, bias = map(torch.from_numpy, signs)
        return cls(weights, biases, outgoing, bias.item(), beta, form)

    @property
    def thresholds(self) -> Tensor:
        """tau_i, float64 [units]."""
        inputs, sums = self.weights.shape[1], self.weights.sum(1)
        if self.form is ThresholdForm.counted:
            lowered = (inputs + 1 - sums - self.biases) / 2
        else:
            lowered = (inputs - sums + self.biases) / 2
        return self.beta * (inputs + 1) - lowered

    def units(self, inputs: Tensor) -> Tensor:
        """The hidden units, float64 [n, units] of zeros and ones, of inputs [n, m] on the CPU."""
        return (inputs.double() @ self.weights.T + self.biases > self.thresholds).double()

    def __call__(self, inputs: Tensor) -> Tensor:
        """Targets float32 [n] of inputs [n, m], on their device; computed on the CPU in exact sums."""
        parts = [self.units(some) @ self.outgoing + self.outgoing_bias for some in inputs.cpu().split(ROWS_AT_ONCE)]
        return torch.cat(parts).to(inputs.device, torch.float32)

    def digest(self) -> str:
        """Of all its numbers, for run.json."""
        bias = self.weights.new_tensor([self.outgoing_bias])
        numbers = torch.cat([self.weights.flatten(), self.biases, self.outgoing, bias, self.thresholds])
        return hashlib.sha256(numbers.numpy().tobytes()).hexdigest()


@dataclass(frozen=True, eq=False, kw_only=True)
class BitData(DataSet):
    """Samples of random bits and the network that gives their targets.

    Attributes:
        target: the target network.
        seed: keys the bits.
    """

    target: TargetNetwork
    seed: int


@dataclass(kw_only=True)
class BitFlipping:
    """Inputs of independent bits, 0 or 1 with equal probability, and the targets of a network of threshold units."""

    inputs: int = 20
    """m, bits of an input."""
    target_units: int = 100
    """Hidden units of the target network."""
    beta: float = 0.7
    """Share of a unit's m + 1 inputs (bias included) that must agree with it."""
    threshold_form: ThresholdForm = ThresholdForm.counted
    """counted, or as_published: the published code's threshold, off by b_i - 1/2."""
    samples: int = 10_000
    """Training samples of a finite set, for shifts that make no stream of their own."""
    test_samples: int = 1_000
    """Test samples of that set."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(1 <= self.inputs <= MOST_BITS, "inputs", self.inputs, f"must be 1 to {MOST_BITS}")
        require(self.target_units >= 1, "target_units", self.target_units, "must be 1 or more")
        require(0 <= self.beta <= 1, "beta", self.beta, "must be in [0, 1]")
        require(self.samples >= 1, "samples", self.samples, "must be 1 or more")
        require(self.test_samples >= 0, "test_samples", self.test_samples, "must be 0 or more")

    def load(self, seed: int, device: torch.device) -> DataSet:
        """The target network and the finite set, both functions of the seed."""
        target = TargetNetwork.drawn(self.inputs, self.target_units, self.beta, self.threshold_form, seed)

        def made(split: str, n: int) -> Samples:
            ids = torch.arange(n, device=device)
            inputs = random_bits(seed, f"bit_flipping/{split}", ids, self.inputs)
            return of_bits(ArraySource(inputs, ids), split, target)

        train, test = made("train", self.samples), made("test", self.test_samples)
        return BitData(
            train=train,
            validation=None,
            test=test,
            num_classes=0,
            loss=Loss.mse,
            description={
                "data": type(self).__name__,
                "train": len(train),
                "test": len(test),
                "inputs": self.inputs,
                "target_hash": target.digest(),
            },
            target=target,
            seed=seed,
        )


def random_bits(seed: int, purpose: str, ids: Tensor, bits: int) -> Tensor:
    """Independent bits float32 [n, bits] of samples `ids` int64 [n]: top bits of the hash of (seed, purpose, id)."""
    words = keyed_bits(seed, purpose, ids).unsqueeze(1)
    places = torch.arange(MOST_BITS - 1, MOST_BITS - 1 - bits, -1, device=ids.device)
    return (words >> places & 1).to(torch.float32)


def of_bits(source: ArraySource, split: str, target: TargetNetwork, targets: Tensor | None = None) -> Samples:
    """All rows of a source of bits, with their targets float32 [n], where these are not known already."""
    n, device = len(source), source.device
    labels = torch.empty((n, 0), dtype=torch.int64, device=device)
    rows = torch.arange(n, device=device)
    if targets is None:
        targets = target(source.inputs) if n else torch.empty(0, device=device)
    return Samples(source=source, split=split, rows=rows, labels=labels, clean_labels=labels, targets=targets)
