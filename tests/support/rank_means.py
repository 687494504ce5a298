"""Trains an epoch and saves the sums of this process: (loss sum, correct, images) of each step.

    python tools/launch.py tests/support/rank_means.py --nproc 2 -- RECIPE FOLDER

Run by test_processes.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import conftest  # noqa: E402, F401

# isort: split
import numpy as np

import zoo
from config import load_config
from support import plain
from system import command, distributed
from train import Training
from training.meter import Meter

recipe, folder = sys.argv[1:]
counted = []


def add(self, batches, add=Meter.add):
    counted.extend([float(loss) * images, float(correct), images]
                   for loss, correct, images in batches)
    add(self, batches)


Meter.add = add
zoo.MODELS.update(plain.NETWORKS)
distributed.init()
Training(load_config(recipe, [
    f'TRAIN.OUTPUT_DIR={folder}/run', 'TRAIN.TRAIN_BATCH_SIZE=4',
    'SCHEDULER.NUM_EPOCHS=1'])).run()
np.save(f'{folder}/{distributed.rank()}.npy', counted)
command.run(lambda _: 0)    # ends as the project's commands do
