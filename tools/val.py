"""Validate a network: top-1 and top-5 accuracy over all validation images.

    python tools/val.py -c config/t2t_vit_7.yaml --weights output/t2t_vit_7.pdparams
    python tools/val.py --weights output/exported
    python tools/val.py --weights published:all -c config/t2t_vit_7.yaml -o \\
        DATA_PATH.VAL_DATASET_PATH=/data/ILSVRC2012/val DATA_PATH.VAL_DATASET_LABEL_PATH=
    python tools/val.py --predictions output/predictions.csv
    python tools/val.py -c config/t2t_vit_7.yaml --set imagenet-v2 \\
        -o DATA_PATH.VAL_DATASET_PATH=/data/imagenetv2-matched-frequency-format-val

published:NAME stands for weights that were published (tools/convert.py --list shows all); the
published figure is printed beside the measured one. published:all validates all that have as many
classes as the configuration, each with the evaluation that its figure was published with. It writes
a line into --results for each; the same command goes on behind them.

On a CPU, many images are computed by a graph of the network for Paddle Inference, if its logits on
the first images are those of the network; `--engine paddle` computes by the network itself.
scripts/val.sh starts a process for each core, which saves time from some thousands of images on.
"""

import json
import math
import time
from pathlib import Path

from system import start

start.prepare()    # before Paddle, which reads what it sets

# isort: split
import numpy as np
import paddle
from paddle.nn import functional as F

import build
import config as configuration
from config import ConfigError, project_path
from data import DataError, imagenet_sets
from data.decode import name_bad_images
from deploy import engines
from deploy.fast import fast_network, graph_pays
from deploy.predictions import Predictions, check_place
from system import command, distributed
from training.log import Bar, say
from weights.files import WeightsError
from zoo import published

PERMUTED_BELOW = 0.01    # top-1 below which the order of the labels is checked


def evaluate(network, loader, log_every=0, skip_bad=False, classes=None, answers=None,
             predictions=None):
    """Compute top-1, top-5 and loss of a network on all images of a loader, with all processes.

    Every step gathers logits and labels of all processes in the order of the data set and drops
    the padding samples; the losses of single images are summed exactly. The result is therefore
    bit-identical for any number of processes and any batch size, as long as the logits of an image
    do not depend on its batch (matrix products of other sizes may round differently).

    Args:
        network: images `[B, 3, S, S]` to logits `[B, num_classes]`.
        loader: batches in the order of the data set, equally many on every process; an unreadable
            image has the label -1.
        log_every: steps between progress lines; 0: none.
        skip_bad: leave out unreadable images instead of raising.
        classes: ids of the classes that compete; None for all.
        answers: int64 `[N, L]`, all labels of each image of the data set, padded with -1: any of
            them is correct. None: the label of the loader is.
        predictions: an object like deploy.predictions.Predictions, whose `add` gets every batch
            and whose `errors` the messages of unreadable images; or None.

    Returns:
        dict: top1, top5 (0 to 1) and loss (of the loader's labels), means over the images that
        were read; images, their number; bad_images, one message for each unreadable image;
        seconds; images_per_second.

    Raises:
        DataError: with the names of all unreadable images, unless skip_bad.
    """
    was_training = network.training
    network.eval()
    left = len(loader.dataset)    # images not yet counted
    correct, correct_in_5, losses, seen = 0, 0, [], 0
    mask = None if classes is None else mask_of(classes)
    read_time, started = 0.0, time.perf_counter()
    read_started = started
    with paddle.no_grad():
        for step, (images, labels) in enumerate(
                Bar(distributed.in_step(loader), desc='validation', total=len(loader)), start=1):
            read_time += time.perf_counter() - read_started
            logits = distributed.gather_rows(network(images))[:left]     # (B of all, classes)
            labels = distributed.gather_rows(labels)[:left]              # (B of all)
            if mask is not None:
                logits = logits + mask
            first = len(loader.dataset) - left
            left -= len(labels)
            seen += (labels >= 0).sum().item()
            hits = top_k_hits(logits, labels if answers is None    # none where the label is -1
                              else readable(answers[first:first + len(labels)], labels))
            correct += hits[:, 0].sum().item()
            correct_in_5 += hits.max(axis=1).sum().item()
            losses += F.cross_entropy(logits, labels, reduction='none',
                                      ignore_index=-1).flatten().tolist()    # 0 for -1
            if predictions is not None:
                predictions.add(logits, labels)
            if log_every and (step % log_every == 0 or step == len(loader)):
                steps = step % log_every or log_every
                say(f'Step [{step}/{len(loader)}], acc: {correct / max(seen, 1):.4f}, '
                    f'read_time: {read_time / steps:.4f}')
                read_time = 0.0
            read_started = time.perf_counter()
    if was_training:
        network.train()
    seconds = time.perf_counter() - started
    found = {}
    for part in distributed.gather_objects(loader.bad_images):
        found.update(part)
    bad = [found[path] for path in sorted(found)]
    if predictions is not None:
        predictions.errors = found
    if bad and not (skip_bad and seen):
        images = len(loader.dataset)
        raise DataError(f'{images - seen} of {images} validation images cannot be read '
                        f'(repair them, or score the others with tools/val.py --skip-bad): '
                        f'{name_bad_images(bad)}')
    return dict(top1=correct / seen, top5=correct_in_5 / seen, loss=math.fsum(losses) / seen,
                images=seen, bad_images=bad, seconds=seconds, images_per_second=seen / seconds)


def top_k_hits(logits, labels, k=5):
    """Return int `[B, k]`: 1 where the i-th best class is a label, best class first.

    With fewer than k classes there is one column for each class.

    Args:
        logits: `[B, num_classes]`.
        labels: `[B]`, or `[B, L]` where an image may have several; -1 is none.
    """
    best = paddle.topk(logits, min(k, logits.shape[1]), axis=1)[1]       # (B, k)
    labels = labels.reshape([len(labels), 1, -1])                        # (B, 1, L)
    return (best.unsqueeze(2) == labels).any(axis=2).astype('int64')


def readable(answers, labels):
    """Return answers `[B, L]` as a tensor, -1 in rows of unreadable images, whose label is -1."""
    return paddle.to_tensor(np.where(labels.numpy()[:, None] < 0, -1, answers))


def mask_of(classes, num_classes=imagenet_sets.CLASSES):
    """Return what to add to logits, `[num_classes]`, so that only `classes` compete."""
    mask = np.full(num_classes, -1e9, 'float32')
    mask[classes] = 0
    return paddle.to_tensor(mask)


def validate(config, given, options):
    """Validate weights with a configuration and print the result; return that of `evaluate`.

    Args:
        given: path of the weights, or published:NAME.
        options: of the command.
    """
    weights = build.weights_path(config, given)
    network, transform, _, metadata = build.open_model(config, weights, options.engine)
    test_set = open_set(config, options.set) if options.set else imagenet_sets.TestSet()
    loader = build.eval_loader(config, transform, test_set.images)
    images, answers = len(loader.dataset), test_set.answers
    say(f'{config.MODEL.NAME} at {config.MODEL.IMAGE_SIZE} pixels, {images} images '
        f'of {config.DATA_PATH.VAL_DATASET_PATH}, {distributed.world_size()} process(es)')
    if test_set.published and images != test_set.published:
        say(f'warning: {test_set.title} has {test_set.published} images: the scores of {images} '
            'are not comparable with published ones')
    if (options.engine is None and not engines.is_export(weights)
            and graph_pays(images / distributed.world_size(), config.MODEL.IMAGE_SIZE)):
        network = fast_network(network, build.description(config, metadata), say)
    predictions = Predictions()
    scores = evaluate(network, loader, 10, options.skip_bad, test_set.classes, answers,
                      predictions)
    loss = f'loss: {scores["loss"]:.4f}, ' if answers is None else ''
    say(f'top-1: {scores["top1"]:.4f}, top-5: {scores["top5"]:.4f}, {loss}'
        f'{scores["images"]} images, {scores["images_per_second"]:.1f} images/s')
    if scores['bad_images']:
        say(f'left out {images - scores["images"]} of {images} images: '
            f'{name_bad_images(scores["bad_images"])}')
    if answers is None and scores['top1'] < PERMUTED_BELOW:
        warn_of_permuted_labels(predictions.permuted_share(), config)
    if options.predictions and distributed.is_main():
        predictions.write(options.predictions, loader.dataset.samples,
                          project_path(config.DATA_PATH.VAL_DATASET_PATH), answers)
    found = published.entry(given or config.MODEL_PATH)
    if found and not options.set:
        say(f'published: {found.top1:g} % with '
            f'{build.describe_evaluation(build.published_config(found))}; measured: '
            f'{100 * scores["top1"]:.2f} % with {build.describe_evaluation(config)}, '
            f'{scores["images"]} images')
    say(f'ImageNet final val acc is:{scores["top1"]:.4f}')
    return scores


def open_set(config, name):
    """Return the imagenet_sets.TestSet of the configuration's validation data."""
    if config.MODEL.NUM_CLASSES != imagenet_sets.CLASSES:
        raise ConfigError(f'--set {name} is for the {imagenet_sets.CLASSES} classes of ImageNet, '
                          f'and the network has {config.MODEL.NUM_CLASSES}')
    return imagenet_sets.open_set(name, project_path(config.DATA_PATH.VAL_DATASET_PATH),
                                  build.imagenet_ids())


def warn_of_permuted_labels(share, config):
    """Say that labels and predictions correspond one to one, if the share is not 0."""
    if share:
        paths = config.DATA_PATH
        say(f'warning: the labels of {paths.VAL_DATASET_LABEL_PATH or paths.VAL_DATASET_PATH} are '
            "in another order than the network's classes: to each label belongs one other class, "
            f"which {share:.0%} of its images get; use the order that the network was trained "
            "with (ImageNet: class ids 0 to 999 in the order of the sorted WordNet ids)")


def validate_published(config, options):
    """Validate all published weights for the classes of a configuration; print a table.

    Each is validated with its own configuration, and with DATA_PATH, MODEL.CACHE and the sizes of
    the loader from the given one. Weights with a line in --results for the same images are not
    validated again.

    Returns:
        The exit code: 1 if one of them could not be validated.
    """
    results, configs = Path(options.results), {}
    for name, found in published.PUBLISHED.items():
        own = configs[name] = build.published_config(found, options.override)
        own.DATA_PATH, own.MODEL.CACHE = config.DATA_PATH, config.MODEL.CACHE
        own.TRAIN.VAL_BATCH_SIZE = config.TRAIN.VAL_BATCH_SIZE
        own.TRAIN.VAL_NUM_WORKS = config.TRAIN.VAL_NUM_WORKS
    names = [name for name in configs
             if configs[name].MODEL.NUM_CLASSES == config.MODEL.NUM_CLASSES]
    if not names:
        raise command.UsageError(f'{published.ALL}: none have {config.MODEL.NUM_CLASSES} classes '
                                 '(MODEL.NUM_CLASSES); use -c config/t2t_vit_7.yaml for ImageNet')
    images = build.fingerprint(build.eval_loader(config))
    done, failed = distributed.from_main(read_results, results, images), []
    for name in names:
        if name in done:
            continue
        try:
            scores = distributed.everywhere(validate, configs[name], published.PREFIX + name,
                                            options)
        except WeightsError as error:
            say(f'{published.PREFIX}{name}: {error}')
            failed.append(name)
            continue
        done[name] = dict(name=name, data=images, **{key: scores[key] for key in (
            'top1', 'top5', 'loss', 'images', 'seconds', 'images_per_second')})
        distributed.from_main(append_line, results, json.dumps(done[name]))
    say(f'{"weights":<28}{"published":>10}{"measured":>10}{"top-5":>8}{"images/s":>10}{"min":>7}')
    for name in names:
        row = done.get(name)
        say(f'{name:<28}{published.PUBLISHED[name].top1:>10.2f}' + (
            f'{100 * row["top1"]:>10.2f}{100 * row["top5"]:>8.2f}{row["images_per_second"]:>10.1f}'
            f'{row["seconds"] / 60:>7.1f}' if row else f'{"not run":>10}'))
    return 1 if failed else 0


def read_results(path, images):
    """Return {name: result} of the lines in a file of results that belong to the same images.

    Raises:
        UsageError: for a line that is no result.
    """
    done = {}
    if path.exists():
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), start=1):
            try:
                row = json.loads(line)
                if row['data'] == images:
                    done[row['name']] = {key: value if key in ('name', 'data') else float(value)
                                         for key, value in row.items()}
            except (ValueError, TypeError, KeyError) as error:
                raise command.UsageError(f'{path}:{number}: is no line of results; repair it, or '
                                         'name another file with --results') from error
    return done


def append_line(path, line):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a', encoding='utf-8') as file:
        file.write(f'{line}\n')


def main(arguments):
    parser = command.parser(__doc__)
    configuration.add_arguments(parser)
    engines.add_arguments(parser)
    parser.add_argument('--skip-bad', action='store_true',
                        help='leave out images that cannot be read')
    parser.add_argument('--results', default='output/published.jsonl', metavar='FILE',
                        help='lines of published:all (default: output/published.jsonl)')
    parser.add_argument('--set', choices=imagenet_sets.SETS, help='a published test set for '
                        'ImageNet networks; DATA_PATH.VAL_DATASET_PATH is its folder')
    parser.add_argument('--predictions', metavar='FILE', help='write the five most probable '
                        'classes of every image to a .csv or .jsonl file')
    options = parser.parse_args(arguments)
    if options.predictions:
        check_place(options.predictions)
    if options.weights == published.ALL and (options.set or options.predictions):
        raise command.UsageError(f'{published.ALL} goes with neither --set nor --predictions: '
                                 'name one of the published weights')
    config = build.load_config(options.config, options.override)
    distributed.init()
    if paddle.device.get_device() == 'cpu':
        start.claim_cores()
        if start.available_cores() == 1:    # with which loader processes would only take turns
            config.TRAIN.VAL_NUM_WORKS = 0
    if options.weights == published.ALL:
        return validate_published(config, options)
    validate(config, options.weights, options)
    return 0


if __name__ == '__main__':
    command.run(main)
