"""Published weights by name: where they are offered, and the accuracy that was published.

    path = local_file('published:t2t_vit_7')    # downloaded on first use

`published:NAME` may stand wherever a weights file is named. Files are kept in a cache folder: the
given one, else $T2T_CACHE, else t2t_vit in $XDG_CACHE_HOME or ~/.cache.
"""

import difflib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from weights.download import fetch
from weights.files import WeightsError, read_weights

PREFIX = 'published:'
ALL = 'published:all'
_OFFICIAL = 'https://github.com/yitu-opensource/T2T-ViT/releases/download/main/'


@dataclass(frozen=True)
class Published:
    """A published weights file.

    Attributes:
        model: its network, a name of zoo.MODELS.
        address: where its authors offer it.
        top1: published top-1 accuracy in %.
        config: file in config/ with the image size, the classes and the evaluation of that figure.
    """

    model: str
    address: str
    top1: float
    config: str


PUBLISHED = {
    't2t_vit_7': Published('t2t_vit_7', _OFFICIAL + '71.7_T2T_ViT_7.pth.tar', 71.7,
                           't2t_vit_7_official.yaml'),
    't2t_vit_10': Published('t2t_vit_10', _OFFICIAL + '75.2_T2T_ViT_10.pth.tar', 75.2,
                            't2t_vit_10.yaml'),
    't2t_vit_12': Published('t2t_vit_12', _OFFICIAL + '76.5_T2T_ViT_12.pth.tar', 76.5,
                            't2t_vit_12.yaml'),
    't2t_vit_14': Published('t2t_vit_14', _OFFICIAL + '81.5_T2T_ViT_14.pth.tar', 81.5,
                            't2t_vit_14.yaml'),
    't2t_vit_19': Published('t2t_vit_19', _OFFICIAL + '81.9_T2T_ViT_19.pth.tar', 81.9,
                            't2t_vit_19.yaml'),
    't2t_vit_24': Published('t2t_vit_24', _OFFICIAL + '82.3_T2T_ViT_24.pth.tar', 82.3,
                            't2t_vit_24.yaml'),
    't2t_vit_t_14': Published('t2t_vit_t_14', _OFFICIAL + '81.7_T2T_ViTt_14.pth.tar', 81.7,
                              't2t_vit_t_14.yaml'),
    't2t_vit_t_19': Published('t2t_vit_t_19', _OFFICIAL + '82.4_T2T_ViTt_19.pth.tar', 82.4,
                              't2t_vit_t_19.yaml'),
    't2t_vit_t_24': Published('t2t_vit_t_24', _OFFICIAL + '82.6_T2T_ViTt_24.pth.tar', 82.6,
                              't2t_vit_t_24.yaml'),
    't2t_vit_14_384': Published('t2t_vit_14', _OFFICIAL + '83.3_T2T_ViT_14.pth.tar', 83.3,
                                't2t_vit_14_384.yaml'),
    't2t_vit_24_token_labeling': Published('t2t_vit_24', _OFFICIAL + '84.2_T2T_ViT_24.pth.tar',
                                           84.2, 't2t_vit_24.yaml'),
    # Reproductions in Paddle.
    't2t_vit_7_paddle': Published(
        't2t_vit_7', 'https://github.com/zhl98/T2T_paddle/raw/HEAD/output/t2t_vit_7.pdparams',
        71.56, 't2t_vit_7.yaml'),
    'pit_ti': Published(
        'pit_ti', 'https://github.com/hatimwen/paddle_pit/raw/HEAD/output/Best_PiT.pdparams',
        73.01, 'pit_ti.yaml'),
    # The official transfer to CIFAR; "cirfar" is spelt so there.
    't2t_vit_14_cifar10': Published('t2t_vit_14', _OFFICIAL + 'cifar10_t2t-vit_14_98.3.pth', 98.3,
                                    't2t_vit_14_cifar10.yaml'),
    't2t_vit_14_cifar100': Published('t2t_vit_14', _OFFICIAL + 'cirfar100_t2t-vit-14_88.4.pth',
                                     88.4, 't2t_vit_14_cifar100.yaml'),
    't2t_vit_19_cifar10': Published('t2t_vit_19', _OFFICIAL + 'cifar10_t2t-vit_19_98.4.pth', 98.4,
                                    't2t_vit_19_cifar10.yaml'),
    't2t_vit_19_cifar100': Published('t2t_vit_19', _OFFICIAL + 'cifar100_t2t-vit-19_89.0.pth',
                                     89.0, 't2t_vit_19_cifar100.yaml'),
}


def entry(weights):
    """Return the Published of `published:NAME`, or None for a path.

    Raises:
        WeightsError: for an unknown name; the message suggests the nearest known one.
    """
    weights = str(weights)
    if not weights.startswith(PREFIX):
        return None
    name = weights[len(PREFIX):]
    if name not in PUBLISHED:
        nearest = difflib.get_close_matches(name, PUBLISHED, n=1)
        hint = f'did you mean {nearest[0]}?' if nearest else (
            'python tools/convert.py --list shows all')
        raise WeightsError(f'{weights}: no published weights of this name, {hint}')
    return PUBLISHED[name]


def cache_folder(given=None):
    """Return the folder of downloaded files, a pathlib.Path."""
    folder = given or os.environ.get('T2T_CACHE')
    if folder:
        return Path(folder).expanduser()
    # The XDG specification ignores relative paths.
    base = os.environ.get('XDG_CACHE_HOME', '')
    return (Path(base) if os.path.isabs(base) else Path.home() / '.cache') / 't2t_vit'


def cached_file(published, cache=None):
    """Return the path of a Published in the cache; the file may not exist yet."""
    return cache_folder(cache) / published.address.rpartition('/')[2]


def local_file(weights, cache=None, report=None):
    """Return the path of a weights file: a path unchanged, `published:NAME` in the cache.

    Args:
        cache: folder of downloaded files.
        report: called with each line for people; None: print on stderr.

    Raises:
        WeightsError: for an unknown name, or a file that cannot be downloaded or has changed.
    """
    published = entry(weights)
    if published is None:
        return weights
    path = cached_file(published, cache)
    fetch(published.address, path, read_weights, report or _print)
    return path


def _print(line):
    print(line, file=sys.stderr, flush=True)
