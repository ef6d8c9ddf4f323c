"""Spectrum of a look against the exact Hessian: eigenvalues, trace from shared probes, density, records."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from landscape.look_cases import looked, normed, of_weights, settings_of, stored
from measure.landscape.landscape_cases import BOTTOM, DOUBLE, TOP, exact_hessian, fixture_f, with_spectrum
from plastiscope.landscape import work
from plastiscope.landscape.look import Landscape, opened
from plastiscope.landscape.settings import (
    BackendChoice,
    DensitySettings,
    Engine,
    EvaluationSettings,
    LandscapeSettings,
    LossSettings,
    Profile,
    SpectrumSettings,
)
from plastiscope.measure.loss import Loss
from plastiscope.run.storage import read_json

RUNS, STEPS, PROBES = 3, 12, 7
RANK = {"hessian_effective_rank", "hessian_effective_rank_stderr"}
KEYS = {
    *RANK,
    *(f"hessian_top_eig_{i}" for i in range(1, 6)),
    *(f"hessian_top_eig_{i}_residual" for i in range(1, 6)),
    *(f"hessian_bottom_eig_{i}" for i in (1, 2)),
    *(f"hessian_{sign}_{what}" for sign in ("negative", "positive", "zero") for what in ("mass", "count")),
    *(f"hessian_{sign}_density_{what}" for sign in ("negative", "positive") for what in ("integral", "peak")),
    *("hessian_trace_estimate", "hessian_trace_stderr", "hessian_trace_probes", "hessian_trace_fraction_topk"),
    *("hessian_partial_topk_sum", "hessian_fro2", "hessian_fro2_stderr", "hessian_eig_converged", "param_norm"),
    *("hesd_re", "hesd_khn", "hessian_negative_fraction", "hessian_negative_mass_ratio_total"),
    *("hessian_signed_mass_balance", "hessian_min_eigenvalue", "hessian_max_eigenvalue", "lla_hvp_count"),
}


def spectrum_only(**options) -> LandscapeSettings:
    spectrum = {
        "backend": BackendChoice.rebuilt,
        "top_k": 5,
        "hutchinson_probes": PROBES,
        "esd": DensitySettings(num_probes=RUNS, lanczos_steps=STEPS),
    }
    settings = {"profile": Profile.smoke, "dtype": "float64", "enable_planes": False, "enable_sam": False}
    return LandscapeSettings(**settings | options | {"spectrum": SpectrumSettings(**spectrum | options["spectrum"])})


def fixture(folder: Path, spectrum: dict | None = None, **options) -> Landscape:
    """Fixture F of the definitions of spectra."""
    loss = fixture_f()
    asked = {"settings": spectrum_only(spectrum=spectrum or {}), "seed": 5, "net": loss.net} | options
    return Landscape(inputs=loss.inputs, targets=loss.targets, loss=Loss.cross_entropy, folder=folder, **asked)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Numbers and folder of a look at fixture F."""
    folder = tmp_path_factory.mktemp("look")
    return looked(fixture(folder)), folder


def test_every_published_key_is_there(whole):
    numbers, _ = whole
    assert numbers.keys() == KEYS


def test_eigenvalues_at_both_ends(whole):
    numbers, folder = whole
    assert [numbers[f"hessian_top_eig_{i}"] for i in range(1, 6)] == pytest.approx(TOP, abs=1e-8)
    assert [numbers[f"hessian_bottom_eig_{i}"] for i in (1, 2)] == pytest.approx(BOTTOM, abs=1e-8)
    assert numbers["hessian_partial_topk_sum"] == pytest.approx(sum(TOP), abs=1e-7)
    arrays, record = stored(folder, "spectrum/eigenvalues")
    assert [line["end"] for line in record["eigenpairs"]] == ["top"] * 5 + ["bottom"] * 2
    assert arrays["residuals"].max() < 1e-3 * TOP[0]
    assert record["orthogonality_error"] < 1e-12
    assert (record["engine"], record["backend"], record["dimension"]) == ("native", "rebuilt", 115)


def test_trace_is_that_of_the_probes(whole):
    """Deflated samples v^T P H P v by the projector itself, from the exact Hessian and the same signs."""
    numbers, folder = whole
    loss = fixture_f()
    hessian = exact_hessian(loss)
    with opened(fixture(folder.parent / "again")) as look:
        basis = look.eigenpairs.vectors
        vectors = torch.stack([look.frozen.space.signs(5, "hutchinson", k).double() for k in range(PROBES)])
    projector = torch.eye(115, dtype=DOUBLE) - basis.T @ basis
    samples = torch.einsum("ki,ij,kj->k", vectors @ projector, hessian, vectors @ projector)
    known = (basis @ hessian @ basis.T).trace()
    assert numbers["hessian_trace_estimate"] == pytest.approx((samples.mean() + known).item(), rel=1e-9)
    assert numbers["hessian_trace_stderr"] == pytest.approx((samples.std() / math.sqrt(PROBES)).item(), rel=1e-9)
    assert numbers["hessian_trace_probes"] == PROBES
    norms = (vectors @ hessian).square().sum(1)
    assert numbers["hessian_fro2"] == pytest.approx(norms.mean().item(), rel=1e-9)
    assert numbers["hessian_fro2_stderr"] == pytest.approx((norms.std() / math.sqrt(PROBES)).item(), rel=1e-9)
    rank = numbers["hessian_trace_estimate"] ** 2 / norms.mean().item()
    assert numbers["hessian_effective_rank"] == pytest.approx(rank)
    ratios = torch.tensor([2, -1], dtype=DOUBLE) / torch.tensor([numbers["hessian_trace_estimate"], norms.mean()])
    spread = rank**2 * (ratios @ torch.cov(torch.stack([samples, norms])) @ ratios)  # of 2 ln t - ln f
    assert numbers["hessian_effective_rank_stderr"] == pytest.approx((spread / PROBES).sqrt().item(), rel=1e-6)
    arrays, record = stored(folder, "spectrum/trace")
    plain = torch.einsum("ki,ij,kj->k", vectors, hessian, vectors)
    assert arrays["plain"] == pytest.approx(plain.numpy(), rel=1e-9)
    assert record["trace_without_deflation"]["value"] == pytest.approx(plain.mean().item(), rel=1e-9)
    layers = [layer["value"] for layer in record["layers"].values()]
    assert sum(layers) == pytest.approx(plain.mean().item(), rel=1e-9)
    assert list(record["layers"]) == list(loss.space.names)
    low, high = record["trace"]["interval_95"]
    assert (low + high) / 2 == pytest.approx(numbers["hessian_trace_estimate"])
    assert (high - low) / 2 == pytest.approx(2.446912 * numbers["hessian_trace_stderr"], rel=1e-6)  # 6 degrees


def test_density_is_that_of_the_same_probes(whole):
    numbers, folder = whole
    hessian = exact_hessian(fixture_f())
    arrays, record = stored(folder, "spectrum/density")
    for k in range(RUNS):
        own = arrays["run"] == k
        v = fixture_f().space.signs(5, "hutchinson", k).double()
        powers = [(v @ torch.linalg.matrix_power(hessian, p) @ v).item() / 115 for p in range(1, 5)]
        moments = [(arrays["weights"][own] * arrays["nodes"][own] ** p).sum() for p in range(1, 5)]
        assert moments == pytest.approx(powers, rel=1e-9)
        assert own.sum() == STEPS
    assert len(set(arrays["run"])) == RUNS
    assert record["moments"][0]["value"] * 115 == pytest.approx(
        stored(folder, "spectrum/trace")[0]["plain"][:RUNS].mean(), rel=1e-9
    )
    assert len(arrays["grid"]) == 200
    assert record["grid_mass"] > 0.99
    assert numbers["hessian_negative_mass"] == pytest.approx(record["negative_mass"]["value"])


def test_a_node_at_the_edge_of_the_zero_band_lies_in_it(tmp_path):
    """With a band as wide as the largest node all mass is zero mass, in the record as in the numbers."""
    esd = DensitySettings(num_probes=2, lanczos_steps=5, zero_tol=1.0)
    numbers = looked(fixture(tmp_path, {"esd": esd}))
    _, record = stored(tmp_path, "spectrum/density")
    assert record["near_zero"]["value"] == numbers["hessian_zero_mass"] == pytest.approx(1, rel=1e-12)


def test_products_are_counted_whoever_computes_them(tmp_path):
    with opened(fixture(tmp_path)) as look:
        from plastiscope.landscape.study import everything

        numbers = everything(look)
        assert numbers["lla_hvp_count"] == look.operator.count
        assert look.operator.count <= look.forecast.products + 3  # and those of the operator's check
        again = everything(look)  # every part is there already
        assert again == numbers | {"lla_hvp_count": again["lla_hvp_count"]}
        look.work.finish()


def test_a_fraction_of_an_uncertain_trace_is_left_out(tmp_path):
    """A spectrum symmetric about zero: the trace is within two standard errors of none."""
    values = torch.cat([torch.linspace(1, 3, 12), -torch.linspace(1, 3, 12)]).to(DOUBLE)
    matrix = with_spectrum(values)
    settings = spectrum_only(spectrum={"top_k": 2, "bottom_k": 2, "hutchinson_probes": 40})
    numbers = looked(
        of_weights(lambda t: 0.5 * t @ matrix @ t, torch.zeros(24, dtype=DOUBLE), tmp_path, settings=settings)
    )
    assert abs(numbers["hessian_trace_estimate"]) < 2 * numbers["hessian_trace_stderr"]
    assert not numbers.keys() & {"hessian_trace_fraction_topk", *RANK}
    assert numbers["hessian_fro2_stderr"] >= 0
    told = read_json(tmp_path / "spectrum" / "trace.json")["effective_rank"]
    assert told["value"] < 2 * told["standard_error"]  # in the record all the same, with what it is worth
    assert numbers["hessian_partial_topk_sum"] == pytest.approx(values.sort(descending=True).values[:2].sum().item())


def test_one_probe_has_no_error(tmp_path):
    spectrum = {"hutchinson_probes": 1, "esd": DensitySettings(num_probes=1, lanczos_steps=5)}
    numbers = looked(fixture(tmp_path, spectrum))
    unknown = {"hessian_trace_stderr", "hessian_fro2_stderr", "hessian_trace_fraction_topk", *RANK}
    assert numbers.keys() == KEYS - unknown
    assert read_json(tmp_path / "spectrum" / "trace.json")["trace"]["standard_error"] is None


def test_a_loss_that_is_not_finite_has_no_spectrum_and_says_so(tmp_path):
    def spiked(t: torch.Tensor) -> torch.Tensor:
        return t.square().sum() + torch.log(-t[0].square())

    landscape = of_weights(spiked, torch.ones(3, dtype=DOUBLE), tmp_path, settings=spectrum_only(spectrum={}))
    assert looked(landscape) == {}
    assert "not finite" in read_json(tmp_path / "summary.json")["absent"]["spectrum"]
    assert not (tmp_path / "spectrum").exists()


def test_weight_decay_moves_every_eigenvalue(tmp_path):
    decayed = spectrum_only(spectrum={}, loss=LossSettings(include_weight_decay=True))
    numbers = looked(fixture(tmp_path, settings=decayed, weight_decay=0.25))
    assert [numbers[f"hessian_top_eig_{i}"] for i in range(1, 6)] == pytest.approx([v + 0.25 for v in TOP], abs=1e-8)
    assert read_json(tmp_path / "spectrum" / "trace.json")["weight_decay"] == 0.25
    without = looked(fixture(tmp_path / "without", weight_decay=0.25))  # not asked for
    assert without["hessian_top_eig_1"] == pytest.approx(TOP[0], abs=1e-8)


def test_a_subset_of_parameters_is_a_block(tmp_path):
    names = ["2.weight", "2.bias"]
    numbers = looked(fixture(tmp_path, settings=spectrum_only(spectrum={}, params=names)))
    block = exact_hessian(fixture_f())[88:, 88:]
    assert numbers["hessian_top_eig_1"] == pytest.approx(torch.linalg.eigvalsh(block)[-1].item(), abs=1e-8)
    record = read_json(tmp_path / "spectrum" / "eigenvalues.json")
    assert (record["params"], record["dimension"]) == (names, 27)


class WithUnused(nn.Module):
    """Fixture F with a layer that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.idle = fixture_f(torch.float32).net, nn.Linear(3, 3)

    def forward(self, inputs):
        return self.net(inputs)


def test_float64_of_a_float32_network_and_parameters_without_influence(tmp_path):
    """The look is at a copy; the network keeps its bits, type, mode and gradients."""
    loss, net = fixture_f(torch.float32), WithUnused().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    landscape = replace(fixture(tmp_path), net=net, inputs=loss.inputs, targets=loss.targets)
    numbers = looked(landscape)
    assert numbers["hessian_top_eig_1"] == pytest.approx(TOP[0], abs=1e-7)
    assert read_json(tmp_path / "spectrum" / "trace.json")["dtype"] == "float64"
    checked = read_json(tmp_path / "summary.json")
    assert checked["self_check"]["parameters_without_influence"] == ["idle.weight", "idle.bias"]
    assert checked["self_check"]["symmetry"] < 1e-12
    assert checked["self_check"]["is_repeatable"] is True
    assert any("idle.weight" in text for text in checked["warnings"])
    assert net.training
    assert all(value.equal(before[name]) and value.dtype == torch.float32 for name, value in net.state_dict().items())


def test_batch_norm_without_statistics_is_not_tuned_and_told(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Tanh(), nn.Linear(6, 3))
    data = EvaluationSettings(eval_batch_size=40)
    few = {"top_k": 1, "bottom_k": 0, "hutchinson_probes": 1, "esd": DensitySettings(num_probes=1, lanczos_steps=2)}
    settings = spectrum_only(spectrum=few | {"backend": BackendChoice.auto}, evaluation_data=data)
    looked(fixture(tmp_path, settings=settings, net=net.double()))
    summary = read_json(tmp_path / "summary.json")
    assert (summary["routes"]["product_batch"], summary["routes"]["forward_batch"]) == (40, 40)
    assert {line["micro_batch"] for line in summary["routes"]["table"]} == {40}
    assert any("without running statistics" in text for text in summary["warnings"])


@pytest.mark.parametrize("engine", [Engine.native, Engine.pyhessian])
def test_pyhessian_beside_or_in_place_of_our_own(tmp_path, engine):
    asked = {"top_k": 2, "cross_check": engine is Engine.native, "engine": engine, "power_iters": 400}
    numbers = looked(fixture(tmp_path, asked))
    assert [numbers[f"hessian_top_eig_{i}"] for i in (1, 2)] == pytest.approx(TOP[:2], rel=3e-6)
    theirs, record = stored(tmp_path, "spectrum/pyhessian")
    assert len(theirs["samples"]) == PROBES
    assert record["engine"] == "pyhessian"
    assert (tmp_path / "spectrum" / "density.npz").exists()
    if engine is Engine.native:
        assert numbers["hessian_crosscheck_eig_rel"] < 1e-3
        assert abs(numbers["hessian_crosscheck_trace_z"]) < 4
        assert read_json(tmp_path / "summary.json")["cross_check"] == {"agrees": True, "compared_eigenvalues": 2}
    else:
        assert numbers["hessian_trace_estimate"] == pytest.approx(theirs["samples"].mean())
        assert not (tmp_path / "spectrum" / "trace.npz").exists()
        assert "hessian_fro2" not in numbers


def test_the_search_for_eigenpairs_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    """Where there is no terminal, in lines; here without waiting for them."""
    monkeypatch.setattr(work, "QUIET_SECONDS", -1.0)
    looked(normed(tmp_path, settings=settings_of(None, enable_spectrum=True)))
    lines = [line for line in capsys.readouterr().out.splitlines() if "eigenpairs" in line]
    assert lines[0] == "landscape: eigenpairs, 1 of 50"
    assert len(lines) > 5
