"""The checks of `make test` that are no pytest tests: house_checks.py drift|clean|lessons|corpus|readme [checkout]."""
import os, re, shutil, subprocess, sys, tempfile
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
        (copy / 'emotion_study').mkdir()
        shutil.copy(root / 'emotion_study' / '__init__.py', copy / 'emotion_study')  # written by hand, but for the version
        said, code = nbdev('nbdev_export', copy)
        if code: return [said]
        return [f'emotion_study/{n} is not what its notebook exports: run nbdev_export'
                for n in differing(root / 'emotion_study', copy / 'emotion_study', '*.py')]


def clean(root=ROOT):
    "Notebooks that nbdev_clean would change."
    with copied(root) as copy:
        said, code = nbdev('nbdev_clean', copy)
        if code: return [said]
        return [f'nbs/{n} is not clean: run nbdev_clean' for n in differing(root / 'nbs', copy / 'nbs', '*.ipynb')]


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


if __name__ == '__main__':
    check, root = sys.argv[1], Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else ROOT
    if check == 'readme': print(readme(root), end='')
    elif check == 'corpus': print(corpus(root))
    else:
        faults = dict(drift=drift, clean=clean, lessons=lessons)[check](root)
        print('\n'.join(faults) or '   fine')
        sys.exit(bool(faults))
