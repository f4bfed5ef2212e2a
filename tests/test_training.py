"""The stack of networks: variants, company, missing channels, the encoder's blocks, calibration; a run that is killed."""
import os, random, signal, subprocess, sys, threading, time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from emotion_study import training
from emotion_study.core import CHANNELS, EXTENDED, SPEEDS, SettingError
from emotion_study.protocols import LeakageError, SealedLabels, make_folds
from test_pipeline import toy_table


def with_blocks(table, seed=1, copies=('',)):
    "The toy table with four columns of an encoder's first block (and of its copies)."
    rng = np.random.default_rng(seed)
    names = [f'{EXTENDED[0]}{copy}.{i:03d}.mean' for copy in copies for i in range(4)]
    return pd.concat([table, pd.DataFrame(rng.normal(size=(len(table), len(names))), columns=names)], axis=1)


def trained(table, folds, scope='inductive', fusion='both', epochs=3, channels=CHANNELS, **alterations):
    columns = training.network_columns(table, channels)
    stack = training.NetworkStack(columns, 8, len(folds), fusion, **alterations)
    data = training.stack_data(table, folds, 8, scope, channels)
    training.fit_stack(stack, data, [training.network_seed(f, 0) for f in folds], epochs)
    return stack, data


def test_first_weights_depend_on_the_seed_alone():
    # Keras draws from the process's stream, from which another thread, such as one of a Dask worker, may draw too
    stack = training.NetworkStack(training.network_columns(toy_table(), CHANNELS), 8, 2)
    first, done = [], threading.Event()
    def draw():
        while not done.is_set(): random.random()
    for threads in ([], [threading.Thread(target=draw) for _ in range(2)]):
        for thread in threads: thread.start()
        stack.reset([3, 4])
        first.append([w.numpy() for w in stack.weights])
    done.set()
    assert all(np.array_equal(a, b) for a, b in zip(*first))


@pytest.mark.parametrize('fusion', ['mean', 'concat', 'gates', 'attention', 'both'])
def test_each_variant_is_a_run_of_its_own(fusion):
    said = training.cross_validate(toy_table(), 'actor', 8, 'inductive', [(f'network, {fusion}', 'voice+face')], epochs=2, jobs=1)
    assert set(said.model) == {f'network, {fusion}'} and np.allclose(said.filter(like='p_').sum(axis=1), 1, atol=1e-3)


@pytest.mark.parametrize('run, says', [(('network, magic', 'voice+face'), 'fusion'), (('netwrok', 'voice'), 'netwrok'),
                                       (('network', 'voice+smell'), 'smell')])
def test_an_unknown_run_is_told_in_one_line(run, says):
    with pytest.raises(SettingError, match=says):
        training.cross_validate(toy_table(), 'actor', 8, 'inductive', [run], epochs=1, jobs=1)


def test_labels_of_test_rows_are_not_in_what_a_stack_learns_from():
    table = toy_table()
    folds = make_folds(table, 'actor')
    data = training.stack_data(table, folds, 8, 'inductive', CHANNELS)
    n = len(table)
    for i, f in enumerate(folds):
        own = data.target[i * n:(i + 1) * n]
        assert (own[f.fit].sum(1) == 1).all() and not own[f.test].any()
        with pytest.raises(LeakageError): SealedLabels(np.zeros(n, int), f)[f.test]


def test_a_missing_channel_has_no_say():
    "What stands in the columns of an absent channel changes nothing, in any variant; its gate and its attention are shut."
    table = toy_table()
    folds = make_folds(table, 'actor')[:2]
    for fusion in ('mean', 'concat', 'gates', 'attention', 'both'):
        stack, data = trained(table, folds, fusion=fusion)
        present = data.present * np.array([1, 0, 1], 'float32')
        first = training.stack_outputs(stack, data, present=present)
        data.x['face'] = -3 * data.x['face']
        second = training.stack_outputs(stack, data, present=present)
        assert all(np.allclose(a['fused'], b['fused'], atol=1e-6) for a, b in zip(first, second)), fusion
        if fusion == 'both':
            assert not first[0]['gates'][:, 1].any() and not first[0]['attention'][:, :, 0, 8:9].any()


def test_no_channel_at_all_is_still_a_probability():
    table = toy_table()
    stack, data = trained(table, make_folds(table, 'actor')[:1])
    p = training.stack_outputs(stack, data, present=0 * data.present)[0]['fused']
    assert np.isfinite(p).all() and np.allclose(p.sum(1), 1, atol=1e-5)


def test_filling_up_a_stack_changes_nothing():
    table = toy_table()
    folds, run = make_folds(table, 'actor')[:2], ('network', 'voice+face')
    tasks = [(f, 0) for f in folds]
    whole = training.run_stack(table, tasks, 3, 8, 'inductive', run, 2)
    alone = training.run_stack(table, tasks[:1], 1, 8, 'inductive', run, 2)
    assert len(whole) == 2
    for key, said in alone.items():
        for rows in ('test', 'val'): assert np.allclose(whole[key][rows], said[rows], atol=1e-4)


def test_a_network_taken_out_of_its_stack_answers_the_same():
    table = toy_table()
    fold = make_folds(table, 'actor')[0]
    stack, data = trained(table, [fold])
    model, x = training.network_of(stack, 0), training.network_features(table, fold, 'inductive', CHANNELS)
    said = model({c: z[fold.test] for c, z in x.items()} | {'present': data.present[fold.test]}, training=False)['fused'].numpy()
    assert np.allclose(said, training.stack_outputs(stack, data)[0]['fused'], atol=1e-5)
    assert float(model.get_layer('fused').temperature) == pytest.approx(float(stack.temperature[0]))


def test_the_encoder_is_a_group_of_experts_and_tokens_of_the_network():
    table = with_blocks(toy_table())
    assert [n for n in training.network_columns(table, ['voice'])['voice'] if '.pc' in n] == [f'{EXTENDED[0]}.pc{i:03d}.value' for i in range(4)]
    fold = make_folds(table, 'actor')[0]
    Z = training.fold_features(table, fold, 'inductive')
    assert ('lda', EXTENDED[0]) in training.late_groups(Z, 'voice')[-1] and len(training.late_groups(Z, 'face')) == 1
    said = training.cross_validate(table, 'actor', 8, 'inductive', ['late', 'ensemble'], epochs=1, members=1, jobs=1, label='extended')
    assert set(said.model) == {'late, extended', 'ensemble, extended'} and np.isfinite(said.filter(like='p_')).all(axis=None)


def test_components_know_nothing_of_test_rows():
    table = with_blocks(toy_table())
    fold = make_folds(table, 'actor')[0]
    Z = training.fold_features(table, fold, 'inductive')[EXTENDED[0]]
    other = Z.copy(); other[fold.test[1:]] += 1
    a, b = (training.components(z[None], fold)[0] for z in (Z, other))
    rest = np.setdiff1d(np.arange(len(table)), fold.test[1:])
    assert np.array_equal(a[rest], b[rest]) and not np.array_equal(a, b)


def test_a_network_learns_from_copies_and_is_asked_about_all_of_them():
    table, channels, n = with_blocks(toy_table(), copies=SPEEDS), ('voice', 'face'), len(toy_table())
    folds = make_folds(table, 'actor')[:2]
    stack, data = trained(table, folds, channels=channels)
    assert data.copies == 3 and data.shifts.tolist() == [0, n, 2 * n] and len(data.present) == 3 * n
    for f, at in zip(folds, data.place):
        labelled = data.target[at:at + 3 * n].sum(axis=1).reshape(3, n)
        assert not labelled[:, f.test].any() and labelled[:, f.fit].all(), 'no copy of a test clip has a label'
    x = [{c: v.copy() for c, v in data.x.items()} for _ in range(3)]
    for i, only in enumerate(x):  # every copy is the same copy
        for at in data.place: only['voice'][at:at + 3 * n] = np.tile(only['voice'][at + i * n:at + (i + 1) * n], (3, 1))
    one_by_one = [training.stack_outputs(stack, replace(data, x=only)) for only in x]
    for r, out in enumerate(training.stack_outputs(stack, data)):
        said = np.log(np.stack([o[r]['fused'] for o in one_by_one]).clip(1e-6)).mean(axis=0)
        assert np.allclose(out['fused'], np.exp(said) / np.exp(said).sum(-1, keepdims=True), atol=1e-5)
        assert np.abs(one_by_one[0][r]['fused'] - one_by_one[1][r]['fused']).max() > 1e-3


def test_a_batch_holds_each_clip_as_one_of_its_copies():
    rows, shifts = np.arange(10, 30), np.array([0, 100, 200])
    dealt = training._dealt(np.random.default_rng(0), rows, (2, 10), shifts)
    assert sorted(dealt.ravel() % 100) == rows.tolist() and set(dealt.ravel() // 100) == {0, 1, 2}
    alone = training._dealt(np.random.default_rng(0), rows, (2, 10), shifts[:1])
    assert np.array_equal(alone, np.random.default_rng(0).permutation(rows).reshape(2, 10)), 'without copies nothing else is drawn'


def test_a_saved_network_makes_no_use_of_the_encoder(tmp_path):
    folder = training.train_models(with_blocks(toy_table()), out=tmp_path, epochs=1, only=[0])
    _, card = training.load_network(folder / 'fold0.json')
    assert not any(c.startswith('whisper') for columns in card['channels'].values() for c in columns)


def test_temperature_moves_no_answer():
    p = np.random.default_rng(0).dirichlet(np.ones(8), size=(2, 50)).astype('float32')
    truth = np.random.default_rng(1).integers(0, 8, (2, 50))
    cold = p.argmax(-1)
    for t in training.best_temperature(p, truth): assert (np.log(p) / t).argmax(-1).tolist() == cold.tolist()


# --- a run that is killed

KILLED = """
import pandas as pd, sys
from emotion_study.training import cross_validate
cross_validate(pd.read_pickle(sys.argv[1]), 'actor', 8, 'inductive', [('linear', 'voice'), ('svm', 'face')], seeds=6, jobs=2, progress=True)
"""

def test_a_killed_cross_validation_goes_on_where_it_was(tmp_path, monkeypatch):
    "With a table that is large enough to reach the workers as a file, which must not change the digest of a unit."
    table, rng = toy_table(), np.random.default_rng(0)
    more = pd.DataFrame(rng.normal(size=(len(table), 3_000)), columns=[f'mfcc.{i:04d}.mean' for i in range(1_000, 4_000)])
    pd.concat([table, more], axis=1).to_pickle(tmp_path / 'table.pkl')
    monkeypatch.setenv('EMOTION_STUDY_UNFINISHED', str(tmp_path / 'units'))
    finished = lambda: {p: p.stat().st_mtime_ns for p in (tmp_path / 'units').rglob('*.npz')}
    run = subprocess.Popen([sys.executable, '-c', KILLED, str(tmp_path / 'table.pkl')], start_new_session=True)
    while len(finished()) < 8 and run.poll() is None: time.sleep(.02)
    os.killpg(run.pid, signal.SIGKILL); run.wait()
    before, table = finished(), pd.read_pickle(tmp_path / 'table.pkl')
    asked = dict(models=[('linear', 'voice'), ('svm', 'face')], seeds=6, jobs=2)
    again = training.cross_validate(table, 'actor', 8, 'inductive', progress=True, **asked)
    after = finished()
    assert 8 <= len(before) < len(after), 'it was killed in the middle'
    assert all(after[p] == before[p] for p in before) and len(after) == again[['seed', 'fold']].drop_duplicates().shape[0]
    fresh = training.cross_validate(table, 'actor', 8, 'inductive', **asked)
    pd.testing.assert_frame_equal(again, fresh)
    assert finished() == after, 'calls without a bar, which may be timed, find nothing and keep nothing'
