"""`python -m lurcher`: the program that is installed with the package, run for this interpreter."""

import os
import sys
import sysconfig


def become(name: str, arguments: list[str]) -> None:
    """Become the program beside this interpreter, or of its user, by a name that it knows."""
    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    folders = [sysconfig.get_path("scripts", scheme) for scheme in schemes]
    programs = [os.path.join(folder, "lurcher") for folder in folders]
    program = next(filter(os.path.exists, programs), programs[0])
    try:
        os.execv(program, [name, *arguments])
    except OSError as error:
        sys.exit(f"{name}: start {program}: {error.strerror}")


def main() -> None:
    """The program with the arguments of this process."""
    arguments = sys.argv[1:]
    is_named = any(argument.split("=")[0] == "--python" for argument in arguments)
    if arguments[:1] == ["run"] and not is_named:
        # Whoever runs it by an interpreter means that one.
        os.environ.setdefault("LURCHER_RUN_PYTHON", sys.executable)
    become("lurcher", arguments)


def m2wsgi() -> None:
    """The program by the name of its predecessor, with that one's arguments."""
    become("m2wsgi", sys.argv[1:])


if __name__ == "__main__":
    main()
