"""Predictions of single images: a file with one line for each, and a check of the label order.

    found = read('output/predictions.csv')    # a list of Prediction
"""

import csv
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import paddle
from paddle.nn import functional as F

from weights.writer import replacing

FORMATS = ('.csv', '.jsonl')
TOP = 5
# Labels are called permuted if they and the predicted classes correspond one to one on this share
# of the images, with at least this number of images a label.
PERMUTED_SHARE = 0.2
FEWEST_OF_LABEL = 4


class PredictionsError(ValueError):
    """A predictions file that cannot be read or written; the message says what to do."""

    exit_code = 2


class Prediction(NamedTuple):
    """A line of a predictions file; `error` says why an image has no classes."""

    path: str              # relative to the folder of the images
    labels: list           # all of its labels
    top: list              # most probable classes, best first
    probabilities: list    # of these
    error: str = ''


class Predictions:
    """The most probable classes of the images of a validation, in the order of the data set.

    Attributes:
        errors: {path: error message} of unreadable images.
    """

    def __init__(self):
        self.errors = {}
        self._labels, self._best, self._probabilities = [], [], []

    def add(self, logits, labels):
        """Add a batch: logits `[B, num_classes]`, labels `[B]`, -1 for an unreadable image."""
        best = paddle.topk(logits, min(TOP, logits.shape[1]), axis=1)[1]    # (B, 5)
        self._best.append(best.numpy())
        self._probabilities.append(
            paddle.take_along_axis(F.softmax(logits, axis=1), best, axis=1).numpy())
        self._labels.append(labels.numpy())

    def write(self, path, samples, root, answers=None):
        """Write one line for each image, atomically, as CSV or JSON lines by the extension.

        Args:
            path: a file that `check_place` accepts.
            samples: the (path, label) of each image.
            root: paths are written relative to this folder.
            answers: int `[N, L]`, all labels of each image, padded with -1; or None.
        """
        best, probabilities = map(np.concatenate, (self._best, self._probabilities))
        read = np.concatenate(self._labels) >= 0
        with replacing(path) as temporary, open(temporary, 'w', encoding='utf-8', newline='',
                                                errors='surrogateescape') as file:
            write = _csv_lines(file, best.shape[1]) if path.endswith('.csv') else _json_lines(file)
            for index, (name, label) in enumerate(samples):
                labels = [int(label)] if answers is None else [
                    int(each) for each in answers[index] if each >= 0]
                if read[index]:
                    write(os.path.relpath(name, root), labels, best[index].tolist(),
                          [round(each, 6) for each in probabilities[index].tolist()])
                else:
                    write(os.path.relpath(name, root), labels,
                          error=self.errors.get(name, 'cannot be read'))

    def permuted_share(self):
        """Return the share of images that shows a permuted label order, or 0 if it is none.

        A network whose labels are in another order predicts, for most images of a label, the same
        wrong class, and for each label another one. So each label gets one predicted class, pairs
        with the most images first. For each label one image is not counted, because any prediction
        of a single image can be explained in this way. Predictions that do not depend on the image
        explain one label only.
        """
        labels, predicted = np.concatenate(self._labels), np.concatenate(self._best)[:, 0]
        labels, predicted = labels[labels >= 0], predicted[labels >= 0]
        count = len(np.unique(labels))
        if count < 2 or len(labels) < FEWEST_OF_LABEL * count:
            return 0.0
        pairs, images = np.unique(np.stack([labels, predicted], axis=1), axis=0,
                                  return_counts=True)
        explained, seen_labels, seen_classes = 0, set(), set()
        for pair in np.argsort(-images, kind='stable'):
            label, found = pairs[pair]
            if label not in seen_labels and found not in seen_classes:
                seen_labels.add(label)
                seen_classes.add(found)
                explained += images[pair] - 1
        share = explained / (len(labels) - count)
        return float(share) if share > PERMUTED_SHARE else 0.0


def check_place(path):
    """Raise PredictionsError unless `path` has an extension of FORMATS and its folder exists."""
    if not path.endswith(FORMATS):
        raise PredictionsError(f'{path}: name a file that ends in {" or ".join(FORMATS)}')
    folder = Path(path).parent
    if os.path.isdir(path) or not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        raise PredictionsError(f'{path}: cannot be written; name a file in a folder that exists '
                               'and is writable')


def read(path):
    """Read a file that `Predictions.write` wrote; return a list of Prediction.

    Raises:
        PredictionsError: names the file and the line.
    """
    if not path.endswith(FORMATS):
        raise PredictionsError(f'{path}: name a file that ends in {" or ".join(FORMATS)}')
    is_csv, found = path.endswith('.csv'), []
    try:
        with open(path, encoding='utf-8', errors='surrogateescape', newline='') as file:
            for line in csv.DictReader(file) if is_csv else file:
                found.append(_from_csv(line) if is_csv else _from_json(line))
    except OSError as error:
        raise PredictionsError(f'{path}: cannot be read ({error.strerror})') from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        line = len(found) + 1 + is_csv    # a CSV has a head
        raise PredictionsError(f'{path}:{line}: is no prediction ({error}); write the file with '
                               'tools/val.py --predictions') from error
    if not found:
        raise PredictionsError(f'{path}: has no predictions; write the file with tools/val.py '
                               '--predictions')
    return found


def _from_csv(row):
    classes, probabilities = (
        [kind(row[f'{name}_{place}']) for place in range(1, TOP + 1) if row.get(f'{name}_{place}')]
        for name, kind in (('class', int), ('probability', float)))
    labels = [int(label) for label in row['label'].split()]
    return _checked(Prediction(row['path'], labels, classes, probabilities, row['error']))


def _from_json(line):
    entry = json.loads(line)
    label = entry['label']
    return _checked(Prediction(entry['path'], label if isinstance(label, list) else [label],
                               entry.get('top', []), entry.get('probabilities', []),
                               entry.get('error', '')))


def _checked(found):
    """Return a Prediction; raises ValueError or TypeError if it is none."""
    path, labels, classes, probabilities, error = found
    if not (isinstance(path, str) and isinstance(error, str) and bool(classes) != bool(error)
            and len(classes) == len(probabilities) <= TOP):
        raise ValueError('path, classes or probabilities are missing')
    if not (all(type(each) is int and each >= 0 for each in [*labels, *classes])
            and all(0 <= each <= 1 for each in probabilities)):
        raise ValueError('a class or a probability is out of range')
    return found


def _csv_lines(file, top):
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['path', 'label', *(f'class_{place}' for place in range(1, top + 1)),
                     *(f'probability_{place}' for place in range(1, top + 1)), 'error'])

    def write(path, labels, best=(), probabilities=(), error=''):
        numbers = [*best, *probabilities] or [''] * (2 * top)
        writer.writerow([path, ' '.join(map(str, labels)), *numbers, error])
    return write


def _json_lines(file):
    def write(path, labels, best=(), probabilities=(), error=''):
        entry = dict(path=path, label=labels[0] if len(labels) == 1 else labels)
        entry.update(dict(error=error) if error else dict(top=best, probabilities=probabilities))
        file.write(json.dumps(entry) + '\n')
    return write
