"""Write and read graphs in the format of Paddle 2, `.pdmodel`, with Paddle 3.

Paddle 3 writes `.json`, which the OpenVINO in Paddle Inference cannot read. Paddle 3 can still
trace a network to the older form, except for some functions that no longer support it; WRITERS
replaces these.
"""

import contextlib
import filecmp
import json
import os
import re
import tempfile
from pathlib import Path

import paddle
from paddle.nn import functional as F

from system import paddle_private


def needed():
    """Whether this Paddle writes the newer form, so that the older one has to be added."""
    return hasattr(paddle, 'pir_utils')


def add_graph(layer, folder, input_spec):
    """Add `inference.pdmodel` to a folder with `inference.json` and `.pdiparams` of the same layer.

    Nothing is written if an operation does not exist in the older form, or if the parameters would
    have another order: both graphs share one file of parameters.

    Args:
        layer: the layer that the folder was written from.
        folder: path of the folder.
        input_spec: a list of paddle.static.InputSpec.

    Returns:
        The reason if nothing was written, else an empty string.
    """
    parts = paddle_private.older_form()
    if not parts:
        return 'this Paddle does not write the older form'
    variable, _, guard = parts
    with tempfile.TemporaryDirectory(dir=folder) as work:
        try:
            with _older_functions(variable), guard():
                paddle.jit.save(layer, str(Path(work, 'inference')), input_spec=input_spec)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            return f'the network cannot be written in the older form ({reason_of(error)})'
        names = [Path(place, 'inference.pdiparams') for place in (work, folder)]
        if not filecmp.cmp(*names, shallow=False):
            return 'the older form would store the parameters in another order'
        os.replace(Path(work, 'inference.pdmodel'), Path(folder, 'inference.pdmodel'))
    return ''


def declared_shapes(graph):
    """The shapes [input, output] that a graph file of either form declares; -1 is a dynamic axis.

    Raises:
        ValueError: if the file cannot be parsed.
    """
    graph = Path(graph)
    try:
        if graph.suffix == '.json':
            block = json.loads(graph.read_bytes())['program']['regions'][0]['blocks'][0]
            results = {entry['#'].rpartition('.')[2]: entry['O'] for entry in block['ops']}
            shapes = [results[name][0]['TT']['D'][1] for name in ('data', 'fetch')]
        else:
            program = program_of(graph.read_bytes())
            block = program.block(0)
            first, last = block.op(0), block.op(block.op_size() - 1)
            if (first.type(), last.type()) != ('feed', 'fetch'):
                raise ValueError('a graph without feed and fetch')
            shapes = [block.find_var(name.encode()).shape()
                      for name in (first.output('Out')[0], last.input('X')[0])]
        return [[int(size) for size in shape] for shape in shapes]
    except Exception as error:    # of any class, as the file may be damaged
        raise ValueError(f'{graph}: {reason_of(error)}') from error


def with_batch_size(content, name, batch_size):
    """The bytes of a graph of the older form, with the batch size of its input `name` fixed."""
    program = program_of(content)
    images = program.block(0).find_var(name.encode())
    images.set_shape([batch_size, *images.shape()[1:]])
    return program.serialize_to_string()


def program_of(content):
    """Parse the bytes of a graph of the older form; ValueError if that fails."""
    program = paddle_private.read_program(content)
    if program is None:
        raise ValueError('this Paddle does not tell what is in the older form')
    if not program.num_blocks() or not program.block(0).op_size():
        raise ValueError('a graph without operations')    # Paddle would end the process
    return program


def reason_of(error):
    """The message of a Paddle exception, without stack, hint and source location."""
    text = re.sub(r'\s*\[Hint:.*|\(at /paddle.*?\)', '', str(error), flags=re.DOTALL).strip()
    return text.splitlines()[-1].strip()[:300].rstrip('.') if text else type(error).__name__


@contextlib.contextmanager
def _older_functions(variable):
    """A context in which the functions in WRITERS also accept variables of the older form."""
    originals = [(place, name, getattr(place, name)) for name in WRITERS
                 for place in (paddle, paddle.tensor, F, variable) if hasattr(place, name)]
    for place, name, original in originals:
        setattr(place, name, _either(variable, WRITERS[name], original))
    try:
        yield
    finally:
        for place, name, original in originals:
            setattr(place, name, original)


def _either(variable, write, original):
    def function(x, *others, **options):
        return (write if isinstance(x, variable) else original)(x, *others, **options)
    return function


def _append(operator, inputs, **attributes):
    """Add an operator of the older form to the graph; return its output variable."""
    _, layer_helper, _ = paddle_private.older_form()
    helper = layer_helper(operator)
    output = helper.create_variable_for_type_inference(dtype=inputs['X'].dtype)
    helper.append_op(type=operator, inputs=inputs, outputs=dict(Out=output), attrs=attributes)
    return output


def _matmul(x, y, transpose_x=False, transpose_y=False, name=None):
    return _append('matmul_v2', dict(X=x, Y=y), trans_x=transpose_x, trans_y=transpose_y)


def _sum(x, axis=None, dtype=None, keepdim=False, name=None):
    axes = [axis] if isinstance(axis, int) else list(axis or ())
    return _append('reduce_sum', dict(X=x), dim=axes, keep_dim=keepdim, reduce_all=not axes)


def _gelu(x, approximate=False, name=None):
    return _append('gelu', dict(X=x), approximate=approximate)


def _exp(x, name=None):
    return _append('exp', dict(X=x))


def _sigmoid(x, name=None):
    return _append('sigmoid', dict(X=x))


WRITERS = dict(matmul=_matmul, sum=_sum, gelu=_gelu, exp=_exp, sigmoid=_sigmoid)
