"""Catches private functions of Paddle outside system/paddle_private.py, or without a fallback."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

HOME = ROOT / 'tools' / 'system' / 'paddle_private.py'
FILES = [path for folder in ('tools', 'lit_data/draw', 'docs', '.')
         for path in (ROOT / folder).glob('*.py' if folder == '.' else '**/*.py') if path != HOME]
# Exceptions: Python's own, and the epsilon of nn.LayerNorm, which has this name in all versions.
PUBLIC = {'_asdict', '_exit', '_replace', '_epsilon'}


def is_private(name):
    return name.startswith('_') and not name.endswith('__') and name not in PUBLIC


def own_names(trees):
    """Return the names that the project defines."""
    found = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


def uses_of_private(tree, own):
    """Yield private names of Paddle, or of an object of unknown type, that a module uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f'{node.module}.{alias.name}' for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
            if is_private(node.attr) and node.attr not in own:
                yield names[0]
        else:
            continue
        for name in names:
            first, *rest = name.split('.')
            if first == 'paddle' and (rest[:1] == ['base'] or any(map(is_private, rest))):
                yield name


def test_private_functions_of_paddle_are_used_in_one_file():
    trees = {path: ast.parse(path.read_text(encoding='utf-8')) for path in FILES}
    own = own_names(trees.values())
    found = {f'{path.relative_to(ROOT)}: {name}'
             for path, tree in trees.items() for name in uses_of_private(tree, own)}
    assert not found, f'move into {HOME.relative_to(ROOT)}: {", ".join(sorted(found))}'


@pytest.mark.parametrize('text', [
    'import paddle.base', 'from paddle.base import core', 'from paddle import base',
    'paddle.base.core.x()', 'paddle.nn._x', 'from paddle.nn import _x', 'tensor._secret()'])
def test_private_names_are_detected(text):
    assert list(uses_of_private(ast.parse(text), own={'_ours'}))
    assert not list(uses_of_private(ast.parse('paddle.nn.Layer; x._ours; x.__class__'), {'_ours'}))


WITHOUT = '''
import sys
from paddle.base import core
for name in sys.argv[1:]:
    delattr(core, name)
from system import distributed, paddle_private, start
for _ in range(2):
    paddle_private.set_num_threads(2)
    paddle_private.global_store()
print('continued')
'''


def test_a_missing_function_is_reported_once():
    names = ['set_num_threads', 'create_or_get_global_tcp_store']
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', WITHOUT, *names],
                          cwd=ROOT / 'tools', capture_output=True, text=True, timeout=60)
    assert done.stdout == 'continued\n', done.stderr
    assert [line.partition(' has no ')[2].partition(':')[0]
            for line in done.stderr.splitlines()] == names
