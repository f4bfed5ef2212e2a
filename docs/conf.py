"How Sphinx makes the book of the pages that `build_book` gathers (chapter site, section The book)."
import configparser
from pathlib import Path

from docutils.nodes import SkipNode

from emotion_study.core import ROOT
from emotion_study.site import display_svg, formula_svg, glossary_terms, link_names, link_terms

ini = configparser.ConfigParser(delimiters=['='])
ini.read(ROOT / 'settings.ini', encoding='utf-8')
project = ini['DEFAULT']['title']
author = ini['DEFAULT']['author']
copyright = ini['DEFAULT']['copyright']
html_title = 'emotion_study, the book'

extensions = ['myst_nb']
nb_execution_mode = 'off'  # outputs are those of the notebooks
nb_code_prompt_show = nb_code_prompt_hide = 'code'
nb_render_markdown_format = 'myst'
myst_enable_extensions = ['amsmath', 'attrs_inline', 'dollarmath']
myst_heading_anchors = 4
exclude_patterns = ['report', 'files']  # linked and copied as they are
suppress_warnings = ['myst.header', 'misc.highlighting_failure']

html_theme = 'furo'
html_static_path = ['static']
html_css_files = ['book.css']
templates_path = ['templates']
html_sourcelink_suffix = ''
html_show_search_summary = False  # it would fetch pages, which a browser forbids in files
html_use_index = True
html_theme_options = dict(navigation_with_keys=True)
add_module_names = False  # the page says it
pygments_style, pygments_dark_style = 'default', 'github-dark'
html_math_renderer = 'outline'

TERMS = glossary_terms((Path(__file__).parent / 'glossary.md').read_text(encoding='utf-8'))


def inline_math(self, node):
    self.body.append(formula_svg(node.astext()))
    raise SkipNode


def block_math(self, node):
    self.body.append(display_svg(node.astext()))
    raise SkipNode


def enrich(app, doctree):
    link_terms(doctree, TERMS, app.env.docname)
    link_names(doctree, app.env.docname)


def setup(app):
    app.add_html_math_renderer('outline', (inline_math, None), (block_math, None))
    app.connect('doctree-read', enrich)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
