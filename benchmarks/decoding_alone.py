"""The memory of one contender of `decoding.py` that has its process to itself.

Prompts come as JSON from standard input; they are answered one by one, then all at once. What is printed is
the process's highest resident memory in bytes, the interpreter and its libraries included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.decoding_contenders import Prompt, beams, native, peak_bytes
from recommender.artifact import Artifact
from recommender.ranker import Ranker


def peak_alone(artifact: Path, name: str, prompts: Sequence[Prompt]) -> int:
    """Has a process answer these prompts; its highest resident memory in bytes."""
    command = [sys.executable, "-m", "benchmarks.decoding_alone", str(artifact), name]
    asked = json.dumps(prompts)
    done = subprocess.run(command, input=asked, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    """Answers and prints."""
    artifact = Artifact.open(Path(sys.argv[1]))
    ranker = Ranker.from_artifact(artifact)
    contender = native(ranker) if sys.argv[2] == "native" else beams(artifact, ranker)
    prompts = [tuple(prompt) for prompt in json.load(sys.stdin)]
    for prompt in prompts[:8]:
        contender([prompt])
    contender(prompts)
    print(peak_bytes(os.getpid()))


if __name__ == "__main__":
    main()
