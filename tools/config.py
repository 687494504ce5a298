"""The configuration: typed sections, set by a YAML file and `-o SECTION.KEY=VALUE`.

    config = load_config('config/t2t_vit_7.yaml', ['TRAIN.TRAIN_BATCH_SIZE=64'])
    config.TRAIN.TRAIN_BATCH_SIZE

DATA_PATH, MODEL_PATH, TRAIN and SCHEDULER have the keys of t2t_vit_7.yaml in the Paddle
repository, with the same meaning, and all defaults are those of its code: that file works
unchanged. `BASE: other.yaml` inherits from another file. Relative paths start at the project's
folder.

To add a key, declare it here and use it; system/settings.py reads and checks it.
`python tools/config.py > docs/configuration.md` writes the page of all keys.
"""

from dataclasses import dataclass, field

from system.settings import (
    ROOT,
    ConfigError,
    Settings,
    default_of,
    find,
    keys_of,
    load,
    option,
    project_path,
    table,
)
from system.settings import save as save_config

__all__ = ['ROOT', 'ConfigError', 'project_path', 'save_config']


@dataclass
class DataPath:
    TRAIN_DATASET_PATH: str = option(
        'lit_data/train', 'folder of the training images or of tar shards; or CIFAR-10 or '
        'CIFAR-100, its folder or .tar.gz', used='build.train_loader', free=True)
    TRAIN_DATASET_LABEL_PATH: str = option(
        '', 'list of training images, `path label` a line; empty: one folder a class, or files '
        'named CLASS_7.png', used='build.train_loader', free=True)
    VAL_DATASET_PATH: str = option(
        'lit_data/val', 'folder of the validation images; CIFAR: the same again',
        used='build.eval_loader', free=True)
    VAL_DATASET_LABEL_PATH: str = option(
        '', 'list of validation images, as for training', used='build.eval_loader', free=True)


@dataclass
class Model:
    NAME: str = option('t2t_vit_7', 'network, a name of `zoo.MODELS`', used='build.network')
    NUM_CLASSES: int = option(1000, 'width of the head', low=1, used='build.network')
    IMAGE_SIZE: int = option(
        224, 'side of the square input in pixels; T2T-ViT needs a multiple of 16, or of its '
        'strides\' product', low=1, used='build.network')
    TOKENS_TYPE: str = option(
        '', 'token transformer; empty: the one that belongs to NAME',
        choices=('', 'performer', 'transformer', 'convolution'), used='build.network')
    TOKEN_DIM: int = option(
        64, 'width of T2T-ViT\'s tokens between the soft splits', low=2, used='build.network')
    SOFT_SPLITS: tuple = option(
        (), 'soft splits of T2T-ViT, a row of kernel, stride, padding each, such as [[3, 1, 1], '
        '[3, 2, 1], [3, 2, 1]]; empty: those that belong to NAME',
        of='triples', used='build.network')
    FROZEN: bool = option(
        False, 'keep T2T-ViT\'s pos_embed and its Performers\' w as initialised: true is the '
        'official model, false the Paddle repository\'s', used='build.network')
    NORM_EPSILON: float = option(
        0.0, 'what LayerNorm adds to the variance; 0: the network\'s own, 1e-5 for T2T-ViT and '
        '1e-6 for ViT and PiT. T2T-ViT weights that were trained in PaddleViT need 1e-6',
        low=0, below=1, used='build.network')
    DROP_RATE: float = option(0.0, 'dropout of tokens', low=0, below=1, used='build.network')
    DROP_PATH_RATE: float = option(
        0.0, 'stochastic depth of the last block', low=0, below=1, used='build.network')
    ADAPT: bool = option(
        False, 'take MODEL_PATH of another image size (pos_embed is interpolated) and, in '
        'training, number of classes (the head starts afresh)', used='build.load_start', free=True)
    PRETRAINED: str = option(
        '', 'weights file, or `published:NAME`, that training starts from, also of another image '
        'size and number of classes; not read again on resuming',
        used='build.load_start', free=True)
    CACHE: str = option(
        '', 'folder of weights that were downloaded (`published:NAME`); empty: $T2T_CACHE, else '
        't2t_vit in $XDG_CACHE_HOME or ~/.cache', used='build.weights_file', free=True)
    FREEZE: tuple = option(
        (), 'parts that don\'t train, by the beginning of their parameters\' names '
        '([tokens_to_token, blocks.0]); backbone: all but the heads. Their dropout stays as '
        'configured', of='names', used='build.freeze_parts')


@dataclass
class Train:
    PRE_TRAIN: bool = option(
        False, 'start from the weights at MODEL_PATH; not read again on resuming',
        used='build.load_start', free=True)
    TRAIN_BATCH_SIZE: int = option(
        256, 'training images a step on each card', low=1, used='build.train_loader')
    TRAIN_NUM_WORKS: int = option(
        8, 'loader processes a card in training', low=0, used='build.train_loader', free=True)
    VAL_BATCH_SIZE: int = option(
        64, 'validation images a step on each card', low=1, used='build.eval_loader', free=True)
    VAL_NUM_WORKS: int = option(
        4, 'loader processes a card in validation; none for tools/val.py on one core of a CPU',
        low=0, used='build.eval_loader', free=True)
    SPLIT_BATCH: bool = option(
        False, 'the processes share TRAIN_BATCH_SIZE, VAL_BATCH_SIZE and the loader processes: '
        'each takes an equal part; scripts/train.sh sets it on a CPU', used='build.batch_size')
    LOADER_TIMEOUT: float = option(
        300.0, 'seconds that a loader process may take for one image before the run saves and '
        'ends; 0: no limit', low=0, used='build.train_loader', free=True)
    SEED: int = option(
        0, 'seed of weights, order, augmentation and dropout',
        low=0, high=2 ** 31 - 1, used='build.train_loader')
    LABEL_SMOOTHING: float = option(
        0.0, 'share of the target spread over all classes', low=0, below=1, used='build.loss')
    DROP_LAST: bool = option(
        False, 'leave out an epoch\'s last batch where it is not full, as the official recipe does',
        used='build.train_loader')
    REPEATED_AUGMENT: int = option(
        1, 'differently augmented copies of each image, side by side over the cards; an epoch '
        'keeps its length and sees fewer images. DeiT has 3', low=1, used='build.train_loader')
    CLIP_NORM: float = option(
        1.0, 'largest global norm of the gradient; 0: no clipping', low=0, used='build.stepper')
    DECAY_ALL: bool = option(
        True, 'decay every parameter; false leaves out 1-D parameters, biases, class tokens and '
        'position tables, as the official recipes do', used='build.optimizer')
    OPTIMIZER: str = option(
        'adamw', 'sgd: with MOMENTUM', choices=('adamw', 'sgd'), used='build.optimizer')
    MOMENTUM: float = option(0.9, 'momentum of sgd', low=0, below=1, used='build.optimizer')
    AMP: str = option(
        'none', 'mixed precision, on GPUs: O1 computes matrix products in AMP_DTYPE; O2 nearly '
        'all, with AMP_DTYPE weights and float32 copies of them; not run here',
        choices=('none', 'O1', 'O2'), used='build.precision')
    AMP_DTYPE: str = option(
        'float16', 'half precision of AMP; float16 comes with a dynamic loss scale',
        choices=('float16', 'bfloat16'), used='build.precision')
    ACCUMULATE: int = option(
        1, 'batches whose gradients make up one optimizer step, as if they were one batch; the '
        'last group of an epoch may have fewer. Steps of the log, LOG_EVERY and SAVE_STEPS count '
        'batches, and wait for the end of an optimizer step', low=1, used='build.images_a_step')
    MAX_BAD_IMAGES: float = option(
        0.01, 'largest share of training images that may be unreadable: they are replaced by the '
        'next of their class', low=0, high=1, used='train', free=True)
    VAL_EVERY: int = option(
        1, 'epochs between validations; the last epoch is always validated', low=1, used='train')
    LOG_EVERY: int = option(100, 'steps between log lines', low=1, used='train', free=True)
    OUTPUT_DIR: str = option(
        '', 'folder of the run; empty: output/NAME_OF_THE_YAML_FILE', used='train', free=True)
    RESUME: str = option(
        'false', 'auto: go on from the newest whole checkpoint in OUTPUT_DIR, if there is one; a '
        'checkpoint\'s path; false: start afresh', used='train', free=True)
    SAVE_STEPS: int = option(
        0, 'steps between checkpoints inside an epoch; 0: by time only',
        low=0, used='train', free=True)
    SAVE_MINUTES: float = option(
        10.0, 'minutes between checkpoints inside an epoch; 0: none',
        low=0, used='train', free=True)
    KEEP_CHECKPOINTS: int = option(2, 'newest checkpoints to keep', low=1, used='train', free=True)
    TIME_LIMIT_HOURS: float = option(
        0.0, 'save and stop before the job has run this long; 0: no limit',
        low=0, used='train', free=True)
    MAX_BAD_STEPS: int = option(
        10, 'steps in a row with a gradient that is not finite, each of them skipped, before the '
        'run stops', low=1, used='build.stepper', free=True)
    VISUALDL: bool = option(
        True, 'write curves and pictures for VisualDL into OUTPUT_DIR/visualdl', used='train',
        free=True)
    VISUALDL_IMAGES: int = option(
        8, 'images of each validation that VisualDL shows with their predictions; 0: none',
        low=0, high=100, used='train', free=True)
    VISUALDL_HISTOGRAMS: bool = option(
        False, 'show histograms of all weights in VisualDL, one at each validation', used='train',
        free=True)


@dataclass
class Data:
    SHARD_WINDOW: int = option(
        0, 'tar shards that are shuffled together: the shards are shuffled, then the images within '
        'each so many of them, which are read ahead as a whole (network disks); 0: all images '
        'together', low=0, used='build.train_loader')
    DECODER: str = option(
        'exact', 'how training images are decoded and resized; exact: all pixels, as torchvision '
        'does, with Pillow; fast: of a JPEG only what a random crop needs, with simplejpeg and '
        'OpenCV, which also moves pixels for AUTO_AUGMENT, less than 2 of 255 from exact in the '
        'mean. Validation is always exact',
        choices=('exact', 'fast'), former={'pillow': 'exact', 'opencv': 'exact'},
        used='build.train_loader')
    EVAL_TRANSFORM: str = option(
        'squash', 'center_crop: shorter side to IMAGE_SIZE / EVAL_CROP_RATIO, centre crop (the '
        '71.7 figures); squash: both sides to IMAGE_SIZE (the 71.56 figure)',
        choices=('center_crop', 'squash'), used='build.eval_transform')
    EVAL_CROP_RATIO: float = option(
        0.9, 'share of the resized image that center_crop keeps',
        above=0, high=1, used='build.eval_transform')
    EVAL_INTERPOLATION: str = option(
        'auto', 'filter of the evaluation resize; auto: bicubic for center_crop, bilinear for '
        'squash', choices=('auto', 'bilinear', 'bicubic'), used='build.eval_transform')
    TRAIN_CROP: str = option(
        'resized', 'resized: a random part of the image, see TRAIN_SCALE; padded: the whole '
        'image, moved by up to an eighth of IMAGE_SIZE over black, as in the official transfer to '
        'CIFAR', choices=('resized', 'padded'), used='build.train_transform')
    TRAIN_SCALE: tuple = option(
        (0.05, 1.0), 'share of the image\'s area in a training crop',
        above=0, high=1, used='build.train_transform')
    TRAIN_RATIO: tuple = option(
        (3 / 4, 4 / 3), 'width / height of a training crop', above=0, used='build.train_transform')
    TRAIN_INTERPOLATION: str = option(
        'bilinear', 'filter of the training resize; random: one of the two for each image',
        choices=('bilinear', 'bicubic', 'random'), used='build.train_transform')
    FLIP: float = option(
        0.0, 'probability of a horizontal flip in training',
        low=0, high=1, used='build.train_transform')
    AUTO_AUGMENT: str = option(
        '', 'RandAugment in timm\'s language, rand-m9-mstd0.5-inc1 in the official recipe; or '
        'original, the policy of AutoAugment; empty: none', used='build.train_transform')
    COLOR_JITTER: float = option(
        0.0, 'largest change of brightness, contrast and saturation, 0.4 in timm; inactive while '
        'AUTO_AUGMENT is on, as in the official recipe', low=0, used='build.train_transform')
    ERASE_PROBABILITY: float = option(
        0.0, 'share of training images that random erasing changes',
        low=0, high=1, used='build.random_erasing')
    MEAN: tuple = option(
        (0.485, 0.456, 0.406), 'mean of the channels, of values in 0 to 1',
        used='build.eval_transform')
    STD: tuple = option(
        (0.229, 0.224, 0.225), 'standard deviation of the channels',
        above=0, used='build.eval_transform')
    CLASS_NAMES: str = option(
        '', 'file of class names, one a line; empty: folder names, or config/imagenet_classes.txt '
        'for 1000 classes', used='build.class_names', free=True)


@dataclass
class Scheduler:
    NUM_EPOCHS: int = option(300, 'epochs of training', low=1, used='build.schedule')
    LAST_EPOCHS: int = option(
        -1, 'epoch of the schedule before the first one: -1 starts the schedule at 0; 0 starts it '
        'at 1, as the Paddle repository does', low=-1, used='build.schedule')
    WEIGHT_DECAY: float = option(
        0.3, 'weight decay: decoupled in adamw, coupled (L2) in sgd',
        low=0, used='build.optimizer')
    BASE_LR: float = option(0.003, 'highest learning rate', above=0, used='build.schedule')
    LR_BATCH: int = option(
        0, 'images a step, of all cards, that the rates are meant for: another number scales them '
        'in proportion; 0: they are as they stand', low=0, used='build.rate_scale')
    USE_WARMUP: bool = option(
        True, 'follow the schedule; false keeps BASE_LR throughout', used='build.schedule')
    WARMUP_EPOCHS: float = option(
        3, 'epochs from WARMUP_START_LR up to BASE_LR, linearly', low=0, used='build.schedule')
    WARMUP_START_LR: float = option(
        1e-6, 'rate at the schedule\'s epoch 0', low=0, used='build.schedule')
    END_LR: float = option(5e-4, 'rate at the end', low=0, used='build.schedule')
    SCALE_END_LR: bool = option(
        True, 'BACKBONE_LR_SCALE and LAYER_DECAY apply to END_LR as well; false: END_LR is the end '
        'of every parameter\'s rate, as with PyTorch\'s parameter groups and in the official '
        'transfer', used='build.schedule')
    RATES: tuple = option(
        (), 'constant rates, a row of first epoch and rate each, such as [[0, 3e-4], [15, 2e-4]], '
        'in place of warm-up and decay; empty: none', of='pairs', used='build.schedule')
    DECAY: str = option(
        'cosine', 'way from BASE_LR down to END_LR',
        choices=('cosine', 'linear'), used='build.schedule')
    DECAY_FROM: str = option(
        'warmup', 'where the way down is counted from: the end of the warm-up or, as the official '
        'recipe has it, epoch 0', choices=('warmup', 'start'), used='build.schedule')
    COOLDOWN_EPOCHS: float = option(
        0, 'the last of NUM_EPOCHS, which stay at END_LR', low=0, used='build.schedule')
    UPDATE: str = option(
        'epoch', 'how often the rate moves', choices=('epoch', 'step'), used='build.stepper')
    BACKBONE_LR_SCALE: float = option(
        1.0, 'factor on the rate of all but the heads; the official transfer recipe has 0.01',
        above=0, used='build.optimizer')
    LAYER_DECAY: float = option(
        1.0, 'factor on the rate from each block to the one below it; the heads have 1',
        above=0, high=1, used='build.optimizer')


@dataclass
class Mixup:
    MIXUP_ALPHA: float = option(
        0.0, 'alpha of mixup\'s Beta distribution, 0.8 in the official recipe; 0: no mixup. With '
        'mixed images the log\'s acc is against the label of an image\'s larger part',
        low=0, used='build.mixup')
    CUTMIX_ALPHA: float = option(
        0.0, 'alpha of CutMix\'s Beta distribution, 1.0 in the official recipe; 0: no CutMix',
        low=0, used='build.mixup')
    PROBABILITY: float = option(
        1.0, 'probability of mixing at all', low=0, high=1, used='build.mixup')


@dataclass
class Ema:
    DECAY: float = option(
        0.0, 'decay of the weights\' moving average, 0.99996 in the official recipe; 0: none. It '
        'is validated and saved (best_ema.pdparams, last_ema.pdparams) beside the weights',
        low=0, below=1, used='build.ema')
    WARMUP: bool = option(
        True, 'decay no more than (1 + t) / (10 + t) in optimizer step t, so that the averages of '
        'short runs work; false is the official recipe', used='build.ema')


@dataclass
class Distill:
    TYPE: str = option(
        'none', 'learning from a teacher (DeiT): hard, its best class, for networks with two '
        'heads; soft, its distribution, for any',
        choices=('none', 'hard', 'soft'), used='build.loss')
    TEACHER: str = option(
        '', 'network that teaches, a name of `zoo.MODELS`, for the student\'s pixels at '
        'MODEL.IMAGE_SIZE; empty: WEIGHTS is an export', used='build.teacher')
    WEIGHTS: str = option(
        '', 'the teacher\'s weights file; or an export of tools/export.py, or a Paddle program of '
        'any network, .json or .pdmodel, that takes normalised images and gives logits',
        used='build.teacher')
    ALPHA: float = option(0.5, 'the teacher\'s part of the loss', low=0, high=1, used='build.loss')
    TAU: float = option(1.0, 'temperature of soft distillation', above=0, used='build.loss')


@dataclass
class Config(Settings):
    DATA_PATH: DataPath = field(default_factory=DataPath)
    MODEL_PATH: str = option(
        '', 'weights file, or `published:NAME`: what training starts from with PRE_TRAIN, and what '
        'validation and prediction use', used='build.weights_path', free=True)
    MODEL: Model = field(default_factory=Model)
    TRAIN: Train = field(default_factory=Train)
    DATA: Data = field(default_factory=Data)
    SCHEDULER: Scheduler = field(default_factory=Scheduler)
    MIXUP: Mixup = field(default_factory=Mixup)
    EMA: Ema = field(default_factory=Ema)
    DISTILL: Distill = field(default_factory=Distill)

    def split_batch(self, processes):
        """Return the images a step of each process if `processes` share TRAIN_BATCH_SIZE.

        None if they cannot: the parts must be equal, and even if MIXUP mixes pairs of images.
        """
        part, rest = divmod(self.TRAIN.TRAIN_BATCH_SIZE, processes)
        odd = part % 2 and (self.MIXUP.MIXUP_ALPHA or self.MIXUP.CUTMIX_ALPHA)
        return None if rest or odd else part


# Removed keys with the value that matches the current behaviour. Files and checkpoints may still
# contain them with this value.
REMOVED = {
    'MODEL.ATTN_DROP_RATE': 0.0, 'TRAIN.CLIP_MODE': 'norm', 'TRAIN.NESTEROV': False,
    'TRAIN.BETAS': [0.9, 0.999], 'TRAIN.EPSILON': 1e-8, 'TRAIN.AMP_ON_CPU': 'refuse',
    'DATA.ERASE_MODE': 'pixel', 'DATA.ERASE_COUNT': 1, 'MIXUP.CUTMIX_MINMAX': [],
    'MIXUP.SWITCH_PROBABILITY': 0.5, 'MIXUP.MODE': 'batch', 'MIXUP.OFF_EPOCH': 0,
    'DATA.SHARED_MEMORY': True,
}
KEYS = keys_of(Config)
DEFAULTS = {**REMOVED, **{name: default_of(key) for name, key in KEYS.items()}}
FORMER_VALUES = {name: key.metadata['former'] for name, key in KEYS.items()
                 if key.metadata['former']}
FREE_KEYS = {name for name, key in KEYS.items() if key.metadata['free']} | {'DATA.SHARED_MEMORY'}

# What commands use without -c: training and validation the drawn data, which comes with the
# project; commands that take anyone's images the weights that know photographs.
DRAWINGS, PHOTOGRAPHS = 'config/lit_data.yaml', 'config/tiny_imagenet_50.yaml'

PAGE = """# Configuration

`-c FILE` names a YAML file, `-o SECTION.KEY=VALUE ...` overrides it, and `BASE: other.yaml` in a
file starts from another one. A wrong file is refused in one line with the file, the line and the
nearest known key. Relative paths start at the project's folder. The defaults are what the Paddle
repository's code does.

A resumed run may have other values of the keys that are *free*, because they do not change its
result; those that are *fixed* need `--force`. "Used in" is the module of `tools/`, and the
function, where a key takes effect. `python tools/config.py` prints this page.

"""


def add_arguments(parser, default=DRAWINGS):
    """Add the options `-c/--config` and `-o/--override` to an argparse parser."""
    parser.add_argument('-c', '--config', default=default, metavar='FILE',
                        help=f'configuration (default: {default})')
    parser.add_argument('-o', '--override', nargs='+', action='extend', default=[],
                        metavar='SECTION.KEY=VALUE', help='values over those of the file')


def load_config(path, overrides=()):
    """Read and check a configuration; return a Config.

    Args:
        path: YAML file, relative to the current folder or to the project's.
        overrides: strings `SECTION.KEY=VALUE`; the value is parsed as YAML.

    Raises:
        ConfigError: for an unreadable file, an unknown key, a wrong type, a value out of range, or
            values that contradict each other.
    """
    path = find(path)
    config = load(Config, path, overrides, REMOVED)
    if not config.TRAIN.OUTPUT_DIR:
        config.TRAIN.OUTPUT_DIR = f'output/{path.stem}'
    _check_together(config)
    return config


def _check_together(config):
    """Check combinations of values.

    Raises:
        ConfigError: names file, line and key.
    """
    def refuse(name, reason):
        raise config.refusal(name, reason)

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
    if config.TRAIN.PRE_TRAIN and not config.MODEL_PATH:
        refuse('TRAIN.PRE_TRAIN', 'is true, but MODEL_PATH names no weights: set it')
    mixup, distill = config.MIXUP, config.DISTILL
    if ((mixup.MIXUP_ALPHA or mixup.CUTMIX_ALPHA)
            and config.TRAIN.TRAIN_BATCH_SIZE % 2):
        refuse('TRAIN.TRAIN_BATCH_SIZE', f'is {config.TRAIN.TRAIN_BATCH_SIZE}, an odd number, and '
               'MIXUP is on, which mixes each image with one from the other end of the batch: make '
               'it even')
    if distill.TYPE != 'none' and not distill.WEIGHTS:
        refuse('DISTILL.TYPE', f'is {distill.TYPE}, but DISTILL.WEIGHTS names no teacher: set it '
               'to the weights of DISTILL.TEACHER, or to an export')
    for name, (low, high) in (('TRAIN_SCALE', data.TRAIN_SCALE), ('TRAIN_RATIO', data.TRAIN_RATIO)):
        if low > high:
            refuse(f'DATA.{name}', f'is ({low:g}, {high:g}): put the smaller number first')


if __name__ == '__main__':
    print(PAGE + table(Config))
