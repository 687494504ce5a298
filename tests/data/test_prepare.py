"""Catches wrong bytes, labels or counts after tools/prepare.py, and half-written data."""

import gzip
import hashlib
import io
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from support.cifar import write_cifar_10
from support.imagenet import add, jpegs, numbers_of, tar, write_archives, write_devkit
from support.pictures import picture
from support.processes import children_of, gone, wait_until

import build
import prepare
from data import DataError, imagenet, splits
from data.archives import members, open_parts, part_of, read_member, whole
from data.folders import ImageList
from data.images import Request
from data.sources import find_images

pytest.importorskip('scipy')
DEVKIT, TRAIN, VAL = imagenet.DEVKIT, imagenet.TRAIN, imagenet.VAL


def start(*arguments, **options):
    return subprocess.Popen([sys.executable, str(ROOT / 'tools' / 'prepare.py'),
                             *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, **options)


def run(*arguments, code=0, **options):
    """Run prepare.py; return what it printed. Its exit code must be `code`."""
    process = start(*arguments, **options)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == code, printed + errors
    assert 'Traceback' not in errors
    return printed + errors


def last_line(*arguments, code=2, **options):
    """The one line on stderr of a command that fails."""
    return run(*arguments, code=code, **options).splitlines()[-1]


def content_of(folder):
    """{path: content} of the class folders, lists and names of a prepared folder."""
    folder = Path(folder)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*')
            if path.is_file() and path.name != 'prepare.jsonl'}


@pytest.fixture(scope='module')
def downloads(tmp_path_factory):
    """(folder of archives, {path: content} of the images, in class folders)."""
    folder = tmp_path_factory.mktemp('downloads')
    return folder, write_archives(folder)


@pytest.fixture(scope='module')
def prepared(downloads, tmp_path_factory):
    """(folder, what the command printed)."""
    folder = tmp_path_factory.mktemp('prepared') / 'out'
    return folder, run('imagenet', '--archives', downloads[0], '--out', folder, '--unpublished')


def images_of_command(printed):
    """The images that the printed command would train and validate with, by split."""
    words = shlex.split(printed[printed.index('bash scripts/'):].replace('\\\n', ' '))
    config = build.load_config(words[2], words[words.index('-o') + 1:])
    paths = config.DATA_PATH
    return {'train': find_images(paths.TRAIN_DATASET_PATH, paths.TRAIN_DATASET_LABEL_PATH),
            'val': find_images(paths.VAL_DATASET_PATH, paths.VAL_DATASET_LABEL_PATH)}


def lists_of(expected):
    """The two lists, from the paths alone."""
    ids = {name: label for label, name in enumerate(sorted({path.split('/')[1]
                                                            for path in expected}))}
    found = {'train.txt': [], 'val.txt': []}
    for path in sorted(expected):
        split, name, file = path.split('/')
        found[f'{split}.txt'].append(f'{name}/{file} {ids[name]}\n')
    return {name: ''.join(lines).encode() for name, lines in found.items()}


# ---- what comes out

def test_archives_become_class_folders_with_lists(downloads, prepared):
    folder, printed = prepared
    names = b''.join(f'words of {name}, other words\n'.encode()
                     for name in sorted({path.split('/')[1] for path in downloads[1]}))
    assert content_of(folder) == {**downloads[1], **lists_of(downloads[1]), 'classes.txt': names}
    for split, found in images_of_command(printed).items():
        assert {f'{split}/{os.path.relpath(path, found.samples.root)}' for path, _ in found.samples
                } == {path for path in downloads[1] if path.startswith(split)}
    again = run('imagenet', '--archives', downloads[0], '--out', folder, '--unpublished')
    assert again.splitlines()[-5:] == printed.splitlines()[-5:]


def challenge_folders(folder, images):
    """The Kaggle archive's layout, extracted: flat validation images, labels in a table."""
    root = folder / 'ILSVRC' / 'Data' / 'CLS-LOC'
    rows = ['ImageId,PredictionString']
    for path, content in images.items():
        split, name, file = path.split('/')
        place = root / split / ('' if split == 'val' else name) / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        if split == 'val':
            rows.append(f'{file[:-5]},{name} 85 1 499 272 {name} 1 2 3 4 ')
    (folder / 'LOC_val_solution.csv').write_text('\n'.join(rows) + '\n')
    (folder / 'LOC_synset_mapping.txt').write_text(''.join(
        f'{name} some, words\n' for name in sorted({path.split('/')[1] for path in images})))
    return root


def light_parts(folder, images):
    """Two archives with class folders, beside a list that is not needed."""
    paths = sorted(images)
    for number in range(2):
        part = [('ILSVRC2012', b'', {'type': tarfile.DIRTYPE}), ('ILSVRC2012/val_list.txt', b'x')]
        part += [(f'ILSVRC2012/{path}', images[path]) for path in paths[number::2]]
        (folder / f'Light_ILSVRC2012_part_{number}.tar').write_bytes(tar(part))


def pieces(folder, archives):
    """Archives in pieces, as split(1) names them; the devkit unpacked."""
    for name, size in ((TRAIN, 5000), (VAL, 1 << 20)):
        content = (archives / name).read_bytes()
        for number, first in enumerate(range(0, len(content), size)):
            (folder / f'{name}.{chr(97 + number // 26)}{chr(97 + number % 26)}').write_bytes(
                content[first:first + size])
    with tarfile.open(archives / DEVKIT) as devkit:
        devkit.extractall(folder)


@pytest.mark.parametrize('form', ['challenge', 'flat', 'light', 'pieces'])
def test_other_forms_of_the_downloads_give_the_same(downloads, tmp_path, form):
    source = tmp_path / 'source'
    source.mkdir()
    if form in ('challenge', 'flat'):
        root = challenge_folders(source, downloads[1])
        if form == 'flat':    # the truth of the devkit
            (source / 'LOC_val_solution.csv').unlink()
            shutil.copy(downloads[0] / DEVKIT, source)
    elif form == 'light':
        light_parts(source, downloads[1])
    else:
        pieces(source, downloads[0])
    run('imagenet', '--archives', source, '--out', tmp_path / 'out', '--unpublished')
    found = content_of(tmp_path / 'out')
    del found['classes.txt']
    lists = lists_of(downloads[1])
    if form == 'light':    # without devkit, the 1000 known classes: here their first four
        assert (tmp_path / 'out' / 'classes.txt').read_text().startswith('tench\ngoldfish\n')
    assert found == {**downloads[1], **lists}
    if form in ('challenge', 'flat'):    # no second copy on the disk
        linked = next((root / 'train').glob('*/*'))
        assert linked.stat().st_nlink == 2


def test_val_only(downloads, tmp_path):
    shutil.copy(downloads[0] / VAL, tmp_path)
    shutil.copy(downloads[0] / DEVKIT, tmp_path)
    printed = run('imagenet', '--archives', tmp_path, '--out', tmp_path / 'out', '--val-only',
                  '--unpublished')
    assert sorted(os.listdir(tmp_path / 'out')) == ['classes.txt', 'prepare.jsonl', 'val',
                                                    'val.txt']
    assert (tmp_path / 'out' / 'val.txt').read_bytes() == lists_of(downloads[1])['val.txt']
    assert 'bash scripts/val.sh' in printed and 'TRAIN' not in printed


def test_light_reduces_what_is_larger(tmp_path):
    large, small = jpegs(1, (120, 90), seed=1)[0], jpegs(1, (70, 40), seed=2)[0]
    write_archives(tmp_path / 'in', per_class=2, val=4, images=[large, small])
    for quality in (95, 50):
        run('imagenet', '--archives', tmp_path / 'in', '--out', tmp_path / str(quality),
            '--unpublished', '--light', 60, '--quality', quality)
    found, low = content_of(tmp_path / '95'), content_of(tmp_path / '50')
    images = [path for path in found if path.endswith('.JPEG')]
    reduced = [path for path in images if found[path] != small]
    assert len(images) == 12 and 0 < len(reduced) < 12
    whole_image = Image.open(io.BytesIO(large)).resize((80, 60), Image.Resampling.BOX)
    for path in reduced:
        image = Image.open(io.BytesIO(found[path]))
        assert (image.size, image.format) == ((80, 60), 'JPEG')
        # Another filter, and the loss of JPEG: the same picture, not the same pixels.
        difference = np.abs(np.asarray(image, float) - np.asarray(whole_image, float))
        assert difference.mean() < 4
        assert len(low[path]) < len(found[path])
    assert 'another choice of light' in last_line(
        'imagenet', '--archives', tmp_path / 'in', '--out', tmp_path / '95', '--unpublished')


# ---- shards

def test_shards_hold_the_images_and_labels_of_the_lists(prepared, downloads, tmp_path):
    """Second ways: Python's tarfile, and the data format of shards."""
    folder = tmp_path / 'out'
    printed = run('imagenet', '--archives', downloads[0], '--out', folder, '--unpublished',
                  '--shards')
    assert {split: len(found.samples) for split, found in images_of_command(printed).items()} == {
        'train': 24, 'val': 8}
    for split in ('train', 'val'):
        shard, = (folder / 'shards' / split).glob('*.tar')
        with tarfile.open(shard) as archive:
            contents = {entry.name: archive.extractfile(entry).read() for entry in archive}
        rows = [line.split() for line in (folder / f'{split}.txt').read_text().splitlines()]
        assert len(contents) == 2 * len(rows)
        for path, label in rows:
            key = path[:-len('.JPEG')]
            assert contents[f'{key}.cls'] == label.encode()
            assert contents[f'{key}.jpg'] == downloads[1][f'{split}/{path}']
        found = find_images(folder / 'shards' / split).samples
        assert [label for _, label in found] == [
            int(content) for name, content in contents.items() if name.endswith('.cls')]
    labels = [label for _, label in find_images(folder / 'shards' / 'train').samples]
    assert labels != sorted(labels), 'training images are shuffled'
    before = content_of(folder)
    assert 'is there' in run('shards', folder)
    shutil.rmtree(folder / 'shards' / 'train')
    run('shards', folder)
    assert content_of(folder) == before
    run('subset', folder, 'two', '--classes', 2)
    run('shards', folder, '--name', 'two')
    found = find_images(folder / 'shards' / 'two_train').samples
    assert {label for _, label in found} == {label for _, label in
                                             samples_of(folder / 'two_train.txt')}
    assert 'has neither three_train.txt' in last_line('shards', folder, '--name', 'three')


# ---- interruptions

def test_killed_at_any_moment_the_same_command_goes_on(tmp_path):
    """Killed four times, after more and more files, also in the middle of one."""
    images = write_archives(tmp_path / 'in', per_class=60, val=120, images=jpegs(40, (60, 50)))
    arguments = ('imagenet', '--archives', tmp_path / 'in', '--out', tmp_path / 'out', '--workers',
                 2, '--unpublished')
    killed = 0
    for number in range(4):
        process = start(*arguments)
        limit = len(images) * (number + 1) // 5

        assert wait_until(lambda limit=limit, process=process: process.poll() is not None or (
            sum(len(files) for *_, files in os.walk(tmp_path / 'out')) > limit), 60)
        workers = children_of(process.pid) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        assert gone(workers), 'workers outlive the command'
        assert not (tmp_path / 'out' / 'train.txt').exists() or not killed
    assert killed >= 3
    with open(tmp_path / 'out' / 'prepare.jsonl', 'ab') as journal:
        journal.write(b'{"work": "half a li')
    printed = run(*arguments)
    assert 'going on: ' in printed
    names = {'classes.txt': (tmp_path / 'out' / 'classes.txt').read_bytes()}
    assert content_of(tmp_path / 'out') == {**images, **lists_of(images), **names}


@pytest.mark.parametrize('number, code, said', [(signal.SIGINT, 130, 'interrupted'),
                                                (signal.SIGTERM, 75, 'stopped: SIGTERM')])
def test_signals_stop_all_processes(tmp_path, number, code, said):
    write_archives(tmp_path / 'in', per_class=400, val=4, images=jpegs(4, (500, 400)))
    process = start('imagenet', '--archives', tmp_path / 'in', '--out', tmp_path / 'out',
                    '--unpublished', start_new_session=True)
    assert wait_until(lambda: (tmp_path / 'out' / 'train').exists(), 60)
    workers = children_of(process.pid)
    os.killpg(process.pid, number)    # as Ctrl+C, to all
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.splitlines()[-1]) == (code, said)
    assert 'Traceback' not in errors and gone(workers)


# ---- what is odd, broken, refused

def damaged_images():
    image = Image.fromarray(picture(40, 48))
    files = {}
    for name, form, how in (('png', 'PNG', image), ('cmyk', 'JPEG', image.convert('CMYK'))):
        file = io.BytesIO()
        how.save(file, form)
        files[name] = file.getvalue()
    good = files['good'] = jpegs(1)[0]
    # An EXIF segment whose directory leads out of it.
    exif = b'Exif\0\0II*\0\x08\0\0\0\x09\0' + b'\x0f\x01\x02\0\xff\xff\0\0\xff\xff\0\0'
    files['exif'] = good[:2] + b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif + good[2:]
    files['cut off'] = good[:len(good) // 2]
    return files


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    """An archive with everything that is not as it should be; (folder, first line, printed)."""
    folder, files = tmp_path_factory.mktemp('odd'), damaged_images()
    write_archives(folder / 'in', val=4)
    name = 'n01440764'
    inner = tar([(f'{name}_1.JPEG', files['png']), (f'{name}_2.JPEG', files['cmyk']),
                 (f'{name}_3.JPEG', files['exif']), (f'{name}_4.JPEG', files['cut off']),
                 (f'{name}_5.JPEG', b''), (f'../{name}_6.JPEG', files['good']),
                 (f'/etc/{name}_7.JPEG', files['good']),
                 (f'{name}_8.JPEG', b'', {'type': tarfile.SYMTYPE, 'linkname': '/etc/passwd'}),
                 (f'{name}_9.JPEG', b'', {'type': tarfile.LNKTYPE, 'linkname': 'x'}),
                 (f'{name}_10.JPEG', b'', {'type': tarfile.CHRTYPE}),
                 ('n99999999_1.JPEG', files['good']), ('readme.txt', b'text'),
                 (f'{name}_11.JPEG', files['good'])])
    with tarfile.open(folder / 'in' / TRAIN, 'w') as archive:
        add(archive, f'{name}.tar', inner)
    strict = last_line('imagenet', '--archives', folder / 'in', '--out', folder / 'out')
    refused = last_line('imagenet', '--archives', folder / 'in', '--out', folder / 'out')
    assert strict == refused
    return folder, strict, run('imagenet', '--archives', folder / 'in', '--out', folder / 'out',
                               '--unpublished')


def test_odd_images_are_kept_and_named(odd):
    folder, _, printed = odd
    for line in ('n01440764_1.JPEG: a PNG by its content', 'n01440764_2.JPEG: CMYK',
                 'n01440764_3.JPEG: broken EXIF data'):
        assert line in printed
    assert '3 unusual images' in printed
    assert sorted(os.listdir(folder / 'out' / 'train' / 'n01440764')) == [
        f'n01440764_{number}.JPEG' for number in (1, 11, 2, 3)]


def test_broken_images_and_refused_members_are_named_and_left_out(odd):
    folder, _, printed = odd
    assert '2 images that cannot be decoded' in printed and '6 refused' in printed
    for number, why in ((4, 'damaged'), (5, 'the file is empty')):
        assert re.search(rf'{TRAIN}/n01440764.tar: n01440764_{number}.JPEG: .*{why}', printed)
    for member, why in (('../n01440764_6', "a path with '..'"),
                        ('/etc/n01440764_7', 'an absolute path'),
                        ('n01440764_8', 'a link to /etc/passwd'), ('n01440764_9', 'a link to x'),
                        ('n01440764_10', 'a device'), ('n99999999_1', 'n99999999 is not known')):
        assert re.search(rf'{re.escape(member)}.JPEG: refused, .*{why}', printed), member
    assert '1 files that are no images' in printed
    assert not list(folder.glob('*.JPEG')) and not list(folder.glob('out/*.JPEG'))
    assert len((folder / 'out' / 'train.txt').read_text().splitlines()) == 4


def test_without_the_option_an_archive_of_other_size_is_refused(odd):
    assert re.search(r'train.tar: has \d[\d,]+ bytes, the published file 147,897,477,120', odd[1])


# ---- what is published

@pytest.fixture
def published(downloads, monkeypatch):
    """The test's archives as if they were the published ones."""
    folder, images = downloads
    for name in (TRAIN, VAL, DEVKIT):
        content = (folder / name).read_bytes()
        monkeypatch.setitem(imagenet.PUBLISHED, name, imagenet.Published(
            len(content), hashlib.md5(content).hexdigest()))
    for split in ('train', 'val'):
        monkeypatch.setitem(imagenet.IMAGES, split,
                            sum(path.startswith(f'{split}/') for path in images))
    monkeypatch.setattr(imagenet, 'CLASSES', 4)
    return folder


def test_checksums_and_counts_of_the_published_files(published, tmp_path, capsys):
    prepare.main(['imagenet', '--archives', str(published), '--out', str(tmp_path / 'out')])
    assert (tmp_path / 'out' / 'train.txt').exists()
    # A byte of an image's content that changes no structure: only the checksum tells.
    other = tmp_path / 'other'
    shutil.copytree(published, other)
    content = bytearray((other / VAL).read_bytes())
    start = content.rfind(b'\xff\xd9')
    content[start + 100] ^= 1
    (other / VAL).write_bytes(content)
    with pytest.raises(DataError, match=rf'{VAL}: is damaged or not the published file \(MD5'):
        prepare.main(['imagenet', '--archives', str(other), '--out', str(tmp_path / 'out 2')])
    assert not (tmp_path / 'out 2' / 'val.txt').exists()


def test_a_missing_image_is_named_by_its_class(published, tmp_path, monkeypatch):
    folder = tmp_path / 'in'
    shutil.copytree(published, folder)
    with tarfile.open(published / TRAIN) as archive:
        inner = {entry.name: archive.extractfile(entry).read() for entry in archive}
    with tarfile.open(fileobj=io.BytesIO(inner['n01443537.tar'])) as archive:
        images = [(entry.name, archive.extractfile(entry).read()) for entry in archive]
    with tarfile.open(folder / TRAIN, 'w') as archive:
        for name, content in inner.items():
            add(archive, name, tar(images[:-1]) if name == 'n01443537.tar' else content)
    content = (folder / TRAIN).read_bytes()
    monkeypatch.setitem(imagenet.PUBLISHED, TRAIN, imagenet.Published(
        len(content), hashlib.md5(content).hexdigest()))
    with pytest.raises(DataError, match=r'train has 23 images, published are 24 \(n01443537 has 5 '
                                        r'instead of 6\); no lists were written'):
        prepare.main(['imagenet', '--archives', str(folder), '--out', str(tmp_path / 'out')])
    assert not (tmp_path / 'out' / 'train.txt').exists()


# ---- bad input

def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize('damage, said', [
    (lambda folder: shutil.rmtree(folder), r'in: cannot be read \(No such file or directory\)'),
    (lambda folder: (folder / TRAIN).unlink(), f'lacks {TRAIN}.*--val-only'),
    (lambda folder: (folder / VAL).unlink(), f'lacks {VAL}'),
    (lambda folder: (folder / DEVKIT).unlink(), f'lacks {DEVKIT}, which has the labels'),
    (lambda folder: (folder / TRAIN).write_bytes(b'<html>log in</html>'),
     f'{TRAIN}: is no tar archive'),
    (lambda folder: rewrite(folder / TRAIN, lambda content: content[:-20000]),
     f'{TRAIN}: is .*cut off after n01443537.tar'),
    (lambda folder: rewrite(folder / TRAIN, lambda content: content[:30000]),
     f'{TRAIN}: is .*cut off after'),
    (lambda folder: rewrite(folder / VAL, lambda content: content[:4000]),
     f'{VAL}: is .*cut off after ILSVRC2012_val_0000000'),
    # The second header of an inner archive; tarfile would take it for the end.
    (lambda folder: rewrite(folder / TRAIN, lambda content: content.replace(
        b'n01440764_17.JPEG', b'\xff01440764_17.JPEG')),
     f'{TRAIN}/n01440764.tar: is damaged or cut off after n01440764_0.JPEG'),
    (lambda folder: rewrite(folder / VAL, gzip.compress),
     f'{VAL}: is no tar archive.*gunzip'),
    (lambda folder: rewrite(folder / DEVKIT, lambda content: content[:200]),
     f'{DEVKIT}: is no devkit, or damaged'),
])
def test_bad_downloads_are_named_in_one_line(downloads, tmp_path, damage, said):
    folder = tmp_path / 'in'
    shutil.copytree(downloads[0], folder)
    damage(folder)
    line = last_line('imagenet', '--archives', folder, '--out', tmp_path / 'out', '--unpublished')
    assert line.startswith('error: ') and re.search(said, line), line
    assert not (tmp_path / 'out' / 'train.txt').exists()


@pytest.mark.parametrize('content', [b'\x1f\x8b' + bytes(50), b'', b'x' * 9000])
def test_a_damaged_devkit(tmp_path, content):
    (tmp_path / DEVKIT).write_bytes(content)
    with pytest.raises(DataError, match='is no devkit, or damaged'):
        imagenet.read_devkit(tmp_path / DEVKIT)


def test_classes_that_the_devkit_does_not_have(downloads, tmp_path):
    shutil.copytree(downloads[0], tmp_path / 'in')
    write_devkit(tmp_path / 'in' / DEVKIT, {'n01440764': 6}, ['n01440764'] * 8)
    printed = run('imagenet', '--archives', tmp_path / 'in', '--out', tmp_path / 'out',
                  '--unpublished')
    assert '18 refused' in printed and 'refused, its class n01443537 is not known' in printed
    assert os.listdir(tmp_path / 'out' / 'train') == ['n01440764']


def test_a_devkit_whose_files_do_not_fit(tmp_path):
    write_devkit(tmp_path / DEVKIT, {'n01440764': 1, 'n01443537': 1}, ['n01440764'])
    with tarfile.open(tmp_path / DEVKIT) as archive:
        archive.extractall(tmp_path)
    truth = tmp_path / 'ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt'
    truth.write_text('1\n7\n')
    with pytest.raises(DataError, match='do not fit'):
        imagenet.read_devkit(tmp_path / 'ILSVRC2012_devkit_t12')
    truth.unlink()
    with pytest.raises(DataError, match='holds no ILSVRC2012_validation_ground_truth.txt'):
        imagenet.read_devkit(tmp_path / 'ILSVRC2012_devkit_t12')


def test_places_that_cannot_be_written(downloads, tmp_path):
    (tmp_path / 'file').write_text('')
    arguments = ('imagenet', '--archives', downloads[0], '--unpublished', '--out')
    assert re.match('failed: .*file: ', last_line(*arguments, tmp_path / 'file', code=1))
    (tmp_path / 'of others' / 'train').mkdir(parents=True)
    assert 'is there already, and not by this command' in last_line(*arguments,
                                                                     tmp_path / 'of others')


def test_two_commands_do_not_write_to_one_folder(downloads, tmp_path):
    from data.extract import Journal
    journal = Journal(str(tmp_path / 'out'), {'splits': []})
    assert 'another command is writing there' in last_line(
        'imagenet', '--archives', downloads[0], '--out', tmp_path / 'out', '--unpublished')
    journal.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 120 KB; each of the files takes 4."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=120k', 'tmpfs', disk],
                      capture_output=True).returncode:
        pytest.skip('mounting is not allowed here')
    yield disk
    subprocess.run(['umount', '--lazy', disk], check=True)


def test_a_full_disk(downloads, small_disk):
    arguments = ('imagenet', '--archives', downloads[0], '--unpublished', '--out',
                 small_disk / 'out')
    line = last_line(*arguments, code=1)
    assert re.match(r'failed: .*No space left on device; what is finished is kept', line)
    assert not (small_disk / 'out' / 'train.txt').exists()
    written = content_of(small_disk / 'out')
    assert all(content == downloads[1][path] for path, content in written.items()
               if not os.path.basename(path).startswith('.'))
    subprocess.run(['mount', '-o', 'remount,size=1m', small_disk], check=True)
    run(*arguments)
    found = content_of(small_disk / 'out')
    del found['classes.txt']
    assert found == {**downloads[1], **lists_of(downloads[1])}


def test_no_permission(downloads, small_disk):
    if os.geteuid():
        small_disk.chmod(0o555)
    else:    # no permission keeps root out
        subprocess.run(['mount', '-o', 'remount,ro', small_disk], check=True)
    line = last_line('imagenet', '--archives', downloads[0], '--unpublished', '--out',
                     small_disk / 'out', code=1)
    assert re.match('failed: .*out: (Permission denied|Read-only file system)', line)


def test_too_small_a_disk_is_refused_at_once(small_disk, tmp_path):
    write_archives(tmp_path / 'in', per_class=40, val=4)
    line = last_line('imagenet', '--archives', tmp_path / 'in', '--unpublished', '--out',
                     small_disk / 'out')
    assert re.search(r'out: 0\.1 MB free, up to 0\.\d MB needed; free some', line)
    assert not (small_disk / 'out' / 'train').exists()


def test_a_file_that_may_not_grow(downloads, tmp_path):
    """As a full disk, where mounting is not allowed: files of at most 600 bytes."""
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    line = last_line('imagenet', '--archives', downloads[0], '--unpublished', '--out',
                     tmp_path / 'out', code=1, preexec_fn=limit)
    assert re.match('failed: .*File too large', line)
    assert not [path for path in content_of(tmp_path / 'out') if path.endswith('.JPEG')
                and not os.path.basename(path).startswith('.')]


# ---- archives

def test_members_are_found_by_offset_across_pieces(tmp_path):
    """Second way: Python's tarfile reads the whole archive."""
    contents = [(f'{"long" * 40 if number == 3 else "n"}{number}', os.urandom(number * 400))
                for number in range(9)]
    whole_file = tar(contents)
    for number in range(3):
        (tmp_path / str(number)).write_bytes(whole_file[number * 4000:(number + 1) * 4000]
                                             if number < 2 else whole_file[8000:])
    parts = whole(*(tmp_path / str(number) for number in range(3)))
    with open_parts(parts) as file:
        found = list(members(file, 'archive'))
        assert [(member.name, read_member(file, member, '')) for member in found] == contents
    for member, (_, content) in zip(found, contents):
        with open_parts(part_of(parts, member.start, member.size)) as file:
            assert file.read() == content
    with open_parts(parts) as file:
        some = list(members(file, 'archive', found[3].header, 4))
        assert some == found[3:7]


# ---- verify and labels

def test_verify(downloads, prepared, tmp_path):
    folder, devkit = prepared[0], downloads[0] / DEVKIT
    assert run('verify', folder, '--unpublished', '--devkit', devkit).endswith('no problems\n')
    broken = tmp_path / 'broken'
    shutil.copytree(folder, broken)
    paths = sorted((broken / 'train').rglob('*.JPEG'))
    paths[0].write_bytes(paths[0].read_bytes()[:300])
    paths[5].unlink()
    line = last_line('verify', broken, '--unpublished', '--devkit', devkit, code=1)
    assert re.match(r'failed: 2 problems: ', line)
    assert f'{paths[0]}: damaged' in line and f'{paths[5]}: cannot be read (No such file' in line
    assert 'train has 24 images, published are 1,281,167' in last_line(
        'verify', folder, '--devkit', devkit, code=1)
    assert 'neither train.txt' in last_line('verify', tmp_path)


ORDERS = {
    'numbers': (lambda ids, numbers: numbers, r'numbers \(ILSVRC2012_ID\), from 1'),
    'less 1': (lambda ids, numbers: {name: number - 1 for name, number in numbers.items()},
               r'numbers \(ILSVRC2012_ID\) less 1, from 0'),
    'from 1': (lambda ids, numbers: {name: number + 1 for name, number in ids.items()},
               'sorted WordNet ids, but counted from 1'),
    'reversed': (lambda ids, numbers: {name: 3 - number for name, number in ids.items()},
                 'another class order than the sorted WordNet ids: n01440764 has 3 instead of 0'),
}


@pytest.mark.parametrize('order', ORDERS)
def test_labels_in_another_order_are_recognised(downloads, prepared, tmp_path, order):
    devkit = imagenet.read_devkit(downloads[0] / DEVKIT)
    labels_of, said = ORDERS[order]
    labels = labels_of(devkit.class_ids, numbers_of(devkit.classes))
    right = (prepared[0] / 'val.txt').read_text().splitlines()
    # As such lists circulate: no class folders, in the order of the images' numbers.
    rows = sorted((line.split()[0].split('/')[1], labels[line.split('/')[0]]) for line in right)
    (tmp_path / 'val.txt').write_text(''.join(f'{name} {label}\n' for name, label in rows))
    assert re.search(said, imagenet.label_order(imagenet.read_labels(tmp_path / 'val.txt'), devkit))
    if order == 'numbers':
        (tmp_path / 'val').mkdir()
        for path in (prepared[0] / 'val').rglob('*.JPEG'):
            shutil.copy(path, tmp_path / 'val')
        line = last_line('verify', tmp_path, '--val-only', '--unpublished', '--devkit',
                         downloads[0] / DEVKIT, code=1)
        assert re.match(rf'failed: 1 problems: {tmp_path}/val.txt: the labels follow .*{said}',
                        line)
        shutil.copy(downloads[0] / DEVKIT, tmp_path)
        shutil.copy(downloads[0] / VAL, tmp_path)
        printed = run('imagenet', '--archives', tmp_path, '--out', tmp_path / 'out', '--val-only',
                      '--unpublished')
        assert re.search(rf'{tmp_path}/val.txt: the labels follow .*{said}', printed)
        assert sorted((tmp_path / 'out' / 'val.txt').read_text().splitlines()) == sorted(right)


def test_shuffled_labels_are_no_class_order(downloads, prepared):
    devkit = imagenet.read_devkit(downloads[0] / DEVKIT)
    labels = imagenet.read_labels(prepared[0] / 'val.txt')
    assert imagenet.label_order(labels, devkit) == ''
    moved = [(path, labels[number - 1][1]) for number, (path, _) in enumerate(labels)]
    assert '4 of 8 labels differ from the truth' in imagenet.label_order(moved, devkit)


# ---- lists

def samples_of(path):
    return ImageList().samples(Request(str(path.parent), str(path))).samples


def test_subsets(prepared, tmp_path):
    folder = tmp_path / 'data'
    shutil.copytree(prepared[0], folder)
    run('subset', folder, 'two', '--classes', 2, '--images', 3)
    two, validation = (samples_of(folder / f'two_{split}.txt') for split in ('train', 'val'))
    assert len(two) == 6 and len({label for _, label in two}) == 2
    assert set(two) < set(samples_of(folder / 'train.txt'))
    assert {label for _, label in two} == {label for _, label in validation}
    assert set(validation) == {sample for sample in samples_of(folder / 'val.txt')
                               if sample[1] in {label for _, label in two}}
    # A smaller one lies in a larger one.
    for name, images in (('half', 0.5), ('sixth', 0.1)):
        run('subset', folder, name, '--part', images, '--seed', 3)
    half, sixth = (set(samples_of(folder / f'{name}_train.txt')) for name in ('half', 'sixth'))
    assert (len(half), len(sixth)) == (12, 4) and sixth < half
    (tmp_path / 'classes').write_text('n01484850\n1\n')
    printed = run('subset', folder, 'named', '--class-list', tmp_path / 'classes', '--renumber')
    assert 'MODEL.NUM_CLASSES=2' in printed
    named = (folder / 'named_train.txt').read_text()
    assert {line.split('/')[0] + line[-2:] for line in named.splitlines()} == {
        'n01443537 0', 'n01484850 1'}
    assert 'is there already' in last_line('subset', folder, 'named', '--images', 1)
    assert 'has 6 images, 7 are wanted' in last_line('subset', folder, 'more', '--images', 7)


def test_what_a_seed_draws_is_the_same_for_ever():
    """Written down once: other versions of Python and NumPy must draw the same."""
    samples = [(f'{label}/{number}.JPEG', label) for label in range(5) for number in range(9)]
    assert splits.choose_classes(range(1000), 5, seed=0) == CLASSES_OF_SEED_0
    assert splits.subset(samples, seed=1, classes=[1, 3], images=3) == IMAGES_OF_SEED_1


CLASSES_OF_SEED_0 = [146, 196, 313, 332, 549]
IMAGES_OF_SEED_1 = ['1/4.JPEG 1', '1/6.JPEG 1', '1/7.JPEG 1',
                    '3/0.JPEG 3', '3/2.JPEG 3', '3/6.JPEG 3']


def test_a_folder_is_split_class_by_class(tmp_path):
    for name, count in (('a class', 20), ('b', 5), ('ç', 2)):
        (tmp_path / name / 'deeper').mkdir(parents=True)
        for number in range(count):
            (tmp_path / name / ('deeper' if number % 2 else '') / f'{number} x.jpg').write_bytes(
                jpegs(1)[0])
    printed = run('folder', tmp_path, '--val', 0.2)
    assert 'MODEL.NUM_CLASSES=3' in printed
    assert sum(len(found.samples) for found in images_of_command(printed).values()) == 27
    training, validation = (samples_of(tmp_path / f'{split}.txt') for split in ('train', 'val'))
    counts = [[label for _, label in part].count(number) for part in (training, validation)
              for number in range(3)]
    assert counts == [16, 4, 1, 4, 1, 1]
    assert not set(training) & set(validation)
    assert {path for path, _ in [*training, *validation]} == set(
        map(str, tmp_path.rglob('*.jpg')))
    assert (tmp_path / 'classes.txt').read_text() == 'a class\nb\nç\n'
    before = (tmp_path / 'val.txt').read_bytes()
    run('folder', tmp_path, '--val', 0.2)
    assert (tmp_path / 'val.txt').read_bytes() == before
    assert 'is there already' in last_line('folder', tmp_path, '--val', 0.2, '--seed', 1)
    run('folder', tmp_path, '--val', 0.2, '--seed', 1, '--force')
    assert (tmp_path / 'val.txt').read_bytes() != before
    assert run('verify', tmp_path).endswith('no problems\n')
    (tmp_path / 'empty').mkdir()
    assert '0 images; a class needs two' in last_line('folder', tmp_path)


def test_cifar_as_png_files(tmp_path):
    source = tmp_path / 'cifar-10-python.tar.gz'
    pixels = write_cifar_10(source)
    assert 'published are 50,000' in last_line('cifar10', source)
    assert 't2t_vit_14_cifar10' in run('cifar10', source, '--unpublished')
    run('cifar10', source, '--unpublished', '--out', tmp_path / 'out')
    training = samples_of(tmp_path / 'out' / 'train.txt')
    assert [label for _, label in training] == [3, 7] * 5
    second = np.asarray(Image.open(tmp_path / 'out' / 'train' / 'class 7' / '00001.png'))
    assert np.array_equal(second, pixels['data_batch_1'][1].reshape(3, 32, 32).transpose(1, 2, 0))


@pytest.mark.parametrize('arguments, said', [
    (['imagenet', '--archives', 'x', '--out', 'y', '--quality', '96'], 'is at most 95'),
    (['imagenet', '--archives', 'x', '--out', 'y', '--light', '0'], "'0' is no number above 0"),
    (['folder', 'x', '--val', '1'], "'1' is no number between 0 and 1"),
    (['folder', 'nowhere'], 'nowhere: '),
    (['verify', 'nowhere'], 'nowhere: '),
    (['subset', 'nowhere', 'name'], 'nowhere'),
    (['cifar10', 'nowhere'], 'nowhere: '),
])
def test_wrong_command_lines(arguments, said):
    line = last_line(*arguments)
    assert said in line
