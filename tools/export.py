"""Export a trained network for deployment: a folder of Paddle Inference, or one ONNX file.

    python tools/export.py -c config/lit_data.yaml output/exported
    python tools/export.py -c config/lit_data.yaml output/exported.onnx

The export is written only if its outputs on real images agree with those of the network.
tools/val.py, tools/predict.py and tools/serve.py run it: `--weights output/exported`.
"""

import dataclasses
import sys

from system import start

start.prepare()    # before Paddle, which reads what it sets

# isort: split
import paddle

import build
import config as configuration
from deploy import engines
from deploy.exports import CHECK_BATCHES, OPSETS, export
from system import command


def main(arguments):
    parser = command.parser(__doc__)
    configuration.add_arguments(parser)
    parser.add_argument('out', metavar='OUT', help='folder for Paddle Inference, or an ONNX file, '
                        'which ends in .onnx')
    parser.add_argument('--weights', metavar='FILE', help='weights; default: MODEL_PATH')
    parser.add_argument('--normalise', action='store_true',
                        help='include normalisation: the input is pixels of 0 to 255')
    parser.add_argument('--softmax', action='store_true',
                        help='include the softmax: the output is probabilities')
    parser.add_argument('--precision', choices=engines.PRECISIONS, default='float32',
                        help='bfloat16 for Paddle Inference; int8 for ONNX: dynamic quantisation '
                        'of matrix products (default: float32)')
    parser.add_argument('--opset', type=int, default=17, metavar='N',
                        help=f'ONNX operator set, {OPSETS[0]} to {OPSETS[-1]} (default: 17)')
    parser.add_argument('--plain', dest='fast', action='store_false',
                        help='export the layers as they are, not simplified')
    options = parser.parse_args(arguments)
    options.format = 'onnx' if options.out.endswith('.onnx') else 'paddle'
    if options.opset not in OPSETS:
        raise command.UsageError(f'--opset {options.opset}: use {OPSETS[0]} to {OPSETS[-1]}')
    if options.precision == dict(onnx='bfloat16', paddle='int8')[options.format]:
        raise command.UsageError(f'--precision {options.precision} does not go with '
                                 f'{options.out}: Paddle Inference computes in float32 or '
                                 'bfloat16, ONNX Runtime in float32 or int8')
    if options.format == 'onnx' and not options.fast and paddle.__version__.startswith('2.'):
        raise command.UsageError('--plain does not work with ONNX and Paddle 2: paddle2onnx 1.3 '
                                 'leaves out the small epsilon of the Performer')
    config = build.load_config(options.config, options.override)
    weights = build.weights_path(config, options.weights)
    network, metadata = build.trained_network(config, weights)
    description = build.description(config, metadata, options.format, options.precision,
                                    options.normalise, options.softmax)
    description = dataclasses.replace(description, **build.trained_on(config, weights, metadata))
    difference, same, note = export(network, description, options.out, options.fast, options.opset)
    print(f'{options.out}: {config.MODEL.NAME} at {config.MODEL.IMAGE_SIZE} pixels, '
          f'{options.format}, {options.precision}; on {sum(CHECK_BATCHES)} images in batches of '
          f'{" and ".join(map(str, CHECK_BATCHES))} it differs from the network by at most '
          f'{difference:.1e}, with the same best class on {same:.0%}')
    if note:
        print(note, file=sys.stderr)


if __name__ == '__main__':
    command.run(main)
