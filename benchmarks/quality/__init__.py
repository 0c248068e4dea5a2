"""Does pruning keep the teacher's quality, and is it pruning that keeps it? Methods beside controls.

    python -m benchmarks.quality run SOURCE --base FILE --method espalier …   one row of quality.json
    python -m benchmarks.quality page                                        the readable page of all

`plan` says what every method is allowed, `work` does it, `rows` keeps what came out.
"""
