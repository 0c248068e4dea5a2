"""Real redis-servers for tests: one, with whatever options; or three that make a cluster."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import redis


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come about in time")


class RedisServer:
    """Debian's redis-server on a free port, with an append-only file that every answer waits for."""

    def __init__(self, folder: Path, options: Mapping[str, object] | None = None, query: str = "") -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("redis-server is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.options: dict[str, object] = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": folder,
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            **(options or {}),
        }
        tls = "tls-port" in self.options
        if tls:
            self.options |= {"port": 0, "tls-port": self.port}
        self.url = f"{'rediss' if tls else 'redis'}://127.0.0.1:{self.port}"
        self._program = program
        self._query = query  # what a test needs to look in, added to the URL
        self.start()

    def start(self) -> None:
        arguments = (str(part) for name in self.options for part in (f"--{name}", self.options[name]))
        self.process = subprocess.Popen([self._program, *arguments], stdout=subprocess.DEVNULL)
        with self.client() as client:
            for _ in range(300):
                try:
                    client.ping()
                except redis.ConnectionError as error:
                    failure = error
                    time.sleep(0.05)
                else:
                    return
        self.kill()
        raise AssertionError("redis-server did not start") from failure

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url + self._query)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=30)


class RedisCluster:
    """Three nodes with a third of the slots each; it goes on with those that are left when one is away."""

    def __init__(self, folder: Path) -> None:
        options: dict[str, object] = {"cluster-enabled": "yes", "cluster-require-full-coverage": "no"}
        folders = [folder / str(number) for number in range(3)]
        self.nodes = [RedisServer(each, options | {"cluster-port": free_port()}) for each in folders]
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        self.url = f"redis+cluster://{hosts}"

    def join(self) -> None:
        bounds = (0, 5461, 10923, 16384)
        for node, first, end in zip(self.nodes, bounds, bounds[1:], strict=False):
            self.ask(node, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            bus = self.nodes[0].options["cluster-port"]
            self.ask(node, "CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, bus)
        until(lambda: all(self.complete(node) for node in self.nodes))

    def complete(self, node: RedisServer) -> bool:
        """Whether the node knows who has every slot, and that all is well."""
        info = self.ask(node, "CLUSTER", "INFO")
        return b"cluster_state:ok" in info and b"cluster_slots_ok:16384" in info

    def ask(self, node: RedisServer, *command: object) -> object:
        with node.client() as client:
            return client.execute_command(*command)

    def node_id(self, node: RedisServer) -> str:
        return self.ask(node, "CLUSTER", "MYID").decode()

    def owner(self, key: str) -> RedisServer:
        """The node that has the key's slot, at first."""
        slot = self.ask(self.nodes[0], "CLUSTER", "KEYSLOT", key)
        return self.nodes[0 if slot < 5461 else 1 if slot < 10923 else 2]

    def move_slot(self, key: str, source: RedisServer, to: RedisServer) -> None:
        """Moves the key's slot, with all that is in it, as `redis-cli --cluster reshard` does."""
        slot = self.ask(source, "CLUSTER", "KEYSLOT", key)
        self.ask(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.node_id(source))
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.node_id(to))
        for moved in self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            self.ask(source, "MIGRATE", "127.0.0.1", to.port, moved, 0, 5000)
        for node in (to, source, *self.nodes):
            self.ask(node, "CLUSTER", "SETSLOT", slot, "NODE", self.node_id(to))

    def end(self) -> None:
        for node in self.nodes:
            node.kill()
