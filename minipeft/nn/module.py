"""`Module` and `Parameter`: a tree of named parts, read off the attributes; nothing is registered."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minipeft.autograd import Tensor, no_grad
from minipeft.backend import active
from minipeft.errors import UserError


class Parameter(Tensor):
    """A tensor that a module owns. It is written in place, never replaced, so that views of it stay true."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)


class Module:
    """A part of a model: its attributes that are Parameters, Modules, or lists of Modules are its children.

    Subclasses write `forward`; calling the module calls it.
    """

    training = True

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The value of the module."""
        raise NotImplementedError(f"{type(self).__name__} has no forward.")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """`forward`."""
        return self.forward(*inputs, **options)

    def prepared(self) -> contextlib.AbstractContextManager[Sequence[tuple[Tensor, Tensor]]]:
        """Inside, what several forward passes with the same weights share has been computed once.

        Gives the pairs (tensor, leaf): the passes differentiate with respect to `leaf`, whose gradient is then to be
        handed on to `tensor`. A plain module shares nothing.
        """
        return contextlib.nullcontext(())

    # ---- the tree

    def children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly below, with their names; the i-th of a list `blocks` is `blocks.i`."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list):
                for i, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{i}", item

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below, with dotted names; the name of this one is `prefix`."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter once, under its first name: one that is used in two places (tied) is not repeated."""
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{path}.{name}" if path else name), value

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter once."""
        return (parameter for _, parameter in self.named_parameters())

    def get_submodule(self, path: str) -> Module:
        """The module of a dotted name.

        Raises:
            UserError: there is none of that name.
        """
        found: Any = self
        for name in path.split(".") if path else ():
            if isinstance(found, list):
                found = found[int(name)] if name.isdigit() and int(name) < len(found) else None
            else:
                found = vars(found).get(name) if isinstance(found, Module) else None
        if not isinstance(found, Module):
            raise UserError(f"There is no module {path!r} in {type(self).__name__}.")
        return found

    def set_submodule(self, path: str, module: Module) -> None:
        """Put a module in the place of the one of that dotted name."""
        if not path:
            raise UserError("A module cannot replace itself: name a part of it.")
        self.get_submodule(path)
        parent_path, _, name = path.rpartition(".")
        if name.isdigit():
            owner_path, _, list_name = parent_path.rpartition(".")
            vars(self.get_submodule(owner_path))[list_name][int(name)] = module
        else:
            setattr(self.get_submodule(parent_path), name, module)

    # ---- state

    def train(self, mode: bool = True) -> Module:
        """Switch dropout on (or off, with False) in this module and all below."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Switch dropout off."""
        return self.train(False)

    def astype(self, dtype: str) -> Module:
        """Convert every parameter to "float32" or "float64"; gradients are dropped."""
        for parameter in self.parameters():
            parameter.data, parameter.grad = parameter.data.astype(dtype), None
        return self

    def state_dict(self) -> dict[str, Any]:
        """Every parameter's values as a NumPy array, by name."""
        return {name: active().to_numpy(parameter.data) for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Write arrays into the parameters, in place.

        Raises:
            UserError: a name is missing or unknown, a shape is another, a dtype no float. Then nothing has been written.
        """
        own = dict(self.named_parameters())
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or extra:
            raise UserError(
                f"These weights do not fit {type(self).__name__}: "
                + "; ".join(
                    f"{what} {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                    for what, names in (("missing", missing), ("unknown", extra))
                    if names
                )
                + "."
            )
        for name, parameter in own.items():
            if tuple(state[name].shape) != parameter.shape:
                raise UserError(f"{name} has shape {tuple(state[name].shape)} in the file, {parameter.shape} here.")
            if state[name].dtype.kind != "f":
                raise UserError(f"{name} is {state[name].dtype} in the file; weights are floats.")
        for name, parameter in own.items():
            parameter.data[...] = active().asarray(state[name], dtype=parameter.dtype)


@contextlib.contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Inside, nothing is recorded, dropout is off, and what a method shares among passes is computed once."""
    was_training = model.training
    model.eval()
    try:
        with no_grad(), model.prepared():
            yield
    finally:
        model.train(was_training)
