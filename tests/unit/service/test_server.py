from pathlib import Path

import pytest

from service.errors import SettingsError
from service.server import refuse_many_workers, refuse_open_door
from service.settings import Settings


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    refuse_open_door(Settings(artifacts=Path(), host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_the_network_needs_keys_or_a_clear_wish(host: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--insecure"):
        refuse_open_door(Settings(artifacts=Path(), host=host))
    refuse_open_door(Settings(artifacts=Path(), host=host, insecure=True))
    (tmp_path / "keys").write_text("k")
    refuse_open_door(Settings(artifacts=Path(), host=host, api_keys_file=tmp_path / "keys"))


def test_several_workers_are_refused() -> None:
    refuse_many_workers({})
    refuse_many_workers({"WEB_CONCURRENCY": "1"})
    for workers in ("2", "0", "many"):
        with pytest.raises(SettingsError, match="WEB_CONCURRENCY"):
            refuse_many_workers({"WEB_CONCURRENCY": workers})
