"""Paths of photographs that are not part of the project; tests that need them are skipped."""

from conftest import ROOT

FOLDER = ROOT.parent / 'shared' / 'data' / 'imagenet_lit'


def photograph(stem):
    """The path of a photograph by its file name without extension; None if it is not there."""
    return next(iter(FOLDER.glob(f'*/*/{stem}.JPEG')), None)
