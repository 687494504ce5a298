"""The learning rate against published figures and closed forms."""

import numpy as np
import paddle
import pytest

import build
from config import load_config
from scheduler import Schedule, format_rate, learning_rate


def rates(path, epochs):
    """The rate of each epoch, as train.py sets it."""
    config = load_config(path)
    schedule = build.schedule(config)
    found = []
    for epoch in range(epochs):
        schedule.step(config.SCHEDULER.LAST_EPOCHS + 1 + epoch)
        found.append(schedule())
    return found


def test_the_plain_recipe_starts_as_its_log_does():
    found = rates('config/t2t_vit_7.yaml', 300)
    np.testing.assert_allclose(found[:5], [2e-4, 4e-4, 6e-4, 8e-4, 1e-3], rtol=1e-12)
    # A straight line from 1e-3 in epoch 4 to 5e-4 in the last one.
    np.testing.assert_allclose(found[4:], np.linspace(1e-3, 5e-4, 296), rtol=1e-12)


def test_the_cosine_recipe_follows_the_paddle_repositorys_scheduler():
    found = rates('config/t2t_vit_7_cosine.yaml', 300)
    # Its YAML: 3e-3, 3 epochs from 1e-6, to 5e-4; its first epoch stands at 1.
    warm = [1e-6 + (3e-3 - 1e-6) * epoch / 3 for epoch in (1, 2)]
    way = (np.arange(3, 301) - 3) / 297
    down = 5e-4 + (3e-3 - 5e-4) * (1 + np.cos(np.pi * way)) / 2
    np.testing.assert_allclose(found, np.concatenate([warm, down]), rtol=1e-12)


def test_where_the_published_log_leaves_1e_3():
    """t2t_vit_7.yaml says in its header what it could not reproduce; these are the figures."""
    def first_below(decay):
        return next(epoch for epoch in range(5, 300)
                    if learning_rate(epoch + 1, 1e-3, 5, 0.0, 5e-4, 300, decay) < 9.5e-4)
    assert first_below('linear') == 34
    assert first_below('cosine') == 65


def test_the_rate_stays_at_its_end():
    assert learning_rate(500, 1e-3, 5, 0.0, 5e-4, 300, 'cosine') == pytest.approx(5e-4)
    assert learning_rate(500, 1e-3, 5, 0.0, 5e-4, 300, 'linear') == pytest.approx(5e-4)


def test_without_warm_up_the_rate_is_constant(tmp_path):
    path = tmp_path / 'constant.yaml'
    path.write_text('SCHEDULER: {USE_WARMUP: false, BASE_LR: 2e-5}')
    assert set(rates(path, 10)) == {2e-5}


def test_paddles_optimizers_follow_a_schedule():
    schedule = Schedule(lambda progress: 1e-3 * (progress + 1))
    layer = paddle.nn.Linear(2, 2)
    optimizer = paddle.optimizer.AdamW(schedule, parameters=layer.parameters())
    schedule.step(2.5)
    assert optimizer.get_lr() == pytest.approx(3.5e-3)


@pytest.mark.parametrize('rate, text', [
    (0.0009, '0.0009'), (0.001, '0.0010'), (0.000025, '0.000025'), (1e-6, '0.000001'),
    (0.00095384, '0.0009538'), (0.03, '0.0300'), (1.0, '1.0000'), (0.0, '0.0000'),
    (5e-8, '0.00000005'), (0.003, '0.0030')])
def test_a_rate_is_never_printed_as_zero(rate, text):
    assert format_rate(rate) == text
