"""(d) What `import poe` adds to `import torch`, each time in a new process."""

from __future__ import annotations

import statistics
import subprocess
import sys

from timing import table

CODE = (
    "import time, torch; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
)


def added(module: str, repeats: int = 7) -> float:
    def once() -> float:
        run = subprocess.run(
            [sys.executable, "-c", CODE.format(module)], capture_output=True, text=True, check=True
        )
        return float(run.stdout)

    once()  # fills the disk cache
    return statistics.median(once() for _ in range(repeats))


table(
    "import after torch",
    [(f"import {module}", added(module), "s", 0.5) for module in ("poe", "experts")],
)
