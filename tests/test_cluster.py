"""Beyond one machine: a Dask cluster of several processes gives the same bytes, and loses nothing when one is killed."""
import os, signal, sys, threading, time

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from emotion_study import media
from emotion_study.core import SettingError, cluster, cluster_client
from emotion_study.features import voice_features
from emotion_study.training import cross_enrol, cross_validate
from test_cli import run
from test_pipeline import toy_table

distributed = pytest.importorskip('distributed', reason='Dask is not installed: install requirements.lock')


@pytest.fixture(scope='module')
def three():
    "A cluster of three processes."
    with distributed.LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=':0', silence_logs=50) as made: yield made


def clips(folder, n, seconds=2):
    "Noise of growing loudness in a folder."
    rng = np.random.default_rng(0)
    for i in range(n): sf.write(folder / f'{i:03d}.wav', rng.normal(0, .01 + .3 * i / n, seconds * media.SR), media.SR)
    return pd.Series({p.stem: p for p in sorted(folder.glob('*.wav'))})


class Killed(threading.Thread):
    "SIGKILL for a worker that is at work."
    def __init__(self, client, begun=lambda: True):
        super().__init__(daemon=True)
        self.client, self.begun, self.pid = client, begun, None
        self.start()

    def run(self):
        pids, end = self.client.run(os.getpid), time.monotonic() + 1800  # a busy machine compiles for minutes
        while time.monotonic() < end:
            busy = [w for w, tasks in self.client.processing().items() if tasks and w in pids]
            if busy and self.begun():
                self.pid = pids[busy[0]]
                os.kill(self.pid, signal.SIGKILL)
                return
            time.sleep(.02)


def test_features_with_a_worker_killed_in_the_middle_are_the_same_bytes(tmp_path, three):
    paths = clips(tmp_path, 60)
    kept = lambda: len(list((tmp_path / 'far').glob('*.npz')))
    with cluster(three.scheduler_address):
        killed = Killed(cluster_client(), lambda: kept() >= 5)
        there, reasons = voice_features(paths, cache=tmp_path / 'far')
        killed.join()
    assert killed.pid and cluster_client() is None
    here, _ = voice_features(paths, jobs=1, cache=tmp_path / 'near')
    assert there.to_numpy().tobytes() == here.to_numpy().tobytes() and (reasons == '').all()
    assert kept() == 60 and not list((tmp_path / 'far').glob('*.part'))


def test_training_with_a_worker_killed_in_the_middle_gives_the_same_answers(three):
    # the workers have trained nothing before, so each trains its first network
    table, models = toy_table(), ['late', 'network']
    with cluster(three.scheduler_address):
        killed = Killed(cluster_client())
        there = cross_validate(table, 'actor', 8, models=models, seeds=1, epochs=1)
        killed.join()
        enrolled = cross_enrol(table, dict(random=[0, 2]), models=['late'])
        loaded = cluster_client().run(lambda: 'tensorflow' in sys.modules)
    assert killed.pid and any(loaded.values()), 'networks were trained by workers'
    here = cross_validate(table, 'actor', 8, models=models, seeds=1, epochs=1, jobs=1)
    pd.testing.assert_frame_equal(there, here, check_exact=True)
    here = cross_enrol(table, dict(random=[0, 2]), models=['late'], jobs=1)
    pd.testing.assert_frame_equal(enrolled, here, check_exact=True)


def hums(folder, n):
    "Sounds like a voice, other ones each time: no worker has kept an answer about them."
    t, rng = np.arange(2 * media.SR) / media.SR, np.random.default_rng()
    for i in range(n):
        phase = 2 * np.pi * np.cumsum(110 * 1.05 ** i * (1 + .1 * np.sin(2 * np.pi * 1.3 * t))) / media.SR
        voice = sum(np.sin(k * phase) / k for k in range(1, 12)) * (.55 + .45 * np.sin(2 * np.pi * 4 * t))
        sf.write(folder / f'{i}.wav', .15 * (voice + rng.normal(0, .005, len(t))), media.SR)


def test_recordings_of_a_folder_get_the_same_answers_with_a_worker_killed(tmp_path, three, monkeypatch):
    from joblib.externals.loky import get_reusable_executor
    from emotion_study.predict import answers_of
    hums(tmp_path, 8)
    with cluster(three.scheduler_address):
        killed = Killed(cluster_client())
        there = answers_of([tmp_path], channels=('voice',)).table
        killed.join()
    monkeypatch.setenv('EMOTION_STUDY_CACHE', str(tmp_path / 'near'))
    get_reusable_executor().shutdown()  # processes that know another cache
    here = answers_of([tmp_path], channels=('voice',), jobs=2).table  # one thread in each, as there
    assert killed.pid and len(here) == 8 and here['valid_voice'].all()
    pd.testing.assert_frame_equal(there, here, check_exact=True)


def test_the_command_writes_the_same_table_with_a_cluster_of_its_own(tmp_path):
    clips(tmp_path, 6, 1)
    (tmp_path / 'clips.csv').write_text('path,emotion\n' + ''.join(f'{i:03d}.wav,happy\n' for i in range(6)))
    env = lambda name: os.environ | dict(EMOTION_STUDY_CACHE=str(tmp_path / name))
    for name, more in (('near', ['--jobs', 1]), ('far', ['--scheduler', 'local:2'])):
        done = run('features', tmp_path / 'clips.csv', '--out', tmp_path / f'{name}.parquet', *more, env=env(name), timeout=600)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / 'near.parquet').read_bytes() == (tmp_path / 'far.parquet').read_bytes()


@pytest.mark.parametrize('scheduler, says', [
    ('local:0', 'local:4'), ('local:many', 'local:4'), ('tcp://127.0.0.1:9', 'no Dask scheduler'), ('nonsense', 'write tcp'), ('tcp://host:many', 'write tcp')])
def test_a_scheduler_that_is_not_there_is_told_in_one_line(scheduler, says):
    with pytest.raises(SettingError, match=says) as error:
        with cluster(scheduler): pass
    assert '\n' not in str(error.value) and '--scheduler' in str(error.value)


def test_workers_with_two_threads_are_refused():
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=':0', silence_logs=50) as two:
        with pytest.raises(SettingError, match='--nthreads 1'):
            with cluster(two.scheduler_address): pass


def test_workers_in_another_folder_are_refused(three, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match='runs in another folder'):
        with cluster(three.scheduler_address): pass
