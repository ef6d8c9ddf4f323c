"""Networks, losses and data of one's own that do not fit together: one or two sentences say what does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape.look_cases import settings_of
from measure.landscape.landscape_cases import DOUBLE
from plastiscope.error import ConfigError
from plastiscope.landscape.look import Landscape, opened
from plastiscope.landscape.settings import (
    BackendChoice,
    BatchNormPolicy,
    BatchNormSettings,
    EvaluationSettings,
    LandscapeSettings,
    Profile,
    SpectrumSettings,
)
from plastiscope.landscape.study import analyse
from plastiscope.run.storage import read_json

OPEN = SpectrumSettings(top_k=1, bottom_k=0, hutchinson_probes=2)
SPECTRUM = {"enable_spectrum": True, "spectrum": OPEN}


def landscape(folder: Path, net: nn.Module | None = None, n: int = 9, batch: int = 128, **options) -> Landscape:
    torch.manual_seed(0)
    settings = settings_of(None, evaluation_data=EvaluationSettings(eval_batch_size=batch), **SPECTRUM)
    data = {"inputs": torch.randn(n, 4, dtype=DOUBLE), "targets": torch.randn(n, dtype=DOUBLE)}
    net = net or nn.Linear(4, 1)
    return Landscape(
        net=net,
        folder=folder,
        **{"loss": lambda o, t: (o[:, 0] - t).square(), "settings": settings, "tells": False} | data | options,
    )


@pytest.mark.parametrize("active", [None, 1])
def test_outputs_are_rows(tmp_path, active):
    flat = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    with pytest.raises(ConfigError, match=r"must give outputs \[b, k\].* gives \[\d\].* as \[b, 1\]"):
        analyse(landscape(tmp_path, flat, active_outputs=active))
    twice = nn.LSTM(4, 1)
    with pytest.raises(ConfigError, match="gives a tuple"):
        analyse(landscape(tmp_path, twice, active_outputs=active))


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (lambda o, t: F.mse_loss(o[:, 0], t), r"\[\]"),
        (lambda o, t: (o - t).square(), r"\[9, 9\]"),
        (lambda o, t: (o - t[:, None]).square(), r"\[9, 1\]"),
        (lambda o, t: 0.0, "a float"),
    ],
    ids=["mean", "every pair", "a column", "no tensor"],
)
def test_the_loss_is_one_number_a_sample(tmp_path, loss, shape):
    with pytest.raises(
        ConfigError, match=rf'one number for each sample, \[9\], and gives {shape}: use reduction="none"'
    ):
        analyse(landscape(tmp_path, loss=loss))
    assert analyse(landscape(tmp_path))["hessian_top_eig_1"] > 0


def coupled() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Tanh(), nn.Linear(3, 1))


def test_a_rest_of_one_sample_has_no_variance(tmp_path):
    with pytest.raises(ConfigError, match=r"9 samples leave .* set evaluation_data.eval_batch_size=3$"):
        analyse(landscape(tmp_path, coupled(), batch=4))
    with pytest.raises(ConfigError, match=r"set evaluation_data.eval_batch_size=3$"):
        analyse(landscape(tmp_path, coupled(), batch=1))
    with pytest.raises(ConfigError, match="take two samples or more"):
        analyse(landscape(tmp_path, coupled(), n=1))
    assert analyse(landscape(tmp_path, coupled(), batch=3))["hessian_eig_converged"] == 1
    assert analyse(landscape(tmp_path, batch=4))["hessian_eig_converged"] == 1  # without such a layer all sizes fit


def test_sizes_of_coupled_batches_are_timed_whole(tmp_path):
    """128 samples, which other routes are timed on, would leave a rest of one here."""
    data = EvaluationSettings(eval_batch_size=127, num_samples=254)
    few = SpectrumSettings(top_k=1, bottom_k=0, hutchinson_probes=2, backend=BackendChoice.auto)
    settings = settings_of(None, evaluation_data=data, enable_spectrum=True, spectrum=few)
    assert analyse(landscape(tmp_path, coupled(), n=254, settings=settings))["hessian_eig_converged"] == 1


def test_options_by_name():
    named = LandscapeSettings(profile="smoke", bn=BatchNormSettings(policy="recompute"))
    assert named.profile is Profile.smoke and named.bn.policy is BatchNormPolicy.recompute
    assert SpectrumSettings(backend="jvp") == SpectrumSettings(backend=BackendChoice.jvp)
    with pytest.raises(ConfigError, match="profile=fast: must be one of smoke, quick, standard, paper"):
        LandscapeSettings(profile="fast")
    with pytest.raises(ConfigError, match="split=all: must be one of train, val, test"):
        EvaluationSettings(split="all")


class Called(nn.Module):
    """A hidden layer, a function of it, and an output."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(4, 6), nn.Linear(6, 1), function

    def forward(self, inputs):
        return self.last(self.function(self.first(inputs)))


@pytest.mark.parametrize("function", [F.dropout, lambda h: h + 1e-3 * torch.randn_like(h)], ids=["dropout", "noise"])
def test_a_random_forward_is_refused(tmp_path, function):
    with pytest.raises(ConfigError, match=r"two forwards of the same samples differ.*training=self\.training"):
        analyse(landscape(tmp_path, Called(function)))


COUPLING = {
    "batch_norm": lambda h: F.batch_norm(h, None, None, training=True),
    "mean": lambda h: h - h.mean(0),
}


@pytest.mark.parametrize("name", COUPLING)
@pytest.mark.parametrize("batch", [4, 16])
def test_what_couples_samples_is_found_and_its_batch_is_left_as_it_is(tmp_path, name, batch):
    """Whatever is timed the eigenvalue is that of batches as large as they were asked for."""
    asked = landscape(tmp_path, Called(COUPLING[name]), n=64, batch=batch)
    numbers = analyse(replace(asked, settings=replace(asked.settings, spectrum=replace(OPEN, tol=1e-9))))
    summary = read_json(tmp_path / "summary.json")
    assert any("a function that the network or the loss calls" in text for text in summary["warnings"])
    assert summary["routes"]["product_batch"] == summary["routes"]["forward_batch"] == batch
    net, inputs, targets = asked.net.double(), asked.inputs, asked.targets

    def loss(vector):
        values, at = {}, 0
        for key, p in net.named_parameters():
            values[key], at = vector[at : at + p.numel()].view_as(p), at + p.numel()
        parts = [torch.func.functional_call(net, values, (x,)) for x in inputs.split(batch)]
        return (torch.cat(parts)[:, 0] - targets).square().mean()

    hessian = torch.autograd.functional.hessian(loss, torch.nn.utils.parameters_to_vector(net.parameters()).detach())
    assert numbers["hessian_top_eig_1"] == pytest.approx(torch.linalg.eigvalsh(hessian)[-1].item(), rel=1e-7)


def test_samples_that_are_alone_are_taken_for_no_others(tmp_path):
    """Neither another rounding of another size of batch, nor weights that have diverged, are a coupling."""
    for scale, inputs in ((1e4, None), (1.0, torch.full((9, 4), float("nan"), dtype=DOUBLE))):
        asked = landscape(tmp_path / str(scale), Called(lambda h, scale=scale: scale * torch.tanh(h)), n=9)
        with opened(replace(asked, inputs=asked.inputs if inputs is None else inputs)) as look:
            assert look.frozen.coupling_modules == []
