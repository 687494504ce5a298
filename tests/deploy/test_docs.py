"""Catches commands and programs in docs/deploy.md that fail, and packages that are not listed.

With FRESH_ENVIRONMENT=1 tests/documents.py runs its commands in a new environment, which takes a
quarter of an hour and downloads all packages.
"""

import ast
import os
import re
import subprocess
import sys
import venv

import pytest
from conftest import ROOT

PAGE = (ROOT / 'docs' / 'deploy.md').read_text(encoding='utf-8')
PROGRAM, = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
# {name to import: name to install}, where they differ
INSTALLED_BY = {'PIL': 'pillow', 'cv2': 'opencv-python-headless', 'yaml': 'pyyaml',
                'paddle': 'paddlepaddle'}


def imported(source):
    """Names of the packages outside of the standard library that a program imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition('.')[0])
    known = getattr(sys, 'stdlib_module_names', ())
    return {name for name in found if name not in known}


def required(*names):
    text = '\n'.join((ROOT / name).read_text(encoding='utf-8') for name in names)
    return {name.lower() for name in re.findall(r'^([\w-]+)', text, re.MULTILINE)}


@pytest.mark.skipif(sys.version_info < (3, 10), reason='needs sys.stdlib_module_names')
def test_every_package_that_the_code_imports_is_listed():
    ours = {path.stem for path in (ROOT / 'tools').iterdir()}
    found = set().union(*(imported(path.read_text(encoding='utf-8'))
                          for path in (ROOT / 'tools').rglob('*.py')
                          if path.name != 'benchmark_pytorch.py')) - ours    # has its own
    assert {'multipart', 'waitress', 'paddle2onnx', 'yaml'} <= found
    missing = {INSTALLED_BY.get(name, name) for name in found} - required(
        'requirements.txt', 'requirements-deploy.txt')
    assert not missing


@pytest.mark.skipif(sys.version_info < (3, 10), reason='needs sys.stdlib_module_names')
def test_the_program_of_the_page_imports_three_packages_only():
    assert imported(PROGRAM) == {'numpy', 'PIL', 'onnxruntime'}
    assert len([line for line in PROGRAM.splitlines() if line.strip()]) <= 32


@pytest.mark.parametrize('options', [[], ['--normalise', '--softmax']], ids=['plain', 'whole'])
def test_the_program_of_the_page_agrees_with_predict(tmp_path, options):
    for package in ('paddle2onnx', 'onnx', 'onnxruntime'):
        pytest.importorskip(package)
    model = tmp_path / 'model.onnx'
    run(sys.executable, 'tools/export.py', model, *options)
    (tmp_path / 'classify.py').write_text(PROGRAM, encoding='utf-8')
    photos = sorted((ROOT / 'lit_data' / 'val').rglob('*.JPEG'))[::40]
    said = run(sys.executable, tmp_path / 'classify.py', model, *photos, cwd=tmp_path).splitlines()
    assert len(said) == len(photos)
    wanted = run(sys.executable, 'tools/predict.py', '--weights', model, '--top-k', '1', *photos)
    for line, photo, label, place in zip(said, photos, wanted.splitlines()[::3],
                                         wanted.splitlines()[2::3]):
        path, found, score, name = line.split(' ', 3)
        probability, _, words = place.split(maxsplit=2)
        assert path == str(photo) and label == f'class_id is: {found}' and name == words
        if options:
            assert abs(float(score) - float(probability)) < 2e-4


def run(*command, cwd=ROOT, **options):
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True,
                          timeout=3600, **options)
    assert done.returncode == 0, f'{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}'
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif('FRESH_ENVIRONMENT' not in os.environ, reason='FRESH_ENVIRONMENT=1 is not set')
def test_every_command_runs_in_an_environment_of_the_documented_packages(tmp_path):
    venv.create(tmp_path / 'env', with_pip=True)
    python = tmp_path / 'env' / 'bin' / 'python'
    run(python, '-m', 'pip', 'install', '-q', '-r', 'requirements.txt', '-r',
        'requirements-deploy.txt')
    run(python, 'tests/documents.py', 'docs/deploy.md', '--keep', tmp_path)
    assert (tmp_path / 'deploy' / 'speed.json').is_file()
