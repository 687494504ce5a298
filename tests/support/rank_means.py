"""Trains an epoch and saves what this process alone counted: (loss sum, correct, images) a step.

    python tools/launch.py tests/support/rank_means.py --nproc 2 -- RECIPE FOLDER

Run by test_processes.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import conftest  # noqa: E402, F401

# isort: split
import numpy as np

from config import load_config
from system import distributed
from train import Run

recipe, folder = sys.argv[1:]
counted = []


class CountingRun(Run):
    def add_pending(self):
        counted.extend([float(loss) * images, float(correct), images]
                       for loss, correct, images in self.pending)
        super().add_pending()


distributed.init()
CountingRun(load_config(recipe, [
    f'TRAIN.OUTPUT_DIR={folder}/run', 'TRAIN.TRAIN_BATCH_SIZE=4',
    'SCHEDULER.NUM_EPOCHS=1'])).train()
np.save(f'{folder}/{distributed.rank()}.npy', counted)
