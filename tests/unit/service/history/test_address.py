from pathlib import Path
from typing import Any

import pytest

from service.errors import SettingsError
from service.history.address import complete_url
from service.settings import HistorySettings


@pytest.fixture
def password(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text("p@ss:w/rd?\n")
    return file


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    file = tmp_path / "the ca.pem"
    file.write_text("…")
    return file


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://there", "redis://:p%40ss%3Aw%2Frd%3F@there"),
        ("redis://there:1/2?a=b", "redis://:p%40ss%3Aw%2Frd%3F@there:1/2?a=b"),
        ("rediss://ann@there?a=b/c", "rediss://ann:p%40ss%3Aw%2Frd%3F@there?a=b/c"),
        ("redis+cluster://ann@a:1,b:2", "redis+cluster://ann:p%40ss%3Aw%2Frd%3F@a:1,b:2"),
        ("unix:///run/redis.sock", "unix://:p%40ss%3Aw%2Frd%3F@/run/redis.sock"),
    ],
)
def test_the_password_takes_its_place(password: Path, url: str, expected: str) -> None:
    assert complete_url(HistorySettings(redis_url=url, redis_password_file=password)) == expected


@pytest.mark.parametrize(
    ("url", "joint"),
    [("rediss://there", "?"), ("rediss+cluster://a:1,b:2", "?"), ("rediss://there?a=b", "&")],
)
def test_the_certificates_become_part_of_the_url(authority: Path, url: str, joint: str) -> None:
    completed = complete_url(HistorySettings(redis_url=url, redis_ca_file=authority))
    assert completed.startswith(f"{url}{joint}ssl_ca_certs=")
    assert completed.endswith("the+ca.pem")


def test_without_files_the_url_stays_as_it_is() -> None:
    assert complete_url(HistorySettings(redis_url="redis://ann:x@there:1/0")) == "redis://ann:x@there:1/0"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"redis_url": "redis://ann:x@there", "redis_password_file": "{password}"}, "holds a password too"),
        (
            {"redis_url": "redis://there", "redis_password_file": "/nowhere"},
            "PASSWORD_FILE.*cannot be read",
        ),
        ({"redis_url": "redis://there", "redis_password_file": "/dev/null"}, "PASSWORD_FILE.*is empty"),
        ({"redis_url": "redis://there", "redis_ca_file": "{ca}"}, "CA_FILE: redis:// has no TLS"),
        ({"redis_url": "rediss://there", "redis_ca_file": "/nowhere"}, "CA_FILE: /nowhere: no such file"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    password: Path, authority: Path, given: dict[str, Any], message: str
) -> None:
    files = {"password": password, "ca": authority}
    settings = HistorySettings(**{name: value.format(**files) for name, value in given.items()})
    with pytest.raises(SettingsError, match=message):
        complete_url(settings)
