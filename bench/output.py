"""Where a benchmark's figures go: a text for people, and JSON where ``--json`` says."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json FILE|-`` as ``options.json``."""
    parser.add_argument("--json", metavar="FILE", help="write JSON to a file, or - for standard output")


def tell(text: str, found: Any, json_to: str | None) -> None:
    """Print the text; to standard error where standard output is for the JSON.

    Args:
        text: for people.
        found: what JSON can hold.
        json_to: a file's name, ``-`` for standard output, or None for no JSON.
    """
    print(text, file=sys.stderr if json_to == "-" else sys.stdout)
    if json_to == "-":
        print(json.dumps(found))
    elif json_to:
        Path(json_to).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
