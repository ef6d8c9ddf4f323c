"""Spectral regularisation: the largest singular value of each layer is kept near one.

Source: Lewandowski et al. 2024, "Learning continually by spectral regularization" (arXiv 2406.06811). The exponent and
what is done to biases and norms are recalled, not checked against the paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plastiscope.error import ConfigError, require
from plastiscope.learner.learner import Learner, LearnerConfig
from plastiscope.learner.trainee import Trainee
from plastiscope.measure.keyed import keyed_normal
from plastiscope.net.activation import undecayed
from plastiscope.net.layers import COMPOSED
from plastiscope.net.weight_normalised import WeightNormalised


@dataclass(kw_only=True)
class SpectralRegularization(LearnerConfig):
    """Backprop on the loss + beta sum_l (sigma_1(W_l)^k - 1)^2; kernels are taken as [outputs, inputs h w]."""

    beta: float = 1e-3
    """Weight of the penalty."""
    exponent: float = 2.0
    """k."""
    exact: bool = False
    """Singular values by decomposition at each step; false: one step of power iteration."""
    include_vectors: bool = True
    """Also beta ||b||^2 of each bias and beta ||g - 1||^2 of each norm's scale."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require(0 <= self.beta < float("inf"), "beta", self.beta, "must be 0 or more, and finite")
        require(1 <= self.exponent < float("inf"), "exponent", self.exponent, "must be 1 or more, and finite")

    def make(self, trainee: Trainee) -> "SpectralRegularizationLearner":
        """The learner of `trainee`."""
        return SpectralRegularizationLearner(self, trainee)


def power_iteration(matrix: Tensor, left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step v = W^T u/||.||, u = W v/||.||: (sigma, u, v), sigma = ||W v||.

    A zero matrix gives sigma 0 and leaves u as it is, so that the iteration finds its way once the matrix is another.

    Args:
        matrix: W [..., m, n].
        left: u [..., m], not zero.

    Returns:
        sigma [...], u [..., m], v [..., n].
    """
    right = _normalised((matrix.mT @ left.unsqueeze(-1)).squeeze(-1))
    image = (matrix @ right.unsqueeze(-1)).squeeze(-1)
    sigma = torch.linalg.vector_norm(image, dim=-1)
    return sigma, torch.where(sigma.unsqueeze(-1) > 0, _normalised(image), left), right


def largest_singular(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(sigma_1, u, v) of W [..., m, n] by decomposition; one pair of vectors where several values are the largest.

    sigma_1 of a matrix that is not finite is NaN; the others of its batch are as they would be alone.
    """
    is_finite = torch.isfinite(matrix).flatten(-2).all(-1)
    known = matrix.where(is_finite[..., None, None], 0.0)
    left, values, right = torch.linalg.svd(known, full_matrices=False)
    return values[..., 0].where(is_finite, float("nan")), left[..., 0], right[..., 0, :]


def _normalised(vector: Tensor) -> Tensor:
    return vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True).clamp_min(torch.finfo(vector.dtype).tiny)


def penalty(sigma: Tensor, beta: float, exponent: float) -> Tensor:
    """The summand beta (sigma^k - 1)^2, elementwise."""
    return beta * (sigma**exponent - 1.0).square()


def penalty_slope(sigma: Tensor, beta: float, exponent: float) -> Tensor:
    """Its derivative 2 beta k sigma^(k - 1) (sigma^k - 1)."""
    return 2.0 * beta * exponent * sigma ** (exponent - 1.0) * (sigma**exponent - 1.0)


class SpectralRegularizationLearner(Learner):
    """Adds the penalty's gradient to that of the loss; the loss that is logged is that of the task alone.

    Attributes:
        matrices: by layer path, the weights that are matrices.
        directions: by layer path, u [*lead, outputs] of the last step.
        largest: by layer path, sigma_1 [*lead] at the last step, before its update.
    """

    config: SpectralRegularization

    def __init__(self, config: SpectralRegularization, trainee: Trainee) -> None:
        """Own the network; see Learner.

        Raises:
            ConfigError: a layer's weights are a product of several parameters.
        """
        super().__init__(config, trainee)
        lead = self.lead
        self.matrices, self.vectors = _matrices(self.net, lead), _vectors(self.net, lead)
        if not self.matrices:
            raise ConfigError("spectral_regularization: this network has no layer with a matrix of weights")
        self.directions, self.largest = dict[str, Tensor](), dict[str, Tensor]()
        for path, module in self.matrices.items():
            weight = _weight(module)
            ids = torch.arange(weight.shape[lead], device=weight.device).expand(weight.shape[: lead + 1])
            start = keyed_normal(self.seed, f"spectral/{path}", ids).to(weight.dtype)
            self.directions[path] = _normalised(start)
            self.largest[path] = weight.new_zeros(weight.shape[:lead])

    @torch.no_grad()
    def adjust_gradients(self) -> None:
        """Add the penalty's gradient, 2 beta k sigma^(k-1) (sigma^k - 1) u v^T for each matrix."""
        for path, module in self.matrices.items():
            if _weight(module).grad is not None:
                self._add_gradient(path, module)
        if self.config.include_vectors:
            for vector, target in self.vectors:
                if vector.grad is not None:
                    vector.grad.add_(vector - target, alpha=2.0 * self.config.beta)

    def _add_gradient(self, path: str, module: nn.Module) -> None:
        effective, weight = _effective(module), _weight(module)
        matrix = effective.flatten(self.lead + 1)
        sigma, left, right = (
            largest_singular(matrix) if self.config.exact else power_iteration(matrix, self.directions[path])
        )
        self.directions[path].copy_(left)
        self.largest[path].copy_(sigma)
        slope = penalty_slope(sigma, self.config.beta, self.config.exponent)
        added = ((left * slope.unsqueeze(-1)).unsqueeze(-1) * right.unsqueeze(-2)).view(effective.shape)
        if isinstance(module, WeightNormalised):
            _through_normalisation(module, added)
        else:
            assert weight.grad is not None
            weight.grad.add_(added)

    def numbers(self) -> Mapping[str, float | Tensor]:
        """`<layer>/largest_singular_value` at the last step, before its update."""
        return {f"{path}/largest_singular_value": sigma for path, sigma in self.largest.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs: also u and sigma of each matrix."""
        own = {
            path: {"left": self.directions[path].clone(), "sigma": self.largest[path].clone()} for path in self.matrices
        }
        return super().state_dict() | {"spectral": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        for path, own in state["spectral"].items():
            self.directions[path].copy_(own["left"])
            self.largest[path].copy_(own["sigma"])


def _matrices(net: nn.Module, lead: int) -> dict[str, nn.Module]:
    """Modules whose `weight` is a matrix or a kernel, by path."""
    found = {}
    for path, module in net.named_modules():
        if isinstance(module, COMPOSED):
            raise ConfigError(
                f"spectral_regularization: the weights of layer {path} ({type(module).__name__}) are a product of "
                "several parameters; use net.layers.kind=plain or weight_normalised"
            )
        weight = module._parameters.get("weight")
        if weight is not None and weight.requires_grad and weight.ndim - lead >= 2:
            found[path] = module
    return found


def _vectors(net: nn.Module, lead: int) -> list[tuple[nn.Parameter, float]]:
    """Biases with the value 0 that they are drawn to, scales of norms with 1; no slopes of activations."""
    slopes, found = undecayed(net), []
    for module in net.modules():
        for name, target in (("weight", 1.0), ("bias", 0.0)):
            parameter = module._parameters.get(name)
            if parameter is None or not parameter.requires_grad or parameter in slopes:
                continue
            if parameter.ndim - lead == 1 or name == "bias":
                found.append((parameter, target))
    return found


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module._parameters["weight"]
    assert weight is not None
    return weight


def _effective(module: nn.Module) -> Tensor:
    return module.effective_weight() if isinstance(module, WeightNormalised) else _weight(module)


def _through_normalisation(module: WeightNormalised, added: Tensor) -> None:
    """Add the gradient `added` with respect to what inputs are multiplied with to those of v and g."""
    with torch.enable_grad():
        torch.autograd.backward(module.effective_weight(), added, inputs=_parts(module))


def _parts(module: WeightNormalised) -> Sequence[Tensor]:
    return [tensor for tensor in (module.weight, module.scale) if tensor.requires_grad]
