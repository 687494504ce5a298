"""Catches docs/explained.md with outdated code, and wrong numbers and claims in it."""

import inspect
import re
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT
from paddle.nn import functional as F

import common
import predict
import t2t
import zoo

sys.path.append(str(ROOT / 'docs'))
import explain

PAGE = ROOT / 'docs' / 'explained.md'
NETWORKS = [(64, zoo.MINI_SPLITS), (224, t2t.SOFT_SPLITS), (224, ((16, 16, 0),))]


@pytest.fixture(scope='module')
def rng():
    return np.random.default_rng(0)


def test_the_page_is_what_the_command_would_write():
    """But for the tables of the weights, which test_the_command checks."""
    page = PAGE.read_text(encoding='utf-8')
    assert explain.fill(page, explain.structure(64, zoo.MINI_SPLITS)) == page, \
        'run python docs/explain.py'
    # What was written is written again, all else stays.
    stale = page.replace('F.unfold(x, kernel', 'unfold(x, kernel').replace('3,136 |', '3,137 |')
    assert stale != page
    assert explain.fill(stale, explain.structure(64, zoo.MINI_SPLITS)) == page
    assert explain.fill(page.replace('half an hour', 'a day'), {}).count('a day') == 1
    # Five figures, and all tables that the command knows.
    assert len(re.findall(r'!\[[^]]+\]\(explained/\w+\.(?:png|svg)\)', page)) == 5
    assert set(re.findall(r'<!-- table: (\w+) -->', page)) == {
        'splits', 'costs', 'sizes', 'performer', 'attention', 'answer'}


def test_code_of_the_page_is_that_of_the_functions():
    """By Python's own way to find a function's source."""
    functions = {
        'soft_split': t2t.soft_split, 'T2T_module.forward': t2t.T2T_module.forward,
        'Token_performer.prm_exp': t2t.Token_performer.prm_exp,
        'Token_performer.single_attn': t2t.Token_performer.single_attn,
        'T2T_ViT.forward_prefix': t2t.T2T_ViT.forward_prefix,
        'Block.forward': common.Block.forward, 'Attention.forward': common.Attention.forward}
    shown = dict(re.findall(r'<!-- code: \S+ (\S+) -->\n+```python\n(.*?)```',
                            PAGE.read_text(encoding='utf-8'), re.DOTALL))
    assert shown.keys() == functions.keys()
    for name, function in functions.items():
        whole = inspect.cleandoc('\n' + inspect.getsource(function))
        before, *_, after = re.split('"""', whole) if function.__doc__ else (whole, '')
        assert shown[name].split() == (before + after).split()
        assert 3 <= len(shown[name].splitlines()) <= 12


@pytest.mark.parametrize('size, splits', NETWORKS)
def test_the_square_that_a_token_sees_is_where_its_gradient_is(size, splits):
    """Convolutions with the windows of the soft splits, all of whose weights are 1."""
    module = t2t.T2T_module(size, 'convolution', 1, 1, 1, splits)
    for parameter in module.parameters():
        parameter.set_value(paddle.ones_like(parameter))
    image = paddle.ones([1, 1, size, size])
    image.stop_gradient = False
    stages, x = explain.geometry(size, splits), image
    for stage, layer in zip(stages, module.children()):
        x = layer(x)
        assert x.shape[2:] == [stage.side, stage.side]
        for row, column in ((0, 0), (stage.side // 2, stage.side // 2), (1, stage.side - 1)):
            gradient, = paddle.grad(x[0, 0, row, column], image, retain_graph=True)
            seen = np.zeros((size, size), dtype=bool)
            edges = [(max(stage.begin + index * stage.step, 0),
                      stage.begin + index * stage.step + stage.field) for index in (row, column)]
            seen[slice(*edges[0]), slice(*edges[1])] = True
            assert np.array_equal(gradient[0, 0].numpy() != 0, seen)
    reach = np.abs(paddle.grad(x[0, 0, x.shape[2] // 2, x.shape[3] // 2], image)[0][0, 0].numpy())
    assert explain.inside(reach, stages[-1]) == 1
    assert explain.inside(np.ones_like(reach), stages[-1]) == pytest.approx(
        (stages[-1].field / size) ** 2)


@pytest.mark.parametrize('side, split', [(64, (7, 4, 2)), (16, (3, 2, 1)), (8, (3, 1, 1)),
                                         (32, (16, 16, 0))])
def test_the_windows_that_hold_a_pixel_are_those_of_the_soft_split(side, split):
    grid = paddle.ones([1, 1, side, side])
    grid.stop_gradient = False
    held, = paddle.grad(t2t.soft_split(grid, split).sum(), grid)
    assert np.array_equal(held[0, 0].numpy(), explain.coverage(side, split))


def test_the_table_of_soft_splits_counts_what_the_network_makes():
    network = zoo.create_model('t2t_vit_mini')
    made = []
    x = paddle.zeros([1, 3, 64, 64])
    for index, split in enumerate(zoo.MINI_SPLITS):
        x = t2t.soft_split(x, split)
        made.append((x.shape[1], x.shape[2]))
        side = network.tokens_to_token.grid_sizes[index]
        x = common.tokens_to_grid(x[:, :, :64], side)
    lines = explain.splits_table({'here': (64, zoo.MINI_SPLITS)}).splitlines()[2:]
    assert [tuple(int(number.replace(',', '')) for number in re.findall(r'= ([\d,]+)', line))
            for line in lines] == made


def test_random_features_estimate_what_the_page_says(rng):
    """exp(q.k), its relative variance, and the kernel that rows of length sqrt(m) estimate."""
    dim = 64
    query, key = rng.normal(size=(2, dim)) * 0.08
    total = np.sum((query + key) ** 2)

    def estimates(rows):    # of one feature each
        return np.exp(rows @ (query + key) - (query @ query + key @ key) / 2)

    gaussian = estimates(rng.normal(size=(200_000, dim)))
    assert gaussian.mean() == pytest.approx(np.exp(query @ key), rel=0.01)
    assert gaussian.var() / gaussian.mean() ** 2 == pytest.approx(np.exp(total) - 1, rel=0.05)
    rows = explain.random_rows(32_000, dim, rng)
    assert estimates(rows).mean() == pytest.approx(np.exp(query @ key), rel=0.01)
    first = rows[:dim] / np.linalg.norm(rows[:dim], axis=1, keepdims=True)
    np.testing.assert_allclose(first @ first.T, np.eye(dim), atol=1e-9)
    # As the network draws them: 32 of 64, of length sqrt(32).
    layer = t2t.Token_performer(147, dim)
    lengths = np.linalg.norm(layer.w.numpy(), axis=1)
    assert (len(lengths), dim) == (32, layer.in_dim)
    np.testing.assert_allclose(lengths, np.sqrt(32), rtol=1e-4)
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    query, key = 2.5 * query, 2.5 * key
    kernel = np.exp(-np.sum((query - key) ** 2) / 4)
    assert estimates(directions * lengths[0]).mean() == pytest.approx(kernel, rel=0.05)
    assert np.exp(query @ key) > 2 * kernel


def test_errors_of_attention_by_features_fall_with_their_number(rng):
    queries, keys = rng.normal(size=(2, 40, 16)) / 4
    found = explain.errors(queries, keys, (16, 256, 4096)).mean(axis=0)
    # 16 times as many features, a quarter of the error.
    np.testing.assert_allclose(found[:-1] / found[1:], 4, rtol=0.4)
    exact = F.softmax(paddle.to_tensor(queries) @ paddle.to_tensor(keys).T, axis=-1).numpy()
    np.testing.assert_allclose(explain.softmax(queries @ keys.T), exact, rtol=1e-9)
    # Half of the attention lies elsewhere.
    assert explain.distance(np.array([[1, 0, 0]]), np.array([[0.5, 0.5, 0]])) == 0.5


@pytest.fixture(scope='module')
def walk(rng):
    """(network, images, forward's result) of a small network with random weights."""
    paddle.seed(0)
    network = zoo.create_model('t2t_vit_mini', img_size=32, num_classes=10)
    network.eval()
    images = rng.normal(size=(1, 3, 32, 32)).astype('float32')
    return network, images, explain.forward(network, images)


def test_the_forward_pass_is_the_networks(walk):
    network, images, found = walk
    with paddle.no_grad():
        logits = network(paddle.to_tensor(images))[0].numpy()
    np.testing.assert_allclose(found.logits, logits, rtol=1e-5, atol=1e-6)
    assert [grid.shape for grid in found.stages] == [(64, 8, 8), (64, 4, 4), (128, 4, 4)]
    assert [maps.shape for maps in found.attention] == [(4, 17, 17)] * 7
    assert [len(layer.queries) for layer in found.performers] == [64, 16]


def test_the_attention_of_a_performer_is_what_its_layer_computes(walk):
    network, images, found = walk
    layer, shown = network.tokens_to_token.attention1, found.performers[0]
    with paddle.no_grad():
        tokens = layer.norm1(t2t.soft_split(paddle.to_tensor(images), (7, 4, 2)))
        _, _, value = paddle.split(layer.kqv(tokens), 3, axis=-1)
        mixed = paddle.to_tensor(shown.own.astype('float32')) @ value[0]
        expected = (value[0] + layer.proj(mixed * shown.kept)).numpy()
        np.testing.assert_allclose(layer.single_attn(tokens)[0].numpy(), expected, atol=1e-5)


def test_sensitivity_is_the_length_of_the_derivatives(walk):
    """Against one backward pass for each channel."""
    network, images, _ = walk
    images = paddle.to_tensor(images, stop_gradient=False)
    with network.recording() as record:
        network(images)
    grid = record.feature_maps['tokens_to_token.attention2'][:, :12]
    total = sum(paddle.grad(grid[0, channel, 2, 2], images, retain_graph=True)[0][0].numpy() ** 2
                for channel in range(12)).sum(axis=0)
    found = explain.sensitivity(images, grid, probes=200) ** 2
    assert found.sum() == pytest.approx(total.sum(), rel=0.1)
    assert np.corrcoef(found.ravel(), total.ravel())[0, 1] > 0.98
    stage = explain.geometry(32, zoo.MINI_SPLITS)[1]
    assert explain.inside(np.sqrt(total), stage) == pytest.approx(
        explain.inside(explain.sensitivity(images, grid), stage), abs=0.1)


def test_parameters_and_macs_by_part_are_those_of_the_network():
    found = explain.sizes()
    for name, (parameters, macs, depth, width) in found.items():
        assert len(parameters) == len(macs) == len(explain.PARTS)
        if name == 't2t_vit_7':
            # The blocks: 4 C^2 for attention, 2 * 2 C^2 for the MLP, and biases and norms.
            assert (depth, width, parameters.sum()) == (7, 256, 4_310_222)
            assert parameters[1] == 7 * (4 * 256 ** 2 + 256 + 2 * 256)
            assert parameters[2] == 7 * (4 * 256 ** 2 + 512 + 256 + 2 * 256)
            assert macs[1] == 7 * (197 * 4 * 256 ** 2 + 2 * 197 ** 2 * 256)
            assert macs[2] == 7 * 197 * 4 * 256 ** 2
            assert macs[3] == 256 * 1000


def test_the_command_writes_the_page_of_an_image(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(explain, 'FEATURES', [8, 32])
    monkeypatch.setattr(explain, 'DRAWS', 2)
    image = str(next((ROOT / 'lit_data' / 'val').rglob('*97.JPEG')))
    options = ['-c', str(ROOT / 'config/lit_data.yaml'), '--image', image]
    before = PAGE.read_bytes()
    explain.main([*options, '--out', str(tmp_path / 'out')])
    printed = capsys.readouterr().out.split()
    assert PAGE.read_bytes() == before
    assert sorted(printed) == sorted(
        str(path) for path in (tmp_path / 'out').rglob('*') if path.is_file())
    page = (tmp_path / 'out' / 'explained.md').read_text(encoding='utf-8')
    assert all((tmp_path / 'out' / name).stat().st_size < 150_000
               for name in re.findall(r'\((explained/\S+)\)', page))
    assert '| here, 48 pixels | 1 | 7 / 4 / 2 | 12 x 12 = 144 |' in page
    predict.main([image, *options[:2]])
    share, name = re.search(r'0\.(\d{4}) +\d+ +(.*)', capsys.readouterr().out).groups()
    assert f'| {name} | {int(share) / 100:.1f} % |' in page


def test_a_network_without_performers_is_refused(tmp_path):
    paddle.save(zoo.create_model('vit_mini').state_dict(), str(tmp_path / 'vit.pdparams'))
    with pytest.raises(explain.command.UsageError, match='vit_mini: has no Performers'):
        explain.main(['-c', str(ROOT / 'config/tiny_imagenet_mini.yaml'), '-o',
                      'MODEL.NAME=vit_mini', '--weights', str(tmp_path / 'vit.pdparams')])
