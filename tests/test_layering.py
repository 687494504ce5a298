"""Who may import whom: arrows point down only."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

TOOLS = ROOT / 'tools'
FILES = {'.'.join(path.relative_to(TOOLS).with_suffix('').parts): path
         for path in sorted(TOOLS.rglob('*.py'))}
MODULES = {name[:-len('.__init__')] if name.endswith('.__init__') else name: path
           for name, path in FILES.items()}
COMMANDS = {name for name, path in MODULES.items() if "__name__ == '__main__'" in path.read_text()}

# What a module may import of the project; a package name stands for all that is in it.
ALLOWED = {
    'config': {'recipe.augment'},    # which alone knows what DATA.AUTO_AUGMENT may say
    'common': set(), 'scheduler': set(), 'drawing': set(), 'recipe': set(),
    'runtime': {'runtime'},
    'attention': set(), 'legacy': set(),
    't2t': {'common'},
    'samples': {'runtime.unpickle'},
    'dataset': {'samples', 'recipe.augment', 'runtime'},
    'zoo.t2t_variants': {'t2t', 'common'}, 'zoo.vit': {'common'}, 'zoo.pit': {'common'},
    'zoo': {'t2t', 'common', 'zoo', 'runtime.weights'},
    'zoo.names': {'zoo', 'runtime.weights'},
    'engines': {'dataset', 'runtime'},
    'build': {'config', 'dataset', 'samples', 'engines', 'zoo', 't2t', 'recipe', 'runtime',
              'scheduler', 'common'},
}
BETWEEN_COMMANDS = {'train': {'val'}, 'measure': {'export', 'train'},
                    'serve': {'predict'}, 'visualize': {'predict'}}


def imports_of(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f'{node.module}.{alias.name}' if f'{node.module}.{alias.name}' in MODULES
                      else node.module for alias in node.names}
    return {name for name in found if name in MODULES}


def covers(allowed, name):
    return any(name == entry or name.startswith(entry + '.') for entry in allowed)


def rule_for(name):
    """The entry of the module itself, else that of the package it lies in."""
    while name not in ALLOWED and '.' in name:
        name = name.rpartition('.')[0]
    return ALLOWED.get(name)


@pytest.mark.parametrize('name', sorted(MODULES))
def test_arrows_point_down(name):
    found = imports_of(MODULES[name])
    if name in COMMANDS:
        forbidden = (found & COMMANDS) - BETWEEN_COMMANDS.get(name, set())
    else:
        rule = rule_for(name)
        assert rule is not None, f'{name} has no place in the layers: give it one in ALLOWED'
        forbidden = {other for other in found if not covers(rule, other)}
    assert not forbidden, f'{name} imports {sorted(forbidden)}'


def test_the_check_sees_imports():
    assert imports_of(MODULES['t2t']) == {'common'}
    assert 'val' in imports_of(MODULES['train'])
    assert {'train', 'val', 'predict'} <= COMMANDS


def test_no_module_hides_one_of_python_or_a_dependency():
    import sys
    known = set(getattr(sys, 'stdlib_module_names', ())) | {
        'paddle', 'numpy', 'yaml', 'PIL', 'cv2', 'visualdl', 'tqdm', 'pytest'}
    assert not known & {Path(path).stem for path in MODULES.values()}
