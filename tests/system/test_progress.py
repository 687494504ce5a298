"""Catches remaining times that are not the rest divided by the rate."""

import pytest

from system import progress


@pytest.mark.parametrize('seconds, text', [
    (0.4, '0 s'), (89, '89 s'), (90, '2 min'), (3600, '60 min'), (3 * 3600 + 290, '3 h 05 min')])
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: clock[0])
    with progress.Progress('extracting', 10 * 10 ** 9, 'B', lambda: 'half') as shown:
        for second in range(1, 41):
            clock[0] = second
            shown.add(10 ** 8)
    first, second = capsys.readouterr().err.splitlines()
    assert first == 'extracting: 16.0 %, half, 100.0 MB/s, 84 s left'
    assert second == 'extracting: 32.0 %, half, 100.0 MB/s, 68 s left'
