"""The package itself: its stubs say what is there, and everything tells what it is for."""

from __future__ import annotations

import ast
import importlib.resources
import inspect
import pydoc
import unittest
from typing import Any

import lurcher
import lurcher.aio
import lurcher.middleware
from lurcher import _lurcher


def stubs() -> dict[str, ast.ClassDef | ast.FunctionDef]:
    text = importlib.resources.files("lurcher").joinpath("_lurcher.pyi").read_text()
    nodes = ast.parse(text).body
    return {
        node.name: node for node in nodes if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    }


def public(names: Any) -> set[str]:
    return {name for name in names if not name.startswith("_")}


class Package(unittest.TestCase):
    def test_stubs_and_module_have_the_same_names(self) -> None:
        known = {name for name in stubs() if not name.startswith("_")}
        self.assertEqual(known, public(vars(_lurcher)))

    def test_stubs_and_classes_have_the_same_members(self) -> None:
        members: dict[str, set[str]] = {}
        for name, node in stubs().items():
            if isinstance(node, ast.ClassDef):
                own = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
                bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                members[name] = own.union(*(members.get(base, set()) for base in bases))
        for name in ("Body", "Client", "Connection", "Headers", "Request", "WSGIApp", "Writer"):
            for one in (name, f"Aio{name}"):
                if one in members:
                    runtime = getattr(_lurcher, one)
                    self.assertEqual(public(members[one]), public(dir(runtime)), one)
                    for member in members[one]:
                        self.assertTrue(hasattr(runtime, member), f"{one}.{member}")

    def test_stubs_and_functions_take_the_same_arguments(self) -> None:
        for name, node in stubs().items():
            if not isinstance(node, ast.ClassDef) or name.startswith("_"):
                continue
            for item in node.body:
                runtime = getattr(getattr(_lurcher, name), getattr(item, "name", ""), None)
                if not isinstance(item, ast.FunctionDef) or item.name.startswith("_"):
                    continue
                if item.decorator_list or runtime is None:
                    continue
                said = [one.arg for one in item.args.args + item.args.kwonlyargs][1:]
                real = list(inspect.signature(runtime).parameters)[1:]
                self.assertEqual(said, real, f"{name}.{item.name}")

    def test_everything_has_a_word_of_help(self) -> None:
        for module in (lurcher, lurcher.aio, lurcher.middleware):
            self.assertTrue(module.__doc__)
            for name in module.__all__:
                thing = getattr(module, name)
                self.assertTrue(inspect.getdoc(thing), name)
                if not inspect.isclass(thing) or issubclass(thing, Exception):
                    continue
                for member in public(dir(thing)):
                    found = inspect.getattr_static(thing, member)
                    if callable(getattr(thing, member)) or inspect.isdatadescriptor(found):
                        self.assertTrue(inspect.getdoc(getattr(thing, member)), f"{name}.{member}")

    def test_help_of_a_connection_is_worth_reading(self) -> None:
        text = pydoc.plain(pydoc.render_doc(lurcher.Connection))
        for words in ("send_spec", "with lurcher.Connection(", "KeyboardInterrupt", "deliver("):
            self.assertIn(words, text)

    def test_names_are_those_of_the_package(self) -> None:
        self.assertEqual(repr(lurcher.Connection), "<class 'lurcher.Connection'>")
        self.assertEqual(repr(lurcher.aio.Request), "<class 'lurcher.aio.Request'>")
        self.assertEqual(repr(lurcher.ConnectError), "<class 'lurcher.ConnectError'>")
        self.assertTrue(issubclass(lurcher.ClientGone, lurcher.ReplyError))
        self.assertTrue(issubclass(lurcher.ConfigError, lurcher.ConnectError))
        self.assertTrue(issubclass(lurcher.BodyError, lurcher.Error))


if __name__ == "__main__":
    unittest.main()
