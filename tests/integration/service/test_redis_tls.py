"""TLS with certificates made here, a password by file, and a user who may do what the docs say, no more."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis_servers import RedisServer, until

pytestmark = pytest.mark.redis

PASSWORD = "s3cret/with@signs?"
DOCS = Path(__file__).parents[3] / "docs" / "histories.md"


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def make_certificates(folder: Path) -> None:
    """An authority `ca.crt`, a server's certificate and a client's that descend from it, and a stranger."""
    folder.mkdir()
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    days = ("-days", "2")
    for name in ("ca", "stranger"):
        files = ("-keyout", f"{name}.key", "-out", f"{name}.crt")
        openssl(folder, "req", "-x509", *key, *days, "-subj", f"/CN={name}", *files)
    for name in ("server", "client"):
        files = ("-keyout", f"{name}.key", "-out", "request")
        openssl(folder, "req", *key, "-subj", f"/CN={name}", *files)
        signing = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", *days)
        openssl(folder, "x509", "-req", "-in", "request", *signing, "-out", f"{name}.crt")


def documented_user() -> str:
    found = re.search(r"^user espalier .*$", DOCS.read_text(), re.MULTILINE)
    assert found is not None
    return found.group().replace(">PASSWORD", f">{PASSWORD}")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path / "tls"
    make_certificates(folder)
    (folder / "password").write_text(PASSWORD + "\n")
    # The default user can only be asked whether the server is there.
    (folder / "users").write_text(f"user default on nopass -@all +ping +client\n{documented_user()}\n")
    return folder


@pytest.fixture
def secured(files: Path, tmp_path: Path) -> Iterator[RedisServer]:
    """It asks its clients for certificates as well."""
    options = {
        "tls-port": "",
        "tls-cert-file": files / "server.crt",
        "tls-key-file": files / "server.key",
        "tls-ca-cert-file": files / "ca.crt",
        "tls-auth-clients": "yes",
        "aclfile": files / "users",
    }
    pair = f"ssl_certfile={files}/client.crt&ssl_keyfile={files}/client.key"
    server = RedisServer(tmp_path / "redis", options, query=f"?ssl_ca_certs={files}/ca.crt&{pair}")
    yield server
    server.kill()


@pytest.fixture
def environment(files: Path) -> dict[str, str]:
    return {
        "ESPALIER_REDIS_PASSWORD_FILE": str(files / "password"),
        "ESPALIER_REDIS_CA_FILE": str(files / "ca.crt"),
    }


def url_of(secured: RedisServer, files: Path) -> str:
    pair = f"?ssl_certfile={files}/client.crt&ssl_keyfile={files}/client.key"
    return f"rediss://espalier@127.0.0.1:{secured.port}{pair}"


def test_histories_and_the_fleet_over_tls(
    start_service: Callable[..., Any],
    secured: RedisServer,
    files: Path,
    environment: dict[str, str],
    two_artifacts: Path,
) -> None:
    service = start_service(
        "--redis",
        url_of(secured, files),
        artifacts=two_artifacts,
        ESPALIER_CHECKPOINT="tiny",
        ESPALIER_ADMIN_TOKEN_FILE=str(files / "password"),
        **environment,
    )
    with service.client() as client:
        for _ in range(2):
            posted = client.post("/users/ann/events", json={"item_id": "g3", "timestamp": 5})
            assert posted.status_code == 200, posted.text
        assert posted.json()["duplicates"] == 1
        answer = client.post("/recommend", json={"user_id": "ann"}).json()
        assert (answer["strategy"], answer["degraded"]) == ("model", None)
        until(lambda: bool(client.get("/checkpoints").json()["replicas"]))
        admin = {"Authorization": f"Bearer {PASSWORD}"}
        swapped = client.post("/checkpoints/other/activate?wait=true", headers=admin)
        assert swapped.json()["step"] == "done", swapped.text
        operation = client.get(f"/operations/{swapped.json()['operation_id']}").json()
        assert (operation["step"], operation["generation"]) == ("done", 2)
        assert client.delete("/users/ann/history").status_code == 204
        assert client.get("/users/ann/history").json()["items"] == []
    assert service.end() == 0
    log = service.log.read_text()
    assert "does not tell its maxmemory-policy" not in log
    assert PASSWORD not in log
    assert "NOPERM" not in log


def test_a_server_that_others_vouch_for_is_away_and_the_log_says_why(
    start_service: Callable[..., Any], secured: RedisServer, files: Path, environment: dict[str, str]
) -> None:
    environment["ESPALIER_REDIS_CA_FILE"] = str(files / "stranger.crt")
    service = start_service("--redis", url_of(secured, files), **environment)
    with service.client() as client:
        answer = client.post("/recommend", json={"user_id": "ann"}).json()
        assert (answer["strategy"], answer["degraded"]) == ("popular", "history_unavailable")
        assert client.post("/users/ann/events", json={"item_id": "g3"}).status_code == 503
    assert service.end() == 0
    log = service.log.read_text()
    assert "certificate verify failed" in log
    assert PASSWORD not in log


def test_a_wrong_password_is_refused_at_the_start(
    refused: Callable[..., str], secured: RedisServer, files: Path, environment: dict[str, str]
) -> None:
    (files / "password").write_text("wrong")
    message = refused("--redis", url_of(secured, files), **environment)
    assert "Redis refuses user and password" in message
    assert "ESPALIER_REDIS_PASSWORD_FILE" in message
