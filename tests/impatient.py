"""Runs a program whose waits, as between tries to reach the Hub, are cut short.

`python tests/impatient.py PROGRAM ...`
"""

from __future__ import annotations

import runpy
import sys
import time

LONGEST = 0.01  # seconds

if __name__ == "__main__":
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, LONGEST))
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
