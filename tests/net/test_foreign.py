"""Foreign networks are checked before anything is trained."""

import pytest
import torch
from torch import nn

from plastiscope.error import ConfigError
from plastiscope.net.foreign import Foreign


def test_a_net_that_fits_comes_out_as_it_is():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3)).train()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert Foreign(lambda: net).make((3, 2, 2), 3) is net
    assert net.training
    assert not net[2].running_mean.any() and net[2].num_batches_tracked == 0
    assert torch.equal(torch.get_rng_state(), state)


def fails() -> nn.Module:
    raise TypeError("unexpected keyword 'classes'")


class GivesTuple(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (lambda: nn.Linear(4, 10), ["(2, 10)", "(2, 3)", "+net.num_classes=3"]),
        (lambda: nn.Linear(5, 3), ["cannot take inputs of shape (4,)", "RuntimeError", "data.resize"]),
        (lambda: "net", ["gave a str", "torch.nn.Module"]),
        (fails, ["TypeError", "unexpected keyword 'classes'", "arguments under net"]),
        (GivesTuple, ["of shape tuple", "(2, 3)"]),
    ],
)
def test_a_net_that_does_not_fit_is_refused_with_what_to_do(factory, words):
    with pytest.raises(ConfigError) as caught:
        Foreign(factory, "somewhere.Net").make((4,), 3)
    assert all(word in str(caught.value) for word in [*words, "somewhere.Net"])
