"""The transformer's forward pass against the same arithmetic written out, token by token, in float64."""

import pytest
import torch
import torch.nn.functional as F
from net_cases import randomise

from plastiscope.net.vit import Pooling, Vit

DEPTH, WIDTH, HEADS, PATCH = 2, 6, 2, 2


def norm(x, weights, name):
    return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"])


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def attended(x, weights, name):
    """One image's tokens [t, width]: each head's softmax(q k^T / sqrt(d)) v, side by side."""
    q, k, v = linear(x, weights, f"{name}.qkv").split(WIDTH, dim=1)
    size, heads = WIDTH // HEADS, []
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        heads.append(torch.softmax(q[:, part] @ k[:, part].T / size**0.5, dim=1) @ v[:, part])
    return linear(torch.cat(heads, dim=1), weights, f"{name}.proj")


def by_hand(image, weights, pooling):
    """Outputs of one image [c, h, w]."""
    kernel = weights["embed.weight"].flatten(1)
    tokens = [] if pooling is Pooling.mean else [weights["token"][0, 0]]
    for i in range(0, image.shape[1], PATCH):
        for j in range(0, image.shape[2], PATCH):
            tokens.append(kernel @ image[:, i : i + PATCH, j : j + PATCH].flatten() + weights["embed.bias"])
    x = torch.stack(tokens) + weights["positions"][0]
    for b in range(DEPTH):
        x = x + attended(norm(x, weights, f"blocks.{b}.norm1"), weights, f"blocks.{b}.attention")
        hidden = linear(norm(x, weights, f"blocks.{b}.norm2"), weights, f"blocks.{b}.linear1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + linear(hidden, weights, f"blocks.{b}.linear2")
    x = norm(x, weights, "norm")
    return linear(x[0] if pooling is Pooling.token else x.mean(0), weights, "head")


@pytest.mark.parametrize("pooling", list(Pooling))
def test_forward_equals_the_arithmetic_by_hand(pooling):
    torch.manual_seed(0)
    config = Vit(depth=DEPTH, width=WIDTH, heads=HEADS, hidden=5, patch=PATCH, pooling=pooling)
    net = randomise(config.make((3, 4, 6), 4)).double()
    images = torch.randn(3, 3, 4, 6, dtype=torch.float64)
    weights = net.state_dict()
    expected = torch.stack([by_hand(image, weights, pooling) for image in images])
    assert expected.std(0).min() > 1e-3
    torch.testing.assert_close(net(images), expected, rtol=1e-10, atol=1e-12)
