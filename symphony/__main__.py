"""``python -m symphony``: the same as the ``symphony`` command."""

from __future__ import annotations

from symphony.cli.main import main

if __name__ == "__main__":
    main()
