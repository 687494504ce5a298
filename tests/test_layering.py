"""Catches imports that break the layering of packages and modules; names the broken rule."""

import ast
import sys

import pytest
from conftest import ROOT

TOOLS = ROOT / 'tools'

# Lower layers first. A module may import from its own package and from lower layers, but not from
# other packages of its layer, apart from EXCEPTIONS.
LAYERS = (
    {'benchmark_protocol', 'common', 'config', 'scheduler', 'system'},
    {'t2t', 'data', 'weights'},
    {'zoo', 'recipe', 'training', 'deploy', 'dataset', 'figures'},
    {'build'},
    {'train', 'val', 'predict', 'benchmark', 'benchmark_pytorch', 'benchmark_worker', 'check',
     'compare', 'convert', 'export', 'launch', 'prepare', 'serve', 'visualize'},
)
COMMANDS = LAYERS[-1]
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}
# (importer, imported): reason
EXCEPTIONS = {
    ('train', 'val'): 'a training run validates',
    ('config', 'system'): 'system.settings reads and checks the keys that config declares',
    ('data', 'weights'): 'CIFAR is stored as pickles, which weights.unpickle reads safely; cached '
                         'indexes are written with weights.writer',
}
# Lower packages that a package must not import.
HIDDEN = {
    'data': {'t2t', 'common', 'config'}, 'zoo': {'config', 'data'}, 'recipe': {'config', 'data'},
    't2t': {'config', 'system'}, 'weights': {'config'}, 'training': {'config', 'data'},
    'dataset': {'config', 'weights', 't2t'}, 'figures': {'config', 'data', 'weights'},
}


def module_name(path):
    parts = path.relative_to(TOOLS).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_name(path): path for path in sorted(TOOLS.rglob('*.py'))}


def package_of(name):
    return name.partition('.')[0]


def imports_of(path):
    """Return the project's modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f'{node.module}.{alias.name}' if f'{node.module}.{alias.name}' in MODULES
                      else node.module for alias in node.names}
    return {name for name in found if name in MODULES}


def broken_rule(importer, imported):
    """Return the rule that `importer` breaks by importing the package `imported`, or None."""
    if importer == imported or (importer, imported) in EXCEPTIONS:
        return None
    if importer in COMMANDS and imported in COMMANDS:
        return 'no command imports a command: move shared code into a package'
    if LEVEL[imported] > LEVEL[importer]:
        return 'imports go to lower layers only'
    if LEVEL[imported] == LEVEL[importer]:
        return 'packages of one layer do not import each other'
    if imported in HIDDEN.get(importer, ()):
        return f'{importer} never imports {imported}'
    return None


@pytest.mark.parametrize('name', sorted(MODULES))
def test_imports_follow_the_layers(name):
    package = package_of(name)
    assert package in LEVEL, f'{name}: add it to LAYERS'
    broken = {other: broken_rule(package, package_of(other)) for other in imports_of(MODULES[name])}
    assert not any(broken.values()), '; '.join(
        f'{name} imports {other}: {rule}' for other, rule in broken.items() if rule)


@pytest.mark.parametrize('package', sorted({package_of(name) for name in MODULES if '.' in name}))
def test_no_circular_imports_inside_a_package(package):
    imports = {name: {other for other in imports_of(path) if package_of(other) == package} - {name}
              for name, path in MODULES.items() if package_of(name) == package}
    while imports:
        free = [name for name, others in imports.items() if not others & set(imports)]
        assert free, f'circular imports among {sorted(imports)}'
        for name in free:
            del imports[name]


def test_every_package_states_its_question_and_lists_its_files():
    for name, path in MODULES.items():
        if path.name == '__init__.py':
            text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
            assert text.splitlines()[0].endswith('?'), f'{name}: begin with its question'
            for file in path.parent.glob('[!_.]*.*'):
                assert file.stem in text.split() or file.name in text.split(), (
                    f'{name}: does not list {file.name}')


def test_broken_rules_are_detected():
    assert imports_of(MODULES['t2t']) == {'common'}
    assert 'val' in imports_of(MODULES['train'])
    assert broken_rule('common', 'build') == 'imports go to lower layers only'
    assert 'no command' in broken_rule('val', 'train')


def test_no_module_has_the_name_of_a_dependency():
    known = set(getattr(sys, 'stdlib_module_names', ())) | {
        'paddle', 'numpy', 'yaml', 'PIL', 'cv2', 'simplejpeg', 'visualdl', 'tqdm', 'pytest'}
    assert not known & {package_of(name) for name in MODULES}
