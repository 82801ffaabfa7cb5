"""Who gets in: the list of users, the check that the proxy asks for, and how often a password may be tried."""

import asyncio
import base64
import io
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from stackops import cli, htpasswd, limiter, login, user
from stackops.errors import StackError

pytest.importorskip("passlib")

LONG = "p@ss:w/o#rd%1[]\\"


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


# --- How often a password may be tried ----------------------------------------------------------------------------


def test_an_address_has_a_burst_and_then_one_try_a_pause():
    clock = Clock()
    limits = limiter.Limiter(clock)
    for _ in range(limiter.BURST):
        assert limits.wait("1.2.3.4", "ann") == 0
        limits.failed("1.2.3.4", "ann")
    assert limits.wait("1.2.3.4", "ann") == limits.wait("1.2.3.4", "somebody else") == limiter.PAUSE
    assert limits.wait("1.2.3.5", "ann") == 0
    clock.now += limiter.PAUSE - 1
    assert limits.wait("1.2.3.4", "ann") == 1
    clock.now += 1
    assert limits.wait("1.2.3.4", "ann") == 0
    limits.failed("1.2.3.4", "ann")
    assert limits.wait("1.2.3.4", "ann") == limiter.PAUSE
    clock.now += limiter.PAUSE * (limiter.BURST + 5)
    for _ in range(limiter.BURST):  # never more than a burst, however long it was quiet
        assert limits.wait("1.2.3.4", "ann") == 0
        limits.failed("1.2.3.4", "ann")
    assert limits.wait("1.2.3.4", "ann") > 0


def test_who_got_in_before_is_not_slowed_by_others_at_the_same_address():
    limits = limiter.Limiter(Clock())
    limits.passed("1.2.3.4", "ann")
    for _ in range(limiter.BURST):
        limits.failed("1.2.3.4", "bob")
    assert limits.wait("1.2.3.4", "bob") > 0 and limits.wait("1.2.3.4", "ann") == 0
    for _ in range(limiter.BURST):  # but her own password cannot be guessed there without end
        limits.failed("1.2.3.4", "ann")
    assert limits.wait("1.2.3.4", "ann") > 0


def test_an_own_login_buys_no_guesses():
    limits = limiter.Limiter(Clock())
    for _ in range(limiter.BURST):
        limits.failed("1.2.3.4", "bob")
        limits.passed("1.2.3.4", "mallory")
    assert limits.wait("1.2.3.4", "bob") > 0


def test_what_counts_as_one_address():
    same = {limiter.network(text) for text in ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff")}
    assert len(same) == 1 and limiter.network("2001:db8:1:3::1") not in same
    assert limiter.network("::ffff:1.2.3.4") == limiter.network("1.2.3.4") == "1.2.3.4"
    assert limiter.network("1.2.3.5") != "1.2.3.4" and limiter.network("no address") == "no address"


def test_memory_is_bounded():
    clock = Clock()
    limits, proven = limiter.Limiter(clock, most=5), limiter.Proven(clock=clock, most=5)
    for number in range(100):
        limits.failed(f"1.2.3.{number}", "ann")
        limits.passed(f"1.2.3.{number}", "ann")
        proven.add(number)
    assert len(limits.known) == len(limits.buckets) == len(proven.until) == 5
    assert 99 in proven and 94 not in proven


def test_what_is_proven_lasts_as_long_as_it_is_used():
    clock = Clock()
    proven = limiter.Proven(10, clock)
    proven.add("x")
    for _ in range(3):
        clock.now += 9
        assert "x" in proven
    clock.now += 10
    assert "x" not in proven


# --- The list -----------------------------------------------------------------------------------------------------


@pytest.fixture
def users(tmp_path):
    path = tmp_path / "htpasswd"
    path.touch(mode=0o600)
    return htpasswd.Users(path)


def test_users_come_change_and_go_in_the_same_file(users):
    before = users.path.stat()
    users.add("ann", LONG)
    users.add("bob", "bob's long password")
    first = htpasswd.parse(users.path.read_text())
    assert [name for name, _ in users.names()] == ["ann", "bob"]
    assert first["ann"].startswith("$6$") and "rounds=" not in first["ann"]
    assert htpasswd.verify(LONG.encode(), first["ann"]) and not htpasswd.verify(b"x", first["ann"])
    users.password("ann", "another long password")
    second = htpasswd.parse(users.path.read_text())
    assert htpasswd.verify(b"another long password", second["ann"]) and second["bob"] == first["bob"]
    users.remove("ann")
    assert users.path.read_text() == f"bob:{first['bob']}\n"
    after = users.path.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode), "a mount would still show the old one"


def test_the_hash_is_that_of_other_tools():
    if not (openssl := shutil.which("openssl")):
        pytest.skip("needs openssl")
    kept = htpasswd.make(LONG)
    command = [openssl, "passwd", "-6", "-salt", kept.split("$")[2], "-stdin"]
    assert subprocess.run(command, input=LONG, capture_output=True, text=True).stdout.strip() == kept
    for kind in ("-5", "-apr1"):
        done = subprocess.run([openssl, "passwd", kind, "-stdin"], input=LONG, capture_output=True, text=True)
        assert htpasswd.verify(LONG.encode(), done.stdout.strip())


def test_other_lines_stay_as_they_are():
    text = "# a note\nann:$6$a\n\nbob:$6$b\nann:$6$second\n"
    assert htpasswd.parse(text) == {"ann": "$6$a", "bob": "$6$b"}
    assert htpasswd.changed(text, "ann", "$6$c") == "# a note\nann:$6$c\n\nbob:$6$b\n"
    assert htpasswd.changed(text, "ann", None) == "# a note\n\nbob:$6$b\n"
    assert htpasswd.changed("ann:$6$a", "bob", "$6$b") == "ann:$6$a\nbob:$6$b\n"


def test_a_change_that_breaks_off_loses_nobody(users, monkeypatch):
    for name in ("ann", "bob", "eve"):
        users.add(name, f"{name}'s long password")
    before = htpasswd.parse(users.path.read_text())

    def full(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(StackError, match="make init"):
        users.remove("eve")
    assert htpasswd.parse(users.path.read_text()) == {name: before[name] for name in ("ann", "bob")}


def test_two_changes_at_once_both_count(users):
    threads = [threading.Thread(target=users.add, args=(f"user{n}", "a long password")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(users.names()) == 8


def test_the_admin_has_the_secrets_password(users):
    assert users.ensure("admin", "short") and not users.ensure("admin", "short")
    users.add("ann", LONG)
    assert users.ensure("admin", "other") and [name for name, _ in users.names()] == ["admin", "ann"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add", "a:b"], "no colon"),
        (["add", ""], "1 to 100"),
        (["add", "a b"], "no blank"),
        (["add", "#a"], "no #"),
        (["add", "a\x07"], "typed"),
        (["add", "ann"], "there is a user ann already"),
        (["password", "bob"], "there is no user bob"),
        (["password", "admin"], "secrets/admin_password"),
        (["remove", "bob"], "there is no user bob"),
        (["remove", "admin"], "admin stays"),
    ],
)
def test_the_command_refuses_and_changes_nothing(stack, monkeypatch, capsys, words, said):
    env = stack(STACK_AUTH="basic")
    path = stack.secrets / "htpasswd"
    path.write_text("ann:$6$a\nadmin:$6$b\n")
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a long password\n"))
    assert cli.main(["user", *words]) == 1
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and "a long password" not in err
    assert path.read_text() == "ann:$6$a\nadmin:$6$b\n"


@pytest.mark.parametrize("password", ["", "eleven char", "x" * 201, "twelve chars\tand a tab"])
def test_weak_passwords_are_refused(password):
    with pytest.raises(StackError):
        user.check_password(password)


# --- What the proxy is told ---------------------------------------------------------------------------------------


def basic(name: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{name}:{password}".encode())


@pytest.fixture
def door(users):
    users.add("ann", LONG)
    users.add("bob", "bob's long password")
    clock = Clock()
    made = login.Login(users.path, "my stack", clock)
    checks = []
    real = htpasswd.verify

    def verify(password, kept):
        checks.append(kept)
        return real(password, kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(htpasswd, "verify", verify)
        yield SimpleNamespace(login=made, users=users, clock=clock, checks=checks)


def ask(door, name, password, address="1.2.3.4") -> login.Answer:
    return asyncio.run(door.login.answer(basic(name, password), address))


def test_answers(door):
    welcome = ask(door, "ann", LONG)
    assert welcome == login.Answer(204, ((b"x-auth-user", b"ann"),))
    for wrong in (ask(door, "ann", "wrong"), ask(door, "nobody", LONG), ask(door, "ANN", LONG)):
        assert wrong == login.Answer(401, ((b"www-authenticate", b'Basic realm="my stack"'),))
    for header in (
        b"",
        b"Bearer x",
        b"Basic",
        b"Basic !",
        b"Basic " + base64.b64encode(b"ann"),
        b"Basic " + b"A" * 9999,
    ):
        before = len(door.checks)
        assert asyncio.run(door.login.answer(header, "1.2.3.4")).status == 401
        assert len(door.checks) == before, "nothing to check"


def test_a_right_login_is_checked_once(door):
    async def many():
        return await asyncio.gather(*(door.login.answer(basic("ann", LONG), "1.2.3.4") for _ in range(50)))

    assert {answer.status for answer in asyncio.run(many())} == {204} and len(door.checks) == 1
    door.clock.now += 599
    assert ask(door, "ann", LONG).status == 204 and len(door.checks) == 1
    door.clock.now += 601
    assert ask(door, "ann", LONG).status == 204 and len(door.checks) == 2


def test_an_unknown_name_costs_a_check_of_the_same_kind(door):
    ask(door, "nobody", "x")
    assert door.checks[0].startswith("$6$") and "rounds=" not in door.checks[0]


def test_changes_count_at_the_next_request(door):
    assert ask(door, "ann", LONG).status == 204
    door.users.password("ann", "another long password")
    assert ask(door, "ann", LONG).status == 401 and ask(door, "ann", "another long password").status == 204
    door.users.remove("ann")
    assert ask(door, "ann", "another long password").status == 401
    door.users.add("eve", LONG)
    assert ask(door, "eve", LONG).status == 204
    door.users.path.unlink()
    assert ask(door, "eve", LONG).status == 401, "no list, no users"


def test_a_removal_during_a_check_is_not_forgotten(door, monkeypatch):
    check = htpasswd.verify

    def meanwhile(password, kept):
        door.users.remove("ann")
        door.login.look()
        return check(password, kept)

    monkeypatch.setattr(htpasswd, "verify", meanwhile)
    ask(door, "ann", LONG)
    monkeypatch.setattr(htpasswd, "verify", check)
    assert ask(door, "ann", LONG).status == 401


def test_wrong_logins_at_once_are_limited_and_slow_nobody_who_is_in(door):
    ask(door, "ann", LONG)

    async def flood():
        wrong = (door.login.answer(basic("bob", f"guess {n}"), "1.2.3.4") for n in range(200))
        return await asyncio.gather(*wrong, door.login.answer(basic("ann", LONG), "1.2.3.4"))

    *wrong, ann = asyncio.run(flood())
    assert [answer.status for answer in wrong].count(401) == limiter.BURST and ann.status == 204
    refused = next(answer for answer in wrong if answer.status == 403)
    assert refused.headers == ((b"retry-after", b"%d" % (limiter.PAUSE + 1)),)
    assert ask(door, "bob", "bob's long password").status == 403, "not even the right one is checked now"
    assert ask(door, "bob", "bob's long password", "1.2.3.5").status == 204
    door.clock.now += 601  # her login is no longer remembered, but she has been here
    assert ask(door, "ann", LONG).status == 204


def test_only_the_one_path_is_answered(door):
    sent, passed = [], []

    async def app(scope, receive, send):
        passed.append(scope["path"])

    async def send(message):
        sent.append(message)

    middleware = login.Middleware(app, door.login)
    headers = [(b"authorization", basic("ann", LONG)), (b"x-real-ip", b"1.2.3.4")]
    for path in ("/stackops/login", "/stackops/login/", "/stackops//login", "/"):
        asyncio.run(middleware({"type": "http", "path": path, "headers": headers}, None, send))
    assert passed == ["/stackops/login/", "/stackops//login", "/"]
    assert sent[0] == {"type": "http.response.start", "status": 204, "headers": [(b"x-auth-user", b"ann")]}


# --- In front of MLflow's own logins ------------------------------------------------------------------------------


@pytest.fixture
def guarded(tmp_path):
    from stackops import guard

    checks, asked = [], []

    def original(name, password):
        checks.append((name, password))
        time.sleep(0.05)
        if password == "down":
            raise ConnectionError
        return (name if password == "right" else None) and SimpleNamespace(username=name)

    auth = SimpleNamespace(
        _authenticate_cached=original,
        _invalidate_user_auth_cache=lambda name: None,
        _auth_cache_key=lambda name, password: (name, password),
        _USER_AUTH_CACHE={},
        _USER_AUTH_CACHE_LOCK=threading.Lock(),
        auth_config=SimpleNamespace(auth_cache_ttl_seconds=60),
        store=SimpleNamespace(get_user=lambda name: asked.append(name) or SimpleNamespace(username=name)),
    )
    clock = Clock()
    made = guard.Guard(auth, tmp_path / "users.changed", limiter.Limiter(clock), limiter.Proven(clock=clock))

    def ask(name, password, address="1.2.3.4"):
        request = guard.Request(address)
        guard.REQUEST.set(request)
        return ("in" if made.authenticate(name, password) else "out"), request.wait

    return SimpleNamespace(ask=ask, asked=asked, auth=auth, checks=checks, clock=clock, guard=made)


def test_mlflow_is_asked_only_so_often(guarded):
    assert guarded.ask("ann", "right") == ("in", 0)
    for number in range(limiter.BURST):
        assert guarded.ask("bob", f"guess {number}") == ("out", 0)
    before = len(guarded.checks)
    assert guarded.ask("bob", "right") == ("out", limiter.PAUSE) and len(guarded.checks) == before
    assert guarded.ask("ann", "right") == ("in", 0) and guarded.ask("bob", "right", "1.2.3.5") == ("in", 0)


def test_many_guesses_at_once_and_one_login_many_times(guarded):
    answers, start = [], threading.Barrier(5 * limiter.BURST)

    def run(*words):
        start.wait()
        answers.append(guarded.ask(*words))

    threads = [threading.Thread(target=run, args=("ann", "right")) for _ in range(2 * limiter.BURST)]
    threads += [threading.Thread(target=run, args=("bob", f"guess {n}", "1.2.3.5")) for n in range(3 * limiter.BURST)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count(("in", 0)) == 2 * limiter.BURST, "a client with many threads is one login"
    assert answers.count(("out", 0)) == limiter.BURST, "each guess counts before it is checked"


def test_a_database_that_is_down_is_nobodys_failure(guarded):
    for _ in range(2 * limiter.BURST):
        with pytest.raises(ConnectionError):
            guarded.ask("ann", "down")
    assert guarded.ask("ann", "right") == ("in", 0)


def test_every_process_forgets_when_users_change(guarded):
    guarded.ask("ann", "right")
    guarded.auth._USER_AUTH_CACHE["ann", "right"] = SimpleNamespace(username="ann")
    before = len(guarded.checks)
    assert guarded.ask("ann", "right") == ("in", 0) and len(guarded.checks) == before
    guarded.guard.forget("ann")
    assert guarded.ask("ann", "right") == ("in", 0) and len(guarded.checks) == before + 1


def test_what_is_known_of_a_user_is_forgotten_when_users_change(guarded):
    for _ in range(3):
        assert guarded.guard.user("ann").username == guarded.guard.user("bob").username.replace("bob", "ann") == "ann"
    assert guarded.asked == ["ann", "bob"]
    guarded.guard.forget("ann")  # here
    guarded.guard.user("ann")
    assert guarded.asked == ["ann", "bob", "ann"]
    guarded.guard.marker.write_text("by another process")
    guarded.guard.user("bob")
    assert guarded.asked == ["ann", "bob", "ann", "bob"]


def test_what_was_asked_before_a_change_is_not_kept(guarded):
    """The database's answer is on its way while the user's rights change."""

    def slow(name):
        guarded.guard.forget(name)
        return SimpleNamespace(username=name, is_admin=True)

    guarded.guard.original_user, original = slow, guarded.guard.original_user
    assert guarded.guard.user("ann").is_admin
    guarded.guard.original_user = original
    guarded.guard.user("ann")
    assert guarded.asked == ["ann"]


def test_too_many_failures_answer_429():
    from stackops import guard

    sent = []

    async def app(scope, receive, send):
        guard.REQUEST.get().wait = 14.2
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"You are not authenticated"})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/", "headers": [(b"x-real-ip", b"5.6.7.8")], "client": ("1.2.3.4", 1)}
    asyncio.run(guard.Middleware(app, b"")(scope, None, send))
    assert [message.get("status") for message in sent] == [429, None]
    assert (b"retry-after", b"15") in sent[0]["headers"] and b"try again in 15 s" in sent[1]["body"]


@pytest.mark.parametrize(("header", "address"), [(b"x-real-ip", "5.6.7.8"), (b"", "1.2.3.4")])
def test_only_the_own_proxy_is_believed(header, address):
    from stackops import guard

    seen = []

    async def app(scope, receive, send):
        seen.append(guard.REQUEST.get().address)

    scope = {"type": "http", "path": "/", "headers": [(b"x-real-ip", b"5.6.7.8")], "client": ("1.2.3.4", 1)}
    asyncio.run(guard.Middleware(app, header)(scope, None, None))
    assert seen == [address]


def test_experiments_by_name_or_id():
    from stackops import grant

    named, numbered = SimpleNamespace(experiment_id="7", name="3"), SimpleNamespace(experiment_id="3", name="other")
    assert grant.pick(named, None, "x") is grant.pick(named, named, "7") is named
    assert grant.pick(None, numbered, "3") is numbered
    with pytest.raises(StackError, match="3 is the name of experiment 7 and the id of 'other'"):
        grant.pick(named, numbered, "3")
    with pytest.raises(StackError, match="there is no experiment x"):
        grant.pick(None, None, "x")


def test_what_mlflow_must_go_on_having():
    """The guard takes the place of these; a new MLflow must still ask them."""
    text = Path(pytest.importorskip("mlflow").__file__).with_name("server").joinpath("auth", "__init__.py").read_text()
    assert "elif _authenticate_cached(username, password):" in text
    assert "return _authenticate_cached(username, password)" in text
    for name in ("_invalidate_user_auth_cache(username)", "def _auth_cache_key(", "_USER_AUTH_CACHE_LOCK = "):
        assert name in text
    # What changes a user also forgets the user.
    for change in ("password=password", "is_admin=is_admin"):
        assert f"store.update_user(username, {change})\n    _invalidate_user_auth_cache(username)" in text
    assert "store.delete_user(username)\n    _invalidate_user_auth_cache(username)" in text
