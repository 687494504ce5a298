"""The configuration: what a file may say, and what a person is told about a wrong one."""

import dataclasses

import pytest
import yaml

import config as configuration
from config import KEYS, ROOT, ConfigError, load_config, save_config

# The Paddle repository's config/t2t_vit_7.yaml: its keys and values, which must go on working.
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
                  'END_LR': '5e-4'},    # PyYAML reads 1e-6 as a text
}


def write(folder, text, name='recipe.yaml'):
    path = folder / name
    path.write_text(text)
    return path


def refusal(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert '\n' not in message and caught.value.exit_code == 2
    return message


def test_the_paddle_repositorys_file_works_unchanged(tmp_path):
    config = load_config(write(tmp_path, yaml.safe_dump(PADDLE_REPOSITORY)))
    for section, keys in PADDLE_REPOSITORY.items():
        if section == 'MODEL_PATH':
            assert config.MODEL_PATH == keys
            continue
        for key, value in keys.items():
            found = getattr(getattr(config, section), key)
            assert found == (float(value) if key in ('WARMUP_START_LR', 'END_LR') else value)
    # What that repository's code does without a key for it.
    assert config.MODEL.NAME == 't2t_vit_7' and config.MODEL.IMAGE_SIZE == 224
    assert not config.MODEL.FROZEN
    assert config.DATA.TRAIN_SCALE == (0.05, 1.0) and config.DATA.FLIP == 0
    assert config.DATA.EVAL_TRANSFORM == 'squash'
    assert config.TRAIN.CLIP_NORM == 1.0 and config.TRAIN.DECAY_ALL
    assert (config.SCHEDULER.DECAY, config.SCHEDULER.UPDATE) == ('cosine', 'epoch')
    assert config.TRAIN.OUTPUT_DIR == 'output/recipe'


@pytest.mark.parametrize('path', sorted(ROOT.glob('config/*.yaml')), ids=lambda path: path.name)
def test_shipped_files_load_and_open_with_what_a_person_must_know(path):
    load_config(path)
    header = path.read_text().split('\n\n')[0]
    assert header.startswith('# ')
    for word in ('bash scripts/', 'Hardware:', 'Expected:', 'Source:'):
        assert word in path.read_text(), f'{path.name} does not say {word}'


def test_overrides_win_over_the_file_and_the_file_over_its_base(tmp_path):
    write(tmp_path, 'TRAIN: {SEED: 1, LOG_EVERY: 2}\nSCHEDULER: {BASE_LR: 2e-3}\n', 'base.yaml')
    middle = write(tmp_path, 'TRAIN: {SEED: 3}\nBASE: base.yaml\n', 'middle.yaml')
    top = write(tmp_path, 'BASE: middle.yaml\nDATA: {FLIP: 0.5}\n')
    assert load_config(middle).TRAIN.SEED == 3
    config = load_config(top, ['SCHEDULER.BASE_LR=1e-3', 'DATA.TRAIN_SCALE=[0.2, 1]',
                               'TRAIN.VISUALDL=no'])
    assert (config.TRAIN.SEED, config.TRAIN.LOG_EVERY, config.DATA.FLIP) == (3, 2, 0.5)
    assert config.SCHEDULER.BASE_LR == 1e-3 and config.DATA.TRAIN_SCALE == (0.2, 1.0)
    assert config.TRAIN.VISUALDL is False


def test_a_saved_configuration_is_complete_and_reads_back_equal(tmp_path):
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


def test_a_circle_of_bases_ends(tmp_path):
    write(tmp_path, 'BASE: two.yaml\n', 'one.yaml')
    write(tmp_path, 'BASE: one.yaml\n', 'two.yaml')
    assert 'leads back' in refusal(tmp_path / 'one.yaml')


def test_a_missing_file_names_the_nearest_one():
    assert 'config/t2t_vit_7.yaml' in refusal('config/t2t_vit7.yaml')


def test_large_and_binary_files_are_refused(tmp_path):
    assert 'larger than' in refusal(write(tmp_path, '# ' + 'x' * configuration.LARGEST_FILE))
    path = tmp_path / 'binary.yaml'
    path.write_bytes(b'\xff\xfe\x00\x01')
    assert 'cannot be read' in refusal(path)

