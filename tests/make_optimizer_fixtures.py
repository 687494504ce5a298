"""Make tests/fixtures/optimizer.npz: what PyTorch's optimizers do to a small network.

    python tests/make_optimizer_fixtures.py        (needs torch; the tests don't)

The network is tanh((x + cls_token + pos_embed) fc1) head, in the parameters' names and axes of
PyTorch; test_optimizer.py builds it once more in Paddle.
"""

import math
from pathlib import Path

import numpy as np
import torch

STEPS = 30
FLOORS = {'sgd_one_floor': (40, 2e-4)}    # cases with other steps and an eta_min of both groups
EXCLUDED = ('fc1.bias', 'head.bias', 'cls_token', 'pos_embed')
SHAPES = {'cls_token': (1, 1, 6), 'pos_embed': (1, 5, 6), 'fc1.weight': (8, 6), 'fc1.bias': (8,),
          'head.weight': (4, 8), 'head.bias': (4,)}
# name: (optimizer, its options, decay of all?, (clip mode, limit), rate of fc1 and the tables)
CASES = {
    'sgd': (torch.optim.SGD, dict(lr=0.05, momentum=0.9, weight_decay=0.1), True, None, 1),
    'sgd_excluded': (torch.optim.SGD, dict(lr=0.05, momentum=0.9, weight_decay=0.1), False, None,
                     1),
    'sgd_nesterov': (torch.optim.SGD, dict(lr=0.05, momentum=0.8, weight_decay=0.1, nesterov=True),
                     True, ('norm', 0.3), 1),
    'sgd_backbone': (torch.optim.SGD, dict(lr=0.05, momentum=0.9, weight_decay=0.1), True, None,
                     0.01),
    # The official transfer to CIFAR: the rate of fc1 and the tables falls from 5e-4 to 2e-4.
    'sgd_one_floor': (torch.optim.SGD, dict(lr=0.05, momentum=0.9, weight_decay=5e-4), True, None,
                      0.01),
    'adamw': (torch.optim.AdamW, dict(lr=0.01, weight_decay=0.3), True, None, 1),
    'adamw_excluded': (torch.optim.AdamW, dict(lr=0.01, weight_decay=0.3, betas=(0.85, 0.95),
                                               eps=1e-6), False, ('value', 0.02), 1),
    'adamw_backbone': (torch.optim.AdamW, dict(lr=0.01, weight_decay=0.3), False, None, 0.01),
}


def start(name, shape):
    """The initial value of a parameter, or of the inputs and targets."""
    seed = sum(map(ord, name))
    return np.random.default_rng(seed).standard_normal(shape).astype('float32')


def run(kind, options, decay_all, clip, backbone_rate, steps=STEPS, floor=0.0):
    parameters = {name: torch.nn.Parameter(torch.from_numpy(start(name, shape)))
                  for name, shape in SHAPES.items()}
    groups = []
    for name, parameter in parameters.items():
        rate = options['lr'] * (1 if name.startswith('head') else backbone_rate)
        decay = options['weight_decay'] if decay_all or name not in EXCLUDED else 0.0
        groups.append(dict(params=[parameter], lr=rate, weight_decay=decay))
    optimizer = kind(groups, **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=floor)
    inputs = torch.from_numpy(start('inputs', (3, 5, 6)))
    targets = torch.from_numpy(start('targets', (3, 5, 4)))
    losses, norms = [], []
    for _ in range(steps):
        x = inputs + parameters['cls_token'] + parameters['pos_embed']
        x = torch.tanh(x @ parameters['fc1.weight'].T + parameters['fc1.bias'])
        x = x @ parameters['head.weight'].T + parameters['head.bias']
        loss = (x - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in parameters.values())))
        if clip and clip[0] == 'norm':
            torch.nn.utils.clip_grad_norm_(parameters.values(), clip[1])
        elif clip:
            torch.nn.utils.clip_grad_value_(parameters.values(), clip[1])
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return {'losses': np.array(losses), 'norms': np.array(norms),
            **{name: p.detach().numpy() for name, p in parameters.items()}}


if __name__ == '__main__':
    path = Path(__file__).resolve().parent / 'fixtures' / 'optimizer.npz'
    np.savez_compressed(path, **{f'{case}/{name}': value for case, options in CASES.items()
                                 for name, value in run(*options,
                                                        *FLOORS.get(case, ())).items()})
    print(path.name, path.stat().st_size, 'bytes, torch', torch.__version__)
