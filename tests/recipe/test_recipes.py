"""Catches shipped configurations that don't load or train, or differ from the published recipes."""

import json
from itertools import islice

import numpy as np
import paddle
import pytest
from conftest import ROOT
from PIL import Image
from support.runs import learn

import build
from config import load_config
from train import Training

GOLDEN = ROOT / 'tests' / 'golden'
RECIPES = sorted(path.stem for path in (ROOT / 'config').glob('*.yaml'))


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Ten class folders with two small images of noise each."""
    folder, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for label in range(10):
        (folder / f'class{label}').mkdir()
        for number in range(2):
            pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f'class{label}' / f'{number}.jpg')
    return folder


@pytest.fixture
def weights_from_numpy(monkeypatch):
    """Let NumPy draw initial weights, which takes less time than Paddle; networks are large."""
    rng = np.random.default_rng(0)

    def normal(std):
        return lambda tensor: tensor.set_value(std * rng.standard_normal(tensor.shape, np.float32))

    monkeypatch.setattr(paddle.nn.initializer, 'Normal', normal)


@pytest.mark.parametrize('name', RECIPES)
def test_two_steps(name, images, tmp_path, weights_from_numpy):
    classes = max(10, load_config(f'config/{name}.yaml').MODEL.NUM_CLASSES)
    config = load_config(f'config/{name}.yaml', [
        f'DATA_PATH.TRAIN_DATASET_PATH={images}', 'DATA_PATH.TRAIN_DATASET_LABEL_PATH=',
        f'DATA_PATH.VAL_DATASET_PATH={images}', 'DATA_PATH.VAL_DATASET_LABEL_PATH=',
        f'MODEL.NUM_CLASSES={classes}', 'MODEL.IMAGE_SIZE=32', 'MODEL.PRETRAINED=',
        'TRAIN.PRE_TRAIN=false', 'TRAIN.TRAIN_BATCH_SIZE=4', 'TRAIN.TRAIN_NUM_WORKS=0',
        'TRAIN.VAL_NUM_WORKS=0', 'TRAIN.VISUALDL=false', f'TRAIN.OUTPUT_DIR={tmp_path}/run'])
    run = Training(config)
    stepper = run.stepper
    network, ema = stepper.network, stepper.ema
    before = {name: value.numpy() for name, value in network.state_dict().items()}
    stepper.begin_epoch(0)
    stepper.schedule.step(1.0)    # the warm-up may start at 0
    for pixels, labels in islice(run.train_loader, 2):
        learn(run, pixels, labels)
    assert stepper.skipped_steps == 0
    loss, accuracy = run.meter.means()
    assert np.isfinite(loss) and 0 <= accuracy <= 1
    trained = {name for name, p in network.named_parameters() if not p.stop_gradient}
    moved = {name for name, value in network.state_dict().items()
             if (value.numpy() != before[name]).any()}
    # Some gradients may be exactly 0; frozen parameters must not change.
    assert moved <= trained and len(moved) > 0.9 * len(trained)
    if ema:
        assert ema.updates == 2
        assert any((ema.average[name].numpy() != before[name]).any() for name in moved)


@pytest.mark.parametrize('kind, student', [
    ('hard', 'pit_ti_distilled'), ('soft', 'deit_tiny_distilled_patch16_224'), ('soft', 'pit_ti')])
def test_a_t2t_vit_can_be_the_teacher(kind, student, images, tmp_path):
    config = load_config('config/pit_ti_deit.yaml', [
        f'DATA_PATH.TRAIN_DATASET_PATH={images}', 'DATA_PATH.TRAIN_DATASET_LABEL_PATH=',
        f'DATA_PATH.VAL_DATASET_PATH={images}', 'DATA_PATH.VAL_DATASET_LABEL_PATH=',
        f'MODEL.NAME={student}', 'MODEL.IMAGE_SIZE=48', f'DISTILL.TYPE={kind}', 'DISTILL.ALPHA=1',
        'DISTILL.TEACHER=t2t_vit_7', 'DISTILL.WEIGHTS=output/t2t_vit_7_lit_data.pdparams',
        'TRAIN.TRAIN_BATCH_SIZE=4', 'TRAIN.TRAIN_NUM_WORKS=0', 'TRAIN.VAL_NUM_WORKS=0',
        'TRAIN.VISUALDL=false', f'TRAIN.OUTPUT_DIR={tmp_path}/run'])
    run = Training(config)
    network = run.stepper.network
    run.stepper.begin_epoch(0)
    run.stepper.schedule.step(20.0)
    before = {name: value.numpy() for name, value in network.state_dict().items()}
    learn(run, *next(iter(run.train_loader)))
    after = {name: value.numpy() for name, value in network.state_dict().items()}
    # With ALPHA=1 only the teacher's loss has gradients: the class head does not change.
    taught = network.heads[-1] + '.bias'
    assert (after[taught] != before[taught]).any()
    if len(network.heads) == 2:
        assert (after['head.bias'] == before['head.bias']).all()


def test_the_official_recipe_follows_the_published_schedule():
    config = load_config('config/t2t_vit_7_official.yaml', ['TRAIN.TRAIN_BATCH_SIZE=512'])
    schedule, actual = build.schedule(config), []
    for epoch in range(config.SCHEDULER.NUM_EPOCHS):
        schedule.step(epoch)
        actual.append(schedule())
    wanted = np.load(GOLDEN / 'lr_official.npz')['lr']
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-12)


def test_a_warning_names_labels_that_are_all_equal(images, tmp_path):
    listed = tmp_path / 'train.txt'
    listed.write_text(''.join(f'class{label}/{number}.jpg 0\n'
                              for label in range(10) for number in range(2)))
    Training(load_config('config/t2t_vit_7.yaml', [
        f'DATA_PATH.TRAIN_DATASET_PATH={images}', f'DATA_PATH.TRAIN_DATASET_LABEL_PATH={listed}',
        f'DATA_PATH.VAL_DATASET_PATH={images}', 'DATA_PATH.VAL_DATASET_LABEL_PATH=',
        'MODEL.IMAGE_SIZE=32', 'TRAIN.TRAIN_BATCH_SIZE=4', 'TRAIN.TRAIN_NUM_WORKS=0',
        'TRAIN.VAL_NUM_WORKS=0', 'TRAIN.VISUALDL=false', f'TRAIN.OUTPUT_DIR={tmp_path}/run']))
    log = (tmp_path / 'run' / 'train.log').read_text()
    assert 'warning: all 20 training images have the label 0' in log
    assert '9 of the 10 classes of validation have no training image' in log


def trained_sizes(config):
    network = build.network(config)
    build.freeze_parts(config, network)
    return {name: p.size for name, p in network.named_parameters() if not p.stop_gradient}


@pytest.mark.parametrize('name', ['t2t_vit_7_official', 't2t_vit_14', 't2t_vit_t_14', 'pit_ti',
                                  'pit_ti_deit'])
def test_the_recipes_train_as_many_parameters_as_the_originals(name):
    config = load_config(f'config/{name}.yaml')
    published = json.loads((GOLDEN / 'variants.json').read_text())[config.MODEL.NAME]
    assert sum(trained_sizes(config).values()) == published['trainable']


def test_the_pit_run_decays_every_parameter_and_the_papers_recipe_only_matrices():
    def decayed(name):
        config = load_config(f'config/{name}.yaml', ['MODEL.IMAGE_SIZE=64'])
        network = build.network(config)
        optimizer = build.optimizer(config, network, 0.5)
        before = {key: value.numpy() for key, value in network.named_parameters()}
        for parameter in network.parameters():
            parameter.grad = paddle.zeros_like(parameter)    # only decay changes parameters
        optimizer.step()
        return {key for key, value in network.named_parameters()
                if (value.numpy() != before[key]).any()}, before

    every, before = decayed('pit_ti')
    assert every == {key for key, value in before.items() if value.any()}
    some, before = decayed('pit_ti_deit')
    assert some == {key for key, value in before.items()
                    if value.ndim > 1 and key not in ('cls_token', 'pos_embed')}


@pytest.mark.parametrize('name', ['t2t_vit_14_cifar10', 't2t_vit_19_cifar100'])
def test_the_official_transfer_trains_three_parts(name):
    sizes = trained_sizes(load_config(f'config/{name}.yaml'))
    assert {name.split('.')[0] for name in sizes} == {'tokens_to_token', 'blocks', 'head'}


def test_the_official_transfer_trains_the_backbone_with_a_hundredth_of_the_rate():
    config = load_config('config/t2t_vit_14_cifar10.yaml', ['MODEL.IMAGE_SIZE=32'])
    network = build.network(config)
    rate = build.schedule(config)
    optimizer = build.optimizer(config, network, rate)
    before = {name: value.numpy() for name, value in network.state_dict().items()}
    for parameter in network.parameters():
        if not parameter.stop_gradient:
            parameter.grad = paddle.ones_like(parameter)
    optimizer.step()
    for name in ('head.weight', 'blocks.3.attn.qkv.weight', 'tokens_to_token.project.bias'):
        value, scale = network.state_dict()[name].numpy(), 1 if name.startswith('head') else 0.01
        # SGD's first step: rate times gradient and coupled decay.
        expected = before[name] - rate() * scale * (1 + 5e-4 * before[name])
        np.testing.assert_allclose(value, expected, rtol=0, atol=2e-7, err_msg=name)
