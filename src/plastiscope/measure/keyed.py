"""Random numbers that belong to a sample or a unit: one counter-based hash, the same bits wherever it is evaluated.

Each number is a function of (seed, purpose, id, k) alone, so it does not depend on batch size, order, device or
number of processes. The hash is splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"),
evaluated on int64 tensors: products wrap, as they should, and every right shift is masked because `>>` on int64 keeps
the sign.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_WRAP = 1 << 64


def _signed(value: int) -> int:
    value %= _WRAP
    return value - _WRAP if value >= _WRAP // 2 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(state: Tensor) -> Tensor:
    """The output of splitmix64 whose state is `state` (int64, any shape) before the step."""
    z = state + _signed(_GOLDEN)
    z = (z ^ _shift_right(z, 30)) * _signed(_FIRST)
    z = (z ^ _shift_right(z, 27)) * _signed(_SECOND)
    return z ^ _shift_right(z, 31)


def purpose_key(seed: int, purpose: str) -> int:
    """A 64-bit integer (signed) for (seed, purpose); different purposes give unrelated streams."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return _signed(int.from_bytes(digest, "little"))


def named_seed(seed: int, *names: object) -> int:
    """A non-negative 63-bit seed for a named generator, such as (0, "order", task, epoch)."""
    return purpose_key(seed, "/".join(map(str, names))) & (2**63 - 1)


Seed = int | Sequence[int]
"""Of one run; or one for each entry of the first axis of the ids, so that runs that advance together stay apart."""


def _keyed(seed: Seed, purpose: str, ids: Tensor) -> Tensor:
    if isinstance(seed, int):
        return ids + purpose_key(seed, purpose)
    keys = torch.tensor([purpose_key(one, purpose) for one in seed], device=ids.device)
    return ids + keys.reshape(-1, *(1,) * (ids.ndim - 1))


def keyed_bits(seed: Seed, purpose: str, ids: Tensor, k: int | Tensor = 0) -> Tensor:
    """64 random bits for each id and k.

    Args:
        seed: of the run, or of each run along the first axis of `ids`.
        purpose: what the numbers are for.
        ids: int64 tensor of sample or unit ids.
        k: counter, an int or an int64 tensor that broadcasts against ids.

    Returns:
        int64 tensor of the broadcast shape of ids and k.
    """
    own = splitmix64(splitmix64(_keyed(seed, purpose, ids)))
    return splitmix64(own ^ splitmix64(torch.as_tensor(k, dtype=torch.int64, device=ids.device)))


def keyed_uniform(seed: Seed, purpose: str, ids: Tensor, k: int | Tensor = 0) -> Tensor:
    """Uniform float32 in [0, 1): the top 24 bits times 2^-24; the same bits on every device."""
    return _shift_right(keyed_bits(seed, purpose, ids, k), 40).to(torch.float32) * 2.0**-24


def keyed_sign(seed: int, purpose: str, ids: Tensor, k: int | Tensor = 0) -> Tensor:
    """Rademacher signs, float32 -1 or +1, from the top bit; the same bits on every device."""
    return torch.where(keyed_bits(seed, purpose, ids, k) < 0, -1.0, 1.0)


def keyed_normal(seed: Seed, purpose: str, ids: Tensor, k: int | Tensor = 0) -> Tensor:
    """Standard normal float32 (Box-Muller in float64, rounded once); equal across devices to the last place."""
    bits = keyed_bits(seed, purpose, ids, k)
    radius = (_shift_right(bits, 40).to(torch.float64) + 1.0) * 2.0**-24
    angle = _shift_right(splitmix64(bits), 11).to(torch.float64) * (2.0**-53 * 2.0 * math.pi)
    return (torch.sqrt(-2.0 * torch.log(radius)) * torch.cos(angle)).to(torch.float32)
