"""A worker process of tools/benchmark.py, which measures one engine, training or the loader.

The requests and answers are described in benchmark_protocol.py.
"""

import copy
import itertools
import json
import time
from pathlib import Path

from system import start

start.prepare()    # before Paddle, which reads what it sets

# isort: split
import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F

import build
from benchmark_protocol import peak_host_memory, serve, timed
from deploy import engines, exports
from deploy.simplify import simplified
from system import command
from t2t import T2T_ViT, Token_performer
from zoo.names import in_pytorch_layout


class MatrixProducts(nn.Layer):
    """Large matrix products, to measure the limit of the machine.

    Images `[B, 3, side, side]` are reshaped to one matrix, as Paddle Inference has half the speed
    on a batch of them, and multiplied by four matrices `[side, side]`. ReLUs in between keep
    engines from merging these.
    """

    side = 1024
    macs = 4 * 3 * side ** 3    # per image

    def __init__(self):
        super().__init__()
        self.products = nn.LayerList([nn.Linear(self.side, self.side) for _ in range(4)])

    def forward(self, x):
        x = x.reshape([-1, self.side])                          # (B * 3 * side, side)
        for product in self.products:
            x = F.relu(product(x))
        return x.mean(axis=1).reshape([-1, 3 * self.side])      # (B, 3 * side)


def load_network(config, weights):
    """The network of a configuration in evaluation mode; without weights, from a fixed seed."""
    paddle.seed(0)
    network = build.trained_network(config, weights)[0] if weights else build.network(config)
    network.eval()
    return network


def run_export(request):
    """Write an export for an engine."""
    config = build.load_config(request['config'], request['override'])
    network = load_network(config, request['weights'])
    out, precision = Path(request['out']), request['precision']
    if out.suffix == '.npz':
        state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
        np.savez(out, shape=json.dumps(pytorch_shape(network)), **in_pytorch_layout(state))
        return {}, {}
    to_onnx = out.suffix == '.onnx'
    about = build.description(config, {}, 'onnx' if to_onnx else 'paddle', precision)
    fast = request['network'] == 'fast'
    if to_onnx:
        exports.export(network, about, out, fast)
    else:
        # Not compared with the network: for the small logits of random weights, bfloat16 may give
        # another best class.
        deployed = exports.Deployed(simplified(network) if fast else network)
        exports.write_graph(deployed, about, _new_folder(out))
    return {}, {}


def pytorch_shape(network):
    """The arguments of benchmark_pytorch.T2TViT; ValueError for another network."""
    if type(network) is not T2T_ViT or network.tokens_to_token.convolutional:
        raise ValueError('benchmark_pytorch.py has T2T-ViT with performers or transformers only')
    module, block = network.tokens_to_token, network.blocks[0]
    is_performer = isinstance(module.attention1, Token_performer)
    return dict(tokens_type='performer' if is_performer else 'transformer',
                token_dim=module.attention1.norm2.weight.shape[0], soft_splits=module.soft_splits,
                embed_dim=network.num_features, depth=len(network.blocks),
                num_heads=block.attn.num_heads, hidden_dim=block.mlp.fc1.weight.shape[1],
                num_classes=network.head.weight.shape[1], image_size=network.img_size)


def run_engine(request):
    """Time the latency of one image and the throughput of a batch in an engine."""
    if request['engine'] == 'paddle':
        config = build.load_config(request['config'], request['override'])
        network, size = load_network(config, request['weights']), config.MODEL.IMAGE_SIZE
        if request['network'] == 'fast':
            network = simplified(network)
    else:
        network = engines.load_engine(request['export'], request['engine'], request['threads'])
        size = network.description.image_size
    images = np.random.default_rng(0).standard_normal(
        (request['batch_size'], 3, size, size), dtype='float32')

    @paddle.no_grad()
    def logits(batch):
        # Copied to the host, as calls on a GPU are asynchronous.
        return network(paddle.to_tensor(batch)).numpy()

    return (dict(device=_device(request['engine']), logits=logits(images[:1]).tolist(),
                 backend=getattr(network, 'backend', 'paddle')),
            dict(latency=timed(lambda: logits(images[:1])),
                 throughput=timed(lambda: logits(images))))


def run_limit(request):
    """Time MatrixProducts on one image."""
    paddle.seed(0)
    network = MatrixProducts()
    network.eval()
    images = np.random.default_rng(0).standard_normal(
        (1, 3, network.side, network.side), dtype='float32')
    if request['engine'] == 'inference':
        about = engines.Description(
            model='matrix products', format='paddle', precision=request['precision'],
            image_size=network.side, num_classes=3 * network.side, normalise=False, softmax=False,
            input='images', output='logits', eval_transform='squash', eval_crop_ratio=1.0,
            eval_interpolation='bilinear', mean=[0.0] * 3, std=[1.0] * 3, class_names=[],
            paddle=paddle.__version__)
        folder = exports.write_graph(exports.Deployed(network), about, _new_folder(request['out']))
        network = engines.load_engine(folder, 'inference', request['threads'])
    else:
        images = paddle.to_tensor(images)    # excludes the copy to the device

    @paddle.no_grad()
    def product():
        return network(images).numpy()

    return (dict(device=_device(request['engine']), macs=MatrixProducts.macs,
                 backend=getattr(network, 'backend', 'paddle')),
            dict(limit=timed(product)))


def run_training(request):
    """Time a training step of tools/train.py on one batch of its images."""
    config = build.load_config(request['config'], request['override'] + [
        f'TRAIN.TRAIN_BATCH_SIZE={request["batch_size"]}', 'TRAIN.TRAIN_NUM_WORKS=0',
        'TRAIN.PRE_TRAIN=false'])
    loader, prepare = build.train_loader(config), build.batch_transform(config)
    stepper, *_ = build.stepper(config, build.groups(config, loader))
    stepper.begin_epoch(0)
    images, labels = next(iter(loader))
    steps = itertools.cycle(range(len(loader)))

    def step():
        number = next(steps)
        stepper.step(*prepare(images, labels, 0, number), 0, number)
        if paddle.device.is_compiled_with_cuda():
            paddle.device.cuda.synchronize()

    return (dict(device=_device('paddle'), images_a_step=len(labels)),
            dict(training=timed(step)))


def run_loader(request):
    """Time the loader of the training or validation images, seconds for a batch.

    For DATA.DECODER=fast also measure the mean difference to the pixels of exact, of 255.
    """
    workers = request['workers']
    split = request['split'].upper()
    config = build.load_config(request['config'], request['override'] + [
        f'TRAIN.{split}_BATCH_SIZE={request["batch_size"]}', f'TRAIN.{split}_NUM_WORKS={workers}'])
    loader = build.train_loader(config) if split == 'TRAIN' else build.eval_loader(config)
    epochs = itertools.count()

    def read(repeats):
        # Starts when the workers run and the batches that they have read ahead are consumed.
        begin = min(3 * workers, len(loader) - 1)
        wanted = len(loader) - begin
        if 'recipe' not in request:    # with one, PyTorch's loader reads all images, too
            wanted = min(4 * repeats * max(1, workers), wanted)
        loader.batch_sampler.set_epoch(next(epochs))
        batches = iter(loader)
        for _ in range(begin):
            next(batches)
        started, images = time.perf_counter(), 0
        for _, labels in itertools.islice(batches, wanted):
            images += len(labels)
        seconds = time.perf_counter() - started
        batches.close()    # ends its workers
        return [seconds / images * request['batch_size']]

    about = {}
    if config.DATA.DECODER == 'fast' and request.get('recipe') == 'plain':
        exact = copy.copy(loader.dataset)
        exact.decoder = 'exact'
        about['difference'] = float(np.mean([
            np.abs(loader.dataset[0, index][0].astype(int) - exact[0, index][0]).mean()
            for index in range(min(len(exact), 1000))]))
    return about, dict(loader=read)


def _device(engine):
    """The device of an engine, 'gpu' or 'cpu'; exports run on the CPU."""
    return paddle.device.get_device().split(':')[0] if engine == 'paddle' else 'cpu'


def _new_folder(path):
    path = Path(path)
    path.mkdir(parents=True)
    return path


def peak_memory():
    """Peak memory of this process in MiB, on the GPU if it is used; None if it is not known."""
    if paddle.device.is_compiled_with_cuda():
        allocated = paddle.device.cuda.max_memory_allocated()
        if allocated:    # exports run on the CPU
            return allocated / 2 ** 20
    return peak_host_memory()


RUNNERS = dict(export=run_export, engine=run_engine, limit=run_limit, training=run_training,
               loader=run_loader)


if __name__ == '__main__':
    serve(RUNNERS, peak_memory, threads=start.threads())
    command.leave(0)
