"""The configuration: typed sections, filled from a YAML file, then from `-o SECTION.KEY=VALUE`.

    config = load_config('config/t2t_vit_7.yaml', ['TRAIN.TRAIN_BATCH_SIZE=64'])
    config.TRAIN.TRAIN_BATCH_SIZE

DATA_PATH, MODEL_PATH, TRAIN and SCHEDULER hold the keys of the Paddle repository's
t2t_vit_7.yaml with their meaning there, and every default is what that repository's code does;
so that file, unchanged, trains as it did. `BASE: other.yaml` starts from another file. Relative
paths are relative to the project's folder, wherever a command is started.
"""

import dataclasses
import difflib
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
LARGEST_FILE = 1 << 20    # bytes; a configuration is a page, not a book


class ConfigError(ValueError):
    """A configuration that can't be used: one line naming file, key and what to do."""

    exit_code = 2


def option(default, help, choices=None, low=None, high=None, above=None, below=None, of='numbers'):
    """A key: its default, what it means, and the values that make sense.

    `low` and `high` are included in the range, `above` and `below` are not. A tuple is `of`
    numbers, as many as its default has; a pair of numbers, or nothing; names, any number of
    texts; triples, any number of rows of three whole numbers; or pairs, any number of rows of two
    numbers.
    """
    limits = dict(help=help, choices=choices, low=low, high=high, above=above, below=below, of=of)
    if isinstance(default, tuple):
        return field(default_factory=lambda: default, metadata=limits)
    return field(default=default, metadata=limits)


@dataclass
class DataPath:
    TRAIN_DATASET_PATH: str = option(
        'lit_data/train', 'folder of the training images; or CIFAR-10 or CIFAR-100, its folder or '
        '.tar.gz')
    TRAIN_DATASET_LABEL_PATH: str = option(
        '', 'list of training images, `path label` a line; empty: one folder a class, or files '
        'named CLASS_7.png')
    VAL_DATASET_PATH: str = option(
        'lit_data/val', 'folder of the validation images; CIFAR: the same again')
    VAL_DATASET_LABEL_PATH: str = option('', 'list of validation images, as for training')


@dataclass
class Model:
    NAME: str = option('t2t_vit_7', 'network, a name of `zoo.MODELS`')
    NUM_CLASSES: int = option(1000, 'width of the head', low=1)
    IMAGE_SIZE: int = option(224, 'side of the square input in pixels; T2T-ViT needs a multiple '
                            'of 16, or of its strides\' product', low=1)
    TOKENS_TYPE: str = option('', 'token transformer; empty: the one that belongs to NAME',
                              choices=('', 'performer', 'transformer', 'convolution'))
    TOKEN_DIM: int = option(64, 'width of T2T-ViT\'s tokens between the soft splits', low=2)
    SOFT_SPLITS: tuple = option((), 'soft splits of T2T-ViT, a row of kernel, stride, padding '
                                'each, such as [[3, 1, 1], [3, 2, 1], [3, 2, 1]]; empty: those '
                                'that belong to NAME', of='triples')
    FROZEN: bool = option(False, 'keep T2T-ViT\'s pos_embed and its Performers\' w as initialised: '
                          'true is the official model, false the Paddle repository\'s')
    NORM_EPSILON: float = option(0.0, 'what LayerNorm adds to the variance; 0: the network\'s own, '
                                 '1e-5 for T2T-ViT and 1e-6 for ViT and PiT. T2T-ViT weights that '
                                 'were trained in PaddleViT need 1e-6', low=0, below=1)
    DROP_RATE: float = option(0.0, 'dropout of tokens', low=0, below=1)
    ATTN_DROP_RATE: float = option(0.0, 'dropout of attention maps', low=0, below=1)
    DROP_PATH_RATE: float = option(0.0, 'stochastic depth of the last block', low=0, below=1)
    ADAPT: bool = option(False, 'take MODEL_PATH of another image size (pos_embed is interpolated) '
                         'and, in training, number of classes (the head starts afresh)')
    PRETRAINED: str = option('', 'weights file that training starts from, also of another image '
                             'size and number of classes; not read again on resuming')
    FREEZE: tuple = option((), 'parts that don\'t train, by the beginning of their parameters\' '
                           'names ([tokens_to_token, blocks.0]); backbone: all but the heads. '
                           'Their dropout stays as configured', of='names')


@dataclass
class Train:
    PRE_TRAIN: bool = option(False, 'start from the weights at MODEL_PATH; not read again on '
                             'resuming')
    TRAIN_BATCH_SIZE: int = option(256, 'training images a step on each card', low=1)
    TRAIN_NUM_WORKS: int = option(8, 'loader processes a card in training', low=0)
    VAL_BATCH_SIZE: int = option(64, 'validation images a step on each card', low=1)
    VAL_NUM_WORKS: int = option(4, 'loader processes a card in validation', low=0)
    SEED: int = option(0, 'seed of weights, order, augmentation and dropout', low=0,
                       high=2 ** 31 - 1)
    LABEL_SMOOTHING: float = option(0.0, 'share of the target spread over all classes', low=0,
                                    below=1)
    DROP_LAST: bool = option(False, 'leave out an epoch\'s last batch where it is not full, as '
                             'the official recipe does')
    REPEATED_AUGMENT: int = option(1, 'differently augmented copies of each image, side by side '
                                   'over the cards; an epoch keeps its length and sees fewer '
                                   'images. DeiT has 3', low=1)
    CLIP_NORM: float = option(1.0, 'largest global norm of the gradient (CLIP_MODE norm) or '
                              'largest size of each of its numbers (value); 0: no clipping', low=0)
    CLIP_MODE: str = option('norm', 'what CLIP_NORM limits', choices=('norm', 'value'))
    DECAY_ALL: bool = option(True, 'decay every parameter; false leaves out 1-D parameters, '
                             'biases, class tokens and position tables, as the official recipes '
                             'do')
    OPTIMIZER: str = option('adamw', 'sgd: with MOMENTUM; lamb: for large batches',
                            choices=('adamw', 'sgd', 'lamb'))
    MOMENTUM: float = option(0.9, 'momentum of sgd', low=0, below=1)
    NESTEROV: bool = option(False, 'Nesterov\'s momentum in sgd')
    BETAS: tuple = option((0.9, 0.999), 'running means of adamw and lamb', low=0, below=1)
    EPSILON: float = option(1e-8, 'what adamw and lamb add to the denominator', above=0)
    AMP: str = option('none', 'mixed precision, on GPUs: O1 computes matrix products in AMP_DTYPE; '
                      'O2 nearly all, with AMP_DTYPE weights and float32 copies of them; not run '
                      'here', choices=('none', 'O1', 'O2'))
    AMP_DTYPE: str = option('float16', 'half precision of AMP; float16 comes with a dynamic loss '
                            'scale', choices=('float16', 'bfloat16'))
    AMP_ON_CPU: str = option('refuse', 'what AMP does on a CPU, where Paddle has none; ignore: '
                             'train in float32', choices=('refuse', 'ignore'))
    ACCUMULATE: int = option(1, 'batches whose gradients make up one optimizer step, as if they '
                             'were one batch; the last group of an epoch may have fewer. Steps '
                             'of the log, LOG_EVERY and SAVE_STEPS count batches, and wait for '
                             'the end of an optimizer step', low=1)
    MAX_BAD_IMAGES: float = option(0.01, 'largest share of training images that may be unreadable: '
                                   'they are replaced by the next of their class', low=0, high=1)
    VAL_EVERY: int = option(1, 'epochs between validations; the last epoch is always validated',
                            low=1)
    LOG_EVERY: int = option(100, 'steps between log lines', low=1)
    OUTPUT_DIR: str = option('', 'folder of the run; empty: output/NAME_OF_THE_YAML_FILE')
    RESUME: str = option('false', 'auto: go on from the newest whole checkpoint in OUTPUT_DIR, if '
                         'there is one; a checkpoint\'s path; false: start afresh')
    SAVE_STEPS: int = option(0, 'steps between checkpoints inside an epoch; 0: by time only',
                             low=0)
    SAVE_MINUTES: float = option(10.0, 'minutes between checkpoints inside an epoch; 0: none',
                                 low=0)
    KEEP_CHECKPOINTS: int = option(2, 'newest checkpoints to keep', low=1)
    TIME_LIMIT_HOURS: float = option(0.0, 'save and stop before the job has run this long; '
                                     '0: no limit', low=0)
    MAX_BAD_STEPS: int = option(10, 'steps in a row with a gradient that is not finite, each of '
                                'them skipped, before the run stops', low=1)
    VISUALDL: bool = option(True, 'write scalars for VisualDL into OUTPUT_DIR/visualdl')


@dataclass
class Data:
    DECODER: str = option('pillow', 'library that decodes images', choices=('pillow', 'opencv'))
    EVAL_TRANSFORM: str = option(
        'squash', 'center_crop: shorter side to IMAGE_SIZE / EVAL_CROP_RATIO, centre crop (the '
        '71.7 figures); squash: both sides to IMAGE_SIZE (the 71.56 figure)',
        choices=('center_crop', 'squash'))
    EVAL_CROP_RATIO: float = option(0.9, 'share of the resized image that center_crop keeps',
                                    above=0, high=1)
    EVAL_INTERPOLATION: str = option(
        'auto', 'filter of the evaluation resize; auto: bicubic for center_crop, bilinear for '
        'squash', choices=('auto', 'bilinear', 'bicubic'))
    TRAIN_CROP: str = option('resized', 'resized: a random part of the image, see TRAIN_SCALE; '
                             'padded: the whole image, moved by up to an eighth of IMAGE_SIZE '
                             'over black, as in the official transfer to CIFAR',
                             choices=('resized', 'padded'))
    TRAIN_SCALE: tuple = option((0.05, 1.0), 'share of the image\'s area in a training crop',
                                above=0, high=1)
    TRAIN_RATIO: tuple = option((3 / 4, 4 / 3), 'width / height of a training crop', above=0)
    TRAIN_INTERPOLATION: str = option('bilinear', 'filter of the training resize; random: one of '
                                      'the two for each image',
                                      choices=('bilinear', 'bicubic', 'random'))
    FLIP: float = option(0.0, 'probability of a horizontal flip in training', low=0, high=1)
    AUTO_AUGMENT: str = option(
        '', 'RandAugment or AutoAugment in timm\'s language: rand-m9-mstd0.5-inc1 is the official '
        'recipe\'s; or original, originalr, v0, v0r; empty: none')
    COLOR_JITTER: float = option(
        0.0, 'largest change of brightness, contrast and saturation, 0.4 in timm; inactive while '
        'AUTO_AUGMENT is on, as in the official recipe', low=0)
    ERASE_PROBABILITY: float = option(0.0, 'share of training images that random erasing changes',
                                      low=0, high=1)
    ERASE_MODE: str = option('pixel', 'what an erased box shows: const, the mean colour; rand, one '
                             'random colour; pixel, noise', choices=('const', 'rand', 'pixel'))
    ERASE_COUNT: int = option(1, 'most boxes erased in an image', low=1)
    MEAN: tuple = option((0.485, 0.456, 0.406), 'mean of the channels, of values in 0 to 1')
    STD: tuple = option((0.229, 0.224, 0.225), 'standard deviation of the channels', above=0)
    CLASS_NAMES: str = option('', 'file of class names, one a line; empty: folder names, or '
                              'config/imagenet_classes.txt for 1000 classes')
    SHARED_MEMORY: bool = option(True, 'loader processes hand batches over in /dev/shm')


@dataclass
class Scheduler:
    NUM_EPOCHS: int = option(300, 'epochs of training', low=1)
    LAST_EPOCHS: int = option(-1, 'epoch of the schedule before the first one: -1 starts the '
                              'schedule at 0; 0 starts it at 1, as the Paddle repository does',
                              low=-1)
    WEIGHT_DECAY: float = option(0.3, 'weight decay: decoupled in adamw and lamb, coupled (L2) '
                                 'in sgd', low=0)
    BASE_LR: float = option(0.003, 'highest learning rate', above=0)
    LR_BATCH: int = option(0, 'images a step, of all cards, that the rates are meant for: '
                           'another number scales them in proportion; 0: they are as they stand',
                           low=0)
    USE_WARMUP: bool = option(True, 'follow the schedule; false keeps BASE_LR throughout')
    WARMUP_EPOCHS: float = option(3, 'epochs from WARMUP_START_LR up to BASE_LR, linearly', low=0)
    WARMUP_START_LR: float = option(1e-6, 'rate at the schedule\'s epoch 0', low=0)
    END_LR: float = option(5e-4, 'rate at the end', low=0)
    SCALE_END_LR: bool = option(True, 'BACKBONE_LR_SCALE and LAYER_DECAY apply to END_LR as well; '
                                'false: END_LR is the end of every parameter\'s rate, as with '
                                'PyTorch\'s parameter groups and in the official transfer')
    RATES: tuple = option((), 'constant rates, a row of first epoch and rate each, such as '
                          '[[0, 3e-4], [15, 2e-4]], in place of warm-up and decay; empty: none',
                          of='pairs')
    DECAY: str = option('cosine', 'way from BASE_LR down to END_LR', choices=('cosine', 'linear'))
    DECAY_FROM: str = option('warmup', 'where the way down is counted from: the end of the warm-up '
                             'or, as the official recipe has it, epoch 0',
                             choices=('warmup', 'start'))
    COOLDOWN_EPOCHS: float = option(0, 'the last of NUM_EPOCHS, which stay at END_LR', low=0)
    UPDATE: str = option('epoch', 'how often the rate moves', choices=('epoch', 'step'))
    BACKBONE_LR_SCALE: float = option(1.0, 'factor on the rate of all but the heads; the official '
                                      'transfer recipe has 0.01', above=0)
    LAYER_DECAY: float = option(1.0, 'factor on the rate from each block to the one below it; '
                                'the heads have 1', above=0, high=1)


@dataclass
class Mixup:
    MIXUP_ALPHA: float = option(0.0, 'alpha of mixup\'s Beta distribution, 0.8 in the official '
                                'recipe; 0: no mixup. With mixed images the log\'s acc is against '
                                'the label of an image\'s larger part', low=0)
    CUTMIX_ALPHA: float = option(0.0, 'alpha of CutMix\'s Beta distribution, 1.0 in the official '
                                 'recipe; 0: no CutMix', low=0)
    CUTMIX_MINMAX: tuple = option((), 'least and largest share of a side for CutMix\'s boxes, in '
                                  'place of CUTMIX_ALPHA; empty: CUTMIX_ALPHA', above=0, high=1,
                                  of='pair')
    PROBABILITY: float = option(1.0, 'probability of mixing at all', low=0, high=1)
    SWITCH_PROBABILITY: float = option(0.5, 'probability of CutMix, where both are on', low=0,
                                      high=1)
    MODE: str = option('batch', 'what shares one draw: the batch; a pair of images, each other\'s '
                       'partner; elem: no two images', choices=('batch', 'pair', 'elem'))
    OFF_EPOCH: int = option(0, 'epoch from which on nothing is mixed; 0: never', low=0)


@dataclass
class Ema:
    DECAY: float = option(0.0, 'decay of the weights\' moving average, 0.99996 in the official '
                          'recipe; 0: none. It is validated and saved (best_ema.pdparams, '
                          'last_ema.pdparams) beside the weights', low=0, below=1)
    WARMUP: bool = option(True, 'decay no more than (1 + t) / (10 + t) in optimizer step t, so '
                          'that the averages of short runs work; false is the official recipe')


@dataclass
class Distill:
    TYPE: str = option('none', 'learning from a teacher (DeiT): hard, its best class, for networks '
                       'with two heads; soft, its distribution, for any',
                       choices=('none', 'hard', 'soft'))
    TEACHER: str = option('', 'network that teaches, a name of `zoo.MODELS`, for the student\'s '
                          'pixels at MODEL.IMAGE_SIZE; empty: WEIGHTS is an export')
    WEIGHTS: str = option('', 'the teacher\'s weights file; or an export of tools/export.py, or a '
                          'Paddle program of any network, .json or .pdmodel, that takes '
                          'normalised images and gives logits')
    ALPHA: float = option(0.5, 'the teacher\'s part of the loss', low=0, high=1)
    TAU: float = option(1.0, 'temperature of soft distillation', above=0)


@dataclass
class Config:
    DATA_PATH: DataPath = field(default_factory=DataPath)
    MODEL_PATH: str = option('', 'weights file: what training starts from with PRE_TRAIN, and '
                             'what validation and prediction use')
    MODEL: Model = field(default_factory=Model)
    TRAIN: Train = field(default_factory=Train)
    DATA: Data = field(default_factory=Data)
    SCHEDULER: Scheduler = field(default_factory=Scheduler)
    MIXUP: Mixup = field(default_factory=Mixup)
    EMA: Ema = field(default_factory=Ema)
    DISTILL: Distill = field(default_factory=Distill)


def _keys():
    """Every key by its full name, e.g. {'TRAIN.SEED': Field, 'MODEL_PATH': Field}."""
    keys = {}
    for section in dataclasses.fields(Config):
        if dataclasses.is_dataclass(section.type):
            keys.update({f'{section.name}.{key.name}': key
                         for key in dataclasses.fields(section.type)})
        else:
            keys[section.name] = section
    return keys


KEYS = _keys()
SECTIONS = sorted({name.split('.')[0] for name in KEYS if '.' in name})


def add_arguments(parser):
    """Give an argparse parser the options `-c/--config` and `-o`."""
    parser.add_argument('-c', '--config', default='config/lit_data.yaml', metavar='FILE',
                        help='configuration (default: config/lit_data.yaml)')
    parser.add_argument('-o', '--override', nargs='+', action='extend', default=[],
                        metavar='SECTION.KEY=VALUE', help='values over those of the file')


def load_config(path, overrides=()):
    """Read, check and complete a configuration.

    Args:
        path: YAML file; looked for from the current folder, then from the project's.
        overrides: texts `SECTION.KEY=VALUE`; the value is read as YAML.

    Raises:
        ConfigError: for an unreadable file, an unknown key, a wrong type, a value out of its
            range, or values that can't go together.
    """
    path = find(path)
    # name -> (value, where it was said, for error messages)
    said = _read(path, ancestors=())
    said.update(_read_overrides(overrides))
    config = Config()
    for name, (value, where) in said.items():
        section, _, key = name.rpartition('.')
        target = getattr(config, section) if section else config
        setattr(target, key, _coerce(name, value, where))
    if not config.TRAIN.OUTPUT_DIR:
        config.TRAIN.OUTPUT_DIR = f'output/{path.stem}'
    _check_together(config, said, path)
    return config


def save_config(config, path):
    """Write a resolved configuration, every key in it, as YAML that load_config reads again."""
    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    text = yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True)
    Path(path).write_text(text, encoding='utf-8')


def project_path(path):
    """A path of the configuration as an absolute one; relative ones start at the project."""
    return str(ROOT / os.path.expanduser(path))


def find(path):
    """A configuration file named on the command line, as an existing path."""
    for candidate in (Path(path).expanduser(), ROOT / path):
        if candidate.is_file():
            return candidate.resolve()
    names = sorted(file.name for file in (ROOT / 'config').glob('*.yaml'))
    nearest = difflib.get_close_matches(Path(path).name, names, n=1)
    hint = f', did you mean config/{nearest[0]}?' if nearest else ''
    raise ConfigError(f'{path}: no such configuration file{hint}')


def _shown(path):
    """A file's name for messages: short inside the project."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _short(text, most=80):
    """A text of the person's for messages, which are one line."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= most else f'{text[:most]}...'


def _problem(error):
    """What PyYAML says of a text that it can't read."""
    if isinstance(error, RecursionError):
        return 'it is nested too deeply'
    return _short(str(getattr(error, 'problem', None) or error or type(error).__name__))


def _read(path, ancestors):
    """All that a YAML file and its BASE files say: {full name: (value, 'file:line')}."""
    if path in ancestors:
        raise ConfigError(f'{_shown(path)}: BASE leads back to this file')
    said = {}
    for name, value, line in _yaml_entries(path):
        where = f'{_shown(path)}:{line}'
        if name == 'BASE':
            base = (path.parent / str(value)).resolve()
            if not base.is_file():
                raise ConfigError(f'{where}: BASE names {value}, which is no file')
            # What stands in this file wins over its base, wherever BASE stands in it.
            said = {**_read(base, ancestors + (path,)), **said}
        else:
            _check_known(name, where)
            said[name] = (value, where)
    return said


def _yaml_entries(path):
    """The entries of a YAML file as (full name, value, line); refuses a key said twice."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ConfigError(f'{_shown(path)}: larger than {LARGEST_FILE} bytes, '
                              'this is no configuration')
        text = path.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'{_shown(path)}: cannot be read: {error}') from error
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
    except Exception as error:    # PyYAML's parser raises more than its own YAMLError
        mark = getattr(error, 'problem_mark', None)
        line = f':{mark.line + 1}' if mark else ''
        raise ConfigError(f'{_shown(path)}{line}: is no valid YAML: {_problem(error)}') from error
    if root is None:
        return []
    return _entries_of(loader, root, path, section='')


def _entries_of(loader, node, path, section):
    where = f'{_shown(path)}:{node.start_mark.line + 1}'
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f'{where}: {section or "the file"} must hold `KEY: value` lines')
    entries, lines = [], {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f'{_shown(path)}:{line}: a key must be a name')
        name = f'{section}.{key_node.value}' if section else str(key_node.value)
        if name in lines:
            raise ConfigError(f'{_shown(path)}:{line}: {name} was set in line {lines[name]} '
                              'already: keep one of the two')
        lines[name] = line
        if name in SECTIONS:
            if value_node.tag != 'tag:yaml.org,2002:null':
                entries += _entries_of(loader, value_node, path, name)
            continue
        try:
            value = loader.construct_object(value_node, deep=True)
        except Exception as error:    # its constructors raise whatever Python's own do
            raise ConfigError(f'{_shown(path)}:{line}: {_short(name)}: the value cannot be read: '
                              f'{_problem(error)}') from error
        entries.append((name, value, line))
    return entries


def _read_overrides(overrides):
    said = {}
    for text in overrides:
        name, equals, value = text.partition('=')
        where = f'-o {_short(text)}'
        if not equals:
            raise ConfigError(f'{where}: write it as SECTION.KEY=VALUE')
        _check_known(name, where)
        if KEYS[name].type is not str:
            try:
                value = yaml.safe_load(value)
            except Exception as error:    # as in a file
                raise ConfigError(f'{where}: the value is no valid YAML') from error
        said[name] = (value, where)
    return said


def _check_known(name, where):
    if name in KEYS:
        return
    if name in SECTIONS:
        raise ConfigError(f'{where}: {name} is a section: set one of its keys')
    # A key under a wrong section is nearest to its namesake, whatever the section's name.
    last = {known.split('.')[-1]: known for known in KEYS}
    nearest = (difflib.get_close_matches(name, list(KEYS) + SECTIONS, n=1)
               or difflib.get_close_matches(name.split('.')[-1], last, n=1))
    same_key = last.get(name.split('.')[-1])
    known = same_key or (last.get(nearest[0], nearest[0]) if nearest else None)
    hint = f', did you mean {known}?' if known else f'; sections are {", ".join(SECTIONS)}'
    raise ConfigError(f'{where}: {_short(name)} is an unknown key{hint}')


def _coerce(name, value, where):
    """A value as its key's type; PyYAML reads 1e-6 as text, for one."""
    key = KEYS[name]
    wanted = {str: 'text', bool: 'true or false', int: 'a whole number', float: 'a number',
              tuple: {'numbers': f'a list of {len(key.default_factory())} numbers',
                      'pair': 'a list of 2 numbers, or an empty one', 'names': 'a list of names',
                      'triples': 'a list of rows of 3 whole numbers',
                      'pairs': 'a list of rows of 2 numbers'}[key.metadata['of']]
              if key.type is tuple else ''}[key.type]
    try:
        if key.type is tuple:
            result = _list(value, key.metadata['of'], len(key.default_factory()))
        elif key.type is float:
            result = _number(value)
        elif key.type is int:
            result = _whole_number(value)
        elif key.type is str and value in (None, False):    # YAML's null, and RESUME: false
            result = '' if value is None else 'false'
        elif not isinstance(value, key.type):
            raise TypeError
        else:
            result = value
    except (TypeError, ValueError):
        raise ConfigError(f'{where}: {name} must be {wanted}, not {_short(repr(value))}') from None
    _check_range(name, result, where)
    return result


def _number(value):
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _whole_number(value):
    number = _number(value)
    if number != int(number):
        raise TypeError
    return int(number)


def _list(value, of, length):
    """A list of the kind that `option` describes, as a tuple."""
    if of == 'names' and (value is None or isinstance(value, str)):
        value = [value] if value else []
    if not isinstance(value, (list, tuple)):
        raise TypeError
    if of == 'names':
        if not all(item and isinstance(item, str) for item in value):
            raise TypeError
        return tuple(value)
    if of in ('triples', 'pairs'):
        width, read = (3, _whole_number) if of == 'triples' else (2, _number)
        if not all(isinstance(row, (list, tuple)) and len(row) == width for row in value):
            raise TypeError
        return tuple(tuple(read(item) for item in row) for row in value)
    if len(value) != length and not (of == 'pair' and len(value) == 2):
        raise TypeError
    return tuple(_number(item) for item in value)


def _check_range(name, value, where):
    limits = KEYS[name].metadata
    if limits['choices'] and value not in limits['choices']:
        choices = ', '.join(choice or "''" for choice in limits['choices'])
        nearest = difflib.get_close_matches(str(value), limits['choices'], n=1)
        hint = f', did you mean {nearest[0]}?' if nearest else ''
        raise ConfigError(f'{where}: {name} must be one of {choices}, not '
                          f'{_short(repr(value))}{hint}')
    for item in value if isinstance(value, tuple) else (value,):
        for limit, broken, words in (('low', lambda a, b: a < b, 'at least'),
                                     ('high', lambda a, b: a > b, 'at most'),
                                     ('above', lambda a, b: a <= b, 'more than'),
                                     ('below', lambda a, b: a >= b, 'less than')):
            if limits[limit] is not None and broken(item, limits[limit]):
                raise ConfigError(f'{where}: {name} must be {words} {limits[limit]}, '
                                  f'not {_short(repr(value))}')


def _check_together(config, said, path):
    """Refuse values that are fine alone and impossible together."""
    def refuse(name, reason):
        where = said[name][1] if name in said else _shown(path)
        raise ConfigError(f'{where}: {name} {reason}')

    schedule, data = config.SCHEDULER, config.DATA
    if schedule.USE_WARMUP:
        if schedule.WARMUP_EPOCHS > schedule.NUM_EPOCHS:
            refuse('SCHEDULER.WARMUP_EPOCHS', f'is {schedule.WARMUP_EPOCHS:g}, longer than the '
                   f'{schedule.NUM_EPOCHS} of SCHEDULER.NUM_EPOCHS')
        if schedule.WARMUP_EPOCHS + schedule.COOLDOWN_EPOCHS > schedule.NUM_EPOCHS:
            refuse('SCHEDULER.COOLDOWN_EPOCHS', f'is {schedule.COOLDOWN_EPOCHS:g}, which the '
                   f'{schedule.NUM_EPOCHS} of SCHEDULER.NUM_EPOCHS do not hold behind the '
                   f'{schedule.WARMUP_EPOCHS:g} of SCHEDULER.WARMUP_EPOCHS')
        if schedule.END_LR > schedule.BASE_LR:
            refuse('SCHEDULER.END_LR', f'is {schedule.END_LR:g}, above the {schedule.BASE_LR:g} '
                   'of SCHEDULER.BASE_LR that it decays from')
        if schedule.WARMUP_START_LR > schedule.BASE_LR:
            refuse('SCHEDULER.WARMUP_START_LR', f'is {schedule.WARMUP_START_LR:g}, above the '
                   f'{schedule.BASE_LR:g} of SCHEDULER.BASE_LR that it warms up to')
        if schedule.LAST_EPOCHS >= schedule.NUM_EPOCHS:
            refuse('SCHEDULER.LAST_EPOCHS', f'is {schedule.LAST_EPOCHS}, so the schedule of '
                   f'{schedule.NUM_EPOCHS} epochs would be over before the first one')
        if not schedule.SCALE_END_LR and (
                schedule.END_LR > schedule.BASE_LR * schedule.BACKBONE_LR_SCALE):
            refuse('SCHEDULER.END_LR', f'is {schedule.END_LR:g}, above the '
                   f'{schedule.BASE_LR * schedule.BACKBONE_LR_SCALE:g} of SCHEDULER.BASE_LR times '
                   'SCHEDULER.BACKBONE_LR_SCALE that the backbone decays from')
    epochs = [first for first, _ in schedule.RATES]
    if epochs and (epochs[0] > schedule.LAST_EPOCHS + 1 or epochs != sorted(set(epochs))
                   or min(rate for _, rate in schedule.RATES) < 0):
        refuse('SCHEDULER.RATES', 'must begin at the first epoch of the schedule '
               f'({schedule.LAST_EPOCHS + 1}), with rising epochs and no rate below 0')
    if config.TRAIN.PRE_TRAIN and config.MODEL.PRETRAINED:
        refuse('MODEL.PRETRAINED', 'and TRAIN.PRE_TRAIN (with MODEL_PATH) both name weights to '
               'start from: keep one of the two')
    if config.TRAIN.AMP == 'O2' and config.TRAIN.OPTIMIZER == 'lamb':
        refuse('TRAIN.OPTIMIZER', 'is lamb, which takes no float32 gradients of half-precision '
               'weights in Paddle: use TRAIN.AMP O1, or adamw')
    if config.TRAIN.PRE_TRAIN and not config.MODEL_PATH:
        refuse('TRAIN.PRE_TRAIN', 'is true, but MODEL_PATH names no weights: set it')
    if data.AUTO_AUGMENT:
        # Here, because it brings Pillow and Paddle, which nothing else of a configuration needs.
        from recipe.augment import auto_augment
        try:
            auto_augment(data.AUTO_AUGMENT, config.MODEL.IMAGE_SIZE, data.MEAN)
        except ValueError as error:
            refuse('DATA.AUTO_AUGMENT', str(error))
    mixup, distill = config.MIXUP, config.DISTILL
    if ((mixup.MIXUP_ALPHA or mixup.CUTMIX_ALPHA or mixup.CUTMIX_MINMAX)
            and config.TRAIN.TRAIN_BATCH_SIZE % 2):
        refuse('TRAIN.TRAIN_BATCH_SIZE', f'is {config.TRAIN.TRAIN_BATCH_SIZE}, an odd number, and '
               'MIXUP is on, which mixes each image with one from the other end of the batch: make '
               'it even')
    if mixup.CUTMIX_MINMAX:
        low, high = (int(config.MODEL.IMAGE_SIZE * share) for share in mixup.CUTMIX_MINMAX)
        if low >= high:
            refuse('MIXUP.CUTMIX_MINMAX', f'allows sides from {low} to below {high} pixels, which '
                   'are none: put the smaller number first, and the two further apart')
    if distill.TYPE != 'none' and not distill.WEIGHTS:
        refuse('DISTILL.TYPE', f'is {distill.TYPE}, but DISTILL.WEIGHTS names no teacher: set it '
               'to the weights of DISTILL.TEACHER, or to an export')
    for name, (low, high) in (('TRAIN_SCALE', data.TRAIN_SCALE), ('TRAIN_RATIO', data.TRAIN_RATIO)):
        if low > high:
            refuse(f'DATA.{name}', f'is ({low:g}, {high:g}): put the smaller number first')
