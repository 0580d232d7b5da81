import importlib.machinery
import importlib.util
import sys


def load(path):
    loader = importlib.machinery.ExtensionFileLoader("lurcher._lurcher", path)
    spec = importlib.util.spec_from_loader("lurcher._lurcher", loader, origin=path)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


path = sys.argv[1]
sys.argv[1:] = []
sys.path[0] = ""
module = load(path)
sys.exit(module.worker())
