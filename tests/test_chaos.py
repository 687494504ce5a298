"""Short runs of the two commands that try what no table lists, with fixed seeds."""

import pickle

import chaos
import fuzz
import numpy as np
import pytest
from support import mutate

from weights.files import write_weights


def test_five_hundred_changed_files_and_requests_are_read_or_refused(capsys):
    found = fuzz.main(['--seed', '5', '--cases', '500'])
    said = capsys.readouterr().out
    assert not found, said
    rows = {cells[1].strip(): [int(cell) for cell in cells[2:-1]] for cells in (
        line.split('|') for line in said.splitlines()) if cells[2:-1] and cells[2][1].isdigit()}
    cases, read, refused, _, findings = rows['all']
    assert cases >= 500 and refused > 100 and findings == 0
    for name, (cases, read, *_) in rows.items():
        assert read or cases < 30, f'{name}: not one file was whole enough to be read'


@pytest.mark.fresh_interpreter    # chaos.py finds processes by their environment in /proc
def test_a_run_keeps_its_promises_under_faults(tmp_path, capsys):
    world = chaos.World(tmp_path)
    for fault in ('signal', 'newest_checkpoint'):
        result = chaos.one_case(world, seed=1, number=0, fault=fault, kind='plain')
        assert result['problem'] is None and result['codes'], capsys.readouterr().out


# ---- the tools find what is there to be found

class Faulty(fuzz.Lists):
    def read(self, case):
        raise {0: KeyError('x'), 1: ValueError('two\nlines')}[len(case) % 2]


def test_an_undocumented_exception_and_a_message_of_two_lines_are_findings(tmp_path):
    reader = Faulty(tmp_path)
    reader.documented = (ValueError,)
    cases = fuzz.Cases(['lists'], tmp_path)
    for case, said in ((b'', 'KeyError'), (b'x', 'two\\nlines')):
        outcome, problem = cases.run(reader, case)
        assert outcome == 'finding' and said in problem


def test_a_case_follows_from_its_seed_and_number(tmp_path):
    for name in ('one', 'two'):
        (tmp_path / name).mkdir()
    one, two = (fuzz.Cases(['lists', 'cifar'], tmp_path / name) for name in ('one', 'two'))
    first = [one.draw(7, number)[::2] for number in range(60)]
    assert first == [two.draw(7, number)[::2] for number in range(60)]
    assert first != [two.draw(8, number)[::2] for number in range(60)]


@pytest.mark.parametrize('change, whole', [
    (mutate.change_bytes, bytes(99)), (mutate.change_json, b'{"a": [1, {"b": null}]}'),
    (mutate.change_pickle, pickle.dumps({'a': [1, 'x', 2.5]}, 2))])
def test_changes_do_change(change, whole):
    changed = {change(np.random.default_rng(seed), whole) for seed in range(50)}
    assert len(changed) > 25


def finished(folder, weights, step):
    """A run's folder as `differences` looks at it."""
    folder.mkdir()
    write_weights(folder / 'last.pdparams', {'a': np.full(2, weights)}, {'data': str(folder)})
    chaos.Checkpoints(folder / 'checkpoints').save(step, {'network/a': np.zeros(2)},
                                                   {'position': {'epoch': 0, 'step': step}})
    (folder / 'train.log').write_text('Epoch [0/2]')
    (folder / 'log.jsonl').write_text('{"event": "end", "elapsed": 3}\n')
    return folder


def test_runs_that_differ_are_found_to_differ(tmp_path):
    one, same = (finished(tmp_path / name, 1.0, 3) for name in ('one', 'same'))
    assert chaos.differences(one, same, metadata=False) == []
    assert chaos.differences(one, same) == ['last.pdparams differs']
    (same / 'train.log').write_text('Epoch [1/2]')
    assert chaos.differences(one, same, metadata=False) == ['train.log differs']
    assert chaos.differences(one, same, logs=False, metadata=False) == []
    other = finished(tmp_path / 'other', 2.0, 4)
    assert chaos.differences(one, other, metadata=False) == [
        'a of last.pdparams differs', 'the newest checkpoints have other positions']


def test_a_checkpoint_that_is_older_than_it_says_is_found(tmp_path):
    folder = finished(tmp_path / 'run', 1.0, 9)
    chaos.check_checkpoints(folder)
    chaos.Checkpoints(folder / 'checkpoints').save(5, {'network/a': np.zeros(2)},
                                                   {'position': {'epoch': 0, 'step': 5}})
    with pytest.raises(chaos.Broken, match='not the newest'):
        chaos.check_checkpoints(folder)
