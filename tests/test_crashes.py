"""Power cuts: kill -9 at ten random points, each time resumed; in the end the same bytes.

Of `features` and of `predict` on 200 clips, and of a small study."""
import json, os, shutil, signal, time
from collections import Counter
from pathlib import Path

import nbformat, nbformat.v4 as v4
import numpy as np
import pytest
import soundfile as sf

from emotion_study.core import read_record
from test_faults import STOPPED
from test_pipeline import toy_table
from warm import forked_runs

RATE, KILLS = 16_000, 10
ONE = {k: '1' for k in ('LOKY_MAX_CPU_COUNT', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS')}

pytestmark = pytest.mark.skipif(
    not hasattr(os, 'fork'), reason='this system has no processes that fork')


# --- runs, and what they keep

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    with forked_runs(tmp_path_factory.mktemp('runs'), ONE) as runs: yield runs


def recordings(folder, n, seconds):
    "Short sounds, each another one, and a table of them."
    folder.mkdir()
    t = np.arange(round(seconds * RATE)) / RATE
    for i in range(n):
        sound = .3 * np.sin(2 * np.pi * (150 + i) * t) * (1 + .5 * np.sin(20 * t))
        sf.write(folder / f'{i:03d}.wav', sound, RATE)
    rows = ''.join(f'{i:03d}.wav,sad\n' for i in range(n))
    (folder / 'clips.csv').write_text('path,emotion\n' + rows)
    return folder


def entries(folder): return list(folder.rglob('*.npz'))
def stamps(folder): return {p: p.stat().st_mtime_ns for p in entries(folder)}


def killed_again_and_again(runs, n, kept_in, seed, *words, **how):
    "One run that is killed soon after so many entries of n are kept, and begun again."
    rng, counts, known = np.random.default_rng(seed), [], {}
    for point in sorted(rng.choice(np.arange(1, n), KILLS, replace=False)):
        run = runs.begin(*words, **how)
        while len(entries(kept_in)) < point and run.is_running(): time.sleep(.01)
        time.sleep(rng.uniform(0, .02))
        runs.cut_power(run)
        kept = stamps(kept_in)
        assert all(kept[p] == when for p, when in known.items()), 'what is kept is not made again'
        known, counts = kept, [*counts, len(kept)]
    print('kept at each kill:', *counts)
    return known


def redone(log, n, kills):
    "How much work was begun twice: at each kill what was in hand, and nothing else."
    times = Counter(log.read_text().split())
    print('begun again:', sum(times.values()) - n)
    return len(times) == n and sum(times.values()) - n <= kills


# --- features and predictions of a folder

def test_features_killed_at_ten_random_points(runs, tmp_path):
    "With one process a chunk is a clip: no more than one is measured again after each kill."
    n, kept_in = 200, tmp_path / 'cache'
    here = recordings(tmp_path / 'clips', n, .1)
    words = ['features', here / 'clips.csv', '--jobs', 1, '--out']
    whole, cut = tmp_path / 'whole.parquet', tmp_path / 'cut.parquet'
    how = dict(log=tmp_path / 'log', EMOTION_STUDY_CACHE=tmp_path / 'other')
    runs.to_the_end(*words, whole, **how)
    assert redone(tmp_path / 'log', n, 0)
    how = dict(log=tmp_path / 'again', EMOTION_STUDY_CACHE=kept_in)
    known = killed_again_and_again(runs, n, kept_in, 1, *words, cut, **how)
    assert not cut.exists(), 'a table is there when it is whole'
    runs.to_the_end(*words, cut, **how)
    kept = stamps(kept_in)
    assert len(kept) == n and all(kept[p] == when for p, when in known.items())
    assert redone(tmp_path / 'again', n, KILLS)
    assert cut.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.rglob('*.part')), 'what killed runs left is gone'


def test_predict_killed_at_ten_random_points(runs, tmp_path):
    n, kept_in = 200, tmp_path / 'cache' / 'predict'
    words = ['predict', recordings(tmp_path / 'clips', n, .4), '--channels', 'voice', '--out']
    whole, cut, good = tmp_path / 'whole.csv', tmp_path / 'cut.csv', (0, 2, 3)
    runs.to_the_end(*words, whole, good=good, EMOTION_STUDY_CACHE=tmp_path / 'other')
    how = dict(log=tmp_path / 'log', EMOTION_STUDY_CACHE=tmp_path / 'cache')
    known = killed_again_and_again(runs, n, kept_in, 2, *words, cut, **how)
    runs.to_the_end(*words, cut, good=good, **how)
    kept = stamps(kept_in)
    assert len(kept) == n and all(kept[p] == when for p, when in known.items())
    assert redone(tmp_path / 'log', n, KILLS)
    assert cut.read_bytes() == whole.read_bytes()


# --- a study

TRAINS = """
import pandas as pd
from emotion_study import metrics, training
from emotion_study.core import check_parameters, open_report

check_parameters(globals(), 'out')
folder = open_report('01_trains', out)
---
kept, log = training.kept_bytes, folder.parent / f'{{folder.name}}.log'

def asked(entry):
    data = kept(entry)
    if data is None:
        with log.open('a') as file: file.write(f'{{entry.stem}}\\n')
    return data

training.kept_bytes = asked
---
rows = training.cross_validate(
    pd.read_parquet({table!r}), 'actor', 8, 'inductive', [('linear', 'voice')], seeds={seeds},
    jobs=1, progress=True)
training.save_predictions(folder, rows)
metrics.save_results(folder, metrics.result_entries(rows, '01_trains'), '01_trains').name
"""

def notebook(path, code):
    "A small study notebook."
    cells = [v4.new_markdown_cell(f'# {path.stem}'), v4.new_code_cell("out = ''"),
             *(v4.new_code_cell(text.strip()) for text in code.split('---\n'))]
    cells[1].metadata['tags'] = ['parameters']
    nbformat.write(v4.new_notebook(cells=cells), path)


def made(folder):
    "The tables of a report, and the names of its other files: those tell times of their own."
    tables = ('predictions.parquet', 'results.json', 'digests.json')
    files = [p for p in sorted(folder.rglob('*')) if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.name in tables else b''
            for p in files}


def test_a_study_killed_at_ten_random_points(runs, tmp_path):
    "With one process a chunk is a fold: no more than one is computed again after each kill."
    seeds, home, out = 10, tmp_path / 'study', tmp_path / 'reports' / 'report'
    home.mkdir(), out.parent.mkdir()
    toy_table().to_parquet(tmp_path / 'table.parquet')
    table = str(tmp_path / 'table.parquet')
    notebook(home / '01_trains.ipynb', TRAINS.format(table=table, seeds=seeds))
    words = ['study', '--corpus', 'twin', '--out', out]
    runs.to_the_end(*words, study=home, EMOTION_STUDY_CACHE=tmp_path / 'other')
    whole, log = made(out), out.with_name('report.log')
    n = len(log.read_text().split())
    assert redone(log, n, 0)
    log.unlink(), shutil.rmtree(out)
    how = dict(study=home, EMOTION_STUDY_CACHE=tmp_path / 'cache')
    kept_in = tmp_path / 'cache' / 'unfinished'
    killed_again_and_again(runs, n, kept_in, 3, *words, **how)
    assert read_record(out)['unfinished']
    runs.to_the_end(*words, **how)
    assert redone(log, n, KILLS)
    assert not entries(kept_in) and 'unfinished' not in read_record(out)
    assert {p.name for p in out.parent.iterdir()} == {'report', 'report.log'}
    assert made(out) == whole


@pytest.mark.parametrize('name, to_all, ends', [('SIGINT', True, 130), ('SIGTERM', False, 143)])
def test_a_study_that_is_stopped_in_the_middle(runs, tmp_path, name, to_all, ends):
    "Ctrl-C reaches the command and its kernel, a SIGTERM the command alone: one line, nobody left behind."
    home, out = tmp_path / 'study', tmp_path / 'report'
    home.mkdir()
    toy_table().to_parquet(tmp_path / 'table.parquet')
    notebook(home / '01_trains.ipynb', TRAINS.format(table=str(tmp_path / 'table.parquet'), seeds=3))
    words = ['study', '--corpus', 'twin', '--out', out]
    how = dict(study=home, EMOTION_STUDY_CACHE=tmp_path / 'cache')
    kept_in = tmp_path / 'cache' / 'unfinished'
    run = runs.begin(*words, out=tmp_path / 'said', err=tmp_path / 'error', **how)
    while len(entries(kept_in)) < 3 and run.is_running(): time.sleep(.01)
    family = run.children(recursive=True)
    (os.killpg if to_all else os.kill)(run.pid, getattr(signal, name))
    assert runs.code() == ends and (tmp_path / 'error').read_text().endswith(STOPPED)
    assert 'Traceback' not in (tmp_path / 'error').read_text()
    end = time.monotonic() + 20
    while any(p.is_running() for p in family) and time.monotonic() < end: time.sleep(.05)
    assert family and not any(p.is_running() for p in family)
    assert 3 <= len(entries(kept_in)) and read_record(out)['unfinished']
    runs.to_the_end(*words, **how)
    log = out.with_name('report.log').read_text().split()
    assert len(log) - len(set(log)) <= 1, 'no more than the fold in hand is computed again'
    assert 'unfinished' not in read_record(out)


def test_a_study_on_a_cluster_makes_the_same_tables(runs, tmp_path):
    pytest.importorskip('distributed', reason='Dask is not installed: install requirements.lock')
    home, reports = tmp_path / 'study', tmp_path / 'reports'
    home.mkdir(), reports.mkdir()
    toy_table().to_parquet(tmp_path / 'table.parquet')
    notebook(home / '01_trains.ipynb', TRAINS.format(table=str(tmp_path / 'table.parquet'), seeds=1))
    for name, more in (('here', []), ('there', ['--scheduler', 'local:2'])):
        words = ['study', '--corpus', 'twin', '--out', reports / name, *more]
        runs.to_the_end(*words, study=home, EMOTION_STUDY_CACHE=tmp_path / f'cache {name}')
    assert made(reports / 'here') == made(reports / 'there')
