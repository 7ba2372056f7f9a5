"""Finding the modules that a method is meant for. A name that matches nothing is an error, never silence."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from minipeft.errors import UserError
from minipeft.nn import LanguageHead, Module


def task_head(model: Module) -> Module | None:
    """The head put on for the task, to be trained with every method. A language model's own head is part of the base."""
    head = getattr(model, "head", None)
    return head if isinstance(head, Module) and not isinstance(head, LanguageHead) else None


def match_modules(
    model: Module, targets: str | Sequence[str], kind: type[Module] = Module, all_word: str = "all"
) -> dict[str, Module]:
    """The modules of a kind, outside the task head, that the targets name, in the model's order.

    A target is a module's last name ("q_proj"), the end of its dotted name ("0.q_proj"), or the whole of it
    ("blocks.0.q_proj"); `all_word` stands for every module of the kind.

    Raises:
        UserError: a target matches nothing; the message names the nearest matches.
    """
    candidates = {
        name: module
        for name, module in model.named_modules()
        if name and isinstance(module, kind) and name.partition(".")[0] != "head"
    }
    if targets == all_word:
        return candidates
    patterns = (targets,) if isinstance(targets, str) else tuple(targets)
    if not patterns:
        raise UserError(f"No targets given; name some modules, or {all_word!r}.")
    chosen: set[str] = set()
    for pattern in patterns:
        matches = {name for name in candidates if ends_with(name, pattern)}
        if not matches:
            known = sorted({name.rpartition(".")[2] for name in candidates if not name[-1].isdigit()})
            near = difflib.get_close_matches(pattern, [*known, *candidates], n=3)
            raise UserError(
                f"The target {pattern!r} matches no {kind.__name__} of the model."
                + (f" Nearest: {', '.join(near)}." if near else "")
                + f" Known: {', '.join([*known, all_word])}."
            )
        chosen |= matches
    return {name: module for name, module in candidates.items() if name in chosen}


def ends_with(name: str, target: str) -> bool:
    """Whether a dotted name is the target, or ends with it at a dot."""
    return name == target or name.endswith(f".{target}")
