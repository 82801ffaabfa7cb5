"""Makes database, artifact store and schema ready for the server. Runs once, before it.

Waits for a database that is still starting, tries the artifact store with a small object, then creates or
upgrades the tables. Safe to run again, and safe to run several times at once.
"""

import argparse
import logging
import secrets as tokens
import warnings
from collections.abc import Callable

from stackops import schema, settings

HELP = "check database and artifact store, create or upgrade the tables (before the server)"
PROBE = ".stackops-probe"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument(
        "--wait",
        type=float,
        default=45,
        metavar="SECONDS",
        help="how long to wait for a database that does not answer yet (default: 45)",
    )


def say(text: str) -> None:
    """Print one line of progress at once."""
    print(text, flush=True)


def run(args: argparse.Namespace) -> None:
    """Do the three steps; raises StackError at the first that fails."""
    env = settings.adopt()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    prepare(env, args.wait, say)


def prepare(env: dict[str, str], wait: float, say: Callable[[str], None]) -> None:
    """Check the database, then the store, then bring the schema up to date."""
    backend, store, accounts = settings.backend(env), settings.store(env), settings.accounts(env)
    backend.wait(env, wait)
    say("database: ok")
    store.probe(env, f"{PROBE}/{tokens.token_hex(8)}")
    say("artifact store: ok")
    with backend.exclusive(env):
        schema.bring_up_to_date(backend.uri(env), say)
        if accounts:
            accounts.prepare(env, say)
