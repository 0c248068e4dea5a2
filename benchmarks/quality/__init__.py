"""Does pruning keep the teacher's quality, and is it pruning that keeps it? Methods and controls, set by set.

    python -m benchmarks.quality run DATASET --method espalier …   one row of docs/results/quality.json
    python -m benchmarks.quality page                             the readable page of all rows

`plan` says what every method is allowed, `work` does it, `rows` keeps what came out.
"""
