"""Catches a drawn data set that is not reproducible or well formed, or that colours give away."""

import hashlib
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
LIT_DATA = ROOT / 'lit_data'
sys.path.insert(0, str(LIT_DATA / 'draw'))

import scene  # noqa: E402

WORDNET_ID = re.compile(r'n\d{8}')


def read_list(folder, split):
    """Pairs of (path of the picture, class id)."""
    lines = (folder / f'{split}.txt').read_text(encoding='utf-8').splitlines()
    return [(folder / split / path, int(class_id)) for path, class_id in map(str.split, lines)]


def read_classes():
    """Pairs of (WordNet id, name) in the order of the class ids."""
    text = (ROOT / 'config' / 'imagenet_classes.txt').read_text(encoding='utf-8')
    return [tuple(line.split(' ', 1)) for line in text.splitlines()]


def run(*options):
    return subprocess.run([sys.executable, str(LIT_DATA / 'draw' / 'scene.py'), *map(str, options)],
                          capture_output=True, text=True)


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """A small data set, drawn by the command in a process of its own."""
    out = tmp_path_factory.mktemp('drawn') / 'data'
    result = run('--out', out, '--train', 1, '--val', 1)
    assert result.returncode == 0, result.stderr
    assert '16 training and 16 validation pictures of 16 classes' in result.stdout
    return out


def test_a_single_picture_equals_that_of_a_whole_run(small):
    for split in ('val', 'train'):
        for path, class_id in reversed(read_list(small, split)):
            assert path.read_bytes() == scene.draw_jpeg(split, class_id, 1)


def test_another_seed_split_or_number_gives_another_picture():
    cases = [('train', 923, 1, 0), ('train', 923, 1, 1), ('val', 923, 1, 0), ('train', 923, 2, 0)]
    assert len({scene.draw_jpeg(*case) for case in cases}) == 4


def test_stored_pictures_equal_a_redraw():
    # Other builds of Pillow and libjpeg may round differently, so pixels are compared, not bytes.
    files = [file for file in scene.plan(170, 8, [w for w, _ in scene.CLASSES.values()])
             if file[3] in (1, 7)]
    for split, path, place, number in files:
        stored = Image.open(LIT_DATA / split / path)
        redraw = Image.open(io.BytesIO(
            scene.draw_jpeg(split, list(scene.CLASSES)[place], number)))
        assert (stored.size, stored.mode) == (redraw.size, redraw.mode), path
        difference = numpy.asarray(stored).astype(float) - numpy.asarray(redraw)
        assert abs(difference).mean() < 2, path


def test_lists_files_and_classes_agree():
    classes = read_classes()
    for split, count in (('train', 170), ('val', 8)):
        entries = read_list(LIT_DATA, split)
        assert len(entries) == len(set(entries)) == count * len(scene.CLASSES)
        assert {path for path, _ in entries} == set((LIT_DATA / split).glob('*/*'))
        for path, class_id in entries:
            assert path.parent.name == classes[class_id][0] == scene.CLASSES[class_id][0]
    assert 923 in scene.CLASSES and len(scene.CLASSES) == 16


def test_training_and_validation_share_no_picture():
    paths = [path for split in ('train', 'val') for path, _ in read_list(LIT_DATA, split)]
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in paths}) == len(paths)


def test_pictures_are_small_jpegs_of_many_sizes():
    sizes, modes = set(), set()
    for path in LIT_DATA.glob('*/n*/*'):    # not draw/__pycache__
        with Image.open(path) as image:
            assert image.format == 'JPEG'
            assert 64 <= min(image.size) and max(image.size) <= 120
            sizes.add(image.size)
            modes.add(image.mode)
    assert len(sizes) > 100 and modes == {'L', 'RGB'}
    assert sum(path.stat().st_size for path in LIT_DATA.rglob('*') if path.is_file()) < 5_000_000


def test_the_mean_colour_does_not_predict_the_class():
    def describe(split, crop):
        colors, class_ids = [], []
        for path, class_id in read_list(LIT_DATA, split):
            pixels = numpy.asarray(Image.open(path).convert('RGB')).astype(float)
            colors.append(crop(pixels).mean(axis=0))
            class_ids.append(class_id)
        return numpy.array(colors), numpy.array(class_ids)

    def whole(pixels):
        return pixels.reshape(-1, 3)

    def border(pixels):
        return numpy.concatenate([pixels[:6].reshape(-1, 3), pixels[-6:].reshape(-1, 3)])

    for crop in (whole, border):
        colors, class_ids = describe('train', crop)
        means = numpy.array([colors[class_ids == class_id].mean(axis=0)
                             for class_id in scene.CLASSES])
        colors, class_ids = describe('val', crop)
        nearest = ((colors[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
        assert (numpy.array(list(scene.CLASSES))[nearest] == class_ids).mean() < 0.25


def test_drawing_again_replaces_only_what_was_drawn(small, tmp_path):
    out = tmp_path / 'data'
    scene.prepare(out, 2, 1)
    own = out / 'train' / 'n07579787' / 'mine.JPEG'
    own.write_bytes(b'mine')
    scene.prepare(out, 1, 1)
    drawn = {path.relative_to(out): path.read_bytes() for path in out.rglob('*')
             if path.is_file() and path != own}
    assert own.read_bytes() == b'mine'
    assert drawn == {path.relative_to(small): path.read_bytes() for path in small.rglob('*')
                     if path.is_file()}


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / 'train.txt').write_text('photo.JPEG 1\n')
    result = run('--out', tmp_path)
    assert result.returncode == 2 and result.stdout == ''
    assert result.stderr.count('\n') == 1 and '--out' in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['train.txt']


@pytest.mark.parametrize('record', [
    '', '[]', '{"train": "x", "val": 1, "classes": {"1": "n00000001"}}',
    '{"train": 1, "val": 1, "classes": {"1": "../../n01"}}'])
def test_an_invalid_record_is_refused(tmp_path, record):
    (tmp_path / scene.RECORD).write_text(record)
    with pytest.raises(FileExistsError, match='cannot be read'):
        scene.clear(tmp_path)


def test_wrong_input_is_one_line_and_exit_2(tmp_path):
    result = run('--out', tmp_path / 'data', '--train', 0)
    assert result.returncode == 2
    assert result.stderr.splitlines() == ['error: --train and --val must be 1 or more']


def test_class_names():
    classes = read_classes()
    wordnet_ids, names = zip(*classes)
    assert len(classes) == 1000
    assert all(WORDNET_ID.fullmatch(wordnet_id) for wordnet_id in wordnet_ids)
    assert list(wordnet_ids) == sorted(set(wordnet_ids))
    assert len({name.lower() for name in names}) == 1000
    known = {0: 'tench', 1: 'goldfish', 134: 'crane (bird)', 517: 'crane (machine)',
             264: 'Cardigan Welsh corgi', 474: 'cardigan', 638: 'maillot',
             639: 'maillot, tank suit', 923: 'plate', 999: 'toilet tissue'}
    assert {class_id: names[class_id] for class_id in known} == known
    assert wordnet_ids[923] == 'n07579787'
