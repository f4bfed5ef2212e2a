"Other corpora: what file names tell, downloads from a server of our own, trust on first use, and manifests that can be loaded."
import hashlib, io, json, threading, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np, pandas as pd, pytest, soundfile as sf
from typer.testing import CliRunner

from emotion_study import cli, corpus as C
from emotion_study.core import EMOTIONS, SettingError
from emotion_study.text import read_meld

QUICK = dict(progress=False, wait=.01, tries=2)
HERE = C.ROOT.parent / 'shared' / 'data' / 'corpora'


def wav(seed, rate=16000):
    out = io.BytesIO()
    sf.write(out, np.random.default_rng(seed).normal(scale=.1, size=rate // 10), rate, format='WAV', subtype='PCM_16')
    return out.getvalue()


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, data in files.items(): z.writestr(name, data)
    return out.getvalue()


NEMO = ['EB0_anger_13', 'EB0_surprised_2', 'TP0_happiness_3', 'TP0_sadness_1', 'WR0_fear_10', 'WR0_neutral_66']
TSV = '\n'.join(['file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage',
                 'EB0_anger_13.wav\tanger\tInteresuje mnie historia Polski.\tinteresuje mnie historia polski\t        EB0\tfemale\t27',
                 'TP0_happiness_3.wav\thappiness\tChodźmy w tango.\tchodźmy w tango\t        TP0\tmale\t26',
                 'WR0_fear_10.wav\tfear\tKupiłem nową szafę.\tkupiłem nową szafę\t        WR0\tmale\t23', ''])
EMODB = ['03a01Fa', '03a01Wa', '03a02La', '08a01Ta', '08b02Na', '10b10Ad', '16a05E']
CREMA = ['1001_DFA_ANG_XX', '1001_IEO_HAP_HI', '1002_IEO_SAD_LO', '1002_TSI_DIS_XX', '1040_ITH_SAD_X', '1002_WSI_NEU_XX']
URDU = ['Angry/SM1_F10_A010', 'Happy/SF1_F1_H01', 'Neutral/SM5_F3_N07', 'Sad/SM6_F2_S0100', 'Angry/SM4_F48_A0100']
MELD = 'Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n1,What?,Monica,surprise,negative,0,0,4,7,a,b\n'


def sounds(names, top, folder=''):
    return {f'{top}/{folder}{n}.wav': wav(k) for k, n in enumerate(names)}


def published():
    "Small archives with the folders and file names of the real ones."
    nemo = sounds(NEMO, 'nEMO-06f1f83', 'samples/') | {'nEMO-06f1f83/data.tsv': TSV.encode(), 'nEMO-06f1f83/README.md': b'# nEMO'}
    emodb = sounds(EMODB, 'wav') | {'lablaut/03a01Fa.lablaut': b'', 'erkennung.txt': b'Satz'}
    urdu = sounds(URDU, 'URDU-Dataset-cab0028') | {'URDU-Dataset-cab0028/README.md': b'Urdu'}
    return {'nemo.zip': zipped(nemo), 'emodb.zip': zipped(emodb), 'urdu.zip': zipped(urdu),
            'crema-d.zip': zipped(sounds(CREMA, 'crema-d-mirror-d15eeed-AudioWAV', 'AudioWAV/')),
            'VideoDemographics.csv': b'ActorID,Age,Sex,Race,Ethnicity\n1001,51,Male,Caucasian,Not Hispanic\n1002,21,Female,Caucasian,Not Hispanic\n',
            **{f'{part}_sent_emo.csv': MELD.encode() for part in ('train', 'dev', 'test')}}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass

    def do_GET(self):
        s, name = self.server, self.path.strip('/')
        s.asked.append(name)
        if name not in s.files: return self.send_error(404)
        data = s.files[name]
        self.send_response(200)
        if s.lengths: self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data[:s.cut] if s.cut else data)
        self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    for k in ('NO_PROXY', 'no_proxy'): monkeypatch.setenv(k, '127.0.0.1')
    s = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    s.daemon_threads, s.files, s.asked, s.lengths, s.cut = True, published(), [], True, 0
    s.url = f'http://127.0.0.1:{s.server_port}'
    thread = threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.01), daemon=True)
    thread.start()
    yield s
    s.shutdown(); s.server_close(); thread.join(5)


def get(server, name, folder, say=lambda text: None):
    return C.download_corpus(name, folder, server.url, say=say, **QUICK)


@pytest.mark.parametrize('name, clips, speakers, lengths', [
    ('nemo', 6, 3, True), ('nemo', 6, 3, False), ('emodb', 6, 4, True), ('crema-d', 6, 3, False), ('urdu', 5, 5, False)])
def test_a_corpus_becomes_a_manifest_that_loads(server, tmp_path, name, clips, speakers, lengths):
    server.lengths, said = lengths, []
    path = get(server, name, tmp_path / name, said.append)
    corpus = C.load_corpus(str(path))
    assert not corpus.problems and len(corpus) == clips and corpus.clips['actor'].nunique() == speakers
    assert set(corpus.clips['emotion']) <= set(EMOTIONS) and C.check_files(corpus, jobs=1)['usable'].all()
    assert 'Licence' in said[0] and f'{clips} clips of {speakers} speakers' in said[-1]
    before = len(server.asked)
    get(server, name, tmp_path / name)
    assert len(server.asked) == before, 'what is there is not fetched again'


def test_what_names_and_tables_tell(server, tmp_path):
    tables = {n: pd.read_csv(get(server, n, tmp_path / n), dtype=str, keep_default_na=False).set_index('path') for n in ('nemo', 'emodb', 'crema-d', 'urdu')}
    row = lambda n, stem: next(r for p, r in tables[n].iterrows() if Path(p).stem == stem)
    polish = row('nemo', 'EB0_anger_13')
    assert polish[['emotion', 'speaker', 'sex', 'statement', 'language']].tolist() == ['angry', 'EB0', 'female', 'Interesuje mnie historia Polski.', 'pl']
    assert row('nemo', 'TP0_sadness_1')[['sex', 'statement']].tolist() == ['male', '1'], 'the speaker is told by another clip'
    german = row('emodb', '16a05E')
    assert german[['emotion', 'speaker', 'sex', 'statement']].tolist() == ['disgust', '16', 'female', 'a05']
    assert '03a02La' not in {Path(p).stem for p in tables['emodb'].index}, 'boredom is none of the eight emotions'
    american = row('crema-d', '1001_IEO_HAP_HI')
    assert american[['emotion', 'sex', 'intensity', 'statement']].tolist() == ['happy', 'male', 'high', "It's eleven o'clock"]
    assert row('crema-d', '1040_ITH_SAD_X')[['sex', 'intensity']].tolist() == ['', '']
    assert row('urdu', 'SF1_F1_H01')[['emotion', 'speaker', 'sex']].tolist() == ['happy', 'SF1', 'female']


@pytest.mark.realdata
@pytest.mark.parametrize('name', ['nemo', 'urdu', 'crema-d'])
def test_real_names_are_read_as_they_are_labelled(name):
    path = HERE / name.replace('-', '_') / 'manifest.csv'
    if not path.is_file(): pytest.skip(f'{name} is not here')
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    for r in table.itertuples():
        said = C.read_name(C.SOURCES[name], r.path)
        assert (said['emotion'], said['speaker']) == (r.emotion, r.speaker)
        if name == 'crema-d': assert said['statement'] == r.statement
        if name == 'urdu': assert said['sex'][0] == r.sex


def test_a_file_that_has_changed_is_refused(server, tmp_path):
    root = tmp_path / 'emodb'
    get(server, 'emodb', root)
    note = json.loads((root / C.SIGHT).read_text())['emodb.zip']
    assert note['sha256'] == hashlib.sha256(server.files['emodb.zip']).hexdigest() and note['bytes'] == len(server.files['emodb.zip'])
    next((root / 'emodb').rglob('03a01Fa.wav')).unlink()
    server.files['emodb.zip'] = zipped(sounds(EMODB, 'wav') | {'wav/03b01Wa.wav': wav(99)})
    with pytest.raises(SettingError, match='not the known file') as error: get(server, 'emodb', root)
    assert '\n' not in str(error.value) and C.SIGHT in str(error.value) and not (root / 'emodb.zip').exists()
    (root / C.SIGHT).unlink()
    assert len(C.load_corpus(str(get(server, 'emodb', root)))) == 7


def test_a_known_checksum_goes_before_what_comes(server, tmp_path):
    with pytest.raises(SettingError, match='not the known file') as error: get(server, 'meld', tmp_path)
    assert 'train_sent_emo.csv' in str(error.value) and not list(tmp_path.glob('*.csv'))


def test_texts_of_meld_are_left_where_they_are_read(server, tmp_path, monkeypatch):
    digest = hashlib.sha256(MELD.encode()).hexdigest()
    monkeypatch.setitem(C.SOURCES, 'meld', C.SOURCES['meld']._replace(checksums=dict.fromkeys(C.SOURCES['meld'].files, digest)))
    folder = get(server, 'meld', tmp_path / 'meld')
    assert [len(part) for part in read_meld(folder).values()] == [1, 1, 1]


def test_a_cut_zip_of_unknown_length_is_told_and_fetched_anew(server, tmp_path):
    server.lengths, server.cut = False, 500
    with pytest.raises(SettingError, match='not a sound zip'): get(server, 'urdu', tmp_path)
    assert not (tmp_path / C.SIGHT).exists() and not (tmp_path / 'urdu.zip').exists()
    server.cut = 0
    assert len(C.load_corpus(str(get(server, 'urdu', tmp_path)))) == 5


def test_notes_of_git_lfs_are_no_sound(server, tmp_path):
    note = b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n'
    server.files['crema-d.zip'] = zipped({f'm/AudioWAV/{n}.wav': note for n in CREMA})
    with pytest.raises(SettingError, match='git LFS') as error: get(server, 'crema-d', tmp_path)
    assert '\n' not in str(error.value)


def test_a_zip_that_writes_outside_is_refused(server, tmp_path):
    server.files['urdu.zip'] = zipped({'../SM1_F1_A01.wav': wav(0)})
    with pytest.raises(SettingError, match='unsafe member'): get(server, 'urdu', tmp_path / 'urdu')
    assert not (tmp_path / 'SM1_F1_A01.wav').exists()


def test_errors_are_one_clear_line(server, tmp_path):
    (tmp_path / 'file').write_text('x')
    server.files['emodb.zip'] = zipped({'wav/holiday.wav': wav(0)})
    for name, folder, says in (('savee', 'a', "no corpus 'savee'; known are nemo"), ('emodb', 'b', 'holds no clip of emodb'),
                               ('urdu', 'file', 'is a file where a folder is needed')):
        with pytest.raises(SettingError, match=says) as error: get(server, name, tmp_path / folder)
        assert '\n' not in str(error.value)
    del server.files['nemo.zip']
    with pytest.raises(SettingError, match='HTTP 404'): get(server, 'nemo', tmp_path / 'c')
    with pytest.raises(SettingError, match='does not answer'):
        C.download_corpus('nemo', tmp_path / 'd', 'http://127.0.0.1:9', say=lambda text: None, **QUICK)


def test_every_corpus_has_its_command():
    said = CliRunner().invoke(cli.app, ['data', '--help']).output
    assert all(f' {name} ' in said for name in C.SOURCES)
