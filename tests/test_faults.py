"""Faults that were seen from outside: wrong results, code that runs, one clip that ends a run, lost data, stopping."""
import errno, io, json, os, pickle, re, shutil, signal, struct, subprocess, sys, threading, time, tracemalloc
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from emotion_study import cli, core, face, features as F, media, text, training, whisper
from emotion_study.core import ROOT, SettingError, open_report
from emotion_study import corpus as C
from emotion_study.metrics import save_results
from test_cli import CODE, command, run, study  # noqa: F401  (study is a fixture)
from test_download import server  # noqa: F401  (a fixture)
from test_pipeline import toy_table

TONE = .5 * np.sin(2 * np.pi * 220 * np.arange(4 * 16_000) / 16_000)
NOISE = np.random.default_rng(0)


def sound(folder, name='tone.wav', y=TONE, rate=16_000, **how):
    sf.write(folder / name, y, rate, **how)
    return folder / name


def film(path, n=110, size=(96, 128), rate=30, **options):
    with av.open(str(path), 'w', options=options) as box:
        track = box.add_stream('libx264', rate=rate)
        track.height, track.width, track.pix_fmt = *size, 'yuv420p'
        for _ in range(n):
            picture = av.VideoFrame.from_ndarray(NOISE.integers(0, 255, (*size, 3), 'uint8'), format='bgr24')
            for packet in track.encode(picture): box.mux(packet)
        for packet in track.encode(None): box.mux(packet)
    return path


def cut(path, share):
    data = path.read_bytes()
    part = path.with_name(f'{share}{path.name}')
    part.write_bytes(data[:int(share * len(data))])
    return part


def rows_of(path, cache):
    "Reasons of one clip in every cache of sound."
    return [F.voice_row(path, cache, 'code')[1], whisper.whisper_row(path, cache, {'tiny': 'key'})[1],
            text.transcript_entry(path, 'pocketsphinx', cache=cache)['reason']]


# --- wrong results: an error of the moment is no property of the content

class Refusing(io.FileIO):
    "A file that can't be read further than its first bytes."
    def readinto(self, *a): raise OSError(errno.EIO, 'Input/output error')
    def read(self, *a): raise OSError(errno.EIO, 'Input/output error')
    def readall(self): raise OSError(errno.EIO, 'Input/output error')


PASSING = {'memory': MemoryError(), 'memory of FFmpeg': av.error.MemoryError(errno.ENOMEM, 'Cannot allocate memory'),
           'disk': OSError(errno.EIO, 'Input/output error'), 'permissions': PermissionError(errno.EACCES, 'Permission denied'),
           'files': OSError(errno.EMFILE, 'Too many open files'), 'stale': OSError(errno.ESTALE, 'Stale file handle'),
           'time': TimeoutError(errno.ETIMEDOUT, 'Connection timed out')}

@pytest.mark.parametrize('place', ['decode_by_soundfile', 'decode_by_pyav', 'open_box'])
@pytest.mark.parametrize('error', PASSING.values(), ids=PASSING)
def test_an_error_of_the_moment_is_never_kept(tmp_path, monkeypatch, error, place):
    F.speech.speech_columns()
    path, cache = sound(tmp_path), tmp_path / 'cache'
    if place != 'decode_by_soundfile': path.write_bytes(b'no sound, but nobody could see it')
    def refuse(*a, **k): raise error
    monkeypatch.setattr(media, place, refuse)
    told = rows_of(path, cache)
    assert all(t.startswith('unreadable: ') for t in told), told
    assert not list(cache.rglob('*.*'))
    if place == 'open_box':
        (frames, why), = F.film_scores({'film': path}, jobs=1, cache=cache).values()
        assert why.startswith('unreadable: ') and not len(frames) and not list(cache.rglob('*.parquet'))


def test_a_disk_that_refuses_while_ffmpeg_reads_is_told_as_such(tmp_path, monkeypatch):
    path = film(tmp_path / 'film.mp4', 10)
    monkeypatch.setattr(media.io, 'FileIO', Refusing)
    assert media.film_reason(path) == 'unreadable: Input/output error'
    assert F.voice_row(path, tmp_path / 'cache', 'code')[1] == 'unreadable: Input/output error' and not (tmp_path / 'cache').exists()


@pytest.mark.parametrize('code, why', [(2, ''), (17, 'unreadable: not enough memory')])
def test_libsndfile_that_is_refused_once_is_asked_again(tmp_path, monkeypatch, code, why):
    path, calls, decode = sound(tmp_path), [], media.decode_by_soundfile
    def once(*a, **k):
        calls.append(1)
        if len(calls) == 1: raise sf.LibsndfileError(code)
        return decode(*a, **k)
    monkeypatch.setattr(media, 'decode_by_soundfile', once)
    heard = media.read_audio(path)
    assert heard.reason == why and (why or np.abs(heard.samples - TONE).max() < 1e-3)


# --- wrong results: what is cut off says so

@pytest.mark.parametrize('share', [.25, .5, .9])
def test_a_sound_that_is_cut_says_how_much_is_there(tmp_path, share):
    for name, how in dict(pcm={}, floats=dict(subtype='FLOAT')).items():
        there = cut(sound(tmp_path, f'{name}.wav', **how), share)
        _, reason, note = F.voice_row(there, tmp_path / 'cache', 'code')
        assert reason == '' and note == f'cut off: {4 * share:.1f} of 4.0 s'


@pytest.mark.parametrize('share', [.5, .75, .9, 1])
@pytest.mark.parametrize('name', ['film.mp4', 'film.mkv', 'film.avi'])
def test_a_film_that_is_cut_says_so_at_every_rate(tmp_path, name, share):
    there = cut(film(tmp_path / name, **(dict(movflags='faststart') if name.endswith('mp4') else {})), share)
    for rate in (0, 6):
        seen = media.Film(there, rate)
        assert len(list(seen)) > 3 and seen.reason == ''
        assert seen.note.startswith('cut off: ') if share < 1 else seen.note == ''


def test_reasons_of_films_reach_the_table(tmp_path):
    whole = film(tmp_path / 'film.mp4', movflags='faststart')
    (tmp_path / 'letter.mp4').write_text('Dear Sir or Madam')
    films = {'cut': cut(whole, .9), 'letter': tmp_path / 'letter.mp4', 'whole': whole}
    verdict = {c: F.film_verdict(*s) for c, s in F.film_scores(films, jobs=1, cache=tmp_path / 'cache').items()}
    again = {c: F.film_verdict(*s) for c, s in F.film_scores(films, jobs=1, cache=tmp_path / 'cache').items()}
    assert verdict == again, 'from the cache as well'
    assert verdict['cut']['reason'] == verdict['whole']['reason'] == 'no face' and verdict['whole']['note'] == ''
    assert verdict['cut']['note'].startswith('cut off: ')
    assert verdict['letter']['reason'].startswith('undecodable')


# --- wrong results: what is kept and what is saved belongs together

def flips(path, n=40):
    "A file with one bit that is another one, n times."
    data = path.read_bytes()
    for at in NOISE.integers(0, 8 * len(data), n):
        spoilt = bytearray(data)
        spoilt[at // 8] ^= 1 << at % 8
        path.write_bytes(spoilt)
        yield
    path.write_bytes(data)


def test_a_flipped_bit_is_noticed_in_every_cache(tmp_path):
    F.write_film(tmp_path / 'film', pd.DataFrame(dict(frame=range(50), happy=NOISE.random(50))), 'cut off: 1 of 2 s')
    frames, told = F.read_film(tmp_path / 'film')
    assert len(frames) == 50 and told == 'cut off: 1 of 2 s'
    for _ in flips(tmp_path / 'film.parquet'): assert F.read_film(tmp_path / 'film') is None
    heard = text._kept(tmp_path / 'words.json', lambda: dict(text='kids are talking', reason=''))
    for _ in flips(tmp_path / 'words.json'):
        assert text._kept(tmp_path / 'words.json', lambda: dict(text='anew', reason='')) == dict(text='anew', reason='')
    said = {(('svm', 'voice'), 0, 1, 0): {'test': NOISE.random((40, 8))}}
    core.keep_bytes(tmp_path / 'unit.npz', training.packed(said))
    for _ in flips(tmp_path / 'unit.npz'): assert core.kept_bytes(tmp_path / 'unit.npz') is None
    again = training.unpacked(core.kept_bytes(tmp_path / 'unit.npz'))
    assert list(again) == list(said) and np.array_equal(*(list(a.values())[0]['test'] for a in (again, said)))
    core.store_row(tmp_path / 'row.npz', NOISE.random(300), '', 'low rate')
    row = core.load_row(tmp_path / 'row.npz')
    for _ in flips(tmp_path / 'row.npz'):
        kept = core.load_row(tmp_path / 'row.npz')
        assert kept is None or np.array_equal(kept[0], row[0]) and kept[1:] == row[1:], 'a date in the archive is no number'
    assert heard['text'] == 'kids are talking'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    out, lines = tmp_path_factory.mktemp('models'), []
    return training.train_models(toy_table(), 'actor', 8, epochs=1, out=out, say=lines.append)


def copy_of(folder, tmp_path): return Path(shutil.copytree(folder, tmp_path / 'copy'))


def test_networks_that_changed_places_are_refused(trained, tmp_path):
    folder = copy_of(trained, tmp_path)
    (folder / 'fold0.keras').rename(folder / 'x'); (folder / 'fold1.keras').rename(folder / 'fold0.keras'); (folder / 'x').rename(folder / 'fold1.keras')
    with pytest.raises(SettingError, match='is not the network of its card'): training.load_network(folder / 'fold0.json')
    with pytest.raises(SettingError, match='is not the network of its card'): training.evaluate_models(folder, toy_table())
    model, card = training.load_network(trained / 'fold0.json')
    assert len(card['weights']) == 64


def test_folds_of_another_training_are_refused(trained, tmp_path):
    folder = copy_of(trained, tmp_path)
    training.train_models(toy_table(), 'actor', 8, epochs=2, out=tmp_path / 'other', say=str)
    for end in ('json', 'keras'): shutil.copy(tmp_path / 'other' / f'fold1.{end}', folder)
    with pytest.raises(SettingError, match='several trainings'): training.saved_cards(folder)


def test_a_training_replaces_an_earlier_one_whole_or_not_at_all(trained, tmp_path, monkeypatch):
    folder = copy_of(trained, tmp_path)
    (folder / 'fold7.json').write_text('{}'); (folder / 'fold7.keras').write_text('of yesterday'); (folder / 'notes.txt').write_text('mine')
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    save, calls = training.save_network, []
    def full_disk(*a, **k):
        calls.append(1)
        if len(calls) == 2: raise OSError(errno.ENOSPC, 'No space left on device')
        return save(*a, **k)
    monkeypatch.setattr(training, 'save_network', full_disk)
    with pytest.raises(OSError): training.train_models(toy_table(), 'actor', 8, epochs=1, out=folder, say=str)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    monkeypatch.setattr(training, 'save_network', save)
    training.train_models(toy_table(), 'actor', 8, epochs=1, out=folder, say=str)
    assert not (folder / 'fold7.json').exists() and not (folder / 'fold7.keras').exists() and (folder / 'notes.txt').exists()
    assert len({c['training'] for _, c in training.saved_cards(folder)}) == 1


def test_a_page_in_place_of_weights_is_not_kept(tmp_path, monkeypatch, server):
    monkeypatch.setenv('DEEPFACE_HOME', str(tmp_path))
    server.files[face.WEIGHTS_FILE] = b'<!DOCTYPE html><title>Sign in</title>' * 9
    with pytest.raises(SettingError, match="not DeepFace's emotion network"): face.fetch_weights(server.url)
    assert not [p for p in tmp_path.rglob('*') if p.is_file()], 'nothing kept, nothing pinned'
    server.files[face.WEIGHTS_FILE] = face.weights_path('retrained').read_bytes()
    face.fetch_weights(server.url)
    face.weights_path('published').write_text('<!DOCTYPE html>')  # of an earlier version that looked at nothing
    assert face.is_weights(face.fetch_weights(server.url)), 'it is mended'


# --- code that runs

@pytest.fixture
def house(tmp_path):
    "The Makefile beside a command that only says how it was called."
    folder = tmp_path / 'house'
    (folder / '.venv' / 'bin').mkdir(parents=True)
    for name in ('Makefile', 'settings.ini', 'setup.py', 'pyproject.toml', '.gitattributes', 'requirements.lock', 'requirements-study.lock'):
        shutil.copy(ROOT / name, folder)
    told = subprocess.run(['make', '-pn', 'help'], cwd=folder, capture_output=True, text=True).stdout
    for line in told.splitlines():
        if line.startswith(('STAMP :=', 'HERE :=')): (folder / line.split()[-1]).touch()
    command = folder / '.venv' / 'bin' / 'emotion-study'
    command.write_text('#!/bin/sh\nprintf "<%s>" "$@"\n'); command.chmod(0o755)
    return folder


@pytest.mark.parametrize('names, calls', [
    ('03', ['03']), ('09 10', ['09', '10']), ("x'; touch planted; '", ["x';", 'touch', 'planted;', "'"]), ('`touch`planted', ['`touch`planted']),
    ('*', ['*']), ('03 "a b"', ['03', '"a', 'b"'])])
def test_names_given_to_make_stay_names(house, names, calls):
    done = subprocess.run(['make', 'study', f'ONLY={names}'], cwd=house, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith('<>' + ''.join(f'<--only><{c}>' for c in calls)) and not (house / 'planted').exists()


@pytest.mark.parametrize('name', ['ONLY', 'OUT', 'SEEDS'])
def test_make_runs_no_command_of_a_setting(house, name):
    done = subprocess.run(['make', 'study', f'{name}=$(shell touch planted)'], cwd=house, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and 'dollar sign' in done.stderr and not (house / 'planted').exists()


class Planted:
    "What runs a command when somebody unpickles it."
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)


def test_a_pickle_in_the_studys_cache_is_never_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv('EMOTION_STUDY_UNFINISHED', str(tmp_path / 'units'))
    table, asked = toy_table(), dict(models=[('linear', 'voice')], jobs=1, progress=True)
    first = training.cross_validate(table, 'actor', 8, 'inductive', **asked)
    entries = sorted((tmp_path / 'units').rglob('*.*'))
    assert entries and {p.suffix for p in entries} == {'.npz'}
    payload = pickle.dumps(Planted(tmp_path / 'ran'))
    objects = io.BytesIO()
    np.savez(objects, arr_0=np.array([Planted(tmp_path / 'ran')], dtype=object), names=np.array('[[["k"], "test"]]'))
    for i, entry in enumerate(entries): entry.write_bytes(payload) if i % 2 else core.keep_bytes(entry, objects.getvalue())
    with pytest.raises(ValueError, match='allow_pickle'): training.unpacked(objects.getvalue())
    for entry in entries[::2]: entry.write_bytes(objects.getvalue())
    again = training.cross_validate(table, 'actor', 8, 'inductive', **asked)
    pd.testing.assert_frame_equal(first, again)
    assert not (tmp_path / 'ran').exists()


def test_nothing_that_is_saved_is_a_pickle():
    "No module and no study notebook writes or reads one; numpy is told so where it would."
    sources = [*(ROOT / 'emotion_study').glob('*.py'), *(ROOT / 'nbs' / 'study').glob('*.ipynb')]
    for path in sources:
        source = path.read_text(encoding='utf-8')
        if 'pickle.dumps(Planted(' in source: source = source.replace('import pickle', '')  # what the fault table plants
        assert not re.search(r'import pickle|to_pickle|read_pickle|joblib\.(dump|load|Memory)|allow_pickle=True', source), path.name
        for call in re.findall(r'np\.load\([^\n]*', source): assert 'allow_pickle=False' in call, (path.name, call)


# --- one clip ends the run

def test_a_header_can_not_take_all_memory(tmp_path):
    long = tmp_path / 'two_hours.flac'
    with sf.SoundFile(long, 'w', 8_000, 1) as file:
        for _ in range(120): file.write(np.zeros(60 * 8_000, 'int16'))
    clock = sound(tmp_path, 'clock.wav', TONE[:3_000], 1)
    radio = sound(tmp_path, 'radio.wav', TONE, 2_000_000_000)
    loud = TONE.astype('float32'); loud[99] = 1e30
    wild = sound(tmp_path, 'wild.wav', np.column_stack([loud, -loud]), subtype='FLOAT')
    stream = tmp_path / 'stream.mp3'
    with sf.SoundFile(stream, 'w', 8_000, 1, format='MP3') as file:
        for _ in range(40): file.write(np.zeros(60 * 8_000, 'int16'))
    tracemalloc.start()
    told = {p.name: F.voice_row(p, tmp_path / 'cache', 'code')[1] for p in (long, clock, radio, wild, stream)}
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told['two_hours.flac'] == 'too long: 7,200 s, where 1,800 are read; cut it into clips'
    assert told['clock.wav'] == 'rate out of range: 1 Hz, where 1,000 to 1,000,000 are read'
    assert told['radio.wav'].startswith('rate out of range') and told['wild.wav'].startswith('out of range: samples reach 1e+30')
    assert told['stream.mp3'].startswith('too long: ') and most < 300e6, most
    assert media.decode_audio(long, longest=8_000).seconds == 7_200, 'who wants more says so'


def declares(path, width, height):
    "A film whose header names another size: in the track, in the sample's description and to the decoder."
    data = path.read_bytes()
    old, new = (struct.pack('>HH', *s) for s in ((128, 96), (width, height)))
    path.write_bytes(data.replace(old, new).replace(struct.pack('>II', 128 << 16, 96 << 16), struct.pack('>II', width << 16, height << 16)))
    return path


def test_a_film_of_huge_pictures_is_refused_before_it_is_decoded(tmp_path):
    huge = tmp_path / 'huge.mkv'
    with av.open(str(huge), 'w') as box:
        track = box.add_stream('ffv1', rate=5)
        track.width = track.height = 10_000
        track.pix_fmt = 'gray'
        picture = av.VideoFrame(10_000, 10_000, 'gray')
        for plane in picture.planes: plane.update(bytes(plane.buffer_size))
        for packet in [*track.encode(picture), *track.encode(None)]: box.mux(packet)
    assert huge.stat().st_size < 1_000_000
    why = 'too large: 10,000 x 10,000 pixels, where 35,389,440 are read'
    assert media.film_reason(huge) == why
    (frames, told), = F.film_scores({'huge': huge}, jobs=1, cache=tmp_path / 'cache').values()
    assert told == why and not len(frames)
    small = film(tmp_path / 'small.mp4', 5)
    monkey = media.MOST_PIXELS
    try:
        media.MOST_PIXELS = 96 * 128 - 1  # the decoder has the same limit
        assert media.film_reason(small).startswith('too large: 128 x 96')
    finally: media.MOST_PIXELS = monkey


@pytest.mark.parametrize('error', [ZeroDivisionError('by 0'), ValueError('no frames'), AssertionError(), RuntimeError('x' * 999), UnicodeDecodeError('utf-8', b'\xff', 0, 1, 'bad')])
def test_whatever_breaks_inside_of_a_clip_is_its_reason(tmp_path, monkeypatch, error):
    F.speech.speech_columns()
    path, cache = sound(tmp_path), tmp_path / 'cache'
    def broken(*a, **k): raise error
    for module, name in ((F.speech, 'speech_features'), (whisper, 'spoken_part'), (text, 'transcribe'), (face, 'film_faces')):
        monkeypatch.setattr(module, name, broken)
    told = rows_of(path, cache)
    (frames, why), = F.film_scores({'film': path}, jobs=1, cache=cache).values()
    assert all(t.startswith(f'failed: {type(error).__name__}') and len(t) < 300 for t in (*told, why)), told
    assert not list(cache.rglob('*.*')), 'it is asked again next time'


def test_a_setting_is_no_reason_of_a_clip(tmp_path, monkeypatch):
    "What this machine lacks stops the run, and is not told of every clip."
    def lacks(*a, **k): raise SettingError('no model here')
    monkeypatch.setattr(text, 'transcribe', lacks)
    with pytest.raises(SettingError, match='no model here'): text.transcript_entry(sound(tmp_path), 'pocketsphinx', cache=tmp_path / 'cache')


def test_names_that_are_no_text(tmp_path):
    "A file name is bytes on Linux, and need not be UTF-8."
    path = tmp_path / os.fsdecode(b'na\xefve.wav')
    try: sound(tmp_path).rename(path)
    except OSError: pytest.skip('this file system takes no such name')
    assert F.voice_row(path, tmp_path / 'cache', 'code')[1] == ''
    done = run('transcribe', path, '--engine', 'pocketsphinx')
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
    root = tmp_path / 'ravdess'; root.mkdir()
    shutil.copy(path, root / '03-01-05-01-01-01-01.wav')
    shutil.copy(path, root / path.name)
    found = C.read_ravdess(root)
    assert len(found) == 1 and sorted(C.survey(root)['file']) == ['03-01-05-01-01-01-01.wav', 'na\\udcefve.wav']
    inside = tmp_path / os.fsdecode(b'caf\xe9'); inside.mkdir()
    (inside / 'clips.csv').write_text('path,emotion\ntone.wav,sad\n'); shutil.copy(path, inside / 'tone.wav')
    with pytest.raises(SettingError, match='not UTF-8: rename it'): C.load_corpus(str(inside / 'clips.csv'))
    with pytest.raises(SettingError, match='not UTF-8: rename it'): C.read_ravdess(inside)
    bad = tmp_path / 'link.wav'; bad.symlink_to(path)
    (tmp_path / 'clips.csv').write_text(f'path,emotion\nlink.wav,sad\n{root.name}/03-01-05-01-01-01-01.wav,angry\n')
    clips = C.load_corpus(str(tmp_path / 'clips.csv'))
    assert len(clips) == 1 and 'not UTF-8' in clips.notice, 'the others go on'


# --- data lost

WRITER = """
import sys
from emotion_study.core import RESULT_KEYS, open_report
from emotion_study.metrics import save_results
name, out = sys.argv[1:]
folder = open_report(name, out, {})
for i in range(20):
    save_results(folder, [dict.fromkeys(RESULT_KEYS, 0) | dict(id=f'{name}/{i}', metric='m', notebook=f'{name}_{i}')], f'{name}_{i}')
"""

def test_two_writers_into_one_report_lose_nothing(tmp_path):
    out = tmp_path / 'report'
    open_report('before', str(out), {})
    both = [subprocess.Popen([sys.executable, '-c', WRITER, name, str(out)], cwd=ROOT) for name in ('a', 'b', 'c', 'd')]
    assert [p.wait() for p in both] == [0] * 4
    found = {e['id'] for e in json.loads((out / 'results.json').read_text())}
    assert found == {f'{n}/{i}' for n in 'abcd' for i in range(20)}
    assert set(core.read_record(out)['code']) == {'before', *'abcd'}
    assert not list(out.glob('*.part'))


KILLED_IN_BATCHES = """
import os, signal, sys
from pathlib import Path
import emotion_study.features as F
from emotion_study.corpus import load_corpus
write, made = F.write_table, []
def killed_at_the_third(table, path):
    made.append(path)
    if len(made) == 3: os.kill(os.getpid(), signal.SIGKILL)
    return write(table, path)
F.write_table = killed_at_the_third
F.write_features(load_corpus(sys.argv[1]), Path(sys.argv[2]), batch=2, jobs=1, cache=sys.argv[3])
"""

def test_a_run_in_batches_that_was_killed_leaves_nothing_behind(tmp_path):
    clips = [sound(tmp_path, f'{i}.wav', TONE[i:16_000]) for i in range(7)]
    (tmp_path / 'clips.csv').write_text('path,emotion\n' + ''.join(f'{c.name},sad\n' for c in clips))
    manifest, out, cache = tmp_path / 'clips.csv', tmp_path / 'out' / 'table.parquet', tmp_path / 'cache'
    killed = subprocess.run([sys.executable, '-c', KILLED_IN_BATCHES, manifest, out, cache], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL and len(list(out.parent.iterdir())) == 1
    F.write_features(C.load_corpus(str(manifest)), out, batch=2, jobs=1, cache=cache)
    assert [p.name for p in out.parent.iterdir()] == ['table.parquet'] and len(F.read_table(out)) == 7


def test_predictions_of_two_notebooks_are_both_kept(tmp_path):
    out = open_report('a', str(tmp_path / 'report'), {})
    rows = training.cross_validate(toy_table(), 'actor', 8, 'inductive', [('linear', m) for m in ('voice', 'face')], jobs=1)
    some = [rows[rows.modalities == m].assign(model=f'linear, {i}') for i in range(4) for m in ('voice', 'face')]
    threads = [threading.Thread(target=training.save_predictions, args=(out, s)) for s in some]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(pd.read_parquet(out / 'predictions.parquet')) == sum(map(len, some))


def test_unfinished_files_carry_their_process(tmp_path, monkeypatch):
    "Two processes that write one file never write into each other's."
    seen = []
    for write in (lambda: F.write_table(toy_table(), tmp_path / 'out.parquet'), lambda: core.write_record(tmp_path, {}),
                  lambda: core.keep_bytes(tmp_path / 'entry.json', b''), lambda: save_results(tmp_path, [], 'a')):
        replace = Path.replace
        def noted(self, target):
            seen.append(self.name)
            return replace(self, target)
        core._opened.add(tmp_path.resolve())
        with monkeypatch.context() as m:
            m.setattr(Path, 'replace', noted)
            write()
    assert len(seen) == 4 and all(str(os.getpid()) in name for name in seen), seen
    assert not list(tmp_path.glob('*.part'))


def test_two_runs_of_features_on_one_file_both_end_well(tmp_path):
    asked = [sys.executable, '-c', CODE, 'features', '--corpus', 'twin', '--out', str(tmp_path / 'out.parquet')]
    both = [subprocess.Popen(asked, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(3)]
    said = [p.communicate()[0] for p in both]
    assert [p.returncode for p in both] == [0] * 3, said
    assert len(F.read_table(tmp_path / 'out.parquet')) == 1440 and [p.name for p in tmp_path.iterdir()] == ['out.parquet']


@pytest.mark.parametrize('line', ['study --corpus twin --only 01 --out {}', 'study --corpus twin --out {}', 'report {}'])
def test_a_folder_of_another_program_is_left_alone(tmp_path, line):
    mine = {'run.json': '{"config": 1, "provenance": "of another program"}', 'index.html': 'my page', 'results.json': '[]', 'pictures/cat.png': 'x',
            'figures/a.png': 'x', 'notebooks/a.ipynb': '{}'}
    for name, content in mine.items():
        path = tmp_path / 'theirs' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    done = run(*line.format(tmp_path / 'theirs').split())
    assert done.returncode == 2 and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1, done.stderr
    assert 'none of ours' in done.stderr
    assert {p.relative_to(tmp_path / 'theirs').as_posix(): p.read_text() for p in (tmp_path / 'theirs').rglob('*') if p.is_file()} == mine


def files_of(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.suffix != '.log'}


def test_a_study_that_stops_early_leaves_the_old_report(study, tmp_path, capfd, monkeypatch):  # noqa: F811
    out = tmp_path / 'report'
    (study / '02_fails.ipynb').rename(tmp_path / 'later.ipynb')
    assert command('study', '--corpus', 'twin', '--out', out) == 0
    before = files_of(out)
    assert 'index.html' in before and 'unfinished' not in core.read_record(out)
    (tmp_path / 'later.ipynb').rename(study / '02_fails.ipynb')
    capfd.readouterr()
    assert command('study', '--corpus', 'twin', '--out', out) == 2
    assert 'is as it was before this run' in capfd.readouterr().out
    assert files_of(out) == before
    rest = tmp_path / 'report.unfinished'
    assert list(core.read_record(rest)['notebooks']) == ['01a_writes'] and (rest / 'notebooks' / '02_fails.ipynb').exists()
    def killed(*a, **k): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(cli, 'run_all', killed)
        assert command('study', '--corpus', 'twin', '--out', out) == 130
    said = capfd.readouterr()
    assert said.err == 'stopped; what was finished is kept: the same command goes on from there\n' and files_of(out) == before
    (study / '02_fails.ipynb').unlink()
    assert command('study', '--corpus', 'twin', '--out', out) == 0
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith('report')) == ['report', 'report.unfinished']
    assert {'index.html', 'run.json'} <= set(files_of(out))


def test_a_report_survives_a_kill_in_the_middle_of_a_study(tmp_path):
    out = tmp_path / 'report'
    out.mkdir()
    core.write_record(out, dict(run=1)); (out / 'results.json').write_text('[1]')
    core.set_aside(out)  # a study begins, and is killed by the system
    core.write_record(out, dict(run=2, unfinished=True))
    core.set_aside(out)  # the next one begins, and is stopped
    core.write_record(out, dict(run=3, unfinished=True))
    assert core.put_back(out) and core.read_record(out)['run'] == 1 and (out / 'results.json').read_text() == '[1]'


# --- stopping

STOPPED = 'stopped; what was finished is kept: the same command goes on from there\n'

def running(pid):
    "Is a process there, and not only its name in its parent's list?"
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError: return False


def workers_of(pid):
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try: fields = stat.read_text().rpartition(')')[2].split()
        except OSError: continue
        if int(fields[1]) == pid: found.append(int(stat.parent.name))
    return [p for p in found if b'LokyProcess' in Path(f'/proc/{p}/cmdline').read_bytes()]


@pytest.fixture
def many_clips(tmp_path):
    "A hundred clips, which take two workers a while."
    names = []
    for i in range(150):
        sound(tmp_path, f'{i:03d}.wav', np.tile(TONE * (1 - i / 300), 3))
        names.append(f'{i:03d}.wav,{"sad" if i % 2 else "happy"}')
    (tmp_path / 'clips.csv').write_text('path,emotion\n' + '\n'.join(names))
    return tmp_path


def begun(folder, **env):
    "`features` with two workers that have begun to measure."
    asked = [sys.executable, '-c', CODE, 'features', str(folder / 'clips.csv'), '--jobs', '2', '--out', str(folder / 'out.parquet')]
    process = subprocess.Popen(asked, cwd=ROOT, env=os.environ | dict(EMOTION_STUDY_CACHE=str(folder / 'cache')) | env, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a shell's background ignores it
    until = time.monotonic() + 120
    while len(list((folder / 'cache').glob('*.npz'))) < 4 and process.poll() is None and time.monotonic() < until: time.sleep(.05)
    workers = workers_of(process.pid)
    assert process.poll() is None and workers
    return process, workers


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks at processes as Linux lists them')
@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_run_leaves_no_process_and_keeps_what_it_measured(many_clips, number, code):
    process, workers = begun(many_clips)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and (err == STOPPED or code < 0)
    until = time.monotonic() + 20
    while any(map(running, workers)) and time.monotonic() < until: time.sleep(.1)
    assert not any(map(running, workers)) and not (many_clips / 'out.parquet').exists()
    kept = {p: p.stat().st_mtime_ns for p in (many_clips / 'cache').glob('*.npz')}
    assert len(kept) >= 4


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks at processes as Linux lists them')
def test_a_killed_worker_is_one_line_and_no_hang(many_clips):
    process, workers = begun(many_clips)
    os.kill(workers[0], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and err.startswith('error: a worker process was killed') and err.count('\n') == 1, err[-2000:]
    done = run('features', many_clips / 'clips.csv', '--jobs', 1, '--out', many_clips / 'out.parquet',
               env=os.environ | dict(EMOTION_STUDY_CACHE=str(many_clips / 'cache')), timeout=300)
    assert done.returncode == 0 and len(F.read_table(many_clips / 'out.parquet')) == 150


def test_errors_of_the_machine_are_one_line():
    for error, says in ((MemoryError(), 'not enough memory'), (OSError(errno.ENOSPC, 'No space left on device'), 'No space left'),
                        (OSError(errno.EROFS, 'Read-only file system', 'there'), 'there: Read-only'), (PermissionError(errno.EACCES, 'Permission denied'), 'another place')):
        assert says in cli.told(error) and '\n' not in cli.told(error)


FULL = """
import errno, sys
from pathlib import Path
import {module}
def full(*a, **k): raise OSError(errno.ENOSPC, 'No space left on device')
{patch}
from emotion_study.cli import main
main(sys.argv[1:])
"""

@pytest.mark.parametrize('module, patch, line', [
    ('pyarrow.parquet', 'pyarrow.parquet.write_table = full', 'features --corpus twin --out {}/out.parquet'),
    ('nbformat', 'nbformat.write = full', 'study --corpus twin --only 01 --out {}/report'),
    ('papermill.iorw', 'papermill.iorw.LocalHandler.write = full', 'study --corpus twin --only 01 --out {}/report')])
def test_a_full_disk_is_one_line(tmp_path, module, patch, line):
    code = FULL.format(module=module, patch=patch)
    done = subprocess.run([sys.executable, '-c', code, *line.format(tmp_path).split()], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'No space left' in done.stderr, done.stderr[-1500:]
    assert not list(tmp_path.rglob('*.part'))


def test_a_rate_that_is_written_in_two_ways_is_one_cache_entry():
    from emotion_study.features import FaceSettings
    assert FaceSettings(6).key() == FaceSettings(6.).key() != FaceSettings(5).key()


FIRST_USE = """
import sys
from emotion_study.core import librosa
print('ready', flush=True)
librosa.yin
print('loaded', flush=True)
"""


def test_librosa_is_loaded_by_one_process_at_a_time(tmp_path):
    # numba keeps a compiled part in two files; two processes that compile at once can leave halves that
    # do not belong together, and whoever loads such a pair crashes (numba issue 10128)
    with core.one_at_a_time(tmp_path / 'emotion_study.lock'):
        asked = dict(cwd=ROOT, env=os.environ | dict(NUMBA_CACHE_DIR=str(tmp_path)), stdout=-1, text=True)
        process = subprocess.Popen([sys.executable, '-c', FIRST_USE], **asked)
        assert process.stdout.readline() == 'ready\n'
        with pytest.raises(subprocess.TimeoutExpired): process.wait(10)
    assert process.communicate(timeout=300)[0] == 'loaded\n' and process.returncode == 0
    assert list(tmp_path.rglob('guf-*.nbi')), 'compiled parts are kept'
