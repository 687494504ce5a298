"""Catches pages with commands that fail, output that is not printed, files or keys that are gone.

tests/documents.py runs all commands; here the quick ones run.
"""

import re

import pytest
from conftest import ROOT
from support import documents

import config

FILES = documents.project_files()
# Every file of the project and every folder that holds one.
PATHS = {'/'.join(name.split('/')[:depth]) for name in FILES for depth in range(1, 9)}
COMMANDS = {command.text: command for command in documents.commands()}
# Of a few seconds each, and needing no other one's files.
QUICK = [
    'python tools/predict.py',
    'python tools/export.py output/exported',
    'python tools/convert.py output/t2t_vit_7_lit_data.pdparams t2t_vit_7.pth',
]
# Files that commands write or read, and those of the official code.
OTHERS = {'classify.py', 'speed.json', 'inference.yml', 'inference.json', 'config.yaml',
          'config.json', 'train.log', 'log.jsonl', 'chaos.jsonl', 'other.yaml', 'curves.svg',
          'prepare.jsonl', 'classes.txt', 'imagenet100_train.txt', 'imagenet100_val.txt',
          'main.py', 'transfer_learning.py', 'real.json'}
OPTIONS_OF_OTHERS = {'--data-binary', '--logdir', '--builtin-schema'}
# Scripts, configurations and requirements, whose comments name files and keys, too.
COMMENTED = [name for name in FILES
             if re.fullmatch(r'scripts/.*|config/.*\.yaml|requirements.*', name)]
DATA = ('data/', 'tiny_imagenet_50/', 'cifar/')


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
    return documents.workspace(tmp_path_factory.mktemp('documents'))


@pytest.mark.parametrize('text', QUICK)
def test_quick_commands_do_and_print_what_their_page_says(text, workspace):
    documents.run(COMMANDS[text], workspace)


def test_every_line_that_looks_like_a_command_is_one():
    """A second, simpler way to find them: by their lines."""
    found = {(command.page, line.strip()) for page in documents.PAGES
             for command in documents.commands([page]) for line in command.text.splitlines()}
    looks = re.compile(r'^ +(?:\$ )?((?:bash|python|pip|curl) (?!-).*)', re.MULTILINE)
    looking = [(page, re.sub(r'\s+#\s.*', '', line.strip()))
               for page in documents.PAGES for line in looks.findall(documents.read(page))]
    assert len(looking) > 40
    assert [line for line in looking if line not in found] == []


def test_what_is_not_run_or_changed_is_there():
    assert [text for text in documents.NOT_RUN if text not in COMMANDS] == []
    assert [pattern for pattern, _ in documents.ADAPTED
            if not any(re.search(pattern, text, re.MULTILINE) for text in COMMANDS)] == []
    assert [name for name in documents.WEIGHTS
            if not any(name in text for text in COMMANDS)] == []
    # A command with a gap can't be typed.
    assert [text for text in COMMANDS if '...' in text or 'KEY=VALUE' in text] == []


def test_the_readme_is_the_same_in_both_languages():
    """Its commands and their output, its links, and the figures of its tables."""
    def facts(page):
        text = documents.read(page)
        block = [re.sub(r'\s+# .*', '', line)
                 for line in re.findall(r'^    .*', text, re.MULTILINE)]
        links = re.findall(r'\]\(([^)]*)\)', text)
        figures = [re.findall(r'\d+(?:[.,]\d+)*', row)
                   for row in re.findall(r'^\|.*', text, re.MULTILINE)]
        return block, sorted(link for link in links if 'README' not in link), figures

    english, chinese = facts('README.md'), facts('README_cn.md')
    assert all(map(len, english))
    assert chinese == english


@pytest.mark.parametrize('page', documents.PAGES + COMMENTED)
def test_the_files_that_a_page_names_are_there(page):
    text = documents.read(page)
    files = re.findall(r'(?<![\w/.$}:*-])((?:\.?[\w-]+/)*[\w.-]+\.'
                       r'(?:py|sh|ya?ml|md|txt|svg|jsonl?|log|npz))\b(?!\()', text)
    folders = re.findall(r'(?<![\w/.-])((?:tools|tests|config|docs|scripts|lit_data)/[\w/]*\w)'
                         r'(?![\w.*/{$])', text)
    assert [name for name in {*files, *folders} if not is_there(name)] == []


def is_there(name):
    """Whether a file or folder is part of the project, of the official code, or of a command.

    A name without folders may lie in any, one that begins with _ is the end of a longer name, and
    NAME stands for any.
    """
    end = name if name[0] == '_' else f'/{name}'
    return ('NAME' in name or name in PATHS | OTHERS or name.startswith(('output/', *DATA))
            or any(path.endswith(end) for path in FILES))


@pytest.mark.parametrize('page', documents.PAGES + COMMENTED)
def test_the_keys_that_a_page_names_are_declared(page):
    sections = config.Config()
    for section, key in re.findall(r'\b([A-Z][A-Z_]+)\.([A-Z][A-Z_]+)\b', documents.read(page)):
        if section != 'SECTION':
            assert hasattr(getattr(sections, section, None), key), f'{section}.{key}'


@pytest.mark.parametrize('page', documents.PAGES)
def test_the_options_that_a_page_names_are_declared(page):
    declared = {option for name in FILES if name.endswith('.py') for option in re.findall(
        r"'(--[a-z-]+)'", (ROOT / name).read_text(encoding='utf-8'))}
    named = set(re.findall(r'(?<![\w-])--[a-z][a-z-]+\b', documents.read(page)))
    assert sorted(named - declared - OPTIONS_OF_OTHERS) == []


@pytest.mark.parametrize('page', documents.PAGES)
def test_links_between_pages_lead_somewhere(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', documents.read(page)):
        if not link.startswith('http'):
            path, _, anchor = link.partition('#')
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), link
            headings = re.findall(r'^#+ (.*)', target.read_text(encoding='utf-8') if anchor else '',
                                  re.MULTILINE)
            assert not anchor or anchor in [
                re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings]


def test_readme_is_short():
    assert len(documents.read('README.md').encode()) <= 10 * 1024
