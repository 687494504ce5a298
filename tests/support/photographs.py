"""Photographs that are not part of the project: tests that want them are skipped without."""

from conftest import ROOT

FOLDER = ROOT.parent / 'shared' / 'data' / 'imagenet_lit'


def photograph(stem):
    """The path of a photograph by its name without extension, or None."""
    return next(iter(FOLDER.glob(f'*/*/{stem}.JPEG')), None)
