"""Known answers: what would be noticed if a guard of the study's honesty or a unit of a measured quantity were another."""
import ast, json, re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emotion_study import fusion, media, pool, speech, training
from emotion_study.core import SettingError, describe, expected_codes, file_digest
from emotion_study.protocols import Fold, LeakageError, check_fold, make_folds
from mutants import MUTANTS, lesson_of
from test_pipeline import toy_table

PACKAGE = Path(training.__file__).parent
GRID = pd.DataFrame([describe(c) for c in expected_codes()])


# --- the table of changes

@pytest.mark.parametrize('mutant', MUTANTS, ids=lambda m: m.name)
def test_a_change_has_one_place_and_leaves_a_program(mutant):
    text = (PACKAGE / f'{mutant.module}.py').read_text(encoding='utf-8')
    assert text.count(mutant.old) == 1, f'{mutant.old} is not one place of {mutant.module}: mend the table in tests/mutants.py'
    ast.parse(text.replace(mutant.old, mutant.new))
    chapter = json.loads((PACKAGE.parent / 'nbs' / lesson_of(mutant.module)).read_text('utf-8'))
    code = [''.join(c['source']) for c in chapter['cells'] if c['cell_type'] == 'code']
    exported = '\n'.join(text for text in code if '#| export' in text)
    assert exported.count(mutant.old) == 1, 'lessons run the code of their chapter'


@pytest.mark.parametrize('asked', sorted({t for m in MUTANTS for t in m.tests} - {'lesson'}))
def test_what_a_mutant_asks_is_there(asked):
    file, _, word = asked.partition(' -k ')
    tests = Path(__file__).with_name(f'{file}.py').read_text(encoding='utf-8')
    assert re.search(rf'^def test_\w*{word}', tests, re.M), asked


# --- guards of a fold

def changed(fold, **sets):
    "A fold with other rows in some of its sets."
    return replace(fold, **{name: np.array(rows, dtype=int) for name, rows in sets.items()})


@pytest.mark.parametrize('protocol', ['actor', 'loso', 'statement', 'emobox'])
@pytest.mark.parametrize('where', ['train', 'val'])
def test_another_clip_of_a_tested_speaker_is_a_leak(protocol, where):
    "Each clip is in one set only, and a speaker in two."
    fold = make_folds(GRID, protocol)[0]
    check_fold(fold, GRID)
    moved = {where: np.append(getattr(fold, where), fold.test[0]), 'test': fold.test[1:]}
    with pytest.raises(LeakageError, match=f'actor .* is in {where} and in test'):
        check_fold(changed(fold, **moved), GRID)


@pytest.mark.parametrize('where', ['train', 'val', 'test'])
def test_a_fold_with_an_empty_set_is_refused(where):
    fold = make_folds(GRID, 'actor')[0]
    with pytest.raises(LeakageError, match='an empty set'):
        check_fold(changed(fold, **{where: []}), GRID)


def test_the_tested_sentence_was_never_learnt():
    said, tested = GRID['statement'].to_numpy(), []
    for fold in make_folds(GRID, 'statement'):
        learnt, = set(said[fold.fit])
        asked, = set(said[fold.test])
        assert learnt != asked
        tested += fold.test.tolist()
    assert sorted(tested) == list(range(len(GRID))), 'every clip once'


# --- the pool

@pytest.mark.parametrize('protocol', ['actor', 'random'])
def test_experts_of_the_pool_are_judged_on_what_they_never_saw(protocol):
    "Of noise that is wider than it is long an expert learns every training row by heart, and knows nothing of any other."
    table = toy_table(signal=0, actors=10)
    fold = make_folds(table, protocol)[0]
    Z = {'voice': np.random.default_rng(0).normal(size=(len(table), 400)).astype('float32')}
    clips = training.fold_clips(table, fold, 8, 'inductive')
    parts = [('voice', Z['voice'][None], ('lda', 'linear', 'ridge'))]
    judged = pool.cross_fitted(parts, clips, fold)
    right = [(judged.said[:, m].argmax(1) == judged.y).mean() for m in range(3)]
    by_heart = (pool.ask_all(parts, clips, fold.fit, fold.fit)[:, 0].argmax(1) == clips.y[fold.fit]).mean()
    assert by_heart > .95 and max(right) < .35, right
    assert set(judged.rows) == set(fold.fit) and len(judged.rows) == len(fold.fit), 'each row once'
    for fitted, asked in judged.cut: assert not set(fitted) & set(asked)
    said = pool.pooled(Z, ['voice'], clips, fold)
    assert said.weights.sum() < .5 and said.val.max(axis=1).mean() < .5, 'nobody is trusted, and nothing is claimed'


def test_cut_of_the_inner_folds_follows_the_seed():
    table = toy_table(actors=8)
    fold = make_folds(table, 'random')[0]
    y, speakers = training.class_numbers(table, 8), table['actor'].to_numpy()
    judged = [[tuple(b) for _, b in pool.inner_folds(replace(fold, seed=s), y, speakers)] for s in (0, 0, 1)]
    assert judged[0] == judged[1] != judged[2]


# --- the constant of an expert

@pytest.mark.parametrize('kind', ['linear', 'svm'])
def test_the_constant_is_chosen_by_validation_clips(kind):
    "Half of the training labels are wrong: who fits them best is best in training and worst in validation."
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 400)
    Z = rng.normal(size=(400, 60)) + .5 * (2 * y - 1)[:, None] * (np.arange(60) < 6)
    rows = np.arange(400)
    fold = Fold('random', 0, 0, rows[:160], rows[160:320], rows[320:])
    seen = y.copy()
    seen[fold.train] = np.where(rng.random(160) < .4, 1 - y[fold.train], y[fold.train])
    X = fusion.design(kind, Z, fold.train)
    models = [fusion.make_expert(kind, C, probabilities=False).fit(X[fold.train], seen[fold.train]) for C in fusion.C_GRID[kind]]
    at = {part: [np.mean(m.predict(X[rows]) == seen[rows]) for m in models] for part, rows in (('train', fold.train), ('val', fold.val))}
    best = {part: fusion.C_GRID[kind][int(np.argmax(scores))] for part, scores in at.items()}
    assert best['val'] < best['train'] and fusion.choose_C(kind, Z, seen, fold) == best['val'], at


def test_the_constant_is_the_only_one_that_ever_was_right():
    "Whatever the validation clips say decides, although training and test clips say the same of all."
    rng = np.random.default_rng(2)
    y, Z = rng.integers(0, 2, 300), rng.normal(size=(300, 30))
    fold = Fold('random', 0, 0, *np.split(np.arange(300), [100, 200]))
    X = fusion.design('linear', Z, fold.train)
    for C in fusion.C_GRID['linear']:
        answers = fusion.make_expert('linear', C, False).fit(X[fold.train], y[fold.train]).predict(X[fold.val])
        told = y.copy()
        told[fold.val] = answers  # this constant is right about every one of them
        chosen = fusion.choose_C('linear', Z, told, fold)
        same = fusion.make_expert('linear', chosen, False).fit(X[fold.train], y[fold.train]).predict(X[fold.val])
        assert (same == answers).all()


# --- seeds and strata

@pytest.mark.parametrize('protocol', ['random', 'actor'])
def test_a_seed_is_another_split(protocol):
    asked = {s: [tuple(f.test) for f in make_folds(GRID, protocol, 7, s)] for s in range(5)}
    assert len(set(map(str, asked.values()))) == 5 and asked[3] == [tuple(f.test) for f in make_folds(GRID, protocol, 7, 3)]
    assert len({str(sorted(f.val)) for s in range(5) for f in make_folds(GRID, protocol, 7, s)}) >= 5


@pytest.mark.parametrize('classes', [7, 8])
def test_a_random_split_has_its_share_of_every_class(classes):
    y = training.class_numbers(GRID, classes)
    size = np.bincount(y)
    for seed in range(10):
        fold, = make_folds(GRID, 'random', classes, seed)
        for part, share in ((fold.test, .2), (fold.val, .1), (fold.train, .7)):
            assert np.abs(np.bincount(y[part]) - share * size).max() <= 1.1, (seed, share)


def test_every_network_has_a_seed_of_its_own():
    grid = [(s, f, m) for s in range(25) for f in range(24) for m in range(8)]
    seeds = {training.network_seed(Fold('actor', s, f, *[np.arange(0)] * 3), m) for s, f, m in grid}
    assert len(seeds) == len(grid)


def test_members_of_an_ensemble_are_different_networks():
    table = toy_table()
    fold = make_folds(table, 'actor')[0]
    said = training.run_stack(table, [(fold, 0), (fold, 1), (fold, 0)], 3, 8, 'inductive', ('network', 'voice'), 2)
    run = ('network', 'voice')
    first, second = (said[run, fold.seed, fold.fold, m]['test'] for m in (0, 1))
    assert np.abs(first - second).max() > .01, 'another seed is another network'
    again = training.run_stack(table, [(fold, 1)], 1, 8, 'inductive', run, 2)[run, fold.seed, fold.fold, 1]['test']
    assert np.allclose(again, second, atol=1e-4), 'and the same seed the same'


# --- calibration

def test_the_temperature_is_that_at_which_the_labels_were_drawn():
    rng = np.random.default_rng(0)
    z = 2 * rng.normal(size=(1, 20_000, 8))
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    for true in (.5, 1, 2):
        drawn = p ** (1 / true) / (p ** (1 / true)).sum(-1, keepdims=True)
        truth = (drawn.cumsum(-1) > rng.random((1, 20_000, 1))).argmax(-1)
        assert training.best_temperature(p, truth)[0] == pytest.approx(true, rel=.06)


def test_a_trained_network_is_given_its_temperature(monkeypatch):
    monkeypatch.setattr(training, 'TEMPERATURES', np.array([.37]))
    table = toy_table()
    folds = make_folds(table, 'actor')[:2]
    stack = training.NetworkStack(training.network_columns(table, ['voice']), 8, 2)
    data = training.stack_data(table, folds, 8, 'inductive', ['voice'])
    training.fit_stack(stack, data, [0, 1], 2)
    assert stack.temperature.numpy() == pytest.approx([.37, .37])
    cold = training.stack_outputs(stack, data)[0]['fused']
    assert float(training.network_of(stack, 1).get_layer('fused').temperature) == pytest.approx(.37)
    stack.temperature.assign([1., 1.])
    plain = training.stack_outputs(stack, data)[0]['fused']
    assert np.abs(training.tempered(plain, .37) - cold).max() < 1e-4 and np.abs(plain - cold).max() > 1e-3


# --- a saved network is no program

def test_a_network_that_holds_code_is_refused(tmp_path):
    keras = fusion.keras
    given = keras.Input((2,), name='voice')
    touch = keras.layers.Lambda(lambda x: x, output_shape=(2,), name='fused')
    model = keras.Model({'voice': given}, {'fused': touch(given)})
    model.save(tmp_path / 'fold0.keras')
    card = dict(classes=8, scope='inductive', channels={'voice': ['a.b.c', 'a.b.d']}, scaler=None, test=[], fit=[],
                weights=file_digest(tmp_path / 'fold0.keras'))
    (tmp_path / 'fold0.json').write_text(json.dumps(card))
    with pytest.raises(SettingError, match='fold0.keras can not be loaded'): training.load_network(tmp_path / 'fold0.json')
    (tmp_path / 'fold0.keras').write_bytes(b'PK no archive')
    (tmp_path / 'fold0.json').write_text(json.dumps(card | dict(weights='')))
    with pytest.raises(SettingError, match='fold0.keras can not be loaded'): training.load_network(tmp_path / 'fold0.json')


# --- channels of a sound

def test_two_channels_are_averaged():
    t = np.arange(16_000) / 16_000
    left, right = .5 * np.sin(2 * np.pi * 220 * t), .5 * np.sin(2 * np.pi * 350 * t)
    mono, notes = media.mix(np.column_stack([left, right]).astype('float32'))
    assert np.abs(mono - (left + right) / 2).max() < 1e-6 and notes == []
    mono, _ = media.mix(np.column_stack([left, right, right]).astype('float32'))
    assert np.abs(mono - (left + 2 * right) / 3).max() < 1e-6


# --- units, family by family

T = np.arange(2 * 16_000) / 16_000

def measured(y): return speech.speech_features(media.Audio(np.asarray(y, 'float32')))
def voice(f, amplitude=.1): return amplitude * sum(np.sin(2 * np.pi * k * f * T) / k for k in range(1, 12))


@pytest.mark.parametrize('hertz, semitones', [(110, 12), (220, 24), (440, 36)])
def test_pitch_is_in_semitones_over_55_hz(hertz, semitones):
    found = measured(voice(hertz))
    for name in ('mean', 'p10', 'p50', 'p90', 'max'): assert found[f'f0.semitone.{name}'] == pytest.approx(semitones, abs=.15)
    assert found['f0.semitone.range'] < .2 and found['f0.harmonicity.mean'] > .95 and found['time.voiced.fraction'] > .9


def test_a_glide_has_the_slope_of_its_octave():
    "One octave in the length of the clip, which is one in units of the slope."
    phase = 2 * np.pi * 150 * (2 ** (T / 2) - 1) / (np.log(2) / 2)
    found = measured(.1 * sum(np.sin(k * phase) / k for k in range(1, 12)))
    assert found['f0.semitone.slope'] == pytest.approx(12, abs=.5) and found['f0.semitone.mean'] == pytest.approx(12 * np.log2(150 / 55) + 6, abs=.3)


@pytest.mark.parametrize('amplitude', [.5, .05])
def test_level_is_in_decibels_of_the_windowed_frame(amplitude):
    "The window of Hann takes 4.26 dB off every frame, of tones and of noise alike."
    window = 10 * np.log10(3 / 8)
    found = measured(amplitude * np.sin(2 * np.pi * 1_000 * T))
    assert found['energy.level.p50'] == pytest.approx(20 * np.log10(amplitude / np.sqrt(2)) + window, abs=.1)
    noise = np.random.default_rng(0).normal(0, amplitude / 10, len(T))
    assert measured(noise)['energy.level.mean'] == pytest.approx(20 * np.log10(amplitude / 10) + window, abs=.3)


@pytest.mark.parametrize('hertz', [500, 1_000, 3_000])
def test_the_spectrum_is_in_hertz(hertz):
    found = measured(.3 * np.sin(2 * np.pi * hertz * T))
    assert found['spectral.centroid.p50'] == pytest.approx(hertz, rel=.05)
    assert found['spectral.rolloff.p50'] == pytest.approx(hertz, abs=70)
    assert found['spectral.zcr.p50'] == pytest.approx(2 * hertz / 16_000, rel=.05)
    assert found['spectral.bandwidth.p50'] < 300


def test_noise_is_flat_and_a_tone_is_not():
    noise, tone = measured(np.random.default_rng(0).normal(0, .1, len(T))), measured(.3 * np.sin(2 * np.pi * 1_000 * T))
    assert noise['spectral.centroid.mean'] == pytest.approx(4_000, rel=.05) and noise['spectral.rolloff.mean'] == pytest.approx(.85 * 8_000, rel=.05)
    assert noise['spectral.flatness.mean'] == pytest.approx(-.58, abs=.2) and tone['spectral.flatness.p50'] < -6
    assert noise['f0.harmonicity_all.mean'] < .5


@pytest.mark.parametrize('hertz, place', [(440, 9), (261.63, 0), (659.26, 4)])
def test_the_pitch_class_counts_from_c(hertz, place):
    found = measured(voice(hertz))
    assert np.argmax([found[f'chroma.{i:02d}.p50'] for i in range(12)]) == place


def test_bands_are_decibels_and_times_are_seconds():
    y = .3 * np.sin(2 * np.pi * 1_000 * T)
    loud, soft = measured(y), measured(y / 10)
    bands = [f'logmel.{i:02d}.p50' for i in range(32)]
    strongest = int(np.argmax([loud[b] for b in bands]))
    assert loud[bands[strongest]] - soft[bands[strongest]] == pytest.approx(20, abs=.1)
    pause = np.concatenate([np.zeros(8_000), y[:16_000], np.zeros(8_000)])
    found = measured(pause)
    assert found['time.duration.total'] == pytest.approx(2.) and found['time.duration.active'] == pytest.approx(1., abs=.05)
    noise = np.random.default_rng(0).normal(0, .1, len(T))
    step = measured(noise)['mfcc.00.p50'] - measured(noise / 10)['mfcc.00.p50']
    assert step == pytest.approx(20 * np.sqrt(64), rel=.01), 'an orthonormal cosine transform of decibels in 64 bands'


def test_change_over_time_has_a_sign():
    louder = measured(np.geomspace(.02, .2, len(T)) * np.sin(2 * np.pi * 1_000 * T))
    assert louder['energy.level.slope'] == pytest.approx(20, abs=1.5) and louder['dmfcc.00.mean'] > 0
    softer = measured(np.geomspace(.2, .02, len(T)) * np.sin(2 * np.pi * 1_000 * T))
    assert softer['energy.level.slope'] == pytest.approx(-20, abs=1.5) and softer['dmfcc.00.mean'] < 0
