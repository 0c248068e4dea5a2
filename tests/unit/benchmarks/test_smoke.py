"""What the guard says of a ratio."""

from benchmarks.smoke import judged, titles


def test_a_ratio_that_fell_is_pointed_at_and_a_busy_machine_is_not() -> None:
    told = judged({"at 1": 5.0, "at 8": 12.0, "at 32": 1.0}, {"at 1": 10.0, "at 8": 14.0}).splitlines()[2:]
    assert told == [
        "| at 1 | 5.0 | 10.0 | worth a look |",
        "| at 8 | 12.0 | 14.0 | fine |",
        "| at 32 | 1.0 | – | fine |",
    ]


def test_the_titles_differ() -> None:
    assert len(set(titles())) == 5000
