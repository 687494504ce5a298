"""Exported networks: their descriptions, and the engines that run them.

An export is a folder of Paddle Inference (`inference.json` or `.pdmodel`, `.pdiparams` and
`inference.yml`), or one `.onnx` file with the content of inference.yml as JSON in its metadata. The
description holds all that is needed to use the graph: image transform, class names, and whether
the graph normalises its input or ends in a softmax.

    engine = load_engine('output/exported')
    logits = engine(images)

inference.yml is validated as untrusted input. A graph cannot be: engines execute it like a
program, so load graphs only from trusted sources.
"""

import dataclasses
import json
import math
import os
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
import yaml

from data.transforms import INTERPOLATIONS, EvalTransform
from deploy import old_graph
from system import start
from system.settings import parse_yaml
from weights.folder import is_weights_folder

ENGINES = ('paddle', 'inference', 'onnxruntime', 'openvino')
FORMATS = ('paddle', 'onnx')
PRECISIONS = ('float32', 'bfloat16', 'int8')
DESCRIPTION = 'inference.yml'
METADATA_KEY = 'inference.yml'    # of the description in the metadata of an .onnx file
LOW_PROBABILITY = 0.5             # of the best class; below it an answer gets a note
LARGEST_DESCRIPTION = 4 << 20     # bytes; enough for a million class names
# Images per thread in a batch of OpenVINO: few enough that the output of an operation is still in
# the processor's cache for the next one.
CACHED_IMAGES = dict(float32=2, bfloat16=8)
INPUT = 'images'    # name of the input of our graphs
BFLOAT16_OPERATORS = {'fc', 'matmul', 'matmul_v2', 'fused_matmul', 'softmax', 'layer_norm',
                      'transpose2', 'reshape2', 'elementwise_add', 'concat', 'slice'}
# The graph, as written by Paddle 3 and by Paddle 2. Paddle 2 crashes when it reads the newer one.
GRAPH_FILES = ('inference.json', 'inference.pdmodel')
READABLE = GRAPH_FILES[paddle.__version__.startswith('2.'):]
PARAMETERS = 'inference.pdiparams'


class EngineError(ValueError):
    """An export or an engine that cannot be used. The message is one line with what to do."""

    exit_code = 2


@dataclass
class Description:
    """The content of inference.yml: all that is needed to use the graph."""

    model: str
    format: str
    precision: str
    image_size: int
    num_classes: int
    normalise: bool           # the graph takes pixels of 0 to 255 and normalises them
    softmax: bool             # the graph returns probabilities, not logits
    input: str
    output: str
    eval_transform: str
    eval_crop_ratio: float
    eval_interpolation: str
    mean: list
    std: list
    class_names: list
    paddle: str               # Paddle's version when it was exported
    trained_on: str = ''      # data set; empty in exports of earlier versions
    # Class ids with training images; empty for all, and in exports of earlier versions.
    known_classes: list = dataclasses.field(default_factory=list)

    def transform(self):
        """The EvalTransform from a PIL image to the graph's input, float32 `[3, S, S]`."""
        mean, std = (((0.0,) * 3, (1 / 255,) * 3) if self.normalise else (self.mean, self.std))
        return EvalTransform(self.image_size, self.eval_transform, self.eval_crop_ratio,
                             self.eval_interpolation, mean, std)

    def yaml(self):
        """The text of inference.yml."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)

    def json(self):
        """The same as JSON, for the metadata of an .onnx file, as users may lack a YAML parser."""
        return json.dumps(dataclasses.asdict(self))


def parse_description(text, where):
    """Parse and validate a Description from YAML or JSON, as untrusted input.

    Raises:
        EngineError: naming `where`, the key, and its valid values.
    """
    def refuse(problem):
        raise EngineError(f'{where}: {problem}; export the network again')

    if len(text) > LARGEST_DESCRIPTION:
        refuse(f'larger than {LARGEST_DESCRIPTION} bytes')
    try:
        content = json.loads(text) if text.startswith('{') else parse_yaml(
            text, LARGEST_DESCRIPTION)
    except Exception as error:    # PyYAML's constructors raise exceptions of any class
        refuse(f'is no valid YAML ({getattr(error, "problem", None) or "unreadable"})')
    if not isinstance(content, dict):
        refuse('must hold `key: value` lines')
    fields = {field.name: field.type for field in dataclasses.fields(Description)}
    content.setdefault('trained_on', '')
    content.setdefault('known_classes', [])
    for name, wanted in fields.items():
        if name not in content:
            refuse(f'lacks {name}')
        if type(content[name]) is int and wanted is float:
            content[name] = float(content[name])
        if type(content[name]) is not wanted:
            refuse(f'{name} must be of type {wanted.__name__}, not {type(content[name]).__name__}')
    description = Description(**{name: content[name] for name in fields})

    def require(name, valid, words):
        if not valid:
            refuse(f'{name} must be {words}')

    for name, choices in (('format', FORMATS), ('precision', PRECISIONS),
                          ('eval_transform', ('center_crop', 'squash')),
                          ('eval_interpolation', tuple(INTERPOLATIONS))):
        require(name, getattr(description, name) in choices, f'one of {", ".join(choices)}')
    require('image_size', 1 <= description.image_size <= 8192, 'in 1 to 8192')
    require('num_classes', 1 <= description.num_classes <= 10 ** 6, 'in 1 to 1000000')
    require('eval_crop_ratio', 0.05 <= description.eval_crop_ratio <= 1, 'in 0.05 to 1')
    for name in ('mean', 'std'):
        numbers = getattr(description, name)
        require(name, len(numbers) == 3 and all(
            type(number) in (int, float) and math.isfinite(number) for number in numbers),
            'three numbers')
    require('std', min(description.std) > 0, 'above 0')
    names = description.class_names
    require('class_names', all(type(name) is str for name in names)
            and len(names) in (0, description.num_classes),
            f'{description.num_classes} texts, or none')
    require('known_classes', all(type(label) is int and 0 <= label < description.num_classes
                                 for label in description.known_classes),
            f'numbers from 0 to {description.num_classes - 1}')
    return description


class Engine:
    """An exported graph with the interface of a network in evaluation mode.

    The input is a batch of images as `description.transform()` returns them, float32
    `[B, 3, S, S]`, array or tensor; the output is a tensor of logits `[B, num_classes]`. If the
    graph ends in a softmax, the logits are the logarithms of its probabilities, so softmax and
    cross entropy of them stay the same.

    Attributes:
        description: a Description.
        backend: the library that computes: 'openvino' or 'onednn' for Paddle Inference, else the
            name of the engine.
        note: if a slower backend is used, the reason as a message; else empty.

    Raises:
        ValueError: when called with images of another shape.
        EngineError: when called, if the output does not have num_classes columns.
    """

    training = False

    def __init__(self, path, description, run, backend, note=''):
        self.description = description
        self.backend = backend
        self.note = f'{path}: {note}' if note else ''
        self._path = path
        self._run = run
        self._lock = threading.Lock()    # training.threads calls a teacher from several threads

    def __call__(self, images):
        if isinstance(images, paddle.Tensor):
            images = images.numpy()    # asarray would copy it twice
        images = np.ascontiguousarray(np.asarray(images, dtype='float32'))
        size = self.description.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f'the exported network takes images [B, 3, {size}, {size}], '
                             f'not {list(images.shape)}')
        with self._lock:
            output = self._run(images)
        _check_shape(self._path, 'num_classes', 'output',
                     (len(images), self.description.num_classes), output.shape)
        if self.description.softmax:
            output = np.log(np.maximum(output, np.finfo('float32').tiny))
        return paddle.to_tensor(output)

    def eval(self):
        return self

    train = eval    # an exported graph has evaluation mode only


def is_export(path):
    """Whether a path is an export, not a weights file."""
    return (os.path.isdir(path) and not is_weights_folder(path)) or Path(path).suffix == '.onnx'


def load_engine(path, engine=None, threads=None):
    """Load an export; returns an Engine.

    Args:
        path: folder of Paddle Inference, or .onnx file.
        engine: 'inference' for a folder, 'onnxruntime' or 'openvino' for an .onnx file; None
            is the first of these.
        threads: number of threads; None is that of this process.

    Raises:
        EngineError: if the export is damaged, or the engine cannot run it or is not installed.
    """
    path = Path(path)
    fitting = ('inference',) if os.path.isdir(path) else ('onnxruntime', 'openvino')
    if engine is None:
        engine = fitting[0]
    if engine not in fitting:
        kind = 'a folder of Paddle Inference' if os.path.isdir(path) else 'an .onnx file'
        raise EngineError(f'{path}: is {kind}, which --engine {engine} does not run: use '
                          f'--engine {" or ".join(fitting)}')
    if not os.path.exists(path):
        raise EngineError(f'{path}: no such export')
    loader = dict(inference=_load_inference, onnxruntime=_load_onnxruntime,
                  openvino=_load_openvino)[engine]
    return Engine(path, *loader(path, threads or start.threads()))


def _check_graph(path, description, images, logits):
    """Raise EngineError if the shapes that a graph declares differ from its description.

    Args:
        images, logits: shapes of input and output; -1, None or a name is a dynamic axis.
    """
    size = description.image_size
    _check_shape(path, 'image_size', 'input', (None, 3, size, size), images)
    _check_shape(path, 'num_classes', 'output', (None, description.num_classes), logits)


def _check_shape(path, key, port, wanted, found):
    wanted, found = ([size if type(size) is int and size >= 0 else None for size in shape]
                     for shape in (wanted, found))
    if len(wanted) != len(found) or any(
            None not in pair and pair[0] != pair[1] for pair in zip(wanted, found)):
        shown = ['[' + ', '.join('N' if size is None else str(size) for size in shape) + ']'
                 for shape in (wanted, found)]
        raise EngineError(f'{path}: by {key} in {DESCRIPTION} its {port} is {shown[0]}, but by the '
                          f'graph {shown[1]}; export the network again')


def add_arguments(parser):
    """Add the options `--weights` and `--engine` to an argparse parser."""
    parser.add_argument('--weights', metavar='PATH', help='weights, a path or published:NAME; or '
                        'an export, a folder or an .onnx file; default: MODEL_PATH')
    parser.add_argument('--engine', choices=ENGINES, help='paddle runs weights, the others run '
                        'exports; default: the one for PATH')


def _load_inference(folder, threads):
    path = folder / DESCRIPTION
    try:
        if path.stat().st_size > LARGEST_DESCRIPTION:
            raise EngineError(f'{path}: larger than {LARGEST_DESCRIPTION} bytes')
        description = parse_description(path.read_text(encoding='utf-8'), path)
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f'{folder}: is no export of tools/export.py: {DESCRIPTION} '
                          f'cannot be read ({error})') from error
    if not (any((folder / name).is_file() for name in READABLE)
            and (folder / PARAMETERS).is_file()):
        raise EngineError(f'{folder}: is no whole export for Paddle {paddle.__version__}: it needs '
                          f'{PARAMETERS} and {" or ".join(READABLE)}')
    for graph in filter(Path.is_file, (folder / name for name in GRAPH_FILES)):
        try:
            shapes = old_graph.declared_shapes(graph)
        except ValueError:    # damaged: loading it raises the error
            continue
        _check_graph(folder, description, *shapes)
    try:
        return description, *predictor(folder, threads, description.precision)
    except Exception as error:    # Paddle raises exceptions of any class
        raise EngineError(f'{folder}: Paddle {paddle.__version__} cannot load it, written by '
                          f'Paddle {description.paddle}: {old_graph.reason_of(error)}') from error


def predictor(folder, threads, precision='float32'):
    """Load a graph of Paddle Inference.

    Returns:
        (function from images [B, 3, S, S] to its output, arrays; the backend, 'openvino' or
        'onednn'; for 'onednn' the reason).
    """
    try:
        return _openvino(folder / GRAPH_FILES[1], threads, precision), 'openvino', ''
    except Exception as error:    # Paddle raises exceptions of any class
        reason = old_graph.reason_of(error)
    graph = next(folder / name for name in READABLE if (folder / name).is_file())
    config = _config(graph, folder, threads)
    # oneDNN uses AVX-512 on all processors that have it, MKL only on those of Intel.
    config.enable_mkldnn()
    if precision == 'bfloat16':
        config.enable_mkldnn_bfloat16()
        if paddle.__version__.startswith('2.'):    # some other operators fail
            config.set_bfloat16_op(BFLOAT16_OPERATORS)
    return _run(config), 'onednn', f'computed by oneDNN, not by the OpenVINO in Paddle: {reason}'


def _openvino(graph, threads, precision):
    """Load a graph in the format of Paddle 2 into OpenVINO, which Paddle 3's wheels contain.

    This needs an x86-64 processor, operations that OpenVINO supports, and a process that uses all
    cores: OpenVINO pins its threads to cores from the first on, so two processes would share the
    same ones. Batches are split into parts of a fixed size, which OpenVINO computes faster.

    Raises:
        Exception: of any class, if OpenVINO cannot be used.
    """
    if not hasattr(paddle.inference.Config, 'enable_openvino_engine'):
        raise EngineError(f'Paddle {paddle.__version__} has none')
    if not graph.is_file():
        raise EngineError(f'there is no {graph.name}, the only form that it reads')
    if threads < start.available_cores():
        raise EngineError(f'it takes all {start.available_cores()} cores, and this process has '
                          f'{threads} (OMP_NUM_THREADS)')
    part = CACHED_IMAGES[precision] * threads
    with tempfile.TemporaryDirectory() as work:
        fixed = Path(work, graph.name)
        fixed.write_bytes(old_graph.with_batch_size(graph.read_bytes(), INPUT, part))
        Path(work, PARAMETERS).symlink_to(graph.with_name(PARAMETERS).resolve())
        runs = []
        for name, each in (('any', graph), ('fixed', fixed)):
            config = _config(each, each.parent, threads)
            config.enable_openvino_engine(getattr(paddle.inference.PrecisionType,
                                                  precision.capitalize()))
            # It caches compiled graphs, by default in the working directory, and would load stale
            # ones from there.
            config.set_optim_cache_dir(str(Path(work, f'cache of {name}')))
            if not config.openvino_engine_enabled():
                raise EngineError('this Paddle was built without it')
            runs.append(_run(config))
    return in_parts(*runs, part)


def _config(graph, folder, threads):
    config = paddle.inference.Config(str(graph), str(folder / PARAMETERS))
    config.disable_gpu()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(threads)
    return config


def _run(config):
    """A function that runs a graph: input array to output array."""
    loaded = paddle.inference.create_predictor(config)
    image = loaded.get_input_handle(loaded.get_input_names()[0])
    output = loaded.get_output_handle(loaded.get_output_names()[0])

    def run(images):
        image.copy_from_cpu(images)
        loaded.run()
        return output.copy_to_cpu()

    return run


def in_parts(run, run_part, size):
    """A function that splits a batch: parts of `size` images for `run_part`, the rest for `run`."""
    def run_parts(images):
        whole = len(images) - len(images) % size
        results = [run_part(images[start:start + size]) for start in range(0, whole, size)]
        if whole < len(images):
            results.append(run(images[whole:]))
        return np.concatenate(results)
    return run_parts


def _load_onnxruntime(path, threads):
    onnxruntime = _optional('onnxruntime')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3    # errors only; it warns about every constant that it removes
    try:
        session = onnxruntime.InferenceSession(str(path), options,
                                               providers=['CPUExecutionProvider'])
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, '')
    except Exception as error:    # of many classes of its own
        raise EngineError(f'{path}: ONNX Runtime cannot load it: '
                          f'{old_graph.reason_of(error)}') from error
    description = parse_description(text, path)
    # By position, so that renamed inputs and outputs still work.
    (image, *_), (output, *_) = session.get_inputs(), session.get_outputs()
    _check_graph(path, description, image.shape, output.shape)
    return description, lambda images: session.run(
        [output.name], {image.name: images})[0], 'onnxruntime'


def _load_openvino(path, threads):
    openvino = _optional('openvino')
    try:
        model = openvino.Core().read_model(str(path))
    except Exception as error:    # RuntimeError with a page of text
        raise EngineError(f'{path}: OpenVINO cannot load it') from error
    key = ['framework', METADATA_KEY]
    text = model.get_rt_info(key).astype(str) if model.has_rt_info(key) else ''
    description = parse_description(text, path)
    _check_graph(path, description, *(
        [size.get_length() if size.is_static else None for size in port.get_partial_shape()]
        for port in (model.inputs[0], model.outputs[0])))
    # Its default is bfloat16 on processors that support it.
    compiled = openvino.compile_model(model, 'CPU', {
        'INFERENCE_NUM_THREADS': threads, 'INFERENCE_PRECISION_HINT': 'f32'})
    request = compiled.create_infer_request()
    return description, lambda images: request.infer(
        [images])[compiled.output(0)].copy(), 'openvino'


def _optional(name):
    try:
        return __import__(name)
    except ImportError as error:
        raise EngineError(f'--engine {name} needs the package {name}: '
                          'pip install -r requirements-deploy.txt') from error


def top_k(probabilities, names, k):
    """The k most probable classes, best first, as dicts of class_id, name and probability.

    Args:
        probabilities: array `[num_classes]`.
        names: class names; if empty, all names in the result are empty.
        k: number of classes; at most num_classes are returned.
    """
    best = np.argsort(-probabilities, kind='stable')[:k]
    return [dict(class_id=int(label), name=names[label] if names else '',
                 probability=float(probabilities[label])) for label in best]


def doubt(probability, known):
    """Return a note for an answer of low probability by a model that knows few classes, else ''.

    Args:
        probability: of the best class.
        known: class ids that the model was trained on; empty: all.
    """
    if not known or probability >= LOW_PROBABILITY:
        return ''
    return (f'low probability: the image may show none of the {len(known)} classes that these '
            'weights know')
