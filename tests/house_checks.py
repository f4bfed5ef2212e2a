"""The checks of `make test` that are no pytest tests, and git's filter: house_checks.py drift|clean|lint|lessons|corpus|sources|readme|style|prose|filter|install [checkout]."""
import ast, json, os, re, shutil, statistics, subprocess, sys, tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


@contextmanager
def copied(root):
    "The notebooks and settings of a checkout in a folder without git, where nbdev may write."
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp) / 'emotion_study'
        copy.mkdir()
        shutil.copy(root / 'settings.ini', copy)
        shutil.copytree(root / 'nbs', copy / 'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
        by_hand = root / 'emotion_study' / '__init__.py'  # nbdev writes only the version in it
        if by_hand.exists():
            (copy / 'emotion_study').mkdir()
            shutil.copy(by_hand, copy / 'emotion_study')
        yield copy


def nbdev(command, folder, *args):
    "Run an nbdev command; its output and exit code."
    done = subprocess.run([BIN / command, *args], cwd=folder, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    return done.stdout, done.returncode


def differing(a, b, pattern):
    "Relative paths of the files that two folders do not share byte for byte."
    names = {p.relative_to(r).as_posix() for r in (a, b) for p in r.rglob(pattern)
             if '.ipynb_checkpoints' not in p.parts}
    same = lambda n: (a / n).is_file() and (b / n).is_file() and (a / n).read_bytes() == (b / n).read_bytes()
    return sorted(n for n in names if not same(n))


def drift(root=ROOT):
    "Modules that differ from what their notebooks export."
    with copied(root) as copy:
        said, code = nbdev('nbdev_export', copy)
        if code: return [said]
        return [f'emotion_study/{n} is not what its notebook exports: run nbdev_export'
                for n in differing(root / 'emotion_study', copy / 'emotion_study', '*.py')]


def staged(root, name):
    "A file as git would commit it next; None where there is no git, or git does not know the file."
    try: done = subprocess.run(['git', 'show', f':./{name}'], cwd=root, capture_output=True)
    except FileNotFoundError: return None
    return done.stdout if done.returncode == 0 else None


def clean(root=ROOT):
    "Notebooks that nbdev_clean would change; what an editor adds by saving is no fault as long as git has the clean form."
    with copied(root) as copy:
        said, code = nbdev('nbdev_clean', copy)
        if code: return [said]
        names = [f'nbs/{n}' for n in differing(root / 'nbs', copy / 'nbs', '*.ipynb')]
        return [f'{n} is not clean: run .venv/bin/nbdev_clean' for n in names if (copy / n).read_bytes() != staged(root, n)]


def as_committed(text, root=ROOT):
    "A notebook as nbdev_clean writes it."
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp) / 'notebook.ipynb'
        path.write_text(text, encoding='utf-8')
        env = os.environ | dict(PYTHONWARNINGS='error::UserWarning')  # it only warns of what it can't read
        done = subprocess.run([BIN / 'nbdev_clean', '--fname', path], cwd=root, env=env, text=True, capture_output=True)
        if done.returncode: raise SystemExit(f'error: nbdev_clean cannot read this notebook: {done.stderr[-300:]}')
        return path.read_text(encoding='utf-8')


# a checkout without the environment commits notebooks as they are
FILTER = 'if [ -x .venv/bin/python ]; then exec .venv/bin/python tests/house_checks.py filter; else exec cat; fi'
HOOK = """# written by `make`: JupyterLab saves the notebooks of this checkout as nbdev_clean writes them
from pathlib import Path
from nbdev.clean import clean_nb
NOTEBOOKS = Path(__file__).resolve().parents[3] / 'nbs'
def clean(model, path, contents_manager, **kw):
    ours = Path(contents_manager._get_os_path(path)).resolve().is_relative_to(NOTEBOOKS)
    if model['type'] == 'notebook' and ours: clean_nb(model['content'], allowed_cell_metadata_keys=['tags'], clean_ids=False)
c.FileContentsManager.pre_save_hook = clean
"""


def install(root=ROOT):
    "Have notebooks saved clean by the JupyterLab of the environment, and seen clean by git: in this clone only."
    hook = root / '.venv' / 'etc' / 'jupyter' / 'jupyter_server_config.py'
    hook.parent.mkdir(parents=True, exist_ok=True)
    hook.write_text(HOOK)
    git = lambda *args: subprocess.run(['git', *args], cwd=root, text=True, capture_output=True)
    try: top = git('rev-parse', '--show-toplevel')
    except FileNotFoundError: return
    if top.returncode == 0 and Path(top.stdout.strip()).resolve() == root.resolve():
        git('config', '--local', 'filter.notebooks.clean', FILTER)


def lessons(root=ROOT):
    "Run the lesson cells of the library notebooks; study notebooks are run by papermill in pytest."
    from emotion_study.cli import KERNEL_ENV
    tensorflow = {k: v for k, v in KERNEL_ENV.items() if k.startswith(('TF_', 'CUDA_'))}
    env = os.environ | tensorflow | dict(OMP_NUM_THREADS='1')
    done = subprocess.run([BIN / 'nbdev_test', '--path', root / 'nbs', '--skip_folder_re', '^([_.].*|study)$',
                           '--n_workers', '2', '--timing'], cwd=root, env=env)
    return [f'nbdev_test ended with exit code {done.returncode}'] if done.returncode else []


def readme(root=ROOT):
    "README.md as nbs/index.ipynb makes it: no code, links as seen from the top of the checkout."
    import nbformat
    from nbconvert import MarkdownExporter
    nb = nbformat.read(root / 'nbs' / 'index.ipynb', 4)
    text, extra = MarkdownExporter(exclude_input=True, exclude_output_prompt=True).from_notebook_node(nb)
    if extra.get('outputs'): raise SystemExit('error: index.ipynb has a picture as output; link a committed file')
    def from_top(m):
        path = m[2].partition('#')[0]
        if not path or re.match(r'[a-z]+:', path): return m[0]
        target = (root / 'nbs' / path).resolve()
        return f'{m[1]}({os.path.relpath(target, root.resolve())}{m[2][len(path):]})' if target.exists() else m[0]
    text = re.sub(r'(\[[^\]]*\])\(([^)\s]+)\)', from_top, text)
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


def corpus(root=ROOT):
    "Whether the real clips are here, in words."
    from emotion_study.corpus import find_ravdess
    found = find_ravdess()
    return f'real RAVDESS found in {found}' if found else 'no RAVDESS found: tests on real data will be skipped'


def sources(root=ROOT):
    "What `make report` reads and does not find, each with the command that fetches it."
    from emotion_study.core import SettingError
    from emotion_study.corpus import load_corpus
    from emotion_study.text import find_meld
    from emotion_study.whisper import find_small
    faults = []
    for find in (lambda: load_corpus('ravdess'), find_small):
        try: find()
        except SettingError as error: faults.append(str(error))
    corpora = Path(os.environ['EMOTION_STUDY_CORPORA']).expanduser()
    for name in ('nemo', 'urdu'):
        if (corpora / name / 'manifest.csv').is_file(): continue
        faults.append(f'{name}/manifest.csv is not in EMOTION_STUDY_CORPORA: `emotion-study data {name}` fetches it')
    if not find_meld(): faults.append('no dialogues: `emotion-study data meld` fetches them')
    answers = os.environ.get('EMOTION_STUDY_PUBLISHED', '').strip()
    if not answers or not Path(answers).expanduser().is_dir():
        faults.append('EMOTION_STUDY_PUBLISHED names no folder of published answers: clone cristinalunaj/MMEmotionRecognition')
    return faults


def lint(root=ROOT):
    "What ruff finds in notebooks, and public definitions that don't say what they are."
    done = subprocess.run([BIN / 'ruff', 'check', '--no-cache', '--output-format', 'concise', 'nbs'], cwd=root,
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    faults = done.stdout.strip().splitlines() if done.returncode else []
    for path in sorted((root / 'nbs').glob('[0-9]*.ipynb')):
        for source in _cells(path):
            if '#| export' in source: faults += [f'{path.name}: {name} has no docstring' for name in _silent(source)]
    return faults


def _silent(source) -> list:  # names
    "Public functions and classes of a cell without a docstring."
    kinds = (ast.FunctionDef, ast.ClassDef)
    public = [n for n in _tree(source).body if isinstance(n, kinds) and not n.name.startswith('_')]
    return [n.name for n in public if not ast.get_docstring(n)]


def _cells(path) -> list:  # sources of code cells
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type'] == 'code']


def _tree(source):
    plain = re.sub(r'(?m)^[%!].*$', '', source)
    return ast.parse(plain)


def _is_import(source) -> bool:
    body = _tree(source).body
    return bool(body) and all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body)


def code_style(paths, exported: bool) -> dict:
    "Long lines, comprehensions, lessons and length of cells, over some notebooks."
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    lines, lengths, comprehensions, public, shown = [], [], 0, 0, 0
    for path in paths:
        cells = _cells(path)
        library = [c for c in cells if '#| export' in c and not _is_import(c)]
        counted = library if exported else [c for c in cells if not _is_import(c)]
        lesson_code = [n for c in cells if '#| export' not in c for n in ast.walk(_tree(c))]
        lesson_names = {n.id for n in lesson_code if isinstance(n, ast.Name)}
        methods = {n.attr for n in lesson_code if isinstance(n, ast.Attribute)}
        for source in counted:
            code = [line for line in source.splitlines() if line.strip() and not line.lstrip().startswith('#|')]
            lines += code
            lengths.append(len(code))
            tree = _tree(source)
            comprehensions += sum(isinstance(n, kinds) for n in ast.walk(tree))
            if not exported: continue
            named = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_')]
            patched = {n.name for n in named if any(getattr(d, 'id', '') == 'patch' for d in n.decorator_list)}
            known = lesson_names | methods & patched
            public, shown = public + len(named), shown + len([n for n in named if n.name in known])
    told = {'lines of code': len(lines), 'over 100 characters, %': 100 * sum(len(line) > 100 for line in lines) / len(lines),
            'over 120 characters': sum(len(line) > 120 for line in lines),
            'comprehensions per 100 lines': 100 * comprehensions / len(lines), 'cell, median lines': statistics.median(lengths)}
    return told | ({'public definitions shown in a lesson, %': 100 * shown / public} if exported else {})


def style(root=ROOT):
    "The table of the code's style, for library and study."
    books = {'library': sorted((root / 'nbs').glob('[0-9]*.ipynb')), 'study': sorted((root / 'nbs' / 'study').glob('*.ipynb'))}
    for name, paths in books.items():
        print(f'{name}: ' + '; '.join(f'{k} {v:.1f}' for k, v in code_style(paths, name == 'library').items()))
    return []


# --- the language

LONG = 40  # words of a sentence that is too long to be read once
NO_END = r'(?:\b(?:e\.g|i\.e|[Cc]f|vs|al|approx|resp|Fig|Figs|Eq|Eqs|Sec|Tab|Vol|pp|p|ed|eds|Dr|St|ca|[A-Z]))\.$'


def plain_blocks(markdown: str) -> list:  # paragraphs and list items as one line of words each
    "The running text of Markdown: no headings, tables, code blocks, equations, pictures, addresses and tags."
    inline = []  # code and formulas within a sentence count as one word each
    def one_word(match):
        inline.append('_'.join(match[0].split()))
        return f'X{len(inline) - 1}X'
    text = re.sub(r'(?ms)^\s*(```|~~~).*?^\s*\1[^\n]*$', '\n\n', markdown)
    text = re.sub(r'(?s)<!--.*?-->|<(script|style)\b.*?</\1>', ' ', text)
    text = re.sub(r'(?s)\$\$.*?\$\$', '\n\n', text)
    text = re.sub(r'(`+)[^`]+?\1', one_word, text)
    text = re.sub(r'(?<![\w$\\])\$[^$]+?\$(?![\w$])', one_word, text)
    text = re.sub(r'!\[[^\]]*\]\([^)]*\)', ' ', text)
    text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', text)
    text = re.sub(r'<[^>]+>|https?://\S+', ' ', text)
    text = re.sub(r'[*_]{1,3}(?=\S)|(?<=\S)[*_]{1,3}', '', text)
    text = re.sub(r'(?m)^[ \t>]*(#.*|\|.*|[-=:| ]{3,})$', '\n', text)
    text = re.sub(r'(?m)^[ \t]*>[ \t]?', '', text)
    text = re.sub(r'(?m)^[ \t]*([-*+]|\d+[.)])[ \t]+', '\n\n', text)
    blocks = [' '.join(block.split()) for block in re.split(r'\n\s*\n', text)]
    return [re.sub(r'X(\d+)X', lambda m: inline[int(m[1])], block) for block in blocks if block]


def sentences(markdown: str) -> list:
    "The sentences of Markdown; an abbreviation, an initial or a number with a point ends none."
    whole = []
    for block in plain_blocks(markdown):
        begun = ''
        for part in re.split(r'(?<=[.!?])(?=\s)|(?<=[.!?][)"\'”’])(?=\s)', block):
            begun += part
            if re.search(NO_END, begun): continue
            whole.append(begun.strip())
            begun = ''
        whole.append(begun.strip())
    return [sentence for sentence in whole if count_words(sentence)]


def count_words(sentence: str) -> int:
    "Words and numbers; signs alone are none."
    return sum(any(c.isalnum() for c in word) for word in sentence.split())


def written(root=ROOT) -> dict:  # path -> sentences
    "The sentences of every notebook's Markdown cells and of README."
    texts = {}
    for path in [*sorted((root / 'nbs').glob('*.ipynb')), *sorted((root / 'nbs' / 'study').glob('*.ipynb'))]:
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        texts[path] = '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    if (root / 'README.md').exists(): texts[root / 'README.md'] = (root / 'README.md').read_text(encoding='utf-8')
    return {path.relative_to(root).as_posix(): sentences(text) for path, text in texts.items()}


def computed(root=ROOT) -> dict:  # page -> sentences
    "The sentences that pages of the committed report compute; intervals in brackets are no words."
    texts = {}
    for path in sorted((root / 'reports' / 'ravdess' / 'notebooks').glob('*.ipynb')):
        told = []
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            for output in cell.get('outputs', []): told.append(''.join(output.get('data', {}).get('text/markdown', '')))
        text = re.sub(r'\([^()]* to [^()]*\)', '', '\n\n'.join(told))
        texts[path.relative_to(root).as_posix()] = sentences(text)
    return texts


def too_long(found: dict) -> list:
    "The sentences over 40 words, longest first."
    faults = [(count_words(s), name, s) for name, text in found.items() for s in text]
    faults = sorted([f for f in faults if f[0] > LONG], reverse=True)
    return [f'{name}: {n} words: {s}' for n, name, s in faults]


def prose(root=ROOT, longest: int = 3) -> list:
    "Words per sentence of each notebook and of README, and the longest sentences."
    found = written(root) | computed(root)
    for name, text in found.items():
        counts = [count_words(s) for s in text] or [0]
        over = 100 * sum(n > LONG for n in counts) / len(counts)
        print(f'{name}: {len(text)} sentences; words per sentence {statistics.mean(counts):.1f};'
              f' over {LONG} words {over:.1f} %')
        for s in sorted(text, key=count_words, reverse=True)[:longest]: print(f'   {count_words(s)}: {s}')
    return too_long(found)


if __name__ == '__main__':
    check, root = sys.argv[1], Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else ROOT
    if check == 'readme': print(readme(root), end='')
    elif check == 'filter': sys.stdout.buffer.write(as_committed(sys.stdin.buffer.read().decode('utf-8')).encode('utf-8'))
    elif check == 'install': install(root)
    elif check == 'corpus': print(corpus(root))
    elif check == 'style': style(root)
    elif check == 'prose': prose(root)
    else:
        faults = dict(drift=drift, clean=clean, lint=lint, lessons=lessons, sources=sources)[check](root)
        print('\n'.join(faults) or '   fine')
        sys.exit(bool(faults))
