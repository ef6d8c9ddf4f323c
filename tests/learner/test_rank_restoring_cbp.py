"""Rank-restoring continual backprop: the fresh units of a step, by the moments of all steps before it."""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from learning import assert_equal_states, batches, before_mechanism, start, state_of
from test_input_moments import heard_by_hand
from torch import Tensor, nn

from plans import make_plan
from plastiscope.data.samples import Batch
from plastiscope.error import ConfigError
from plastiscope.experiment import run
from plastiscope.learner.continual_backprop import ContinualBackprop
from plastiscope.learner.learner import Reset
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.rank_restoring_cbp import (
    ActivationEnergy,
    Centre,
    RankRestoringCbp,
    RankRestoringCbpLearner,
    Scale,
    energy_of,
)
from plastiscope.learner.replacement import Init
from plastiscope.learner.trainee import Trainee
from plastiscope.learner.unit_parameters import ByIndex, Part, ResidualMode
from plastiscope.learner.unit_statistics import UtilityType
from plastiscope.net.activation import Activation
from plastiscope.net.convnet import ConvNet
from plastiscope.net.mlp import Mlp, Norm
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.stacked import stack
from plastiscope.net.vit import Vit
from tasks import make_task

QUICK = {"replacement_rate": 0.08, "maturity_threshold": 2, "second_moment_decay": 0.8, "lr": 0.02}


class WithoutBias:
    """A foreign network: batch norm has the constants."""

    def make(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        hidden = nn.Linear(shape[0], 4, bias=False)
        return nn.Sequential(hidden, nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, outputs))


NETS = {
    "without bias": (WithoutBias(), (5,)),
    "mlp": (Mlp(widths=[4, 3]), (5,)),
    "wide": (Mlp(widths=[14, 9]), (5,)),
    "batch norm": (Mlp(widths=[4, 3], norm=Norm.batch), (5,)),
    "crelu": (Mlp(widths=[4, 3], activation=Activation.crelu), (5,)),
    "convnet": (ConvNet(channels=[4, 5], kernel_sizes=[3, 2], widths=[6]), (2, 13, 13)),
    "resnet18": (ResNet18(width=4), (3, 8, 8)),
    "vit": (Vit(depth=1, width=8, heads=2, hidden=5, patch=4), (1, 8, 8)),
}


@dataclass
class Seen:
    """A replacement in one layer: `before` and `after` are its weights [units, d], `rows` what it read in the step.

    `metric` is S with the ridge, of all steps up to this one; `heard` marks inputs that were not replaced with it.
    """

    part: Part
    ids: list[int]
    rows: Tensor
    moment: Tensor
    before: Tensor
    after: Tensor
    heard: Tensor = field(default_factory=lambda: torch.ones(()))

    @property
    def metric(self) -> Tensor:
        moment = self.moment * self.heard * self.heard.unsqueeze(-1)
        return moment + max(1e-4, 2e-6 * moment.trace().item()) * torch.eye(len(moment), dtype=moment.dtype)

    @property
    def kept(self) -> Tensor:
        staying = [i for i in range(len(self.after)) if i not in self.ids]
        return self.after[staying]


def follow(learner: RankRestoringCbpLearner, given: list[Batch]) -> Iterator[Seen]:
    """Step, and look at each layer with a replacement."""
    moments: dict[str, Tensor] = {}
    correction, decay, every = 0.0, learner.config.second_moment_decay, learner.config.second_moment_every
    set_of = {part: units.name for units in learner.sets for part in units.parts}
    for step, batch in enumerate(given):
        heard = heard_by_hand(learner.net, batch.inputs)
        generations = {name: value.clone() for name, value in learner.generations.items()}
        updated: dict[str, Tensor] = {}
        before_mechanism(learner, lambda updated=updated: updated.update(state_of(learner.net)))
        learner.step(batch)
        del learner.mechanism
        if step % every == 0:
            correction = decay * correction + 1 - decay
        chosen = {name: (value != generations[name]).nonzero().flatten() for name, value in learner.generations.items()}
        for part in learner.parts:
            name, ids = part.weights[0].name, chosen[set_of[part]]
            if step % every == 0:
                now = heard[name].mT @ heard[name] / len(heard[name])
                moments[name] = decay * moments.get(name, 0.0) + (1 - decay) * now
            if not len(ids):
                continue
            silent = torch.ones_like(part.weights[0].tensor.detach())
            for other in learner.parts:
                for consumer in other.consumers:
                    if consumer.weight.name == name:
                        ByIndex(chosen[set_of[other]]).put(consumer.weight.view(silent), 0.0)
            yield Seen(
                part=part,
                ids=ids.tolist(),
                rows=heard[name],
                moment=moments[name] / correction,
                before=updated[name].flatten(1),
                after=part.weights[0].tensor.detach().flatten(1).clone(),
                heard=silent.flatten(1)[0],
            )


CONFIGS = {
    "unit": RankRestoringCbp(**QUICK),
    "every third step": RankRestoringCbp(second_moment_every=3, **QUICK),
    "adam": RankRestoringCbp(optimizer=Optimizer.adam, **QUICK),
    "many at once": RankRestoringCbp(**{**QUICK, "replacement_rate": 0.4}),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("net", ["mlp", "batch norm", "without bias", "crelu", "convnet", "resnet18", "vit"])
def test_fresh_units_are_orthogonal_to_the_others_of_length_1_and_centred(net, config):
    kind, shape = NETS[net]
    learner, looked = start(config, kind, shape), 0
    sizes = [9] * 12 if NETS[net][1] == (5,) else [4] * (8 if net == "resnet18" else 12)
    for seen in follow(learner, batches(shape, sizes)):
        fresh = seen.after[seen.ids]
        lengths = ((fresh @ seen.metric) * fresh).sum(-1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-8)
        if not learner.fresh.saturated[seen.part.weights[0].name]:
            products = fresh @ seen.metric @ torch.cat([seen.kept, fresh]).mT
            wanted = torch.cat([torch.zeros(len(fresh), len(seen.kept)), torch.eye(len(fresh))], 1).double()
            assert (products - wanted).abs().max() < 1e-6
            looked += 1
        biases = [own.tensor.detach()[seen.ids] for own in seen.part.incoming if own.is_bias]
        means = [own.tensor[seen.ids] for own, _ in seen.part.norm if own.name.endswith("running_mean")]
        shift = biases[0] if biases else -means[0]
        assert (seen.rows.mean(0) @ fresh.mT + shift).abs().max() < 1e-10
        assert not any(consumer.weight.view()[seen.ids].any() for consumer in seen.part.consumers)
    assert looked > (net != "without bias")


@pytest.mark.parametrize("net", ["mlp", "wide", "convnet"])
def test_a_replacement_does_not_lower_the_rank_of_pre_activations(net):
    """Numerical rank of W S W^T; the wide layers have more units than inputs, so all directions are taken."""
    learner, raised = start(RankRestoringCbp(**{**QUICK, "lr": 0.0}), *NETS[net]), 0
    with torch.no_grad():
        for part in learner.parts:
            weight = part.weights[0].tensor
            weight[1:].copy_(weight[:1] + 1e-9)
    for seen in follow(learner, batches(NETS[net][1], [9] * 12)):
        ranks = []
        for weights in (seen.before * seen.heard, seen.after):
            values = torch.linalg.eigvalsh(weights @ seen.metric @ weights.mT)
            ranks.append(int((values > 1e-9 * values[-1]).sum()))
        assert ranks[1] >= min(ranks[0], len(seen.moment))
        raised += ranks[1] > ranks[0]
    assert raised


def test_units_without_a_direction_are_counted_by_layer_and_start_anew_with_the_task():
    """Five inputs and fourteen units: the thirteen that stay leave nothing."""
    learner = start(RankRestoringCbp(**QUICK), *NETS["wide"])
    for batch in batches((5,), [9] * 8):
        learner.step(batch)
    numbers = learner.numbers()
    assert numbers["linear_1/saturated"] == numbers["linear_1/replaced"] > 0
    assert numbers["total/saturated"] == numbers["linear_1/saturated"] + numbers["linear_2/saturated"]
    assert all(torch.isfinite(parameter).all() for parameter in learner.parameters)
    learner.end_task()
    assert learner.numbers()["total/saturated"] == 0


@pytest.mark.parametrize("activation", [Activation.relu, Activation.tanh, Activation.prelu])
def test_energies_are_the_share_of_what_the_layer_lacks(activation):
    config = RankRestoringCbp(scale=Scale.energy, **QUICK)
    learner, looked = start(config, Mlp(widths=[4, 3], activation=activation), (5,)), 0
    own = {Activation.relu: 0.5, Activation.tanh: 0.3942944, Activation.prelu: (1 + 0.25**2) / 2}[activation]
    for seen in follow(learner, batches((5,), [9] * 12)):
        fresh, metric = seen.after[seen.ids], seen.metric
        target = (metric.trace() / len(metric)).item() / own
        left = max(0.0, len(seen.after) * target - ((seen.kept @ metric) * seen.kept).sum().item())
        for i, vector in enumerate(fresh):
            given = min(target, left / (len(fresh) - i))
            left -= given
            assert (vector @ metric @ vector).item() == pytest.approx(given, rel=1e-6)
            looked += 1
    assert looked > 3 and not learner.numbers()["total/saturated"]


def test_activation_energies():
    exact, published = ActivationEnergy.exact, ActivationEnergy.as_published
    assert energy_of("", exact) == 1.0
    assert energy_of("crelu", exact) == pytest.approx(0.5, abs=1e-9)
    assert [energy_of(name, published) for name in ("gelu", "selu", "silu", "sigmoid", "tanh")] == [0.5, 0.5, 0.5, 1, 1]
    assert energy_of("leaky_relu", published) == energy_of("leaky_relu", exact) == pytest.approx(0.50005, abs=1e-9)
    assert energy_of("selu", exact) == pytest.approx(1.0, abs=1e-6)
    assert energy_of("sigmoid", exact) == pytest.approx(0.2933790, abs=1e-6)
    with pytest.raises(ConfigError, match="does not know the activation 'swoosh'"):
        energy_of("swoosh", exact)


def test_the_median_of_the_pre_activations_is_zero_on_request():
    learner, looked = start(RankRestoringCbp(centre=Centre.median, **QUICK), *NETS["mlp"]), 0
    for seen in follow(learner, batches((5,), [9] * 12)):
        z = seen.rows @ seen.after[seen.ids].mT + seen.part.incoming[1].tensor.detach()[seen.ids]
        assert z.median(0).values.abs().max() < 1e-12 and z.mean(0).abs().max() > 1e-3
        looked += 1
    assert looked > 3


@pytest.mark.parametrize("net", ["mlp", "crelu", "convnet"])
def test_a_micro_seed_is_noise_of_mean_zero_and_of_the_given_length(net):
    learner, looked = start(RankRestoringCbp(micro_seed=1e-4, **QUICK), *NETS[net]), 0
    for seen in follow(learner, batches(NETS[net][1], [6] * 12)):
        for consumer in seen.part.consumers:
            for outgoing in consumer.weight.view()[seen.ids].flatten(1):
                assert torch.linalg.vector_norm(outgoing).item() == pytest.approx(1e-4, rel=1e-6)
                assert abs(outgoing.mean().item()) < 1e-10
                looked += 1
    assert looked > 3


def test_choice_and_number_are_those_of_continual_backprop_and_fractions_are_carried():
    """Rate .075 and ten mature units: .75 a step, six in eight steps."""
    own = {"replacement_rate": 0.075, "maturity_threshold": 0, "util_type": UtilityType.random, "lr": 0.0}
    learners = [start(kind(**own), Mlp(widths=[10]), (5,)) for kind in (RankRestoringCbp, ContinualBackprop)]
    for batch in batches((5,), [6] * 9):
        for learner in learners:
            learner.step(batch)
    assert torch.equal(*(learner.generations["linear_1"] for learner in learners))
    assert learners[0].replaced["linear_1"] == 6


def test_constant_units_are_replaced_without_a_change_of_the_output():
    """What a fresh unit's bias adds reaches nothing, and what the old one gave is taken over."""
    config = RankRestoringCbp(replacement_rate=0.125, maturity_threshold=3, lr=0.0)
    learner = start(config, Mlp(widths=[8, 8]), (5,))
    x = torch.rand(1, 5, dtype=torch.float64).expand(4, 5)
    before = learner.net(x).detach()
    for _ in range(4):
        learner.step(Batch(x, torch.zeros(4, dtype=torch.int64), torch.arange(4)))
    assert learner.replaced == {"linear_1": 1, "linear_2": 1}
    torch.testing.assert_close(learner.net(x), before, rtol=0, atol=1e-10)


def fresh_rows(*replacements: list[int]) -> Tensor:
    """The weights of a layer of zeros after its units were replaced, on the same inputs; of one unit at a time."""
    learner = start(RankRestoringCbp(orthonormalise_batch=False), Mlp(widths=[4]), (5,))
    weight = learner.net.linear_1.weight
    with torch.no_grad(), learner.moments:
        learner.net(torch.randn(50, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
        learner.moments.update()
        for ids in replacements:
            weight.zero_()
            learner.replace([(learner.sets[0], ByIndex(torch.tensor(ids)))])
    return weight.detach().clone()


def test_draws_depend_on_the_unit_and_how_often_it_was_replaced_and_on_no_other():
    """With nothing kept but zeros a fresh vector is its draw, scaled."""
    alone, beside, again = fresh_rows([2]), fresh_rows([0, 2]), fresh_rows([2], [2])
    torch.testing.assert_close(alone[2], beside[2], rtol=1e-12, atol=1e-14)
    for other in (beside[0], again[2]):
        assert torch.cosine_similarity(alone[2], other, dim=0).abs() < 0.95


# Normalisation, evaluation, resets.


def test_batch_norm_hears_each_batch_once_and_what_no_fresh_unit_touches_stays():
    config = RankRestoringCbp(**{**QUICK, "lr": 0.0})
    learner = start(config, *NETS["batch norm"])
    plain = start(ContinualBackprop(lr=0.0, replacement_rate=0.0), *NETS["batch norm"])
    for batch in batches((5,), [9] * 6):
        learner.step(batch)
        plain.step(batch)
    norms = [path for path, module in plain.net.named_modules() if isinstance(module, nn.BatchNorm1d)]
    first = norms[0]
    for path in norms:
        assert learner.net.get_submodule(path).num_batches_tracked == 6
    kept = learner.generations["linear_1"] == 0
    assert kept.any() and not kept.all()
    for name in ("running_mean", "running_var"):
        one, other = (getattr(one.net.get_submodule(first), name) for one in (learner, plain))
        assert torch.equal(one[kept], other[kept])


def test_evaluation_leaves_no_trace():
    one, other = (start(RankRestoringCbp(**QUICK), *NETS["convnet"]) for _ in range(2))
    for batch in batches((2, 13, 13), [6] * 8):
        one.step(batch)
        other.step(batch)
        with torch.no_grad():
            other.net(batch.inputs + 1.0)
    assert_equal_states(one.state_dict(), other.state_dict())


def test_a_network_that_is_reset_has_seen_nothing():
    learner = start(RankRestoringCbp(reset=Reset.network, **QUICK), *NETS["mlp"])
    for batch in batches((5,), [9] * 4):
        learner.step(batch)
    learner.begin_task(make_task(3, index=1))
    assert not learner.moments.corrected("linear_1.weight").any()


def test_a_second_moment_that_is_not_finite_is_told_by_run():
    learner = start(RankRestoringCbp(**QUICK), *NETS["mlp"])
    (batch,) = batches((5,), [70])
    batch.inputs[0, 0] = float("nan")
    learner.step(batch)
    found = learner.must_be_finite()
    assert not torch.isfinite(found["second moment of a layer's inputs"]).all()
    assert torch.isfinite(found["utility of a replaced unit"]).all()


# State, several runs, gradients by hand.


@pytest.mark.parametrize(("net", "size"), [("mlp", 1), ("mlp", 9), ("wide", 70), ("convnet", 6)])
def test_it_goes_on_from_its_state_bit_for_bit(net, size):
    config = RankRestoringCbp(micro_seed=1e-4, **QUICK)
    kind, shape = NETS[net]
    given = batches(shape, [size] * 14, dtype=torch.float32)
    whole, half, again = (start(config, kind, shape, dtype=torch.float32) for _ in range(3))
    for batch in given:
        whole.step(batch)
    for batch in given[:9]:
        half.step(batch)
    again.net.load_state_dict(half.net.state_dict())
    again.load_state_dict(copy.deepcopy(half.state_dict()))
    for batch in given[9:]:
        again.step(batch)
    assert_equal_states(whole.state_dict(), again.state_dict())
    assert_equal_states(dict(whole.net.state_dict()), dict(again.net.state_dict()))
    assert whole.numbers()["total/replaced"] > 0


SEEDS = [0, 3, 8]


@pytest.mark.parametrize(
    "config",
    [
        *CONFIGS.values(),
        RankRestoringCbp(scale=Scale.energy, by_coverage=True, micro_seed=1e-3, **QUICK),
        RankRestoringCbp(diagonal=True, centre=Centre.median, **QUICK),
    ],
    ids=[*CONFIGS, "energy", "diagonal"],
)
@pytest.mark.parametrize("net", ["mlp", "wide", "batch norm", "convnet"])
def test_each_of_several_runs_is_as_alone(net, config):
    kind, shape = NETS[net]
    singles = []
    for seed in SEEDS:
        learner = start(config, kind, shape)
        with torch.no_grad():
            for parameter in learner.parameters:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                parameter.add_(noise * 0.1)
        singles.append((learner, seed))
    stacked = stack([learner.net for learner, _ in singles])
    singles = [config.make(Trainee(one.net, one.units, one.initial_net, seed)) for one, seed in singles]
    together = config.make(Trainee(stacked, singles[0].units, singles[0].initial_net, SEEDS, lead=1))
    for learner in (together, *singles):
        learner.take_up(make_task(3))
        learner.begin_epoch(0)
        learner.net.train()
    steps = 14 if net in ("mlp", "wide") else 8
    for given in zip(*(batches(shape, [6] * steps, seed=seed) for seed in SEEDS), strict=True):
        joined = Batch(*(torch.stack([getattr(one, name) for one in given]) for name in ("inputs", "targets", "ids")))
        together.step(joined)
        for learner, batch in zip(singles, given, strict=True):
            learner.step(batch)
    for r, learner in enumerate(singles):
        assert learner.numbers()["total/replaced"] > 0
        assert learner.numbers_of(0) == together.numbers_of(r)
        for name, value in learner.net.state_dict().items():
            torch.testing.assert_close(together.net.state_dict()[name][r], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [1, 9])
def test_without_autograd_it_is_the_same(size):
    one, other = (start(RankRestoringCbp(autograd=autograd, **QUICK), *NETS["mlp"]) for autograd in (True, False))
    for batch in batches((5,), [size] * 14):
        one.step(batch)
        other.step(batch)
    assert one.numbers() == other.numbers() and one.numbers()["total/replaced"] > 0
    for name, value in one.net.state_dict().items():
        torch.testing.assert_close(other.net.state_dict()[name], value, rtol=1e-8, atol=1e-10)


# Settings and whole runs.


@pytest.mark.parametrize(
    "wrong",
    [
        {"second_moment_decay": 1.0},
        {"second_moment_every": 0},
        {"ridge": 0.0},
        {"micro_seed": -1.0},
        {"saturated_share": 0.0},
        {"init": Init.lecun},
        {"replacement_rate": 2.0},
    ],
)
def test_ranges(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RankRestoringCbp(**wrong)


def test_units_with_a_shortcut_of_their_own_are_refused():
    with pytest.raises(ConfigError, match=r"layer2\.0\.conv2 cannot .*: two layers of weights make its units"):
        start(RankRestoringCbp(residual_mode=ResidualMode.group), *NETS["resnet18"])
    start(RankRestoringCbp(residual_mode=ResidualMode.legacy), *NETS["resnet18"])


SMALL = (
    *("data.samples_per_class=20", "data.test_samples_per_class=5", "batch_size=8", "selection=last", "analysis=[]"),
    *("net.widths=[16,12]", "num_tasks=2", "epochs=2", "threads=1"),
)
LEARNERS = {
    "rank_restoring_cbp": ("learner.replacement_rate=0.02", "learner.maturity_threshold=4"),
    "upgd": (),
    "spectral_regularization": (),
}


@pytest.mark.parametrize("learner", LEARNERS)
def test_what_it_did_is_logged_at_the_ends_of_tasks(learner, tmp_path):
    run(make_plan(*SMALL, f"learner={learner}", *LEARNERS[learner]), tmp_path / "run")
    ends = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = {key for row in ends if row["kind"] == "task_end" for key in row if key.startswith("learner/")}
    wanted = {
        "rank_restoring_cbp": {"learner/linear_1/saturated", "learner/total/replaced"},
        "upgd": set(),
        "spectral_regularization": {"learner/linear_1/largest_singular_value"},
    }
    assert wanted[learner] <= logged


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize(
    "net",
    [
        ("net=convnet", "data.resize=32", "net.channels=[4,4,4]", "net.widths=[6]"),
        ("net=resnet18", "net.width=4"),
        ("net=vit", "net.depth=1", "net.width=8", "net.heads=2", "net.hidden=6", "net.patch=4"),
    ],
    ids=["convnet", "resnet18", "vit"],
)
def test_whole_runs(learner, net, tmp_path):
    own = ("learner.replacement_rate=0.1", "learner.maturity_threshold=2") if "rank" in learner else ()
    plan = make_plan(
        *(f"learner={learner}", "learner.lr=0.001", *own, *net, "num_tasks=1", "epochs=1", "batch_size=8"),
        *("data.samples_per_class=16", "data.test_samples_per_class=5", "threads=1", "analysis=[]"),
    )
    run(plan, tmp_path / "run")
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["task_test_loss"] < 10
    assert "rank" not in learner or row["learner/total/replaced"] > 0
