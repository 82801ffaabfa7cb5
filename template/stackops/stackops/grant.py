"""Gives a user a permission on an experiment or a model, or shows what a user has.

    READ             look at it
    USE              READ, and call what can be called
    EDIT             USE, and change it: log runs, register versions
    MANAGE           EDIT, and delete it, and give permissions to others
    DENY             nothing, whatever roles of the user say
    NO_PERMISSIONS   takes back what was given

An experiment is named by its name or its id, a model or a prompt by its name; * means all of them.
"""

import argparse
import os

from stackops import accounts
from stackops.errors import StackError

HELP = "give a user a permission on an experiment or a model, or show what a user has"
NOTHING = "NO_PERMISSIONS"
PERMISSIONS = ("READ", "USE", "EDIT", "MANAGE", "DENY", NOTHING)
PROMPT = "mlflow.prompt.is_prompt"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("user", metavar="USER")
    parser.add_argument("--experiment", default="", metavar="NAME_OR_ID")
    parser.add_argument("--model", default="", metavar="NAME")
    parser.add_argument("--permission", default="", metavar="PERMISSION", help=", ".join(PERMISSIONS))


def pick(named, numbered, name: str):
    """Return the experiment of that name or else of that id. Raises StackError if that is none, or two."""
    if named and numbered and named.experiment_id != numbered.experiment_id:
        raise StackError(
            f"{name} is the name of experiment {named.experiment_id} and the id of {numbered.name!r}: "
            "name the one you mean by the other"
        )
    if found := named or numbered:
        return found
    raise StackError(f"there is no experiment {name}")


class Things:
    """Experiments and models of this stack, as its database has them."""

    def __init__(self) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(os.environ["MLFLOW_BACKEND_STORE_URI"])

    def experiment(self, name: str) -> tuple[str, str]:
        """Return the type and the id under which MLflow keeps permissions. Raises StackError."""
        if name == "*":
            return "experiment", name
        named = self.client.get_experiment_by_name(name)
        numbered = self._experiment(name) if name.isascii() and name.isdigit() else None
        return "experiment", pick(named, numbered, name).experiment_id

    def model(self, name: str) -> tuple[str, str]:
        """Return the type and the name under which MLflow keeps permissions. Raises StackError."""
        from mlflow.exceptions import MlflowException

        if name == "*":
            return "registered_model", name
        try:
            found = self.client.get_registered_model(name)
        except MlflowException:
            raise StackError(f"there is no model {name}") from None
        return ("prompt" if found._tags.get(PROMPT) == "true" else "registered_model"), name

    def called(self, kind: str, pattern: str) -> str:
        """Return how a person calls what a permission is for."""
        if kind == "experiment" and pattern != "*" and (found := self._experiment(pattern)):
            return f"{found.name} (id {pattern})"
        return pattern

    def _experiment(self, number: str):
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_experiment(number)
        except MlflowException:
            return None


def give(users: accounts.Users, name: str, kind: str, pattern: str, permission: str) -> None:
    """Give the permission, in place of an earlier one; NO_PERMISSIONS takes it back."""
    from mlflow.exceptions import MlflowException

    store = users.auth.store
    if permission != NOTHING:
        return store.grant_user_permission(name, kind, pattern, permission)
    try:
        store.revoke_user_resource_permission(name, kind, pattern)
    except MlflowException:
        raise StackError(f"{name} has no permission of their own there") from None


def show(users: accounts.Users, name: str, things: Things) -> None:
    """Print one line a permission."""
    is_admin, rows = users.auth._list_user_role_permissions(name)
    if is_admin:
        print(f"{name} is an admin and may do everything")
    elif not rows:
        print(f"{name} has no permission yet, but owns what they make")
    for row in sorted(rows, key=lambda row: (row.resource_type, row.resource_pattern)):
        role = "" if row.role_name.startswith("__user_") else f"  by the role {row.role_name}"
        target = things.called(row.resource_type, row.resource_pattern)
        print(f"{row.permission:<8}{row.resource_type:<18}{target}{role}")


def run(args: argparse.Namespace) -> None:
    """Give one permission, or show all."""
    permission = args.permission.upper()
    if permission and permission not in PERMISSIONS:
        raise StackError(f"the permission is {args.permission}: there are {', '.join(PERMISSIONS)}")
    if permission and bool(args.experiment) == bool(args.model):
        raise StackError("say for what: an experiment, or a model")
    users = accounts.users(os.environ)
    users.need(args.user)
    things = Things()
    if not permission:
        return show(users, args.user, things)
    kind, pattern = things.experiment(args.experiment) if args.experiment else things.model(args.model)
    give(users, args.user, kind, pattern, permission)
    print(f"{args.user}: {permission} on {kind} {things.called(kind, pattern)}")
