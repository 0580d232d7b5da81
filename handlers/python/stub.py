import importlib.machinery
import importlib.util
import os
import sys


def load(path):
    loader = importlib.machinery.ExtensionFileLoader("lurcher._lurcher", path)
    spec = importlib.util.spec_from_loader("lurcher._lurcher", loader, origin=path)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


path, target = sys.argv[1:3]
sys.argv[1:] = []
sys.path[0] = os.getcwd()
module = load(path)
sys.exit(module.worker(target))
