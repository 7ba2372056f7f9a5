"""The house has floors, and imports only go down: read off the syntax trees, nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import minipeft

PACKAGE = Path(minipeft.__file__).parent
LAYER = {
    "errors": -1,
    "files": -1,
    "backend": 0,
    "autograd": 1,
    "nn": 2,
    "models": 3,
    "peft": 3,
    "optim": 3,
    "data": 3,
    "training": 4,
    "cost": 4,
    "experiments": 5,
    "report": 6,
    "labs": 6,
    "cli": 7,
    "cli_common": 7,
    "cli_instruct": 7,
    "cli_lab": 7,
    "cli_language": 7,
    "cli_prompting": 7,
    "cli_study": 7,
    "__main__": 8,
}
TOP = 3  # `from minipeft import __version__` loads the package itself, which imports nn and optim
ARRAYS_ALLOWED = {"backend", "data", "report", "labs"}  # labs compares what students computed on the host
RELEASES = PACKAGE / "labs" / "releases"  # what students get: files to be copied, not modules
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py" and RELEASES not in p.parents)


def part_of(path: Path) -> str:
    """The floor's name: minipeft/nn/layers.py -> nn, minipeft/errors.py -> errors."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported anywhere in the tree, except below `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for branch in node.orelse:
                yield from imports(ast.Module([branch], []))
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        else:
            yield from imports(node)


def parts_imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, floor) of every import of our own; the package itself is the floor ""."""
    for line, name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        first, _, rest = name.partition(".")
        if first == "minipeft":
            part = rest.partition(".")[0]
            yield line, part if part in LAYER else ""


def test_every_module_has_a_floor():
    assert {part_of(path) for path in MODULES} <= LAYER.keys()
    assert len(MODULES) > 20


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_only_go_down(path):
    own = LAYER[part_of(path)]
    for line, part in parts_imported(path):
        other = LAYER[part] if part else TOP
        where = f"{path.relative_to(PACKAGE.parent)}:{line}"
        assert other <= own, f"{where}: {part_of(path)} (floor {own}) imports {part or 'minipeft'} (floor {other})"
        assert part or own > TOP, f"{where}: below floor {TOP}, import the part that is meant, not the whole package"


def test_parts_on_one_floor_do_not_import_each_other_in_a_circle():
    uses = {part: set() for part in LAYER}
    for path in MODULES:
        uses[part_of(path)] |= {part for _, part in parts_imported(path) if part} - {part_of(path)}
    while uses:
        free = [part for part, needs in uses.items() if not needs & uses.keys()]
        assert free, f"a circle of imports among {sorted(uses)}"
        for part in free:
            del uses[part]


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p) not in ARRAYS_ALLOWED], ids=lambda p: p.stem)
def test_only_the_backend_the_data_and_the_report_know_an_array_library(path):
    for line, name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        assert name.partition(".")[0] not in ("numpy", "cupy"), (
            f"{path.relative_to(PACKAGE.parent)}:{line} imports {name}: use active().xp, "
            "for np.exp(cupy_array) works silently and hides a bug"
        )


def test_the_rule_itself_sees_what_it_should():
    source = (
        "if TYPE_CHECKING:\n import a\nelse:\n import b\ndef f():\n from c.d import e\ntry:\n import g.h\nfinally:\n 1"
    )
    assert [name for _, name in imports(ast.parse(source))] == ["b", "c.d.e", "g.h"]
