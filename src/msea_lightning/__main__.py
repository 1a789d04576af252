"""``python -m msea_lightning <command> ...``, and ``msea``: all commands under one name.

``msea train ...`` is ``python -m msea_lightning.train ...``, also for processes that it starts.
"""

from __future__ import annotations

import runpy
import sys

from msea_lightning.commands.menu import chosen


def main() -> None:
    """Runs the command that the first word names, as if it had been called by its own name."""
    command, words = chosen(sys.argv[1:])
    if command is None:
        return
    sys.argv[1:] = words
    # As the main module, by whose name Lightning starts processes for further devices.
    runpy.run_module(f"msea_lightning.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
