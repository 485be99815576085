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
    """Top-level package, line, and whether it stands inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
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
    file.write_text("import broker.core\nfrom worker import x\ndef f():\n    from scheduler.a import b\n")
    assert list(_imports(file)) == [("broker", 1, False), ("worker", 2, False), ("scheduler", 4, True)]
