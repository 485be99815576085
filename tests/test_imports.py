"""The packages depend on each other in one direction only, and a test reads the imports to hold it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("symphony", "broker", "scheduler", "worker", "frontend", "simulator")
ALLOWED = {
    "symphony": {"symphony"},
    "broker": {"symphony", "broker"},
    "scheduler": {"symphony", "scheduler"},
    "worker": {"symphony", "worker"},
    "frontend": {"symphony", "frontend"},
    "simulator": {"symphony", "scheduler", "simulator"},
}


def _imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Top-level package, line, and whether it is not carried out when the module is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef) or _for_types_only(block)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [] if node.level else [node.module or ""]  # a relative one stays in its package
        else:
            continue
        for name in names:
            yield name.partition(".")[0], node.lineno, id(node) in inside


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    command_line = path.is_relative_to(ROOT / "symphony" / "cli")
    for name, line, lazy in _imports(path):
        if name not in PACKAGES:
            continue
        allowed = name in ALLOWED[package] or (command_line and lazy)
        where = "inside a function only" if command_line else "not at all"
        assert allowed, f"{path.relative_to(ROOT)}:{line}: {package} may import {name} {where}"


def test_the_reader_sees_every_kind_of_import(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text(
        "import broker.core\nfrom worker import x\ndef f():\n    from scheduler.a import b\n"
        "if TYPE_CHECKING:\n    import frontend\nif x:\n    import simulator\nfrom . import y\n"
    )
    assert sorted(_imports(file), key=lambda entry: entry[1]) == [
        ("broker", 1, False),
        ("worker", 2, False),
        ("scheduler", 4, True),
        ("frontend", 6, True),
        ("simulator", 8, False),
    ]
