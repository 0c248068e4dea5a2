import subprocess
import sys


def test_mounting_the_commands_loads_nothing_heavy() -> None:
    code = "import service.cli, sys; print([m for m in ('torch', 'fastapi', 'redis') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
