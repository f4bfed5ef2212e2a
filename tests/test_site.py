"""The book and its checks: a small checkout is built whole, and looked at; faults that are put in are found."""
import json, re, shutil
import nbformat, pytest
from emotion_study.core import ROOT, SettingError
from emotion_study.site import build_book, markdown_of
import site_checks

PAGES = ['index', '05_speech', '10_protocols', 'study/10_enrolment', 'study/92_shipped_network']
CONTENTS = "## Contents\n\n```{toctree}\n:caption: Book\n\nreport\nglossary\n05_speech\n10_protocols\nstudy/10_enrolment\n" \
           "study/92_shipped_network\nreference/speech\nreference/protocols\n```\n"
BAD = """<!DOCTYPE html><html><head><title>bad</title><script src="https://example.org/x.js"></script></head><body>
<a href="gone.html">a</a><a href="other.html#nowhere">b</a><img src="none.png"><div style="width: 900px">wide</div>
<script>throw new Error('a fault put in')</script></body></html>"""


def without_dead_links(source):
    "Markdown without the links to notebooks that the small book has not."
    kept = lambda m: m[0] if any(p.endswith(m[2].rpartition('/')[2]) for p in PAGES) else m[1]
    return re.sub(r'\[([^\]]*)\]\(([^)#\s]*?)\.ipynb(?:#[^)]*)?\)', kept, source)


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    "Two chapters, two studies of which one was run, the front page, and what else they link."
    root = tmp_path_factory.mktemp('book') / 'checkout'
    shutil.copytree(ROOT / 'docs', root / 'docs')
    (root / 'docs' / 'contents.md').write_text(CONTENTS)
    report = ROOT / 'reports' / 'ravdess'
    shutil.copytree(report, root / 'reports' / 'ravdess', ignore=shutil.ignore_patterns('notebooks', 'parts'))
    linked = {'README.md', 'models', 'own_recordings.json'}
    shutil.copytree(ROOT / 'data', root / 'data', ignore=lambda folder, names: set(names) - linked)
    shutil.copy(ROOT / 'CITATION.cff', root)
    ran = root / 'reports' / 'ravdess' / 'notebooks' / '10_enrolment.ipynb'
    for page in PAGES:
        path = root / 'nbs' / f'{page}.ipynb'
        for source, to in ((ROOT / 'nbs' / f'{page}.ipynb', path), (report / 'notebooks' / path.name, ran)):
            if not source.is_file() or (to == ran and to.name != path.name): continue
            to.parent.mkdir(parents=True, exist_ok=True)
            nb = nbformat.reads(source.read_text(encoding='utf-8'), 4)
            for owner, key in markdown_of(nb): owner[key] = without_dead_links(owner[key])
            nbformat.write(nb, to)
    return root


@pytest.fixture(scope='module')
def book(checkout): return build_book(checkout.parent / 'site', checkout).parent


def page(book, name): return (book / f'{name}.html').read_text(encoding='utf-8')


def test_every_link_of_the_book_leads_somewhere(book):
    assert site_checks.read_faults(book) == []


def test_the_book_in_a_browser(book):
    if not site_checks.chromium(): pytest.skip('no Chromium here: what only a browser sees is not checked')
    with site_checks.Browser(site_checks.chromium()) as browser:
        names = [*PAGES, 'glossary', 'reference/protocols', 'search', 'report/index', 'report/claims']
        faults = [f for n in names for f in site_checks.seen_faults(browser, book / f'{n}.html', n)]
    assert faults == []


def test_formulas_are_drawn_and_nothing_is_fetched(book):
    text = page(book, '10_protocols')
    assert text.count('<span class="tex"><svg') > 10 and 'MathJax' not in text


def test_terms_link_the_glossary_once_and_names_the_reference(book):
    text = page(book, '10_protocols')
    linked = re.findall(r'href="glossary.html#(term-[^"]+)"', text)
    assert 'term-fold' in linked and len(linked) == len({*linked})
    assert 'href="reference/protocols.html#emotion_study.protocols.' in text


def test_the_reference_has_arguments_with_their_comments(book):
    text = page(book, 'reference/speech')
    assert 'id="emotion_study.speech.' in text and '<strong>Details</strong>' in text and 'sr' in text
    assert 'emotion_study.speech' in (book / 'genindex.html').read_text() and (book / 'searchindex.js').stat().st_size > 10000


def test_a_page_links_its_notebook_as_it_is(book, checkout):
    assert 'href="../_sources/study/10_enrolment.ipynb"' in page(book, 'study/10_enrolment')
    ran = checkout / 'reports' / 'ravdess' / 'notebooks' / '10_enrolment.ipynb'
    assert (book / '_sources' / 'study' / '10_enrolment.ipynb').read_bytes() == ran.read_bytes()


def test_what_was_not_run_says_so(book):
    assert 'shown without results' in page(book, 'study/92_shipped_network')
    assert 'shown without results' not in page(book, 'study/10_enrolment')


def test_contents_next_and_previous(book):
    text = page(book, '05_speech')
    assert 'class="next-page" href="10_protocols.html"' in text and 'class="prev-page" href="glossary.html"' in text
    assert 'href="report/claims.html"' in page(book, 'report') and 'href="study/10_enrolment.html"' in page(book, 'index')


def test_a_dead_link_stops_the_build(checkout, tmp_path):
    root = tmp_path / 'checkout'
    for folder in ('docs', 'nbs/study'): (root / folder).mkdir(parents=True)
    (root / 'docs' / 'conf.py').write_text("extensions = ['myst_nb']")
    (root / 'docs' / 'contents.md').write_text('')
    nb = json.loads((checkout / 'nbs' / 'index.ipynb').read_text())
    nb['cells'] = [dict(cell_type='markdown', id='a', metadata={}, source='# Front\n\n[lost](07_nowhere.ipynb)')]
    (root / 'nbs' / 'index.ipynb').write_text(json.dumps(nb))
    with pytest.raises(SettingError, match='07_nowhere.ipynb'): build_book(tmp_path / 'site', root)
    assert not (tmp_path / 'site').exists()


def test_the_checks_find_what_is_wrong(tmp_path):
    (tmp_path / 'bad.html').write_text(BAD)
    (tmp_path / 'other.html').write_text('<meta name="viewport" content="width=device-width"><title>other</title>')
    said = '\n'.join(site_checks.read_faults(tmp_path))
    assert all(w in said for w in ('gone.html leads to no file', 'no such anchor', 'none.png leads', 'x.js from the network'))
    if not site_checks.chromium(): pytest.skip('no Chromium here: what only a browser sees is not checked')
    with site_checks.Browser(site_checks.chromium()) as browser:
        seen = '\n'.join(site_checks.seen_faults(browser, tmp_path / 'bad.html', 'bad'))
        assert [*site_checks.seen_faults(browser, tmp_path / 'other.html', 'other')] == []
    assert 'a fault put in' in seen and 'no picture none.png' in seen and 'bad at 390 px: scrolls sideways' in seen
