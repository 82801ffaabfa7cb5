"""The `stackops` command.

Every module of this package that has `HELP`, `arguments(parser)` and `run(args)` is a command of that name.
Only the module of the command that was asked for is imported: `stackops ready` is the container's health
check and runs every few seconds, so heavy imports belong inside functions.
"""

import argparse
import importlib
import os
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

from stackops.errors import StackError, database_is_damaged, disk_is_full, one_line


def module_names() -> list[str]:
    """Return the names of the modules directly in this package, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if not m.ispkg)


def command(name: str) -> ModuleType | None:
    """Return the module of the command `name`, or None if it is no command."""
    if name not in module_names():
        return None
    module = importlib.import_module(f"stackops.{name}")
    return module if hasattr(module, "HELP") else None


def commands(argv: list[str]) -> dict[str, ModuleType]:
    """Return the commands to offer: the one that `argv` starts with, or else all, for help and errors."""
    if argv and (asked := command(argv[0])):
        return {argv[0]: asked}
    return {name: module for name in module_names() if (module := command(name))}


def parser(argv: list[str]) -> argparse.ArgumentParser:
    """Return the parser that understands `argv`."""
    top = argparse.ArgumentParser(prog="stackops", description="Looks after the MLflow server of this stack.")
    sub = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in commands(argv).items():
        one = sub.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.arguments(one)
        one.set_defaults(run=module.run)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 1 with one line on stderr, or 2 for wrong usage.

    STACKOPS_DEBUG=1 lets unexpected exceptions through with their traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = parser(argv).parse_args(argv)
    try:
        args.run(args)
    except StackError as error:
        print(f"stackops: error: {one_line(error, 1000)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("STACKOPS_DEBUG"):
            raise
        said = f"{type(error).__name__}: {one_line(error)}"
        if disk_is_full(error):
            said = (
                f"{args.command} needs some room and the disk is full ({said}); make some, then run it again"
            )
        elif database_is_damaged(error):
            said = (
                f"the database is damaged ({said}); 'make restore REPLACE=1 BACKUP=no' loads the last backup"
            )
        else:
            said = f"{args.command} failed unexpectedly ({said}); STACKOPS_DEBUG=1 shows where"
        print(f"stackops: error: {said}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
