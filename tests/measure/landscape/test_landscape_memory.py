"""What is kept is counted, what does not fit is not kept, and every look goes on with less."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from landscape_cases import DOUBLE, DenseOperator, exact_hessian, fixture_f, frozen_loss, matrix_of, with_spectrum
from torch import nn

from plastiscope.error import RunError
from plastiscope.measure.landscape import memory
from plastiscope.measure.landscape.eigenpairs import extreme_eigenpairs
from plastiscope.measure.landscape.krylov import krylov
from plastiscope.measure.landscape.memory import _of_group, budget, free_memory, graph_bytes, is_out_of_memory
from plastiscope.measure.landscape.operator import Backend, HessianOperator
from plastiscope.measure.landscape.timing import time_candidates, time_forward
from plastiscope.measure.loss import Loss

CPU = torch.device("cpu")


def test_a_graphs_bytes_are_what_it_saves() -> None:
    """Tanh saves its output, sin its input, which is apart; a view of what is saved is counted once."""
    x = torch.ones(100, dtype=DOUBLE, requires_grad=True)
    assert graph_bytes(lambda: [torch.sin(x)], [x]) == 800
    assert graph_bytes(lambda: [torch.tanh(x)], [x]) == 800
    assert graph_bytes(lambda: [torch.sin(torch.tanh(x)[:50].exp()).sum()], [x]) == 800 + 400 + 8


class Crowded(nn.Linear):
    """A layer that runs out of memory above some samples, as a CPU says it."""

    most = 8

    def forward(self, inputs):
        if len(inputs) > self.most:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
            )
        return super().forward(inputs)


def crowded(**options):
    torch.manual_seed(0)
    net = Crowded(4, 3).double()
    return frozen_loss(net, torch.randn(20, 4, dtype=DOUBLE), torch.randint(0, 3, (20,)), 3, **options)


LOOKS = {
    "losses": lambda frozen: frozen.losses(),
    "value": lambda frozen: frozen.value(),
    "gradient": lambda frozen: frozen.gradient(),
    "measure": lambda frozen: torch.tensor([frozen.measure().loss, frozen.measure().accuracy], dtype=DOUBLE),
    "product": lambda frozen: HessianOperator(frozen)(torch.ones(15, dtype=DOUBLE)),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_every_look_goes_on_with_half_the_batch(look) -> None:
    frozen, roomy = crowded(), crowded()
    roomy.net.most = 20
    assert (look(frozen) - look(roomy)).abs().max() <= 1e-15
    notes = ["out of memory: micro-batches of 20 became 10", "out of memory: micro-batches of 10 became 5"]
    assert frozen.adaptation.notes == notes
    copy = frozen.with_micro_batch(16)
    assert copy.batch_size == 5 and frozen.without_influence() == ()
    look(copy)
    assert copy.adaptation.notes == notes, "what was learned about the room holds for every copy"
    frozen.net.most = 0
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        look(frozen)
    assert frozen.batch_size == 1


def test_other_errors_are_not_about_memory() -> None:
    frozen = crowded(loss=Loss.mse)
    frozen.net.most = 20
    with pytest.raises(RuntimeError, match="shape"):
        frozen.value()
    assert not frozen.adaptation.notes
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))


def test_sizes_that_do_not_fit_are_timed_as_what_fits() -> None:
    frozen = crowded()
    assert set(time_forward(frozen, [4, 8, 20])) == {4, 8, 5}
    assert frozen.batch_size == 20 and not frozen.adaptation.notes


@pytest.mark.parametrize("backend", [Backend.retained, Backend.linearised])
def test_graphs_are_kept_while_they_fit(backend: Backend) -> None:
    frozen = fixture_f(micro_batch=60)
    apart = (*frozen.net.parameters(), frozen.inputs, frozen.targets)

    def graphs() -> list[torch.Tensor]:
        frozen.net.requires_grad_()
        found = [torch.autograd.grad(frozen.sum_of(x, y), frozen.parameters, create_graph=True) for x, y in batches]
        frozen.net.requires_grad_(False)
        return [tensor for part in found for tensor in part]

    batches = list(frozen.batches())[:1]
    needed = graph_bytes(graphs, apart) / 60 * 64
    roomy = HessianOperator(frozen, backend, memory=int(1.03 * needed))
    tight = HessianOperator(fixture_f(micro_batch=60), backend, memory=int(0.97 * needed))
    for operator in (roomy, tight):
        assert (matrix_of(operator) - exact_hessian(frozen)).abs().max() <= 1e-13
    assert roomy.backend is backend and not roomy.notes
    assert tight.backend is Backend.rebuilt
    assert len(tight.notes) == 1 and f"{backend.value} became rebuilt" in tight.notes[0]


def test_a_basis_beyond_memory_is_restarted() -> None:
    operator = DenseOperator(exact_hessian(fixture_f()))
    whole = extreme_eigenpairs(operator, 5, 2, seed=0, tol=1e-8, max_steps=1000)
    assert whole.notes == ()
    found = extreme_eigenpairs(operator, 5, 2, seed=0, tol=1e-8, max_steps=1000, memory=20 * 115 * 8 + 100)
    assert found.steps > 20 and found.converged.all()
    assert found.values.tolist() == pytest.approx(whole.values.tolist(), abs=1e-8)
    assert len(found.notes) == 1 and "20 vectors" in found.notes[0]
    least = extreme_eigenpairs(operator, 5, 2, seed=0, max_steps=30, memory=0)
    assert "11 vectors" in least.notes[0]


def test_a_density_beyond_memory_is_refused() -> None:
    operator = DenseOperator(with_spectrum(torch.linspace(0, 1, 50, dtype=DOUBLE)))
    start = torch.ones(50, dtype=DOUBLE)
    assert krylov(operator, start, 10, memory=10 * 50 * 8).size == 10
    with pytest.raises(RunError, match=r"10 Lanczos vectors.*at most 9 steps"):
        krylov(operator, start, 10, memory=10 * 50 * 8 - 1)


def test_processes_that_share_memory_take_equal_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one process may keep, one of a hundred may not: in a look, and where candidates are timed."""
    frozen = fixture_f(micro_batch=64)
    needed = graph_bytes(lambda: HessianOperator(frozen)._field(frozen.inputs, frozen.targets), frozen.parameters)
    monkeypatch.setattr(memory, "free_memory", lambda device: 20 * needed)
    assert budget(CPU) == 10 * needed
    assert budget(CPU, sharing=3) == 10 * needed // 3
    for sharing, route in ((1, Backend.retained), (100, Backend.rebuilt)):
        operator = HessianOperator(replace(frozen, sharing=sharing), Backend.retained)
        operator(torch.ones(115, dtype=DOUBLE))
        assert operator.backend is route
        (timing,) = time_candidates(operator.frozen, 2, [Backend.retained], [64])
        assert bool(timing.reason) is (sharing > 1), timing


def test_free_memory_and_limits_of_control_groups(tmp_path: Path) -> None:
    assert 0 < budget(CPU) < free_memory(CPU) < 2**50
    assert budget(CPU, 7) == 7
    assert _of_group(tmp_path) == 2**62
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("1000\n")
    (tmp_path / "memory/memory.usage_in_bytes").write_text("400\n")
    assert _of_group(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("100\n")
    assert _of_group(tmp_path) == 600
    (tmp_path / "memory.max").write_text("90\n")
    assert _of_group(tmp_path) == 0
