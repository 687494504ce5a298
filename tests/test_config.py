"""Catches a configuration read wrongly, or an error message without file, line and key."""

import ast
import dataclasses
import json
import subprocess
import sys
import tracemalloc

import pytest
import yaml

import build
import config as configuration
from config import (
    DEFAULTS,
    FORMER_VALUES,
    FREE_KEYS,
    KEYS,
    ROOT,
    ConfigError,
    load_config,
    save_config,
)
from system import settings
from training.checkpoint import CheckpointError, compare_runs

# config/t2t_vit_7.yaml of the Paddle repository, which must work unchanged.
PADDLE_REPOSITORY = {
    'DATA_PATH': {'TRAIN_DATASET_PATH': 'lit_data/train',
                  'TRAIN_DATASET_LABEL_PATH': 'lit_data/train.txt',
                  'VAL_DATASET_PATH': 'lit_data/val',
                  'VAL_DATASET_LABEL_PATH': 'lit_data/val.txt'},
    'MODEL_PATH': 'output/t2t_vit_7.pdparams',
    'TRAIN': {'PRE_TRAIN': False, 'TRAIN_BATCH_SIZE': 256, 'TRAIN_NUM_WORKS': 8,
              'VAL_BATCH_SIZE': 64, 'VAL_NUM_WORKS': 4},
    'SCHEDULER': {'NUM_EPOCHS': 300, 'LAST_EPOCHS': 0, 'WEIGHT_DECAY': 0.3, 'BASE_LR': 0.003,
                  'USE_WARMUP': True, 'WARMUP_EPOCHS': 3, 'WARMUP_START_LR': '1e-6',
                  'END_LR': '5e-4'},    # PyYAML reads 1e-6 as a string
}


def write(folder, text, name='recipe.yaml'):
    path = folder / name
    path.write_text(text)
    return path


def refusal(path, *overrides):
    """Return the message with which a configuration is rejected."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert '\n' not in message and caught.value.exit_code == 2
    return message


def test_the_file_of_the_paddle_repository_works_unchanged(tmp_path):
    config = load_config(write(tmp_path, yaml.safe_dump(PADDLE_REPOSITORY)))
    for section, keys in PADDLE_REPOSITORY.items():
        if section == 'MODEL_PATH':
            assert config.MODEL_PATH == keys
            continue
        for key, value in keys.items():
            found = getattr(getattr(config, section), key)
            assert found == (float(value) if key in ('WARMUP_START_LR', 'END_LR') else value)
    # Behaviour of that repository's code without a key.
    assert config.MODEL.NAME == 't2t_vit_7' and config.MODEL.IMAGE_SIZE == 224
    assert not config.MODEL.FROZEN
    assert config.DATA.TRAIN_SCALE == (0.05, 1.0) and config.DATA.FLIP == 0
    assert config.DATA.EVAL_TRANSFORM == 'squash'
    assert config.TRAIN.CLIP_NORM == 1.0 and config.TRAIN.DECAY_ALL
    assert (config.SCHEDULER.DECAY, config.SCHEDULER.UPDATE) == ('cosine', 'epoch')
    assert config.TRAIN.OUTPUT_DIR == 'output/recipe'


@pytest.mark.parametrize('path', sorted(ROOT.glob('config/*.yaml')), ids=lambda path: path.name)
def test_shipped_files_load_and_have_complete_headers(path):
    config = load_config(path)
    header = path.read_text().split('\n\n')[0]
    assert header.startswith('# ')
    if 'published' in header and 'no figure was published, and none' not in header:
        assert f'Decoder: {config.DATA.DECODER}' in header
    for word in ('bash scripts/', 'Hardware:', 'Expected:', 'Source:'):
        assert word in header, f'the first paragraph of {path.name} does not say {word}'


def test_overrides_replace_the_file_and_the_file_its_base(tmp_path):
    write(tmp_path, 'TRAIN: {SEED: 1, LOG_EVERY: 2}\nSCHEDULER: {BASE_LR: 2e-3}\n', 'base.yaml')
    middle = write(tmp_path, 'TRAIN: {SEED: 3}\nBASE: base.yaml\n', 'middle.yaml')
    top = write(tmp_path, 'BASE: middle.yaml\nDATA: {FLIP: 0.5}\n')
    assert load_config(middle).TRAIN.SEED == 3
    config = load_config(top, ['SCHEDULER.BASE_LR=1e-3', 'DATA.TRAIN_SCALE=[0.2, 1]',
                               'TRAIN.VISUALDL=no'])
    assert (config.TRAIN.SEED, config.TRAIN.LOG_EVERY, config.DATA.FLIP) == (3, 2, 0.5)
    assert config.SCHEDULER.BASE_LR == 1e-3 and config.DATA.TRAIN_SCALE == (0.2, 1.0)
    assert config.TRAIN.VISUALDL is False


def test_a_saved_configuration_has_all_keys_and_loads_equal(tmp_path):
    config = load_config('config/lit_data.yaml', [
        'TRAIN.SEED=5', 'MODEL_PATH=a b.pdparams', 'MODEL.SOFT_SPLITS=[[3, 1, 1], [3, 2, 1]]'])
    assert config.MODEL.SOFT_SPLITS == ((3, 1, 1), (3, 2, 1))
    save_config(config, tmp_path / 'config.yaml')
    assert dataclasses.asdict(load_config(tmp_path / 'config.yaml')) == dataclasses.asdict(config)
    saved = yaml.safe_load((tmp_path / 'config.yaml').read_text())
    names = {f'{section}.{key}' for section, keys in saved.items() if isinstance(keys, dict)
             for key in keys} | {'MODEL_PATH'}
    assert names == set(KEYS)


@pytest.mark.parametrize('text, line, said, wanted', [
    ('TRAIN:\n    TRAIN_BATCHSIZE: 4\n', 2, 'TRAIN.TRAIN_BATCHSIZE', 'TRAIN.TRAIN_BATCH_SIZE'),
    ('SCHEDULER: {TRAIN_BATCH_SIZE: 4}', 1, 'SCHEDULER.TRAIN_BATCH_SIZE',
     'TRAIN.TRAIN_BATCH_SIZE'),
    ('\nSCHEDULAR: {}\n', 2, 'SCHEDULAR', 'SCHEDULER'),
    ('TRAIN_BATCH_SIZE: 4', 1, 'TRAIN_BATCH_SIZE', 'TRAIN.TRAIN_BATCH_SIZE'),
    ('TRAIN:\n  SEED: one\n', 2, 'TRAIN.SEED', 'a whole number'),
    ('TRAIN:\n  SEED: 1.5\n', 2, 'TRAIN.SEED', 'a whole number'),
    ('TRAIN:\n  SEED: true\n', 2, 'TRAIN.SEED', 'a whole number'),
    ('TRAIN:\n  PRE_TRAIN: 1\n', 2, 'TRAIN.PRE_TRAIN', 'true or false'),
    ('SCHEDULER:\n  BASE_LR: fast\n', 2, 'SCHEDULER.BASE_LR', 'a number'),
    ('SCHEDULER:\n  BASE_LR: .nan\n', 2, 'SCHEDULER.BASE_LR', 'a number'),
    ('SCHEDULER:\n  BASE_LR: -1\n', 2, 'SCHEDULER.BASE_LR', 'more than 0'),
    ('DATA:\n  MEAN: [0.5, 0.5]\n', 2, 'DATA.MEAN', 'a list of 3 numbers'),
    ('MODEL:\n  SOFT_SPLITS: [3, 1, 1]\n', 2, 'MODEL.SOFT_SPLITS', 'rows of 3 whole numbers'),
    ('MODEL:\n  SOFT_SPLITS: [[3, 1]]\n', 2, 'MODEL.SOFT_SPLITS', 'rows of 3 whole numbers'),
    ('MODEL:\n  SOFT_SPLITS: [[3, 1, 0.5]]\n', 2, 'MODEL.SOFT_SPLITS', 'not [[3, 1, 0.5]]'),
    ('MODEL:\n  TOKEN_DIM: 1\n', 2, 'MODEL.TOKEN_DIM', 'at least 2'),
    ('DATA:\n  FLIP: 1.5\n', 2, 'DATA.FLIP', 'at most 1'),
    ('DATA:\n  EVAL_TRANSFORM: centercrop\n', 2, 'DATA.EVAL_TRANSFORM', 'center_crop'),
    ('MODEL:\n  NAME: 7\n', 2, 'MODEL.NAME', 'text'),
    ('TRAIN: 3\n', 1, 'TRAIN', 'KEY: value'),
    ('- TRAIN\n', 1, 'the file', 'KEY: value'),
    ('TRAIN:\n  SEED: 1\n  SEED: 2\n', 3, 'TRAIN.SEED', 'line 2'),
    ('TRAIN: {SEED: 1}\nTRAIN: {LOG_EVERY: 1}\n', 2, 'TRAIN', 'line 1'),
    ('TRAIN:\n  SEED: [1\n', 3, 'YAML', ''),
    ('TRAIN:\n  SEED: !!python/object/apply:os.system [true]\n', 2, 'TRAIN.SEED', 'cannot be read'),
    ('BASE: nothing.yaml\n', 1, 'BASE', 'nothing.yaml'),
    ('SCHEDULER:\n  NUM_EPOCHS: 2\n  WARMUP_EPOCHS: 5\n', 3, 'SCHEDULER.WARMUP_EPOCHS',
     'SCHEDULER.NUM_EPOCHS'),
    ('SCHEDULER:\n  END_LR: 1\n', 2, 'SCHEDULER.END_LR', 'SCHEDULER.BASE_LR'),
    ('SCHEDULER:\n  WARMUP_START_LR: 1\n', 2, 'SCHEDULER.WARMUP_START_LR', 'SCHEDULER.BASE_LR'),
    ('TRAIN:\n  PRE_TRAIN: true\n', 2, 'TRAIN.PRE_TRAIN', 'MODEL_PATH'),
    ('DATA:\n  TRAIN_SCALE: [1, 0.5]\n', 2, 'DATA.TRAIN_SCALE', 'smaller number first'),
])
def test_a_wrong_file_is_one_line_with_place_key_and_remedy(tmp_path, text, line, said, wanted):
    path = write(tmp_path, text)
    message = refusal(path)
    assert message.startswith(f'{path}:{line}: ')
    assert said in message and wanted in message


@pytest.mark.parametrize('override, wanted', [
    ('TRAIN.SEED', 'SECTION.KEY=VALUE'), ('SEED=1', 'TRAIN.SEED'), ('TRAIN=1', 'section'),
    ('TRAIN.SEED=x', 'whole number'), ('SCHEDULER.WARMUP_EPOCHS=400', 'NUM_EPOCHS')])
def test_a_wrong_override_is_named(override, wanted):
    message = refusal('config/t2t_vit_7.yaml', override)
    assert override in message and wanted in message


def test_circular_bases_are_refused(tmp_path):
    write(tmp_path, 'BASE: two.yaml\n', 'one.yaml')
    write(tmp_path, 'BASE: one.yaml\n', 'two.yaml')
    assert 'leads back' in refusal(tmp_path / 'one.yaml')


def test_a_missing_file_names_the_nearest_one():
    assert 'config/t2t_vit_7.yaml' in refusal('config/t2t_vit7.yaml')


def test_large_and_binary_files_are_refused(tmp_path):
    assert 'larger than' in refusal(write(tmp_path, '# ' + 'x' * settings.LARGEST_FILE))
    path = tmp_path / 'binary.yaml'
    path.write_bytes(b'\xff\xfe\x00\x01')
    assert 'cannot be read' in refusal(path)


# Small YAML files that would take a stack of 20,000 calls, all memory, or seconds.
BOMBS = {
    'brackets': 'TRAIN:\n  SEED: ' + '[' * 20000,
    'closed brackets': 'TRAIN:\n  SEED: ' + '[' * 20000 + ']' * 20000,
    'braces': 'TRAIN: ' + '{a: ' * 15000,
    'dashes': 'TRAIN:\n  SEED:\n    ' + '- ' * 20000 + '1',
    'question marks': '? ' * 20000,
    'deep sections': ''.join(' ' * level + 'TRAIN:\n' for level in range(300)),
    'laughs': 'TRAIN:\n  SEED: &a [1, 1]\n' + ''.join(
        f'  KEY{number}: &{name} [{", ".join([f"*{before}"] * 9)}]\n'
        for number, (before, name) in enumerate(zip('abcdefghijklmno', 'bcdefghijklmnop'))),
    'merged laughs': 'TRAIN:\n  SEED: &a {b: 1}\n' + ''.join(
        f'  KEY{number}: &{name} {{<<: [{", ".join([f"*{before}"] * 9)}]}}\n'
        for number, (before, name) in enumerate(zip('abcdefghijklmno', 'bcdefghijklmnop'))),
    'itself': 'TRAIN:\n  SEED: &a [*a]\n',
    'digits': 'TRAIN:\n  SEED: ' + '9' * 60000,
    'sixties': 'TRAIN:\n  SEED: 1' + ':1' * 30000,
    'a name': 'A' * 60000 + ': 1',
    'a text': 'MODEL: {NAME: [' + 'a' * 60000 + ']}',
    'a long list': 'TRAIN:\n  SEED: [' + '1, ' * 20000 + ']',
    'a long list of bytes': 'TRAIN:\n  SEED: !!binary ' + 'QUJD' * 15000,
}


@pytest.mark.parametrize('name', BOMBS)
def test_a_yaml_bomb_is_refused_in_one_line_with_little_memory(tmp_path, name):
    path = write(tmp_path, BOMBS[name])
    tracemalloc.start()
    message = refusal(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message.startswith(f'{path}:') and len(message) < len(str(path)) + 400
    assert peak < 100 << 20


def test_a_bomb_in_an_override_is_one_line():
    assert 'YAML' in refusal('config/lit_data.yaml', 'TRAIN.SEED=' + '[' * 4000)
    assert len(refusal('config/lit_data.yaml', 'TRAIN.SEED=' + '[' * 20000)) < 400


def test_a_bomb_ends_a_command_with_exit_code_2(tmp_path):
    path = write(tmp_path, BOMBS['brackets'])
    done = subprocess.run([sys.executable, 'tools/val.py', '-c', path], cwd=ROOT, timeout=120,
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr == (f'error: {path}:2: is no valid YAML: nested more than '
                           f'{settings.DEEPEST} deep\n')


@pytest.mark.parametrize('text, line, said, wanted', [
    ('MODEL:\n  NAME: t2t_vit_77\n', 2, 'MODEL.NAME', 'did you mean t2t_vit_7'),
    ('DISTILL:\n\n  TEACHER: pit\n', 3, 'DISTILL.TEACHER', 'unknown'),
    ('DATA:\n  AUTO_AUGMENT: rnd-m9\n', 2, 'DATA.AUTO_AUGMENT', 'did you mean rand?')])
def test_values_that_build_checks_are_refused_alike(tmp_path, text, line, said, wanted):
    path = write(tmp_path, text)
    load_config(path)
    with pytest.raises(ConfigError) as caught:
        build.load_config(path)
    assert str(caught.value).startswith(f'{path}:{line}: {said} ') and wanted in str(caught.value)


@pytest.mark.parametrize('name', KEYS)
def test_a_key_is_used_where_its_declaration_says(name):
    module, _, function = KEYS[name].metadata['used'].partition('.')
    tree = ast.parse((ROOT / 'tools' / f'{module}.py').read_text())
    assert not function or function in {node.name for node in tree.body if hasattr(node, 'name')}
    names = {getattr(node, 'attr', getattr(node, 'value', None)) for node in ast.walk(tree)
             if isinstance(node, (ast.Attribute, ast.Constant))}    # config.SEED, or 'SEED'
    assert name.split('.')[-1] in names, (
        f'tools/{module}.py does not use {name}: correct `used=` in tools/config.py')


def test_the_page_of_keys_is_the_output_of_the_command():
    done = subprocess.run([sys.executable, 'tools/config.py'], cwd=ROOT, timeout=60,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / 'docs/configuration.md').read_text(encoding='utf-8'), (
        'run: python tools/config.py > docs/configuration.md')
    rows = [line.split(' | ')[0] for line in done.stdout.splitlines() if line.startswith('| `')]
    assert rows == [f'| `{name}`' for name in KEYS]


class TestResuming:
    """compare_runs on the identities of two runs."""

    def run(self, **overrides):
        config = load_config('config/lit_data.yaml', [
            f'{name.replace("_0_", ".")}={value}' for name, value in overrides.items()])
        return dict(config=json.loads(json.dumps(dataclasses.asdict(config))), paddle='3.3.1')

    def compare(self, before, now, force=False):
        return compare_runs(before, now, 'a.ckpt', force, FREE_KEYS, DEFAULTS, FORMER_VALUES)

    def test_free_keys_are_reported_and_others_refused(self):
        before, now = self.run(), self.run(TRAIN_0_LOG_EVERY=7)
        assert self.compare(before, now) == ['TRAIN.LOG_EVERY was 20 and is 7']
        with pytest.raises(CheckpointError, match='TRAIN.SEED was 0 and is 3'):
            self.compare(before, self.run(TRAIN_0_SEED=3))
        assert len(self.compare(before, self.run(TRAIN_0_SEED=3), force=True)) == 1

    def test_a_key_of_only_one_configuration_has_its_default(self, monkeypatch):
        monkeypatch.setitem(DEFAULTS, 'TRAIN.GONE', (0.9, 0.99))
        before, now = self.run(), self.run()
        before['config']['TRAIN']['GONE'] = [0.9, 0.99]    # as in JSON
        del before['config']['TRAIN']['SEED']              # as if it were new
        assert self.compare(before, now) == []
        before['config']['TRAIN']['GONE'] = [0.9, 0.5]
        with pytest.raises(CheckpointError, match='TRAIN.GONE was'):
            self.compare(before, now)

    @pytest.mark.parametrize('former', ['pillow', 'opencv'])
    def test_former_values_mean_present_ones(self, former):
        """In files, and in checkpoints of earlier versions."""
        assert load_config('config/lit_data.yaml', [f'DATA.DECODER={former}']).DATA.DECODER == (
            'exact')
        before = self.run()
        before['config']['DATA']['DECODER'] = former
        assert self.compare(before, self.run()) == []
        with pytest.raises(CheckpointError, match='DATA.DECODER was exact and is fast'):
            self.compare(before, self.run(DATA_0_DECODER='fast'))


def test_earlier_files_may_contain_removed_keys_at_their_defaults(tmp_path):
    """For example the configuration that a log of an earlier version begins with."""
    assert configuration.REMOVED and not set(configuration.REMOVED) & set(KEYS)
    with open(ROOT / 'log/tiny_imagenet.jsonl', encoding='utf-8') as log:
        earlier = json.loads(log.readline())['config']
    assert load_config(write(tmp_path, yaml.safe_dump(earlier))).TRAIN.TRAIN_BATCH_SIZE == 32
    assert any(name.split('.')[1] in earlier[name.split('.')[0]] for name in configuration.REMOVED)
    for name in configuration.REMOVED:
        section, key = name.split('.')
        assert refusal(write(tmp_path, f'{section}: {{{key}: [7]}}')).startswith(
            f'{tmp_path}/recipe.yaml:1: {name} was removed')


def test_a_removed_key_is_accepted_only_at_its_remaining_value(tmp_path, monkeypatch):
    monkeypatch.setitem(configuration.REMOVED, 'TRAIN.GONE', [0.9, 0.99])
    path = write(tmp_path, 'TRAIN: {GONE: [0.9, 0.99], SEED: 4}\n')
    assert load_config(path, ['TRAIN.GONE=[0.9, 0.99]']).TRAIN.SEED == 4
    message = refusal(write(tmp_path, 'TRAIN:\n  GONE: [0.9, 0.5]\n'))
    assert message.startswith(f'{path}:2: TRAIN.GONE was removed') and 'leave it out' in message
