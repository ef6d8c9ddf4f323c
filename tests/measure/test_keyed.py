"""The keyed hash: published vectors, invariance to batches, distributions, independence of streams."""

import hashlib
import math

import pytest
import torch
from torch import Tensor

from plastiscope.measure.keyed import (
    keyed_bits,
    keyed_normal,
    keyed_sign,
    keyed_uniform,
    named_seed,
    purpose_key,
    splitmix64,
)

GOLDEN = 0x9E3779B97F4A7C15
WRAP = 2**64
DRAWS = [keyed_bits, keyed_uniform, keyed_sign, keyed_normal]
N = 200_000
IDS = torch.arange(N)


def signed(value: int) -> int:
    return (value + WRAP // 2) % WRAP - WRAP // 2


def reference_splitmix64(state: int) -> int:
    """The published C code, on Python integers."""
    z = (state + GOLDEN) % WRAP
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WRAP
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WRAP
    return z ^ (z >> 31)


def test_published_vectors() -> None:
    states = torch.tensor([signed(i * GOLDEN) for i in range(3)])
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [value % WRAP for value in splitmix64(states).tolist()] == expected


def test_equals_the_published_code_on_any_state() -> None:
    states = [signed(reference_splitmix64(i)) for i in range(500)] + [0, -1, 2**63 - 1, -(2**63)]
    expected = [signed(reference_splitmix64(state % WRAP)) for state in states]
    assert splitmix64(torch.tensor(states)).tolist() == expected


def reference_bits(seed: int, purpose: str, identity: int, k: int) -> int:
    """splitmix64(splitmix64(splitmix64(id + key)) ^ splitmix64(k)), on Python integers."""
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "little")
    own = reference_splitmix64(reference_splitmix64((identity + key) % WRAP))
    return reference_splitmix64(own ^ reference_splitmix64(k % WRAP))


GOLDEN_BITS = {
    (0, "direction", 0, 0): 0x14E65DCDDB72C2D4,
    (0, "direction", 1, 0): 0x794ADD2ED73C373F,
    (0, "direction", 0, 1): 0xA6FACBEBAA7CC89D,
    (7, "augmentation/train", 49_999, 16_003): 0xE665CAF5E80BBD60,
    (7, "augmentation/test", -5, 16_003): 0x7439143E55EFCEC9,
    (2**40, "noise", 10**12, 3): 0xD8E68DA6D0613294,
}
"""Bits of (seed, purpose, id, k), as `reference_bits` gave them when they were written down; they never change."""


@pytest.mark.parametrize(("key", "bits"), GOLDEN_BITS.items())
def test_pinned_numbers(key, bits) -> None:
    seed, purpose, identity, k = key
    assert reference_bits(*key) == bits
    ids = torch.tensor([identity])
    for counter in (k, torch.tensor([k])):
        assert [value % WRAP for value in keyed_bits(seed, purpose, ids, counter).tolist()] == [bits]
        assert keyed_uniform(seed, purpose, ids, counter).tolist() == [(bits >> 40) / 2**24]
        assert keyed_sign(seed, purpose, ids, counter).tolist() == [-1.0 if bits >> 63 else 1.0]
        radius = math.sqrt(-2.0 * math.log(((bits >> 40) + 1) / 2**24))
        expected = radius * math.cos(2.0 * math.pi * (reference_splitmix64(bits) >> 11) / 2**53)
        assert keyed_normal(seed, purpose, ids, counter).item() == pytest.approx(expected, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("size", [1, 7, 32])
def test_does_not_depend_on_batch_or_order(draw, size: int) -> None:
    ids = torch.tensor([5, 3, 10**12, 0, 77, *range(100, 160)])
    whole = draw(3, "direction", ids, 4)
    assert torch.cat([draw(3, "direction", batch, 4) for batch in ids.split(size)]).equal(whole)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    assert draw(3, "direction", ids[order], 4).equal(whole[order])


@pytest.mark.parametrize("draw", DRAWS)
def test_counters_broadcast(draw) -> None:
    ids = torch.arange(6)
    grid = draw(0, "direction", ids[:, None], torch.arange(4))
    assert grid.shape == (6, 4)
    assert all(grid[:, k].equal(draw(0, "direction", ids, k)) for k in range(4))


def products_of_signs(first: Tensor, second: Tensor) -> float:
    return (first * second).double().mean().item()


@pytest.mark.parametrize(
    "other",
    [
        keyed_sign(0, "probe", IDS),
        keyed_sign(1, "direction", IDS),
        keyed_sign(0, "direction", IDS, 1),
        keyed_sign(0, "direction", IDS + 1),
        keyed_sign(0, "direction", IDS * 0, IDS),
    ],
    ids=["purpose", "seed", "counter", "id", "id and counter exchanged"],
)
def test_streams_are_uncorrelated(other: Tensor) -> None:
    signs = keyed_sign(0, "direction", IDS)
    assert abs(products_of_signs(signs, other)) < 4 / math.sqrt(N)
    assert abs(signs.double().mean()) < 4 / math.sqrt(N)


def test_bits_are_balanced_and_do_not_repeat() -> None:
    bits = keyed_bits(0, "direction", IDS)
    assert len(bits.unique()) == N
    shares = torch.stack([(bits >> i & 1).double().mean() for i in range(64)])
    assert (shares - 0.5).abs().max() < 5 * 0.5 / math.sqrt(N)
    assert len(keyed_bits(0, "direction", torch.arange(300)[:, None], torch.arange(300)).unique()) == 300**2


def test_signs_are_the_sign_of_the_bits() -> None:
    bits, signs = keyed_bits(0, "probe", IDS[:1000]), keyed_sign(0, "probe", IDS[:1000])
    assert signs.dtype is torch.float32
    assert signs.equal(torch.where(bits < 0, -1.0, 1.0))


def test_uniform_is_the_top_24_bits_and_has_the_moments() -> None:
    uniform = keyed_uniform(0, "augmentation", IDS)
    assert uniform.dtype is torch.float32
    expected = [(bits % WRAP >> 40) * 2.0**-24 for bits in keyed_bits(0, "augmentation", IDS[:1000]).tolist()]
    assert uniform[:1000].tolist() == expected
    assert uniform.min() >= 0
    assert uniform.max() < 1
    for power in (1, 2, 3):
        se = math.sqrt(1 / (2 * power + 1) - 1 / (power + 1) ** 2) / math.sqrt(N)
        assert uniform.double().pow(power).mean().item() == pytest.approx(1 / (power + 1), abs=4 * se)


def test_normal_has_the_moments() -> None:
    normal = keyed_normal(0, "noise", IDS)
    assert normal.dtype is torch.float32
    assert normal.isfinite().all()
    for power, moment, second in ((1, 0, 1), (2, 1, 3), (3, 0, 15), (4, 3, 105)):
        se = math.sqrt((second - moment**2) / N)
        assert normal.double().pow(power).mean().item() == pytest.approx(moment, abs=4 * se)
    below = torch.special.ndtr(normal.double()).sort().values
    assert (below - (torch.arange(N) + 0.5) / N).abs().max() < 1.95 / math.sqrt(N)  # Kolmogorov, p = 0.001


def test_keys_belong_to_seed_and_purpose() -> None:
    keys = {purpose_key(seed, purpose) for seed in range(20) for purpose in ("direction", "probe", "noise", "1/probe")}
    assert len(keys) == 80
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert purpose_key(0, "direction") == purpose_key(0, "direction")
    seeds = {named_seed(0, "order", task, epoch) for task in range(20) for epoch in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_equal_bits_on_a_gpu() -> None:
    for draw in (keyed_bits, keyed_uniform, keyed_sign):
        assert draw(0, "direction", IDS.cuda(), 3).cpu().equal(draw(0, "direction", IDS, 3))
    normal = keyed_normal(0, "direction", IDS)
    ulp = torch.nextafter(normal.abs(), torch.tensor(torch.inf)) - normal.abs()
    assert ((keyed_normal(0, "direction", IDS.cuda()).cpu() - normal).abs() <= ulp).all()
