"""Runs benchmarks: ``python -m bench`` all of them, ``python -m bench latency --seconds 5`` one.

A benchmark is a module here with a ``main``; all together each runs with the arguments in its ``QUICK``
(none without), which keep it under a minute. ``python -m bench NAME --help`` tells what one measures.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import time
from pathlib import Path


def names() -> list[str]:
    """The benchmarks that there are."""
    found = []
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.name.startswith("_") and hasattr(
            importlib.import_module(f"bench.{module.name}"), "main"
        ):
            found.append(module.name)
    return found


def run(name: str, arguments: list[str]) -> int:
    """One benchmark in a process of its own; its exit code."""
    print(f"bench: {name} {' '.join(arguments)}", flush=True)
    began = time.monotonic()
    code = subprocess.run([sys.executable, "-m", f"bench.{name}", *arguments], check=False).returncode
    print(
        f"bench: {name} {'done' if code == 0 else f'failed ({code})'} in {time.monotonic() - began:.0f} s\n"
    )
    return code


def main() -> int:
    """0 if every benchmark has run to its end."""
    there = names()
    if len(sys.argv) > 1 and sys.argv[1] not in there:
        wanted = sys.argv[1]
        print(f"{__doc__}\nThere are: {', '.join(there)}.", file=sys.stderr)
        return 0 if wanted in ("-h", "--help") else 2
    if len(sys.argv) > 1:
        return run(sys.argv[1], sys.argv[2:])
    codes = [
        run(name, list(getattr(importlib.import_module(f"bench.{name}"), "QUICK", []))) for name in there
    ]
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
