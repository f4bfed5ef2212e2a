"""The same figures on another machine: what a thread more, or rows in another order, may change."""
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from emotion_study.core import describe, expected_codes, label_names
from emotion_study.protocols import Fold
from emotion_study.fusion import expert_probabilities

import pandas as pd

CLIPS = pd.DataFrame([describe(c) for c in expected_codes() if c.actor <= 8]).sort_values('clip', ignore_index=True)


@pytest.fixture(scope='module')
def task():
    "Eight invented speakers with many, correlated columns, as features of speech are; none of them can be told well."
    rng, n = np.random.default_rng(0), len(CLIPS)
    y = CLIPS['emotion'].map(label_names(8).index).to_numpy()
    hidden = rng.normal(size=(n, 40)) + .5 * rng.normal(size=(8, 40))[y] + .5 * rng.normal(size=(9, 40))[CLIPS['actor']]
    Z = hidden @ rng.normal(size=(40, 300)) + .3 * rng.normal(size=(n, 300))
    Z = ((Z - Z.mean(0)) / Z.std(0)).astype('float32')
    train, val, test = (np.flatnonzero(CLIPS['actor'].isin(a)) for a in ((1, 2, 3, 4, 5), (6,), (7, 8)))
    return Z, y, train, val, test


def answers(task, order=None, threads=1, kind='linear'):
    "Probabilities of the test clips, in the order of the corpus, from rows in any order."
    Z, y, *parts = task
    order = np.arange(len(y)) if order is None else order
    place = np.argsort(order)  # where each clip stands now
    fold = Fold('actor', 0, 0, *(np.sort(place[p]) for p in parts))
    with threadpool_limits(threads): p = expert_probabilities(kind, Z[order], y[order], fold, 8)
    return p[np.argsort(order[fold.test])]


def test_the_logistic_expert_is_the_same_with_more_threads(task):
    one, two = answers(task), answers(task, threads=2)
    assert np.abs(one - two).max() < 1e-4, 'four decimals are stored'
    assert .2 < (one.argmax(1) == task[1][task[4]]).mean() < .99, 'a task that is neither trivial nor hopeless'


@pytest.mark.parametrize('seed', [0, 1])
def test_the_logistic_expert_is_the_same_for_rows_in_another_order(task, seed):
    order = np.random.default_rng(seed).permutation(len(CLIPS))
    one, other = answers(task), answers(task, order, threads=2)
    assert np.abs(one - other).max() < 1e-4 and (one.argmax(1) == other.argmax(1)).all()
