"One decoder for whatever people record with: containers x faults, all made here."
import os

import av, numpy as np, pandas as pd, pytest, soundfile as sf, soxr
from av.stream import Disposition

from emotion_study import corpus as C, features as F, media, text, whisper
from emotion_study.media import Film, SR, kind_of, read_audio

T = np.arange(2 * SR) / SR
VOICE = (.4 * sum(np.sin(2 * np.pi * 180 * k * T) / k for k in (1, 2, 3)) * (1 + .3 * np.sin(5 * T))).astype('float32')
BY_SOUNDFILE = {'wav': {}, 'flac': {}, 'aiff': {}, 'au': {}, 'caf': {}, 'w64': {}, 'ogg': {}, 'mp3': {}, 'rf64': dict(format='RF64'),
                'float': dict(format='WAV', subtype='FLOAT'), 'wavex': dict(format='WAVEX'), 'ulaw': dict(format='WAV', subtype='ULAW'),
                '24bit': dict(format='FLAC', subtype='PCM_24'), 'opus': dict(format='OGG', subtype='OPUS')}
BY_PYAV = {'m4a': ('ipod', 'aac'), '3gp': ('3gp', 'aac'), 'm4v': ('mp4', 'aac'), 'mp4': ('mp4', 'aac'), 'mts': ('mpegts', 'aac'),
           'mov': ('mov', 'pcm_s16le'), 'mkv': ('matroska', 'aac'), 'webm': ('webm', 'libopus'), 'avi': ('avi', 'pcm_s16le'),
           'aac': ('adts', 'aac'), 'alac': ('ipod', 'alac'), 'ac3': ('ac3', 'ac3'), 'mp2': ('mp2', 'mp2'), 'asf': ('asf', 'mp2')}
RATES = {'libopus': 48_000, 'ac3': 48_000}
HAS_LENGTH = ('wav', 'flac', 'aiff', 'au', 'rf64', 'float', 'wavex', 'ulaw', '24bit', 'mp3', 'mkv', 'webm')  # a header that says how long


def track(path, signal, container, codec, rate=SR, tracks=1):
    "Write a sound track, or the same one twice, with PyAV."
    signal = np.atleast_2d(signal).astype('float32')
    layout = {1: 'mono', 2: 'stereo'}[len(signal)]
    with av.open(str(path), 'w', format=container) as box:
        for stream in [box.add_stream(codec, rate=RATES.get(codec, rate), layout=layout) for _ in range(tracks)]:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(signal), format='fltp', layout=layout)
            frame.sample_rate = rate
            fit = av.AudioResampler(stream.format, layout, stream.rate, frame_size=stream.frame_size or 1024)
            for f in (*fit.resample(frame), *fit.resample(None)): box.mux(stream.encode(f))
            box.mux(stream.encode(None))
    return path


def write(folder, kind, signal=VOICE, rate=SR):
    path = folder / f'clip.{kind}'
    if kind in BY_PYAV: return track(path, signal, *BY_PYAV[kind], rate)
    sf.write(path, signal.T, rate, **({'format': kind.upper()} | BY_SOUNDFILE[kind]))
    return path


def silent_film(path, codec='mpeg4', frames=30):
    with av.open(str(path), 'w') as box:
        stream = box.add_stream(codec, rate=15)
        stream.height, stream.width, stream.pix_fmt = 64, 96, 'yuv420p'
        for i in range(frames): box.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 96, 3), 8 * i, 'uint8'), format='rgb24')))
        box.mux(stream.encode(None))
    return path


def with_cover(path, container, picture=np.full((64, 64, 3), 120, 'uint8')):
    "A sound file with a picture on its sleeve."
    codec, picture_codec, pixels = {'mp4': ('aac', 'mjpeg', 'yuvj420p'), 'mp3': ('libmp3lame', 'mjpeg', 'yuvj420p')}[container]
    with av.open(str(path), 'w', format=container) as box:
        sound, cover = box.add_stream(codec, rate=SR, layout='mono'), box.add_stream(picture_codec, rate=1)
        cover.height, cover.width, cover.pix_fmt, cover.disposition = 64, 64, pixels, Disposition.attached_pic
        pictures = cover.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')) + cover.encode(None)
        frame = av.AudioFrame.from_ndarray(VOICE[None], format='fltp', layout='mono'); frame.sample_rate = SR
        fit = av.AudioResampler(sound.format, 'mono', SR, frame_size=sound.frame_size)
        packets = [p for f in (*fit.resample(frame), *fit.resample(None)) for p in sound.encode(f)] + sound.encode(None)
        box.mux(packets[:1] + pictures + packets[1:])
    return path


# --- any container, under any name

@pytest.mark.parametrize('kind', [*BY_SOUNDFILE, *BY_PYAV])
def test_a_container_is_heard_under_any_name(tmp_path, kind):
    data = write(tmp_path, kind).read_bytes()
    heard = []
    for name in ('a.' + kind, 'a.wav', 'a.mp4', 'a.txt', 'a.snd', 'a.raw', 'a'):
        (tmp_path / name).write_bytes(data)
        audio = read_audio(tmp_path / name)
        assert audio.valid and audio.notes == () and 1.9 < audio.seconds < 2.2, (name, audio.reason, audio.notes)
        assert .85 < audio.samples.std() / VOICE.std() < 1.15
        assert C.check_sound(tmp_path / name, None)['problems'] == ''
        heard.append(audio.samples.tobytes())
    assert len(set(heard)) == 1


@pytest.mark.parametrize('kind', [*BY_SOUNDFILE, *BY_PYAV])
@pytest.mark.parametrize('share', [.5, .9])
def test_a_cut_container_is_flagged_or_refused(tmp_path, kind, share):
    path = write(tmp_path, kind)
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    audio = read_audio(path)
    row = C.check_sound(path, None)
    assert row['usable'] == audio.valid and (np.isfinite(audio.samples).all() if audio.valid else kind_of(audio.reason) in ('undecodable', 'empty'))
    if kind in HAS_LENGTH: assert audio.valid and [kind_of(n) for n in audio.notes] == ['cut off'] and ' of 2.' in audio.note, audio
    if kind in ('m4a', 'mp4', 'alac'): assert 'without its index' in audio.reason


@pytest.mark.parametrize('kind', ['wav', 'flac', 'mp3', 'ogg', 'm4a', 'mkv', 'mts', 'aac'])
@pytest.mark.parametrize('seed', range(6))
def test_damage_never_raises(tmp_path, kind, seed):
    rng, path = np.random.default_rng(seed), write(tmp_path, kind)
    data = np.frombuffer(path.read_bytes(), 'uint8').copy()
    at = rng.integers(len(data) if seed < 3 else 60)
    data[at:at + 400] = rng.integers(0, 256, len(data[at:at + 400]))
    path.write_bytes(data.tobytes())
    audio = read_audio(path)
    assert C.check_sound(path, None)['usable'] == audio.valid
    assert np.isfinite(audio.samples).all() and (len(audio.samples) > 0) == audio.valid


# --- headers

@pytest.mark.parametrize('riff', [0, 8, 36, 0xFFFFFFFF])
@pytest.mark.parametrize('promised', [0, 1000])
@pytest.mark.parametrize('title', [False, True])
def test_a_recorder_that_died(tmp_path, riff, promised, title):
    whole = write(tmp_path, 'wav').read_bytes()
    extra = b'LIST' + (16).to_bytes(4, 'little') + b'INFOISFT\4\0\0\0me\0\0' if title else b''
    head = whole[:4] + riff.to_bytes(4, 'little') + whole[8:36] + extra + b'data'
    (tmp_path / 'died.wav').write_bytes(head + promised.to_bytes(4, 'little') + whole[44:])
    audio = read_audio(tmp_path / 'died.wav')
    assert audio.valid and np.array_equal(audio.samples, read_audio(tmp_path / 'clip.wav').samples)
    assert kind_of(audio.note) == 'unfinished header' or (promised, riff) == (0, 8)  # libsndfile mends that one itself


@pytest.mark.parametrize('promised', [0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_length_that_a_pipe_could_not_know_is_no_cut(tmp_path, promised):
    whole = write(tmp_path, 'wav').read_bytes()
    (tmp_path / 'piped.wav').write_bytes(whole[:40] + promised.to_bytes(4, 'little') + whole[44:])
    audio = read_audio(tmp_path / 'piped.wav')
    assert audio.notes == () and audio.seconds == 2


def test_a_title_behind_the_samples_is_not_heard(tmp_path):
    whole = write(tmp_path, 'wav').read_bytes()
    (tmp_path / 'titled.wav').write_bytes(whole + b'LIST' + (4000).to_bytes(4, 'little') + b'INFO' + bytes(3996))
    audio = read_audio(tmp_path / 'titled.wav')
    assert audio.notes == () and audio.seconds == 2


# --- rules

def noise(level): return (level * np.random.default_rng(0).normal(size=len(T))).astype('float32')


RULES = {  # name: (samples, rate, format), reason, note
    'plain': ((VOICE, SR, 'FLOAT'), '', ''),
    'nothing': ((VOICE[:0], SR, 'PCM_16'), 'empty', ''),
    'one NaN': ((np.where(T == T[9], np.nan, VOICE), SR, 'FLOAT'), 'not finite', ''),
    'infinite': ((VOICE / 0 if False else np.where(T > 1, np.inf, VOICE), SR, 'FLOAT'), 'not finite', ''),
    'short': ((VOICE[:1599], SR, 'PCM_16'), 'shorter than 0.1 s', ''),
    'just long enough': ((VOICE[:1600], SR, 'PCM_16'), '', ''),
    'zeros': ((0 * VOICE, SR, 'PCM_16'), 'silent', ''),
    'muted card': ((.02 + noise(2e-5), SR, 'PCM_16'), 'silent', ''),
    'quiet': ((.002 * VOICE, SR, 'FLOAT'), '', ''),
    'offset': ((.1 * VOICE + .1, SR, 'PCM_16'), '', 'constant offset'),
    '16-bit numbers': ((np.round(VOICE * 20_000), SR, 'FLOAT'), '', 'rescaled'),
    '24-bit numbers': ((np.round(VOICE * 8_000_000), SR, 'FLOAT'), '', 'rescaled'),
    '32-bit numbers': ((np.round(VOICE * 2e9), SR, 'DOUBLE'), '', 'rescaled'),
    '16-bit scale, broken numbers': ((VOICE * 20_000, SR, 'FLOAT'), 'out of range', ''),
    'hot': ((VOICE * 5, SR, 'FLOAT'), '', 'over full scale; clipped'),
    'clipped': ((np.clip(VOICE * 8, -1, 1), SR, 'PCM_16'), '', 'clipped'),
    '8-bit': ((VOICE, SR, 'PCM_U8'), '', '8-bit'),
    'telephone': ((VOICE, 8000, 'ULAW'), '', 'low rate'),
    'cheap recorder': ((VOICE, 11025, 'PCM_16'), '', 'low rate'),
    'opposed': ((np.column_stack([VOICE, -VOICE]), SR, 'PCM_16'), '', 'stereo cancels out'),
    'opposed and unlike': ((np.column_stack([VOICE, -.6 * VOICE + noise(.02)]), SR, 'PCM_16'), '', 'stereo cancels out'),
    'left only': ((np.column_stack([VOICE, 0 * VOICE]), SR, 'PCM_16'), '', 'dead channel'),
    'right only': ((np.column_stack([0 * VOICE + .01, VOICE]), SR, 'PCM_16'), '', 'dead channel'),
    'one of six': ((np.column_stack([0 * VOICE] * 5 + [VOICE]), SR, 'PCM_16'), '', 'dead channel'),
    'apart': ((np.column_stack([noise(.1), noise(.1)[::-1]]), SR, 'PCM_16'), '', ''),
    'silent stereo': ((np.zeros((SR, 2)), SR, 'PCM_16'), 'silent', ''),
}


@pytest.mark.parametrize('name', RULES)
def test_rules_are_the_same_for_everybody(tmp_path, name):
    (samples, rate, subtype), reason, note = RULES[name]
    path = tmp_path / 'clip.wav'
    sf.write(path, samples, rate, subtype=subtype)
    audio, row = read_audio(path), C.check_sound(path, None)
    values, why, flag = F.voice_row(path, tmp_path / 'cache', 'code')
    assert (kind_of(audio.reason), '; '.join(map(kind_of, audio.notes))) == (reason, note), audio
    assert (why, flag, row['usable']) == (audio.reason, audio.note, audio.valid)
    assert F.voice_row(path, tmp_path / 'cache', 'code')[1:] == (why, flag), 'from the cache'
    assert text.transcribe(audio, 'pocketsphinx').reason == why if why else True
    assert np.isfinite(values[:100]).all() == audio.valid
    is_odd = {w for w in row['problems'].split(', ') if w in ('stereo', 'multichannel')}
    assert set(filter(None, row['problems'].split(', '))) - is_odd == set(filter(None, (reason, *note.split('; '))))


@pytest.mark.parametrize('name', ['opposed', 'left only', 'right only', 'one of six', '16-bit numbers', 'offset'])
def test_what_is_mended_is_as_loud_as_it_was(tmp_path, name):
    (samples, rate, subtype), *_ = RULES[name]
    sf.write(tmp_path / 'clip.wav', samples, rate, subtype=subtype)
    gain = {'16-bit numbers': 20_000 / 32_768, 'offset': .1}.get(name, 1)
    assert np.abs(read_audio(tmp_path / 'clip.wav').samples - gain * VOICE).max() < .002


@pytest.mark.parametrize('kind', ['m4a', '3gp', 'mov', 'mkv', 'mts', 'flac', 'mp3'])
@pytest.mark.parametrize('fault, verdict', [('opposed', 'stereo cancels out'), ('dead', 'dead channel'), ('silent', 'silent')])
def test_rules_hold_in_every_container(tmp_path, kind, fault, verdict):
    other = {'opposed': -VOICE, 'dead': 0 * VOICE, 'silent': 0 * VOICE}[fault]
    audio = read_audio(write(tmp_path, kind, np.stack([0 * VOICE if fault == 'silent' else VOICE, other])))
    assert kind_of(audio.reason or audio.note) == verdict and (not audio.valid or .3 < np.abs(audio.samples).max() < 1)


# --- tracks

def test_several_tracks_and_a_change_midway(tmp_path):
    two = read_audio(track(tmp_path / 'two.mkv', VOICE, 'matroska', 'aac', tracks=2))
    assert two.valid and two.notes == ('several sound tracks: number 1 of 2 is used',)
    parts = [track(tmp_path / f'{i}.aac', *how) for i, how in enumerate([(.6 * VOICE, 'adts', 'aac'), (.6 * np.stack([VOICE] * 2), 'adts', 'aac', 32_000)])]
    (tmp_path / 'joined.aac').write_bytes(b''.join(p.read_bytes() for p in parts))
    joined = read_audio(tmp_path / 'joined.aac')
    assert joined.notes == ('changes midway: rate or channels',) and 2.9 < joined.seconds < 3.4


def test_films_without_sound_and_sound_without_films(tmp_path):
    film = silent_film(tmp_path / 'film.mp4')
    assert read_audio(film).reason == 'no sound track' and media.film_reason(film) == ''
    assert C.check_sound(film, None)['problems'] == 'no sound track'
    for kind in ('wav', 'm4a', 'mts'): assert media.film_reason(write(tmp_path, kind)) == 'no picture track'
    picture = tmp_path / 'portrait.mp4'
    with av.open(str(tmp_path / 'p.jpg'), 'w', format='image2') as box:
        stream = box.add_stream('mjpeg', rate=1)
        stream.height, stream.width, stream.pix_fmt = 64, 64, 'yuvj420p'
        box.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), 'uint8'), format='rgb24')))
    os.replace(tmp_path / 'p.jpg', picture)
    assert read_audio(picture).reason == 'no sound track' and media.film_reason(picture).startswith('no picture track')


@pytest.mark.parametrize('container', ['mp4', 'mp3'])
def test_a_cover_is_no_film(tmp_path, container):
    path = with_cover(tmp_path / 'song.mp4', container)
    with av.open(str(path)) as box: assert box.streams.video, 'there is a picture'
    assert read_audio(path).valid and media.film_reason(path) == 'no picture track: only a cover'
    with pytest.raises(media.FilmError, match='song.mp4'): list(Film(path))
    corpus = C.Corpus('manifest', pd.DataFrame({'clip': ['a', 'b'], 'path': [str(path), str(silent_film(tmp_path / 'film.avi'))]}))
    films, refused = F.own_films(corpus)
    assert set(films) == {'b'} and refused == {'a': 'no picture track: only a cover'}


# --- caches

def test_a_name_decides_nothing_in_a_cache(tmp_path):
    memo = write(tmp_path, 'm4a')
    (tmp_path / 'memo.wav').write_bytes(memo.read_bytes())
    first = F.voice_row(tmp_path / 'memo.wav', tmp_path / 'cache', 'code')
    again = F.voice_row(memo, tmp_path / 'cache', 'code')
    assert first[1:] == again[1:] == ('', '') and first[0].tobytes() == again[0].tobytes()
    film = silent_film(tmp_path / 'film.mp4')
    (tmp_path / 'copy.bin').write_bytes(film.read_bytes())
    for name in ('film.mp4', 'copy.bin'):
        (frames, told), = F.film_scores({name: tmp_path / name}, jobs=1, cache=tmp_path / 'cache').values()
        assert set(frames['clip']) == {name} and told == 'no face' and F.film_verdict(frames, told) == dict(reason='no face', note='')


def test_a_passing_fault_is_not_kept(tmp_path, monkeypatch):
    path, cache = write(tmp_path, 'wav'), tmp_path / 'cache'
    refuse = {'on': True}
    def broken(*a, **k):
        if refuse['on']: raise OSError(5, 'Input/output error')
        return decode(*a, **k)
    decode = media._either
    monkeypatch.setattr(media, '_either', broken)
    keys = {'tiny': 'key'}
    assert F.voice_row(path, cache, 'code')[1] == 'unreadable: Input/output error'
    assert whisper.whisper_row(path, cache, keys)[1] == 'unreadable: Input/output error'
    assert text.transcript_entry(path, 'pocketsphinx', cache=cache)['reason'] == 'unreadable: Input/output error'
    assert not list(cache.rglob('*.npz')) and not list(cache.rglob('*.json'))
    refuse['on'] = False
    assert F.voice_row(path, cache, 'code')[1] == '' and len(list(cache.rglob('*.npz'))) == 1


def test_memory_that_is_not_there_costs_one_clip(tmp_path, monkeypatch):
    path = write(tmp_path, 'wav')
    def none(*a, **k): raise MemoryError
    monkeypatch.setattr(F.speech, 'speech_features', none)
    F.speech.speech_columns()
    assert F.voice_row(path, tmp_path / 'cache', 'code')[1] == 'unreadable: not enough memory' and not (tmp_path / 'cache').exists()


def test_a_missing_file_is_told_in_the_same_words(tmp_path):
    gone = tmp_path / 'gone.wav'
    told = {F.voice_row(gone, tmp_path, 'code')[1], whisper.whisper_row(gone, tmp_path, {'tiny': 'key'})[1],
            text.transcript_entry(gone, 'pocketsphinx')['reason'], C.check_sound(gone)['details'], media.film_reason(gone)}
    assert told == {'file missing'}


# --- memory

def test_a_long_film_is_not_held_twice(tmp_path):
    import tracemalloc
    path = tmp_path / 'long.mkv'
    track(path, np.tile(VOICE, 150), 'matroska', 'aac')  # five minutes
    tracemalloc.start()
    sound = media.decode_audio(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sound.seconds > 299 and peak < 2.2 * sound.samples.nbytes


# --- the real corpus

@pytest.mark.realdata
def test_the_published_clips_are_decoded_as_ever():
    "Plain decoding, averaging and resampling: no rule touches a clip of RAVDESS."
    clips = C.load_corpus('ravdess').clips
    stereo = clips['clip'].isin(['03-01-02-01-01-02-01', '03-01-08-01-02-02-01', '03-01-02-01-02-02-05', '03-01-03-01-02-01-20', '03-01-06-01-01-02-20'])
    for path in [*clips.path[stereo], *clips.path[::97]]:
        y, rate = sf.read(path, dtype='float32', always_2d=True)
        plain, audio = soxr.resample(y.mean(axis=1), rate, SR, quality='HQ'), read_audio(path)
        assert audio.samples.tobytes() == plain.tobytes() and audio.notes == () and audio.valid
