"""Catches losses that differ from their formulas, and teachers loaded or used wrongly."""

import re

import numpy as np
import paddle
import pytest
from conftest import ROOT
from paddle import nn

import build
import zoo
from common import ImageClassifier
from config import ConfigError, load_config
from recipe.loss import CrossEntropy, DistillationLoss, labels_of, logits_of
from recipe.teacher import ExportedTeacher
from train import Training
from weights.files import read_weights, write_weights

DRAWN = np.random.default_rng(0)
LOGITS, DIST_LOGITS, TEACHER = DRAWN.normal(0, 3, (3, 8, 10)).astype('float32')
LABELS = DRAWN.integers(0, 10, 8)
MIXED = DRAWN.dirichlet(np.ones(10), 8).astype('float32')
# A run of one epoch at 32 pixels.
SMALL = ['MODEL.IMAGE_SIZE=32', 'TRAIN.TRAIN_NUM_WORKS=0', 'TRAIN.VAL_NUM_WORKS=0',
         'TRAIN.VISUALDL=false', 'SCHEDULER.NUM_EPOCHS=1', 'SCHEDULER.WARMUP_EPOCHS=0']


def probabilities(logits, tau=1.0):
    exponents = np.exp(logits.astype('float64') / tau)
    return exponents / exponents.sum(axis=1, keepdims=True)


def cross_entropy(logits, labels, smoothing=0.0):
    """Mean cross entropy with labels or distributions."""
    targets = labels if labels.ndim == 2 else (
        np.eye(10)[labels] * (1 - smoothing) + smoothing / 10)
    return -(targets * np.log(probabilities(logits))).sum() / len(logits)


def tensors(*arrays):
    return tuple(paddle.to_tensor(array) for array in arrays)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_cross_entropy_of_labels_and_of_mixed_targets(smoothing):
    loss = CrossEntropy(smoothing)
    logits, labels, mixed = tensors(LOGITS, LABELS, MIXED)
    assert loss(logits, labels).item() == pytest.approx(
        cross_entropy(LOGITS, LABELS, smoothing), rel=1e-6)
    assert loss(logits, mixed).item() == pytest.approx(cross_entropy(LOGITS, MIXED), rel=1e-6)
    both = cross_entropy((LOGITS + DIST_LOGITS) / 2, LABELS, smoothing)
    assert loss(tensors(LOGITS, DIST_LOGITS), labels).item() == pytest.approx(both, rel=1e-6)


def test_labels_and_logits_of_all_kinds_of_targets_and_outputs():
    np.testing.assert_array_equal(labels_of(paddle.to_tensor(LABELS)), LABELS)
    np.testing.assert_array_equal(labels_of(paddle.to_tensor(MIXED)), MIXED.argmax(axis=1))
    np.testing.assert_array_equal(logits_of(paddle.to_tensor(LOGITS)), LOGITS)
    np.testing.assert_allclose(logits_of(tensors(LOGITS, DIST_LOGITS)),
                               (LOGITS + DIST_LOGITS) / 2, rtol=1e-6)


@pytest.mark.parametrize('targets', [LABELS, MIXED], ids=['labels', 'mixed'])
@pytest.mark.parametrize('kind, tau', [('hard', 1.0), ('soft', 1.0), ('soft', 3.0)])
def test_distillation_follows_its_formula(kind, tau, targets):
    images = paddle.ones([8, 3, 2, 2])
    seen = []

    def teacher(asked):
        seen.append(asked)
        return paddle.to_tensor(TEACHER)

    loss = DistillationLoss(CrossEntropy(0.1), teacher, kind, alpha=0.3, tau=tau)
    actual = loss(tensors(LOGITS, DIST_LOGITS), paddle.to_tensor(targets), images).item()
    p, q = probabilities(TEACHER, tau), probabilities(DIST_LOGITS, tau)
    taught = (cross_entropy(DIST_LOGITS, TEACHER.argmax(axis=1)) if kind == 'hard'
              else tau ** 2 * (p * np.log(p / q)).sum() / p.size)
    expected = 0.7 * cross_entropy(LOGITS, targets, 0.1) + 0.3 * taught
    assert actual == pytest.approx(expected, rel=1e-5) and seen[0] is images


def test_gradients_reach_both_heads_and_not_the_teacher():
    network = nn.Linear(12, 10)
    loss = DistillationLoss(CrossEntropy(), lambda images: network(images.flatten(1)), 'soft')
    outputs = tensors(LOGITS, DIST_LOGITS)
    for output in outputs:
        output.stop_gradient = False
    loss(outputs, paddle.to_tensor(LABELS), paddle.randn([8, 3, 2, 2])).backward()
    assert all(abs(output.grad.numpy()).max() > 0 for output in outputs)
    assert network.weight.grad is None


def test_a_network_with_one_head_supports_soft_but_not_hard_distillation():
    logits, labels = tensors(LOGITS, LABELS)
    soft = DistillationLoss(CrossEntropy(), lambda images: paddle.to_tensor(LOGITS), 'soft', 0.25)
    assert soft(logits, labels, None).item() == pytest.approx(
        0.75 * cross_entropy(LOGITS, LABELS), rel=1e-5), 'the teacher agrees: no distillation loss'
    hard = DistillationLoss(CrossEntropy(), lambda images: logits, 'hard')
    with pytest.raises(ValueError, match='two heads.*distilled'):
        hard(logits, labels, None)
    with pytest.raises(ValueError, match="'hard' or 'soft'"):
        DistillationLoss(CrossEntropy(), None, 'none')


# ---- teachers of a configuration

@pytest.fixture(scope='module')
def teacher_file(tmp_path_factory):
    """A t2t_vit_7 for 48 pixels."""
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pdparams'
    paddle.seed(5)
    write_weights(path, zoo.create_model('t2t_vit_7', img_size=48).state_dict(), {})
    return path


def distilling(path, *overrides, teacher='t2t_vit_7', kind='soft'):
    return load_config('config/lit_data.yaml', [
        *SMALL, f'DISTILL.TYPE={kind}', f'DISTILL.TEACHER={teacher}', f'DISTILL.WEIGHTS={path}',
        *overrides])


def test_a_teacher_has_the_weights_of_its_file_and_no_dropout(teacher_file):
    teacher = build.loss(distilling(teacher_file, 'MODEL.IMAGE_SIZE=48')).teacher
    state, _ = read_weights(teacher_file)
    for name, value in teacher.state_dict().items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)
    images = paddle.randn([2, 3, 48, 48])
    # In training mode the dropout of the Performers would make these differ.
    np.testing.assert_array_equal(teacher(images), teacher(images))
    smaller = build.loss(distilling(teacher_file)).teacher
    np.testing.assert_array_equal(smaller.head.weight, state['head.weight'])
    assert tuple(smaller(paddle.randn([2, 3, 32, 32])).shape) == (2, 1000)


@pytest.mark.parametrize('overrides, options, said', [
    ((), dict(teacher='t2t_vit_77'), 'DISTILL.TEACHER: model \'t2t_vit_77\' is unknown'),
    (('MODEL.NUM_CLASSES=10',), {}, 'a teacher of 1000 classes for 10'),
    ((), dict(kind='hard'), 'DISTILL.TYPE hard needs a network with two heads'),
])
def test_the_error_for_an_unfitting_teacher_is_one_line(teacher_file, overrides, options, said):
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        build.loss(distilling(teacher_file, *overrides, **options))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('overrides, said', [
    (('DISTILL.TYPE=soft',), 'DISTILL.TYPE is soft, but'),
    (('DISTILL.TYPE=medium',), 'DISTILL.TYPE must be one of none, hard, soft'),
    (('DISTILL.ALPHA=1.1',), 'DISTILL.ALPHA must be at most 1'),
    (('DISTILL.TAU=0',), 'DISTILL.TAU must be more than 0'),
])
def test_the_error_for_an_invalid_value_is_one_line(overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_config('config/lit_data.yaml', overrides)


@pytest.fixture(scope='module')
def program(tmp_path_factory):
    """A function that exports a linear network and returns (program, network)."""
    def export(softmax=False):
        folder = tmp_path_factory.mktemp('exported')
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 1000),
                                *([nn.Softmax()] if softmax else []))
        network.eval()
        paddle.jit.save(network, str(folder / 'model'), input_spec=[
            paddle.static.InputSpec([None, 3, 32, 32], 'float32')])
        return next(path for path in folder.iterdir() if path.suffix in ('.json', '.pdmodel')
                    ), network
    return export


def test_an_exported_program_can_be_the_teacher(program):
    path, network = program()
    teacher = build.loss(distilling(path, teacher='')).teacher
    images = paddle.randn([4, 3, 32, 32])
    np.testing.assert_allclose(teacher(images), network(images), atol=2e-5)


def test_a_program_without_fitting_logits_is_refused(program, tmp_path):
    path, _ = program(softmax=True)
    with pytest.raises(ConfigError, match='DISTILL.WEIGHTS: .*probabilities'):
        build.loss(distilling(path, teacher=''))
    with pytest.raises(ValueError, match=r'gives \[1, 1000\] .* instead of \[1, 10\]'):
        ExportedTeacher(path, 10, 32)
    with pytest.raises(ValueError, match='cannot be run on an image of 48 pixels'):
        ExportedTeacher(path, 1000, 48)
    with pytest.raises(ValueError, match='no such file'):
        ExportedTeacher(tmp_path / 'none.json', 10, 32)


# ---- a run

class TwoHeads(ImageClassifier):
    """A student with DeiT's outputs: both logits in training, their mean in evaluation."""

    heads = ('head', 'head_dist')

    def __init__(self, num_classes=1000, **_):
        super().__init__()
        self.head = nn.Linear(3 * 4 * 4, num_classes)
        self.head_dist = nn.Linear(3 * 4 * 4, num_classes)

    def forward(self, images):
        features = nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        logits, dist_logits = self.head(features), self.head_dist(features)
        return (logits, dist_logits) if self.training else (logits + dist_logits) / 2


def test_a_student_with_two_heads_learns_from_its_teacher(teacher_file, tmp_path, monkeypatch):
    """With DISTILL.ALPHA=1 the student learns only from the teacher."""
    monkeypatch.setitem(zoo.MODELS, 'linear_distilled', (TwoHeads, {}))
    lines = (ROOT / 'lit_data' / 'train.txt').read_text().splitlines()[::40]
    (tmp_path / 'train.txt').write_text('\n'.join(lines) + '\n')
    config = distilling(teacher_file, 'MODEL.NAME=linear_distilled', 'DISTILL.ALPHA=1',
                        'SCHEDULER.BASE_LR=0.02', 'SCHEDULER.USE_WARMUP=false',
                        f'DATA_PATH.TRAIN_DATASET_LABEL_PATH={tmp_path}/train.txt',
                        f'TRAIN.OUTPUT_DIR={tmp_path}/run', 'SCHEDULER.NUM_EPOCHS=4',
                        f'DATA_PATH.VAL_DATASET_PATH={ROOT}/lit_data/train',
                        f'DATA_PATH.VAL_DATASET_LABEL_PATH={tmp_path}/train.txt', kind='hard')
    run = Training(config)
    before = {name: value.numpy() for name, value in run.stepper.network.state_dict().items()}
    run.run()
    records = (tmp_path / 'run' / 'log.jsonl').read_text()
    losses = [float(loss) for loss in re.findall(r'"event": "epoch".*?"loss": ([\d.]+)', records)]
    assert len(losses) == 4 and losses[-1] < losses[0] - 1.5
    assert (run.stepper.network.head_dist.weight.numpy() != before['head_dist.weight']).any()
    decay = run.stepper.network.head.weight.numpy() / before['head.weight']
    assert decay.std() < 1e-4, 'labels have weight 0: only weight decay changes their head'
