"Promises that hold for any input: splits, measures beside scikit-learn, and tables that are written and read again."
import csv, tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from sklearn import metrics as sk

from emotion_study.core import EMOTIONS, LABEL_COLUMNS, SettingError, label_names, to_label
from emotion_study.corpus import composed, read_manifest
from emotion_study.evidence import by_sklearn
from emotion_study.features import read_table, recordings, write_table
from emotion_study.metrics import hits, measures, summary, weighted_f1
from emotion_study.predict import Answers, answer_columns, harmless, write_answers
from emotion_study.protocols import FOLDS, LeakageError, SPEAKER_DISJOINT, labels_of, make_folds
from emotion_study.statistics import AGREEMENT
from emotion_study.training import save_predictions

quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


# --- splits

@st.composite
def corpora(draw):
    "Some speakers with some clips, of which some are copies of others."
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    speakers, clips = draw(st.integers(1, 12)), draw(st.integers(4, 16))
    emotions = rng.permutation(EMOTIONS)[:draw(st.integers(1, 8))]
    rows = [dict(clip=f'{a}-{i}', actor=a, sex=('male', 'female')[a % 2], emotion=emotions[i % len(emotions)], intensity='normal',
                 statement=i // len(emotions) % 2 + 1, repetition=1) for a in range(speakers) for i in range(clips)]
    table = pd.DataFrame(rows).sample(frac=1, random_state=int(rng.integers(1000)), ignore_index=True)
    sound = rng.normal(size=(len(table), 3)).astype('float32')
    copies = rng.random(len(table)) < draw(st.sampled_from([0, 0, .05, .3]))
    sound[copies] = sound[rng.integers(0, len(table), int(copies.sum()))]
    return pd.concat([table, pd.DataFrame(sound, columns=[f'mfcc.{i:02d}.mean' for i in range(3)])], axis=1).assign(**{'valid.voice': True})


def check_apart(table, fold):
    "Neither a clip nor a recording is on two sides, nor a speaker where that is promised."
    numbers = recordings(table)
    for one, other in ((fold.train, fold.val), (fold.train, fold.test), (fold.val, fold.test)):
        assert len(one) and not set(one) & set(other) and not set(numbers[one]) & set(numbers[other])
        if fold.protocol in SPEAKER_DISJOINT: assert not set(table.actor[one]) & set(table.actor[other])
        if fold.protocol == 'statement' and other is fold.test: assert not set(table.statement[one]) & set(table.statement[other])
    assert len(fold.train) + len(fold.val) + len(fold.test) + fold.copies <= len(table)


@quick
@given(corpora(), st.sampled_from(sorted(set(FOLDS) - {'emobox'})), st.sampled_from([7, 8]), st.integers(0, 10_000))
def test_a_split_keeps_its_promises_or_is_refused(table, protocol, classes, seed):
    try: folds = make_folds(table, protocol, classes, seed)
    except (SettingError, LeakageError) as refused:
        assert '\n' not in str(refused) and len(str(refused)) > 10
        return
    for fold in folds: check_apart(table, fold)
    tested = pd.Series(np.concatenate([f.test for f in folds])).value_counts()
    assert tested.max() == 1, 'no clip is tested twice'
    if protocol != 'random': assert len(tested) == len(table), 'every clip is tested once'
    again = make_folds(table, protocol, classes, seed)
    assert all(np.array_equal(a.test, b.test) and np.array_equal(a.train, b.train) for a, b in zip(folds, again))


@quick
@given(corpora(), st.sampled_from([7, 8]), st.integers(0, 10_000))
def test_a_random_split_is_balanced(table, classes, seed):
    try: fold, = make_folds(table, 'random', classes, seed)
    except (SettingError, LeakageError): return
    y = labels_of(table, classes)
    n, k = len(table), len(set(y))
    assert len(fold.test) == max(int(np.ceil(.2 * n)), k)
    for name in set(y):
        of_class, tested = (y == name).sum(), (y[fold.test] == name).sum()
        assert abs(tested - of_class * len(fold.test) / n) <= 1, name
        if not fold.copies: assert abs((y[fold.val] == name).sum() - (of_class - tested) * len(fold.val) / len(fold.fit)) <= 1


@quick
@given(corpora(), st.integers(0, 10_000))
def test_groups_of_speakers_are_even_in_size_and_sex(table, seed):
    if table.actor.nunique() < 3: return
    folds = make_folds(table.drop_duplicates(['mfcc.00.mean', 'mfcc.01.mean'], ignore_index=True), 'actor', 8, seed)
    kept = table.drop_duplicates(['mfcc.00.mean', 'mfcc.01.mean'], ignore_index=True)
    if kept.actor.nunique() < 3: return
    people = [kept.iloc[f.test].drop_duplicates('actor') for f in folds]
    for sizes in ([len(p) for p in people], *([(p.sex == s).sum() for p in people] for s in ('male', 'female'))):
        assert max(sizes) - min(sizes) <= 1, sizes


# --- measures

@st.composite
def answers(draw):
    "Rows of a predictions table under some seeds; some emotions may be absent, and some never answered."
    rng, classes = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.sampled_from([7, 8]))
    names, n, seeds = label_names(classes), draw(st.integers(1, 60)), draw(st.integers(1, 3))
    acted = rng.choice(rng.permutation(EMOTIONS)[:draw(st.integers(1, 8))], n)
    rows = pd.concat([pd.DataFrame(dict(protocol='actor', classes=classes, scope='inductive', model='m', modalities='voice', folds=6, seed=s, fold=0,
                                        clip=[f'c{i}' for i in range(n)], actor=np.arange(n) % 5, emotion=acted)) for s in range(seeds)], ignore_index=True)
    p = rng.dirichlet(np.full(classes, draw(st.sampled_from([.05, 1.]))), len(rows))
    right = rng.random(len(rows)) < draw(st.sampled_from([0., .5, 1.]))
    p[right] = np.eye(classes)[[names.index(to_label(e, classes)) for e in rows.emotion[right]]]
    return rows.assign(**{f'p_{name}': p[:, i] for i, name in enumerate(names)})


def counted(truth, answer, k): return sk.confusion_matrix(truth, answer, labels=range(k)).astype(float)


@quick
@given(answers())
def test_measures_are_those_of_scikit_learn(rows):
    truth, answer, names = hits(rows)
    C, present = counted(truth, answer, len(names)), sorted(set(truth))
    found = {m: float(v) for m, v in measures(C).items()}
    precision, recall, f1, _ = sk.precision_recall_fscore_support(truth, answer, labels=present, average='macro', zero_division=0)
    assert found == pytest.approx(dict(accuracy=sk.accuracy_score(truth, answer), uar=recall, precision=precision, f1=f1), abs=1e-12)
    assert float(weighted_f1(C)) == pytest.approx(sk.f1_score(truth, answer, average='weighted', zero_division=0), abs=1e-12)
    if len({*truth, *answer}) > 1:
        assert float(AGREEMENT['kappa'](C)) == pytest.approx(sk.cohen_kappa_score(truth, answer), abs=1e-9)
        assert float(AGREEMENT['mcc'](C)) == pytest.approx(sk.matthews_corrcoef(truth, answer), abs=1e-9)


@quick
@given(answers())
def test_a_summary_is_the_mean_of_seeds_and_holds_its_value(rows):
    found = summary(rows)
    for name, value in by_sklearn(rows).items(): assert 100 * found.value[name] == pytest.approx(value, abs=1e-9)
    known = found[found.lo.notna()]
    assert ((known.lo <= known.value + 1e-9) & (known.value <= known.hi + 1e-9) & (known.lo >= 0) & (known.hi <= 1)).all()
    assert found.lo.isna().all() or rows.actor.nunique() >= 3


# --- written and read again

texts = st.text(st.characters(codec='utf-8', exclude_characters='\0\r\n'), max_size=12)
numbers = st.floats(width=32, allow_nan=True, allow_infinity=True)


def same(a, b):
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    for c in a.select_dtypes('number'): assert a[c].to_numpy().tobytes() == b[c].to_numpy().tobytes() or a[c].isna().any()


@quick
@given(st.lists(st.tuples(texts, texts, numbers, numbers), min_size=1, max_size=8), st.dictionaries(texts, texts, max_size=3))
def test_a_feature_table_comes_back_bit_by_bit(rows, record):
    table = pd.DataFrame([dict(zip(LABEL_COLUMNS, (f'{i}{a}', b, 'male', 'sad', '', b, 1)), **{'mfcc.00.mean': np.float32(x), 'f0.semitone.mean': np.float32(y),
                               'valid.voice': bool(i % 2), 'reason.voice': a}) for i, (a, b, x, y) in enumerate(rows)])
    table.attrs['provenance'] = record
    with tempfile.TemporaryDirectory() as folder:
        path = write_table(table, Path(folder) / 'a b' / 'ü.parquet')
        again, first = read_table(path), path.read_bytes()
        assert write_table(again, path).read_bytes() == first, 'and once more the same bytes'
    same(again, table)
    assert again.attrs['provenance'] == record


@quick
@given(st.lists(st.tuples(texts, texts, st.sampled_from(['', 'sad', 'Angry', 'joy'])), min_size=1, max_size=6, unique_by=lambda r: r[0]),
       st.sampled_from(',;\t|'), st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16']))
def test_a_manifest_says_what_was_written(rows, separator, encoding):
    with tempfile.TemporaryDirectory() as folder:
        for i, _ in enumerate(rows): Path(folder, f'{i}.wav').write_bytes(b'RIFF')
        with open(Path(folder) / 'clips.csv', 'w', encoding=encoding, newline='') as file:
            table = csv.writer(file, delimiter=separator)
            table.writerow(['path', 'speaker', 'statement', 'emotion'])
            table.writerows([f'{i}.wav', *row] for i, row in enumerate(rows))
        clips, problems = read_manifest(Path(folder) / 'clips.csv')
        found = {Path(r.path).stem: (r.actor, r.statement, r.emotion) for r in clips.itertuples()}
    names = {'': '', 'sad': 'sad', 'Angry': 'angry', 'joy': 'happy'}
    assert not problems
    assert found == {str(i): (composed(a.strip()), composed(b.strip()), names[e]) for i, (a, b, e) in enumerate(rows)}


@settings(quick, max_examples=8)
@given(answers(), answers())
def test_predictions_come_back_and_other_runs_stay(rows, others):
    others = others.assign(model='another')
    with tempfile.TemporaryDirectory() as folder:
        for part in (rows, others, rows): path = save_predictions(folder, part)
        found = pd.read_parquet(path)
    for model, part in (('m', rows), ('another', others)):
        own = found[found.model == model]
        columns = [c for c in part if c in own]
        key = ['classes', 'seed', 'clip']
        same(own[columns].sort_values(key, ignore_index=True).astype(part.dtypes), part[columns].sort_values(key, ignore_index=True))


@quick
@given(st.lists(st.tuples(texts, texts, st.floats(0, 1)), min_size=1, max_size=6))
def test_answers_come_back_and_hold_no_formula(rows):
    blank = {c: '' for c in answer_columns()}
    table = pd.DataFrame([blank | dict(file=a, transcript=b, confidence=x) for a, b, x in rows])
    with tempfile.TemporaryDirectory() as folder:
        for end in ('csv', 'jsonl', 'parquet'): write_answers(Answers(table, [], []), Path(folder) / f'a.{end}')
        frames = dict(csv=pd.read_csv(Path(folder) / 'a.csv', keep_default_na=False, dtype=dict(file=str, transcript=str)),
                      parquet=pd.read_parquet(Path(folder) / 'a.parquet'))
    for name, found in frames.items():
        wanted = table.map(harmless) if name == 'csv' else table
        for c in ('file', 'transcript'): assert found[c].tolist() == wanted[c].tolist()
        assert np.allclose(found['confidence'].astype(float), table['confidence'], atol=1e-15)
    assert not frames['csv'][['file', 'transcript']].map(lambda t: t[:1] in ('=', '+', '-', '@')).any(axis=None)
