import json
import logging
import sys

from service.logs import JsonFormatter


def test_a_record_is_one_json_object_with_its_fields() -> None:
    record = logging.LogRecord("espalier.x", logging.WARNING, "", 0, "line\nof %s", ("text",), None)
    record.fields = {"route": "/items", "status": 200}
    line = JsonFormatter().format(record)
    assert "\n" not in line
    entry = json.loads(line)
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "level": "warning",
        "logger": "espalier.x",
        "message": "line\nof text",
        "route": "/items",
        "status": 200,
    }


def test_an_exception_keeps_its_traceback() -> None:
    try:
        int("bad")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "oh", (), sys.exc_info())
    assert "ValueError: invalid literal" in json.loads(JsonFormatter().format(record))["exception"]
