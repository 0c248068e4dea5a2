"""Does pruning keep the teacher's quality, and is it pruning that keeps it? Methods beside controls.

    python -m benchmarks.quality run SET --source FOLDER --base FILE …        one row of quality.json
    python -m benchmarks.quality trial SET … --set NAME=VALUE --note WORDS    one line of the log of trials
    python -m benchmarks.quality reproduce SET --source FOLDER                a published row, made again
    python -m benchmarks.quality page                                        the readable page of all

`plan` says what every method is allowed, `budget` what it may read, `work` does it, `rows` keeps what came
out.
"""
