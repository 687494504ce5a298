"""Catches learning rates that differ from published logs or from the closed forms of the papers."""

import json

import numpy as np
import paddle
import pytest
from conftest import ROOT
from support.official import GOLDEN

import build
from config import ConfigError, load_config
from scheduler import Schedule, format_rate, learning_rate
from system import distributed


def rates(path, epochs):
    """The rate of each epoch, as train.py sets it."""
    config = load_config(path)
    schedule = build.schedule(config)
    actual = []
    for epoch in range(epochs):
        schedule.step(config.SCHEDULER.LAST_EPOCHS + 1 + epoch)
        actual.append(schedule())
    return actual


PUBLISHED = json.loads((GOLDEN / 'published_rates.json').read_text())


def rates_that_differ(path, log, epochs):
    """(number of printed rates of a log that differ from those of a file, number of rates)."""
    actual = rates(path, epochs)
    rows = [(format_rate(actual[epoch]) != text, lines)
            for epoch, text, lines in PUBLISHED[log]]
    return sum(lines for differs, lines in rows if differs), sum(lines for _, lines in rows)


def test_the_log_recipe_has_every_rate_of_the_published_log():
    assert rates_that_differ('config/t2t_vit_7_log.yaml', 't2t_paddle_1', 310) == (0, 1212)


def test_the_plain_recipe_is_what_the_published_readme_describes():
    actual = rates('config/t2t_vit_7.yaml', 300)
    np.testing.assert_allclose(actual[:5], [2e-4, 4e-4, 6e-4, 8e-4, 1e-3], rtol=1e-12)
    # A straight line from 1e-3 in epoch 4 to 5e-4 in the last one.
    np.testing.assert_allclose(actual[4:], np.linspace(1e-3, 5e-4, 296), rtol=1e-12)
    count, of = rates_that_differ('config/t2t_vit_7.yaml', 't2t_paddle_1', 300)
    assert (count, of) == (492, 1212)
    header = (ROOT / 'config' / 't2t_vit_7.yaml').read_text()
    assert f'{count} of the {of:,} rates' in header


def test_no_rate_of_the_published_yaml_file_is_in_the_published_log(tmp_path):
    path = recipe(tmp_path, """
        SCHEDULER: {NUM_EPOCHS: 300, LAST_EPOCHS: 0, BASE_LR: 0.003, USE_WARMUP: true,
                    WARMUP_EPOCHS: 3, WARMUP_START_LR: 1e-6, END_LR: 5e-4}""")
    actual = rates(path, 300)
    # That repository's scheduler: warm-up of 3 epochs from 1e-6, then cosine; it starts at epoch 1.
    warm = [1e-6 + (3e-3 - 1e-6) * epoch / 3 for epoch in (1, 2)]
    progress = (np.arange(3, 301) - 3) / 297
    down = 5e-4 + (3e-3 - 5e-4) * (1 + np.cos(np.pi * progress)) / 2
    np.testing.assert_allclose(actual, np.concatenate([warm, down]), rtol=1e-12)
    assert rates_that_differ(path, 't2t_paddle_1', 300) == (1212, 1212)


@pytest.mark.parametrize('stage, lines, epochs', [(3, 25, 36), (4, 5, 20)])
def test_the_later_stages_have_the_rates_of_their_logs(stage, lines, epochs):
    path = f'config/t2t_vit_7_stage{stage}.yaml'
    # Epochs with fewer lines were interrupted.
    complete = [text for _, text, actual in PUBLISHED[f't2t_paddle_{stage}'] if actual == lines]
    assert len(complete) == epochs == load_config(path).SCHEDULER.NUM_EPOCHS
    assert [format_rate(rate) for rate in rates(path, epochs)] == complete


@pytest.mark.parametrize('log', ['t2t_paddle_1', 't2t_paddle_3', 't2t_paddle_4'])
def test_a_rate_is_printed_as_in_the_published_logs(log):
    assert all(format_rate(float(text)) == text for _, text, _ in PUBLISHED[log])


def test_each_stage_starts_from_the_weights_of_the_previous_one():
    names = ['t2t_vit_7_log'] + [f't2t_vit_7_stage{stage}' for stage in (2, 3, 4)]
    for before, name in zip(names, names[1:]):
        start = load_config(f'config/{name}.yaml').MODEL.PRETRAINED
        assert start.startswith(load_config(f'config/{before}.yaml').TRAIN.OUTPUT_DIR + '/')


def test_the_pit_recipe_has_every_rate_of_the_published_log():
    config = load_config('config/pit_ti.yaml', ['TRAIN.TRAIN_BATCH_SIZE=1024'])
    schedule, keys = build.schedule(config), config.SCHEDULER
    printed = PUBLISHED['paddle_pit']
    assert sum(lines for _, _, lines in printed) == 315
    assert {epoch for epoch, _, _ in printed} == set(range(1, keys.NUM_EPOCHS + 1))
    for epoch, text, _ in printed:
        schedule.step(keys.LAST_EPOCHS + epoch)    # epochs count from 1 there
        assert f'{schedule():.6f}' == text, epoch


OFFICIAL = """
SCHEDULER: {NUM_EPOCHS: 310, COOLDOWN_EPOCHS: 10, BASE_LR: 1e-3, WARMUP_EPOCHS: 10,
            WARMUP_START_LR: 1e-6, END_LR: 1e-5, DECAY: cosine, DECAY_FROM: start}
"""


def recipe(tmp_path, text):
    (tmp_path / 'recipe.yaml').write_text(text)
    return tmp_path / 'recipe.yaml'


def test_the_official_recipe(tmp_path):
    actual = rates(recipe(tmp_path, OFFICIAL), 310)
    wanted = np.load(GOLDEN / 'lr_official.npz')['lr']
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-12)


def test_the_official_recipe_with_a_warm_up_of_five_epochs(tmp_path):
    actual = rates(recipe(tmp_path, OFFICIAL.replace('WARMUP_EPOCHS: 10', 'WARMUP_EPOCHS: 5')), 310)
    wanted = np.load(GOLDEN / 'lr_official.npz')['lr']
    np.testing.assert_allclose(actual[10:], wanted[10:], rtol=0, atol=1e-12)
    np.testing.assert_allclose(actual[:5], 1e-6 + np.arange(5) * (1e-3 - 1e-6) / 5, rtol=1e-12)
    progress = np.arange(5, 10) / 300
    np.testing.assert_allclose(
        actual[5:10], 1e-5 + (1e-3 - 1e-5) * np.cos(np.pi * progress / 2) ** 2, rtol=1e-12)


def test_pits_recipe(tmp_path):
    actual = rates(recipe(tmp_path, """
        SCHEDULER: {NUM_EPOCHS: 310, COOLDOWN_EPOCHS: 10, BASE_LR: 1e-3, WARMUP_EPOCHS: 20,
                    WARMUP_START_LR: 5e-7, END_LR: 5e-6, DECAY_FROM: start}"""), 310)
    np.testing.assert_allclose(actual[:20], np.linspace(5e-7, 1e-3, 21)[:20], rtol=1e-12)
    epochs = np.arange(20, 300)
    np.testing.assert_allclose(
        actual[20:300], 5e-6 + (1e-3 - 5e-6) * np.cos(np.pi * epochs / 600) ** 2, rtol=1e-12)
    assert actual[300:] == [5e-6] * 10


def test_vits_fine_tuning_recipe(tmp_path):
    actual = rates(recipe(tmp_path, """
        SCHEDULER: {NUM_EPOCHS: 30, BASE_LR: 0.03, WARMUP_EPOCHS: 0, END_LR: 0}"""), 30)
    np.testing.assert_allclose(actual, 0.03 * np.cos(np.pi * np.arange(30) / 60) ** 2, rtol=1e-12)
    assert actual[0] == 0.03


@pytest.mark.parametrize('batch, processes, lr_batch, wanted', [
    (64, 8, 512, 1e-3), (256, 4, 512, 2e-3), (16, 1, 512, 1e-3 / 32), (16, 1, 0, 1e-3)])
def test_the_rate_scales_with_the_images_per_step(tmp_path, monkeypatch, batch, processes,
                                                  lr_batch, wanted):
    monkeypatch.setattr(distributed, 'world_size', lambda: processes)
    path = recipe(tmp_path, f"""
        TRAIN: {{TRAIN_BATCH_SIZE: {batch}}}
        SCHEDULER: {{BASE_LR: 1e-3, LR_BATCH: {lr_batch}, WARMUP_EPOCHS: 5, END_LR: 1e-5,
                     WARMUP_START_LR: 1e-6}}""")
    actual = rates(path, 300)
    assert max(actual) == actual[5] == pytest.approx(wanted, rel=1e-12)
    assert actual[0] == pytest.approx(1e-3 * wanted, rel=1e-12)    # both ends scale too
    assert min(actual[5:]) > 1e-2 * wanted
    line = build.describe_schedule(load_config(path))
    assert line.startswith('adamw, 5-epoch warm-up, cosine decay, '
                           f'highest learning rate {format_rate(wanted)}')
    assert (f'for {lr_batch} images a step, of which there are {batch * processes}' in line
            ) == bool(lr_batch)


@pytest.mark.parametrize('keys, said', [
    ('DECAY_FROM: begin', 'SCHEDULER.DECAY_FROM must be one of warmup, start'),
    ('RATES: [[1, 1e-3]]', 'SCHEDULER.RATES must begin at the first epoch of the schedule .0.'),
    ('RATES: [[0, 1e-3], [2, 1e-4], [1, 1e-5]]', 'SCHEDULER.RATES .* rising epochs'),
    ('RATES: [[0, 1e-3, 2]]', 'SCHEDULER.RATES must be a list of rows of 2 numbers'),
    ('SCALE_END_LR: false, END_LR: 2e-4, BACKBONE_LR_SCALE: 0.01',
     'SCHEDULER.END_LR is 0.0002, above the 3e-05 of SCHEDULER.BASE_LR times'),
    ('LR_BATCH: -1', 'SCHEDULER.LR_BATCH must be at least 0'),
    ('LR_BATCH: 0.5', 'SCHEDULER.LR_BATCH must be a whole number'),
    ('COOLDOWN_EPOCHS: 300', 'SCHEDULER.COOLDOWN_EPOCHS is 300, which the 300 of '
     'SCHEDULER.NUM_EPOCHS do not hold behind the 3 of SCHEDULER.WARMUP_EPOCHS')])
def test_the_error_for_an_invalid_value_names_the_key(tmp_path, keys, said):
    with pytest.raises(ConfigError, match=said):
        load_config(recipe(tmp_path, f'SCHEDULER: {{{keys}}}'))


def test_the_rate_is_constant_after_the_last_epoch():
    assert learning_rate(500, 1e-3, 5, 0.0, 5e-4, 300, 'cosine') == pytest.approx(5e-4)
    assert learning_rate(500, 1e-3, 5, 0.0, 5e-4, 300, 'linear') == pytest.approx(5e-4)


def test_without_warm_up_the_rate_is_constant(tmp_path):
    path = tmp_path / 'constant.yaml'
    path.write_text('SCHEDULER: {USE_WARMUP: false, BASE_LR: 2e-5}')
    assert set(rates(path, 10)) == {2e-5}


def test_a_paddle_optimizer_uses_the_rate_of_a_schedule():
    schedule = Schedule(lambda progress: 1e-3 * (progress + 1))
    layer = paddle.nn.Linear(2, 2)
    optimizer = paddle.optimizer.AdamW(schedule, parameters=layer.parameters())
    schedule.step(2.5)
    assert optimizer.get_lr() == pytest.approx(3.5e-3)


@pytest.mark.parametrize('rate, text', [
    (0.0009, '0.0009'), (0.001, '0.0010'), (0.000025, '0.000025'), (1e-6, '0.000001'),
    (0.00095384, '0.0010'), (0.00050123, '0.0005'), (0.0003, '0.0003'), (0.00034, '0.000340'),
    (5e-5, '0.000050'), (0.03, '0.0300'), (1.0, '1.0000'), (0.0, '0.0000'),
    (5e-8, '0.00000005'), (1.5e-6, '0.0000015'), (1e-20, '0.' + 19 * '0' + '1'),
    (0.003, '0.0030')])
def test_a_rate_is_never_printed_as_zero(rate, text):
    assert format_rate(rate) == text
