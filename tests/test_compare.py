"""Two runs of one study: what `emotion-study compare` notices, and what it rightly passes over."""
import json, shutil

import pandas as pd
import pytest
from emotion_study.core import ROOT
from emotion_study.evidence import compare_reports
from test_cli import run

REPORT = ROOT / 'reports' / 'ravdess'
NOTEBOOK, FIGURE = 'notebooks/01_corpus_audit.ipynb', 'figures/02_runs.png'


@pytest.fixture
def runs(tmp_path):
    "Twice the same part of the committed report."
    for name in 'ab':
        for file in (NOTEBOOK, FIGURE, 'results.json', 'run.json'):
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPORT / file, tmp_path / name / file)
        pd.read_parquet(REPORT / 'predictions.parquet').head(500).to_parquet(tmp_path / name / 'predictions.parquet')
    return tmp_path / 'a', tmp_path / 'b'


def in_cells(change):
    "Change the code cells of the notebook."
    def spoil(folder):
        notebook = json.loads((folder / NOTEBOOK).read_text())
        change([c for c in notebook['cells'] if c['cell_type'] == 'code' and c['outputs']])
        (folder / NOTEBOOK).write_text(json.dumps(notebook))
    return spoil


def in_json(name, change):
    def spoil(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))
    return spoil


def counted(cells):
    for cell in cells: cell['execution_count'] = 99; cell['metadata'] = dict(papermill=dict(duration=3))


def warned(cells): cells[0]['outputs'].append(dict(output_type='stream', name='stderr', text='3 s'))
def printed(cells): cells[-1]['outputs'].append(dict(output_type='stream', name='stdout', text='94.1'))
def rewritten(cells): cells[0]['source'] = 'pass'
def dropped(cells): cells[0]['outputs'].clear()
def slower(record): record['notebooks']['01_corpus_audit'] = 1e6
def luckier(entries): entries[0]['value'] += 1e-9
def reseeded(record): record['seeds'] = 7


def one_probability(folder):
    table = pd.read_parquet(folder / 'predictions.parquet')
    table.loc[3, 'p_sad'] += 1e-6
    table.to_parquet(folder / 'predictions.parquet')


def one_bit(folder):
    data = bytearray((folder / FIGURE).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / FIGURE).write_bytes(data)


@pytest.mark.parametrize('passes', [in_cells(counted), in_cells(warned), in_json('run.json', slower),
                                    lambda folder: (folder / 'notebooks' / '01.log').write_text('3 s')])
def test_what_differs_between_any_two_runs_is_no_difference(runs, passes):
    passes(runs[1])
    found = compare_reports(*runs)
    assert found.same and found.count(notebooks=True) == (1, 1), found.lines()


@pytest.mark.parametrize('spoil, file', [
    (in_cells(printed), NOTEBOOK), (in_cells(rewritten), NOTEBOOK), (in_cells(dropped), NOTEBOOK),
    (in_json('results.json', luckier), 'results.json'), (in_json('run.json', reseeded), 'run.json'),
    (one_probability, 'predictions.parquet'), (one_bit, FIGURE), (lambda f: (f / FIGURE).unlink(), FIGURE),
    (lambda f: (f / 'more.csv').write_text('1'), 'more.csv')])
def test_whatever_else_differs_is_named(runs, spoil, file):
    spoil(runs[1])
    found = compare_reports(*runs)
    assert [name for name, faults in found.found.items() if faults] == [file]
    assert any(line.startswith(f'{file}: ') for line in found.lines())
    assert found.count(notebooks=True)[0] == (file != NOTEBOOK)


def test_the_command_ends_with_0_or_1_and_tells_the_share(runs):
    same = run('compare', *runs)
    assert same.returncode == 0 and '1 of 1 notebooks reproduce exactly (100%)' in same.stdout, same.stderr
    in_cells(printed)(runs[1])
    differs = run('compare', *runs)
    assert differs.returncode == 1 and '0 of 1 notebooks' in differs.stdout and '879 of 22,578' in differs.stdout
    wrong = run('compare', runs[0], runs[0] / 'nothing')
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1
