"Knowing when not to answer: promises about other speakers, thresholds, and entries that the audit derives anew."
import numpy as np, pandas as pd, pytest
from scipy.special import softmax

from emotion_study.core import label_names
from emotion_study.metrics import (
    NotComputed, acted_emotions, from_others, group_quantile, of_emotions, prediction_sets,
    risk_area, risk_coverage, speaker_ratio, threshold_for)
from emotion_study.evidence import Runs, check_results, make_entry


def said(speakers, clips, seed, hard=1., classes=8, shift=0., **more):
    "Invented answers of one run; speakers differ in how hard they are."
    rng, names = np.random.default_rng(seed), label_names(classes)
    actor = np.repeat(np.arange(speakers), clips)
    truth = rng.integers(0, classes, len(actor))
    p = softmax((3 - shift + hard * rng.normal(size=speakers))[actor, None] * np.eye(classes)[truth] + rng.normal(size=(len(actor), classes)), axis=1).round(4)
    rows = pd.DataFrame(dict(protocol='actor', classes=classes, scope='inductive', model='m', modalities='voice', folds=6, seed=0, fold=actor % 6,
                             clip=[f'c{i}' for i in range(len(actor))], actor=actor, emotion=np.array(names)[truth]) | more)
    return rows.assign(**{f'p_{n}': p[:, i] for i, n in enumerate(names)})


def scores(rows):
    truth, p, actors = of_emotions(rows)
    return 1 - p[np.arange(len(p)), truth], actors


@pytest.mark.parametrize('level', [.8, .9])
def test_the_promise_holds_for_new_speakers(level):
    plain, cautious = [], []
    for seed in range(30):
        score, actors = scores(said(24, 10, seed))
        learn = actors < 23
        for kept, careful in ((plain, False), (cautious, True)):
            kept.append(np.mean(score[~learn] <= group_quantile(score[learn], actors[learn], level, careful)))
    assert abs(np.mean(plain) - level) < .05, 'over many draws the plain promise is kept on average'
    assert np.mean(cautious) > level and np.mean(cautious) < level + .1


def test_a_speaker_with_many_clips_counts_no_more_than_another():
    score, who = np.r_[np.full(90, .1), np.full(10, .7)], np.repeat([1, 2], [90, 10])
    assert group_quantile(score, who, .6) == .7 and np.quantile(score, .6) < .2


def test_a_promise_learns_nothing_from_its_own_speaker():
    rows = said(8, 12, 3)
    score, actors = scores(rows)
    q = from_others(actors, lambda rest: group_quantile(score[rest], actors[rest]))
    for a in range(8):
        changed = np.where(actors == a, np.random.default_rng(a).random(len(score)), score)
        again = from_others(actors, lambda rest: group_quantile(changed[rest], actors[rest]))
        assert np.array_equal(q[actors == a], again[actors == a])
    with pytest.raises(NotComputed, match='other speakers'): from_others([1, 1, 1], lambda rest: 0)


def test_sets_hold_what_the_quantile_allows():
    p = np.array([[.7, .2, .1], [.4, .35, .25], [.34, .33, .33]])
    assert prediction_sets(p, .65).tolist() == [[True, False, False], [True, True, False], [False] * 3]
    assert prediction_sets(p, np.inf).all() and not prediction_sets(p, np.array([.1, .1, .1])).any()


def test_risk_over_coverage_agrees_with_counting():
    rng = np.random.default_rng(0)
    confidence = rng.random(500).round(2)
    right = rng.random(500) < confidence
    curve = risk_coverage(confidence, right)
    for r in curve.iloc[::17].itertuples():
        given = confidence >= r.threshold
        assert np.isclose(r.coverage, given.mean()) and np.isclose(r.risk, (~right[given]).mean())
    assert curve['coverage'].iloc[-1] == 1 and risk_area(curve) < curve['risk'].iloc[-1], 'a confidence that knows something'
    least = threshold_for(curve, .8)
    assert right[confidence >= least].mean() >= .8
    assert threshold_for(risk_coverage(np.ones(50), np.zeros(50)), .5) == np.inf


def test_some_emotions_of_a_run():
    rows = said(5, 40, 1)
    assert acted_emotions(rows) == list(label_names(8))
    truth, p, actors = of_emotions(rows, label_names(7))
    merged = rows['p_neutral'] + rows['p_calm']
    assert np.allclose(p[:, 0], merged / rows.filter(like='p_').sum(axis=1)) and len(truth) == len(rows)
    few, q, _ = of_emotions(rows, ['angry', 'sad'])
    assert set(few) == {0, 1} and len(few) == rows['emotion'].isin(['angry', 'sad']).sum() and np.allclose(q.sum(axis=1), 1)
    ratio = speaker_ratio(truth == p.argmax(axis=1), actors)
    assert len(ratio) == 6 and np.isclose(ratio[0], np.mean(truth == p.argmax(axis=1)))


HOME = dict(protocol='actor', classes=8, scope='inductive', model='m', modalities='voice')
ABROAD = HOME | dict(protocol='transfer', classes=7, model='blocks, a to b')
WANTED = [('calibration_gap', {}), ('risk_area', {}), ('set_coverage', dict(level=90)), ('set_coverage', dict(level=90, promise='next speaker')),
          ('set_size', dict(level=90)), ('set_single', dict(level=90)), ('answer_threshold', dict(target=90)), ('answered', dict(target=90)),
          ('answered_right', dict(target=90))]


@pytest.fixture(scope='module')
def runs():
    away = said(9, 30, 7, classes=7, shift=1.5, protocol='transfer', model='blocks, a to b', folds=1, fold=0)
    return Runs(pd.concat([said(24, 20, 5), away[away['emotion'] != 'disgust']], ignore_index=True))


def test_entries_are_derived_anew_and_a_changed_one_is_noticed(runs):
    entries = [make_entry(runs, m, HOME, 'x', **more) for m, more in WANTED]
    entries += [make_entry(runs, m, ABROAD, 'x', HOME, **more) for m, more in WANTED[2:] if m not in ('answer_threshold',) and 'promise' not in more]
    assert len({e['id'] for e in entries}) == len(entries) and check_results(runs, entries)[0] == []
    for e in entries:
        if e['value'] is None: continue
        assert any('value is' in fault for fault in check_results(runs, [e | dict(value=e['value'] + .01)])[0])


def test_a_promise_breaks_where_answers_get_worse(runs):
    home, away = make_entry(runs, 'set_coverage', HOME, 'x', level=90), make_entry(runs, 'set_coverage', ABROAD, 'x', HOME, level=90)
    assert abs(home['value'] - 90) < 2 and away['value'] < 85 and home['lo'] < home['value'] < home['hi']


def test_few_speakers_have_figures_and_no_intervals():
    two = Runs(said(2, 20, 1))
    entry = make_entry(two, 'set_coverage', HOME, 'x', level=90)
    assert entry['value'] is not None and entry['lo'] is None and '2 speakers' in entry['reason']
    alone = make_entry(Runs(said(1, 20, 1)), 'set_coverage', HOME, 'x', level=90)
    assert alone['value'] is None and 'other speakers' in alone['reason']
    none = make_entry(Runs(said(4, 30, 2, shift=4.)), 'answered_right', HOME, 'x', target=95)
    assert none['value'] is None and none['reason'] == 'no clip was answered'
