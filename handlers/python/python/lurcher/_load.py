"""Finds applications by their names, and says in words of one line why one cannot be found.

What an application raises while it is imported is shown as it is, without the frames of those who
import it: that is the application's matter. Nothing is served here.
"""

from __future__ import annotations

import ast
import faulthandler
import importlib
import importlib.util
import inspect
import json
import os
import sys
import threading
import traceback
from types import ModuleType
from typing import Any, Callable, Iterable

#: What an application is called where nobody says it.
USUAL = ("application", "app", "asgi", "wsgi", "create_app", "make_app")


class NotFound(Exception):
    """An application that is not there; the text says what is."""


def load_all(text: str) -> list[tuple[Any, str]] | None:
    """The applications of these settings, each with what it speaks; None: why has been said."""
    settings = json.loads(text)
    # What kills the process says where; without it, a crash in an extension is a mere signal.
    faulthandler.enable()
    if settings["app_dir"] not in sys.path:
        sys.path.insert(0, settings["app_dir"])
    reload = settings["reload"] and not settings["check"]
    try:
        configure_logging(settings["log_config"])
        found = [load_one(place["app"], settings) for place in settings["places"]]
    except BaseException as error:
        words = explain(error)
        sys.stderr.write(words)
        sys.stderr.flush()
        if not reload or isinstance(error, KeyboardInterrupt):
            return None
        found = [(broken(words), "wsgi") for _ in settings["places"]]
        failed = files_of(error, settings["app_dir"])
    else:
        failed = []
    if settings["check"]:
        for place, (_, speaks) in zip(settings["places"], found):
            print(f"{place['app']}: {speaks.upper()}")
        sys.stdout.flush()
    if reload:
        from lurcher import _reload

        _reload.start(failed)
    return found


def load_one(name: str, settings: dict[str, Any]) -> tuple[Any, str]:
    """One application, inside of its middleware."""
    try:
        app = find(name, settings["app_dir"])
        if settings["factory"]:
            app = app()
        if not callable(app):
            raise NotFound(f"it is no application but {describe(app)}, which cannot be called")
        speaks = settings["interface"]
        if speaks == "auto":
            speaks = interface(app)
    except NotFound as error:
        raise NotFound(f"load {name}: {error}") from error.__cause__
    for wrapper in reversed(settings["middleware"]):
        try:
            app = find(wrapper, settings["app_dir"], usual=())(app)
        except NotFound as error:
            raise NotFound(f"load the middleware {wrapper}: {error}") from error.__cause__
        if not callable(app):
            raise NotFound(f"load the middleware {wrapper}: it made {describe(app)} of {name}")
    return app, speaks


def find(name: str, folder: str, usual: Iterable[str] = USUAL) -> Any:
    """What `package.module:attribute` names, or `package.module.attribute`, or `file.py:attribute`.

    The attribute may have dots in it, and may be called: `shop:make(debug=True)`.
    """
    module_name, colon, attribute = name.partition(":")
    if module_name.endswith(".py"):
        module = import_file(os.path.join(folder, module_name))
        return one_of(module, usual) if not attribute else follow(module, attribute)
    if colon:
        module = import_module(module_name)
        return follow(module, attribute) if attribute else one_of(module, usual)
    # Dotted: as much of it as is a module, the rest is inside.
    parts = module_name.split(".")
    for length in range(len(parts), 0, -1):
        candidate = ".".join(parts[:length])
        if length > 1 and not is_module(candidate):
            continue
        module = import_module(candidate)
        rest = ".".join(parts[length:])
        return follow(module, rest) if rest else one_of(module, usual)
    raise NotFound("no name")


def is_module(name: str) -> bool:
    """Whether there is a module of that name; its packages are imported to see."""
    package, _, last = name.rpartition(".")
    try:
        if package and not hasattr(import_module(package), "__path__"):
            return False
        return importlib.util.find_spec(name) is not None
    except (NotFound, ValueError):
        return False


def import_module(name: str) -> ModuleType:
    """The module of that name; one that is missing is told from one that misses another."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise
        folders = ", ".join(path for path in sys.path[:1])
        raise NotFound(f"there is no module {error.name} in {folders} or elsewhere") from error


def import_file(path: str) -> ModuleType:
    """The module in that file, by the name that it would have in its folder."""
    path = os.path.abspath(path)
    if not os.path.isfile(path):
        raise NotFound(f"there is no file {path}")
    folder, file = os.path.split(path)
    name = file[: -len(".py")]
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is not None and spec.origin and os.path.samefile(spec.origin, path):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module


def one_of(module: ModuleType, names: Iterable[str]) -> Any:
    """The application of a module that is named alone."""
    for name in names:
        if hasattr(module, name):
            return getattr(module, name)
    wanted = " or ".join(list(names)[:2]) or "attribute"
    raise NotFound(f"{module.__name__} has no {wanted}; it has {known(module)}")


def follow(found: Any, expression: str) -> Any:
    """The attribute of an attribute …, and what it returns where it is called."""
    try:
        node = ast.parse(expression, mode="eval").body
    except SyntaxError:
        raise NotFound(f"{expression} is no name") from None
    arguments: list[Any] | None = None
    keywords: dict[str, Any] = {}
    if isinstance(node, ast.Call):
        try:
            arguments = [ast.literal_eval(argument) for argument in node.args]
            # One without a name is a whole dict, which `literal_eval` may make as well.
            for word in node.keywords:
                value = ast.literal_eval(word.value)
                keywords.update({word.arg: value} if word.arg is not None else value)
        except ValueError:
            raise NotFound(f"{expression} is called with more than constants") from None
        node = node.func
    for name in names_of(node, expression):
        try:
            found = getattr(found, name)
        except AttributeError:
            if isinstance(found, ModuleType) and is_module(f"{found.__name__}.{name}"):
                found = import_module(f"{found.__name__}.{name}")
                continue
            called = getattr(found, "__name__", None) or describe(found)
            raise NotFound(f"{called} has no {name}; it has {known(found)}") from None
    return found if arguments is None else found(*arguments, **keywords)


def names_of(node: ast.expr, expression: str) -> list[str]:
    """The names of `a.b.c`, in order."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise NotFound(f"{expression} is no name")
    return [node.id, *reversed(names)]


def known(found: Any) -> str:
    """What could be meant: public names of what can be called, a few of them."""
    try:
        inside = vars(found)
    except TypeError:
        return "no attributes"
    names = [
        name
        for name, value in inside.items()
        if not name.startswith("_") and callable(value)
    ]
    few = sorted(names)[:8]
    if not few:
        return "nothing that could be called"
    return ", ".join(few) + (", …" if len(names) > len(few) else "")


def describe(found: Any) -> str:
    """A value in a few words."""
    if isinstance(found, ModuleType):
        return f"the module {found.__name__}"
    kind = type(found).__name__
    return f"an {kind}" if kind[:1].lower() in "aeiou" else f"a {kind}"


def interface(app: Any) -> str:
    """What an application speaks, by how it is called: `async def app(scope, receive, send)`."""
    call: Callable[..., Any] = app
    if inspect.isclass(app):
        # An instance of it is made for each request, which then is iterated or awaited.
        return "asgi" if hasattr(app, "__await__") else "wsgi"
    if not inspect.isroutine(app) and not hasattr(app, "func"):
        call = type(app).__call__
    if inspect.iscoroutinefunction(inspect.unwrap(call)) or inspect.iscoroutinefunction(call):
        return "asgi"
    try:
        needed = [
            parameter
            for parameter in inspect.signature(app).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        return "wsgi"
    if len(needed) == 1 and needed[0].name == "scope":
        raise NotFound("it speaks ASGI 2, which is no longer spoken: asgiref's guarantee_single_callable makes ASGI 3 of it")
    return "asgi" if len(needed) == 3 else "wsgi"


def warn_of_threads() -> None:
    """Say which threads were started while applications were loaded: no fork has them."""
    names = [thread.name for thread in threading.enumerate()[1:]]
    if names:
        names_of = ", ".join(names)
        sys.stderr.write(f"lurcher: --preload: these threads are in no worker: {names_of}\n")
        sys.stderr.flush()


def configure_logging(path: str | None) -> None:
    """Configure the standard library's logging from a file, by what it ends in."""
    if path is None:
        return
    import logging.config

    try:
        if path.endswith(".json"):
            with open(path, encoding="utf-8") as file:
                logging.config.dictConfig(json.load(file))
        elif path.endswith(".toml"):
            try:
                import tomllib  # type: ignore[import-not-found,unused-ignore]
            except ImportError:
                raise NotFound("a .toml file needs Python 3.11 or newer") from None
            with open(path, "rb") as binary:
                logging.config.dictConfig(tomllib.load(binary))
        else:
            with open(path, encoding="utf-8") as file:
                logging.config.fileConfig(file, disable_existing_loggers=False)
    except Exception as error:
        raise NotFound(f"configure logging from {path}: {error}") from error


def explain(error: BaseException) -> str:
    """What is shown of an application that does not load."""
    if isinstance(error, NotFound):
        return f"lurcher: {error}\n"
    if isinstance(error, SystemExit):
        return f"lurcher: the application ended the interpreter when it was loaded: {error.code}\n"
    # The first frames are of those who import it.
    trace = error.__traceback__
    while trace is not None and is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace)
    return "".join(lines) + "lurcher: the application raised this when it was loaded\n"


def is_ours(file: str) -> bool:
    """Whether a frame is of this package, or of the machinery that imports."""
    return file.startswith("<") or os.path.dirname(file) in (
        os.path.dirname(__file__) if "__file__" in globals() else "",
        os.path.dirname(importlib.__file__),
    )


def files_of(error: BaseException, folder: str) -> list[str]:
    """What to change so that it loads: files in the traceback, and those that are missing."""
    found = []
    cause: BaseException | None = error
    while cause is not None:
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            found.append(frame.f_code.co_filename)
        if isinstance(cause, SyntaxError) and cause.filename:
            found.append(cause.filename)
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            path = os.path.join(folder, *cause.name.split("."))
            found += [path + ".py", os.path.join(path, "__init__.py")]
        cause = cause.__cause__ or cause.__context__
    return [file for file in found if not file.startswith("<")]


def broken(words: str) -> Any:
    """What answers in the place of an application that does not load, until its files change."""
    body = words.encode("utf-8", "replace")

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        start_response("500 Internal Server Error", headers)
        return [body]

    return application
