"""Corpora that are smaller than RAVDESS: sound only, a few actors, one actor, emotions or clips that are missing."""
import json, math, re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emotion_study import cli
from emotion_study.core import SettingError, label_names
from emotion_study.corpus import FaceSources, twin_corpus
from emotion_study.features import channels_of, feature_columns, left_out, offered
from emotion_study.protocols import first_folds, make_folds, obstacle
from emotion_study.metrics import recalls, result_entries, save_results, summary
from emotion_study.training import cross_validate, possible_runs, run_list, save_predictions
from emotion_study.evidence import Runs, audit_report, make_entry, make_ledger
from emotion_study.site import write_documents, write_ledger
from studies import RUN
from study_code import definitions
from test_cli import check_pages
from test_pipeline import toy_table


def whole_grid(actors):
    "A toy table with both sentences and both takes of some actors."
    table = pd.concat([toy_table(seed=i, actors=actors).assign(statement=1 + i % 2, repetition=1 + i // 2) for i in range(4)])
    code = lambda r: '-'.join([*r.clip.split('-')[:4], f'{r.statement:02d}', f'{r.repetition:02d}', r.clip.split('-')[6]])
    table = table.assign(clip=[code(r) for r in table.itertuples()])
    return table.sort_values('clip', ignore_index=True)


def without(table, *channels):
    return table.drop(columns=feature_columns(table, channels)).assign(**{f'valid.{c}': False for c in channels})


# --- what is there

def test_a_channel_without_columns_or_without_a_valid_clip_is_absent():
    table = toy_table(actors=3)
    assert channels_of(table) == ['voice', 'face', 'words'] and left_out(channels_of(table)) == ''
    for lacking in (without(table, 'face'), table.assign(**{'valid.face': False})):
        assert channels_of(lacking) == ['voice', 'words'] and left_out(channels_of(lacking)).startswith('Left out: every run with face')
        assert ('late', 'voice+face') not in run_list(lacking, ['late']) and ('network', 'voice+words') in run_list(lacking, ['network'])
        assert possible_runs(lacking, [('pool', 'voice+face'), ('pool', 'voice')]) == [('pool', 'voice')]
    assert channels_of(without(table, 'face', 'words')) == ['voice']


@pytest.mark.parametrize('actors, missing', [
    (24, set()), (4, {'18'}), (3, {'18'}),
    (2, {'03', '04', '05', '06', '07', '08', '09', '10', '14', '15', '18', '90', '96'}),
    (1, {'03', '04', '05', '06', '07', '08', '09', '10', '14', '15', '18', '90', '96'})])
def test_the_plan_says_what_needs_more_speakers(actors, missing):
    twin = twin_corpus()
    corpus = replace(twin, clips=twin.clips[twin.clips.actor <= actors].reset_index(drop=True), synthetic=False,
                     faces=FaceSources(xception_frames=Path('there')))
    _, skipped = cli.plan({'ravdess', 'samples'}, corpus=corpus)
    assert {k[:2] for k, why in skipped.items() if 'speakers' in why} == missing
    assert all(why.startswith('it is optional') or '3 speakers' in why or 'published folds' in why
               for why in skipped.values())


def test_the_plan_says_what_needs_faces():
    twin = twin_corpus()
    sound = replace(twin, synthetic=False)
    _, skipped = cli.plan({'ravdess', 'samples'}, corpus=sound)
    assert {k[:2] for k, why in skipped.items() if 'the channel face' in why} == {'09', '10', '14', '15', '90', '92', '95', '96', '97'}
    assert offered(sound) == ['voice', 'words'] and offered(twin) == ['voice', 'face', 'words']
    with pytest.raises(SettingError, match='09_pretrained_encoders .* the channel face') as error:
        cli.plan({'ravdess', 'samples'}, ['09'], corpus=sound)
    assert '\n' not in str(error.value)


# --- every kind can be trained and judged, and no figure is NaN

KINDS = dict(one_actor=lambda t: t[t.actor == 1], two_actors=lambda t: t[t.actor <= 2], sound_only=lambda t: without(t, 'face', 'words'),
             men=lambda t: t[t.sex == 'male'], no_sadness=lambda t: t[t.emotion != 'sad'],
             two_emotions=lambda t: t[t.emotion.isin(['neutral', 'angry'])], one_sentence=lambda t: t[t.statement == 1],
             normal_only=lambda t: t[t.intensity == 'normal'],
             gaps=lambda t: t[np.random.default_rng(0).random(len(t)) > .3],
             deaf=lambda t: t.assign(**{'valid.voice': np.arange(len(t)) % 5 > 0}))


def report_of(folder, table):
    "A small report on a table: random splits, and new speakers where there are three."
    record = dict(corpus='ravdess', profile='quick', seeds=1, synthetic=False, clips=len(table), notice='', codes=sorted(table['clip']))
    (folder / 'run.json').write_text(json.dumps(record))
    entries = []
    for protocol, classes in (('random', 7), ('actor', 7), ('actor', 8)):
        if obstacle(table, protocol, classes): continue
        said = cross_validate(table, protocol, classes, 'inductive', models=['late', *run_list(table, ['pool'])[-1:]], jobs=1)
        save_predictions(folder, said)
        entries += result_entries(said, 'made')
    save_results(folder, entries, 'made')
    ledger, made = make_ledger(folder, definitions('98_claims_ledger').CLAIMS)
    save_results(folder, made, '98_claims_ledger')
    write_ledger(folder, ledger)
    write_documents(folder)
    return ledger


def no_nan(value):
    if isinstance(value, dict): return all(map(no_nan, value.values()))
    if isinstance(value, list): return all(map(no_nan, value))
    return not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize('kind', KINDS)
def test_a_report_on_every_kind_passes_its_audit(kind, tmp_path, monkeypatch):
    monkeypatch.setenv('EMOTION_STUDY_REPORT', str(tmp_path.resolve()))  # as the command says which report is open
    table = KINDS[kind](whole_grid(actors=4)).reset_index(drop=True)
    ledger = report_of(tmp_path, table)
    assert audit_report(tmp_path).faults == []
    assert no_nan(ledger) and no_nan(json.loads((tmp_path / 'results.json').read_text()))
    for page in ('parts/claims.html', 'parts/checklists.html'): assert not re.search(r'\bnan\b', (tmp_path / page).read_text(), re.I)
    assert all(c['verdict'] and c['why'] for c in ledger['claims'])
    speakers = table.actor.nunique()
    entries = [e for e in json.loads((tmp_path / 'results.json').read_text()) if e['metric'] == 'accuracy']
    assert entries and all((e['lo'] is None) == (speakers < 3) == ('reason' in e) for e in entries)


def test_two_speakers_have_figures_and_no_intervals(tmp_path):
    table = whole_grid(actors=2)
    said = cross_validate(table, 'random', 7, 'adapted', models=['late'], jobs=1)
    assert summary(said[said.modalities == 'voice'])[['lo', 'hi']].isna().all(axis=None)
    about = dict(protocol='random', classes=7, scope='adapted', model='late', modalities='voice')
    for metric in ('wilcoxon_p', 'smallest_difference', 'accuracy_difference'):
        entry = make_entry(Runs(said), metric, about, 'x', against=about | dict(modalities='words'))
        assert '2 speakers' in entry['reason'] and entry['lo'] is None, metric


def test_an_emotion_that_nobody_acts_has_no_recall():
    table = whole_grid(actors=4)
    said = cross_validate(table[table.emotion != 'sad'].reset_index(drop=True), 'actor', 7, 'inductive', models=[('linear', 'voice')], jobs=1)
    assert set(recalls(said).index) == set(label_names(7)) - {'sad'}
    about = dict(protocol='actor', classes=7, scope='inductive', model='linear', modalities='voice')
    entry = make_entry(Runs(said), 'recall', about, 'x', emotion='sad')
    assert entry['value'] is None and entry['reason'] == 'no clip acts sad'


def test_a_quick_look_tests_three_speakers_whatever_the_corpus():
    for actors, folds in ((24, 2), (6, 3), (4, 3), (3, 3)):
        grid = whole_grid(actors)
        assert len(first_folds(make_folds(grid, 'actor'), grid)) == folds


# --- real clips


def shown_numbers(folder):
    "What the executed notebooks show: texts, not pictures."
    for path in sorted((folder / 'notebooks').glob('*.ipynb')):
        for cell in json.loads(path.read_text())['cells']:
            for out in cell.get('outputs', []):
                text = out.get('text') or out.get('data', {}).get('text/plain', '')
                yield path.stem, ''.join(text)


@pytest.mark.realdata
@pytest.mark.parametrize('kind', [pytest.param(kind, marks=pytest.mark.study(kind)) for kind in RUN])
def test_the_quick_study_on_four_actors(studies, kind):
    report, said = studies.report(kind)
    assert ('Left out: every run with face' in said) == (kind == 'sound')
    check_pages(report, synthetic=False)
    assert audit_report(report).faults == []
    run = json.loads((report / 'run.json').read_text())
    assert [n[:2] for n in run['notebooks']] == RUN[kind]
    assert no_nan(json.loads((report / 'results.json').read_text()))
    assert not [(name, text) for name, text in shown_numbers(report) if re.search(r'\bnan\b', text, re.I)]
