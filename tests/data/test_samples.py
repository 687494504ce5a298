"""Catches names, labels and fingerprints that change, and indexes that are out of date."""

import hashlib
import os
import time

import numpy as np
import pytest

from data import DataError, folders, index
from data.samples import Samples
from data.sources import find_images

NAMES = ['n01/a b.jpg', 'ä/ü.jpg', './n01//c.jpg', 'n01/../d.jpg', '../e.jpg', '/data/n02/f.jpg',
         '/etc/g', 'n01/\udcff.jpg', 'line\nbreak.jpg', 'trailing/', 'x..y/..z', '日本/1.jpg']


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Indexes of data sets of any size, in a folder of the test."""
    monkeypatch.setattr(index, 'WORTHWHILE', 1)
    monkeypatch.setenv('XDG_CACHE_HOME', f'{tmp_path}/cache')
    return tmp_path / 'cache' / 't2t_vit'


@pytest.fixture
def reads(monkeypatch):
    """The number of times that a list or folders are really read."""
    counts = []

    def count(read):
        def counted(*given):
            counts.append(1)
            return read(*given)
        return counted

    for name in ('_listed', '_walk'):
        monkeypatch.setattr(folders, name, count(getattr(folders, name)))
    return counts


class TestSamples:
    def test_a_sequence_of_tuples(self):
        pairs = [(name, 7 * row - 1) for row, name in enumerate(NAMES)]
        samples = Samples('/data', pairs)
        assert samples == [(os.path.join('/data', name), label) for name, label in pairs]
        assert samples[-2] == samples[len(pairs) - 2] and samples[2:9:3] == list(samples)[2:9:3]
        assert samples.labels.tolist() == [label for _, label in pairs]
        for beyond in (len(pairs), -len(pairs) - 1):
            with pytest.raises(IndexError):
                samples[beyond]
        assert list(Samples(None, pairs)) == pairs and len(Samples('/data')) == 0
        assert Samples.of_arrays('/data', samples.arrays()) == samples

    @pytest.mark.parametrize('root', ['/data', '/data/', 'data', '.'])
    @pytest.mark.parametrize('names', [NAMES, ['n01/a.jpg', 'n02/b.jpg']])
    def test_the_fingerprint_is_that_of_earlier_checkpoints(self, root, names):
        expected = hashlib.sha256()
        for label, name in enumerate(names):
            path = os.path.relpath(os.path.join(root, name), root)
            expected.update(f'{path} {label}\n'.encode('utf-8', 'replace'))
        samples = Samples(root, zip(names, range(99)))
        assert samples.fingerprint == expected.hexdigest()
        assert Samples.of_arrays(root, samples.arrays()).fingerprint == expected.hexdigest()


class TestIndex:
    def test_arrays(self, cache):
        arrays = {'labels': np.arange(5, dtype=np.int32), 'empty': np.zeros((0, 2)),
                  'number': np.array(7), 'text': np.frombuffer(b'\n{}', np.uint8),
                  'last': np.arange(6.).reshape(2, 3)[:, ::2]}
        for _ in range(2):
            found = index.cached('test', ['a'], lambda: arrays, lambda found: True)
            assert list(found) == list(arrays)
            for name, array in arrays.items():
                np.testing.assert_array_equal(found[name], array, strict=True)
                assert not found[name].flags.writeable
        assert sorted(path.suffix for path in cache.iterdir()) == ['.index', '.lock']
        assert (cache.stat().st_mode & 0o777) == 0o700

    def test_every_damage_is_noticed(self, cache):
        def found(label):
            return index.cached('test', ['a'], lambda: {'labels': np.array([label])},
                                lambda _: True)['labels'].tolist()

        assert found(1) == found(2) == [1]
        (path,) = cache.glob('*.index')
        whole = path.read_bytes()
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1:])
            assert found(1) == [1] and path.read_bytes() == whole
        for content in (b'', whole[:-1], whole[:30], whole + b'\0', bytes(len(whole))):
            path.write_bytes(content)
            assert found(1) == [1] and path.read_bytes() == whole
        path.unlink()
        path.mkdir()    # it can neither be read nor be replaced
        assert found(3) == [3]

    def test_a_folder_that_cannot_be_written(self, tmp_path, monkeypatch, caplog):
        (tmp_path / 'file').touch()
        monkeypatch.setenv('XDG_CACHE_HOME', f'{tmp_path}/file')
        found = index.cached('test', ['a'], lambda: {'labels': np.arange(3)}, lambda _: True)
        assert found['labels'].tolist() == [0, 1, 2]
        assert 'cannot be kept (Not a directory)' in caplog.text and 'XDG_CACHE_HOME' in caplog.text

    def test_another_users_index_is_not_used(self, cache, monkeypatch):
        index.cached('test', ['a'], lambda: {'labels': np.array([1])}, lambda _: True)
        monkeypatch.setattr(os, 'geteuid', lambda: 12345)
        assert index.load(index.index_path('test', ['a'])) is None

    def test_processes_that_begin_together_share_one(self, cache):
        """All map the same file, though each finds no index at first."""
        processes, (gate, opened), (reader, writer) = 6, os.pipe(), os.pipe()
        path = index.index_path('test', ['a'])

        def make():
            os.read(gate, 1)    # until all have looked for the index
            return {'labels': np.arange(1000)}

        children = []
        for _ in range(processes):
            children.append(os.fork())
            if children[-1] == 0:
                try:
                    found = index.cached('test', ['a'], make, lambda found: True)
                    maps = [line.split() for line in open('/proc/self/maps') if str(path) in line]
                    os.write(writer, f'{len(found["labels"])} {maps[0][4]}\n'.encode())
                finally:
                    os._exit(0)
        os.write(opened, bytes(processes))
        for child in children:
            os.waitpid(child, 0)
        os.close(writer)
        with os.fdopen(reader) as lines:
            assert lines.read() == f'1000 {path.stat().st_ino}\n' * processes

    def test_small_data_has_none(self, cache, monkeypatch):
        monkeypatch.setattr(index, 'WORTHWHILE', 4)
        index.cached('test', ['a'], lambda: {'labels': np.arange(3)}, lambda _: True)
        assert not cache.exists()


class TestLists:
    @pytest.fixture
    def read(self, tmp_path):
        path = tmp_path / 'list.txt'
        path.write_text('a.jpg 1\n\n./b/ä.jpg 2\n')
        return lambda content=None, **options: (
            content is not None and path.write_bytes(content),
            find_images(tmp_path, path, **options).samples)[1]

    def test_it_is_read_once(self, read, reads, tmp_path):
        first, again = read(), read()
        assert len(reads) == 1
        assert first == again == [(f'{tmp_path}/a.jpg', 1), (f'{tmp_path}/./b/ä.jpg', 2)]
        assert first.fingerprint == again.fingerprint
        assert not read().labels.flags.writeable    # it is mapped

    def test_a_changed_list_of_the_same_size_and_time(self, read, reads, tmp_path):
        read()
        status = os.stat(tmp_path / 'list.txt')
        (tmp_path / 'list.txt').write_text('a.jpg 1\n\n./b/ä.jpg 3\n')
        os.utime(tmp_path / 'list.txt', ns=(status.st_atime_ns, status.st_mtime_ns))
        assert read()[1][1] == 3 and len(reads) == 2
        os.utime(tmp_path / 'list.txt')    # another time, the same content
        assert read()[1][1] == 3 and len(reads) == 2

    def test_errors_name_the_line_also_after_a_success(self, read, tmp_path):
        read()
        with pytest.raises(DataError, match=r'list\.txt:3: class id 2, but the network has 2'):
            read(num_classes=2)
        with pytest.raises(DataError, match=r"list\.txt:2: expected 'path label'"):
            read(b'a.jpg 1\nb.jpg\n')
        with pytest.raises(DataError, match='empty'):
            read(b'')
        os.remove(tmp_path / 'list.txt')
        with pytest.raises(DataError, match='cannot read the image list'):
            read()


class TestClassFolders:
    @pytest.fixture
    def root(self, tmp_path):
        """Two class folders with a folder in one, of an hour ago."""
        root = tmp_path / 'data'
        for name in ('n01/a.jpg', 'n02/b.jpg', 'n02/deep/c.jpg'):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        return root

    @pytest.fixture
    def later(self, monkeypatch):
        """Let indexes be made an hour from now, so that the folders' last changes are old."""
        monkeypatch.setattr(time, 'time_ns', lambda now=time.time_ns: now() + 3600 * 10 ** 9)

    def names(self, root):
        return [name[len(f'{root}/'):] for name, _ in find_images(root).samples]

    def test_folders_are_walked_once(self, root, reads, later):
        first, again = find_images(root), find_images(root)
        assert len(reads) == 1 and list(first.samples) == list(again.samples)
        assert self.names(root) == ['n01/a.jpg', 'n02/b.jpg', 'n02/deep/c.jpg']
        assert first.samples.fingerprint == again.samples.fingerprint

    def test_folders_that_changed_just_now_are_walked_again(self, root, reads):
        find_images(root), find_images(root)
        assert len(reads) == 2

    @pytest.mark.parametrize('change, expected', [
        (lambda root: (root / 'n02' / 'deep' / 'd.jpg').touch(), 4),
        (lambda root: os.remove(root / 'n01' / 'a.jpg'), 2),
        (lambda root: os.rename(root / 'n02' / 'b.jpg', root / 'n02' / 'z.jpg'), 3),
        (lambda root: os.rename(root / 'n02' / 'deep', root / 'n01' / 'deep'), 3),
        (lambda root: (root / 'n03').mkdir(), 3)])
    def test_every_change_is_noticed(self, root, reads, later, change, expected):
        before = self.names(root)
        status = {path: path.stat() for path in root.rglob('*') if path.is_dir()}
        change(root)
        for path, old in status.items():    # as rsync and tar do
            if path.exists():
                os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
        found = self.names(root)
        assert len(reads) == 2 and len(found) == expected
        assert found == sorted(str(path.relative_to(root)) for path in root.rglob('*.jpg'))
        assert (found == before) == (root / 'n03').exists()

    def test_labels_follow_the_request(self, root, later):
        for classes in ({'n01': 1, 'n02': 5}, {'n01': 0, 'n02': 1}):
            found = find_images(root, class_ids=classes)
            assert found.samples.labels.tolist() == [classes['n01'], *[classes['n02']] * 2]
