"""Enrolment: the first clips of a new speaker; what no clip and many clips give, and what must never be looked at."""
import numpy as np
import pytest

from emotion_study import training
from emotion_study.core import SPEEDS, SettingError
from emotion_study.protocols import (
    ENROLMENTS, LeakageError, check_enrolled, draw_enrolled, enrolled_moments, make_folds, moments,
    one_sided, speaker_prior)
from test_pipeline import toy_table
from test_training import with_blocks


def speakers_and_clips(seed=0, speakers=12, clips=40):
    "Features of speakers who differ in mean and spread, two classes in turn."
    rng = np.random.default_rng(seed)
    who, y = np.repeat(np.arange(speakers), clips), np.tile([0, 1], speakers * clips // 2)
    mean, sd = rng.normal(size=(speakers, 5)), rng.uniform(.5, 1.5, (speakers, 5))
    return mean[who] + sd[who] * rng.normal(size=(len(who), 5)), who, y


def fold_of(table=None):
    table = toy_table() if table is None else table
    return table, make_folds(table, 'actor')[0]


def test_no_clip_gives_the_training_speakers_and_many_give_the_speaker():
    X, who, y = speakers_and_clips()
    taught = who < 11
    prior = speaker_prior(X[taught], who[taught], y[taught], 2)
    mean, scale, trust = enrolled_moments(X[:0], prior)
    assert np.allclose(mean, X[taught].mean(axis=0)) and np.allclose(scale, X[taught].std(axis=0), rtol=.1) and not trust.any()
    rng = np.random.default_rng(1)
    many = 3 + 2 * rng.normal(size=(5000, 5))
    assert np.allclose(enrolled_moments(many, prior)[:2], moments(many), rtol=.02)


def test_trust_grows_with_clips():
    X, who, y = speakers_and_clips()
    prior = speaker_prior(X, who, y, 2)
    trust = np.array([enrolled_moments(X[:n], prior)[2] for n in (0, 1, 4, 16, 40)])
    assert (np.diff(trust, axis=0) > 0).all() and (trust < 1).all()


def test_absent_and_constant_columns_are_safe():
    X, who, y = speakers_and_clips()
    X = np.hstack([X, np.full((len(X), 1), 3.), np.full((len(X), 1), np.nan)])
    X[who == 0, 0], X[5:9, 1] = np.nan, np.nan
    prior = speaker_prior(X, who, y, 2, np.full((len(X), 2), .5), who)
    for enrolled in (X[:0], X[:1], X[:6], X[40:80]):
        for guesses in (None, np.tile([.99, .01], (len(enrolled), 1))):
            mean, scale, trust = enrolled_moments(enrolled, prior, guesses)
            assert np.isfinite([mean, scale, trust]).all() and (scale > 0).all()
    assert (mean[5], scale[5], trust[5]) == (3, 1, 0)


def test_guesses_matter_only_when_they_are_one_sided():
    X, who, y = speakers_and_clips()
    prior = speaker_prior(X, who, y, 2, np.eye(2)[y], who)
    even, sided = np.tile([.5, .5], (8, 1)), np.tile([1., 0], (8, 1))
    assert one_sided(even, prior) == 0 < one_sided(sided, prior) < 1 and one_sided(even[:0], prior) == 0
    assert np.array_equal(enrolled_moments(X[:8], prior, even), enrolled_moments(X[:8], prior))
    assert not np.allclose(enrolled_moments(X[:8], prior, sided), enrolled_moments(X[:8], prior))


def test_one_training_speaker_is_too_few():
    X, who, y = speakers_and_clips()
    with pytest.raises(SettingError, match='two training speakers'): speaker_prior(X[who == 0], who[who == 0], y[who == 0], 2)


@pytest.mark.parametrize('kind', ENROLMENTS)
def test_drawn_clips_pass_the_guard_and_grow(kind):
    table, fold = fold_of()
    if kind == 'neutral': table = table.assign(emotion=np.where(table.groupby('actor').cumcount() % 4, table['emotion'], 'neutral'))
    few, more = (draw_enrolled(table, fold, kind, n) for n in (2, 4))
    check_enrolled(more, table, fold)
    assert (few <= more).all() and (few.sum(axis=1) <= 2).all() and few.any()


def test_guards():
    table, fold = fold_of()
    chosen = draw_enrolled(table, fold, 'random', 3)
    def moved(row):
        wrong = chosen.copy()
        wrong[0, row] = True
        return wrong
    stranger = fold.test[table['actor'].to_numpy()[fold.test] != table['actor'].to_numpy()[fold.test[0]]]
    with pytest.raises(LeakageError, match='enrolled for itself'): check_enrolled(moved(fold.test[0]), table, fold)
    with pytest.raises(LeakageError, match='outside of the test set'): check_enrolled(moved(fold.fit[0]), table, fold)
    if len(stranger):
        with pytest.raises(LeakageError, match='another speaker'): check_enrolled(moved(stranger[0]), table, fold)
    with pytest.raises(SettingError, match='one row per test clip'): check_enrolled(chosen[1:], table, fold)
    with pytest.raises(SettingError, match='is not one of'): draw_enrolled(table, fold, 'loud', 3)
    with pytest.raises(SettingError, match='new speakers'): check_enrolled(chosen, table, make_folds(table, 'random')[0])


def test_a_copy_of_the_judged_clip_is_not_enrolled():
    table, fold = fold_of()
    voice = [c for c in table if c.count('.') == 2 and c.split('.')[0] in ('mfcc', 'energy', 'f0', 'spectral')]
    own = fold.test[table['actor'].to_numpy()[fold.test] == table['actor'].to_numpy()[fold.test[0]]]
    table.loc[own[1], voice] = table.loc[own[0], voice].to_numpy()
    assert not draw_enrolled(table, fold, 'random', 99)[0, own[:2]].any()
    wrong = draw_enrolled(table, fold, 'random', 3)
    wrong[0, own[1]] = True
    with pytest.raises(LeakageError, match='enrolled for itself'): check_enrolled(wrong, table, fold)


def test_no_clip_is_scope_inductive_and_labels_of_enrolled_clips_do_not_matter():
    table, fold = fold_of()
    sets = {n: draw_enrolled(table, fold, 'random', n) for n in (0, 4)}
    said = training.enrolled_answers(table, fold, 8, sets, ('pool', 'late'))
    for model, alone in training.run_pool(table, fold, 8, 'inductive', ('pool', 'voice+face')).items():
        assert np.allclose(said['pool', 0], alone['test'], atol=1e-6)
    late = training.run_experts(table, fold, 8, 'inductive', [('late', 'voice+face')])
    assert all(np.allclose(said['late', 0], p['test'], atol=1e-6) for p in late.values())
    lied = table.copy()
    lied.loc[fold.test, 'emotion'] = np.random.default_rng(0).permutation(table['emotion'].to_numpy()[fold.test])
    again = training.enrolled_answers(lied, fold, 8, sets, ('pool', 'late'))
    assert all(np.allclose(p, said[k], atol=1e-8) for k, p in again.items())


def test_only_enrolled_clips_matter():
    "What a speaker did not enrol changes no answer about another clip."
    table, fold = fold_of()
    sets = {'4': draw_enrolled(table, fold, 'random', 4)}
    said = training.enrolled_answers(table, fold, 8, sets)['pool', '4']
    used = np.union1d(np.flatnonzero(sets['4'][0]), fold.test[:1])
    others = np.setdiff1d(fold.test, used)
    moved, columns = table.copy(), sum(training.feature_parts(table).values(), [])
    moved.loc[others, columns] += 1
    again = training.enrolled_answers(moved, fold, 8, sets)['pool', '4']
    assert np.allclose(said[0], again[0], atol=1e-6) and not np.allclose(said[1:], again[1:])


def test_the_predictions_table_names_the_enrolment():
    table, _ = fold_of()
    p = training.cross_enrol(table, {'random': (0, 2)}, {'random': (2,)}, models=('pool',), jobs=1, label='extended')
    assert set(p['model']) == {'pool, extended, 0 enrolled', 'pool, extended, 2 enrolled', 'pool, extended, 2 enrolled, plain z-scores'}
    assert set(p['scope']) == {'adapted'} and len(p) == 3 * len(table) and np.isfinite(p[[c for c in p if c.startswith('p_')]]).all(axis=None)
    assert training.enrolled_name('one emotion', 4) == '4 one emotion enrolled'


def test_blocks_of_an_encoder_and_their_copies_enrol_too():
    table, fold = fold_of(with_blocks(toy_table(), copies=SPEEDS))
    sets = {n: draw_enrolled(table, fold, 'random', n) for n in (0, 4)}
    said = training.enrolled_answers(table, fold, 8, sets, ('pool', 'late'))
    assert all(np.isfinite(p).all() and np.allclose(p.sum(axis=1), 1) for p in said.values())
    alone, = training.run_pool(table, fold, 8, 'inductive', ('pool', 'voice+face')).values()
    assert np.allclose(said['pool', 0], alone['test'], atol=1e-6) and not np.allclose(said['pool', 4], alone['test'])


@pytest.mark.parametrize('train', ['cross_enrol', 'cross_validate'])
def test_an_extended_run_is_not_trained_on_a_table_without_its_encoders(train, tmp_path, monkeypatch):
    "Enrolment was: 'extended' figures were those of the published set, and nobody was told."
    table = toy_table()
    table.attrs['unmeasured'] = ['base']
    empty = training.save_predictions(tmp_path, training.cross_validate(toy_table(), 'actor', 8, models=[('linear', 'voice')], jobs=1))
    monkeypatch.setenv('EMOTION_STUDY_PREDICTIONS', str(empty))
    asked = dict(sizes={'random': [4]}, models=('late',)) if train == 'cross_enrol' else dict(models=[('late', 'voice+face')])
    with pytest.raises(SettingError, match='late, extended.* is not among the saved predictions, and Whisper'):
        getattr(training, train)(table, **asked, label='extended', jobs=1, progress=True)
