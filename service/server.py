"""The app under uvicorn: bound, announced, drained.

uvicorn alone closes the listener first when it is told to end. A load balancer needs to be told first:
so on SIGTERM the service turns unready, goes on accepting for `drain_delay_s`, and only then closes.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial

import uvicorn
import uvloop

from service.app import create_app
from service.errors import ServiceError, SettingsError
from service.keys import Keys
from service.services import Services
from service.settings import Settings
from service.turnstile import TurnstileProtocol

_BACKLOG = 2048
# The engine's thread wants the interpreter back hundreds of times a step, for microseconds. Python's own
# 5 ms would let a busy event loop starve it.
_SWITCH_SECONDS = 0.0005
_COLLECT_AFTER = 10_000  # new objects


def serve(settings: Settings, announce: Callable[[str, str | None], None]) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        settings: all of them.
        announce: takes the URL and the model's identity (None: no checkpoint yet) once the service
            accepts connections.

    Raises:
        EspalierError: it could not start; the message says why.
    """
    refuse_open_door(settings)
    refuse_many_workers(os.environ)
    sys.setswitchinterval(_SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, announce))


def refuse_open_door(settings: Settings) -> None:
    """Refuses to serve the network without keys, unless that was asked for.

    Raises:
        SettingsError: it is refused.
    """
    if not (_is_loopback(settings.host) or settings.insecure or Keys.from_file(settings.api_keys_file)):
        raise SettingsError(
            f"host {settings.host} is open to others and no keys are configured: set "
            "ESPALIER_API_KEYS_FILE, or pass --insecure"
        )


def refuse_many_workers(environment: Mapping[str, str]) -> None:
    """One process serves one model: workers of one port would swap and count each for itself.

    Raises:
        SettingsError: `WEB_CONCURRENCY` asks for several.
    """
    workers = environment.get("WEB_CONCURRENCY", "1")
    if workers != "1":
        raise SettingsError(
            f"WEB_CONCURRENCY: {workers}: one process serves one model; for more capacity start more "
            "replicas on one Redis"
        )


async def _serve(settings: Settings, announce: Callable[[str, str | None], None]) -> None:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    app = create_app(settings)
    with _bound(settings) as listener:
        try:
            async with app.router.lifespan_context(app):
                config = uvicorn.Config(
                    app,
                    lifespan="off",  # entered above, so that its errors reach the command line
                    http=partial(TurnstileProtocol, turnstile=app.state.turnstile),  # type: ignore[arg-type]
                    ws="none",
                    log_config=None,
                    access_log=False,  # it would name users; ours does not
                    server_header=False,
                    backlog=_BACKLOG,
                    timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
                )
                server = _Server(config, app.state.services, settings, announce)
                await server.serve(sockets=[listener])
        except asyncio.CancelledError as error:
            raise ServiceError("stopped before it served") from error


class _Server(uvicorn.Server):
    """uvicorn's server with another order of ending."""

    def __init__(
        self,
        config: uvicorn.Config,
        services: Services,
        settings: Settings,
        announce: Callable[[str, str | None], None],
    ) -> None:
        super().__init__(config)
        self._services = services
        self._settings = settings
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _spare_the_collector()
        assert sockets is not None
        host, port = sockets[0].getsockname()[:2]
        name = f"[{host}]" if ":" in host else host
        model = self._services.models.current
        self._announce(f"http://{name}:{port}", None if model is None else model.identity)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _drain(self) -> None:
        if self._services.readiness.draining:  # asked twice: do not wait for anybody
            self.should_exit = self.force_exit = True
            return
        self._services.readiness.draining = True
        asyncio.get_running_loop().call_later(self._settings.drain_delay_s, self._close)

    def _close(self) -> None:
        self.should_exit = True


def _spare_the_collector() -> None:
    """Has the garbage collector look at what requests leave behind, not at the libraries and the model.

    Its full rounds over all of that took a fifth of the event loop's time under load, and halted everything
    for a tenth of a second each.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


@contextmanager
def _bound(settings: Settings) -> Generator[socket.socket, None, None]:
    """A socket bound to the host and port, not listening yet: nobody connects before the model is there."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise SettingsError(
                f"{settings.host}:{settings.port} cannot be bound ({error.strerror}); choose another --port"
            ) from error
        yield listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
