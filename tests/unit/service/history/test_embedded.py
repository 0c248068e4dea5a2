import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from redis_servers import until

from service.errors import SettingsError
from service.history import embedded
from service.history.embedded import embedded_server, history_url
from service.settings import HistorySettings

pytestmark = pytest.mark.valkey

KILLED_SERVICE = """
import os, pathlib, redis, signal, sys
from service.history import embedded
from service.history.embedded import embedded_server
with embedded_server(pathlib.Path(sys.argv[1])) as url:
    redis.Redis.from_url(url).set("key", "kept")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_written_is_there_the_next_time(tmp_path: Path) -> None:
    for expected in (None, b"kept"):
        with embedded_server(tmp_path / "state") as url, redis.Redis.from_url(url) as client:
            assert client.get("key") == expected
            client.set("key", "kept")
    assert not (tmp_path / "state" / "valkey.sock").exists()


def test_it_listens_on_its_socket_only_and_never_evicts(tmp_path: Path) -> None:
    with embedded_server(tmp_path) as url, redis.Redis.from_url(url) as client:
        config = client.config_get("port", "appendonly", "appendfsync", "maxmemory-policy")
    assert config == {
        "port": "0",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
    }


def test_two_services_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        embedded_server(tmp_path),
        pytest.raises(SettingsError, match="another espalier serves from it"),
        embedded_server(tmp_path),
    ):
        pass


def test_a_server_that_outlived_its_service_is_ended_and_its_data_kept(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED_SERVICE, str(tmp_path)], check=False)
    with redis.Redis(unix_socket_path=str(tmp_path / "valkey.sock")) as orphan:
        orphan_id = orphan.info("server")["process_id"]
    with embedded_server(tmp_path) as url, redis.Redis.from_url(url) as client:
        assert client.get("key") == b"kept"
        assert client.info("server")["process_id"] != orphan_id


def kill(client: redis.Redis) -> int:
    """Kills the server. Returns the id that its process had."""
    number: int = client.info("server")["process_id"]
    os.kill(number, signal.SIGKILL)
    return number


def running(client: redis.Redis, other_than: int) -> bool:
    try:
        return bool(client.info("server")["process_id"] != other_than)
    except redis.ConnectionError:
        return False


def test_a_server_that_dies_alone_is_started_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with embedded_server(tmp_path) as url, redis.Redis.from_url(url) as client:
        for life in (1, 2):
            client.set(f"key {life}", "kept")
            kill(client)
            until(lambda life=life: caplog.text.count("the embedded server runs again") == life)  # type: ignore[misc]
            assert client.mget("key 1", f"key {life}") == [b"kept", b"kept"]
        assert caplog.text.count("the embedded server died") == 2


def _no_folder_for_its_files(state: Path) -> Callable[[], None]:
    files, away = state / "appendonlydir", state / "away"
    files.rename(away)
    files.write_text("no folder")

    def mend() -> None:
        files.unlink()
        away.rename(files)

    return mend


def _nowhere_to_configure_it(state: Path) -> Callable[[], None]:
    configuration = state / "valkey.conf"
    configuration.unlink()
    configuration.mkdir()  # as on a full disk, it is the system's error, not Valkey's
    return configuration.rmdir


@pytest.mark.parametrize("spoil", [_no_folder_for_its_files, _nowhere_to_configure_it])
def test_one_that_does_not_start_again_is_tried_until_it_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], Callable[[], None]],
) -> None:
    monkeypatch.setattr(embedded, "_FIRST_PAUSE_SECONDS", 0.01)
    with embedded_server(tmp_path) as url, redis.Redis.from_url(url) as client:
        client.set("key", "kept")
        mend = spoil(tmp_path)
        killed = kill(client)
        until(lambda: caplog.text.count("does not start") >= 2)
        mend()
        until(lambda: running(client, killed))
        assert client.get("key") == b"kept"


def test_one_that_is_dead_at_the_end_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_LOOK_SECONDS", 60)
    with embedded_server(tmp_path) as url, redis.Redis.from_url(url) as client:
        kill(client)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with (
        pytest.raises(SettingsError, match=r"file/state: cannot be written \(Not a directory\)"),
        embedded_server(tmp_path / "file" / "state"),
    ):
        pass


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(SettingsError, match="shorter ESPALIER_STATE_DIR"),
        embedded_server(tmp_path / ("x" * 100)),
    ):
        pass


def test_a_configured_url_is_used_as_it_is(tmp_path: Path) -> None:
    with history_url(HistorySettings(redis_url="redis://there:1")) as url:
        assert url == "redis://there:1"
    with history_url(HistorySettings(state_dir=tmp_path)) as url:
        assert url == f"unix://{tmp_path}/histories/valkey.sock"
