"""Make tests/fixtures/*.pth and *.pth.tar, small files as PyTorch writes them.

    python tests/make_torch_fixtures.py        (needs torch; the tests don't)

test_weights.py states the expected values once more, in numpy.
"""

import argparse
import collections
import pathlib
import types
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).resolve().parent / 'fixtures'


def tensors():
    numbers = torch.arange(24, dtype=torch.float32)
    return {
        'plain': torch.nn.Parameter(numbers[:6].reshape(2, 3).clone()),
        'transposed': numbers[:6].reshape(2, 3).clone().t(),
        'first_of_shared': numbers[:4],
        'second_of_shared': numbers[4:20:2].reshape(2, 4),
        'expanded': torch.tensor([1.0, 2.0, 3.0]).expand(4, 3),
        'bfloat16': torch.tensor([1.0, -2.5, 3.140625, 2.0 ** 100, float('inf')]).bfloat16(),
        'float16': torch.tensor([1.0, -2.5, 65504.0], dtype=torch.float16),
        'float64': torch.tensor([0.1], dtype=torch.float64),
        'int64': torch.tensor(7),
        'uint8': torch.tensor([0, 255], dtype=torch.uint8),
        'bool': torch.tensor([True, False]),
        'empty': torch.zeros(0, 5),
    }


def checkpoint():
    """As timm, with which the official weights were trained, saves one."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4)
    network(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()

    def filled(value):
        state = network.state_dict()    # an OrderedDict with the attribute _metadata
        for name in list(state):
            state[f'module.{name}'] = torch.full_like(state.pop(name), value)
        return state

    return {'epoch': 309, 'arch': 't2t_vit_7', 'state_dict': filled(1), 'state_dict_ema': filled(2),
            'optimizer': optimizer.state_dict(), 'version': 2, 'metric': 71.7, 'amp_scaler': None,
            'args': argparse.Namespace(lr=5e-4, model='t2t_vit_7', mean=(0.485, 0.456, 0.406),
                                       img_size=torch.Size([224, 224]), dtype=torch.float32,
                                       device=torch.device('cuda:0'), resume='')}


def with_numpy():
    """Arrays of numpy in torch's file, and an average of a kind that has another name."""
    def filled(value):
        return {'0.weight': np.full((2, 3), value, 'float32'),
                '0.bias': torch.full((2,), value, dtype=torch.bfloat16)}

    return {'model': filled(1.0), 'model_ema': filled(2.0), 'metric': np.float64(71.7),
            'epoch': 3}


def wrapped():
    """{file name: content} of what trainers put around a state dict, and settings beside it."""
    layer = torch.nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.bias.fill_(3.0)
    state = layer.state_dict()
    compiled = torch.compile(layer).state_dict()
    assert list(compiled) == ['_orig_mod.weight', '_orig_mod.bias']

    def prefixed(prefix):
        return {f'{prefix}{name}': value for name, value in state.items()}

    counts = collections.Counter('aab')
    history = collections.defaultdict(list, loss=[0.5, 0.25])
    folder = pathlib.PurePosixPath('/data', *'abcdefghijklmnopqrst')
    settings = argparse.Namespace(
        output_dir=pathlib.Path('runs/1'), data=folder, skip={'head', 'norm'}, sizes=frozenset([1]),
        history=history, counts=counts, window=slice(0, 2), epochs=range(3), dtype=torch.float32,
        device=torch.device('cpu'), options=types.SimpleNamespace(lr=0.1), gain=1j, seed=None)
    return {
        'net.pth': {'net': state, 'acc': 98.3, 'epoch': 59},
        'model_state_dict.pth': {'epoch': 3, 'model_state_dict': state, 'loss': torch.tensor(0.5),
                                 'optimizer_state_dict': {'state': {}, 'param_groups': []}},
        'lightning.ckpt': {'epoch': 3, 'global_step': 40, 'pytorch-lightning_version': '2.5.0',
                           'state_dict': prefixed('model.'), 'loops': {}, 'callbacks': {},
                           'hyper_parameters': {'path': pathlib.PureWindowsPath('C:/data')}},
        'compiled.pth': {'model': compiled, 'args': settings},
        'compiled_ranks.pth': prefixed('module._orig_mod.'),
        'settings.pth': {'args': settings, 'seen': {1, 2}, 'history': history,
                         'model': {'state_dict': collections.defaultdict(float, state)}},
    }


if __name__ == '__main__':
    torch.manual_seed(0)
    FOLDER.mkdir(exist_ok=True)
    for name, content in wrapped().items():
        torch.save(content, FOLDER / name)
    torch.save(tensors(), FOLDER / 'zip.pth')
    torch.save(tensors(), FOLDER / 'legacy.pth', _use_new_zipfile_serialization=False)
    torch.save(checkpoint(), FOLDER / 'checkpoint.pth.tar')
    torch.save(with_numpy(), FOLDER / 'with_numpy.pth')
    for file in sorted(FOLDER.iterdir()):
        print(file.name, file.stat().st_size, 'bytes')
