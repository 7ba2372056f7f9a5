"""All trainable parameters as one flat vector θ, and their gradients as another: each parameter is a view of its piece.

An optimizer step, a gradient norm or a checkpoint is then one operation on one array instead of one on each of a hundred.
Frozen parameters are in neither vector, so no optimizer can move them or keep state for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from minipeft.backend import Array, active
from minipeft.backend.workers import current_workers
from minipeft.errors import UserError
from minipeft.nn import Parameter


class FlatParameters:
    """`theta` and `grad`: (P,) vectors over the P trainable numbers of `parameters`.

    Raises:
        UserError: there is nothing to train, or the parameters differ in dtype.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self.parameters = list({id(p): p for p in parameters if p.requires_grad}.values())
        if not self.parameters:
            raise UserError("There is nothing to train: every parameter is frozen.")
        if len({str(p.dtype) for p in self.parameters}) > 1:
            raise UserError("The trainable parameters differ in dtype; convert the model with astype() first.")
        size = sum(p.numel() for p in self.parameters)
        self.theta: Array = active().shared((size,), self.parameters[0].dtype)
        self.grad: Array = active().shared(self.theta.shape, self.theta.dtype)
        for p, cut in zip(self.parameters, self.cuts(), strict=True):
            self.theta[cut] = p.data.reshape(-1)
            p.data, p.grad = self.theta[cut].reshape(p.shape), self.grad[cut].reshape(p.shape)

    def cuts(self) -> list[slice]:
        """Where each parameter's piece is."""
        cuts, start = [], 0
        for p in self.parameters:
            cuts.append(slice(start, start + p.numel()))
            start += p.numel()
        return cuts


class Optimizer:
    """The parameters, their flat vectors, and a state vector for each name in `state_names`.

    `step(lr)` updates the parameters in place from their gradients; `zero_grad()` clears these. `rates` names parameters
    that learn some times as fast as the others.
    """

    state_names: tuple[str, ...] = ()

    def __init__(
        self, parameters: Iterable[Parameter], lr: float, rates: Mapping[Parameter, float] | None = None
    ) -> None:
        if not lr > 0:
            raise UserError(f"lr={lr}: a learning rate is a positive number.")
        self.rates = dict(rates or {})
        self.flat = FlatParameters(parameters)
        self.lr, self.steps = lr, 0
        shape, dtype = self.flat.theta.shape, self.flat.theta.dtype
        self.state = {name: active().shared(shape, dtype) for name in self.state_names}

    def step(self, lr: float | None = None, scale: Any = 1.0) -> None:
        """One update, at the rate `lr` or else the one of the constructor, with the gradient times `scale`.

        Several workers update a piece of the vectors each; whoever calls it lets them meet before θ is used.

        Raises:
            UserError: a parameter's data was replaced since, so that moving θ would not move it.
        """
        if not all(_shares(p.data, self.flat.theta) for p in self.flat.parameters):
            raise UserError("A parameter is no longer a view of θ: make the optimizer after astype(), and only one.")
        if any(not p.requires_grad for p in self.flat.parameters):
            self._drop_frozen()
        for p, cut in zip(self.flat.parameters, self.flat.cuts(), strict=True):
            if p.grad is None or not _shares(p.grad, self.flat.grad):  # somebody set .grad: take it over
                self.flat.grad[cut] = 0 if p.grad is None else active().asarray(p.grad).reshape(-1)
                p.grad = self.flat.grad[cut].reshape(p.shape)
        self.steps += 1
        mine = current_workers().slice(self.flat.theta.size)
        for cut, ratio in self._runs():
            part = slice(max(cut.start, mine.start), min(cut.stop, mine.stop))
            if part.start < part.stop:
                self.update(ratio * (self.lr if lr is None else lr), scale, part)

    def _runs(self) -> list[tuple[slice, float]]:
        """Pieces of the flat vectors, as long as can be, in which all parameters learn at one rate."""
        runs: list[tuple[slice, float]] = []
        for p, cut in zip(self.flat.parameters, self.flat.cuts(), strict=True):
            ratio = self.rates.get(p, 1.0)
            if runs and runs[-1][1] == ratio:
                cut = slice(runs.pop()[0].start, cut.stop)
            runs.append((cut, ratio))
        return runs

    def update(self, lr: float, scale: Any, part: slice) -> None:
        """The rule: θ from scale · gradient and the state, in place, on a part of the flat vectors."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        self.flat.grad.fill(0)
        for p, cut in zip(self.flat.parameters, self.flat.cuts(), strict=True):
            p.grad = self.flat.grad[cut].reshape(p.shape)  # somebody may have set another

    def _drop_frozen(self) -> None:
        """A parameter that was frozen since leaves the vectors together with its moments: it will not move again."""
        if current_workers().count > 1:
            raise UserError("A parameter was frozen while several workers train: freeze it before.")
        xp = active().xp
        keep = [cut for p, cut in zip(self.flat.parameters, self.flat.cuts(), strict=True) if p.requires_grad]
        grad = self.flat.grad
        for p, cut in zip(self.flat.parameters, self.flat.cuts(), strict=True):
            if not p.requires_grad:
                p.data, p.grad = self.flat.theta[cut].reshape(p.shape).copy(), None
        self.flat = FlatParameters(self.flat.parameters)
        self.flat.grad[...] = xp.concatenate([grad[cut] for cut in keep])
        for name, before in self.state.items():
            self.state[name] = active().shared(self.flat.theta.shape, before.dtype)
            self.state[name][...] = xp.concatenate([before[cut] for cut in keep])

    # ---- checkpoints

    def state_bytes(self) -> int:
        """The memory of the state vectors."""
        return sum(int(v.nbytes) for v in self.state.values())

    def state_dict(self) -> dict[str, Any]:
        """θ and the state vectors as NumPy arrays."""
        to_numpy = active().to_numpy
        return {"theta": to_numpy(self.flat.theta), **{name: to_numpy(v) for name, v in self.state.items()}}

    def load_state_dict(self, state: dict[str, Any], steps: int) -> None:
        """Restore what `state_dict` gave. Raises UserError when it was made for other parameters."""
        vectors = {"theta": self.flat.theta, **self.state}
        if vectors.keys() != state.keys() or any(state[n].shape != v.shape for n, v in vectors.items()):
            raise UserError("This optimizer state was saved for other parameters or another optimizer.")
        for name, vector in vectors.items():
            vector[...] = active().asarray(state[name])
        self.steps = steps


def _shares(view: Array, whole: Array) -> bool:
    return getattr(view, "base", None) is whole
