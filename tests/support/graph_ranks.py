"""Validates with graphs, as for many images, and prints the cores of this process.

    python tools/launch.py tests/support/graph_ranks.py --nproc 2 -- OPTIONS

Run by test_fast.py; the options are those of tools/val.py.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import conftest  # noqa: E402, F401

# isort: split
import val
from deploy import fast
from system import command

fast.FEWEST_PIXELS = 0
val.main(sys.argv[1:])
print(f'cores: {sorted(os.sched_getaffinity(0))}')
command.run(lambda _: 0)    # ends as the project's commands do
