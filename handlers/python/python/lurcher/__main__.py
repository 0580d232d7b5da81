"""`python -m lurcher`: the program that is installed with the package, run for this interpreter."""

import os
import sys
import sysconfig


def main() -> None:
    """Become the program beside this interpreter."""
    program = os.path.join(sysconfig.get_path("scripts"), "lurcher")
    arguments = sys.argv[1:]
    if arguments[:1] == ["run"] and not any(a.split("=")[0] == "--python" for a in arguments):
        # Whoever runs it by an interpreter means that one.
        arguments[1:1] = ["--python", sys.executable]
    try:
        os.execv(program, ["lurcher", *arguments])
    except OSError as error:
        sys.exit(f"lurcher: start {program}: {error.strerror}")


main()
