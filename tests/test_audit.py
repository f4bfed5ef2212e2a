"""The audit: a sound report passes, and every kind of tampering with the committed one is found."""
import json, shutil, subprocess, sys

import numpy as np
import pandas as pd
import pytest

from emotion_study import evidence, protocols
from emotion_study.core import ROOT, SettingError, describe, expected_codes, label_names
from emotion_study.metrics import METRICS, NotComputed, result_entries
from emotion_study.training import save_predictions

REPORT = ROOT / 'reports' / 'ravdess'
GRID = pd.DataFrame([describe(c) for c in expected_codes()]).sort_values('clip', ignore_index=True)


def command(*args):
    code = 'import sys; from emotion_study.cli import main; main()'
    return subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, cwd=ROOT, timeout=300)


# --- the committed report

def test_the_committed_report_is_what_its_predictions_say():
    done = command('audit', REPORT)
    assert done.returncode == 0 and 'no difference found' in done.stdout, done.stdout + done.stderr


def test_the_audit_needs_no_tensorflow_and_no_sound():
    code = ("import sys, emotion_study.evidence\n"
            "print(sorted({'tensorflow', 'keras', 'librosa', 'soundfile', 'av', 'emotion_study.training'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == '[]', done.stdout + done.stderr


@pytest.fixture(scope='module')
def part(tmp_path_factory):
    "Two runs of the committed report as a small report of their own."
    folder = tmp_path_factory.mktemp('report')
    table = pd.read_parquet(REPORT / 'predictions.parquet')
    table = table[(table.protocol == 'actor') & (table.classes == 8) & (table.model == 'linear') & (table.modalities == 'voice')]
    table.to_parquet(folder / 'predictions.parquet')
    shutil.copy(REPORT / 'run.json', folder)
    entries = result_entries(table, '04_new_speakers')
    outside = entries[0] | dict(id='benchmark/s', metric='seconds', value=3., outside='a clock')
    (folder / 'results.json').write_text(json.dumps([*entries, outside]))
    evidence.write_digests(folder)
    assert len(entries) == 8 and evidence.audit_report(folder).faults == []
    return folder


def spoil(part, tmp_path, table=lambda t: t, entries=lambda e: e, claims=None):
    folder = tmp_path / 'report'
    shutil.copytree(part, folder)
    table(pd.read_parquet(part / 'predictions.parquet')).to_parquet(folder / 'predictions.parquet')
    (folder / 'results.json').write_text(json.dumps(entries(json.loads((part / 'results.json').read_text()))))
    if claims is not None: (folder / 'claims.json').write_text(json.dumps(dict(claims=claims)))
    return evidence.audit_report(folder).faults


def first(**change): return lambda entries: [entries[0] | change, *entries[1:]]


@pytest.mark.parametrize('change, says', [
    (dict(value=99.), 'value is 99'), (dict(lo=0.), 'lo is 0'), (dict(hi=None), 'hi is None'), (dict(n=1441), 'n is 1441'),
    (dict(seeds=20), 'seeds is 20'), (dict(model='oracle'), 'no run'), (dict(metric='charm'), "doesn't say `outside`"),
    (dict(outside='a clock'), "can't be `outside`")])
def test_an_entry_that_was_touched_is_found(part, tmp_path, change, says):
    faults = spoil(part, tmp_path, entries=first(**change))
    assert any(says in f for f in faults), faults


@pytest.mark.parametrize('by', [.01, -.01, .0001, -.00001])
def test_an_entry_that_is_a_little_off_is_found(part, tmp_path, by):
    faults = spoil(part, tmp_path, entries=lambda entries: [e | dict(value=e['value'] + by) for e in entries])
    assert len(faults) == 9 and sum('value is' in f for f in faults) == 8


def test_figures_are_kept_in_full(part):
    "Rounded to two digits and then to one, 97.448 becomes 97.5."
    entries = json.loads((part / 'results.json').read_text())
    assert max(abs(e[k] - round(e[k], 2)) for e in entries for k in ('value', 'lo', 'hi')) > .001


def test_one_entry_twice_is_found(part, tmp_path):
    assert 'written twice' in spoil(part, tmp_path, entries=lambda e: e + e[:1])[0]


@pytest.mark.parametrize('change, says', [
    (lambda t: pd.concat([t, t[:1]]), 'answered twice'),
    (lambda t: t.iloc[1:], 'test clip'),
    (lambda t: t.assign(emotion=np.where(t['clip'] == t['clip'].iloc[0], 'angry', t.emotion)), 'labelled angry'),
    (lambda t: t.assign(actor=np.where(t['clip'] == t['clip'].iloc[0], 24, t.actor)), 'actor 24'),
    (lambda t: t.assign(fold=np.where(t['clip'] == t['clip'].iloc[0], (t.fold + 1) % 6, t.fold)), 'several folds'),
    (lambda t: t.assign(fold=(t.fold + 1) % 6), 'not those of the protocol'),
    (lambda t: t.assign(model=t.model.where(np.arange(len(t)) != 50)), 'no run would hold'),
    (lambda t: t.assign(p_happy=t.p_happy + 1), 'sum to one'),
    (lambda t: t.assign(p_happy=t.p_happy / 2), 'sum to one'),
    (lambda t: t.assign(p_happy=np.nan), 'sum to one')])
def test_predictions_that_were_touched_are_found(part, tmp_path, change, says):
    faults = spoil(part, tmp_path, table=change)
    assert any(says in f for f in faults), faults


def test_better_probabilities_are_found(part, tmp_path):
    "Ten answers put right after the fact: the figures no longer follow."
    def improve(t):
        t = t.reset_index(drop=True)
        for i in range(10): t.loc[i, [c for c in t if c.startswith('p_')]] = [float(c == f'p_{t.emotion[i]}') for c in t if c.startswith('p_')]
        return t
    assert any('value is' in f for f in spoil(part, tmp_path, table=improve))


def soften(t):
    "One clip of one run a little less sure, with the same answer."
    t = t.reset_index(drop=True)
    p = [f'p_{n}' for n in label_names(8)]
    top, low = t.loc[50, p].astype(float).idxmax(), t.loc[50, p].astype(float).idxmin()
    t.loc[50, [top, low]] += np.array([-.0001, .0001], 'float32')
    return t


@pytest.mark.parametrize('change', [soften, lambda t: t.drop(t.index[50]),
                                    lambda t: t.assign(seed=t.seed.where(np.arange(len(t)) != 50, 7))])
def test_a_changed_row_is_named_by_run_and_clip(part, tmp_path, change):
    table = pd.read_parquet(part / 'predictions.parquet')
    run, clip = 'actor/8/inductive/linear/voice', table['clip'].iloc[50]
    if table.scope.iloc[50] != 'inductive': run = run.replace('inductive', table.scope.iloc[50])
    faults = [f for f in spoil(part, tmp_path, table=change) if 'digests.json' in f]
    assert len(faults) == 1 and faults[0].startswith(f'{run}: rows') and clip in faults[0] and faults[0].endswith(', of 1')


def test_the_order_of_rows_is_no_change(part, tmp_path):
    assert spoil(part, tmp_path, table=lambda t: t.sample(frac=1, random_state=1)) == []


def test_a_run_more_or_less_is_found(part, tmp_path):
    less = spoil(part, tmp_path / 'a', table=lambda t: t[t.scope == 'adapted'])
    more = spoil(part, tmp_path / 'b', table=lambda t: pd.concat([t, t[t.scope == 'adapted'].assign(model='new')]))
    assert any('no longer in the report' in f for f in less) and any('the run is not in digests.json' in f for f in more)


@pytest.mark.parametrize('change, says', [
    (lambda e: [x | dict(value=2.9) if 'outside' in x else x for x in e], 'benchmark/s: the figure from outside was changed'),
    (lambda e: [x | dict(outside='another clock') if 'outside' in x else x for x in e], 'was changed'),
    (lambda e: [x for x in e if 'outside' not in x], 'no longer in the report'),
    (lambda e: [*e, e[-1] | dict(id='benchmark/t')], 'benchmark/t: the figure from outside is not in digests.json')])
def test_a_changed_figure_from_outside_is_found(part, tmp_path, change, says):
    faults = spoil(part, tmp_path, entries=change)
    assert len(faults) == 1 and says in faults[0], faults


def test_a_report_without_digests_is_audited_and_says_what_that_leaves(part, tmp_path):
    shutil.copytree(part, tmp_path / 'r')
    (tmp_path / 'r' / 'digests.json').unlink()
    found = evidence.audit_report(tmp_path / 'r')
    assert found.faults == [] and any('no digests.json' in line for line in found.lines())
    assert not any('no digests.json' in line for line in evidence.audit_report(part).lines())


# --- pairs

def test_runs_on_other_clips_or_under_other_seeds_are_no_pair(part):
    table = pd.read_parquet(part / 'predictions.parquet')
    a, b = table[table.scope == 'inductive'], table[table.scope == 'adapted']
    alike = evidence.paired_difference(a, b)
    assert alike == evidence.paired_difference(a, b.sample(frac=1, random_state=0))
    for other, says in ((b[b.seed == 0], 'have 3 and 1 seeds'), (b.iloc[1:], 'same clips: 1 differ'),
                        (pd.concat([b, b[:1]]), 'same clips'), (b[b.actor > 1], 'same actors'),
                        (b.assign(seed=b.seed + 1), 'same clips')):
        with pytest.raises(NotComputed, match=says): evidence.paired_difference(a, other)
    assert evidence.paired_difference(a, b[b.seed == 0], by='actor')['lo'] < alike['value'], 'protocols are paired by actor'


def test_an_interval_of_a_difference_is_that_of_the_paired_t_test(part):
    "All speakers have as many clips, so leaving one out is the textbook's paired t-test over speakers."
    from scipy import stats
    from emotion_study.statistics import by_actor
    table = pd.read_parquet(part / 'predictions.parquet')
    a, b = table[table.scope == 'inductive'], table[table.scope == 'adapted']
    found, wanted = evidence.paired_difference(a, b), stats.ttest_rel(by_actor(b), by_actor(a)).confidence_interval()
    assert np.allclose((found['lo'], found['hi']), (wanted.low, wanted.high))


def test_scikit_learn_agrees_on_every_measure_of_a_run_with_unequal_seeds(part):
    table = pd.read_parquet(part / 'predictions.parquet')
    rows = table[(table.scope == 'inductive') & ((table.seed > 0) | (table.emotion != 'sad'))]
    found, ours = evidence.by_sklearn(rows), 100 * evidence.summary_of(evidence.counts_by_seed(rows))['value']
    assert np.allclose([found[m] for m in METRICS], [ours[m] for m in METRICS])


def test_a_ledger_that_quotes_otherwise_is_found(part, tmp_path):
    entry = json.loads((part / 'results.json').read_text())[0]
    right = dict(id='c', figures=[{k: entry[k] for k in ('id', 'value', 'lo', 'hi')}])
    wrong = dict(id='c', figures=[right['figures'][0] | dict(value=99.)])
    assert spoil(part, tmp_path / 'a', claims=[right]) == []
    assert 'differs from results.json' in spoil(part, tmp_path / 'b', claims=[wrong])[0]


@pytest.mark.parametrize('missing', ['predictions.parquet', 'results.json', 'run.json'])
def test_a_folder_that_is_no_report_is_one_line(part, tmp_path, missing):
    shutil.copytree(part, tmp_path / 'r')
    (tmp_path / 'r' / missing).unlink()
    done = command('audit', tmp_path / 'r')
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and missing in done.stderr and 'Traceback' not in done.stderr


# --- protocols that the leakage audit adds

@pytest.mark.parametrize('protocol, folds, train', [('loso', 24, 23 * 60), ('statement', 12, 20 * 30)])
def test_new_protocols_keep_their_promise(protocol, folds, train):
    for seed in (0, 1, 17):
        made = protocols.make_folds(GRID, protocol, 7, seed)
        assert len(made) == folds and sorted(np.concatenate([f.test for f in made])) == list(range(1440))
        for f in made:
            assert len(f.fit) == train and not set(GRID.actor.iloc[f.test]) & set(GRID.actor.iloc[f.fit])
            if protocol == 'statement': assert set(GRID.statement.iloc[f.test]).isdisjoint(GRID.statement.iloc[f.fit])


def test_the_same_sentence_on_both_sides_raises():
    f = protocols.make_folds(GRID, 'actor', 7, 0)[0]
    with pytest.raises(protocols.LeakageError, match='statement'):
        protocols.check_fold(protocols.Fold('statement', 0, 0, f.train, f.val, f.test), GRID)
    with pytest.raises(SettingError, match='two sentences'): protocols.make_folds(GRID[GRID.statement == 1], 'statement')
    with pytest.raises(SettingError, match='3 speakers'): protocols.make_folds(GRID[GRID.actor < 3], 'loso')


# --- predictions are replaced run by run

def test_saving_a_run_leaves_other_runs_of_its_protocol(tmp_path):
    def run(model, p): return GRID[['clip', 'actor', 'emotion']].assign(
        protocol='actor', classes=8, scope='inductive', model=model, modalities='voice', seed=0, fold=0, p_neutral=p)
    for rows in (run('a', .1), run('b', .2), run('a', .3)): path = save_predictions(tmp_path, rows)
    saved = pd.read_parquet(path).groupby('model').p_neutral.agg(['size', 'first'])
    assert saved['size'].tolist() == [1440, 1440] and saved['first'].tolist() == [.3, .2]
