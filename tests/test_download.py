"Downloading RAVDESS from a web server of our own that cuts connections, knows no ranges, lies, or is not there."
import hashlib, io, json, re, socket, stat, threading, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np, pytest, soundfile as sf

from emotion_study import corpus as C, fetch
from emotion_study.core import SettingError, expected_codes

AUDIO, TRACKING = (C.ARCHIVES[k].name for k in ('audio', 'tracking'))
QUICK = dict(progress=False, wait=0.01, say=lambda text: None)


def wav(seed):
    out = io.BytesIO()
    sf.write(out, np.random.default_rng(seed).normal(scale=0.1, size=4800), 48000, format='WAV', subtype='PCM_16')
    return out.getvalue()


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, data in files.items(): z.writestr(name, data)
    return out.getvalue()


CLIPS = [c for c in expected_codes() if c.actor <= 2][::4]
AUDIO_ZIP = zipped({f'Actor_{c.actor:02d}/{c}.wav': wav(k) for k, c in enumerate(CLIPS)})
TRACKING_ZIP = zipped({f'01{str(c)[2:]}.csv': 'frame, AU01_r\n1, 0.5\n' for c in CLIPS})


def archive(name, data, **kw):
    return fetch.Archive(name, 0, len(data), f'md5:{hashlib.md5(data).hexdigest()}', 10 * len(data))._replace(**kw)


ARCHIVES = {'audio': archive(AUDIO, AUDIO_ZIP), 'tracking': archive(TRACKING, TRACKING_ZIP)}


class Server(ThreadingHTTPServer):
    "Files to serve, how to serve them, and a diary of what was asked and sent."
    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files = {AUDIO: AUDIO_ZIP, TRACKING: TRACKING_ZIP}
        self.ranges, self.cuts, self.errors, self.diary, self.states_length = True, [], [], [], True
        self.url = f'http://127.0.0.1:{self.server_port}'


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass

    def do_GET(self):
        s, name = self.server, self.path.strip('/')
        if s.errors or name not in s.files: return self.send_error(s.errors.pop(0) if s.errors else 404)
        data, start = s.files[name], 0
        asked = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        if asked and s.ranges: start = int(asked[1])
        if start >= len(data): return self.send_error(416)
        end = s.cuts.pop(0) if s.cuts else len(data)
        s.diary.append((name, start, max(start, min(end, len(data)))))
        self.send_response(206 if asked and s.ranges else 200)
        if asked and s.ranges: self.send_header('Content-Range', f'bytes {start}-{len(data) - 1}/{len(data)}')
        if s.states_length: self.send_header('Content-Length', str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:end])
        self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    for k in ('NO_PROXY', 'no_proxy'): monkeypatch.setenv(k, '127.0.0.1')
    s = Server()
    thread = threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True)
    thread.start()
    yield s
    s.shutdown(); s.server_close(); thread.join(5)


def get(server, folder, what='audio', **kw):
    return C.download_ravdess(folder, what, **(dict(base_url=server.url, archives=ARCHIVES) | QUICK | kw))


def test_whole_download_becomes_a_corpus(server, tmp_path):
    said = []
    root = get(server, tmp_path / 'ravdess', ('audio', 'tracking'), say=said.append)
    corpus = C.read_ravdess(root)
    assert list(corpus.clips['clip']) == sorted(map(str, CLIPS)) and not C.audit_corpus(corpus)[1]['problems']
    assert corpus.faces.openface_frames == root / 'FacialTracking_Actors_01-24'
    assert sorted(p.name for p in root.iterdir()) == sorted(a.rsplit('.', 1)[0] for a in (AUDIO, TRACKING))
    assert 'BY-NC-SA 4.0' in said[0] and 'disk needed' in said[0]


def test_second_run_fetches_nothing(server, tmp_path):
    root = get(server, tmp_path); before = len(server.diary)
    assert get(server, tmp_path) == root and len(server.diary) == before == 1
    next(root.rglob('*.wav')).unlink()
    get(server, tmp_path)
    assert len(server.diary) == 2 and len(C.read_ravdess(root)) == len(CLIPS), 'a clip that has gone is restored'


def test_cut_connection_is_resumed_where_it_stopped(server, tmp_path):
    third, half, size = len(AUDIO_ZIP) // 3, len(AUDIO_ZIP) // 2, len(AUDIO_ZIP)
    server.cuts = [third, half]
    get(server, tmp_path, keep_zip=True)
    sent = [(start, end) for _, start, end in server.diary]
    assert sent == [(0, third), (third, half), (half, size)], 'each byte is asked for once'
    assert (tmp_path / AUDIO).read_bytes() == AUDIO_ZIP


def test_a_later_run_goes_on(server, tmp_path):
    server.cuts = [1000, 2000]
    with pytest.raises(SettingError, match='run the same command again to go on'): get(server, tmp_path, tries=2)
    assert (tmp_path / f'{AUDIO}.part').read_bytes() == AUDIO_ZIP[:2000]
    get(server, tmp_path)
    assert server.diary[-1] == (AUDIO, 2000, len(AUDIO_ZIP)) and not (tmp_path / f'{AUDIO}.part').exists()


def test_tries_are_bounded(server, tmp_path):
    server.cuts = [10] * 50
    with pytest.raises(SettingError, match='failed 3 times'): get(server, tmp_path, tries=3)
    assert len(server.diary) == 3


def test_server_without_ranges_starts_again(server, tmp_path):
    server.ranges, server.cuts = False, [5000]
    get(server, tmp_path, keep_zip=True)
    assert [d[1:] for d in server.diary] == [(0, 5000), (0, len(AUDIO_ZIP))]
    assert (tmp_path / AUDIO).read_bytes() == AUDIO_ZIP


@pytest.mark.parametrize('left', [len(AUDIO_ZIP), len(AUDIO_ZIP) + 77])
def test_part_as_long_as_the_file_or_longer(server, tmp_path, left):
    (tmp_path / f'{AUDIO}.part').write_bytes((AUDIO_ZIP + b'?' * 77)[:left])
    get(server, tmp_path, keep_zip=True)
    assert (tmp_path / AUDIO).read_bytes() == AUDIO_ZIP and len(server.diary) == (left > len(AUDIO_ZIP))


def test_part_of_another_file_is_found_out(server, tmp_path):
    (tmp_path / f'{AUDIO}.part').write_bytes(b'?' * 3000)
    with pytest.raises(SettingError, match='damaged'): get(server, tmp_path)
    assert not list(tmp_path.iterdir())
    assert len(C.read_ravdess(get(server, tmp_path))) == len(CLIPS)


def test_wrong_checksum_leaves_nothing(server, tmp_path):
    wrong = {'audio': ARCHIVES['audio']._replace(checksum='md5:' + 'f' * 32)}
    with pytest.raises(SettingError) as e: get(server, tmp_path, archives=wrong)
    assert AUDIO in str(e.value) and 'run the same command again' in str(e.value) and '\n' not in str(e.value)
    assert not list(tmp_path.iterdir())


def test_one_flipped_bit(server, tmp_path):
    data = bytearray(AUDIO_ZIP); data[len(data) // 2] ^= 1; server.files[AUDIO] = bytes(data)
    with pytest.raises(SettingError, match='damaged'): get(server, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_login_page_in_its_place(server, tmp_path):
    server.files[AUDIO] = b'<html>please log in</html>'
    with pytest.raises(SettingError, match='not the known file: 26 bytes'): get(server, tmp_path)
    assert len(server.diary) == 1, 'nothing to try again'


def test_zip_in_place_is_not_fetched_again(server, tmp_path):
    (tmp_path / AUDIO).write_bytes(AUDIO_ZIP)
    get(server, tmp_path)
    assert server.diary == [] and len(C.read_ravdess(tmp_path)) == len(CLIPS)


def test_no_room(server, tmp_path):
    huge = {'audio': ARCHIVES['audio']._replace(unpacked=10 ** 18)}
    with pytest.raises(SettingError, match=r'needs 1,000,000,000.0 GB and its disk has .* free'):
        get(server, tmp_path / 'new', archives=huge)
    assert server.diary == [] and not (tmp_path / 'new').exists()


@pytest.mark.parametrize('keep, have, need', [(False, 0, 35), (True, 0, 37), (False, 4, 31), (False, 99, 0)])
def test_need(keep, have, need):
    two = [fetch.Archive('a', 0, 5, '', 10), fetch.Archive('b', 0, 2, '', 20)]
    assert fetch.disk_need(two, have, keep) == need


def test_not_found(server, tmp_path):
    server.files.clear()
    with pytest.raises(SettingError, match='HTTP 404'): get(server, tmp_path)


def test_busy_server_is_asked_again(server, tmp_path):
    server.errors = [503, 429]
    get(server, tmp_path)
    server.errors = [500] * 9
    with pytest.raises(SettingError, match='failed 5 times'): get(server, tmp_path, 'tracking')


def test_refused_connection(tmp_path):
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    with pytest.raises(SettingError, match='failed 2 times, last with ConnectionError') as e:
        C.download_ravdess(tmp_path, 'audio', f'http://127.0.0.1:{port}', archives=ARCHIVES, tries=2, **QUICK)
    assert '\n' not in str(e.value)


def test_words_and_places(tmp_path):
    with pytest.raises(SettingError, match="what='sound' is not one of audio, tracking, video"):
        C.download_ravdess(tmp_path, 'sound')
    with pytest.raises(SettingError, match='no actor 25'): C.download_ravdess(tmp_path, 'video', actors=[1, 25])
    (tmp_path / 'file').write_text('x')
    with pytest.raises(SettingError, match='is a file'): C.download_ravdess(tmp_path / 'file')


def test_published_table():
    assert C.ARCHIVES['audio'][1:4] == (1188976, 208_468_073, 'md5:bc696df654c87fed845eb13823edef8a')
    assert C.ARCHIVES['tracking'][1:4] == (3255102, 417_163_019, 'md5:5753bbc64a9a790f8a8d3e03cba526ee')
    url = C.ZENODO.format(record=C.ARCHIVES['audio'].record)
    assert f'{url}/{AUDIO}' == 'https://zenodo.org/records/1188976/files/Audio_Speech_Actors_01-24.zip'


# ---------------------------------------------------------------- films

FILM_ZIP = zipped({'Actor_04/01-01-06-02-01-02-04.mp4': b'film', 'Actor_04/02-01-06-02-01-02-04.mp4': b'film'})


def record(checksum=f'md5:{hashlib.md5(FILM_ZIP).hexdigest()}'):
    entry = dict(key='Video_Speech_Actor_04.zip', size=len(FILM_ZIP), checksum=checksum, links=dict(self='x'))
    return json.dumps(dict(id=1188976, files=[entry])).encode()


def test_films_of_one_actor(server, tmp_path):
    server.files |= {'record': record(), 'Video_Speech_Actor_04.zip': FILM_ZIP}
    root = get(server, tmp_path, 'video', actors=[4], api_url=f'{server.url}/record')
    assert (root / 'Video_Speech_Actor_04/Actor_04/01-01-06-02-01-02-04.mp4').read_bytes() == b'film'
    assert C.find_face_sources(root).video['03-01-06-02-01-02-04'].name == '01-01-06-02-01-02-04.mp4'


def test_films_with_another_checksum(server, tmp_path):
    server.files |= {'record': record('0' * 32), 'Video_Speech_Actor_04.zip': FILM_ZIP}
    with pytest.raises(SettingError, match='Video_Speech_Actor_04.zip: the download is damaged'):
        get(server, tmp_path, 'video', actors=[4], api_url=f'{server.url}/record')


@pytest.mark.parametrize('answer', [b'<html>', b'{}', b'[]', b'{"files": [{"key": 1}]}', record()])
def test_strange_answers_of_the_record(server, answer):
    server.files['record'] = answer
    with pytest.raises(SettingError, match='does not list the films'): C.film_archives([1], f'{server.url}/record')


def test_silent_record(server):
    with pytest.raises(SettingError, match='does not answer'): C.film_archives([1], f'{server.url}/nothing')


# ---------------------------------------------------------------- unpacking

@pytest.mark.parametrize('name', ['../out.txt', 'a/../../out.txt', '/away/out.txt', 'C:/out.txt', '..\\out.txt',
                                  '\\out.txt', 'a/../inside.txt'])
def test_no_member_leaves_the_folder(tmp_path, name):
    path = tmp_path / 'a.zip'; path.write_bytes(zipped({'fine.txt': 'x', name: 'x'}))
    with pytest.raises(SettingError, match='unsafe member'): fetch.unpack(path, tmp_path / 'in')
    assert [p.name for p in tmp_path.rglob('*')] == ['a.zip']


def test_links_are_refused(tmp_path):
    link = zipfile.ZipInfo('link'); link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as z: z.writestr(link, '/etc/passwd')
    with pytest.raises(SettingError, match='unsafe member'): fetch.unpack(tmp_path / 'a.zip', tmp_path / 'in')


def test_a_link_on_disk_is_not_followed_out(tmp_path):
    (tmp_path / 'in').mkdir(); (tmp_path / 'out').mkdir()
    try: (tmp_path / 'in/Actor_01').symlink_to(tmp_path / 'out', target_is_directory=True)
    except OSError: pytest.skip('this system has no symbolic links')
    path = tmp_path / 'a.zip'; path.write_bytes(zipped({'Actor_01/x.wav': 'x'}))
    with pytest.raises(SettingError, match='unsafe member'): fetch.unpack(path, tmp_path / 'in')
    assert not list((tmp_path / 'out').iterdir())


def test_unpacking_goes_on(tmp_path):
    path = tmp_path / 'a.zip'; path.write_bytes(AUDIO_ZIP)
    files = fetch.unpack(path, tmp_path / 'in')
    assert len(files) == len(CLIPS)
    first, second, third = (tmp_path / 'in' / n for n in sorted(files)[:3])
    first.unlink(); second.write_bytes(second.read_bytes()[:-1] + b'?')   # same size, another byte
    kept = third.stat().st_mtime_ns
    fetch.unpack(path, tmp_path / 'in')
    with zipfile.ZipFile(path) as z: assert all((tmp_path / 'in' / n).read_bytes() == z.read(n) for n in files)
    assert third.stat().st_mtime_ns == kept, 'a whole file is left alone'
    assert not list((tmp_path / 'in').rglob('.*.part'))


def test_not_a_zip(tmp_path):
    (tmp_path / 'a.zip').write_bytes(b'PK\3\4 but no more')
    with pytest.raises(SettingError, match='a.zip is not a sound zip'): fetch.unpack(tmp_path / 'a.zip', tmp_path / 'in')


def test_a_server_that_states_no_length_cannot_fill_the_disk(server, tmp_path):
    from tqdm import tqdm
    server.states_length, server.files['endless'] = False, bytes(20_000_000)
    url, part, path = f'{server.url}/endless', tmp_path / 'known.part', tmp_path / 'unknown.zip'
    with pytest.raises(SettingError, match='longer than 179 bytes'): fetch.pull(url, part, 179, tqdm(disable=True))
    with pytest.raises(SettingError, match='longer than 1,000 bytes'): fetch.fetch_unsized(url, path, 1000)
    assert part.stat().st_size <= 179 and not path.exists() and not list(tmp_path.glob('*unknown*'))
    assert fetch.fetch_unsized(url, path, 20_000_000).stat().st_size == 20_000_000


def test_an_encrypted_address_may_not_send_on_to_a_plain_one():
    from types import SimpleNamespace
    def sent_on(target): return SimpleNamespace(headers=dict(Location=target), is_redirect=True, url='https://a.example/x')
    with pytest.raises(SettingError, match='not encrypted'): fetch.stay_encrypted(sent_on('http://b.example/x'))
    assert fetch.stay_encrypted(sent_on('https://b.example/x')) is None
