"""Takes a training run's first steps on one process or several, and saves averages and gradients.

    python [tools/launch.py] tests/support/ema_ranks.py [--nproc 2 --] OUT KEY=VALUE ...

Run by test_ema.py. Without dropout, so that a global batch means the same for any number of
processes. Saved by each process: `alone/NAME`, the gradients before the last batch of the first
optimizer step, `gradient/NAME`, those it is made with, `ema/NAME` and `network/NAME` after three.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import conftest  # noqa: E402, F401

# isort: split
import numpy as np
from paddle import nn

from config import load_config
from support.runs import learn
from system import command, distributed
from train import Training

out = sys.argv[1]
distributed.init()
run = Training(load_config('config/lit_data.yaml', [
    'MODEL.IMAGE_SIZE=32', 'TRAIN.TRAIN_NUM_WORKS=0', 'TRAIN.VISUALDL=false',
    f'TRAIN.OUTPUT_DIR={out}.run', *sys.argv[2:]]))
stepper = run.stepper
for layer in stepper.network.sublayers():
    if isinstance(layer, nn.Dropout):
        layer.p = 0.0
saved = {}


def gradients(kind):
    return {f'{kind}/{name}': parameter.grad.numpy()
            for name, parameter in stepper.network.named_parameters() if parameter.grad is not None}


def update(*position, update=stepper.update):
    for name, gradient in gradients('gradient').items():
        saved.setdefault(name, gradient)
    return update(*position)


stepper.update = update
stepper.begin_epoch(0)
stepper.schedule.step(1.0)    # at its highest rate, not at a warm-up's first
for images, labels in run.train_loader:
    learn(run, images, labels)
    if run.position.step + 1 == run.config.TRAIN.ACCUMULATE:
        saved.update(gradients('alone'))
    if stepper.ema.updates == 3:
        break
saved.update({f'ema/{name}': array for name, array in stepper.ema.state_dict().items()})
saved.update({f'network/{name}': value.numpy()
              for name, value in stepper.network.state_dict().items()})
np.savez(f'{out}.{distributed.rank()}.npz', **saved)
command.run(lambda _: 0)    # ends as the project's commands do
