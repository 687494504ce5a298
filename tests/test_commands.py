"""Catches train.py, val.py and predict.py printing other lines, figures, files or exit codes."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT
from PIL import Image
from support.terminal import run_in_terminal, screen

import build
import predict
import zoo
from config import load_config
from val import evaluate, top_k_hits
from weights.files import write_weights

RATE = r'\d+\.\d{4,}'
STEP_LINE = re.compile(
    r'Epoch \[(\d+)/(\d+)\], Step \[(\d+)/(\d+)\], Loss: (\d+\.\d{4}),acc: (\d\.\d{4}), '
    rf'read_time: (\d+\.\d{{4}}), train_time: (\d+\.\d{{4}}), lr: ({RATE})')
EPOCH_LINE = re.compile(r'Epoch \[(\d+)/(\d+)\], avg_Loss: (\d+\.\d{4}), avg_acc: (\d\.\d{4})')
VAL_STEP_LINE = re.compile(r'Step \[(\d+)/(\d+)\], acc: (\d\.\d{4}), read_time: (\d+\.\d{4})')
FINAL_LINE = re.compile(r'ImageNet final val acc is:(\d\.\d{4})')


def run(*arguments, code=0, **options):
    """Run a command of tools/ and return its finished process, which must exit with `code`."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, **options)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def launch(count, *arguments, folder, code=0):
    """Run a program as `count` processes with Paddle's own launcher."""
    return run('-m', 'paddle.distributed.launch', '--nproc_per_node', count, '--log_level', 'ERROR',
               '--log_dir', folder, *arguments, code=code)


def lines_of(process, pattern):
    return [match for line in process.stdout.splitlines() if (match := pattern.fullmatch(line))]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Three classes of striped JPEGs: 21 for training, 13 for validation, and a recipe."""
    folder = tmp_path_factory.mktemp('data set')    # with a space
    random = np.random.RandomState(0)
    for part, count in (('train', 21), ('val', 13)):
        lines = []
        for index in range(count):
            label = index % 3
            shape = (random.randint(40, 60), random.randint(40, 60), 3)
            pixels = random.randint(0, 120, shape)
            stripes = (np.arange(shape[label % 2]) // 6 % 2 * 120).astype(int)
            if label == 2:
                pixels += 60
            else:
                pixels += stripes[:, None, None] if label == 0 else stripes[None, :, None]
            path = folder / part / f'class {label}' / f'{index}.JPEG'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype('uint8')).save(path, quality=90)
            lines.append(f'class {label}/{index}.JPEG {label}\n')
        (folder / f'{part}.txt').write_text(''.join(lines))
    (folder / 'recipe.yaml').write_text(f'''
DATA_PATH:
    TRAIN_DATASET_PATH: "{folder}/train"
    TRAIN_DATASET_LABEL_PATH: "{folder}/train.txt"
    VAL_DATASET_PATH: "{folder}/val"
    VAL_DATASET_LABEL_PATH: "{folder}/val.txt"
MODEL: {{NUM_CLASSES: 3, IMAGE_SIZE: 32}}
TRAIN: {{TRAIN_BATCH_SIZE: 4, VAL_BATCH_SIZE: 4, TRAIN_NUM_WORKS: 1, VAL_NUM_WORKS: 1, LOG_EVERY: 2,
        OUTPUT_DIR: "{folder}/run"}}
SCHEDULER: {{NUM_EPOCHS: 2, WARMUP_EPOCHS: 1, BASE_LR: 1e-3, DECAY: linear, WEIGHT_DECAY: 0.03}}
''')
    return folder


@pytest.fixture(scope='module')
def trained(data):
    return run('tools/train.py', '-c', data / 'recipe.yaml'), data / 'run'


# ---- training

def test_training_prints_the_documented_lines(trained):
    process, folder = trained
    steps = lines_of(process, STEP_LINE)
    assert [match.groups()[:4] for match in steps] == [
        (str(epoch), '2', str(step), '6') for epoch in range(2) for step in (2, 4, 6)]
    assert [match.groups()[:2] for match in lines_of(process, EPOCH_LINE)] == [
        ('0', '2'), ('1', '2')]
    # The last step line of an epoch and its summary are the same means.
    assert [m.group(5, 6) for m in steps[2::3]] == [
        m.group(3, 4) for m in lines_of(process, EPOCH_LINE)]
    assert FINAL_LINE.fullmatch(process.stdout.splitlines()[-1])
    assert '\r' not in process.stdout + process.stderr, 'a progress bar in a pipe'
    assert (folder / 'train.log').read_text() == process.stdout


def test_training_writes_weights_configuration_and_logs(trained, data):
    process, folder = trained
    names = {path.name for path in folder.iterdir()}
    assert names == {'best.pdparams', 'last.pdparams', 'config.yaml', 'train.log', 'log.jsonl',
                     'visualdl', 'checkpoints'}
    assert load_config(folder / 'config.yaml') == load_config(data / 'recipe.yaml')
    records = [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
    assert [r['event'] for r in records] == [
        'start', 'step', 'step', 'step', 'epoch', 'validation', 'step', 'step', 'step', 'epoch',
        'validation', 'end']
    step = records[1]
    assert {'loss', 'acc', 'lr', 'images_per_second', 'read_time', 'train_time'} <= set(step)
    final = FINAL_LINE.fullmatch(process.stdout.splitlines()[-1]).group(1)
    assert f'{records[-1]["top1"]:.4f}' == final
    rates = [r['lr'] for r in records if r['event'] == 'step']
    np.testing.assert_allclose(rates, [1e-6] * 3 + [1e-3] * 3, rtol=1e-9)

    from visualdl import LogReader
    reader = LogReader(file_path=str(next((folder / 'visualdl').iterdir())))
    assert {'step/loss', 'step/acc', 'step/lr', 'step/images_per_second', 'step/read_time',
            'validation/top1'} <= {
        tag.split('.log/')[-1].replace('%', '/') for tag in reader.tags()}


@pytest.mark.fresh_interpreter
def test_the_same_seed_trains_the_same_weights_with_any_number_of_workers(trained, data, tmp_path):
    _, folder = trained
    run('tools/train.py', '-c', data / 'recipe.yaml', '-o', f'TRAIN.OUTPUT_DIR={tmp_path}/again',
        'TRAIN.TRAIN_NUM_WORKS=0', 'TRAIN.VAL_NUM_WORKS=2', 'TRAIN.VISUALDL=false')
    first, second = (paddle.load(str(path / 'last.pdparams'))
                     for path in (folder, tmp_path / 'again'))
    for name in first:
        if not name.endswith('@@'):
            np.testing.assert_array_equal(first[name].numpy(), second[name].numpy(), name)


def test_the_command_that_training_names_last_runs(trained):
    process, _ = trained
    python, *command = shlex.split(re.search('next: (.*)', process.stdout)[1])
    assert python == 'python' and run(*command).stdout.startswith('class_id is: ')


def test_an_earlier_run_is_moved_aside_and_its_weights_are_loaded(trained, data, tmp_path):
    _, folder = trained
    shutil.copytree(folder, tmp_path / 'run')
    before = (tmp_path / 'run' / 'best.pdparams').read_bytes()
    process = run('tools/train.py', '-c', data / 'recipe.yaml', '-o', 'TRAIN.PRE_TRAIN=true',
                  f'MODEL_PATH={folder}/last.pdparams', f'TRAIN.OUTPUT_DIR={tmp_path}/run',
                  'SCHEDULER.NUM_EPOCHS=1', 'SCHEDULER.WARMUP_EPOCHS=0', 'SCHEDULER.BASE_LR=1e-12',
                  'SCHEDULER.END_LR=0', 'SCHEDULER.WARMUP_START_LR=0', 'TRAIN.VISUALDL=false')
    assert (tmp_path / 'run.1' / 'best.pdparams').read_bytes() == before
    assert f'{tmp_path}/run.1' in process.stdout
    # With a learning rate near zero the weights do not change.
    started, ended = (paddle.load(str(path / 'last.pdparams'))
                      for path in (folder, tmp_path / 'run'))
    np.testing.assert_allclose(ended['head.weight'].numpy(), started['head.weight'].numpy(),
                               atol=1e-8)


@pytest.mark.fresh_interpreter
def test_two_processes_train_together_and_only_rank_0_prints(data, tmp_path):
    process = launch(2, 'tools/train.py', '-c', data / 'recipe.yaml', '-o',
                     f'TRAIN.OUTPUT_DIR={tmp_path}/two', 'TRAIN.TRAIN_BATCH_SIZE=2',
                     'TRAIN.VISUALDL=false', folder=tmp_path / 'launch')
    assert len(lines_of(process, STEP_LINE)) == 6
    final = FINAL_LINE.fullmatch(process.stdout.strip().splitlines()[-1]).group(1)
    others = (tmp_path / 'launch' / 'workerlog.1').read_text()
    assert 'Epoch [' not in others and 'ImageNet' not in others
    # One process gets the same score with the same weights.
    alone = run('tools/val.py', '-c', data / 'recipe.yaml', '--weights',
                tmp_path / 'two' / 'last.pdparams')
    assert lines_of(alone, FINAL_LINE)[0].group(1) == final


def test_too_many_steps_that_are_not_finite_end_the_run(data, tmp_path):
    process = run('tools/train.py', '-c', data / 'recipe.yaml', '-o', 'SCHEDULER.BASE_LR=1e30',
                  'SCHEDULER.USE_WARMUP=false', f'TRAIN.OUTPUT_DIR={tmp_path}/nan',
                  'TRAIN.MAX_BAD_STEPS=3', 'TRAIN.VISUALDL=false', code=1)
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith('failed: TrainingError: 3 steps in a row had gradients that are not '
                           'finite (norm nan, loss nan) up to epoch 0, step 3, at learning rate ')
    for part in ('loss scale 1', 'none was saved yet', '/class ', 'not_finite.pdparams'):
        assert part in last
    assert (tmp_path / 'nan' / 'not_finite.pdparams').exists()
    assert 'Traceback' not in process.stderr


def test_a_terminal_shows_a_progress_bar_and_whole_lines(trained, data):
    _, folder = trained
    code, shown = run_in_terminal([sys.executable, 'tools/val.py', '-c', data / 'recipe.yaml',
                                   '--weights', folder / 'last.pdparams'])
    assert code == 0 and '\rvalidation:' in shown
    assert FINAL_LINE.fullmatch(screen(shown)[-2])


# ---- validation

def test_validation_scores_every_image_once_for_any_number_of_processes(trained, data, tmp_path):
    _, folder = trained
    weights = ['--weights', folder / 'best.pdparams']
    alone = run('tools/val.py', '-c', data / 'recipe.yaml', *weights)
    assert FINAL_LINE.fullmatch(alone.stdout.splitlines()[-1])
    assert [match.group(1, 2) for match in lines_of(alone, VAL_STEP_LINE)] == [('4', '4')]

    # The same with NumPy, from one batch of all images.
    config = load_config(data / 'recipe.yaml')
    network, _ = build.trained_network(config, folder / 'best.pdparams')
    network.eval()
    images, labels = zip(*build.eval_loader(config).dataset)
    best = network(paddle.to_tensor(np.stack(images))).numpy().argmax(1)
    expected = f'{(best == np.array(labels)).sum() / 13:.4f}'
    assert lines_of(alone, FINAL_LINE)[0].group(1) == expected
    assert '13 images' in alone.stdout

    together = launch(3, 'tools/val.py', '-c', data / 'recipe.yaml', *weights,
                      folder=tmp_path / 'launch')
    scores = [line.split(' images')[0] for line in (*alone.stdout.splitlines(),
              *together.stdout.splitlines()) if line.startswith('top-1')]
    assert len(scores) == 2 and scores[0] == scores[1]


class Table(paddle.nn.Layer):
    """A network whose logits for the i-th image are row i of a table."""

    def __init__(self, table):
        super().__init__()
        self.table, self.position = table, 0

    def forward(self, images):
        rows = self.table[self.position:self.position + len(images)]
        self.position += len(images)
        return paddle.to_tensor(rows)


def test_evaluate_counts_top_1_top_5_and_loss_over_images_not_batches(data):
    config = load_config(data / 'recipe.yaml', ['TRAIN.VAL_NUM_WORKS=0', 'TRAIN.VAL_BATCH_SIZE=5'])
    loader = build.eval_loader(config)
    table = np.random.RandomState(0).standard_normal((13, 8)).astype('float32')
    labels = np.array([label for _, label in loader.dataset])
    scores = evaluate(Table(table), loader)
    order = np.argsort(-table, axis=1)
    assert scores['images'] == 13
    assert scores['top1'] == (order[:, 0] == labels).sum() / 13
    assert scores['top5'] == (order[:, :5] == labels[:, None]).sum() / 13
    log_sums = np.log(np.exp(table).sum(1))
    np.testing.assert_allclose(scores['loss'], (log_sums - table[np.arange(13), labels]).mean(),
                               rtol=1e-5)


def test_top_5_of_three_classes_is_everything():
    logits = paddle.to_tensor([[0.1, 0.9, 0.2], [0.3, 0.2, 0.1]])
    np.testing.assert_array_equal(top_k_hits(logits, paddle.to_tensor([2, 0])).numpy(),
                                  [[0, 1, 0], [1, 0, 0]])


def test_validation_refuses_to_score_random_weights(data):
    process = run('tools/val.py', '-c', data / 'recipe.yaml', code=2)
    assert 'no weights' in process.stderr and '--weights' in process.stderr
    assert len(process.stderr.splitlines()) == 1
    process = run('tools/val.py', '-c', 'config/t2t_vit_7.yaml', '-o',
                  'MODEL_PATH=output/nothing.pdparams', code=2)
    assert 'output/nothing.pdparams' in process.stderr


@pytest.mark.parametrize('workers', [0, 2])
def test_an_unreadable_image_ends_in_its_name(trained, data, tmp_path, workers):
    _, folder = trained
    shutil.copytree(data / 'val', tmp_path / 'val')
    broken = tmp_path / 'val' / 'class 1' / '7.JPEG'
    broken.write_bytes(broken.read_bytes()[:200])
    process = run('tools/val.py', '-c', data / 'recipe.yaml', '--weights',
                  folder / 'best.pdparams', '-o', f'DATA_PATH.VAL_DATASET_PATH={tmp_path}/val',
                  f'TRAIN.VAL_NUM_WORKS={workers}', code=2)
    assert str(broken) in process.stderr.strip().splitlines()[-1]


# ---- prediction

def test_prediction_names_classes_and_goes_on_past_a_bad_file(trained, data, tmp_path):
    _, folder = trained
    (tmp_path / 'bad.jpg').write_text('no image')
    shutil.copy(data / 'val' / 'class 0' / '0.JPEG', tmp_path / 'good.jpg')
    shutil.copy(data / 'val' / 'class 2' / '2.JPEG', tmp_path / 'other.png')
    command = ['tools/predict.py', '-c', data / 'recipe.yaml', '--weights',
               folder / 'best.pdparams']
    process = run(*command, tmp_path, code=1)
    assert 'bad.jpg' in process.stderr and len(process.stderr.splitlines()) == 1
    lines = process.stdout.splitlines()
    assert re.fullmatch(r'class_id is: [012]', lines[0]) and lines[1].endswith('good.jpg')
    assert sum(line.startswith('class_id is: ') for line in lines) == 2
    assert len(lines) == 2 * (2 + 3), 'five classes were requested, but there are only three'
    assert 'class 1' in process.stdout, 'names of the class folders, from the weights file'

    process = run(*command, '--json', '--top-k', 2, tmp_path / 'good.jpg', tmp_path / '*.png')
    found = [json.loads(line) for line in process.stdout.splitlines()]
    assert [os.path.basename(entry['image']) for entry in found] == ['good.jpg', 'other.png']
    for entry, name in zip(found, ('0.JPEG', '2.JPEG')):
        config = load_config(data / 'recipe.yaml')
        network, _ = build.trained_network(config, folder / 'best.pdparams')
        network.eval()
        image = Image.open(data / 'val' / f'class {name[0]}' / name)
        image = image.resize((32, 32), Image.BILINEAR)
        pixels = (np.asarray(image) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        logits = network(paddle.to_tensor(pixels.transpose(2, 0, 1)[None].astype('float32')))
        expected = np.exp(logits.numpy()[0]) / np.exp(logits.numpy()[0]).sum()
        assert entry['class_id'] == expected.argmax() and len(entry['top']) == 2
        assert entry['top'][0]['probability'] == pytest.approx(expected.max(), abs=1e-4)
        assert entry['top'][0]['name'] == f'class {expected.argmax()}'


def test_weights_that_know_few_classes_name_them_where_they_are_unsure(tmp_path, capsys):
    paddle.seed(0)
    network = zoo.create_model('t2t_vit_7', img_size=48)    # all classes are equally probable
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    image = str(ROOT / 'lit_data/val/n07579787/lit_val_00000097.JPEG')

    def predicted(known, *options):
        write_weights(tmp_path / 'few.pdparams', state, dict(
            trained_on='few, 2 classes', known_classes=known))
        assert predict.main([image, '-c', 'config/lit_data.yaml', '--weights',
                             str(tmp_path / 'few.pdparams'), *options]) == 0
        return capsys.readouterr().out

    lines = predicted([1, 923]).splitlines()
    note = ('low probability: the image may show none of the 2 classes that these weights know')
    assert lines[-2:] == [f'    {note}', 'These weights know 2 classes: 1 goldfish; 923 plate']
    assert json.loads(predicted([1, 923], '--json'))['note'] == note
    # All classes are known, or the file claims something impossible.
    for known in ([], [1, 1000], [-1], ['plate'], {'1': 2}, 7, None):
        assert len(predicted(known).splitlines()) == 7


# ---- wrong input

@pytest.mark.parametrize('arguments, said', [
    (['tools/train.py', '-c', 'config/nothing.yaml'], 'no such configuration file'),
    (['tools/train.py', '-c', 'x' * 5000], 'no such configuration file'),
    (['tools/predict.py', '--weights', 'x' * 5000], 'no such weights file'),
    (['tools/train.py', '-o', 'TRAIN.BATCHSIZE=1'], '_BATCH_SIZE'),
    (['tools/train.py', '-o', 'MODEL.NAME=t2t_vit_8'], 't2t_vit_7'),
    (['tools/train.py', '-o', 'MODEL.IMAGE_SIZE=100'], 'multiple of 16'),
    (['tools/train.py', '-o', 'DATA_PATH.TRAIN_DATASET_PATH=nowhere'], 'nowhere'),
    (['tools/predict.py', '--top-k', '0'], '--top-k'),
])
def test_wrong_input_is_one_line_and_exit_code_2(arguments, said):
    process = run(*arguments, code=2)
    assert said in process.stderr and len(process.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize('command, name', [
    ('convert.py', 'weights.pth'), ('convert.py', 'weights.safetensors'), ('export.py', 'graph')])
def test_a_file_that_finds_no_room_is_named(trained, data, tmp_path, command, name):
    """Files may have 100 KB, as if a disk were nearly full; what was begun is removed."""
    def limit_file_size():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, 100 << 10))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    weights = trained[1] / 'last.pdparams'
    given = ([weights] if command == 'convert.py' else
             ['-c', data / 'recipe.yaml', '--weights', weights])
    (tmp_path / 'out').mkdir()
    done = run(f'tools/{command}', *given, tmp_path / 'out' / name, code=1,
               preexec_fn=limit_file_size)
    line, = done.stderr.splitlines()
    assert re.match(r'failed: (OSError: .*File too large|ExportError: .* has the disk room)', line)
    assert str(tmp_path / 'out' / name) in line
    assert not list((tmp_path / 'out').iterdir())


def test_debug_shows_the_traceback():
    process = run('tools/train.py', '--debug', '-o', 'MODEL.NAME=t2t_vit_8', code=2)
    assert 'Traceback' in process.stderr
