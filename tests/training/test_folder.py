"""Catches a run that loses files, resumes from the wrong checkpoint, or ends on a full disk."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import paddle
import pytest
from conftest import ROOT
from support.plain import Plain, write_recipe
from support.runs import assert_same_run, figures, newest, without_roots_rights

import build
import train
import zoo
from training import folder, log
from training.folder import Checkpoints, lock_folder
from training.signals import Stopped
from val import evaluate
from weights.container import CheckpointError, read_checkpoint, write_checkpoint


@pytest.fixture(scope='module', autouse=True)
def plain_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.MODELS, 'plain', (Plain, {}))
        yield


@pytest.fixture
def start(tmp_path):
    """Makes a Training of Plain on 24 images: 6 steps an epoch, a checkpoint after every second."""
    recipe = write_recipe(tmp_path)
    return lambda *overrides, force=False: train.Training(
        build.load_config(recipe, list(overrides)), force)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp('finished')
    train.Training(build.load_config(write_recipe(folder), [
        f'TRAIN.OUTPUT_DIR={folder}/whole'])).run()
    return folder / 'whole'


@pytest.fixture
def whole(finished, tmp_path):
    """A copy of an uninterrupted run."""
    shutil.copytree(finished, tmp_path / 'whole')
    config = tmp_path / 'whole' / 'config.yaml'
    config.write_text(config.read_text().replace(str(finished.parent), str(tmp_path)))
    return tmp_path / 'whole'


def steps(folder, pattern='step-*.ckpt'):
    return sorted(int(re.search(r'\d{9}', path.name)[0])
                  for path in (folder / 'checkpoints').glob(pattern))


def weights(folder):
    return (folder / 'last.pdparams').read_bytes()


def test_weights_that_could_not_be_written_are_written_later(start, whole, tmp_path, monkeypatch,
                                                             capsys):
    """The best weights may not be saved again by a later validation."""
    write, refused = folder.write_weights, []

    def full(path, state, metadata):
        if len(refused) < 3:
            refused.append(path.name)
            raise OSError(errno.ENOSPC, 'No space left on device')
        write(path, state, metadata)

    monkeypatch.setattr(folder, 'write_weights', full)
    start(f'TRAIN.OUTPUT_DIR={tmp_path}/run').run()
    assert 'best.pdparams' in refused and 'best.pdparams was not saved' in capsys.readouterr().out
    for name in ('best.pdparams', 'last.pdparams'):
        assert (tmp_path / 'run' / name).read_bytes() == (whole / name).read_bytes()


# ---- resuming from an earlier checkpoint

def test_a_new_checkpoint_is_never_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path / 'checkpoints', keep=2)
    for step in (100, 200, 7, 9):
        path = checkpoints.save(step, {'a': np.zeros(1)}, {})
        assert path.exists()


def test_resuming_from_an_earlier_checkpoint_renames_later_ones(start, whole, capsys):
    folder = f'TRAIN.OUTPUT_DIR={whole}'
    before = (whole / 'checkpoints' / 'step-000000010.ckpt').read_bytes()
    start(folder, f'TRAIN.RESUME={whole}/checkpoints/step-000000004.ckpt').folder.close()
    assert steps(whole) == [2, 4]
    assert steps(whole, 'abandoned-step-*.ckpt') == [6, 8, 10, 12]
    assert 'step-000000010.ckpt is now abandoned-step-000000010.ckpt' in capsys.readouterr().out
    again = start(folder)
    assert (again.position.epoch, again.position.step) == (0, 4), 'resumed an abandoned one'
    again.run()
    assert steps(whole) == [2, 4, 6, 8, 10, 12]
    aside = whole / 'checkpoints' / 'abandoned-step-000000010.ckpt'
    assert aside.read_bytes() == before
    back = start(folder, f'TRAIN.RESUME={aside}')    # which is still usable
    assert (back.position.epoch, back.position.step) == (1, 4)
    back.folder.close()
    assert newest(whole).read_bytes() == before and newest(whole).name == 'step-000000010.ckpt'


def test_with_fewer_steps_per_epoch_new_checkpoints_are_the_newest(start, whole):
    options = f'TRAIN.OUTPUT_DIR={whole}', 'TRAIN.TRAIN_BATCH_SIZE=8', 'TRAIN.KEEP_CHECKPOINTS=2'
    run = start(*options, 'SCHEDULER.NUM_EPOCHS=4', force=True)
    assert steps(whole) == [2, 4, 6] and newest(whole).name == 'step-000000006.ckpt'
    run.run()
    assert steps(whole) == [11, 12]
    assert read_checkpoint(newest(whole))[1]['position']['epoch'] == 4


# ---- checkpoints that cannot be used

@pytest.mark.parametrize('damage', [
    lambda content: content[:-1000], lambda content: b'', lambda content: b'x' * 1000,
    lambda content: content[:5000] + bytes([content[5000] ^ 4]) + content[5001:]],
    ids=['cut off', 'emptied', 'other file', 'bit flipped'])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(start, whole, finished, damage,
                                                                 capsys):
    path = newest(whole)
    path.write_bytes(damage(path.read_bytes()))
    start(f'TRAIN.OUTPUT_DIR={whole}').run()
    assert f'skipped checkpoint {path}' in capsys.readouterr().out
    assert_same_run(finished, whole)


def extra_array(arrays, state):
    arrays['network/more'] = np.zeros(1)


def foreign_array(arrays, state):
    arrays['more/head.weight'] = np.zeros(1)


def nameless_moment(arrays, state):
    arrays['optimizer/moment1'] = np.zeros(1)


def no_moment(arrays, state):
    del arrays['optimizer/moment2/head.weight']


def small_moment(arrays, state):
    arrays['optimizer/moment2/head.weight'] = np.zeros((2, 2), 'float32')


def no_weight(arrays, state):
    del arrays['network/head.weight']


def no_position(arrays, state):
    del state['position']


def no_step(arrays, state):
    del state['position']['step']


def extra_field(arrays, state):
    state['position']['more'] = 1


def extra_key(arrays, state):
    state['more'] = 1


def past_the_end(arrays, state):
    state['position']['epoch'] = 3


def step_past_the_end(arrays, state):
    state['position']['step'] = 7


def half_a_step(arrays, state):
    state['position']['step'] = 1.5


def no_config(arrays, state):
    state['identity']['config'] = []


def no_epochs(arrays, state):
    del state['identity']['config']['SCHEDULER']


def no_log(arrays, state):
    state['log'] = None


def no_scale(arrays, state):
    state['loss_scale'] = 3


CONTENTS = [extra_array, foreign_array, nameless_moment, no_moment, small_moment, no_weight,
            no_position, no_step, extra_field, extra_key, past_the_end, step_past_the_end,
            half_a_step, no_config, no_epochs, no_log, no_scale]


def test_unexpected_content_is_named_and_the_previous_checkpoint_used(start, whole, capsys):
    path = newest(whole)
    arrays, state = read_checkpoint(path)
    for change in CONTENTS:
        changed = dict(arrays), json.loads(json.dumps(state))
        change(*changed)
        write_checkpoint(path, *changed)
        run = start(f'TRAIN.OUTPUT_DIR={whole}')
        assert (run.position.epoch, run.position.step) == (1, 4), change.__name__
        run.folder.close()
        said = capsys.readouterr().out
        assert f'skipped checkpoint {path}: ' in said, change.__name__
        aside = next((whole / 'checkpoints').glob('damaged-step-000000012*.ckpt'))
        aside.unlink()
    start(f'TRAIN.OUTPUT_DIR={whole}').run()


def test_a_run_without_a_usable_checkpoint_does_not_start_afresh(start, whole):
    for path in (whole / 'checkpoints').iterdir():
        path.write_bytes(b'x' * 1000)
    with pytest.raises(CheckpointError, match='step-000000012.ckpt: .*RESUME=false') as refusal:
        start(f'TRAIN.OUTPUT_DIR={whole}')
    assert refusal.value.exit_code == 2 and '\n' not in str(refusal.value)
    assert (whole / 'train.log').exists(), 'the earlier run is not moved'


# ---- links

LOCK = '''
import conftest, sys
from training.folder import lock_folder
lock_folder(sys.argv[1], timeout=0)
'''


def test_a_link_and_its_target_have_the_same_lock(tmp_path):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'real')
    lock = lock_folder(tmp_path / 'link', timeout=0)
    second = subprocess.run([sys.executable, '-c', LOCK, tmp_path / 'real'], cwd=ROOT / 'tests',
                            capture_output=True, text=True, timeout=120)
    assert 'another process trains in this folder' in second.stderr
    lock.close()


def test_a_folder_with_a_read_only_parent_is_locked_inside(tmp_path):
    disk = tmp_path / 'mounted' / 'disk'
    disk.mkdir(parents=True)
    disk.parent.chmod(0o555)
    try:
        done = subprocess.run([sys.executable, '-c', LOCK, disk], cwd=ROOT / 'tests', text=True,
                              capture_output=True, timeout=120, preexec_fn=without_roots_rights)
    finally:
        disk.parent.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in disk.iterdir()] == ['.disk.lock']


@pytest.mark.parametrize('name', ['a file', 'a file/run'])
def test_a_folder_that_cannot_be_made_is_wrong_input(start, tmp_path, name):
    (tmp_path / 'a file').write_text('content')
    with pytest.raises(CheckpointError, match=f'TRAIN.OUTPUT_DIR .*{name}: cannot be made'):
        start(f'TRAIN.OUTPUT_DIR={tmp_path / name}')
    assert [path.name for path in tmp_path.glob('*a file*')] == ['a file']


def test_a_linked_folder_keeps_its_name_and_other_files(start, tmp_path):
    scratch, link = tmp_path / 'scratch', tmp_path / 'output'
    scratch.mkdir()
    link.symlink_to(scratch)
    (scratch / 'of others').write_text('data')
    for _ in range(2):
        start(f'TRAIN.OUTPUT_DIR={link}', 'TRAIN.RESUME=false', 'SCHEDULER.NUM_EPOCHS=1').run()
    assert link.is_symlink() and (scratch / 'of others').read_text() == 'data'
    assert (scratch / 'earlier.1' / 'last.pdparams').read_bytes() == weights(link)
    assert not list(tmp_path.glob('*.1'))


# ---- disks

def test_a_full_disk_does_not_end_the_run_and_the_log_is_complete(start, whole, tmp_path, capsys):
    """A small file system, filled to the last byte between two steps and emptied later."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', disk],
                             capture_output=True)
    if mounted.returncode:
        pytest.skip('mounting is not allowed here')
    try:
        run = start(f'TRAIN.OUTPUT_DIR={disk}/run', 'TRAIN.VISUALDL=true')
        log_step = run.log_step

        def fill_and_empty():
            if run.steps_done == 3:
                with open(disk / 'filler', 'wb', buffering=0) as filler:
                    try:
                        while filler.write(bytes(512)):
                            pass
                    except OSError as error:
                        assert error.errno == errno.ENOSPC
            log_step()
            if run.steps_done == 9:
                (disk / 'filler').unlink()

        run.log_step = fill_and_empty
        run.run()
        said = capsys.readouterr().out
        assert said.count('no checkpoint was saved') >= 3
        for name in ('train.log', 'log.jsonl', 'vdlrecords'):
            assert len(re.findall(rf'{name}\S*: cannot be written: No space left', said)) <= 1
        assert 'cannot be written: No space left' in said
        assert figures(disk / 'run') == figures(whole)
        assert weights(disk / 'run') == weights(whole)
        assert read_checkpoint(newest(disk / 'run'))[1]['position']['epoch'] == 2
        tags = scalars_of(disk / 'run' / 'visualdl')
        losses = [record['loss'] for record in records_of(whole) if record['event'] == 'step']
        assert tags['step/loss'] == pytest.approx(losses, rel=1e-6)    # VisualDL has float32
    finally:
        subprocess.run(['umount', '--lazy', disk], check=True)    # the lock file is open


@pytest.mark.parametrize('said', [r'goes on from .*step-000000002\.ckpt',
                                  'starts again, as there is no checkpoint'])
def test_a_stop_does_not_claim_a_checkpoint_that_was_not_written(start, monkeypatch, said):
    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    run = start()
    log_step = run.log_step

    def fill_and_stop():
        log_step()
        if run.steps_done == (3 if 'goes on' in said else 1):
            monkeypatch.setattr(folder, 'write_checkpoint', full)
            os.kill(os.getpid(), signal.SIGTERM)

    run.log_step = fill_and_stop
    with pytest.raises(Stopped, match=r'^SIGTERM: not saved in epoch 0, step \d of 6 \(.*No space '
                                      rf'left.*\); the same command .* {said}$'):
        run.run()


def test_checkpoints_that_cannot_be_written_do_not_end_the_run(start, finished, tmp_path):
    """A limit of 100 KB allows weights files (61 KB) but not checkpoints (182 KB)."""
    def limit_file_size():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, 100 << 10))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = subprocess.run(plain('-c', tmp_path / 'recipe.yaml'), cwd=ROOT, capture_output=True,
                          text=True, timeout=200, preexec_fn=limit_file_size)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('no checkpoint was saved') == 2 * (2 + 2), (
        'every second step of 6, and twice at the end of an epoch')
    assert os.listdir(tmp_path / 'run' / 'checkpoints') == []
    assert weights(tmp_path / 'run') == weights(finished)


def records_of(folder):
    return [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]


def scalars_of(folder):
    from visualdl import LogReader
    reader = LogReader(file_path=str(next(folder.iterdir())))
    return {tag: [record.value for record in reader.get_data('scalar', tag)]
            for tag in ('step/loss', 'step/acc')}


def test_failing_writes_do_not_end_the_run(start, whole, monkeypatch, capsys):
    """As above, without mounting: os.write fails for a while."""
    write, failing = os.write, False

    def full(descriptor, data):
        if failing:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return write(descriptor, data[:7])    # a short write

    monkeypatch.setattr(log.os, 'write', full)
    run = start()
    log_step = run.log_step

    def fill_and_empty():
        nonlocal failing
        failing = 3 <= run.steps_done < 9
        log_step()

    run.log_step = fill_and_empty
    run.run()
    assert figures(run.folder.path) == figures(whole)
    said = capsys.readouterr().out
    for name in ('train.log', 'log.jsonl'):
        assert said.count(f'{name}: cannot be written: No space left') == 1


@pytest.mark.parametrize('how', ['removed', 'moved'])
def test_a_removed_folder_is_created_again(start, whole, tmp_path, how, capsys):
    run = start()
    log_step = run.log_step

    def lose():
        log_step()
        if run.steps_done == 9:
            if how == 'removed':
                shutil.rmtree(run.folder.path)
            else:
                run.folder.path.rename(tmp_path / 'elsewhere')

    run.log_step = lose
    run.run()
    said = capsys.readouterr().out
    assert 'was removed or moved' in said
    assert re.search('missing until they are next saved: checkpoints, best.pdparams, last.pd', said)
    folder = run.folder.path
    assert figures(folder) == figures(whole) and weights(folder) == weights(whole)
    assert steps(folder) == [10, 12]
    assert (folder / 'config.yaml').read_text().replace('/run', '/whole') == (
        whole / 'config.yaml').read_text()


# ---- clock, output, skipped steps

def test_a_changed_system_clock_does_not_affect_the_log(start, monkeypatch):
    run = start('SCHEDULER.NUM_EPOCHS=1')
    real, jump = time.time, 0
    monkeypatch.setattr(time, 'time', lambda: real() + jump)
    log_step = run.log_step

    def jumping():
        nonlocal jump
        jump = -86400 if run.steps_done % 2 else 86400
        log_step()

    run.log_step = jumping
    began = time.monotonic()
    run.run()
    elapsed = [record['elapsed'] for record in records_of(run.folder.path)]
    assert elapsed == sorted(elapsed) and 0 <= elapsed[-1] <= time.monotonic() - began + 60


def plain(*arguments):
    return [sys.executable, 'tests/support/plain.py', *map(str, arguments)]


def test_a_closed_pipe_does_not_end_the_run(start, tmp_path):
    process = subprocess.Popen(
        plain('-c', tmp_path / 'recipe.yaml'), cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, 'OMP_NUM_THREADS': str(1)})
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=200) == 0, process.stderr.read()
    assert process.stderr.read() == b''
    assert 'ImageNet final val acc is:' in (tmp_path / 'run' / 'train.log').read_text()


def test_a_run_that_skipped_every_step_fails_also_when_resumed(start, tmp_path):
    def run_with_infinite_loss():
        run = start('SCHEDULER.NUM_EPOCHS=1', 'TRAIN.MAX_BAD_STEPS=99')
        loss = run.stepper.loss
        run.stepper.loss = lambda *arguments: loss(*arguments) * float('inf')
        return run

    for _ in range(2):
        with pytest.raises(train.TrainingError, match='no step had finite gradients') as failure:
            run_with_infinite_loss().run()
        assert getattr(failure.value, 'exit_code', 1) == 1
    checkpoints = sorted((tmp_path / 'run' / 'checkpoints').iterdir())
    for path in checkpoints[1:]:
        path.unlink()
    with pytest.raises(train.TrainingError, match='no step had finite gradients'):
        run_with_infinite_loss().run()    # from the middle of the epoch


# ---- processes

def test_another_number_of_processes_sees_the_same_images(start, whole, tmp_path):
    """Plain uses no random numbers, so the result must be that of one process."""
    shutil.copytree(whole, tmp_path / 'run')
    for path in (tmp_path / 'run' / 'checkpoints').iterdir():
        if int(path.stem[5:]) > 4:
            path.unlink()    # 2 of 6 steps are left of the first epoch
    done = subprocess.run(
        [sys.executable, 'tools/launch.py', 'tests/support/plain.py', '--nproc', '2', '--logs',
         tmp_path / 'launch', '-c', tmp_path / 'recipe.yaml', '-o',
         'TRAIN.TRAIN_BATCH_SIZE=2'], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '1 processes are now 2, at the same 4 images a step' in done.stdout
    assert 'going on from' in done.stdout and 'step 4 of 6' in done.stdout
    one, two = (read_checkpoint(newest(folder))[0] for folder in (whole, tmp_path / 'run'))
    for name in one:
        if name.startswith('network/'):
            np.testing.assert_allclose(two[name], one[name], rtol=0, atol=2e-6, err_msg=name)
    one, two = ([(r['epoch'], r['acc'], r['loss']) for r in records_of(folder)
                 if r['event'] == 'epoch'] for folder in (whole, tmp_path / 'run'))
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_the_validation_loss_is_bit_equal_for_any_batch_size(tmp_path):
    """A step of n processes evaluates n batches, like one larger batch."""
    recipe = write_recipe(tmp_path, images=50)
    table = paddle.to_tensor(np.random.default_rng(0).standard_normal((3, 1000)).astype('float32'))

    def network(images):    # the same logits for an image in any batch
        return (images[:, :, :1, 0].astype('float64') * table.unsqueeze(0).astype('float64')).sum(
            axis=1).astype('float32')

    network.training, network.eval = False, lambda: None
    network_losses = set()
    for batch_size in (3, 6, 9, 12, 50):
        config = build.load_config(recipe, ['MODEL.NAME=t2t_vit_7', f'TRAIN.VAL_BATCH_SIZE='
                                            f'{batch_size}'])
        network_losses.add(evaluate(network, build.eval_loader(config))['loss'])
    assert len(network_losses) == 1
