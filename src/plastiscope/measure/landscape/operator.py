"""Products of the Hessian of a frozen loss with vectors, by five routes that give the same numbers at different cost.

    retained      the gradient's graph of every micro-batch is built once and kept; one backward a product
    rebuilt       the graph is built anew for every product; least memory
    jvp           forward mode over the gradient
    vmap_jvp      the same for several vectors at once
    linearised    the gradient is linearised once (torch.func.linearize) and applied to each vector

H is that of L = (1/N) sum_n l_n, so each micro-batch adds its sum-reduced loss and one division by N comes last.
Pearlmutter 1994, "Fast exact multiplication by the Hessian".
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from plastiscope.error import RunError
from plastiscope.measure.landscape.frozen import FrozenLoss, asking_for_gradients
from plastiscope.measure.landscape.space import ParameterSpace

Product = Callable[[list[Tensor]], list[Tensor]]
"""H v of one micro-batch, not divided by N, from the parts of v."""


class NonFiniteProduct(RunError):
    """A product with the Hessian is not finite, so it has no spectrum."""


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
    def space(self) -> ParameterSpace:
        """What its coordinates are; D is their number."""

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

    What is built once (`retained`, `linearised`) is built anew when the weights have been written to in between.

    Attributes:
        frozen: the loss; its micro-batch may shrink, see `adapts`.
        backend: the route; may become `rebuilt`, see `adapts`.
        adapts: where memory ends, let go of kept graphs, then halve the micro-batch, and go on; else raise.
        notes: what was changed for lack of memory, in words.
        count: products so far.
    """

    def __init__(self, frozen: FrozenLoss, backend: Backend = Backend.rebuilt, *, adapts: bool = True) -> None:
        """Nothing is computed yet; `retained` and `linearised` build at the first product."""
        self.frozen, self.backend, self.adapts, self.count = frozen, backend, adapts, 0
        self.notes: list[str] = []
        self._built: list[Product] | None = None
        self._built_at: list[tuple[int, int]] = []

    @property
    def space(self) -> ParameterSpace:
        """The chosen parameters."""
        return self.frozen.space

    @property
    def dtype(self) -> torch.dtype:
        """Of the chosen parameters."""
        return self.frozen.parameters[0].dtype

    @property
    def device(self) -> torch.device:
        """Of the chosen parameters."""
        return self.frozen.parameters[0].device

    def products(self, vectors: Tensor) -> Tensor:
        """H v of each row of `vectors` [k, D], as rows; what needs no gradient is put back as it was.

        Raises:
            NonFiniteProduct: some entry is not finite.
            torch.OutOfMemoryError: not even one sample at a time fits, or the operator does not adapt.
        """
        vectors = vectors.to(self.dtype)
        while True:
            try:
                found = self._products(vectors)
                break
            except torch.OutOfMemoryError:
                self.release()
                if not (self.adapts and self._shrink()):
                    raise
        self.count += len(vectors)
        if not torch.isfinite(found).all():
            raise NonFiniteProduct(
                "a product with the Hessian is not finite: loss or weights have diverged at this point, so there is no "
                "spectrum; look at an earlier checkpoint, or use dtype=float64 if only the derivatives overflow"
            )
        return found

    def __call__(self, vector: Tensor) -> Tensor:
        """H v of one vector [D]."""
        return self.products(vector.unsqueeze(0))[0]

    def release(self) -> None:
        """Let go of kept graphs."""
        self._built = None

    def _products(self, vectors: Tensor) -> Tensor:
        with asking_for_gradients(self.frozen.parameters), sdpa_kernel(SDPBackend.MATH):
            if self.backend is Backend.vmap_jvp:
                found = self._vmapped(vectors)
            else:
                found = torch.stack([self._single(vector) for vector in vectors])
        found = found / len(self.frozen)
        return found + self.frozen.weight_decay * vectors if self.frozen.weight_decay else found

    def _shrink(self) -> bool:
        """Need less memory from now on; False if there is nothing left to save."""
        if self.backend in (Backend.retained, Backend.linearised):
            self.notes.append(f"out of memory: {self.backend.value} became {Backend.rebuilt.value}")
            self.backend = Backend.rebuilt
            return True
        size = min(self.frozen.micro_batch, len(self.frozen))
        if size == 1 or self.frozen.coupling_modules:
            return False
        self.notes.append(f"out of memory: micro-batches of {size} became {size // 2}")
        self.frozen = self.frozen.with_micro_batch(size // 2)
        return True

    def _single(self, vector: Tensor) -> Tensor:
        parts = self.space.parts(vector)
        total = [torch.zeros_like(part) for part in parts]
        for product in self._routes():
            torch._foreach_add_(total, product(parts))
        return self.space.flat(total)

    def _routes(self) -> Iterator[Product] | list[Product]:
        """For each micro-batch, what gives its (sum-reduced) products."""
        makers = {Backend.retained: self._retained, Backend.linearised: self._linearised}
        if self.backend not in makers:
            route = self._rebuilt if self.backend is Backend.rebuilt else self._forward_over_reverse
            return (route(x, y) for x, y in self.frozen.batches())
        # A kept graph reads the weights' memory: after a write it would mix two points.
        net = self.frozen.net
        here = [(tensor.data_ptr(), tensor._version) for tensor in (*net.parameters(), *net.buffers())]
        if self._built is None or here != self._built_at:
            self._built = [makers[self.backend](x, y) for x, y in self.frozen.batches()]
            self._built_at = here
        return self._built

    def _gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The gradient of a micro-batch, differentiable once more."""
        total, parameters = self.frozen.sum_of(x, y), self.frozen.parameters
        if not total.requires_grad:  # no chosen parameter has any influence
            return tuple(torch.zeros_like(p) for p in parameters)
        return torch.autograd.grad(total, parameters, create_graph=True, materialize_grads=True)

    def _retained(self, x: Tensor, y: Tensor) -> Product:
        gradients, parameters = self._gradients(x, y), self.frozen.parameters
        return lambda parts: _second(gradients, parameters, parts, retain=True)

    def _rebuilt(self, x: Tensor, y: Tensor) -> Product:
        return lambda parts: _second(self._gradients(x, y), self.frozen.parameters, parts, retain=False)

    def _gradient_of(self, x: Tensor, y: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        """The gradient as a function of the chosen parameters, for torch.func."""
        names = self.space.names

        def total(*values: Tensor) -> Tensor:
            return self.frozen.sum_of(x, y, dict(zip(names, values, strict=True)))

        return torch.func.grad(total, argnums=tuple(range(len(names))))

    def _point(self) -> tuple[Tensor, ...]:
        return tuple(p.detach() for p in self.frozen.parameters)

    def _forward_over_reverse(self, x: Tensor, y: Tensor) -> Product:
        gradient = self._gradient_of(x, y)

        def product(parts: list[Tensor]) -> list[Tensor]:
            with torchs_own_warnings_hidden():
                return list(torch.func.jvp(gradient, self._point(), tuple(parts))[1])

        return product

    def _linearised(self, x: Tensor, y: Tensor) -> Product:
        with torchs_own_warnings_hidden():
            _, apply = torch.func.linearize(self._gradient_of(x, y), *self._point())
        return lambda parts: list(apply(*parts))

    def _vmapped(self, vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors)
        for x, y in self.frozen.batches():
            product = self._forward_over_reverse(x, y)
            total += torch.func.vmap(lambda v, product=product: self.space.flat(product(self.space.parts(v))))(vectors)
        return total


@contextmanager
def torchs_own_warnings_hidden() -> Iterator[None]:
    """torch.func.linearize and forward mode warn about torch's own inside (get_attr nodes, torch.jit)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        yield


def _second(
    gradients: tuple[Tensor, ...], parameters: list[nn.Parameter], parts: list[Tensor], retain: bool
) -> list[Tensor]:
    """d(gradients . parts)/d parameters; zeros where the gradient does not depend on a parameter."""
    pairs = [(g, part) for g, part in zip(gradients, parts, strict=True) if g.requires_grad]
    if not pairs:  # a loss that is linear in the parameters
        return [torch.zeros_like(p) for p in parameters]
    grads, vectors = zip(*pairs, strict=True)
    return list(torch.autograd.grad(grads, parameters, vectors, retain_graph=retain, materialize_grads=True))


@dataclass(frozen=True)
class SelfCheck:
    """Whether an operator is one.

    Attributes:
        symmetry: |u^T H v - v^T H u| / (||u|| ||H v||), of rounding size; above 1e-4 the products are not to be
            trusted.
        is_repeatable: two gradients, and two products of the same vector, are the same bits.
    """

    symmetry: float
    is_repeatable: bool


def self_check(operator: HessianOperator, seed: int = 0) -> SelfCheck:
    """Compare two products and two gradients; costs three products."""
    drawn = [operator.space.normals(seed, "self-check", k, operator.device).to(operator.dtype) for k in (0, 1)]
    u, v = drawn
    hu, hv = operator(u), operator(v)
    size = (u.double().norm() * hv.double().norm()).item()
    difference = abs((torch.dot(u.double(), hv.double()) - torch.dot(v.double(), hu.double())).item())
    frozen = operator.frozen
    same = torch.equal(frozen.gradient(), frozen.gradient()) and torch.equal(hv, operator(v))
    return SelfCheck(difference / size if size else 0.0, same)
