"""Catches exports that differ from their network in an engine, and wrong ones that are kept."""

import copy
import dataclasses
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
import yaml
from conftest import ROOT
from support.official import GOLDEN, golden_network, image_batch

import build
import val
import zoo
from config import ConfigError, load_config
from data.decode import decode_image
from deploy import engines, exports, old_graph
from deploy.simplify import simplified, window_order, windows
from system import start

WEIGHTS = ROOT / 'output' / 't2t_vit_7_lit_data.pdparams'
EXACT = 1e-5    # for logits up to 14: rounding of float32 in another order


@pytest.fixture(scope='module')
def trained():
    config = load_config('config/lit_data.yaml')
    network, metadata = build.trained_network(config, WEIGHTS)
    network.eval()
    return config, network, metadata


@pytest.fixture(scope='module')
def pictures():
    """Real images, PIL; more than one, fewer than a validation batch."""
    paths = sorted((ROOT / 'lit_data' / 'val').rglob('*.JPEG'))[3::12]
    return [decode_image(path) for path in paths]


@pytest.fixture(scope='module')
def export_of(trained, tmp_path_factory):
    """A function that copies an export with some options to a folder; each is made only once."""
    done = {}

    def copy(folder, **options):
        key = str({'format': 'paddle', **options})
        if key not in done:
            done[key] = exported(trained, tmp_path_factory.mktemp('shared'), **options)
        copy = shutil.copytree if done[key].is_dir() else shutil.copy
        return Path(copy(done[key], folder / done[key].name))
    return copy


def exported(trained, folder, name='exported', fast=True, **options):
    config, network, metadata = trained
    out = folder / (f'{name}.onnx' if options.get('format') == 'onnx' else name)
    with ThreadPoolExecutor(1) as pool:    # Paddle reads the stack often, and pytest's is deep
        pool.submit(exports.export, network, build.description(config, metadata, **options), out,
                    fast=fast).result()
    return out


def logits_of(network, images):
    with paddle.no_grad():
        return network(paddle.to_tensor(images)).numpy()


def run(*arguments, code=0):
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True,
                          cwd=ROOT, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.parametrize('variant', ['t2t_vit_7', 't2t_vit_7_96', 't2t_vit_14', 't2t_vit_t_14',
                                     't2t_vit_14_se', 't2t_vit_16_ghost', 't2t_vit_dense'])
def test_the_simplified_network_gives_the_golden_logits(variant):
    network, size = golden_network(variant)
    network.eval()
    before = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    found = logits_of(simplified(network), image_batch(size).numpy())
    golden = np.load(GOLDEN / f'forward_{variant}.npz')['logits']
    np.testing.assert_allclose(found, golden, rtol=0, atol=EXACT)
    for name, tensor in network.state_dict().items():
        assert np.array_equal(tensor.numpy(), before[name]), f'{name} was changed'


@pytest.mark.parametrize('name, size, options', [
    ('t2t_vit_cifar', 32, {}), ('t2t_vit_7', 64, dict(token_dim=48)),
    ('t2t_vit_7', 64, dict(soft_splits=((4, 4, 0), (3, 2, 1), (3, 2, 1)))),
    ('t2t_vit_7', 32, dict(soft_splits=((5, 2, 2), (3, 2, 1)))),
    ('t2t_vit_7', 64, dict(tokens_type='convolution')), ('pit_ti_distilled', 48, {})])
def test_other_networks_are_equal_when_simplified(name, size, options):
    network = zoo.create_model(name, num_classes=10, img_size=size, **options)
    network.eval()
    images = np.random.RandomState(0).randn(3, 3, size, size).astype('float32')
    np.testing.assert_allclose(logits_of(simplified(network), images),
                               logits_of(network, images), rtol=0, atol=EXACT)


def test_performers_without_orthogonal_features_are_not_simplified():
    network = zoo.create_model('t2t_vit_7', num_classes=10, img_size=32)
    network.eval()
    performer = network.tokens_to_token.attention2
    performer.w.set_value(performer.w.numpy() + np.eye(*performer.w.shape, dtype='float32'))
    images = np.random.RandomState(0).randn(3, 3, 32, 32).astype('float32')
    simple = simplified(network)
    assert [type(stage).__name__ for stage in simple.tokens.stages] == [
        'SimplePerformer', 'Token_performer', 'Linear']
    np.testing.assert_allclose(logits_of(simple, images), logits_of(network, images), rtol=0,
                               atol=EXACT)


def test_the_simplified_network_is_equal_on_nearly_constant_images(trained):
    """In windows with little variance LayerNorm magnifies rounding errors."""
    _, network, _ = trained
    random = np.random.RandomState(0)
    images = np.full((4, 3, 48, 48), 2.64, 'float32')
    images[2:] = 0
    images[1::2] -= (random.rand(2, 3, 48, 48) < 0.02) * np.float32(0.0175)    # one level of 255
    np.testing.assert_allclose(logits_of(simplified(network), images),
                               logits_of(network, images), rtol=0, atol=2e-4)


@pytest.mark.parametrize('split, size', [((7, 4, 2), 48), ((3, 2, 1), 12)])
def test_windows_equal_unfold(split, size):
    grid = np.random.RandomState(0).rand(2, size, size, 5).astype('float32')
    unfolded = paddle.nn.functional.unfold(
        paddle.to_tensor(grid.transpose(0, 3, 1, 2)), *split).numpy().transpose(0, 2, 1)
    found = windows(paddle.to_tensor(grid), split, size).numpy()
    np.testing.assert_array_equal(found, unfolded[:, :, window_order(5, split)])


@pytest.mark.parametrize('options', [
    dict(), dict(fast=False), dict(normalise=True, softmax=True)], ids=str)
def test_paddle_inference_agrees_with_its_network(trained, export_of, pictures, tmp_path,
                                                  options):
    _, network, _ = trained
    # On all cores, so that OpenVINO is used even if OMP_NUM_THREADS is 1.
    engine = engines.load_engine(export_of(tmp_path, **options), threads=start.available_cores())
    images = np.stack([build.eval_transform(trained[0])(picture) for picture in pictures])
    given = np.stack([engine.description.transform()(picture) for picture in pictures])
    wanted = logits_of(network, images)
    if options.get('softmax'):    # logarithms of probabilities
        wanted = paddle.nn.functional.log_softmax(paddle.to_tensor(wanted)).numpy()
    for count in (len(given), 1, 3):    # the batch axis is dynamic
        found = engine(given[:count]).numpy()
        likely = wanted[:count] > -15    # the logarithm of less is beyond float32's rounding
        np.testing.assert_allclose(found[likely], wanted[:count][likely], rtol=0,
                                   atol=2e-4 if options.get('softmax') else 3e-5)
        assert found.shape == (count, 1000)
    with pytest.raises(ValueError, match=r'takes images \[B, 3, 48, 48\]'):
        engine(np.zeros((1, 3, 32, 32), 'float32'))


def test_openvino_and_onednn_agree(trained, export_of, pictures, tmp_path, monkeypatch):
    """OpenVINO in Paddle 3 reads graphs of the older form, as Paddle 2 does."""
    if not hasattr(paddle.inference.Config, 'enable_openvino_engine'):
        pytest.skip('Paddle 2 has no OpenVINO')
    out = export_of(tmp_path)
    matmul, gelu = paddle.matmul, paddle.nn.functional.gelu
    again = exported(trained, tmp_path, name='again')    # tracing restores the functions
    assert paddle.matmul is matmul and paddle.nn.functional.gelu is gelu
    found = {}
    images = np.stack([build.eval_transform(trained[0])(picture) for picture in pictures])
    monkeypatch.chdir(tmp_path)
    both = engines.load_engine(out, threads=start.available_cores())
    assert {path.name for path in tmp_path.iterdir()} == {'exported', 'again'}    # no cache
    if platform.machine() == 'x86_64' and sys.platform == 'linux':    # wheels with OpenVINO
        assert both.backend == 'openvino'
    found[both.backend] = both(images).numpy()
    if start.available_cores() > 1:    # OpenVINO would pin threads to shared cores
        assert engines.load_engine(out, threads=1).backend == 'onednn'
    (again / 'inference.pdmodel').unlink()
    found['newer form'] = engines.load_engine(again)(images).numpy()
    (out / 'inference.json').unlink()
    monkeypatch.delattr(paddle.inference.Config, 'enable_openvino_engine')
    older = engines.load_engine(out)
    assert older.backend == 'onednn'
    found['older form'] = older(images).numpy()
    wanted = logits_of(trained[1], images)
    for name, logits in found.items():
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=3e-5, err_msg=name)


def test_an_export_that_paddle_2_cannot_read_is_refused(export_of, tmp_path, monkeypatch):
    """Paddle 2 crashes when it reads the newer form."""
    out = export_of(tmp_path)
    monkeypatch.setattr(engines, 'READABLE', engines.GRAPH_FILES[1:])
    (out / 'inference.pdmodel').unlink()
    with pytest.raises(engines.EngineError, match='pdiparams and inference.pdmodel'):
        engines.load_engine(out)


@pytest.mark.parametrize('name', ['inference.pdmodel', 'inference.json', 'inference.pdiparams'])
@pytest.mark.parametrize('content', [b'', b'no graph at all', None], ids=['empty', 'text', 'half'])
def test_a_damaged_export_is_refused_or_gives_the_right_logits(trained, export_of, pictures,
                                                               tmp_path, name, content):
    if paddle.__version__.startswith('2.'):
        pytest.skip('Paddle 2 ends the process at a damaged graph')
    out = export_of(tmp_path)
    whole = (out / name).read_bytes()
    (out / name).write_bytes(whole[:len(whole) // 2] if content is None else content)
    image = np.stack([build.eval_transform(trained[0])(pictures[0])])
    try:
        found = engines.load_engine(out, threads=start.available_cores())(image).numpy()
    except engines.EngineError as error:
        assert str(out) in str(error)
    else:
        np.testing.assert_allclose(found, logits_of(trained[1], image), rtol=0, atol=3e-5)


def test_a_batch_is_split_into_parts():
    calls = []

    def run(name):
        return lambda images: calls.append((name, len(images))) or images * 2

    in_parts = engines.in_parts(run('rest'), run('part'), 4)
    for count in (11, 8, 3):
        images = np.arange(count)[:, None]
        np.testing.assert_array_equal(in_parts(images), images * 2)
    assert calls == [('part', 4), ('part', 4), ('rest', 3), ('part', 4), ('part', 4), ('rest', 3)]


def test_bfloat16_gives_the_same_classes(trained, pictures, tmp_path):
    with open('/proc/cpuinfo', encoding='utf-8') as file:
        if 'avx512_bf16' not in file.read():
            pytest.skip('this processor does not multiply bfloat16')
    engine = engines.load_engine(exported(trained, tmp_path, precision='bfloat16'))
    images = np.stack([engine.description.transform()(picture) for picture in pictures])
    wanted = logits_of(trained[1], images)
    found = engine(images).numpy()
    assert 1e-4 < np.abs(found - wanted).max() < 0.5    # it is not float32
    assert (found.argmax(axis=1) == wanted.argmax(axis=1)).all()


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_onnx_agrees_with_the_network(trained, export_of, pictures, tmp_path, engine):
    for package in ('paddle2onnx', 'onnx', 'onnxruntime', engine):
        pytest.importorskip(package)
    loaded = engines.load_engine(export_of(tmp_path, format='onnx'), engine)
    images = np.stack([loaded.description.transform()(picture) for picture in pictures])
    wanted = logits_of(trained[1], images)
    for count in (len(images), 1):
        np.testing.assert_allclose(loaded(images[:count]).numpy(), wanted[:count], rtol=0,
                                   atol=1e-3 if paddle.__version__ < '3' else 3e-5)
    assert loaded.description.class_names[923] == 'plate'


def test_int8_is_smaller_and_nearly_as_accurate(trained, export_of, tmp_path):
    pytest.importorskip('paddle2onnx')
    pytest.importorskip('onnxruntime')
    config, network, _ = trained
    full = export_of(tmp_path, format='onnx')
    (tmp_path / 'int8').mkdir()
    small = export_of(tmp_path / 'int8', format='onnx', precision='int8')
    assert small.stat().st_size < 0.3 * full.stat().st_size
    loader = build.eval_loader(config)
    wanted, found = (val.evaluate(each, loader)['top1']
                     for each in (network, engines.load_engine(small)))
    assert abs(wanted - found) <= 0.02


def run_in_onnxruntime(path):
    """Run an ONNX file with onnxruntime alone; returns its ports and the output on stderr."""
    done = subprocess.run([sys.executable, '-c', (
        'import json, sys, numpy, onnxruntime\n'
        'session = onnxruntime.InferenceSession(sys.argv[1])\n'
        'ports = session.get_inputs() + session.get_outputs()\n'
        'for count in (1, 3):\n'
        '    found = session.run(["logits"], dict(images=numpy.zeros((count, 3, 48, 48), "f4")))\n'
        '    assert found[0].shape == (count, 1000)\n'
        'print(json.dumps([[port.name, port.shape] for port in ports]))\n'), str(path)],
        capture_output=True, text=True, timeout=120)
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize('options', [dict(), dict(fast=False), dict(precision='int8')], ids=str)
def test_an_onnx_file_has_named_ports_and_causes_no_warnings(export_of, tmp_path, options):
    for package in ('paddle2onnx', 'onnx', 'onnxruntime'):
        pytest.importorskip(package)
    ports, said = run_in_onnxruntime(export_of(tmp_path, format='onnx', **options))
    assert ports == [['images', ['batch', 3, 48, 48]], ['logits', ['batch', 1000]]]
    assert said == ''


def test_a_missing_package_of_int8_is_named_with_its_requirements_file(monkeypatch):
    for name in ('paddle2onnx', 'onnx', 'onnxruntime'):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[]))
    monkeypatch.setattr(exports.importlib.metadata, 'version', lambda name: next(
        tool for paddle_version, tool in exports.PADDLE2ONNX.items()
        if paddle.__version__.startswith(paddle_version)))
    monkeypatch.setitem(sys.modules, 'onnxruntime.quantization', None)
    monkeypatch.setitem(sys.modules, 'onnxruntime.quantization.shape_inference', None)
    with pytest.raises(engines.EngineError, match='needs onnxruntime.quantization.* '
                                                  'pip install -r requirements-deploy.txt'):
        exports._check_packages('int8')
    exports._check_packages('float32')


def test_a_yaml_bomb_is_refused():
    names = 'abcdefgh'
    text = 'a: &a {x: 1}\n' + ''.join(
        f'{new}: &{new} {{<<: [{", ".join([f"*{old}"] * 9)}]}}\n'
        for old, new in zip(names, names[1:]))
    with pytest.raises(engines.EngineError, match='inference.yml: is no valid YAML .aliases'):
        engines.parse_description(text, 'inference.yml')


@pytest.mark.parametrize('format', ['paddle', 'onnx'])
@pytest.mark.parametrize('key, value', [('image_size', 64), ('image_size', 96),
                                        ('num_classes', 10)])
def test_a_description_of_another_graph_is_refused_in_one_line(export_of, tmp_path, format,
                                                              key, value, capfd):
    if format == 'onnx':
        onnx = pytest.importorskip('onnx')
        pytest.importorskip('paddle2onnx')
        pytest.importorskip('onnxruntime')
    out = export_of(tmp_path, format=format)
    change = {key: value, 'class_names': []}
    if format == 'onnx':
        model = onnx.load(out)
        entry, = model.metadata_props
        entry.value = json.dumps({**json.loads(entry.value), **change})
        onnx.save(model, out)
    else:
        path = out / engines.DESCRIPTION
        said = yaml.safe_load(path.read_text(encoding='utf-8'))
        path.write_text(yaml.safe_dump({**said, **change}), encoding='utf-8')
    capfd.readouterr()
    chosen = ['inference'] if format == 'paddle' else [
        name for name in ('onnxruntime', 'openvino') if importlib.util.find_spec(name)]
    for name in chosen:
        with pytest.raises(engines.EngineError, match=f': by {key} in inference.yml its '):
            # On all cores, so that OpenVINO could be used.
            engines.load_engine(out, name, threads=start.available_cores())
    assert capfd.readouterr() == ('', '')    # no log of an engine
    if (format, value) == ('paddle', 64):
        said = run('tools/predict.py', '--weights', out, code=2)
        assert not said.stdout and said.stderr.startswith(f'error: {out}: by image_size ')
        assert len(said.stderr.splitlines()) == 1


def test_an_output_with_a_wrong_shape_is_refused():
    description = engines.Description(**{
        field.name: None for field in dataclasses.fields(engines.Description)})
    description.image_size, description.num_classes, description.softmax = 8, 5, False
    for shape in ((2, 5), (1, 4), (1, 5, 1)):
        engine = engines.Engine('an export', description, lambda _, shape=shape: np.ones(shape), '')
        with pytest.raises(engines.EngineError, match=r'an export: by num_classes .*\[1, 5\]'):
            engine(np.zeros((1, 3, 8, 8)))


def test_the_commands_print_why_openvino_is_not_used(export_of, tmp_path):
    out = export_of(tmp_path)
    if not paddle.__version__.startswith('2.'):    # where it is the only form
        (out / 'inference.pdmodel').unlink(missing_ok=True)
    note = run('tools/predict.py', '--weights', out).stderr
    assert note.startswith(f'{out}: computed by oneDNN, not by the OpenVINO in Paddle: ')
    assert len(note.splitlines()) == 1
    if not paddle.__version__.startswith('2.'):
        assert 'there is no inference.pdmodel' in note


def test_without_private_functions_of_paddle_only_the_older_form_is_missing(
        trained, export_of, pictures, tmp_path, monkeypatch, capsys):
    if paddle.__version__.startswith('2.'):
        pytest.skip('Paddle 2 writes the older form only')
    image = np.stack([build.eval_transform(trained[0])(pictures[0])])
    whole = export_of(tmp_path / 'whole')
    for name in ('layer_helper', 'core'):
        monkeypatch.setitem(sys.modules, f'paddle.base.{name}', None)
    engine = engines.load_engine(whole, threads=start.available_cores())
    assert engine.backend == 'onednn' and 'this Paddle does not tell' in engine.note
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, 'paddle.base.layer_helper', None)
    out = exported(trained, tmp_path)
    assert not (out / 'inference.pdmodel').exists()
    said = capsys.readouterr().err
    assert 'has no ProgramDesc: ' in said and 'has no paddle.base.layer_helper, ' in said
    np.testing.assert_allclose(engines.load_engine(out)(image).numpy(),
                               logits_of(trained[1], image), rtol=0, atol=3e-5)


def test_export_prints_why_there_is_no_older_form(trained, tmp_path, monkeypatch, capsys):
    if paddle.__version__.startswith('2.'):
        pytest.skip('Paddle 2 writes the older form only')

    def refuse(*_):
        raise ValueError('no such operator')

    monkeypatch.setitem(old_graph.WRITERS, 'matmul', refuse)
    out = exported(trained, tmp_path)
    assert not (out / 'inference.pdmodel').exists()
    assert capsys.readouterr().err == ('no inference.pdmodel: the network cannot be written in the '
                                       'older form (ValueError: no such operator)\n')


def test_an_export_has_the_scores_of_its_network(trained, tmp_path):
    config, network, _ = trained
    out = exported(trained, tmp_path, softmax=True)
    engine, transform, names, _ = build.open_model(load_config('config/lit_data.yaml'), out)
    scores = [val.evaluate(each, build.eval_loader(config, transform)) for each in
              (network, engine)]
    assert scores[0]['top1'] == scores[1]['top1'] and scores[0]['top5'] == scores[1]['top5']
    assert abs(scores[0]['loss'] - scores[1]['loss']) < 1e-5
    assert names == build.class_names(config)


def test_an_export_can_be_the_distillation_teacher(trained, export_of, pictures, tmp_path):
    _, network, _ = trained
    out = export_of(tmp_path)
    keys = ['DISTILL.TYPE=soft', f'DISTILL.WEIGHTS={out}', 'TRAIN.LABEL_SMOOTHING=0']
    teacher = build.teacher(load_config('config/lit_data.yaml', keys))
    transform = teacher.description.transform()
    images = np.stack([transform(picture) for picture in pictures])
    np.testing.assert_allclose(teacher(paddle.to_tensor(images)).numpy(),
                               logits_of(network, images), rtol=0, atol=3e-5)
    # Threads of a step call it at the same time, each with its part of the batch.
    parts = [paddle.to_tensor(images[number:number + 2]) for number in (0, 1, 2)] * 20
    expected = [teacher(part).numpy() for part in parts]
    with ThreadPoolExecutor(3) as pool:
        for logits, wanted in zip(pool.map(teacher, parts), expected):
            np.testing.assert_array_equal(logits.numpy(), wanted)
    with pytest.raises(ConfigError, match='1000 classes at 48 pixels; a teacher needs .*64 pixels'):
        build.teacher(load_config('config/lit_data.yaml', [*keys, 'MODEL.IMAGE_SIZE=64']))
    out = exported(trained, tmp_path, name='other', normalise=True)
    with pytest.raises(ConfigError, match='normalises by itself'):
        build.teacher(load_config('config/lit_data.yaml', [*keys, f'DISTILL.WEIGHTS={out}']))


def test_the_commands_export_and_use_an_export(tmp_path):
    out = tmp_path / 'exported'
    said = run('tools/export.py', out).stdout
    assert 'same best class on 100%' in said
    # The image size of the export, not of the configuration, is used.
    best = run('tools/predict.py', '--weights', out, '-o', 'MODEL.IMAGE_SIZE=64').stdout
    assert best.splitlines()[0] == 'class_id is: 923' and 'plate' in best
    error = run('tools/predict.py', '--weights', out, '--engine', 'onnxruntime', code=2).stderr
    assert error.startswith('error: ') and '--engine inference' in error
    error = run('tools/predict.py', '--engine', 'inference', code=2).stderr
    assert 'tools/export.py' in error
    error = run('tools/export.py', '-o', 'MODEL.IMAGE_SIZE=48', '--', ROOT / 'docs', code=2).stderr
    assert 'exists and is no export' in error
    error = run('tools/export.py', ROOT / 'README.md' / 'exported', code=2).stderr
    assert 'README.md/exported: its folder cannot be made' in error


def test_a_wrong_export_is_not_published(trained, tmp_path, monkeypatch):
    config, network, metadata = trained
    network = copy.deepcopy(network)
    network.blocks = network.blocks[:1]    # is exported in less time
    exported((config, network, metadata), tmp_path, softmax=True)
    out = exported((config, network, metadata), tmp_path)    # replaces the first
    assert not engines.load_engine(out).description.softmax
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def spoilt(network):
        wrong = simplified(network)
        wrong.head.bias.set_value(wrong.head.bias + 0.01)
        return wrong

    monkeypatch.setattr(exports, 'simplified', spoilt)
    description = build.description(config, metadata)
    for place in (out, tmp_path / 'another'):
        with pytest.raises(exports.ExportError, match='differs from its network by up to 0.01'):
            exports.export(network, description, place)
    assert os.listdir(tmp_path) == ['exported']    # no temporary folder is left
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_invalid_inference_yml_is_refused(export_of, tmp_path):
    out = export_of(tmp_path)
    text = (out / engines.DESCRIPTION).read_text(encoding='utf-8')
    said = yaml.safe_load(text)
    assert (said['image_size'], said['eval_transform'], said['normalise']) == (
        48, 'center_crop', False)
    spoilt = [('image_size', 'many'), ('image_size', 0), ('eval_crop_ratio', -1.0),
              ('class_names', ['one']), ('std', [1, 1, 0]), ('mean', [float('nan')] * 3),
              ('format', 'pickle'), ('softmax', 'yes'), ('eval_crop_ratio', float('nan'))]
    for key, value in spoilt:
        with pytest.raises(engines.EngineError, match=key):
            engines.parse_description(yaml.safe_dump({**said, key: value}), 'a file')
    del said['mean']
    for text in (yaml.safe_dump(said), '[', '- 1', '', '!!python/object/apply:os.getcwd []'):
        with pytest.raises(engines.EngineError, match='export the network again'):
            engines.parse_description(text, 'a file')
    (out / 'inference.pdiparams').unlink()
    with pytest.raises(engines.EngineError, match='is no whole export'):
        engines.load_engine(out)
