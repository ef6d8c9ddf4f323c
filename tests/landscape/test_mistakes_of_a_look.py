"""Networks, losses and data of one's own that do not fit together: one or two sentences say what does."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape.look_cases import settings_of
from measure.landscape.landscape_cases import DOUBLE
from plastiscope.error import ConfigError
from plastiscope.landscape.look import Landscape
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

SPECTRUM = {"enable_spectrum": True, "spectrum": SpectrumSettings(top_k=1, bottom_k=0, hutchinson_probes=2)}


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
