"""Products with the Hessian against closed forms, brute force, and each other."""

import math

import numpy as np
import pytest
import torch
from landscape_cases import (
    DOUBLE,
    NETS,
    TOP,
    exact_hessian,
    fixture_f,
    frozen_loss,
    linear_regression,
    loss_of_weights,
    matrix_of,
    mean_loss,
    net_case,
    quadratic_case,
    softmax_regression,
    state_of,
)
from scipy.sparse.linalg import eigsh
from torch import nn

from plastiscope.error import ConfigError
from plastiscope.measure.landscape.differences import curvature_along
from plastiscope.measure.landscape.eigenpairs import extreme_eigenpairs
from plastiscope.measure.landscape.operator import (
    Backend,
    GaussNewtonOperator,
    HessianOperator,
    NonFiniteProduct,
    self_check,
)
from plastiscope.measure.landscape.preserved import landscape_of
from plastiscope.measure.landscape.space import choose
from plastiscope.measure.loss import Loss

backends = pytest.mark.parametrize("backend", Backend, ids=lambda backend: backend.value)


@backends
def test_quadratic(backend: Backend) -> None:
    frozen, matrix, slope = quadratic_case()
    vectors = torch.randn(3, len(slope), dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    expected = vectors @ matrix
    for micro_batch in (1, 2):
        found = HessianOperator(frozen.with_micro_batch(micro_batch), backend).products(vectors)
        assert ((found - expected).norm(dim=1) <= 1e-14 * expected.norm(dim=1)).all()


@backends
def test_fixture_f_is_its_exact_hessian(backend: Backend) -> None:
    for micro_batch in (64, 60):  # the whole set; 60 and 4
        frozen = fixture_f(micro_batch=micro_batch)
        found = matrix_of(HessianOperator(frozen, backend))
        assert (found - exact_hessian(frozen)).abs().max() <= 1e-13
        assert torch.linalg.eigvalsh(found)[-1].item() == pytest.approx(TOP[0], abs=1e-8)


@backends
def test_small_micro_batches(backend: Backend) -> None:
    rows = [0, 83, 90, 114]
    whole = fixture_f()
    for n, micro_batch in ((16, 7), (3, 1)):
        frozen = frozen_loss(whole.net, whole.inputs[:n], whole.targets[:n], 3, micro_batch=micro_batch)
        found = HessianOperator(frozen, backend).products(torch.eye(115, dtype=DOUBLE)[rows])
        assert (found - exact_hessian(frozen)[rows]).abs().max() <= 1e-13


@backends
def test_fixture_f_in_float32(backend: Backend) -> None:
    exact = exact_hessian(fixture_f())
    for micro_batch in (64, 60):
        found = matrix_of(HessianOperator(fixture_f(torch.float32, micro_batch=micro_batch), backend))
        assert found.dtype == torch.float32
        assert (found.double() - exact).norm() <= 5e-6 * exact.norm()


@backends
@pytest.mark.parametrize("make", [linear_regression, softmax_regression])
def test_linear_nets_in_closed_form(backend: Backend, make) -> None:
    frozen, hessian = make()
    for micro_batch in (11, 4):
        found = matrix_of(HessianOperator(frozen.with_micro_batch(micro_batch), backend))
        assert (found - hessian).abs().max() <= 1e-12


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of its dependencies, and of forward mode
@pytest.mark.parametrize("micro_batch", [64, 60])
def test_curvlinops_gives_the_same_matrix(micro_batch: int) -> None:
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is not installed: the extra test-oracles")
    frozen = fixture_f(micro_batch=micro_batch)
    data, parameters = list(frozen.batches()), list(frozen.net.parameters())
    oracle = curvlinops.HessianLinearOperator(frozen.net, nn.CrossEntropyLoss(), parameters, data)
    found = matrix_of(HessianOperator(frozen))
    assert (oracle @ torch.eye(len(found), dtype=DOUBLE) - found).abs().max() <= 1e-12
    pairs = extreme_eigenpairs(HessianOperator(frozen), 3, 2, seed=0, tol=1e-9, max_steps=115)
    scipy_operator = oracle.to_scipy()
    for end, values in (("LA", pairs.top.flip(0)), ("SA", pairs.bottom)):
        expected = eigsh(scipy_operator, k=len(values), which=end, return_eigenvectors=False, v0=np.ones(115))
        assert sorted(expected) == pytest.approx(values.tolist(), abs=1e-8)


@backends
@pytest.mark.parametrize("case", NETS.values(), ids=NETS)
def test_networks_of_the_package(backend: Backend, case) -> None:
    """Batch norm, dropout, convolutions and attention, in evaluation mode, with outputs that are not active."""
    if backend is Backend.linearised and case in (NETS["resnet18"], NETS["vit"]):
        pytest.skip(
            "tracing takes many seconds; the parts of these networks are in the others and in torch's attention"
        )
    frozen = net_case(case, 5, micro_batch=3)
    weights = frozen.space.values(frozen.net)
    vectors = torch.stack([frozen.space.normals(0, "test", k).double() for k in range(2)])
    found = HessianOperator(frozen, backend).products(vectors)
    for vector, product in zip(vectors, found, strict=True):
        expected = torch.autograd.functional.vhp(mean_loss(frozen), weights, vector)[1]
        assert (product - expected).norm() <= 1e-11 * expected.norm()


@backends
def test_channels_last(backend: Backend) -> None:
    """The same numbers whatever the order in memory; inputs are put into that of the convolutions."""
    net, inputs, targets = NETS["convnet"].make(4)
    expected = HessianOperator(net_case(NETS["convnet"], 4))
    vector = expected.space.normals(0, "test", 0).double()
    options = {"loss": Loss.cross_entropy, "active_outputs": 4, "micro_batch": 4}
    with landscape_of(net.to(memory_format=torch.channels_last), inputs, targets, **options) as frozen:
        assert frozen.inputs.is_contiguous(memory_format=torch.channels_last) and inputs.is_contiguous()
        found = HessianOperator(frozen, backend)(vector)
    assert (found - expected(vector)).norm() <= 1e-12 * found.norm()


@backends
def test_torchs_attention_module(backend: Backend) -> None:
    """Fused attention has no forward mode; the fast path of evaluation has no derivative."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dtype=DOUBLE)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(18, 3, dtype=DOUBLE)).eval().requires_grad_(False)
    frozen = frozen_loss(net, torch.randn(5, 3, 6, dtype=DOUBLE), torch.randint(0, 3, (5,)), 3, micro_batch=3)
    reference = HessianOperator(frozen)
    vector = frozen.space.normals(0, "test", 0).double()
    found = HessianOperator(frozen, backend)(vector)
    assert (found - reference(vector)).norm() <= 1e-12 * found.norm()
    step = 1e-5 * vector / vector.norm()
    at, weights = mean_loss(frozen), frozen.space.values(net).requires_grad_()
    ends = [torch.autograd.grad(at(weights + s), weights)[0] for s in (step, -step)]
    assert (found - (ends[0] - ends[1]) / 2e-5 * vector.norm()).norm() <= 1e-6 * found.norm()


@backends
def test_products_are_those_of_the_weights_as_they_are(backend: Backend) -> None:
    frozen = fixture_f(micro_batch=60)
    operator = HessianOperator(frozen, backend)
    operator(frozen.space.values(frozen.net))
    with torch.no_grad():
        frozen.net[0].weight.mul_(2)
    assert (matrix_of(operator) - exact_hessian(frozen)).abs().max() <= 1e-13


@backends
def test_a_subset_of_parameters_is_a_block(backend: Backend) -> None:
    frozen = fixture_f()
    net, whole = frozen.net, exact_hessian(frozen)
    for which, places in (
        ("2", slice(88, 115)),
        ("no_bias_bn", [*range(80), *range(88, 112)]),
        (["0.bias"], slice(80, 88)),
    ):
        part = frozen_loss(net, frozen.inputs, frozen.targets, 3, space=choose(net, which))
        assert (matrix_of(HessianOperator(part, backend)) - whole[places][:, places]).abs().max() <= 1e-13
    with pytest.raises(ConfigError, match="chooses no parameter"):
        choose(net, "conv")


@backends
def test_parameters_without_influence(backend: Backend) -> None:
    """Zeros for an unused layer, and for all where no chosen parameter has any influence."""
    net = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)}).double()
    net.forward = lambda inputs: net["used"](inputs)
    inputs, targets = torch.randn(5, 3, dtype=DOUBLE), torch.randint(0, 2, (5,))
    frozen = frozen_loss(net, inputs, targets, 2)
    assert frozen.without_influence() == ("idle.weight", "idle.bias")
    found = matrix_of(HessianOperator(frozen, backend))
    assert found[8:].abs().max() == found[:, 8:].abs().max() == 0
    assert (found[:8, :8] - exact_hessian(frozen)[:8, :8]).abs().max() <= 1e-13
    idle = frozen_loss(net, inputs, targets, 2, space=choose(net, "idle"))
    assert matrix_of(HessianOperator(idle, backend)).count_nonzero() == 0
    assert idle.gradient().count_nonzero() == 0


@backends
def test_a_linear_loss_has_no_curvature(backend: Backend) -> None:
    frozen = loss_of_weights(lambda t: t.sum(), torch.ones(4, dtype=DOUBLE))
    assert matrix_of(HessianOperator(frozen, backend)).count_nonzero() == 0


@backends
def test_weight_decay_counts_everywhere(backend: Backend) -> None:
    plain, decayed = fixture_f(), fixture_f(weight_decay=0.3)
    weights = plain.space.values(plain.net)
    identity = torch.eye(115, dtype=DOUBLE)
    assert (matrix_of(HessianOperator(decayed, backend)) - exact_hessian(plain) - 0.3 * identity).abs().max() <= 1e-13
    assert (decayed.gradient() - plain.gradient() - 0.3 * weights).abs().max() <= 1e-15
    penalty = 0.15 * weights.square().sum().item()
    assert decayed.value().item() == pytest.approx(plain.value().item() + penalty, rel=1e-14)
    assert decayed.measure().loss == decayed.value().item()


def test_loss_and_gradient_of_fixture_f() -> None:
    frozen = fixture_f(micro_batch=7)
    assert frozen.value().item() == pytest.approx(1.14073752, abs=1e-8)
    assert frozen.gradient().norm().item() == pytest.approx(0.24386741, abs=1e-8)
    outputs = frozen.net(frozen.inputs)
    losses = nn.functional.cross_entropy(outputs, frozen.targets, reduction="none")
    point = frozen.measure()
    assert point.loss == frozen.value().item()
    assert point.standard_error == pytest.approx(losses.std().item() / 8, rel=1e-12)
    assert point.accuracy == (outputs.argmax(1) == frozen.targets).double().mean().item()


def test_symmetry_and_repeatability() -> None:
    found = self_check(HessianOperator(fixture_f(torch.float32), Backend.jvp))
    assert 0 < found.symmetry < 1e-6
    assert found.is_repeatable


class Scaled(HessianOperator):
    def products(self, vectors):
        return 1.01 * super().products(vectors)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_differences_of_the_loss_see_what_is_symmetric_and_wrong(dtype: torch.dtype, decay: float) -> None:
    frozen = fixture_f(dtype, weight_decay=decay)
    before = state_of(frozen.net)
    right, scaled, other = (self_check(kind(frozen)) for kind in (HessianOperator, Scaled, GaussNewtonOperator))
    assert right.difference < (1e-5 if dtype is torch.float32 else 1e-7)
    assert scaled.symmetry < 1e-6 and 3e-3 < scaled.difference < 0.01
    assert other.symmetry < 1e-6 and other.difference > 3e-3
    assert all(torch.equal(value, before[name]) for name, value in state_of(frozen.net).items())


def test_curvature_by_differences_is_that_of_the_hessian() -> None:
    frozen, matrix, _ = quadratic_case()
    unit = matrix[0] / matrix[0].norm()
    assert curvature_along(frozen, unit) == pytest.approx((unit @ matrix @ unit).item(), abs=1e-7)


@pytest.mark.parametrize("kinked", [nn.ReLU(), nn.LeakyReLU(), nn.Hardtanh()], ids=str)
def test_a_loss_with_kinks_has_no_such_curvature(kinked: nn.Module) -> None:
    frozen = frozen_loss(
        nn.Sequential(nn.Linear(4, 6), kinked, nn.Linear(6, 3)).double(),
        torch.randn(8, 4, dtype=DOUBLE),
        torch.randint(0, 3, (8,)),
        3,
    )
    found = self_check(HessianOperator(frozen))
    assert found.symmetry < 1e-9 and math.isnan(found.difference)


def test_a_network_that_changes_is_not_symmetric_or_repeatable() -> None:
    class Wandering(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs * torch.rand(()).double()).square()

    torch.manual_seed(0)
    net = Wandering(4, 3).double()
    frozen = frozen_loss(net, torch.randn(8, 4, dtype=DOUBLE), torch.randint(0, 3, (8,)), 3)
    found = self_check(HessianOperator(frozen))
    assert found.symmetry > 1e-4
    assert not found.is_repeatable


@backends
def test_what_is_not_finite_has_no_spectrum(backend: Backend) -> None:
    frozen = fixture_f()
    with torch.no_grad():
        frozen.net[2].bias[0] = float("nan")
    with pytest.raises(NonFiniteProduct, match="diverged"):
        HessianOperator(frozen, backend).products(torch.ones(1, 115, dtype=DOUBLE))


class Narrow(nn.Linear):
    """A layer that runs out of memory above some samples."""

    most = 8

    def forward(self, inputs):
        if len(inputs) > self.most:
            raise torch.OutOfMemoryError("planted")
        return super().forward(inputs)


@backends
def test_out_of_memory_halves_the_micro_batch_and_says_so(backend: Backend) -> None:
    torch.manual_seed(0)
    net = Narrow(4, 3).double()
    frozen = frozen_loss(net, torch.randn(20, 4, dtype=DOUBLE), torch.randint(0, 3, (20,)), 3)
    operator = HessianOperator(frozen, backend)
    found = matrix_of(operator)
    assert operator.frozen.batch_size == 5
    assert "micro-batches of 20 became 10" in operator.notes[-2]
    assert operator.count == 15
    net.most = 20
    assert (found - exact_hessian(frozen)).abs().max() <= 1e-13
    net.most = 4
    with pytest.raises(torch.OutOfMemoryError):
        HessianOperator(frozen, backend, adapts=False).products(torch.ones(1, 15, dtype=DOUBLE))
    net.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        operator.products(torch.ones(1, 15, dtype=DOUBLE))


def test_kept_graphs_are_let_go_first() -> None:
    class Once(nn.Linear):
        calls = 0

        def forward(self, inputs):
            self.calls += 1
            if self.calls == 2:
                raise torch.OutOfMemoryError("planted")
            return super().forward(inputs)

    net = Once(4, 3).double()
    frozen = frozen_loss(net, torch.randn(20, 4, dtype=DOUBLE), torch.randint(0, 3, (20,)), 3, micro_batch=10)
    operator = HessianOperator(frozen, Backend.retained)
    found = matrix_of(operator)
    assert operator.backend is Backend.rebuilt
    assert operator.notes == ["out of memory: retained became rebuilt"]
    assert operator.frozen.batch_size == 10
    assert (found - exact_hessian(frozen)).abs().max() <= 1e-13


def test_batches_that_couple_their_samples_are_not_cut() -> None:
    net = nn.Sequential(Narrow(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).double()
    frozen = frozen_loss(net, torch.randn(20, 4, dtype=DOUBLE), torch.randint(0, 3, (20,)), 3)
    assert frozen.coupling_modules == ["1"]
    with pytest.raises(torch.OutOfMemoryError):
        HessianOperator(frozen).products(torch.ones(1, frozen.space.dimension, dtype=DOUBLE))


def test_networks_in_training_mode_and_empty_sets_are_refused() -> None:
    frozen = fixture_f()
    frozen.net[1].train()
    with pytest.raises(ConfigError, match=r"training mode .*\(1\)"):
        frozen.with_micro_batch(3)
    frozen.net.eval()
    with pytest.raises(ConfigError, match="0 inputs"):
        frozen_loss(frozen.net, frozen.inputs[:0], frozen.targets[:0], 3)
    with pytest.raises(ConfigError, match="micro_batch=0"):
        frozen.with_micro_batch(0)


def test_the_fingerprint_is_of_inputs_and_targets() -> None:
    frozen = fixture_f()
    assert frozen.fingerprint == fixture_f(micro_batch=3).fingerprint
    other = frozen.targets.clone()
    other[0] = 1 - other[0].clamp_max(1)
    assert frozen_loss(frozen.net, frozen.inputs, other, 3).fingerprint != frozen.fingerprint
    assert frozen_loss(frozen.net, frozen.inputs + 1, frozen.targets, 3).fingerprint != frozen.fingerprint
