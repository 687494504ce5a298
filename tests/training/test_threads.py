"""Catches parts of a batch, computed in threads, that together are not the batch."""

import numpy as np
import paddle
import pytest
from paddle.nn import functional as F

import build
import zoo
from system import paddle_private, start
from training import fast, threads
from training.fast import speed_up
from training.stepper import Groups
from training.threads import Threads


@pytest.fixture(params=['t2t_vit_7', 't2t_vit_t_14', 't2t_vit_16_ghost', 'pit_ti'])
def network(request):
    """A network for 32 x 32 pixels with dropout of tokens and drop path, in training mode."""
    paddle.seed(3)
    depth = (1, 1, 1) if request.param == 'pit_ti' else 2
    built = speed_up(zoo.create_model(request.param, img_size=32, num_classes=5, depth=depth,
                                      drop_rate=0.2, drop_path_rate=0.5))
    built.train()
    return built


def batch(images):
    rng = np.random.RandomState(images)
    return (paddle.to_tensor(rng.standard_normal((images, 3, 32, 32)).astype('float32')),
            paddle.to_tensor(rng.randint(0, 5, images)))


def backward(network, share, images, labels):
    loss = F.cross_entropy(network(images), labels) * share
    loss.backward()
    return loss.item(), len(labels)


def gradients(network):
    found = {name: p.grad.numpy() for name, p in network.named_parameters() if p.grad is not None}
    network.clear_gradients()
    return found


@pytest.mark.parametrize('count, images, parts', [
    (2, 5, [2, 3]), (3, 7, [2, 2, 3]), (3, 2, [1, 1])])
def test_gradients_and_draws_are_those_of_the_whole_batch(network, count, images, parts):
    """Dropout and drop path included; and the next batch sees the weights of then."""
    divided = Threads(network, count)
    for seed in (4, 5):
        with fast.draw_for(seed, 0):
            whole, _ = backward(network, 1, *batch(images))
        expected = gradients(network)
        for _ in range(2):    # the same again: nothing is left over
            results = divided.gradients(backward, seed, *batch(images))
            assert [size for _, size in results] == parts
            assert sum(loss for loss, _ in results) == pytest.approx(whole, rel=1e-5)
            actual = gradients(network)
            assert actual.keys() == expected.keys() and len(actual) > 10
            for name, gradient in expected.items():
                np.testing.assert_allclose(actual[name], gradient, rtol=0, err_msg=name,
                                           atol=1e-5 * np.abs(gradient).max() + 1e-8)
        for parameter in network.parameters():    # other memory, as some ways to load weights give
            parameter.set_value(parameter * 1.1)


def test_the_draws_of_another_seed_and_of_each_operation_differ():
    with fast.draw_for(1, 0):
        first, second = (fast.generator(1).random_raw(4).tolist() for _ in range(2))
    with fast.draw_for(2, 0):
        other = fast.generator(1).random_raw(4).tolist()
    with fast.draw_for(1, 2):    # from the third image on
        rest = fast.generator(1).random_raw(2).tolist()
    assert rest == first[2:] and len({*first, *second, *other}) == 12


def test_logits_are_those_of_the_network_which_keeps_its_mode(network):
    divided = Threads(network, 2)
    divided.eval()
    assert not (network.training or divided.training)
    with paddle.no_grad():
        for images in (1, 5):
            x, _ = batch(images)
            np.testing.assert_allclose(divided(x).numpy(), network(x).numpy(), rtol=0, atol=1e-5)
    assert divided(batch(2)[0]).stop_gradient
    divided.train()
    assert all(one.training for one in (divided, *divided.networks))


def test_an_error_in_any_thread_ends_the_step_and_threads_are_given_back(network, monkeypatch):
    numbers, divided = [], Threads(network, 2)
    monkeypatch.setattr(paddle_private, 'set_num_threads', numbers.append)
    for failing in range(2):
        def function(part, share, images, failing=failing):
            if part is divided.networks[failing]:
                raise ValueError('of one part')

        with pytest.raises(ValueError, match='of one part'):
            divided.gradients(function, 0, batch(4)[0])
    assert numbers == [1, start.threads()] * 2


def trained(monkeypatch, count):
    """Results of four batches, two optimizer steps, on `count` threads: the Batches, the states."""
    monkeypatch.setattr(fast, 'LEAST_PIXELS', 1)
    monkeypatch.setattr(threads, 'LEAST_PIXELS', 1)
    monkeypatch.setattr(start, 'threads', lambda: count)
    config = build.load_config('config/lit_data.yaml', [
        'MODEL.IMAGE_SIZE=32', 'TRAIN.TRAIN_BATCH_SIZE=6', 'TRAIN.PRE_TRAIN=false',
        'MODEL.DROP_PATH_RATE=0.3', 'TRAIN.ACCUMULATE=2', 'EMA.DECAY=0.9'])
    stepper, *_ = build.stepper(config, Groups([6, 6, 6, 5], 2))
    assert (stepper.threads is None) == (count == 1)
    stepper.begin_epoch(0)
    counted = [one for step, images in enumerate((6, 6, 6, 5))
               for one in stepper.step(*batch(images), 0, step)]
    return ([(one.loss.item(), one.correct.item(), one.images) for one in counted],
            *({name: value.numpy() for name, value in state.items()}
              for state in (stepper.weights(), stepper.averages())))


def test_steps_are_those_of_one_thread_and_the_same_each_time(monkeypatch):
    batches, *states = trained(monkeypatch, 2)
    assert [images for *_, images in batches] == [6, 6, 6, 5]
    for count, tolerance in ((1, 1e-5), (2, 0)):
        found, *others = trained(monkeypatch, count)
        np.testing.assert_allclose(batches, found, rtol=tolerance)
        for state, other in zip(states, others):
            for name, value in state.items():
                np.testing.assert_allclose(value, other[name], rtol=0, atol=tolerance,
                                           err_msg=name)


def test_a_paddle_whose_tensors_cannot_share_memory_uses_one_thread(monkeypatch, capsys):
    paddle_private._report_missing.cache_clear()
    monkeypatch.setattr(start, 'threads', lambda: 2)
    config = build.load_config('config/lit_data.yaml', ['MODEL.IMAGE_SIZE=224'])
    assert build.threads_of_step(config) == 2
    monkeypatch.delattr(type(paddle.zeros([1]).get_tensor()), '_share_data_with')
    assert [build.threads_of_step(config) for _ in range(2)] == [1, 1]
    assert capsys.readouterr().err.count('_share_data_with: a step computes on one thread') == 1


@pytest.mark.parametrize('size, images, cores, count', [
    (48, 21, 2, 0), (48, 22, 2, 1), (224, 3, 2, 1), (224, 4, 2, 2), (224, 11, 8, 5),
    (224, 16, 1, 1)])
def test_the_number_of_threads(monkeypatch, size, images, cores, count):
    monkeypatch.setattr(start, 'threads', lambda: cores)
    config = build.load_config('config/lit_data.yaml', [
        f'MODEL.IMAGE_SIZE={size}', f'TRAIN.TRAIN_BATCH_SIZE={images}'])
    assert build.threads_of_step(config) == count
