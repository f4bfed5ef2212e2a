"""Power cuts: kill -9 at random points, each time resumed; in the end the same bytes as without any.

`predict` on a folder at three points; EMOTION_STUDY_ALL_KILLS=1 tries ten, with 200 recordings."""
import os, signal, subprocess, sys, time

import numpy as np
import pytest
import soundfile as sf

from emotion_study.core import ROOT

CODE = 'import sys; from emotion_study.cli import main; main()'
ALL = bool(os.environ.get('EMOTION_STUDY_ALL_KILLS'))
RATE = 16_000

pytestmark = pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='this system has no kill -9')


def recordings(folder, n):
    "Short sounds, each another one, and a table of them."
    folder.mkdir()
    t = np.arange(round(.4 * RATE)) / RATE
    for i in range(n): sf.write(folder / f'{i:03d}.wav', .3 * np.sin(2 * np.pi * (150 + i) * t) * (1 + .5 * np.sin(20 * t)), RATE)
    (folder / 'clips.csv').write_text('path,emotion\n' + ''.join(f'{i:03d}.wav,sad\n' for i in range(n)))
    return folder


def begun(words, cache):
    return subprocess.Popen([sys.executable, '-c', CODE, *map(str, words)], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | dict(EMOTION_STUDY_CACHE=str(cache)))


def stamps(folder): return {p: p.stat().st_mtime_ns for p in folder.rglob('*.npz')}


def to_the_end(words, cache, good=(0,)):
    done = begun(words, cache)
    told = done.communicate(timeout=900)[1]
    assert done.returncode in good, told[-1500:]


def kill(run):
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()


def killed_again_and_again(words, cache, kept_in, points, good=(0,)):  # entries at each kill
    "One run that is killed whenever so many entries are kept, and begun again."
    counts, known = [], {}
    for point in points:
        run = begun(words, cache)
        while len(stamps(kept_in)) < point and run.poll() is None: time.sleep(.01)
        kill(run)
        kept = stamps(kept_in)
        assert all(kept[p] == when for p, when in known.items()), 'what was kept is never made again'
        known, counts = kept, [*counts, len(kept)]
    to_the_end(words, cache, good)
    assert all(stamps(kept_in)[p] == when for p, when in known.items())
    return counts


def random_points(n, kills, seed): return sorted(np.random.default_rng(seed).choice(np.arange(1, n), kills, replace=False))


def test_predict_killed_at_random(tmp_path):
    n, kills = (200, 10) if ALL else (30, 3)
    here = recordings(tmp_path / 'clips', n)
    words = ['predict', here, '--channels', 'voice', '--out']
    to_the_end([*words, tmp_path / 'whole.csv'], tmp_path / 'other', (0, 2, 3))
    kept_in = tmp_path / 'cache' / 'predict'
    counts = killed_again_and_again([*words, tmp_path / 'cut.csv'], tmp_path / 'cache', kept_in, random_points(n, kills, 2), (0, 2, 3))
    print('recordings kept at each kill:', counts)
    assert len(stamps(kept_in)) == n
    assert (tmp_path / 'cut.csv').read_bytes() == (tmp_path / 'whole.csv').read_bytes()
