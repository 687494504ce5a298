"""Trains 20 steps without dropout, on one process or several, and saves the weights.

    python [tools/launch.py] tests/support/two_ranks.py [--nproc 2 --] OUT BATCH_SIZE

Run by test_processes.py; every global batch is the same for any number of processes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import conftest  # noqa: E402, F401

# isort: split
import numpy as np
import paddle

import build
from config import load_config
from recipe.optimizer import build_optimizer, clip_gradients
from system import command, distributed

out, batch_size = sys.argv[1], int(sys.argv[2])
distributed.init()
config = load_config('config/lit_data.yaml', [
    'MODEL.IMAGE_SIZE=32', f'TRAIN.TRAIN_BATCH_SIZE={batch_size}', 'TRAIN.TRAIN_NUM_WORKS=0'])
paddle.seed(distributed.rank())    # differs, until the first process hands out its weights
network = build.network(config)
network.eval()    # no dropout, which every process draws for itself
model = paddle.DataParallel(network) if distributed.world_size() > 1 else network
if distributed.rank() == 0:
    first = {name: value.numpy() for name, value in network.state_dict().items()}
optimizer = build_optimizer(network, 1e-4, 0.03)
trainable = [p for p in network.parameters() if not p.stop_gradient]
norms = []
prepare = build.batch_transform(config)
for step, (images, labels) in enumerate(build.train_loader(config)):
    images, labels = prepare(images, labels, epoch=0, step=step)
    loss = paddle.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    norms.append(clip_gradients(trainable, 1.0))
    if step == 0:
        gradients = {f'gradient/{name}': p.grad.numpy()
                     for name, p in network.named_parameters() if not p.stop_gradient}
    optimizer.step()
    optimizer.clear_grad()
    if step == 19:
        break
np.savez(f'{out}.{distributed.rank()}.npz', norms=norms, **gradients,
         **{name: value.numpy() for name, value in network.state_dict().items()})
command.run(lambda _: 0)    # ends as the project's commands do
