"""Catches an import that points up, between rooms or between files; names the broken rule."""

import ast
import sys

import pytest
from conftest import ROOT

TOOLS = ROOT / 'tools'

# Lower layers first. A module imports from its own room and from rooms further down, but not from
# its neighbours in a layer, except where EXCEPTIONS says so.
LAYERS = (
    {'common', 'config', 'scheduler', 'system'},
    {'t2t', 'data', 'weights'},
    {'zoo', 'recipe', 'training', 'deploy', 'dataset'},
    {'build'},
    {'train', 'val', 'predict', 'benchmark', 'benchmark_worker', 'check', 'convert', 'export',
     'launch', 'prepare', 'serve', 'visualize'},
)
COMMANDS = LAYERS[-1]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# Who may import a neighbour, or a room higher up, and why.
EXCEPTIONS = {
    ('train', 'val'): 'a training run validates',
    ('config', 'system'): 'system.settings reads and checks what config declares',
    ('data', 'weights'): 'CIFAR is stored as pickles, which weights.unpickle reads without danger',
}
# Rooms further down that a room must not see.
HIDDEN = {
    'data': {'t2t', 'common', 'config'}, 'zoo': {'config', 'data'}, 'recipe': {'config', 'data'},
    't2t': {'config', 'system'}, 'weights': {'config'}, 'training': {'config', 'data'},
    'dataset': {'config', 'weights', 't2t'},
}


def module_name(path):
    parts = path.relative_to(TOOLS).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_name(path): path for path in sorted(TOOLS.rglob('*.py'))}


def room_of(name):
    return name.partition('.')[0]


def imports_of(path):
    """The project's modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f'{node.module}.{alias.name}' if f'{node.module}.{alias.name}' in MODULES
                      else node.module for alias in node.names}
    return {name for name in found if name in MODULES}


def broken_rule(importer, imported):
    """The rule that `importer` breaks by importing the room `imported`, or None."""
    if importer == imported or (importer, imported) in EXCEPTIONS:
        return None
    if importer in COMMANDS and imported in COMMANDS:
        return 'no command imports a command: what two of them share lies in a room'
    if LEVEL[imported] > LEVEL[importer]:
        return 'arrows point down only'
    if LEVEL[imported] == LEVEL[importer]:
        return 'rooms of one layer do not know each other'
    if imported in HIDDEN.get(importer, ()):
        return f'{importer} never imports {imported}'
    return None


@pytest.mark.parametrize('name', sorted(MODULES))
def test_arrows_point_down(name):
    room = room_of(name)
    assert room in LEVEL, f'{name}: give it a place in LAYERS'
    broken = {other: broken_rule(room, room_of(other)) for other in imports_of(MODULES[name])}
    assert not any(broken.values()), '; '.join(
        f'{name} imports {other}: {rule}' for other, rule in broken.items() if rule)


@pytest.mark.parametrize('room', sorted({room_of(name) for name in MODULES if '.' in name}))
def test_no_circle_inside_a_room(room):
    arrows = {name: {other for other in imports_of(path) if room_of(other) == room} - {name}
              for name, path in MODULES.items() if room_of(name) == room}
    while arrows:
        free = [name for name, others in arrows.items() if not others & set(arrows)]
        assert free, f'a circle of imports among {sorted(arrows)}'
        for name in free:
            del arrows[name]


def test_every_room_says_what_it_answers_and_lists_its_files():
    for name, path in MODULES.items():
        if path.name == '__init__.py':
            text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
            assert text.splitlines()[0].endswith('?'), f'{name}: begin with its question'
            for file in path.parent.glob('[!_.]*.*'):
                assert file.stem in text.split() or file.name in text.split(), (
                    f'{name}: does not list {file.name}')


def test_the_check_sees_imports_and_broken_rules():
    assert imports_of(MODULES['t2t']) == {'common'}
    assert 'val' in imports_of(MODULES['train'])
    assert broken_rule('common', 'build') == 'arrows point down only'
    assert 'no command' in broken_rule('val', 'train')


def test_no_module_hides_one_of_python_or_a_dependency():
    known = set(getattr(sys, 'stdlib_module_names', ())) | {
        'paddle', 'numpy', 'yaml', 'PIL', 'cv2', 'visualdl', 'tqdm', 'pytest'}
    assert not known & {room_of(name) for name in MODULES}
