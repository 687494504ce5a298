"""The shell commands of README.md and docs/: found, adapted to a laptop, and run.

Python programs among the code blocks count as commands. All run in a copy of the project's tracked
files, beside small data and random weights under the names that the pages use. This module needs
the standard library only, so that any environment can run them.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = ['README.md', *sorted(f'docs/{path.name}' for path in (ROOT / 'docs').glob('*.md')),
         'log/README.md']
PROGRAMS = ('bash ', 'python ', 'pip ', 'source ', 'visualdl ', 'curl ', 'for ', 'head ', 'awk ',
            'rm ', 'check-jsonschema ', 'pre-commit ')
SECONDS = 1800    # for one command

# Commands that are not run, and why.
NOT_RUN = {
    'source .venv/bin/activate': 'is for a shell that one types in',
    'pip install -r requirements-deploy.txt':
        'installs from the Internet; tests/deploy/test_docs.py does it with FRESH_ENVIRONMENT=1',
    'visualdl --logdir output': 'is the server of another project',
    'pip install check-jsonschema pre-commit': 'installs from the Internet',
    'python tools/val.py --weights published:all -c config/t2t_vit_7.yaml -o \\\n'
    '    DATA_PATH.VAL_DATASET_PATH=/data/ILSVRC2012/val DATA_PATH.VAL_DATASET_LABEL_PATH=':
        'downloads; tests/zoo/test_published.py does it on this machine',
    **{text: 'needs packages that are not in the requirements' for text in (
        'check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/test.yml',
        'check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff',
        'pre-commit validate-config')},
}

# What is changed in a command before it is run: pattern, replacement. All else runs as written.
FEW_IMAGES = ' '.join(f'DATA_PATH.{part.upper()}_DATASET_PATH=data/ILSVRC2012/{part} '
                      f'DATA_PATH.{part.upper()}_DATASET_LABEL_PATH=data/ILSVRC2012/{part}.txt'
                      for part in ('train', 'val'))
SHORT = ('MODEL.IMAGE_SIZE=32 TRAIN.TRAIN_BATCH_SIZE=4 SCHEDULER.NUM_EPOCHS=1 '
         'SCHEDULER.WARMUP_EPOCHS=0')
ADAPTED = [
    (r'(?<=[ =])/data/', 'data/'),    # small folders stand there
    (r'--gpus [\d,]+,\d+', '--nproc 2'),
    (r'--gpus \d+', '--nproc 1'),
    # Options that come later win: what a page sets itself stays.
    (r'(scripts/train\.sh config/t2t_vit_7(_\w+)?\.yaml)', rf'\1 -o {SHORT} {FEW_IMAGES}'),
    (r'(scripts/train\.sh)$', rf'\1 -o {SHORT} {FEW_IMAGES}'),
    (r'(scripts/train\.sh config/finetune\.yaml)', rf'\1 -o {SHORT}'),
    (r'(-c config/tiny_imagenet_50_32px\.yaml -o)', rf'\1 {SHORT}'),
    (r'(scripts/test\.sh)$', r'\1 tests/test_scheduler.py'),
    (r'(tests/documents\.py)$', r'\1 docs/configuration.md'),
    (r'(draw/scene\.py)$', r'\1 --out data/drawn --train 4 --val 1'),
    (r'--minutes \d+', '--minutes 0.2'),
    (r'(tests/million\.py)', r'\1 --images 60000'),
    (r'(tools/benchmark\.py)', r'\1 --rounds 1 --repeats 1'),
    (r'--rounds \d --repeats \d', '--rounds 1 --repeats 1'),
    (r'--engines pytorch(?:,inference)?((?:.|\n)*) --pytorch PYTHON', r'--engines paddle\1'),
    (r'(--out output/experiment)$', rf'\1 -o {SHORT}'),
    (r'_epochs5', '_epochs1'),    # those of SHORT
    (r'(tools/prepare\.py (?:imagenet|verify|cifar10).*)', r'\1 --unpublished'),
    (r'--out /?data/ILSVRC2012', '--out data/new'),    # images stand there for the other commands
    (r'--classes 100?\b', '--classes 4'),    # of the 8 that stand there
    (r'--images 50', '--images 2'),
    (r'(full_scale\.py steps .*)', r'\1 --train 2000 --val 1000'),
    (r'(full_scale\.py speed .*)', r'\1 --count 16 --decoded 4'),
    (r' --images /?data/photographs', ''),
    (r'path/of/this/folder', '.'),
    (r'MODEL\.NAME=my_net', 'MODEL.NAME=t2t_vit_7'),
    (r'-k NAME', '-k lit_data'),
]

# Weights that the pages name and the project does not ship, by their networks.
WEIGHTS = {'71.7_T2T_ViT_7.pth.tar': 't2t_vit_7', '81.5_T2T_ViT_14.pth.tar': 't2t_vit_14',
           't2t_vit_7.pdparams': 't2t_vit_7'}
# Names of published weights, and their files in $T2T_CACHE, which is the workspace.
PUBLISHED = {'published:t2t_vit_7 ': '71.7_T2T_ViT_7.pth.tar'}


@dataclass
class Command:
    """A command of a page: its text without comments, and the output that the page shows."""

    page: str
    line: int
    text: str
    shown: list = field(default_factory=list)

    @property
    def adapted(self):
        """The text as it is run."""
        text = self.text
        for pattern, replacement in ADAPTED:
            text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
        return text

    @property
    def not_run(self):
        """Why the command is not run; empty if it is."""
        cpu = Path('/proc/cpuinfo')
        if 'bfloat16' in self.text and not (
                cpu.exists() and 'avx512_bf16' in cpu.read_text(encoding='utf-8')):
            return 'needs a processor that multiplies bfloat16'
        return NOT_RUN.get(self.text, '')

    @property
    def name(self):
        """The text on one line."""
        return re.sub(r'\s*\\?\n\s*', ' ', self.text)


def read(page):
    return (ROOT / page).read_text(encoding='utf-8')


def blocks(text):
    """Code blocks of a page, split at empty lines: (number of the first line, lines).

    Indented ones, and those between fences that name no other language than the shell's.
    """
    found, fence, last = [], None, None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith('```'):
            fence, last = (line[3:].strip() if fence is None else None), None
        elif line.strip() and (line.startswith('    ') if fence is None
                               else fence in ('', 'sh', 'bash')):
            if last != number - 1:
                found.append((number, []))
            found[-1][1].append(line)
            last = number
    return [(number, textwrap.dedent('\n'.join(lines)).splitlines()) for number, lines in found]


def statements(lines):
    """Split lines into whole shell commands: (index of the first line, text without comments)."""
    pending, first = [], 0
    for index, line in enumerate(lines):
        pending.append(re.sub(r'(^|\s+)#\s.*', '', line))
        text = '\n'.join(pending)
        loops = [len(re.findall(rf'^\s*{word}\b', text, re.MULTILINE)) for word in ('for', 'done')]
        if not line.endswith('\\') and loops[0] == loops[1]:
            yield first, text
            pending, first = [], index + 1


def commands(pages=tuple(PAGES)):
    """All commands of some pages, in their order; one that comes again is found once."""
    found = {}
    for page in pages:
        text = read(page)
        here = []
        for number, lines in blocks(text):
            if lines[0].startswith('$ '):
                starts = [i for i, line in enumerate(lines) if line.startswith('$ ')]
                for start, end in zip(starts, [*starts[1:], len(lines)]):
                    length = next(i for i in range(start, end) if not lines[i].endswith('\\')) + 1
                    (_, command), = statements([lines[start][2:], *lines[start + 1:length]])
                    here.append(Command(page, number + start, command, lines[length:end]))
            elif lines[0].startswith(PROGRAMS):
                here += [Command(page, number + first, command)
                         for first, command in statements(lines)]
            elif lines[0].startswith('import '):    # a program
                source = '\n'.join(lines)
                here.append(Command(page, number, f"python - <<'END'\n{source}\nEND"))
        prose = re.sub(r'^```.*?^```$|^    [^\n]*', lambda code: '\n' * code[0].count('\n'), text,
                       flags=re.MULTILINE | re.DOTALL)
        here += [Command(page, prose.count('\n', 0, match.start()) + 1, ' '.join(match[1].split()))
                 for match in re.finditer(r'`([^`]+)`', prose) if match[1].startswith(PROGRAMS)]
        for command in here:
            first = found.setdefault(command.text, command)
            first.shown = first.shown or command.shown
    return list(found.values())


# ---- the folder in which they run

def project_files():
    """The tracked files; without git, all but what set-up, runs and Python write."""
    if shutil.which('git'):
        done = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
        if done.returncode == 0:    # not those that were deleted and are not committed
            return [name for name in done.stdout.split('\0') if (ROOT / name).is_file()]
    files = (path.relative_to(ROOT) for path in ROOT.rglob('*') if path.is_file())
    return [path.as_posix() for path in files
            if not {'.git', '.venv', '__pycache__'} & set(path.parts)
            and (path.parts[0] != 'output' or len(path.parts) == 2)]


def workspace(folder, python=sys.executable):
    """A copy of the tracked files with the data and weights that the pages name; returns `folder`.

    A copy and no links, because some commands write over files that are part of the project.
    """
    folder = Path(folder)
    for name in project_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    photo, = (ROOT / 'lit_data').glob('val/*/lit_val_00000097.JPEG')
    for name in ('photo.jpg', 'a.jpg', 'b.png', 'folder/a.jpg', 'scans/a.png'):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(photo, folder / name)
    labels = dict(line.rsplit(' ', 1) for line in
                  (ROOT / 'lit_data' / 'train.txt').read_text(encoding='utf-8').splitlines())
    wordnet = sorted(path.name for path in (ROOT / 'lit_data' / 'train').iterdir())
    for data in ('data/ILSVRC2012', 'tiny_imagenet_50'):
        for part in ('train', 'val'):
            names = draw_images(folder / data / part, wordnet[:4])
            lines = [f'{name} {labels[name]}\n' for name in names]
            (folder / data / f'{part}.txt').write_text(''.join(lines), encoding='utf-8')
    for data in ('data/flowers/train', 'data/flowers/val', 'data/flowers/all', 'cifar/train',
                 'cifar/test'):
        draw_images(folder / data, ['daisy', 'lily', 'poppy', 'rose', 'tulip'])
    # As published, with one image for each of the 200 classes.
    for line in (ROOT / 'config' / 'imagenet_classes.txt').read_text(
            encoding='utf-8').splitlines()[::5]:
        name = folder / 'data/imagenet-a' / line.split()[0] / 'image.jpg'
        name.parent.mkdir(parents=True, exist_ok=True)
        name.symlink_to(photo)
    program, = re.findall(r'```python\n(.*?)```', read('docs/deploy.md'), re.DOTALL)
    (folder / 'classify.py').write_text(program, encoding='utf-8')
    # The commands are written for `python`; the scripts take PYTHON.
    (folder / 'bin').mkdir(exist_ok=True)
    (folder / 'bin' / 'python').write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
    (folder / 'bin' / 'python').chmod(0o755)
    return folder


def draw_images(folder, classes, count=8):
    """Fill class folders with the first images of lit_data; returns their paths in `folder`."""
    names = []
    for name, source in zip(classes, sorted((ROOT / 'lit_data' / 'train').iterdir())):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for image in sorted(source.iterdir())[:count]:
            shutil.copy(image, folder / name / image.name)
            names.append(f'{name}/{image.name}')
    return names


def make_weights(command, folder, environment):
    """Write the published weights that a command names, with random values."""
    text = f' {command.text}'.replace('=', ' ')
    for name, file in PUBLISHED.items():
        text = text.replace(name, f'{file} ')
    for name, network in WEIGHTS.items():
        if f' {name}' in text and not (folder / name).exists():
            shell(f'python -c "import sys; sys.path.insert(0, \'tools\'); import paddle, zoo; '
                  f'paddle.save(zoo.create_model(\'{network}\').state_dict(), \'{name}\')"',
                  folder, environment)


def make_downloads(command, folder, environment):
    """Write small archives of ImageNet and CIFAR-10 if a command names them."""
    if 'data/downloads' in command.adapted and not (folder / 'data' / 'downloads').exists():
        shell('python tests/support/imagenet.py data/downloads --classes 8 --train 48 --val 16',
              folder, environment)
    archive = 'data/cifar-10-python.tar.gz'
    if archive in command.adapted and not (folder / archive).exists():
        shell(f'python -c "import sys; sys.path.insert(0, \'tests\'); from support.cifar import '
              f'write_cifar_10; write_cifar_10(\'{archive}\')"', folder, environment)


# ---- running them

class Failure(AssertionError):
    """A command that did not do what its page says."""


def run(command, folder, questions=()):
    """Run a command in a workspace and compare what it prints with what its page shows.

    A service is started, asked the `questions` (curl commands), and ended. Raises Failure.
    """
    environment = dict(os.environ, PYTHON=f'{folder}/bin/python', T2T_CACHE=str(folder),
                       PATH=f'{folder}/bin{os.pathsep}{os.environ["PATH"]}')
    environment.pop('PYTHONPATH', None)
    make_weights(command, folder, environment)
    make_downloads(command, folder, environment)
    if 'tools/serve.py' in command.text:
        serve(command, folder, environment, questions)
        return
    printed = shell(command.adapted, folder, environment)
    if command.shown and command.adapted == command.text:
        compare(command.shown, printed.splitlines())


def shell(text, folder, environment):
    """Run a command in bash; returns its standard output, raises Failure unless it ends with 0."""
    process = subprocess.Popen(['bash', '-c', text], cwd=folder, env=environment, text=True,
                               start_new_session=True, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        printed, errors = process.communicate(timeout=SECONDS)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise Failure(f'took longer than {SECONDS} s') from None
        raise
    if process.returncode:
        raise Failure(f'exit code {process.returncode}\n{printed[-2000:]}{errors[-2000:]}')
    return printed


def compare(shown, printed):
    """Raise Failure unless the lines are the same, differences (such as 5.7e-06) aside."""
    shown, printed = ([re.sub(r'\d\.\d+e[-+]\d\d', 'N', line.rstrip()) for line in lines]
                      for lines in (shown, printed))
    if shown != printed:
        raise Failure('\n'.join(['the page shows', *shown, 'and it prints', *printed]))


def serve(command, folder, environment, questions):
    """Start a service on a free port, ask it, and end it, which must give exit code 0."""
    with socket.create_server(('127.0.0.1', 0)) as probe:
        port = probe.getsockname()[1]
    log = folder / 'serve.log'
    with open(log, 'w', encoding='utf-8') as file:
        process = subprocess.Popen(['bash', '-c', f'exec {command.adapted} --port {port}'],
                                   cwd=folder, env=environment, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{port}/health', timeout=60).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Failure(log.read_text(encoding='utf-8')) from None
                time.sleep(0.2)
        for question in questions:
            shell(question.text.replace(':8000', f':{port}').replace('curl', 'curl -sSf', 1),
                  folder, environment)
    finally:
        process.terminate()
        code = process.wait(60)
    if code:
        raise Failure(f'exit code {code} after SIGTERM\n{log.read_text(encoding="utf-8")}')
