"""Makes database, artifact store and schema ready for the server. Runs once, before it.

Waits for a database that is still starting, tries the artifact store with a small object, then creates or
upgrades the tables, and lets the server serve what clients once wrote to the store themselves. Safe to run
again, and safe to run several times at once.
"""

import argparse
import logging
import secrets as tokens
import warnings
from collections.abc import Callable

from stackops import artifact_uris, schema, settings

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
    """Do all steps; raises StackError at the first that fails."""
    env = settings.adopt()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    prepare(env, args.wait, say)


def prepare(env: dict[str, str], wait: float, say: Callable[[str], None]) -> None:
    """Check the database, then the store, then bring the schema and the artifact locations up to date."""
    backend, store, accounts = settings.backend(env), settings.store(env), settings.accounts(env)
    backend.wait(env, wait)
    say("database: ok")
    store.probe(env, f"{PROBE}/{tokens.token_hex(8)}")
    say("artifact store: ok")
    with backend.exclusive(env):
        schema.bring_up_to_date(backend.uri(env), say)
        if accounts:
            accounts.prepare(env, say)
        if env.get("ARTIFACT_ACCESS") != "direct":
            serve_again(backend.uri(env), settings.artifact_uri(env), say)


def serve_again(uri: str, store: str, say: Callable[[str], None]) -> None:
    """Turn locations in `store` into the server's own: clients have no key (any more) to go there themselves.

    They are from a time of direct access. Nothing moves: the server finds under mlflow-artifacts:/ what is in
    the store. The other way round nothing is needed, since the server also serves in a time of direct access.
    """
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    engine = sqlalchemy.create_engine(uri, poolclass=NullPool)
    with engine.begin() as connection:
        changes = artifact_uris.apply(connection, [(store, artifact_uris.SERVED)])
    if changes:
        things = artifact_uris.in_words(changes)
        say(f"artifacts: served by the server again: {things} of the time of direct access")
