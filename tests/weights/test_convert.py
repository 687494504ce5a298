"""Catches conversions that change a value, and names, layouts or models recognised wrongly.

Files written for torch are read by torch if it can be imported here or by the Python that the
environment variable T2T_TORCH_PYTHON names.
"""

import hashlib
import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT
from support.official import GOLDEN, VARIANTS, image_batch, is_linear_weight, official_tensor

import build
import convert
import zoo
from common import ImageClassifier
from config import load_config
from system.command import UsageError
from t2t import sinusoid_table
from weights.container import write_checkpoint
from weights.files import WeightsError, read_weights, write_weights
from zoo import names

FIXTURES = ROOT / 'tests' / 'fixtures'
TORCH = os.environ.get('T2T_TORCH_PYTHON') or (
    sys.executable if importlib.util.find_spec('torch') else '')
needs_torch = pytest.mark.skipif(not TORCH, reason='no torch here, and none in T2T_TORCH_PYTHON')


@pytest.fixture(scope='module')
def small():
    """Weights of t2t_vit_7 for 32 pixels and 5 classes, in four data types."""
    paddle.seed(3)
    network = zoo.create_model('t2t_vit_7', img_size=32, num_classes=5)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    state['head.weight'] = state['head.weight'].astype('float16')
    state['pos_embed'] = state['pos_embed'].astype('float64')
    # bfloat16 as uint16: the upper half of float32.
    for name in ('norm.weight', 'blocks.0.attn.qkv.weight'):
        state[name] = (state[name].view('uint32') >> 16).astype('uint16')
    return state


def convert_file(*arguments):
    convert.main([str(argument) for argument in arguments])


def assert_same(actual, wanted):
    assert list(actual) == list(wanted)
    for name, array in wanted.items():
        assert actual[name].dtype == array.dtype and actual[name].shape == array.shape, name
        assert actual[name].tobytes() == array.tobytes(), name


def outcome(text):
    """{'loaded': 111, ...} from the output of the command."""
    return {kind.strip(): int(count)
            for kind, count in re.findall(r'^    ([a-z ]{12}) *(\d+)', text, re.MULTILINE)}


# ---- round trips

def test_converting_through_every_format_changes_no_bit(tmp_path, small, capsys):
    metadata = dict(class_names=['a', 'b', 'c', 'd', 'é'], epoch=7)
    write_weights(tmp_path / '0.pdparams', small, metadata)
    steps = [('1.safetensors', '--layout', 'pytorch'), ('2.safetensors', '--layout', 'paddle'),
             ('3.pdparams',), ('4.pth',), ('5.safetensors',), ('6.pth',), ('7.pdparams',)]
    before, linears = tmp_path / '0.pdparams', sum(map(is_linear, small.items()))
    for name, *options in steps:
        convert_file(before, tmp_path / name, *options)
        said = capsys.readouterr().out
        assert 'the logits of two images are equal bit by bit' in said
        assert outcome(said) == dict(
            loaded=111, missing=0, unexpected=0, renamed=0,
            transposed=linears if before.name[0] in '146' else 0, **{'other shape': 0})
        before = tmp_path / name
    state, actual = read_weights(tmp_path / '3.pdparams', widen=False)
    assert_same(state, small)
    assert actual == dict(metadata, model='t2t_vit_7', image_size=32, layout='paddle')
    assert_same(read_weights(tmp_path / '7.pdparams', widen=False)[0], small)
    other_way, _ = read_weights(tmp_path / '6.pth', widen=False)
    assert_same(other_way, {name: np.ascontiguousarray(array.T) if is_linear((name, array))
                            else array for name, array in small.items()})


def test_weights_rounded_to_float16(tmp_path, small, capsys):
    write_weights(tmp_path / 'a.pdparams', small, {})
    convert_file(tmp_path / 'a.pdparams', tmp_path / 'half.safetensors', '--float16')
    said = capsys.readouterr().out
    assert 'the logits of two images are equal bit by bit' in said, 'those of the rounded weights'
    state, _ = read_weights(tmp_path / 'half.safetensors', widen=False)
    exact, _ = read_weights(tmp_path / 'a.pdparams')
    for name, array in exact.items():
        assert state[name].dtype == np.float16 and state[name].shape == array.shape
        np.testing.assert_allclose(state[name], array, rtol=2 ** -11, atol=2 ** -25)
    assert (tmp_path / 'half.safetensors').stat().st_size < 2.1 * sum(map(np.size, small.values()))
    printed = float(re.search(r'change by at most (\S+)', said)[1])
    network = zoo.create_model('t2t_vit_7', img_size=32, num_classes=5)
    changed, before = (convert.logits_with(network, weights, 'a') for weights in (state, exact))
    assert printed == pytest.approx(np.abs(changed - before).max(), rel=0.1) and printed > 0

    write_weights(tmp_path / 'large.pdparams', dict(small, cls_token=small['cls_token'] + 7e4), {})
    with pytest.raises(WeightsError, match='cls_token has values that are too large for float16'):
        convert_file(tmp_path / 'large.pdparams', tmp_path / 'b.safetensors', '--float16')
    assert not (tmp_path / 'b.safetensors').exists()


def is_linear(item):
    return is_linear_weight(item[0], item[1].shape)


def test_safetensors_own_library_and_paddle_read_what_is_written(tmp_path, small):
    safetensors = pytest.importorskip('safetensors')
    write_weights(tmp_path / 'a.pdparams', small, {})
    convert_file(tmp_path / 'a.pdparams', tmp_path / 'a.safetensors')
    with safetensors.safe_open(tmp_path / 'a.safetensors', 'np') as file:
        assert file.metadata()['format'] == 'pd'
        assert set(file.keys()) == set(small)
        np.testing.assert_array_equal(file.get_tensor('cls_token'), small['cls_token'])
        assert file.get_tensor('head.weight').dtype == np.float16
    types = {name: tensor['dtype'] for name, tensor in safetensors.deserialize(
        (tmp_path / 'a.safetensors').read_bytes())}
    assert types['norm.weight'] == 'BF16' and types['pos_embed'] == 'F64'
    assert paddle.load(str(tmp_path / 'a.pdparams'))['norm.weight'].dtype == paddle.bfloat16


def run_torch(script, *arguments):
    done = subprocess.run([TORCH, '-c', script, *map(str, arguments)], capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_torch
def test_torch_loads_the_pth_with_weights_only(tmp_path, small):
    write_weights(tmp_path / 'a.pdparams', small, {})
    convert_file(tmp_path / 'a.pdparams', tmp_path / 'a.pth')
    script = '''
import hashlib, json, sys, torch
plain = torch.load(sys.argv[1], weights_only=True)
mapped = torch.load(sys.argv[1], weights_only=True, mmap=True)
assert list(plain) == list(mapped) and all(torch.equal(plain[n], mapped[n]) for n in plain)
print(json.dumps({name: [str(tensor.dtype), list(tensor.shape), hashlib.sha256(
    tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()]
    for name, tensor in plain.items()}))
'''
    actual = json.loads(run_torch(script, tmp_path / 'a.pth'))
    assert list(actual) == list(small)
    for name, array in small.items():
        array = array.T if is_linear((name, array)) else array
        kind = 'bfloat16' if array.dtype == np.uint16 else str(array.dtype)
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        assert actual[name] == [f'torch.{kind}', list(array.shape), digest], name


@needs_torch
def test_a_checkpoint_as_the_official_code_saves_it(tmp_path, small, capsys):
    """Both parts of one file, with the prefix `module.`, saved by torch."""
    write_weights(tmp_path / 'a.pdparams', small, {})
    convert_file(tmp_path / 'a.pdparams', tmp_path / 'a.pth')
    run_torch('''
import argparse, sys, torch
state = {f'module.{name}': tensor for name, tensor in torch.load(sys.argv[1]).items()}
torch.save({'epoch': 309, 'arch': 't2t_vit_7', 'args': argparse.Namespace(lr=5e-4),
            'state_dict': {name: torch.zeros_like(tensor) for name, tensor in state.items()},
            'state_dict_ema': state}, sys.argv[2])
''', tmp_path / 'a.pth', tmp_path / 'official.pth.tar')
    for part, options in (('ema', []), ('ema', ['--part', 'ema']), ('raw', ['--part', 'raw'])):
        convert_file(tmp_path / 'official.pth.tar', tmp_path / 'b.pdparams', '--force', *options)
        assert f'state_dict{"_ema" * (part == "ema")} of a checkpoint' in capsys.readouterr().out
        state, _ = read_weights(tmp_path / 'b.pdparams', widen=False)
        assert_same(state, small if part == 'ema' else {
            name: np.zeros_like(array) for name, array in small.items()})


def test_tensors_and_arrays_mixed_in_a_file_of_torch():
    """The file is made by tests/fixtures/make_torch_fixtures.py."""
    for part, name, value, bits in ((None, 'model_ema', 2, 0x4000), ('raw', 'model', 1, 0x3f80)):
        state, metadata = read_weights(FIXTURES / 'with_numpy.pth', part, widen=False)
        assert metadata == {'layout': 'pytorch', 'part': name}
        assert state['0.weight'].tolist() == [[value] * 3] * 2
        assert state['0.bias'].dtype == np.uint16 and state['0.bias'].tolist() == [bits] * 2
    with pytest.raises(WeightsError, match='no averaged weights'):
        read_weights(FIXTURES / 'zip.pth', 'ema')


@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
def test_arrays_of_every_kind_read_back(tmp_path, ending):
    state = {'empty': np.zeros((0, 4), 'float32'), 'scalar': np.array(7), 'swapped':
             np.arange(3, dtype='>f4'), 'bool': np.array([True, False]), 'bytes':
             np.arange(3, dtype='uint8'), 'fortran': np.asfortranarray(np.ones((2, 3), 'float16')),
             'kurz ü': np.arange(5, dtype='int16')}
    write_weights(tmp_path / 'a', state, {}, ending)
    actual, _ = read_weights(tmp_path / 'a', widen=False)
    assert set(actual) == set(state)
    for name, array in state.items():
        np.testing.assert_array_equal(actual[name], array)
        assert actual[name].dtype == array.dtype.newbyteorder('=') and (
            actual[name].shape == array.shape)
    with pytest.raises(WeightsError, match=f'uint64, for which a {ending} file has no place'):
        write_weights(tmp_path / 'b', {'a': np.zeros(2, 'uint64')}, {}, ending)
    assert os.listdir(tmp_path) == ['a']


def test_a_checkpoint_of_this_project(tmp_path, small, capsys):
    arrays = {f'network/{name}': array for name, array in small.items()}
    state = dict(identity=dict(config=dict(MODEL=dict(NAME='t2t_vit_7', IMAGE_SIZE=32))))
    write_checkpoint(tmp_path / 'a.ckpt', {**arrays, 'optimizer/moment1/norm.weight':
                                           np.ones(3)}, state)
    convert_file(tmp_path / 'a.ckpt', tmp_path / 'a.pdparams')
    assert 't2t_vit_7 (by the file itself), 32 pixels' in capsys.readouterr().out
    assert_same(read_weights(tmp_path / 'a.pdparams', widen=False)[0], small)
    with pytest.raises(WeightsError, match='a.ckpt: has no averaged weights'):
        convert_file(tmp_path / 'a.ckpt', tmp_path / 'b.pdparams', '--part', 'ema')
    averages = {f'ema/{name}': np.zeros_like(array) for name, array in small.items()}
    write_checkpoint(tmp_path / 'b.ckpt', {**arrays, **averages}, state)
    assert not any(array.any() for array in read_weights(tmp_path / 'b.ckpt')[0].values())
    assert_same(read_weights(tmp_path / 'b.ckpt', 'raw', widen=False)[0], small)

    content = bytearray((tmp_path / 'a.ckpt').read_bytes())
    content[1000] ^= 1
    (tmp_path / 'c.ckpt').write_bytes(content)
    with pytest.raises(WeightsError, match='c.ckpt: is damaged'):
        read_weights(tmp_path / 'c.ckpt')
    write_checkpoint(tmp_path / 'd.ckpt', {'network/a': np.array([print], dtype=object)}, {})
    with pytest.raises(WeightsError, match='d.ckpt: is no checkpoint'):
        read_weights(tmp_path / 'd.ckpt')


# ---- names and layouts

def paddlevit_t2t(name):
    name = re.sub(r'^tokens_to_token\.attention', 'patch_embed.attn', name)
    return name.replace('tokens_to_token.project', 'patch_embed.proj')


def paddlevit_vit(*substitutions):
    """The renaming of timm's names in load_pytorch_weights.py of PaddleViT's ViT and DeiT."""
    def rename(name):
        for pattern, replacement in substitutions:
            name = re.sub(pattern, replacement, name)
        return name
    return rename


PADDLEVIT_LAYERS = ((r'^blocks\.(\d+)\.norm1', r'encoder.layers.\1.attn_norm'),
                    (r'^blocks\.(\d+)\.norm2', r'encoder.layers.\1.mlp_norm'),
                    (r'^blocks\.(\d+)\.attn\.proj', r'encoder.layers.\1.attn.out'),
                    (r'^blocks\.', 'encoder.layers.'), (r'^norm\.', 'encoder.encoder_norm.'),
                    (r'^head\.', 'classifier.'), (r'^head_dist\.', 'classifier_dist.'))
PADDLEVIT_TODAY = paddlevit_vit(
    *PADDLEVIT_LAYERS, ('^pos_embed$', 'position_embedding'),
    (r'^patch_embed\.proj', 'patch_embedding.patch_embedding'))
PADDLEVIT_FIRST = paddlevit_vit(
    *((pattern, replacement.replace('encoder.', 'transformer.encoder.', 1))
      for pattern, replacement in PADDLEVIT_LAYERS),
    ('^cls_token$', 'transformer.embeddings.cls_token'),
    ('^pos_embed$', 'transformer.embeddings.position_embeddings'),
    (r'^patch_embed\.proj', 'transformer.embeddings.patch_embeddings'))
PADDLEVIT_BETWEEN = paddlevit_vit(
    *PADDLEVIT_LAYERS, ('^cls_token$', 'patch_embedding.cls_token'),
    ('^pos_embed$', 'patch_embedding.position_embeddings'),
    (r'^patch_embed\.proj', 'patch_embedding.patch_embedding'))
PADDLEVIT_DEIT_2021 = paddlevit_vit(
    ('^cls_token$', 'class_token'), ('^dist_token$', 'distill_token'), (r'^blocks\.', 'layers.'),
    (r'^head_dist\.', 'head_distill.'))
DEIT = dict(VARIANTS['vit_tiny_patch16_224']['state'], dist_token=[1, 1, 192],
            pos_embed=[1, 198, 192], **{'head_dist.weight': [1000, 192], 'head_dist.bias': [1000]})


def timm_pit(shift):
    return lambda name: re.sub(
        r'^pools\.(\d)\.', lambda actual: f'transformers.{int(actual[1]) + shift}.pool.', name)


def network_of(variant):
    """The network of a golden variant, whose name may end in an image size."""
    if variant in zoo.MODELS:
        return names.unfilled(variant)
    name, _, size = variant.rpartition('_')
    return names.unfilled(name, img_size=int(size))


@pytest.mark.parametrize('layout', ['paddle', 'pytorch'])
@pytest.mark.parametrize('variant, rename', [
    *((variant, str) for variant in VARIANTS), ('t2t_vit_7', paddlevit_t2t),
    ('t2t_vit_14_384', paddlevit_t2t), ('t2t_vit_t_24', paddlevit_t2t),
    ('vit_base_patch16_224', PADDLEVIT_FIRST), ('vit_tiny_patch16_224', PADDLEVIT_BETWEEN),
    ('vit_small_patch16_224', PADDLEVIT_TODAY), ('deit', PADDLEVIT_TODAY),
    ('deit', PADDLEVIT_DEIT_2021), ('deit', str), ('pit_s', timm_pit(0)), ('pit_b', timm_pit(1)),
    ('pit_ti_distilled', timm_pit(1))])
def test_names_and_layouts_of_all_codebases_are_converted(variant, rename, layout):
    shapes = DEIT if variant == 'deit' else VARIANTS[variant]['state']
    network = network_of('deit_tiny_distilled_patch16_224' if variant == 'deit' else variant)
    wanted, state, linears = {}, {}, 0
    for number, (name, shape) in enumerate(shapes.items()):
        linear = is_linear_weight(name, shape)
        linears += linear
        wanted[name] = tuple(shape[::-1]) if linear else tuple(shape)
        # A number broadcast to the whole shape identifies the array and takes no memory.
        state[rename(name)] = np.broadcast_to(
            np.int32(number), shape if layout == 'pytorch' else wanted[name])
    fitted = names.fit(state, network)
    assert (fitted.missing, fitted.unexpected, fitted.other_shape) == ([], [], {})
    assert {name: array.flat[0] for name, array in fitted.state.items()} == {
        name: number for number, name in enumerate(shapes)}
    assert {name: array.shape for name, array in fitted.state.items()} == wanted
    assert fitted.layout == layout
    assert len(fitted.transposed) == (linears if layout == 'pytorch' else 0)
    assert fitted.renamed == {name: rename(name) for name in shapes if rename(name) != name}
    assert (fitted.naming == 'official') == (not fitted.renamed)


class Squares(ImageClassifier):
    def __init__(self):
        super().__init__()
        self.a, self.b = (paddle.nn.Linear(2, width, bias_attr=False) for width in (2, 3))
        self.w = self.create_parameter([2, 2])


def test_the_layout_of_square_linears_follows_other_linears_then_metadata():
    square, wide, network = np.arange(4.0).reshape(2, 2), np.zeros((3, 2)), Squares()
    fitted = names.fit({'a.weight': square, 'b.weight': wide, 'w': square}, network)
    np.testing.assert_array_equal(fitted.state['a.weight'], square.T)
    np.testing.assert_array_equal(fitted.state['w'], square)    # not a Linear
    assert fitted.transposed == ['a.weight', 'b.weight']

    assert names.fit({'a.weight': square}, network).layout == 'paddle'
    assert 'default' in names.fit({'a.weight': square}, network).evidence
    metadata = dict(layout='pytorch')
    assert names.fit({'a.weight': square}, network, metadata).transposed == ['a.weight']
    contradicted = names.fit({'a.weight': square, 'b.weight': wide.T}, network, metadata)
    assert contradicted.transposed == [] and 'claims pytorch' in contradicted.evidence


@pytest.mark.parametrize('variant', [name for name in VARIANTS if name.startswith('t2t')])
def test_a_model_is_recognised_by_its_shapes(variant):
    state = {paddlevit_t2t(name): np.broadcast_to(np.float32(0), shape)
             for name, shape in VARIANTS[variant]['state'].items()}
    name = re.sub('_(96|384)$', '', variant)
    twins = ['t2t_vit_14', 't2t_vit_14_resnext']    # they differ only in their number of heads
    actual = names.recognise(state)
    assert actual == (twins if name in twins else [name])
    size = int(variant[len(name) + 1:] or 224)
    assert names.options_for(name, state) == dict(
        num_classes=1000, img_size=size, norm_epsilon=1e-6)    # trained in PaddleViT, not ported
    if name in twins:
        with pytest.raises(WeightsError, match='t2t_vit_14 or t2t_vit_14_resnext.*--model'):
            convert.network_for(state, {}, 'file', None, None)


def shapes_as_weights(variant):
    return {name: np.broadcast_to(np.float32(0), shape)
            for name, shape in VARIANTS[variant]['state'].items()}


def test_arch_decides_between_models_of_equal_shapes():
    state = shapes_as_weights('t2t_vit_14')
    for arch, name in (('t2t_vit_14', 't2t_vit_14'), ('T2T_ViT_14_resnext', 't2t_vit_14_resnext')):
        assert names.recognise(state, dict(arch=arch)) == [name]
        assert convert.network_for(state, dict(arch=arch), 'file', None, None)[1:] == (
            name, 'by the file itself')
    for arch in ('t2t_vit_7', 'pit_ti_224', 'resnet50', '', 'module'):    # not of these shapes
        assert names.recognise(state, dict(arch=arch)) == ['t2t_vit_14', 't2t_vit_14_resnext']
    assert names.recognise(shapes_as_weights('pit_ti'), dict(arch='pit_ti_224')) == ['pit_ti']
    # Two names of one network are not ambiguous.
    state = shapes_as_weights('vit_tiny_patch16_224')
    assert names.recognise(state) == ['vit_tiny_patch16_224']
    assert names.recognise(state, dict(arch='deit_tiny_patch16_224.fb_in1k')) == [
        'deit_tiny_patch16_224']
    assert zoo.same_network('vit_tiny_patch16_384', 'deit_tiny_patch16_224')
    assert not zoo.same_network('t2t_vit_14', 't2t_vit_14_resnext')


def test_weights_of_a_model_with_equal_shapes_and_other_heads_are_refused(tmp_path):
    """Six heads instead of 32 would silently give wrong logits."""
    network = zoo.create_model('t2t_vit_14', img_size=32, num_classes=2)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    (tmp_path / 'a.pth').write_bytes(pickle.dumps({'arch': 't2t_vit_14', 'state_dict': state}))
    options = ['MODEL.IMAGE_SIZE=32', 'MODEL.NUM_CLASSES=2']
    right, wrong = (load_config('config/t2t_vit_7.yaml', [f'MODEL.NAME={name}', *options])
                    for name in ('t2t_vit_14', 't2t_vit_14_resnext'))
    build.trained_network(right, tmp_path / 'a.pth')
    with pytest.raises(WeightsError, match='is of t2t_vit_14, and .* set MODEL.NAME=t2t_vit_14'):
        build.trained_network(wrong, tmp_path / 'a.pth')
    with pytest.raises(WeightsError, match='holds weights of t2t_vit_14, not of '):
        names.pretrained_model('t2t_vit_14_resnext', tmp_path / 'a.pth')


def test_the_epsilon_of_paddlevit_weights_tells_trained_from_ported_ones(tmp_path, small, capsys):
    """PaddleViT trains the table, from 0, and w, from short rows; ported ones are the official."""
    def written(name, **changes):
        state = {paddlevit_t2t(key): changes.get(key.rpartition('.')[2], lambda array: array)(array)
                 for key, array in small.items()}
        write_weights(tmp_path / name, state, {})
        return tmp_path / name

    ported = written('ported.pdparams', pos_embed=lambda table: table + 0.1)    # interpolated
    trained = written('trained.pdparams', pos_embed=lambda table: table * 0.1, w=lambda w: w / 32)
    for path, epsilon, said in [
            (ported, 1e-5, 'epsilon: 1e-05, ported to PaddleViT from the official weights'),
            (trained, 1e-6, 'epsilon: 1e-06, trained in PaddleViT (MODEL.NORM_EPSILON=1e-06)')]:
        convert_file(path, tmp_path / 'a.pdparams', '--force')
        assert said in capsys.readouterr().out
        for file in (path, tmp_path / 'a.pdparams'):
            network = names.pretrained_model('t2t_vit_7', file)
            assert {layer._epsilon for layer in network.sublayers()
                    if isinstance(layer, paddle.nn.LayerNorm)} == {epsilon}

    for file in (trained, tmp_path / 'a.pdparams'):    # the second is converted from the first
        config = load_config('config/t2t_vit_7.yaml',
                             ['MODEL.IMAGE_SIZE=32', 'MODEL.NUM_CLASSES=5'])
        with pytest.raises(WeightsError, match='set MODEL.NORM_EPSILON=1e-06'):
            build.trained_network(config, file)
        config.MODEL.NORM_EPSILON = 1e-6
        network, _ = build.trained_network(config, file)
        assert network.blocks[0].norm1._epsilon == network.norm._epsilon == 1e-6


def test_a_file_without_a_head_is_loaded_under_a_new_head(tmp_path, small):
    state = {name: array for name, array in small.items() if not name.startswith('head.')}
    write_weights(tmp_path / 'a.pdparams', state, {})
    options = ['MODEL.IMAGE_SIZE=32', 'MODEL.NUM_CLASSES=3', 'MODEL.ADAPT=true']
    config = load_config('config/t2t_vit_7.yaml',
                         [*options, f'MODEL.PRETRAINED={tmp_path / "a.pdparams"}'])
    loaded = build.load_start(config, build.network(config))
    assert loaded.fresh == ['head.weight', 'head.bias'] and len(loaded.taken) == len(state)
    with pytest.raises(WeightsError, match='head.weight, head.bias.*MODEL.PRETRAINED'):
        build.trained_network(load_config('config/t2t_vit_7.yaml', options),
                              tmp_path / 'a.pdparams')
    network = names.pretrained_model('t2t_vit_7', tmp_path / 'a.pdparams', num_classes=3)
    np.testing.assert_array_equal(network.cls_token.numpy(), small['cls_token'])


def test_sizes_stated_by_a_file_are_not_allocated_unless_its_weights_have_them(small):
    """Image size and number of classes are bounded by the weights in the file."""
    claims = dict(small, **{'head.bias': np.broadcast_to(np.float32(0), 10 ** 9)})
    assert 'num_classes' not in names.options_for('t2t_vit_7', claims)
    claims['pos_embed'] = np.broadcast_to(np.float32(0), (1, 18, 256))
    with pytest.raises(WeightsError, match='pos_embed'):
        names.options_for('t2t_vit_7', claims, dict(image_size=16 * 10 ** 6))


def test_the_error_for_an_unknown_image_size_names_the_key():
    shapes = dict(VARIANTS['t2t_vit_7']['state'], pos_embed=[1, 18, 256])
    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    with pytest.raises(WeightsError, match=r'pos_embed \[1, 18, 256\].*MODEL.IMAGE_SIZE'):
        names.options_for('t2t_vit_7', state)


@pytest.mark.parametrize('rename, layout, nested', [
    (str, 'pytorch', None), (str, 'paddle', None), (paddlevit_t2t, 'paddle', None),
    ('module.{}'.format, 'pytorch', 'state_dict_ema'), (paddlevit_t2t, 'paddle', 'model_ema')])
def test_a_downloaded_file_gives_the_golden_logits(tmp_path, rename, layout, nested):
    """Unconverted files, pickles without a stated layout, with the model's configuration."""
    shapes = VARIANTS['t2t_vit_7_96']['state']
    state = {name: official_tensor(name, shape) for name, shape in shapes.items()}
    state['pos_embed'] = sinusoid_table(*shapes['pos_embed'][1:])
    content = {rename(name): array.T if layout == 'paddle' and is_linear((name, array)) else array
               for name, array in state.items()}
    if nested:
        raw = {name: np.zeros_like(array) for name, array in content.items()}
        content = {'epoch': 3, nested.replace('_ema', ''): raw, nested: content}
    (tmp_path / 'a.pdparams').write_bytes(pickle.dumps(content, protocol=4))
    config = load_config('config/t2t_vit_7.yaml', ['MODEL.IMAGE_SIZE=96'])
    network, _ = build.trained_network(config, tmp_path / 'a.pdparams')
    network.eval()
    golden = np.load(GOLDEN / 'forward_t2t_vit_7_96.npz')['logits']
    np.testing.assert_allclose(network(image_batch(96)).numpy(), golden, rtol=0, atol=1e-5)


def test_the_error_for_weights_of_another_model_names_it(tmp_path, small):
    write_weights(tmp_path / 'a.pdparams', small, {})
    config = load_config('config/t2t_vit_7.yaml', ['MODEL.NAME=t2t_vit_10'])
    with pytest.raises(WeightsError, match='looks like the weights of t2t_vit_7') as caught:
        build.trained_network(config, tmp_path / 'a.pdparams')
    assert str(tmp_path / 'a.pdparams') in str(caught.value)
    config = load_config('config/t2t_vit_7.yaml', ['MODEL.IMAGE_SIZE=32'])
    with pytest.raises(WeightsError, match='set MODEL.NUM_CLASSES=5'):    # the same model
        build.trained_network(config, tmp_path / 'a.pdparams')


# ---- the command

def test_the_command_as_a_process(tmp_path):
    """The shipped weights, converted to .pth, have the same accuracy."""
    def run(name, *arguments):
        done = subprocess.run([sys.executable, ROOT / 'tools' / name, *arguments], cwd=tmp_path,
                              capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout, done.stderr

    shipped = ROOT / 'output' / 't2t_vit_7_lit_data.pdparams'
    code, said, _ = run('convert.py', shipped, 'a.pth')
    assert code == 0 and 'class names stay behind' in said
    assert outcome(said)['loaded'] == 111
    best = re.search(r'best val acc: (\d\.\d{4})', (ROOT / 'log' / 'lit_data.log').read_text())[1]
    code, said, _ = run('val.py', '--weights', 'a.pth')
    assert code == 0 and said.splitlines()[-1] == f'ImageNet final val acc is:{best}'


@pytest.fixture(scope='module')
def inputs(tmp_path_factory, small):
    folder = tmp_path_factory.mktemp('inputs')
    write_weights(folder / 'in.pdparams', small, {})
    write_weights(folder / 'other.pdparams', {'a.weight': np.zeros((2, 2))}, {})
    write_weights(folder / 'less.pdparams', {name: array for name, array in small.items()
                                             if name != 'norm.bias'}, dict(model='t2t_vit_7'))
    write_weights(folder / 'more.pdparams', dict(small, extra=np.zeros(2)),
                  dict(model='t2t_vit_7'))
    (folder / 'there.pth').write_bytes(b'PK\3\4 and nothing else')
    (folder / 'x.pth').mkdir()
    (folder / 'x').mkdir()
    return folder


@pytest.mark.parametrize('arguments, kind, said', [
    (['in.pdparams', 'out.onnx'], UsageError, r'known: \.pdparams, \.safetensors, \.pth'),
    (['in.pdparams', 'out'], UsageError, 'ending'),
    (['in.pdparams', 'in.pdparams'], UsageError, 'is IN itself'),
    (['in.pdparams', './x/../in.pdparams'], UsageError, 'is IN itself'),
    (['in.pdparams', 'there.pth'], UsageError, 'is there already'),
    (['in.pdparams', 'none/out.pth'], UsageError, 'no such folder'),
    (['in.pdparams', 'x.pth', '--force'], UsageError, 'is a folder'),
    (['none.pdparams', 'out.pth'], WeightsError, 'no such weights file'),
    (['there.pth', 'out.pth'], WeightsError, 'damaged'),
    (['in.pdparams', 'out.pth', '--layout', 'paddle'], UsageError, 'only .safetensors'),
    (['in.pdparams', 'out.pth', '--model', 't2t_vit_8'], UsageError, 'did you mean'),
    (['in.pdparams', 'out.pth', '--model', 't2t_vit_10'], WeightsError, 'like --model t2t_vit_7'),
    (['in.pdparams', 'out.pth', '--model', 't2t_vit_7', '-c', 'x.yaml'], UsageError, 'both'),
    (['other.pdparams', 'out.pth'], WeightsError, 'of no model of the zoo'),
    (['in.pdparams', 'out.pth', '-c', 'config/t2t_vit_7.yaml'], WeightsError,
     '3 of another shape'),
    (['less.pdparams', 'out.pth'], WeightsError, '1 missing'),
    (['more.pdparams', 'out.pth'], WeightsError, '1 unexpected')])
def test_invalid_conversions_raise_and_write_nothing(inputs, monkeypatch, arguments, kind, said):
    monkeypatch.chdir(inputs)
    before = {path: path.stat().st_mtime_ns for path in inputs.rglob('*')}
    with pytest.raises(kind, match=said) as caught:
        convert_file(*arguments)
    assert caught.value.exit_code == 2 and '\n' not in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in inputs.rglob('*')} == before


def test_options_permit_missing_and_unexpected_weights(tmp_path, small, capsys):
    state = dict(small, extra=np.zeros(2))
    del state['norm.bias']
    write_weights(tmp_path / 'a.pdparams', state, dict(model='t2t_vit_7'))
    convert_file(tmp_path / 'a.pdparams', tmp_path / 'b.pth', '--allow-missing',
                 '--drop-unexpected')
    said = capsys.readouterr().out
    assert outcome(said) == dict(loaded=110, transposed=0, renamed=0, missing=1, unexpected=1,
                                 **{'other shape': 0})
    assert 'no logits, as weights are missing' in said
    assert list(read_weights(tmp_path / 'b.pth')[0]) == [
        name for name in small if name != 'norm.bias']


def test_force_replaces_even_the_input(tmp_path, small):
    path = tmp_path / 'a.pdparams'
    write_weights(path, {paddlevit_t2t(name): array for name, array in small.items()}, {})
    convert_file(path, path, '--force')
    assert_same(read_weights(path, widen=False)[0], small)
    assert os.listdir(tmp_path) == ['a.pdparams']


def test_a_file_that_reads_back_differently_is_not_written(tmp_path, monkeypatch, small):
    write_weights(tmp_path / 'a.pdparams', small, {})
    real = convert.names.in_pytorch_layout
    for change, said in [
            (lambda state: dict(state, cls_token=np.nextafter(state['cls_token'], 1)), 'cls_token'),
            (lambda state: dict(state, cls_token=state['cls_token'].astype('float64')), 'cls_tok'),
            (lambda state: {name: state[name] for name in state if name != 'head.bias'}, 'head.b')]:
        monkeypatch.setattr(convert.names, 'in_pytorch_layout',
                            lambda state, change=change: change(real(state)))
        with pytest.raises(WeightsError, match=f'was not written.*{said}'):
            convert_file(tmp_path / 'a.pdparams', tmp_path / 'b.pth')
        assert os.listdir(tmp_path) == ['a.pdparams']


def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path):
    class Gadget:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path / "executed"}',)

    (tmp_path / 'a.pth').write_bytes(pickle.dumps({'state_dict': {'a': Gadget()}}))
    with pytest.raises(WeightsError, match='refused, it asks for posix.system'):
        convert_file(tmp_path / 'a.pth', tmp_path / 'b.pdparams')
    assert os.listdir(tmp_path) == ['a.pth']


# ---- paddle.hub

HUB = '''
import sys, types
mine = sys.modules['common'] = types.ModuleType('common')    # a module of the caller
import numpy as np, paddle
folder, weights = sys.argv[1:]
before = list(sys.path)
print(paddle.hub.list(folder, source='local'))
print(paddle.hub.help(folder, 't2t_vit_dense', source='local'))
network = paddle.hub.load(folder, 't2t_vit_7', source='local', pretrained=weights)
network.eval()
print(network.img_size, network.num_classes, network(paddle.ones([1, 3, 32, 32])).numpy().tolist())
network = paddle.hub.load(folder, 't2t_vit_7', source='local', num_classes=3,
                          pretrained=folder + '/output/t2t_vit_7_lit_data.pdparams')
print(network.img_size, network.num_classes)
print(paddle.hub.load(folder, 't2t_vit_10', source='local', img_size=32).num_classes)
for name, options in [
        ('vit_base_patch16_224', {}), ('t2t_vit_10', dict(pretrained=weights)),
        ('pit_ti', dict(depht=2)),
        ('t2t_vit_7', dict(pretrained=3)), ('t2t_vit_7', dict(pretrained=folder)),
        ('t2t_vit_7', dict(num_classes='ten')), ('t2t_vit_7', dict(num_classes=-1)),
        ('t2t_vit_7', dict(num_classes=2.5)), ('t2t_vit_7', dict(img_size='x')),
        ('t2t_vit_7', dict(img_size=None, depth='x')), ('t2t_vit_7', dict(num_heads=0)),
        ('vit_tiny_patch16_224', dict(patch_size=0)), ('pit_ti', dict(depth=2)),
        ('pit_ti', dict(stride=0)), ('t2t_vit_7', dict(soft_splits=((7, 4),))),
        ('t2t_vit_7', dict(embed_dim=-4)), ('t2t_vit_7', dict(name='x'))]:
    try:
        paddle.hub.load(folder, name, source='local', **{'pretrained': True, **options}
                        if not options or 'pretrained' in options else options)
        print(f'no error for {name} {options}')
    except ValueError as error:
        print(str(error).splitlines()[0])
assert sys.path == before and sys.modules['common'] is mine
'''


def test_paddle_hub_builds_every_network_from_any_folder(tmp_path, small):
    weights = tmp_path / 'a.pdparams'
    write_weights(weights, {paddlevit_t2t(name): array for name, array in small.items()}, {})
    done = subprocess.run([sys.executable, '-c', HUB, str(ROOT), str(weights)], cwd=tmp_path,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sorted(zoo.MODELS) == sorted(lines[0][2:-2].split("', '"))
    assert lines[1].startswith('t2t_vit_dense: T2T_ViT_Dense(growth_rate=64')
    first = next(index for index, line in enumerate(lines) if line.startswith('32 5 '))
    size, classes, logits = lines[first].split(' ', 2)
    network = zoo.create_model('t2t_vit_7', img_size=32, num_classes=5)
    zoo.load_state(network, names.weights_for(network, weights)[0], weights)
    network.eval()
    assert (size, classes) == ('32', '5')
    np.testing.assert_allclose(json.loads(logits), network(paddle.ones([1, 3, 32, 32])).numpy(),
                               rtol=0, atol=1e-5)
    assert lines[first + 1:first + 3] == ['48 3', '1000']
    refusals = lines[first + 3:]
    assert refusals[0].startswith('vit_base_patch16_224: pretrained=True finds no w')
    assert 'looks like the weights of t2t_vit_7' in refusals[1]
    assert refusals[2] == "pit_ti has no option 'depht', did you mean depth?"
    assert len(refusals) == 17 and not [line for line in refusals if 'no error' in line]
