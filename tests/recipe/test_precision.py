"""Catches faults in mixed precision that a CPU can show: casts, the loss scale, checkpoints."""

import contextlib
import math
import re
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT
from paddle import nn
from paddle.nn import functional as F
from support.runs import newest

import build
import common
import train
import zoo
from config import ConfigError, load_config
from recipe.optimizer import build_optimizer, clip_gradients
from recipe.precision import InMixedPrecision, LossScale, LossScaleError, Precision
from t2t import Token_performer, soft_split
from training.checkpoint import capture, restore
from weights.container import CheckpointError, read_checkpoint

RECIPE = '''
BASE: {root}/config/lit_data.yaml
DATA_PATH:
    TRAIN_DATASET_LABEL_PATH: "{folder}/train.txt"
    VAL_DATASET_LABEL_PATH: "{folder}/val.txt"
MODEL: {{IMAGE_SIZE: 32}}
TRAIN: {{TRAIN_BATCH_SIZE: 2, TRAIN_NUM_WORKS: 0, VAL_NUM_WORKS: 0, LOG_EVERY: 1, VISUALDL: false}}
SCHEDULER: {{NUM_EPOCHS: 1, WARMUP_EPOCHS: 0}}
'''


@pytest.fixture
def recipe(tmp_path):
    for part in ('train', 'val'):
        lines = (ROOT / 'lit_data' / f'{part}.txt').read_text().splitlines()
        (tmp_path / f'{part}.txt').write_text('\n'.join(lines[::len(lines) // 8][:8]) + '\n')
    (tmp_path / 'recipe.yaml').write_text(RECIPE.format(root=ROOT, folder=tmp_path))
    return tmp_path / 'recipe.yaml'


# ---- the loss scale

def test_the_loss_scale_halves_after_a_bad_step_and_doubles_after_good_ones():
    scale, seen = LossScale(8.0, growth_steps=3), []
    for finite in (True, True, False, True, True, True, True, False, False, False, False, False):
        scale.update(finite)
        seen.append(scale.value)
    assert seen == [8, 8, 4, 4, 4, 8, 8, 4, 2, 1, 1, 1]
    assert LossScale().value == 65536 and LossScale().growth_steps == 2000
    still = LossScale(1.0, dynamic=False)
    for finite in (True, False) * 2000:
        still.update(finite)
    assert still.value == 1


def test_the_loss_scale_is_restored_from_a_checkpoint():
    scale = LossScale(8.0, growth_steps=3)
    for finite in (False, True, True):
        scale.update(finite)
    other = LossScale(growth_steps=3)
    other.restore(scale.state(), 'a.ckpt')
    other.update(True)
    assert other.value == 8 and other.good_steps == 0
    still = LossScale(1.0, dynamic=False)
    still.restore(scale.state(), 'a.ckpt')
    still.restore(None, 'a.ckpt')
    assert still.value == 1


@pytest.mark.parametrize('state', [
    None, {}, [], 'x', dict(value='big', good_steps=0), dict(value=math.nan, good_steps=0),
    dict(value=math.inf, good_steps=0), dict(value=0.5, good_steps=0),
    dict(value=2, good_steps=-1), dict(value=2, good_steps=2000), dict(value=2, good_steps=1e400)])
def test_the_error_for_an_invalid_state_names_the_file(state):
    with pytest.raises(LossScaleError, match='^a.ckpt: holds no state of a loss scale') as refusal:
        LossScale().restore(state, 'a.ckpt')
    assert refusal.value.exit_code == 2 and '\n' not in str(refusal.value)


def scaled_precision(network, optimizer, value=2.0 ** 16, growth_steps=3):
    """float32 with a loss scale; powers of two change no bit of a gradient."""
    precision = Precision(network, optimizer)
    precision.loss_scale = LossScale(value, growth_steps=growth_steps)
    return precision


def use_scale(monkeypatch, **options):
    monkeypatch.setattr(build, 'precision', lambda config, network, optimizer:
                        scaled_precision(network, optimizer, **options))


def test_a_run_with_a_loss_scale_equals_the_run_without_one(recipe, tmp_path, monkeypatch):
    """Clipping, skipping and logging use unscaled gradients, bit by bit."""
    def folder(name, *more):
        return load_config(recipe, [f'TRAIN.OUTPUT_DIR={tmp_path}/{name}', *more])

    train.Training(folder('plain')).run()
    use_scale(monkeypatch)
    train.Training(folder('scaled')).run()
    weights = [(tmp_path / name / 'last.pdparams').read_bytes() for name in ('plain', 'scaled')]
    assert weights[0] == weights[1]
    _, state = read_checkpoint(newest(tmp_path / 'scaled'))
    assert state['loss_scale'] == dict(value=2.0 ** 17, good_steps=1)    # after four good steps
    again = train.Training(folder('scaled', 'TRAIN.RESUME=auto'))
    assert again.stepper.precision.loss_scale.state() == state['loss_scale']
    again.folder.close()


def test_bad_steps_lower_the_scale_and_the_error_contains_it(recipe, tmp_path, monkeypatch):
    use_scale(monkeypatch, value=64.0)
    run = train.Training(load_config(recipe, [
        f'TRAIN.OUTPUT_DIR={tmp_path}/run', 'TRAIN.MAX_BAD_STEPS=3', 'TRAIN.RESUME=false']))
    network = run.stepper.network
    before = network.norm.weight.numpy()
    network.norm.bias.set_value(np.full(256, np.nan, 'float32'))
    with pytest.raises(train.TrainingError, match='3 steps in a row .* loss scale 16; the last'):
        run.run()
    assert run.stepper.skipped_steps == 3
    np.testing.assert_array_equal(network.norm.weight.numpy(), before)
    run.folder.close()


def test_float16_gradients_keep_their_norm():
    """Their squares overflow in float16, and a gradient is close to the largest float16."""
    half = nn.Linear(1, 3)
    half._to_impl(dtype='float16', include_sublayers=False, floating_only=True)
    (half.bias.astype('float32') * paddle.to_tensor([30000.0, -40000.0, 0.0])).sum().backward()
    assert half.bias.grad.dtype == paddle.float16
    assert clip_gradients([half.bias], 0.5, loss_scale=100.0) == pytest.approx(500, rel=1e-3)


# ---- which operations are cast

def traced(level, dtype='bfloat16'):
    """(operation, dtypes of its floating-point inputs) of T2T-ViT under mixed precision.

    Paddle 3 decides on casts while it builds a graph, which needs no GPU.
    """
    network = zoo.create_model('t2t_vit_7', img_size=32, num_classes=16, depth=2)
    if level == 'O2':    # as paddle.amp.decorate leaves weights on a GPU
        for layer in network.sublayers(include_self=True):
            layer._to_impl(dtype=dtype, include_sublayers=False, floating_only=True)
    precision = Precision(network, None)
    precision.level, precision.dtype = level, dtype
    wrapped = precision.wrap(network) if level != 'none' else network
    wrapped.eval()
    spec = [paddle.static.InputSpec([2, 3, 32, 32], 'float32')]
    forward = paddle.jit.to_static(wrapped.forward, input_spec=spec, full_graph=True)
    operations = []
    for operation in forward.concrete_program.main_program.global_block().ops:
        dtypes = []
        for operand in operation.operands():
            with contextlib.suppress(ValueError):    # a list of tensors has no dtype
                dtypes.append(str(operand.source().dtype).rpartition('.')[2])
        operations.append((operation.name().rpartition('.')[2],
                           {name for name in dtypes if 'float' in name}))
    return operations


needs_graphs = pytest.mark.skipif(paddle.__version__.startswith('2.'),
                                  reason='Paddle 2 decides on casts only on a GPU')
# One pass through a Performer's features and attention, matrix products included.
FEATURES = ['multiply', 'sum', 'scale', 'matmul', 'subtract', 'exp', 'scale']
ATTENTION = [*FEATURES, *FEATURES, 'sum', 'matmul', 'matmul', 'matmul', 'scale', 'divide']


@needs_graphs
@pytest.mark.parametrize('level', ['O1', 'O2'])
def test_the_performer_and_the_soft_splits_stay_in_float32(level):
    operations = traced(level)
    names = [(name, dtypes) for name, dtypes in operations
             if name in {*ATTENTION, 'unfold', 'split_with_num'}]
    assert [dtypes for name, dtypes in names if name == 'unfold'] == [{'float32'}] * 3
    assert [dtypes for name, dtypes in names if name == 'exp'] == [{'float32'}] * 4
    performers = 0
    for start, (name, _) in enumerate(names):
        section = names[start + 1:start + 1 + len(ATTENTION)]
        if name == 'split_with_num' and [name for name, _ in section] == ATTENTION:
            assert all(dtypes == {'float32'} for _, dtypes in section)
            performers += 1
    assert performers == 2
    # All other matrix products are in half precision: kqv, proj and two of the MLP in each of two
    # Performers, project, four and two in attention in each of two blocks, the head.
    half = [dtypes for name, dtypes in operations if name == 'matmul' and 'bfloat16' in dtypes]
    assert len(half) == 2 * 4 + 1 + 2 * 6 + 1
    if level == 'O1':
        assert all(dtypes == {'float32'} for name, dtypes in operations
                   if name in ('layer_norm', 'softmax'))


@needs_graphs
def test_in_float32_nothing_is_cast():
    operations = traced('none')
    assert 'cast' not in [name for name, _ in operations]
    assert all(dtypes <= {'float32'} for _, dtypes in operations)


def test_paddles_lists_hold_what_the_network_calls():
    """Level O1 relies on sensitive operations being on the black list, in both versions."""
    from paddle.amp import amp_lists
    for dtype in ('float16', 'bfloat16'):
        white, black = (lists()[dtype]['O1'] for lists in (amp_lists.white_list,
                                                           amp_lists.black_list))
        assert {'matmul_v2', 'conv2d'} <= white
        assert {'layer_norm', 'softmax', 'exp', 'softmax_with_cross_entropy'} <= black
        assert not {'unfold', 'divide', 'dropout', 'gelu', 'bmm'} & (white | black)


def test_an_export_has_the_same_logits(tmp_path):
    network = zoo.create_model('t2t_vit_7', img_size=32, num_classes=16, depth=2)
    network.eval()
    paddle.jit.save(network, str(tmp_path / 'network'),
                    input_spec=[paddle.static.InputSpec([None, 3, 32, 32], 'float32')])
    images = paddle.to_tensor(
        np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype('float32'))
    with paddle.no_grad():
        np.testing.assert_allclose(paddle.jit.load(str(tmp_path / 'network'))(images).numpy(),
                                   network(images).numpy(), atol=1e-5)


# ---- dtypes at the Performer's boundary

@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_features_of_half_precision_are_float32(dtype):
    """With a norm of 12 and more, exp(-|x|^2 / 2) is 0 in float16 and not in float32."""
    paddle.seed(0)
    performer = Token_performer(147, 64)
    x = paddle.to_tensor(1.5 * np.random.default_rng(0).standard_normal((2, 9, 64)))
    x = x.astype('float32').astype(dtype)
    wanted = performer.prm_exp(x.astype('float32')).numpy()
    actual = performer.prm_exp(x)
    assert actual.dtype == paddle.float32
    np.testing.assert_array_equal(actual.numpy(), wanted)
    assert 0 < wanted.min() < 6e-8    # the smallest float16
    performer._to_impl(dtype=dtype, include_sublayers=False, floating_only=True)
    assert performer.w.dtype == getattr(paddle, dtype)
    np.testing.assert_allclose(np.log(performer.prm_exp(x).numpy()), np.log(wanted), atol=0.3)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_the_attention_returns_the_precision_of_its_input(dtype):
    class Given(nn.Layer):
        """Replaces the Linear before it, for which a CPU has only a float32 kernel."""

        def forward(self, x):
            return x

    class Reached(nn.Layer):
        """Replaces the Linear after it and ends the forward: the rest does not run on a CPU."""

        def forward(self, x):
            raise Arrived(x)

    class Arrived(Exception):
        pass

    def result(kqv):
        with pytest.raises(Arrived) as arrived:
            performer.single_attn(kqv)
        return arrived.value.args[0]

    paddle.seed(0)
    performer = Token_performer(147, 64)
    performer.kqv, performer.proj = Given(), Reached()
    kqv = np.random.default_rng(0).standard_normal((2, 9, 192)).astype('float32')
    kqv = paddle.to_tensor(kqv).astype(dtype)
    actual, wanted = result(kqv), result(kqv.astype('float32'))
    assert actual.dtype == kqv.dtype and wanted.dtype == paddle.float32
    np.testing.assert_array_equal(actual.astype('float32').numpy(),
                                  wanted.astype(dtype).astype('float32').numpy())


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_a_soft_split_of_half_precision_is_float32(dtype):
    x = paddle.rand([2, 4, 8, 8]).astype(dtype)
    actual = soft_split(x, (3, 2, 1))
    assert actual.dtype == paddle.float32
    np.testing.assert_array_equal(actual.numpy(),
                                  soft_split(x.astype('float32'), (3, 2, 1)).numpy())


def test_mixed_precision_is_on_outside_of_the_performer_and_off_inside(monkeypatch):
    """Records the auto_cast context around Paddle's functions during a forward."""
    active, at = [], {}

    @contextlib.contextmanager
    def auto_cast(enable=True, **options):
        active.append((enable, options))
        yield
        active.pop()

    def spy(module, name):
        original = getattr(module, name)

        def spying(*arguments, **options):
            at.setdefault(name, []).append(active[-1] if active else None)
            return original(*arguments, **options)
        monkeypatch.setattr(module, name, spying)

    monkeypatch.setattr(paddle.amp, 'auto_cast', auto_cast)
    spy(paddle, 'exp')
    spy(F, 'unfold')
    spy(F, 'softmax')
    network = zoo.create_model('t2t_vit_7', img_size=32, num_classes=16)
    precision = Precision(network, None, 'O1', 'bfloat16')
    logits = precision.wrap(network)(paddle.rand([2, 3, 32, 32]))
    assert isinstance(precision.wrap(network), InMixedPrecision)
    assert logits.dtype == paddle.float32 and not active
    assert at == {'exp': [(False, {})] * 4, 'unfold': [(False, {})] * 3,
                  'softmax': [(True, dict(level='O1', dtype='bfloat16'))] * 7}
    assert precision.loss_scale.value == 1    # bfloat16 has float32's range
    assert Precision(network, None, 'O1', 'float16').loss_scale.value == 65536


def test_in_float32_the_network_is_not_wrapped():
    network = nn.Linear(2, 2)
    precision = Precision(network, None)
    assert precision.wrap(network) is network
    loss = paddle.ones([1])
    assert precision.scaled(loss) is loss
    assert common.as_float32(loss) is loss
    assert Precision(network, None, 'O1').scaled(loss).item() == 65536


def test_both_heads_of_a_distilled_network_return_float32(monkeypatch):
    class TwoHeads(nn.Layer):
        def forward(self, x):
            return x.astype('float16'), x.astype('bfloat16')

    outputs = InMixedPrecision(TwoHeads(), Precision(None, None))
    outputs.precision.autocast = contextlib.nullcontext
    assert [output.dtype for output in outputs(paddle.ones([2]))] == [paddle.float32] * 2


# ---- weights in half precision

def described(layer):
    """A layer with the description that optimizers need: no heads, one layer."""
    layer.layers, layer.heads, layer.no_weight_decay = (lambda: [()]), (), ()
    return layer


def half_network(kind, dtype, before=0):
    """A network and an optimizer as paddle.amp.decorate leaves them on a GPU."""
    for _ in range(before):
        nn.Linear(3, 3)
    network = described(nn.Linear(3, 2))
    network.weight.set_value(np.arange(6, dtype='float32').reshape(3, 2) / 7)
    optimizer = build_optimizer(network, 0.1, 0.1, kind=kind)
    network._to_impl(dtype=dtype, include_sublayers=True, floating_only=True)
    optimizer._multi_precision = True
    # The update has no kernel on a CPU; the test needs only the state.
    optimizer._append_optimize_op = lambda *arguments: None
    return network, optimizer


def step_on(network, optimizer):
    for parameter in network.parameters():
        if not parameter.stop_gradient:
            parameter.astype('float32').sum().backward()
    optimizer.step()
    optimizer.clear_grad()


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize('kind', ['adamw', 'sgd'])
@pytest.mark.parametrize('stepped', [False, True], ids=['fresh', 'stepped'])
def test_master_weights_survive_a_checkpoint(kind, dtype, stepped):
    network, optimizer = half_network(kind, dtype)
    step_on(network, optimizer)
    for number, (name, value) in enumerate(sorted(optimizer.state_dict().items())):
        if name != 'master_weights':
            value.set_value(np.full(value.shape, number + 0.25, 'float32'))
    for weight in optimizer.state_dict()['master_weights'].values():
        weight.set_value(weight.numpy() + np.float32(1e-6))    # which half precision rounds away
    arrays = capture(network, optimizer)
    assert arrays['optimizer/master_weights/weight'].dtype == np.float32
    other, other_optimizer = half_network(kind, dtype, before=2)
    if stepped:
        step_on(other, other_optimizer)
    restore(other, other_optimizer, arrays, 'a.ckpt')
    step_on(other, other_optimizer)
    actual = capture(other, other_optimizer)
    assert set(actual) == set(arrays)
    for name, array in arrays.items():
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_weights_of_another_precision_are_refused(dtype):
    arrays = capture(*half_network('adamw', dtype))
    with pytest.raises(CheckpointError, match='a.ckpt: has weights of another precision .weight'):
        restore(*half_network('adamw', 'float32'), arrays, 'a.ckpt')


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_written_weights_are_the_float32_ones(dtype, monkeypatch):
    def decorate(network, optimizer, **options):
        assert options == dict(level='O2', dtype=dtype, master_weight=True, master_grad=True)
        network._to_impl(dtype=dtype, include_sublayers=True, floating_only=True)
        optimizer._multi_precision = True

    monkeypatch.setattr(paddle.amp, 'decorate', decorate)
    paddle.seed(0)
    network = described(Token_performer(9, 4))
    exact = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    optimizer = build_optimizer(network, 0.1, 0.1)
    optimizer._append_optimize_op = lambda *arguments: None
    precision = Precision(network, optimizer, 'O2', dtype)
    before = precision.float32_state(network, optimizer)
    step_on(network, optimizer)
    masters = optimizer.state_dict()['master_weights']
    for weight in masters.values():
        weight.set_value(weight.numpy() + np.float32(1e-6))
    after = precision.float32_state(network, optimizer)
    assert network.w.dtype == getattr(paddle, dtype) and set(after) == set(exact)
    for name, tensor in network.named_parameters():
        assert before[name].dtype == after[name].dtype == paddle.float32
        rounded = tensor.astype('float32').numpy()
        wanted = exact[name] if name == 'w' else rounded + np.float32(1e-6)
        np.testing.assert_array_equal(after[name].numpy(), wanted, err_msg=name)
    np.testing.assert_array_equal(before['w'].numpy(), exact['w'])


# ---- from the configuration

def test_mixed_precision_is_refused_on_a_cpu(recipe, tmp_path):
    command = ['-c', str(recipe), '-o', f'TRAIN.OUTPUT_DIR={tmp_path}/run', 'TRAIN.AMP=O1']
    done = subprocess.run([sys.executable, 'tools/train.py', *command], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert re.fullmatch(r'error: TRAIN.AMP is O1, but this is a CPU, .*TRAIN.AMP=none to train in '
                        r'float32\n', done.stderr), done.stderr
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_a_gpu_without_the_dtype_is_refused(monkeypatch, tmp_path, dtype):
    """Paddle would train in float32 and only warn."""
    (tmp_path / 'a.yaml').write_text(f'TRAIN: {{AMP: O1, AMP_DTYPE: {dtype}}}')
    config = load_config(tmp_path / 'a.yaml')
    monkeypatch.setattr(paddle.device, 'get_device', lambda: 'gpu:0')
    for name in ('float16', 'bfloat16'):
        monkeypatch.setattr(paddle.amp, f'is_{name}_supported', lambda name=name: name != dtype)
    with pytest.raises(ConfigError, match=f'TRAIN.AMP_DTYPE is {dtype}, which gpu:0 does not'):
        build.precision(config, nn.Linear(2, 2), None)
    monkeypatch.setattr(paddle.amp, f'is_{dtype}_supported', lambda: True)
    precision = build.precision(config, nn.Linear(2, 2), None)
    assert (precision.level, precision.dtype) == ('O1', dtype)


@pytest.mark.parametrize('keys, said', [
    ('AMP: fp16', 'TRAIN.AMP must be one of none, O1, O2'),
    ('AMP_DTYPE: half', 'TRAIN.AMP_DTYPE must be one of float16, bfloat16'),
    ('AMP_ON_CPU: ignore', 'TRAIN.AMP_ON_CPU was removed')])
def test_the_error_for_an_invalid_value_names_the_key(tmp_path, keys, said):
    (tmp_path / 'a.yaml').write_text(f'TRAIN: {{{keys}}}')
    with pytest.raises(ConfigError, match=said):
        load_config(tmp_path / 'a.yaml')
