"""Draw docs/step.svg: where the time of a training step goes, without and with training/fast.py.

    OMP_NUM_THREADS=1 python docs/draw_step.py

T2T-ViT-7 at 224 pixels, 16 images a step. The parts are forward and backward passes of layers, in
turns as they are written and as fast.py computes them; the rest is what a whole step takes beside
them. Takes two minutes, in which nothing else should compute.
"""

import statistics
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent / 'tools'))

from system import start  # noqa: E402

start.prepare()    # before Paddle, which reads what it sets

import paddle  # noqa: E402

import build  # noqa: E402
from figures import style  # noqa: E402
from training import fast  # noqa: E402
from training.stepper import Groups  # noqa: E402

IMAGES, SIDE = 16, 224
ROUNDS = 7    # the first is not counted
REST = 'the rest'    # loss, clipping, AdamW


def make_stepper(is_fast):
    """Return the Stepper of a run whose layers are fast, or as they are written."""
    config = build.load_config(str(FOLDER.parent / 'config' / 'lit_data.yaml'), [
        f'MODEL.IMAGE_SIZE={SIDE}', 'MODEL.NUM_CLASSES=1000', f'TRAIN.TRAIN_BATCH_SIZE={IMAGES}'])
    stepper, *_ = build.stepper(config, Groups([IMAGES] * ROUNDS), fresh=False)
    if not is_fast:
        for layer in stepper.network.sublayers(include_self=True):
            vars(layer).pop('forward', None)
    stepper.begin_epoch(0)
    return stepper


def parts(network, is_fast):
    """Return {part: [(function, shape of its input), ...]} for the parts of a network."""
    module, (*blocks, last) = network.tokens_to_token, network.blocks
    tokens = [IMAGES, module.num_patches + 1, network.num_features]

    def attention(block):
        num_tokens = network.num_prefix_tokens if block is last else None
        return lambda x: (fast.attention(block.norm1, block.attn, x, num_tokens) if is_fast
                          else x + block.attn(block.norm1(x)))

    def mlp(block):
        return lambda x: (fast.mlp(block.norm2, block.mlp, x) if is_fast
                          else x + block.mlp(block.norm2(x)))

    first = [IMAGES, network.num_prefix_tokens, network.num_features] if is_fast else tokens
    return {
        'soft splits and Performers': [(module, None)],
        'attention of the blocks': [(attention(block), tokens) for block in network.blocks],
        'MLPs of the blocks': [*((mlp(block), tokens) for block in blocks), (mlp(last), first)],
    }


def seconds(function, x):
    """The time of a forward and a backward pass."""
    began = time.perf_counter()
    output = function(x)
    paddle.autograd.backward([output], [output.detach()])
    return time.perf_counter() - began


def measure():
    """Return {'as written' or 'fast': {part: seconds}}: medians."""
    images = paddle.randn([IMAGES, 3, SIDE, SIDE])
    labels = paddle.randint(0, 1000, [IMAGES])
    steppers = {'as written': make_stepper(False), 'fast': make_stepper(True)}
    times = {kind: {} for kind in steppers}
    for step in range(ROUNDS):
        for kind, stepper in steppers.items():
            found = {}
            for part, layers in parts(stepper.network, kind == 'fast').items():
                found[part] = 0
                for function, shape in layers:
                    x = paddle.randn(shape) if shape else images
                    x.stop_gradient = shape is None
                    found[part] += seconds(function, x)
            stepper.network.clear_gradients()
            began = time.perf_counter()
            stepper.step(images, labels, 0, step)
            # A part takes as long alone as within a step, to some hundredths of a second.
            found[REST] = max(0.0, time.perf_counter() - began - sum(found.values()))
            for part, value in found.items():
                times[kind].setdefault(part, []).append(value)
    return {kind: {part: statistics.median(values[1:]) for part, values in found.items()}
            for kind, found in times.items()}


def draw(times):
    """Return a Figure with a bar for each way to compute."""
    with style.applied():
        figure = style.figure(height=2.2)
        axes = figure.subplots()
        for kind, found in times.items():
            left = 0
            for (part, value), colour in zip(found.items(), style.COLOURS):
                axes.barh(kind, value, left=left, color=colour,
                          label=part if kind == 'fast' else None)
                if value > 0.1:
                    axes.text(left + value / 2, kind, f'{value:.2f}', color='white', ha='center',
                              va='center')
                left += value
        axes.grid(False)
        axes.invert_yaxis()
        axes.set_xlabel('seconds a step')
        figure.legend(loc='outside upper left', ncols=2, frameon=False)
    return figure


def main():
    times = measure()
    for kind, found in times.items():
        print(f'{kind}: {sum(found.values()):.3f} s a step')
        for part, value in found.items():
            print(f'    {value:.3f}  {part}')
    style.save(draw(times), str(FOLDER / 'step.svg'))


if __name__ == '__main__':
    main()
