"""Draws which classes a network confuses, and its most confident mistakes.

    pairs = count(deploy.predictions.read('output/predictions.csv'))
    style.save(confusion(pairs, class_names), 'confusion.svg')

Predictions have the attributes of deploy.predictions.Prediction.
"""

from collections import Counter

import numpy as np

from figures import style

MOST_CLASSES = 32    # of a matrix whose names can be read
MOST_BARS = 20
LONGEST_NAME = 24    # letters


def true_class(prediction):
    """Return the label that a prediction is compared with: the best class if it is a label."""
    best = prediction.top[0]
    return best if best in prediction.labels else prediction.labels[0]


def judged(predictions):
    """Return the predictions with classes and a label: not those of unreadable images."""
    return [each for each in predictions if each.top and each.labels]


def count(predictions):
    """Count images by class; return a Counter {(true class, best class): images}."""
    return Counter((true_class(each), each.top[0]) for each in judged(predictions))


def confusions(pairs):
    """Return ((true class, other class), images) of wrong classes, most images first."""
    wrong = [(pair, images) for pair, images in pairs.items() if pair[0] != pair[1]]
    return sorted(wrong, key=lambda entry: (-entry[1], entry[0]))


def worst(predictions):
    """Return the wrong predictions, most confident first."""
    wrong = [each for each in judged(predictions) if true_class(each) != each.top[0]]
    return sorted(wrong, key=lambda each: (-each.probabilities[0], each.path))


def short_name(label, names):
    """Return the first name of a class, or its number where names are unknown."""
    name = names[label].partition(',')[0] if names else str(label)
    return name if len(name) <= LONGEST_NAME else f'{name[:LONGEST_NAME - 1]}…'


def caption(prediction, names):
    """Return the true and the predicted class of a mistake, and its probability, in two lines."""
    true, found = (short_name(label, names)
                   for label in (true_class(prediction), prediction.top[0]))
    return f'{true}\nas {found}, {100 * prediction.probabilities[0]:.0f} %'


def describe(pair, images, pairs, names):
    """Return a confusion as text: `plate as bowl: 3 of 8`."""
    true, found = (short_name(label, names) for label in pair)
    total = sum(number for (label, _), number in pairs.items() if label == pair[0])
    return f'{true} as {found}: {images} of {total}'


def confusion(pairs, names=()):
    """Draw the confusion matrix of the classes that occur.

    Of more than MOST_CLASSES classes it draws the largest confusions as bars.

    Args:
        pairs: result of `count`.
        names: of all classes, or empty.

    Returns:
        A Figure.

    Raises:
        style.FigureError: if there are too many classes for a matrix and no confusions.
    """
    classes = sorted({label for pair in pairs for label in pair})
    if len(classes) > MOST_CLASSES:
        return bars(pairs, names)
    place = {label: index for index, label in enumerate(classes)}
    matrix = np.zeros((len(classes), len(classes)), dtype=int)    # (true, predicted)
    for (true, found), images in pairs.items():
        matrix[place[true], place[found]] = images
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    with style.applied(**{'axes.grid': False, 'font.size': style.SMALL}):
        figure = style.figure(height=2.5 + 0.24 * len(classes))
        axes = figure.subplots()
        drawn = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1, aspect='auto')
        for row, column in zip(*np.nonzero(matrix)):
            axes.text(column, row, str(matrix[row, column]), ha='center', va='center',
                      color='white' if shares[row, column] > 0.6 else 'black',
                      gid=f'{classes[row]}:{classes[column]}')
        labels = [style.literal(short_name(label, names)) for label in classes]
        axes.set(xlabel='predicted class', ylabel='true class')
        axes.set_xticks(range(len(classes)), labels, rotation=60, ha='right',
                        rotation_mode='anchor')
        axes.set_yticks(range(len(classes)), labels)
        right = sum(images for (true, found), images in pairs.items() if true == found)
        axes.set_title(f'{right:,} of {sum(pairs.values()):,} images are right')
        figure.colorbar(drawn, label='share of the true class', fraction=0.04)
    return figure


def bars(pairs, names=()):
    """Draw the MOST_BARS largest confusions as bars; return a Figure.

    Raises:
        style.FigureError: if there are none.
    """
    largest = confusions(pairs)[:MOST_BARS]
    if not largest:
        raise style.FigureError('all predictions are right: there is nothing to draw')
    with style.applied():
        figure = style.figure(height=1.2 + 0.28 * len(largest))
        axes = figure.subplots()
        texts = [style.literal(describe(pair, images, pairs, names)) for pair, images in largest]
        axes.barh(range(len(largest)), [images for _, images in largest])
        axes.set_yticks(range(len(largest)), texts)
        axes.invert_yaxis()
        axes.grid(axis='y', visible=False)
        axes.set(xlabel='images', title='largest confusions: class, and what it is taken for')
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure
