"""The command line for real: what a user types, what comes out, and a study on the twin from end to end."""
import json, os, re, subprocess, sys, time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
import nbformat, nbformat.v4 as v4
import pytest
from emotion_study import cli
from emotion_study.core import ROOT, SettingError
from emotion_study.evidence import audit_report
from emotion_study.site import SYNTHETIC, build_report
from warm import forked_runs


CODE = 'import sys; from emotion_study.cli import main; main()'


def run(*args, timeout=120, **kw):
    "The command in a process of its own, as users start it."
    return subprocess.run([sys.executable, '-c', CODE, *map(str, args)], capture_output=True, text=True, cwd=ROOT,
                          timeout=timeout, stdin=subprocess.DEVNULL, **kw)


@pytest.fixture(scope='module')
def forked(tmp_path_factory):
    "The command, begun from a process that has its imports, for the many lines that end at once."
    if not hasattr(os, 'fork'): yield run; return  # each by itself, as users start it
    with forked_runs(tmp_path_factory.mktemp('forked')) as runs: yield runs.ask


COMMANDS = ['study', 'features', 'train', 'evaluate', 'report', 'site', 'audit', 'compare', 'data', 'transcribe', 'data ravdess', 'data samples',
             'data verify', 'data vosk-en', 'data whisper-small', 'data deepface']


# --- quick answers

def test_help_is_quick():
    best = 9.
    for _ in range(3):
        began = time.monotonic(); done = run('--help'); best = min(best, time.monotonic() - began)
    assert done.returncode == 0 and all(c in done.stdout for c in COMMANDS[:8])
    assert best < 3, f'{best:.1f} s: on a quiet machine it is below one'


def test_help_loads_nothing_heavy():
    code = ("import sys, contextlib, io\nfrom emotion_study.cli import main\n"
            "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(['--help'])\n"
            "heavy = {'tensorflow', 'keras', 'librosa', 'pandas', 'numpy', 'sklearn', 'papermill'}\n"
            "print(sorted(heavy & set(sys.modules)))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == '[]', done.stdout + done.stderr


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_has_help(command):
    done = run(*command.split(), '--help')
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 5


@pytest.mark.parametrize('line', [
    'study --corpus mars', 'study --profile fast', 'study --seeds -1', 'study --seed -1', 'study --mixed-code', 'study --seeds many', 'study --nonsense',
    'study --corpus twin --only 99_nothing --out {tmp}/new', 'study --corpus twin --out {tmp}/taken',
    'study --corpus twin --out {tmp}/file', 'nonsense',
    'features --corpus mars', 'features --corpus {tmp}/none.csv', 'features --out table.csv',
    'train --out {tmp}/m --classes 9', 'train --corpus twin --out {tmp}/m --protocol dice',
    'train --corpus twin --out {tmp}/m --model crystal_ball', 'evaluate {tmp}/none',
    'report {tmp}/none', 'audit {tmp}/none', 'audit {tmp}/taken', 'report {tmp}/taken', 'transcribe {tmp}/none.wav',
    'transcribe {tmp}/file --engine ears', 'features --corpus twin --words whisper', 'features --corpus twin --face deepface',
    'features --face mirror', 'features --corpus samples --face deepface --detector magic', 'data vosk-en --to {tmp}/file',
    'data whisper-small --to {tmp}/file', 'features --corpus twin --small',
    'data ravdess --actors 3-99', 'data ravdess --to {tmp}/d --what music',
    'features --corpus twin --jobs 0', 'features --corpus twin --jobs -2', 'features --corpus twin --rate nan', 'features --rate -1',
    'features --corpus twin --out {tmp}/taken.parquet', 'features --corpus twin --out {tmp}/file/f.parquet', 'features --corpus {tmp}/table.xlsx',
    'train --corpus twin --out {tmp}/m --epochs 0', 'train --corpus twin --out {tmp}/m --epochs -3', 'train --corpus twin --out {tmp}/m --seed -1',
    'train --corpus twin --out {tmp}/file', 'train --corpus twin --out {tmp}/file/m', 'train --corpus twin --out {tmp}/m --scope room',
    'train --corpus {tmp}/bare.csv --out {tmp}/m', 'evaluate {tmp}/taken', 'evaluate {tmp}/file', 'evaluate {tmp}/broken',
    'data verify --corpus {tmp}/none.csv', 'data verify --corpus twin', 'data verify --corpus {tmp}/bare.csv --out {tmp}/taken',
    'transcribe {tmp}/taken', 'evaluate', 'evaluate --protocol transfer --train {tmp}/bare.csv',
    'evaluate --protocol loco --train twin --corpus {tmp}/bare.csv', 'evaluate --protocol dice --train twin --corpus samples',
    'evaluate --protocol transfer --train {tmp}/bare.csv --corpus {tmp}/bare.csv', 'evaluate --card {tmp}/broken/fold0.json --corpus twin',
    'evaluate --protocol transfer --train {tmp}/odd.csv --corpus twin',
    'train --corpus twin --out {tmp}/m --model pool', 'train --corpus {tmp}/bare.csv --out {tmp}/m --model pool --classes 8',
    'train --corpus {tmp}/bare.csv --out {tmp}/m --model pool --protocol actor', 'train --corpus twin --out {tmp}/m --extended',
    'train --corpus {tmp}/odd.csv --out {tmp}/m --model pool', 'train --corpus {tmp}/plain.csv --out {tmp}/m --model pool',
    'predict --card {tmp}/taken {tmp}/file', 'predict --card {tmp}/broken/fold0.json {tmp}/file'])
def test_wrong_values_are_one_line(line, tmp_path, forked):
    (tmp_path / 'taken').mkdir()
    (tmp_path / 'taken' / 'thesis.txt').write_text('mine')
    (tmp_path / 'file').write_text('')
    (tmp_path / 'taken.parquet').mkdir()
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / 'fold0.json').write_text('{}')
    (tmp_path / 'table.xlsx').write_bytes(b'PK')
    (tmp_path / 'bare.csv').write_text('path,emotion\nfile,sad\n')
    (tmp_path / 'odd.csv').write_text('path,emotion\ntaken/thesis.txt,bored\n')
    (tmp_path / 'plain.csv').write_text('path,emotion,speaker\ntaken/thesis.txt,,a\n')
    done = forked(*line.format(tmp=tmp_path).split())
    errors = [l for l in done.stderr.splitlines() if l.startswith('error: ')]
    assert done.returncode == 2 and len(errors) == 1 and 'Traceback' not in done.stderr, done.stderr
    assert (tmp_path / 'taken' / 'thesis.txt').read_text() == 'mine'


def test_ravdess_that_is_not_there_is_one_line(tmp_path):
    empty = os.environ | dict(EMOTION_STUDY_DATA=str(tmp_path))
    done = run('study', '--corpus', 'ravdess', '--out', tmp_path / 'r', env=empty)
    assert done.returncode == 2 and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1


# --- the runner

@pytest.fixture
def study(tmp_path, monkeypatch):
    "A study of small notebooks in the place of the real one."
    folder = tmp_path / 'study'; folder.mkdir()
    def add(name, parameters, *code):
        text = f'# {name}\n\nA mean $\\bar{{x}}$ and [the next](02_fails.ipynb).'
        cells = [v4.new_markdown_cell(text), v4.new_code_cell(parameters), *map(v4.new_code_cell, code)]
        cells[1].metadata['tags'] = ['parameters']
        nbformat.write(v4.new_notebook(cells=cells), folder / f'{name}.ipynb')
    add('01_real_only', "needs = 'ravdess'", '1 / 0')
    add('01a_writes', "out = ''\nseeds = 0", "import os, sys\nfrom emotion_study.core import ROOT",
        "print(seeds, os.environ['PYTHONHASHSEED'])",
        "(ROOT / out / 'results.json').write_text('[]')\n(ROOT / out / 'prefix.txt').write_text(sys.prefix)")
    add('02_fails', "out = ''", 'raise ValueError("too few clips")')
    add('09_optional', 'optional = True', 'print("ran")')
    monkeypatch.setattr(cli, 'STUDY', folder)
    return folder


def command(*args):
    with pytest.raises(SystemExit) as e: cli.main(list(map(str, args)))
    return e.value.code


def test_a_failing_notebook_stops_the_study_and_keeps_what_was_made(study, tmp_path, capfd):
    out = tmp_path / 'report'
    assert command('study', '--corpus', 'twin', '--seeds', '3', '--out', out) == 2
    shown = capfd.readouterr()
    assert 'error: 02_fails stopped in cell [3] with ValueError: too few clips' in shown.err
    assert 'Traceback' not in shown.err
    assert '[1/2] 01a_writes' in shown.out and '01_real_only, it needs ravdess' in shown.out
    record = json.loads((out / 'run.json').read_text())
    assert list(record['notebooks']) == ['01a_writes'] and record['synthetic'] is True
    assert record['code'] == {'01a_writes': record['provenance']['code']}
    assert set(record['skipped']) == {'01_real_only', '09_optional'}
    assert (out / 'notebooks' / '01a_writes.log').read_text() == '3 0\n', 'the seeds that were asked for, hashes fixed'
    assert (out / 'prefix.txt').read_text() == sys.prefix, 'the kernel of this environment'
    assert (out / 'notebooks' / '02_fails.ipynb').exists() and (out / 'results.json').exists()


def test_a_named_notebook_adds_to_a_report(study, tmp_path, capfd):
    out = tmp_path / 'report'
    assert command('study', '--corpus', 'twin', '--out', out, '--only', '01a') == 0
    record = json.loads((out / 'run.json').read_text())
    (out / 'run.json').write_text(json.dumps(record | {'code': {'01a_writes': 'other'}}))
    add = ('study', '--corpus', 'twin', '--out', out, '--only', '09_optional')
    assert command(*add) == 2 and 'made by other code (01a_writes)' in capfd.readouterr().err
    assert json.loads((out / 'run.json').read_text())['notebooks'] == record['notebooks']
    assert command(*add, '--mixed-code') == 0 and 'mixed code: 01a_writes' in capfd.readouterr().out
    assert json.loads((out / 'run.json').read_text())['code'] == {'01a_writes': 'other', '09_optional': record['provenance']['code']}
    assert {p.name for p in out.glob('*.html')} == {'index.html', '01a_writes.html', '09_optional.html'}
    for other in (('--seeds', '7'), ('--seed', '7'), ('--strict',), ('--profile', 'full')):
        assert command('study', '--corpus', 'twin', '--out', out, '--only', '09', *other) == 2
        assert 'use the same settings' in capfd.readouterr().err


def test_an_interrupted_study_says_that_it_goes_on(study, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv('EMOTION_STUDY_CACHE', str(tmp_path / 'cache'))
    broken = nbformat.read(study / '02_fails.ipynb', 4)
    broken.cells[-1].source = """
import os
from pathlib import Path
unfinished = Path(os.environ['EMOTION_STUDY_UNFINISHED'])
if not unfinished.exists(): unfinished.mkdir(parents=True); raise ValueError('no power')"""
    nbformat.write(broken, study / '02_fails.ipynb')
    out, left = tmp_path / 'report', lambda: list((tmp_path / 'cache' / 'unfinished').glob('*/*'))
    record = lambda: json.loads((out / 'run.json').read_text())
    assert command('study', '--corpus', 'twin', '--out', out) == 2 and len(left()) == 1 and 'resumed' not in record()
    assert 'not computed again' not in capfd.readouterr().out
    assert command('study', '--corpus', 'twin', '--out', out) == 0 and not left() and record()['resumed'] is True
    assert 'not computed again' in capfd.readouterr().out
    assert command('study', '--corpus', 'twin', '--out', out, '--only', '01a') == 0 and 'resumed' not in record()


def test_kernels_of_the_user_do_not_shadow_ours(study, tmp_path, monkeypatch):
    spec = tmp_path / 'home' / 'kernels' / 'python3'; spec.mkdir(parents=True)
    broken = dict(argv=['/bin/false', '{connection_file}'], display_name='x', language='python')
    (spec / 'kernel.json').write_text(json.dumps(broken))
    for name in ('JUPYTER_PATH', 'JUPYTER_DATA_DIR'): monkeypatch.setenv(name, str(tmp_path / 'home'))
    assert command('study', '--corpus', 'twin', '--out', tmp_path / 'r', '--only', '09') == 0


# --- the screen of what succeeds

OURS = [r'corpus twin: 1,440 clips \(SYNTHETIC, no recordings\)', r'\[1/1\] 01_corpus_audit  \(\d+ s so far\)', r'      done in [\d min]+ s', '',
        'The report is ready. Open this file in a browser:', '  .*/index.html']

def test_a_study_shows_its_own_lines_only(tmp_path):
    cli.have_samples()  # here, so that fetching them is no line below
    done = run('study', '--corpus', 'twin', '--only', '01', '--out', tmp_path / 'report')
    assert done.returncode == 0 and done.stderr == '', done.stderr
    lines = [l for l in done.stdout.splitlines() if not l.startswith('sample clips')]  # where they can't be fetched
    assert len(lines) == len(OURS) and all(map(re.fullmatch, OURS, lines)), done.stdout


@pytest.mark.parametrize('line, says', [
    ('train --corpus twin --protocol random --classes 7 --epochs 1 --out {tmp}/models', ['models in ']),
    ('features --corpus samples --out {tmp}/table.parquet', ['4 clips x ', 'voice: 4 of 4', 'face: 0 of 4', 'words: 4 of 4'])])
def test_a_step_shows_its_own_lines_only(tmp_path, line, says):
    if 'samples' in line and not cli.have_samples(): pytest.skip('the sample clips can not be fetched')
    done = run(*line.format(tmp=tmp_path).split(), timeout=600)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert [l[:len(s)] for l, s in zip(done.stdout.splitlines(), says, strict=True)] == says


# --- the report

class Links(HTMLParser):
    def __init__(self, text):
        super().__init__(); self.found, self.remote = [], []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        for key, value in attrs:
            if key in ('href', 'src') and value and not value.startswith(('#', 'data:', 'mailto:')):
                if re.match(r'https?:', value): self.remote += [value] if tag != 'a' else []
                else: self.found.append(unquote(value.partition('#')[0]))


def check_pages(folder, synthetic):
    "Every page: links resolve, nothing is fetched from a network, the twin says what it is."
    pages = sorted(folder.glob('*.html'))
    assert folder / 'index.html' in pages and len(pages) > 1
    for page in pages:
        text = page.read_text(encoding='utf-8'); links = Links(text)
        assert all((folder / f).is_file() for f in links.found), [f for f in links.found if not (folder / f).is_file()]
        assert not links.remote, links.remote
        assert (SYNTHETIC in text) == synthetic, page.name
        assert str(ROOT) not in text, page.name


def test_report_of_a_small_run(study, tmp_path):
    out = tmp_path / 'report'
    assert command('study', '--corpus', 'twin', '--out', out, '--only', '01a') == 0
    check_pages(out, synthetic=True)
    text = (out / '01a_writes.html').read_text()
    assert '<svg' in text and 'the next' in text and '02_fails' not in text, 'formula drawn, dead link undone'
    (out / 'results.json').write_text('[{"id": 1}]')
    with pytest.raises(SettingError, match='entry 1 has no metric'): build_report(out)


# --- the whole study

def check_study(folder, synthetic):
    import pandas as pd
    check_pages(folder, synthetic)
    predictions = pd.read_parquet(folder / 'predictions.parquet')
    results = json.loads((folder / 'results.json').read_text())
    assert len(predictions) and len(results)
    keys = ['protocol', 'classes', 'scope', 'model', 'modalities']
    runs = {tuple(map(str, r)) for r in predictions[keys].drop_duplicates().itertuples(index=False)}
    quoted = {tuple(str(r[k]) for k in keys) for r in results if r['metric'] == 'accuracy' and all(r[k] for k in keys)}
    assert quoted and quoted <= runs, f'quoted but not predicted: {sorted(quoted - runs)}'
    assert {r[0] for r in runs} == {q[0] for q in quoted}, 'a protocol was run and not reported'
    record = json.loads((folder / 'run.json').read_text())
    assert record['synthetic'] == synthetic and record['notebooks']
    assert {Path(r['notebook']).stem for r in results} <= set(record['notebooks'])
    found = audit_report(folder)
    assert found.faults == [] and found.derived and found.folds, found.lines()


@pytest.mark.study('twin')
def test_study_on_the_twin(studies):
    report, said = studies.report('twin')
    assert str(report / 'index.html') in said
    check_study(report, synthetic=True)


@pytest.mark.realdata
@pytest.mark.study('ravdess')
def test_study_on_real_clips(studies):
    report, said = studies.report('ravdess')
    assert str(report / 'index.html') in said
    check_study(report, synthetic=False)


# --- the published modes

def test_train_and_evaluate(tmp_path):
    models = tmp_path / 'models'
    done = run('train', '--corpus', 'twin', '--protocol', 'random', '--classes', 7, '--epochs', 2, '--out', models,
               timeout=600)
    assert done.returncode == 0, done.stderr
    done = run('evaluate', models, '--corpus', 'twin', timeout=600)
    assert done.returncode == 0 and 'accuracy' in done.stdout, done.stderr


def test_features_of_the_twin(tmp_path):
    import pandas as pd
    done = run('features', '--corpus', 'twin', '--out', tmp_path / 'table.parquet', timeout=300)
    assert done.returncode == 0 and '1,440 clips' in done.stdout, done.stderr
    assert len(pd.read_parquet(tmp_path / 'table.parquet')) == 1440
