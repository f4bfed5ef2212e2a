"""Tests that are judged by what they are for: no false alarms on equal runs, real differences found, refusal of unpaired input."""
import itertools, zipfile

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from emotion_study import metrics, references, statistics as tests
from emotion_study.core import SettingError, describe, expected_codes, label_names
from emotion_study.metrics import NotComputed

GRID = pd.DataFrame([describe(c) for c in expected_codes()]).sort_values('clip', ignore_index=True)


def answers(rate, seed, spread=0.):
    "Predictions that are right at a rate which differs between actors by `spread`."
    rng, names = np.random.default_rng(seed), label_names(8)
    truth = GRID.emotion.map(names.index).to_numpy()
    skill = np.clip(rate + rng.normal(0, spread, 25), 0, 1)[GRID.actor]
    said = np.where(rng.uniform(size=1440) < skill, truth, (truth + rng.integers(1, 8, 1440)) % 8)
    rows = GRID[['clip', 'actor', 'emotion']].assign(classes=8, seed=0, fold=0)
    return rows.assign(**{f'p_{n}': np.where(said == i, .86, .02) for i, n in enumerate(names)})


def test_intervals_over_actors_cover_and_those_over_clips_do_not():
    "Four hundred corpora whose actors differ: how often does the interval hold the true rate?"
    inside = {'actors': 0, 'clips': 0}
    for i in range(400):
        rng = np.random.default_rng(i)
        skill = np.clip(rng.normal(.7, .12, 24), 0, 1)
        right = 100 * (rng.uniform(size=(24, 60)) < skill[:, None])
        for name, values in dict(actors=right.mean(1), clips=right.ravel()).items():
            found = tests.mean_interval(values, answers=1440)
            inside[name] += found['lo'] <= 70 <= found['hi']
    assert 370 <= inside['actors'] <= 392 and inside['clips'] < 300, inside


def test_a_share_near_its_border_is_held_and_stays_inside():
    "At 98.5 %, with most of the errors on few speakers, where a percentile interval holds the truth in 85 of 100."
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        values = 100 * rng.binomial(60, rng.beta(32, .5, 24)) / 60
        found = tests.mean_interval(values, answers=1440)
        assert 0 <= found['lo'] <= found['value'] <= found['hi'] <= 100
        held += found['lo'] <= 100 * 32 / 32.5 <= found['hi']
    assert held >= 362, held


def test_the_interval_is_that_of_statsmodels_for_a_difference_and_of_scipy_where_nobody_differs():
    from statsmodels.stats.weightstats import DescrStatsW
    d = np.random.default_rng(0).normal(1, 4, 24)
    found = tests.mean_interval(d)
    assert np.allclose((found['lo'], found['hi']), DescrStatsW(d).tconfint_mean())
    none, some = tests.mean_interval(np.full(24, 100.), 288), tests.mean_interval(np.full(24, 75.), 288)
    assert np.allclose((none['lo'], none['hi']), 100 * np.array(stats.binomtest(288, 288).proportion_ci()))
    assert np.allclose((some['lo'], some['hi']), 100 * np.array(stats.binomtest(216, 288).proportion_ci()))


def test_leaving_out_a_speaker_agrees_with_counting_again():
    "The interval of UAR by the definition: each speaker's rows dropped from the table, three seeds."
    run = pd.concat([answers(.8, s, .1).assign(seed=s) for s in range(3)], ignore_index=True)
    def uar(rows): return np.mean([metrics.measures(metrics.confusion_by_actor(g).sum(0))['uar'] for _, g in rows.groupby('seed')])
    v, rest = uar(run), np.array([uar(run[run.actor != a]) for a in range(1, 25)])
    se = np.sqrt(23 / 24 * ((rest - rest.mean()) ** 2).sum()) / (v * (1 - v))
    wanted = 1 / (1 + np.exp(-(np.log(v / (1 - v)) + stats.t.ppf([.025, .975], 23) * se)))
    assert np.allclose(metrics.summary(run).loc['uar', ['lo', 'hi']].astype(float), wanted)


def test_fewer_than_three_speakers_have_no_interval():
    for few in ([50.], [50., 60.]):
        found = tests.mean_interval(few, 100)
        assert found['value'] == np.mean(few) and np.isnan([found['lo'], found['hi'], found['se']]).all()


def test_an_answer_without_probabilities_is_refused_and_named():
    "NumPy takes a row of NaN for class 0, which is right wherever somebody is neutral."
    run = answers(.7, 0).assign(model='late')
    at = run.index[run.emotion == 'neutral'][3]
    for lost in ([c for c in run if c.startswith('p_')], ['p_sad']):
        broken = run.copy()
        broken.loc[at, lost] = np.nan
        for f in (metrics.hits, metrics.summary, tests.by_actor, metrics.recalls):
            with pytest.raises(NotComputed, match=f"model late.*{run['clip'][at]}"): f(broken)
    with pytest.raises(NotComputed, match='no clip'): metrics.hits(run[:0])


def test_the_wilcoxon_test_with_ties_agrees_with_all_flips_of_the_ranks():
    assert tests.wilcoxon_exact([2, 2, 2, 2, 2]) == .0625, 'the smallest p of five actors is 2 / 2 ** 5'
    rng = np.random.default_rng(0)
    for n in (5, 8, 11):
        d = rng.integers(-3, 6, n).astype(float)
        d = d[d != 0]
        ranks = stats.rankdata(np.abs(d))
        sums = np.array(list(itertools.product([0, 1], repeat=len(d)))) @ ranks
        far = np.abs(sums - ranks.sum() / 2) >= abs(ranks[d > 0].sum() - ranks.sum() / 2) - 1e-9
        assert np.isclose(tests.wilcoxon_exact(d), far.mean())
        method = stats.PermutationMethod(n_resamples=np.inf)
        assert np.isclose(tests.wilcoxon_exact(d), stats.wilcoxon(d, method=method).pvalue)
    distinct = rng.normal(.3, 1, 12)
    assert np.isclose(tests.wilcoxon_exact(distinct), stats.wilcoxon(distinct, method='exact').pvalue)


@pytest.mark.parametrize('x, t, p', [([0, 0, 0], 0, 1), ([2., 2, 2], np.inf, 0), ([-.1] * 6, -np.inf, 0)])
def test_equal_differences_over_folds(x, t, p):
    found = tests.corrected_t(x, .25)
    assert (found['t'], found['p'], found['df']) == (t, p, len(x) - 1)


def test_pairs_that_were_never_confused_are_no_degrees_of_freedom():
    "With two emotions Bowker's and Stuart's tests are McNemar's; a third that is always right adds nothing."
    from statsmodels.stats.contingency_tables import mcnemar
    wanted = mcnemar([[30, 12], [2, 40]], exact=False, correction=False)
    for C in ([[30, 12], [2, 40]], [[30, 12, 0], [2, 40, 0], [0, 0, 9]], [[30, 0, 12], [0, 0, 0], [2, 0, 40]]):
        found = tests.confusion_symmetry(C)
        assert found['bowker_df'] == found['stuart_df'] == 1
        assert np.allclose([found['bowker'], found['stuart']], wanted.statistic)
        assert np.allclose([found['bowker_p'], found['stuart_p']], wanted.pvalue)
    apart = np.kron(np.eye(2), [[30, 12], [2, 40]])  # two pairs that are never mixed
    found = tests.confusion_symmetry(apart)
    assert found['bowker_df'] == found['stuart_df'] == 2 and np.isclose(found['stuart'], 2 * wanted.statistic)
    sparse = np.diag([9, 9, 9, 9]) + np.array([[0, 9, 0, 0], [2, 0, 9, 0], [0, 5, 0, 0], [0, 0, 0, 0]])
    found = tests.confusion_symmetry(sparse)
    assert found['bowker_df'] == 2 and np.isclose(found['bowker'], 49 / 11 + 16 / 14)


def test_a_test_that_was_not_computed_counts_in_its_family_and_is_undecided():
    found = tests.holm({'a': .01, 'b': np.nan, 'c': None, 'd': .04})
    assert np.allclose(found.adjusted[['a', 'd']], [.04, .12]) and found.adjusted[['b', 'c']].isna().all()
    assert found.rejected.tolist() == [True, False, False, False]
    with pytest.raises(SettingError, match='between 0 and 1'): tests.holm({'a': 1.2})


NAN = np.array([.5, np.nan, .7])

@pytest.mark.parametrize('call, says', [
    (lambda: tests.bootstrap_interval([]), 'there is not a value'), (lambda: tests.bootstrap_interval(NAN), '1 of 3'),
    (lambda: tests.mean_interval([]), 'not an actor'), (lambda: tests.mean_interval([np.nan] * 4), 'not an actor'),
    (lambda: tests.actor_tests(pd.Series(NAN), pd.Series(NAN)), '1 of 3'),
    (lambda: tests.mcnemar_exact([], []), 'same clips'), (lambda: tests.mcnemar_exact([1, 0], [1]), 'same clips'),
    (lambda: tests.cochran_q(np.zeros((0, 3))), 'needs clips'), (lambda: tests.cochran_q(np.ones((5, 1))), 'two runs'),
    (lambda: tests.corrected_t([1.], .25), 'two folds'), (lambda: tests.corrected_t(NAN, .25), '1 of 3'),
    (lambda: tests.bayesian_t([1, 2, 3], [1, 2]), 'different numbers'), (lambda: tests.bayesian_t(NAN, NAN), '1 of 3'),
    (lambda: tests.permutation_within([], [], []), 'no clip'),
    (lambda: tests.friedman_nemenyi(pd.DataFrame({'a': NAN, 'b': 1 - NAN, 'c': [1., 2, 3]})), 'lacks a run'),
    (lambda: tests.agreement(np.ones((4, 1, 1))), 'two emotions'), (lambda: tests.confusion_symmetry(np.zeros((3, 3))), 'no clip'),
    (lambda: tests.reliability(NAN, [1, 0, 1]), '1 of 3'), (lambda: tests.ece(tests.reliability([], [])), 'not an answer'),
    (lambda: tests.brier_parts(np.full((3, 2), np.nan), [0, 1, 0]), '6 of 6'),
    (lambda: tests.clustered_logit('right ~ x', pd.DataFrame(dict(actor=np.arange(60) % 6, x=np.arange(60) % 2, right=1))), 'all outcomes'),
    (lambda: tests.correct_table({'a': pd.concat([answers(.7, 0)] * 2)}), 'a clip twice'),
    (lambda: tests.smallest_difference(np.nan), 'no spread')])
def test_what_is_empty_or_missing_is_refused(call, says):
    with pytest.raises(NotComputed, match=says): call()


def test_equal_runs_give_few_alarms_and_a_real_difference_is_found():
    alarms = [tests.actor_tests(tests.by_actor(answers(.7, 2 * i)), tests.by_actor(answers(.7, 2 * i + 1)))['wilcoxon'] < .05 for i in range(60)]
    assert sum(alarms) <= 9, 'a level of .05 gives three of sixty'
    found = tests.actor_tests(tests.by_actor(answers(.6, 1)), tests.by_actor(answers(.7, 2)))
    assert found['wilcoxon'] < .01 and 7 < found['difference'] < 13 and found['lo'] > 0


def test_a_run_against_itself_is_no_difference():
    run = answers(.7, 0, .1)
    same = tests.actor_tests(tests.by_actor(run), tests.by_actor(run))
    assert same['difference'] == 0 == same['better'] and same['wilcoxon'] == 1 == same['sign']
    right = tests.correct_table({'a': run, 'b': run})
    assert tests.mcnemar_exact(right.a, right.b)['midp'] == 1 and tests.cochran_q(right)['p'] == 1
    assert tests.corrected_t(np.zeros(6), .25)['p'] == 1
    assert tests.bayesian_t(np.ones(6), np.ones(6))['equivalent'] == 1


@pytest.mark.parametrize('call, says', [
    (lambda a: tests.correct_table({'a': a, 'b': a.iloc[1:]}), 'same clips'),
    (lambda a: tests.actor_tests(tests.by_actor(a), tests.by_actor(a[a.actor > 1])), 'same actors'),
    (lambda a: tests.friedman_nemenyi(pd.DataFrame({'a': [1, 2], 'b': [2, 1]})), 'three runs')])
def test_what_is_not_paired_is_refused(call, says):
    with pytest.raises(SettingError, match=says): call(answers(.7, 0))


def test_permutation_keeps_what_a_run_knows_about_people():
    "A run that only knows who speaks is no better than its shuffles, although it beats the largest class."
    rng = np.random.default_rng(0)
    actor = np.repeat(np.arange(24), 60)
    favourite = rng.integers(0, 8, 24)[actor]
    truth = np.where(rng.uniform(size=1440) < .5, favourite, rng.integers(0, 8, 1440))
    found = tests.permutation_within(truth, favourite, actor, 200)
    assert found['value'] > .5 and found['p'] > .9 and np.isclose(found['chance'], found['value'])
    assert tests.permutation_within(truth, truth, actor, 200)['p'] < .01


@pytest.mark.parametrize('n', [3, 5, 8, 13])
@pytest.mark.parametrize('kind', ['normal', 'ties', 'equal'])
def test_sign_flips_are_counted_exactly(n, kind):
    "Against all flips written down, and against scipy where it is quick."
    rng = np.random.default_rng(n)
    d = dict(normal=rng.normal(.4, 1, n), ties=rng.integers(-2, 4, n) / 60 * 5, equal=np.full(n, 1 / 3))[kind]
    sums = np.array(list(itertools.product([-1, 1], repeat=n))) @ d
    found = tests.sign_flip(d)
    assert found['exact'] and found['n'] == n and np.isclose(found['difference'], d.mean())
    assert np.isclose(found['p'], np.mean(np.abs(sums) >= abs(d.sum()) - 1e-9), atol=1e-12)
    if n == 8:
        scipy_p = stats.permutation_test((d,), np.mean, permutation_type='samples', n_resamples=np.inf).pvalue
        assert np.isclose(found['p'], scipy_p)


def test_sign_flips_of_many_actors_are_drawn_and_agree_with_the_count(monkeypatch):
    d = np.random.default_rng(1).normal(.3, 1, 27)
    drawn = tests.sign_flip(d)
    assert not drawn['exact'] and drawn == tests.sign_flip(d)
    monkeypatch.setattr(tests, 'FLIPPED', 30)
    assert abs(tests.sign_flip(d)['p'] - drawn['p']) < .003


def test_flips_that_are_drawn_never_give_zero():
    "The observed signs are one of the possible flips, and are counted among those drawn."
    assert tests.sign_flip(np.ones(40))['p'] == 1 / 100_000


@pytest.mark.parametrize('d, p', [([2] * 5, .0625), ([0] * 6, 1), ([0, 0, 1, 1, 1], .25), ([1, -1, 1, -1], 1)])
def test_sign_flips_known_by_hand(d, p):
    assert tests.sign_flip(d)['p'] == p == tests.sign_flip(pd.Series(d) * -1.)['p']


@pytest.mark.parametrize('d, says', [([], '0 speaker'), ([1, 2], '2 speaker'), ([1, 2, np.nan], 'no difference')])
def test_sign_flips_of_nothing_are_refused(d, says):
    with pytest.raises(NotComputed, match=says): tests.sign_flip(d)


def test_holm_rejects_no_more_than_bonferroni_allows_and_no_less():
    p = {'a': .001, 'b': .02, 'c': .03, 'd': .9}
    found = tests.holm(p)
    assert found.rejected.tolist() == [True, False, False, False] and (found.adjusted >= found.p).all()
    assert (found.adjusted <= np.minimum(1, 4 * found.p)).all()


def test_tempering_changes_no_answer_and_learns_from_other_actors():
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.full(8, .3), 1440)
    truth, actor = np.array([rng.choice(8, p=row) for row in p]), np.repeat(np.arange(24), 60)
    loud = metrics.tempered(p, .5, tests.LEAST)
    q = tests.temper_across(loud, truth, actor)
    assert (q.argmax(1) == loud.argmax(1)).all() and np.allclose(q.sum(1), 1)
    turned = np.where(actor == 0, (truth + 1) % 8, truth)
    assert np.allclose(q[actor == 0], tests.temper_across(loud, turned, actor)[actor == 0]), "an actor's own labels must not matter"


def test_brier_parts_add_up_and_ece_of_a_perfect_run_is_zero():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(7), 3000)
    parts = tests.brier_parts(p, rng.integers(0, 7, 3000))
    assert np.isclose(parts['brier'], parts['reliability'] - parts['resolution'] + parts['uncertainty'] + parts['within'])
    assert tests.ece(tests.reliability(np.ones(10), np.ones(10))) == 0 and tests.ece(tests.reliability(np.ones(10), np.zeros(10))) == 1


def test_the_smallest_difference_is_found_four_times_in_five():
    rng, small = np.random.default_rng(0), tests.smallest_difference(5., 24)
    found = [stats.ttest_1samp(rng.normal(small, 5, 24), 0).pvalue < .05 for _ in range(2000)]
    assert .76 < np.mean(found) < .84


def test_odds_of_a_known_model_are_recovered():
    rng, n = np.random.default_rng(0), 24 * 200
    rows = pd.DataFrame(dict(actor=np.repeat(np.arange(24), 200), x=rng.integers(0, 2, n)))
    rows['right'] = (rng.uniform(size=n) < 1 / (1 + np.exp(-(-.5 + 1. * rows.x)))).astype(int)
    found = tests.clustered_logit('right ~ x', rows)
    assert found.loc['x', 'lo'] < np.e < found.loc['x', 'hi'] and found.loc['x', 'hi'] < 4


# --- people

def xlsx(path, rows):
    def cell(r, c, v):
        at = f'{chr(65 + c)}{r + 1}'
        return f'<c r="{at}" t="s"><v>{texts.index(v)}</v></c>' if isinstance(v, str) else f'<c r="{at}"><v>{v}</v></c>'
    texts = sorted({v for row in rows for v in row if isinstance(v, str)})
    ns = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    body = ''.join(f'<row r="{r + 1}">' + ''.join(cell(r, c, v) for c, v in enumerate(row)) + '</row>' for r, row in enumerate(rows))
    with zipfile.ZipFile(path, 'w') as z:
        z.writestr('xl/worksheets/sheet1.xml', f'<worksheet {ns}><sheetData>{body}</sheetData></worksheet>')
        z.writestr('xl/sharedStrings.xml', f'<sst {ns}>' + ''.join(f'<si><t>{t}</t></si>' for t in texts) + '</sst>')
    return path


def test_ratings_are_read_for_the_asked_modality(tmp_path):
    rows = [['S1'], ['File', 'Raters', 'Accuracy'], ['03-01-05-02-01-01-12.wav', 10, .9], ['01-01-05-02-01-01-12.mp4', 10, 1.],
            ['03-02-05-02-01-01-12.wav', 10, .1], ['03-01-03-01-01-01-02.wav', 10, .4]]
    found = references.read_ratings(xlsx(tmp_path / 's1.xlsx', rows))
    assert found.to_dict() == {'03-01-05-02-01-01-12': 90., '03-01-03-01-01-01-02': 40.}, 'song is left out, video is another modality'
    assert references.read_ratings(tmp_path / 's1.xlsx', 1).to_dict() == {'03-01-05-02-01-01-12': 100.}


@pytest.mark.parametrize('make, says', [
    (lambda f: None, 'no such file'), (lambda f: f.write_text('not a zip'), 'not a readable xlsx'),
    (lambda f: xlsx(f, [['File', 'Loudness'], ['03-01-05-02-01-01-12', 3]]), 'accuracy or correct'),
    (lambda f: xlsx(f, [['File', 'Accuracy'], ['one', .5]]), 'clip codes'),
    (lambda f: xlsx(f, [['File', 'Accuracy'], ['03-01-05-02-01-01-12', 700]]), 'no shares'),
    (lambda f: xlsx(f, [['File', 'Accuracy'], ['01-01-05-02-01-01-12', .5]]), 'modality 3')])
def test_a_wrong_table_of_ratings_is_one_line(tmp_path, make, says):
    make(tmp_path / 's1.xlsx')
    with pytest.raises(SettingError, match=says) as error: references.read_ratings(tmp_path / 's1.xlsx')
    assert '\n' not in str(error.value)
