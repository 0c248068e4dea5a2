"""Bad input: one line with file, row, column and remedy, and no half-written folder."""

import gzip
import io
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pruning.data.prepare import PrepareOptions, prepare
from pruning.errors import SourceError

HEADER = "user_id,item_id,timestamp\n"
GOOD = "".join(f"u{n},i{n % 6},{1000 + n}\n" for n in range(20))
ITEMS = "item_id,title\n" + "".join(f"i{n},Film {n}\n" for n in range(6))

INTERACTIONS = {
    # name: (contents of interactions.csv, what is said after the folder's name)
    "missing column": (
        "user_id,item,timestamp\nu,i1,5\n",
        r"interactions\.csv, column item_id: missing; the file has user_id, item, timestamp; "
        "add the column or rename",
    ),
    "duplicate column": (
        "user_id,item_id,timestamp,item_id\nu,i1,5,i2\n",
        r"interactions\.csv, column item_id: the column stands twice; keep one of them",
    ),
    "empty file": ("", r"interactions\.csv: the file is empty; give one with a header and rows"),
    "only blank lines": ("\n\n", r"interactions\.csv: the file is empty; give"),
    "no rows": (HEADER, r"interactions\.csv: there are no interactions; give a file that has rows"),
    "a word for a time": (
        HEADER + GOOD + "u1,i1,yesterday\n",
        r"interactions\.csv, row 22, column timestamp: 'yesterday' is no time; give Unix seconds",
    ),
    "a date for a time": (
        HEADER + "u1,i1,2015-10-01\n",
        r"row 2, column timestamp: '2015-10-01' is no time; give Unix seconds",
    ),
    "no time": (HEADER + "u1,i1,\n", r"row 2, column timestamp: '' is no time"),
    "an underscore": (HEADER + "u1,i1,1_000\n", r"row 2, column timestamp: '1_000' is no time"),
    "NaN for a time": (HEADER + "u1,i1,nan\n", r"row 2, column timestamp: 'nan' is no time"),
    "5,000 digits": (
        HEADER + f"u1,i1,{'9' * 5000}\n",
        r"row 2, column timestamp: '9{59}… is no time",
    ),
    "milliseconds": (
        HEADER + "u1,i1,1443657600000\n",
        r"row 2, column timestamp: '1443657600000' is too late for Unix seconds and looks like "
        "milliseconds; divide the times by 1,000",
    ),
    "negative time": (
        HEADER + "u1,i1,-5\n",
        r"row 2, column timestamp: '-5' is negative; give Unix seconds",
    ),
    "NaN rating": (
        "user_id,item_id,timestamp,rating\nu1,i1,5,4.5\nu1,i1,6,nan\n",
        r"row 3, column rating: 'nan' is no rating; give a number, or leave the whole column out",
    ),
    "no rating": (
        "user_id,item_id,timestamp,rating\nu1,i1,5,\n",
        r"row 2, column rating: '' is no rating",
    ),
    "empty user": (HEADER + ",i1,5\n", r"row 2, column user_id: the id is empty; give a text"),
    "empty item": (HEADER + "u1,,5\n", r"row 2, column item_id: the id is empty; give a text"),
    "short row": (HEADER + "u1,i1,5\nu1,i1\n", r"row 3: 2 fields where 3 are expected; complete"),
    "long row": (HEADER + "u1,i,1,5\n", r"row 2: 4 fields where 3 are expected; complete the row"),
    "open quote": (
        HEADER + 'u1,i1,5\nu1,"i1,6\nu1,i1,7\n',
        r"interactions\.csv, row 3: no valid CSV \(.*\); close every quote",
    ),
    "row after a quoted line end": (
        HEADER + '"u\n1",i1,5\nu1,i1,x\n',
        r"row 4, column timestamp: 'x' is no time",
    ),
    "byte that is not UTF-8": (
        (HEADER + "u1,i1,5\nu").encode() + b"\xe9,i1,6\n",
        r"interactions\.csv, row 3: byte 35 \(0xe9\) is not UTF-8; save the file as UTF-8",
    ),
    "UTF-16": ((HEADER + GOOD).encode("utf-16"), r"row 1: byte 0 \(0xff\) is not UTF-8"),
    "item that is unknown": (
        HEADER + GOOD + "u1,i77,5\n",
        r"interactions\.csv, row 22, column item_id: the item 'i77' does not stand in items\.csv; "
        "add it there with a title, or take its interactions out",
    ),
    "too few rows": (
        HEADER + "u1,i1,5\nu1,i1,6\nu1,i1,7\nu2,i1,7\n",
        r"interactions\.csv: too few rows to split \(1 train, 0 valid, 1 test\); every split needs",
    ),
    "one interaction each": (
        HEADER + GOOD,
        r"too few rows to split \(0 train, 0 valid, 0 test\); every split needs one",
    ),
}

CATALOGUE = {
    "missing column": ("item_id,name\ni1,A\n", r"items\.csv, column title: missing; the file has"),
    "duplicate id": (
        ITEMS + "i3,Again\n",
        r"items\.csv, row 8, column item_id: the id 'i3' stands in row 5 already; keep one",
    ),
    "no title": (
        ITEMS.replace("Film 2", ""),
        r"items\.csv, row 4, column title: the item 'i2' has no title, and interactions\.csv "
        r"\(row 4\) names it; give it a title, or take its interactions out",
    ),
    "blank title": (ITEMS.replace("Film 2", " \t"), r"row 4, column title: the item 'i2' has no"),
    "empty id": (ITEMS + ",Film\n", r"items\.csv, row 8, column item_id: the id is empty"),
    "empty file": ("", r"items\.csv: the file is empty; give one with a header and rows"),
    "no rows": ("item_id,title\n", r"items\.csv: there are no items; give a file that has rows"),
    "a comma in a title": (ITEMS + "i6,Me, you\n", r"items\.csv, row 8: 3 fields where 2 are"),
    "byte that is not UTF-8": (
        ITEMS.encode() + b"i6,Caf\xe9\n",
        r"items\.csv, row 8: byte 80 \(0xe9\) is not UTF-8; save the file as UTF-8",
    ),
}


def refused(source, tmp_path, pattern, **options):
    out = tmp_path / "out"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SourceError) as caught:
        prepare(source, out, PrepareOptions(**options), lambda _: None)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(source))
    assert re.search(pattern, message), message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", INTERACTIONS)
def test_interactions(name, write_pair, tmp_path):
    content, pattern = INTERACTIONS[name]
    refused(write_pair(interactions=content, items=ITEMS), tmp_path, pattern)


@pytest.mark.parametrize("name", CATALOGUE)
def test_items(name, write_pair, tmp_path):
    content, pattern = CATALOGUE[name]
    refused(write_pair(interactions=HEADER + GOOD, items=content), tmp_path, pattern)


def noise(rows):
    """Rows that do not compress well, so that a cut falls between two of them."""
    draw = random.Random(0)
    return "".join(f"u{draw.random()},i{draw.randrange(6)},{n}\n" for n in range(rows))


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (lambda data: data[: len(data) // 2], r"row \d{3,}: the gzip is damaged or cut off"),
        (lambda data: data[:-4], r"row 5002: the gzip is damaged or cut off"),
        (lambda _: b"", r"interactions\.csv\.gz: the file is empty"),
        (lambda _: b"user_id,item_id,timestamp\n", r"row 1: the gzip is damaged .*Not a gzip"),
        (
            lambda data: data[:5000] + bytes([data[5000] ^ 255]) + data[5001:],
            r"row \d+: (the gzip is damaged or cut off|byte \d+ .* is not UTF-8|\d fields|no valid)",
        ),
    ],
)
def test_gzip(damage, pattern, write_pair, tmp_path):
    folder = write_pair(interactions=HEADER + noise(5000), items=ITEMS)
    whole = gzip.compress((folder / "interactions.csv").read_bytes())
    (folder / "interactions.csv").unlink()
    (folder / "interactions.csv.gz").write_bytes(damage(whole))
    refused(folder, tmp_path, pattern)


def parquet(**columns):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(),
    2,
    [None, pa.py_buffer(pa.array([0, 1, 2], pa.int32()).buffers()[1]), pa.py_buffer(b"a\xe9")],
)
IDS = ["a", "b"]


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"", r"interactions\.parquet: no whole Parquet file \(.*\); write it again"),
        (b"PAR1 and more PAR1", r"interactions\.parquet: no whole Parquet file"),
        (
            parquet(user_id=IDS, item_id=IDS),
            r"column timestamp: missing; the file has user_id, item_id; add the column",
        ),
        (
            parquet(user_id=IDS, item_id=IDS, timestamp=[1.0, float("nan")]),
            r"row 2, column timestamp: nan is no time",
        ),
        (
            parquet(user_id=IDS, item_id=IDS, timestamp=[1, None]),
            r"row 2, column timestamp: None is no time",
        ),
        (
            parquet(user_id=["a", None], item_id=IDS, timestamp=[1, 2]),
            r"row 2, column user_id: the id is empty",
        ),
        (
            parquet(user_id=[1.5, 2.5], item_id=IDS, timestamp=[1, 2]),
            r"row 1, column user_id: 1\.5 is no id; give a text or a whole number",
        ),
        (
            parquet(user_id=IDS, item_id=NOT_UTF8, timestamp=[1, 2]),
            r"row 2, column item_id: the text is not UTF-8; write it as UTF-8",
        ),
        (
            parquet(user_id=IDS, item_id=IDS, timestamp=[1, 2], rating=[1.0, None]),
            r"row 2, column rating: None is no rating",
        ),
    ],
)
def test_parquet(content, pattern, write_pair, tmp_path):
    folder = write_pair(items=ITEMS)
    (folder / "interactions.csv").unlink()
    (folder / "interactions.parquet").write_bytes(content)
    refused(folder, tmp_path, pattern)


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        ("{'overall': 5.0}", r"Films\.jsonl, row 49: no JSON \(.*\); give one JSON object a line"),
        ("[1]", r"Films\.jsonl, row 49: the line is no JSON object; give one"),
        ("[" * 100_000, r"Films\.jsonl, row 49: no JSON"),
        ("{}", r"Films\.jsonl, row 49, column user_id: the id is empty"),
        (
            '{"user_id": "u", "parent_asin": "i1", "timestamp": "soon", "rating": 5}',
            r"row 49, column timestamp: 'soon' is no time",
        ),
        (
            '{"user_id": "u", "parent_asin": "i1", "timestamp": -5000, "rating": 5}',
            r"row 49, column timestamp: -5\.0 is negative",
        ),
        (
            '{"user_id": "u", "parent_asin": "i1", "timestamp": 5000, "rating": NaN}',
            r"row 49, column rating: nan is no rating",
        ),
        (
            '{"user_id": "u\\ud800", "parent_asin": "i1", "timestamp": 5000, "rating": 5}',
            r"row 49, column user_id: 'u\\ud800' is no Unicode text",
        ),
        (
            '{"user_id": true, "parent_asin": "i1", "timestamp": 5000, "rating": 5}',
            r"row 49, column user_id: True is no id",
        ),
    ],
)
def test_amazon_reviews(line, pattern, write_format, tmp_path):
    folder = write_format("amazon-2023")
    with (folder / "Films.jsonl").open("a") as file:
        file.write(line + "\n")
    refused(folder, tmp_path, pattern)


def test_amazon_first_review_lacks_a_key(write_format, tmp_path):
    folder = write_format("amazon-2023")
    (folder / "Films.jsonl").write_text('{"user_id": "u", "parent_asin": "i1", "rating": 5}\n')
    refused(folder, tmp_path, r"Films\.jsonl, row 1, column timestamp: missing; give reviews with")


def test_amazon_product_without_id(write_format, tmp_path):
    folder = write_format("amazon-2023")
    with (folder / "meta_Films.jsonl").open("a") as file:
        file.write('{"title": "Nameless"}\n')
    refused(folder, tmp_path, r"meta_Films\.jsonl, row 7, column parent_asin: missing")


def test_amazon_empty_file(write_format, tmp_path):
    folder = write_format("amazon-2023")
    (folder / "Films.jsonl").write_text("")
    refused(folder, tmp_path, r"Films\.jsonl: the file is empty; give one that has JSON lines")


@pytest.mark.parametrize(
    ("name", "file", "line", "pattern"),
    [
        ("recbole", "shop.inter", "u\ti1\t5\tnever\n", r"shop\.inter, row 50, column timestamp"),
        ("recbole", "shop.item", "i1\tx\tTwice\tDrama\n", r"shop\.item, row 8, column item_id"),
        ("movielens-100k", "u.data", "1\t1\tx\t5\n", r"u\.data, row 49, column rating: 'x'"),
        ("movielens-1m", "ratings.dat", "1::1::5\n", r"ratings\.dat, row 49: 3 fields where 4"),
        ("movielens-csv", "ratings.csv", "1,99,5,5\n", r"row 50, column movieId: the item '99'"),
    ],
)
def test_public_formats(name, file, line, pattern, write_format, tmp_path):
    folder = write_format(name)
    with (folder / file).open("a") as opened:
        opened.write(line)
    refused(folder, tmp_path, pattern)
