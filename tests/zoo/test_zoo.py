"""Catches faults of ViT, DeiT, PiT and other soft splits that the golden figures don't show."""

import math

import numpy as np
import paddle
import pytest
from support.figures import resize_matrix, state_of

import build
import zoo
from common import ImageClassifier, resize_pos_embed
from config import ConfigError, load_config
from weights.files import WeightsError

# Numbers of parameters that timm 1.0.9 gives these names.
TIMM_PARAMETERS = {
    'vit_tiny_patch16_384': 5_790_376, 'vit_small_patch16_384': 22_196_584,
    'vit_small_patch32_224': 22_878_952, 'vit_small_patch32_384': 22_915_432,
    'vit_base_patch16_384': 86_859_496, 'vit_base_patch32_224': 88_224_232,
    'vit_base_patch32_384': 88_297_192, 'vit_large_patch16_224': 304_326_632,
    'vit_large_patch16_384': 304_715_752, 'deit_tiny_patch16_224': 5_717_416,
    'deit_small_patch16_224': 22_050_664, 'deit_base_patch16_224': 86_567_656,
    'deit_base_patch16_384': 86_859_496, 'deit_tiny_distilled_patch16_224': 5_910_800,
    'deit_small_distilled_patch16_224': 22_436_432,
    'deit_base_distilled_patch16_224': 87_338_192,
    'deit_base_distilled_patch16_384': 87_630_032,
}
DISTILLED = ['deit_tiny_distilled_patch16_224', 'pit_ti_distilled']
SMALL = ['vit_tiny_patch16_224', 'pit_ti'] + DISTILLED


def small(name, **options):
    paddle.seed(1)
    depth = (1, 2, 1) if name.startswith('pit') else 2
    return zoo.create_model(
        name, **{'img_size': 32, 'num_classes': 10, 'depth': depth, **options})


def images(size=32, count=2):
    return paddle.to_tensor(
        np.random.RandomState(0).standard_normal((count, 3, size, size)).astype('float32'))


# ---- the forward in NumPy

def layer_norm(x, state, name):
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred ** 2).mean(-1, keepdims=True) + 1e-6)
    return centred / scale * state[f'{name}.weight'] + state[f'{name}.bias']


def linear(x, state, name):
    return x @ state[f'{name}.weight'] + state[f'{name}.bias']


def block(x, state, name, num_heads):
    """A pre-norm block on the tokens (N, C) of one image, head by head, in float64."""
    mixed = linear(layer_norm(x, state, f'{name}.norm1'), state, f'{name}.attn.qkv')
    width = x.shape[1] // num_heads
    query, key, value = np.split(mixed, 3, axis=1)
    heads = []
    for head in range(num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = np.exp(query[:, part] @ key[:, part].T / math.sqrt(width))
        heads.append(scores / scores.sum(1, keepdims=True) @ value[:, part])
    x = x + linear(np.concatenate(heads, 1), state, f'{name}.attn.proj')
    hidden = linear(layer_norm(x, state, f'{name}.norm2'), state, f'{name}.mlp.fc1')
    hidden = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
    return x + linear(hidden, state, f'{name}.mlp.fc2')


def convolve(image, weight, bias, stride):
    """Convolve one image (C, H, W) without padding, window by window."""
    kernel = weight.shape[2]
    side = (image.shape[1] - kernel) // stride + 1
    out = np.zeros((len(weight), side, side))
    per_group = weight.shape[1]
    for row in range(side):
        for column in range(side):
            window = image[:, row * stride:row * stride + kernel,
                           column * stride:column * stride + kernel]
            for channel in range(len(weight)):
                first = channel * image.shape[0] // len(weight) // per_group * per_group
                out[channel, row, column] = (
                    window[first:first + per_group] * weight[channel]).sum() + bias[channel]
    return out


def randomised(network, scale):
    """Add noise to every tensor of a network; returns its state in float64."""
    random = np.random.RandomState(0)
    for tensor in network.state_dict().values():
        values = random.standard_normal(tensor.shape) * scale
        tensor.set_value((tensor.numpy() + values).astype('float32'))
    return {name: array.astype('float64') for name, array in state_of(network).items()}


def check_heads(network, x, tokens, state):
    """Compare the logits of both heads and modes with those of normalised prefix tokens (2, C)."""
    expected = [linear(tokens[index], state, name)
                for index, name in enumerate(('head', 'head_dist'))]
    network.train()
    for actual, wanted in zip(network(x), expected):
        np.testing.assert_allclose(actual.numpy()[0], wanted, atol=2e-5)
    network.eval()
    np.testing.assert_allclose(network(x).numpy()[0], sum(expected) / 2, atol=2e-5)
    np.testing.assert_allclose(network.forward_features(x).numpy()[0], tokens[0], atol=2e-5)


def test_a_distilled_deit_agrees_with_numpy():
    network = small('deit_tiny_distilled_patch16_224', depth=2, embed_dim=12, num_heads=3)
    # Small values, so that epsilon matters: the input of the first norm has variance 1e-5.
    state = randomised(network, 0.003)
    x = images(count=1) * 0.1
    grid = convolve(x.numpy()[0].astype('float64'), state['patch_embed.proj.weight'],
                    state['patch_embed.proj.bias'], 16)
    tokens = np.concatenate([state['cls_token'][0], state['dist_token'][0],
                             grid.reshape(12, 4).T]) + state['pos_embed'][0]
    for index in range(2):
        tokens = block(tokens, state, f'blocks.{index}', 3)
    check_heads(network, x, layer_norm(tokens, state, 'norm')[:2], state)


def test_a_distilled_pit_agrees_with_numpy():
    network = small('pit_ti_distilled', head_dim=4, num_heads=(1, 2, 4))
    state = randomised(network, 0.003)
    x = images(count=1)
    grid = convolve(x.numpy()[0].astype('float64'), state['patch_embed.conv.weight'],
                    state['patch_embed.conv.bias'], 8) + state['pos_embed'][0]
    prefix = state['cls_token'][0]
    for stage, depth in enumerate((1, 2, 1)):
        if stage:
            name = f'pools.{stage - 1}'
            grid = convolve(np.pad(grid, ((0, 0), (1, 1), (1, 1))), state[f'{name}.conv.weight'],
                            state[f'{name}.conv.bias'], 2)
            prefix = linear(prefix, state, f'{name}.fc')
        tokens = np.concatenate([prefix, grid.reshape(len(grid), -1).T])
        for index in range(depth):
            tokens = block(tokens, state, f'transformers.{stage}.blocks.{index}', 2 ** stage)
        prefix, grid = tokens[:2], tokens[2:].T.reshape(grid.shape)
    check_heads(network, x, layer_norm(prefix, state, 'norm'), state)


# ---- names and sizes

def parameters_of_vit(width, depth, patch, side, prefix=1, classes=1000):
    embedding = width * 3 * patch ** 2 + width + (prefix + prefix + side ** 2) * width
    per_block = 12 * width ** 2 + 13 * width
    return embedding + depth * per_block + 2 * width + prefix * (width + 1) * classes


@pytest.mark.parametrize('name', sorted(TIMM_PARAMETERS))
def test_every_name_has_timms_parameter_count_and_the_size_in_its_name(name):
    network = zoo.create_model(name, depth=1)    # the other blocks are like the first
    size = int(name.rpartition('_')[2])
    assert network.img_size == size
    patch = network.patch_embed.proj.weight.shape[2]
    assert f'patch{patch}_' in name and ('distilled' in name) == (len(network.heads) == 2)
    arguments = dict(width=network.num_features, patch=patch, side=size // patch,
                     prefix=network.num_prefix_tokens)
    depth = 24 if 'large' in name else 12
    assert zoo.MODELS[name][1]['depth'] == depth
    assert parameters_of_vit(depth=depth, **arguments) == TIMM_PARAMETERS[name]
    assert (sum(int(np.prod(p.shape)) for p in network.parameters())
            == parameters_of_vit(depth=1, **arguments))


@pytest.mark.parametrize('name', ['pit_ti', 'pit_xs', 'pit_s', 'pit_b'])
def test_a_distilled_pit_has_one_token_and_one_head_more(name):
    plain, distilled = (
        {key: tuple(tensor.shape)
         for key, tensor in small(each, num_classes=7).state_dict().items()}
        for each in (name, f'{name}_distilled'))
    width, last = plain['cls_token'][2], plain['norm.weight'][0]
    plain.update({'cls_token': (1, 2, width), 'head_dist.weight': (last, 7),
                  'head_dist.bias': (7,)})
    assert plain == distilled


def test_explicit_size_and_classes_override_those_of_the_name():
    network = zoo.create_model('t2t_vit_cifar')
    assert (network.img_size, network.num_classes) == (32, 10)
    network = zoo.create_model('t2t_vit_cifar', num_classes=100, img_size=64)
    assert (network.img_size, network.num_classes) == (64, 100)
    assert zoo.create_model('vit_tiny_patch16_384', img_size=32, depth=1).img_size == 32


def test_t2t_vit_for_cifar_keeps_64_tokens_and_four_million_parameters():
    network = zoo.create_model('t2t_vit_cifar')
    assert network.tokens_to_token(images()).shape == [2, 64, 256]
    assert network(images()).shape == [2, 10]
    # T2T-ViT-7 minus 990 classes, 132 positions, and 147 - 27 inputs of the first Performer, each
    # with 2 weights in norm1 and 3 * 64 in kqv.
    expected = 4_310_222 - 990 * 257 - (197 - 65) * 256 - (147 - 27) * (2 + 3 * 64)
    assert sum(int(np.prod(p.shape)) for p in network.parameters()) == expected


def test_all_networks_share_one_interface():
    for network, _ in zoo.MODELS.values():
        assert issubclass(network, ImageClassifier)


# ---- behaviour

@pytest.mark.parametrize('name', SMALL)
def test_every_parameter_gets_a_gradient(name):
    network = small(name)
    outputs = network(images(count=4))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == len(network.heads)
    loss = sum(paddle.nn.functional.cross_entropy(logits, paddle.arange(4))
               for logits in outputs)
    loss.backward()
    for parameter_name, parameter in network.named_parameters():
        assert not parameter.stop_gradient, parameter_name
        gradient = parameter.grad.numpy()
        assert np.isfinite(gradient).all() and gradient.any(), parameter_name


@pytest.mark.parametrize('name', SMALL)
def test_an_image_of_another_size_is_refused(name):
    with pytest.raises(ValueError, match='built for 32 x 32 pixels and got 48 x 48'):
        small(name)(images(48))


@pytest.mark.parametrize('name, size, said', [
    ('vit_tiny_patch16_224', 40, 'multiple of 16, such as 48'),
    ('vit_small_patch32_224', 48, 'multiple of 32, such as 64'),
    ('vit_tiny_patch16_224', (32, 64), 'not square'), ('pit_ti', 15, 'use 16 or more')])
def test_the_error_for_an_invalid_size_names_one_that_works(name, size, said):
    with pytest.raises(ValueError, match=said):
        small(name, img_size=size)
    if not isinstance(size, tuple):
        works = int(said.replace('or more', '').split()[-1])
        assert small(name, img_size=works)(images(works)).shape == [2, 10]


def test_drop_path_grows_over_the_depth():
    rates = [part.drop_path.drop_prob
             for part in small('vit_tiny_patch16_224', drop_path_rate=0.3, depth=4).blocks]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3])
    network = small('pit_ti', drop_path_rate=0.4)
    rates = [[part.drop_path.drop_prob for part in stage.blocks]
             for stage in network.transformers]
    assert [len(stage) for stage in rates] == [1, 2, 1]
    np.testing.assert_allclose(sum(rates, []), [0, 0.1, 0.2, 0.3])    # the official code's way


@pytest.mark.parametrize('name', SMALL)
def test_dropout_acts_in_training_only(name):
    network = small(name, drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5)
    x = images()
    first, second = (paddle.concat(list(network(x)) if len(network.heads) > 1 else [network(x)])
                     for _ in range(2))
    assert np.abs(first.numpy() - second.numpy()).max() > 1e-3
    network.eval()
    np.testing.assert_array_equal(network(x).numpy(), network(x).numpy())


@pytest.mark.parametrize('name', SMALL)
def test_new_heads_keep_the_features(name):
    network = small(name)
    network.eval()
    features = network.forward_features(images()).numpy()
    network.reset_head(3)
    assert network(images()).shape == [2, 3] and network.num_classes == 3
    np.testing.assert_array_equal(features, network.forward_features(images()).numpy())
    network.reset_head(0)
    assert network(images()).shape == list(features.shape)


def test_recording_returns_attention_and_token_grids():
    network, x = small('vit_tiny_patch16_224', img_size=48), images(48)
    with network.recording() as record:
        network(x)
    assert {name: tuple(each.shape) for name, each in record.attention.items()} == {
        f'blocks.{index}.attn': (2, 3, 10, 10) for index in range(2)}
    patch = x.numpy()[1, :, 16:32, 32:48]
    expected = (network.patch_embed.proj.weight.numpy() * patch).sum((1, 2, 3))
    np.testing.assert_allclose(
        record.feature_maps['patch_embed.proj'].numpy()[1, :, 1, 2],
        expected + network.patch_embed.proj.bias.numpy(), atol=1e-4)

    network = small('pit_ti_distilled')
    with network.recording() as record:
        network(images())
    assert [(name, tuple(each.shape)) for name, each in record.attention.items()] == [
        ('transformers.0.blocks.0.attn', (2, 2, 11, 11)),
        ('transformers.1.blocks.0.attn', (2, 4, 6, 6)),
        ('transformers.1.blocks.1.attn', (2, 4, 6, 6)),
        ('transformers.2.blocks.0.attn', (2, 8, 3, 3))]
    for attention in record.attention.values():
        np.testing.assert_allclose(attention.numpy().sum(-1), 1, atol=1e-5)
    assert {name: tuple(each.shape) for name, each in record.feature_maps.items()} == {
        'patch_embed.conv': (2, 64, 3, 3), 'pools.0.conv': (2, 128, 2, 2),
        'pools.1.conv': (2, 256, 1, 1)}


@pytest.mark.parametrize('name', DISTILLED)
def test_a_static_graph_takes_any_batch(name, tmp_path):
    network = small(name)
    network.eval()
    paddle.jit.save(network, str(tmp_path / 'network'),
                    input_spec=[paddle.static.InputSpec([None, 3, 32, 32], 'float32')])
    loaded = paddle.jit.load(str(tmp_path / 'network'))
    for count in (1, 3):
        x = images(count=count)
        np.testing.assert_allclose(loaded(x).numpy(), network(x).numpy(), atol=1e-5)


# ---- initial values

def test_vit_starts_from_a_normal_of_std_002():
    network = zoo.create_model('deit_tiny_distilled_patch16_224', depth=1)
    state = state_of(network)
    for name in ('pos_embed', 'cls_token', 'dist_token', 'head_dist.weight',
                 'blocks.0.attn.qkv.weight'):
        values = state[name].ravel() / 0.02
        assert abs(values.mean()) < 5 / math.sqrt(len(values)), name
        assert abs(values.std() - 1) < 5 / math.sqrt(2 * len(values)), name
    assert not state['blocks.0.attn.qkv.bias'].any() and not state['head.bias'].any()


def test_pit_starts_from_pytorchs_values():
    network = small('pit_ti')
    for name, layer in network.named_sublayers():
        if not isinstance(layer, (paddle.nn.Linear, paddle.nn.Conv2D)):
            continue
        weight = layer.weight.numpy()
        fan_in = len(weight) if weight.ndim == 2 else weight[0].size
        bound = 1 / math.sqrt(fan_in)
        assert 0.9 * bound < np.abs(weight).max() <= bound * (1 + 1e-6), name
        spread = 5 * bound / math.sqrt(weight.size)
        assert abs(weight.std() - bound / math.sqrt(3)) < spread, name
        assert 0 < np.abs(layer.bias.numpy()).max() <= bound * (1 + 1e-6), name
    assert abs(network.pos_embed.numpy().std() - 0.02) < 0.003


# ---- weights of another size

def test_a_distilled_deit_accepts_weights_of_another_size_and_number_of_classes():
    name = 'deit_tiny_distilled_patch16_224'
    source, target = small(name, img_size=64), small(name, num_classes=4)
    fresh = state_of(target)
    with pytest.raises(WeightsError, match='pos_embed'):
        zoo.load_state(target, state_of(source), 'file')
    zoo.load_state(target, state_of(source), 'file', adapt=True, new_head=True)
    actual = state_of(target)
    for head in ('head.weight', 'head.bias', 'head_dist.weight', 'head_dist.bias'):
        np.testing.assert_array_equal(actual[head], fresh[head])
    table = source.pos_embed.numpy()[0]
    np.testing.assert_array_equal(actual['pos_embed'][0, :2], table[:2])
    matrix = resize_matrix(4, 2)
    expected = np.einsum('yh,xw,hwc->yxc', matrix, matrix, table[2:].reshape(4, 4, -1))
    np.testing.assert_allclose(actual['pos_embed'][0, 2:], expected.reshape(4, -1), atol=1e-6)


def test_a_pit_accepts_weights_of_another_size():
    source, target = small('pit_ti', img_size=64), small('pit_ti')
    zoo.load_state(target, state_of(source), 'file', adapt=True)
    matrix = resize_matrix(7, 3)
    expected = np.einsum('yh,xw,chw->cyx', matrix, matrix, source.pos_embed.numpy()[0])
    np.testing.assert_allclose(target.pos_embed.numpy()[0], expected, atol=1e-6)


def test_a_table_of_another_width_or_without_a_grid_is_refused():
    target = small('vit_tiny_patch16_224')
    state = state_of(target)
    state['pos_embed'] = np.zeros((1, 5, 64), 'float32')
    with pytest.raises(WeightsError, match=r'pos_embed \[1, 5, 64\] instead of'):
        zoo.load_state(target, state, 'file', adapt=True)
    for length in (0, 1, 4):
        with pytest.raises(ValueError, match='no square grid'):
            resize_pos_embed(np.zeros((1, length, 8), 'float32'), 5)


# ---- from a configuration

def built(*overrides):
    return build.network(load_config('config/t2t_vit_7.yaml', overrides))


def test_other_soft_splits_and_token_widths_come_from_the_configuration():
    network = built('MODEL.IMAGE_SIZE=24', 'MODEL.TOKEN_DIM=16', 'MODEL.NUM_CLASSES=5',
                    'MODEL.SOFT_SPLITS=[[5, 2, 2], [3, 3, 0]]')
    module = network.tokens_to_token
    assert module.grid_sizes == [12, 4]
    assert module.attention1.kqv.weight.shape == [75, 48] and not hasattr(module, 'attention2')
    assert module.project.weight.shape == [16 * 9, 256]
    assert network(images(24)).shape == [2, 5]


@pytest.mark.parametrize('overrides, said', [
    (['MODEL.SOFT_SPLITS=[[3, 0, 1]]'], r'\[3, 0, 1\] is invalid'),
    (['MODEL.SOFT_SPLITS=[[0, 1, 0]]'], r'\[0, 1, 0\] is invalid'),
    (['MODEL.SOFT_SPLITS=[[3, 1, -1]]'], r'\[3, 1, -1\] is invalid'),
    (['MODEL.SOFT_SPLITS=[[3, 5, 1]]'], 'multiple of 5, such as 220 or 225'),
    (['MODEL.SOFT_SPLITS=[[4, 2, 0]]'], '111 x 111 tokens instead of 112 x 112'),
    (['MODEL.NAME=pit_ti', 'MODEL.TOKEN_DIM=32'], 'MODEL.TOKEN_DIM belongs to T2T-ViT'),
    (['MODEL.NAME=pit_ti', 'MODEL.TOKENS_TYPE=performer'], 'MODEL.TOKENS_TYPE belongs to'),
    (['MODEL.NAME=pit_ti', 'MODEL.SOFT_SPLITS=[[3, 2, 1]]'], 'MODEL.SOFT_SPLITS belongs to'),
    (['MODEL.NAME=vit_tiny_patch16_384'], 'made for 384: set it'),
    (['MODEL.NAME=t2t_vit_cifar'], 'made for 32: set it'),
    (['MODEL.NAME=vit_tiny_patch16'], 'did you mean vit_tiny_patch16_'),
    (['MODEL.NAME=pit_ti', 'MODEL.IMAGE_SIZE=8'], '16 or more')])
def test_the_error_for_an_invalid_network_is_one_line(overrides, said):
    with pytest.raises(ConfigError, match=said) as caught:
        built(*overrides)
    assert '\n' not in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize('name', SMALL)
def test_a_complete_saved_configuration_builds_any_network(name):
    """A saved configuration has every key, also those of T2T-ViT."""
    network = built(f'MODEL.NAME={name}', 'MODEL.IMAGE_SIZE=32', 'MODEL.FROZEN=false',
                    'MODEL.SOFT_SPLITS=[]', 'MODEL.TOKEN_DIM=64', 'MODEL.TOKENS_TYPE=',
                    'MODEL.DROP_PATH_RATE=0.1', 'MODEL.NUM_CLASSES=3')
    network.eval()
    assert network(images()).shape == [2, 3]
