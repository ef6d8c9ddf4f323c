"""Products of the Hessian of a frozen loss with vectors, by five routes that give the same numbers at different cost.

    retained      the gradient's graph of every micro-batch is built once and kept; one backward a product
    rebuilt       the graph is built anew for every product; least memory
    jvp           forward mode over the gradient
    vmap_jvp      the same for several vectors at once
    linearised    the gradient is linearised once (torch.func.linearize) and applied to each vector

H is that of L = (1/N) sum_n l_n, so each micro-batch adds its sum-reduced loss and one division by N comes last.
Pearlmutter 1994, "Fast exact multiplication by the Hessian".
"""

from collections.abc import Callable
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from plastiscope.measure.landscape.frozen import FrozenLoss, asking_for_gradients


class Backend(Enum):
    """How a product is computed."""

    retained = "retained"
    rebuilt = "rebuilt"
    jvp = "jvp"
    vmap_jvp = "vmap_jvp"
    linearised = "linearised"


class SymmetricOperator(Protocol):
    """A symmetric matrix that is known by its products."""

    @property
    def dimension(self) -> int:
        """D."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors."""

    @property
    def device(self) -> torch.device:
        """Of the vectors."""

    def products(self, vectors: Tensor) -> Tensor:
        """H v of each row of `vectors` [k, D], as rows."""


class HessianOperator:
    """The Hessian of a frozen loss over its chosen parameters.

    Attributes:
        frozen: the loss.
        backend: the route.
        count: products so far.
    """

    def __init__(self, frozen: FrozenLoss, backend: Backend = Backend.rebuilt) -> None:
        """Nothing is computed yet; `retained` and `linearised` build at the first product."""
        self.frozen, self.backend, self.count = frozen, backend, 0
        self._built: list[Callable[[list[Tensor]], list[Tensor]]] | None = None

    @property
    def dimension(self) -> int:
        """D."""
        return self.frozen.space.dimension

    @property
    def dtype(self) -> torch.dtype:
        """Of the chosen parameters."""
        return self.frozen.space.of(self.frozen.net)[0].dtype

    @property
    def device(self) -> torch.device:
        """Of the chosen parameters."""
        return self.frozen.inputs.device

    def products(self, vectors: Tensor) -> Tensor:
        """H v of each row of `vectors` [k, D], as rows; what needs no gradient is put back as it was."""
        self.count += len(vectors)
        vectors = vectors.to(self.dtype)
        with asking_for_gradients(self.frozen.space.of(self.frozen.net)), sdpa_kernel(SDPBackend.MATH):
            if self.backend is Backend.vmap_jvp:
                found = self._vmapped(vectors)
            else:
                found = torch.stack([self._single(vector) for vector in vectors])
        found = found / len(self.frozen)
        return found + self.frozen.weight_decay * vectors if self.frozen.weight_decay else found

    def __call__(self, vector: Tensor) -> Tensor:
        """H v of one vector [D]."""
        return self.products(vector.unsqueeze(0))[0]

    def release(self) -> None:
        """Let go of kept graphs."""
        self._built = None

    def _single(self, vector: Tensor) -> Tensor:
        space = self.frozen.space
        parts = space.parts(vector)
        total: list[Tensor] | None = None
        for product in self._routes():
            found = product(parts)
            total = found if total is None else torch._foreach_add(total, found)
        assert total is not None
        return space.flat(total)

    def _routes(self) -> list[Callable[[list[Tensor]], list[Tensor]]]:
        """For each micro-batch, what gives its (sum-reduced) products."""
        makers = {Backend.retained: self._retained, Backend.linearised: self._linearised}
        if self.backend in makers:
            if self._built is None:
                self._built = [makers[self.backend](x, y) for x, y in self.frozen.batches()]
            return self._built
        route = self._rebuilt if self.backend is Backend.rebuilt else self._forward_over_reverse
        return [route(x, y) for x, y in self.frozen.batches()]

    def _retained(self, x: Tensor, y: Tensor) -> Callable[[list[Tensor]], list[Tensor]]:
        parameters = self.frozen.space.of(self.frozen.net)
        gradients = torch.autograd.grad(self.frozen.sum_of(x, y), parameters, create_graph=True, materialize_grads=True)
        return lambda parts: _second(gradients, parameters, parts, retain=True)

    def _rebuilt(self, x: Tensor, y: Tensor) -> Callable[[list[Tensor]], list[Tensor]]:
        def product(parts: list[Tensor]) -> list[Tensor]:
            parameters = self.frozen.space.of(self.frozen.net)
            gradients = torch.autograd.grad(
                self.frozen.sum_of(x, y), parameters, create_graph=True, materialize_grads=True
            )
            return _second(gradients, parameters, parts, retain=False)

        return product

    def _gradient_of(self, x: Tensor, y: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        """The gradient as a function of the chosen parameters, for torch.func."""
        names = self.frozen.space.names

        def total(*values: Tensor) -> Tensor:
            return self.frozen.sum_of(x, y, dict(zip(names, values, strict=True)))

        return torch.func.grad(total, argnums=tuple(range(len(names))))

    def _point(self) -> tuple[Tensor, ...]:
        return tuple(p.detach() for p in self.frozen.space.of(self.frozen.net))

    def _forward_over_reverse(self, x: Tensor, y: Tensor) -> Callable[[list[Tensor]], list[Tensor]]:
        gradient = self._gradient_of(x, y)
        return lambda parts: list(torch.func.jvp(gradient, self._point(), tuple(parts))[1])

    def _linearised(self, x: Tensor, y: Tensor) -> Callable[[list[Tensor]], list[Tensor]]:
        _, apply = torch.func.linearize(self._gradient_of(x, y), *self._point())
        return lambda parts: list(apply(*parts))

    def _vmapped(self, vectors: Tensor) -> Tensor:
        space = self.frozen.space
        total = torch.zeros_like(vectors)
        for x, y in self.frozen.batches():
            gradient, point = self._gradient_of(x, y), self._point()

            def product(vector: Tensor, gradient=gradient, point=point) -> Tensor:  # type: ignore[no-untyped-def]
                parts = tuple(space.parts(vector))
                return space.flat(torch.func.jvp(gradient, point, parts)[1])

            total += torch.func.vmap(product)(vectors)
        return total


def _second(gradients: tuple[Tensor, ...], parameters: list, parts: list[Tensor], retain: bool) -> list[Tensor]:
    """d(gradients . parts)/d parameters; zeros where the gradient does not depend on a parameter."""
    pairs = [(g, part) for g, part in zip(gradients, parts, strict=True) if g.requires_grad]
    if not pairs:  # a loss that is linear in the parameters
        return [torch.zeros_like(p) for p in parameters]
    grads, vectors = zip(*pairs, strict=True)
    return list(torch.autograd.grad(grads, parameters, vectors, retain_graph=retain, materialize_grads=True))
