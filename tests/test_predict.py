"""`emotion-study predict`: the columns, bad input, speakers, exit codes, going on after a stop, and words that must not rule."""
import json, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

import emotion_study
from emotion_study import cli, predict as own
from emotion_study.core import SettingError
from emotion_study.media import SR
from emotion_study.corpus import find_ravdess, list_files
from emotion_study.predict import (
    CARD, MOODS, Predictor, SHIPPED, SMALL_CARD, answer_columns, joint, read_own_card, recordings_of,
    speaker_scores, stretches, words_between)

COLUMNS = ('file start end answer p_neutral p_happy p_sad p_angry p_fearful p_disgust p_surprised set confidence abstained '
           'valid_voice valid_face valid_words voice_answer face_answer words_answer weight_voice weight_face weight_words '
           'speaker transcript reason').split()


def run(*args):
    "The command's exit code."
    with pytest.raises(SystemExit) as e: cli.main(['predict', *map(str, args)])
    return e.value.code


def clip(code):
    "A RAVDESS clip on this machine."
    return next(p for p in list_files(find_ravdess()) if p.stem == code and p.suffix in ('.wav', '.flac'))


@pytest.fixture(scope='session')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('cache')


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    monkeypatch.setenv('EMOTION_STUDY_CACHE', str(cache))
    monkeypatch.setenv('EMOTION_STUDY_WHISPER_SMALL', str(cache / 'not fetched'))  # whatever this machine has


def tone(path, seconds=2, pitch=440):
    t = np.arange(int(seconds * SR)) / SR
    sf.write(path, .2 * np.sin(2 * np.pi * pitch * t) + .1 * np.sin(2 * np.pi * 1.5 * pitch * t), SR)
    return path


# --- what needs no recording

def test_columns_are_the_contract(): assert answer_columns() == COLUMNS


@pytest.mark.parametrize('path', (CARD, SMALL_CARD), ids=lambda p: p.stem)
def test_the_shipped_card_is_whole(path):
    card = read_own_card(path)
    assert all(b.startswith('whisper_small') == (path == SMALL_CARD) for b in card.blocks), 'one of the two is to be fetched'
    assert tuple(card.about['labels']) == MOODS and card.numbers['inductive.0.weights'].shape == (7, card.about['widths'][0])
    assert {c['licence'] for c in card.about['corpora']} == {'CC BY-NC-SA 4.0'} and card.about['limits']
    for scope in card.about['scopes'].values():
        for figure in scope['accuracy'].values(): assert figure['lo'] < figure['value'] < figure['hi'] and figure['n'] > 100
    assert all(np.isfinite(v).all() for v in card.numbers.values())


def test_a_users_own_card_is_taught_by_the_recipes_of_the_shipped_one():
    card = read_own_card(CARD)
    assert tuple(card.blocks) == own.VOICE_BLOCKS
    for scope, recipe in own.MIDDLE.items():
        about = card.scope(scope)
        assert recipe == dict(use=tuple(about['use']), level=about['level'], c=about['c']), scope


def test_the_larger_model_is_taken_where_its_encoder_was_fetched(tmp_path, monkeypatch, capsys):
    silence = tmp_path / 'silence.wav'
    sf.write(silence, np.zeros(SR), SR)
    run(silence, '--channels', 'voice')
    assert Predictor().card == CARD and own.LARGER in ''.join(capsys.readouterr())
    run(silence, '--channels', 'voice', '--card', CARD)
    assert own.LARGER not in ''.join(capsys.readouterr()), 'who named a card has chosen'
    weights = tmp_path / 'encoder.onnx'
    weights.write_bytes(b'x')
    monkeypatch.setenv('EMOTION_STUDY_WHISPER_SMALL', str(weights))
    assert Predictor().card == SMALL_CARD and own.default_card() == SMALL_CARD
    found = own.predict([silence], channels=('voice',))
    assert found['reason'].iloc[0] == 'voice: silent' and own.LARGER not in found.attrs['remarks']


def test_a_card_whose_numbers_are_others_is_refused(tmp_path):
    for suffix in ('.json', '.safetensors'): shutil.copy(CARD.with_suffix(suffix), tmp_path)
    with open(tmp_path / f'{CARD.stem}.safetensors', 'ab') as file: file.write(b'x')
    with pytest.raises(SettingError, match='not the file that the card describes'): read_own_card(tmp_path / CARD.name)


def test_importing_stays_light():
    code = "import sys, emotion_study, emotion_study.cli; print({'tensorflow', 'librosa', 'pandas', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, '-c', code], text=True, capture_output=True).stdout.strip() == 'set()'


def test_the_module_can_be_called(tmp_path):
    assert callable(emotion_study.predict) and emotion_study.Predictor is Predictor
    found = emotion_study.predict([tmp_path / 'nothing.wav'], channels=('voice',))
    assert list(found) == COLUMNS and found['reason'].tolist() == ['voice: file missing'] and found.attrs['lines']


@pytest.mark.parametrize('options, said', [
    (['--classes', '8'], 'has 7'), (['--channels', 'voice,smell'], 'voice, face, words'), (['--window', '4', '--hop', '0'], 'hop'),
    (['--window', '99'], '--window 99'), (['--abstain', '2'], '--abstain 2'), (['--out', 'x.xlsx'], '.csv'), (['--picture', 'x.jpg'], '.png'),
    (['--one-speaker', '--adapt-to-set'], 'leave'), (['--jobs', '0'], '--jobs 0'), (['--speaker-column', 'who'], 'who'), (['--card', 'no.json'], 'card')])
def test_a_wrong_option_is_one_line(options, said, tmp_path, capsys):
    assert run(tone(tmp_path / 'a.wav'), *options) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith('error: ') and said in error and '\n' not in error


def test_an_empty_folder_and_one_with_other_files(tmp_path, capsys):
    assert run(tmp_path) == 2 and 'no sound or film' in capsys.readouterr().err
    (tmp_path / 'notes.txt').write_text('hello')
    assert run(tmp_path) == 2 and '1 file left alone' in capsys.readouterr().err


def test_a_table_needs_only_the_path_and_may_name_any_speaker_column(tmp_path):
    (tmp_path / 'l.csv').write_text('\ufeffpath;Person\na.wav;Ann\n\nb.wav;"B; C"\n', encoding='utf-8')
    tone(tmp_path / 'a.wav')
    found, _ = recordings_of([tmp_path / 'l.csv'], 'Person')
    assert [r.speaker for r in found] == ['Ann', 'B; C'] and [bool(r.fault) for r in found] == [False, True]
    with pytest.raises(SettingError, match='has no column'): recordings_of([tmp_path / 'l.csv'], 'Actor')


@pytest.mark.parametrize('seconds', [.3, 3.9, 4, 4.2, 5, 10.5, 100])
def test_windows_cover_a_recording(seconds):
    rows = stretches(seconds, 4, 1)
    assert rows[0][0] == 0 and seconds - rows[-1][1] <= .25 and all(b - a <= 4 + 1e-9 for a, b in rows)
    assert all(c - a == 1 for (a, _), (c, _) in zip(rows, rows[1:]))


def test_an_absent_channel_has_no_say():
    card, p = read_own_card(CARD), np.full((2, 7), .1)
    p[:, 3] = .4
    gone = np.full((2, 7), np.nan)
    alone, share = joint(card, dict(voice=p, face=gone, words=gone))
    assert np.allclose(alone, p / p.sum(1, keepdims=True)) and share['voice'].tolist() == [1, 1] and share['face'].tolist() == [0, 0]
    assert np.isnan(joint(card, dict(voice=gone, face=gone))[0]).all()


def test_a_speaker_with_no_clip_changes_little_and_many_are_trusted():
    card, rng = read_own_card(CARD), np.random.default_rng(0)
    prior = own.speaker_of_card(card)
    X = prior.mean + prior.offsets[np.arange(40) % 7] + np.sqrt(prior.inside) * rng.normal(size=(40, len(prior.mean)))
    none, one, many = (speaker_scores(card, X[:1], X[:n])[1] for n in (0, 1, 40))
    same = speaker_scores(card, X[:1], X[::7])[1]
    assert none == one == 0 and same < many <= 1


def test_words_count_only_with_confidence():
    said = dict(text=['get', 'out'], start=[0, 1], end=[1, 2], sure=[.2, .3], reason='')
    assert words_between(said, 0, 2)[1].startswith('words uncertain')
    assert words_between(said | dict(sure=[.9, .9]), 0, .9)[1].startswith('only one word')


# --- recordings

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Speech, and what is none."
    here = tmp_path_factory.mktemp('own')
    if not find_ravdess(): pytest.skip('no RAVDESS on this machine')
    for name, code in (('angry', '03-01-05-02-01-01-05'), ('sad', '03-01-04-02-02-01-06')): shutil.copy(clip(code), here / f'{name}.flac')
    shutil.copy(clip('03-01-03-02-01-01-05'), here / "it's \"<b>&amp;.flac")
    tone(here / 'music.wav')
    sf.write(here / 'silence.wav', np.zeros(SR), SR)
    (here / 'no.mp3').write_bytes(b'this is no sound' * 100)
    (here / 'empty.wav').write_bytes(b'')
    (here / 'read me.txt').write_text('x')
    return here


@pytest.mark.realdata
def test_a_folder_of_all_sorts(folder, tmp_path, capsys):
    assert run(folder, '--channels', 'voice', '--out', tmp_path / 'a.csv') == 3
    told = capsys.readouterr().out
    assert 'acted' in told and 'health, hiring, teaching' in told and '1 file left alone' in told
    table = pd.read_csv(tmp_path / 'a.csv', keep_default_na=False).set_index('file')
    assert list(table) == COLUMNS[1:] and len(table) == 7
    name = lambda n: f'{folder.name}/{n}'
    why = table['reason']
    assert why[name('silence.wav')] == 'voice: silent' and why[name('music.wav')] == 'voice: no speech found'
    assert 'undecodable' in why[name('no.mp3')] and 'empty' in why[name('empty.wav')]
    heard = table[table['answer'] != '']
    assert len(heard) == 3 and np.allclose(heard.filter(like='p_').astype(float).sum(axis=1), 1)
    assert (heard['weight_voice'].astype(float) == 1).all() and (heard['voice_answer'] == heard['answer']).all()
    assert all(r.answer == r.set.split(';')[0] for r in heard.itertuples())


@pytest.mark.realdata
def test_the_page_escapes_and_needs_no_network(folder, tmp_path):
    nasty = folder / "it's \"<b>&amp;.flac"
    assert run(nasty, '--channels', 'voice', '--out', tmp_path / 'p.html', '--picture', tmp_path / 'p.png') == 0
    page = (tmp_path / 'p.html').read_text()
    assert '<b>' not in page and '&lt;b&gt;&amp;amp;' in page and '<svg' in page
    assert 'http' not in page and '<script' not in page and (tmp_path / 'p.png').read_bytes()[:4] == b'\x89PNG'


@pytest.mark.realdata
def test_a_formula_in_a_name_is_made_harmless(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(folder / 'sad.flac', '=1+1.flac')
    assert run('=1+1.flac', '--channels', 'voice', '--out', 'a.csv') == 0
    assert pd.read_csv('a.csv')['file'].tolist() == ["'=1+1.flac"]
    assert run('=1+1.flac', '--channels', 'voice', '--out', 'a.jsonl') == 0
    assert json.loads(Path('a.jsonl').read_text())['file'] == '=1+1.flac'


@pytest.mark.realdata
def test_a_second_run_measures_nothing_again(folder, tmp_path, monkeypatch):
    own.predict([folder / 'sad.flac'], channels=('voice',))
    monkeypatch.setattr(own, 'voice_means', lambda *_: pytest.fail('measured twice'))
    again = own.predict([folder / 'sad.flac'], channels=('voice',))
    assert again['answer'].ne('').all()
    with pytest.raises(pytest.fail.Exception): own.voice_rows(folder / 'sad.flac')


@pytest.mark.realdata
def test_one_bad_file_stops_nobody(folder, monkeypatch):
    real = own.voice_means
    def broken(samples, blocks): raise RuntimeError('out of luck') if len(samples) % 2 else MemoryError('full')
    monkeypatch.setattr(own, 'VERSION', 99)
    monkeypatch.setattr(own, 'voice_means', broken)
    found = own.predict([folder / 'sad.flac', folder / 'silence.wav'], channels=('voice',))
    assert found['reason'].str.contains('failed: ').tolist() == [True, False] and real is not broken


@pytest.mark.realdata
def test_windows_of_a_long_sound_and_silence(folder, tmp_path):
    x, rate = sf.read(folder / 'angry.flac')
    y, _ = sf.read(folder / 'sad.flac')
    mono = lambda z: z if z.ndim == 1 else z.mean(axis=1)
    sf.write(tmp_path / 'both.wav', np.concatenate([mono(x), np.zeros(5 * rate), mono(y)]), rate)
    found = own.predict([tmp_path / 'both.wav'], channels=('voice',), window=3, hop=2)
    assert len(found) == len(stretches((len(x) + len(y)) / rate + 5, 3, 2)) and (found['end'] - found['start'] <= 3.001).all()
    assert found['reason'].str.contains('silent|no speech').any() and found['answer'].iloc[0] == 'angry'
    streamed = list(own.streamed(tmp_path / 'both.wav', 3, 2))
    assert [a for a, *_ in streamed] == found['start'].tolist()
    assert np.allclose(own.voice_means(streamed[0][2].samples), own.voice_rows(tmp_path / 'both.wav', 3, 2)['X'][0], atol=2e-2)


@pytest.mark.realdata
def test_speakers_of_a_column_are_told_and_one_has_nothing_to_do_with_the_other(folder, tmp_path, capsys):
    text = f"path,who,emotion\n{folder / 'angry.flac'},Ann,sad\n{folder / 'sad.flac'},Bob,\n{folder / 'music.wav'},Bob,\n"
    (tmp_path / 'l.csv').write_text(text)
    assert run(tmp_path / 'l.csv', '--speaker-column', 'who', '--channels', 'voice', '--out', tmp_path / 'a.parquet') == 3
    assert 'Speaker Ann: adapted by 1 clip,' in capsys.readouterr().out
    both = pd.read_parquet(tmp_path / 'a.parquet')
    assert both['speaker'].tolist() == ['Ann', 'Bob', 'Bob']
    (tmp_path / 'l.csv').write_text('\n'.join(text.splitlines()[:2]).replace('sad', 'happy'))
    alone = own.predict([tmp_path / 'l.csv'], speaker_column='who', channels=('voice',))
    assert np.allclose(alone.filter(like='p_').iloc[0].astype(float), both.filter(like='p_').iloc[0].astype(float))


def test_other_words_change_few_answers():
    "The words of 120 clips replaced by sentences with a meaning: what voice and face say stays."
    from emotion_study.text import words_probabilities
    card = read_own_card(CARD)
    lines = ['Get out of here, I hate you!', 'I am so happy for you, this is wonderful!', 'Oh no, she died last night.', 'Where is the station?']
    words, rng = words_probabilities(lines), np.random.default_rng(0)
    clear = .04 * np.ones((120, 7))
    clear[np.arange(120), rng.integers(0, 7, 120)] = .76
    for line in words:
        p, _ = joint(card, dict(voice=clear, face=clear, words=np.tile(line, (120, 1))))
        assert (p.argmax(1) != clear.argmax(1)).mean() < .1
    flat = np.full((1, 7), 1 / 7)
    hated, _ = joint(card, dict(voice=flat, words=words[:1]))
    assert MOODS[hated[0].argmax()] in ('angry', 'disgust') and hated[0][MOODS.index('angry')] > hated[0][MOODS.index('happy')]


@pytest.mark.realdata
def test_a_network_of_train_is_a_card_too(folder):
    found = own.predict([folder / 'angry.flac', folder / 'gone.wav'], card=SHIPPED, classes=8)
    assert 'p_calm' in found and found['answer'].iloc[0] and not found['answer'].iloc[1]
    assert found['valid_voice'].tolist() == [True, False] and not found['valid_face'].any() and 'face:' in found['reason'].iloc[0]


# --- cards that a user teaches, and what they are worth elsewhere

def spoken(speakers=4, emotions=(1, 2, 3), clips=4, seed=0):
    "Invented voices in the columns of the middle blocks."
    rng, widths = np.random.default_rng(seed), own.block_widths(own.VOICE_BLOCKS)
    y = np.tile(np.repeat(emotions, clips), speakers)
    names = np.repeat([f's{a}' for a in range(speakers)], len(emotions) * clips)
    X = rng.normal(size=(len(y), sum(widths))) + np.tile(1.5 * np.eye(7)[y], sum(widths) // 7 + 1)[:, :sum(widths)]
    return own.Spoken(X, y, names, np.full(len(y), 'mine'), widths)


@pytest.fixture(scope='module')
def taught(tmp_path_factory):
    card = own.teach_card(spoken(), 'my calls', 'mine')
    return own.save_card(card, tmp_path_factory.mktemp('card') / 'mine.json')


def test_a_users_card_says_all_that_has_to_be_said(taught):
    about = read_own_card(taught).about
    assert about['corpora'][0]['licence'] == 'unknown' and about['labels'] == list(MOODS) and about['code']
    assert about['emotions'] == ['happy', 'sad', 'angry'] and 'never answers' in ' '.join(about['limits'])
    for scope in own.SITUATIONS:
        known = about['scopes'][scope]
        assert known['temperature'] > 0 and known['accuracy']['new speakers']['speakers'] == 4
        assert known['accuracy']['new speakers']['lo'] <= known['uar']['new speakers']['value']
    lines = own.about_lines(read_own_card(taught), 'inductive', {})
    assert 'nobody measured it' in lines[1] and 'acted speech' not in lines[0]


@pytest.mark.parametrize('fault,said', [
    ('altered', 'was altered'), ('numbers', 'not the file that the card describes'), ('gone', 'is missing'),
    ('foreign', "lacks 'labels'"), ('text', 'not a model card'), ('list', "lacks 'labels'"), ('classes', 'its classes are not')])
def test_a_card_that_is_not_whole_is_refused_in_one_line(taught, tmp_path, fault, said):
    for suffix in ('.json', '.safetensors'): shutil.copy(taught.with_suffix(suffix), tmp_path)
    path, about = tmp_path / 'mine.json', json.loads(taught.read_text())
    weights = path.with_suffix('.safetensors')
    if fault == 'altered': about['licence'] = 'CC0'
    if fault == 'classes': about['labels'], about['digest'] = ['good', 'bad'], ''
    if fault in ('altered', 'classes'): path.write_text(json.dumps(about))
    if fault == 'numbers': weights.write_bytes(weights.read_bytes() + b'x')
    if fault == 'gone': weights.unlink()
    if fault == 'foreign': path.write_text('{"blocks": [], "model": "other"}')
    if fault == 'text': path.write_text('no JSON')
    if fault == 'list': path.write_text('["blocks"]')
    with pytest.raises(SettingError, match=said) as e: read_own_card(path)
    assert '\n' not in str(e.value)


def test_channels_that_a_card_was_not_taught_are_absent(taught, tmp_path):
    table = own.predict([tone(tmp_path / 'a.wav')], card=taught)
    assert not table[['valid_face', 'valid_words']].any(axis=None)
    assert 'face: the card mine was not taught this channel' in table['reason'].iloc[0]


def test_what_can_not_teach_is_one_line():
    for material, said in ((spoken(2), 'there are 2'), (spoken(4, (1,)), 'all 16 usable clips are happy')):
        with pytest.raises(SettingError, match=said): own.check_taught(material)


def test_speakers_left_out_teach_nothing_of_what_is_said_about_them():
    "Other labels of the speakers left out change no answer about them."
    a = spoken()
    fit, ask = own.speaker_cuts(a)[0]
    assert not set(a.speaker[fit]) & set(a.speaker[ask])
    b = own.Spoken(a.X, a.y.copy(), a.speaker, a.corpus, a.widths)
    b.y[ask] = np.roll(b.y[ask], 5)
    recipe = {s: r | dict(use=(0,)) for s, r in own.MIDDLE.items()}
    for scope in own.SITUATIONS:
        cards = [own.card_of(m.of(fit), {scope: recipe[scope]}) for m in (a, b)]
        assert np.array_equal(*(own.scores_in(c, a.of(ask), scope) for c in cards))


def test_a_card_on_other_corpora(taught, tmp_path, monkeypatch):
    "Copies of training clips and other emotions are left out; bad corpora are one line each."
    from types import SimpleNamespace
    known, new = spoken(), spoken(3, (2, 3, 5), 2, seed=1)
    X = np.vstack([known.X[:2], new.X])
    emotions = np.array(MOODS)[np.concatenate([known.y[:2], new.y])]
    clips = pd.DataFrame(dict(
        clip=[f'c{i}' for i in range(len(X))], actor=['s0', 's0', *new.speaker], emotion=emotions, path='x'))
    asked = lambda t: SimpleNamespace(clips=t, synthetic=False, name='manifest')
    rows_of = {c: x for c, x in zip(clips['clip'], X)}
    monkeypatch.setattr(own, 'heard_clips', lambda paths, *a, **k: (X[:len(paths)], np.full(len(paths), '', object)))
    monkeypatch.setattr(own.Predictor, 'measure', lambda self, r: own.Measured(
        dict(start=[0.], end=[1.], X=rows_of[r.name][None].astype('float32'), reason=[''], notes=[]), None, None))
    told = []
    rows = own.evaluate_card(taught, asked(clips), say=told.append)
    assert set(rows['scope']) == set(own.SITUATIONS) and not {'c0', 'c1'} & set(rows['clip'])
    assert set(rows['emotion']) == {'sad', 'angry'} and 'left out: 2 copies of training clips' in told
    assert told[1].startswith('classes in common: sad, angry; the card answers among happy, sad, angry')
    one = []
    few = own.evaluate_card(taught, asked(clips.assign(actor='')[:5]), say=one.append)
    assert set(few['scope']) == {'inductive'} and any('there is no interval' in line for line in one)
    for bad, said in ((clips.assign(emotion=''), 'has an emotion'), (clips.assign(emotion='disgust'), 'no class in common')):
        with pytest.raises(SettingError, match=said): own.evaluate_card(taught, asked(bad), say=told.append)


def test_a_face_is_learnt_and_its_weight_too():
    "Scores that tell the emotion are learnt; those that tell nothing stay near chance, and move no clear voice."
    material, rng = spoken(), np.random.default_rng(0)
    voice = .04 + .72 * np.eye(7)[material.y]
    for logs, telling in ((4 * np.eye(7)[material.y] + rng.normal(size=(len(material.y), 7)), True),
                          (rng.normal(size=(len(material.y), 7)), False)):
        card = own.teach_face(own.OwnCard(dict(weights=dict(voice=1.)), {}), material, logs, voice)
        known = card.about['channels']
        assert (known['face']['uar']['new speakers']['value'] > 60) == telling
        assert known['voice+face']['uar']['new speakers']['value'] == 100 and 0 <= card.about['weights']['face'] <= 2


@pytest.mark.realdata
def test_a_card_from_the_command_line(tmp_path, capsys):
    "Train on a table, ask the card, and judge it on another speaker."
    def manifest(name, actors):
        rows = [(clip(f'03-01-{e:02d}-01-{s:02d}-01-{a:02d}'), word, a)
                for e, word in ((3, 'happy'), (4, 'sad'), (5, 'angry')) for s in (1, 2) for a in actors]
        text = 'path,emotion,speaker\n' + ''.join(f'{p},{word},{a}\n' for p, word, a in rows)
        (tmp_path / name).write_text(text)
        return tmp_path / name
    def command(*args):
        with pytest.raises(SystemExit) as e: cli.main([*map(str, args)])
        said = capsys.readouterr()
        return e.value.code, said.out, said.err
    mine, other = manifest('mine.csv', (1, 2, 3)), manifest('other.csv', (5,))
    code, out, err = command('train', '--corpus', mine, '--model', 'pool', '--name', 'calls', '--licence', 'CC0', '--out', tmp_path / 'm')
    assert code == 0 and 'licence of the corpus: CC0' in out and '18 clips of mine (3 speakers)' in out, err
    card = tmp_path / 'm' / 'calls.json'
    code, out, err = command('predict', clip('03-01-05-02-01-01-06'), '--card', tmp_path / 'm', '--channels', 'voice')
    assert code == 0 and '18 clips of mine' in out, err
    code, out, err = command('evaluate', '--card', card, '--corpus', other, '--jobs', 1)
    assert code == 0 and 'classes in common: happy, sad, angry' in out and 'no interval over speakers' in out, err
    assert 'scope set is left out' in out and 'uar' in out
    code, out, err = command('evaluate', card, '--corpus', mine, '--jobs', 1)
    assert code == 2 and err.startswith('error: nothing to judge') and err.count('\n') == 1, err
