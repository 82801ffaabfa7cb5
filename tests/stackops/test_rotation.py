"""`stackops rotate`: what it chooses, what a crash leaves, and what is stored encrypted in the database."""

import io
import json
import os
import subprocess
import sys

import pytest
import sqlalchemy as sa
from conftest import PROJECT
from cryptography.fernet import Fernet
from stackops import rotate
from stackops.errors import StackError
from stackops.rotation import files, hash, kek, keylist, pair, plain, role, webhook

ROWS = [
    "crypto_kek_passphrase:kek:keys:mlflow",
    "db_password:role:database:mlflow",
    "object_store.json:keylist:store:object-store,mlflow",
    "s3_credentials:pair:store:object-store,mlflow",
    "admin_password:plain:login:",
    "htpasswd:hash:login:nginx",
    "azure_connection_string:given:store:mlflow",
]
PAIR = "[default]\naws_access_key_id = NAME1\naws_secret_access_key = old-secret\n"


@pytest.fixture
def folder(tmp_path):
    """Some secrets."""
    (tmp_path / "admin_password").write_text("a" * 24)
    (tmp_path / "htpasswd").write_text("ann:$6$x\nadmin:$6$old\n")
    (tmp_path / "s3_credentials").write_text(PAIR)
    identities = [
        {"name": "server", "credentials": [{"accessKey": "NAME1", "secretKey": "old-secret"}], "actions": ["Read:b"]},
        {"name": "other", "credentials": [{"accessKey": "NAME2", "secretKey": "stays"}], "actions": []},
    ]
    (tmp_path / "object_store.json").write_text(json.dumps({"identities": identities}))
    (tmp_path / "db_password").write_text("d" * 40)
    return files.Files(tmp_path)


def names(only: str) -> list[str]:
    return [secret.name for secret in rotate.chosen(rotate.table(ROWS), only)]


def test_what_a_word_chooses():
    assert names("all") == [row.split(":")[0] for row in ROWS[:-1]]
    assert names("database") == names("db_password") == ["db_password"]
    # A list that is made of keys follows them, and is not changed without them.
    assert names("s3_credentials") == names("object_store.json") == ["object_store.json", "s3_credentials"]
    assert names("admin_password") == names("htpasswd") == ["admin_password", "htpasswd"]
    assert "azure_connection_string" in names("azure_connection_string")
    assert names("keys,database") == ["crypto_kek_passphrase", "db_password"]
    with pytest.raises(StackError, match="no secret 'nonsense'.*db_password.*keys, database, store, login"):
        names("nonsense")


def test_order(folder):
    due, unfinished = rotate.agenda(folder, rotate.table(ROWS), "all")
    kinds = [secret.kind for secret in due]
    assert kinds[0] == "role" and set(kinds[-2:]) == {"keylist", "hash"} and not unfinished


class Crash(Exception):
    pass


STEPS = [secret for secret in rotate.table(ROWS) if secret.kind in ("keylist", "pair", "plain", "hash")]


@pytest.mark.parametrize("at", range(1, 40))
def test_a_crash_at_any_rename_leaves_every_secret_and_the_next_run_finishes(folder, monkeypatch, at):
    """The n-th change of a file does not happen any more, as after kill -9. Then everything is run again."""
    before = {secret.name: folder.text(secret.name) for secret in STEPS}
    count = 0

    def dying(function):
        def wrapped(*arguments, **more):
            nonlocal count
            count += 1
            if count == at:
                raise Crash
            return function(*arguments, **more)

        return wrapped

    def all_of_it():
        due, _ = rotate.agenda(folder, STEPS, "all")
        rotate.propose(folder, due)
        rotate.switch(folder, due, lambda text: None)
        for secret in due:
            folder.forget(secret.name)

    with monkeypatch.context() as patch:
        for name in ("link", "replace", "unlink", "rename"):
            patch.setattr(os, name, dying(getattr(os, name)))
        try:
            all_of_it()
        except Crash:
            pass
        else:
            assert count < at and at > 8, "every change was tried"
    assert all(folder.text(secret.name) for secret in STEPS), "no secret is ever missing"
    half = rotate.agenda(folder, STEPS, "all")[0]
    all_of_it()
    assert folder.begun([secret.name for secret in STEPS]) == ([], [])
    after = {secret.name: folder.text(secret.name) for secret in STEPS}
    assert all(before[secret.name] != after[secret.name] for secret in half)
    # What belongs together is in step.
    key = pair.key(after["s3_credentials"])["aws_secret_access_key"]
    assert json.loads(after["object_store.json"])["identities"][0]["credentials"][0]["secretKey"] == key
    from passlib.hash import sha512_crypt

    admin = next(line for line in after["htpasswd"].splitlines() if line.startswith("admin:"))
    assert sha512_crypt.verify(after["admin_password"], admin.removeprefix("admin:"))


def test_after_a_replacement_only_that_is_finished(folder):
    secrets = rotate.table(ROWS)
    folder.propose("admin_password", "b" * 24)
    assert {s.name for s in rotate.agenda(folder, secrets, "database")[0]} == {"admin_password", "db_password"}
    folder.replace("admin_password")
    due, unfinished = rotate.agenda(folder, secrets, "all")
    assert [s.name for s in due] == ["admin_password"] and unfinished
    assert (folder.before("admin_password"), folder.text("admin_password")) == ("a" * 24, "b" * 24)
    folder.put_back("admin_password")
    assert folder.text("admin_password") == "a" * 24 and not folder.old("admin_password").exists()


def test_only_what_others_issue_is_put_back(folder, monkeypatch):
    """The rest of the stack follows the other new secrets: it must never meet the old ones again."""
    (folder.folder / "azure_connection_string").write_text("old")
    monkeypatch.setattr("sys.stdin", io.StringIO("new\n"))
    due = [s for s in rotate.table(ROWS) if s.name in ("azure_connection_string", "admin_password")]
    rotate.propose(folder, due)
    rotate.switch(folder, due, print)
    new = folder.text("admin_password")
    assert folder.text("azure_connection_string") == "new"
    rotate.put_back(folder, due, print)
    assert (folder.text("azure_connection_string"), folder.text("admin_password")) == ("old", new)


def test_new_files_are_private_and_never_empty(folder):
    folder.propose("admin_password", plain.propose("admin_password", folder))
    assert folder.next("admin_password").stat().st_mode & 0o777 == 0o600
    assert len(folder.coming("admin_password")) == 24 != len(set(folder.coming("admin_password")))
    with pytest.raises(StackError, match="new db_password is empty"):
        folder.propose("db_password", "\n")


def test_a_failed_proof_keeps_the_old_ones(folder, monkeypatch):
    monkeypatch.setattr(rotate.settings, "adopt", dict)
    secrets = [s for s in rotate.table(ROWS) if s.kind == "role"]
    folder.propose("db_password", "new")
    folder.replace("db_password")
    monkeypatch.setattr(role, "connect", lambda env, name, password: type("C", (), {"close": lambda self: None})())
    monkeypatch.setattr(role, "role", lambda env, name: ("mlflow", "mlflow"))
    with pytest.raises(StackError, match="accepts the old db_password"):
        rotate.prove(folder, secrets, print)
    assert folder.old("db_password").exists()
    monkeypatch.setattr(role, "connect", lambda env, name, password: None)
    with pytest.raises(StackError, match="refuses the new db_password"):
        rotate.prove(folder, secrets, print)


def test_the_key_list_follows_by_access_key(folder):
    folder.propose("s3_credentials", pair.propose("s3_credentials", folder))
    made = json.loads(keylist.propose("object_store.json", folder))["identities"]
    new = pair.key(folder.coming("s3_credentials"))
    assert new["aws_access_key_id"] == "NAME1" and new["aws_secret_access_key"] != "old-secret"
    assert made[0]["credentials"][0]["secretKey"] == new["aws_secret_access_key"]
    assert made[1]["credentials"][0]["secretKey"] == "stays"


def test_a_list_of_another_access_goes(folder):
    (folder.folder / "object_store_direct.json").write_text("{}")
    keylist.prove({"SECRETS_DIR": str(folder.folder)}, "object_store.json", "", "")
    assert sorted(p.name for p in folder.folder.glob("*.json")) == ["object_store.json"]


def test_other_users_of_the_proxy_stay(folder):
    lines = hash.propose("htpasswd", folder).splitlines()
    assert sorted(line[:9] for line in lines) == ["admin:$6$", "ann:$6$x"]


@pytest.fixture
def database(tmp_path):
    """MLflow's tables with secrets, as MLflow itself stores them."""
    from mlflow.store.model_registry.dbmodels import models as registry
    from mlflow.store.tracking.dbmodels.models import SqlGatewaySecret
    from mlflow.utils.crypto import KEKManager, _encrypt_secret

    engine = sa.create_engine(f"sqlite:///{tmp_path}/m.db")
    SqlGatewaySecret.__table__.create(engine)
    registry.SqlWebhook.__table__.create(engine)
    with engine.begin() as connection:
        for number, phrase in enumerate(["old", "old", "lost"]):
            made = _encrypt_secret({"k": f"v{number}"}, KEKManager(phrase, 1), str(number), f"n{number}")
            connection.execute(
                sa.insert(SqlGatewaySecret.__table__).values(
                    secret_id=str(number),
                    secret_name=f"n{number}",
                    encrypted_value=made.encrypted_value,
                    wrapped_dek=made.wrapped_dek,
                    masked_value="{}",
                )
            )
    return engine


def test_stored_keys_are_wrapped_anew(database):
    from mlflow.store.tracking.dbmodels.models import SqlGatewaySecret
    from mlflow.utils.crypto import KEKManager, _decrypt_secret

    with database.begin() as connection:
        assert kek.rewrap(connection, "old", "new", 1) == (2, 1)
    with database.begin() as connection:
        assert kek.rewrap(connection, "old", "new", 1) == (0, 1), "a second run changes nothing"
        table = SqlGatewaySecret.__table__
        for row in connection.execute(sa.select(table)).all()[:2]:
            assert row.kek_version == 1
            value = row.encrypted_value, row.wrapped_dek
            found = _decrypt_secret(*value, KEKManager("new", 1), row.secret_id, row.secret_name)
            assert found == {"k": f"v{row.secret_id}"}
            with pytest.raises(Exception, match="decrypt"):
                _decrypt_secret(*value, KEKManager("old", 1), row.secret_id, row.secret_name)


def test_webhooks_are_encrypted_anew(database):
    old, new, lost = (Fernet.generate_key().decode() for _ in range(3))
    with database.begin() as connection:
        for name, key in (("a", old), ("b", lost), ("c", None)):
            token = Fernet(key).encrypt(b"hmac").decode() if key else None
            connection.execute(
                sa.text("INSERT INTO webhooks (workspace, webhook_id, name, url, status, secret) "
                        "VALUES ('default', :n, :n, 'u', 'ACTIVE', :s)"),
                {"n": name, "s": token},
            )  # fmt: skip
        assert webhook.encrypt_again(connection, old, new) == (1, 1)
        assert webhook.encrypt_again(connection, old, new) == (0, 1)
        token = connection.execute(sa.text("SELECT secret FROM webhooks WHERE webhook_id = 'a'")).scalar_one()
        assert Fernet(new).decrypt(token) == b"hmac"


def test_an_empty_database_has_nothing_to_wrap():
    with sa.create_engine("sqlite://").begin() as connection:
        assert kek.rewrap(connection, "a", "b", 1) == (0, 0)
        assert webhook.encrypt_again(connection, Fernet.generate_key(), Fernet.generate_key()) == (0, 0)


ACCOUNT = """
import os, sys
from pathlib import Path
from stackops import prepare, settings
from stackops.errors import StackError
from stackops.rotation import account
env = settings.adopt()
prepare.prepare(env, 5, lambda text: None)
secret = Path(os.environ["SECRETS_DIR"], "admin_password")
old = secret.read_text().strip()
for new, said in (("another long password", "refuses the new"), (old, "accepts the old")):
    try:
        account.prove(env, "admin_password", old, new)
        sys.exit("proved")
    except StackError as error:
        assert said in str(error), error
account.prove(env, "admin_password", "another long password", old)
"""


def test_the_admins_password_is_proved(stack, tmp_path):
    """With MLflow's own tables of users: a new one that is not in force, and an old one that still is, are found."""
    env = stack(STACK_AUTH="mlflow", DATA_DIR=str(tmp_path), ARTIFACT_URI=str(tmp_path / "artifacts"))
    (stack.secrets / "webhook_encryption_key").write_text(Fernet.generate_key().decode())
    paths = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", ACCOUNT], env={**env, **paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
