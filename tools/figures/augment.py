"""Draws what a recipe does to images: crops, operations, mixing, erasing.

    figure = style.sheet([('', [drawn_image(dataset, (epoch, 0)) for epoch in range(6)]),
                          drawn_batch(dataset, batch_transform, size=6, step=0)])

The images are those of the code that training runs. The captions say what its methods returned.
"""

import contextlib

import numpy as np
import paddle


@contextlib.contextmanager
def noted(owner, name):
    """Yield a list that collects the results of a method of an object; empty if `owner` is None."""
    results = []
    if owner is None:
        yield results
        return
    method = getattr(owner, name)

    def noting(*arguments):
        results.append(method(*arguments))
        return results[-1]

    setattr(owner, name, noting)
    try:
        yield results
    finally:
        delattr(owner, name)


def drawn_image(dataset, key):
    """Read a training image; return (uint8 `[S, S, 3]`, caption).

    Args:
        dataset: a dataset.ImageDataset with a TrainTransform.
        key: of the data set.
    """
    transform = dataset.transform
    with contextlib.ExitStack() as stack:
        crops, shifts, flips = (stack.enter_context(noted(transform, name))
                                for name in ('crop_box', 'padded_box', 'is_flipped'))
        plans = [(operation, stack.enter_context(noted(operation, 'plan')))
                 for operation in transform.operations]
        image, _ = dataset[key]
    width, height = dataset.open(key[1]).size
    place = [f'crop {100 * (right - left) * (bottom - top) / (width * height):.0f} %'
             for left, top, right, bottom in crops]
    place += [f'crop at {left}, {top}' for left, top, _, _ in shifts]
    lines = [', '.join(place + ['flip'] * flips[0])]
    for operation, plan in plans:
        lines += operation.describe(plan[0])
    return image.transpose(1, 2, 0), '\n'.join(lines)


def drawn_batch(dataset, prepare, size, step):
    """Return a row of style.sheet: a batch of a run after mixing and erasing.

    Args:
        dataset: a dataset.ImageDataset with a TrainTransform; its images take turns.
        prepare: a recipe.batch.BatchTransform.
        size: images of the batch.
        step: number of the batch in epoch 0.
    """
    keys = [(0, index % len(dataset), step * size + index) for index in range(size)]
    images, labels = zip(*(dataset[key] for key in keys))
    with noted(prepare.mixup, 'draw') as draws, noted(prepare.erase, 'box') as boxes:
        images, _ = prepare(paddle.to_tensor(np.stack(images)), paddle.to_tensor(np.stack(labels)),
                            epoch=0, step=step)
    pixels = ((images + prepare.shift) / prepare.scale).round().clip(0, 255)
    pixels = pixels.astype('uint8').numpy().transpose(0, 2, 3, 1)    # (size, S, S, 3)
    mixing = 'not mixed'
    for share, box in draws:
        if share < 1:
            kept = round(100 * float(share))
            mixing = f'{"CutMix" if box else "mixup"} {kept} + {100 - kept} %'
    area = pixels.shape[1] * pixels.shape[2]
    captions = [f'erased {100 * box[2] * box[3] / area:.0f} %' if box else '' for box in boxes]
    return f'batch {step}\n{mixing}', list(zip(pixels, captions or [''] * size))
