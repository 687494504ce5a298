"""Catches loaders that hang or leak processes or memory, and batches that depend on workers."""

import contextlib
import ctypes
import faulthandler
import gc
import itertools
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import ROOT
from PIL import Image
from support.pictures import write_jpegs
from support.processes import children_of, gone, state_of_process, wait_until

from data.decode import ImageError
from data.loader import Loader, LoaderError
from data.transforms import EvalTransform, TrainTransform
from data.workers import Workers
from dataset import EpochBatchSampler, ImageDataset
from system import command, start


def workers():
    return children_of(os.getpid())


@pytest.fixture
def samples(tmp_path):
    return write_jpegs(tmp_path, 18)


def loader_of(samples, num_workers, rank=0, world=1, following=lambda epoch: None, **options):
    images = ImageDataset(samples, TrainTransform(24), seed=7)
    sampler = EpochBatchSampler(images, 4, world, rank, shuffle=True, seed=7, **options)
    return Loader(images, sampler, num_workers, following=following)


def epoch_of(loader, epoch, start_batch=0):
    loader.batch_sampler.set_epoch(epoch, start_batch)
    return [(images.numpy(), labels.numpy()) for images, labels in loader]


def by_label(batches):
    return {int(label): image.tobytes()
            for images, labels in batches for image, label in zip(images, labels)}


# ---- batches

@pytest.mark.parametrize('num_workers', [0, 2])
def test_batches(samples, num_workers):
    loader = loader_of(samples, num_workers)
    assert len(loader) == 5
    for number, (images, labels) in enumerate(loader):
        size = 4 if number < 4 else 2
        assert isinstance(images, paddle.Tensor) and isinstance(labels, paddle.Tensor)
        assert tuple(images.shape) == (size, 3, 24, 24) and images.dtype == paddle.uint8
        assert tuple(labels.shape) == (size,) and labels.dtype == paddle.int64
    assert number == 4


def cached(path):
    """Return whether the system has a small file in memory; this does not read it."""
    size = os.path.getsize(path)
    resident = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as pages:
        address = np.frombuffer(pages, np.uint8).ctypes.data
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), size, resident) == 0
    return all(page & 1 for page in resident.raw)


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere nothing is requested')
def test_without_workers_the_next_files_are_read_while_a_batch_is_used(samples):
    loader = loader_of(samples, 0)
    _, following, later, *_ = ([samples[index][0] for _, index in keys]
                               for keys in loader.batch_sampler)
    for path in following + later:
        with open(path, 'rb') as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if any(map(cached, following + later)):
        pytest.skip('the file system of temporary files is in memory')
    with contextlib.closing(iter(loader)) as batches:
        next(batches)
        assert wait_until(lambda: all(map(cached, following)))
        assert not any(map(cached, later))


def test_batches_do_not_depend_on_the_workers(samples):
    for epoch in (0, 1):
        expected = epoch_of(loader_of(samples, 0), epoch)
        for num_workers in (1, 2, 7):
            found = epoch_of(loader_of(samples, num_workers), epoch)
            for one, other in zip(expected, found):
                np.testing.assert_array_equal(one[0], other[0])
                np.testing.assert_array_equal(one[1], other[1])
            assert len(found) == len(expected)


def test_batches_stay_valid_after_the_next_ones(samples):
    """The shared memory of a batch is reused only after the batch was copied."""
    expected = by_label(epoch_of(loader_of(samples, 0), 0))
    kept = list(loader_of(samples, 1))
    assert by_label([(images.numpy(), labels.numpy()) for images, labels in kept]) == expected


def test_samples_do_not_depend_on_the_ranks(samples):
    one = by_label(epoch_of(loader_of(samples, 0), 3))
    two = by_label(epoch_of(loader_of(samples, 2, 0, 2), 3) + epoch_of(loader_of(samples, 2, 1, 2),
                                                                       3))
    assert one == two and len(one) == 18


def test_epochs_differ_and_are_reproducible(samples):
    loader = loader_of(samples, 2)
    first, second, again = (by_label(epoch_of(loader, epoch)) for epoch in (0, 1, 0))
    assert first == again
    assert all(first[label] != second[label] for label in range(18))


@pytest.mark.parametrize('num_workers', [0, 2])
def test_repetitions_of_an_image_reach_the_workers(samples, num_workers):
    loader = loader_of(samples, num_workers, repeats=3)
    keys = [key for batch in loader.batch_sampler for key in batch]
    images = np.concatenate([images for images, _ in epoch_of(loader, 0)])
    for key, image in zip(keys, images):
        np.testing.assert_array_equal(image, loader.dataset[key][0])
    assert len({image.tobytes() for image in images}) == len(keys) == 18


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('decoder', ['exact', 'fast'])
def test_batches_are_the_samples_and_stay_so(samples, num_workers, decoder):
    """Tensors may share the memory that a batch was read into, so all are kept to the end."""
    loader = loader_of(samples, num_workers)
    loader.dataset.decoder = decoder
    keys = [key for batch in loader.batch_sampler for key in batch]
    batches = list(loader)
    gc.collect()
    for key, image in zip(keys, np.concatenate([images.numpy() for images, _ in batches])):
        np.testing.assert_array_equal(image, loader.dataset[key][0])


@pytest.mark.parametrize('num_workers', [0, 2])
def test_resume_in_the_middle(samples, num_workers):
    loader = loader_of(samples, num_workers)
    whole = epoch_of(loader, 1)
    rest = epoch_of(loader, 1, start_batch=3)
    assert [labels.tolist() for _, labels in rest] == [b[1].tolist() for b in whole[3:]]
    np.testing.assert_array_equal(rest[0][0], whole[3][0])
    assert epoch_of(loader, 1, start_batch=5) == []


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('decoder', ['exact', 'fast'])
def test_a_transform_with_a_wrong_result_is_an_error(samples, num_workers, decoder):
    class OfFloats(TrainTransform):
        def __call__(self, image, rng):
            return super().__call__(image, rng) / 2    # dtype still says uint8

    class OfFewRows(TrainTransform):
        def __call__(self, image, rng):
            return super().__call__(image, rng)[:, :-1]    # image_size still says 24

    for transform, error in ((OfFloats(24), 'TypeError'), (OfFewRows(24), 'ValueError')):
        loader = loader_of(samples, num_workers)
        loader.dataset.transform, loader.dataset.decoder = transform, decoder
        with pytest.raises(LoaderError, match=rf'failed on .*\.jpg: {error}'):
            list(loader)


# ---- workers that live over epochs

def up_to(last):
    return lambda epoch: epoch + 1 if epoch < last else None


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_workers_live_until_the_last_epoch(samples):
    loader, single = loader_of(samples, 2, following=up_to(2)), loader_of(samples, 0)
    pids = set()
    for epoch in range(3):
        assert_equal(epoch_of(loader, epoch), epoch_of(single, epoch))
        if epoch < 2:
            pids.add(tuple(workers()))
    assert len(pids) == 1 and len(pids.pop()) == 2
    assert workers() == []


@pytest.mark.parametrize('following, name', [(lambda epoch: epoch, '0'), (lambda epoch: 1, '1')])
def test_the_next_epoch_is_read_before_it_begins(samples, tmp_path, following, name):
    """The same epoch again, as in validation, and the next one, as in training."""
    loader, log = loader_of(samples, 2, following=following), tmp_path / 'log'

    def logged(key, *fetched, read=loader.dataset.read):
        with log.open('a') as file:
            file.write(f'{key[0]}\n')
        return read(key, *fetched)

    loader.dataset.read = logged
    epoch_of(loader, 0)
    seen = len(samples) if name == '0' else 0
    assert wait_until(lambda: log.read_text().split().count(name) > seen)
    assert_equal(epoch_of(loader, int(name)), epoch_of(loader_of(samples, 0), int(name)))


def test_another_epoch_than_the_following_one(samples):
    """Going back, skipping, and resuming in the middle."""
    loader, single = loader_of(samples, 2, following=up_to(9)), loader_of(samples, 0)
    epoch_of(loader, 3)
    before = workers()
    for place in ((3, 0), (7, 0), (8, 2), (8, 2), (9, 5)):
        assert_equal(epoch_of(loader, *place), epoch_of(single, *place))
    assert not set(before) & set(workers())


def test_workers_end_with_their_loader(samples):
    loader = loader_of(samples, 2, following=up_to(9))
    epoch_of(loader, 0)
    assert len(workers()) == 2
    del loader
    gc.collect()
    assert workers() == []


def test_a_worker_that_dies_between_epochs_is_named(samples):
    loader = loader_of(samples, 2, following=up_to(9))
    epoch_of(loader, 0)
    pids = workers()    # which may have read four of the five next batches
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    either = '|'.join(map(str, pids))
    with pytest.raises(LoaderError, match=rf'pid ({either}) died \(SIGKILL\) reading .*\.jpg'):
        epoch_of(loader, 1)
    assert workers() == []
    assert_equal(epoch_of(loader, 1), epoch_of(loader_of(samples, 0), 1))


# ---- processes, memory, signals

def test_batches_take_a_bounded_part_of_the_memory(samples, caplog):
    images = ImageDataset(samples, TrainTransform(24))
    batch = 4 * 3 * 24 * 24
    for memory, started, capacity in ((100 * batch, 3, 6), (4.5 * batch, 3, 4), (3 * batch, 3, 3),
                                      (2 * batch, 2, 2), (0, 1, 1)):
        caplog.clear()
        with contextlib.closing(Workers(images, 3, 4, memory)) as pool:
            assert (len(pool.workers), pool.capacity) == (started, capacity)
            assert pool.images.nbytes == capacity * batch
            for index in range(capacity):
                pool.begin([(0, index)])
            for index in range(capacity):
                while (ready := pool.wait(0)) is None:
                    pass
                assert ready[2].tolist() == [index]
        assert [f'{started} instead of 3 loader workers' in line for line in caplog.messages] == (
            [True] if started < 3 else [])


def test_free_memory(tmp_path):
    """The machine's, or what is left of a limit of the process's group or of one above it."""
    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert start.free_memory(tmp_path) == float('inf')
    assert 0 < start.free_memory() <= os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    write('proc/meminfo', 'MemTotal:       64000 kB\nMemAvailable:   32000 kB\n')
    assert start.free_memory(tmp_path) == 32000 * 1024
    write('proc/self/cgroup', '0::/job/step\n')
    write('sys/fs/cgroup/job/step/memory.max', 'max\n')
    assert start.free_memory(tmp_path) == 32000 * 1024
    write('sys/fs/cgroup/job/memory.max', '9000\n')
    write('sys/fs/cgroup/job/memory.stat', 'anon 1000\nfile 7000\nshmem 500\n')
    assert start.free_memory(tmp_path) == 7500

def test_ending_an_iteration_early_ends_the_workers(samples):
    for _ in loader_of(samples, 2):
        assert len(workers()) == 2
        break
    assert workers() == []
    assert len(epoch_of(loader_of(samples, 2), 0)) == 5
    assert workers() == []


def test_descriptors_and_memory_are_released(samples):
    def left():
        gc.collect()
        maps = Path('/proc/self/maps').read_text()
        return len(os.listdir('/proc/self/fd')), maps.count('/dev/zero (deleted)')

    loader = loader_of(samples, 3)
    epoch_of(loader, 0)
    before = left()
    for epoch in range(3):
        epoch_of(loader, epoch)
        next(iter(loader))
    assert left() == before


def test_dev_shm_is_not_used(samples):
    """Training and validation together: no process has a file there.

    A semaphore of 32 bytes, such as the lock of tqdm's bars, is none.
    """
    with contextlib.closing(iter(loader_of(samples, 2))) as training, \
            contextlib.closing(iter(loader_of(samples, 2))) as validation:
        for _ in zip(training, validation):
            assert len(workers()) == 4
            for pid in [os.getpid(), *workers()]:
                maps = Path(f'/proc/{pid}/maps').read_text()
                assert '/dev/shm/' not in maps.replace('/dev/shm/sem.', '')


def test_workers_run_beside_a_dev_shm_of_one_page(samples):
    """As in a container with --shm-size 4k, measured where user namespaces are allowed."""
    script = 'mount -t tmpfs -o size=4k tmpfs /dev/shm && exec "$@"'
    inside = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c', script, 'sh']
    if not shutil.which('unshare') or subprocess.run([*inside, 'true'], capture_output=True
                                                     ).returncode:
        pytest.skip('no file system can be mounted here')
    done = subprocess.run(
        [*inside, sys.executable, '-c', ONE_EPOCH, str(Path(samples[0][0]).parent)],
        capture_output=True, text=True, cwd=ROOT / 'tools', timeout=60)
    assert done.stdout.split() == ['18'], done.stderr


COMMON = """
import os, sys
from data.loader import Loader
from data.transforms import TrainTransform
from dataset import EpochBatchSampler, ImageDataset
"""
ONE_EPOCH = COMMON + """
images = ImageDataset([(f'{sys.argv[1]}/{n}.jpg', n) for n in range(18)], TrainTransform(24))
print(sum(len(labels) for _, labels in Loader(images, EpochBatchSampler(images, 4, 1, 0), 2)))
"""
WAITING = COMMON + """
import time
images = ImageDataset([(f'{sys.argv[1]}/{n % 18}.jpg', n) for n in range(4000)], TrainTransform(24))
for batch in Loader(images, EpochBatchSampler(images, 4, 1, 0), 2):
    with open(f'/proc/self/task/{os.getpid()}/children') as children:
        print(children.read(), flush=True)
    time.sleep(60)
"""


def test_workers_do_not_collect_inherited_garbage(samples, tmp_path):
    parent = os.getpid()

    class Garbage:
        def __init__(self):
            self.itself = self

        def __del__(self):
            if os.getpid() != parent:
                (tmp_path / 'collected in a worker').touch()

    class CollectingTransform(TrainTransform):
        def __call__(self, image, rng):
            gc.collect()
            return super().__call__(image, rng)

    loader = loader_of(samples, 2)
    loader.dataset.transform = CollectingTransform(24)
    gc.disable()
    Garbage()
    batches = epoch_of(loader, 0)
    gc.enable()
    assert len(batches) == 5 and gc.get_freeze_count() == 0
    assert not (tmp_path / 'collected in a worker').exists()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_workers_ignore_stop_signals(samples, number):
    seen = 0
    for batch, (images, _) in enumerate(loader_of(samples * 10, 2)):
        seen += len(images)
        if batch == 1:
            for worker in workers():
                os.kill(worker, number)
    assert seen == 180


@pytest.mark.skipif(sys.platform != 'linux', reason='needs PR_SET_PDEATHSIG of Linux')
def test_workers_end_with_their_parent_also_while_stopped(samples):
    parent = subprocess.Popen([sys.executable, '-c', WAITING, str(Path(samples[0][0]).parent)],
                              stdout=subprocess.PIPE, text=True, cwd=ROOT / 'tools')
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(map(state_of_process, pids))
    os.kill(pids[0], signal.SIGSTOP)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(pids)


# ---- errors

@pytest.mark.parametrize('num_workers', [0, 2])
def test_a_faulty_image_is_named(samples, tmp_path, num_workers):
    path = tmp_path / 'kätzchen\udcff.jpg'    # no valid UTF-8, as old archives hold
    path.write_bytes(b'no image')
    samples[5] = (str(path), 5)
    loader = loader_of(samples, num_workers)
    for _ in range(2):
        with pytest.raises(ImageError) as caught:
            epoch_of(loader, 0)
        assert str(caught.value).startswith(f'{path}: not an image of a known format')
        assert workers() == []


class OnOneImage(EvalTransform):
    """Calls `action` before it transforms the image that is 77 pixels wide."""

    def __init__(self, action):
        super().__init__(16, 'squash')
        self.action = action

    def __call__(self, image, rng):
        if image.width == 77:
            self.action()
        return super().__call__(image, rng)


@pytest.fixture
def loader(tmp_path):
    """A function that makes a loader of 40 images and calls `action` for image 22.

    That is before its file is opened, or, by OnOneImage, between decoding and transforming it.
    """
    for index in range(40):
        size = (77 if index == 22 else 40, 30)
        Image.new('RGB', size, (index, 0, 0)).save(tmp_path / f'{index}.jpg')
    samples = [(f'{tmp_path}/{index}.jpg', index) for index in range(40)]

    def make(action, num_workers=2, timeout=0, opening=False):
        def opener(index):
            if index == 22:
                action()
            return (tmp_path / f'{index}.jpg').read_bytes()

        images = (ImageDataset(samples, EvalTransform(16, 'squash'), opener=opener) if opening
                  else ImageDataset(samples, OnOneImage(action), bad_images='replace'))
        return Loader(images, EpochBatchSampler(images, 4, 1, 0), num_workers, timeout)

    return make


def raise_error():
    raise IndexError('a bug\nof two lines')


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def crash():
    faulthandler.disable()    # which would print the worker's stack
    os.kill(os.getpid(), signal.SIGSEGV)


def stop_itself():
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize('opening', [False, True], ids=['decoding', 'opening'])
@pytest.mark.parametrize('action, said', [
    (kill_itself, r'loader worker pid (\d+) died \(SIGKILL\) reading .*/22\.jpg; memory may have'),
    (crash, r'loader worker pid (\d+) died \(SIGSEGV\) reading .*/22\.jpg$'),
    (lambda: os._exit(7), r'loader worker pid (\d+) died \(exit code 7\) reading .*/22\.jpg$'),
    (raise_error, r'a loader worker \(pid (\d+)\) failed on .*/22\.jpg: IndexError: a bug'),
    (stop_itself, r'loader worker pid (\d+) has not read .*/22\.jpg within 0\.5 s .*is stopped'),
    (lambda: time.sleep(99), r'loader worker pid (\d+) has not read .*/22\.jpg within 0\.5 s .*'),
], ids=['killed', 'crashed', 'left', 'exception', 'stopped', 'slow'])
def test_an_error_names_the_worker_and_the_image(loader, action, said, opening):
    pids, seen = [], 0
    timeout = 0.5 if 'within' in said else 60    # dying takes time, too
    failing = loader(action, timeout=timeout, opening=opening)
    with contextlib.closing(iter(failing)) as batches, pytest.raises(LoaderError) as caught:
        for _, labels in batches:
            pids = pids or workers()
            assert labels.tolist() == list(range(seen, seen + 4))
            seen += 4
    assert seen <= 20
    named = re.match(said, str(caught.value))
    assert named, caught.value
    assert int(named[1]) == pids[1]    # the workers take turns, image 22 is in batch 5
    assert not any(map(state_of_process, pids))


@pytest.mark.parametrize('part', ['fetch', 'read'])
def test_the_timeout_is_for_one_image(loader, part, tmp_path):
    """A batch may take longer."""
    batches, times = loader(lambda: None, timeout=0.5), itertools.count()
    method, log = getattr(batches.dataset, part), tmp_path / 'log'

    def slow(*arguments):
        if next(times) < 4:    # the first batch of each worker
            time.sleep(0.2)
            with log.open('a') as file:
                file.write('x')
        return method(*arguments)

    setattr(batches.dataset, part, slow)
    assert sum(len(labels) for _, labels in batches) == 40
    assert log.read_text() == 'x' * 8


def test_a_worker_may_be_stopped_and_continued(loader):
    with contextlib.closing(iter(loader(lambda: None, timeout=30))) as batches:
        seen = len(next(batches)[1])
        pid = workers()[0]
        os.kill(pid, signal.SIGSTOP)
        assert wait_until(lambda: state_of_process(pid) == 'T')
        with subprocess.Popen(['sh', '-c', f'sleep 0.3; kill -CONT {pid}']):
            seen += sum(len(labels) for _, labels in batches)
    assert seen == 40


def test_a_dead_idle_worker_is_an_error_only_when_it_is_needed(loader):
    with contextlib.closing(Workers(loader(lambda: None).dataset, 2, 4)) as pool:
        def read(keys):
            pool.begin(keys)
            while (ready := pool.wait(0)) is None:
                pass
            return ready[2].tolist()

        assert [read([(0, 0)]), read([(0, 1)])] == [[0], [1]]
        pid = pool.workers[0].pid
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: state_of_process(pid) == 'Z')
        with pytest.raises(LoaderError, match=rf'pid {pid} died \(SIGKILL\) reading .*/2\.jpg'):
            read([(0, 2), (0, 3)])
        assert pool.workers[1].alive


def test_without_workers_an_error_names_the_image(loader):
    with pytest.raises(LoaderError, match=r'/22\.jpg: IndexError: a bug'):
        list(loader(raise_error, num_workers=0))


def test_the_error_is_one_line_and_exit_code_1(loader, capsys, monkeypatch):
    monkeypatch.setattr(command, 'leave', sys.exit)
    with pytest.raises(SystemExit) as caught:
        command.run(lambda _: list(loader(raise_error)), [])
    said = capsys.readouterr().err
    assert caught.value.code == 1 and said.startswith('failed: LoaderError: a loader worker (pid ')
    assert len(said.splitlines()) == 1
    assert workers() == []


class Interrupted(Exception):
    pass


@pytest.mark.parametrize('num_workers', [0, 2])
def test_an_exception_in_poll_ends_the_iteration(loader, num_workers):
    """While the 6th batch is waited for, which never comes."""
    batches, pids, seen = loader(stop_itself if num_workers else lambda: None, num_workers), [], 0

    def poll():
        if seen == 20:
            raise Interrupted

    batches.poll = poll
    with pytest.raises(Interrupted):
        for _, labels in batches:
            pids = pids or workers()
            seen += len(labels)
    assert seen == 20 and len(pids) == num_workers and not any(map(state_of_process, pids))


def test_a_failed_fork_is_a_loader_error(samples, monkeypatch):
    def no_fork():
        raise BlockingIOError(11, 'Resource temporarily unavailable')

    monkeypatch.setattr(os, 'fork', no_fork)
    with pytest.raises(LoaderError, match='2 loader workers cannot be started .*unavailable'):
        list(loader_of(samples, 2))


def test_no_error_of_the_reading_thread_makes_it_wait_for_ever(samples, monkeypatch):
    monkeypatch.setattr(Workers, 'wait', lambda *_: 1 // 0)
    with pytest.raises(LoaderError, match='failed: ZeroDivisionError'):
        list(loader_of(samples, 2))
    assert workers() == []
