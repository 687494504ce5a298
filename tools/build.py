"""From a configuration to what it describes: network, data, schedule, optimizer, class names.

The only place where keys of the configuration meet the code that they steer; everything below
takes plain arguments.
"""

import hashlib
import os
from pathlib import Path

import dataset
import zoo
from config import ROOT, ConfigError, project_path
from recipe.optimizer import build_optimizer
from runtime import distributed
from runtime.weights import read_weights
from scheduler import Schedule, learning_rate

IMAGENET_CLASSES = ROOT / 'config' / 'imagenet_classes.txt'


def network(config):
    """The network of MODEL, freshly initialised."""
    model = config.MODEL
    options = dict(frozen=model.FROZEN, drop_rate=model.DROP_RATE,
                   attn_drop_rate=model.ATTN_DROP_RATE, drop_path_rate=model.DROP_PATH_RATE)
    if model.TOKENS_TYPE:
        options['tokens_type'] = model.TOKENS_TYPE
    try:
        return zoo.create_model(model.NAME, num_classes=model.NUM_CLASSES,
                                img_size=model.IMAGE_SIZE, **options)
    except ValueError as error:
        raise ConfigError(f'MODEL: {error}') from error


def trained_network(config, weights_path):
    """The network of MODEL with the weights of a file; returns (network, the file's metadata)."""
    state, metadata = read_weights(weights_path)
    if metadata.get('layout') == 'pytorch':
        state = {name: array.T if name.endswith('weight') and array.ndim == 2 else array
                 for name, array in state.items()}    # a Linear's [out, in] to [in, out]
    built = network(config)
    zoo.load_state(built, state, weights_path, adapt=config.MODEL.ADAPT)
    return built, metadata


def weights_path(config, given=None):
    """The weights that validation and prediction use: --weights, else MODEL_PATH."""
    if given:
        return given
    if not config.MODEL_PATH:
        raise ConfigError('no weights: name a file with --weights or MODEL_PATH')
    path = project_path(config.MODEL_PATH)
    if not Path(path).is_file():
        raise ConfigError(f'MODEL_PATH {config.MODEL_PATH}: no such weights file; train first, or '
                          'name another file with --weights')
    return path


def eval_transform(config):
    data = config.DATA
    return dataset.EvalTransform(config.MODEL.IMAGE_SIZE, data.EVAL_TRANSFORM,
                                 data.EVAL_CROP_RATIO, data.EVAL_INTERPOLATION,
                                 data.MEAN, data.STD)


def train_transform(config):
    data = config.DATA
    return dataset.TrainTransform(config.MODEL.IMAGE_SIZE, data.TRAIN_SCALE, data.TRAIN_RATIO,
                                  data.TRAIN_INTERPOLATION, data.FLIP, data.MEAN, data.STD)


def train_loader(config):
    """Shuffled, augmented batches: yields images `[B, 3, S, S]` and labels `[B]`."""
    paths, train = config.DATA_PATH, config.TRAIN
    return _loader(config, paths.TRAIN_DATASET_PATH, paths.TRAIN_DATASET_LABEL_PATH,
                   train_transform(config), train.TRAIN_BATCH_SIZE, train.TRAIN_NUM_WORKS,
                   shuffle=True, bad_images='replace')


def eval_loader(config, transform=None):
    """Validation batches in the order of the list; an image that can't be read has label -1.

    `transform` replaces the configuration's, for an export that brings its own.
    """
    paths, train = config.DATA_PATH, config.TRAIN
    return _loader(config, paths.VAL_DATASET_PATH, paths.VAL_DATASET_LABEL_PATH,
                   transform or eval_transform(config), train.VAL_BATCH_SIZE, train.VAL_NUM_WORKS,
                   shuffle=False, bad_images='blank')


def _loader(config, folder, list_file, transform, batch_size, num_workers, shuffle, bad_images):
    folder = project_path(folder)
    samples = dataset.load_samples(
        folder, project_path(list_file) if list_file else None,
        imagenet_ids() if config.MODEL.NUM_CLASSES == 1000 else None, config.MODEL.NUM_CLASSES)
    images = dataset.ImageDataset(samples, transform, config.DATA.DECODER, config.TRAIN.SEED,
                                  folder, bad_images)
    sampler = dataset.EpochBatchSampler(
        images, batch_size, num_replicas=distributed.world_size(), rank=distributed.rank(),
        shuffle=shuffle, seed=config.TRAIN.SEED)
    return dataset.Loader(images, sampler, num_workers, config.DATA.SHARED_MEMORY)


def fingerprint(loader):
    """A hash of a loader's images in their order, by name below their folder, and labels."""
    samples, root = loader.dataset.samples, loader.dataset.root
    digest = hashlib.sha256()
    for path, label in samples:
        digest.update(f'{os.path.relpath(path, root)} {label}\n'.encode('utf-8', 'replace'))
    return f'{len(samples)} images, {digest.hexdigest()[:16]}'


def schedule(config):
    """The learning rate over the epochs, standing at the first one."""
    keys = config.SCHEDULER
    if not keys.USE_WARMUP:
        return Schedule(lambda progress: keys.BASE_LR)
    return Schedule(
        lambda progress: learning_rate(progress, keys.BASE_LR, keys.WARMUP_EPOCHS,
                                       keys.WARMUP_START_LR, keys.END_LR, keys.NUM_EPOCHS,
                                       keys.DECAY),
        progress=keys.LAST_EPOCHS + 1)


def optimizer(config, bare_network, rate):
    return build_optimizer(bare_network, rate, config.SCHEDULER.WEIGHT_DECAY,
                           config.TRAIN.DECAY_ALL)


def class_names(config, metadata=None):
    """The classes' names in class order, or an empty list where nobody knows them.

    The weights file's own come first, then DATA.CLASS_NAMES, then for 1000 classes ImageNet's,
    else the names of the training data's class folders.
    """
    names = (metadata or {}).get('class_names')
    count = config.MODEL.NUM_CLASSES
    if isinstance(names, list) and len(names) == count:
        return [str(name) for name in names]
    if config.DATA.CLASS_NAMES:
        try:
            text = Path(project_path(config.DATA.CLASS_NAMES)).read_text(encoding='utf-8')
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f'DATA.CLASS_NAMES {config.DATA.CLASS_NAMES}: cannot be read: '
                              f'{error}') from error
        names = text.splitlines()
        if len(names) != count:
            raise ConfigError(f'DATA.CLASS_NAMES {config.DATA.CLASS_NAMES}: {len(names)} names '
                              f'for {count} classes (MODEL.NUM_CLASSES)')
        return names
    if count == 1000:
        return [name for _, name in _imagenet_classes()]
    folder = Path(project_path(config.DATA_PATH.TRAIN_DATASET_PATH))
    folders = sorted(entry.name for entry in folder.iterdir()
                     if entry.is_dir() and not entry.name.startswith('.')
                     ) if folder.is_dir() else []
    return folders if len(folders) == count else []


def imagenet_ids():
    """WordNet id to class id, e.g. {'n07579787': 923}."""
    return {wordnet_id: label for label, (wordnet_id, _) in enumerate(_imagenet_classes())}


def _imagenet_classes():
    """(WordNet id, name) of ImageNet's 1000 classes, in class order."""
    lines = IMAGENET_CLASSES.read_text(encoding='utf-8').splitlines()
    return [tuple(line.split(' ', 1)) for line in lines]
