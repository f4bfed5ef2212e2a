"""Notebooks that are run by themselves: what they are given is read by type, and no report is touched that they do not fit."""
import ast, hashlib, json, os, re, shutil, subprocess, sys
from pathlib import Path

import nbformat, nbformat.v4 as v4
import pandas as pd
import pytest

from emotion_study import cli, core
from emotion_study.core import (
    PARAMETERS, ROOT, SettingError, Settings, check_parameters, describe, expected_codes)

STUDY = sorted((ROOT / 'nbs' / 'study').glob('[0-9]*.ipynb'))
BIN = Path(sys.executable).parent


def source(path):
    "The code of a notebook, cell by cell."
    return [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']


# --- parameters

@pytest.mark.parametrize('name, value, read', [
    ('strict', False, False), ('strict', 'false', False), ('strict', 'True', True), ('write', 'no', False), ('ship', 1, True),
    ('seeds', '3', 3), ('seed', 7, 7), ('epochs', '100', 100), ('rate', '2.5', 2.5), ('minutes', 10, 10.), ('out', '', ''),
    ('out', Path('reports/x'), 'reports/x'), ('only', 'vosk', 'vosk'), ('profile', 'full', 'full')])
def test_text_of_a_command_line_is_read_by_type(name, value, read):
    found = PARAMETERS[name](name, value)
    assert found == read and type(found) is type(read)


@pytest.mark.parametrize('name, value', [
    ('strict', 'perhaps'), ('strict', ''), ('strict', None), ('write', 'falsch'), ('ship', 2), ('ship', 1.), ('seeds', 1.5), ('seeds', 'one'), ('seeds', -1),
    ('seeds', True), ('seed', '-1'), ('seed', '²'), ('seed', 10 ** 6), ('epochs', 0), ('images', None), ('plain_folds', '0'), ('rate', 'nan'),
    ('rate', 0), ('minutes', 'inf'), ('minutes', False), ('profile', 'fulll'), ('profile', ''), ('corpus', 'mars'), ('corpus', 3), ('out', 5),
    ('only', None), ('clip', 1)])
def test_a_wrong_value_is_one_line_that_names_it(name, value):
    with pytest.raises(SettingError) as e: PARAMETERS[name](name, value)
    assert str(e.value).startswith(f'{name}={value!r}') and '\n' not in str(e.value)


def test_settings_are_read_in_the_same_way():
    settings = Settings(strict='no', seeds='2', seed='5')
    assert settings.strict is False and settings.seed_list('actor') == [5, 6] and settings.seed_list('loso', 1) == [5]
    with pytest.raises(SettingError, match="strict='nein'"): Settings(strict='nein')


def test_a_name_that_the_notebook_does_not_have_is_told():
    names = dict(seeds=1, In=['', 'seeds = 0', '# Parameters\nsedes = 1\n', 'import os'])
    with pytest.raises(SettingError, match="no parameter 'sedes' here; this notebook has seeds"): check_parameters(names, 'seeds')
    check_parameters(names | dict(In=['', '# Parameters\nseeds = 1\n']), 'seeds')


@pytest.mark.parametrize('path', STUDY, ids=lambda p: p.stem)
def test_a_notebook_checks_what_it_declares_and_uses_it(path):
    cells, says = source(path), cli.declared(path)
    text = '\n'.join(cells[1:])
    checked = ast.literal_eval('(' + re.search(r'check_parameters\(globals\(\), ([^)]*)\)', text)[1] + ',)')
    assert list(checked) == [k for k in says if k != 'optional' and not k.startswith('needs')]
    for name in checked:
        PARAMETERS[name](name, says[name])
        assert len(re.findall(rf'(?<![\'".\w]){name}\b(?!\s*=[^=])', text)) >= 1, f'{name} is declared and not used'
    opened = re.search(r"(open_study\((?:[^()]|\([^()]*\))*notebook=|open_report\(\s*)'([\w]+)'", text)
    assert opened and opened[2] == path.stem
    assert says.get('write', says.get('ship', False)) is False, 'data of the project are replaced only when asked for'
    assert not re.search(r"ROOT / \(?out|'reports/", text), 'a report folder comes from open_study or open_report'


def test_list_shows_every_notebook(capsys):
    with pytest.raises(SystemExit) as e: cli.main(['study', '--list'])
    shown = capsys.readouterr().out
    assert e.value.code == 0 and all(p.stem in shown for p in STUDY)
    line = next(l for l in shown.splitlines() if l.startswith('96_training_speed'))
    assert 'ravdess' in line and 'runs only when named' in line and 'plain_folds = 3' in shown


# --- one report, one run

def digests(folder):
    "Every file of a folder with its checksum."
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.fixture
def report(tmp_path):
    "A full report of the twin, as the command would leave it."
    from emotion_study.corpus import load_corpus
    folder = tmp_path / 'report'
    (folder / 'figures').mkdir(parents=True)
    here = core.code_digest()
    record = dict(profile='full', seeds=0, seed=0, strict=False, notebooks={'02': 9.}, code={'02': here}) | core.identity(load_corpus('twin'))
    core.write_record(folder, record)
    (folder / 'results.json').write_text('[]\n')
    return folder


SAME = dict(corpus='twin', profile='full', seeds=0, seed=0, strict=False, notebook='03')


def test_what_fits_is_added(report):
    from emotion_study.features import open_study
    study = open_study(**SAME, out=str(report))
    assert study.out == report and core.read_record(report)['code'] == {'02': core.code_digest(), '03': core.code_digest()}
    core.check_open(report / 'figures')


@pytest.mark.parametrize('change, said', [
    (dict(profile='quick'), "profile 'full'"), (dict(seeds=1), 'seeds 0'), (dict(seed=1), 'seed 0'), (dict(strict=True), 'strict False'),
    (dict(out='report/figures'), 'inside of the report'), (dict(out='report/new'), 'inside of the report'), (dict(out='report/results.json'), 'inside of')],
    ids=str)
def test_other_settings_are_refused_before_anything_is_read_or_written(report, monkeypatch, change, said):
    from emotion_study import features
    monkeypatch.setattr(features, 'feature_table', lambda *a, **k: pytest.fail('the table was made first'))
    before, out = digests(report), str(report.parent / change.get('out', 'report'))
    with pytest.raises(SettingError, match=said) as e: features.open_study(**SAME | change | dict(out=out))
    assert '\n' not in str(e.value) and digests(report) == before and 'name' in str(e.value) + ' or name another'


@pytest.mark.parametrize('change, said', [(dict(code={'02': 'older'}), 'other code'), (dict(code={}), 'other code'),
                                          (dict(notebooks={}, code={}), 'other code'), (dict(content='few'), 'other clips'),
                                          (dict(clips=240), 'clips 240'), (dict(corpus='ravdess'), "corpus 'ravdess'")], ids=str)
def test_other_code_and_other_clips_are_refused(report, change, said):
    from emotion_study.features import open_study
    core.write_record(report, core.read_record(report) | change)
    before = digests(report)
    with pytest.raises(SettingError, match=said): open_study(**SAME, out=str(report))
    assert digests(report) == before


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / 'thesis.txt').write_text('mine')
    with pytest.raises(SettingError, match='no report of ours'): core.open_report('02', str(tmp_path))
    with pytest.raises(SettingError, match='is a file'): core.open_report('02', str(tmp_path / 'thesis.txt'))
    (tmp_path / 'torn').mkdir(); (tmp_path / 'torn' / 'run.json').write_text('{"corpus": "tw')
    with pytest.raises(SettingError, match='not the record of a run'): core.open_report('02', str(tmp_path / 'torn'))


def test_nothing_writes_into_a_report_that_was_not_opened(report):
    import matplotlib.pyplot as plt
    from emotion_study.corpus import write_audit
    from emotion_study.metrics import save_results
    from emotion_study.training import save_predictions
    from emotion_study.figures import save_figure
    from emotion_study.site import write_documents, write_ledger
    rows = pd.DataFrame([describe(c) for c in expected_codes()[:4]])[['clip', 'actor', 'emotion']].assign(
        protocol='actor', classes=8, scope='inductive', model='a', modalities='voice', folds=6, seed=0, fold=0)
    before = digests(report)
    for write in (lambda: save_results(report, [], '02'), lambda: save_predictions(report, rows), lambda: save_figure(plt.figure(), report, 'x', 'x'),
                  lambda: write_audit({}, report / 'audit.json'), lambda: write_ledger(report, dict(claims=[], facts={})), lambda: write_documents(report)):
        with pytest.raises(SettingError): write()
    assert digests(report) == before


def test_two_runs_at_once(report):
    lock = core.lock_report(report)
    with pytest.raises(SettingError, match='another run is writing'): core.open_report('03', str(report))
    core.unlock_report(lock)
    core.open_report('03', str(report))


def test_a_full_report_is_not_replaced_by_a_quick_look(report):
    before = digests(report)
    quick = dict(corpus='twin', profile='quick', seeds=0, seed=0)
    with pytest.raises(SettingError, match='holds a full report'): cli.open_folder(report, quick)
    assert digests(report) == before
    with pytest.raises(SettingError, match='use the same settings'): cli.open_folder(report, quick, keep=True)
    assert cli.open_folder(report, dict(corpus='twin', profile='full', seeds=0)) == {} and not (report / 'results.json').exists()


# --- by papermill and by nbconvert

TINY = """
import pandas as pd
from emotion_study.core import check_parameters
from emotion_study.features import open_study
from emotion_study.metrics import result_entries, save_results
from emotion_study.protocols import make_folds
from emotion_study.training import predictions_rows, save_predictions

check_parameters(globals(), 'corpus', 'profile', 'seeds', 'out', 'strict')
study = open_study(corpus, profile, seeds, out, strict, notebook='98_tiny')
---
import numpy as np
fold, = make_folds(study.table, 'random', 8, 0)
sure = np.eye(8)[np.zeros(len(fold.test), int)]
rows = predictions_rows(study.table, fold, ('always neutral', 'voice'), sure, 8, 'inductive')
save_predictions(study.out, rows)
save_results(study.out, result_entries(rows, '98_tiny'), '98_tiny').name
"""


def git(folder, *args):
    return subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *args], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    "This checkout, as it is now, in a repository of its own, with a full report of the twin and one notebook more."
    if not (ROOT / '.git').exists(): pytest.skip('no git checkout')
    co = tmp_path_factory.mktemp('checkout') / 'co'
    for name in filter(None, git(ROOT, 'ls-files', '-co', '--exclude-standard', '-z').split('\0')):
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (co / name).parent.mkdir(parents=True, exist_ok=True); shutil.copy(ROOT / name, co / name)
    cells = [v4.new_markdown_cell('# Tiny'), v4.new_code_cell("corpus = 'auto'\nprofile = 'quick'\nseeds = 0\nout = ''\nstrict = False"),
             *(v4.new_code_cell(text.strip()) for text in TINY.split('---\n'))]
    cells[1].metadata['tags'] = ['parameters']
    kernel = dict(name='python3', display_name='python3', language='python')
    nbformat.write(v4.new_notebook(cells=cells, metadata=dict(kernelspec=kernel)), co / 'nbs' / 'study' / '98_tiny.ipynb')
    git(co, 'init', '-q'); git(co, 'add', '-A'); git(co, 'commit', '-qm', 'as it is')
    shutil.copytree(co / 'reports' / 'ravdess', co / 'reports' / 'twin')
    record = core.read_record(co / 'reports' / 'twin')
    core.write_record(co / 'reports' / 'twin', record | dict(corpus='twin'))
    return co


def direct(co, cwd, *command, **env):
    "A tool of the environment, run on a copy of the checkout from some folder."
    env = os.environ | {k: cli.KERNEL_ENV[k] for k in ('JUPYTER_PATH', 'CUDA_VISIBLE_DEVICES', 'TF_CPP_MIN_LOG_LEVEL')} | env | dict(
        PYTHONPATH=str(co), EMOTION_STUDY_CACHE=str(co / 'data' / 'cache'), OMP_NUM_THREADS='1')
    env.pop('EMOTION_STUDY_DATA', None)  # so that `auto` is the twin
    return subprocess.run([str(BIN / command[0]), *map(str, command[1:])], cwd=cwd, capture_output=True, text=True, timeout=300, env=env)


def outputs(path):
    return [o.get('text', '') for c in nbformat.read(path, 4).cells if c.cell_type == 'code' for o in c.outputs]


def test_a_notebook_run_directly_leaves_every_report_and_the_checkout_alone(checkout, tmp_path):
    co, notebook = checkout, checkout / 'nbs' / 'study' / '98_tiny.ipynb'
    before = digests(co / 'reports')
    done = direct(co, co / 'nbs' / 'study', 'papermill', '98_tiny.ipynb', tmp_path / 'a.ipynb', '-p', 'seeds', '1', '-p', 'strict', 'false', '-p', 'corpus', 'twin')
    assert done.returncode == 0, done.stderr[-3000:]
    assert outputs(tmp_path / 'a.ipynb')[0].startswith('Results go to reports/scratch/98_tiny;')
    scratch = co / 'reports' / 'scratch' / '98_tiny'
    first = digests(scratch)
    assert json.loads((scratch / 'results.json').read_text())[0]['folds'] == 1 and core.read_record(scratch)['seeds'] == 1
    done = direct(co, tmp_path, 'jupyter', 'nbconvert', '--to', 'notebook', '--execute', notebook, '--output-dir', tmp_path, '--output', 'b.ipynb')
    assert done.returncode == 0, done.stderr[-3000:]
    assert core.read_record(scratch)['seeds'] == 0 and digests(scratch)['predictions.parquet'] == first['predictions.parquet']
    after = {k: v for k, v in digests(co / 'reports').items() if not k.startswith('scratch/')}
    assert after == before and git(co, 'status', '--porcelain') == ''


@pytest.mark.parametrize('given, said', [(('out', 'reports/twin'), "profile 'full', not 'quick'"), (('sedes', '1'), "no parameter 'sedes'")])
def test_papermill_is_refused_in_one_line(checkout, tmp_path, given, said):
    co = checkout
    before = digests(co / 'reports')
    done = direct(co, co, 'papermill', 'nbs/study/98_tiny.ipynb', tmp_path / 'a.ipynb', '-p', 'corpus', 'twin', '-p', *given)
    last = [l for l in done.stderr.splitlines() if l.strip()][-1]
    assert done.returncode != 0 and 'SettingError' in last and said in last, done.stderr[-1500:]
    assert digests(co / 'reports') == before
