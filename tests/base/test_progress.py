"""Long work says how far it is: a bar at a terminal, a line a minute in a log file."""

import os
import subprocess
import sys
import termios

COUNT = """
import time
from pretrain.base import progress
progress._LINE_EVERY_S = 0.2
with progress.Bar(what="count", unit="steps", total=40, done=10) as bar:
    for _ in range(30):
        time.sleep(0.03)
        bar.update(1)
        bar.set_postfix_str("loss=2", refresh=False)
    bar.write("said")
for _ in progress.Bar(range(3), what="short", unit="steps"):
    pass
"""


def test_a_log_file_gets_whole_lines_with_count_rate_and_time_to_go() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    assert done.stdout == "said\n"
    lines = done.stderr.splitlines()
    assert 2 <= len(lines) <= 5, lines
    for line in lines:
        assert line.startswith("count: ") and " of 40.0 steps, " in line, line
        assert "steps/s" in line and line.endswith(" to go") and "\r" not in line, line
    assert "loss=2" in lines[-1]


def test_a_terminal_gets_a_bar() -> None:
    here, there = os.openpty()
    termios.tcsetwinsize(there, (24, 80))
    subprocess.run(
        [sys.executable, "-c", COUNT], stdout=subprocess.DEVNULL, stderr=there, check=True
    )
    os.close(there)
    shown = os.read(here, 1 << 16).decode()
    os.close(here)
    assert "\r" in shown and "count" in shown and "40.0/40.0" in shown, shown
