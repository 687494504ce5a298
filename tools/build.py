"""Builds networks, data loaders, schedules and optimizers from a configuration.

Most keys of the configuration are used only here; the modules below take plain arguments.
"""

import dataclasses
import functools
import json
import os
import sys
from pathlib import Path

import numpy as np
import paddle

import config as configuration
import zoo
from config import ROOT, ConfigError, Model, project_path
from data import DataError, sources
from data.decode import printable
from data.loader import Loader
from data.transforms import EvalTransform, TrainTransform
from dataset import EpochBatchSampler, ImageDataset
from deploy.engines import INPUT, Description, EngineError, is_export, load_engine
from recipe.augment import ColorJitter, RandomErasing, auto_augment
from recipe.batch import BatchTransform
from recipe.ema import Ema
from recipe.freeze import freeze
from recipe.loss import CrossEntropy, DistillationLoss, hits
from recipe.mixup import Mixup
from recipe.optimizer import build_optimizer, clip_gradients
from recipe.precision import Precision
from recipe.teacher import ExportedTeacher
from scheduler import Schedule, constant_rates, format_rate, learning_rate, progress_of
from system import distributed, start
from training import fast, threads
from training.stepper import Groups, Stepper
from weights.files import WeightsError
from zoo import published
from zoo.names import shapes_of, unfilled, weights_for

# Keys of MODEL that are options of networks, in lower case; FROZEN is ignored by other networks.
NETWORK_KEYS = ('DROP_RATE', 'DROP_PATH_RATE', 'FROZEN', 'TOKENS_TYPE', 'TOKEN_DIM',
                'SOFT_SPLITS')
EXAMPLE_IMAGE = ROOT / 'lit_data/val/n07579787/lit_val_00000097.JPEG'    # a plate
IMAGENET_CLASSES = ROOT / 'config' / 'imagenet_classes.txt'


def load_config(path, overrides=()):
    """config.load_config with `check`."""
    config = configuration.load_config(path, overrides)
    check(config)
    return config


def check(config):
    """Check names of networks and augmentation policies, before anything is loaded.

    Raises:
        ConfigError: names file, line and key.
    """
    for key, name in (('MODEL.NAME', config.MODEL.NAME),
                      ('DISTILL.TEACHER', config.DISTILL.TEACHER or config.MODEL.NAME)):
        try:
            zoo.entry(name)
        except ValueError as error:
            raise config.refusal(key, f'names no network: {error}') from error
    try:
        train_transform(config)
    except ValueError as error:
        raise config.refusal('DATA.AUTO_AUGMENT', str(error)) from error


def network(config):
    """Return the network of MODEL, newly initialised.

    Raises:
        ConfigError: for keys that the network does not have, or that do not fit together.
    """
    model, default = config.MODEL, Model()
    options = dict(norm_epsilon=model.NORM_EPSILON or None)
    # create_model refuses an unknown name.
    _, of_name = zoo.MODELS.get(model.NAME, (None, {}))
    for key in NETWORK_KEYS if of_name else ():
        value, unset = getattr(model, key), getattr(default, key)
        if zoo.takes(model.NAME, key.lower()):
            if value not in ('', ()):    # an empty value selects the default of the network
                options[key.lower()] = value
        # A saved configuration has all keys: ignore those at their defaults.
        elif value != unset and key != 'FROZEN':
            owner = next(kind.__name__ for name, (kind, _) in zoo.MODELS.items()
                         if zoo.takes(name, key.lower()))
            raise ConfigError(f'MODEL.{key} belongs to {owner.replace("_", "-")}, and MODEL.NAME '
                              f'is {model.NAME}: leave it out, or set it to {json.dumps(unset)}')
    made_for = of_name.get('img_size', model.IMAGE_SIZE)
    if model.IMAGE_SIZE == default.IMAGE_SIZE != made_for:
        raise ConfigError(f'MODEL.IMAGE_SIZE is {model.IMAGE_SIZE}, its default, but '
                          f'{model.NAME} is made for {made_for}: set it')
    try:
        return zoo.create_model(model.NAME, num_classes=model.NUM_CLASSES,
                                img_size=model.IMAGE_SIZE, **options)
    except ValueError as error:
        raise ConfigError(f'MODEL: {error}') from error


def trained_network(config, weights_path):
    """Return the network of MODEL with the weights of a file in any format of zoo.names.

    Returns:
        (network, the file's metadata)
    """
    with paddle.LazyGuard():    # draws no random weights, which takes up to seconds
        built = network(config)
    _, metadata = load_weights(config, built, weights_path, config.MODEL.ADAPT)
    return built, metadata


def open_model(config, weights, engine=None):
    """Load a network with weights, or an export, for validation and prediction.

    The model name, image size, classes and transform of an export replace those of the
    configuration. If the fastest engine is not available, one line on stderr says so.

    Returns:
        (network or Engine, evaluation transform, class names, metadata of the weights).

    Raises:
        EngineError: if the engine cannot run `weights`.
    """
    if is_export(weights):
        loaded = load_engine(weights, engine)
        if loaded.note and distributed.rank() == 0:
            print(loaded.note, file=sys.stderr)
        about = loaded.description
        config.MODEL.NAME, config.MODEL.IMAGE_SIZE = about.model, about.image_size
        config.MODEL.NUM_CLASSES = about.num_classes
        return loaded, about.transform(), about.class_names, dataclasses.asdict(about)
    if engine not in (None, 'paddle'):
        raise EngineError(f'{weights}: --engine {engine} runs exported networks: make one with '
                          'tools/export.py and name it with --weights')
    network, metadata = trained_network(config, weights)
    return network, eval_transform(config), class_names(config, metadata), metadata


def load_weights(config, built, path, adapt=False, new_head=False):
    """Load the weights of a file into a network; return (zoo.Loaded, metadata of the file).

    Args:
        adapt: accept another image size and, with new_head, another number of classes.

    Raises:
        WeightsError: for a file that cannot be read or does not fit; names the key to set.
    """
    state, metadata = weights_for(built, path)
    model = config.MODEL
    # Networks with the same shapes may differ, for example in the number of heads.
    name = metadata['model']
    if name and not zoo.same_network(name, model.NAME):
        raise WeightsError(f'{path}: is of {name}, and MODEL.NAME is {model.NAME}: set '
                           f'MODEL.NAME={name}, or name other weights')
    for head in built.heads:
        bias = state.get(f'{head}.bias')
        if bias is not None and bias.shape != (model.NUM_CLASSES,) and not (adapt and new_head):
            raise WeightsError(f'{path}: has {bias.size} classes, and MODEL.NUM_CLASSES is '
                               f'{model.NUM_CLASSES}: set MODEL.NUM_CLASSES={bias.size}, or train '
                               'a new head with MODEL.PRETRAINED')
    size, own = metadata.get('image_size'), shapes_of(built)
    for table in built.position_axes:
        if (isinstance(size, int) and size != model.IMAGE_SIZE and not adapt
                and table in state and state[table].shape != own[table]):
            raise WeightsError(f'{path}: is for {size} pixels, and MODEL.IMAGE_SIZE is '
                               f'{model.IMAGE_SIZE}: set MODEL.IMAGE_SIZE={size}, or '
                               f'MODEL.ADAPT=true to interpolate its {table}')
    epsilon = metadata.get('norm_epsilon')
    if epsilon and epsilon != built.norm_epsilon and not model.NORM_EPSILON:
        raise WeightsError(f'{path}: was trained with LayerNorm epsilon {epsilon:g}, and '
                           f'{model.NAME} has {built.norm_epsilon:g}: set '
                           f'MODEL.NORM_EPSILON={epsilon:g}')
    return zoo.load_state(built, state, path, adapt, adapt and new_head), metadata


def load_start(config, built):
    """Load the initial weights of a training run into a network.

    These are MODEL.PRETRAINED, or with TRAIN.PRE_TRAIN those of MODEL_PATH.

    Returns:
        zoo.Loaded, or None if training starts from random weights.
    """
    model = config.MODEL
    if model.PRETRAINED:
        path = weights_file(config, model.PRETRAINED)
        if not os.path.exists(path):
            raise ConfigError(f'MODEL.PRETRAINED {model.PRETRAINED}: no such weights file')
        return load_weights(config, built, path, adapt=True, new_head=True)[0]
    if config.TRAIN.PRE_TRAIN:
        return load_weights(config, built, weights_path(config), model.ADAPT, new_head=True)[0]
    return None


def freeze_parts(config, built):
    """Freeze the parts in MODEL.FREEZE; return the names of the frozen parameters."""
    try:
        return freeze(built, config.MODEL.FREEZE)
    except ValueError as error:
        raise ConfigError(f'MODEL.FREEZE: {error}') from error


def weights_path(config, given=None):
    """Return the path of the weights for validation and prediction: --weights, else MODEL_PATH."""
    if given:
        return given if published.entry(given) is None else weights_file(config, given)
    if not config.MODEL_PATH:
        raise ConfigError('no weights: name a file with --weights or MODEL_PATH')
    path = weights_file(config, config.MODEL_PATH)
    if not os.path.exists(path):
        raise ConfigError(f'MODEL_PATH {config.MODEL_PATH}: no such weights file; train first, or '
                          'name another file with --weights')
    return path


def weights_file(config, weights, model=None):
    """Return the path of weights that the configuration names; published ones are downloaded.

    Args:
        weights: a path, relative to the project's folder, or `published:NAME`.
        model: network that they are for; None: MODEL.NAME.

    Raises:
        WeightsError: for published weights that are of another network or cannot be had.
    """
    found, model = published.entry(weights), model or config.MODEL.NAME
    if found is None:
        return project_path(weights)
    if not zoo.same_network(found.model, model):
        raise WeightsError(f'{weights}: is of {found.model}, not of {model}: use '
                           f'-c config/{found.config}, or name other weights')
    return str(published.local_file(weights, config.MODEL.CACHE))


def published_config(found, overrides=()):
    """Return the configuration that the figure of a zoo.published.Published belongs to."""
    return load_config(ROOT / 'config' / found.config, overrides)


def eval_transform(config):
    """Return the EvalTransform of DATA."""
    data = config.DATA
    return EvalTransform(config.MODEL.IMAGE_SIZE, data.EVAL_TRANSFORM, data.EVAL_CROP_RATIO,
                         data.EVAL_INTERPOLATION, data.MEAN, data.STD)


def eval_interpolation(config):
    """Return the filter of the evaluation resize, 'bilinear' or 'bicubic'."""
    data = config.DATA
    if data.EVAL_INTERPOLATION != 'auto':
        return data.EVAL_INTERPOLATION
    return 'bicubic' if data.EVAL_TRANSFORM == 'center_crop' else 'bilinear'


def describe_evaluation(config):
    """Return image size and evaluation as text: `224 pixels, center_crop 0.9, bicubic`."""
    data = config.DATA
    share = f' {data.EVAL_CROP_RATIO:g}' if data.EVAL_TRANSFORM == 'center_crop' else ''
    return (f'{config.MODEL.IMAGE_SIZE} pixels, {data.EVAL_TRANSFORM}{share}, '
            f'{eval_interpolation(config)}')


def train_transform(config):
    """Return the TrainTransform of DATA."""
    data, operations = config.DATA, []
    if data.AUTO_AUGMENT:
        operations.append(auto_augment(data.AUTO_AUGMENT, data.MEAN, data.TRAIN_INTERPOLATION,
                                       data.DECODER == 'fast'))
    elif data.COLOR_JITTER:
        operations.append(ColorJitter(data.COLOR_JITTER))
    return TrainTransform(config.MODEL.IMAGE_SIZE, data.TRAIN_SCALE, data.TRAIN_RATIO,
                          data.TRAIN_INTERPOLATION, data.FLIP, operations, data.TRAIN_CROP)


def random_erasing(config):
    """Return the RandomErasing of normalised training batches, or None if it is off."""
    data = config.DATA
    if not data.ERASE_PROBABILITY:
        return None
    return RandomErasing(data.ERASE_PROBABILITY)


def train_loader(config):
    """Return a Loader of shuffled, augmented batches: uint8 `[B, 3, S, S]` and labels `[B]`."""
    paths, train = config.DATA_PATH, config.TRAIN
    return _loader(config, paths.TRAIN_DATASET_PATH, paths.TRAIN_DATASET_LABEL_PATH,
                   train_transform(config), batch_size(config),
                   share(config, train.TRAIN_NUM_WORKS), 'train', 'replace', config.DATA.DECODER,
                   lambda epoch: epoch + 1 if epoch + 1 < config.SCHEDULER.NUM_EPOCHS else None,
                   shuffle=True, drop_last=train.DROP_LAST, repeats=train.REPEATED_AUGMENT)


def eval_loader(config, transform=None, images=None, again=False):
    """Return a Loader of validation batches in list order; unreadable images have label -1.

    Args:
        transform: replaces that of the configuration, for an export with its own.
        images: the data.images.Images below VAL_DATASET_PATH; default: those of DATA_PATH.
        again: whether it will be iterated several times: then its workers live on and read ahead.
    """
    paths, train = config.DATA_PATH, config.TRAIN
    return _loader(config, paths.VAL_DATASET_PATH, paths.VAL_DATASET_LABEL_PATH,
                   transform or eval_transform(config), share(config, train.VAL_BATCH_SIZE),
                   share(config, train.VAL_NUM_WORKS), 'val', 'blank', 'exact',
                   lambda epoch: epoch if again else None, images)


def _loader(config, folder, list_file, transform, batch_size, num_workers, split, bad_images,
            decoder, following, found=None, **order):
    folder = project_path(folder)
    if found is None:
        # A class missing in validation must not change the labels of the others.
        classes = None if split == 'train' or list_file else training_classes(config)
        found = sources.find_images(folder, project_path(list_file) if list_file else None,
                                    class_ids=class_ids(config),
                                    num_classes=config.MODEL.NUM_CLASSES, split=split,
                                    classes=classes, read_ahead=config.DATA.SHARD_WINDOW > 0)
    # Images that a file lists lie beside it.
    root = os.path.dirname(folder) if os.path.isfile(folder) and not found.opener else folder
    images = ImageDataset(found.samples, transform, decoder, config.TRAIN.SEED, root,
                          bad_images, found.opener)
    sampler = EpochBatchSampler(
        images, batch_size, num_replicas=distributed.world_size(), rank=distributed.rank(),
        seed=config.TRAIN.SEED, shard=found.shard, window=config.DATA.SHARD_WINDOW, **order)
    return Loader(images, sampler, num_workers, config.TRAIN.LOADER_TIMEOUT, following)


def batch_transform(config):
    """Return the BatchTransform from pixels to network input: mixes, normalises, erases."""
    data = config.DATA
    return BatchTransform(data.MEAN, data.STD, config.TRAIN.SEED, distributed.rank(),
                          mixup(config), random_erasing(config))


def mixup(config):
    """Return the Mixup of MIXUP, or None if it is off."""
    keys = config.MIXUP
    if not (keys.MIXUP_ALPHA or keys.CUTMIX_ALPHA):
        return None
    return Mixup(keys.MIXUP_ALPHA, keys.CUTMIX_ALPHA, keys.PROBABILITY,
                 config.TRAIN.LABEL_SMOOTHING, config.MODEL.NUM_CLASSES)


def loss(config):
    """Return the training loss, with a teacher if DISTILL is on."""
    base_loss, keys = CrossEntropy(config.TRAIN.LABEL_SMOOTHING), config.DISTILL
    if keys.TYPE == 'none':
        return base_loss
    if keys.TYPE == 'hard' and len(unfilled(config.MODEL.NAME).heads) < 2:
        two_headed = [name for name in zoo.MODELS if len(unfilled(name).heads) > 1]
        raise ConfigError(f'DISTILL.TYPE hard needs a network with two heads, and MODEL.NAME '
                          f'{config.MODEL.NAME} has one: soft takes any, two heads have '
                          f'{", ".join(two_headed) or "no networks yet"}')
    return DistillationLoss(base_loss, teacher(config), keys.TYPE, keys.ALPHA, keys.TAU)


def teacher(config):
    """Return the teacher of DISTILL: a network in evaluation mode, or an exported program.

    A position table for another image size is interpolated.

    Raises:
        ConfigError: for an unknown name, another number of classes than the student has, or a
            program that cannot be run.
        WeightsError: for weights that do not fit.
    """
    keys, model = config.DISTILL, config.MODEL
    if not keys.TEACHER and is_export(project_path(keys.WEIGHTS)):
        loaded = load_engine(project_path(keys.WEIGHTS))
        about = loaded.description
        if (about.normalise or (about.num_classes, about.image_size)
                != (model.NUM_CLASSES, model.IMAGE_SIZE)):
            raise ConfigError(f'DISTILL.WEIGHTS {keys.WEIGHTS}: an export for {about.num_classes} '
                              f'classes at {about.image_size} pixels'
                              f'{", which normalises by itself" if about.normalise else ""}; a '
                              f'teacher needs {model.NUM_CLASSES} classes, {model.IMAGE_SIZE} '
                              'pixels and normalised images')
        return loaded
    if not keys.TEACHER:
        try:
            return ExportedTeacher(project_path(keys.WEIGHTS), model.NUM_CLASSES, model.IMAGE_SIZE)
        except ValueError as error:
            raise ConfigError(f'DISTILL.WEIGHTS: {error}') from error
    try:
        with paddle.LazyGuard():    # as in trained_network
            built = zoo.create_model(keys.TEACHER, num_classes=model.NUM_CLASSES,
                                     img_size=model.IMAGE_SIZE)
    except ValueError as error:
        raise ConfigError(f'DISTILL.TEACHER: {error}') from error
    state, _ = weights_for(built, weights_file(config, keys.WEIGHTS, keys.TEACHER))
    classes = state['head.bias'].shape[0] if 'head.bias' in state else model.NUM_CLASSES
    if classes != model.NUM_CLASSES:
        raise ConfigError(f'DISTILL.WEIGHTS {keys.WEIGHTS}: a teacher of {classes} classes for '
                          f'{model.NUM_CLASSES} of MODEL.NUM_CLASSES: both need the same classes')
    zoo.load_state(built, state, keys.WEIGHTS, adapt=True)
    built.eval()
    return built


def ema(config, bare_network):
    """Return the Ema of the weights, or None if EMA is off."""
    keys = config.EMA
    return Ema(bare_network, keys.DECAY, keys.WARMUP) if keys.DECAY else None


def fingerprint(loader):
    """Return a text with number and hash of a loader's images: relative paths, labels, order."""
    samples = loader.dataset.samples
    return f'{len(samples)} images, {samples.fingerprint[:16]}'


def schedule(config):
    """Return the Schedule of the learning rate, at the first epoch."""
    return Schedule(rate_function(config), progress=config.SCHEDULER.LAST_EPOCHS + 1)


def rate_function(config):
    """Return the learning rate as a function (progress in epochs, scale=1.0) -> rate.

    `scale` is that of a parameter (recipe.optimizer.rate_scales); it applies to END_LR only with
    SCALE_END_LR.
    """
    keys, factor = config.SCHEDULER, rate_scale(config)

    def rate(progress, scale=1.0):
        if keys.RATES:
            return factor * scale * constant_rates(progress, keys.RATES)
        if not keys.USE_WARMUP:
            return factor * scale * keys.BASE_LR
        return factor * learning_rate(
            progress, scale * keys.BASE_LR, keys.WARMUP_EPOCHS, scale * keys.WARMUP_START_LR,
            (scale if keys.SCALE_END_LR else 1.0) * keys.END_LR,
            keys.NUM_EPOCHS - keys.COOLDOWN_EPOCHS, keys.DECAY, keys.DECAY_FROM)
    return rate


def rate_of_batch(config, steps):
    """Return the learning rate of a run as a function (epoch, batch of the epoch) -> rate.

    Args:
        steps: batches in an epoch.
    """
    keys, rate = config.SCHEDULER, rate_function(config)

    def of_batch(epoch, batch=0):
        first = batch - batch % config.TRAIN.ACCUMULATE    # of its optimizer step
        return rate(progress_of(epoch, first, steps, keys.LAST_EPOCHS + 1, keys.UPDATE))
    return of_batch


def batch_size(config):
    """Return the images of one process in a training step.

    Raises:
        ConfigError: if the processes cannot share TRAIN_BATCH_SIZE.
    """
    if not config.TRAIN.SPLIT_BATCH:
        return config.TRAIN.TRAIN_BATCH_SIZE
    processes = distributed.world_size()
    part = config.split_batch(processes)
    if part is None:
        raise config.refusal('TRAIN.TRAIN_BATCH_SIZE', (
            f'is {config.TRAIN.TRAIN_BATCH_SIZE}, which {processes} processes cannot share in '
            'equal parts (even ones, if MIXUP is on): start another number of processes, or set '
            'TRAIN.SPLIT_BATCH=false for that many images on each'))
    return part


def share(config, number):
    """Return the part of one process in a number of images or workers, rounded up."""
    return -(-number // distributed.world_size()) if config.TRAIN.SPLIT_BATCH else number


def images_a_step(config):
    """Return the images of an optimizer step, over all processes."""
    return batch_size(config) * distributed.world_size() * config.TRAIN.ACCUMULATE


def rate_scale(config):
    """Return the factor on all rates: images of a step / LR_BATCH, or 1 without LR_BATCH.

    Linear scaling: Goyal et al. (2017), section 2.1.
    """
    reference = config.SCHEDULER.LR_BATCH
    return images_a_step(config) / reference if reference else 1


def describe_schedule(config):
    """Return optimizer, shape and highest value of the learning rate, and how it is scaled."""
    keys = config.SCHEDULER
    highest = max(rate for _, rate in keys.RATES) if keys.RATES else keys.BASE_LR
    shape = 'constant rate'
    if keys.RATES:
        shape = f'{len(keys.RATES)} constant rates'
    elif keys.USE_WARMUP:
        shape = f'{keys.WARMUP_EPOCHS:g}-epoch warm-up, {keys.DECAY} decay'
    line = (f'{config.TRAIN.OPTIMIZER}, {shape}, highest learning rate '
            f'{format_rate(rate_scale(config) * highest)}')
    if keys.LR_BATCH:
        line += (f': {format_rate(highest)} for {keys.LR_BATCH} images a step, of which '
                 f'there are {images_a_step(config)}')
    return line


def optimizer(config, bare_network, rate):
    """Return the optimizer of TRAIN and SCHEDULER; `rate` is a number or a Schedule."""
    train, keys = config.TRAIN, config.SCHEDULER
    built = build_optimizer(bare_network, rate, keys.WEIGHT_DECAY, train.DECAY_ALL,
                            train.OPTIMIZER, train.MOMENTUM, keys.BACKBONE_LR_SCALE,
                            keys.LAYER_DECAY)
    if not keys.SCALE_END_LR and isinstance(rate, Schedule):
        rate.follow([p for p in bare_network.parameters() if not p.stop_gradient],
                    rate_function(config))
    return built


def precision(config, bare_network, built_optimizer):
    """Return the Precision of TRAIN.

    Raises:
        ConfigError: if this device has no mixed precision. Paddle itself would silently compute
            in float32.
    """
    train = config.TRAIN
    if train.AMP == 'none':
        return Precision(bare_network, built_optimizer)
    device = paddle.device.get_device()
    if device == 'cpu':
        raise ConfigError(f'TRAIN.AMP is {train.AMP}, but this is a CPU, where Paddle has no mixed '
                          'precision: use a GPU, or TRAIN.AMP=none to train in float32')
    supported = (paddle.amp.is_float16_supported if train.AMP_DTYPE == 'float16'
                 else paddle.amp.is_bfloat16_supported)
    if not supported():
        raise ConfigError(f'TRAIN.AMP_DTYPE is {train.AMP_DTYPE}, which {device} does not compute '
                          'in: use the other one, or TRAIN.AMP=none')
    return Precision(bare_network, built_optimizer, train.AMP, train.AMP_DTYPE)


def groups(config, loader):
    """Return the Groups of a training loader's batches, one for each optimizer step."""
    batch_length = loader.batch_sampler.batch_length
    return Groups(map(batch_length, range(len(loader))), config.TRAIN.ACCUMULATE)


def stepper(config, batch_groups, fresh=True):
    """Build the network with everything that depends on its weights.

    Args:
        batch_groups: result of `groups`.
        fresh: load the initial weights of the configuration. Not needed with a checkpoint, and
            the file may no longer exist.

    Returns:
        (Stepper, zoo.Loaded or None, names of frozen parameters).
    """
    train = config.TRAIN
    paddle.seed(train.SEED)
    built = network(config)
    loaded = load_start(config, built) if fresh else None
    frozen = freeze_parts(config, built)
    rate = schedule(config)
    count = threads_of_step(config)
    if count:
        fast.speed_up(built)
    built_optimizer = optimizer(config, built, rate)
    computation = precision(config, built, built_optimizer)
    clip = functools.partial(clip_gradients, limit=train.CLIP_NORM)
    return Stepper(
        built, loss(config), hits, built_optimizer, rate, computation, clip, batch_groups,
        ema(config, built), train.SEED, config.SCHEDULER.LAST_EPOCHS + 1, config.SCHEDULER.UPDATE,
        train.MAX_BAD_STEPS, count), loaded, frozen


def threads_of_step(config):
    """Return how many threads share the batch of a step; 0: the layers compute as written."""
    pixels = batch_size(config) * config.MODEL.IMAGE_SIZE ** 2
    if pixels < fast.LEAST_PIXELS or not fast.works_here():
        return 0
    most = start.threads() if distributed.world_size() == 1 and threads.work_here() else 1
    return max(1, min(most, pixels // threads.LEAST_PIXELS))


def description(config, metadata, format='paddle', precision='float32', normalise=False,
                softmax=False):
    """Return the deploy.engines.Description of an export of the network.

    Args:
        metadata: metadata of the weights file, or {}.
        format, precision: from engines.FORMATS and engines.PRECISIONS.
        normalise: whether the input is pixels from 0 to 255.
        softmax: whether the output is probabilities.
    """
    data = config.DATA
    return Description(
        model=config.MODEL.NAME, format=format, precision=precision,
        image_size=config.MODEL.IMAGE_SIZE, num_classes=config.MODEL.NUM_CLASSES,
        normalise=normalise, softmax=softmax, input=INPUT,
        output='probabilities' if softmax else 'logits',
        eval_transform=data.EVAL_TRANSFORM, eval_crop_ratio=data.EVAL_CROP_RATIO,
        eval_interpolation=eval_interpolation(config), mean=list(data.MEAN), std=list(data.STD),
        class_names=class_names(config, metadata), paddle=paddle.__version__)


def class_names(config, metadata=None):
    """Return the class names in class order, or an empty list if they are unknown.

    Sources, in this order: the weights file, DATA.CLASS_NAMES, ImageNet for 1000 classes, else the
    training data (class folders, file names or archive).
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
    classes = sources.find_classes(project_path(config.DATA_PATH.TRAIN_DATASET_PATH))
    return list(classes) if len(classes) == count else []


def training_data(config, samples):
    """Return metadata of weights that say what they were trained on.

    Returns:
        dict of trained_on, a text such as `lit_data/train, 16 classes`, and known_classes, the
        labels of the images in ascending order, or an empty list if all classes have images.
    """
    folder = '/'.join(Path(config.DATA_PATH.TRAIN_DATASET_PATH).parts[-2:])
    labels = np.unique(samples.labels).tolist()
    return dict(trained_on=f'{folder}, {len(labels)} classes',
                known_classes=labels if len(labels) < config.MODEL.NUM_CLASSES else [])


def trained_on(config, weights, metadata):
    """Return what weights were trained on, as `training_data` does.

    From the metadata of the file, else from the configuration if its MODEL_PATH is this file; an
    empty text and an empty list if neither says it.
    """
    unknown = dict(trained_on='', known_classes=[])
    text, classes = (metadata.get(key) for key in unknown)
    if isinstance(text, str) and text:
        count = config.MODEL.NUM_CLASSES
        valid = isinstance(classes, list) and all(
            type(label) is int and 0 <= label < count for label in classes)
        return dict(trained_on=printable(text)[:200], known_classes=classes if valid else [])
    own, paths = config.MODEL_PATH, config.DATA_PATH
    if not own or os.path.abspath(weights) != os.path.abspath(project_path(own)):
        return unknown
    list_file = paths.TRAIN_DATASET_LABEL_PATH
    try:
        found = sources.find_images(project_path(paths.TRAIN_DATASET_PATH),
                                    project_path(list_file) if list_file else None)
    except DataError:    # the data may be on another machine
        return unknown
    return training_data(config, found.samples)


def training_classes(config):
    """Return {class name: label} of the training data, or {} if it has no class names.

    If the names are ImageNet ids, return all of ImageNet's: validation may have other classes.
    """
    paths = config.DATA_PATH
    if paths.TRAIN_DATASET_LABEL_PATH:
        return {}
    classes = sources.find_classes(project_path(paths.TRAIN_DATASET_PATH))
    known = class_ids(config)
    return known if classes and known and classes.keys() <= known.keys() else classes


def class_ids(config):
    """Return ImageNet's ids for 1000 classes, else None: labels follow the order of names."""
    return imagenet_ids() if config.MODEL.NUM_CLASSES == 1000 else None


def imagenet_ids():
    """Return {WordNet id: class id}, for example {'n07579787': 923}."""
    return {wordnet_id: label for label, (wordnet_id, _) in enumerate(_imagenet_classes())}


def _imagenet_classes():
    """Return (WordNet id, name) of ImageNet's 1000 classes, in class order."""
    lines = IMAGENET_CLASSES.read_text(encoding='utf-8').splitlines()
    return [tuple(line.split(' ', 1)) for line in lines]
