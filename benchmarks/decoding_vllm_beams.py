"""vLLM's own beam search over pipes, for `decoding.py`; an interpreter that has vLLM runs it.

A line in is `{"prompts": [[token, …], …]}`, and the line out holds each prompt's ten best sequences, the
end token included; or it is `{"empty": true}`, which empties the cache of keys and values.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

BEAMS = 20
K = 10


def main() -> None:
    """Loads the model and answers until its input ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    for name in ("end", "longest", "context", "block-tokens", "kv-cache"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()
    # vLLM prints; only answers may go where answers are read.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TORCHDYNAMO_DISABLE": "1",  # as for our engine when it runs eagerly
    }
    search = _Search(given)

    def say(message: object) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    say("ready")
    for line in sys.stdin:
        asked = json.loads(line)
        if "empty" in asked:
            say(search.empty())
        else:
            say(search.best(asked["prompts"]))


class _Search:
    def __init__(self, given: argparse.Namespace) -> None:
        from vllm import LLM  # seconds
        from vllm.sampling_params import BeamSearchParams

        self._llm = LLM(
            model=given.model,
            dtype="float32",
            max_model_len=given.context,
            max_num_batched_tokens=max(4096, given.context),
            kv_cache_memory_bytes=given.kv_cache,
            block_size=given.block_tokens,
            enable_prefix_caching=True,
            enforce_eager=True,
            seed=0,
            max_logprobs=2 * BEAMS,
        )
        # Its only way to learn where a sequence ends.
        tokenizer = self._llm.get_tokenizer()
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(given.end)
        assert tokenizer.eos_token_id == given.end
        self._params = BeamSearchParams(beam_width=BEAMS, max_tokens=given.longest, length_penalty=0.0)

    def best(self, prompts: list[list[int]]) -> list[list[list[int]]]:
        asked: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
        found = self._llm.beam_search(asked, self._params)
        return [
            [sequence.tokens[len(prompt) :] for sequence in one.sequences[:K]]
            for prompt, one in zip(prompts, found, strict=True)
        ]

    def empty(self) -> bool:
        emptied = bool(self._llm.reset_prefix_cache())
        assert emptied
        return emptied


if __name__ == "__main__":
    main()
