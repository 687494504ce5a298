"""Catches faults of T2T-ViT that golden figures don't show: sizes, initial values, maps, heads."""

import math

import numpy as np
import paddle
import pytest
from support.figures import resize_matrix, state_of

import zoo
from common import DropPath, resize_pos_embed, sinusoid_table
from t2t import T2T_module, grid_sizes
from weights.files import WeightsError


def small(name='t2t_vit_7', **options):
    paddle.seed(1)
    return zoo.create_model(name, **{'img_size': 32, 'num_classes': 10, **options})


def images(size=32, count=2):
    return paddle.to_tensor(
        np.random.RandomState(0).standard_normal((count, 3, size, size)).astype('float32'))


# ---- building

def test_the_zoo_holds_the_fourteen_official_models():
    assert list(zoo.MODELS)[:14] == [
        't2t_vit_7', 't2t_vit_10', 't2t_vit_12', 't2t_vit_14', 't2t_vit_19', 't2t_vit_24',
        't2t_vit_t_14', 't2t_vit_t_19', 't2t_vit_t_24', 't2t_vit_14_resnext', 't2t_vit_14_wide',
        't2t_vit_14_se', 't2t_vit_16_ghost', 't2t_vit_dense']


@pytest.mark.parametrize('name', ['t2t_vit_7', 't2t_vit_t_14', 't2t_vit_14_se',
                                  't2t_vit_16_ghost', 't2t_vit_dense'])
def test_every_trainable_parameter_gets_a_gradient(name):
    network = small(name, drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.1)
    loss = paddle.nn.functional.cross_entropy(network(images(count=4)), paddle.arange(4))
    loss.backward()
    for parameter_name, parameter in network.named_parameters():
        if parameter.stop_gradient:
            assert parameter_name == 'pos_embed' or parameter_name.endswith('.w')
        else:
            assert parameter.grad is not None, parameter_name


def test_the_error_for_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match='t2t_vit_14'):
        zoo.create_model('t2t_vit_14x')


@pytest.mark.parametrize('size', [100, 8, 225])
def test_the_error_for_a_size_the_strides_do_not_divide_names_sizes_that_work(size):
    with pytest.raises(ValueError, match='multiple of 16') as caught:
        small(img_size=size)
    named = [int(word) for word in str(caught.value).replace(',', ' ').split() if word.isdigit()]
    for works in [number for number in named if number not in (size, 16)]:
        assert small(img_size=works)(images(works)).shape == [2, 10]


def test_a_size_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match='not square'):
        small(img_size=(64, 32))
    assert small(img_size=(32, 32)).img_size == 32


def test_an_image_of_another_size_is_refused_at_the_forward():
    with pytest.raises(ValueError, match='built for 32 x 32 pixels and got 48 x 48'):
        small()(images(48))
    with pytest.raises(ValueError, match='got 32 x 64'):
        small()(paddle.zeros([1, 3, 32, 64]))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match='7 heads'):
        small(num_heads=7)


def test_grid_sizes_agree_with_the_formula_of_unfold():
    for size in range(16, 400, 16):
        side = size
        for (kernel, stride, padding), expected in zip(((7, 4, 2), (3, 2, 1), (3, 2, 1)),
                                                       grid_sizes(size)):
            side = math.floor((side + 2 * padding - kernel) / stride) + 1
            assert side == expected
        assert grid_sizes(size)[-1] == size // 16


def test_convolution_tokens_work():
    network = small(tokens_type='convolution')
    x = images()
    module = network.tokens_to_token
    grid = module.project(module.soft_split1(module.soft_split0(x)))    # (B, 256, 2, 2)
    tokens = module(x).numpy()
    assert tokens.shape == (2, 4, 256)
    for index in range(4):
        row, column = divmod(index, 2)
        np.testing.assert_array_equal(tokens[:, index], grid.numpy()[:, :, row, column])
    network(x).sum().backward()
    assert float(module.soft_split0.weight.grad.abs().sum()) > 0


def test_other_soft_splits_suit_small_images():
    module = T2T_module(32, embed_dim=64, soft_splits=((3, 1, 1), (3, 2, 1), (3, 2, 1)))
    assert module(images()).shape == [2, 64, 64]
    with pytest.raises(ValueError, match='check their kernels'):
        T2T_module(32, soft_splits=((5, 2, 0), (3, 2, 1)))


# ---- initial values

def test_random_features_start_as_orthogonal_rows_of_norm_sqrt_32():
    network = small()
    for name, w in network.named_parameters():
        if name.endswith('.w'):
            np.testing.assert_allclose(w.numpy() @ w.numpy().T, 32 * np.eye(32), atol=1e-3)
            assert w.stop_gradient
    first, second = (small().tokens_to_token.attention1.w.numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)    # the seed decides
    paddle.seed(2)
    third = zoo.create_model('t2t_vit_7', img_size=32).tokens_to_token.attention1.w.numpy()
    assert np.abs(first - third).max() > 0.1


def test_linear_layers_start_from_a_plain_normal_of_std_002():
    network = small(num_classes=1000)
    values = []
    for name, layer in network.named_sublayers():
        if isinstance(layer, paddle.nn.Linear):
            values.append(layer.weight.numpy().ravel())
            if layer.bias is not None:
                assert not layer.bias.numpy().any(), name
        if isinstance(layer, paddle.nn.LayerNorm):
            assert (layer.weight.numpy() == 1).all() and not layer.bias.numpy().any()
    values = np.concatenate(values) / 0.02
    assert abs(values.mean()) < 5 / math.sqrt(len(values))
    assert abs(values.std() - 1) < 5 / math.sqrt(2 * len(values))
    # 4.55 % of a normal lie beyond two deviations; truncation at two would leave none.
    beyond = (np.abs(values) > 2).mean()
    assert abs(beyond - 0.0455) < 5 * math.sqrt(0.0455 / len(values))
    token = network.cls_token.numpy().ravel() / 0.02
    assert abs(token.std() - 1) < 5 / math.sqrt(2 * len(token))


def test_convolutions_start_within_pytorchs_bounds():
    module = small(tokens_type='convolution').tokens_to_token
    for layer, fan_in in ((module.soft_split0, 3 * 49), (module.project, 64 * 9)):
        bound = 1 / math.sqrt(fan_in)
        weight = layer.weight.numpy()
        assert 0.95 * bound < np.abs(weight).max() <= bound
        assert abs(weight.std() - bound / math.sqrt(3)) < 0.02 * bound
        assert 0 < np.abs(layer.bias.numpy()).max() <= bound


def test_the_position_table_is_the_sinusoid():
    table = sinusoid_table(5, 6)[0]
    for position in range(5):
        for channel in range(6):
            angle = position / 10000 ** ((channel - channel % 2) / 6)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert table[position, channel] == pytest.approx(expected, abs=1e-6)


def test_frozen_decides_what_trains():
    assert small().pos_embed.stop_gradient and small().tokens_to_token.attention2.w.stop_gradient
    network = small(frozen=False)
    network(images()).sum().backward()
    assert float(network.pos_embed.grad.abs().sum()) > 0
    assert float(network.tokens_to_token.attention2.w.grad.abs().sum()) > 0


def test_drop_path_drops_whole_images_and_keeps_the_expectation():
    paddle.seed(3)
    layer, x = DropPath(0.25), paddle.ones([4000, 2, 3])
    kept = layer(x).numpy()
    assert set(np.unique(kept)) == {0.0, np.float32(1 / 0.75)}
    assert (kept == kept[:, :1, :1]).all()
    assert abs(kept.mean() - 1) < 5 * math.sqrt(0.25 / 0.75 / 4000)
    layer.eval()
    np.testing.assert_array_equal(layer(x).numpy(), x.numpy())


def test_drop_path_grows_linearly_over_the_depth():
    rates = [block.drop_path.drop_prob for block in small(drop_path_rate=0.12).blocks]
    np.testing.assert_allclose(rates, [0, 0.02, 0.04, 0.06, 0.08, 0.10, 0.12])


# ---- recording

def test_recording_returns_attention_and_feature_maps_and_removes_its_hooks():
    network = small()
    network.eval()
    x = images()
    before = network(x).numpy()
    with network.recording() as record:
        during = network(x).numpy()
    np.testing.assert_array_equal(before, during)
    np.testing.assert_array_equal(before, network(x).numpy())
    for layer in network.sublayers(include_self=True):
        assert not layer._forward_pre_hooks and not layer._forward_post_hooks

    assert list(record.attention) == [f'blocks.{index}.attn' for index in range(7)]
    shapes = {name: tuple(grid.shape) for name, grid in record.feature_maps.items()}
    assert shapes == {'tokens_to_token.attention1': (2, 64, 8, 8),
                      'tokens_to_token.attention2': (2, 64, 4, 4),
                      'tokens_to_token.project': (2, 256, 2, 2)}
    # The first block's map in NumPy: softmax(q k / sqrt(head_dim)).
    tokens = network.tokens_to_token(x).numpy()
    tokens = np.concatenate([np.repeat(network.cls_token.numpy(), 2, 0), tokens], 1)
    tokens = network.blocks[0].norm1(
        paddle.to_tensor(tokens + network.pos_embed.numpy())).numpy()
    query, key, _ = np.split(tokens @ network.blocks[0].attn.qkv.weight.numpy(), 3, axis=-1)
    query, key = (part.reshape(2, 5, 4, 64).transpose(0, 2, 1, 3) for part in (query, key))
    scores = np.exp(query @ key.transpose(0, 1, 3, 2) / 8)
    np.testing.assert_allclose(record.attention['blocks.0.attn'].numpy(),
                               scores / scores.sum(-1, keepdims=True), atol=1e-6)
    # A grid is the tokens, row by row.
    np.testing.assert_array_equal(
        record.feature_maps['tokens_to_token.project'].numpy()[:, :, 1, 0],
        network.tokens_to_token(x).numpy()[:, 2])


def test_recording_ends_when_the_forward_fails():
    network = small()
    with pytest.raises(ValueError), network.recording():
        network(images(48))
    assert not any(layer._forward_pre_hooks for layer in network.sublayers())


def test_recording_a_token_transformer_and_convolutions():
    with small('t2t_vit_t_14').recording() as record:
        pass
    assert record.attention == {}
    network = small('t2t_vit_t_14')
    with network.recording() as record:
        network(images())
    assert tuple(record.attention['tokens_to_token.attention1.attn'].shape) == (2, 64, 64)
    network = small(tokens_type='convolution')
    with network.recording() as record:
        network(images())
    assert tuple(record.feature_maps['tokens_to_token.project'].shape) == (2, 256, 2, 2)


# ---- heads and foreign weights

@pytest.mark.parametrize('name', ['t2t_vit_7', 't2t_vit_dense'])
def test_a_new_head_keeps_the_features(name):
    network = small(name)
    network.eval()
    features = network.forward_features(images()).numpy()
    network.reset_head(3)
    assert network(images()).shape == [2, 3] and network.num_classes == 3
    np.testing.assert_array_equal(features, network.forward_features(images()).numpy())
    assert abs(network.head.weight.numpy().std() - 0.02) < 0.003
    network.reset_head(0)
    np.testing.assert_array_equal(features, network(images()).numpy())


@pytest.mark.parametrize('old, new', [(14, 24), (14, 6), (4, 4)])
def test_positions_are_interpolated_bicubically_and_the_class_token_is_not(old, new):
    table = np.random.RandomState(0).standard_normal((1, old * old + 1, 8)).astype('float32')
    actual = resize_pos_embed(table, new * new + 1).numpy()
    np.testing.assert_array_equal(actual[:, 0], table[:, 0])
    matrix = resize_matrix(old, new)
    expected = np.einsum('yh,xw,hwc->yxc', matrix, matrix, table[0, 1:].reshape(old, old, 8))
    np.testing.assert_allclose(actual[0, 1:], expected.reshape(new * new, 8), atol=1e-5)


def test_weights_of_another_size_and_head_fit_when_asked():
    source, target = small(img_size=64), small(num_classes=4)
    head = target.head.weight.numpy()
    with pytest.raises(WeightsError, match='pos_embed.*MODEL.ADAPT'):
        zoo.load_state(target, state_of(source), 'file')
    adapted = zoo.load_state(target, state_of(source), 'file', adapt=True, new_head=True)
    assert adapted.fresh == ['head.weight', 'head.bias'] and adapted.adapted == ['pos_embed']
    assert set(adapted.taken) == set(state_of(source)) - {'head.weight', 'head.bias', 'pos_embed'}
    np.testing.assert_array_equal(target.head.weight.numpy(), head)
    np.testing.assert_array_equal(target.blocks[3].mlp.fc1.weight.numpy(),
                                  source.blocks[3].mlp.fc1.weight.numpy())
    np.testing.assert_allclose(target.pos_embed.numpy(),
                               resize_pos_embed(source.pos_embed, 5).numpy())


def test_weights_that_do_not_fit_are_listed_and_change_nothing():
    network = small()
    before, state = state_of(network), state_of(small())
    del state['norm.weight']
    state['stem.weight'] = np.zeros(3)
    state['head.bias'] = np.zeros(11)
    state['cls_token'] = state['cls_token'] + 1
    with pytest.raises(WeightsError) as caught:
        zoo.load_state(network, state, 'some.pdparams')
    message = str(caught.value)
    for part in ('some.pdparams', 'missing: norm.weight', 'unexpected: stem.weight',
                 'head.bias [11] instead of [10]'):
        assert part in message
    np.testing.assert_array_equal(network.cls_token.numpy(), before['cls_token'])
