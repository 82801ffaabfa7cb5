"""`stackops doctor`: each check finds its planted fault, and finds nothing in a healthy stack."""

import datetime
import json
import os
import socket
import ssl
import subprocess
import threading
from copy import deepcopy

import pytest
from stackops import cli, doctor
from stackops.diagnosis import containers, exposure, files, live
from stackops.diagnosis.facts import OK, SERIOUS, WARN, Facts, sections

NOW = 1_800_000_000.0
COMPOSE = {
    "services": {
        "mlflow": {
            "image": "stack-mlflow:1",
            "mem_limit": str(2 << 30),
            "restart": "unless-stopped",
            "environment": {"MLFLOW_SERVER_ALLOWED_HOSTS": "ml.example.com,ml.example.com:*,localhost"},
        },
        "proxy": {
            "image": "proxy:1",
            "restart": "unless-stopped",
            "ports": [{"host_ip": "127.0.0.1", "published": "8080", "target": 8080}],
        },
        "check": {"image": "stack-mlflow:1", "profiles": ["check"], "mem_limit": str(99 << 30)},
    },
    "secrets": {"db_password": {}, "s3_credentials": {}, "db_ca.pem": {}, "passwd": {}},
}


def container(service: str, image: str, **state):
    """Return what `docker inspect` says of a healthy container."""
    return {
        "Config": {"Image": image, "Labels": {"com.docker.compose.service": service}},
        "HostConfig": {"RestartPolicy": {"Name": "unless-stopped"}, "PortBindings": {}},
        "State": {"Status": "running", "Running": True, "Health": {"Status": "healthy", "Log": []}, **state},
        "RestartCount": 0,
    }


LIVE = {
    "backup": None,
    "time": NOW,
    "disks": {"/data": [50 << 30, 100 << 30]},
    "clocks": {"the artifact store": 0.4},
    "database": {"skew": 0.1, "connections": 12, "max_connections": 100, "planned": 100, "file": 1 << 20},
    "ready": "",
}


class Plant:
    """A healthy stack, in which a test changes one thing."""

    def __init__(self, folder):
        self.folder, self.compose, self.live = folder, deepcopy(COMPOSE), deepcopy(LIVE)
        self.containers = [container("mlflow", "stack-mlflow:1"), container("proxy", "proxy:1")]
        self.sections = {
            "engine": "28.5.2\n",
            "compose-version": "2.40.3",
            "memory": str(8 << 30),
            "env": f"STACK_UID={os.getuid()}\nHTTP_PORT=8080\nCOMPOSE_PROJECT_NAME=x\n",
            "env-mode": "-rw------- 1 me me 9 .env",
            "example": "STACK_UID=\n#HTTP_PORT=8080\n#HTTP_BIND=127.0.0.1\n#PUBLIC_URL=x\n",
            "answers": "_commit: v0.2.0\n_src_path: gh:org/mlflow-stack\ntls: none\n",
            "tracked": "",
            "url": "http://ml.example.com:8080/mlflow",
            "published": "proxy",
            "time": str(int(NOW)),
        }
        secrets = folder / "secrets"
        secrets.mkdir(mode=0o700)
        self.secret("db_password", "s9dKx02mQpLw83hfTz71")
        self.secret(
            "s3_credentials", "[default]\naws_access_key_id = a\naws_secret_access_key = s9dKx02mQpLw83hfTz71\n"
        )
        self.secret("db_ca.pem", "")
        self.secret("passwd", "postgres:x:1:1::/:/bin/sh")

    def secret(self, name, text, mode=0o600):
        path = self.folder / "secrets" / name
        path.write_text(text)
        path.chmod(mode)

    def facts(self) -> Facts:
        more = {"compose": self.compose, "containers": self.containers, "live": self.live}
        return Facts(self.folder, {**self.sections, **{name: json.dumps(value) for name, value in more.items()}}, NOW)


@pytest.fixture
def plant(tmp_path):
    return Plant(tmp_path)


def certificate(days: int, host: str = "ml.example.com", life: int = 900) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    end = datetime.datetime.fromtimestamp(NOW, datetime.UTC) + datetime.timedelta(days=days, hours=1)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(end - datetime.timedelta(days=life)).not_valid_after(end)
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), False)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def first(plant, **state):
    plant.containers[0]["State"].update(state)


def show(plant, pem):
    plant.sections["answers"] = plant.sections["answers"].replace("tls: none", "tls: files")
    plant.live["served"] = {"name": "ml.example.com", "pem": pem}


def bind(plant, service, address, port="8080"):
    plant.compose["services"][service]["ports"] = [{"host_ip": address, "published": port}]


# A check, how the fault is planted, how bad it is, what is said, what mends it.
def replicas(plant, number):
    """Let there be that many containers of the server."""
    plant.compose["services"]["mlflow"]["deploy"] = {"replicas": number}


FAULTS = [
    (containers.versions, lambda p: p.sections.update(engine="23.0.1"), SERIOUS, "Engine 23.0.1 is too old", "apt-get"),
    (
        containers.versions,
        lambda p: p.sections.update({"compose-version": "v2.23.9"}),
        SERIOUS,
        "Compose v2.23.9",
        "apt-get",
    ),
    (containers.states, lambda p: first(p, OOMKilled=True), SERIOUS, "more memory than its limit", "MEMORY"),
    (containers.states, lambda p: first(p, Restarting=True), SERIOUS, "again and again", "make logs SERVICE=mlflow"),
    (containers.states, lambda p: first(p, Status="exited"), SERIOUS, "mlflow is exited", "make up"),
    (
        containers.states,
        lambda p: first(p, Health={"Status": "unhealthy", "Log": [{"ExitCode": 1, "Output": "not ready: db\n"}]}),
        SERIOUS,
        "unhealthy: not ready: db",
        "make logs",
    ),
    (
        containers.states,
        lambda p: first(p, Health={"Status": "healthy", "Log": [{"ExitCode": 0}, {"ExitCode": 1, "Output": "gap"}]}),
        WARN,
        "was not ready for 1 of its last health checks: gap",
        "make logs",
    ),
    (containers.states, lambda p: p.containers[0].update(RestartCount=3), WARN, "restarted 3 times", "make logs"),
    (containers.states, lambda p: p.containers.clear(), SERIOUS, "the stack does not run", "make up"),
    (containers.states, lambda p: p.containers.pop(), SERIOUS, "proxy: no container", "make up"),
    (
        containers.images,
        lambda p: p.containers[0]["Config"].update(Image="stack-mlflow:0"),
        WARN,
        "stack-mlflow:0",
        "make up",
    ),
    (containers.memory, lambda p: p.sections.update(memory=str(1 << 30)), WARN, "2048 MiB together", "make up"),
    (containers.memory, lambda p: replicas(p, 5), WARN, "10240 MiB together", "make up"),
    (containers.states, lambda p: replicas(p, 2), WARN, "1 of 2 containers of mlflow run", "make up"),
    (live.readiness, lambda p: p.live.update(ready="database: HTTP 500"), SERIOUS, "database: HTTP 500", "make up"),
    (live.disks, lambda p: p.live.update(disks={"/data": [5 << 30, 100 << 30]}), WARN, "5120 MiB of", "docker system"),
    (live.disks, lambda p: p.live.update(disks={"/data": [1 << 20, 2 << 30]}), SERIOUS, "1 MiB of", "docker system"),
    (live.clocks, lambda p: p.sections.update(time=str(NOW - 60)), WARN, "this machine differs by 60 s", "timedatectl"),
    (
        live.clocks,
        lambda p: p.live["database"].update(skew=-400),
        SERIOUS,
        "the database differs by 400",
        "timedatectl",
    ),
    (
        live.clocks,
        lambda p: p.live.update(clocks={"the artifact store": 9}),
        WARN,
        "store differs by 9 s",
        "timedatectl",
    ),
    (live.connections, lambda p: p.live["database"].update(connections=95), SERIOUS, "95 of", "CONNECTIONS"),
    (live.connections, lambda p: p.live["database"].update(planned=200), SERIOUS, "may open 200", "CONNECTIONS"),
    (live.served_certificate, lambda p: show(p, certificate(20)), WARN, "ml.example.com ends in 20 days", "tls.pem"),
    (live.served_certificate, lambda p: show(p, certificate(-1)), SERIOUS, "ml.example.com has ended", "tls.pem"),
    (
        live.served_certificate,
        lambda p: show(p, certificate(200, "other.example")),
        SERIOUS,
        "is shown for ml.example.com is for other.example",
        "tls.pem",
    ),
    (
        live.served_certificate,
        lambda p: p.live.update(served={"name": "ml.example.com", "error": "no certificate yet"}),
        SERIOUS,
        "no certificate is shown for ml.example.com: no certificate yet",
        "make logs SERVICE=proxy",
    ),
    (
        live.artifacts,
        lambda p: p.live.update({"store is empty": True, "backup": {"objects": 1200}}),
        SERIOUS,
        "the store is empty, and 1,200 artifacts were there",
        "make restore ONLY=artifacts",
    ),
    (live.backups, lambda p: p.live.update(first=NOW - 9 * 86400), WARN, "no backup was made in 9 days", "make backup"),
    (live.size, lambda p: p.live["database"].update(file=5 << 30), WARN, "5120 MiB", "mlflow gc"),
    (files.env_lines, lambda p: p.sections.update(env="HTTP_PORT=1\n"), SERIOUS, "STACK_UID is missing", "make init"),
    (files.env_lines, lambda p: p.sections.update(env="STACK_UID=\n"), SERIOUS, "STACK_UID is empty", "EDITOR"),
    (files.env_lines, lambda p: p.sections.update(env="STACK_UID=1\nHTP_PORT=1\n"), WARN, "sets HTP_PORT", "sed -i"),
    (files.env_lines, lambda p: p.sections.update(env=""), SERIOUS, "there is no .env", "make init"),
    (
        files.env_mode,
        lambda p: p.sections.update({"env-mode": "-rw-r--r-- 1"}),
        WARN,
        "others may read .env",
        "chmod 600",
    ),
    (
        files.secret_files,
        lambda p: p.secret("db_password", "x", 0o644),
        SERIOUS,
        "others may read secrets/db_password (mode 644)",
        "chmod 600 secrets/db_password",
    ),
    (
        files.secret_files,
        lambda p: (p.folder / "secrets").chmod(0o755),
        SERIOUS,
        "secrets (mode 755)",
        "chmod 700 secrets",
    ),
    (files.secret_files, lambda p: p.sections.update(env="STACK_UID=77"), SERIOUS, "runs as 77", "sudo chown -R 77:77"),
    (files.secret_files, lambda p: (p.folder / "secrets/passwd").unlink(), SERIOUS, "passwd is missing", "make up"),
    (files.weak_secrets, lambda p: p.secret("db_password", ""), SERIOUS, "db_password is empty", "make init"),
    (files.weak_secrets, lambda p: p.secret("db_password", "q7WxKmB"), SERIOUS, "is shorter", "SECRET=db_password"),
    (
        files.weak_secrets,
        lambda p: p.secret("db_password", "Password123456789"),
        SERIOUS,
        "attackers",
        "SECRET=db_password",
    ),
    (
        files.weak_secrets,
        lambda p: p.secret("s3_credentials", "[default]\naws_secret_access_key = minioadmin\n"),
        SERIOUS,
        "attackers",
        "SECRET=s3_credentials",
    ),
    (
        files.tracked_secrets,
        lambda p: p.sections.update(tracked=".env"),
        SERIOUS,
        "git tracks .env",
        "git rm -r --cached",
    ),
    (
        files.unfinished_rotation,
        lambda p: p.secret(".db_password.old", "x"),
        SERIOUS,
        "interrupted: db_password",
        "rotate",
    ),
    (files.unfinished_rotation, lambda p: p.secret(".x.next", "x"), SERIOUS, "interrupted: x", "make rotate-secrets"),
    (
        files.unfinished_rotation,
        lambda p: (p.secret(".x.next", "x"), p.sections.update(rotating="4711")),
        WARN,
        "right now (process 4711)",
        "make doctor",
    ),
    (files.certificates, lambda p: p.secret("tls.pem", certificate(20)), WARN, "tls.pem ends in 20 days", "tls.pem"),
    (files.certificates, lambda p: p.secret("db_ca.pem", certificate(-1)), SERIOUS, "db_ca.pem has ended", "db_ca.pem"),
    (files.drift, lambda p: p.sections.update(releases="x\trefs/tags/v0.10.0"), WARN, "v0.10.0 is out", "make update"),
    (exposure.http_outside, lambda p: bind(p, "proxy", "0.0.0.0"), SERIOUS, "0.0.0.0:8080 and does not", "HTTP_BIND"),
    (exposure.http_outside, lambda p: bind(p, "proxy", ""), SERIOUS, "0.0.0.0:8080 and does not", "HTTP_BIND"),
    (
        exposure.open_ports,
        lambda p: bind(p, "mlflow", "::", "5000"),
        SERIOUS,
        "mlflow publishes 0.0.0.0:5000",
        "override",
    ),
    (
        exposure.open_ports,
        lambda p: p.containers[1]["HostConfig"].update(PortBindings={"8080/tcp": [{"HostIp": "", "HostPort": "8080"}]}),
        SERIOUS,
        "still publishes 0.0.0.0:8080",
        "make up",
    ),
    (
        exposure.host_names,
        lambda p: p.sections.update(url="https://other.example"),
        SERIOUS,
        "other.example",
        "make up",
    ),
]


@pytest.mark.parametrize(
    ("check", "fault", "level", "said", "mends"), FAULTS, ids=lambda v: getattr(v, "__name__", None)
)
def test_a_planted_fault_is_found(plant, check, fault, level, said, mends):
    assert not check(plant.facts()), "nothing is found in a healthy stack"
    fault(plant)
    found = check(plant.facts())
    assert [(one.level, said in one.text, mends in one.command) for one in found][:1] == [(level, True, True)], found
    assert all(one.command and "\n" not in one.text for one in found)


def test_every_check_has_a_planted_fault(plant):
    assert set(doctor.CHECKS) - {fault[0] for fault in FAULTS} == {containers.built}
    assert {one.level for one in doctor.examine(plant.facts())} == {OK}


def test_an_image_of_other_files_is_found(plant, tmp_path):
    source, there = tmp_path / "stackops" / "stackops", tmp_path / "image"
    for folder in (source, there):
        folder.mkdir(parents=True)
        (folder / "a.py").write_text("x = 1\n")
    (source / "__pycache__").mkdir()
    (source / "__pycache__" / "b.py").write_text("")
    places = {"stackops/stackops": str(there)}
    assert containers.built(plant.facts(), places) == []
    (source / "new.py").write_text("")
    assert [one.command for one in containers.built(plant.facts(), places)] == ["make up"]
    (source / "new.py").unlink()
    (source / "a.py").write_text("x = 2\n")
    assert containers.built(plant.facts(), places)


def test_a_certificate_that_is_renewed_by_itself(plant):
    """One of six days is not near its end all the time, and one for all names of a domain is for this one."""
    plant.sections["answers"] = "tls: acme\n"
    for days, level in ((5, None), (3, None), (0, SERIOUS)):
        show(plant, certificate(days, "*.example.com", 6))
        found = live.served_certificate(plant.facts())
        assert [one.level for one in found] == ([level] if level else [])
        assert all("make logs SERVICE=proxy" in one.command for one in found)
    assert not live.covers("*.example.com", "a.b.example.com") and not live.covers("*.example.com", "example.com")


def test_the_certificate_that_is_shown_is_looked_at(tmp_path):
    """By a real handshake, with the name that people use; where nobody answers, the reason is kept."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    asked = []
    context.sni_callback = lambda tls, name, _: asked.append(name)
    make = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x")
    subprocess.run([*make, "-keyout", tmp_path / "key", "-out", tmp_path / "pem"], check=True, capture_output=True)
    context.load_cert_chain(tmp_path / "pem", tmp_path / "key")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with server.accept()[0] as one, context.wrap_socket(one, server_side=True):
                pass

        place = f"127.0.0.1:{server.getsockname()[1]}=ml.example.com"
        (thread := threading.Thread(target=serve)).start()
        assert live.certificate(place) == {"name": "ml.example.com", "pem": (tmp_path / "pem").read_text()}
        thread.join()
    assert asked == ["ml.example.com"]
    assert "refused" in live.certificate(place)["error"]


def test_https_in_front_or_by_the_stack(plant):
    """An https proxy makes of it something to look at; the stack's own TLS is what the port is for."""
    bind(plant, "proxy", "0.0.0.0")
    plant.sections["env"] += "PUBLIC_URL=https://ml.example.com\n"
    assert [one.level for one in exposure.http_outside(plant.facts())] == [WARN]
    plant.sections["answers"] = "tls: files\n"
    assert exposure.http_outside(plant.facts()) == []


def test_health_checks_that_fail_at_the_start_are_no_gap(plant):
    first(plant, Health={"Status": "healthy", "Log": [{"ExitCode": 1, "Output": "starting"}, {"ExitCode": 0}]})
    assert containers.states(plant.facts()) == []


def test_health_checks_from_before_a_restart_are_no_gap(plant):
    """The engine keeps the last checks over a restart, and writes times of this machine's zone, to the nanosecond."""
    well, ill = {"ExitCode": 0}, {"ExitCode": 1, "Output": "stopping"}
    before, after = "2027-01-15T09:00:04.123456789+01:00", "2027-01-15T09:00:06.123456789+01:00"
    log = [{**well, "Start": before}, {**ill, "Start": before}, {**well, "Start": after}]
    first(plant, StartedAt="2027-01-15T08:00:05.000000001Z", Health={"Status": "healthy", "Log": log})
    assert containers.states(plant.facts()) == []
    log.append({**ill, "Start": after, "Output": "a real gap"})
    assert ["1 of its last health checks: a real gap" in one.text for one in containers.states(plant.facts())] == [True]


def test_a_failed_job_and_a_done_one(plant):
    job = container("migrate", "stack-mlflow:1", Status="exited", Running=False, ExitCode=0)
    job["HostConfig"]["RestartPolicy"]["Name"] = "no"
    plant.containers.append(job)
    assert containers.states(plant.facts()) == []
    job["State"]["ExitCode"] = 1
    assert "job migrate failed (exit code 1)" in containers.states(plant.facts())[0].text


def test_nothing_known_breaks_no_check(tmp_path):
    """With the engine's answers missing or broken, each check says what it can."""
    for facts in (Facts(tmp_path), Facts(tmp_path, {"compose": "{", "containers": "x", "live": ""})):
        found = doctor.examine(facts)
        assert not [one for one in found if "could not be checked" in one.text]
        assert [one for one in found if one.level == SERIOUS]


def test_what_nobody_knows_is_not_called_well(plant):
    """A server that does not run says nothing about its disk; a stack without certificates has none that end."""
    plant.live = {}
    said = {one.check for one in doctor.examine(plant.facts())}
    assert not said & {"readiness", "disks", "clocks", "connections", "size", "certificates", "drift"}
    plant.live, plant.sections["releases"] = LIVE, "x\trefs/tags/v0.2.0"
    plant.secret("tls.pem", certificate(100))
    said = {one.check for one in doctor.examine(plant.facts())}
    assert {"readiness", "disks", "clocks", "connections", "size", "certificates", "drift"} <= said


def test_a_check_that_breaks_off_is_a_finding(plant):
    def broken(facts):
        """Never."""
        raise OSError("boom")

    assert "could not be checked (OSError: boom)" in doctor.examine(plant.facts(), [broken])[0].text


def test_report_exit_code_and_json(plant, monkeypatch, capsys):
    def ask(*words):
        text = "".join(f"=== {name}\n{body}\n" for name, body in plant.facts().sections.items())
        monkeypatch.setattr("sys.stdin", iter(text.splitlines(keepends=True)))
        monkeypatch.setattr(doctor.time, "time", lambda: NOW)
        return cli.main(["doctor", "--folder", str(plant.folder), *words]), capsys.readouterr()

    code, said = ask()
    assert code == 0 and said.out.rstrip().endswith(f"0 serious, 0 to look at, {len(doctor.CHECKS) - 4} ok")
    plant.live["ready"] = "no"
    code, said = ask()
    assert code == 1 and said.out.startswith("serious  readiness: the server is not ready: no\n         -> make up\n")
    code, said = ask("--json")
    assert code == 1 and json.loads(said.out)["findings"][0]["level"] == "serious"
    assert "s9dKx02mQpLw83hfTz71" not in said.out


def test_sections():
    assert sections(["junk\n", "=== a\n", "1\n", "\n", "=== b\n"]) == {"a": "1\n", "b": ""}
