"""The same bytes, however many workers and threads there are, however Python hashes, and in however many batches."""
import os, subprocess, sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from emotion_study import features, media
from emotion_study.core import ROOT
from emotion_study.corpus import load_corpus
from emotion_study.features import read_flags, read_table, write_features
from test_cli import run

WAYS = [(1, '0', 1), (2, '1', 2), (4, '99', 4)]  # workers, PYTHONHASHSEED, threads


@pytest.fixture(scope='module')
def manifest(tmp_path_factory):
    "Nine noises of several lengths, one of which can't be decoded."
    folder, rng = tmp_path_factory.mktemp('clips'), np.random.default_rng(0)
    for i in range(8): sf.write(folder / f'{i}.wav', rng.normal(0, .1, media.SR // 2 * (1 + i % 3)), media.SR)
    (folder / '8.wav').write_text('not a sound')
    (folder / 'clips.csv').write_text('path,emotion\n' + ''.join(f'{i}.wav,happy\n' for i in range(9)))
    return folder / 'clips.csv'


def way(workers, seed, threads, **more):
    "An environment with so many threads, in which Python hashes in its own way."
    return os.environ | dict(PYTHONHASHSEED=seed, OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads)) | more


def test_features_are_the_same_bytes_with_other_workers_hashes_and_threads(manifest, tmp_path):
    tables = []
    for workers, seed, threads in WAYS:
        out = tmp_path / f'{workers}.parquet'
        env = way(workers, seed, threads, EMOTION_STUDY_CACHE=str(tmp_path / f'cache{workers}'))
        done = run('features', manifest, '--jobs', workers, '--out', out, env=env, timeout=900)
        assert done.returncode == 0, done.stderr
        tables.append(out.read_bytes())
    assert tables[0] == tables[1] == tables[2]


PREDICT = ("import sys; sys.path.insert(0, 'tests')\nfrom test_pipeline import toy_table\nfrom emotion_study.training import cross_validate\n"
           "rows = cross_validate(toy_table(), 'actor', 8, models=['late', 'network'], seeds=1, epochs=2, jobs=int(sys.argv[1]))\n"
           "rows.to_parquet(sys.argv[2])")


def test_predictions_are_the_same_with_other_workers_hashes_and_threads(tmp_path):
    tables = []
    for workers, seed, threads in WAYS:
        out = tmp_path / f'{workers}.parquet'
        done = subprocess.run([sys.executable, '-c', PREDICT, str(workers), str(out)], cwd=ROOT, capture_output=True, text=True,
                              env=way(workers, seed, threads, PYTHONPATH=str(ROOT)), timeout=900)
        assert done.returncode == 0, done.stderr
        tables.append(pd.read_parquet(out))
    for other in tables[1:]: pd.testing.assert_frame_equal(tables[0], other, check_exact=True)


# --- batches

def test_a_table_in_batches_has_the_numbers_of_the_whole_one(manifest, tmp_path):
    corpus, how = load_corpus(str(manifest)), dict(jobs=1, cache=tmp_path / 'cache')
    whole = write_features(corpus, tmp_path / 'whole.parquet', **how)
    for batch in (1, 4, 8):
        part = write_features(corpus, tmp_path / f'{batch}.parquet', batch=batch, **how)
        pd.testing.assert_frame_equal(read_table(part), read_table(whole), check_exact=True)
        assert pq.ParquetFile(part).num_row_groups == -(-9 // batch)
        assert read_flags(part).equals(read_flags(whole)) and (~read_flags(part)['valid.voice']).sum() == 1
    again = write_features(corpus, tmp_path / 'again.parquet', batch=4, **how)
    assert again.read_bytes() == (tmp_path / '4.parquet').read_bytes()


def test_no_more_than_a_batch_is_measured_at_once_and_a_fault_leaves_nothing_half(manifest, tmp_path, monkeypatch):
    corpus, sizes, measure = load_corpus(str(manifest)), [], features.feature_table

    def watched(part, **how):
        sizes.append(len(part))
        if len(sizes) == 6: raise OSError(28, 'No space left on device')
        return measure(part, **how)
    monkeypatch.setattr(features, 'feature_table', watched)
    write_features(corpus, tmp_path / 'a.parquet', batch=4, jobs=1, cache=tmp_path / 'cache')
    assert sizes == [4, 4, 1]
    with pytest.raises(OSError): write_features(corpus, tmp_path / 'b.parquet', batch=2, jobs=1, cache=tmp_path / 'cache')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.parquet', 'cache']
