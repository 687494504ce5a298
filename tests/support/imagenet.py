"""ImageNet's archives in their real structure, with other images.

    python tests/support/imagenet.py FOLDER --classes 1000 --train 1281167 --val 50000
"""

import argparse
import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

WORDNET = ('n01440764', 'n01443537', 'n01484850', 'n01491361', 'n01494475', 'n01496331')
# As in the devkit, the numbers follow another order than the WordNet ids.
STRIDE = 7


def jpegs(count, size=(24, 20), seed=0):
    """Distinct small JPEGs."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        coarse = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, 'JPEG')
        found.append(file.getvalue())
    return found


def add(archive, name, content=b'', **fields):
    """Add a member to a tarfile; `fields` are those of its TarInfo."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for key, value in fields.items():
        setattr(entry, key, value)
    archive.addfile(entry, io.BytesIO(content))


def tar(members):
    """The bytes of a tar archive of (name, content, fields ...)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        for name, content, *fields in members:
            add(archive, name, content, **(fields[0] if fields else {}))
    return file.getvalue()


def numbers_of(names):
    """{WordNet id: ILSVRC2012_ID}, in another order than the sorted ids'."""
    count = len(names)
    step = next(step for step in range(STRIDE, STRIDE + count + 1) if np.gcd(step, count) == 1)
    return {name: (number * step + 1) % count + 1 for number, name in enumerate(sorted(names))}


def write_devkit(path, counts, truth):
    """Write a devkit.

    Args:
        counts: {WordNet id: training images}.
        truth: the WordNet id of each validation image, in their order.
    """
    from scipy.io import savemat
    numbers = numbers_of(counts)
    rows = [(number, name, f'words of {name}, other words', 'gloss', 0, np.zeros(0), 0,
             counts[name]) for name, number in sorted(numbers.items(), key=lambda item: item[1])]
    # An inner node of the hierarchy, as there are after the classes.
    rows.append((len(rows) + 1, 'n00001740', 'entity', 'gloss', len(counts), np.zeros(0), 3, 0))
    fields = ('ILSVRC2012_ID', 'WNID', 'words', 'gloss', 'num_children', 'children',
              'wordnet_height', 'num_train_images')
    synsets = np.array(rows, dtype=[(field, object) for field in fields])
    meta = io.BytesIO()
    savemat(meta, {'synsets': synsets.reshape(-1, 1)})
    labels = ''.join(f'{numbers[name]}\n' for name in truth).encode()
    content = tar([('ILSVRC2012_devkit_t12/readme.txt', b'text'),
                   ('ILSVRC2012_devkit_t12/data/meta.mat', meta.getvalue()),
                   ('ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt', labels)])
    with open(path, 'wb') as file:
        file.write(gzip.compress(content, mtime=0))


def write_archives(folder, names=WORDNET[:4], per_class=6, val=8, images=None, replace=None):
    """Write the three archives; returns {'train/CLASS/IMAGE' or 'val/CLASS/IMAGE': content}.

    Args:
        names: WordNet ids.
        per_class: training images of each class, or {WordNet id: number}.
        val: validation images; their classes take turns.
        images: contents to repeat.
        replace: {file name: content} of some images.
    """
    folder, images, replace = Path(folder), images or jpegs(7), replace or {}
    folder.mkdir(parents=True, exist_ok=True)
    counts = per_class if isinstance(per_class, dict) else dict.fromkeys(names, per_class)
    # Not in the order of names, as in the published archive.
    order = sorted(names, reverse=True)
    truth = [order[number * 3 % len(order)] for number in range(val)]
    expected, number = {}, 0
    with tarfile.open(folder / 'ILSVRC2012_img_train.tar', 'w') as outer:
        for name in order:
            members = []
            for index in range(counts[name]):
                file = f'{name}_{index * 17 % (counts[name] * 19)}.JPEG'
                content = replace.get(file, images[number % len(images)])
                members.append((file, content))
                expected[f'train/{name}/{file}'] = content
                number += 1
            add(outer, f'{name}.tar', tar(members))
    with tarfile.open(folder / 'ILSVRC2012_img_val.tar', 'w') as archive:
        for index, name in enumerate(truth, 1):
            file = f'ILSVRC2012_val_{index:08d}.JPEG'
            content = replace.get(file, images[(number + index) % len(images)])
            add(archive, file, content)
            expected[f'val/{name}/{file}'] = content
    write_devkit(folder / 'ILSVRC2012_devkit_t12.tar.gz', counts, truth)
    return expected


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--classes', type=int, default=1000)
    parser.add_argument('--train', type=int, default=1281167)
    parser.add_argument('--val', type=int, default=50000)
    parser.add_argument('--images', type=Path, help='folder of images to repeat')
    options = parser.parse_args()
    images = None
    if options.images:
        images = [path.read_bytes() for path in sorted(options.images.rglob('*.JPEG'))]
    lines = (Path(__file__).resolve().parents[2] / 'config' / 'imagenet_classes.txt').read_text()
    names = [line.split()[0] for line in lines.splitlines()][:options.classes]
    each, more = divmod(options.train, len(names))
    counts = {name: each + (number < more) for number, name in enumerate(names)}
    expected = write_archives(options.folder, names, counts, options.val,
                              images or jpegs(300, (16, 16)))
    print(f'{len(expected)} images in {options.folder}')


if __name__ == '__main__':
    main()
