"""The pool of experts: sealed test rows, strangers kept strangers, and what the ensemble makes of it."""
import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from emotion_study import training
from emotion_study.core import COPIES, EXTENDED, SPEEDS, SettingError
from emotion_study.protocols import LeakageError, make_folds
from emotion_study.fusion import make_expert
from emotion_study.pool import (
    ENCODER_SCALE, POOL_EXPERTS, ShrinkageLDA, _shrinkage, inner_folds, log_pool, opinions,
    pool_parts, pool_weights, pooled, self_trained, taught)
from test_pipeline import toy_table
from test_training import with_blocks


def pool_of(table, fold, scope='inductive', Z=None):
    Z = Z or training.fold_features(table, fold, scope, ['voice', 'face'])
    return pooled(Z, ['voice', 'face'], training.fold_clips(table, fold, 8, scope), fold)


@pytest.mark.parametrize('scope', ['inductive', 'adapted'])
def test_other_test_clips_change_neither_weights_nor_answers(scope):
    "With new speakers in scope inductive, and with known ones even in scope adapted, a test clip is judged by itself."
    table = toy_table()
    fold = make_folds(table, 'actor' if scope == 'inductive' else 'random')[0]
    Z = training.fold_features(table, fold, scope, ['voice', 'face'])
    first, moved = pool_of(table, fold, scope, Z), {c: z.copy() for c, z in Z.items()}
    for z in moved.values(): z[fold.test[1:]] += 3
    second = pool_of(table, fold, scope, moved)
    assert np.allclose(first.weights, second.weights, atol=1e-6) and np.allclose(first.val, second.val, atol=1e-6)
    assert np.allclose(first.test[0], second.test[0], atol=1e-6) and not np.allclose(first.test[1:], second.test[1:])


def test_labels_of_test_rows_are_sealed():
    table = toy_table()
    fold = make_folds(table, 'actor')[0]
    clips = training.fold_clips(table, fold, 8, 'inductive')
    for sealed in (clips.y, clips.fine):
        with pytest.raises(LeakageError): sealed[fold.test]
    with pytest.raises(LeakageError): opinions(np.ones((1, len(table), 3)), ['lda'], clips, fold.test, fold.val)


@pytest.mark.parametrize('protocol', ['actor', 'loso', 'statement'])
def test_inner_folds_keep_speakers_apart(protocol):
    table = toy_table()
    table = table.assign(statement=np.where(table.groupby('actor').cumcount() % 2, 'kids', 'dogs'))
    for fold in make_folds(table, protocol)[:3]:
        clips = training.fold_clips(table, fold, 8, 'inductive')
        cut = inner_folds(fold, clips.y, clips.speakers)
        assert np.array_equal(np.sort(np.concatenate([b for _, b in cut])), fold.fit)
        for a, b in cut:
            assert not set(clips.speakers[a]) & set(clips.speakers[b]) and not np.isin(np.r_[a, b], fold.test).any()


def test_scope_train_does_not_tell_who_speaks():
    table = toy_table()
    fold = make_folds(table, 'random')[0]
    clips = training.fold_clips(table, fold, 8, 'inductive')
    X = training.fold_features(table, fold, 'inductive', ['voice'])['voice'][None]
    told, = opinions(X, ['speaker'], clips, fold.fit, fold.test)
    clips.speakers = clips.speakers.copy(); clips.speakers[fold.test] = 99
    untold, = opinions(X, ['speaker'], clips, fold.fit, fold.test)
    assert np.array_equal(told, untold)


def test_every_part_and_expert_has_a_weight():
    table = with_blocks(toy_table())
    fold = make_folds(table, 'actor')[0]
    Z = training.fold_features(table, fold, 'inductive', ['voice', 'face', *EXTENDED])
    weights = pool_of(table, fold, Z=Z).weights
    parts = ('voice', 'face', 'voice+face', 'whisper', 'voice+face+whisper')
    assert set(weights.index) == {(p, k) for p in parts for k in POOL_EXPERTS} | {(EXTENDED[0], 'subclass')}
    assert (weights >= 0).all() and weights.sum() > 0
    assert [name for name, *_ in pool_parts(Z, ['face'], fold.fit)] == ['face'], 'the encoder belongs to the voice'


def test_a_channel_weighs_the_same_however_many_columns_it_has():
    "Everything put together: distances are those worked out by hand, and repeating the face's columns changes none."
    table = with_blocks(toy_table())
    fold = make_folds(table, 'actor')[0]
    Z = training.fold_features(table, fold, 'inductive', ['voice', 'face', *EXTENDED])
    def between(Z):
        joint, = (X[0, fold.fit] for name, X, _ in pool_parts(Z, ['voice', 'face'], fold.fit) if name == 'voice+face+whisper')
        return ((joint[:40, None] - joint[None, :40]) ** 2).sum(axis=-1)
    even = lambda X: X / np.sqrt((X[fold.fit] ** 2).sum(axis=1).mean())
    whisper = np.hstack([Z[f] for f in EXTENDED if f in Z])
    rows = np.hstack([even(Z['voice']), even(Z['face']), ENCODER_SCALE * even(whisper)])[fold.fit][:40]
    by_hand = ((rows[:, None] - rows[None]) ** 2).sum(axis=-1)
    assert np.allclose(between(Z), by_hand, rtol=1e-3, atol=1e-5)
    assert np.allclose(between(Z | {'face': np.tile(Z['face'], 5)}), by_hand, rtol=1e-3, atol=1e-5)


def test_copies_are_learnt_from_and_what_is_said_of_them_is_averaged():
    table = with_blocks(toy_table(), copies=SPEEDS)
    fold = make_folds(table, 'actor')[0]
    Z = training.fold_features(table, fold, 'inductive', ['voice', 'face', *COPIES])
    parts = {name: X for name, X, _ in pool_parts(Z, ['voice', 'face'], fold.fit)}
    assert {name: len(X) for name, X in parts.items()} == {'voice': 1, 'face': 1, 'voice+face': 1, 'whisper': 3, 'voice+face+whisper': 3,
                                                           EXTENDED[0]: 3}
    X, clips, rows = parts['voice+face+whisper'], training.fold_clips(table, fold, 8, 'inductive'), fold.fit
    said, = opinions(X, ['lda'], clips, rows, fold.test)
    model = make_expert('lda').fit(np.concatenate([x[rows] for x in X]), np.tile(clips.y[rows], 3))
    by_hand = np.mean([np.log(model.predict_proba(x[fold.test])) for x in X], axis=0)
    by_hand = np.exp(by_hand) / np.exp(by_hand).sum(axis=1, keepdims=True)
    assert np.array_equal(model.classes_, np.arange(8)) and np.allclose(said, by_hand, atol=1e-4)


def test_copies_of_other_test_clips_change_nothing():
    table = with_blocks(toy_table(), copies=SPEEDS)
    fold = make_folds(table, 'actor')[0]
    Z = training.fold_features(table, fold, 'inductive', ['voice', 'face', *COPIES])
    first, moved = pool_of(table, fold, Z=Z), {c: z.copy() for c, z in Z.items()}
    for z in moved.values(): z[fold.test[1:]] += 3
    second = pool_of(table, fold, Z=moved)
    assert np.allclose(first.weights, second.weights, atol=1e-6) and np.allclose(first.test[0], second.test[0], atol=1e-6)
    assert not np.allclose(first.test[1:], second.test[1:])


@pytest.mark.parametrize('n, d, classes', [(80, 5, 2), (300, 400, 6), (400, 50, 15), (60, 300, 2), (12, 10, 3), (9, 40, 4)])
def test_the_faster_discriminant_analysis_is_the_same_function(n, d, classes):
    rng = np.random.default_rng(n)
    y = rng.permutation(np.arange(n) % classes) * 3 + 1
    X = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / d ** .5 + .5 * rng.normal(size=(classes, d))[y // 3]
    X[:, 0], X[y == 1, 1] = 2, 7  # a constant column, and one that is constant within a class
    others = rng.normal(size=(50, d))
    theirs, ours = (model.fit(X, y) for model in (LinearDiscriminantAnalysis(solver='lsqr', shrinkage='auto'), ShrinkageLDA()))
    assert np.allclose(theirs.covariance_, ours.covariance_, atol=1e-12) and (theirs.classes_ == ours.classes_).all()
    assert np.allclose(theirs.predict_proba(others), ours.predict_proba(others), atol=1e-9) and (theirs.predict(others) == ours.predict(others)).all()


def test_columns_with_nothing_in_common_are_shrunk_in_full_and_no_further():
    shares = []
    for seed in range(20):
        Z = np.random.default_rng(seed).normal(size=(200, 20))
        Z = (Z - Z.mean(0)) / Z.std(0)
        share, level = _shrinkage(Z)
        assert np.isclose(share, ledoit_wolf_shrinkage(Z)) and np.isclose(level, 1)
        shares.append(share)
    assert max(shares) == 1 and shares.count(1) > 3


def test_a_clip_is_judged_without_the_guess_about_it():
    table = toy_table()
    fold = make_folds(table, 'random')[0]
    clips, X = training.fold_clips(table, fold, 8, 'adapted'), training.fold_features(table, fold, 'adapted', ['voice'])['voice'][None]
    guess = np.arange(len(fold.test)) % 8
    other = np.r_[(guess[0] + 1) % 8, guess[1:]]
    first, second = (taught(np.concatenate([X, X + .1]), clips, fold.fit, fold.test, g) for g in (guess, other))
    assert np.allclose(first[0], second[0], atol=1e-9) and not np.allclose(first[1:], second[1:])


def test_the_self_trained_pool_adds_an_expert_to_each_wide_part():
    table = toy_table()
    fold = make_folds(table, 'random')[0]
    Z, clips = training.fold_features(table, fold, 'adapted', ['voice', 'face']), training.fold_clips(table, fold, 8, 'adapted')
    plain, more = (make(Z, ['voice', 'face'], clips, fold) for make in (pooled, self_trained))
    assert list(more.weights.index) == [*plain.weights.index, *((c, 'taught') for c in ('voice', 'face', 'voice+face'))]
    assert more.test.shape == plain.test.shape and more.val.shape == plain.val.shape and np.allclose(more.test.sum(axis=1), 1)
    pair = [('pool', 'voice+face'), ('self-trained', 'voice+face')]
    order = np.argsort(table['clip'].to_numpy()[fold.test])
    for wanted in (pair[1:], pair):  # alone, and sharing the experts of the pool
        ran = training.cross_validate(table, 'random', 8, 'adapted', wanted, jobs=1).groupby('model')
        for model, alone in {'pool': plain, 'self-trained': more}.items():
            if model in ran.groups: assert np.allclose(ran.get_group(model).filter(like='p_'), alone.test[order], atol=1e-4)
        assert len(ran) == len(wanted)
    units = list(training._units(table, [fold], dict.fromkeys(pair, 1), 8, 'adapted', 1))
    assert [f.__name__ for f, _ in units] == ['run_pools'], 'the experts are fitted once for both'


@pytest.mark.parametrize('protocol, scope', [('random', 'inductive'), ('actor', 'adapted')])
def test_self_training_is_refused_where_the_speaker_is_new_or_the_other_clips_are_not_to_be_used(protocol, scope):
    with pytest.raises(SettingError, match='known speakers'):
        training.cross_validate(toy_table(), protocol, 8, scope, [('self-trained', 'voice+face')], jobs=1)


def test_self_training_is_refused_where_a_speaker_is_hardly_known():
    table = toy_table()
    fold = make_folds(table, 'random')[0]
    Z, clips = training.fold_features(table, fold, 'adapted', ['voice', 'face']), training.fold_clips(table, fold, 8, 'adapted')
    clips.groups = np.where(np.arange(len(table)) == fold.test[0], clips.groups.max() + 1, clips.groups)
    with pytest.raises(SettingError, match='one has 0'): self_trained(Z, ['voice', 'face'], clips, fold)


def test_an_unknown_expert_is_told():
    table = toy_table()
    fold = make_folds(table, 'actor')[0]
    with pytest.raises(SettingError, match='oracle'):
        opinions(np.ones((1, len(table), 3)), ['oracle'], training.fold_clips(table, fold, 8, 'inductive'), fold.fit, fold.test)


def test_the_ensemble_is_networks_and_pool_with_weights_from_validation():
    table, both = toy_table(), 'voice+face'
    runs = [('network', both), ('pool', both), ('ensemble', both)]
    said = training.cross_validate(table, 'actor', 8, 'inductive', runs, epochs=2, members=1, jobs=1)
    fold, order = make_folds(table, 'actor')[0], ['model', 'clip']
    own = said[said.fold == 0].sort_values(order).set_index('model').filter(like='p_')
    two = np.stack([own.loc[m].to_numpy('float64') for m in ('network', 'pool')], axis=1)
    parts = training.run_pool(table, fold, 8, 'inductive', runs[1]) | training.run_stack(table, [(fold, 0)], 1, 8, 'inductive', runs[0], 2)
    val = np.stack([parts[r, 0, 0, 0]['val'] for r in runs[:2]], axis=1)
    y = training.fold_clips(table, fold, 8, 'inductive').y[fold.val]
    by_hand = log_pool(two, pool_weights(val, y, training.PULL))
    assert np.allclose(own.loc['ensemble'].to_numpy(), by_hand, atol=2e-3)
