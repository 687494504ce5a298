"""Catches records of VisualDL that its reader does not find, or that differ from the log."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from support import plain

from figures.predictions import GAP, LINE, RIGHT, SIDE, WRONG, ImageGrid
from weights.files import read_weights

IMAGES = 24


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The folder of a run that goes back by one epoch, and VisualDL's reader of its records."""
    from visualdl import LogReader

    folder = tmp_path_factory.mktemp('visualdl')
    recipe = plain.write_recipe(folder, IMAGES)
    command = [sys.executable, plain.__file__, '-c', str(recipe), '-o', 'TRAIN.VISUALDL=true',
               f'TRAIN.VISUALDL_IMAGES={IMAGES}', 'TRAIN.VISUALDL_HISTOGRAMS=true',
               'SCHEDULER.BASE_LR=0.02', 'SCHEDULER.NUM_EPOCHS=4']
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        for step in range(19, 25):
            (folder / f'run/checkpoints/step-{step:09d}.ckpt').unlink(missing_ok=True)
    (file,) = (folder / 'run' / 'visualdl').iterdir()    # VisualDL shows only the newest file
    return folder / 'run', LogReader(file_path=str(file))


def events(folder, name):
    records = map(json.loads, (folder / 'log.jsonl').read_text().splitlines())
    return [record for record in records if record['event'] == name]


@pytest.mark.parametrize('event, names', [
    ('step', 'loss acc lr images_per_second'), ('epoch', 'loss acc bad_images'),
    ('validation', 'top1 top5 loss')])
def test_the_curves_are_those_of_the_log(run, event, names):
    folder, reader = run
    for name in names.split():
        records = reader.get_data('scalar', f'{event}/{name}')
        shown = [(record.id, record.value) for record in records]
        logged = [(record['step'], record[name]) for record in events(folder, event)]
        assert [step for step, _ in shown] == [step for step, _ in logged]
        np.testing.assert_allclose(shown, logged, rtol=1e-6)    # VisualDL has float32


def test_the_histograms_count_every_weight(run):
    folder, reader = run
    state, _ = read_weights(folder / 'last.pdparams')
    assert {'hidden/weight', 'hidden/bias', 'head/weight', 'head/bias'} == set(
        reader.get_tags()['histogram'])
    for name, values in state.items():
        *_, last = records = reader.get_data('histogram', name.replace('.', '/'))
        assert [record.id for record in records] == [6, 12, 18, 24]
        heights, edges = np.array(last.histogram.hist), np.array(last.histogram.bin_edges)
        assert heights.sum() == np.size(values)
        np.testing.assert_allclose((edges[0], edges[-1]), (np.min(values), np.max(values)),
                                   rtol=1e-5)
        middle = np.sum(np.asarray(values) >= edges[20])
        assert abs(heights[20:].sum() - middle) <= 1    # a value at the edge


def test_the_frames_of_the_pictures_tell_right_from_wrong(run):
    folder, reader = run
    pictures = reader.get_data('image', 'validation/predictions')
    scores = [record['top1'] for record in events(folder, 'validation')]
    assert len(pictures) == len(scores) and max(scores) > min(scores)
    for picture, top1 in zip(pictures, scores):
        sheet = np.asarray(Image.open(io.BytesIO(picture.image.encoded_image_string)), int)
        assert sheet.shape == (4 * (SIDE + 2 * LINE + GAP) + GAP, 7 * (SIDE + GAP) + GAP, 3)
        right = 0
        for place in range(IMAGES):
            x = GAP + place % 7 * (SIDE + GAP)
            y = GAP + place // 7 * (SIDE + 2 * LINE + GAP)
            frame = sheet[y:y + 2, x + 8:x + SIDE - 8].mean((0, 1))
            far = [np.abs(frame - colour).sum() for colour in (RIGHT, WRONG)]
            assert 2 * min(far) < max(far)
            right += far[0] < far[1]
        assert right / IMAGES == pytest.approx(top1)


def test_a_run_is_listed_by_the_names_of_its_folders(run):
    from visualdl import LogReader
    from visualdl.server.lib import get_logs

    folder, _ = run
    assert get_logs(LogReader(str(folder)), 'scalar')['runs'] == [f'{folder.parent.name}/run']


def test_a_grid_chooses_images_of_the_whole_set_in_any_batches():
    import paddle

    index = paddle.arange(100)
    labels, predicted = index % 10, (index + (index > 60).astype('int64')) % 10
    logits = 9 * paddle.nn.functional.one_hot(predicted, 10)
    for size in (7, 100):
        grid = ImageGrid(100, 3)
        for first in range(0, 100, size):
            grid.add(logits[first:first + size], labels[first:first + size])
        assert [row[:3] for row in grid.predictions] == [(0, 0, 0), (49, 9, 9), (99, 9, 0)]
        names = ['a class whose name is far too long for one image', *'bcdefghij']
        images = {index: Image.new('RGB', (30, 50)) for index in (0, 49, 99)}
        assert grid.draw(images.pop, names).startswith(b'\xff\xd8') and not images
    assert ImageGrid(100, 0).draw(None) is None
