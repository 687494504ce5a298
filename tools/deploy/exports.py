"""Export a network to a folder of Paddle Inference or an ONNX file.

Before an export is published, it is compared with its network on real images.
"""

import dataclasses
import importlib
import importlib.metadata
import inspect
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F

from config import ROOT
from data.decode import decode_image
from deploy import engines, old_graph
from deploy.simplify import simplified
from weights.writer import naming

OPSETS = range(13, 20)    # supported by all versions of paddle2onnx below
# {version of Paddle: version of paddle2onnx}; other pairs fail or crash the process.
PADDLE2ONNX = {'3.3': '2.1', '2.6': '1.3'}
# {precision: (tolerance, smallest share of images with the same best class)}. The tolerance is for
# the difference of an output, relative to the network's largest output, or to 1 if that is less.
AGREEMENT = {'float32': (1e-4, 1.0), 'bfloat16': (0.05, 0.9), 'int8': (0.25, 0.9)}
CHECK_IMAGES = ROOT / 'lit_data' / 'val'
CHECK_BATCHES = (1, 15)    # two sizes, to check that the batch axis is dynamic


class ExportError(RuntimeError):
    """An export differs from its network, or cannot be loaded; nothing was written."""


@paddle.jit.not_to_static
def traced(network, images):
    """Call a network so that Paddle traces its Python code instead of rewriting it.

    The networks have no control flow that depends on tensor values, and Paddle 2.6 and 3.3 fail to
    rewrite some of their loops.
    """
    return network(images)


class Deployed(nn.Layer):
    """A network with optional normalisation in front and softmax behind it, for export.

    Args:
        network: maps normalised images `[B, 3, S, S]` to logits `[B, num_classes]`.
        mean, std: one number for each channel, to take pixels of 0 to 255 and normalise them; or
            None, to take normalised images.
        softmax: return probabilities instead of logits.
    """

    def __init__(self, network, mean=None, std=None, softmax=False):
        super().__init__()
        self.network = network
        self.softmax = softmax
        self.normalise = mean is not None
        if self.normalise:
            mean, std = np.float32(mean).reshape(3, 1, 1), np.float32(std).reshape(3, 1, 1)
            self.register_buffer('factor', paddle.to_tensor(1 / (255 * std)))
            self.register_buffer('shift', paddle.to_tensor(mean / std))

    def forward(self, images):
        if self.normalise:
            images = images * self.factor - self.shift
        logits = traced(self.network, images)
        return F.softmax(logits, axis=-1) if self.softmax else logits


def export(network, description, out, fast=True, opset=17):
    """Export a network; write nothing if the export differs from it.

    Args:
        network: maps normalised images `[B, 3, S, S]` to logits `[B, num_classes]`.
        description: an engines.Description; its `paddle` is set here.
        out: path of the folder, or of the .onnx file; an earlier export there is replaced.
        fast: simplify the network first (see deploy/simplify.py).
        opset: ONNX operator set.

    Returns:
        (largest difference of an output, share of images with the same best class, Engine.note).

    Raises:
        ExportError: if the export differs from the network, or cannot be loaded.
        EngineError: if `out` exists and is no export, or has no place, or a package is missing.
    """
    out = Path(out)
    _check_place(out, description.format)
    if description.format == 'onnx':
        _check_packages(description.precision)
    network.eval()
    constants = (description.mean, description.std) if description.normalise else (None, None)
    deployed = Deployed(simplified(network) if fast else network, *constants, description.softmax)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise engines.EngineError(f'{out}: its folder cannot be made ({error.strerror})') from error
    work = out.with_name(f'.{out.name}.{os.getpid()}.tmp')
    try:
        with naming(out, work):
            work.mkdir()
            written = write_graph(deployed, description, work)
            if description.format == 'onnx':
                written = _convert(written, description, work, opset)
            engine = _load(written, out)
            found = compare(network, engine, description)
            _publish(written, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return (*found, engine.note.replace(str(written), str(out)))


def write_graph(deployed, description, folder):
    """Write a Deployed and its inference.yml to an existing folder; return the folder as a Path."""
    folder = Path(folder)
    deployed.eval()
    size = description.image_size
    images = paddle.static.InputSpec([None, 3, size, size], 'float32', name=description.input)
    paddle.jit.save(deployed, str(folder / 'inference'), input_spec=[images])
    if description.format == 'paddle' and old_graph.needed():
        reason = old_graph.add_graph(deployed, folder, [images])
        if reason:
            print(f'no {engines.GRAPH_FILES[1]}: {reason}', file=sys.stderr)
    (folder / 'inference.pdiparams.info').unlink(missing_ok=True)    # only for training in 2.6
    description.paddle = paddle.__version__
    (folder / engines.DESCRIPTION).write_text(description.yaml(), encoding='utf-8')
    return folder


def compare(network, engine, description):
    """Compare the outputs of a network and its export on real images, in CHECK_BATCHES.

    Returns:
        (largest difference of an output, share of images with the same best class).

    Raises:
        ExportError: if they differ by more than AGREEMENT allows, or there are no images.
    """
    paths = sorted(CHECK_IMAGES.rglob('*.JPEG'))[::8][:sum(CHECK_BATCHES)]
    if not paths:
        raise ExportError(f'{CHECK_IMAGES}: no images to check the export with: make them with '
                          'tools/prepare.py')
    images = [decode_image(path) for path in paths]
    for_network = dataclasses.replace(description, normalise=False).transform()
    wanted, found = [], []
    start = 0
    for count in CHECK_BATCHES:
        batch = images[start:start + count]
        start += count
        with paddle.no_grad():
            wanted.append(network(paddle.to_tensor(np.stack(
                [for_network(image) for image in batch]))).numpy())
        transform = engine.description.transform()
        found.append(engine(np.stack([transform(image) for image in batch])).numpy())
    wanted, found = np.concatenate(wanted), np.concatenate(found)
    if description.softmax:
        wanted, found = (F.softmax(paddle.to_tensor(logits), axis=1).numpy()
                         for logits in (wanted, found))
    problem = disagreement(wanted, found, description.precision)
    if problem:
        raise ExportError(f'the export {problem}: nothing was written')
    return largest_difference(wanted, found), same_best(wanted, found)


def disagreement(wanted, found, precision='float32'):
    """Say how outputs `[N, num_classes]` differ by more than AGREEMENT allows; else return ''."""
    difference, same = largest_difference(wanted, found), same_best(wanted, found)
    most, least = AGREEMENT[precision]
    # A NaN in either output makes the comparison false.
    if difference <= most * max(1.0, float(np.abs(wanted).max())) and same >= least:
        return ''
    return (f'differs from its network by up to {difference:.2g} on {len(wanted)} images and '
            f'agrees on the best class of {same:.0%}')


def largest_difference(wanted, found):
    return float(np.abs(found - wanted).max())


def same_best(wanted, found):
    """Return the share of rows with the same best class."""
    return float((found.argmax(axis=1) == wanted.argmax(axis=1)).mean())


def _convert(folder, description, work, opset):
    """Convert an exported folder to an .onnx file with the description in its metadata."""
    import onnx
    import paddle2onnx

    graph = next(folder / name for name in engines.GRAPH_FILES if (folder / name).is_file())
    path = work / 'exported.onnx'
    options = dict(opset_version=opset, auto_upgrade_opset=False, verbose=False)
    # The default optimize_tool installs packages.
    if 'optimize_tool' in inspect.signature(paddle2onnx.export).parameters:
        options['optimize_tool'] = 'none'
    paddle2onnx.export(str(graph), str(folder / 'inference.pdiparams'), str(path), **options)
    model = onnx.load(str(path))
    # paddle2onnx 2.1 leaves the padding value uninitialised; without this input ONNX pads with 0.
    for node in model.graph.node:
        if node.op_type == 'Pad':
            del node.input[2:]
    _name_ports(model.graph, description)
    _drop_unused_constants(model.graph)
    if description.precision == 'int8':
        onnx.save(model, str(path))
        model = onnx.load(str(_quantise(path, work)))
    onnx.checker.check_model(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = engines.METADATA_KEY, description.json()
    onnx.save(model, str(path))
    return path


def _name_ports(graph, description):
    """Rename the ports of an ONNX graph as in the description, and their axis 0 `batch`."""
    names = {graph.input[0].name: description.input, graph.output[0].name: description.output}
    for port in (graph.input[0], graph.output[0]):
        port.name = names[port.name]
        port.type.tensor_type.shape.dim[0].dim_param = 'batch'
    for node in graph.node:
        for ports in (node.input, node.output):
            ports[:] = [names.get(name, name) for name in ports]


def _drop_unused_constants(graph):
    """Remove unused constants from an ONNX graph, as ONNX Runtime warns about each of them."""
    while True:
        used = {port.name for port in graph.output}
        used.update(name for node in graph.node for name in node.input)
        unused = [node for node in graph.node if not used & set(node.output)
                  and node.op_type in ('Constant', 'Identity')]
        if not unused:
            break
        for node in unused:
            graph.node.remove(node)
    for constant in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(constant)


def _quantise(path, work):
    """Quantise the matrix products of an .onnx file to int8; their inputs dynamically."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded, quantised = work / 'folded.onnx', work / 'int8.onnx'
    # Only folded constants are recognised as weights.
    logging.disable(logging.INFO)    # it logs a line for every operation
    try:
        quant_pre_process(str(path), str(folded), skip_symbolic_shape=True)
        quantize_dynamic(str(folded), str(quantised), op_types_to_quantize=['MatMul'],
                         weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)
    return quantised


def _check_packages(precision):
    """Raise EngineError if a package for ONNX is missing or its version does not match."""
    wanted = next((version for paddle_version, version in PADDLE2ONNX.items()
                   if paddle.__version__.startswith(paddle_version)), None)
    pairs = ', '.join(f'Paddle {one} with paddle2onnx {other}'
                      for one, other in PADDLE2ONNX.items())
    needed = ['paddle2onnx', 'onnx', 'onnxruntime']
    if precision == 'int8':    # needs packages that onnxruntime does not declare
        needed.append('onnxruntime.quantization.shape_inference')
    try:
        installed = importlib.metadata.version('paddle2onnx')
        if not wanted or not installed.startswith(wanted):    # importing it may crash
            raise engines.EngineError(
                f'ONNX does not work with Paddle {paddle.__version__} and paddle2onnx '
                f'{installed}; these work together: {pairs}')
        for name in needed:
            importlib.import_module(name)
    except ImportError as error:
        raise engines.EngineError(
            f'ONNX in {precision} needs {error.name}: pip install -r '
            f'requirements-deploy.txt (these work together: {pairs})') from error


def _check_place(out, format):
    """Raise EngineError if `out` exists and is neither an export nor an empty folder."""
    if not os.path.lexists(out):
        return
    earlier = out.is_file() if format == 'onnx' else (out / engines.DESCRIPTION).is_file()
    empty = out.is_dir() and not any(out.iterdir())
    if out.is_symlink() or not (earlier or empty):
        raise engines.EngineError(f'{out}: exists and is no export; name another place')


def _load(written, out):
    """Load an export that was just written, for `out`. Paddle ignores a disk that is full."""
    try:
        return engines.load_engine(written)
    except engines.EngineError as error:
        raise ExportError(f'{str(error).replace(str(written), str(out))}; has the disk room for '
                          'it?') from error


def _publish(written, out):
    """Move a complete export to `out`, in place of an earlier one."""
    if not out.is_dir():
        os.rename(written, out)
        return
    # os.rename does not replace a folder that is not empty.
    earlier = out.with_name(f'.{out.name}.{os.getpid()}.earlier')
    os.rename(out, earlier)
    try:
        os.rename(written, out)
    except OSError:
        os.rename(earlier, out)
        raise
    shutil.rmtree(earlier)
