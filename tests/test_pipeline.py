"""From sound to predictions: bad input, determinism, resuming, and attempts to leak."""
import signal, subprocess, sys, time

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from hypothesis import given, settings, strategies as st

from emotion_study import face, media, protocols, speech
from emotion_study.core import ROOT, SettingError, describe, expected_codes, label_names
from emotion_study.features import (
    feature_columns, feature_table, read_table, voice_features, write_table)
from emotion_study.metrics import METRICS, confusion_by_actor, measures
from emotion_study.training import cross_validate, evaluate_models, load_network, train_models

T = np.arange(media.SR) / media.SR
VOICE = .3 * sum(np.sin(2 * np.pi * 180 * k * T) / k for k in (1, 2, 3, 4))


# --- sound that can't be measured

def write(path, kind):
    if kind == '8-bit': sf.write(path, VOICE, media.SR, subtype='PCM_U8')
    elif kind == '6 channels': sf.write(path, np.column_stack([VOICE] * 6), media.SR)
    elif kind == 'no samples': sf.write(path, VOICE[:0], media.SR)
    elif kind == 'NaN': sf.write(path, np.where(T > .5, np.nan, VOICE), media.SR, subtype='FLOAT')
    elif kind == 'silence': sf.write(path, 0 * VOICE, media.SR)
    elif kind == 'click': sf.write(path, VOICE[:200], media.SR)
    elif kind == 'text': path.write_text('not a sound')
    elif kind == 'zero bytes': path.write_bytes(b'')
    elif kind == 'header only': sf.write(path, VOICE, media.SR); path.write_bytes(path.read_bytes()[:20])
    return path


@pytest.mark.parametrize('kind, reason', [
    ('8-bit', ''), ('6 channels', ''), ('no samples', 'empty'), ('NaN', 'not finite'), ('silence', 'silent'),
    ('click', 'shorter'), ('text', 'undecodable'), ('zero bytes', 'empty'), ('header only', 'undecodable')])
def test_every_sound_is_measured_or_has_a_reason(tmp_path, kind, reason):
    audio = media.read_audio(write(tmp_path / 'clip.wav', kind))
    values = np.array(list(speech.speech_features(audio).values()))
    assert audio.reason.startswith(reason) and audio.valid == (reason == '')
    assert np.isfinite(values).all() if audio.valid else np.isnan(values).all()


def test_one_bad_file_does_not_cost_the_others(tmp_path):
    paths = pd.Series({k: write(tmp_path / f'{k}.wav', k) for k in ('8-bit', 'text', 'NaN', '6 channels')})
    frame, reasons = voice_features(paths, jobs=1, cache=tmp_path / 'cache')
    assert (frame.notna().all(axis=1) == (reasons == '')).all() and (reasons == '').sum() == 2


def test_a_missing_file_is_flagged_and_a_wrong_call_raises(tmp_path):
    frame, reasons = voice_features(pd.Series({'gone': tmp_path / 'gone.wav'}), jobs=1, cache=tmp_path)
    assert reasons['gone'] == 'file missing' and frame.isna().all(axis=None)
    with pytest.raises(FileNotFoundError): media.read_audio(tmp_path / 'gone.wav')


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1), st.integers(media.SR // 10, media.SR))
def test_any_usable_sound_gives_every_column(seed, gain, n):
    y = (gain * np.random.default_rng(seed).uniform(-1, 1, n)).astype('float32')
    row = speech.speech_features(media.Audio(y))
    assert list(row) == speech.speech_columns()
    assert np.isfinite([v for k, v in row.items() if not k.startswith('f0.semitone') and not k.startswith('f0.harmonicity.')]).all()


# --- one table, whatever the workers, and after a kill

def test_bytes_do_not_depend_on_workers(tmp_path):
    for i in range(6): sf.write(tmp_path / f'{i}.wav', VOICE * np.linspace(.2, 1, len(VOICE)) ** i, media.SR)
    paths = pd.Series({str(i): tmp_path / f'{i}.wav' for i in range(6)})
    tables = [voice_features(paths, jobs=j, cache=tmp_path / f'cache{j}')[0] for j in (1, 2)]
    assert tables[0].to_numpy().tobytes() == tables[1].to_numpy().tobytes()


def test_a_killed_run_resumes(tmp_path):
    "SIGKILL in the middle; the second run measures only what is missing and leaves no half entry."
    rng = np.random.default_rng(0)
    for i in range(60): sf.write(tmp_path / f'{i:02d}.wav', rng.normal(0, .1, 4 * media.SR), media.SR)
    code = ('import sys; import pandas as pd; from pathlib import Path; from emotion_study.features import voice_features; '
            'd = Path(sys.argv[1]); voice_features(pd.Series({p.stem: p for p in sorted(d.glob("*.wav"))}), jobs=1, cache=d / "cache")')
    run = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], cwd=ROOT)
    while len(list((tmp_path / 'cache').glob('*.npz'))) < 5 and run.poll() is None: time.sleep(.02)
    run.send_signal(signal.SIGKILL); run.wait()
    entries = {p: p.stat().st_mtime_ns for p in (tmp_path / 'cache').glob('*.npz')}
    assert 5 <= len(entries) < 60, 'the run was killed in the middle'
    paths = pd.Series({p.stem: p for p in sorted(tmp_path.glob('*.wav'))})
    resumed, _ = voice_features(paths, jobs=1, cache=tmp_path / 'cache')
    assert all(p.stat().st_mtime_ns == t for p, t in entries.items()), 'finished entries were not made again'
    fresh, _ = voice_features(paths, jobs=1, cache=tmp_path / 'other')
    assert resumed.to_numpy().tobytes() == fresh.to_numpy().tobytes()


def test_a_spoiled_cache_entry_is_measured_again(tmp_path):
    paths = pd.Series({'a': write(tmp_path / 'a.wav', '8-bit')})
    first, _ = voice_features(paths, jobs=1, cache=tmp_path / 'c')
    next((tmp_path / 'c').glob('*.npz')).write_bytes(b'half')
    again, _ = voice_features(paths, jobs=1, cache=tmp_path / 'c')
    assert first.equals(again)


# --- face tables

@pytest.mark.parametrize('spoil, says', [
    (lambda d: d.drop(columns='fear'), 'fear'), (lambda d: d.assign(happy=d.happy + 1), 'sum to 1'),
    (lambda d: d.assign(happy=np.nan), 'no number')])
def test_a_wrong_score_table_is_refused(tmp_path, spoil, says):
    table = pd.DataFrame({'clip': ['a', 'a'], 'frame': [1, 2], **{k: 1 / 7 for k in face.FACE_KEYS}})
    spoil(table).to_csv(tmp_path / 'scores.csv', index=False)
    with pytest.raises(SettingError, match=says) as error: face.read_score_table(tmp_path / 'scores.csv')
    assert 'scores.csv' in str(error.value)


# --- leaks

GRID = pd.DataFrame([describe(c) for c in expected_codes()])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([7, 8]))
def test_folds_keep_their_promise_for_any_seed(seed, classes):
    random = protocols.make_folds(GRID, 'random', classes, seed)[0]
    assert len(random.test) == 288 and sorted(np.r_[random.fit, random.test]) == list(range(1440))
    tested = []
    for fold in protocols.make_folds(GRID, 'actor', classes, seed):
        actors = GRID.iloc[fold.test].drop_duplicates('actor')
        assert actors.sex.value_counts().to_dict() == {'male': 2, 'female': 2}
        assert not set(actors.actor) & set(GRID.actor.iloc[fold.fit]), 'a test speaker in the training part'
        assert not set(GRID.actor.iloc[fold.val]) & set(GRID.actor.iloc[fold.train])
        tested += fold.test.tolist()
    assert sorted(tested) == list(range(1440))


@pytest.mark.parametrize('where', ['train', 'val'])
def test_a_test_speaker_in_training_raises(where):
    fold = protocols.make_folds(GRID, 'actor')[0]
    sets = dict(train=fold.train, val=fold.val, test=fold.test)
    sets[where] = np.append(sets[where], fold.test[0])
    with pytest.raises(protocols.LeakageError): protocols.check_fold(protocols.Fold('actor', 0, 0, **sets), GRID)


def test_labels_and_scaler_are_sealed():
    fold = protocols.make_folds(GRID, 'actor')[0]
    y = protocols.SealedLabels(protocols.labels_of(GRID, 8), fold)
    assert len(y[fold.fit]) == len(fold.fit)
    for rows in (fold.test, fold.test[:1], np.r_[fold.train, fold.test[-1]]):
        with pytest.raises(protocols.LeakageError): y[rows]
    X = np.random.default_rng(0).normal(size=(1440, 3))
    with pytest.raises(protocols.LeakageError): protocols.normalise(X, GRID.actor.to_numpy(), fold, 'inductive', rows=np.r_[fold.train, fold.test])


def test_scope_train_knows_nothing_of_the_test_speaker():
    "Changing every other clip of the test speakers must not change how one of their clips is seen."
    rng, fold = np.random.default_rng(0), protocols.make_folds(GRID, 'actor')[0]
    X = rng.normal(size=(1440, 4)); other = X.copy(); other[fold.test[1:]] += 100
    seen = [protocols.normalise(x, GRID.actor.to_numpy(), fold, 'inductive')[fold.test[0]] for x in (X, other)]
    assert np.array_equal(*seen)
    adaptive = [protocols.normalise(x, GRID.actor.to_numpy(), fold, 'adapted')[fold.test[0]] for x in (X, other)]
    assert not np.array_equal(*adaptive)


def toy_table(signal=1.5, actors=6, seed=0):
    rng = np.random.default_rng(seed)
    codes = [c for c in expected_codes() if c.actor <= actors and c.repetition == 1 and c.statement == 1]
    table = pd.DataFrame([describe(c) for c in codes])
    loud = np.eye(8)[[label_names(8).index(e) for e in table.emotion]]
    voice = pd.DataFrame(rng.normal(size=(len(table), 8)) + signal * loud, columns=[f'mfcc.{i:02d}.mean' for i in range(8)])
    faces = pd.DataFrame(rng.normal(size=(len(table), 8)) + signal * loud, columns=[f'face.k{i}.mean' for i in range(8)])
    table = pd.concat([table, voice, faces, pd.DataFrame({'text.bert.000': rng.normal(size=len(table))})], axis=1)
    for c in ('voice', 'face', 'words'): table[f'valid.{c}'], table[f'reason.{c}'] = True, ''
    return table


def test_test_labels_cannot_reach_a_model():
    "Scrambling the labels of the test clips changes no probability, only how many of them are right."
    table = toy_table()
    fold = protocols.make_folds(table, 'actor')[0]
    scrambled = table.copy()
    scrambled.loc[fold.test, 'emotion'] = np.random.default_rng(1).permutation(table.emotion.iloc[fold.test])
    said = [cross_validate(t, 'actor', 8, 'inductive', seeds=1, epochs=3, jobs=1) for t in (table, scrambled)]
    first = [s[s.fold == 0].sort_values(['model', 'modalities', 'clip']).filter(like='p_').to_numpy() for s in said]
    assert np.array_equal(*first)


def test_two_runs_give_the_same_numbers_and_chance_stays_chance():
    table = toy_table(signal=0.)
    a, b = (cross_validate(table, 'actor', 8, 'inductive', seeds=2, epochs=2, jobs=j) for j in (1, 2))
    pd.testing.assert_frame_equal(a, b)
    for _, run in a.groupby(['model', 'modalities']):
        assert measures(confusion_by_actor(run).sum(0))['accuracy'] < .35, 'nothing to learn, yet something was learnt'


def test_train_then_evaluate_asks_only_about_sealed_clips(tmp_path):
    table = toy_table(signal=4.)
    folder = train_models(table, 'actor', 8, 'inductive', out=tmp_path / 'models', epochs=60)
    said = evaluate_models(folder, table)
    assert sorted(said['clip']) == sorted(table['clip']), 'each clip is asked about once'
    assert (said.filter(like='p_').idxmax(axis=1).str[2:] == said.emotion).mean() > .4
    _, card = load_network(folder / 'fold0.json')
    assert not set(card['test']) & set(card['fit']) and str(ROOT) not in (folder / 'fold0.json').read_text()
    card_file = folder / 'fold0.json'
    card_file.write_text(card_file.read_text().replace('"fit": [', f'"fit": ["{card["test"][0]}",', 1))
    with pytest.raises(protocols.LeakageError): evaluate_models(folder, table)


@pytest.mark.parametrize('call, says', [
    (lambda t: cross_validate(t, 'loudest'), 'protocol'), (lambda t: cross_validate(t, scope='test'), 'scope'),
    (lambda t: cross_validate(t, models=['oracle']), 'oracle'), (lambda t: cross_validate(t[t.actor < 3], 'actor'), 'speakers'),
    (lambda t: cross_validate(t, classes=6), '7 or 8')])
def test_wrong_settings_are_told_in_one_line(call, says):
    with pytest.raises(SettingError, match=says) as error: call(toy_table())
    assert '\n' not in str(error.value)


# --- measures, tables

def test_measures_of_a_perfect_and_of_a_constant_answer():
    perfect, constant = np.diag([3., 5, 2]), np.array([[3., 0, 0], [5, 0, 0], [2, 0, 0]])
    assert all(measures(perfect)[m] == 1 for m in METRICS)
    got = measures(constant)
    assert np.isclose(got['accuracy'], .3) and np.isclose(got['uar'], 1 / 3) and np.isclose(got['precision'], .1)


def test_importing_the_package_is_light():
    code = 'import sys, emotion_study, emotion_study.core, emotion_study.cli; print([m for m in ("tensorflow", "librosa", "pandas", "keras") if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == '[]', done.stdout + done.stderr


# --- real data

@pytest.mark.realdata
def test_real_table_and_the_plain_late_fusion(tmp_path):
    "The measured table of all 1,440 clips, and that strangers' emotions are found about as often as the report says."
    from emotion_study.corpus import load_corpus
    table = feature_table(load_corpus('ravdess'))
    assert len(table) == 1440 and table['valid.voice'].all() and table['valid.face'].all()
    assert not table[feature_columns(table)].isna().any(axis=None)
    again = read_table(write_table(table, tmp_path / 'table.parquet'))
    pd.testing.assert_frame_equal(table, again)
    said = cross_validate(table, 'actor', 8, 'adapted', models=['late'], seeds=1)
    rows = said[said.modalities == 'voice+face']
    assert measures(confusion_by_actor(rows).sum(0))['accuracy'] > .88
