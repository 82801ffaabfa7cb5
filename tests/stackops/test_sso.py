"""Single sign-on: whom the server believes, which tokens are worth something, and which roles follow from groups."""

import pytest
from stackops import sso, token
from stackops.errors import StackError

KEY = "k" * 40
NOW = 1_800_000_000.0


def headers(**given: str) -> dict[str, str]:
    """Return what nginx sends."""
    return {sso.KEY: KEY, sso.USER: "Ada@Example.com", sso.GROUPS: "mlflow-admins, research,"} | given


def test_nginx_names_a_person() -> None:
    """The name in small letters, the groups without blanks."""
    who = sso.identity(headers(), KEY)
    assert who == sso.Identity("ada@example.com", frozenset({"mlflow-admins", "research"}))


@pytest.mark.parametrize("given", [{sso.KEY: ""}, {sso.KEY: "K" * 40}, {sso.KEY: "ä"}, {sso.USER: ""}, {sso.USER: " "}])
def test_nobody_else_does(given: dict[str, str]) -> None:
    """A wrong key, none, or no name: nobody."""
    assert sso.identity(headers(**given), KEY) is None
    assert sso.identity({sso.USER: "ada@example.com"}, KEY) is None


def test_nobody_at_the_provider_is_the_admin_of_the_stack() -> None:
    """A name without an @ gets a prefix."""
    assert sso.identity(headers(**{sso.USER: "admin"}), KEY).user == "oidc:admin"


def test_roles_follow_groups() -> None:
    """Roles that exist are given and taken; roles that are no group's stay."""
    has, known = {"group:left", "group:a", "by-hand"}, {"group:a", "group:b", "group:left"}
    assert sso.role_changes(frozenset({"a", "b", "unknown"}), has, known) == ({"group:b"}, {"group:left"})


def test_a_token_is_its_users_until_its_end() -> None:
    """Another user, another key, the end, and every changed letter make it worthless."""
    made = token.new(KEY, "ci", int(NOW) + 10)
    assert token.is_valid(KEY, "ci", made, NOW)
    assert not token.is_valid(KEY, "ci", made, NOW + 10)
    assert not token.is_valid(KEY, "other", made, NOW)
    assert not token.is_valid("x" * 40, "ci", made, NOW)
    assert not token.is_valid(KEY, "ci", "", NOW)
    for place in range(len(made)):
        assert not token.is_valid(
            KEY, "ci", made[:place] + ("0" if made[place] != "0" else "1") + made[place + 1 :], NOW
        )
    later = made.replace(made.split("_")[1], f"{int(NOW) + 99:x}")
    assert not token.is_valid(KEY, "ci", later, NOW)


@pytest.mark.parametrize("text", ["0", "367", "-1", "1.5", "", "x", "²"])
def test_days(text: str) -> None:
    """From 1 to 366."""
    with pytest.raises(StackError, match="not a number from 1 to 366"):
        token.days(text)
    assert token.days("366") == 366
