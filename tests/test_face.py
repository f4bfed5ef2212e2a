"DeepFace on films: real faces, bad films, streaming from a server of our own, and weights that stay where they belong."
import json, os, signal, subprocess, sys
from fractions import Fraction

import av, cv2, h5py, numpy as np, pandas as pd, pytest

from emotion_study import corpus as C, face, features as F
from emotion_study.core import ROOT, SettingError
from emotion_study.media import Film, FilmError
from emotion_study.predict import face_rows
from test_download import archive, server, zipped  # noqa: F401  (server is a fixture)

KEYS = list(face.FACE_KEYS)


@pytest.fixture(scope='session')
def samples():
    try: return sorted(C.fetch_samples(say=lambda text: None).glob('*.mp4'))
    except (SettingError, OSError) as e: pytest.skip(f'no sample clips: {e}')


@pytest.fixture(scope='session')
def pictures(samples):
    "Two seconds of a real clip, 640 x 360 BGR, every second frame."
    return [cv2.resize(image, (640, 360), interpolation=cv2.INTER_AREA) for _, image in Film(samples[0])][10:70:2]


def film(path, pictures, rate=15, codec='libx264', pix_fmt='yuv420p', times=None, rotation=0, options=None):
    with av.open(str(path), 'w') as box:
        stream = box.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], pix_fmt
        if rotation: stream.set_display_rotation(rotation)
        if times is not None: stream.codec_context.time_base = Fraction(1, 1000)
        for i, p in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(p), format='bgr24')
            if times is not None: frame.pts, frame.time_base = int(times[i] * 1000), Fraction(1, 1000)
            box.mux(stream.encode(frame))
        box.mux(stream.encode(None))
    return path


def seen(path, **kw):
    frames, reason = face.face_frames(path, weights='retrained', **kw)
    known = frames.loc[frames['found'], KEYS]
    assert np.allclose(known.sum(axis=1), 1, atol=1e-4) and frames.loc[~frames['found'].astype(bool), KEYS].isna().all(axis=None)
    return frames, reason


def test_scores_are_those_of_deepface(samples):
    with face.deepface_home(face.weights_home('retrained')):
        from deepface import DeepFace
        theirs = []
        for t, image in Film(samples[0], 2):
            one, = DeepFace.analyze(image, actions=['emotion'], detector_backend='opencv')
            theirs.append(one['region'] | one['emotion'])
    ours, reason = seen(samples[0], rate=2, stride=1)
    theirs = pd.DataFrame(theirs)
    alike = (ours[['x', 'y', 'w', 'h']].to_numpy() == theirs[['x', 'y', 'w', 'h']].to_numpy()).all(1)
    lean = [np.degrees(np.arctan2(e.left_eye[1] - e.right_eye[1], e.left_eye[0] - e.right_eye[0])) if e.left_eye and e.right_eye else 0.
            for e in theirs.itertuples()]
    alike &= np.abs(ours['turned'] - lean).to_numpy() < .1
    assert alike.mean() > .7 and reason == ''
    assert np.abs(ours[KEYS].to_numpy() - theirs[KEYS].to_numpy() / 100)[alike].max() < .01


def test_no_film_raises_and_names_the_file(tmp_path, samples):
    whole = samples[0].read_bytes()
    (tmp_path / 'cut.mp4').write_bytes(whole[:len(whole) // 2])
    (tmp_path / 'letter.mp4').write_text('not a film')
    (tmp_path / 'nothing.mp4').write_bytes(b'')
    with av.open(str(tmp_path / 'sound.mp4'), 'w') as box:
        stream = box.add_stream('aac', rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), 'float32'), format='fltp', layout='mono')
        sound.sample_rate = 16000
        box.mux(stream.encode(sound))
        box.mux(stream.encode(None))
    for name in ('letter', 'nothing', 'sound'):
        with pytest.raises(FilmError, match=f'{name}.mp4'): face.face_frames(tmp_path / f'{name}.mp4')
    with pytest.raises(FileNotFoundError): face.face_frames(tmp_path / 'absent.mp4')
    frames, reason = seen(tmp_path / 'cut.mp4')
    assert reason.startswith(('cut off', 'damaged after 1.')) and frames['found'].sum() > 5


def test_films_that_end_early_give_what_they_have(tmp_path, pictures):
    data = film(tmp_path / 'whole.mkv', pictures * 3).read_bytes()
    (tmp_path / 'half.mkv').write_bytes(data[:len(data) // 2])
    frames, reason = seen(tmp_path / 'half.mkv')
    assert frames['found'].sum() > 3 and ('cut off' in reason or 'damaged' in reason)
    film(tmp_path / 'empty.mp4', pictures[:1])
    assert len(seen(tmp_path / 'empty.mp4')[0]) == 1


@pytest.mark.parametrize('kind', ['plain', 'grey', 'ten_bit', 'portrait', 'rotated', 'upside_down', 'variable_rate', 'avi', 'mov', 'flv', 'webm'])
def test_unusual_films_of_a_face(kind, tmp_path, pictures):
    path, make = tmp_path / f'{kind}.mp4', {}
    shots = pictures
    if kind == 'grey': make = dict(pix_fmt='gray', codec='ffv1'); path = path.with_suffix('.mkv')
    if kind == 'ten_bit': make = dict(pix_fmt='yuv420p10le', codec='ffv1'); path = path.with_suffix('.mkv')
    if kind == 'portrait': shots = [p[:, 200:440] for p in pictures]
    if kind == 'rotated': shots, make = [np.rot90(p, -1) for p in pictures], dict(rotation=90)
    if kind == 'upside_down': shots, make = [np.rot90(p, 2) for p in pictures], dict(rotation=180)
    if kind == 'variable_rate': path, make = path.with_suffix('.mkv'), dict(times=np.cumsum(np.tile([.02, .2, .05], 10)))
    if kind == 'avi': make, path = dict(codec='mpeg4'), path.with_suffix('.avi')
    if kind == 'mov': path = path.with_suffix('.mov')
    if kind == 'flv': make, path = dict(codec='flv1'), path.with_suffix('.flv')
    if kind == 'webm': make, path = dict(codec='libvpx', options={'deadline': 'realtime'}), path.with_suffix('.webm')
    frames, reason = seen(film(path, shots, **make), rate=5)
    assert frames['found'].mean() > .8 and reason == '', frames
    seconds = frames['t'].max()
    assert seconds > 1.5 and 4 * seconds < len(frames) <= 5 * seconds + 1.1, 'sampled by time'


def test_two_faces_are_counted_and_the_larger_is_followed(tmp_path, pictures):
    small = [cv2.resize(p[20:340, 160:480], (160, 160)) for p in pictures]
    both = [cv2.copyMakeBorder(p, 0, 0, 0, 200, cv2.BORDER_CONSTANT) for p in pictures]
    for frame, inset in zip(both, small): frame[100:260, 660:820] = inset
    frames, _ = seen(film(tmp_path / 'two.mp4', both))
    alone, _ = seen(film(tmp_path / 'one.mp4', pictures))
    assert (frames['faces'] == 2).mean() > .5 and (alone['faces'] == 1).all()
    assert np.abs(frames['x'] - alone['x']).median() < 10
    assert face_rows(tmp_path / 'two.mp4')['note'] == 'several faces: the answer is about the one that was followed'
    assert face_rows(tmp_path / 'one.mp4')['note'] == ''


def test_what_is_no_face_gets_no_score(tmp_path, pictures):
    cartoon = np.full((240, 320, 3), 255, 'uint8')
    cv2.circle(cartoon, (160, 120), 80, (0, 220, 255), -1)
    for x in (130, 190): cv2.circle(cartoon, (x, 100), 10, (0, 0, 0), -1)
    cv2.ellipse(cartoon, (160, 140), (40, 25), 0, 0, 180, (0, 0, 0), 4)
    for name, picture in dict(cartoon=cartoon, black=0 * cartoon, half=pictures[0][:, :320][:, -90:]).items():
        frames, reason = seen(film(tmp_path / f'{name}.mp4', [picture] * 10))
        assert reason == ('' if frames['found'].any() else 'no face'), name
        assert name != 'black' or not frames['found'].any()
    tiny = film(tmp_path / 'tiny.mkv', [np.full((1, 1, 3), 90, 'uint8')] * 5, codec='ffv1', pix_fmt='bgr0')
    frames, reason = seen(tiny)
    assert reason == 'picture too small' and not frames['found'].any() and len(frames)


def test_a_slow_detector_may_look_less_often(tmp_path, pictures):
    path = film(tmp_path / 'face.mp4', pictures)
    every, _ = seen(path, detector='mtcnn', rate=0, stride=1)
    third, _ = seen(path, detector='mtcnn', rate=0, stride=3)
    assert every['found'].all() and third['found'].all() and every['fresh'].all() and not third['fresh'].all()
    assert np.abs(every[KEYS].to_numpy() - third[KEYS].to_numpy()).mean() < .1
    with pytest.raises(SettingError, match='detector'): seen(path, detector='magic')


@pytest.mark.realdata
def test_the_mouth_is_not_an_eye():
    video = C.find_ravdess() / 'video' / '01-01-05-02-02-01-01.mp4'
    if not video.is_file(): pytest.skip('that film is not among the real data')
    frames, _ = seen(video, rate=0)
    model, wild = face.detector_model('opencv'), 0
    for _, image in Film(video, 6):
        for r in model.detect_faces(face.bordered(image)):
            if r.left_eye and r.right_eye: wild += not face.plausible_eyes(face.Face(r.x, r.y, r.w, r.h, 1., r.left_eye, r.right_eye))
    assert wild and (frames['alignment'] == 'implausible').any()


# --- the published zips

@pytest.fixture()
def zips(server, samples):
    "Two actors' zips on the server, and their archives."
    archives = {}
    for actor in ('01', '04'):
        name = f'Video_Speech_Actor_{actor}.zip'
        own = [p for p in samples if p.stem.endswith(actor)]
        files = {f'Actor_{actor}/{p.name}': p.read_bytes() for p in own} | {f'Actor_{actor}/02{own[0].name[2:]}': b'silent film'}
        server.files[name] = zipped(files)
        archives[f'video {actor}'] = archive(name, server.files[name])
    return archives


STREAM = """
import json, sys
from fractions import Fraction
from pathlib import Path
from emotion_study import corpus as C, features as F, fetch
archives = {k: fetch.Archive(*a) for k, a in json.loads(sys.argv[1]).items()}
stop = int(sys.argv[4])
write = F.write_film
def write_film(*a):
    write(*a)
    if stop and len(list((Path(sys.argv[3]) / 'faces').glob('*.parquet'))) >= stop: print('stored', flush=True); import time; time.sleep(600)
F.write_film = write_film
F.stream_films(archives, sys.argv[2], F.FaceSettings(rate=2, weights='retrained'), jobs=1, cache=Path(sys.argv[3]), progress=False)
"""


def test_a_killed_stream_goes_on_at_the_next_film(zips, server, tmp_path):
    ask = [sys.executable, '-c', STREAM, json.dumps(zips), server.url, str(tmp_path)]
    run = subprocess.Popen([*ask, '1'], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert run.stdout.readline().strip() == 'stored'
    run.send_signal(signal.SIGKILL); run.wait()
    first, = (tmp_path / 'faces').glob('*.parquet')
    stamp = first.stat().st_mtime_ns
    scores = F.stream_films(zips, server.url, F.FaceSettings(rate=2, weights='retrained'), jobs=1, cache=tmp_path, progress=False)
    assert len(scores) == 4 and all(f['found'].mean() > .8 and not r for f, r in scores.values())
    assert first.stat().st_mtime_ns == stamp, 'what was known is not computed again'
    left = [p for p in tmp_path.rglob('*') if p.is_file() and p.suffix not in ('.parquet', '.json')]
    assert not left, 'no zip and no film stays behind'
    server.files.clear()
    again = F.stream_films(zips, server.url, F.FaceSettings(rate=2, weights='retrained'), jobs=1, cache=tmp_path, progress=False)
    assert all(again[c][0].equals(scores[c][0]) for c in scores), 'no server is needed any more'


# --- weights

def test_nothing_is_put_into_the_users_home(tmp_path, samples):
    env = {**os.environ, 'HOME': str(tmp_path), 'EMOTION_STUDY_CACHE': str(tmp_path / 'cache')}
    code = f"from emotion_study import face; print(len(face.face_frames({str(samples[0])!r}, 1, weights='retrained')[0]))"
    done = subprocess.run([sys.executable, '-c', code], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) == 4, done.stderr
    assert not list(tmp_path.rglob('*.deepface*')) and not list(tmp_path.rglob('*.h5'))


def test_weights_are_named_by_what_they_are(tmp_path, monkeypatch, server):
    monkeypatch.setenv('DEEPFACE_HOME', str(tmp_path))
    ours = face.weights_path('retrained').read_bytes()
    assert face.choose_weights('auto') == 'retrained'
    with pytest.raises(SettingError, match='data deepface'): face.choose_weights('published')
    server.files[face.WEIGHTS_FILE] = ours
    face.fetch_weights(server.url)
    assert face.choose_weights('auto') == 'retrained', 'our file under their name stays ours'
    path = face.weights_path('published')
    with h5py.File(path, 'r+') as file: file['model_weights/dense_2/sequential/dense_2/bias'][0] += 1
    assert face.choose_weights('auto') == 'published'
    with pytest.raises(SettingError, match='SHA-256'): face.fetch_weights(server.url)
    path.write_bytes(b'other weights')
    path.with_name(path.name + '.sha256').unlink()
    with pytest.raises(SettingError, match='not weights'): face.emotion_client('published')
    assert not path.with_name(path.name + '.sha256').exists(), 'what is no weights is not pinned'
    assert face.is_weights(face.fetch_weights(server.url)), 'it is mended'
    with pytest.raises(SettingError, match='weights'): face.choose_weights('mine')


def test_weights_that_cannot_be_had_are_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv('DEEPFACE_HOME', str(tmp_path))
    with pytest.raises(SettingError, match="can't be had"): face.fetch_weights('http://127.0.0.1:9')
    assert not list(tmp_path.rglob('*.h5'))


# --- the training notebook

def test_the_network_can_be_trained_anew(tmp_path, monkeypatch):
    import papermill
    found = [p for p in (ROOT / 'data' / 'fer2013', ROOT.parent / 'shared' / 'data' / 'fer2013') if (p / 'fer2013.parquet').is_file()]
    if not found: pytest.skip('FER2013 is not on this machine')
    monkeypatch.setenv('EMOTION_STUDY_CACHE', str(tmp_path / 'cache'))
    shipped = face.weights_path('retrained').read_bytes()
    few = dict(images=300, epochs=2, ship=False, out=str(tmp_path / 'out'), fer2013=str(found[0] / 'fer2013.parquet'))
    papermill.execute_notebook(str(ROOT / 'nbs/study/93_face_weights.ipynb'), str(tmp_path / 'made.ipynb'), few, kernel_name='python3',
                               cwd=str(ROOT), progress_bar=False)
    results = {e['metric']: e for e in json.loads((tmp_path / 'out' / 'results.json').read_text())}
    assert 0 <= results['private_accuracy']['lo'] < results['private_accuracy']['value'] < results['private_accuracy']['hi'] and results['private_accuracy']['n'] == 300
    card, = (tmp_path / 'cache').rglob('*_weights.json')
    assert json.loads(card.read_text())['private_accuracy'] == round(results['private_accuracy']['value'], 2)
    assert face.weights_path('retrained').read_bytes() == shipped, 'what is shipped is untouched'
