"""Tables of own clips: labels, encodings, ids; copies in folds; what is trained on and judged."""
import shutil, unicodedata

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from emotion_study import cli, training
from emotion_study.core import EMOTIONS, EMOTION_NAMES, SettingError, read_emotion
from emotion_study.corpus import load_corpus, read_manifest
from emotion_study.features import copies_notice, feature_table, recordings
from emotion_study.protocols import LeakageError, PROTOCOLS, check_fold, make_folds
from emotion_study.predict import clip_table, predict
from test_pipeline import GRID, toy_table

RATE = 16000


def spoken(path, hz=200., seconds=.6, gain=.3):
    "A voice-like sound of its own pitch."
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(int(seconds * RATE)) / RATE
    x = gain * sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 6)) / 2
    sf.write(path, x, RATE)
    return path


def told(capfd, *args):
    "What the command prints, and its exit code."
    with pytest.raises(SystemExit) as e: cli.main(list(map(str, args)))
    out, err = capfd.readouterr()
    return out + err, e.value.code


# --- labels

def test_every_name_means_one_emotion():
    names = [n for others in EMOTION_NAMES.values() for n in others]
    assert len(names) == len(set(names)) and list(EMOTION_NAMES) == list(EMOTIONS)
    for emotion, others in EMOTION_NAMES.items():
        for n in others:
            for written in (n, n.upper(), f' {n.title()}\t', n.replace(' ', '_')): assert read_emotion(written) == emotion


@pytest.mark.parametrize('corpus_names', [
    'ANG DIS FEA HAP NEU SAD', 'anger disgust fear joy neutral sadness surprise',  # CREMA-D, MELD
    'angry disgust fear happy sad surprise neutral',  # DeepFace, FER2013
    'anger fear happiness neutral sadness surprised', 'Angry Happy Neutral Sad',  # nEMO, URDU
    '01 02 03 04 05 06 07 08'])
def test_the_names_of_other_corpora(corpus_names):
    names = corpus_names.split()
    assert len({read_emotion(n) for n in names}) == len(names)


@pytest.mark.parametrize('label', ['0', '3', '8', '9', '00', '09', '3.0', 'W', 'f', 'boredom', 'exc', 'fru', 'xxx', 'cheerful', 'happy?', '003'])
def test_an_unclear_label_is_refused_with_a_reason(label):
    with pytest.raises(SettingError, match='unknown emotion') as e: read_emotion(label)
    assert len(str(e.value)) > len(f"unknown emotion '{label}': ") + 10 and '\n' not in str(e.value)


def test_verify_and_features_tell_what_is_left_out(tmp_path, capfd):
    for i in range(4): spoken(tmp_path / f'{i}.wav', 150 + 20 * i)
    (tmp_path / 'c.csv').write_text('path,emotion\n0.wav,FEA\n1.wav,boredom\n2.wav,boredom\n3.wav,\n')
    said, code = told(capfd, 'data', 'verify', '--corpus', tmp_path / 'c.csv')
    assert code == 2 and "left out: line 3, 4: unknown emotion 'boredom'" in said
    said, code = told(capfd, 'features', tmp_path / 'c.csv', '--out', tmp_path / 'f.parquet', '--jobs', 1)
    assert code == 0 and "2 of 4 rows left out: line 3, 4: unknown emotion 'boredom'" in said
    assert '1 of 2 clips have no emotion' in said and '2 of 2 clips name no speaker' in said
    table = pd.read_parquet(tmp_path / 'f.parquet')
    assert table['valid.voice'].all() and sorted(table['emotion']) == ['', 'fearful']


def test_a_table_of_paths_alone_is_measured_and_not_trained_on(tmp_path, capfd):
    for i in range(3): spoken(tmp_path / f'{i}.wav', 150 + 20 * i)
    (tmp_path / 'c.csv').write_text('path\n0.wav\n1.wav\n2.wav\n')
    said, code = told(capfd, 'data', 'verify', '--corpus', tmp_path / 'c.csv')
    assert code == 0 and 'usable' in said
    assert feature_table(load_corpus(tmp_path / 'c.csv'), jobs=1)['valid.voice'].all()
    said, code = told(capfd, 'train', '--corpus', tmp_path / 'c.csv', '--out', tmp_path / 'm')
    assert code == 2 and 'error: none of these 3 clips has an emotion' in said and not (tmp_path / 'm').exists()


def test_help_and_readers_share_one_table(capfd):
    for command in (['features'], ['train'], ['evaluate'], ['data', 'verify']):
        said, code = told(capfd, *command, '--help')
        assert code == 0 and all(line in said for line in cli.column_lines() + cli.emotion_lines())


# --- encodings and separators

GERMAN = 'Datei;Label;Speaker\n'.replace('Datei', 'File Name') + 'Töne/grün.wav;Fear;Jürgen\nTöne/b.wav;Joy;Zoë\n'


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'cp1252', 'mac_roman'])
@pytest.mark.parametrize('separator', [';', ',', '\t', '|'])
@pytest.mark.parametrize('newline', ['\r\n', '\r'])
def test_what_spreadsheets_write(tmp_path, encoding, separator, newline):
    for name in ('grün', 'b'): spoken(tmp_path / 'Töne' / f'{name}.wav', seconds=.1)
    text = GERMAN.replace(';', separator).replace('\n', newline)
    (tmp_path / 'c.csv').write_bytes(text.encode(encoding))
    clips, problems = read_manifest(tmp_path / 'c.csv')
    assert not problems and sorted(clips.actor) == ['Jürgen', 'Zoë'] and sorted(clips.emotion) == ['fearful', 'happy']
    remark = load_corpus(tmp_path / 'c.csv').remark
    assert (f'read as {encoding}' in remark) == (not encoding.startswith('utf-8')), remark


@pytest.mark.parametrize('name, encoding', [('głos.wav', 'cp1250'), ('голос.wav', 'cp1251'), ('声.wav', 'cp932'), ('목소리.wav', 'cp949')])
def test_a_code_page_is_told_by_the_files(tmp_path, name, encoding):
    spoken(tmp_path / name, seconds=.1)
    (tmp_path / 'c.csv').write_bytes(f'path,speaker\n{name},{name[0]}\n'.encode(encoding))
    clips, problems = read_manifest(tmp_path / 'c.csv')
    assert not problems and list(clips.actor) == [name[0]]


@pytest.mark.parametrize('text', [
    'sep=;\r\npath;emotion\r\na.wav;sad\r\n', '"sep=,"\npath,emotion\na.wav,sad', '\n\npath,emotion\n\n\na.wav,sad\n\n',
    'path,emotion,,,\na.wav,sad,,,\n,,,,\n', 'Filename\tLABEL\ttext\na.wav\tsad\t"a, b; c"\n', '"path","emotion"\n"a.wav","sad"\n',
    'nr;wav;gender;Emotion Label\n1;a.wav;F;SAD\n', 'path,emotion,speaker,sex\na.wav,sad\n', ' path , emotion \n a.wav , sad \n'])
def test_shapes_of_one_table(tmp_path, text):
    spoken(tmp_path / 'a.wav', seconds=.1)
    for suffix in ('csv', 'tsv', 'txt', 'CSV'):
        (tmp_path / f'c.{suffix}').write_text(text, newline='')
        assert list(load_corpus(tmp_path / f'c.{suffix}').clips.emotion) == ['sad']
        assert not load_corpus(tmp_path / f'c.{suffix}').problems


def test_lines_are_counted_below_the_separator_and_blank_lines(tmp_path):
    (tmp_path / 'c.csv').write_text('\nsep=;\n\npath;emotion\n\nx.wav;sad\n')
    assert [p.line for p in read_manifest(tmp_path / 'c.csv')[1]] == [6]


def test_a_columns_own_name_goes_first(tmp_path):
    spoken(tmp_path / 'a.wav', seconds=.1)
    (tmp_path / 'c.csv').write_text('file,path,label,emotion\nx.wav,a.wav,9,sad\n')
    assert list(load_corpus(tmp_path / 'c.csv').clips.emotion) == ['sad']


@pytest.mark.parametrize('name', ['c.xlsx', 'c.ods', 'c.csv'])
def test_a_workbook_is_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b'PK\x03\x04' + bytes(50))
    with pytest.raises(SettingError, match='save its sheet as'): load_corpus(tmp_path / name)


# --- ids and files

def test_an_id_survives_moving_and_spelling(tmp_path):
    (here := tmp_path / 'Müller').mkdir()
    spoken(here / 'tag 1' / 'é.wav', seconds=.1)
    def ids(folder, written):
        (folder / 'c.csv').write_text(f'path\n"{written}"\n', encoding='utf-8')
        clips, problems = read_manifest(folder / 'c.csv')
        assert not problems, problems
        return clips['clip'][0]
    first = ids(here, 'tag 1/é.wav')
    for written in ('./tag 1/é.wav', 'tag 1//é.wav', 'tag 1\\é.wav', ' tag 1/é.wav ', 'tag 1/../tag 1/e\u0301.wav', str(here / 'tag 1/é.wav'),
                    f'../{here.name}/tag 1/é.wav', unicodedata.normalize('NFD', str(here / 'tag 1/é.wav'))):
        assert ids(here, written) == first, written
    moved = shutil.copytree(here, tmp_path / 'elsewhere' / 'b')
    assert ids(moved, 'tag 1/é.wav') == ids(moved, str(moved / 'tag 1/é.wav')) == first
    (moved / 'tag 1/é.wav').rename(moved / 'tag 1/e\u0301.wav')
    assert ids(moved, 'tag 1/é.wav') == first, 'a disk that spells names in decomposed letters'


def test_files_of_one_name_are_rows_of_their_own(tmp_path, monkeypatch):
    for day, hz in (('monday', 150), ('tuesday', 220)): spoken(tmp_path / day / 'take1.wav', hz)
    (tmp_path / 'c.csv').write_text('path\nmonday/take1.wav\ntuesday/take1.wav\n')
    assert feature_table(load_corpus(tmp_path / 'c.csv'), jobs=1)['clip'].nunique() == 2
    code = '-01-05-01-01-01-01'
    shutil.copy(tmp_path / 'monday/take1.wav', tmp_path / f'03{code}.wav')
    shutil.copy(tmp_path / 'tuesday/take1.wav', tmp_path / f'01{code}.wav')
    monkeypatch.chdir(tmp_path)
    files = ['monday/take1.wav', 'tuesday/take1.wav', f'01{code}.wav', f'03{code}.wav', 'monday/take1.wav']
    table = clip_table(files, engine='none of them')
    assert table['clip'].nunique() == 5 and table['valid.voice'].all() and list(recordings(table)) == [0, 1, 1, 0, 0]
    assert table['emotion'].tolist() == ['', '', 'angry', 'angry', '']
    assert {n for _, n in cli.named_files([tmp_path / 'c.csv'])} == {str((tmp_path / f).resolve()) for f in files[:2]}


def test_a_clip_column_is_told_with_its_line(tmp_path):
    for k in 'abc': spoken(tmp_path / f'{k}.wav', seconds=.1)
    (tmp_path / 'c.csv').write_text('path,emotion,clip\na.wav,sad,x\nb.wav,sad,x \nc.wav,sad,03-01-03-01-01-01-01\n')
    clips, problems = read_manifest(tmp_path / 'c.csv')
    assert clips['clip'].tolist() == ['x'] and [p.line for p in problems] == [3, 4]
    assert 'taken by line 2' in problems[0].reason and 'code for happy' in problems[1].reason


# --- copies

def with_sound(numbers):
    "The grid of RAVDESS with a voice that only says which recording a clip is."
    return GRID.assign(**{'mfcc.00.mean': np.asarray(numbers, float), 'valid.voice': True})


def test_splits_without_copies_stay_as_they_are():
    whole = with_sound(np.arange(len(GRID)))
    for protocol in PROTOCOLS:
        for a, b in zip(make_folds(GRID, protocol, 7, 3), make_folds(whole, protocol, 7, 3)):
            assert all(np.array_equal(getattr(a, s), getattr(b, s)) for s in ('train', 'val', 'test')) and b.copies == 0


@pytest.mark.parametrize('protocol', list(PROTOCOLS))
@pytest.mark.parametrize('times', [2, 3])
def test_copies_are_never_on_both_sides(protocol, times):
    numbers = np.random.default_rng(0).permutation(len(GRID)) // times  # copies of any speaker and emotion
    table = with_sound(numbers)
    for f, plain in zip(make_folds(table, protocol, 7, 1), make_folds(GRID, protocol, 7, 1)):
        assert np.array_equal(f.test, plain.test), 'test clips depend on labels and seed alone'
        sets = [set(numbers[rows]) for rows in (f.train, f.val, f.test)]
        assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
        assert f.copies == len(plain.fit) - len(f.fit) > 0
        with pytest.raises(LeakageError, match='is the recording'): check_fold(plain, table)


def test_what_was_not_measured_is_no_copy():
    table = with_sound(np.zeros(len(GRID))).assign(**{'valid.voice': False})
    assert copies_notice(table) == '' and make_folds(table, 'random')[0].copies == 0


def test_nothing_but_copies_is_one_line():
    with pytest.raises(SettingError, match='nothing to learn from'): make_folds(with_sound(np.zeros(len(GRID))), 'random')


def test_speakers_are_needed_only_where_they_are_kept_apart():
    table = GRID.assign(actor='')
    assert len(make_folds(table, 'random')) == 1
    for protocol in ('actor', 'loso', 'statement'):
        with pytest.raises(SettingError, match='names? none'): make_folds(table, protocol)


# --- training and judging

def doubled(table):
    return pd.concat([table, table.assign(clip=table['clip'] + ' (1)')], ignore_index=True)


def test_training_tells_of_copies_and_of_what_it_leaves_out(tmp_path):
    table, lines = doubled(toy_table()), []
    table.loc[:2, 'emotion'] = ''
    for c in ('voice', 'face', 'words'): table.loc[3:4, f'valid.{c}'] = False
    table.loc[3:4, 'reason.voice'] = 'undecodable'
    training.train_models(table, 'random', 7, out=tmp_path, epochs=1, say=lines.append)
    said, card = '\n'.join(lines), training.read_card(tmp_path / 'fold0.json')
    assert f'3 of {len(table)} clips have no emotion' in said and '2 clips of which nothing was measured (undecodable: 2)' in said
    assert 'The same recording under several names' in said
    plain = lambda clips: {c.removesuffix(' (1)') for c in clips}
    assert not plain(card['test']) & plain(card['fit'])


@pytest.mark.parametrize('spoil, says', [
    (lambda t: t.assign(**{f'valid.{c}': False for c in ('voice', 'face', 'words')}, **{'reason.voice': 'undecodable'}), 'nothing was measured .*undecodable: '),
    (lambda t: t.assign(emotion=''), 'has an emotion'), (lambda t: t.assign(emotion='sad'), 'two emotions')])
def test_what_can_not_be_learnt_from_is_one_line(tmp_path, spoil, says):
    with pytest.raises(SettingError, match=says): training.train_models(spoil(toy_table()), out=tmp_path / 'm', epochs=1)
    assert not (tmp_path / 'm').exists()


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    return training.train_models(toy_table(), 'actor', 7, out=tmp_path_factory.mktemp('models'), epochs=2)


def judge(folder, table):
    lines = []
    return training.evaluate_models(folder, table, say=lines.append), '\n'.join(lines)


def test_what_is_left_of_the_test_clips_is_judged_and_counted(models):
    table = toy_table()
    n, cards = len(table), training.saved_cards(models)
    said, lines = judge(models, table)
    assert lines == f'{n} of {n} test clips judged' and len(said) == n
    part = table.drop(index=range(4)).reset_index(drop=True)
    part.loc[0, 'emotion'] = ''
    said, lines = judge(models, part)
    assert len(said) == n - 5 and f'{n - 5} of {n} test clips' in lines and '4 clips: not in this corpus' in lines and '1 clips: no emotion' in lines
    one = table[table['clip'].isin(cards[0][1]['test'])].reset_index(drop=True)
    assert set(judge(models, one)[0]['fold']) == {cards[0][1]['fold']}, 'the other folds have nothing to judge'


def test_another_corpus_is_judged_as_a_whole(models):
    table = toy_table()
    rng = np.random.default_rng(5)
    new = table.assign(clip=[f'new{i}' for i in range(len(table))])
    columns = [c for c in new if c.startswith('mfcc')]
    new[columns] = new[columns] + rng.normal(size=(len(new), len(columns)))
    new = new.drop(columns=[c for c in new if c.startswith('face.')][:1])
    said, lines = judge(models, new)
    networks = len(training.saved_cards(models))
    assert said.groupby('seed').size().tolist() == [len(new)] * networks and set(said.protocol) == {'transfer'}
    assert 'classes in common: ' in lines and 'calm counts as neutral' in lines and 'channel face is absent' in lines
    renamed = table.assign(clip=new['clip'])
    with pytest.raises(SettingError, match='nothing to judge.*copies of training clips'): judge(models, renamed)
    with pytest.raises(SettingError, match='nothing to judge.*no emotion'): judge(models, new.assign(emotion=''))


def test_one_channel_is_trained_judged_and_asked(tmp_path):
    table = toy_table()
    for c in ('face', 'words'): table[f'valid.{c}'] = False
    folder = training.train_models(table, 'random', 7, out=tmp_path, epochs=1)
    assert list(training.read_card(folder / 'fold0.json')['channels']) == ['voice']
    said = predict(table, folder / 'fold0.json')
    assert (said['gate_voice'] == 1).all() and len(judge(folder, table)[0])


def test_a_folder_holds_one_training(tmp_path):
    training.train_models(toy_table(), 'actor', 7, out=tmp_path, epochs=1)
    training.train_models(toy_table(), 'random', 7, out=tmp_path, epochs=1)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ['fold0.json', 'fold0.keras']


def test_a_row_of_a_large_table_takes_little_memory(tmp_path):
    "Six hundred bytes when it was written; tables of rows as dictionaries took thirteen hundred."
    import tracemalloc
    names = [f'{i:04d}.wav' for i in range(2000)]
    for name in names: (tmp_path / name).write_bytes(b'x')
    rows = ''.join(f'{name},happy,speaker {i % 100}\n' for i, name in enumerate(names))
    (tmp_path / 'clips.csv').write_text('path,emotion,speaker\n' + rows)
    read_manifest(tmp_path / 'clips.csv')  # loads what it needs
    tracemalloc.start()
    clips, _ = read_manifest(tmp_path / 'clips.csv')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(clips) == 2000 and peak / len(clips) < 900
