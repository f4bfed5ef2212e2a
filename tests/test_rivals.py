"""Published rivals: their answers clip by clip, EmoBox's folds, and the table of figures with its sources."""
import os
import numpy as np
import pandas as pd
import pytest
from pathlib import Path

from emotion_study import evidence, references, protocols
from emotion_study.core import EMOTIONS, SettingError, describe, expected_codes
from emotion_study.statistics import by_actor

ROOT = Path(__file__).resolve().parent.parent
GRID = pd.DataFrame([describe(c) for c in expected_codes()]).sort_values('clip', ignore_index=True)


# --- a rival's answers

def published():
    "The folder with the published posteriors; skips where it is not here."
    named = os.environ.get('EMOTION_STUDY_PUBLISHED')
    places = [Path(named)] if named else [ROOT / 'data' / 'published', ROOT.parent / 'shared' / 'data' / 'published']
    here = [p for p in places if p.is_dir()]
    if not here: pytest.skip('no published posteriors on this machine (set EMOTION_STUDY_PUBLISHED)')
    return here[0]


def written(folder, system='fusion', cloned=False):
    "Files of one system, in which every clip is named rightly but those of actor 24."
    rival = references.RIVALS[system]
    for fold, rows in GRID.groupby(GRID['actor'] % references.RIVAL_FOLDS):
        answer = np.where(rows['actor'] == 24, 'calm', rows['emotion'])
        P = np.where(answer[:, None] == np.array(rival.order), .93, .01)
        table = pd.DataFrame(np.log(P) + 2 if rival.logits else P, columns=[f'embs{i}' for i in range(8)])
        table[rival.clip] = ['01' + c[2:] for c in rows['clip']]
        if rival.more: table['emotion'], table['actor'] = rows['emotion'].str.title().to_numpy(), rows['actor'].to_numpy()
        path = folder / rival.files[cloned].format(fold)
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, sep=';', index=False)
    return folder


@pytest.mark.parametrize('system', list(references.RIVALS))
@pytest.mark.parametrize('cloned', [False, True])
def test_answers_are_read_in_each_system_s_own_order(tmp_path, system, cloned):
    table = references.read_rival(written(tmp_path, system, cloned), system)
    assert table['clip'].tolist() == GRID['clip'].tolist() and (table['emotion'] == GRID['emotion']).all()
    assert np.allclose(table[[f'p_{e}' for e in EMOTIONS]].sum(axis=1), 1) and set(table['fold']) == {0, 1, 2, 3, 4}
    by = by_actor(table)
    assert (by.drop(24) == 100).all() and by[24] == pytest.approx(100 * 8 / 60), 'its calm clips only'


def test_a_folder_may_hold_the_copies_in_a_folder_of_their_own(tmp_path):
    written(tmp_path / 'luna_jimenez_2022')
    assert len(references.read_rival(tmp_path)) == 1440


def spoil(folder, change, fold=1, system='fusion'):
    "Change one file of a system."
    path = folder / references.RIVALS[system].files[0].format(fold)
    change(pd.read_csv(path, sep=';')).to_csv(path, sep=';', index=False)


def doubled(t): return pd.concat([t, t.iloc[:1]])
def turned(t): return t.assign(embs0=t['embs0'] + 1)
def blank(t): return t.assign(embs3=[np.nan, *t['embs3'][1:]])
def named(t): return t.assign(video_name=['first', *t['video_name'][1:]])
def worded(t): return t.assign(embs2=['much', *t['embs2'][1:].astype(str)])


@pytest.mark.parametrize('change, says', [
    (doubled, 'clip 03-01-01-01-01-01-01 is there twice'), (lambda t: t.iloc[1:], '1 clip missing, such as 03-01-01-01'),
    (lambda t: t.drop(columns='embs7'), '8 columns, and it needs 9'), (lambda t: t.assign(more=1), '10 columns, and it needs 9'),
    (lambda t: t.iloc[:0], 'holds no clip'), (turned, 'no probabilities'), (blank, 'missing or no number'), (worded, 'missing or no number'),
    (named, "'first' is not a RAVDESS clip code")])
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, change, says):
    spoil(written(tmp_path), change)
    with pytest.raises(SettingError, match=says) as error: references.read_rival(tmp_path)
    assert '\n' not in str(error.value)


def test_labels_of_a_file_must_be_those_of_its_codes(tmp_path):
    spoil(written(tmp_path, 'voice'), lambda t: t.assign(actor=7), system='voice')
    with pytest.raises(SettingError, match='labelled otherwise'): references.read_rival(tmp_path, 'voice')


def test_a_missing_file_and_a_missing_folder_are_told(tmp_path):
    (written(tmp_path) / 'fusion_fold4.csv').unlink()
    with pytest.raises(SettingError, match='no fusion_fold4.csv .*MMEmotionRecognition'): references.read_rival(tmp_path)
    with pytest.raises(SettingError, match='no such folder'): references.read_rival(tmp_path / 'nowhere')
    (tmp_path / 'fusion_fold4.csv').write_text('')
    with pytest.raises(SettingError, match='fusion_fold4.csv: not a readable table'): references.read_rival(tmp_path)


def test_an_actor_of_two_folds_is_refused(tmp_path):
    written(tmp_path)
    a, b = (pd.read_csv(tmp_path / f'fusion_fold{i}.csv', sep=';') for i in (1, 2))
    pd.concat([b, a.iloc[:1]]).to_csv(tmp_path / 'fusion_fold2.csv', sep=';', index=False)
    a.iloc[1:].to_csv(tmp_path / 'fusion_fold1.csv', sep=';', index=False)
    with pytest.raises(SettingError, match='two folds'): references.read_rival(tmp_path)


@pytest.mark.parametrize('system, percent', [('fusion', 86.736), ('voice', 81.944)])
def test_the_published_answers_give_the_published_figures(system, percent):
    table = references.read_rival(published(), system)
    assert by_actor(table).mean() == pytest.approx(percent, abs=.001)
    folds = table.groupby('fold')['actor'].unique().map(sorted).to_dict()
    assert folds[0] == [2, 5, 14, 15, 16] and folds[4] == [1, 4, 9, 22], 'as their README lists them'


# --- EmoBox's folds

def test_the_folds_are_those_that_emobox_published():
    path = published() / 'emobox_ravdess_6fold_test_actors.csv'
    if not path.is_file(): pytest.skip(f'no {path.name} on this machine')
    listed = pd.read_csv(path).groupby('fold')['actor'].apply(lambda a: tuple(sorted(map(int, a))))
    assert tuple(listed) == protocols.EMOBOX


def test_emobox_folds_hold_what_they_promise():
    folds = protocols.make_folds(GRID, 'emobox', 8, seed=3)
    assert len(folds) == 6 and {f.folds for f in folds} == {6} and [f.fold for f in folds] == list(range(6))
    assert sorted(np.concatenate([f.test for f in folds])) == list(range(1440))
    for i, f in enumerate(folds):
        protocols.check_fold(f, GRID)
        assert set(GRID['actor'].iloc[f.test]) == set(protocols.EMOBOX[i])
        assert set(GRID['actor'].iloc[f.val]) == set(protocols.EMOBOX[(i + 1) % 6])
    again = protocols.make_folds(GRID, 'emobox', 7, seed=0)
    assert all(np.array_equal(a.train, b.train) for a, b in zip(folds, again)), 'neither seed nor classes move them'
    leaky = protocols.Fold('emobox', 0, 0, folds[0].train, folds[0].val, np.append(folds[0].test, folds[0].train[0]))
    with pytest.raises(protocols.LeakageError): protocols.check_fold(leaky, GRID)


def test_emobox_is_for_the_24_actors_of_ravdess():
    other = GRID.assign(actor='speaker ' + GRID['actor'].astype(str))
    for table, says in ((GRID[GRID['actor'] < 24], '23 of them and 0 other'), (other, '0 of them and 24 other')):
        with pytest.raises(SettingError, match=says): protocols.make_folds(table, 'emobox')
        assert says in protocols.obstacle(table, 'emobox')
    with pytest.raises(SettingError, match='has 6 folds here, not 5'): protocols.make_folds(GRID, 'emobox', k=5)


def predictions(folds):
    "A run that is always right."
    parts = [GRID.iloc[f.test][['clip', 'actor', 'emotion']].assign(fold=f.fold) for f in folds]
    table = pd.concat(parts, ignore_index=True)
    table = table.assign(protocol='emobox', classes=8, scope='inductive', model='m', modalities='voice', folds=6, seed=0)
    for e in EMOTIONS: table[f'p_{e}'] = (table['emotion'] == e).astype(float)
    return table


def test_the_audit_makes_the_folds_again_and_finds_other_ones():
    table = predictions(protocols.make_folds(GRID, 'emobox'))
    assert evidence.check_folds(table, GRID) == ([], 1)
    swapped = table.assign(fold=table['fold'].replace({0: 1, 1: 0}))
    assert evidence.check_folds(swapped, GRID)[0] == ['emobox, 8 classes, seed 0, 6 folds: the test folds are not those of the protocol']


# --- the table of figures

def test_a_figure_that_was_not_read_is_cited_at_second_hand_and_not_called_fair():
    rows = references.published_figures()
    unread = rows[rows['seen'] == references.SECOND_HAND]
    assert {'HiCMAE', 'Whisper-large, frozen'} <= set(unread['what']) and not (unread['fair'] == 'yes').any()
    assert (rows.loc[rows['protocol'].str.contains('random'), 'fair'] == 'no').all()


@pytest.mark.parametrize('what, value, metric, channels, classes', [
    ('transfer learning, late fusion', 80.08, 'accuracy', 'voice+face', 8), ('CFN-SR', 75.76, 'accuracy', 'voice+face', 8),
    ('Whisper-large, frozen', 79.3, 'uar', 'voice', 8), ('ResLSTM-SA', 65.2, 'uar', 'voice', 8),
    ('calibrated late fusion', 78.8, 'accuracy', 'voice+face', 8), ('the same model, LOSO', 48.06, 'accuracy', 'voice+face', '?'),
    ('HuBERT-base', 65.4, 'uar', 'voice', 8)])
def test_the_rows_that_were_missing_are_there(what, value, metric, channels, classes):
    row = references.published_figures().query('what == @what').iloc[0]
    assert (row['value'], row['metric'], row['channels'], row['classes']) == (value, metric, channels, classes)
    assert row['source'] and row['why'] and row['seen'] and row['protocol']
