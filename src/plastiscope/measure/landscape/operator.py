"""Products of a curvature matrix of a frozen loss with vectors, by five routes of the same numbers and different cost.

    retained      the gradient's graph of every micro-batch is built once and kept; one backward a product
    rebuilt       the graph is built anew for every product; least memory
    jvp           forward mode over the gradient
    vmap_jvp      the same for several vectors at once
    linearised    the gradient is linearised once (torch.func.linearize) and applied to each vector

The matrix is that of L = (1/N) sum_n l_n, so each micro-batch adds its sum-reduced loss and one division by N comes
last. Where processes share the samples, one sum over them comes before it.

    HessianOperator        H, the derivative of the gradient (Pearlmutter 1994, "Fast exact multiplication by the
                           Hessian")
    GaussNewtonOperator    G = (1/N) sum_n J_n^T H_n J_n, J_n the derivative of the outputs and H_n the Hessian of the
                           loss in the outputs (Schraudolph 2002, "Fast curvature matrix-vector products for
                           second-order gradient descent"): H without the curvature of the outputs themselves

Both are the derivative of a vector that depends on the weights, so a route needs no more than that vector.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from plastiscope.error import RunError
from plastiscope.measure.landscape.differences import curvature_along, is_smooth
from plastiscope.measure.landscape.frozen import FrozenLoss, asking_for_gradients
from plastiscope.measure.landscape.memory import budget, gigabytes, graph_bytes, is_out_of_memory
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


KEPT = (Backend.retained, Backend.linearised)
"""Routes that build something once and keep it."""


class FrozenOperator(ABC):
    """The derivative of a vector field of a frozen loss, at the live weights; symmetric.

    What is built once (`retained`, `linearised`) is built anew when the weights have been written to in between.

    Attributes:
        frozen: the loss.
        backend: the route; becomes `rebuilt` where the kept graphs would take more memory than may be taken.
        adapts: where memory ends all the same, let go of kept graphs, then halve the micro-batch, and go on; else
            raise.
        memory: bytes that kept graphs may take; None = a share of what is free when they are built.
        count: products so far.
    """

    def __init__(
        self,
        frozen: FrozenLoss,
        backend: Backend = Backend.rebuilt,
        *,
        adapts: bool = True,
        memory: int | None = None,
    ) -> None:
        """Nothing is computed yet; `retained` and `linearised` build at the first product."""
        self.frozen, self.backend, self.adapts, self.memory, self.count = frozen, backend, adapts, memory, 0
        self._built: list[Product] | None = None
        self._built_at: list[tuple[int, int]] = []

    @abstractmethod
    def _field(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The field of a micro-batch, sum-reduced, differentiable in the chosen parameters."""

    @abstractmethod
    def _field_function(self, x: Tensor, y: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        """The same as a function of the chosen parameters, for torch.func."""

    @property
    def notes(self) -> list[str]:
        """What was changed for lack of memory, in words."""
        return self.frozen.adaptation.notes

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
                found = self._sums(vectors)
                break
            except RuntimeError as error:
                self.release()
                if not (is_out_of_memory(error) and self.adapts and self._shrink()):
                    raise
        shards = self.frozen.shards
        found = (shards.total_at(vectors, found) if shards else found) / self.frozen.total_samples
        if self.frozen.weight_decay:
            found = found + self.frozen.weight_decay * vectors
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

    def _sums(self, vectors: Tensor) -> Tensor:
        """Products over the samples of this process, not divided by N."""
        with asking_for_gradients(self.frozen.parameters), sdpa_kernel(SDPBackend.MATH):
            if self.backend is Backend.vmap_jvp:
                return self._vmapped(vectors)
            found = [self._single(vector) for vector in vectors]
            return torch.stack(found) if len(found) > 1 else found[0].unsqueeze(0)

    def _shrink(self) -> bool:
        """Need less memory from now on; False if there is nothing left to save."""
        if self.backend in KEPT:
            self._rebuild_from_now_on("out of memory")
            return True
        return self.frozen.halve()

    def _rebuild_from_now_on(self, reason: str) -> None:
        self.notes.append(f"{reason}: {self.backend.value} became {Backend.rebuilt.value}")
        self.backend = Backend.rebuilt

    def _single(self, vector: Tensor) -> Tensor:
        pairs = zip(self.frozen.parameters, self.space.parts(vector), strict=True)
        parts = [d if p.is_contiguous() else torch.empty_like(p).copy_(d) for p, d in pairs]  # in the weights' layout
        first, *others = self._routes()
        total = first(parts)
        for product in others:
            total = list(torch._foreach_add(total, product(parts)))
        return self.space.flat(total)

    def _routes(self) -> Iterator[Product] | list[Product]:
        """For each micro-batch, what gives its (sum-reduced) products."""
        if self.backend not in KEPT:
            route = self._forward_over_reverse if self.backend is Backend.jvp else self._rebuilt
            return (route(x, y) for x, y in self.frozen.batches())
        # A kept graph reads the weights' memory: after a write it would mix two points.
        net = self.frozen.net
        here = [(tensor.data_ptr(), tensor._version) for tensor in (*net.parameters(), *net.buffers())]
        if self._built is None or here != self._built_at:
            self.release()
            self._check_room()
            if self.backend not in KEPT:
                return self._routes()
            make = self._retained if self.backend is Backend.retained else self._linearised
            self._built = [make(x, y) for x, y in self.frozen.batches()]
            self._built_at = here
        return self._built

    def _check_room(self) -> None:
        """Keep no graphs that would take more memory than they may, judged by that of the first micro-batch."""
        net, (x, y) = self.frozen.net, next(self.frozen.batches())
        apart = (*net.parameters(), *net.buffers(), self.frozen.inputs, self.frozen.targets)
        needed = graph_bytes(lambda: self._field(x, y), apart) / len(x) * len(self.frozen)
        allowed = budget(self.device, self.memory, self.frozen.sharing)
        if needed > allowed:
            self._rebuild_from_now_on(
                f"kept graphs would take {gigabytes(needed)}, more than the {gigabytes(allowed)} allowed"
            )

    def _retained(self, x: Tensor, y: Tensor) -> Product:
        field, parameters = self._field(x, y), self.frozen.parameters
        return lambda parts: _derivative(field, parameters, parts, retain=True)

    def _rebuilt(self, x: Tensor, y: Tensor) -> Product:
        return lambda parts: _derivative(self._field(x, y), self.frozen.parameters, parts, retain=False)

    def _point(self) -> tuple[Tensor, ...]:
        return tuple(p.detach() for p in self.frozen.parameters)

    def _forward_over_reverse(self, x: Tensor, y: Tensor) -> Product:
        field = self._field_function(x, y)

        def product(parts: list[Tensor]) -> list[Tensor]:
            with torchs_own_warnings_hidden():
                return list(torch.func.jvp(field, self._point(), tuple(parts))[1])

        return product

    def _linearised(self, x: Tensor, y: Tensor) -> Product:
        with torchs_own_warnings_hidden():
            _, apply = torch.func.linearize(self._field_function(x, y), *self._point())
        return lambda parts: list(apply(*parts))

    def _vmapped(self, vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors)
        for x, y in self.frozen.batches():
            product = self._forward_over_reverse(x, y)
            total += torch.func.vmap(lambda v, product=product: self.space.flat(product(self.space.parts(v))))(vectors)
        return total

    def _named(self, values: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return dict(zip(self.space.names, values, strict=True))


class HessianOperator(FrozenOperator):
    """The Hessian of a frozen loss over its chosen parameters: the derivative of the gradient."""

    def _field(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        total, parameters = self.frozen.sum_of(x, y), self.frozen.parameters
        if not total.requires_grad:  # no chosen parameter has any influence
            return tuple(torch.zeros_like(p) for p in parameters)
        return torch.autograd.grad(total, parameters, create_graph=True, materialize_grads=True)

    def _field_function(self, x: Tensor, y: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        def total(*values: Tensor) -> Tensor:
            return self.frozen.sum_of(x, y, self._named(values))

        return torch.func.grad(total, argnums=tuple(range(len(self.space.names))))


class GaussNewtonOperator(FrozenOperator):
    """The generalised Gauss-Newton matrix of a frozen loss over its chosen parameters; positive semi-definite.

    It is the derivative of J^T s at a constant J: s is the slope of the loss in the outputs, J the derivative of the
    outputs at the live weights.
    """

    def _field(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        outputs, here = self.frozen.outputs(x), [p.detach().requires_grad_() for p in self.frozen.parameters]
        if not outputs.requires_grad:  # no chosen parameter has any influence
            return tuple(torch.zeros_like(p) for p in here)
        slope = torch.autograd.grad(self.frozen.per_sample(outputs, y).sum(), outputs, create_graph=True)
        constant = self.frozen.outputs(x, self._named(tuple(here)))
        return torch.autograd.grad(constant, here, slope, create_graph=True, materialize_grads=True)

    def _field_function(self, x: Tensor, y: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        def outputs(*values: Tensor) -> Tensor:
            return self.frozen.outputs(x, self._named(values))

        slope = torch.func.grad(lambda outputs: self.frozen.per_sample(outputs, y).sum())
        pull = torch.func.vjp(outputs, *self._point())[1]
        return lambda *values: pull(slope(outputs(*values)))


@contextmanager
def torchs_own_warnings_hidden() -> Iterator[None]:
    """torch.func.linearize and forward mode warn about torch's own inside (get_attr nodes, torch.jit)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        yield


def _derivative(
    field: tuple[Tensor, ...], parameters: list[nn.Parameter], parts: list[Tensor], retain: bool
) -> list[Tensor]:
    """d(field . parts)/d parameters; zeros where the field does not depend on a parameter."""
    pairs = [(f, part) for f, part in zip(field, parts, strict=True) if f.requires_grad]
    if not pairs:  # a loss that is linear in the parameters
        return [torch.zeros_like(p) for p in parameters]
    fields, vectors = zip(*pairs, strict=True)
    return list(torch.autograd.grad(fields, parameters, vectors, retain_graph=retain, materialize_grads=True))


@dataclass(frozen=True)
class SelfCheck:
    """Whether an operator is one.

    Attributes:
        symmetry: |u^T H v - v^T H u| / (||u|| ||H v||), of rounding size; above 1e-4 the products are not to be
            trusted.
        is_repeatable: two gradients, and two products of the same vector, are the same bits.
        difference: |w^T H w - d^2 L / dt^2| / ||H w|| along a unit w of large curvature, by central differences of the
            loss; NaN where the loss has kinks, or cannot be had in float64. It sees what is symmetric and
            no Hessian: a wrong factor, or the Gauss-Newton matrix.
    """

    symmetry: float
    is_repeatable: bool
    difference: float = math.nan


def self_check(operator: FrozenOperator, seed: int = 0) -> SelfCheck:
    """Compare products, gradients and, where the loss is smooth, its differences; four products, five losses."""
    drawn = [operator.space.normals(seed, "self-check", k, operator.device).to(operator.dtype) for k in (0, 1)]
    u, v = drawn
    hu, hv = operator(u), operator(v)
    size = (u.double().norm() * hv.double().norm()).item()
    difference = abs((torch.dot(u.double(), hv.double()) - torch.dot(v.double(), hu.double())).item())
    frozen = operator.frozen
    same = torch.equal(frozen.gradient(), frozen.gradient()) and torch.equal(hv, operator(v))
    return SelfCheck(difference / size if size else 0.0, same, _difference(operator, hu))


def _difference(operator: FrozenOperator, direction: Tensor) -> float:
    """See `SelfCheck.difference`; `direction` is a product, in which large eigenvalues prevail."""
    norm = direction.double().norm().item()
    if not norm or not is_smooth(operator.frozen):
        return math.nan
    unit = (direction.double() / norm).to(operator.dtype)
    image = operator(unit).double()
    try:
        found = curvature_along(operator.frozen, unit)
    except (RuntimeError, TypeError):  # a forward that is of one type, or cannot be copied
        return math.nan
    size = image.norm().item()
    return abs(torch.dot(unit.double(), image).item() - found) / size if size else abs(found)
