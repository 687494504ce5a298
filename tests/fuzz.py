"""Gives every reader of this project files and requests that were changed at random.

    python tests/fuzz.py --minutes 60 --seed 1      # or --cases 20000
    python tests/fuzz.py --seed 1 --case 4711       # one case again, with its traceback

Readers are what takes in files and requests of strangers: weights of every form, checkpoints,
CIFAR, image lists, YAML, -o, images, exports, HTTP. Case N of seed S is drawn from numpy's
generator of (S, N) alone: a reader, a whole file, and changes to it (support/mutate.py). A reader
may succeed or raise the exceptions that it documents, on one line, within MOST_SECONDS of processor
time and MOST_BYTES of memory. Anything else is a finding, and so is the end of the process, except
where Paddle or ONNX Runtime load a changed graph: a graph is a program, and theirs.

Cases run in a child process, which is replaced when it dies, hangs or has grown. The last lines
are a table of what was tried.
"""

import argparse
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import logging
import os
import pickle
import re
import resource
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace

import conftest
import numpy as np
from support import mutate
from support.cifar import python_2_pickle
from support.mutate import pick

from system.start import follow_parent

ROOT = conftest.ROOT
MOST_SECONDS = 10           # of processor time a case
MOST_BYTES = 1 << 30        # of memory a case, above what the process had before
SECONDS_TO_HANG = 120       # without an end of the case
OUTCOMES = ('read', 'refused', 'native crash', 'finding')


class Finding(Exception):
    """A reader that did something else than its documentation says."""


# ---- readers: draw(rng) makes a case, read(case) reads it or raises `documented`

class Weights:
    """Weights files of all forms, read and put into a small network."""

    share, native = 8, False

    def __init__(self, folder):
        import paddle

        import build
        import zoo
        from config import load_config
        from weights.container import write_checkpoint
        from weights.files import WeightsError, write_weights
        from zoo.vit import ViT

        self.documented = (WeightsError,)
        self.folder, self.build, self.zoo = folder, build, zoo
        self.config = load_config('config/lit_data.yaml', ['MODEL.NUM_CLASSES=3',
                                                           'MODEL.IMAGE_SIZE=8'])
        paddle.seed(0)
        self.network = ViT(8, 3, patch_size=4, embed_dim=8, depth=1, num_heads=2)
        state = {name: value.numpy() for name, value in self.network.state_dict().items()}
        about = dict(model='t2t_vit_7', image_size=8, class_names=['a', 'b', 'c'])
        torch = {name: array.T if name.endswith('.weight') and array.ndim == 2 else array
                 for name, array in state.items()}
        half = {name: array.astype('float16') for name, array in state.items()}
        self.files = {'.pdparams': [pickle.dumps(content, protocol) for protocol in (2, 4)
                                    for content in self.pickled(state, half)]}
        for ending, written in [('.pth', torch), ('.safetensors', state), ('.pdparams', state)]:
            path = folder / f'whole{ending}'
            write_weights(path, written, about, ending)
            self.files.setdefault(ending, []).append(path.read_bytes())
        fixtures = ROOT / 'tests' / 'fixtures'
        for name in ('zip.pth', 'checkpoint.pth.tar', 'with_numpy.pth'):
            self.files['.pth'].append((fixtures / name).read_bytes())
        self.files['legacy'] = [(fixtures / 'legacy.pth').read_bytes()]
        write_checkpoint(folder / 'whole.ckpt', {
            **{f'network/{name}': array for name, array in state.items()},
            **{f'ema/{name}': array for name, array in state.items()},
            **{f'optimizer/moment1/{name}': array for name, array in state.items()}},
            {'position': {'epoch': 0, 'step': 3}, 'steps': 7, 'log': None,
             'identity': {'config': {'MODEL': {'NAME': 't2t_vit_7', 'IMAGE_SIZE': 8}}}})
        self.files['.ckpt'] = [(folder / 'whole.ckpt').read_bytes()]

    @staticmethod
    def pickled(state, half):
        """What people pickle: bare, named, nested, wrapped, with an optimizer beside it."""
        table = {'StructuredToParameterName@@': {name: name for name in state},
                 'metadata@@': json.dumps({'model': 't2t_vit_7', 'image_size': 8})}
        yield {**state, **table}
        yield {**{name: (f'p_{name}', array) for name, array in half.items()}, **table}
        yield {'epoch': 3, 'state_dict': {f'module.{name}': array for name, array in state.items()},
               'state_dict_ema': half, 'args': {'lr': 0.1, 'model': 't2t_vit_7'}}
        yield {'net': state, 'acc': 71.7, 'epoch': 1}
        yield {**{f'{name}_moment1_0': array for name, array in state.items()},
               'LR_Scheduler': {'last_epoch': 3, 'last_lr': 0.1}, 'master_weights': dict(state)}
        large = state['head.weight']
        yield {**state, 'head.weight@@.0': large.ravel()[:10], 'head.weight@@.1':
               large.ravel()[10:], 'UnpackBigParamInfor@@': {'head.weight': {
                   'OriginShape': large.shape, 'slices': ['head.weight@@.0', 'head.weight@@.1']}}}

    def draw(self, rng):
        form = pick(rng, list(self.files))
        data = pick(rng, self.files[form])
        plain = rng.random() < 0.15
        if form == '.ckpt':
            content = data[:-40]
            content = (mutate.change_bytes(rng, content) if plain else
                       mutate.change_zip(rng, content, self.change_member))
            changed = content + b'T2TCKPT1' + hashlib.sha256(content).digest()
            if rng.random() < 0.1:
                changed = mutate.change_bytes(rng, changed)
        elif plain:
            changed = mutate.change_bytes(rng, data)
        elif form == '.pth':
            changed = mutate.change_zip(rng, data, self.change_member)
        elif form == '.safetensors':
            size = int.from_bytes(data[:8], 'little')
            header = mutate.change_json(rng, data[8:8 + size])
            length = len(header) if rng.random() < 0.9 else mutate.number(rng) % 2 ** 64
            rest = data[8 + size:] if rng.random() < 0.8 else mutate.change_bytes(rng, data[-99:])
            changed = length.to_bytes(8, 'little') + header + rest
        elif form == 'legacy':
            head, parts = b'', data
            for _ in range(int(rng.integers(5))):    # magic, version, system, value, keys
                instructions, parts = mutate.parts_of(parts)
                head += b''.join(instructions)
            changed = head + mutate.change_pickle(rng, parts)
        else:
            changed = mutate.change_pickle(rng, data)
        ending = {'legacy': '.pth', '.ckpt': '.ckpt'}.get(form, form)
        return ending, changed, pick(rng, [None, None, 'ema', 'raw']), rng.random() < 0.5

    @staticmethod
    def change_member(rng, name, content):
        if name.endswith('.pkl'):
            return mutate.change_pickle(rng, content)
        if name == 'state.json.npy':
            start = 10 + int.from_bytes(content[8:10], 'little')
            text = mutate.change_json(rng, content[start:])
            stream = io.BytesIO()
            np.save(stream, np.frombuffer(text, 'uint8'))
            return stream.getvalue()
        if name.endswith('.npy'):
            return mutate.change_npy(rng, content)
        return mutate.change_bytes(rng, content)

    def read(self, case):
        from weights.files import read_weights

        ending, content, part, adapt = case
        path = self.folder / f'weights{ending}'
        path.write_bytes(content)
        state, metadata = read_weights(path, part)
        if not all(type(name) is str and isinstance(array, np.ndarray) and array.dtype != object
                   for name, array in state.items()) or type(metadata) is not dict:
            raise Finding('what was read is no dict of arrays')
        self.build.load_weights(self.config, self.network, path, adapt, new_head=adapt)


class Cifar:
    """CIFAR's pickles, in a folder and in an archive."""

    share, native = 1, False

    def __init__(self, folder):
        from data import DataError

        self.documented = (DataError,)
        self.folder = folder / 'cifar-10-batches-py'
        self.folder.mkdir()
        self.files = {f'data_batch_{number}': self.batch(number) for number in range(1, 6)}
        self.files['test_batch'] = self.batch(2)
        self.files['batches.meta'] = python_2_pickle(
            {b'label_names': [b'%d' % i for i in range(10)]})
        for name, content in self.files.items():
            (self.folder / name).write_bytes(content)

    @staticmethod
    def batch(count):
        content = {b'labels': list(range(count)), b'batch_label': b'x',
                   b'data': np.zeros((count, 3072), 'uint8')}
        return python_2_pickle(content) if count % 2 else pickle.dumps(content, 2)

    def draw(self, rng):
        name = pick(rng, list(self.files))
        files = {**self.files, name: mutate.change_pickle(rng, self.files[name])}
        split = 'val' if name == 'test_batch' else 'train'
        if rng.random() < 0.5:
            return name, files[name], split
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode='w') as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f'{self.folder.name}/{name}')
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        content = stream.getvalue()
        if rng.random() < 0.7:
            content = mutate.change_bytes(rng, content, *pick(rng, [(0, 512), (0, None)]))
        packed = gzip.compress(content, 1, mtime=0)
        return None, mutate.change_bytes(rng, packed) if rng.random() < 0.3 else packed, split

    def read(self, case):
        from data.sources import find_classes, find_images

        name, content, split = case
        if name is None:
            root = self.folder.with_name('cifar.tar.gz')
            root.write_bytes(content)
            find_classes(str(root))
            find_images(str(root), split=split, num_classes=10)
            return
        (self.folder / name).write_bytes(content)
        try:
            find_images(str(self.folder), split=split)
        finally:
            (self.folder / name).write_bytes(self.files[name])


class Lists:
    """Lists of images."""

    share, native = 2, False
    values = ['a.png 0', 'a b.png 12', '0', ' ', '\0 1', 'x ' + '9' * 9, 'x ' + '9' * 5000, 'x -1',
              'x 1.0', 'x ٣', '../x 1', '/etc/passwd 1', 'a' * 100_000 + ' 1', '\ufeffx 1', '\r',
              'x 1 ' * 1000, '\u2028', '\x85 1', '\x1c1 2']

    def __init__(self, folder):
        from data import DataError

        self.documented, self.folder = (DataError,), folder
        self.text = ''.join(f'n{i % 3}/image {i}.JPEG {i % 3}\n' for i in range(20))

    def draw(self, rng):
        text = mutate.change_lines(rng, self.text, self.values).encode('utf-8', 'surrogateescape')
        text = mutate.change_bytes(rng, text) if rng.random() < 0.3 else text
        return pick(rng, [text, text.replace(b'\n', b'\r\n'), b'\xef\xbb\xbf' + text])

    def read(self, case):
        from data.sources import find_images

        path = self.folder / 'list.txt'
        path.write_bytes(case)
        samples = find_images(str(self.folder), str(path), num_classes=3).samples
        if not all(type(path) is str and type(label) is int and 0 <= label < 3
                   for path, label in samples):
            raise Finding('what was read is no list of (path, label)')


YAML_VALUES = [
    *mutate.TEXTS, *map(str, mutate.NUMBERS), '0x1F', '0o17', '017', '1_000', '1:30:00', '1e-6',
    '.inf', '-.inf', '.nan', 'yes', 'off', '2020-01-01', '2020-13-45', '2020-01-01T99:99:99Z',
    '!!binary aGk=', '!!binary ä', '!!set {a, b}', '!!omap [a: 1]', '!!pairs [a: 1]',
    '!!python/object/apply:os.system [id]', '!!float x', '!!int ""', '!!int "0b"', '!!bool maybe',
    '!!timestamp x', '!!null x', '!x y', '!<x> y', '&a [*a]', '&a {a: *a}', '*a', '*missing',
    '<<: {a: 1}', '<<: 1', '[1, 2', '{a: b', '[' * 300, '[' * 20_000, '{a: ' * 3000, '- ' * 2000,
    '? ' * 500,
    '"\\x"', '"\\uD800"', '"\\U00110000"', "'", '|', '>', '|9', '%YAML 9.9', '---', '...',
    '--- a\n--- b', '[[3, 1, 1], [3, 2, 1]]', '[[0, 0, 0]]', '[-1, -1]', '[0.5, .nan]', '[a, a]',
    'BASE: .', 'BASE: /dev/null', 'BASE: case.yaml', 'BASE: [a]', 'TRAIN:', 'TRAIN: 3',
    'TRAIN: []', 'MODEL: {NAME: {}}', '? [a]\n: 1', '? {a: b}\n: c', '1: 2', '~: 1', '? \n: 3',
    '&a a: &b b', 'é: é', 'rand-m9-n999999999', 'rand-m1e999', 'rand-mstd-inc', 'augmix-m', 'v0',
    'rand-m9-mstd0.5-inc1', '-o TRAIN.SEED=1']


class Yaml:
    """Configurations: files and -o."""

    share, native = 3, False

    def __init__(self, folder):
        import build
        import config

        self.documented, self.folder = (config.ConfigError,), folder
        self.config, self.build = config, build
        self.texts = [path.read_text().replace('BASE: ', f'BASE: {ROOT}/config/')
                      for path in sorted((ROOT / 'config').glob('*.yaml'))]
        config.save_config(config.Config(), folder / 'all.yaml')
        self.texts += [(folder / 'all.yaml').read_text()] * 3

    def draw(self, rng):
        text = pick(rng, self.texts)
        if rng.random() < 0.8:
            text = mutate.change_lines(rng, text, YAML_VALUES)
        content = text.encode('utf-8', 'surrogateescape')
        if rng.random() < 0.1:
            content = mutate.change_bytes(rng, content)
        values = [value for value in YAML_VALUES if '\n' not in value and len(value) < 200]
        return content, [f'{pick(rng, list(self.config.KEYS))}={pick(rng, values)}'
                         for _ in range(int(rng.integers(3)))]

    def read(self, case):
        content, overrides = case
        path = self.folder / 'case.yaml'
        path.write_bytes(content)
        config = self.config.load_config(path, overrides)
        self.config.save_config(config, self.folder / 'resolved.yaml')
        again = self.config.load_config(self.folder / 'resolved.yaml')
        if again != config:
            raise Finding('a resolved configuration reads differently')


class Images:
    """Images in files of all formats, decoded both ways and transformed."""

    share, native = 4, False
    most_bytes = 3 << 29    # eight for each pixel that Pillow allows

    def __init__(self, folder):
        from PIL import Image

        from data.decode import ImageError
        from data.transforms import EvalTransform, TrainTransform

        warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
        self.documented = (ImageError,)
        self.transforms = [EvalTransform(16), EvalTransform(16, 'squash'), TrainTransform(16)]
        pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        image, self.files = Image.fromarray(pixels), []
        for mode, kind, options in [
                ('RGB', 'JPEG', {}), ('RGB', 'JPEG', dict(progressive=True)), ('L', 'JPEG', {}),
                ('CMYK', 'JPEG', {}), ('RGB', 'JPEG', dict(exif=b'Exif\0\0II*\0' + bytes(20))),
                ('RGB', 'PNG', {}), ('1', 'PNG', {}), ('P', 'PNG', {}), ('RGBA', 'PNG', {}),
                ('I;16', 'PNG', {}), ('LA', 'PNG', {}), ('RGB', 'BMP', {}), ('P', 'BMP', {}),
                ('P', 'GIF', dict(save_all=True, append_images=[image.convert('P')] * 2)),
                ('RGB', 'WEBP', {}), ('RGBA', 'WEBP', dict(lossless=True))]:
            stream = io.BytesIO()
            (image.convert('I').convert(mode) if mode == 'I;16' else image.convert(mode)).save(
                stream, kind, **options)
            self.files.append(stream.getvalue())

    def draw(self, rng):
        data = mutate.change_image(rng, pick(rng, self.files))
        return data, pick(rng, ['exact', 'fast']), int(rng.integers(3)), int(rng.integers(99))

    def read(self, case):
        from data.decode import decode_bytes
        from data.jpeg import Jpeg, open_jpeg

        data, decoder, which, seed = case
        image = open_jpeg(data, 'the image') if decoder == 'fast' and which == 2 else None
        image = image or decode_bytes(data, 'the image')
        if not isinstance(image, Jpeg) and image.mode != 'RGB':
            raise Finding(f'an image of mode {image.mode}')
        found = np.asarray(self.transforms[which](image, np.random.default_rng(seed)))
        if found.shape != (3, 16, 16):
            raise Finding(f'pixels {found.shape}')


class Exports:
    """inference.yml of an export of Paddle Inference, whose graph is whole."""

    share, native, graph = 1, False, False

    def __init__(self, folder):
        import paddle

        from deploy import engines

        self.documented, self.engines = (engines.EngineError,), engines
        self.folder = folder / type(self).__name__
        self.folder.mkdir()

        class Net(paddle.nn.Layer):
            def __init__(self):
                super().__init__()
                self.head = paddle.nn.Linear(192, 3)

            def forward(self, images):
                return self.head(images.flatten(1))

        network = Net()
        network.eval()
        spec = paddle.static.InputSpec([None, 3, 8, 8], 'float32', 'images')
        with contextlib.redirect_stdout(io.StringIO()):
            paddle.jit.save(network, str(self.folder / 'inference'), input_spec=[spec])
        description = engines.Description(
            model='t2t_vit_7', format='paddle', precision='float32', image_size=8, num_classes=3,
            normalise=False, softmax=False, input='images', output='logits',
            eval_transform='squash', eval_crop_ratio=0.9, eval_interpolation='bilinear',
            mean=[0.5] * 3, std=[0.5] * 3, class_names=['a', 'b', 'c'], paddle=paddle.__version__)
        (self.folder / engines.DESCRIPTION).write_text(description.yaml())
        self.files = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        self.images = np.zeros((2, 3, 8, 8), 'float32')
        self.read(self.files)

    def draw(self, rng):
        name = self.engines.DESCRIPTION
        text = mutate.change_lines(rng, self.files[name].decode(), YAML_VALUES)
        content = text.encode('utf-8', 'surrogateescape')
        return {name: content if rng.random() < 0.9 else mutate.change_bytes(rng, content)}

    def read(self, case):
        for name, content in {**self.files, **case}.items():
            (self.folder / name).write_bytes(content)
        engine = self.engines.load_engine(self.folder, 'inference', 1)
        size = engine.description.image_size
        if size <= 64:    # the graph itself has no size in it
            engine.description.transform()
            if not self.graph and engine(self.images).shape[1] != engine.description.num_classes:
                raise Finding('another number of classes than inference.yml says')


class Graphs(Exports):
    """The graph and the parameters of an export of Paddle Inference: programs of Paddle's."""

    share, native, graph = 0.2, True, True
    most_bytes = 1 << 62    # what a program takes is its own affair

    def draw(self, rng):
        name = pick(rng, [name for name in self.files if name != self.engines.DESCRIPTION])
        content = self.files[name]
        return {name: mutate.change_json(rng, content)
                if name.endswith('.json') and rng.random() < 0.7
                else mutate.change_bytes(rng, content)}

    def read(self, case):
        for name, content in {**self.files, **case}.items():
            (self.folder / name).write_bytes(content)
        self.engines.load_engine(self.folder, 'inference', 1)


class Onnx:
    """ONNX files with a description inside: programs of ONNX Runtime's."""

    share, native = 0.5, True

    def __init__(self, folder):
        import onnx
        from onnx import helper

        from deploy import engines

        self.documented, self.engines = (engines.EngineError,), engines
        self.path = folder / 'case.onnx'
        kind = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            [helper.make_node('Flatten', ['images'], ['flat']),
             helper.make_node('MatMul', ['flat', 'w'], ['logits'])], 'net',
            [helper.make_tensor_value_info('images', kind, ['batch', 3, 8, 8])],
            [helper.make_tensor_value_info('logits', kind, ['batch', 3])],
            [helper.make_tensor('w', kind, [192, 3], np.zeros(576, 'float32'))])
        self.model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 13)])
        self.model.ir_version = 8
        self.text = engines.Description(
            model='t2t_vit_7', format='onnx', precision='float32', image_size=8, num_classes=3,
            normalise=False, softmax=False, input='images', output='logits',
            eval_transform='squash', eval_crop_ratio=0.9, eval_interpolation='bilinear',
            mean=[0.5] * 3, std=[0.5] * 3, class_names=['a', 'b', 'c'], paddle='3.3.1').json()
        self.helper = helper

    def draw(self, rng):
        text = self.text
        if rng.random() < 0.7:
            text = mutate.change_json(rng, text.encode()).decode('utf-8', 'replace')
        self.helper.set_model_props(self.model, {self.engines.METADATA_KEY: text})
        content = self.model.SerializeToString()
        return mutate.change_bytes(rng, content) if rng.random() < 0.5 else content

    def read(self, case):
        self.path.write_bytes(case)
        engine = self.engines.load_engine(self.path, 'onnxruntime', 1)
        engine.description.transform()


class Http:
    """Requests, given to the service's WSGI application."""

    share, native = 3, False
    hosts = ['localhost', '127.0.0.1:80', '[::1]:1', 'evil.test', '', '[', 'a' * 999, 'demo:x']
    kinds = ['image/jpeg', 'image/png', 'application/octet-stream', 'multipart/form-data',
             'multipart/form-data; boundary=B', 'multipart/form-data; boundary="B"',
             'multipart/form-data; boundary=' + 'x' * 71,
             "multipart/form-data; boundary*=utf-8''B",
             'multipart/form-data; boundary*0=B; boundary*1*=%ff', 'text/html', '', ';', 'é' * 9]

    def __init__(self, folder):
        import paddle

        import serve
        from data.transforms import EvalTransform
        from deploy.batcher import Batcher

        self.documented = ()
        classifier = serve.Classifier(StubNetwork(paddle), EvalTransform(8), ['a', 'b', 'c'], 3)
        batcher = Batcher(classifier.run, 4, 16, classifier.warm_up)
        self.limits = SimpleNamespace(
            allow_host=['demo.test'], max_bytes=100_000, max_pixels=250_000, max_images=3,
            answer_timeout=20, top_k=3, batch_size=4, queue=16)
        about = dict(model='stub', image_size=8, num_classes=3, engine='paddle')
        self.application = serve.Application(classifier, batcher, about, self.limits)
        (folder / 'images').mkdir()
        self.images = Images(folder / 'images').files

    def draw(self, rng):
        images = [pick(rng, self.images) for _ in range(int(rng.integers(1, 5)))]
        images = [mutate.change_image(rng, data) if rng.random() < 0.5 else data for data in images]
        odd = rng.random() < 0.3    # in its path, method, type, query or headers
        path = pick(rng, ['/', '/health', '/x', '', '*', '//predict', '/predict/../health']
                    if odd and rng.random() < 0.5 else ['/predict', '/predict/batch'])
        kind, body = pick(rng, self.kinds[4:] if odd else self.kinds[:3]), images[0]
        if path == '/predict/batch' or rng.random() < 0.1:
            kind = kind if odd and rng.random() < 0.5 else pick(rng, self.kinds[4:6])
            body = b''.join(
                b'--B\r\nContent-Disposition: form-data; name="image"; filename="'
                + pick(rng, mutate.TEXTS + ['a.png', 'a"b', 'a\\', "';'"]).encode(
                    'utf-8', 'surrogatepass') + b'"\r\n\r\n' + data + b'\r\n'
                for data in images) + b'--B--\r\n'
            body = mutate.change_bytes(rng, body) if rng.random() < 0.4 else body
        method = pick(rng, ['GET', 'POST', 'PUT', 'HEAD', 'OPTIONS', ''] if odd else ['POST'])
        query = pick(rng, ['', 'attention=1', 'attention=0', *odd * [
            'attention=2', 'attention', '&&=', '%ff=%', 'a' * 999]])
        headers = {'Host': pick(rng, self.hosts) if odd and rng.random() < 0.3 else 'localhost'}
        if odd and rng.random() < 0.3:
            headers['Origin'] = pick(rng, ['null', 'http://localhost', 'http://[', '', 'é', 'http://x'])
        headers['Content-Type'] = kind
        return method, path, query, headers, body[:self.limits.max_bytes]

    def read(self, case):
        method, path, query, headers, body = case
        environ = {'REQUEST_METHOD': method, 'PATH_INFO': path, 'QUERY_STRING': query,
                   'CONTENT_TYPE': headers['Content-Type'], 'CONTENT_LENGTH': str(len(body)),
                   'wsgi.input': io.BytesIO(body), 'REMOTE_ADDR': '127.0.0.1',
                   **{f'HTTP_{name.upper()}': value for name, value in headers.items()
                      if name != 'Content-Type'}}
        answer, errors = [], io.StringIO()
        with contextlib.redirect_stderr(errors):
            content = b''.join(self.application(environ, lambda *said: answer.extend(said)))
        check_answer(int(answer[0][:3]), dict(answer[1]), content, errors.getvalue())
        if answer[0][:3] != '200':
            raise Refused(answer[0])


class Refused(Exception):
    """A request that was answered, and not with 200."""


def check_answer(status, headers, content, errors=''):
    if status not in (200, 400, 403, 404, 405, 408, 411, 413, 414, 415, 422, 431, 501, 503, 505):
        raise Finding(f'status {status}\n{errors}')
    if headers.get('Content-Type', '').startswith('application/json'):
        said = json.loads(content)
        if status != 200 and type(said.get('error')) is not str:
            raise Finding(f'status {status} without an error')
    elif status != 200:
        raise Finding(f'status {status} that is no JSON: {content[:200]}')


class StubNetwork:
    """Three logits for each image, as a network of the zoo is called."""

    training = False

    def __init__(self, paddle):
        self.paddle = paddle

    def __call__(self, images):
        return self.paddle.zeros([images.shape[0], 3])

    def eval(self):
        return self


class Sockets(Http):
    """Bytes on a socket of the service, headers changed too; it then still answers."""

    share, native = 0.3, False

    def __init__(self, folder):
        (folder / 'sockets').mkdir()
        super().__init__(folder / 'sockets')
        from deploy import web

        listener = web.listen('127.0.0.1', 0)
        self.address = listener.getsockname()
        threading.Thread(target=web.serve, daemon=True, args=(
            self.application, listener, 8, self.limits.max_bytes, 0.5, lambda: False)).start()

    def draw(self, rng):
        method, path, query, headers, body = super().draw(rng)
        if rng.random() < 0.3:
            headers[pick(rng, ['Transfer-Encoding', 'Expect', 'Connection', 'X'])] = pick(
                rng, ['chunked', '100-continue', 'keep-alive', 'gzip', 'a' * 20_000, '\0'])
        length = len(body) if rng.random() < 0.8 else mutate.number(rng)
        head = f'{method} {path}{"?" if query else ""}{query} HTTP/1.1\r\n' + ''.join(
            f'{name}: {value}\r\n' for name, value in headers.items())
        head = (head + f'Content-Length: {length}\r\n').encode('utf-8', 'surrogatepass')
        if rng.random() < 0.5:
            head = mutate.change_bytes(rng, head)
        return head + b'\r\n' + body

    def read(self, case):
        status = self.ask(case)
        if self.ask(b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n') != 200:
            raise Finding('a good request is no longer answered')
        if status != 200:
            raise Refused(status)

    def ask(self, data):
        with socket.create_connection(self.address, timeout=20) as connection:
            answer = b''
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(1 << 16):
                    answer += part
        if not answer:
            return None
        head, _, content = answer.partition(b'\r\n\r\n')
        if b' 100 ' in head.splitlines()[0]:
            head, _, content = content.partition(b'\r\n\r\n')
        if not head:
            return None
        lines = head.decode('latin1').split('\r\n')
        status = int(lines[0].split()[1])
        headers = dict(line.split(': ', 1) for line in lines[1:])
        if not data.startswith(b'HEAD'):
            check_answer(status, headers, content)
        return status


READERS = {kind.__name__.lower(): kind for kind in (
    Weights, Cifar, Lists, Yaml, Images, Exports, Graphs, Onnx, Http, Sockets)}
NEEDS = {'onnx': ('onnx', 'onnxruntime'),
         'sockets': ('multipart', 'waitress'), 'http': ('multipart',)}


def available(names):
    """Of these readers those whose packages are installed."""
    from importlib.util import find_spec
    return [name for name in names if all(map(find_spec, NEEDS.get(name, ())))]


# ---- the child: one case after the other

class Cases:
    """Draws and runs cases; readers are made when they are first needed."""

    def __init__(self, names, folder):
        self.names, self.folder, self.made = names, Path(folder), {}
        shares = np.array([reader.share for reader in READERS.values()])
        self.shares = shares / shares.sum()

    def draw(self, seed, number):
        """(name, reader, case) of a number; the last two are None where it is left out."""
        rng = np.random.default_rng((seed, number))
        name = str(rng.choice(list(READERS), p=self.shares))
        if name not in self.names:
            return name, None, None
        if name not in self.made:
            place = self.folder / f'files of {name}'
            place.mkdir()
            self.made[name] = READERS[name](place)
        return name, self.made[name], self.made[name].draw(rng)

    def run(self, reader, case):
        """(outcome, what was found or None, for people)."""
        peak, began = peak_bytes(), time.process_time()
        outcome, problem = 'read', None
        try:
            reader.read(case)
        except (Refused, *reader.documented) as error:
            outcome, said = 'refused', str(error)
            if '\n' in said or len(said) > 1000:
                problem = f'a message of {len(said)} characters: {said[:300]!r}'
            elif re.search('MemoryError|Unable to allocate|needs more memory', said):
                problem = f'ran out of memory: {said}'
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)) and not isinstance(
                    error, SystemExit):
                raise
            problem = traceback.format_exc()
        seconds, grown = time.process_time() - began, peak_bytes() - peak
        if not problem and seconds > MOST_SECONDS:
            problem = f'{seconds:.1f} seconds of processor time'
        if not problem and grown > getattr(reader, 'most_bytes', MOST_BYTES):
            problem = f'{grown >> 20} MiB of memory'
        return ('finding' if problem else outcome), problem


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(options, names):
    """Run cases until the parent ends it; the counts go into a file that both map."""
    follow_parent(signal.SIGKILL)
    logging.disable(logging.CRITICAL)
    counts = np.memmap(options.counts, dtype='int64', mode='r+', shape=shape_of_counts())
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        cases = Cases(names, folder)
        base = None
        for number in itertools.count(options.first):
            counts[0, 0], counts[0, 1] = number, -1
            name, reader, case = cases.draw(options.seed, number)
            if reader is None:
                continue
            counts[0, 1] = list(READERS).index(name)
            if base is None and len(cases.made) == len(names):    # all is imported
                limit_memory(6 << 30)
                base = peak_bytes()
            outcome, problem = cases.run(reader, case)
            counts[1 + list(READERS).index(name), OUTCOMES.index(outcome)] += 1
            if problem:
                print(json.dumps(dict(case=number, reader=name, problem=problem)), flush=True)
            if base and peak_bytes() > base + (2 << 30):
                counts[0, 0] = number + 1
                return


def limit_memory(more):
    with open('/proc/self/statm') as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more,) * 2)


def shape_of_counts():
    return 1 + len(READERS), len(OUTCOMES)


# ---- the parent

class Fuzzer:
    """Keeps a child running, counts, and names what was found."""

    def __init__(self, options, names, folder):
        self.options, self.names, self.folder = options, names, folder
        self.counts = np.memmap(f'{folder}/counts', dtype='int64', mode='w+',
                                shape=shape_of_counts())
        self.findings = {}    # signature: [cases]
        self.counts[0, 0] = options.first

    def done(self):
        return int(self.counts[1:].sum())

    def run(self, cases, seconds):
        end = time.monotonic() + seconds
        while self.done() < cases and time.monotonic() < end:
            self.one_child(cases, end)
        return self.findings

    def one_child(self, cases, end):
        first = int(self.counts[0, 0])
        process = subprocess.Popen(
            [sys.executable, __file__, '--child', '--seed', str(self.options.seed), '--first',
             str(first), '--counts', f'{self.folder}/counts', '--folder', self.folder,
             '--readers', *self.names], stdout=subprocess.PIPE, stderr=open(
                 f'{self.folder}/stderr', 'w'), text=True, cwd=ROOT / 'tests',
            env={**os.environ, 'OMP_NUM_THREADS': '1'}, start_new_session=True)
        reports = threading.Thread(target=lambda: [self.report(**json.loads(line))
                                                   for line in process.stdout if line[0] == '{'])
        reports.start()
        last, since = -1, time.monotonic()
        why = None
        while process.poll() is None:
            time.sleep(0.05)
            now = time.monotonic()
            if int(self.counts[0, 0]) != last:
                last, since = int(self.counts[0, 0]), now
            if self.done() >= cases or now > end:
                why = 'done'
            elif now - since > SECONDS_TO_HANG:
                why = 'hang'
            if why:
                os.killpg(process.pid, signal.SIGKILL)
                break
        code = process.wait()
        reports.join()
        number, reader = int(self.counts[0, 0]), int(self.counts[0, 1])
        if why == 'done' or code == 0:
            return
        name = list(READERS)[reader] if reader >= 0 else 'the fuzzer itself'
        native = reader >= 0 and READERS[name].native and code < 0 and why is None
        if reader >= 0:
            self.counts[1 + reader, OUTCOMES.index('native crash' if native else 'finding')] += 1
        if not native:
            said = Path(f'{self.folder}/stderr').read_text(errors='replace')[-1500:]
            self.report(number, name, f'{"hung" if why else f"ended with {code}"}\n{said}')
        self.counts[0, 0] = number + 1

    def report(self, case, reader, problem):
        lines = [line for line in problem.strip().splitlines() if line.strip()]
        places = [line.strip() for line in lines if str(ROOT / 'tools') in line]
        signature = f'{reader}: {lines[-1][:200]}' + (f' ({places[-1]})' if places else '')
        signature = re.sub(r'0x[0-9a-f]+|\b\d+(\.\d+)?\b', 'N', signature.replace(f'{ROOT}/', ''))
        known = self.findings.setdefault(signature, [])
        known.append(case)
        if len(known) == 1:
            print(f'FINDING {signature}\n    python tests/fuzz.py --seed {self.options.seed} '
                  f'--case {case}', flush=True)

    def table(self):
        lines = ['| reader | cases | read | refused as documented | crashes of a foreign engine | '
                 'findings |', '| --- | --- | --- | --- | --- | --- |']
        for name, row in zip(READERS, self.counts[1:].tolist()):
            if name in self.names:
                lines.append(f'| {name} | {sum(row)} | ' + ' | '.join(map(str, row)) + ' |')
        row = self.counts[1:].sum(axis=0).tolist()
        lines.append(f'| all | {sum(row)} | ' + ' | '.join(map(str, row)) + ' |')
        return lines


def show(options, names):
    """One case again."""
    with tempfile.TemporaryDirectory() as folder:
        cases = Cases(names, folder)
        name, reader, case = cases.draw(options.seed, options.case)
        print(f'{name}: {case!r}'[:options.show], flush=True)
        if reader is None:
            return 'left out: it needs ' + ', '.join(NEEDS[name])
        outcome, problem = cases.run(reader, case)
        print(f'{outcome}\n{problem or ""}')
        return bool(problem)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=1e9)
    parser.add_argument('--cases', type=int, default=10 ** 15)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--first', type=int, default=0, help='number of the first case')
    parser.add_argument('--case', type=int, help='run this case alone')
    parser.add_argument('--show', type=int, default=500, help='characters of it to print')
    parser.add_argument('--readers', nargs='+', choices=list(READERS), default=list(READERS))
    for name in ('--counts', '--folder'):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument('--child', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = available(options.readers)
    if options.child:
        return child(options, names)
    if options.case is not None:
        return show(options, names)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(options, names, folder)
        findings = fuzzer.run(options.cases, 60 * options.minutes)
        print(f'\nseed {options.seed}, cases {options.first} to {int(fuzzer.counts[0, 0])}, '
              f'{(time.monotonic() - began) / 60:.1f} minutes; left out for want of packages: '
              f'{", ".join(set(options.readers) - set(names)) or "none"}\n')
        print('\n'.join(fuzzer.table()))
        for signature, cases in findings.items():
            print(f'{len(cases)} x {signature}; first: case {cases[0]}')
    return bool(findings)


if __name__ == '__main__':
    sys.exit(main())
