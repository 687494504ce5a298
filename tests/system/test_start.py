"""Catches lost settings of BLAS, memory and strides that Paddle's speed on a CPU depends on."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from system import start

AVX512 = 'avx2 avx512f avx512dq avx512cd avx512bw avx512vl'


@pytest.mark.parametrize('vendor, flags, wanted', [
    ('GenuineIntel', AVX512, None), ('AuthenticAMD', AVX512, '7'),
    ('AuthenticAMD', 'sse4_2 avx avx2', '5'), ('AuthenticAMD', 'avx2 avx512f', '5'),
    ('', '', None)])
def test_mkl_cpu_type_follows_the_flags_of_the_processor(vendor, flags, wanted):
    text = (f'processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: one\nflags\t\t: fpu {flags}\n'
            f'bugs\t\t: none\n\nprocessor\t: 1\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n')
    assert start.mkl_cpu_type(text) == wanted


def faults(preparation):
    """Return the page faults of a process that allocates and frees the same memory repeatedly."""
    script = f'''
import resource
{preparation}
import numpy as np

def work():
    [np.ones(6 << 20) for _ in range(4)]    # 48 MiB each, which glibc maps by default

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
'''
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(('MALLOC_', 'GLIBC_'))}
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True,
                          env=dict(environment, PYTHONPATH=str(ROOT / 'tools')), timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif('CS_GNU_LIBC_VERSION' not in getattr(os, 'confstr_names', ()),
                    reason='only glibc has these options')
def test_freed_memory_is_reused():
    kept = faults('from system.start import keep_freed_memory; keep_freed_memory()')
    given_back = faults('')
    assert kept < given_back / 20


@pytest.mark.parametrize('program, package', [
    ('predict', 'paddle'), ('visualize', 'paddle'), ('prepare', 'numpy')])
def test_a_python_without_packages_is_named(program, package):
    done = subprocess.run([sys.executable, '-S', f'tools/{program}.py'], cwd=ROOT, timeout=60,
                          env={'PATH': os.environ['PATH']}, capture_output=True, text=True)
    line, = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith(f'{sys.executable} has no package {package}: ')


@pytest.mark.parametrize('package, arguments', [
    ('yaml', ['predict.py']), ('tqdm', ['val.py']), ('tqdm', ['prepare.py', '--help']),
    ('matplotlib', ['visualize.py', 'attention']),
    ('visualdl', ['train.py', '-o', 'SCHEDULER.NUM_EPOCHS=1', 'MODEL.IMAGE_SIZE=32'])])
def test_a_python_with_some_packages_is_told_the_next_one(package, arguments, tmp_path):
    """As after `pip install paddlepaddle` alone."""
    (tmp_path / 'sitecustomize.py').write_text(f"""
import importlib.machinery, sys

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == {package!r} else super().find_spec(name, path, target)

sys.meta_path[:] = [finder for finder in sys.meta_path
                    if finder is not importlib.machinery.PathFinder] + [Without]
""")
    if arguments[0] == 'train.py':
        arguments = [*arguments, f'TRAIN.OUTPUT_DIR={tmp_path}/run']
    done = subprocess.run([sys.executable, f'tools/{arguments[0]}', *arguments[1:]], cwd=ROOT,
                          timeout=100, env={**os.environ, 'PYTHONPATH': str(tmp_path)},
                          capture_output=True, text=True)
    assert done.returncode == 2
    assert f'{sys.executable} has no package {package}: ' in done.stderr.splitlines()[-1]
    assert 'Traceback' not in done.stderr


def test_paddle_is_imported_without_its_compiler_which_still_works():
    script = """
import sys
from system import start
start.prepare()
name = 'paddle.utils.cpp_extension.cpp_extension'
assert name not in sys.modules
from paddle.utils.cpp_extension import CppExtension, load
assert name in sys.modules and load.__module__.startswith('paddle.utils.cpp_extension.')
assert [*CppExtension(['a.cc']).sources] == ['a.cc']
module = sys.modules[name]
from system.paddle_private import compiler_on_demand
with compiler_on_demand():    # Paddle is imported already: nothing changes
    import paddle
assert sys.modules[name] is module
"""
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT / 'tools', timeout=60,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_transpose_is_copied_at_once():
    """A view would slow down the following operations."""
    import paddle
    turned = paddle.arange(6).reshape([2, 3]).transpose([1, 0])
    assert turned.is_contiguous() and turned.tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize('number, own', [(0, {3, 5}), (1, {6, 9}), (2, None)])
def test_each_process_claims_cores_of_its_own(monkeypatch, number, own):
    claimed, cores = [], {9, 3, 5, 6}
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: claimed[-1] if claimed else cores)
    monkeypatch.setattr(os, 'sched_setaffinity', lambda pid, mask: claimed.append(mask))
    monkeypatch.setattr(start, 'cpu_quota', lambda: None)
    monkeypatch.setattr(start, '_chosen_threads', '')
    start.claim_cores()
    assert not claimed    # one process
    monkeypatch.setenv('PADDLE_LOCAL_SIZE', '2')
    monkeypatch.setenv('PADDLE_LOCAL_RANK', str(number))
    start.claim_cores()
    assert [set(mask) for mask in claimed] == ([own] if own else [])
    assert start.threads() == 2
