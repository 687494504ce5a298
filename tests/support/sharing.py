"""What processes give each other, with pieces of 1,000 bytes; each writes what it saw to FOLDER.

    python tools/launch.py tests/support/sharing.py --nproc 2 -- FOLDER

Run by test_processes.py.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import conftest  # noqa: E402, F401

# isort: split
import numpy as np

from system import command, distributed

distributed.PIECE = 1000
distributed.init()
rank, said = distributed.rank(), {}


def said_by(function, *arguments, **values):
    try:
        return function(*arguments, **values)
    except Exception as error:
        return f'{type(error).__name__}: {error}'


def fail_on(number):
    if rank == number:
        raise OSError(f'rank {number} failed')
    return f'rank {rank} succeeded'


arrays = {'large': np.arange(1234, dtype='float64').reshape(2, 617), 'none': np.zeros((0, 3)),
          'half': np.arange(7, dtype='float16'), 'strided': np.arange(20)[::2],
          'one': np.float32(3)}
got = distributed.broadcast_object(arrays if rank == 0 else 'of no interest')
for name, array in arrays.items():
    np.testing.assert_array_equal(got[name], array, strict=True)
got['large'][0] = 0    # may be written to
said['main'] = [said_by(distributed.from_main, fail_on, number) for number in (0, 1)]
said['everywhere'] = [said_by(distributed.everywhere, fail_on, number) for number in (0, 1, 2)]
said['agree'] = [said_by(distributed.agree, epoch=3, step=4),
                 said_by(distributed.agree, epoch=3, step=rank)]
(Path(sys.argv[1]) / f'{rank}.json').write_text(json.dumps(said))
command.run(lambda _: 0)    # ends as the project's commands do
