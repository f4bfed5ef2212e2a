"""Real-data tests run wherever the clips are found; the environment is the one in which the study runs."""
import os
import pytest
from emotion_study.corpus import find_ravdess
from emotion_study.cli import KERNEL_ENV

os.environ.update({k: KERNEL_ENV[k] for k in ('TF_ENABLE_ONEDNN_OPTS', 'CUDA_VISIBLE_DEVICES', 'TF_CPP_MIN_LOG_LEVEL')})
os.environ['MPLBACKEND'] = 'agg'


def pytest_report_header(config): return f"RAVDESS: {find_ravdess() or 'not found, realdata tests are skipped'}"


def studies_of(item): return [name for mark in item.iter_markers('study') for name in mark.args]


@pytest.fixture(scope='session')
def studies(request, tmp_path_factory):
    "Whole studies; they are begun with the first test of all, and the tests that look at them come last."
    from studies import Lanes
    names = {name for item in request.session.items if not item.get_closest_marker('skip') for name in studies_of(item)}
    lanes = Lanes(names, tmp_path_factory.mktemp('studies'))
    yield lanes
    lanes.stop()


@pytest.fixture(scope='session', autouse=True)
def begin_studies(request):
    if any(map(studies_of, request.session.items)): request.getfixturevalue('studies')


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: bool(studies_of(item)))
    if find_ravdess(): return
    skip = pytest.mark.skip(reason='no RAVDESS on this machine (set EMOTION_STUDY_DATA, or `emotion-study data ravdess`)')
    for item in items:
        if 'realdata' in item.keywords: item.add_marker(skip)
