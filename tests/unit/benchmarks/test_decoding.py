"""What the decoding benchmark makes of its measurements; and its contenders' answers on a tiny artifact."""

import os
import xml.etree.ElementTree
from typing import Any

import pytest
from served_artifact import write_served_artifact

from benchmarks.decoding import chosen_blocks, compare, exact_answers, measure
from benchmarks.decoding_contenders import (
    K,
    Mode,
    Prompt,
    beams,
    items_of,
    leaf_of_paths,
    native,
    peak_bytes,
)
from benchmarks.decoding_floors import floors, together
from benchmarks.decoding_report import best_vllm, illegal_share, overlap, page, picture, ratios
from benchmarks.floors import Machine, Step, roofline_seconds
from recommender.artifact import Artifact
from recommender.ranker import Ranker

MS = {
    "native": {"p50_ms": 2.0, "p95_ms": 3.0, "p99_ms": 4.0},
    "transformers": {"p50_ms": 100.0, "p95_ms": 110.0, "p99_ms": 120.0},
    "vllm_eager": {"p50_ms": 60.0, "p95_ms": 70.0, "p99_ms": 80.0},
    "vllm_compiled": {"p50_ms": 50.0, "p95_ms": 75.0, "p99_ms": 85.0},
    "vllm_beams": {"p50_ms": 10.0, "p95_ms": 11.0, "p99_ms": 12.0},
}
RATES = {
    "native": {"1": 400.0, "8": 800.0, "32": 900.0},
    "transformers": {"1": 10.0, "8": 12.0, "32": 15.0},
    "vllm_eager": {"1": 16.0, "8": 40.0, "32": 45.0},
    "vllm_compiled": {"1": 20.0, "8": 30.0, "32": 30.0},
    "vllm_beams": {"1": 90.0, "8": 200.0, "32": 300.0},
}
PARTS = ("prefill_roofline", "prefill_gemm", "request_roofline", "request_gemm")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_served_artifact(tmp_path_factory)


@pytest.fixture(scope="module")
def ranker(artifact: Artifact) -> Ranker:
    return Ranker.from_artifact(artifact)


def prompts(ranker: Ranker) -> list[Prompt]:
    return [ranker.prompt(history) for history in ((2, 5), (9,), (1, 3, 28), (4, 4, 17))]


def record(names: tuple[str, ...] = tuple(MS)) -> dict[str, Any]:
    milliseconds = {name: MS[name] for name in names}
    rates = {name: RATES[name] for name in names}
    on_vllm = "vllm_eager" in names
    return {
        "date": "2026-11-28",
        "command": "python -m benchmarks.decoding A D",
        "machine": {"python": "3.11", "cores": 2, "processor": "some"},
        "artifact": "games@0123",
        "dtype": "float32",
        "weights": "bfloat16",
        "threads": 2,
        "load_before": 1.5,
        "k": 10,
        "beams": 20,
        "rows": 200,
        "beam_rows": 32,
        "floor_rows": 32,
        "memory_rows": 32,
        "tuning_rows": 8,
        "titles": 30,
        "longest_title": 7,
        "prompt_tokens_mean": 61.5,
        "files": "decoding",
        "tuning": [
            {"mode": "vllm_eager", "block_tokens": 32, "p50_ms": 60.0, "refused": None},
            {"mode": "vllm_eager", "block_tokens": 16, "p50_ms": None, "refused": "no such block"},
        ]
        if on_vllm
        else [],
        "block_tokens": {"vllm_eager": 32, "vllm_compiled": 64} if on_vllm else {},
        "ms": milliseconds,
        "requests_per_s": rates,
        "overlap10": dict.fromkeys(names, 1.0),
        "peak_bytes": dict.fromkeys(names, 256 << 20),
        "illegal_share10": 0.875,
        "ratios": ratios(milliseconds, rates),
        "floor_fraction": dict.fromkeys(PARTS, 0.25),
        "floors": {
            "ms": dict.fromkeys(PARTS, 0.5),
            "native_ms": {"prefill": 1.0, "request": 2.0},
            "requests_per_s": {at: dict.fromkeys(PARTS, 2000.0) for at in ("1", "8", "32")},
        },
    }


def test_ratios_are_to_the_better_of_our_modes_on_vllm_each_time() -> None:
    assert best_vllm(MS, RATES) == {"p50": "vllm_compiled", "throughput32": "vllm_eager"}
    assert ratios(MS, RATES) == {
        "p50_vs_transformers": 50.0,
        "p50_vs_vllm": 25.0,
        "throughput32_vs_transformers": 60.0,
        "throughput32_vs_vllm": 20.0,
    }


def test_without_vllm_there_are_no_ratios_to_it() -> None:
    two = ("native", "transformers")
    found = ratios({name: MS[name] for name in two}, {name: RATES[name] for name in two})
    assert set(found) == {"p50_vs_transformers", "throughput32_vs_transformers"}


def test_overlap_is_the_share_of_the_exact_ten() -> None:
    assert overlap([[1, 2, 3, 4], [5]], [[1, 2, 9, 8], [5]]) == 0.75
    assert overlap([[]], [[1]]) == 0.0


def test_only_a_title_with_its_end_is_legal(ranker: Ranker) -> None:
    titles = leaf_of_paths(ranker.trie)
    title = ranker.trie.path(0)
    assert illegal_share([[title, title[:-1]], [(*title, 1), (1,)]], titles) == 0.75
    assert illegal_share([[title] * K + [(1,)]], titles) == 0.0  # the eleventh does not count


def test_items_of_sequences_skip_what_is_no_title(ranker: Ranker) -> None:
    paths = leaf_of_paths(ranker.trie)
    leaf = int(ranker.leaf_of_items[0])
    assert items_of([(1,), ranker.trie.path(leaf)], paths, ranker.trie) == [24, 0]


def test_the_fastest_block_of_each_mode_goes_on() -> None:
    tried = [
        {"mode": "vllm_eager", "block_tokens": 32, "p50_ms": 9.0},
        {"mode": "vllm_eager", "block_tokens": 64, "p50_ms": 7.0},
        {"mode": "vllm_eager", "block_tokens": 128, "p50_ms": None},
        {"mode": "vllm_compiled", "block_tokens": 32, "p50_ms": None},
    ]
    assert chosen_blocks(tried) == {"vllm_eager": 64}
    assert Mode(True, 64).options == ("--block-tokens", "64", "--compiled")
    assert Mode(False, 32).options == ("--block-tokens", "32")


def test_requests_read_together_share_their_steps() -> None:
    merged = together([[Step(10, 1, 5), Step(2, 2, 3)], [Step(20, 1, 5)]])
    assert merged == [Step(30, 2, 5), Step(2, 2, 3)]


def test_contenders_take_turns_and_a_slow_one_is_asked_less(ranker: Ranker) -> None:
    turns: list[tuple[str, int]] = []

    def named(name: str) -> Any:
        def answer(asked: list[Prompt]) -> list[list[int]]:
            turns.append((name, len(asked)))
            return [[0] for _ in asked]

        return answer

    asked = (prompts(ranker) * 3)[:10]
    found = measure({"a": named("a"), "b": named("b")}, asked, 2, {"b": 3})
    # Turns of eight requests, two a call.
    assert turns == [*[("a", 2)] * 4, ("b", 2), ("b", 1), ("a", 2)]
    assert len(found["b"]["answers"]) == 3
    assert len(found["a"]["seconds"]) == 5


def test_native_and_constrained_beams_give_the_exact_answer(artifact: Artifact, ranker: Ranker) -> None:
    asked = prompts(ranker)
    exact = exact_answers(artifact, ranker, asked)
    emptied = []
    contenders = {"native": native(ranker), "transformers": beams(artifact, ranker)}
    found = compare(contenders, lambda: emptied.append(1), asked, exact, {"transformers": 2})
    assert found["overlap10"]["native"] == 1.0
    assert found["overlap10"]["transformers"] > 0.8
    assert len(emptied) == 3
    assert set(found["requests_per_s"]["native"]) == {"1", "8", "32"}


def test_floors_are_named_as_the_record_promises(artifact: Artifact, ranker: Ranker) -> None:
    found, shares = floors(artifact, ranker, prompts(ranker))
    assert set(shares) == set(PARTS)
    assert set(found["ms"]) == set(PARTS)
    assert all(value > 0 for at in found["requests_per_s"].values() for value in at.values())


def test_a_roofline_counts_what_is_asked_for_and_the_bytes_that_weights_need(artifact: Artifact) -> None:
    lean = artifact.load_transformer()
    arch, hidden = lean.architecture, lean.architecture.hidden_size
    key_values = 2 * arch.num_key_value_heads * arch.head_dim * hidden
    layers = sum(matrix.numel() for matrix in lean.matrices[2:])
    last = layers // arch.num_hidden_layers
    arithmetic = roofline_seconds(lean, [Step(8, 1, 3)], Machine(1.0, 1e30))
    assert arithmetic == 2 * (8 * (layers - last + key_values) + last - key_values + 3 * hidden)
    assert roofline_seconds(lean, [Step(8, 1, 3)], Machine(1e30, 1.0)) == 4 * (layers + 3 * hidden)
    lean.__dict__["fits_bfloat16"] = True
    assert roofline_seconds(lean, [Step(8, 1, 3)], Machine(1e30, 1.0)) == 2 * (layers + 3 * hidden)


def test_a_process_tells_its_peak() -> None:
    assert peak_bytes(os.getpid()) > 50 << 20


def test_the_page_says_all_of_it() -> None:
    text = page(record())
    assert "25.0 times as fast as the better of our modes on vLLM at p50" in text
    assert "60.0 times as many requests" in text
    assert "weights of bfloat16 multiplied in float32 by all" in text
    assert "**87.5%** of\nits best ten sequences are no title" in text
    assert "| our vLLM engine, eager | 16 | – | no such block |" in text
    assert "| packed prefill | 1.0 | 0.5 (25%) | 0.5 (25%) |" in text
    assert "(decoding.svg)" in text


def test_the_page_says_when_a_floor_lies_above_a_time() -> None:
    assert "disturbed" not in page(record())
    disturbed = record() | {"floor_fraction": dict.fromkeys(PARTS, 1.5)}
    assert "other work on the machine disturbed the measuring" in page(disturbed)
    assert "of packed weights" in page(disturbed)
    assert "the load was 1.5" in page(disturbed)


def test_the_page_without_vllm_says_so() -> None:
    text = page(record(("native", "transformers")))
    assert "vLLM did not run" in text
    assert "unconstrained" not in text


def test_the_picture_has_a_bar_for_each_contender_in_both_panels() -> None:
    root = xml.etree.ElementTree.fromstring(picture(record()))
    bars = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert len(bars) == 2 * len(MS)
    assert widths[0] < widths[1]  # native's p50 is the shorter …
    assert widths[len(MS)] > widths[len(MS) + 1]  # … and its requests/s are more
