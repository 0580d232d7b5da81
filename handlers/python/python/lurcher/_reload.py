"""Tells the supervisor which files this process has read, so that their change replaces it.

Modules are imported at any time, so it is looked again once a second. Those of the interpreter and of
installed packages are left out: nobody edits them, and they are many.
"""

from __future__ import annotations

import os
import sys
import threading
import time

#: How often it is looked for more modules, in seconds.
INTERVAL = 1.0


def start(files: list[str]) -> None:
    """Begin to tell, with these files and all modules."""
    told = set(files)
    _tell(sorted(told))
    threading.Thread(target=_watch, args=(told,), name="lurcher reload", daemon=True).start()


def _watch(told: set[str]) -> None:
    modules = 0
    while True:
        if len(sys.modules) != modules:
            modules = len(sys.modules)
            found = set(_files()) - told
            told |= found
            _tell(sorted(found))
        time.sleep(INTERVAL)


def _files() -> list[str]:
    installed = (os.path.dirname(os.__file__) + os.sep, sys.prefix + os.sep + "lib" + os.sep)
    found = []
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not file or file.startswith(installed) or file.endswith(".so"):
            continue
        if "site-packages" in file or "dist-packages" in file:
            continue
        found.append(os.path.abspath(file))
    return found


def _tell(files: list[str]) -> None:
    from lurcher import _lurcher

    _lurcher.reads(files)
