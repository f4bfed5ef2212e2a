"Every row of the fault table, tried as its chapter tries it."
import os

import pytest

from study_code import definitions

CHAPTER = definitions('89_faults')
ROOMS = ('corpus', 'media', 'speech', 'face', 'text', 'features', 'models', 'reports', 'predict', 'command line')


@pytest.fixture(scope='module')
def desk(tmp_path_factory):
    "The work of before, made once."
    folder = (tmp_path_factory.mktemp('faults') / 'desk').resolve()
    with CHAPTER.own_cache(folder / 'cache'): CHAPTER.lay_out(folder)
    return folder


@pytest.mark.skipif(os.name != 'posix', reason='signals and limits as Linux and macOS have them')
@pytest.mark.parametrize('row', CHAPTER.FAULTS, ids=lambda row: row.name)
def test_a_fault_is_told_and_costs_no_work(row, desk):
    found = CHAPTER.tried(row, desk)
    assert found.kind in CHAPTER.WORDS, found.gets
    assert found.kept, found.how
    assert str(desk.parent) not in found.gets and '/tmp/' not in found.gets, 'no place of this machine'


def test_the_table_is_long_and_covers_every_part():
    names = [row.name for row in CHAPTER.FAULTS]
    assert len(names) >= 60 and len(set(names)) == len(names)
    assert {row.place for row in CHAPTER.FAULTS} == set(ROOMS)


def bad_row(do): return CHAPTER.Fault('corpus', 'a fault of the table itself', 'kept', do)


@pytest.mark.parametrize('kind, kept, do', [
    ('silent', True, lambda desk: CHAPTER.error_of(lambda: 1 / 0)),
    ('silent', True, lambda desk: CHAPTER.error_of(lambda: 1)),
    ('silent', True, lambda desk: 'flag: '),
    ('silent', True, lambda desk: 'error: kept\nand more'),
    ('mended', False, lambda desk: (desk / 'a.wav').unlink() or 'mended: kept'),
    ('mended', False, lambda desk: (desk / 'table.parquet').write_bytes(b'x') and 'mended: kept'),
    ('mended', False, lambda desk: (desk / 'left.part').write_bytes(b'x') and 'mended: kept'),
    ('mended', True, lambda desk: 'mended: kept')])
def test_the_table_would_notice(desk, kind, kept, do):
    "A traceback, silence, several lines, a lost or changed file, a half file that is left behind."
    found = CHAPTER.tried(bad_row(do), desk)
    assert (found.kind, found.kept) == (kind, kept)
