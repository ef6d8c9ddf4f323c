"""Norms, distances and effective learning rates against hand-made numbers and networks that have the symmetry."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plastiscope.measure.optimisation import distance, effective_lr, norm, relative_distance, unit_norms

W = torch.tensor([3.0, 4.0])


def step(w: Tensor, gradient: Tensor, **settings: float) -> tuple[Tensor, Tensor]:
    """Weights before and after one step of SGD."""
    parameter = torch.nn.Parameter(w.clone())
    parameter.grad = gradient.clone()
    torch.optim.SGD([parameter], **settings).step()
    return w, parameter.detach()


def test_effective_lr_example() -> None:
    assert effective_lr(0.1, norm([W])).item() == pytest.approx(0.004, rel=1e-15)
    assert effective_lr(0.1, norm([W]), adaptive=True).item() == pytest.approx(0.02, rel=1e-15)


def test_step_example() -> None:
    gradient = torch.tensor([0.6, 0.8])
    before, after = step(W, gradient, lr=0.1)
    assert norm([gradient]).item() == pytest.approx(1, rel=1e-7)
    assert distance([after], [before]).item() == pytest.approx(0.1, rel=1e-6)
    assert relative_distance([after], [before]).item() == pytest.approx(0.02, rel=1e-6)
    before, after = step(W, gradient, lr=0.1, weight_decay=0.5)
    assert distance([after], [before]).item() == pytest.approx(0.35, rel=1e-6)


def test_distance_example() -> None:
    first, now = [torch.tensor([1.0, 0.0])], [torch.tensor([1.0, 2.0])]
    assert distance(now, first) == relative_distance(now, first) == 2


def test_tensors_count_together() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in ((4, 3), (5,), (2, 3, 2, 2))]
    flat = torch.cat([t.flatten() for t in tensors]).double()
    assert norm(tensors).item() == pytest.approx(flat.norm().item(), rel=1e-14)
    others = [t.cos() for t in tensors]
    flat_others = torch.cat([t.flatten() for t in others]).double()
    assert distance(others, tensors).item() == pytest.approx((flat_others - flat).norm().item(), rel=1e-14)
    assert norm([]) == 0
    with pytest.raises(ValueError, match="longer"):
        distance(tensors[:2], tensors)


def test_norms_stay_finite_where_squares_overflow_float32() -> None:
    assert norm([torch.full((4,), 1e30)]).item() == pytest.approx(2 * float(torch.tensor(1e30)), rel=1e-15)


def test_norms_carry_no_gradient() -> None:
    w = W.clone().requires_grad_()
    assert not any(
        t.requires_grad for t in (norm([w]), unit_norms(w[None]), distance([w], [W]), effective_lr(1, norm([w])))
    )


def test_unit_norms() -> None:
    kernels = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    assert unit_norms(kernels).tolist() == pytest.approx([norm([k]).item() for k in kernels], rel=1e-14)


def loss_and_gradient(w: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of a linear layer followed directly by batch normalisation without eps (torch refuses 0)."""
    w = w.clone().requires_grad_()
    hidden = F.batch_norm(inputs @ w.T, None, None, training=True, eps=1e-300)
    loss = F.cross_entropy(hidden, targets)
    loss.backward()
    return loss.detach(), w.grad


def test_scale_invariant_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (20,), generator=generator)
    w = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    loss, gradient = loss_and_gradient(w, inputs, targets)
    assert (w * gradient).sum(1).tolist() == pytest.approx([0, 0, 0], abs=1e-9)

    loss_10, gradient_10 = loss_and_gradient(10 * w, inputs, targets)
    assert loss_10.item() == pytest.approx(loss.item(), rel=1e-12)
    assert norm([gradient_10]).item() == pytest.approx(norm([gradient]).item() / 10, rel=1e-9)
    ratio = effective_lr(0.1, norm([10 * w])) / effective_lr(0.1, norm([w]))
    assert ratio.item() == pytest.approx(0.01, rel=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
def test_effective_lr_is_how_fast_the_direction_moves(adaptive: bool) -> None:
    """Scaling w by c and lr so that the effective rate is equal gives the same direction after a step."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (20,), generator=generator)
    w = torch.randn(3, 5, generator=generator, dtype=torch.float64)

    def direction_after(w: Tensor, rate: float) -> Tensor:
        lr = rate / effective_lr(1.0, norm([w]), adaptive).item()
        gradient = loss_and_gradient(w, inputs, targets)[1]
        after = w - lr * (gradient.sign() if adaptive else gradient)
        return after / after.norm()

    torch.testing.assert_close(direction_after(7 * w, 0.05), direction_after(w, 0.05), rtol=1e-10, atol=1e-12)


def test_weights_of_zero_have_no_direction() -> None:
    assert math.isinf(effective_lr(0.1, norm([torch.zeros(3)])).item())
    assert math.isnan(relative_distance([torch.zeros(3)], [torch.zeros(3)]).item())
