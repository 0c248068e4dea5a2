"""Small sources in every format, written the way their publishers write them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

Event = tuple[str, str, int, float]


@pytest.fixture
def events() -> list[Event]:
    """12 users with 4 interactions each, interleaved; 6 items; every time is different."""
    return [
        (f"u{user}", f"i{(user + 2 * step) % 6}", 1_000_000 + 100 * step + user, 1.0 + (user % 5))
        for step in range(4)
        for user in range(12)
    ]


@pytest.fixture
def titles() -> dict[str, str]:
    return {f"i{item}": f"Film, no. {item} «é»" for item in range(6)}


def as_csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


@pytest.fixture
def write_pair(tmp_path: Path, events: list[Event], titles: dict[str, str]) -> Callable[..., Path]:
    """Writes interactions.csv and items.csv; either text may be given instead."""

    def write(interactions: str | bytes | None = None, items: str | bytes | None = None) -> Path:
        folder = tmp_path / "shop"
        folder.mkdir(exist_ok=True)
        if interactions is None:
            interactions = as_csv([("user_id", "item_id", "timestamp", "rating"), *events])
        if items is None:
            items = as_csv([("item_id", "title"), *titles.items()])
        for name, content in (("interactions.csv", interactions), ("items.csv", items)):
            data = content if isinstance(content, bytes) else content.encode()
            (folder / name).write_bytes(data)
        return folder

    return write


@pytest.fixture
def write_format(
    tmp_path: Path, write_pair: Callable[..., Path], events: list[Event], titles: dict[str, str]
) -> Callable[[str], Path]:
    """Writes the same events and titles in the format that is named."""

    def movielens(
        folder: Path, ratings: str, movies: str, separator: str, layout: str, encoding: str
    ) -> None:
        lines = [separator.join((u[1:], i[1:], f"{r:g}", str(t))) for u, i, t, r in events]
        (folder / ratings).write_text("\n".join(lines) + "\n")
        films = [layout.format(id=i[1:], title=title) for i, title in titles.items()]
        (folder / movies).write_bytes(("\n".join(films) + "\n").encode(encoding))

    def write(name: str) -> Path:
        folder = tmp_path / "shop"
        folder.mkdir(exist_ok=True)
        if name == "table-csv":
            write_pair()
        elif name == "table-csv-gz":
            write_pair()
            for file in list(folder.iterdir()):
                (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
                file.unlink()
        elif name == "table-parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            users, items, times, ratings = zip(*events, strict=True)
            columns = {"user_id": users, "item_id": items, "timestamp": times, "rating": ratings}
            pq.write_table(pa.table(columns), folder / "interactions.parquet")
            catalogue = {"item_id": list(titles), "title": list(titles.values())}
            pq.write_table(pa.table(catalogue), folder / "items.parquet")
        elif name == "recbole":
            header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
            rows = "".join(f"{u}\t{i}\t{r}\t{float(t)}\n" for u, i, t, r in events)
            (folder / "shop.inter").write_text(header + rows)
            header = "item_id:token\tname:token_seq\tmovie_title:token_seq\tclass:token_seq\n"
            rows = "".join(f'{i}\t"x\t{title}\tDrama\n' for i, title in titles.items())
            (folder / "shop.item").write_text(header + rows)
        elif name == "movielens-100k":
            layout = "{id}|{title}|01-Jan-1995||http://x" + "|0" * 19
            movielens(folder, "u.data", "u.item", "\t", layout, "latin-1")
        elif name == "movielens-1m":
            movielens(folder, "ratings.dat", "movies.dat", "::", "{id}::{title}::A|B", "latin-1")
        elif name == "movielens-10m":
            movielens(folder, "ratings.dat", "movies.dat", "::", "{id}::{title}::A|B", "utf-8")
        elif name == "movielens-csv":
            movielens(folder, "ratings.csv", "movies.csv", ",", '{id},"{title}",A|B', "utf-8")
            for file, header in (
                ("ratings.csv", "userId,movieId,rating,timestamp"),
                ("movies.csv", "movieId,title,genres"),
            ):
                (folder / file).write_text(f"{header}\n{(folder / file).read_text()}")
        elif name == "amazon-2018":
            reviews = [
                {"overall": r, "reviewerID": u, "asin": i, "unixReviewTime": t, "summary": "good"}
                for u, i, t, r in events
            ]
            products = [{"asin": i, "title": title, "brand": "x"} for i, title in titles.items()]
            write_json(folder / "Films_5.json.gz", reviews)
            write_json(folder / "meta_Films.json.gz", products)
        elif name == "amazon-2023":
            reviews = [
                {"rating": r, "title": "ok", "user_id": u, "parent_asin": i, "timestamp": t * 1000}
                for u, i, t, r in events
            ]
            products = [{"title": title, "parent_asin": i} for i, title in titles.items()]
            write_json(folder / "Films.jsonl", reviews)
            write_json(folder / "meta_Films.jsonl", products)
        else:
            raise ValueError(name)
        return folder

    return write


def write_json(path: Path, records: Iterable[dict[str, object]]) -> None:
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def said() -> list[str]:
    """What `said.append` as the progress function was told."""
    return []
