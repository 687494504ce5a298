"""Prepare data: ImageNet from the files people download, one's own images, CIFAR.

    python tools/prepare.py imagenet --archives DOWNLOADS --out DIR
    python tools/prepare.py verify DIR                     counts, labels, and every image
    python tools/prepare.py subset DIR NAME --classes 100  lists of some classes or images
    python tools/prepare.py shards DIR                     tar shards of its lists
    python tools/prepare.py folder DIR                     lists of one's own class folders
    python tools/prepare.py cifar10 ARCHIVE                checks the archive; as PNG files: --out
"""

from system import start

start.prepare_signals()    # before the slow imports
start.require('numpy', 'PIL', 'tqdm')

# isort: split
import argparse
import functools
import os
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from data import DataError, imagenet, splits
from data.checks import check_files
from data.cifar import Cifar, layout_of
from data.decode import read_image_file
from data.extract import Journal, Target, extract, works_of
from data.folders import class_folders
from data.images import Request
from data.shards import write_shards
from data.sources import find_images
from system import command, pool
from system.progress import Progress, amount

ROOT = Path(__file__).resolve().parent.parent
CLASS_NAMES = ROOT / 'config' / 'imagenet_classes.txt'
VALIDATE = 'val.sh config/t2t_vit_7_official.yaml --weights 71.7_T2T_ViT_7.pth.tar'
CIFAR_IMAGES = {'train': 50000, 'val': 10000}
# For the space that --light S needs at most: (S / SHORTER_SIDE) squared of the published bytes. The
# measured parts are smaller (docs/data.md).
SHORTER_SIDE = 350


class Failed(RuntimeError):
    """The command could not do its work, or what was checked is not right."""

    kind = 'failed'


# ---- imagenet

def imagenet_command(options):
    """Write ImageNet as class folders with lists, from its archives or folders as downloaded.

    DOWNLOADS holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
    ILSVRC2012_devkit_t12.tar.gz, or other tar archives with the same images (parts of a light set),
    or the extracted train/ and val/ (also below ILSVRC/Data/CLS-LOC). Nothing is unpacked twice:
    images are read within the archives, and folders on the same file system are linked.

    Writes train/CLASS/IMAGE, val/CLASS/IMAGE, train.txt, val.txt and classes.txt to DIR. If it is
    stopped, the same command goes on. The lists are written last: with them, the data is whole.
    """
    splits_wanted = ('val',) if options.val_only else ('train', 'val')
    found = imagenet.find_downloads(options.archives)
    require_complete(found, options, splits_wanted)
    checksums = [] if options.unpublished else require_sizes(found, splits_wanted)
    devkit = known_classes(found, options)
    for path in [*found.val_lists, os.path.join(options.out, 'val.txt')]:
        if os.path.isfile(path):
            order = imagenet.label_order(imagenet.read_labels(path), devkit)
            if order:
                print(f'{path}: {order}; it is not used')
    if options.val_only:
        found.archives.pop(imagenet.TRAIN, None)
    works = works_of(found, splits_wanted, lambda line: print(line, file=sys.stderr, flush=True))
    target = Target(options.out, devkit, splits_wanted, options.light, options.quality)
    journal = Journal(options.out, {
        'splits': list(splits_wanted), 'light': options.light, 'quality': options.quality,
        'archives': {name: sum(map(os.path.getsize, paths))
                     for name, paths in found.archives.items()}})
    require_space(works, target, journal)
    run_extraction(works, target, journal, options.workers, checksums)
    report(journal, devkit, splits_wanted, options)
    journal.close()
    if options.shards:
        pack(options.out, {split: os.path.join(options.out, f'{split}.txt')
                           for split in splits_wanted})
    else:
        print(next_command(options.out, splits_wanted))


def require_complete(found, options, splits_wanted):
    """Raise a DataError unless the downloads can hold what is wanted."""
    others = set(found.archives) - {imagenet.TRAIN, imagenet.VAL}
    for split, name in (('train', imagenet.TRAIN), ('val', imagenet.VAL)):
        if split in splits_wanted and not (name in found.archives or split in found.folders
                                           or others):
            hint = '; --val-only does without it' if split == 'train' else ''
            raise DataError(f'{options.archives}: lacks {name} (or a folder {split}, or .tar '
                            f'archives with its images){hint}')
    flat = imagenet.VAL in found.archives or (
        'val' in found.folders and not class_folders(found.folders['val']))
    if flat and not (found.devkit or found.solution or found.val_lists):
        raise DataError(f'{options.archives}: lacks {imagenet.DEVKIT}, which has the labels of the '
                        'validation images')


def require_sizes(found, splits_wanted):
    """Check the sizes of published archives; return the paths whose checksums are published."""
    paths = {name: pieces[0] for name, pieces in found.archives.items() if len(pieces) == 1}
    if found.devkit and os.path.isfile(found.devkit):
        paths[imagenet.DEVKIT] = found.devkit
    if 'train' not in splits_wanted:
        paths.pop(imagenet.TRAIN, None)
    for name in sorted(paths.keys() & imagenet.PUBLISHED.keys()):
        size, published = os.path.getsize(paths[name]), imagenet.PUBLISHED[name].size
        if published not in (None, size):
            raise DataError(f'{paths[name]}: has {size:,} bytes, the published file '
                            f'{published:,}; download the rest, or accept another archive with '
                            '--unpublished')
    return [paths[name] for name in sorted(paths.keys() & imagenet.PUBLISHED.keys())]


def known_classes(found, options):
    """The Devkit of the downloads; where it is missing, what is known without it."""
    if found.devkit:
        return imagenet.read_devkit(found.devkit)
    devkit = imagenet.Devkit(imagenet.read_classes(found.words or CLASS_NAMES))
    if found.solution:
        devkit.truth, devkit.source = imagenet.read_solution(found.solution), found.solution
    elif found.val_lists and 'val' in found.folders and not class_folders(found.folders['val']):
        names = list(devkit.classes)
        devkit.source = found.val_lists[0]
        for path, label in imagenet.read_labels(found.val_lists[0]):
            place = imagenet.place_of(path)
            if place and label < len(names):
                devkit.truth[place.stem] = names[label]
        print(f'{devkit.source}: its labels are taken for sorted WordNet ids; only the devkit '
              'could tell whether they are')
    return devkit


def require_space(works, target, journal):
    """Raise a DataError if the disk has less space or inodes free than will be written."""
    left = [work for work in works if work.name not in journal.done]
    needed = sum(work.size for work in left
                 if target.light or not work.is_linked(target.folder))
    if target.light:
        needed *= min(1.0, (target.light / SHORTER_SIDE) ** 2)
    free = shutil.disk_usage(target.folder).free
    if needed > free:
        raise DataError(f'{target.folder}: {amount(free)} free, up to {amount(needed)} needed; '
                        'free some, name another disk, or reduce the images with --light')
    disk = os.statvfs(target.folder)
    inodes = (sum(imagenet.IMAGES[split] for split in target.splits)
              if len(target.devkit.classes) == imagenet.CLASSES and left else 0)
    done = sum(done.images for done in journal.done.values())
    if disk.f_files and inodes - done > disk.f_favail:
        raise DataError(f'{target.folder}: the file system can take {disk.f_favail:,} more '
                        f'files, {inodes - done:,} are needed; name another disk')


def run_extraction(works, target, journal, workers, checksums):
    """Extract, with progress."""
    sizes = {work.name: work.size for work in works}
    left = sum(size for name, size in sizes.items() if name not in journal.done)
    if left and journal.done:
        print(f'going on: {sum(done.images for done in journal.done.values()):,} images are there')
    if set(map(os.path.basename, checksums)) - journal.md5.keys():
        print('the MD5 of the archives is computed at the same time')
    images = 0
    with Progress('extracting', left, 'B', lambda: f'{images:,} images') as progress:
        for done in extract(works, target, journal, workers, checksums):
            images += done.images
            progress.add(sizes[done.work])
    for path in checksums:
        name = os.path.basename(path)
        if journal.md5[name] != imagenet.PUBLISHED[name].md5:
            raise DataError(f'{path}: is damaged or not the published file (MD5 '
                            f'{journal.md5[name]}, published {imagenet.PUBLISHED[name].md5}); '
                            'download it again, or accept it with --unpublished')


def report(journal, devkit, splits_wanted, options):
    """Say what was unusual, compare the counts with the published ones, write the lists.

    Raises:
        DataError: if the counts are not the published ones, unless --unpublished.
    """
    results = journal.done.values()
    for lines, title in (([line for done in results for line in done.unusual],
                          'unusual images, which can be read'),
                         ([line for done in results for line in done.refused], 'refused'),
                         ([line for done in results for line in done.broken],
                          'images that cannot be decoded, left out')):
        if lines:
            print(f'{len(lines)} {title}:', *sorted(lines), sep='\n    ')
    skipped = sum(done.skipped for done in results)
    if skipped:
        print(f'{skipped} files that are no images of ImageNet, left out')
    differences = []
    for split in splits_wanted:
        counts = splits.count_images(os.path.join(options.out, split), devkit.classes)
        differences += count_differences(split, counts, devkit)
    if differences and not options.unpublished:
        raise DataError(f'{options.out}: {"; ".join(differences)}; no lists were written. Remove '
                        'it and start again with whole archives, or accept it with --unpublished')
    for split in splits_wanted:
        path = os.path.join(options.out, f'{split}.txt')
        count = splits.write_lines(path, splits.folder_lines(
            os.path.join(options.out, split), devkit.class_ids))
        print(f'{path}: {count:,} images')
    splits.write_lines(os.path.join(options.out, 'classes.txt'), devkit.classes.values())


def count_differences(split, counts, devkit):
    """Lines on how the numbers of images differ from the published ones."""
    total, expected = sum(counts.values()), imagenet.IMAGES[split]
    if total == expected and len(counts) == imagenet.CLASSES:
        return []
    per_class = devkit.counts if split == 'train' else dict.fromkeys(counts, 50)
    wrong = [f'{name} has {count} instead of {per_class[name]}' for name, count in counts.items()
             if name in per_class and count != per_class[name]]
    return [f'{split} has {total:,} images, published are {expected:,}'
            + (f' ({", ".join(wrong[:3])}{", ..." if len(wrong) > 3 else ""})' if wrong else '')]


# ---- verify

def verify_command(options):
    """Check prepared data: counts, labels, and that every image can be decoded.

    Reads DIR/train.txt and DIR/val.txt with the images in DIR/train and DIR/val (or in DIR); where
    a list is missing, the class folders. Ends with 1 if something is wrong.
    """
    devkit = (imagenet.read_devkit(options.devkit) if options.devkit
              else imagenet.Devkit(imagenet.read_classes(CLASS_NAMES)))
    problems, checked = [], 0
    for split in ('val',) if options.val_only else ('train', 'val'):
        root = os.path.join(options.folder, split)
        root = root if os.path.isdir(root) else options.folder
        list_file = os.path.join(options.folder, f'{split}.txt')
        if not os.path.isfile(list_file):
            if root == options.folder:
                continue
            print(f'{list_file}: is missing; the class folders are read')
            list_file = None
        samples = find_images(root, list_file, class_ids=devkit.class_ids).samples
        names = [(path[len(os.path.join(root, '')):], label) for path, label in samples]
        del samples
        print(f'{split}: {len(names):,} images of {len({label for _, label in names})} classes')
        where = list_file or root
        problems += [f'{where}: {line}' for line in list_problems(split, names, devkit, options)]
        problems += verify_images(split, root, names, options.workers)
        checked += 1
    if not checked:
        raise DataError(f'{options.folder}: has neither train.txt and val.txt nor the folders '
                        'train and val')
    if problems:
        raise Failed(f'{len(problems)} problems: ' + '; '.join(problems[:20])
                     + ('; ...' if len(problems) > 20 else ''))
    print('no problems')


def list_problems(split, names, devkit, options):
    """What is wrong with a list of images."""
    found = []
    if len({name for name, _ in names}) < len(names):
        found.append(f'{len(names) - len({name for name, _ in names})} images are named twice')
    order = imagenet.label_order(names, devkit)
    if order:
        found.append(order)
    places = [imagenet.place_of(name) for name, _ in names]
    if not options.unpublished and any(places):
        counts = dict.fromkeys(devkit.classes, 0)
        for place in filter(None, places):
            name = devkit.class_of(place)
            counts[name] = counts.get(name, 0) + 1
        found += count_differences(split, counts, devkit)
    return found


def verify_images(split, root, names, workers):
    """Decode all images; print what is unusual, return a line for each that can't be read."""
    size = 500
    tasks = [(check_files, root, [name for name, _ in names[first:first + size]])
             for first in range(0, len(names), size)]
    unusual, broken = [], []
    with Progress(f'decoding {split}', len(names), 'images') as progress:
        for count, some_unusual, some_broken in pool.run(tasks, workers):
            progress.add(count)
            unusual += some_unusual
            broken += some_broken
    if unusual:
        print(f'{len(unusual)} unusual images, which can be read:', *sorted(unusual), sep='\n    ')
    return sorted(broken)


# ---- lists

def subset_command(options):
    """Write lists of a part of a prepared data set; no image is copied.

    DIR/NAME_train.txt has some images of some classes, DIR/NAME_val.txt all validation images of
    these classes. The same seed gives the same lists everywhere, and a smaller subset lies within
    a larger one.
    """
    lists = {split: os.path.join(options.folder, f'{split}.txt') for split in ('train', 'val')}
    samples = {split: imagenet.read_labels(path) for split, path in lists.items()}
    labels = {label for _, label in samples['train']}
    classes = None
    if options.classes:
        classes = splits.choose_classes(labels, options.classes, options.seed)
    elif options.class_list:
        classes = listed_classes(options.class_list, labels)
    training = splits.subset(samples['train'], options.seed, classes, options.images, options.part,
                             options.renumber)
    validation = splits.subset(samples['val'], options.seed, classes, renumber=options.renumber)
    paths = {split: os.path.join(options.folder, f'{options.name}_{split}.txt') for split in lists}
    write_new(paths['train'], training, options.force)
    write_new(paths['val'], validation, options.force)
    count = len({line.rpartition(' ')[2] for line in training})
    print(next_command(options.folder, ('train', 'val'), paths,
                       count if options.renumber else None))


def listed_classes(path, labels):
    """Labels of a file with a WordNet id or class id on each line."""
    ids = {name: number for number, name in enumerate(imagenet.read_classes(CLASS_NAMES))}
    chosen = []
    for number, line in enumerate(Path(path).read_text(encoding='utf-8').splitlines(), 1):
        word = (line.split() or [''])[0]
        label = int(word) if word.isdecimal() else ids.get(word)
        if label not in labels:
            raise DataError(f'{path}:{number}: {word!r} is no class of the data')
        chosen.append(label)
    return chosen


def folder_command(options):
    """Write lists of a folder of class folders, split into training and validation.

    Each class is split by itself (stratified), at random with a fixed seed: DIR/train.txt,
    DIR/val.txt and DIR/classes.txt, the names in the order of their class ids. No image is moved.
    """
    if not os.path.isdir(options.folder):
        raise DataError(f'{options.folder}: no such folder')
    training, validation, names = splits.split_folder(options.folder, options.val, options.seed)
    paths = {split: os.path.join(options.folder, f'{split}.txt') for split in ('train', 'val')}
    write_new(paths['train'], training, options.force)
    write_new(paths['val'], validation, options.force)
    write_new(os.path.join(options.folder, 'classes.txt'), names, options.force)
    print(next_command(options.folder, ('train', 'val'), paths, len(names), 'finetune'))


def write_new(path, lines, force):
    """Write a file of lines; DataError if it is there already with other lines."""
    if os.path.exists(path) and not force:
        if Path(path).read_text(encoding='utf-8').splitlines() == lines:
            return
        raise DataError(f'{path}: is there already; replace it with --force')
    print(f'{path}: {splits.write_lines(path, lines):,} lines')


# ---- shards

def shards_command(options):
    """Pack the lists of a prepared data set into tar shards, DIR/shards/train and DIR/shards/val.

    With --name, the lists NAME_train.txt and NAME_val.txt. Training images are shuffled first, so
    that shards can be read from beginning to end. A split that is packed is left as it is, and one
    whose packing was interrupted goes on after its last whole shard.
    """
    prefix = f'{options.name}_' if options.name else ''
    lists = {split: os.path.join(options.folder, f'{prefix}{split}.txt')
             for split in ('train', 'val')}
    lists = {split: path for split, path in lists.items() if os.path.isfile(path)}
    if not lists:
        raise DataError(f'{options.folder}: has neither {prefix}train.txt nor {prefix}val.txt')
    pack(options.folder, lists, prefix)


def pack(folder, lists, prefix=''):
    """Write the shards of some lists; say how to train with them."""
    targets = {split: os.path.join(folder, 'shards', f'{prefix}{split}') for split in lists}
    for split, path in lists.items():
        if os.path.isdir(targets[split]) and os.listdir(targets[split]):
            print(f'{targets[split]}: is there')
            continue
        root = os.path.join(folder, split)
        samples = find_images(root if os.path.isdir(root) else folder, path).samples
        order = range(len(samples))
        if split == 'train':    # of NumPy's generators the one whose numbers never change
            order = np.random.RandomState(0).permutation(len(samples))
        count, paths = write_shards(_contents(samples, order, split), targets[split], split)
        print(f'{targets[split]}: {count:,} images in {len(paths)} shards')
    keys = {f'DATA_PATH.{split.upper()}_DATASET_{key}': value for split, path in targets.items()
            for key, value in (('PATH', shlex.quote(os.path.abspath(path))), ('LABEL_PATH', ''))}
    script = 'train.sh config/t2t_vit_7.yaml' if 'train' in lists else VALIDATE
    print(' \\\n    '.join([f'bash scripts/{script} -o',
                             *(f'{key}={value}' for key, value in keys.items())]))


def _contents(samples, order, split):
    """Yield (name, label, function that reads the file) of samples, with progress."""
    with Progress(f'packing {split}', len(order), 'images') as progress:
        for index in order:
            path, label = samples[int(index)]
            yield (os.path.relpath(path, samples.root), label,
                   functools.partial(read_image_file, path))
            progress.add(1)


# ---- cifar10

def cifar_command(options):
    """Check the archive (or folder) of CIFAR-10 or CIFAR-100, which training reads as it is.

    With --out DIR, also write the images as PNG files in class folders with lists, for other
    programs and for shards.
    """
    if layout_of(options.source) is None:
        raise DataError(f'{options.source}: is neither an archive of CIFAR nor its folder')
    for split in ('train', 'val'):
        found = Cifar().samples(Request(options.source, split=split))
        print(f'{split}: {len(found.samples):,} images of {len(found.classes)} classes')
        if len(found.samples) != CIFAR_IMAGES[split] and not options.unpublished:
            raise DataError(f'{options.source}: published are {CIFAR_IMAGES[split]:,} images in '
                            f'{split}; download it again, or accept it with --unpublished')
        if options.out:
            write_cifar(found, options.out, split)
    config = f't2t_vit_14_cifar{len(found.classes)}'
    if options.out:
        splits.write_lines(os.path.join(options.out, 'classes.txt'), found.classes)
        print(next_command(options.out, ('train', 'val'), config=config))
    else:
        both = [f'DATA_PATH.{part}_DATASET_PATH={shlex.quote(os.path.abspath(options.source))}'
                for part in ('TRAIN', 'VAL')]
        print(f'bash scripts/train.sh config/{config}.yaml -o {" ".join(both)}')


def write_cifar(found, folder, split):
    """Write the images of CIFAR as PNG files with a list."""
    names, lines = list(found.classes), []
    with Progress(f'writing {split}', len(found.samples), 'images') as progress:
        for number, (_, label) in enumerate(found.samples):
            name = f'{names[label]}/{number:05d}.png'
            path = os.path.join(folder, split, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Image.fromarray(found.opener(number)).save(path)
            lines.append(f'{name} {label}')
            progress.add(1)
    splits.write_lines(os.path.join(folder, f'{split}.txt'), lines)


# ---- all

def next_command(folder, splits_there, lists=None, classes=None, config='t2t_vit_7'):
    """The command that trains, or validates, with what was prepared."""
    keys = {}
    for split in splits_there:
        root = os.path.join(folder, split)
        keys[f'DATA_PATH.{split.upper()}_DATASET_PATH'] = root if os.path.isdir(root) else folder
        keys[f'DATA_PATH.{split.upper()}_DATASET_LABEL_PATH'] = (
            lists or {}).get(split, f'{root}.txt')
    words = [f'{key}={shlex.quote(os.path.abspath(path))}' for key, path in keys.items()]
    if classes:
        words.append(f'MODEL.NUM_CLASSES={classes}')
    script = f'train.sh config/{config}.yaml' if 'train' in splits_there else VALIDATE
    return ' \\\n    '.join([f'bash scripts/{script} -o', *words])


def parse(arguments):
    parser = command.parser(__doc__)
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    def add(name, run, help):
        return command.sub_command(commands, name, run, help)

    def add_workers(sub):
        sub.add_argument('--workers', type=positive, default=start.available_cores(), metavar='N',
                         help='processes (default: one for each core, %(default)s)')
        sub.add_argument('--val-only', action='store_true', help='only the validation images')
        add_unpublished(sub)

    sub = add('imagenet', imagenet_command, 'archives or folders of ImageNet to class folders')
    sub.add_argument('--archives', required=True, metavar='DOWNLOADS', help='what was downloaded')
    sub.add_argument('--out', required=True, metavar='DIR', help='where the data will be')
    sub.add_argument('--light', type=positive, metavar='SIZE',
                     help='reduce images so that the shorter side has at most SIZE pixels')
    sub.add_argument('--quality', type=quality, default=90, metavar='Q',
                     help='of the JPEGs that --light writes, 1 to 95 (default: %(default)s)')
    sub.add_argument('--shards', action='store_true',
                     help='then pack them into tar shards, which take as much space again')
    add_workers(sub)
    sub = add('verify', verify_command, 'check counts, labels and every image')
    sub.add_argument('folder', metavar='DIR')
    sub.add_argument('--devkit', metavar='FILE', help=f'{imagenet.DEVKIT} or its folder, to '
                     'compare the labels with')
    add_workers(sub)
    sub = add('subset', subset_command, 'lists of some classes or some images')
    sub.add_argument('folder', metavar='DIR')
    sub.add_argument('name', metavar='NAME', help='DIR/NAME_train.txt, DIR/NAME_val.txt')
    which = sub.add_mutually_exclusive_group()
    which.add_argument('--classes', type=positive, metavar='M', help='M classes at random')
    which.add_argument('--class-list', metavar='FILE', help='a WordNet id or class id on each line')
    which = sub.add_mutually_exclusive_group()
    which.add_argument('--images', type=positive, metavar='N', help='N images of each class')
    which.add_argument('--part', type=fraction, metavar='P', help='this part of each class: 0.01')
    sub.add_argument('--renumber', action='store_true', help='number the classes from 0')
    add_seed(sub)
    sub = add('shards', shards_command, 'pack a prepared data set into tar shards')
    sub.add_argument('folder', metavar='DIR')
    sub.add_argument('--name', metavar='NAME', help='of a subset: NAME_train.txt, NAME_val.txt')
    sub = add('folder', folder_command, 'lists of a folder of class folders')
    sub.add_argument('folder', metavar='DIR')
    sub.add_argument('--val', type=fraction, default=0.1, metavar='P',
                     help='part for validation (default: %(default)s)')
    add_seed(sub)
    sub = add('cifar10', cifar_command, 'check CIFAR, or write it as PNG files')
    sub.add_argument('source', metavar='ARCHIVE', help='cifar-10-python.tar.gz, or its folder')
    sub.add_argument('--out', metavar='DIR', help='where to write class folders and lists')
    add_unpublished(sub)
    return parser.parse_args(arguments)


def add_unpublished(sub):
    sub.add_argument('--unpublished', action='store_true',
                     help='accept other archives, sizes and counts than those published')


def add_seed(sub):
    sub.add_argument('--seed', type=int, default=0, metavar='N', help='default: %(default)s')
    sub.add_argument('--force', action='store_true', help='replace lists that are there')


def positive(text):
    if not text.isdecimal() or not 1 <= int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f'{text!r} is no number above 0')
    return int(text)


def quality(text):
    if positive(text) > 95:
        raise argparse.ArgumentTypeError('is at most 95')
    return int(text)


def fraction(text):
    try:
        if 0 < float(text) < 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f'{text!r} is no number between 0 and 1')


def main(arguments=None):
    options = parse(arguments)
    try:
        return options.run(options)
    except OSError as error:
        if not error.errno:
            raise
        name = error.filename2 or error.filename
        line = f'{name}: {error.strerror}' if name else error.strerror
        if options.run is imagenet_command:
            line += '; what is finished is kept, the same command goes on'
        raise Failed(line) from error


if __name__ == '__main__':
    command.run(main)
