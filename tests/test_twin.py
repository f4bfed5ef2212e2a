"""The shipped twin: same codes and columns, same bytes, stamped, and clear errors where it is missing."""
import json

import numpy as np
import pandas as pd
import pytest

from emotion_study.core import LABEL_COLUMNS, ROOT, SettingError, describe, expected_codes
from emotion_study.corpus import load_corpus
from emotion_study.twin import TWIN, load_twin, shipped_twin
from study_code import definitions
from emotion_study.speech import speech_columns
from emotion_study.features import feature_columns, feature_table, read_table, write_table


@pytest.fixture(scope='module')
def twin(): return shipped_twin()


def test_same_codes_and_columns_as_the_real_table(twin):
    assert twin[list(LABEL_COLUMNS)].equals(pd.DataFrame([describe(c) for c in expected_codes()]))
    assert [c for c in feature_columns(twin, ['voice'])] == speech_columns()
    assert np.isfinite(twin[feature_columns(twin)]).all(axis=None) and twin[['valid.voice', 'valid.face', 'valid.words']].all(axis=None)


def test_a_seed_is_a_draw(twin):
    pd.testing.assert_frame_equal(twin, shipped_twin())
    assert not twin[feature_columns(twin, ['voice'])].equals(shipped_twin(seed=1)[feature_columns(twin, ['voice'])])


def test_it_is_stamped_and_stays_so_on_disk(twin, tmp_path):
    assert twin.attrs['synthetic']
    corpus = load_corpus('twin')
    assert corpus.synthetic and feature_table(corpus).equals(twin)
    assert read_table(write_table(twin, tmp_path / 'twin.parquet')).attrs['provenance']['parameters']['synthetic']


def test_parameters_are_small_and_hold_no_code():
    assert sum(p.stat().st_size for p in TWIN.iterdir()) < 4e6
    with np.load(TWIN / 'twin.npz', allow_pickle=False) as f: assert all(f[k].dtype != object for k in f.files)
    assert json.loads((TWIN / 'twin.json').read_text())['synthetic'] and str(ROOT) not in (TWIN / 'twin.json').read_text()


def test_missing_or_broken_parameters_are_one_clear_error(tmp_path):
    with pytest.raises(SettingError, match='not found'): load_twin(tmp_path)
    for name in ('twin.json', 'twin.npz'): (tmp_path / name).write_bytes(b'{}')
    with pytest.raises(SettingError, match='not a readable twin'): load_twin(tmp_path)


def test_too_small_a_table_is_refused(twin):
    with pytest.raises(SettingError, match='women'): definitions('90_the_twin').fit_twin(twin[twin.actor < 7])


@pytest.mark.realdata
def test_no_real_row_is_in_it(twin):
    real = feature_table(load_corpus('ravdess'))
    assert list(real.columns) == list(twin.columns), 'the shipped twin has the columns of today\'s table'
    columns = feature_columns(real, ['voice', 'face'])
    scale = real[columns].std().to_numpy()
    A, B = real[columns].to_numpy('float64') / scale, twin[columns].to_numpy('float64') / scale
    distance = (A ** 2).sum(1)[:, None] + (B ** 2).sum(1) - 2 * A @ B.T
    assert np.sqrt(distance.min()) > 1
