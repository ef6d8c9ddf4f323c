"""What a look will cost, what a budget cuts, and that routes are chosen once."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from landscape.look_cases import looked, stored
from measure.landscape.landscape_cases import fixture_f
from plastiscope.error import ConfigError
from plastiscope.landscape import look as look_module
from plastiscope.landscape.forecast import Scene, fitted, forecast, refuse_too_long, with_steps
from plastiscope.landscape.look import Landscape, SavedPoint, opened
from plastiscope.landscape.routes import Routes, choose_routes
from plastiscope.landscape.settings import (
    BackendChoice,
    BudgetSettings,
    ConnectivitySettings,
    EvaluationSettings,
    LandscapeSettings,
    Profile,
    SpectrumSettings,
    filled,
    value_at,
    with_value,
)
from plastiscope.measure.loss import Loss
from plastiscope.run.storage import read_json

ROUTES = Routes("retained", 32, 32, samples=100, build=0.0, product=0.3, forward=0.1, gradient=0.2, table=(),
                is_timed=True)  # fmt: skip
SCENE = Scene(samples=200, dimension=1000, itemsize=4, path=True, start=True)
SMOKE = filled(LandscapeSettings(profile=Profile.smoke))


def test_counts_of_the_smallest_profile():
    """Products of pairs (60 steps, 4 residuals), density (2 runs of 10), 2 more probes, curvature of two planes.

    Three planes of 25 cells, of which 9 are robust.
    """
    found = forecast(SMOKE, ROUTES, SCENE)
    assert found.products == 60 + 4 + 2 * 10 + 2 + 2 * 2
    assert (found.forwards, found.gradients) == (3 * 25 + 3 * 9, 3 * 9)
    seconds = 0.64 * (90 * 0.3 + 102 * 0.1 + 27 * 0.2)  # 64 samples; the costs are of 100
    assert found.seconds == pytest.approx(seconds)
    assert sum(found.phases.values()) == pytest.approx(seconds)
    assert found.memory == (60 + 8 + 8) * 1000 * 4
    assert forecast(SMOKE, ROUTES, replace(SCENE, processes=4)).seconds == pytest.approx(seconds / 4)


def test_steps_of_lanczos_take_time_beside_their_products():
    """60 steps of one process that is not shared out, and 2 runs of 10 that are; one sample or all is the same."""
    bare, kept = forecast(SMOKE, ROUTES, SCENE), replace(ROUTES, row=0.01)
    found = forecast(SMOKE, kept, SCENE)
    assert found.phases["eigenpairs"] - bare.phases["eigenpairs"] == pytest.approx(0.01 * 60 * 61 / 2)
    assert found.phases["spectrum"] - bare.phases["spectrum"] == pytest.approx(0.01 * 2 * 10 * 11 / 2)
    assert found.seconds - bare.seconds == pytest.approx(0.01 * (1830 + 110))
    halves = replace(SCENE, processes=2)
    assert forecast(SMOKE, kept, halves).seconds - bare.seconds / 2 == pytest.approx(0.01 * (1830 + 55))
    few = replace(SCENE, dimension=7)
    assert forecast(SMOKE, kept, few).seconds - forecast(SMOKE, ROUTES, few).seconds == pytest.approx(0.01 * 3 * 28)
    off = replace(SMOKE, enable_planes=False, enable_spectrum=False, enable_sam=False)
    assert forecast(off, kept, SCENE).seconds == 0


def test_gradients_of_robust_cells():
    """The first start takes one for each step, the others one each; 27 cells."""
    more = replace(SMOKE, sam=replace(SMOKE.sam, steps=3, starts=4))
    assert forecast(more, ROUTES, SCENE).gradients == 27 * (3 + 3)
    assert forecast(more, ROUTES, SCENE).forwards == 3 * 25 + 27 * 4


def test_what_is_off_costs_nothing():
    off = replace(SMOKE, enable_planes=False, enable_spectrum=False, enable_sam=False)
    assert forecast(off, ROUTES, SCENE).seconds == 0
    spectrum = forecast(replace(SMOKE, enable_planes=False), ROUTES, SCENE)
    assert (spectrum.products, spectrum.forwards, spectrum.gradients) == (86, 0, 0)
    curves = replace(off, enable_mode_connectivity=True, mode_connectivity=ConnectivitySettings(curve_points=5))
    assert forecast(curves, ROUTES, SCENE).gradients == 160
    assert forecast(curves, ROUTES, replace(SCENE, start=False)).seconds == 0
    no_path = forecast(SMOKE, ROUTES, replace(SCENE, path=False))
    assert (no_path.forwards, no_path.gradients) == (2 * 25 + 2 * 9, 2 * 9)


def cut(most: float, profile: Profile = Profile.quick) -> tuple[LandscapeSettings, dict[str, tuple[int, int]]]:
    settings = filled(LandscapeSettings(profile=profile, budget=BudgetSettings(max_seconds=most)))
    settings, cuts = fitted(settings, ROUTES, SCENE)
    for line in cuts:
        assert value_at(settings, line["key"]) == line["to"]
    return settings, {line["key"]: (line["from"], line["to"]) for line in cuts}


def test_a_budget_cuts_in_its_order_and_no_more_than_it_must():
    """quick: N is all 200 samples, twice those of the timing. A run of the density is 30 products of 0.6 s."""
    whole = forecast(filled(LandscapeSettings(profile=Profile.quick)), ROUTES, SCENE).seconds
    assert cut(whole + 1)[1] == {}
    one_run = 2 * 0.3 * 29  # and one more probe, so that there are 16
    assert cut(whole - 1)[1] == {"spectrum.esd.num_probes": (4, 3)}
    assert cut(whole - one_run - 1)[1] == {"spectrum.esd.num_probes": (4, 2)}
    one_step = 2 * 2 * 0.3
    assert cut(whole - 2 * one_run - 1)[1] == {
        "spectrum.esd.num_probes": (4, 2),
        "spectrum.esd.lanczos_steps": (30, 29),
    }
    searched = 2 * 0.3 * (90 - 20)
    deep = cut(whole - 2 * one_run - 20 * one_step - 1)[1]
    assert deep["spectrum.esd.lanczos_steps"] == (30, 10)
    assert deep["spectrum.max_steps"] == (90, 88)  # a step is .6 s
    assert "planes.grid_resolution" not in deep
    deep = cut(whole - 2 * one_run - 20 * one_step - searched - 1)[1]
    assert deep["spectrum.max_steps"] == (90, 20)
    assert deep["spectrum.esd.lanczos_steps"] == (30, 10)
    assert deep["planes.grid_resolution"][0] == 21
    assert deep["planes.grid_resolution"][1] % 2 == 1
    settings, least = cut(1e-9)
    assert list(least) == [
        *("spectrum.esd.num_probes", "spectrum.esd.lanczos_steps", "spectrum.max_steps", "planes.grid_resolution"),
        *("evaluation_data.num_samples", "spectrum.hutchinson_probes", "spectrum.top_k"),
    ]
    assert least["spectrum.top_k"] == (5, 2)
    assert least["evaluation_data.num_samples"] == (200, 32)
    assert settings.planes.grid_resolution == 5


def test_every_budget_is_kept_by_the_largest_look_that_fits():
    whole = forecast(filled(LandscapeSettings(profile=Profile.quick)), ROUTES, SCENE).seconds
    for share in (0.9, 0.7, 0.5, 0.3, 0.15):
        settings, cuts = cut(share * whole)
        assert forecast(settings, ROUTES, SCENE).seconds <= share * whole
        last = list(cuts)[-1]
        step = 2 if last == "planes.grid_resolution" else 1
        one_more = with_value(settings, last, cuts[last][1] + step)
        assert forecast(one_more, ROUTES, SCENE).seconds > share * whole


def test_what_saves_nothing_is_not_cut():
    settings = filled(
        LandscapeSettings(profile=Profile.quick, enable_spectrum=False, budget=BudgetSettings(max_seconds=1e-9))
    )
    assert [line["key"] for line in fitted(settings, ROUTES, SCENE)[1]] == [
        *("spectrum.max_steps", "planes.grid_resolution", "evaluation_data.num_samples"),
    ]


def test_memory_shortens_the_density():
    assert with_steps(SMOKE, 10, SCENE) == (SMOKE, [])
    assert with_steps(SMOKE, 5, replace(SCENE, dimension=4)) == (SMOKE, [])
    settings, cuts = with_steps(SMOKE, 7, SCENE)
    assert settings.spectrum.esd.lanczos_steps == 7
    assert cuts == [{"key": "spectrum.esd.lanczos_steps", "from": 10, "to": 7, "reason": "memory"}]
    assert with_steps(replace(SMOKE, enable_spectrum=False), 0, SCENE)[1] == []


def test_a_look_short_of_memory_says_so(tmp_path, monkeypatch):
    room = 3 * 8 * 115  # three vectors of its weights
    monkeypatch.setattr(look_module, "budget", lambda device, sharing: room)
    looked(small(tmp_path))
    summary = read_json(tmp_path / "summary.json")
    assert any("memory holds 3 Lanczos vectors" in text for text in summary["warnings"])
    assert stored(tmp_path, "spectrum/density")[1]["lanczos_steps"] == [3, 3]


def test_too_long_a_look_is_refused():
    settings = replace(SMOKE, budget=BudgetSettings(abort_if_estimated_hours_over=0.01))
    expected = replace(forecast(settings, ROUTES, SCENE), seconds=35.9)
    refuse_too_long(settings, expected)
    with pytest.raises(ConfigError, match=r"abort_if_estimated_hours_over=0\.01: this look would take about 36 s"):
        refuse_too_long(settings, replace(expected, seconds=36.1))


def small(folder: Path, **options) -> Landscape:
    loss = fixture_f()
    settings = {
        "profile": Profile.smoke,
        "dtype": "float64",
        "enable_sam": False,
        "spectrum": SpectrumSettings(backend=BackendChoice.rebuilt, top_k=1, bottom_k=0),
    } | options.pop("settings", {})
    start = SavedPoint("start", loss.net.state_dict)
    return Landscape(
        net=loss.net, inputs=loss.inputs, targets=loss.targets, loss=Loss.cross_entropy, folder=folder,
        settings=LandscapeSettings(**settings), path=[start], ids=torch.arange(100, 164), **options,
    )  # fmt: skip


def test_cuts_are_made_recorded_and_said(tmp_path, capsys):
    """The record has what was cut; ids are those of the samples that are left, at equal distances."""
    landscape = small(tmp_path, settings={"budget": BudgetSettings(max_seconds=1e-9)}, routes=ROUTES)
    looked(landscape)
    summary = read_json(tmp_path / "summary.json")
    assert {line["key"] for line in summary["cuts"]} == {"evaluation_data.num_samples", "spectrum.max_steps"}
    assert read_json(tmp_path / "spectrum" / "eigenvalues.json")["steps"] <= 20
    assert summary["samples"] == 32
    assert any("budget is exceeded" in text for text in summary["warnings"])
    ids, about = stored(tmp_path, "evaluation_set")
    assert ids["ids"].tolist() == list(range(100, 164, 2))
    assert about["sha256"] == summary["evaluation_set"]
    assert "evaluation_data.num_samples cut to 32" in capsys.readouterr().out
    assert summary["forecast"]["seconds"] > 0


def test_a_refused_look_leaves_no_result(tmp_path):
    landscape = small(tmp_path, settings={"budget": BudgetSettings(abort_if_estimated_hours_over=1e-9)}, routes=ROUTES)
    with pytest.raises(ConfigError, match="abort_if_estimated_hours_over"):
        looked(landscape)
    assert not list(tmp_path.glob("*/*.npz"))


def test_routes_are_chosen_once(tmp_path, monkeypatch):
    """A look that knows the routes of an earlier one times nothing; one that goes on has them among its parts."""
    landscape = small(tmp_path)
    with opened(landscape) as first:
        routes = first.routes
    assert (routes.backend, routes.is_timed, routes.samples) == ("rebuilt", False, 64)
    assert routes.product > 0
    assert routes.forward > 0

    def never(*arguments, **options):
        raise AssertionError("timed again")

    monkeypatch.setattr(look_module, "choose_routes", never)
    with opened(landscape) as again:  # its parts are there
        assert again.routes == routes
    with opened(replace(landscape, folder=tmp_path / "other", routes=routes)) as other:
        assert other.routes == routes
        assert Routes.restored(other.routes.facts) == routes


@pytest.mark.parametrize("may_time", [True, False])
def test_the_choice(may_time):
    """By timing, among sizes up to the largest; or, where processes work apart, the same in all of them."""
    settings = filled(LandscapeSettings(evaluation_data=EvaluationSettings(eval_batch_size=48)))
    frozen = fixture_f().with_micro_batch(48)
    routes = choose_routes(frozen, settings, 10, may_time=may_time)
    timed = {line["micro_batch"] for line in routes.table if "backend" in line}
    if may_time:
        fastest = min((line for line in routes.table if "backend" in line and "reason" not in line),
                      key=lambda line: line["build"] + 10 * line["product"])  # fmt: skip
        assert (routes.backend, routes.product_batch) == (fastest["backend"], fastest["micro_batch"])
        assert timed == {32, 48}
    else:
        assert (routes.backend, routes.product_batch, routes.forward_batch) == ("retained", 48, 48)
        assert timed == {48}
    assert routes.is_timed is may_time
