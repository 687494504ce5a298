"""ImageNet at full scale without ImageNet: time and memory of each step, speed of reading.

    python tests/full_scale.py steps FOLDER                   1,281,167 + 50,000 tiny images
    python tests/full_scale.py speed FOLDER --images PHOTOS   photographs in full size, repeated
    python tests/full_scale.py light --images PHOTOS          what --light changes, at several sizes

FOLDER is made, and removed at the end. `steps` needs 10 GB and 1.4 million inodes there, `speed`
what --count photographs need, four times. PHOTOS is any folder of images, such as lit_data/train;
the figures of docs/data.md are from photographs of ImageNet.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / 'tools'), str(ROOT / 'tests')]

# isort: split
from support.imagenet import write_archives

from data.decode import decode_bytes, read_image_file
from data.extract import reduced
from data.sources import find_images
from data.transforms import EvalTransform, TrainTransform

HEAD = '| step | time | processor time | largest process |\n| --- | --- | --- | --- |'


def measured(name, *arguments):
    """Run a command from the project's folder; print its times and peak memory."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT,
                               stdout=subprocess.PIPE)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f'{name}: failed')
    # ru_maxrss is that of the largest process, in KB: the command itself, or one of its workers.
    seconds, processor = time.monotonic() - started, usage.ru_utime + usage.ru_stime
    print(f'| {name} | {seconds:.0f} s | {processor:.0f} s | {usage.ru_maxrss / 1024:.0f} MB |',
          flush=True)
    return output


def steps(options):
    """Every step on archives with as many images as the published ones."""
    archives, out = options.folder / 'archives', options.folder / 'out'
    print(HEAD)
    measured('make the archives (not part of the project)', 'tests/support/imagenet.py', archives,
             '--train', options.train, '--val', options.val)
    prepare = ('tools/prepare.py', 'imagenet', '--archives', archives, '--out', out,
               '--unpublished')
    measured('prepare imagenet', *prepare)
    measured('the same command again', *prepare)
    measured('prepare subset, 1 %', 'tools/prepare.py', 'subset', out, 'one_percent', '--part',
             0.01)
    measured('prepare shards', 'tools/prepare.py', 'shards', out)
    measured('prepare verify', 'tools/prepare.py', 'verify', out, '--unpublished')


def photographs(folder):
    """The contents of the JPEGs in a folder."""
    paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in ('.jpeg', '.jpg'))
    if not paths:
        sys.exit(f'{folder}: has no .jpg or .jpeg')
    return [path.read_bytes() for path in paths]


def forget(paths):
    """Drop files from the page cache."""
    os.sync()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def speed(options):
    """Images and bytes per second of one process from each form of the data."""
    images = photographs(options.images)
    archives = options.folder / 'archives'
    write_archives(archives, per_class=options.count // 4, val=8, images=images)
    forms = []
    print(HEAD)
    for name, extra in (('', ()), ('light ', ('--light', options.light))):
        out = options.folder / (name.strip() or 'full')
        measured(f'prepare imagenet, {name.strip() or "full size"}', 'tools/prepare.py', 'imagenet',
                 '--archives', archives, '--out', out, '--unpublished', *extra)
        measured('prepare shards', 'tools/prepare.py', 'shards', out)
        forms += [(f'{name}folder, random', find_images(out / 'train'), True),
                  (f'{name}shards, random', find_images(out / 'shards' / 'train'), True),
                  (f'{name}shards, in order', find_images(out / 'shards' / 'train'), False)]
    print('| form | KB/image | read cold | read warm | decoded for training, cold | warm |')
    print('| --- | --- | --- | --- | --- | --- |')
    for name, found, is_random in forms:
        count = len(found.samples)
        order = np.random.default_rng(0).permutation(count) if is_random else range(count)
        files = (sorted(Path(found.samples.root).glob('*.tar')) if found.opener
                 else [path for path, _ in found.samples])
        cells = []
        for transform in (None, TrainTransform(224)):
            for cold in (True, False):
                if cold:
                    forget(files)
                some = order if transform is None else order[:options.decoded]
                cells.append(rate(found, some, transform))
        size = sum(os.path.getsize(file) for file in files) / count
        print(f'| {name} | {size / 1e3:.0f} | {" | ".join(cells)} |', flush=True)


def rate(found, order, transform):
    """Images/s and MB/s of reading samples, and with a transform also decoding them."""
    generator, size, started = np.random.default_rng(0), 0, time.perf_counter()
    for index in order:
        content = (found.opener(index) if found.opener
                   else read_image_file(found.samples[index][0]))
        size += len(content)
        if transform:
            transform(decode_bytes(content, ''), generator)
    seconds = time.perf_counter() - started
    return f'{len(order) / seconds:.0f}/s, {size / seconds / 1e6:.0f} MB/s'


def light(options):
    """What reducing changes: bytes, decoding time, pixels of the evaluation, sizes of crops."""
    images = photographs(options.images)
    pixels = EvalTransform(224, 'center_crop').pixels
    decoded = [decode_bytes(content, '') for content in images]
    right = [pixels(image).astype(float) for image in decoded]
    print(f'{len(images)} images, {sum(map(len, images)) / len(images) / 1e3:.0f} KB each')
    print('| shorter side, quality | size | decoding time | difference at 224, of 255 '
          '| crops smaller than 224 x 224 |')
    print('| --- | --- | --- | --- | --- |')
    whole = seconds_to_decode(images)
    for side, quality in ((None, 0), (512, 90), (384, 90), (320, 90), (256, 95), (256, 90),
                          (256, 75), (224, 90)):
        files = [content if side is None or min(image.size) <= side
                 else reduced(image, side, quality) for content, image in zip(images, decoded)]
        small = [decode_bytes(content, '') for content in files]
        differences = [np.abs(pixels(image).astype(float) - other).mean()
                       for image, other in zip(small, right)]
        print(f'| {f"{side}, {quality}" if side else "as published"} '
              f'| {100 * sum(map(len, files)) / sum(map(len, images)):.0f} % '
              f'| {100 * seconds_to_decode(files) / whole:.0f} % '
              f'| {np.mean(differences):.2f} '
              f'| {100 * enlarged(small):.0f} % |', flush=True)


def seconds_to_decode(files, repeats=3):
    """The shortest time to decode all files once."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        for content in files:
            decode_bytes(content, '')
        times.append(time.perf_counter() - started)
    return min(times)


def enlarged(images, scale=(0.08, 1.0), side=224):
    """Part of the random resized crops that have fewer pixels than side x side."""
    areas = np.random.default_rng(0).uniform(*scale, (1000, 1))
    return np.mean(areas * [image.width * image.height for image in images] < side * side)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function in (steps, speed, light):
        sub = commands.add_parser(function.__name__, help=function.__doc__)
        sub.set_defaults(run=function)
        if function is not light:
            sub.add_argument('folder', type=Path)
        if function is not steps:
            sub.add_argument('--images', type=Path, default=ROOT / 'lit_data' / 'train')
        if function is steps:
            sub.add_argument('--train', type=int, default=1281167)
            sub.add_argument('--val', type=int, default=50000)
        if function is speed:
            sub.add_argument('--count', type=int, default=5000)
            sub.add_argument('--decoded', type=int, default=1000)
            sub.add_argument('--light', type=int, default=256)
    options = parser.parse_args()
    try:
        if 'folder' in options:
            options.folder.mkdir(parents=True)
        options.run(options)
    finally:
        if 'folder' in options:
            shutil.rmtree(options.folder)


if __name__ == '__main__':
    main()
