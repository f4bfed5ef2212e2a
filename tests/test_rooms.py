"""The library as a house: a module imports only from modules above it, and none knows a study notebook."""
import ast
import re

import pytest

from emotion_study.core import ROOT

CHAPTERS = sorted(p for p in (ROOT / 'nbs').glob('[0-9]*.ipynb'))
ROOMS = [re.sub(r'^\d+_', '', p.stem) for p in CHAPTERS]  # in the order in which they are read
MODULES = {name: (ROOT / 'emotion_study' / f'{name}.py').read_text(encoding='utf-8') for name in ROOMS}
NAMES = 'core fetch media corpus twin speech whisper face text features protocols metrics fusion pool training'
NAMES += ' statistics references evidence figures site predict cli'


def rooms_of(node) -> set:
    "Modules of the package that an import statement names, at the top of a module or inside a function."
    if isinstance(node, ast.ImportFrom):
        path = (node.module or '').removeprefix('emotion_study').strip('.')
        own = node.level == 1 or (node.module or '').split('.')[0] == 'emotion_study'
        if not own: return set()
        return {path.split('.')[0]} if path else {a.name for a in node.names} & {*ROOMS}
    if isinstance(node, ast.Import):
        return {a.name.split('.')[1] for a in node.names if a.name.startswith('emotion_study.')}
    return set()


def arrows() -> list:  # of (module, what it imports)
    "Every import between modules of the package."
    found = {name: [rooms_of(n) for n in ast.walk(ast.parse(text))] for name, text in MODULES.items()}
    return sorted((name, other) for name, sets in found.items() for some in sets for other in some if other != name)


def test_the_chapters_are_those_of_the_design_without_letters():
    assert ' '.join(ROOMS) == NAMES
    assert [int(p.stem[:2]) for p in CHAPTERS] == list(range(len(CHAPTERS)))


def test_no_arrow_goes_upwards():
    upwards = [f'{a} imports {b}, which is read later' for a, b in arrows() if ROOMS.index(b) > ROOMS.index(a)]
    assert len(arrows()) > 60 and upwards == []


def test_no_model_imports_an_encoder():
    assert not {('pool', 'whisper'), ('training', 'whisper'), ('fusion', 'whisper')} & {*arrows()}


@pytest.mark.parametrize('name', ROOMS)
def test_no_line_of_the_library_names_a_study_notebook(name):
    studies = [p.stem for p in (ROOT / 'nbs' / 'study').glob('*.ipynb')]
    assert studies and [s for s in studies if s in MODULES[name]] == []


def test_every_notebook_has_a_number_of_its_own():
    for folder in (ROOT / 'nbs', ROOT / 'nbs' / 'study'):
        names = sorted(p.stem for p in folder.glob('[0-9]*.ipynb'))
        assert all(re.fullmatch(r'\d\d_[a-z0-9_]+', n) for n in names), 'two digits, no letter behind them'
        assert len({n[:2] for n in names}) == len(names)


def test_the_ledger_runs_after_every_notebook_that_makes_figures():
    studies = sorted((ROOT / 'nbs' / 'study').glob('*.ipynb'))
    making = [p.stem for p in studies if 'save_results(' in p.read_text(encoding='utf-8')]
    ledger = next(p.stem for p in studies if 'write_ledger(' in p.read_text(encoding='utf-8'))
    assert making[-1] == ledger


def test_no_two_public_definitions_have_one_name():
    homes = {}
    for module, text in MODULES.items():
        for node in ast.parse(text).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
            of_a_class = any(getattr(d, 'id', '') == 'patch' for d in node.decorator_list)
            if not node.name.startswith('_') and not of_a_class:
                homes.setdefault(node.name, set()).add(module)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}
