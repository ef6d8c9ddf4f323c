"""The network in a step: mixed precision leaves weights and analyses alone; what cannot be compiled runs as it is."""

import pytest
import torch
from learning import batches, start
from torch import nn

from plans import make_plan
from plastiscope.error import ConfigError
from plastiscope.experiment import run
from plastiscope.learner.backprop import Backprop
from plastiscope.learner.training_forward import Compile, Precision, TrainingForward, products_in
from plastiscope.make import load_tasks, make_net
from plastiscope.net.mlp import Mlp
from plastiscope.run.log import read_rows
from plastiscope.task_shift_mode.task import evaluate

TINY = ("num_tasks=1", "epochs=2", "threads=1", "analysis=[]", "data.samples_per_class=10", "selection=last")

torchs_own = pytest.mark.filterwarnings("ignore::DeprecationWarning")
"""torch's compiler warns of torch's own old parts."""


def one_step(precision: Precision) -> nn.Module:
    learner = start(Backprop(momentum=0.0), Mlp(widths=[16]), (5,), dtype=torch.float32)
    learner.through = TrainingForward(learner.net, precision, Compile.none)
    losses, outputs = learner.step(batches((5,), [8], dtype=torch.float32)[0])
    assert losses.dtype == outputs.dtype == torch.float32
    return learner.net


def test_mixed_precision_rounds_products_and_keeps_weights():
    """Gradients have bfloat16's 8 bits; the weights, updated in float32, differ by a part of a step only."""
    exact, mixed = one_step(Precision.float32), one_step(Precision.bfloat16)
    for one, other in zip(exact.parameters(), mixed.parameters(), strict=True):
        assert other.dtype == torch.float32
        assert other.grad.dtype == torch.float32
        torch.testing.assert_close(one.grad, other.grad, rtol=0.05, atol=0.01)
    differences = [
        (one.grad - other.grad).abs().max() for one, other in zip(exact.parameters(), mixed.parameters(), strict=True)
    ]
    assert max(differences) > 1e-5


def test_a_run_in_mixed_precision_is_evaluated_in_float32(tmp_path):
    plan = make_plan(*TINY, "precision=bfloat16")
    run(plan, tmp_path / "run")
    run(make_plan(*TINY), tmp_path / "exact")
    data, shift = load_tasks(plan, torch.device("cpu"))
    net, task = make_net(plan, data.input_shape, shift.outputs), shift.task(0)
    net.load_state_dict(torch.load(tmp_path / "run" / "snapshots" / "epoch_000002.pt", weights_only=True))
    row, exact = (read_rows(tmp_path / name / "metrics.jsonl")[-1] for name in ("run", "exact"))
    assert row["task_test_loss"] == evaluate(net.eval(), task, task.test, 2).loss
    assert 0 < abs(row["task_test_loss"] - exact["task_test_loss"]) < 0.05 * exact["task_test_loss"]


@torchs_own
def test_what_cannot_be_compiled_runs_as_it_is(tmp_path, monkeypatch, capsys):
    """Without a C++ compiler torch.compile fails on the first batch: said once, and the numbers are the plain ones."""
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        run(make_plan(*TINY, "compile=default"), tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("compile: this network is not compiled (") == 1
    assert "no-such-compiler" in said
    run(make_plan(*TINY), tmp_path / "plain")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "plain" / "metrics.jsonl").read_bytes()


@pytest.mark.slow
@torchs_own
def test_a_compiled_step_is_the_step():
    torch._dynamo.reset()
    both = []
    for compiled in (Compile.none, Compile.default):
        learner = start(Backprop(), Mlp(widths=[16]), (5,), dtype=torch.float32)
        learner.through = TrainingForward(learner.net, Precision.float32, compiled)
        for batch in batches((5,), [8, 8, 3], dtype=torch.float32):
            learner.step(batch)
        assert compiled is Compile.none or learner.through._call is not learner.net
        both.append(learner.net)
    for one, other in zip(both[0].parameters(), both[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


REFUSED = {
    "features": (("learner=continual_backprop", "compile=default"), "hears the modules"),
    "graphs": (("compile=cuda_graphs",), "has no CUDA graphs"),
    "explicit": (("learner.autograd=false", "precision=bfloat16"), "steps are float32"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused(overrides, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run(make_plan(*TINY, *overrides), tmp_path / "run")


def test_products_are_exact_unless_asked_and_as_before_afterwards():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for precision, expected in ((Precision.float32, ("highest", False)), (Precision.tf32, ("high", True))):
        with products_in(precision):
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == expected
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
