from pathlib import Path

import pytest
from pydantic import ValidationError

from service.errors import SettingsError
from service.settings import HistorySettings, Settings, read_settings


def test_the_environment_is_read_and_the_command_line_stands_above_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ESPALIER_PORT", "81")
    monkeypatch.setenv("ESPALIER_HOST", "::1")
    settings = read_settings(Settings, {"artifacts": Path("a"), "port": 82, "host": None})
    assert (settings.port, settings.host) == (82, "::1")


@pytest.mark.parametrize(
    ("given", "batch"),
    [({}, 4), ({"engine": "vllm"}, 32), ({"max_batch": 7}, 7), ({"engine": "vllm", "max_batch": 7}, 7)],
)
def test_few_are_searched_together_on_a_cpu_unless_asked_for(given: dict[str, object], batch: int) -> None:
    assert read_settings(Settings, {"artifacts": "a"} | given).batch == batch


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings(artifacts=Path("a")).port = 1  # type: ignore[misc]


def test_a_bad_value_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_HISTORY_LENGTH", "0")
    with pytest.raises(SettingsError, match=r"ESPALIER_HISTORY_LENGTH: .*greater than or equal to 1"):
        read_settings(HistorySettings, {})


def test_origins_are_parted_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_CORS_ORIGINS", "https://shop.example, http://localhost:3000")
    settings = read_settings(Settings, {"artifacts": Path("a")})
    assert settings.cors_origins == ("https://shop.example", "http://localhost:3000")
    monkeypatch.setenv("ESPALIER_CORS_ORIGINS", "")
    assert read_settings(Settings, {"artifacts": Path("a")}).cors_origins == ()


@pytest.mark.parametrize(
    "origin", ["shop.example", "https://shop.example/", "https://Shop.example", "null"]
)
def test_what_no_browser_sends_is_no_origin(origin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_CORS_ORIGINS", origin)
    with pytest.raises(SettingsError, match=r"ESPALIER_CORS_ORIGINS: .* is no origin"):
        read_settings(Settings, {"artifacts": Path("a")})
