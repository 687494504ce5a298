"""What reading a list of ImageNet's size takes: time, and memory of all processes together.

    python tests/million.py                    # 1,281,167 lines
    python tests/million.py --folders          # the same as empty files in class folders
    python tests/million.py --shards           # the same in tar shards without their index
    python tests/million.py --write FOLDER     # only write train.txt
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

from data.shards import BESIDE, write_shards  # noqa: E402
from data.sources import find_images  # noqa: E402
from dataset import EpochBatchSampler  # noqa: E402

IMAGES = 1_281_167


def imagenet_lines(images=IMAGES):
    """Yield lines of ImageNet's train.txt, with its WordNet ids and names of files."""
    ids = [line.split()[0] for line in open(ROOT / 'config' / 'imagenet_classes.txt')]
    for label, name in enumerate(ids):
        for number in range(images // len(ids) + (label < images % len(ids))):
            yield f'{name}/{name}_{13 * number + 2}.JPEG {label}\n'


def write_list(folder, images=IMAGES):
    """Write train.txt; returns its path."""
    path = Path(folder) / 'train.txt'
    with open(path, 'w') as file:
        file.writelines(imagenet_lines(images))
    return path


def write_folders(folder, images=IMAGES):
    """Write the images of the list as empty files."""
    for line in imagenet_lines(images):
        path = os.path.join(folder, line.split()[0])
        try:
            os.close(os.open(path, os.O_CREAT))
        except FileNotFoundError:
            os.mkdir(os.path.dirname(path))
            os.close(os.open(path, os.O_CREAT))


def write_shard_files(folder, images=IMAGES):
    """Write the images of the list as files of one byte into tar shards; drop their index."""
    lines = map(str.split, imagenet_lines(images))
    write_shards(((name, int(label), lambda: b'?') for name, label in lines), folder,
                 most_bytes=20 << 20)
    os.remove(f'{folder}/{BESIDE}')


def measure(root, list_file, ranks, workers):
    """Print the seconds of opening twice and of shuffling, and the memory of all processes."""
    for case in ('first', 'again'):
        started = time.perf_counter()
        samples = find_images(root, list_file).samples
        fingerprint = samples.fingerprint[:16]
        print(f'opened {case}: {time.perf_counter() - started:.2f} s ({len(samples):,} images, '
              f'fingerprint {fingerprint})', flush=True)
    sampler = EpochBatchSampler(samples, 1024, 1, 0, shuffle=True)
    sampler.set_epoch(3)
    started = time.perf_counter()
    next(iter(sampler))
    print(f'shuffled: {time.perf_counter() - started:.3f} s')
    del samples, sampler
    total = memory(ranks, workers, lambda: find_images(root, list_file).samples)
    print(f'{ranks} ranks of {workers} workers: {total - memory(ranks, workers, list):.0f} MB more '
          'than without images')


def memory(ranks, workers, open_samples):
    """MB of processes that open a data set, and of forks of each, after all have read a part."""
    reader, writer = os.pipe()

    def run(forks):
        samples = open_samples()
        for _ in range(forks):
            if os.fork() == 0:
                break
        for index in range(0, len(samples), 10):
            samples[index]
        os.write(writer, f'{os.getpid()}\n'.encode())
        signal.pause()

    for _ in range(ranks):
        if os.fork() == 0:
            run(workers)
    with os.fdopen(reader) as lines:
        pids = [int(next(lines)) for _ in range(ranks * (1 + workers))]
    kilobytes = 0
    for pid in pids:
        rollup = Path(f'/proc/{pid}/smaps_rollup').read_text()
        kilobytes += int(rollup.split('Pss:')[1].split()[0])    # shared memory is divided
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    os.close(writer)
    return kilobytes / 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--write', metavar='FOLDER', help='only write the list')
    parser.add_argument('--folders', action='store_true', help='class folders instead of a list')
    parser.add_argument('--shards', action='store_true', help='tar shards instead of a list')
    parser.add_argument('--images', type=int, default=IMAGES)
    parser.add_argument('--ranks', type=int, default=4)
    parser.add_argument('--workers', type=int, default=4, help='of each rank')
    options = parser.parse_args()
    if options.write:
        return print(write_list(options.write, options.images))
    with tempfile.TemporaryDirectory() as folder:
        os.environ['XDG_CACHE_HOME'] = f'{folder}/cache'
        os.mkdir(f'{folder}/train')
        if options.folders:
            write_folders(f'{folder}/train', options.images)
        elif options.shards:
            write_shard_files(f'{folder}/train', options.images)
        listed = not (options.folders or options.shards)
        list_file = write_list(folder, options.images) if listed else None
        time.sleep(3)    # folders and shards that were changed just now are not trusted
        measure(f'{folder}/train', list_file, options.ranks, options.workers)


if __name__ == '__main__':
    main()
