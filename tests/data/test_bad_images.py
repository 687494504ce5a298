"""Catches unreadable images that are not reported or counted, and dead workers that are ignored."""

import contextlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import paddle
import pytest
from conftest import ROOT
from PIL import Image
from support import plain
from support.processes import children_of, gone, running, wait_until
from support.runs import PROGRAM, wait_for

import build
import zoo
from config import load_config
from data import DataError
from data.decode import ImageError, decode_image, name_bad_images, request_image_file
from data.loader import Loader
from data.sources import find_images
from data.transforms import EvalTransform, TrainTransform
from dataset import EpochBatchSampler, ImageDataset
from train import report_bad_images
from weights.files import write_weights

FINAL_LINE = re.compile(r'ImageNet final val acc is:(\d\.\d{4})')

# {file name of a bad image: a part of its error message}
REASONS = {
    'empty.jpg': 'the file is empty',
    'half.jpg': 'truncated',
    'text.jpg': 'not an image of a known format',
    'bomb.jpg': 'decompression bomb',
    'folder.jpg': 'not a regular file',
    'pipe.jpg': 'not a regular file',
    'device.jpg': 'not a regular file',
    'huge.jpg': 'too large an image file',
    'missing.jpg': 'No such file',
    '../outside.jpg': 'leads out of',
    'ab\x1b[31m.jpg': 'the file is empty',
}


def shown(name):
    return name.replace('\x1b', '\\x1b')


def png_header(width, height):
    """A PNG of a few bytes whose header claims any size."""
    def chunk(kind, data):
        return (struct.pack('>I', len(data)) + kind + data
                + struct.pack('>I', zlib.crc32(kind + data)))

    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0,
                                                              0, 0))
            + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b''))


def write_image(path, seed):
    pixels = np.random.RandomState(seed).randint(0, 256, (40, 50, 3)).astype('uint8')
    Image.fromarray(pixels).save(path, 'JPEG')


def write_bad_images(folder):
    write_image(folder / 'half.jpg', 0)
    os.truncate(folder / 'half.jpg', 900)
    (folder / 'empty.jpg').touch()
    (folder / 'ab\x1b[31m.jpg').touch()
    (folder / 'text.jpg').write_text('a text, and no image')
    (folder / 'bomb.jpg').write_bytes(png_header(60000, 60000))
    (folder / 'folder.jpg').mkdir()
    (folder / 'device.jpg').symlink_to('/dev/zero')
    os.mkfifo(folder / 'pipe.jpg')
    (folder / 'huge.jpg').touch()
    os.truncate(folder / 'huge.jpg', 1 << 40)
    write_image(folder.parent / 'outside.jpg', 0)


def write_list(path, names):
    """Write a list of names with the classes 0, 1, 2, 0, 1, 2, ..."""
    path.write_text(''.join(f'{name} {index % 3}\n' for index, name in enumerate(names)))


@pytest.fixture(scope='module')
def small_network():
    """The network of PROGRAM, in this process, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.MODELS, 'small', plain.NETWORKS['small'])
        yield


@pytest.fixture(scope='module')
def data(small_network, tmp_path_factory):
    """30 good and 11 bad images of three classes, in one folder, and lists for both parts."""
    folder = tmp_path_factory.mktemp('data')
    images = folder / 'images'
    images.mkdir()
    write_bad_images(images)
    good = [f'{index}.jpg' for index in range(30)]
    for index, name in enumerate(good):
        write_image(images / name, index)
    mixed = [*good[:17], *REASONS, *good[17:]]
    write_list(folder / 'mixed.txt', mixed)
    # The same with every bad image replaced: the next image of its class comes three lines later.
    replaced = list(mixed)
    for index in reversed(range(len(mixed))):
        if mixed[index] in REASONS:
            replaced[index] = replaced[index + 3]
    write_list(folder / 'replaced.txt', replaced)
    (folder / 'recipe.yaml').write_text(f'''
DATA_PATH:
    TRAIN_DATASET_PATH: {images}
    TRAIN_DATASET_LABEL_PATH: {folder}/mixed.txt
    VAL_DATASET_PATH: {images}
    VAL_DATASET_LABEL_PATH: {folder}/replaced.txt
MODEL: {{NAME: small, NUM_CLASSES: 3, IMAGE_SIZE: 32}}
TRAIN: {{TRAIN_BATCH_SIZE: 8, VAL_BATCH_SIZE: 8, TRAIN_NUM_WORKS: 2, VAL_NUM_WORKS: 2, LOG_EVERY: 2,
        VISUALDL: false, MAX_BAD_IMAGES: 0.5}}
SCHEDULER: {{NUM_EPOCHS: 2, WARMUP_EPOCHS: 1, BASE_LR: 1e-3}}
''')
    network = build.network(load_config(folder / 'recipe.yaml'))
    write_weights(folder / 'weights.pdparams', network.state_dict(), {})
    return folder


def run(*arguments, code=0):
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True,
                          timeout=120, cwd=ROOT)
    assert (done.returncode == code) if code is not None else done.returncode, \
        done.stdout + done.stderr
    return done


def launch(folder, *arguments, code=0):
    """Run a command as two processes."""
    return run('tools/launch.py', arguments[0], '--nproc', 2, '--logs', folder, '--',
               *arguments[1:], code=code)


def train(data, output, *overrides):
    return [PROGRAM, '-c', data / 'recipe.yaml', '-o', f'TRAIN.OUTPUT_DIR={output}',
            *overrides]


def validate(data, *options):
    return [PROGRAM, 'val', '-c', data / 'recipe.yaml', '--weights', data / 'weights.pdparams',
            *options, '-o', f'DATA_PATH.VAL_DATASET_LABEL_PATH={data}/mixed.txt']


def epochs_of(output):
    records = [json.loads(line) for line in (output / 'log.jsonl').read_text().splitlines()]
    return [record for record in records if record['event'] == 'epoch']


def check_every_bad_image_is_named_once(text):
    for name, reason in REASONS.items():
        pattern = f'skipped image [^\n]*/images/{re.escape(shown(name))}: [^\n]*{re.escape(reason)}'
        assert len(re.findall(pattern, text)) == 1, (name, text)
    assert text.count('skipped image') == len(REASONS)


# ---- one image

def test_every_kind_of_bad_image_is_an_image_error(data):
    for name, reason in REASONS.items():
        path = f'{data}/images/{name}'
        with pytest.raises(ImageError) as caught:
            decode_image(path, root=f'{data}/images')
        assert str(caught.value).startswith(f'{path}: ') and reason in str(caught.value)
        request_image_file(path, root=f'{data}/images')    # neither waits nor raises


def test_a_request_for_an_impossible_name_raises_nothing():
    request_image_file('/images/\0.jpg', root='/images')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_file_without_permission(tmp_path):
    write_image(tmp_path / 'a.jpg', 0)
    (tmp_path / 'a.jpg').chmod(0)
    with pytest.raises(ImageError, match='Permission denied'):
        decode_image(tmp_path / 'a.jpg')


def samples_of(data, name):
    return find_images(str(data / 'images'), data / name).samples


def images_of(data, name='mixed.txt', bad_images='replace', transform=None):
    return ImageDataset(samples_of(data, name), transform or TrainTransform(16), seed=3,
                        root=str(data / 'images'), bad_images=bad_images)


def test_a_bad_image_is_replaced_by_the_next_of_its_class(data):
    found, expected = images_of(data), images_of(data, 'replaced.txt', 'raise')
    for epoch in (0, 1):
        for index in range(len(found)):
            image, label = found[epoch, index]
            np.testing.assert_array_equal(image, expected[epoch, index][0])
            assert label == index % 3


def test_the_search_for_a_replacement_wraps_around(tmp_path):
    samples = [(f'{tmp_path}/{index}.jpg', index % 2) for index in range(6)]
    for path, _ in samples[:3]:
        write_image(path, int(path[-5]))
    images = ImageDataset(samples, EvalTransform(16), bad_images='replace')
    for index, (_, label) in enumerate(samples):
        first_good = {0: {0: 0, 2: 2, 4: 0}, 1: {1: 1, 3: 1, 5: 1}}[label][index]
        np.testing.assert_array_equal(images[index][0], images[first_good][0])
    os.remove(samples[1][0])
    with pytest.raises(ImageError, match='no image of class 1 can be read: .*/3.jpg: .*/5.jpg: '):
        images[3]


def test_in_validation_a_bad_image_is_blank_and_has_label_minus_one(data):
    image, label = images_of(data, bad_images='blank')[17]
    assert label == -1 and image.shape == (3, 16, 16) and not image.any()


@pytest.mark.parametrize('num_workers', [0, 1, 3])
def test_replacements_do_not_depend_on_the_number_of_workers(data, num_workers):
    def batches(num_workers, images):
        sampler = EpochBatchSampler(images, 4, 1, 0, shuffle=True, seed=1)
        loader = Loader(images, sampler, num_workers)
        return [batch for batch in loader], loader.bad_images

    expected, _ = batches(0, images_of(data, 'replaced.txt', 'raise'))
    found, bad = batches(num_workers, images_of(data))
    assert bad.keys() == {f'{data}/images/{name}' for name in REASONS}
    for one, other in zip(expected, found):
        np.testing.assert_array_equal(one[0].numpy(), other[0].numpy())
        np.testing.assert_array_equal(one[1].numpy(), other[1].numpy())
    assert len(found) == len(expected) == 11


# ---- training

def test_training_continues_and_names_skipped_images(data, tmp_path):
    process = run(*train(data, tmp_path / 'run'))
    check_every_bad_image_is_named_once(process.stdout)
    assert [epoch['bad_images'] for epoch in epochs_of(tmp_path / 'run')] == [11, 11]
    assert process.stdout.count('bad images in epoch 1: 11, each replaced') == 1
    assert FINAL_LINE.fullmatch(process.stdout.splitlines()[-1])

    # The reference: no workers, and a list in which the bad images are replaced already.
    by_hand = run(*train(data, tmp_path / 'by hand', 'TRAIN.TRAIN_NUM_WORKS=0',
                         f'DATA_PATH.TRAIN_DATASET_LABEL_PATH={data}/replaced.txt'))
    assert 'bad image' not in by_hand.stdout and 'skipped' not in by_hand.stdout
    assert [epoch['bad_images'] for epoch in epochs_of(tmp_path / 'by hand')] == [0, 0]
    one, other = (paddle.load(str(tmp_path / name / 'last.pdparams'), return_numpy=True)
                  for name in ('run', 'by hand'))
    for name in one:
        if not name.endswith('@@'):
            np.testing.assert_array_equal(one[name], other[name], name)


def test_bad_images_are_counted_over_all_ranks(data, tmp_path):
    process = launch(tmp_path / 'log', *train(data, tmp_path / 'run', 'TRAIN.TRAIN_BATCH_SIZE=4'))
    check_every_bad_image_is_named_once(process.stdout)
    assert [epoch['bad_images'] for epoch in epochs_of(tmp_path / 'run')] == [11, 11]


def test_more_than_the_configured_share_stops_every_process(data, tmp_path):
    overrides = ['TRAIN.TRAIN_BATCH_SIZE=21', 'TRAIN.MAX_BAD_IMAGES=0.2']
    process = launch(tmp_path / 'log', *train(data, tmp_path / 'run', *overrides), code=None)
    assert 'ImageNet' not in process.stdout
    for rank in (0, 1):
        last = (tmp_path / 'log' / f'workerlog.{rank}').read_text()
        assert 'error: 11 of 41 training images cannot be read, more than the share of 0.2' in last
        assert '; and 8 more' in last and 'TRAIN.MAX_BAD_IMAGES' in last

    process = run(*train(data, tmp_path / 'alone', 'TRAIN.MAX_BAD_IMAGES=0'), code=2)
    assert re.fullmatch(r'error: \d+ of 41 training images .*: .*/images/.*\n', process.stderr)
    assert not (tmp_path / 'alone' / 'last.pdparams').exists()


class Lines:
    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)


@pytest.mark.parametrize('bad, limit, stops', [
    (0, 0, False), (1, 0, True), (29, 0.29, False), (30, 0.29, True), (100, 1, False)])
def test_max_bad_images_is_a_share_of_the_list_and_counts_each_file_once(bad, limit, stops):
    class OneEpoch:
        dataset = range(100)
        bad_images = {f'{number:02}.jpg': f'{number:02}.jpg: bad' for number in range(bad)}

    config = load_config('config/lit_data.yaml', [f'TRAIN.MAX_BAD_IMAGES={limit}'])
    known, log = {}, Lines()
    for _ in range(2):
        if stops:
            with pytest.raises(DataError, match=f'^{bad} of 100 training images .*00.jpg: bad'):
                report_bad_images(OneEpoch, known, config, log)
        else:
            assert report_bad_images(OneEpoch, known, config, log) == bad
    assert len(log.said) == bad == len(set(log.said))


# ---- validation

@pytest.mark.parametrize('processes', [1, 2])
def test_validation_fails_and_names_all_bad_images(data, tmp_path, processes):
    if processes == 1:
        process = run(*validate(data), code=2)
        said = process.stderr
        assert len(said.splitlines()) == 1
    else:
        process = launch(tmp_path, *validate(data), code=None)
        said = (tmp_path / 'workerlog.1').read_text()
    assert 'error: 11 of 41 validation images cannot be read' in said and '--skip-bad' in said
    for name, reason in REASONS.items():
        assert re.search(f'/images/{re.escape(shown(name))}: [^;]*{re.escape(reason)}', said), name
    assert 'ImageNet final' not in process.stdout


def test_skip_bad_scores_the_others_and_prints_how_many_are_left_out(data, tmp_path):
    config = load_config(data / 'recipe.yaml')
    network, _ = build.trained_network(config, data / 'weights.pdparams')
    network.eval()
    # The reference: only the good images, as one batch.
    samples = [(path, label) for path, label in samples_of(data, 'mixed.txt')
               if path.removeprefix(f'{data}/images/') not in REASONS]
    images, labels = zip(*ImageDataset(samples, build.eval_transform(config)))
    logits = network(paddle.to_tensor(np.stack(images))).numpy()
    loss = (np.log(np.exp(logits).sum(1)) - logits[np.arange(30), labels]).mean()
    top1 = f'{(logits.argmax(1) == np.array(labels)).mean():.4f}'
    for process in (run(*validate(data, '--skip-bad')),
                    launch(tmp_path, *validate(data, '--skip-bad'))):
        *_, scores, left_out, final = process.stdout.strip().splitlines()
        assert FINAL_LINE.fullmatch(final).group(1) == top1
        assert f'loss: {loss:.4f}, 30 images' in scores
        assert left_out.startswith('left out 11 of 41 images: ')
        assert all(shown(name) in left_out for name in REASONS)


def test_skip_bad_without_a_readable_image_is_an_error(data, tmp_path):
    write_list(tmp_path / 'list.txt', ['empty.jpg', 'text.jpg'])
    process = run(*validate(data, '--skip-bad'),
                  f'DATA_PATH.VAL_DATASET_LABEL_PATH={tmp_path}/list.txt', code=2)
    assert '2 of 2 validation images' in process.stderr


def test_a_long_list_of_names_is_shortened():
    names = [f'{number}.jpg' for number in range(25)]
    assert name_bad_images(names).endswith('; 19.jpg; and 5 more')
    assert name_bad_images(names[:20]).endswith('; 19.jpg')


# ---- workers that die in a run

def kill_a_worker(run, rank):
    """Kill one worker of a rank after the other until the run ends; return the killed pids."""
    killed, deadline = set(), time.monotonic() + 90
    while run.poll() is None:
        assert time.monotonic() < deadline
        # A worker whose part of the epoch is done may die without an error.
        for worker in set(children_of(rank)[:1]) - killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)
        time.sleep(0.05)
    return killed


def test_a_killed_worker_ends_the_run(data, tmp_path):
    command = train(data, tmp_path / 'run', 'SCHEDULER.NUM_EPOCHS=10000')
    with running([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                 text=True) as process:
        wait_for(process, r'Epoch \[0/')
        killed = kill_a_worker(process, process.pid)
        last = process.stderr.read().strip().splitlines()[-1]
    assert process.returncode == 1
    said = re.fullmatch(r'failed: LoaderError: loader worker pid (\d+) died \(SIGKILL\).*', last)
    assert said and int(said[1]) in killed
    assert gone([process.pid, *killed])


def test_a_worker_killed_in_one_of_two_processes_ends_both(data, tmp_path):
    with open(tmp_path / 'stderr', 'w') as stderr, running(
            [sys.executable, 'tools/launch.py',
             *train(data, tmp_path / 'run', 'SCHEDULER.NUM_EPOCHS=10000'),
             '--nproc', '2', '--logs', tmp_path / 'log'],
            stdout=subprocess.DEVNULL, stderr=stderr) as process:
        log = tmp_path / 'run' / 'train.log'
        assert wait_until(lambda: log.exists() and 'Epoch [0/' in log.read_text(), 60)
        ranks = children_of(process.pid)
        killed = kill_a_worker(process, ranks[-1])
    assert process.returncode == 1
    last = (tmp_path / 'stderr').read_text().splitlines()[-1]
    said = re.match(r'failed: rank 1 .*: loader worker pid (\d+) died \(SIGKILL\)', last)
    assert said and int(said[1]) in killed, last
    assert gone([process.pid, *ranks, *killed])
