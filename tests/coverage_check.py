"""Which lines of the exported code do lessons and tests run?

    python tests/coverage_check.py lessons 00 05     run lessons of some library notebooks (all when none is named)
    python tests/coverage_check.py tests ARGS...     run pytest with these arguments
    python tests/coverage_check.py report            add up everything that was run since `erase`, and print the table
    python tests/coverage_check.py erase             forget it

An exported cell of a notebook is compiled under the name and at the lines of the module that nbdev writes from it. So a lesson
counts for the module that it teaches, as well as for the modules that it imports.
"""
import ast, contextlib, io, json, os, re, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'emotion_study'
GOAL = 95  # percent of lines


def settings(folder: Path) -> Path:
    "A configuration of coverage.py: each process writes its own file, worker processes included."
    path = folder / 'coveragerc'
    path.write_text(f"[run]\nsource = {PACKAGE}\nomit = {PACKAGE}/_modidx.py\ndata_file = {ROOT}/.coverage\n"
                    "parallel = True\nsigterm = True\npatch = subprocess\n[report]\nomit = */_modidx.py\n")
    return path


def begins(module: Path) -> dict:  # id of an exported cell -> line after its marker
    "Where each exported cell stands in a module."
    marks = [re.match(r'# %% \S+ #(\w+)$', line) for line in module.read_text(encoding='utf-8').splitlines()]
    return {m[1]: number for number, m in enumerate(marks, 1) if m}


def compiled(cell: dict, module: Path, lines: dict):
    "A cell's code, under the name of the module where it is exported."
    source = ''.join(cell['source'])
    if not re.match(r'#\|\s*export', source): return compile(source, 'lesson', 'exec')
    body = source.partition('\n')[2]  # the module has no directive
    tree = ast.parse(body)
    written = module.read_text(encoding='utf-8').splitlines()[lines[cell['id']]:]
    gap = next(i for i, line in enumerate(written) if line.strip()) - next(i for i, line in enumerate(body.splitlines()) if line.strip())
    return compile(ast.increment_lineno(tree, lines[cell['id']] + gap), str(module), 'exec')


def run_lessons(notebook: Path):
    "Run the cells of one notebook from top to bottom."
    from IPython.display import display
    module = PACKAGE / f"{notebook.stem.partition('_')[2]}.py"
    lines, names = begins(module), dict(__name__='__main__', display=display)
    os.chdir(notebook.parent)
    sys.modules['__main__'].__dict__.update(names)
    for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] != 'code' or 'eval: false' in ''.join(cell['source']): continue
        exec(compiled(cell, module, lines), sys.modules['__main__'].__dict__)


def measured(*args) -> int:  # exit code
    "Run a command of Python under coverage."
    with tempfile.TemporaryDirectory() as tmp:
        env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT), COVERAGE_RCFILE=str(settings(Path(tmp))))
        return subprocess.run([sys.executable, '-m', 'coverage', 'run', *map(str, args)], cwd=ROOT, env=env).returncode


def notebooks(numbers) -> list:  # paths
    return [p for p in sorted((ROOT / 'nbs').glob('[0-9]*.ipynb')) if not numbers or p.stem[:2] in numbers]


def report() -> float:  # percent
    "Print lines, lines that ran, and the share, for each module, the least covered first."
    import coverage
    with tempfile.TemporaryDirectory() as tmp:
        data = coverage.Coverage(config_file=str(settings(Path(tmp))))
        data.combine(keep=True)
        rows = []
        for module in sorted(PACKAGE.glob('*.py')):
            if module.name == '_modidx.py': continue
            with contextlib.redirect_stderr(io.StringIO()): _, lines, _, missing, _ = data.analysis2(str(module))
            rows.append((module.stem, len(lines), len(lines) - len(missing)))
    for name, lines, ran in sorted(rows, key=lambda row: row[2] / max(row[1], 1)):
        if lines: print(f'{name:12} {ran:5,} of {lines:5,} lines  {100 * ran / lines:5.1f} %')
    share = 100 * sum(r[2] for r in rows) / sum(r[1] for r in rows)
    print(f'exported code: {share:.1f} % of lines were run (goal {GOAL} %)')
    return share


if __name__ == '__main__':
    what, rest = (sys.argv[1:2] or ['help'])[0], sys.argv[2:]
    if what == 'erase':
        for old in ROOT.glob('.coverage*'): old.unlink()
    elif what == 'one': run_lessons(Path(rest[0]))
    elif what == 'lessons': sys.exit(any([measured(__file__, 'one', p) for p in notebooks(rest)]))
    elif what == 'tests': sys.exit(measured('-m', 'pytest', *rest))
    elif what == 'report': report()
    else: print(__doc__)
