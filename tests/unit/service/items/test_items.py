import httpx
import pytest


async def test_the_best_match_comes_first(client: httpx.AsyncClient) -> None:
    response = await client.get("/items", params={"query": "the witcher", "limit": 5})
    assert response.json() == {
        "items": [
            {"item_id": "g28", "title": "The Witcher"},
            {"item_id": "g29", "title": "The Witcher 3: Wild Hunt"},
        ]
    }


async def test_without_a_query_the_popular_ones(client: httpx.AsyncClient) -> None:
    items = (await client.get("/items")).json()["items"]
    assert [item["item_id"] for item in items] == [f"g{29 - rank}" for rank in range(10)]


async def test_nothing_found_is_an_empty_list(client: httpx.AsyncClient) -> None:
    assert (await client.get("/items", params={"query": "zzz"})).json() == {"items": []}


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 101}, {"limit": "x"}, {"query": "x" * 513}])
async def test_limits_are_kept(client: httpx.AsyncClient, params: dict[str, str]) -> None:
    response = await client.get("/items", params=params)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"].startswith("#/query/")
