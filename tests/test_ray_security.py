"""Who can reach a Ray that we start, who can read what it holds, and what becomes of one that anyone can reach."""

import json
import os
import socket
import ssl
import stat
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import made
import psutil
import pytest
from ray_nodes import Nodes

from diastole.cluster import private_ray, tokens
from diastole.lake.errors import BusyError

PLANTED = "Quillfeather"
MODEL = f"""
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(20, 3)

    def forward(self, x, lengths):
        if (x[:, 0].argmax(-1) == 19).any():
            raise ValueError("no way to score {PLANTED}")
        return self.fc(x)
"""


@pytest.fixture(scope="module")
def ray():
    """A Ray as we start it, with the dashboard too, so that there is an API to knock at; started under a careless umask."""
    before = os.umask(0o022)
    try:
        with private_ray.private_ray(2, dashboard=True):
            import ray

            yield ray
    finally:
        os.umask(before)


@pytest.fixture
def cohort(lake, tmp_path, monkeypatch):
    """Proteins with a patient's name, one of which the model fails on with that name in its words."""
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    sequences = made.proteins(40, low=40, high=60)
    sequences[7] = "Y" + sequences[7]
    made.add_proteins(lake, tmp_path / "src", sequences, prefix=PLANTED)
    made.add_model(
        lake,
        {"net.pt": made.network(), "code.py": MODEL.encode()},
        task="residues",
        runtime="python",
        network="code.py:Net",
        inputs={"input": {"modality": ["protein"], "alphabet": made.LETTERS}},
        classes=["H", "E", "C"],
        options={"alphabet": made.LETTERS},
        batch=256,
    )
    return lake


def family():
    """This process and all that it started."""
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def listening(processes):
    """(name, address) of each port that is open."""
    found = []
    for process in processes:
        try:
            found += [(process.name(), c.laddr.ip) for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
        except psutil.NoSuchProcess:
            continue
    return found


def ask(ray, path, token=None, body=None):
    """What the API says: status, text."""
    url = f"http://{ray._private.worker._global_node.webui_url}{path}"
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_no_port_of_a_ray_that_we_start_is_open_to_the_network(ray):
    ray.get(ray.remote(lambda: None).remote())  # so that a worker is there too
    found = listening(family())
    assert {"raylet", "gcs_server"} <= {name for name, _ in found}
    assert {ip.removeprefix("::ffff:") for _, ip in found} == {"127.0.0.1"}, found


@pytest.mark.fault(44)
def test_a_job_without_the_token_is_refused_and_not_run(ray, tmp_path):
    tokens = {"without": None, "wrong": "0" * 64, "right": os.environ["RAY_AUTH_TOKEN"]}
    for name, token in tokens.items():
        flag = tmp_path / name
        until = time.monotonic() + 150
        given, said = ask(ray, "/api/jobs/", token, {"entrypoint": f"touch {flag}"})
        while given >= 500 and time.monotonic() < until:  # Ray's agent, which starts the job, is not there yet
            time.sleep(1)
            given, said = ask(ray, "/api/jobs/", token, {"entrypoint": f"touch {flag}"})
        assert given in ({200} if name == "right" else {401, 403}), said
    job = json.loads(said)["submission_id"]
    assert ask(ray, f"/api/jobs/{job}", os.environ["RAY_AUTH_TOKEN"])[0] == 200
    assert ask(ray, f"/api/jobs/{job}")[0] in {401, 403}
    until = time.monotonic() + 90
    while not (tmp_path / "right").exists():  # so the others had the time too
        assert time.monotonic() < until
        time.sleep(0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["right"]


def listed(ray):
    """All that the state API says of actors, tasks, jobs and workers."""
    from ray.util import state

    api = f"http://{ray._private.worker._global_node.webui_url}"
    kinds = [state.list_actors, state.list_tasks, state.list_jobs, state.list_workers]
    return [repr(one) for kind in kinds for one in kind(address=api, detail=True)]


@pytest.mark.fault(43)
def test_what_ray_shows_and_keeps_of_a_run_names_nobody_and_no_token(cohort, ray):
    made.run(cohort, resources={"workers": 2})
    failed = [row for row in made.table(cohort) if row["status"] == "failed"]
    assert [row["error_code"] for row in failed] == ["model_error"]
    shown = listed(ray)
    until = time.monotonic() + 20
    while not any("Worker.score" in one for one in shown):  # Ray tells itself of its tasks every second
        assert time.monotonic() < until
        shown = listed(ray)
    node = ray._private.worker._global_node
    files = [path for path in Path(node.get_session_dir_path()).rglob("*") if path.is_file()]
    assert len(files) > 10
    shown += [path.read_bytes().decode(errors="replace") + path.name for path in files]
    shown += [" ".join(process.cmdline()) for process in family()]
    names = [PLANTED, os.environ["RAY_AUTH_TOKEN"]]
    assert [text[:300] for text in shown if any(name in text for name in names)] == []
    private = Path(node.get_session_dir_path()).resolve().parents[1]
    assert private.name.startswith(f"dia-{os.getpid()}-")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


def test_what_an_error_of_a_library_says_goes_no_further_than_its_kind_and_place():
    from diastole.cluster.actors import said

    try:
        {}[PLANTED]
    except KeyError as error:
        told = said(error)
    assert told.startswith("KeyError in test_ray_security.py, line ")
    assert PLANTED not in told


def test_only_their_owner_can_read_what_workers_write(cohort, ray):
    assert os.umask(0o022) == 0o022
    made.run(cohort, resources={"workers": 2})
    written = [*cohort.store.local.glob("runs/*/attempts/*"), *cohort.store.local.glob("runs/*/receipts/*")]
    assert len(written) > 2
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in written} == {0}


def test_a_ray_that_would_be_open_is_refused(cohort, tmp_path):
    file = made.job_file(tmp_path, resources={"workers": 1})
    done = made.cli(cohort, "run", file, RAY_AUTH_MODE="disabled")
    assert done.returncode == 2
    assert (
        "RAY_AUTH_MODE=disabled would start Ray open to anyone: unset it, or set DIASTOLE_ALLOW_OPEN_RAY=1"
        in done.stderr
    )
    assert len(done.stderr.splitlines()) == 1


def test_a_ray_that_is_joined_is_knocked_at_without_a_token(ray, monkeypatch):
    address = ray.get_runtime_context().gcs_address
    tokens.check_joined(address)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(BusyError, match="joined without a token"):
        tokens.check_joined(address)
    monkeypatch.setenv("DIASTOLE_ALLOW_OPEN_RAY", "1")
    tokens.check_joined(address)


@pytest.mark.slow
@pytest.mark.fault(44)
def test_an_open_ray_of_the_callers_is_refused_unless_it_is_allowed(cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("DIASTOLE_LAKE", cohort.store.root)
    file = made.job_file(tmp_path, resources={"workers": 1})
    with Nodes(1, RAY_AUTH_MODE="disabled") as nodes:
        for mode, why in [("disabled", "was joined without a token"), ("token", "lets in who has no token")]:
            driver = nodes.drive("run", file, RAY_AUTH_MODE=mode)
            _, err = driver.communicate(timeout=60)
            assert (driver.returncode, why in err) == (2, True), err
        driver = nodes.drive("run", file, "--json", DIASTOLE_ALLOW_OPEN_RAY="1")
        out, err = driver.communicate(timeout=60)
        assert driver.returncode == 0, err
        assert json.loads(out)["scored"] == 39


@pytest.mark.slow
def test_with_tls_no_port_speaks_to_who_has_no_certificate(cohort, tmp_path):
    model = made.residues(cohort, batch=2**16, options={"pause": 1.0}, version="2").ref
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    request = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=diastole -addext subjectAltName=IP:127.0.0.1,DNS:localhost"
    )
    subprocess.run(["openssl", *request.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
    tls = {"RAY_USE_TLS": "1", "RAY_TLS_SERVER_KEY": str(key)}
    tls |= {"RAY_TLS_SERVER_CERT": str(cert), "RAY_TLS_CA_CERT": str(cert)}
    line, env = made.command(
        cohort, "run", made.job_file(tmp_path, model=model, resources={"workers": 1}), "--json", **tls
    )
    driver = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not list(cohort.store.local.glob("runs/*/receipts/*")):
            assert driver.poll() is None, driver.communicate()
        processes = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
        spoke = set()
        for process in processes:
            if process.name() in ("gcs_server", "raylet", "ray::Worker"):
                ports = [c.laddr.port for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
                spoke |= {(process.name(), handshake(port, cert, key)) for port in ports}
        _, err = driver.communicate(timeout=90)
    finally:
        driver.kill()
    assert driver.returncode == 0, err
    assert spoke == {("gcs_server", True), ("raylet", True), ("ray::Worker", True)}


def handshake(port, cert, key):
    """Whether a port speaks TLS, and only to who has a certificate that it trusts."""
    trusted = ssl.create_default_context(cafile=cert)
    trusted.set_alpn_protocols(["h2"])
    stranger = ssl.create_default_context(cafile=cert)
    stranger.set_alpn_protocols(["h2"])
    trusted.load_cert_chain(cert, key)
    answers = []
    for context in (trusted, stranger):
        try:
            plain = socket.create_connection(("127.0.0.1", port), timeout=5)
            with plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
                answers.append(len(secure.recv(9)) == 9)
        except (ssl.SSLError, OSError):
            answers.append(False)
    return answers == [True, False]
