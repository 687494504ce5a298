"""Catches images that are not found in tar shards, read from the wrong place, or read twice."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from support.pictures import picture
from support.processes import wait_until

import build
from config import load_config
from data import DataError, index, shards
from data.decode import ImageError
from data.shards import write_shards
from data.sources import find_images


def encoded(number, kind='JPEG'):
    file = io.BytesIO()
    Image.fromarray(picture(20 + number % 3, 24, seed=number)).save(file, kind)
    return file.getvalue()


IMAGES = [(f'n{number % 4:02}/{"a" * (number % 2 * 120)}{number}.x.JPEG', number % 4,
           encoded(number)) for number in range(20)]


SLOW_WRITER = '''
import sys, time
from pathlib import Path
from data.shards import write_shards
root, folder, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
write_shards(((str(file.relative_to(root)), 1, lambda file=file: (
    time.sleep(seconds), file.read_bytes())[1]) for file in sorted(root.rglob('*.JPEG'))),
    folder, most_bytes=30_000)
'''


def samples_of(images, read=None):
    """Samples for write_shards; the names of those that are read are appended to `read`."""
    def reader(name, content):
        return lambda: (read is not None and read.append(name), content)[1]

    return ((name, label, reader(name, content)) for name, label, content in images)


def write_tar(path, *members):
    """Write (name, content) or TarInfos to a tar archive."""
    with tarfile.open(path, 'w') as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                entry = tarfile.TarInfo(member[0])
                entry.size = len(member[1])
                archive.addfile(entry, io.BytesIO(member[1]))
    return path


def contents(root, **options):
    """(label, bytes of the image file) of all images, read in a mixed order."""
    found = find_images(root, **options)
    order = np.random.default_rng(0).permutation(len(found.samples))
    read = {place: found.opener(place) for place in map(int, order)}
    return [(label, read[place]) for place, (_, label) in enumerate(found.samples)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(index, 'WORTHWHILE', 1)
    monkeypatch.setenv('XDG_CACHE_HOME', f'{tmp_path}/cache')


@pytest.fixture
def root(tmp_path):
    """A folder of several shards."""
    count, paths = write_shards(samples_of(IMAGES), tmp_path / 'set', most_bytes=20_000)
    assert count == 20 and len(paths) > 2 and max(map(os.path.getsize, paths)) < 24_000
    return tmp_path / 'set'


@pytest.fixture
def scans(monkeypatch):
    """The number of scans."""
    counts, scan = [], shards.scan
    monkeypatch.setattr(shards, 'scan', lambda *given: (counts.append(1), scan(*given))[1])
    return counts


@pytest.fixture
def later(monkeypatch):
    """Let changes of files be old, so that a cached index is trusted."""
    monkeypatch.setattr(index, 'TICK', -3600 * 10 ** 9)


class TestFormat:
    def test_what_is_written_is_found(self, root, scans):
        expected = [(label, content) for _, label, content in IMAGES]
        assert contents(root) == expected and not scans
        os.remove(root / 'shards.index')
        assert contents(root) == expected == contents(f'{root}/shard-*.tar') and scans
        names = [name[len(f'{root}/shard-000000.tar/'):] for name, _ in find_images(root).samples]
        assert names == [name.replace('.x.JPEG', '_x.jpg') for name, _, _ in IMAGES]

    def test_the_written_index_is_that_of_a_scan(self, root):
        written = index.load(root / 'shards.index')
        scanned = shards.scan(root, sorted(path.name for path in root.glob('*.tar')))
        for name, array in scanned.items():
            np.testing.assert_array_equal(written[name], array, strict=True)

    def test_the_same_bytes_again_and_members_as_tarfile_sees_them(self, root, tmp_path):
        write_shards(samples_of(IMAGES), tmp_path / 'again', most_bytes=20_000)
        for path in root.iterdir():
            assert path.read_bytes() == (tmp_path / 'again' / path.name).read_bytes()
        with tarfile.open(root / 'shard-000000.tar') as archive:
            members = archive.getmembers()
            assert [member.name for member in members[:2]] == ['n00/0_x.cls', 'n00/0_x.jpg']
            assert archive.extractfile(members[0]).read() == b'0'

    def test_shards_of_others(self, tmp_path):
        """Other image formats and orders, labels in JSON, notes, names that lie outside."""
        pictures = [encoded(0, 'PNG'), encoded(1), encoded(2, 'WEBP')]
        write_tar(tmp_path / 'b.tar', ('x.json', json.dumps({'label': 5}).encode()),
                  ('x.JPEG', pictures[1]), ('x.txt', b'a caption'))
        write_tar(tmp_path / 'a.tar', ('__index__', b'?'), ('k.seg.png', pictures[1]),
                  ('k.png', pictures[0]), ('k.cls', b'3\n'), ('d.e/k.webp', pictures[2]),
                  ('d.e/k.cls', b'0'), ('d.e/k.json', b'{"label": 9}'))
        assert contents(tmp_path) == [(3, pictures[0]), (0, pictures[2]), (5, pictures[1])]

    def test_webdataset_reads_ours(self, root):
        webdataset = pytest.importorskip('webdataset')
        urls = [str(path) for path in sorted(root.glob('*.tar'))]
        read = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
        assert [(int(sample['cls']), sample['jpg']) for sample in read] == [
            (label, content) for _, label, content in IMAGES]
        decoded = next(iter(webdataset.WebDataset(urls, shardshuffle=False).decode('rgb8')))
        assert decoded['cls'] == 0 and decoded['jpg'].shape == (20, 24, 3)

    @pytest.mark.parametrize('kind', ['jpg', 'jpeg', 'png'])
    def test_ours_reads_webdatasets(self, tmp_path, kind):
        webdataset = pytest.importorskip('webdataset')
        with webdataset.ShardWriter(f'{tmp_path}/out-%06d.tar', maxcount=7, verbose=0) as writer:
            for number, (_, label, content) in enumerate(IMAGES):
                writer.write({'__key__': f'sample{number:04}', kind: content, 'cls': label,
                              'json': {'width': 24}})
        assert len(list(tmp_path.glob('*.tar'))) == 3
        assert contents(tmp_path) == [(label, content) for _, label, content in IMAGES]


class TestDamage:
    @pytest.mark.parametrize('members, said', [
        ([('a.cls', b'1')], 'a: has 0 images'),
        ([('a.jpg', b'?'), ('a.png', b'?'), ('a.cls', b'1')], 'a: has 2 images'),
        ([('a.jpg', b'?'), ('a.JPG', b'?'), ('a.cls', b'1')], 'a: two files'),
        ([('a.jpg', b'?'), ('b.cls', b'1')], 'a: has no label'),
        ([('a.jpg', b'?')], 'a: has no label'),
        *[([('a.jpg', b'?'), ('a.cls', text)], 'a: has no label') for text in (
            b'', b'-1', b'cat', b'1.5', b'9' * 10, b'1' * 99)],
        *[([('a.jpg', b'?'), ('a.json', text)], 'a: has no label') for text in (
            b'', b'[]', b'{"label": true}', b'{"label": "1"}', b'[' * 9999, b'\xff')],
        ([('../a.jpg', b'?'), ('../a.cls', b'1')], "refused, ../a.jpg is a path with '..'"),
        ([('/etc/a.jpg', b'?'), ('/etc/a.cls', b'1')], 'an absolute path'),
        ([('a.jpg', b'?'), ('a.cls', b'7')], 'class id 7, but the network has 4 classes')])
    def test_a_sample_that_is_none(self, tmp_path, members, said):
        write_tar(tmp_path / 'good.tar', ('0.jpg', b'?'), ('0.cls', b'1'))
        write_tar(tmp_path / 'other.tar', *members)
        with pytest.raises(DataError, match=re.escape(said)) as caught:
            find_images(tmp_path, num_classes=4)
        assert str(caught.value).startswith(f'{tmp_path}/other.tar')
        assert '\n' not in str(caught.value)

    @pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
    def test_links_and_devices_are_refused(self, tmp_path, kind):
        entry = tarfile.TarInfo('a.jpg')
        entry.type, entry.linkname = kind, '/etc/passwd'
        write_tar(tmp_path / 'a.tar', entry, ('a.cls', b'1'))
        with pytest.raises(DataError, match=r'a\.tar: a: refused, a\.jpg is'):
            find_images(tmp_path)

    @pytest.mark.parametrize('later_start', [False, True])
    def test_a_cut_shard_is_named(self, root, later, later_start):
        found = find_images(root)
        path = root / 'shard-000001.tar'
        places = [place for place, (name, _) in enumerate(found.samples) if str(path) in name]
        os.truncate(path, int(found.opener.start[places[2]]) + 100)
        if later_start:
            with pytest.raises(DataError, match='shard-000001.tar: is .*cut off'):
                find_images(root)
        else:
            for place in range(20):
                if place in places[2:]:
                    with pytest.raises(ImageError, match='shard-000001.tar/.* cut off'):
                        found.opener(place)
                else:
                    assert found.opener(place) == IMAGES[place][2]

    def test_a_changed_shard_is_scanned_again(self, root, later, scans):
        assert contents(root) == contents(root) and not scans
        path = root / 'shard-000001.tar'
        content = path.read_bytes()
        os.remove(root / 'shards.index')
        path.write_bytes(content)
        contents(root), contents(root)
        assert len(scans) == 1
        path.write_bytes(content + bytes(512))
        assert len(contents(root)) == 20 and len(scans) == 2

    def test_an_index_of_other_shards_is_noticed(self, root):
        """Where sizes agree, the headers in the shards do not."""
        order = shards.shard_files(str(root))[:2]
        content = [Path(path).read_bytes() for path in order]
        size = max(map(len, content))
        os.remove(root / 'shards.index')
        for path, other in zip(order, content):
            Path(path).write_bytes(other.ljust(size, b'\0'))
        found = find_images(root)
        for path, other in zip(order, reversed(content)):
            Path(path).write_bytes(other.ljust(size, b'\0'))
        with pytest.raises(ImageError, match='not where the index of the shard says'):
            for place in range(len(found.samples)):
                assert found.opener(place) == IMAGES[place][2]

    def test_a_written_index_of_another_form_is_not_used(self, root, scans):
        path = root / 'shards.index'
        arrays, expected = index.load(path), contents(root)
        for name, array in arrays.items():
            if name == 'digest':
                continue
            for changed in (array[:-1], array.astype(np.float32), array[:, None]):
                scans.clear()
                index.store(path, {**arrays, name: changed})
                assert contents(root) == expected and scans == [1]

    @pytest.mark.parametrize('kind', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_random_damage_raises_nothing_else(self, tmp_path, kind):
        """Changed headers with right checksums reach all of tarfile's readers of extensions."""
        file, rng = io.BytesIO(), np.random.default_rng(5)
        long = 'é' * 70 if kind != tarfile.USTAR_FORMAT else 'long'
        with tarfile.open(fileobj=file, mode='w', format=kind) as archive:
            for name in ('a.jpg', 'a.cls', f'{long}.jpg', f'{long}.cls'):
                entry = tarfile.TarInfo(name)
                entry.size = 1
                archive.addfile(entry, io.BytesIO(b'1'))
        whole = np.frombuffer(file.getvalue(), np.uint8)
        flags, outcomes = list(b'012567xgLKSDVM\x80\xff '), set()
        for _ in range(400):
            content = whole.copy()
            for number in rng.integers(0, 14, 2):
                block = content[512 * number:][:512]
                place = rng.choice([156, 124, 134, 345, 257, rng.integers(512)])
                block[place] = rng.choice([*flags, rng.integers(256)])
                total = 256 + int(block[:148].sum(dtype=int) + block[156:].sum(dtype=int))
                block[148:156] = np.frombuffer(b'%06o\0 ' % total, np.uint8)
            (tmp_path / 'a.tar').write_bytes(content.tobytes()[:rng.integers(4000, 40_000)])
            try:
                found = find_images(tmp_path)
                read = [found.opener(place) for place in range(len(found.samples))]
                outcomes.add(all(len(image) < 1 << 20 for image in read))
            except DataError as error:    # an ImageError is one
                assert '\n' not in str(error)
                outcomes.add('refused')
        assert outcomes == {True, 'refused'}

    def test_archives_beside_class_folders_are_no_shards(self, tmp_path):
        (tmp_path / 'n01').mkdir()
        (tmp_path / 'n01' / 'a.jpg').touch()
        write_tar(tmp_path / 'n01.tar', ('a.jpg', b'?'))
        assert len(find_images(tmp_path).samples) == 1


class TestWriter:
    def test_what_is_half_written_has_another_name(self, tmp_path):
        def broken():
            yield from samples_of(IMAGES[:15])
            raise OSError(28, 'No space left on device')

        with pytest.raises(OSError, match='No space'):
            write_shards(broken(), tmp_path / 'set', most_bytes=20_000)
        assert not (tmp_path / 'set').exists() and (tmp_path / 'set.partial').exists()
        read = []
        write_shards(samples_of(IMAGES, read), tmp_path / 'set', most_bytes=20_000)
        assert os.listdir(tmp_path) == ['set'] and len(contents(tmp_path / 'set')) == 20
        assert len(set(read)) < 12, 'the images of whole shards are not read again'
        write_shards(samples_of(IMAGES), tmp_path / 'at once', most_bytes=20_000)
        for path in (tmp_path / 'at once').iterdir():
            assert path.read_bytes() == (tmp_path / 'set' / path.name).read_bytes(), path.name

    @pytest.mark.parametrize('change', [
        lambda images: images[1:], lambda images: images[:1],
        lambda images: [(images[0][0], 9, images[0][2]), *images[1:]]])
    def test_what_was_begun_with_other_images_is_refused(self, root, tmp_path, change):
        os.rename(root, tmp_path / 'new.partial')
        os.remove(tmp_path / 'new.partial' / 'shards.index')
        with pytest.raises(DataError, match=r'0.tar: was begun with other images; remove /.*/new\.'
                                            'partial$'):
            write_shards(samples_of(change(IMAGES)), tmp_path / 'new', most_bytes=20_000)
        (tmp_path / 'new.partial' / 'shard-000000.tar').write_bytes(b'no archive' * 70)
        with pytest.raises(DataError, match='is no whole shard .*; remove it'):
            write_shards(samples_of(IMAGES), tmp_path / 'new', most_bytes=20_000)

    def test_a_killed_writer_goes_on(self, tmp_path):
        """Killed three times, after more and more shards."""
        for seconds, folder in ((0, 'at once'), (0.01, 'set')):
            command = [sys.executable, '-c', SLOW_WRITER, ROOT / 'lit_data/val', tmp_path / folder,
                       str(seconds)]
            for shard in (1, 4, 6) if seconds else ():
                process = subprocess.Popen(command, cwd=ROOT / 'tools')
                path = tmp_path / 'set.partial' / f'shard-{shard:06}.tar'
                assert wait_until(path.exists, 60) and process.poll() is None
                process.kill()
                process.wait()
            subprocess.run(command, cwd=ROOT / 'tools', check=True, timeout=60)
        written = {path.name: path.read_bytes() for path in (tmp_path / 'set').iterdir()}
        assert len(written) > 7 and written == {
            path.name: path.read_bytes() for path in (tmp_path / 'at once').iterdir()}

    def test_wrong_use(self, root, tmp_path):
        with pytest.raises(DataError, match='set: is not empty'):
            write_shards(samples_of(IMAGES), root)
        with pytest.raises(DataError, match='another image has the key a_b'):
            write_shards(samples_of([('a.b.jpg', 1, b'?'), ('a_b.png', 1, b'?')]),
                         tmp_path / 'twice')
        with pytest.raises(DataError, match='no images'):
            write_shards([], tmp_path / 'none')


@pytest.fixture(scope='module')
def loader(tmp_path_factory):
    """A function of a split and of options that makes a loader of lit_data's shards."""
    root = tmp_path_factory.mktemp('lit_data') / 'val'
    lines = [line.split() for line in open(ROOT / 'lit_data' / 'val.txt')]
    write_shards(((name, int(label), (ROOT / 'lit_data' / 'val' / name).read_bytes)
                  for name, label in lines), root, most_bytes=30_000)
    assert len(list(root.glob('*.tar'))) > 5

    def made(make, *options, where=root):
        return make(load_config('config/lit_data.yaml', [
            'MODEL.IMAGE_SIZE=32', 'TRAIN.TRAIN_BATCH_SIZE=16', 'TRAIN.VAL_BATCH_SIZE=50',
            'TRAIN.TRAIN_NUM_WORKS=2', 'TRAIN.VAL_NUM_WORKS=2',
            f'DATA_PATH.TRAIN_DATASET_PATH={where}', f'DATA_PATH.VAL_DATASET_PATH={where}',
            'DATA_PATH.TRAIN_DATASET_LABEL_PATH=', 'DATA_PATH.VAL_DATASET_LABEL_PATH=',
            *options]))
    return made


class TestLoading:
    def test_evaluation_is_that_of_the_folder(self, loader):
        batches = list(loader(build.eval_loader, 'DATA.SHARD_WINDOW=2'))
        expected = list(loader(build.eval_loader, where=ROOT / 'lit_data' / 'val'))
        assert [len(labels) for _, labels in batches] == [50, 50, 28]
        for one, two in zip(batches, expected):
            for array, other in zip(one, two):
                np.testing.assert_array_equal(array.numpy(), other.numpy())

    @pytest.mark.parametrize('window', [0, 2])
    def test_resume_in_the_middle_with_other_workers(self, loader, window):
        found = []
        for start, workers in ((0, 2), (3, 1), (3, 0)):
            made = loader(build.train_loader, f'DATA.SHARD_WINDOW={window}',
                          f'TRAIN.TRAIN_NUM_WORKS={workers}')
            made.batch_sampler.set_epoch(4, start)
            found.append([(images.numpy(), labels.numpy()) for images, labels in made])
        assert len(found[0]) == 8 and [len(batches) for batches in found[1:]] == [5, 5]
        for batches in found[1:]:
            for one, two in zip(batches, found[0][3:]):
                for array, other in zip(one, two):
                    np.testing.assert_array_equal(array, other)
