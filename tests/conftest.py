"""Real-data tests run wherever the clips are found; the environment is the one in which the study runs."""
import os
import pytest
from emotion_study.corpus import find_ravdess
from emotion_study.cli import KERNEL_ENV

os.environ.update({k: KERNEL_ENV[k] for k in ('TF_ENABLE_ONEDNN_OPTS', 'CUDA_VISIBLE_DEVICES', 'TF_CPP_MIN_LOG_LEVEL')})
os.environ['MPLBACKEND'] = 'agg'


def pytest_report_header(config): return f"RAVDESS: {find_ravdess() or 'not found, realdata tests are skipped'}"


def pytest_collection_modifyitems(items):
    if find_ravdess(): return
    skip = pytest.mark.skip(reason='no RAVDESS on this machine (set EMOTION_STUDY_DATA, or `emotion-study data ravdess`)')
    for item in items:
        if 'realdata' in item.keywords: item.add_marker(skip)
