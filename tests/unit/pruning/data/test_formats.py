"""Every format tells the same story: the same events give the same data set."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pruning.data.prepare import PrepareOptions, prepare
from pruning.errors import SourceError
from recommender.dataset import SPLITS, Dataset

FORMATS = {
    "table-csv": "table",
    "table-csv-gz": "table",
    "table-parquet": "table",
    "recbole": "recbole",
    "movielens-100k": "movielens",
    "movielens-1m": "movielens",
    "movielens-10m": "movielens",
    "movielens-csv": "movielens",
    "amazon-2018": "amazon",
    "amazon-2023": "amazon",
}


def story(dataset):
    """Users' titles, times and splits, and popularity by title; ids differ between formats."""
    titles = dataset.catalogue.titles
    users = [([titles[i] for i in user.items], user.timestamps, user.splits) for user in dataset.users]
    return users, dict(zip(titles, dataset.catalogue.popularity, strict=True))


def expected_story(events, titles):
    users = {}
    for user, item, at, _ in events:
        users.setdefault(user, []).append((at, titles[item]))
    targets = sorted((at, user) for user, seen in users.items() for at, _ in seen[1:])
    cut = {target: position for position, target in enumerate(targets)}
    first, second = int(0.8 * len(targets)), int(0.9 * len(targets))

    def split(at, user):
        place = cut.get((at, user))
        return None if place is None else SPLITS[(place >= first) + (place >= second)]

    told = [
        ([t for _, t in seen], tuple(a for a, _ in seen), tuple(split(a, user) for a, _ in seen))
        for user, seen in users.items()
    ]
    popularity = dict.fromkeys(titles.values(), 0)
    for seen, _, splits in told:
        for title, of in zip(seen, splits, strict=True):
            popularity[title] += of == "train"
    return told, popularity


@pytest.mark.parametrize("name", FORMATS)
def test_detected_and_read(name, write_format, tmp_path, events, titles, said):
    card = prepare(write_format(name), tmp_path / "out", PrepareOptions(), said.append)

    assert card.source_format == FORMATS[name]
    assert story(Dataset(tmp_path / "out")) == expected_story(events, titles)
    assert card.notes == ()


@pytest.mark.parametrize("name", FORMATS)
def test_the_file_or_the_format_may_be_named(name, write_format, tmp_path, said):
    folder = write_format(name)
    (folder / "notes.txt").write_text("nothing to us")
    whole = prepare(folder, tmp_path / "a", PrepareOptions(format=FORMATS[name]), said.append)
    known = ("interactions", "shop.inter", "u.data", "ratings", "Films")
    file = next(f for f in sorted(folder.iterdir()) if f.name.startswith(known))

    assert prepare(file, tmp_path / "b", PrepareOptions(), said.append) == whole


@pytest.mark.parametrize("name", FORMATS)
def test_minimum_rating(name, write_format, tmp_path, events, said):
    options = PrepareOptions(min_rating=3)
    card = prepare(write_format(name), tmp_path / "out", options, said.append)

    kept = [event for event in events if event[3] >= 3]
    assert card.interactions == len(kept) < len(events)
    assert card.users == len({event[0] for event in kept})
    low = len(events) - len(kept)
    assert card.notes == (f"{low} of {len(events)} interactions rated below 3 were dropped.",)


@pytest.mark.parametrize(
    ("header", "title"),
    [
        ("item_id:token\ttitle:token\tbrand:token_seq", "A"),
        ("item_id:token\tmovie_title:token_seq\ttitle:token", "A"),
        ("item_id:token\tyear:token\tartist_name:token_seq", "B"),
    ],
)
def test_recbole_title_column(header, title, write_format, tmp_path, said):
    folder = write_format("recbole")
    rows = "".join(f"i{item}\tA {item}\tB {item}\n" for item in range(6))
    (folder / "shop.item").write_text(f"{header}\n{rows}")
    prepare(folder, tmp_path / "out", PrepareOptions(), said.append)

    assert Dataset(tmp_path / "out").catalogue.titles == tuple(f"{title} {i}" for i in range(6))


def test_recbole_without_title(write_format, tmp_path, said):
    folder = write_format("recbole")
    (folder / "shop.item").write_text("item_id:token\tclass:token_seq\ni0\tx\n")
    with pytest.raises(SourceError, match=r"shop\.item, row 1, column title: no token_seq column"):
        prepare(folder, tmp_path / "out", PrepareOptions(), said.append)


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_parquet_dates_and_integer_ids(unit, write_format, tmp_path, events, titles, said):
    folder = write_format("table-parquet")
    users, items, times, _ = zip(*events, strict=True)
    scale = {"s": 1, "ms": 1_000, "us": 1_000_000}[unit]
    columns = {
        "user_id": pa.array([int(user[1:]) for user in users]),
        "item_id": pa.array([int(item[1:]) for item in items]),
        "timestamp": pa.array([at * scale for at in times], pa.timestamp(unit, tz="UTC")),
    }
    pq.write_table(pa.table(columns), folder / "interactions.parquet")
    named = {"item_id": [int(item[1:]) for item in titles], "title": list(titles.values())}
    pq.write_table(pa.table(named), folder / "items.parquet")
    prepare(folder, tmp_path / "out", PrepareOptions(), said.append)

    assert story(Dataset(tmp_path / "out")) == expected_story(events, titles)


def test_quoted_line_ends_crlf_and_a_byte_order_mark(write_pair, tmp_path, events, titles, said):
    names = {item: f'{title}\r\n"uncut"' for item, title in titles.items()}
    quoted = "\r\n".join('{},"{}"'.format(item, title.replace('"', '""')) for item, title in names.items())
    folder = write_pair(items=f"\ufeffitem_id,title\r\n\r\n{quoted}\r\n")
    prepare(folder, tmp_path / "out", PrepareOptions(), said.append)

    on_one_line = {item: f'{title} "uncut"' for item, title in titles.items()}
    assert story(Dataset(tmp_path / "out")) == expected_story(events, on_one_line)


def test_several_formats_in_one_folder(write_format, tmp_path, said):
    folder = write_format("recbole")
    write_format("movielens-100k")
    with pytest.raises(SourceError, match=r"could be read as recbole or movielens; pass one"):
        prepare(folder, tmp_path / "out", PrepareOptions(), said.append)
    card = prepare(folder, tmp_path / "out", PrepareOptions(format="movielens"), said.append)
    assert card.source_format == "movielens"


def test_two_files_of_one_kind(write_format, tmp_path, said):
    folder = write_format("table-csv")
    (folder / "items.csv.gz").write_bytes(gzip.compress((folder / "items.csv").read_bytes()))
    with pytest.raises(SourceError, match=r"items\.csv, items\.csv\.gz are all there; keep one"):
        prepare(folder, tmp_path / "out", PrepareOptions(), said.append)


@pytest.mark.parametrize(
    ("name", "missing", "said_of_it"),
    [
        ("table-csv", "items.csv", "no items.csv or items.csv.gz or items.parquet beside"),
        ("recbole", "shop.item", "no shop.item beside shop.inter"),
        ("movielens-1m", "movies.dat", "no movies.dat beside ratings.dat"),
        ("amazon-2023", "meta_Films.jsonl", "0 files of products"),
        ("amazon-2018", "Films_5.json.gz", "0 files of reviews"),
    ],
)
def test_half_a_source(name, missing, said_of_it, write_format, tmp_path, said):
    folder = write_format(name)
    (folder / missing).unlink()
    with pytest.raises(SourceError, match=said_of_it):
        prepare(folder, tmp_path / "out", PrepareOptions(), said.append)


@pytest.mark.parametrize(
    ("place", "options", "said_of_it"),
    [
        ("nowhere", {}, "no such file or folder"),
        ("empty", {}, "no file of a format we know; it should have one of interactions.csv"),
        ("empty", {"format": "recbole"}, r"no \*\.inter as the format recbole has it"),
    ],
)
def test_nothing_to_read(place, options, said_of_it, tmp_path, said):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=said_of_it):
        prepare(tmp_path / place, tmp_path / "out", PrepareOptions(**options), said.append)


def rewrite(path, change):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    with opened(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in change(records))


@pytest.mark.parametrize("name", ["amazon-2018", "amazon-2023"])
@pytest.mark.parametrize("way", ["no record", "no key", "null", "blank"])
def test_amazon_products_without_title(name, way, write_format, tmp_path, events, said):
    folder = write_format(name)

    def untitle(records):
        record = next(r for r in records if "i2" in (r.get("asin"), r.get("parent_asin")))
        if way == "no record":
            records.remove(record)
        elif way == "no key":
            del record["title"]
        else:
            record["title"] = None if way == "null" else " \n"
        return records

    rewrite(next(folder.glob("meta_*")), untitle)
    card = prepare(folder, tmp_path / "out", PrepareOptions(), said.append)

    lost = sum(item == "i2" for _, item, _, _ in events)
    assert card.notes == (f"1 products without a title were left out, with {lost} reviews.",)
    assert (card.items, card.interactions) == (5, len(events) - lost)


def test_amazon_products_that_stand_twice_or_unreviewed(write_format, tmp_path, titles, said):
    folder = write_format("amazon-2023")
    others = [{"title": "Other", "parent_asin": "i1"}, {"title": "New", "parent_asin": "i99"}]
    rewrite(folder / "meta_Films.jsonl", lambda records: records + others)
    card = prepare(folder, tmp_path / "out", PrepareOptions(), said.append)

    assert Dataset(tmp_path / "out").catalogue.titles == tuple(titles.values())
    assert card.notes == ("1 products stood again in the metadata; their first title counts.",)


def test_amazon_metadata_of_another_category(write_format, tmp_path, said):
    folder = write_format("amazon-2018")
    rewrite(folder / "meta_Films.json.gz", lambda _: [{"asin": "b", "title": "Book"}])
    with pytest.raises(SourceError, match=r"no product that Films_5\.json\.gz names has a title"):
        prepare(folder, tmp_path / "out", PrepareOptions(), said.append)
