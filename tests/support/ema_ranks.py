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
import paddle
from paddle import nn

from config import load_config
from system import distributed
from train import Run

out = sys.argv[1]
distributed.init()
run = Run(load_config('config/lit_data.yaml', [
    'MODEL.IMAGE_SIZE=32', 'TRAIN.TRAIN_NUM_WORKS=0', 'TRAIN.VISUALDL=false',
    f'TRAIN.OUTPUT_DIR={out}.run', *sys.argv[2:]]))
for layer in run.network.sublayers():
    if isinstance(layer, nn.Dropout):
        layer.p = 0.0
saved = {}


def gradients(kind):
    return {f'{kind}/{name}': parameter.grad.numpy()
            for name, parameter in run.network.named_parameters() if parameter.grad is not None}


def optimizer_step(step=run.optimizer_step):
    for name, gradient in gradients('gradient').items():
        saved.setdefault(name, gradient)
    step()


run.optimizer_step = optimizer_step
run.schedule.step(1.0)    # at its highest rate, not at a warm-up's first
run.model.train()
paddle.seed(0)
for images, labels in run.train_loader:
    run.step(images, labels)
    run.position.step += 1
    if run.position.step + 1 == run.config.TRAIN.ACCUMULATE:
        saved.update(gradients('alone'))
    if run.ema.updates == 3:
        break
saved.update({f'ema/{name}': array for name, array in run.ema.state_dict().items()})
saved.update({f'network/{name}': value.numpy()
              for name, value in run.network.state_dict().items()})
np.savez(f'{out}.{distributed.rank()}.npz', **saved)
