"""Other corpora: no label of the target is used, classes in common, bad input in one line, the same answers twice."""
import numpy as np, pandas as pd, pytest

from emotion_study.core import SettingError
from emotion_study.protocols import LeakageError, SealedLabels
from emotion_study.pool import (
    BLOCKS, CROSSING_SCOPES, FEWEST_OF_A_SET, Recipe, Variances, Voices, belief, block_means, carry_over,
    choose_recipe, crossing, crossings, emotions_heard, gather, prepare)
from emotion_study.training import cross_corpora, pairs_to, transfer_rows

PARTS = ('whisper_tiny_1', 'whisper_base_3')
RECIPE = Recipe('two blocks', PARTS, 1.)


def table(name, emotions, speakers=6, clips=4, seed=0, one_each=False):
    "A corpus of invented voices."
    rng, places = np.random.default_rng(seed), np.random.default_rng(99)
    where = {e: places.normal(size=(2, 8)) for e in ('neutral', 'happy', 'sad', 'angry', 'fearful', 'disgust', 'calm')}
    room, rows, X = rng.normal(size=(2, 8)), [], []
    for a in range(speakers):
        voice = .7 * rng.normal(size=(2, 8))
        for e in [emotions[a % len(emotions)]] * len(emotions) if one_each else emotions:
            for _ in range(clips):
                rows.append(dict(clip=f'{name}-{len(rows)}', actor=f's{a}', emotion=e))
                X.append((where[e] + room + voice + rng.normal(size=(2, 8))).ravel())
    columns = [f'{p}.{i:03d}.mean' for p in PARTS for i in range(8)]
    return pd.concat([pd.DataFrame(rows), pd.DataFrame(X, columns=columns)], axis=1)


def columns(t): return {p: [c for c in t if c.startswith(p)] for p in PARTS}


def voices_of(**tables): return gather(tables, columns)


@pytest.fixture(scope='module')
def voices():
    return voices_of(studio=table('studio', ['neutral', 'calm', 'happy', 'sad', 'angry'], seed=1),
                     stage=table('stage', ['neutral', 'happy', 'sad', 'angry', 'fearful'], seed=2),
                     shows=table('shows', ['happy', 'sad', 'angry'], seed=3, one_each=True))


def relabelled(voices, pair):
    clips, rows = voices.clips.copy(), pair.fold.test
    clips.loc[rows, 'emotion'] = np.roll(clips['emotion'].to_numpy()[rows], 7)
    return Voices(clips, voices.X)


# --- the seal

@pytest.mark.parametrize('scope', CROSSING_SCOPES)
def test_other_labels_of_the_target_change_nothing(voices, scope):
    for protocol in ('transfer', 'loco'):
        pair = crossings(voices, protocol)[-1]
        other = relabelled(voices, pair)
        assert not np.array_equal(other.y, voices.y)
        assert np.array_equal(carry_over(voices, pair, scope, RECIPE), carry_over(other, pair, scope, RECIPE))


def test_inductive_answers_are_each_clips_own(voices):
    "What else is in the target's set does not matter; in scope set it does."
    pair = crossings(voices, 'loco')[0]
    rows = pair.fold.test
    moved = Voices(voices.clips, {p: x.copy() for p, x in voices.X.items()})
    for x in moved.X.values(): x[rows[1:]] += 3.
    for scope, same in (('inductive', True), ('set', False)):
        first = [carry_over(v, pair, scope, RECIPE)[0] for v in (voices, moved)]
        assert np.array_equal(*first) == same


def test_recipes_are_chosen_without_the_target(voices):
    recipes = [Recipe(f'{c}', PARTS, c) for c in (.01, 1.)]
    for protocol in ('transfer', 'loco'):
        pair = crossings(voices, protocol)[0]
        moved = relabelled(voices, pair)
        moved = Voices(moved.clips, {p: x.copy() for p, x in moved.X.items()})
        for x in moved.X.values(): x[pair.fold.test] = 0.
        (a, found), (b, again) = (choose_recipe(v, pair, 'set', recipes) for v in (voices, moved))
        assert a == b and found.equals(again) and pair.target not in ' '.join(found.columns)


def test_a_label_of_the_target_is_refused(voices):
    pair = crossings(voices, 'transfer')[0]
    sealed = SealedLabels(voices.y, pair.fold)
    assert len(sealed[pair.fold.train])
    with pytest.raises(LeakageError): sealed[pair.fold.test[:1]]


def test_a_recording_on_both_sides_is_refused(voices):
    twice = table('studio', ['neutral', 'happy', 'sad'], seed=1)
    with pytest.raises(LeakageError, match='is the recording'):
        crossing(voices_of(a=twice, b=twice.assign(clip=[f'b{i}' for i in range(len(twice))])), ['a'], 'b')
    with pytest.raises(LeakageError, match='clip studio-0 teaches and is asked'):
        crossing(voices_of(a=twice, b=twice), ['a'], 'b')
    with pytest.raises(LeakageError, match='corpus studio'): crossing(voices, ['studio'], 'studio')


# --- classes and scopes

def test_classes_in_common(voices):
    "Calm is neutral; a class of one side only neither teaches nor is asked."
    pair = crossing(voices, ['studio'], 'stage')
    assert pair.classes.tolist() == [0, 1, 2, 3]
    for rows in (pair.fold.train, pair.fold.test): assert set(voices.y[rows]) == {0, 1, 2, 3}
    assert 'calm' in set(voices.clips['emotion'].iloc[pair.fold.train])
    p = carry_over(voices, pair, 'set', RECIPE)
    assert (p[:, 4:] == 0).all() and np.allclose(p.sum(axis=1), 1)


@pytest.mark.parametrize('scope', CROSSING_SCOPES)
def test_the_same_answers_twice(voices, scope):
    pair = crossings(voices, 'loco')[1]
    assert np.array_equal(*(carry_over(voices, pair, scope, RECIPE) for _ in range(2)))


def test_a_speaker_with_one_emotion_is_left_alone():
    known = Variances(emotion=.9, speaker=.5, within=.6)
    assert belief(0., 500, known) == 0 and belief(1., 60, known) > .9 > belief(1., 2, known)
    rng = np.random.default_rng(0)
    S = rng.normal(size=(120, 3)) + 4 * np.eye(3)[np.repeat([0, 1, 2], 40)]
    varied, alike = np.tile(['a', 'b', 'c'], 40), np.repeat(['a', 'b', 'c'], 40)
    known = Variances(emotion=16 * 2 / 3, speaker=.5, within=3.)
    assert min(emotions_heard(S, varied, known).values()) > .6
    assert max(emotions_heard(S, alike, known).values()) < .05
    assert emotions_heard(S[:41], alike[:41], known)['b'] == 0, 'one clip tells nothing of its speaker'


def test_scopes_treat_both_sides_alike(voices):
    pair = crossings(voices, 'loco')[1]
    sides = prepare(voices, pair, 'set')
    for name in pair.train:
        own, classes = (x[sides.corpus == name] for x in (sides.parts[0][0], sides.y))
        means, squares = (np.mean([part[classes == k].mean(axis=0) for k in np.unique(classes)], axis=0) for part in (own, own ** 2))
        assert np.allclose(means, 0) and np.allclose(squares, 1), 'every class has the same say'
    assert np.allclose(sides.parts[0][1].mean(axis=0), 0)
    whole, weights = prepare(voices, pair, 'inductive').parts[0], sides.weights
    assert np.allclose(weights @ whole[0], 0) and not np.allclose(whole[1].mean(axis=0), 0, atol=.1)


# --- input that can't be answered: one line each

def said(problem, call, *args, **more):
    with pytest.raises(SettingError, match=problem) as e: call(*args, **more)
    assert '\n' not in str(e.value) and len(str(e.value)) < 160


def test_no_class_in_common():
    apart = voices_of(a=table('a', ['happy', 'sad']), b=table('b', ['angry', 'disgust'], seed=1))
    said('a and b have no class in common', crossing, apart, ['a'], 'b')
    one = voices_of(a=table('a', ['happy', 'sad']), b=table('b', ['happy', 'disgust'], seed=1))
    said('only happy in common', crossing, one, ['a'], 'b')


def test_one_corpus_and_unknown_words(voices):
    said('needs two corpora, there is 1', crossings, voices_of(a=table('a', ['happy', 'sad'])), 'loco')
    said('neither transfer nor loco', crossings, voices, 'actor')
    said("scope 'speaker' is not one of", prepare, voices, crossings(voices, 'loco')[0], 'speaker')


def test_columns_and_labels_that_are_not_there():
    bare = table('a', ['happy', 'sad'])
    said('a: no columns of whisper_tiny_1; measure it with --extended', gather, dict(a=bare[['clip', 'actor', 'emotion']]), columns)
    said('no clip has an emotion', gather, dict(a=bare.assign(emotion='')), columns)
    assert list(block_means(bare)) == list(BLOCKS)


def test_one_speaker():
    "A target of one speaker is answered; a single speaker who teaches allows no scope adapted and no choice."
    pair_of = lambda v: crossing(v, ['a'], 'b')
    asked = voices_of(a=table('a', ['happy', 'sad']), b=table('b', ['happy', 'sad'], speakers=1, clips=6, seed=1))
    for scope in CROSSING_SCOPES: assert np.isfinite(carry_over(asked, pair_of(asked), scope, RECIPE)).all()
    taught = voices_of(a=table('a', ['happy', 'sad'], speakers=1, clips=6), b=table('b', ['happy', 'sad'], seed=1))
    assert carry_over(taught, pair_of(taught), 'set', RECIPE).shape == (48, 7)
    said('two training speakers', carry_over, taught, pair_of(taught), 'adapted', RECIPE)
    said('has one speaker', choose_recipe, taught, pair_of(taught), 'set', [RECIPE])


def test_one_clip():
    "One clip per class: answered by itself, and too little for a recording set."
    few = voices_of(a=table('a', ['happy', 'sad']), b=table('b', ['happy', 'sad'], speakers=1, clips=1, seed=1))
    pair = crossing(few, ['a'], 'b')
    assert carry_over(few, pair, 'inductive', RECIPE).shape == (2, 7)
    for scope in ('set', 'adapted'): said(f'needs {FEWEST_OF_A_SET} clips of b, there are 2', carry_over, few, pair, scope, RECIPE)


def test_rows_of_the_predictions_table(voices):
    from emotion_study.metrics import summary
    from emotion_study.evidence import check_rows
    pair = crossings(voices, 'loco')[2]
    rows = transfer_rows(voices, pair, 'set', 'blocks', carry_over(voices, pair, 'set', RECIPE))
    assert check_rows(rows) == [] and rows['model'].unique().tolist() == ['blocks, studio+stage to shows']
    assert pd.api.types.is_integer_dtype(rows['actor']) and set(rows['protocol']) == {'loco'}
    assert summary(rows).loc['uar', 'actors'] == 6


# --- a user's own corpora

def test_pairs_that_end_at_a_corpus(voices):
    assert [p.name for p in pairs_to(voices, 'shows', 'transfer')] == ['studio to shows', 'stage to shows']
    assert [p.name for p in pairs_to(voices, 'shows', 'loco')] == ['studio+stage to shows']
    said('loco needs two corpora', pairs_to, voices_of(a=table('a', ['happy', 'sad']), b=table('b', ['happy', 'sad'], seed=1)), 'b', 'loco')


def test_a_scope_that_can_not_be_had_is_told_and_the_others_go_on():
    few = voices_of(a=table('a', ['happy', 'sad']), b=table('b', ['happy', 'sad'], speakers=1, clips=1, seed=1))
    told = []
    rows = cross_corpora(few, pairs_to(few, 'b', 'transfer'), RECIPE, say=told.append)
    assert set(rows['scope']) == {'inductive'} and len(rows) == 2
    assert told[0].endswith('classes in common: happy, sad') and sum('is left out' in line for line in told) == 2
    said('no scope is left', cross_corpora, few, pairs_to(few, 'b', 'transfer'), RECIPE, ('set',), say=told.append)


def test_crossing_is_what_the_chapter_computes(voices):
    pair, = pairs_to(voices, 'shows', 'loco')
    rows = cross_corpora(voices, [pair], RECIPE, say=lambda line: None)
    for scope in CROSSING_SCOPES:
        own = rows[rows['scope'] == scope].filter(like='p_').to_numpy()
        assert np.allclose(own, carry_over(voices, pair, scope, RECIPE), atol=1e-4)
