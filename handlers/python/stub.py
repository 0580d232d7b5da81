"""What the interpreter of a worker begins with: loads the extension module, and hands over to it.

The module comes by its path, with the package's own sources inside of it, or as pip has installed it.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys


class Inside(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds the package `lurcher` in the extension module, where no installed one belongs to it."""

    def __init__(self, sources):
        self.sources = sources

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in self.sources:
            return None
        spec = importlib.util.spec_from_loader(fullname, self, origin=f"<{fullname}>")
        return spec

    def is_package(self, fullname):
        return fullname == "lurcher"

    def get_source(self, fullname):
        return self.sources[fullname]


def extension(path):
    if not path:
        from lurcher import _lurcher

        return _lurcher
    name = "lurcher._lurcher"
    loader = importlib.machinery.ExtensionFileLoader(name, path)
    spec = importlib.util.spec_from_loader(name, loader, origin=path)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[name] = module
    sys.meta_path.insert(0, Inside(module.sources()))
    return module


path, settings = sys.argv[1:3]
# An application's own options are not ours, and where it is looked for is for the settings to say.
sys.argv[:] = ["lurcher"]
sys.path[:] = [path for path in sys.path if path]
sys.exit(extension(path).worker(settings))
