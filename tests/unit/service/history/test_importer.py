from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from redis.asyncio import Redis

from recommender.catalogue import Catalogue
from recommender.dataset import (
    CARD_FILE,
    INTERACTIONS_FILE,
    INTERACTIONS_SCHEMA,
    ITEMS_FILE,
    Dataset,
    DatasetCard,
    SplitCounts,
    TimeRange,
    TitleStatistics,
)
from service.errors import HistoryUnavailableError
from service.history.client import connect
from service.history.importer import Imported, import_histories
from service.history.store import HistoryStore
from service.metrics import Metrics
from service.settings import HistorySettings

pytestmark = pytest.mark.valkey
USERS = 450  # more than two pipelines
SETTINGS = HistorySettings(redis_timeout_s=5)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """User n met items 0, 1, 2 at times n, n + 1, n + 1."""
    card = DatasetCard(
        name="tiny",
        source_format="csv",
        source_sha256="0" * 64,
        history=2,
        k_core=0,
        min_rating=None,
        users=USERS,
        items=3,
        interactions=3 * USERS,
        rows=SplitCounts(train=0, valid=0, test=0),
        time=TimeRange(first=0, valid_from=1, test_from=2, last=USERS),
        titles=TitleStatistics(distinct=3, shared=0, mean_words=1.0, max_words=1),
    )
    (tmp_path / CARD_FILE).write_text(card.model_dump_json())
    Catalogue.create(["i0", "i1", "i2"], list("xyz"), [0, 0, 0]).to_parquet(tmp_path / ITEMS_FILE)
    rows = [
        (f"u{user}", f"i{item}", user + min(item, 1), None) for user in range(USERS) for item in range(3)
    ]
    columns = dict(zip(INTERACTIONS_SCHEMA.names, zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(columns, schema=INTERACTIONS_SCHEMA), tmp_path / INTERACTIONS_FILE)
    return Dataset(tmp_path)


@pytest.fixture
async def client(empty_valkey: str) -> AsyncIterator[Redis]:
    client = connect(empty_valkey, timeout_s=30, connections=1)
    yield client
    await client.aclose()


async def run(dataset: Dataset, client: Redis) -> Imported:
    return await import_histories(dataset, client, SETTINGS, lambda *_: None)


async def test_every_user_has_his_history_afterwards(dataset: Dataset, client: Redis) -> None:
    told: list[tuple[int, int]] = []
    done = await import_histories(dataset, client, SETTINGS, lambda *progress: told.append(progress))
    assert done == Imported(users=USERS, events=3 * USERS, accepted=3 * USERS)
    assert told == [(0, USERS), (200, USERS), (400, USERS), (USERS, USERS)]
    store = HistoryStore(client, SETTINGS, Metrics())
    for user in (0, 250, USERS - 1):
        stored = await store.read(f"u{user}")
        assert [(event.item_id, event.timestamp) for event in stored.events] == [
            ("i0", user),
            ("i1", user + 1),
            ("i2", user + 1),
        ]
    assert len(await client.keys()) == 3 * USERS  # and no note is left


async def test_importing_again_changes_nothing(dataset: Dataset, client: Redis) -> None:
    await run(dataset, client)
    assert await run(dataset, client) == Imported(users=USERS, events=3 * USERS, accepted=0)


async def test_a_stopped_import_goes_on_where_it_was(dataset: Dataset, client: Redis) -> None:
    def stop(done: int, total: int) -> None:
        if done == 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await import_histories(dataset, client, SETTINGS, stop)
    assert await run(dataset, client) == Imported(users=250, events=750, accepted=750)


async def test_a_store_that_is_away_is_said_so(dataset: Dataset, tmp_path: Path) -> None:
    client = connect(f"unix://{tmp_path}/nobody.sock", timeout_s=1, connections=1)
    with pytest.raises(HistoryUnavailableError, match="goes on where this one stopped"):
        await run(dataset, client)
